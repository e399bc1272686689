"""The exact error of a sampler on a Gaussian target."""

import warnings

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks, metrics
from .._compile import quick_jit
from .._precision import in_float64, is_traced
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import (
    AffineMaps,
    Initialization,
    Moments,
    NamedInitialization,
    PerMode,
    Run,
)
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AffineError, ScoreError
from ._budget import ErrorBudget, error_budget, show
from ._expected import centred, finite_second_order
from ._kernel import ErrorKernel, contract

# the distances that every evaluation has
_DISTANCES = ("w2_squared", "kl", "reverse_kl")


class Evaluation(eqx.Module):
    """Exact distribution of the samples and its distances to the data distribution p_0.

    **Arguments:**

    - `mean`, `variance`: (modes,) at the end, along the target's modes.
    - `covariance`: (d, d) in the eigenbasis if the initial covariance did not commute with the
      target's; of a randomised sampler, whose steps correlate the modes, between one coordinate of
      each mode; None otherwise.
    - `means`, `variances`: (K + 1, modes), at every time of the schedule.
    - `w2_squared`: the squared W2 distance, a scalar in units of variance.
    - `kl`, `reverse_kl`: KL(p_0 || q) and KL(q || p_0), scalars in nats.
    - `per_mode`: the contribution of each mode to the three distances, by name.
    - `local_w2_squared`: (K,), the squared W2 that each step alone would cause.
    - `error_budget`: where `w2_squared` comes from.
    - `nfe`: number of network evaluations, as many in every step. Those that a last step to
      sigma = 0 leaves out count too; `samplers.sampling_nfe` does not count them.
    - `lower_bound`: whether the samples of a randomised sampler are a mixture of Gaussians, not one
      Gaussian. Moments are exact all the same; `w2_squared`, `reverse_kl`, `local_w2_squared` and
      what `error_budget` adds up to are then lower bounds, those of Gaussians with the same mean
      and variance in every mode, and `kl` is that of these.

    **Example:**

    ```python
    >>> schedule = jk.schedules.quadratic(jk.VP(), 8, 1e-3)
    >>> jk.evaluate_schedule(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "heun", schedule).nfe
    16
    ```
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
    lower_bound: bool = eqx.field(static=True, default=False)

    @property
    def w2(self) -> Float[Array, ""]:
        """2-Wasserstein distance to the data distribution, in units of the data."""
        return jnp.sqrt(self.w2_squared)

    def __repr__(self) -> str:
        relation = ">=" if self.lower_bound else "="
        return (
            f"Evaluation(w2{relation}{show(self.w2)}, kl={show(self.kl)}, "
            f"reverse_kl{relation}{show(self.reverse_kl)}, nfe={self.nfe}, "
            f"error_budget={self.error_budget})"
        )


def evaluate_schedule(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    score_error: ScoreError | None = None,
    initialization: Initialization = None,
) -> Evaluation:
    """Compute the exact distribution of a sampler's output for a Gaussian target, and its error.

    For the exact score of N(mu, C) every step is an affine map plus Gaussian noise,

        m <- F m + b,   S <- F S F^T + Q,

    so that the samples are N(m, S). They are compared with the data distribution p_0 = N(mu, C):
    stopping at t_K > 0 counts as error (truncation).

    **Arguments:**

    - `target`: the data distribution, in units of the data.
    - `process`: the forward process.
    - `sampler`: a sampler, or its name in `jk.samplers.SAMPLERS`.
    - `schedule`: K steps within the time range of the process.
    - `score_error`: makes the score inexact. Its mean is treated exactly; its randomness adds the
      expected excess to second order to `w2_squared` and to the budget (`expected_error` has more).
      Moments, KL and values per mode are those for the mean error. Matrix slopes need
      `expected_error(dense=True)`. Default: none.
    - `initialization`: the distribution that sampling starts from: "standard_normal" (the process's
      prior: N(0, I), or N(0, sigma_max^2 I) for exploding variance), "marginal" (the exact p_T), or
      any Gaussian in data coordinates, whose covariance need not commute with the target's.
      Default: the prior, and on a sub-range of a process the marginal.

    **Returns:** an `Evaluation`, computed in float64 whatever the caller's flags; inside jit, grad
    or vmap, in the caller's precision.

    **Raises:** ValueError naming the argument that does not fit; also if the sampler is not finite
    on the schedule.

    **Example:**

    ```python
    >>> schedule = jk.schedules.log_snr(jk.VP(), 10, 1e-3)
    >>> evaluation = jk.evaluate_schedule(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
    >>> assert evaluation.w2 < 0.5
    ```

    Source: for the errors of common samplers on Gaussian data, Pierret and Galerne,
    "Diffusion models for Gaussian distributions: exact solutions and Wasserstein errors" (2024),
    https://arxiv.org/abs/2405.14250.
    """
    run = Run.checked(target, process, sampler, schedule, initialization)
    if score_error is not None:
        score_error = _checks.instance("score_error", score_error, ScoreError)
    if score_error is not None and not isinstance(run.initialization, NamedInitialization):
        raise ValueError("a score_error can be combined with initialization by name only.")
    if score_error is not None and score_error.has_matrix_slopes:
        raise ValueError(
            "score_error has matrix slopes, which are not per mode: use "
            "expected_error(..., dense=True)."
        )
    evaluation = _evaluate(run, score_error)
    if not is_traced(evaluation):
        _check_finite(evaluation, run)
    return evaluation


@in_float64
def _evaluate(run: Run, score_error: ScoreError | None) -> Evaluation:
    """The evaluation of a checked run."""
    known = None
    excess = None
    if score_error is not None:
        run.check_signal()
        kernel, directions = centred(ErrorKernel.about_zero(run, metrics.w2_squared), score_error)
        known = kernel.about if score_error.mean is not None else None
        excess = contract(kernel, None, directions)
        if directions is not None and not is_traced(excess):
            _check_expansion(float(excess), float(finite_second_order(kernel, directions)))
    return _compare(run, known, excess)


@quick_jit
def _compare(
    run: Run,
    known: AffineError | None,
    excess: Float[Array, ""] | None,
) -> Evaluation:
    """The samples against the data.

    `known` is the mean score error of every evaluation, `excess` what its randomness adds to
    squared W2.
    """
    coordinates = run.coordinates()
    data = coordinates.data()
    maps = run.affine_maps()
    start = run.initial_moments()
    exact = coordinates.propagate(maps, run.sampler, start)
    path = exact if known is None else run.moments(known, start)
    total = coordinates.distance("w2_squared", path.last, data)
    if excess is not None:
        total = total + excess
    by_part = {name: coordinates.contributions(name, path.last, data) for name in _DISTANCES}
    return Evaluation(
        mean=path.mean[-1],
        variance=coordinates.variance(path.covariance[-1]),
        covariance=_covariance(run, maps, start, path.last),
        means=path.mean,
        variances=coordinates.variance(path.covariance),
        w2_squared=total,
        kl=jnp.sum(by_part["kl"]),
        reverse_kl=jnp.sum(by_part["reverse_kl"]),
        per_mode={} if coordinates.dense else by_part,
        local_w2_squared=_local_w2_squared(run),
        error_budget=error_budget(run, maps, start, exact.last, total),
        nfe=run.nfe,
        lower_bound=run.sampler.randomised,
    )


def _covariance(
    run: Run, maps: AffineMaps, start: Moments, end: Moments
) -> Float[Array, "modes modes"] | None:
    """The covariance of the samples, if there is more to it than a variance per mode."""
    coordinates = run.coordinates()
    if isinstance(coordinates, PerMode):
        randomised = run.sampler.randomised
        return coordinates.joint_covariance(maps, run.sampler, start) if randomised else None
    return end.covariance


def _local_w2_squared(run: Run) -> Float[Array, " steps"]:
    """The squared W2 at the end that each step alone causes."""
    local = run.local_errors()
    # local errors start from the exact marginal, which commutes with the target
    after = Moments(local.mean_error, local.variance)
    exact = Moments(jnp.zeros_like(local.target_variance), local.target_variance)
    return PerMode(run.target).distance("w2_squared", after, exact)


def _check_finite(evaluation: Evaluation, run: Run) -> None:
    """Name the first step whose result is not finite."""
    finite_means = np.isfinite(np.asarray(evaluation.means))
    finite_variances = np.isfinite(np.asarray(evaluation.variances))
    bad = np.flatnonzero(~(finite_means & finite_variances).all(-1))
    if bad.size:
        k = max(int(bad[0]) - 1, 0)
        times = np.asarray(run.schedule.times)
        raise ValueError(
            f"{type(run.sampler).__name__} is not finite in step {k} of the schedule, from "
            f"t = {times[k]:g} to {times[k + 1]:g}. Samplers that divide by the signal or use the "
            "diffusion coefficient must start where the signal is not 0."
        )


def _check_expansion(excess: float, finite: float) -> None:
    """Warn where differences of the size of the errors contradict the second derivative."""
    if abs(finite - excess) > 0.25 * abs(excess):
        warnings.warn(
            "score_error is too large for its expansion on this schedule: to second order it adds "
            f"{excess:.3g} to the squared W2, errors of that size themselves {finite:.3g}. Use "
            "expected_error(..., method='monte_carlo').",
            stacklevel=5,
        )
