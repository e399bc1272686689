"""The exact reverse process of a Gaussian target, mode by mode."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._numerics import power, safe_divide
from ..process import AbstractProcess
from ..target import Gaussian


def contraction(
    target: Gaussian,
    process: AbstractProcess,
    times: Float[Array, " points"],
    stochasticity_squared: Float[Array, " steps"],
) -> Float[Array, "steps modes"]:
    """Factor of x - E x over each step of the exact reverse family with h = alpha g:

        rho = (Sigma' / Sigma)^((1 + alpha^2)/2) (a / a')^(alpha^2),   Sigma = a^2 lambda + s^2

    so that x' = a' mu + rho (x - a mu) + N(0, Sigma' - rho^2 Sigma). It is the conditional mean of seed
    004's [E1] integrated exactly; alpha = 0 is the probability flow. Times descend.
    """
    a = process.signal(times)
    variance = target.marginal_variance(process, times)
    squared = jnp.broadcast_to(stochasticity_squared[:, None], variance[1:].shape)
    ratio = safe_divide(variance[1:], variance[:-1])
    scale = jnp.broadcast_to(safe_divide(a[:-1], a[1:])[:, None], ratio.shape)
    return power(ratio, 0.5 * (1.0 + squared)) * power(scale, squared)


def to_the_end(factors: Float[Array, "steps modes"]) -> Float[Array, "points modes"]:
    """Product of the factors (>= 0) of all later steps, for each grid time: 1 at the last."""
    steps = factors.shape[0]
    later = np.arange(steps + 1)[:, None] <= np.arange(steps)
    # a sum of logarithms is one matrix product; the floor stands for 0 and keeps it finite
    logs = jnp.log(jnp.maximum(factors, jnp.finfo(factors.dtype).tiny))
    return jnp.exp(later.astype(factors.dtype) @ logs)
