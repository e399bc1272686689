"""One-dimensional densities: what the bound needs, and limits of short windows and strong noise.

A strong constant noise keeps the relative change u of the samples' density near what the error of
the moment would give in equilibrium, u* = (1 + alpha^2) / alpha^2 (phi - E phi) for E = phi'. By
the equation of `_bound` for u, the difference r = u - u* obeys

    dr/dt = (alpha^2/2) div(p grad r)/p - Du*,     D = d/dt along the probability flow of p,

so that with the Poincaré constant m of p_theta, y = int_0^theta m and sd under p_theta

    |sqrt(2 L) - f sd(phi_0)| <= f [sd(phi_T) e^{-alpha^2 y(T)/2}
                                    + int_0^T sd(D phi) e^{-alpha^2 y/2} dtheta],
    f = (1 + alpha^2) / alpha^2.                                                                (1)

D phi does not vanish unless phi moves with p. (1) therefore approaches L = Var(phi_0) / 2 like
1 / alpha^2, and no faster; already f does.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import larger, largest, safe_sqrt
from .._precision import in_float64, is_traced
from .._types import Numbers
from ._cells import check_points
from ._leading_order import expm1_ratio
from ._quadrature import place_nodes, resolve_panels
from ._time_change import mode_time


class TailBounds(eqx.Module):
    """Bounds on L(h) for a strong constant noise. `density_tail_bounds` computes them.

    **Example:**

    ```python
    >>> setting = (*[lambda x, theta: -0.5 * x**2] * 2, 2.0, 50.0, np.linspace(-9.0, 9.0, 99))
    >>> found = jk.reverse_sde.density_tail_bounds(*setting, convexity=1.0)
    >>> bool(found.lower <= found.upper)
    True
    ```
    """

    lower: Float[Array, ""]
    """At most L, in nats per eps^2."""
    upper: Float[Array, ""]
    """At least L, in nats per eps^2."""


def density_information(
    log_density: Callable[[Array, Array], Array],
    error: Callable[[Array, Array], Array],
    points: Numbers,
) -> Callable[[Array], Array]:
    """Build I(theta) of a one-dimensional distribution, for `diffusion_bound`.

        I(theta) = E_p [(E' + E (log p)')^2]

    by the trapezoidal rule, which on equidistant points converges faster than any power.

    **Arguments:**

    - `log_density`: (x, theta) -> log p_theta(x) up to a constant, for numbers x and theta.
    - `error`: (x, theta) -> E, for numbers x and theta.
    - `points`: (n,), increasing, beyond which p_theta is negligible.

    **Returns:** a function of theta of any shape, in 1 / variance^2.

    **Raises:** ValueError for points that do not increase.

    **Example:**

    ```python
    >>> normal = lambda x, theta: -0.5 * x**2
    >>> setting = (normal, jax.grad(normal), np.linspace(-9.0, 9.0, 99))
    >>> print(f"{float(jk.reverse_sde.density_information(*setting)(jnp.ones(1))[0]):.4f}")
    2.0000
    ```
    """
    x = jnp.asarray(points) if is_traced(points) else check_points(points)

    def information(theta: Array) -> Array:
        def integrand(x: Array, theta: Array) -> tuple[Array, Array]:
            value, slope = jax.value_and_grad(log_density)(x, theta)
            e, divergence = jax.value_and_grad(error)(x, theta)
            return value, divergence + e * slope

        def one(theta: Array) -> Array:
            logs, u = jax.vmap(integrand, (0, None))(jnp.asarray(x), theta)
            p = jnp.exp(logs - largest(logs))
            return jnp.trapezoid(p * u**2, x) / jnp.trapezoid(p, x)

        # in batches: all times at once would need much memory
        return jax.lax.map(one, theta.reshape(-1), batch_size=64).reshape(theta.shape)

    return information


@in_float64
def density_tail_constant(
    log_density: Callable[[Array], Array], potential: Callable[[Array], Array], points: Numbers
) -> Float[Array, ""]:
    """Compute the limit of L(h) for h -> infinity, for a one-dimensional density.

        T = Var_{p_0}(phi) / 2,     E = phi' at the data end

    because a large h samples the density p_0 e^{eps phi}.

    **Arguments:**

    - `log_density`: x -> log p_0(x) up to a constant, for numbers x.
    - `potential`: x -> phi(x), for numbers x.
    - `points`: (n,), increasing, beyond which p_0 is negligible (trapezoidal rule).

    **Returns:** T in nats per eps^2.

    **Raises:** ValueError for points that do not increase.

    **Example:**

    ```python
    >>> normal = lambda x: -0.5 * x**2
    >>> limit = jk.reverse_sde.density_tail_constant(normal, normal, np.linspace(-9, 9, 99))
    >>> print(f"{float(limit):.4f}")  # d / 4 for E = grad log p
    0.2500
    ```
    """
    x = jnp.asarray(points if is_traced(points) else check_points(points))
    return 0.5 * _variance(jax.vmap(log_density)(x), jax.vmap(potential)(x), x)


@in_float64
def density_tail_bounds(
    log_density: Callable[[Array, Array], Array],
    potential: Callable[[Array, Array], Array],
    final_time: float,
    stochasticity_squared: Numbers,
    points: Numbers,
    *,
    convexity: Numbers,
    panels: int | None = None,
) -> TailBounds:
    """Bound L(h) from both sides for strong constant noise, for a one-dimensional density.

        |sqrt(2 L) - f sd(phi_0)| <= f [sd(phi_T) e^{-alpha^2 y(T)/2}
                                        + int_0^T sd(D phi) e^{-alpha^2 y/2} dtheta]
        f = (1 + alpha^2) / alpha^2,     y = log(1 + (e^theta - 1) m_0),     E = phi'

    with sd(.) the standard deviation under p_theta and D the derivative along its probability flow.
    The difference of both bounds falls like 1 / alpha^2, and exponentially if phi moves with p, as
    c log p does for Gaussian data and a constant c. L itself is there ((1 + alpha^2) / alpha^2)^2
    Var(phi_0) / 2 up to exponentially small terms.

    **Arguments:**

    - `log_density`: (x, theta) -> log p_theta(x) up to a constant, for numbers x and theta.
    - `potential`: (x, theta) -> phi, for numbers x and theta.
    - `final_time`: theta > 0 at the start of sampling.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 > 0, one number for all times.
    - `points`: (n,), increasing, beyond which every p_theta is negligible (trapezoidal rule).
    - `convexity`: m_0 > 0, the Poincaré constant of p_0, as in `diffusion_bound`.
    - `panels`: of the quadrature over theta; the default resolves e^{-alpha^2 y/2}.

    **Returns:** `TailBounds`.

    **Raises:** ValueError for alpha^2, `final_time` or m_0 <= 0 or points that do not increase.

    **Example:**

    ```python
    >>> setting = (*[lambda x, theta: -0.5 * x**2] * 2, 2.0, 50.0, np.linspace(-9.0, 9.0, 99))
    >>> found = jk.reverse_sde.density_tail_bounds(*setting, convexity=1.0)
    >>> print(f"{float(found.lower):.4f} {float(found.upper):.4f}")  # (51/50)^2 d / 4
    0.2601 0.2601
    ```

    Source: derived here. It replaces Cao, Chen, Luo, Zhou (2023), Proposition 3.6, which bounds L
    by (1 +- a^2) T with exponentially small remainders for every a in (0, 1), and says that L
    approaches T exponentially: no bound of this form holds for a^2 < 2 / alpha^2.
    """
    x = jnp.asarray(points if is_traced(points) else check_points(points))
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    alpha2 = _checks.parameter("stochasticity_squared", stochasticity_squared, above=0.0)
    slowest = 1.0 / _checks.parameter("convexity", convexity, above=0.0)
    edges = jnp.asarray([0.0, final_time])
    if panels is None:
        panels, alpha2 = resolve_panels(edges, jnp.asarray([slowest]), alpha2)
    alpha2 = jnp.asarray(alpha2)
    slowest = jnp.asarray(slowest)
    theta, sizes = place_nodes(edges, slowest, panels)

    def deviation(theta: Array) -> tuple[Array, Array]:
        """sd of phi and of D phi at one time."""

        def at(x: Array) -> tuple[Array, Array, Array]:
            logs, score = jax.value_and_grad(log_density)(x, theta)
            flow = (-0.5 * (x + score), jnp.ones_like(theta))
            return logs, *jax.jvp(potential, (x, theta), flow)

        logs, values, rates = jax.vmap(at)(x)
        return safe_sqrt(_variance(logs, values, x)), safe_sqrt(_variance(logs, rates, x))

    ends = [deviation(end)[0] for end in edges]
    rates = jax.lax.map(lambda end: deviation(end)[1], theta[0], batch_size=64)
    decay = jnp.exp(-0.5 * alpha2 * mode_time(theta[0], slowest))
    rest = ends[1] * jnp.exp(-0.5 * alpha2 * mode_time(edges[1], slowest))
    rest = rest + jnp.sum(sizes[0] * rates * decay)
    factor = 0.5 * ((1.0 + alpha2) / alpha2) ** 2
    lower = factor * larger(ends[0] - rest, 0.0) ** 2
    return TailBounds(lower, factor * (ends[0] + rest) ** 2)


@in_float64
def density_window_leading_order(
    log_density: Callable[[Array], Array],
    error: Callable[[Array], Array],
    stochasticity_squared: Numbers,
    window: Numbers,
    points: Numbers,
) -> Float[Array, ""]:
    """Compute the asymptotic L(h) for an error on theta < a only, for a one-dimensional density.

        L ~ (1 + alpha^2)^2 / 8 sum_k (int_0^a e^{-alpha^2 l_k r/2} dr)^2 f_k^2
          = ((1 + alpha^2) / alpha^2)^2 sum_k (1 - e^{-a alpha^2 l_k/2})^2 / (2 l_k^2) f_k^2

    with l_k the rates of the Langevin process of p_0, the eigenvalues of -(1/p_0) d/dx (p_0 d/dx),
    and f_k the coefficients of E' + E (log p_0)' in its eigenfunctions. A window a far below the
    variance is assumed: the relative error is of the order of a l_k. At alpha = 0 it is a^2 I / 8
    with I of `density_information`. Eigenfunctions times sqrt(p_0) solve a Schrödinger equation,

        -psi'' + W psi = l psi,     W = (log p_0)'^2 / 4 + (log p_0)'' / 2,

    which is discretised by sinc functions on the points: it converges faster than any power.

    **Arguments:**

    - `log_density`: x -> log p_0(x) up to a constant, for numbers x.
    - `error`: x -> E(x), for numbers x.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 >= 0, one number for all times.
    - `window`: a >= 0, in rescaled time.
    - `points`: (n,), equidistant, beyond which sqrt(p_0) is negligible.

    **Returns:** L in nats per eps^2, differentiable in alpha^2 and a.

    **Raises:** ValueError for a negative alpha^2 or window, or points that are not equidistant.

    **Example:**

    ```python
    >>> setting = (lambda x: -0.5 * x**2, lambda x: -x, 0.0, 0.01, np.linspace(-12.0, 12.0, 99))
    >>> value = jk.reverse_sde.density_window_leading_order(*setting)
    >>> print(f"{float(value):.6f}")
    0.000025
    ```

    Source: derived here; it corrects Cao, Chen, Luo, Zhou (2023), Proposition 3.5, whose bound
    (1 - e^{-a h^2 k/2})^2 / (2 k^2) I with the smallest rate k drops the first factor.
    """
    x = check_points(points)
    if not np.allclose(np.diff(x), x[1] - x[0], rtol=1e-9, atol=0.0):
        raise ValueError("points must be equidistant.")
    alpha2 = _checks.parameter("stochasticity_squared", stochasticity_squared, at_least=0.0)
    a = jnp.asarray(_checks.parameter("window", window, at_least=0.0))
    alpha2 = jnp.asarray(alpha2)
    rates, coefficients = _expand(log_density, error, x)
    response = 0.5 * (1.0 + alpha2) * a * expm1_ratio(0.5 * a * alpha2 * rates) * coefficients
    return 0.5 * jnp.sum(response**2)


def _expand(
    log_density: Callable[[Array], Array], error: Callable[[Array], Array], x: np.ndarray
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The rates of the Langevin process, and the coefficients of E' + E (log p)'."""

    def at(x: Array) -> tuple[Array, Array, Array]:
        slope = jax.grad(log_density)
        e, divergence = jax.value_and_grad(error)(x)
        potential = 0.25 * slope(x) ** 2 + 0.5 * jax.grad(slope)(x)
        return log_density(x), potential, divergence + e * slope(x)

    logs, potential, source = jax.vmap(at)(jnp.asarray(x))
    width = x[1] - x[0]
    root = jnp.exp(0.5 * (logs - largest(logs)))
    root = root / jnp.sqrt(jnp.sum(root**2))
    apart = np.arange(x.size) - np.arange(x.size)[:, None]
    squares = np.where(apart == 0, 1, apart) ** 2
    curvature = np.where(apart == 0, np.pi**2 / 3.0, 2.0 * (-1.0) ** apart / squares) / width**2
    rates, vectors = jnp.linalg.eigh(jnp.asarray(curvature) + jnp.diag(potential))
    return larger(rates, 0.0), (root * source) @ vectors


def _variance(logs: Array, values: Array, x: Array) -> Float[Array, ""]:
    """The variance of values under a density of these logarithms, by the trapezoidal rule."""
    p = jnp.exp(logs - largest(logs))
    p = p / jnp.trapezoid(p, x)
    mean = jnp.trapezoid(p * values, x)
    return jnp.trapezoid(p * (values - mean) ** 2, x)
