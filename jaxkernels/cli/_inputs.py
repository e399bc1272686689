"""From options and files to the values that the library takes."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import _checks
from .._field_names import known_name
from .._plot import check_path
from .._progress import Progress
from ..data import load, load_numbers, load_spectrum
from ..distributions import Gaussian, GaussianMixture, sample_moments
from ..processes import (
    AbstractProcess,
    DiscreteVP,
    FlowMatching,
    check_process_name,
    from_config,
    parameters,
    sigma_range,
    to_config,
)
from ..recurrence import NAMED_INITIALIZATIONS
from ..samplers import SAMPLERS, check_sampler_name
from ..schedules import SCHEDULES, Schedule, read_json, times_at_sigmas
from ._options import (
    DEFAULT_MAX_SAMPLES,
    DEFAULT_PROCESS,
    DEFAULT_SAMPLER,
    OneScheduleOptions,
    ProcessOptions,
    RivalOptions,
    SamplerOptions,
    ScheduleOptions,
    TargetOptions,
    flag_name,
)
from ._show import say

# options that say where sampling starts, unless they are parameters of the process
_STARTS = ("t_max", "sigma_max", "strength")
_LIST_SUFFIXES = (".txt", ".csv", ".json", ".npy", ".npz")


@dataclasses.dataclass(frozen=True)
class SavedSchedule:
    """The content of a schedule file."""

    path: Path
    schedule: Schedule
    process: AbstractProcess | None
    sampler: str | None
    """Its name as the file states it, which need not be one of `SAMPLERS`."""
    initialization: str | None
    local_error: object = None
    """The objective that it minimises as the file describes it, if that is a `LocalError`."""


def read_schedule(path: Path) -> SavedSchedule:
    """The schedule of a file, with its process and sampler if the file states them."""
    schedule = Schedule.load(path)
    metadata = read_json(path).get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    process = metadata.get("process")
    try:
        process = None if process is None else from_config(process)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    sampler = metadata.get("sampler")
    start = metadata.get("initialization")
    if start is not None:
        start = _checks.one_of(f"{path}: initialization", start, NAMED_INITIALIZATIONS)
    name = None if sampler is None else str(sampler)
    return SavedSchedule(path, schedule, process, name, start, metadata.get("local_error"))


def stated_starts(files: Sequence[SavedSchedule]) -> dict[str, str]:
    """What sampling starts from, by the files that state it."""
    return {str(f.path): f.initialization for f in files if f.initialization is not None}


def select_process(options: ProcessOptions, files: Sequence[SavedSchedule]) -> AbstractProcess:
    """The process that was asked for, else that of the files, which must all agree."""
    stated = {str(f.path): f.process for f in files if f.process is not None}
    given = options.process_parameters()
    if options.process is not None or given or not stated:
        own = next((str(to_config(process)["type"]) for process in stated.values()), None)
        name = own if options.process is None else options.process
        stated = {"the options": make_process(name, given), **stated}
    (first, process), *others = stated.items()
    for name, other in others:
        if to_config(other) != to_config(process):
            raise ValueError(
                f"the times of {name} belong to another process than that of {first}: "
                f"{_describe(other)} instead of {_describe(process)}."
            )
    return process


def select_sampler(options: SamplerOptions, files: Sequence[SavedSchedule]) -> str:
    """The name of the sampler that was asked for, else the first in the files, else the default."""
    stated = [f.sampler for f in files if f.sampler in SAMPLERS]
    names = [options.sampler, *stated, DEFAULT_SAMPLER]
    name = next(name for name in names if name is not None)
    return check_sampler_name(name)


def make_process(name: str | None, given: Mapping[str, float | int | str]) -> AbstractProcess:
    """A built-in process with the parameters that were given."""
    name = check_process_name(DEFAULT_PROCESS if name is None else name)
    known = [key for key in process_fields(name) if key != "t_max" or name in ("ou", "ve")]
    starts = {key: float(given[key]) for key in _STARTS if key in given and key not in known}
    whole = _whole_process(name, {k: v for k, v in given.items() if k not in starts}, known)
    if not starts:
        return whole
    if len(starts) > 1:
        both = " and ".join(f"{flag_name(key)} {value:g}" for key, value in starts.items())
        raise ValueError(f"{both} both say where sampling starts; give one.")
    ((key, value),) = starts.items()
    start = _start_time(name, whole, key, value)
    with naming(f"{flag_name(key)} = {value:g}"):
        return whole.sub_range(start)


def _start_time(name: str, process: AbstractProcess, key: str, value: float) -> float:
    """The time that an option means."""
    flag = flag_name(key)
    if key == "t_max":
        return value
    if key == "sigma_max":
        largest = sigma_range(process, 0.0)[0]
        _checks.scalar(flag, value, above=0.0, at_most=largest)
        return float(times_at_sigmas(process, np.array([value]))[0])
    if name in ("edm", "ve"):
        other = "--t-max" if name == "edm" else "--sigma-max"
        raise ValueError(
            f"{flag} = {value:g} is a share of the timesteps, which {name} has none of; give the "
            f"noise level at which sampling starts as {other}."
        )
    share = float(_checks.scalar(flag, value, above=0.0, at_most=1.0))
    return share * float(process.t_max)


def _whole_process(
    name: str, given: Mapping[str, float | int | str], known: Sequence[str]
) -> AbstractProcess:
    """A built-in process on its whole range."""
    for key, value in given.items():
        if key not in known:
            takes = ", ".join(map(flag_name, known)) or "no parameters"
            raise ValueError(
                f"{flag_name(key)} = {value} has no use for process {name!r}, which takes {takes}."
            )
    if name != "discrete_vp":
        return from_config({"type": name, **given})
    if "table" not in given:
        return DiscreteVP.scaled_linear()
    with naming("--table"):
        return DiscreteVP(load_numbers(str(given["table"]), report=say))


def process_fields(name: str) -> list[str]:
    """The fields of `ProcessOptions` that a process takes."""
    return ["table" if p == "alphas_cumprod" else p for p in parameters(name) if p != "name"]


def _describe(process: AbstractProcess) -> str:
    """A process with its parameters, for messages."""
    config = to_config(process)
    parts = [f"{key}={value:g}" for key, value in config.items() if isinstance(value, float)]
    if isinstance(process, DiscreteVP):
        parts.insert(0, f"table of {len(np.asarray(process.log_sigmas))} entries")
    return f"{config['type']}({', '.join(parts)})"


def named_schedule(name: str, process: AbstractProcess, options: ScheduleOptions) -> Schedule:
    """A schedule by its name, with the length and end that were asked for."""
    t_min = process.default_t_min if options.t_min is None else options.t_min
    make = SCHEDULES[known_name("schedule", "schedule", name, SCHEDULES)]
    return make(process, options.num_steps(), t_min)


def one_schedule(
    options: OneScheduleOptions, files: Sequence[SavedSchedule], process: AbstractProcess
) -> Schedule:
    """The schedule of a file, of a list or by a name."""
    if files:
        return files[0].schedule
    if options.sigmas is not None:
        return listed_schedule(options.sigmas, process, "sigmas")
    if options.timesteps is not None:
        return listed_schedule(options.timesteps, process, "timesteps")
    return named_schedule(str(options.schedule), process, options)


def listed_schedule(text: str, process: AbstractProcess, kind: str) -> Schedule:
    """A user-defined schedule, a list of "sigmas" or "timesteps" that is inline or in a file."""
    numbers = _read_list(flag_name(kind), text)
    if kind == "timesteps":
        return Schedule.from_timesteps(process, numbers)
    if len(numbers) < 2:
        raise ValueError(f"--sigmas = {text!r} must be at least 2 levels, the last one too.")
    if isinstance(process, FlowMatching):
        # what tools for flow models call sigma is t
        return Schedule(_checks.array("--sigmas", numbers))
    return Schedule.from_sigmas(process, numbers)


def listed_schedules(options: RivalOptions, process: AbstractProcess) -> dict[str, Schedule]:
    """User-defined schedules by name."""
    return {
        _listed_name(text, kind): listed_schedule(text, process, kind)
        for kind in ("sigmas", "timesteps")
        for text in getattr(options, kind) or []
    }


def _listed_name(text: str, kind: str) -> str:
    """How tables call it: by its file, or by its beginning."""
    return text if Path(text).suffix in _LIST_SUFFIXES else f"{kind} {text[:24]}"


def _read_list(flag: str, text: str) -> np.ndarray:
    """The numbers of a file or of the command line."""
    if Path(text).suffix in _LIST_SUFFIXES:
        with naming(flag):
            return load_numbers(text)
    words = text.strip().strip("[]()").replace(",", " ").split()
    values = [as_number(word) for word in words]
    wrong = [word for word, value in zip(words, values, strict=True) if value is None]
    if wrong or not words:
        said = f"{wrong[0]!r} is no number" if wrong else "it is empty"
        raise ValueError(
            f"{flag} = {text!r} must be numbers or a {', '.join(_LIST_SUFFIXES)} file: {said}."
        )
    return np.array(values, np.float64)


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Put the option before what is wrong with its file or its value."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def as_number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def read_target(options: TargetOptions) -> Gaussian:
    """The Gaussian with the spectrum, or fitted to the samples, that were given."""
    if (options.data is None) == (options.spectrum is None):
        raise ValueError("give the data either as --data (samples) or as --spectrum (eigenvalues).")
    if options.spectrum is None:
        value = None if options.shrinkage is None else as_number(options.shrinkage)
        shrinkage = options.shrinkage or "ledoit_wolf"
        samples = _read_samples(options)
        with Progress("finding the principal axes"):
            return Gaussian.fit(samples, shrinkage=shrinkage if value is None else value)
    for name in ("shrinkage", "max_samples"):
        given = getattr(options, name)
        if given is not None:
            raise ValueError(
                f"{flag_name(name)} = {given} is for samples (--data); a spectrum is taken as it "
                "is."
            )
    with naming("--spectrum"):
        target = Gaussian(0.0, load_spectrum(options.spectrum, options.key, report=say))
    say(f"target: {target.dim:.0f} eigenvalues from {options.spectrum}")
    return target


def read_model(
    options: TargetOptions, components: int | None, covariance_options: Sequence[str]
) -> Gaussian | GaussianMixture:
    """What `optimize` takes as target.

    A mixture is fitted to samples, unless an option needs the covariance alone.
    """
    if components is not None:
        _checks.count("--mixture", components, at_least=0)
    if components and options.data is None:
        raise ValueError(f"--mixture = {components} is fitted to samples: give them as --data.")
    if components and covariance_options:
        raise ValueError(
            f"--mixture = {components} has no use for {covariance_options[0]}, which is of the "
            "covariance alone."
        )
    no_samples = options.spectrum is not None or options.data is None
    if no_samples or components == 0 or covariance_options:
        return read_target(options)
    samples = _read_samples(options)
    say("model: a mixture of Gaussians (--mixture 0: the covariance alone, in seconds)")
    with Progress("fitting a mixture"):
        return GaussianMixture.fit(samples, components)


def _read_samples(options: TargetOptions) -> np.ndarray:
    """The samples, described."""
    most = DEFAULT_MAX_SAMPLES
    if options.max_samples is not None:
        most = _checks.count("--max-samples", options.max_samples, at_least=2)
    with naming("--data"):
        samples = load(str(options.data), options.key, max_samples=most, report=say)
    moments = sample_moments(samples.reshape(len(samples), -1))
    deviation = float(np.sqrt(np.mean(moments.variance)))
    say(
        f"target: {len(samples)} samples of {moments.mean.size} dimensions from {options.data}, "
        f"standard deviation {deviation:.3g}, kurtosis {moments.kurtosis:.2g}"
    )
    return samples


def figure_path(output: Path, plot: Path | None, no_plot: bool) -> Path | None:
    """Where the figure goes, checked; None for no figure."""
    if no_plot:
        if plot is not None:
            raise ValueError(f"--plot {plot} and --no-plot exclude each other.")
        return None
    path = output.with_suffix(".png") if plot is None else plot
    if path == output:
        raise ValueError(f"--output and --plot are both {path}.")
    check_path(path)
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """ValueError if a file could not be written at `path`, before there is something to write."""
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is not a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: it is read-only.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror} ({path.parent}).") from None
