"""Gauss-Legendre quadrature over rescaled time, fine enough for the decay of every mode."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._precision import is_traced
from .._types import AnyArray, Numbers
from ._time_change import inverse_mode_time, mode_time, mode_variance

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)

# One panel of sixteen nodes integrates e^{-x} over this length to 1e-15, ...
_LONGEST_DECAY = 15.0
# ... and resolves errors that change on the scale of the fastest mode, or more slowly.
_LONGEST_PANEL = 0.5

TRACED_LIMIT = 100.0
"""The largest alpha^2 that is resolved where its value is traced."""


def count_panels(edges: Numbers, variances: Numbers, largest: float) -> int:
    """Panels per cell that resolve e^{-alpha^2 y} in every mode up to this alpha^2: a power of two.

    Powers of two, so that few programs are compiled. The rule must not be coarser than this: an
    optimiser exploits what the quadrature misses (with one panel per cell and alpha^2 up to 1e4 it
    goes below the true infimum).
    """
    if is_traced((edges, variances)):
        raise ValueError("panels must be given where edges or eigenvalues are traced.")
    fastest = float(np.min(np.asarray(variances)))
    longest = np.max(np.diff(np.log1p(np.expm1(np.asarray(edges)) / fastest)))
    needed = longest * max(largest / _LONGEST_DECAY, 1.0 / _LONGEST_PANEL)
    return 2 ** max(0, int(np.ceil(np.log2(needed))))


def resolve_panels(
    edges: Numbers, variances: Numbers, stochasticity_squared: AnyArray, rate: float = 1.0
) -> tuple[int, AnyArray]:
    """Panels for e^{-rate alpha^2 y}, and alpha^2, which is checked at run time if it is traced."""
    if not is_traced(stochasticity_squared):
        largest = rate * float(np.max(np.asarray(stochasticity_squared)))
        return count_panels(edges, variances, largest), stochasticity_squared
    message = (
        f"stochasticity_squared is above {TRACED_LIMIT:g}, up to which traced values are resolved: "
        "give panels."
    )
    above = jnp.any(stochasticity_squared > TRACED_LIMIT)
    stochasticity_squared = eqx.error_if(stochasticity_squared, above, message)
    return count_panels(edges, variances, rate * TRACED_LIMIT), stochasticity_squared


@partial(jax.jit, static_argnames="panels")
def place_nodes(
    edges: Array, fastest: Array, panels: int
) -> tuple[Float[Array, "cells n"], Float[Array, "cells n"]]:
    """Nodes theta and weights d theta, in equal panels of the natural time of the fastest mode."""
    y = mode_time(edges, fastest)
    step = jnp.diff(y)[:, None, None] / panels
    inside = jnp.arange(panels, dtype=y.dtype)[:, None] + 0.5 * (1.0 + jnp.asarray(_NODES))
    nodes = (y[:-1, None, None] + step * inside).reshape(y.size - 1, -1)
    theta = inverse_mode_time(nodes, fastest)
    shape = (y.size - 1, panels, _WEIGHTS.size)
    weights = jnp.broadcast_to(0.5 * step * jnp.asarray(_WEIGHTS), shape)
    return theta, weights.reshape(theta.shape) * mode_variance(theta, fastest)
