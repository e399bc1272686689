"""Forward processes: how data turn into noise."""

from ._base import AbstractProcess as AbstractProcess
from ._flow import FlowMatching as FlowMatching
from ._ve import EDM as EDM, VE as VE
from ._vp import OU as OU, VP as VP, CosineVP as CosineVP, DiscreteVP as DiscreteVP

PROCESSES: dict[str, type[AbstractProcess]] = {
    "vp": VP,
    "ou": OU,
    "ve": VE,
    "edm": EDM,
    "cosine_vp": CosineVP,
    "flow_matching": FlowMatching,
    "discrete_vp": DiscreteVP,
}
