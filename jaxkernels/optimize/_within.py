"""Selecting on a model of the network that recorded trajectories correct, and within a budget."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._progress import Progress
from .._types import Numbers
from ..comparison import (
    BALANCED,
    WEIGHED,
    Comparison,
    Reference,
    as_reference,
    check_data,
    compare_ends,
    compare_to,
    sample_ends,
    solve_reference,
)
from ..prediction import AbstractDenoiser, in_working_precision
from ..samplers import AbstractSampler, DPMSolverPP2M, sampling_nfe
from ..schedules import log_snr
from ..trajectories import CorrectedDenoiser, DenoisedRecord
from ._budget import Plan
from ._candidates import SIMULATED, Candidate, Origin, by_label
from ._decision import Decision
from ._fine_tune import fine_tune
from ._model import Model
from ._selection import Selected, Selection
from ._solver import Optax
from ._space import ScheduleSpace

# candidates from which gradient steps are taken on the model, and trajectories for them, at least
_STARTS = 3
_ROWS = 64
# steps of the model's own solution
_SIMULATED_STEPS = 200
# options of comparisons on the model, which take no NFE
_FREE: dict[str, Any] = {"key": None, "planned": None}


def bind_simulated(
    selection: Selection,
    network: AbstractDenoiser,
    record: DenoisedRecord,
    model: Model,
    checked: int = 0,
) -> "SimulatedSelection":
    """Bind a selection to a record of denoised points.

    **Arguments:** `selection`; `network`, that was recorded; `record`; `model`, with the mixture
    that was fitted to it; `checked`, number of trajectories on which the network is run to decide
    between what the model leads to.

    **Returns:** a selection that is ready to run candidates.

    **Raises:** ValueError if data do not fit the network.
    """
    assert model.fitted is not None
    noise = jnp.asarray(record.noise)
    check_data(selection.data, noise)
    corrected = record.denoiser(model.fitted.denoiser(record.process))
    working, noise = in_working_precision(network, noise)
    found = as_reference(corrected, noise, np.asarray(record.ends), selection.data, np.nan, 0)
    return SimulatedSelection(
        reference=found,
        decision=Decision.on_few(found._replace(denoiser=working), checked) if checked else None,
        t_min=float(np.asarray(record.t_min)),
        criterion=selection.criterion,
        solver=selection.simulation_solver(),
    )


def bind_within(
    selection: Selection,
    network: AbstractDenoiser,
    record: DenoisedRecord,
    model: Model,
    fresh: Array,
    plan: Plan,
) -> "RecordedSelection":
    """Bind a selection within a budget to a record.

    **Arguments:** `selection`, `network`, `record`, `model`: as of `bind_simulated`; `fresh`,
    initial noise of the evidence; `plan`, how the budget is divided.

    **Returns:** a selection that is ready to run candidates.

    **Raises:** ValueError if data do not fit the network.
    """
    simulated = bind_simulated(selection, network, record, model)
    working, _ = in_working_precision(network, simulated.reference.noise)
    return RecordedSelection(
        network=simulated.reference._replace(denoiser=working).take(slice(plan.selecting)),
        fresh_network=network.take(slice(record.num_trajectories, None)),
        simulated=simulated,
        fresh=fresh,
        data=selection.data,
        plan=plan,
    )


@dataclasses.dataclass(frozen=True)
class SimulatedSelection:
    """A selection that is ready to run on a model of the network.

    `reference` is of the corrected model, with the recorded end points; `decision`, of the network
    on a few of these trajectories, where it is run to decide; None where it is not.
    """

    reference: Reference
    decision: Decision | None
    t_min: float
    criterion: str
    solver: Optax | None

    def run(
        self,
        candidates: Sequence[Candidate],
        space: ScheduleSpace,
        sampler: AbstractSampler,
        progress: bool = True,
        incumbent: str | None = None,
    ) -> Selected:
        """Select what gradient steps on the corrected model lead to.

        From the best candidates there, on the recorded trajectories. Where the network may be run,
        on few of them, it corrects what the model says of the result, all baselines, and the
        `incumbent`, the label of what data speak for; otherwise the incumbent is left only for what
        the model says is better beyond a standard error. The evidence is of the model.
        """
        with Progress("comparing on a model of the network", progress) as line:
            found = self.simulate(candidates, space, sampler, line, incumbent)
            known = by_label(candidates)
            # a model that errs has another best baseline than the network
            others = [c for c in candidates if c.is_baseline or c.label == incumbent]
            finalists = {c.label: c for c in (found.tuned, *others)}
            schedules = {label: c.schedule for label, c in finalists.items()}
            predicted = compare_to(self.reference, sampler, schedules, line=line, **_FREE)
            nfe = {}
            if self.decision is not None:
                run = (list(finalists.values()), sampler, predicted, line)
                selected, nfe["selection"] = self.decision.between(*run)
            elif incumbent is not None and found.best == incumbent:
                selected = known[incumbent]
            else:
                selected = found.tuned
            shown = list({c.label: c for c in (*others, selected)}.values())
        evidence = dataclasses.replace(
            predicted.take([c.label for c in shown]),
            selected=selected.label,
            sampling_nfe=0,
            reference_error=self._resolution(),
        )
        return Selected(selected, tuple(shown), evidence, self.criterion, nfe, predicted=True)

    def simulate(
        self,
        candidates: Sequence[Candidate],
        space: ScheduleSpace,
        sampler: AbstractSampler,
        line: Progress,
        incumbent: str | None = None,
    ) -> "_Simulated":
        """Compare candidates on the corrected model, and take gradient steps from the best.

        The best of all is the `incumbent` unless another is better beyond a standard error.
        """
        schedules = {c.label: c.schedule for c in candidates}
        baselines = [c for c in candidates if c.is_baseline]
        names = [c.label for c in baselines]
        predicted = compare_to(self.reference, sampler, schedules, line=line, **_FREE)
        starts: list[str] = []
        for _ in range(min(_STARTS, len(candidates))):
            left = [label for label in schedules if label not in starts]
            starts.append(predicted.best(names, self.criterion, among=left))
        known = by_label(candidates)
        run = (space, sampler, [known[label] for label in starts], baselines)
        tuned = self.tune(self.reference, *run, line, SIMULATED[0])
        best = predicted.best(names, self.criterion, incumbent)
        return _Simulated(predicted, best, tuned or known[starts[0]])

    def tune(
        self,
        reference: Reference,
        space: ScheduleSpace,
        sampler: AbstractSampler,
        starts: Sequence[Candidate],
        baselines: Sequence[Candidate],
        line: Progress,
        label: str,
    ) -> Candidate | None:
        """The best that gradient steps lead to; None without steps, or if they lead nowhere."""
        if self.solver is None or space.num_steps == 1:
            return None
        varied = _varied(reference, self.t_min)
        schedules = {c.label: c.schedule for c in baselines}
        floor = compare_to(varied, sampler, schedules, line=line, **_FREE)
        found = {}
        for start in starts:
            run = (varied, sampler, space, start.schedule, floor)
            tuned = fine_tune(*run, self.criterion, self.solver, line.update, free=True)
            if not np.allclose(tuned.times, start.schedule.times, rtol=1e-5):
                found[f"from {start.label}"] = tuned
        if not found:
            return None
        compared = floor.joined(compare_to(varied, sampler, found, line=line, **_FREE))
        best = compared.best(floor.names, self.criterion, among=list(found))
        return Candidate(label, found[best], Origin.SIMULATED)

    def _resolution(self) -> float:
        """Distance of the corrected model's own end points to those that were recorded."""
        reference = self.reference
        fine = log_snr(reference.denoiser.process, _SIMULATED_STEPS, self.t_min)
        ends = sample_ends(reference.denoiser, DPMSolverPP2M(), fine, reference.noise)
        squared = np.sum((ends - reference.ends) ** 2, 1)
        return float(np.sqrt(np.mean(squared)) / reference.scale)


