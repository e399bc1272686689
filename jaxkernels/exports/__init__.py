"""Schedules for the samplers of other tools."""

from ._export import (
    SCHEDULERS as SCHEDULERS,
    Export as Export,
    export as export,
)
