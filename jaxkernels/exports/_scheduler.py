"""Tools and their schedulers as data."""

import dataclasses
import types
from collections.abc import Mapping

from .. import _checks
from ..processes import AbstractProcess
from ..samplers import SAMPLERS
from ..schedules import Schedule
from ._initial_noise import AbstractInitialNoise, Scaled, UnitVariance
from ._levels import AbstractLevels, AbstractTableLevels
from ._noise import AbstractNoise, Churn, FlowEta
from ._render import Text, placeholders

PLACEHOLDERS: Mapping[str, str] = types.MappingProxyType(
    {
        "name": "the scheduler's name",
        "keyword": "the tool's name of the numbers",
        "variable": "the variable that holds the numbers",
        "numbers": "the statement that assigns the numbers to the variable",
        "decimals": "the numbers separated by commas, without exponents",
        "first": "the first of the levels",
        "num_steps": "the number of steps that the tool takes",
        "function": "the tool's name of the sampler",
        "options": "what else the tool is told of the sampler",
        "config": "the statement that gives a pipeline of diffusers the scheduler and its settings",
        "scheduled": "the same for the class Scheduled, which the text defines",
        "parameters": "the statement that assigns the noise parameter of every step",
        "constant": "the noise parameter of all steps",
    }
)
"""What every text of a scheduler may contain in braces."""


