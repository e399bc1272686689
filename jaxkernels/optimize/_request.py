"""The arguments of an optimisation, checked before anything slow is done."""

import dataclasses
from typing import Any

import equinox as eqx
import numpy as np

from .. import _checks
from .._objective import AbstractObjective, ScheduleFunction
from .._precision import is_traced
from .._types import Numbers
from ..distributions import AbstractDistribution, ExactDenoiser, Gaussian, GaussianMixture
from ..errors import LocalError, TerminalError
from ..prediction import AbstractDenoiser
from ..processes import AbstractProcess, check_process
from ..recurrence import initialization_name
from ..samplers import AbstractSampler, as_sampler
from ..score_error import ScoreError
from ..trajectories import (
    AbstractRecord,
    DenoisedRecord,
    RecordedError,
    TrajectoryRecord,
    check_denoised_record,
    check_record,
    unpredictable,
)
from ._model import check_target
from ._problem import (
    Starts,
    as_objective,
    check_end,
    check_function,
    check_starts,
    check_stochasticity,
)
from ._selection import Selection
from ._solver import AbstractSolver, Newton


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

    def check_solvable(self, starts: Starts) -> None:
        """ValueError for starts or a function that do not fit, before anything slow is done."""
        check_function(self.objective, self.num_steps)
        limits = (self.process, self.num_steps, self.t_min, self.stochasticity_squared)
        check_starts(starts, *limits)

    @property
    def initialization(self) -> str:
        """What sampling starts from: as the objective says, else as the process does."""
        if isinstance(self.objective, LocalError | TerminalError):
            return initialization_name(self.process, self.objective.initialization)
        return self.process.initialization

    @property
    def score_error(self) -> ScoreError | None:
        """The score error that the objective takes into account, if any."""
        objective = self.objective
        return objective.score_error if isinstance(objective, LocalError | TerminalError) else None

    @property
    def recordable(self) -> bool:
        """Whether schedules can be optimised on a trajectory record."""
        maybe_deterministic = not self.stochastic or self.stochasticity_squared is None
        return not unpredictable(self.sampler) and maybe_deterministic

    @property
    def denoised_record(self) -> DenoisedRecord | None:
        """What corrects a model of the network, if given."""
        made = None if self.selection is None else self.selection.record
        return made if isinstance(made, DenoisedRecord) else None

    @property
    def fixed_end(self) -> bool:
        """Whether the last time is given."""
        return self.t_min[0] == self.t_min[1]


def check_arguments(
    target: object,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    num_steps: int,
    t_min: Numbers | None,
    objective: AbstractObjective | ScheduleFunction | None,
    stochasticity: str | Numbers,
    solver: AbstractSolver | None,
    selection: Selection | None,
) -> Request:
    """Check everything that can be said of arguments before anything slow is done.

    **Arguments:** those of `optimize_schedule`.

    **Returns:** the request, with its objective and end.

    **Raises:** ValueError naming the argument and its value.
    """
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
    _check_dimensions(target, request)
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
    if request.stochastic or request.sampler.per_sample or selection.record is False:
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
    if request.score_error is not None and not network:
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


def _check_dimensions(target: object, request: Request) -> None:
    """ValueError for a record, or samples, in other dimensions than what else is given."""
    selection = request.selection or Selection()
    records = {
        "objective.record": getattr(request.objective, "record", None),
        "selection.record": selection.record,
    }
    known = {
        name: made.ends.shape[1]
        for name, made in records.items()
        if isinstance(made, AbstractRecord)
    }
    is_samples = not isinstance(target, AbstractDistribution | AbstractDenoiser)
    judged = [*known, *["target"] * is_samples]
    others = {
        "selection.noise": _dimension_of_rows("noise", selection.given_noise),
        "selection.data": _dimension_of_rows("data", selection.data),
        "selection.denoiser": _dimension(selection.denoiser),
        "target": _dimension_of_rows("target", target) if is_samples else _dimension(target),
    }
    known |= {name: size for name, size in others.items() if size is not None}
    for name in judged:
        for other, size in known.items():
            if size != known[name]:
                raise ValueError(
                    f"{name} has {known[name]} dimensions; it must have as many as {other}, {size}."
                )


def _dimension_of_rows(argument: str, rows: object) -> int | None:
    """How many numbers a row has."""
    return None if rows is None else int(np.prod(_checks.on_host(argument, rows).shape[1:]))


def _dimension(holder: object) -> int | None:
    """The dimension of a distribution or of its exact denoiser; None if nothing says it.

    Eigenvalues alone may be those of a spectrum, whose modes are not coordinates.
    """
    if isinstance(holder, GaussianMixture):
        return holder.means.shape[1]
    if isinstance(holder, Gaussian):
        return None if holder.basis is None else holder.basis.shape[0]
    if not isinstance(holder, ExactDenoiser):
        return None
    inner = holder.distribution
    if isinstance(inner, Gaussian) and inner.basis is None and inner.mean.shape[0] > 1:
        return inner.mean.shape[0]
    return _dimension(inner)


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
