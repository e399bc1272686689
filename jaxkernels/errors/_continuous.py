"""The kernel of score errors in continuous time, where sums over evaluations become integrals."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._precision import in_float64
from .._types import Numbers, constant
from ..distributions import Gaussian
from ..processes import AbstractProcess, check_process
from ..recurrence import check_target
from ..score_error import AffineError, ScoreError


class ContinuousKernel(eqx.Module):
    """How mean and variance of exact reverse processes respond to score errors, on nodes in time.

    Make one with `jk.continuous_kernel`.

    **Arguments:**

    - `target`: the data distribution, in its eigenbasis.
    - `process`: the forward process.
    - `t_min`: the time at which sampling ends.
    - `times`: (nodes,) decreasing, between the start of sampling and its end.
    - `mean`: (nodes, modes) weight of the node times the response of the samples' mean to delta.
    - `variance`: (nodes, modes) weight of the node times the response of their variance to -Delta.

    **Example:**

    ```python
    >>> kernel = jk.continuous_kernel(jk.Gaussian(0.0, [0.5]), jk.VP(), t_min=1e-3)
    >>> assert kernel.contract(jk.ScoreError.relative(0.05, jk.OrnsteinUhlenbeck(2.0))) > 0
    ```
    """

    target: Gaussian
    process: AbstractProcess
    t_min: Float[Array, ""]
    times: Float[Array, " nodes"]
    mean: Float[Array, "nodes modes"]
    variance: Float[Array, "nodes modes"]

    @in_float64
    def contract(self, score_error: ScoreError) -> Float[Array, ""]:
        """Compute the expected squared W2 that a score error causes, to second order.

            sum_i int int k_i(s) k_i(t) E eta_i(s) eta_i(t) + q_i(s) q_i(t) E Delta_i(s) Delta_i(t)
                                                                             / (4 V_i) ds dt

        with eta = delta - Delta a mu, k and q the responses of mean and variance, and V_i the
        variance of the samples. An error that is independent from time to time costs nothing: its
        integral vanishes as nodes are added.

        **Arguments:**

        - `score_error`: the random error, with one slope per mode. A mean counts as a direction.

        **Returns:** the excess, in units of variance.

        **Raises:** ValueError for matrix slopes or an error of other modes.

        **Example:**

        ```python
        >>> kernel = jk.continuous_kernel(jk.Gaussian(0.0, [0.5]), jk.VP(), t_min=1e-3)
        >>> excess = kernel.contract(jk.ScoreError.relative(0.05))
        ```
        """
        score_error = _checks.instance("score_error", score_error, ScoreError)
        if score_error.has_matrix_slopes:
            raise ValueError("score_error has matrix slopes; the continuous kernel is per mode.")
        where = (self.target, self.process, jnp.asarray(self.times))
        return _contract(self, score_error.mean_at(*where), score_error.directions(*where))


@jax.jit
def _contract(
    kernel: ContinuousKernel, mean: AffineError | None, directions: AffineError | None
) -> Array:
    """The quadratic form of a mean (nodes, modes) and of directions (r, nodes, modes)."""
    target = kernel.target
    process = kernel.process
    center = process.signal(kernel.times)[:, None] * target.mean
    end = target.marginal_variance(process, kernel.t_min)

    def cost(w: AffineError) -> Array:
        shift = jnp.sum(kernel.mean * (w.shift - w.slope * center), 0)
        change = -jnp.sum(kernel.variance * w.slope, 0)
        return jnp.sum(target.weights * (shift**2 + 0.25 * change**2 / end))

    total = jnp.zeros((), kernel.times.dtype)
    if mean is not None:
        total += cost(mean)
    if directions is not None:
        total += jnp.sum(jax.vmap(cost)(directions))
    return total


@in_float64
def continuous_kernel(
    target: Gaussian,
    process: AbstractProcess,
    *,
    t_min: Numbers,
    stochasticity: Numbers = 0.0,
    nodes: int = 256,
) -> ContinuousKernel:
    """Make the kernel of score errors in continuous time, without discretisation.

        k_i(t) dt = p/2 a_0 a (V_0 / V)^(p/2) d sigma^2
        q_i(t) dt = p a_0^2 a^2 V_0^p V^(1-p) d sigma^2

    with p = 1 + alpha^2, V = lambda_i + sigma^2 and 0 for t_min. The samples are compared with the
    exact marginal at t_min, from that at t_max; to both the gradient of W2 is 0.

    **Arguments:**

    - `target`: the data distribution, with eigenvalues > 0.
    - `process`: the forward process.
    - `t_min`: the last time, > 0.
    - `stochasticity`: alpha = h / g >= 0 at all times.
    - `nodes`: of Gauss-Legendre quadrature in log sigma.

    **Returns:** a `ContinuousKernel`.

    **Raises:** ValueError naming the argument.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.5]), jk.VP())
    >>> ode, sde = (jk.continuous_kernel(*setting, t_min=0.01, stochasticity=a) for a in (0.0, 1.0))
    ```

    Source: as for `ErrorKernel`, in the limit of many steps.
    """
    target = check_target(target).in_eigenbasis()
    process = check_process(process)
    alpha = float(_checks.scalar("stochasticity", stochasticity, at_least=0.0))
    last = float(_checks.scalar("t_min", t_min, above=0.0, below=float(process.t_max)))
    nodes = _checks.count("nodes", nodes, at_least=2)
    if np.any(np.asarray(target.eigenvalues) <= 0):
        raise ValueError("target.eigenvalues must be > 0.")
    if not np.isfinite(float(process.sigma(process.t_max))):
        raise ValueError("process has no signal at t_max; use process.sub_range(t_max) below it.")
    return _respond(target, process, jnp.asarray(last), jnp.asarray(1.0 + alpha**2), nodes)


@partial(jax.jit, static_argnames="nodes")
def _respond(
    target: Gaussian, process: AbstractProcess, t_min: Array, p: Array, nodes: int
) -> ContinuousKernel:
    """The kernel on Gauss-Legendre nodes in log sigma."""
    points, weights = (constant(a[::-1]) for a in np.polynomial.legendre.leggauss(nodes))
    high, low = (jnp.log(process.sigma(jnp.asarray(t))) for t in (process.t_max, t_min))
    sigma = jnp.exp(0.5 * (high + low) + 0.5 * (high - low) * points)
    # d sigma^2 = 2 sigma^2 d log sigma
    measure = (high - low) * weights * sigma**2
    times = process.time_at_sigma(sigma)
    eigenvalues = jnp.asarray(target.eigenvalues)
    variance = eigenvalues + sigma[:, None] ** 2
    end = eigenvalues + process.sigma(t_min) ** 2
    signal = process.signal(t_min)
    mean = 0.5 * p * signal * (measure * process.signal(times))[:, None]
    mean = mean * (end / variance) ** (0.5 * p)
    change = p * signal**2 * measure[:, None] * process.signal(times)[:, None] ** 2
    return ContinuousKernel(
        target, process, t_min, times, mean, change * (end / variance) ** p * variance
    )
