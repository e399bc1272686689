"""Pictures of results. matplotlib is imported when one is drawn, and its global state is not touched."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from . import _checks
from ._files import write_atomically
from ._precision import in_float64
from .comparison import STATISTICS, Comparison, SamplerReport
from .distributions import Gaussian
from .errors import Evaluation
from .measurement import Measurement
from .processes import AbstractProcess
from .samplers import AbstractSampler
from .schedules import BASELINES, Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SUFFIXES = {".png": "png", ".pdf": "pdf", ".svg": "svg"}


# colours of Okabe and Ito, told apart by every common kind of colour vision and in grey
_OPTIMUM, _BASELINE, _OTHER, _SPECTRUM = "#0072B2", "#D55E00", "#8C8C8C", "#000000"


_LINES = (
    (_OPTIMUM, "o"),
    (_BASELINE, "s"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#E69F00", "D"),
    ("#56B4E9", "P"),
)


_MOST_ROWS = 9


_RATIOS = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0)


@runtime_checkable
class Result(Protocol):
    """What is drawn of an optimised schedule."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def evaluation(self) -> Evaluation: ...
    @property
    def ratios(self) -> dict[str, float]: ...
    @property
    def comparison(self) -> Comparison | None: ...
    @property
    def criterion(self) -> str: ...
    @property
    def chosen(self) -> str: ...
    @property
    def baseline_schedules(self) -> dict[str, Schedule]: ...
    @property
    def best_baseline(self) -> str: ...
    @property
    def baseline_evaluation(self) -> Evaluation: ...
    @property
    def target(self) -> Gaussian: ...
    @property
    def process(self) -> AbstractProcess: ...
    @property
    def sampler(self) -> AbstractSampler: ...


def check_path(path: str | os.PathLike[str]) -> str:
    """The format that the suffix of `path` stands for. ValueError for another than png, pdf and svg."""
    return _checks.lookup(f"suffix of {os.fspath(path)}", Path(path).suffix.lower(), SUFFIXES)


