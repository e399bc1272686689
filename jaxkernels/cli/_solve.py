"""The calls of the optimiser, whose arguments the command line knows as plain values."""

from collections.abc import Mapping

import jax
import numpy as np

from .._precision import in_float64
from ..distributions import Gaussian, GaussianMixture
from ..errors import BoundLocalError, LocalError, TerminalError, local_error_from_config
from ..optimize import OptimizedSchedule, on_integer_timesteps, optimize_schedule
from ..processes import AbstractProcess
from ..recurrence import local_errors
from ..samplers import as_sampler
from ..schedules import BASELINES, Schedule
from ._inputs import SavedSchedule

OBJECTIVES = {"local": LocalError, "terminal": TerminalError}


def optimize(
    target: Gaussian | GaussianMixture,
    process: AbstractProcess,
    sampler: str,
    num_steps: int,
    *,
    t_min: float,
    stochasticity: float | str,
    objective: str,
    metric: str,
    initialization: str | None,
    rivals: Mapping[str, Schedule],
) -> OptimizedSchedule:
    """The optimal schedule under an objective given by names, with all rivals among its starts."""
    return optimize_schedule(
        target,
        process,
        sampler,
        num_steps,
        t_min=t_min,
        stochasticity=stochasticity,
        objective=OBJECTIVES[objective](metric=metric, initialization=initialization),
        starts=_starts(rivals, process, num_steps, t_min, stochasticity),
    )


def _starts(
    rivals: Mapping[str, Schedule],
    process: AbstractProcess,
    num_steps: int,
    t_min: float,
    stochasticity: float | str,
) -> dict[str, Schedule] | None:
    """User-defined schedules beside every baseline; lists of times say nothing of noise."""
    if not rivals:
        return None
    alpha = 0.0 if isinstance(stochasticity, str) else stochasticity
    given = {name: Schedule(np.asarray(rival.times), alpha) for name, rival in rivals.items()}
    return {name: make(process, num_steps, t_min) for name, make in BASELINES.items()} | given


def local_error(
    target: Gaussian,
    process: AbstractProcess,
    sampler: str,
    schedule: Schedule,
    initialization: str | None,
) -> tuple[float, float]:
    """The default objective of `optimize` for a covariance, and the part that the steps cause."""
    step = as_sampler(sampler)
    bound = in_float64(LocalError(initialization=initialization).bind)(target, process, step)
    value, steps = _call(bound, schedule)
    return float(value), float(steps)


def move_to_integers(
    target: Gaussian,
    process: AbstractProcess,
    sampler: str,
    schedule: Schedule,
    initialization: str | None,
) -> Schedule:
    """The schedule at the integer timesteps with the smallest objective of `optimize`."""
    step = as_sampler(sampler)
    objective = LocalError(initialization=initialization)
    bound = objective.reduce(in_float64(objective.bind)(target, process, step))
    return on_integer_timesteps(schedule, process, bound)


def move_by_own_objective(saved: SavedSchedule, process: AbstractProcess, sampler: str) -> Schedule:
    """The schedule of a file at the integer timesteps with the smallest objective of its own."""
    rebuild = in_float64(local_error_from_config)
    try:
        bound = rebuild(saved.local_error, process, as_sampler(sampler))
    except ValueError as error:
        raise ValueError(f"{saved.path}: {error}") from None
    return on_integer_timesteps(saved.schedule, process, bound)


@in_float64
@jax.jit
def _call(objective: BoundLocalError, schedule: Schedule) -> tuple[jax.Array, jax.Array]:
    """The objective and its part of the steps, compiled once for all schedules of a length."""
    local = local_errors(objective.target, objective.process, objective.sampler, schedule)
    return objective(schedule), objective.steps(local)
