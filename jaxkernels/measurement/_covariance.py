"""Covariances between networks from fits that are repeated with fresh draws.

Parameters theta have shape (networks, repetitions, n, 2, modes): at every time 0 = Delta_ii and
1 = delta_i.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_FOLDS = 4


def product_sum(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "n 2 n 2 modes"]:
    """The sum over networks and repetitions of a b^T, per mode."""
    return np.einsum("mrapi,mrbqi->apbqi", a, b, optimize=True)


def cross_product_sum(theta: np.ndarray) -> Float[np.ndarray, "n 2 n 2 modes"]:
    """The sum over networks of the mean product of two different repetitions."""
    count = theta.shape[1]
    total = theta.sum(1, keepdims=True)
    different = product_sum(total, total) - product_sum(theta, theta)
    return different / (count * (count - 1))


def impose_structure(covariance: np.ndarray, structure: str, size: int) -> np.ndarray:
    """The covariance with a band of times ("banded") or its largest directions ("low_rank")."""
    n = covariance.shape[0]
    modes = covariance.shape[-1]
    if structure == "banded":
        lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        return covariance * (lag <= size)[:, None, :, None, None]
    if size > 2 * n:
        raise ValueError(
            f"size = {size}: a covariance of 2 parameters at {n} times has rank {2 * n} at most."
        )
    matrices = np.moveaxis(covariance.reshape(2 * n, 2 * n, modes), -1, 0)
    values, vectors = np.linalg.eigh(matrices)
    values = np.maximum(values[:, -size:], 0.0)
    vectors = vectors[:, :, -size:]
    kept = np.einsum("mir,mr,mjr->ijm", vectors, values, vectors)
    return kept.reshape(covariance.shape)


def cross_validated_size(theta: np.ndarray, axis: int, structure: str, sizes: Sequence[int]) -> int:
    """The size that predicts held-out covariances best, of folds along networks or repetitions."""
    # a product is of two repetitions
    folds = _FOLDS if axis == 0 else min(_FOLDS, theta.shape[1] // 2)
    fold_of = np.arange(theta.shape[axis]) % folds
    # about the common mean, so that a fold of one network is no special case
    centred = theta - theta.mean(0)
    losses = np.zeros(len(sizes))
    for fold in range(folds):
        held = centred.compress(fold_of == fold, axis)
        rest = centred.compress(fold_of != fold, axis)
        truth = cross_product_sum(held) / held.shape[0]
        fitted = cross_product_sum(rest) / rest.shape[0]
        for i, size in enumerate(sizes):
            losses[i] += np.sum((impose_structure(fitted, structure, size) - truth) ** 2)
    return int(sizes[int(np.argmin(losses))])
