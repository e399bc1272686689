"""A sampler's moments for a Gaussian target, mode by mode or dense, with or without a score error."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..distributions import Gaussian, gaussian_prediction
from ..prediction import Prediction
from ..processes import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AffineError
from ._affine import AffineMaps, initial_state, linearise, propagate


def evaluation_times(
    process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> Float[Array, " evaluations"]:
    """The times of all network evaluations of a run, in their order."""
    return jnp.stack(sampler.evaluation_times(process, schedule.steps()), axis=1).reshape(-1)


def _predict(process: AbstractProcess):
    def predict(block: tuple[Array, Array], x: Array, t: Array) -> Prediction:
        mean, eigenvalues = block
        return gaussian_prediction(process, mean, eigenvalues, None, x, t)

    return predict


def mode_maps(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    error: AffineError | None = None,
) -> AffineMaps:
    """The sampler's affine maps for the target's exact score plus `error`, one block per mode.

    Needs an eigenbasis. `error` has fields (evaluations of the whole run, modes).
    """
    blocks = (jnp.asarray(target.mean)[:, None], jnp.asarray(target.eigenvalues)[:, None])
    if error is not None:

        def by_step(a: Array, *extra: int) -> Array:
            steps = jnp.swapaxes(a.reshape(schedule.num_steps, -1, a.shape[-1]), 1, 2)
            return steps.reshape(*steps.shape, *extra)

        error = AffineError(by_step(error.slope, 1, 1), by_step(error.shift, 1))
    return linearise(sampler, process, schedule.steps(), _predict(process), blocks, 1, error)


def dense_maps(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    error: AffineError | None = None,
) -> AffineMaps:
    """The same with all modes in one block. `error` has fields (evaluations, modes, modes), (evaluations, modes)."""
    blocks = (jnp.asarray(target.mean)[None], jnp.asarray(target.eigenvalues)[None])
    if error is not None:
        error = jax.tree.map(lambda a: a.reshape(schedule.num_steps, 1, -1, *a.shape[1:]), error)
    size = blocks[0].shape[1]
    return linearise(sampler, process, schedule.steps(), _predict(process), blocks, size, error)


@partial(jax.jit, static_argnames="initialization")
def initial_moments(
    target: Gaussian, process: AbstractProcess, start: Array, initialization: str
) -> tuple[Float[Array, " modes"], Float[Array, " modes"]]:
    """Mean and variance per mode of the law that sampling starts from."""
    if initialization == "marginal":
        return process.signal(start) * target.mean, target.marginal_variance(process, start)
    eigenvalues = jnp.asarray(target.eigenvalues)
    prior = process.prior_variance(start)
    return jnp.zeros_like(eigenvalues), prior * jnp.ones_like(eigenvalues)


def propagate_modes(
    maps: AffineMaps,
    sampler: AbstractSampler,
    mean: Float[Array, " modes"],
    variance: Float[Array, " modes"],
) -> tuple[Float[Array, "points modes"], Float[Array, "points modes"]]:
    """Mean and variance of every mode at every time of the schedule, from the sampler's `mode_maps`."""
    means, covariances = propagate(maps, *initial_state(sampler, mean[None], variance[None, None]))
    return means[:, 0], covariances[:, 0, 0]


def propagate_dense(
    maps: AffineMaps,
    sampler: AbstractSampler,
    mean: Float[Array, " modes"],
    covariance: Float[Array, "modes modes"],
) -> tuple[Float[Array, "points modes"], Float[Array, "points modes modes"]]:
    """Mean and covariance at every time of the schedule, from the sampler's `dense_maps`."""
    size = mean.shape[0]
    means, covariances = propagate(
        maps, *initial_state(sampler, mean[:, None], covariance[..., None])
    )
    return means[:, :size, 0], covariances[:, :size, :size, 0]
