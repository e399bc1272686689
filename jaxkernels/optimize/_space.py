"""The unconstrained variables that schedules are optimised in."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._compile import quick_jit
from .._derivatives import dense_derivatives
from .._numerics import larger
from .._objective import (
    LARGEST_STOCHASTICITY,
    AbstractBoundObjective,
    AbstractCoordinateObjective,
    AbstractJointObjective,
    Derivatives,
)
from .._padding import bucket
from .._types import AnyArray, constant
from ..processes import AbstractProcess, sigma_range
from ..schedules import Schedule, TimeCoordinate, coordinates_of, step_logits, times_of

# beyond which a step has the least length, but for e^-20 of another one
LARGEST_LOGIT = 20.0
# of a step in the coordinate, that is in log sigma
LEAST_LENGTH = 1e-4
# units in the last place of float32 that neighbouring times differ by at least
_LEAST_ULPS = 8
# times at which that is looked at, a size that is compiled anyway
_RESOLVED_POINTS = 128


class ScheduleSpace(eqx.Module):
    """Schedules of K steps as flat vectors z, and what is held fixed.

    z holds the interior times (K-1 logits of step lengths in the coordinate), then log(1 + alpha^2)
    of every step (K) and the coordinate of the last time, the latter two only if optimised.

    Every step within the trained range has a least length, see `least_share`: the optima of
    multistep methods may want two evaluations at one point, for a derivative, but whoever runs them
    needs levels that differ.
    """

    coordinate: TimeCoordinate
    num_steps: int = eqx.field(static=True)
    stochasticity_squared: Float[AnyArray, " steps"] | None
    """Fixed squared stochasticity; None if it is optimised."""
    t_min: Float[AnyArray, ""] | None
    """Fixed last time; None if it is optimised."""
    end_range: Float[AnyArray, " 2"]
    """Smallest and largest coordinate of the last time."""
    least_share: Float[AnyArray, ""]
    """Share of the range that every step has at least, but for a last one that ends below it."""

    @property
    def only_times(self) -> bool:
        """Whether the interior times are all that varies, without noise."""
        fixed = self.stochasticity_squared
        return self.t_min is not None and fixed is not None and not np.any(np.asarray(fixed) > 0)

    def schedule(self, z: Float[Array, " n"]) -> Schedule:
        """The schedule of a vector."""
        squared = self.stochasticity_squared
        end = self.t_min
        if end is None:
            end = self.coordinate.time(z[-1])
            z = z[:-1]
        interior = self.num_steps - 1
        if squared is None:
            squared = jnp.expm1(z[interior:])
        times = self.coordinate.times(z[:interior], end, self.least_share)
        return Schedule.from_squared(times, squared)

    def vectors(self, schedules: Sequence[Schedule]) -> Float[np.ndarray, "starts n"]:
        """The vectors of concrete schedules, the inverse of `arrays`."""
        times = np.stack([np.asarray(s.times, np.float64) for s in schedules])
        u = self.coordinates(times)
        interior = np.append(u[:, :-1], self._interior_ends(times[:, -1:]), 1)
        below = times[:, -1:] < self.coordinate.process.trained_t_min
        parts = [step_logits(np, interior, below, np.asarray(self.least_share))]
        if self.stochasticity_squared is None:
            squares = np.stack([np.asarray(s.stochasticity_squared) for s in schedules])
            parts.append(np.log1p(squares))
        if self.t_min is None:
            parts.append(u[:, -1:])
        return np.concatenate(parts, axis=1)

    def arrays(
        self, z: Float[np.ndarray, "starts n"]
    ) -> tuple[Float[np.ndarray, "starts points"], Float[np.ndarray, "starts steps"]]:
        """Times and squared stochasticity of vectors, the inverse of `vectors`.

        Entries of z beyond this space's are padding.
        """
        interior = self.num_steps - 1
        logits = np.concatenate([np.zeros((len(z), 1)), z[:, :interior]], axis=1)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        first = np.asarray(self.coordinate.start, np.float64)
        top = self.coordinates(first[None, None])
        if self.t_min is None:
            ends = self._times(z[:, -1:])
        else:
            ends = np.full((len(z), 1), np.asarray(self.t_min, np.float64))
        least = np.full_like(shares, np.asarray(self.least_share))
        below = ends < self.coordinate.process.trained_t_min
        least[:, -1:] = np.where(below, 0.0, least[:, -1:])
        shares = least + (1.0 - least.sum(axis=1, keepdims=True)) * shares
        bottom = self._interior_ends(ends)
        u = top - (top - bottom) * np.cumsum(shares, axis=1)
        times = self._times(u)
        times[:, -1:] = ends
        times = np.concatenate([np.broadcast_to(first, (len(z), 1)), times], axis=1)
        squared = self.stochasticity_squared
        if squared is None:
            squares = np.expm1(z[:, interior : interior + self.num_steps])
        else:
            squares = np.broadcast_to(np.asarray(squared), (len(z), self.num_steps))
        return times, squares

    def interpolate(self, first: Schedule, second: Schedule) -> Schedule:
        """The mean of two schedules in the coordinate and in the squared stochasticity."""
        times = np.stack([np.asarray(s.times, np.float64) for s in (first, second)])
        middle = self._times(self.coordinates(times).mean(axis=0, keepdims=True))[0]
        middle[[0, -1]] = times[0, [0, -1]]
        squares = [np.asarray(s.stochasticity_squared) for s in (first, second)]
        return Schedule.from_squared(middle, 0.5 * (squares[0] + squares[1]))

    def coordinates(self, times: Float[np.ndarray, "rows n"]) -> Float[np.ndarray, "rows n"]:
        """The coordinates of times."""
        return coordinates_of(self.coordinate, times)

    def _interior_ends(self, ends: Float[np.ndarray, "rows 1"]) -> Float[np.ndarray, "rows 1"]:
        """The coordinates where the interior times of schedules with these last times stop."""
        return self.coordinates(np.maximum(ends, self.coordinate.process.trained_t_min))

    def _times(self, u: Float[np.ndarray, "rows n"]) -> Float[np.ndarray, "rows n"]:
        return times_of(self.coordinate, u)

    def bounds(self) -> tuple[Float[AnyArray, " n"], Float[AnyArray, " n"]]:
        """The box that vectors are kept in."""
        logits = np.full(self.num_steps - 1, LARGEST_LOGIT)
        lower = [-logits]
        upper = [logits]
        if self.stochasticity_squared is None:
            lower.append(np.zeros(self.num_steps))
            upper.append(np.full(self.num_steps, np.log1p(LARGEST_STOCHASTICITY**2)))
        if self.t_min is None:
            lower.append(np.asarray(self.end_range[:1]))
            upper.append(np.asarray(self.end_range[1:]))
        return constant(np.concatenate(lower)), constant(np.concatenate(upper))


class AbstractProblem(eqx.Module):
    """The logarithm of an objective as a function of a flat vector z, and the box of z.

    The logarithm makes tolerances relative, and turns an objective that is a sum of powers of step
    lengths into one that Newton's method walks through in large steps.
    """

    lower: eqx.AbstractVar[Float[AnyArray, " n"]]
    upper: eqx.AbstractVar[Float[AnyArray, " n"]]

    def smoothed(self, factor: float) -> "AbstractProblem | None":
        """That of the objective with kinks rounded `factor` times as widely; None without kinks."""
        del factor

    @abc.abstractmethod
    def value(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        """log objective at z."""

    @abc.abstractmethod
    def derivatives(self, z: Float[Array, " n"]) -> Derivatives:
        """log objective, its gradient and its Hessian at z."""

    def vectors(
        self, space: ScheduleSpace, schedules: Sequence[Schedule]
    ) -> Float[np.ndarray, "starts n"]:
        """The vectors of concrete schedules."""
        return space.vectors(schedules)

    def arrays(
        self, space: ScheduleSpace, z: Float[np.ndarray, "starts n"]
    ) -> tuple[Float[np.ndarray, "starts points"], Float[np.ndarray, "starts steps"]]:
        """Times and squared stochasticity of vectors."""
        return space.arrays(z)


class DenseProblem(AbstractProblem):
    """An objective that is differentiated as a whole, in any space of schedules."""

    objective: AbstractBoundObjective
    space: ScheduleSpace
    lower: Float[AnyArray, " n"]
    upper: Float[AnyArray, " n"]

    @classmethod
    def of(cls, objective: AbstractBoundObjective, space: ScheduleSpace) -> "DenseProblem":
        lower, upper = space.bounds()
        return cls(objective=objective, space=space, lower=lower, upper=upper)

    def smoothed(self, factor: float) -> "DenseProblem | None":
        return _with_objective(self, self.objective.smoothed(factor))

    def value(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.log(self.objective(self.space.schedule(z)))

    def derivatives(self, z: Float[Array, " n"]) -> Derivatives:
        return _of_logarithm(
            *dense_derivatives(lambda z: self.objective(self.space.schedule(z)), z)
        )


class AbstractTimesProblem(AbstractProblem):
    """An objective of the coordinates u of the times, as a function of logits z of step lengths.

        u_i = top - least i - length P_i,    P_i = p_0 + ... + p_{i-1},    p = softmax(0, z)

    No step is shorter than `least`, but for one below the trained range. The numbers of steps and
    of logits differ: logits beyond `num_steps` are padding, held at 0. A stochasticity that is
    optimised is not in the vectors: it is the best one at their times.
    """

    objective: eqx.AbstractVar[AbstractCoordinateObjective]
    num_steps: eqx.AbstractVar[Int[AnyArray, ""]]

    @abc.abstractmethod
    def coordinates(self, z: Float[Array, " n"]) -> Float[Array, " points"]:
        """u, constant in the padding."""

    def smoothed(self, factor: float) -> "AbstractTimesProblem | None":
        return _with_objective(self, self.objective.smoothed(factor))

    def value(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.log(self.objective.value(self.coordinates(z), self.num_steps))


class TimesProblem(AbstractTimesProblem):
    """That of a fixed last time, whose coordinate `end` is at most that of i = num_steps."""

    objective: AbstractCoordinateObjective
    lengths: "StepLengths"
    num_steps: Int[AnyArray, ""]
    lower: Float[AnyArray, " n"]
    upper: Float[AnyArray, " n"]

    @classmethod
    def of(cls, objective: AbstractCoordinateObjective, space: ScheduleSpace) -> "TimesProblem":
        size = _padded_steps(objective, space.num_steps)
        upper = constant(_logit_bounds(size, space.num_steps))
        return cls(
            objective=objective,
            lengths=StepLengths.of(space),
            num_steps=jax.device_put(np.asarray(space.num_steps)),
            lower=-upper,
            upper=upper,
        )

    def vectors(
        self, space: ScheduleSpace, schedules: Sequence[Schedule]
    ) -> Float[np.ndarray, "starts n"]:
        logits = space.vectors(schedules)[:, : space.num_steps - 1]
        return pad_zeros(logits, np.shape(self.lower)[0])

    def arrays(
        self, space: ScheduleSpace, z: Float[np.ndarray, "starts n"]
    ) -> tuple[Float[np.ndarray, "starts points"], Float[np.ndarray, "starts steps"]]:
        return space.arrays(_with_best_stochasticity(self, space, z))

    def derivatives(self, z: Float[Array, " n"]) -> Derivatives:
        u = self.coordinates(z)
        value, slope, curvature = self.objective.derivatives(u, self.num_steps)
        p = _shares(z, self.num_steps)
        return _of_logarithm(value, *_in_logits(slope, curvature, self.lengths.length, p))

    def coordinates(self, z: Float[Array, " n"]) -> Float[Array, " points"]:
        return self.lengths.coordinates(z, self.num_steps)


class FreeEndProblem(AbstractTimesProblem):
    """That of a last time that varies: its coordinate is the last entry of the vectors.

    `trained` is the coordinate of the smallest time at which a network has been trained, or the
    smallest number, and `share` that of the range that every step has at least.
    """

    objective: AbstractCoordinateObjective
    top: Float[AnyArray, ""]
    trained: Float[AnyArray, ""]
    share: Float[AnyArray, ""]
    num_steps: Int[AnyArray, ""]
    lower: Float[AnyArray, " n"]
    upper: Float[AnyArray, " n"]

    @classmethod
    def of(cls, objective: AbstractCoordinateObjective, space: ScheduleSpace) -> "FreeEndProblem":
        logits = _logit_bounds(_padded_steps(objective, space.num_steps), space.num_steps)
        first, last = np.asarray(space.end_range)
        smallest = space.coordinate.process.trained_t_min
        trained = first if smallest == 0 else space.coordinates(np.asarray([[smallest]]))[0, 0]
        return cls(
            objective=objective,
            top=constant(space.coordinates(np.asarray([[space.coordinate.start]]))[0, 0]),
            trained=constant(trained),
            share=constant(space.least_share),
            num_steps=jax.device_put(np.asarray(space.num_steps)),
            lower=constant(np.append(-logits, first)),
            upper=constant(np.append(logits, last)),
        )

    def vectors(
        self, space: ScheduleSpace, schedules: Sequence[Schedule]
    ) -> Float[np.ndarray, "starts n"]:
        z = space.vectors(schedules)
        logits = pad_zeros(z[:, : space.num_steps - 1], np.shape(self.lower)[0] - 1)
        return np.concatenate([logits, z[:, -1:]], axis=1)

    def arrays(
        self, space: ScheduleSpace, z: Float[np.ndarray, "starts n"]
    ) -> tuple[Float[np.ndarray, "starts points"], Float[np.ndarray, "starts steps"]]:
        z = np.concatenate([_with_best_stochasticity(self, space, z), z[:, -1:]], axis=1)
        return space.arrays(z)

    def derivatives(self, z: Float[Array, " n"]) -> Derivatives:
        logits = z[:-1]
        end = z[-1]
        p = _shares(logits, self.num_steps)

        def at(end: Array) -> tuple[Array, Array]:
            steps = self._steps(end)
            return steps.coordinates(logits, self.num_steps), jnp.asarray(steps.length)

        # u and the length are linear in the end
        (u, length), (rate, stretch) = jax.jvp(at, (end,), (jnp.ones_like(end),))
        value, slope, curvature = self.objective.derivatives(u, self.num_steps)
        gradient, hessian = _in_logits(slope, curvature, length, p)
        bent = curvature @ rate
        mixed = _pull(bent[1:-1, None], length, p)[:, 0] + stretch / length * gradient
        hessian = jnp.block([[hessian, mixed[:, None]], [mixed[None], (rate @ bent)[None, None]]])
        return _of_logarithm(value, jnp.append(gradient, slope @ rate), hessian)

    def coordinates(self, z: Float[Array, " n"]) -> Float[Array, " points"]:
        return self._steps(z[-1]).coordinates(z[:-1], self.num_steps)

    def _steps(self, end: Array) -> "StepLengths":
        bottom = larger(end, self.trained)
        least = self.share * (self.top - bottom)
        counted = self.num_steps - jnp.where(end < self.trained, 1, 0)
        length = self.top - bottom - counted.astype(end.dtype) * least
        return StepLengths(self.top, least, length, end)


class JointProblem(AbstractProblem):
    """An objective of the times and of the stochasticity of every step, to a fixed last time.

    The vectors hold the logits of step lengths, then log(1 + alpha^2) of every step, both padded.
    """

    objective: AbstractJointObjective
    lengths: "StepLengths"
    num_steps: Int[AnyArray, ""]
    lower: Float[AnyArray, " n"]
    upper: Float[AnyArray, " n"]

    @classmethod
    def of(cls, objective: AbstractJointObjective, space: ScheduleSpace) -> "JointProblem":
        size = bucket(space.num_steps)
        largest = np.where(np.arange(size) < space.num_steps, np.log1p(LARGEST_STOCHASTICITY**2), 0)
        logits = _logit_bounds(size, space.num_steps)
        return cls(
            objective=objective,
            lengths=StepLengths.of(space),
            num_steps=jax.device_put(np.asarray(space.num_steps)),
            lower=constant(np.append(-logits, 0.0 * largest)),
            upper=constant(np.append(logits, largest)),
        )

    def smoothed(self, factor: float) -> "JointProblem | None":
        return _with_objective(self, self.objective.smoothed(factor))

    def vectors(
        self, space: ScheduleSpace, schedules: Sequence[Schedule]
    ) -> Float[np.ndarray, "starts n"]:
        z = space.vectors(schedules)
        interior = space.num_steps - 1
        size = bucket(space.num_steps)
        logits = pad_zeros(z[:, :interior], size - 1)
        return np.concatenate([logits, pad_zeros(z[:, interior:], size)], axis=1)

    def arrays(
        self, space: ScheduleSpace, z: Float[np.ndarray, "starts n"]
    ) -> tuple[Float[np.ndarray, "starts points"], Float[np.ndarray, "starts steps"]]:
        logits, logs = np.split(z, [bucket(space.num_steps) - 1], axis=1)
        return space.arrays(np.append(logits[:, : space.num_steps - 1], logs, axis=1))

    def value(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        logits, logs = self._split(z)
        u = self.lengths.coordinates(logits, self.num_steps)
        return jnp.log(self.objective.value(u, jnp.expm1(logs), self.num_steps))

    def derivatives(self, z: Float[Array, " n"]) -> Derivatives:
        logits, logs = self._split(z)
        length = self.lengths.length
        u = self.lengths.coordinates(logits, self.num_steps)
        p = _shares(logits, self.num_steps)
        value, slope, curvature = self.objective.derivatives(u, jnp.expm1(logs), self.num_steps)
        # of alpha^2 in its logarithm
        rate = jnp.exp(logs)
        points = u.size
        gradient, hessian = _in_logits(slope[:points], curvature[:points, :points], length, p)
        mixed = _pull(curvature[1 : points - 1, points:] * rate, length, p)
        own = curvature[points:, points:] * rate[:, None] * rate
        own = own + jnp.diag(slope[points:] * rate)
        hessian = jnp.block([[hessian, mixed], [mixed.T, own]])
        return _of_logarithm(value, jnp.append(gradient, slope[points:] * rate), hessian)

    def _split(self, z: Float[Array, " n"]) -> tuple[Float[Array, " m"], Float[Array, " steps"]]:
        interior = z.size // 2
        return z[:interior], z[interior:]


def _with_objective(problem: Any, objective: Any) -> Any:
    """A problem of another objective of the same structure, if there is one."""
    if objective is None:
        return None
    return eqx.tree_at(lambda problem: problem.objective, problem, objective)


class StepLengths(NamedTuple):
    """How logits divide the range of u into steps; see `AbstractTimesProblem`."""

    top: AnyArray
    least: AnyArray
    length: AnyArray
    end: AnyArray

    @classmethod
    def of(cls, space: ScheduleSpace) -> "StepLengths":
        """Those of a space with a fixed last time."""
        assert space.t_min is not None
        t_min = float(space.t_min)
        low = max(t_min, space.coordinate.process.trained_t_min)
        times = np.asarray([[space.coordinate.start, low, t_min]], np.float64)
        top, bottom, end = space.coordinates(times)[0]
        least = float(space.least_share) * (top - bottom)
        length = top - bottom - (space.num_steps - (t_min < low)) * least
        return cls(constant(top), constant(least), constant(length), constant(end))

    def coordinates(
        self, logits: Float[Array, " n"], num_steps: Int[AnyArray, ""]
    ) -> Float[Array, " points"]:
        """u of logits, constant in the padding."""
        p = _shares(logits, num_steps)
        steps = jnp.arange(1, p.shape[0] + 1)
        least = self.least * steps.astype(p.dtype)
        inside = self.top - least - self.length * jnp.cumsum(p)
        inside = jnp.where(steps < num_steps, inside, self.end)
        return jnp.concatenate([jnp.asarray(self.top, p.dtype)[None], inside])


def pad_zeros(rows: Float[np.ndarray, "starts m"], size: int) -> Float[np.ndarray, "starts n"]:
    """Rows of a vector, such as logits, followed by zeros up to `size`."""
    return np.pad(rows, ((0, 0), (0, size - rows.shape[1])))


def _shares(logits: Float[Array, " n"], num_steps: AnyArray) -> Float[Array, " steps"]:
    """What every step has of the range beyond the least lengths, 0 in the padding."""
    logits = jnp.concatenate([jnp.zeros(1, logits.dtype), logits])
    return jax.nn.softmax(jnp.where(jnp.arange(logits.shape[0]) < num_steps, logits, -jnp.inf))


def _in_logits(
    slope: Float[Array, " points"],
    curvature: Float[Array, "points points"],
    length: AnyArray,
    p: Float[Array, " steps"],
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Gradient and Hessian in the logits, from those in u."""
    slope = slope[1:-1]
    # q = dF/dp, from which the gradient and the bend of softmax follow
    q = -length * jnp.concatenate([_sum_after(slope), jnp.zeros(1, slope.dtype)])
    centered = q - jnp.sum(p * q)
    pulled = _pull(_pull(curvature[1:-1, 1:-1], length, p).T, length, p)
    bend = jnp.diag(p * centered) - p[:, None] * p * (centered[:, None] + centered)
    return (p * centered)[1:], pulled + bend[1:, 1:]


