"""A schedule on its way to a scheduler of another tool."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._precision import in_float64
from ..processes import AbstractProcess, FlowMatching
from ..schedules import Schedule
from ._render import written

Levels: TypeAlias = Float[np.ndarray, " levels"]
Unit: TypeAlias = Literal["sigma", "flow"]
"""sigma = s/a in units of the data, or the level s/(a + s) of a flow model, in [0, 1]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Hold what a scheduler is told.

    **Arguments:**

    - `name`: the scheduler's name, for messages.
    - `schedule`, `process`: the schedule and the process that it was made for.
    - `unit`: the unit of the levels.
    - `levels`: (levels,), with the end that the scheduler runs.
    - `strength`: (levels - 1,), the tool's noise parameter in every step.
    - `options`: the scheduler's options by name.
    """

    name: str
    schedule: Schedule
    process: AbstractProcess
    unit: Unit
    levels: Levels
    strength: np.ndarray
    options: Mapping[str, object]

    @property
    def ends_at_zero(self) -> bool:
        """Whether the last level is 0."""
        return bool(self.levels[-1] == 0.0)

    @property
    def is_stochastic(self) -> bool:
        """Whether a step injects noise."""
        return bool(self.strength.any())

    @property
    def used(self) -> np.ndarray:
        """The noise parameter of the steps that do not go to level 0, where it has no effect."""
        return self.strength[self.levels[1:] > 0]

    @property
    def constant(self) -> float | None:
        """The noise parameter of all steps to 6 digits, or None if it varies."""
        if self.used.size and np.allclose(self.used, self.used[0], rtol=1e-6, atol=0.0):
            return written(self.used[:1])[0]
        return None

    @property
    def initial_std(self) -> float:
        """Standard deviation of the schedule's initial noise, in the scheduler's unit."""
        first = float(self.levels[0])
        if self.unit == "flow":
            # x at level u is (1 - u) x0 + u eps
            return self._data_std * (1.0 - first) if first < 1.0 else 1.0
        return self._data_std

    @property
    def preserves_variance(self) -> bool:
        """Whether the initial noise has standard deviation sqrt(1 + sigma^2)."""
        expected = math.hypot(float(self.levels[0]), 1.0)
        return math.isclose(self.initial_std, expected, rel_tol=1e-6)

    @property
    def _data_std(self) -> float:
        """Standard deviation of the schedule's initial noise in units of the data."""

        @in_float64
        def standard_deviation(process: AbstractProcess, times: ArrayLike) -> Array:
            t = jnp.asarray(times)[0]
            return jnp.sqrt(process.prior_variance(t)) / process.signal(t)

        return float(standard_deviation(self.process, self.schedule.times))


def schedule_levels(schedule: Schedule, process: AbstractProcess, unit: Unit, name: str) -> Levels:
    """The levels (K+1,) of a schedule in this unit."""
    if unit == "flow":
        return np.array(_flow_levels(process, schedule.times), np.float64)
    if isinstance(process, FlowMatching):
        raise ValueError(
            f"process FlowMatching: {name} takes levels of models with noise added to the data; "
            "flow models are supported by tool 'comfyui', and by 'diffusers' with its schedulers "
            "for them."
        )
    sigmas = np.array(in_float64(Schedule.sigmas)(schedule, process), np.float64)
    if not np.isfinite(sigmas[0]):
        raise ValueError(
            f"times[0] = {float(schedule.times[0]):g} has no signal left, so its sigma is "
            f"infinite; {name} needs a finite first level, that is a smaller t_max."
        )
    return sigmas


@in_float64
def _flow_levels(process: AbstractProcess, times: ArrayLike) -> Array:
    """s/(a + s)."""
    signal = process.signal(times)
    noise = process.noise(times)
    return noise / (signal + noise)


def per_step(
    convert: Callable[..., Array], schedule: Schedule, process: AbstractProcess, levels: Levels
) -> np.ndarray:
    """`convert(process, times, stochasticity)` for every step; 0 in a step to level 0."""
    strength = np.zeros(levels.size - 1)
    strength[: schedule.num_steps] = in_float64(convert)(
        process, schedule.times, schedule.stochasticity
    )
    return np.where(levels[1:] > 0, strength, 0.0)
