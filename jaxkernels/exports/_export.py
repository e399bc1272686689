"""Schedules in the form that other samplers take: numbers, and text to paste.

Tools differ in what a schedule is (noise levels, timesteps, a ramp), in whether its end at 0 is written,
and in what they do to it afterwards. Each function here states its tool's convention. They agree in this:

* a level is sigma = s/a in units of the data, except for flow models, whose level is s/(a + s);
* networks are run K times. A schedule that ends at t_K > 0 stops there where the tool can (`end="keep"`, the
  default then), as `sample` does: the samples are those that `evaluate_schedule` describes, with the noise of
  that level in them. Other tools finish with the denoised point, so that the last level is replaced by 0
  (`end="replace"`, their default): another last step than the one that was optimised, which for few steps can
  cost more than the optimisation gained, as a warning says. `end="append"` keeps the level and adds a step to 0,
  one evaluation more;
* stochasticity is carried where the tool has a knob for one step, and a warning says where it has not. The
  step to 0 injects nothing whatever its knob, which is therefore written as 0;
* the first noise has the variance that `Evaluation` assumes, prior_variance(t_0), or a warning says so.

What takes a grid, and which sampler of jaxkernels it then is (in brackets: with what difference):

    k-diffusion   sample_euler             ddim with stochasticity 0
                  sample_euler_ancestral   ddim, any stochasticity
                  sample_dpmpp_2m          dpmpp_2m
                  sample_heun              heun for EDM
                  other sample_ functions take the same sigmas; sample_dpm_fast and sample_dpm_adaptive take none
    ComfyUI       euler, euler_ancestral, dpmpp_2m, heun, as in k-diffusion (one eta for all steps); for flow models,
                  whose level is another, heun for FlowMatching, and dpmpp_2m with another second-order term
    NVlabs/edm    edm_sampler              heun for EDM (stochasticity as churn)
    diffusers     EulerDiscrete            ddim, any stochasticity
                  EDMEuler                 ddim, any stochasticity
                  DPMSolverMultistep       dpmpp_2m (whole timesteps)
                  DDPM                     ddim with stochasticity 1 (whole timesteps)
                  HeunDiscrete             heun for EDM
                  FlowMatchEuler           ddim with stochasticity 0
                  LTXEulerAncestralRF      ddim, any stochasticity, for flow models
                  UniPCMultistep           dpmpp_2m, for flow models (the network is told whole timesteps)

Schedulers of diffusers 0.42 that take a grid and are not served, with the reason:

    DPMSolverSinglestep    a second-order step spans two of its timesteps: no sampler of jaxkernels
    UniPCMultistep         with its corrector, and for models that are not flows, for which it takes no grid
    DDPMParallel           solves for all steps of DDPM at once; the grid is DDPM's
    DDPMWuerstchen         steps of DDPM in the clamped cosine time of one family of models
    MiniMaxH3              flow models of one family; takes the numbers of ComfyUI as they are
    Helios, HeliosDMD      several resolutions in one run, each with levels of its own
    CMStochasticIterative, FlowMapEulerDiscrete, FlowMatchLCM, LCM, Piflow, SCM, TCD
                           for networks distilled to few steps, whose output is not the denoiser

and those that take none: CogVideoXDDIM, CogVideoXDPM, CosineDPMSolverMultistep, DDIM, DDIMInverse,
DDIMParallel, DEISMultistep, DPMSolverMultistepInverse, DPMSolverSDE, EDMDPMSolverMultistep,
EulerAncestralDiscrete, FlowMatchHeunDiscrete, IPNDM, KDPM2AncestralDiscrete, KDPM2Discrete, KarrasVe,
LMSDiscrete, PNDM, RePaint, SASolver, ScoreSdeVe, UnCLIP.
"""

import dataclasses
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._precision import in_float64
from ..processes import EDM, VE, AbstractProcess, DiscreteVP, FlowMatching, sigma_range
from ..samplers import DDIM, as_sampler, check_schedule, sampler_name, to_churn, to_eta
from ..schedules import Schedule

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
    warnings: tuple[str, ...] = ()
    """What the tool does otherwise than the schedule says, and what could not be carried over."""
    remarks: tuple[str, ...] = ()
    """How to use the text."""

    @property
    def notes(self) -> tuple[str, ...]:
        """All that there is to say: `warnings`, then `remarks`."""
        return self.warnings + self.remarks

    def __str__(self) -> str:
        """The text under its warnings and remarks as comments."""
        comments = [f"warning: {note}" for note in self.warnings] + [
            f"note: {note}" for note in self.remarks
        ]
        return "\n".join([*(f"# {note}" for note in comments), self.text])


