"""The excess error that measured score errors cause on a schedule.

The error of a network is a fixed function: its effect F(theta) - F(about) is computed exactly, by
the moments of the run. Random are the estimate of theta, from finitely many draws, and which
networks there are. Only the first is expanded: with R repetitions theta_r of mean theta and
deviations d_r,

    E F(theta) = F(true theta) + sum_r F2(d_r) / (R (R - 1)) + remainder,                       (1)

F2 half the second derivative at theta. The remainder is seen by the same sum with differences of
the size of the errors in place of derivatives: signs from a Hadamard matrix combine the d_r to
draws that have their covariance exactly.

Which networks there are: F grows like a product over the steps, so that its distribution over
networks has a heavy tail, which a dozen of them do not show. Gaussian errors with the mean and the
covariance of these networks do,

    theta = mean + sum_m g_m (theta_m - mean) / sqrt(M - 1),     g_m independent and N(0, 1),   (2)

with F exact for each: the parametric bootstrap of Student's ratio, see `mean_of_modelled`. Of a
linear function of theta (2) has the sample variance, whatever the number of parameters.

Source: Efron, Tibshirani (1993), An Introduction to the Bootstrap, 6.5 and 12.5.
"""

import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._precision import to_float64
from ..errors import ErrorKernel
from ..score_error import AffineError, Tabulated
from ._interval import ConfidenceInterval, mean_of_modelled, student_quantile

# networks from which on the interval is for their population, not for their repetitions
MANY_NETWORKS = 4

# modelled networks
_DRAWS = 2048

# runs propagated at once
_BATCH = 32

# of an error, relatively
_ROUNDING = 1e-9


class PredictedExcess(NamedTuple):
    """The excess error that measured score errors cause, with a confidence interval.

    **Arguments:**

    - `value`: the estimate, in the kernel's units.
    - `low`: the lower end of the interval.
    - `high`: the upper end of the interval.
    - `remainder`: what the second-order correction for the randomness of the fits leaves out.

    **Example:**

    ```python
    >>> excess = jk.PredictedExcess(value=1.0, low=0.9, high=1.2, remainder=0.01)
    ```
    """

    value: float
    low: float
    high: float
    remainder: float


class _Effects(NamedTuple):
    """Excess errors of networks, exact for a given error of each."""

    baseline: Float[Array, ""]
    """F where the kernel expands."""
    at_mean: Float[Array, " networks"]
    """For the mean fit of each network."""
    without: Float[Array, "networks repetitions"]
    """For the mean fit without one repetition."""
    correction: Float[Array, " networks"]
    """The sum of (1)."""
    remainder: Float[Array, " networks"]
    """That of (1)."""


def predict_excess(
    kernel: ErrorKernel, errors: Tabulated, shape: tuple[int, int], level: float
) -> PredictedExcess:
    """The mean excess error of networks, of errors with prod(shape) = networks x repetitions."""
    num_networks, count = shape
    if num_networks < MANY_NETWORKS and count < 3:
        raise ValueError(
            f"an interval for fewer than {MANY_NETWORKS} networks needs at least 3 repetitions; "
            f"there are {count}."
        )
    with jax.enable_x64(True):
        kernel = to_float64(kernel)
        times = jnp.asarray(np.asarray(kernel.times))
        draws = errors(kernel.target, kernel.process, times)
        draws = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), draws)
        signs = _hadamard(count)[:, :count]
        effects = _effects(kernel, draws, jnp.asarray(signs, float))
        population = np.zeros(0)
        if num_networks >= MANY_NETWORKS:
            # a fixed seed makes the interval repeatable
            weights = np.random.default_rng(1).standard_normal((_DRAWS, num_networks))
            weights = jnp.asarray(weights / np.sqrt(num_networks - 1))
            population = np.asarray(_population(kernel, draws, weights), np.float64)
    effects = jax.tree.map(lambda a: np.asarray(a, np.float64), effects)
    result = _summarise(effects, population, level)
    rounding = _ROUNDING * (abs(result.value) + float(effects.baseline))
    if abs(result.remainder) > max(0.5 * (result.high - result.low), rounding):
        warnings.warn(
            f"the fits scatter too much for their expansion: beyond second order their randomness "
            f"adds {result.remainder:.3g} to an excess error of {result.value:.3g}. Use a larger "
            "batch, more repetitions or a ridge.",
            stacklevel=3,
        )
    return result


