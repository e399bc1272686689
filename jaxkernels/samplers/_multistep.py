"""Linear multistep samplers in log-SNR."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._numerics import safe_divide
from ..prediction import Predict
from ..processes import AbstractProcess
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, X


class DPMSolverPP2M(AbstractSampler):
    """DPM-Solver++(2M): the denoiser extrapolated from this evaluation and the one before.

        x' = (s'/s) x + (a' - a s'/s) ( x0 + w (x0 - x0_before) ),     w = h / (2 h_before)

    with h = the step in log(a/s). Lu et al., "DPM-Solver++" (2022), Algorithm 2. One evaluation per step,
    order 2. The first step has no predecessor and w = 0 (order 1), and so has a step to sigma = 0, where
    h is infinite. `lower_order_final=True` sets w = 0 in the last step always, as diffusers'
    DPMSolverMultistepScheduler does by default below 15 steps; k-diffusion's `sample_dpmpp_2m` does not.
    """

    lower_order_final: bool = eqx.field(static=True, default=False)

    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    history_steps: ClassVar[int] = 1
    sigma_only: ClassVar[bool] = True

    def init_history(self, x: X) -> History:
        """The denoised point of the step before (unused in the first step)."""
        return jnp.zeros_like(x)

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
        p = predict(x, t)
        ratio = process.noise(u) / process.noise(t)
        extrapolated = p.x0 + self._weight(process, step) * (p.x0 - history)
        x = ratio * x + (process.signal(u) - process.signal(t) * ratio) * extrapolated
        return x, p.x0

    def _weight(self, process: AbstractProcess, step: Step) -> Array:
        t, u, before = step.time, step.next_time, step.previous_time
        usable = ~step.is_first & (process.noise(u) > 0) & (process.signal(before) > 0)
        if self.lower_order_final:
            usable = usable & ~step.is_last
        # values are replaced before dividing: an infinite or empty step must not reach derivatives
        now = process.log_snr(t)
        h = jnp.where(usable, process.log_snr(u) - now, 0.0)
        h_before = jnp.where(usable, now - process.log_snr(before), 1.0)
        return 0.5 * safe_divide(h, h_before)
