"""Confidence intervals of means."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

# of as many values as there are, for the critical values
_SAMPLES = 4000


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


def student_mean(values: Float[np.ndarray, " n"], level: float) -> ConfidenceInterval:
    """The mean of values with Student's interval."""
    count = len(values)
    center = float(values.mean())
    half = student_quantile(level, count) * float(values.std(ddof=1) / np.sqrt(count))
    return ConfidenceInterval(center, center - half, center + half)


def mean_of_modelled(
    values: Float[np.ndarray, " n"], population: Float[np.ndarray, " draws"], level: float
) -> ConfidenceInterval:
    """The mean of values, with Student's ratio distributed as in samples of a population.

    A few values of a distribution with a heavy tail do not show the tail, so that resampling them
    cannot cover the mean. A modelled population shows it. Only the critical values of the ratio are
    taken from there: center and scale are those of the values.
    """
    count = len(values)
    # a fixed seed makes the interval repeatable
    index = np.random.default_rng(0).integers(len(population), size=(_SAMPLES, count))
    samples = population[index]
    deviations = samples.std(1, ddof=1) / np.sqrt(count)
    distances = samples.mean(1) - population.mean()
    ratios = np.divide(distances, deviations, out=np.zeros(_SAMPLES), where=deviations > 0)
    low, high = np.quantile(ratios, [0.5 * (1.0 - level), 0.5 * (1.0 + level)])
    center = float(values.mean())
    standard_error = float(values.std(ddof=1) / np.sqrt(count))
    return ConfidenceInterval(
        center, center - float(high) * standard_error, center - float(low) * standard_error
    )


def student_quantile(level: float, count: int) -> float:
    """Half the width of Student's interval of `count` values, in standard errors."""
    # scipy.stats has it too, and takes half a second to import
    return float(stdtrit(count - 1, 0.5 * (1.0 + level)))
