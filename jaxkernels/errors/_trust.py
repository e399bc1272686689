"""Whether a schedule relies on something that holds for the Gaussian model only."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._compile import quick_jit
from .._numerics import largest
from .._padding import bucket, pad_last
from .._types import constant
from ..distributions import Gaussian
from ..processes import AbstractProcess, sigma_range
from ..recurrence import (
    denoiser_slopes,
    flow_values,
    local_error_coefficients,
    local_errors,
    starts_on_trajectory,
    trajectory_error,
    window_indices,
)
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ._window_sum import pad_modes

# A flipped sign matters when the flipped modes hold this share of the variance after the step.
_SHARE = 0.01


_HEAVY_TAIL = 9.0

# the share of an error from which on what cannot be changed is said to be most of it
_DOMINATING = 0.5
# data of 1 / this to this are of usual size
_USUAL_SIZE = 3.0


def violations(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> tuple[str, ...]:
    """Reasons not to trust a schedule outside the Gaussian model; empty if there is none.

    A step must not flip the sign of modes that matter, nor inject more noise than the marginal at
    its end holds. Networks were seen to punish both, by factors, where the Gaussian model
    promised a gain.

    **Arguments:**

    - `target`: in its eigenbasis; in the precision of the optimisation, as all arguments.
    - `process`, `sampler`, `schedule`: the run.

    **Returns:** sentences that name the step and the numbers.
    """
    linear = sampler.nfe_per_step == 1 and starts_on_trajectory(sampler)
    size = bucket(schedule.num_steps)
    times = constant(pad_last(np.asarray(schedule.times), size + 1))
    squared = constant(pad_last(np.asarray(schedule.stochasticity_squared), size))
    count = jax.device_put(np.asarray(schedule.num_steps))
    run = (pad_modes(target), process, sampler, times)
    if schedule.is_stochastic or not linear:
        facts = _local_facts(*run, squared, count)
        share, *noise = (np.asarray(fact)[: schedule.num_steps] for fact in facts)
        excess = _excess(*noise)
    else:
        share = np.asarray(_flow_facts(*run, count))[: schedule.num_steps]
        excess = None
    name = type(sampler).__name__
    reasons = []
    if np.any(share > _SHARE):
        k = int(np.argmax(share))
        reasons.append(
            f"step {k} flips the sign of modes that hold {share[k]:.0%} of the variance (it is too "
            f"long for {name})"
        )
    if excess is not None:
        reasons.append(excess)
    return tuple(reasons)


def _excess(injected: np.ndarray, level: np.ndarray) -> str | None:
    """What is wrong with injected noise."""
    if not np.any(injected > level * (1.0 + 1e-6)):
        return None
    k = int(np.argmax(injected - level))
    return (
        f"step {k} injects noise of variance {injected[k]:.3g}, more than the marginal's "
        f"{level[k]:.3g} at its end"
    )


@quick_jit
def _local_facts(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " points"],
    squared: Float[Array, " steps"],
    num_steps: Int[Array, ""],
) -> tuple[Array, Array, Array]:
    """Per step: share of the variance in flipped modes, largest injected variance, noise^2.

    Steps may be padding.
    """
    schedule = Schedule.from_squared(times, squared)
    moments = local_errors(target, process, sampler, schedule, num_steps).moments
    weighted = target.weights * target.marginal_variance(process, times[1:])
    share = jnp.sum(jnp.where(moments.factor < 0, weighted, 0.0), -1) / jnp.sum(weighted, -1)
    # modes that only fill up the spectrum have no noise either
    injected = jnp.where(target.weights != 0, moments.injected, 0.0)
    return share, largest(injected), process.noise(times[1:]) ** 2


@quick_jit
def _flow_facts(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " points"],
    num_steps: Int[Array, ""],
) -> Float[Array, " steps"]:
    """Share of the variance in flipped modes per step, without noise; steps may be padding."""
    points, _ = window_indices(times.shape[0] - 1, sampler.window_steps)

    predicted, deviation = flow_values(target, process, times)
    slopes = denoiser_slopes(target, process, times)

    def share(window: Array, k: Array, predicted: Array, slopes: Array, deviation: Array) -> Array:
        c = local_error_coefficients(process, sampler, window, k, num_steps)
        amplitude = deviation + trajectory_error(c, predicted, slopes)
        weighted = target.weights * deviation**2
        return jnp.sum(jnp.where(amplitude < 0, weighted, 0.0)) / jnp.sum(weighted)

    steps = jnp.arange(times.shape[0] - 1)
    return jax.vmap(share)(times[points], steps, predicted[points], slopes[points], deviation[1:])


def unchangeable_warnings(
    parts: Sequence[float],
    total: float,
    target: Gaussian,
    process: AbstractProcess,
    t_min: float,
) -> tuple[str, ...]:
    """What is to be done if an error is mostly what no schedule can change; empty if it is not.

    **Arguments:**

    - `parts`: what initialization and truncation add to the error.
    - `total`: the error, in the same units.
    - `target`: the data.
    - `process`: the forward process.
    - `t_min`: last time of the schedule.

    **Returns:** a sentence with the share and the likely reason.
    """
    initialization, truncation = parts
    if not initialization + truncation > _DOMINATING * total:
        return ()
    weights = np.asarray(target.weights)
    mean = np.asarray(target.in_eigenbasis().mean)
    power = weights * (np.asarray(target.eigenvalues) + mean**2)
    size = float(np.sqrt(np.sum(power) / np.sum(weights)))
    sigma_max, sigma_min = sigma_range(process, t_min)
    if initialization >= truncation:
        reason = (
            f"mostly the initial noise, which at sigma(t_max) = {sigma_max:.3g} does not hide data "
            f"of size {size:.3g}"
        )
        remedy = "a larger sigma_max, or a start from noised data (initialization='marginal')"
    else:
        reason = (
            f"mostly that it stops at t_min = {t_min:.3g}, where sigma = {sigma_min:.3g} is large "
            f"for data of size {size:.3g}"
        )
        remedy = "a smaller t_min"
    if not 1.0 / _USUAL_SIZE < size < _USUAL_SIZE:
        remedy = f"the scale of the data, which is usually about 1 (are the units right?), {remedy}"
    # the steps may cancel a part of it
    share = min((initialization + truncation) / total, 1.0)
    text = f"{share:.0%} of the error is what no schedule can change: {reason}"
    return (f"{text}; what may help: {remedy}",)


def model_warnings(target: Gaussian) -> tuple[str, ...]:
    """What is known about the data that the Gaussian model leaves out."""
    if target.kurtosis is None or float(target.kurtosis) < _HEAVY_TAIL:
        return ()
    return (
        f"the data have kurtosis {float(target.kurtosis):.0f} (3 for Gaussian data): a few samples "
        "hold most of the squared error, and schedules for the Gaussian model have lost to "
        "hand-made ones on such data; compare both on the network before use",
    )
