"""Distances between normal laws: per mode when they commute, dense when they do not.

Commuting laws are compared mode by mode by functions

    metric(mean_error, variance, target_variance) -> value per mode

of the sampled law q = N(mean + mean_error, variance) and the reference p = N(mean, target_variance);
totals are sums over modes. Any such function of the user's own can stand where a metric's name can.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._linalg import full_precision
from .._numerics import log_ratio_excess, safe_divide, safe_sqrt

# eigenvalues below this share of the largest are 0
_NULL = 1e-14


Metric: TypeAlias = Callable[[Array, Array, Array], Array]


def w2_squared(
    mean_error: Float[Array, "*s"],
    variance: Float[Array, "*s"],
    target_variance: Float[Array, "*#s"],
) -> Float[Array, "*s"]:
    """Squared 2-Wasserstein distance e^2 + (sqrt c - sqrt v)^2, in units of variance; symmetric.

    Computed as ((c - v) / (sqrt c + sqrt v))^2, which keeps its digits when v is close to c. A negative
    `variance` v stands for the amplitude -sqrt|v| on the reference's own noise: a mode whose sign was
    flipped, at distance sqrt c + sqrt|v| from it.
    """
    point, c = target_variance == 0, target_variance
    # at c = 0 the distance is |v|: its slope at v = 0 is lost in the roots, whose derivatives overflow beside it
    v = jnp.where(point, 0.0, variance)
    plain = safe_divide(c - v, safe_sqrt(c) + safe_sqrt(v))
    root = jnp.where(v >= 0, plain, safe_sqrt(c) + safe_sqrt(-v))
    return mean_error**2 + jnp.where(point, jnp.where(variance >= 0, variance, -variance), root**2)


def kl(
    mean_error: Float[Array, "*s"],
    variance: Float[Array, "*s"],
    target_variance: Float[Array, "*#s"],
) -> Float[Array, "*s"]:
    """KL(p || q) of the reference p from the sampled q, in nats: (c/v - 1 - log(c/v) + e^2/v) / 2.

    Infinite where exactly one of the variances is 0 or the sampled one is negative.
    """
    return _kl(mean_error, target_variance, variance)


def reverse_kl(
    mean_error: Float[Array, "*s"],
    variance: Float[Array, "*s"],
    target_variance: Float[Array, "*#s"],
) -> Float[Array, "*s"]:
    """KL(q || p) of the sampled q from the reference p, in nats: (v/c - 1 - log(v/c) + e^2/c) / 2."""
    return _kl(mean_error, variance, target_variance)


def _kl(mean_error: Array, first: Array, second: Array) -> Array:
    """KL(N(0, first) || N(mean_error, second))."""
    proper = (first > 0) & (second > 0)
    second_ = jnp.where(proper, second, 1.0)
    excess = jnp.where(proper, first - second, 0.0) / second_
    value = 0.5 * (log_ratio_excess(excess) + mean_error**2 / second_)
    same_point = (first == 0) & (second == 0) & (mean_error == 0)
    return jnp.where(proper, value, jnp.where(same_point, 0.0, jnp.inf))


METRICS: dict[str, Metric] = {"w2_squared": w2_squared, "kl": kl, "reverse_kl": reverse_kl}


def per_mode(
    metric: Metric,
    weights: Float[ArrayLike, " modes"],
    mean_error: Float[Array, "*s modes"],
    variance: Float[Array, "*s modes"],
    target_variance: Float[Array, "*#s modes"],
) -> Float[Array, "*s modes"]:
    """Each mode's contribution to the total, its weight times the metric; 0 for a mode of weight 0."""
    weights = jnp.asarray(weights)
    used = weights != 0
    value = metric(mean_error, variance, target_variance)
    return jnp.where(used, weights * jnp.where(used, value, 0.0), 0.0)


