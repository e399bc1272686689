"""The exact error of a sampler on a Gaussian target, and where it comes from."""

import warnings
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks, metrics
from .._precision import in_float64, is_traced
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import (
    NAMED_INITIALIZATIONS,
    AffineMaps,
    check_setting,
    dense_maps,
    initial_moments,
    local_errors,
    log_contraction,
    log_contractions,
    mode_maps,
    propagate_dense,
    propagate_modes,
)
from ..samplers import AbstractSampler, check_schedule
from ..schedules import Schedule
from ..score_error import AffineError, ScoreError
from ._expected import centred, finite_second_order
from ._kernel import contract, error_kernel

Initialization: TypeAlias = str | Gaussian
"""The law that sampling starts from: "standard_normal", "marginal", or any Gaussian."""


class ErrorBudget(eqx.Module):
    """Where the squared W2 distance to the data law comes from, in units of variance.

    Squared W2 is not additive, so the errors are switched on one after another and each entry is the
    exact increment (it can be negative: a later error may undo an earlier one). They sum to `total`.

    1. `initialization`: the exact reverse process, run down to t = 0, from the law sampling starts with
    2. `truncation`: the same, stopped at the schedule's last time
    3. `discretization`: the sampler instead of the exact reverse process
    4. `score`: the score error, if one is given: in the mean over its randomness, to second order

    `*_alone` is the distance when only that error is on; `interaction` is what is left of the total.
    """

    initialization: Float[Array, ""]
    truncation: Float[Array, ""]
    discretization: Float[Array, ""]
    score: Float[Array, ""]
    total: Float[Array, ""]
    initialization_alone: Float[Array, ""]
    truncation_alone: Float[Array, ""]
    discretization_alone: Float[Array, ""]

    @property
    def interaction(self) -> Float[Array, ""]:
        """total minus the sum of the distances that each error causes alone."""
        alone = self.initialization_alone + self.truncation_alone + self.discretization_alone
        return self.total - alone

    def __repr__(self) -> str:
        names = ("initialization", "truncation", "discretization", "score", "total")
        return f"ErrorBudget({', '.join(f'{n}={_show(getattr(self, n))}' for n in names)})"


class Evaluation(eqx.Module):
    """Exact law of the samples and its distances to the data law p_0.

    `mean` and `variance` (modes,) are along the target's modes; `covariance` (d, d), in the eigenbasis,
    is given when the initial law did not commute with the target and is None otherwise. `means` and
    `variances` (K+1, modes) are the moments at every time of the schedule. `w2_squared` is in units of
    variance, `kl` = KL(p_0 || q) and `reverse_kl` = KL(q || p_0) in nats; `per_mode` holds each mode's
    share of the three. `local_w2_squared` (K,) is the squared W2 that each step alone would cause.
    """

    mean: Float[Array, " modes"]
    variance: Float[Array, " modes"]
    covariance: Float[Array, "modes modes"] | None
    means: Float[Array, "points modes"]
    variances: Float[Array, "points modes"]
    w2_squared: Float[Array, ""]
    kl: Float[Array, ""]
    reverse_kl: Float[Array, ""]
    per_mode: dict[str, Float[Array, " modes"]]
    local_w2_squared: Float[Array, " steps"]
    error_budget: ErrorBudget
    nfe: int = eqx.field(static=True)

    @property
    def w2(self) -> Float[Array, ""]:
        """2-Wasserstein distance to the data law, in units of the data."""
        return jnp.sqrt(self.w2_squared)

    def __repr__(self) -> str:
        return (
            f"Evaluation(w2={_show(self.w2)}, kl={_show(self.kl)}, reverse_kl={_show(self.reverse_kl)}, "
            f"nfe={self.nfe}, error_budget={self.error_budget})"
        )


def _show(value: Array) -> str:
    return "traced" if is_traced(value) else f"{float(value):.4g}"


def check_initialization(target: Gaussian, initialization: object) -> Initialization:
    if isinstance(initialization, Gaussian):
        unit = np.all(np.asarray(target.weights) == 1) and np.all(
            np.asarray(initialization.weights) == 1
        )
        if not unit or target.mean.shape != initialization.mean.shape:
            raise ValueError(
                "initialization as a Gaussian needs the target's dimensions and unit weights in both; "
                f"got {initialization.mean.shape[0]} modes for {target.mean.shape[0]}."
            )
        return initialization
    return _checks.one_of("initialization", initialization, NAMED_INITIALIZATIONS)


