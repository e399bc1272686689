"""The answer of an optimisation, with its evidence."""

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np

from .._precision import in_float64
from ..comparison import Comparison
from ..distributions import Compression, Gaussian
from ..errors import Evaluation
from ..exports import Export, export
from ..processes import PROCESSES, AbstractProcess, to_config
from ..samplers import AbstractSampler, sampler_name
from ..schedules import Schedule

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

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Grids in log sigma, error per step, and error per mode over the spectrum; see `jaxkernels.plot`.

        Needs matplotlib. Saved to `path` if given.
        """
        from .._figures import plot_optimized

        return plot_optimized(self, path)

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
        against = (
            ""
            if self.comparison is not None
            else f"; best baseline {name}: {self.ratios[name]:.3g} times that"
        )
        lines = [
            f"OptimizedSchedule({type(self.sampler).__name__}, {self.schedule.num_steps} steps, {state}",
            f"  objective {self.objective:.6g}{against}",
            f"  times {np.array2string(np.asarray(self.schedule.times), precision=5, max_line_width=88)}",
        ]
        if np.any(np.asarray(self.schedule.stochasticity) > 0):
            alpha = np.array2string(np.asarray(self.schedule.stochasticity), precision=3)
            lines.append(f"  stochasticity {alpha}")
        if self.comparison is not None:
            kind = self.criterion
            ratio, spread = self.comparison.ratio(kind, self.chosen, name)
            where, what = (
                "network" if self.verified else "mixture",
                "sliced W2" if kind == "sliced_w2" else "error",
            )
            lines.append(
                f"  on the {where}: {self.chosen}, {ratio:.3f} ± {spread:.3f} of the {what} of {name}, the best grid "
                f"({self.nfe:.2g} evaluations)"
            )
        lines += [f"  warning: {text}" for text in self.warnings]
        lines.append(f"  trusted={self.trusted}, verified={self.verified}, {self.seconds:.2f} s)")
        return "\n".join(lines)


def _json_number(value: float) -> float | None:
    """`value`, or None for what JSON has no number for: a level or an objective can be infinite."""
    return float(value) if np.isfinite(value) else None
