"""Optimal schedules for several samplers and numbers of steps."""

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._objective import AbstractObjective, ScheduleFunction
from .._plot import FigureSpec, Guide, render
from .._tables import Table, label, number
from .._types import Numbers
from ..comparison import Setting, report_figure, sampler_settings
from ..distributions import AbstractDistribution
from ..prediction import AbstractDenoiser
from ..processes import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ._budget import SweepPlan, plan_sweep
from ._model import Model
from ._optimize import run_request
from ._preparation import (
    costs_within,
    known_before,
    model_with_record,
    noise_within,
    prepare,
    record_planned,
)
from ._request import Request, check_arguments, check_budget, on_range
from ._result import OptimizedSchedule
from ._selection import Selection
from ._solver import AbstractSolver

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class ScheduleSweep:
    """Hold the optimal schedules of several settings, each a sampler and a number of steps.

    Made by `optimize_schedules`.

    **Arguments:**

    - `results`: {(sampler, steps): OptimizedSchedule}. The sweep is indexed, iterated over and
      counted by these settings.
    - `shared_nfe`: NFE of what serves all settings, by stage.
    - `plan`: how a budget was divided; None without one.
    - `seconds`: wall time of the whole call.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [1.0, 0.1, 0.01])
    >>> sweep = jk.optimize_schedules(target, jk.VP(), ["ddim"], [4, 8])
    >>> sweep["ddim", 8].objective < sweep["ddim", 4].objective
    True
    ```
    """

    results: Mapping[Setting, OptimizedSchedule]
    shared_nfe: Mapping[str, int]
    plan: SweepPlan | None
    seconds: float

    def __getitem__(self, setting: Setting) -> OptimizedSchedule:
        if setting not in self.results:
            known = ", ".join(map(str, self.results))
            raise ValueError(f"setting = {setting!r} was not optimised; known are {known}.")
        return self.results[setting]

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __contains__(self, setting: object) -> bool:
        return setting in self.results

    @property
    def schedules(self) -> dict[Setting, Schedule]:
        """The schedules by (sampler, steps), as `compare_samplers` takes them."""
        return {setting: result.schedule for setting, result in self.results.items()}

    @property
    def nfe(self) -> int:
        """Network evaluations of all settings together."""
        return sum(self.shared_nfe.values()) + sum(r.nfe for r in self.results.values())

    def table(self) -> str:
        """Print the sweep as text, a row per setting.

        **Returns:** the lines of the table.
        """
        return self._table().to_text()

    def to_markdown(self) -> str:
        """Print the sweep as a Markdown table, a row per setting.

        **Returns:** the lines of the table.
        """
        return self._table().to_markdown()

    def figure(self) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        One panel per sampler, one line per baseline schedule: its objective, or its error where
        candidates were run on a network or a mixture, divided by that of the optimised schedule,
        against the number of steps.

        **Returns:** panels with their marks, labels and numbers.
        """
        values = {setting: result.ratios for setting, result in self.results.items()}
        first = next(iter(self.results.values()))
        what = f"{label(first.criterion)} / that of the optimised schedule"
        return report_figure(
            values, list(first.ratios), what, "Baseline schedules", Guide(1.0, "y")
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw by how much every baseline is worse, against the number of steps.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default it is not
          saved.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for another suffix or a file that cannot be written; ImportError
        without matplotlib.
        """
        return render(self.figure(), path)

    def _table(self) -> Table:
        rows = []
        for (sampler, steps), result in self.results.items():
            best = result.best_baseline
            doubts = len(result.warnings)
            rows.append(
                [
                    sampler,
                    str(steps),
                    number(result.objective),
                    number(float(result.evaluation.w2)),
                    result.selected,
                    best,
                    number(result.ratios[best]),
                    str(doubts) if doubts else "",
                ]
            )
        first = next(iter(self.results.values()))
        header = ["sampler", "steps", "objective", "W2", "selected", "best baseline"]
        notes = [f"ratio: {label(first.criterion)} of the best baseline to that of the schedule"]
        if self.nfe:
            notes.append(f"NFE: {self.nfe:,}")
        if self.plan is not None:
            notes.append(f"budget: {self.plan}")
        return Table([*header, "ratio", "warnings"], rows, notes=notes)

    def __repr__(self) -> str:
        return self.table()


