"""The result of an optimisation, with its evidence."""

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from .. import _checks, exports
from .._objective import AbstractBoundObjective
from .._plot import FigureSpec, render
from .._precision import in_float64
from .._tables import describe, estimate, label
from .._types import Numbers
from ..comparison import BALANCED, Comparison
from ..distributions import Compression, Gaussian
from ..errors import Evaluation, evaluate_schedule, local_error_config
from ..processes import AbstractProcess, describe_process
from ..samplers import AbstractSampler, sampler_name
from ..schedules import Schedule
from ._budget import Plan
from ._candidates import OPTIMISED, Candidate
from ._figure import optimized_figure
from ._selection import Selected
from ._solve import Solution
from ._timesteps import on_integer_timesteps, rounding_makes_equal

# relative, of an objective in float64
_ROUNDING = 1e-13

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class OptimizedSchedule:
    """Hold the best schedule found, with the evidence for it.

    Made by `optimize_schedule`.

    **Example:**

    ```python
    >>> target = jk.Gaussian(np.zeros(3), [1.0, 0.1, 0.01])
    >>> result = jk.optimize_schedule(target, jk.VP(), "ddim", 8, t_min=1e-3)
    >>> assert result.converged and result.selected == "optimised"
    ```
    """

    schedule: Schedule
    """What was found: K steps from t_max to t_min."""
    objective: float
    """Its objective, on the full spectrum."""
    unchangeable: dict[str, float]
    """What no schedule can change of the objective: its "initialization" and "truncation"."""
    baselines: dict[str, float]
    """The objective of every baseline schedule, and of every start that was given."""
    baseline_schedules: dict[str, Schedule]
    """These schedules, by the same names."""
    solution: Solution
    """Where the solver ended from every start, on the compressed spectrum."""
    starts: tuple[str, ...]
    """The starts, in the order of the solution's."""
    selection: Selected | None
    """The comparison on a network or a mixture that selected the schedule, if there was one."""
    verified: bool
    """Whether it was compared with the baselines on a network. On a mixture or a model: False."""
    trusted: bool
    """False if the schedule relies on what holds for the Gaussian model only; see `warnings`."""
    warnings: tuple[str, ...]
    """Why the schedule may not hold for the data; empty if nothing was found."""
    reduced_objective: AbstractBoundObjective
    """The objective as a function of a schedule, on the compressed spectrum."""
    compression: Compression | None
    """The quadrature nodes that the solver minimised on; None if the spectrum is full."""
    compression_error: float
    """Relative difference of the objective between the compressed and the full spectrum."""
    nfe_by_stage: dict[str, int]
    """NFE that were spent: "samples" for the covariance, "record", "selection", "fine-tuning",
    "evidence". A record that was given had its price before."""
    plan: Plan | None
    """How a budget was divided; None without one."""
    seconds: float
    """Wall time of the whole call, compilation included."""
    target: Gaussian
    """The Gaussian with the mean and covariance of the data."""
    process: AbstractProcess
    """The forward process."""
    sampler: AbstractSampler
    """The sampler that the schedule is for."""
    evaluation_options: dict[str, Any]
    """How `evaluation` evaluates: initialization and score error of the objective."""

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """The schedule's exact error on the Gaussian."""
        return self._evaluate(self.schedule)

    @functools.cached_property
    def baseline_evaluation(self) -> Evaluation:
        """The exact error of the best baseline on the Gaussian."""
        return self._evaluate(self.baseline_schedules[self.best_baseline])

    @property
    def converged(self) -> bool:
        """Whether the best start met the solver's tolerance; if not, see `reason`."""
        return self.solution.converged

    @property
    def reason(self) -> str:
        """Why the solver stopped."""
        return self.solution.reason

    @property
    def gradient_norm(self) -> float:
        """Largest entry of the objective's relative gradient in the unconstrained variables."""
        return self.solution.gradient_norm

    @property
    def smallest_curvature(self) -> float:
        """Smallest eigenvalue of the relative Hessian; > 0 certifies a strict local minimum."""
        return self.solution.smallest_curvature

    @property
    def history(self) -> Float[np.ndarray, "iterations starts"]:
        """Objective per iteration and start."""
        return self.solution.history

    @property
    def optima(self) -> dict[str, float]:
        """The objective that each start reached, on the compressed spectrum."""
        return dict(zip(self.starts, self.solution.values.tolist(), strict=True))

    @property
    def num_local_optima(self) -> int:
        """How many distinct objectives (to 1e-6 relative) the starts reached.

        One that ends short of an optimum counts too, as its objective is one of `optima`.
        """
        values = np.sort([v for v in self.optima.values() if np.isfinite(v)])
        return 1 + int(np.sum(np.diff(values) > 1e-6 * np.abs(values[:-1])))

    @property
    def selected(self) -> str:
        """Label of the candidate that was selected; "optimised" without a selection."""
        return OPTIMISED if self.selection is None else self.selection.candidate.label

    @property
    def comparison(self) -> Comparison | None:
        """Errors of all candidates on the network or the mixture, on noise that did not select."""
        return None if self.selection is None else self.selection.comparison

    @property
    def candidates(self) -> dict[str, Candidate]:
        """The candidates of `comparison` by label; empty without one."""
        found = () if self.selection is None else self.selection.candidates
        return {candidate.label: candidate for candidate in found}

    @property
    def nfe(self) -> int:
        """NFE that were spent in all; see `nfe_by_stage`."""
        return sum(self.nfe_by_stage.values())

    @property
    def criterion(self) -> str:
        """What `ratios` compares: "objective", or a statistic of `comparison`.

        For the criterion "balanced" that is "geometric_mean", or "sliced_w2" if a schedule is
        stochastic.
        """
        if self.selection is None:
            return "objective"
        if self.selection.criterion == BALANCED:
            return self.selection.comparison.ranking_statistic
        return self.selection.criterion

    @property
    def ratios(self) -> dict[str, float]:
        """`criterion` of every baseline divided by that of this schedule.

        Of an objective the part that the steps cause: without `unchangeable`.
        """
        if self.comparison is None:
            own = self.of_the_steps(self.objective)
            return {name: self.of_the_steps(value) / own for name, value in self.baselines.items()}
        values = self.comparison.statistic(self.criterion)
        return {name: values[name] / values[self.selected] for name in self.baselines}

    def of_the_steps(self, objective: float) -> float:
        """Compute what the steps cause of an objective.

        **Arguments:**

        - `objective`: that of this schedule or of a baseline.

        **Returns:** the objective without `unchangeable`, at least its rounding.
        """
        return max(objective - sum(self.unchangeable.values()), _ROUNDING * abs(objective))

    @property
    def best_baseline(self) -> str:
        """Name of the baseline with the lowest ratio."""
        return min(self.ratios, key=self.ratios.__getitem__)

    @property
    def sampler_name(self) -> str:
        """Name of the sampler, as `optimize_schedule` takes it; the class of a user-defined one."""
        return sampler_name(self.sampler)

    def figure(self) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        1. the noise levels of the schedule and of the baselines, with their errors relative to it:
           the objective, or the criterion where candidates were run on a network or a mixture
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
            values = (column[self.selected], column[name])
        title = (
            f"{type(self.sampler).__name__}, {_checks.counted(self.schedule.num_steps, 'step')}, "
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
        """Draw noise levels, errors per step and errors per mode beside the best baseline's.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default
          it is not saved.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for another suffix or a file that cannot be written; ImportError
        without matplotlib.
        """
        return render(self.figure(), path)

    def to_diffusers(self, pipe: Any, **options: Any) -> exports.Export:
        """Give a pipeline of diffusers a scheduler that runs this schedule, see `exports.bind`.

        The next call of the pipeline runs it: pass num_inference_steps, the number of steps. Where
        its scheduler takes integer timesteps, two of which the nearest ones would make equal, those
        with the smallest objective are taken, see `optimize.on_integer_timesteps`; of a schedule
        that was selected on a network or a mixture, the nearest distinct ones.

        **Arguments:**

        - `pipe`: the pipeline, whose `scheduler` is replaced.
        - `options`: as for `exports.bind`, such as `scheduler="dpm_multistep"`.

        **Returns:** the `Export`; its warnings say where the pipeline departs from the schedule.

        **Raises:** ValueError for an object without a scheduler of diffusers, or a schedule that it
        cannot take.

        **Example:**

        ```python
        >>> result.to_diffusers(pipe)  # doctest: +SKIP
        >>> image = pipe("a cat", num_inference_steps=8).images[0]  # doctest: +SKIP
        ```
        """
        schedule = self.schedule
        if self.selection is None and rounding_makes_equal(schedule, self.process):
            setting = (schedule, self.process, "diffusers")
            if exports.export(*setting, sampler=self.sampler, **options).takes_integers:
                schedule = on_integer_timesteps(schedule, self.process, self.reduced_objective)
        return exports.bind(pipe, schedule, self.process, sampler=self.sampler, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the schedule as versioned JSON, with its process, sampler and evidence as metadata.

        `processes.from_config` rebuilds a built-in process from it; a user-defined one
        is only named.

        **Arguments:**

        - `path`: a file, which appears whole or not at all.

        **Raises:** ValueError, naming the path, if it cannot be written.
        """
        sigmas = np.asarray(in_float64(Schedule.sigmas)(self.schedule, self.process))
        self.schedule.save(
            path,
            sampler=self.sampler_name,
            process=describe_process(self.process),
            initialization=self.evaluation_options["initialization"],
            sigmas=[_json_number(v) for v in sigmas],
            objective=_json_number(self.objective),
            local_error=self._saved_objective(),
            unchangeable={n: _json_number(value) for n, value in self.unchangeable.items()},
            baselines={name: _json_number(value) for name, value in self.baselines.items()},
            w2=_json_number(float(self.evaluation.w2)),
            converged=self.converged,
            trusted=self.trusted,
            verified=self.verified,
            warnings=list(self.warnings),
            selected=self.selected,
            criterion=self.criterion,
            ratios={name: _json_number(value) for name, value in self.ratios.items()},
        )

    def _saved_objective(self) -> dict[str, Any] | None:
        """What `jaxkernels export` needs to select integer timesteps; None after a selection."""
        return None if self.selection else local_error_config(self.reduced_objective)

    def __repr__(self) -> str:
        state = "converged" if self.converged else f"not converged ({self.reason})"
        entries = [
            ("objective", f"{self.objective:.6g}{self._against()}"),
            ("times", _array_text(self.schedule.times, 5)),
        ]
        if self.schedule.is_stochastic:
            entries.append(("stochasticity", _array_text(self.schedule.stochasticity, 3)))
        if self.selection is not None:
            where = "network" if self.verified else "mixture"
            if self.selection.predicted:
                where = "model of the network"
            comparison = self.selection.comparison
            entries.append((f"on the {where}", self._evidence(comparison)))
            conditions = comparison.describe_conditions(self.selected, self.best_baseline)
            if conditions and self.selected != self.best_baseline:
                entries.append((f"{comparison.num_conditions} conditions", conditions))
        if self.nfe:
            parts = [f"{name} {nfe:,}" for name, nfe in self.nfe_by_stage.items() if nfe]
            entries.append(("NFE", f"{self.nfe:,}: {', '.join(parts)}"))
        if self.plan is not None:
            entries.append(("budget", str(self.plan)))
        entries += [("warning", text) for text in self.warnings]
        trust = f"trusted={self.trusted}, verified={self.verified}, {self.seconds:.2f} s"
        steps = _checks.counted(self.schedule.num_steps, "step")
        title = f"{type(self.sampler).__name__}, {steps}, {state}"
        return describe(f"OptimizedSchedule: {title}", [*entries, ("evidence", trust)])

    def _against(self) -> str:
        """The best baseline beside the objective, where no selection compares them."""
        if self.selection is not None:
            return ""
        name = self.best_baseline
        fixed = sum(self.unchangeable.values())
        if not fixed:
            return f"; best baseline {name}: {self.ratios[name]:.3g} times that"
        return (
            f", {self.of_the_steps(self.objective):.3g} of it by the steps; best baseline {name}: "
            f"{self.ratios[name]:.3g} times those"
        )

    def _evidence(self, comparison: Comparison) -> str:
        """The selected candidate's error relative to the best baseline's, on fresh noise."""
        name = self.best_baseline
        ratio = estimate(*comparison.ratio(self.criterion, self.selected, name))
        return (
            f"{self.selected}: {ratio} of the {label(self.criterion)} of {name}, the best baseline"
        )

    def _evaluate(self, schedule: Schedule) -> Evaluation:
        run = (self.target, self.process, self.sampler, schedule)
        return evaluate_schedule(*run, **self.evaluation_options)


def _array_text(values: Numbers, precision: int) -> str:
    """The numbers of an array on one line."""
    return np.array2string(np.asarray(values), precision=precision, max_line_width=10**6)


def _json_number(value: float) -> float | None:
    """`value`, or None for what JSON has no number for: a level or an objective can be infinite."""
    return float(value) if np.isfinite(value) else None
