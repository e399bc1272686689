"""Candidate schedules: what a selection runs on a network, and where each comes from."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

from ..schedules import Schedule
from ._budget import MOST_ROUNDS
from ._space import ScheduleSpace


class Origin(enum.Enum):
    """Where a candidate schedule comes from."""

    BASELINE = "a baseline schedule"
    START = "a start that was given"
    OPTIMUM = "the optimum of the objective on the Gaussian"
    RECORDED = "an optimum on a trajectory record"
    MIXTURE = "selected and fine-tuned on a mixture fitted to samples"
    INTERPOLATED = "interpolated between two other candidates"
    FINE_TUNED = "gradient steps from the selected candidate"
    SIMULATED = "gradient steps on a model that recorded trajectories correct"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A schedule with its label in tables and its origin.

    `parents` are the labels of the two candidates that an interpolated one lies between.
    """

    label: str
    schedule: Schedule
    origin: Origin
    parents: tuple[str, str] | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether optimised schedules are to be compared with this one."""
        return self.origin in (Origin.BASELINE, Origin.START)


OPTIMISED = "optimised"
FINE_TUNED = "fine-tuned"
MIXTURE = "selected on a mixture"
# on a model corrected by recorded trajectories, then by the candidates that were run
SIMULATED = ("simulated", *(f"simulated, correction {i + 1}" for i in range(MOST_ROUNDS)))
# power means of a trajectory record's errors: of typical samples, of the mean, of the tail
RECORDED = {
    0.0: "recorded, geometric mean",
    1.0: "recorded, mean",
    2.0: "recorded, root mean square",
}
RESERVED = (OPTIMISED, FINE_TUNED, MIXTURE, *SIMULATED, *RECORDED.values())


def interpolate_candidates(
    space: ScheduleSpace, optima: Sequence[Candidate], baselines: Sequence[Candidate]
) -> list[Candidate]:
    """Every optimum interpolated with every baseline: a model is rarely all wrong."""
    return [
        Candidate(
            f"{optimum.label} and {baseline.label}",
            space.interpolate(optimum.schedule, baseline.schedule),
            Origin.INTERPOLATED,
            (optimum.label, baseline.label),
        )
        for optimum in optima
        for baseline in baselines
    ]


def by_label(candidates: Sequence[Candidate]) -> Mapping[str, Candidate]:
    """Candidates by their labels, which must differ."""
    found = {candidate.label: candidate for candidate in candidates}
    assert len(found) == len(candidates)
    return found
