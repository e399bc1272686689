"""Schedules compared on a network: how far each takes the same noises from where a fine solver takes them."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks
from ._progress import Progress
from ._setting import check_schedule
from ._types import AnyArray, Numbers, ScoreFn, constant
from .process import AbstractProcess
from .quality import quantiles
from .sample import sample
from .samplers import SAMPLERS, AbstractSampler, DPMSolverPP2M
from .schedules import GRIDS, Schedule, log_snr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATISTICS = ("rms", "median", "log_mean", "sliced_w2")
BALANCED, WEIGHED = "balanced", ("log_mean", "rms", "sliced_w2")
_RESAMPLES, _DIRECTIONS = 200, 64
# of the power mean that stands for the largest of the three ratios, with derivatives
_POWER = 6.0
_FINE, _LEAST_FINE = 20, 200
_SHOWN = 14
_TINY = 1e-300
_A = TypeVar("_A", np.ndarray, Array)


class Comparison(eqx.Module):
    """Where several schedules take the same noises with one network, against where a fine solver takes them.

    `errors` (schedules, noises): distance of each end point from the reference's. `ends` (schedules, noises,
    directions) and `reference_ends` (noises, directions): components of the end points along random unit
    directions. `reference_error`: the root mean square distance between the reference and one of half its steps:
    errors below it mean nothing. All in units of the root of the reference's total variance.

    Four statistics, as no one of them is the truth: of the errors, "rms" (a few bad samples decide), "median", and
    "log_mean", exp(mean log error) (typical samples decide); and "sliced_w2", the root mean over directions of the
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
        draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
        # of two schedules without any error neither is better
        value, *again = (np.maximum(both.values(kind, rows), _TINY) for rows in (slice(None), *draws))
        again = np.stack(again, 1)
        return float(value[0] / value[1]), float(np.std(again[0] / again[1], ddof=1))

    @property
    def criterion(self) -> str:
        """The statistic to rank by: "log_mean", or "sliced_w2" where a schedule is stochastic."""
        return "sliced_w2" if np.any(np.isnan(self.errors)) else "log_mean"

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
                raise ValueError(f"by = {by!r} needs deterministic schedules; stochastic ones have sliced_w2 only.")
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
        logs = np.stack([np.log(np.maximum(self.values(kind), _TINY)) for kind in WEIGHED], -1)
        excess = logs - logs[known].min(0)
        harm = np.sum(np.maximum(excess, 0.0), -1)
        return self.names[np.lexsort((balance(np, excess), harm))[0]]

    def take(self, names: Sequence[str] | None = None, noises: slice = slice(None)) -> "Comparison":
        """Some of the schedules, from some of the noises."""
        names = self.names if names is None else tuple(names)
        rows = [self._index(name) for name in names]
        ends = self.ends[rows, noises], self.reference_ends[noises]
        chosen = self.chosen if self.chosen in names else None
        return Comparison(names, self.errors[rows, noises], *ends, self.reference_error, self.data_ends, chosen)

    def joined(self, other: "Comparison") -> "Comparison":
        """These schedules and those of another comparison with the same noises and the same reference."""
        ends = np.concatenate([self.ends, other.ends])
        errors, names = np.concatenate([self.errors, other.errors]), self.names + other.names
        return Comparison(names, errors, ends, self.reference_ends, self.reference_error, self.data_ends, self.chosen)

    def shown(self) -> list[str]:
        """What a table or a picture of many schedules shows: the leader, the named grids, others up to 14, ranked."""
        column = self.statistic(self.criterion)
        ranked = sorted(self.names, key=column.__getitem__)
        needed = {self.leader, *(name for name in ranked if name in GRIDS)}
        others = [name for name in ranked if name not in needed]
        chosen = needed | set(others[: max(0, _SHOWN - len(needed))])
        return [name for name in ranked if name in chosen]

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """The four statistics of every schedule against the leader's; see `jaxkernels.plot.plot_comparison`.

        Needs matplotlib. Saved to `path` if given.
        """
        from .plot import plot_comparison

        return plot_comparison(self, path)

    def _index(self, name: str) -> int:
        return _checks.lookup("name", name, {n: i for i, n in enumerate(self.names)})

    def values(self, kind: str, noises: slice | np.ndarray = slice(None)) -> Float[np.ndarray, " schedules"]:
        """One of the four statistics of every schedule, from some of the noises or from a resample of them."""
        exact = self.law(noises) if kind == "sliced_w2" else None
        return statistic(np, kind, self.errors[:, noises], self.ends[:, noises], exact)

    def law(self, noises: slice | np.ndarray = slice(None)) -> Float[np.ndarray, "noises directions"]:
        """As many components of the law as there are noises, ascending: the reference's there, or the data's."""
        own = self.reference_ends[noises]
        return np.sort(own, 0) if self.data_ends is None else quantiles(self.data_ends, len(own))

    def __repr__(self) -> str:
        best = self.leader
        shown = self.shown()
        width = max(map(len, shown))
        lines = [f"{'schedule':{width}} {'rms':>10} {'median':>10} {'log mean':>10} {'sliced W2':>10}   against {best}"]
        columns = {kind: self.statistic(kind) for kind in STATISTICS}
        for name in shown:
            ratio, spread = self.ratio(self.criterion, name, best)
            numbers = " ".join(f"{column[name]:10.4g}" for column in columns.values())
            lines.append(f"{name:{width}} {numbers}   {ratio:.3f} ± {spread:.3f}")
        hidden = len(self.names) - len(shown)
        if hidden:
            lines.append(f"and {hidden} more: statistic(kind) has all")
        noises = self.errors.shape[1]
        law = "" if self.data_ends is None else "; sliced W2 to the data"
        return "\n".join([*lines, f"{noises} noises; reference accurate to {self.reference_error:.1g}{law}"])


