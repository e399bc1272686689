"""The options that commands share.

A command is a dataclass whose fields are its options and arguments. It inherits from the groups
below that it needs; the group that is listed last comes first in its help.
"""

import abc
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import typer

from .. import _checks
from ..processes import PROCESSES
from ..samplers import SAMPLERS
from ..schedules import BASELINES

DEFAULT_PROCESS = "vp"
DEFAULT_SAMPLER = "dpmpp_2m"
DEFAULT_STEPS = 10
DEFAULT_MAX_SAMPLES = 2000

Initialization: TypeAlias = Literal["standard_normal", "marginal"]


def option(help: str, panel: str | None = None, *names: str) -> Any:
    """Metadata of an option whose default is told in its help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


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
    t_max: Annotated[float | None, option("ou, ve, cosine_vp: largest time.", "Process")] = None
    sigma_max: Annotated[float | None, option("edm: largest noise level.", "Process")] = None
    offset: Annotated[float | None, option("cosine_vp: offset of the cosine.", "Process")] = None
    table: Annotated[
        str | None,
        option(
            "discrete_vp: file with alphas_cumprod or betas; default Stable Diffusion's.", "Process"
        ),
    ] = None

    def process_parameters(self) -> dict[str, float | str]:
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
        str,
        option(
            "Distribution that sampling starts from: standard_normal (default), or marginal, "
            "the exact one at the largest time."
        ),
    ] = "standard_normal"

    def initial_distribution(self) -> Initialization:
        """The checked name of the initial distribution."""
        names = ("standard_normal", "marginal")
        return cast(Initialization, _checks.one_of("--initialization", self.initialization, names))


@dataclasses.dataclass(kw_only=True)
class ScheduleOptions:
    """Length and end of a schedule."""

    steps: Annotated[int | None, option(f"Number of steps K (default {DEFAULT_STEPS}).")] = None
    t_min: Annotated[
        float | None, option("Last time (default: that of the process, such as 0.002 for edm).")
    ] = None

    def num_steps(self) -> int:
        """The checked number of steps."""
        return _checks.count("--steps", DEFAULT_STEPS if self.steps is None else self.steps)


@dataclasses.dataclass(kw_only=True)
class OneScheduleOptions(ScheduleOptions):
    """One schedule, from a file or by the name of a baseline."""

    file: Annotated[Path | None, typer.Argument(help="A schedule file, or use --schedule.")] = None
    schedule: Annotated[str | None, option(f"A baseline schedule: {', '.join(BASELINES)}.")] = None

    def check_source(self, command: str) -> None:
        """ValueError unless there is exactly one schedule, and options only of a baseline."""
        if (self.file is None) == (self.schedule is None):
            raise ValueError(f"{command} needs either a schedule FILE or --schedule NAME.")
        if self.file is None:
            return
        for name, value in (("steps", self.steps), ("t_min", self.t_min)):
            if value is not None:
                raise ValueError(
                    f"{flag_name(name)} = {value} is for --schedule NAME; {self.file} has its own."
                )
