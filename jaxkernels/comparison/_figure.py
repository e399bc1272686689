"""The figures of compared schedules, as plain data."""

from collections.abc import Mapping, Sequence

import numpy as np

from .._plot import (
    BLUE,
    GREY,
    LINE_STYLES,
    ORANGE,
    SERIES,
    Axis,
    FigureSpec,
    Guide,
    Line,
    Panel,
    positive,
)
from .._tables import label
from ..schedules import BASELINES


def comparison_figure(
    ratios: Mapping[str, Mapping[str, tuple[float, float]]],
    leader: str,
    leader_values: Mapping[str, float],
    title: str,
) -> FigureSpec:
    """One panel per statistic, one row per schedule: ratios to the leader with standard errors.

    **Arguments:**

    - `ratios`: by statistic and schedule, (ratio, standard error); the same schedules, in the same
      order, for every statistic.
    - `leader`: the schedule that the ratios are to, drawn in blue; the first baseline is orange.
    - `leader_values`: the leader's value of every statistic.
    - `title`: of the figure.
    """
    names = list(next(iter(ratios.values())))
    baselines = [name for name in names if name in BASELINES and name != leader]
    colors = dict.fromkeys(names, GREY) | dict.fromkeys(baselines[:1], ORANGE) | {leader: BLUE}
    rows = Axis.of_rows(names)
    panels = [
        Panel(
            title=f"{label(statistic)}: 1 is {leader_values[statistic]:.3g}",
            marks=[
                Guide(1.0, "x"),
                *(_row(i, *column[name], colors[name]) for i, name in enumerate(names)),
            ],
            x=Axis("ratio to the best", scale="log", ticks="ratio"),
            y=rows,
        )
        for statistic, column in ratios.items()
    ]
    size = (5.0 + 2.25 * len(panels), 1.7 + 0.27 * len(names))
    return FigureSpec(panels, size, title, shared_y=True)


def _row(row: int, ratio: float, standard_error: float, color: str) -> Line:
    """One schedule's dot and its error bar."""
    return Line(
        np.array([ratio]),
        np.array([float(row)]),
        color=color,
        marker="o",
        style="",
        size=5.0,
        x_error=np.array([standard_error]),
    )


def report_figure(
    values: Mapping[tuple[str, int], Mapping[str, float]],
    names: Sequence[str],
    what: str,
    title: str,
    guide: Guide,
) -> FigureSpec:
    """One panel per sampler with one line per schedule: a number against the number of steps.

    **Arguments:**

    - `values`: of the number, by (sampler, number of steps) and schedule.
    - `names`: the schedules in the order of the legend.
    - `what`: the number's name, for the vertical axis.
    - `title`: of the figure.
    - `guide`: a line across every panel.
    """
    samplers = list(dict.fromkeys(sampler for sampler, _ in values))
    panels = []
    for sampler in samplers:
        counts = sorted(count for name, count in values if name == sampler)
        columns = [values[sampler, count] for count in counts]
        lines = [
            _series(i, name, counts, [column[name] for column in columns])
            for i, name in enumerate(names)
        ]
        panels.append(
            Panel(
                title=sampler,
                marks=[*lines, guide],
                x=Axis(
                    "number of steps",
                    scale="log",
                    ticks={float(count): str(count) for count in counts},
                ),
                y=Axis(what, scale="log"),
            )
        )
    size = (4.2 * len(samplers) + 1.8, 4.0)
    return FigureSpec(panels, size, title, shared_y=True, legend=True)


def _series(i: int, name: str, counts: Sequence[int], values: Sequence[float]) -> Line:
    """The i-th schedule's line, in a colour, marker and style of its own."""
    turn, place = divmod(i, len(SERIES))
    color, marker = SERIES[place]
    return Line(
        np.array(counts, np.float64),
        positive(np.array(values)),
        label=name,
        color=color,
        marker=marker,
        style=LINE_STYLES[turn % len(LINE_STYLES)],
    )


def figure_title(statistics: Sequence[str], *, to_data: bool) -> str:
    """What the statistics are distances to: the reference solution, and the data for sliced W2."""
    if not to_data or "sliced_w2" not in statistics:
        return "Distance to the reference solution"
    if len(statistics) == 1:
        return "Sliced W2 to the data"
    return "Distance to the reference solution, sliced W2 to the data"
