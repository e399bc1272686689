"""Schedules: times and stochasticity, baseline schedules, and the coordinate of their times."""

from ._baselines import (
    BASELINES as BASELINES,
    SCHEDULES as SCHEDULES,
    align_your_steps as align_your_steps,
    beta as beta,
    cosine as cosine,
    karras as karras,
    log_snr as log_snr,
    quadratic as quadratic,
    uniform as uniform,
)
from ._canonical import CoordinateProcess as CoordinateProcess
from ._coordinate import (
    TimeCoordinate as TimeCoordinate,
    coordinates_of as coordinates_of,
    step_logits as step_logits,
    times_of as times_of,
)
from ._file import (
    read_json as read_json,
)
from ._levels import (
    times_at_sigmas as times_at_sigmas,
)
from ._schedule import (
    Schedule as Schedule,
)
from ._step import (
    Step as Step,
)
