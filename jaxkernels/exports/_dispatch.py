"""The export of a schedule: one engine for every tool."""

import dataclasses

import numpy as np
from jaxtyping import Float

from .. import _checks
from ..processes import AbstractProcess
from ..samplers import (
    DDIM,
    SAMPLERS,
    AbstractSampler,
    as_sampler,
    check_schedule,
    sampler_name,
)
from ..schedules import Schedule
from ._comfyui import COMFYUI, COMFYUI_NODE
from ._diffusers import DIFFUSERS
from ._edm import EDM
from ._export import Export
from ._k_diffusion import K_DIFFUSION
from ._levels import AbstractLevels, AbstractTableLevels
from ._plan import Levels, Plan, schedule_levels
from ._render import Text, assignment, decimals, from_config, placeholders, written
from ._scheduler import Scheduler, Tool

TOOLS: dict[str, Tool] = {
    tool.name: tool for tool in (DIFFUSERS, K_DIFFUSION, COMFYUI, COMFYUI_NODE, EDM)
}
"""The tools that `export` knows by name."""


def export(
    schedule: Schedule,
    process: AbstractProcess,
    tool: str | Tool,
    *,
    sampler: object = None,
    scheduler: str | None = None,
    end: str | None = None,
    **options: object,
) -> Export:
    """Write a schedule in the form that another tool takes.

    **Arguments:**

    - `schedule`: the schedule.
    - `process`: the process that its times belong to.
    - `tool`: "diffusers", "k-diffusion", "comfyui", "comfyui-node" (a file for its folder
      custom_nodes) or "edm", or a user-defined `Tool`.
    - `sampler`: the sampler that the schedule is for, or its name. A warning says where the tool
      differs from it; for diffusers and k-diffusion it selects what the text runs.
    - `scheduler`: diffusers only: a name in `exports.SCHEDULERS` or that of its class, by default
      the one that takes the steps of `sampler` for this process.
    - `end`: what becomes of a last level above 0: "keep" it (the default where the tool can stop
      there), "replace" it by 0 (the default elsewhere), or "append" a step to 0, which raises NFE.
    - `options`: those of the scheduler. euler, dpm_multistep, ddpm and heun: `table`, the network's
      `DiscreteVP`. flow_match_euler: `shift`. edm_euler: `sigma_min`, `sigma_max`, `rho`.

    **Returns:** an `Export`: the numbers, the text to paste, warnings and remarks.

    **Raises:** ValueError for a tool, scheduler, option or sampler that is unknown or unsupported,
    and for a schedule that the sampler cannot take or the tool cannot represent.

    **Example:**

    ```python
    >>> schedule = jk.Schedule([80.0, 5.0, 0.1])
    >>> jk.export(schedule, jk.EDM(), "k-diffusion", sampler="dpmpp_2m").values["sigmas"]
    (80.0, 5.0, 0.1)
    ```
    """
    as_given = as_sampler(DDIM() if sampler is None else sampler)
    check_schedule(process, as_given, schedule)
    name = None if sampler is None else sampler_name(as_given)
    if not isinstance(tool, Tool):
        tool = _checks.lookup("tool", tool, TOOLS)
    selected = tool.select(schedule, process, name, scheduler)
    label = f"scheduler {selected!r}" if tool.selectable else f"tool {tool.name!r}"
    record = tool.schedulers[selected].for_sampler(name)
    levels = _configured(record.levels, options, label).for_process(process)
    record = dataclasses.replace(record, levels=levels)
    plan, warnings = _planned(record, schedule, process, end)
    warnings += _option_warnings(record, as_given, plan)
    return _exported(tool.name, record, plan, name, warnings)


def _configured(levels: AbstractLevels, options: dict[str, object], label: str) -> AbstractLevels:
    """The levels with the user's options."""
    for option in options:
        if option not in levels.options:
            known = ", ".join(("end", "sampler", *levels.options))
            raise ValueError(f"{label} has no option {option!r}; it takes {known}.")
    return dataclasses.replace(levels, **options)  # pyright: ignore[reportArgumentType]


def _planned(
    record: Scheduler, schedule: Schedule, process: AbstractProcess, end: str | None
) -> tuple[Plan, tuple[str, ...]]:
    """The plan, and warnings on its levels."""
    rule = record.levels
    given = schedule_levels(schedule, process, rule.unit, record.name)
    levels, end_warnings = _ended(record, given, end)
    plan = Plan(
        name=record.name,
        schedule=schedule,
        process=process,
        unit=rule.unit,
        levels=levels,
        strength=record.noise.strength(schedule, process, levels),
        options={name: getattr(rule, name) for name in rule.options},
    )
    return plan, end_warnings + rule.check(levels, record.name)


