"""The law at the data end for a score error of any size: the moments of a linear equation, without expansion.

In units of the standard deviation of p_theta the reverse process (1) of `_leading_order` with a Gaussian target keeps a
normal law N(D, V), which starts as N(0, I) and at eps = 0 stays so. Along modes and towards the data, with
k = h^2 + (1 + h^2) eps c,

    dV/dy = k V - h^2,     dD/dy = k D / 2 - (1 + h^2) eps b / 2,                                          (1)

solved exactly on every cell. A matrix error couples the modes (`affine_terminal_law`).
"""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks, metrics
from .._numerics import safe_sqrt
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..distributions import Gaussian
from ._clock import (
    checked_edges,
    checked_h_squared,
    checked_profile,
    checked_variances,
    mode_clock,
    mode_variance,
    on_cells,
)
from ._leading_order import expm1_ratio, whitened_error

# steps per unit of (1 + h^2) y: the error of the fourth-order rule is then of order 1e-9
_STEPS_PER_UNIT = 25.0


class TerminalLaw(eqx.Module):
    """The law of the samples, and how far it is from the data law p_0 (the mean exact at the start of sampling)."""

    mean_error: Float[Array, " modes"]
    """Mean of the samples minus that of the data, along the modes, in units of the data."""
    covariance: Float[Array, " modes"] | Float[Array, "modes modes"]
    """Variances along the modes, or the covariance in the eigenbasis."""
    kl: Float[Array, ""]
    """KL(p_0 || q) in nats, q the law of the samples."""
    w2: Float[Array, ""]
    """2-Wasserstein distance, in units of the data."""


@in_float64
def terminal_law(
    target: Gaussian,
    edges: Numbers,
    h_squared: Numbers,
    epsilon: Numbers,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
) -> TerminalLaw:
    """The exact law for the error eps E of `leading_order` with c = `relative` and b = `shift` constant on cells.

    **Raises:** ValueError as `leading_order`, and naming the time where the moments leave the range of numbers.
    """
    edges, variances = checked_edges(edges), checked_variances(target)
    cells, modes = edges.shape[0] - 1, variances.shape[0]
    k = jnp.asarray(checked_h_squared(h_squared, cells))[:, None]
    epsilon = jnp.asarray(_checks.parameter("epsilon", epsilon))
    c, b = (
        on_cells(checked_profile(name, value, cells, modes), cells, modes)  # pyright: ignore[reportArgumentType]
        for name, value in (("relative", relative), ("shift", shift))
    )
    edges, weights = jnp.asarray(edges), jnp.asarray(target.weights)
    law, fine = _through_cells(edges, jnp.asarray(variances), weights, k, epsilon * c, epsilon * b)
    _check_finite(fine, edges[:-1])
    return law


@in_float64
def affine_terminal_law(
    target: Gaussian,
    edges: Numbers,
    h_squared: Numbers,
    epsilon: Numbers,
    matrix: Numbers | Callable[[Array], Array],
    shift: Numbers | Callable[[Array], Array] = 0.0,
    *,
    steps: int | None = None,
) -> TerminalLaw:
    """The law for the error eps (A(theta) x + beta(theta)) of `affine_leading_order`, by Runge-Kutta of order 4.

    `steps` per cell, uniform in the clock y of the mode of least variance; the default makes the error of order 1e-9
    for errors of moderate size.

    **Raises:** ValueError as `affine_leading_order`, and naming the time where the moments stop being those
    of a law: the process explodes, or there are too few steps.
    """
    edges, variances = checked_edges(edges), checked_variances(target)
    k = checked_h_squared(h_squared, edges.shape[0] - 1)
    epsilon = jnp.asarray(_checks.parameter("epsilon", epsilon))
    if steps is None:
        if is_traced((edges, variances, k)):
            raise ValueError(
                "steps must be given where edges, eigenvalues or h_squared are traced."
            )
        width = np.diff(np.log1p(np.expm1(np.asarray(edges)) / np.min(np.asarray(variances))))
        steps = max(8, int(np.ceil(_STEPS_PER_UNIT * np.max((1.0 + np.asarray(k)) * width))))
    edges, lam = jnp.asarray(edges), jnp.asarray(variances)
    theta = _step_times(edges, jnp.min(lam), steps)
    whitened, push = whitened_error(target, matrix, shift, theta)
    law, fine = _runge_kutta(edges, lam, jnp.asarray(k), theta, epsilon * whitened, epsilon * push)
    _check_finite(fine, theta[:, :-2:2].reshape(-1))
    return law


