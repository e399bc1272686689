"""diffusers: schedules bound to `pipe.scheduler`.

A schedule has no place in a scheduler's configuration, and pipelines differ in what they take:
some have no argument for it, and Flux drops the one it has for some schedulers. The texts therefore
give the pipeline a scheduler that knows the schedule, whatever numbers the pipeline asks for.
"""

import dataclasses
import functools
from collections.abc import Callable

from ..processes import EDM, VE, FlowMatching
from ._initial_noise import Scaled, SpacingSetting, UnitVariance
from ._k_diffusion import HEUN_IN_SIGMA
from ._levels import FlowSigmas, KarrasRamp, TableSigmas, Timesteps
from ._noise import Deterministic, Eta, Fixed, FlowEta
from ._render import Text
from ._scheduler import Default, Emulation, Scheduler, Tool

# settings under which a scheduler takes the numbers it is given as they are
_AS_GIVEN = ("use_karras_sigmas=False", "use_exponential_sigmas=False", "use_beta_sigmas=False")

_CLASS = """\
from diffusers import {name}

{numbers}


class Scheduled({name}):
    numbers = {variable}

    def set_timesteps(
        self, num_inference_steps=None, device=None, timesteps=None, sigmas=None, **others
    ):
        constructed = hasattr(self, "timesteps")
        if constructed and num_inference_steps not in (None, {num_steps}):
            raise ValueError("the schedule needs num_inference_steps={num_steps}")
        super().set_timesteps({keyword}=self.numbers, device=device)
"""

# networks that count time from noise to data, as Mochi's does, would be told the reverse
_DIRECTION = """\
        if self.config.get("invert_sigmas"):
            raise ValueError("the network's time is inverted: export to 'flow_match_euler'")
"""

# the scheduler itself would round the timesteps, and image-to-image asks for its noise by that name
_EXACT_TIMESTEPS = f"""\
{_DIRECTION}\
        self.timesteps = self.config.num_train_timesteps * self.sigmas[:-1].to(device)

    def scale_noise(self, sample, timestep, noise):
        return self.add_noise(sample, noise, timestep)
"""

# for pipelines that pass what only their own scheduler takes, or the network's variances as well
_STEP = """
    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **others):
        output = model_output[:, : sample.shape[1]]
        return super().step(output, timestep, sample, generator, return_dict=return_dict)
"""

# schedulers in units of sigma rely on the pipeline to scale the noise and the network's input
_CHECKED_STEP = """
    noise_scaled = input_scaled = False

    @property
    def init_noise_sigma(self):
        self.noise_scaled = True
        return super().init_noise_sigma

    def scale_model_input(self, sample, timestep):
        self.input_scaled = True
        return super().scale_model_input(sample, timestep)

    def step(self, *args, **kwargs):
        starts_from_image = self.begin_index is not None
        if not self.input_scaled or not (self.noise_scaled or starts_from_image):
            raise ValueError("the pipeline does not scale by sigma: export to 'dpm_multistep'")
        return super().step(*args, **kwargs)
"""

_UNSCALED = (
    "DDPMPipeline, DDIMPipeline, DiTPipeline and those of Kandinsky scale neither noise nor input: "
    "export to the scheduler 'dpm_multistep' for them",
)
_FROM_ONE = (
    "a first level 1 becomes 1 - 1e-6, so that the second step extrapolates a little, where "
    "jaxkernels' takes a step of first order",
)
_REMARKS = (
    "the last line is for {pipeline}; any other pipeline takes its own arguments there, with "
    "num_inference_steps={num_steps}",
    "pipelines with an argument strength (image-to-image, inpainting) run the last "
    "int({num_steps} * strength) of these steps: pass strength=1 to run them all",
)


_IMAGE_TO_IMAGE = (
    "image = pipe(prompt, image=image, strength=1.0, num_inference_steps={num_steps}).images[0]"
)
_NOISED_REMARKS = (
    "the last line is for {pipeline}, which adds noise of the first level to the image; any other "
    "pipeline that starts from data takes its own arguments there, with "
    "num_inference_steps={num_steps} and strength=1",
    "pipelines for inpainting start from pure noise at strength=1: pass their latents yourself",
)
_NO_NOISED_CALL = (
    "no call is written: {pipeline} always starts from pure noise; this schedule is for a pipeline "
    "that adds noise of the first level to its data, with num_inference_steps={num_steps} and "
    "strength=1",
)


