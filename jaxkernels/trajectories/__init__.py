"""Recorded trajectories of a network, and the error of any schedule on them."""

from ._corrected import CorrectedDenoiser as CorrectedDenoiser
from ._denoised import (
    DenoisedRecord as DenoisedRecord,
    check_denoised_record as check_denoised_record,
    denoised_nfe as denoised_nfe,
    record_denoised as record_denoised,
)
from ._objective import (
    BoundRecordedError as BoundRecordedError,
    RecordedError as RecordedError,
    bind_record as bind_record,
)
from ._record import (
    AbstractRecord as AbstractRecord,
    TrajectoryRecord as TrajectoryRecord,
    check_record as check_record,
)
from ._recording import (
    FollowedBatch as FollowedBatch,
    as_record as as_record,
    follow as follow,
    record as record,
    record_nfe as record_nfe,
)
from ._simulated import (
    BoundSimulatedError as BoundSimulatedError,
    SimulatedError as SimulatedError,
)
from ._spline import spline_fit as spline_fit
from ._terms import unpredictable as unpredictable
