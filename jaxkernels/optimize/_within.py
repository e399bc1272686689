"""Selecting within a budget: on a model of the network that recorded trajectories correct."""

import dataclasses
from collections.abc import Sequence

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
    compare_ends,
    compare_to,
    sample_ends,
    solve_reference,
)
from ..distributions import GaussianMixture
from ..prediction import AbstractDenoiser, in_working_precision
from ..samplers import AbstractSampler, DPMSolverPP2M, sampling_nfe
from ..schedules import log_snr
from ..trajectories import DenoisedRecord
from ._budget import Plan
from ._candidates import SIMULATED, Candidate, Origin, by_label
from ._fine_tune import fine_tune
from ._model import Model
from ._selection import Selected, Selection, check_data
from ._solver import Optax
from ._space import ScheduleSpace

# of a mixture of recorded end points: few, as what it gets wrong is recorded
_SAMPLES_PER_COMPONENT = 12
# trajectories of the model, and steps of their solution
_SIMULATED = 128
_SIMULATED_STEPS = 200


def bind_within(
    selection: Selection,
    network: AbstractDenoiser,
    record: DenoisedRecord,
    model: Model,
    fresh: Array,
    plan: Plan,
) -> "RecordedSelection":
    """Bind a selection within a budget to a record.

    **Arguments:** `selection`; `network`, that was recorded; `record`; `model`, what is known of
    the data; `fresh`, initial noise of the evidence; `plan`, how the budget is divided.

    **Returns:** a selection that is ready to run candidates.

    **Raises:** ValueError if data do not fit the network.
    """
    check_data(selection.data, fresh)
    ends = np.asarray(record.ends)
    distribution = model.mixture if model.knows_data else None
    if distribution is None:
        distribution = GaussianMixture.fit(ends, max(1, len(ends) // _SAMPLES_PER_COMPONENT))
    simulated = record.denoiser(distribution.denoiser(record.process))
    working, noise = in_working_precision(network, jnp.asarray(record.noise))
    whole = as_reference(working, noise, ends, selection.data, np.nan, 0)
    return RecordedSelection(
        network=whole.take(slice(plan.selecting)),
        fresh_network=network.take(slice(len(ends), None)),
        simulated=whole._replace(denoiser=simulated),
        fresh=fresh,
        data=selection.data,
        criterion=selection.criterion,
        solver=selection.simulation_solver(),
        plan=plan,
    )


@dataclasses.dataclass(frozen=True)
class RecordedSelection:
    """A selection that is ready to run within a budget.

    `network` and `simulated` are references with the recorded end points: of the network, for the
    trajectories that select, and of the corrected model for all. `fresh` and `fresh_network` are
    for the evidence.
    """

    network: Reference
    fresh_network: AbstractDenoiser
    simulated: Reference
    fresh: Float[Array, "m *shape"]
    data: Numbers | None
    criterion: str
    solver: Optax | None
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
        return Selected(selected, tuple(shown), compared, self.criterion, spent)

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
        assert space.t_min is not None
        self._t_min = float(space.t_min)
        self._solver = selection.solver if space.num_steps > 1 else None
        self._tried: list[Candidate] = []
        self._ends: dict[str, np.ndarray] = {}
        self.nfe = {"selection": 0, "fine-tuning": 0}

    def start(self, candidates: Sequence[Candidate], incumbent: str | None) -> None:
        """Run what the corrected model says is best, the incumbent, and the best baselines."""
        simulated = _varied(self._selection.simulated, self._t_min)
        schedules = {c.label: c.schedule for c in candidates}
        planned = sum(self._selection.plan.nfe.values())
        options = {"key": None, "line": self._line, "planned": planned}
        predicted = compare_to(simulated, self._sampler, schedules, **options)
        baselines = [c.label for c in candidates if c.is_baseline]
        criterion = self._selection.criterion
        others = [c.label for c in candidates if not c.is_baseline]
        best = predicted.best(baselines, criterion)
        kept = [
            min(baselines, key=predicted.statistic(name).__getitem__)
            for name in (WEIGHED if criterion == BALANCED else (criterion,))
        ]
        known = by_label(candidates)
        tuned = self._tuned(simulated, known[best], predicted.take(baselines), 0)
        if tuned is None:
            kept.append(predicted.best(baselines, criterion, among=others) if others else best)
        if incumbent is not None:
            kept.insert(0, incumbent)
        run = [known[label] for label in dict.fromkeys(kept)]
        if tuned is not None:
            run.insert(0, tuned)
        self._run(run, "selection")

    def correct(self, number: int) -> bool:
        """Correct the model by the best that was run, and run what gradient steps lead to.

        If they lead nowhere, by the best that is no baseline. Whether they lead anywhere.
        """
        measured = self._measured()
        best = measured.best(self._baselines, self._selection.criterion)
        starts = dict.fromkeys([best, self._best(measured)])
        baselines = {c.label: c.schedule for c in self._tried if c.is_baseline}
        options = {"key": None, "line": self._line, "planned": 0}
        for label in starts:
            start = by_label(self._tried)[label]
            corrected = _varied(self._corrected(start), self._t_min)
            floor = compare_to(corrected, self._sampler, baselines, **options)
            tuned = self._tuned(corrected, start, floor, number)
            if tuned is not None:
                self._run([tuned], "fine-tuning")
                return True
        return False

    def _corrected(self, candidate: Candidate) -> Reference:
        """The model with what the network's samples of a candidate differ by from its own."""
        rows = slice(self._selection.plan.selecting)
        model = self._selection.simulated.take(rows)
        modelled = sample_ends(model.denoiser, self._sampler, candidate.schedule, model.noise)
        return model._replace(offset=self._ends[candidate.label] - modelled)

    def selected(self) -> Candidate:
        """The best, unless a baseline is better beyond a standard error."""
        measured = self._measured()
        incumbent = self._best(measured)
        label = measured.best(self._baselines, self._selection.criterion, incumbent)
        return by_label(self._tried)[label]

    def _best(self, measured: Comparison) -> str:
        """The best that is no baseline, if there is one."""
        others = [c.label for c in self._tried if not c.is_baseline]
        return measured.best(self._baselines, self._selection.criterion, among=others or None)

    @property
    def _baselines(self) -> list[str]:
        return [c.label for c in self._tried if c.is_baseline]

    def _tuned(
        self, reference: Reference, start: Candidate, baselines: Comparison, number: int
    ) -> Candidate | None:
        """What gradient steps lead to; None without steps, or if to nothing better."""
        if self._solver is None or reference.noise.shape[0] < 4:
            return None
        run = (reference, self._sampler, self._space, start.schedule, baselines)
        tuned = fine_tune(*run, self._selection.criterion, self._solver, self._line.update)
        if number and np.allclose(tuned.times, start.schedule.times, rtol=1e-5):
            return None
        return Candidate(SIMULATED[number], tuned, Origin.SIMULATED)

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
    """The trajectories of a corrected model, few ones also with the residuals of others.

    What the model gets wrong is then a draw that does not depend on where a trajectory starts. All
    trajectories from one start follow each other.
    """
    count = len(reference.ends)
    copies = -(-_SIMULATED // count)
    if copies == 1:
        return reference
    start = np.repeat(np.arange(count), copies)
    shift = np.tile(np.arange(copies) * max(1, count // copies), count)
    residual = (start + shift) % count
    denoiser = reference.denoiser.take(residual)
    noise = jnp.asarray(np.asarray(reference.noise)[start])
    fine = log_snr(denoiser.process, _SIMULATED_STEPS, t_min)
    ends = np.array(sample_ends(denoiser, DPMSolverPP2M(), fine, noise))
    ends[::copies] = reference.ends
    offset = np.broadcast_to(reference.offset, reference.ends.shape)[residual]
    return reference._replace(denoiser=denoiser, noise=noise, ends=ends, offset=offset)
