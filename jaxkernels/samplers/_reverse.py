"""One-evaluation samplers of the reverse stochastic differential equation."""

from typing import ClassVar

import jax.numpy as jnp

from ..prediction import Predict
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, X


class EulerMaruyama(AbstractSampler):
    """Euler-Maruyama method on the reverse family; without stochasticity, Euler on the flow.

        x' = x - dt (a' x0 + s' eps) - alpha^2 dt g^2 / (2 s) eps + alpha sqrt(dt g^2) z

    with a', s' the time derivatives, everything at the start of the step. For affine scores the
    factor on x is 1 - dt f - (1 + alpha^2)/2 dt g^2 / Sigma_t, which large steps make negative. One
    evaluation per step, order 1. The score's factor is (1 + alpha^2)/2 g^2: with g^2 for every
    alpha, the covariance would tend to alpha^2 C instead of C.

    **Example:**

    ```python
    >>> jk.EulerMaruyama().stochastic
    True
    ```

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
    (2021), https://arxiv.org/abs/2011.13456, appendix D; Maruyama, "Continuous Markov Processes and
    Stochastic Equations" (1955).
    """

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        t = step.time
        dt = t - step.next_time
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
    """Exponential integrator with the score frozen over the step, and h = alpha g throughout it.

        x' = (a'/a) x + (1 + alpha^2)/2 a' (I(t) - I(t')) score(x, t) + alpha a' sqrt(sigma^2 -
        sigma'^2) z

    with a prime for t' and I the process's `integrated_signal`; for variance-preserving processes
    that is gamma x + (1 + alpha^2)(gamma - 1) score + alpha sqrt(gamma^2 - 1) z, gamma = a'/a. One
    evaluation per step, order 1. A large alpha injects more noise than the marginal distribution
    holds.

    **Example:**

    ```python
    >>> jk.ExponentialIntegrator().nfe_per_step
    1
    ```

    Source: Cao, Chen, Luo and Zhou, "Exploring the Optimal Choice for Generative Processes in
    Diffusion Models: Ordinary vs Stochastic Differential Equations" (2023), appendix H.4, extended
    to every process by the time change of its appendix B.2, https://arxiv.org/abs/2306.02063.
    """

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        t = step.time
        u = step.next_time
        alpha2 = step.stochasticity_squared
        p = predict(x, t)
        a = process.signal(u)
        eta = 0.5 * (1.0 + alpha2) * a
        eta = eta * (process.integrated_signal(t) - process.integrated_signal(u))
        injected = alpha2 * a**2 * (process.sigma(t) ** 2 - process.sigma(u) ** 2)
        x = a / process.signal(t) * x - eta / process.noise(t) * p.eps + noise(injected)
        return x, history
