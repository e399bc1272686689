"""The maximum mean discrepancy between Gaussians, for Gaussian kernels.

    MMD^2(p, q) = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),     X, X' ~ p,     Y, Y' ~ q

Like every other metric it is the sum of a mean part and of a covariance part, both of which are
positive and computed without cancellation.
"""

import dataclasses

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .. import _checks
from ._gaussian import log_det_excess


@dataclasses.dataclass(frozen=True)
class MMDSquared:
    """The squared maximum mean discrepancy, a metric that can stand where a metric's name can.

        k(x, y) = sum_i exp(-(x_i - y_i)^2 / (2 l^2))     per mode
        k(x, y) = exp(-|x - y|^2 / (2 l^2))               `dense`

    The kernel of the metric per mode is a sum over modes, so that totals are; on distributions with
    independent modes both kernels tell all apart. `MMDSquared(l).dense` compares covariances that
    need not commute. It is bounded, and does not look at differences far below l.

    **Arguments:**

    - `bandwidth`: l > 0, in units of the data. Large ones compare means alone:
      l^2 MMD^2 -> |mean error|^2.

    **Raises:** ValueError for a bandwidth that is not positive.

    **Example:**

    ```python
    >>> objective = jk.TerminalError(metric=jk.metrics.MMDSquared(1.0))
    >>> value = jk.metrics.MMDSquared(1.0)(jnp.zeros(1), 4.0 * jnp.ones(1), 1.5 * jnp.ones(1))
    >>> print(f"{float(value[0]):.4f}")
    0.0489
    ```

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola, "A Kernel Two-Sample Test" (2012),
    https://jmlr.org/papers/v13/gretton12a.html.
    """

    bandwidth: float

    def __post_init__(self):
        _checks.scalar("bandwidth", self.bandwidth, above=0.0)

    def __call__(
        self,
        mean_error: Float[Array, "*s"],
        variance: Float[Array, "*s"],
        target_variance: Float[Array, "*#s"],
    ) -> Float[Array, "*s"]:
        """Evaluate the squared discrepancy per mode.

            l [a^{-1/2} + b^{-1/2} - 2 m^{-1/2} e^{-e^2 / (2 m)}]
            a = l^2 + 2 c,     b = l^2 + 2 v,     m = (a + b) / 2

        **Arguments:**

        - `mean_error`: mean of the sampled Gaussian q minus that of the reference p, per mode.
        - `variance`: of q, per mode, >= 0.
        - `target_variance`: of p, per mode, >= 0.

        **Returns:** the squared discrepancy per mode, in [0, 2).
        """
        c = target_variance
        first = jnp.sqrt(self.bandwidth**2 + 2.0 * c)
        second = jnp.sqrt(self.bandwidth**2 + 2.0 * variance)
        total = first + second
        gap = 2.0 * (variance - c) / total
        middle = jnp.sqrt(0.5 * (first**2 + second**2))
        # 1/first + 1/second - 2/middle, multiplied out to positive terms
        top = 0.5 * gap**2 * (3.0 * total**2 - gap**2)
        bottom = first * second * middle * (2.0 * total * middle + 4.0 * first * second)
        mean_part = -2.0 * jnp.expm1(-(mean_error**2) / (2.0 * middle**2)) / middle
        return self.bandwidth * (top / bottom + mean_part)

    def dense(
        self,
        mean_error: Float[Array, " d"],
        covariance: Float[Array, "d d"],
        target_covariance: Float[Array, "d d"],
    ) -> Float[Array, ""]:
        """Evaluate the squared discrepancy of Gaussians that need not commute.

            det(I + 2C/l^2)^{-1/2} + det(I + 2S/l^2)^{-1/2}
                - 2 det(M)^{-1/2} exp(-e' M^-1 e / (2 l^2)),     M = I + (C + S) / l^2

        **Arguments:**

        - `mean_error`: e (d,), the mean of the sampled Gaussian minus that of the target.
        - `covariance`: S (d, d) of the sampled one, positive semidefinite.
        - `target_covariance`: C (d, d), positive semidefinite.

        **Returns:** the squared discrepancy, a scalar in [0, 2).
        """
        scale = self.bandwidth**2
        eye = jnp.eye(mean_error.shape[0], dtype=covariance.dtype)
        factor = jnp.linalg.cholesky(eye + (covariance + target_covariance) / scale)
        half = solve_triangular(factor, (covariance - target_covariance) / scale, lower=True)
        # the other determinants are det M det(I -+ apart)
        apart = solve_triangular(factor, half.T, lower=True)
        apart = 0.5 * (apart + apart.T)
        square = apart @ apart
        growth = 0.25 * (log_det_excess(-square) + jnp.trace(square))
        tilt = 0.25 * (log_det_excess(apart) - log_det_excess(-apart)) - 0.5 * jnp.trace(apart)
        shift = solve_triangular(factor, mean_error, lower=True)
        mean_part = -2.0 * jnp.expm1(-0.5 * jnp.sum(shift**2) / scale)
        covariance_part = jnp.expm1(growth) * jnp.cosh(tilt) + 2.0 * jnp.sinh(0.5 * tilt) ** 2
        return (2.0 * covariance_part + mean_part) / jnp.prod(jnp.diag(factor))
