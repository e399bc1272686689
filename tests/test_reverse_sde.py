"""The reverse diffusion coefficient h(t): leading order of KL, limits, bounds and optima.

Reference numbers were computed independently of the package (quadrature, matrix moment equations,
another optimiser). Numbers and formulas "as published" are those of Cao, Chen, Luo, Zhou (2023),
which the library corrects.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.integrate import quad, solve_ivp
from scipy.optimize import minimize

import jaxkernels as jk
from jaxkernels.reverse_sde import (
    DiscreteStochasticity,
    OptimalDiffusion,
    SymmetrizedKL,
    affine_leading_order,
    affine_tail_constant,
    affine_terminal_distribution,
    cell_responses,
    density_information,
    density_tail_constant,
    diffusion_bound,
    diffusion_infimum,
    gaussian_bound,
    inverse_time_change,
    leading_order,
    optimize_diffusion,
    optimize_discrete_stochasticity,
    pulse_bound,
    pulse_leading_order,
    tail_constant,
    tail_leading_order,
    terminal_distribution,
    terminal_kernel,
    time_change,
    training_weight,
    window_leading_order,
)
from jaxkernels.reverse_sde._leading_order import expm1_ratio

T = 2.0
# standard deviation: cases 1 = 2, 3, 4, 5 exactly at h^2 = 20, and cases 1, 2, 3 as published
TABLE = {
    0.2: (0.275625000, 0.067999838, 1.1157e-23, 0.275469988, 0.2567, 0.3032, 0.0658),
    0.4: (0.275625000, 0.065342317, 4.6140e-10, 0.226875610, 0.2569, 0.3028, 0.0636),
    0.6: (0.275625000, 0.061123718, 9.7256e-06, 0.121681095, 0.2570, 0.3018, 0.0597),
    0.8: (0.275625000, 0.055665444, 6.2702e-04, 0.059054792, 0.2569, 0.3023, 0.0544),
    1.5: (0.275625000, 0.033338408, 4.4332e-02, 0.007385983, 0.2570, 0.3017, 0.0321),
    2.0: (0.275624997, 0.021159692, 9.7604e-02, 0.002531870, 0.2564, 0.3022, 0.0198),
    3.0: (0.275612923, 0.012616130, 1.7317e-01, 0.000530003, 0.2566, 0.3020, 0.0121),
}
SIGMAS = np.array(list(TABLE))


def _case_3(theta: jax.Array) -> jax.Array:
    return (1.0 + jnp.sin(2.0 * jnp.pi * (T - theta) / T)) / 2.0


def _second(kl: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Half the second derivative at 0."""
    return jax.jacfwd(jax.jacfwd(kl))(jnp.zeros(())) / 2.0


def _gaussian(sigma: float | np.ndarray | jax.Array) -> jk.Gaussian:
    return jk.Gaussian(0.0, jnp.atleast_1d(jnp.asarray(sigma)) ** 2)


def _case_3_kl(variance: jax.Array, alpha2: float, epsilon: jax.Array) -> jax.Array:
    """By the matrix moment equation: the score itself is the linear function -x / s."""

    def matrix(theta: jax.Array) -> jax.Array:
        return (-_case_3(theta) / (1.0 + (variance - 1.0) * jnp.exp(-theta)))[None, None]

    target = jk.Gaussian(0.0, variance[None])
    return affine_terminal_distribution(target, [0.0, T], alpha2, epsilon, matrix, steps=3000).kl


# --- the leading order ---


@pytest.mark.parametrize("sigma", TABLE)
def test_table_of_the_leading_order(sigma: float) -> None:
    target = _gaussian(sigma)
    case_1, case_3, case_4, case_5, *_ = TABLE[sigma]
    late = [0.0, 0.05 * T, T]
    early = [0.0, 0.01 * T, T]
    np.testing.assert_allclose(
        leading_order(target, [0.0, T], 20.0, 1.0), case_1, atol=6e-10, rtol=0
    )
    np.testing.assert_allclose(
        leading_order(target, [0.0, T], 20.0, -1.0), case_1, atol=6e-10, rtol=0
    )
    # as many panels for all, so that all share one compilation
    third = leading_order(target, [0.0, T], 20.0, _case_3, panels=16)
    np.testing.assert_allclose(third, case_3, atol=6e-10, rtol=0)
    np.testing.assert_allclose(leading_order(target, late, 20.0, [0.0, 1.0]), case_4, rtol=6e-5)
    np.testing.assert_allclose(
        leading_order(target, early, 20.0, [1.0, 0.0]), case_5, atol=6e-10, rtol=0
    )


def test_table_by_differentiating_the_moments() -> None:
    """The second derivative of the exact KL at eps = 0, through the recurrence of the moments."""
    edges = [0.0, 0.01 * T, 0.05 * T, T]
    cases = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])

    def one(sigma: jax.Array, relative: jax.Array) -> jax.Array:
        return _second(
            lambda x: terminal_distribution(_gaussian(sigma), edges, 20.0, x, relative).kl
        )

    direct = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(SIGMAS, cases)
    closed = [[leading_order(_gaussian(s), edges, 20.0, c) for c in cases] for s in SIGMAS]
    np.testing.assert_allclose(direct, closed, rtol=1e-9)
    direct = jax.jit(jax.vmap(lambda v: _second(lambda x: _case_3_kl(v, 20.0, x))))(SIGMAS**2)
    np.testing.assert_allclose(direct, [TABLE[s][1] for s in SIGMAS], atol=1e-9, rtol=0)


def test_published_table_is_a_regression_with_a_free_slope() -> None:
    """OLS of log KL on log eps gives the published columns, though L is equal in cases 1 and 2.

    eps = .05 / 1.2^j, at h^2 = 18.
    """
    eps = 0.05 / 1.2 ** np.arange(10)

    def fit(kl: jax.Array) -> np.ndarray:
        design = np.stack([np.log(eps), np.ones(10)], 1)
        return np.exp(np.linalg.lstsq(design, np.log(np.asarray(kl)).T, rcond=None)[0][1])

    def run(sign: float) -> jax.Array:
        one = lambda s, e: terminal_distribution(_gaussian(s), [0.0, T], 18.0, e, sign).kl  # noqa: E731
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(SIGMAS, eps)

    third = jax.jit(jax.vmap(jax.vmap(lambda v, e: _case_3_kl(v, 18.0, e), (None, 0)), (0, None)))(
        SIGMAS**2, eps
    )
    found = np.stack([fit(run(1.0)), fit(run(-1.0)), fit(third)], 1)
    np.testing.assert_allclose(found, [TABLE[s][4:] for s in SIGMAS], atol=0.002, rtol=0)
    assert leading_order(_gaussian(0.5), [0.0, T], 18.0, 1.0) == pytest.approx(
        (19 / 18) ** 2 / 4, rel=1e-9
    )


