"""Schedules in the form that other samplers take: numbers, and text to paste.

Tools differ in what a schedule is (noise levels, timesteps, a ramp), in whether its end at 0 is written,
and in what they do to it afterwards. Each function here states its tool's convention. They agree in this:

* a level is sigma = s/a in units of the data, except for flow models, whose level is s/(a + s);
* networks are run K times. A schedule that ends at t_K > 0 has its last level replaced by 0
  (`end="replace"`), because these tools finish with the denoised point; `end="append"` keeps the
  level and adds a step to 0, one evaluation more;
* stochasticity is carried where the tool has a knob for one step, and a note says where it has not. The
  step to 0 injects nothing whatever its knob, which is therefore written as 0.
"""

import dataclasses
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Array, ArrayLike, Float

from . import _checks
from ._numerics import in_float64
from ._setting import check_schedule
from .process import EDM, VE, AbstractProcess, DiscreteVP, FlowMatching
from .samplers import DDIM, to_churn, to_eta
from .schedules import Schedule

Levels: TypeAlias = Float[np.ndarray, " levels"]

# settings under which a scheduler takes the numbers it is given as they are
_PLAIN = ("use_karras_sigmas=False", "use_exponential_sigmas=False", "use_beta_sigmas=False")
_WIDTH = 96
_LOOP_NOTE = (
    "no scheduler of diffusers takes levels and one eta per step, so the loop is written out; noise is a "
    "standard normal tensor and network stands for your model"
)


@dataclasses.dataclass(frozen=True)
class Export:
    """A schedule for another tool."""

    tool: str
    values: dict[str, tuple[float | int, ...]]
    """The numbers by the name that the tool gives them, exactly those in `text`."""
    text: str
    """Ready to paste: Python for libraries, the string of a node for ComfyUI."""
    notes: tuple[str, ...]
    """What the tool does differently, and what could not be carried over."""


def export(schedule: Schedule, process: AbstractProcess, tool: str, **options: object) -> Export:
    """`schedule`, made for `process`, in the form that `tool` takes.

    **Arguments:** `tool` is a name in `TOOLS`: "diffusers", "k-diffusion", "comfyui" or "edm"; `options`
    are the keyword arguments of its function there. All take `end` ("replace" or "append") and `sampler`,
    the name of the sampler that the schedule is for.

    **Raises:** ValueError for an unknown tool or option, and if the tool cannot represent the schedule.
    """
    check_schedule(process, DDIM(), schedule)
    return _call(f"tool {tool!r}", _checks.lookup("tool", tool, TOOLS), schedule, process, options)


def _call(
    what: str,
    fn: Callable[..., Export],
    schedule: Schedule,
    process: AbstractProcess,
    options: dict[str, object],
) -> Export:
    """`fn` with options that it has, or an error naming the first that it has not."""
    known = [name for name, p in inspect.signature(fn).parameters.items() if p.kind == p.KEYWORD_ONLY]
    takes_more = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(fn).parameters.values())
    for name in options:
        if name not in known and not takes_more:
            raise ValueError(f"{what} has no option {name!r}; it takes {', '.join(known)}.")
    return fn(schedule, process, **options)


def k_diffusion(
    schedule: Schedule, process: AbstractProcess, *, end: str = "replace", sampler: str | None = None
) -> Export:
    """k-diffusion: `sigmas` (K+1,), decreasing, ending in 0; sampling starts from randn * sigmas[0].

    Stochasticity becomes the `eta` of its ancestral Euler sampler, one per step.
    """
    sigmas, notes = _sigmas(schedule, process, end, "k-diffusion")
    eta = _eta(schedule, process, sigmas)
    names = {"dpmpp_2m": "sample_dpmpp_2m", "heun": "sample_heun"}
    function = "sample_euler_ancestral" if eta.any() else names.get(sampler or "", "sample_euler")
    values = {"sigmas": _written(sigmas)}
    lines = [
        "import torch",
        f"from k_diffusion.sampling import {function}",
        "",
        _assign("sigmas", values["sigmas"], "torch.tensor(%s)"),
        "x = torch.randn(shape) * sigmas[0]",
    ]
    if not eta.any():
        lines.append(f"x = {function}(model, x, sigmas)")
    elif (constant := _constant(eta[:-1])) is not None:
        values["eta"] = _written(eta)
        lines.append(f"x = {function}(model, x, sigmas, eta={constant})")
    else:
        values["eta"] = _written(eta)
        lines += [
            _assign("eta", values["eta"]),
            "for i in range(len(eta)):",
            f"    x = {function}(model, x, sigmas[i : i + 2], eta=eta[i])",
        ]
    notes += _sampler_notes("k-diffusion", sampler, names.keys() | {"ddim"}, process, bool(eta.any()))
    return Export("k-diffusion", values, "\n".join(lines), notes)


