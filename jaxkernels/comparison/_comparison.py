"""The errors of several schedules on one network."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .. import _checks
from .._plot import FigureSpec, render
from .._tables import Table, estimate, label, number
from ..metrics import quantiles
from ..schedules import BASELINES
from ._figure import comparison_figure, figure_title
from ._statistics import BALANCED, RESAMPLES, STATISTICS, TINY, WEIGHED, balance, statistic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SHOWN = 14


class Comparison(eqx.Module):
    """Where several schedules take the same noises with one network, against where a fine solver takes them.

    `errors` (schedules, noises): distance of each end point from the reference's. `ends` (schedules, noises,
    directions) and `reference_ends` (noises, directions): components of the end points along random unit
    directions. `reference_error`: the root mean square distance between the reference and one of half its steps:
    errors below it mean nothing. All in units of the root of the reference's total variance.

    Four statistics, as no one of them is the truth: of the errors, "rms" (a few bad samples decide), "median", and
    "geometric_mean", exp(mean log error) (typical samples decide); and "sliced_w2", the root mean over directions of the
    squared W2 distance between the laws of the components, which forgives errors that leave the law as it is: to the
    reference's law, or to that of data where they were given (`data_ends` (samples, directions), sorted).

    A stochastic schedule has no reference from the same noise: its errors are NaN, and sliced W2 is all there is.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    errors: Float[np.ndarray, "schedules noises"]
    ends: Float[np.ndarray, "schedules noises directions"]
    reference_ends: Float[np.ndarray, "noises directions"]
    reference_error: float
    data_ends: Float[np.ndarray, "samples directions"] | None = None
    chosen: str | None = eqx.field(static=True, default=None)
    """The schedule that `optimize_schedule` chose, from other noises."""

    @property
    def leader(self) -> str:
        """What tables and pictures compare with: `chosen`, or `best()` where nothing was chosen."""
        return self.best() if self.chosen is None else self.chosen

    def statistic(self, kind: str) -> dict[str, float]:
        """One of the four statistics, of every schedule."""
        _checks.one_of("kind", kind, STATISTICS)
        return dict(zip(self.names, self.values(kind).tolist(), strict=True))

    def ratio(self, kind: str, name: str, to: str) -> tuple[float, float]:
        """A statistic of one schedule over that of another, and its standard error by resampling noises in pairs."""
        _checks.one_of("kind", kind, STATISTICS)
        both = self.take([name, to])
        n = self.errors.shape[1]
        draws = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
        # of two schedules without any error neither is better
        value, *again = (
            np.maximum(both.values(kind, rows), TINY) for rows in (slice(None), *draws)
        )
        again = np.stack(again, 1)
        return float(value[0] / value[1]), float(np.std(again[0] / again[1], ddof=1))

    @property
    def criterion(self) -> str:
        """The statistic to rank by: "geometric_mean", or "sliced_w2" where a schedule is stochastic."""
        return "sliced_w2" if np.any(np.isnan(self.errors)) else "geometric_mean"

    def best(self, baselines: Sequence[str] | None = None, by: str = BALANCED) -> str:
        """The best schedule by one of the four statistics, or by the typical sample, the tail and the law together.

        "balanced" (default): log_mean, rms and sliced_w2 are divided by their smallest values among `baselines`
        (default: all schedules); the smallest `balance` of the three ratios is best, among those in which none is above
        1. If there is none, the one with the smallest harm, the product of the ratios above 1. A statistic: its
        smallest value, whatever becomes of the others.

        If any schedule is stochastic, sliced_w2 is all there is; but noise must pay: the best of m stochastic ones is
        best only if it is lower than the best deterministic one by more than max(1, sqrt(2 log m)) standard errors.
        Its noise is another draw, and the luckiest of m normal draws is expected at most sqrt(2 log m) standard
        deviations from their mean, however they depend on each other. `baselines` are for deterministic ones alone.

        **Raises:** ValueError for an unknown name, no baselines, or another statistic where a schedule is stochastic.
        """
        if baselines is not None and not len(baselines):
            raise ValueError(f"baselines is empty; known are {', '.join(self.names)}.")
        known = [self._index(name) for name in (self.names if baselines is None else baselines)]
        _checks.one_of("by", by, (BALANCED, *STATISTICS))
        if self.criterion == "sliced_w2":
            if by not in (BALANCED, "sliced_w2"):
                raise ValueError(
                    f"by = {by!r} needs deterministic schedules; stochastic ones have sliced_w2 only."
                )
            order = np.argsort(self.values("sliced_w2"))
            noisy = np.isnan(self.errors[order, 0])
            leader = self.names[order[0]]
            if not noisy[0] or noisy.all():
                return leader
            calm = self.names[order[np.argmin(noisy)]]
            ratio, spread = self.ratio("sliced_w2", leader, calm)
            luck = max(1.0, np.sqrt(2.0 * np.log(noisy.sum())))
            return leader if ratio + luck * spread < 1.0 else calm
        if by != BALANCED:
            return self.names[int(np.argmin(self.values(by)))]
        logs = np.stack([np.log(np.maximum(self.values(kind), TINY)) for kind in WEIGHED], -1)
        excess = logs - logs[known].min(0)
        harm = np.sum(np.maximum(excess, 0.0), -1)
        return self.names[np.lexsort((balance(np, excess), harm))[0]]

    def take(self, names: Sequence[str] | None = None, noises: slice = slice(None)) -> "Comparison":
        """Some of the schedules, from some of the noises."""
        names = self.names if names is None else tuple(names)
        rows = [self._index(name) for name in names]
        ends = self.ends[rows, noises], self.reference_ends[noises]
        chosen = self.chosen if self.chosen in names else None
        return Comparison(
            names, self.errors[rows, noises], *ends, self.reference_error, self.data_ends, chosen
        )

    def joined(self, other: "Comparison") -> "Comparison":
        """These schedules and those of another comparison with the same noises and the same reference."""
        ends = np.concatenate([self.ends, other.ends])
        errors, names = np.concatenate([self.errors, other.errors]), self.names + other.names
        return Comparison(
            names,
            errors,
            ends,
            self.reference_ends,
            self.reference_error,
            self.data_ends,
            self.chosen,
        )

    def shown(self) -> list[str]:
        """What a table or a picture of many schedules shows: the leader, the named grids, others up to 14, ranked."""
        column = self.statistic(self.criterion)
        ranked = sorted(self.names, key=column.__getitem__)
        needed = {self.leader, *(name for name in ranked if name in BASELINES)}
        others = [name for name in ranked if name not in needed]
        chosen = needed | set(others[: max(0, _SHOWN - len(needed))])
        return [name for name in ranked if name in chosen]

    def figure(self) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        One panel per statistic, one row per schedule of `shown()`: the ratio to `leader` and its standard
        error. If any schedule is stochastic, sliced W2 is the only panel.

        **Returns:** panels with their marks, labels and numbers.
        """
        statistics = STATISTICS if self.criterion == "geometric_mean" else ("sliced_w2",)
        leader = self.leader
        names = self.shown()
        # a statistic can be 0
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = {
                statistic: {name: self.ratio(statistic, name, leader) for name in names}
                for statistic in statistics
            }
        hidden = len(names) < len(self.names)
        part = f" ({len(names)} of {len(self.names)} schedules)" if hidden else ""
        distance = figure_title(statistics, to_data=self.data_ends is not None)
        return comparison_figure(
            ratios,
            leader,
            {statistic: self.statistic(statistic)[leader] for statistic in statistics},
            f"{distance}, relative to the data's standard deviation{part}\n{self._evidence()}",
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw every schedule's statistics relative to the leader's.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default it is not saved.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for another suffix or a file that cannot be written; ImportError without
        matplotlib.
        """
        return render(self.figure(), path)

    def _evidence(self) -> str:
        """How many samples the statistics are from, and how accurate the reference solution is."""
        return (
            f"{self.errors.shape[1]} initial noise samples; "
            f"reference solution accurate to {self.reference_error:.1g}"
        )

    def _index(self, name: str) -> int:
        return _checks.lookup("name", name, {n: i for i, n in enumerate(self.names)})

    def values(
        self, kind: str, noises: slice | np.ndarray = slice(None)
    ) -> Float[np.ndarray, " schedules"]:
        """One of the four statistics of every schedule, from some of the noises or from a resample of them."""
        exact = self.law(noises) if kind == "sliced_w2" else None
        return statistic(np, kind, self.errors[:, noises], self.ends[:, noises], exact)

    def law(
        self, noises: slice | np.ndarray = slice(None)
    ) -> Float[np.ndarray, "noises directions"]:
        """As many components of the law as there are noises, ascending: the reference's there, or the data's."""
        own = self.reference_ends[noises]
        return np.sort(own, 0) if self.data_ends is None else quantiles(self.data_ends, len(own))

    def __repr__(self) -> str:
        leader = self.leader
        names = self.shown()
        columns = {kind: self.statistic(kind) for kind in STATISTICS}
        rows = [
            [
                name,
                *(number(column[name]) for column in columns.values()),
                estimate(*self.ratio(self.criterion, name, leader)),
            ]
            for name in names
        ]
        hidden = len(self.names) - len(names)
        more = [f"and {hidden} more: statistic(kind) has all"] if hidden else []
        to_data = "" if self.data_ends is None else "; sliced W2 to the data"
        header = ["schedule", *map(label, columns), f"against {leader}"]
        return Table(header, rows, notes=[*more, self._evidence() + to_data]).to_text()
