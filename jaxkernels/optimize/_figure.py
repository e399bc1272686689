"""The figure of an optimised schedule, as plain data."""

from collections.abc import Mapping

import numpy as np

from .._plot import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    Axis,
    Bars,
    FigureSpec,
    Line,
    Panel,
    noise_limits,
    positive,
)
from .._precision import in_float64
from ..distributions import Gaussian
from ..errors import Evaluation
from ..processes import AbstractProcess
from ..schedules import Schedule

# Rows of the panel of noise levels.
_MOST_ROWS = 9
# Above this number of modes markers would hide the lines, and the axis becomes logarithmic.
_MANY_MODES = 40

_STEP_LABEL = "step k (noise → data)"


def optimized_figure(
    schedule: Schedule,
    evaluation: Evaluation,
    baselines: Mapping[str, Schedule],
    baseline_evaluation: Evaluation,
    ratios: Mapping[str, float],
    target: Gaussian,
    process: AbstractProcess,
    title: str,
) -> FigureSpec:
    """Three panels of an optimised schedule, and a fourth if it is stochastic.

    1. its noise levels and those of the baselines, best first
    2. the W2 error that each step alone causes on the Gaussian, for it and the best baseline
    3. the eigenvalues of the data covariance and the squared W2 error per mode, for both
    4. its stochasticity h/g at each step

    **Arguments:**

    - `schedule`, `evaluation`: the optimised one and its error on `target`.
    - `baselines`: schedules by name.
    - `baseline_evaluation`: of the baseline with the smallest ratio.
    - `ratios`: error of every baseline over that of `schedule`.
    - `target`, `process`: of both evaluations.
    - `title`: of the figure.
    """
    best = min(ratios, key=ratios.__getitem__)
    pair = {"optimised": evaluation, best: baseline_evaluation}
    panels = [
        _noise_levels(schedule, baselines, ratios, process),
        _step_errors(pair),
        _mode_errors(pair, target),
    ]
    if schedule.is_stochastic:
        panels.append(_stochasticity(schedule))
    return FigureSpec(panels, (13.0 if len(panels) == 3 else 16.5, 4.2), title)


def _noise_levels(
    schedule: Schedule,
    baselines: Mapping[str, Schedule],
    ratios: Mapping[str, float],
    process: AbstractProcess,
) -> Panel:
    """Rows of noise levels, the optimised schedule on top; levels 0 and infinity at the edges."""
    names = sorted(ratios, key=ratios.__getitem__)[: _MOST_ROWS - 1]
    shown = [schedule, *(baselines[name] for name in names)]
    levels = [np.asarray(in_float64(Schedule.sigmas)(s, process)) for s in shown]
    colors = [BLUE, ORANGE, *[GREY] * len(names)]
    edges = noise_limits(np.concatenate(levels))
    marks = [
        mark
        for row, (sigmas, color) in enumerate(zip(levels, colors, strict=False))
        for mark in _level_row(row, sigmas, edges, color)
    ]
    beyond = any(np.any((sigmas == 0) | np.isinf(sigmas)) for sigmas in levels)
    # so that markers at the edges are whole
    margin = (edges[0] / edges[1]) ** 0.02
    return Panel(
        title="Noise levels" + (" (open: 0 or infinite)" if beyond else ""),
        marks=marks,
        x=Axis(
            "noise level sigma, in units of the data (noise → data)",
            scale="log",
            limits=(edges[0] * margin, edges[1] / margin),
        ),
        y=Axis.of_rows(["optimised", *(_row_label(name, ratios[name]) for name in names)]),
        width=1.25,
    )


def _level_row(row: int, sigmas: np.ndarray, edges: tuple[float, float], color: str) -> list[Line]:
    """A line with a dot at every level; open arrows stand for the levels 0 and infinity."""
    high, low = edges
    x = np.clip(sigmas, low, high)
    y = np.full(x.size, float(row))
    finite = (sigmas > 0) & np.isfinite(sigmas)
    marks = [
        Line(x, y, color=color, width=0.8, alpha=0.5),
        Line(x[finite], y[finite], color=color, marker="o", style="", size=5.0),
    ]
    for level, marker in ((0.0, ">"), (np.inf, "<")):
        at = sigmas == level
        if at.any():
            arrow = Line(x[at], y[at], color=color, marker=marker, style="", size=6.0, filled=False)
            marks.append(arrow)
    return marks


def _row_label(name: str, ratio: float) -> str:
    """A baseline's name and its ratio to the optimum."""
    shown = f"{ratio:.0f}" if ratio >= 99.5 else f"{ratio:.3g}"
    return f"{name}\n{shown} times the optimum"


def _step_errors(pair: Mapping[str, Evaluation]) -> Panel:
    """The error that each step alone causes."""
    errors = {
        name: np.sqrt(np.maximum(np.asarray(evaluation.local_w2_squared, np.float64), 0.0))
        for name, evaluation in pair.items()
    }
    return Panel(
        title="Error of each step",
        marks=_pair_of_lines({name: (np.arange(e.size), e) for name, e in errors.items()}),
        x=Axis(_STEP_LABEL, ticks="integer"),
        y=Axis("W2 that the step alone causes, units of the data", scale="log"),
        legend=True,
    )


def _mode_errors(pair: Mapping[str, Evaluation], target: Gaussian) -> Panel:
    """The variance of the data and the error per mode, by decreasing variance."""
    weights = np.asarray(target.weights, np.float64)
    eigenvalues = np.asarray(target.eigenvalues, np.float64)
    order = np.argsort(-eigenvalues, kind="stable")
    order = order[weights[order] != 0]
    modes = np.arange(1, order.size + 1)
    many = order.size > _MANY_MODES
    errors = {
        name: np.asarray(evaluation.per_mode["w2_squared"], np.float64)[order] / weights[order]
        for name, evaluation in pair.items()
    }
    variance = Line(
        modes,
        positive(eigenvalues[order]),
        label="variance of the data",
        color=BLACK,
        marker="." if order.size == 1 else "",
    )
    return Panel(
        title="Error over the spectrum",
        marks=[
            variance,
            *_pair_of_lines({name: (modes, e) for name, e in errors.items()}, small=many),
        ],
        x=Axis(
            "mode, by decreasing variance",
            scale="log" if many else "linear",
            ticks="auto" if many else "integer",
        ),
        y=Axis("variance; squared W2 error of the mode", scale="log"),
        legend=True,
    )


def _stochasticity(schedule: Schedule) -> Panel:
    """h/g at every step."""
    alpha = np.asarray(schedule.stochasticity, np.float64)
    return Panel(
        title="Stochasticity",
        marks=[Bars(np.arange(alpha.size), alpha)],
        x=Axis(_STEP_LABEL, ticks="integer", grid=False),
        y=Axis("h/g (0: ODE, 1: reverse SDE)"),
        width=0.8,
    )


def _pair_of_lines(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, small: bool = False
) -> list[Line]:
    """Curves of the optimised schedule and the best baseline, in different colours and dashes."""
    styles = ((BLUE, "o", "-"), (ORANGE, "s", "--"))
    return [
        Line(
            x,
            positive(y),
            label=name,
            color=color,
            marker=marker,
            style=style,
            width=0.6 if small else 1.2,
            size=2.5 if small else 4.5,
        )
        for (name, (x, y)), (color, marker, style) in zip(curves.items(), styles, strict=True)
    ]
