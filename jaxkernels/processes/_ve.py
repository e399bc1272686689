"""Variance-exploding processes, a = 1."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .. import _checks
from .._numerics import as_inexact, safe_sqrt
from .._types import AnyArray, Numbers
from ._base import AbstractProcess


class AbstractVarianceExploding(AbstractProcess):
    """a = 1, f = 0, sigma = s and I = s^2; sampling starts from N(0, s(t)^2 I)."""

    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return jnp.ones_like(as_inexact(t))

    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return jnp.zeros_like(as_inexact(t))

    def integrated_signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.noise(t) ** 2

    def prior_variance(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.noise(t) ** 2


class VE(AbstractVarianceExploding):
    """dX = sqrt(rate) dW, s^2 = rate t, on [0, t_max]."""

    rate: AnyArray
    t_max: AnyArray

    def __init__(self, rate: Numbers = 2.0, t_max: Numbers = 50.0):
        self.rate = _checks.parameter("rate", rate, above=0.0)
        self.t_max = _checks.parameter("t_max", t_max, above=0.0)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return safe_sqrt(self.rate * as_inexact(t))

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return as_inexact(sigma) ** 2 / self.rate

    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.rate * jnp.ones_like(as_inexact(t))


class EDM(AbstractVarianceExploding):
    """s(t) = t on [0, sigma_max]: time is the noise level.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022).
    """

    t_max: AnyArray

    def __init__(self, sigma_max: Numbers = 80.0):
        self.t_max = _checks.parameter("sigma_max", sigma_max, above=0.0)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return as_inexact(t)

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return as_inexact(sigma)

    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return 2.0 * as_inexact(t)
