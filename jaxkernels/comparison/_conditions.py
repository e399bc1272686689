"""How an advantage varies between the conditions of a network, such as classes or prompts."""

import numpy as np
from jaxtyping import Float, Int


def variance_between(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> float:
    """Estimate the variance of group means, without that which few samples per group cause.

    In the model value = mean + group + rest of independent terms of variances v and w, with n_g
    values in each of G groups,

        v = (B - W) / n_0,     n_0 = (n - sum_g n_g^2 / n) / (G - 1),

    with the mean squares B = sum_g n_g (m_g - m)^2 / (G - 1) between groups and
    W = sum_g sum_i (y_gi - m_g)^2 / (n - G) within them. v is unbiased, and set to 0 where it is
    negative.

    **Arguments:**

    - `values`: one for each sample.
    - `groups`: number of each sample's group.

    **Returns:** v >= 0, in the units of the values squared; NaN with a single group, or without two
    values in any.

    Source: Searle, Casella and McCulloch, "Variance Components" (1992), section 3.6.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    total = len(values)
    if len(counts) < 2 or total == len(counts):
        return float("nan")
    means = np.bincount(group, values) / counts
    between = np.sum(counts * (means - np.mean(values)) ** 2) / (len(counts) - 1)
    within = np.sum((values - means[group]) ** 2) / (total - len(counts))
    size = (total - np.sum(counts**2) / total) / (len(counts) - 1)
    # the maximum of Python would turn NaN into 0
    return float(np.maximum(0.0, (between - within) / size))
