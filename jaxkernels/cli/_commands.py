"""The command line: optimize, evaluate, compare, export.

Every mistake in what was asked for is one line on standard error and exit code 2. Results go to standard
output. Whatever would make a result impossible to keep is found before anything is computed.
"""

import dataclasses
import functools
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast, get_type_hints

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from .. import __version__, _checks
from .._figures import check_path, plot_optimized
from .._files import write_atomically
from .._precision import in_float64
from .._progress import Progress
from ..comparison import STATISTICS, Comparison
from ..data import load, load_numbers, load_spectrum
from ..distributions import Gaussian, GaussianMixture
from ..errors import Evaluation, evaluate_schedule
from ..exports import SCHEDULERS, export
from ..metrics import METRICS, resolve
from ..optimize import SPREAD, LocalError, OptimizedSchedule, optimize_schedule
from ..processes import PROCESSES, AbstractProcess, DiscreteVP, from_config, parameters, to_config
from ..samplers import SAMPLERS, as_sampler
from ..schedules import BASELINES, Schedule, read_json

FirstLaw: TypeAlias = Literal["standard_normal", "marginal"]


# where sampling ends by default: a noise level far below what can be seen in data of variance about 1
DEFAULT_T_MIN = {
    "vp": 1e-3,
    "ou": 1e-3,
    "ve": 2e-6,
    "edm": 2e-3,
    "cosine_vp": 1e-3,
    "flow_matching": 1e-3,
    "discrete_vp": 1.0,
}


_DEFAULT_PROCESS, _DEFAULT_SAMPLER = "vp", "dpmpp_2m"


_ENDS = ", ".join(f"{value:g} for {name}" for name, value in DEFAULT_T_MIN.items())


