"""diffusers: call arguments for its schedulers.

A schedule has no place in a scheduler's configuration, so the texts pass it in the pipeline's call.
"""

from ..processes import EDM, VE, FlowMatching
from ._initial_noise import Scaled, SpacingSetting, UnitVariance
from ._k_diffusion import HEUN_IN_SIGMA
from ._levels import FlowSigmas, KarrasRamp, TableSigmas, Timesteps
from ._noise import Deterministic, Eta, Fixed, FlowEta
from ._render import Text
from ._scheduler import Default, Emulation, Scheduler, Tool

# settings under which a scheduler takes the numbers it is given as they are
_AS_GIVEN = ("use_karras_sigmas=False", "use_exponential_sigmas=False", "use_beta_sigmas=False")

_PIPELINE = """\
from diffusers import {name}

{numbers}
{config}
image = pipe(prompt, {keyword}={variable}).images[0]"""

_LOOP_REMARK = (
    "no scheduler of diffusers takes levels and one eta per step, so the loop is written out; "
    "noise is a standard normal tensor and network stands for your model"
)

# DDIM steps with one eta each, on a scheduler whose step gives x0
_DDIM_LOOP = """\
import torch
from diffusers import {name}

{numbers}
{config}
pipe.scheduler.set_timesteps({keyword}={variable})
{parameters}
scheduler, latents = pipe.scheduler, noise * pipe.scheduler.init_noise_sigma
for i, t in enumerate(scheduler.timesteps):
    output = network(scheduler.scale_model_input(latents, t), t)  # with its conditioning
    x0 = scheduler.step(output, t, latents).pred_original_sample
    sigma, next_sigma = scheduler.sigmas[i], scheduler.sigmas[i + 1]
    up = eta[i] * next_sigma * (1 - (next_sigma / sigma) ** 2) ** 0.5
    down = max(next_sigma**2 - up**2, 0) ** 0.5
    latents = x0 + down / sigma * (latents - x0) + up * torch.randn_like(latents)"""

_ETA_PER_STEP = Eta(per_step=Text(_DDIM_LOOP, (_LOOP_REMARK,)))

# finds the timesteps itself
_EULER = Scheduler(
    name="EulerDiscreteScheduler",
    keyword="sigmas",
    levels=TableSigmas(),
    final_zero="written",
    stops="anywhere",
    noise=_ETA_PER_STEP,
    emulates=(Emulation("ddim"),),
    initial_noise=SpacingSetting(),
    text=Text(_PIPELINE),
    settings=('timestep_spacing="{timestep_spacing}"', *_AS_GIVEN),
)


def _dpm_settings(final_sigmas_type: str, lower_order_final: bool) -> tuple[str, ...]:
    """Settings of DPMSolverMultistep under which it is DPM-Solver++(2M)."""
    return (
        'algorithm_type="dpmsolver++"',
        "solver_order=2",
        'solver_type="midpoint"',
        f'final_sigmas_type="{final_sigmas_type}"',
        f"lower_order_final={lower_order_final}",
        "euler_at_final=False",
        *_AS_GIVEN,
        "use_lu_lambdas=False",
        "use_flow_sigmas=False",
    )


_DPM_MULTISTEP = Scheduler(
    name="DPMSolverMultistepScheduler",
    keyword="timesteps",
    levels=Timesteps(integer=True),
    final_zero="appended",
    stops="table_minimum",
    noise=Deterministic(),
    emulates=(Emulation("dpmpp_2m"),),
    initial_noise=Scaled("variance_preserving"),
    text=Text(_PIPELINE),
    settings=_dpm_settings("zero", lower_order_final=True),
    settings_above_zero=_dpm_settings("sigma_min", lower_order_final=False),
)

