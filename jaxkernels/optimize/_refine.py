"""Gradient steps through the network from a schedule that is good already, stopped on noises they have not seen."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .._progress import Progress
from .._types import ScoreFn
from ..compare import fine_ends, fine_steps
from ..process import AbstractProcess
from ..sample import sample
from ..samplers import AbstractSampler
from ..schedules import Monotone, Schedule

REFINED = "refined"
_BATCH, _CHECK_EVERY, _RATE = 32, 5, 0.02


class _Run(NamedTuple):
    """What a step needs besides the schedule."""

    score_fn: ScoreFn
    kind: str
    process: AbstractProcess
    sampler: AbstractSampler
    monotone: Monotone


def refined(
    score_fn: ScoreFn,
    kind: str,
    process: AbstractProcess,
    sampler: AbstractSampler,
    monotone: Monotone,
    schedule: Schedule,
    x: Float[Array, "noises *shape"],
    steps: int,
    progress: bool,
) -> tuple[Schedule, int]:
    """The schedule after at most `steps` steps of Adam on the mean log distance to a fine solver's end points.

    And the network evaluations that took, of one point each: a gradient counts as three.

    Half of the noises give gradients, 32 at a time; the other half watches. The schedule returned has the smallest
    log-mean error there among those whose root mean square error there is no higher than at the start: on noises that
    gave no gradient these two can only stay as they were or get better.
    """
    first, last = (float(t) for t in np.asarray(schedule.times)[[0, -1]])
    exact = jnp.asarray(fine_ends(score_fn, process, x, fine_steps(schedule.num_steps), first, last, kind=kind))
    half = x.shape[0] // 2
    seen, kept = (x[:half], exact[:half]), (x[half:], exact[half:])
    run = _Run(score_fn, kind, *jax.tree.map(lambda a: jnp.asarray(a, x.dtype), (process, sampler, monotone)))
    z = run.monotone.unconstrained(jnp.asarray(schedule.times, x.dtype))
    best, end = z, jnp.asarray(last, x.dtype)
    typical, allowed = _statistics(run, z, end, *kept)
    optimizer = optax.adam(_RATE)
    state = optimizer.init(z)
    order = np.random.default_rng(0)
    # per step, per look at the other half, and of the reference; what the progress line counts
    one = schedule.num_steps * sampler.evaluations
    each, look = 3 * one * min(_BATCH, half), one * (x.shape[0] - half)
    reference = x.shape[0] * fine_steps(schedule.num_steps)

    def spent(step: int) -> int:
        return reference + step * each + (1 + -(-step // _CHECK_EVERY)) * look

    with Progress("refining: compiling", progress) as line:
        for i in range(steps):
            rows = order.choice(half, min(_BATCH, half), replace=False)
            gradient = _gradient(run, z, end, seen[0][rows], seen[1][rows])
            if not np.all(np.isfinite(gradient)):
                raise ValueError("refine: the error's gradient in the times is not finite; is score_fn differentiable?")
            updates, state = optimizer.update(gradient, state)
            z = jnp.asarray(optax.apply_updates(z, updates))
            if (i + 1) % _CHECK_EVERY == 0 or i + 1 == steps:
                now, rms = _statistics(run, z, end, *kept)
                if now < typical and rms <= allowed:
                    best, typical = z, now
                line.update(
                    f"refining: step {i + 1} of {steps}, {spent(i + 1):.3g} of {spent(steps):.3g} evaluations, "
                    f"held-out log-mean error {float(typical):.4g}"
                )
    times = np.array(run.monotone.times(best, end))
    times[[0, -1]] = first, last
    return Schedule(times), spent(steps)


def _log_errors(run: _Run, z: Array, end: Array, x: Array, exact: Array) -> Float[Array, " noises"]:
    schedule = Schedule(run.monotone.times(z, end))
    key = jax.random.key(0)  # no step draws anything
    reached = sample(run.score_fn, run.process, run.sampler, schedule, key, x, kind=run.kind)
    squared = jnp.sum((reached.reshape(x.shape[0], -1) - exact) ** 2, -1)
    return 0.5 * jnp.log(jnp.maximum(squared, jnp.finfo(x.dtype).tiny))


@eqx.filter_jit
def _gradient(run: _Run, z: Array, end: Array, x: Array, exact: Array) -> Array:
    return jax.grad(lambda z: jnp.mean(_log_errors(run, z, end, x, exact)))(z)


@eqx.filter_jit
def _statistics(run: _Run, z: Array, end: Array, x: Array, exact: Array) -> tuple[Array, Array]:
    """Log-mean and root mean square error."""
    logs = _log_errors(run, z, end, x, exact)
    return jnp.exp(jnp.mean(logs)), jnp.sqrt(jnp.mean(jnp.exp(2.0 * logs)))
