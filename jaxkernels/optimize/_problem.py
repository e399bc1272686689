"""The problem of an optimisation: its objective, space of schedules, starts and baselines."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._compile import quick_jit
from .._field_names import known_name
from .._objective import (
    LARGEST_STOCHASTICITY,
    AbstractBoundObjective,
    AbstractCoordinateObjective,
    AbstractObjective,
    ScheduleFunction,
)
from .._padding import bucket, pad_last
from .._precision import to_float64
from .._types import Numbers, constant
from ..distributions import Compression, Gaussian
from ..errors import LocalError
from ..processes import AbstractProcess, check_range
from ..samplers import AbstractSampler, check_reverse_sde
from ..schedules import BASELINES, SCHEDULES, Schedule
from ._candidates import RESERVED, Candidate, Origin, by_label
from ._space import (
    AbstractProblem,
    AbstractTimesProblem,
    DenseProblem,
    FreeEndProblem,
    JointProblem,
    ScheduleSpace,
    TimesProblem,
    least_share,
    time_coordinate,
)

Starts: TypeAlias = Sequence[str] | Mapping[str, Schedule] | None
_STOCHASTIC = " with stochasticity 1"


class CustomObjective(AbstractObjective):
    """A user-defined function of a schedule as an objective.

    The arrays of a module are arguments of what is compiled, those of a function constants in it.
    """

    fn: ScheduleFunction

    def bind(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundCustomObjective":
        del target, process, sampler
        return BoundCustomObjective(to_float64(self.fn))


class BoundCustomObjective(AbstractBoundObjective):
    """A user-defined function of a schedule."""

    fn: ScheduleFunction

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        # what runs a network in float32 returns that
        return jnp.asarray(self.fn(schedule), schedule.times.dtype)

    def why_infinite(self, schedule: Schedule) -> str:
        del schedule
        return "A function of a schedule is minimised by its logarithm; exp(f) is positive."


def as_objective(objective: Any) -> AbstractObjective:
    """An objective, a function of a schedule, or None for `LocalError()`."""
    if objective is None:
        return LocalError()
    if isinstance(objective, AbstractObjective):
        return objective
    if isinstance(objective, type) or not callable(objective):
        raise ValueError(
            "objective must be an objective such as jk.LocalError(), or a function of a schedule; "
            f"got {objective!r}."
        )
    fn: Any = objective if isinstance(objective, eqx.Module) else jax.tree_util.Partial(objective)
    return CustomObjective(fn)


def check_function(objective: AbstractObjective, num_steps: int) -> None:
    """ValueError unless a user-defined function, traced as it will be, returns a real scalar."""
    if not isinstance(objective, CustomObjective):
        return

    def call(times: Array, squared: Array) -> object:
        return to_float64(objective.fn)(Schedule.from_squared(times, squared))

    wanted = (
        "objective must return a real scalar computed from schedule.times and "
        "schedule.stochasticity by jax.numpy"
    )
    try:
        with jax.enable_x64(True):
            points = jax.ShapeDtypeStruct((num_steps + 1,), jnp.float64)
            steps = jax.ShapeDtypeStruct((num_steps,), jnp.float64)
            found = jax.eval_shape(call, points, steps)
    except (TypeError, jax.errors.NonConcreteBooleanIndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{wanted}; it raised {type(error).__name__}: {reason}") from error
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise ValueError(f"{wanted}; it returned {type(found).__name__}.")
    if found.shape or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{wanted}; it returned shape {found.shape} of {found.dtype}.")


@dataclasses.dataclass(frozen=True)
class ScheduleProblem:
    """Everything that a solver and a selection need of an optimisation. All arrays are float64.

    `objective` is on the full spectrum, `reduced` and `problem` on the compressed one; `baselines`
    and `starts` are candidates.
    """

    objective: AbstractBoundObjective
    reduced: AbstractBoundObjective
    problem: AbstractProblem
    space: ScheduleSpace
    baselines: tuple[Candidate, ...]
    starts: tuple[Candidate, ...]
    compression: Compression | None

    def vectors(self) -> Float[np.ndarray, "starts n"]:
        """The starts as vectors of `problem`."""
        return self.problem.vectors(self.space, [start.schedule for start in self.starts])

    def from_best(self, count: int) -> "ScheduleProblem":
        """The same from those starts that have the smallest objective."""
        arrays = schedule_arrays([start.schedule for start in self.starts])
        order = np.argsort(self.evaluate(*arrays), kind="stable")[:count]
        return dataclasses.replace(self, starts=tuple(self.starts[i] for i in order))

    def unchangeable(self) -> dict[str, float]:
        """What no schedule of the space can change of the objective on the full spectrum.

        Injected noise reduces the error of the initial distribution, and t_min that of truncation.
        """
        t_min = self.space.t_min
        if t_min is None:
            t_min = self.space.coordinate.time(self.space.end_range[0])
        parts = self.objective.unchangeable(self.space.coordinate, float(np.asarray(t_min)))
        initialization, truncation = np.asarray(parts).tolist()
        return {
            "initialization": initialization if self.space.only_times else 0.0,
            "truncation": truncation,
        }

    def evaluate(
        self,
        times: Float[np.ndarray, "schedules points"],
        squared: Float[np.ndarray, "schedules steps"],
    ) -> Float[np.ndarray, " schedules"]:
        """The objective of times and squared stochasticities on the full spectrum.

        Infinite where it is not a number.
        """
        values = self.evaluate_unchecked(times, squared)
        return np.where(np.isnan(values), np.inf, values)

    def evaluate_unchecked(
        self,
        times: Float[np.ndarray, "schedules points"],
        squared: Float[np.ndarray, "schedules steps"],
    ) -> Float[np.ndarray, " schedules"]:
        """The same, NaN where it is not a number."""
        values = self._in_coordinate(times, squared)
        if values is None:
            values = _values(self.objective, jnp.asarray(times), jnp.asarray(squared))
        return np.asarray(values)

    def _in_coordinate(
        self,
        times: Float[np.ndarray, "schedules points"],
        squared: Float[np.ndarray, "schedules steps"],
    ) -> np.ndarray | Array | None:
        """The same as functions of coordinates, if that is cheaper."""
        if np.all(squared == squared[0]):
            return self._at_stochasticity(times, squared[0])
        # one schedule after the other, by one program
        rows = zip(times, squared, strict=True)
        found = []
        for row, alpha2 in rows:
            value = self._at_stochasticity(row[None], alpha2)
            if value is None:
                return None
            found.append(np.asarray(value))
        return np.concatenate(found)

    def _at_stochasticity(
        self, times: Float[np.ndarray, "schedules points"], squared: Float[np.ndarray, " steps"]
    ) -> Array | None:
        space = self.space
        t_min = None if space.t_min is None else float(np.asarray(space.t_min))
        run = (space.coordinate, t_min, space.num_steps)
        objective = self.objective.with_stochasticity(*run, squared)
        if objective is None:
            return None
        u = space.coordinates(times)
        if objective.padded:
            u = pad_last(u, bucket(space.num_steps) + 1)
        return _coordinate_values(objective, *jax.device_put((u, np.asarray(space.num_steps))))


def make_problem(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    num_steps: int,
    t_min: tuple[float, float],
    objective: AbstractObjective,
    stochasticity_squared: Float[np.ndarray, " steps"] | None,
    starts: Starts,
) -> ScheduleProblem:
    """The problem of checked arguments, in float64: call it where that is enabled."""
    target, process, sampler, objective = to_float64((target, process, sampler, objective))
    full = objective.bind(target, process, sampler)
    reduced = objective.reduce(full)
    low, high = t_min
    coordinate = time_coordinate(process, np.asarray(target.eigenvalues), low)
    space = ScheduleSpace(
        coordinate,
        num_steps,
        None if stochasticity_squared is None else constant(stochasticity_squared),
        constant(low) if low == high else None,
        constant(np.zeros(2)),
        constant(least_share(coordinate, num_steps, high)),
    )
    if low < high:
        ends = space.coordinates(np.asarray([[low, high]]))[0]
        space = eqx.tree_at(lambda s: s.end_range, space, ends)
        end = float(coordinate.time(ends.mean()))
    else:
        end = low
    named = {name: make(process, num_steps, end) for name, make in SCHEDULES.items()}
    known = {name: named[name] for name in BASELINES}
    given = known if starts is None else _given_starts(starts, named, process, low, high)
    every = _with_stochasticity({**known, **given}, stochasticity_squared)
    labelled = by_label(every)
    problem = problem_in(space, reduced)
    # starts that differ in nothing but a stochasticity are one where the best is known
    suffixes = ("",) if isinstance(problem, AbstractTimesProblem) else ("", _STOCHASTIC)
    labels = [f"{name}{suffix}" for suffix in suffixes for name in given]
    return ScheduleProblem(
        objective=full,
        reduced=reduced,
        problem=problem,
        space=space,
        baselines=tuple(every),
        starts=tuple(labelled[label] for label in labels if label in labelled),
        compression=getattr(getattr(reduced, "target", None), "compression", None),
    )


def schedule_arrays(
    schedules: Sequence[Schedule],
) -> tuple[Float[np.ndarray, "schedules points"], Float[np.ndarray, "schedules steps"]]:
    """Times and squared stochasticity of schedules of one length."""
    times = np.stack([np.asarray(s.times, np.float64) for s in schedules])
    squared = np.stack([np.asarray(s.stochasticity_squared, np.float64) for s in schedules])
    return times, squared


def problem_in(space: ScheduleSpace, objective: AbstractBoundObjective) -> AbstractProblem:
    """The problem of an objective in a space, with its cheapest derivatives."""
    squared = space.stochasticity_squared
    fixed = None if squared is None else np.asarray(squared)
    t_min = None if space.t_min is None else float(space.t_min)
    inner = objective.with_stochasticity(space.coordinate, t_min, space.num_steps, fixed)
    if inner is not None:
        kind = FreeEndProblem if t_min is None else TimesProblem
        return kind.of(inner, space)
    if squared is None and t_min is not None:
        joint = objective.in_times_and_stochasticity(space.coordinate, t_min, space.num_steps)
        if joint is not None:
            return JointProblem.of(joint, space)
    if space.stochasticity_squared is not None:
        objective = objective.at_fixed_stochasticity()
    return DenseProblem.of(objective, space)


def check_end(process: AbstractProcess, t_min: object) -> tuple[float, float]:
    """Bounds of the last time; equal when it is fixed."""
    if not isinstance(t_min, tuple):
        low = check_range(process, 1, t_min)  # pyright: ignore[reportArgumentType]
        return low, low
    if len(t_min) != 2:
        raise ValueError(f"t_min = {t_min} must be a number or a pair (low, high).")
    low, high = (check_range(process, 1, t) for t in t_min)
    if not low < high:
        raise ValueError(f"t_min = {t_min} must have its lower bound first.")
    return low, high


def check_stochasticity(
    sampler: AbstractSampler, num_steps: int, stochasticity: str | Numbers
) -> Float[np.ndarray, " steps"] | None:
    """Squared stochasticity of every step, or None if it is to be optimised."""
    name = type(sampler).__name__
    if isinstance(stochasticity, str):
        _checks.one_of("stochasticity", stochasticity, ("optimize",))
        if not sampler.stochastic:
            raise ValueError(
                f"stochasticity='optimize' has no meaning for {name}, which is deterministic; use "
                "DDIM or another stochastic sampler."
            )
        if sampler.reverse_sde_only:
            raise ValueError(
                f"stochasticity='optimize' has no meaning for {name}, which is for the reverse SDE "
                "alone; use 1."
            )
        return None
    alpha = _checks.array("stochasticity", stochasticity)
    if alpha.shape not in ((), (num_steps,)):
        raise ValueError(
            f"stochasticity has shape {alpha.shape}; for num_steps = {num_steps} it must be a "
            f"single number or have shape ({num_steps},)."
        )
    if np.any(alpha < 0):
        raise ValueError(f"stochasticity must be >= 0; its smallest entry is {alpha.min():g}.")
    if np.any(alpha > 0) and not sampler.stochastic:
        raise ValueError(
            f"stochasticity = {alpha.max():g} has no meaning for {name}, which is deterministic; "
            "use 0."
        )
    check_reverse_sde(sampler, alpha)
    return np.broadcast_to(np.asarray(alpha) ** 2, (num_steps,))


def _given_starts(
    starts: Sequence[str] | Mapping[str, Schedule],
    named: dict[str, Schedule],
    process: AbstractProcess,
    low: float,
    high: float,
) -> dict[str, Schedule]:
    """The schedules to start from, by name."""
    if not isinstance(starts, Mapping):
        names = [known_name("schedule", "starts", name, named) for name in starts]
        return {name: named[name] for name in names}
    num_steps = next(iter(named.values())).num_steps
    return {
        name: named[name]
        if name in named and _same_times(schedule, named[name])
        else _given_start(name, schedule, num_steps, process, low, high)
        for name, schedule in starts.items()
    }


def _same_times(schedule: object, other: Schedule) -> bool:
    """Whether an object is a schedule of the same times, up to its precision."""
    if not isinstance(schedule, Schedule) or schedule.num_steps != other.num_steps:
        return False
    return bool(np.allclose(schedule.times, other.times, rtol=1e-5, atol=1e-9))


def _given_start(
    name: str,
    schedule: object,
    num_steps: int,
    process: AbstractProcess,
    low: float,
    high: float,
) -> Schedule:
    schedule = _checks.instance(f"starts[{name!r}]", schedule, Schedule)
    between = tuple(f"{label} and " for label in RESERVED)
    if name in (*RESERVED, *BASELINES) or name.endswith(_STOCHASTIC) or name.startswith(between):
        raise ValueError(
            f"starts[{name!r}] has the name of another candidate; give it one of its own."
        )
    if schedule.num_steps != num_steps:
        raise ValueError(
            f"starts[{name!r}] has {_checks.counted(schedule.num_steps, 'step')}; num_steps is "
            f"{num_steps}."
        )
    times = np.asarray(schedule.times, np.float64).copy()
    t_max = float(np.asarray(process.t_max))
    slack = 1e-6 * t_max
    # a list written with few digits starts there, too
    if abs(times[0] - t_max) > 100.0 * slack or not low - slack <= times[-1] <= high + slack:
        end = f"{low:g}" if low == high else f"{low:g} .. {high:g}"
        raise ValueError(
            f"starts[{name!r}] runs from {times[0]:g} to {times[-1]:g}; it must run from t_max = "
            f"{t_max:g} to t_min = {end}."
        )
    trained = process.trained_t_min
    if num_steps > 1 and times[-2] < trained - slack:
        raise ValueError(
            f"starts[{name!r}] has t = {times[-2]:g} before its last time; the network of "
            f"{type(process).__name__} was trained down to t = {trained:g} only."
        )
    times[0] = t_max
    times[-1] = np.clip(times[-1], low, high)
    return Schedule(times, np.asarray(schedule.stochasticity))


def check_starts(
    starts: Starts,
    process: AbstractProcess,
    num_steps: int,
    t_min: tuple[float, float],
    squared: Float[np.ndarray, " steps"] | None,
) -> None:
    """ValueError for starts that do not fit, before anything slow is done."""
    if starts is None:
        return
    if isinstance(starts, str) or not isinstance(starts, Mapping | Sequence) or not starts:
        raise ValueError(
            f"starts = {_checks.shown(starts)} must be a list of names or a dict of schedules, not "
            "empty."
        )
    if not isinstance(starts, Mapping):
        for i, name in enumerate(starts):
            if not isinstance(name, str):
                raise ValueError(
                    f"starts[{i}] must be the name of a baseline; schedules are given as "
                    f"starts={{name: Schedule}}. Got {type(name).__name__}."
                )
        return
    for name, schedule in starts.items():
        if not isinstance(name, str):
            raise ValueError(f"starts has the name {name!r}; names of schedules are strings.")
        _checks.instance(f"starts[{name!r}]", schedule, Schedule)
        if name not in BASELINES:
            _given_start(name, schedule, num_steps, process, *t_min)
        _check_start_stochasticity(name, schedule, squared)


def _check_start_stochasticity(
    name: str, schedule: Schedule, squared: Float[np.ndarray, " steps"] | None
) -> None:
    """ValueError for a given start that injects other noise than its candidates can."""
    alpha = np.asarray(schedule.stochasticity, np.float64)
    if name in BASELINES and not np.any(alpha):
        return
    if squared is None:
        _check_free_stochasticity(name, alpha)
    elif not np.allclose(alpha, np.sqrt(squared), rtol=1e-5, atol=1e-6):
        raise ValueError(
            f"starts[{name!r}] has stochasticity {_range_of(alpha)}; it must be what all "
            f"schedules have here, stochasticity = {_range_of(np.sqrt(squared))}."
        )


def _check_free_stochasticity(name: str, alpha: Float[np.ndarray, " steps"]) -> None:
    """ValueError for a start that is a baseline with noise, or beyond what is searched."""
    if name in BASELINES:
        raise ValueError(
            f"starts[{name!r}] has stochasticity {_range_of(alpha)}; the baseline of this name is "
            "started at 0 and 1: give it one of its own."
        )
    if alpha.max() > LARGEST_STOCHASTICITY:
        raise ValueError(
            f"starts[{name!r}] has stochasticity {_range_of(alpha)}; it must be at most "
            f"{LARGEST_STOCHASTICITY:g}, up to which it is optimised."
        )


def _range_of(numbers: Float[np.ndarray, " steps"]) -> str:
    """Numbers for a message: one, or from the smallest to the largest."""
    low, high = (f"{number:g}" for number in (numbers.min(), numbers.max()))
    return low if low == high else f"{low} .. {high}"


def _with_stochasticity(
    schedules: dict[str, Schedule], squared: Float[np.ndarray, " steps"] | None
) -> list[Candidate]:
    """Each schedule with the fixed stochasticity; with its own, or with 0 and 1, if optimised."""
    found = []
    for alpha in (None,) if squared is not None else (0.0, 1.0):
        for name, schedule in schedules.items():
            own = squared is None and schedule.is_stochastic
            if own and alpha == 1.0:
                continue
            level = np.full(schedule.num_steps, alpha) if squared is None else squared
            if own:
                level = np.asarray(schedule.stochasticity_squared)
            origin = Origin.BASELINE if name in BASELINES else Origin.START
            label = f"{name}{_STOCHASTIC}" if alpha == 1.0 else name
            if np.any(level != np.asarray(schedule.stochasticity_squared)):
                schedule = Schedule.from_squared(np.asarray(schedule.times), level)
            found.append(Candidate(label, schedule, origin))
    return found


@eqx.filter_jit
def _values(objective: AbstractBoundObjective, times: Array, squared: Array) -> Array:
    return jax.vmap(lambda t, w: objective(Schedule.from_squared(t, w)))(times, squared)


@quick_jit
def _coordinate_values(
    objective: AbstractCoordinateObjective, u: Array, num_steps: Array
) -> Float[Array, " schedules"]:
    # one after another: a full spectrum is large
    return jax.lax.map(lambda u: objective.value(u, num_steps), u)
