"""Dividing a budget of NFE between recorded trajectories, a selection and its evidence."""

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ..comparison import reference_nfe
from ..trajectories import denoised_nfe

# share of the evidence, and samples that select for one of the evidence where shares are planned
_EVIDENCE = 0.15
_EVIDENCE_ROWS = 8
# nodes of a record, for each NFE of a schedule
_NODES_FACTOR = 3
_LEAST_NODES = 24
_MOST_NODES = 48
_MOST_TRAJECTORIES = 512
# without a selection on the network
_LEAST_RECORDED = 8
# share of what the network decides for each setting, and trajectories for that, at least
_CHECK = 0.4
_LEAST_CHECKED = 4
# batches of a record
_BATCHES = 4
# corrections of the model by what was run, the most that leave enough trajectories
MOST_ROUNDS = 3
_ENOUGH_TRAJECTORIES = 64
# baselines that are run to select: the best by each of three statistics
BASELINES = 3
# samples of initial noise that select, and of the evidence
_LEAST_ROWS = 4
_MOST_ROWS = 2048
# the evidence's reference solution: steps for each NFE of the schedules, at least
_STEPS_FACTOR = 4
_LEAST_STEPS = 60


@dataclasses.dataclass(frozen=True)
class RecordPlan:
    """The record that a budget pays for; see the plans for the arguments."""

    budget: int
    trajectories: int
    nodes: int

    @property
    def batch(self) -> int:
        """Trajectories that are recorded at a time."""
        return self.trajectories // _BATCHES

    @property
    def _start(self) -> str:
        """The start of a plan's text."""
        made = f"{self.trajectories} trajectories, {self.nodes} nodes"
        return f"{self.budget:,}: {made if self.trajectories else 'a given record'}"


