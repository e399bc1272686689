"""Proposition 3.4 of Cao, Chen, Luo, Zhou (2023) with all of its constants, for Gaussian data.

For an error E at the time theta_s only and a constant h the proposition bounds L by

    L <= C_h (1 + h^2)^2 exp(-int_0^{theta_s} [(h^2 - C2) kappa - C1] dtheta),     h >= h_lb,   (1)

with, for p = e^{-U} of dimension d, m <= Hessian of U <= M, eta = 1 / h^2, the potential
V = (1 + eta) U - eta |x|^2 / 2, Z = int e^{-V}, rho = e^{-V} / Z, and X, Y the minima of U, V,

    kappa = (1 + eta) m - eta,
    C2 = (20 + 30 M^2) / m^2,     zeta = 5 (1/2 + 3/4 M^2),
    C1 = |d log Z / dtheta| + 5 d (1 + M) / 2 + 5/2 |X|^2 + 2 zeta |Y - X|^2 + 20 d M zeta / m^2,
    C_h = 1/2 int (div(p E))^2 / rho,
    h_lb = max(1/2, h_0, sqrt(max(0, -c_U / log 2, sup C2))),

c_U the minimum of U - |x|^2 / 2 at theta = 0, and h_0 the least h from which on Z >= 1/2 at
theta = 0. All are closed forms for N(m, s) per mode and the error of `_leading_order`. The bound is
true and says little: M >= m makes C2 >= 30, and its exponent is negative for h^2 above 100 only.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import _checks
from .._numerics import larger, largest, safe_log, smallest
from .._precision import in_float64
from .._types import Numbers
from ..distributions import Gaussian
from ._cells import check_variances
from ._limits import check_modes
from ._quadrature import count_panels, place_nodes
from ._time_change import mode_variance

# Newton steps to the least h with Z >= 1/2; they converge quadratically
_ITERATIONS = 100


class PulseConstants(eqx.Module):
    """The constants of the published bound on L(h) for an error at one time only.

    `pulse_constants` computes it.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian([0.5], [0.25]), 160.0, 0.5)
    >>> found = jk.reverse_sde.pulse_constants(*setting, relative=1.0)
    >>> bool(found.applies), bool(jnp.all(found.c2 >= 30.0))
    (True, True)
    ```
    """

    time: Float[Array, " nodes"]
    """theta of quadrature nodes between 0 and theta_s, increasing, at which constants are given."""
    kappa: Float[Array, " nodes"]
    """Poincaré constant of rho, in 1 / variance."""
    c1: Float[Array, " nodes"]
    """C1, in 1 / theta."""
    c2: Float[Array, " nodes"]
    """C2, which alpha^2 has to exceed."""
    log_front: Float[Array, ""]
    """log C_h; infinite where the integral is."""
    exponent: Float[Array, ""]
    """-int [(h^2 - C2) kappa - C1] dtheta; the bound decays in h where it is negative."""
    log_bound: Float[Array, ""]
    """The logarithm of the bound on L."""
    least_stochasticity: Float[Array, ""]
    """h_lb, the least h / g for which the bound is claimed; infinite for variances >= 1."""
    applies: Bool[Array, ""]
    """Whether h >= h_lb."""


class _Mode(NamedTuple):
    """The density p_theta, its tilted density rho, and their dimension per mode."""

    weight: Array
    mean: Array
    variance: Array
    tilted_mean: Array
    tilted_precision: Array


@in_float64
def pulse_constants(
    target: Gaussian,
    stochasticity_squared: Numbers,
    time: float,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
) -> PulseConstants:
    """Compute the published bound on L(h) for an error at one time only, and its constants.

        L <= C_h (1 + h^2)^2 exp(-int_0^{theta_s} [(h^2 - C2) kappa - C1] dtheta),     h >= h_lb

    as published, with h = alpha. `pulse_bound` holds for every h and is far smaller;
    `pulse_leading_order` is exact. The data may be off-centre, which changes C1, C_h and h_lb.

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0, below 1 for the bound to apply.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 > 0, one number for all times.
    - `time`: theta_s > 0.
    - `relative`, `shift`: c and b of `leading_order` times a unit of time, a number or (modes,).

    **Returns:** `PulseConstants`; infinite where the tilted density rho has no finite integral.

    **Raises:** ValueError for alpha^2 <= 0, a time <= 0, a zero eigenvalue or a wrong shape.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.25]), 100.0, 0.1, 1.0)
    >>> found = jk.reverse_sde.pulse_constants(*setting)
    >>> print(f"{float(found.log_bound) / np.log(10.0):.2f}")  # log10 L is -26.11
    7.05
    ```

    Source: Cao, Chen, Luo, Zhou, "Exploring the optimal choice for generative processes in
    diffusion models: ordinary vs stochastic differential equations" (2023),
    Proposition 3.4 and Appendix E.1.
    """
    lam = jnp.asarray(check_variances(target))
    alpha2 = _checks.parameter("stochasticity_squared", stochasticity_squared, above=0.0)
    alpha2 = jnp.asarray(alpha2)
    c = check_modes("relative", relative, lam.shape[0])
    b = check_modes("shift", shift, lam.shape[0])
    edges = jnp.asarray([0.0, float(_checks.scalar("time", time, above=0.0))])
    nodes, sizes = place_nodes(edges, smallest(lam), count_panels(edges, lam, 1.0))
    mean = jnp.asarray(target.in_eigenbasis().mean)
    return _compute(jnp.asarray(target.weights), mean, lam, alpha2, nodes[0], sizes[0], edges, c, b)


@jax.jit
def _compute(
    weights: Array,
    mean: Array,
    lam: Array,
    alpha2: Array,
    time: Array,
    sizes: Array,
    edges: Array,
    c: Array,
    b: Array,
) -> PulseConstants:
    """The constants and the bound."""
    eta = 1.0 / alpha2

    def at(theta: Array) -> _Mode:
        s = mode_variance(theta[..., None], lam)
        m = mean * jnp.exp(-0.5 * theta[..., None])
        precision = (1.0 + eta) / s - eta
        return _Mode(weights, m, s, (1.0 + eta) * m / (s * precision), precision)

    def log_normalization(theta: Array) -> Array:
        return _log_normalization(weights, at(theta).mean, at(theta).variance, eta)

    modes = at(time)
    low = 1.0 / largest(modes.variance)
    high = 1.0 / smallest(modes.variance)
    kappa = (1.0 + eta) * low - eta
    growth = jax.jvp(log_normalization, (time,), (jnp.ones_like(time),))[1]
    c1 = jnp.abs(growth) + _moving_part(modes, low, high)
    c2 = _gradient_constant(modes.variance)
    exponent = -jnp.sum(sizes * ((alpha2 - c2) * kappa - c1))
    log_front = _log_front(at(edges[-1]), c, b)
    exponent = jnp.where(jnp.min(modes.tilted_precision) > 0.0, exponent, jnp.inf)
    # (20 + 30 M^2) / m^2 is convex in e^{-theta}, so that its supremum is at an end
    highest = largest(_gradient_constant(mode_variance(edges[:, None], lam)))
    least = _least_stochasticity(weights, mean, lam, highest)
    return PulseConstants(
        time=time,
        kappa=kappa,
        c1=c1,
        c2=c2,
        log_front=log_front,
        exponent=exponent,
        log_bound=log_front + 2.0 * jnp.log1p(alpha2) + exponent,
        least_stochasticity=least,
        applies=jnp.sqrt(alpha2) >= least,
    )


def _log_normalization(weights: Array, mean: Array, variance: Array, eta: Array) -> Array:
    """log int e^{-V} of N(mean, variance); NaN where it is infinite."""
    precision = (1.0 + eta) / variance - eta
    push = (1.0 + eta) * mean / variance
    logs = jnp.log(2.0 * jnp.pi / precision) - (1.0 + eta) * jnp.log(2.0 * jnp.pi * variance)
    squares = push**2 / precision - (1.0 + eta) * mean**2 / variance
    return 0.5 * jnp.sum(weights * (logs + squares), -1)


def _moving_part(modes: _Mode, low: Array, high: Array) -> Array:
    """C1 but for the change of the normalization."""
    dimension = jnp.sum(modes.weight)
    zeta = 5.0 * (0.5 + 0.75 * high**2)
    center = jnp.sum(modes.weight * modes.mean**2, -1)
    apart = jnp.sum(modes.weight * (modes.tilted_mean - modes.mean) ** 2, -1)
    still = 2.5 * (dimension * (1.0 + high) + center)
    return still + 2.0 * zeta * apart + 20.0 * dimension * high * zeta / low**2


def _gradient_constant(variance: Float[Array, "*s modes"]) -> Float[Array, "*s"]:
    """C2, (20 + 30 M^2) / m^2."""
    high = largest(variance)
    return 20.0 * high**2 + 30.0 * (high / smallest(variance)) ** 2


def _log_front(modes: _Mode, c: Array, b: Array) -> Float[Array, ""]:
    """log C_h: p^2 / rho is a multiple of a Gaussian, of which div(p E) / p needs two moments."""
    weight, mean, variance, tilted_mean, precision = modes
    own = 2.0 / variance - precision
    proper = (jnp.min(own) > 0.0) & (jnp.min(precision) > 0.0)
    own = jnp.where(proper, own, 1.0)
    precision = jnp.where(proper, precision, 1.0)
    center = (2.0 * mean / variance - precision * tilted_mean) / own
    powers = own * center**2 + precision * tilted_mean**2 - 2.0 * mean**2 / variance
    logs = 0.5 * (powers - jnp.log(precision * own)) - jnp.log(variance)
    # along x = mean + sqrt(variance) z the divergence is (c (z^2 - 1) - b z) / variance
    z = (center - mean) / jnp.sqrt(variance)
    v = 1.0 / (own * variance)
    first = (c * (v + z**2 - 1.0) - b * z) / variance
    second = (2.0 * (c * v) ** 2 + v * (2.0 * c * z - b) ** 2) / variance**2
    moment = jnp.sum(weight * first) ** 2 + jnp.sum(weight * second)
    value = jnp.sum(weight * logs) + safe_log(0.5 * moment)
    return jnp.where(proper, value, jnp.inf)


def _least_stochasticity(
    weights: Array, mean: Array, lam: Array, highest: Array
) -> Float[Array, ""]:
    """h_lb."""
    within = jnp.max(lam) < 1.0
    lam = jnp.where(within, lam, 0.5)
    offset = 0.5 * jnp.log(2.0 * jnp.pi * lam) - 0.5 * mean**2 / (1.0 - lam)  # c_U per mode
    tilt = larger(0.0, -jnp.sum(weights * offset) / jnp.log(2.0))
    least = larger(jnp.sqrt(larger(tilt, highest)), _least_normalized(weights, mean, lam))
    return jnp.where(within, larger(least, 0.5), jnp.inf)


def _least_normalized(weights: Array, mean: Array, lam: Array) -> Float[Array, ""]:
    """h_0: the least h from which on int e^{-V} >= 1/2 at theta = 0; 0 if that holds for all h.

    log Z is convex in eta and 0 at eta = 0. Newton steps from there do not pass its first crossing.
    """

    def excess(eta: Array) -> Array:
        return _log_normalization(weights, mean, lam, eta) + jnp.log(2.0)

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        eta, falling = state
        value, slope = jax.value_and_grad(excess)(eta)
        falling = falling & (slope < 0.0)
        return jnp.where(falling, eta - value / jnp.where(falling, slope, 1.0), eta), falling

    eta, falling = jax.lax.fori_loop(0, _ITERATIONS, step, (jnp.zeros(()), jnp.asarray(True)))
    return jnp.where(falling, 1.0 / jnp.sqrt(jnp.where(falling, eta, 1.0)), 0.0)
