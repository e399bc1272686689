"""Adams-Bashforth methods: the predicted noise extrapolated and integrated over sigma."""

import abc
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .. import _checks
from ..prediction import Prediction
from ..schedules import Step
from ._base import Process
from ._multistep import (
    AbstractMultistep,
    exponential_moments,
    log_nodes,
    newton_integrals,
)

MOST_EVALUATIONS = 4


class AbstractAdamsBashforth(AbstractMultistep):
    """Extrapolates the predicted noise from `solver_order` evaluations, with integrals of the form

        int_sigma^sigma' polynomial dsigma

    in a coordinate of which the polynomial is one.
    """

    solver_order: eqx.AbstractVar[int]

    stochastic: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _checks.count("solver_order", self.solver_order, at_most=MOST_EVALUATIONS)

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the polynomial and one more."""
        return self.solver_order

    @property
    def history_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of earlier evaluations."""
        return self.solver_order - 1

    def extrapolated(self, prediction: Prediction) -> Array:
        return prediction.eps

    def integrals(self, process: Process, step: Step, nodes: Sequence[Array]) -> list[Array]:
        return newton_integrals(self.moments(process, step, nodes[0]), nodes[1:])

    @abc.abstractmethod
    def moments(self, process: Process, step: Step, length: Array) -> list[Array]:
        """Integrate powers of the distance from the step's start over sigma.

        **Arguments:**

        - `process`: the forward process.
        - `step`: the step.
        - `length`: the step's length in the coordinate.

        **Returns:** the integrals of powers 0, ..., `solver_order` - 1, in units of sigma.
        """


class LMS(AbstractAdamsBashforth):
    """Linear multistep method (LMS): the noise a polynomial of sigma.

        x'/a' = x/a + int_sigma^sigma' eps(sigma) dsigma

    with eps the polynomial through this evaluation and those before, `solver_order` in all. It is
    the Adams-Bashforth method of variable steps on dx/dsigma = eps. The first steps have orders 1,
    2, ..., so that the error of K even steps falls as 1/K^2 in the end, and as 1/K^order if the
    first ones are short. One evaluation per step.

    **Arguments:**

    - `solver_order`: 1 to 4, the number of evaluations.

    **Raises:** ValueError for another order.

    **Example:**

    ```python
    >>> jk.LMS(3).history_steps
    2
    ```

    Source: k-diffusion, `sample_lms`, https://github.com/crowsonkb/k-diffusion; Zhang and Chen,
    "Fast Sampling of Diffusion Models with Exponential Integrator" (2023), rho-AB-DEIS,
    https://arxiv.org/abs/2204.13902; Bashforth and Adams, "An Attempt to Test the Theories of
    Capillary Action" (1883).
    """

    solver_order: int = eqx.field(static=True, default=4)

    def nodes(self, process: Process, step: Step, usable: Sequence[Array]) -> list[Array]:
        # a sigma that is infinite or of no evaluation is replaced before it is used
        finite = process.signal(step.time) > 0
        start = process.sigma(jnp.where(finite, step.time, step.next_time))
        earlier = [
            process.sigma(jnp.where(known, step.earlier_times[j], step.time)) - start
            for j, known in enumerate(usable)
        ]
        earlier = [jnp.where(known, node, 0.0) for known, node in zip(usable, earlier, strict=True)]
        return [process.sigma(step.next_time) - start, *earlier]

    def moments(self, process: Process, step: Step, length: Array) -> list[Array]:
        return [length**n / n for n in range(1, self.solver_order + 1)]


class DEIS(AbstractAdamsBashforth):
    """DEIS: the noise a polynomial of log(sigma), its integral over sigma exact.

        x'/a' = x/a + int_sigma^sigma' eps(log sigma) dsigma

    with eps the polynomial through this evaluation and those before, `solver_order` in all. The
    first steps have orders 1, 2, ..., so that the error of K even steps falls as 1/K^2 in the end,
    and as 1/K^order if the first ones are short; a step to sigma = 0, where the logarithm is
    infinite, has order 1. One evaluation per step.

    **Arguments:**

    - `solver_order`: 1 to 4, the number of evaluations.

    **Raises:** ValueError for another order.

    **Example:**

    ```python
    >>> jk.DEIS(2).order
    2
    ```

    Source: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (2023),
    equation (15), https://arxiv.org/abs/2204.13902; diffusers, DEISMultistepScheduler with
    solver_type="logrho".
    """

    solver_order: int = eqx.field(static=True, default=3)

    def nodes(self, process: Process, step: Step, usable: Sequence[Array]) -> list[Array]:
        return log_nodes(process, step, usable)

    def step_order(self, process: Process, step: Step, known: Array) -> Array:
        return jnp.where(process.noise(step.next_time) > 0, known + 1, 1)

    def moments(self, process: Process, step: Step, length: Array) -> list[Array]:
        # sigma falls as e^(-r)
        end = process.sigma(step.next_time)
        return [-end * moment for moment in exponential_moments(1.0, length, self.solver_order - 1)]


class IPNDM(AbstractAdamsBashforth):
    """iPNDM: the noise extrapolated as if all steps were equally long in sigma.

        x' = a' x0 + s' eps + a' (sigma' - sigma) (1/2 d_1 + 5/12 d_2 + 3/8 d_3)

    with d_m the backward differences eps - eps_before, ... The coefficients are those of Adams and
    Bashforth, 55/24, -59/24, 37/24 and -9/24. Where steps are unequal the order is 2 at most. The
    first steps have orders 1, 2, ... One evaluation per step.

    **Arguments:**

    - `solver_order`: 1 to 4, the number of evaluations.

    **Raises:** ValueError for another order.

    **Example:**

    ```python
    >>> jk.IPNDM().history_steps
    3
    ```

    Source: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (2023),
    https://arxiv.org/abs/2204.13902, after Liu et al., "Pseudo Numerical Methods for Diffusion
    Models on Manifolds" (2022), https://arxiv.org/abs/2202.09778; diffusers, IPNDMScheduler.
    """

    solver_order: int = eqx.field(static=True, default=4)

    @property
    def order(self) -> int:
        """At most 2, as steps are not equally long."""
        return min(self.solver_order, 2)

    def nodes(self, process: Process, step: Step, usable: Sequence[Array]) -> list[Array]:
        # in steps
        one = jnp.ones_like(step.time)
        return [one, *(-(1.0 + j) * one for j in range(len(usable)))]

    def moments(self, process: Process, step: Step, length: Array) -> list[Array]:
        finite = process.signal(step.time) > 0
        start = process.sigma(jnp.where(finite, step.time, step.next_time))
        change = process.sigma(step.next_time) - start
        return [change * length**n / n for n in range(1, self.solver_order + 1)]