@dataclasses.dataclass(frozen=True)
class Emulation:
    """Declare a sampler of jaxkernels whose steps a scheduler takes.

    **Arguments:**

    - `sampler`: the sampler's name in `jk.samplers.SAMPLERS`.
    - `function`: what the tool calls it, for the placeholder {function}.
    - `options`: what else the tool is told of it, for {options}; may contain placeholders.
    - `noise`: how this sampler injects noise, where it differs from the scheduler's.
    - `exact_for`: types of process for which the steps agree; by default all.
    - `difference`: how they differ for other processes, with the placeholder {name}.

    **Raises:** ValueError for an unknown sampler, and if `difference` is given for all processes or
    missing for some.

    **Example:**

    ```python
    >>> jk.exports.Emulation("ddim", "sample_euler").exact_for
    (<class 'jaxkernels.processes._base.AbstractProcess'>,)
    ```
    """

    sampler: str
    function: str = ""
    options: str = ""
    noise: AbstractNoise | None = None
    exact_for: tuple[type[AbstractProcess], ...] = (AbstractProcess,)
    difference: str = ""

    def __post_init__(self):
        _checks.lookup("sampler", self.sampler, SAMPLERS)
        if (AbstractProcess in self.exact_for) == bool(self.difference):
            raise ValueError(
                f"Emulation {self.sampler!r}: difference = {self.difference!r} must say how the "
                "steps differ for processes outside exact_for, and be empty if there are none."
            )


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """Declare how one scheduler of a tool takes a schedule.

    Everything that `export` does for a tool follows from these fields, so a new scheduler is one
    record; see `Tool`.

    **Arguments:**

    - `name`: the name in messages, and for the placeholder {name}.
    - `keyword`: the tool's name of the numbers, under which `Export.values` holds them.
    - `levels`: how the numbers stand for the levels: `Sigmas`, `FlowSigmas`, `KarrasRamp`,
      `TableSigmas` or `Timesteps`. Its options are those of the scheduler.
    - `final_zero`: "written" if the numbers include the final level, "appended" if the tool appends
      a level 0 itself.
    - `stops`: the levels above 0 at which the tool can stop: "anywhere", "table_minimum" (only at
      the smallest level of the table) or "never".
    - `noise`: `Eta`, `FlowEta`, `Churn`, `Fixed` or `Deterministic`.
    - `emulates`: the samplers of jaxkernels whose steps it takes, the default one first.
    - `initial_noise`: `WrittenOut`, `SpacingSetting`, `Scaled`, `ScaledAtTableTop` or
      `UnitVariance`.
    - `text`: the text for a schedule without noise; `noise` has those with noise.
    - `variable`: the variable that the text assigns, by default `keyword`.
    - `form`: the expression that holds the list of numbers, in place of {}.
    - `settings`: arguments for {config} and {scheduled}, which may contain placeholders.
    - `settings_above_zero`: those for a schedule that stops above 0, where they differ.

    **Raises:** ValueError for declarations that contradict each other.

    **Example:**

    ```python
    >>> jk.exports.SCHEDULERS["ddpm"].noise
    Fixed(stochasticity=1.0)
    ```
    """

    name: str
    keyword: str
    levels: AbstractLevels
    final_zero: str
    stops: str
    noise: AbstractNoise
    emulates: tuple[Emulation, ...]
    initial_noise: AbstractInitialNoise
    text: Text
    variable: str = ""
    form: str = "{}"
    settings: tuple[str, ...] = ()
    settings_above_zero: tuple[str, ...] = ()

    def __post_init__(self):
        _checks.one_of("final_zero", self.final_zero, ("written", "appended"))
        _checks.one_of("stops", self.stops, ("anywhere", "table_minimum", "never"))
        if not self.variable:
            object.__setattr__(self, "variable", self.keyword)
        for fault in (*self._level_faults(), *self._text_faults()):
            raise ValueError(f"Scheduler {self.name!r}: {fault}.")

    def _level_faults(self) -> list[str]:
        """Contradictions between the fields on levels, noise and samplers."""
        samplers = [emulation.sampler for emulation in self.emulates]
        at_minimum = self.stops == "table_minimum"
        checks = {
            "keyword and variable must be names": not (
                self.keyword.isidentifier() and self.variable.isidentifier()
            ),
            "final_zero='appended' contradicts stops='anywhere'": (
                self.final_zero == "appended" and self.stops == "anywhere"
            ),
            "stops='table_minimum' needs levels on a table": (
                at_minimum and not isinstance(self.levels, AbstractTableLevels)
            ),
            "settings_above_zero need stops='anywhere' or 'table_minimum'": (
                bool(self.settings_above_zero) and self.stops == "never"
            ),
            "FlowEta is for levels of flow models": (
                isinstance(self.noise, FlowEta) and self.levels.unit != "flow"
            ),
            "UnitVariance is for levels of flow models": (
                isinstance(self.initial_noise, UnitVariance) and self.levels.unit != "flow"
            ),
            "Scaled('sigma_max') needs levels with an option sigma_max": (
                self.initial_noise == Scaled("sigma_max") and "sigma_max" not in self.levels.options
            ),
            "Churn is for levels in sigma": (
                isinstance(self.noise, Churn) and self.levels.unit != "sigma"
            ),
            "emulates must name at least one sampler, each once": (
                not samplers or len(set(samplers)) < len(samplers)
            ),
        }
        return [fault for fault, holds in checks.items() if holds]

    def _text_faults(self) -> list[str]:
        """Placeholders that nothing fills, and settings that no text uses."""
        own = [entry.noise for entry in self.emulates if entry.noise]
        texts = (self.text, *(text for noise in (self.noise, *own) for text in noise.texts))
        found = set().union(*(text.placeholders for text in texts))
        settings = (*self.settings, *self.settings_above_zero)
        found |= set().union(*map(placeholders, settings))
        known = {*PLACEHOLDERS, *self.levels.options, *self.initial_noise.placeholders}
        faults = [
            f"{{{name}}} is no placeholder; known: {', '.join(sorted(known))}"
            for name in sorted(found - known)
        ]
        if settings and not {"config", "scheduled"} & found:
            faults.append("settings are given, but no text contains {config} or {scheduled}")
        faults += [
            f"{{function}} is used, but not given for {entry.sampler}"
            for entry in self.emulates
            if "function" in found and not entry.function
        ]
        faults += [
            f"no text or setting contains {{{name}}}"
            for name in self.initial_noise.placeholders
            if name not in found
        ]
        return faults

    def for_sampler(self, sampler: str | None) -> "Scheduler":
        """Return the record as it is for one sampler.

        **Arguments:**

        - `sampler`: the sampler's name, or None if it is not known.

        **Returns:** this record, with the noise of that sampler.
        """
        entry = self.emulation(sampler)
        if entry is None or entry.noise is None:
            return self
        return dataclasses.replace(self, noise=entry.noise)

    def emulation(self, sampler: str | None) -> Emulation | None:
        """Look up how this scheduler takes a sampler's steps.

        **Arguments:**

        - `sampler`: the sampler's name, or None if it is not known.

        **Returns:** the entry of `emulates`, or None if there is none for this sampler.
        """
        return {entry.sampler: entry for entry in self.emulates}.get(sampler or "")

    def sampler_warnings(self, sampler: str | None, process: AbstractProcess) -> tuple[str, ...]:
        """Return what separates this scheduler from the sampler that the schedule was made for.

        **Arguments:**

        - `sampler`: the sampler's name, or None if it is not known.
        - `process`: the process that the schedule was made for.

        **Returns:** warnings; empty if the steps agree or the sampler is not known.
        """
        if sampler is None:
            return ()
        emulation = self.emulation(sampler)
        if emulation is None:
            return (
                f"the schedule was made for the sampler {sampler}; {self.name} runs another one "
                "here",
            )
        if isinstance(process, emulation.exact_for):
            return ()
        return (emulation.difference.format(name=self.name),)


