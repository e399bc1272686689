"""The second-order expansion of the terminal error in the score errors of a run."""

from collections.abc import Callable
from typing import NamedTuple

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
    check_setting,
    dense_maps,
    evaluation_times,
    initial_moments,
    mode_maps,
    propagate_dense,
    propagate_modes,
)
from ..samplers import AbstractSampler, check_schedule
from ..schedules import Schedule
from ..score_error import AffineError, ScoreError

# directions propagated at once: enough to fill a core's vector units, little memory
_BATCH = 32


class Blocks(NamedTuple):
    """Kernel blocks of all pairs (a, b) of evaluations. The expected excess error is the sum over a, b of

        shift[a, b] E delta_a delta_b + slope[a, b] E Delta_a Delta_b + cross[a, b] E delta_a Delta_b

    over all modes: (E, E, modes) each, or for matrix slopes (E, d, E, d), (E, d, d, E, d, d), (E, d, E, d, d).
    """

    shift: Float[Array, "..."]
    slope: Float[Array, "..."]
    cross: Float[Array, "..."]


class ErrorKernel(eqx.Module):
    """The terminal error F(theta) of a run as a function of its score errors theta = (Delta_a, delta_a)_a.

    Errors are indexed by score evaluation a = 1..E in the order of the run (E = K times the sampler's
    evaluations per step), so methods with several evaluations per step or with memory need no special
    treatment. F is exact: given theta the sampler is affine, its moments follow without approximation and
    F is the metric between the sampled and the data law. To second order in theta, with mean 0,

        E F = F(0) + 1/2 tr(Hess F(0) E theta theta^T) + R,     R = O(4th order) for normal theta.

    The Hessian has four parts: how the mean and the covariance of the samples respond at first order, squared by
    the metric's curvature, and how they respond at second order, weighted by the metric's gradient, which is
    not 0 because discretisation and truncation keep the sampled law away from the data law. All four come
    from differentiating the moment recurrence and the metric's closed form along a direction, twice.

    Source: Correlated-time kernel expansions of the score error; its printed kernel lacks the factor 1/2 on
    the metric's curvature and the two gradient parts.
    """

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    schedule: Schedule
    about: AffineError
    """The errors around which it expands, fields (E, modes[, modes]); usually 0."""
    metric: metrics.Metric = eqx.field(static=True)
    initialization: str = eqx.field(static=True)

    @property
    def times(self) -> Float[Array, " evaluations"]:
        """The time of every evaluation."""
        return evaluation_times(self.process, self.sampler, self.schedule)

    @property
    def dense(self) -> bool:
        """Whether slopes are matrices."""
        return self.about.dense

    def error(self, theta: AffineError) -> Float[Array, ""]:
        """F(theta), exactly, for errors with fields (E, modes[, modes]). Jittable and differentiable."""
        return jnp.sum(self.contributions(theta))

    def contributions(self, theta: AffineError) -> Float[Array, " parts"]:
        """F(theta) by mode; as one number when slopes are matrices."""
        run = (self.target, self.process, self.sampler, self.schedule)
        mean, variance = initial_moments(
            self.target, self.process, self.schedule.times[0], self.initialization
        )
        eigenvalues = jnp.asarray(self.target.eigenvalues)
        if self.dense:
            means, covariances = propagate_dense(
                dense_maps(*run, theta), self.sampler, mean, jnp.diag(variance)
            )
            return self.metric(
                means[-1] - self.target.mean, covariances[-1], jnp.diag(eigenvalues)
            )[None]
        means, variances = propagate_modes(mode_maps(*run, theta), self.sampler, mean, variance)
        error = means[-1] - self.target.mean
        return metrics.per_mode(self.metric, self.target.weights, error, variances[-1], eigenvalues)

    def along(self, w: AffineError) -> tuple[Float[Array, " parts"], Float[Array, " parts"]]:
        """First derivative of the contributions along w, and half the second."""

        def moved(e: Array) -> Array:
            return self.contributions(_plus(self.about, jax.tree.map(lambda a: e * a, w)))

        def slope(e: Array) -> Array:
            return jax.jvp(moved, (e,), (jnp.ones_like(e),))[1]

        zero = jnp.zeros((), self.schedule.times.dtype)
        first, second = jax.jvp(slope, (zero,), (jnp.ones_like(zero),))
        return first, 0.5 * second

    @in_float64
    def baseline(self) -> Float[Array, ""]:
        """F at the errors around which the kernel expands: discretisation and truncation, exactly."""
        return _baseline(self)

    @in_float64
    def contract(self, score_error: ScoreError) -> Float[Array, ""]:
        """The expected excess error to second order, in the metric's units.

        The covariance is used in factored form: r directions cost O(r K modes), or O(r K d^3) with matrix
        slopes, and the kernel is never formed. A mean of the error is included: E theta theta^T is not
        centred, and the gradient of F is added.
        """
        mean, directions = factored(self, score_error)
        return contract(self, mean, directions)

    @in_float64
    def interaction_matrix(
        self, score_error: ScoreError
    ) -> Float[Array, "evaluations evaluations"]:
        """Which pair of evaluations costs how much: entry (a, b) is the part of `contract` due to errors at a and b.

        Symmetric; it sums to `contract` when the error has the mean that the kernel expands about. Its
        diagonal is what the errors would cost if they were independent in time.
        """
        mean, directions = factored(self, score_error)
        parts = [part for part in (directions, mean) if part is not None]
        if not parts:
            return jnp.zeros((self.about.shift.shape[0],) * 2)
        return _interaction(self, jax.tree.map(lambda *a: jnp.concatenate(a), *parts))

    @in_float64
    def time_marginal(self) -> AffineError:
        """Expected excess per unit variance of an error at one evaluation alone: fields (E, modes).

        `slope` for Delta_ii and `shift` for delta_i, per mode: the diagonal of the kernel's blocks.

        **Raises:** ValueError for a kernel with matrix slopes.
        """
        self._need_modes("time_marginal")
        return _time_marginal(self)

    @in_float64
    def blocks(self) -> Blocks:
        """The kernel itself, O(K^2) numbers per mode: for inspection and checks. `contract` does not need it."""
        return _dense_blocks(self) if self.dense else _mode_blocks(self)

    def _need_modes(self, name: str) -> None:
        if self.dense:
            raise ValueError(
                f"{name} is per mode; make the kernel without matrix slopes (dense=False)."
            )

    def __repr__(self) -> str:
        evaluations, modes = self.about.shift.shape
        form = "matrix slopes" if self.dense else "mode by mode"
        return f"ErrorKernel({self.sampler}, {evaluations} evaluations, {modes} modes, {form}, {self.metric.__name__})"


