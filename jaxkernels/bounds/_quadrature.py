"""Gauss-Legendre quadrature over a step, up to its end or to any of its nodes."""

import functools

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def gauss_legendre(
    nodes: int, dtype: DTypeLike
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, "n n"]]:
    """Nodes and weights on [0, 1], and the matrix of integrals from 0 to every node."""
    # copies: JAX remembers the precision in which it first met a NumPy array
    x, weights, integrals = (jnp.asarray(np.array(part, dtype)) for part in _rule(nodes))
    return x, weights, integrals


@functools.cache
def _rule(nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same in NumPy."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    basis = np.polynomial.legendre.legvander(x, nodes)
    # int_-1^x P_n = (P_(n+1) - P_(n-1)) / (2 n + 1)
    n = np.arange(1, nodes)
    integrals = np.empty((nodes, nodes))
    integrals[:, 0] = x + 1.0
    integrals[:, 1:] = (basis[:, 2:] - basis[:, :-2]) / (2.0 * n + 1.0)
    projection = (2.0 * np.arange(nodes) + 1.0)[:, None] / 2.0 * basis[:, :nodes].T * weights
    return (x + 1.0) / 2.0, weights / 2.0, integrals @ projection / 2.0