def _bound(
    pipeline: str,
    call: str,
    more: str = "",
    imports: str = "",
    remarks: tuple[str, ...] = (),
    image_to_image: str = "",
) -> Text:
    """The text that binds the schedule to `pipe.scheduler`, and a call of the pipeline."""
    template = imports + _CLASS + more + "\n\n{scheduled}"

    def about(texts: tuple[str, ...], pipeline: str) -> tuple[str, ...]:
        return (*(text.replace("{pipeline}", pipeline) for text in texts), *remarks)

    if image_to_image:
        notes = about(_NOISED_REMARKS, image_to_image)
        from_data = Text(template, notes, _IMAGE_TO_IMAGE)
    else:
        from_data = Text(template, about(_NO_NOISED_CALL, pipeline))
    return Text(template, about(_REMARKS, pipeline), call, from_data)


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
scheduler, latents = pipe.scheduler, {latents}
for i, t in enumerate(scheduler.timesteps):
    output = network(scheduler.scale_model_input(latents, t), t)  # with its conditioning
    x0 = scheduler.step(output, t, latents).pred_original_sample
    sigma, next_sigma = scheduler.sigmas[i], scheduler.sigmas[i + 1]
    up = eta[i] * next_sigma * (1 - (next_sigma / sigma) ** 2) ** 0.5
    down = max(next_sigma**2 - up**2, 0) ** 0.5
    latents = x0 + down / sigma * (latents - x0) + up * torch.randn_like(latents)"""

# eta is a setting, so one for each step needs the loop to be written out
_LTX_LOOP = """\
from diffusers import {name}

