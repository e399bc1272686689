"""Directions w with a given covariance sum w w^T."""

import numpy as np
from jaxtyping import Float

from .. import _checks
from .._types import AnyArray

# eigenvalues below this fraction of the largest are rounding, not directions
_RANK_TOLERANCE = 1e-12


def covariance_roots(
    num_times: int, covariance: AnyArray, project: bool
) -> Float[np.ndarray, "directions n 2 modes"]:
    """Directions of a covariance (n, 2, n, 2, modes), as many as any mode uses.

    ValueError unless it is symmetric and, without `project`, positive semidefinite.
    """
    n = num_times
    if covariance.ndim != 5 or covariance.shape[:4] != (n, 2, n, 2):
        raise ValueError(
            f"covariance has shape {covariance.shape}; for {n} times it must be "
            f"({n}, 2, {n}, 2, modes)."
        )
    matrices = np.moveaxis(np.reshape(covariance, (2 * n, 2 * n, -1)), -1, 0)
    values, vectors = _decompose(matrices)
    if not project:
        i = int(np.argmin(values[:, 0]))
        advice = " Pass project=True to set it to 0."
        _check_semidefinite(f"covariance of mode {i}", values[i], advice)
    roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None]
    roots = roots[:, :, values.max(0) >= _RANK_TOLERANCE * values.max()]
    directions = np.moveaxis(roots, 0, -1).swapaxes(0, 1)
    return directions.reshape(directions.shape[0], n, 2, -1)


def split_draws(
    slope: AnyArray, shift: AnyArray, rank: int, centred: bool
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Mean and largest directions of draws, each as slope and shift with a leading axis."""
    draws = shift.shape[0]
    flat = np.concatenate(
        [np.asarray(slope).reshape(draws, -1), np.asarray(shift).reshape(draws, -1)], 1
    )
    mean = flat.mean(0) if centred else np.zeros(flat.shape[1])
    deviations = (flat - mean) / np.sqrt(draws - centred)
    _, singular, right = np.linalg.svd(deviations, full_matrices=False)
    directions = singular[:rank, None] * right[:rank]
    cut = slope[0].size

    def split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slopes = rows[:, :cut].reshape(-1, *slope.shape[1:])
        shifts = rows[:, cut:].reshape(-1, *shift.shape[1:])
        return slopes, shifts

    return split(mean[None]), split(directions)


def _decompose(matrices: Float[np.ndarray, "*n p p"]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of covariances; ValueError unless they are symmetric."""
    asymmetry = np.abs(matrices - np.swapaxes(matrices, -1, -2)).max()
    if asymmetry > 1e-8 * np.abs(matrices).max():
        raise ValueError(
            f"covariance is not symmetric: its halves differ by up to {asymmetry:.3g}."
        )
    values, vectors = np.linalg.eigh(matrices)
    return values, vectors


def _check_semidefinite(name: str, values: Float[np.ndarray, " p"], advice: str = "") -> None:
    """ValueError for a negative eigenvalue beyond rounding, of values in ascending order."""
    if values[0] < -1e-8 * max(values[-1], 0.0) - 1e-300:
        raise ValueError(
            f"{name} has the negative eigenvalue {values[0]:.3g} (its largest is "
            f"{values[-1]:.3g}): it is not positive semidefinite.{advice}"
        )


def roots_of(
    matrix: Float[AnyArray, "p p"] | Float[np.ndarray, "p p"], project: bool
) -> Float[np.ndarray, "directions p"]:
    """Directions w of a covariance = sum w w^T, largest last.

    ValueError unless it is symmetric and, without `project`, positive semidefinite.
    """
    values, vectors = _decompose(np.asarray(matrix))
    if not project:
        _check_semidefinite("covariance", values)
    kept = values > _RANK_TOLERANCE * np.abs(values).max()
    # at least one direction, if only of length 0
    kept[-1] = True
    return (vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))).T


def check_blocks(
    num_times: int, covariance: AnyArray | np.ndarray, num_modes: int
) -> Float[np.ndarray, "n parameters n parameters"]:
    """A joint covariance of all parameters at all times, of a known number of modes."""
    d = _checks.count("num_modes", num_modes)
    n = num_times
    allowed = [(n, p, n, p) for p in (2 * d, d * d + d)]
    if covariance.shape not in allowed:
        raise ValueError(
            f"covariance has shape {covariance.shape}; for {n} times and {d} modes it must be "
            f"{allowed[0]} for slopes per mode or {allowed[1]} for matrices."
        )
    return np.asarray(covariance)


def split_parameters(
    parameters: Float[np.ndarray, "*lead p"], num_modes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and shifts of parameters (slopes, shifts), the slopes row by row if matrices."""
    slope, shift = np.split(parameters, [parameters.shape[-1] - num_modes], -1)
    matrices = slope.shape[-1] == num_modes**2 and num_modes > 1
    return (slope.reshape(*shift.shape, num_modes) if matrices else slope), shift
