"""What a schedule is optimised for: differentiable functions of a schedule."""

import abc
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import equinox as eqx
from jaxtyping import Array, Float, Int

from .distributions import Gaussian
from .processes import AbstractProcess
from .samplers import AbstractSampler
from .schedules import Schedule, TimeCoordinate

ScheduleFunction: TypeAlias = Callable[[Schedule], Float[Array, ""]]
"""A jittable, differentiable, positive function of a schedule."""

Derivatives: TypeAlias = tuple[Float[Array, ""], Float[Array, " n"], Float[Array, "n n"]]
"""Value, gradient and Hessian."""


class AbstractCoordinateObjective(eqx.Module):
    """An objective of deterministic schedules as a function of the coordinates u of their times.

    The first and last coordinate are fixed. Coordinates beyond `num_steps` are padding, so that one
    compiled program serves every number of steps up to the length of u.
    """

    padded: ClassVar[bool] = True
    """Whether it accepts padding; without, u has num_steps + 1 entries."""

    @abc.abstractmethod
    def value(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Float[Array, ""]:
        """The objective, > 0."""

    @abc.abstractmethod
    def derivatives(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
        """Value, gradient and Hessian in u, with 0 for both ends and for padding."""


class AbstractBoundObjective(eqx.Module):
    """An objective with everything that it depends on besides the schedule."""

    @abc.abstractmethod
    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        """The objective of a schedule, > 0."""

    def in_coordinate(
        self, coordinate: TimeCoordinate, t_min: float
    ) -> AbstractCoordinateObjective | None:
        """The objective as a function of coordinates, where its derivatives are cheaper there.

        None (the default) if they are not: then it is differentiated as a whole.
        """
        del coordinate, t_min


class AbstractObjective(eqx.Module):
    """What to minimise, before target, process and sampler are known.

    To add an objective, subclass this class and write `bind`. Its fields are its options, so that an
    option that an objective does not have cannot be given to it.
    """

    def check(self, sampler: AbstractSampler, deterministic: bool, fixed_end: bool) -> None:
        """Raise a ValueError if the objective is not defined for such schedules. Default: it is."""
        del sampler, deterministic, fixed_end

    def check_target(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, num_steps: int
    ) -> None:
        """Raise a ValueError if an option does not fit a target or a number of steps."""
        del target, process, sampler, num_steps

    def reduce(self, bound: AbstractBoundObjective) -> AbstractBoundObjective:
        """A cheaper objective with nearly the same minimum, for the solver. Default: the same."""
        return bound

    @abc.abstractmethod
    def bind(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler
    ) -> AbstractBoundObjective:
        """This objective for a Gaussian target, a process and a sampler.

        **Raises:** ValueError for an option that does not fit them.
        """
