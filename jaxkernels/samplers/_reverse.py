"""One-evaluation samplers of the reverse stochastic differential equation, in the process's own time."""

from typing import ClassVar

import jax.numpy as jnp

from ..prediction import Predict
from ..processes import AbstractProcess
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, X


class EulerMaruyama(AbstractSampler):
    """Euler-Maruyama on the reverse family; stochasticity 0 is Euler on the probability-flow ODE.

        x' = x - dt (a' x0 + s' eps) - alpha^2 dt g^2 / (2 s) eps + alpha sqrt(dt g^2) z

    with a', s' the time derivatives, everything at the start of the step. For affine scores the factor is
    1 - dt f - (1 + alpha^2)/2 dt g^2 / Sigma_t, which large steps make negative. Order 1 in dt.
    With score factor g^2 for every alpha, as sometimes printed, the law would tend to covariance alpha^2 C.
    """

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(
        self,
        predict: Predict,
        noise: Noise,
        process: AbstractProcess,
        step: Step,
        x: X,
        history: History,
    ) -> tuple[X, History]:
        t, dt = step.time, step.time - step.next_time
        alpha2 = step.stochasticity_squared
        p = predict(x, t)
        # at signal 0, where g^2 may be infinite, the deterministic step is still well defined
        usable = (process.signal(t) > 0) | (alpha2 > 0)
        rate = process.diffusion_squared(jnp.where(usable, t, step.next_time))
        injected = alpha2 * dt * jnp.where(usable, rate, 0.0)
        flow = process.signal_rate(t) * p.x0 + process.noise_rate(t) * p.eps
        x = x - dt * flow - 0.5 * injected / process.noise(t) * p.eps + noise(injected)
        return x, history


class ExponentialIntegrator(AbstractSampler):
    """The linear part exactly, the score frozen over the step, h = alpha g throughout the step.

        x' = (a'/a) x + (1 + alpha^2)/2 a' (I(t) - I(t')) score(x, t) + alpha a' sqrt(sigma^2 - sigma'^2) z

    with a prime for t' and I the process's `integrated_signal`; for variance-preserving processes that is
    gamma x + (1 + alpha^2)(gamma - 1) score + alpha sqrt(gamma^2 - 1) z, gamma = a'/a. Order 1.
    Large alpha injects more noise than the marginal holds: see `OptimizedSchedule.trusted`.
    Cao, Chen, Luo and Zhou, "Exploring the Optimal Choice for Generative Processes in Diffusion Models: ODE
    vs SDE" (2023), appendix H.4, carried to every process by the time change of its B.2.
    """

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(
        self,
        predict: Predict,
        noise: Noise,
        process: AbstractProcess,
        step: Step,
        x: X,
        history: History,
    ) -> tuple[X, History]:
        t, u, alpha2 = step.time, step.next_time, step.stochasticity_squared
        p = predict(x, t)
        a = process.signal(u)
        eta = 0.5 * (1.0 + alpha2) * a
        eta = eta * (process.integrated_signal(t) - process.integrated_signal(u))
        injected = alpha2 * a**2 * (process.sigma(t) ** 2 - process.sigma(u) ** 2)
        x = a / process.signal(t) * x - eta / process.noise(t) * p.eps + noise(injected)
        return x, history
