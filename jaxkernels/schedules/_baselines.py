"""Named time grids: what people use today, and what an optimum has to beat.

Every function returns a `Schedule` of `num_steps` steps from the process's t_max to `t_min`. Grids that
are defined by noise levels sigma need a finite, positive one at both ends:

* if t_min = 0, the levels stop at `last_sigma` and a last step to 0 is appended, as EDM and k-diffusion do;
* if sigma(t_max) is infinite (no signal left), the levels start at sigma = 1000 and the first is replaced
  by t_max.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, ArrayLike

from .. import _checks
from .._precision import to_float64
from ..processes import AbstractProcess, check_range, sigma_range
from ._schedule import Schedule

_LARGEST_SIGMA = 1e3


# Published levels (Sabour et al., "Align Your Steps", 2024), largest first, before the final 0.
_ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def _in_time(process: AbstractProcess, num_steps: int, t_min: ArrayLike, curve) -> Schedule:
    """Times t_min + (t_max - t_min) curve(u), u = 0..1 from noise to data."""
    t_min = check_range(process, num_steps, t_min)
    t_max = float(np.asarray(process.t_max))
    times = t_min + (t_max - t_min) * curve(np.arange(num_steps + 1) / num_steps)
    times[0], times[-1] = t_max, t_min
    return Schedule(times)


def uniform(process: AbstractProcess, num_steps: int, t_min: ArrayLike) -> Schedule:
    """Equal steps in time."""
    return _in_time(process, num_steps, t_min, lambda u: 1.0 - u)


def quadratic(process: AbstractProcess, num_steps: int, t_min: ArrayLike) -> Schedule:
    """t = t_min + (t_max - t_min) (1 - u)^2, u uniform: finer towards the data."""
    return _in_time(process, num_steps, t_min, lambda u: (1.0 - u) ** 2)


def cosine(process: AbstractProcess, num_steps: int, t_min: ArrayLike) -> Schedule:
    """t = t_min + (t_max - t_min) (1 - cos(pi (1 - u) / 2)), u uniform: finer towards the data."""
    return _in_time(process, num_steps, t_min, lambda u: 1.0 - np.cos(0.5 * np.pi * (1.0 - u)))


def _in_sigma(
    process: AbstractProcess,
    num_steps: int,
    t_min: ArrayLike,
    last_sigma: ArrayLike,
    levels: Callable[[float, float, np.ndarray], np.ndarray],
) -> Schedule:
    """Times at which sigma = levels(sigma_max, sigma_min, u), with the two end rules of this module."""
    t_min = check_range(process, num_steps, t_min)
    largest, smallest = sigma_range(process, t_min)
    largest = min(largest, _LARGEST_SIGMA)
    append_zero = smallest == 0.0
    if append_zero:
        smallest = float(_checks.scalar("last_sigma", last_sigma, above=0.0, below=largest))
    points = num_steps if append_zero else num_steps + 1
    u = np.arange(points) / max(points - 1, 1)
    with jax.enable_x64(True):
        times = np.array(_time_at_sigma(to_float64(process), levels(largest, smallest, u)))
    times = np.append(times, 0.0) if append_zero else times
    times[0], times[-1] = np.asarray(process.t_max), t_min
    return Schedule(times)


@jax.jit
def _time_at_sigma(process: AbstractProcess, sigma: Array) -> Array:
    return process.time_at_sigma(sigma)


def log_snr(
    process: AbstractProcess, num_steps: int, t_min: ArrayLike, last_sigma: ArrayLike = 0.002
) -> Schedule:
    """Equal steps in log-SNR, that is in log sigma (also called exponential)."""
    return _in_sigma(
        process, num_steps, t_min, last_sigma, lambda top, low, u: top * (low / top) ** u
    )


def karras(
    process: AbstractProcess,
    num_steps: int,
    t_min: ArrayLike,
    last_sigma: ArrayLike = 0.002,
    rho: ArrayLike = 7.0,
) -> Schedule:
    """Equal steps in sigma^(1/rho). Karras et al. (2022), eq. (5)."""
    power = 1.0 / float(_checks.scalar("rho", rho, above=0.0))

    def levels(top: float, low: float, u: np.ndarray) -> np.ndarray:
        return (top**power + u * (low**power - top**power)) ** (1.0 / power)

    return _in_sigma(process, num_steps, t_min, last_sigma, levels)


def align_your_steps(
    process: AbstractProcess,
    num_steps: int,
    t_min: ArrayLike,
    last_sigma: ArrayLike = 0.002,
    model: str = "sd15",
) -> Schedule:
    """The published 10-step grid of `model` ("sd15", "sdxl", "svd"), carried to this process and K.

    log sigma is interpolated linearly over the step index, as the tools that ship these lists do, and
    then stretched linearly so that its ends are those of this process. With the published ends and
    K = 10 the published levels come back.
    """
    table = np.log(np.array(_checks.lookup("model", model, _ALIGN_YOUR_STEPS)))

    def levels(top: float, low: float, u: np.ndarray) -> np.ndarray:
        shape = np.interp(u, np.linspace(0.0, 1.0, table.size), table)
        shape = (shape - table[-1]) / (table[0] - table[-1])
        return low * (top / low) ** shape

    return _in_sigma(process, num_steps, t_min, last_sigma, levels)


BASELINES: dict[str, Callable[[AbstractProcess, int, ArrayLike], Schedule]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "cosine": cosine,
    "log_snr": log_snr,
    "karras": karras,
    "align_your_steps": align_your_steps,
}
