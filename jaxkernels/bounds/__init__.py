"""Bounds on the terminal error."""

from . import _as_published
from ._accumulation_objective import (
    LipschitzBound as LipschitzBound,
    OperatorBound as OperatorBound,
)
from ._assumptions import (
    Assumptions as Assumptions,
    assumptions as assumptions,
)
from ._bound import (
    AccumulationBound as AccumulationBound,
)
from ._certified import (
    CertifiedBound as CertifiedBound,
    certified_bound as certified_bound,
)
from ._continuous import (
    ContinuousAccumulation as ContinuousAccumulation,
    continuous_accumulation as continuous_accumulation,
    sde_ode_crossing as sde_ode_crossing,
    sde_ode_ratio as sde_ode_ratio,
)
from ._curvature import (
    hessian_interval as hessian_interval,
)
from ._curvature_interval import (
    AbstractCurvature as AbstractCurvature,
    BoundedSupport as BoundedSupport,
    CurvatureClass as CurvatureClass,
    GaussianCurvature as GaussianCurvature,
    MixtureCurvature as MixtureCurvature,
    TabulatedCurvature as TabulatedCurvature,
    TightestCurvature as TightestCurvature,
)
from ._denoising_curve import DenoisingCurve as DenoisingCurve
from ._girsanov import (
    GirsanovBound as GirsanovBound,
    girsanov_bound as girsanov_bound,
)
from ._lipschitz import (
    LipschitzAccumulation as LipschitzAccumulation,
    lipschitz_accumulation as lipschitz_accumulation,
    rms_along_run as rms_along_run,
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
from ._separation import (
    Separation as Separation,
    dominant_component as dominant_component,
    logit_margin as logit_margin,
    separation as separation,
)

# a namespace of its own, so that no call looks like one of a bound
as_published = _as_published