def test_closed_forms() -> None:
    lam = 0.3
    k = 1.7
    target = jk.Gaussian(2.0, [lam])

    def w(theta: float) -> float:
        return lam * np.exp(-theta) / (1 + (lam - 1) * np.exp(-theta))

    exact = ((1 + k) / k) ** 2 * (1 - w(T) ** k) ** 2 / 4
    np.testing.assert_allclose(leading_order(target, [0, T], k, 1.0), exact, rtol=1e-13)
    np.testing.assert_allclose(
        leading_order(target, [0, T], 0.0, 1.0), np.log(w(T)) ** 2 / 4, rtol=1e-13
    )
    # the same in many cells, and as a function
    edges = np.linspace(0, T, 12)
    np.testing.assert_allclose(leading_order(target, edges, np.full(11, k), 1.0), exact, rtol=1e-12)
    np.testing.assert_allclose(leading_order(target, edges, k, jnp.ones_like), exact, rtol=1e-12)
    # a constant error, by quadrature of its own formula
    beta = 0.7
    s = lambda r: 1 + (lam - 1) * np.exp(-r)  # noqa: E731
    mean = quad(
        lambda r: 0.5 * (1 + k) * (w(r) ** (k / 2)) * beta / np.sqrt(s(r)), 0, T, epsabs=1e-13
    )[0]
    np.testing.assert_allclose(
        affine_leading_order(target, [0, T], k, [[0.0]], beta), mean**2 / 2, rtol=1e-11
    )
    # a shift in units of the standard deviation is constant on cells, or a function
    mean = quad(lambda r: 0.5 * (1 + k) * (w(r) ** (k / 2)) * beta / s(r), 0, T, epsabs=1e-13)[0]
    np.testing.assert_allclose(leading_order(target, [0, T], k, 0.0, beta), mean**2 / 2, rtol=1e-11)
    # quadratic in the error, and d times as large for d modes
    np.testing.assert_allclose(
        leading_order(target, [0, T], k, 0.0, 2 * beta), 2 * mean**2, rtol=1e-11
    )
    wide = jk.Gaussian.isotropic(5, lam)
    np.testing.assert_allclose(leading_order(wide, [0, T], k, 1.0), 5 * exact, rtol=1e-13)


def test_finite_error_in_closed_form() -> None:
    lam = 0.3
    k = 1.7
    eps = 0.4
    found = terminal_distribution(jk.Gaussian(0.0, [lam]), [0, 0.5, T], k, eps, 1.0)
    w = lam * np.exp(-T) / (1 + (lam - 1) * np.exp(-T))
    rate = k + (1 + k) * eps
    ratio = k / rate + (1 - k / rate) * w**rate
    np.testing.assert_allclose(found.covariance, [lam * ratio], rtol=1e-13)
    np.testing.assert_allclose(found.kl, (np.log(ratio) + 1 / ratio - 1) / 2, rtol=1e-12)
    np.testing.assert_allclose(found.w2, np.sqrt(lam) * (1 - np.sqrt(ratio)), rtol=1e-12)
    none = terminal_distribution(jk.Gaussian([1.0, 2.0], [0.1, 3.0]), [0, T], 3.0, 0.0, 1.0, 1.0)
    assert abs(float(none.kl)) < 1e-25
    assert float(none.w2) < 1e-12


