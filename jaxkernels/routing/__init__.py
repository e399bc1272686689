"""Experts: several denoisers behind a router, samplers that follow one at a time, and the cost."""

from ._bound import (
    RoutingBound as RoutingBound,
    feedback_bound as feedback_bound,
    log_amplification as log_amplification,
    network_amplification as network_amplification,
    routing_bound as routing_bound,
    truncation_bound as truncation_bound,
)
from ._empirical import EmpiricalDenoiser as EmpiricalDenoiser
from ._experts import Experts as Experts
from ._policy import (
    AbstractPolicy as AbstractPolicy,
    ErrorFeedback as ErrorFeedback,
    EvaluationsPerStep as EvaluationsPerStep,
    SoftRouting as SoftRouting,
    StochasticSwitching as StochasticSwitching,
    TopK as TopK,
)
from ._published import PublishedBounds as PublishedBounds
from ._record import (
    RoutingError as RoutingError,
    RoutingRecord as RoutingRecord,
    record_routing as record_routing,
    split_evaluations as split_evaluations,
)
from ._regularity import Regularity as Regularity, trajectory_norm as trajectory_norm
from ._router import AbstractRouter as AbstractRouter, Threshold as Threshold
from ._sample import RoutedSamples as RoutedSamples, sample as sample
from ._training import (
    label_loss as label_loss,
    weight_loss as weight_loss,
    weight_rate_loss as weight_rate_loss,
)
from ._variance import mean_routing_variance as mean_routing_variance