def evaluate_schedule(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    score_error: ScoreError | None = None,
    initialization: Initialization = "standard_normal",
) -> Evaluation:
    """Exact law of a sampler's output for the exact score of a Gaussian target, and its error.

    The sampler's step is linearised (see `recurrence`), its moments are propagated over the schedule and
    compared with the data law p_0 = N(mean, C): stopping at t_K > 0 counts as error (truncation).

    **Arguments:** `sampler` may be a name ("ddim", "dpmpp_2m", "heun", "rk4", "euler_maruyama",
    "exponential_integrator"). `initialization` is the law sampling starts from: "standard_normal" (the
    process's prior: N(0, I), or N(0, sigma_max^2 I) for exploding variance), "marginal" (the exact p_T),
    or any Gaussian in data coordinates, whose covariance need not commute with the target's.
    `score_error` makes the score inexact: its mean is treated exactly, its randomness adds the expected
    excess to second order (`expected_error` has more) to `w2_squared` and to the budget. Law, KL and
    per-mode values are those for the mean error. Matrix slopes need `expected_error(dense=True)`.

    **Raises:** ValueError naming the argument, also when the sampler is not finite on the schedule.

    Computed in float64 whatever the caller's flags; inside jit, grad or vmap, in the caller's precision.
    """
    target, process, sampler = check_setting(target, process, sampler)
    schedule = check_schedule(process, sampler, schedule)
    initialization = check_initialization(target, initialization)
    evaluation = _evaluate(target, process, sampler, schedule, initialization, score_error)
    if not is_traced(evaluation):
        _check_finite(evaluation, sampler, schedule)
    return evaluation


def _check_finite(evaluation: Evaluation, sampler: AbstractSampler, schedule: Schedule) -> None:
    finite = np.isfinite(np.asarray(evaluation.means)) & np.isfinite(
        np.asarray(evaluation.variances)
    )
    bad = np.flatnonzero(~finite.all(-1))
    if bad.size:
        k = max(int(bad[0]) - 1, 0)
        raise ValueError(
            f"{type(sampler).__name__} is not finite in step {k} of the schedule, from t = "
            f"{float(schedule.times[k]):g} to {float(schedule.times[k + 1]):g}. Samplers that divide by "
            "the signal or use the diffusion coefficient must start where the signal is not 0."
        )


def _check_expansion(excess: float, finite: float) -> None:
    if abs(finite - excess) > 0.25 * abs(excess):
        warnings.warn(
            f"score_error is too large for its expansion on this schedule: to second order it adds {excess:.3g} to the "
            f"squared W2, errors of that size themselves {finite:.3g}. Use expected_error(..., method='monte_carlo').",
            stacklevel=4,
        )


def _dense_moments(law: Gaussian) -> tuple[np.ndarray, np.ndarray]:
    basis = np.eye(law.mean.shape[0]) if law.basis is None else np.asarray(law.basis)
    return np.asarray(law.mean), (basis * np.asarray(law.eigenvalues)) @ basis.T


def reverse_exactly(
    target: Gaussian, process: AbstractProcess, schedule: Schedule, to_data: bool
) -> Float[Array, " modes"]:
    """Contraction of the exact reverse process over the whole schedule, and on to t = 0 if asked.

    Beyond t_K the stochasticity of the last step is kept.
    """
    logs = jnp.sum(log_contractions(target, process, schedule), axis=0)
    if to_data:
        t = schedule.times[-1]
        alpha2 = schedule.stochasticity_squared[-1]
        logs = logs + log_contraction(target, process, t, jnp.zeros_like(t), alpha2)
    return jnp.exp(logs)


class _Modes(eqx.Module):
    """Laws that commute with the target: variances, one per mode."""

    target: Gaussian

    def spread(self, variance: Array) -> Array:
        return variance

    def variance(self, spread: Array) -> Array:
        return spread

    def carry(self, rho: Array, spread: Array) -> Array:
        return rho**2 * spread

    def maps(self, process, sampler, schedule) -> AffineMaps:
        return mode_maps(self.target, process, sampler, schedule)

    def propagate(self, maps, sampler, mean, spread) -> tuple[Array, Array]:
        return propagate_modes(maps, sampler, mean, spread)

    def contributions(self, name: str, mean_error: Array, spread: Array, reference: Array) -> Array:
        t, metric = self.target, metrics.METRICS[name]
        return metrics.per_mode(metric, t.weights, mean_error, spread, reference)

    def distance(self, name: str, mean_error: Array, spread: Array, reference: Array) -> Array:
        return jnp.sum(self.contributions(name, mean_error, spread, reference))


class _Dense(eqx.Module):
    """Laws that need not commute with the target: covariances, in its eigenbasis."""

    target: Gaussian

    def spread(self, variance: Array) -> Array:
        return jnp.diag(variance)

    def variance(self, spread: Array) -> Array:
        return jnp.diagonal(spread, axis1=-2, axis2=-1)

    def carry(self, rho: Array, spread: Array) -> Array:
        return rho[:, None] * spread * rho

    def maps(self, process, sampler, schedule) -> AffineMaps:
        return dense_maps(self.target, process, sampler, schedule)

    def propagate(self, maps, sampler, mean, spread) -> tuple[Array, Array]:
        return propagate_dense(maps, sampler, mean, spread)

    def distance(self, name: str, mean_error: Array, spread: Array, reference: Array) -> Array:
        return metrics.DENSE_METRICS[name](mean_error, spread, reference)