def test_matrix_errors_by_differentiating_the_moments() -> None:
    """Modes that do not commute with the error, in rotated coordinates, with a mean."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    target = jk.Gaussian(rng.normal(size=3), [0.1, 0.5, 2.0], basis=basis)
    a = jnp.asarray(rng.normal(size=(3, 3)))
    b = rng.normal(size=3)
    edges = [0.0, 0.1, 0.7, T]
    alpha2 = [0.0, 3.0, 1.0]

    def matrix(theta: jax.Array) -> jax.Array:
        return a * jnp.cos(theta)

    direct = jax.jit(
        lambda: _second(
            lambda x: (
                affine_terminal_distribution(target, edges, alpha2, x, matrix, b, steps=300).kl
            )
        )
    )()
    found = affine_leading_order(target, edges, alpha2, matrix, b)
    np.testing.assert_allclose(found, direct, rtol=1e-9)
    # cross terms do matter
    assert (
        abs(
            found - affine_leading_order(target, edges, alpha2, lambda t: matrix(t) * jnp.eye(3), b)
        )
        > 0.1
    )


def test_matrix_and_relative_errors_agree() -> None:
    """c grad log p + b / sqrt(s) is affine, for data with a mean.

    At leading order and at finite size.
    """
    lam = np.array([0.2, 1.5])
    mean = np.array([1.0, -2.0])
    c = 0.6
    b = 0.8
    k = [2.0, 0.5]
    target = jk.Gaussian(mean, lam)
    edges = [0.0, 0.3, T]

    def s(theta: jax.Array) -> jax.Array:
        return 1 + jnp.asarray(lam - 1) * jnp.exp(-theta)

    error = (
        lambda theta: -c * jnp.diag(1 / s(theta)),
        lambda theta: (
            jnp.asarray(c * mean) * jnp.exp(-theta / 2) / s(theta) + b / jnp.sqrt(s(theta))
        ),
    )
    np.testing.assert_allclose(
        affine_leading_order(target, edges, k, *error),
        leading_order(target, edges, k, c, b),
        rtol=1e-12,
    )
    matrix = affine_terminal_distribution(target, edges, k, 0.3, *error)
    modes = terminal_distribution(target, edges, k, 0.3, c, b)
    np.testing.assert_allclose(jnp.diag(matrix.covariance), modes.covariance, rtol=1e-8)
    np.testing.assert_allclose(matrix.mean_error, modes.mean_error, rtol=1e-8)
    np.testing.assert_allclose([matrix.kl, matrix.w2], [modes.kl, modes.w2], rtol=1e-8)


@pytest.mark.parametrize(
    "process", [jk.OU(rate=2.0), jk.VP(), jk.EDM(sigma_max=10.0)], ids=["ou", "vp", "edm"]
)
def test_every_process_in_its_own_time(process: jk.AbstractProcess) -> None:
    """The variance in the process's own time, drift and scaling gives the L of rescaled time.

    By an ODE solver.
    """
    lam = 0.2
    alpha = 1.3
    theta_end = 1.8
    end = float(inverse_time_change(process, theta_end))
    np.testing.assert_allclose(time_change(process, jnp.asarray(end)), theta_end, rtol=1e-12)

    @jax.jit
    def slope(t: jax.Array, v: jax.Array, eps: jax.Array) -> jax.Array:
        g2 = process.diffusion_squared(t)
        marginal = process.signal(t) ** 2 * lam + process.noise(t) ** 2
        error = eps * jnp.exp(-jnp.log1p(process.sigma(t) ** 2) / 0.3)
        return 2 * process.drift(t) * v + g2 * (
            (1 + alpha**2) * (1 + error) / marginal * v - alpha**2
        )

    def kl(eps: float) -> float:
        start = process.signal(end) ** 2 * lam + process.noise(end) ** 2
        run = solve_ivp(
            slope, (end, 0.0), [float(start)], method="DOP853", rtol=1e-10, atol=1e-13, args=(eps,)
        )
        final = run.y[0, -1]
        return float(np.log(final / lam) + lam / final - 1) / 2

    eps = 2e-3
    found = leading_order(
        jk.Gaussian(0.0, [lam]), [0, theta_end], alpha**2, lambda r: jnp.exp(-r / 0.3)
    )
    np.testing.assert_allclose(found, (kl(eps) + kl(-eps)) / (2 * eps**2), rtol=3e-5)


def test_the_time_change_is_the_integral_of_the_diffusion() -> None:
    process = jk.VP()
    for t in (0.01, 0.4, 1.0):
        whole = quad(lambda r: float(process.diffusion_squared(r)), 0, t)[0]
        np.testing.assert_allclose(time_change(process, t), whole, rtol=1e-10)


def test_derivatives_in_alpha2() -> None:
    """Finite and right at h = 0 and for large h^2.

    Zero in h itself at h = 0, which is why h^2 is the variable.
    """
    target = jk.Gaussian(0.0, [0.05, 1.0, 2.0])
    edges = np.array([0.0, 0.1, 0.6, T])

    def cost(alpha2: jax.Array | np.ndarray) -> jax.Array:
        return leading_order(target, edges, alpha2, [1.0, 0.3, 2.0], [0.2, 0.0, 1.0])

    gradient = jax.jit(jax.grad(cost))
    hessian = jax.jit(jax.jacfwd(jax.grad(cost)))
    step = 1e-4 * np.eye(3)
    for alpha2 in (np.array([1.0, 2.0, 0.5]), np.array([30.0, 2e-4, 1.0])):
        slopes = [(cost(alpha2 + e) - cost(alpha2 - e)) / 2e-4 for e in step]
        np.testing.assert_allclose(gradient(alpha2), slopes, rtol=1e-6, atol=1e-9)
        curvatures = [(gradient(alpha2 + e) - gradient(alpha2 - e)) / 2e-4 for e in step]
        np.testing.assert_allclose(hessian(alpha2), curvatures, rtol=1e-5, atol=1e-8)
    for alpha2 in (np.zeros(3), np.full(3, 1e5)):
        assert np.all(np.isfinite(gradient(alpha2)))
        assert np.all(np.isfinite(hessian(alpha2)))
    slope = (cost(1e-5 * np.ones(3)) - cost(np.zeros(3))) / 1e-5
    np.testing.assert_allclose(jnp.sum(gradient(np.zeros(3))), slope, rtol=1e-4)
    assert abs(float(slope)) > 0.1
    assert np.all(jax.grad(lambda h: cost(h**2))(jnp.zeros(3)) == 0)
    # -1/2, 1/3: the series of (1 - e^-z) / z
    np.testing.assert_allclose(jax.grad(expm1_ratio)(0.0), -0.5)
    np.testing.assert_allclose(jax.grad(jax.grad(expm1_ratio))(0.0), 1 / 3)
    z = np.array([-3.0, 0.2499999, 0.2500001, 1e-9, 40.0])
    np.testing.assert_allclose(expm1_ratio(jnp.asarray(z)), -np.expm1(-z) / z, rtol=1e-14)


def test_independent_signs_are_an_expectation() -> None:
    target = jk.Gaussian(0.0, [0.1, 0.7])
    edges = [0.0, 0.1, 0.5, T]
    k = [0.3, 2.0, 5.0]
    c = np.array([1.0, 0.5, 2.0])
    b = np.array([0.1, 0.4, 0.3])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    mean = np.mean([leading_order(target, edges, k, c * s, b * s) for s in signs])
    np.testing.assert_allclose(
        leading_order(target, edges, k, c, b, signs="independent"), mean, rtol=1e-13
    )
    parts = cell_responses(target, edges, k, c, b)
    assert parts.variance.shape == parts.mean.shape == (3, 2)


def test_users_precision(float32: None) -> None:
    value = leading_order(jk.Gaussian(0.0, [4.0]), [0.0, T], 20.0, 1.0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 0.275624997, rtol=1e-6)


# --- limits, and the three propositions as published ---


class _Published(NamedTuple):
    """A published value of L, whether its conditions are met, and whether it then says anything."""

    value: float
    applies: bool
    informative: bool


def _published_pulse_bound(variance: float, alpha2: float, time: float) -> _Published:
    """Proposition 3.4 for the pulse grad log p delta(theta - time) and N(0, variance).

    C_h (1 + h^2)^2 exp(-int [(h^2 - C2) kappa - C1]) with C2 = (20 + 30 M^2) / m^2, infinite where
    C_h is. It says something where its exponent is negative.
    """
    s = lambda theta: 1.0 + (variance - 1.0) * np.exp(-theta)  # noqa: E731
    first = 1.0 + 1.0 / alpha2
    second = 1.0 / alpha2

    def constant_2(theta: float) -> float:
        return (20.0 + 30.0 / s(theta) ** 2) * s(theta) ** 2

    def rate(theta: float) -> float:
        # the derivative of log int p^{1 + 1/h^2} e^{x^2 / (2 h^2)} dx, with s' = 1 - s
        precision = first / s(theta) - second
        slope = (
            (1.0 - s(theta)) * 0.5 * first * (1.0 / (precision * s(theta) ** 2) - 1.0 / s(theta))
        )
        zeta = 5.0 * (0.5 + 0.75 / s(theta) ** 2)
        constant_1 = abs(slope) + 2.5 * (1.0 + 1.0 / s(theta)) + 20.0 * zeta * s(theta)
        return (alpha2 - constant_2(theta)) * precision - constant_1

    exponent = -quad(rate, 0.0, time, epsabs=1e-13)[0]
    # p^2 / rho is Gaussian with these precisions, if they are positive
    own = first / s(time) - second
    tilted = (1.0 - second) / s(time) + second
    if not (own > 0 and tilted > 0):
        return _Published(np.inf, applies=False, informative=False)
    ratio = 1.0 / (tilted * s(time))
    moment = 2.0 * ratio**2 / s(time) ** 2 + ((ratio - 1.0) / s(time)) ** 2
    front = (1.0 + alpha2) ** 2 / np.sqrt(own * tilted * s(time) ** 2)
    applies = alpha2 >= max(constant_2(0.0), constant_2(time)) and variance < 1.0
    return _Published(0.5 * moment * front * np.exp(exponent), applies, exponent < 0)


def _published_window(
    variance: float, alpha2: float, window: float, c: float = 0.0, b: float = 0.0
) -> float:
    """Proposition 3.5 for N(0, variance) and c grad log p + b / sqrt(s) on theta < window.

    a^2 I / 8 at h = 0, and (1 - e^{-a h^2 kappa / 2})^2 I / (2 kappa^2) for h > 0, as a bound.
    """
    information = (2.0 * c**2 + b**2) / variance**2
    if alpha2 == 0:
        return window**2 * information / 8.0
    kappa = (1.0 + 1.0 / alpha2) / variance - 1.0 / alpha2
    return np.expm1(-0.5 * window * alpha2 * kappa) ** 2 / (2.0 * kappa**2) * information


def _published_tail(variance: float, c: float) -> _Published:
    """Proposition 3.6 for N(0, variance) and c grad log p, m_0 > 1: lim L <= I(0) / (2 m_0^2)."""
    value = 0.5 * variance**2 * 2.0 * c**2 / variance**2
    limit = float(tail_constant(jk.Gaussian(0.0, [variance]), c))
    return _Published(value, applies=variance < 1.0, informative=value <= 2.0 * limit)


def test_tail() -> None:
    """T = d / 4 for a relative error, not d, and the approach is 2 T / h^2, not exponential."""
    target = jk.Gaussian(0.0, [0.04, 0.3, 0.9])
    np.testing.assert_allclose(tail_constant(target, 1.0), 0.75)
    for k, excess in ((100.0, 0.005025), (1000.0, 0.00050025)):
        one = jk.Gaussian(0.0, [0.25])
        np.testing.assert_allclose(leading_order(one, [0, T], k, 1.0) - 0.25, excess, rtol=1e-9)
        np.testing.assert_allclose(tail_leading_order(one, k, 1.0) - 0.25, excess, rtol=1e-9)
        published = _published_tail(0.25, 1.0)
        np.testing.assert_allclose(published.value, 1.0)
        assert published.applies
        assert not published.informative
    matrix = np.random.default_rng(1).normal(size=(3, 3))
    limit = affine_tail_constant(target, matrix, [1.0, 0.0, 2.0])
    np.testing.assert_allclose(
        affine_leading_order(target, [0, T], 2e3, matrix, [1.0, 0.0, 2.0]), limit, rtol=3e-3
    )
    np.testing.assert_allclose(
        affine_tail_constant(target, -np.diag(1 / np.asarray(target.eigenvalues))), 0.75
    )


def _mixture(x: jax.Array, theta: jax.Array) -> jax.Array:
    """log of 0.5 N(+-0.3, 0.36), strongly log-concave with m_0 = 1/.36 - .09/.36^2."""
    variance = 0.36 * jnp.exp(-theta) - jnp.expm1(-theta)
    centres = jnp.asarray([-0.3, 0.3]) * jnp.exp(-theta / 2)
    return (
        jax.scipy.special.logsumexp(-((x - centres) ** 2) / (2 * variance)) - jnp.log(variance) / 2
    )


def test_density_by_quadrature() -> None:
    points = np.linspace(-6, 6, 241)
    m0 = 1 / 0.36 - 0.09 / 0.36**2
    errors = {"score": jax.grad(_mixture), "one": lambda x, theta: jnp.ones_like(x)}
    potentials = {"score": lambda x: _mixture(x, jnp.zeros(())), "one": lambda x: x}
    zero = jnp.zeros(())
    # the limit, the published bound on it, and L at h^2 = 1e4 by a solver of the differential
    # equation
    for name, limit, published, large in (
        ("score", 0.23974, 1.194, 0.23980),
        ("one", 0.2250, 0.2563, 0.22507),
    ):
        found = density_tail_constant(lambda x: _mixture(x, zero), potentials[name], points)
        np.testing.assert_allclose(found, limit, atol=6e-6)
        np.testing.assert_allclose(found * (1 + 1e-4) ** 2, large, atol=6e-5)
        information = density_information(_mixture, errors[name], points)
        np.testing.assert_allclose(information(jnp.zeros(1))[0] / (2 * m0**2), published, rtol=4e-4)
        if name == "one":
            bound = diffusion_bound([0, T], 400.0, information, convexity=m0)
            assert limit < bound < 1.02 * published


def test_information_of_a_gaussian() -> None:
    lam = 0.3
    c = 0.7
    b = 0.4
    s = lambda theta: 1 + (lam - 1) * jnp.exp(-theta)  # noqa: E731
    information = density_information(
        lambda x, theta: -(x**2) / (2 * s(theta)),
        lambda x, theta: -c * x / s(theta) + b / jnp.sqrt(s(theta)),
        np.linspace(-12, 12, 401),
    )
    theta = jnp.asarray([[0.0, 0.5], [1.0, 3.0]])
    np.testing.assert_allclose(information(theta), (2 * c**2 + b**2) / s(theta) ** 2, rtol=1e-9)


def test_pulse() -> None:
    """log10 of the published bound, of the corrected one and of L, at h^2 = 100 and theta = .1."""
    target = jk.Gaussian(0.0, [0.25])
    values = [
        _published_pulse_bound(0.25, 100.0, 0.1).value,
        pulse_bound(target, 100.0, 0.1, 1.0),
        pulse_leading_order(target, 100.0, 0.1, 1.0),
    ]
    np.testing.assert_allclose(np.log10(np.array(values)), [7.05, -10.86, -26.11], atol=0.005)
    assert np.isinf(_published_pulse_bound(0.25, 0.5, 0.1).value)
    for lam in (0.04, 0.25, 0.64):  # it needs h^2 > 30 at least, and more than 100 to say anything
        assert not _published_pulse_bound(lam, 29.9, 0.5).applies
        assert not _published_pulse_bound(lam, 100.0, 0.5).informative
        assert _published_pulse_bound(lam, 160.0, 0.5).informative
    # the exact pulse is the limit of short windows
    edges = np.array([0.0, 0.3 - 5e-5, 0.3 + 5e-5, 1.0])
    width = 1e-4
    short = leading_order(
        target, edges, 2.0, np.array([0, 1, 0]) / width, np.array([0, 1, 0]) / width
    )
    np.testing.assert_allclose(pulse_leading_order(target, 2.0, 0.3, 1.0, 1.0), short, rtol=1e-6)


def test_pulse_bound_holds() -> None:
    """Above L for several modes and any mean; equal to it for a shift in one dimension."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        target = jk.Gaussian(rng.normal(size=3), rng.uniform(0.02, 3.0, 3))
        setting = (target, rng.uniform(0.0, 5.0), rng.uniform(0.0, 2.0), *rng.normal(size=(2, 3)))
        assert pulse_leading_order(*setting) <= pulse_bound(*setting)
    setting = (jk.Gaussian(0.4, [0.3]), 1.7, 0.2, 0.0, 0.8)
    np.testing.assert_allclose(pulse_bound(*setting), pulse_leading_order(*setting), rtol=1e-12)


