"""What a network, or an exact law, says about a noisy point: x = a x0 + s eps.

Every network in use predicts one linear combination c0 x0 + c1 eps. Together with x itself that is two
equations for the two unknowns, so one table of rows (c0, c1) converts every kind into every other:

    kind        value                          c0      c1
    score       grad log p_t(x), times s        0      -1
    epsilon     the noise                       0       1
    x0          the denoised point              1       0
    v           a eps - s x0                   -s       a
    velocity    dx/dt of the ODE flow           a'      s'

    x0 = (c1 x - s value) / (a c1 - s c0),     eps = (a value - c0 x) / (a c1 - s c0)             (1)
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from . import _checks
from .process import AbstractProcess


class Prediction(NamedTuple):
    """The split x = a(t) x0 + s(t) eps of a noisy point; both arrays have the shape of x."""

    x0: Float[Array, "..."]
    eps: Float[Array, "..."]

    def with_score_error(self, error: Array, signal: Array, noise: Array) -> "Prediction":
        """What the score plus `error` says of the same point: x0 + (s^2 / a) e and eps - s e."""
        return Prediction(self.x0 + noise**2 / signal * error, self.eps - noise * error)


Predictor: TypeAlias = Callable[[Array, Array], Prediction]
"""(x, t) -> Prediction, with a scalar time t."""


def _rows(process: AbstractProcess, t: Array) -> dict[str, Callable[[], tuple[ArrayLike, ArrayLike]]]:
    return {
        "score": lambda: (0.0, -1.0),
        "epsilon": lambda: (0.0, 1.0),
        "x0": lambda: (1.0, 0.0),
        "v": lambda: (-process.noise(t), process.signal(t)),
        "velocity": lambda: (process.signal_rate(t), process.noise_rate(t)),
    }


def predictor(fn: Callable[[Array, Array], Array], process: AbstractProcess, kind: str = "score") -> Predictor:
    """Turn a network `fn(x, t)` of any kind in the table above into what samplers ask for.

    **Arguments:** `fn` maps x (any shape) and a scalar time t of `process` to an array of x's shape.
    `kind` is "score", "epsilon", "x0", "v" or "velocity" (dx/dt with t growing towards noise).

    **Raises:** ValueError for an unknown kind, or (when called) for an output of another shape.

    A score or epsilon says nothing about x0 where a(t) = 0, and x0 nothing about eps where s(t) = 0: there the other
    part comes out infinite or NaN, and so do both parts of a velocity where a rate is infinite (VP at t = 0). Start and
    stop away from those points.
    """
    _checks.one_of("kind", kind, _rows(process, jnp.asarray(0.5)))

    def predict(x: Array, t: Array) -> Prediction:
        value = fn(x, t)
        if jnp.shape(value) != jnp.shape(x):
            raise ValueError(
                f"the network returned shape {jnp.shape(value)} for x of shape {jnp.shape(x)}; "
                "it must return one value per entry of x."
            )
        a, s = process.signal(t), process.noise(t)
        c0, c1 = map(jnp.asarray, _rows(process, t)[kind]())
        if kind == "score":
            value = s * value
        determinant = a * c1 - s * c0
        # what the network predicts is taken as it is, which is defined at either end too
        x0 = value if kind == "x0" else (c1 * x - s * value) / determinant
        eps = c1 * value if kind in ("score", "epsilon") else (a * value - c0 * x) / determinant
        return Prediction(x0, eps)

    return predict
