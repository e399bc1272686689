"""Data distributions with an exact score: Gaussians and Gaussian mixtures."""

from ._base import AbstractDistribution as AbstractDistribution, ExactDenoiser as ExactDenoiser
from ._gaussian import (
    Gaussian as Gaussian,
    gaussian_prediction as gaussian_prediction,
)
from ._mixture import (
    GaussianMixture as GaussianMixture,
)
from ._pack import (
    pack_target as pack_target,
    unpack_target as unpack_target,
)
from ._principal_axes import (
    Moments as Moments,
    check_samples as check_samples,
    sample_moments as sample_moments,
)
from ._quadrature import (
    Compression as Compression,
)
