"""Covariances that couple times, modes and entries of matrices, against NumPy's own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels.score_error import fit_separable

PROCESS = jk.VP()
VARIANCES = np.array([1.5, 0.4])
TARGET = jk.Gaussian(0.0, VARIANCES)
TIMES = np.array([1.0, 0.5, 0.2])
NUM = TIMES.size
# parameters (slopes, shifts) of two modes: slopes per mode, or matrices
SIZES = {"per mode": 4, "matrices": 6}


def _random_covariance(size: int, seed: int = 0) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((size, size))
    return 1e-4 * root @ root.T / size


def _found(error: jk.ScoreError, times: np.ndarray = TIMES) -> np.ndarray:
    """The covariance (n, P, n, P) of an error's directions."""
    w = error.directions(TARGET, PROCESS, jnp.asarray(times))
    assert w is not None
    rows = np.concatenate([np.asarray(w.slope).reshape(*w.shift.shape[:2], -1), w.shift], -1)
    return np.einsum("rap,rbq->apbq", rows, rows)


def _signal_and_noise(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    integral = 0.1 * times + 9.95 * times**2
    return np.exp(-0.5 * integral), np.sqrt(-np.expm1(-integral))


def _decay(length: float, times: np.ndarray = TIMES) -> np.ndarray:
    """exp(-|difference of log SNR| / length)."""
    a, s = _signal_and_noise(times)
    u = 2.0 * np.log(a / s)
    return np.exp(-np.abs(u[:, None] - u) / length)


def _error(schedule: np.ndarray, parameters: np.ndarray) -> float:
    """Squared W2 of data and samples of DDIM with errors (steps, 6), in matrices."""
    a, s = _signal_and_noise(schedule)
    mean = np.zeros(2)
    covariance = np.eye(2)
    for k in range(len(schedule) - 1):
        push = (a[k + 1] * s[k] / a[k] - s[k + 1]) * s[k]
        exact = np.diag(1.0 / (a[k] ** 2 * VARIANCES + s[k] ** 2))
        slope = parameters[k, :4].reshape(2, 2)
        factor = a[k + 1] / a[k] * np.eye(2) - push * (exact + slope)
        mean = factor @ mean + push * parameters[k, 4:]
        covariance = factor @ covariance @ factor.T
    root = np.diag(np.sqrt(VARIANCES))
    # the trace of the square root, from the eigenvalues
    cross = np.sum(np.sqrt(np.linalg.eigvalsh(root @ covariance @ root)))
    return float(mean @ mean + np.sum(VARIANCES) + np.trace(covariance) - 2.0 * cross)


@pytest.mark.parametrize("form", SIZES)
def test_blocks_come_back(form: str) -> None:
    """Also with a negative eigenvalue, on request without it."""
    size = SIZES[form]
    covariance = _random_covariance(NUM * size)
    error = jk.ScoreError.from_block_covariance(TIMES, covariance.reshape(NUM, size, NUM, size), 2)
    assert error.has_matrix_slopes == (form == "matrices")
    found = _found(error).reshape(covariance.shape)
    np.testing.assert_allclose(found, covariance, atol=1e-14)
    values, vectors = np.linalg.eigh(covariance)
    shifted = (vectors * (values - np.median(values))) @ vectors.T
    blocks = shifted.reshape(NUM, size, NUM, size)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        jk.ScoreError.from_block_covariance(TIMES, blocks, 2)
    projected = jk.ScoreError.from_block_covariance(TIMES, blocks, 2, project=True)
    expected = (vectors * np.maximum(values - np.median(values), 0.0)) @ vectors.T
    np.testing.assert_allclose(_found(projected).reshape(shifted.shape), expected, atol=1e-14)


def test_what_blocks_cost() -> None:
    """Half the second derivative along every eigenvector, by differences of a NumPy recurrence."""
    schedule = np.append(TIMES, 0.05)
    covariance = _random_covariance(NUM * 6)
    error = jk.ScoreError.from_block_covariance(TIMES, covariance.reshape(NUM, 6, NUM, 6), 2)
    kernel = jk.error_kernel(TARGET, PROCESS, "ddim", jk.Schedule(schedule), dense=True)
    values, vectors = np.linalg.eigh(covariance)
    small = 1e-3
    here = _error(schedule, np.zeros((NUM, 6)))
    expected = 0.0
    for value, w in zip(values, vectors.T):
        there, back = (_error(schedule, e * small * w.reshape(NUM, 6)) for e in (1.0, -1.0))
        expected += value * (0.5 * (there + back) - here) / small**2
    assert float(kernel.contract(error)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", SIZES)
def test_a_separable_covariance_is_a_kronecker_product(form: str) -> None:
    matrix = _random_covariance(SIZES[form])
    error = jk.ScoreError.separable(
        matrix, 2, jk.OrnsteinUhlenbeck(1.7), amplitude=lambda t: 1.0 + t
    )
    expected = np.einsum("ab,pq->apbq", _decay(1.7) * np.outer(1.0 + TIMES, 1.0 + TIMES), matrix)
    np.testing.assert_allclose(_found(error), expected, atol=1e-12)


@pytest.mark.parametrize("form", SIZES)
def test_a_separable_covariance_is_fitted_exactly(form: str) -> None:
    size = SIZES[form]
    matrix = _random_covariance(size)
    amplitude = np.array([0.5, 2.0, 1.0])
    covariance = np.einsum("ab,pq->apbq", _decay(2.5) * np.outer(amplitude, amplitude), matrix)
    mean = jk.AffineError(jnp.full((NUM, 2), 0.3), jnp.full((NUM, 2), 0.1))
    fit = fit_separable(PROCESS, TIMES, covariance, 2, mean)
    assert fit.length == pytest.approx(2.5, rel=1e-5)
    assert fit.residual < 1e-5
    np.testing.assert_allclose(_found(fit.score_error), covariance, atol=1e-5 * covariance.max())
    known = fit.score_error.mean_at(TARGET, PROCESS, jnp.asarray(TIMES))
    assert known is not None
    np.testing.assert_allclose(known.slope, mean.slope)


def test_covariances_per_mode_are_fitted() -> None:
    """As an estimate has them; what is no covariance in them is in the residual."""
    matrices = np.stack([_random_covariance(2, seed) for seed in (1, 2)], -1)
    covariance = np.einsum("ab,pqi->apbqi", _decay(2.5), matrices)
    fit = fit_separable(PROCESS, TIMES, covariance, 2)
    assert fit.residual < 1e-5
    found = _found(fit.score_error).reshape(NUM, 2, 2, NUM, 2, 2)
    expected = np.einsum("apbqi,ij->apibqj", covariance, np.eye(2))
    np.testing.assert_allclose(found, expected, atol=1e-5 * covariance.max())
    matrices[:, :, 1] = 1e-5 * np.array([[1.0, 2.0], [2.0, 1.0]])
    fit = fit_separable(PROCESS, TIMES, np.einsum("ab,pqi->apbqi", _decay(2.5), matrices), 2)
    lost = 1e-5 / np.linalg.norm(matrices)
    assert fit.residual == pytest.approx(lost, rel=1e-4)


def test_the_residual_says_what_is_not_separable() -> None:
    """Slopes that are the same at all times and shifts that are independent: no single rho."""
    rho = np.stack([np.ones((NUM, NUM))] * 2 + [np.eye(NUM)] * 2)
    covariance = np.einsum("pab,pq->apbq", rho, np.eye(4))
    fit = fit_separable(PROCESS, TIMES, covariance, 2)
    left = np.linalg.norm(covariance - _found(fit.score_error)) / np.linalg.norm(covariance)
    assert fit.residual == pytest.approx(left, rel=1e-9)
    assert fit.residual > 0.3


def test_few_draws_determine_a_separable_covariance() -> None:
    """The mean square error of a sample covariance is (|C|^2 + (tr C)^2) / R; the fit's is less."""
    times = np.linspace(1.0, 0.05, 12)
    size = 4
    draws = 10
    covariance = np.einsum("ab,pq->apbq", _decay(4.0, times), _random_covariance(size))
    flat = covariance.reshape(12 * size, -1)
    root = np.linalg.cholesky(flat)
    rng = np.random.default_rng(0)
    sampled, fitted = [], []
    for _ in range(40):
        x = rng.standard_normal((draws, len(flat))) @ root.T
        found = x.T @ x / draws
        sampled.append(np.linalg.norm(found - flat) ** 2)
        fit = fit_separable(PROCESS, times, found.reshape(covariance.shape), 2)
        model = _found(fit.score_error, times).reshape(flat.shape)
        fitted.append(np.linalg.norm(model - flat) ** 2)
    expected = (np.linalg.norm(flat) ** 2 + np.trace(flat) ** 2) / draws
    doubt = np.std(sampled) / np.sqrt(40)
    assert abs(np.mean(sampled) - expected) < 4.0 * doubt
    assert np.mean(fitted) < 0.7 * np.mean(sampled)


def test_samples_of_matrices_have_the_covariance() -> None:
    covariance = _random_covariance(NUM * 6).reshape(NUM, 6, NUM, 6)
    error = jk.ScoreError.from_block_covariance(TIMES, covariance, 2)
    drawn = error.sample(jax.random.key(0), TARGET, PROCESS, jnp.asarray(TIMES), 100_000)
    rows = np.concatenate([drawn.slope.reshape(-1, NUM, 4), drawn.shift], -1).reshape(100_000, -1)
    exact = covariance.reshape(NUM * 6, -1)
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.max(np.abs(rows.T @ rows / 1e5 - exact) / scale) < 5.0 * np.sqrt(2.0 / 1e5)


EYE = np.eye(4)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "shape": (lambda: jk.ScoreError.separable(np.eye(5), 2), "for slopes per mode or"),
    "no matrix": (lambda: jk.ScoreError.separable(np.ones(4), 2), "must be a square matrix"),
    "asymmetric": (lambda: jk.ScoreError.separable(EYE + np.eye(4, k=1), 2), "not symmetric"),
    "negative": (lambda: jk.ScoreError.separable(-EYE, 2), "negative eigenvalue -1"),
    "modes": (lambda: jk.ScoreError.separable(EYE, 0), "num_modes = 0"),
    "blocks": (
        lambda: jk.ScoreError.from_block_covariance(TIMES, EYE, 2),
        r"it must be \(3, 4, 3, 4\)",
    ),
    "increasing": (
        lambda: jk.ScoreError.from_block_covariance([0.1, 1.0], np.zeros((2, 4, 2, 4)), 2),
        "strictly decreasing",
    ),
    "one time": (lambda: fit_separable(PROCESS, [1.0], np.zeros((1, 4, 1, 4)), 2), "two or more"),
    "no trace": (lambda: fit_separable(PROCESS, TIMES, np.zeros((3, 4, 3, 4)), 2), "trace 0"),
    "coordinate": (
        lambda: fit_separable(
            PROCESS, TIMES, np.einsum("ab,pq->apbq", np.eye(3), EYE), 2, coordinate="sigma"
        ),
        "coordinate",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