@dataclasses.dataclass(frozen=True)
class Plan(RecordPlan):
    """How a budget is divided.

    **Arguments:**

    - `budget`: what is divided.
    - `trajectories`: that are recorded; 0 if a record is given.
    - `nodes`: of the record.
    - `selecting`: samples of initial noise that select, the first of the recorded ones.
    - `rounds`: corrections of the model of the network.
    - `evidence`: other samples of initial noise, for the evidence.
    - `reference_steps`: of the evidence's reference solution.
    - `nfe`: at most, by stage.
    """

    selecting: int
    rounds: int
    evidence: int
    reference_steps: int
    nfe: Mapping[str, int]

    def __str__(self) -> str:
        return (
            f"{self._start}; {self.selecting} samples select, with {self.rounds} corrections; "
            f"{self.evidence} give the evidence"
        )


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the stages of a selection within a budget cost, in calls of the denoiser.

    **Arguments:**

    - `per_sample`: calls of the denoiser for one sample of a schedule.
    - `baselines`: number of baseline schedules, all of which are in the evidence.
    - `candidates`: number of candidates that are run before the model is corrected.
    - `rounds`: largest number of corrections, after each of which a candidate is run.
    - `per_call`: NFE of a call.
    """

    per_sample: int
    baselines: int
    candidates: int
    rounds: int
    per_call: int = 1

    @property
    def nodes(self) -> int:
        """Nodes of a record."""
        return min(max(_LEAST_NODES, _NODES_FACTOR * self.per_sample), _MOST_NODES)

    @property
    def reference_steps(self) -> int:
        """Steps of the evidence's reference solution."""
        return max(_LEAST_STEPS, _STEPS_FACTOR * self.per_sample)

    def evidence(self, rows: int) -> int:
        """Calls for comparing the selected candidate with all baselines."""
        schedules = (1 + self.baselines) * self.per_sample
        return rows * (reference_nfe(self.reference_steps) + schedules)

    def selection(self, rows: int) -> int:
        """Calls for the candidates that are run first; recorded end points are the reference."""
        return rows * (self.candidates + BASELINES) * self.per_sample

    def all(self, rows: int) -> int:
        """Calls for all stages but a record, on as many samples."""
        return (
            self.selection(rows)
            + self.fine_tuning(rows, self.rounds)
            + self.evidence(max(_LEAST_ROWS, rows // _EVIDENCE_ROWS))
        )

    def fine_tuning(self, rows: int, rounds: int) -> int:
        """Calls for the candidates that are run after corrections."""
        return rows * rounds * self.per_sample


def make_plan(budget: int, costs: Costs, rows: int | None, recorded: int | None) -> Plan:
    """Divide a budget.

    **Arguments:**

    - `budget`: NFE that are never exceeded.
    - `costs`: of the stages.
    - `rows`: samples of initial noise that there are; None for as many as wanted.
    - `recorded`: trajectories of a record that is given; None if one is to be made.

    **Returns:** a `Plan`.

    **Raises:** ValueError for a budget too small, naming the least one, or too few rows.
    """
    nodes = 0 if recorded is not None else costs.nodes

    def before(count: int, rounds: int = 0) -> int:
        made = denoised_nfe(count, nodes)
        return made + costs.selection(count) + costs.fine_tuning(count, rounds)

    least = before(_LEAST_ROWS) + costs.evidence(_LEAST_ROWS)
    if budget < least * costs.per_call:
        raise ValueError(f"budget = {budget} must be at least {least * costs.per_call} NFE here.")
    calls = budget // costs.per_call
    rows = _MOST_ROWS if rows is None else rows
    needed = _LEAST_ROWS if recorded is not None else 2 * _LEAST_ROWS
    if rows < needed:
        raise ValueError(f"noise has {rows} rows; within a budget at least {needed} are needed.")
    most = rows if recorded is not None else max(_LEAST_ROWS, rows // 3)
    share = max(int(_EVIDENCE * calls), costs.evidence(_LEAST_ROWS))
    share = min(share, calls - before(_LEAST_ROWS))
    evidence = _most_rows(costs.evidence, share, most)
    left = calls - costs.evidence(evidence)
    most = recorded or min(_MOST_TRAJECTORIES, rows - evidence) // _BATCHES * _BATCHES
    selecting = 0
    rounds = costs.rounds
    for rounds in range(costs.rounds, -1, -1):
        selecting = _most_rows(lambda count, r=rounds: before(count, r), left, most)
        if selecting >= min(_ENOUGH_TRAJECTORIES if rounds > 1 else _LEAST_ROWS, most):
            break
    if recorded is None:
        selecting = selecting // _BATCHES * _BATCHES
    trajectories = selecting if recorded is None else 0
    used = {
        "record": denoised_nfe(trajectories, nodes),
        "selection": costs.selection(selecting),
        "fine-tuning": costs.fine_tuning(selecting, rounds),
        "evidence": costs.evidence(evidence),
    }
    nfe = {stage: costs.per_call * count for stage, count in used.items()}
    return Plan(
        budget, trajectories, nodes, selecting, rounds, evidence, costs.reference_steps, nfe
    )


@dataclasses.dataclass(frozen=True)
class SweepPlan(RecordPlan):
    """How a budget is divided between one record and the settings that it serves.

    **Arguments:**

    - `budget`: what is divided.
    - `trajectories`: that are recorded; 0 if a record is given.
    - `nodes`: of the record.
    - `shares`: NFE for a selection on the network and its evidence, one for each setting; None
      where schedules are optimised on a model of the network that the record corrects.
    - `checked`: the trajectories on which the network is then run to decide, in each setting,
      between what the model leads to and what data speak for; 0 where the model decides.
    """

    shares: tuple[int, ...] | None
    checked: int

    def __str__(self) -> str:
        if self.shares:
            return f"{self._start}; {sum(self.shares):,} for selections"
        what = f"{self.checked} of them decide" if self.checked else "no selection on it"
        return f"{self._start}; {what}"


def plan_sweep(
    budget: int, costs: Sequence[Costs], rows: int | None, recorded: int | None
) -> SweepPlan:
    """Divide a budget between a record and several settings.

    The record comes first: what a model that it corrects says was seen to be worth more than a
    selection on few samples. What is left when it is large enough goes to the settings, in
    proportion to the NFE of their schedules, if that runs enough samples for each.

    **Arguments:**

    - `budget`: NFE that are never exceeded.
    - `costs`: of the stages, for each setting.
    - `rows`: samples of initial noise that there are; None for as many as wanted.
    - `recorded`: trajectories of a record that is given; None if one is to be made.

    **Returns:** a `SweepPlan`.

    **Raises:** ValueError for a budget too small, naming the least one, or too few rows.
    """
    per_call = costs[0].per_call
    nodes = 0 if recorded is not None else max(cost.nodes for cost in costs)
    least = per_call * denoised_nfe(_LEAST_RECORDED, nodes)
    if budget < least:
        raise ValueError(f"budget = {budget} must be at least {least} NFE here.")
    most = _MOST_TRAJECTORIES if rows is None else min(_MOST_TRAJECTORIES, rows)
    if recorded is None and most < _LEAST_RECORDED:
        raise ValueError(
            f"noise has {rows} rows; within a budget at least {_LEAST_RECORDED} are needed."
        )
    calls = budget // per_call
    each = denoised_nfe(1, nodes)
    trajectories = 0
    if recorded is None:
        trajectories = min(calls // each, most) // _BATCHES * _BATCHES
    shares = _shares(calls - trajectories * each, costs, recorded or trajectories)
    if shares is not None and rows is not None:
        # rows of noise that are left give the evidence
        kept = 3 * rows // (4 * _BATCHES) * _BATCHES
        trajectories = min(trajectories, max(kept, _LEAST_RECORDED))
        if rows < trajectories + _LEAST_ROWS:
            shares = None
        else:
            shares = _shares(calls - trajectories * each, costs, recorded or trajectories)
    if shares is not None:
        given = tuple(per_call * share for share in shares)
        return SweepPlan(budget, trajectories, nodes, given, 0)
    per_checked = sum((cost.candidates + cost.baselines) * cost.per_sample for cost in costs)
    if recorded is None:
        kept = int(_CHECK * calls) // per_checked
        kept = kept if kept >= _LEAST_CHECKED else 0
        trajectories = min((calls - kept * per_checked) // each, most) // _BATCHES * _BATCHES
        trajectories = max(trajectories, _LEAST_RECORDED)
    left = calls - trajectories * each
    checked = min(left // per_checked, recorded or trajectories)
    checked = checked if checked >= _LEAST_CHECKED else 0
    return SweepPlan(budget, trajectories, nodes, None, checked)


def _shares(left: int, costs: Sequence[Costs], trajectories: int) -> list[int] | None:
    """Calls for a selection of every setting, in proportion to its steps; None for too few."""
    whole = sum(cost.per_sample for cost in costs)
    shares = [left * cost.per_sample // whole for cost in costs]
    wanted = min(_ENOUGH_TRAJECTORIES, trajectories)
    enough = all(share >= cost.all(wanted) for share, cost in zip(shares, costs, strict=True))
    return shares if enough else None


def _most_rows(cost: Callable[[int], int], available: int, most: int) -> int:
    """The largest number of rows, at most `most`, whose cost is available."""
    return bisect.bisect_right(range(1, most + 1), available, key=cost)
