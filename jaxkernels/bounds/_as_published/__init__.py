"""Theorems on the error of sampling as published, which are no bounds.

A namespace of its own, so that no call looks like one of a bound.
"""

from ._accumulation import (
    corollary_b_1 as corollary_b_1,
    equation_11 as equation_11,
    theorem_3_1 as theorem_3_1,
    theorem_3_2 as theorem_3_2,
    theorem_3_2_remainder as theorem_3_2_remainder,
    theorem_3_3_remainder as theorem_3_3_remainder,
    theorem_3_4 as theorem_3_4,
)
from ._discretisation import (
    PublishedBound as PublishedBound,
    corollary_2 as corollary_2,
    corollary_5 as corollary_5,
    theorem_1 as theorem_1,
    theorem_3 as theorem_3,
    theorem_4 as theorem_4,
)
