"""Linear multistep samplers in log-SNR."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._numerics import safe_divide
from ..prediction import Predict
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, X


class DPMSolverPP2M(AbstractSampler):
    """DPM-Solver++(2M): the denoiser extrapolated from this evaluation and the one before.

        x' = (s'/s) x + (a' - a s'/s) ( x0 + w (x0 - x0_before) ),     w = l / (2 l_before)

    with l the step's length in log(a/s). One evaluation per step, order 2. The first step has no
    predecessor and w = 0 (order 1), and so has a step to sigma = 0, where l is infinite.

    **Arguments:**

    - `lower_order_final`: whether w = 0 in the last step always. diffusers'
      DPMSolverMultistepScheduler
      does so by default below 15 steps; k-diffusion's `sample_dpmpp_2m` does not.

    **Example:**

    ```python
    >>> jk.DPMSolverPP2M(lower_order_final=True).history_steps
    1
    ```

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), Algorithm 2, https://arxiv.org/abs/2211.01095.
    """

    lower_order_final: bool = eqx.field(static=True, default=False)

    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    history_steps: ClassVar[int] = 1
    sigma_only: ClassVar[bool] = True

    def init_history(self, x: X) -> History:
        # in place of the denoised point of the step before the first
        return jnp.zeros_like(x)

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        del noise
        t = step.time
        u = step.next_time
        p = predict(x, t)
        ratio = process.noise(u) / process.noise(t)
        extrapolated = p.x0 + self._weight(process, step) * (p.x0 - history)
        x = ratio * x + (process.signal(u) - process.signal(t) * ratio) * extrapolated
        return x, p.x0

    def _weight(self, process: Process, step: Step) -> Array:
        """w of the formula above."""
        t = step.time
        u = step.next_time
        before = step.previous_time
        usable = ~step.is_first & (process.noise(u) > 0) & (process.signal(before) > 0)
        if self.lower_order_final:
            usable = usable & ~step.is_last
        # values are replaced before dividing: an infinite or empty step must not reach derivatives
        now = process.log_snr(t)
        length = jnp.where(usable, process.log_snr(u) - now, 0.0)
        length_before = jnp.where(usable, now - process.log_snr(before), 1.0)
        return 0.5 * safe_divide(length, length_before)
