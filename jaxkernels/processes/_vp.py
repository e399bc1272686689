"""Variance-preserving processes, a^2 + s^2 = 1."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .. import _checks
from .._numerics import as_inexact, clipped, safe_sqrt
from .._precision import is_traced
from .._types import AnyArray, Numbers, constant
from ._base import LARGEST, LARGEST_RATE, AbstractProcess, range_ends


class AbstractVariancePreserving(AbstractProcess):
    """A process with a^2 + s^2 = 1: g^2 = -2 f, sigma^2 = 1/a^2 - 1, I = 2 (1/a - 1)."""

    @property
    def default_t_min(self) -> float:
        """Time at which sampling ends by default: 1e-3, for processes on a range of order 1."""
        return 1e-3

    def diffusion_squared(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return -2.0 * self.drift(t)

    def integrated_signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # 1/a - 1 = s^2 / (a (1 + a)), which keeps its digits for small t
        a = self.signal(t)
        s = self.noise(t)
        return 2.0 * s * s / (a * (1.0 + a))

    def prior_variance(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return jnp.ones_like(as_inexact(t))


class AbstractExponential(AbstractVariancePreserving):
    """A process given by its rate beta(t).

    dX = -beta(t)/2 X dt + sqrt(beta(t)) dW
    a = exp(-B/2),   s^2 = 1 - exp(-B),   B(t) = int_0^t beta
    """

    @abc.abstractmethod
    def beta(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate the rate beta(t).

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** beta(t) > 0, per unit of time.
        """

    @abc.abstractmethod
    def integrated_beta(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate B(t) = int_0^t beta.

        **Arguments:**

        - `t`: times of any shape, in [0, t_max].

        **Returns:** B(t) >= 0, without unit.
        """

    @abc.abstractmethod
    def time_at_integrated_beta(self, b: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Invert B(t).

        **Arguments:**

        - `b`: values of B of any shape, >= 0.

        **Returns:** the times at which B(t) = b.
        """

    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return jnp.exp(-self.integrated_beta(t) / 2.0)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return safe_sqrt(-jnp.expm1(-self.integrated_beta(t)))

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.time_at_integrated_beta(jnp.log1p(as_inexact(sigma) ** 2))

    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return -self.beta(t) / 2.0


class VP(AbstractExponential):
    """Variance-preserving process with a linear rate, on [0, 1].

        dX = -beta/2 X dt + sqrt(beta) dW,     beta(t) = beta_min + (beta_max - beta_min) t

    A constant rate is `OU`.

    **Arguments:**

    - `beta_min`: rate at t = 0, > 0, per unit of time.
    - `beta_max`: rate at t = 1, from `beta_min` to 1e4: beyond, little of the data is left even at
      the last time.
    - `t_max`: first time of sampling, in (0, 1]; below 1 it starts from noised data, see
      `sub_range`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> float(jk.VP(beta_min=1.0, beta_max=20.0).integrated_beta(1.0))
    10.5
    ```

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
    (2021), eq. (11), https://arxiv.org/abs/2011.13456.
    """

    beta_min: AnyArray
    beta_max: AnyArray
    t_max: AnyArray

    def __init__(self, beta_min: Numbers = 0.1, beta_max: Numbers = 20.0, t_max: Numbers = 1.0):
        self.beta_min = _checks.parameter("beta_min", beta_min, above=0.0, at_most=LARGEST_RATE)
        least = 0.0 if is_traced(self.beta_min) else float(self.beta_min)
        range_of = {"at_least": least, "at_most": LARGEST_RATE}
        self.beta_max = _checks.parameter("beta_max", beta_max, **range_of)
        self.t_max, self.full_t_max = range_ends(t_max, constant(1.0))

    def beta(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.beta_min + (self.beta_max - self.beta_min) * as_inexact(t)

    def integrated_beta(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        t = as_inexact(t)
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def time_at_integrated_beta(self, b: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # the root of the quadratic without cancellation
        slope = self.beta_max - self.beta_min
        b = as_inexact(b)
        return 2.0 * b / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * b))


class OU(AbstractExponential):
    """Ornstein-Uhlenbeck process, the variance-preserving process of constant rate, on [0, t_max].

        dX = -rate/2 X dt + sqrt(rate) dW

    rate = 1 is the convention of Song et al. (2021), rate = 2 that of most convergence theory.

    **Arguments:**

    - `rate`: > 0 and at most 1e4, per unit of time.
    - `t_max`: end of time, > 0 and at most 1e9, where sampling starts from N(0, I). `sub_range`
      starts below it.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> bool(jnp.allclose(jk.OU(rate=2.0).signal(1.0), jnp.exp(-1.0)))
    True
    ```

    Source: Uhlenbeck and Ornstein, "On the Theory of the Brownian Motion" (1930).
    """

    rate: AnyArray
    t_max: AnyArray

    def __init__(self, rate: Numbers = 1.0, t_max: Numbers = 10.0):
        self.rate = _checks.parameter("rate", rate, above=0.0, at_most=LARGEST_RATE)
        self.t_max = _checks.parameter("t_max", t_max, above=0.0, at_most=LARGEST)
        self.full_t_max = None

    def beta(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.rate * jnp.ones_like(as_inexact(t))

    def integrated_beta(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.rate * as_inexact(t)

    def time_at_integrated_beta(self, b: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return as_inexact(b) / self.rate


class CosineVP(AbstractVariancePreserving):
    """Variance-preserving process with the cosine schedule, on [0, 1].

        a(t) = cos(theta(t)) / cos(theta(0)),     theta(t) = pi/2 (t + offset) / (1 + offset)

    At t = 1 the signal is exactly 0 and g^2 is infinite: samplers that use the score or g^2 must
    start below it (0.9946 is a usual t_max); the denoiser-based ones may start at 1.

    **Arguments:**

    - `offset`: >= 0 and at most 1e9; it makes the noise grow more quickly near the data.
    - `t_max`: first time of sampling, in (0, 1]; below 1 it starts from noised data, see
      `sub_range`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> float(jk.CosineVP().signal(1.0))
    0.0
    ```

    Source: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), eq.
    (17), https://arxiv.org/abs/2102.09672.
    """

    offset: AnyArray
    t_max: AnyArray

    def __init__(self, offset: Numbers = 0.008, t_max: Numbers = 1.0):
        self.offset = _checks.parameter("offset", offset, at_least=0.0, at_most=LARGEST)
        self.t_max, self.full_t_max = range_ends(t_max, constant(1.0))

    @property
    def _speed(self) -> Array:
        """d theta / dt, in radians per unit of time."""
        return jnp.asarray(0.5 * np.pi / (1.0 + self.offset))

    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # theta = pi/2 - speed (1 - t): written with sines so that both ends are exact
        c = self._speed
        return jnp.sin(c * (1.0 - as_inexact(t))) / jnp.sin(c)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # cos^2 theta_0 - cos^2 theta = sin(theta - theta_0) sin(theta + theta_0)
        c = self._speed
        t = as_inexact(t)
        return safe_sqrt(jnp.sin(c * t) * jnp.sin(c * (t + 2.0 * self.offset))) / jnp.sin(c)

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # tan^2 theta = (sigma^2 + sin^2 theta_0) / cos^2 theta_0
        c = self._speed
        sigma = as_inexact(sigma)
        opposite = safe_sqrt(sigma**2 + jnp.sin(c * self.offset) ** 2)
        return jnp.arctan2(opposite, jnp.sin(c) * jnp.ones_like(sigma)) / c - self.offset

    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        c = self._speed
        return -c / jnp.tan(c * (1.0 - as_inexact(t)))


class PowerVP(AbstractVariancePreserving):
    """Variance-preserving process whose signal falls linearly or quadratically, on [0, 1].

        a(t) = 1 - t^power,     s^2 = t^power (2 - t^power)

    `power` = 1 is the linear, 2 the quadratic signal of analyses of convergence; `VP` has a linear
    rate instead. At t = 1 the signal is exactly 0, as for `CosineVP`.

    **Arguments:**

    - `power`: 1 or 2.
    - `t_max`: first time of sampling, in (0, 1]; below 1 it starts from noised data, see
      `sub_range`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> float(jk.PowerVP(power=2).signal(0.5))
    0.75
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), Assumption 3.
    """

    power: int = eqx.field(static=True)
    t_max: AnyArray

    def __init__(self, power: int = 1, t_max: Numbers = 1.0):
        if power not in (1, 2):
            raise ValueError(f"power = {power!r} must be 1 or 2.")
        self.power = int(power)
        self.t_max, self.full_t_max = range_ends(t_max, constant(1.0))

    def _lost(self, t: Real[ArrayLike, "*s"]) -> Array:
        """1 - a."""
        return as_inexact(t) ** self.power

    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return 1.0 - self._lost(t)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        lost = self._lost(t)
        return safe_sqrt(lost * (2.0 - lost))

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # a = cos(theta) and 1 - a = 2 sin^2(theta / 2), without cancellation and up to sigma = inf
        root = np.sqrt(2.0) * jnp.sin(0.5 * jnp.arctan(as_inexact(sigma)))
        return root if self.power == 2 else root * root

    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return -self.power * as_inexact(t) ** (self.power - 1) / self.signal(t)


class DiscreteVP(AbstractVariancePreserving):
    """The process of a trained table `alphas_cumprod`, in continuous time on [0, N].

        a(n)^2 = alphas_cumprod[n - 1],     a^2 + s^2 = 1

    Time n is the n-th entry of the table, counted from 1, so t is the timestep of a discrete
    sampler plus 1. Between entries log sigma (and so log_snr) is linear; from the first entry down
    to the data, sigma = sigma(1) t. Hence sigma(0) = 0 exactly.

    **Arguments:**

    - `alphas_cumprod`: (N,) with N >= 2, strictly decreasing, every entry in (0, 1). A first entry
      1 is the data, time 0, and is left out; a last entry 0 (zero terminal SNR) becomes 2^-24, as
      in diffusers. Numbers that increase (or are constant) within (0, 1/2) are read as betas.
    - `name`: the table's name in other tools, such as "scaled_linear", or None.
    - `t_max`: first time of sampling, in (1, N]; by default N, below it sampling starts from noised
      data, see `sub_range`.

    **Raises:** ValueError for a table that is none, naming the first offending entry, or in half
    precision.

    **Example:**

    ```python
    >>> jk.DiscreteVP([0.9, 0.5, 0.1]).t_max.item()
    3.0
    ```

    Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), eq. (4),
    https://arxiv.org/abs/2006.11239.
    """

    log_sigmas: Float[AnyArray, " entries"]
    t_max: AnyArray
    name: str | None = eqx.field(static=True)

    def __init__(
        self, alphas_cumprod: Numbers, name: str | None = None, t_max: Numbers | None = None
    ):
        _check_precision(alphas_cumprod)
        table = _read_table(np.asarray(_checks.array("alphas_cumprod", alphas_cumprod)))
        self.log_sigmas = constant(0.5 * (np.log1p(-table) - np.log(table)))
        full = constant(table.size)
        start = full if t_max is None else t_max
        self.t_max, self.full_t_max = range_ends(start, full, self.trained_t_min)
        self.name = name

    @classmethod
    def from_betas(
        cls, betas: Numbers, name: str | None = None, t_max: Numbers | None = None
    ) -> "DiscreteVP":
        """Make the process of a table given by its betas.

            alphas_cumprod[n] = prod_{m <= n} (1 - betas[m])

        **Arguments:**

        - `betas`: (N,) with N >= 2, in (0, 1); the last one may be 1 (zero terminal SNR).
        - `name`, `t_max`: as for the class.

        **Returns:** a `DiscreteVP`.

        **Raises:** ValueError for betas out of range.

        **Example:**

        ```python
        >>> round(float(jk.DiscreteVP.from_betas([0.1, 0.2]).signal(2.0) ** 2), 6)
        0.72
        ```

        Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), section 2,
        https://arxiv.org/abs/2006.11239.
        """
        values = np.atleast_1d(np.asarray(_checks.array("betas", betas)))
        inside = (values > 0.0) & (values < 1.0)
        if not inside[:-1].all() or not (inside[-1:] | (values[-1:] == 1.0)).all():
            raise ValueError(
                "betas must lie strictly between 0 and 1, the last one may be 1; found "
                f"{values.min():g} .. {values.max():g}."
            )
        if values[0] > max(0.5, values[-1]):
            raise ValueError(
                f"betas fall from {values[0]:g} to {values[-1]:g}: these are alphas_cumprod, which "
                "go to DiscreteVP itself."
            )
        return cls(np.cumprod(1.0 - values, axis=-1), name=name, t_max=t_max)

    @classmethod
    def scaled_linear(
        cls,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        num_train_timesteps: int = 1000,
        t_max: Numbers | None = None,
    ) -> "DiscreteVP":
        """Make the process of Stable Diffusion 1.x, 2.x and XL: sqrt(beta) linear over its steps.

        **Arguments:**

        - `beta_start`: first beta, in (0, 1).
        - `beta_end`: last beta, in (0, 1).
        - `num_train_timesteps`: integer number N >= 2 of entries.
        - `t_max`: first time of sampling, in (1, N]; by default N.

        **Returns:** a `DiscreteVP` named "scaled_linear".

        **Example:**

        ```python
        >>> round(float(jk.DiscreteVP.scaled_linear().sigma(1000.0)), 3)
        14.615
        ```

        Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"
        (2022), https://arxiv.org/abs/2112.10752, and its published configurations.
        """
        first = float(_checks.scalar("beta_start", beta_start, above=0.0, below=1.0))
        last = float(_checks.scalar("beta_end", beta_end, above=0.0, below=1.0))
        count = _checks.count("num_train_timesteps", num_train_timesteps, at_least=2)
        betas = np.linspace(first**0.5, last**0.5, count) ** 2
        return cls.from_betas(betas, name="scaled_linear", t_max=t_max)

    @property
    def default_t_min(self) -> float:
        """Time at which sampling ends by default: 1, the first entry of the table."""
        return self.trained_t_min

    @property
    def trained_t_min(self) -> float:
        """The smallest time at which a network has been trained: 1, the first entry."""
        return 1.0

    @property
    def _knots(self) -> Array:
        """Times of the table's entries."""
        knots = np.arange(1.0, self.log_sigmas.shape[0] + 1, dtype=self.log_sigmas.dtype)
        return jnp.asarray(knots)

    @property
    def _levels(self) -> Array:
        """log sigma of the entries, as an array of JAX, which has the precision of the context.

        A NumPy array in a program that JAX has compiled keeps the precision of its first use.
        """
        return jnp.asarray(self.log_sigmas)

    def sigma(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        t = as_inexact(t)
        table = jnp.exp(jnp.interp(t, self._knots, self._levels))
        return jnp.where(t < 1.0, jnp.exp(self._levels[0]) * t, table)

    def signal(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return 1.0 / jnp.sqrt(1.0 + self.sigma(t) ** 2)

    def noise(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        return self.sigma(t) * self.signal(t)

    def time_at_sigma(self, sigma: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        sigma = as_inexact(sigma)
        first = jnp.exp(self._levels[0])
        inside = sigma >= first
        log_sigma = jnp.log(jnp.where(inside, sigma, first))
        return jnp.where(inside, jnp.interp(log_sigma, self._levels, self._knots), sigma / first)

    def drift(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        # f = (log a)' = -a^2 sigma sigma'; the slope of log sigma is constant between entries
        t = as_inexact(t)
        size = self.log_sigmas.shape[0]
        cell = clipped(jnp.floor(t).astype(int) - 1, 0, size - 2)
        slope = self._levels[cell + 1] - self._levels[cell]
        sigma = self.sigma(t)
        rate = jnp.where(t < 1.0, jnp.exp(self._levels[0]), sigma * slope)
        return -sigma * rate / (1.0 + sigma**2)


_ROUND_OFF = 1e-13
# entries from which the steps of a table are small
_LONG = 20
_ZERO_TERMINAL = 2.0**-24
"""What stands for a last entry 0: sigma is 4096 there, and infinite otherwise."""


def _check_precision(alphas_cumprod: object) -> None:
    """ValueError for a table in half precision, whose smallest levels are wrong by some percent."""
    dtype = getattr(alphas_cumprod, "dtype", None)
    if "float" in str(dtype) and getattr(dtype, "itemsize", 4) < 4:
        raise ValueError(
            f"alphas_cumprod has dtype {dtype}, which rounds the noise of its first entries; give "
            "it in float32, or the betas to DiscreteVP.from_betas."
        )


def _read_table(table: np.ndarray) -> np.ndarray:
    """alphas_cumprod strictly between 0 and 1 and decreasing, from what stands for them."""
    if table.ndim != 1 or table.size < 2:
        raise ValueError(
            f"alphas_cumprod must be a list of at least 2 numbers; got shape {table.shape}."
        )
    # alphas_cumprod never increase, and reversed ones would exceed 1/2 where there is little noise
    increases = bool(np.all(np.diff(table) >= 0))
    if increases and table[0] > 0 and table[-1] < 0.5:
        return _read_table(np.cumprod(1.0 - table))
    either = " Betas go to DiscreteVP.from_betas; a table in reverse order must be reversed."
    hint = either if increases else ""
    if table[0] == 1.0 and table.size > 2:
        table = table[1:]
    if table[-1] == 0.0:
        if 0.0 < table[-2] <= _ZERO_TERMINAL:
            raise ValueError(
                "alphas_cumprod end with 0, which stands for 2^-24, but the entry before is "
                f"{table[-2]:g}, which is smaller; give the last entry that your sampler uses."
            )
        table = np.append(table[:-1], _ZERO_TERMINAL)
    if not (np.all(table > 0) and np.all(table < 1)):
        raise ValueError(
            "alphas_cumprod must lie strictly between 0 and 1, but for a first entry 1 and a last "
            f"entry 0; found {table.min():g} .. {table.max():g}.{hint}"
        )
    if table.size >= _LONG:
        _check_range_of_table(table)
    # levels that are apart by round-off could not be told from each other
    rises = np.diff(np.log(table) - np.log1p(-table)) > -_ROUND_OFF
    if np.any(rises):
        n = int(np.argmax(rises))
        raise ValueError(
            f"alphas_cumprod must decrease; entries {n} and {n + 1} are {table[n]:g}, "
            f"{table[n + 1]:g}.{hint}"
        )
    return table


def _check_range_of_table(table: np.ndarray) -> None:
    """ValueError for numbers that decrease but are those of one step each, not their product."""
    if table[-1] > 0.9:
        raise ValueError(
            f"alphas_cumprod end with {table[-1]:g}, where the noise hides no data: if these are "
            "alphas = 1 - beta, give their product, np.cumprod(alphas)."
        )
    # those of an expert for high noise may begin in the middle of a table
    if table[0] < 0.1:
        raise ValueError(
            f"alphas_cumprod begin with {table[0]:g}, where the noise hides the data already: if "
            "these are betas in reverse order, reverse them."
        )
