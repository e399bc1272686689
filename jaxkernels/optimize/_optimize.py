"""The optimal schedule of a sampler for a Gaussian target."""

import time
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks, metrics
from .._numerics import to_float64
from .._progress import Progress
from ..evaluate import check_setting, evaluate_schedule
from ..process import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import GRIDS, Monotone, Schedule, check_range
from ..target import Gaussian
from ._newton import NewtonState, certificate, newton_advance, newton_start
from ._objective import OBJECTIVES, Objective
from ._result import OptimizedSchedule
from ._trust import model_warnings, violations

Starts: TypeAlias = Sequence[str] | Mapping[str, Schedule] | None

_COMPRESS_ABOVE, _NODES = 64, 32
_LARGEST_STOCHASTICITY = 10.0
# |z| <= 20 keeps every step longer than e^-40 of the whole range, still distinct in float64
_LARGEST_LOGIT = 20.0
_CHUNK = 25
# a relative gradient that cancellation in float64 cannot be expected to go below
_ROUNDING_FLOOR = 1e-9
_TERMINAL_RISK = (
    "the terminal objective lets errors of different steps cancel, which a network does not reproduce; "
    "the default objective 'local' forbids it"
)


class _Problem(eqx.Module):
    """The objective as a function of one flat vector: interior times, squared stochasticity, end."""

    objective: Objective
    monotone: Monotone
    stochasticity_squared: Float[ArrayLike, " steps"] | None
    """Fixed values, or None when they are optimised (in the square, the variable all is smooth in)."""
    end: Float[ArrayLike, ""] | None
    """The fixed last time, or None when it is optimised."""
    num_steps: int = eqx.field(static=True)

    def schedule(self, z: Float[Array, " n"]) -> Schedule:
        interior, rest = z[: self.num_steps - 1], z[self.num_steps - 1 :]
        squared = self.stochasticity_squared
        if squared is None:
            squared, rest = rest[: self.num_steps], rest[self.num_steps :]
        end = self.end if self.end is not None else self.monotone.time(rest[0])
        return Schedule.from_squared(self.monotone.times(interior, end), squared)

    def __call__(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        return self.objective(self.schedule(z))


class _UserObjective(eqx.Module):
    fn: Objective = eqx.field(static=True)

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        return self.fn(schedule)


def optimize_schedule(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    num_steps: int,
    *,
    t_min: ArrayLike | tuple[float, float],
    stochasticity: ArrayLike | Literal["optimize"] = 0.0,
    objective: Literal["local", "terminal"] | Objective = "local",
    metric: str | metrics.Metric = "w2_squared",
    initialization: Literal["standard_normal", "marginal"] = "standard_normal",
    starts: Starts = None,
    compress: bool | int | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-8,
    progress: bool = True,
) -> OptimizedSchedule:
    """The time grid, and if asked the stochasticity, that minimise a sampler's error on a Gaussian target.

    **Arguments:**

    - `num_steps`: K >= 1.
    - `t_min`: the last time, 0 <= t_min < t_max; or (low, high) to optimise it between these bounds.
    - `stochasticity`: alpha = h/g, a number or (K,), kept as it is; or "optimize" for one per step.
      `DDIM` is the family in which an optimised stochasticity was seen to hold on networks.
    - `objective`: "local" (default), the sum over steps of each step's own terminal error, in which
      nothing cancels (`Local`); "terminal", the exact error of the whole run (`Terminal`), which a
      network need not reproduce; or a jittable, differentiable function of a `Schedule`.
    - `metric`: "w2_squared", "kl" = KL(p_data || q), "reverse_kl", or a function
      (mean_error, variance, target_variance) -> value per mode.
    - `starts`: names of grids in `schedules.GRIDS`, or {name: Schedule}; default every named grid. With
      "optimize", each is started at stochasticity 0 and 1. All starts run at once.
    - `compress`: number of quadrature nodes for the spectrum, False for none; by default 32 when there
      are more than 64 modes. A metric of your own is not compressed by default.
    - `tolerance`: on the largest entry of the objective's relative gradient.
    - `progress`: show a status line while it takes longer than a second, on a terminal.

    **Returns:** an `OptimizedSchedule`, never worse under its objective than the best start. Failing to
    converge is reported in it, not raised.

    **Raises:** ValueError naming the argument and its value.

    Solved in float64 by a trust-region Newton method with exact second derivatives; the result has the
    caller's precision. The first call for a K, sampler and kind of process compiles.
    """
    began = time.perf_counter()
    target, process, sampler = check_setting(target, process, sampler)
    if not _checks.concrete((target, process, sampler)):
        raise ValueError("optimize_schedule must be called outside jit, grad and vmap.")
    num_steps = _checks.count("num_steps", num_steps)
    max_iterations = _checks.count("max_iterations", max_iterations)
    tolerance = float(_checks.scalar("tolerance", tolerance, at_least=0.0))
    initialization = _checks.one_of("initialization", initialization, ("standard_normal", "marginal"))  # pyright: ignore
    low, high = _end_range(process, t_min)
    fixed = _fixed_stochasticity(sampler, num_steps, stochasticity)
    metric_fn = metrics.resolve(metric)
    if isinstance(objective, str):
        _checks.lookup("objective", objective, OBJECTIVES)
    elif not callable(objective):
        raise ValueError(f"objective must be a name or a function of a schedule; got {objective!r}.")

    with (
        Progress(f"optimising {num_steps} steps: compiling", progress) as line,
        jax.enable_x64(True),
    ):
        target64, process64, sampler64 = to_float64((target, process, sampler))
        whole = target64.in_eigenbasis()
        nodes = _nodes(compress, whole, named=isinstance(metric, str) and isinstance(objective, str))
        small = whole.compress(nodes) if nodes else whole

        def make(law: Gaussian) -> Objective:
            if isinstance(objective, str):
                return OBJECTIVES[objective](law, process64, sampler64, metric_fn, initialization)
            return _UserObjective(objective)

        monotone = _monotone(whole, process64, low)
        ends = monotone.coordinate(jnp.asarray([low, high]))
        end = low if low == high else float(monotone.time(jnp.mean(ends)))
        grids = {name: grid(process64, num_steps, end) for name, grid in GRIDS.items()}
        given = _starts(starts, grids, num_steps, float(np.asarray(process64.t_max)), low, high)
        baselines = _with_stochasticity({**grids, **given}, fixed)
        first = _with_stochasticity(given, fixed)

        problem = _Problem(make(small), monotone, fixed, np.asarray(low) if low == high else None, num_steps)
        lower, upper = _bounds(problem, ends)
        z = jnp.clip(jnp.stack([_variables(problem, s) for s in first.values()]), lower, upper)
        state = newton_start(problem, z, max_iterations)
        if not np.any(np.isfinite(np.asarray(state.value))):
            raise ValueError(
                f"the objective is not finite for any of the starts {', '.join(first)}. A KL metric needs "
                "positive eigenvalues; samplers that divide by the signal need a process with sigma(t_max) "
                "finite."
            )
        limit = max_iterations if z.shape[1] else 0
        while int(state.iteration) < limit and not bool(jnp.all(state.done)):
            until = jnp.minimum(state.iteration + _CHUNK, limit)
            state = newton_advance(problem, state, lower, upper, jnp.asarray(tolerance), until)
            line.update(
                f"optimising {num_steps} steps: iteration {int(state.iteration)}, objective "
                f"{float(jnp.nanmin(state.value)):.6g}"
            )

        candidates = [*map(problem.schedule, state.z), *baselines.values()]
        values = _evaluate_all(make(whole), candidates)
        chosen = int(np.argmin(values))
        # the certificate belongs to the best optimised start, also where a baseline was as good
        best = int(np.argmin(values[: len(first)]))
        optimised = np.asarray(state.value)[best]
        norm, curvature = (float(v) for v in certificate(state, jnp.asarray(best), lower, upper))
        scale = max(abs(float(optimised)), np.finfo(float).tiny)
        reasons = violations(whole, process64, sampler64, candidates[chosen])
        times, squared = (
            np.asarray(v) for v in (candidates[chosen].times, candidates[chosen].stochasticity_squared)
        )
        history = np.asarray(state.history)[: int(state.iteration) + 1]

    schedule = Schedule(times, np.sqrt(squared))
    if objective == "terminal":
        reasons = (_TERMINAL_RISK, *reasons)
    converged = norm <= tolerance * scale or norm <= _ROUNDING_FLOOR * scale
    return OptimizedSchedule(
        schedule=schedule,
        objective=float(values[chosen]),
        evaluation=evaluate_schedule(target, process, sampler, schedule, initialization=initialization),
        baselines=dict(zip(baselines, values[len(first) :].tolist(), strict=True)),
        baseline_schedules={
            name: Schedule(np.asarray(s.times), np.asarray(s.stochasticity)) for name, s in baselines.items()
        },
        converged=bool(converged),
        reason=_reason(converged, state, limit, norm / scale, tolerance),
        gradient_norm=norm / scale,
        smallest_curvature=curvature / scale,
        optima=dict(zip(first, np.asarray(state.value).tolist(), strict=True)),
        history=history,
        trusted=not reasons,
        warnings=(*reasons, *model_warnings(target)),
        verified=False,
        compression=small.compression,
        compression_error=abs(float(optimised) / float(values[best]) - 1.0) if values[best] else 0.0,
        seconds=time.perf_counter() - began,
        target=target,
        process=process,
        sampler=sampler,
    )


def _end_range(process: AbstractProcess, t_min: object) -> tuple[float, float]:
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


def _fixed_stochasticity(
    sampler: AbstractSampler, num_steps: int, stochasticity: object
) -> np.ndarray | None:
    """Squared stochasticity of every step, or None if it is to be optimised."""
    if isinstance(stochasticity, str):
        _checks.one_of("stochasticity", stochasticity, ("optimize",))
        if not sampler.stochastic:
            raise ValueError(
                f"stochasticity='optimize' has no meaning for {type(sampler).__name__}, which is "
                "deterministic; use DDIM or another stochastic sampler."
            )
        return None
    alpha = _checks.array("stochasticity", stochasticity)
    if alpha.shape not in ((), (num_steps,)):
        raise ValueError(
            f"stochasticity has shape {alpha.shape}; for num_steps = {num_steps} it must be a single "
            f"number or have shape ({num_steps},)."
        )
    if np.any(alpha < 0):
        raise ValueError(f"stochasticity must be >= 0; its smallest entry is {alpha.min():g}.")
    if np.any(alpha > 0) and not sampler.stochastic:
        raise ValueError(
            f"stochasticity = {alpha.max():g} has no meaning for {type(sampler).__name__}, which is "
            "deterministic; use 0."
        )
    return np.broadcast_to(alpha**2, (num_steps,))


def _nodes(compress: bool | int | None, target: Gaussian, named: bool) -> int:
    """Quadrature nodes for the spectrum; 0 for no compression."""
    if compress is None or compress is True:
        large = compress is True or target.eigenvalues.shape[0] > _COMPRESS_ABOVE
        return _NODES if large and (named or compress is True) else 0
    return 0 if compress is False else _checks.count("compress", compress)


def _monotone(target: Gaussian, process: AbstractProcess, low: float) -> Monotone:
    """The coordinate of the times: log sigma, bent only where an end of sigma is 0 or infinite."""
    eigenvalues = np.asarray(target.eigenvalues)
    scale = eigenvalues[eigenvalues > 1e-10 * eigenvalues.max()] if eigenvalues.max() > 0 else [1.0]
    to_zero = low == 0.0
    to_infinity = not np.isfinite(float(process.sigma(process.t_max)))
    return Monotone(
        process,
        np.asarray(process.t_max),
        np.asarray(0.1 * np.sqrt(np.min(scale)) if to_zero else 0.0),
        np.asarray(10.0 * np.sqrt(np.max(scale)) if to_infinity else np.inf),
    )


def _starts(
    starts: Starts,
    grids: dict[str, Schedule],
    num_steps: int,
    t_max: float,
    low: float,
    high: float,
) -> dict[str, Schedule]:
    """The schedules to start from, by name."""
    if starts is None:
        return grids
    if isinstance(starts, str) or not starts:
        raise ValueError(f"starts = {starts!r} must be a list of names or a dict of schedules, not empty.")
    if not isinstance(starts, Mapping):
        return {name: _checks.lookup("starts", name, grids) for name in starts}
    given = {}
    for name, schedule in starts.items():
        if schedule.num_steps != num_steps:
            raise ValueError(f"starts[{name!r}] has {schedule.num_steps} steps; num_steps is {num_steps}.")
        times = np.asarray(schedule.times, np.float64).copy()
        slack = 1e-6 * t_max
        if abs(times[0] - t_max) > slack or not low - slack <= times[-1] <= high + slack:
            raise ValueError(
                f"starts[{name!r}] runs from {times[0]:g} to {times[-1]:g}; it must run from t_max = "
                f"{t_max:g} to t_min = {low:g}{'' if low == high else f' .. {high:g}'}."
            )
        times[0], times[-1] = t_max, np.clip(times[-1], low, high)
        given[name] = Schedule(times, np.asarray(schedule.stochasticity))
    return given


def _with_stochasticity(schedules: dict[str, Schedule], fixed: np.ndarray | None) -> dict[str, Schedule]:
    """Each schedule with the fixed stochasticity, or with both 0 and 1 when it is optimised."""
    if fixed is not None:
        return {name: Schedule.from_squared(s.times, fixed) for name, s in schedules.items()}
    return {
        name if alpha == 0 else f"{name}, stochasticity 1": Schedule(s.times, alpha)
        for alpha in (0.0, 1.0)
        for name, s in schedules.items()
    }


def _variables(problem: _Problem, schedule: Schedule) -> Float[Array, " n"]:
    """The flat vector of a start; inverse of `_Problem.schedule`."""
    parts = [problem.monotone.unconstrained(schedule.times)]
    if problem.stochasticity_squared is None:
        parts.append(schedule.stochasticity_squared)
    if problem.end is None:
        parts.append(problem.monotone.coordinate(schedule.times[-1])[None])
    return jnp.concatenate(parts)


def _bounds(problem: _Problem, ends: Array) -> tuple[Array, Array]:
    """Box of the flat vector."""
    lower = [jnp.full(problem.num_steps - 1, -_LARGEST_LOGIT)]
    upper = [-lower[0]]
    if problem.stochasticity_squared is None:
        lower.append(jnp.zeros(problem.num_steps))
        upper.append(jnp.full(problem.num_steps, _LARGEST_STOCHASTICITY**2))
    if problem.end is None:
        lower.append(ends[:1])
        upper.append(ends[1:])
    return jnp.concatenate(lower), jnp.concatenate(upper)


@jax.jit
def _values(objective: Objective, times: Array, squared: Array) -> Array:
    return jax.vmap(lambda t, w: objective(Schedule.from_squared(t, w)))(times, squared)


def _evaluate_all(objective: Objective, schedules: list[Schedule]) -> np.ndarray:
    """The objective of every schedule, infinite where it is not a number."""
    times = jnp.stack([s.times for s in schedules])
    squared = jnp.stack([s.stochasticity_squared for s in schedules])
    values = np.asarray(_values(objective, times, squared))
    return np.where(np.isnan(values), np.inf, values)


def _reason(converged: bool, state: NewtonState, limit: int, gradient: float, tolerance: float) -> str:
    if converged:
        return "the gradient met the tolerance"
    if int(state.iteration) >= limit:
        return f"max_iterations = {limit} was reached with relative gradient {gradient:.1e}"
    return f"no step lowers the objective; relative gradient {gradient:.1e} > tolerance {tolerance:.1e}"
