"""Bounds on the effect of score errors as objectives of an optimisation.

A largest size among modes, and a size itself, have kinks on which an optimiser stalls. Objectives
take smooth upper bounds in their place, so that they remain bounds:

    max_m |G_m|  <=  w log sum_m 2 cosh(G_m / w),      |x|  <=  (x^2 + w^2)^(1/2)

with w a thousandth of their scale. The first adds at most w log(2 modes): signs that change and
modes that become equally large are rounded alike, where a high power of the sizes would be flat but
for a steep rise. W2 between data and samples, which is 0 for some schedules of multistep methods,
is rounded by 3 % of the bound that it is added to.
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._numerics import safe_divide, safe_sqrt
from .._objective import AbstractBoundObjective, AbstractObjective
from .._precision import to_float64
from .._types import AnyArray, constant
from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess
from ..recurrence import (
    AffineMaps,
    NamedInitialization,
    PerMode,
    Run,
    check_given_times,
    end_responses,
    evaluation_times,
)
from ..samplers import AbstractSampler, as_sampler
from ..schedules import BASELINES, Schedule
from ..score_error import AbstractCorrelation, FullyCorrelated
from ._bound import ErrorSize, as_error_size, per_evaluation
from ._curvature_interval import AbstractCurvature, as_curvature
from ._lipschitz import Steps, check_one_evaluation

_ROUNDING = 1e-3
# of W2, whose kink at 0 lies in a curved valley that Newton's method follows with short steps
_DISTANCE_ROUNDING = 3e-2


class OperatorBound(AbstractObjective):
    """The bound of `AccumulationOperators.correlated`, smooth, for a Gaussian and any sampler.

        (sum_ij |rho_ij| ||G_i|| ||G_j|| rms_i rms_j)^(1/2)

    It is at most a share of K^(1/2) log(2 modes) / 1000 above that, for K evaluations, and 3 % more
    with `to_data`. The score alone favours one long last step, whose own error it does not count:
    `to_data` adds that.

    **Arguments:**

    - `rms`: (E |e|^2)^(1/2) at an evaluation, along the run with errors: a number, (evaluations,)
      or a function of time, which follows the schedule; >= 0, in 1 / data.
    - `correlation`: of the errors in time. `FullyCorrelated()` (default) is the coherent bound,
      `Independent()` the orthogonal one.
    - `to_data`: add the exact W2 between the data and the samples without score errors, so that the
      sum bounds the distance to the data.

    **Raises:** ValueError for a negative or misshapen `rms`.

    **Example:**

    ```python
    >>> objective = jk.bounds.OperatorBound(lambda t: 0.01 / (0.1 + t), to_data=True)
    >>> bound = objective.bind(jk.Gaussian(0.0, [1.0]), jk.VP(), jk.DDIM())
    ```

    Source: as for `AccumulationOperators`.
    """

    rms: Any
    correlation: AbstractCorrelation
    to_data: bool = eqx.field(static=True)

    def __init__(
        self,
        rms: ErrorSize,
        correlation: AbstractCorrelation | None = None,
        to_data: bool = False,
    ):
        self.rms = as_error_size("rms", rms)
        self.correlation = FullyCorrelated() if correlation is None else correlation
        if not isinstance(self.correlation, AbstractCorrelation):
            raise ValueError(f"correlation must be one such as jk.AR1(0.5); got {correlation!r}.")
        self.to_data = to_data

    def check(self, sampler: AbstractSampler, deterministic: bool, fixed_end: bool) -> None:
        del deterministic, fixed_end
        check_given_times(sampler)

    def bind(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundOperatorBound":
        return BoundOperatorBound(target.in_eigenbasis(), process, as_sampler(sampler), self)

    def check_target(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, num_steps: int
    ) -> None:
        times = evaluation_times(process, sampler, _any_schedule(process, num_steps))
        per_evaluation("rms", self.rms, times)
        self.correlation.matrix(process, times)


class LipschitzBound(AbstractObjective):
    """The bound of `LipschitzAccumulation.mixed`, smooth, for a sampler with one evaluation.

    **Arguments:**

    - `rms`: of the Lipschitz part of errors along the run without errors: a number, (steps,) or a
      function of time, which follows the schedule; >= 0, in 1 / data.
    - `fresh_rms`: of the part that is new at every step, in the same form. Default: none.
    - `lipschitz`: the constants L, in the same form, in 1 / variance.
    - `curvature`: what is known of the data, such as `BoundedSupport(1.0)` or a mixture. Default:
      that of the Gaussian with their mean and covariance.
    - `to_data`: as for `OperatorBound`; for Gaussian data, without `curvature`.

    **Raises:** ValueError for an option out of range; before solving, for a curvature with which
    the bound is infinite.

    **Example:**

    ```python
    >>> objective = jk.bounds.LipschitzBound(0.01, lipschitz=0.1, to_data=True)
    >>> bound = objective.bind(jk.Gaussian(0.0, [1.0]), jk.VP(), jk.DDIM())
    ```

    Source: as for `LipschitzAccumulation`.
    """

    rms: Any
    fresh_rms: Any
    lipschitz: Any
    curvature: AbstractCurvature | None
    to_data: bool = eqx.field(static=True)

    def __init__(
        self,
        rms: ErrorSize,
        fresh_rms: ErrorSize = 0.0,
        lipschitz: ErrorSize = 0.0,
        curvature: AbstractCurvature | GaussianMixture | None = None,
        to_data: bool = False,
    ):
        if to_data and curvature is not None:
            raise ValueError(
                "to_data=True needs Gaussian data, whose samples are known without score errors; "
                "leave out curvature, or add a bound on the error of the steps yourself."
            )
        self.rms = as_error_size("rms", rms)
        self.fresh_rms = as_error_size("fresh_rms", fresh_rms)
        self.lipschitz = as_error_size("lipschitz", lipschitz)
        self.curvature = None if curvature is None else as_curvature(curvature)
        self.to_data = to_data

    def check(self, sampler: AbstractSampler, deterministic: bool, fixed_end: bool) -> None:
        del deterministic, fixed_end
        check_one_evaluation(sampler)

    def bind(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundLipschitzBound":
        curvature = as_curvature(target) if self.curvature is None else self.curvature
        return BoundLipschitzBound(
            target.in_eigenbasis(), process, as_sampler(sampler), curvature, self
        )

    def check_target(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, num_steps: int
    ) -> None:
        with jax.enable_x64(True):
            # copies, as JAX remembers the precision in which it first met an array of the caller's
            bound = to_float64(self.bind(target, process, sampler))
            value = float(bound.without_distance(_any_schedule(bound.process, num_steps)))
        if value == float("inf"):
            raise ValueError(
                f"the bound is infinite for every schedule: {bound.curvature.vacuous}."
            )


class BoundOperatorBound(AbstractBoundObjective):
    """`OperatorBound` of a target in its eigenbasis, a process and a sampler."""

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    options: OperatorBound
    rounding: Float[AnyArray, ""] = dataclasses.field(default_factory=lambda: constant(_ROUNDING))

    def smoothed(self, factor: float) -> "BoundOperatorBound":
        return dataclasses.replace(self, rounding=constant(factor * np.asarray(self.rounding)))

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        run = _run(self.target, self.process, self.sampler, schedule)
        times = run.evaluation_times()
        rms = per_evaluation("rms", self.options.rms, times)
        maps = run.response_maps()
        sizes = _smooth_largest(self.target, end_responses(maps) * rms[:, None], self.rounding)
        rho = jnp.abs(self.options.correlation.matrix(self.process, times))
        bound = safe_sqrt(sizes @ rho @ sizes)
        return _with_distance(bound, run, maps, self.rounding) if self.options.to_data else bound


class BoundLipschitzBound(AbstractBoundObjective):
    """`LipschitzBound` of a target in its eigenbasis, a process and a sampler."""

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    curvature: AbstractCurvature
    options: LipschitzBound
    rounding: Float[AnyArray, ""] = dataclasses.field(default_factory=lambda: constant(_ROUNDING))

    def smoothed(self, factor: float) -> "BoundLipschitzBound":
        return dataclasses.replace(self, rounding=constant(factor * np.asarray(self.rounding)))

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        bound = self.without_distance(schedule)
        if not self.options.to_data:
            return bound
        run = _run(self.target, self.process, self.sampler, schedule)
        return _with_distance(bound, run, run.affine_maps(), self.rounding)

    def without_distance(self, schedule: Schedule) -> Float[Array, ""]:
        """What score errors add."""
        options = self.options
        steps = Steps.of(self.process, self.sampler, schedule)
        size = functools.partial(_smooth_size, rounding=self.rounding)
        accumulation = steps.accumulation(self.curvature, options.lipschitz, size)
        return accumulation.mixed(options.rms, options.fresh_rms).value


def _run(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> Run:
    """The run from the process's own initialization."""
    return Run(target, process, sampler, schedule, NamedInitialization(process.initialization))


