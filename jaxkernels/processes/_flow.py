"""Flow matching on straight lines, a + s = 1."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .._numerics import as_inexact
from .._types import AnyArray, constant
from ._base import AbstractProcess


class FlowMatching(AbstractProcess):
    """a(t) = 1 - t, s(t) = t, t in [0, 1] (rectified flow; sampling starts from N(0, I) at t = 1).

    At t = 1 the signal is 0, so f and g^2 are infinite: start below 1 with samplers that use them.
    """

    t_max: AnyArray

    def __init__(self):
        self.t_max = constant(1.0)

    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return 1.0 - as_inexact(t)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return as_inexact(t)

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        sigma = as_inexact(sigma)
        finite = jnp.isfinite(sigma)
        sigma = jnp.where(finite, sigma, 1.0)
        return jnp.where(finite, sigma / (1.0 + sigma), 1.0)

    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return -1.0 / (1.0 - as_inexact(t))

    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        t = as_inexact(t)
        return 2.0 * t / (1.0 - t)

    def integrated_signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # int_0^{sigma^2} dv / (1 + sqrt v) = 2 (sigma - log(1 + sigma)), and 1 + sigma = 1/(1 - t)
        t = as_inexact(t)
        return 2.0 * (t / (1.0 - t) + jnp.log1p(-t))

    def prior_variance(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return jnp.ones_like(as_inexact(t))
