"""Whether a schedule relies on something that holds for the Gaussian model only."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..comparison import WEIGHED, Comparison
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import local_errors
from ..samplers import AbstractSampler
from ..schedules import Schedule

# A flipped sign matters when the flipped modes hold this share of the variance after the step.
_SHARE = 0.01


_HEAVY_TAIL = 9.0


# errors below this many times the distance between the reference and one of half its steps are not told apart
_RESOLVED = 2.0


@jax.jit
def _step_facts(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> tuple[Array, Array, Array]:
    """Per step: share of the variance in flipped modes, largest injected variance, squared noise level."""
    moments = local_errors(target, process, sampler, schedule).moments
    weighted = target.weights * target.marginal_variance(process, schedule.times[1:])
    share = jnp.sum(jnp.where(moments.factor < 0, weighted, 0.0), -1) / jnp.sum(weighted, -1)
    return share, jnp.max(moments.injected, -1), process.noise(schedule.times[1:]) ** 2


def violations(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> tuple[str, ...]:
    """Reasons not to trust a schedule outside the Gaussian model; empty if there is none.

    A step must not flip the sign of modes that matter, nor inject more noise than the marginal at its end
    holds. Networks were seen to punish both, by factors, where the Gaussian model promised a gain.
    The target is in its eigenbasis; call it in the precision of the optimisation.
    """
    share, injected, level = map(np.asarray, _step_facts(target, process, sampler, schedule))
    reasons = []
    if np.any(share > _SHARE):
        k = int(np.argmax(share))
        reasons.append(
            f"step {k} flips the sign of modes that hold {share[k]:.0%} of the variance (it is too long for "
            f"{type(sampler).__name__})"
        )
    if np.any(injected > level * (1.0 + 1e-6)):
        k = int(np.argmax(injected - level))
        reasons.append(
            f"step {k} injects noise of variance {injected[k]:.3g}, more than the marginal's {level[k]:.3g} at its end"
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


def unresolved(comparison: Comparison, chosen: str) -> tuple[str, ...]:
    """Whether the chosen schedule is about as accurate as the reference it was chosen by."""
    error = comparison.statistic("rms")[chosen]
    if not error < _RESOLVED * comparison.reference_error:
        return ()
    return (
        f"the chosen schedule is {error:.2g} from the fine reference, which itself is accurate to "
        f"{comparison.reference_error:.2g}: which schedule is best is not resolved; a larger t_min may help",
    )


def unproven(comparison: Comparison, chosen: str, baselines: Iterable[str]) -> tuple[str, ...]:
    """In which statistics a mixture's choice is no better than the best baseline beyond the standard error.

    There a network was seen to reverse the order: where few trajectories decide, those that change between clusters.
    """
    if comparison.ranking_statistic != "geometric_mean":
        return ()
    found = []
    for kind in WEIGHED:
        values = comparison.statistic(kind)
        grid = min(baselines, key=values.__getitem__)
        ratio, spread = comparison.ratio(kind, chosen, grid)
        if not ratio + spread < 1.0:
            found.append(f"{kind} ({ratio:.2f} ± {spread:.2f} of that of {grid})")
    if not found:
        return ()
    return (
        f"on fresh noises of the mixture it gains nothing beyond the standard error in {', '.join(found)}: the data "
        "alone do not decide; compare on the network, by score_fn",
    )
