"""The time change under which every forward process is the same.

In the rescaled time theta(t) = log(1 + sigma(t)^2) every process is, up to a scaling of space,
dX = -X/2 dtheta + dB (g = 1). A mode is an eigenvector of the data covariance. If its variance is
lambda, the variance of X_0 + sigma Z divided by 1 + sigma^2 is

    s(theta) = 1 + (lambda - 1) e^{-theta}.                                                     (1)

Neither the leading order of KL nor alpha = h / g depends on the time change or on the scaling
(Cao, Chen, Luo, Zhou 2023, Appendix B.2). Results in theta therefore hold for every process, with
alpha^2 = h^2 / g^2 in the place of h^2. theta is forward time: it grows from 0 at the data to the
noise, and generation runs against it.

The natural time of a mode is

    y(theta) = int_0^theta dr / s(r) = log(1 + (e^theta - 1) / lambda),     d theta = s dy.     (2)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._numerics import safe_sqrt
from .._precision import in_float64
from .._types import AnyArray
from ..processes import AbstractProcess, check_process


@in_float64
def time_change(process: AbstractProcess, t: Real[AnyArray | float, "*s"]) -> Float[Array, "*s"]:
    """Compute the rescaled time theta of a process at its own time t.

        theta(t) = log(1 + sigma(t)^2)     (int_0^t g^2 for a variance-preserving process)

    **Arguments:**

    - `process`: the forward process.
    - `t`: times of the process, any shape, between 0 and `process.t_max`.

    **Returns:** theta >= 0, of the shape of `t`; infinite where no signal is left.

    **Example:**

    ```python
    >>> theta = jk.reverse_sde.time_change(jk.OU(rate=1.0, t_max=3.0), 2.0)
    >>> print(f"{float(theta):.4f}")
    2.0000
    ```

    Source: Cao, Chen, Luo, Zhou, "Exploring the optimal choice for generative processes in
    diffusion models: ordinary vs stochastic differential equations" (2023), Appendix B.2.
    """
    return jnp.log1p(check_process(process).sigma(t) ** 2)


@in_float64
def inverse_time_change(
    process: AbstractProcess, theta: Real[AnyArray | float, "*s"]
) -> Float[Array, "*s"]:
    """Compute the time t of a process at which its rescaled time is theta.

    **Arguments:**

    - `process`: the forward process.
    - `theta`: rescaled times >= 0, any shape.

    **Returns:** t with `time_change(process, t)` = theta, of the shape of `theta`.

    **Example:**

    ```python
    >>> t = jk.reverse_sde.inverse_time_change(jk.VP(), 1.0)
    >>> print(f"{float(jk.reverse_sde.time_change(jk.VP(), t)):.4f}")
    1.0000
    ```
    """
    return process.time_at_sigma(safe_sqrt(jnp.expm1(jnp.asarray(theta, float))))


def mode_time(theta: Array, variance: Array) -> Array:
    """The natural time y of a mode, (2)."""
    return jnp.log1p(jnp.expm1(theta) / variance)


def inverse_mode_time(y: Array, variance: Array) -> Array:
    """The rescaled time theta at which the natural time of a mode is y."""
    return jnp.log1p(variance * jnp.expm1(y))


def mode_variance(theta: Array, variance: Array) -> Array:
    """The variance s of a mode at theta, (1)."""
    return variance * jnp.exp(-theta) - jnp.expm1(-theta)
