"""Trajectories by forward passes alone, with the denoised points at their nodes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._compile import quick_filter_jit
from .._precision import to_dtype
from ..prediction import AbstractDenoiser, Prediction
from ..samplers import AbstractSampler, UniPC, take_step
from ..schedules import Schedule, Step

# of the third order: with one evaluation per node more accurate than others
SOLVER = UniPC(solver_order=3, lower_order_final=False)


@quick_filter_jit
def follow_forward(
    solver: AbstractSampler,
    denoiser: AbstractDenoiser,
    schedule: Schedule,
    x: Float[Array, "n *shape"],
) -> tuple[Float[Array, "nodes n d"], Float[Array, "nodes n d"]]:
    """Points at the nodes and the denoised points there."""
    denoiser = denoiser.astype(x.dtype)
    schedule = to_dtype(schedule, x.dtype)

    def advance(state: tuple, step: Step) -> tuple[tuple, tuple[Array, Array]]:
        seen = []

        def predict(x: Array, t: Array) -> Prediction:
            seen.append(denoiser(x, t))
            return seen[-1]

        x, history = state
        after = take_step(solver, predict, denoiser.process, step, None, x, history)
        return after, (x, seen[0].x0)

    steps = schedule.steps(solver.history_steps)
    (end, _), (points, denoised) = jax.lax.scan(advance, (x, solver.init_history(x)), steps)
    last = denoiser(end, schedule.times[-1]).x0
    points = jnp.concatenate([points, end[None]])
    denoised = jnp.concatenate([denoised, last[None]])
    size = (*points.shape[:2], -1)
    return points.reshape(size), denoised.reshape(size)
