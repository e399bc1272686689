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
from jaxtyping import Array, Bool, Float, Int

from .._numerics import safe_divide, safe_sqrt
from .._objective import AbstractObjective
from .._padding import bucket
from .._types import AnyArray, constant
from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess
from ..recurrence import End, Moments, PerMode, check_given_times
from ..samplers import AbstractSampler, as_sampler
from ..schedules import Schedule, Step
from ..score_error import AbstractCorrelation, FullyCorrelated
from ._bound import ErrorSize, as_error_size, check_signal, per_evaluation
from ._curvature_interval import AbstractCurvature, as_curvature
from ._lipschitz import Steps, check_one_evaluation
from ._padded import check_evaluations, pad_sizes
from ._stepwise import AbstractStepwiseBound, StepParts

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

    **Raises:** ValueError for a negative or misshapen `rms`; when optimised, for one that is 0
    without `to_data`, or a process without signal at t_max.

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
        del target
        check_signal(process)
        check_evaluations("rms", self.rms, process, sampler, num_steps)
        _check_any_error(self, ("rms",))
        times = np.zeros(sampler.nfe_per_step * num_steps)
        jax.eval_shape(self.correlation.matrix, process, times)


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

    **Raises:** ValueError for an option out of range; when optimised, as `OperatorBound`, or if the
    bound is infinite for every schedule to start from.

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
        del target
        for name in ("rms", "fresh_rms", "lipschitz"):
            check_evaluations(name, getattr(self, name), process, sampler, num_steps)
        check_signal(process)
        _check_any_error(self, ("rms", "fresh_rms"))


class BoundOperatorBound(AbstractStepwiseBound):
    """`OperatorBound` of a target in its eigenbasis, a process and a sampler."""

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    options: OperatorBound
    rounding: Float[AnyArray, ""] = dataclasses.field(default_factory=lambda: constant(_ROUNDING))

    def smoothed(self, factor: float) -> "BoundOperatorBound":
        return dataclasses.replace(self, rounding=constant(factor * np.asarray(self.rounding)))

    def padded(self, num_steps: int) -> "BoundOperatorBound":
        each = self.sampler.nfe_per_step
        size = each * bucket(num_steps)
        options = pad_sizes(self.options, ("rms",), size)
        correlation = self.options.correlation.padded(size)
        options = eqx.tree_at(lambda options: options.correlation, options, correlation)
        return dataclasses.replace(self, options=options)

    def parts(self, steps: Step) -> StepParts:
        maps = PerMode(self.target).response_maps(self.process, self.sampler, steps)
        times = self.sampler.evaluation_times(self.process, steps)
        return StepParts(jnp.stack(times)[..., None], maps)

    def total(
        self, numbers: Float[Array, "numbers steps"], end: End | None, num_steps: Int[Array, ""]
    ) -> Float[Array, ""]:
        assert end is not None
        times = numbers.T.reshape(-1)
        used = jnp.arange(times.size) < self.sampler.nfe_per_step * num_steps
        rms = per_evaluation("rms", self.options.rms, times)
        along_modes = end.responses.reshape(times.size, -1) * rms[:, None]
        sizes = _smooth_largest(self.target, along_modes, used, self.rounding)
        rho = jnp.abs(self.options.correlation.matrix(self.process, times))
        bound = safe_sqrt(sizes @ rho @ sizes)
        if not self.options.to_data:
            return bound
        return _with_distance(bound, self.target, end, self.rounding)


