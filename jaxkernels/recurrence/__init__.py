"""Affine-Gaussian recurrences: a sampler's exact moments for an affine score."""

from ._affine import (
    AffineMaps as AffineMaps,
    initial_state as initial_state,
    linearise as linearise,
    propagate as propagate,
)
from ._exact import contraction as contraction, to_the_end as to_the_end
from ._local import (
    LocalDefects as LocalDefects,
    local_defects as local_defects,
    mode_maps as mode_maps,
)
