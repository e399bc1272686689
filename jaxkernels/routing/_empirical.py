"""The exact denoiser of a finite data set, and its marginal density, over blocks of its points.

Of n points x_j of equal mass the marginal p_t is a mixture of N(a x_j, s^2 I). With y_j = x_j - c
and z = x - a c, c any point, its logs are

    log N(x; a x_j, s^2 I) = (a y_j.z - a^2 |y_j|^2 / 2) / s^2 - |z|^2 / (2 s^2) + constant,   (1)

of which the last two terms are the same for all points, hence without effect on posteriors. They
are left out, so that nothing large cancels far from the data. Sums over points run over blocks,
with the largest exponent so far taken out: memory is that of one block, and nothing overflows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._linalg import full_precision
from .._numerics import larger, safe_divide
from .._precision import to_dtype, working_dtype
from .._types import AnyArray, Numbers, constant
from ..prediction import AbstractDenoiser, Prediction
from ..processes import AbstractProcess, check_process

# entries of queries x points that are held at once
_ENTRIES = 2**22
_LEAST_BLOCK = 64


class EmpiricalDenoiser(AbstractDenoiser):
    """The exact denoiser of a finite data set, every point of which has the same mass.

        E[X_0 | x] = sum_j r_j x_j,     r_j = softmax_j( -|x - a x_j|^2 / (2 s^2) )

    Memory is bounded by about 2^22 numbers for any number of points, times a few. Derivatives are
    computed block by block too.

    **Arguments:**

    - `points`: (n, ...), the data.
    - `process`: the forward process.
    - `center`: a point of the data's shape, subtracted from data and queries before they are
      multiplied out. Default: the mean of the points.

    **Raises:** ValueError for no points, a center of another shape, or numbers that are not finite.

    **Example:**

    ```python
    >>> denoiser = jk.routing.EmpiricalDenoiser([[-1.0], [1.0]], jk.VP())
    >>> denoiser(jnp.array([[0.5]]), 0.01).x0.round(3).tolist()
    [[1.0]]
    ```
    """

    offsets: Float[AnyArray, "n *shape"]
    """The points less the center."""
    center: Float[AnyArray, "*shape"]
    process: AbstractProcess

    def __init__(self, points: Numbers, process: AbstractProcess, center: Numbers | None = None):
        points = check_points("points", points)
        self.process = check_process(process)
        self.center = constant(points.mean(0) if center is None else _check_center(center, points))
        self.offsets = constant(points - self.center)

    def __call__(self, x: Float[Array, "..."], t: Float[ArrayLike, ""]) -> Prediction:
        x = jnp.asarray(x)
        a = self.process.signal(t)
        s = self.process.noise(t)
        _, mean = self._posterior(x, t)
        x0 = jnp.asarray(self.center) + mean.reshape(x.shape)
        eps = safe_divide(x - a * x0, s)
        return Prediction(x0, eps, jnp.where(s > 0, safe_divide(-eps, s), jnp.nan))

    def log_mass(self, x: Float[Array, "..."], t: Float[ArrayLike, ""]) -> Float[Array, "*batch"]:
        """Evaluate log p_t(x), up to a term that is the same for all data with one center.

            log sum_j exp( (a y_j.z - a^2 |y_j|^2 / 2) / s^2 )

        with y_j and z the points and the query less the center: unnormalized log routing weights
        of clusters, if every one of them is a data set with the same center.

        **Arguments:**

        - `x`: noisy points (..., *shape).
        - `t`: a scalar time.

        **Returns:** logs (...).
        """
        logs, _ = self._posterior(jnp.asarray(x), t)
        return logs.reshape(x.shape[: x.ndim - self.center.ndim])

    @full_precision
    def _posterior(self, x: Array, t: ArrayLike) -> tuple[Array, Array]:
        """(log mass, posterior mean less the center) of every query."""
        dim = math.prod(self.center.shape)
        a = self.process.signal(t)
        s2 = self.process.noise(t) ** 2
        # at s = 0 all mass is on the nearest point
        s2 = larger(s2, jnp.sqrt(jnp.finfo(x.dtype).tiny))
        z = (x - a * jnp.asarray(self.center)).reshape(-1, dim)
        blocks = _blocked(jnp.asarray(self.offsets, x.dtype).reshape(-1, dim), len(z))

        # recomputed in a backward pass, which would keep every block otherwise
        @jax.checkpoint
        def add(
            sums: tuple[Array, Array, Array], block: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array, Array], None]:
            y, used = block
            logs = (a * z @ y.T - 0.5 * a**2 * jnp.sum(y * y, -1)) / s2
            logs = jnp.where(used, logs, -jnp.inf)
            return _added(sums, logs, y), None

        lowest = jnp.full(len(z), jnp.finfo(x.dtype).min)
        start = (lowest, jnp.zeros_like(lowest), jnp.zeros_like(z))
        (largest, total, weighted), _ = jax.lax.scan(add, start, blocks)
        return largest + jnp.log(total), weighted / total[:, None]

    def astype(self, dtype: DTypeLike) -> "EmpiricalDenoiser":
        return to_dtype(self, working_dtype(dtype))


def check_points(argument: str, points: Numbers) -> np.ndarray:
    """Data (n, ...) with n >= 1."""
    found = np.asarray(_checks.array(argument, points))
    if found.ndim < 2 or not found.shape[0]:
        raise ValueError(
            f"{argument} has shape {found.shape}; it must be (n, ...) with at least one point."
        )
    return found


def _check_center(center: Numbers, points: np.ndarray) -> np.ndarray:
    """A point of the data's shape: one of another would be taken for data of other dimensions."""
    found = np.asarray(_checks.array("center", center))
    if found.shape != points.shape[1:]:
        raise ValueError(f"center has shape {found.shape}; the points have {points.shape[1:]}.")
    return found


def _blocked(y: Float[Array, "n d"], queries: int) -> tuple[Array, Array]:
    """The points in blocks of equal size, and which of their rows are points."""
    n, dim = y.shape
    size = min(n, max(_LEAST_BLOCK, _ENTRIES // max(queries, 1)))
    count = -(-n // size)
    padded = jnp.pad(y, ((0, count * size - n), (0, 0)))
    used = np.arange(count * size) < n
    return padded.reshape(count, size, dim), jnp.asarray(used.reshape(count, size))


def _added(
    sums: tuple[Array, Array, Array], logs: Float[Array, "queries block"], y: Array
) -> tuple[Array, Array, Array]:
    """(largest log, sum of exp(log - largest), the same sum of points) with a block added."""
    largest, total, weighted = sums
    new = larger(largest, jax.lax.stop_gradient(jnp.max(logs, -1)))
    old = jnp.exp(largest - new)
    terms = jnp.exp(logs - new[:, None])
    return new, old * total + jnp.sum(terms, -1), old[:, None] * weighted + terms @ y
