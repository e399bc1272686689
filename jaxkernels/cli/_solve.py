"""The calls of the optimiser, whose arguments the command line knows as plain values."""

import jax

from .._objective import AbstractBoundObjective
from .._precision import in_float64
from ..distributions import Gaussian, GaussianMixture
from ..errors import LocalError, TerminalError
from ..optimize import OptimizedSchedule, optimize_schedule
from ..processes import AbstractProcess
from ..samplers import as_sampler
from ..schedules import Schedule
from ._options import Initialization

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
    initialization: Initialization,
) -> OptimizedSchedule:
    """The optimal schedule under an objective given by names."""
    return optimize_schedule(
        target,
        process,
        sampler,
        num_steps,
        t_min=t_min,
        stochasticity=stochasticity,
        objective=OBJECTIVES[objective](metric=metric, initialization=initialization),
    )


def local_error(
    target: Gaussian,
    process: AbstractProcess,
    sampler: str,
    schedule: Schedule,
    initialization: Initialization,
) -> float:
    """The default objective of `optimize` for a covariance."""
    step = as_sampler(sampler)
    bound = in_float64(LocalError(initialization=initialization).bind)(target, process, step)
    return float(_call(bound, schedule))


@in_float64
@jax.jit
def _call(objective: AbstractBoundObjective, schedule: Schedule) -> jax.Array:
    """The objective, compiled once for all schedules of a length."""
    return objective(schedule)
