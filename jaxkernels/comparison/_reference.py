"""The reference solution that schedules are compared with: a solver with high NFE."""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._nfe import EVALUATION
from .._types import Numbers, Rows, constant
from ..prediction import AbstractDenoiser, in_working_precision
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, DPMSolverPP2M, sample_concrete
from ..schedules import Schedule, log_snr

_STEPS_FACTOR = 20
_LEAST_STEPS = 200
_DIRECTIONS = 64


class Reference(NamedTuple):
    """The reference solution from given initial noise, with the units and directions of distances.

    **Arguments:**

    - `denoiser`: what it was solved with.
    - `noise`: (n, ...), where the solution starts, in float32 or better.
    - `ends`: (n, d), where it ends.
    - `scale`: the root of the total variance of `ends`.
    - `directions`: (d, directions), unit vectors divided by `scale`.
    - `error`: root mean square distance to the solution with half the steps, divided by `scale`.
    - `data_projections`: of data along `directions`, each in ascending order; None without data.
    - `nfe`: of the solution and of that with half the steps.
    - `offset`: (n, d), what is added to the samples of schedules before they are compared; 0 unless
      the denoiser stands for another one, whose samples are known to differ by it.
    """

    denoiser: AbstractDenoiser
    noise: Float[Array, "n *shape"]
    ends: Float[np.ndarray, "n d"]
    scale: float
    directions: Float[np.ndarray, "d directions"]
    error: float
    data_projections: Float[np.ndarray, "samples directions"] | None
    nfe: int
    offset: Float[np.ndarray, "n d"] | float = 0.0

    def take(self, rows: Rows) -> "Reference":
        """Take some of the samples, in the same units and with the NFE of the whole.

        **Arguments:**

        - `rows`: a slice or indices.

        **Returns:** a `Reference` of these samples.
        """
        return self._replace(
            denoiser=self.denoiser.take(rows),
            noise=jax.device_put(np.asarray(self.noise)[rows]),
            ends=self.ends[rows],
            offset=np.broadcast_to(self.offset, self.ends.shape)[rows],
        )


def solve_reference(
    denoiser: AbstractDenoiser,
    noise: Float[Array, "n *shape"],
    steps: int,
    span: tuple[float, float],
    data: Numbers | None = None,
) -> Reference:
    """Solve from initial noise by DPM-Solver++(2M), uniform in log-SNR.

    **Arguments:**

    - `denoiser`: a network or the exact denoiser of a distribution.
    - `noise`: (n, ...) with n >= 2.
    - `steps`: number of steps; half as many are taken again for `Reference.error`.
    - `span`: first and last time of the schedules to be compared.
    - `data`: samples (m, ...) to whose distribution sliced W2 is measured, m >= 2. Default: the
      reference's.

    **Returns:** a `Reference`.

    **Raises:** ValueError for data of another shape, or if all samples coincide.
    """
    check_data(data, noise)
    denoiser, noise = in_working_precision(denoiser, noise)
    solver = DPMSolverPP2M()
    ends = sample_ends(denoiser, solver, _schedule(denoiser.process, steps, span), noise)
    coarse = sample_ends(denoiser, solver, _schedule(denoiser.process, steps // 2, span), noise)
    error = float(np.sqrt(np.mean(np.sum((ends - coarse) ** 2, 1))))
    nfe = denoiser.nfe * len(noise) * reference_nfe(steps)
    return as_reference(denoiser, noise, ends, data, error, nfe)


def as_reference(
    denoiser: AbstractDenoiser,
    noise: Float[Array, "n *shape"],
    ends: Float[np.ndarray, "n d"],
    data: Numbers | None,
    error: float,
    nfe: int,
) -> Reference:
    """Give end points their unit and directions.

    **Arguments:**

    - `denoiser`: what was solved with.
    - `noise`: (n, ...), where the solution starts.
    - `ends`: (n, d), where it ends.
    - `data`: samples (m, ...) to whose distribution sliced W2 is measured; None for the ends'.
    - `error`: root mean square distance of the ends to those of a coarser solution.
    - `nfe`: that both solutions took.

    **Returns:** a `Reference`.

    **Raises:** ValueError if all end points coincide.
    """
    scale = float(np.sqrt(np.sum(ends.var(0))))
    if scale == 0.0:
        raise ValueError(
            "noise: all samples coincide, so that errors have no unit; are all rows the same?"
        )
    directions = np.random.default_rng(0).standard_normal((ends.shape[1], _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0) * scale
    projections = None
    if data is not None:
        rows = np.asarray(data)
        projections = np.sort(rows.reshape(len(rows), -1) @ directions, 0)
    return Reference(denoiser, noise, ends, scale, directions, error / scale, projections, nfe)


def reference_nfe(steps: int) -> int:
    """NFE per sample of a reference solution of `steps` steps, and of that with half as many."""
    return EVALUATION * (steps + steps // 2)


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
    ends = sample_concrete(denoiser, sampler, schedule, noise, key=key)
    return np.asarray(ends, np.float64).reshape(noise.shape[0], -1)


def _schedule(process: AbstractProcess, steps: int, span: tuple[float, float]) -> Schedule:
    """Uniform in log-SNR over the span, which may start below t_max."""
    first, last = span
    if first != float(np.asarray(process.t_max)):
        process = eqx.tree_at(lambda p: p.t_max, process, constant(first))
    return log_snr(process, steps, last)


def check_data(data: Numbers | None, noise: Array) -> None:
    """Check that data have the dimensions of initial noise.

    **Arguments:**

    - `data`: samples (n, ...) with n >= 2, or None.
    - `noise`: initial noise.

    **Raises:** ValueError for data of another shape.
    """
    if data is None:
        return
    data = _checks.array("data", data)
    if data.ndim < 2 or data.shape[1:] != noise.shape[1:] or len(data) < 2:
        shape = ", ".join(map(str, noise.shape[1:]))
        raise ValueError(f"data has shape {data.shape}; it must be (n, {shape}) with n >= 2.")
