"""Distances between samples and data, as sample quality is reported: sliced W2 and Frechet."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._types import AnyArray, Numbers
from ._gaussian import dense_w2_squared

_A = TypeVar("_A", np.ndarray, Array)

# of the jackknife
_PARTS = 10


class Estimate(NamedTuple):
    """A value and its standard error.

    **Arguments:**

    - `value`: the estimate.
    - `standard_error`: >= 0, in the same units.

    **Example:**

    ```python
    >>> jk.metrics.Estimate(1.234, 0.05)
    1.234 ± 0.05
    ```
    """

    value: float
    standard_error: float

    def __repr__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.1g}"


def sliced_w2(samples: Numbers, data: Numbers, *, directions: int = 128, seed: int = 0) -> Estimate:
    """Estimate the sliced 2-Wasserstein distance between samples and data.

        ( mean over unit directions u of  W2^2(u . samples, u . data) )^(1/2)

    In one dimension W2 couples quantiles; the data's are taken at the n levels (i + 1/2) / n. The
    estimate is biased upwards: n draws from the data distribution itself are at a distance of order
    n^(-1/2).

    **Arguments:**

    - `samples`: (n, ...) with n >= 20, in the data's units.
    - `data`: (m, ...) with m >= 2 and the same shape after the first axis.
    - `directions`: number of random unit directions, >= 1.
    - `seed`: of the directions; the same seed gives the same ones.

    **Returns:** an `Estimate` in the data's units, with the jackknife's standard error.

    **Raises:** ValueError for arrays that are not finite or have another shape.

    **Example:**

    ```python
    >>> data = np.random.default_rng(0).standard_normal((1000, 2))
    >>> 0.5 < jk.metrics.sliced_w2(data + 1.0, data).value < 1.5
    True
    ```

    Source: Bonneel, Rabin, Peyre, Pfister, "Sliced and Radon Wasserstein Barycenters of Measures"
    (2015), https://doi.org/10.1007/s10851-014-0506-3.
    """
    x, y = _check_both(samples, data)
    count = _checks.count("directions", directions)
    u = np.random.default_rng(seed).standard_normal((x.shape[1], count))
    u /= np.linalg.norm(u, axis=0)
    projections = x @ u
    of_data = np.sort(y @ u, axis=0)

    def squared(rows: np.ndarray) -> float:
        exact = quantiles(of_data, len(rows))
        return float(projected_w2_squared(np, projections[rows][None], exact)[0])

    return _jackknife(squared, len(x))


def projected_w2_squared(
    xp: Any,
    projections: Float[_A, "*batch n directions"],
    quantiles: Float[_A, "n directions"],
) -> Float[_A, "*batch"]:
    """Average W2^2 over directions between projected samples and a distribution's quantiles.

    **Arguments:**

    - `xp`: numpy, or jax.numpy for derivatives.
    - `projections`: components of n samples along the directions, in any order.
    - `quantiles`: of the distribution along the same directions, n in ascending order.

    **Returns:** one squared distance per entry of the batch, in squared units of `projections`.

    **Example:**

    ```python
    >>> projections = np.array([[[3.0], [1.0]]])
    >>> jk.metrics.projected_w2_squared(np, projections, np.array([[0.0], [2.0]])).tolist()
    [1.0]
    ```
    """
    # W2 in one dimension couples the sorted values
    return xp.mean((xp.sort(projections, -2) - quantiles) ** 2, (-2, -1))


def quantiles(
    y: Float[np.ndarray, "m directions"], count: int
) -> Float[np.ndarray, "count directions"]:
    """Interpolate the quantiles of sorted columns at the levels (i + 1/2) / count.

    Entry j of m stands for the level (j + 1/2) / m, so that the m quantiles of m entries are these
    entries.

    **Arguments:**

    - `y`: columns of m >= 2 entries, each in ascending order.
    - `count`: number of quantiles, >= 1.

    **Returns:** `count` quantiles of every column, in ascending order.

    **Example:**

    ```python
    >>> jk.metrics.quantiles(np.array([[0.0], [1.0]]), 4).ravel().tolist()
    [0.0, 0.25, 0.75, 1.0]
    ```
    """
    place = np.clip((np.arange(count) + 0.5) / count * len(y) - 0.5, 0.0, len(y) - 1.0)
    low = np.minimum(place.astype(int), len(y) - 2)
    return y[low] + (place - low)[:, None] * (y[low + 1] - y[low])


def frechet(
    samples: Numbers, data: Numbers, *, features: Callable[[np.ndarray], Numbers] | None = None
) -> Estimate:
    """Estimate the Frechet distance: W2 between the Gaussians fitted to samples and to data.

        ( |m - m'|^2 + tr(S + S' - 2 (S'^(1/2) S S'^(1/2))^(1/2)) )^(1/2)

    FID is the square of this distance for the features of an Inception network. The estimate is
    biased upwards for few samples: compare at equal n.

    **Arguments:**

    - `samples`: (n, ...) with n >= 20.
    - `data`: (m, ...) with m >= 2 and the same shape after the first axis.
    - `features`: maps (n, ...) to (n, k), and should be stated with the value. Default: the entries
      themselves.

    **Returns:** an `Estimate` in the features' units, with the jackknife's standard error.

    **Raises:** ValueError for arrays that are not finite or have another shape.

    **Example:**

    ```python
    >>> data = np.random.default_rng(0).standard_normal((1000, 2))
    >>> 1.3 < jk.metrics.frechet(data + 1.0, data).value < 1.5
    True
    ```

    Source: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs Trained by a Two Time-Scale
    Update Rule Converge to a Local Nash Equilibrium" (2017), https://arxiv.org/abs/1706.08500.
    """
    if features is not None:
        samples = features(np.asarray(samples))
        data = features(np.asarray(data))
    x, y = _check_both(samples, data)
    mean = y.mean(0)
    covariance = np.atleast_2d(np.cov(y.T))
    compiled = jax.jit(dense_w2_squared)

    def squared(rows: np.ndarray) -> float:
        error = x[rows].mean(0) - mean
        found = np.atleast_2d(np.cov(x[rows].T))
        with jax.enable_x64(True):
            return float(compiled(*map(jnp.asarray, (error, found, covariance))))

    return _jackknife(squared, len(x))


def _check_both(
    samples: Numbers, data: Numbers
) -> tuple[Float[AnyArray, "n d"], Float[AnyArray, "m d"]]:
    """Both as matrices with one row per sample."""
    x = _checks.array("samples", samples)
    y = _checks.array("data", data)
    if x.ndim < 2 or len(x) < 2 * _PARTS or x.shape[1:] != y.shape[1:] or len(y) < 2:
        raise ValueError(
            f"samples have shape {x.shape} and data {y.shape}; they must be (n, ...) and (m, ...) "
            f"with equal shapes after the first and n >= {2 * _PARTS}."
        )
    return x.reshape(len(x), -1), y.reshape(len(y), -1)


def _jackknife(squared: Callable[[np.ndarray], float], count: int) -> Estimate:
    """Root of a squared distance, with the standard error of leaving out each tenth of the rows."""
    parts = np.array_split(np.random.default_rng(0).permutation(count), _PARTS)
    rows = np.arange(count)
    left_out = np.sqrt([squared(np.setdiff1d(rows, part)) for part in parts])
    variance = (_PARTS - 1) / _PARTS * np.sum((left_out - left_out.mean()) ** 2)
    return Estimate(float(np.sqrt(squared(rows))), float(np.sqrt(variance)))
