"""What a sampler is: one step, written once.

A step maps x at time t to x at the smaller time t'. It is written in terms of two functions that it is
given, and of nothing else that is random or learned:

    predict(x, t)    -> Prediction(x0, eps): the network, or the exact law of a target
    noise(variance)  -> an independent normal array of that variance

Running a network, the exact affine map for an affine score, and every sensitivity are three readings of
that one definition: for sampling `noise` draws; for analysis it notes the variance, which keeps
derivatives finite where the standard deviation would have an infinite slope.

To add a sampler, subclass `AbstractSampler`, state the class variables and write `step` (and `memory`
if it is multistep). It must be built from elementwise operations with scalar coefficients, and be affine
in (x, memory, noise) when `predict` is. Everything else (moments, error budget, optimisation) follows:

    class Euler(jk.AbstractSampler):
        order = 1
        evaluations = 1
        stochastic = False

        def step(self, predict, noise, process, interval, x, memory):
            p = predict(x, interval.time)
            dt = interval.time - interval.next_time
            rate = process.signal_rate(interval.time) * p.x0 + process.noise_rate(interval.time) * p.eps
            return x - dt * rate, memory
"""

import abc
from collections.abc import Callable
from typing import ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..prediction import Predictor
from ..process import AbstractProcess

Noise: TypeAlias = Callable[[Array], Array]


class Interval(NamedTuple):
    """One step of a schedule, or all of them when the fields are arrays over steps."""

    time: Float[Array, "*steps"]
    next_time: Float[Array, "*steps"]
    previous_time: Float[Array, "*steps"]
    """Start of the step before; equal to `time` in the first step."""
    stochasticity_squared: Float[Array, "*steps"]
    """alpha^2 = (h / g)^2 of this step: the quantity every formula is smooth in, also at 0."""
    is_first: Bool[Array, "*steps"]
    is_last: Bool[Array, "*steps"]


class AbstractSampler(eqx.Module):
    """A sampler of the reverse process. See the module's text for how to write one."""

    order: ClassVar[int]
    """Power of 1/K with which the W2 distance to the exact law vanishes at stochasticity 0."""
    evaluations: ClassVar[int]
    """Network evaluations per step. Override `evaluation_times` too if there are several."""
    stochastic: ClassVar[bool]
    """Whether it has a use for stochasticity > 0."""
    memory_steps: ClassVar[int] = 0
    """How many earlier grid times a step depends on, through `memory` or `previous_time`."""
    level_exact: ClassVar[bool] = False
    """Whether it injects noise so that every grid time's noise level is met exactly."""

    def memory(self, x: Float[Array, "..."]) -> PyTree[Float[Array, "..."]]:
        """What is carried between steps besides x, before the first step. Default: nothing."""
        del x
        return ()

    def evaluation_times(self, process: AbstractProcess, interval: Interval) -> tuple[Float[Array, "*steps"], ...]:
        """The times at which a step calls `predict`, in the order of its calls. Default: its start, once.

        A call that a step may leave out (the last of a step to sigma = 0) has its place here all the same,
        at a time where the network is defined.
        """
        del process
        return (jnp.asarray(interval.time),)

    @abc.abstractmethod
    def step(
        self,
        predict: Predictor,
        noise: Noise,
        process: AbstractProcess,
        interval: Interval,
        x: Float[Array, "..."],
        memory: PyTree[Float[Array, "..."]],
    ) -> tuple[Float[Array, "..."], PyTree[Float[Array, "..."]]]:
        """x and memory at `interval.next_time` from those at `interval.time`."""
