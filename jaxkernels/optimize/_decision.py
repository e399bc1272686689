"""Running a network on a few recorded trajectories to decide between schedules."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .._progress import Progress
from ..comparison import Reference, compare_to
from ..samplers import AbstractSampler
from ._candidates import Candidate, by_label

# of a sum of chances
_ROUNDING = 1e-9


class Decision(NamedTuple):
    """A network on the trajectories that decide, and how much each counts; made by `on_few`."""

    network: Reference
    weights: Float[np.ndarray, " n"]

    @classmethod
    def on_few(cls, network: Reference, count: int) -> "Decision":
        """Draw trajectories, mostly where large errors are.

        Few trajectories make up the root mean square of the errors, and a plain draw of ten misses
        them. Where they are the record says for nothing: samples that end far out have the larger
        errors. Trajectory n, which ends at x_n, is drawn with a chance in proportion to

            1 / N + |x_n - mean|^2 / sum_m |x_m - mean|^2

        and counts in proportion to the inverse of its chance: a mean is the ratio of two sums that
        are unbiased (Horvitz and Thompson, 1952).

        **Arguments:** `network`, with all N recorded trajectories; `count`, how many decide.

        **Returns:** a `Decision`.
        """
        squared = np.sum((network.ends - network.ends.mean(0)) ** 2, 1)
        rows, chances = _draw(1.0 / len(squared) + squared / squared.sum(), count)
        weights = 1.0 / chances
        return cls(network.take(rows), weights / weights.sum())

    def between(
        self, finalists: Sequence[Candidate], sampler: AbstractSampler, line: Progress
    ) -> tuple[Candidate, int]:
        """Find the candidate with the lowest errors on the network, typical and large.

        By the geometric mean of the geometric mean and the root mean square, whose differences
        between candidates few samples tell; those of the sliced distance they do not.

        **Arguments:** `finalists`; `sampler` and `line` as for `compare_to`.

        **Returns:** the candidate, and the NFE.
        """
        if len(finalists) == 1:
            return finalists[0], 0
        schedules = {c.label: c.schedule for c in finalists}
        compared = compare_to(self.network, sampler, schedules, line=line, key=None, planned=0)
        tiny = np.finfo(float).tiny
        typical = np.log(np.maximum(compared.errors, tiny)) @ self.weights
        large = 0.5 * np.log(np.maximum(compared.errors**2 @ self.weights, tiny))
        label = compared.names[int(np.argmin(typical + large))]
        return by_label(finalists)[label], compared.sampling_nfe


def _draw(
    sizes: Float[np.ndarray, " n"], count: int
) -> tuple[Int[np.ndarray, " count"], Float[np.ndarray, " count"]]:
    """`count` different rows, with chances in proportion to their sizes, at most 1; and these.

    Systematic: rows in random order side by side, each as long as its chance, a comb of distance 1.
    """
    chances = count * sizes / sizes.sum()
    while np.any(chances > 1.0 + _ROUNDING):
        # rows that are sure leave the others less
        others = chances < 1.0
        left = count - np.count_nonzero(~others)
        chances = np.where(others, left * sizes / sizes[others].sum(), 1.0)
    chances = np.minimum(chances, 1.0)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(sizes))
    edges = np.cumsum(chances[order])
    places = np.searchsorted(edges, rng.uniform() + np.arange(count))
    # the last edge is `count` up to rounding
    rows = np.sort(order[np.minimum(places, len(order) - 1)])
    return rows, chances[rows]
