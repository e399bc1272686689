"""The range of times and noise levels of a process, and checks against it."""

import jax
import numpy as np
from jaxtyping import Array, ArrayLike

from .. import _checks
from .._precision import to_float64
from .._types import AnyArray, Numbers
from ._base import AbstractProcess, check_process
from ._vp import DiscreteVP


def check_continuous_rates(process: AbstractProcess, sampler: str) -> None:
    """Refuse a process whose velocity jumps in time, for a sampler that follows the velocity."""
    if isinstance(process, DiscreteVP):
        raise ValueError(
            f"process = {process!r}: the bound of {sampler!r} needs rates that are continuous in "
            "time, which those of a table are not; that of 'ddim' is for every process."
        )


def check_range(process: AbstractProcess, num_steps: int, t_min: ArrayLike) -> float:
    """`t_min` as a float in [0, t_max), with `num_steps` checked too."""
    _checks.count("num_steps", num_steps)
    t_max = float(check_process(process).t_max)
    return float(_checks.scalar("t_min", t_min, at_least=0.0, below=t_max))


@jax.jit
def _sigma(process: AbstractProcess, t: Array) -> Array:
    """sigma(t), compiled once for every process of a class."""
    return process.sigma(t)


def sigma_range(process: AbstractProcess, t_min: float) -> tuple[float, float]:
    """sigma at t_max (possibly infinite) and at t_min, in float64."""
    with jax.enable_x64(True):
        ends = np.array([float(process.t_max), t_min])
        largest, smallest = np.asarray(_sigma(to_float64(process), ends))
    return float(largest), float(smallest)


def check_times(process: AbstractProcess, times: Numbers) -> AnyArray:
    """Times at which a process is measured: strictly decreasing, > 0 and at most t_max."""
    checked = _checks.array("times", times)
    if checked.ndim != 1 or checked.size == 0 or np.any(np.diff(checked) >= 0) or checked[-1] <= 0:
        raise ValueError(f"times must be a strictly decreasing list of times > 0; got {checked}.")
    t_max = float(check_process(process).t_max)
    if checked[0] > t_max * (1.0 + 1e-6):
        raise ValueError(f"times[0] = {checked[0]:g} lies beyond the process's t_max = {t_max:g}.")
    return checked
