"""Confidence intervals of means."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

_RESAMPLES = 4000


class ConfidenceInterval(NamedTuple):
    """A value with a confidence interval.

    **Arguments:**

    - `value`: the estimate.
    - `low`: the lower end of the interval.
    - `high`: the upper end of the interval.

    **Example:**

    ```python
    >>> low, high = jk.ConfidenceInterval(1.0, 0.9, 1.2)[1:]
    ```
    """

    value: float
    low: float
    high: float


def bootstrap_mean(values: Float[np.ndarray, " n"], level: float) -> ConfidenceInterval:
    """The mean of values with a studentised bootstrap interval, which allows for their skewness."""
    count = len(values)
    center = float(values.mean())
    # a fixed seed makes the interval repeatable
    index = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    resampled = values[index]
    standard_error = values.std(ddof=1) / np.sqrt(count)
    standard_errors = resampled.std(1, ddof=1) / np.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = (resampled.mean(1) - center) / standard_errors
    studentised = np.where(standard_errors > 0, studentised, 0.0)
    low, high = np.quantile(studentised, [0.5 * (1.0 - level), 0.5 * (1.0 + level)])
    return ConfidenceInterval(
        center, center - float(high * standard_error), center - float(low * standard_error)
    )


def student_mean(values: Float[np.ndarray, " n"], level: float) -> ConfidenceInterval:
    """The mean of values with Student's interval."""
    count = len(values)
    center = float(values.mean())
    half = student_quantile(level, count) * float(values.std(ddof=1) / np.sqrt(count))
    return ConfidenceInterval(center, center - half, center + half)


def mean_of_skewed(
    values: Float[np.ndarray, " n"], level: float, least: float
) -> ConfidenceInterval:
    """The mean of values > `least` with the union of two intervals: bootstrap and lognormal.

    A few values of a distribution with a heavy tail do not show the tail, so that resampling them
    cannot cover the mean; a lognormal distribution of values - least allows for it.
    """
    value, low, high = bootstrap_mean(values, level)
    if np.min(values) <= least or np.ptp(values) == 0:
        return ConfidenceInterval(value, low, high)
    logs = np.log(values - least)
    count = len(logs)
    variance = logs.var(ddof=1)
    standard_error = np.sqrt(variance / count + 0.5 * variance**2 / (count - 1))
    half = student_quantile(level, count) * standard_error
    center = logs.mean() + 0.5 * variance
    ends = least + np.exp([center - half, center + half])
    return ConfidenceInterval(value, min(low, float(ends[0])), max(high, float(ends[1])))


def student_quantile(level: float, count: int) -> float:
    """Half the width of Student's interval of `count` values, in standard errors."""
    # scipy.stats has it too, and takes half a second to import
    return float(stdtrit(count - 1, 0.5 * (1.0 + level)))
