"""Tridiagonal M-matrices that hold masses of very different sizes, solved without cancellation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Factors(NamedTuple):
    """Eliminated matrices, one per stage."""

    pivots: Float[Array, "stages cells"]
    from_left: Float[Array, "stages faces"]
    from_right: Float[Array, "stages faces"]


def eliminate(column_sums: Array, right: Array, left: Array) -> Factors:
    """Gaussian elimination of M-matrices, off-diagonals -right (below) and -left (above).

    The usual recursion for the pivots subtracts, and loses the column sums, which hold the mass of
    a mode, against rates that are many orders larger. `_remainders` does not.
    """
    e = _remainders(column_sums[:, None], right.T, left.T).T
    pivots = e + jnp.pad(right, ((0, 0), (0, 1)))
    return Factors(pivots, right / pivots[:, :-1], left / pivots[:, :-1])


def substitute(matrix: Factors, b: Array) -> Array:
    """The solution of the eliminated system."""
    c = _accumulate(matrix.from_left, b) / matrix.pivots
    return _accumulate(matrix.from_right[::-1], c[::-1])[::-1]


# Both recursions have a linear derivative, which is the second recursion again. Saying so keeps the
# program of a derivative, and the time to compile it, small.


@jax.custom_jvp
def _remainders(sums: Array, right: Array, left: Array) -> Array:
    """e_0 = sums_0, e_{j+1} = sums_{j+1} + left_j e_j / (e_j + right_j), along the first axis.

    e_j + right_j are the pivots (Grassmann, Taksar and Heyman, 1985). All terms are positive:
    nothing cancels.
    """

    def advance(e: Array, here: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        sums, right, left = here
        e = sums + left * (e / (e + right))
        return e, e

    first = jnp.broadcast_to(sums[0], right.shape[1:])
    rest = jax.lax.scan(advance, first, (sums[1:], right, left))[1]
    return jnp.concatenate([first[None], rest])


@_remainders.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    _, right, left = primals
    d_sums, d_right, d_left = tangents
    e = _remainders(*primals)
    pivots = e[:-1] + right
    kept = e[:-1] / pivots
    ratio = left / pivots
    direct = jnp.pad(kept * (d_left - ratio * d_right), ((1, 0), (0, 0)))
    return e, _accumulate(right / pivots * ratio, d_sums + direct)


@jax.custom_jvp
def _accumulate(factor: Array, b: Array) -> Array:
    """x_0 = b_0, x_{j+1} = b_{j+1} + factor_j x_j, along the first axis."""

    def advance(x: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, b = here
        x = b + factor * x
        return x, x

    return jnp.concatenate([b[:1], jax.lax.scan(advance, b[0], (factor, b[1:]))[1]])


@_accumulate.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    factor, b = primals
    d_factor, d_b = tangents
    x = _accumulate(factor, b)
    return x, _accumulate(factor, jnp.concatenate([d_b[:1], d_b[1:] + d_factor * x[:-1]]))
