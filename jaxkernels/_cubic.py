"""Monotone piecewise cubics through given values.

Source: Fritsch and Carlson, "Monotone Piecewise Cubic Interpolation" (1980),
https://doi.org/10.1137/0717021; the slopes are harmonic means, as in Fritsch and Butland (1984).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._numerics import clipped, smaller


def monotone_slopes(
    points: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n-2"]:
    """Slopes at the points between the first and the last, increasing, at least two.

    The harmonic mean of the slopes on both sides, or 0 if these have not the same sign. An interval
    weighs as much as its own length and twice the other's. No cubic then leaves the values at its
    ends, if the slopes at the first and the last point are between 0 and three times that beside
    them.
    """
    lengths = np.diff(points)
    slopes = np.diff(values) / lengths
    left = slopes[:-1]
    right = slopes[1:]
    weight_left = lengths[:-1] + 2.0 * lengths[1:]
    weight_right = 2.0 * lengths[:-1] + lengths[1:]
    same = np.sign(left) * np.sign(right) > 0
    reciprocal = weight_left / np.where(same, left, 1.0) + weight_right / np.where(same, right, 1.0)
    mean = (weight_left + weight_right) / np.where(same, reciprocal, 1.0)
    return np.where(same, mean, 0.0)


def piecewise_cubic(
    x: Float[Array, "*s"],
    points: Float[ArrayLike, " n"],
    values: Float[ArrayLike, " n"],
    slopes: Float[ArrayLike, " n"],
) -> Float[Array, "*s"]:
    """The cubics with these values and slopes, constant outside the points.

    A single point gives its value.
    """
    points = jnp.asarray(points, x.dtype)
    values = jnp.asarray(values, x.dtype)
    slopes = jnp.asarray(slopes, x.dtype)
    inside = clipped(x, points[0], points[-1])
    # of the interval, of which the last point and a single one have none
    last = max(points.shape[0] - 2, 0)
    low = clipped(jnp.searchsorted(points, inside, side="right") - 1, 0, last)
    high = smaller(low + 1, points.shape[0] - 1)
    length = jnp.where(high > low, points[high] - points[low], 1.0)
    share = (inside - points[low]) / length
    rise = values[high] - values[low]
    first = slopes[low] * length
    second = slopes[high] * length
    cubic = share * (first + share * (3.0 * rise - 2.0 * first - second))
    cubic += share**3 * (first + second - 2.0 * rise)
    return values[low] + jnp.where(high > low, cubic, 0.0)
