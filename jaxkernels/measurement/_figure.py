"""The figures of measured denoisers, as plain data."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from .._plot import (
    BLACK,
    BLUE,
    ORANGE,
    Axis,
    Bars,
    FigureSpec,
    Guide,
    Line,
    Panel,
    noise_limits,
    positive,
)

# A residual this small beside the error of the best affine denoiser is the rounding of float64.
_ROUNDING = 1e-20


def measurement_figure(
    sigmas: np.ndarray,
    statistics: Mapping[str, np.ndarray],
    *,
    affine_error: np.ndarray | None,
    affine_lipschitz: np.ndarray | None,
) -> FigureSpec:
    """What was measured of a denoiser over noise levels: up to three panels, those that are known.

    1. its denoising error, that of the best affine denoiser, and what no affine function fits
    2. the violation of the martingale identity as a share of the increment, with bars of two
       standard errors
    3. the Lipschitz constants found, and that of the best affine denoiser

    **Arguments:**

    - `sigmas`: (n,) noise levels, decreasing, an infinite one allowed.
    - `statistics`: by name; "error", "standard_error" and "residual" (n,), "violation",
      "violation_standard_error" and "increments" (n, n), "lipschitz" (n, points); any of them
      may be missing.
    - `affine_error`, `affine_lipschitz`: (n,) of the best affine denoiser, None if the
      data are unknown.
    """
    panels = [_denoising(sigmas, statistics, affine_error)]
    if "violation" in statistics and sigmas.size > 1:
        panels.append(_martingale(sigmas, statistics))
    if "lipschitz" in statistics:
        panels.append(_lipschitz(sigmas, statistics["lipschitz"], affine_lipschitz))
    return FigureSpec(panels, (4.6 * len(panels) + 0.4, 4.0))


def _noise_axis(sigmas: np.ndarray) -> Axis:
    """A logarithmic axis from noise to data, with a margin for an infinite level at the left."""
    high, low = noise_limits(sigmas)
    at_edge = "" if np.all(np.isfinite(sigmas)) else "; infinite at the edge"
    return Axis(
        f"noise level sigma (noise → data{at_edge})",
        scale="log",
        limits=(high * (high / low) ** 0.02, low),
    )


def _positions(sigmas: np.ndarray) -> np.ndarray:
    """Noise levels, an infinite one at the edge of the axis."""
    return np.where(np.isfinite(sigmas), sigmas, noise_limits(sigmas)[0])


def _denoising(
    sigmas: np.ndarray, statistics: Mapping[str, np.ndarray], affine_error: np.ndarray | None
) -> Panel:
    """The denoising error beside its bound from above."""
    x = _positions(sigmas)
    marks = []
    floor = 0.0
    if affine_error is not None:
        floor = _ROUNDING * float(np.max(affine_error))
        marks.append(Line(x, positive(affine_error), label="best affine denoiser", color=BLACK))
    if "error" in statistics:
        marks.append(
            Line(
                x,
                positive(statistics["error"]),
                label="this denoiser",
                marker="o",
                size=4.0,
                y_error=statistics.get("standard_error"),
            )
        )
    residual = statistics.get("residual", np.zeros_like(sigmas))
    if np.any(residual > floor):
        marks.append(
            Line(
                x,
                positive(np.where(residual > floor, residual, 0.0)),
                label="what no affine function fits",
                color=ORANGE,
                marker="s",
                style="--",
                size=4.0,
            )
        )
    return Panel(
        title="Denoising error",
        marks=marks,
        x=_noise_axis(sigmas),
        y=Axis("mean square, summed over dimensions", scale="log"),
        legend=True,
    )


def _martingale(sigmas: np.ndarray, statistics: Mapping[str, np.ndarray]) -> Panel:
    """The violation of the martingale identity between pairs of noise levels."""
    later = np.arange(1, sigmas.size)
    pairs = (
        ("from the next higher level", later - 1, BLUE, "o", "-"),
        ("from the highest level", np.zeros_like(later), ORANGE, "s", "--"),
    )
    lines = []
    for label, earlier, color, marker, style in pairs:
        size = np.maximum(statistics["increments"][earlier, later], 1e-300)
        lines.append(
            Line(
                _positions(sigmas)[later],
                statistics["violation"][earlier, later] / size,
                label=label,
                color=color,
                marker=marker,
                style=style,
                width=1.0,
                size=4.0,
                y_error=2.0 * statistics["violation_standard_error"][earlier, later] / size,
            )
        )
    return Panel(
        title="Violation of the martingale identity",
        marks=[Guide(0.0, "y"), *lines],
        x=_noise_axis(sigmas),
        # between the highest levels there is hardly an increment to take a share of
        y=Axis("share of the increment; 0 for an exact denoiser", scale="symlog"),
        legend=True,
    )


def _lipschitz(sigmas: np.ndarray, found: np.ndarray, affine_lipschitz: np.ndarray | None) -> Panel:
    """The spectral norm of the denoiser's Jacobian."""
    x = _positions(sigmas)
    marks = [
        Line(
            np.repeat(x, found.shape[1]),
            positive(found.ravel()),
            label="single points",
            marker=".",
            style="",
            size=4.0,
        ),
        Line(x, positive(np.median(found, -1)), label="median"),
    ]
    if affine_lipschitz is not None:
        marks.append(Line(x, positive(affine_lipschitz), label="best affine denoiser", color=BLACK))
    return Panel(
        title="Lipschitz constant",
        marks=marks,
        x=_noise_axis(sigmas),
        y=Axis("spectral norm of dD/dx", scale="log"),
        legend=True,
    )


def sample_change_figure(
    kernel: Float[np.ndarray, "steps steps"],
    measured: Float[np.ndarray, " n"],
    first_order: Float[np.ndarray, " n"],
) -> FigureSpec:
    """What each step contributes to a change of samples, and predicted beside measured changes.

    The share of a step is its row of the kernel, summed, over the sum of all rows: negative where
    it takes back what the others do.
    """
    total = kernel.sum()
    shares = kernel.sum(1) / total if total > 0 else np.zeros(len(kernel))
    steps = np.arange(len(kernel), dtype=float)
    ends = np.array([0.0, max(measured.max(), first_order.max())])
    by_step = Panel(
        title="Mean square change, by step",
        marks=[Guide(0.0, "y"), Bars(steps, shares)],
        x=Axis("step k (noise → data)", ticks="integer"),
        y=Axis("share of the first order"),
    )
    by_sample = Panel(
        title="Change of every sample",
        marks=[
            Line(ends, ends, label="equal", color=BLACK, width=0.8),
            Line(measured, first_order, label="samples", marker=".", style="", size=4.0),
        ],
        x=Axis("measured"),
        y=Axis("first order"),
        legend=True,
    )
    return FigureSpec([by_step, by_sample], (9.6, 4.0))
