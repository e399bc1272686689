"""Targets: models of the data law and the exact denoisers they induce."""

from ._gaussian import Gaussian as Gaussian, gaussian_prediction as gaussian_prediction
from ._mixture import GaussianMixture as GaussianMixture
from ._quadrature import Compression as Compression
