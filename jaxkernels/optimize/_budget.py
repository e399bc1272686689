"""Dividing a budget of NFE between samples, a trajectory record, a selection and its evidence."""

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..comparison import reference_nfe
from ..samplers import AbstractSampler
from ..trajectories import TrajectoryRecord, record_nfe
from ._candidates import Candidate, Origin
from ._fine_tune import fine_tuning_nfe
from ._model import LEAST_FOR_MIXTURE, SAMPLE_STEPS

# shares of the evidence, and of the samples that stand for unknown data
_EVIDENCE = 0.15
_SAMPLES = 0.45
# nodes and directions of a record, the finest that leaves enough trajectories
_RESOLUTIONS = ((40, 8), (32, 4), (24, 4), (20, 2), (16, 1))
_ENOUGH_TRAJECTORIES = 32
_MOST_TRAJECTORIES = 256
# batches of a record
_BATCHES = 4
# samples of initial noise that select, and of the evidence
_LEAST_ROWS = 4
_MOST_ROWS = 2048
# candidates that are run to select: those that the record predicts to be best
_OTHERS = 8
_BASELINES = 3
# the evidence's reference solution: steps for each of the schedules', at least
_STEPS_FACTOR = 4
_LEAST_STEPS = 60


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a budget is divided.

    **Arguments:**

    - `budget`: what is divided.
    - `samples`: that a mixture is fitted to; 0 if data are known, or they would be too few.
    - `trajectories`: that are recorded; 0 if a record is given.
    - `nodes`, `directions`: of the record.
    - `selecting`: samples of initial noise that select, the first of the recorded ones.
    - `evidence`: other samples of initial noise, for the evidence.
    - `reference_steps`: of the evidence's reference solution.
    - `nfe`: at most, by stage.
    """

    budget: int
    samples: int
    trajectories: int
    nodes: int
    directions: int
    selecting: int
    evidence: int
    reference_steps: int
    nfe: Mapping[str, int]

    @property
    def batch(self) -> int:
        """Trajectories that are recorded at a time."""
        return self.trajectories // _BATCHES

    def __str__(self) -> str:
        drawn = f"{self.samples} samples for a mixture, " if self.samples else ""
        made = f"{self.trajectories} trajectories, {self.nodes} nodes, {self.directions} directions"
        return (
            f"{self.budget:,}: {drawn}{made if self.trajectories else 'a given record'}; "
            f"{self.selecting} samples select, {self.evidence} give the evidence"
        )


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the stages of a selection within a budget cost.

    **Arguments:**

    - `per_sample`: NFE of a schedule for one sample.
    - `baselines`: number of baseline schedules, all of which are in the evidence.
    - `fine_tune`: gradient steps.
    """

    per_sample: int
    baselines: int
    fine_tune: int

    @property
    def reference_steps(self) -> int:
        """Steps of the evidence's reference solution."""
        return max(_LEAST_STEPS, _STEPS_FACTOR * self.per_sample)

    def evidence(self, rows: int) -> int:
        """NFE of comparing the selected candidate with all baselines."""
        schedules = (1 + self.baselines) * self.per_sample
        return rows * (reference_nfe(self.reference_steps) + schedules)

    def selection(self, rows: int) -> int:
        """NFE of the candidates that are run, with recorded end points as the reference."""
        return rows * (_OTHERS + _BASELINES) * self.per_sample

    def selecting(self, rows: int) -> int:
        """NFE of the selection, fine-tuning included."""
        return self.selection(rows) + self.fine_tuning(rows)

    def fine_tuning(self, rows: int) -> int:
        """NFE of the gradient steps and of comparing what they end at."""
        if not self.fine_tune:
            return 0
        return fine_tuning_nfe(rows, self.per_sample, self.fine_tune) + rows * self.per_sample


