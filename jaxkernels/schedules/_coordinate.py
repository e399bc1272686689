"""Monotone schedules from unconstrained numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ..processes import AbstractProcess


class TimeCoordinate(eqx.Module):
    """Decreasing times between two ends, one unconstrained number per interior point.

    The times are cut where a coordinate u of the noise level has the increments softmax(0, z):

        u = log( (sigma + low) / (1 + sigma / high) )                                          (1)

    which is log sigma between `low` and `high` and finite at sigma = 0 and infinity when low > 0 and
    high < infinity. Every z in R^(K-1) gives a strictly decreasing schedule and every schedule has one z,
    so gradients need no constraint. The ends are kept exactly.

    **Arguments:** `start` > `end`, times of the process; `low` >= 0 and `high` in units of sigma
    (low > 0 is needed if sigma(end) = 0, a finite high if sigma(start) is infinite).
    """

    process: AbstractProcess
    start: ArrayLike
    low: ArrayLike
    high: ArrayLike

    def coordinate(self, t: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """u(t); written with a and s so that it is exact at both ends."""
        a, s = self.process.signal(t), self.process.noise(t)
        return jnp.log((s + self.low * a) / (a + s / self.high))

    def time(self, u: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """The time at coordinate u."""
        y = jnp.exp(jnp.asarray(u))
        return self.process.time_at_sigma((y - self.low) / (1.0 - y / self.high))

    def times(
        self, z: Float[Array, " interior"], end: Float[ArrayLike, ""]
    ) -> Float[Array, " points"]:
        """Times (K+1,) from z (K-1,)."""
        top, bottom = self.coordinate(self.start), self.coordinate(end)
        increments = jax.nn.softmax(jnp.concatenate([jnp.zeros((1,), z.dtype), z]))
        interior = self.time(top - (top - bottom) * jnp.cumsum(increments)[:-1])
        ends = jnp.asarray(self.start, z.dtype)[None], jnp.asarray(end, z.dtype)[None]
        return jnp.concatenate([ends[0], interior, ends[1]])

    def unconstrained(self, times: Float[Array, " points"]) -> Float[Array, " interior"]:
        """z (K-1,) from times (K+1,), the inverse of `times`."""
        log_increments = jnp.log(-jnp.diff(self.coordinate(times)))
        return log_increments[1:] - log_increments[0]
