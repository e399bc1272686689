"""Running a network on a few recorded trajectories to decide between schedules."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .._progress import Progress
from ..comparison import Comparison, Reference, compare_to
from ..samplers import AbstractSampler, sampling_nfe
from ..schedules import Schedule
from ._candidates import Candidate, by_label

# of a sum of chances
_ROUNDING = 1e-9


class Decision(NamedTuple):
    """A network on the trajectories that decide, their rows in the record, and their weights."""

    network: Reference
    rows: Int[np.ndarray, " n"]
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
        return cls(network.take(rows), rows, weights / weights.sum())

    def between(
        self,
        finalists: Sequence[Candidate],
        sampler: AbstractSampler,
        predicted: Comparison,
        line: Progress,
    ) -> tuple[Candidate, int]:
        """Find the candidate with the lowest errors on the network, typical and large.

        By a score S, the log of the geometric mean times the root mean square; differences of the
        sliced distance few samples do not tell. Few samples alone say little of S, and a model has
        errors of its own. Both speak,

            S = (1 - w) S(the model, all trajectories) + w S(the network, the few)

        What the model errs by, log(error of the network / error of the model), is a table of
        candidates by trajectories. With F the ratio of its mean squares, between candidates and
        residual, the share of the first that is no scatter of the few trajectories is

            w = max(0, 1 - 1 / F)

        so that the model is believed where its errors are alike for all candidates.

        **Arguments:** `finalists`; `sampler` and `line` as for `compare_to`; `predicted`, all of
        them on the model of the network, on all recorded trajectories.

        **Returns:** the candidate, and the NFE.

        Source: as in Efron and Morris, "Data Analysis Using Stein's Estimator and its
        Generalizations" (1975).
        """
        if len(finalists) == 1:
            return finalists[0], 0
        schedules = {c.label: c.schedule for c in finalists}
        options = {"line": line, "key": None, "planned": self._planned(sampler, schedules)}
        compared = compare_to(self.network, sampler, schedules, **options)
        modelled = predicted.take(compared.names).errors
        every = np.full(modelled.shape[1], 1.0 / modelled.shape[1])
        share = _share_of_candidates(_log(compared.errors) - _log(modelled[:, self.rows]))
        of_model = _scores(modelled, every)
        scores = of_model + share * (_scores(compared.errors, self.weights) - of_model)
        label = compared.names[int(np.argmin(scores))]
        return by_label(finalists)[label], compared.sampling_nfe

    def _planned(self, sampler: AbstractSampler, schedules: dict[str, Schedule]) -> int:
        """NFE of running the network."""
        denoiser = self.network.denoiser
        each = sum(sampling_nfe(denoiser.process, sampler, s) for s in schedules.values())
        return denoiser.nfe * len(self.network.noise) * each


def _log(x: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    return np.log(np.maximum(x, np.finfo(float).tiny))


def _scores(
    errors: Float[np.ndarray, "candidates n"], weights: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " candidates"]:
    """Logs of the geometric mean times the root mean square."""
    return _log(errors) @ weights + 0.5 * _log(errors**2 @ weights)


def _share_of_candidates(table: Float[np.ndarray, "candidates n"]) -> float:
    """max(0, 1 - 1 / F) of a table of two ways, F the ratio of mean squares of its rows."""
    candidates, count = table.shape
    rows = table.mean(1, keepdims=True) - table.mean()
    residual = table - table.mean(0, keepdims=True) - rows
    between = count * np.sum(rows**2) / (candidates - 1)
    within = np.sum(residual**2) / ((candidates - 1) * (count - 1))
    return float(1.0 - within / between) if between > within else 0.0


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
