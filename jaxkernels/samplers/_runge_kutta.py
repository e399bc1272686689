"""Explicit Runge-Kutta methods on the flow dx/dt = a'(t) x0 + s'(t) eps, in the process's own time."""

import abc
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..prediction import Predict
from ..processes import AbstractProcess
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Times, X

Velocity: TypeAlias = Callable[[Array, Array], Array]


class AbstractRungeKutta(AbstractSampler):
    """A deterministic explicit method whose last step becomes an Euler step where it ends at sigma = 0.

    There the flow cannot be evaluated (eps is 0/0), as in Karras et al. (2022), Algorithm 1.
    """

    nodes: ClassVar[tuple[float, ...]]
    """Where in the step the velocity is evaluated, as fractions of it."""

    @abc.abstractmethod
    def advance(self, velocity: Velocity, first: Array, x: Array, t: Array, u: Array) -> Array:
        """x at u from x at t by the method's full formula, from the velocity `first` at (x, t)."""

    def evaluation_times(self, process: AbstractProcess, step: Step) -> tuple[Times, ...]:
        t, u = step.time, step.next_time
        dt = t - jnp.where(process.noise(u) > 0, u, t)
        return tuple(t - node * dt for node in self.nodes)

    def step(
        self,
        predict: Predict,
        noise: Noise,
        process: AbstractProcess,
        step: Step,
        x: X,
        history: History,
    ) -> tuple[X, History]:
        del noise
        t, u = step.time, step.next_time

        def velocity(x: Array, t: Array) -> Array:
            p = predict(x, t)
            return process.signal_rate(t) * p.x0 + process.noise_rate(t) * p.eps

        def euler(x: Array, first: Array) -> Array:
            return x - (t - u) * first

        def full(x: Array, first: Array) -> Array:
            # a harmless end point where the branch is not taken, so that no NaN enters derivatives
            return self.advance(velocity, first, x, t, jnp.where(process.noise(u) > 0, u, t))

        # the evaluation that both need stands outside, so that the others are always the same calls
        return jax.lax.cond(process.noise(u) > 0, full, euler, x, velocity(x, t)), history


class Heun(AbstractRungeKutta):
    """The explicit trapezoid rule. Two evaluations per step (one in a last step to sigma = 0), order 2.

    With `EDM` time this is Algorithm 1 of Karras et al. (2022) without churn.
    """

    order: ClassVar[int] = 2
    nodes: ClassVar[tuple[float, ...]] = (0.0, 1.0)
    nfe_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def advance(self, velocity: Velocity, first: Array, x: Array, t: Array, u: Array) -> Array:
        dt = t - u
        second = velocity(x - dt * first, u)
        return x - 0.5 * dt * (first + second)


class RK4(AbstractRungeKutta):
    """The classical Runge-Kutta method. Four evaluations per step (one if it ends at sigma = 0), order 4."""

    order: ClassVar[int] = 4
    nodes: ClassVar[tuple[float, ...]] = (0.0, 0.5, 0.5, 1.0)
    nfe_per_step: ClassVar[int] = 4
    stochastic: ClassVar[bool] = False

    def advance(self, velocity: Velocity, first: Array, x: Array, t: Array, u: Array) -> Array:
        dt, middle = t - u, 0.5 * (t + u)
        k2 = velocity(x - 0.5 * dt * first, middle)
        k3 = velocity(x - 0.5 * dt * k2, middle)
        k4 = velocity(x - dt * k3, u)
        return x - dt / 6.0 * (first + 2.0 * k2 + 2.0 * k3 + k4)
