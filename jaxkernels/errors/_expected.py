"""The expected terminal error under a random score error: expansion, quadrature and simulation."""

import itertools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks, metrics
from .._precision import in_float64, is_traced
from .._types import constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import Initialization
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AffineError, ScoreError
from ._kernel import ErrorKernel, contract, error_kernel, factored

METHODS = ("second_order", "quadrature", "monte_carlo")

# runs propagated at once
_BATCH = 256

# antithetic pairs that estimate the remainder of the expansion when no number is given
_PAIRS = 128
_MANY_PAIRS = 10_000

_MOST_NODES = 1_000_000


class ExpectedError(eqx.Module):
    """The mean over score errors of a run's exact terminal error, in the metric's units.

        value = baseline + excess

    **Arguments:**

    - `value`: the mean error, a scalar as are all others.
    - `baseline`: the error for the mean score error.
    - `excess`: what the randomness of the score error adds.
    - `second_order`: the excess of the expansion.
    - `remainder`: excess - second_order as far as it is known; for method "second_order" the excess
      is the expansion, and `remainder` an estimate of what it leaves out.
    - `standard_error`: of the simulated part (0 for quadrature).
    - `method`: how the excess was computed.

    The expansion holds where |remainder| is small against the excess: see `relative_remainder`.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> result = jk.expected_error(*run, score_error=jk.ScoreError.diagonal(shift=0.1))
    >>> assert result.relative_remainder < 0.1
    ```
    """

    value: Float[Array, ""]
    baseline: Float[Array, ""]
    excess: Float[Array, ""]
    second_order: Float[Array, ""]
    remainder: Float[Array, ""]
    standard_error: Float[Array, ""]
    method: str = eqx.field(static=True)

    @property
    def relative_remainder(self) -> Float[Array, ""]:
        """|remainder| / second_order."""
        return jnp.abs(self.remainder) / jnp.abs(self.second_order)

    def __repr__(self) -> str:
        if is_traced(self):
            return "ExpectedError(traced)"
        names = ("value", "baseline", "excess", "second_order", "remainder", "standard_error")
        fields = ", ".join(f"{name}={float(getattr(self, name)):.5g}" for name in names)
        return f"ExpectedError({fields}, method={self.method!r})"


@in_float64
def expected_error(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    score_error: ScoreError,
    method: str = "second_order",
    metric: str | metrics.Metric = "w2_squared",
    initialization: Initialization = None,
    dense: bool = False,
    pairs: int | None = None,
    nodes: int = 16,
    key: Array | None = None,
) -> ExpectedError:
    """Compute the expected terminal error E metric(p_0, q) over a random score error.

    q is the exact distribution of the samples for a given error. The error's mean is treated
    exactly (the expansion is around it), its randomness by `method`.

    **Arguments:**

    - `target`, `process`, `sampler`, `schedule`, `metric`, `initialization`, `dense`: as for
      `jk.error_kernel`.
    - `score_error`: the random error.
    - `method`: "second_order" is `ErrorKernel.contract`, with a simulation that estimates the
      remainder; a warning says where that is not small. "quadrature" is Gauss-Hermite in every
      direction, exact for errors of low rank as `nodes` grow, with at most a million points in all.
      "monte_carlo" draws antithetic pairs (theta, -theta) of error trajectories, each with its
      exact moments; the quadratic part is subtracted and its known mean added back, so that only
      the remainder is noisy.
    - `pairs`: number of pairs simulated, >= 2. Default: 128 for "second_order", else 10 000.
    - `nodes`: of the quadrature, per direction.
    - `key`: of the simulation. Default: a fixed one, so that the same call gives the same numbers.

    **Returns:** an `ExpectedError`.

    **Raises:** ValueError naming the argument; also if the expected error is infinite or not a
    number.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([0.5, 0.2, 0.05]))
    >>> result = jk.expected_error(*run, score_error=jk.ScoreError.relative(0.05))
    >>> assert result.value > result.baseline
    ```

    Source: as for `ErrorKernel`.
    """
    method = _checks.one_of("method", method, METHODS)
    nodes = _checks.count("nodes", nodes)
    if pairs is None:
        pairs = _PAIRS if method == "second_order" else _MANY_PAIRS
    pairs = _checks.count("pairs", pairs, at_least=2)
    key = jax.random.key(0) if key is None else _checks.random_key("key", key)
    kernel = error_kernel(
        target,
        process,
        sampler,
        schedule,
        metric=metric,
        initialization=initialization,
        dense=dense,
    )
    kernel, directions = centred(kernel, score_error)
    result = _expected(kernel, directions, method, pairs, nodes, key)
    if not is_traced(result) and not np.isfinite(np.asarray(result.value)):
        raise ValueError(
            f"the expected error is {float(result.value):g}: the sampler is unstable on this "
            "schedule or the score error too large for it; use a smaller error, more steps, or "
            "metric='w2_squared'."
        )
    if not is_traced(result) and method == "second_order":
        _check_remainder(result)
    return result


