"""The optimal schedule of a sampler for data, a Gaussian, a mixture or a network."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from .._objective import AbstractObjective, ScheduleFunction
from .._precision import to_float64
from .._progress import Progress
from .._types import Numbers
from ..distributions import AbstractDistribution
from ..errors import (
    TerminalError,
    limit_modes,
    model_warnings,
    unchangeable_warnings,
    violations,
)
from ..prediction import AbstractDenoiser
from ..processes import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..trajectories import RecordedError, TrajectoryRecord, bind_record
from ._budget import Plan
from ._candidates import (
    MIXTURE,
    OPTIMISED,
    RECORDED,
    Candidate,
    Origin,
    interpolate_candidates,
)
from ._model import Model
from ._preparation import Bound, prepare
from ._problem import (
    ScheduleProblem,
    Starts,
    make_problem,
    problem_in,
    schedule_arrays,
)
from ._request import Request, check_arguments, check_budget, on_range
from ._result import OptimizedSchedule
from ._selection import BoundSelection, Selected, Selection
from ._solve import Solution, solve
from ._solver import AbstractSolver, Newton
from ._space import ScheduleSpace
from ._trust import misled, unproven, unresolved
from ._within import RecordedSelection

# statistics of a hundred trajectories are not worth more digits, nor more starts
_RECORDED_STARTS = 3
_RECORDED_SOLVER = Newton(tolerance=1e-5)
_TERMINAL_RISK = (
    "the terminal objective lets errors of different steps cancel, which a network does not "
    "reproduce; the default objective LocalError forbids it"
)


def optimize_schedule(
    target: AbstractDistribution | AbstractDenoiser | Numbers,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    num_steps: int,
    *,
    t_min: Numbers | None = None,
    objective: AbstractObjective | ScheduleFunction | None = None,
    stochasticity: str | Numbers = 0.0,
    starts: Starts = None,
    solver: AbstractSolver | None = None,
    selection: Selection | None = None,
    budget: int | None = None,
    progress: bool = True,
) -> OptimizedSchedule:
    """Find the times, and if asked the stochasticity, that minimise a sampler's error.

    **Arguments:**

    - `target`: a `Gaussian` (exact, in milliseconds once compiled); a `GaussianMixture` or samples
      (n, ...), to which a mixture is fitted; or a `Denoiser`. For a Gaussian the optimum is
      returned. Otherwise candidates are run through the network or the mixture, and the best one is
      returned: the optimum for the mean and covariance, the optima on recorded trajectories, and
      the baseline schedules. For a network, the schedule that is selected and fine-tuned on a
      mixture of the data (or of its own samples) is one more; that of data is kept unless another
      is better by more than a standard error.
    - `process`: the forward process, such as `jk.VP()`. On a sub-range of one, `jk.VP(t_max=0.7)`
      or `process.sub_range(t_max)`, schedules start from noised data at its t_max.
    - `sampler`: a sampler or its name, such as "ddim" or "dpmpp_2m".
    - `num_steps`: K >= 1. No step is shorter than 1e-4 in log sigma, or what float32 resolves.
    - `t_min`: the last time, 0 <= t_min < t_max; or (low, high) to optimise it between these
      bounds, for a Gaussian. Default: where a given record ends, else the network's
      `default_t_min`, else that of the process.
    - `objective`: `LocalError()` (default), `TerminalError()`, `RecordedError(record)`, or a
      jittable, differentiable, positive function of a `Schedule`. Options such as the metric, the
      initialization or a score error are fields of the objective.
    - `stochasticity`: alpha = h/g, a number or (K,), kept as it is; or "optimize" for one per step.
      `DDIM` is the family in which an optimised stochasticity was seen to hold on networks.
    - `starts`: names of schedules in `schedules.SCHEDULES`, or {name: Schedule}, those among them
      by their own names; default every baseline. A schedule of your own has the fixed
      `stochasticity`; with "optimize" it is started at its own, and one without noise, as every
      baseline, at 0 and 1. All starts run at once.
    - `solver`: `Newton()` (default), or `Optax(transformation, steps)` for any optax
      transformation.
    - `selection`: a `Selection`: the network that runs the candidates, its data and the criterion.
      By default `Selection()` for all targets but a Gaussian.
    - `budget`: NFE on a network that are never exceeded, such as 16_000: for trajectories whose
      denoised points are recorded (none if `Selection(record=...)` is given, so that one serves
      every sampler and K), a selection on their initial noise with their end points as the
      reference, and evidence on other noise. Schedules are optimised on a mixture that is fitted to
      the record, see `DenoisedRecord.fit_mixture`, and corrected by it. Rows of a given
      `Selection.noise` are recorded, or are the evidence's if a record is given.
      `OptimizedSchedule.plan` says how it was divided. Default: as `Selection` says.
    - `progress`: show a status line while it takes longer than a second, on a terminal.

    **Returns:** an `OptimizedSchedule`, never worse under its objective than the best start; or,
    with a selection, what was best there. Failing to converge is reported in it, not raised.

    **Raises:** ValueError naming the argument and its value; ImportError for samples without
    scikit-learn.

    **Example:**

    ```python
    >>> target = jk.Gaussian(np.zeros(3), [1.0, 0.1, 0.01])
    >>> result = jk.optimize_schedule(target, jk.VP(), "ddim", 8, t_min=1e-3)
    >>> result.objective < min(result.baselines.values())
    True
    ```

    Solved in float64; the result has the caller's precision. The first call for a sampler compiles
    one program that serves all numbers of steps up to the next power of two.
    """
    began = time.perf_counter()
    request = check_arguments(
        target, process, sampler, num_steps, t_min, objective, stochasticity, solver, selection
    )
    request = dataclasses.replace(request, budget=check_budget(target, request, budget))
    return run_request(on_range(target, request.process), request, starts, progress, began)


def run_request(
    target: object, request: Request, starts: Starts, progress: bool, began: float
) -> OptimizedSchedule:
    """Solve, propose candidates, select."""
    request.check_solvable(starts)
    model, selection, bound, nfe = prepare(target, request, starts, progress)
    run = (request.process, request.sampler, request.num_steps)
    with Progress("optimising: compiling", progress) as line, jax.enable_x64(True):
        problem = make_problem(
            model.gaussian,
            *run,
            request.t_min,
            request.objective,
            request.stochasticity_squared,
            starts,
        )
        if starts is None and isinstance(request.objective, RecordedError):
            # from poor ones it leads to large local errors that cancel
            problem = problem.from_best(_RECORDED_STARTS)
        solution = solve(problem.problem, problem.vectors(), request.solver, line.update)
        solved = _Solved(model, problem, solution, *_best(problem, solution))
        candidates = ()
        if selection is not None:
            candidates = _propose(solved.schedule, problem, selection, request.sampler, line.update)
    selected = None
    if bound is not None and selection is not None:
        outside = [dataclasses.replace(c, schedule=_outside(c.schedule)) for c in candidates]
        selected = _select(outside, problem.space, request, model, selection, bound, progress)
        nfe |= selected.nfe
    plan = bound.plan if isinstance(bound, RecordedSelection) else None
    return _result(request, solved, selected, nfe, plan, began)


class _Solved(NamedTuple):
    """A schedule and its objective, and the problem and the solution that it comes from.

    `values` are the objectives of the solver's best schedule, then of the baselines.
    """

    model: Model
    problem: ScheduleProblem
    solution: Solution
    schedule: Schedule
    value: float
    values: Float[np.ndarray, " schedules"]

    def with_schedule(self, schedule: Schedule) -> "_Solved":
        """The same with a schedule that was selected."""
        schedule = to_float64(schedule)
        # as many as before, for which a program is compiled
        values = self.problem.evaluate(*schedule_arrays([schedule] * len(self.values)))
        return self._replace(schedule=schedule, value=float(values[0]))


def _select(
    candidates: list[Candidate],
    space: ScheduleSpace,
    request: Request,
    model: Model,
    selection: Selection,
    bound: Bound,
    progress: bool,
) -> Selected:
    """Select, with what a mixture selects as one more candidate."""
    run = (space, request.sampler, progress)
    corrected = not isinstance(bound, BoundSelection)
    simulated = None
    # a mixture of the network's own samples is corrected by them already
    if not request.stochastic and (model.knows_data or not corrected):
        simulated = selection.bind_mixture(model, request.process, request.initialization)
    incumbent = None
    if simulated is not None:
        found = simulated.select(candidates, *run)
        candidates = [*candidates, Candidate(MIXTURE, found.schedule, Origin.MIXTURE)]
        # data say more than the few samples of a network that stand for them
        incumbent = MIXTURE if model.knows_data else None
    return bound.run(candidates, *run, incumbent)


def _best(problem: ScheduleProblem, solution: Solution) -> tuple[Schedule, float, np.ndarray]:
    """The best schedule, its objective, and the objectives of the solver's best and all baselines.

    On the full spectrum, where the baselines could be better than what the solver found.
    """
    found = problem.problem.arrays(problem.space, solution.z[[solution.best]])
    baselines = schedule_arrays([candidate.schedule for candidate in problem.baselines])
    both = [np.concatenate(pair) for pair in zip(found, baselines, strict=True)]
    values = problem.evaluate(*both)
    best = int(np.argmin(values))
    optimum = Schedule.from_squared(*(rows[best] for rows in both))
    if not 0.0 < values[best] < np.inf:
        found = problem.evaluate_unchecked(*both)[best]
        raise ValueError(
            f"the objective is {found:g} at its best start; it must be finite and positive. "
            f"{problem.objective.why_infinite(optimum)}"
        )
    return optimum, float(values[best]), values


def _propose(
    optimum: Schedule,
    problem: ScheduleProblem,
    selection: Selection,
    sampler: AbstractSampler,
    report: Callable[[str], None],
) -> Sequence[Candidate]:
    """All candidates: optima, the baselines, and the schedules interpolated between the two."""
    optima = [Candidate(OPTIMISED, optimum, Origin.OPTIMUM)]
    if isinstance(selection.record, TrajectoryRecord):
        starts = [c for c in (*optima, *problem.baselines) if not c.schedule.is_stochastic]
        optima += _recorded_optima(selection.record, sampler, starts, problem, report)
    between = interpolate_candidates(problem.space, optima, problem.baselines)
    return [*optima, *between, *problem.baselines]


def _recorded_optima(
    made: TrajectoryRecord,
    sampler: AbstractSampler,
    starts: Sequence[Candidate],
    problem: ScheduleProblem,
    report: Callable[[str], None],
) -> list[Candidate]:
    """The optimum of `RecordedError` for each power, from the record's best schedules."""
    space = dataclasses.replace(
        problem.space, stochasticity_squared=np.zeros(problem.space.num_steps)
    )
    # a record is large: every call of a program would copy it
    made = eqx.tree_at(lambda r: r.products, to_float64(made), replace_fn=jax.device_put)
    found = []
    for power, label in RECORDED.items():
        report(f"optimising: {label}")
        objective = bind_record(made, sampler, power)
        inner = dataclasses.replace(
            problem,
            objective=objective,
            problem=problem_in(space, objective),
            space=space,
            starts=tuple(starts),
        ).from_best(_RECORDED_STARTS)
        solution = solve(inner.problem, inner.vectors(), _RECORDED_SOLVER, report)
        arrays = space.arrays(solution.z[[solution.best]])
        best = Schedule.from_squared(*(rows[0] for rows in arrays))
        found.append(Candidate(label, best, Origin.RECORDED))
    return found


