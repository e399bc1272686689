"""A mixture of three Gaussians whose experts and router are known exactly, twice.

In NumPy for oracles; and as networks of few operations, which compile in a quarter of the time of
`Experts.of_mixture`.
"""

import jax.numpy as jnp
import numpy as np

import jaxkernels as jk
from jaxkernels import routing

ANGLES = np.deg2rad([90.0, 210.0, 330.0])
MEANS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
WEIGHTS = np.array([0.5, 0.3, 0.2])
VARIANCE = 0.49
COSINE = jk.CosineVP(offset=0.0)
MIXTURE = jk.GaussianMixture(WEIGHTS, MEANS, np.full(3, VARIANCE))


def _network(i: int) -> jk.Denoiser:
    def denoised(x, t):
        a = jnp.cos(np.pi / 2 * t)
        z = x - a * MEANS[i]
        return MEANS[i] + a * VARIANCE * z / (a**2 * VARIANCE + 1.0 - a**2)

    return jk.Denoiser(denoised, COSINE, "x0")


def _router(x, t):
    """log w_i N(x; a mu_i, a^2 q + s^2), up to what all components share; all |mu_i| are 1."""
    a = jnp.cos(np.pi / 2 * t)
    return np.log(WEIGHTS) + a * x @ MEANS.T / (a**2 * VARIANCE + 1.0 - a**2)


EXPERTS = routing.Experts([_network(i) for i in range(3)], _router)


def parts(x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and velocities of the components under the cosine process.

    v_i = a' (mu_i + a (q - 1) x) / (a^2 q + s^2) for isotropic components of variance q
    """
    a = np.cos(np.pi / 2 * t)
    variance = a**2 * VARIANCE + 1.0 - a**2
    z = x[..., None, :] - a * MEANS
    logs = np.log(WEIGHTS) - 0.5 * np.sum(z**2, -1) / variance
    pi = np.exp(logs - logs.max(-1, keepdims=True))
    pi = pi / pi.sum(-1, keepdims=True)
    rate = -np.pi / 2 * np.sin(np.pi / 2 * t)
    return pi, rate * (MEANS + a * (VARIANCE - 1.0) * x[..., None, :]) / variance


def flow(x: np.ndarray, t: float, u: float, steps: int) -> np.ndarray:
    """Follow the flow from t to u by RK4."""

    def velocity(x: np.ndarray, r: float) -> np.ndarray:
        return np.einsum("...i,...id->...d", *parts(x, r))

    h = (u - t) / steps
    for j in range(steps):
        r = t + j * h
        k1 = velocity(x, r)
        k2 = velocity(x + h / 2 * k1, r + h / 2)
        k3 = velocity(x + h / 2 * k2, r + h / 2)
        k4 = velocity(x + h * k3, r + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
