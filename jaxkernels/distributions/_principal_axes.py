"""Mean, kurtosis and principal axes of samples.

Samples are read in blocks and converted to float64 there, so that nothing of their size is copied.
With n <= d samples the axes come from the n x n Gram matrix: time is O(n^2 d), memory that of the
axes themselves, and nothing of size d x d is formed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .. import _checks
from .._types import Numbers

# numbers per block: 16 MiB in float64
_BLOCK = 2**21
# of the largest eigenvalue: below it rounding leaves nothing of an axis
_RANK = 1e-12
# of the largest eigenvalue: down to it axes are orthogonal to nine digits
_ORTHOGONAL = 1e-7


class Moments(NamedTuple):
    """Mean, variance and kurtosis of samples.

    **Arguments:**

    - `mean`: (d,).
    - `variance`: (d,), divisor n.
    - `kurtosis`: E x^4 / (E x^2)^2 of centred samples, averaged over coordinates with their
      variances; NaN without any variance.
    """

    mean: Float[np.ndarray, " d"]
    variance: Float[np.ndarray, " d"]
    kurtosis: float


class PrincipalAxes(NamedTuple):
    """Descending eigenvalues of the empirical covariance, and their eigenvectors in columns.

    There are d, or the rank of n <= d samples, at most n - 1.
    """

    eigenvalues: Float[np.ndarray, " axes"]
    basis: Float[np.ndarray, "d axes"]


def check_samples(samples: Numbers) -> Float[np.ndarray, "n d"]:
    """Check samples without copying them.

    **Arguments:**

    - `samples`: (n, ...) with n >= 2.

    **Returns:** (n, d), every sample in one row, in the dtype that they have.

    **Raises:** ValueError for another shape, or the first NaN or infinity.
    """
    x = _checks.on_host("samples", samples)
    if x.dtype.kind not in "iuf":
        x = np.asarray(_checks.array("samples", samples))
    if x.ndim < 2 or x.shape[0] < 2 or x.size == 0:
        raise ValueError(
            f"samples has shape {x.shape}; it must be (n, d) with at least 2 samples in its rows."
        )
    flat = x.reshape(x.shape[0], -1)
    for rows in _slices(flat.shape[0], flat.shape[1]):
        if not np.all(np.isfinite(flat[rows])):
            _checks.array("samples", x)  # names the number
    return flat


def sample_moments(x: Float[np.ndarray, "n d"]) -> Moments:
    """Compute mean, variance and kurtosis per coordinate.

    **Arguments:**

    - `x`: checked samples.

    **Returns:** the moments.
    """
    mean = np.empty(x.shape[1])
    variance = np.empty(x.shape[1])
    ratio = 0.0
    for columns in _slices(x.shape[1], x.shape[0]):
        block = x[:, columns].astype(np.float64)
        mean[columns] = block.mean(0)
        squares = (block - mean[columns]) ** 2
        second = squares.mean(0)
        variance[columns] = second
        varying = second > 0
        ratio += np.sum(np.mean(squares[:, varying] ** 2, 0) / second[varying])
    total = variance.sum()
    return Moments(mean, variance, float(ratio / total) if total > 0 else np.nan)


def principal_axes(
    x: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"]
) -> tuple[PrincipalAxes, float]:
    """Compute the principal axes, and the mean of |x - mean|^4, which shrinkage needs.

    **Arguments:**

    - `x`: checked samples, not all equal.
    - `mean`: their mean.

    **Returns:** the axes and the fourth moment.
    """
    n, dim = x.shape
    if n <= dim:
        return _axes_of_gram_matrix(x, mean)
    covariance = np.zeros((dim, dim))
    fourth = 0.0
    for rows in _slices(n, dim):
        centered = x[rows] - mean
        covariance += centered.T @ centered / n
        fourth += np.sum(np.sum(centered**2, 1) ** 2) / n
    eigenvalues, basis = np.linalg.eigh(covariance)
    return PrincipalAxes(np.maximum(eigenvalues[::-1], 0.0), basis[:, ::-1]), float(fourth)


def coordinates(
    x: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"], basis: Float[np.ndarray, "d axes"]
) -> Float[np.ndarray, "n axes"]:
    """Compute (x - mean) basis.

    **Arguments:**

    - `x`: checked samples.
    - `mean`: subtracted from them.
    - `basis`: axes in columns.

    **Returns:** the samples along the axes, in float64.
    """
    z = np.zeros((x.shape[0], basis.shape[1]))
    for columns in _slices(x.shape[1], x.shape[0]):
        z += (x[:, columns] - mean[columns]) @ basis[columns]
    return z


def _axes_of_gram_matrix(
    x: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"]
) -> tuple[PrincipalAxes, float]:
    """The axes of n <= d samples: X^T v / |X^T v| for the eigenvectors v of X X^T."""
    n, dim = x.shape
    gram = np.zeros((n, n))
    for columns in _slices(dim, n):
        centered = x[:, columns] - mean[columns]
        gram += centered @ centered.T
    fourth = float(np.mean(np.diagonal(gram) ** 2))
    values, vectors = np.linalg.eigh(gram)
    axes = min(n - 1, int(np.sum(values > _RANK * values[-1])))
    values = values[::-1][:axes]
    combine = vectors[:, ::-1][:, :axes] / np.sqrt(values)
    basis = np.empty((dim, axes))
    for columns in _slices(dim, n):
        basis[columns] = (x[:, columns] - mean[columns]).T @ combine
    if values[-1] < _ORTHOGONAL * values[0]:
        _orthogonalise(basis, n)
    return PrincipalAxes(values / n, basis), fourth


def _orthogonalise(basis: Float[np.ndarray, "d axes"], n: int) -> None:
    """Make axes orthonormal in place that are so up to rounding of the Gram matrix of `n` samples.

    That rounding is of the size of the largest eigenvalue, and leaves axes of small ones not quite
    orthogonal to the others.
    """
    dim, axes = basis.shape
    overlap = np.zeros((axes, axes))
    for columns in _slices(dim, n):
        overlap += basis[columns].T @ basis[columns]
    combine = np.linalg.inv(np.linalg.cholesky(overlap)).T
    for columns in _slices(dim, n):
        basis[columns] = basis[columns] @ combine


def _slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive blocks of `count` rows or columns of `size` numbers each."""
    step = max(1, _BLOCK // size)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
