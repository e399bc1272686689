"""k-diffusion: `sigmas` (K+1,), decreasing; it stops at the last of them."""

from ..processes import EDM
from ._initial_noise import WrittenOut
from ._levels import Sigmas
from ._noise import Eta, SDEEta
from ._render import Text
from ._scheduler import Emulation, Scheduler, Tool

HEUN_IN_SIGMA = (
    "{name} takes Heun steps in sigma, jaxkernels in the process's time; they agree for EDM"
)

_DETERMINISTIC = """\
import torch
from k_diffusion.sampling import {function}

{numbers}
x = torch.randn(shape) * {initial_std}
x = {function}(model, x, sigmas{options})"""

_SDE = """\
import torch
from k_diffusion.sampling import {function}_sde

{numbers}
x = torch.randn(shape) * {initial_std}
x = {function}_sde(model, x, sigmas, eta={constant})"""

# its name does not have the ending twice
_SDE_ONLY = _SDE.replace("{function}_sde", "{function}")

_CONSTANT_ETA = """\
import torch
from k_diffusion.sampling import sample_euler_ancestral

{numbers}
x = torch.randn(shape) * {initial_std}
x = sample_euler_ancestral(model, x, sigmas, eta={constant})"""

_ETA_PER_STEP = """\
import torch
from k_diffusion.sampling import sample_euler_ancestral

{numbers}
x = torch.randn(shape) * {initial_std}
{parameters}
for i in range(len(eta)):
    x = sample_euler_ancestral(model, x, sigmas[i : i + 2], eta=eta[i])"""

_PURE_NOISE = "x = torch.randn(shape) * {initial_std}"
_NOISED_DATA = "x = x0 + torch.randn_like(x0) * sigmas[0]"


def _text(template: str) -> Text:
    """A text that starts from pure noise, or from the noised data x0 where the schedule does."""
    remark = "x0 is the data to start from, in the units in which the model was trained"
    return Text(template, from_data=Text(template.replace(_PURE_NOISE, _NOISED_DATA), (remark,)))


_SAMPLING = Scheduler(
    name="k-diffusion",
    keyword="sigmas",
    levels=Sigmas(),
    final_zero="written",
    stops="anywhere",
    noise=Eta(constant=_text(_CONSTANT_ETA), per_step=_text(_ETA_PER_STEP)),
    emulates=(
        Emulation("ddim", "sample_euler"),
        Emulation("dpmpp_2m", "sample_dpmpp_2m", noise=SDEEta(_text(_SDE))),
        Emulation("dpmpp_3m", "sample_dpmpp_3m_sde", ", eta=0.0", noise=SDEEta(_text(_SDE_ONLY))),
        Emulation("lms", "sample_lms", ", order=4"),
        Emulation("dpmpp_2s", "sample_dpmpp_2s_ancestral", ", eta=0.0"),
        Emulation("dpm_2", "sample_dpm_2"),
        Emulation("heun", "sample_heun", exact_for=(EDM,), difference=HEUN_IN_SIGMA),
    ),
    initial_noise=WrittenOut(),
    text=_text(_DETERMINISTIC),
    form="torch.tensor({})",
)

K_DIFFUSION = Tool(
    "k-diffusion",
    {"sampling": _SAMPLING},
    unsupported={
        "sample_dpm_fast": "takes no custom noise levels",
        "sample_dpm_adaptive": "takes no custom noise levels",
    },
)
