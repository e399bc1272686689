"""What a search returns."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

import jaxkernels as jk


class Found(NamedTuple):
    """A schedule, the NFE of finding it, and the seconds if not those of the call."""

    schedule: jk.Schedule
    nfe: int
    seconds: float | None = None


def from_sigmas(process: jk.AbstractProcess, sigmas: np.ndarray, t_min: float) -> jk.Schedule:
    """The schedule of decreasing noise levels, with exactly the process's end times."""
    times = np.array(process.time_at_sigma(np.asarray(sigmas, np.float64)), np.float64)
    times[0] = float(np.asarray(process.t_max))
    times[-1] = t_min
    return jk.Schedule(times)


def end_sigmas(process: jk.AbstractProcess, t_min: float) -> Float[np.ndarray, " 2"]:
    """The highest and the lowest noise level."""
    return np.asarray(process.sigma(np.array([float(np.asarray(process.t_max)), t_min])))


def teacher(
    denoiser: jk.AbstractDenoiser, steps: int, t_min: float, noise: Array
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "points n d"]]:
    """Noise levels, and points y = x / a of Euler's method in sigma at Karras's levels."""
    process = denoiser.process
    schedule = jk.schedules.karras(process, steps, t_min)
    path = jk.sample(denoiser, "ddim", schedule, noise, trajectory=True)
    times = np.asarray(schedule.times, np.float64)
    a = np.asarray(process.signal(times), np.float64)
    points = np.asarray(path, np.float64).reshape(steps + 1, len(noise), -1)
    return np.asarray(process.sigma(times), np.float64), points / a[:, None, None]