def _result(
    request: Request,
    solved: _Solved,
    selected: Selected | None,
    nfe: dict[str, int],
    plan: Plan | None,
    began: float,
) -> OptimizedSchedule:
    """The result with its warnings."""
    model, problem, solution = solved[:3]
    with jax.enable_x64(True):
        if selected is not None:
            solved = solved.with_schedule(selected.candidate.schedule)
        unchangeable, doubts = _unchangeable(solved)
        last = float(np.asarray(solved.schedule.times)[-1])
        ends = (tuple(unchangeable.values()), solved.value)
        of_ends = unchangeable_warnings(*ends, model.gaussian, request.process, last)
        reasons = _reasons(request, solved)
    on_network = selected is not None and not selected.predicted and _on_network(request, model)
    if selected is not None:
        baselines = [c.label for c in problem.baselines]
        doubts += _doubts_of_selection(request, selected, baselines, on_network)
    values = solved.values.tolist()
    return OptimizedSchedule(
        schedule=_outside(solved.schedule),
        objective=solved.value,
        unchangeable=unchangeable,
        baselines={c.label: v for c, v in zip(problem.baselines, values[1:], strict=True)},
        baseline_schedules={c.label: _outside(c.schedule) for c in problem.baselines},
        solution=solution,
        starts=tuple(start.label for start in problem.starts),
        selection=selected,
        verified=on_network,
        trusted=not reasons,
        warnings=(*reasons, *model_warnings(model.gaussian), *doubts, *of_ends),
        reduced_objective=problem.reduced,
        compression=problem.compression,
        compression_error=abs(float(solution.values[solution.best]) / values[0] - 1.0),
        nfe_by_stage=nfe,
        plan=plan,
        seconds=time.perf_counter() - began,
        target=model.gaussian,
        process=request.process,
        sampler=request.sampler,
        evaluation_options={
            "initialization": request.initialization,
            "score_error": request.score_error,
        },
    )