def comfyui(
    schedule: Schedule, process: AbstractProcess, *, end: str = "replace", sampler: str | None = None
) -> Export:
    """ComfyUI: SIGMAS (K+1,), decreasing, ending in 0, as the string of a ManualSigmas node.

    The node reads digits, a dot and digits; a number is never written with an exponent. For flow models
    a level is s/(a + s), in [0, 1], and the model's own shift is not applied to it.
    """
    flow = isinstance(process, FlowMatching)
    if flow:
        levels, notes = _flow_levels(schedule, process, end)
    else:
        levels, notes = _sigmas(schedule, process, end, "comfyui")
    eta = _eta(schedule, process, levels)
    values = {"sigmas": _written(levels)}
    text = ", ".join(np.format_float_positional(v, trim="0") for v in values["sigmas"])
    names = {"dpmpp_2m": "dpmpp_2m", "heun": "heun"}
    name = names.get(sampler or "", "euler")
    constant = _constant(eta[:-1]) if eta.any() and not flow else None
    if constant is not None:
        values["eta"] = _written(eta)
        node = f"SamplerEulerAncestral with eta {constant} and s_noise 1"
    else:
        node = f"the sampler {name!r}"
    if eta.any() and constant is None:
        notes += (
            "stochasticity cannot be carried: ComfyUI's ancestral sampler takes one eta for all steps"
            + (", and another formula for flow models" if flow else "")
            + "; these are the levels alone",
        )
    notes += _sampler_notes("comfyui", sampler, names.keys() | {"ddim"}, process, bool(eta.any()))
    notes += (f"paste the numbers into ManualSigmas and connect it to SamplerCustom with {node}",)
    if not isinstance(process, DiscreteVP | FlowMatching):
        notes += (
            "ComfyUI scales the first noise by sqrt(1 + sigma^2) only if the first number is the model's "
            "own largest level to 5 digits; make the schedule for the model's own table",
        )
    return Export("comfyui", values, text, notes)


def edm(schedule: Schedule, process: AbstractProcess, *, end: str = "replace", sampler: str | None = None) -> Export:
    """The sampling loop of NVlabs/edm: `t_steps` (K+1,), noise levels ending in 0; `gamma` per step.

    The loop computes its grid inside and takes no list, so the text replaces the line that does.
    """
    sigmas, notes = _sigmas(schedule, process, end, "edm")
    gamma = _churn(schedule, process, sigmas)
    values = {"t_steps": _written(sigmas)}
    lines = [
        "# in edm_sampler of NVlabs/edm, instead of the lines that compute t_steps:",
        f"num_steps = {sigmas.size - 1}",
        _assign("t_steps", values["t_steps"], "torch.tensor(%s, dtype=torch.float64, device=latents.device)"),
    ]
    if gamma.any():
        values["gamma"] = _written(gamma)
        lines += [
            _assign("gammas", values["gamma"]),
            "# and in its loop, instead of the line that computes gamma:",
            "#     gamma = gammas[i]",
        ]
        notes += ("the network is evaluated at the raised level sigma (1 + gamma), as churn does",)
    else:
        lines.append("S_churn = 0")
    notes += _sampler_notes("edm", sampler, {"heun"}, process, bool(gamma.any()))
    notes += (
        "each step is a Heun step, 2 K - 1 evaluations in all; for K evaluations keep its Euler part only",
        "pass t_steps through net.round_sigma if the network was trained at discrete levels",
    )
    return Export("edm", values, "\n".join(lines), notes)


