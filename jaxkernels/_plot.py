"""Figures as plain data, and the one function that draws them.

A result describes its figure as a `FigureSpec`: panels with marks and axes, in numbers and text.
`render` draws it with matplotlib, which is imported when a figure is drawn, and leaves matplotlib's
global state alone.
"""

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from . import _checks
from ._extras import missing_extra
from ._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS = {".png": "png", ".pdf": "pdf", ".svg": "svg"}

# Colours of Okabe and Ito, told apart by every common kind of colour vision and in grey.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREY = "#8C8C8C"
BLACK = "#000000"
SERIES = (
    (BLUE, "o"),
    (ORANGE, "s"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#E69F00", "D"),
    ("#56B4E9", "P"),
)
LINE_STYLES = ("-", "--", ":")

# Leading digits of the ratios that are labelled: of these sets the finest one with few
# enough labels.
_RATIOS = ((1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0,))
_MOST_TICKS = 7

_DOTS_PER_INCH = 150


@dataclasses.dataclass(frozen=True)
class Line:
    """Points joined by a line, with error bars if they have standard errors; NaN leaves a gap."""

    x: np.ndarray
    y: np.ndarray
    label: str | None = None
    color: str = BLUE
    marker: str = ""
    """A marker of matplotlib; "" for none."""
    style: str = "-"
    """A line style of matplotlib; "" for separate points."""
    width: float = 1.2
    size: float = 4.5
    filled: bool = True
    alpha: float = 1.0
    x_error: np.ndarray | None = None
    y_error: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Bars:
    """Upright bars."""

    x: np.ndarray
    height: np.ndarray
    color: str = BLUE


@dataclasses.dataclass(frozen=True)
class Guide:
    """A thin grey line across the panel at one value of an axis."""

    at: float
    axis: Literal["x", "y"]
    style: str = "-"
    in_view: bool = True
    """Whether the panel's limits are widened to show it."""


Mark: TypeAlias = Line | Bars | Guide


@dataclasses.dataclass(frozen=True)
class Axis:
    """Label, scale and ticks of one axis."""

    label: str = ""
    scale: Literal["linear", "log", "symlog"] = "linear"
    linear_below: float = 0.1
    """Where a "symlog" axis turns from logarithmic to linear."""
    limits: tuple[float, float] | None = None
    """From left to right or bottom to top; None to fit the marks."""
    ticks: Literal["auto", "integer", "ratio"] | dict[float, str] = "auto"
    """"integer" for integers, "ratio" for plain numbers on a log axis, or labels by position."""
    grid: bool = True

    @classmethod
    def of_rows(cls, labels: Sequence[str]) -> "Axis":
        """An axis with one labelled row per entry, the first on top."""
        return cls(
            limits=(len(labels) - 0.5, -0.5),
            ticks={float(row): label for row, label in enumerate(labels)},
            grid=False,
        )


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes with its marks."""

    title: str
    marks: Sequence[Mark]
    x: Axis
    y: Axis = Axis()
    legend: bool = False
    width: float = 1.0
    """Relative to the other panels of the figure."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """The marks that are lines."""
        return tuple(mark for mark in self.marks if isinstance(mark, Line))


@dataclasses.dataclass(frozen=True)
class FigureSpec:
    """Panels side by side, as plain data."""

    panels: Sequence[Panel]
    size: tuple[float, float]
    """Width and height in inches."""
    title: str = ""
    shared_y: bool = False
    """Whether all panels have the vertical axis of the first one."""
    legend: bool = False
    """Whether one legend beside the panels, that of the first one, serves all."""


def positive(values: np.ndarray) -> np.ndarray:
    """Values with NaN where a logarithmic axis has no place for them."""
    return np.where(values > 0, values, np.nan)


def noise_limits(sigmas: np.ndarray) -> tuple[float, float]:
    """The ends of a logarithmic axis of noise levels, the larger one first, with a margin.

    Only levels that are positive and finite count; others are drawn at the ends.
    """
    inside = sigmas[(sigmas > 0) & np.isfinite(sigmas)]
    low = float(inside.min()) if inside.size else 1.0
    high = float(inside.max()) if inside.size else 1.0
    margin = (high / low) ** 0.06 if high > low else 2.0
    return high * margin, low / margin


def check_path(path: str | os.PathLike[str]) -> str:
    """The format that the suffix of `path` stands for; ValueError for all but png, pdf and svg."""
    return _checks.lookup(f"suffix of {os.fspath(path)}", Path(path).suffix.lower(), FORMATS)


def render(spec: FigureSpec, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Draw a figure, and save it to `path` (.png, .pdf or .svg) if one is given.

    The file appears whole or not at all. Raises ValueError if the suffix is another or the file
    cannot be written, ImportError without matplotlib.
    """
    file_format = None if path is None else check_path(path)
    figure = _empty_figure(spec.size)
    row = figure.subplots(
        1,
        len(spec.panels),
        sharey=spec.shared_y,
        squeeze=False,
        width_ratios=[panel.width for panel in spec.panels],
    )[0]
    for axes, panel in zip(row, spec.panels, strict=True):
        for mark in panel.marks:
            _draw(axes, mark)
    for i, (axes, panel) in enumerate(zip(row, spec.panels, strict=True)):
        _decorate(axes, panel, own_y=i == 0 or not spec.shared_y)
    if spec.legend:
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    if spec.title:
        figure.suptitle(spec.title, fontsize=11)
    if path is not None and file_format is not None:
        write_atomically(path, _encode(figure, file_format))
    return figure


def _empty_figure(size: tuple[float, float]) -> "Figure":
    """A figure that belongs to no global list, is drawn by Agg, and that notebooks show."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("plotting", "matplotlib") from None

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            return _encode(self, "png")

    figure = Shown(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _encode(figure: "Figure", file_format: str) -> bytes:
    """The content of an image file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, dpi=_DOTS_PER_INCH)
    return buffer.getvalue()


