"""Gradient steps through the network from a schedule that is good already, stopped on noises they have not seen."""

import contextlib
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import minimize

from .._linalg import matmul
from .._progress import Progress
from .._types import AnyArray, Network
from ..comparison import BALANCED, WEIGHED, Comparison, Reference, balance, statistic
from ..prediction import Denoiser
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, sample
from ..schedules import Schedule, TimeCoordinate

REFINED = "refined"


# a forward pass, the same again as only points are kept of it, and a backward pass of twice its cost
_GRADIENT = 4


# how far the logarithm of a step may move against that of the first: the start is good, and a step much shorter than
# its neighbours, from which a multistep sampler extrapolates far, would hold for an exact score only
_REACH = 1.0


class _Run(NamedTuple):
    """What a step needs besides the schedule."""

    score_fn: Network
    kind: str
    process: AbstractProcess
    sampler: AbstractSampler
    monotone: TimeCoordinate
    end: Array
    size: Array
    directions: Array


class _Noises(NamedTuple):
    """Noises, where a fine solver takes them, the sorted components of the law, and each statistic's log to beat."""

    x: Float[AnyArray, "noises *shape"]
    ends: Float[AnyArray, "noises d"]
    law: Float[AnyArray, "noises directions"]
    floor: Float[AnyArray, " statistics"]


def refined(
    score_fn: Network,
    kind: str,
    process: AbstractProcess,
    sampler: AbstractSampler,
    monotone: TimeCoordinate,
    schedule: Schedule,
    exact: Reference,
    rivals: Comparison,
    x: Float[Array, "noises *shape"],
    by: str,
    steps: int,
    line: Progress,
) -> tuple[Schedule, int]:
    """The schedule after at most `steps` steps of L-BFGS down the statistic that chooses, `by` (`Comparison.best`).

    And the network evaluations that took, of one point each: a gradient counts as four. `exact` is where a fine solver
    takes the noises `x`, and `rivals` compares the baselines on them.

    Half of the noises give gradients, all at once; the other half watches, and the schedule returned is the best there
    of all that were tried, the one given among them: on noises that gave no gradient it can only get better.
    """
    first, last = (float(t) for t in np.asarray(schedule.times)[[0, -1]])
    half, kinds = x.shape[0] // 2, WEIGHED if by == BALANCED else (by,)
    look = schedule.num_steps * sampler.nfe_per_step * (x.shape[0] - half)
    each = look + _GRADIENT * schedule.num_steps * sampler.nfe_per_step * half

    def noises(rows: slice) -> _Noises:
        lowest = np.array([rivals.statistic_values(kind, rows).min() for kind in kinds])
        parts = (
            exact.ends[rows],
            rivals.target_quantiles(rows),
            np.log(np.maximum(lowest, np.finfo(x.dtype).tiny)),
        )
        return _Noises(x[rows], *(jnp.asarray(part, x.dtype) for part in parts))

    seen, kept = noises(slice(None, half)), noises(slice(half, None))
    arrays = process, sampler, monotone, last, exact.scale, exact.directions
    run = _Run(score_fn, kind, *jax.tree.map(lambda a: jnp.asarray(a, x.dtype), arrays))
    start = np.asarray(monotone.unconstrained(jnp.asarray(schedule.times)), np.float64)
    best, lowest, taken = start, float(_value(run, kinds, jnp.asarray(start, x.dtype), kept)), 0

    def step(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, lowest, taken
        if taken == steps:
            raise StopIteration
        here = jnp.asarray(z, x.dtype)
        value, gradient = _value_and_gradient(run, kinds, here, seen)
        if not np.all(np.isfinite(gradient)):
            raise ValueError(
                "refine: the error's gradient in the times is not finite; is score_fn differentiable?"
            )
        now, taken = float(_value(run, kinds, here, kept)), taken + 1
        if now < lowest:
            best, lowest = z.copy(), now
        line.update(
            f"refining: step {taken} of {steps}, {look + taken * each:.3g} of {look + steps * each:.3g} evaluations, "
            f"held-out {by} {np.exp(lowest):.4g} of the best grid's"
        )
        return float(value), np.asarray(gradient, np.float64)

    with contextlib.suppress(StopIteration):
        minimize(
            step,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(start - _REACH, start + _REACH)),
        )
    times = np.array(
        run.monotone.times(jnp.asarray(best, x.dtype), run.end), jnp.result_type(float)
    )
    times[[0, -1]] = first, last
    return Schedule(times), look + taken * each


@eqx.filter_jit
def _value(
    run: _Run, kinds: tuple[str, ...], z: Float[Array, " interior"], noises: _Noises
) -> Float[Array, ""]:
    """log of the statistic over the baselines' smallest; of three such ratios, their `balance`."""
    schedule = Schedule(run.monotone.times(z, run.end))
    key = jax.random.key(0)  # no step draws anything
    fn = eqx.filter_checkpoint(run.score_fn)
    reached = sample(
        Denoiser(fn, run.process, run.kind), run.sampler, schedule, noises.x, key=key
    ).reshape(noises.ends.shape)
    squared = jnp.sum((reached - noises.ends) ** 2, -1) / run.size**2
    errors = jnp.sqrt(jnp.maximum(squared, jnp.finfo(z.dtype).tiny))
    components = matmul(reached, run.directions)
    logs = jnp.log(
        jnp.stack([statistic(jnp, kind, errors, components, noises.law) for kind in kinds])
    )
    return balance(jnp, logs - noises.floor)


@eqx.filter_jit
def _value_and_gradient(
    run: _Run, kinds: tuple[str, ...], z: Array, noises: _Noises
) -> tuple[Array, Array]:
    return jax.value_and_grad(lambda z: _value(run, kinds, z, noises))(z)