def statistic(
    xp: Any,
    kind: str,
    errors: Float[_A, "*schedules noises"],
    ends: Float[_A, "*schedules noises directions"],
    exact: Float[_A, "noises directions"] | None,
) -> Float[_A, "*schedules"]:
    """One of the four statistics of `Comparison`, in NumPy or, with derivatives, jax.numpy.

    `exact`, the law's components in ascending order, is for sliced W2.
    """
    if kind == "rms":
        return xp.sqrt(xp.mean(errors**2, -1))
    if kind == "median":
        return xp.median(errors, -1)
    if kind == "log_mean":
        return xp.exp(xp.mean(xp.log(xp.maximum(errors, xp.finfo(errors.dtype).tiny)), -1))
    # W2 in one dimension couples the sorted values
    return xp.sqrt(xp.mean((xp.sort(ends, -2) - exact) ** 2, (-2, -1)))


def balance(xp: Any, logs: Float[_A, "*schedules ratios"]) -> Float[_A, "*schedules"]:
    """log of the power mean of n ratios r_i, from log r_i: (sum r_i^6 / n)^(1/6), the largest but smooth.

    A product would trade the tail and the law for typical samples, which some data let grow better without end.
    """
    top = logs.max(-1, keepdims=True)
    return xp.log(xp.mean(xp.exp(_POWER * (logs - top)), -1)) / _POWER + top[..., 0]


def compare_schedules(
    score_fn: ScoreFn,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedules: Mapping[str, Schedule],
    x_init: Float[AnyArray, "noises *shape"],
    *,
    kind: str = "score",
    data: Numbers | None = None,
    key: Array | None = None,
    progress: bool = True,
) -> Comparison:
    """Run a network on several schedules and on a fine one, from the same noises, and measure the distances.

    The reference is DPM-Solver++(2M) on a uniform log-SNR grid (`schedules.log_snr`, with its rules where log-SNR is
    infinite at an end) of at least 200 steps and 20 times those of the longest schedule.

    **Arguments:**

    - `score_fn`, `kind` and `x_init` as for `sample`.
    - `schedules`: by name, all with the same first and last time.
    - `data`: samples (n, ...) to whose law sliced W2 is measured, instead of to the reference's. A fine solver has the
      network's errors, and noise may repair some of them: stochastic schedules need the data.
    - `key`: draws the noise of stochastic steps, the same for all schedules (fixed by default).

    **Raises:** ValueError naming the argument; also if samples stop being finite.
    """
    if isinstance(sampler, str):
        sampler = _checks.lookup("sampler", sampler, SAMPLERS)()
    ends = check_schedules(process, sampler, schedules, stochastic=data is not None)
    x = check_noises(x_init)
    steps = fine_steps(max(schedule.num_steps for schedule in schedules.values()))
    with Progress("comparing: fine reference", progress) as line:
        exact = reference(score_fn, process, x, steps, *ends, kind=kind, data=data)
        return compare_to(exact, score_fn, process, sampler, schedules, x, kind=kind, key=key, line=line)


def check_schedules(
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedules: Mapping[str, Schedule],
    ends: tuple[float, float] | None = None,
    *,
    stochastic: bool,
) -> tuple[float, float]:
    """First and last time of schedules that can be compared: `ends` if given, else those of the first schedule."""
    if not isinstance(schedules, Mapping) or not schedules:
        raise ValueError(f"schedules = {schedules!r} must be {{name: Schedule}}, not empty.")
    for name, schedule in schedules.items():
        check_schedule(process, sampler, schedule)
        times = np.asarray(schedule.times, np.float64)
        if ends is None:
            ends = float(times[0]), float(times[-1])
        if not stochastic and is_stochastic(schedule):
            raise ValueError(
                f"schedules[{name!r}] is stochastic: its samples have no reference from the same noise; pass data, to "
                "compare laws."
            )
        if not np.allclose(times[[0, -1]], ends, rtol=1e-5):
            raise ValueError(
                f"schedules[{name!r}] runs from {times[0]:g} to {times[-1]:g}, the others from {ends[0]:g} to "
                f"{ends[1]:g}; they must agree."
            )
    assert ends is not None
    return ends


