"""Samplers of the reverse process, each defined once."""

from ._adams_bashforth import (
    DEIS as DEIS,
    IPNDM as IPNDM,
    LMS as LMS,
)
from ._base import (
    AbstractSampler as AbstractSampler,
    History as History,
    Noise as Noise,
    Process as Process,
    Times as Times,
    X as X,
    check_advanced as check_advanced,
)
from ._ddim import (
    DDIM as DDIM,
    from_churn as from_churn,
    from_eta as from_eta,
    to_churn as to_churn,
    to_eta as to_eta,
)
from ._dpm_solver import (
    DPMSolverPP2M as DPMSolverPP2M,
    DPMSolverPP3M as DPMSolverPP3M,
    UniPC as UniPC,
)
from ._end_evaluated import (
    EndEvaluated as EndEvaluated,
)
from ._matched_noise import MatchedNoise as MatchedNoise
from ._names import (
    SAMPLERS as SAMPLERS,
    as_sampler as as_sampler,
    check_batch_sampler as check_batch_sampler,
    check_reverse_sde as check_reverse_sde,
    check_sampler_name as check_sampler_name,
    check_schedule as check_schedule,
    sampler_name as sampler_name,
)
from ._nfe import sampling_nfe as sampling_nfe
from ._randomised import (
    REI as REI,
    REM as REM,
)
from ._reverse import (
    EulerMaruyama as EulerMaruyama,
    ExponentialIntegrator as ExponentialIntegrator,
)
from ._run import (
    check_finite as check_finite,
    check_noise as check_noise,
    drawing_key as drawing_key,
    run_schedule as run_schedule,
    sample as sample,
    sample_concrete as sample_concrete,
    split_key as split_key,
    take_step as take_step,
)
from ._runge_kutta import (
    RK4 as RK4,
    Heun as Heun,
    Midpoint as Midpoint,
)
from ._second_order import (
    SecondOrder as SecondOrder,
    SecondOrder1 as SecondOrder1,
)
from ._singlestep import (
    DPM2 as DPM2,
    DPMSolverPP2S as DPMSolverPP2S,
    EDMSampler as EDMSampler,
    edm_churn as edm_churn,
)
from ._tweedie import (
    ExactMean as ExactMean,
    Tweedie as Tweedie,
    Tweedie1 as Tweedie1,
    Tweedie2 as Tweedie2,
)
