"""Recorded trajectories of a network and the error of any schedule on them."""

from ._record import (
    RecordedError as RecordedError,
    TrajectoryRecord as TrajectoryRecord,
    record as record,
)
