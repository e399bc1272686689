"""The exact reverse process of a Gaussian target, per mode."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg import full_precision
from .._numerics import floored_log
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..schedules import Schedule


def log_contraction(
    target: Gaussian,
    process: AbstractProcess,
    t: Float[Array, ""],
    u: Float[Array, ""],
    stochasticity_squared: Float[Array, ""],
) -> Float[Array, " modes"]:
    """Logarithm of the factor of x - E x of the exact reverse family, from t to u <= t.

        rho = (Sigma' / Sigma)^((1 + alpha^2)/2) (a / a')^(alpha^2),   Sigma = a^2 lambda + s^2

    (primes at u) for h = alpha g, so that x' = a' mu + rho (x - a mu) + N(0, Sigma' - rho^2 Sigma).
    It is the conditional mean of the reverse family integrated exactly; alpha = 0 is the
    probability flow. A factor 0 (Sigma' = 0, or a = 0 with alpha > 0) is represented by a very
    negative, finite logarithm.
    """
    alpha2 = stochasticity_squared
    growth = floored_log(target.marginal_variance(process, u)) - floored_log(
        target.marginal_variance(process, t)
    )
    return 0.5 * (1.0 + alpha2) * growth + alpha2 * (
        floored_log(process.signal(t)) - floored_log(process.signal(u))
    )


def log_contractions(
    target: Gaussian, process: AbstractProcess, schedule: Schedule
) -> Float[Array, "steps modes"]:
    """`log_contraction` of every step of a schedule."""
    one = partial(log_contraction, target, process)
    return jax.vmap(one)(schedule.times[:-1], schedule.times[1:], schedule.stochasticity_squared)


@full_precision
def to_the_end(log_factors: Float[Array, "steps modes"]) -> Float[Array, "points modes"]:
    """Product of the factors of all later steps, for each grid time: 1 at the last."""
    steps = log_factors.shape[0]
    later = np.arange(steps + 1)[:, None] <= np.arange(steps)
    return jnp.exp(later.astype(log_factors.dtype) @ log_factors)
