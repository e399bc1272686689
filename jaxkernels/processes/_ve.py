"""Variance-exploding processes, a = 1."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .. import _checks
from .._numerics import as_inexact, safe_sqrt
from .._types import AnyArray, Numbers
from ._base import LARGEST, AbstractProcess, range_ends


class AbstractVarianceExploding(AbstractProcess):
    """A process with a = 1: f = 0, sigma = s, I = s^2; sampling starts from N(0, s(t)^2 I)."""

    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return jnp.ones_like(as_inexact(t))

    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return jnp.zeros_like(as_inexact(t))

    def integrated_signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.noise(t) ** 2

    def prior_variance(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.noise(t) ** 2


class VE(AbstractVarianceExploding):
    """Variance-exploding process with a linear variance, on [0, t_max].

        dX = sqrt(rate) dW,     a = 1,   s^2 = rate t

    **Arguments:**

    - `rate`: g^2 > 0 and at most 1e9, variance per unit of time.
    - `t_max`: end of time, > 0 and at most 1e9, where sampling starts from pure noise. `sub_range`
      starts below it.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> float(jk.VE(rate=2.0).sigma(2.0))
    2.0
    ```

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
    (2021), section 3.4, https://arxiv.org/abs/2011.13456, with a linear variance.
    """

    rate: AnyArray
    t_max: AnyArray

    def __init__(self, rate: Numbers = 2.0, t_max: Numbers = 50.0):
        self.rate = _checks.parameter("rate", rate, above=0.0, at_most=LARGEST)
        self.t_max = _checks.parameter("t_max", t_max, above=0.0, at_most=LARGEST)
        self.full_t_max = None

    @property
    def default_t_min(self) -> float:
        """Time at which sampling ends by default: where sigma is 0.002, 2e-6 for rate 2."""
        return 0.002**2 / float(self.rate)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return safe_sqrt(self.rate * as_inexact(t))

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return as_inexact(sigma) ** 2 / self.rate

    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.rate * jnp.ones_like(as_inexact(t))


class EDM(AbstractVarianceExploding):
    """The process of EDM: time is the noise level, on [0, sigma_max].

        a(t) = 1,   s(t) = t

    **Arguments:**

    - `sigma_max`: the largest noise level of the process, > 0 and at most 1e9, in units of the
      data.
    - `t_max`: first time, that is noise level, of sampling; by default `sigma_max`, below it
      sampling starts from noised data, see `sub_range`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> float(jk.EDM(sigma_max=80.0).sigma(3.0))
    3.0
    ```

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), https://arxiv.org/abs/2206.00364.
    """

    t_max: AnyArray

    def __init__(self, sigma_max: Numbers = 80.0, t_max: Numbers | None = None):
        full = _checks.parameter("sigma_max", sigma_max, above=0.0, at_most=LARGEST)
        self.t_max, self.full_t_max = range_ends(full if t_max is None else t_max, full)

    @property
    def default_t_min(self) -> float:
        """Time at which sampling ends by default: 0.002, the last level of EDM."""
        return 0.002

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return as_inexact(t)

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return as_inexact(sigma)

    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return 2.0 * as_inexact(t)