# every step is ancestral, whatever the schedule's stochasticity
_DDPM = Scheduler(
    name="DDPMScheduler",
    keyword="timesteps",
    levels=Timesteps(integer=True),
    final_zero="appended",
    stops="never",
    noise=Fixed(1.0),
    emulates=(Emulation("ddim"),),
    initial_noise=Scaled("variance_preserving"),
    text=Text(_PIPELINE),
    settings=('variance_type="fixed_small"', "clip_sample=False", "thresholding=False"),
)

_HEUN = Scheduler(
    name="HeunDiscreteScheduler",
    keyword="timesteps",
    levels=Timesteps(integer=False),
    final_zero="appended",
    stops="never",
    noise=Deterministic(),
    emulates=(Emulation("heun", exact_for=(EDM,), difference=HEUN_IN_SIGMA),),
    initial_noise=SpacingSetting(),
    text=Text(_PIPELINE),
    settings=('timestep_spacing="{timestep_spacing}"', *_AS_GIVEN),
)

_FLOW_MATCH_EULER = Scheduler(
    name="FlowMatchEulerDiscreteScheduler",
    keyword="sigmas",
    levels=FlowSigmas(shift=1.0),
    final_zero="appended",
    stops="never",
    noise=Deterministic(),
    emulates=(Emulation("ddim"),),
    initial_noise=UnitVariance(),
    text=Text(_PIPELINE),
    settings=(
        "shift={shift}",
        "use_dynamic_shifting=False",
        "shift_terminal=None",
        "stochastic_sampling=False",
        *_AS_GIVEN,
    ),
)


def _ltx_pipeline(eta: str) -> Text:
    """The call of a pipeline with one eta for all steps, a setting of the scheduler."""
    text = """\
from diffusers import {name}

{numbers}
pipe.scheduler = {name}.from_config(
    pipe.scheduler.config, eta=ETA, s_noise=1.0,
)
image = pipe(prompt, {keyword}={variable}).images[0]"""
    remark = "the pipeline evaluates the network once more at the level 0, to no effect"
    return Text(text.replace("ETA", eta), (remark,))


# eta is a setting, so one for each step needs the loop to be written out
_LTX_LOOP = """\
from diffusers import {name}

{numbers}
{parameters}
{config}
scheduler, latents = pipe.scheduler, noise
scheduler.set_timesteps({keyword}={variable})
for i, t in enumerate(scheduler.timesteps[:-1]):
    scheduler.register_to_config(eta=eta[i])
    output = network(latents, t)  # with its conditioning
    latents = scheduler.step(output, t, latents).prev_sample"""

_LTX_EULER_ANCESTRAL = Scheduler(
    name="LTXEulerAncestralRFScheduler",
    keyword="sigmas",
    levels=FlowSigmas(),
    final_zero="written",
    stops="anywhere",
    noise=FlowEta(constant=_ltx_pipeline("{constant}"), per_step=Text(_LTX_LOOP, (_LOOP_REMARK,))),
    emulates=(Emulation("ddim"),),
    initial_noise=UnitVariance(),
    text=_ltx_pipeline("0.0"),
    settings=("s_noise=1.0",),
)

# Without its corrector, the second order of "bh2" is DPM-Solver++(2M). For models that are not
# flows it takes no custom timesteps.
_UNIPC = Scheduler(
    name="UniPCMultistepScheduler",
    keyword="sigmas",
    levels=FlowSigmas(integer_timesteps=True),
    final_zero="appended",
    stops="never",
    noise=Deterministic(),
    emulates=(Emulation("dpmpp_2m"),),
    initial_noise=UnitVariance(),
    text=Text("import numpy as np\n" + _PIPELINE),
    form="np.array({})",
    settings=(
        'prediction_type="flow_prediction"',
        "use_flow_sigmas=True",
        "flow_shift=1.0",
        "use_dynamic_shifting=False",
        "shift_terminal=None",
        "predict_x0=True",
        "solver_order=2",
        'solver_type="bh2"',
        "disable_corrector=list(range({num_steps}))",
        "lower_order_final=True",
        'final_sigmas_type="zero"',
        "thresholding=False",
        *_AS_GIVEN,
    ),
)