def factored(
    kernel: ErrorKernel, score_error: ScoreError
) -> tuple[AffineError | None, AffineError | None]:
    """Mean of an error relative to what the kernel expands about, (1, E, ...), and its directions (r, E, ...)."""
    if not isinstance(score_error, ScoreError):
        raise ValueError(f"score_error must be a ScoreError; got {type(score_error).__name__}.")
    where = (kernel.target, kernel.process, kernel.times)
    mean, directions = score_error.mean_at(*where), score_error.directions(*where)
    if not kernel.dense:
        if any(part is not None and part.dense for part in (mean, directions)):
            raise ValueError("score_error has matrix slopes; make the kernel with dense=True.")
    else:
        mean, directions = (
            None if part is None else part.as_dense() for part in (mean, directions)
        )
    about = None if mean is None and not _nonzero(kernel.about) else kernel.about
    if about is not None:
        mean = (
            jax.tree.map(jnp.negative, about)
            if mean is None
            else jax.tree.map(jnp.subtract, mean, about)
        )
        mean = jax.tree.map(lambda a: a[None], mean)
    return mean, directions


def _nonzero(error: AffineError) -> bool:
    return is_traced(error) or any(np.any(np.asarray(a) != 0) for a in jax.tree.leaves(error))


def _plus(a: AffineError, b: AffineError) -> AffineError:
    return jax.tree.map(jnp.add, a, b)


