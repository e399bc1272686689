"""A schedule: the decreasing times of a sampler and the stochasticity of each of its steps."""

import os
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .. import _checks
from .._numerics import as_inexact, safe_sqrt
from .._precision import is_traced
from .._types import AnyArray, Numbers
from ..processes import (
    AbstractProcess,
    DiscreteVP,
    FlowMatching,
    check_process,
    from_config,
    sigma_range,
)
from ._file import read_json, write_json
from ._levels import times_at_sigmas
from ._step import Step


class Schedule(eqx.Module):
    """The timesteps of a sampler, and how much noise it injects in each of its steps.

        t_0 > t_1 > ... > t_K >= 0,     alpha_k = h/g >= 0 of the step from t_k to t_(k+1)

    It is numbers alone and does not know its process: run with another one, in whose range its
    times lie, it is another schedule. Its noise levels are the same schedule of any
    process (`sigmas`, `from_sigmas`); a saved file may state its process, and `load` compares it.

    **Arguments:**

    - `times`: (K+1,) with K >= 1, strictly decreasing, in the time of the process it is meant for.
    - `stochasticity`: a number or (K,), >= 0; 0 is the probability flow, 1 the reverse SDE.

    **Raises:** ValueError for anything else, naming the first offending entry. Values traced by a
    surrounding transformation are checked by `error_if_invalid` instead, when the schedule is used.

    **Example:**

    ```python
    >>> jk.Schedule([1.0, 0.5, 0.0]).num_steps
    2
    ```
    """

    times: Float[Array, " points"]
    stochasticity_squared: Float[Array, " steps"]

    def __init__(self, times: Numbers, stochasticity: Numbers = 0.0):
        if not is_traced(times):
            times = _checked_times(times)
        if not is_traced(stochasticity):
            stochasticity = _checked_stochasticity(stochasticity)
        shape = (np.shape(times)[0] - 1,)
        if np.shape(stochasticity) not in ((), shape):
            raise ValueError(
                f"stochasticity has shape {np.shape(stochasticity)}; for {shape[0] + 1} times it "
                f"must be a single number or have shape {shape}."
            )
        squared = cast(Array, stochasticity) ** 2
        if is_traced((times, squared)):
            self.times = as_inexact(cast(ArrayLike, times))
            dtype = self.times.dtype
            self.stochasticity_squared = jnp.asarray(jnp.broadcast_to(squared, shape), dtype)
        else:
            # nothing is compiled for a schedule made by hand; a copy, as JAX may share the memory
            self.times = jax.device_put(np.array(times))
            rows = np.broadcast_to(np.asarray(squared, self.times.dtype), shape)
            self.stochasticity_squared = jax.device_put(rows)

    @classmethod
    def from_squared(cls, times: Numbers, stochasticity_squared: ArrayLike) -> "Schedule":
        """Make a schedule from squared stochasticities, for derivatives in alpha^2 at alpha = 0.

        **Arguments:**

        - `times`: (K+1,), strictly decreasing.
        - `stochasticity_squared`: alpha^2 (K,), >= 0.

        **Returns:** the schedule.

        **Raises:** ValueError for times that are none.

        **Example:**

        ```python
        >>> jk.Schedule.from_squared([1.0, 0.5, 0.0], jnp.array([4.0, 0.0])).stochasticity.tolist()
        [2.0, 0.0]
        ```
        """
        squared = stochasticity_squared
        if not is_traced(squared):
            squared = jax.device_put(np.array(squared))
        return eqx.tree_at(lambda s: s.stochasticity_squared, cls(times), squared)

    @classmethod
    def from_sigmas(
        cls, process: AbstractProcess, sigmas: Numbers, stochasticity: Numbers = 0.0
    ) -> "Schedule":
        """Make a schedule from noise levels, as other tools list them; inverse of `sigmas`.

        **Arguments:**

        - `process`: the forward process that the times are meant for.
        - `sigmas`: noise levels s/a (K+1,), strictly decreasing, >= 0 and at most sigma(t_max). The
          first may be infinite where the process has no signal at t_max.
        - `stochasticity`: a number or (K,), >= 0.

        **Returns:** the schedule with these levels.

        **Raises:** ValueError for levels that are none or beyond the process's range, naming the
        entry, and for levels of a flow from 1, which are not s/a but t: a `Schedule` takes them.

        **Example:**

        ```python
        >>> jk.Schedule.from_sigmas(jk.FlowMatching(), [jnp.inf, 1.0, 0.0]).times.tolist()
        [1.0, 0.5, 0.0]
        ```
        """
        check_process(process)
        if is_traced((process, sigmas)):
            return cls(process.time_at_sigma(jnp.asarray(sigmas)), stochasticity)
        levels = _checked_sigmas(process, sigmas)
        times = times_at_sigmas(process, levels)
        if levels[0] >= sigma_range(process, 0.0)[0]:
            times[0] = float(process.t_max)
        _check_resolved("sigmas", levels, times)
        return cls(times, stochasticity)

    @classmethod
    def from_timesteps(
        cls, process: AbstractProcess, timesteps: Numbers, stochasticity: Numbers = 0.0
    ) -> "Schedule":
        """Make a schedule from the timesteps that a discrete sampler evaluates its network at.

        A last step to the data (t = 0) follows.

        **Arguments:**

        - `process`: a `DiscreteVP`, whose timesteps count the table from 0 to N - 1, or a
          `FlowMatching`, whose timesteps are 1000 t.
        - `timesteps`: (K,), strictly decreasing; they may be fractional.
        - `stochasticity`: a number or (K,), >= 0.

        **Returns:** the schedule of K steps.

        **Raises:** ValueError for another process, timesteps beyond its range, or fractions
        that all are at most 1, as those of a flow's t itself.

        **Example:**

        ```python
        >>> process = jk.DiscreteVP.scaled_linear()
        >>> jk.Schedule.from_timesteps(process, [999, 499]).times.tolist()
        [1000.0, 500.0, 0.0]
        ```
        """
        numbers = np.asarray(_checks.array("timesteps", timesteps))
        if numbers.ndim != 1 or not numbers.size:
            raise ValueError(f"timesteps must be a list of numbers; got shape {numbers.shape}.")
        _check_decreasing("timesteps", numbers)
        if isinstance(check_process(process), DiscreteVP):
            low = 0.0
            high = float(process.t_max) - 1.0
            times = numbers + 1.0
            allowed = f"counted from 0, {high:g} .. 0"
            if numbers[0] <= 1.0 and np.any(numbers % 1.0):
                raise ValueError(
                    f"timesteps of DiscreteVP are counted from 0, {high:g} .. 0; {numbers[0]:g} .. "
                    f"{numbers[-1]:g} look like shares of them."
                )
        elif isinstance(process, FlowMatching):
            low = np.finfo(float).tiny
            high = 1000.0 * float(process.t_max)
            times = numbers / 1000.0
            allowed = f"1000 t, from {high:g} to above 0: the step to 0 follows by itself"
            if numbers[0] <= 1.0:
                raise ValueError(
                    f"timesteps of a flow are 1000 t; {numbers[0]:g} .. {numbers[-1]:g} look like "
                    "t itself, which a Schedule takes (and --sigmas on the command line)."
                )
        else:
            raise ValueError(
                f"process {type(process).__name__} has no timesteps; DiscreteVP and FlowMatching "
                "have. Give its times, or its noise levels by from_sigmas."
            )
        if numbers[-1] < low or numbers[0] > high:
            raise ValueError(
                f"timesteps from {numbers[0]:g} to {numbers[-1]:g} lie beyond those of "
                f"{type(process).__name__}, which are {allowed}."
            )
        return cls(np.append(times, 0.0), stochasticity)

    def __repr__(self) -> str:
        alpha: object = self.stochasticity_squared
        if isinstance(alpha, Array) and not is_traced(alpha):
            alpha = np.sqrt(np.asarray(alpha))
            alpha = alpha[0] if alpha.ndim == 1 and np.all(alpha == alpha[:1]) else alpha
        return f"Schedule({_checks.brief(self.times)}, stochasticity={_checks.brief(alpha)})"

    @property
    def stochasticity(self) -> Float[Array, " steps"]:
        """alpha_k = h/g of every step."""
        return safe_sqrt(self.stochasticity_squared)

    @property
    def is_stochastic(self) -> bool:
        """Whether any step injects noise; for a concrete schedule."""
        return bool(np.any(np.asarray(self.stochasticity_squared) > 0))

    @property
    def num_steps(self) -> int:
        """K."""
        return self.times.shape[0] - 1

    def sigmas(self, process: AbstractProcess) -> Float[Array, " points"]:
        """Evaluate the noise levels of a process at the times.

        **Arguments:**

        - `process`: the forward process.

        **Returns:** s/a (K+1,), in units of the data; infinite where there is no signal.

        **Raises:** ValueError for another object than a process.

        **Example:**

        ```python
        >>> jk.Schedule([0.5, 0.2]).sigmas(jk.FlowMatching()).tolist()
        [1.0, 0.25]
        ```
        """
        return _sigmas(check_process(process), self.times)

    def steps(self, history_steps: int = 1, num_steps: int | Int[Array, ""] | None = None) -> Step:
        """Split the schedule into its steps.

        **Arguments:**

        - `history_steps`: number of earlier times that every step knows, >= 0.
        - `num_steps`: how many of them there are, if later ones are padding, which repeats the last
          time: one compiled program then serves every number of steps. Default: all.

        **Returns:** all steps at once: every field has K rows.
        """
        k = np.arange(self.num_steps)
        count = self.num_steps if num_steps is None else num_steps
        earlier = np.maximum(k[:, None] - 1 - np.arange(history_steps), 0)
        return Step(
            time=self.times[:-1],
            next_time=self.times[1:],
            earlier_times=self.times[earlier],
            stochasticity_squared=self.stochasticity_squared,
            completed=jnp.asarray(k),
            remaining=jnp.asarray(count - 1 - k),
        )

    def error_if_invalid(self) -> "Schedule":
        """Check traced values when they are run.

        **Returns:** this schedule, which then raises if its values are not a schedule's.
        """
        t: Array = self.times
        bad: Bool[Array, ""] = (
            jnp.any(~(t[1:] < t[:-1])) | ~(t[-1] >= 0) | jnp.any(~(self.stochasticity_squared >= 0))
        )
        message = "times must decrease to t >= 0, and stochasticity be >= 0."
        return eqx.tree_at(lambda s: s.times, self, eqx.error_if(t, bad, message))

    def save(self, path: str | os.PathLike[str], **metadata: object) -> None:
        """Write a versioned JSON file.

        The file appears whole or not at all: a failed write leaves an existing file as it was.

        **Arguments:**

        - `path`: the file.
        - `metadata`: JSON values that are kept beside the numbers.

        **Raises:** ValueError, naming the path, if it cannot be written.
        """
        alpha = np.sqrt(np.asarray(self.stochasticity_squared))
        write_json(path, np.asarray(self.times), alpha, metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], process: AbstractProcess | None = None
    ) -> "Schedule":
        """Read a file written by `save`.

        **Arguments:**

        - `path`: the file.
        - `process`: that the schedule is to be run with. Its noise levels must be those of the
          process that the file states, if it does (files of `OptimizedSchedule.save` do), at all
          times. Default: not compared.

        **Returns:** the schedule, to the last bit.

        **Raises:** ValueError, naming the path and the fault.
        """
        content = read_json(path)
        try:
            schedule = cls(content["times"], content["stochasticity"])
            if process is not None:
                _check_stated_process(schedule, content, check_process(process))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} holds no valid schedule: {error}") from None
        return schedule


