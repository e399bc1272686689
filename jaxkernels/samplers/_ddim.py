"""DDIM and the whole level-exact family around it."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .._numerics import power, safe_divide, safe_log
from ..prediction import Predict
from ..processes import AbstractProcess
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, X


class DDIM(AbstractSampler):
    r"""Exponential integrator of the reverse family with the denoiser frozen over the step.

    With q = (sigma' / sigma)^(alpha^2), alpha = h/g the step's stochasticity, and a prime for t':

        x' = a' x0 + s' q eps + s' sqrt(1 - q^2) z

    alpha = 0 is DDIM, alpha = 1 ancestral DDPM, alpha -> infinity renoises x0 afresh. The noise level
    s' is met exactly for every alpha, and the step never overshoots (its factor is never negative).

    Other tools turn the same knob under other names; `from_eta` and `from_churn` map them exactly.

    One evaluation per step, order 1. A last step to sigma = 0 returns x0.
    The reverse family is that of Cao et al., "ODE vs SDE" (2023), solved with the denoiser frozen.
    """

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    marginal_preserving: ClassVar[bool] = True
    sigma_only: ClassVar[bool] = True

    def step(
        self,
        predict: Predict,
        noise: Noise,
        process: AbstractProcess,
        step: Step,
        x: X,
        history: History,
    ) -> tuple[X, History]:
        t, u = step.time, step.next_time
        p = predict(x, t)
        keep = power(level_ratio(process, t, u), step.stochasticity_squared)
        s = process.noise(u)
        x = process.signal(u) * p.x0 + s * keep * p.eps + noise(s**2 * (1.0 - keep**2))
        return x, history


def level_ratio(process: AbstractProcess, t: Array, u: Array) -> Array:
    """sigma(u) / sigma(t) in [0, 1] for u <= t: 0 from infinite noise or to none, 1 for an empty step."""
    ratio = safe_divide(process.noise(u) * process.signal(t), process.noise(t) * process.signal(u))
    return jnp.where(t == u, 1.0, ratio)


def _log_ratios(process: AbstractProcess, times: Array) -> Array:
    return -safe_log(level_ratio(process, times[:-1], times[1:]))


def from_eta(
    process: AbstractProcess, times: Real[ArrayLike, " points"], eta: Real[ArrayLike, "*steps"]
) -> Float[Array, " steps"]:
    """Stochasticity of the level-exact step that injects the noise of DDIM's `eta`.

        r^(2 alpha^2) = 1 - eta^2 (1 - r^2),      r = sigma'/sigma

    Song et al. (2021), eq. (16), and the ancestral samplers of k-diffusion, in any process. eta = 0 and
    eta = 1 are alpha = 0 and 1. 0 <= eta <= 1 is required where r = 0, eta^2 (1 - r^2) <= 1 elsewhere.
    """
    rho = _log_ratios(process, jnp.asarray(times))
    kept = 1.0 - jnp.asarray(eta) ** 2 * -jnp.expm1(-2.0 * rho)
    ratio = safe_divide(-jnp.log(kept), 2.0 * rho)
    return jnp.sqrt(jnp.where(jnp.isinf(rho), jnp.where(kept < 1.0, 1.0, 0.0), ratio))


def to_eta(
    process: AbstractProcess, times: Real[ArrayLike, " points"], alpha: Real[ArrayLike, "*steps"]
) -> Float[Array, " steps"]:
    """The `eta` of each step of a level-exact schedule; inverse of `from_eta`."""
    rho = _log_ratios(process, jnp.asarray(times))
    injected = 1.0 - power(jnp.exp(-2.0 * rho), jnp.asarray(alpha) ** 2)
    return jnp.sqrt(safe_divide(injected, -jnp.expm1(-2.0 * rho)))


def from_churn(
    process: AbstractProcess, times: Real[ArrayLike, " points"], gamma: Real[ArrayLike, "*steps"]
) -> Float[Array, " steps"]:
    """Stochasticity that forgets as much of the old noise as EDM's per-step churn `gamma` does.

    Churn raises sigma to (1 + gamma) sigma with fresh noise before the step, so that a part 1/(1 + gamma)
    of the old noise is kept: (sigma'/sigma)^(alpha^2) = 1/(1 + gamma). The noise content agrees exactly;
    churn evaluates the network at the raised level, the level-exact step at the old one.
    """
    rho = _log_ratios(process, jnp.asarray(times))
    return jnp.sqrt(safe_divide(jnp.log1p(jnp.asarray(gamma)), rho))


def to_churn(
    process: AbstractProcess, times: Real[ArrayLike, " points"], alpha: Real[ArrayLike, "*steps"]
) -> Float[Array, " steps"]:
    """EDM's per-step churn `gamma` of a level-exact schedule; inverse of `from_churn`."""
    rho = _log_ratios(process, jnp.asarray(times))
    return jnp.expm1(jnp.where(jnp.asarray(alpha) > 0, jnp.asarray(alpha) ** 2 * rho, 0.0))
