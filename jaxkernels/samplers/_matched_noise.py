"""Steps of the reverse SDE whose noise makes up for the error of their drift in the covariance."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .. import _checks
from .._linalg import spectral_function
from .._numerics import larger, safe_divide, safe_sqrt
from ..prediction import Predict
from ..schedules import Step
from ._base import History, Noise, Process, X
from ._second_order import AbstractDifferentiated, multiply, score_and_hessian
from ._unit_diffusion import UnitDiffusion

DRIFTS = ("exponential_integrator", "euler_maruyama")


class MatchedNoise(AbstractDifferentiated):
    """The drift of another sampler, with the noise that keeps the variance of Gaussian data exact.

        X' = A X + b + N(0, S' - A^2 S),     S = -H^-1,   S' = e^(2 r h) S - (e^(2 r h) - 1) / (2 r)

    with H the Jacobian of the score, S and S' the covariances of Gaussian data before and after the
    step, and X, tau, h and r those of `REM`. With the drift of the exponential integrator, A = G +
    k H and b = k (score - H X) for G = e^(r h), k = (G - 1) / r, it needs no inverse,

        S' - A^2 S = (2 G k - (G^2 - 1) / (2 r)) I + k^2 H

    and is exact on every Gaussian where this is not negative: where S >= h for r = 0, and for
    r = 1/2 where S >= 4 (G - 1) / (3 G - 1), so for short steps, or for all if S >= 4/3. A variance
    that would have to be negative is 0.

    With that of Euler's method, G = 1 + r h and k = h, the covariance is exact and the mean is not;
    it is for log-concave densities, and leaves S out where H has an eigenvalue >= 0.

    A step forms the whole Jacobian of one sample (its symmetric part is used), with as many
    products as the data have dimensions, and counts it as one evaluation: it is for exact scores
    and few dimensions. `Tweedie` has the exact mean for data of any distribution as well.
    Stochasticity must be 1.

    **Arguments:**

    - `drift`: "exponential_integrator" or "euler_maruyama".

    **Raises:** ValueError for another `drift`.

    **Example:**

    ```python
    >>> schedule = jk.Schedule([1.0, 0.0], stochasticity=1.0)
    >>> run = (jk.Gaussian(1.0, [0.5]), jk.OU(t_max=1.0), jk.MatchedNoise(), schedule)
    >>> assert jk.evaluate_schedule(*run, initialization="marginal").w2 < 1e-7
    ```

    Source: Bao, Li, Zhu and Zhang, "Analytic-DPM: an Analytic Estimate of the Optimal Reverse
    Variance in Diffusion Probabilistic Models" (2022), https://arxiv.org/abs/2201.06503, for noise
    that fits the data; the covariance is derived for this library.
    """

    drift: str = eqx.field(static=True, default="exponential_integrator")

    order: ClassVar[int] = 1
    forms_jacobian: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _checks.one_of("drift", self.drift, DRIFTS)

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        sde = UnitDiffusion(process)
        t = step.time
        u = step.next_time
        h = sde.time(t) - sde.time(u)
        exact = self.drift == "exponential_integrator"
        growth = sde.growth(h) if exact else 1.0 + sde.rate * h
        weight = sde.score_weight(h) if exact else h
        free = sde.noise_variance(h)
        x = x / sde.scale(t)
        score, hessian = score_and_hessian(sde, predict, x, t)
        # in units of the noise without the score
        unit = jnp.eye(x.size, dtype=x.dtype)
        share = safe_divide(2.0 * growth * weight, free) - 1.0
        covariance = share * unit + safe_divide(weight**2, free) * hessian
        if not exact:
            lost = sde.growth(h) ** 2 - growth**2
            covariance += safe_divide(lost, free) * spectral_function(_minus_inverse, hessian)
        injected = multiply(spectral_function(_root, covariance), noise(free))
        return sde.scale(u) * (growth * x + weight * score + injected), history


def _root(x: Array) -> Array:
    """sqrt(x), 0 for x < 0."""
    return safe_sqrt(larger(x, 0.0))


def _minus_inverse(x: Array) -> Array:
    """-1 / x for x < 0, else 0."""
    return jnp.where(x < 0, -1.0 / jnp.where(x < 0, x, -1.0), 0.0)
