"""What a network, its data or its loss curve reveal about its denoising error."""

from ._affine_fit import (
    estimate_score_error as estimate_score_error,
    linearised_score_error as linearised_score_error,
)
from ._excess import (
    PredictedExcess as PredictedExcess,
)
from ._interval import (
    ConfidenceInterval as ConfidenceInterval,
    student_mean as student_mean,
)
from ._measure import (
    measure as measure,
)
from ._measurement import (
    Measurement as Measurement,
)
from ._parameter_noise import (
    ParameterCovariance as ParameterCovariance,
    ParameterNoise as ParameterNoise,
    parameter_covariance as parameter_covariance,
    predict_parameter_noise as predict_parameter_noise,
)
from ._sample_change import (
    SampleChange as SampleChange,
    predict_sample_change as predict_sample_change,
)
from ._score_error import (
    ScoreErrorEstimate as ScoreErrorEstimate,
)