_EDM_EULER = Scheduler(
    name="EDMEulerScheduler",
    keyword="sigmas",
    variable="ramp",
    levels=KarrasRamp(),
    final_zero="appended",
    stops="never",
    noise=_ETA_PER_STEP,
    emulates=(Emulation("ddim"),),
    initial_noise=Scaled("sigma_max"),
    text=Text("import torch\n" + _PIPELINE),
    form="torch.tensor({}, dtype=torch.float64)",
    settings=(
        'sigma_schedule="karras"',
        'final_sigmas_type="zero"',
        "sigma_min={sigma_min}",
        "sigma_max={sigma_max}",
        "rho={rho}",
    ),
)

NO_TIMESTEPS = "takes no custom timesteps"
_DISTILLED = "is for networks distilled to few steps, whose output is not the denoiser"
_SEVERAL_RESOLUTIONS = "runs several resolutions, each with its own levels"

# diffusers 0.42
UNSUPPORTED: dict[str, str] = {
    "DPMSolverSinglestep": (
        "takes second-order steps over two of its timesteps, as no sampler of jaxkernels does"
    ),
    "DDPMParallel": "solves for all steps of DDPM at once; export to the scheduler 'ddpm'",
    "DDPMWuerstchen": "takes steps of DDPM in the clamped cosine time of one family of models",
    "MiniMaxH3": (
        "is for flow models of one family, and takes the numbers of the tool 'comfyui' as they are"
    ),
    "Helios": _SEVERAL_RESOLUTIONS,
    "HeliosDMD": _SEVERAL_RESOLUTIONS,
    **dict.fromkeys(
        (
            "CMStochasticIterative",
            "FlowMapEulerDiscrete",
            "FlowMatchLCM",
            "LCM",
            "Piflow",
            "SCM",
            "TCD",
        ),
        _DISTILLED,
    ),
    **dict.fromkeys(
        (
            "CogVideoXDDIM",
            "CogVideoXDPM",
            "CosineDPMSolverMultistep",
            "DDIM",
            "DDIMInverse",
            "DDIMParallel",
            "DEISMultistep",
            "DPMSolverMultistepInverse",
            "DPMSolverSDE",
            "EDMDPMSolverMultistep",
            "EulerAncestralDiscrete",
            "FlowMatchHeunDiscrete",
            "IPNDM",
            "KDPM2AncestralDiscrete",
            "KDPM2Discrete",
            "KarrasVe",
            "LMSDiscrete",
            "PNDM",
            "RePaint",
            "SASolver",
            "ScoreSdeVe",
            "UnCLIP",
        ),
        NO_TIMESTEPS,
    ),
}
"""Schedulers of diffusers that `export` does not support, with the reason."""

SCHEDULERS: dict[str, Scheduler] = {
    "euler": _EULER,
    "dpm_multistep": _DPM_MULTISTEP,
    "ddpm": _DDPM,
    "heun": _HEUN,
    "flow_match_euler": _FLOW_MATCH_EULER,
    "ltx_euler_ancestral": _LTX_EULER_ANCESTRAL,
    "unipc": _UNIPC,
    "edm_euler": _EDM_EULER,
}
"""Schedulers of diffusers that `export` supports."""

DIFFUSERS = Tool(
    "diffusers",
    SCHEDULERS,
    defaults=(
        Default("ltx_euler_ancestral", processes=(FlowMatching,), stochastic=True),
        Default("unipc", processes=(FlowMatching,), sampler="dpmpp_2m"),
        Default("flow_match_euler", processes=(FlowMatching,)),
        Default("edm_euler", processes=(EDM, VE)),
        Default("dpm_multistep", sampler="dpmpp_2m"),
        Default("heun", sampler="heun"),
        Default("euler"),
    ),
    selectable=True,
    unsupported=UNSUPPORTED,
)
