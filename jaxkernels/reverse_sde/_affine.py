"""The leading order of KL for a score error with a matrix slope, which couples the modes.

For E = A(theta) x + beta(theta), with eta = A m + beta and m the mean of p_theta, W and M of
`_leading_order` are

    W_ij = 1/2 int (1 + alpha^2) e^{-(H_i + H_j)/2} (G_ij + G_ji) d theta,
    G_ij = A_ij sqrt(s_j / s_i),
    M_i = 1/2 int (1 + alpha^2) e^{-H_i/2} eta_i / sqrt(s_i) d theta.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import smallest
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..distributions import Gaussian
from ._cells import check_edges, check_stochasticity, check_variances
from ._leading_order import integrated_decay
from ._quadrature import place_nodes, resolve_panels
from ._time_change import mode_variance

TensorProfile: TypeAlias = Numbers | Callable[[Array], Array]
"""A matrix or vector at every rescaled time: a constant, one per cell, or a function of theta."""


@in_float64
def affine_leading_order(
    target: Gaussian,
    edges: Numbers,
    stochasticity_squared: Numbers,
    matrix: TensorProfile,
    shift: TensorProfile = 0.0,
    *,
    panels: int | None = None,
) -> Float[Array, ""]:
    """Compute L(h), the leading order of KL, for an affine score error with a matrix slope.

        E = A(theta) x + beta(theta),     L = |M|^2 / 2 + |W|_F^2 / 4
        W_ij = 1/2 int (1 + alpha^2) e^{-(H_i + H_j)/2} (G_ij + G_ji) dtheta
        G_ij = A_ij sqrt(s_j / s_i)
        M_i = 1/2 int (1 + alpha^2) e^{-H_i/2} (A m + beta)_i / sqrt(s_i) dtheta,     m = E X_theta

    by Gauss-Legendre quadrature. A and beta are in the coordinates of the data, whose scale is that
    of the rescaled time: x has the variance 1 + (lambda - 1) e^{-theta}.

    **Arguments:**

    - `target`, `edges`, `stochasticity_squared`, `panels`: as in `leading_order`. The target's
      weights must be 1.
    - `matrix`: A in 1 / variance, (d, d) or (cells, d, d), or a function of theta of shape () that
      returns (d, d).
    - `shift`: beta in 1 / data, (d,) or a number, (cells, d), or a function of theta that returns
      (d,).

    **Returns:** L in nats per eps^2.

    **Raises:** ValueError as `leading_order`, and for a target with weights other than 1, which has
    no coordinates.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [1.0, 1.0]), [0.0, 2.0], 1.0)
    >>> value = jk.reverse_sde.affine_leading_order(*setting, [[0.0, 1.0], [-1.0, 0.0]])
    >>> print(f"{abs(float(value)):.4f}")  # a rotation does not change an isotropic distribution
    0.0000
    ```

    Source: the matrix form of Cao, Chen, Luo, Zhou (2023), Proposition 3.2.
    """
    edges = check_edges(edges)
    variances = check_variances(target)
    stochasticity_squared = check_stochasticity(stochasticity_squared, edges.shape[0] - 1)
    if panels is None:
        panels, stochasticity_squared = resolve_panels(edges, variances, stochasticity_squared)
    edges = jnp.asarray(edges)
    variances = jnp.asarray(variances)
    theta, weights = place_nodes(edges, smallest(variances), panels)
    slope, push = whiten_error(target, matrix, shift, theta)
    alpha2 = jnp.asarray(stochasticity_squared)
    return sum_affine(edges, variances, alpha2, theta, weights, slope, push)


@jax.jit
def sum_affine(
    edges: Array,
    variances: Array,
    alpha2: Array,
    theta: Array,
    weights: Array,
    slope: Array,
    push: Array,
) -> Float[Array, ""]:
    """L, from the whitened error at the nodes."""
    change, mean = respond_affine(edges, variances, alpha2, theta, weights, slope, push)
    return jnp.sum(mean**2) / 2.0 + jnp.sum(change**2) / 4.0


def respond_affine(
    edges: Array,
    variances: Array,
    alpha2: Array,
    theta: Array,
    weights: Array,
    slope: Array,
    push: Array,
) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
    """W and M, from the whitened error at the nodes."""
    half = jnp.exp(-0.5 * integrated_decay(edges, variances, alpha2, theta))
    front = (1.0 + alpha2[:, None]) * weights
    symmetric = slope + jnp.swapaxes(slope, -1, -2)
    change = 0.5 * jnp.einsum("cn,cni,cnij,cnj->ij", front, half, symmetric, half)
    return change, 0.5 * jnp.sum(front[..., None] * half * push, (0, 1))


def whiten_error(
    target: Gaussian, matrix: TensorProfile, shift: TensorProfile, theta: Array
) -> tuple[Float[Array, "cells n d d"], Float[Array, "cells n d"]]:
    """A_ij sqrt(s_j / s_i) and eta_i / sqrt(s_i) along the modes, at times (cells, n)."""
    d = target.eigenvalues.shape[0]
    if not is_traced(target) and np.any(np.asarray(target.weights) != 1.0):
        raise ValueError(
            "target has weights other than 1: a mode of weight w is not one coordinate of a matrix."
        )
    basis = jnp.eye(d) if target.basis is None else jnp.asarray(target.basis)
    a = _evaluate("matrix", matrix, theta, (d, d))
    b = _evaluate("shift", shift, theta, (d,))
    return _whiten(basis, jnp.asarray(target.mean), jnp.asarray(target.eigenvalues), theta, a, b)


@jax.jit
def _whiten(
    basis: Array, mean: Array, variances: Array, theta: Array, a: Array, b: Array
) -> tuple[Array, Array]:
    """The error in the eigenbasis, in units of the standard deviation of p_theta."""
    push = (jnp.einsum("cnij,cnj->cni", a, jnp.exp(-0.5 * theta)[..., None] * mean) + b) @ basis
    root = jnp.sqrt(mode_variance(theta[..., None], variances))
    return (basis.T @ a @ basis) * root[..., None, :] / root[..., None], push / root


def _evaluate(argument: str, value: TensorProfile, theta: Array, shape: tuple[int, ...]) -> Array:
    """A matrix or vector at times (cells, n), from a constant, one per cell, or a function."""
    cells = theta.shape[0]
    if callable(value):
        out = jax.vmap(jax.vmap(value))(theta)
        if out.shape != (*theta.shape, *shape):
            raise ValueError(f"{argument} returns shape {out.shape[2:]}; it must be {shape}.")
        return out
    out = jnp.asarray(value) if is_traced(value) else jnp.asarray(_checks.array(argument, value))
    if out.ndim == 0 and len(shape) == 1:
        out = jnp.broadcast_to(out, shape)
    if out.shape not in (shape, (cells, *shape)):
        raise ValueError(
            f"{argument} has shape {out.shape}; it must be {shape} or {(cells, *shape)}."
        )
    out = out[None, None] if out.ndim == len(shape) else out[:, None]
    return jnp.broadcast_to(out, (*theta.shape, *shape))