def export(schedule: Schedule, process: AbstractProcess, tool: str, **options: object) -> Export:
    """`schedule`, made for `process`, in the form that `tool` takes.

    **Arguments:** `tool` is a name in `TOOLS`: "diffusers", "k-diffusion", "comfyui" or "edm"; `options`
    are the keyword arguments of its function there. All take `end` ("keep", "replace" or "append"; by default "keep"
    where the tool can stop at the schedule's last level and "replace" where it cannot) and `sampler`, the sampler
    that the schedule is for, or its name.

    **Raises:** ValueError for an unknown tool, option or sampler, if the sampler cannot take the schedule, and if the
    tool cannot represent it.
    """
    given = options.get("sampler")
    sampler = as_sampler(DDIM() if given is None else given)
    check_schedule(process, sampler, schedule)
    if given is not None:
        options["sampler"] = sampler_name(sampler)
    return _call(f"tool {tool!r}", _checks.lookup("tool", tool, TOOLS), schedule, process, options)


def _call(
    what: str,
    fn: Callable[..., Export],
    schedule: Schedule,
    process: AbstractProcess,
    options: dict[str, object],
) -> Export:
    """`fn` with options that it has, or an error naming the first that it has not."""
    known = [
        name for name, p in inspect.signature(fn).parameters.items() if p.kind == p.KEYWORD_ONLY
    ]
    takes_more = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(fn).parameters.values())
    for name in options:
        if name not in known and not takes_more:
            raise ValueError(f"{what} has no option {name!r}; it takes {', '.join(known)}.")
    return fn(schedule, process, **options)


def k_diffusion(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
) -> Export:
    """k-diffusion: `sigmas` (K+1,), decreasing; it stops at the last of them.

    Stochasticity becomes the `eta` of its ancestral Euler sampler, one per step. The first noise has the
    variance prior_variance / a^2 at t_0, which is 1 + sigmas[0]^2 for a variance-preserving process.
    """
    sigmas, warnings = _sigmas(schedule, process, end, "k-diffusion", keeps=True)
    eta = _eta(schedule, process, sigmas)
    names = {"dpmpp_2m": "sample_dpmpp_2m", "heun": "sample_heun"}
    function = "sample_euler_ancestral" if eta.any() else names.get(sampler or "", "sample_euler")
    values = {"sigmas": _written(sigmas)}
    lines = [
        "import torch",
        f"from k_diffusion.sampling import {function}",
        "",
        _assign("sigmas", values["sigmas"], "torch.tensor(%s)"),
        f"x = torch.randn(shape) * {_start_text(schedule, process, sigmas)}",
    ]
    if not eta.any():
        lines.append(f"x = {function}(model, x, sigmas)")
    elif (constant := _constant(eta, sigmas)) is not None:
        values["eta"] = _written(eta)
        lines.append(f"x = {function}(model, x, sigmas, eta={constant})")
    else:
        values["eta"] = _written(eta)
        lines += [
            _assign("eta", values["eta"]),
            "for i in range(len(eta)):",
            f"    x = {function}(model, x, sigmas[i : i + 2], eta=eta[i])",
        ]
    warnings += _sampler_warnings(
        "k-diffusion", sampler, names.keys() | {"ddim"}, process, bool(eta.any())
    )
    return Export("k-diffusion", values, "\n".join(lines), warnings)


