"""The posterior of a penalised logistic regression, a log-concave density that is not Gaussian.

Two parameters theta of eight labelled points with

    log p_0 = -|theta|^2 / 2 - mean log(1 + exp(-y x.theta)) + constant.

Its score under an OU process is an expectation over theta given x, which has the density N(c, 1/P)
times the likelihood, P = 1 + a^2 / s^2 and c = a x / (s^2 P), by Gauss-Hermite quadrature.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxkernels as jk

FEATURES = np.array([[2.0 * np.cos(i), 2.0 * np.sin(2.0 * i)] for i in range(1, 9)])
LABELS = np.sign(np.cos(np.arange(1, 9)) + 0.5 * np.sin(np.arange(1, 9)))
PENALTY = 1.0
PROCESS = jk.OU(t_max=2.0)


def log_density(theta: Float[Array, "*s 2"]) -> Float[Array, "*s"]:
    """Up to a constant."""
    margins = LABELS * (theta @ FEATURES.T)
    prior = 0.5 * PENALTY * jnp.sum(theta**2, -1)
    return -prior - jnp.mean(jnp.logaddexp(0.0, -margins), -1)


def quadrature(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (count^2, 2) and logs of weights of the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    points = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    logs = np.log(weights)
    return points, np.add.outer(logs, logs).ravel()


def score(x: Float[Array, "*s 2"], t: Array, count: int = 14) -> Float[Array, "*s 2"]:
    """E[grad log p_0(theta) | x] / a, for a scalar t > 0.

    Nothing is divided by s^2: as t -> 0 the score of the data is left.
    """
    points, logs = quadrature(count)
    a = PROCESS.signal(t)
    precision = PENALTY + (a / PROCESS.noise(t)) ** 2
    center = a * x / (PROCESS.noise(t) ** 2 * precision)
    theta = center[..., None, :] + points / jnp.sqrt(precision)
    likelihood = log_density(theta) + 0.5 * PENALTY * jnp.sum(theta**2, -1)
    weights = jax.nn.softmax(logs + likelihood, -1)
    slopes = jax.grad(lambda theta: jnp.sum(log_density(theta)))(theta)
    return jnp.einsum("...n,...nd->...d", weights, slopes) / a


def samples(count: int) -> Float[Array, "count 2"]:
    """Exact draws, by rejection of draws of the prior."""
    draw_key, keep_key = jax.random.split(jax.random.key(0))
    theta = jax.random.normal(draw_key, (8 * count, 2)) / np.sqrt(PENALTY)
    chance = jnp.exp(log_density(theta) + 0.5 * PENALTY * jnp.sum(theta**2, -1))
    kept = theta[jax.random.uniform(keep_key, (8 * count,)) < chance]
    assert len(kept) >= count
    return kept[:count]
