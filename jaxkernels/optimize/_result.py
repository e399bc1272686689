"""The answer of an optimisation, with its evidence."""

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np

from .._plot import FigureSpec, render
from .._precision import in_float64
from .._tables import describe, estimate, label
from .._types import Numbers
from ..comparison import Comparison
from ..distributions import Compression, Gaussian
from ..errors import Evaluation
from ..exports import Export, export
from ..processes import PROCESSES, AbstractProcess, to_config
from ..samplers import AbstractSampler, sampler_name
from ..schedules import Schedule
from ._figure import optimized_figure

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
    """Of `best_baseline` on the Gaussian, to compare with `evaluation`."""
    converged: bool
    """Whether the best start met the tolerance, on the Gaussian; `reason` says what happened otherwise."""
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
    """Whether it was compared with the named grids on a network. Without one, also on a mixture: False."""
    criterion: str
    """What the baselines are compared with this schedule by: "objective"; or, if candidates were run on a network or a
    mixture, the statistic that chose. For "balanced" that is "geometric_mean", or "sliced_w2" if any is stochastic."""
    chosen: str
    """Which candidate it is: "optimised", or, after a comparison on the network, another one's name."""
    comparison: Comparison | None
    """Errors of all candidates on the network or the mixture, from noises that did not decide the choice."""
    candidates: dict[str, Schedule]
    """The schedules of `comparison`, by name; empty without one."""
    nfe: int
    """Of the network or the mixture, one point each: for the choice, its evidence and the refinement, where a gradient
    counts as four. A record, given or of a mixture, is not in it: see `jaxkernels.record` for what that costs."""
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
    def ratios(self) -> dict[str, float]:
        """`criterion` of every baseline over that of this schedule."""
        if self.comparison is None:
            return {name: value / self.objective for name, value in self.baselines.items()}
        values = self.comparison.statistic(self.criterion)
        return {name: values[name] / values[self.chosen] for name in self.baselines}

    @property
    def best_baseline(self) -> str:
        """Name of the baseline with the lowest ratio."""
        return min(self.ratios, key=self.ratios.__getitem__)

    @property
    def sampler_name(self) -> str:
        """Name of the sampler as `optimize_schedule` takes it, or the class of one of the user's own."""
        return sampler_name(self.sampler)

    def figure(self) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        1. the noise levels of the schedule and of the baselines, with their errors relative to it: the
           objective, or the criterion where candidates were run on a network or a mixture
        2. the W2 error that each step alone causes on the Gaussian, for it and the best baseline
        3. the eigenvalues of the data covariance and the squared W2 error per mode, for both
        4. the stochasticity h/g of each step, if any is above 0

        **Returns:** panels with their marks, labels and numbers.
        """
        name = self.best_baseline
        what = "W2 to the data distribution"
        values = (float(self.evaluation.w2), float(self.baseline_evaluation.w2))
        if self.comparison is not None:
            column = self.comparison.statistic(self.criterion)
            what = f"{label(self.criterion)} error"
            values = (column[self.chosen], column[name])
        title = (
            f"{type(self.sampler).__name__}, {self.schedule.num_steps} steps, "
            f"{type(self.process).__name__}: "
            f"{what} {values[0]:.3g} optimised, {values[1]:.3g} {name}"
        )
        return optimized_figure(
            self.schedule,
            self.evaluation,
            self.baseline_schedules,
            self.baseline_evaluation,
            self.ratios,
            self.target,
            self.process,
            title,
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw noise levels, the error of each step and the error per mode beside the best baseline's.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default it is not saved.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for another suffix or a file that cannot be written; ImportError without
        matplotlib.
        """
        return render(self.figure(), path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the schedule as versioned JSON, with its process, sampler and evidence as metadata.

        `process.from_config` rebuilds a built-in process from it; one of the user's own is only named.
        """
        kind = type(self.process)
        built_in = kind in PROCESSES.values()
        sigmas = np.asarray(in_float64(Schedule.sigmas)(self.schedule, self.process))
        self.schedule.save(
            path,
            sampler=self.sampler_name,
            process=to_config(self.process) if built_in else {"type": kind.__name__},
            sigmas=[_json_number(v) for v in sigmas],
            objective=_json_number(self.objective),
            baselines={name: _json_number(value) for name, value in self.baselines.items()},
            w2=_json_number(float(self.evaluation.w2)),
            converged=self.converged,
            trusted=self.trusted,
            verified=self.verified,
            warnings=list(self.warnings),
            chosen=self.chosen,
            criterion=self.criterion,
            ratios={name: _json_number(value) for name, value in self.ratios.items()},
        )

    def to_diffusers(
        self, *, scheduler: str | None = None, end: str | None = None, **options: object
    ) -> Export:
        """The schedule for a scheduler of diffusers, as `Export`: `.text` sets a pipeline's scheduler and runs it.

        **Arguments:** `scheduler` is a name in `jaxkernels.export.SCHEDULERS`, by default the one that does what
        this sampler does; `end` says what becomes of a last level above 0: "keep" it (the default where the
        scheduler can stop there), "replace" it by 0 (the default elsewhere), or "append" a step to 0; `options` are
        those of the scheduler: `table` (the network's `DiscreteVP`, by default the process or Stable Diffusion's),
        `shift`, `sigma_min`, `sigma_max`, `rho`.

        **Returns:** an `Export`: `.values` the numbers by the scheduler's names, `.text` the code to paste,
        `.warnings` what the scheduler does otherwise than this schedule says, `.remarks` how to use it; printing
        it shows all. `jaxkernels.export` lists what each scheduler does.

        **Raises:** ValueError if the scheduler cannot represent the schedule, or for an option it has not.
        """
        return self._export("diffusers", scheduler=scheduler, end=end, **options)

    def to_k_diffusion(self, *, end: str | None = None) -> Export:
        """The schedule for k-diffusion, as `Export`: `sigmas` (K+1,), and `eta` (K,) if it is stochastic.

        `end` as in `to_diffusers`. **Raises:** ValueError for flow models and infinite levels.
        """
        return self._export("k-diffusion", end=end)

    def to_comfyui(self, *, end: str | None = None) -> Export:
        """The schedule for ComfyUI, as `Export` whose text is the string of a ManualSigmas node.

        One `eta` for all steps can be carried; a warning says so if the schedule needs several. `end` as in
        `to_diffusers`. **Raises:** ValueError for infinite levels.
        """
        return self._export("comfyui", end=end)

    def to_edm(self, *, end: str | None = None) -> Export:
        """The schedule for the sampling loop of NVlabs/edm, as `Export`: `t_steps` (K+1,), `gamma` (K,) if stochastic.

        `end` is "replace" (the default) or "append", see `to_diffusers`. **Raises:** ValueError for flow models and
        infinite levels.
        """
        return self._export("edm", end=end)

    def _export(self, tool: str, **options: object) -> Export:
        return export(self.schedule, self.process, tool, sampler=self.sampler, **options)

    def __repr__(self) -> str:
        name = self.best_baseline
        state = "converged" if self.converged else f"not converged ({self.reason})"
        objective = f"{self.objective:.6g}"
        if self.comparison is None:
            objective += f"; best baseline {name}: {self.ratios[name]:.3g} times that"
        entries = [
            ("objective", objective),
            ("times", _array_text(self.schedule.times, 5)),
        ]
        if self.schedule.is_stochastic:
            entries.append(("stochasticity", _array_text(self.schedule.stochasticity, 3)))
        if self.comparison is not None:
            ratio = estimate(*self.comparison.ratio(self.criterion, self.chosen, name))
            where = "network" if self.verified else "mixture"
            error = "sliced W2" if self.criterion == "sliced_w2" else "error"
            entries.append(
                (
                    f"on the {where}",
                    f"{self.chosen}: {ratio} of the {error} of {name}, the best baseline "
                    f"(NFE {self.nfe:.2g})",
                )
            )
        entries += [("warning", text) for text in self.warnings]
        trust = f"trusted={self.trusted}, verified={self.verified}, {self.seconds:.2f} s"
        title = f"{type(self.sampler).__name__}, {self.schedule.num_steps} steps, {state}"
        return describe(f"OptimizedSchedule: {title}", [*entries, ("evidence", trust)])


def _array_text(values: Numbers, precision: int) -> str:
    """The numbers of an array on one line."""
    return np.array2string(np.asarray(values), precision=precision, max_line_width=10**6)


def _json_number(value: float) -> float | None:
    """`value`, or None for what JSON has no number for: a level or an objective can be infinite."""
    return float(value) if np.isfinite(value) else None
