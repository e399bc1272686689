"""Distances between samples and data as sample quality is reported, sliced W2 and Frechet, with standard errors."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .. import _checks
from .._types import AnyArray, Numbers
from ._gaussian import dense_w2_squared

_PARTS = 10


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    standard_error: float

    def __repr__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.1g}"


def sliced_w2(samples: Numbers, data: Numbers, *, directions: int = 128, seed: int = 0) -> Estimate:
    """Sliced 2-Wasserstein distance between samples (n, ...) and data (m, ...), in the data's units.

        ( mean over unit directions u of  W2^2(u . samples, u . data) )^(1/2)

    In one dimension W2 couples quantiles; the data's are taken at the n levels (i + 1/2) / n. The same `seed` gives the
    same directions. It has a floor: n draws from the data's own law are at a distance of order n^(-1/2).

    **Raises:** ValueError for arrays that are not finite, or have fewer than 20 samples or other shapes.
    """
    x, y = _both(samples, data)
    u = np.random.default_rng(seed).standard_normal(
        (x.shape[1], _checks.count("directions", directions))
    )
    u /= np.linalg.norm(u, axis=0)
    x, y = x @ u, np.sort(y @ u, axis=0)

    def distance(rows: np.ndarray) -> float:
        return float(np.mean((np.sort(x[rows], axis=0) - quantiles(y, len(rows))) ** 2))

    return _jackknife(distance, len(x))


def quantiles(
    y: Float[np.ndarray, "m directions"], count: int
) -> Float[np.ndarray, "count directions"]:
    """Quantiles of sorted columns at the levels (i + 1/2) / count, linear between entries."""
    # entry j of m stands for the level (j + 1/2) / m, so that the quantiles of m entries are themselves
    place = np.clip((np.arange(count) + 0.5) / count * len(y) - 0.5, 0.0, len(y) - 1.0)
    low = np.minimum(place.astype(int), len(y) - 2)
    return y[low] + (place - low)[:, None] * (y[low + 1] - y[low])


def frechet(
    samples: Numbers, data: Numbers, *, features: Callable[[np.ndarray], Numbers] | None = None
) -> Estimate:
    """Frechet distance: W2 between the normal laws fitted to samples (n, ...) and data (m, ...), in a feature space.

        ( |m - m'|^2 + tr(S + S' - 2 (S'^(1/2) S S'^(1/2))^(1/2)) )^(1/2)

    `features` maps (n, ...) to (n, k) and should be stated with the number; by default the entries themselves. The
    number that is known as FID is the square of this in the features of an Inception network. Biased upwards for few
    samples: compare at equal n.

    **Raises:** ValueError for arrays that are not finite, or have fewer than 20 samples or other shapes.
    """
    if features is not None:
        samples, data = features(np.asarray(samples)), features(np.asarray(data))
    x, y = _both(samples, data)
    mean, covariance = y.mean(0), np.atleast_2d(np.cov(y.T))
    measure = jax.jit(dense_w2_squared)

    def distance(rows: np.ndarray) -> float:
        error, found = x[rows].mean(0) - mean, np.atleast_2d(np.cov(x[rows].T))
        with jax.enable_x64(True):
            return float(measure(*map(jnp.asarray, (error, found, covariance))))

    return _jackknife(distance, len(x))


def _both(samples: Numbers, data: Numbers) -> tuple[Float[AnyArray, "n d"], Float[AnyArray, "m d"]]:
    x, y = _checks.array("samples", samples), _checks.array("data", data)
    if x.ndim < 2 or len(x) < 2 * _PARTS or x.shape[1:] != y.shape[1:] or len(y) < 2:
        raise ValueError(
            f"samples have shape {x.shape} and data {y.shape}; they must be (n, ...) and (m, ...) with equal shapes "
            f"after the first and n >= {2 * _PARTS}."
        )
    return x.reshape(len(x), -1), y.reshape(len(y), -1)


def _jackknife(squared: Callable[[np.ndarray], float], count: int) -> Estimate:
    """Root of a squared distance of all samples, with the standard error of leaving out one part of ten in turn."""
    parts = np.array_split(np.random.default_rng(0).permutation(count), _PARTS)
    every = np.arange(count)
    left = np.sqrt([squared(np.setdiff1d(every, part)) for part in parts])
    error = np.sqrt((_PARTS - 1) / _PARTS * np.sum((left - left.mean()) ** 2))
    return Estimate(float(np.sqrt(squared(every))), float(error))
