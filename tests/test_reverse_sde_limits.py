"""The published limits of L(h) with all constants, and limits of general densities.

Formulas "as published" are those of Cao, Chen, Luo, Zhou (2023). Oracles are integrals on a grid,
other solvers, and the published numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import trapezoid

import jaxkernels as jk
from jaxkernels.reverse_sde import (
    PulseConstants,
    density_information,
    density_tail_bounds,
    density_window_leading_order,
    leading_order,
    pulse_bound,
    pulse_constants,
    pulse_leading_order,
    window_leading_order,
)

# --- Proposition 3.4 and its constants ---


class _Numeric:
    """p_theta, V and rho of two independent coordinates on a grid, for Proposition 3.4."""

    def __init__(self, mean: np.ndarray, variance: np.ndarray, theta: float, eta: float):
        axis = np.linspace(-9.0, 9.0, 1201)
        self.axis = axis
        self.x = np.stack(np.meshgrid(axis, axis, indexing="ij"))
        s = 1.0 + (variance - 1.0) * np.exp(-theta)
        m = mean * np.exp(-0.5 * theta)
        self.s = s
        self.m = m
        z = (self.x - m[:, None, None]) / np.sqrt(s)[:, None, None]
        self.u = 0.5 * np.sum(z**2, 0) + 0.5 * np.sum(np.log(2.0 * np.pi * s))
        self.v = (1.0 + eta) * self.u - 0.5 * eta * np.sum(self.x**2, 0)
        self.log_z = np.log(self.integrate(np.exp(-self.v)))
        self.z = z

    def integrate(self, values: np.ndarray) -> float:
        return float(trapezoid(trapezoid(values, self.axis, axis=1), self.axis))

    def minimum(self, potential: np.ndarray) -> np.ndarray:
        i, j = np.unravel_index(np.argmin(potential), potential.shape)
        return self.x[:, i, j]

    def front(self, c: np.ndarray, b: np.ndarray) -> float:
        """C_h, with div(p E) of c grad log p + b / sqrt(s) by differences of p E."""
        p = np.exp(-self.u)
        error = [-c[i] * self.z[i] / np.sqrt(self.s[i]) + b[i] / np.sqrt(self.s[i]) for i in (0, 1)]
        flows = [np.gradient(p * error[i], self.axis, axis=i, edge_order=2) for i in (0, 1)]
        rho = np.exp(-self.v - self.log_z)
        return 0.5 * self.integrate(sum(flows) ** 2 / rho)


def test_constants_by_integrals_on_a_grid() -> None:
    """Off-centre data in two dimensions, h^2 = 40."""
    mean = np.array([0.9, -0.4])
    variance = np.array([0.3, 0.7])
    alpha2 = 40.0
    eta = 1.0 / alpha2
    theta_s = 0.5
    c = np.array([1.0, -0.5])
    b = np.array([0.3, 0.8])
    found = pulse_constants(jk.Gaussian(mean, variance), alpha2, theta_s, c, b)
    at = [_Numeric(mean, variance, theta, eta) for theta in (theta_s, 0.299, 0.3, 0.301)]
    np.testing.assert_allclose(found.log_front, np.log(at[0].front(c, b)), atol=3e-4)
    grid = at[2]
    smallest = 1.0 / grid.s.max()
    largest = 1.0 / grid.s.min()
    zeta = 5.0 * (0.5 + 0.75 * largest**2)
    lowest = grid.minimum(grid.u)
    tilted = grid.minimum(grid.v)
    growth = (at[3].log_z - at[1].log_z) / 0.002
    xi = abs(growth) + 5.0 * (1.0 + largest) + 2.5 * np.sum(lowest**2)
    c1 = xi + 2.0 * zeta * np.sum((tilted - lowest) ** 2)
    c1 += 40.0 * largest * zeta / smallest**2
    expected = [(1.0 + eta) * smallest - eta, c1, (20.0 + 30.0 * largest**2) / smallest**2]
    values = [np.interp(0.3, found.time, row) for row in (found.kappa, found.c1, found.c2)]
    np.testing.assert_allclose(values, expected, rtol=2e-3)
    assert abs(growth) > 1e-4  # it counts
    rate = (alpha2 - np.asarray(found.c2)) * np.asarray(found.kappa) - np.asarray(found.c1)
    fine = np.linspace(0.0, theta_s, 4001)
    integral = trapezoid(np.interp(fine, found.time, rate), fine)
    np.testing.assert_allclose(found.exponent, -integral, rtol=1e-3)
    np.testing.assert_allclose(
        found.log_bound, found.log_front + 2.0 * np.log(41.0) + found.exponent, rtol=1e-12
    )


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.2])
def test_least_stochasticity_by_a_scan(mean: float) -> None:
    """c_U and h_0 by a grid in x and a scan of h, for one narrow and one wide variance."""
    x = np.linspace(-30.0, 30.0, 6001)
    for variance in (0.2, 0.95):
        u = 0.5 * (x - mean) ** 2 / variance + 0.5 * np.log(2.0 * np.pi * variance)
        offset = np.min(u - 0.5 * x**2)
        eta = np.geomspace(1e-5, 4.0, 4000)
        z = np.array([trapezoid(np.exp(-u - e * (u - 0.5 * x**2)), x) for e in eta[::8]])
        below = np.flatnonzero(z < 0.5)
        h0 = 1.0 / np.sqrt(eta[::8][below[0]]) if below.size else 0.0
        theta = np.linspace(0.0, 0.7, 400)
        s = 1.0 + (variance - 1.0) * np.exp(-theta)
        highest = np.max((20.0 + 30.0 / s**2) * s**2)
        expected = max(0.5, h0, np.sqrt(max(0.0, -offset / np.log(2.0), highest)))
        found = pulse_constants(jk.Gaussian(mean, [variance]), 40.0, 0.7, 1.0)
        np.testing.assert_allclose(found.least_stochasticity, expected, rtol=1e-3)
        assert expected >= np.sqrt(30.0)


def test_least_stochasticity_of_many_dimensions() -> None:
    """Z reaches 1/2 at a large h for 300 wide variances; -c_U / log 2 counts for narrow ones."""
    wide = jk.Gaussian.isotropic(300, 0.9)
    found = float(pulse_constants(wide, 40.0, 0.7, 1.0).least_stochasticity)
    eta = 1.0 / found**2
    precision = (1.0 + eta) / 0.9 - eta
    log_z = 150.0 * (np.log(2.0 * np.pi / precision) - (1.0 + eta) * np.log(2.0 * np.pi * 0.9))
    np.testing.assert_allclose(log_z, np.log(0.5), rtol=1e-9)
    narrow = jk.Gaussian.isotropic(300, 0.05)
    found = float(pulse_constants(narrow, 40.0, 0.7, 1.0).least_stochasticity)
    np.testing.assert_allclose(found**2, -150.0 * np.log2(2.0 * np.pi * 0.05), rtol=1e-9)


def test_the_published_pulse_bound_holds_and_is_loose() -> None:
    """Random off-centre data in three dimensions: above L wherever it applies, by many decades."""
    rng = np.random.default_rng(0)
    looseness = []
    corrected = []
    for _ in range(20):
        target = jk.Gaussian(rng.normal(size=3), rng.uniform(0.3, 0.95, 3))
        setting = (target, rng.uniform(100.0, 600.0), 0.3, *rng.normal(size=(2, 3)))
        found = pulse_constants(*setting)
        exact = np.log10(float(pulse_leading_order(*setting)))
        if found.applies:
            assert exact <= found.log_bound / np.log(10.0)
            looseness.append(found.log_bound / np.log(10.0) - exact)
            corrected.append(np.log10(float(pulse_bound(*setting))) - exact)
    assert len(looseness) > 10
    assert np.median(looseness) > 50.0  # decades
    assert np.median(corrected) < 0.5 * np.median(looseness)


def test_published_pulse_bound_in_logs() -> None:
    """The published numbers of one dimension; where L underflows the logarithm does not."""
    target = jk.Gaussian(0.0, [0.25])
    found = pulse_constants(target, 100.0, 0.1, 1.0)
    np.testing.assert_allclose(found.log_bound / np.log(10.0), 7.05, atol=0.005)
    for variance in (0.04, 0.25, 0.64):
        one = jk.Gaussian(0.0, [variance])
        assert not pulse_constants(one, 29.9, 0.5, 1.0).applies
        # the exponent turns negative for h^2 between 100 and 160
        assert pulse_constants(one, 100.0, 0.5, 1.0).exponent > 0.0
        assert pulse_constants(one, 160.0, 0.5, 1.0).exponent < 0.0
    assert np.isinf(pulse_constants(target, 0.5, 0.1, 1.0).log_front)
    assert np.isinf(pulse_constants(jk.Gaussian(0.0, [1.1]), 99.0, 0.1, 1.0).least_stochasticity)
    far = pulse_constants(target, 5000.0, 0.5, 1.0)
    assert np.exp(far.log_bound) == 0.0
    assert np.isfinite(far.log_bound)
    with pytest.raises(ValueError, match="stochasticity_squared = 0 must be > 0"):
        pulse_constants(target, 0.0, 0.1, 1.0)
    with pytest.raises(ValueError, match="time = 0 must be > 0"):
        pulse_constants(target, 1.0, 0.0, 1.0)


# --- Proposition 3.5 for general densities ---

POINTS = np.linspace(-7.0, 7.0, 161)
MIXTURE = jk.GaussianMixture([0.5, 0.5], [[-0.3], [0.3]], [0.36, 0.36])
CONVEXITY = 1.0 / 0.36 - 0.09 / 0.36**2


def _log_mixture(x: jax.Array, theta: jax.Array) -> jax.Array:
    """log of p_theta of MIXTURE, up to a constant."""
    variance = 0.36 * jnp.exp(-theta) - jnp.expm1(-theta)
    centres = jnp.asarray([-0.3, 0.3]) * jnp.exp(-theta / 2)
    return jax.scipy.special.logsumexp(-((x - centres) ** 2) / (2 * variance))


def _log_data(x: jax.Array) -> jax.Array:
    return _log_mixture(x, jnp.zeros(()))


def test_window_of_a_gaussian_by_its_closed_form() -> None:
    lam = 0.3
    a = 0.02
    target = jk.Gaussian(0.0, [lam])
    for alpha2 in (0.0, 3.0, 900.0):
        value = density_window_leading_order(
            lambda x: -(x**2) / (2.0 * lam),
            lambda x: -0.7 * x / lam + 0.4 / np.sqrt(lam),
            alpha2,
            a,
            POINTS,
        )
        np.testing.assert_allclose(
            value, window_leading_order(target, alpha2, a, 0.7, 0.4), rtol=1e-9
        )


@pytest.mark.slow
def test_window_of_a_mixture_by_the_fokker_planck_equation() -> None:
    """An error of several modes, at small and large a h^2; at h = 0 it is a^2 I / 8."""
    a = 1e-3

    def error(x: jax.Array) -> jax.Array:
        return jnp.sin(2.0 * x) + 0.5

    def early(x: jax.Array, theta: jax.Array, score: jax.Array) -> jax.Array:
        return jnp.where(theta < a, error(x), 0.0)

    values = []
    for alpha2 in (1.0, 5000.0):
        value = density_window_leading_order(_log_data, error, alpha2, a, POINTS)
        options = {"breakpoints": [a], "cells": 128, "time_steps": 32, "richardson": False}
        exact = jk.leading_order_1d(MIXTURE, early, alpha2, 2.0 * a, **options)
        np.testing.assert_allclose(value, exact.value, rtol=6e-3)
        values.append(float(value))
    assert values[1] > 1e3 * values[0]
    information = density_information(_log_mixture, lambda x, theta: error(x), POINTS)
    none = density_window_leading_order(_log_data, error, 0.0, a, POINTS)
    np.testing.assert_allclose(none, a**2 / 8.0 * information(jnp.zeros(1))[0], rtol=1e-9)


def test_published_window_bound_fails_for_a_mixture() -> None:
    """(1 - e^{-a h^2 k/2})^2 I / (2 k^2) is exceeded at h^2 = 5: it drops ((1 + h^2) / h^2)^2."""
    a = 0.01
    alpha2 = 5.0
    one = lambda x: jnp.ones_like(x)  # noqa: E731
    value = density_window_leading_order(_log_data, one, alpha2, a, POINTS)
    information = density_information(_log_mixture, lambda x, theta: one(x), POINTS)
    kappa = 1.2 * CONVEXITY - 0.2
    published = np.expm1(-0.5 * a * alpha2 * kappa) ** 2 / (2.0 * kappa**2)
    published *= float(information(jnp.zeros(1))[0])
    assert value > 1.4 * published
    with pytest.raises(ValueError, match="points must be equidistant"):
        density_window_leading_order(_log_data, one, 1.0, a, np.geomspace(0.1, 1.0, 9))


# --- Proposition 3.6 ---


def test_tail_bounds_hold_for_random_errors() -> None:
    """Gaussian data and errors c(theta) grad log p + b(theta) / sqrt(s), whose L is known."""
    rng = np.random.default_rng(2)
    n = 200
    lam = np.exp(rng.uniform(np.log(0.05), np.log(2.0), n))
    alpha2 = np.exp(rng.uniform(np.log(3.0), np.log(90.0), n))
    shape = rng.normal(size=(n, 4))

    def both(lam: jax.Array, alpha2: jax.Array, shape: jax.Array) -> tuple[jax.Array, ...]:
        def c(theta: jax.Array) -> jax.Array:
            return shape[0] + shape[1] * jnp.cos(3.0 * theta)

        def b(theta: jax.Array) -> jax.Array:
            return shape[2] + shape[3] * jnp.exp(-theta)

        def s(theta: jax.Array) -> jax.Array:
            return 1.0 + (lam - 1.0) * jnp.exp(-theta)

        def log_density(x: jax.Array, theta: jax.Array) -> jax.Array:
            return -(x**2) / (2.0 * s(theta))

        def potential(x: jax.Array, theta: jax.Array) -> jax.Array:
            return c(theta) * log_density(x, theta) + b(theta) * x / jnp.sqrt(s(theta))

        points = jnp.linspace(-11.0, 11.0, 221)
        options = {"convexity": 1.0 / lam, "panels": 16}
        found = density_tail_bounds(log_density, potential, 1.5, alpha2, points, **options)
        target = jk.Gaussian(0.0, lam[None])
        exact = leading_order(target, [0.0, 1.5], alpha2, c, b, panels=16)
        return found.lower, exact, found.upper

    with jax.enable_x64(True):
        lower, exact, upper = map(np.asarray, jax.jit(jax.vmap(both))(lam, alpha2, shape))
    assert np.all(lower <= exact * (1.0 + 1e-9))
    assert np.all(exact <= upper * (1.0 + 1e-9))
    # how loose: within a factor of two on either side where noise is strong
    strong = alpha2 > 30.0
    assert np.median(upper[strong] / exact[strong]) < 1.5
    assert np.median(lower[strong] / exact[strong]) > 0.6
    assert np.mean(lower > 0.0) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["score", "constant"])
def test_tail_bounds_of_a_mixture(name: str) -> None:
    """L by the Fokker-Planck equation lies between, and T = lim L too; they close in like 1/h^2."""
    potential = _log_mixture if name == "score" else lambda x, theta: x
    limit = {"score": 0.23974, "constant": 0.2250}[name]
    widths = []
    for alpha2 in (25.0, 100.0):
        setting = (_log_mixture, potential, 2.0, alpha2, POINTS)
        found = density_tail_bounds(*setting, convexity=CONVEXITY)
        setting = (MIXTURE, name, alpha2, 2.0)
        exact = jk.leading_order_1d(*setting, cells=128, time_steps=64).value
        assert found.lower <= exact <= found.upper
        factor = ((1.0 + alpha2) / alpha2) ** 2
        assert found.lower / factor <= limit <= found.upper / factor
        widths.append(float((found.upper - found.lower) / exact))
    assert widths[0] < 0.4
    assert 0.2 < widths[1] / widths[0] < 0.3


def _log_published_remainder(constants: PulseConstants, alpha2: float, beta: float) -> float:
    """log of C (1 + h^2) e^{-h^{2 - beta} gamma} / gamma of Proposition 3.6, m_t >= 1."""
    time = np.asarray(constants.time)
    growth = np.asarray(constants.c2) * np.asarray(constants.kappa) + np.asarray(constants.c1)
    gamma = float(np.min(constants.kappa))
    log_c = np.log((1.0 + alpha2) / (2.0 * alpha2) * T) + np.log(2.0) + constants.log_front
    log_c += trapezoid(np.interp(np.linspace(0.0, T, 4001), time, growth), dx=T / 4000)
    return float(log_c + np.log((1.0 + alpha2) / gamma) - alpha2 ** (1.0 - 0.5 * beta) * gamma)


T = 2.0


def test_published_tail_bound_fails() -> None:
    """(1 + a^2) T + (1 + a^-2) remainder is exceeded at a^2 = 1 / h^2: L - T is 2 T / h^2.

    For N(0, 1/4), E = grad log p and h^2 = 1e6, at which the remainder underflows: its logarithm
    is -1e5. With a^2 = 1/2 both sides hold, and are a factor of three apart.
    """
    target = jk.Gaussian(0.0, [0.25])
    alpha2 = 1e6
    # div(p E)^2 / rho is largest at the data, where the variance is least
    constants = pulse_constants(target, alpha2, T, 1.0)
    first = pulse_constants(target, alpha2, 1e-9, 1.0)
    assert first.log_front > constants.log_front
    remainder = _log_published_remainder(constants, alpha2, 0.1) + float(
        first.log_front - constants.log_front
    )
    assert remainder < -1e5
    limit = 0.25
    exact = float(leading_order(target, [0.0, T], alpha2, 1.0))
    np.testing.assert_allclose(exact / limit - 1.0, 2.0 / alpha2, rtol=1e-3)
    a2 = 1.0 / alpha2
    assert exact > (1.0 + a2) * limit + (1.0 + 1.0 / a2) * np.exp(remainder)
    assert 0.5 * limit < exact < 1.5 * limit
