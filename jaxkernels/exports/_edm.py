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

_CHURN_TEXT = Text(_LEVELS + _CHURN, _REMARKS)

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
            text=Text(_LEVELS + "S_churn = 0", _REMARKS),
            form="torch.tensor({}, dtype=torch.float64, device=latents.device)",
        )
    },
)
