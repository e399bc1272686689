"""Samplers, numbers of steps and schedules compared on a network: one table, from the same noises, one reference."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import equinox as eqx
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._plot import FigureSpec, render
from .._progress import Progress
from .._tables import Table, estimate, label, number
from .._types import AnyArray, Numbers
from ..prediction import AbstractDenoiser, check_denoiser
from ..processes import AbstractProcess, check_range
from ..samplers import SAMPLERS, AbstractSampler, sampler_name
from ..schedules import BASELINES, Schedule
from ._compare import check_noise, check_schedules, compare_to
from ._comparison import Comparison
from ._figure import figure_title, report_figure
from ._reference import reference_steps, solve_reference
from ._statistics import BALANCED, STATISTICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Setting: TypeAlias = tuple[str, int]
"""A sampler's name and a number of steps."""


MakeSchedule: TypeAlias = Callable[[AbstractProcess, int, float], Schedule]
"""(process, number of steps, t_min) -> Schedule, as the named grids are."""


_RESAMPLES = 200


class SamplerReport(eqx.Module):
    """The same schedules compared in several settings, a sampler and a number of steps each.

    `comparisons`: the `Comparison` of every setting (sampler, steps). All are from the same noises against the same
    reference and in the same unit, so that errors of different settings can be compared too.

    **Raises:** ValueError if there is none, or if they differ in schedules or in the number of noises.
    """

    comparisons: dict[Setting, Comparison]

    def __check_init__(self) -> None:
        if not self.comparisons:
            raise ValueError("comparisons is empty; pass {(sampler, steps): Comparison}.")
        first = next(iter(self.comparisons))
        for setting, comparison in self.comparisons.items():
            if comparison.names != self.names or comparison.errors.shape[1] != self.num_noises:
                raise ValueError(
                    f"comparisons[{setting}] is of {', '.join(comparison.names)} from {comparison.errors.shape[1]} "
                    f"noises, comparisons[{first}] of {', '.join(self.names)} from {self.num_noises}; they must agree."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the schedules."""
        return next(iter(self.comparisons.values())).names

    @property
    def num_noises(self) -> int:
        """How many noises all schedules start from."""
        return next(iter(self.comparisons.values())).errors.shape[1]

    @property
    def reference_error(self) -> float:
        """See `Comparison`: errors below it mean nothing."""
        return max(comparison.reference_error for comparison in self.comparisons.values())

    def statistic(self, kind: str) -> dict[Setting, dict[str, float]]:
        """One of the four statistics of `Comparison`, by setting and schedule."""
        return {
            setting: comparison.statistic(kind) for setting, comparison in self.comparisons.items()
        }

    @property
    def criterion(self) -> str:
        """The statistic that is shown by default: "geometric_mean", or "sliced_w2" where a schedule is stochastic."""
        found = {comparison.criterion for comparison in self.comparisons.values()}
        return "sliced_w2" if "sliced_w2" in found else "geometric_mean"

    def best(
        self, baselines: Sequence[str] | None = None, by: str = BALANCED
    ) -> dict[Setting, str]:
        """`Comparison.best` of every setting."""
        return {
            setting: comparison.best(baselines, by)
            for setting, comparison in self.comparisons.items()
        }

    def ratios(
        self, kind: str, baselines: Sequence[str] | None = None
    ) -> dict[str, tuple[float, float]]:
        """What every schedule loses over all settings to the best baseline of each, and its standard error.

            exp( mean over settings of log( statistic / smallest statistic among `baselines` ) )

        `baselines`: all schedules by default, so that 1 is best in every setting. The standard error is that of
        resampled noises, the same ones for all schedules and settings, with the best baselines found anew. A schedule
        that is stochastic in any setting has NaN for all statistics but sliced_w2.
        """
        _checks.one_of("kind", kind, STATISTICS)
        known = {name: row for row, name in enumerate(self.names)}
        rows = [
            _checks.lookup("baselines", name, known)
            for name in (self.names if baselines is None else baselines)
        ]
        if not rows:
            raise ValueError(f"baselines is empty; known are {', '.join(self.names)}.")

        def means(noises: slice | np.ndarray) -> Float[np.ndarray, " schedules"]:
            values = np.stack(
                [comparison.values(kind, noises) for comparison in self.comparisons.values()]
            )
            logs = np.log(np.maximum(values, 1e-300))
            return np.exp(np.mean(logs - np.nanmin(logs[:, rows], 1, keepdims=True), 0))

        n = self.num_noises
        draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
        spread = np.std([means(draw) for draw in draws], axis=0, ddof=1)
        return dict(
            zip(
                self.names,
                zip(means(slice(None)).tolist(), spread.tolist(), strict=True),
                strict=True,
            )
        )

    def ranked(self, kind: str) -> list[str]:
        """Names by `ratios`, the best one first; those without a number last."""
        ratios = self.ratios(kind)
        return sorted(self.names, key=lambda name: (np.isnan(ratios[name][0]), ratios[name]))

    def table(self, kind: str | None = None) -> str:
        """Print one statistic as text: a row per schedule, a column per setting, then `ratios`.

        A star marks the smallest value of a column.

        **Arguments:**

        - `kind`: the statistic; default `criterion`.

        **Returns:** the lines of the table.

        **Raises:** ValueError for an unknown statistic.
        """
        return self._table(kind, "{}*", "{} ").to_text()

    def to_markdown(self, kind: str | None = None) -> str:
        """Print one statistic as a Markdown table, the smallest value of a column in bold.

        **Arguments:**

        - `kind`: the statistic; default `criterion`.

        **Returns:** the lines of the table.

        **Raises:** ValueError for an unknown statistic.
        """
        return self._table(kind, "**{}**", "{}").to_markdown()

    def figure(self, kind: str | None = None) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        One panel per sampler, one line per schedule: a statistic against the number of steps. Schedules
        are sorted by `ratios`, the best one first. A dotted line at `reference_error` shows, where it is
        in reach, below what values mean nothing.

        **Arguments:**

        - `kind`: the statistic; default `criterion`.

        **Returns:** panels with their marks, labels and numbers.

        **Raises:** ValueError for an unknown statistic.
        """
        kind = self.criterion if kind is None else kind
        to_data = next(iter(self.comparisons.values())).data_ends is not None
        distance = figure_title((kind,), to_data=to_data)
        return report_figure(
            self.statistic(kind),
            self.ranked(kind),
            kind,
            self.reference_error,
            f"{distance}, relative to the data's standard deviation\n"
            f"{self.num_noises} initial noise samples",
        )

    def plot(self, path: str | os.PathLike[str] | None = None, kind: str | None = None) -> "Figure":
        """Draw one statistic against the number of steps, one panel per sampler.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default it is not saved.
        - `kind`: the statistic; default `criterion`.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for an unknown statistic, another suffix or a file that cannot be written;
        ImportError without matplotlib.
        """
        return render(self.figure(kind), path)

    def _table(self, kind: str | None, smallest: str, other: str) -> Table:
        """Rows by `ratios`, the best one first. The smallest value of a column has its own format."""
        kind = self.criterion if kind is None else kind
        ratios = self.ratios(kind)
        columns = self.statistic(kind)
        least = {setting: np.nanmin(list(values.values())) for setting, values in columns.items()}
        rows = []
        for name in self.ranked(kind):
            cells = [
                (smallest if values[name] == least[setting] else other).format(number(values[name]))
                for setting, values in columns.items()
            ]
            rows.append([name, *cells, estimate(*ratios[name])])
        first = next(iter(self.comparisons.values()))
        to_data = "" if first.data_ends is None else "; sliced W2 to the data"
        note = (
            f"{self.num_noises} initial noise samples; reference solution accurate to "
            f"{self.reference_error:.1g}{to_data}; "
            "last column: geometric mean of the ratios to a column's best"
        )
        settings = [f"{sampler} {steps}" for sampler, steps in columns]
        return Table([label(kind), *settings, "to the best"], rows, notes=[note])

    def __repr__(self) -> str:
        return self.table()


def compare_samplers(
    denoiser: AbstractDenoiser,
    samplers: Sequence[AbstractSampler | str],
    num_steps: Sequence[int],
    noise: Float[AnyArray, "n *shape"],
    *,
    t_min: ArrayLike,
    schedules: Mapping[str, MakeSchedule | Mapping[Setting, Schedule]] | None = None,
    data: Numbers | None = None,
    key: Array | None = None,
    progress: bool = True,
) -> SamplerReport:
    """Compare schedules for several samplers and numbers of steps with one reference solution.

    **Arguments:**

    - `denoiser`, `noise`: as for `sample`; `data`, `key`: as for `compare_schedules`.
    - `samplers`: names or samplers; `num_steps`: numbers of steps. Every pair of both is a setting.
    - `t_min`: where all schedules end; they start at the process's t_max.
    - `schedules`: for every name a function (process, num_steps, t_min) -> Schedule, or a table
      {(sampler, num_steps): Schedule}. Default: the baseline schedules. With optimised results:
      `{**jk.schedules.BASELINES, "optimised": {("ddim", 10): result.schedule, ...}}`. In a table, a
      sampler's key is its name, or the class name of a user-defined sampler.
    - `progress`: show a status line on a terminal.

    NFE: one reference solution of max(200, 20 K) steps, half of that for its check, and the steps of
    all schedules, times n.

    **Returns:** a `SamplerReport`.

    **Raises:** ValueError naming the argument; also if samples become non-finite.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> noise = jax.random.normal(jax.random.key(0), (32, 2))
    >>> report = jk.compare_samplers(denoiser, ["ddim"], [4, 8], noise, t_min=1e-3)
    ```
    """
    process = check_denoiser(denoiser).process
    named = _named(samplers)
    counts = _counts(num_steps)
    span = float(np.asarray(process.t_max)), check_range(process, 1, t_min)
    makers = BASELINES if schedules is None else schedules
    made: dict[Setting, dict[str, Schedule]] = {}
    for setting in [(name, count) for name in named for count in counts]:
        made[setting] = {n: _made(n, m, process, setting, span[1]) for n, m in makers.items()}
        sampler = named[setting[0]]
        check_schedules(process, sampler, made[setting], span, stochastic=data is not None)
    noise = check_noise(noise)
    with Progress("comparing: reference solution", progress) as line:
        reference = solve_reference(denoiser, noise, reference_steps(counts[-1]), span, data)
        comparisons = {
            setting: compare_to(reference, named[setting[0]], found, key=key, line=line)
            for setting, found in made.items()
        }
    return SamplerReport(comparisons)


def _counts(num_steps: Sequence[int]) -> list[int]:
    if np.ndim(num_steps) != 1 or not len(num_steps):
        raise ValueError(f"num_steps = {num_steps!r} must be a list of numbers of steps.")
    return sorted({_checks.count(f"num_steps[{i}]", n) for i, n in enumerate(num_steps)})


def _named(samplers: Sequence[AbstractSampler | str]) -> dict[str, AbstractSampler]:
    if isinstance(samplers, str) or not samplers:
        raise ValueError(f"samplers = {samplers!r} must be a list of names or samplers.")
    found: dict[str, AbstractSampler] = {}
    for given in samplers:
        sampler = _checks.lookup("samplers", given, SAMPLERS)() if isinstance(given, str) else given
        name = sampler_name(sampler)
        if name in found:
            raise ValueError(
                f"samplers has {name!r} twice; a report has room for one of each kind."
            )
        found[name] = sampler
    return found


def _made(
    name: str, grid: object, process: AbstractProcess, setting: Setting, t_min: float
) -> Schedule:
    """The schedule that an entry of `schedules` has for a setting."""
    if callable(grid):
        schedule = grid(process, setting[1], t_min)
    elif not isinstance(grid, Mapping):
        raise ValueError(
            f"schedules[{name!r}] must be a function or a table {{(sampler, steps): Schedule}}; got "
            f"{type(grid).__name__}."
        )
    elif setting not in grid:
        known = ", ".join(map(str, grid)) or "none"
        raise ValueError(f"schedules[{name!r}] has no schedule for {setting}; it has {known}.")
    else:
        schedule = grid[setting]
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"schedules[{name!r}] must give a Schedule for {setting}; got {type(schedule).__name__}."
        )
    if schedule.num_steps != setting[1]:
        raise ValueError(f"schedules[{name!r}] has {schedule.num_steps} steps for {setting}.")
    return schedule