def check_noises(x_init: Float[AnyArray, "noises *shape"]) -> Float[Array, "noises *shape"]:
    x = jnp.asarray(x_init)
    if x.ndim < 2 or x.shape[0] < 2:
        raise ValueError(f"x_init has shape {x.shape}; it must be (noises, ...) with at least 2 noises.")
    if not jnp.all(jnp.isfinite(x)):
        raise ValueError("x_init holds NaN or infinity; noises must be finite.")
    return x


def is_stochastic(schedule: Schedule) -> bool:
    """Whether any step injects noise."""
    return bool(np.any(np.asarray(schedule.stochasticity_squared) > 0))


class Reference(NamedTuple):
    """Where a fine solver takes noises, and in what units and along which directions distances from there are told.

    `ends` (noises, d); `size`, the root of their total variance; `directions` (d, directions), unit vectors over
    `size`; `error`, the root mean square distance to a reference of half the steps, over `size`; `data`, the sorted
    components of the data, if given.
    """

    ends: Float[np.ndarray, "noises d"]
    size: float
    directions: Float[np.ndarray, "d directions"]
    error: float
    data: Float[np.ndarray, "samples directions"] | None


def reference(
    score_fn: ScoreFn,
    process: AbstractProcess,
    x: Float[Array, "noises *shape"],
    steps: int,
    first: float,
    last: float,
    *,
    kind: str,
    data: Numbers | None,
) -> Reference:
    """The reference of so many steps for all schedules from `first` to `last`, whatever their sampler."""
    if data is not None:
        data = _checks.array("data", data)
        if data.ndim < 2 or data.shape[1:] != x.shape[1:] or len(data) < 2:
            shape = ", ".join(map(str, x.shape[1:]))
            raise ValueError(f"data has shape {data.shape}; it must be (n, {shape}) with n >= 2.")
        data = data.reshape(len(data), -1)
    fine, half = (fine_ends(score_fn, process, x, k, first, last, kind=kind) for k in (steps, steps // 2))
    size = float(np.sqrt(np.sum(fine.var(0))))
    if size == 0.0:
        raise ValueError("all noises end at one point, so that errors have no unit: are they all the same?")
    directions = np.random.default_rng(0).standard_normal((fine.shape[1], _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0) * size
    between = np.sqrt(np.mean(np.sum((fine - half) ** 2, 1))) / size
    law = None if data is None else np.sort(data @ directions, 0)
    return Reference(fine, size, directions, float(between), law)


def compare_to(
    exact: Reference,
    score_fn: ScoreFn,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedules: Mapping[str, Schedule],
    x: Float[Array, "noises *shape"],
    *,
    kind: str,
    key: Array | None,
    line: Progress,
) -> Comparison:
    """`compare_schedules` with its reference at hand, for arguments that were checked."""
    errors, ends = [], []
    for name, schedule in schedules.items():
        line.update(f"comparing: {type(sampler).__name__}, {schedule.num_steps} steps, {name}")
        end = _ends(score_fn, process, sampler, schedule, x, kind, key)
        error = np.linalg.norm(end - exact.ends, axis=1) / exact.size
        errors.append(np.full_like(error, np.nan) if is_stochastic(schedule) else error)
        ends.append(end @ exact.directions)
    fine = exact.ends @ exact.directions
    return Comparison(tuple(schedules), np.stack(errors), np.stack(ends), fine, exact.error, exact.data)


def evaluations(sampler: AbstractSampler, schedules: Mapping[str, Schedule], noises: int) -> int:
    """Of the network, one point each, in `compare_schedules` from so many noises.

    At most: a last step to sigma = 0 takes one, whatever the sampler (`samplers.Heun`).
    """
    steps = [schedule.num_steps for schedule in schedules.values()]
    fine = fine_steps(max(steps))
    return noises * (fine + fine // 2 + sampler.evaluations * sum(steps))


def fine_steps(num_steps: int) -> int:
    """Steps of a reference for schedules of at most so many."""
    return max(_LEAST_FINE, _FINE * num_steps)


def fine_ends(
    score_fn: ScoreFn,
    process: AbstractProcess,
    x: Float[Array, "noises *shape"],
    steps: int,
    first: float,
    last: float,
    *,
    kind: str,
) -> Float[np.ndarray, "noises d"]:
    """Where a fine solver takes each noise: DPM-Solver++(2M) on a grid of so many steps."""
    return _ends(score_fn, process, DPMSolverPP2M(), _fine(process, steps, first, last), x, kind)


def _ends(
    score_fn: ScoreFn,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    x: Array,
    kind: str,
    key: Array | None = None,
) -> Float[np.ndarray, "noises d"]:
    key = jax.random.key(0) if key is None else key
    reached = np.asarray(sample(score_fn, process, sampler, schedule, key, x, kind=kind), np.float64)
    return reached.reshape(x.shape[0], -1)


def _fine(process: AbstractProcess, steps: int, first: float, last: float) -> Schedule:
    if first != float(np.asarray(process.t_max)):  # a schedule may start later than grids do
        process = eqx.tree_at(lambda p: p.t_max, process, constant(first))
    return log_snr(process, steps, last)
