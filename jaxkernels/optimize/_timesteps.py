"""Schedules at integer timesteps of a table."""

import itertools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._precision import in_float64
from ..exports import Timesteps
from ..processes import AbstractProcess, DiscreteVP
from ..schedules import Schedule

# selections that are all evaluated, in a call, and at a time, which a large spectrum limits
_FEW = 100_000
_BLOCK = 4096
_TOGETHER = 32

_Values: TypeAlias = Callable[[Float[np.ndarray, "candidates points"]], Array]


def on_integer_timesteps(
    schedule: Schedule, process: AbstractProcess, objective: Callable[[Schedule], Array]
) -> Schedule:
    """Move a schedule to the integer timesteps at which an objective is smallest.

        min over t_0 > t_1 > ... > t_(K-1) >= 1, integers, of objective(t)

    with the first time and an end at 0 or at an integer fixed. Where there are at most 100,000
    selections, of a short table, every one is evaluated. Else it starts at the nearest distinct
    timesteps, and shifts any run of neighbouring ones by ever smaller powers of two, at last by
    one, as long as that lowers the objective: sums over steps of convex functions of their lengths
    have no better selection then, others none that a run's shift by one leads to.

    **Arguments:**

    - `schedule`: of a network that was trained at the times 1, ..., N of a table.
    - `process`: a `DiscreteVP`.
    - `objective`: a jittable function of a `Schedule`, such as
      `jk.LocalError().bind(target, process, sampler)`.

    **Returns:** a schedule whose times are integers, with the stochasticity of the given one.

    **Raises:** ValueError for another process, or more steps than the table has entries.

    **Example:**

    ```python
    >>> process = jk.DiscreteVP.scaled_linear()
    >>> objective = jk.LocalError().bind(jk.Gaussian(0.0, [1.0, 0.1]), process, jk.DDIM())
    >>> schedule = jk.schedules.karras(process, 4, 0.0)
    >>> jk.optimize.on_integer_timesteps(schedule, process, objective).times[0].item()
    1000.0
    ```

    Source: Murota, "Discrete Convex Analysis" (2003), chapter 10: steepest descent for functions of
    differences.
    """
    if not isinstance(process, DiscreteVP):
        raise ValueError(
            f"process {type(process).__name__} has no integer timesteps; DiscreteVP has."
        )
    squared = np.asarray(schedule.stochasticity_squared, np.float64)

    @in_float64
    @jax.jit
    def values(rows: Float[Array, "candidates points"]) -> Float[Array, " candidates"]:
        def value(row: Float[Array, " points"]) -> Float[Array, ""]:
            return objective(Schedule.from_squared(row, jnp.asarray(squared)))

        return jax.lax.map(value, rows, batch_size=_TOGETHER)

    times = _nearest(schedule, process)
    found = _descended(times, values)
    return Schedule.from_squared(
        jnp.asarray(found, schedule.times.dtype), schedule.stochasticity_squared
    )


def rounding_makes_equal(schedule: Schedule, process: AbstractProcess) -> bool:
    """Tell whether two times of a table's schedule have the same nearest integer timestep.

    **Arguments:**

    - `schedule`: the schedule.
    - `process`: of its times; False for all but a `DiscreteVP`.

    **Returns:** whether rounding would make two timesteps equal.

    **Example:**

    ```python
    >>> process = jk.DiscreteVP.scaled_linear()
    >>> jk.optimize.rounding_makes_equal(jk.Schedule([1000.0, 1.4, 0.8, 0.0]), process)
    True
    ```
    """
    times = np.rint(np.asarray(schedule.times))
    return isinstance(process, DiscreteVP) and bool(np.any(np.diff(times[times > 0]) == 0))


def _descended(times: Int[np.ndarray, " points"], values: _Values) -> Int[np.ndarray, " points"]:
    """The best of all selections, if they are few, else where shifts of runs end."""
    interior = range(int(times[0]) - 1, int(times[-1]), -1)
    if math.comb(len(interior), times.size - 2) <= _FEW:
        inner = np.array(list(itertools.combinations(interior, times.size - 2)), int)
        ends = np.broadcast_to(times[[0, -1]], (len(inner), 2))
        return _best(np.concatenate([ends[:, :1], inner, ends[:, 1:]], 1), values)
    width = 1 << (len(interior) // times.size).bit_length()
    while width:
        moved = _best(_shifted(times, width), values)
        if np.array_equal(moved, times):
            width //= 2
        times = moved
    return times


def _best(
    rows: Int[np.ndarray, "candidates points"], values: _Values
) -> Int[np.ndarray, " points"]:
    """The row with the smallest objective, evaluated in blocks of at most two shapes.

    The last row fills the last batch up, as a smaller batch would be compiled on its own.
    """
    rows = np.pad(rows, ((0, -len(rows) % _TOGETHER), (0, 0)), mode="edge")
    found = [values(rows[i : i + _BLOCK].astype(np.float64)) for i in range(0, len(rows), _BLOCK)]
    return rows[int(np.argmin(np.concatenate([np.asarray(block) for block in found])))]


def _nearest(schedule: Schedule, process: DiscreteVP) -> Int[np.ndarray, " points"]:
    """The nearest distinct timesteps as times, counted from 1; an end at 0 stays."""
    sigmas = np.asarray(schedule.sigmas(process), np.float64)
    above = sigmas[sigmas > 0]
    table = Timesteps(integer=True, table=process)
    return np.append(np.array(table.write(above), int) + 1, np.zeros(sigmas.size - above.size, int))


def _shifted(times: Int[np.ndarray, " points"], width: int) -> Int[np.ndarray, "candidates points"]:
    """The times, and with each run of interior ones shifted by `width`, both ways.

    Rows that would not decrease are the times as they are, so that all calls have one shape.
    """
    rows = [times]
    for start, stop in itertools.combinations(range(1, times.size), 2):
        for change in (-width, width):
            row = times.copy()
            row[start:stop] += change
            rows.append(row if np.all(np.diff(row) < 0) else times)
    return np.stack(rows)