def _unchangeable(solved: _Solved) -> tuple[dict[str, float], tuple[str, ...]]:
    """What no schedule can change of the objective, and a doubt where it is no part of it."""
    found = solved.problem.unchangeable()
    left = sum(found.values())
    if left < min(solved.values):
        return found, ()
    doubt = (
        f"exact steps would leave an error of {left:.4g}, and those of a schedule cancel a part of "
        "it: ratios are of the whole error"
    )
    return dict.fromkeys(found, 0.0), (doubt,)


def _reasons(request: Request, solved: _Solved) -> tuple[str, ...]:
    """Why the schedule may not hold outside of the model."""
    run = (solved.model.gaussian, request.process, request.sampler)
    gaussian, process, sampler = to_float64(run)
    target = limit_modes(gaussian.in_eigenbasis())
    reasons = violations(target, process, sampler, solved.schedule)
    return (_TERMINAL_RISK, *reasons) if isinstance(request.objective, TerminalError) else reasons


def _doubts_of_selection(
    request: Request, selected: Selected, baselines: list[str], on_network: bool
) -> tuple[str, ...]:
    """What a comparison leaves open."""
    compared = selected.comparison
    doubts = unresolved(compared)
    # one step is the same by every schedule
    if on_network or request.num_steps == 1:
        return doubts
    doubts += unproven(compared, baselines, selected.predicted)
    return doubts + misled(compared, MIXTURE, baselines)


def _on_network(request: Request, model: Model) -> bool:
    selection = request.selection
    return model.denoiser is not None or (selection is not None and selection.denoiser is not None)


def _outside(schedule: Schedule) -> Schedule:
    """A schedule computed in float64, in the caller's precision."""
    squared = np.asarray(schedule.stochasticity_squared)
    return Schedule(np.asarray(schedule.times), np.sqrt(squared))
