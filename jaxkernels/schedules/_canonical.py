"""The process whose time is the coordinate that schedules are optimised in."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._numerics import as_inexact
from .._types import AnyArray, constant
from ..processes import AbstractProcess
from ._coordinate import TimeCoordinate


class CoordinateProcess(AbstractProcess):
    """The process with time u = log((sigma + low) / (1 + sigma / high)), see `TimeCoordinate`.

        a(u) = 1 - e^u / high,      s(u) = e^u - low

    A sampler that depends on its process through sigma alone takes the same steps in every process,
    up to the scale of x. Its schedules can be optimised in this process, where a and s cost one
    exponential, whatever the process they are meant for. sigma = 0 and sigma = infinity are finite
    u. Its times are any real numbers, so they are not those of a `Schedule`.

    **Arguments:**

    - `t_max`: the largest u, a scalar.
    - `low`: >= 0, a scalar in units of sigma.
    - `high`: > `low`, a scalar in units of sigma; may be infinite.

    **Example:**

    ```python
    >>> process = jk.schedules.CoordinateProcess(jnp.array(2.0), jnp.array(0.0), jnp.array(jnp.inf))
    >>> float(process.sigma(0.0))
    1.0
    ```
    """

    t_max: AnyArray
    low: AnyArray
    high: AnyArray

    @classmethod
    def of(cls, coordinate: TimeCoordinate) -> "CoordinateProcess":
        """Make the process whose time is a coordinate.

        **Arguments:**

        - `coordinate`: a `TimeCoordinate`, with its `low` and `high`.

        **Returns:** the process; its t_max is infinite.
        """
        low, high = (constant(v) for v in (coordinate.low, coordinate.high))
        return cls(constant(np.inf), low, high)

    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return _without_rounding(1.0 - jnp.exp(as_inexact(t)) / self.high, 1.0)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        y = jnp.exp(as_inexact(t))
        return _without_rounding(y - self.low, y)

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        sigma = as_inexact(sigma)
        return jnp.log((sigma + self.low) / (1.0 + sigma / self.high))

    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        y = jnp.exp(as_inexact(t))
        return -(y / self.high) / (1.0 - y / self.high)

    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        s = self.noise(t)
        return 2.0 * s * jnp.exp(as_inexact(t)) - 2.0 * self.drift(t) * s**2

    def integrated_signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # with a = (1 - low / high) / (1 + sigma / high); sigma^2 where high is infinite
        sigma = self.sigma(t)
        finite = jnp.isfinite(self.high)
        high = jnp.where(finite, self.high, 1.0)
        bent = 2.0 * (1.0 - self.low / high) * high * (sigma - high * jnp.log1p(sigma / high))
        return jnp.where(finite, bent, sigma**2)

    def prior_variance(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.noise(t) ** 2


def _without_rounding(difference: Float[Array, "*s"], scale: ArrayLike) -> Float[Array, "*s"]:
    """The difference of numbers of size `scale`, exactly 0 where it is rounding.

    Multistep samplers drop their history where the signal or the noise is 0.
    """
    rounding = 64.0 * jnp.finfo(difference.dtype).eps
    return jnp.where(difference > rounding * scale, difference, 0.0)