def comfyui(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
) -> Export:
    """ComfyUI: SIGMAS (K+1,), decreasing, as the string of a ManualSigmas node; it stops at the last of them.

    The node reads digits, a dot and digits; a number is never written with an exponent. For flow models
    a level is s/(a + s), in [0, 1], and the model's own shift is not applied to it.
    """
    flow = isinstance(process, FlowMatching)
    if flow:
        levels, warnings = _flow_levels(schedule, process, end, "comfyui", keeps=True)
        # the first noise is multiplied by the level
        warnings += _start_warning(
            "comfyui", float(levels[0]), _flow_deviation(schedule, process, levels)
        )
    else:
        levels, warnings = _sigmas(schedule, process, end, "comfyui", keeps=True)
        if isinstance(process, DiscreteVP):
            first = float(levels[0])
            whole = math.isclose(first, sigma_range(process, 0.0)[0], rel_tol=1e-5)
            warnings += _start_warning(
                "comfyui", math.hypot(first, 1.0) if whole else first, _start(schedule, process)
            )
    eta = _eta(schedule, process, levels)
    values = {"sigmas": _written(levels)}
    text = ", ".join(np.format_float_positional(v, trim="0") for v in values["sigmas"])
    names = {"dpmpp_2m": "dpmpp_2m", "heun": "heun"}
    name = names.get(sampler or "", "euler")
    constant = _constant(eta, levels) if eta.any() and not flow else None
    if constant is not None:
        values["eta"] = _written(eta)
        node = f"SamplerEulerAncestral with eta {constant} and s_noise 1"
    else:
        node = f"the sampler {name!r}"
    same = names.keys() | {"ddim"}
    warnings += _sampler_warnings(
        "comfyui", sampler, same, process, bool(eta.any()), FlowMatching if flow else EDM
    )
    if flow and sampler == "dpmpp_2m":
        warnings += (
            "comfyui's dpmpp_2m extrapolates in the logarithm of its level s/(a + s), jaxkernels' in that of s/a: "
            "their second-order terms differ",
        )
    if eta.any() and constant is None:
        warnings += (
            "stochasticity cannot be carried: ComfyUI's ancestral sampler takes one eta for all steps"
            + (", and another formula for flow models" if flow else "")
            + "; these are the levels alone",
        )
    remarks = (f"paste the numbers into ManualSigmas and connect it to SamplerCustom with {node}",)
    if not isinstance(process, DiscreteVP | FlowMatching):
        remarks += (
            "ComfyUI scales the first noise by sqrt(1 + sigma^2) only if the first number is the model's "
            "own largest level to 5 digits; make the schedule for the model's own table",
        )
    return Export("comfyui", values, text, warnings, remarks)


def edm(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
) -> Export:
    """The sampling loop of NVlabs/edm: `t_steps` (K+1,), noise levels ending in 0; `gamma` per step.

    The loop computes its grid inside and takes no list, so the text replaces the line that does.
    """
    sigmas, warnings = _sigmas(schedule, process, end, "edm")
    gamma = _churn(schedule, process, sigmas)
    values = {"t_steps": _written(sigmas)}
    lines = [
        "# in edm_sampler of NVlabs/edm, instead of the lines that compute t_steps:",
        f"num_steps = {sigmas.size - 1}",
        _assign(
            "t_steps",
            values["t_steps"],
            "torch.tensor(%s, dtype=torch.float64, device=latents.device)",
        ),
    ]
    if gamma.any():
        values["gamma"] = _written(gamma)
        lines += [
            _assign("gammas", values["gamma"]),
            "# and in its loop, instead of the line that computes gamma:",
            "#     gamma = gammas[i]",
        ]
        warnings += (
            "the network is evaluated at the raised level sigma (1 + gamma), as churn does",
        )
    else:
        lines.append("S_churn = 0")
    warnings += _start_warning("edm_sampler", float(sigmas[0]), _start(schedule, process))
    warnings += _sampler_warnings("edm", sampler, {"heun"}, process, bool(gamma.any()))
    remarks = (
        "each step is a Heun step, 2 K - 1 evaluations in all; for K evaluations keep its Euler part only",
        "pass t_steps through net.round_sigma if the network was trained at discrete levels",
    )
    return Export("edm", values, "\n".join(lines), warnings, remarks)


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
        scheduler = _default_scheduler(schedule, process, sampler)
    fn = _checks.lookup("scheduler", scheduler, SCHEDULERS)
    return _call(f"scheduler {scheduler!r}", fn, schedule, process, {"sampler": sampler, **options})


def _default_scheduler(schedule: Schedule, process: AbstractProcess, sampler: str | None) -> str:
    if isinstance(process, FlowMatching):
        if _stochastic(schedule):
            return "ltx_euler_ancestral"
        return "unipc" if sampler == "dpmpp_2m" else "flow_match_euler"
    if isinstance(process, EDM | VE):
        return "edm_euler"
    return {"dpmpp_2m": "dpm_multistep", "heun": "heun"}.get(sampler or "", "euler")


