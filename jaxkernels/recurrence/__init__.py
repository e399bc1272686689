"""Affine-Gaussian recurrences: a sampler's exact moments for an affine score."""

from ._affine import (
    AffineMaps as AffineMaps,
    InitialState as InitialState,
    check_given_times as check_given_times,
    initial_state as initial_state,
    linearise as linearise,
    propagate as propagate,
)
from ._coordinates import (
    AbstractCoordinates as AbstractCoordinates,
    Dense as Dense,
    Moments as Moments,
    PerMode as PerMode,
)
from ._end import (
    End as End,
    EndDerivatives as EndDerivatives,
    curve_own as curve_own,
    end_of as end_of,
    end_responses as end_responses,
    scatter_own as scatter_own,
)
from ._exact import (
    log_contraction as log_contraction,
    log_contractions as log_contractions,
    to_the_end as to_the_end,
)
from ._initialization import (
    NAMED_INITIALIZATIONS as NAMED_INITIALIZATIONS,
    AbstractInitialization as AbstractInitialization,
    GaussianInitialization as GaussianInitialization,
    Initialization as Initialization,
    NamedInitialization as NamedInitialization,
    initial_moments as initial_moments,
    initialization_name as initialization_name,
)
from ._local import (
    LocalErrors as LocalErrors,
    ScoreResponses as ScoreResponses,
    local_errors as local_errors,
    propagate_error as propagate_error,
    score_responses as score_responses,
    window_moments as window_moments,
)
from ._run import (
    Run as Run,
    check_target as check_target,
    evaluation_times as evaluation_times,
)
from ._windows import (
    denoiser_slopes as denoiser_slopes,
    flow_values as flow_values,
    local_error_coefficients as local_error_coefficients,
    starts_on_trajectory as starts_on_trajectory,
    trajectory_error as trajectory_error,
    two_evaluation_coefficients as two_evaluation_coefficients,
    window_indices as window_indices,
    window_step as window_step,
)
