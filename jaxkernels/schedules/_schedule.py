"""A schedule: the decreasing times of a sampler and the stochasticity of each of its steps."""

import json
import os
from pathlib import Path
from typing import cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .. import _checks
from .._files import write_atomically
from .._numerics import as_inexact, safe_sqrt
from .._precision import is_traced
from .._types import Numbers
from ..processes import AbstractProcess
from ._step import Step

_FORMAT, _VERSION = "jaxkernels.schedule", 1


class Schedule(eqx.Module):
    """Times t_0 > t_1 > ... > t_K >= 0 and stochasticities alpha_k = h/g, one per step.

    **Arguments:** `times` (K+1,) strictly decreasing, in the time of the process it is meant for;
    `stochasticity` a number or (K,), >= 0.

    **Raises:** ValueError for anything else, naming the first offending entry. Values traced by a
    surrounding transformation are checked in `error_if` instead, when the schedule is used.
    """

    times: Float[Array, " points"]
    stochasticity_squared: Float[Array, " steps"]

    def __init__(self, times: Numbers, stochasticity: Numbers = 0.0):
        if not is_traced(times):
            times = _checked_times(times)
        if not is_traced(stochasticity):
            stochasticity = _checks.array("stochasticity", stochasticity)
            if np.any(stochasticity < 0):
                raise ValueError(
                    f"stochasticity must be >= 0; its smallest entry is {stochasticity.min():g}."
                )
        steps = (np.shape(times)[0] - 1,)
        if np.shape(stochasticity) not in ((), steps):
            raise ValueError(
                f"stochasticity has shape {np.shape(stochasticity)}; for {steps[0] + 1} times it must be a "
                f"single number or have shape {steps}."
            )
        # in NumPy unless traced: nothing to compile for a schedule made by hand
        squared = cast(Array, stochasticity) ** 2
        lib = jnp if is_traced(squared) else np
        self.times = as_inexact(cast(ArrayLike, times))
        self.stochasticity_squared = jnp.asarray(lib.broadcast_to(squared, steps), self.times.dtype)

    @classmethod
    def from_squared(cls, times: Numbers, stochasticity_squared: ArrayLike) -> "Schedule":
        """From times (K+1,) and alpha^2 (K,), for derivatives in alpha^2 at alpha = 0."""
        return eqx.tree_at(
            lambda s: s.stochasticity_squared, cls(times), jnp.asarray(stochasticity_squared)
        )

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
        """Noise levels s/a at the times, in units of the data."""
        return process.sigma(self.times)

    def steps(self) -> Step:
        """All steps at once: every field has shape (K,)."""
        t, k = self.times, np.arange(self.num_steps)
        before = jnp.concatenate([t[:1], t[:-2]])
        return Step(
            t[:-1],
            t[1:],
            before,
            self.stochasticity_squared,
            jnp.asarray(k == 0),
            jnp.asarray(k == k[-1]),
        )

    def error_if_invalid(self) -> "Schedule":
        """This schedule, which raises at run time if its (traced) values are not a schedule's."""
        t: Array = self.times
        bad: Bool[Array, ""] = (
            jnp.any(~(t[1:] < t[:-1])) | ~(t[-1] >= 0) | jnp.any(~(self.stochasticity_squared >= 0))
        )
        message = "times must decrease to t >= 0, and stochasticity be >= 0."
        return eqx.tree_at(lambda s: s.times, self, eqx.error_if(t, bad, message))

    def save(self, path: str | os.PathLike[str], **metadata: object) -> None:
        """Write a versioned JSON file; `metadata` (JSON values) is kept beside the numbers.

        The file appears whole or not at all: a failed write leaves an existing file as it was.
        Raises ValueError, naming the path, if it cannot be written.
        """
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "times": np.asarray(self.times, np.float64).tolist(),
            "stochasticity": np.asarray(self.stochasticity, np.float64).tolist(),
            "metadata": metadata,
        }
        write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Schedule":
        """Read a file written by `save`. Raises ValueError, naming the path and the fault."""
        content = read_json(path)
        try:
            return cls(content["times"], content["stochasticity"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} holds no valid schedule: {error}.") from None


def _checked_times(times: Numbers) -> np.ndarray:
    numbers = _checks.array("times", times)
    if numbers.ndim != 1 or numbers.size < 2:
        raise ValueError(f"times must be a list of at least 2 numbers; got shape {numbers.shape}.")
    if numbers[-1] < 0:
        raise ValueError(f"times must end at t >= 0; the last is {numbers[-1]:g}.")
    rising = np.flatnonzero(np.diff(numbers) >= 0)
    if rising.size:
        k = rising[0]
        raise ValueError(
            f"times must strictly decrease; times[{k}] = {numbers[k]:g} is followed by {numbers[k + 1]:g}."
        )
    # a floating array keeps its precision
    given = np.asarray(times)
    return given if np.issubdtype(given.dtype, np.floating) else np.asarray(numbers)


def read_json(path: str | os.PathLike[str]) -> dict:
    """The content of a schedule file as a dictionary, with its format and version checked."""
    name = os.fspath(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}.") from None
    except ValueError as error:  # not UTF-8, not JSON, or cut off
        raise ValueError(f"{name} is not a complete JSON file: {error}.") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{name} is not a schedule file (no format {_FORMAT!r} in it).")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"{name} has version {content.get('version')!r}; this release reads version {_VERSION}."
        )
    return content
