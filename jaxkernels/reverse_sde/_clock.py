"""The clock in which every forward process is the same, and integrals over it.

In the clock theta(t) = log(1 + sigma(t)^2) every process is, up to a scaling of space, dX = -X/2 dtheta + dB
(g = 1): the variance of X_0 + sigma Z divided by 1 + sigma^2 is

    s(theta) = 1 + (lambda - 1) e^{-theta}                                                                 (1)

along a mode of data variance lambda. For a variance-preserving process theta = int_0^t g^2. Neither the leading order
of KL nor alpha = h / g depend on the clock or on the scaling (Cao, Chen, Luo, Zhou 2023, Appendix B.2), so results in
theta hold for every process, with its g in the place of 1; a relative error of the score stays what it is. Here `time`
always means theta, which grows from 0 at the data towards the noise, against generative time.

Along a mode the natural clock is

    y(theta) = int_0^theta dr / s(r) = log(1 + (e^theta - 1) / lambda),     d theta = s dy.                (2)
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .. import _checks
from .._numerics import safe_sqrt
from .._precision import in_float64, is_traced
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess

Profile: TypeAlias = Numbers | Callable[[Array], Array]
"""A size at each time: a number, one per cell (cells,), one per cell and mode (cells, modes), or a function that takes
times of any shape to values of the same shape, or of that shape and a last axis for the modes."""


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


# One panel of sixteen nodes integrates e^{-x} over this length to 1e-15, and resolves errors that change on
# the scale of the fastest mode or slower.
_LONGEST_DECAY, _LONGEST_PANEL = 15.0, 0.5


TRACED_LIMIT = 100.0
"""The largest h^2 that quadratures resolve if they cannot see its value."""


@in_float64
def clock(process: AbstractProcess, t: Real[AnyArray | float, "*s"]) -> Float[Array, "*s"]:
    """theta(t) = log(1 + sigma(t)^2), equal to int_0^t g^2 for a variance-preserving process."""
    return jnp.log1p(process.sigma(t) ** 2)


@in_float64
def time_at_clock(
    process: AbstractProcess, theta: Real[AnyArray | float, "*s"]
) -> Float[Array, "*s"]:
    """The time t of `process` at which its clock shows theta >= 0."""
    return process.time_at_sigma(safe_sqrt(jnp.expm1(jnp.asarray(theta, float))))


def mode_clock(theta: Array, variance: Array) -> Array:
    """y of (2)."""
    return jnp.log1p(jnp.expm1(theta) / variance)


def mode_variance(theta: Array, variance: Array) -> Array:
    """s of (1)."""
    return variance * jnp.exp(-theta) - jnp.expm1(-theta)


def checked_edges(edges: Numbers) -> AnyArray:
    """Edges (cells + 1,) of the cells, from 0 upwards."""
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


def checked_h_squared(h_squared: Numbers, cells: int) -> Float[AnyArray, " cells"]:
    """h^2 >= 0 on every cell."""
    if is_traced(h_squared):
        return jnp.broadcast_to(jnp.asarray(h_squared), (cells,))
    out = _checks.array("h_squared", h_squared)
    if out.shape not in ((), (cells,)):
        raise ValueError(
            f"h_squared has shape {out.shape}; it must be a number or have shape ({cells},)."
        )
    if np.any(out < 0):
        raise ValueError(f"h_squared must be >= 0; its smallest entry is {out.min():g}.")
    return cast(AnyArray, np.broadcast_to(out, (cells,)))


def checked_variances(target: Gaussian) -> Float[AnyArray, " modes"]:
    """The eigenvalues of a target that has a density: with a variance of 0 the leading order is infinite."""
    values = target.eigenvalues
    if not is_traced(values) and np.any(np.asarray(values) <= 0):
        i = int(np.argmin(np.asarray(values)))
        raise ValueError(
            f"target.eigenvalues[{i}] = {float(values[i]):g} must be > 0: KL is infinite otherwise."
        )
    return values


def checked_profile(argument: str, profile: Profile, cells: int, modes: int) -> Profile:
    if callable(profile) or is_traced(profile):
        return profile
    out = _checks.array(argument, profile)
    if out.shape not in ((), (cells,), (cells, modes)):
        raise ValueError(
            f"{argument} has shape {out.shape}; it must be a number or have shape ({cells},) or ({cells}, {modes})."
        )
    return cast(AnyArray, out)


def on_cells(profile: Numbers, cells: int, modes: int) -> Float[Array, "cells modes"]:
    """A profile that is constant on cells."""
    values = jnp.asarray(profile)
    return jnp.broadcast_to(values[:, None] if values.ndim == 1 else values, (cells, modes))


def at_times(
    profile: Profile, theta: Float[Array, "cells nodes"], modes: int
) -> Float[Array, "cells nodes modes"]:
    """A profile at given times of every cell."""
    if not callable(profile):
        return jnp.broadcast_to(
            on_cells(profile, theta.shape[0], modes)[:, None], (*theta.shape, modes)
        )
    values = jnp.asarray(profile(theta))
    if values.shape not in (theta.shape, (*theta.shape, modes)):
        raise ValueError(
            f"a profile took times of shape {theta.shape} to values of shape {values.shape}; it must keep the shape, "
            f"or append the {modes} modes."
        )
    return jnp.broadcast_to(
        values if values.ndim == 3 else values[..., None], (*theta.shape, modes)
    )


def enough_panels(edges: Numbers, variances: Numbers, largest: float) -> int:
    """Panels per cell that resolve e^{-h^2 y} in every mode up to this h^2, as a power of two: few are compiled.

    An optimiser finds what a coarser rule does not see: with one panel per cell and h^2 up to 1e4 it goes below the
    true infimum.
    """
    if is_traced((edges, variances)):
        raise ValueError("panels must be given where edges or eigenvalues are traced.")
    fastest = float(np.min(np.asarray(variances)))
    longest = np.max(np.diff(np.log1p(np.expm1(np.asarray(edges)) / fastest)))
    needed = longest * max(largest / _LONGEST_DECAY, 1.0 / _LONGEST_PANEL)
    return 2 ** max(0, int(np.ceil(np.log2(needed))))


def resolve(
    edges: Numbers, variances: Numbers, h_squared: AnyArray, rate: float = 1.0
) -> tuple[int, AnyArray]:
    """Panels for e^{-rate h^2 y}, and h^2; where it is traced, with a check that it stays below `TRACED_LIMIT`."""
    if not is_traced(h_squared):
        return enough_panels(
            edges, variances, rate * float(np.max(np.asarray(h_squared)))
        ), h_squared
    message = (
        f"h_squared is above {TRACED_LIMIT:g}, up to which traced values are resolved: give panels."
    )
    h_squared = eqx.error_if(h_squared, jnp.any(h_squared > TRACED_LIMIT), message)
    return enough_panels(edges, variances, rate * TRACED_LIMIT), h_squared


@partial(jax.jit, static_argnames="panels")
def quadrature(
    edges: Array, fastest: Array, panels: int
) -> tuple[Float[Array, "cells n"], Float[Array, "cells n"]]:
    """Times and weights (d theta) of Gauss-Legendre panels, uniform in the clock of the mode of least variance."""
    y = mode_clock(edges, fastest)
    step = jnp.diff(y)[:, None, None] / panels
    inside = jnp.arange(panels)[:, None] + 0.5 * (1.0 + jnp.asarray(_NODES))
    nodes = (y[:-1, None, None] + step * inside).reshape(y.size - 1, -1)
    theta = jnp.log1p(fastest * jnp.expm1(nodes))
    weights = jnp.broadcast_to(
        0.5 * step * jnp.asarray(_WEIGHTS), (y.size - 1, panels, _WEIGHTS.size)
    )
    return theta, weights.reshape(theta.shape) * mode_variance(theta, fastest)
