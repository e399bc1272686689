"""Selection criteria: which of several compared schedules is the best.

Each function takes arrays with one entry per schedule and returns the index of the selected one.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float

from ..metrics import Estimate
from ._statistics import TINY

BALANCED = "balanced"
# the statistics that "balanced" weighs against each other
WEIGHED = ("geometric_mean", "rms", "sliced_w2")

# of the power mean that stands for the largest ratio, with derivatives
_POWER = 6.0
_A = TypeVar("_A", np.ndarray, Array)


def select_smallest(values: Float[np.ndarray, " schedules"], among: Sequence[int]) -> int:
    """The schedule with the smallest value of a single statistic, whatever its other ones."""
    return among[int(np.argmin(values[list(among)]))]


def select_balanced(
    values: Float[np.ndarray, "statistics schedules"],
    baselines: Sequence[int],
    among: Sequence[int],
) -> int:
    """The schedule whose largest ratio to the baselines, smoothed, is smallest.

    Each statistic is divided by its smallest value among the baselines. A schedule that is worse
    than the best baseline in some statistic ranks behind all that are worse in none, by its `harm`.
    Only those `among` are selected.
    """
    logs = np.log(np.maximum(values, TINY)).T
    log_ratios = logs[list(among)] - logs[list(baselines)].min(0)
    return among[int(np.lexsort((balance(np, log_ratios), harm(log_ratios)))[0])]


def balance(xp: Any, logs: Float[_A, "*schedules ratios"]) -> Float[_A, "*schedules"]:
    """Smooth maximum of n ratios r_i: the log of their power mean (sum r_i^6 / n)^(1/6).

    A product would trade the tail and the distribution for typical samples, whose errors can fall
    without bound for some data.

    **Arguments:**

    - `xp`: numpy, or jax.numpy for derivatives.
    - `logs`: log r_i of every schedule.

    **Returns:** one logarithm per schedule, at most the largest of its `logs`.
    """
    # sorted, as the derivative of a maximum may be lost (`larger` in `_numerics`)
    largest = xp.sort(logs, -1)[..., -1:]
    return xp.log(xp.mean(xp.exp(_POWER * (logs - largest)), -1)) / _POWER + largest[..., 0]


def harm(log_ratios: Float[np.ndarray, "*schedules ratios"]) -> Float[np.ndarray, "*schedules"]:
    """log of the product of the ratios above 1, 0 where there is none."""
    return np.sum(np.maximum(log_ratios, 0.0), -1)


def is_better(log_ratios: Float[np.ndarray, "samples statistics 2"]) -> bool:
    """Whether the first of two schedules is better than the second beyond a standard error.

    By its `harm` if that decides, else by its `balance`. `log_ratios` are of all samples and then
    of resamples, whose standard deviation is the standard error.
    """
    log_ratios = np.moveaxis(log_ratios, 1, 2)
    for values in (harm(log_ratios), balance(np, log_ratios)):
        gain = values[:, 1] - values[:, 0]
        error = float(np.std(gain[1:], ddof=1))
        if abs(gain[0]) > error:
            return bool(gain[0] > 0)
    return False


def select_significant(
    values: Float[np.ndarray, " schedules"],
    stochastic: Bool[np.ndarray, " schedules"],
    ratio: Callable[[int, int], Estimate],
) -> int:
    """The schedule with the smallest value, if its gain is beyond luck where it is stochastic.

    Otherwise the best deterministic one; the smallest value where all are stochastic. `ratio(i, j)`
    estimates values[i] / values[j].
    """
    order = np.argsort(values)
    best = int(order[0])
    if not stochastic[best] or stochastic.all():
        return best
    deterministic = int(order[np.argmin(stochastic[order])])
    estimate = ratio(best, deterministic)
    margin = required_gain(int(stochastic.sum())) * estimate.standard_error
    return best if estimate.value + margin < 1.0 else deterministic


def required_gain(count: int) -> float:
    """Standard errors that the best of m = `count` stochastic schedules must gain.

        max(1, sqrt(2 log m))

    Their noise is another draw. The smallest of m normal draws lies on average at most
    sqrt(2 log m) standard deviations below their mean, however they depend on each other.
    """
    return max(1.0, float(np.sqrt(2.0 * np.log(count))))
