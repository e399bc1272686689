"""What each command does. Its fields are its options."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import _checks, exports
from .._files import write_atomically
from .._tables import Table, number
from ..data import load_numbers
from ..errors import evaluate_schedule
from ..exports import SCHEDULERS, TOOLS, export
from ..metrics import METRICS
from ..optimize import rounding_makes_equal
from ..processes import AbstractProcess, DiscreteVP
from ..samplers import SAMPLERS, check_sampler_name
from ..schedules import BASELINES, Schedule
from . import _solve
from ._inputs import (
    SavedSchedule,
    as_number,
    check_writable,
    figure_path,
    listed_schedules,
    make_process,
    named_schedule,
    naming,
    one_schedule,
    process_fields,
    read_model,
    read_schedule,
    read_target,
    select_process,
    select_sampler,
    stated_starts,
)
from ._options import (
    DEFAULT_PROCESS,
    DEFAULT_SAMPLER,
    AbstractCommand,
    InitializationOptions,
    OneScheduleOptions,
    ProcessOptions,
    RivalOptions,
    SamplerOptions,
    ScheduleOptions,
    TargetOptions,
    option,
)
from ._show import (
    say,
    say_start,
    show,
    show_evaluation,
    show_optimized,
    show_schedule,
    show_unchangeable,
)


@dataclasses.dataclass(kw_only=True)
class Optimize(
    AbstractCommand,
    ScheduleOptions,
    RivalOptions,
    InitializationOptions,
    SamplerOptions,
    ProcessOptions,
    TargetOptions,
):
    """Find the best timestep schedule, and stochasticity if asked, for data and a sampler."""

    objective: Annotated[
        str | None, option("Of the Gaussian model: local (default) or terminal.")
    ] = None
    metric: Annotated[
        str | None,
        option("Of the Gaussian model: w2_squared (default), kl, reverse_kl or log_chi_squared."),
    ] = None
    stochasticity: Annotated[
        str, option("h/g of every step, a number (default 0), or optimize.")
    ] = "0"
    mixture: Annotated[
        int | None,
        option(
            "Components of the Gaussian mixture that models --data (default up to 32). 0: their "
            "covariance alone, which takes seconds; the default where --objective, --metric or "
            "--shrinkage ask for it."
        ),
    ] = None
    output: Annotated[Path, option("The schedule (default jaxkernels-schedule.json).")] = Path(
        "jaxkernels-schedule.json"
    )
    plot: Annotated[
        Path | None, option("The figure, .png, .pdf or .svg (default: as the schedule, .png).")
    ] = None
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Draw no figure.")] = False

    def run(self) -> None:
        """Check everything, optimise, write the schedule and the figure."""
        objective = _name("--objective", self.objective, ("local", "terminal"))
        metric = _name("--metric", self.metric, tuple(METRICS))
        initialization = self.initial_distribution()
        stochasticity = self._stochasticity()
        check_writable(self.output)
        figure = figure_path(self.output, self.plot, self.no_plot)
        process = select_process(self, ())
        sampler = select_sampler(self, ())
        rivals = listed_schedules(self, process)
        steps = self._num_steps(rivals)
        t_min = self._last_time(process, rivals)
        say_start(process, initialization)
        target = read_model(self, self.mixture, self._covariance_options())
        result = _solve.optimize(
            target,
            process,
            sampler,
            steps,
            t_min=t_min,
            stochasticity=stochasticity,
            objective=objective,
            metric=metric,
            initialization=initialization,
            rivals=rivals,
        )
        result.save(self.output)
        show_optimized(result, f"{objective} {metric}")
        if figure is not None:
            result.plot(figure)
        say(f"written: {', '.join(str(p) for p in (self.output, figure) if p is not None)}")

    def _covariance_options(self) -> list[str]:
        """The options that were given and that only the covariance has a use for."""
        given = {
            "--objective": self.objective,
            "--metric": self.metric,
            "--shrinkage": self.shrinkage,
        }
        return [name for name, value in given.items() if value is not None]

    def _stochasticity(self) -> float | str:
        """A number, or "optimize"."""
        value = as_number(self.stochasticity)
        if value is not None:
            return float(_checks.scalar("--stochasticity", value, at_least=0.0))
        return _checks.one_of("--stochasticity", self.stochasticity, ("optimize",))

    def _num_steps(self, rivals: dict[str, Schedule]) -> int:
        """The number of steps, by default that of the listed schedules."""
        steps = None if self.steps is None else self.num_steps()
        for name, rival in rivals.items():
            steps = rival.num_steps if steps is None else steps
            if rival.num_steps != steps:
                raise ValueError(f"{name} has {rival.num_steps} steps; it must have {steps} here.")
        return self.num_steps() if steps is None else steps

    def _last_time(self, process: AbstractProcess, rivals: dict[str, Schedule]) -> float:
        """The last time, by default that of the listed schedules or of the process, said aloud."""
        if self.t_min is not None:
            return self.t_min
        if rivals:
            name, rival = next(iter(rivals.items()))
            say(f"t_min: {float(rival.times[-1]):g}, as {name} ends")
            return float(rival.times[-1])
        t_min = process.default_t_min
        say(f"t_min: {t_min:g}, the default for {self.process or DEFAULT_PROCESS}")
        return t_min


def _name(option_name: str, value: str | None, allowed: tuple[str, ...]) -> str:
    """One of the allowed names, the first one by default."""
    return _checks.one_of(option_name, allowed[0] if value is None else value, allowed)


@dataclasses.dataclass(kw_only=True)
class Evaluate(
    AbstractCommand,
    OneScheduleOptions,
    InitializationOptions,
    SamplerOptions,
    ProcessOptions,
    TargetOptions,
):
    """Compute the exact error of one schedule and where it comes from."""

    def run(self) -> None:
        """Print the schedule, the error of each step and the error budget."""
        self.check_source("evaluate")
        files = [] if self.file is None else [read_schedule(self.file)]
        process = select_process(self, files)
        sampler = select_sampler(self, files)
        initialization = self.initial_distribution(stated_starts(files))
        schedule = one_schedule(self, files, process)
        target = read_target(self)
        result = evaluate_schedule(
            target, process, sampler, schedule, initialization=initialization
        )
        say_start(process, initialization)
        show_schedule(schedule, process, result)
        show_evaluation(result)
        show_unchangeable(result, target, process, float(schedule.times[-1]))


@dataclasses.dataclass(kw_only=True)
class Compare(
    AbstractCommand,
    ScheduleOptions,
    RivalOptions,
    InitializationOptions,
    SamplerOptions,
    ProcessOptions,
    TargetOptions,
):
    """Compare baselines, files and user-defined levels by exact W2, KL and local objective."""

    files: Annotated[list[Path] | None, typer.Argument(help="Schedule files to compare too.")] = (
        None
    )

    def run(self) -> None:
        """Print one row per schedule, the smallest objective first."""
        saved = [read_schedule(file) for file in self.files or []]
        process = select_process(self, saved)
        sampler = select_sampler(self, saved)
        schedules = {name: named_schedule(name, process, self) for name in BASELINES}
        schedules |= {str(file.path): file.schedule for file in saved}
        schedules |= listed_schedules(self, process)
        initialization = self.initial_distribution(stated_starts(saved))
        target = read_target(self)
        say_start(process, initialization)
        rows = []
        for name, schedule in schedules.items():
            result = evaluate_schedule(
                target, process, sampler, schedule, initialization=initialization
            )
            local, steps = _solve.local_error(target, process, sampler, schedule, initialization)
            numbers = map(number, (local, steps, float(result.w2), float(result.kl)))
            rows.append((local, name, [name, str(schedule.num_steps), str(result.nfe), *numbers]))
        header = ["schedule", "K", "NFE", "local", "of the steps", "W2", "KL"]
        note = (
            "local: the objective of optimize for a covariance, squared W2, and its part that the "
            "steps cause; W2: to the data distribution, in units of the data; "
            "KL(p_data || q): nats"
        )
        cells = [row for _, _, row in sorted(rows, key=lambda row: row[:2])]
        show(Table(header, cells, notes=[note]))


# Options of `Export` that a process and a scheduler of diffusers both have.
_SHARED = ("table", "sigma_max")


@dataclasses.dataclass(kw_only=True)
class Export(AbstractCommand, OneScheduleOptions, SamplerOptions, ProcessOptions, TargetOptions):
    """Write a schedule in the form that another tool takes.

    Where that takes integer timesteps, two of which the nearest ones would make equal, those with
    the smallest local error are taken: for --data or --spectrum, else for what the schedule was
    optimised for, if its file says so. Without either, the nearest distinct ones.
    """

    to: Annotated[str, typer.Option(help=f"{', '.join(TOOLS)}.", show_default=False)]
    end: Annotated[
        str | None,
        option(
            "A last level above 0: keep (stop there; default where the tool can), replace (by 0; "
            "default elsewhere) or append (a step to 0)."
        ),
    ] = None
    scheduler: Annotated[
        str | None, option(f"diffusers: {', '.join(SCHEDULERS)}.", "diffusers")
    ] = None
    shift: Annotated[
        float | None,
        option("flow_match_euler: shift that the scheduler keeps (default 1).", "diffusers"),
    ] = None
    table: Annotated[
        str | None,
        option(
            "euler, dpm_multistep, ddpm, heun: file with the network's alphas_cumprod; with "
            "--process discrete_vp, the process's.",
            "diffusers",
        ),
    ] = None
    sigma_min: Annotated[
        float | None, option("edm_euler: the scheduler's sigma_min.", "diffusers")
    ] = None
    sigma_max: Annotated[
        float | None,
        option(
            "edm_euler: the scheduler's sigma_max; with --process edm, the process's.", "diffusers"
        ),
    ] = None
    rho: Annotated[float | None, option("edm_euler: the scheduler's rho.", "diffusers")] = None
    output: Annotated[
        Path | None, option("Write the text to this file instead of printing it.")
    ] = None

    def run(self) -> None:
        """Print the text for the tool, or write it; notes go to standard error."""
        self.check_source("export")
        if self.output is not None:
            check_writable(self.output)
        files = [] if self.file is None else [read_schedule(self.file)]
        process = self._process(files)
        schedule = one_schedule(self, files, process)
        sampler = self._sampler(files)
        options = self._scheduler_options()
        if sampler is not None:
            options["sampler"] = sampler
        told = []
        result = export(schedule, process, self.to, **options)
        if self.describes_data:
            schedule = self._on_integers(schedule, process, sampler, result, files)
            result = export(schedule, process, self.to, **options)
        elif _tells_best_integers(files, process) and result.takes_integers:
            name = DEFAULT_SAMPLER if sampler is None else sampler
            schedule = _solve.move_by_own_objective(files[0], process, name)
            result = export(schedule, process, self.to, **options)
            told.append("two nearest timesteps are equal; these have the smallest local error")
        if self.output is None:
            print(result.text)
        else:
            write_atomically(self.output, result.text.encode() + b"\n")
            say(f"written: {self.output}")
        for note in (*told, *_unknown_samplers(files), *result.notes):
            print(f"note: {note}", file=sys.stderr)

    def _on_integers(
        self,
        schedule: Schedule,
        process: AbstractProcess,
        sampler: str | None,
        exported: exports.Export,
        files: list[SavedSchedule],
    ) -> Schedule:
        """The schedule at the integer timesteps with the smallest objective for the data."""
        if not exported.takes_integers:
            raise ValueError(
                "--data and --spectrum select integer timesteps, which this export does not take; "
                "leave them out."
            )
        initialization = next(iter(stated_starts(files).values()), None)
        name = DEFAULT_SAMPLER if sampler is None else sampler
        return _solve.move_to_integers(read_target(self), process, name, schedule, initialization)

    def _taken_by_process(self) -> tuple[str, ...]:
        """The shared options that describe the process: those that it takes, if one is named."""
        if self.file is not None and self.process is None:
            return ()
        known = process_fields(self.process or DEFAULT_PROCESS)
        return tuple(name for name in _SHARED if name in known)

    def _process(self, files: list[SavedSchedule]) -> AbstractProcess:
        """The process of the schedule's times."""
        given = self.process_parameters()
        taken = self._taken_by_process()
        given = {k: v for k, v in given.items() if k not in _SHARED or k in taken}
        asked = self.process is not None or bool(given)
        if not files:
            return make_process(self.process, given)
        if files[0].process is None and not asked:
            raise ValueError(
                f"{self.file} does not say which process its times belong to; name it with "
                "--process, or write the file with optimize."
            )
        own = {name: None for name in _SHARED if name not in taken}
        return select_process(dataclasses.replace(self, **own), files)

    def _sampler(self, files: list[SavedSchedule]) -> str | None:
        """The sampler that the schedule is for, if it is known."""
        if self.sampler is not None:
            return check_sampler_name(self.sampler)
        return next((f.sampler for f in files if f.sampler in SAMPLERS), None)

    def _scheduler_options(self) -> dict[str, Any]:
        """The options that were given for the tool."""
        given = {
            "end": self.end,
            "scheduler": self.scheduler,
            "shift": self.shift,
            "table": self.table,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "rho": self.rho,
        }
        taken = self._taken_by_process()
        options: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None and name not in taken
        }
        if "table" in options:
            with naming("--table"):
                options["table"] = DiscreteVP(load_numbers(str(self.table), report=say))
        return options


def _tells_best_integers(files: list[SavedSchedule], process: AbstractProcess) -> bool:
    """Whether rounding makes timesteps equal, and the file describes what is to be minimised."""
    described = bool(files) and files[0].local_error is not None
    return described and rounding_makes_equal(files[0].schedule, process)


def _unknown_samplers(files: list[SavedSchedule]) -> list[str]:
    """A note on every file whose sampler is user-defined: no tool is known to have it."""
    return [
        f"the schedule was made for the user-defined sampler {f.sampler!r}"
        for f in files
        if f.sampler is not None and f.sampler not in SAMPLERS
    ]
