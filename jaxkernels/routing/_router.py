"""Routers: the probability of every expert at a noisy point."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._numerics import safe_log
from .._precision import is_traced, to_dtype, working_dtype
from .._types import AnyArray, Numbers, constant
from ..distributions import GaussianMixture
from ..processes import AbstractProcess
from ._empirical import EmpiricalDenoiser

ROUTER_OUTPUTS = ("logits", "weights")
"""What a user's router may return: unnormalized log weights, or weights that sum to 1."""

# rounding of float32, in rows of weights that should sum to 1
_TOLERANCE = 1e-4


class AbstractRouter(eqx.Module):
    """A function (x, t) -> unnormalized log weights (batch, experts).

    **Example:**

    ```python
    >>> class Half(jk.routing.AbstractRouter):
    ...     def __call__(self, x, t):
    ...         return jnp.zeros((len(x), 2))
    ...
    ...     def astype(self, dtype):
    ...         return self
    >>> Half()(jnp.ones((3, 2)), 0.5).shape
    (3, 2)
    ```
    """

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "batch *shape"], t: Float[ArrayLike, ""]
    ) -> Float[Array, "batch experts"]:
        """Evaluate the log weights.

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.

        **Returns:** log weights, up to a constant per point.
        """

    @abc.abstractmethod
    def astype(self, dtype: DTypeLike) -> "AbstractRouter":
        """Return this router with the parameters of formulas in another precision.

        **Arguments:**

        - `dtype`: a floating type.

        **Returns:** the router.
        """


class MixtureRouter(AbstractRouter):
    """The posterior probabilities of a Gaussian mixture's components."""

    mixture: GaussianMixture
    process: AbstractProcess

    def __call__(self, x: Array, t: ArrayLike) -> Array:
        return self.mixture.log_posterior(self.process, x, t)

    def astype(self, dtype: DTypeLike) -> "MixtureRouter":
        return to_dtype(self, working_dtype(dtype))


class ClusterRouter(AbstractRouter):
    """The posterior probabilities of clusters of a finite data set."""

    clusters: tuple[EmpiricalDenoiser, ...]

    def __call__(self, x: Array, t: ArrayLike) -> Array:
        return jnp.stack([cluster.log_mass(x, t) for cluster in self.clusters], -1)

    def astype(self, dtype: DTypeLike) -> "ClusterRouter":
        return ClusterRouter(tuple(cluster.astype(dtype) for cluster in self.clusters))


class FunctionRouter(AbstractRouter):
    """A router that the user wrote or trained: any function of (x, t)."""

    fn: Callable[..., Any]
    output: str = eqx.field(static=True)
    num_experts: int = eqx.field(static=True)

    def __call__(self, x: Array, t: ArrayLike) -> Array:
        value = jnp.asarray(self.fn(x, jnp.asarray(t)))
        if value.ndim == 0 or value.shape[-1] != self.num_experts or value.ndim > x.ndim:
            raise ValueError(
                f"router returned shape {value.shape} for x of shape {x.shape}; it must return one "
                f"number per point and expert, {(*x.shape[:1], self.num_experts)}."
            )
        value = value.astype(working_dtype(x.dtype))
        if self.output == "logits":
            return value
        return safe_log(_checked_weights(value))

    def astype(self, dtype: DTypeLike) -> "FunctionRouter":
        del dtype  # a network's weights keep theirs
        return self


class Threshold(AbstractRouter):
    """A router by time alone: the first expert at high noise, the last at low noise.

    Expert i has all the weight for times in [b_i, b_(i-1)).

    **Arguments:**

    - `times`: (experts - 1,) boundaries b_i > 0, strictly decreasing, below the process's t_max.

    **Raises:** ValueError for anything else.

    **Example:**

    ```python
    >>> router = jk.routing.Threshold([0.875])
    >>> jnp.exp(router(jnp.ones((1, 2)), 0.9)).tolist()
    [[1.0, 0.0]]
    ```

    Source: Balaji et al., "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert
    Denoisers" (2022), https://arxiv.org/abs/2211.01324.
    """

    times: Float[AnyArray, " boundaries"]

    def __init__(self, times: Numbers):
        times = np.asarray(_checks.array("times", times))
        if times.ndim != 1 or not times.size or times[-1] <= 0 or np.any(np.diff(times) >= 0):
            raise ValueError(
                f"times = {times.tolist()} must be a list of boundaries > 0, strictly decreasing."
            )
        self.times = constant(times)

    def __call__(self, x: Array, t: ArrayLike) -> Array:
        expert = jnp.sum(jnp.asarray(t) < jnp.asarray(self.times))
        own = jnp.arange(self.times.shape[0] + 1) == expert
        logs = jnp.where(own, jnp.zeros((), working_dtype(x.dtype)), -jnp.inf)
        return jnp.broadcast_to(logs, (x.shape[0], logs.shape[0]))

    def astype(self, dtype: DTypeLike) -> "Threshold":
        del dtype  # a comparison of times has no precision
        return self


class SomeExperts(AbstractRouter):
    """The weights of another router's experts `kept`, relative to each other."""

    router: AbstractRouter
    kept: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Array, t: ArrayLike) -> Array:
        return self.router(x, t)[..., np.array(self.kept)]

    def astype(self, dtype: DTypeLike) -> "SomeExperts":
        return SomeExperts(self.router.astype(dtype), self.kept)


def as_router(router: object, output: str, num_experts: int) -> AbstractRouter:
    """A router of this library as it is, or any function of (x, t)."""
    output = _checks.one_of("router_output", output, ROUTER_OUTPUTS)
    if isinstance(router, AbstractRouter):
        return router
    if not callable(router):
        raise ValueError(f"router must be a function of (x, t); got {router!r}.")
    return FunctionRouter(router, output, num_experts)


def check_threshold(router: AbstractRouter, process: AbstractProcess, num_experts: int) -> None:
    """Check that boundaries lie inside the process's range, one fewer than there are experts."""
    if not isinstance(router, Threshold):
        return
    count = router.times.shape[0]
    if count != num_experts - 1:
        raise ValueError(f"Threshold has {count} boundaries; experts: {num_experts}.")
    if not is_traced((router, process)) and router.times[0] >= process.t_max:
        raise ValueError(
            f"Threshold: times[0] = {float(router.times[0]):g} must be below t_max = "
            f"{float(process.t_max):g}."
        )


def _checked_weights(weights: Float[Array, "batch experts"]) -> Float[Array, "batch experts"]:
    """Rows of weights >= 0 with sum 1; traced ones are checked when they are run."""
    negative = jnp.any(weights < 0)
    off = jnp.any(jnp.abs(jnp.sum(weights, -1) - 1.0) > _TOLERANCE)
    for bad, fault in ((negative, "below 0"), (off, "whose rows do not sum to 1")):
        message = f"router returned weights {fault}; router_output='logits' is for "
        message += "unnormalized log weights."
        if not is_traced(bad) and bool(bad):
            raise ValueError(message)
        weights = eqx.error_if(weights, bad, message)
    return weights