def _euler(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
    table: DiscreteVP | None = None,
) -> Export:
    """EulerDiscreteScheduler: `sigmas` (K+1,); it stops at the last of them.

    It finds the timesteps itself, and silently clips a level beyond its table, which is an error here.
    """
    name = "EulerDiscreteScheduler"
    sigmas, warnings = _sigmas(schedule, process, end, name, keeps=True)
    _table_timesteps(sigmas[:-1], _table(process, table))
    eta = _eta(schedule, process, sigmas)
    values = {"sigmas": _written(sigmas)}
    lines = [
        *(["import torch"] if eta.any() else []),
        f"from diffusers import {name}",
        "",
        _assign("sigmas", values["sigmas"]),
        *_from_config(name, _spacing(schedule, process, sigmas), *_PLAIN),
    ]
    remarks: tuple[str, ...] = ()
    if eta.any():
        values["eta"] = _written(eta)
        lines += ["pipe.scheduler.set_timesteps(sigmas=sigmas)", *_stochastic_loop(values["eta"])]
        remarks = (_LOOP_NOTE,)
    else:
        lines.append("image = pipe(prompt, sigmas=sigmas).images[0]")
    warnings += _sampler_warnings(name, sampler, {"ddim"}, process, bool(eta.any()))
    return Export("diffusers", values, "\n".join(lines), warnings, remarks)


def _dpm_multistep(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
    table: DiscreteVP | None = None,
) -> Export:
    """DPMSolverMultistepScheduler: whole `timesteps` (K,) of its table; it appends the level 0 itself.

    It truncates fractions, so the levels move; the largest shift of log sigma is reported. It can stop
    (`end="keep"`) at the table's smallest level only, which must be the schedule's.
    """
    name = "DPMSolverMultistepScheduler"
    table = _table(process, table)
    smallest = math.exp(float(np.asarray(table.log_sigmas)[0]))
    last = float(in_float64(Schedule.sigmas)(schedule, process)[-1])
    keeps = math.isclose(last, smallest, rel_tol=1e-5)
    sigmas, warnings = _sigmas(schedule, process, end, name, keeps)
    timesteps, moved = _whole_timesteps(name, sigmas, table)
    warnings += moved
    final = ["zero", "True"] if sigmas[-1] == 0.0 else ["sigma_min", "False"]
    text = [
        f"from diffusers import {name}",
        "",
        _assign("timesteps", timesteps),
        *_from_config(
            name,
            'algorithm_type="dpmsolver++"',
            "solver_order=2",
            'solver_type="midpoint"',
            f'final_sigmas_type="{final[0]}"',
            f"lower_order_final={final[1]}",
            "euler_at_final=False",
            *_PLAIN,
            "use_lu_lambdas=False",
            "use_flow_sigmas=False",
        ),
        "image = pipe(prompt, timesteps=timesteps).images[0]",
    ]
    warnings += _start_warning(name, math.hypot(sigmas[0], 1.0), _start(schedule, process))
    warnings += _no_knob(name, schedule)
    warnings += _sampler_warnings(name, sampler, {"dpmpp_2m"}, process, False)
    return Export("diffusers", {"timesteps": timesteps}, "\n".join(text), warnings)


def _ddpm(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
    table: DiscreteVP | None = None,
) -> Export:
    """DDPMScheduler: whole `timesteps` (K,) of its table, decreasing; its last step goes to the level 0.

    Every step is ancestral, which is stochasticity 1, whatever the schedule's.
    """
    name = "DDPMScheduler"
    sigmas, warnings = _sigmas(schedule, process, end, name)
    timesteps, moved = _whole_timesteps(name, sigmas, _table(process, table))
    warnings += moved
    text = [
        f"from diffusers import {name}",
        "",
        _assign("timesteps", timesteps),
        *_from_config(
            name, 'variance_type="fixed_small"', "clip_sample=False", "thresholding=False"
        ),
        "image = pipe(prompt, timesteps=timesteps).images[0]",
    ]
    alpha = np.asarray(schedule.stochasticity)[: sigmas.size - 2]
    if alpha.size and not np.allclose(alpha, 1.0, atol=1e-6):
        warnings += (
            f"{name} injects the noise of stochasticity 1 in every step; the schedule's, from "
            f"{alpha.min():.3g} to {alpha.max():.3g}, cannot be carried: these are the levels alone",
        )
    warnings += _start_warning(name, math.hypot(sigmas[0], 1.0), _start(schedule, process))
    warnings += _sampler_warnings(name, sampler, {"ddim"}, process, False)
    return Export("diffusers", {"timesteps": timesteps}, "\n".join(text), warnings)