{numbers}
{parameters}
{config}
pipe.scheduler.set_timesteps({keyword}={variable})
scheduler, latents = pipe.scheduler, {latents}
for i, t in enumerate(scheduler.timesteps[:-1]):
    scheduler.register_to_config(eta=eta[i])
    output = network(latents, t)  # with its conditioning
    latents = scheduler.step(output, t, latents).prev_sample"""


def _loop(template: str, pure: str, noised: str) -> Text:
    """The text of a loop that starts from noise, or from the noised data x0."""

    def starting(latents: str, *remarks: str) -> Text:
        return Text(template.replace("{latents}", latents), (_LOOP_REMARK, *remarks))

    text = starting(pure)
    remark = "x0 is the data to start from, in the units in which the network was trained"
    return dataclasses.replace(text, from_data=starting(noised, remark))


_ETA_PER_STEP = Eta(
    per_step=_loop(
        _DDIM_LOOP,
        "noise * pipe.scheduler.init_noise_sigma",
        "x0 + noise * pipe.scheduler.sigmas[0]",
    )
)
_LTX_LOOP_TEXT = _loop(_LTX_LOOP, "noise", "x0 + pipe.scheduler.sigmas[0] * (noise - x0)")

_LTX_TEXT = _bound(
    "LTXPipeline",
    "video = pipe(prompt, num_inference_steps={num_steps}).frames[0]",
    _DIRECTION,
    remarks=("the pipeline evaluates the network once more at the level 0, to no effect",),
)

_IMAGE = "image = pipe(prompt, num_inference_steps={num_steps}).images[0]"
_STABLE_DIFFUSION = functools.partial(
    _bound,
    "StableDiffusionPipeline or StableDiffusionXLPipeline",
    _IMAGE,
    image_to_image="StableDiffusionImg2ImgPipeline or StableDiffusionXLImg2ImgPipeline",
)
_FLOW_PIPELINE = functools.partial(
    _bound,
    "FluxPipeline or StableDiffusion3Pipeline",
    _IMAGE,
    image_to_image="FluxImg2ImgPipeline or StableDiffusion3Img2ImgPipeline",
)

# what schedulers of one kind have in common: their numbers, their end and their noise
_SHAPES: dict[str, Callable[..., Scheduler]] = {
    "sigmas": functools.partial(
        Scheduler,
        keyword="sigmas",
        noise=_ETA_PER_STEP,
        emulates=(Emulation("ddim"),),
        text=_STABLE_DIFFUSION(_CHECKED_STEP, remarks=_UNSCALED),
    ),
    "timesteps": functools.partial(
        Scheduler,
        keyword="timesteps",
        levels=Timesteps(integer=True),
        final_zero="appended",
        stops="never",
        noise=Deterministic(),
        initial_noise=Scaled("variance_preserving"),
        text=_STABLE_DIFFUSION(_STEP),
    ),
    "flow": functools.partial(
        Scheduler,
        keyword="sigmas",
        levels=FlowSigmas(),
        final_zero="appended",
        stops="never",
        noise=Deterministic(),
        emulates=(Emulation("ddim"),),
        initial_noise=UnitVariance(),
        text=_FLOW_PIPELINE(),
    ),
}


def _dpm_settings(final_sigmas_type: str, lower_order_final: bool) -> tuple[str, ...]:
    """Settings of DPMSolverMultistep under which it is DPM-Solver++, whose first order is DDIM."""
    return (
        'algorithm_type="dpmsolver++"',
        "solver_order={function}",
        'solver_type="{options}"',
        f'final_sigmas_type="{final_sigmas_type}"',
        f"lower_order_final={lower_order_final}",
        "euler_at_final=False",
        "variance_type=None",
        "thresholding=False",
        *_AS_GIVEN,
        "use_lu_lambdas=False",
        "use_flow_sigmas=False",
    )


SCHEDULERS: dict[str, Scheduler] = {
    # finds the timesteps itself
    "euler": _SHAPES["sigmas"](
        name="EulerDiscreteScheduler",
        levels=TableSigmas(),
        final_zero="written",
        stops="anywhere",
        initial_noise=SpacingSetting(),
        settings=('timestep_spacing="{timestep_spacing}"', *_AS_GIVEN),
    ),
    # what it calls a sampler is the order
    "dpm_multistep": _SHAPES["timesteps"](
        name="DPMSolverMultistepScheduler",
        stops="table_minimum",
        emulates=(
            Emulation("dpmpp_2m", "2", "midpoint"),
            Emulation("dpmpp_3m", "3", "heun"),
            Emulation("ddim", "1", "midpoint"),
        ),
        settings=_dpm_settings("zero", lower_order_final=True),
        settings_above_zero=_dpm_settings("sigma_min", lower_order_final=False),
    ),
    # every step is ancestral, whatever the schedule's stochasticity
    "ddpm": _SHAPES["timesteps"](
        name="DDPMScheduler",
        noise=Fixed(1.0),
        emulates=(Emulation("ddim"),),
        text=_bound(
            "DDPMPipeline", "image = pipe(num_inference_steps={num_steps}).images[0]", _STEP
        ),
        settings=('variance_type="fixed_small"', "clip_sample=False", "thresholding=False"),
    ),
    "heun": _SHAPES["timesteps"](
        name="HeunDiscreteScheduler",
        levels=Timesteps(integer=False),
        emulates=(Emulation("heun", exact_for=(EDM,), difference=HEUN_IN_SIGMA),),
        initial_noise=SpacingSetting(),
        text=_STABLE_DIFFUSION(_CHECKED_STEP, remarks=_UNSCALED),
        settings=('timestep_spacing="{timestep_spacing}"', *_AS_GIVEN),
    ),
    "flow_match_euler": _SHAPES["flow"](
        name="FlowMatchEulerDiscreteScheduler",
        levels=FlowSigmas(shift=1.0),
        settings=(
            "shift={shift}",
            "use_dynamic_shifting=False",
            "shift_terminal=None",
            "stochastic_sampling=False",
            *_AS_GIVEN,
        ),
    ),
    "ltx_euler_ancestral": _SHAPES["flow"](
        name="LTXEulerAncestralRFScheduler",
        final_zero="written",
        stops="anywhere",
        noise=FlowEta(constant=_LTX_TEXT, per_step=_LTX_LOOP_TEXT),
        text=_LTX_TEXT,
        settings=("eta={constant}", "s_noise=1.0"),
    ),
    # Without its corrector, the second order of "bh2" is DPM-Solver++(2M). For models that are not
    # flows it takes no custom timesteps.
    "unipc": _SHAPES["flow"](
        name="UniPCMultistepScheduler",
        emulates=(
            Emulation("dpmpp_2m", options="list(range({num_steps}))"),
            Emulation("unipc", options="[]"),
        ),
        text=_FLOW_PIPELINE(_EXACT_TIMESTEPS, "import numpy as np\n", _FROM_ONE),
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
            "disable_corrector={options}",
            "lower_order_final=True",
            'final_sigmas_type="zero"',
            "thresholding=False",
            *_AS_GIVEN,
        ),
    ),
    "edm_euler": _SHAPES["sigmas"](
        name="EDMEulerScheduler",
        variable="ramp",
        levels=KarrasRamp(),
        final_zero="appended",
        stops="never",
        initial_noise=Scaled("sigma_max"),
        text=_STABLE_DIFFUSION(_CHECKED_STEP, "import torch\n", _UNSCALED),
        form="torch.tensor({}, dtype=torch.float64)",
        settings=(
            'sigma_schedule="karras"',
            'final_sigmas_type="zero"',
            "sigma_min={sigma_min}",
            "sigma_max={sigma_max}",
            "rho={rho}",
        ),
    ),
}
"""Schedulers of diffusers that `export` supports."""

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

DIFFUSERS = Tool(
    "diffusers",
    SCHEDULERS,
    defaults=(
        Default("ltx_euler_ancestral", processes=(FlowMatching,), stochastic=True),
        Default("unipc", processes=(FlowMatching,), sampler="dpmpp_2m"),
        Default("unipc", processes=(FlowMatching,), sampler="unipc"),
        Default("flow_match_euler", processes=(FlowMatching,)),
        Default("edm_euler", processes=(EDM, VE)),
        Default("dpm_multistep", sampler="dpmpp_2m"),
        Default("dpm_multistep", sampler="dpmpp_3m"),
        Default("heun", sampler="heun"),
        Default("euler"),
    ),
    selectable=True,
    unsupported=UNSUPPORTED,
)