@full_precision
def sylvester(r: Float[Array, "d d"], m: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """X with R X + X R = M, for symmetric positive semidefinite R; 0 on the null space of that map.

    Derivatives of any order and mode solve the same equation and never divide by gaps between
    eigenvalues, so repeated ones are harmless.
    """

    def solve(_: object, m: Array) -> Array:
        values, vectors = jnp.linalg.eigh(0.5 * (r + r.T))
        sums = jnp.maximum(values, 0.0)[:, None] + jnp.maximum(values, 0.0)
        sums = jnp.where(sums > _NULL * jnp.max(sums), sums, 0.0)
        return vectors @ safe_divide(vectors.T @ m @ vectors, sums) @ vectors.T

    return jax.lax.custom_linear_solve(lambda x: r @ x + x @ r, m, solve, symmetric=True)


@jax.custom_jvp
@full_precision
def sqrtm(m: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The positive semidefinite square root of a symmetric matrix; negative round-off counts as 0.

    Its derivative solves R dR + dR R = dM, finite for repeated eigenvalues and set to 0 where both
    eigenvalues are 0.
    """
    values, vectors = jnp.linalg.eigh(0.5 * (m + m.T))
    return (vectors * jnp.sqrt(jnp.maximum(values, 0.0))) @ vectors.T


@sqrtm.defjvp
def _(primals, tangents):
    r = sqrtm(primals[0])
    return r, sylvester(r, tangents[0])


@full_precision
def transport_map(
    covariance: Float[Array, "d d"], target_covariance: Float[Array, "d d"]
) -> Float[Array, "d d"]:
    """The optimal transport matrix T from N(0, S) to N(0, C): T = C^(1/2) R^(-1) C^(1/2), T S T = C.

    R = (C^(1/2) S C^(1/2))^(1/2); on its null space the inverse is 0.
    """
    root = sqrtm(target_covariance)
    r = sqrtm(root @ covariance @ root)
    return root @ sylvester(r, 2.0 * jnp.eye(r.shape[0], dtype=r.dtype)) @ root


@jax.custom_jvp
@full_precision
def bures_squared(
    covariance: Float[Array, "d d"], target_covariance: Float[Array, "d d"]
) -> Float[Array, ""]:
    """Squared Bures distance tr S + tr C - 2 tr (C^(1/2) S C^(1/2))^(1/2) between covariances.

    For nearby S and C it is computed as tr (I - T) S (I - T) + tr N C, which does not cancel: N projects onto the null
    space of R = (C^(1/2) S C^(1/2))^(1/2), where S has nothing to carry to C. Where rounding hides that space the value
    is too small, so that it is computed in both directions and the larger one taken. The derivative in S is
    <I - T, dS>, and likewise in C.
    """
    total = jnp.trace(covariance) + jnp.trace(target_covariance)
    trace, there = _carried(covariance, target_covariance)
    _, back = _carried(target_covariance, covariance)
    direct = jnp.maximum(total - 2.0 * trace, 0.0)
    return jnp.where(direct > 1e-4 * total, direct, jnp.maximum(jnp.maximum(there, back), 0.0))


@full_precision
def _carried(
    s: Float[Array, "d d"], c: Float[Array, "d d"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """tr R, and tr (I - T) S (I - T) + tr N C: what T moves of S, and what of C it does not reach."""
    root = sqrtm(c)
    values, vectors = jnp.linalg.eigh(root @ s @ root)
    r = jnp.sqrt(jnp.maximum(values, 0.0))
    reached = r > _NULL * jnp.max(r)
    inverse = jnp.where(reached, 1.0 / jnp.where(reached, r, 1.0), 0.0)
    gap = jnp.eye(s.shape[0], dtype=s.dtype) - root @ ((vectors * inverse) @ vectors.T) @ root
    unreached = jnp.where(reached, 0.0, jnp.sum(vectors * (c @ vectors), 0))
    return jnp.sum(r), jnp.trace(gap @ s @ gap) + jnp.sum(unreached)


@bures_squared.defjvp
def _(primals, tangents):
    (s, c), (ds, dc) = primals, tangents
    eye = jnp.eye(s.shape[0], dtype=s.dtype)
    slope = jnp.sum((eye - transport_map(s, c)) * ds) + jnp.sum((eye - transport_map(c, s)) * dc)
    return bures_squared(s, c), slope


def dense_w2_squared(
    mean_error: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    target_covariance: Float[Array, "d d"],
) -> Float[Array, ""]:
    """Squared 2-Wasserstein distance |e|^2 + Bures^2 between normal laws that need not commute."""
    return jnp.sum(mean_error**2) + bures_squared(covariance, target_covariance)


def dense_kl(
    mean_error: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    target_covariance: Float[Array, "d d"],
) -> Float[Array, ""]:
    """KL(p || q) in nats of the target p: (tr S^-1 C - d - log det S^-1 C + e' S^-1 e) / 2."""
    factor = jnp.linalg.cholesky(covariance)

    def whiten(m: Array) -> Array:
        return jax.scipy.linalg.solve_triangular(factor, m, lower=True)

    excess = whiten(whiten(target_covariance).T) - jnp.eye(factor.shape[0], dtype=factor.dtype)
    return 0.5 * (_log_det_excess(excess) + jnp.sum(whiten(mean_error[:, None]) ** 2))


@jax.custom_jvp
def _log_det_excess(e: Float[Array, "d d"]) -> Float[Array, ""]:
    """tr E - log det (I + E) for symmetric E, without cancellation; derivative <I - (I + E)^-1, dE>."""
    return jnp.sum(log_ratio_excess(jnp.linalg.eigvalsh(0.5 * (e + e.T))))


@_log_det_excess.defjvp
def _(primals, tangents):
    (e,), (de,) = primals, tangents
    eye = jnp.eye(e.shape[0], dtype=e.dtype)
    return _log_det_excess(e), jnp.sum((eye - jnp.linalg.inv(eye + e)) * de)


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
}


def resolve(metric: str | Metric, dense: bool = False) -> Metric:
    """A metric by name, for variances or (`dense`) covariances, or as it is. ValueError for an unknown name."""
    known = DENSE_METRICS if dense else METRICS
    return metric if callable(metric) else _checks.lookup("metric", metric, known)