class _Simulated(NamedTuple):
    """What a model predicts: all candidates, the best, and where gradient steps lead."""

    predicted: Comparison
    best: str
    tuned: Candidate


@dataclasses.dataclass(frozen=True)
class RecordedSelection:
    """A selection that is ready to run within a budget.

    `network` is a reference of the network with the recorded end points, for the trajectories that
    select; `simulated`, the selection on the corrected model. `fresh` and `fresh_network` are for
    the evidence.
    """

    network: Reference
    fresh_network: AbstractDenoiser
    simulated: SimulatedSelection
    fresh: Float[Array, "m *shape"]
    data: Numbers | None
    plan: Plan

    def run(
        self,
        candidates: Sequence[Candidate],
        space: ScheduleSpace,
        sampler: AbstractSampler,
        progress: bool = True,
        incumbent: str | None = None,
    ) -> Selected:
        """Select one of the candidates or what gradient steps lead to, and compare it.

        First on the corrected model. What is best there, the best baselines and the `incumbent`,
        the label of what data speak for, are run on the network. Where the network led the best of
        these is then known, and

            x_end(schedule) = x_end of the model(schedule) + (x_end - x_end of the model)(best)

        is exact for the best: gradient steps from it lead to another candidate, and so on. A
        baseline is selected only if it is better beyond a standard error.
        """
        planned = sum(self.plan.nfe.values())
        with Progress(f"comparing, NFE {planned:,}: on a model", progress) as line:
            search = _Search(self, space, sampler, line)
            search.start(candidates, incumbent)
            for number in range(1, self.plan.rounds + 1):
                if not search.correct(number):
                    break
            selected = search.selected()
            shown = [c for c in candidates if c.is_baseline] + [selected] * (
                not selected.is_baseline
            )
            evidence = self._evidence(shown, sampler, line)
        spent = search.nfe | {"evidence": evidence.nfe}
        compared = dataclasses.replace(evidence, selected=selected.label)
        criterion = self.simulated.criterion
        return Selected(selected, tuple(shown), compared, criterion, spent)

    def _evidence(
        self, shown: Sequence[Candidate], sampler: AbstractSampler, line: Progress
    ) -> Comparison:
        """The selected candidate and the baselines on noise that selected nothing."""
        times = np.asarray(shown[0].schedule.times)
        span = (float(times[0]), float(times[-1]))
        steps = self.plan.reference_steps
        reference = solve_reference(self.fresh_network, self.fresh, steps, span, self.data)
        schedules = {c.label: c.schedule for c in shown}
        planned = sum(self.plan.nfe.values())
        return compare_to(reference, sampler, schedules, key=None, line=line, planned=planned)


