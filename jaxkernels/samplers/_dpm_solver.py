"""DPM-Solver++ and UniPC: the denoised point extrapolated in log(a/s)."""

from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .. import _checks
from .._numerics import smaller
from ..prediction import Predict, Prediction
from ..schedules import Step
from ._base import History, Noise, Process, X
from ._multistep import (
    AbstractMultistep,
    count_usable,
    divided_differences,
    exponential_moments,
    log_nodes,
    newton_integrals,
    usable_predictions,
)


class AbstractDataMultistep(AbstractMultistep):
    """Extrapolates the denoised point in l = log(a/s), with integrals of the form

        c int_0^h e^(-c (h - r)) polynomial(r) dr,        c = 1 + alpha^2

    with r the distance from the step's start in l, and h the step's length. A step to sigma = 0,
    where h is infinite, has order 1.
    """

    lower_order_final: eqx.AbstractVar[bool]

    def extrapolated(self, prediction: Prediction) -> Array:
        return prediction.x0

    def nodes(self, process: Process, step: Step, usable: Sequence[Array]) -> list[Array]:
        return log_nodes(process, step, usable)

    def step_order(self, process: Process, step: Step, known: Array) -> Array:
        order = known + 1
        if self.lower_order_final:
            order = smaller(order, (step.remaining + 1).astype(int))
        return jnp.where(process.noise(step.next_time) > 0, order, 1)


class DPMSolverPP2M(AbstractDataMultistep):
    """DPM-Solver++(2M) and its SDE form: the denoised point extrapolated from two evaluations.

        x' = (s'/s) q x + (a' - a q s'/s) (x0 + w (x0 - x0_before)) + s' sqrt(1 - q^2) z
        w = l / (2 l_before),        q = (sigma'/sigma)^(alpha^2)

    with l the step's length in log(a/s). With stochasticity this is DPM-Solver++(2M) SDE of eta =
    alpha^2, and the noise level is exact as in `DDIM`. One evaluation per step, order 2. The first
    step has no predecessor and w = 0 (order 1), and so has a step to sigma = 0, where l is
    infinite.

    **Arguments:**

    - `lower_order_final`: whether w = 0 in the last step always. DPMSolverMultistepScheduler of
      diffusers does so by default below 15 steps; k-diffusion's `sample_dpmpp_2m` does not.

    **Example:**

    ```python
    >>> jk.DPMSolverPP2M(lower_order_final=True).history_steps
    1
    ```

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), Algorithm 2, and equation (18) for the SDE, https://arxiv.org/abs/2211.01095;
    k-diffusion, `sample_dpmpp_2m_sde` with the midpoint rule.
    """

    lower_order_final: bool = eqx.field(static=True, default=False)

    order: ClassVar[int] = 2
    history_steps: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    marginal_preserving: ClassVar[bool] = True

    def integrals(self, process: Process, step: Step, nodes: Sequence[Array]) -> list[Array]:
        return [_midpoint(step, nodes[0])]


class DPMSolverPP3M(AbstractDataMultistep):
    """DPM-Solver++(3M) and its SDE form: the denoised point extrapolated from three evaluations.

        x' = (s'/s) q x + (a' - a q s'/s) x0 + a' (M_1 d_1 + (M_2 / 2 + l_before M_1) d_2)
             + s' sqrt(1 - q^2) z
        M_m = c int_0^l e^(-c (l - r)) r^m dr
        c = 1 + alpha^2,        q = (sigma'/sigma)^(alpha^2)

    with d_1 and d_2 the divided differences of x0 in log(a/s), and l and l_before the lengths there
    of this step and the one before. With stochasticity this is DPM-Solver++(3M) SDE of eta =
    alpha^2, and the noise level is exact as in `DDIM`. The integral of the parabola has M_2 where
    all implementations have M_2 / 2: the order is 2, not 3, with a smaller error than
    `DPMSolverPP2M`. One evaluation per step.

    **Arguments:**

    - `lower_order_final`: whether the last two steps have orders 2 and 1. diffusers'
      DPMSolverMultistepScheduler (solver_order=3, solver_type="heun") does so by default below 15
      steps; k-diffusion's `sample_dpmpp_3m_sde` does not.

    **Example:**

    ```python
    >>> jk.DPMSolverPP3M().history_steps
    2
    ```

    Source: k-diffusion, `sample_dpmpp_3m_sde`, https://github.com/crowsonkb/k-diffusion, after Lu
    et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"
    (2022), https://arxiv.org/abs/2211.01095.
    """

    lower_order_final: bool = eqx.field(static=True, default=False)

    order: ClassVar[int] = 2
    history_steps: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    marginal_preserving: ClassVar[bool] = True

    def integrals(self, process: Process, step: Step, nodes: Sequence[Array]) -> list[Array]:
        moments = _moments(step, nodes[0], 2)
        return newton_integrals([*moments[:2], 0.5 * moments[2]], nodes[1:])


