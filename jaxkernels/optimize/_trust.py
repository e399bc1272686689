"""Whether a schedule relies on something that holds for the Gaussian model only."""

import numpy as np

from .._numerics import in_float64
from ..process import AbstractProcess
from ..recurrence import local_defects, mode_maps
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..target import Gaussian

# A flipped sign matters when the flipped modes hold this share of the variance after the step.
_SHARE = 0.01
_HEAVY_TAIL = 9.0


@in_float64
def _step_facts(target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule):
    maps = mode_maps(target, process, sampler, schedule)
    flipped = local_defects(target, process, sampler, schedule, maps).flipped
    variance = target.marginal_variance(process, schedule.times)[1:]
    return flipped, target.weights * variance, maps.noise[0, 0], process.noise(schedule.times)[1:]


def violations(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> tuple[str, ...]:
    """Reasons not to trust a schedule outside the Gaussian model; empty if there is none.

    A step must not flip the sign of modes that matter, nor inject more noise than the marginal at its end
    holds. Networks were seen to punish both, by factors, where the Gaussian model promised a gain.
    """
    flipped, share, injected, level = map(np.asarray, _step_facts(target, process, sampler, schedule))
    reasons = []
    fraction = np.sum(np.where(flipped, share, 0.0), -1) / np.sum(share, -1)
    if np.any(fraction > _SHARE):
        k = int(np.argmax(fraction))
        reasons.append(
            f"step {k} flips the sign of modes that hold {fraction[k]:.0%} of the variance (it is too "
            f"long for {type(sampler).__name__})"
        )
    excess = np.max(injected, -1) - level**2
    if np.any(excess > 1e-6 * level**2):
        k = int(np.argmax(excess / np.maximum(level**2, 1e-300)))
        reasons.append(
            f"step {k} injects noise of variance {np.max(injected[k]):.3g}, more than the marginal's "
            f"{level[k] ** 2:.3g} at its end"
        )
    return tuple(reasons)


def model_warnings(target: Gaussian) -> tuple[str, ...]:
    """What is known about the data that the Gaussian model leaves out."""
    if target.kurtosis is None or float(target.kurtosis) < _HEAVY_TAIL:
        return ()
    return (
        f"the data have kurtosis {float(target.kurtosis):.0f} (3 for Gaussian data): a few samples carry "
        "most of the squared error, and schedules for the Gaussian model have lost to hand-made ones on "
        "such data; compare both on the network before use",
    )
