"""Uniform cubic B-splines through values at the nodes of a record."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .._numerics import clipped

# "not a knot": the third derivative is continuous at the second node and at the last but one
_NOT_A_KNOT = (1.0, -4.0, 6.0, -4.0, 1.0)
# coefficients that matter at one place
BLOCK = 4
_AT_A_NODE = (1.0 / 6.0, 2.0 / 3.0, 1.0 / 6.0)


def spline_fit(nodes: int) -> Float[np.ndarray, "splines nodes"]:
    """Matrix from values at the nodes to the coefficients of the interpolating spline."""
    system = np.zeros((nodes + 2, nodes + 2))
    index = np.arange(nodes)
    for offset, weight in enumerate(_AT_A_NODE):
        system[index, index + offset] = weight
    system[-2, :5] = _NOT_A_KNOT
    system[-1, -5:] = _NOT_A_KNOT
    return np.linalg.inv(system)[:, :nodes]


def spline_weights(
    place: Float[ArrayLike, "*s"], nodes: int
) -> tuple[Int[Array, "*s"], Float[Array, "*s 4"]]:
    """First of the four coefficients that matter at places in [0, nodes - 1], and weights."""
    first = clipped(jnp.floor(jax.lax.stop_gradient(place)), 0, nodes - 2)
    w = place - first
    weights = ((1 - w) ** 3, 3 * w**3 - 6 * w**2 + 4, -3 * w**3 + 3 * w**2 + 3 * w + 1, w**3)
    return first.astype(int), jnp.stack(weights, -1) / 6.0
