"""The distribution of the samples for a score error of any size, without expansion.

In units of the standard deviation of p_theta the reverse process (1) of `_leading_order` with a
Gaussian target stays Gaussian, N(D, V). From the exact marginal it starts as N(0, I), and stays so
at eps = 0. Per mode and towards the data, with k = alpha^2 + (1 + alpha^2) eps c,

    dV/dy = k V - alpha^2,     dD/dy = k D / 2 - (1 + alpha^2) eps b / 2,                       (1)

solved exactly on every cell. A matrix error couples the modes (`affine_terminal_distribution`).

In practice sampling starts from N(0, I) and not from p_T. In the same units D is then -m / sqrt(s)
and V = 1 / s at theta = T, with m and s the mean and the variance of p_T. Without score error

    D -> e^{-H/2} D,     V - 1 -> e^{-H} (V - 1),     H = int alpha^2 dy,                        (2)

so that noise forgets a wrong start, and the deterministic flow keeps KL(p_T || N(0, I)) as it is.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks, metrics
from .._numerics import safe_sqrt, smallest
from .._precision import in_float64, is_traced
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..recurrence import NAMED_INITIALIZATIONS
from ._affine import TensorProfile, whiten_error
from ._cells import (
    broadcast_to_modes,
    check_edges,
    check_profile,
    check_stochasticity,
    check_variances,
)
from ._leading_order import expm1_ratio
from ._time_change import inverse_mode_time, mode_time, mode_variance

# steps per unit of (1 + alpha^2) y: the error of the fourth-order rule is then of order 1e-9
_STEPS_PER_UNIT = 25.0


class TerminalDistribution(eqx.Module):
    """The distribution of the samples, and its distance from the data distribution p_0.

    `terminal_distribution` and `affine_terminal_distribution` compute it.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.04]), [0.0, 2.0], 1.0)
    >>> found = jk.reverse_sde.terminal_distribution(*setting, 0.1, relative=1.0)
    >>> bool(found.kl > 0.0)
    True
    ```
    """

    mean_error: Float[Array, " modes"]
    """Mean of the samples minus that of the data, per mode, in units of the data."""
    covariance: Float[Array, " modes"] | Float[Array, "modes modes"]
    """Variances per mode, or the covariance in the eigenbasis."""
    kl: Float[Array, ""]
    """KL(p_0 || q) in nats, q the distribution of the samples."""
    w2: Float[Array, ""]
    """2-Wasserstein distance between p_0 and q, in units of the data."""


@in_float64
def terminal_distribution(
    target: Gaussian,
    edges: Numbers,
    stochasticity_squared: Numbers,
    epsilon: Numbers,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
    *,
    initialization: str = "marginal",
) -> TerminalDistribution:
    """Compute the exact distribution of the samples for an error eps E that is constant on cells.

        E_i = c_i d_i log p + b_i / sqrt(s_i)
        dV_i/dy_i = k_i V_i - alpha^2,     k_i = alpha^2 + (1 + alpha^2) eps c_i

    with V_i the variance of mode i in units of s_i.

    **Arguments:**

    - `target`, `edges`, `stochasticity_squared`: as in `leading_order`.
    - `epsilon`: eps, the factor of the error, a number.
    - `relative`, `shift`: c and b, a number, (cells,) or (cells, modes).
    - `initialization`: "marginal", the exact p_T at the last edge T, or "standard_normal", N(0, I)
      in rescaled time, which is the prior of a variance-preserving process. With it KL(p_0 || q)
      is not 0 at eps = 0, and has a term in eps: it is then not L eps^2 to leading order.

    **Returns:** a `TerminalDistribution` with variances per mode.

    **Raises:** ValueError as `leading_order`, for an unknown `initialization`, and naming the time
    at which the moments leave the range of numbers.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [0.04])
    >>> found = jk.reverse_sde.terminal_distribution(target, [0.0, 2.0], 1.0, 0.0, relative=1.0)
    >>> print(f"{float(found.covariance[0]):.4f}")  # no error: the data
    0.0400
    ```
    """
    edges = check_edges(edges)
    variances = check_variances(target)
    cells = edges.shape[0] - 1
    alpha2 = jnp.asarray(check_stochasticity(stochasticity_squared, cells))
    epsilon = jnp.asarray(_checks.parameter("epsilon", epsilon))
    c = epsilon * _check_constant("relative", relative, cells, variances.shape[0])
    b = epsilon * _check_constant("shift", shift, cells, variances.shape[0])
    edges = jnp.asarray(edges)
    weights = jnp.asarray(target.weights)
    variances = jnp.asarray(variances)
    start = _start(target, edges[-1], variances, initialization)
    found, proper = _solve_cells(edges, variances, weights, alpha2, c, b, start)
    _check_proper(proper, edges[:-1])
    return found


@in_float64
def affine_terminal_distribution(
    target: Gaussian,
    edges: Numbers,
    stochasticity_squared: Numbers,
    epsilon: Numbers,
    matrix: TensorProfile,
    shift: TensorProfile = 0.0,
    *,
    steps: int | None = None,
    initialization: str = "marginal",
) -> TerminalDistribution:
    """Compute the distribution of the samples for an error eps (A(theta) x + beta(theta)).

    The moments are integrated by the classical Runge-Kutta method of order 4.

    **Arguments:**

    - `target`, `edges`, `stochasticity_squared`, `matrix`, `shift`: as in `affine_leading_order`.
    - `epsilon`: eps, the factor of the error, a number.
    - `steps`: steps per cell >= 1, uniform in the natural time of the mode of the smallest
      variance. The default makes the error of order 1e-9 for errors of moderate size.
    - `initialization`: "marginal" or "standard_normal", as in `terminal_distribution`.

    **Returns:** a `TerminalDistribution` with a covariance in the eigenbasis.

    **Raises:** ValueError as `affine_leading_order`, for an unknown `initialization`, and naming
    the time at which a variance is not a positive finite number: the process explodes, or there are
    too few steps.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [0.04, 1.0])
    >>> setting = (target, [0.0, 1.0], 1.0, 0.1, np.eye(2))
    >>> jk.reverse_sde.affine_terminal_distribution(*setting, steps=99).covariance.shape
    (2, 2)
    ```
    """
    edges = check_edges(edges)
    variances = check_variances(target)
    alpha2 = check_stochasticity(stochasticity_squared, edges.shape[0] - 1)
    epsilon = jnp.asarray(_checks.parameter("epsilon", epsilon))
    if steps is None:
        steps = _count_steps(edges, variances, alpha2)
    edges = jnp.asarray(edges)
    variances = jnp.asarray(variances)
    theta = _step_times(edges, smallest(variances), steps)
    slope, push = whiten_error(target, matrix, shift, theta)
    alpha2 = jnp.asarray(alpha2)
    start = _start(target, edges[-1], variances, initialization)
    error = (epsilon * slope, epsilon * push)
    found, proper = _integrate(edges, variances, alpha2, theta, *error, start)
    _check_proper(proper, theta[:, :-2:2].reshape(-1))
    return found


def _start(
    target: Gaussian, final_time: Array, variances: Array, initialization: str
) -> tuple[Float[Array, " modes"], Float[Array, " modes"]]:
    """Variance and mean per mode of the initial distribution, in units of p_T."""
    _checks.one_of("initialization", initialization, NAMED_INITIALIZATIONS)
    if initialization == "marginal":
        return jnp.ones_like(variances), jnp.zeros_like(variances)
    variance = mode_variance(final_time, variances)
    mean = jnp.exp(-0.5 * final_time) * jnp.asarray(target.in_eigenbasis().mean)
    return 1.0 / variance, -mean / jnp.sqrt(variance)


def _check_constant(
    name: str, value: Numbers, cells: int, modes: int
) -> Float[Array, "cells modes"]:
    """A profile that is constant on cells, for every cell and mode."""
    if callable(value):
        raise ValueError(
            f"{name} is a function; it must be constant on cells, a number, (cells,) or "
            "(cells, modes). `affine_terminal_distribution` takes functions of theta."
        )
    profile = check_profile(name, value, cells, modes)
    return broadcast_to_modes(profile, cells, modes)  # pyright: ignore[reportArgumentType]


def _count_steps(edges: AnyArray, variances: AnyArray, alpha2: AnyArray) -> int:
    """Steps per cell for an error of order 1e-9."""
    if is_traced((edges, variances, alpha2)):
        raise ValueError(
            "steps must be given where edges, eigenvalues or stochasticity_squared are traced."
        )
    width = np.diff(np.log1p(np.expm1(np.asarray(edges)) / np.min(np.asarray(variances))))
    return max(8, int(np.ceil(_STEPS_PER_UNIT * np.max((1.0 + np.asarray(alpha2)) * width))))


@jax.jit
def _solve_cells(
    edges: Array,
    lam: Array,
    weights: Array,
    alpha2: Array,
    c: Array,
    b: Array,
    start: tuple[Array, Array],
) -> tuple[TerminalDistribution, Array]:
    """The distribution at the data, and whether moments were proper at the end of every cell."""
    width = jnp.diff(mode_time(edges[:, None], lam), axis=0)
    alpha2 = alpha2[:, None]
    z = (alpha2 + (1.0 + alpha2) * c) * width
    gained = alpha2 * width * expm1_ratio(z)
    pushed = 0.5 * (1.0 + alpha2) * b * width * expm1_ratio(0.5 * z)

    def step(
        moments: tuple[Array, Array], cell: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        variance, mean = moments
        factor, root, gained, pushed = cell
        variance = factor * variance + gained
        mean = root * mean + pushed
        return (variance, mean), _proper(variance, mean)

    # from the noise end to the data
    cells = (jnp.exp(-z), jnp.exp(-0.5 * z), gained, pushed)
    (variance, mean), proper = jax.lax.scan(step, start, cells, reverse=True)
    kl = jnp.sum(metrics.per_mode(metrics.kl, weights, mean, variance, jnp.ones_like(lam)))
    mean = jnp.sqrt(lam) * mean
    variance = lam * variance
    w2_squared = jnp.sum(metrics.per_mode(metrics.w2_squared, weights, mean, variance, lam))
    return TerminalDistribution(mean, variance, kl, safe_sqrt(w2_squared)), proper


@partial(jax.jit, static_argnames="steps")
def _step_times(edges: Array, fastest: Array, steps: int) -> Float[Array, "cells points"]:
    """Ends and middles of the steps in every cell, uniform in the fastest mode's natural time."""
    y = mode_time(edges, fastest)
    inside = y[:-1, None] + jnp.diff(y)[:, None] * jnp.linspace(0.0, 1.0, 2 * steps + 1)
    return inverse_mode_time(inside, fastest)


@jax.jit
def _integrate(
    edges: Array,
    lam: Array,
    alpha2: Array,
    theta: Array,
    slope: Array,
    push: Array,
    start: tuple[Array, Array],
) -> tuple[TerminalDistribution, Array]:
    """The distribution at the data, and whether moments were proper at the end of every step."""
    fastest = smallest(lam)
    steps = (theta.shape[1] - 1) // 2
    scale = mode_variance(theta, fastest)[..., None]
    pull = scale / mode_variance(theta[..., None], lam)  # dy_i per dy of the fastest mode
    sizes = jnp.repeat(jnp.diff(mode_time(edges, fastest)) / steps, steps)
    coefficients = (pull, scale[..., None] * slope, scale * push)
    rows = (jnp.repeat(alpha2, steps), sizes, *map(_split_steps, coefficients))
    first = (jnp.diag(start[0]), start[1])
    (covariance, mean), proper = jax.lax.scan(_runge_kutta_step, first, rows, reverse=True)
    kl = metrics.dense_kl(mean, covariance, jnp.eye(lam.size))
    root = jnp.sqrt(lam)
    mean = root * mean
    covariance = root[:, None] * covariance * root
    w2_squared = metrics.dense_w2_squared(mean, covariance, jnp.diag(lam))
    return TerminalDistribution(mean, covariance, kl, safe_sqrt(w2_squared)), proper


def _split_steps(x: Array) -> Array:
    """Values at the data end, middle and noise end of every step, (all steps, 3, ...)."""
    parts = jnp.stack([x[:, :-2:2], x[:, 1::2], x[:, 2::2]], 2)
    return parts.reshape(-1, *parts.shape[2:])


def _slope(
    moments: tuple[Array, Array], alpha2: Array, here: tuple[Array, ...]
) -> tuple[Array, Array]:
    """Derivatives of covariance and mean in the natural time, at one point."""
    covariance, mean = moments
    pull, slope, push = here
    drift = 0.5 * (1.0 + alpha2) * slope - 0.5 * alpha2 * jnp.diag(pull)
    moved = drift @ covariance
    noise = alpha2 * jnp.diag(pull)
    return moved + moved.T + noise, drift @ mean + 0.5 * (1.0 + alpha2) * push


def _runge_kutta_step(
    moments: tuple[Array, Array], row: tuple[Array, ...]
) -> tuple[tuple[Array, Array], Array]:
    """Covariance and mean after a step from its noise end to its data end, and whether proper."""
    alpha2, size, *points = row
    data_end, middle, noise_end = (tuple(p[n] for p in points) for n in range(3))
    first = _slope(moments, alpha2, noise_end)
    second = _slope(_add(moments, first, 0.5 * size), alpha2, middle)
    third = _slope(_add(moments, second, 0.5 * size), alpha2, middle)
    fourth = _slope(_add(moments, third, size), alpha2, data_end)
    total = jax.tree.map(
        lambda a, b, c, e: (a + 2.0 * b + 2.0 * c + e) / 6.0, first, second, third, fourth
    )
    covariance, mean = _add(moments, total, size)
    return (covariance, mean), _proper(jnp.diag(covariance), mean)


def _add(
    moments: tuple[Array, Array], slope: tuple[Array, Array], size: Array | float
) -> tuple[Array, Array]:
    """Moments after a step of this size along the slope."""
    return moments[0] + size * slope[0], moments[1] + size * slope[1]


def _proper(variance: Array, mean: Array) -> Array:
    """Whether all moments are finite and the variances positive."""
    return jnp.all(jnp.isfinite(variance) & (variance > 0)) & jnp.all(jnp.isfinite(mean))


def _check_proper(proper: Array, times: Array) -> None:
    """Raise at the first time of the reverse process, the last of `times`, that is not proper."""
    if is_traced((proper, times)) or bool(jnp.all(proper)):
        return
    time = float(np.asarray(times)[~np.asarray(proper)][-1])
    raise ValueError(
        f"the process explodes: at time {time:g} (rescaled time theta, going to 0) a variance is "
        "not a positive finite number. The error epsilon E is too large for this "
        "stochasticity_squared."
    )
