"""A mixture that is fitted to the denoised points of a network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk

PROCESS = jk.VP()
T_MIN = 1e-3
WEIGHTS = np.array([0.4, 0.6])
MEANS = np.array([[1.0, 0.0], [-1.0, 0.5]])
VARIANCES = np.array([[0.1, 0.05], [0.02, 0.2]])
TRUE = jk.GaussianMixture(WEIGHTS, MEANS, VARIANCES)
# what data that are not the network's would speak for
NEAR = jk.GaussianMixture(
    [0.45, 0.55], MEANS + np.array([[0.1, 0.05], [-0.05, 0.1]]), 1.3 * VARIANCES
)


def _record(denoiser: jk.AbstractDenoiser, noise: np.ndarray) -> jk.DenoisedRecord:
    rows: Any = noise
    return jk.record_denoised(denoiser, rows, t_min=T_MIN, nodes=24, progress=False)


@pytest.fixture(scope="module")
def record() -> jk.DenoisedRecord:
    noise = np.random.default_rng(0).standard_normal((96, 2))
    return _record(TRUE.denoiser(PROCESS), noise)


def _denoised(x: np.ndarray, sigma: float, a: float, mixture: jk.GaussianMixture) -> np.ndarray:
    """E[x0 | x] of a mixture with axes along the coordinates, by Bayes' rule, in NumPy."""
    means = np.asarray(mixture.means)
    variances = np.asarray(mixture.eigenvalues)
    total = a**2 * (variances + sigma**2)
    y = x[:, None] - a * means
    logs = np.log(mixture.weights) - 0.5 * np.sum(y**2 / total + np.log(total), -1)
    weights = np.exp(logs - logs.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    inside = means + a * variances / total * y
    return np.sum(weights[..., None] * inside, 1)


def _loss(mixture: jk.GaussianMixture, made: jk.DenoisedRecord) -> float:
    """The loss of the docstring, by what a mixture with axes along the coordinates predicts."""
    points = np.asarray(made.points, np.float64)
    ends = np.asarray(made.ends)
    sigmas = np.geomspace(
        float(PROCESS.sigma(np.asarray(1.0))), float(PROCESS.sigma(np.asarray(T_MIN))), len(points)
    )
    total = 0.0
    for x, expected, sigma in zip(points, np.asarray(made.denoised), sigmas, strict=True):
        # of the variance-preserving process
        a = 1.0 / np.sqrt(1.0 + sigma**2)
        factor = ends.var(0) / (ends.var(0) + sigma**2)
        found = _denoised(x, sigma, a, mixture)
        total += float(np.sum(factor * np.var(found - expected, 0)))
    return total / len(points)


def test_the_mixture_of_the_network_is_found(record: jk.DenoisedRecord) -> None:
    found = record.fit_mixture(NEAR)
    np.testing.assert_allclose(found.weights, WEIGHTS, atol=0.03)
    np.testing.assert_allclose(found.means, MEANS, atol=0.03)
    np.testing.assert_allclose(found.eigenvalues, VARIANCES, rtol=0.15)


def test_the_loss_is_lower_on_other_trajectories(record: jk.DenoisedRecord) -> None:
    other = _record(TRUE.denoiser(PROCESS), np.random.default_rng(1).standard_normal((64, 2)))
    assert _loss(TRUE, other) < 1e-8
    assert _loss(record.fit_mixture(NEAR), other) < 0.01 * _loss(NEAR, other)


def test_nothing_but_the_record_is_needed(record: jk.DenoisedRecord) -> None:
    """From a mixture of the end points, one component for twelve of the three quarters."""
    other = _record(TRUE.denoiser(PROCESS), np.random.default_rng(1).standard_normal((64, 2)))
    found = record.fit_mixture()
    assert found.weights.shape == (6,)
    ends = jk.GaussianMixture.fit(np.asarray(record.ends), 6)
    assert _residual(found, other) < 0.5 * _residual(ends, other)


def _residual(mixture: jk.GaussianMixture, made: jk.DenoisedRecord) -> float:
    """Mean square of what a denoiser gets wrong along trajectories."""
    model = mixture.denoiser(PROCESS)
    nodes = zip(made.node_times, made.points, made.denoised, strict=True)
    return float(np.mean([np.mean((d - model(jnp.asarray(x), t).x0) ** 2) for t, x, d in nodes]))


def test_a_network_of_the_known_mixture_moves_nothing(record: jk.DenoisedRecord) -> None:
    found = record.fit_mixture(TRUE)
    np.testing.assert_allclose(found.means, MEANS, atol=1e-3)
    np.testing.assert_allclose(found.eigenvalues, VARIANCES, rtol=1e-2)


def test_axes_that_few_samples_span_are_kept() -> None:
    """Twelve samples in sixteen dimensions; the network has the mean of all, orthogonal to them."""
    samples = np.random.default_rng(2).standard_normal((12, 16)) * np.geomspace(1.0, 0.1, 16)
    known = jk.GaussianMixture.fit(samples, 2)
    noise = np.random.default_rng(3).standard_normal((16, 16))
    gaussian = jk.Gaussian(0.2, np.geomspace(1.0, 0.01, 16))
    made = _record(gaussian.denoiser(PROCESS), noise)
    found = made.fit_mixture(known)
    assert found.means.shape[1] == 16
    assert np.all(np.isfinite(found.means))
    assert _residual(found, made) <= _residual(known, made)


def test_few_trajectories_move_nothing() -> None:
    made = _record(TRUE.denoiser(PROCESS), np.random.default_rng(4).standard_normal((4, 2)))
    assert made.fit_mixture(NEAR) is NEAR
    assert made.fit_mixture().weights.shape == (1,)


def test_a_mixture_of_other_dimensions_is_refused(record: jk.DenoisedRecord) -> None:
    wrong = jk.GaussianMixture([1.0], np.zeros((1, 3)), [1.0])
    with pytest.raises(ValueError, match="known must be a GaussianMixture of 2 dimensions"):
        record.fit_mixture(wrong)


def test_double_precision(record: jk.DenoisedRecord) -> None:
    """The same optimum from a record in double precision."""
    with jax.enable_x64(True):
        noise = jnp.asarray(np.asarray(record.noise, np.float64))
        made = jk.record_denoised(TRUE.denoiser(PROCESS), noise, t_min=T_MIN, nodes=24)
        found = made.fit_mixture(NEAR)
    assert made.points.dtype == np.float64
    np.testing.assert_allclose(found.means, MEANS, atol=0.03)
