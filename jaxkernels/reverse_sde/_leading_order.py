"""The leading order of KL(p_0 || q) in a small score error, for Gaussian data and any reverse diffusion h.

In the clock theta (`clock`) the reverse family with the learned score grad log p + eps E is

    dY = [Y/2 + (1 + h^2)/2 (grad log p + eps E)(Y)] dt + h dW,     Y starts from p_T,                     (1)

and KL(p_0 || q) = L eps^2 + O(eps^3) at the data end, in nats. Take data N(mu, diag lambda), with s_i and y_i of
`_clock`, H_i(theta) = int_0^theta h^2 dy_i and the error affine. In units of the standard deviation of p_theta the
covariance and the mean of q change to first order by W and M, and

    L = |M|^2 / 2 + |W|_F^2 / 4.                                                                           (2)

For E_i = c_i(theta) d_i log p + b_i(theta) / sqrt(s_i), relative to the score in its first part and to the score's
typical size in both, W is diagonal and

    W_i = -int (1 + h^2) e^{-H_i} c_i dy_i,     M_i = 1/2 int (1 + h^2) e^{-H_i/2} b_i dy_i.               (3)

For E = A(theta) x + beta(theta), with eta = A m + beta, m the mean of p_theta,

    W_ij = 1/2 int (1 + h^2) e^{-(H_i + H_j)/2} (A_ij sqrt(s_j/s_i) + A_ji sqrt(s_i/s_j)) d theta,
    M_i = 1/2 int (1 + h^2) e^{-H_i/2} eta_i / sqrt(s_i) d theta.                                          (4)

Source: Cao, Chen, Luo, Zhou, "Exploring the optimal choice for generative processes in diffusion models: ordinary vs
stochastic differential equations" (2023), Proposition 3.2 and Appendix G.1 in one dimension. Their Table 3 was fitted
by a regression with a free slope, which turns the term in eps^3 into an error of 7 to 9 percent; (3) is exact.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..distributions import Gaussian
from ._clock import (
    Profile,
    at_times,
    checked_edges,
    checked_h_squared,
    checked_profile,
    checked_variances,
    mode_clock,
    mode_variance,
    on_cells,
    quadrature,
    resolve,
)


class CellResponses(eqx.Module):
    """What the error on each cell contributes to W and M of (3)."""

    variance: Float[Array, "cells modes"]
    """W_i: first-order change of log variance per eps."""
    mean: Float[Array, "cells modes"]
    """M_i: first-order shift of the mean per eps, in standard deviations of the data."""
    weights: Float[Array, " modes"]

    def leading_order(self, signs: str = "coherent") -> Float[Array, ""]:
        """L of (2), or its expectation if the error has an `independent` random sign on every cell."""
        coherent = _checks.one_of("signs", signs, ("coherent", "independent")) == "coherent"
        return total_leading_order(self, jnp.asarray(coherent))


@jax.jit
def total_leading_order(responses: CellResponses, coherent: Array) -> Float[Array, ""]:
    w, m = responses.variance, responses.mean
    together = jnp.sum(w, 0) ** 2 / 4.0 + jnp.sum(m, 0) ** 2 / 2.0
    apart = jnp.sum(w**2 / 4.0 + m**2 / 2.0, 0)
    return jnp.sum(responses.weights * jnp.where(coherent, together, apart))


@in_float64
def leading_order(
    target: Gaussian,
    edges: Numbers,
    h_squared: Numbers,
    relative: Profile = 0.0,
    shift: Profile = 0.0,
    *,
    signs: str = "coherent",
    panels: int | None = None,
) -> Float[Array, ""]:
    """L of (2) and (3): KL(p_0 || q) / eps^2 in nats for small eps, in closed form if the error is constant on cells.

    Differentiable in everything, also at h = 0 if h^2 is the variable (in h the derivative vanishes there).

    **Arguments:**

    - `edges`: (cells + 1,) of the clock theta, from 0 (data) to the start of sampling.
    - `h_squared`: h^2 / g^2 = alpha^2 >= 0 on every cell, (cells,) or a number.
    - `relative`, `shift`: c and b of (3). Functions of theta are integrated by Gauss-Legendre panels.
    - `signs`: "independent" gives the expectation over independent random signs of the error on the cells.
    - `panels`: of 16 nodes in every cell, for functions; the default resolves e^{-h^2 y}, up to h^2 = 100 where it is
      traced.

    **Raises:** ValueError for a negative h^2, a zero eigenvalue (KL is infinite), or a wrong shape.
    """
    return cell_responses(target, edges, h_squared, relative, shift, panels=panels).leading_order(
        signs
    )


@in_float64
def cell_responses(
    target: Gaussian,
    edges: Numbers,
    h_squared: Numbers,
    relative: Profile = 0.0,
    shift: Profile = 0.0,
    *,
    panels: int | None = None,
) -> CellResponses:
    """The contributions of every cell to (3); arguments and errors as in `leading_order`."""
    edges, variances = checked_edges(edges), checked_variances(target)
    cells, modes = edges.shape[0] - 1, variances.shape[0]
    h_squared = checked_h_squared(h_squared, cells)
    relative = checked_profile("relative", relative, cells, modes)
    shift = checked_profile("shift", shift, cells, modes)
    if panels is None:
        panels = 1
        if callable(relative) or callable(shift):
            panels, h_squared = resolve(edges, variances, h_squared)
    edges, variances, k = jnp.asarray(edges), jnp.asarray(variances), jnp.asarray(h_squared)
    change = -error_measure(edges, variances, relative, panels).response(k)
    mean = 0.5 * error_measure(edges, variances, shift, panels).response(k, 0.5)
    return CellResponses(change, mean, jnp.asarray(target.weights))


class ErrorMeasure(eqx.Module):
    """An error f dy as a measure on every cell, along the clock y of every mode: a density and point masses.

    Constant errors are densities, functions are masses on quadrature nodes; what is absent is 0, or of length 0.
    """

    width: Float[Array, "cells modes"]
    density: Float[Array, "cells modes"]
    since: Float[Array, "cells nodes modes"]
    """y of the masses from the data end of their cell."""
    mass: Float[Array, "cells nodes modes"]

    def response(self, k: Float[Array, " cells"], rate: float = 1.0) -> Float[Array, "cells modes"]:
        """int (1 + k) exp(-rate int_0 k dy) f dy over every cell, k = h^2."""
        return _response(self, k, rate)


@jax.jit
def _response(error: ErrorMeasure, k: Array, rate: Array | float) -> Array:
    k = k[:, None]
    gained = rate * k * error.width
    before = jnp.cumsum(gained, 0) - gained
    smooth = error.density * error.width * expm1_ratio(gained)
    masses = jnp.sum(error.mass * jnp.exp(-rate * k[:, None] * error.since), 1)
    return (1.0 + k) * jnp.exp(-before) * (smooth + masses)


def error_measure(edges: Array, variances: Array, profile: Profile, panels: int) -> ErrorMeasure:
    """`profile` on the cells, with functions on `panels` panels per cell."""
    cells, modes = edges.shape[0] - 1, variances.shape[0]
    if not callable(profile):
        none = jnp.zeros((cells, 0)), jnp.zeros((cells, 0)), jnp.zeros((cells, 0, modes))
        return _measure(edges, variances, on_cells(profile, cells, modes), *none)
    theta, weights = quadrature(edges, jnp.min(variances), panels)
    return _measure(
        edges,
        variances,
        jnp.zeros((cells, modes)),
        theta,
        weights,
        at_times(profile, theta, variances.shape[0]),
    )


@jax.jit
def _measure(
    edges: Array, variances: Array, density: Array, theta: Array, weights: Array, values: Array
) -> ErrorMeasure:
    y = mode_clock(edges[:, None], variances)
    dy = weights[..., None] / mode_variance(theta[..., None], variances)
    since = mode_clock(theta[..., None], variances) - y[:-1, None]
    return ErrorMeasure(jnp.diff(y, axis=0), density, since, dy * values)


def expm1_ratio(z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """(1 - e^{-z}) / z, equal to 1 at z = 0, with accurate first and second derivatives everywhere."""
    small = jnp.abs(z) < 0.25
    x = jnp.where(small, z, 0.0)
    series = jnp.zeros_like(x)
    for n in range(15, 0, -1):  # 1 - x/2 (1 - x/3 (...)); the first term left out is below 1e-22
        series = (1.0 - x * series) / n
    big = jnp.where(small, 1.0, z)
    return jnp.where(small, series, -jnp.expm1(-big) / big)


@in_float64
def affine_leading_order(
    target: Gaussian,
    edges: Numbers,
    h_squared: Numbers,
    matrix: Numbers | Callable[[Array], Array],
    shift: Numbers | Callable[[Array], Array] = 0.0,
    *,
    panels: int | None = None,
) -> Float[Array, ""]:
    """L of (2) and (4) for E = A(theta) x + beta(theta), by quadrature; both in the coordinates of the data.

    **Arguments:** as in `leading_order`, and

    - `matrix`: A, (d, d), or (cells, d, d), or a function of theta of shape () to (d, d). In 1 / variance.
    - `shift`: beta, (d,) or a number, (cells, d), or a function of theta to (d,). In 1 / data.

    **Raises:** ValueError as `leading_order`, and for a target with weights other than 1, which has no coordinates.
    """
    edges, variances = checked_edges(edges), checked_variances(target)
    h_squared = checked_h_squared(h_squared, edges.shape[0] - 1)
    if panels is None:
        panels, h_squared = resolve(edges, variances, h_squared)
    edges, variances, k = jnp.asarray(edges), jnp.asarray(variances), jnp.asarray(h_squared)
    theta, weights = quadrature(edges, jnp.min(variances), panels)
    return _affine(
        edges, variances, k, theta, weights, *whitened_error(target, matrix, shift, theta)
    )


@jax.jit
def _affine(
    edges: Array,
    variances: Array,
    k: Array,
    theta: Array,
    weights: Array,
    whitened: Array,
    push: Array,
) -> Float[Array, ""]:
    half = jnp.exp(-0.5 * accumulated(edges, variances, k, theta))
    front = (1.0 + k[:, None]) * weights
    change = 0.5 * jnp.einsum(
        "cn,cni,cnij,cnj->ij", front, half, whitened + jnp.swapaxes(whitened, -1, -2), half
    )
    mean = 0.5 * jnp.sum(front[..., None] * half * push, (0, 1))
    return jnp.sum(mean**2) / 2.0 + jnp.sum(change**2) / 4.0


def accumulated(
    edges: Array, variances: Array, k: Array, theta: Array
) -> Float[Array, "cells n modes"]:
    """H at times of every cell."""
    y = mode_clock(edges[:, None], variances)
    gained = k[:, None] * jnp.diff(y, axis=0)
    before = jnp.cumsum(gained, 0) - gained
    return before[:, None] + k[:, None, None] * (
        mode_clock(theta[..., None], variances) - y[:-1, None]
    )


def whitened_error(
    target: Gaussian,
    matrix: Numbers | Callable[[Array], Array],
    shift: Numbers | Callable[[Array], Array],
    theta: Array,
) -> tuple[Float[Array, "cells n d d"], Float[Array, "cells n d"]]:
    """A_ij sqrt(s_j / s_i) and eta_i / sqrt(s_i) along the modes, at times (cells, n)."""
    d = target.eigenvalues.shape[0]
    if not is_traced(target) and np.any(np.asarray(target.weights) != 1.0):
        raise ValueError(
            "target has weights other than 1: a mode of weight w is not one coordinate of a matrix."
        )
    basis = jnp.eye(d) if target.basis is None else jnp.asarray(target.basis)
    a, b = _values("matrix", matrix, theta, (d, d)), _values("shift", shift, theta, (d,))
    return _whiten(basis, jnp.asarray(target.mean), jnp.asarray(target.eigenvalues), theta, a, b)


@jax.jit
def _whiten(
    basis: Array, mean: Array, variances: Array, theta: Array, a: Array, b: Array
) -> tuple[Array, Array]:
    push = (jnp.einsum("cnij,cnj->cni", a, jnp.exp(-0.5 * theta)[..., None] * mean) + b) @ basis
    root = jnp.sqrt(mode_variance(theta[..., None], variances))
    return (basis.T @ a @ basis) * root[..., None, :] / root[..., None], push / root


def _values(
    argument: str, value: Numbers | Callable[[Array], Array], theta: Array, shape: tuple[int, ...]
) -> Array:
    """A matrix or vector at times (cells, n), from a constant, one per cell or a function."""
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