@in_float64
def error_kernel(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    metric: str | metrics.Metric = "w2_squared",
    initialization: str = "standard_normal",
    dense: bool = False,
    about: AffineError | None = None,
) -> ErrorKernel:
    """The sensitivity of a run's terminal error to score errors at every pair of evaluations.

    **Arguments:** as for `evaluate_schedule`. `metric`: "w2_squared", "kl" = KL(p_data || q), "reverse_kl", or a
    differentiable function of your own (`metrics`; with `dense`, of covariance matrices). `dense=True` for
    errors that mix modes (small d; needs unit weights). `about`: known errors to expand around, fields
    (evaluations, modes[, modes]); default none. Errors are along the target's modes: for matrices in data
    coordinates pass basis^T Delta basis.

    **Raises:** ValueError naming the argument; also if the network would be evaluated where the signal is 0,
    where a score does not determine the denoised point.
    """
    target, process, sampler = check_setting(target, process, sampler)
    schedule = check_schedule(process, sampler, schedule)
    initialization = _checks.one_of("initialization", initialization, NAMED_INITIALIZATIONS)
    metric_fn = metrics.resolve(metric, dense=dense)
    target = target.in_eigenbasis()
    times = evaluation_times(process, sampler, schedule)
    if not is_traced((process, schedule)):
        signal = np.asarray(process.signal(times))
        if np.any(signal <= 0):
            raise ValueError(
                f"the network is evaluated at t = {float(times[int(np.argmin(signal))]):g}, where the signal is 0 "
                "and a score error has no finite effect on the denoised point; start the schedule below t_max."
            )
    modes = target.eigenvalues.shape[0]
    shape = (times.shape[0], modes)
    if about is None:
        about = AffineError(
            jnp.zeros((*shape, modes) if dense else shape, times.dtype),
            jnp.zeros(shape, times.dtype),
        )
    elif dense:
        about = about.as_dense()
    if about.shift.shape != shape or about.slope.shape != ((*shape, modes) if dense else shape):
        raise ValueError(
            f"about has slope {about.slope.shape} and shift {about.shift.shape}; this run has {shape[0]} evaluations "
            f"and {modes} modes."
        )
    if dense and not is_traced(target) and np.any(np.asarray(target.weights) != 1):
        raise ValueError(
            "dense=True needs a target with unit weights: a mode of weight w is not one coordinate."
        )
    return ErrorKernel(target, process, sampler, schedule, about, metric_fn, initialization)


@jax.jit
def _baseline(kernel: ErrorKernel) -> Array:
    return kernel.error(kernel.about)


def _map(fn: Callable[[AffineError], Array], directions: AffineError) -> Array:
    return jax.lax.map(fn, directions, batch_size=min(_BATCH, directions.shift.shape[0]))


@jax.jit
def contract(
    kernel: ErrorKernel, mean: AffineError | None, directions: AffineError | None
) -> Array:
    """`ErrorKernel.contract` of an error in factored form."""
    total = jnp.zeros((), kernel.schedule.times.dtype)
    if directions is not None:
        total += jnp.sum(_map(lambda w: kernel.along(w)[1], directions))
    if mean is not None:
        total += jnp.sum(_map(lambda w: jnp.add(*kernel.along(w)), mean))
    return total


@jax.jit
def _interaction(kernel: ErrorKernel, directions: AffineError) -> Array:
    _, hessian_times = jax.linearize(jax.grad(kernel.error), kernel.about)
    evaluations = kernel.about.shift.shape[0]

    def row(w: AffineError) -> Array:
        def entry(a: Array) -> Array:
            here = jnp.arange(evaluations) == a
            part = jax.tree.map(
                lambda v: jnp.where(here.reshape(-1, *[1] * (v.ndim - 1)), v, 0.0), w
            )
            response = jax.tree.map(jnp.multiply, hessian_times(part), w)
            return 0.5 * jnp.sum(response.slope.reshape(evaluations, -1), 1) + 0.5 * jnp.sum(
                response.shift, -1
            )

        return jax.lax.map(entry, jnp.arange(evaluations), batch_size=min(_BATCH, evaluations))

    return jnp.sum(jax.lax.map(row, directions), 0)


def _units(kernel: ErrorKernel) -> AffineError:
    """One direction per evaluation and parameter, in all modes at once: slopes first."""
    evaluations, modes = kernel.about.shift.shape
    one = jnp.eye(evaluations, dtype=kernel.schedule.times.dtype)[:, :, None] * jnp.ones(modes)
    zero = jnp.zeros_like(one)
    return AffineError(jnp.concatenate([one, zero]), jnp.concatenate([zero, one]))


@jax.jit
def _time_marginal(kernel: ErrorKernel) -> AffineError:
    second = _map(lambda w: kernel.along(w)[1], _units(kernel))
    return AffineError(*jnp.split(second, 2))


@jax.jit
def _mode_blocks(kernel: ErrorKernel) -> Blocks:
    # modes do not interact, so one product with the Hessian gives a row of every mode's
    _, hessian_times = jax.linearize(jax.grad(kernel.error), kernel.about)
    rows = jax.lax.map(hessian_times, _units(kernel), batch_size=_BATCH)
    evaluations = kernel.about.shift.shape[0]
    return Blocks(
        0.5 * rows.shift[evaluations:], 0.5 * rows.slope[:evaluations], rows.slope[evaluations:]
    )


@jax.jit
def _dense_blocks(kernel: ErrorKernel) -> Blocks:
    hessian = jax.jacfwd(jax.grad(kernel.error))(kernel.about)
    return Blocks(0.5 * hessian.shift.shift, 0.5 * hessian.slope.slope, hessian.shift.slope)
