"""Every sampler step as an affine map with Gaussian noise, by linearising its one definition."""

import itertools
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._linalg import apply, product, transpose
from ..prediction import Prediction
from ..processes import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Schedule, Step
from ..score_error import AffineError

Block = TypeVar("Block", bound=PyTree)


class AffineMaps(eqx.Module):
    """z -> factor z + shift + N(0, noise), for every step and block.

    A block is a set of coordinates that do not interact with others: one mode in an eigenbasis, or
    all coordinates of a dense problem. Its state z is (x, history) as one vector of length n, x
    first. The small axes lead, so that the arithmetic runs along steps and blocks.
    """

    factor: Float[Array, "n n steps blocks"]
    shift: Float[Array, "n steps blocks"]
    noise: Float[Array, "n n steps blocks"]


def linearise(
    sampler: AbstractSampler,
    process: AbstractProcess,
    schedule: Schedule,
    predict: Callable[[Block, Array, Array], Prediction],
    blocks: Block,
    size: int,
    errors: AffineError | None = None,
) -> AffineMaps:
    """The affine maps of a sampler for a denoiser that is affine in x.

    The step is differentiated in x, in its history and in each of its noise draws; noise enters
    with the variance that the sampler states, not its square root, so that derivatives stay finite
    for empty steps.

    **Arguments:**

    - `sampler`, `process`, `schedule`: as everywhere.
    - `predict`: (block, x, t) -> the denoiser of one block, x of shape (size,).
    - `blocks`: the parameters of `predict`, with a leading axis over blocks.
    - `size`: the number of coordinates of a block.
    - `errors`: added to the score, one at each evaluation of every step: slope (K, blocks,
      evaluations, size, size), shift (K, blocks, evaluations, size). Default: none.

    **Returns:** the maps of all steps and blocks.
    """

    def one(here: Step, block: Block, error: AffineError | None) -> tuple[Array, Array, Array]:
        x = jnp.zeros((size,), here.time.dtype)
        history, unravel = ravel_pytree(sampler.init_history(x))
        history = jnp.zeros_like(history)

        def run(x: Array, history: Array, *drawn: Array) -> tuple[Array, list[Array]]:
            variances: list[Array] = []

            def noise(variance: Array) -> Array:
                variances.append(jnp.broadcast_to(variance, (size,)).astype(x.dtype))
                return drawn[len(variances) - 1] if drawn else jnp.zeros_like(x)

            calls = itertools.count()

            def learned(x: Array, t: Array) -> Prediction:
                prediction = predict(block, x, t)
                if error is None:
                    return prediction
                i = next(calls)
                e = AffineError(error.slope[i], error.shift[i])(x)
                return prediction.with_score_error(e, process.signal(t), process.noise(t))

            step = sampler.step(learned, noise, process, here, x, unravel(history))
            return ravel_pytree(step)[0], variances

        # one derivative per argument: what an argument does not touch is then not even traced
        count = len(jax.eval_shape(run, x, history)[1])
        arguments = (x, history, *[x] * count)
        shift, variances = run(*arguments)
        columns = [
            jax.jacfwd(run, j, has_aux=True)(*arguments)[0]
            for j in range(len(arguments))
            if arguments[j].size
        ]
        state = columns[: len(columns) - count]
        gains = columns[len(columns) - count :]
        covariance = jnp.zeros((shift.size,) * 2, shift.dtype)
        for gain, variance in zip(gains, variances, strict=True):
            covariance += product(gain * variance, transpose(gain))
        return jnp.concatenate(state, axis=1), shift, covariance

    over_blocks = jax.vmap(one, in_axes=(None, 0, 0), out_axes=-1)
    over_steps = jax.vmap(over_blocks, in_axes=(0, None, 0), out_axes=-2)
    return AffineMaps(*over_steps(schedule.steps(sampler.history_steps), blocks, errors))


def initial_state(
    sampler: AbstractSampler,
    mean: Float[Array, "size blocks"],
    covariance: Float[Array, "size size blocks"],
) -> tuple[Float[Array, "n blocks"], Float[Array, "n n blocks"]]:
    """Mean and covariance of (x, history) before the first step."""

    def state(x: Array) -> Array:
        return ravel_pytree((x, sampler.init_history(x)))[0]

    origin = jnp.zeros_like(mean[:, 0])
    jacobian = jax.jacfwd(state)(origin)
    jacobian = jnp.broadcast_to(jacobian[..., None], (*jacobian.shape, mean.shape[-1]))
    state_covariance = product(product(jacobian, covariance), transpose(jacobian))
    return apply(jacobian, mean) + state(origin)[:, None], state_covariance


def propagate(
    maps: AffineMaps, mean: Float[Array, "n blocks"], covariance: Float[Array, "n n blocks"]
) -> tuple[Float[Array, "points n blocks"], Float[Array, "points n n blocks"]]:
    """Exact moments of the state at every time of the schedule, the given ones first:

    m <- F m + b,   S <- F S F^T + Q.
    """

    def step(carry: tuple[Array, Array], maps: AffineMaps):
        m, s = carry
        m = apply(maps.factor, m) + maps.shift
        s = product(product(maps.factor, s), transpose(maps.factor)) + maps.noise
        return (m, s), (m, s)

    by_step = jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), maps)
    _, (means, covariances) = jax.lax.scan(step, (mean, covariance), by_step)
    return jnp.concatenate([mean[None], means]), jnp.concatenate([covariance[None], covariances])
