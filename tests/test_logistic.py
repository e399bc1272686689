"""The posterior of a penalised logistic regression, of which benchmarks measure strong errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from logistic_posterior import COVARIANCE, MEAN

import jaxkernels as jk
from benchmarks.discretisation import coupled_paths
from benchmarks.discretisation.logistic import (
    FEATURES,
    LABELS,
    PROCESS,
    log_density,
    samples,
    score,
)


def test_its_moments_by_quadrature() -> None:
    """Known from an independent computation; and the bounds that need no quadrature hold."""
    grid = np.linspace(-9.0, 9.0, 721)
    theta = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    mass = np.exp(np.asarray(log_density(jnp.asarray(theta))))
    total = mass.sum() * (grid[1] - grid[0]) ** 2
    assert np.log(total) == pytest.approx(0.892675725, abs=1e-8)
    mass /= mass.sum()
    mean = np.einsum("ij,ijd->d", mass, theta)
    covariance = np.einsum("ij,ijd,ije->de", mass, theta - mean, theta - mean)
    np.testing.assert_allclose(mean, MEAN, atol=1e-8)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=1e-8)
    known = jk.bounds.Assumptions.of_logistic_regression(jk.OU(), FEATURES, LABELS, 1.0)
    assert mean @ mean + np.trace(covariance) <= float(known.second_moment)


def test_its_score_is_the_gradient_of_the_noised_density() -> None:
    """By a sum over a grid of the data, at three times."""
    grid = np.linspace(-7.0, 7.0, 281)
    theta = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(np.asarray(log_density(jnp.asarray(theta))))
    points = np.array([[0.5, -1.0], [-1.5, 0.3]])
    for t in (0.2, 0.5, 2.0):
        a, s = float(PROCESS.signal(t)), float(PROCESS.noise(t))
        weights = mass * np.exp(-0.5 * np.sum((points[:, None] - a * theta) ** 2, -1) / s**2)
        mean = weights @ theta / weights.sum(1, keepdims=True)
        expected = (a * mean - points) / s**2
        found = score(jnp.asarray(points), jnp.asarray(t), 30)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        # the nodes that the samplers below are run with
        few = score(jnp.asarray(points), jnp.asarray(t))
        np.testing.assert_allclose(few, expected, atol=1e-4)


@functools.cache
def _end(name: str, steps: int) -> Array:
    denoiser = jk.Denoiser(score, PROCESS, "score")
    start, path = coupled_paths.noised(samples(1500), PROCESS, 768, jax.random.key(1))
    return coupled_paths.ends(name, steps, denoiser, start, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected", "least"),
    [
        ("euler_maruyama", (0.1461, 0.07125, 0.0346), 0.94),
        ("exponential_integrator", (0.2599, 0.1232, 0.0590), 0.94),
        ("second_order", (0.01117, 0.003396, 0.001035), 0.94),
        ("rem", (0.1686, 0.0796, 0.0390), 0.67),
        ("rei", (0.3256, 0.1451, 0.0695), 0.67),
        ("tweedie", (0.00744, 0.002485, 0.000840), 0.67),
    ],
)
def test_strong_errors_are_the_known_ones(
    name: str, expected: tuple[float, ...], least: float
) -> None:
    """6, 12 and 24 steps, from 6000 particles of an independent computation; and certified.

    That one drew the noise of midpoints, and of "tweedie", from the integrals of e^(L v) over whole
    steps. Here they follow the path within the step, and end up closer to the reference.
    """
    known = jk.bounds.Assumptions.of_logistic_regression(PROCESS, FEATURES, LABELS, 1.0)
    reference = _end("tweedie", 192)
    for steps, value in zip((6, 12, 24), expected, strict=True):
        error = float(jnp.sqrt(jnp.mean(jnp.sum((_end(name, steps) - reference) ** 2, -1))))
        assert least * value < error < 1.06 * value
        schedule = jk.Schedule(np.linspace(2.0, 0.0, steps + 1), 1.0)
        run = (known, PROCESS, name, schedule)
        bound = jk.bounds.certified_bound(*run, initialization="marginal")
        assert error < float(bound.value)
