"""A record of a network's trajectories: the error of any schedule without another evaluation.

In x = a D + s eps every deterministic trajectory of a network splits into its denoised point D(t)
and its noise eps(t), both slowly varying. A sampler with one evaluation per step is linear in them,
so that its local error on a recorded trajectory, x(t_k) taken one step by the sampler minus
x(t_{k+1}), is a combination of D and eps at the times of the step's window. (A second evaluation
adds a term in the denoiser's Jacobian, see `_terms.py`.) To first order the end point then moves by

    e = sum_k  (dx_end / dx(t_{k+1}))  local_error_k,                                       (1)

and its component along a direction u is sum_k <A_u(t_{k+1}), local_error_k>. The sensitivity
A_u(t) = (dx_end/dx(t))^T u is found at all times by one backward sweep along the trajectory. What
is kept are the inner products of A_u with D and eps between all pairs of nodes in time; cubic
splines in log sigma interpolate them. (1) keeps the sign of every local error and the sensitivity
of every trajectory, and needs no model of the data. It leaves out what is of second order in the
local errors: it is accurate for many steps, and ranks schedules of few steps.
"""

import abc
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .. import _checks, _files
from .._numerics import larger
from .._precision import in_float64, is_traced, to_float64
from .._types import AnyArray, constant
from ..processes import AbstractProcess, describe_process, from_config
from ..recurrence import window_indices
from ..samplers import AbstractSampler, check_schedule
from ..schedules import Schedule, TimeCoordinate, coordinates_of, times_of
from ._spline import BLOCK, spline_weights
from ._terms import LocalErrorTerms, check_sampler, local_error_terms

R = TypeVar("R", bound="AbstractRecord")
# relative difference below which two times are one in another precision
_SAME_TIME = 1e-5