def test_window() -> None:
    a = 0.01
    alpha2 = 20.0
    root = lambda lam: lambda theta: jnp.sqrt(1 + (lam - 1) * jnp.exp(-theta))  # noqa: E731
    target = jk.Gaussian(0.0, [0.04])
    exact = leading_order(target, [0, a], alpha2, 0.0, root(0.04), panels=8)  # E = 1
    published = _published_window(0.04, alpha2, a, b=0.2)
    np.testing.assert_allclose(exact / published, 1.208, atol=5e-4)  # not a bound
    np.testing.assert_allclose(exact / published / 1.05**2, 1.095, atol=6e-4)
    assert a > 0.1 * 0.04  # the window is not far below the variance
    short = leading_order(target, [0, 1e-4], alpha2, 0.0, root(0.04), panels=8)
    np.testing.assert_allclose(
        short, window_leading_order(target, alpha2, 1e-4, 0.0, 0.2), rtol=3e-3
    )
    target = jk.Gaussian(0.0, [0.25])
    ratio = [leading_order(target, [0, a], k, 0.0, root(0.25), panels=8) for k in (2000.0, 0.0)]
    np.testing.assert_allclose(ratio[0] / ratio[1], 2542, atol=0.5)
    published = [_published_window(0.25, k, a, b=0.5) for k in (2000.0, 0.0)]
    np.testing.assert_allclose(published[0] / published[1], 2498, atol=0.5)
    exact = leading_order(target, [0, a], 2000.0, 1.0)
    np.testing.assert_allclose(exact / _published_window(0.25, 2000.0, a, c=1.0), 0.2505, atol=1e-4)
    np.testing.assert_allclose(exact, window_leading_order(target, 2000.0, a, 1.0), rtol=1e-6)


# --- the bound ---


def test_the_bound_holds() -> None:
    """1500 random distributions of dimension 1 to 5, errors and h^2(theta).

    The exact L is the closed form.
    """
    ratios = []
    for dim in range(1, 6):
        rng = np.random.default_rng(dim)
        n = 300
        cells = 5
        lam = np.exp(rng.uniform(np.log(0.02), np.log(4.0), (n, dim)))
        edges = np.concatenate(
            [np.zeros((n, 1)), np.cumsum(rng.gamma(0.7, size=(n, cells)) + 0.01, 1)], 1
        )
        edges *= rng.uniform(0.3, 3.0, (n, 1)) / edges[:, -1:]
        k = rng.uniform(0, 1, (n, cells)) ** 3 * 40.0 * rng.integers(0, 2, (n, cells))
        c = rng.normal(size=(n, cells, dim)) * rng.integers(0, 2, (n, 1, 1))
        b = rng.normal(size=(n, cells, dim)) * rng.integers(0, 2, (n, 1, 1))

        @jax.jit
        @jax.vmap
        def both(lam, edges, k, c, b):
            target = jk.Gaussian(0.0, lam)
            return leading_order(target, edges, k, c, b, panels=1), gaussian_bound(
                target, edges, k, c, b, panels=16
            )

        exact, bound = map(np.asarray, both(lam, edges, k, c, b))
        used = exact > 1e-30
        assert np.all(exact <= bound * (1 + 1e-9))
        ratios.append(np.median(bound[used] / exact[used]))
    # looser in more dimensions and for errors that change sign, but not vacuous
    assert ratios[0] < 5
    assert max(ratios) < 50