@in_float64
def _evaluate(target, process, sampler, schedule, initialization, score_error) -> Evaluation:
    basis, target = target.basis, target.in_eigenbasis()
    known, excess = None, None
    if score_error is not None:
        if not isinstance(initialization, str):
            raise ValueError("a score_error can be combined with initialization by name only.")
        kernel = error_kernel(target, process, sampler, schedule, initialization=initialization)
        kernel, directions = centred(kernel, score_error)
        known = kernel.about if score_error.mean is not None else None
        excess = contract(kernel, None, directions)
        if directions is not None and not is_traced(excess):
            _check_expansion(float(excess), float(finite_second_order(kernel, directions)))
    if isinstance(initialization, str):
        start = np.asarray(schedule.times)[0] if not is_traced(schedule) else schedule.times[0]
        return _compare(
            _Modes(target),
            process,
            sampler,
            schedule,
            *initial_moments(target, process, start, initialization),
            known,
            excess,
        )
    mean, covariance = _dense_moments(initialization)
    if basis is not None:
        mean, covariance = basis.T @ mean, basis.T @ covariance @ basis
    return _compare(_Dense(target), process, sampler, schedule, mean, covariance)


@jax.jit
def _compare(
    laws: _Modes | _Dense,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    mean: Float[Array, " modes"],
    spread: Float[Array, "modes *modes"],
    known: AffineError | None = None,
    excess: Float[Array, ""] | None = None,
) -> Evaluation:
    """The sampled law, from an initial law (mean, spread), against the data law and its error budget.

    `known` is the mean score error of every evaluation, `excess` what its randomness adds to squared W2.
    """
    target = laws.target
    first, last = schedule.times[0], schedule.times[-1]
    target_mean, data = jnp.asarray(target.mean), laws.spread(jnp.asarray(target.eigenvalues))

    def marginal(t: Array) -> tuple[Array, Array]:
        return process.signal(t) * target_mean, laws.spread(target.marginal_variance(process, t))

    def w2_squared(law: tuple[Array, Array], reference: tuple[Array, Array]) -> Array:
        return laws.distance("w2_squared", law[0] - reference[0], law[1], reference[1])

    def started(rho: Array, t: Array) -> tuple[Array, Array]:
        """The law at t of the exact reverse process from the given initial law."""
        (m, s), (m0, s0) = marginal(t), marginal(first)
        return m + rho * (mean - m0), s + laws.carry(rho, spread - s0)

    p_data, p_last = (target_mean, data), marginal(last)
    maps = laws.maps(process, sampler, schedule)
    means, spreads = laws.propagate(maps, sampler, mean, spread)
    from_marginal = laws.propagate(maps, sampler, *marginal(first))

    initialization = w2_squared(
        started(reverse_exactly(target, process, schedule, to_data=True), jnp.zeros_like(last)),
        p_data,
    )
    truncated = w2_squared(
        started(reverse_exactly(target, process, schedule, to_data=False), last), p_data
    )
    discretized = w2_squared((means[-1], spreads[-1]), p_data)
    if known is not None:
        maps = mode_maps(target, process, sampler, schedule, known)
        means, spreads = laws.propagate(maps, sampler, mean, spread)
    total = w2_squared((means[-1], spreads[-1]), p_data) + (0.0 if excess is None else excess)
    budget = ErrorBudget(
        initialization=initialization,
        truncation=truncated - initialization,
        discretization=discretized - truncated,
        score=total - discretized,
        total=total,
        initialization_alone=initialization,
        truncation_alone=w2_squared(p_last, p_data),
        discretization_alone=w2_squared((from_marginal[0][-1], from_marginal[1][-1]), p_last),
    )
    compared = (means[-1] - target_mean, spreads[-1], data)
    moments = local_errors(target, process, sampler, schedule)
    local = _Modes(target).contributions(
        "w2_squared", moments.mean_error, moments.variance, moments.target_variance
    )
    return Evaluation(
        mean=means[-1],
        variance=laws.variance(spreads[-1]),
        covariance=spreads[-1] if isinstance(laws, _Dense) else None,
        means=means,
        variances=laws.variance(spreads),
        w2_squared=total,
        kl=laws.distance("kl", *compared),
        reverse_kl=laws.distance("reverse_kl", *compared),
        per_mode={name: laws.contributions(name, *compared) for name in metrics.METRICS}
        if isinstance(laws, _Modes)
        else {},
        local_w2_squared=jnp.sum(local, -1),
        error_budget=budget,
        nfe=sampler.nfe_per_step * schedule.num_steps,
    )
