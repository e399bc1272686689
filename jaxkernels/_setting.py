"""Checks of what every analysis is given: a target, a process, a sampler and a schedule that fit each other."""

import numpy as np

from . import _checks
from ._numerics import is_traced
from ._types import AnyArray, Numbers
from .process import AbstractProcess, check_process
from .samplers import SAMPLERS, AbstractSampler
from .schedules import Schedule
from .target import Gaussian, GaussianMixture

NAMED_INITIALIZATIONS = ("standard_normal", "marginal")


def check_setting(
    target: object, process: object, sampler: AbstractSampler | str
) -> tuple[Gaussian, AbstractProcess, AbstractSampler]:
    """The three ingredients of every analysis, with a sampler's name resolved."""
    if isinstance(target, GaussianMixture):
        raise ValueError(
            "target is a GaussianMixture, whose samples have no closed-form law; pass target.gaussian() "
            "for the Gaussian of the same mean and covariance."
        )
    if not isinstance(target, Gaussian):
        raise ValueError(f"target must be a Gaussian; got {type(target).__name__}.")
    return target, *check_sampler(process, sampler)


def check_sampler(process: object, sampler: object) -> tuple[AbstractProcess, AbstractSampler]:
    """A process and a sampler, its name resolved."""
    process = check_process(process)
    if isinstance(sampler, str):
        sampler = _checks.lookup("sampler", sampler, SAMPLERS)()
    if not isinstance(sampler, AbstractSampler):
        raise ValueError(f"sampler must be a sampler or a name; got {sampler!r}.")
    return process, sampler


def check_schedule(process: AbstractProcess, sampler: AbstractSampler, schedule: object) -> Schedule:
    """A schedule that this process and this sampler can use."""
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule must be a Schedule; got {type(schedule).__name__}.")
    check_process(process)
    if is_traced((process, schedule)):
        return schedule.error_if_invalid()
    t_max, first = float(np.asarray(process.t_max)), float(np.asarray(schedule.times)[0])
    if first > t_max * (1.0 + 1e-6):
        raise ValueError(
            f"times[0] = {first:g} lies beyond the process's t_max = {t_max:g}; is the schedule meant "
            "for another process?"
        )
    largest = float(np.sqrt(np.max(np.asarray(schedule.stochasticity_squared))))
    if largest > 0 and not sampler.stochastic:
        raise ValueError(
            f"stochasticity = {largest:g} has no meaning for {type(sampler).__name__}, which is "
            "deterministic; use 0 or a stochastic sampler such as DDIM."
        )
    return schedule


def check_times(process: AbstractProcess, times: Numbers) -> AnyArray:
    """Times of a process at which something is measured: strictly decreasing, > 0 and at most t_max."""
    grid = _checks.array("times", times)
    if grid.ndim != 1 or grid.size == 0 or np.any(np.diff(grid) >= 0) or grid[-1] <= 0:
        raise ValueError(f"times must be a strictly decreasing list of times > 0; got {grid}.")
    t_max = float(np.asarray(check_process(process).t_max))
    if grid[0] > t_max * (1.0 + 1e-6):
        raise ValueError(f"times[0] = {grid[0]:g} lies beyond the process's t_max = {t_max:g}.")
    return grid
