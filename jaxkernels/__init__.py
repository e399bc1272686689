"""Exact error analysis and optimal schedules for diffusion samplers."""

from importlib.metadata import version as _version

from . import (
    data as data,
    diffusion as diffusion,
    metrics as metrics,
    quality as quality,
    samplers as samplers,
    schedules as schedules,
)
from .adapters import from_torch as from_torch
from .bounds import (
    AccumulationBound as AccumulationBound,
    accumulation_operators as accumulation_operators,
    hessian_interval as hessian_interval,
    lipschitz_accumulation as lipschitz_accumulation,
)
from .compare import Comparison as Comparison, compare_schedules as compare_schedules
from .estimate import (
    ScoreErrorEstimate as ScoreErrorEstimate,
    estimate_score_error as estimate_score_error,
    linearised_score_error as linearised_score_error,
)
from .evaluate import (
    ErrorBudget as ErrorBudget,
    Evaluation as Evaluation,
    evaluate_schedule as evaluate_schedule,
)
from .fokker_planck import FokkerPlanckResult as FokkerPlanckResult, leading_order_1d as leading_order_1d
from .kernels import (
    ErrorKernel as ErrorKernel,
    ExpectedError as ExpectedError,
    error_kernel as error_kernel,
    expected_error as expected_error,
)
from .measure import Measurement as Measurement, measure as measure
from .optimize import (
    Local as Local,
    OptimizedSchedule as OptimizedSchedule,
    Terminal as Terminal,
    optimize_schedule as optimize_schedule,
)
from .prediction import Prediction as Prediction, predictor as predictor
from .process import (
    EDM as EDM,
    OU as OU,
    VE as VE,
    VP as VP,
    AbstractProcess as AbstractProcess,
    CosineVP as CosineVP,
    DiscreteVP as DiscreteVP,
    FlowMatching as FlowMatching,
)
from .record import Record as Record, RecordedError as RecordedError, record as record
from .report import Report as Report, compare_samplers as compare_samplers
from .sample import sample as sample
from .samplers import (
    DDIM as DDIM,
    RK4 as RK4,
    AbstractSampler as AbstractSampler,
    DPMSolverPP2M as DPMSolverPP2M,
    EulerMaruyama as EulerMaruyama,
    ExponentialIntegrator as ExponentialIntegrator,
    Heun as Heun,
)
from .schedules import Schedule as Schedule
from .score_error import (
    AR1 as AR1,
    AffineError as AffineError,
    Banded as Banded,
    Independent as Independent,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
    ScoreError as ScoreError,
    Shared as Shared,
)
from .target import Gaussian as Gaussian, GaussianMixture as GaussianMixture

__version__ = _version("jaxkernels")
