"""Minimisation of a cost over u = log(1 + alpha^2) in a box, from many starts.

The variable is a function of alpha^2, not of alpha, in which every derivative vanishes at 0.
"""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._derivatives import dense_derivatives
from .._newton import newton_advance, newton_start

CONSTANTS = 65
"""How many constants are compared at once."""

SDE = float(np.log(2.0))
"""u of alpha = 1, the reverse SDE."""

_MAX_ITERATIONS = 100
_TOLERANCE = 1e-8

# the search for a constant ends at this width; the value is flat there, so its error is of the
# order of the square
_WIDTH = 1e-7


class BestConstant(NamedTuple):
    """The best constant alpha^2 below the cap, and its cost.

    **Example:**

    ```python
    >>> found = jk.reverse_sde.optimize_diffusion(jk.Gaussian(0.0, [0.04]), 1.0, 2.0, cells=2)
    >>> found.best_constant.value <= min(found.ode, found.sde)
    True
    ```
    """

    value: float
    """L or J of the constant."""
    stochasticity_squared: float
    """alpha^2 = h^2 / g^2."""


class Minimum(NamedTuple):
    """What a search from several starts has found."""

    value: float
    u: np.ndarray
    converged: bool
    optima: np.ndarray
    """The cost that each start has reached."""


class AbstractCost(eqx.Module):
    """A positive function of u = log(1 + alpha^2), minimised by derivatives of its logarithm."""

    @abc.abstractmethod
    def value(self, u: Float[Array, " n"], /) -> Float[Array, ""]:
        """Evaluate the cost, >= 0."""

    def derivatives(self, z: Float[Array, " n"], /) -> tuple[Array, Array, Array]:
        """Logarithm of the cost, its gradient and Hessian: finite also if the cost underflows."""
        return dense_derivatives(lambda u: jnp.log(self.value(u) + jnp.finfo(u.dtype).tiny), z)


def evaluate_costs(
    cost: AbstractCost, u: Float[np.ndarray, "starts n"]
) -> Float[np.ndarray, " starts"]:
    """The cost of every row of u, in batches of one size: one program serves any number of rows."""
    rows = np.concatenate([u, np.repeat(u[-1:], -len(u) % CONSTANTS, 0)])
    batches = rows.reshape(-1, CONSTANTS, u.shape[1])
    return np.concatenate([_evaluate_batch(cost, jnp.asarray(b)) for b in batches])[: len(u)]


@jax.jit
def _evaluate_batch(cost: AbstractCost, u: Float[Array, "starts n"]) -> Float[Array, " starts"]:
    return jax.vmap(cost.value)(u)


def search_constant(cost: AbstractCost, top: float, columns: int) -> tuple[float, float]:
    """u <= `top` of the best constant and its cost, by ever finer grids around the best.

    `columns` is the number of entries of u that the constant is repeated in.
    """
    low = 0.0
    high = top
    while True:
        grid = np.linspace(low, high, CONSTANTS)
        values = evaluate_costs(cost, np.repeat(grid[:, None], columns, 1))
        best = int(np.argmin(values))
        if high - low < _WIDTH:
            return float(grid[best]), float(values[best])
        low = grid[max(best - 1, 0)]
        high = grid[min(best + 1, CONSTANTS - 1)]


def move_inside(starts: np.ndarray, top: float) -> np.ndarray:
    """Starts away from the bounds, so that the first step sees every variable."""
    return np.clip(starts, 0.02 * top, 0.98 * top)


def minimise(cost: AbstractCost, starts: np.ndarray, top: float) -> Minimum:
    """The least cost that projected Newton iterations reach in 0 <= u <= `top` from the starts."""
    n = starts.shape[1]
    state = newton_advance(
        cost,
        newton_start(starts, _MAX_ITERATIONS),
        jnp.zeros(n),
        jnp.full(n, top),
        jnp.asarray(_TOLERANCE),
        jnp.asarray(_MAX_ITERATIONS),
    )
    best = int(jnp.argmin(state.value))
    return Minimum(
        value=float(jnp.exp(state.value[best])),
        u=np.asarray(state.z[best]),
        converged=bool(state.done[best]),
        optima=np.exp(np.asarray(state.value)),
    )
