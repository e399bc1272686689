"""Noise levels at which a denoiser is measured, and the best affine denoiser there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._precision import to_float64
from .._types import Numbers
from ..distributions import Gaussian
from ..prediction import AbstractDenoiser, Denoiser
from ..processes import AbstractProcess, check_times


class Levels(NamedTuple):
    """Decreasing times > 0 of a process with signal a and noise s there, in float64."""

    times: Float[np.ndarray, " n"]
    signal: Float[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]

    @property
    def sigma(self) -> Float[np.ndarray, " n"]:
        """s/a, infinite where a = 0."""
        infinite = np.full_like(self.noise, np.inf)
        return np.divide(self.noise, self.signal, out=infinite, where=self.signal > 0)


def noise_levels(process: AbstractProcess, times: Numbers) -> Levels:
    """Checked times with signal and noise there."""
    checked = np.asarray(check_times(process, times))
    with jax.enable_x64(True):
        exact = to_float64(process)
        signal = np.asarray(exact.signal(jnp.asarray(checked)))
        noise = np.asarray(exact.noise(jnp.asarray(checked)))
    return Levels(checked, signal, noise)


def gaussian_gain(target: Gaussian, levels: Levels) -> Float[np.ndarray, "n modes"]:
    """a lambda / (a^2 lambda + s^2): the slope of the best affine denoiser."""
    eigenvalues = np.asarray(target.eigenvalues, np.float64)
    signal = levels.signal[:, None]
    noise = levels.noise[:, None]
    return signal * eigenvalues / (signal**2 * eigenvalues + noise**2)


def check_resolution(denoiser: AbstractDenoiser, levels: Levels, target: Gaussian) -> None:
    """An error where rounding hides the denoised point that a score or noise determines."""
    predicts = denoiser.prediction_type if isinstance(denoiser, Denoiser) else "x0"
    if predicts not in ("score", "epsilon"):
        return
    # a score or noise determines the denoised point up to sigma times its rounding error
    scale = np.sqrt(np.mean(np.asarray(target.eigenvalues)))
    rounding = levels.noise * float(jnp.finfo(jnp.zeros(()).dtype).eps)
    lost = rounding > 0.01 * scale * levels.signal
    if np.any(lost):
        k = int(np.argmax(lost))
        raise ValueError(
            f"a network with prediction_type={predicts!r} leaves the denoised point open at "
            f"t = {levels.times[k]:g}: the signal there is {levels.signal[k]:g}, too little for "
            f"{jnp.zeros(()).dtype}. Leave that time out, or use a network that predicts x0, v or "
            "flow."
        )
