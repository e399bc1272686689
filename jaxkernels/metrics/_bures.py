"""The Bures distance between covariances, and the matrix functions that it is made of."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import full_precision
from .._numerics import larger, safe_divide

# eigenvalues below this share of the largest are 0
_NULL = 1e-14


@full_precision
def sylvester(r: Float[Array, "d d"], m: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Solve the Sylvester (Lyapunov) equation R X + X R = M.

    Derivatives of any order and mode solve the same equation and never divide by gaps between
    eigenvalues, so repeated ones are harmless.

    **Arguments:**

    - `r`: (d, d), symmetric and positive semidefinite.
    - `m`: (d, d).

    **Returns:** X (d, d); 0 on the null space of the map X -> R X + X R.

    **Example:**

    ```python
    >>> jk.metrics.sylvester(jnp.eye(2), 4.0 * jnp.eye(2)).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    ```
    """

    def solve(_: object, m: Array) -> Array:
        values, vectors = jnp.linalg.eigh(0.5 * (r + r.T))
        sums = larger(values, 0.0)[:, None] + larger(values, 0.0)
        sums = jnp.where(sums > _NULL * jnp.max(sums), sums, 0.0)
        return vectors @ safe_divide(vectors.T @ m @ vectors, sums) @ vectors.T

    return jax.lax.custom_linear_solve(lambda x: r @ x + x @ r, m, solve, symmetric=True)


@jax.custom_jvp
@full_precision
def sqrtm(m: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Compute the positive semidefinite square root of a symmetric matrix.

    Its derivative solves R dR + dR R = dM, finite for repeated eigenvalues and set to 0 where both
    eigenvalues are 0.

    **Arguments:**

    - `m`: (d, d), symmetric and positive semidefinite; negative rounding errors count as 0.

    **Returns:** R (d, d) with R R = M.

    **Example:**

    ```python
    >>> jk.metrics.sqrtm(4.0 * jnp.eye(2)).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    ```
    """
    values, vectors = jnp.linalg.eigh(0.5 * (m + m.T))
    return (vectors * jnp.sqrt(larger(values, 0.0))) @ vectors.T


@sqrtm.defjvp
def _(primals, tangents):
    r = sqrtm(primals[0])
    return r, sylvester(r, tangents[0])


@full_precision
def transport_map(
    covariance: Float[Array, "d d"], target_covariance: Float[Array, "d d"]
) -> Float[Array, "d d"]:
    """Compute the optimal transport matrix from N(0, S) to N(0, C).

        T = C^(1/2) R^(-1) C^(1/2),     R = (C^(1/2) S C^(1/2))^(1/2),     T S T = C

    **Arguments:**

    - `covariance`: S (d, d).
    - `target_covariance`: C (d, d).

    **Returns:** T (d, d); on the null space of R its inverse is 0.

    **Example:**

    ```python
    >>> jk.metrics.transport_map(jnp.eye(2), 4.0 * jnp.eye(2)).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    ```

    Source: Gelbrich, "On a Formula for the L2 Wasserstein Metric between Measures on Euclidean and
    Hilbert Spaces" (1990).
    """
    root = sqrtm(target_covariance)
    r = sqrtm(root @ covariance @ root)
    return root @ sylvester(r, 2.0 * jnp.eye(r.shape[0], dtype=r.dtype)) @ root


@jax.custom_jvp
@full_precision
def bures_squared(
    covariance: Float[Array, "d d"], target_covariance: Float[Array, "d d"]
) -> Float[Array, ""]:
    """Compute the squared Bures distance between covariances.

        tr S + tr C - 2 tr R,     R = (C^(1/2) S C^(1/2))^(1/2)

    For nearby S and C it is computed as tr (I - T) S (I - T) + tr N C, which does not cancel: N
    projects onto the null space of R, where S has nothing to transport to C. Where rounding hides
    that space the value is too small, so that it is computed in both directions and the larger one
    taken. The derivative in S is <I - T, dS>, and likewise in C, finite for repeated eigenvalues.

    **Arguments:**

    - `covariance`: S (d, d), symmetric and positive semidefinite.
    - `target_covariance`: C (d, d), likewise.

    **Returns:** the squared distance, a scalar in units of variance.

    **Example:**

    ```python
    >>> float(jk.metrics.bures_squared(jnp.eye(2), 4.0 * jnp.eye(2)))
    2.0
    ```

    Source: Bhatia, Jain and Lim, "On the Bures-Wasserstein Distance between Positive Definite
    Matrices" (2019), https://arxiv.org/abs/1712.01504.
    """
    total = jnp.trace(covariance) + jnp.trace(target_covariance)
    trace, there = _transported(covariance, target_covariance)
    _, back = _transported(target_covariance, covariance)
    direct = larger(total - 2.0 * trace, 0.0)
    return jnp.where(direct > 1e-4 * total, direct, larger(larger(there, back), 0.0))


@full_precision
def _transported(
    s: Float[Array, "d d"], c: Float[Array, "d d"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """tr R, and tr (I - T) S (I - T) + tr N C: what T moves, and what of C it does not reach."""
    root = sqrtm(c)
    values, vectors = jnp.linalg.eigh(root @ s @ root)
    r = jnp.sqrt(larger(values, 0.0))
    reached = r > _NULL * jnp.max(r)
    inverse = jnp.where(reached, 1.0 / jnp.where(reached, r, 1.0), 0.0)
    gap = jnp.eye(s.shape[0], dtype=s.dtype) - root @ ((vectors * inverse) @ vectors.T) @ root
    unreached = jnp.where(reached, 0.0, jnp.sum(vectors * (c @ vectors), 0))
    return jnp.sum(r), jnp.trace(gap @ s @ gap) + jnp.sum(unreached)


@bures_squared.defjvp
def _(primals, tangents):
    (s, c) = primals
    (ds, dc) = tangents
    eye = jnp.eye(s.shape[0], dtype=s.dtype)
    slope = jnp.sum((eye - transport_map(s, c)) * ds) + jnp.sum((eye - transport_map(c, s)) * dc)
    return bures_squared(s, c), slope
