"""What a network, its data or its loss curve say about how well it denoises."""

from ._measure import (
    measure as measure,
)
from ._measurement import (
    Measurement as Measurement,
)
from ._score_error import (
    ScoreErrorEstimate as ScoreErrorEstimate,
    estimate_score_error as estimate_score_error,
    linearised_score_error as linearised_score_error,
)
