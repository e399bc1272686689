"""Sampling from N(0, I) in place of the exact marginal, against moment equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import jaxkernels as jk
from jaxkernels.reverse_sde import (
    SymmetrizedKL,
    affine_terminal_distribution,
    terminal_distribution,
)

T = 1.5
EDGES = [0.0, 0.1, T]
ALPHA2 = [3.0, 0.5]
MEAN = np.array([1.0, -2.0])
VARIANCES = np.array([0.2, 1.5])


def _kl(mean: np.ndarray, covariance: np.ndarray, target: np.ndarray) -> float:
    """KL(N(0, target) || N(mean, covariance)) by its textbook formula."""
    inverse = np.linalg.inv(covariance)
    log_det = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(target)[1]
    quadratic = mean @ inverse @ mean + np.trace(inverse @ target) - len(mean)
    return 0.5 * float(quadratic + log_det)


def _sample_moments(
    covariance: np.ndarray, matrix: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (1) of `_leading_order` from N(0, I), in the coordinates of the data.

    By an ODE solver, cell by cell, for the error matrix x + shift.
    """
    eye = np.eye(2)
    mean = np.zeros(2)
    second = eye
    for low, high, h2 in ((EDGES[1], EDGES[2], ALPHA2[1]), (EDGES[0], EDGES[1], ALPHA2[0])):

        def slope(t: float, state: np.ndarray, high: float = high, h2: float = h2) -> np.ndarray:
            theta = high - t
            marginal = eye + (covariance - eye) * np.exp(-theta)
            precision = np.linalg.inv(marginal)
            linear = 0.5 * eye + 0.5 * (1.0 + h2) * (matrix - precision)
            constant = precision @ MEAN * np.exp(-0.5 * theta) + shift
            m = state[:2]
            c = state[2:].reshape(2, 2)
            rate = linear @ c
            return np.concatenate(
                [
                    linear @ m + 0.5 * (1.0 + h2) * constant,
                    (rate + rate.T + h2 * eye).ravel(),
                ]
            )

        start = np.concatenate([mean, second.ravel()])
        run = solve_ivp(slope, (0.0, high - low), start, rtol=1e-11, atol=1e-13)
        mean = run.y[:2, -1]
        second = run.y[2:, -1].reshape(2, 2)
    return mean, second


def test_matrix_error_from_a_standard_normal() -> None:
    """Off-centre data in rotated coordinates."""
    angle = 0.7
    basis = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = basis @ np.diag(VARIANCES) @ basis.T
    target = jk.Gaussian(MEAN, VARIANCES, basis=basis)
    matrix = np.array([[0.3, -0.5], [0.2, 0.1]])
    shift = np.array([0.4, -0.2])
    mean, second = _sample_moments(covariance, 0.3 * matrix, 0.3 * shift)
    found = affine_terminal_distribution(
        target, EDGES, ALPHA2, 0.3, matrix, shift, steps=300, initialization="standard_normal"
    )
    np.testing.assert_allclose(found.covariance, basis.T @ second @ basis, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.mean_error, basis.T @ (mean - MEAN), rtol=1e-8)
    np.testing.assert_allclose(found.kl, _kl(mean - MEAN, second, covariance), rtol=1e-8)


def test_error_per_mode_from_a_standard_normal() -> None:
    """The same for an error that is constant on cells, and an error that is not there."""
    target = jk.Gaussian(MEAN, VARIANCES)
    for epsilon in (0.0, 0.3):
        found = terminal_distribution(
            target, EDGES, ALPHA2, epsilon, 0.6, 0.8, initialization="standard_normal"
        )

        def s(theta: jax.Array) -> jax.Array:
            return 1.0 + jnp.asarray(VARIANCES - 1.0) * jnp.exp(-theta)

        matrix = affine_terminal_distribution(
            target,
            EDGES,
            ALPHA2,
            epsilon,
            lambda theta: -0.6 * jnp.diag(1.0 / s(theta)),
            lambda theta: (
                0.6 * jnp.asarray(MEAN) * jnp.exp(-0.5 * theta) / s(theta)
                + 0.8 / jnp.sqrt(s(theta))
            ),
            initialization="standard_normal",
        )
        np.testing.assert_allclose(found.covariance, jnp.diag(matrix.covariance), rtol=1e-8)
        np.testing.assert_allclose(found.mean_error, matrix.mean_error, rtol=1e-7)
    mean, second = _sample_moments(np.diag(VARIANCES), np.zeros((2, 2)), np.zeros(2))
    found = terminal_distribution(target, EDGES, ALPHA2, 0.0, initialization="standard_normal")
    np.testing.assert_allclose(found.covariance, np.diag(second), rtol=1e-8)
    np.testing.assert_allclose(found.mean_error, mean - MEAN, rtol=1e-7)


