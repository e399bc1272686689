"""Weights of the training loss over time, and the weight of least predicted terminal error.

The loss is int w(theta) E |S - grad log p_theta|^2 d theta, S the learned score.

MODEL of training: the error of the learned score is independent from time to time and relative,
eps E = c grad log p with c of mean 0, and a loss of a given capacity spends it by the weight,

    E |c grad log p|^2 (theta) delta(theta - theta') = delta(theta - theta') / w(theta),
    int w d theta = 1.

Then the expected KL (or squared W2) at the data end is int k / w d theta, with the kernel k of
`terminal_kernel`, and by the Cauchy-Schwarz inequality it is least for w = sqrt(k) / int sqrt(k),
where it is (int sqrt(k))^2. How a network distributes its error in practice is a question for an
experiment.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import safe_sqrt, smallest
from .._precision import in_float64, is_traced
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ._cells import check_edges, check_stochasticity, check_variances
from ._leading_order import integrated_decay
from ._quadrature import place_nodes, resolve_panels
from ._time_change import mode_variance, time_change

WEIGHTINGS: dict[str, Callable[[Array], Array]] = {
    "default": lambda v: v**2,
    "noise": lambda v: v**3,
    "data": lambda v: v**2 / (0.25 + v),
}


@in_float64
def training_weight(
    process: AbstractProcess, t: AnyArray | float, weighting: str = "default"
) -> Float[Array, "..."]:
    """Compute a weight of the training loss at times of a process.

        default  varpi^2,     noise  varpi^3,     data  varpi^2 / (1/4 + varpi)

    with varpi^2 = 1 - e^{-theta}, the variance of X_theta given X_0; for a variance-preserving
    process varpi is its noise s(t). The weights are not normalised: compare their profiles only.

    **Arguments:**

    - `process`: the forward process.
    - `t`: times of the process, any shape.
    - `weighting`: "default", "noise" or "data".

    **Returns:** the weight, of the shape of `t`.

    **Raises:** ValueError for an unknown weighting.

    **Example:**

    ```python
    >>> weight = jk.reverse_sde.training_weight(jk.VP(), 1.0, "data")
    >>> print(f"{float(weight):.3f}")
    0.800
    ```

    Source: Cao, Chen, Luo, Zhou, "Exploring the optimal choice for generative processes in
    diffusion models: ordinary vs stochastic differential equations" (2023),
    (5) and (45), given there without a derivation.
    """
    shape = _checks.lookup("weighting", weighting, WEIGHTINGS)
    return shape(safe_sqrt(-jnp.expm1(-time_change(process, t))))


class TerminalKernel(eqx.Module):
    """The cost at the data end of a unit of squared score error at each time, on quadrature nodes.

    `terminal_kernel` computes it.

    **Example:**

    ```python
    >>> kernel = jk.reverse_sde.terminal_kernel(jk.Gaussian(0.0, [0.04]), [0.0, 2.0], 1.0)
    >>> bool(jnp.all(kernel.kernel > 0.0))
    True
    ```
    """

    time: Float[Array, "cells nodes"]
    """theta of the nodes."""
    size: Float[Array, "cells nodes"]
    """d theta of the nodes."""
    kernel: Float[Array, "cells nodes"]
    """k at the nodes."""

    @property
    def optimal_weight(self) -> Float[Array, "cells nodes"]:
        """The normalised weight of least predicted error, sqrt(k) / int sqrt(k), in 1 / theta."""
        root = jnp.sqrt(jnp.asarray(self.kernel))
        return root / jnp.sum(self.size * root)

    @property
    def optimal_error(self) -> Float[Array, ""]:
        """The predicted error of the optimal weight, (int sqrt(k))^2."""
        return jnp.sum(self.size * jnp.sqrt(jnp.asarray(self.kernel))) ** 2

    @in_float64
    def predict_error(self, weight: Numbers | Callable[[Array], Array]) -> Float[Array, ""]:
        """Predict the expected error of a training weight, in the kernel's metric.

            int k / w dtheta,     w = weight / int weight

        Weights that vanish at the data like theta or faster, as all of `training_weight`, give an
        infinite integral, of which the quadrature sees a part: cut them off at the time at which
        sampling stops.

        **Arguments:**

        - `weight`: > 0, a function of theta or its values at `time`.

        **Returns:** the predicted error, in units of the metric.

        **Raises:** ValueError for a wrong shape or a weight that is not positive.

        **Example:**

        ```python
        >>> kernel = jk.reverse_sde.terminal_kernel(jk.Gaussian(0.0, [0.04]), [0.0, 2.0], 1.0)
        >>> bool(kernel.predict_error(jnp.ones_like) > kernel.optimal_error)
        True
        ```
        """
        w = weight(jnp.asarray(self.time)) if callable(weight) else weight
        if not is_traced(w):
            w = _checks.array("weight", w)
            if w.shape != self.time.shape:
                raise ValueError(
                    f"weight has shape {w.shape}; it must have that of the times, "
                    f"{self.time.shape}."
                )
            if jnp.any(jnp.asarray(w) <= 0):
                raise ValueError(f"weight must be > 0; its smallest value is {w.min():g}.")
        w = jnp.asarray(w)
        return jnp.sum(self.size * self.kernel / w) * jnp.sum(self.size * w)


@in_float64
def terminal_kernel(
    target: Gaussian,
    edges: Numbers,
    stochasticity_squared: Numbers,
    *,
    metric: str = "kl",
    panels: int | None = None,
) -> TerminalKernel:
    """Compute what a unit of squared score error at each time costs at the data end.

        k(theta) = 1/4 sum_i m_i ((1 + alpha^2) e^{-H_i} / s_i)^2 / sum_i (1 / s_i)

    for a relative error that is independent from time to time, with m_i = 1 for KL, and the
    variance lambda_i for squared W2: there modes that hardly vary cost little.

    **Arguments:**

    - `target`, `edges`, `stochasticity_squared`, `panels`: as in `leading_order`.
    - `metric`: "kl", in nats, or "w2_squared", in units of the data squared.

    **Returns:** a `TerminalKernel` on (cells, nodes).

    **Raises:** ValueError as `leading_order`, and for an unknown metric.

    **Example:**

    ```python
    >>> kernel = jk.reverse_sde.terminal_kernel(jk.Gaussian(0.0, [0.04]), [0.0, 2.0], 1.0)
    >>> print(f"{float(jnp.sum(kernel.size * kernel.optimal_weight)):.4f}")
    1.0000
    ```
    """
    edges = check_edges(edges)
    variances = check_variances(target)
    metric = _checks.one_of("metric", metric, ("kl", "w2_squared"))
    alpha2 = check_stochasticity(stochasticity_squared, edges.shape[0] - 1)
    if panels is None:
        panels, alpha2 = resolve_panels(edges, variances, alpha2, rate=2.0)
    edges = jnp.asarray(edges)
    variances = jnp.asarray(variances)
    theta, size = place_nodes(edges, smallest(variances), panels)
    weights = jnp.asarray(target.weights)
    # of a change of the log variance, squared
    costs = jnp.ones_like(variances) if metric == "kl" else variances
    kernel = _evaluate_kernel(edges, variances, weights, costs, jnp.asarray(alpha2), theta)
    return TerminalKernel(theta, size, kernel)


@jax.jit
def _evaluate_kernel(
    edges: Array, lam: Array, w: Array, costs: Array, alpha2: Array, theta: Array
) -> Array:
    """k at the nodes."""
    precision = 1.0 / mode_variance(theta[..., None], lam)
    decay = jnp.exp(-integrated_decay(edges, lam, alpha2, theta))
    squares = costs * ((1.0 + alpha2[:, None, None]) * decay * precision) ** 2
    # one sum for both: XLA (jaxlib 0.10.2, CPU) compiles two of this form to wrong numbers
    cost, unit = jnp.sum(w * jnp.stack([squares, precision]), -1)
    return 0.25 * cost / unit
