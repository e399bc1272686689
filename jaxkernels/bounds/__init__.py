"""Bounds on the terminal error."""

from ._bound import (
    AccumulationBound as AccumulationBound,
)
from ._curvature import (
    hessian_interval as hessian_interval,
)
from ._lipschitz import (
    LipschitzAccumulation as LipschitzAccumulation,
    lipschitz_accumulation as lipschitz_accumulation,
)
from ._operators import (
    AccumulationOperators as AccumulationOperators,
    accumulation_operators as accumulation_operators,
)
