"""Recorded trajectories of a network, and the error of any schedule on them."""

from ._objective import (
    BoundRecordedError as BoundRecordedError,
    RecordedError as RecordedError,
    bind_record as bind_record,
)
from ._record import TrajectoryRecord as TrajectoryRecord, check_record as check_record
from ._recording import record as record, record_nfe as record_nfe
