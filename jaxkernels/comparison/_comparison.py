"""The errors of several schedules on one network."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from .. import _checks
from .._field_names import known_name
from .._plot import FigureSpec, render
from .._tables import Table, estimate, label, number
from ..metrics import Estimate, quantiles
from ..schedules import BASELINES
from ._conditions import variance_between
from ._criteria import (
    BALANCED,
    WEIGHED,
    is_better,
    select_balanced,
    select_significant,
    select_smallest,
)
from ._figure import comparison_figure, figure_title
from ._statistics import STATISTICS, TINY, resampled_statistic, statistic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# rows of a table or a figure
_SHOWN = 14


class Comparison(eqx.Module):
    """Errors of several schedules on one network, from the same initial noise.

    All in units of the reference's standard deviation, the root of the total variance of its
    samples. There are four statistics, as no single one is the truth. Of the errors: "rms" (decided
    by few bad samples), "median" and "geometric_mean" (decided by typical ones). And "sliced_w2",
    the distance between the distributions of the projections, which forgives errors that leave the
    distribution as it is. It is measured to the reference, or to data if these were given.

    A stochastic schedule has no reference from the same noise: its errors are NaN, and "sliced_w2"
    is its only statistic.

    **Arguments:**

    - `names`: of the schedules.
    - `errors`: distance of every sample to the reference solution from the same noise.
    - `projections`: components of the samples along random unit directions.
    - `reference_projections`: components of the reference's samples along the same directions.
    - `reference_error`: root mean square distance between the reference and one of half its steps;
      smaller errors are not resolved.
    - `data_projections`: components of data, each direction in ascending order; None without data.
    - `selected`: the schedule that was selected on other noise, if any.
    - `sampling_nfe`: NFE of the samples of all schedules that were compared.
    - `reference_nfe`: NFE of the reference solution and of that with half its steps.
    - `conditions`: number of the condition of every sample; None for a network without any.

    **Example:**

    ```python
    >>> errors = np.array([[2.0, 2.0], [1.0, 4.0]])
    >>> found = jk.Comparison(("a", "b"), errors, np.zeros((2, 2, 1)), np.zeros((2, 1)), 0.0)
    >>> found.statistic("median")
    {'a': 2.0, 'b': 2.5}
    ```
    """

    names: tuple[str, ...] = eqx.field(static=True)
    errors: Float[np.ndarray, "schedules samples"]
    projections: Float[np.ndarray, "schedules samples directions"]
    reference_projections: Float[np.ndarray, "samples directions"]
    reference_error: float
    data_projections: Float[np.ndarray, "samples_of_data directions"] | None = None
    selected: str | None = eqx.field(static=True, default=None)
    sampling_nfe: int = eqx.field(static=True, default=0)
    reference_nfe: int = eqx.field(static=True, default=0)
    conditions: Int[np.ndarray, " samples"] | None = None

    @property
    def nfe(self) -> int:
        """NFE that were spent, the reference solution included."""
        return self.sampling_nfe + self.reference_nfe

    @property
    def leader(self) -> str:
        """The schedule that tables and figures compare with: `selected`, or `best()`."""
        return self.best() if self.selected is None else self.selected

    @property
    def ranking_statistic(self) -> str:
        """The statistic of tables: "geometric_mean", or "sliced_w2" if a schedule is stochastic."""
        return "sliced_w2" if self._stochastic.any() else "geometric_mean"

    def statistic(self, name: str) -> dict[str, float]:
        """Evaluate a statistic of every schedule.

        **Arguments:**

        - `name`: "rms", "median", "geometric_mean" or "sliced_w2".

        **Returns:** {schedule: value}; NaN for a stochastic schedule, "sliced_w2" excepted.

        **Raises:** ValueError for an unknown name.
        """
        _checks.one_of("statistic", name, STATISTICS)
        return dict(zip(self.names, self.statistic_values(name).tolist(), strict=True))

    def statistic_values(
        self, name: str, samples: slice | np.ndarray = slice(None)
    ) -> Float[np.ndarray, " schedules"]:
        """Evaluate a statistic of every schedule on some of the samples.

        **Arguments:**

        - `name`: "rms", "median", "geometric_mean" or "sliced_w2".
        - `samples`: a slice or indices.

        **Returns:** values in the order of `names`.
        """
        target = self.target_quantiles(samples) if name == "sliced_w2" else None
        return statistic(np, name, self.errors[:, samples], self.projections[:, samples], target)

    def resampled_values(self, name: str) -> Float[np.ndarray, "resamples schedules"]:
        """Evaluate a statistic of every schedule on resamples of the samples, for standard errors.

        **Arguments:**

        - `name`: "rms", "median", "geometric_mean" or "sliced_w2".

        **Returns:** a row per resample, in the order of `names`; the same resamples for every
        comparison of as many samples.
        """
        to_data = None if self.data_projections is None else self.target_quantiles()
        run = (self.errors, self.projections, self.reference_projections, to_data)
        return resampled_statistic(name, *run)

    def target_quantiles(
        self, samples: slice | np.ndarray = slice(None)
    ) -> Float[np.ndarray, "samples directions"]:
        """Compute as many quantiles as samples of the distribution that sliced W2 is measured to.

        **Arguments:**

        - `samples`: a slice or indices. Without data, the reference's samples from the same noise.

        **Returns:** projections in ascending order along every direction.
        """
        reference = self.reference_projections[samples]
        if self.data_projections is None:
            return np.sort(reference, 0)
        return quantiles(self.data_projections, len(reference))

    def ratio(self, statistic: str, name: str, to: str) -> Estimate:
        """Estimate the ratio of a statistic of two schedules.

        **Arguments:**

        - `statistic`: "rms", "median", "geometric_mean" or "sliced_w2".
        - `name`: the schedule in the numerator.
        - `to`: the schedule in the denominator.

        **Returns:** the ratio with the standard error of resampling both from the same noise.

        **Raises:** ValueError for an unknown name.
        """
        _checks.one_of("statistic", statistic, STATISTICS)
        both = self.take([name, to])
        every = np.vstack([both.statistic_values(statistic), both.resampled_values(statistic)])
        # of two schedules without any error neither is better
        every = np.maximum(every, TINY)
        ratios = every[:, 0] / every[:, 1]
        return Estimate(float(ratios[0]), float(np.std(ratios[1:], ddof=1)))

    def ratio_by_condition(self, statistic: str, name: str, to: str) -> dict[int, Estimate]:
        """Estimate the ratio of a statistic of two schedules for every condition by itself.

        **Arguments:**

        - `statistic`, `name`, `to`: as of `ratio`.

        **Returns:** {number of the condition: ratio}. The standard error is NaN for a condition of
        one sample.

        **Raises:** ValueError for an unknown name, or a network without conditions.

        **Example:**

        ```python
        >>> ends = (np.array([[1.0, 1.0], [2.0, 4.0]]), np.zeros((2, 2, 1)), np.zeros((2, 1)), 0.0)
        >>> found = jk.Comparison(("a", "b"), *ends, conditions=np.array([0, 1]))
        >>> [ratio.value for ratio in found.ratio_by_condition("rms", "a", "b").values()]
        [0.5, 0.25]
        ```
        """
        found = {}
        conditions = self._known_conditions()
        for condition in np.unique(conditions):
            rows = np.flatnonzero(conditions == condition)
            ratio = self.take(samples=rows).ratio(statistic, name, to)
            found[int(condition)] = ratio if len(rows) > 1 else Estimate(ratio.value, float("nan"))
        return found

    def deviation_between_conditions(self, name: str, to: str) -> float:
        """Estimate how much the ratio of the errors of two schedules varies between conditions.

        The ratio for a condition is that of geometric means of its errors, as with infinitely many
        samples: what few samples add is subtracted, by an analysis of variance of the logarithms.

        **Arguments:**

        - `name`: the schedule in the numerator.
        - `to`: the schedule in the denominator.

        **Returns:** the standard deviation of the logarithm of the ratio between conditions: 0.1 is
        ten per cent. NaN if all samples have the same condition, or each its own, or if a schedule
        is stochastic.

        **Raises:** ValueError for an unknown name, or a network without conditions.

        **Example:**

        ```python
        >>> ends = (np.array([[1, 1, 1, 1.0], [2, 2, 4, 4]]), np.zeros((2, 4, 1)), np.zeros((4, 1)))
        >>> found = jk.Comparison(("a", "b"), *ends, 0.0, conditions=np.array([0, 0, 1, 1]))
        >>> f"{found.deviation_between_conditions('a', 'b'):.3f}"
        '0.490'
        ```

        Source: Searle, Casella and McCulloch, "Variance Components" (1992), section 3.6.
        """
        both = np.log(np.maximum(self.errors[[self._row(name), self._row(to)]], TINY))
        return float(np.sqrt(variance_between(both[0] - both[1], self._known_conditions())))

    @property
    def num_conditions(self) -> int:
        """Number of conditions among the samples, 1 for a network without any."""
        return 1 if self.conditions is None else len(np.unique(self.conditions))

    def _known_conditions(self) -> Int[np.ndarray, " samples"]:
        """The condition of every sample."""
        if self.conditions is None:
            raise ValueError("conditions: the samples of this comparison have none.")
        return self.conditions

    def describe_conditions(self, name: str, to: str) -> str:
        """Describe how the ratio of the errors of two schedules varies between conditions.

        **Arguments:**

        - `name`: the schedule in the numerator.
        - `to`: the schedule in the denominator.

        **Returns:** a line of text, empty for fewer than two conditions.
        """
        if self.num_conditions < 2 or self._stochastic.any():
            return ""
        deviation = self.deviation_between_conditions(name, to)
        each = self.ratio_by_condition("geometric_mean", name, to)
        better = sum(ratio.value < 1 for ratio in each.values())
        text = f"{name} better than {to} in {better} of {len(each)}"
        return (
            text
            if np.isnan(deviation)
            else f"{text}; its ratio varies by {deviation:.0%} between them"
        )

    def best(
        self,
        baselines: Sequence[str] | None = None,
        criterion: str = BALANCED,
        incumbent: str | None = None,
        among: Sequence[str] | None = None,
    ) -> str:
        """Select the best schedule.

        - "balanced": "geometric_mean", "rms" and "sliced_w2" are divided by their smallest values
          among the baselines, and the smooth maximum of the three ratios is smallest. Schedules
          with a ratio above 1 rank behind those without, by the product of such ratios.
        - a statistic: its smallest value, whatever the others.

        If any schedule is stochastic, "sliced_w2" is the only criterion, and the best of m
        stochastic schedules is selected only if it is better than the best deterministic one by
        more than max(1, sqrt(2 log m)) standard errors.

        **Arguments:**

        - `baselines`: names of schedules, for "balanced" only. Default: all.
        - `criterion`: "balanced" or a statistic.
        - `incumbent`: the name of a schedule that other evidence speaks for. It is selected unless
          another one is better by more than the standard error of resampling both from the same
          noise. For deterministic schedules.
        - `among`: names of deterministic schedules to select from. Default: all.

        **Returns:** the name of a schedule.

        **Raises:** ValueError for an unknown name, no baselines, or a criterion that stochastic
        schedules do not have.

        **Example:**

        ```python
        >>> errors = np.array([[2.0, 2.0], [1.0, 1.0]])
        >>> jk.Comparison(("a", "b"), errors, np.zeros((2, 2, 1)), np.zeros((2, 1)), 0.0).best()
        'b'
        ```
        """
        rows = rows_of("baselines", baselines, self.names)
        taken = rows_of("among", among, self.names)
        _checks.one_of("criterion", criterion, (BALANCED, *STATISTICS))
        if self._stochastic.any():
            if incumbent is not None:
                raise ValueError(f"incumbent = {incumbent!r} is for deterministic schedules only.")
            if among is not None:
                raise ValueError(f"among = {among!r} is for deterministic schedules only.")
            return self.names[self._best_distribution(criterion)]
        if criterion == BALANCED:
            values = np.stack([self.statistic_values(name) for name in WEIGHED])
            best = select_balanced(values, rows, taken)
        else:
            best = select_smallest(self.statistic_values(criterion), taken)
        if incumbent is None or self._row(incumbent) == best:
            return self.names[best]
        resampled = self._resampled([best, self._row(incumbent)], rows, criterion)
        return self.names[best] if is_better(resampled) else incumbent

    def take(
        self, names: Sequence[str] | None = None, samples: slice | np.ndarray = slice(None)
    ) -> "Comparison":
        """Take some of the schedules and some of the samples.

        **Arguments:**

        - `names`: of schedules. Default: all.
        - `samples`: a slice or indices.

        **Returns:** a `Comparison` with the NFE of the whole; `selected` is dropped if it is not
        taken.

        **Raises:** ValueError for an unknown name.
        """
        rows = rows_of("names", names, self.names)
        taken = tuple(self.names[row] for row in rows)
        return Comparison(
            taken,
            self.errors[rows][:, samples],
            self.projections[rows][:, samples],
            self.reference_projections[samples],
            self.reference_error,
            self.data_projections,
            self.selected if self.selected in taken else None,
            self.sampling_nfe,
            self.reference_nfe,
            None if self.conditions is None else self.conditions[samples],
        )

    def joined(self, other: "Comparison") -> "Comparison":
        """Join the schedules of two comparisons from the same noise with the same reference.

        **Arguments:**

        - `other`: has other names.

        **Returns:** a `Comparison` of both, with this one's `selected`.
        """
        return Comparison(
            self.names + other.names,
            np.concatenate([self.errors, other.errors]),
            np.concatenate([self.projections, other.projections]),
            self.reference_projections,
            self.reference_error,
            self.data_projections,
            self.selected,
            self.sampling_nfe + other.sampling_nfe,
            self.reference_nfe,
            self.conditions,
        )

    def shown(self) -> list[str]:
        """List the schedules that tables and figures show.

        They are the leader, the baselines, and the best of the others up to 14 in all.

        **Returns:** names, sorted by `ranking_statistic`, the best one first.
        """
        values = self.statistic(self.ranking_statistic)
        ranked = sorted(self.names, key=values.__getitem__)
        needed = {self.leader, *(name for name in ranked if name in BASELINES)}
        others = [name for name in ranked if name not in needed]
        shown = needed | set(others[: max(0, _SHOWN - len(needed))])
        return [name for name in ranked if name in shown]

    def figure(self) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        One panel per statistic, one row per schedule of `shown()`: the ratio to `leader` and its
        standard error. If any schedule is stochastic, sliced W2 is the only panel.

        **Returns:** panels with their marks, labels and numbers.
        """
        statistics = STATISTICS if self.ranking_statistic == "geometric_mean" else ("sliced_w2",)
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
        distance = figure_title(statistics, to_data=self.data_projections is not None)
        return comparison_figure(
            ratios,
            leader,
            {statistic: self.statistic(statistic)[leader] for statistic in statistics},
            f"{distance}, relative to the data's standard deviation{part}\n{self._evidence()}",
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw every schedule's statistics relative to the leader's.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default
          it is not saved.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for another suffix or a file that cannot be written; ImportError
        without matplotlib.
        """
        return render(self.figure(), path)

    def _evidence(self) -> str:
        """How many samples the statistics are from, and how accurate the reference solution is."""
        return (
            f"{self.errors.shape[1]} initial noise samples; "
            f"reference solution accurate to {self.reference_error:.1g}"
        )

    @property
    def _stochastic(self) -> Bool[np.ndarray, " schedules"]:
        """Which schedules have no reference from the same noise."""
        return np.any(np.isnan(self.errors), axis=1, keepdims=True)[:, 0]

    def _row(self, name: str) -> int:
        """Index of a schedule."""
        return rows_of("name", [name], self.names)[0]

    def _resampled(
        self, pair: Sequence[int], baselines: Sequence[int], criterion: str
    ) -> Float[np.ndarray, "samples statistics 2"]:
        """log ratios of two schedules to the best baseline: of all samples, then of resamples."""
        names = WEIGHED if criterion == BALANCED else (criterion,)
        values = np.stack([self.statistic_values(name) for name in names])
        floors = [baselines[i] for i in np.argmin(values[:, list(baselines)], 1)]
        few = self.take([self.names[row] for row in (*pair, *floors)])

        every = [
            np.vstack([few.statistic_values(name), few.resampled_values(name)]) for name in names
        ]
        logs = np.log(np.maximum(np.stack(every, 1), TINY))
        floor = np.arange(len(names))
        return logs[:, :, :2] - logs[:, floor, 2 + floor][:, :, None]

    def _best_distribution(self, criterion: str) -> int:
        """Index of the best schedule by sliced W2, where a schedule is stochastic."""
        if criterion not in (BALANCED, "sliced_w2"):
            raise ValueError(
                f"criterion = {criterion!r} needs deterministic schedules; stochastic ones have "
                "sliced_w2 only."
            )

        def ratio(row: int, to: int) -> Estimate:
            return self.ratio("sliced_w2", self.names[row], self.names[to])

        return select_significant(self.statistic_values("sliced_w2"), self._stochastic, ratio)

    def __repr__(self) -> str:
        leader = self.leader
        names = self.shown()
        columns = {name: self.statistic(name) for name in STATISTICS}
        rows = [
            [
                name,
                *(number(column[name]) for column in columns.values()),
                estimate(*self.ratio(self.ranking_statistic, name, leader)),
            ]
            for name in names
        ]
        hidden = len(self.names) - len(names)
        more = [f"and {hidden} more: statistic(name) has all"] if hidden else []
        rivals = [name for name in names if name != leader]
        conditions = self.describe_conditions(leader, rivals[0]) if rivals else ""
        if conditions:
            more.append(f"{self.num_conditions} conditions: {conditions}")
        to_data = "" if self.data_projections is None else "; sliced W2 to the data"
        header = ["schedule", *map(label, columns), f"relative to {leader}"]
        return Table(header, rows, notes=[*more, self._evidence() + to_data]).to_text()


def rows_of(argument: str, names: Sequence[str] | None, known: tuple[str, ...]) -> list[int]:
    """Indices of the schedules that an argument names, of all by default."""
    if names is None:
        return list(range(len(known)))
    if not len(names):
        raise ValueError(f"{argument} is empty; known are {', '.join(known)}.")
    return [known.index(known_name("schedule", argument, name, known)) for name in names]
