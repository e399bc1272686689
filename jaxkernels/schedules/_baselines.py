"""Schedules that people use today; an optimum has to beat the baselines among them.

Every function returns a `Schedule` of `num_steps` steps from the process's t_max to `t_min`.

* No interior time lies below the smallest one at which a network has been trained (the first entry
  of a table). A schedule that is defined by noise levels, and any other that would go below, stops
  there and takes a last step to t_min.
* Levels need a finite, positive one at both ends. If t_min = 0, they stop at `last_sigma`, and a
  last step to 0 is appended, as in EDM and k-diffusion. If sigma(t_max) is infinite (no signal
  left), they start at sigma = 1000, and the first is replaced by t_max.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import ArrayLike
from scipy.special import betaincinv

from .. import _checks
from ..processes import AbstractProcess, check_range, sigma_range
from ._levels import times_at_sigmas
from ._schedule import Schedule

# the top of levels where sigma(t_max) is infinite
_LARGEST_SIGMA = 1e3
# the last level before 0 of EDM, where no smallest trained one is known
_LAST_SIGMA = 0.002

# Published levels (Sabour et al., "Align Your Steps", 2024), largest first, before the final 0.
_ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def _in_time(
    process: AbstractProcess,
    num_steps: int,
    t_min: ArrayLike,
    curve: Callable[[np.ndarray], np.ndarray],
) -> Schedule:
    """Times t_min + (t_max - t_min) curve(u), u = 0..1 from noise to data, by the module's rule."""
    t_min = check_range(process, num_steps, t_min)
    times = _along(process, num_steps, t_min, curve)
    if num_steps > 1 and times[-2] < process.trained_t_min:
        times = np.append(_along(process, num_steps - 1, process.trained_t_min, curve), t_min)
    return Schedule(times)