def _heun(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
    table: DiscreteVP | None = None,
) -> Export:
    """HeunDiscreteScheduler: `timesteps` (K,), which may be fractional; it appends the level 0 itself.

    It interpolates sigma (not log sigma) between whole timesteps, so the fractions are those that give
    exactly the schedule's levels.
    """
    name = "HeunDiscreteScheduler"
    sigmas, warnings = _sigmas(schedule, process, end, name)
    table = _table(process, table)
    _table_timesteps(sigmas[:-1], table)
    levels = np.exp(np.asarray(table.log_sigmas))
    values = {"timesteps": _written(np.interp(sigmas[:-1], levels, np.arange(levels.size)))}
    lines = [
        f"from diffusers import {name}",
        "",
        _assign("timesteps", values["timesteps"]),
        *_from_config(name, _spacing(schedule, process, sigmas), *_PLAIN),
        "image = pipe(prompt, timesteps=timesteps).images[0]",
    ]
    warnings += _no_knob(name, schedule) + _sampler_warnings(
        name, sampler, {"heun"}, process, False
    )
    return Export("diffusers", values, "\n".join(lines), warnings)


def _flow_match_euler(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
    shift: float = 1.0,
) -> Export:
    """FlowMatchEulerDiscreteScheduler: `sigmas` (K,) in [0, 1] without the final 0, which it appends.

    It maps what it is given by x -> shift x / (1 + (shift - 1) x). The text sets its shift to 1; for a
    scheduler that keeps another `shift`, the inverse x / (shift - (shift - 1) x) is applied here.
    """
    name = "FlowMatchEulerDiscreteScheduler"
    shift = float(_checks.scalar("shift", shift, above=0.0))
    levels, warnings = _flow_levels(schedule, process, end, name)
    values = {"sigmas": _written(levels[:-1] / (shift - (shift - 1.0) * levels[:-1]))}
    lines = [
        f"from diffusers import {name}",
        "",
        _assign("sigmas", values["sigmas"]),
        *_from_config(
            name,
            f"shift={shift}",
            "use_dynamic_shifting=False",
            "shift_terminal=None",
            "stochastic_sampling=False",
            *_PLAIN,
        ),
        "image = pipe(prompt, sigmas=sigmas).images[0]",
    ]
    warnings += _flow_start(schedule, process, levels) + _no_knob(name, schedule)
    warnings += _sampler_warnings(name, sampler, {"ddim"}, process, False)
    return Export("diffusers", values, "\n".join(lines), warnings)


def _ltx_euler_ancestral(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
) -> Export:
    """LTXEulerAncestralRFScheduler: `sigmas` (K+1,) in [0, 1], never shifted; it stops at the last of them.

    Its `eta` splits a step from level l to l' by l_down = l' (1 - eta (1 - l'/l)) and renoises to l'. The
    part q of the old noise that the schedule keeps is met by

        eta = (1 - l') (1 - q) / ((1 - l' + q l') (1 - l'/l))

    It is a setting of the scheduler, so that one for each step needs the loop to be written out.
    """
    name = "LTXEulerAncestralRFScheduler"
    levels, warnings = _flow_levels(schedule, process, end, name, keeps=True)
    kept = 1.0 / (1.0 + _churn(schedule, process, levels))
    old, new = levels[:-1], levels[1:]
    eta = _written((1.0 - new) * (1.0 - kept) / ((1.0 - new + kept * new) * (1.0 - new / old)))
    values = {"sigmas": _written(levels)}
    if any(eta):
        values["eta"] = eta
    constant = _constant(eta, levels) if any(eta) else 0.0
    lines = [f"from diffusers import {name}", "", _assign("sigmas", values["sigmas"])]
    if constant is not None:
        lines += [
            *_from_config(name, f"eta={constant}", "s_noise=1.0"),
            "image = pipe(prompt, sigmas=sigmas).images[0]",
        ]
        remarks = ("the pipeline evaluates the network once more at the level 0, to no effect",)
    else:
        lines += [
            _assign("eta", eta),
            *_from_config(name, "s_noise=1.0"),
            "scheduler, latents = pipe.scheduler, noise",
            "scheduler.set_timesteps(sigmas=sigmas)",
            "for i, t in enumerate(scheduler.timesteps[:-1]):",
            "    scheduler.register_to_config(eta=eta[i])",
            "    output = network(latents, t)  # with its conditioning",
            "    latents = scheduler.step(output, t, latents).prev_sample",
        ]
        remarks = (_LOOP_NOTE,)
    warnings += _flow_start(schedule, process, levels) + _sampler_warnings(
        name, sampler, {"ddim"}, process, any(eta)
    )
    return Export("diffusers", values, "\n".join(lines), warnings, remarks)


