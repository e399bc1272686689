"""One pass of a denoiser over noised samples.

Noise is added along one forward trajectory per draw: y = x / a = x0 + B(sigma^2), B a Brownian
motion. In terms of the standard normal eps in x = a x0 + s eps, from a lower noise level sigma' to
a higher one sigma,

    eps = r eps' + sqrt(1 - r^2) z,    r = sigma' / sigma,                                      (1)

which holds for every process, and where a = 0 (r = 0: pure noise, independent of what came before).

Per mode of the data (variance lambda) the pass sums z = x - a mean,
w = D - mean - a lambda / (a^2 lambda + s^2) z, and their products at every two times. w and z are
of the size of what is sought, so nothing is lost by subtracting. Sums over a batch are formed on
the device, sums over batches in float64.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg import full_precision, matmul
from ..distributions import Gaussian
from ..prediction import AbstractDenoiser, Denoiser
from ._levels import Levels, gaussian_gain
from ._statistics import martingale_violation


class NoiseStep(NamedTuple):
    """What is needed of the times: one row per time, or one time."""

    time: Array
    signal: Array
    noise: Array
    gain: Float[Array, "*n d"]
    """The slope of the best affine denoiser."""
    ratio: Array
    """r of equation (1)."""
    fresh: Array
    """sqrt(1 - r^2) of equation (1)."""

    def at(self, j: int) -> "NoiseStep":
        """The row of one time."""
        return NoiseStep(*(values[j] for values in self))


class Modes(NamedTuple):
    """The coordinates in which products are summed."""

    mean: Float[Array, " d"]
    basis: Float[Array, "d d"] | None

    def project(self, x: Float[Array, "batch *sample"]) -> Float[Array, "batch d"]:
        """Flattened samples along the modes."""
        x = x.reshape(x.shape[0], -1)
        return x if self.basis is None else matmul(x, self.basis)

    def center(self, x: Float[Array, "batch *sample"]) -> Float[Array, "batch d"]:
        """x - mean along the modes."""
        return self.project(x.reshape(x.shape[0], -1) - self.mean)


class NoisePair(NamedTuple):
    """Standard normal noise, as it is and along the modes."""

    plain: Float[Array, "draws *sample"]
    modes: Float[Array, "draws d"]


class Deviations(NamedTuple):
    """D - x0, w and z along the modes, at one time or at all (leading axis)."""

    error: Float[Array, "*n draws d"]
    w: Float[Array, "*n draws d"]
    z: Float[Array, "*n draws d"]


def noise_steps(levels: Levels, target: Gaussian) -> NoiseStep:
    """The rows of all times, on the device."""
    sigma = levels.sigma
    ratio = np.append(sigma[1:] / sigma[:-1], 0.0)
    fresh = np.sqrt((1.0 - ratio) * (1.0 + ratio))
    rows = (*levels, gaussian_gain(target, levels), ratio, fresh)
    return NoiseStep(*(jnp.asarray(row, float) for row in rows))


def mode_coordinates(target: Gaussian) -> Modes:
    """The modes of a target, on the device."""
    basis = None if target.basis is None else jnp.asarray(np.asarray(target.basis), float)
    return Modes(jnp.asarray(np.asarray(target.mean), float), basis)


def sum_batch(
    denoiser: AbstractDenoiser,
    steps: NoiseStep,
    modes: Modes,
    x0: Float[Array, "batch *sample"],
    weight: Float[Array, " batch"],
    key: Array,
    draws: int,
) -> dict[str, np.ndarray]:
    """Sums over the samples of a batch, averaged over draws; `weight` 0 leaves a sample out."""
    x0 = jnp.repeat(x0, draws, 0)
    clean = modes.center(x0)
    noise = NoisePair(jnp.zeros_like(x0), jnp.zeros_like(clean))
    sums = []
    along = []
    # Python's loop: inside a loop of its own XLA runs a network on one core of a CPU, and
    # convolutions many times slower
    for j in reversed(range(steps.time.shape[0])):  # noise grows
        key_time = jax.random.fold_in(key, j)
        step = steps.at(j)
        noise, found, deviations = measure_time(
            denoiser, step, modes, x0, clean, noise, weight, key_time
        )
        sums.append(jax.tree.map(np.asarray, found))
        along.append(deviations)
    per_time = {name: np.stack([found[name] for found in sums[::-1]]) for name in sums[0]}
    all_times = Deviations(*(jnp.stack(values[::-1]) for values in zip(*along, strict=True)))
    products = sum_products(all_times, weight)
    nfe = {"nfe": np.asarray(denoiser.nfe * len(x0) * len(sums))}
    return per_time | jax.tree.map(np.asarray, products) | nfe


@eqx.filter_jit
def measure_time(
    denoiser: AbstractDenoiser,
    step: NoiseStep,
    modes: Modes,
    x0: Float[Array, "draws *sample"],
    clean: Float[Array, "draws d"],
    noise: NoisePair,
    weight: Float[Array, " batch"],
    key: Array,
) -> tuple[NoisePair, dict[str, Array], Deviations]:
    """The noise at one time, sums there, and how the denoiser deviates."""
    increment = jax.random.normal(key, x0.shape, x0.dtype)
    noise = NoisePair(
        step.ratio * noise.plain + step.fresh * increment,
        step.ratio * noise.modes + step.fresh * modes.project(increment),
    )
    x = step.signal * x0 + step.noise * noise.plain
    # a network may return another precision than it is given
    denoised = modes.center(denoiser.astype(x0.dtype)(x, step.time).x0.astype(x0.dtype))
    z = step.signal * clean + step.noise * noise.modes
    w = denoised - step.gain * z
    error = denoised - clean
    terms = {"z": z, "w": w, "mode_error": error**2}
    averages = {name: _average_draws(value, weight) for name, value in terms.items()}
    return noise, _weighted_sums(averages, weight), Deviations(error, w, z)


@jax.jit
@full_precision
def sum_products(deviations: Deviations, weight: Float[Array, " batch"]) -> dict[str, Array]:
    """Sums of the products of two times: of errors, with their squares, and of w and z."""
    errors = deviations.error
    products = _average_draws(jnp.einsum("ibd,jbd->bij", errors, errors), weight)
    own = jnp.diagonal(products, axis1=1, axis2=2)
    terms = {
        "ee": products,
        # for standard errors
        "error_squared": own**2,
        "violation_squared": martingale_violation(products) ** 2,
    }
    draws = errors.shape[1] // weight.shape[0]
    each = jnp.repeat(weight / draws, draws)[:, None]

    def along_modes(p: Array, q: Array) -> Float[Array, "d n n"]:
        return jnp.einsum("ibd,jbd->dij", each * p, q)

    return _weighted_sums(terms, weight) | {
        "ww": along_modes(deviations.w, deviations.w),
        "wz": along_modes(deviations.w, deviations.z),
        "zz": along_modes(deviations.z, deviations.z),
    }


def probe_network(
    denoiser: AbstractDenoiser, samples: np.ndarray, levels: Levels
) -> Float[np.ndarray, "1 *sample"]:
    """What a network returns for one noised sample, always the same: one NFE."""
    j = levels.times.size // 2
    time, signal, noise = (jnp.asarray(values[j], float) for values in levels)
    x0 = jnp.asarray(np.asarray(samples[:1], np.float64), float)
    x = signal * x0 + noise * jax.random.normal(jax.random.key(0), x0.shape, x0.dtype)
    return np.asarray(_denoised(denoiser, x, time), np.float64)


@eqx.filter_jit
def _denoised(denoiser: AbstractDenoiser, x: Array, t: Array) -> Array:
    """The denoised points of a network, which may return another precision than it is given."""
    return denoiser.astype(x.dtype)(x, t).x0


def check_output(denoiser: AbstractDenoiser, shape: tuple[int, ...]) -> None:
    """An error unless the output is floating and of x's shape, known without running a network."""

    def evaluate(denoiser: AbstractDenoiser, x: Array, t: Array) -> Array:
        if isinstance(denoiser, Denoiser):
            dtype = jnp.result_type(denoiser.evaluate(x, t))
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(
                    f"the network returned numbers of dtype {dtype}; they must be floating."
                )
        return denoiser.astype(x.dtype)(x, t).x0

    x = jnp.zeros(shape, float)
    found = eqx.filter_eval_shape(evaluate, denoiser, x, jnp.asarray(0.5, float))
    if found.shape != shape:
        raise ValueError(
            f"the denoiser returned shape {found.shape} for x of shape {shape}; it must return one "
            "value per entry of x."
        )


def _average_draws(values: Array, weight: Array) -> Array:
    """The mean over the draws of each sample."""
    return jnp.mean(values.reshape(weight.shape[0], -1, *values.shape[1:]), 1)


@full_precision
def _weighted_sums(terms: dict[str, Array], weight: Array) -> dict[str, Array]:
    """Sums over the samples, each with its weight."""
    return {name: jnp.tensordot(weight, values, 1) for name, values in terms.items()}