class UniPC(AbstractDataMultistep):
    """UniPC: a multistep predictor, corrected at the next evaluation at no further cost.

        corrected x  = x + a sum_m C_m d_m
        x'           = (s'/s) (corrected x) + (a' - a s'/s) x0 + a' sum_m I_m d_m

    with d_m the divided differences of x0 in log(a/s). The prediction at x, which was predicted by
    the step before, belongs to the end of that step: its integral is taken again with it, and the
    difference of the two integrals is the correction. It needs x0 of this evaluation and of those
    before, and no other point, so that the state of the sampler is the predicted x. The end of the
    schedule is predicted, not corrected. One evaluation per step.

    The predictor alone has the given order. Orders below it, as in the first steps, are those of
    the implementation: of second order, the predictor is that of `DPMSolverPP2M`.

    The local error of a step, in `LocalError` and `RecordedError`, is that of its corrected point;
    of the last step, that of its predicted point. It counts that its evaluations are at predicted
    points, off the trajectory by the predictor's local error: after a short step, a long one
    multiplies what the evaluations at its ends are off by.

    **Arguments:**

    - `solver_order`: 2 or 3, the number of evaluations that the predictor takes into account. The
      corrector takes one more.
    - `lower_order_final`: whether the last steps have orders ..., 2, 1, as in diffusers by default.

    **Raises:** ValueError for another order.

    **Example:**

    ```python
    >>> jk.UniPC(solver_order=3).history_steps
    3
    ```

    Source: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
    Diffusion Models" (2023), Algorithms 1 and 2 with B_2(h) = e^h - 1 for the denoised point,
    https://arxiv.org/abs/2302.04867; diffusers, UniPCMultistepScheduler with solver_type="bh2".
    """

    solver_order: int = eqx.field(static=True, default=2)
    lower_order_final: bool = eqx.field(static=True, default=True)

    stochastic: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _checks.count("solver_order", self.solver_order, at_least=2, at_most=3)

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the corrector; of the last step, if that has order 1."""
        return 2 if self.lower_order_final else self.solver_order + 1

    @property
    def history_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of earlier evaluations: those of the predictor in the step before."""
        return self.solver_order

    @property
    def corrector_evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the predictor and that at the step's end."""
        return self.solver_order + 1

    def step_order(self, process: Process, step: Step, known: Array) -> Array:
        return smaller(super().step_order(process, step, known), self.solver_order)

    def integrals(self, process: Process, step: Step, nodes: Sequence[Array]) -> list[Array]:
        if self.solver_order == 2:
            return [_midpoint(step, nodes[0])]
        exact = newton_integrals(_moments(step, nodes[0], self.solver_order - 1), nodes[1:])
        known = count_usable(usable_predictions(process, step, self.history_steps))
        second = self.step_order(process, step, known) == 2
        return [jnp.where(second, _midpoint(step, nodes[0]), exact[0]), *exact[1:]]

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        found = predict(x, step.time)
        corrected = self.correct(found, process, step, x, history)
        # the same denoised point, and the noise from there to the corrected point
        eps = found.eps + (corrected - x) / process.noise(step.time)

        def predict_corrected(x: Array, t: Array) -> Prediction:
            del x, t
            return Prediction(found.x0, eps)

        run = (predict_corrected, noise, process, step, corrected, history)
        return self.step_from_corrected(*run)

    def step_from_corrected(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        return super().step(predict, noise, process, step, x, history)

    def correct(
        self, prediction: Prediction, process: Process, step: Step, x: X, history: History
    ) -> X:
        return x + self._correction(process, step, prediction.x0, history)

    def _correction(self, process: Process, step: Step, value: X, history: History) -> X:
        """Corrected x less x: the integral over the step before with `value`, less that without."""
        usable = usable_predictions(process, step, self.history_steps)
        nodes = log_nodes(process, step, usable)[1:]
        differences = divided_differences([value, *history], nodes)
        before = [jnp.where(known, node - nodes[0], 0.0) for known, node in zip(usable, nodes)][1:]
        slope = divided_differences(history[:2], before[:1])[1]
        exact = newton_integrals(_moments(step, -nodes[0], self.solver_order), before)
        midpoint = _midpoint(step, -nodes[0])
        order = self._order_before(step, usable)
        # the last term has the new value; up to second order, the others are not the predictor's
        correction = jnp.where(order == 1, midpoint, 0.0) * differences[1]
        correction = correction + jnp.where(order == 2, exact[0] - midpoint, 0.0) * slope
        for m in range(2, self.solver_order + 1):
            correction = correction + jnp.where(order == m, exact[m - 1], 0.0) * differences[m]
        return process.signal(step.time) * correction

    def _order_before(self, step: Step, usable: Sequence[Array]) -> Array:
        """Order of the predictor in the step before; 0 if there is none."""
        order = count_usable(usable)
        if self.lower_order_final:
            order = smaller(order, (step.remaining + 2).astype(int))
        return order


def _moments(step: Step, length: Array, highest: int) -> list[Array]:
    """c int_0^h e^(-c (h - r)) r^m dr for m = 0, ..., highest, with c = 1 + alpha^2."""
    rate = 1.0 + step.stochasticity_squared
    return [rate * moment for moment in exponential_moments(-rate, length, highest)]


def _midpoint(step: Step, length: Array) -> Array:
    """c int_0^h e^(-c (h - r)) r dr, with r replaced by h / 2."""
    return -0.5 * length * jnp.expm1(-(1.0 + step.stochasticity_squared) * length)
