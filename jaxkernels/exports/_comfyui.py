"""ComfyUI: SIGMAS (K+1,), decreasing, as the string of a ManualSigmas node; it stops at the last.

The node reads digits, a dot and digits, so no number is written with an exponent. For flow models a
level is s/(a + s), in [0, 1], and the model's own shift is not applied to it.
"""

import dataclasses

from ..processes import EDM, FlowMatching
from ._initial_noise import Scaled, ScaledAtTableTop
from ._k_diffusion import HEUN_IN_SIGMA
from ._levels import FlowSigmas, Sigmas
from ._noise import Deterministic, Eta
from ._render import Text
from ._scheduler import Default, Emulation, Scheduler, Tool

_NODE = "paste the numbers into ManualSigmas and connect it to SamplerCustom with "
_ONE_ETA = "ComfyUI's ancestral sampler takes one eta for all steps"

_SIGMA_MODELS = Scheduler(
    name="comfyui",
    keyword="sigmas",
    levels=Sigmas(),
    final_zero="written",
    stops="anywhere",
    noise=Eta(
        constant=Text(
            "{decimals}",
            (_NODE + "SamplerEulerAncestral with eta {constant} and s_noise 1",),
        ),
        reason=_ONE_ETA,
    ),
    emulates=(
        Emulation("ddim", "euler"),
        Emulation("dpmpp_2m", "dpmpp_2m"),
        Emulation("heun", "heun", exact_for=(EDM,), difference=HEUN_IN_SIGMA),
    ),
    initial_noise=ScaledAtTableTop(),
    text=Text("{decimals}", (_NODE + "the sampler '{function}'",)),
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

COMFYUI = Tool(
    "comfyui",
    {"sigma_models": _SIGMA_MODELS, "flow_models": _FLOW_MODELS},
    defaults=(Default("flow_models", processes=(FlowMatching,)), Default("sigma_models")),
)
