"""ComfyUI: SIGMAS (K+1,), decreasing; it stops at the last.

They are the string of a ManualSigmas node, or a file with a node of its own. ManualSigmas reads
digits, a dot and digits, so no number is written with an exponent. For flow models a level is
s/(a + s), in [0, 1], and the model's own shift is not applied to it.

Its samplers start from latent_image + sigma noise, or (1 - level) latent_image + level noise for
flow models, at the first of the SIGMAS; the latents are 0 where an empty image is connected. So a
schedule that starts below the model's largest level needs the data there. A sampler that stops
above 0 divides the latents of a flow model by 1 - level, and one that starts there without noise
multiplies them by it again: two experts follow each other as they stand.
"""

import dataclasses

from ..processes import EDM, FlowMatching
from ._initial_noise import Scaled, ScaledAtTableTop
from ._k_diffusion import HEUN_IN_SIGMA
from ._levels import FlowSigmas, Sigmas
from ._noise import Deterministic, Eta, SDEEta
from ._render import Text
from ._scheduler import Default, Emulation, Scheduler, Tool

_NODE = "paste the numbers into ManualSigmas and connect it to SamplerCustom with "
_DATA = (
    "connect the data (latents, as of VAE Encode) to latent_image and leave add_noise on: ComfyUI "
    "adds noise of level {first} to them; for inpainting, give them a mask by Set Latent Noise Mask"
)
_EXPERT = (
    "for the second of two experts, connect the latents of the first, whose SIGMAS stop at "
    "{first}, and turn add_noise off"
)
_DATA_IN_FILE = """\
# It starts from noised data at level {first}: connect latents to latent_image, with denoise 1.
import logging"""
_ONE_ETA = "ComfyUI's ancestral sampler takes one eta for all steps"


def _text(template: str, remarks: tuple[str, ...]) -> Text:
    """A text with what is to be connected where the schedule starts from noised data."""
    noised = template.replace("import logging", _DATA_IN_FILE)
    return Text(template, remarks, from_data=Text(noised, (*remarks, _DATA, _EXPERT)))


_SDE = "SamplerDPMPP_2M_SDE with midpoint, eta {constant} and s_noise 1"

_SIGMA_MODELS = Scheduler(
    name="comfyui",
    keyword="sigmas",
    levels=Sigmas(),
    final_zero="written",
    stops="anywhere",
    noise=Eta(
        constant=_text(
            "{decimals}",
            (_NODE + "SamplerEulerAncestral with eta {constant} and s_noise 1",),
        ),
        reason=_ONE_ETA,
    ),
    emulates=(
        Emulation("ddim", "euler"),
        Emulation(
            "dpmpp_2m",
            "dpmpp_2m",
            noise=SDEEta(_text("{decimals}", (_NODE + _SDE,))),
        ),
        Emulation("dpm_2", "dpm_2"),
        Emulation("heun", "heun", exact_for=(EDM,), difference=HEUN_IN_SIGMA),
    ),
    initial_noise=ScaledAtTableTop(),
    text=_text("{decimals}", (_NODE + "the sampler '{function}'",)),
)

_FLOW_MODELS = dataclasses.replace(
    _SIGMA_MODELS,
    levels=FlowSigmas(),
    noise=Deterministic(f"{_ONE_ETA}, and another formula for flow models"),
    emulates=(
        Emulation("ddim", "euler"),
        Emulation(
            "dpmpp_2m",
            "dpmpp_2m",
            exact_for=(),
            difference=(
                "comfyui's dpmpp_2m extrapolates in the logarithm of its level s/(a + s), "
                "jaxkernels' in that of s/a: their second-order terms differ"
            ),
        ),
        Emulation("heun", "heun"),
    ),
    initial_noise=Scaled("level"),
)

# without braces, which the placeholders use
_NODE_FILE = """\
# A schedule of {num_steps} steps. Save this file in ComfyUI's folder custom_nodes: its name without
# .py is that of a scheduler for KSampler and BasicScheduler, and of a node for SIGMAS.
import logging
import pathlib

import numpy
import torch
from comfy import samplers

{numbers}
NAME = pathlib.Path(__file__).stem


def schedule(model_sampling, steps):
    if sigmas[0] > 1.001 * float(model_sampling.sigma_max):
        raise ValueError(NAME + " was made for a model with a larger sigma_max")
    if steps == {num_steps}:
        return torch.FloatTensor(sigmas)
    logging.warning("%s has {num_steps} steps; its levels are interpolated for %d", NAME, steps)
    above = [sigma for sigma in sigmas if sigma > 0]
    end = sigmas[len(above) :]
    position = numpy.linspace(0, len(above) - 1, steps + 1 - len(end))
    logarithms = numpy.interp(position, range(len(above)), numpy.log(above))
    return torch.FloatTensor([*numpy.exp(logarithms), *end])


samplers.SCHEDULER_HANDLERS[NAME] = samplers.SchedulerHandler(schedule, use_ms=True)
if NAME not in samplers.SCHEDULER_NAMES:
    samplers.SCHEDULER_NAMES.append(NAME)


class Sigmas:
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = "sampling/custom_sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls):
        denoise = ("FLOAT", dict(default=1.0, min=0.0, max=1.0, step=0.01))
        return dict(required=dict(denoise=denoise))

    def get_sigmas(self, denoise):
        steps = round({num_steps} * denoise)
        return (torch.FloatTensor(sigmas[-(steps + 1) :] if steps else []),)


NODE_CLASS_MAPPINGS = dict([(NAME, Sigmas)])
NODE_DISPLAY_NAME_MAPPINGS = dict([(NAME, NAME)])"""

_OWN_NODE = (
    "select it with {num_steps} steps in KSampler, or connect its node to SamplerCustom; levels "
    "for other numbers of steps (in KSampler also denoise < 1, dpm_2, uni_pc) are interpolated"
)
_ANCESTRAL = "use its node with SamplerEulerAncestral, with eta {constant} and s_noise 1"
_NODE_TEXT = _text(_NODE_FILE, (_OWN_NODE, "the sampler is '{function}'"))


def _as_node(scheduler: Scheduler) -> Scheduler:
    """The scheduler with the text of a custom node."""
    noise = scheduler.noise
    if isinstance(noise, Eta):
        noise = dataclasses.replace(noise, constant=_text(_NODE_FILE, (_OWN_NODE, _ANCESTRAL)))
    sde = SDEEta(_text(_NODE_FILE, (_OWN_NODE, "use its node with " + _SDE)))
    emulates = tuple(
        dataclasses.replace(entry, noise=sde) if entry.noise else entry
        for entry in scheduler.emulates
    )
    return dataclasses.replace(
        scheduler, name="comfyui-node", noise=noise, text=_NODE_TEXT, emulates=emulates
    )


_DEFAULTS = (Default("flow_models", processes=(FlowMatching,)), Default("sigma_models"))
_SCHEDULERS = {"sigma_models": _SIGMA_MODELS, "flow_models": _FLOW_MODELS}

COMFYUI = Tool("comfyui", _SCHEDULERS, defaults=_DEFAULTS)
COMFYUI_NODE = Tool(
    "comfyui-node",
    {name: _as_node(scheduler) for name, scheduler in _SCHEDULERS.items()},
    defaults=_DEFAULTS,
)