def test_noise_forgets_a_wrong_start() -> None:
    """KL(p_T || N(0, I)) is what the flow keeps and bounds what noise leaves, which falls."""
    target = jk.Gaussian(MEAN, VARIANCES)

    def kl(alpha2: float) -> float:
        options = {"initialization": "standard_normal"}
        return float(terminal_distribution(target, [0.0, T], alpha2, 0.0, **options).kl)

    variance = 1.0 + (VARIANCES - 1.0) * np.exp(-T)
    mean = MEAN * np.exp(-0.5 * T)
    start = 0.5 * float(np.sum(variance - 1.0 - np.log(variance) + mean**2))
    np.testing.assert_allclose(kl(0.0), start, rtol=1e-12)
    # the first term of the known bound on KL, (second moment + d) e^{-T}
    assert start <= (np.sum(VARIANCES + MEAN**2) + 2) * np.exp(-T)
    values = [kl(alpha2) for alpha2 in (0.0, 0.5, 1.0, 4.0, 16.0)]
    assert np.all(np.diff(values) < 0.0)
    assert values[-1] < 1e-8 * start
    # V - 1 is multiplied by e^{-H}, D by e^{-H/2}
    y = np.log1p(np.expm1(T) / VARIANCES)
    v = 1.0 + (1.0 / variance - 1.0) * np.exp(-y)
    d = mean / np.sqrt(variance) * np.exp(-0.5 * y)
    np.testing.assert_allclose(kl(1.0), 0.5 * np.sum(np.log(v) + (1.0 + d**2) / v - 1.0), rtol=1e-9)


def test_the_start_costs_a_term_in_epsilon() -> None:
    """KL = K0 + K1 eps + O(eps^2) with K1 != 0, so that L is not its leading order."""
    target = jk.Gaussian(0.0, [0.04])

    def kl(epsilon: jax.Array | float) -> jax.Array:
        options = {"initialization": "standard_normal"}
        return terminal_distribution(target, [0.0, T], 1.0, epsilon, 1.0, **options).kl

    with jax.enable_x64(True):
        value, slope = jax.jit(jax.value_and_grad(kl))(jnp.zeros(()))
    step = 1e-5
    np.testing.assert_allclose(slope, (kl(step) - kl(-step)) / (2.0 * step), rtol=1e-6)
    assert value > 0.0
    assert abs(slope) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("initialization", ["marginal", "standard_normal"])
def test_symmetrized_kl_of_an_initialization(initialization: str) -> None:
    """DDIM without noise, by its two factors."""
    variance = 0.3
    mean = 0.7
    theta = np.array([T, 0.4, 0.0])
    a = np.exp(-0.5 * theta)
    marginal = 1.0 + (variance - 1.0) * a**2
    values = []
    for sign in (0.1, -0.1):
        exact = initialization == "marginal"
        m = a[0] * mean if exact else 0.0
        v = marginal[0] if exact else 1.0
        for k in range(2):
            slope = -(1.0 + sign) / marginal[k]
            n = 1.0 - a[k] ** 2
            r = 1.0 - a[k + 1] ** 2
            push = a[k + 1] * n / a[k] - np.sqrt(r * n)
            keep = a[k + 1] / a[k]
            m = keep * m + push * slope * (m - a[k] * mean)
            v = (keep + push * slope) ** 2 * v
        values.append(0.5 * (np.log(v / variance) + (variance + (m - mean) ** 2) / v - 1.0))
    kl = SymmetrizedKL(
        jk.Gaussian(mean, [variance]),
        jnp.ones_like,
        jk.OU(rate=1.0, t_max=T),
        jk.DDIM(),
        0.1,
        initialization,
    )
    np.testing.assert_allclose(kl(jk.Schedule(theta)), np.mean(values), rtol=1e-6)


def test_unknown_initialization() -> None:
    target = jk.Gaussian(0.0, [0.3])
    with pytest.raises(ValueError, match="initialization='normal' is not known"):
        terminal_distribution(target, [0.0, T], 1.0, 0.1, initialization="normal")
    with pytest.raises(ValueError, match="initialization='normal' is not known"):
        SymmetrizedKL(target, jnp.ones_like, jk.OU(), jk.DDIM(), 0.1, "normal")
