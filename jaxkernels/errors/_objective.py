"""The error of a sampler on a Gaussian as an objective: step by step, or of the whole run."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks, metrics
from .._objective import AbstractBoundObjective, AbstractCoordinateObjective, AbstractObjective
from .._types import constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import (
    NAMED_INITIALIZATIONS,
    LocalErrors,
    NamedInitialization,
    Run,
    evaluation_times,
    initial_moments,
    initialization_name,
    local_errors,
    log_contractions,
    score_responses,
    to_the_end,
)
from ..samplers import AbstractSampler, as_sampler
from ..schedules import BASELINES, Schedule, TimeCoordinate
from ..score_error import AffineError, ScoreError
from ._expected import second_order
from ._kernel import ErrorKernel, error_kernel, factored
from ._window_sum import ScoredWindowSum, limit_modes, window_constants, window_sum

VARIANCE_FACTOR = 3.0
# spectra of more modes are compressed to this many quadrature nodes
_COMPRESS_ABOVE = 64
_NODES = 32


class LocalError(AbstractObjective):
    """The sum over error sources of the terminal error that each source alone would cause.

        metric(p_K, q_init) + metric(p_0, p_K) + sum_k metric(p_K, q_k)

    p_K is the exact distribution at t_K, q_init that of the exact reverse process started from the
    initial distribution of sampling, and q_k that of the sampler in step k and the exact
    process in all others; plus the expected cost of a score error along the exact process, if
    there is one. Errors of different steps cannot cancel, as in accumulation theorems for
    orthogonal score errors.

    **Arguments:**

    - `metric`: "w2_squared", "kl" = KL(p_data || q), "reverse_kl", "log_chi_squared", or a function
      (mean_error, variance, target_variance) -> value per mode.
    - `initialization`: what sampling starts from, "standard_normal" or "marginal" (exact at t_max).
      Default: that of the process.
    - `variance_factor`: f >= 1; the objective is averaged over variances of each mode from
      lambda / f to lambda f. The local error of a multistep sampler vanishes at one ratio of steps
      for one variance; an optimum for exact variances puts a long step there, which data that are
      not Gaussian do not bear out. 1 takes the target as it is.
    - `score_error`: a `ScoreError` whose expected cost is added. One that is given per mode is for
      the target as it is: then `variance_factor` is 1 and nothing is compressed.
    - `compress`: number of quadrature nodes for the spectrum, False for none, None for 32 above 64
      modes (none for a user-defined metric). The solver minimises on these nodes; values are those
      on the full spectrum, or on 64 nodes for more than 16384 modes, unless `compress` is False.

    **Raises:** ValueError for an option out of range; when bound, for a score error of
    another target.

    **Example:**

    ```python
    >>> target = jk.Gaussian(np.zeros(3), [1.0, 0.1, 0.01])
    >>> objective = jk.LocalError(metric="kl").bind(target, jk.VP(), jk.DDIM())
    >>> bool(objective(jk.schedules.uniform(jk.VP(), 8, 1e-3)) > 0)
    True
    ```
    """

    metric: str | metrics.Metric = eqx.field(static=True)
    initialization: str | None = eqx.field(static=True)
    variance_factor: float = eqx.field(static=True)
    score_error: ScoreError | None
    compress: bool | int | None = eqx.field(static=True)

    def __init__(
        self,
        metric: str | metrics.Metric = "w2_squared",
        initialization: str | None = None,
        variance_factor: float | None = None,
        score_error: ScoreError | None = None,
        compress: bool | int | None = None,
    ):
        score_error = _check_score_error(score_error)
        per_mode = score_error is not None and not score_error.any_spectrum
        if variance_factor is None:
            variance_factor = 1.0 if per_mode else VARIANCE_FACTOR
        factor = float(_checks.scalar("variance_factor", variance_factor, at_least=1.0))
        if factor > 1.0 and per_mode:
            raise ValueError(
                f"variance_factor = {factor:g} is not for a score_error that is given per mode; "
                "leave it out, or use 1."
            )
        self.metric = _check_metric(metric)
        self.initialization = _check_initialization(initialization)
        self.variance_factor = factor
        self.score_error = score_error
        self.compress = _check_compress(compress)

    @property
    def _any_spectrum(self) -> bool:
        """Whether the score error is defined for any spectrum."""
        return self.score_error is None or self.score_error.any_spectrum

    def bind(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundLocalError":
        _check_per_mode(self.score_error)
        model = target.in_eigenbasis()
        if self.compress is not False and isinstance(self.metric, str) and self._any_spectrum:
            model = limit_modes(model)
        model = model.with_variance_factor(self.variance_factor)
        return BoundLocalError(
            model,
            process,
            as_sampler(sampler),
            metrics.resolve(self.metric),
            initialization_name(process, self.initialization),
            self.score_error,
        )

    def check_target(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, num_steps: int
    ) -> None:
        _check_per_mode(self.score_error)
        _check_error_fits(target, process, sampler, num_steps, self.score_error)

    def reduce(self, bound: AbstractBoundObjective) -> AbstractBoundObjective:
        return _reduced(bound, self.compress, isinstance(self.metric, str))


class TerminalError(AbstractObjective):
    """The exact error of the whole run, in which errors of different steps may cancel.

        metric(p_0, q)

    On a Gaussian this is the truth; on a network, which is not Gaussian, the cancellation is lost.
    With a score error it is the expectation, to second order in its randomness.

    **Arguments:**

    - `metric`, `initialization`: as for `LocalError`.
    - `score_error`: a `ScoreError`, over whose randomness the metric is averaged. Matrix slopes
      need a metric by name. Default: none.
    - `compress`: as for `LocalError`.

    **Raises:** ValueError for an option out of range; when bound, for a score error of
    another target.

    **Example:**

    ```python
    >>> target = jk.Gaussian(np.zeros(3), [1.0, 0.1, 0.01])
    >>> objective = jk.TerminalError().bind(target, jk.VP(), jk.DDIM())
    >>> bool(objective(jk.schedules.uniform(jk.VP(), 8, 1e-3)) > 0)
    True
    ```
    """

    metric: str | metrics.Metric = eqx.field(static=True)
    initialization: str | None = eqx.field(static=True)
    score_error: ScoreError | None
    compress: bool | int | None = eqx.field(static=True)

    def __init__(
        self,
        metric: str | metrics.Metric = "w2_squared",
        initialization: str | None = None,
        score_error: ScoreError | None = None,
        compress: bool | int | None = None,
    ):
        self.metric = _check_metric(metric)
        self.initialization = _check_initialization(initialization)
        self.score_error = _check_score_error(score_error)
        self.compress = _check_compress(compress)

    def bind(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundTerminalError":
        return BoundTerminalError(
            target.in_eigenbasis(),
            process,
            as_sampler(sampler),
            metrics.resolve(self.metric, dense=_has_matrix_slopes(self.score_error)),
            initialization_name(process, self.initialization),
            self.score_error,
        )

    def check_target(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, num_steps: int
    ) -> None:
        _check_error_fits(target, process, sampler, num_steps, self.score_error)

    def reduce(self, bound: AbstractBoundObjective) -> AbstractBoundObjective:
        return _reduced(bound, self.compress, isinstance(self.metric, str))


class BoundTerminalError(AbstractBoundObjective):
    """`TerminalError` of a target in its eigenbasis, a process and a sampler."""

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    metric: metrics.Metric = eqx.field(static=True)
    initialization: str = eqx.field(static=True)
    score_error: ScoreError | None = None

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        initialization = NamedInitialization(self.initialization)
        run = Run(self.target, self.process, self.sampler, schedule, initialization)
        if self.score_error is None:
            return jnp.sum(run.contributions(self.metric))
        dense = self.score_error.has_matrix_slopes
        kernel = ErrorKernel.about_zero(run, self.metric, dense=dense)
        return second_order(kernel, self.score_error)

    def unchangeable(self, coordinate: TimeCoordinate, t_min: float) -> Float[Array, " 2"]:
        """The error of exact steps: that of stopping at t_min, and what the start adds to it."""
        if _has_matrix_slopes(self.score_error):
            return jnp.zeros(2)  # a metric of whole covariances
        target = self.target
        ends = Schedule(jnp.stack([jnp.asarray(coordinate.start), jnp.asarray(t_min)]))
        contraction = to_the_end(log_contractions(target, self.process, ends))[0]
        exact, variance, lost, shift = _end_moments(self, ends, contraction)

        def total(mean_error: Array, variance: Array) -> Array:
            run = (target.weights, mean_error, variance, jnp.asarray(target.eigenvalues))
            return jnp.sum(metrics.per_mode(self.metric, *run))

        truncation = total(lost, exact)
        return jnp.stack([total(lost + shift, variance) - truncation, truncation])


class BoundLocalError(AbstractBoundObjective):
    """`LocalError` of a target in its eigenbasis, a process and a sampler."""

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    metric: metrics.Metric = eqx.field(static=True)
    initialization: str = eqx.field(static=True)
    score_error: ScoreError | None = None

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        local = local_errors(self.target, self.process, self.sampler, schedule)
        value = self.steps(local) + jnp.sum(self.ends(schedule, local.contraction[0]))
        if self.score_error is None:
            return value
        return value + self.score(schedule, local.contraction)

    def steps(self, local: LocalErrors) -> Float[Array, ""]:
        """What the steps cause, each alone."""
        return jnp.sum(self.total(local.mean_error, local.variance, local.target_variance))

    def in_coordinate(
        self, coordinate: TimeCoordinate, t_min: float
    ) -> AbstractCoordinateObjective:
        windows = window_sum(self, coordinate, t_min)
        if self.score_error is None:
            return windows
        return ScoredWindowSum(windows, self, coordinate, constant(t_min))

    def total(self, mean_error: Array, variance: Array, target_variance: Array) -> Array:
        """The metric summed over modes, for any leading axes."""
        weights = self.target.weights
        value = metrics.per_mode(self.metric, weights, mean_error, variance, target_variance)
        return jnp.sum(value, -1)

    def unchangeable(self, coordinate: TimeCoordinate, t_min: float) -> Float[Array, " 2"]:
        return window_constants(self, coordinate, constant(t_min))[0]

    def ends(self, schedule: Schedule, contraction: Float[Array, " modes"]) -> Float[Array, " 2"]:
        """The two sources that are no step: the initial distribution, and stopping at t_K."""
        exact, variance, lost, shift = _end_moments(self, schedule, contraction)
        initialization = self.total(shift, variance, exact)
        truncation = self.total(lost, exact, jnp.asarray(self.target.eigenvalues))
        return jnp.stack([initialization, truncation])

    def score(
        self, schedule: Schedule, contraction: Float[Array, "points modes"]
    ) -> Float[Array, ""]:
        """What the score error alone would cost along the exact process.

        The sum over directions w of

            (metric at +w  +  metric at -w) / 2,      at +-w: mean +-m, variance p_K +-S_1 + S_2

        with m and S_1 the linear responses (`score_responses`) and S_2 = (sum_a R_a Delta_a sqrt
        Sigma_a)^2 the variance of what the error adds to x, as if x moved along the flow. To second
        order in w it is the kernel's contraction at the exact distribution; unlike that it stays
        meaningful for large errors. It takes all times and their correlation together: unlike local
        errors, score errors of one sign do add up in a network.
        """
        assert self.score_error is not None
        target = self.target
        process = self.process
        sampler = self.sampler
        responses = score_responses(target, process, sampler, schedule, contraction)
        times = evaluation_times(process, sampler, schedule)
        variance = target.marginal_variance(process, schedule.times[-1])
        mean = process.signal(times)[:, None] * target.mean
        size = jnp.sqrt(target.marginal_variance(process, times))

        def cost(w: AffineError) -> Array:
            shift = jnp.sum(responses.mean * (w.shift - w.slope * mean), 0)
            first = -jnp.sum(responses.variance * w.slope, 0)
            second = jnp.sum(responses.mean * w.slope * size, 0) ** 2
            there = self.total(shift, variance + first + second, variance)
            back = self.total(shift, variance - first + second, variance)
            return 0.5 * (there + back)

        value = jnp.zeros((), times.dtype)
        known = self.score_error.mean_at(target, process, times)
        directions = self.score_error.directions(target, process, times)
        if known is not None:
            value += cost(known)
        if directions is not None:
            value += jnp.sum(jax.vmap(cost)(directions))
        return value


def _end_moments(
    bound: BoundTerminalError | BoundLocalError,
    schedule: Schedule,
    contraction: Float[Array, " modes"],
) -> tuple[Float[Array, " modes"], ...]:
    """Variances of p_K and q_init at t_K, and what their means have over those of p_0 and p_K.

    `contraction` is that of the exact process from t_0 to t_K.
    """
    target = bound.target
    process = bound.process
    first = schedule.times[0]
    last = schedule.times[-1]
    mean, variance = initial_moments(target, process, first, bound.initialization)
    exact = target.marginal_variance(process, last)
    change = contraction**2 * (variance - target.marginal_variance(process, first))
    lost = (process.signal(last) - 1.0) * target.mean
    shift = contraction * (mean - process.signal(first) * target.mean)
    return exact, exact + change, lost, shift


def _reduced(
    bound: AbstractBoundObjective, compress: bool | int | None, named_metric: bool
) -> AbstractBoundObjective:
    """A bound objective on quadrature nodes of its target, or itself if nothing is compressed."""
    assert isinstance(bound, BoundLocalError | BoundTerminalError)
    error = bound.score_error
    modes = np.shape(bound.target.eigenvalues)[0]
    if compress is None:
        compressible = named_metric and (error is None or error.any_spectrum)
        compress = compressible and modes > _COMPRESS_ABOVE
    if compress is False:
        return bound
    nodes = _NODES if compress is True else compress
    return eqx.tree_at(lambda b: b.target, bound, bound.target.compress(nodes))


def _check_initialization(initialization: str | None) -> str | None:
    if initialization is None:
        return None
    return _checks.one_of("initialization", initialization, NAMED_INITIALIZATIONS)


def _check_metric(metric: object) -> str | metrics.Metric:
    metrics.resolve(metric)  # pyright: ignore[reportArgumentType]
    return metric  # pyright: ignore[reportReturnType]


def _check_compress(compress: object) -> bool | int | None:
    if compress is None or isinstance(compress, bool):
        return compress
    return _checks.count("compress", compress)


def _check_score_error(score_error: object) -> ScoreError | None:
    return None if score_error is None else _checks.instance("score_error", score_error, ScoreError)


def _check_error_fits(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    num_steps: int,
    score_error: ScoreError | None,
) -> None:
    """Whether an error fits the target and any schedule of that length: seen on one of them."""
    if score_error is None:
        return
    t_max = float(np.asarray(process.t_max))
    schedule = BASELINES["uniform"](process, num_steps, 0.5 * t_max)
    dense = score_error.has_matrix_slopes
    factored(error_kernel(target, process, sampler, schedule, dense=dense), score_error)


def _check_per_mode(score_error: ScoreError | None) -> None:
    if _has_matrix_slopes(score_error):
        raise ValueError(
            "score_error has matrix slopes, and LocalError adds up modes: use "
            "TerminalError(score_error=...), or expected_error(..., dense=True)."
        )


def _has_matrix_slopes(score_error: ScoreError | None) -> bool:
    """Whether there is a score error with matrix slopes."""
    return score_error is not None and score_error.has_matrix_slopes