class _Search:
    """What was run so far, and the best of it."""

    def __init__(
        self,
        selection: RecordedSelection,
        space: ScheduleSpace,
        sampler: AbstractSampler,
        line: Progress,
    ):
        self._selection = selection
        self._space = space
        self._sampler = sampler
        self._line = line
        self._tried: list[Candidate] = []
        self._ends: dict[str, np.ndarray] = {}
        self.nfe = {"selection": 0, "fine-tuning": 0}

    def start(self, candidates: Sequence[Candidate], incumbent: str | None) -> None:
        """Run what the corrected model says is best, the incumbent, and the best baselines."""
        simulated = self._selection.simulated
        found = simulated.simulate(candidates, self._space, self._sampler, self._line)
        predicted = found.predicted
        baselines = [c.label for c in candidates if c.is_baseline]
        criterion = simulated.criterion
        kept = [
            min(baselines, key=predicted.statistic(name).__getitem__)
            for name in (WEIGHED if criterion == BALANCED else (criterion,))
        ]
        if incumbent is not None:
            kept.insert(0, incumbent)
        known = by_label(candidates)
        run = {found.tuned.label: found.tuned, **{label: known[label] for label in kept}}
        self._run(list(run.values()), "selection")

    def correct(self, number: int) -> bool:
        """Correct the model by the best that was run, and run what gradient steps lead to.

        From it, and from the best that is no baseline. Whether they lead anywhere.
        """
        measured = self._measured()
        simulated = self._selection.simulated
        best = measured.best(self._baselines, self._criterion)
        starts = [
            by_label(self._tried)[name] for name in dict.fromkeys([best, self._best(measured)])
        ]
        baselines = [c for c in self._tried if c.is_baseline]
        run = (self._space, self._sampler, starts, baselines, self._line, SIMULATED[number])
        tuned = simulated.tune(self._corrected(starts[0]), *run)
        if tuned is not None:
            self._run([tuned], "fine-tuning")
        return tuned is not None

    def _corrected(self, candidate: Candidate) -> Reference:
        """The model with what the network's samples of a candidate differ by from its own."""
        rows = slice(self._selection.plan.selecting)
        model = self._selection.simulated.reference.take(rows)
        modelled = sample_ends(model.denoiser, self._sampler, candidate.schedule, model.noise)
        return model._replace(offset=self._ends[candidate.label] - modelled)

    def selected(self) -> Candidate:
        """The best, unless a baseline is better beyond a standard error."""
        measured = self._measured()
        incumbent = self._best(measured)
        label = measured.best(self._baselines, self._criterion, incumbent)
        return by_label(self._tried)[label]

    def _best(self, measured: Comparison) -> str:
        """The best that is no baseline, if there is one."""
        others = [c.label for c in self._tried if not c.is_baseline]
        return measured.best(self._baselines, self._criterion, among=others or None)

    @property
    def _criterion(self) -> str:
        return self._selection.simulated.criterion

    @property
    def _baselines(self) -> list[str]:
        return [c.label for c in self._tried if c.is_baseline]

    def _run(self, candidates: Sequence[Candidate], stage: str) -> None:
        """Run candidates on the network."""
        reference = self._selection.network
        process = reference.denoiser.process
        for candidate in candidates:
            self._line.update(f"comparing: {candidate.label}")
            run = (reference.denoiser, self._sampler, candidate.schedule, reference.noise)
            self._ends[candidate.label] = sample_ends(*run)
            per_call = reference.denoiser.nfe
            each = per_call * sampling_nfe(process, self._sampler, candidate.schedule)
            self.nfe[stage] += each * len(reference.noise)
        self._tried += candidates

    def _measured(self) -> Comparison:
        return compare_ends(self._selection.network, self._ends, 0)


def _varied(reference: Reference, t_min: float) -> Reference:
    """The trajectories of a corrected model, `_ROWS` at least, with the corrections of others.

    All trajectories from one start follow each other.
    """
    count = len(reference.ends)
    copies = -(-_ROWS // count)
    if copies == 1:
        return reference
    start = np.repeat(np.arange(count), copies)
    shift = np.tile(np.arange(copies) * max(1, count // copies), count)
    other = (start + shift) % count
    noise = jax.device_put(np.asarray(reference.noise)[start])
    corrected = cast(CorrectedDenoiser, reference.denoiser)
    denoiser, ends = corrected.exchanged(noise, other, t_min)
    ends[::copies] = reference.ends
    offset = np.broadcast_to(reference.offset, reference.ends.shape)[other]
    return reference._replace(denoiser=denoiser, noise=noise, ends=ends, offset=offset)