def diffusers(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    scheduler: str | None = None,
    sampler: str | None = None,
    **options: object,
) -> Export:
    """diffusers: call arguments for one of its schedulers, a name in `SCHEDULERS`.

    By default the scheduler that does what `sampler` does for this kind of process. `options` are those
    of the scheduler's function. A schedule has no place in a scheduler's configuration, so the text
    passes it in the pipeline's call.
    """
    if scheduler is None:
        scheduler = _default_scheduler(process, sampler)
    fn = _checks.lookup("scheduler", scheduler, SCHEDULERS)
    return _call(f"scheduler {scheduler!r}", fn, schedule, process, {"sampler": sampler, **options})


def _default_scheduler(process: AbstractProcess, sampler: str | None) -> str:
    if isinstance(process, FlowMatching):
        return "flow_match_euler"
    if isinstance(process, EDM | VE):
        return "edm_euler"
    return {"dpmpp_2m": "dpm_multistep", "heun": "heun"}.get(sampler or "", "euler")


def _euler(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str = "replace",
    sampler: str | None = None,
    table: DiscreteVP | None = None,
) -> Export:
    """EulerDiscreteScheduler: `sigmas` (K+1,) with the final 0, without which it stops one step early.

    It finds the timesteps itself, and silently clips a level beyond its table, which is an error here.
    """
    name = "EulerDiscreteScheduler"
    sigmas, notes = _sigmas(schedule, process, end, name)
    _table_timesteps(sigmas[:-1], _table(process, table))
    eta = _eta(schedule, process, sigmas)
    values = {"sigmas": _written(sigmas)}
    lines = [
        *(["import torch"] if eta.any() else []),
        f"from diffusers import {name}",
        "",
        _assign("sigmas", values["sigmas"]),
        *_from_config(name, *_PLAIN),
    ]
    if eta.any():
        values["eta"] = _written(eta)
        lines += ["pipe.scheduler.set_timesteps(sigmas=sigmas)", *_stochastic_loop(values["eta"])]
        notes += (_LOOP_NOTE,)
    else:
        lines.append("image = pipe(prompt, sigmas=sigmas).images[0]")
    notes += _sampler_notes(name, sampler, {"ddim"}, process, bool(eta.any()))
    return Export("diffusers", values, "\n".join(lines), notes)


def _dpm_multistep(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str = "replace",
    sampler: str | None = None,
    table: DiscreteVP | None = None,
) -> Export:
    """DPMSolverMultistepScheduler: whole `timesteps` (K,) of its table; it appends the level 0 itself.

    It truncates fractions, so the levels move; the largest shift of log sigma is reported.
    """
    name = "DPMSolverMultistepScheduler"
    sigmas, notes = _sigmas(schedule, process, end, name)
    table = _table(process, table)
    exact = _table_timesteps(sigmas[:-1], table)
    timesteps = np.rint(exact).astype(int)
    same = np.flatnonzero(np.diff(timesteps) >= 0)
    if same.size:
        k = int(same[0])
        raise ValueError(
            f"levels {k} and {k + 1} of the schedule, at timesteps {exact[k]:.2f} and {exact[k + 1]:.2f}, "
            f"are both rounded to timestep {timesteps[k]}, which {name} would run twice; use fewer steps, "
            "or the scheduler 'euler', which takes sigmas."
        )
    log_sigmas = np.asarray(table.log_sigmas)
    shift = float(np.max(np.abs(log_sigmas[timesteps] - np.log(sigmas[:-1]))))
    text = [
        f"from diffusers import {name}",
        "",
        _assign("timesteps", timesteps.tolist()),
        *_from_config(
            name,
            'algorithm_type="dpmsolver++"',
            "solver_order=2",
            'final_sigmas_type="zero"',
            *_PLAIN,
            "use_lu_lambdas=False",
            "use_flow_sigmas=False",
        ),
        "image = pipe(prompt, timesteps=timesteps).images[0]",
    ]
    notes += (f"rounding to whole timesteps moves log sigma by at most {shift:.2g}",)
    notes += _no_knob(name, schedule)
    notes += _sampler_notes(name, sampler, {"dpmpp_2m"}, process, False)
    return Export("diffusers", {"timesteps": tuple(timesteps.tolist())}, "\n".join(text), notes)


