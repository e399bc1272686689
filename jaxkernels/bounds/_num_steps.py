"""How many steps a certified bound needs for a tolerance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._padding import bucket, pad_last
from .._precision import to_float64
from .._types import Numbers
from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess, check_range
from ..samplers import AbstractSampler
from ..schedules import SCHEDULES, Schedule
from ._assumptions import Assumptions
from ._certified import (
    check_initial,
    evaluate_bound,
    explain,
    known_of,
    required_stochasticity,
    scheme_name,
    step_errors,
)


def certified_num_steps(
    target: Gaussian | GaussianMixture | Assumptions,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    tolerance: Numbers,
    *,
    schedule: str = "uniform",
    t_min: Numbers = 0.0,
    initialization: str | Numbers | None = "marginal",
    max_steps: int = 2**16,
) -> int:
    """Find the smallest number of steps for which a certified bound is below a tolerance.

    It is found by bisection: the bound decreases with the number of steps. Score errors do not
    shrink with it and are left out; so is the initial error unless it is asked for.

    **Arguments:**

    - `target`, `process`, `sampler`: as for `certified_bound`, with stochasticity 1, or 0 for the
      schemes of the probability flow.
    - `tolerance`: of W2, > 0, in the units of the data.
    - `schedule`: name of a schedule in `jk.schedules`, from the process's t_max to `t_min`.
    - `t_min`: the last time.
    - `initialization`: as for `certified_bound`; default: no initial error.
    - `max_steps`: the largest number that is tried.

    **Returns:** the number of steps.

    **Raises:** ValueError as `certified_bound`, and if `max_steps` are not enough.

    **Example:**

    ```python
    >>> data = jk.Gaussian(0.0, [1.0])
    >>> jk.bounds.certified_num_steps(data, jk.OU(t_max=4.0), "tweedie", 0.1)
    1
    ```
    """
    tolerance = float(_checks.scalar("tolerance", tolerance, above=0.0))
    make = _checks.lookup("schedule", schedule, SCHEDULES)
    max_steps = _checks.count("max_steps", max_steps)
    scheme = scheme_name(sampler, process)
    end = check_range(process, 1, np.asarray(t_min))
    start = check_initial(process, initialization)
    with jax.enable_x64(True):
        known, start = to_float64((known_of(target, process), start))

        def bound(count: int) -> float:
            times = pad_last(np.asarray(make(process, count, end).times), bucket(count) + 1)
            return float(_value(known, jnp.asarray(times), scheme, start))

        def enough(count: int) -> bool:
            return bound(count) <= tolerance

        def why_infinite(schedule: Schedule) -> str:
            alpha = required_stochasticity(scheme)
            noisy = Schedule(schedule.times, 1.0 if alpha is None else alpha)
            errors = step_errors(noisy, 0.0, 0.0)
            return f": the bound is infinite, {explain(known, scheme, noisy, errors)}"

        high = 1
        while not enough(high):
            if high >= max_steps:
                raise ValueError(
                    f"max_steps = {max_steps} steps are not enough for tolerance = {tolerance:g}"
                    f"{'' if np.isfinite(bound(high)) else why_infinite(make(process, 1, end))}."
                )
            high = min(2 * high, max_steps)
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            if enough(middle):
                high = middle
            else:
                low = middle
    return high


@eqx.filter_jit
def _value(known, times, scheme, start):
    """The bound on padded times: empty steps add nothing."""
    alpha = required_stochasticity(scheme)
    squared = jnp.full_like(times[1:], 1.0 if alpha is None else alpha)
    schedule = Schedule.from_squared(times, squared)
    errors = step_errors(schedule, 0.0, 0.0)
    return evaluate_bound(known, schedule, scheme, start, errors).value