def test_the_bound_is_attained() -> None:
    target = jk.Gaussian(0.0, [0.09])
    edges = [0.0, 0.05, 0.4, T]
    k = [0.0, 7.0, 1.5]
    exact = leading_order(target, edges, k, 0.0, [1.0, 0.4, 2.0])
    np.testing.assert_allclose(
        gaussian_bound(target, edges, k, 0.0, [1.0, 0.4, 2.0]), exact, rtol=1e-12
    )
    # the same from a constant error and its information beta^2 / s
    information = lambda theta: 0.49 / (1 + (0.09 - 1) * jnp.exp(-theta))  # noqa: E731
    exact = affine_leading_order(target, edges, k, [[0.0]], 0.7)
    np.testing.assert_allclose(
        diffusion_bound(edges, k, information, convexity=1 / 0.09), exact, rtol=1e-12
    )


def test_the_bound_is_differentiable_in_alpha2() -> None:
    target = jk.Gaussian(0.0, [0.1, 1.0])

    def cost(k: jax.Array) -> jax.Array:
        return gaussian_bound(target, [0.0, 0.2, T], k, [1.0, 0.5], panels=8)

    check_grads(jax.jit(cost), (jnp.asarray([1e-3, 3.0]),), order=1, modes=("rev",), rtol=1e-5)
    assert np.all(np.isfinite(jax.jit(jax.grad(cost))(jnp.zeros(2))))


# --- the optimum ---


def _data(theta: jax.Array) -> jax.Array:
    return jnp.exp(-theta / 0.02)


def _noise(theta: jax.Array) -> jax.Array:
    return jnp.exp(-(T - theta) / 0.5)


def _both(theta: jax.Array) -> jax.Array:
    return _data(theta) + _noise(theta)


