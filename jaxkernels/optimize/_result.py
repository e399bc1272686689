"""The answer of an optimisation, with its evidence."""

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np

from .._numerics import in_float64
from ..compare import Comparison
from ..evaluate import Evaluation
from ..process import PROCESSES, AbstractProcess, to_config
from ..samplers import SAMPLERS, AbstractSampler
from ..schedules import Schedule
from ..target import Compression, Gaussian

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class OptimizedSchedule:
    """The best schedule found, and why to believe it."""

    schedule: Schedule
    objective: float
    """Its objective, on the whole spectrum (not the compressed one)."""
    evaluation: Evaluation
    baselines: dict[str, float]
    """The same objective for every named grid (and every start that was given)."""
    baseline_schedules: dict[str, Schedule]
    baseline_evaluation: Evaluation
    """Of `best_baseline`, to compare with `evaluation`."""
    converged: bool
    """Whether the best start met the tolerance; `reason` says what happened otherwise."""
    reason: str
    gradient_norm: float
    """Largest entry of the objective's relative gradient in the unconstrained variables."""
    smallest_curvature: float
    """Smallest eigenvalue of the relative Hessian there; > 0 certifies a strict local minimum."""
    optima: dict[str, float]
    """The objective that each start reached (on the compressed target, if it was compressed)."""
    history: np.ndarray
    """Objective per iteration and start, (iterations + 1, starts)."""
    trusted: bool
    """False if the schedule relies on what holds for the Gaussian model only; see `warnings`."""
    warnings: tuple[str, ...]
    verified: bool
    """Whether it was compared with the named grids on a network. Without a network: False."""
    chosen: str
    """Which candidate it is: "optimised", or, after a comparison on the network, another one's name."""
    comparison: Comparison | None
    """Errors of all candidates on the network, from noises that did not decide the choice."""
    compression: Compression | None
    compression_error: float
    """Relative difference of the objective between the compressed and the whole spectrum."""
    seconds: float
    """Wall time of the whole call, compilation included."""
    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler

    @property
    def num_local_optima(self) -> int:
        """How many distinct objectives (to 1e-6 relative) the starts reached."""
        values = np.sort([v for v in self.optima.values() if np.isfinite(v)])
        return 1 + int(np.sum(np.diff(values) > 1e-6 * np.abs(values[:-1])))

    @property
    def best_baseline(self) -> str:
        """Name of the baseline with the lowest objective."""
        return min(self.baselines, key=self.baselines.__getitem__)

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Grids in log sigma, error per step, and error per mode over the spectrum; see `jaxkernels.plot`.

        Needs matplotlib. Saved to `path` if given.
        """
        from ..plot import plot_optimized

        return plot_optimized(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the schedule as versioned JSON, with its process, sampler and evidence as metadata.

        `process.from_config` rebuilds a built-in process from it; one of the user's own is only named.
        """
        kind = type(self.process)
        built_in = kind in PROCESSES.values()
        names = {cls: name for name, cls in SAMPLERS.items()}
        sigmas = np.asarray(in_float64(Schedule.sigmas)(self.schedule, self.process))
        self.schedule.save(
            path,
            sampler=names.get(type(self.sampler), type(self.sampler).__name__),
            process=to_config(self.process) if built_in else {"type": kind.__name__},
            sigmas=[_json_number(v) for v in sigmas],
            objective=_json_number(self.objective),
            baselines={name: _json_number(value) for name, value in self.baselines.items()},
            w2=_json_number(float(self.evaluation.w2)),
            converged=self.converged,
            trusted=self.trusted,
            verified=self.verified,
            warnings=list(self.warnings),
        )

    def __repr__(self) -> str:
        name = self.best_baseline
        ratio = self.baselines[name] / self.objective if self.objective else float("nan")
        state = "converged" if self.converged else f"not converged ({self.reason})"
        lines = [
            f"OptimizedSchedule({type(self.sampler).__name__}, {self.schedule.num_steps} steps, {state}",
            f"  objective {self.objective:.6g}; best baseline {name}: {ratio:.3g} times that",
            f"  times {np.array2string(np.asarray(self.schedule.times), precision=5, max_line_width=88)}",
        ]
        if np.any(np.asarray(self.schedule.stochasticity) > 0):
            alpha = np.array2string(np.asarray(self.schedule.stochasticity), precision=3)
            lines.append(f"  stochasticity {alpha}")
        if self.comparison is not None:
            errors = self.comparison.statistic("log_mean")
            grid = min(self.baselines, key=errors.__getitem__)
            ratio, spread = self.comparison.ratio("log_mean", self.chosen, grid)
            lines.append(
                f"  on the network: {self.chosen}, {ratio:.3f} ± {spread:.3f} of the error of {grid}, the best grid"
            )
        lines += [f"  warning: {text}" for text in self.warnings]
        lines.append(f"  trusted={self.trusted}, verified={self.verified}, {self.seconds:.2f} s)")
        return "\n".join(lines)


def _json_number(value: float) -> float | None:
    """`value`, or None for what JSON has no number for: a level or an objective can be infinite."""
    return float(value) if np.isfinite(value) else None