def _pull(
    rows: Float[Array, "points n"], length: AnyArray, p: Float[Array, " steps"]
) -> Float[Array, "m n"]:
    """J^T rows, J = du/dz over interior points.

    -length p_j (sum_{i > j} rows_i - sum_i P_i rows_i)
    """
    share = jnp.cumsum(p)[:-1]
    total = share @ rows
    later = jnp.concatenate([_sum_after(rows)[1:], jnp.zeros_like(rows[:1])])
    return -length * p[1:, None] * (later - total)


def _padded_steps(objective: AbstractCoordinateObjective, num_steps: int) -> int:
    """The number of steps that an objective is evaluated with."""
    return bucket(num_steps) if objective.padded else num_steps


def _logit_bounds(size: int, num_steps: int) -> Float[np.ndarray, " n"]:
    """The largest size of every logit, 0 in the padding."""
    return np.where(np.arange(size - 1) < num_steps - 1, LARGEST_LOGIT, 0.0)


def _with_best_stochasticity(
    problem: AbstractTimesProblem, space: ScheduleSpace, z: Float[np.ndarray, "starts n"]
) -> Float[np.ndarray, "starts m"]:
    """The logits in vectors, and log(1 + alpha^2) of the best stochasticity if it is not fixed."""
    interior = z[:, : space.num_steps - 1]
    if space.stochasticity_squared is not None:
        return interior
    best = np.asarray(_best_stochasticity(problem, jnp.asarray(z)))[:, : space.num_steps]
    return np.concatenate([interior, np.log1p(best)], axis=1)