class AbstractRecord(eqx.Module):
    """What every record of trajectories of a network has.

    **Arguments:**

    - `time_coordinate`: in which the nodes are evenly spaced, from t_max to `t_min`.
    - `t_min`: last time of the trajectories.
    - `last_node`: time of the last node, above t_min if sigma(t_min) = 0.
    - `noise`: (trajectories, ...), where they start.
    - `ends`: (trajectories, d), where they end.
    - `nfe`: that the record cost, rows that fill up its last batch included.
    """

    file_format: ClassVar[str]
    """The format of its files."""
    own_arrays: ClassVar[tuple[str, ...]]
    """The fields that another kind of record has not, all in float64."""

    time_coordinate: eqx.AbstractVar[TimeCoordinate]
    t_min: eqx.AbstractVar[AnyArray]
    last_node: eqx.AbstractVar[AnyArray]
    noise: eqx.AbstractVar[Float[AnyArray, "trajectories *shape"]]
    ends: eqx.AbstractVar[Float[AnyArray, "trajectories d"]]
    nfe: eqx.AbstractVar[int]

    @property
    def process(self) -> AbstractProcess:
        """The process of the recorded network."""
        return self.time_coordinate.process

    @property
    def num_trajectories(self) -> int:
        """Number of trajectories M."""
        return self.ends.shape[0]

    @property
    @abc.abstractmethod
    def num_nodes(self) -> int:
        """Number of nodes N in time."""

    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """Count what records that are concatenated have in common.

        **Returns:** {what is counted: how many}.
        """

    @abc.abstractmethod
    def joined_arrays(self, records: Sequence[Any]) -> dict[str, np.ndarray]:
        """Concatenate the arrays of `own_arrays`.

        **Arguments:**

        - `records`: checked, this one first.

        **Returns:** the arrays by name.
        """

    @property
    def node_times(self) -> np.ndarray:
        """Times of the nodes."""
        return node_times(self.time_coordinate, self.num_nodes, float(np.asarray(self.last_node)))

    def concatenate(self: R, others: Sequence[R]) -> R:
        """Append records that were made apart, by pieces or by several workers.

        What depends on the end points of all trajectories is computed anew: the result is that of
        recording all initial noise at once, up to the directions if their keys differ.

        **Arguments:**

        - `others`: of the same network, with the same process, t_min, nodes and number of
          directions, each from its own initial noise.

        **Returns:** a record of all trajectories: those of this one, then of the others in order.

        **Raises:** ValueError for no list of records, or naming the record that differs.

        **Example:**

        ```python
        >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
        >>> parts = [jk.record(exact, c * np.eye(2), t_min=1e-3, nodes=16) for c in (1.0, 2.0)]
        >>> parts[0].concatenate(parts[1:])
        TrajectoryRecord(4 trajectories, 16 nodes, 2 directions)
        ```
        """
        if not isinstance(others, Sequence) or isinstance(others, str):
            raise ValueError(f"others = {_checks.shown(others)} must be a list of records.")
        for i, other in enumerate(others):
            _check_alike(self, other, i)
        records = [self, *others]
        noise = cast(AnyArray, np.concatenate([np.asarray(r.noise) for r in records]))
        arrays = self.joined_arrays(records)
        arrays["ends"] = np.concatenate([np.asarray(r.ends) for r in records])
        return dataclasses.replace(
            self,
            noise=noise,
            nfe=sum(r.nfe for r in records),
            **{name: constant(rows) for name, rows in arrays.items()},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a versioned .npz file, complete or not at all.

        A user-defined process is only named in it.

        **Arguments:**

        - `path`: of the file.

        **Raises:** ValueError, naming the path, if it cannot be written.
        """
        coordinate = self.time_coordinate
        times = self.node_times
        arrays = {
            "process": np.array(json.dumps(describe_process(self.process))),
            "times": times,
            "signal_noise": _signal_noise(self.process, times),
            "coordinate": np.array([coordinate.start, coordinate.low, coordinate.high], np.float64),
            "nfe": np.asarray(self.nfe),
        }
        names = ("t_min", "last_node", "noise", "ends", *self.own_arrays)
        arrays |= {name: np.asarray(getattr(self, name)) for name in names}
        _files.write(path, self.file_format, arrays)

    @classmethod
    def load(
        cls: type[R], path: str | os.PathLike[str], process: AbstractProcess | None = None
    ) -> R:
        """Read a file written by `save`.

        **Arguments:**

        - `path`: of the file.
        - `process`: needed if the process is user-defined.

        **Returns:** the record.

        **Raises:** ValueError, naming the path and the fault; also if `process` is not the recorded
        one.
        """
        name = os.fspath(path)
        content = _files.read(path, cls.file_format)
        try:
            if process is None:
                process = from_config(json.loads(str(content["process"])))
            start, low, high = map(constant, content["coordinate"])
            names = ("t_min", "last_node", "ends", *cls.own_arrays)
            arrays = {key: constant(content[key]) for key in names}
            arrays["noise"] = cast(AnyArray, content["noise"])
            nfe = int(content["nfe"])
            times = content["times"]
            expected = content["signal_noise"]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{name} holds no valid record: {error}.") from None
        t = _first_difference(process, times, expected)
        if t is not None:
            raise ValueError(
                f"process is not that of {name}: its signal or noise differs at t = {t:g}."
            )
        return cls(time_coordinate=TimeCoordinate(process, start, low, high), nfe=nfe, **arrays)


class TrajectoryRecord(AbstractRecord):
    """Inner products of sensitivities with denoised points and noise along recorded trajectories.

    Made by `record`.

    **Arguments:**

    - `time_coordinate`: in which the nodes are evenly spaced, from t_max to `t_min`.
    - `products`: [j, i, c, m, p], spline coefficients over nodes j and i in time of <A_p(t_j),
      D(t_i)> (c = 0) and <A_p(t_j), eps(t_i)> (c = 1) on trajectory m for direction p, divided by
      `scale`. If sigma(t_min) = 0 a block of four rows j follows, the first of which has the
      products of the end points' sensitivities.
    - `t_min`: last time of the trajectories.
    - `last_node`: time of the last node, above t_min if sigma(t_min) = 0.
    - `noise`: (trajectories, ...), where they start.
    - `ends`: (trajectories, d), where they end.
    - `nfe`: that the record cost, rows that fill up its last batch included; see `record`.

    **Example:**

    ```python
    >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> jk.record(exact, np.eye(2), t_min=1e-3, nodes=16)
    TrajectoryRecord(2 trajectories, 16 nodes, 2 directions)
    ```
    """

    file_format: ClassVar[str] = "jaxkernels.record"
    own_arrays: ClassVar[tuple[str, ...]] = ("products",)

    time_coordinate: TimeCoordinate
    products: Float[AnyArray, "rows splines 2 trajectories directions"]
    t_min: AnyArray
    last_node: AnyArray
    noise: Float[AnyArray, "trajectories *shape"]
    ends: Float[AnyArray, "trajectories d"]
    nfe: int = eqx.field(static=True)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N in time."""
        return self.products.shape[1] - 2

    @property
    def num_directions(self) -> int:
        """Number of directions P of the end point's error."""
        return self.products.shape[4]

    @property
    def scale(self) -> Float[Array, ""] | float:
        """The root of the total variance of the end points."""
        if is_traced(self.ends):
            return jnp.sqrt(jnp.sum(jnp.var(jnp.asarray(self.ends), 0)))
        return end_scale(np.asarray(self.ends))

    def errors(
        self, sampler: AbstractSampler | str, schedule: Schedule
    ) -> Float[np.ndarray, " trajectories"]:
        """Predict the distance of each trajectory's end from the exact one, to first order.

        The root of the mean over directions of squared components: an unbiased estimate of the
        squared distance, exact if there are as many directions as dimensions.

        **Arguments:**

        - `sampler`: a sampler with one evaluation per step, one of order 2 with two, or its name.
        - `schedule`: deterministic, from t_max to `t_min`.

        **Returns:** one distance per trajectory, in units of `scale`.

        **Raises:** ValueError for a sampler with more evaluations per step, a stochastic schedule,
        one with other end times, or a sampler that divides by a signal of 0 at t_max.

        **Example:**

        ```python
        >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
        >>> found = jk.record(exact, np.eye(2), t_min=1e-3, nodes=16)
        >>> found.errors("ddim", jk.schedules.log_snr(jk.VP(), 8, 1e-3)).shape
        (2,)
        ```
        """
        sampler = check_sampler(sampler)
        self.check_predicts(sampler, schedule)
        times = np.asarray(schedule.times, np.float64)
        found = in_float64(_first_order_components)(*to_float64((self, sampler, constant(times))))
        if not np.all(np.isfinite(found)):
            raise ValueError(
                f"{type(sampler).__name__} has no finite error on this schedule: it divides by the "
                f"signal, which is 0 at t_max = {times[0]:g} of {self.process}."
            )
        return np.sqrt(np.mean(np.asarray(found) ** 2, -1))

    def check_predicts(self, sampler: AbstractSampler, schedule: Schedule) -> None:
        """Check that the record says something of a schedule.

        **Arguments:**

        - `sampler`: runs the schedule.
        - `schedule`: a traced one passes.

        **Raises:** ValueError for a stochastic schedule, or one with other end times.
        """
        check_schedule(self.process, sampler, schedule)
        if is_traced(schedule):
            return
        times = np.asarray(schedule.times, np.float64)
        first, last, _ = _span(self)
        if not np.allclose(times[[0, -1]], (first, last), rtol=1e-5, atol=0.0):
            raise ValueError(
                f"schedule runs from {times[0]:g} to {times[-1]:g}; the record from {first:g} to "
                f"{last:g}."
            )
        if schedule.is_stochastic:
            raise ValueError("schedule is stochastic; a record is of deterministic trajectories.")

    def sizes(self) -> dict[str, int]:
        dim = self.ends.shape[1]
        return {"nodes": self.num_nodes, "directions": self.num_directions, "dimensions": dim}

    def joined_arrays(self, records: Sequence["TrajectoryRecord"]) -> dict[str, np.ndarray]:
        scale = end_scale(np.concatenate([np.asarray(r.ends) for r in records]))
        products = [np.asarray(r.products) * (r.scale / scale) for r in records]
        return {"products": np.concatenate(products, axis=3)}

    def contract(self, terms: LocalErrorTerms) -> Float[Array, "trajectories directions"]:
        """Propagate a local error to the end point.

        **Arguments:**

        - `terms`: the local error as a combination of recorded inner products.

        **Returns:** components in units of `scale`, for every trajectory and direction.
        """
        weights = self.block_weights(terms)
        return jnp.tensordot(weights, self.blocks(terms.rows, terms.columns), weights.ndim)

    def blocks(
        self, rows: Float[Array, " terms"], columns: Float[Array, " terms"]
    ) -> Float[Array, "terms 4 4 2 trajectories directions"]:
        """Give the spline coefficients that matter for the terms of a local error.

        **Arguments:**

        - `rows`, `columns`: coordinates of the terms, in the record's own coordinate.

        **Returns:** a block of 4 x 4 coefficients of D and of eps for every term.
        """
        products = jnp.asarray(self.products)
        size = (4, 4, *products.shape[2:])
        places = zip(self._row_weights(rows)[0], self.weights_at(columns)[0], strict=True)
        return jnp.stack(
            [jax.lax.dynamic_slice(products, (r, c, 0, 0, 0), size) for r, c in places]
        )

    def block_weights(self, terms: LocalErrorTerms) -> Float[Array, "terms 4 4 2"]:
        """Give the weights of `blocks` in the components of a local error.

        **Arguments:**

        - `terms`: the local error.

        **Returns:** the weights, whose contraction with `blocks` is `contract`.
        """
        along = self.weights_at(terms.columns)[1][:, None, :, None]
        across = self._row_weights(terms.rows)[1][:, :, None, None]
        weights = across * along * terms.value[:, None, None, :]
        if terms.slope is None:
            return weights
        slope = jax.jacfwd(lambda u: self._row_weights(u)[1])
        across = jax.vmap(slope)(terms.rows)[:, :, None, None]
        return weights + across * along * terms.slope[:, None, None, :]

    def weights_at(self, u: Float[Array, "*s"]) -> tuple[Int[Array, "*s"], Float[Array, "*s 4"]]:
        """Locate coordinates among the nodes.

        **Arguments:**

        - `u`: coordinates of any shape, in the record's own. Below the last node, which only a
          step to sigma = 0 can be, D and eps are those of the node.

        **Returns:** the first of the four spline coefficients that matter there, and their weights.
        """
        coordinate = self.time_coordinate
        top = coordinate.coordinate(coordinate.start)
        bottom = coordinate.coordinate(self.last_node)
        if self._ends_at_zero:
            u = larger(u, bottom)
        return spline_weights((top - u) / (top - bottom) * (self.num_nodes - 1), self.num_nodes)

    @property
    def _ends_at_zero(self) -> bool:
        """Whether the end points' sensitivities have rows of their own."""
        return self.products.shape[0] > self.products.shape[1]

    def _row_weights(self, u: Float[Array, "*s"]) -> tuple[Int[Array, "*s"], Float[Array, "*s 4"]]:
        """The same as `weights_at` for sensitivities: at sigma = 0, u = -inf, those of the end."""
        first, weights = self.weights_at(u)
        if not self._ends_at_zero:
            return first, weights
        at_end = jnp.isneginf(u)
        own = np.eye(BLOCK)[0]
        return (
            jnp.where(at_end, self.products.shape[1], first),
            jnp.where(at_end[..., None], own, weights),
        )

    def __repr__(self) -> str:
        return (
            f"TrajectoryRecord({self.num_trajectories} trajectories, {self.num_nodes} nodes, "
            f"{self.num_directions} directions)"
        )


def end_scale(ends: Float[np.ndarray, "trajectories d"]) -> float:
    """The root of the total variance of end points."""
    return float(np.sqrt(np.sum(np.var(ends, 0))))


def check_record(
    record: object, process: AbstractProcess, sampler: AbstractSampler | str, t_min: object = None
) -> TrajectoryRecord:
    """Check that a record predicts a sampler's errors for a process.

    **Arguments:**

    - `record`: a `TrajectoryRecord`.
    - `process`: that the schedules are for.
    - `sampler`: a sampler or its name.
    - `t_min`: last time of the schedules; None if it is not known yet.

    **Returns:** the record.

    **Raises:** ValueError for no record, one of another process or t_min, or a sampler whose errors
    a record does not predict.
    """
    if not isinstance(record, TrajectoryRecord):
        raise ValueError(
            f"record must be a TrajectoryRecord, of jk.record; got {type(record).__name__}."
        )
    check_sampler(sampler)
    check_span(record.process, float(np.asarray(record.t_min)), process, t_min)
    return record


def check_span(
    recorded: AbstractProcess, own: float, process: AbstractProcess, t_min: object = None
) -> None:
    """Check that a record is of the process and down to the time that are wanted.

    **Arguments:**

    - `recorded`: the process of the record.
    - `own`: the last time of the record.
    - `process`: that the schedules are for.
    - `t_min`: last time of the schedules; None if it is not known yet.

    **Raises:** ValueError for another process or t_min.
    """
    expected = own if t_min is None else float(_checks.scalar("t_min", t_min))
    first = float(np.asarray(process.t_max))
    times = np.linspace(own, float(np.asarray(recorded.t_max)), 7)[1:-1]
    same = np.isclose(first, float(np.asarray(recorded.t_max)), rtol=_SAME_TIME)
    if not (
        same
        and np.allclose(recorded.sigma(times), process.sigma(times), rtol=1e-4)
        and np.isclose(own, expected, rtol=_SAME_TIME)
    ):
        here = "" if t_min is None else f", t_min = {expected:g}"
        raise ValueError(
            f"record is of {recorded} down to t_min = {own:g}; here process is {process}{here}."
        )


def follow_record(process: AbstractProcess, t_min: ArrayLike, schedule: Schedule) -> Schedule:
    """Check that a schedule runs without noise from t_max to where a record ends.

    **Arguments:**

    - `process`: of the record.
    - `t_min`: last time of the record.
    - `schedule`: the schedule. Traced values are checked when they are run.

    **Returns:** the schedule.

    **Raises:** ValueError for a stochastic schedule, or one between other times.
    """
    times = schedule.times
    ends = (process.t_max, t_min)
    if is_traced((ends, schedule)):
        wrong = jnp.any(jnp.asarray(schedule.stochasticity_squared) > 0)
        for own, end in zip((times[0], times[-1]), ends, strict=True):
            wrong = wrong | ~jnp.isclose(own, jnp.asarray(end, own.dtype), rtol=_SAME_TIME)
        message = "a record is of schedules with stochasticity 0 from t_max to its t_min."
        checked = eqx.error_if(times, wrong, message)
        return eqx.tree_at(lambda s: s.times, schedule, checked)
    if schedule.is_stochastic:
        largest = float(np.max(np.asarray(schedule.stochasticity)))
        raise ValueError(
            f"stochasticity = {largest:g}: a record is of deterministic trajectories; use 0."
        )
    first, last = (float(np.asarray(end)) for end in ends)
    own = np.asarray(times)[[0, -1]]
    if not np.allclose(own, (first, last), rtol=_SAME_TIME, atol=0.0):
        raise ValueError(
            f"times from {own[0]:g} to {own[1]:g} must be those of the record, from {first:g} to "
            f"{last:g}."
        )
    return schedule


def propagated_errors(
    record: TrajectoryRecord, sampler: AbstractSampler, times: Float[Array, " points"]
) -> Float[Array, "steps trajectories directions"]:
    """The terms of (1) in units of the scale, for every trajectory and direction."""
    num_steps = times.shape[0] - 1
    points, _ = window_indices(num_steps, sampler.window_steps)
    coordinate = record.time_coordinate

    def term(t: Array, k: Array) -> Array:
        terms = local_error_terms(coordinate, record.process, sampler, t, k, num_steps)
        return record.contract(terms)

    return jax.vmap(term)(times[points], jnp.arange(num_steps))


@eqx.filter_jit
def _first_order_components(
    record: TrajectoryRecord, sampler: AbstractSampler, times: Float[Array, " points"]
) -> Float[Array, "trajectories directions"]:
    """(1) in units of the scale."""
    return jnp.sum(propagated_errors(record, sampler, times), 0)


@in_float64
def node_times(coordinate: TimeCoordinate, nodes: int, t_min: float) -> np.ndarray:
    """Times evenly spaced in the coordinate; the end times exactly."""
    coordinate = to_float64(coordinate)
    start = float(np.asarray(coordinate.start))
    top, bottom = coordinates_of(coordinate, np.asarray([start, t_min]))
    times = times_of(coordinate, np.linspace(top, bottom, nodes))
    times[0] = start
    times[-1] = t_min
    return times


@in_float64
def _signal_noise(process: AbstractProcess, times: np.ndarray) -> np.ndarray:
    """Signal and noise, which tell one process from another."""
    process = to_float64(process)
    return np.stack([np.asarray(process.signal(times)), np.asarray(process.noise(times))])


def _first_difference(
    process: AbstractProcess, times: np.ndarray, expected: np.ndarray
) -> float | None:
    """The first time at which a process has other signal or noise, if any."""
    differs = ~np.isclose(_signal_noise(process, times), expected, rtol=1e-6, atol=1e-12)
    return float(times[np.argmax(differs.any(0))]) if np.any(differs) else None


def _check_alike(first: AbstractRecord, other: object, i: int) -> None:
    """Raise unless record number i of a list can be appended to another."""
    other = _checks.instance(f"others[{i}]", other, type(first))
    size = other.sizes()
    if size != first.sizes():
        counted = ", ".join(f"{count} {name}" for name, count in size.items())
        own = ", ".join(map(str, first.sizes().values()))
        raise ValueError(f"others[{i}] has {counted}; it must have as many as this record: {own}.")
    own_span = _span(first)
    span = _span(other)
    if not np.allclose(span, own_span, rtol=1e-6, atol=0.0):
        raise ValueError(
            f"others[{i}] runs from {span[0]:g} to t_min = {span[1]:g}, with its last node at "
            f"{span[2]:g}; this record from {own_span[0]:g} to {own_span[1]:g}, with its last node "
            f"at {own_span[2]:g}."
        )
    times = first.node_times
    t = _first_difference(other.process, times, _signal_noise(first.process, times))
    if t is not None:
        raise ValueError(
            f"others[{i}] is of {other.process}, this record of {first.process}: signal or noise "
            f"differs at t = {t:g}."
        )


def _span(record: AbstractRecord) -> tuple[float, ...]:
    """First and last time, and that of the last node."""
    ends = (record.process.t_max, record.t_min, record.last_node)
    return tuple(float(np.asarray(end)) for end in ends)
