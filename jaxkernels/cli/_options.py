"""The options that commands share.

A command is a dataclass whose fields are its options and arguments. It inherits from the groups
below that it needs; the group that is listed last comes first in its help.
"""

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import _checks
from ..processes import PROCESSES
from ..recurrence import NAMED_INITIALIZATIONS
from ..samplers import SAMPLERS
from ..schedules import SCHEDULES

DEFAULT_PROCESS = "vp"
DEFAULT_SAMPLER = "dpmpp_2m"
DEFAULT_STEPS = 10
LARGEST_STEPS = 10_000
DEFAULT_MAX_SAMPLES = 2000


def option(help: str, panel: str | None = None, *names: str) -> Any:
    """Metadata of an option whose default is told in its help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


_LIST = "inline (14.6,3.1,0), or a .txt, .csv, .json, .npy or .npz file"
_SIGMAS = (
    f"A user-defined schedule as noise levels s/a, {_LIST}: all K + 1, the last one too. Of flow "
    "models what their tools call sigmas, t in 0..1."
)
_TIMESTEPS = (
    f"A user-defined schedule as the K timesteps of the network, {_LIST}; a last step to the data "
    "follows. discrete_vp: 0..N-1; flow_matching: 0..1000."
)


def flag_name(field: str) -> str:
    """The option that sets a field."""
    return f"--{field.replace('_', '-')}"


@dataclasses.dataclass(kw_only=True)
class AbstractCommand(abc.ABC):
    """A command whose options are parsed."""

    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="Neither read nor write compiled programs in the user's cache folder.",
        ),
    ] = False

    @abc.abstractmethod
    def run(self) -> None:
        """Do what is asked for. ValueError for a mistake in it."""


@dataclasses.dataclass(kw_only=True)
class TargetOptions:
    """The statistics of the data."""

    data: Annotated[
        str | None,
        option(
            "Samples: digits; a .npy, .npz, .pt, .safetensors, .h5, .csv, .parquet, .arrow or .tar "
            "file; or a folder of images, arrays, tables or shards."
        ),
    ] = None
    max_samples: Annotated[
        int | None,
        option(
            f"Read a random subset of this size of larger data (default {DEFAULT_MAX_SAMPLES}; "
            "always the same one)."
        ),
    ] = None
    spectrum: Annotated[
        str | None,
        option("Eigenvalues of the data covariance: a .npy, .npz, .csv, .txt or .json file."),
    ] = None
    key: Annotated[
        str | None,
        option("Which array, column or extension to read, where a file holds several by name."),
    ] = None
    shrinkage: Annotated[
        str | None,
        option("Of the covariance of samples: ledoit_wolf (default) or a number in 0..1."),
    ] = None

    @property
    def describes_data(self) -> bool:
        """Whether any of these options was given."""
        names = [f.name for f in dataclasses.fields(TargetOptions)]
        return any(getattr(self, name) is not None for name in names)


@dataclasses.dataclass(kw_only=True)
class ProcessOptions:
    """The forward process. Parameters are those of its constructor."""

    process: Annotated[
        str | None,
        option(
            f"{', '.join(PROCESSES)}; default that of the schedule's file, or {DEFAULT_PROCESS}.",
            "Process",
        ),
    ] = None
    beta_min: Annotated[float | None, option("vp: rate at t = 0.", "Process")] = None
    beta_max: Annotated[float | None, option("vp: rate at t = 1.", "Process")] = None
    rate: Annotated[float | None, option("ou, ve: rate.", "Process")] = None
    t_max: Annotated[
        float | None,
        option(
            "ou, ve: largest time. Others: where sampling starts, from noised data if that is "
            "below the process's largest time.",
            "Process",
        ),
    ] = None
    sigma_max: Annotated[
        float | None,
        option(
            "edm: largest noise level. Others: the level where sampling starts, from noised data.",
            "Process",
        ),
    ] = None
    strength: Annotated[
        float | None,
        option(
            "Image-to-image: sampling starts from noised data at this share of the largest time, "
            "in 0..1; not for edm and ve, whose time is no timestep.",
            "Process",
        ),
    ] = None
    offset: Annotated[float | None, option("cosine_vp: offset of the cosine.", "Process")] = None
    power: Annotated[int | None, option("power_vp: signal 1 - t^power.", "Process")] = None
    table: Annotated[
        str | None,
        option(
            "discrete_vp: file with alphas_cumprod or betas; default Stable Diffusion's.", "Process"
        ),
    ] = None

    def process_parameters(self) -> dict[str, float | int | str]:
        """The parameters that were given, by field."""
        names = [f.name for f in dataclasses.fields(ProcessOptions) if f.name != "process"]
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(kw_only=True)
class SamplerOptions:
    """The sampler."""

    sampler: Annotated[
        str | None,
        option(f"{', '.join(SAMPLERS)}; default that of the file, or {DEFAULT_SAMPLER}."),
    ] = None


@dataclasses.dataclass(kw_only=True)
class InitializationOptions:
    """The initial distribution."""

    initialization: Annotated[
        str | None,
        option(
            "Distribution that sampling starts from: standard_normal, or marginal, the exact one "
            "at the first time, that is noised data. Default: that of the schedule's file; "
            "marginal where sampling starts below the process's largest time; else standard_normal."
        ),
    ] = None

    def initial_distribution(self, stated: Mapping[str, str] | None = None) -> str | None:
        """The checked name that was asked for, or the one that files state; None for neither."""
        if self.initialization is not None:
            return _checks.one_of("--initialization", self.initialization, NAMED_INITIALIZATIONS)
        names = set((stated or {}).values())
        if len(names) > 1:
            told = ", ".join(f"{file}: {name}" for file, name in (stated or {}).items())
            raise ValueError(
                f"the files start from different distributions ({told}); give one as "
                "--initialization."
            )
        return names.pop() if names else None


@dataclasses.dataclass(kw_only=True)
class ScheduleOptions:
    """Length and end of a schedule."""

    steps: Annotated[int | None, option(f"Number of steps K (default {DEFAULT_STEPS}).")] = None
    t_min: Annotated[
        float | None, option("Last time (default: that of the process, such as 0.002 for edm).")
    ] = None

    def num_steps(self) -> int:
        """The checked number of steps."""
        steps = DEFAULT_STEPS if self.steps is None else self.steps
        return _checks.count("--steps", steps, at_most=LARGEST_STEPS)


@dataclasses.dataclass(kw_only=True)
class RivalOptions:
    """User-defined schedules, as lists."""

    sigmas: Annotated[list[str] | None, option(f"{_SIGMAS} May be repeated.")] = None
    timesteps: Annotated[list[str] | None, option(f"{_TIMESTEPS} May be repeated.")] = None


@dataclasses.dataclass(kw_only=True)
class OneScheduleOptions(ScheduleOptions):
    """One schedule, from a file or by its name."""

    file: Annotated[Path | None, typer.Argument(help="A schedule file, or use --schedule.")] = None
    schedule: Annotated[str | None, option(f"A known schedule: {', '.join(SCHEDULES)}.")] = None
    sigmas: Annotated[str | None, option(_SIGMAS)] = None
    timesteps: Annotated[str | None, option(_TIMESTEPS)] = None

    def check_source(self, command: str) -> None:
        """ValueError unless there is exactly one schedule, and options only of a name."""
        sources = (self.file, self.schedule, self.sigmas, self.timesteps)
        given = [str(source) for source in sources if source is not None]
        if len(given) != 1:
            raise ValueError(
                f"{command} needs either a schedule FILE or --schedule NAME, or else a list as "
                "--sigmas or --timesteps."
            )
        if self.schedule is not None:
            return
        for name, value in (("steps", self.steps), ("t_min", self.t_min)):
            if value is not None:
                raise ValueError(
                    f"{flag_name(name)} = {value} is for --schedule NAME; {given[0]} has its own."
                )