def _ended(
    record: Scheduler, levels: Float[np.ndarray, " points"], end: str | None
) -> tuple[Levels, tuple[str, ...]]:
    """The levels with the requested end, by default the schedule's own where the tool can stop."""
    last = float(levels[-1])
    keeps = _can_stop(record, last)
    if end is None:
        end = "keep" if keeps else "replace"
    _checks.one_of("end", end, ("replace", "append", "keep"))
    if last == 0.0:
        return levels, ()
    if end == "keep":
        if not keeps:
            raise ValueError(
                f"end='keep': {record.name} cannot stop at the level {last:.4g}; use 'replace' or "
                "'append'."
            )
        return levels, ()
    if end == "append":
        warning = f"a step from the last level {last:.4g} to 0 is appended: {levels.size} steps"
        return np.append(levels, 0.0), (warning,)
    stops = ", end='keep' stops there" if keeps else ""
    warning = (
        f"the last level {last:.4g} is replaced by 0 to keep {levels.size - 1} steps, so the last "
        "step is not the one that was evaluated; end='append' keeps the level at the price of one "
        f"step{stops}"
    )
    return np.append(levels[:-1], 0.0), (warning,)


def _can_stop(record: Scheduler, last: float) -> bool:
    """Whether the scheduler can stop at this level above 0."""
    if isinstance(record.levels, AbstractTableLevels) and record.stops == "table_minimum":
        return record.levels.is_smallest(last)
    return record.stops == "anywhere"


_ACTS_AT_ZERO = {"final": True, "lower_order_final": False}
"""Options of samplers that matter only if the last level is 0, or only if it is not."""


def _option_warnings(record: Scheduler, sampler: AbstractSampler, plan: Plan) -> tuple[str, ...]:
    """Warnings on options of the sampler that the scheduler takes otherwise."""
    emulation = record.emulation(sampler_name(sampler))
    if emulation is None:
        return ()
    usual = SAMPLERS[emulation.sampler]()
    made_for = type(sampler).__name__
    return tuple(
        f"the schedule was made for {made_for}({field.name}={getattr(sampler, field.name)!r}); "
        f"{record.name} takes the steps of {field.name}={getattr(usual, field.name)!r}"
        for field in dataclasses.fields(usual)
        if getattr(sampler, field.name) != getattr(usual, field.name)
        and _ACTS_AT_ZERO.get(field.name, plan.ends_at_zero) == plan.ends_at_zero
    )


def _exported(
    tool: str, record: Scheduler, plan: Plan, sampler: str | None, warnings: tuple[str, ...]
) -> Export:
    """The numbers and the text of a plan, with all that there is to say."""
    if record.final_zero == "written":
        numbers = record.levels.write(plan.levels)
    else:
        # a level above 0 where the tool stops counts among those that must be distinct
        numbers = record.levels.write(plan.levels[plan.levels > 0])[: plan.levels.size - 1]
    values = {record.keyword: numbers}
    noisy = record.noise.text(plan)
    if noisy is not None:
        values[record.noise.parameter] = written(plan.strength)
    parts = _parts(record, plan, values, sampler)
    source = record.text if noisy is None else noisy
    starts_from_data = plan.process.full_t_max is not None
    if starts_from_data and source.from_data is not None:
        source = source.from_data
    text = _filled(source, parts)
    warnings += _noised_data(plan) if starts_from_data else record.initial_noise.warnings(plan)
    warnings += record.noise.warnings(plan)
    warnings += record.sampler_warnings(sampler, plan.process)
    remarks = text.remarks
    if not starts_from_data:
        remarks += record.initial_noise.remarks(plan)
    binding = text.template if "scheduled" in placeholders(source.template) else ""
    pasted = f"{text.template}\n{text.call}" if text.call else text.template
    return Export(tool, values, pasted, warnings, remarks, binding)


def _noised_data(plan: Plan) -> tuple[str, ...]:
    """What the first x is where a schedule starts below the process's largest time."""
    first = f"{plan.levels[0]:.6g}"
    x = f"(1 - {first}) x0 + {first} noise" if plan.unit == "flow" else f"x0 + {first} noise"
    return (
        f"the schedule starts from noised data at level {first}, not from pure noise: start "
        f"{plan.name} from {x}, with x0 from the data and noise of standard deviation 1",
    )


def _parts(
    record: Scheduler,
    plan: Plan,
    values: dict[str, tuple[float | int, ...]],
    sampler: str | None,
) -> dict[str, object]:
    """What stands for the placeholders of a scheduler's texts."""
    numbers = values[record.keyword]
    noise = record.noise
    emulation = record.emulation(sampler) or record.emulates[0]
    parts: dict[str, object] = {
        "name": record.name,
        "keyword": record.keyword,
        "variable": record.variable,
        "numbers": assignment(record.variable, numbers, record.form),
        "decimals": decimals(numbers),
        "first": f"{plan.levels[0]:.6g}",
        "num_steps": plan.levels.size - 1,
        "function": emulation.function,
        "parameters": assignment(noise.variable, values.get(noise.parameter, ())),
        "constant": plan.constant or 0.0,
        **plan.options,
        **record.initial_noise.parts(plan),
    }
    parts["options"] = emulation.options.format_map(parts)
    settings = record.settings
    if record.settings_above_zero and not plan.ends_at_zero:
        settings = record.settings_above_zero
    filled = [setting.format_map(parts) for setting in settings]
    parts["config"] = from_config(record.name, filled)
    parts["scheduled"] = from_config("Scheduled", filled)
    return parts


def _filled(text: Text, parts: dict[str, object]) -> Text:
    """The text with its placeholders filled."""
    remarks = tuple(remark.format_map(parts) for remark in text.remarks)
    return Text(text.template.format_map(parts), remarks, text.call.format_map(parts))
