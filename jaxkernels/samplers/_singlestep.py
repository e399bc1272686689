"""Samplers in sigma with two evaluations per step and no history."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .. import _checks
from .._numerics import power, smaller
from ..prediction import Predict, Prediction
from ..processes import AbstractProcess
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, Times, X
from ._ddim import level_ratio


class AbstractSinglestep(AbstractSampler):
    """A DDIM step to an intermediate time, and one to the end with both predictions.

        x_m = DDIM(x, v, t -> m),     x' = DDIM(x, (1 - 1/(2 r)) v + v_m / (2 r), t -> t')

    with v the part of a prediction that is frozen, and m the time at the fraction r of the step in
    log(sigma). A step from or to the end of that coordinate, sigma = infinity or 0, is a DDIM step.
    """

    r: eqx.AbstractVar[float]

    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False
    sigma_only: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _checks.scalar("r", self.r, above=0.0, at_most=1.0)

    @abc.abstractmethod
    def frozen(self, prediction: Prediction) -> Array:
        """Return the part of a prediction that a step freezes.

        **Arguments:**

        - `prediction`: at the start or at the intermediate time.

        **Returns:** an array in the shape of x.
        """

    @abc.abstractmethod
    def move(self, process: Process, x: X, value: X, t: Array, u: Array) -> X:
        """Move x from one time to another with the frozen part.

        **Arguments:**

        - `process`: the forward process.
        - `x`: the point at time t, where the signal is not 0.
        - `value`: the frozen part.
        - `t`, `u`: the two times.

        **Returns:** x at time u.
        """

    def evaluation_times(self, process: Process, step: Step) -> tuple[Times, ...]:
        t = jnp.asarray(step.time)
        u = jnp.asarray(step.next_time)
        full = _inside(process, t, u)
        # a call that is left out has its place at the start
        safe = _inner_time(process, *_safe_ends(process, t, u, full), self.r)
        return t, jnp.where(full, safe, t)

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        del noise
        t = step.time
        u = step.next_time
        full = _inside(process, t, u)
        p = predict(x, t)

        def two_evaluations(x: Array, p: Prediction) -> Array:
            start, end = _safe_ends(process, t, u, full)
            middle = _inner_time(process, start, end, self.r)
            first = self.frozen(p)
            second = self.frozen(predict(self.move(process, x, first, start, middle), middle))
            weight = 0.5 / self.r
            return self.move(process, x, (1.0 - weight) * first + weight * second, start, end)

        def ddim(x: Array, p: Prediction) -> Array:
            del x
            return _with_frozen(process, p, u)

        return jax.lax.cond(full, two_evaluations, ddim, x, p), history


def _with_frozen(process: AbstractProcess, p: Prediction, u: Array) -> Array:
    """x at time u with both parts of a prediction frozen, a step of DDIM."""
    return process.signal(u) * p.x0 + process.noise(u) * p.eps


def _inside(process: AbstractProcess, t: Array, u: Array) -> Array:
    """Whether both ends of a step have a finite log(sigma)."""
    return (process.signal(t) > 0) & (process.noise(u) > 0)


def _safe_ends(process: AbstractProcess, t: Array, u: Array, full: Array) -> tuple[Array, Array]:
    """The ends of a step, or twice the one where log(sigma) is finite, so that no NaN arises."""
    start = jnp.where(full | (process.signal(t) > 0), t, u)
    return start, jnp.where(full, u, start)


def _inner_time(process: AbstractProcess, t: Array, u: Array, r: float) -> Array:
    """The time at the fraction r of a step in log(sigma)."""
    return process.time_at_log_snr((1.0 - r) * process.log_snr(t) + r * process.log_snr(u))


class DPMSolverPP2S(AbstractSinglestep):
    """DPM-Solver++(2S): the denoised point from the start and from inside the step.

        x_m = (s_m/s) x + (a_m - a s_m/s) x0
        x'  = (s'/s) x + (a' - a s'/s) ((1 - 1/(2 r)) x0 + x0_m / (2 r))

    with m the time at the fraction r of the step in log(a/s). Two evaluations per step, order 2. A
    step to sigma = 0 returns x0, with one evaluation.

    **Arguments:**

    - `r`: in (0, 1]; 1/2 is the midpoint, 1 the trapezoid rule.

    **Raises:** ValueError for another r.

    **Example:**

    ```python
    >>> jk.DPMSolverPP2S().nfe_per_step
    2
    ```

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), Algorithm 1, https://arxiv.org/abs/2211.01095; k-diffusion,
    `sample_dpmpp_2s_ancestral` with eta = 0.
    """

    r: float = eqx.field(static=True, default=0.5)

    def frozen(self, prediction: Prediction) -> Array:
        return prediction.x0

    def move(self, process: Process, x: X, value: X, t: Array, u: Array) -> X:
        ratio = process.noise(u) / process.noise(t)
        return ratio * x + (process.signal(u) - process.signal(t) * ratio) * value


class DPM2(AbstractSinglestep):
    """DPM-Solver-2, or DPM2: the noise from the start and from inside the step.

        x_m / a_m = x / a + (sigma_m - sigma) eps
        x' / a'   = x / a + (sigma' - sigma) ((1 - 1/(2 r)) eps + eps_m / (2 r))

    with m the time at the fraction r of the step in log(sigma). Two evaluations per step, order 2.
    A step to sigma = 0 returns x0, with one evaluation.

    **Arguments:**

    - `r`: in (0, 1]; 1/2 is the midpoint, 1 is Heun's method in sigma.

    **Raises:** ValueError for another r.

    **Example:**

    ```python
    >>> jk.DPM2(r=1.0).order
    2
    ```

    Source: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
    Around 10 Steps" (2022), Algorithm 1, https://arxiv.org/abs/2206.00927; k-diffusion,
    `sample_dpm_2`.
    """

    r: float = eqx.field(static=True, default=0.5)

    def frozen(self, prediction: Prediction) -> Array:
        return prediction.eps

    def move(self, process: Process, x: X, value: X, t: Array, u: Array) -> X:
        change = process.sigma(u) - process.sigma(t)
        return process.signal(u) * (x / process.signal(t) + change * value)


class EDMSampler(AbstractSampler):
    """EDM's stochastic sampler: fresh noise raises the level, then a Heun step in sigma.

        x^     = (a^/a) x + a^ S_noise sqrt(sigma^^2 - sigma^2) z,    sigma^ = (1 + gamma) sigma
        x'/a'  = x^/a^ + (sigma' - sigma^) (eps^ + eps') / 2

    with eps^ the noise predicted at x^, and eps' that at the end of an Euler step. The churn gamma
    is set by the stochasticity alpha of the schedule, 1 + gamma = (sigma/sigma')^(alpha^2), so that
    the same share of the old noise is kept as in `DDIM`: `samplers.from_churn` converts what
    `samplers.edm_churn` gives for S_churn, S_min and S_max. Two evaluations per step, order 2. A
    step to sigma = 0 adds no noise and has one evaluation. The first levels may be raised above
    sigma(t_max).

    **Arguments:**

    - `s_noise`: S_noise > 0, a factor on the fresh noise.

    **Raises:** ValueError for another factor.

    **Example:**

    ```python
    >>> churn = jk.samplers.edm_churn(np.array([80.0, 10.0, 1.0, 0.0]), 0.75, s_min=5.0)
    >>> churn.round(3).tolist()
    [0.25, 0.25, 0.0]
    ```

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), Algorithm 2, https://arxiv.org/abs/2206.00364.
    """

    s_noise: float = eqx.field(static=True, default=1.0)

    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    sigma_only: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _checks.scalar("s_noise", self.s_noise, above=0.0)

    def evaluation_times(self, process: Process, step: Step) -> tuple[Times, ...]:
        raised = _raised_time(process, step)
        return raised, jnp.where(process.noise(step.next_time) > 0, step.next_time, raised)

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        u = step.next_time
        t = _raised_time(process, step)
        a = process.signal(t)
        before = process.signal(step.time)
        # from signal 0 all is noise already
        x = jnp.where(before > 0, a / jnp.where(before > 0, before, 1.0), 1.0) * x
        # the share that the level before holds, which is smooth in alpha^2 at 0
        added = 1.0 - 1.0 / _raise(process, step) ** 2
        x = x + noise((self.s_noise * process.noise(t)) ** 2 * added)
        p = predict(x, t)
        full = _inside(process, t, u)

        def heun(x: Array, p: Prediction) -> Array:
            end = jnp.where(full, u, t)
            change = 0.5 * process.signal(end) * (process.sigma(end) - process.sigma(t))
            euler = _with_frozen(process, p, end)
            return euler + change * (predict(euler, end).eps - p.eps)

        def ddim(x: Array, p: Prediction) -> Array:
            return _with_frozen(process, p, u)

        return jax.lax.cond(full, heun, ddim, x, p), history


def _raise(process: AbstractProcess, step: Step) -> Array:
    """1 + gamma = (sigma/sigma')^(alpha^2); 1 in a step from sigma = infinity or to 0."""
    t = jnp.asarray(step.time)
    u = jnp.asarray(step.next_time)
    kept = power(level_ratio(process, t, u), jnp.asarray(step.stochasticity_squared))
    full = _inside(process, t, u)
    return 1.0 / jnp.where(full, kept, 1.0)


def _raised_time(process: AbstractProcess, step: Step) -> Array:
    """The time of the raised level."""
    t = jnp.asarray(step.time)
    u = jnp.asarray(step.next_time)
    full = _inside(process, t, u)
    start = jnp.where(full, t, u)
    raised = process.time_at_sigma(_raise(process, step) * process.sigma(start))
    return jnp.where(full, raised, t)


def edm_churn(
    sigmas: Real[ArrayLike, " points"],
    s_churn: float,
    *,
    s_min: float = 0.0,
    s_max: float = float("inf"),
) -> Float[Array, " steps"]:
    """Compute EDM's churn per step.

        gamma = min(S_churn / K, sqrt(2) - 1) where S_min <= sigma <= S_max, else 0

    **Arguments:**

    - `sigmas`: (K+1,) levels of a schedule.
    - `s_churn`: S_churn >= 0.
    - `s_min`, `s_max`: the levels between which there is churn.

    **Returns:** gamma (K,), for `from_churn`; 0 in a step to sigma = 0.

    **Example:**

    ```python
    >>> jk.samplers.edm_churn(np.array([4.0, 1.0, 0.0]), 0.5).round(3).tolist()
    [0.25, 0.0]
    ```

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), Algorithm 2, https://arxiv.org/abs/2206.00364.
    """
    levels = jnp.asarray(sigmas)
    gamma = smaller(s_churn / (levels.shape[0] - 1), 2.0**0.5 - 1.0)
    churned = (levels[:-1] >= s_min) & (levels[:-1] <= s_max) & (levels[1:] > 0)
    return jnp.where(churned, gamma, 0.0)
