"""Experts: one denoiser made of several, of which a router says how much each applies.

Data that are a mixture, p_0 = sum_i w_i p_{0,i}, have at every time the posterior probabilities

    pi_i(x, t) = w_i p_{t,i}(x) / sum_j w_j p_{t,j}(x),                                      (1)

and denoised points, scores and velocities of the flow are the same averages of the components':

    E[X_0 | x] = sum_i pi_i m_i,    v = sum_i pi_i v_i,    v_i = a' m_i + s' eps_i.           (2)

So experts that were trained apart, each on its own part of the data, are one denoiser.

Source: McAllister et al., "Decentralized Diffusion Models" (2025), section 3,
https://arxiv.org/abs/2501.05450.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int

from .. import _checks
from .._precision import is_traced
from .._types import Numbers, Rows
from ..distributions import GaussianMixture
from ..prediction import AbstractDenoiser, Denoiser, Prediction, check_denoiser
from ..processes import AbstractProcess, same_process
from ._empirical import EmpiricalDenoiser, check_points
from ._router import (
    AbstractRouter,
    ClusterRouter,
    MixtureRouter,
    SomeExperts,
    Threshold,
    as_router,
    check_threshold,
)


class Experts(AbstractDenoiser):
    """Several denoisers and a router: the mean of their predictions, weighted by the router.

        x0 = sum_i pi_i x0_i,     eps = sum_i pi_i eps_i

    Called as a denoiser it evaluates all experts; `sample` of this package runs one, or a few, per
    step. A single expert is evaluated alone, without the router.

    **Arguments:**

    - `components`: one or more denoisers of one process; networks with one prediction type.
    - `router`: a function of (x, t), with x of shape (batch, ...) and a scalar t, that returns
      (batch, experts); or `Threshold(times)`.
    - `router_output`: what a function returns: "logits", unnormalized log weights, or "weights"
      >= 0 with sum 1.

    **Raises:** ValueError for no components, components of different processes or prediction types,
    and a router that is none; when called, for shapes that differ. Traced weights that are none
    raise when they are run.

    **Example:**

    ```python
    >>> networks = [jk.Denoiser(lambda x, t: -x, jk.VP(), "score") for _ in range(2)]
    >>> experts = jk.routing.Experts(networks, lambda x, t: jnp.zeros((len(x), 2)))
    >>> experts.weights(jnp.ones((1, 3)), 0.5).tolist()
    [[0.5, 0.5]]
    ```

    Source: McAllister et al., "Decentralized Diffusion Models" (2025), section 3,
    https://arxiv.org/abs/2501.05450.
    """

    components: tuple[AbstractDenoiser, ...]
    router: AbstractRouter
    process: AbstractProcess

    def __init__(
        self,
        components: Sequence[AbstractDenoiser],
        router: AbstractRouter | Callable[[Array, Array], Array],
        router_output: str = "logits",
    ):
        self.components = _checked_components(components)
        self.process = self.components[0].process
        self.router = as_router(router, router_output, len(self.components))
        check_threshold(self.router, self.process, len(self.components))

    @classmethod
    def of_mixture(cls, mixture: GaussianMixture, process: AbstractProcess) -> "Experts":
        """Make every component of a Gaussian mixture an exact expert.

        **Arguments:**

        - `mixture`: the data distribution.
        - `process`: the forward process.

        **Returns:** the experts, with the posterior probabilities as router. As one denoiser they
        are the exact one of the mixture.

        **Raises:** ValueError for another distribution.

        **Example:**

        ```python
        >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> jk.routing.Experts.of_mixture(mixture, jk.VP()).num_experts
        2
        ```
        """
        mixture = _checks.instance("mixture", mixture, GaussianMixture)
        count = mixture.weights.shape[0]
        parts = [mixture.component(m).denoiser(process) for m in range(count)]
        return cls(parts, MixtureRouter(mixture, process))

    @classmethod
    def of_clusters(cls, clusters: Sequence[Numbers], process: AbstractProcess) -> "Experts":
        """Make every cluster of a finite data set an exact expert.

        All points have the same mass, so that a cluster's weight is its share of the points. Memory
        is bounded whatever the number of points, see `EmpiricalDenoiser`.

        **Arguments:**

        - `clusters`: arrays (n_i, ...), n_i >= 1, of one shape but for n_i.
        - `process`: the forward process.

        **Returns:** the experts, with the posterior probabilities as router.

        **Raises:** ValueError naming the cluster that is empty or of another shape.

        **Example:**

        ```python
        >>> experts = jk.routing.Experts.of_clusters([[[-1.0], [-2.0]], [[1.0]]], jk.VP())
        >>> experts.weights(jnp.array([[0.9]]), 0.05).round(3).tolist()
        [[0.0, 1.0]]
        ```
        """
        if not len(clusters):
            raise ValueError("clusters must hold at least one cluster.")
        points = [check_points(f"clusters[{i}]", cluster) for i, cluster in enumerate(clusters)]
        for i, part in enumerate(points):
            if part.shape[1:] != points[0].shape[1:]:
                raise ValueError(
                    f"clusters[{i}] has points of shape {part.shape[1:]}; clusters[0] of "
                    f"{points[0].shape[1:]}."
                )
        center = np.concatenate(points).mean(0)
        parts = tuple(EmpiricalDenoiser(part, process, center) for part in points)
        return cls(parts, ClusterRouter(parts))

    def without(self, missing: int | Sequence[int]) -> "Experts":
        """Make the experts that remain without some, with the weights renormalized.

            pi_i / sum_{j kept} pi_j

        Of exact experts and router that is the mixture of the other components, w_i / sum w_j: the
        samples are right but for what the missing ones would have made.

        **Arguments:**

        - `missing`: number, or numbers, of the experts, counted from 0.

        **Returns:** the remaining experts.

        **Raises:** ValueError for numbers that are none, all experts missing, and a `Threshold`,
        which leaves times without an expert.

        **Example:**

        ```python
        >>> experts = jk.routing.Experts.of_clusters([[[-1.0]], [[0.0]], [[1.0]]], jk.VP())
        >>> experts.without(1).weights(jnp.zeros((1, 1)), 0.5).round(3).tolist()
        [[0.5, 0.5]]
        ```
        """
        lost = {int(i) for i in np.ravel(missing)}
        wrong = sorted(i for i in lost if not 0 <= i < self.num_experts)
        if wrong:
            raise ValueError(f"missing = {wrong[0]} is none of {self.num_experts} experts.")
        kept = tuple(i for i in range(self.num_experts) if i not in lost)
        if not kept:
            raise ValueError("missing: at least one expert must remain.")
        if lost and isinstance(self.router, Threshold):
            raise ValueError("missing: a Threshold has no other expert for the times of one.")
        return Experts([self.components[i] for i in kept], SomeExperts(self.router, kept))

    @property
    def num_experts(self) -> int:
        """Number N of experts."""
        return len(self.components)

    def log_weights(
        self, x: Float[Array, "..."], t: Float[ArrayLike, ""]
    ) -> Float[Array, "*batch experts"]:
        """Evaluate the logarithms of the routing weights.

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.

        **Returns:** log pi (..., N); -inf for an expert without weight.
        """
        return jax.nn.log_softmax(self.router(x, t), -1)

    def weights(
        self, x: Float[Array, "..."], t: Float[ArrayLike, ""]
    ) -> Float[Array, "*batch experts"]:
        """Evaluate the routing weights.

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.

        **Returns:** pi (..., N) >= 0 with sum 1.
        """
        return jax.nn.softmax(self.router(x, t), -1)

    def log_weight_rates(
        self,
        x: Float[Array, "..."],
        t: Float[ArrayLike, ""],
        velocity: Float[ArrayLike, "..."] = 0.0,
    ) -> Float[Array, "*batch experts"]:
        """Differentiate the logarithms of the routing weights in time along a path.

            d log pi_i / dt = d_t log pi_i + grad log pi_i . dx/dt

        Added up from step to step they are the weights again (`sample` with `log_rates`).

        **Arguments:**

        - `x`, `t`, `velocity`: as for `weight_rates`.

        **Returns:** d log pi / dt (..., N), per unit of time; 0 for an expert without weight, which
        has none later on.
        """
        weights, rates = self._rates(x, t, velocity)
        change = rates - jnp.sum(weights * rates, -1, keepdims=True)
        return jnp.where(weights > 0, change, 0.0)

    def weight_rates(
        self,
        x: Float[Array, "..."],
        t: Float[ArrayLike, ""],
        velocity: Float[ArrayLike, "..."] = 0.0,
    ) -> Float[Array, "*batch experts"]:
        """Differentiate the routing weights in time along a path.

            d pi_i / dt = d_t pi_i + grad pi_i . dx/dt

        Three velocities dx/dt are meant by different authors: 0, at fixed x; a' x_0 + s' z, along
        the noising of one data point x_0; and `velocity(x, t)` of the experts, along the flow. The
        second is the third on average over x_0 given x.

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.
        - `velocity`: dx/dt, a number or in the shape of x, in units of the data per time.

        **Returns:** d pi / dt (..., N), per unit of time; every row sums to 0.
        """
        weights, rates = self._rates(x, t, velocity)
        return weights * (rates - jnp.sum(weights * rates, -1, keepdims=True))

    def _rates(self, x: Array, t: ArrayLike, velocity: ArrayLike) -> tuple[Array, Array]:
        """Routing weights, and the rates of their logs up to what all experts share."""
        x = jnp.asarray(x)
        t = jnp.asarray(t, x.dtype)
        moving = jnp.broadcast_to(jnp.asarray(velocity, x.dtype), x.shape)
        logits, rates = jax.jvp(self.router, (x, t), (moving, jnp.ones_like(t)))
        weights = jax.nn.softmax(logits, -1)
        # an expert without weight has none later on; its rate may be infinite
        return weights, jnp.where(weights > 0, rates, 0.0)

    def weight_gradients(
        self, x: Float[Array, "batch *shape"], t: Float[ArrayLike, ""]
    ) -> Float[Array, "batch experts *shape"]:
        """Differentiate the routing weights in x.

            grad pi_i = pi_i (a / s^2) (m_i - m)

        for exact experts and router, m_i and m being the denoised points; by automatic
        differentiation for any router.

        **Arguments:**

        - `x`: noisy points (batch, ...).
        - `t`: a scalar time.

        **Returns:** gradients (batch, N, ...), per unit of the data.
        """
        x = jnp.asarray(x)
        logits, pull_back = jax.vjp(lambda x: self.router(x, t), x)
        weights = jax.nn.softmax(logits, -1)

        def of_expert(own: Array) -> Array:
            # rows of a batch do not depend on each other
            return pull_back(jnp.broadcast_to(own, logits.shape))[0]

        rates = jax.vmap(of_expert, out_axes=1)(jnp.eye(self.num_experts, dtype=logits.dtype))
        shape = (*weights.shape, *(1,) * (x.ndim - 1))
        weights = weights.reshape(shape)
        return weights * (rates - jnp.sum(weights * rates, 1, keepdims=True))

    def predictions(
        self, x: Float[Array, "..."], t: Float[ArrayLike, ""]
    ) -> tuple[Prediction, ...]:
        """Evaluate every expert.

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.

        **Returns:** a `Prediction` of every expert.

        **Raises:** ValueError for a prediction of another shape, naming the expert.
        """
        found = tuple(component(x, t) for component in self.components)
        for i, prediction in enumerate(found):
            check_shape(prediction, x, i)
        return found

    def velocities(
        self, x: Float[Array, "..."], t: Float[ArrayLike, ""]
    ) -> Float[Array, "experts ..."]:
        """Evaluate the velocity of the flow of every expert.

            v_i = a' m_i + s' eps_i

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.

        **Returns:** dx/dt (N, ...), per unit of time.
        """
        a_rate = self.process.signal_rate(t)
        s_rate = self.process.noise_rate(t)
        return jnp.stack([a_rate * p.x0 + s_rate * p.eps for p in self.predictions(x, t)])

    def velocity(self, x: Float[Array, "..."], t: Float[ArrayLike, ""]) -> Float[Array, "..."]:
        """Evaluate the mean velocity of the flow.

            v = sum_i pi_i v_i

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.

        **Returns:** dx/dt in the shape of x, per unit of time.
        """
        return weighted_sum(self.weights(x, t), self.velocities(x, t))

    def routing_variance(
        self, x: Float[Array, "..."], t: Float[ArrayLike, ""]
    ) -> Float[Array, "*batch"]:
        """Evaluate the variance of the velocity of an expert that is drawn from the router.

            sum_i pi_i |v_i - v|^2

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.

        **Returns:** the variance (...), summed over dimensions.
        """
        weights = self.weights(x, t)
        found = self.velocities(x, t)
        deviations = found - weighted_sum(weights, found)
        axes = tuple(range(weights.ndim, deviations.ndim))
        return jnp.sum(jnp.moveaxis(weights, -1, 0) * jnp.sum(deviations**2, axes), 0)

    def __call__(self, x: Float[Array, "..."], t: Float[ArrayLike, ""]) -> Prediction:
        if self.num_experts == 1:
            return self.components[0](x, t)
        weights = self.weights(x, t)
        found = self.predictions(x, t)
        x0 = weighted_sum(weights, jnp.stack([p.x0 for p in found]))
        eps = weighted_sum(weights, jnp.stack([p.eps for p in found]))
        scores = [p.score for p in found if p.score is not None]
        score = weighted_sum(weights, jnp.stack(scores)) if len(scores) == len(found) else None
        return Prediction(x0, eps, score)

    @property
    def nfe(self) -> int:
        return sum(component.nfe for component in self.components)

    @property
    def condition_numbers(self) -> Int[np.ndarray, " conditions"]:
        return self.components[0].condition_numbers

    def take(self, rows: Rows) -> "Experts":
        parts = tuple(component.take(rows) for component in self.components)
        return eqx.tree_at(lambda experts: experts.components, self, parts)

    def astype(self, dtype: DTypeLike) -> "Experts":
        parts = [component.astype(dtype) for component in self.components]
        return Experts(parts, self.router.astype(dtype))


def weighted_sum(
    weights: Float[Array, "*batch experts"], values: Float[Array, "experts ..."]
) -> Float[Array, "..."]:
    """sum_i weights_i values_i, over the leading axis of the values."""
    weights = jnp.moveaxis(weights, -1, 0)
    weights = weights.reshape(*weights.shape, *(1,) * (values.ndim - weights.ndim))
    return jnp.sum(weights * values, 0)


def check_shape(prediction: Prediction, x: Array, i: int) -> None:
    """Raise a ValueError for a prediction of another shape than x."""
    if prediction.x0.shape != x.shape:
        raise ValueError(
            f"components[{i}] predicts shape {prediction.x0.shape} for x of shape {x.shape}; all "
            "experts must keep the shape of x."
        )


def _checked_components(components: Sequence[AbstractDenoiser]) -> tuple[AbstractDenoiser, ...]:
    """At least one denoiser, all of one process and of one prediction type."""
    found = tuple(check_denoiser(component) for component in components)
    if not found:
        raise ValueError("components must hold at least one denoiser.")
    first = found[0]
    for i, component in enumerate(found[1:], 1):
        ours = component.process
        if not is_traced((ours, first.process)) and not same_process(ours, first.process):
            raise ValueError(f"components[{i}] is of {ours}; components[0] of {first.process}.")
        if isinstance(component, Denoiser) and isinstance(first, Denoiser):
            _check_same_type(component, first, i)
    return found


def _check_same_type(component: Denoiser, first: Denoiser, i: int) -> None:
    """Raise a ValueError for networks with different prediction types."""
    if component.prediction_type != first.prediction_type:
        raise ValueError(
            f"components[{i}] predicts {component.prediction_type!r}; components[0] "
            f"{first.prediction_type!r}. All experts must have one prediction type."
        )