def _check_stated_process(schedule: Schedule, content: dict, process: AbstractProcess) -> None:
    """Raise if the process that a file states has other noise levels than this one."""
    metadata = content.get("metadata")
    if not isinstance(metadata, dict) or metadata.get("process") is None:
        return
    config = metadata["process"]
    own = np.asarray(schedule.sigmas(process))
    if "user_defined" in config:
        stated = config["user_defined"]
        # JSON has no number for an infinite level
        levels = [np.inf if level is None else level for level in metadata["sigmas"]]
        expected = np.asarray(levels, float)
    else:
        stated = from_config(config)
        expected = np.asarray(schedule.sigmas(stated))
    if not np.allclose(own, expected, rtol=1e-4):
        raise ValueError(f"its times are of {stated}; here process is {process}.")


@eqx.filter_jit
def _sigmas(process: AbstractProcess, times: Array) -> Array:
    """sigma at times, in one program."""
    return process.sigma(times)


def _check_decreasing(argument: str, numbers: np.ndarray) -> None:
    """ValueError at the first number that is not smaller than the one before."""
    rising = np.flatnonzero(numbers[1:] >= numbers[:-1])
    if rising.size:
        k = rising[0]
        raise ValueError(
            f"{argument} must strictly decrease; {argument}[{k}] = {numbers[k]:g} is followed by "
            f"{numbers[k + 1]:g}."
        )