def _heun(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str = "replace",
    sampler: str | None = None,
    table: DiscreteVP | None = None,
) -> Export:
    """HeunDiscreteScheduler: `timesteps` (K,), which may be fractional; it appends the level 0 itself.

    It interpolates sigma (not log sigma) between whole timesteps, so the fractions are those that give
    exactly the schedule's levels.
    """
    name = "HeunDiscreteScheduler"
    sigmas, notes = _sigmas(schedule, process, end, name)
    table = _table(process, table)
    _table_timesteps(sigmas[:-1], table)
    levels = np.exp(np.asarray(table.log_sigmas))
    values = {"timesteps": _written(np.interp(sigmas[:-1], levels, np.arange(levels.size)))}
    lines = [
        f"from diffusers import {name}",
        "",
        _assign("timesteps", values["timesteps"]),
        *_from_config(name, *_PLAIN),
        "image = pipe(prompt, timesteps=timesteps).images[0]",
    ]
    notes += _no_knob(name, schedule)
    notes += _sampler_notes(name, sampler, {"heun"}, process, False)
    return Export("diffusers", values, "\n".join(lines), notes)


def _flow_match_euler(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str = "replace",
    sampler: str | None = None,
    shift: float = 1.0,
) -> Export:
    """FlowMatchEulerDiscreteScheduler: `sigmas` (K,) in [0, 1] without the final 0, which it appends.

    It maps what it is given by x -> shift x / (1 + (shift - 1) x). The text sets its shift to 1; for a
    scheduler that keeps another `shift`, the inverse x / (shift - (shift - 1) x) is applied here.
    """
    name = "FlowMatchEulerDiscreteScheduler"
    shift = float(_checks.scalar("shift", shift, above=0.0))
    levels, notes = _flow_levels(schedule, process, end)
    levels = levels[:-1] / (shift - (shift - 1.0) * levels[:-1])
    values = {"sigmas": _written(levels)}
    lines = [
        f"from diffusers import {name}",
        "",
        _assign("sigmas", values["sigmas"]),
        *_from_config(name, f"shift={shift}", "use_dynamic_shifting=False", "shift_terminal=None", *_PLAIN),
        "image = pipe(prompt, sigmas=sigmas).images[0]",
    ]
    if not isinstance(process, FlowMatching):
        notes += (
            f"levels s/(a + s) of {type(process).__name__}: a flow model starts from level 1, pure noise; "
            f"this schedule starts at {values['sigmas'][0]:.6g}",
        )
    notes += _no_knob(name, schedule)
    notes += _sampler_notes(name, sampler, {"ddim"}, process, False)
    return Export("diffusers", values, "\n".join(lines), notes)


