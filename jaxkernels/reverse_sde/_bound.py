"""A bound on the leading order that holds for every h(t) >= 0 and every data law with a Poincaré inequality.

Let m(theta) be the constant in m Var_p(u) <= E_p |grad u|^2 for p = p_theta, and

    I(theta) = E_p [(div E + E . grad log p)^2] = int (div(p E))^2 / p.                                    (1)

The first-order relative change u = (dq/deps)/p of the law obeys, towards the data and along the flow that carries p,
du/dt = (h^2/2) div(p grad u)/p - (1 + h^2)/2 (div E + E . grad log p). Multiplying by u p and integrating,

    sqrt(2 L) <= 1/2 int (1 + h^2) sqrt(I) exp(-1/2 int_0^theta h^2 m dr) d theta,                         (2)

with equality where div(p E) stays in the first eigenfunction, as for one-dimensional Gaussian data and constant errors.
If p_0 satisfies the inequality with m_0 (m_0-strongly log-concave laws do), then p_theta does with

    m(theta) = 1 / (e^{-theta} / m_0 + 1 - e^{-theta}).                                                    (3)

This replaces Proposition 3.4 of Cao, Chen, Luo, Zhou (2023), whose bound asks for h^2 >= 30 at least and exceeds 1 for
h^2 of the order of 100. (2) uses the slowest rate for everything: for errors that oscillate in x it is large (a factor
of a hundred for sin 3x and a law of unit scale).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import safe_sqrt
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
    quadrature,
    resolve,
)
from ._leading_order import ErrorMeasure


@in_float64
def diffusion_bound(
    edges: Numbers,
    h_squared: Numbers,
    information: Profile,
    *,
    convexity: Numbers,
    finest: Numbers | None = None,
    panels: int | None = None,
) -> Float[Array, ""]:
    """The bound (2) on L with (3), in nats: differentiable in h^2, so that it can be minimised in its place.

    **Arguments:**

    - `edges`, `h_squared`, `panels`: as in `leading_order`.
    - `information`: I of (1), a function of the clock theta, or values on the cells; 1 / variance^2.
    - `convexity`: m_0 > 0, 1 / variance.
    - `finest`: the variance that sets the shortest time on which I changes (for Gaussian data the least
      eigenvalue); default 1 / m_0.

    **Raises:** ValueError for m_0 <= 0, h^2 < 0 or a wrong shape.
    """
    edges = checked_edges(edges)
    h_squared = checked_h_squared(h_squared, edges.shape[0] - 1)
    slowest = 1.0 / _checks.parameter("convexity", convexity, above=0.0)
    fastest = slowest if finest is None else _checks.parameter("finest", finest, above=0.0)
    information = checked_profile("information", information, edges.shape[0] - 1, 1)
    if panels is None:
        panels, h_squared = resolve(edges, jnp.asarray([slowest, fastest]), h_squared)
    theta, weights = quadrature(jnp.asarray(edges), jnp.minimum(fastest, slowest), panels)
    y = mode_clock(jnp.asarray(edges)[:, None], jnp.asarray(slowest))
    width = jnp.diff(y, axis=0)
    since = mode_clock(theta, jnp.asarray(slowest)) - y[:-1]
    mass = weights * safe_sqrt(at_times(information, theta, 1)[..., 0])
    error = ErrorMeasure(width, jnp.zeros_like(width), since[..., None], mass[..., None])
    return 0.5 * (0.5 * jnp.sum(error.response(jnp.asarray(h_squared), 0.5))) ** 2


@in_float64
def gaussian_bound(
    target: Gaussian,
    edges: Numbers,
    h_squared: Numbers,
    relative: Profile = 0.0,
    shift: Profile = 0.0,
    *,
    panels: int | None = None,
) -> Float[Array, ""]:
    """`diffusion_bound` for the data and the errors of `leading_order`: I = sum_i (2 c_i^2 + b_i^2) / s_i^2."""
    edges, variances = checked_edges(edges), jnp.asarray(checked_variances(target))
    cells, modes = edges.shape[0] - 1, variances.shape[0]
    c, b = (
        checked_profile(name, value, cells, modes)
        for name, value in (("relative", relative), ("shift", shift))
    )

    def information(theta: Array) -> Array:
        square = 2.0 * at_times(c, theta, modes) ** 2 + at_times(b, theta, modes) ** 2
        return jnp.sum(
            jnp.asarray(target.weights) * square / mode_variance(theta[..., None], variances) ** 2,
            -1,
        )

    return diffusion_bound(
        edges,
        h_squared,
        information,
        convexity=1.0 / jnp.max(variances),
        finest=jnp.min(variances),
        panels=panels,
    )


def density_information(
    log_density: Callable[[Array, Array], Array],
    error: Callable[[Array, Array], Array],
    points: Numbers,
) -> Callable[[Array], Array]:
    """I of (1) for a one-dimensional law, as a function of theta, by the trapezoidal rule.

    **Arguments:** `log_density`: (x, theta) -> log p_theta(x), up to a constant; `error`: (x, theta) -> E, both of
    numbers; `points`: (n,) increasing, beyond which p_theta is negligible. On equal distances the rule converges
    faster than any power.

    **Raises:** ValueError for points that do not increase.
    """
    x = jnp.asarray(points) if is_traced(points) else _grid(points)

    def information(theta: Array) -> Array:
        def integrand(x: Array, theta: Array) -> tuple[Array, Array]:
            value, slope = jax.value_and_grad(log_density)(x, theta)
            e, divergence = jax.value_and_grad(error)(x, theta)
            return value, divergence + e * slope

        def one(theta: Array) -> Array:
            logs, u = jax.vmap(integrand, (0, None))(jnp.asarray(x), theta)
            p = jnp.exp(logs - jnp.max(logs))
            return jnp.trapezoid(p * u**2, x) / jnp.trapezoid(p, x)

        # in batches: all times at once would need much memory
        return jax.lax.map(one, theta.reshape(-1), batch_size=64).reshape(theta.shape)

    return information


def _grid(points: Numbers) -> np.ndarray:
    x = np.asarray(_checks.array("points", points))
    if x.ndim != 1 or x.size < 2 or np.any(np.diff(x) <= 0):
        raise ValueError(
            f"points must be an increasing list of at least two numbers; got shape {x.shape}."
        )
    return x
