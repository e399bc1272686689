"""A sampler whose only evaluation in a step is not at its start."""

from typing import ClassVar

import jax.numpy as jnp

from jaxkernels.samplers import AbstractSampler


class EndEvaluated(AbstractSampler):
    """Variance exploding, g^2 = 2: the score of the step's end, at the point of its start."""

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def evaluation_times(self, process, step):
        return (jnp.asarray(step.next_time),)

    def step(self, predict, noise, process, step, x, history):
        h = step.time - step.next_time
        score = -predict(x, step.next_time).eps / process.noise(step.next_time)
        gain = 1.0 + step.stochasticity_squared
        return x + gain * h * score + noise(2.0 * h * step.stochasticity_squared), history
