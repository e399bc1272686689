"""The time in which the reverse SDE has a constant drift rate and unit diffusion."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics import phi, safe_sqrt
from ..prediction import Predict
from ..processes import AbstractProcess, AbstractVariancePreserving
from ._base import X


class UnitDiffusion(eqx.Module):
    """The reverse SDE of a process as dX = (rate X + score) dtau + dW, in the time left tau.

        variance-preserving    rate = 1/2,   tau = log(1 + sigma^2) = -2 log a,   X = x
        all others             rate = 0,     tau = sigma^2,                       X = x / a

    The score is that of X. The second form holds for any process; the first is the time of the
    Ornstein-Uhlenbeck process, whatever the rate beta(t).
    """

    process: AbstractProcess

    @property
    def _preserving(self) -> bool:
        return isinstance(self.process, AbstractVariancePreserving)

    @property
    def rate(self) -> float:
        """The factor of X in the drift."""
        return 0.5 if self._preserving else 0.0

    def time(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """tau at a time of the process."""
        squared = self.process.sigma(t) ** 2
        return jnp.log1p(squared) if self._preserving else squared

    def process_time(self, tau: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The time of the process at tau."""
        squared = jnp.expm1(tau) if self._preserving else tau
        return self.process.time_at_sigma(safe_sqrt(squared))

    def between(
        self, t: Float[Array, "*s"], u: Float[Array, "*s"], fraction: Float[Array, "*s"]
    ) -> Float[Array, "*s"]:
        """The time of the process after a fraction of the step from t to u, never outside of it."""
        return self.process_time((1.0 - fraction) * self.time(t) + fraction * self.time(u))

    def scale(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """x / X."""
        return jnp.ones_like(t) if self._preserving else self.process.signal(t)

    def score(self, predict: Predict, x: X, t: Float[Array, ""]) -> X:
        """The score of X at X = x and a time of the process."""
        scale = self.scale(t)
        return -scale / self.process.noise(t) * predict(scale * x, t).eps

    def growth(self, h: Float[Array, ""]) -> Float[Array, ""]:
        """e^(rate h), the factor of X over a time h without score and noise."""
        return jnp.exp(self.rate * h)

    def score_weight(self, h: Float[Array, ""]) -> Float[Array, ""]:
        """The integral of e^(rate v) over v from 0 to h, the factor of a frozen score."""
        return h * phi(1, self.rate * h)

    def noise_variance(self, h: Float[Array, ""]) -> Float[Array, ""]:
        """The integral of e^(2 rate v) over v from 0 to h, the variance that noise adds to X."""
        return h * phi(1, 2.0 * self.rate * h)
