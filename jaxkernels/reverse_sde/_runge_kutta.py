"""Implicit time steps of a conservative diffusion equation on cells.

The method is Alexander's third-order diagonally implicit Runge-Kutta method: L-stable, and its last
stage is the step's result. Source: Alexander, "Diagonally implicit Runge-Kutta methods for stiff
O.D.E.'s" (1977).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._tridiagonal import Factors, eliminate, substitute

_GAMMA = 0.43586652150845900
_B1 = -(6 * _GAMMA**2 - 16 * _GAMMA + 1) / 4
_B2 = (6 * _GAMMA**2 - 20 * _GAMMA + 5) / 4
_STAGE_TIMES = np.array([_GAMMA, (1 + _GAMMA) / 2, 1.0])
_EARLIER = np.array([[0.0, 0.0, 0.0], [(1 - _GAMMA) / 2, 0.0, 0.0], [_B1, _B2, 0.0]])


def stage_times(times: Array) -> Float[Array, "steps stages"]:
    """theta of the stages, for increasing times.

    The generative step runs towards smaller theta, and its last stage is at its end exactly.
    """
    return times[:-1, None] + jnp.diff(times)[:, None] * (1.0 - _STAGE_TIMES)


def map_stages(fn: Callable[[Any], Any], rows: Any) -> Any:
    """`fn` of every step and stage, one after another: all at once would not fit into memory."""
    flat = jax.lax.map(fn, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), rows))
    return jax.tree.map(lambda a: a.reshape(-1, len(_STAGE_TIMES), *a.shape[1:]), flat)


def march(
    times: Array,
    weights: Array,
    right: Array,
    left: Array,
    source: Array,
    stochasticity_squared: Array,
) -> Float[Array, " cells"]:
    """x at theta = 0, from x = 0 at theta = T, of

        weights dx_j/dt = F_{j-1/2} - F_{j+1/2} - (1 + alpha^2)/2 source_j
        F_{j+1/2} = right x_j - left x_{j+1},     no flux at the ends.

    Rows of `right`, `left` (steps, stages, faces) and `source` (steps, stages, cells) are in
    increasing theta.
    """

    def advance(x: Array, here: tuple[Array, ...]) -> tuple[Array, None]:
        right, left, source, step, alpha2 = here
        step = _GAMMA * step
        matrices = eliminate(weights, step * right, step * left)
        inflow = -0.5 * (1.0 + alpha2) * step * source
        rows = (jnp.arange(3), jnp.asarray(_EARLIER / _GAMMA), inflow, *matrices)

        def stage(
            state: tuple[Array, Array], here: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], None]:
            changes, _ = state
            i, earlier, inflow, *matrix = here
            before = x + earlier @ changes
            now = substitute(Factors(*matrix), weights * before + inflow)
            # the stage's slope is this over the step, without applying the matrix
            return (changes.at[i].set(now - before), now), None

        return jax.lax.scan(stage, (jnp.zeros((3, *x.shape)), x), rows)[0][1], None

    rows = (right, left, source, jnp.diff(times), stochasticity_squared)
    return jax.lax.scan(advance, jnp.zeros_like(weights), rows, reverse=True)[0]