app = typer.Typer(
    help="Exact errors and optimal schedules for diffusion samplers.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _option(help: str, panel: str | None = None, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """The statistics of the data."""

    data: Annotated[
        str | None, _option("Samples: digits, a .npy, .npz, .csv file or a folder of images.")
    ] = None
    spectrum: Annotated[
        str | None,
        _option("Eigenvalues of the data covariance: a .npy, .npz, .csv, .txt or .json file."),
    ] = None
    key: Annotated[str | None, _option("Which array of a .npz file to read.")] = None
    shrinkage: Annotated[
        str | None,
        _option("Of the covariance of samples: ledoit_wolf (default) or a number in 0..1."),
    ] = None


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """The forward process. Parameters are those of its constructor."""

    process: Annotated[
        str | None,
        _option(f"{', '.join(PROCESSES)}; default that of the schedule's file, or vp.", "Process"),
    ] = None
    beta_min: Annotated[float | None, _option("vp: rate at t = 0.", "Process")] = None
    beta_max: Annotated[float | None, _option("vp: rate at t = 1.", "Process")] = None
    rate: Annotated[float | None, _option("ou, ve: rate.", "Process")] = None
    t_max: Annotated[float | None, _option("ou, ve, cosine_vp: largest time.", "Process")] = None
    sigma_max: Annotated[float | None, _option("edm: largest noise level.", "Process")] = None
    offset: Annotated[float | None, _option("cosine_vp: offset of the cosine.", "Process")] = None
    table: Annotated[
        str | None,
        _option("discrete_vp: file with alphas_cumprod; default Stable Diffusion's.", "Process"),
    ] = None


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """The sampler and its first law."""

    sampler: Annotated[
        str | None,
        _option(f"{', '.join(SAMPLERS)}; default that of the file, or {_DEFAULT_SAMPLER}."),
    ] = None
    initialization: Annotated[
        str, _option("Law that sampling starts from: standard_normal (default) or marginal.")
    ] = "standard_normal"


@dataclasses.dataclass(frozen=True)
class GridOptions:
    """Length and end of a schedule."""

    steps: Annotated[int, _option("Number of steps K (default 10).")] = 10
    t_min: Annotated[float | None, _option(f"Last time (default {_ENDS}).")] = None


def _grouped(fn: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters may be dataclasses; every field of theirs becomes an option of its own."""
    hints = get_type_hints(fn, include_extras=True)
    groups: dict[str, Any] = {
        name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(fn).parameters.items():
        if name not in groups:
            flat.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        fields = get_type_hints(groups[name], include_extras=True)
        flat += [
            inspect.Parameter(
                f.name, parameter.KEYWORD_ONLY, default=f.default, annotation=fields[f.name]
            )
            for f in dataclasses.fields(groups[name])
        ]

    @functools.wraps(fn)
    def command(**given: Any) -> None:
        for name, group in groups.items():
            members = {f.name: given.pop(f.name) for f in dataclasses.fields(group)}
            given[name] = group(**members)
        fn(**given)

    command.__signature__ = inspect.Signature(flat)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {p.name: p.annotation for p in flat}
    return command


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"jaxkernels {__version__}")
        raise typer.Exit


@app.command()
@_grouped
def optimize(
    target_options: TargetOptions,
    process_options: ProcessOptions,
    sampler_options: SamplerOptions,
    grid_options: GridOptions,
    objective: Annotated[
        str | None, _option("Of the Gaussian model: local (default) or terminal.")
    ] = None,
    metric: Annotated[
        str | None, _option("Of the Gaussian model: w2_squared (default), kl or reverse_kl.")
    ] = None,
    stochasticity: Annotated[
        str, _option("h/g of every step, a number (default 0), or optimize.")
    ] = "0",
    mixture: Annotated[
        int | None,
        _option(
            "Normal laws in the mixture that --data are modelled by (default up to 32). 0: by their covariance alone, "
            "which takes seconds; the default where --objective, --metric or --shrinkage ask for it."
        ),
    ] = None,
    output: Annotated[Path, _option("The schedule (default jaxkernels-schedule.json).")] = Path(
        "jaxkernels-schedule.json"
    ),
    plot: Annotated[
        Path | None, _option("The picture, .png, .pdf or .svg (default: as the schedule, .png).")
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Draw no picture.")] = False,
) -> None:
    """Find the best time grid, and stochasticity if asked, for data, a process and a sampler."""
    steps = _checks.count("--steps", grid_options.steps)
    of_covariance = [
        f"--{name}"
        for name, value in {
            "objective": objective,
            "metric": metric,
            "shrinkage": target_options.shrinkage,
        }.items()
        if value is not None
    ]
    objective = _checks.one_of(
        "--objective", "local" if objective is None else objective, ("local", "terminal")
    )
    metric = _checks.one_of("--metric", "w2_squared" if metric is None else metric, METRICS)
    how, noise = _first_law(sampler_options), _stochasticity(stochasticity)
    _check_writable(output)
    picture = _picture(output, plot, no_plot)
    process, sampler = _setting(process_options, sampler_options, ())
    t_min = _t_min(process, grid_options)
    target = _model(target_options, mixture, of_covariance)
    result = optimize_schedule(
        target,
        process,
        sampler,
        steps,
        t_min=t_min,
        stochasticity=noise,
        objective=objective,
        metric=metric,
        initialization=how,
    )
    result.save(output)
    _show_optimized(result, objective, metric, how)
    if picture is not None:
        plot_optimized(result, picture)
    _say(f"written: {', '.join(str(p) for p in (output, picture) if p is not None)}")


@app.command()
@_grouped
def evaluate(
    target_options: TargetOptions,
    process_options: ProcessOptions,
    sampler_options: SamplerOptions,
    grid_options: GridOptions,
    file: Annotated[Path | None, typer.Argument(help="A schedule file, or use --grid.")] = None,
    grid: Annotated[str | None, _option(f"A named grid: {', '.join(BASELINES)}.")] = None,
) -> None:
    """The exact error of one schedule and where it comes from."""
    if (file is None) == (grid is None):
        raise ValueError("evaluate needs either a schedule FILE or --grid NAME.")
    files = [] if file is None else [_read(file)]
    process, sampler = _setting(process_options, sampler_options, files)
    schedule = files[0].schedule if files else _grid(str(grid), process, grid_options)
    result = evaluate_schedule(
        _target(target_options),
        process,
        sampler,
        schedule,
        initialization=_first_law(sampler_options),
    )
    _show_schedule(schedule, process, result)
    _show_evaluation(result)


@app.command()
@_grouped
def compare(
    target_options: TargetOptions,
    process_options: ProcessOptions,
    sampler_options: SamplerOptions,
    grid_options: GridOptions,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Schedule files to compare too.")
    ] = None,
) -> None:
    """Every named grid, and files, under the exact W2 and KL and the local objective."""
    read = [_read(file) for file in files or []]
    process, sampler = _setting(process_options, sampler_options, read)
    schedules = {name: _grid(name, process, grid_options) for name in BASELINES}
    schedules |= {str(saved.path): saved.schedule for saved in read}
    target = _target(target_options)
    how = _first_law(sampler_options)
    rows = []
    for name, schedule in schedules.items():
        result = evaluate_schedule(
            target,
            process,
            sampler,
            schedule,
            initialization=how,
        )
        local = _local(target, process, sampler, schedule, how)
        rows.append((local, name, schedule.num_steps, result))
    table = _table("schedule", "K", "evaluations", "local", "W2", "KL")
    for local, name, steps, result in sorted(rows, key=lambda row: row[:2]):
        numbers = (local, float(result.w2), float(result.kl))
        table.add_row(name, str(steps), str(result.nfe), *map(_number, numbers))
    _show(table)
    _say(
        "local: the objective of optimize for a covariance, squared W2; W2: to the data law, in units of the data; "
        "KL(p_data || q): nats"
    )


@app.command("export")
@_grouped
def export_(
    file: Annotated[Path, typer.Argument(help="A schedule file written by optimize.")],
    to: Annotated[
        str, typer.Option(help="diffusers, k-diffusion, comfyui or edm.", show_default=False)
    ],
    end: Annotated[
        str | None,
        _option(
            "A last level above 0: keep (stop there; default where the tool can), replace (by 0; default "
            "elsewhere) or append (a step to 0)."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        _option(f"diffusers: {', '.join(SCHEDULERS)}.", "diffusers"),
    ] = None,
    shift: Annotated[
        float | None,
        _option("flow_match_euler: shift that the scheduler keeps (default 1).", "diffusers"),
    ] = None,
    table: Annotated[
        str | None,
        _option(
            "euler, dpm_multistep, ddpm, heun: file with the network's alphas_cumprod.", "diffusers"
        ),
    ] = None,
    sigma_min: Annotated[
        float | None, _option("edm_euler: the scheduler's sigma_min.", "diffusers")
    ] = None,
    sigma_max: Annotated[
        float | None, _option("edm_euler: the scheduler's sigma_max.", "diffusers")
    ] = None,
    rho: Annotated[float | None, _option("edm_euler: the scheduler's rho.", "diffusers")] = None,
    output: Annotated[
        Path | None, _option("Write the text to this file instead of printing it.")
    ] = None,
) -> None:
    """A schedule in the form that another tool takes."""
    if output is not None:
        _check_writable(output)
    saved = _read(file)
    if saved.process is None:
        raise ValueError(
            f"{file} does not say which process its times belong to; write it with optimize, or with "
            "Schedule.save(path, process=jaxkernels.process.to_config(process))."
        )
    given = {
        "end": end,
        "scheduler": scheduler,
        "shift": shift,
        "table": None if table is None else DiscreteVP(load_numbers(table)),
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "rho": rho,
        "sampler": saved.sampler if saved.sampler in SAMPLERS else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    result = export(saved.schedule, saved.process, to, **options)
    if output is None:
        print(result.text)
    else:
        write_atomically(output, result.text.encode() + b"\n")
        _say(f"written: {output}")
    own = (
        ()
        if saved.sampler in (None, *SAMPLERS)
        else (f"the schedule was made for a sampler {saved.sampler!r}",)
    )
    for note in own + result.notes:
        print(f"note: {note}", file=sys.stderr)


def run(arguments: Sequence[str] | None = None) -> int:
    """The command line on `arguments`; returns the exit code instead of raising."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given or ["--help"], prog_name="jaxkernels", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (ValueError, ImportError) as error:
        return _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        print("jaxkernels: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone; nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # typer's errors of usage are known by this method, whichever library they come from
        if not hasattr(error, "format_message"):
            raise
        return _fail(error.format_message())  # pyright: ignore[reportAttributeAccessIssue]


def _fail(message: str) -> int:
    print(f"jaxkernels: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


@dataclasses.dataclass(frozen=True)
class _Saved:
    """A schedule file."""

    path: Path
    schedule: Schedule
    process: AbstractProcess | None
    sampler: str | None


def _read(path: Path) -> _Saved:
    schedule, metadata = Schedule.load(path), read_json(path).get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    process = metadata.get("process")
    try:
        process = None if process is None else from_config(process)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    sampler = metadata.get("sampler")
    return _Saved(path, schedule, process, str(sampler) if sampler in SAMPLERS else None)


def _setting(
    process_options: ProcessOptions, sampler_options: SamplerOptions, files: Sequence[_Saved]
) -> tuple[AbstractProcess, str]:
    """Process and sampler's name: as asked for, else as in the files, which must agree on the process."""
    stated = {str(f.path): f.process for f in files if f.process is not None}
    asked = any(value is not None for value in dataclasses.asdict(process_options).values())
    if asked or not stated:
        stated = {"the options": _process(process_options), **stated}
    (first, process), *others = stated.items()
    for name, other in others:
        if to_config(other) != to_config(process):
            raise ValueError(
                f"the times of {name} belong to another process than that of {first}: "
                f"{_described(other)} instead of {_described(process)}."
            )
    names = [sampler_options.sampler, *(f.sampler for f in files), _DEFAULT_SAMPLER]
    name = next(name for name in names if name is not None)
    return process, _checks.one_of("sampler", name, SAMPLERS)


def _first_law(options: SamplerOptions) -> FirstLaw:
    names = ("standard_normal", "marginal")
    return cast(FirstLaw, _checks.one_of("--initialization", options.initialization, names))


def _process(options: ProcessOptions) -> AbstractProcess:
    name = options.process or _DEFAULT_PROCESS
    known = ["table" if p == "alphas_cumprod" else p for p in parameters(name) if p != "name"]
    given = {key: value for key, value in dataclasses.asdict(options).items() if value is not None}
    given.pop("process", None)
    for key, value in given.items():
        if key not in known:
            takes = ", ".join(map(_flag, known)) or "no parameters"
            raise ValueError(
                f"{_flag(key)} = {value} has no use for process {name!r}, which takes {takes}."
            )
    if name != "discrete_vp":
        return from_config({"type": name, **given})
    return (
        DiscreteVP(load_numbers(given["table"])) if "table" in given else DiscreteVP.scaled_linear()
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _described(process: AbstractProcess) -> str:
    config = to_config(process)
    if isinstance(process, DiscreteVP):
        return f"discrete_vp(table of {len(np.asarray(process.log_sigmas))} entries)"
    parts = [f"{key}={value:g}" for key, value in config.items() if isinstance(value, float)]
    return f"{config['type']}({', '.join(parts)})"


def _t_min(process: AbstractProcess, options: GridOptions) -> float:
    if options.t_min is not None:
        return options.t_min
    name = str(to_config(process)["type"])
    _say(f"t_min: {DEFAULT_T_MIN[name]:g}, the default for {name}")
    return DEFAULT_T_MIN[name]


def _grid(name: str, process: AbstractProcess, options: GridOptions) -> Schedule:
    steps = _checks.count("--steps", options.steps)
    t_min = options.t_min
    if t_min is None:
        t_min = DEFAULT_T_MIN[str(to_config(process)["type"])]
    return _checks.lookup("grid", name, BASELINES)(process, steps, t_min)


def _stochasticity(text: str) -> float | str:
    number = _as_number(text)
    return _checks.one_of("--stochasticity", text, ("optimize",)) if number is None else number


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _target(options: TargetOptions) -> Gaussian:
    if (options.data is None) == (options.spectrum is None):
        raise ValueError("give the data either as --data (samples) or as --spectrum (eigenvalues).")
    if options.spectrum is not None:
        if options.shrinkage is not None:
            raise ValueError(
                f"--shrinkage = {options.shrinkage} is for samples (--data); a spectrum is taken as it is."
            )
        target = Gaussian(0.0, load_spectrum(options.spectrum, options.key))
        _say(f"target: {target.dim:.0f} eigenvalues from {options.spectrum}")
        return target
    return _fitted(options)[1]


def _fitted(options: TargetOptions) -> tuple[np.ndarray, Gaussian]:
    """The samples, and the Gaussian fitted to them."""
    shrinkage = options.shrinkage or "ledoit_wolf"
    number = _as_number(shrinkage)
    with Progress(f"reading {options.data}"):
        samples = load(str(options.data), options.key)
        target = Gaussian.fit(samples, shrinkage=shrinkage if number is None else number)
    spread = float(np.sqrt(np.mean(np.asarray(target.eigenvalues))))
    _say(
        f"target: {samples.shape[0]} samples of {target.dim:.0f} dimensions from {options.data}, standard "
        f"deviation {spread:.3g}, kurtosis {float(np.asarray(target.kurtosis)):.2g}"
    )
    if not 0.01 < spread < 10.0:
        _say(
            "warning: processes are made for data of standard deviation about 1; are the units right?"
        )
    return samples, target


def _model(
    options: TargetOptions, components: int | None, of_covariance: Sequence[str]
) -> Gaussian | GaussianMixture | np.ndarray:
    """The target of `optimize`: samples, which stand for a mixture, unless something is asked of a covariance."""
    if components is not None:
        _checks.count("--mixture", components, at_least=0)
    if components and options.data is None:
        raise ValueError(f"--mixture = {components} is fitted to samples: give them as --data.")
    if components and of_covariance:
        raise ValueError(
            f"--mixture = {components} has no use for {of_covariance[0]}, which is of the covariance alone."
        )
    if options.spectrum is not None or options.data is None or components == 0 or of_covariance:
        return _target(options)
    samples, _ = _fitted(options)
    _say("model: a mixture of normal laws (--mixture 0: the covariance alone, in seconds)")
    if components is None:
        return samples
    with Progress("fitting a mixture"):
        return GaussianMixture.fit(samples, components)


def _picture(output: Path, plot: Path | None, no_plot: bool) -> Path | None:
    """Where the picture goes, checked."""
    if no_plot:
        if plot is not None:
            raise ValueError(f"--plot {plot} and --no-plot exclude each other.")
        return None
    path = output.with_suffix(".png") if plot is None else plot
    if path == output:
        raise ValueError(f"--output and --plot are both {path}.")
    check_path(path)
    _check_writable(path)
    return path


def _check_writable(path: Path) -> None:
    """ValueError if a file could not be written at `path`, found out before there is something to write."""
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is not a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: it is read-only.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror} ({path.parent}).") from None


def _local(
    target: Gaussian, process: AbstractProcess, sampler: str, schedule: Schedule, how: FirstLaw
) -> float:
    """The default objective of `optimize` for a covariance."""
    step = as_sampler(sampler)
    objective = LocalError(target.broadened(SPREAD), process, step, resolve("w2_squared"), how)
    return float(_call(objective, schedule))


@in_float64
@jax.jit
def _call(objective: Callable[[Schedule], jax.Array], schedule: Schedule) -> jax.Array:
    return objective(schedule)


def _console() -> Console:
    # a table is as wide as its contents; only a person's terminal may cut it
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def _say(text: str) -> None:
    _console().print(text, soft_wrap=True)


def _show(table: Table) -> None:
    _console().print(table)


def _table(first: str, *columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _number(value: float) -> str:
    return f"{value:.4g}"


def _show_optimized(result: OptimizedSchedule, objective: str, metric: str, how: FirstLaw) -> None:
    _show_schedule(result.schedule, result.process, result.evaluation)
    warnings = result.warnings
    if result.comparison is None:
        exact = _show_objective(result, f"objective {objective} {metric}", how)
        warnings = (*warnings, *_exact_warning(result, exact))
    else:
        _show_comparison(result, result.comparison)
        _say("for Gaussian data of the same mean and covariance:")
    _show_evaluation(result.evaluation)
    for text in warnings:
        _say(f"warning: {text}")
    _say(f"trusted: {_yes(result.trusted)}; verified on a network: {_yes(result.verified)}")
    _say(f"converged: {_yes(result.converged)} ({result.reason}), {result.seconds:.1f} s")


def _show_objective(result: OptimizedSchedule, title: str, how: FirstLaw) -> dict[str, Evaluation]:
    """The objective of the optimum and of every named grid; returns what is exact of the grids."""
    table = _table("grid", "objective", "to the optimum", "W2", title=title)
    table.add_row(
        result.chosen, _number(result.objective), "1", _number(float(result.evaluation.w2))
    )
    exact = {}
    for name, value in sorted(result.baselines.items(), key=lambda item: item[1]):
        exact[name] = evaluate_schedule(
            result.target,
            result.process,
            result.sampler,
            result.baseline_schedules[name],
            initialization=how,
        )
        ratio = value / result.objective if result.objective > 0 else float("nan")
        table.add_row(name, _number(value), f"{ratio:.3g}", _number(float(exact[name].w2)))
    _show(table)
    return exact


def _show_comparison(result: OptimizedSchedule, comparison: Comparison) -> None:
    """What was chosen on a mixture, beside the named grids."""
    ranking = comparison.criterion
    deterministic = ranking == "geometric_mean"
    columns = {
        kind: comparison.statistic(kind)
        for kind in (STATISTICS if deterministic else ("sliced_w2",))
    }
    title = "distance to a fine solver's samples" if deterministic else "distance to the mixture"
    shown = f"{ranking.replace('_', ' ')} to the chosen"
    names = [kind.replace("_", " ").replace("w2", "W2") for kind in columns]
    table = _table("grid", *names, shown, title=f"{title}, in units of the spread")
    grids = sorted(result.baselines, key=columns[ranking].__getitem__)
    for name in dict.fromkeys([result.chosen, *grids]):
        ratio = columns[ranking][name] / columns[ranking][result.chosen]
        table.add_row(name, *(_number(column[name]) for column in columns.values()), f"{ratio:.3g}")
    _show(table)


def _exact_warning(result: OptimizedSchedule, exact: dict[str, Evaluation]) -> Iterable[str]:
    """An objective is a bound or another metric; say so where the exact distance disagrees."""
    best = min(exact, key=lambda name: float(exact[name].w2))
    if float(exact[best].w2) < float(result.evaluation.w2):
        yield (
            f"the exact W2 of {best}, {float(exact[best].w2):.4g}, is below the optimum's "
            f"{float(result.evaluation.w2):.4g}: the objective weighs errors otherwise"
        )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _show_schedule(schedule: Schedule, process: AbstractProcess, evaluation: Evaluation) -> None:
    sigmas = np.asarray(in_float64(Schedule.sigmas)(schedule, process))
    alpha = [_number(v) for v in np.asarray(schedule.stochasticity)]
    error = [_number(v) for v in np.sqrt(np.maximum(np.asarray(evaluation.local_w2_squared), 0.0))]
    table = _table("k", "t", "sigma", "alpha", "W2 of the step alone", title="schedule")
    for k, (t, sigma) in enumerate(zip(np.asarray(schedule.times), sigmas)):
        step = (alpha[k], error[k]) if k < schedule.num_steps else ("", "")
        table.add_row(str(k), f"{t:.6g}", f"{sigma:.6g}", *step)
    _show(table)


def _show_evaluation(evaluation: Evaluation) -> None:
    budget = evaluation.error_budget
    table = _table("source", "squared W2 added", "alone", title="error budget")
    for name in ("initialization", "truncation", "discretization", "score", "total"):
        alone = getattr(budget, f"{name}_alone", None)
        added = _number(float(getattr(budget, name)))
        table.add_row(name, added, "" if alone is None else _number(float(alone)))
    _show(table)
    _say(
        f"W2 {float(evaluation.w2):.4g}, KL(p_data || q) {float(evaluation.kl):.4g} nats, KL(q || p_data) "
        f"{float(evaluation.reverse_kl):.4g} nats, {evaluation.nfe} network evaluations"
    )