def _unipc(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
    sampler: str | None = None,
) -> Export:
    """UniPCMultistepScheduler for flow models: `sigmas` (K,) in [0, 1] without the final 0, in a NumPy array.

    Without its corrector and with `solver_type="bh2"` its second order is DPM-Solver++(2M). It steps between
    the levels that it is given (1 becomes 1 - 1e-6), but the network is told whole timesteps, cut off.
    """
    name = "UniPCMultistepScheduler"
    levels, warnings = _flow_levels(schedule, process, end, name)
    values = {"sigmas": _written(levels[:-1])}
    lines = [
        "import numpy as np",
        f"from diffusers import {name}",
        "",
        _assign("sigmas", values["sigmas"], "np.array(%s)"),
        *_from_config(
            name,
            'prediction_type="flow_prediction"',
            "use_flow_sigmas=True",
            "flow_shift=1.0",
            "use_dynamic_shifting=False",
            "shift_terminal=None",
            "predict_x0=True",
            "solver_order=2",
            'solver_type="bh2"',
            f"disable_corrector=list(range({levels.size - 1}))",
            "lower_order_final=True",
            'final_sigmas_type="zero"',
            "thresholding=False",
            *_PLAIN,
        ),
        "image = pipe(prompt, sigmas=sigmas).images[0]",
    ]
    told = np.array(values["sigmas"])
    told = np.floor(1000.0 * np.where(np.abs(told - 1.0) < 1e-6, told - 1e-6, told))
    same = np.flatnonzero(np.diff(told) >= 0)
    if same.size:
        k = int(same[0])
        raise ValueError(
            f"levels {k} and {k + 1} of the schedule, {levels[k]:.6g} and {levels[k + 1]:.6g}, are one timestep, "
            f"{told[k]:.0f} of 1000, to {name}; use fewer steps, or the scheduler 'flow_match_euler'."
        )
    lag = float(np.max(1000.0 * levels[:-1] - told))
    warnings += (
        f"the network is told whole timesteps of 1000, up to {lag:.2g} below those of the levels that are stepped",
        *_flow_start(schedule, process, levels),
        *_no_knob(name, schedule),
        *_sampler_warnings(name, sampler, {"dpmpp_2m"}, process, False),
    )
    return Export("diffusers", values, "\n".join(lines), warnings)


def _edm_euler(
    schedule: Schedule,
    process: AbstractProcess,
    *,
    end: str | None = None,
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
    sigmas, warnings = _sigmas(schedule, process, end, name)
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
    ]
    remarks: tuple[str, ...] = ()
    if eta.any():
        values["eta"] = _written(eta)
        lines += ["pipe.scheduler.set_timesteps(sigmas=ramp)", *_stochastic_loop(values["eta"])]
        remarks = (_LOOP_NOTE,)
    else:
        lines.append("image = pipe(prompt, sigmas=ramp).images[0]")
    warnings += _start_warning(name, math.hypot(sigma_max, 1.0), _start(schedule, process))
    warnings += _sampler_warnings(name, sampler, {"ddim"}, process, bool(eta.any()))
    return Export("diffusers", values, "\n".join(lines), warnings, remarks)