def _check_resolved(argument: str, numbers: np.ndarray, times: np.ndarray) -> None:
    """ValueError at the first number whose time is that of the one before in JAX's precision."""
    dtype = jax.dtypes.canonicalize_dtype(times.dtype)
    rounded = times.astype(dtype)
    same = np.flatnonzero(rounded[1:] >= rounded[:-1])
    if same.size:
        k = same[0]
        raise ValueError(
            f"{argument}[{k + 1}] = {numbers[k + 1]} is too near to {argument}[{k}] = "
            f"{numbers[k]}: {dtype.name} cannot tell their times apart."
        )


def _checked_stochasticity(stochasticity: Numbers) -> AnyArray:
    """Stochasticities >= 0, of any shape."""
    checked = _checks.array("stochasticity", stochasticity)
    if np.any(checked < 0):
        raise ValueError(
            f"stochasticity must be >= 0; its smallest entry is {np.min(np.asarray(checked)):g}."
        )
    return checked


def _checked_sigmas(process: AbstractProcess, sigmas: Numbers) -> np.ndarray:
    """Noise levels of a process: strictly decreasing, >= 0, at most the largest."""
    levels = _checks.on_host("sigmas", sigmas)
    finite = _checks.array("sigmas", np.where(levels == np.inf, 0.0, levels))
    levels = np.where(levels == np.inf, np.inf, finite)
    if levels.ndim != 1 or levels.size < 2:
        raise ValueError(f"sigmas must be a list of at least 2 numbers; got shape {levels.shape}.")
    _check_decreasing("sigmas", levels)
    if levels[-1] < 0:
        raise ValueError(f"sigmas must end at sigma >= 0; the last is {levels[-1]:g}.")
    if isinstance(process, FlowMatching) and process.full_t_max is None and levels[0] == 1.0:
        raise ValueError(
            "sigmas[0] = 1: the levels s/a of a flow start at infinity; what tools for flow models "
            "call sigmas is t, of which a Schedule is made."
        )
    largest = sigma_range(process, 0.0)[0]
    # published lists have four or five digits
    if levels[0] > largest * (1.0 + 1e-4):
        raise ValueError(
            f"sigmas[0] = {levels[0]:g} lies beyond sigma(t_max) = {largest:g} of the process."
        )
    return levels


def _checked_times(times: Numbers) -> np.ndarray:
    """Times of a schedule; a floating array keeps its precision."""
    numbers = _checks.array("times", times)
    if numbers.ndim != 1 or numbers.size < 2:
        raise ValueError(f"times must be a list of at least 2 numbers; got shape {numbers.shape}.")
    if numbers[-1] < 0:
        raise ValueError(f"times must end at t >= 0; the last is {numbers[-1]:g}.")
    _check_decreasing("times", np.asarray(numbers))
    given = _checks.on_host("times", times)
    kept = given if np.issubdtype(given.dtype, np.floating) else np.asarray(numbers)
    _check_resolved("times", kept, kept)
    return kept
