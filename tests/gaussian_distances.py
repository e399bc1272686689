"""W2 distances between normal distributions by textbook formulas, in NumPy alone."""

import numpy as np


def w2_squared(mean_error: np.ndarray, variance: np.ndarray, other: np.ndarray) -> np.ndarray:
    """W2^2 from the variances along common axes, which are the last axis."""
    return np.sum(mean_error**2 + (np.sqrt(variance) - np.sqrt(other)) ** 2, -1)


def gaussian_w2(
    mean: np.ndarray, c: np.ndarray, other_mean: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """W2 from covariance matrices, with any leading axes."""
    root = matrix_root(other)
    cross = np.trace(matrix_root(root @ c @ root), axis1=-2, axis2=-1)
    total = np.trace(c, axis1=-2, axis2=-1) + np.trace(other, axis1=-2, axis2=-1) - 2 * cross
    return np.sqrt(np.sum((mean - other_mean) ** 2, -1) + np.maximum(total, 0.0))


def matrix_root(m: np.ndarray) -> np.ndarray:
    """The symmetric root of positive semidefinite matrices."""
    values, vectors = np.linalg.eigh(m)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
