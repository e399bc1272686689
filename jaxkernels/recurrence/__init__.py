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
    LocalDefects as LocalDefects,
    carried as carried,
    local_defects as local_defects,
    mode_maps as mode_maps,
    window_defect as window_defect,
    windows as windows,
)
