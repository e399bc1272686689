"""Denoisers: the split of a noisy point into data and noise, by a network or an exact score.

Every network in use predicts one linear combination c0 x0 + c1 eps of the split x = a x0 + s eps.
Together with x itself that is two equations for the two unknowns, so one table of rows (c0, c1)
converts every prediction type into the split:

    prediction_type   value                                c0      c1
    "score"           grad log p_t(x), multiplied by s      0      -1
    "epsilon"         the noise                             0       1
    "x0"              the denoised point                    1       0
    "v"               a eps - s x0                         -s       a
    "flow"            dx/dt of the probability flow         a'      s'

    x0 = (c1 x - s value) / (a c1 - s c0),     eps = (a value - c0 x) / (a c1 - s c0)
"""

import abc
from collections.abc import Callable, Iterator
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._field_names import known_name
from .._types import Network
from ..processes import AbstractProcess, check_process


class Prediction(eqx.Module):
    """The split x = a(t) x0 + s(t) eps of a noisy point, which unpacks as `x0, eps`.

    **Arguments:**

    - `x0`: the denoised point E[X_0 | x], in the shape of x.
    - `eps`: the noise E[Z | x], in the shape of x.
    - `score`: grad log p_t(x), if it is known. It is -eps / s, and needed on its own only at s = 0,
      where that is 0/0.

    **Example:**

    ```python
    >>> x0, eps = jk.Prediction(jnp.ones(2), jnp.zeros(2))
    >>> x0.shape
    (2,)
    ```
    """

    x0: Float[Array, "..."]
    eps: Float[Array, "..."]
    score: Float[Array, "..."] | None = None

    def __iter__(self) -> Iterator[Array]:
        return iter((self.x0, self.eps))

    def with_score_error(self, error: Array, signal: Array, noise: Array) -> "Prediction":
        """Return the prediction of a score that is wrong by `error`.

            x0 + (s^2 / a) error,     eps - s error

        **Arguments:**

        - `error`: added to the score, in the shape of x.
        - `signal`: a at the time of the prediction, a scalar.
        - `noise`: s there, a scalar.

        **Returns:** the changed prediction.
        """
        score = None if self.score is None else self.score + error
        return Prediction(self.x0 + noise**2 / signal * error, self.eps - noise * error, score)


Predict: TypeAlias = Callable[[Array, Array], Prediction]
"""(x, t) -> Prediction, with a scalar time t."""

_Row: TypeAlias = tuple[ArrayLike, ArrayLike]
"""(c0, c1) of the table above."""

_ROWS: dict[str, Callable[[AbstractProcess, Array], _Row]] = {
    "score": lambda process, t: (0.0, -1.0),
    "epsilon": lambda process, t: (0.0, 1.0),
    "x0": lambda process, t: (1.0, 0.0),
    "v": lambda process, t: (-process.noise(t), process.signal(t)),
    "flow": lambda process, t: (process.signal_rate(t), process.noise_rate(t)),
}
PREDICTION_TYPES = tuple(_ROWS)


class AbstractDenoiser(eqx.Module):
    """A function that splits a noisy point of `process` into its denoised point and its noise.

    To use a network, make a `Denoiser`. Subclass this class for a denoiser of another form: write
    `__call__` and `astype`.

    **Arguments:**

    - `process`: the forward process.

    **Example:**

    ```python
    >>> class DataAtZero(jk.AbstractDenoiser):
    ...     process: jk.AbstractProcess
    ...
    ...     def __call__(self, x, t):
    ...         return jk.Prediction(jnp.zeros_like(x), x / self.process.noise(t))
    ...
    ...     def astype(self, dtype):
    ...         return self
    >>> DataAtZero(jk.VP())(jnp.ones(2), 0.5).x0.tolist()
    [0.0, 0.0]
    ```
    """

    process: eqx.AbstractVar[AbstractProcess]

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."], t: Float[ArrayLike, ""]) -> Prediction:
        """Split a noisy point.

        **Arguments:**

        - `x`: the noisy point, of any shape the denoiser takes.
        - `t`: a scalar time of the process.

        **Returns:** a `Prediction` in the shape of x.
        """

    @abc.abstractmethod
    def astype(self, dtype: DTypeLike) -> "AbstractDenoiser":
        """Return this denoiser with the parameters of its formulas in another precision.

        **Arguments:**

        - `dtype`: a floating type. A network's own weights keep theirs.

        **Returns:** the denoiser to be used with arrays of that type.
        """


