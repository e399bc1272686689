"""What the command line prints: tables, and lines of text."""

import sys
from collections.abc import Iterable, Mapping

import numpy as np
from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from .._precision import in_float64
from .._tables import Table, label, number
from ..comparison import STATISTICS, Comparison
from ..distributions import Gaussian
from ..errors import Evaluation, evaluate_schedule, unchangeable_warnings
from ..optimize import OptimizedSchedule
from ..processes import AbstractProcess, sigma_range
from ..schedules import Schedule


def _console() -> Console:
    """Standard output. A table is as wide as its contents; only a person's terminal may cut it."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def say(text: str) -> None:
    """Print one line, however long it is."""
    _console().print(text, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table."""
    drawn = RichTable(
        title=table.title or None, title_justify="left", title_style="bold", box=HEAVY_HEAD
    )
    for name, right in zip(table.header, table.right_aligned, strict=True):
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    _console().print(drawn)
    for note in table.notes:
        say(note)


def show_optimized(result: OptimizedSchedule, title: str) -> None:
    """The optimal schedule, the baselines beside it, its error budget and what it is worth."""
    show_schedule(result.schedule, result.process, result.evaluation)
    warnings = result.warnings
    if result.comparison is None:
        exact = _baseline_evaluations(result)
        show(_objective_table(result, exact, f"objective {title}"))
        warnings = (*warnings, *_exact_warning(result, exact))
    else:
        show(_comparison_table(result, result.comparison))
        say("for Gaussian data of the same mean and covariance:")
    show_evaluation(result.evaluation)
    for text in warnings:
        say(f"warning: {text}")
    say(f"trusted: {_yes(result.trusted)}; verified on a network: {_yes(result.verified)}")
    say(f"converged: {_yes(result.converged)} ({result.reason}), {result.seconds:.1f} s")


def _baseline_evaluations(result: OptimizedSchedule) -> dict[str, Evaluation]:
    """The exact error of every baseline on the target."""
    return {
        name: evaluate_schedule(
            result.target,
            result.process,
            result.sampler,
            result.baseline_schedules[name],
            initialization=result.evaluation_options["initialization"],
        )
        for name in result.baselines
    }


def _objective_table(
    result: OptimizedSchedule, exact: Mapping[str, Evaluation], title: str
) -> Table:
    """The objective and the exact error of the optimum and of every baseline."""
    own = (result.selected, result.objective, "1", result.evaluation)
    others = [
        (name, value, f"{result.ratios[name]:.3g}", exact[name])
        for name, value in sorted(result.baselines.items(), key=lambda item: item[1])
    ]
    rows = [
        [name, number(result.of_the_steps(value)), ratio, number(value), number(float(found.w2))]
        for name, value, ratio, found in (own, *others)
    ]
    notes = []
    if sum(result.unchangeable.values()):
        parts = ", ".join(f"{name} {number(v)}" for name, v in result.unchangeable.items())
        notes = [f"what no schedule can change of the objective: {parts}"]
    header = ["schedule", "of the steps", "to the optimum", "objective", "W2"]
    return Table(header, rows, title, notes=notes)


def _comparison_table(result: OptimizedSchedule, comparison: Comparison) -> Table:
    """The selected schedule beside the baselines, as they ran on the mixture."""
    ranking = comparison.ranking_statistic
    deterministic = ranking == "geometric_mean"
    statistics = STATISTICS if deterministic else ("sliced_w2",)
    columns = {kind: comparison.statistic(kind) for kind in statistics}
    to = "the reference solution's samples" if deterministic else "the mixture"
    baselines = sorted(result.baselines, key=columns[ranking].__getitem__)
    rows = []
    for name in dict.fromkeys([result.selected, *baselines]):
        ratio = columns[ranking][name] / columns[ranking][result.selected]
        numbers = [number(column[name]) for column in columns.values()]
        rows.append([name, *numbers, f"{ratio:.3g}"])
    header = ["schedule", *map(label, columns), f"{label(ranking)} to the selected"]
    title = f"distance to {to}, relative to the data's standard deviation"
    return Table(header, rows, title)


def _exact_warning(result: OptimizedSchedule, exact: Mapping[str, Evaluation]) -> Iterable[str]:
    """An objective is a bound or another metric; say so where the exact distance disagrees."""
    best = min(exact, key=lambda name: float(exact[name].w2))
    if float(exact[best].w2) < float(result.evaluation.w2):
        yield (
            f"the exact W2 of {best}, {float(exact[best].w2):.4g}, is below the optimum's "
            f"{float(result.evaluation.w2):.4g}: the objective weighs errors otherwise"
        )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def say_start(process: AbstractProcess, initialization: str | None) -> None:
    """Say what sampling starts from, where that is not pure noise."""
    if (initialization or process.initialization) == "marginal":
        t_max = float(process.t_max)
        sigma = sigma_range(process, 0.0)[0]
        say(f"sampling starts from noised data at t = {t_max:g}, sigma = {sigma:.4g}")


def show_unchangeable(
    evaluation: Evaluation, target: Gaussian, process: AbstractProcess, t_min: float
) -> None:
    """Warn if most of the squared W2 is what no schedule can change."""
    budget = evaluation.error_budget
    parts = (float(budget.initialization), float(budget.truncation))
    for text in unchangeable_warnings(parts, float(budget.total), target, process, t_min):
        say(f"warning: {text}")


def show_schedule(schedule: Schedule, process: AbstractProcess, evaluation: Evaluation) -> None:
    """Times, noise levels, stochasticity and the error of each step."""
    sigmas = np.asarray(in_float64(Schedule.sigmas)(schedule, process))
    times = np.asarray(schedule.times)
    alpha = [number(v) for v in np.asarray(schedule.stochasticity)]
    squared = np.asarray(evaluation.local_w2_squared)
    errors = [number(v) for v in np.sqrt(np.maximum(squared, 0.0))]
    rows = [
        [str(k), f"{times[k]:.6g}", f"{sigmas[k]:.6g}", *step]
        for k, step in enumerate([*zip(alpha, errors, strict=True), ("", "")])
    ]
    show(Table(["k", "t", "sigma", "alpha", "W2 of the step alone"], rows, "schedule"))


def show_evaluation(evaluation: Evaluation) -> None:
    """The error budget, and the distances of the samples' distribution to the data's."""
    budget = evaluation.error_budget
    rows = []
    for name in ("initialization", "truncation", "discretization", "score", "total"):
        alone = getattr(budget, f"{name}_alone", None)
        added = number(float(getattr(budget, name)))
        rows.append([name, added, "" if alone is None else number(float(alone))])
    show(Table(["source", "squared W2 added", "alone"], rows, "error budget"))
    say(
        f"W2 {float(evaluation.w2):.4g}, KL(p_data || q) {float(evaluation.kl):.4g} nats, "
        f"KL(q || p_data) {float(evaluation.reverse_kl):.4g} nats, NFE {evaluation.nfe}"
    )
