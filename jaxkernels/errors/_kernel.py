"""The second-order expansion of the terminal error in the score errors of a run."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .. import _checks, metrics
from .._derivatives import pointwise_derivatives
from .._precision import in_float64, is_traced
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import Initialization, Run
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AffineError, ScoreError

Tree = TypeVar("Tree", bound=PyTree)

# directions propagated at once: enough to fill a core's vector units, little memory
_BATCH = 32


class Blocks(NamedTuple):
    """Kernel blocks of all pairs (a, b) of evaluations.

    The expected excess error is the sum over a, b and over all modes of

        shift[a, b] E delta_a delta_b + slope[a, b] E Delta_a Delta_b
            + cross[a, b] E delta_a Delta_b.

    **Arguments:**

    - `shift`: (E, E, modes), or (E, d, E, d) for matrix slopes.
    - `slope`: (E, E, modes), or (E, d, d, E, d, d).
    - `cross`: (E, E, modes), or (E, d, E, d, d).

    **Example:**

    ```python
    >>> schedule = jk.schedules.log_snr(jk.VP(), 4, 1e-3)
    >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
    >>> assert kernel.blocks().shift.shape == (4, 4, 2)
    ```
    """

    shift: Float[Array, "..."]
    slope: Float[Array, "..."]
    cross: Float[Array, "..."]


class ErrorKernel(eqx.Module):
    """The terminal error F(theta) of a run as a function of its score errors theta.

    theta = (Delta_a, delta_a)_a holds the affine errors of all network evaluations.

    Errors are indexed by network evaluation a = 1..E in the order of the run (E = K times the
    sampler's evaluations per step), so samplers with several evaluations per step or with a
    multistep history need no special treatment. F is exact: given theta the sampler is affine, its
    moments follow without approximation, and F is the metric between the distributions of samples
    and data. To second order in theta, with mean 0,

        E F = F(0) + 1/2 tr(Hess F(0) E theta theta^T) + R,     R = O(4th order) for normal theta.

    The Hessian has four parts: how the mean and the covariance of the samples respond at first
    order, squared by the metric's curvature, and how they respond at second order, weighted by the
    metric's gradient. The gradient is not 0, because discretisation and truncation keep the samples
    away from the data. All four come from differentiating the moment recurrence and the metric
    along a direction, twice.

    Make one with `jk.error_kernel`.

    **Arguments:**

    - `run`: the run, with its target in the eigenbasis.
    - `about`: the errors around which the kernel expands, fields (E, modes[, modes]); usually 0.
    - `metric`: the metric between samples and data.

    **Example:**

    ```python
    >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
    >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
    >>> assert kernel.contract(jk.ScoreError.diagonal(shift=0.1)) > 0
    ```

    Source: "Correlated-time kernel expansions of the score error" (manuscript). As published the
    kernel lacks the factor 1/2 on the metric's curvature and the two gradient parts.
    """

    run: Run
    about: AffineError
    metric: metrics.Metric = eqx.field(static=True)

    @classmethod
    def about_zero(cls, run: Run, metric: metrics.Metric, *, dense: bool = False) -> "ErrorKernel":
        """Expand around no score error.

        **Arguments:**

        - `run`: the run, with its target in the eigenbasis.
        - `metric`: between samples and data, a function as in `jk.metrics`.
        - `dense`: whether slopes are matrices; then `metric` compares covariances.

        **Returns:** the kernel.
        """
        return cls(run, _no_error(run, dense), metric)

    @property
    def target(self) -> Gaussian:
        """The target of the run, in its eigenbasis."""
        return self.run.target

    @property
    def process(self) -> AbstractProcess:
        """The process of the run."""
        return self.run.process

    @property
    def times(self) -> Float[Array, " evaluations"]:
        """The time of every evaluation."""
        return self.run.evaluation_times()

    @property
    def dense(self) -> bool:
        """Whether slopes are matrices."""
        return self.about.dense

    def error(self, theta: AffineError) -> Float[Array, ""]:
        """Compute F(theta) exactly. Jittable and differentiable.

        **Arguments:**

        - `theta`: errors of every evaluation, fields (E, modes[, modes]), in 1 / data.

        **Returns:** the terminal error, in the metric's units.

        **Example:**

        ```python
        >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
        >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
        >>> assert jnp.isclose(kernel.error(kernel.about), kernel.baseline(), rtol=1e-3)
        ```
        """
        return jnp.sum(self.contributions(theta))

    def contributions(self, theta: AffineError) -> Float[Array, " parts"]:
        """Split F(theta) into the contributions of the modes.

        **Arguments:**

        - `theta`: errors of every evaluation, as for `error`.

        **Returns:** (modes,), in the metric's units; (1,) when slopes are matrices.
        """
        return self.run.contributions(self.metric, theta)

    def along(self, w: AffineError) -> tuple[Float[Array, " parts"], Float[Array, " parts"]]:
        """Differentiate the contributions along a direction, twice.

            contributions(about + e w) = contributions(about) + e first + e^2 second + O(e^3)

        **Arguments:**

        - `w`: the direction, errors of every evaluation as for `error`.

        **Returns:** first and second, each in the shape of `contributions`.
        """
        zero = jnp.zeros((), self.run.schedule.times.dtype)
        moved = pointwise_derivatives(lambda e: self.contributions(displaced(self, w, e)), zero)
        return moved[1], 0.5 * moved[2]

    @in_float64
    def baseline(self) -> Float[Array, ""]:
        """Compute F where the kernel expands, exactly.

        About no score error it is due to initialization, discretisation and truncation.

        **Returns:** the terminal error, in the metric's units.
        """
        return _baseline(self)

    @in_float64
    def contract(self, score_error: ScoreError) -> Float[Array, ""]:
        """Compute the expected excess error to second order.

        The covariance is used in factored form: r directions cost O(r K modes), or O(r K d^3) with
        matrix slopes, and the kernel is never formed. A mean of the error is included: E theta
        theta^T is not centred, and the gradient of F is added.

        **Arguments:**

        - `score_error`: the random error, with matrix slopes only if the kernel has them.

        **Returns:** the excess, in the metric's units.

        **Raises:** ValueError if the error does not fit the run.

        **Example:**

        ```python
        >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
        >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
        >>> excess = kernel.contract(jk.ScoreError.relative(0.05, jk.AR1(0.9)))
        ```
        """
        mean, directions = factored(self, score_error)
        return contract(self, mean, directions)

    @in_float64
    def interaction_matrix(
        self, score_error: ScoreError
    ) -> Float[Array, "evaluations evaluations"]:
        """Compute which pair of evaluations costs how much.

        Entry (a, b) is the part of `contract` due to errors at a and b. The matrix is symmetric and
        sums to `contract`. Its diagonal is what the errors would cost if they were independent in
        time; a mean of the error other than the one that the kernel expands about acts at first
        order as well, by itself at every evaluation, and that part is on the diagonal too.

        **Arguments:**

        - `score_error`: as for `contract`.

        **Returns:** (E, E), in the metric's units.

        **Raises:** ValueError if the error does not fit the run.

        **Example:**

        ```python
        >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
        >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
        >>> pairs = kernel.interaction_matrix(jk.ScoreError.diagonal(shift=0.1))
        ```
        """
        mean, directions = factored(self, score_error)
        parts = [part for part in (directions, mean) if part is not None]
        if not parts:
            return jnp.zeros((self.about.shift.shape[0],) * 2)
        pairs = _interaction(self, jax.tree.map(lambda *a: jnp.concatenate(a), *parts))
        return pairs if mean is None else pairs + jnp.diag(_first_order(self, mean))

    @in_float64
    def time_marginal(self) -> AffineError:
        """Compute the expected excess per unit variance of an error at one evaluation alone.

        It is the diagonal of the kernel's blocks.

        **Returns:** fields (E, modes): `slope` for Delta_ii and `shift` for delta_i, per mode.

        **Raises:** ValueError for a kernel with matrix slopes.

        **Example:**

        ```python
        >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
        >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
        >>> where = kernel.time_marginal().shift.sum(-1)
        ```
        """
        if self.dense:
            raise ValueError(
                "time_marginal is per mode; make the kernel without matrix slopes (dense=False)."
            )
        return _time_marginal(self)

    @in_float64
    def blocks(self) -> Blocks:
        """Assemble the kernel itself, O(K^2) numbers per mode, for inspection and checks.

        `contract` does not need it.

        **Returns:** the blocks of all pairs of evaluations.

        **Example:**

        ```python
        >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
        >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
        >>> blocks = kernel.blocks()
        ```
        """
        return _dense_blocks(self) if self.dense else _mode_blocks(self)

    def __repr__(self) -> str:
        evaluations, modes = self.about.shift.shape
        form = "matrix slopes" if self.dense else "per mode"
        metric = getattr(self.metric, "__name__", repr(self.metric))
        return (
            f"ErrorKernel({self.run.sampler}, {evaluations} evaluations, {modes} modes, {form}, "
            f"{metric})"
        )


@in_float64
def error_kernel(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    metric: str | metrics.Metric = "w2_squared",
    initialization: Initialization = None,
    dense: bool = False,
    about: AffineError | None = None,
) -> ErrorKernel:
    """Make the sensitivity of a run's terminal error to score errors at every pair of evaluations.

    **Arguments:**

    - `target`, `process`, `sampler`, `schedule`: as for `jk.evaluate_schedule`.
    - `metric`: "w2_squared", "kl" = KL(p_data || q), "reverse_kl", "log_chi_squared", or a function
      as in `jk.metrics` (with `dense`, of covariance matrices).
    - `initialization`: "standard_normal", "marginal", or with `dense` any Gaussian in data
      coordinates. Default: that of the process.
    - `dense`: True for errors that mix modes (small d; needs unit weights).
    - `about`: known errors to expand around, fields (evaluations, modes[, modes]), along the
      target's modes: for matrices in data coordinates pass basis^T Delta basis. Default: none.

    **Returns:** the kernel.

    **Raises:** ValueError naming the argument; also if the network would be evaluated where the
    signal is 0, where a score does not determine the denoised point.

    **Example:**

    ```python
    >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
    >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "dpmpp_2m", schedule)
    >>> excess = kernel.contract(jk.ScoreError.relative(0.05))
    ```

    Source: as for `ErrorKernel`.
    """
    run = Run.checked(target, process, sampler, schedule, initialization)
    if not (dense or run.initialization.commutes):
        raise ValueError(
            "initialization is a Gaussian, whose covariance may mix modes: pass dense=True, or "
            "initialization by name."
        )
    run.check_signal()
    none = _no_error(run, dense)
    about = none if about is None else _checked_about(about, none, dense)
    weights = run.target.weights
    if dense and not is_traced(weights) and np.any(np.asarray(weights) != 1):
        raise ValueError(
            "dense=True needs a target with unit weights: a mode of weight w is not one coordinate."
        )
    return ErrorKernel(run, about, metrics.resolve(metric, dense=dense))


def _no_error(run: Run, dense: bool) -> AffineError:
    """The error 0 at every evaluation."""
    modes = run.target.eigenvalues.shape[0]
    shape = (run.nfe, modes)
    dtype = run.schedule.times.dtype
    slope = jnp.zeros((*shape, modes) if dense else shape, dtype)
    return AffineError(slope, jnp.zeros(shape, dtype))


def _checked_about(about: AffineError, none: AffineError, dense: bool) -> AffineError:
    """`about`, in the form of the error `none`."""
    about = _checks.instance("about", about, AffineError)
    if dense:
        about = about.as_dense()
    if about.shift.shape != none.shift.shape or about.slope.shape != none.slope.shape:
        evaluations, modes = none.shift.shape
        raise ValueError(
            f"about has slope {about.slope.shape} and shift {about.shift.shape}; this run has "
            f"{evaluations} evaluations and {modes} modes."
        )
    return about


def check_kernel(kernel: object) -> ErrorKernel:
    """Check that something is a kernel."""
    if not isinstance(kernel, ErrorKernel):
        raise ValueError(
            f"kernel must be one of jk.error_kernel(...); got {type(kernel).__name__}."
        )
    return kernel


def factored(
    kernel: ErrorKernel, score_error: ScoreError
) -> tuple[AffineError | None, AffineError | None]:
    """An error's mean relative to `about`, fields (1, E, ...), and its directions (r, E, ...)."""
    kernel = check_kernel(kernel)
    score_error = _checks.instance("score_error", score_error, ScoreError)
    where = (kernel.target, kernel.process, kernel.times)
    mean = _in_form_of(kernel, score_error.mean_at(*where))
    directions = _in_form_of(kernel, score_error.directions(*where))
    if _nonzero(kernel.about):
        # relative to the errors that are known
        if mean is None:
            mean = jax.tree.map(jnp.zeros_like, kernel.about)
        mean = jax.tree.map(jnp.subtract, mean, kernel.about)
    if mean is not None:
        mean = jax.tree.map(lambda a: a[None], mean)
    return mean, directions


def _in_form_of(kernel: ErrorKernel, error: AffineError | None) -> AffineError | None:
    """An error with the slopes of the kernel: per mode, or matrices."""
    if error is None:
        return None
    if kernel.dense:
        return error.as_dense()
    if error.dense:
        raise ValueError("score_error has matrix slopes; make the kernel with dense=True.")
    return error


def _nonzero(error: AffineError) -> bool:
    """Whether an error may differ from 0."""
    return is_traced(error) or any(np.any(np.asarray(a) != 0) for a in jax.tree.leaves(error))


@jax.jit
def _baseline(kernel: ErrorKernel) -> Array:
    """F where the kernel expands."""
    return kernel.error(kernel.about)


def displaced(kernel: ErrorKernel, w: AffineError, e: Array) -> AffineError:
    """The errors about which a kernel expands, plus e w."""

    def add(a: Array, b: Array) -> Array:
        return jnp.asarray(a, e.dtype) + e * jnp.asarray(b, e.dtype)

    return jax.tree.map(add, kernel.about, w)


def map_directions(fn: Callable[[AffineError], Tree], directions: AffineError) -> Tree:
    """`fn` of every direction, a batch at a time."""
    return jax.lax.map(fn, directions, batch_size=min(_BATCH, directions.shift.shape[0]))


@jax.jit
def contract(
    kernel: ErrorKernel, mean: AffineError | None, directions: AffineError | None
) -> Array:
    """`ErrorKernel.contract` of an error in factored form."""
    total = jnp.zeros((), kernel.run.schedule.times.dtype)
    if directions is not None:
        total += jnp.sum(map_directions(lambda w: kernel.along(w)[1], directions))
    if mean is not None:
        total += jnp.sum(map_directions(lambda w: jnp.add(*kernel.along(w)), mean))
    return total


@jax.jit
def _first_order(kernel: ErrorKernel, mean: AffineError) -> Array:
    """What a mean error (1, E, ...) adds at first order, by evaluation."""
    gradient = jax.grad(kernel.error)(kernel.about)
    return _sum_by_evaluation(jax.tree.map(lambda g, m: g * m[0], gradient, mean))


def _sum_by_evaluation(error: AffineError) -> Array:
    """The sum of slopes and shifts over modes, at every evaluation."""
    by_slope = jnp.sum(error.slope.reshape(error.slope.shape[0], -1), 1)
    return by_slope + jnp.sum(error.shift, -1)


@jax.jit
def _interaction(kernel: ErrorKernel, directions: AffineError) -> Array:
    """The matrix over pairs of evaluations, summed over directions."""
    _, hessian_times = jax.linearize(jax.grad(kernel.error), kernel.about)
    evaluations = kernel.about.shift.shape[0]

    def row(w: AffineError) -> Array:
        def entry(a: Array) -> Array:
            here = jnp.arange(evaluations) == a
            part = jax.tree.map(
                lambda v: jnp.where(here.reshape(-1, *[1] * (v.ndim - 1)), v, 0.0), w
            )
            return 0.5 * _sum_by_evaluation(jax.tree.map(jnp.multiply, hessian_times(part), w))

        return jax.lax.map(entry, jnp.arange(evaluations), batch_size=min(_BATCH, evaluations))

    return jnp.sum(jax.lax.map(row, directions), 0)


def _units(kernel: ErrorKernel) -> AffineError:
    """One direction per evaluation and parameter, in all modes at once: slopes first."""
    evaluations, modes = kernel.about.shift.shape
    one = jnp.eye(evaluations, dtype=kernel.run.schedule.times.dtype)[:, :, None] * jnp.ones(modes)
    zero = jnp.zeros_like(one)
    return AffineError(jnp.concatenate([one, zero]), jnp.concatenate([zero, one]))


@jax.jit
def _time_marginal(kernel: ErrorKernel) -> AffineError:
    """The quadratic form of every unit error."""
    second = map_directions(lambda w: kernel.along(w)[1], _units(kernel))
    return AffineError(*jnp.split(second, 2))


@jax.jit
def _mode_blocks(kernel: ErrorKernel) -> Blocks:
    """The blocks of a kernel per mode."""
    # modes do not interact, so one product with the Hessian gives a row of every mode's
    _, hessian_times = jax.linearize(jax.grad(kernel.error), kernel.about)
    rows = jax.lax.map(hessian_times, _units(kernel), batch_size=_BATCH)
    evaluations = kernel.about.shift.shape[0]
    return Blocks(
        0.5 * rows.shift[evaluations:], 0.5 * rows.slope[:evaluations], rows.slope[evaluations:]
    )


@jax.jit
def _dense_blocks(kernel: ErrorKernel) -> Blocks:
    """The blocks of a kernel with matrix slopes."""
    hessian = jax.jacfwd(jax.grad(kernel.error))(kernel.about)
    return Blocks(0.5 * hessian.shift.shift, 0.5 * hessian.slope.slope, hessian.shift.slope)
