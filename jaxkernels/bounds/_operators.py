"""Bounds for score errors whose correlation in time is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics import safe_sqrt
from .._precision import in_float64
from .._types import Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import Run, end_responses
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AbstractCorrelation, GivenCorrelation
from ._bound import (
    COHERENT,
    AccumulationBound,
    ErrorSize,
    checked_run,
    largest_mode,
    per_evaluation,
)


class AccumulationOperators(eqx.Module):
    """The responses G_i = d x_end / d e_i per mode, and bounds for errors of known correlation.

    The methods take `rms`: (E |e_i|^2)^(1/2) of the whole error vector at every evaluation,
    (evaluations,), a number for all or a function of the array `times`, in the units of a score,
    1 / data. For errors that depend on x it is meant along the run with errors. A ValueError says
    if a shape is wrong or an entry negative.

    **Arguments:**

    - `signed`: (evaluations, modes), G_i in units of variance. Steps that overshoot make it
      negative.
    - `norms`: (evaluations,), its operator norm: the largest |G_i| among the modes of positive
      weight.
    - `times`: (evaluations,), in the order of the run, from noise to data.
    - `process`: the forward process.

    With steps counted from the data, S_a = eta_a prod_{n<a} A_n is G_{K-1-a}. The samplers of this
    library evaluate at the start of a step; a user-defined one may do so at its end
    (`evaluation_times`).

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> operators = jk.bounds.accumulation_operators(*run)
    >>> assert operators.orthogonal(0.1).value < operators.coherent(0.1).value
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), Theorem
    3.1, with scores of the step's end.
    """

    signed: Float[Array, "evaluations modes"]
    norms: Float[Array, " evaluations"]
    times: Float[Array, " evaluations"]
    process: AbstractProcess

    @classmethod
    def of(cls, run: Run) -> "AccumulationOperators":
        """Compute the operators of a run by one reverse pass through its recurrence.

        **Arguments:**

        - `run`: a run whose responses to score errors are finite.

        **Returns:** the operators.

        **Example:**

        ```python
        >>> from jaxkernels.recurrence import Run
        >>> run = Run.checked(jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.1]))
        >>> operators = jk.bounds.AccumulationOperators.of(run)
        ```
        """
        signed = _responses(run)
        return cls(signed, largest_mode(run.target, signed), run.evaluation_times(), run.process)

    @in_float64
    def coherent(self, rms: ErrorSize) -> AccumulationBound:
        """Bound W2 whatever the dependence of the errors.

            W2 <= sum_i ||G_i|| rms_i,

        attained by errors that add up in one mode.

        **Arguments:**

        - `rms`: (evaluations,), a number or a function of time, >= 0, in 1 / data.

        **Returns:** the bound, in the units of the data.

        **Raises:** ValueError for a wrong shape or a negative entry.

        **Example:**

        ```python
        >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
        >>> bound = jk.bounds.accumulation_operators(*run).coherent(0.1)
        ```
        """
        return AccumulationBound(jnp.sum(self._sizes(rms)), COHERENT)

    @in_float64
    def orthogonal(self, rms: ErrorSize) -> AccumulationBound:
        """Bound W2 for errors with E e_i^T G_i G_j e_j = 0 for i != j.

            W2^2 <= sum_i ||G_i||^2 rms_i^2

        Errors that do not depend on x, are independent in time and have mean 0 are such. A constant
        error is not: it can exceed this number by a factor of the order of sqrt(K).

        **Arguments:**

        - `rms`: (evaluations,), a number or a function of time, >= 0, in 1 / data.

        **Returns:** the bound, in the units of the data.

        **Raises:** ValueError for a wrong shape or a negative entry.

        **Example:**

        ```python
        >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
        >>> bound = jk.bounds.accumulation_operators(*run).orthogonal(0.1)
        ```
        """
        value = safe_sqrt(jnp.sum(self._sizes(rms) ** 2))
        return AccumulationBound(value, "errors of different evaluations are uncorrelated")

    @in_float64
    def correlated(
        self, rms: ErrorSize, correlation: AbstractCorrelation | Numbers
    ) -> AccumulationBound:
        """Bound W2 for errors of known correlation, between the other two bounds.

            W2^2 <= sum_ij |rho_ij| ||G_i|| ||G_j|| rms_i rms_j

        **Arguments:**

        - `rms`: (evaluations,), a number or a function of time, >= 0, in 1 / data.
        - `correlation`: a model of `jk.score_error`, or a matrix (evaluations, evaluations). In
          every mode m it must be at least the correlation of the errors, |E e_im e_jm| <= |rho_ij|
          (E e_im^2 E e_jm^2)^(1/2), means included. A negative correlation counts by its size,
          because the G_i can have either sign.

        **Returns:** the bound, in the units of the data.

        **Raises:** ValueError for a wrong shape, a negative entry, or a matrix that is no
        correlation.

        **Example:**

        ```python
        >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
        >>> bound = jk.bounds.accumulation_operators(*run).correlated(0.1, jk.AR1(0.9))
        ```
        """
        if not isinstance(correlation, AbstractCorrelation):
            correlation = GivenCorrelation(correlation)
        sizes = self._sizes(rms)
        rho = jnp.abs(correlation.matrix(self.process, jnp.asarray(self.times)))
        value = safe_sqrt(sizes @ rho @ sizes)
        return AccumulationBound(
            value, "in every mode errors are correlated in time by at most |correlation|"
        )

    def _sizes(self, rms: ErrorSize) -> Float[Array, " evaluations"]:
        """The most that every evaluation can contribute."""
        return self.norms * per_evaluation("rms", rms, self.times)


@in_float64
def accumulation_operators(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str, schedule: Schedule
) -> AccumulationOperators:
    """Compute G_i = d x_end / d e_i of every evaluation and mode, for any sampler.

    **Arguments:**

    - `target`, `process`, `sampler`, `schedule`: as for `jk.evaluate_schedule`; the target not
      compressed.

    **Returns:** the operators, and the bounds that follow from them.

    **Raises:** ValueError as `jk.error_kernel` does, and for a compressed target.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "heun", jk.Schedule([1.0, 0.3, 0.01]))
    >>> jk.bounds.accumulation_operators(*run).signed.shape
    (4, 1)
    ```

    Source: as for `AccumulationOperators`.
    """
    return AccumulationOperators.of(checked_run(target, process, sampler, schedule))


@jax.jit
def _responses(run: Run) -> Float[Array, "evaluations modes"]:
    """The derivative of the end in a shift of the score at every evaluation, per mode."""
    return end_responses(run.response_maps())
