"""Every sampler step as an affine map with Gaussian noise, by linearising its one definition."""

import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from numpy.polynomial.legendre import leggauss

from .._linalg import apply, full_precision, product, transpose
from ..prediction import Prediction
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, check_advanced
from ..schedules import Step
from ..score_error import AffineError

Block = TypeVar("Block", bound=PyTree)

# of the quadrature over the uniform number of a randomised step
_NODES = 24


class AffineMaps(eqx.Module):
    """z -> factor z + shift + N(0, noise), for every step and block.

    A block is a set of coordinates that do not interact with others: one mode in an eigenbasis, or
    all coordinates of a dense problem. Its state z is (x, history) as one vector of length n, x
    first. The small axes lead, so that the arithmetic runs along steps and blocks.

    A randomised sampler has one map for every node of a quadrature over its uniform number, which
    all blocks share, and `weights` of the nodes, the same for all steps and blocks.

    `responses`, where they are wanted, are the derivatives of the state after a step in a shift of
    the score at each of its evaluations.
    """

    factor: Float[Array, "n n *nodes steps blocks"]
    shift: Float[Array, "n *nodes steps blocks"]
    noise: Float[Array, "n n *nodes steps blocks"]
    weights: Float[Array, "nodes steps blocks"] | None = None
    responses: Float[Array, "n evaluations steps blocks"] | None = None


def linearise(
    sampler: AbstractSampler,
    process: AbstractProcess,
    steps: Step,
    predict: Callable[[Block, Array, Array], Prediction],
    blocks: Block,
    size: int,
    errors: AffineError | None = None,
    *,
    responses: bool = False,
) -> AffineMaps:
    """The affine maps of a sampler for a denoiser that is affine in x.

    The step is linearised in x, in its history and in each of its noise draws; noise enters
    with the variance that the sampler states, not its square root, so that derivatives stay finite
    for empty steps.

    **Arguments:**

    - `sampler`, `process`: as everywhere.
    - `steps`: with an axis over steps.
    - `predict`: (block, x, t) -> the denoiser of one block, x of shape (size,).
    - `blocks`: the parameters of `predict`, with a leading axis over blocks.
    - `size`: the number of coordinates of a block.
    - `errors`: added to the score, one at each evaluation of every step: slope (K, blocks,
      evaluations, size, size), shift (K, blocks, evaluations, size). Default: none.
    - `responses`: whether to add `AffineMaps.responses`, without errors and of blocks of one
      coordinate.

    **Returns:** the maps of all steps and blocks; of a randomised sampler at every node.
    """
    one = _step_maps(sampler, process, predict, size, responses)
    over_blocks = jax.vmap(one, in_axes=(None, 0, 0), out_axes=-1)
    over_steps = jax.vmap(over_blocks, in_axes=(0, None, 0), out_axes=-2)
    if sampler.randomised:
        if errors is not None or responses:
            check_given_times(sampler)
        return _at_nodes(lambda steps: over_steps(steps, blocks, None)[:3], steps)
    factor, shift, noise, response = over_steps(steps, blocks, errors)
    return AffineMaps(factor, shift, noise, responses=response if responses else None)


def _step_maps(
    sampler: AbstractSampler,
    process: AbstractProcess,
    predict: Callable[[Block, Array, Array], Prediction],
    size: int,
    responses: bool,
) -> Callable[[Step, Block, AffineError | None], tuple[Array, ...]]:
    """The map of one step and block: factor, shift, noise and responses, without if not wanted."""

    def one(here: Step, block: Block, error: AffineError | None) -> tuple[Array, ...]:
        x = jnp.zeros((size,), here.time.dtype)
        shifts = jnp.zeros((sampler.nfe_per_step if responses else 0, size), x.dtype)
        history, unravel = ravel_pytree(sampler.init_history(x))
        history = jnp.zeros(history.shape, x.dtype)  # without entries it has no dtype of its own

        def run(x: Array, history: Array, shifts: Array, *drawn: Array) -> tuple[Array, list]:
            variances: list[Array] = []

            def noise(variance: Array) -> Array:
                variances.append(jnp.broadcast_to(variance, (size,)).astype(x.dtype))
                return drawn[len(variances) - 1] if drawn else jnp.zeros_like(x)

            calls = itertools.count()

            def learned(x: Array, t: Array) -> Prediction:
                prediction = predict(block, x, t)
                i = next(calls)
                if responses:
                    e = shifts[i]
                elif error is not None:
                    e = AffineError(error.slope[i], error.shift[i])(x)
                else:
                    return prediction
                return prediction.with_score_error(e, process.signal(t), process.noise(t))

            step = sampler.step(learned, noise, process, here, x, unravel(history))
            return ravel_pytree(check_advanced(sampler, step))[0], variances

        count = len(jax.eval_shape(run, x, history, shifts)[1])
        arguments = (x, history, shifts, *[x] * count)
        # what depends on times alone is computed once for all derivatives
        shift, along, variances = jax.linearize(run, *arguments, has_aux=True)
        origin, unravel_arguments = ravel_pytree(arguments)
        units = jnp.eye(origin.size, dtype=x.dtype)
        jacobian = jax.vmap(lambda unit: along(*unravel_arguments(unit)), out_axes=1)(units)
        ends = (shift.size, shift.size + shifts.size)
        factor, response, gains = jnp.split(jacobian, ends, axis=1)
        noise = jnp.zeros_like(factor)
        if count:
            noise = product(gains * jnp.concatenate(variances), transpose(gains))
        return factor, shift, noise, response

    return one