def _with_distance(
    bound: Float[Array, ""], run: Run, maps: AffineMaps, rounding: Float[AnyArray, ""]
) -> Float[Array, ""]:
    """The bound and W2 between the data and the samples without score errors.

    W2 has a kink where it is 0, which multistep methods reach: it is rounded from above.
    """
    modes = PerMode(run.target)
    samples = modes.propagate(maps, run.sampler, run.initial_moments()).last
    square = modes.distance("w2_squared", samples, modes.data())
    widened = _DISTANCE_ROUNDING * jnp.sqrt(rounding / _ROUNDING)
    return bound + safe_sqrt(square + (widened * bound) ** 2)


def _smooth_size(
    x: Float[Array, " n"], scale: Float[Array, "*n"], rounding: Float[AnyArray, ""]
) -> Float[Array, " n"]:
    """An upper bound of |x| without its kink."""
    return safe_sqrt(x**2 + (rounding * scale) ** 2)


def _smooth_largest(
    target: Gaussian, along_modes: Float[Array, "n modes"], rounding: Float[AnyArray, ""]
) -> Float[Array, " n"]:
    """An upper bound of the largest size among the modes of positive weight, smooth."""
    present = jnp.asarray(target.weights) > 0
    # a mean over the modes in which the large ones count, without a kink where they change places
    square = jnp.where(present, jnp.mean(along_modes**2, axis=0), 0.0)
    scale = safe_sqrt(safe_divide(jnp.sum(square**2), jnp.sum(square)))
    width = jnp.where(scale > 0, rounding * scale, 1.0)
    either_sign = jnp.concatenate([along_modes, -along_modes], axis=1) / width
    present = jnp.tile(present, 2)
    largest = jax.scipy.special.logsumexp(either_sign, axis=1, where=present)
    return jnp.where(scale > 0, width * largest, 0.0)


def _any_schedule(process: AbstractProcess, num_steps: int) -> Schedule:
    """A schedule of that length, far from the data."""
    return BASELINES["uniform"](process, num_steps, 0.5 * float(process.t_max))