ONE = jk.Gaussian(0.0, [0.04])
TEN = jk.Gaussian(0.0, np.geomspace(0.01, 1.0, 10))
# ode, h = g, best constant, its h^2 (None: the cap), optimum
OPTIMA = {
    "1 data": (ONE, _data, "coherent", 0.033457, 0.078140, 0.033457, 0.0, 0.033457),
    "1 noise": (ONE, _noise, "coherent", 0.118654, 8.18e-4, 8.569e-5, None, 8.569e-5),
    "1 both": (ONE, _both, "coherent", 0.278123, 0.094948, 0.092321, 0.772, 0.044305),
    "1 both ind": (ONE, _both, "independent", 0.062896, 0.010994, 0.009036, 0.559, 0.004711),
    "1 noise ind": (ONE, _noise, "independent", 0.058349, 6.29e-5, 1.730e-5, 4.08, 1.614e-5),
    "10 data": (TEN, _data, "coherent", 0.434885, 0.727572, 0.434885, 0.0, 0.434885),
    "10 noise": (TEN, _noise, "coherent", 1.02984, 0.037237, 8.642e-4, None, 8.642e-4),
    "10 both": (TEN, _both, "coherent", 2.49462, 0.892921, 0.892910, 1.007, 0.534738),
    "10 both ind": (TEN, _both, "independent", 0.595770, 0.128048, 0.126145, 0.837, 0.061628),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_optimal_diffusion(name: str) -> None:
    target, error, signs, ode, sde, constant, alpha2, value = OPTIMA[name]
    found = optimize_diffusion(target, error, T, signs=signs)
    np.testing.assert_allclose([found.ode, found.sde], [ode, sde], rtol=7e-4)
    np.testing.assert_allclose(found.best_constant[0], constant, rtol=4e-4)
    np.testing.assert_allclose(
        found.best_constant[1], 100.0 if alpha2 is None else alpha2, atol=6e-3
    )
    np.testing.assert_allclose(found.value, value, rtol=4e-4)
    assert found.converged
    assert found.value <= found.best_constant[0]
    assert np.all(
        (found.stochasticity_squared >= 0) & (found.stochasticity_squared <= 100.0 + 1e-9)
    )
    again = leading_order(
        target, found.edges, found.stochasticity_squared, error, signs=signs, panels=8
    )
    np.testing.assert_allclose(again, found.value, rtol=1e-9)
    # an error at one end only wants a constant h
    if "both" not in name and signs == "coherent":
        np.testing.assert_allclose(found.gain, 1.0, rtol=1e-6)
    assert (found.infimum is not None) == (target is ONE and signs == "coherent")


def test_infimum() -> None:
    """Bang-bang: no noise for theta < .106, within 1% of what 16 cells reach.

    No random h^2 goes below it.
    """
    found = optimize_diffusion(ONE, _both, T)
    assert found.infimum is not None
    np.testing.assert_allclose(found.infimum.value, 0.043983, atol=6e-7)
    np.testing.assert_allclose(found.infimum.time, 0.106, atol=6e-4)
    assert 1.0 < found.value / found.infimum.value < 1.01
    np.testing.assert_allclose(found.gain, 2.08, atol=5e-3)
    noise = diffusion_infimum(ONE, _noise, [0.0, T])
    np.testing.assert_allclose([noise.value, noise.time], [8.387e-5, 0.0], atol=6e-9)
    only_flow = diffusion_infimum(ONE, _data, [0.0, T])
    np.testing.assert_allclose([only_flow.value, only_flow.time], [0.033457, T], atol=6e-7)
    rng = np.random.default_rng(0)
    alpha2 = rng.uniform(0, 1, (200, 16)) ** 4 * 100.0
    values = jax.vmap(lambda k: leading_order(ONE, found.edges, k, _both, panels=8))(alpha2)
    assert np.min(values) > found.infimum.value


def test_infimum_of_a_table() -> None:
    """Errors constant on cells: steps at the beginnings of cells; a steep h^2 comes close."""
    target = jk.Gaussian.isotropic(3, 0.1)
    edges = np.array([0.0, 0.05, 0.3, T])
    c = np.array([1.0, 0.1, 0.6])
    y = np.log1p(np.expm1(edges) / 0.1)
    expected = c[1] + c[0] * y[1]
    assert expected < min(c[0], c @ np.diff(y))
    found = diffusion_infimum(target, c, edges)
    np.testing.assert_allclose([found.value, found.time], [3 * expected**2 / 4, 0.05], rtol=1e-12)
    steep = leading_order(target, edges, [0.0, 1e6, 1e6], c)
    np.testing.assert_allclose(steep, found.value, rtol=1e-5)
    best = optimize_diffusion(target, c, T, cells=edges, cap=1e6)
    np.testing.assert_allclose(best.value, found.value, rtol=1e-5)


def test_result_of_the_optimisation() -> None:
    found: OptimalDiffusion = optimize_diffusion(ONE, _both, T)
    text = repr(found)
    for part in ("16 cells", "0.0443045", "0.0923211", "infimum", "converged"):
        assert part in text
    process = jk.VP()
    t = inverse_time_change(process, jnp.asarray([1e-4, 0.05, 1.0, 5.0]))
    k = found.stochasticity_squared
    np.testing.assert_allclose(found.stochasticity(process, t), np.sqrt([k[0], k[7], k[14], k[15]]))


# --- K steps ---


def _cubic(steps: int, final: float = T) -> np.ndarray:
    return final * (1.0 - np.arange(steps + 1) / steps) ** 3


def _even_kl(
    step: Callable[..., tuple[float, float, float]],
    theta: np.ndarray,
    alpha2: np.ndarray,
    mean: float,
    variance: float,
    relative: np.ndarray,
) -> float:
    """J of one mode in NumPy: theta (K + 1,), relative error (K,) at the beginning of steps.

    `step` gives factors for x and for the learned score at x, and the variance of the noise.
    """
    values = []
    for sign in (1.0, -1.0):
        a = np.exp(-0.5 * theta)
        s = 1.0 + (variance - 1.0) * np.exp(-theta)
        m = a[0] * mean
        v = s[0]
        for k, h2 in enumerate(alpha2):
            keep, push, noise = step(theta[k], theta[k + 1], h2)
            slope = -(1.0 + sign * relative[k]) / s[k]
            m = keep * m + push * slope * (m - a[k] * mean)
            v = (keep + push * slope) ** 2 * v + noise
        values.append(0.5 * (np.log(v / variance) + (variance + (m - mean) ** 2) / v - 1.0))
    return float(np.mean(values))


def _exponential_integrator(start: float, end: float, alpha2: float) -> tuple[float, float, float]:
    gamma = np.exp(0.5 * (start - end))
    return gamma, (1.0 + alpha2) * (gamma - 1.0), alpha2 * (gamma**2 - 1.0)


def _ddim(start: float, end: float, alpha2: float) -> tuple[float, float, float]:
    a = np.exp(-0.5 * start)
    b = np.exp(-0.5 * end)
    n = -np.expm1(-start)
    r = -np.expm1(-end)
    keep = 0.0 if r == 0 else (np.expm1(end) / np.expm1(start)) ** (0.5 * alpha2)
    # x0 = (x + n score) / a, noise = -sqrt(n) score
    return b / a, b * n / a - np.sqrt(r * n) * keep, r * (1.0 - keep**2)


def _least(fn: Callable[[np.ndarray], float], steps: int) -> tuple[float, np.ndarray]:
    """By L-BFGS with differences in place of derivatives, in h^2 itself."""
    starts = [np.zeros(steps), np.ones(steps), np.full(steps, 10.0), np.eye(steps)[0] * 20.0]
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxfun": 20_000}
    runs = [
        minimize(lambda h: np.log(fn(h)), z, bounds=[(0.0, 100.0)] * steps, options=options)
        for z in starts
    ]
    best = min(runs, key=lambda run: run.fun)
    return fn(best.x), best.x


@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_discrete_stochasticity_of_the_exponential_integrator(epsilon: float) -> None:
    """Against a recursion and an optimiser that share no code, one dimension and three steps."""
    theta = _cubic(3)
    variance = 0.04

    def j(alpha2: np.ndarray, size: float = epsilon) -> float:
        c = size * np.asarray(_both(jnp.asarray(theta[:-1])))
        return _even_kl(_exponential_integrator, theta, alpha2, 0.7, variance, c)

    found = optimize_discrete_stochasticity(
        jk.Gaussian(0.7, [variance]),
        _both,
        jk.OU(rate=1.0, t_max=T),
        "exponential_integrator",
        theta,
        epsilon,
    )
    value, alpha2 = _least(j, 3)
    np.testing.assert_allclose(found.value, value, rtol=1e-6)
    np.testing.assert_allclose(found.stochasticity_squared, alpha2, rtol=1e-3, atol=1e-4)
    assert found.converged
    # what it is compared with, at its own h
    agnostic = _least(lambda h: j(h, 0.0), 3)[1]
    np.testing.assert_allclose(found.error_agnostic, j(agnostic), rtol=1e-4)
    expected = [
        j(found.stochasticity_squared),
        j(np.zeros(3)),
        j(np.ones(3)),
        j(found.stochasticity_squared, 0.0),
    ]
    np.testing.assert_allclose(
        [found.value, found.ode, found.sde, found.without_error], expected, rtol=1e-11
    )
    expected = [
        j(found.error_agnostic_stochasticity_squared),
        j(found.error_agnostic_stochasticity_squared, 0.0),
    ]
    np.testing.assert_allclose(
        [found.error_agnostic, found.error_agnostic_without_error], expected, rtol=1e-11
    )
    flat, at = _least(lambda h: j(np.full(3, h[0])), 1)
    np.testing.assert_allclose(found.best_constant[0], flat, rtol=1e-9)
    np.testing.assert_allclose(found.best_constant[1], at[0], atol=1e-4)
    np.testing.assert_allclose(found.gain, found.repair_gain * found.score_gain, rtol=1e-12)
    # noise that stays in the last step is above the marginal's, which has none
    assert not found.trusted
    assert "step 2 injects noise" in found.warnings[0]


def test_discrete_stochasticity_of_ddim_in_another_process() -> None:
    """Two modes with separate errors, in the time of the VP process, against the same recursion."""
    process = jk.VP(0.1, 3.9)
    epsilon = 0.2
    means = (0.3, -1.0)
    variances = (0.04, 0.5)
    theta = _cubic(3)

    def error(r: jax.Array) -> jax.Array:
        return jnp.stack([jnp.exp(-r), 0.5 + 0.0 * r], -1)

    def j(alpha2: np.ndarray) -> float:
        c = epsilon * np.asarray(error(jnp.asarray(theta[:-1])))
        return sum(
            _even_kl(_ddim, theta, alpha2, means[i], variances[i], c[:, i]) for i in range(2)
        )

    target = jk.Gaussian(means, variances)
    times = np.asarray(inverse_time_change(process, jnp.asarray(theta)))
    found = optimize_discrete_stochasticity(target, error, process, "ddim", times, epsilon)
    np.testing.assert_allclose(
        [found.value, found.ode], [j(found.stochasticity_squared), j(np.zeros(3))], rtol=1e-9
    )
    value, alpha2 = _least(j, 3)
    np.testing.assert_allclose(found.value, value, rtol=1e-6)
    # the same steps: h^2 may differ where it has no effect, as in the step to the data
    for k in range(3):
        ours, theirs = (
            _ddim(theta[k], theta[k + 1], h[k]) for h in (found.stochasticity_squared, alpha2)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert found.trusted
    np.testing.assert_allclose(found.schedule.times, times, rtol=1e-12)
    np.testing.assert_allclose(
        found.schedule.stochasticity**2, found.stochasticity_squared, rtol=1e-12
    )
    evenly = SymmetrizedKL(target, error, process, jk.DDIM(), epsilon)
    np.testing.assert_allclose(
        jax.jit(lambda s: evenly(s))(found.schedule), found.value, rtol=1e-12
    )


def test_discrete_stochasticity_is_no_worse_than_its_starts() -> None:
    rng = np.random.default_rng(0)
    theta = _cubic(3)
    process = jk.OU(rate=1.0, t_max=T)
    for _ in range(8):
        target = jk.Gaussian(0.0, rng.uniform(0.01, 2.0, 1))
        epsilon = rng.uniform(0.01, 1.0)
        cap = rng.uniform(1.0, 50.0)
        c = rng.normal(size=16)
        given = jk.Schedule(theta, rng.uniform(0.0, np.sqrt(cap), 3))
        found = optimize_discrete_stochasticity(
            target, c, process, "exponential_integrator", given, epsilon, cap=cap
        )
        cells = np.searchsorted(found.optimum.edges, theta[:-1]) - 1

        def j(
            alpha2: np.ndarray,
            size: np.ndarray = epsilon * c[cells],
            target: jk.Gaussian = target,
        ) -> float:
            variance = float(target.eigenvalues[0])
            return _even_kl(_exponential_integrator, theta, alpha2, 0.0, variance, size)

        least = found.value * (1.0 - 1e-12)
        assert least <= min(found.best_constant[0], found.ode, found.sde, found.error_agnostic)
        assert least <= j(np.asarray(given.stochasticity_squared))
        middle = found.optimum.stochasticity(process, jnp.asarray(0.5 * (theta[1:] + theta[:-1])))
        assert least <= j(np.asarray(middle) ** 2)
        assert np.all((found.stochasticity_squared >= 0) & (found.stochasticity_squared <= cap))


def test_discrete_stochasticity_with_an_error_on_cells() -> None:
    """A step that begins at an edge sees the cell below it, also if times come from float32."""
    theta = _cubic(3)
    process = jk.OU(rate=1.0, t_max=T)
    edges = theta[::-1]
    c = np.asarray(_both(jnp.asarray(theta[:-1])))[::-1]
    whole = optimize_discrete_stochasticity(
        ONE, _both, process, "exponential_integrator", theta, 0.1
    )
    rounded = np.asarray(theta, np.float32)
    for times in (theta, rounded):
        found = optimize_discrete_stochasticity(
            ONE, c, process, "exponential_integrator", times, 0.1, cells=edges
        )
        np.testing.assert_allclose(
            [found.value, found.error_agnostic], [whole.value, whole.error_agnostic], rtol=1e-6
        )


@functools.cache
def _of_steps(num_steps: int) -> DiscreteStochasticity:
    process = jk.OU(rate=1.0, t_max=T)
    run = (ONE, _both, process, "exponential_integrator", _cubic(num_steps))
    with jax.enable_x64(True):
        return optimize_discrete_stochasticity(*run, 0.1)


@pytest.mark.slow
def test_discrete_stochasticity_against_continuous_time() -> None:
    """Reference numbers of another optimiser; continuous time comes nearer with K."""
    discrete = {k: _of_steps(k) for k in (10, 20, 40)}
    np.testing.assert_allclose(
        [discrete[k].value for k in discrete], [0.01911114, 0.00637439, 0.00287934], rtol=2e-6
    )
    np.testing.assert_allclose([discrete[k].gain for k in (10, 20)], [2.17, 1.93], atol=5e-3)
    np.testing.assert_allclose([discrete[k].repair_gain for k in (10, 20)], [2.16, 1.87], atol=5e-3)
    np.testing.assert_allclose([discrete[k].score_gain for k in (10, 20)], [1.01, 1.03], atol=5e-3)
    np.testing.assert_allclose(
        [discrete[k].error_agnostic_without_error for k in (10, 20)],
        [0.0170578, 0.0044209],
        rtol=1e-5,
    )
    infimum = diffusion_infimum(ONE, _both, [0.0, T]).value
    np.testing.assert_allclose(
        [f.continuous for f in discrete.values()], 0.01 * infimum, rtol=1e-12
    )
    ratios = np.array([f.ratio for f in discrete.values()])
    np.testing.assert_allclose(ratios, [43.451, 14.493, 6.5465], rtol=1e-4)
    assert np.all(np.diff(ratios) < 0)
    # more of what is left is the error's
    shares = np.array([f.without_error / f.value for f in discrete.values()])
    assert np.all(np.diff(shares) < 0)
    assert all(f.out_of_reach and f.converged for f in discrete.values())


def test_report_of_discrete_stochasticity(float32: None) -> None:
    found = _of_steps(10)
    text = repr(found)
    for part in (
        "ExponentialIntegrator, 10 steps, eps = 0.1, converged",
        "best constant 0.0414946 (alpha^2 = 0): 2.17 times that",
        "gain 2.17 = repair of the discretisation 2.16 x gain against the error 1.01",
        "out of reach: K = 10 steps cost 43.5 times the optimum of continuous time",
        "90% of it is discretisation",
        "warning: step 9 injects noise",
        "trusted=False",
    ):
        assert part in text
    # in the caller's precision, but computed in float64
    assert found.schedule.times.dtype == jnp.float32
    again = optimize_discrete_stochasticity(
        ONE,
        _both,
        jk.OU(rate=1.0, t_max=T),
        "exponential_integrator",
        found.schedule,
        jnp.asarray(0.1),
    )
    np.testing.assert_allclose(again.value, found.value, rtol=1e-6)


def _discrete(
    target: jk.Gaussian = ONE,
    error: object = _both,
    process: jk.AbstractProcess | None = None,
    sampler: str = "ddim",
    times: object = (T, 1.0, 0.0),
    epsilon: object = 0.1,
    **options: object,
) -> DiscreteStochasticity:
    setting = target, error, process or jk.OU(rate=1.0, t_max=T), sampler, times, epsilon
    return optimize_discrete_stochasticity(*setting, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _discrete(epsilon=0.0), "epsilon = 0 must be > 0"),
        (lambda: _discrete(epsilon=-0.1), r"epsilon = -0\.1 must be > 0"),
        (lambda: _discrete(epsilon=np.ones(2)), "epsilon must be a single number"),
        (lambda: _discrete(cap=0.0), "cap = 0 must be > 0"),
        (lambda: _discrete(sampler="heun"), "sampler = Heun is deterministic and has no h"),
        (lambda: _discrete(sampler="dimm"), "sampler='dimm' is not known. Did you mean 'ddim'"),
        (lambda: _discrete(jk.Gaussian(0.0, [1.0, 0.0])), r"eigenvalues\[1\] = 0 must be > 0"),
        (lambda: _discrete(times=(T, 1.0, 0.1)), r"times\[-1\] = 0\.1 must be 0"),
        (
            lambda: _discrete(times=(1.5, 1.0, 0.0)),
            r"times\[0\] = 1\.5 must be the process's t_max = 2",
        ),
        (
            lambda: _discrete(times=(3.0, 1.0, 0.0)),
            r"times\[0\] = 3 lies beyond the process's t_max = 2",
        ),
        (
            lambda: _discrete(times=(T, 0.5, 1.0, 0.0)),
            r"times must strictly decrease; times\[1\] = 0\.5",
        ),
        (
            lambda: _discrete(process=jk.FlowMatching(), times=(1.0, 0.5, 0.0)),
            r"times\[0\] = 1, where no signal is left",
        ),
        (lambda: _discrete(error=jnp.zeros_like), "error is 0 at every time"),
        (
            lambda: _discrete(error=np.ones(3)),
            r"error has shape \(3,\); it must be a number or have shape \(16,\)",
        ),
        (
            lambda: _discrete(error=np.ones(2), cells=[0.0, 0.5, 1.0]),
            "cells end at 1; they must end at final_time = 2",
        ),
        (lambda: jax.jit(lambda e: _discrete(epsilon=e).value)(0.1), "must be called outside jit"),
    ],
)
def test_bad_input_of_discrete_stochasticity(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- training weights ---


def test_training_weights() -> None:
    process = jk.VP()
    t = jnp.asarray([0.0, 0.2, 1.0])
    s = np.asarray(process.noise(t))
    np.testing.assert_allclose(training_weight(process, t), s**2, atol=1e-15)
    np.testing.assert_allclose(training_weight(process, t, "noise"), s**3, atol=1e-15)
    np.testing.assert_allclose(training_weight(process, t, "data"), s**2 / (0.25 + s), atol=1e-15)
    # as published for beta_0 = .1, beta_1 = 20
    np.testing.assert_allclose(s[1] ** 2, 1 - np.exp(-0.5 * 0.2**2 * 19.9 - 0.2 * 0.1), rtol=1e-12)
    with pytest.raises(ValueError, match=r"weighting='nois'.*Did you mean 'noise'"):
        training_weight(process, t, "nois")


def test_optimal_weight() -> None:
    """In the stated model it beats every other weight.

    Its error is the variance of a simulated one.
    """
    edges = [0.0, 0.1, T]
    k = [0.0, 2.0]
    kernel = terminal_kernel(TEN, edges, k)
    np.testing.assert_allclose(jnp.sum(kernel.size), T, rtol=1e-12)
    np.testing.assert_allclose(jnp.sum(kernel.size * kernel.optimal_weight), 1.0, rtol=1e-12)
    np.testing.assert_allclose(
        kernel.predict_error(kernel.optimal_weight), kernel.optimal_error, rtol=1e-12
    )
    for weight in (jnp.ones_like, lambda r: 1e-3 + r, lambda r: 1 / (0.1 + r)):
        assert kernel.predict_error(weight) > kernel.optimal_error
    # the kernel from the responses of narrow cells: white noise of variance 1 / cell in
    # c |grad log p|
    fine = np.unique(np.concatenate([np.linspace(0, 0.1, 101), np.linspace(0.1, T, 401)]))
    middle = (fine[1:] + fine[:-1]) / 2
    s = 1 + (np.asarray(TEN.eigenvalues) - 1) * np.exp(-middle[:, None])
    c = 1 / np.sqrt(np.sum(1 / s, 1) * np.diff(fine))
    simulated = leading_order(TEN, fine, np.where(middle < 0.1, 0.0, 2.0), c, signs="independent")
    uniform = kernel.predict_error(jnp.ones_like) / T
    np.testing.assert_allclose(simulated, uniform, rtol=2e-3)


def test_terminal_kernel() -> None:
    """Against NumPy for two modes on many nodes; and what its unit of error does to variances."""
    lam = np.array([2.2, 0.4])
    target = jk.Gaussian(0.0, lam)
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 10.0, 40)])
    for alpha2, costs in ((0.0, np.ones(2)), (1.0, lam)):
        metric = "kl" if alpha2 == 0.0 else "w2_squared"
        kernel = terminal_kernel(target, edges, alpha2, metric=metric)
        theta = np.asarray(kernel.time)[..., None]
        s = 1.0 + (lam - 1.0) * np.exp(-theta)
        decay = (lam / (np.expm1(theta) + lam)) ** alpha2
        cost = np.sum(costs * ((1.0 + alpha2) * decay / s) ** 2, -1)
        np.testing.assert_allclose(kernel.kernel, 0.25 * cost / np.sum(1.0 / s, -1), rtol=1e-9)
    # a relative error c on a short cell, by exact moments: squared W2 is k c^2 E |score|^2 size^2
    fine = np.array([0.0, 0.3, 0.301, 1.0])
    c = 1e-3 * np.array([0.0, 1.0, 0.0])
    found = terminal_distribution(target, fine, 1.0, 1.0, c)
    change = np.sqrt(np.asarray(found.covariance)) - np.sqrt(lam)
    s = 1.0 + (lam - 1.0) * np.exp(-0.3005)
    k = np.interp(0.3005, np.ravel(kernel.time), np.ravel(kernel.kernel))
    predicted = k * np.sum(1.0 / s) * (1e-3 * 1e-3) ** 2
    np.testing.assert_allclose(np.sum(change**2), predicted, rtol=0.02)


