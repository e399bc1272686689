"""What every forward process offers: X_t = a(t) X_0 + s(t) Z with Z ~ N(0, I).

Time t increases with noise, from 0 (data) to `t_max`. With a = `signal` and s = `noise`,

    sigma = s / a,                      log_snr = log(a^2 / s^2)                               (1)
    dX = f(t) X dt + g(t) dW,           f = a'/a,   g^2 = (s^2)' - 2 f s^2                      (2)

A subclass states a, s, f, g^2, the inverse of sigma and the integral (3) below in closed form; the
tests hold them to each other and to automatic differentiation.
"""

import abc
import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._numerics import as_inexact, safe_log
from .._precision import is_traced
from .._types import AnyArray

_DEFAULT_LAST_SIGMA = 0.002


class AbstractProcess(eqx.Module):
    """A forward process X_t = a(t) X_0 + s(t) Z, with time increasing with noise.

    To add a process, subclass this class, state `t_max` and write the abstract methods. Every
    method takes times of any shape and returns the same shape. Parameters may be traced.

    **Example:**

    ```python
    >>> process = jk.VP()
    >>> bool(jnp.allclose(process.signal(0.3) ** 2 + process.noise(0.3) ** 2, 1.0))
    True
    ```
    """

    t_max: eqx.AbstractVar[AnyArray]

    @property
    def default_t_min(self) -> float:
        """Time > 0 at which sampling ends by default: where sigma = 0.002.

        That is far below what can be seen in data of a variance of about 1. The process must be
        concrete.
        """
        with jax.enable_x64(True):
            return float(self.time_at_sigma(np.float64(_DEFAULT_LAST_SIGMA)))

    @abc.abstractmethod
    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate a(t), the factor of the data: 1 at t = 0.

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** a(t), in [0, 1].
        """

    @abc.abstractmethod
    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate s(t), the standard deviation of the added noise: 0 at t = 0.

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** s(t) >= 0, in units of the data.
        """

    @abc.abstractmethod
    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Invert sigma(t) = s(t) / a(t).

        **Arguments:**

        - `sigma`: noise levels of any shape, in [0, sigma(t_max)].

        **Returns:** the times of these levels.
        """

    @abc.abstractmethod
    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate f(t) = a'(t) / a(t).

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** f(t) <= 0, per unit of time.
        """

    @abc.abstractmethod
    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate g(t)^2 = (s^2)' - 2 f s^2.

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** g(t)^2 >= 0, variance per unit of time.
        """

    @abc.abstractmethod
    def integrated_signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate the weight of a frozen score in the exponential integrator.

            I(t) = int_0^{sigma(t)^2} a d(sigma^2)                                          (3)

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** I(t) >= 0, in units of the data's variance.
        """

    @abc.abstractmethod
    def prior_variance(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate the variance of the isotropic Gaussian that sampling starts from.

        **Arguments:**

        - `t`: first times of a schedule, of any shape.

        **Returns:** the variance of the initial noise at these times.
        """

    def __repr__(self) -> str:
        # numbers as numbers: a process is known by its parameters
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in values.items())
        return f"{type(self).__name__}({shown})"

    def sigma(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate the noise level sigma(t) = s(t) / a(t).

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** sigma(t) >= 0 in units of the data; infinite where a(t) = 0.

        **Example:**

        ```python
        >>> float(jk.FlowMatching().sigma(0.5))
        1.0
        ```
        """
        a = self.signal(t)
        present = a > 0
        return jnp.where(present, self.noise(t) / jnp.where(present, a, 1.0), jnp.inf)

    def log_snr(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate the logarithm of the signal-to-noise ratio, log(a(t)^2 / s(t)^2).

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** log-SNR in nats; +infinity at s = 0, -infinity at a = 0.
        """
        return 2.0 * (safe_log(self.signal(t)) - safe_log(self.noise(t)))

    def time_at_log_snr(self, log_snr: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Invert log_snr(t) = log(a(t)^2 / s(t)^2).

        **Arguments:**

        - `log_snr`: log-SNR of any shape, in nats, at least that of t_max.

        **Returns:** the times of these ratios.
        """
        return self.time_at_sigma(jnp.exp(-as_inexact(log_snr) / 2.0))

    def signal_rate(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate a'(t) by automatic differentiation: finite also where f = a'/a is not.

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** a'(t), per unit of time.
        """
        return _rate(self.signal, t)

    def noise_rate(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate s'(t) by automatic differentiation.

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** s'(t), per unit of time; 0 at s = 0 where the true value is infinite.
        """
        return _rate(self.noise, t)


def check_process(process: object) -> AbstractProcess:
    """`process`, or a ValueError that names what it is instead."""
    if not isinstance(process, AbstractProcess):
        raise ValueError(f"process must be a forward process such as VP(); got {process!r}.")
    return process


def _shown(value: object) -> str:
    """A parameter as text: single numbers without their array type."""
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and not is_traced(value):
        return f"{float(value):g}"
    return eqx.tree_pformat(value)


def _rate(fn: Callable[[Array], Array], t: ArrayLike) -> Array:
    """The derivative of a function of time, elementwise."""
    t = as_inexact(t)
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]
