"""A bound on the leading order for every h(t) >= 0 and any data with a Poincaré inequality.

Let m(theta) be the constant in m Var_p(u) <= E_p |grad u|^2 for p = p_theta, and

    I(theta) = E_p [(div E + E . grad log p)^2] = int (div(p E))^2 / p.                         (1)

The first-order relative change u = (dq/deps)/p of the samples' density obeys, towards the data and
along the probability flow of p,

    du/dt = (alpha^2/2) div(p grad u)/p - (1 + alpha^2)/2 (div E + E . grad log p).

Multiplying by u p and integrating gives

    sqrt(2 L) <= 1/2 int (1 + alpha^2) sqrt(I) exp(-1/2 int_0^theta alpha^2 m dr) d theta,      (2)

with equality where div(p E) stays in the first eigenfunction, as for one-dimensional Gaussian data
and constant errors. If p_0 satisfies the inequality with m_0 (m_0-strongly log-concave densities
do), then p_theta does with

    m(theta) = 1 / (e^{-theta} / m_0 + 1 - e^{-theta}).                                         (3)

It replaces Proposition 3.4 of Cao, Chen, Luo, Zhou (2023), which needs alpha^2 >= 30. (2) uses the
slowest rate for everything: for errors that oscillate in x it is loose (by a factor of a hundred
for sin 3x and a distribution of unit variance).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import largest, safe_sqrt, smaller, smallest
from .._precision import in_float64
from .._types import Numbers
from ..distributions import Gaussian
from ._cells import (
    TimeProfile,
    check_edges,
    check_profile,
    check_stochasticity,
    check_variances,
    evaluate_profile,
)
from ._leading_order import ErrorMeasure
from ._quadrature import place_nodes, resolve_panels
from ._time_change import mode_time, mode_variance


@in_float64
def diffusion_bound(
    edges: Numbers,
    stochasticity_squared: Numbers,
    information: TimeProfile,
    *,
    convexity: Numbers,
    finest: Numbers | None = None,
    panels: int | None = None,
) -> Float[Array, ""]:
    """Bound L(h) for any data with a Poincaré inequality, such as strongly log-concave data.

        sqrt(2 L) <= 1/2 int (1 + alpha^2) sqrt(I) exp(-1/2 int_0^theta alpha^2 m dr) dtheta
        m(theta) = 1 / (e^{-theta} / m_0 + 1 - e^{-theta}),     I = E_p [(div E + E . grad log p)^2]

    It is differentiable in alpha^2, so that it can be minimised in the place of L.

    **Arguments:**

    - `edges`, `stochasticity_squared`, `panels`: as in `leading_order`.
    - `information`: I, a function of theta or values on the cells, in 1 / variance^2;
      `density_information` computes it.
    - `convexity`: m_0 > 0, in 1 / variance.
    - `finest`: the variance > 0 that sets the shortest time on which I changes (for Gaussian data
      the smallest eigenvalue); default 1 / m_0.

    **Returns:** an upper bound on L, in nats per eps^2.

    **Raises:** ValueError for m_0 <= 0, alpha^2 < 0 or a wrong shape.

    **Example:**

    ```python
    >>> bound = jk.reverse_sde.diffusion_bound([0.0, 2.0], 0.0, 1.0, convexity=1.0)
    >>> print(f"{float(bound):.4f}")  # (T/2)^2 / 2 without noise
    0.5000
    ```

    Source: derived here; it replaces Cao, Chen, Luo, Zhou (2023), Proposition 3.4.
    """
    edges = check_edges(edges)
    cells = edges.shape[0] - 1
    alpha2 = check_stochasticity(stochasticity_squared, cells)
    slowest = 1.0 / _checks.parameter("convexity", convexity, above=0.0)
    fastest = slowest if finest is None else _checks.parameter("finest", finest, above=0.0)
    information = check_profile("information", information, cells, 1)
    if panels is None:
        panels, alpha2 = resolve_panels(edges, jnp.asarray([slowest, fastest]), alpha2)
    edges = jnp.asarray(edges)
    slowest = jnp.asarray(slowest)
    theta, weights = place_nodes(edges, smaller(fastest, slowest), panels)
    y = mode_time(edges[:, None], slowest)
    width = jnp.diff(y, axis=0)
    since = mode_time(theta, slowest) - y[:-1]
    mass = weights * safe_sqrt(evaluate_profile(information, theta, 1)[..., 0])
    error = ErrorMeasure(width, jnp.zeros_like(width), since[..., None], mass[..., None])
    return 0.5 * (0.5 * jnp.sum(error.respond(jnp.asarray(alpha2), 0.5))) ** 2


@in_float64
def gaussian_bound(
    target: Gaussian,
    edges: Numbers,
    stochasticity_squared: Numbers,
    relative: TimeProfile = 0.0,
    shift: TimeProfile = 0.0,
    *,
    panels: int | None = None,
) -> Float[Array, ""]:
    """Bound L(h) for Gaussian data by `diffusion_bound`.

        I = sum_i (2 c_i^2 + b_i^2) / s_i^2,     m_0 = 1 / (largest eigenvalue)

    **Arguments:**

    - `target`, `edges`, `stochasticity_squared`, `relative`, `shift`, `panels`: as in
      `leading_order`.

    **Returns:** an upper bound on `leading_order` of the same arguments.

    **Raises:** ValueError as `leading_order`.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.04, 1.0]), [0.0, 2.0], 1.0, 1.0)
    >>> bool(jk.reverse_sde.leading_order(*setting) <= jk.reverse_sde.gaussian_bound(*setting))
    True
    ```
    """
    edges = check_edges(edges)
    variances = jnp.asarray(check_variances(target))
    cells = edges.shape[0] - 1
    modes = variances.shape[0]
    relative = check_profile("relative", relative, cells, modes)
    shift = check_profile("shift", shift, cells, modes)

    def information(theta: Array) -> Array:
        c = evaluate_profile(relative, theta, modes)
        b = evaluate_profile(shift, theta, modes)
        precision = 1.0 / mode_variance(theta[..., None], variances)
        weights = jnp.asarray(target.weights)
        return jnp.sum(weights * (2.0 * c**2 + b**2) * precision**2, -1)

    return diffusion_bound(
        edges,
        stochasticity_squared,
        information,
        convexity=1.0 / largest(variances),
        finest=smallest(variances),
        panels=panels,
    )