def plot_optimized(result: Result, path: str | os.PathLike[str] | None = None) -> "Figure":
    """An optimised schedule in three panels, and a fourth if it is stochastic.

    1. its noise levels sigma and those of the named grids, with their objectives relative to the optimum, or, on a
       network or a mixture, their errors
    2. the W2 distance that each step alone would cause on the Gaussian, for the optimum and the best named grid
    3. the eigenvalues of the data covariance and the squared W2 error in each mode, for both
    4. the stochasticity h/g of each step

    Saved to `path` (.png, .pdf or .svg) if given; the file appears whole or not at all. Raises ValueError if
    the suffix is another or the file cannot be written, ImportError without matplotlib.
    """
    suffix = None if path is None else check_path(path)
    name = result.best_baseline
    compared = result.baseline_evaluation
    stochastic = bool(np.any(np.asarray(result.schedule.stochasticity) > 0))
    figure = _figure((16.5 if stochastic else 13.0, 4.2))
    axes = figure.subplots(1, 3 + stochastic, width_ratios=[1.25, 1.0, 1.0, 0.8][: 3 + stochastic])
    _plot_grids(axes[0], result)
    _plot_steps(axes[1], result.evaluation, compared, name)
    _plot_modes(axes[2], result.target, result.evaluation, compared, name)
    if stochastic:
        _plot_stochasticity(axes[3], result.schedule)
    values, what = [float(e.w2) for e in (result.evaluation, compared)], "W2 to the data law"
    if result.comparison is not None:
        kind = result.criterion
        column = result.comparison.statistic(kind)
        values, what = [column[n] for n in (result.chosen, name)], f"{kind.replace('_', ' ')} error"
    figure.suptitle(
        f"{type(result.sampler).__name__}, {result.schedule.num_steps} steps, "
        f"{type(result.process).__name__}: {what} {values[0]:.3g} optimised, {values[1]:.3g} {name}",
        fontsize=11,
    )
    return _saved(figure, path, suffix)


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str] | None = None) -> "Figure":
    """The four statistics of schedules compared on a network, one panel each, one row per schedule.

    Dots are ratios to `comparison.leader`, the bars their standard errors by resampling noises in pairs; rows are
    sorted by log mean. Of many schedules it shows that one, the named grids, and as many of the others as there
    is room for, by log mean. If any schedule is stochastic, sliced W2 is all there is. Errors and `path` as for
    `plot_optimized`.
    """
    kind = None if path is None else check_path(path)
    statistics = STATISTICS if comparison.criterion == "geometric_mean" else ("sliced_w2",)
    best, names = comparison.leader, comparison.shown()
    grids = [name for name in names if name in BASELINES and name != best]
    colour = dict.fromkeys(names, _OTHER) | dict.fromkeys(grids[:1], _BASELINE) | {best: _OPTIMUM}
    figure = _figure((5.0 + 2.25 * len(statistics), 1.7 + 0.27 * len(names)))
    panels = figure.subplots(1, len(statistics), sharey=True, squeeze=False)[0]
    for axes, statistic in zip(panels, statistics, strict=True):
        axes.axvline(1.0, color="0.6", linewidth=0.8)
        for row, name in enumerate(names):
            # a statistic can be 0
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio, spread = comparison.ratio(statistic, name, best)
            axes.errorbar(
                ratio, row, xerr=spread, fmt="o", color=colour[name], markersize=5, linewidth=1.2
            )
        axes.set_xscale("log", nonpositive="clip")
        title = f"{statistic.replace('_', ' ').replace('w2', 'W2')}: 1 is {comparison.statistic(statistic)[best]:.3g}"
        _decorate(axes, title, "ratio to the best", "")
        _ratio_ticks(axes)
        axes.grid(False, axis="y")
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].set_yticks(range(len(names)), names)
    shown = (
        ""
        if len(names) == len(comparison.names)
        else f" ({len(names)} of {len(comparison.names)} schedules)"
    )
    figure.suptitle(
        f"{_distance(statistics, comparison)}, in units of the data's spread{shown}\n"
        f"{comparison.errors.shape[1]} noises, reference accurate to {comparison.reference_error:.1g}",
        fontsize=11,
    )
    return _saved(figure, path, kind)


def plot_report(
    report: SamplerReport, path: str | os.PathLike[str] | None = None, statistic: str | None = None
) -> "Figure":
    """A statistic (default: `report.criterion`) of schedules against the number of steps, one panel per sampler.

    Schedules are sorted by `report.ratios`, the best one first. Below the dotted line, where it is in reach,
    values mean nothing: it is the reference's own error. Errors and `path` as for `plot_optimized`.
    """
    kind = None if path is None else check_path(path)
    statistic = report.criterion if statistic is None else statistic
    values, names = report.statistic(statistic), report.ranked(statistic)
    samplers = list(dict.fromkeys(sampler for sampler, _ in values))
    figure = _figure((4.2 * len(samplers) + 1.8, 4.0))
    panels = figure.subplots(1, len(samplers), sharey=True, squeeze=False)[0]
    for axes, sampler in zip(panels, samplers, strict=True):
        settings = sorted(setting for setting in values if setting[0] == sampler)
        steps = [count for _, count in settings]
        for i, name in enumerate(names):
            turn, place = divmod(i, len(_LINES))
            colour, marker = _LINES[place]
            style: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "linestyle": ("-", "--", ":")[turn % 3],
            }
            errors = _positive(np.array([values[setting][name] for setting in settings]))
            axes.plot(steps, errors, label=name, markersize=4.5, linewidth=1.2, **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _decorate(axes, sampler, "number of steps", "")
        _whole_steps(axes, steps)
    limits = panels[0].get_ylim()
    for axes in panels:
        axes.axhline(report.reference_error, color="0.6", linewidth=0.8, linestyle=":")
    panels[0].set_ylim(*limits)  # a reference far below has no place in the picture
    panels[0].set_ylabel(
        f"{statistic.replace('_', ' ').replace('w2', 'W2')}, units of the data's spread", fontsize=9
    )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False
    )
    first = next(iter(report.comparisons.values()))
    figure.suptitle(f"{_distance((statistic,), first)}; {report.num_noises} noises", fontsize=11)
    return _saved(figure, path, kind)


