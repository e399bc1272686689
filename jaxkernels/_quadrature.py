"""Gauss-Legendre quadrature, up to any of its nodes or with what its own error may be.

A sum over nodes that stands in a bound must not lie below the integral. A panel of n nodes knows
the first n Legendre coefficients c_k of its integrand. With m the mean of the integrand's size,

    integral <= sum + length m e^(3/2),        e = (c_(n-1)^2 + c_(n-2)^2)^(1/2) / m

Where the integrand is smooth at the scale of the panel, e is so small that the addition is below
rounding; where it has a kink, or changes too fast, the addition exceeds the error of the sum, as
the power of QUADPACK's estimate makes it (Piessens et al., "QUADPACK", 1983).
"""

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
    x, weights, integrals = (jnp.asarray(np.array(part, dtype)) for part in _rule(nodes)[:3])
    return x, weights, integrals


def mean_from_above(values: Float[Array, "*panels n"]) -> Float[Array, "*panels"]:
    """The mean of an integrand over each panel, and what the sum over nodes may lack."""
    _, weights, _ = gauss_legendre(values.shape[-1], values.dtype)
    return values @ weights + lacking(values)


def lacking(values: Float[Array, "*panels n"]) -> Float[Array, "*panels"]:
    """What the mean over the nodes of each panel may lack to the mean over the panel."""
    _, weights, _, last = _rule(values.shape[-1])
    values = jnp.where(jnp.isfinite(values), values, 0.0)
    size = jnp.abs(values) @ jnp.asarray(np.array(weights, values.dtype))
    # relative to the size, whose square may overflow
    some = size > jnp.finfo(values.dtype).tiny
    coefficients = values @ jnp.asarray(np.array(last, values.dtype)).T
    relative = jnp.where(some[..., None], coefficients, 0.0) / jnp.where(some, size, 1.0)[..., None]
    square = jnp.sum(relative**2, -1)
    # without a NaN derivative where the integrand is constant or 0
    rough = square > 0
    return jnp.where(rough, size * jnp.where(rough, square, 1.0) ** 0.75, 0.0)


@functools.cache
def _rule(nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same in NumPy, and what gives the last two Legendre coefficients."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    basis = np.polynomial.legendre.legvander(x, nodes)
    # int_-1^x P_n = (P_(n+1) - P_(n-1)) / (2 n + 1)
    n = np.arange(1, nodes)
    integrals = np.empty((nodes, nodes))
    integrals[:, 0] = x + 1.0
    integrals[:, 1:] = (basis[:, 2:] - basis[:, :-2]) / (2.0 * n + 1.0)
    projection = (2.0 * np.arange(nodes) + 1.0)[:, None] / 2.0 * basis[:, :nodes].T * weights
    return (x + 1.0) / 2.0, weights / 2.0, integrals @ projection / 2.0, projection[-2:]
