"""The score error of the Fokker-Planck equation: its values at points, and their checks."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from ..distributions import GaussianMixture
from ..processes import OU

ErrorFunction: TypeAlias = Callable[[Array, Array, Array], Array]
"""(x, theta, score) -> E: x and the score of p_theta at x of shape (n,), theta of shape (), E of
shape (n,)."""

PROCESS = OU(rate=1.0)
"""The process whose own time is the rescaled time."""

NAMED_ERRORS: dict[str, ErrorFunction] = {
    "score": lambda x, theta, score: score,
    "constant": lambda x, theta, score: jnp.ones_like(x),
}


def resolve_error(error: str | ErrorFunction) -> ErrorFunction:
    """An error by its name, or as it is."""
    return error if callable(error) else _checks.lookup("error", error, NAMED_ERRORS)


class Solution(NamedTuple):
    """u at theta = 0, L, and the cells: their nodes and their masses under p_0."""

    u: Float[Array, " cells"]
    value: Float[Array, ""]
    nodes: Float[Array, "cells *d"]
    masses: Float[Array, " cells"]


class Worst(NamedTuple):
    """Where the error is not finite, or its first place if it is."""

    x: Array
    theta: Array
    error: Array


class Perturbation(NamedTuple):
    """What a scheme needs of p_theta and of the error at some points."""

    density: Array
    error: Array
    slope: Array
    """dE/dx."""
    score: Array
    worst: Worst


def evaluate_score(target: GaussianMixture, x: Array, theta: Array) -> Array:
    """The score of p_theta at points (n,)."""
    return target.score(PROCESS, x[:, None], theta)[:, 0]


def evaluate_log_density(target: GaussianMixture, x: Array, theta: Array | float = 0.0) -> Array:
    """log p_theta at points (n,)."""
    return target.log_density(PROCESS, x[:, None], theta)


def least_variance(target: GaussianMixture) -> float:
    """The smallest variance of a component; ValueError if it is 0."""
    least = float(np.min(target.eigenvalues))
    if least <= 0:
        raise ValueError(f"target has a component of variance {least:g}; all must be > 0.")
    return least


def perturb(target: GaussianMixture, error: ErrorFunction, x: Array, theta: Array) -> Perturbation:
    """Density, error and score at points (n,)."""

    def evaluate(x: Array) -> tuple[Array, Array]:
        score = evaluate_score(target, x, theta)
        values = jnp.asarray(error(x, theta, score))
        if values.shape not in ((), x.shape):
            raise ValueError(f"error returned shape {values.shape} for x of shape {x.shape}.")
        return jnp.broadcast_to(values, x.shape), score

    values, slopes, scores = jax.jvp(evaluate, (x,), (jnp.ones_like(x),), has_aux=True)
    density = jnp.exp(evaluate_log_density(target, x, theta))
    i = jnp.argmax(~jnp.isfinite(values))
    return Perturbation(density, values, slopes, scores, Worst(x[i], theta, values[i]))


def difference_over_cells(push: Array) -> Array:
    """The integral of (p E)' over every cell, from p E at the faces and none at the ends."""
    return jnp.diff(push, prepend=0.0, append=0.0)


def check_finite(worst: Worst) -> None:
    """Raise at the first place where the error is not finite."""
    x, theta, values = (np.asarray(a).ravel() for a in worst)
    bad = ~np.isfinite(values)
    if np.any(bad):
        i = np.argmax(bad)
        raise ValueError(
            f"error returned {values[i]} at x = {x[i]:g}, theta = {theta[i]:g}; it must be finite."
        )
