"""Bounds on the terminal error."""

from . import _published
from ._assumptions import (
    Assumptions as Assumptions,
    DenoisingCurve as DenoisingCurve,
    assumptions as assumptions,
)
from ._bound import (
    AccumulationBound as AccumulationBound,
)
from ._certified import (
    CertifiedBound as CertifiedBound,
    certified_bound as certified_bound,
)
from ._curvature import (
    hessian_interval as hessian_interval,
)
from ._girsanov import (
    GirsanovBound as GirsanovBound,
    girsanov_bound as girsanov_bound,
)
from ._lipschitz import (
    LipschitzAccumulation as LipschitzAccumulation,
    lipschitz_accumulation as lipschitz_accumulation,
)
from ._num_steps import (
    certified_num_steps as certified_num_steps,
)
from ._objective import (
    CertifiedError as CertifiedError,
)
from ._operators import (
    AccumulationOperators as AccumulationOperators,
    accumulation_operators as accumulation_operators,
)

as_published = _published
"""Theorems as published, which are no certificates."""