def _check_remainder(result: ExpectedError) -> None:
    """Warn where the simulation does not show that the remainder is small."""
    remainder = float(result.remainder)
    doubt = float(result.standard_error)
    if abs(remainder) + doubt > 0.25 * abs(float(result.second_order)):
        warnings.warn(
            "score_error is too large for its expansion: to second order it adds "
            f"{float(result.second_order):.3g}, and what that leaves out is {remainder:.3g} +- "
            f"{doubt:.3g} in a simulation. Use method='monte_carlo' or 'quadrature', or more "
            "pairs.",
            stacklevel=4,
        )


def _expected(
    kernel: ErrorKernel,
    directions: AffineError | None,
    method: str,
    pairs: int,
    nodes: int,
    key: Array,
) -> ExpectedError:
    """The result of one method for a kernel that expands about the error's mean."""
    baseline = kernel.baseline()
    zero = jnp.zeros_like(baseline)
    if directions is None:
        return ExpectedError(baseline, baseline, zero, zero, zero, zero, method)
    second = contract(kernel, None, directions)
    if method == "quadrature":
        excess = _quadrature(kernel, directions, nodes) - baseline
        return ExpectedError(
            baseline + excess, baseline, excess, second, excess - second, zero, method
        )
    remainder, error = simulate(kernel, directions, key, pairs)
    excess = second + remainder if method == "monte_carlo" else second
    return ExpectedError(baseline + excess, baseline, excess, second, remainder, error, method)


def centred(kernel: ErrorKernel, score_error: ScoreError) -> tuple[ErrorKernel, AffineError | None]:
    """The kernel that expands about the error's mean, and the error's directions."""
    mean, directions = factored(kernel, score_error)
    if mean is None:
        return kernel, directions
    about = jax.tree.map(lambda a, m: a + m[0], kernel.about, mean)
    return eqx.tree_at(lambda k: k.about, kernel, about), directions


def second_order(kernel: ErrorKernel, score_error: ScoreError) -> Array:
    """The expected error itself: exact in the error's mean, to second order in its randomness."""
    kernel, directions = centred(kernel, score_error)
    return kernel.error(kernel.about) + contract(kernel, None, directions)


@jax.jit
def finite_second_order(kernel: ErrorKernel, directions: AffineError) -> Array:
    """The contraction with differences in place of derivatives, sum_w (F(w) + F(-w)) / 2 - F(0).

    Where it differs from the contraction, errors of this size are beyond second order.
    """
    batch = min(_BATCH, directions.shift.shape[0])
    return jnp.sum(jax.lax.map(lambda w: _even_part(kernel, w), directions, batch_size=batch))


def _even_part(kernel: ErrorKernel, w: AffineError) -> Array:
    """(F(w) + F(-w)) / 2 - F(0)."""
    there = kernel.error(jax.tree.map(jnp.add, kernel.about, w))
    back = kernel.error(jax.tree.map(jnp.subtract, kernel.about, w))
    return 0.5 * (there + back) - kernel.error(kernel.about)


def _combine(directions: AffineError, latent: Float[Array, " directions"]) -> AffineError:
    """The error that has these coefficients along the directions."""
    return jax.tree.map(lambda w: jnp.tensordot(latent, w, 1), directions)


@eqx.filter_jit
def simulate(
    kernel: ErrorKernel, directions: AffineError, key: Array, pairs: int
) -> tuple[Array, Array]:
    """Mean and standard error of (F(w) + F(-w)) / 2 - F(0) - F2(w), w the error minus its mean."""
    dtype = kernel.run.schedule.times.dtype

    def remainder(key: Array) -> Array:
        w = _combine(directions, jax.random.normal(key, directions.shift.shape[:1], dtype))
        return _even_part(kernel, w) - jnp.sum(kernel.along(w)[1])

    values = jax.lax.map(remainder, jax.random.split(key, pairs), batch_size=min(_BATCH, pairs))
    return jnp.mean(values), jnp.std(values, ddof=1) / np.sqrt(pairs)


def _quadrature(kernel: ErrorKernel, directions: AffineError, nodes: int) -> Array:
    """E F by Gauss-Hermite quadrature in every direction."""
    rank = directions.shift.shape[0]
    if nodes**rank > _MOST_NODES:
        raise ValueError(
            f"score_error has {rank} directions at this schedule; quadrature with {nodes} nodes "
            f"each would need {nodes}^{rank} points. Use fewer nodes, an error of lower rank, or "
            "method='monte_carlo'."
        )
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    latent = np.array(list(itertools.product(points, repeat=rank)))
    weight = np.prod(np.array(list(itertools.product(weights / weights.sum(), repeat=rank))), 1)
    return _integrate(kernel, directions, constant(latent), constant(weight))


@jax.jit
def _integrate(kernel: ErrorKernel, directions: AffineError, latent: Array, weight: Array) -> Array:
    """The weighted sum of F over coefficients `latent` (points, directions)."""

    def value(z: Array) -> Array:
        return kernel.error(jax.tree.map(jnp.add, kernel.about, _combine(directions, z)))

    return weight @ jax.lax.map(value, latent, batch_size=min(_BATCH, latent.shape[0]))
