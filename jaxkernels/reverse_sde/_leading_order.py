"""The leading order of KL(p_0 || q) in a small score error, for Gaussian data and any h(t).

In the rescaled time theta the reverse family with the learned score grad log p + eps E is

    dY = [Y/2 + (1 + alpha^2)/2 (grad log p + eps E)(Y)] dt + alpha dW,     Y starts from p_T,  (1)

alpha = h / g, and KL(p_0 || q) = L eps^2 + O(eps^3) at the data end, in nats; chi^2(p_0 || q) is
2 L eps^2 + O(eps^3). Take data N(mu, diag lambda), s_i and y_i of `_time_change`,
H_i(theta) = int_0^theta alpha^2 dy_i, and an affine error. In units of the standard deviation of
p_theta the covariance and the mean of q change to first order by W and M, and

    L = |M|^2 / 2 + |W|_F^2 / 4.                                                                (2)

For E_i = c_i(theta) d_i log p + b_i(theta) / sqrt(s_i), relative to the score in its first part and
to the score's typical size in both, W is diagonal and

    W_i = -int (1 + alpha^2) e^{-H_i} c_i dy_i,
    M_i = 1/2 int (1 + alpha^2) e^{-H_i/2} b_i dy_i.                                            (3)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import smallest
from .._precision import in_float64
from .._types import Numbers
from ..distributions import Gaussian
from ._cells import (
    TimeProfile,
    broadcast_to_modes,
    check_edges,
    check_profile,
    check_stochasticity,
    check_variances,
    evaluate_profile,
)
from ._quadrature import place_nodes, resolve_panels
from ._time_change import mode_time, mode_variance


class CellResponses(eqx.Module):
    """The first-order response of the samples to the score error on each cell.

        L = sum_i |sum_cells M_i|^2 / 2 + |sum_cells W_i|^2 / 4

    `cell_responses` computes it.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [0.04])
    >>> responses = jk.reverse_sde.cell_responses(target, [0.0, 0.1, 2.0], 1.0, relative=1.0)
    >>> responses.mean.shape  # (cells, modes)
    (2, 1)
    ```
    """

    variance: Float[Array, "cells modes"]
    """W_i: change of the log variance per eps."""
    mean: Float[Array, "cells modes"]
    """M_i: shift of the mean per eps, in standard deviations of the data."""
    weights: Float[Array, " modes"]
    """Multiplicities of the modes."""

    def leading_order(self, signs: str = "coherent") -> Float[Array, ""]:
        """Sum the responses to L, coherently or in expectation over random signs.

        **Arguments:**

        - `signs`: "coherent", or "independent" for the expectation of L if the error has an
          independent random sign on every cell.

        **Returns:** L, in nats per eps^2.

        **Raises:** ValueError for an unknown `signs`.

        **Example:**

        ```python
        >>> target = jk.Gaussian(0.0, [0.04])
        >>> responses = jk.reverse_sde.cell_responses(target, [0.0, 0.1, 2.0], 1.0, relative=1.0)
        >>> bool(responses.leading_order("independent") < responses.leading_order())
        True
        ```
        """
        coherent = _checks.one_of("signs", signs, ("coherent", "independent")) == "coherent"
        return sum_responses(self, jnp.asarray(coherent))


@jax.jit
def sum_responses(responses: CellResponses, coherent: Array) -> Float[Array, ""]:
    """L of (2), or its expectation over independent random signs."""
    w = responses.variance
    m = responses.mean
    together = jnp.sum(w, 0) ** 2 / 4.0 + jnp.sum(m, 0) ** 2 / 2.0
    apart = jnp.sum(w**2 / 4.0 + m**2 / 2.0, 0)
    return jnp.sum(responses.weights * jnp.where(coherent, together, apart))


@in_float64
def leading_order(
    target: Gaussian,
    edges: Numbers,
    stochasticity_squared: Numbers,
    relative: TimeProfile = 0.0,
    shift: TimeProfile = 0.0,
    *,
    signs: str = "coherent",
    panels: int | None = None,
) -> Float[Array, ""]:
    """Compute L(h), the leading order of KL, for a score error that is affine along each mode.

        KL(p_0 || q) = L eps^2 + O(eps^3),     E_i = c_i(theta) d_i log p + b_i(theta) / sqrt(s_i)
        L = 1/4 sum_i (int (1 + alpha^2) e^{-H_i} c_i dy_i)^2
          + 1/8 sum_i (int (1 + alpha^2) e^{-H_i/2} b_i dy_i)^2,     H_i = int_0 alpha^2 dy_i

    with dy_i = dtheta / s_i. It is a closed form if the error is constant on cells, and
    differentiable in everything, also in alpha^2 at 0 (in alpha the derivative vanishes there).

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0.
    - `edges`: (cells + 1,), rescaled times theta, from 0 (data) to the start of sampling.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 >= 0 on every cell, (cells,) or a number.
    - `relative`: c, a `TimeProfile`: dimensionless, relative to the exact score.
    - `shift`: b, a `TimeProfile`: dimensionless, relative to the score's typical size.
    - `signs`: "coherent", or "independent" for the expectation over independent random signs of the
      error on the cells.
    - `panels`: Gauss-Legendre panels of 16 nodes in every cell, used for functions. The default
      resolves e^{-alpha^2 y}, up to alpha^2 = 100 where it is traced.

    **Returns:** L in nats per eps^2.

    **Raises:** ValueError for alpha^2 < 0, a zero eigenvalue (KL is infinite) or a wrong shape.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [0.04])
    >>> value = jk.reverse_sde.leading_order(target, [0.0, 2.0], 20.0, relative=1.0)
    >>> print(f"{float(value):.4f}")
    0.2756
    ```

    Source: Cao, Chen, Luo, Zhou, "Exploring the optimal choice for generative processes in
    diffusion models: ordinary vs stochastic differential equations" (2023),
    Proposition 3.2 and Appendix G.1 (one dimension).
    """
    responses = cell_responses(target, edges, stochasticity_squared, relative, shift, panels=panels)
    return responses.leading_order(signs)


@in_float64
def cell_responses(
    target: Gaussian,
    edges: Numbers,
    stochasticity_squared: Numbers,
    relative: TimeProfile = 0.0,
    shift: TimeProfile = 0.0,
    *,
    panels: int | None = None,
) -> CellResponses:
    """Compute the contribution of every cell to the first-order change of variance and mean.

        W_i = -int (1 + alpha^2) e^{-H_i} c_i dy_i
        M_i = 1/2 int (1 + alpha^2) e^{-H_i/2} b_i dy_i

    **Arguments:**

    - `target`, `edges`, `stochasticity_squared`, `relative`, `shift`, `panels`: as in
      `leading_order`.

    **Returns:** `CellResponses`, with fields (cells, modes).

    **Raises:** ValueError as `leading_order`.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [0.04, 1.0])
    >>> responses = jk.reverse_sde.cell_responses(target, [0.0, 0.1, 2.0], 1.0, relative=1.0)
    >>> responses.variance.shape
    (2, 2)
    ```
    """
    edges = check_edges(edges)
    variances = check_variances(target)
    cells = edges.shape[0] - 1
    modes = variances.shape[0]
    stochasticity_squared = check_stochasticity(stochasticity_squared, cells)
    relative = check_profile("relative", relative, cells, modes)
    shift = check_profile("shift", shift, cells, modes)
    if panels is None:
        panels = 1
        if callable(relative) or callable(shift):
            panels, stochasticity_squared = resolve_panels(edges, variances, stochasticity_squared)
    edges = jnp.asarray(edges)
    variances = jnp.asarray(variances)
    alpha2 = jnp.asarray(stochasticity_squared)
    change = -measure_error(edges, variances, relative, panels).respond(alpha2)
    mean = 0.5 * measure_error(edges, variances, shift, panels).respond(alpha2, 0.5)
    return CellResponses(change, mean, jnp.asarray(target.weights))


class ErrorMeasure(eqx.Module):
    """An error f dy as a measure on every cell, in the natural time y of every mode.

    It is a density and point masses: constant errors are densities, functions are masses on
    quadrature nodes. The part that is absent is 0, or of length 0.
    """

    width: Float[Array, "cells modes"]
    density: Float[Array, "cells modes"]
    since: Float[Array, "cells nodes modes"]
    """y of the masses, from the data end of their cell."""
    mass: Float[Array, "cells nodes modes"]

    def respond(
        self, alpha2: Float[Array, " cells"], rate: float = 1.0
    ) -> Float[Array, "cells modes"]:
        """int (1 + alpha^2) exp(-rate int_0 alpha^2 dy) f dy over every cell."""
        return _respond(self, alpha2, rate)


@jax.jit
def _respond(error: ErrorMeasure, alpha2: Array, rate: Array | float) -> Array:
    """The integral of `ErrorMeasure.respond`."""
    alpha2 = alpha2[:, None]
    gained = rate * alpha2 * error.width
    before = jnp.cumsum(gained, 0) - gained
    smooth = error.density * error.width * expm1_ratio(gained)
    masses = jnp.sum(error.mass * jnp.exp(-rate * alpha2[:, None] * error.since), 1)
    return (1.0 + alpha2) * jnp.exp(-before) * (smooth + masses)


def measure_error(
    edges: Array, variances: Array, profile: TimeProfile, panels: int
) -> ErrorMeasure:
    """The measure of a profile, with functions on `panels` panels per cell."""
    cells = edges.shape[0] - 1
    modes = variances.shape[0]
    if not callable(profile):
        density = broadcast_to_modes(profile, cells, modes)
        no_nodes = jnp.zeros((cells, 0))
        no_values = jnp.zeros((cells, 0, modes))
        return _measure(edges, variances, density, no_nodes, no_nodes, no_values)
    theta, weights = place_nodes(edges, smallest(variances), panels)
    values = evaluate_profile(profile, theta, modes)
    return _measure(edges, variances, jnp.zeros((cells, modes)), theta, weights, values)


@jax.jit
def _measure(
    edges: Array, variances: Array, density: Array, theta: Array, weights: Array, values: Array
) -> ErrorMeasure:
    """The measure of a density and of values at nodes."""
    y = mode_time(edges[:, None], variances)
    dy = weights[..., None] / mode_variance(theta[..., None], variances)
    since = mode_time(theta[..., None], variances) - y[:-1, None]
    return ErrorMeasure(jnp.diff(y, axis=0), density, since, dy * values)


def integrated_decay(
    edges: Array, variances: Array, alpha2: Array, theta: Array
) -> Float[Array, "cells n modes"]:
    """H_i = int_0 alpha^2 dy_i at times of every cell."""
    y = mode_time(edges[:, None], variances)
    gained = alpha2[:, None] * jnp.diff(y, axis=0)
    before = jnp.cumsum(gained, 0) - gained
    since = mode_time(theta[..., None], variances) - y[:-1, None]
    return before[:, None] + alpha2[:, None, None] * since


def expm1_ratio(z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """(1 - e^{-z}) / z, equal to 1 at z = 0, with accurate first and second derivatives.

    It is `phi(1, -z)`, whose second derivative has a relative rounding error that grows as z^2:
    too much for alpha^2 = 1e6, which is no unusual cap.
    """
    small = jnp.abs(z) < 0.25
    x = jnp.where(small, z, 0.0)
    series = jnp.zeros_like(x)
    for n in range(15, 0, -1):  # 1 - x/2 (1 - x/3 (...)); the first omitted term is below 1e-22
        series = (1.0 - x * series) / n
    big = jnp.where(small, 1.0, z)
    return jnp.where(small, series, -jnp.expm1(-big) / big)
