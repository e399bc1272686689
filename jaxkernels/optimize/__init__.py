"""Optimal schedules: an objective, a space of schedules, a solver and a selection."""

from ._candidates import Candidate as Candidate, Origin as Origin
from ._optimize import optimize_schedule as optimize_schedule
from ._problem import ScheduleProblem as ScheduleProblem, make_problem as make_problem
from ._result import OptimizedSchedule as OptimizedSchedule
from ._selection import (
    BoundSelection as BoundSelection,
    Selected as Selected,
    Selection as Selection,
)
from ._solve import Solution as Solution, solve as solve
from ._solver import (
    AbstractSolver as AbstractSolver,
    Newton as Newton,
    Optax as Optax,
)
from ._space import (
    AbstractProblem as AbstractProblem,
    ScheduleSpace as ScheduleSpace,
)
from ._sweep import ScheduleSweep as ScheduleSweep, optimize_schedules as optimize_schedules
from ._timesteps import (
    on_integer_timesteps as on_integer_timesteps,
    rounding_makes_equal as rounding_makes_equal,
)
