"""What a schedule is optimised for: differentiable functions of a schedule."""

import abc
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .distributions import Gaussian
from .processes import AbstractProcess
from .samplers import AbstractSampler
from .schedules import Schedule, TimeCoordinate

ScheduleFunction: TypeAlias = Callable[[Schedule], Float[Array, ""]]
"""A jittable, differentiable, positive function of a schedule."""

LARGEST_STOCHASTICITY = 10.0
"""alpha = h/g, up to which a stochasticity is optimised."""

Derivatives: TypeAlias = tuple[Float[Array, ""], Float[Array, " n"], Float[Array, "n n"]]
"""Value, gradient and Hessian."""


class AbstractCoordinateObjective(eqx.Module):
    """An objective as a function of the coordinates u of the times.

    The stochasticity is fixed, or the best one of every step at these times.

    The first coordinate is fixed, and the last one unless the objective is made for a free end.
    Coordinates beyond `num_steps` repeat the last one as padding, so that one compiled program
    serves every number of steps up to the length of u.
    """

    padded: ClassVar[bool] = True
    """Whether it accepts padding; without, u has num_steps + 1 entries."""

    def smoothed(self, factor: float) -> "AbstractCoordinateObjective | None":
        """The objective with its kinks rounded `factor` times as widely; None if it has none."""
        del factor

    @abc.abstractmethod
    def value(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Float[Array, ""]:
        """The objective, > 0."""

    @abc.abstractmethod
    def derivatives(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
        """Value, gradient and Hessian in u, with 0 for fixed ends and for padding."""

    def stochasticity_squared(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> Float[Array, " steps"]:
        """The squared stochasticity of every step. By default 0."""
        del num_steps
        return jnp.zeros_like(u[1:])


class AbstractJointObjective(eqx.Module):
    """An objective as a function of the coordinates u of the times and of the stochasticity.

    Of the coordinates it is one as `AbstractCoordinateObjective`, with padding. The squared
    stochasticity has one entry for every step, those of the padding without effect.
    """

    def smoothed(self, factor: float) -> "AbstractJointObjective | None":
        """The objective with its kinks rounded `factor` times as widely; None if it has none."""
        del factor

    @abc.abstractmethod
    def value(
        self,
        u: Float[Array, " points"],
        squared: Float[Array, " steps"],
        num_steps: Int[Array, ""],
    ) -> Float[Array, ""]:
        """The objective, > 0."""

    @abc.abstractmethod
    def derivatives(
        self,
        u: Float[Array, " points"],
        squared: Float[Array, " steps"],
        num_steps: Int[Array, ""],
    ) -> Derivatives:
        """Value, gradient and Hessian in u and the squared stochasticity after it."""


class AbstractBoundObjective(eqx.Module):
    """An objective with everything that it depends on besides the schedule."""

    @abc.abstractmethod
    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        """The objective of a schedule, > 0."""

    def in_coordinate(
        self, coordinate: TimeCoordinate, t_min: float
    ) -> AbstractCoordinateObjective | None:
        """The objective without noise as a function of coordinates, where that is cheaper.

        None (the default) if it is not: then it is differentiated as a whole.
        """
        del coordinate, t_min

    def with_stochasticity(
        self,
        coordinate: TimeCoordinate,
        t_min: float | None,
        num_steps: int,
        squared: np.ndarray | None,
    ) -> AbstractCoordinateObjective | None:
        """The same at a squared stochasticity (num_steps,), or at the best (None).

        Without `t_min` the last time varies too. By default without noise and at a fixed end only.
        """
        del num_steps
        if t_min is None or squared is None or np.any(squared):
            return None
        return self.in_coordinate(coordinate, t_min)

    def in_times_and_stochasticity(
        self, coordinate: TimeCoordinate, t_min: float | None, num_steps: int
    ) -> AbstractJointObjective | None:
        """The same as a function of both, where that is cheaper. By default None: it is not.

        Without `t_min` the last time varies too.
        """
        del coordinate, t_min, num_steps

    def smoothed(self, factor: float) -> "AbstractBoundObjective | None":
        """The objective with its kinks rounded `factor` times as widely; None if it has none.

        An optimiser stalls in the narrow valleys of kinks: Newton's method minimises the widely
        rounded objective first, and from there the objective itself.
        """
        del factor

    def why_infinite(self, schedule: Schedule) -> str:
        """A sentence on why the objective of a schedule is no finite positive number."""
        del schedule
        return (
            "A KL metric needs positive eigenvalues, and samplers that divide by the signal need a "
            "process whose sigma(t_max) is finite."
        )

    def at_fixed_stochasticity(self) -> "AbstractBoundObjective":
        """The same objective with derivatives along the times only, where these are cheaper.

        By default the objective as it is.
        """
        return self

    def unchangeable(
        self, coordinate: TimeCoordinate, t_min: float
    ) -> Float[Array, " 2"] | np.ndarray:
        """What initialization and truncation add to the objective of every noiseless schedule.

        By default 0.
        """
        del coordinate, t_min
        return np.zeros(2)


class AbstractObjective(eqx.Module):
    """What to minimise, before target, process and sampler are known.

    To add an objective, subclass this class and write `bind`. Its fields are its options, so that
    an option that an objective does not have cannot be given to it.
    """

    def check(self, sampler: AbstractSampler, deterministic: bool, fixed_end: bool) -> None:
        """Check that the objective is defined for a sampler and a kind of schedules.

        By default it is defined for all.

        **Arguments:**

        - `sampler`: the sampler.
        - `deterministic`: whether no schedule injects noise.
        - `fixed_end`: whether the last time is fixed.

        **Raises:** ValueError if the objective is not defined for them.
        """
        del sampler, deterministic, fixed_end

    def check_target(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, num_steps: int
    ) -> None:
        """Check that the objective's options fit a target and a number of steps.

        By default they do.

        **Arguments:**

        - `target`: the Gaussian target.
        - `process`: the forward process.
        - `sampler`: the sampler.
        - `num_steps`: number K >= 1 of steps.

        **Raises:** ValueError for an option that does not fit.
        """
        del target, process, sampler, num_steps

    def reduce(self, bound: AbstractBoundObjective) -> AbstractBoundObjective:
        """Replace a bound objective by a cheaper one, for the solver to minimise.

        By default it is left as it is. An objective on the modes of a target can be compressed to a
        few quadrature nodes, which moves the minimum only slightly.

        **Arguments:**

        - `bound`: what `bind` of this objective returned.

        **Returns:** an objective with nearly the same minimum.
        """
        return bound

    @abc.abstractmethod
    def bind(
        self, target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> AbstractBoundObjective:
        """Bind the objective to a target, a process and a sampler.

        **Arguments:**

        - `target`: a Gaussian with the mean and covariance of the data.
        - `process`: the forward process.
        - `sampler`: a sampler or its name.

        **Returns:** a differentiable function of a `Schedule`, with values > 0.

        **Raises:** ValueError for an option that does not fit them.
        """
