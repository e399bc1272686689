"""How a score error at one time is correlated with the same error at another.

A network is one function of (x, t): evaluations at the same time have the same error, so every
correlation here is 1 between equal times. Times are those of the evaluations of a run, in its
order: they never increase.
"""

import abc
from typing import Literal, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import _checks
from .._numerics import safe_sqrt
from .._types import AnyArray, Numbers, constant
from ..processes import AbstractProcess


class AbstractCorrelation(eqx.Module):
    """A correlation matrix over the evaluation times, in factored form.

    **Example:**

    ```python
    >>> jk.AR1(0.5).matrix(jk.VP(), jnp.array([1.0, 0.5]))[0, 1].item()
    0.5
    ```
    """

    @abc.abstractmethod
    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        """Return L with L L^T = the correlation matrix.

        **Arguments:**

        - `process`: the process of the evaluations.
        - `times`: (evaluations,) their times, not increasing.

        **Returns:** (evaluations, factors), rows of length 1.

        **Example:**

        ```python
        >>> jk.FullyCorrelated().factor(jk.VP(), jnp.array([1.0, 0.5])).shape
        (2, 1)
        ```
        """

    def matrix(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations evaluations"]:
        """Return the correlation matrix.

        **Arguments:**

        - `process`: the process of the evaluations.
        - `times`: (evaluations,) their times, not increasing.

        **Returns:** (evaluations, evaluations), symmetric, with a unit diagonal.

        **Example:**

        ```python
        >>> jk.Independent().matrix(jk.VP(), jnp.array([1.0, 0.5]))[0, 1].item()
        0.0
        ```
        """
        factor = self.factor(process, times)
        return factor @ factor.T

    def padded(self, evaluations: int) -> "AbstractCorrelation":
        """Return the same for runs of `evaluations`, of which the last may be padding.

        **Arguments:**

        - `evaluations`: their number.

        **Returns:** a correlation; by default this one.

        **Example:**

        ```python
        >>> jk.AR1(0.5).padded(16)
        AR1(rho=0.5)
        ```
        """
        del evaluations
        return self


def _distinct(times: Float[Array, " evaluations"]) -> Int[Array, " evaluations"]:
    """The number of distinct times before each."""
    return jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(times[1:] != times[:-1])])


class FullyCorrelated(AbstractCorrelation):
    """The same error at all times: correlation 1.

    **Example:**

    ```python
    >>> error = jk.ScoreError.relative(0.02, jk.FullyCorrelated())
    ```
    """

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        del process
        return jnp.ones((times.shape[0], 1), times.dtype)


class AbstractMarkov(AbstractCorrelation):
    """A Markov chain x_{n+1} = r_n x_n + sqrt(1 - r_n^2) z_{n+1} over the evaluation times.

    The correlation of two times is the product of the r between them.

    **Example:**

    ```python
    >>> jk.AR1(0.5).matrix(jk.VP(), jnp.array([1.0, 0.5, 0.1]))[0, 2].item()
    0.25
    ```
    """

    @abc.abstractmethod
    def lag_one(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, " lags"]:
        """Return log r_n between consecutive times; between equal times it is replaced by 0.

        **Arguments:**

        - `process`: the process of the evaluations.
        - `times`: (evaluations,) their times, not increasing.

        **Returns:** (evaluations - 1,), -inf for r = 0.

        **Example:**

        ```python
        >>> jk.Independent().lag_one(jk.VP(), jnp.array([1.0, 0.5])).item()
        -inf
        ```
        """

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        same = times[1:] == times[:-1]
        logs = jnp.where(same, 0.0, jnp.where(same, 0.0, self.lag_one(process, times)))
        fresh = jnp.concatenate([jnp.ones(1, times.dtype), safe_sqrt(-jnp.expm1(2.0 * logs))])
        # products of r over lags b .. a-1, as sums of logarithms; a sum that includes -inf is a
        # factor 0
        order = np.arange(times.shape[0])
        inside = (order[:, None, None] > order[:-1]) & (order[:-1] >= order[:, None])
        remaining = jnp.exp(jnp.sum(jnp.where(inside, logs, 0.0), -1))
        return jnp.where(order[:, None] >= order, remaining * fresh, 0.0)


class Independent(AbstractMarkov):
    """An independent error at every time: correlation 0.

    **Example:**

    ```python
    >>> error = jk.ScoreError.relative(0.02, jk.Independent())
    ```
    """

    def lag_one(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, " lags"]:
        del process
        return jnp.full(times.shape[0] - 1, -jnp.inf, times.dtype)


