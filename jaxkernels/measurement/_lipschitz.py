"""The spectral norm of a denoiser's Jacobian, by power iteration on J^T J."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._nfe import EVALUATION, JACOBIAN_VECTOR_PRODUCT, VECTOR_JACOBIAN_PRODUCT
from .._numerics import safe_divide
from ..prediction import AbstractDenoiser

MAX_ITERATIONS = 40
_TOLERANCE = 1e-4
# at every point: the Jacobian's product with a vector, then the transpose's
ITERATION_NFE = EVALUATION + JACOBIAN_VECTOR_PRODUCT + EVALUATION + VECTOR_JACOBIAN_PRODUCT


def lipschitz_constants(
    denoiser: AbstractDenoiser,
    x0: Float[Array, "points *sample"],
    time: Float[Array, ""],
    signal: Float[Array, ""],
    noise: Float[Array, ""],
    key: Array,
) -> tuple[np.ndarray, int]:
    """The largest singular value of dD/dx at every noised point, and the number of iterations."""
    key_noise, key_start = jax.random.split(key)
    x = signal * x0 + noise * jax.random.normal(key_noise, x0.shape, x0.dtype)
    direction = jax.random.normal(key_start, x.shape, x.dtype)
    norms = np.zeros(len(x))
    for k in range(MAX_ITERATIONS):
        previous = norms
        direction, found = _iterate(denoiser, x, time, direction)
        norms = np.asarray(found)
        if k > 0 and np.all(np.abs(norms - previous) <= _TOLERANCE * norms):
            return norms, k + 1
    return norms, MAX_ITERATIONS


@eqx.filter_jit
def _iterate(
    denoiser: AbstractDenoiser,
    x: Float[Array, "points *sample"],
    time: Float[Array, ""],
    direction: Float[Array, "points *sample"],
) -> tuple[Array, Array]:
    """J^T J v at every point, and |J v| / |v|."""
    denoiser = denoiser.astype(x.dtype)
    axes = tuple(range(1, x.ndim))

    def denoise(x: Array) -> Array:
        return denoiser(x, time).x0

    size = jnp.sqrt(jnp.sum(direction**2, axes, keepdims=True))
    unit = safe_divide(direction, jnp.broadcast_to(size, direction.shape))
    moved = jax.jvp(denoise, (x,), (unit,))[1]
    pulled = jax.vjp(denoise, x)[1](moved)[0]
    return pulled, jnp.sqrt(jnp.sum(moved**2, axes))