@quick_jit
def _best_stochasticity(
    problem: AbstractTimesProblem, z: Float[Array, "starts n"]
) -> Float[Array, "starts steps"]:
    """The squared stochasticity of every step that goes with the times of vectors."""

    def one(z: Array) -> Array:
        u = problem.coordinates(z)
        return problem.objective.stochasticity_squared(u, problem.num_steps)

    return jax.lax.map(one, z)


def time_coordinate(
    process: AbstractProcess, eigenvalues: Float[np.ndarray, " modes"], t_min: float
) -> TimeCoordinate:
    """The coordinate of the times: log sigma, bent only where an end of sigma is 0 or infinite."""
    largest = eigenvalues.max()
    scale = eigenvalues[eigenvalues > 1e-10 * largest] if largest > 0 else np.ones(1)
    to_zero = t_min == 0.0
    to_infinity = not np.isfinite(sigma_range(process, t_min)[0])
    return TimeCoordinate(
        process,
        np.asarray(process.t_max),
        np.asarray(0.1 * np.sqrt(np.min(scale)) if to_zero else 0.0),
        np.asarray(10.0 * np.sqrt(np.max(scale)) if to_infinity else np.inf),
    )


def least_share(coordinate: TimeCoordinate, num_steps: int, t_min: float) -> float:
    """The share of the range of u, down to t_min, that every step of a schedule has at least.

    It is `LEAST_LENGTH` in u, or longer where float32 needs that to tell times apart, as near t = 1
    of a flow; at most half of the mean step.
    """
    first = float(np.asarray(coordinate.start))
    last = max(t_min, coordinate.process.trained_t_min)
    top, bottom = coordinates_of(coordinate, np.asarray([first, last]))
    times = times_of(coordinate, np.linspace(top, bottom, _RESOLVED_POINTS))
    rates = -np.diff(times) * (_RESOLVED_POINTS - 1) / (top - bottom)
    resolved = np.max(np.spacing(np.float32(times[:-1])) / rates)
    return min(max(LEAST_LENGTH, _LEAST_ULPS * resolved) / (top - bottom), 0.5 / num_steps)


def _sum_after(rows: Float[Array, "points *n"]) -> Float[Array, "points *n"]:
    """Sum of row i and all later ones, for every i."""
    return jnp.cumsum(rows[::-1], axis=0)[::-1]


def _of_logarithm(value: Array, gradient: Array, hessian: Array) -> Derivatives:
    """Derivatives of log f from those of f."""
    gradient = gradient / value
    return jnp.log(value), gradient, hessian / value - gradient[:, None] * gradient
