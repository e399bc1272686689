"""From the sums of a pass to statistics of a denoiser.

The affine fit w = slope z + constant + R is known only when the pass is over, but what it leaves is
linear in w and z: with a prime for a second time t',

    E[R R'] = cov(w, w') - slope' cov(w, z') - slope cov(z, w') + slope slope' cov(z, z').
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from .._types import AnyArray, constant
from ..distributions import Gaussian
from ._levels import Levels, gaussian_gain


def martingale_violation(
    correlation: Float[AnyArray, "*b n n"],
) -> Float[AnyArray, "*b n n"]:
    """2 E<D_t' - x0, D_t' - D_t> of every pair of times, t' the one with less noise."""
    n = np.arange(correlation.shape[-1])
    own = correlation[..., n, n]
    # times decrease, so the one with less noise is the later one in the list
    return 2.0 * (own[..., np.maximum.outer(n, n)] - correlation)


def pass_statistics(
    sums: Mapping[str, np.ndarray], count: int, levels: Levels, target: Gaussian
) -> dict[str, np.ndarray]:
    """The fields of a `Measurement` by name, from sums over `count` samples."""
    mean = {name: np.asarray(value / count) for name, value in sums.items()}
    error = np.diag(mean["ee"]).copy()
    violation = np.asarray(martingale_violation(constant(mean["ee"])))
    slope, residuals = _affine_fit(mean)
    statistics = {
        "error": error,
        "standard_error": _standard_error(mean["error_squared"], error, count),
        "mode_error": mean["mode_error"],
        "gain": gaussian_gain(target, levels) + slope,
        "offset": mean["w"] - slope * mean["z"],
        "residual": np.maximum(_same_time(residuals), 0.0),
        "mode_residual_correlation": residuals,
        "correlation": mean["ee"],
        "martingale_standard_error": _standard_error(mean["violation_squared"], violation, count),
        "nfe": np.asarray(sums["nfe"], int),
    }
    if "lipschitz" in sums:
        statistics["lipschitz"] = sums["lipschitz"]
        statistics["iterations"] = sums["iterations"].astype(int)
    return statistics


def _affine_fit(
    mean: Mapping[str, np.ndarray],
) -> tuple[Float[np.ndarray, "n modes"], Float[np.ndarray, "modes n n"]]:
    """The slope of w in z, and the covariance of what the affine fit leaves."""

    def covariance(p: str, q: str) -> Float[np.ndarray, "modes n n"]:
        return mean[p + q] - mean[p].T[:, :, None] * mean[q].T[:, None, :]

    wz = covariance("w", "z")
    zz = covariance("z", "z")
    slope = _same_time(wz) / _same_time(zz)
    here = slope.T[:, :, None]
    there = slope.T[:, None, :]
    crossed = there * wz
    residuals = covariance("w", "w") - (crossed + crossed.swapaxes(1, 2)) + here * there * zz
    return slope, residuals


def _same_time(values: Float[np.ndarray, "modes n n"]) -> Float[np.ndarray, "n modes"]:
    """The diagonal over times."""
    return np.diagonal(values, axis1=1, axis2=2).T


def _standard_error(square: np.ndarray, value: np.ndarray, count: int) -> np.ndarray:
    """The standard error of a mean `value` of `count` numbers whose mean square is `square`."""
    return np.sqrt(np.maximum(square - value**2, 0.0) / (count - 1))
