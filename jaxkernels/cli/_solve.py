"""The calls of the optimiser, whose arguments the command line knows as plain values."""

from collections.abc import Callable

import jax
import numpy as np

from .._precision import in_float64
from ..distributions import Gaussian, GaussianMixture
from ..metrics import resolve
from ..optimize import SPREAD, LocalError, OptimizedSchedule, optimize_schedule
from ..processes import AbstractProcess
from ..recurrence import check_setting
from ..schedules import Schedule
from ._options import Initialization


def optimize(
    target: Gaussian | GaussianMixture | np.ndarray,
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
        objective=objective,
        metric=metric,
        initialization=initialization,
    )


def local_error(
    target: Gaussian,
    process: AbstractProcess,
    sampler: str,
    schedule: Schedule,
    initialization: Initialization,
) -> float:
    """The default objective of `optimize` for a covariance."""
    step = check_setting(target, process, sampler)[2]
    broadened = target.broadened(SPREAD)
    objective = LocalError(broadened, process, step, resolve("w2_squared"), initialization)
    return float(_call(objective, schedule))


@in_float64
@jax.jit
def _call(objective: Callable[[Schedule], jax.Array], schedule: Schedule) -> jax.Array:
    """The objective, compiled once for all schedules of a length."""
    return objective(schedule)
