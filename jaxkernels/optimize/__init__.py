"""Optimal schedules."""

from ._objective import (
    LocalError as LocalError,
    Objective as Objective,
    TerminalError as TerminalError,
)
from ._optimize import (
    SPREAD as SPREAD,
    optimize_schedule as optimize_schedule,
)
from ._result import (
    OptimizedSchedule as OptimizedSchedule,
)
from ._trust import (
    model_warnings as model_warnings,
    violations as violations,
)
