"""Times of noise levels, in float64."""

import jax
import numpy as np
from jaxtyping import Array, Float

from .._padding import bucket, pad_last
from .._precision import to_float64
from ..processes import AbstractProcess

# few lengths are compiled
_SMALLEST_ARRAY = 64


@jax.jit
def _time_at_sigma(process: AbstractProcess, sigma: Array) -> Array:
    """The inverse of sigma(t), compiled once for every process of a class."""
    return process.time_at_sigma(sigma)


def times_at_sigmas(
    process: AbstractProcess, sigmas: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " points"]:
    """Compute the times at which a process has given noise levels, in float64.

    **Arguments:**

    - `process`: the forward process, with concrete parameters.
    - `sigmas`: noise levels s/a, >= 0.

    **Returns:** the times, in NumPy.

    **Example:**

    ```python
    >>> jk.schedules.times_at_sigmas(jk.EDM(8.0), np.array([8.0, 2.0])).tolist()
    [8.0, 2.0]
    ```
    """
    levels = np.asarray(sigmas, np.float64)
    padded = pad_last(levels, bucket(levels.size, _SMALLEST_ARRAY))
    with jax.enable_x64(True):
        times = np.array(_time_at_sigma(to_float64(process), padded))
    return times[: levels.size]
