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
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .. import _checks
from .._numerics import as_inexact, safe_log
from .._precision import is_traced
from .._types import AnyArray, Numbers

# of times, noise levels and other parameters; far beyond, float32 loses them
LARGEST = 1e9
# of rates whose process has nothing of the data left at the usual last time, 1e-3, beyond it
LARGEST_RATE = 1e4
_DEFAULT_LAST_SIGMA = 0.002


class AbstractProcess(eqx.Module):
    """A forward process X_t = a(t) X_0 + s(t) Z, with time increasing with noise.

    To add a process, subclass this class, state `t_max` and write the abstract methods. Every
    method takes times of any shape and returns the same shape. Parameters may be traced.

    Sampling starts at `t_max`: from pure noise; or, on a sub-range, from noised data.

    **Example:**

    ```python
    >>> process = jk.VP()
    >>> bool(jnp.allclose(process.signal(0.3) ** 2 + process.noise(0.3) ** 2, 1.0))
    True
    ```
    """

    t_max: eqx.AbstractVar[AnyArray]
    full_t_max: AnyArray | None = eqx.field(default=None, kw_only=True)
    """End of the whole range, if this is a sub-range of it; else None."""

    @property
    def default_t_min(self) -> float:
        """Time > 0 at which sampling ends by default: where sigma = 0.002.

        That is far below what can be seen in data of a variance of about 1. The process must be
        concrete.
        """
        with jax.enable_x64(True):
            return float(self.time_at_sigma(np.float64(_DEFAULT_LAST_SIGMA)))

    @property
    def trained_t_min(self) -> float:
        """The smallest time at which a network has been trained; 0 if there is none.

        A sampler may step from there to the data, but evaluates no network in between.
        """
        return 0.0

    @property
    def initialization(self) -> str:
        """What sampling starts from by default: "standard_normal", or "marginal" on a sub-range."""
        return "standard_normal" if self.full_t_max is None else "marginal"

    def sub_range(self, t_max: Numbers) -> "AbstractProcess":
        """Restrict the process to [0, t_max], where sampling starts from noised data.

        That is image-to-image, inpainting, or the last of several networks that share the range:
        sampling starts from x = a(t_max) x0 + s(t_max) eps with x0 from the data, or from what
        another network made of it.

        **Arguments:**

        - `t_max`: first time of sampling, > `trained_t_min` and at most the end of the whole range.

        **Returns:** the process, the whole one for the end of the whole range.

        **Raises:** ValueError for `t_max` out of range.

        **Example:**

        ```python
        >>> process = jk.OU(rate=2.0).sub_range(0.5)
        >>> float(process.t_max), process.initialization
        (0.5, 'marginal')
        ```
        """
        full = self.t_max if self.full_t_max is None else self.full_t_max
        start, full = range_ends(t_max, full, self.trained_t_min)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        restricted = object.__new__(type(self))
        for name, value in {**values, "t_max": start, "full_t_max": full}.items():
            object.__setattr__(restricted, name, value)
        return restricted

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
        full = values.pop("full_t_max")
        if full is not None:
            values["full_t_max"] = full
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
        raise ValueError(
            f"process must be a forward process such as VP(); got {_checks.shown(process)}."
        )
    return process


def same_process(one: AbstractProcess, other: AbstractProcess) -> bool:
    """Whether two concrete processes are of one class with the same parameters.

    Every number of a table counts, which a repr leaves out; precisions may differ.
    """
    if type(one) is not type(other) or jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6) for a, b in pairs)


def range_ends(
    t_max: Numbers, full: AnyArray | float, above: float = 0.0
) -> tuple[AnyArray, AnyArray | None]:
    """`t_max` and `full_t_max` of a process on [0, t_max] whose whole range is [0, full]."""
    most = np.inf if is_traced(full) else float(full)
    start = _checks.parameter("t_max", t_max, above=above, at_most=most)
    if is_traced((start, full)) or float(start) < most:
        return start, cast(AnyArray, full)
    return start, None


def _shown(value: object) -> str:
    """A parameter as text: single numbers without their array type."""
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and not is_traced(value):
        return f"{float(value):g}"
    return eqx.tree_pformat(value)


def _rate(fn: Callable[[Array], Array], t: ArrayLike) -> Array:
    """The derivative of a function of time, elementwise."""
    t = as_inexact(t)
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]
