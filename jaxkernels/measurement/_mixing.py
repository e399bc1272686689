"""Matrix slopes: the linear part of a residual in all modes, by ridge regression.

The residual r of the fit per mode is regressed on u, x in units of its standard deviations:

    B = argmin |r - u B|^2 + penalty |B|^2,     of rank k if asked for,

which goes back to the fit per mode for a large penalty or rank 0. Penalty and rank are those of the
least squared error on held-out draws: the draws are halved, and each half judges the other's fit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg import matmul

# penalties tried, in numbers of draws: the last two leave nothing of B
_PENALTIES = (0.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5, 1e9)

# singular values of u below this fraction of the largest are no directions
_RANK_TOLERANCE = 1e-6


class Mixing(NamedTuple):
    """The matrix B and the mean square of what it leaves on held-out draws."""

    matrix: Float[Array, "modes modes"]
    residual: Float[Array, " modes"]


def measure_mixing(
    u: Float[Array, "batch modes"], r: Float[Array, "batch modes"]
) -> Float[Array, " modes"]:
    """An unbiased estimate of the mean square of the part of r that other modes of u explain.

    The product of the regressions in two halves of the draws, whose errors are independent.
    """
    half = u.shape[0] // 2
    products = matmul(matmul(u[:half], u[half:].T), r[half:])
    own = jnp.sum(u[:half] * r[:half], 0) * jnp.sum(u[half:] * r[half:], 0)
    return (jnp.sum(r[:half] * products, 0) - own) / (half * (u.shape[0] - half))


def fit_mixing(
    u: Float[Array, "batch modes"],
    r: Float[Array, "batch modes"],
    penalty: float | None,
    low_rank: bool,
) -> Mixing:
    """B with penalty and rank selected by validation, or with a given penalty."""
    half = u.shape[0] // 2
    penalties = jnp.asarray(_PENALTIES if penalty is None else (penalty,), u.dtype)
    folds = ((u[:half], r[:half], u[half:], r[half:]), (u[half:], r[half:], u[:half], r[:half]))

    def losses(penalty: Array) -> Array:
        first, second = (_held_out_losses(*fold, penalty, low_rank) for fold in folds)
        return (first + second) / u.shape[0]

    loss = jax.lax.map(losses, penalties)  # (penalties, ranks, modes)
    total = jnp.sum(loss, -1)
    best = jnp.argmin(total)
    ranks = total.shape[1]
    coefficients, directions = _decompose(u, r, penalties[best // ranks], low_rank)
    if directions is not None:
        kept = jnp.where(jnp.arange(directions.shape[0]) < best % ranks, 1.0, 0.0)
        coefficients = matmul(matmul(coefficients, directions.T) * kept, directions)
    return Mixing(coefficients, loss[best // ranks, best % ranks])


def _decompose(
    u: Float[Array, "batch modes"], r: Float[Array, "batch modes"], penalty: Array, low_rank: bool
) -> tuple[Float[Array, "modes modes"], Float[Array, "ranks modes"] | None]:
    """B of full rank, and the principal directions of the fitted values u B, largest first."""
    left, singular, right = jnp.linalg.svd(u, full_matrices=False)
    used = singular > _RANK_TOLERANCE * singular[0]
    factor = jnp.where(used, singular / jnp.where(used, singular**2 + penalty, 1.0), 0.0)
    rows = factor[:, None] * matmul(left.T, r)
    directions = None
    if low_rank:
        directions = jnp.linalg.svd(singular[:, None] * rows, full_matrices=False)[2]
    return matmul(right.T, rows), directions


def _held_out_losses(
    u: Array, r: Array, held_u: Array, held_r: Array, penalty: Array, low_rank: bool
) -> Float[Array, "ranks modes"]:
    """The squared error per mode of B fitted to (u, r): for every rank from 0, or without rank."""
    coefficients, directions = _decompose(u, r, penalty, low_rank)
    fitted = matmul(held_u, coefficients)
    if directions is None:
        return jnp.sum((held_r - fitted) ** 2, 0)[None]
    along = matmul(fitted, directions.T)  # (draws, ranks)

    def add(left: Array, direction: tuple[Array, Array]) -> tuple[Array, Array]:
        score, vector = direction
        left = left - score[:, None] * vector
        return left, jnp.sum(left**2, 0)

    none = jnp.sum(held_r**2, 0)
    _, rest = jax.lax.scan(add, held_r, (along.T, directions))
    return jnp.concatenate([none[None], rest])


def null_deviation(
    residual: Float[np.ndarray, "n modes"], batch: int, repetitions: int
) -> Float[np.ndarray, " n"]:
    """The standard deviation of the sum of `measure_mixing` over modes where nothing mixes."""
    modes = residual.shape[1]
    return 2.0 / batch * np.sqrt(modes * np.sum(residual**2, 1) / repetitions)