@dataclasses.dataclass(frozen=True)
class Default:
    """Declare when a tool's scheduler is taken that the user did not name.

    **Arguments:**

    - `scheduler`: its name in `Tool.schedulers`.
    - `processes`: types of process for which it is; by default all.
    - `sampler`: the sampler for which it is; by default all.
    - `stochastic`: only for stochastic schedules.

    **Example:**

    ```python
    >>> rule = jk.exports.Default("heun", sampler="heun")
    >>> rule.applies(jk.Schedule([1.0, 0.1]), jk.VP(), "ddim")
    False
    ```
    """

    scheduler: str
    processes: tuple[type[AbstractProcess], ...] = (AbstractProcess,)
    sampler: str | None = None
    stochastic: bool = False

    def applies(self, schedule: Schedule, process: AbstractProcess, sampler: str | None) -> bool:
        """Return whether this rule is for these arguments of `export`.

        **Arguments:**

        - `schedule`, `process`: the schedule and the process that it was made for.
        - `sampler`: the sampler's name, or None if it is not known.

        **Returns:** True if it is.
        """
        return (
            isinstance(process, self.processes)
            and self.sampler in (None, sampler)
            and (schedule.is_stochastic or not self.stochastic)
        )


@dataclasses.dataclass(frozen=True)
class Tool:
    """Declare a tool that takes schedules.

    A user-defined tool is one record, and is passed to `export` as it is. To add one to the
    library, write the record into a new file and name it in `TOOLS` (in `exports/_dispatch.py`); to
    add a scheduler to a tool, add its record to the tool's `schedulers`. Nothing else is needed:
    tests and documentation walk the records.

    **Arguments:**

    - `name`: the name that `export` takes.
    - `schedulers`: its schedulers by name, the default one first.
    - `defaults`: rules for the default scheduler; the first that applies wins.
    - `selectable`: whether the user may name the scheduler, by `export(..., scheduler=name)`.
    - `unsupported`: what the tool has but `export` does not support, by name, with the reason.

    **Raises:** ValueError for a rule that names no scheduler of the tool, for rules of which none
    may apply, and for a scheduler that is also unsupported.

    **Example:**

    ```python
    >>> loop = jk.exports.Scheduler(
    ...     name="my_loop",
    ...     keyword="levels",
    ...     levels=jk.exports.Sigmas(),
    ...     final_zero="written",
    ...     stops="anywhere",
    ...     noise=jk.exports.Deterministic(),
    ...     emulates=(jk.exports.Emulation("ddim"),),
    ...     initial_noise=jk.exports.Scaled("level"),
    ...     text=jk.exports.Text("{numbers}"),
    ... )
    >>> tool = jk.exports.Tool("my_tool", {"my_loop": loop})
    >>> jk.export(jk.Schedule([80.0, 5.0, 0.1]), jk.EDM(), tool, sampler="ddim").text
    'levels = [80.0, 5.0, 0.1]'
    ```
    """

    name: str
    schedulers: Mapping[str, Scheduler]
    defaults: tuple[Default, ...] = ()
    selectable: bool = False
    unsupported: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.schedulers:
            raise ValueError(f"Tool {self.name!r}: schedulers is empty.")
        defaults = self.defaults or (Default(next(iter(self.schedulers))),)
        object.__setattr__(self, "defaults", defaults)
        for rule in self.defaults:
            _checks.lookup("scheduler", rule.scheduler, self.schedulers)
        last = self.defaults[-1]
        if last != Default(last.scheduler):
            raise ValueError(f"Tool {self.name!r}: the last of its defaults must always apply.")
        both = {_bare(name) for name in self.unsupported} & {
            _bare(scheduler.name) for scheduler in self.schedulers.values()
        }
        if both:
            raise ValueError(f"Tool {self.name!r}: {min(both)} is both supported and unsupported.")

    def select(
        self,
        schedule: Schedule,
        process: AbstractProcess,
        sampler: str | None,
        scheduler: str | None,
    ) -> str:
        """Return the name of the scheduler to export to.

        **Arguments:**

        - `schedule`, `process`, `sampler`: as in `export`, the sampler by name.
        - `scheduler`: the user's selection, or the name of its class, or None.

        **Returns:** a name in `schedulers`.

        **Raises:** ValueError for a scheduler that is unknown or unsupported, saying why.
        """
        if scheduler is None:
            rules = (rule for rule in self.defaults if rule.applies(schedule, process, sampler))
            return next(rules).scheduler
        reasons = {_bare(name): (name, reason) for name, reason in self.unsupported.items()}
        if scheduler not in self.schedulers and _bare(scheduler) in reasons:
            name, reason = reasons[_bare(scheduler)]
            raise ValueError(
                f"scheduler={scheduler!r} is not supported: {name} {reason}. "
                f"Supported: {', '.join(self.schedulers)}."
            )
        if not self.selectable:
            raise ValueError(
                f"tool {self.name!r} has no option 'scheduler'; it takes end, sampler."
            )
        if scheduler not in self.schedulers:
            same = [
                name for name, s in self.schedulers.items() if _bare(s.name) == _bare(scheduler)
            ]
            if len(same) == 1:
                return same[0]
        _checks.lookup("scheduler", scheduler, self.schedulers)
        return scheduler


def _bare(name: str) -> str:
    """A name without the parts and signs by which spellings of one scheduler differ."""
    bare = str(name).lower().replace("_", "").replace("-", "")
    return bare.removesuffix("scheduler").removesuffix("discrete")
