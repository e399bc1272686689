"""How a score error at one time is correlated with the same error at another.

A network is one function of (x, t): evaluations at the same time have the same error, so every
correlation here is 1 between equal times. Times are those of the evaluations of a run, in its order:
they never increase.
"""

import abc
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import safe_sqrt
from .._types import AnyArray, Numbers, constant
from ..processes import AbstractProcess


class AbstractCorrelation(eqx.Module):
    """A correlation matrix over the evaluation times, in factored form."""

    @abc.abstractmethod
    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        """L with L L^T = the correlation matrix, rows of length 1."""

    def matrix(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations evaluations"]:
        """The correlation matrix itself."""
        factor = self.factor(process, times)
        return factor @ factor.T


class FullyCorrelated(AbstractCorrelation):
    """The same error at all times: correlation 1."""

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        del process
        return jnp.ones((times.shape[0], 1), times.dtype)


class AbstractMarkov(AbstractCorrelation):
    """x_{n+1} = r_n x_n + sqrt(1 - r_n^2) z_{n+1}: correlation is the product of the r between two times."""

    @abc.abstractmethod
    def lag_one(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, " lags"]:
        """log r_n between consecutive times, -inf for r = 0; it is replaced by 0 between equal times."""

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        same = times[1:] == times[:-1]
        logs = jnp.where(same, 0.0, jnp.where(same, 0.0, self.lag_one(process, times)))
        fresh = jnp.concatenate([jnp.ones(1, times.dtype), safe_sqrt(-jnp.expm1(2.0 * logs))])
        # products of r over lags b .. a-1, as sums of logarithms; a sum that includes -inf is a factor 0
        n = times.shape[0]
        order = np.arange(n)
        inside = (order[:, None, None] > order[:-1]) & (order[:-1] >= order[:, None])
        carried = jnp.exp(jnp.sum(jnp.where(inside, logs, 0.0), -1))
        return jnp.where(order[:, None] >= order, carried * fresh, 0.0)


class Independent(AbstractMarkov):
    """A fresh error at every time."""

    def lag_one(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, " lags"]:
        del process
        return jnp.full(times.shape[0] - 1, -jnp.inf, times.dtype)


class AR1(AbstractMarkov):
    """Correlation rho^|a - b| between the a-th and the b-th distinct time, 0 <= rho <= 1.

    It refers to the number of steps, so a finer grid has errors that forget faster: use
    `OrnsteinUhlenbeck` to compare numbers of steps.
    """

    rho: Float[AnyArray, ""]

    def __init__(self, rho: Numbers):
        self.rho = _checks.parameter("rho", rho, at_least=0.0, at_most=1.0)

    def lag_one(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, " lags"]:
        del process
        return jnp.full(times.shape[0] - 1, jnp.log(jnp.asarray(self.rho, times.dtype)))


class OrnsteinUhlenbeck(AbstractMarkov):
    """Correlation exp(-|u(t) - u(t')| / length) in the clock u = t ("time") or u = log(a^2/s^2) ("log_snr")."""

    length: Float[AnyArray, ""]
    clock: Literal["time", "log_snr"] = eqx.field(static=True)

    def __init__(self, length: Numbers, clock: str = "log_snr"):
        self.length = _checks.parameter("length", length, above=0.0)
        self.clock = _checks.one_of("clock", clock, ("time", "log_snr"))  # pyright: ignore[reportAttributeAccessIssue]

    def lag_one(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, " lags"]:
        same = times[1:] == times[:-1]
        clock = times if self.clock == "time" else process.log_snr(times)
        return -jnp.abs(jnp.where(same, 0.0, clock[1:] - clock[:-1])) / self.length


class Banded(AbstractCorrelation):
    """Correlation max(0, 1 - |a - b| / width) between the a-th and the b-th distinct time.

    It is that of a moving average over `width` consecutive times, and 0 from `width` on.
    """

    width: int = eqx.field(static=True)

    def __init__(self, width: int):
        self.width = _checks.count("width", width)

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        del process
        distinct = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(times[1:] != times[:-1])])
        offset = np.arange(times.shape[0] + self.width - 1) - distinct[:, None]
        inside = (offset >= 0) & (offset < self.width)
        return jnp.where(inside, 1.0 / np.sqrt(self.width), 0.0).astype(times.dtype)


class GivenCorrelation(AbstractCorrelation):
    """A correlation matrix over the evaluations of one particular schedule.

    **Raises:** ValueError unless it is symmetric, has a unit diagonal and is positive semidefinite; when
    used, for a schedule with another number of evaluations.
    """

    root: Float[AnyArray, "evaluations evaluations"]

    def __init__(self, matrix: Numbers):
        m = _checks.array("matrix", matrix)
        if m.ndim != 2 or m.shape[0] != m.shape[1] or np.abs(m - m.T).max() > 1e-8:
            raise ValueError(f"matrix of shape {m.shape} is not a symmetric matrix.")
        if np.abs(np.diagonal(m) - 1.0).max() > 1e-8:
            raise ValueError("matrix must have 1 on its diagonal: it is a correlation.")
        values, vectors = np.linalg.eigh(m)
        if values[0] < -1e-8:
            raise ValueError(
                f"matrix has the negative eigenvalue {values[0]:.3g}: it is no correlation."
            )
        self.root = constant(vectors * np.sqrt(np.maximum(values, 0.0)))

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        del process
        if times.shape[0] != self.root.shape[0]:
            raise ValueError(
                f"the correlation is given for {self.root.shape[0]} evaluations; this schedule and sampler "
                f"make {times.shape[0]}."
            )
        return jnp.asarray(self.root, times.dtype)
