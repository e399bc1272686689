"""L of densities that are no product, by pairs of paths, against closed forms and a rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels.reverse_sde import affine_leading_order, leading_order_samples

T = 1.5


def test_a_correlated_gaussian_with_a_matrix_error() -> None:
    """Within four standard errors of the closed form, which couples the coordinates."""
    covariance = np.array([[0.5, 0.3], [0.3, 0.8]])
    mean = np.array([0.4, -0.3])
    matrix = jnp.asarray([[-1.5, 0.8], [0.5, -0.7]])
    shift = jnp.asarray([0.3, 0.6])

    def error(x: jax.Array, theta: jax.Array, score: jax.Array) -> jax.Array:
        return jnp.exp(-theta) * (matrix @ x + shift)

    variances, basis = np.linalg.eigh(covariance)
    gaussian = jk.Gaussian(mean, variances, basis=basis)
    mixture = jk.GaussianMixture([1.0], mean[None], covariance[None])
    for alpha2 in (0.0, 2.0):
        found = leading_order_samples(
            mixture, error, alpha2, T, jax.random.key(0), num_samples=20_000, time_steps=60
        )
        exact = float(
            affine_leading_order(
                gaussian,
                [0.0, T],
                alpha2,
                lambda theta: jnp.exp(-theta) * matrix,
                lambda theta: jnp.exp(-theta) * shift,
            )
        )
        assert abs(found.value - exact) < 4.0 * found.standard_error
        assert found.standard_error < 0.05 * exact


@pytest.mark.slow
def test_a_rotated_product_of_mixtures() -> None:
    """Four modes on a square, turned by 45 degrees: L is twice that of one coordinate."""
    m = 0.6
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2.0)
    corners = m * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    target = jk.GaussianMixture(np.full(4, 0.25), corners @ turn.T, np.full(4, 0.2))
    one = jk.GaussianMixture([0.5, 0.5], [[-m], [m]], [0.2, 0.2])
    found = leading_order_samples(
        target, "score", 1.0, 2.0, jax.random.key(1), num_samples=20_000, time_steps=60
    )
    exact = jk.leading_order_1d(one, "score", 1.0, 2.0, cells=64, time_steps=32, richardson=False)
    assert abs(found.value - 2.0 * float(exact.value)) < 4.0 * found.standard_error
    assert found.standard_error < 0.1 * found.value


def test_wrong_arguments() -> None:
    target = jk.GaussianMixture([1.0], [[0.0, 0.0]], [0.5])
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="error returned shape"):
        leading_order_samples(target, lambda x, theta, score: x[:1], 1.0, T, key)
    with pytest.raises(ValueError, match="must be > 0"):
        leading_order_samples(jk.GaussianMixture([1.0], [[0.0]], [0.0]), "score", 1.0, T, key)