# --- errors ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: leading_order(ONE, [0, T], -1.0, 1.0),
            r"stochasticity_squared must be >= 0; its smallest entry is -1",
        ),
        (
            lambda: leading_order(ONE, [0, T], [1.0, 2.0], 1.0),
            r"stochasticity_squared has shape \(2,\)",
        ),
        (
            lambda: leading_order(jk.Gaussian(0.0, [1.0, 0.0]), [0, T], 1.0, 1.0),
            r"eigenvalues\[1\] = 0 must be > 0",
        ),
        (lambda: leading_order(ONE, [0, T], 1.0, [1.0, 2.0]), r"relative has shape \(2,\)"),
        (lambda: leading_order(ONE, [0.1, T], 1.0, 1.0), r"edges\[0\] = 0.1 must be 0"),
        (
            lambda: leading_order(ONE, [0, 1.0, 1.0], 1.0, 1.0),
            r"edges must increase; edges\[1\] = 1",
        ),
        (lambda: leading_order(ONE, [0.0], 1.0, 1.0), "at least two times"),
        (lambda: leading_order(ONE, [0, T], 1.0, 1.0, signs="random"), "signs='random'"),
        (
            lambda: leading_order(ONE, [0, T], 1.0, lambda r: jnp.ones(3)),
            r"to values of shape \(3,\)",
        ),
        (lambda: affine_leading_order(TEN, [0, T], 1.0, np.eye(3)), r"matrix has shape \(3, 3\)"),
        (
            lambda: affine_leading_order(jk.Gaussian.isotropic(2), [0, T], 1.0, [[1.0]]),
            "weights other than 1",
        ),
        (
            lambda: terminal_distribution(ONE, [0, 0.5, T], 40.0, -300.0, [1.0, 0.0]),
            r"explodes: at time 0 ",
        ),
        (
            lambda: terminal_distribution(ONE, [0, 0.5, T], 40.0, -300.0, [0.0, 1.0]),
            r"explodes: at time 0\.5 ",
        ),
        (
            lambda: affine_terminal_distribution(ONE, [0, T], 1.0, 1e6, [[1.0]]),
            r"explodes: at time 1\.\d+ ",
        ),
        (lambda: tail_leading_order(ONE, 0.0, 1.0), "stochasticity_squared = 0 must be > 0"),
        (
            lambda: pulse_bound(ONE, -1.0, 0.1, 1.0),
            "stochasticity_squared = -1 must be >= 0",
        ),
        (lambda: pulse_leading_order(ONE, 1.0, -0.1), r"time = -0\.1 must be >= 0"),
        (lambda: window_leading_order(ONE, 1.0, -0.1), r"window = -0\.1 must be >= 0"),
        (lambda: tail_constant(ONE, [1.0, 2.0]), r"relative has shape \(2,\)"),
        (lambda: diffusion_bound([0, T], 1.0, 1.0, convexity=0.0), "convexity = 0 must be > 0"),
        (lambda: diffusion_infimum(TEN, _both, [0, T]), "target.eigenvalues go from 0.01 to 1"),
        (
            lambda: diffusion_infimum(ONE, lambda r: -r, [0, T]),
            "error must be >= 0 for the infimum",
        ),
        (
            lambda: optimize_diffusion(ONE, _both, T, cells=np.array([0, 1.0])),
            "cells end at 1; they must end at",
        ),
        (lambda: optimize_diffusion(ONE, jnp.zeros_like, T), "error is 0 at every time"),
        (lambda: optimize_diffusion(ONE, _both, T, cap=0.0), "cap = 0 must be > 0"),
        (lambda: terminal_kernel(ONE, [0, T], 0.0, metric="w2"), "metric='w2'"),
        (
            lambda: terminal_kernel(ONE, [0, T], 0.0).predict_error([1.0]),
            r"weight has shape \(1,\)",
        ),
        (
            lambda: density_information(_mixture, _mixture, [1.0, 0.0]),
            "points must be an increasing list",
        ),
    ],
)
def test_errors_name_the_argument_and_the_value(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unresolved_quadrature_is_refused() -> None:
    with pytest.raises(ValueError, match="panels must be given"):
        jax.jit(lambda lam: leading_order(jk.Gaussian(0.0, lam), [0, T], 1.0, _both))(jnp.ones(1))
    traced = jax.jit(lambda k: leading_order(ONE, [0, 0.1, T], k, _both))
    np.testing.assert_allclose(
        traced(99.0), leading_order(ONE, [0, 0.1, T], 99.0, _both), rtol=1e-12
    )
    with pytest.raises(Exception, match="stochasticity_squared is above 100"):
        traced(101.0)
    # what the check is for: one panel per cell sees much less than there is
    coarse = leading_order(ONE, [0, 0.1, T], [0.0, 1e4], _both, panels=1)
    assert coarse < 0.95 * leading_order(ONE, [0, 0.1, T], [0.0, 1e4], _both)
