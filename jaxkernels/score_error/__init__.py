"""Models of the score error of a network."""

from ._affine import (
    AffineError as AffineError,
)
from ._correlation import (
    AR1 as AR1,
    AbstractCorrelation as AbstractCorrelation,
    Banded as Banded,
    FullyCorrelated as FullyCorrelated,
    GivenCorrelation as GivenCorrelation,
    Independent as Independent,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
)
from ._model import (
    ScoreError as ScoreError,
)
from ._profile import (
    AbstractProfile as AbstractProfile,
    Constant as Constant,
    Guidance as Guidance,
    Relative as Relative,
    Scaled as Scaled,
    Tabulated as Tabulated,
    Uniform as Uniform,
)
from ._separable import (
    SeparableFit as SeparableFit,
    fit_separable as fit_separable,
)