SCHEDULERS: dict[str, Callable[..., Export]] = {
    "euler": _euler,
    "dpm_multistep": _dpm_multistep,
    "ddpm": _ddpm,
    "heun": _heun,
    "flow_match_euler": _flow_match_euler,
    "ltx_euler_ancestral": _ltx_euler_ancestral,
    "unipc": _unipc,
    "edm_euler": _edm_euler,
}


TOOLS: dict[str, Callable[..., Export]] = {
    "diffusers": diffusers,
    "k-diffusion": k_diffusion,
    "comfyui": comfyui,
    "edm": edm,
}


def _sigmas(
    schedule: Schedule, process: AbstractProcess, end: str | None, tool: str, keeps: bool = False
) -> tuple[Levels, tuple[str, ...]]:
    """Levels s/a, and a warning on their end; `keeps` says whether the tool can stop above 0."""
    if isinstance(process, FlowMatching):
        raise ValueError(
            f"process FlowMatching: {tool} takes levels of models with noise added to the data; flow models "
            "are served by tool 'comfyui', and 'diffusers' with its schedulers for them."
        )
    sigmas = np.array(in_float64(Schedule.sigmas)(schedule, process), np.float64)
    if not np.isfinite(sigmas[0]):
        raise ValueError(
            f"times[0] = {float(schedule.times[0]):g} has no signal left, so its sigma is infinite; {tool} "
            "needs a finite first level, that is a smaller t_max."
        )
    return _ended(sigmas, end, tool, keeps)


def _flow_levels(
    schedule: Schedule, process: AbstractProcess, end: str | None, tool: str, keeps: bool = False
) -> tuple[Levels, tuple[str, ...]]:
    """Levels s/(a + s) of a flow model, and a warning on their end."""

    @in_float64
    def levels(process: AbstractProcess, times: ArrayLike) -> Array:
        a, s = process.signal(times), process.noise(times)
        return s / (a + s)

    return _ended(np.array(levels(process, schedule.times), np.float64), end, tool, keeps)


def _ended(
    levels: Float[np.ndarray, " points"], end: str | None, tool: str, keeps: bool
) -> tuple[Levels, tuple[str, ...]]:
    """The levels with the end that is asked for, by default the schedule's own where the tool `keeps` it."""
    if end is None:
        end = "keep" if keeps else "replace"
    _checks.one_of("end", end, ("replace", "append", "keep"))
    if not np.all(np.diff(np.float32(levels)) < 0):
        k = int(np.argmax(np.diff(np.float32(levels)) >= 0))
        raise ValueError(
            f"levels {k} and {k + 1} of the schedule, {levels[k]:.9g} and {levels[k + 1]:.9g}, are equal in "
            "float32, in which the tools compute."
        )
    last = levels[-1]
    if last == 0.0:
        return levels, ()
    if end == "keep":
        if not keeps:
            raise ValueError(
                f"end='keep': {tool} cannot stop at the level {last:.4g}; use 'replace' or 'append'."
            )
        return levels, ()
    if end == "append":
        warning = f"a step from the last level {last:.4g} to 0 is appended: {levels.size} steps"
        return np.append(levels, 0.0), (warning,)
    stops = ", end='keep' stops there" if keeps else ""
    warning = (
        f"the last level {last:.4g} is replaced by 0 to keep {levels.size - 1} steps, so the last step is not "
        f"the one that was evaluated; end='append' keeps the level at the price of one step{stops}"
    )
    return np.append(levels[:-1], 0.0), (warning,)


def _knob(
    convert: Callable[..., Array], schedule: Schedule, process: AbstractProcess, levels: Levels
) -> np.ndarray:
    """A tool's knob for every step between `levels`; 0 in a step to level 0."""
    knob = np.zeros(levels.size - 1)
    knob[: schedule.num_steps] = in_float64(convert)(
        process, schedule.times, schedule.stochasticity
    )
    return np.where(levels[1:] > 0, knob, 0.0)


