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
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .. import _checks
from .._field_names import known_name
from .._nfe import EVALUATION
from .._precision import to_dtype, working_dtype
from .._types import AnyArray, Network, Rows
from ..processes import AbstractProcess, check_process
from ._output import take_output


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

_HINT = "return its prediction alone, as in lambda x, t: network(x, t)[0]"


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

    @property
    def default_t_min(self) -> float:
        """Time at which sampling ends by default: that of the process."""
        return self.process.default_t_min

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
        """Return this denoiser for points of another precision.

        A network is given points in `dtype`, and its own weights keep theirs. The parameters of
        formulas are converted to `dtype`, or to float32 if that has fewer digits.

        **Arguments:**

        - `dtype`: a floating type.

        **Returns:** the denoiser.
        """

    def take(self, rows: Rows) -> "AbstractDenoiser":
        """Take some of the rows of points that it is given.

        **Arguments:**

        - `rows`: a slice or indices.

        **Returns:** the denoiser of these rows: this one, unless rows have parameters of their own,
        such as conditions.
        """
        del rows
        return self

    @property
    def condition_numbers(self) -> Int[np.ndarray, " conditions"]:
        """Numbers of the conditions that rows of points have in turn; [0] if all have the same."""
        return np.zeros(1, int)

    @property
    def nfe(self) -> int:
        """NFE of a row of a call: evaluations of networks, 1 for an exact denoiser as well."""
        return EVALUATION


class Denoiser(AbstractDenoiser):
    """A network together with the process that it was trained for and what it predicts.

    A conditional network is told the condition of every row of x: a class, a prompt, a guidance
    scale. Conditions are dealt to rows in turn, the first one again after the last, and a row keeps
    its own wherever rows are taken, so that schedules are compared and optimised over all of them.

    **Arguments:**

    - `fn`: the network, `fn(x, t)` with x of shape (batch, ...) and a scalar time t of `process` in
      float32 or better, returning an array of x's shape, or of twice its channels (the first half
      is taken), alone or as `.sample` or the only such member of an output object. The weights of
      an Equinox module are arguments of what is compiled, so that new weights do not recompile.
      Wrap a PyTorch module by `jk.from_torch`.
    - `process`: the forward process of training, such as `jk.VP()`.
    - `prediction_type`: "score", "epsilon", "x0", "v" (a eps - s x0) or "flow" (dx/dt, with t
      increasing with noise).
    - `conditions`: an array or a pytree of arrays with one row for each condition; then the network
      is `fn(x, t, condition)`, with as many rows of conditions as of x. Default: none.
    - `evaluations`: how often `fn` evaluates the network in a call, in which all counts of NFE are:
      2 for classifier-free guidance.

    **Returns:** a module; `denoiser(x, t)` is a `Prediction(x0, eps)` in the precision of x, but
    float32 at least.

    A network that is told something else than t, or t once per row, is wrapped:
    `lambda x, t: network(x, jnp.full(len(x), jnp.log(process.sigma(t))))`.

    A score or epsilon does not determine x0 where a(t) = 0, and x0 does not determine eps where
    s(t) = 0: there the other part is infinite or NaN, and both parts of a flow are where a rate is
    infinite (VP at t = 0). Start and stop away from those points.

    **Raises:** ValueError for an unknown prediction type, a process that is none, or conditions
    with different numbers of rows; when called, for an output of another form, naming it.

    **Example:**

    ```python
    >>> shift = lambda x, t, mean: mean[:, None] - x
    >>> denoiser = jk.Denoiser(shift, jk.VP(), "score", conditions=jnp.array([0.0, 3.0]))
    >>> denoiser(jnp.ones((4, 1)), 1.0).score.ravel().tolist()
    [-1.0, 2.0, -1.0, 2.0]
    ```
    """

    fn: Network
    process: AbstractProcess
    conditions: PyTree[AnyArray]
    condition_rows: Int[AnyArray, " rows"] | None
    prediction_type: str = eqx.field(static=True)
    evaluations: int = eqx.field(static=True)

    def __init__(
        self,
        fn: Network,
        process: AbstractProcess,
        prediction_type: str,
        *,
        conditions: PyTree = None,
        evaluations: int = 1,
    ):
        if not callable(fn):
            raise ValueError(f"fn must be a function of (x, t); got {fn!r}.")
        if any(part.__module__.startswith("torch.nn") for part in inspect.getmro(type(fn))):
            raise ValueError(
                f"fn = {type(fn).__name__} is a module of PyTorch: wrap it by jk.from_torch, or "
                "with its scheduler by jk.from_diffusers."
            )
        self.fn = fn
        self.process = check_process(process)
        self.conditions = conditions
        numbers = None if conditions is None else np.arange(_count(conditions))
        self.condition_rows = cast(AnyArray | None, numbers)
        self.prediction_type = known_name(
            "prediction type", "prediction_type", prediction_type, PREDICTION_TYPES
        )
        self.evaluations = _checks.count("evaluations", evaluations)

    def __repr__(self) -> str:
        inner = getattr(self.fn, "func", self.fn)
        name = getattr(inner, "__name__", type(inner).__name__)
        shown = f"{name}, {self.process!r}, {self.prediction_type!r}"
        if self.condition_rows is not None:
            shown += f", {_checks.counted(_count(self.conditions), 'condition')}"
        return f"Denoiser({shown})"

    @property
    def default_t_min(self) -> float:
        """Time at which sampling ends by default: `fn.t_min` if there is one.

        That of a pipeline is 0, see `from_diffusers`. Otherwise that of the process.
        """
        return float(getattr(self.fn, "t_min", self.process.default_t_min))

    def __call__(self, x: Float[Array, "..."], t: Float[ArrayLike, ""]) -> Prediction:
        if not isinstance(x, Array | np.ndarray):
            raise ValueError(f"x must be an array of JAX or NumPy; got {type(x).__name__}.")
        dtype = working_dtype(x.dtype)
        t = _widened(jnp.asarray(t))
        value = take_output(self.evaluate(x, t), x.shape, "the network", _HINT)
        return self._split(x.astype(dtype), t, jnp.asarray(value).astype(dtype))

    def evaluate(self, x: Float[Array, "..."], t: Float[Array, ""]) -> Any:
        """Evaluate the network, told the conditions of all rows.

        **Arguments:**

        - `x`: noisy points.
        - `t`: a scalar time.

        **Returns:** what the network returns.
        """
        if self.condition_rows is None:
            return self.fn(x, t)
        known = jnp.asarray(self.condition_rows)
        rows = known[np.arange(x.shape[0]) % known.shape[0]]
        condition = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], self.conditions)
        return self.fn(x, t, condition)

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
        wide = working_dtype(dtype)
        fn = self.fn if wide == dtype else _InPrecision(self.fn, dtype)
        process = to_dtype(self.process, wide)
        return eqx.tree_at(lambda denoiser: (denoiser.fn, denoiser.process), self, (fn, process))

    def take(self, rows: Rows) -> "Denoiser":
        if self.condition_rows is None:
            return self
        count = self.condition_rows.shape[0]
        if isinstance(rows, slice):
            # without an end all conditions are left, from the first row on
            first = rows.start or 0
            rows = np.arange(first, first + count if rows.stop is None else rows.stop)
        elif not isinstance(rows, Array):
            rows = np.asarray(rows)
        xp = np if isinstance(rows, np.ndarray) else jnp
        taken = xp.asarray(self.condition_rows)[rows % count]
        return eqx.tree_at(lambda denoiser: denoiser.condition_rows, self, taken)

    @property
    def condition_numbers(self) -> Int[np.ndarray, " conditions"]:
        return np.zeros(1, int) if self.condition_rows is None else np.asarray(self.condition_rows)

    @property
    def nfe(self) -> int:
        return self.evaluations * EVALUATION


