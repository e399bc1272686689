"""Randomised midpoint methods: the score at a random time of every step."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ..prediction import Predict
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, Times, X
from ._unit_diffusion import UnitDiffusion


class AbstractRandomisedMidpoint(AbstractSampler):
    """A sampler of the reverse SDE with a second score at a uniformly distributed time of the step.

    Every sample draws its own time in every step. One for the whole batch would be another sampler,
    whose samples are right only on average over batches.
    """

    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    reverse_sde_only: ClassVar[bool] = True
    randomised: ClassVar[bool] = True

    def evaluation_times(self, process: Process, step: Step) -> tuple[Times, ...]:
        t = jnp.asarray(step.time)
        return t, UnitDiffusion(process).between(t, step.next_time, self.fraction(step))

    def fraction(self, step: Step) -> Array:
        """Read the uniform number of a step.

        **Arguments:**

        - `step`: a step of a sample.

        **Returns:** the number, in (0, 1).

        **Raises:** ValueError for a step without it.
        """
        if step.uniform is None:
            raise ValueError(
                f"{type(self).__name__} evaluates the network at a random time of every step; only "
                "jk.sample and the exact moments of jk.evaluate_schedule and jk.TerminalError draw "
                "it, or average over it."
            )
        return step.uniform


class REM(AbstractRandomisedMidpoint):
    """Randomised midpoint Euler method for the reverse SDE (REM).

        y  = X + U h (r X + score(X, tau)) + n1
        X' = X + h (r y + score(y, tau - U h)) + n1 + n2

    with U uniform in (0, 1), n1 and n2 of variance U h and (1 - U) h. For variance-preserving
    processes X = x, tau = -2 log a, r = 1/2; for all others X = x/a, tau = sigma^2, r = 0; the step
    is h in tau. The mean over U of the drift is the integral of the score along the step, so that
    the distribution is of order 2 where that of `EulerMaruyama` is of order 1. Two evaluations per
    step; stochasticity must be 1.

    **Example:**

    ```python
    >>> schedule = jk.Schedule([1.0, 0.4, 0.1, 0.01], stochasticity=1.0)
    >>> jk.evaluate_schedule(jk.Gaussian(0.0, [2.0]), jk.VP(), jk.REM(), schedule).lower_bound
    True
    ```

    Source: Yu and Yu, "Advancing Wasserstein Convergence Analysis of Score-Based Models: Insights
    from Discretization and Second-Order Acceleration" (2025); Shen and Lee, "The Randomized
    Midpoint Method for Log-Concave Sampling" (2019), https://arxiv.org/abs/1909.05503.
    """

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        sde = UnitDiffusion(process)
        t = step.time
        u = step.next_time
        fraction = self.fraction(step)
        h = sde.time(t) - sde.time(u)
        first = noise(h * fraction)
        second = noise(h * (1.0 - fraction))

        def drift(x: X, t: Array) -> X:
            return sde.rate * x + sde.score(predict, x, t)

        x = x / sde.scale(t)
        y = x + h * fraction * drift(x, t) + first
        x = x + h * drift(y, sde.between(t, u, fraction)) + first + second
        return sde.scale(u) * x, history


class REI(AbstractRandomisedMidpoint):
    """Randomised midpoint method with an exact linear part for the reverse SDE (REI).

        y  = e^(r U h) X + w(U h) score(X, tau) + n1
        X' = e^(r h) X + h e^(r (1 - U) h) score(y, tau - U h) + e^(r (1 - U) h) n1 + n2

    with U uniform in (0, 1), w(v) = (e^(r v) - 1) / r, and n1 and n2 of variance (e^(2 r v) - 1) /
    (2 r) at v = U h and v = (1 - U) h. X, tau, h and r are those of `REM`, which it equals for
    r = 0, that is for processes that do not preserve variance. Two evaluations per step;
    stochasticity must be 1.

    **Example:**

    ```python
    >>> jk.REI().nfe_per_step
    2
    ```

    Source: as for `REM`. The correlation of the two published noise terms is that of n1 and n2.
    """

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        sde = UnitDiffusion(process)
        t = step.time
        u = step.next_time
        fraction = self.fraction(step)
        h = sde.time(t) - sde.time(u)
        before = h * fraction
        after = h * (1.0 - fraction)
        first = noise(sde.noise_variance(before))
        second = noise(sde.noise_variance(after))
        x = x / sde.scale(t)
        y = sde.growth(before) * x + sde.score_weight(before) * sde.score(predict, x, t) + first
        middle = sde.score(predict, y, sde.between(t, u, fraction))
        x = sde.growth(h) * x + sde.growth(after) * (h * middle + first) + second
        return sde.scale(u) * x, history