def _eta(schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
    return _knob(to_eta, schedule, process, levels)


def _churn(schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
    return _knob(to_churn, schedule, process, levels)


def _stochastic(schedule: Schedule) -> bool:
    return bool(np.any(np.asarray(schedule.stochasticity) > 0))


def _start(schedule: Schedule, process: AbstractProcess) -> float:
    """Standard deviation of the first noise, in units of the data, that the schedule was evaluated with."""

    @in_float64
    def start(process: AbstractProcess, times: ArrayLike) -> Array:
        t = jnp.asarray(times)[0]
        return jnp.sqrt(process.prior_variance(t)) / process.signal(t)

    return float(start(process, schedule.times))


def _start_text(schedule: Schedule, process: AbstractProcess, sigmas: Levels) -> str:
    start, first = _start(schedule, process), float(sigmas[0])
    if math.isclose(start, first, rel_tol=1e-6):
        return "sigmas[0]"
    if math.isclose(start, math.hypot(first, 1.0), rel_tol=1e-6):
        return "(1 + sigmas[0] ** 2) ** 0.5"
    return repr(start)


def _spacing(schedule: Schedule, process: AbstractProcess, sigmas: Levels) -> str:
    """The setting by which a scheduler that is given its grid scales the first noise: to sqrt(1 + sigma^2) or sigma."""
    preserving = math.isclose(
        _start(schedule, process), math.hypot(float(sigmas[0]), 1.0), rel_tol=1e-6
    )
    return f'timestep_spacing="{"leading" if preserving else "trailing"}"'


def _start_warning(name: str, scale: float, start: float) -> tuple[str, ...]:
    if math.isclose(scale, start, rel_tol=1e-3):
        return ()
    return (f"{name} scales the first noise by {scale:.6g}; the schedule starts from {start:.6g}",)


def _flow_deviation(schedule: Schedule, process: AbstractProcess, levels: Levels) -> float:
    """Standard deviation of the first noise in the units of a flow model, where x at level u is (1 - u) x0 + u eps."""
    return _start(schedule, process) * (1.0 - float(levels[0])) if levels[0] < 1.0 else 1.0


def _flow_start(schedule: Schedule, process: AbstractProcess, levels: Levels) -> tuple[str, ...]:
    """A pipeline for flow models starts from noise of variance 1, which is that of its level 1."""
    start = _flow_deviation(schedule, process, levels)
    if math.isclose(start, 1.0, rel_tol=1e-3):
        return ()
    return (
        f"levels s/(a + s) of {type(process).__name__}: a flow model starts from level 1, pure noise of "
        f"deviation 1; this schedule starts at {levels[0]:.6g}, with deviation {start:.6g}",
    )


def _constant(knob: np.ndarray | Sequence[float], levels: Levels) -> float | None:
    """The value to 6 digits of all steps but one to level 0, where a knob does nothing; None if they differ."""
    used = np.asarray(knob)[levels[1:] > 0]
    if used.size and np.allclose(used, used[0], rtol=1e-6, atol=0.0):
        return _written(used[:1])[0]
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


def _whole_timesteps(
    name: str, sigmas: Levels, table: DiscreteVP
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The whole timesteps (K,) nearest to these levels, and a warning on how far the levels move."""
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
    moved = float(np.max(np.abs(np.asarray(table.log_sigmas)[timesteps] - np.log(sigmas[:-1]))))
    warnings = (
        ()
        if moved < 1e-6
        else (f"rounding to whole timesteps moves log sigma by at most {moved:.2g}",)
    )
    return tuple(timesteps.tolist()), warnings


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
        "    down = max(next_sigma**2 - up**2, 0) ** 0.5",
        "    latents = x0 + down / sigma * (latents - x0) + up * torch.randn_like(latents)",
    ]


def _no_knob(name: str, schedule: Schedule) -> tuple[str, ...]:
    if not _stochastic(schedule):
        return ()
    return (
        f"stochasticity cannot be carried: {name} is deterministic; these are the levels alone",
    )


def _sampler_warnings(
    tool: str,
    sampler: str | None,
    same: set[str],
    process: AbstractProcess,
    stochastic: bool,
    own: type[AbstractProcess] = EDM,
) -> tuple[str, ...]:
    """What separates the tool's sampler from the one that the schedule was made for. `own` has the tool's time."""
    if sampler is None:
        return ()
    if sampler not in same:
        return (f"the schedule was made for the sampler {sampler}; {tool} runs another one here",)
    if sampler == "heun" and not isinstance(process, own):
        return (
            f"{tool} takes Heun steps in sigma, jaxkernels in the process's time; they agree for {own.__name__}",
        )
    if stochastic and sampler != "ddim":
        return (
            "stochasticity is translated as that of DDIM, which meets every noise level exactly",
        )
    return ()