class _InPrecision(eqx.Module):
    """A network that is given points in a lower precision than it is called with."""

    fn: Network
    dtype: DTypeLike = eqx.field(static=True)

    def __call__(self, x: Array, t: Array, *condition: PyTree) -> Array:
        return self.fn(x.astype(self.dtype), t, *condition)


def _count(conditions: PyTree) -> int:
    """Number of conditions, of which all arrays have one row each."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(conditions)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            "conditions must be arrays with equally many rows, one for each condition; got shapes "
            f"{shapes}."
        )
    return counts.pop()


def check_one_condition(denoiser: AbstractDenoiser) -> AbstractDenoiser:
    """`denoiser`, or a ValueError if its rows have different conditions."""
    numbers = np.unique(denoiser.condition_numbers)
    if len(numbers) > 1:
        raise ValueError(
            f"denoiser has {len(numbers)} conditions; samples have one condition here: pass "
            "denoiser.take([i]), and the samples of condition i."
        )
    return denoiser


def check_denoiser(denoiser: object) -> AbstractDenoiser:
    """`denoiser`, or a ValueError that says how to make one."""
    if not isinstance(denoiser, AbstractDenoiser):
        raise ValueError(
            "denoiser must be a Denoiser(fn, process, prediction_type) or "
            f"target.denoiser(process); got {_checks.shown(denoiser)}."
        )
    return denoiser


def in_working_precision(
    denoiser: AbstractDenoiser, x: Float[Array, "..."]
) -> tuple[AbstractDenoiser, Float[Array, "..."]]:
    """The denoiser and x for computations in float32 or better.

    The network is still given points in the precision of x.
    """
    dtype = working_dtype(x.dtype)
    if dtype == x.dtype:
        return denoiser, x
    return denoiser.astype(x.dtype), x.astype(dtype)


def _widened(t: Array) -> Array:
    """Times in float32 or better; integers as they are."""
    return t.astype(working_dtype(t.dtype)) if jnp.issubdtype(t.dtype, jnp.floating) else t
