"""Exact error analysis and optimal schedules for diffusion samplers."""

from importlib.metadata import version as _version

from . import (
    bounds as bounds,
    data as data,
    exports as exports,
    metrics as metrics,
    reverse_sde as reverse_sde,
    routing as routing,
    samplers as samplers,
    schedules as schedules,
)
from .bounds import (
    AccumulationBound as AccumulationBound,
    accumulation_operators as accumulation_operators,
    hessian_interval as hessian_interval,
    lipschitz_accumulation as lipschitz_accumulation,
)
from .comparison import (
    Comparison as Comparison,
    SamplerReport as SamplerReport,
    compare_samplers as compare_samplers,
    compare_schedules as compare_schedules,
)
from .distributions import (
    Gaussian as Gaussian,
    GaussianMixture as GaussianMixture,
)
from .errors import (
    ContinuousKernel as ContinuousKernel,
    ErrorBudget as ErrorBudget,
    ErrorCurve as ErrorCurve,
    ErrorKernel as ErrorKernel,
    ErrorSweep as ErrorSweep,
    Evaluation as Evaluation,
    ExpectedError as ExpectedError,
    KernelParts as KernelParts,
    LocalError as LocalError,
    TerminalError as TerminalError,
    TimeModes as TimeModes,
    continuous_kernel as continuous_kernel,
    error_curve as error_curve,
    error_kernel as error_kernel,
    error_sweep as error_sweep,
    evaluate_schedule as evaluate_schedule,
    expected_error as expected_error,
    kernel_parts as kernel_parts,
    stability_constant as stability_constant,
    time_modes as time_modes,
)
from .exports import (
    Export as Export,
    export as export,
)
from .measurement import (
    ConfidenceInterval as ConfidenceInterval,
    Measurement as Measurement,
    ParameterCovariance as ParameterCovariance,
    ParameterNoise as ParameterNoise,
    PredictedExcess as PredictedExcess,
    SampleChange as SampleChange,
    ScoreErrorEstimate as ScoreErrorEstimate,
    estimate_score_error as estimate_score_error,
    linearised_score_error as linearised_score_error,
    measure as measure,
    parameter_covariance as parameter_covariance,
    predict_parameter_noise as predict_parameter_noise,
    predict_sample_change as predict_sample_change,
)
from .optimize import (
    Newton as Newton,
    Optax as Optax,
    OptimizedSchedule as OptimizedSchedule,
    ScheduleSweep as ScheduleSweep,
    Selection as Selection,
    optimize_schedule as optimize_schedule,
    optimize_schedules as optimize_schedules,
)
from .prediction import (
    AbstractDenoiser as AbstractDenoiser,
    Denoiser as Denoiser,
    Prediction as Prediction,
    from_diffusers as from_diffusers,
    from_k_diffusion as from_k_diffusion,
    from_torch as from_torch,
)
from .processes import (
    EDM as EDM,
    OU as OU,
    VE as VE,
    VP as VP,
    AbstractProcess as AbstractProcess,
    CosineVP as CosineVP,
    DiscreteVP as DiscreteVP,
    FlowMatching as FlowMatching,
    PowerVP as PowerVP,
)
from .reverse_sde import (
    FokkerPlanckResult as FokkerPlanckResult,
    leading_order_1d as leading_order_1d,
)
from .samplers import (
    DDIM as DDIM,
    DEIS as DEIS,
    DPM2 as DPM2,
    IPNDM as IPNDM,
    LMS as LMS,
    REI as REI,
    REM as REM,
    RK4 as RK4,
    AbstractSampler as AbstractSampler,
    DPMSolverPP2M as DPMSolverPP2M,
    DPMSolverPP2S as DPMSolverPP2S,
    DPMSolverPP3M as DPMSolverPP3M,
    EDMSampler as EDMSampler,
    EulerMaruyama as EulerMaruyama,
    ExactMean as ExactMean,
    ExponentialIntegrator as ExponentialIntegrator,
    Heun as Heun,
    MatchedNoise as MatchedNoise,
    Midpoint as Midpoint,
    SecondOrder as SecondOrder,
    SecondOrder1 as SecondOrder1,
    Tweedie as Tweedie,
    Tweedie1 as Tweedie1,
    Tweedie2 as Tweedie2,
    UniPC as UniPC,
    sample as sample,
)
from .schedules import (
    Schedule as Schedule,
)
from .score_error import (
    AR1 as AR1,
    AffineError as AffineError,
    Banded as Banded,
    FullyCorrelated as FullyCorrelated,
    Independent as Independent,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
    ScoreError as ScoreError,
)
from .trajectories import (
    DenoisedRecord as DenoisedRecord,
    RecordedError as RecordedError,
    SimulatedError as SimulatedError,
    TrajectoryRecord as TrajectoryRecord,
    record as record,
    record_denoised as record_denoised,
)

__version__ = _version("jaxkernels")
