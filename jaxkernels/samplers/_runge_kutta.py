"""Explicit Runge-Kutta methods on the flow dx/dt = a'(t) x0 + s'(t) eps, in the process's time."""

import abc
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .. import _checks
from ..prediction import Predict, Prediction
from ..processes import AbstractProcess
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, Times, X

Velocity: TypeAlias = Callable[[Array, Array], Array]

FINAL_STEPS = ("euler", "full")


class AbstractRungeKutta(AbstractSampler):
    """A deterministic explicit method, with a choice for a last step that ends at sigma = 0.

    There the flow is 0/0 for a network. With `final="euler"` that step is an Euler step, as in
    Karras et al. (2022), Algorithm 1. With `final="full"` it is a step like all others: the flow at
    sigma = 0 is taken from the score there, a' x0 + s' eps - g^2/2 score, where s' counts as 0 if
    it is infinite.
    """

    final: eqx.AbstractVar[str]
    nodes: ClassVar[tuple[float, ...]]
    """Where in the step the velocity is evaluated, as fractions of it."""

    @abc.abstractmethod
    def advance(self, velocity: Velocity, first: Array, x: Array, t: Array, u: Array) -> Array:
        """Take one step by the method's full formula.

        **Arguments:**

        - `velocity`: dx/dt of the flow, as a function of (x, t).
        - `first`: the velocity at (x, t).
        - `x`: the point at time t.
        - `t`: start of the step.
        - `u`: end of the step, u <= t.

        **Returns:** x at time u.
        """

    def evaluation_times(self, process: Process, step: Step) -> tuple[Times, ...]:
        t = step.time
        u = step.next_time
        if self.final == "euler":
            # calls that are left out have their place at the start
            u = jnp.where(process.noise(u) > 0, u, t)
        return tuple(t - node * (t - u) for node in self.nodes)

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        del noise
        t = step.time
        u = step.next_time
        noisy = process.noise(u) > 0

        def velocity(x: Array, t: Array) -> Array:
            return _velocity(process, predict(x, t), t)

        def velocity_to_zero(x: Array, t: Array) -> Array:
            p = predict(x, t)
            if p.score is None:
                raise ValueError('final="full" needs predictions with a score.')
            flow = _velocity(process, p, t)
            clean = process.noise(t) == 0
            # a harmless time where the term is not needed, as g^2 may be infinite there
            squared = process.diffusion_squared(jnp.where(clean, t, u))
            return flow - jnp.where(clean, 0.5 * squared * p.score, 0.0)

        def euler(x: Array, first: Array) -> Array:
            return x - (t - u) * first

        def full(x: Array, first: Array) -> Array:
            # a harmless end point where the branch is not taken, so that no NaN enters derivatives
            return self.advance(velocity, first, x, t, jnp.where(noisy, u, t))

        first = velocity(x, t)
        if self.final == "full":
            return self.advance(velocity_to_zero, first, x, t, u), history
        # the evaluation that both need stands outside, so that the others are always the same calls
        return jax.lax.cond(noisy, full, euler, x, first), history


class Heun(AbstractRungeKutta):
    """Heun's method (the explicit trapezoid rule) on the probability flow.

        x' = x - dt/2 (v + v'),     v = a'(t) x0 + s'(t) eps,   v' the same at x - dt v and t'

    Two evaluations per step, order 2. With `EDM` time and `final="euler"` this is Algorithm 1 of
    Karras et al. without churn.

    **Arguments:**

    - `final`: the last step of a schedule that ends at sigma = 0: "euler" (one evaluation, at its
      start) or "full" (the trapezoid rule with the score at sigma = 0). The latter is defined for
      the exact score of a distribution with a density and for a network that predicts the score, or
      the flow of a process whose rates are finite at t = 0; elsewhere x becomes non-finite, which
      `jaxkernels.sample` and `jaxkernels.evaluate_schedule` report.

    **Raises:** ValueError for another `final`.

    **Example:**

    ```python
    >>> jk.Heun(final="full").final
    'full'
    ```

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), Algorithm 1, https://arxiv.org/abs/2206.00364.
    """

    final: str = eqx.field(static=True, default="euler")

    order: ClassVar[int] = 2
    nodes: ClassVar[tuple[float, ...]] = (0.0, 1.0)
    nfe_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _checks.one_of("final", self.final, FINAL_STEPS)

    def advance(self, velocity: Velocity, first: Array, x: Array, t: Array, u: Array) -> Array:
        dt = t - u
        second = velocity(x - dt * first, u)
        return x - 0.5 * dt * (first + second)


class RK4(AbstractRungeKutta):
    """The classical Runge-Kutta method on the probability flow.

        x' = x - dt/6 (v1 + 2 v2 + 2 v3 + v4)

    with the velocity v at the start, twice in the middle, and at the end. Four evaluations per
    step, order 4.

    **Arguments:**

    - `final`: the last step of a schedule that ends at sigma = 0: "euler" (one evaluation, at its
      start) or "full" (all four, with the score at sigma = 0), as in `Heun`.

    **Raises:** ValueError for another `final`.

    **Example:**

    ```python
    >>> jk.RK4().nfe_per_step
    4
    ```

    Source: Kutta, "Beitrag zur näherungsweisen Integration totaler Differentialgleichungen" (1901).
    """

    final: str = eqx.field(static=True, default="euler")

    order: ClassVar[int] = 4
    nodes: ClassVar[tuple[float, ...]] = (0.0, 0.5, 0.5, 1.0)
    nfe_per_step: ClassVar[int] = 4
    stochastic: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _checks.one_of("final", self.final, FINAL_STEPS)

    def advance(self, velocity: Velocity, first: Array, x: Array, t: Array, u: Array) -> Array:
        dt = t - u
        middle = 0.5 * (t + u)
        k2 = velocity(x - 0.5 * dt * first, middle)
        k3 = velocity(x - 0.5 * dt * k2, middle)
        k4 = velocity(x - dt * k3, u)
        return x - dt / 6.0 * (first + 2.0 * k2 + 2.0 * k3 + k4)


class Midpoint(AbstractSampler):
    """The explicit midpoint rule on the probability flow, in the process's time.

        x' = x - dt v_m,     v = a'(t) x0 + s'(t) eps,   v_m the same at x - dt/2 v and t - dt/2

    Two evaluations per step, order 2. It never evaluates the end of a step, so that a last step to
    sigma = 0 is one like all others. `DPM2` takes the middle in log(sigma).

    **Example:**

    ```python
    >>> jk.Midpoint().nfe_per_step
    2
    ```

    Source: Runge, "Über die numerische Auflösung von Differentialgleichungen" (1895).
    """

    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def evaluation_times(self, process: Process, step: Step) -> tuple[Times, ...]:
        t = jnp.asarray(step.time)
        return t, 0.5 * (t + step.next_time)

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        del noise
        t = step.time
        dt = t - step.next_time

        def velocity(x: Array, t: Array) -> Array:
            return _velocity(process, predict(x, t), t)

        return x - dt * velocity(x - 0.5 * dt * velocity(x, t), t - 0.5 * dt), history


def _velocity(process: AbstractProcess, p: Prediction, t: Array) -> Array:
    """dx/dt of the flow."""
    return process.signal_rate(t) * p.x0 + process.noise_rate(t) * p.eps
