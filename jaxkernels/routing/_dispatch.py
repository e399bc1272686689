"""Evaluating experts one at a time, each on those rows of a batch that follow it.

Rows are sorted by their expert and divided into blocks of one size, none of which has rows of two
experts. There are at most rows / size + N blocks, a number that is known before the rows are, so
that one compiled program serves every division. A loop over the blocks runs the expert of each, and
none for blocks that are empty: a row costs one evaluation, and an expert at most one block more
than its rows need.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._numerics import smaller
from ..prediction import Prediction
from ._experts import Experts, check_shape
from ._policy import Selected

# blocks per expert if all have equally many rows
_BLOCKS = 4


class _Plan(NamedTuple):
    """Which rows are in which block, and where each row's result is found."""

    experts: Int[Array, " blocks"]
    """N where a block is empty."""
    rows: Int[Array, "blocks size"]
    places: Int[Array, " rows"]
    """Of the rows among all rows of all blocks."""


def routed_prediction(
    experts: Experts, selected: Selected, x: Float[Array, "batch *shape"], t: Float[Array, ""]
) -> Prediction:
    """sum_j c_j D_(i_j)(x) for the selected experts i_j and coefficients c_j of every row."""
    indices, coefficients = selected
    if experts.num_experts == 1:
        return experts.components[0](x, t)
    batch, evaluations = indices.shape
    size = max(1, -(-batch * evaluations // (_BLOCKS * experts.num_experts)))
    plan = _divide(indices.reshape(-1), experts.num_experts, size)
    branches = [_branch(experts, i) for i in range(experts.num_experts)]
    branches.append(lambda block, rows, t: (jnp.zeros_like(block), jnp.zeros_like(block)))

    def run(_: None, block: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        expert, rows = block
        rows = rows // evaluations
        return None, jax.lax.switch(expert, branches, x[rows], rows, t)

    _, found = jax.lax.scan(run, None, (plan.experts, plan.rows))
    shape = (batch, evaluations, *x.shape[1:])
    scale = coefficients.reshape(batch, evaluations, *(1,) * (x.ndim - 1))
    x0, eps = (
        jnp.sum(scale * part.reshape(-1, *x.shape[1:])[plan.places].reshape(shape), 1)
        for part in found
    )
    return Prediction(x0, eps)


def _branch(experts: Experts, i: int):
    """Expert number i, as a function of a block of rows and their numbers."""

    def evaluate(block: Array, rows: Array, t: Array) -> tuple[Array, Array]:
        prediction = experts.components[i].take(rows)(block, t)
        check_shape(prediction, block, i)
        return prediction.x0, prediction.eps

    return evaluate


def _divide(expert: Int[Array, " rows"], num_experts: int, size: int) -> _Plan:
    """Divide rows into blocks of `size` by their expert; rows of expert N are in none."""
    total = expert.shape[0]
    blocks = total // size + num_experts
    order = jnp.argsort(expert, stable=True)
    counts = jnp.bincount(expert, length=num_experts)
    needed = -(-counts // size)
    after = jnp.cumsum(needed)
    first_block = after - needed
    first_row = jnp.cumsum(counts) - counts
    number = jnp.arange(blocks)
    owner = jnp.searchsorted(after, number, side="right")
    own = smaller(owner, num_experts - 1)
    position = (first_row[own] + (number - first_block[own]) * size)[:, None] + jnp.arange(size)
    # beyond an expert's own rows a block is filled up with any
    rows = order[smaller(position, total - 1)]
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(total)) - first_row[expert]
    places = (first_block[expert] + rank // size) * size + rank % size
    # rows of no expert have the coefficient 0, whatever is found for them
    places = jnp.where(expert < num_experts, places, 0)
    return _Plan(owner, rows, places)
