"""What an error kernel says about a run: its curve, its parts, its worst errors, its stability."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._derivatives import pointwise_derivatives
from .._linalg import product
from .._numerics import larger, largest
from .._precision import in_float64
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import Moments, Run
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AffineError, FullyCorrelated, ScoreError
from ._expected import centred
from ._kernel import ErrorKernel, check_kernel, displaced, factored, map_directions

Tree = TypeVar("Tree", bound=PyTree)


class ErrorCurve(NamedTuple):
    """The expected error between the data and a run that is stopped after k steps, k = 0, ..., K.

    **Arguments:**

    - `times`: (K + 1,) of the schedule.
    - `baseline`: (K + 1,) the error for the mean score error, in the metric's units.
    - `excess`: (K + 1,) what the randomness of the score error adds, to second order.

    **Example:**

    ```python
    >>> curve = jk.ErrorCurve(times=np.ones(1), baseline=np.ones(1), excess=np.zeros(1))
    ```
    """

    times: Float[Array, " points"]
    baseline: Float[Array, " points"]
    excess: Float[Array, " points"]

    @property
    def value(self) -> Float[Array, " points"]:
        """The expected error, (K + 1,)."""
        return self.baseline + self.excess


class KernelParts(NamedTuple):
    """The parts of an expected excess error, which add up to `ErrorKernel.contract`.

    **Arguments:**

    - `mean`: the metric's curvature in the mean of the samples.
    - `covariance`: its curvature in their covariance.
    - `mixed`: its curvature in both; 0 for W2.
    - `gradient`: its gradient times the change of mean and covariance, which does not vanish
      because discretisation and truncation keep the samples away from the data.

    **Example:**

    ```python
    >>> parts = jk.KernelParts(mean=0.2, covariance=0.1, mixed=0.0, gradient=-0.05)
    ```
    """

    mean: Float[Array, ""]
    covariance: Float[Array, ""]
    mixed: Float[Array, ""]
    gradient: Float[Array, ""]


class TimeModes(NamedTuple):
    """Patterns in time of a score error, by what they cost.

    **Arguments:**

    - `cost`: (E,) the excess error of each pattern, decreasing, in the metric's units.
    - `pattern`: (E, E) amplitudes at the evaluations, one row per pattern, of norm 1.

    **Example:**

    ```python
    >>> modes = jk.TimeModes(cost=np.ones(1), pattern=np.ones((1, 1)))
    ```
    """

    cost: Float[Array, " evaluations"]
    pattern: Float[Array, "evaluations evaluations"]


@in_float64
def error_curve(kernel: ErrorKernel, score_error: ScoreError) -> ErrorCurve:
    """Compute the expected error of a run that is stopped after k steps, for all k in one pass.

        k -> E metric(p_0, q_k)

    exactly in the mean of the score error and to second order in its randomness. Steps are those of
    the whole run: a sampler whose last step is special differs from one on a shorter schedule.

    **Arguments:**

    - `kernel`: of the run, `error_kernel(...)`.
    - `score_error`: the random error, with matrix slopes only if the kernel has them.

    **Returns:** an `ErrorCurve`.

    **Raises:** ValueError if the error does not fit the run.

    **Example:**

    ```python
    >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
    >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
    >>> assert jk.error_curve(kernel, jk.ScoreError.relative(0.05)).value.shape == (9,)
    ```

    Source: as for `ErrorKernel`, where it is proposed as a diagnostic.
    """
    centre, directions = centred(kernel, score_error)
    return ErrorCurve(jnp.asarray(kernel.run.schedule.times), *_curve(centre, directions))


@jax.jit
def _curve(kernel: ErrorKernel, directions: AffineError | None) -> tuple[Array, Array]:
    """The error at every time of the schedule, and what the directions add."""
    baseline = _errors_by_point(kernel, kernel.about)
    if directions is None:
        return baseline, jnp.zeros_like(baseline)

    def second(w: AffineError) -> Array:
        return _expand(lambda e: _errors_by_point(kernel, displaced(kernel, w, e)))[2]

    return baseline, jnp.sum(map_directions(second, directions), 0)


def _errors_by_point(kernel: ErrorKernel, theta: AffineError) -> Float[Array, " points"]:
    """The metric between the data and the samples at every time of the schedule."""
    coordinates = kernel.run.coordinates(theta)
    data = coordinates.data()

    def distance(mean: Array, covariance: Array) -> Array:
        return coordinates.distance(kernel.metric, Moments(mean, covariance), data)

    return jax.vmap(distance)(*kernel.run.moments(theta))


@in_float64
def kernel_parts(kernel: ErrorKernel, score_error: ScoreError) -> KernelParts:
    """Split an expected excess error into the parts of the kernel.

        1/2 G_mm [m1, m1] + 1/2 G_SS [S1, S1] + G_mS [m1, S1] + G' (m2, S2)

    with G the metric as a function of mean and covariance of the samples, and m1, S1, m2, S2 their
    changes of first and second order. A mean of the error adds G' (m1, S1) to the last part.

    **Arguments:**

    - `kernel`, `score_error`: as for `ErrorKernel.contract`.

    **Returns:** a `KernelParts`.

    **Raises:** ValueError if the error does not fit the run.

    **Example:**

    ```python
    >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
    >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
    >>> assert jk.kernel_parts(kernel, jk.ScoreError.relative(0.05)).covariance > 0
    ```

    Source: as for `ErrorKernel`.
    """
    return _parts(kernel, *factored(kernel, score_error))


@jax.jit
def _parts(
    kernel: ErrorKernel, mean: AffineError | None, directions: AffineError | None
) -> KernelParts:
    """The parts of an error in factored form."""
    total = jnp.zeros(4, kernel.run.schedule.times.dtype)
    if directions is not None:
        rows, _ = map_directions(lambda w: _parts_along(kernel, w), directions)
        total += jnp.sum(rows, 0)
    if mean is not None:
        rows, first_order = map_directions(lambda w: _parts_along(kernel, w), mean)
        total += rows[0] + jnp.zeros(4).at[-1].set(first_order[0])
    return KernelParts(*total)


def _parts_along(kernel: ErrorKernel, w: AffineError) -> tuple[Float[Array, " 4"], Array]:
    """The four parts along a direction, and the first order."""
    coordinates = kernel.run.coordinates(kernel.about)
    data = coordinates.data()

    def metric(mean: Array, covariance: Array) -> Array:
        return coordinates.distance(kernel.metric, Moments(mean, covariance), data)

    at, first, second = _expand(lambda e: kernel.run.moments(displaced(kernel, w, e)).last)
    by_mean = _expand(lambda e: metric(at.mean + e * first.mean, at.covariance))[2]
    by_covariance = _expand(lambda e: metric(at.mean, at.covariance + e * first.covariance))[2]
    _, first_order, both = _expand(
        lambda e: metric(at.mean + e * first.mean, at.covariance + e * first.covariance)
    )
    gradient = jax.jvp(metric, tuple(at), tuple(second))[1]
    mixed = both - by_mean - by_covariance
    return jnp.stack([by_mean, by_covariance, mixed, gradient]), first_order


@in_float64
def time_modes(kernel: ErrorKernel, score_error: ScoreError) -> TimeModes:
    """Find the patterns in time of a score error that cost most.

    With the shapes of the error multiplied by an amplitude x_a at evaluation a, alike for all
    shapes, the excess error is a quadratic form x^T Q x. Its eigenvectors are independent patterns:
    amplitudes with second moments R cost sum_j cost_j pattern_j^T R pattern_j.

    **Arguments:**

    - `kernel`: of the run, `error_kernel(...)`.
    - `score_error`: the random error. Its correlation in time and its mean have no effect.

    **Returns:** a `TimeModes`.

    **Raises:** ValueError for an error without a random part, a sum of several, or one that does
    not fit the run.

    **Example:**

    ```python
    >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
    >>> kernel = jk.error_kernel(jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedule)
    >>> worst = jk.time_modes(kernel, jk.ScoreError.relative(0.05)).pattern[0]
    ```

    Source: derived here.
    """
    score_error = check_one_random_part(score_error)
    common = ScoreError(score_error.shapes, FullyCorrelated())
    cost, patterns = jnp.linalg.eigh(jnp.asarray(check_kernel(kernel).interaction_matrix(common)))
    return TimeModes(cost[::-1], patterns.T[::-1])


def check_one_random_part(score_error: object) -> ScoreError:
    """Check that an error is random, with one amplitude in time."""
    if not isinstance(score_error, ScoreError) or score_error.shapes is None:
        raise ValueError(f"score_error must be a ScoreError with a random part; got {score_error}.")
    if score_error.other is not None:
        raise ValueError("score_error is a sum, whose parts have no common amplitude; pass one.")
    return score_error


@in_float64
def stability_constant(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
) -> Float[Array, ""]:
    """Compute the constant that bounds how errors in x grow over any part of a run.

        M = max over a <= b of |Phi|^2,     Phi from x_a to x_b for the exact score

    Means grow by |Phi|, covariances by |Phi|^2, which is at least 1 (a = b). A multistep method
    starts at a without history.

    **Arguments:**

    - `target`, `process`, `sampler`, `schedule`: as for `jk.evaluate_schedule`.

    **Returns:** M, a scalar.

    **Raises:** ValueError naming the argument that does not fit.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim")
    >>> assert jk.stability_constant(*setting, jk.schedules.log_snr(jk.VP(), 8, 1e-3)) >= 1
    ```

    Source: "Correlated-time kernel expansions of the score error" (manuscript), (30).
    """
    return stability_of(Run.checked(target, process, sampler, schedule))


@jax.jit
def stability_of(run: Run) -> Array:
    """The constant of a run."""
    factors = jnp.moveaxis(run.affine_maps().factor, -2, 0)
    points = factors.shape[0]
    identity = jnp.broadcast_to(jnp.eye(factors.shape[1])[..., None], factors.shape[1:])

    def step(products: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, k = inputs
        # a product that begins at this step starts from the identity
        products = jax.vmap(lambda p: product(factor, p))(products.at[k].set(identity))
        begun = (jnp.arange(points) <= k)[:, None]
        sizes = jnp.where(begun, jnp.abs(products[:, 0, 0]), 0.0)
        return products, largest(jnp.ravel(sizes))

    start = jnp.broadcast_to(identity, (points, *identity.shape))
    _, sizes = jax.lax.scan(step, start, (factors, jnp.arange(points)))
    return larger(largest(sizes), 1.0) ** 2


def _expand(fn: Callable[[Array], Tree]) -> tuple[Tree, Tree, Tree]:
    """fn(0), its derivative and half its second derivative at 0."""
    value, first, second = pointwise_derivatives(fn, jnp.zeros(()))
    return value, first, jax.tree.map(lambda a: 0.5 * a, second)
