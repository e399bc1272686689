"""Limits of the leading order, and what three propositions of the source say about them, as printed and as they hold.

Cao, Chen, Luo, Zhou (2023), Propositions 3.4 to 3.6, for a constant h, the error of `_leading_order` and m = 1 / max s,
M = 1 / min s. Here for Gaussian data, where the exact values are known. theta is the clock of the data end.

- A pulse E delta(theta - theta_s): L = (1 + h^2)^2 sum_i [c_i^2 e^{-2 h^2 y_i}/4 + b_i^2 e^{-h^2 y_i}/8] / s_i^2.   (1)
- An error on theta < a only, a far below every variance: see `window_statement`.
- h -> infinity: L -> Var(phi) / 2 under p_0 where E = grad phi at the data end, because a large h samples the law
  p_0 e^{eps phi}. Errors that are no gradient count by their projection on gradients in L^2(p_0).                  (2)
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import _checks
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..distributions import Gaussian
from ._bound import _grid
from ._clock import checked_variances, mode_clock, mode_variance, quadrature
from ._leading_order import expm1_ratio, whitened_error


class Statement(eqx.Module):
    """What the source prints for L, and what replaces it."""

    printed: Float[Array, ""]
    corrected: Float[Array, ""]
    applies: Bool[Array, ""]
    """Whether the conditions of the printed statement are met."""
    informative: Bool[Array, ""]
    """Whether the printed number says anything where it applies; see each function."""


@in_float64
def pulse_leading_order(
    target: Gaussian,
    h_squared: Numbers,
    time: Numbers,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
) -> Float[Array, ""]:
    """L of (1) for an error that lives at one time only; its size has a unit of time."""
    lam, k, theta, c, b = _setting(target, h_squared, time, relative, shift)
    y, s = mode_clock(theta, lam), mode_variance(theta, lam)
    parts = c**2 * jnp.exp(-2.0 * k * y) / 4.0 + b**2 * jnp.exp(-k * y) / 8.0
    return (1.0 + k) ** 2 * jnp.sum(jnp.asarray(target.weights) * parts / s**2)


@in_float64
def pulse_statement(
    target: Gaussian, h_squared: Numbers, time: Numbers, relative: Numbers = 1.0
) -> Statement:
    """Proposition 3.4 for the pulse c grad log p delta(theta - time) and centred data: bounds on L.

    Printed: C_h (1 + h^2)^2 exp(-int [(h^2 - C2) kappa - C1]) with C2 = (20 + 30 M^2) / m^2 (30 at least, so that it
    covers no h of the source's own experiments); infinite where C_h is. `informative` where its exponent is negative,
    which takes an h^2 above 100. Corrected: the bound of `_bound`, for every h^2 >= 0,

        L <= (1 + h^2)^2 / 8 I(theta) exp(-int_0^theta h^2 m).

    `applies` asks for h^2 >= C2 and for m >= 1, m_0 > 1, not for the source's h_0, whose size it leaves open.

    **Raises:** ValueError for data with a mean, h^2 <= 0 or a negative time.
    """
    if not is_traced(target) and np.any(np.asarray(target.mean) != 0):
        raise ValueError("target.mean must be 0: the constants are implemented for centred data.")
    _checks.parameter("h_squared", h_squared, above=0.0)
    lam, k, theta, c, _ = _setting(target, h_squared, time, relative, 0.0)
    return _pulse(lam, jnp.asarray(target.weights), k, theta, c)


@jax.jit
def _pulse(lam: Array, w: Array, k: Array, end: Array, c: Array) -> Statement:
    d = jnp.sum(w)

    def log_normaliser(theta: Array) -> Array:
        s = mode_variance(theta, lam)
        precision = (1.0 + 1.0 / k) / s - 1.0 / k
        return 0.5 * jnp.sum(
            w * (jnp.log(2 * jnp.pi / precision) - (1.0 + 1.0 / k) * jnp.log(2 * jnp.pi * s))
        )

    def constants(theta: Array) -> tuple[Array, Array, Array]:
        s = mode_variance(theta, lam)
        m, big = 1.0 / jnp.max(s), 1.0 / jnp.min(s)
        zeta = 5.0 * (0.5 + 0.75 * big**2)
        first = (
            jnp.abs(jax.grad(log_normaliser)(theta))
            + 2.5 * d * (1.0 + big)
            + 20.0 * d * big * zeta / m**2
        )
        return first, (20.0 + 30.0 * big**2) / m**2, (1.0 + 1.0 / k) * m - 1.0 / k

    nodes, weights = quadrature(jnp.stack([jnp.zeros_like(end), end]), jnp.min(lam), 8)
    first, second, kappa = jax.vmap(constants)(nodes[0])
    exponent = -jnp.sum(weights[0] * ((k - second) * kappa - first))
    s = mode_variance(end, lam)
    # p^2 / rho is Gaussian with these precisions, if they are positive
    own, tilted = (1.0 + 1.0 / k) / s - 1.0 / k, (1.0 - 1.0 / k) / s + 1.0 / k
    finite = jnp.all(tilted > 0) & jnp.all(own > 0) & jnp.isfinite(exponent)
    own, tilted = jnp.where(finite, own, 1.0), jnp.where(finite, tilted, 1.0)
    ratio = 1.0 / (tilted * s)
    moment = jnp.sum(w * 2.0 * c**2 * ratio**2 / s**2) + jnp.sum(w * c * (ratio - 1.0) / s) ** 2
    log_front = -0.5 * jnp.sum(w * jnp.log(own * tilted * s**2)) + 2.0 * jnp.log1p(k)
    printed = jnp.where(finite, 0.5 * moment * jnp.exp(log_front + exponent), jnp.inf)
    information = jnp.sum(w * 2.0 * c**2 / s**2)
    corrected = (1.0 + k) ** 2 / 8.0 * information * jnp.exp(-k * mode_clock(end, jnp.max(lam)))
    applies = (k >= jnp.max(second)) & (jnp.max(lam) < 1.0)
    return Statement(printed, corrected, applies, finite & (exponent < 0))


@in_float64
def window_statement(
    target: Gaussian,
    h_squared: Numbers,
    window: Numbers,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
) -> Statement:
    """Proposition 3.5 for an error on theta < `window` = a only: asymptotic values of L.

    Printed, with I = E_{p_0}[(div E + E . grad log p_0)^2] and kappa = (1 + h^-2) m_0 - h^-2: a^2 I / 8 at h = 0, and
    (1 - e^{-a h^2 kappa / 2})^2 I / (2 kappa^2) for h > 0, as an upper bound. It drops a factor ((1 + h^2) / h^2)^2,
    without which it is too small at finite h, and is reached in the first eigenfunction only (b); a relative error (c)
    is in the second and reaches a quarter of it for h -> infinity. Corrected, with rates 1 / l for b and 2 / l for c,
    l the variances,

        L ~ ((1 + h^2) / h^2)^2 sum_i [c_i^2 (1 - e^{-a h^2 / l_i})^2 / 4 + b_i^2 (1 - e^{-a h^2 / (2 l_i)})^2 / 2].

    Both need a far below every variance, not only below 1: `informative` says whether it is below a tenth of the least.
    `applies` asks for m_0 > 1, the source's condition.
    """
    lam, k, a, c, b = _setting(target, h_squared, window, relative, shift, name="window")
    w = jnp.asarray(target.weights)
    noisy = k > 0
    safe = jnp.where(noisy, k, 1.0)
    kappa = (1.0 + 1.0 / safe) / jnp.max(lam) - 1.0 / safe
    information = jnp.sum(w * (2.0 * c**2 + b**2) / lam**2)
    reached = jnp.expm1(-0.5 * a * safe * kappa) ** 2 / (
        2.0 * jnp.where(kappa == 0, 1.0, kappa) ** 2
    )
    printed = jnp.where(noisy, reached, a**2 / 8.0) * information

    def reach(rate: Array) -> Array:  # (1 + h^2) int_0^a e^{-h^2 rate r / 2} dr rate / 2
        z = 0.5 * a * rate
        return (1.0 + k) * z * expm1_ratio(k * z)

    corrected = jnp.sum(
        w * (c**2 * reach(2.0 / lam) ** 2 / 4.0 + b**2 * reach(1.0 / lam) ** 2 / 2.0)
    )
    return Statement(
        printed, corrected, jnp.max(lam) < 1.0, (a <= 0.1 * jnp.min(lam)) & (kappa > 0)
    )


@in_float64
def tail_statement(
    target: Gaussian, h_squared: Numbers, relative: Numbers = 0.0, shift: Numbers = 0.0
) -> Statement:
    """Proposition 3.6, the behaviour for large h > 0, for an error that does not change near the data.

    Printed: lim L <= I(0) / (2 m_0^2), which is d for E = grad log p, reached exponentially fast. Corrected:

        L ~ ((1 + h^2) / h^2)^2 T,     T = `tail_constant`, d / 4 for E = grad log p,

    so that L - T falls like 2 T / h^2; only what is left out here is exponentially small. An error that changes near
    the data adds terms of order 1 / h^2. `applies` asks for m_0 > 1; `informative`: whether the printed limit is within
    a factor 2 of T.
    """
    _checks.parameter("h_squared", h_squared, above=0.0)
    lam, k, _, c, b = _setting(target, h_squared, 0.0, relative, shift)
    printed = (
        0.5
        * jnp.max(lam) ** 2
        * jnp.sum(jnp.asarray(target.weights) * (2.0 * c**2 + b**2) / lam**2)
    )
    limit = _tail(target, c, b)
    return Statement(
        printed, ((1.0 + k) / k) ** 2 * limit, jnp.max(lam) < 1.0, printed <= 2.0 * limit
    )


@in_float64
def tail_constant(
    target: Gaussian, relative: Numbers = 0.0, shift: Numbers = 0.0
) -> Float[Array, ""]:
    """The limit T of L for h -> infinity, with c and b of `leading_order` at theta = 0: sum_i (c_i^2 / 4 + b_i^2 / 2).

    It is (2) with phi = c log p_0 + b x / sqrt(lambda): the variance of log p_0 is d / 2 for every normal law.
    """
    _, _, _, c, b = _setting(target, 1.0, 0.0, relative, shift)
    return _tail(target, c, b)


@in_float64
def affine_tail_constant(
    target: Gaussian, matrix: Numbers, shift: Numbers = 0.0
) -> Float[Array, ""]:
    """The limit T of L for h -> infinity, for E = A x + beta at theta = 0 in the coordinates of the data.

    The gradient nearest to A x in L^2(p_0) has the symmetric matrix B_ij = (A_ij l_j + A_ji l_i) / (l_i + l_j) in the
    eigenbasis, l the eigenvalues, and T = sum_ij B_ij^2 l_i l_j / 4 + |C^{1/2} (A mu + beta)|^2 / 2.
    """
    lam = jnp.asarray(checked_variances(target))
    whitened, push = whitened_error(target, matrix, shift, jnp.zeros((1, 1)))
    # whitened is A_ij sqrt(l_j / l_i)
    total = (
        (whitened + jnp.swapaxes(whitened, -1, -2))[0, 0]
        * lam[:, None]
        * lam
        / (lam[:, None] + lam)
    )
    return jnp.sum(total**2) / 4.0 + jnp.sum((lam * push[0, 0]) ** 2) / 2.0


@in_float64
def density_tail_constant(
    log_density: Callable[[Array], Array], potential: Callable[[Array], Array], points: Numbers
) -> Float[Array, ""]:
    """The limit T = Var(phi) / 2 for a one-dimensional law, by the trapezoidal rule.

    **Arguments:** `log_density`: x -> log p_0(x) up to a constant; `potential`: x -> phi(x) with E = phi' at the data
    end, for numbers x; `points`: (n,) increasing, beyond which p_0 is negligible.
    """
    x = jnp.asarray(points if is_traced(points) else _grid(points))
    logs, values = jax.vmap(log_density)(x), jax.vmap(potential)(x)
    p = jnp.exp(logs - jnp.max(logs))
    p = p / jnp.trapezoid(p, x)
    mean = jnp.trapezoid(p * values, x)
    return 0.5 * jnp.trapezoid(p * (values - mean) ** 2, x)


def _tail(target: Gaussian, c: Array, b: Array) -> Array:
    return jnp.sum(jnp.asarray(target.weights) * (c**2 / 4.0 + b**2 / 2.0))


def _setting(
    target: Gaussian,
    h_squared: Numbers,
    time: Numbers,
    relative: Numbers,
    shift: Numbers,
    name: str = "time",
) -> tuple[Array, Array, Array, Array, Array]:
    """Variances, h^2, the time, and the error's two parts along the modes, checked."""
    lam = jnp.asarray(checked_variances(target))
    k = jnp.asarray(_checks.parameter("h_squared", h_squared, at_least=0.0))
    theta = jnp.asarray(_checks.parameter(name, time, at_least=0.0))
    c, b = (_along_modes(n, v, lam.shape[0]) for n, v in (("relative", relative), ("shift", shift)))
    return lam, k, theta, c, b


def _along_modes(name: str, value: Numbers, modes: int) -> Float[Array, " modes"]:
    out = jnp.asarray(value) if is_traced(value) else jnp.asarray(_checks.array(name, value))
    if out.shape not in ((), (modes,)):
        raise ValueError(
            f"{name} has shape {out.shape}; it must be a number or have shape ({modes},)."
        )
    return jnp.broadcast_to(out, (modes,))
