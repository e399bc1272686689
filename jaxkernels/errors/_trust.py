"""Whether a schedule relies on something that holds for the Gaussian model only."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import local_errors
from ..samplers import AbstractSampler
from ..schedules import Schedule

# A flipped sign matters when the flipped modes hold this share of the variance after the step.
_SHARE = 0.01

# The kurtosis above which a few samples carry most of the squared error.
_HEAVY_TAIL = 9.0


@jax.jit
def _step_facts(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> tuple[Array, Array, Array]:
    """Per step: share of the variance in flipped modes, injected variance, squared noise level."""
    moments = local_errors(target, process, sampler, schedule).moments
    weighted = target.weights * target.marginal_variance(process, schedule.times[1:])
    share = jnp.sum(jnp.where(moments.factor < 0, weighted, 0.0), -1) / jnp.sum(weighted, -1)
    return share, jnp.max(moments.injected, -1), process.noise(schedule.times[1:]) ** 2


def violations(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> tuple[str, ...]:
    """Reasons not to trust a schedule outside the Gaussian model; empty if there is none.

    A step must not flip the sign of modes that matter, nor inject more noise than the marginal at
    its end holds. Networks were seen to punish both, by factors, where the Gaussian model promised
    a gain. The target is in its eigenbasis; call it in the precision of the optimisation.
    """
    share, injected, level = map(np.asarray, _step_facts(target, process, sampler, schedule))
    reasons = []
    if np.any(share > _SHARE):
        k = int(np.argmax(share))
        reasons.append(
            f"step {k} flips the sign of modes that hold {share[k]:.0%} of the variance (it is too "
            f"long for {type(sampler).__name__})"
        )
    if np.any(injected > level * (1.0 + 1e-6)):
        k = int(np.argmax(injected - level))
        reasons.append(
            f"step {k} injects noise of variance {injected[k]:.3g}, more than the marginal's "
            f"{level[k]:.3g} at its end"
        )
    return tuple(reasons)


def model_warnings(target: Gaussian) -> tuple[str, ...]:
    """What is known about the data that the Gaussian model leaves out."""
    if target.kurtosis is None or float(target.kurtosis) < _HEAVY_TAIL:
        return ()
    return (
        f"the data have kurtosis {float(target.kurtosis):.0f} (3 for Gaussian data): a few samples "
        "carry most of the squared error, and schedules for the Gaussian model have lost to "
        "hand-made ones on such data; compare both on the network before use",
    )
