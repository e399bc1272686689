"""Several samplers, numbers of steps and schedules compared on a network with one reference."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._plot import FigureSpec, Guide, render
from .._progress import Progress
from .._tables import Table, estimate, label, number
from .._types import AnyArray, Numbers
from ..metrics import Estimate
from ..prediction import AbstractDenoiser, check_denoiser
from ..processes import AbstractProcess, check_range
from ..samplers import (
    AbstractSampler,
    as_sampler,
    sampler_name,
    sampling_nfe,
)
from ..schedules import BASELINES, Schedule
from ._compare import check_finite_noise, check_schedules, compare_to
from ._comparison import Comparison, rows_of
from ._criteria import BALANCED
from ._figure import figure_title, report_figure
from ._reference import reference_nfe, reference_steps, solve_reference
from ._statistics import STATISTICS, TINY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Setting: TypeAlias = tuple[str, int]
"""A sampler's name and a number of steps."""


MakeSchedule: TypeAlias = Callable[[AbstractProcess, int, float], Schedule]
"""(process, number of steps, t_min) -> Schedule, as the baseline schedules are made."""


class SamplerReport(eqx.Module):
    """The same schedules compared in several settings, each a sampler and a number of steps.

    **Arguments:**

    - `comparisons`: {(sampler, steps): Comparison}, all from the same initial noise with the same
      reference and unit, so that errors of different settings can be compared too.

    **Raises:** ValueError if there is none, or if they differ in schedules or in the number of
    samples.

    **Example:**

    ```python
    >>> errors = np.array([[2.0, 2.0], [1.0, 1.0]])
    >>> found = jk.Comparison(("a", "b"), errors, np.zeros((2, 2, 1)), np.zeros((2, 1)), 0.0)
    >>> jk.SamplerReport({("ddim", 8): found}).best()
    {('ddim', 8): 'b'}
    ```
    """

    comparisons: dict[Setting, Comparison]

    def __check_init__(self) -> None:
        if not self.comparisons:
            raise ValueError("comparisons is empty; pass {(sampler, steps): Comparison}.")
        first = next(iter(self.comparisons))
        for setting, comparison in self.comparisons.items():
            count = comparison.errors.shape[1]
            if comparison.names != self.names or count != self.num_samples:
                raise ValueError(
                    f"comparisons[{setting}] is of {', '.join(comparison.names)} from {count} "
                    f"samples, comparisons[{first}] of {', '.join(self.names)} from "
                    f"{self.num_samples}; they must agree."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the schedules."""
        return next(iter(self.comparisons.values())).names

    @property
    def num_samples(self) -> int:
        """Number of samples of every schedule, each from its own initial noise."""
        return next(iter(self.comparisons.values())).errors.shape[1]

    @property
    def nfe(self) -> int:
        """NFE that were spent, those of the reference solution once."""
        found = self.comparisons.values()
        return sum(c.sampling_nfe for c in found) + max(c.reference_nfe for c in found)

    @property
    def reference_error(self) -> float:
        """The reference's own error; smaller errors are not resolved."""
        return max(comparison.reference_error for comparison in self.comparisons.values())

    @property
    def ranking_statistic(self) -> str:
        """The statistic of tables: "geometric_mean", or "sliced_w2" if a schedule is stochastic."""
        found = {comparison.ranking_statistic for comparison in self.comparisons.values()}
        return "sliced_w2" if "sliced_w2" in found else "geometric_mean"

    def statistic(self, name: str) -> dict[Setting, dict[str, float]]:
        """Evaluate a statistic of every schedule in every setting.

        **Arguments:**

        - `name`: "rms", "median", "geometric_mean" or "sliced_w2".

        **Returns:** {(sampler, steps): {schedule: value}}, as `Comparison.statistic`.

        **Raises:** ValueError for an unknown name.
        """
        return {
            setting: comparison.statistic(name) for setting, comparison in self.comparisons.items()
        }

    def best(
        self, baselines: Sequence[str] | None = None, criterion: str = BALANCED
    ) -> dict[Setting, str]:
        """Select the best schedule of every setting.

        **Arguments:**

        - `baselines`: names of schedules, for "balanced" only. Default: all.
        - `criterion`: "balanced" or a statistic, as for `Comparison.best`.

        **Returns:** {(sampler, steps): schedule}.

        **Raises:** ValueError as `Comparison.best`.
        """
        return {
            setting: comparison.best(baselines, criterion)
            for setting, comparison in self.comparisons.items()
        }

    def ratios(self, statistic: str, baselines: Sequence[str] | None = None) -> dict[str, Estimate]:
        """Estimate the ratio of every schedule to the best baseline, averaged over settings.

            exp( mean over settings of log( statistic / smallest statistic among baselines ) )

        **Arguments:**

        - `statistic`: "rms", "median", "geometric_mean" or "sliced_w2".
        - `baselines`: names of schedules. Default: all, so that 1 is best in every setting.

        **Returns:** {schedule: estimate}. The standard error is that of resampled noise, the same
        for all schedules and settings, with the best baselines found anew. A schedule that is
        stochastic in any setting has NaN for all statistics but "sliced_w2".

        **Raises:** ValueError for an unknown name, or no baselines.
        """
        _checks.one_of("statistic", statistic, STATISTICS)
        rows = rows_of("baselines", baselines, self.names)
        every = [
            np.vstack([found.statistic_values(statistic), found.resampled_values(statistic)])
            for found in self.comparisons.values()
        ]
        ratios = _mean_ratios(np.stack(every, 1), rows)
        errors = np.std(ratios[1:], axis=0, ddof=1)
        estimates = map(Estimate, ratios[0].tolist(), errors.tolist())
        return dict(zip(self.names, estimates, strict=True))

    def ranked(self, statistic: str) -> list[str]:
        """Rank the schedules by `ratios`.

        **Arguments:**

        - `statistic`: "rms", "median", "geometric_mean" or "sliced_w2".

        **Returns:** names, the best one first; those without a value last.

        **Raises:** ValueError for an unknown statistic.
        """
        ratios = self.ratios(statistic)
        return sorted(self.names, key=lambda name: (np.isnan(ratios[name].value), ratios[name]))

    def table(self, statistic: str | None = None) -> str:
        """Print one statistic as text: a row per schedule, a column per setting, then `ratios`.

        A star marks the smallest value of a column.

        **Arguments:**

        - `statistic`: default `ranking_statistic`.

        **Returns:** the lines of the table.

        **Raises:** ValueError for an unknown statistic.
        """
        return self._table(statistic, "{}*", "{} ").to_text()

    def to_markdown(self, statistic: str | None = None) -> str:
        """Print one statistic as a Markdown table, the smallest value of a column in bold.

        **Arguments:**

        - `statistic`: default `ranking_statistic`.

        **Returns:** the lines of the table.

        **Raises:** ValueError for an unknown statistic.
        """
        return self._table(statistic, "**{}**", "{}").to_markdown()

    def figure(self, statistic: str | None = None) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        One panel per sampler, one line per schedule: a statistic against the number of steps.
        Schedules are sorted by `ratios`, the best one first. A dotted line at `reference_error`
        shows, where it is in reach, below what values mean nothing.

        **Arguments:**

        - `statistic`: default `ranking_statistic`.

        **Returns:** panels with their marks, labels and numbers.

        **Raises:** ValueError for an unknown statistic.
        """
        statistic = self.ranking_statistic if statistic is None else statistic
        to_data = next(iter(self.comparisons.values())).data_projections is not None
        distance = figure_title((statistic,), to_data=to_data)
        error = "" if statistic == "sliced_w2" else " error"
        return report_figure(
            self.statistic(statistic),
            self.ranked(statistic),
            f"{label(statistic)}{error}",
            f"{distance}, relative to the data's standard deviation\n"
            f"{self.num_samples} initial noise samples",
            # below it, values are the reference solution's own error
            Guide(self.reference_error, "y", style=":", in_view=False),
        )

    def plot(
        self, path: str | os.PathLike[str] | None = None, statistic: str | None = None
    ) -> "Figure":
        """Draw one statistic against the number of steps, one panel per sampler.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default
          it is not saved.
        - `statistic`: default `ranking_statistic`.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for an unknown statistic, another suffix or a file that cannot be
        written; ImportError without matplotlib.
        """
        return render(self.figure(statistic), path)

    def _table(self, statistic: str | None, smallest: str, other: str) -> Table:
        """Rows by `ratios`, the best one first; a column's smallest value has its own format."""
        statistic = self.ranking_statistic if statistic is None else statistic
        ratios = self.ratios(statistic)
        columns = self.statistic(statistic)
        least = {setting: np.nanmin(list(values.values())) for setting, values in columns.items()}
        rows = []
        for name in self.ranked(statistic):
            cells = [
                (smallest if values[name] == least[setting] else other).format(number(values[name]))
                for setting, values in columns.items()
            ]
            rows.append([name, *cells, estimate(*ratios[name])])
        first = next(iter(self.comparisons.values()))
        to_data = "" if first.data_projections is None else "; sliced W2 to the data"
        note = (
            f"{self.num_samples} initial noise samples; reference solution accurate to "
            f"{self.reference_error:.1g}{to_data}; "
            "last column: geometric mean of the ratios to a column's best"
        )
        settings = [f"{sampler} {steps}" for sampler, steps in columns]
        return Table([label(statistic), *settings, "to the best"], rows, notes=[note])

    def __repr__(self) -> str:
        return self.table()


def compare_samplers(
    denoiser: AbstractDenoiser,
    samplers: Sequence[AbstractSampler | str],
    num_steps: Sequence[int],
    noise: Float[AnyArray, "n *shape"],
    *,
    t_min: ArrayLike | None = None,
    schedules: Mapping[str, MakeSchedule | Mapping[Setting, Schedule]] | None = None,
    data: Numbers | None = None,
    key: Array | None = None,
    progress: bool = True,
) -> SamplerReport:
    """Compare schedules for several samplers and numbers of steps with one reference solution.

    **Arguments:**

    - `denoiser`: a `Denoiser`, or `target.denoiser(process)` for the exact one of a distribution.
    - `samplers`: names or samplers, at most one of each class.
    - `num_steps`: numbers of steps, each >= 1. Every pair (sampler, number of steps) is a setting.
    - `noise`: initial noise (n, ...) with n >= 2, as for `sample`.
    - `t_min`: last time of all schedules, in [0, t_max), by default the denoiser's
      `default_t_min`; they start at the process's t_max.
    - `schedules`: for every name a function (process, num_steps, t_min) -> Schedule, or a table
      {(sampler, num_steps): Schedule}. Default: the baseline schedules. With optimised results:
      `{**jk.schedules.BASELINES, "optimised": {("ddim", 10): result.schedule, ...}}`. In a table, a
      sampler's key is its name, or the class name of a user-defined sampler.
    - `data`: samples (m, ...) to whose distribution sliced W2 is measured, m >= 2. Default: the
      reference's; stochastic schedules need data.
    - `key`: for the noise of stochastic steps, the same for all schedules; fixed by default.
    - `progress`: show a status line on a terminal.

    One reference solution serves all settings. NFE per sample: max(200, 20 K) for it, K the largest
    number of steps, half of that for its error, and those of all schedules. The status line shows
    the total from the start.

    **Returns:** a `SamplerReport`.

    **Raises:** ValueError naming the argument; also if samples become non-finite.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> jk.compare_samplers(denoiser, ["ddim"], [4, 8], np.eye(2), t_min=1e-3).num_samples
    2
    ```
    """
    process = check_denoiser(denoiser).process
    settings = sampler_settings(samplers, num_steps)
    t_max = float(np.asarray(process.t_max))
    span = (t_max, check_range(process, 1, denoiser.default_t_min if t_min is None else t_min))
    makers = BASELINES if schedules is None else schedules
    if not isinstance(makers, Mapping):
        raise ValueError(
            f"schedules = {_checks.shown(makers)} must be {{name: function or table of schedules}}."
        )
    made: dict[Setting, dict[str, Schedule]] = {}
    for setting, sampler in settings.items():
        made[setting] = {
            name: _make_schedule(name, maker, process, setting, span[1])
            for name, maker in makers.items()
        }
        check_schedules(process, sampler, made[setting], span, stochastic=data is not None)
    noise = check_finite_noise(noise)
    key = None if key is None else _checks.random_key("key", key)
    steps = reference_steps(max(count for _, count in settings))
    each = sum(
        sampling_nfe(process, settings[setting], schedule)
        for setting, found in made.items()
        for schedule in found.values()
    )
    planned = denoiser.nfe * len(noise) * (reference_nfe(steps) + each)
    with Progress(f"comparing, NFE {planned:,}: reference solution", progress) as line:
        reference = solve_reference(denoiser, noise, steps, span, data)
        options = {"key": key, "line": line, "planned": planned}
        comparisons = {
            setting: compare_to(reference, settings[setting], found, **options)
            for setting, found in made.items()
        }
    return SamplerReport(comparisons)


def sampler_settings(samplers: Any, num_steps: Any) -> dict[Setting, AbstractSampler]:
    """Pair every sampler with every number of steps, as they were given.

    **Arguments:**

    - `samplers`: names or samplers, at most one of each class.
    - `num_steps`: numbers of steps, each >= 1.

    **Returns:** {(sampler's name, steps): sampler}, the steps ascending.

    **Raises:** ValueError naming the argument.
    """
    by_name = _by_name(samplers)
    counts = _check_counts(num_steps)
    return {(name, count): by_name[name] for name in by_name for count in counts}


def _check_counts(num_steps: Any) -> list[int]:
    """Numbers of steps, each once, in ascending order."""
    if np.ndim(num_steps) != 1 or not len(num_steps):
        raise ValueError(f"num_steps = {num_steps!r} must be a list of numbers of steps.")
    return sorted({_checks.count(f"num_steps[{i}]", n) for i, n in enumerate(num_steps)})


def _by_name(samplers: Sequence[object]) -> dict[str, AbstractSampler]:
    """Samplers by their names."""
    if isinstance(samplers, str) or not samplers:
        raise ValueError(f"samplers = {samplers!r} must be a list of names or samplers.")
    found: dict[str, AbstractSampler] = {}
    for i, given in enumerate(samplers):
        sampler = as_sampler(given, f"samplers[{i}]")
        name = sampler_name(sampler)
        if name in found:
            raise ValueError(f"samplers has {name!r} twice; a report holds one of each class.")
        found[name] = sampler
    return found


def _make_schedule(
    name: str, maker: object, process: AbstractProcess, setting: Setting, t_min: float
) -> Schedule:
    """The schedule that an entry of `schedules` has for a setting."""
    if callable(maker):
        schedule = maker(process, setting[1], t_min)
    elif not isinstance(maker, Mapping):
        raise ValueError(
            f"schedules[{name!r}] must be a function or a table {{(sampler, steps): Schedule}}; "
            f"got {type(maker).__name__}."
        )
    elif setting not in maker:
        known = ", ".join(map(str, maker)) or "none"
        raise ValueError(f"schedules[{name!r}] has no schedule for {setting}; it has {known}.")
    else:
        schedule = maker[setting]
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"schedules[{name!r}] must give a Schedule for {setting}; got "
            f"{type(schedule).__name__}."
        )
    if schedule.num_steps != setting[1]:
        raise ValueError(
            f"schedules[{name!r}] has {_checks.counted(schedule.num_steps, 'step')} for {setting}."
        )
    return schedule


def _mean_ratios(
    values: Float[np.ndarray, "resamples settings schedules"], baselines: list[int]
) -> Float[np.ndarray, "resamples schedules"]:
    """Geometric mean over settings of the ratio to the best baseline of every setting."""
    logs = np.log(np.maximum(values, TINY))
    return np.exp(np.mean(logs - np.nanmin(logs[..., baselines], -1, keepdims=True), 1))