class Denoiser(AbstractDenoiser):
    """A network together with the process that it was trained for and what it predicts.

    **Arguments:**

    - `fn`: the network, `fn(x, t)` with x of shape (batch, ...) and a scalar time t of `process`,
      returning an array of x's shape. The weights of an Equinox module are arguments of what is
      compiled, so that new weights do not recompile. Wrap a PyTorch module by `jk.from_torch`.
    - `process`: the forward process of training, such as `jk.VP()`.
    - `prediction_type`: "score", "epsilon", "x0", "v" (a eps - s x0) or "flow" (dx/dt, with t
      increasing with noise).

    **Returns:** a module; `denoiser(x, t)` is a `Prediction(x0, eps)`.

    A score or epsilon does not determine x0 where a(t) = 0, and x0 does not determine eps where
    s(t) = 0: there the other part is infinite or NaN, and both parts of a flow are where a rate is
    infinite (VP at t = 0). Start and stop away from those points.

    **Raises:** ValueError for an unknown prediction type or a process that is none; when called,
    for an output of another shape than x.

    **Example:**

    ```python
    >>> denoiser = jk.Denoiser(lambda x, t: -x, jk.VP(), "score")
    >>> denoiser(jnp.ones((1, 2)), 0.5).x0.shape
    (1, 2)
    ```
    """

    fn: Network
    process: AbstractProcess
    prediction_type: str = eqx.field(static=True)

    def __init__(self, fn: Network, process: AbstractProcess, prediction_type: str):
        if not callable(fn):
            raise ValueError(f"fn must be a function of (x, t); got {fn!r}.")
        self.fn = fn
        self.process = check_process(process)
        self.prediction_type = known_name(
            "prediction type", "prediction_type", prediction_type, PREDICTION_TYPES
        )

    def __call__(self, x: Float[Array, "..."], t: Float[ArrayLike, ""]) -> Prediction:
        value = self.fn(x, jnp.asarray(t))
        if jnp.shape(value) != jnp.shape(x):
            raise ValueError(
                f"the network returned shape {jnp.shape(value)} for x of shape {jnp.shape(x)}; "
                "it must return one value per entry of x."
            )
        return self._split(x, jnp.asarray(t), value)

    def _split(self, x: Array, t: Array, value: Array) -> Prediction:
        """The solution of the module's two equations for a predicted value."""
        a = self.process.signal(t)
        s = self.process.noise(t)
        row = _ROWS[self.prediction_type](self.process, t)
        c0 = jnp.asarray(row[0])
        c1 = jnp.asarray(row[1])
        scaled = s * value if self.prediction_type == "score" else value
        determinant = a * c1 - s * c0
        x0 = (c1 * x - s * scaled) / determinant
        eps = (a * scaled - c0 * x) / determinant
        # what the network predicts is kept as it is, which is defined at either end too
        if self.prediction_type == "x0":
            x0 = value
        elif self.prediction_type in ("score", "epsilon"):
            eps = c1 * scaled
        return Prediction(x0, eps, self._score(value, eps, s))

    def _score(self, value: Array, eps: Array, s: Array) -> Array:
        """grad log p_t(x): NaN at s = 0, unless the network predicts it or does without."""
        if self.prediction_type == "score":
            return value
        # where the flow is finite at s = 0, the score has no part in it
        undetermined = 0.0 if self.prediction_type == "flow" else jnp.nan
        return jnp.where(s > 0, -eps / jnp.where(s > 0, s, 1.0), undetermined)

    def astype(self, dtype: DTypeLike) -> "Denoiser":
        return Denoiser(self.fn, _cast(self.process, dtype), self.prediction_type)


def check_denoiser(denoiser: object) -> AbstractDenoiser:
    """`denoiser`, or a ValueError that says how to make one."""
    if not isinstance(denoiser, AbstractDenoiser):
        raise ValueError(
            "denoiser must be a Denoiser(fn, process, prediction_type) or "
            f"target.denoiser(process); got {denoiser!r}."
        )
    return denoiser


def _cast(process: AbstractProcess, dtype: DTypeLike) -> AbstractProcess:
    """The process with its parameters in `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), process)