def optimize_schedules(
    target: AbstractDistribution | AbstractDenoiser | Numbers,
    process: AbstractProcess,
    samplers: Sequence[AbstractSampler | str],
    num_steps: Sequence[int],
    *,
    t_min: Numbers | None = None,
    objective: AbstractObjective | ScheduleFunction | None = None,
    stochasticity: str | float = 0.0,
    starts: Sequence[str] | None = None,
    solver: AbstractSolver | None = None,
    selection: Selection | None = None,
    budget: int | None = None,
    progress: bool = True,
) -> ScheduleSweep:
    """Find optimal schedules for several samplers and numbers of steps.

    A mixture is fitted to samples once, and a network or a mixture is recorded once: its record
    serves every sampler whose errors it predicts, and every number of steps.

    **Arguments:**

    - `target`, `process`, `t_min`, `objective`, `solver`, `selection`, `progress`: as for
      `optimize_schedule`.
    - `samplers`: names or samplers, at most one of each class.
    - `num_steps`: numbers of steps, each >= 1. Every pair (sampler, number of steps) is a setting.
    - `stochasticity`: alpha = h/g of every step, or "optimize".
    - `starts`: names of baseline schedules. Default: all.
    - `budget`: NFE on a network that are never exceeded, such as 16_000, for all settings together.
      They are spent on (1) recording denoised points, to which a model of the network is fitted
      (`DenoisedRecord.fit_mixture`) and which correct it: schedules are optimised on this model;
      (2) running the candidates of each setting on a few of the recorded trajectories, mostly those
      that end far from the others, with two fifths of the NFE if these are enough: the results
      correct what the model says as far as they are more than scatter; (3) if anything is left, a
      selection for each setting, as by `optimize_schedule`. Without (3) the errors that are shown
      are the model's, and `verified` is False. A few hundred NFE are enough for a warning where the
      schedule of the data is worse on the network than a baseline. `ScheduleSweep.plan` says how
      the budget was divided. Default: as `selection` says.

    **Returns:** a `ScheduleSweep`; `sweep["ddim", 8]` is what `optimize_schedule` returns.

    **Raises:** ValueError naming the argument and its value, before anything is optimised;
    ImportError for samples without scikit-learn.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [1.0, 0.1, 0.01])
    >>> sweep = jk.optimize_schedules(target, jk.VP(), ["ddim", "dpmpp_2m"], range(4, 7))
    >>> len(sweep.schedules)
    6
    ```

    One program of the solver serves all numbers of steps of a sampler up to the next power of two.
    """
    began = time.perf_counter()
    requests = {}
    for setting, sampler in sampler_settings(samplers, num_steps).items():
        run = (target, process, sampler, setting[1], t_min, objective, stochasticity)
        request = check_arguments(*run, solver, selection)
        budget = check_budget(target, request, budget)
        requests[setting] = request
    for request in requests.values():
        request.check_solvable(starts)
    first = next(iter(requests.values()))
    target = on_range(target, first.process)
    plan = None
    if budget is not None or first.denoised_record is not None:
        model, own, nfe, plan = _record_within(target, list(requests.values()), budget, progress)
    else:
        model, own, nfe = _record_once(target, list(requests.values()), progress)
    results = {}
    shares = [None] * len(requests) if plan is None or plan.shares is None else plan.shares
    for (setting, request), one, share in zip(requests.items(), own, shares, strict=True):
        checked = 0 if plan is None else plan.checked
        request = dataclasses.replace(request, selection=one, budget=share, checked=checked)
        began_setting = time.perf_counter()
        results[setting] = run_request(model, request, starts, progress, began_setting)
    return ScheduleSweep(results, nfe, plan, time.perf_counter() - began)


def _record_once(
    target: Any, requests: Sequence[Request], progress: bool
) -> tuple[Model, list[Selection | None], dict[str, int]]:
    """The model, the selection of every setting with the record that serves all, and their NFE."""
    # a record depends on none of the settings, if there can be one
    first = next((request for request in requests if request.recordable), requests[0])
    model, recorded, _, nfe = prepare(target, first, None, progress)
    own = []
    for request in requests:
        alone = recorded is None or request.recordable
        own.append(recorded if alone else on_range(request.selection or Selection(), first.process))
    # what the model took is counted once
    return model._replace(nfe=0), own, nfe


def _record_within(
    target: Any, requests: Sequence[Request], budget: int | None, progress: bool
) -> tuple[Model, list[Selection | None], dict[str, int], SweepPlan | None]:
    """The same with a record of denoised points, and how a budget is divided, if there is one."""
    first = requests[0]
    selection = first.selection or Selection()
    network, model = known_before(target, selection)
    made = first.denoised_record
    plan = None
    if budget is not None:
        costs = [costs_within(request, network, model) for request in requests]
        given = None if made is None else made.num_trajectories
        plan = plan_sweep(budget, costs, selection.noise_rows, given)
    nfe = {}
    if made is None:
        assert plan is not None
        # as many again for the evidence
        noise = noise_within(model, first, selection, 2 * plan.trajectories)
        made = record_planned(network, noise, plan, first, progress)
        nfe = {"record": made.nfe}
        fresh = noise[plan.trajectories :] if plan.shares else None
        selection = dataclasses.replace(selection, record=made, noise=fresh)
    model = model_with_record(model, network, made, first, progress)
    return model, [selection] * len(requests), nfe, plan
