"""The sampling loop of NVlabs/edm: `t_steps` (K+1,), noise levels ending in 0; `gamma` per step.

The loop computes its levels inside and takes no list, so the text replaces the lines that do.
"""

from ..processes import EDM as EDMProcess
from ._initial_noise import Scaled
from ._k_diffusion import HEUN_IN_SIGMA
from ._levels import Sigmas
from ._noise import Churn
from ._render import Text
from ._scheduler import Emulation, Scheduler, Tool

_REMARKS = (
    "each step is a Heun step, so NFE = 2 K - 1; for NFE = K keep its Euler part only",
    "pass t_steps through net.round_sigma if the network was trained at discrete levels",
)

_LEVELS = """\
# in edm_sampler of NVlabs/edm, instead of the lines that compute t_steps:
num_steps = {num_steps}
{numbers}
"""

_CHURN = """\
{parameters}
# and in its loop, instead of the line that computes gamma:
#     gamma = gammas[i]"""

# the loop multiplies `latents` by the first level
_NOISED_DATA = """\
# and instead of the line that computes x_next, with x0 the data to start from:
#     x_next = x0.to(torch.float64) + latents.to(torch.float64) * t_steps[0]
"""


def _text(settings: str) -> Text:
    """The levels with settings of the loop, which starts from noise or from noised data."""
    return Text(
        _LEVELS + settings,
        _REMARKS,
        from_data=Text(_LEVELS + _NOISED_DATA + settings, _REMARKS),
    )


_CHURN_TEXT = _text(_CHURN)

EDM = Tool(
    "edm",
    {
        "edm_sampler": Scheduler(
            name="edm_sampler",
            keyword="t_steps",
            levels=Sigmas(),
            final_zero="written",
            stops="never",
            noise=Churn(_CHURN_TEXT),
            emulates=(
                Emulation("heun", exact_for=(EDMProcess,), difference=HEUN_IN_SIGMA),
                Emulation("edm_sampler", noise=Churn(_CHURN_TEXT, as_given=True)),
            ),
            initial_noise=Scaled("level"),
            text=_text("S_churn = 0"),
            form="torch.tensor({}, dtype=torch.float64, device=latents.device)",
        )
    },
)
