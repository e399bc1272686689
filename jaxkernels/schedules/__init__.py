"""Schedules: the named grids of the field, files, and monotone parametrisation."""

from ._grids import (
    GRIDS as GRIDS,
    align_your_steps as align_your_steps,
    check_range as check_range,
    cosine as cosine,
    karras as karras,
    log_snr as log_snr,
    quadratic as quadratic,
    sigma_range as sigma_range,
    uniform as uniform,
)
from ._monotone import Monotone as Monotone
from ._schedule import (
    Schedule as Schedule,
    read_json as read_json,
    write_atomically as write_atomically,
)