def _edm_euler(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str = "replace",
    sampler: str | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Export:
    """EDMEulerScheduler: `sigmas` (K,), which are not levels but a ramp that it maps to levels by

        sigma = (sigma_max^(1/rho) + ramp (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    before it appends 0. The inverse of that map is applied here; `sigma_min`, `sigma_max` and `rho` must
    be those of the scheduler. The ramp leaves [0, 1] where a level lies outside them.
    """
    name = "EDMEulerScheduler"
    rho = float(_checks.scalar("rho", rho, above=0.0))
    sigma_min = float(_checks.scalar("sigma_min", sigma_min, above=0.0))
    sigma_max = float(_checks.scalar("sigma_max", sigma_max, above=sigma_min))
    sigmas, notes = _sigmas(schedule, process, end, name)
    eta = _eta(schedule, process, sigmas)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    # float64 in the scheduler too, and a power rho amplifies what is cut off: all digits are kept
    values = {"sigmas": tuple(((high - sigmas[:-1] ** (1.0 / rho)) / (high - low)).tolist())}
    lines = [
        "import torch",
        f"from diffusers import {name}",
        "",
        _assign("ramp", values["sigmas"], "torch.tensor(%s, dtype=torch.float64)"),
        *_from_config(
            name,
            'sigma_schedule="karras"',
            'final_sigmas_type="zero"',
            f"sigma_min={sigma_min}",
            f"sigma_max={sigma_max}",
            f"rho={rho}",
        ),
        "pipe.scheduler.set_timesteps(sigmas=ramp)",
    ]
    if eta.any():
        values["eta"] = _written(eta)
        lines += _stochastic_loop(values["eta"])
        notes += (_LOOP_NOTE,)
    if not math.isclose(sigmas[0], sigma_max, rel_tol=1e-5):
        notes += (
            f"{name} scales the first noise for sigma_max = {sigma_max:g}; this schedule starts at {sigmas[0]:.6g}",
        )
    notes += _sampler_notes(name, sampler, {"ddim"}, process, bool(eta.any()))
    return Export("diffusers", values, "\n".join(lines), notes)


SCHEDULERS: dict[str, Callable[..., Export]] = {
    "euler": _euler,
    "dpm_multistep": _dpm_multistep,
    "heun": _heun,
    "flow_match_euler": _flow_match_euler,
    "edm_euler": _edm_euler,
}

TOOLS: dict[str, Callable[..., Export]] = {
    "diffusers": diffusers,
    "k-diffusion": k_diffusion,
    "comfyui": comfyui,
    "edm": edm,
}


def _sigmas(schedule: Schedule, process: AbstractProcess, end: str, tool: str) -> tuple[Levels, tuple[str, ...]]:
    """Levels s/a ending in 0, and a note on that end."""
    if isinstance(process, FlowMatching):
        raise ValueError(
            f"process FlowMatching: {tool} takes levels of models with noise added to the data; flow models "
            "are served by tool 'comfyui', and 'diffusers' with scheduler 'flow_match_euler'."
        )
    sigmas = np.array(in_float64(Schedule.sigmas)(schedule, process), np.float64)
    if not np.isfinite(sigmas[0]):
        raise ValueError(
            f"times[0] = {float(schedule.times[0]):g} has no signal left, so its sigma is infinite; {tool} "
            "needs a finite first level, that is a smaller t_max."
        )
    return _ended(sigmas, end)


def _flow_levels(schedule: Schedule, process: AbstractProcess, end: str) -> tuple[Levels, tuple[str, ...]]:
    """Levels s/(a + s) of a flow model ending in 0, and a note on that end."""

    @in_float64
    def levels(process: AbstractProcess, times: ArrayLike) -> Array:
        a, s = process.signal(times), process.noise(times)
        return s / (a + s)

    return _ended(np.array(levels(process, schedule.times), np.float64), end)


def _ended(levels: Float[np.ndarray, " points"], end: str) -> tuple[Levels, tuple[str, ...]]:
    _checks.one_of("end", end, ("replace", "append"))
    if not np.all(np.diff(np.float32(levels)) < 0):
        k = int(np.argmax(np.diff(np.float32(levels)) >= 0))
        raise ValueError(
            f"levels {k} and {k + 1} of the schedule, {levels[k]:.9g} and {levels[k + 1]:.9g}, are equal in "
            "float32, in which the tools compute."
        )
    last = levels[-1]
    if last == 0.0:
        return levels, ()
    if end == "append":
        note = f"a step from the last level {last:.4g} to 0 is appended: {levels.size} steps"
        return np.append(levels, 0.0), (note,)
    note = f"the last level {last:.4g} is replaced by 0 to keep {levels.size - 1} steps"
    return np.append(levels[:-1], 0.0), (note,)


def _knob(convert: Callable[..., Array], schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
    """A tool's knob for every step between `levels`; 0 in the step to level 0."""
    knob = np.zeros(levels.size - 1)
    knob[: schedule.num_steps] = in_float64(convert)(process, schedule.times, schedule.stochasticity)
    knob[-1] = 0.0
    return knob


def _eta(schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
    return _knob(to_eta, schedule, process, levels)


def _churn(schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
    return _knob(to_churn, schedule, process, levels)


def _constant(knob: np.ndarray) -> float | None:
    """The value that all entries have to 6 digits, if they have one."""
    if knob.size and np.allclose(knob, knob[0], rtol=1e-6, atol=0.0):
        return _written(knob[:1])[0]
    return None


def _table(process: AbstractProcess, table: DiscreteVP | None) -> DiscreteVP:
    """The table of timesteps that the network was trained with."""
    if table is not None:
        if not isinstance(table, DiscreteVP):
            raise ValueError(f"table must be a DiscreteVP; got {type(table).__name__}.")
        return table
    return process if isinstance(process, DiscreteVP) else DiscreteVP.scaled_linear()


def _table_timesteps(sigmas: np.ndarray, table: DiscreteVP) -> np.ndarray:
    """Fractional timesteps, counted from 0, of these levels in the table, log sigma linear between."""
    log_sigmas = np.asarray(table.log_sigmas)
    low, high = np.exp(log_sigmas[0]), np.exp(log_sigmas[-1])
    outside = np.flatnonzero((sigmas > high * (1.0 + 1e-6)) | (sigmas < low * (1.0 - 1e-6)))
    if outside.size:
        k = int(outside[0])
        raise ValueError(
            f"sigma = {sigmas[k]:.6g} of step {k} lies outside the levels of the table, {low:.6g} .. "
            f"{high:.6g}, on which the network was trained; make the schedule for DiscreteVP with the "
            "network's table, or pass that table."
        )
    return np.interp(np.log(sigmas), log_sigmas, np.arange(log_sigmas.size))


def _written(values: np.ndarray) -> tuple[float, ...]:
    """The shortest decimals that determine the same float32 numbers, in which the tools compute."""
    return tuple(float(str(v)) for v in np.asarray(values, np.float32))


def _assign(name: str, values: Sequence[float | int], form: str = "%s") -> str:
    """`name = [...]`, over several lines if it is long."""
    numbers = ", ".join(map(repr, values))
    line = f"{name} = {form % f'[{numbers}]'}"
    if len(line) <= _WIDTH:
        return line
    numbers = textwrap.fill(numbers + ",", _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{name} = {form % f'[{chr(10)}{numbers}{chr(10)}]'}"


def _from_config(name: str, *settings: str) -> list[str]:
    """The statement that gives a pipeline the scheduler `name`."""
    arguments = ", ".join(["pipe.scheduler.config", *settings])
    line = f"pipe.scheduler = {name}.from_config({arguments})"
    if len(line) <= _WIDTH:
        return [line]
    return [
        f"pipe.scheduler = {name}.from_config(",
        textwrap.fill(arguments + ",", _WIDTH, initial_indent="    ", subsequent_indent="    "),
        ")",
    ]


def _stochastic_loop(eta: Sequence[float]) -> list[str]:
    """DDIM steps with one eta each, on a scheduler whose `sigmas` are set and whose step gives x0."""
    return [
        _assign("eta", eta),
        "scheduler, latents = pipe.scheduler, noise * pipe.scheduler.init_noise_sigma",
        "for i, t in enumerate(scheduler.timesteps):",
        "    output = network(scheduler.scale_model_input(latents, t), t)  # with its conditioning",
        "    x0 = scheduler.step(output, t, latents).pred_original_sample",
        "    sigma, next_sigma = scheduler.sigmas[i], scheduler.sigmas[i + 1]",
        "    up = eta[i] * next_sigma * (1 - (next_sigma / sigma) ** 2) ** 0.5",
        "    down = (next_sigma**2 - up**2) ** 0.5",
        "    latents = x0 + down / sigma * (latents - x0) + up * torch.randn_like(latents)",
    ]


def _no_knob(name: str, schedule: Schedule) -> tuple[str, ...]:
    if not np.any(np.asarray(schedule.stochasticity) > 0):
        return ()
    return (f"stochasticity cannot be carried: {name} is deterministic; these are the levels alone",)


def _sampler_notes(
    tool: str, sampler: str | None, same: set[str], process: AbstractProcess, stochastic: bool
) -> tuple[str, ...]:
    """What separates the tool's sampler from the one that the schedule was made for."""
    if sampler is None:
        return ()
    if sampler not in same:
        return (f"the schedule was made for the sampler {sampler}; {tool} runs another one here",)
    if sampler == "heun" and not isinstance(process, EDM):
        return (f"{tool} takes Heun steps in sigma, jaxkernels in the process's time; they agree for EDM",)
    if stochastic and sampler != "ddim":
        return ("stochasticity is translated as that of DDIM, which meets every noise level exactly",)
    return ()
