"""Statistics of the errors of samples, and the criterion that combines them."""

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Float

STATISTICS = ("rms", "median", "geometric_mean", "sliced_w2")


BALANCED, WEIGHED = "balanced", ("geometric_mean", "rms", "sliced_w2")


RESAMPLES, DIRECTIONS = 200, 64


# of the power mean that stands for the largest of the three ratios, with derivatives
POWER = 6.0


TINY = 1e-300


_A = TypeVar("_A", np.ndarray, Array)


def statistic(
    xp: Any,
    kind: str,
    errors: Float[_A, "*schedules noises"],
    ends: Float[_A, "*schedules noises directions"],
    exact: Float[_A, "noises directions"] | None,
) -> Float[_A, "*schedules"]:
    """One of the four statistics of `Comparison`, in NumPy or, with derivatives, jax.numpy.

    `exact`, the law's components in ascending order, is for sliced W2.
    """
    if kind == "rms":
        return xp.sqrt(xp.mean(errors**2, -1))
    if kind == "median":
        return xp.median(errors, -1)
    if kind == "geometric_mean":
        return xp.exp(xp.mean(xp.log(xp.maximum(errors, xp.finfo(errors.dtype).tiny)), -1))
    # W2 in one dimension couples the sorted values
    return xp.sqrt(xp.mean((xp.sort(ends, -2) - exact) ** 2, (-2, -1)))


def balance(xp: Any, logs: Float[_A, "*schedules ratios"]) -> Float[_A, "*schedules"]:
    """log of the power mean of n ratios r_i, from log r_i: (sum r_i^6 / n)^(1/6), the largest but smooth.

    A product would trade the tail and the law for typical samples, which some data let grow better without end.
    """
    top = logs.max(-1, keepdims=True)
    return xp.log(xp.mean(xp.exp(POWER * (logs - top)), -1)) / POWER + top[..., 0]
