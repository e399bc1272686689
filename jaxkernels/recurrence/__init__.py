"""Affine-Gaussian recurrences: a sampler's exact moments for an affine score."""

from ._affine import (
    AffineMaps as AffineMaps,
    initial_state as initial_state,
    linearise as linearise,
    propagate as propagate,
)
from ._exact import (
    log_contraction as log_contraction,
    log_contractions as log_contractions,
    to_the_end as to_the_end,
)
from ._local import (
    LocalErrors as LocalErrors,
    ScoreResponses as ScoreResponses,
    local_errors as local_errors,
    propagate_error as propagate_error,
    score_responses as score_responses,
    window_moments as window_moments,
)
from ._moments import (
    dense_maps as dense_maps,
    evaluation_times as evaluation_times,
    initial_moments as initial_moments,
    mode_maps as mode_maps,
    propagate_dense as propagate_dense,
    propagate_modes as propagate_modes,
)
from ._setting import (
    NAMED_INITIALIZATIONS as NAMED_INITIALIZATIONS,
    check_setting as check_setting,
)
from ._windows import (
    window_coefficients as window_coefficients,
    window_indices as window_indices,
    window_step as window_step,
)