def check_given_times(sampler: AbstractSampler) -> None:
    """Raise a ValueError for a randomised sampler, where score errors are asked for."""
    if sampler.randomised:
        raise ValueError(
            f"{type(sampler).__name__} evaluates the network at random times; score errors, their "
            "kernels and their bounds are of samplers with evaluations at given times."
        )


def _at_nodes(maps: Callable[[Step], tuple[Array, ...]], steps: Step) -> AffineMaps:
    """The maps of all steps at every node of the quadrature over their uniform number."""

    def at(uniform: Array) -> tuple[Array, ...]:
        return maps(steps._replace(uniform=jnp.broadcast_to(uniform, steps.time.shape)))

    # on (0, 1) from (-1, 1)
    nodes, weights = (0.5 * jnp.asarray(a, steps.time.dtype) for a in leggauss(_NODES))
    factor, shift, noise = jax.vmap(at, out_axes=-3)(0.5 + nodes)
    return AffineMaps(
        factor, shift, noise, jnp.broadcast_to(weights[:, None, None], shift.shape[1:])
    )


class InitialState(NamedTuple):
    """Mean and covariance of (x, history) before the first step."""

    mean: Float[Array, "n blocks"]
    covariance: Float[Array, "n n blocks"]


def initial_state(
    sampler: AbstractSampler,
    mean: Float[Array, "size blocks"],
    covariance: Float[Array, "size size blocks"],
) -> InitialState:
    """That of x with this mean and covariance."""

    def state(x: Array) -> Array:
        return ravel_pytree((x, sampler.init_history(x)))[0]

    origin = jnp.zeros_like(mean[:, 0])
    jacobian = jax.jacfwd(state)(origin)
    jacobian = jnp.broadcast_to(jacobian[..., None], (*jacobian.shape, mean.shape[-1]))
    state_covariance = product(product(jacobian, covariance), transpose(jacobian))
    return InitialState(apply(jacobian, mean) + state(origin)[:, None], state_covariance)


def propagate(
    maps: AffineMaps, mean: Float[Array, "n blocks"], covariance: Float[Array, "n n blocks"]
) -> tuple[Float[Array, "points n blocks"], Float[Array, "points n n blocks"]]:
    """Exact moments of the state at every time of the schedule, the given ones first:

    m <- F m + b,   S <- F S F^T + Q,   for a randomised sampler S <- E F S F^T + E Q + Cov(F m + b)
    and m <- E (F m + b).
    """

    def step(carry: tuple[Array, Array], maps: AffineMaps):
        moments = advance(maps, *carry)
        return moments, moments

    _, (means, covariances) = jax.lax.scan(step, (mean, covariance), by_step(maps))
    return jnp.concatenate([mean[None], means]), jnp.concatenate([covariance[None], covariances])


def by_step(maps: AffineMaps) -> AffineMaps:
    """The maps with the axis of steps first."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), maps)


def advance(
    maps: AffineMaps, mean: Float[Array, "n blocks"], covariance: Float[Array, "n n blocks"]
) -> tuple[Float[Array, "n blocks"], Float[Array, "n n blocks"]]:
    """The moments after one step, whose maps have no axis of steps."""
    if maps.weights is None:
        after = apply(maps.factor, mean) + maps.shift
        moved = product(product(maps.factor, covariance), transpose(maps.factor))
        return after, moved + maps.noise
    after, fluctuation = _over_nodes(maps, mean)
    moved = product(product(maps.factor, covariance[:, :, None]), transpose(maps.factor))
    moved = moved + maps.noise + product(fluctuation[:, None], fluctuation[None])
    return after, average(maps, moved)


@full_precision
def joint_covariance(
    maps: AffineMaps, means: Float[Array, "points n blocks"], covariance: Float[Array, "n n blocks"]
) -> Float[Array, "n n blocks blocks"]:
    """The covariance of all blocks at the end of a randomised run, from a block-diagonal one.

    Blocks share the uniform number of a step: their means, which depend on it, are correlated.
    `means` are those of `propagate`.
    """
    diagonal = jnp.eye(means.shape[-1], dtype=means.dtype)

    def step(s: Array, inputs: tuple[AffineMaps, Array]) -> tuple[Array, None]:
        maps, mean = inputs
        assert maps.weights is not None
        fluctuation = _over_nodes(maps, mean)[1]
        pairs = jnp.einsum("abwi,dcwj->abdcij", maps.weights * maps.factor, maps.factor)
        s = jnp.einsum("abdcij,bcij->adij", pairs, s)
        s = s + jnp.einsum("awi,dwj->adij", maps.weights * fluctuation, fluctuation)
        return s + average(maps, maps.noise)[..., None] * diagonal, None

    start = covariance[..., None] * diagonal
    return jax.lax.scan(step, start, (by_step(maps), means[:-1]))[0]


def average(maps: AffineMaps, values: Float[Array, "*s nodes blocks"]) -> Float[Array, "*s blocks"]:
    """The mean over the uniform number of a step."""
    assert maps.weights is not None
    return jnp.sum(maps.weights * values, -2)


def _over_nodes(
    maps: AffineMaps, mean: Float[Array, "n blocks"]
) -> tuple[Float[Array, "n blocks"], Float[Array, "n nodes blocks"]]:
    """The mean after a randomised step, and the deviation from it of the mean at every node."""
    at_nodes = apply(maps.factor, mean[:, None]) + maps.shift
    after = average(maps, at_nodes)
    return after, at_nodes - after[:, None]