def _along(
    process: AbstractProcess, num_steps: int, low: float, curve: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Times along a curve from t_max to `low`."""
    t_max = float(process.t_max)
    times = low + (t_max - low) * curve(np.arange(num_steps + 1) / num_steps)
    times[0] = t_max
    times[-1] = low
    return times


def uniform(process: AbstractProcess, num_steps: int, t_min: ArrayLike) -> Schedule:
    """Make equal steps in time.

        t_k = t_min + (t_max - t_min) (1 - k/K)

    **Arguments:**

    - `process`: the forward process.
    - `num_steps`: number K >= 1 of steps.
    - `t_min`: last time, in [0, t_max).

    **Returns:** the schedule, from t_max to `t_min`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> jk.schedules.uniform(jk.EDM(8.0), 4, 0.0).times.round(4).tolist()
    [8.0, 6.0, 4.0, 2.0, 0.0]
    ```
    """
    return _in_time(process, num_steps, t_min, lambda u: 1.0 - u)


def quadratic(process: AbstractProcess, num_steps: int, t_min: ArrayLike) -> Schedule:
    """Make quadratic steps in time, finer towards the data.

        t_k = t_min + (t_max - t_min) (1 - k/K)^2

    **Arguments:**

    - `process`: the forward process.
    - `num_steps`: number K >= 1 of steps.
    - `t_min`: last time, in [0, t_max).

    **Returns:** the schedule, from t_max to `t_min`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> jk.schedules.quadratic(jk.EDM(8.0), 2, 0.0).times.round(4).tolist()
    [8.0, 2.0, 0.0]
    ```

    Source: Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (2021), appendix D.2,
    https://arxiv.org/abs/2010.02502.
    """
    return _in_time(process, num_steps, t_min, lambda u: (1.0 - u) ** 2)


def cosine(process: AbstractProcess, num_steps: int, t_min: ArrayLike) -> Schedule:
    """Make cosine steps in time, finer towards the data.

        t_k = t_min + (t_max - t_min) (1 - cos(pi/2 (1 - k/K)))

    **Arguments:**

    - `process`: the forward process.
    - `num_steps`: number K >= 1 of steps.
    - `t_min`: last time, in [0, t_max).

    **Returns:** the schedule, from t_max to `t_min`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> jk.schedules.cosine(jk.EDM(8.0), 2, 0.0).times.round(0).tolist()
    [8.0, 2.0, 0.0]
    ```
    """
    return _in_time(process, num_steps, t_min, lambda u: 1.0 - np.cos(0.5 * np.pi * (1.0 - u)))


def beta(
    process: AbstractProcess,
    num_steps: int,
    t_min: ArrayLike,
    alpha: ArrayLike = 0.6,
    beta: ArrayLike = 0.6,
) -> Schedule:
    """Make the times quantiles of a beta distribution, finer towards both ends.

        t_k = t_min + (t_max - t_min) q(1 - k/K),    int_0^q(p) Beta(x; alpha, beta) dx = p

    **Arguments:**

    - `process`: the forward process.
    - `num_steps`: number K >= 1 of steps.
    - `t_min`: last time, in [0, t_max).
    - `alpha`: > 0, the smaller the finer towards the data.
    - `beta`: > 0, the smaller the finer towards the noise.

    **Returns:** the schedule, from t_max to `t_min`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> jk.schedules.beta(jk.EDM(8.0), 3, 0.0, 0.5, 0.5).times.round(4).tolist()
    [8.0, 6.0, 2.0, 0.0]
    ```

    Source: Lee et al., "Beta Sampling is All You Need: Efficient Image Generation Strategy for
    Diffusion Models using Stepwise Spectral Analysis" (2024), https://arxiv.org/abs/2407.12173.
    """
    alpha = float(_checks.scalar("alpha", alpha, above=0.0))
    beta = float(_checks.scalar("beta", beta, above=0.0))
    return _in_time(process, num_steps, t_min, lambda u: betaincinv(alpha, beta, 1.0 - u))


def _in_sigma(
    process: AbstractProcess,
    num_steps: int,
    t_min: ArrayLike,
    last_sigma: ArrayLike | None,
    levels: Callable[[float, float, np.ndarray], np.ndarray],
) -> Schedule:
    """Times at which sigma = levels(sigma_max, sigma_min, u), by the module's rules at the ends."""
    t_min = check_range(process, num_steps, t_min)
    low = max(t_min, process.trained_t_min)
    largest, smallest = sigma_range(process, low)
    if not np.isfinite(largest):
        largest = _LARGEST_SIGMA
    append = t_min < low or smallest == 0.0
    if append:
        smallest = _last_level(last_sigma, smallest, largest)
    elif last_sigma is not None:
        raise ValueError(
            f"last_sigma = {last_sigma}: there is a level before the last only if the schedule "
            f"ends at t_min = 0 or below the smallest trained time; t_min = {t_min:g}."
        )
    points = num_steps if append else num_steps + 1
    u = np.arange(points) / max(points - 1, 1)
    times = times_at_sigmas(process, levels(largest, smallest, u))
    times = np.append(times, t_min) if append else times
    times[0] = float(process.t_max)
    times[-1] = t_min
    return Schedule(times)


def _last_level(last_sigma: ArrayLike | None, trained: float, largest: float) -> float:
    """The level before an appended end: what is asked for, or the smallest trained one."""
    if last_sigma is None:
        last_sigma = trained if trained > 0.0 else _LAST_SIGMA
    least = {"at_least": trained} if trained > 0.0 else {"above": 0.0}
    return float(_checks.scalar("last_sigma", last_sigma, **least, below=largest))


def log_snr(
    process: AbstractProcess, num_steps: int, t_min: ArrayLike, last_sigma: ArrayLike | None = None
) -> Schedule:
    """Make equal steps in log-SNR, that is in log sigma (also called exponential).

        sigma_k = sigma_max (sigma_min / sigma_max)^(k/K)

    **Arguments:**

    - `process`: the forward process.
    - `num_steps`: number K >= 1 of steps.
    - `t_min`: last time, in [0, t_max).
    - `last_sigma`: if t_min is 0 or below the smallest trained time, and only then, the level
      before the last one, below sigma(t_max); by default the smallest trained one, or 0.002.

    **Returns:** the schedule, from t_max to `t_min`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> jk.schedules.log_snr(jk.EDM(8.0), 2, 2.0).times.round(4).tolist()
    [8.0, 4.0, 2.0]
    ```

    Source: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
    Around 10 Steps" (2022), section 3.3, https://arxiv.org/abs/2206.00927.
    """

    def levels(top: float, low: float, u: np.ndarray) -> np.ndarray:
        return top * (low / top) ** u

    return _in_sigma(process, num_steps, t_min, last_sigma, levels)


def karras(
    process: AbstractProcess,
    num_steps: int,
    t_min: ArrayLike,
    last_sigma: ArrayLike | None = None,
    rho: ArrayLike = 7.0,
) -> Schedule:
    """Make equal steps in sigma^(1/rho), the schedule of EDM.

        sigma_k = (sigma_max^(1/rho) + k/K (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    **Arguments:**

    - `process`: the forward process.
    - `num_steps`: number K >= 1 of steps.
    - `t_min`: last time, in [0, t_max).
    - `last_sigma`: if t_min is 0 or below the smallest trained time, and only then, the level
      before the last one, below sigma(t_max); by default the smallest trained one, or 0.002.
    - `rho`: > 0; 1 is uniform in sigma, large values are uniform in log sigma.

    **Returns:** the schedule, from t_max to `t_min`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> jk.schedules.karras(jk.EDM(9.0), 2, 1.0, rho=2.0).times.round(4).tolist()
    [9.0, 4.0, 1.0]
    ```

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), eq. (5), https://arxiv.org/abs/2206.00364.
    """
    power = 1.0 / float(_checks.scalar("rho", rho, above=0.0))

    def levels(top: float, low: float, u: np.ndarray) -> np.ndarray:
        return (top**power + u * (low**power - top**power)) ** (1.0 / power)

    return _in_sigma(process, num_steps, t_min, last_sigma, levels)


def align_your_steps(
    process: AbstractProcess,
    num_steps: int,
    t_min: ArrayLike,
    last_sigma: ArrayLike | None = None,
    model: str = "sd15",
) -> Schedule:
    """Make the published 10-step schedule of a model, for any process and number of steps.

        log sigma_k = log sigma_min + log(sigma_max / sigma_min) shape(k/K)

    The shape is that of the published list: its log sigma is interpolated linearly over the step
    index, as the tools that ship these lists do, and scaled to 1 and 0 at its ends. With the
    published ends and K = 10 the published levels come back.

    **Arguments:**

    - `process`: the forward process.
    - `num_steps`: number K >= 1 of steps.
    - `t_min`: last time, in [0, t_max).
    - `last_sigma`: if t_min is 0 or below the smallest trained time, and only then, the level
      before the last one, below sigma(t_max); by default the smallest trained one, or 0.002.
    - `model`: "sd15", "sdxl" or "svd".

    **Returns:** the schedule, from t_max to `t_min`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> schedule = jk.schedules.align_your_steps(jk.EDM(14.615), 10, 0.029)
    >>> bool(jnp.allclose(schedule.times[:4], jnp.array([14.615, 6.475, 3.861, 2.697])))
    True
    ```

    Source: Sabour, Fidler and Kreis, "Align Your Steps: Optimizing Sampling Schedules in Diffusion
    Models" (2024), https://arxiv.org/abs/2404.14507.
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
"""The schedules that an optimum is compared with, by name."""

SCHEDULES = {**BASELINES, "beta": beta}
"""Every schedule that has a name."""