def _hadamard(least: int) -> Float[np.ndarray, "n n"]:
    """Sylvester's matrix of signs with orthogonal columns, of a size of at least `least`."""
    matrix = np.ones((1, 1))
    while len(matrix) < least:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _summarise(
    effects: _Effects, population: Float[np.ndarray, " draws"], level: float
) -> PredictedExcess:
    """The mean over networks and its interval."""
    networks = np.asarray(effects.at_mean - effects.correction)
    remainder = float(effects.remainder.mean())
    count = effects.without.shape[1]
    # jackknife pseudo-values, one per repetition: draws are common to the networks
    pseudo = count * effects.at_mean.mean() - (count - 1) * effects.without.mean(0)
    of_fits = float(pseudo.std(ddof=1) / np.sqrt(count))
    value = float(networks.mean())
    if len(networks) < MANY_NETWORKS:
        half = student_quantile(level, count) * of_fits
        return PredictedExcess(value, value - half, value + half, remainder)
    interval = mean_of_modelled(networks, population, level)
    return PredictedExcess(*_widen(interval, networks, of_fits), remainder)


def _widen(
    interval: ConfidenceInterval, networks: Float[np.ndarray, " n"], of_fits: float
) -> ConfidenceInterval:
    """An interval for the randomness of networks that allows for that of the fits they share."""
    of_networks = float(networks.std(ddof=1) / np.sqrt(len(networks)))
    if of_networks == 0.0:
        return interval
    factor = float(np.hypot(1.0, of_fits / of_networks))
    value = interval.value
    below = factor * (value - interval.low)
    above = factor * (interval.high - value)
    return ConfidenceInterval(value, value - below, value + above)


@jax.jit
def _effects(
    kernel: ErrorKernel, draws: AffineError, signs: Float[Array, "rows repetitions"]
) -> _Effects:
    """The effects of every network, with errors (networks, repetitions, evaluations, ...)."""
    baseline = kernel.error(kernel.about)
    count = draws.shift.shape[1]
    rows = signs.shape[0]
    scale = 1.0 / np.sqrt(count * (count - 1))

    def one(repeated: AffineError) -> tuple[Array, Array, Array, Array]:
        mean = jax.tree.map(lambda a: jnp.mean(a, 0), repeated)
        deviation = jax.tree.map(jnp.subtract, repeated, mean)
        directions = jax.tree.map(lambda a: scale * a, deviation)
        drawn = jax.tree.map(lambda a: jnp.tensordot(signs, a, 1), directions)

        def stack(m: Array, d: Array, w: Array) -> Array:
            return jnp.concatenate([m[None], m - d / (count - 1), m + w, m - w])

        errors = jax.tree.map(stack, mean, deviation, drawn)
        values = jax.lax.map(kernel.error, errors, batch_size=_BATCH)
        here = eqx.tree_at(lambda k: k.about, kernel, mean)
        second = jax.lax.map(lambda w: jnp.sum(here.along(w)[1]), directions, batch_size=_BATCH)
        correction = jnp.sum(second)
        finite = jnp.sum(values[1 + count :]) / (2 * rows) - values[0]
        values = values - baseline
        return values[0], values[1 : 1 + count], correction, finite - correction

    return _Effects(baseline, *jax.lax.map(one, draws))


@jax.jit
def _population(
    kernel: ErrorKernel, draws: AffineError, weights: Float[Array, "draws networks"]
) -> Float[Array, " draws"]:
    """F of the networks (2), with errors (networks, repetitions, evaluations, ...)."""
    fits = jax.tree.map(lambda a: jnp.mean(a, 1), draws)

    def error(row: Float[Array, " networks"]) -> Array:
        def modelled(a: Array) -> Array:
            mean = jnp.mean(a, 0)
            return mean + jnp.tensordot(row, a - mean, 1)

        return kernel.error(jax.tree.map(modelled, fits))

    return jax.lax.map(error, weights, batch_size=_BATCH)
