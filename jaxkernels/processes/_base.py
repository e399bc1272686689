"""What every forward process offers: X_t = a(t) X_0 + s(t) Z with Z ~ N(0, I).

Time t increases with noise, from 0 (data) to `t_max`. With a = `signal` and s = `noise`,

    sigma = s / a,                      log_snr = log(a^2 / s^2)                               (1)
    dX = f(t) X dt + g(t) dW,           f = a'/a,   g^2 = (s^2)' - 2 f s^2                      (2)

A subclass states a, s, f, g^2, the inverse of sigma and the integral (3) below in closed form; the
tests hold them to each other and to automatic differentiation.
"""

import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._numerics import as_inexact, safe_log
from .._precision import is_traced
from .._types import AnyArray


class AbstractProcess(eqx.Module):
    """A forward process. Methods accept times of any shape and return the same shape."""

    t_max: eqx.AbstractVar[AnyArray]

    @abc.abstractmethod
    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """a(t), the factor of the data; 1 at t = 0."""

    @abc.abstractmethod
    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """s(t), the standard deviation of the added noise; 0 at t = 0."""

    @abc.abstractmethod
    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """The time t at which s(t) / a(t) = sigma, for 0 <= sigma <= sigma(t_max)."""

    @abc.abstractmethod
    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """f(t) = a'(t) / a(t), per unit of time."""

    @abc.abstractmethod
    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """g(t)^2 = (s^2)' - 2 f s^2, variance per unit of time."""

    @abc.abstractmethod
    def integrated_signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """I(t) = int_0^{sigma(t)^2} a d(sigma^2): what a score frozen over a step is multiplied by. (3)"""

    @abc.abstractmethod
    def prior_variance(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Variance of the isotropic normal law that sampling starts from at time t."""

    def __repr__(self) -> str:
        # numbers as numbers: a process is known by its parameters
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return f"{type(self).__name__}({', '.join(f'{name}={_shown(value)}' for name, value in values.items())})"

    def sigma(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Noise level s(t) / a(t) in units of the data; infinite where a(t) = 0."""
        a = self.signal(t)
        present = a > 0
        return jnp.where(present, self.noise(t) / jnp.where(present, a, 1.0), jnp.inf)

    def log_snr(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """log(a^2 / s^2) in nats; +infinity at s = 0, -infinity at a = 0."""
        return 2.0 * (safe_log(self.signal(t)) - safe_log(self.noise(t)))

    def time_at_log_snr(self, log_snr: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """The time t at which log(a^2 / s^2) = log_snr."""
        return self.time_at_sigma(jnp.exp(-as_inexact(log_snr) / 2.0))

    def signal_rate(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """a'(t), by automatic differentiation: finite also where f = a'/a is not."""
        return _rate(self.signal, t)

    def noise_rate(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """s'(t), by automatic differentiation; 0 at s = 0, where the true value may be infinite."""
        return _rate(self.noise, t)


def check_process(process: object) -> AbstractProcess:
    """A process, or an error that names what it is instead."""
    if not isinstance(process, AbstractProcess):
        raise ValueError(f"process must be a forward process such as VP(); got {process!r}.")
    return process


def _shown(value: object) -> str:
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and not is_traced(value):
        return f"{float(value):g}"
    return eqx.tree_pformat(value)


def _rate(fn, t):
    t = as_inexact(t)
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]