def make_plan(
    budget: int,
    costs: Costs,
    dimension: int,
    rows: int | None,
    recorded: int | None,
    has_data: bool,
) -> Plan:
    """Divide a budget.

    **Arguments:**

    - `budget`: NFE that are never exceeded.
    - `costs`: of the stages.
    - `dimension`: of a sample.
    - `rows`: samples of initial noise that there are; None for as many as wanted.
    - `recorded`: trajectories of a record that is given; None if one is to be made.
    - `has_data`: whether a mixture can be fitted without samples of the network.

    **Returns:** a `Plan`.

    **Raises:** ValueError for a budget too small, naming the least one, or too few rows.
    """
    before = _least_record(dimension) if recorded is None else 0
    before += costs.selecting(_LEAST_ROWS)
    least = before + costs.evidence(_LEAST_ROWS)
    if budget < least:
        raise ValueError(f"budget = {budget} must be at least {least} NFE here.")
    rows = _MOST_ROWS if rows is None else rows
    needed = _LEAST_ROWS if recorded is not None else 2 * _LEAST_ROWS
    if rows < needed:
        raise ValueError(f"noise has {rows} rows; within a budget at least {needed} are needed.")
    most = rows if recorded is not None else max(_LEAST_ROWS, rows // 3)
    share = max(int(_EVIDENCE * budget), costs.evidence(_LEAST_ROWS))
    share = min(share, budget - before)
    evidence = _most_rows(costs.evidence, share, most)
    left = budget - costs.evidence(evidence)
    samples = 0 if has_data else _samples(budget, left - before)
    left -= samples * SAMPLE_STEPS
    resolution = (0, 0, 0)
    if recorded is None:
        most = min(_MOST_TRAJECTORIES, rows - evidence)
        resolution = _resolution(costs, left, dimension, most)
    record = record_nfe(*resolution) if recorded is None else 0
    selecting = _most_rows(costs.selecting, left - record, recorded or resolution[0])
    nfe = {
        "samples": samples * SAMPLE_STEPS,
        "record": record,
        "selection": costs.selection(selecting),
        "fine-tuning": costs.fine_tuning(selecting),
        "evidence": costs.evidence(evidence),
    }
    return Plan(budget, samples, *resolution, selecting, evidence, costs.reference_steps, nfe)


def _samples(budget: int, available: int) -> int:
    """How many samples a mixture is fitted to; 0 rather than too few."""
    count = min(int(_SAMPLES * budget), available) // SAMPLE_STEPS
    return count if count >= LEAST_FOR_MIXTURE else 0


def _least_record(dimension: int) -> int:
    """NFE of the smallest record."""
    nodes, directions = _RESOLUTIONS[-1]
    return record_nfe(_LEAST_ROWS, nodes, min(directions, dimension))


def _resolution(costs: Costs, left: int, dimension: int, most: int) -> tuple[int, int, int]:
    """Trajectories, nodes and directions of the finest record that has enough trajectories.

    All of them select as well. They are recorded in four batches of the same size.
    """
    found = (0, 0, 0)
    for nodes, directions in _RESOLUTIONS:
        resolution = (nodes, min(directions, dimension))

        def cost(rows: int, resolution: tuple[int, int] = resolution) -> int:
            return record_nfe(rows, *resolution) + costs.selecting(rows)

        found = (_most_rows(cost, left, most) // _BATCHES * _BATCHES, *resolution)
        if found[0] >= min(_ENOUGH_TRAJECTORIES, most // _BATCHES * _BATCHES):
            break
    return found


def _most_rows(cost: Callable[[int], int], available: int, most: int) -> int:
    """The largest number of rows, at most `most`, whose cost is available."""
    return bisect.bisect_right(range(1, most + 1), available, key=cost)


def shortlist(
    candidates: Sequence[Candidate], record: TrajectoryRecord, sampler: AbstractSampler
) -> list[Candidate]:
    """What a mixture selected, and the candidates and baselines that a record predicts to be best.

    By the product of the geometric mean and the root mean square of the predicted errors.
    """

    def predicted(candidate: Candidate) -> float:
        errors = record.errors(sampler, candidate.schedule)
        tiny = np.finfo(np.float64).tiny
        return float(np.mean(np.log(errors + tiny)) + 0.5 * np.log(np.mean(errors**2) + tiny))

    ranked = sorted(candidates, key=lambda c: (c.origin is not Origin.MIXTURE, predicted(c)))
    baselines = [c for c in ranked if c.is_baseline][:_BASELINES]
    others = [c for c in ranked if not c.is_baseline][:_OTHERS]
    return [*others, *baselines]
