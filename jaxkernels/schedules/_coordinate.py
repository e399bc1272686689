"""Decreasing times from unconstrained numbers."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .._numerics import larger
from .._padding import bucket, pad_last
from ..processes import AbstractProcess

_SMALLEST_ARRAY = 128

_A = TypeVar("_A", Array, np.ndarray)
# of a mean increment: the least last one of a start, where it may be empty
_LEAST_SHARE = 0.01
# of a mean increment: how much longer than the least one an increment of a start is taken
_LEAST_EXCESS = 1e-6


class TimeCoordinate(eqx.Module):
    """A coordinate of decreasing times: one unconstrained number per interior time.

    The times divide a coordinate u of the noise level into the increments softmax(0, z):

        u = log( (sigma + low) / (1 + sigma / high) )                                          (1)

    which is log sigma between `low` and `high`, and finite at sigma = 0 and infinity when low > 0
    and high < infinity. Every z in R^(K-1) gives a strictly decreasing schedule and every schedule
    has one z, so gradients need no constraint. The ends are kept exactly. Where the last time lies
    below the smallest time at which a network has been trained, the increments stop at the latter,
    so that no interior time lies between the two.

    **Arguments:**

    - `process`: the forward process.
    - `start`: first time.
    - `low`: >= 0, in units of sigma; > 0 is needed if sigma = 0 at the end.
    - `high`: > 0, in units of sigma; must be finite if sigma is infinite at `start`.

    **Example:**

    ```python
    >>> coordinate = jk.schedules.TimeCoordinate(jk.EDM(), 4.0, 0.0, jnp.inf)
    >>> coordinate.times(jnp.zeros(1), 1.0).round(5).tolist()
    [4.0, 2.0, 1.0]
    ```
    """

    process: AbstractProcess
    start: ArrayLike
    low: ArrayLike
    high: ArrayLike

    def coordinate(self, t: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate u(t), in terms of a and s so that it is exact at both ends.

        **Arguments:**

        - `t`: times of any shape.

        **Returns:** u of these times.
        """
        a = self.process.signal(t)
        s = self.process.noise(t)
        return jnp.log((s + self.low * a) / (a + s / self.high))

    def interior_end(self, end: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate u where the interior times stop.

        **Arguments:**

        - `end`: last times of schedules, of any shape.

        **Returns:** u(end), or u of the smallest trained time where `end` lies below.
        """
        return self.coordinate(larger(jnp.asarray(end), self.process.trained_t_min))

    def time(self, u: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Invert u(t).

        **Arguments:**

        - `u`: values of the coordinate, of any shape.

        **Returns:** the times at these values.
        """
        y = jnp.exp(jnp.asarray(u))
        return self.process.time_at_sigma((y - self.low) / (1.0 - y / self.high))

    def times(
        self,
        z: Float[Array, " interior"],
        end: Float[ArrayLike, ""],
        least_share: Float[ArrayLike, ""] = 0.0,
    ) -> Float[Array, " points"]:
        """Compute the times of a schedule.

        **Arguments:**

        - `z`: unconstrained numbers (K-1,).
        - `end`: the last time, < `start`.
        - `least_share`: of the range of u, that every increment has at least, in [0, 1/K), but for
          the last one of a schedule that ends below the smallest trained time: the increments are
          least + (1 - sum least) softmax(0, z).

        **Returns:** times (K+1,), strictly decreasing from `start` to `end`.
        """
        top = self.coordinate(self.start)
        bottom = self.interior_end(end)
        shares = jax.nn.softmax(jnp.concatenate([jnp.zeros((1,), z.dtype), z]))
        below = jnp.asarray(end) < self.process.trained_t_min
        least = jnp.full_like(shares, least_share).at[-1].set(jnp.where(below, 0.0, least_share))
        increments = least + (1.0 - jnp.sum(least)) * shares
        interior = self.time(top - (top - bottom) * jnp.cumsum(increments)[:-1])
        first = jnp.asarray(self.start, z.dtype)[None]
        last = jnp.asarray(end, z.dtype)[None]
        return jnp.concatenate([first, interior, last])

    def unconstrained(self, times: Float[Array, " points"]) -> Float[Array, " interior"]:
        """Compute the unconstrained numbers of a schedule; inverse of `times`.

        **Arguments:**

        - `times`: (K+1,), strictly decreasing from `start`. A last interior time at the smallest
          trained one, where no z puts it, is moved by a hundredth of a mean increment.

        **Returns:** z (K-1,).
        """
        u = jnp.append(self.coordinate(times[:-1]), self.interior_end(times[-1]))
        return step_logits(jnp, u, times[-1:] < self.process.trained_t_min)


def step_logits(
    xp: Any,
    u: Float[_A, "*rows points"],
    below: Bool[_A, "*rows 1"],
    least_share: Float[_A, ""] | float = 0.0,
) -> Float[_A, "*rows interior"]:
    """Compute the unconstrained numbers of schedules from their coordinates.

        z_k = log(u_k - u_(k+1) - least) - log(u_0 - u_1 - least)

    **Arguments:**

    - `xp`: `numpy` or `jax.numpy`.
    - `u`: decreasing coordinates (..., K+1); the last is where interior times stop.
    - `below`: (..., 1), whether the schedule ends below that, so that the last increment may be
      empty. It is then taken as one percent of the mean at least.
    - `least_share`: as in `TimeCoordinate.times`, least = least_share (u_0 - u_K), 0 for the last
      increment if `below`. Increments that are not longer are taken as a millionth of the mean
      longer.

    **Returns:** z (..., K-1).

    **Example:**

    ```python
    >>> jk.schedules.step_logits(np, np.array([2.0, 1.0, 0.0]), np.array([False])).tolist()
    [0.0]
    ```
    """
    increments = -xp.diff(u, axis=-1)
    count = increments.shape[-1]
    maybe_empty = below & (xp.arange(count) == count - 1)
    shortest = _LEAST_SHARE * xp.mean(increments, axis=-1, keepdims=True)
    increments = xp.where(maybe_empty & (increments < shortest), shortest, increments)
    mean = xp.mean(increments, axis=-1, keepdims=True)
    least = xp.where(maybe_empty, 0.0, least_share * count * mean)
    excess = increments - least
    smallest = _LEAST_EXCESS * mean
    longer = xp.where(excess < smallest, smallest, excess)
    logs = xp.log(xp.where(xp.asarray(least_share) > 0, longer, increments))
    return logs[..., 1:] - logs[..., :1]


def coordinates_of(
    coordinate: TimeCoordinate, times: Float[np.ndarray, "*s"]
) -> Float[np.ndarray, "*s"]:
    """Evaluate the coordinate of concrete times by one compiled program for few sizes.

    **Arguments:**

    - `coordinate`: the coordinate.
    - `times`: of any shape.

    **Returns:** u of these times, a NumPy array.

    **Example:**

    ```python
    >>> coordinate = jk.schedules.TimeCoordinate(jk.EDM(), 4.0, 0.0, jnp.inf)
    >>> float(jk.schedules.coordinates_of(coordinate, np.ones(1))[0])
    0.0
    ```
    """
    return _on_padded(_coordinate_of, coordinate, times)


def times_of(coordinate: TimeCoordinate, u: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Invert the coordinate at concrete values by one compiled program for few sizes.

    **Arguments:**

    - `coordinate`: the coordinate.
    - `u`: its values, of any shape.

    **Returns:** the times at these values, a NumPy array.

    **Example:**

    ```python
    >>> coordinate = jk.schedules.TimeCoordinate(jk.EDM(), 4.0, 0.0, jnp.inf)
    >>> float(jk.schedules.times_of(coordinate, np.zeros(1))[0])
    1.0
    ```
    """
    return _on_padded(_time_of, coordinate, u)


@jax.jit
def _coordinate_of(coordinate: TimeCoordinate, times: Array) -> Array:
    return coordinate.coordinate(times)


@jax.jit
def _time_of(coordinate: TimeCoordinate, u: Array) -> Array:
    return coordinate.time(u)


def _on_padded(
    fn: Callable[[TimeCoordinate, Array], Array],
    coordinate: TimeCoordinate,
    values: Float[np.ndarray, "*s"],
) -> Float[np.ndarray, "*s"]:
    """fn of an array that is padded to a power of two entries, so that few shapes are compiled."""
    flat = values.reshape(-1)
    padded = pad_last(flat, bucket(flat.size, _SMALLEST_ARRAY))
    found = np.array(fn(coordinate, padded))[: flat.size]  # pyright: ignore[reportArgumentType]
    return found.reshape(values.shape)
