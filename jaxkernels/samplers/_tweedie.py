"""Steps of the reverse SDE with the exact conditional mean, and more or less of the covariance."""

import abc
from collections.abc import Callable
from typing import ClassVar

import jax
from jaxtyping import Array

from .._linalg import spectral_function
from .._numerics import safe_sqrt
from ..prediction import Predict, Prediction
from ..processes import AbstractProcess
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, X
from ._ddim import level_ratio
from ._second_order import AbstractDifferentiated, jacobian, multiply


class ExactMean(AbstractSampler):
    """Exponential integrator of the reverse SDE with the exact conditional mean.

        x' = a' x0 + (s'^2 / s) (a / a') eps + a' sqrt(sigma^2 - sigma'^2) z

    The mean is E[X_t' | X_t = x], that of `DDIM` with stochasticity 1; the noise is that of the
    SDE without its score, as in `ExponentialIntegrator`. Its local error vanishes for the mean and
    not for the covariance: it is the step for bounds, whose martingale part is all that remains.
    One evaluation per step, order 1; stochasticity must be 1.

    **Example:**

    ```python
    >>> jk.ExactMean().nfe_per_step
    1
    ```

    Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), eq. (11), for
    the mean, https://arxiv.org/abs/2006.11239.
    """

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    reverse_sde_only: ClassVar[bool] = True

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        p = predict(x, step.time)
        x = _conditional_mean(process, step, p) + noise(_free_variance(process, step))
        return x, history


class AbstractTweedie(AbstractDifferentiated):
    """A step with the exact conditional mean and a covariance that the denoiser's Jacobian gives.

        x' = E[X_t' | X_t = x] + a' sqrt(sigma^2 - sigma'^2) B z
        M = I + Z = q I + (1 - q) a J,     q = sigma'^2 / sigma^2,   J = d x0 / dx

    with a matrix B whose B B^T is close to M, or equal to it.
    """

    @abc.abstractmethod
    def shape_noise(self, product: Callable[[X], X], noise: X) -> X:
        """Multiply isotropic noise by the matrix B.

        **Arguments:**

        - `product`: v -> M v.
        - `noise`: isotropic, in the shape of x.

        **Returns:** B noise.
        """

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        t = step.time

        def split(x: X) -> tuple[X, X]:
            p = predict(x, t)
            return p.x0, p.eps

        values, derivative = jax.linearize(split, x)
        kept = level_ratio(process, t, step.next_time) ** 2

        def product(v: X) -> X:
            return kept * v + (1.0 - kept) * process.signal(t) * derivative(v)[0]

        isotropic = noise(_free_variance(process, step))
        mean = _conditional_mean(process, step, Prediction(*values))
        return mean + self.shape_noise(product, isotropic), history


class Tweedie(AbstractTweedie):
    """The exact conditional mean and covariance of the reverse SDE (TW).

        x' = E[X_t' | X_t = x] + a' sqrt(sigma^2 - sigma'^2) M^(1/2) z
        M = q I + (1 - q) a dx0/dx,     q = sigma'^2 / sigma^2

    By Tweedie's formulas these are the exact moments of X_t' given X_t, for data of any
    distribution: for Gaussian data the step makes no error at all, whatever its length. A last step
    to sigma = 0 draws from the Gaussian with the mean and covariance of the data given x.

    A step forms the whole Jacobian of one sample (its symmetric part is used, negative eigenvalues
    of M count as 0), with as many products as the data have dimensions, and counts it as one
    evaluation: it is for exact scores and few dimensions. `Tweedie1` and `Tweedie2` need one and
    two products. Stochasticity must be 1.

    **Example:**

    ```python
    >>> schedule = jk.Schedule([1.0, 0.0], stochasticity=1.0)
    >>> run = (jk.Gaussian(1.0, [0.5]), jk.OU(t_max=1.0), "tweedie", schedule)
    >>> assert jk.evaluate_schedule(*run, initialization="marginal").w2 < 1e-7
    ```

    Source: Efron, "Tweedie's Formula and Selection Bias" (2011), for the moments; Bao, Li, Zhu and
    Zhang, "Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion
    Probabilistic Models" (2022), https://arxiv.org/abs/2201.06503, for an isotropic covariance.
    """

    forms_jacobian: ClassVar[bool] = True

    def shape_noise(self, product: Callable[[X], X], noise: X) -> X:
        return multiply(spectral_function(safe_sqrt, jacobian(product, noise)), noise)


class Tweedie1(AbstractTweedie):
    """`Tweedie` with B = I + Z/2 instead of (I + Z)^(1/2), by one product with the Jacobian.

    The covariance is (I + Z/2)^2 = I + Z + Z^2/4, whatever the Jacobian: never indefinite, and for
    networks, whose Jacobian need not be symmetric. Order 2; stochasticity must be 1.

    **Example:**

    ```python
    >>> jk.Tweedie1().nfe_per_step
    2
    ```

    Source: as for `Tweedie`, expanded.
    """

    def shape_noise(self, product: Callable[[X], X], noise: X) -> X:
        return 0.5 * (noise + product(noise))


class Tweedie2(AbstractTweedie):
    """`Tweedie` with B = I + Z/2 - Z^2/8 instead of (I + Z)^(1/2), by two products.

    The covariance is B B^T, never indefinite. Order 2, and 3 for Gaussian data; stochasticity must
    be 1.

    **Example:**

    ```python
    >>> jk.Tweedie2().nfe_per_step
    3
    ```

    Source: as for `Tweedie`, expanded.
    """

    nfe_per_step: ClassVar[int] = 3

    def shape_noise(self, product: Callable[[X], X], noise: X) -> X:
        excess = product(noise) - noise
        squared = product(excess) - excess
        return noise + 0.5 * excess - 0.125 * squared


def _conditional_mean(process: AbstractProcess, step: Step, p: Prediction) -> X:
    """E[X_t' | X_t = x] of the reverse SDE."""
    u = step.next_time
    kept = level_ratio(process, step.time, u)
    return process.signal(u) * p.x0 + process.noise(u) * kept * p.eps


def _free_variance(process: AbstractProcess, step: Step) -> Array:
    """a'^2 (sigma^2 - sigma'^2), the variance of the noise of the SDE without its score."""
    u = step.next_time
    difference = process.sigma(step.time) ** 2 - process.sigma(u) ** 2
    return process.signal(u) ** 2 * difference
