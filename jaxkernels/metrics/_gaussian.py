"""Distances between Gaussians: per mode when they commute, dense when they do not.

Commuting Gaussians are compared per mode by functions

    metric(mean_error, variance, target_variance) -> value per mode

of the sampled q = N(mean + mean_error, variance) and the reference p = N(mean, target_variance);
totals are sums over modes. A user-defined function of that form can stand where a metric's name
can.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._numerics import log_ratio_excess, safe_divide, safe_sqrt
from ._bures import bures_squared

Metric: TypeAlias = Callable[[Array, Array, Array], Array]
"""(mean_error, variance, target_variance) -> value per mode."""


def w2_squared(
    mean_error: Float[Array, "*s"],
    variance: Float[Array, "*s"],
    target_variance: Float[Array, "*#s"],
) -> Float[Array, "*s"]:
    """Compute the squared 2-Wasserstein distance per mode; symmetric.

        e^2 + (sqrt c - sqrt v)^2

    computed as ((c - v) / (sqrt c + sqrt v))^2, which keeps its digits when v is close to c. A
    negative v stands for the amplitude -sqrt|v| on the reference's own noise: a mode whose sign was
    flipped, at distance sqrt c + sqrt|v| from it.

    **Arguments:**

    - `mean_error`: mean of the sampled Gaussian q minus that of the reference p, per mode.
    - `variance`: of q, per mode, of any sign.
    - `target_variance`: of p, per mode, >= 0.

    **Returns:** the distance per mode, in units of variance.

    **Example:**

    ```python
    >>> jk.metrics.w2_squared(jnp.zeros(1), jnp.array([4.0]), jnp.ones(1)).tolist()
    [1.0]
    ```
    """
    c = target_variance
    point = c == 0
    # at c = 0 the distance is |v|: the roots would lose its slope at v = 0, and overflow beside it
    v = jnp.where(point, 0.0, variance)
    plain = safe_divide(c - v, safe_sqrt(c) + safe_sqrt(v))
    root = jnp.where(v >= 0, plain, safe_sqrt(c) + safe_sqrt(-v))
    return mean_error**2 + jnp.where(point, jnp.where(variance >= 0, variance, -variance), root**2)


def kl(
    mean_error: Float[Array, "*s"],
    variance: Float[Array, "*s"],
    target_variance: Float[Array, "*#s"],
) -> Float[Array, "*s"]:
    """Compute KL(p || q) of the reference p from the sampled q per mode.

        (c/v - 1 - log(c/v) + e^2/v) / 2

    **Arguments:**

    - `mean_error`: mean of the sampled Gaussian q minus that of the reference p, per mode.
    - `variance`: of q, per mode.
    - `target_variance`: of p, per mode, >= 0.

    **Returns:** the divergence per mode, in nats; infinite where exactly one of the variances
    is 0 or the sampled one is negative.

    **Example:**

    ```python
    >>> jk.metrics.kl(jnp.ones(1), jnp.ones(1), jnp.ones(1)).tolist()
    [0.5]
    ```
    """
    return _kl(mean_error, target_variance, variance)


def reverse_kl(
    mean_error: Float[Array, "*s"],
    variance: Float[Array, "*s"],
    target_variance: Float[Array, "*#s"],
) -> Float[Array, "*s"]:
    """Compute KL(q || p) of the sampled q from the reference p per mode.

        (v/c - 1 - log(v/c) + e^2/c) / 2

    **Arguments:**

    - `mean_error`: mean of the sampled Gaussian q minus that of the reference p, per mode.
    - `variance`: of q, per mode.
    - `target_variance`: of p, per mode, >= 0.

    **Returns:** the divergence per mode, in nats; infinite where exactly one of the variances
    is 0 or the sampled one is negative.

    **Example:**

    ```python
    >>> jk.metrics.reverse_kl(jnp.ones(1), jnp.ones(1), jnp.ones(1)).tolist()
    [0.5]
    ```
    """
    return _kl(mean_error, variance, target_variance)


def _kl(mean_error: Array, first: Array, second: Array) -> Array:
    """KL(N(0, first) || N(mean_error, second))."""
    proper = (first > 0) & (second > 0)
    second_ = jnp.where(proper, second, 1.0)
    excess = jnp.where(proper, first - second, 0.0) / second_
    value = 0.5 * (log_ratio_excess(excess) + mean_error**2 / second_)
    same_point = (first == 0) & (second == 0) & (mean_error == 0)
    return jnp.where(proper, value, jnp.where(same_point, 0.0, jnp.inf))


def log_chi_squared(
    mean_error: Float[Array, "*s"],
    variance: Float[Array, "*s"],
    target_variance: Float[Array, "*#s"],
) -> Float[Array, "*s"]:
    """Compute log(1 + chi^2(p || q)), the Rényi divergence of order 2, per mode.

        chi^2(p || q) = int p^2 / q - 1
        log(1 + chi^2) = e^2 / (2 v - c) - log(1 - (1 - c/v)^2) / 2

    1 + chi^2 is a product over modes, so that its logarithm is what sums to a total. It is at least
    KL(p || q), and twice that for small errors.

    **Arguments:**

    - `mean_error`: mean of the sampled Gaussian q minus that of the reference p, per mode.
    - `variance`: of q, per mode.
    - `target_variance`: of p, per mode, >= 0.

    **Returns:** the logarithm per mode, in nats; infinite where 2 v <= c and where exactly one of
    the variances is 0.

    **Example:**

    ```python
    >>> jk.metrics.log_chi_squared(jnp.ones(1), jnp.ones(1), jnp.ones(1)).tolist()
    [1.0]
    ```

    Source: Gil, Alajaji and Linder, "Rényi divergence measures for commonly used univariate
    continuous distributions" (2013).
    """
    proper = (target_variance > 0) & (2.0 * variance > target_variance)
    c = jnp.where(proper, target_variance, 1.0)
    v = jnp.where(proper, variance, 1.0)
    value = mean_error**2 / (2.0 * v - c) - 0.5 * jnp.log1p(-(((v - c) / v) ** 2))
    same_point = (target_variance == 0) & (variance == 0) & (mean_error == 0)
    return jnp.where(proper, value, jnp.where(same_point, 0.0, jnp.inf))


METRICS: dict[str, Metric] = {
    "w2_squared": w2_squared,
    "kl": kl,
    "reverse_kl": reverse_kl,
    "log_chi_squared": log_chi_squared,
}


def per_mode(
    metric: Metric,
    weights: Float[ArrayLike, " modes"],
    mean_error: Float[Array, "*s modes"],
    variance: Float[Array, "*s modes"],
    target_variance: Float[Array, "*#s modes"],
) -> Float[Array, "*s modes"]:
    """Compute every mode's contribution to the total: its weight times the metric.

    **Arguments:**

    - `metric`: a per-mode metric.
    - `weights`: of the modes (modes,).
    - `mean_error`, `variance`, `target_variance`: (..., modes), see the metric.

    **Returns:** (..., modes); 0 for a mode of weight 0, whatever the metric is there.

    **Example:**

    ```python
    >>> one = jnp.ones(1)
    >>> jk.metrics.per_mode(jk.metrics.w2_squared, 3.0 * one, one, one, one).tolist()
    [3.0]
    ```
    """
    weights = jnp.asarray(weights)
    used = weights != 0
    value = metric(mean_error, variance, target_variance)
    return jnp.where(used, weights * jnp.where(used, value, 0.0), 0.0)


def dense_w2_squared(
    mean_error: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    target_covariance: Float[Array, "d d"],
) -> Float[Array, ""]:
    """Compute the squared 2-Wasserstein distance between Gaussians that need not commute.

        |e|^2 + Bures(S, C)^2

    **Arguments:**

    - `mean_error`: e (d,), the mean of the sampled Gaussian minus that of the target.
    - `covariance`: S (d, d) of the sampled one.
    - `target_covariance`: C (d, d).

    **Returns:** the squared distance, a scalar in units of variance.

    **Example:**

    ```python
    >>> float(jk.metrics.dense_w2_squared(jnp.ones(2), jnp.eye(2), 4.0 * jnp.eye(2)))
    4.0
    ```
    """
    return jnp.sum(mean_error**2) + bures_squared(covariance, target_covariance)


def dense_kl(
    mean_error: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    target_covariance: Float[Array, "d d"],
) -> Float[Array, ""]:
    """Compute KL(p || q) of the target p from the sampled q, which need not commute.

        (tr S^-1 C - d - log det S^-1 C + e' S^-1 e) / 2

    **Arguments:**

    - `mean_error`: e (d,), the mean of q minus that of p.
    - `covariance`: S (d, d) of q, positive definite.
    - `target_covariance`: C (d, d) of p, positive definite.

    **Returns:** the divergence, a scalar in nats.

    **Example:**

    ```python
    >>> float(jk.metrics.dense_kl(jnp.ones(2), jnp.eye(2), jnp.eye(2)))
    1.0
    ```
    """
    excess, error = _whiten(mean_error, covariance, target_covariance)
    return 0.5 * (log_det_excess(excess) + jnp.sum(error**2))


def dense_log_chi_squared(
    mean_error: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    target_covariance: Float[Array, "d d"],
) -> Float[Array, ""]:
    """Compute log(1 + chi^2(p || q)) of the target p from the sampled q, which need not commute.

        e' (2 S - C)^-1 e - log det(I - F^2) / 2,     F = S^{-1/2} C S^{-1/2} - I

    **Arguments:**

    - `mean_error`: e (d,), the mean of q minus that of p.
    - `covariance`: S (d, d) of q, positive definite.
    - `target_covariance`: C (d, d) of p, positive definite.

    **Returns:** the logarithm, a scalar in nats; infinite unless 2 S - C is positive definite.

    **Example:**

    ```python
    >>> float(jk.metrics.dense_log_chi_squared(jnp.ones(2), jnp.eye(2), jnp.eye(2)))
    2.0
    ```
    """
    excess, error = _whiten(mean_error, covariance, target_covariance)
    eye = jnp.eye(excess.shape[0], dtype=excess.dtype)
    proper = jnp.max(jnp.linalg.eigvalsh(jax.lax.stop_gradient(excess))) < 1.0
    excess = jnp.where(proper, excess, 0.0)
    square = excess @ excess
    log_det = log_det_excess(-square) + jnp.trace(square)  # -log det(I - F^2)
    value = error @ jnp.linalg.solve(eye - excess, error) + 0.5 * log_det
    return jnp.where(proper, value, jnp.inf)


def _whiten(
    mean_error: Array, covariance: Array, target_covariance: Array
) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
    """L^-1 C L^-T - I and L^-1 e, where S = L L^T is the sampled covariance."""
    factor = jnp.linalg.cholesky(covariance)

    def whiten(m: Array) -> Array:
        """factor^-1 m."""
        return jax.scipy.linalg.solve_triangular(factor, m, lower=True)

    excess = whiten(whiten(target_covariance).T) - jnp.eye(factor.shape[0], dtype=factor.dtype)
    return 0.5 * (excess + excess.T), whiten(mean_error[:, None])[:, 0]


@jax.custom_jvp
def log_det_excess(e: Float[Array, "d d"]) -> Float[Array, ""]:
    """tr E - log det (I + E) for symmetric E; its derivative is <I - (I + E)^-1, dE>."""
    return jnp.sum(log_ratio_excess(jnp.linalg.eigvalsh(0.5 * (e + e.T))))


@log_det_excess.defjvp
def _(primals, tangents):
    (e,) = primals
    (de,) = tangents
    eye = jnp.eye(e.shape[0], dtype=e.dtype)
    return log_det_excess(e), jnp.sum((eye - jnp.linalg.inv(eye + e)) * de)


def _dense_reverse_kl(
    mean_error: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    target_covariance: Float[Array, "d d"],
) -> Float[Array, ""]:
    """KL(q || p) in nats: `dense_kl` with the covariances exchanged."""
    return dense_kl(mean_error, target_covariance, covariance)


DENSE_METRICS: dict[str, Metric] = {
    "w2_squared": dense_w2_squared,
    "kl": dense_kl,
    "reverse_kl": _dense_reverse_kl,
    "log_chi_squared": dense_log_chi_squared,
}


def resolve(metric: str | Metric, dense: bool = False) -> Metric:
    """Look up a metric that may be given by name.

    **Arguments:**

    - `metric`: a name in `METRICS`, or a function.
    - `dense`: whether it compares covariances instead of variances.

    **Returns:** the function.

    **Raises:** ValueError for an unknown name.

    **Example:**

    ```python
    >>> jk.metrics.resolve("kl") is jk.metrics.kl
    True
    ```
    """
    known = DENSE_METRICS if dense else METRICS
    return metric if callable(metric) else _checks.lookup("metric", metric, known)