class BoundLipschitzBound(AbstractStepwiseBound):
    """`LipschitzBound` of a target in its eigenbasis, a process and a sampler."""

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    curvature: AbstractCurvature
    options: LipschitzBound
    rounding: Float[AnyArray, ""] = dataclasses.field(default_factory=lambda: constant(_ROUNDING))

    def smoothed(self, factor: float) -> "BoundLipschitzBound":
        return dataclasses.replace(self, rounding=constant(factor * np.asarray(self.rounding)))

    def why_infinite(self, schedule: Schedule) -> str:
        del schedule
        return f"The bound is infinite where nothing is known: {self.curvature.vacuous}."

    def padded(self, num_steps: int) -> "BoundLipschitzBound":
        sizes = ("rms", "fresh_rms", "lipschitz")
        options = pad_sizes(self.options, sizes, bucket(num_steps))
        return dataclasses.replace(self, options=options)

    def parts(self, steps: Step) -> StepParts:
        taken = Steps.of(self.process, self.sampler, steps)
        numbers = jnp.stack([taken.keep, taken.injection, taken.slope, taken.times])[..., None]
        if not self.options.to_data:
            return StepParts(numbers, None)
        modes = PerMode(self.target)
        return StepParts(numbers, modes.response_maps(self.process, self.sampler, steps))

    def total(
        self, numbers: Float[Array, "numbers steps"], end: End | None, num_steps: Int[Array, ""]
    ) -> Float[Array, ""]:
        options = self.options
        size = functools.partial(_smooth_size, rounding=self.rounding)
        keep, injection, slope, times = numbers
        steps = Steps(keep, injection, slope, times, self.process)
        accumulation = steps.accumulation(self.curvature, options.lipschitz, size)
        used = jnp.arange(numbers.shape[1]) < num_steps
        growth = jnp.where(used, accumulation.growth, 1.0)
        accumulation = dataclasses.replace(accumulation, growth=growth)
        bound = accumulation.mixed(options.rms, options.fresh_rms).value
        return bound if end is None else _with_distance(bound, self.target, end, self.rounding)


def _check_any_error(options: OperatorBound | LipschitzBound, sizes: tuple[str, ...]) -> None:
    """Raise a ValueError if errors have size 0, so that every schedule is as good as another."""
    given = [getattr(options, name) for name in sizes]
    if not options.to_data and not any(callable(size) or np.any(size) for size in given):
        raise ValueError(
            f"{' and '.join(sizes)} must not be 0: the bound is 0 for every schedule then; "
            "to_data=True adds the error of the steps."
        )


def _with_distance(
    bound: Float[Array, ""], target: Gaussian, end: End, rounding: Float[AnyArray, ""]
) -> Float[Array, ""]:
    """The bound and W2 between the data and the samples without score errors.

    W2 has a kink where it is 0, which multistep methods reach: it is rounded from above.
    """
    modes = PerMode(target)
    samples = Moments(end.mean, end.variance)
    square = modes.distance("w2_squared", samples, modes.data())
    widened = _DISTANCE_ROUNDING * jnp.sqrt(rounding / _ROUNDING)
    return bound + safe_sqrt(square + (widened * bound) ** 2)


def _smooth_size(
    x: Float[Array, " n"], scale: Float[Array, "*n"], rounding: Float[AnyArray, ""]
) -> Float[Array, " n"]:
    """An upper bound of |x| without its kink."""
    return safe_sqrt(x**2 + (rounding * scale) ** 2)


def _smooth_largest(
    target: Gaussian,
    along_modes: Float[Array, "n modes"],
    used: Bool[Array, " n"],
    rounding: Float[AnyArray, ""],
) -> Float[Array, " n"]:
    """An upper bound of the largest size among the modes of positive weight, smooth; or 0."""
    present = jnp.asarray(target.weights) > 0
    # a mean over the modes in which the large ones count, without a kink where they change places
    along_modes = jnp.where(used[:, None], along_modes, 0.0)
    mean = jnp.mean(along_modes**2, axis=0, where=used[:, None])
    square = jnp.where(present, mean, 0.0)
    scale = safe_sqrt(safe_divide(jnp.sum(square**2), jnp.sum(square)))
    width = jnp.where(scale > 0, rounding * scale, 1.0)
    either_sign = jnp.concatenate([along_modes, -along_modes], axis=1) / width
    present = jnp.tile(present, 2)
    largest = jax.scipy.special.logsumexp(either_sign, axis=1, where=present)
    return jnp.where(used & (scale > 0), width * largest, 0.0)
