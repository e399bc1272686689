"""Score errors: random affine functions of x, correlated in time."""

from ._affine import AffineError as AffineError
from ._correlation import (
    AR1 as AR1,
    AbstractCorrelation as AbstractCorrelation,
    Banded as Banded,
    GivenCorrelation as GivenCorrelation,
    Independent as Independent,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
    Shared as Shared,
)
from ._model import ScoreError as ScoreError
from ._profile import (
    AbstractProfile as AbstractProfile,
    Constant as Constant,
    Relative as Relative,
    Scaled as Scaled,
    Tabulated as Tabulated,
)
