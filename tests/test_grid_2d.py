"""L of two-dimensional densities on a grid, against a closed form, a rotation and particles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels.reverse_sde import leading_order_2d

T = 1.5


def _leading_order(
    mean: np.ndarray,
    covariance: np.ndarray,
    matrix: np.ndarray,
    shift: np.ndarray,
    alpha2: float,
) -> float:
    """L of a Gaussian with E = e^-theta (matrix x + shift), by central differences in eps.

    Moments of the reverse equation by the classical Runge-Kutta method, and KL in closed form.
    """

    def rate(theta: float, m: np.ndarray, s: np.ndarray, eps: float) -> tuple[np.ndarray, ...]:
        signal2 = np.exp(-theta)
        precision = np.linalg.inv(signal2 * covariance + (1.0 - signal2) * np.eye(2))
        at = np.sqrt(signal2) * mean
        size = 0.5 * (1.0 + alpha2)
        drift = 0.5 * np.eye(2) + size * (eps * signal2 * matrix - precision)
        push = size * (precision @ at + eps * signal2 * shift)
        return drift @ m + push, drift @ s + s @ drift.T + alpha2 * np.eye(2)

    def kl(eps: float) -> float:
        signal2 = np.exp(-T)
        m = np.sqrt(signal2) * mean
        s = signal2 * covariance + (1.0 - signal2) * np.eye(2)
        steps = 400
        h = T / steps
        for k in range(steps):
            theta = T - k * h
            m1, s1 = rate(theta, m, s, eps)
            m2, s2 = rate(theta - 0.5 * h, m + 0.5 * h * m1, s + 0.5 * h * s1, eps)
            m3, s3 = rate(theta - 0.5 * h, m + 0.5 * h * m2, s + 0.5 * h * s2, eps)
            m4, s4 = rate(theta - h, m + h * m3, s + h * s3, eps)
            m = m + h / 6.0 * (m1 + 2.0 * m2 + 2.0 * m3 + m4)
            s = s + h / 6.0 * (s1 + 2.0 * s2 + 2.0 * s3 + s4)
        inverse = np.linalg.inv(s)
        logs = np.linalg.slogdet(s)[1] - np.linalg.slogdet(covariance)[1]
        moved = m - mean
        return 0.5 * (logs - 2.0 + np.trace(inverse @ covariance) + moved @ inverse @ moved)

    eps = 1e-3
    return (kl(eps) + kl(-eps) - 2.0 * kl(0.0)) / (2.0 * eps**2)


def test_a_correlated_gaussian_with_a_matrix_error() -> None:
    covariance = np.array([[0.5, 0.3], [0.3, 0.8]])
    mean = np.array([0.4, -0.3])
    matrix = np.array([[-1.5, 0.8], [0.5, -0.7]])
    shift = np.array([0.3, 0.6])

    def error(x: jax.Array, theta: jax.Array, score: jax.Array) -> jax.Array:
        return jnp.exp(-theta) * (matrix @ x + shift)

    target = jk.GaussianMixture([1.0], mean[None], covariance[None])
    for alpha2 in (0.3, 2.0):
        found = leading_order_2d(target, error, alpha2, T, cells=80, time_steps=48)
        exact = _leading_order(mean, covariance, matrix, shift, alpha2)
        assert float(found.value) == pytest.approx(exact, rel=2e-4)
        assert float(found.discretization_error) < 1e-3 * exact
        # the rate at which the mean of the samples moves, from the response
        u, masses, nodes = (
            np.asarray(a) for a in (found.density_response, found.masses, found.nodes)
        )
        assert masses.sum() == pytest.approx(1.0, abs=1e-6)
        assert abs(masses @ u) < 1e-2 * (masses @ np.abs(u))
        assert nodes.shape == (u.size, 2)


@pytest.mark.slow
def test_a_rotated_product_of_mixtures() -> None:
    """Four modes on a square, turned by 45 degrees: L is twice that of one coordinate."""
    m = 0.6
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2.0)
    corners = m * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    target = jk.GaussianMixture(np.full(4, 0.25), corners @ turn.T, np.full(4, 0.2))
    one = jk.GaussianMixture([0.5, 0.5], [[-m], [m]], [0.2, 0.2])
    found = leading_order_2d(target, "score", 1.0, 2.0, cells=128, time_steps=64)
    exact = jk.leading_order_1d(one, "score", 1.0, 2.0, cells=256, time_steps=64)
    assert float(found.value) == pytest.approx(2.0 * float(exact.value), rel=1e-4)


@pytest.mark.slow
def test_particles_of_a_density_that_is_no_product() -> None:
    """Three unlike modes and an error that is no gradient, in NumPy: E phi moves by eps sum u phi.

    The perturbed reverse equation with +-eps and common noise, by a method of weak order 2, from
    the exact distribution; for phi = u the mean moves by 2 L eps.
    """
    weights = np.array([0.5, 0.3, 0.2])
    means = np.array([[-0.8, 0.2], [0.9, 0.7], [0.3, -1.0]])
    variances = np.array([0.25, 0.35, 0.3])
    alpha2 = 1.0
    time = 1.0
    steps = 60
    eps = 0.02
    count = 60_000
    rng = np.random.default_rng(0)

    def error(x: jax.Array, theta: jax.Array, score: jax.Array) -> jax.Array:
        return jnp.exp(-theta) * jnp.stack([jnp.sin(2.0 * x[1]) + x[0], -x[0] * x[1]])

    target = jk.GaussianMixture(weights, means, variances)
    found = leading_order_2d(target, error, alpha2, time, cells=96, time_steps=48)

    def drift(y: np.ndarray, theta: float) -> np.ndarray:
        v = 1.0 + (variances - 1.0) * np.exp(-theta)
        r = y[..., None, :] - np.exp(-theta / 2.0) * means
        p = weights * np.exp(-np.sum(r**2, -1) / (2.0 * v)) / v
        score = -np.sum(p[..., None] * r / v[:, None], -2) / np.sum(p, -1)[..., None]
        x0, x1 = y[..., 0], y[..., 1]
        push = np.exp(-theta) * np.stack([np.sin(2.0 * x1) + x0, -x0 * x1], -1)
        sign = np.array([1.0, -1.0])[:, None, None]
        return 0.5 * y + 0.5 * (1.0 + alpha2) * (score + eps * sign * push)

    mode = rng.choice(3, size=count, p=weights)
    scale = np.sqrt(1.0 + (variances - 1.0) * np.exp(-time))
    y = np.exp(-time / 2.0) * means[mode] + scale[mode, None] * rng.standard_normal((count, 2))
    y = np.tile(y, (2, 1, 1))
    dt = time / steps
    for k in range(steps):
        noise = np.sqrt(alpha2 * dt) * rng.standard_normal((count, 2))
        first = drift(y, time - k * dt)
        second = drift(y + dt * first + noise, time - (k + 1) * dt)
        y = y + 0.5 * dt * (first + second) + noise
    nodes, masses, u = (np.asarray(a) for a in (found.nodes, found.masses, found.density_response))
    tests = {
        "x": lambda x: x[..., 0],
        "xy": lambda x: x[..., 0] * x[..., 1],
        "wave": lambda x: np.cos(2.0 * x[..., 1]),
    }
    for phi in tests.values():
        moved = (phi(y[0]) - phi(y[1])) / (2.0 * eps)
        expected = np.sum(masses * u * phi(nodes))
        assert abs(moved.mean() - expected) < 4.0 * moved.std() / np.sqrt(count) + 2e-3
    pairs = jk.reverse_sde.leading_order_samples(
        target, error, alpha2, time, jax.random.key(0), num_samples=20_000, time_steps=60
    )
    assert abs(pairs.value - float(found.value)) < 4.0 * pairs.standard_error


def test_wrong_arguments() -> None:
    target = jk.GaussianMixture([1.0], [[0.0, 0.0]], [0.5])
    with pytest.raises(ValueError, match="stochasticity_squared = 0"):
        leading_order_2d(target, "score", 0.0, T)
    with pytest.raises(ValueError, match="in two dimensions"):
        leading_order_2d(jk.GaussianMixture([1.0], [[0.0]], [0.5]), "score", 1.0, T)
    with pytest.raises(ValueError, match="must be > 0"):
        leading_order_2d(jk.GaussianMixture([1.0], [[0.0, 0.0]], [0.0]), "score", 1.0, T)
    with pytest.raises(ValueError, match="error returned shape"):
        leading_order_2d(target, lambda x, theta, score: x[:1], 1.0, T)
    with pytest.raises(ValueError, match="cells = 8"):
        leading_order_2d(target, "score", 1.0, T, cells=8)