@jax.jit
def _through_cells(
    edges: Array, lam: Array, weights: Array, k: Array, c: Array, b: Array
) -> tuple[TerminalLaw, Array]:
    """The law at the data, and whether its moments were proper at the data end of every cell."""
    width = jnp.diff(mode_clock(edges[:, None], lam), axis=0)
    z = (k + (1.0 + k) * c) * width
    gained, pushed = k * width * expm1_ratio(z), 0.5 * (1.0 + k) * b * width * expm1_ratio(0.5 * z)

    def step(
        law: tuple[Array, Array], here: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        (variance, mean), (factor, root, gained, pushed) = law, here
        law = factor * variance + gained, root * mean + pushed
        return law, _proper(law[0]) & jnp.all(jnp.isfinite(law[1]))

    # from the noise end to the data
    inputs = jnp.exp(-z), jnp.exp(-0.5 * z), gained, pushed
    (variance, mean), fine = jax.lax.scan(
        step, (jnp.ones_like(lam), jnp.zeros_like(lam)), inputs, reverse=True
    )
    kl = jnp.sum(metrics.per_mode(metrics.kl, weights, mean, variance, jnp.ones_like(lam)))
    mean, variance = jnp.sqrt(lam) * mean, lam * variance
    w2_squared = jnp.sum(metrics.per_mode(metrics.w2_squared, weights, mean, variance, lam))
    return TerminalLaw(mean, variance, kl, safe_sqrt(w2_squared)), fine


@partial(jax.jit, static_argnames="steps")
def _step_times(edges: Array, fastest: Array, steps: int) -> Float[Array, "cells points"]:
    """Ends and middles of the steps in every cell, uniform in the clock of the fastest mode."""
    y = mode_clock(edges, fastest)
    inside = y[:-1, None] + jnp.diff(y)[:, None] * jnp.linspace(0.0, 1.0, 2 * steps + 1)
    return jnp.log1p(fastest * jnp.expm1(inside))


@jax.jit
def _runge_kutta(
    edges: Array, lam: Array, k: Array, theta: Array, whitened: Array, push: Array
) -> tuple[TerminalLaw, Array]:
    """The law at the data, and whether its moments were proper at the data end of every step."""
    fastest, steps = jnp.min(lam), (theta.shape[1] - 1) // 2
    scale = mode_variance(theta, fastest)[..., None]
    pull = scale / mode_variance(theta[..., None], lam)  # dy_i per dy of the fastest mode

    def triples(x: Array) -> Array:
        """Data end, middle and noise end of every step."""
        parts = jnp.stack([x[:, :-2:2], x[:, 1::2], x[:, 2::2]], 2)
        return parts.reshape(-1, *parts.shape[2:])

    def slope(
        law: tuple[Array, Array], k: Array, here: tuple[Array, Array, Array]
    ) -> tuple[Array, Array]:
        (covariance, mean), (pull, whitened, push) = law, here
        drift = 0.5 * (1.0 + k) * whitened - 0.5 * k * jnp.diag(pull)
        moved = drift @ covariance
        return moved + moved.T + k * jnp.diag(pull), drift @ mean + 0.5 * (1.0 + k) * push

    def step(law, here):
        k, size, *points = here
        first, middle, last = (tuple(p[n] for p in points) for n in (2, 1, 0))
        a = slope(law, k, first)
        b = slope(_add(law, a, 0.5 * size), k, middle)
        c = slope(_add(law, b, 0.5 * size), k, middle)
        e = slope(_add(law, c, size), k, last)
        total = jax.tree.map(lambda a, b, c, e: (a + 2.0 * b + 2.0 * c + e) / 6.0, a, b, c, e)
        law = _add(law, total, size)
        return law, _proper(jnp.diag(law[0])) & jnp.all(jnp.isfinite(law[1]))

    sizes = jnp.repeat(jnp.diff(mode_clock(edges, fastest)) / steps, steps)
    points = triples(pull), triples(scale[..., None] * whitened), triples(scale * push)
    start = jnp.eye(lam.size), jnp.zeros_like(lam)
    (covariance, mean), fine = jax.lax.scan(
        step, start, (jnp.repeat(k, steps), sizes, *points), reverse=True
    )
    kl = metrics.dense_kl(mean, covariance, jnp.eye(lam.size))
    root = jnp.sqrt(lam)
    mean, covariance = root * mean, root[:, None] * covariance * root
    w2_squared = metrics.dense_w2_squared(mean, covariance, jnp.diag(lam))
    return TerminalLaw(mean, covariance, kl, safe_sqrt(w2_squared)), fine


def _add(
    law: tuple[Array, Array], slope: tuple[Array, Array], size: Array | float
) -> tuple[Array, Array]:
    return law[0] + size * slope[0], law[1] + size * slope[1]


def _proper(variance: Array) -> Array:
    return jnp.all(jnp.isfinite(variance) & (variance > 0))


def _check_finite(fine: Array, times: Array) -> None:
    """`fine` at `times` that increase; the process meets the last one first."""
    if is_traced((fine, times)) or bool(jnp.all(fine)):
        return
    time = float(np.asarray(times)[~np.asarray(fine)][-1])
    raise ValueError(
        f"the process explodes: at time {time:g} (clock theta, going to 0) a variance is not a positive finite number. "
        "The error epsilon E is too large for this h_squared."
    )
