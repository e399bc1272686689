"""Functions of rescaled time given on cells: their checks and their values at quadrature nodes."""

from collections.abc import Callable
from typing import TypeAlias, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._precision import is_traced
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..recurrence import check_target

TimeProfile: TypeAlias = Numbers | Callable[[Array], Array]
"""A size at every rescaled time theta: a number, one number per cell (cells,), one per cell and
mode (cells, modes), or a function. The function takes times of any shape and returns values of the
same shape, or of that shape with a last axis for the modes."""


def check_edges(edges: Numbers) -> AnyArray:
    """Edges (cells + 1,) of the cells, increasing from 0."""
    if is_traced(edges):
        return jnp.asarray(edges)
    out = _checks.array("edges", edges)
    if out.ndim != 1 or out.size < 2:
        raise ValueError(f"edges has shape {out.shape}; it must be a list of at least two times.")
    if out[0] != 0.0:
        raise ValueError(f"edges[0] = {out[0]:g} must be 0, the time of the data.")
    if np.any(np.diff(out) <= 0):
        i = int(np.argmax(np.diff(out) <= 0))
        raise ValueError(
            f"edges must increase; edges[{i}] = {out[i]:g} and edges[{i + 1}] = {out[i + 1]:g}."
        )
    return out


def check_stochasticity(stochasticity_squared: Numbers, cells: int) -> Float[AnyArray, " cells"]:
    """alpha^2 >= 0 on every cell."""
    name = "stochasticity_squared"
    if is_traced(stochasticity_squared):
        return jnp.broadcast_to(jnp.asarray(stochasticity_squared), (cells,))
    out = _checks.array(name, stochasticity_squared)
    if out.shape not in ((), (cells,)):
        raise ValueError(
            f"{name} has shape {out.shape}; it must be a number or have shape ({cells},)."
        )
    if np.any(out < 0):
        raise ValueError(f"{name} must be >= 0; its smallest entry is {out.min():g}.")
    return cast(AnyArray, np.broadcast_to(out, (cells,)))


def check_variances(target: Gaussian) -> Float[AnyArray, " modes"]:
    """The eigenvalues of a target that has a density: with a variance of 0, L is infinite."""
    values = check_target(target).eigenvalues
    if not is_traced(values) and np.any(np.asarray(values) <= 0):
        i = int(np.argmin(np.asarray(values)))
        raise ValueError(
            f"target.eigenvalues[{i}] = {float(values[i]):g} must be > 0: KL is infinite otherwise."
        )
    return values


def check_profile(argument: str, profile: TimeProfile, cells: int, modes: int) -> TimeProfile:
    """The profile, as an array unless it is a function or traced."""
    if callable(profile) or is_traced(profile):
        return profile
    out = _checks.array(argument, profile)
    if out.shape not in ((), (cells,), (cells, modes)):
        raise ValueError(
            f"{argument} has shape {out.shape}; it must be a number or have shape ({cells},) or "
            f"({cells}, {modes})."
        )
    return cast(AnyArray, out)


def check_points(points: Numbers) -> np.ndarray:
    """Points of a trapezoidal rule, increasing."""
    x = np.asarray(_checks.array("points", points))
    if x.ndim != 1 or x.size < 2 or np.any(np.diff(x) <= 0):
        raise ValueError(
            f"points must be an increasing list of at least two numbers; got shape {x.shape}."
        )
    return x


def broadcast_to_modes(values: Numbers, cells: int, modes: int) -> Float[Array, "cells modes"]:
    """A profile that is constant on cells, for every cell and mode."""
    values = jnp.asarray(values)
    return jnp.broadcast_to(values[:, None] if values.ndim == 1 else values, (cells, modes))


def evaluate_profile(
    profile: TimeProfile, theta: Float[Array, "cells nodes"], modes: int
) -> Float[Array, "cells nodes modes"]:
    """A profile at given times of every cell."""
    if not callable(profile):
        on_cells = broadcast_to_modes(profile, theta.shape[0], modes)
        return jnp.broadcast_to(on_cells[:, None], (*theta.shape, modes))
    values = jnp.asarray(profile(theta))
    if values.shape not in (theta.shape, (*theta.shape, modes)):
        raise ValueError(
            f"a profile took times of shape {theta.shape} to values of shape {values.shape}; "
            f"it must keep the shape, or append the {modes} modes."
        )
    per_mode = values if values.ndim == 3 else values[..., None]
    return jnp.broadcast_to(per_mode, (*theta.shape, modes))
