"""The optimal schedule of a sampler for data, a Gaussian, a mixture or a network."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from .. import _checks
from .._objective import AbstractObjective, ScheduleFunction
from .._precision import is_traced, to_float64
from .._progress import Progress
from .._types import Numbers
from ..distributions import AbstractDistribution, ExactDenoiser, Gaussian
from ..errors import (
    LocalError,
    TerminalError,
    limit_modes,
    model_warnings,
    unchangeable_warnings,
    violations,
)
from ..prediction import AbstractDenoiser
from ..processes import AbstractProcess, check_process
from ..recurrence import initialization_name
from ..samplers import AbstractSampler, as_sampler
from ..schedules import BASELINES, Schedule
from ..score_error import ScoreError
from ..trajectories import (
    AbstractRecord,
    DenoisedRecord,
    RecordedError,
    TrajectoryRecord,
    bind_record,
    check_denoised_record,
    check_record,
    record,
    record_denoised,
    unpredictable,
)
from ._budget import MOST_ROUNDS, Costs, Plan, RecordPlan, make_plan
from ._candidates import (
    MIXTURE,
    OPTIMISED,
    RECORDED,
    Candidate,
    Origin,
    interpolate_candidates,
)
from ._model import (
    Model,
    as_model,
    check_target,
    draw_noised,
    draw_start,
    fit_mixture,
    model_of_network,
)
from ._problem import (
    ScheduleProblem,
    Starts,
    as_objective,
    check_end,
    check_stochasticity,
    make_problem,
    problem_in,
    schedule_arrays,
)
from ._result import OptimizedSchedule
from ._selection import BoundSelection, Selected, Selection
from ._solve import Solution, solve
from ._solver import AbstractSolver, Newton
from ._space import ScheduleSpace
from ._trust import misled, unproven, unresolved
from ._within import RecordedSelection, SimulatedSelection, bind_simulated, bind_within

# of a mixture, whose evaluations are cheap; of a network that is the target itself
_MIXTURE_TRAJECTORIES = 256
_MIXTURE_NODES = 48
_NETWORK_TRAJECTORIES = 128
_NETWORK_NODES = 40
# samples of a network that is the target, from which its covariance is taken
_NETWORK_NOISE = 256
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
      (n, ...), to which a mixture is fitted; or a `Denoiser`. For all but a Gaussian the optimum
      for its mean and covariance is one of several candidates that are run through the network or
      the mixture; the optima on recorded trajectories and the baseline schedules are others. Beside
      a network, what a mixture of the data (or of its own samples) selects and fine-tunes is one
      more; that of data is kept unless another is better beyond a standard error.
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
    - `starts`: names of baseline schedules, or {name: Schedule}, baselines of `schedules.BASELINES`
      among them by their own names; default every baseline. With "optimize", each is started at
      stochasticity 0 and 1. All starts run at once.
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
    target: object, request: "Request", starts: Starts, progress: bool, began: float
) -> OptimizedSchedule:
    """Solve, propose candidates, select."""
    plan = None
    if request.budget is not None:
        model, selection, bound = _prepare_within(target, request, starts, progress)
        plan = bound.plan
        nfe = {"record": plan.nfe["record"]}
    elif request.denoised_record is not None:
        model, selection, bound = _prepare_simulated(target, request, progress)
        nfe = {}
    else:
        model, selection, bound, nfe = prepare(target, request, progress)
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
        optimum, value, values = _best(problem, solution)
        candidates = ()
        if selection is not None:
            candidates = _propose(optimum, problem, selection, request.sampler, line.update)
    selected = None
    if bound is not None and selection is not None:
        outside = [dataclasses.replace(c, schedule=_outside(c.schedule)) for c in candidates]
        selected = _select(outside, problem.space, request, model, selection, bound, progress)
        nfe |= selected.nfe
    found = (model, problem, solution, optimum, value, values, selected, nfe, plan)
    return _result(request, *found, began)


def _select(
    candidates: list[Candidate],
    space: ScheduleSpace,
    request: "Request",
    model: Model,
    selection: Selection,
    bound: BoundSelection | SimulatedSelection | RecordedSelection,
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


def prepare(
    target: object, request: "Request", progress: bool
) -> tuple[Model, Selection | None, BoundSelection | None, dict[str, int]]:
    """The model, the selection with its record, ready to run, and the NFE that were spent."""
    model, selection = _resolve(target, request, progress)
    run = (request.process, request.sampler, request.num_steps)
    request.objective.check_target(model.gaussian, *run)
    if selection is None:
        return model, None, None, {}
    # what does not fit together is found before anything is recorded
    bound = selection.bind(model, request.process, request.initialization, request.stochastic)
    complete = _with_record(selection, model, request, progress)
    nfe = {"samples": model.nfe, "record": 0}
    if isinstance(complete.record, TrajectoryRecord) and complete is not selection:
        nfe["record"] = complete.record.nfe
    return model, complete, bound, nfe


@dataclasses.dataclass(frozen=True)
class Request:
    """The checked arguments of an optimisation."""

    process: AbstractProcess
    sampler: AbstractSampler
    num_steps: int
    t_min: tuple[float, float]
    objective: AbstractObjective
    stochasticity_squared: np.ndarray | None
    solver: AbstractSolver
    selection: Selection | None
    budget: int | None = None
    checked: int = 0

    @property
    def stochastic(self) -> bool:
        """Whether a candidate may inject noise."""
        squared = self.stochasticity_squared
        return squared is None or bool(np.any(squared))

    @property
    def initialization(self) -> str:
        """What sampling starts from: as the objective says, else as the process does."""
        if isinstance(self.objective, LocalError | TerminalError):
            return initialization_name(self.process, self.objective.initialization)
        return self.process.initialization

    @property
    def denoised_record(self) -> DenoisedRecord | None:
        """What corrects a model of the network, if given."""
        made = None if self.selection is None else self.selection.record
        return made if isinstance(made, DenoisedRecord) else None

    @property
    def fixed_end(self) -> bool:
        return self.t_min[0] == self.t_min[1]


def check_arguments(
    target, process, sampler, num_steps, t_min, objective, stochasticity, solver, selection
) -> Request:
    """Everything that can be said of the arguments before anything slow is done."""
    if is_traced((target, process, sampler)):
        raise ValueError("optimize_schedule must be called outside jit, grad and vmap.")
    process = check_process(process)
    sampler = as_sampler(sampler)
    num_steps = _checks.count("num_steps", num_steps)
    solver = Newton() if solver is None else solver
    if not isinstance(solver, AbstractSolver):
        raise ValueError(f"solver must be Newton() or Optax(...); got {solver!r}.")
    if not isinstance(selection, Selection | None):
        raise ValueError(f"selection must be a Selection(...); got {selection!r}.")
    check_target(target)
    objective = as_objective(objective)
    if t_min is None:
        t_min = _default_end(target, process, objective, selection)
    request = Request(
        process,
        sampler,
        num_steps,
        check_end(process, t_min),
        objective,
        check_stochasticity(sampler, num_steps, stochasticity),
        solver,
        selection,
    )
    request.objective.check(sampler, not request.stochastic, request.fixed_end)
    if isinstance(request.objective, RecordedError):
        check_record(request.objective.record, process, sampler, request.t_min[0])
    if isinstance(target, Gaussian) and selection is None:
        return request
    _check_selection(target, request)
    return dataclasses.replace(request, selection=on_range(selection, process))


def _default_end(
    target: object,
    process: AbstractProcess,
    objective: AbstractObjective,
    selection: Selection | None,
) -> float:
    """Where schedules end: as a record does, a network, or the process."""
    selection = selection or Selection()
    for holder in (objective, selection):
        made = getattr(holder, "record", None)
        if isinstance(made, AbstractRecord):
            return float(np.asarray(made.t_min))
    for denoiser in (selection.denoiser, target):
        if isinstance(denoiser, AbstractDenoiser):
            return denoiser.default_t_min
    return process.default_t_min


def check_budget(target: object, request: Request, budget: int | None) -> int | None:
    """Check that a budget, or a record of denoised points, can be used for what is asked.

    **Arguments:**

    - `target`: as given.
    - `request`: its other arguments, checked.
    - `budget`: as given.

    **Returns:** the budget.

    **Raises:** ValueError naming what does not fit.
    """
    if budget is None and request.denoised_record is None:
        return None
    selection = request.selection or Selection()
    name = "record is" if budget is None else f"budget = {budget} is"
    if selection.denoiser is None and not isinstance(target, AbstractDenoiser):
        raise ValueError(
            f"{name} of a network: pass its Denoiser as target or as Selection(denoiser=...)."
        )
    sampler = request.sampler
    at_one_time = not (sampler.randomised or sampler.forms_jacobian)
    if request.stochastic or not at_one_time or selection.record is False:
        raise ValueError(
            f"{name} for schedules on recorded trajectories: these need a deterministic sampler, "
            "stochasticity 0, and a record."
        )
    if budget is None:
        return None
    if isinstance(selection.record, TrajectoryRecord):
        raise ValueError(
            f"budget = {budget}: record must be a DenoisedRecord, of jk.record_denoised; got a "
            "TrajectoryRecord."
        )
    return _checks.count("budget", budget)


def _check_selection(target: object, request: Request) -> None:
    selection = request.selection or Selection()
    network = selection.denoiser is not None or isinstance(target, AbstractDenoiser)
    if not request.fixed_end:
        raise ValueError(
            f"t_min = {request.t_min} must be one number, to run schedules on a network or a "
            "mixture; between bounds it is optimised for a Gaussian alone."
        )
    if _score_error(request.objective) is not None and not network:
        raise ValueError(
            "score_error is for a Gaussian target or a selection on a network; a mixture is run "
            "with its exact score."
        )
    if selection.fine_tune and request.stochastic:
        raise ValueError(
            f"fine_tune = {selection.fine_tune} is for deterministic schedules: stochasticity must "
            "be 0."
        )
    if request.stochastic and selection.criterion not in ("balanced", "sliced_w2"):
        raise ValueError(
            f"criterion = {selection.criterion!r} is for deterministic schedules; stochastic ones "
            "are selected by sliced_w2."
        )
    if isinstance(selection.record, DenoisedRecord):
        check_denoised_record(selection.record, request.process, request.t_min[0])
    if isinstance(selection.record, TrajectoryRecord):
        squared = request.stochasticity_squared
        if squared is not None and request.stochastic:
            raise ValueError(
                "record is of deterministic trajectories: stochasticity must be 0 or 'optimize'."
            )
        check_record(selection.record, request.process, request.sampler, request.t_min[0])
    for name, denoiser in (("selection.denoiser", selection.denoiser), ("target", target)):
        if isinstance(denoiser, AbstractDenoiser):
            _check_same_process(name, denoiser.process, request)


def _check_same_process(name: str, process: AbstractProcess, request: Request) -> None:
    t_max = float(np.asarray(request.process.t_max))
    times = np.linspace(request.t_min[0], t_max, 7)[1:-1]
    short = float(process.t_max) < t_max * (1.0 - 1e-6)
    if short or not np.allclose(process.sigma(times), request.process.sigma(times), rtol=1e-4):
        raise ValueError(f"{name} is a network of {process}; process is {request.process}.")


def on_range(target: Any, process: AbstractProcess) -> Any:
    """A network, or a selection on one, on the range of `process`; anything else as it is."""
    if isinstance(target, Selection) and target.denoiser is not None:
        return dataclasses.replace(target, denoiser=on_range(target.denoiser, process))
    if isinstance(target, AbstractDenoiser) and target.process.t_max != process.t_max:
        return eqx.tree_at(lambda denoiser: denoiser.process, target, process)
    return target


def _resolve(target: object, request: Request, progress: bool) -> tuple[Model, Selection | None]:
    """The model of the target, and the selection, if there is to be one."""
    selection = request.selection
    if isinstance(target, Model):
        return target, selection
    if isinstance(target, Gaussian):
        return Model(target), selection
    selection = selection or Selection()
    if isinstance(target, AbstractDenoiser) and not isinstance(target, ExactDenoiser):
        return _resolve_network(target, request, selection, progress), selection
    recorded = isinstance(selection.record, TrajectoryRecord) and selection.denoiser is not None
    with Progress("fitting a mixture to the samples", progress):
        return as_model(target, recorded), selection


def _resolve_network(
    target: AbstractDenoiser, request: Request, selection: Selection, progress: bool
) -> Model:
    """A network as the target: the Gaussian is that of its own samples, or of the data."""
    model = _model_of_data(target, selection)
    if model is None:
        noise = _network_noise(request, selection, _noise_count(selection))
        model = model_of_network(target, noise, request.t_min[0], progress)
    return model


def _with_record(selection: Selection, model: Model, request: Request, progress: bool) -> Selection:
    """The selection with trajectories of a mixture, or of a network that is the target."""
    if selection.record is not None or not is_recordable(request):
        return selection
    denoiser = model.denoiser
    shape = None
    if denoiser is None and model.mixture is not None:
        turned = model.mixture.in_eigenbasis()
        model = Model(model.gaussian, turned)
        shape = turned.means.shape[1:]
        denoiser = turned.denoiser(request.process)
    if denoiser is None:
        return selection
    if isinstance(denoiser, ExactDenoiser):
        key = selection.random_key(3)
        start = (model, request.process, request.initialization)
        noise = draw_start(*start, _MIXTURE_TRAJECTORIES, key, shape)
        nodes = _MIXTURE_NODES
    else:
        count = _noise_count(selection)
        noise = _network_noise(request, selection, count)[:_NETWORK_TRAJECTORIES]
        nodes = _NETWORK_NODES
    batch = max(1, noise.shape[0] // 4)
    t_min = request.t_min[0]
    made = record(denoiser, noise, t_min=t_min, nodes=nodes, batch=batch, progress=progress)
    return dataclasses.replace(selection, record=made)


def _prepare_within(
    target: Any, request: Request, starts: Starts, progress: bool
) -> tuple[Model, Selection, RecordedSelection]:
    """The same within a budget, with recorded trajectories that select as well."""
    selection = request.selection or Selection()
    assert request.budget is not None
    network, model = known_before(target, selection)
    made = request.denoised_record
    costs = costs_within(request, network, model, starts)
    given = None if made is None else made.num_trajectories
    plan = make_plan(request.budget, costs, selection.noise_rows, given)
    noise = noise_within(model, request, selection, plan.trajectories + plan.evidence)
    if made is None:
        made = record_planned(network, noise, plan, request, progress)
    model = model_with_record(model, network, made, request, progress)
    fresh = noise[plan.trajectories :]
    return model, selection, bind_within(selection, network, made, model, fresh, plan)


def _prepare_simulated(
    target: Any, request: Request, progress: bool
) -> tuple[Model, Selection, SimulatedSelection]:
    """The same on a model of the network that a given record corrects, without a budget."""
    selection = request.selection
    made = request.denoised_record
    assert selection is not None
    assert made is not None
    network, model = known_before(target, selection)
    model = model_with_record(model, network, made, request, progress)
    bound = bind_simulated(selection, network, made, model, request.checked)
    return model, selection, bound


def known_before(target: Any, selection: Selection) -> tuple[AbstractDenoiser, Model | None]:
    """Separate a network from what is known of its data before it is run.

    **Arguments:**

    - `target`: a network, or what is known of its data.
    - `selection`: with the network otherwise.

    **Returns:** the network, and a model of the data if there is one.
    """
    if isinstance(target, Model):
        network = target.denoiser if selection.denoiser is None else selection.denoiser
        assert network is not None
        return network, target
    network = target if selection.denoiser is None else selection.denoiser
    return network, _model_of_data(target, selection)


def costs_within(
    request: Request, network: AbstractDenoiser, model: Model | None, starts: Starts = None
) -> Costs:
    """What the stages of a selection within a budget cost."""
    tuned = request.num_steps > 1 and (request.selection or Selection()).simulation_solver()
    return Costs(
        per_sample=request.sampler.nfe_per_step * request.num_steps,
        baselines=len(BASELINES) + (len(starts) if isinstance(starts, Mapping) else 0),
        candidates=2 + (model is not None and model.knows_data and model.mixture is not None),
        rounds=MOST_ROUNDS if tuned else 0,
        per_call=network.nfe,
    )


def record_planned(
    network: AbstractDenoiser, noise: Array, plan: RecordPlan, request: Request, progress: bool
) -> DenoisedRecord:
    """Record what a plan pays for, from the first rows of initial noise."""
    run = {"t_min": request.t_min[0], "nodes": plan.nodes, "batch": plan.batch}
    return record_denoised(network, noise[: plan.trajectories], progress=progress, **run)


def model_with_record(
    model: Model | None,
    network: AbstractDenoiser,
    made: DenoisedRecord,
    request: Request,
    progress: bool,
) -> Model:
    """Say what is known: of the data, if nothing else the recorded ends, and of the network."""
    if model is None:
        ends = np.asarray(made.ends)
        model = Model(Gaussian.fit(ends), fit_mixture(ends), denoiser=network)
    if model.fitted is None:
        with Progress("fitting a mixture to recorded denoised points", progress):
            known = model.mixture if model.knows_data else None
            model = model._replace(fitted=made.fit_mixture(known))
    run = (request.process, request.sampler, request.num_steps)
    request.objective.check_target(model.gaussian, *run)
    return model


def _model_of_data(target: Any, selection: Selection) -> Model | None:
    """What is known without running a network: of data, of a record, or of no network as target."""
    if not isinstance(target, AbstractDenoiser):
        return as_model(target, True)
    if selection.denoiser is not None:
        raise ValueError(
            "selection.denoiser: the target is a network already; leave it out, or pass the "
            "network there and a distribution or samples as target."
        )
    if selection.data is not None:
        data = _checks.array("data", selection.data)
        return Model(Gaussian.fit(data), fit_mixture(data), data, target)
    if isinstance(selection.record, AbstractRecord):
        ends = np.asarray(selection.record.ends)
        return Model(Gaussian.fit(ends), fit_mixture(ends), denoiser=target)
    return None


def noise_within(model: Model | None, request: Request, selection: Selection, count: int) -> Array:
    """Draw or take rows of initial noise for a record, and then others for its evidence."""
    if selection.given_noise is not None:
        return selection.given_noise[:count]
    if model is None or model.denoiser is not None:
        return _network_noise(request, selection, count)
    shape = None if model.samples is None else model.samples.shape[1:]
    start = (model, request.process, request.initialization, count)
    return draw_start(*start, selection.random_key(0), shape, selection.data)


def _network_noise(request: Request, selection: Selection, count: int) -> Array:
    """Initial noise of a network that is the target, other than the noise that selects."""
    given = selection.given_noise
    if request.initialization == "marginal":
        return _noised_data(request, selection, count)
    if given is None:
        known = selection.data
        if known is None and isinstance(selection.record, AbstractRecord):
            known = selection.record.noise
        if known is None:
            raise ValueError(
                "selection: the input shape of a network that is the target is unknown; pass "
                "Selection(noise=...), initial noise (n, ...), or Selection(data=...), samples."
            )
        shape = np.shape(known)[1:]
        dtype = None
    else:
        shape = given.shape[1:]
        dtype = given.dtype
    scale = np.sqrt(np.asarray(request.process.prior_variance(np.asarray(request.process.t_max))))
    noise = float(scale) * jax.random.normal(selection.random_key(3), (count, *shape))
    # a network may take one precision only
    return noise if dtype is None else noise.astype(dtype)


def _noised_data(request: Request, selection: Selection, count: int) -> Array:
    """Noised data that a network starts from: drawn, or those of the given that select."""
    given = selection.given_noise
    if selection.data is not None:
        samples = _checks.array("data", selection.data)
        key = selection.random_key(3)
        return draw_noised(samples, request.process, count, key, samples.shape[1:])
    if given is None:
        raise ValueError(
            "selection: sampling starts from noised data at t_max = "
            f"{float(request.process.t_max):g}; pass Selection(data=...), samples, or "
            "Selection(noise=...), noised data (n, ...)."
        )
    return given[: (len(given) + 1) // 2]


def _noise_count(selection: Selection) -> int:
    """How many samples of initial noise are asked for, by a number or by giving them."""
    if isinstance(selection.noise, int | np.integer):
        return int(selection.noise)
    return _NETWORK_NOISE if selection.given_noise is None else len(selection.given_noise)


def is_recordable(request: Request) -> bool:
    """Whether schedules can be optimised on a trajectory record."""
    maybe_deterministic = not request.stochastic or request.stochasticity_squared is None
    return not unpredictable(request.sampler) and maybe_deterministic


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
        raise ValueError(
            f"the objective is {values[best]:g} at its best start; it must be finite and positive. "
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
    model: Model,
    problem: ScheduleProblem,
    solution: Solution,
    optimum: Schedule,
    value: float,
    values: np.ndarray,
    selected: Selected | None,
    nfe: dict[str, int],
    plan: Plan | None,
    began: float,
) -> OptimizedSchedule:
    """The result with its warnings; `values` are of the solver's best, then of the baselines."""
    doubts: tuple[str, ...] = ()
    on_network = False
    with jax.enable_x64(True):
        unchangeable = problem.unchangeable()
        left = sum(unchangeable.values())
        if left >= min(values):
            doubts += (
                f"exact steps would leave an error of {left:.4g}, and those of a schedule cancel "
                "a part of it: ratios are of the whole error",
            )
            unchangeable = dict.fromkeys(unchangeable, 0.0)
        if selected is not None:
            optimum = to_float64(selected.candidate.schedule)
            # as many as before, for which a program is compiled
            value = float(problem.evaluate(*schedule_arrays([optimum] * len(values)))[0])
            on_network = _on_network(request, model) and not selected.predicted
            doubts += unresolved(selected.comparison)
            if not on_network and request.num_steps > 1:  # one step is the same by every schedule
                names = [c.label for c in problem.baselines]
                doubts += unproven(selected.comparison, names, selected.predicted)
                doubts += misled(selected.comparison, MIXTURE, names)
        gaussian, process, sampler = to_float64((model.gaussian, request.process, request.sampler))
        ends = tuple(unchangeable.values())
        last = float(np.asarray(optimum.times)[-1])
        doubts += unchangeable_warnings(ends, value, model.gaussian, request.process, last)
        reasons = violations(limit_modes(gaussian.in_eigenbasis()), process, sampler, optimum)
    if isinstance(request.objective, TerminalError):
        reasons = (_TERMINAL_RISK, *reasons)
    return OptimizedSchedule(
        schedule=_outside(optimum),
        objective=value,
        unchangeable=unchangeable,
        baselines={c.label: float(v) for c, v in zip(problem.baselines, values[1:], strict=True)},
        baseline_schedules={c.label: _outside(c.schedule) for c in problem.baselines},
        solution=solution,
        starts=tuple(start.label for start in problem.starts),
        selection=selected,
        verified=on_network,
        trusted=not reasons,
        warnings=(*reasons, *model_warnings(model.gaussian), *doubts),
        reduced_objective=problem.reduced,
        compression=problem.compression,
        compression_error=abs(float(solution.values[solution.best]) / float(values[0]) - 1.0),
        nfe_by_stage=nfe,
        plan=plan,
        seconds=time.perf_counter() - began,
        target=model.gaussian,
        process=request.process,
        sampler=request.sampler,
        evaluation_options={
            "initialization": request.initialization,
            "score_error": _score_error(request.objective),
        },
    )


def _score_error(objective: AbstractObjective) -> ScoreError | None:
    return objective.score_error if isinstance(objective, LocalError | TerminalError) else None


def _on_network(request: Request, model: Model) -> bool:
    selection = request.selection
    return model.denoiser is not None or (selection is not None and selection.denoiser is not None)


def _outside(schedule: Schedule) -> Schedule:
    """A schedule computed in float64, in the caller's precision."""
    squared = np.asarray(schedule.stochasticity_squared)
    return Schedule(np.asarray(schedule.times), np.sqrt(squared))
