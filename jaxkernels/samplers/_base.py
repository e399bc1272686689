"""What a sampler is: one step, written once.

A step maps x at time t to x at the smaller time t'. It is written in terms of two functions that it
is given, and of nothing else that is random or learned:

    predict(x, t)    -> Prediction(x0, eps): a network, or the exact denoiser of a distribution
    noise(variance)  -> an independent Gaussian array of that variance

A randomised sampler also reads `step.uniform`, one number in (0, 1) for every sample and step. One
that needs the derivative of the denoiser differentiates `predict`.

Running a network, the exact affine map for an affine score, and every sensitivity are three
readings of that one definition: for sampling `noise` draws; for analysis it records the variance,
which keeps derivatives finite where the standard deviation would have an infinite slope, and an
average over the nodes of a quadrature stands for the uniform number.
"""

import abc
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..prediction import Predict, Prediction
from ..processes import AbstractProcess
from ..schedules import Step

Noise: TypeAlias = Callable[[Array], Array]
"""variance -> an independent Gaussian array of that variance, in the shape of x."""

Process: TypeAlias = AbstractProcess
X: TypeAlias = Float[Array, "..."]
History: TypeAlias = PyTree[Float[Array, "..."]]
Times: TypeAlias = Float[Array, "*steps"]


class AbstractSampler(eqx.Module):
    """A sampler of the reverse process, defined by one step.

    To add a sampler, subclass this class, state the class variables and write `step` (and
    `init_history` if it is a multistep method). The step must be built from elementwise operations
    with scalar coefficients, `predict` and its derivatives, and be affine in (x, history, noise)
    when `predict` is. Everything else (sampling with any network, moments, error budget,
    optimisation) follows from it.

    **Example:**

    ```python
    >>> class Euler(jk.AbstractSampler):
    ...     order, nfe_per_step, stochastic = 1, 1, False
    ...
    ...     def step(self, predict, noise, process, step, x, history):
    ...         t, dt = step.time, step.time - step.next_time
    ...         x0, eps = predict(x, t)
    ...         rate = process.signal_rate(t) * x0 + process.noise_rate(t) * eps
    ...         return x - dt * rate, history
    ```
    """

    order: ClassVar[int]
    """Power of 1/K with which the W2 distance to the exact distribution vanishes, without noise.

    That with noise for a sampler of the reverse SDE alone.
    For a multistep method, if its first steps, which have lower orders, are short enough.
    """
    nfe_per_step: ClassVar[int]
    """Network evaluations per step. Override `evaluation_times` too if there are several."""
    stochastic: ClassVar[bool]
    """Whether it accepts stochasticity > 0."""
    history_steps: ClassVar[int] = 0
    """Number of earlier times that a step depends on, through `history` or `earlier_times`."""
    marginal_preserving: ClassVar[bool] = False
    """Whether the injected noise makes the noise level of every time exact."""

    sigma_only: ClassVar[bool] = False
    """Whether its steps depend on the process through sigma alone, up to the scale of x."""
    reverse_sde_only: ClassVar[bool] = False
    """Whether it is defined for the reverse SDE alone, that is stochasticity 1 at every step."""
    randomised: ClassVar[bool] = False
    """Whether a step depends on `step.uniform`, which is drawn for every sample and step."""
    corrector_evaluations: ClassVar[int] = 0
    """Number of evaluations by which a step is corrected, see `correct`: that at its end, that at
    its start and earlier ones. 0 if steps are not corrected."""
    forms_jacobian: ClassVar[bool] = False
    """Whether a step forms the Jacobian of `predict`, and so takes one sample at a time."""

    @property
    def corrects(self) -> bool:
        """Whether the evaluation at x corrects the step that led there."""
        return self.corrector_evaluations > 0

    @property
    def per_sample(self) -> bool:
        """Whether every sample is run by itself, with random times or a Jacobian of its own."""
        return self.randomised or self.forms_jacobian

    @property
    def window_steps(self) -> int:
        """Number of earlier times that the local error of a step depends on.

        Where steps are corrected each evaluation is off the trajectory by the local error of the
        step that led there, which has a history of its own.
        """
        if not self.corrects:
            return self.history_steps
        return 2 * self.corrector_evaluations - 3

    def init_history(self, x: X) -> History:
        """Make the multistep history before the first step. Default: none.

        **Arguments:**

        - `x`: the initial noise, for its shape and precision.

        **Returns:** a tree of arrays, linear in x.
        """
        del x
        return ()

    def correct(
        self, prediction: Prediction, process: Process, step: Step, x: X, history: History
    ) -> X:
        """Correct x, to which the step before led, by the prediction there.

        A deterministic sampler that `corrects` does so at the start of its `step`, and goes on by
        `step_from_corrected`. Default: x.

        **Arguments:**

        - `prediction`: of x at `step.time`.
        - `process`, `step`, `x`, `history`: as for `step`.

        **Returns:** the corrected x, linear in x, the predictions and the history.
        """
        del prediction, process, step, history
        return x

    def step_from_corrected(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        """Advance x, which needs no correction, as `step` does otherwise.

        **Arguments:**

        - `predict`, `noise`, `process`, `step`, `x`, `history`: as for `step`.

        **Returns:** x and the history at `step.next_time`.
        """
        return self.step(predict, noise, process, step, x, history)

    def evaluation_times(self, process: Process, step: Step) -> tuple[Times, ...]:
        """State the times at which a step calls `predict`, in the order of its calls.

        Default: its start, once. A call that a step may leave out (the last of a step to sigma = 0)
        has its place here all the same, at a time where the network is defined. A product with the
        Jacobian of `predict` counts as a call of its own, at the same time.

        **Arguments:**

        - `process`: the forward process.
        - `step`: one step or all steps of a schedule.

        **Returns:** `nfe_per_step` arrays, each in the shape of `step.time`.
        """
        del process
        return (jnp.asarray(step.time),)

    @abc.abstractmethod
    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        """Advance x and the history from `step.time` to `step.next_time`.

        **Arguments:**

        - `predict`: the denoiser, (x, t) -> `Prediction`, with a scalar time.
        - `noise`: variance -> an independent Gaussian array of that variance, in the shape of x.
        - `process`: the forward process.
        - `step`: the times and the stochasticity of this step.
        - `x`: the point at `step.time`, of any shape.
        - `history`: what the step before returned, or `init_history(x)`.

        **Returns:** x and the history at `step.next_time`.
        """


def check_advanced(sampler: AbstractSampler, advanced: object) -> tuple[X, History]:
    """Check that a step of a sampler returned what it should.

    **Arguments:**

    - `sampler`: whose step it was.
    - `advanced`: what it returned.

    **Returns:** x and the history.

    **Raises:** ValueError for anything but two values.

    **Example:**

    ```python
    >>> jk.samplers.check_advanced(jk.DDIM(), (jnp.ones(2), ()))[1]
    ()
    ```
    """
    if not isinstance(advanced, tuple) or len(advanced) != 2:
        raise ValueError(
            f"{type(sampler).__name__}.step must return (x, history); it returned "
            f"{type(advanced).__name__}."
        )
    return advanced
