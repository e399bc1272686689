"""Samplers by name, and checks of a sampler with its process and schedule."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from .. import _checks
from .._field_names import known_name
from .._precision import is_traced
from ..processes import AbstractProcess, check_process
from ..schedules import Schedule
from ._adams_bashforth import DEIS, IPNDM, LMS
from ._base import AbstractSampler
from ._ddim import DDIM
from ._dpm_solver import DPMSolverPP2M, DPMSolverPP3M, UniPC
from ._matched_noise import MatchedNoise
from ._randomised import REI, REM
from ._reverse import EulerMaruyama, ExponentialIntegrator
from ._runge_kutta import RK4, Heun, Midpoint
from ._second_order import SecondOrder, SecondOrder1
from ._singlestep import DPM2, DPMSolverPP2S, EDMSampler
from ._tweedie import ExactMean, Tweedie, Tweedie1, Tweedie2

SAMPLERS: dict[str, type[AbstractSampler]] = {
    "ddim": DDIM,
    "dpmpp_2m": DPMSolverPP2M,
    "dpmpp_3m": DPMSolverPP3M,
    "unipc": UniPC,
    "deis": DEIS,
    "ipndm": IPNDM,
    "lms": LMS,
    "dpmpp_2s": DPMSolverPP2S,
    "dpm_2": DPM2,
    "midpoint": Midpoint,
    "edm_sampler": EDMSampler,
    "heun": Heun,
    "rk4": RK4,
    "euler_maruyama": EulerMaruyama,
    "exponential_integrator": ExponentialIntegrator,
    "exact_mean": ExactMean,
    "rem": REM,
    "rei": REI,
    "second_order": SecondOrder,
    "second_order1": SecondOrder1,
    "tweedie": Tweedie,
    "tweedie1": Tweedie1,
    "tweedie2": Tweedie2,
    "matched_noise": MatchedNoise,
}

# what a user-defined sampler has to say of itself
_STATED = ("order", "nfe_per_step", "stochastic")
# as far as a stochasticity is from 1 by rounding
_UNIT = 1e-5


def sampler_name(sampler: AbstractSampler) -> str:
    """Return a sampler's name.

    **Arguments:**

    - `sampler`: a sampler.

    **Returns:** its name in `SAMPLERS`, or the class name of a user-defined one.

    **Example:**

    ```python
    >>> jk.samplers.sampler_name(jk.DDIM())
    'ddim'
    ```
    """
    names = {cls: name for name, cls in SAMPLERS.items()}
    return names.get(type(sampler), type(sampler).__name__)


def check_sampler_name(name: str, argument: str = "sampler") -> str:
    """Look up the name of a sampler, which may be one of another tool.

    **Arguments:**

    - `name`: a name in `SAMPLERS`, or a synonym, in any spelling.
    - `argument`: what an error calls it.

    **Returns:** the name in `SAMPLERS`.

    **Raises:** ValueError for an unknown name, with the right one if it is known elsewhere.

    **Example:**

    ```python
    >>> jk.samplers.check_sampler_name("DPM++ 2M")
    'dpmpp_2m'
    ```
    """
    return known_name("sampler", argument, name, SAMPLERS)


def as_sampler(sampler: object, argument: str = "sampler") -> AbstractSampler:
    """Look up a sampler that may be given by name.

    **Arguments:**

    - `sampler`: a sampler, its name in `SAMPLERS`, or a synonym (`check_sampler_name`).
    - `argument`: what an error calls it.

    **Returns:** the sampler.

    **Raises:** ValueError for an unknown name or another type, or a user-defined sampler without
    the class variables that `AbstractSampler` asks for.

    **Example:**

    ```python
    >>> jk.samplers.as_sampler("heun").nfe_per_step
    2
    ```
    """
    if isinstance(sampler, str):
        sampler = SAMPLERS[check_sampler_name(sampler, argument)]()
    if not isinstance(sampler, AbstractSampler):
        raise ValueError(f"{argument} must be a sampler or a name; got {sampler!r}.")
    missing = [name for name in _STATED if not hasattr(sampler, name)]
    if missing:
        raise ValueError(
            f"{argument}: {type(sampler).__name__} does not state {', '.join(missing)}, which are "
            "class variables of every sampler."
        )
    return sampler


def check_batch_sampler(sampler: AbstractSampler | str) -> AbstractSampler:
    """Look up a sampler that runs all samples at the same times, and forms no Jacobians.

    **Arguments:**

    - `sampler`: a sampler or its name.

    **Returns:** the sampler.

    **Raises:** ValueError for one that runs every sample by itself.

    **Example:**

    ```python
    >>> jk.samplers.check_batch_sampler("heun").nfe_per_step
    2
    ```
    """
    sampler = as_sampler(sampler)
    if sampler.per_sample:
        raise ValueError(
            f"sampler = {sampler!r} runs every sample by itself; only samplers with the same times "
            "for all samples, and no Jacobians, are followed."
        )
    return sampler


def check_schedule(
    process: AbstractProcess, sampler: AbstractSampler, schedule: object
) -> Schedule:
    """Check that a process and a sampler can use a schedule.

    **Arguments:**

    - `process`: the forward process.
    - `sampler`: a sampler.
    - `schedule`: the schedule. Traced values are checked when they are run.

    **Returns:** the schedule.

    **Raises:** ValueError for another type, times beyond the process's t_max, stochasticity of a
    deterministic sampler, or another stochasticity than 1 of one for the reverse SDE alone.

    **Example:**

    ```python
    >>> schedule = jk.Schedule([1.0, 0.5, 0.1])
    >>> jk.samplers.check_schedule(jk.VP(), jk.DDIM(), schedule) is schedule
    True
    ```
    """
    schedule = _checks.instance("schedule", schedule, Schedule)
    check_process(process)
    if is_traced((process, schedule)):
        return _error_if_not_reverse_sde(sampler, schedule.error_if_invalid())
    t_max = float(process.t_max)
    first = float(np.asarray(schedule.times)[0])
    if first > t_max * (1.0 + 1e-6):
        raise ValueError(
            f"times[0] = {first:g} lies beyond the process's t_max = {t_max:g}; is the schedule "
            "meant for another process?"
        )
    largest = float(np.sqrt(np.max(np.asarray(schedule.stochasticity_squared))))
    if largest > 0 and not sampler.stochastic:
        raise ValueError(
            f"stochasticity = {largest:g} has no meaning for {type(sampler).__name__}, which is "
            "deterministic; use 0 or a stochastic sampler such as DDIM."
        )
    check_reverse_sde(sampler, np.sqrt(np.asarray(schedule.stochasticity_squared)))
    return schedule


def check_reverse_sde(sampler: AbstractSampler, stochasticity: ArrayLike) -> None:
    """Check that a sampler for the reverse SDE alone is given stochasticity 1.

    **Arguments:**

    - `sampler`: the sampler; others are given any stochasticity.
    - `stochasticity`: alpha of every step.

    **Raises:** ValueError for another stochasticity.

    **Example:**

    ```python
    >>> jk.samplers.check_reverse_sde(jk.REM(), np.ones(2))
    ```
    """
    alpha = np.asarray(stochasticity)
    other = alpha[np.abs(alpha - 1.0) > _UNIT]
    if sampler.reverse_sde_only and other.size:
        raise ValueError(
            f"stochasticity = {float(other[0]):g}: {type(sampler).__name__} is for the reverse SDE "
            "alone, that is stochasticity 1 at every step, as in Schedule(times, stochasticity=1)."
        )


def _error_if_not_reverse_sde(sampler: AbstractSampler, schedule: Schedule) -> Schedule:
    """The schedule, which raises when it is run if its traced stochasticity does not fit."""
    if not sampler.reverse_sde_only:
        return schedule
    squared = jnp.asarray(schedule.stochasticity_squared)
    # with the times, as a step does not read the stochasticity
    checked = eqx.error_if(
        schedule.times,
        jnp.any(jnp.abs(squared - 1.0) > _UNIT),
        f"{type(sampler).__name__} is for the reverse SDE alone: stochasticity must be 1.",
    )
    return eqx.tree_at(lambda s: s.times, schedule, checked)
