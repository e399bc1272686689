"""DDIM and its marginal-preserving stochastic family."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .._numerics import power, safe_divide, safe_log
from ..prediction import Predict
from ..processes import AbstractProcess
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, X


class DDIM(AbstractSampler):
    """DDIM and its stochastic family: the denoiser frozen, the rest of the step exact.

        x' = a' x0 + s' q eps + s' sqrt(1 - q^2) z,     q = (sigma' / sigma)^(alpha^2)

    with alpha = h/g the step's stochasticity and a prime for t'. alpha = 0 is DDIM, alpha = 1
    ancestral DDPM, alpha -> infinity draws fresh noise around x0. The noise level s' is met exactly
    for every alpha, and the step never overshoots (its factor on x is never negative). A last step
    to sigma = 0 returns x0. One evaluation per step, order 1.

    Other tools set the same parameter under other names, which `from_eta` and `from_churn` map
    exactly.

    **Example:**

    ```python
    >>> jk.DDIM().marginal_preserving
    True
    ```

    Source: Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (2021), eq. (12),
    https://arxiv.org/abs/2010.02502, for the step; Cao, Chen, Luo and Zhou, "Exploring the Optimal
    Choice for Generative Processes in Diffusion Models: Ordinary vs Stochastic Differential
    Equations" (2023), https://arxiv.org/abs/2306.02063, for the reverse family that it integrates.
    """

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    marginal_preserving: ClassVar[bool] = True
    sigma_only: ClassVar[bool] = True

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        t = step.time
        u = step.next_time
        p = predict(x, t)
        keep = power(level_ratio(process, t, u), step.stochasticity_squared)
        s = process.noise(u)
        x = process.signal(u) * p.x0 + s * keep * p.eps + noise(s**2 * (1.0 - keep**2))
        return x, history


def level_ratio(process: AbstractProcess, t: Array, u: Array) -> Array:
    """sigma(u) / sigma(t) in [0, 1]: 0 from infinity or to zero, 1 for an empty step."""
    ratio = safe_divide(process.noise(u) * process.signal(t), process.noise(t) * process.signal(u))
    return jnp.where(t == u, 1.0, ratio)


def _log_ratios(process: AbstractProcess, times: Array) -> Array:
    """log(sigma / sigma') >= 0 of every step."""
    return -safe_log(level_ratio(process, times[:-1], times[1:]))


def from_eta(
    process: AbstractProcess, times: Real[ArrayLike, " points"], eta: Real[ArrayLike, "*steps"]
) -> Float[Array, " steps"]:
    """Convert DDIM's `eta` into the stochasticity that injects the same noise.

        r^(2 alpha^2) = 1 - eta^2 (1 - r^2),      r = sigma'/sigma

    The ancestral samplers of k-diffusion have the same parameter. eta = 0 and 1 are alpha = 0 and
    1.

    **Arguments:**

    - `process`: the forward process.
    - `times`: (K+1,) of a schedule, strictly decreasing.
    - `eta`: a number or (K,), >= 0, with eta <= 1 where r = 0 and eta^2 (1 - r^2) <= 1 elsewhere.

    **Returns:** alpha (K,).

    **Example:**

    ```python
    >>> jk.samplers.from_eta(jk.VP(), np.array([0.9, 0.5, 0.1]), 1.0).round(3).tolist()
    [1.0, 1.0]
    ```

    Source: Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (2021), eq. (16),
    https://arxiv.org/abs/2010.02502.
    """
    rho = _log_ratios(process, jnp.asarray(times))
    kept = 1.0 - jnp.asarray(eta) ** 2 * -jnp.expm1(-2.0 * rho)
    ratio = safe_divide(-jnp.log(kept), 2.0 * rho)
    return jnp.sqrt(jnp.where(jnp.isinf(rho), jnp.where(kept < 1.0, 1.0, 0.0), ratio))


def to_eta(
    process: AbstractProcess, times: Real[ArrayLike, " points"], alpha: Real[ArrayLike, "*steps"]
) -> Float[Array, " steps"]:
    """Convert stochasticity into DDIM's `eta`; inverse of `from_eta`.

    **Arguments:**

    - `process`: the forward process.
    - `times`: (K+1,) of a schedule, strictly decreasing.
    - `alpha`: a number or (K,), >= 0.

    **Returns:** eta (K,).

    **Example:**

    ```python
    >>> jk.samplers.to_eta(jk.VP(), np.array([0.9, 0.5, 0.1]), 1.0).round(3).tolist()
    [1.0, 1.0]
    ```
    """
    rho = _log_ratios(process, jnp.asarray(times))
    injected = 1.0 - power(jnp.exp(-2.0 * rho), jnp.asarray(alpha) ** 2)
    return jnp.sqrt(safe_divide(injected, -jnp.expm1(-2.0 * rho)))


def from_churn(
    process: AbstractProcess, times: Real[ArrayLike, " points"], gamma: Real[ArrayLike, "*steps"]
) -> Float[Array, " steps"]:
    """Convert EDM's churn into the stochasticity that keeps the same share of the old noise.

        (sigma'/sigma)^(alpha^2) = 1 / (1 + gamma)

    Churn raises sigma to (1 + gamma) sigma with fresh noise before the step, so that the part
    1 / (1 + gamma) of the old noise is kept. The noise content agrees exactly; churn evaluates the
    network at the raised level, the marginal-preserving step at the old one.

    **Arguments:**

    - `process`: the forward process.
    - `times`: (K+1,) of a schedule, strictly decreasing.
    - `gamma`: churn per step, a number or (K,), >= 0.

    **Returns:** alpha (K,).

    **Example:**

    ```python
    >>> jk.samplers.from_churn(jk.EDM(4.0), np.array([4.0, 2.0, 1.0]), 1.0).round(3).tolist()
    [1.0, 1.0]
    ```

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), Algorithm 2, https://arxiv.org/abs/2206.00364.
    """
    rho = _log_ratios(process, jnp.asarray(times))
    return jnp.sqrt(safe_divide(jnp.log1p(jnp.asarray(gamma)), rho))


def to_churn(
    process: AbstractProcess, times: Real[ArrayLike, " points"], alpha: Real[ArrayLike, "*steps"]
) -> Float[Array, " steps"]:
    """Convert stochasticity into EDM's churn per step; inverse of `from_churn`.

    **Arguments:**

    - `process`: the forward process.
    - `times`: (K+1,) of a schedule, strictly decreasing.
    - `alpha`: a number or (K,), >= 0.

    **Returns:** gamma (K,).

    **Example:**

    ```python
    >>> jk.samplers.to_churn(jk.EDM(4.0), np.array([4.0, 2.0, 1.0]), 1.0).round(3).tolist()
    [1.0, 1.0]
    ```
    """
    rho = _log_ratios(process, jnp.asarray(times))
    alpha = jnp.asarray(alpha)
    return jnp.expm1(jnp.where(alpha > 0, alpha**2 * rho, 0.0))
