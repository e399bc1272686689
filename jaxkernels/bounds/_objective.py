"""Certified bounds as objectives of an optimisation."""

import dataclasses
from typing import cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._objective import AbstractBoundObjective, AbstractObjective
from .._padding import bucket, pad_last
from .._precision import is_traced
from .._types import AnyArray, Numbers, constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, sampler_name
from ..schedules import Schedule, TimeCoordinate
from ._assumptions import Assumptions, third_derivative
from ._bound import ErrorSize, as_error_size, check_signal, check_sizes, per_evaluation
from ._certified import (
    bound_value,
    check_initial,
    explain,
    known_of,
    required_stochasticity,
    scheme_name,
    step_errors,
)
from ._girsanov import evaluate_girsanov, explain_girsanov, girsanov_scheme
from ._recursion import Certificate, CertifiedRecursion


class CertifiedError(AbstractObjective):
    """A certified bound on the error of sampling, for `optimize_schedule`.

    The optimum is the schedule with the best guarantee for all data with the same constants, which
    need not be the best schedule for any of them. Score errors follow the schedule as it moves.
    Kinks of the bound, on which an optimiser stalls, are rounded within a thousandth of their
    scale: |alpha^2 - 1| of "ddim", and where the largest of two values changes. There the objective
    lies above the bound, which can add up to percents over many steps.

    **Arguments:**

    - `metric`: "w2" (`certified_bound`) or "kl" (`girsanov_bound`).
    - `assumptions`: `Assumptions` on the data. Default: those of a Gaussian with the target's mean
      and covariance, exact if the target is one and no certificate for other data.
    - `scheme`: a name of `certified_bound`; by default the sampler. Those that step by the reverse
      SDE need `stochasticity=1`, "euler_flow" and "heun" none.
    - `score_error`, `error_lipschitz`, `initialization`: as for the bound of the metric; the
      Lipschitz constant and a distance as initialization for "w2" only.

    **Raises:** ValueError for an option out of range; when bound, as the bound does.

    **Example:**

    ```python
    >>> objective = jk.bounds.CertifiedError(score_error=0.1)
    >>> bound = objective.bind(jk.Gaussian(0.0, [0.5]), jk.OU(), jk.ExponentialIntegrator())
    >>> bool(bound(jk.Schedule([3.0, 1.0, 0.3, 0.0], 1.0)) > 0)
    True
    ```
    """

    metric: str = eqx.field(static=True)
    assumptions: Assumptions | None
    scheme: str | None = eqx.field(static=True)
    score_error: ErrorSize
    error_lipschitz: Numbers
    initialization: AnyArray | str | None

    def __init__(
        self,
        metric: str = "w2",
        assumptions: Assumptions | None = None,
        scheme: str | None = None,
        score_error: ErrorSize = 0.0,
        error_lipschitz: Numbers = 0.0,
        initialization: str | Numbers | None = None,
    ):
        self.metric = _checks.one_of("metric", metric, ("w2", "kl"))
        if not isinstance(assumptions, Assumptions | None):
            raise ValueError(f"assumptions must be Assumptions; got {type(assumptions).__name__}.")
        named = initialization is None or isinstance(initialization, str)
        if metric == "kl" and not named:
            raise ValueError(f"initialization = {initialization!r} must be a name for 'kl'.")
        lipschitz = check_sizes("error_lipschitz", error_lipschitz)
        if metric == "kl" and not is_traced(lipschitz) and lipschitz.any():
            raise ValueError("error_lipschitz is for the metric 'w2' only.")
        self.assumptions = assumptions
        self.scheme = scheme
        self.score_error = as_error_size("score_error", score_error)
        self.error_lipschitz = lipschitz
        self.initialization = cast(AnyArray | str | None, initialization)

    def bind(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundCertifiedError":
        known = known_of(self.assumptions or target, process)
        which = scheme_name if self.metric == "w2" else girsanov_scheme
        scheme = which(sampler if self.scheme is None else self.scheme, process)
        start = check_initial(process, self.initialization)
        named = isinstance(start, str)
        certificate = Certificate(
            known,
            self.metric,
            scheme,
            self.score_error,
            self.error_lipschitz,
            start if named else "",
            None if named else start,
        )
        return BoundCertifiedError(certificate)

    def check_target(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, num_steps: int
    ) -> None:
        del target, sampler, num_steps
        check_signal(process)

    def check(self, sampler: AbstractSampler, deterministic: bool, fixed_end: bool) -> None:
        del fixed_end
        name = self.scheme or sampler_name(sampler)
        required = 1.0 if self.metric == "kl" else required_stochasticity(name)
        if required is not None and deterministic != (required == 0.0):
            raise ValueError(
                f"stochasticity must be {required:g} for the certified {self.metric!r} bound of "
                f"{name!r}."
            )


class BoundCertifiedError(AbstractBoundObjective):
    """`CertifiedError` of known constants, a process and a scheme."""

    certificate: Certificate
    only_times: bool = eqx.field(static=True, default=False)
    """Whether it is not differentiated along the stochasticity."""

    def why_infinite(self, schedule: Schedule) -> str:
        given = self.certificate
        if given.metric == "kl":
            run = (given.known, schedule, given.scheme, given.initialization)
            bound = evaluate_girsanov(*run, given.score_error)
            return f"For the bound: {explain_girsanov(bound, given.known, given.scheme)}."
        errors = step_errors(schedule, given.score_error, given.error_lipschitz)
        return f"For the bound: {explain(given.known, given.scheme, schedule, errors)}."

    def smoothed(self, factor: float) -> "BoundCertifiedError | None":
        certificate = self.certificate.smoothed(factor)
        return None if certificate is None else dataclasses.replace(self, certificate=certificate)

    def at_fixed_stochasticity(self) -> "BoundCertifiedError":
        return dataclasses.replace(self, only_times=True)

    def with_stochasticity(
        self,
        coordinate: TimeCoordinate,
        t_min: float | None,
        num_steps: int,
        squared: np.ndarray | None,
    ) -> CertifiedRecursion | None:
        given = self.certificate
        required = 1.0 if given.metric == "kl" else required_stochasticity(given.scheme)
        if required is not None and (squared is None or np.any(squared != required)):
            return None
        # where nothing is known of the drift, the bound is finite at stochasticity 1 only
        if squared is None and third_derivative(given.known, jnp.ones(1)) is None:
            return None
        for name in ("score_error", "error_lipschitz"):
            size = getattr(given, name)
            if not callable(size):
                per_evaluation(name, size, jnp.zeros(num_steps))
        return CertifiedRecursion(
            given,
            coordinate,
            None if t_min is None else constant(t_min),
            None if squared is None else constant(pad_last(squared, bucket(num_steps))),
        )

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        given = self.certificate
        if given.metric == "kl":
            run = (given.known, schedule, given.scheme, given.initialization)
            value = evaluate_girsanov(*run, given.score_error).value
            return _where_stochasticity(schedule, 1.0, value)
        errors = (given.score_error, given.error_lipschitz)
        required = required_stochasticity(given.scheme)
        free = required is None and not self.only_times
        run = (given.known, schedule, given.scheme, given.start)
        value = bound_value(*run, *errors, free=free, rounding=given.rounding)
        return value if required is None else _where_stochasticity(schedule, required, value)


def _where_stochasticity(schedule: Schedule, required: float, value: Array) -> Float[Array, ""]:
    """The value, infinite unless every step has the stochasticity that it is for."""
    off = jnp.max(jnp.abs(schedule.stochasticity_squared - required))
    return jnp.where(off < 1e-6, value, jnp.inf)
