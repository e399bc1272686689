"""Times and numbers of runs of any length up to a bucket."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._padding import bucket
from .._types import AnyArray, constant
from ..processes import AbstractProcess
from ..recurrence import evaluation_times
from ..samplers import AbstractSampler
from ..schedules import BASELINES, TimeCoordinate
from ._bound import ErrorSize, per_evaluation

Options = TypeVar("Options", bound=eqx.Module)


def padded_times(
    coordinate: TimeCoordinate,
    t_min: Float[AnyArray, ""] | None,
    u: Float[Array, " points"],
    num_steps: Int[Array, ""],
) -> Float[Array, " points"]:
    """The times, exact at fixed ends, where a coordinate need not have derivatives.

    `t_min` is the last one; None if it varies. Points beyond `num_steps` repeat it.
    """
    index = jnp.arange(u.shape[0])
    inside = (index > 0) & (index < num_steps)
    middle = jax.lax.stop_gradient(0.5 * (u[0] + u[-1]))
    times = coordinate.time(jnp.where(inside, u, middle))
    start = jnp.asarray(coordinate.start, u.dtype)
    last = jnp.asarray(coordinate.time(u[-1]) if t_min is None else t_min, u.dtype)
    return jnp.where(inside, times, jnp.where(index == 0, start, last))


def per_step(given: Any, count: int) -> Any:
    """Numbers for every step with the last one repeated, or cut, to `count`; others as they are."""
    if callable(given) or jnp.ndim(given) == 0:
        return given
    missing = max(count - jnp.shape(given)[0], 0)
    return jnp.pad(jnp.asarray(given), (0, missing), mode="edge")[:count]


def check_evaluations(
    argument: str,
    value: ErrorSize,
    process: AbstractProcess,
    sampler: AbstractSampler,
    num_steps: int,
) -> None:
    """Check numbers for every evaluation of a run, or a function of their times."""
    if not callable(value):
        per_evaluation(argument, value, constant(np.zeros(sampler.nfe_per_step * num_steps)))
        return
    # as many times for all numbers of steps of a bucket, for which nothing is compiled again
    schedule = BASELINES["uniform"](process, bucket(num_steps), 0.5 * float(process.t_max))
    per_evaluation(argument, value, evaluation_times(process, sampler, schedule))


def pad_sizes(options: Options, names: tuple[str, ...], size: int) -> Options:
    """Options with those that have a number for each evaluation continued to `size` of them."""
    for name in names:
        given = getattr(options, name)
        if callable(given):
            continue
        longer = constant(per_step(given, size))
        options = eqx.tree_at(lambda options, name=name: getattr(options, name), options, longer)
    return options