def plot_measurement(
    measurement: Measurement, path: str | os.PathLike[str] | None = None
) -> "Figure":
    """What was measured of a denoiser over noise levels: up to three panels, those that are known.

    1. its denoising error, the best affine denoiser's, which bounds the least possible error from above, and the
       variance of what no affine function fits
    2. the violation of the martingale identity as a share of the increment, two standard errors either way
    3. the Lipschitz constants found, and that of the best affine denoiser

    Errors and `path` as for `plot_optimized`.
    """
    kind = None if path is None else check_path(path)
    known = measurement.statistics
    panels = [_plot_denoising]
    if "correlation" in known and measurement.times.size > 1:
        panels.append(_plot_martingale)
    if "lipschitz" in known:
        panels.append(_plot_lipschitz)
    figure = _figure((4.6 * len(panels) + 0.4, 4.0))
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, measurement)
    return _saved(figure, path, kind)


def _figure(size: tuple[float, float]) -> "Figure":
    """A figure that belongs to no global list, drawn by Agg, and that notebooks show."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            'plots need matplotlib, which is not installed: pip install "jaxkernels[cli]".'
        ) from None

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            return _rendered(self, "png")

    figure = Shown(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _saved(figure: "Figure", path: str | os.PathLike[str] | None, kind: str | None) -> "Figure":
    """The figure, written to a path of this kind if there is one."""
    if path is not None:
        write_atomically(path, _rendered(figure, str(kind)))
    return figure


def _rendered(figure: "Figure", kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    return buffer.getvalue()


def _decorate(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _plot_grids(axes: "Axes", result: Result) -> None:
    """One row of levels per grid, the best on top; levels 0 and infinity at the edges."""
    names = sorted(result.ratios, key=result.ratios.__getitem__)[: _MOST_ROWS - 1]
    rows = [
        ("optimised", result.schedule),
        *((name, result.baseline_schedules[name]) for name in names),
    ]
    levels = [
        np.asarray(in_float64(Schedule.sigmas)(schedule, result.process)) for _, schedule in rows
    ]
    inside = np.concatenate([s[(s > 0) & np.isfinite(s)] for s in levels])
    low, high = inside.min(), inside.max()
    margin = (high / low) ** 0.06 if high > low else 2.0
    edges = low / margin, high * margin
    for row, ((name, _), sigma) in enumerate(zip(rows, levels)):
        colour = _OPTIMUM if row == 0 else _BASELINE if name == result.best_baseline else _OTHER
        x = np.clip(sigma, *edges)
        axes.plot(x, np.full(x.size, row), color=colour, linewidth=0.8, alpha=0.5)
        beyond = (sigma == 0) | np.isinf(sigma)
        axes.plot(x[~beyond], np.full(np.sum(~beyond), row), "o", color=colour, markersize=5)
        for value, marker in ((0.0, ">"), (np.inf, "<")):
            at = x[sigma == value]
            axes.plot(
                at,
                np.full(at.size, row),
                marker,
                color=colour,
                markerfacecolor="white",
                markersize=6,
            )
    axes.set_xscale("log")
    axes.set_xlim(edges[1] * margin**0.3, edges[0] / margin**0.3)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    title = "Noise levels of the grids"
    if any(np.any((s == 0) | np.isinf(s)) for s in levels):
        title += " (open: 0 or infinite)"
    _decorate(axes, title, "noise level sigma, in units of the data (noise → data)", "")
    labels = ["optimised", *(_row_label(name, result.ratios[name]) for name in names)]
    axes.set_yticks(range(len(rows)), labels)
    axes.grid(False, axis="y")


def _row_label(name: str, ratio: float) -> str:
    return (
        f"{name}\n{ratio:.0f} times the optimum"
        if ratio >= 99.5
        else f"{name}\n{ratio:.3g} times the optimum"
    )


def _plot_steps(axes: "Axes", optimum: Evaluation, baseline: Evaluation, name: str) -> None:
    for label, evaluation, style in _pair(optimum, baseline, name):
        error = np.sqrt(np.maximum(np.asarray(evaluation.local_w2_squared, np.float64), 0.0))
        axes.plot(np.arange(error.size), _positive(error), label=label, **style)
    axes.set_yscale("log")
    _whole_ticks(axes)
    _decorate(
        axes,
        "Error of each step",
        "step k (noise → data)",
        "W2 that the step alone causes, units of the data",
    )
    axes.legend(fontsize=8, frameon=False)


def _plot_modes(
    axes: "Axes", target: Gaussian, optimum: Evaluation, baseline: Evaluation, name: str
) -> None:
    weights = np.asarray(target.weights, np.float64)
    eigenvalues = np.asarray(target.eigenvalues, np.float64)
    order = np.argsort(-eigenvalues, kind="stable")
    order = order[weights[order] != 0]
    mode = np.arange(1, order.size + 1)
    line = {"color": _SPECTRUM, "linewidth": 1.2, "marker": "." if order.size == 1 else None}
    axes.plot(mode, _positive(eigenvalues[order]), label="variance of the data", **line)
    for label, evaluation, style in _pair(optimum, baseline, name):
        share = np.asarray(evaluation.per_mode["w2_squared"], np.float64)[order] / weights[order]
        small = {"markersize": 2.5, "linewidth": 0.6} if order.size > 40 else {}
        axes.plot(mode, _positive(share), label=label, **{**style, **small})
    axes.set_yscale("log")
    if order.size > 40:
        axes.set_xscale("log")
    else:
        _whole_ticks(axes)
    _decorate(
        axes,
        "Error over the spectrum",
        "mode, by decreasing variance",
        "variance; squared W2 error of the mode",
    )
    axes.legend(fontsize=8, frameon=False)


def _plot_stochasticity(axes: "Axes", schedule: Schedule) -> None:
    alpha = np.asarray(schedule.stochasticity, np.float64)
    axes.bar(np.arange(alpha.size), alpha, color=_OPTIMUM, width=0.6)
    _whole_ticks(axes)
    _decorate(axes, "Stochasticity", "step k (noise → data)", "h/g (0: ODE, 1: reverse SDE)")
    axes.grid(False, axis="x")


def _distance(statistics: Sequence[str], comparison: Comparison) -> str:
    """What the statistics are distances to."""
    solver, data = "Distance to the fine solver's end points", "sliced W2 to the data"
    if comparison.data_ends is None or "sliced_w2" not in statistics:
        return solver
    return "Sliced W2 to the data" if len(statistics) == 1 else f"{solver}, {data}"


def _ratio_ticks(axes: "Axes") -> None:
    """Numbers as they are spoken, as many as there is room for, on a logarithmic axis."""
    from matplotlib.ticker import NullLocator

    low, high = axes.get_xlim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)) - 1, np.ceil(np.log10(high)) + 1)
    fine = np.unique(np.round(np.multiply.outer(powers, _RATIOS), 12))
    for ticks in (fine, np.multiply.outer(powers, (1.0, 2.0, 5.0)).ravel(), powers):
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if ticks.size <= 7:
            break
    axes.set_xticks(ticks, [f"{v:g}" for v in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _whole_steps(axes: "Axes", steps: Sequence[int]) -> None:
    """The numbers of steps themselves on a logarithmic axis."""
    from matplotlib.ticker import NullLocator

    axes.set_xticks(steps, [str(count) for count in steps])
    axes.xaxis.set_minor_locator(NullLocator())


def _noise_axis(axes: "Axes", measurement: Measurement) -> np.ndarray:
    """Noise levels on a logarithmic axis, an infinite one at its edge."""
    sigma = measurement.sigma
    finite = sigma[np.isfinite(sigma)]
    low, high = (finite.min(), finite.max()) if finite.size else (1.0, 1.0)
    margin = (high / low) ** 0.06 if high > low else 2.0
    axes.set_xscale("log")
    axes.set_xlim(high * margin**1.3, low / margin)
    return np.where(np.isfinite(sigma), sigma, high * margin)


def _noise_label(measurement: Measurement) -> str:
    at_edge = "" if np.all(np.isfinite(measurement.sigma)) else "; infinite at the edge"
    return f"noise level sigma (noise → data{at_edge})"


def _plot_denoising(axes: "Axes", measurement: Measurement) -> None:
    sigma, known = _noise_axis(axes, measurement), measurement.statistics
    small: dict[str, Any] = {"markersize": 4.0, "linewidth": 1.2}
    if measurement.distribution is not None:
        bound = measurement.gaussian_error @ np.asarray(measurement.distribution.weights, np.float64)
        axes.plot(
            sigma, _positive(bound), color=_SPECTRUM, label="best affine denoiser", linewidth=1.2
        )
    if "error" in known:
        noise = known.get("standard_error")
        style = {"color": _OPTIMUM, "label": "this denoiser"}
        axes.errorbar(sigma, _positive(measurement.error), yerr=noise, fmt="o-", **style, **small)
    if "residual" in known:
        residual = _positive(measurement.residual.sum(-1))
        axes.plot(
            sigma, residual, "s--", color=_BASELINE, label="what no affine function fits", **small
        )
    axes.set_yscale("log")
    _decorate(
        axes, "Denoising error", _noise_label(measurement), "mean square, summed over dimensions"
    )
    axes.legend(fontsize=8, frameon=False)


def _plot_martingale(axes: "Axes", measurement: Measurement) -> None:
    sigma = _noise_axis(axes, measurement)
    violation, noise, increment = (
        measurement.martingale_violation,
        measurement.martingale_standard_error,
        measurement.increments,
    )
    last = sigma.size - 1
    later = np.arange(1, last + 1)
    pairs = (
        ("from the next higher level", later - 1, _OPTIMUM, "o-"),
        ("from the highest level", np.zeros_like(later), _BASELINE, "s--"),
    )
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    for label, earlier, colour, form in pairs:
        size = np.maximum(increment[earlier, later], 1e-300)
        share, bar = violation[earlier, later] / size, 2.0 * noise[earlier, later] / size
        style: dict[str, Any] = {
            "color": colour,
            "label": label,
            "markersize": 4.0,
            "linewidth": 1.0,
        }
        axes.errorbar(sigma[later], share, yerr=bar, fmt=form, **style)
    # with the highest levels hardly an increment to take a share of
    axes.set_yscale("symlog", linthresh=0.1)
    _decorate(
        axes,
        "Violation of the martingale identity",
        _noise_label(measurement),
        "share of the increment; 0 for an exact denoiser",
    )
    axes.legend(fontsize=8, frameon=False)


def _plot_lipschitz(axes: "Axes", measurement: Measurement) -> None:
    sigma, found = _noise_axis(axes, measurement), measurement.lipschitz
    axes.plot(
        np.repeat(sigma, found.shape[1]),
        found.ravel(),
        ".",
        color=_OPTIMUM,
        markersize=4,
        label="single points",
    )
    axes.plot(sigma, np.median(found, -1), color=_OPTIMUM, linewidth=1.2, label="median")
    if measurement.distribution is not None:
        gain = (measurement.signal / measurement.noise**2)[:, None] * measurement.gaussian_error
        axes.plot(sigma, gain.max(-1), color=_SPECTRUM, linewidth=1.2, label="best affine denoiser")
    axes.set_yscale("log")
    _decorate(axes, "Lipschitz constant", _noise_label(measurement), "spectral norm of dD/dx")
    axes.legend(fontsize=8, frameon=False)


def _whole_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _pair(
    optimum: Evaluation, baseline: Evaluation, name: str
) -> Sequence[tuple[str, Evaluation, dict[str, Any]]]:
    shared = {"markersize": 4.5, "linewidth": 1.2}
    return (
        ("optimised", optimum, {"color": _OPTIMUM, "marker": "o", **shared}),
        (name, baseline, {"color": _BASELINE, "marker": "s", "linestyle": "--", **shared}),
    )


def _positive(values: np.ndarray) -> np.ndarray:
    """Values with gaps where a logarithmic axis has no place for them."""
    return np.where(values > 0, values, np.nan)
