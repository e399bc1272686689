"""Flow matching on straight lines, a + s = 1."""

import jax.numpy as jnp
from jax.scipy.special import xlog1py
from jaxtyping import Array, ArrayLike, Float, Real

from .._numerics import as_inexact
from .._types import AnyArray, Numbers, constant
from ._base import AbstractProcess, range_ends


class FlowMatching(AbstractProcess):
    """Flow matching on straight lines (rectified flow), on [0, 1].

        a(t) = 1 - t,   s(t) = t

    Sampling starts from N(0, I) at t = 1. There the signal is 0, so f and g^2 are infinite: start
    below 1 with samplers that use them.

    **Arguments:**

    - `t_max`: first time of sampling, in (0, 1]; below 1 it starts from noised data, see
      `sub_range`.

    **Raises:** ValueError for `t_max` out of range.

    **Example:**

    ```python
    >>> float(jk.FlowMatching().sigma(0.5))
    1.0
    ```

    Source: Liu, Gong and Liu, "Flow Straight and Fast: Learning to Generate and Transfer Data with
    Rectified Flow" (2023), https://arxiv.org/abs/2209.03003; Lipman et al., "Flow Matching for
    Generative Modeling" (2023), https://arxiv.org/abs/2210.02747.
    """

    t_max: AnyArray

    def __init__(self, t_max: Numbers = 1.0):
        self.t_max, self.full_t_max = range_ends(t_max, constant(1.0))

    @property
    def default_t_min(self) -> float:
        """Time at which sampling ends by default: 1e-3, where sigma is 0.001."""
        return 1e-3

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
        # on one denominator: at t = 1 the two terms are inf - inf, their sum is inf
        t = as_inexact(t)
        return 2.0 * (t + xlog1py(1.0 - t, -t)) / (1.0 - t)

    def prior_variance(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return jnp.ones_like(as_inexact(t))
