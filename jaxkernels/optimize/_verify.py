"""The choice between candidate schedules by running them through the network."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import _checks
from .._types import AnyArray
from ..process import AbstractProcess
from ..schedules import Monotone, Schedule
from ..target import Gaussian

OPTIMUM = "optimised"


def candidates(monotone: Monotone, optima: dict[str, Schedule], named: dict[str, Schedule]) -> dict[str, Schedule]:
    """The optima, the named grids, and the schedules halfway between each of the two: a model is rarely all wrong.

    Halfway in the coordinate of `Monotone`, log sigma where that is finite.
    """
    middle = {}
    for label, optimum in optima.items():
        for name, grid in named.items():
            level = 0.5 * (monotone.coordinate(optimum.times) + monotone.coordinate(grid.times))
            times = np.array(monotone.time(level))
            times[[0, -1]] = np.asarray(optimum.times)[[0, -1]]
            middle[f"{label}, halfway to {name}"] = Schedule(times)
    return {**optima, **middle, **named}


def noises(target: Gaussian, process: AbstractProcess, verify: int | AnyArray, key: Array | None) -> Array:
    """Initial points, twice as many as are used to choose."""
    if not isinstance(verify, int):
        if verify.ndim < 2 or verify.shape[0] < 8:
            raise ValueError(f"verify has shape {verify.shape}; as noises it must be (n, ...) with n >= 8.")
        return jnp.asarray(verify)
    count = _checks.count("verify", verify, at_least=4)
    if np.any(np.asarray(target.weights) != 1):
        raise ValueError("target's modes have weights, so the network's input shape is unknown: pass verify=noises.")
    key = jax.random.key(0) if key is None else key
    scale = jnp.sqrt(process.prior_variance(jnp.asarray(process.t_max, float)))
    return scale * jax.random.normal(key, (2 * count, target.eigenvalues.shape[0]))