def _draw(axes: "Axes", mark: Mark) -> None:
    """Add a mark that takes part in the panel's limits; other guides wait until they are known."""
    if isinstance(mark, Bars):
        axes.bar(mark.x, mark.height, color=mark.color, width=0.6)
    elif isinstance(mark, Line):
        _draw_line(axes, mark)
    elif mark.in_view:
        _draw_guide(axes, mark)


def _draw_line(axes: "Axes", line: Line) -> None:
    options: dict[str, Any] = {
        "label": line.label,
        "color": line.color,
        "marker": line.marker or "None",
        "linestyle": line.style or "None",
        "linewidth": line.width,
        "markersize": line.size,
        "alpha": line.alpha,
    }
    if not line.filled:
        options["markerfacecolor"] = "white"
    if line.x_error is None and line.y_error is None:
        axes.plot(line.x, line.y, **options)
    else:
        axes.errorbar(line.x, line.y, xerr=line.x_error, yerr=line.y_error, **options)


def _draw_guide(axes: "Axes", guide: Guide) -> None:
    draw = axes.axvline if guide.axis == "x" else axes.axhline
    draw(guide.at, color="0.6", linewidth=0.8, linestyle=guide.style)


def _decorate(axes: "Axes", panel: Panel, *, own_y: bool) -> None:
    """Scales, limits, ticks, labels and legend of a panel whose marks are drawn."""
    _scale(axes, "x", panel.x)
    if own_y:
        _scale(axes, "y", panel.y)
    limits = (axes.get_xlim(), axes.get_ylim())
    for mark in panel.marks:
        if isinstance(mark, Guide) and not mark.in_view:
            _draw_guide(axes, mark)
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x.label, fontsize=9)
    if own_y:
        axes.set_ylabel(panel.y.label, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    _set_ticks(axes, "x", panel.x)
    if own_y:
        _set_ticks(axes, "y", panel.y)
    for axis, drawn in ((panel.x, axes.xaxis), (panel.y, axes.yaxis)):
        if axis.grid:
            drawn.grid(True, which="major", color="0.9", linewidth=0.6)
    if panel.legend:
        axes.legend(fontsize=8, frameon=False)


def _scale(axes: "Axes", name: Literal["x", "y"], axis: Axis) -> None:
    """Set the scale and, if they are given, the limits of one axis."""
    set_scale = axes.set_xscale if name == "x" else axes.set_yscale
    set_limits = axes.set_xlim if name == "x" else axes.set_ylim
    if axis.scale == "symlog":
        set_scale(axis.scale, linthresh=axis.linear_below)
    elif axis.scale == "log":
        # error bars may reach below 0
        set_scale(axis.scale, nonpositive="clip")
    if axis.limits is not None:
        set_limits(*axis.limits)


def _set_ticks(axes: "Axes", name: Literal["x", "y"], axis: Axis) -> None:
    """Place the ticks of one axis whose limits are known."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    drawn = axes.xaxis if name == "x" else axes.yaxis
    if axis.ticks == "auto":
        return
    if axis.ticks == "integer":
        drawn.set_major_locator(MaxNLocator(integer=True))
        return
    ticks = axis.ticks
    if not isinstance(ticks, dict):
        limits = axes.get_xlim() if name == "x" else axes.get_ylim()
        ticks = {float(value): f"{value:g}" for value in _ratio_ticks(*limits)}
    drawn.set_ticks(list(ticks), list(ticks.values()))
    drawn.set_minor_locator(NullLocator())


def _ratio_ticks(low: float, high: float) -> np.ndarray:
    """Plain numbers between two limits, at most seven unless they are powers of ten."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)) - 1, np.ceil(np.log10(high)) + 1)
    ticks = powers
    for ratios in _RATIOS:
        ticks = np.unique(np.round(np.multiply.outer(powers, ratios), 12))
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if ticks.size <= _MOST_TICKS:
            break
    return ticks