class AR1(AbstractMarkov):
    """Correlation rho^|a - b| between the a-th and the b-th distinct time.

    It refers to the number of steps, so that a finer schedule has errors that decorrelate faster:
    use `OrnsteinUhlenbeck` to compare numbers of steps. With rho < 0 errors alternate.

    **Arguments:**

    - `rho`: in [-1, 1].

    **Raises:** ValueError for rho outside [-1, 1].

    **Example:**

    ```python
    >>> error = jk.ScoreError.relative(0.02, jk.AR1(0.8))
    ```
    """

    rho: Float[AnyArray, ""]

    def __init__(self, rho: Numbers):
        self.rho = _checks.parameter("rho", rho, at_least=-1.0, at_most=1.0)

    def lag_one(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, " lags"]:
        del process
        size = jnp.abs(jnp.asarray(self.rho, times.dtype))
        return jnp.full(times.shape[0] - 1, jnp.log(size))

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        factor = super().factor(process, times)
        alternates = (jnp.asarray(self.rho) < 0) & (_distinct(times) % 2 == 1)
        return jnp.where(alternates[:, None], -factor, factor)


class OrnsteinUhlenbeck(AbstractMarkov):
    """Correlation exp(-|u(t) - u(t')| / length) in a coordinate u of time.

    **Arguments:**

    - `length`: the correlation length, > 0, in units of u.
    - `coordinate`: "log_snr" for u = log(a^2/s^2), or "time" for u = t.

    **Raises:** ValueError for a length <= 0 or an unknown coordinate.

    **Example:**

    ```python
    >>> error = jk.ScoreError.relative(0.02, jk.OrnsteinUhlenbeck(2.0))
    ```
    """

    length: Float[AnyArray, ""]
    coordinate: Literal["time", "log_snr"] = eqx.field(static=True)

    def __init__(self, length: Numbers, coordinate: str = "log_snr"):
        self.length = _checks.parameter("length", length, above=0.0)
        name = _checks.one_of("coordinate", coordinate, ("time", "log_snr"))
        self.coordinate = cast(Literal["time", "log_snr"], name)

    def lag_one(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, " lags"]:
        same = times[1:] == times[:-1]
        u = times if self.coordinate == "time" else process.log_snr(times)
        # equal times may have the same infinite u
        return -jnp.abs(jnp.where(same, 0.0, u[1:] - u[:-1])) / self.length


class Banded(AbstractCorrelation):
    """Correlation max(0, 1 - |a - b| / width) between the a-th and the b-th distinct time.

    It is that of a moving average over `width` consecutive times, and 0 from `width` on.

    **Arguments:**

    - `width`: a positive integer.

    **Raises:** ValueError for another width.

    **Example:**

    ```python
    >>> error = jk.ScoreError.relative(0.02, jk.Banded(3))
    ```
    """

    width: int = eqx.field(static=True)

    def __init__(self, width: int):
        self.width = _checks.count("width", width)

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        del process
        offset = np.arange(times.shape[0] + self.width - 1) - _distinct(times)[:, None]
        inside = (offset >= 0) & (offset < self.width)
        return jnp.where(inside, 1.0 / np.sqrt(self.width), 0.0).astype(times.dtype)


class GivenCorrelation(AbstractCorrelation):
    """A given correlation matrix over the evaluations of one particular schedule.

    **Arguments:**

    - `matrix`: (evaluations, evaluations), symmetric, positive semidefinite, with a unit diagonal.

    **Raises:** ValueError for another matrix; when used, for a schedule with another number of
    evaluations.

    **Example:**

    ```python
    >>> from jaxkernels.score_error import GivenCorrelation
    >>> error = jk.ScoreError.relative(0.02, GivenCorrelation(np.eye(8)))
    ```
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

    def padded(self, evaluations: int) -> "GivenCorrelation":
        missing = evaluations - self.root.shape[0]
        root = constant(np.pad(np.asarray(self.root), ((0, missing), (0, missing))))
        return eqx.tree_at(lambda given: given.root, self, root)

    def factor(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations factors"]:
        del process
        if times.shape[0] != self.root.shape[0]:
            raise ValueError(
                f"the correlation is given for {self.root.shape[0]} evaluations; this schedule and "
                f"sampler make {times.shape[0]}."
            )
        return jnp.asarray(self.root, times.dtype)
