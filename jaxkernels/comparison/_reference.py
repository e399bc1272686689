"""The reference solution that schedules are compared with: a solver with high NFE."""

from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._types import Numbers, constant
from ..prediction import AbstractDenoiser
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, DPMSolverPP2M, sample
from ..schedules import Schedule, log_snr
from ._statistics import DIRECTIONS

_STEPS_FACTOR, _LEAST_STEPS = 20, 200


class Reference(NamedTuple):
    """The reference solution from given initial noise, and the units and directions of distances to it.

    `denoiser`; `noise` (n, ...), where the solution starts; `ends` (n, d), where it ends; `scale`, the
    root of the total variance of `ends`; `directions` (d, directions), unit vectors divided by `scale`;
    `error`, the root mean square distance to the solution with half the steps, divided by `scale`;
    `data`, sorted projections of data, or None.
    """

    denoiser: AbstractDenoiser
    noise: Float[Array, "n *shape"]
    ends: Float[np.ndarray, "n d"]
    scale: float
    directions: Float[np.ndarray, "d directions"]
    error: float
    data: Float[np.ndarray, "samples directions"] | None


def solve_reference(
    denoiser: AbstractDenoiser,
    noise: Float[Array, "n *shape"],
    steps: int,
    span: tuple[float, float],
    data: Numbers | None = None,
) -> Reference:
    """Solve from `noise` in `steps` steps of DPM-Solver++(2M), uniform in log-SNR.

    **Arguments:** `span`, the first and last time of the schedules to be compared; `data`, samples
    (n, ...) to whose distribution sliced W2 is measured instead of to the reference's.

    **Raises:** ValueError for data of another shape, or if all samples coincide.
    """
    data = _check_data(data, noise)
    fine, half = (
        sample_ends(denoiser, DPMSolverPP2M(), _schedule(denoiser.process, n, span), noise)
        for n in (steps, steps // 2)
    )
    scale = float(np.sqrt(np.sum(fine.var(0))))
    if scale == 0.0:
        raise ValueError(
            "noise: all samples coincide, so that errors have no unit; are all rows the same?"
        )
    directions = np.random.default_rng(0).standard_normal((fine.shape[1], DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0) * scale
    error = np.sqrt(np.mean(np.sum((fine - half) ** 2, 1))) / scale
    projected = None if data is None else np.sort(data @ directions, 0)
    return Reference(denoiser, noise, fine, scale, directions, float(error), projected)


def reference_steps(num_steps: int) -> int:
    """Steps of a reference solution for schedules of at most `num_steps` steps."""
    return max(_LEAST_STEPS, _STEPS_FACTOR * num_steps)


def sample_ends(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: Schedule,
    noise: Array,
    key: Array | None = None,
) -> Float[np.ndarray, "n d"]:
    """Samples as float64 vectors."""
    ends = sample(denoiser, sampler, schedule, noise, key=key)
    return np.asarray(ends, np.float64).reshape(noise.shape[0], -1)


def _schedule(process: AbstractProcess, steps: int, span: tuple[float, float]) -> Schedule:
    first, last = span
    if first != float(np.asarray(process.t_max)):  # schedules may start below t_max
        process = eqx.tree_at(lambda p: p.t_max, process, constant(first))
    return log_snr(process, steps, last)


def _check_data(data: Numbers | None, noise: Array) -> np.ndarray | None:
    if data is None:
        return None
    data = _checks.array("data", data)
    if data.ndim < 2 or data.shape[1:] != noise.shape[1:] or len(data) < 2:
        shape = ", ".join(map(str, noise.shape[1:]))
        raise ValueError(f"data has shape {data.shape}; it must be (n, {shape}) with n >= 2.")
    return np.asarray(data.reshape(len(data), -1))
