"""Weights of the training loss over time, and the weight for which the predicted terminal error is least.

The loss is int w(theta) E |S - grad log p_theta|^2 d theta, S the learned score. The source compares, with
varpi^2 = 1 - e^{-theta} the variance of X_theta given X_0,

    default  varpi^2,     noise  varpi^3,     data  varpi^2 / (1/4 + varpi),                               (1)

Cao, Chen, Luo, Zhou (2023), (5) and (45), without a derivation. They are not normalised: compare their profiles only.
Here is what (3) of `_leading_order` adds. MODEL of training: the error of the learned score is independent from time
to time and relative, eps E = c grad log p with c of mean 0, and a loss of a given capacity spends it by the weight,

    E |c grad log p|^2 (theta) delta(theta - theta') = delta(theta - theta') / w(theta),     int w d theta = 1.   (2)

Then the expected KL at the data end is int k / w d theta with the kernel

    k(theta) = 1/4 sum_i ((1 + h^2) e^{-H_i} / s_i)^2 / sum_i (1 / s_i),                                   (3)

and by the Cauchy-Schwarz inequality it is least for w = sqrt(k) / int sqrt(k), with the value (int sqrt(k))^2. How a
network distributes its error in truth is for an experiment to say.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import safe_sqrt
from .._precision import in_float64, is_traced
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ._clock import (
    checked_edges,
    checked_h_squared,
    checked_variances,
    clock,
    mode_variance,
    quadrature,
    resolve,
)
from ._leading_order import accumulated

_SHAPES: dict[str, Callable[[Array], Array]] = {
    "default": lambda v: v**2,
    "noise": lambda v: v**3,
    "data": lambda v: v**2 / (0.25 + v),
}


@in_float64
def training_weight(
    process: AbstractProcess, t: AnyArray | float, kind: str = "default"
) -> Float[Array, "..."]:
    """A weight of (1), `kind` "default", "noise" or "data", at times t of any process through its clock.

    For a variance-preserving process varpi is its noise s(t). **Raises:** ValueError for an unknown kind.
    """
    shape = _checks.lookup("kind", kind, _SHAPES)
    return shape(safe_sqrt(-jnp.expm1(-clock(process, t))))


class TerminalKernel(eqx.Module):
    """k of (3) on quadrature nodes: what a unit of squared score error at each time costs at the end."""

    time: Float[Array, "cells nodes"]
    """theta."""
    size: Float[Array, "cells nodes"]
    """d theta of the nodes."""
    kernel: Float[Array, "cells nodes"]

    @property
    def optimal_weight(self) -> Float[Array, "cells nodes"]:
        """The normalised weight of least predicted error, in units of 1 / theta, at `time`."""
        root = jnp.sqrt(jnp.asarray(self.kernel))
        return root / jnp.sum(self.size * root)

    @property
    def optimal_error(self) -> Float[Array, ""]:
        """(int sqrt(k))^2, the predicted error of that weight."""
        return jnp.sum(self.size * jnp.sqrt(jnp.asarray(self.kernel))) ** 2

    @in_float64
    def predicted_error(self, weight: Numbers | Callable[[Array], Array]) -> Float[Array, ""]:
        """int k / w for the normalised `weight`, a function of theta or its values at `time`.

        Weights that vanish at the data like theta or faster, as all of (1), give an infinite integral, of which the
        quadrature sees a part: cut them off at the time where sampling stops.

        **Raises:** ValueError for a wrong shape or a weight that is not positive.
        """
        w = weight(jnp.asarray(self.time)) if callable(weight) else weight
        if not is_traced(w):
            w = _checks.array("weight", w)
            if w.shape != self.time.shape:
                raise ValueError(
                    f"weight has shape {w.shape}; it must have that of the times, {self.time.shape}."
                )
            if jnp.any(jnp.asarray(w) <= 0):
                raise ValueError(f"weight must be > 0; its smallest value is {w.min():g}.")
        w = jnp.asarray(w)
        return jnp.sum(self.size * self.kernel / w) * jnp.sum(self.size * w)


@in_float64
def terminal_kernel(
    target: Gaussian, edges: Numbers, h_squared: Numbers, *, panels: int | None = None
) -> TerminalKernel:
    """The kernel (3) for Gaussian data and h^2 constant on cells; arguments and errors as in `leading_order`."""
    edges, variances = checked_edges(edges), checked_variances(target)
    k = checked_h_squared(h_squared, edges.shape[0] - 1)
    if panels is None:
        panels, k = resolve(edges, variances, k, rate=2.0)
    edges, lam, k = jnp.asarray(edges), jnp.asarray(variances), jnp.asarray(k)
    theta, size = quadrature(edges, jnp.min(lam), panels)
    return TerminalKernel(theta, size, _kernel(edges, lam, jnp.asarray(target.weights), k, theta))


@jax.jit
def _kernel(edges: Array, lam: Array, w: Array, k: Array, theta: Array) -> Array:
    precision = 1.0 / mode_variance(theta[..., None], lam)
    passed = accumulated(edges, lam, k, theta)
    squares = jnp.sum(w * ((1.0 + k[:, None, None]) * jnp.exp(-passed) * precision) ** 2, -1)
    return 0.25 * squares / jnp.sum(w * precision, -1)
