"""A one-evaluation sampler with the score of the end of its step."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from .._numerics import safe_divide
from ..prediction import Predict, Prediction
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, Times, X


class EndEvaluated(AbstractSampler):
    """A one-evaluation sampler that takes the score from the end t' of its step, at the same x.

        x' = alpha x + beta (score at (x, t')) + noise

    with the coefficients of the sampler. First-order consistent as the sampler itself. At t' = 0
    the network is evaluated on data without noise, where only exact scores are defined.

    **Arguments:**

    - `sampler`: the sampler, such as `jk.ExponentialIntegrator()`, with one evaluation per step and
      no multistep history.

    **Raises:** ValueError for another sampler.

    **Example:**

    ```python
    >>> sampler = jk.samplers.EndEvaluated(jk.ExponentialIntegrator())
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), equations
    (3) and (4).
    """

    sampler: AbstractSampler
    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def __check_init__(self) -> None:
        name = type(self.sampler).__name__
        if not isinstance(self.sampler, AbstractSampler):
            raise ValueError(f"sampler must be a sampler such as jk.DDIM(); got {self.sampler!r}.")
        if self.sampler.nfe_per_step != 1 or jax.tree.leaves(
            self.sampler.init_history(jnp.ones(1))
        ):
            raise ValueError(f"sampler {name} must have one evaluation per step and no history.")
        if self.sampler.reverse_sde_only:
            raise ValueError(
                f"sampler {name} is of the reverse SDE alone; use jk.ExponentialIntegrator()."
            )
        if not self.sampler.stochastic:
            raise ValueError(f"sampler {name} must accept stochasticity; use jk.DDIM().")

    def evaluation_times(self, process: Process, step: Step) -> tuple[Times, ...]:
        del process
        return (jnp.asarray(step.next_time),)

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        def later(x: X, t: Times) -> Prediction:
            """The prediction at t that has the score of the step's end."""
            end = predict(x, step.next_time)
            score = end.score
            if score is None:
                score = -safe_divide(end.eps, process.noise(step.next_time))
            a = process.signal(t)
            unmoved = Prediction(x / a, jnp.zeros_like(x), jnp.zeros_like(x))
            return unmoved.with_score_error(score, a, process.noise(t))

        return self.sampler.step(later, noise, process, step, x, history)
