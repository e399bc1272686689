"""Bounds as functions of what every step does and of the end of the run, with their derivatives.

    F = total(q, end(m)),     q and m functions of the variables of each step

with numbers q that a step has by itself, such as the times of its evaluations, and its maps m. In
all variables v, with the few directions that F'' is applied to being those of q and the end,

    Hessian = (d(q, end)/dv)^T F'' d(q, end)/dv + F_q d^2q/dv^2 + F_end d^2end/dv^2.

Differentiating the whole would evaluate every step again for every variable.
"""

import abc
import dataclasses
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._derivatives import forward_derivatives, pointwise_derivatives
from .._linalg import full_precision
from .._objective import (
    AbstractBoundObjective,
    AbstractCoordinateObjective,
    AbstractJointObjective,
    Derivatives,
)
from .._padding import bucket, pad_last
from .._types import AnyArray, constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import (
    AffineMaps,
    End,
    EndDerivatives,
    InitialState,
    NamedInitialization,
    PerMode,
    curve_own,
    end_of,
    initial_state,
    scatter_own,
    window_indices,
)
from ..samplers import AbstractSampler
from ..schedules import Schedule, Step, TimeCoordinate
from ._padded import padded_times


class StepParts(NamedTuple):
    """What every step does; the last axes are those of steps and blocks."""

    numbers: Float[Array, "numbers steps 1"]
    maps: AffineMaps | None
    """With `responses`; None if the bound takes nothing of the end."""


class AbstractStepwiseBound(AbstractBoundObjective):
    """A bound that takes of a schedule what each of its steps does, and the end of the run."""

    target: eqx.AbstractVar[Gaussian]
    process: eqx.AbstractVar[AbstractProcess]
    sampler: eqx.AbstractVar[AbstractSampler]

    @abc.abstractmethod
    def parts(self, steps: Step) -> StepParts:
        """What every step does."""

    @abc.abstractmethod
    def total(
        self, numbers: Float[Array, "numbers steps"], end: End | None, num_steps: Int[Array, ""]
    ) -> Float[Array, ""]:
        """The bound of a run whose steps from `num_steps` on are padding, without length."""

    @abc.abstractmethod
    def padded(self, num_steps: int) -> "AbstractStepwiseBound":
        """The bound with what it is given for every evaluation continued in the padding."""

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        parts = self.parts(schedule.steps(self.sampler.history_steps))
        return self.of_parts(parts, schedule.times[0], jnp.asarray(schedule.num_steps))

    def of_parts(
        self, parts: StepParts, start: Float[Array, ""], num_steps: Int[Array, ""]
    ) -> Float[Array, ""]:
        """The bound of a run from time `start`."""
        end = None if parts.maps is None else end_of(parts.maps, self.initial(start))
        return self.total(parts.numbers[..., 0], end, num_steps)

    def initial(self, start: Float[Array, ""]) -> InitialState:
        """The state at time `start`, by the process's own initialization."""
        modes = PerMode(self.target)
        named = NamedInitialization(self.process.initialization)
        moments = named.moments(modes, self.process, start)
        return initial_state(self.sampler, moments.mean[None], moments.covariance[None, None])

    def with_stochasticity(
        self,
        coordinate: TimeCoordinate,
        t_min: float | None,
        num_steps: int,
        squared: np.ndarray | None,
    ) -> "StepwiseObjective | None":
        if squared is None:
            return None
        joint = self.in_times_and_stochasticity(coordinate, t_min, num_steps)
        return StepwiseObjective(joint, constant(pad_last(squared, bucket(num_steps))))

    def in_times_and_stochasticity(
        self, coordinate: TimeCoordinate, t_min: float | None, num_steps: int
    ) -> "JointStepwiseObjective":
        end = None if t_min is None else constant(t_min)
        return JointStepwiseObjective(self.padded(num_steps), coordinate, end)


class StepwiseObjective(AbstractCoordinateObjective):
    """A stepwise bound as a function of the coordinates of the times, at a stochasticity."""

    joint: "JointStepwiseObjective"
    squared: Float[AnyArray, " steps"]

    def smoothed(self, factor: float) -> "StepwiseObjective | None":
        joint = self.joint.smoothed(factor)
        return None if joint is None else dataclasses.replace(self, joint=joint)

    def value(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Float[Array, ""]:
        return self.joint.value(u, jnp.asarray(self.squared, u.dtype), num_steps)

    def derivatives(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Derivatives:
        squared = jnp.asarray(self.squared, u.dtype)
        return self.joint.along(u, squared, num_steps, only_times=True)


class JointStepwiseObjective(AbstractJointObjective):
    """A stepwise bound as a function of the coordinates of the times and of the stochasticity.

    `t_min` is the last time; None if it varies as the others do.
    """

    bound: AbstractStepwiseBound
    coordinate: TimeCoordinate
    t_min: Float[AnyArray, ""] | None

    def smoothed(self, factor: float) -> "JointStepwiseObjective | None":
        bound = self.bound.smoothed(factor)
        if bound is None:
            return None
        return dataclasses.replace(self, bound=cast(AbstractStepwiseBound, bound))

    def value(
        self,
        u: Float[Array, " points"],
        squared: Float[Array, " steps"],
        num_steps: Int[Array, ""],
    ) -> Float[Array, ""]:
        times = padded_times(self.coordinate, self.t_min, u, num_steps)
        own = times[self._points(u)].T
        parts = _at_rest(self.bound.parts(_steps(own, squared, num_steps)), num_steps)
        return self.bound.of_parts(parts, self._start(), num_steps)

    def derivatives(
        self,
        u: Float[Array, " points"],
        squared: Float[Array, " steps"],
        num_steps: Int[Array, ""],
    ) -> Derivatives:
        return self.along(u, squared, num_steps, only_times=False)

    @full_precision
    def along(
        self,
        u: Float[Array, " points"],
        squared: Float[Array, " steps"],
        num_steps: Int[Array, ""],
        *,
        only_times: bool,
    ) -> Derivatives:
        """Value, gradient and Hessian in u, and in the squared stochasticity after it."""
        times, rate, bend = pointwise_derivatives(
            lambda u: padded_times(self.coordinate, self.t_min, u, num_steps), u
        )
        index = self._points(u)
        window = index.shape[1]
        own = times[index].T
        if not only_times:
            index = np.append(index, u.size + np.arange(squared.size)[:, None], axis=1)
            own = jnp.concatenate([own, squared[None]])
            rate = jnp.concatenate([rate, jnp.ones_like(squared)])
            bend = jnp.concatenate([bend, jnp.zeros_like(squared)])

        def parts(own: Float[Array, "own steps"]) -> StepParts:
            alpha2 = squared if only_times else own[window]
            return self.bound.parts(_steps(own[:window], alpha2, num_steps))

        used = jnp.arange(squared.size) < num_steps
        within = (index > 0) & ((index <= num_steps) | (index >= u.size))
        moving = used & jnp.asarray(within).T
        value, slopes, curvatures = forward_derivatives(parts, own)
        value = _at_rest(value, num_steps)
        slopes = _where(moving, slopes)
        curvatures = _where(moving[:, None] & moving, curvatures)
        found = self._assemble(value, slopes, curvatures, index, rate.size, num_steps)
        bound, gradient, hessian = found
        hessian = hessian * rate[:, None] * rate + jnp.diag(gradient * bend)
        return bound, gradient * rate, hessian

    def _assemble(
        self,
        value: StepParts,
        slopes: StepParts,
        curvatures: StepParts,
        index: Int[np.ndarray, "steps own"],
        count: int,
        num_steps: Int[Array, ""],
    ) -> Derivatives:
        """Value, gradient and Hessian in `count` variables, from those of what every step does."""
        own = jnp.moveaxis(slopes.numbers[..., 0], -1, 0)
        moved = jnp.moveaxis(scatter_own(own, index, count), 0, -1)
        maps = (value.maps, slopes.maps, curvatures.maps)
        end = None
        if value.maps is not None:
            initial = self.bound.initial(self._start())
            noisy = self.bound.sampler.stochastic
            end = EndDerivatives.of(cast(Any, maps), initial, index, count, noisy)
        at = (value.numbers[..., 0], None if end is None else end.value)
        directions = (moved, None if end is None else end.first())

        def total(at: tuple[Array, End | None]) -> Float[Array, ""]:
            return self.bound.total(at[0], at[1], num_steps)

        def bent(direction: tuple[Array, End | None]) -> tuple[Array, End | None]:
            return jax.jvp(jax.grad(total), (at,), (direction,))[1]

        bound, weights = jax.value_and_grad(total)(at)
        rows = _flat(directions, 1)
        hessian = rows @ _flat(jax.vmap(bent)(directions), 1).T
        hessian = hessian + curve_own(weights[0][..., None], curvatures.numbers, index, count)
        if end is not None:
            hessian = hessian + end.second(weights[1])
        return bound, rows @ _flat(weights, 0), hessian

    def _points(self, u: Float[Array, " points"]) -> Int[np.ndarray, "steps window"]:
        return window_indices(u.size - 1, self.bound.sampler.history_steps)[0]

    def _start(self) -> Float[Array, ""]:
        return jnp.asarray(self.coordinate.start, jnp.result_type(float))


def _steps(
    windows: Float[Array, "window steps"],
    squared: Float[Array, " steps"],
    num_steps: Int[Array, ""],
) -> Step:
    """All steps, from the times of their windows."""
    *earlier, time, next_time = windows
    index = jnp.arange(squared.size)
    none = jnp.zeros((squared.size, 0), squared.dtype)
    return Step(
        time=time,
        next_time=next_time,
        earlier_times=jnp.stack(earlier[::-1], 1) if earlier else none,
        stochasticity_squared=squared,
        completed=index,
        remaining=num_steps - 1 - index,
    )


def _at_rest(parts: StepParts, num_steps: Int[Array, ""]) -> StepParts:
    """The parts with maps that change nothing in the padding.

    A step without length may do something: some samplers correct what the step before it did.
    """
    maps = parts.maps
    if maps is None:
        return parts
    n, _, count, _ = maps.factor.shape
    used = (jnp.arange(count) < num_steps)[:, None]
    still = jax.tree.map(jnp.zeros_like, maps)
    identity = jnp.eye(n, dtype=maps.factor.dtype)[..., None, None]
    still = dataclasses.replace(still, factor=jnp.broadcast_to(identity, maps.factor.shape))
    maps = jax.tree.map(lambda own, none: jnp.where(used, own, none), maps, still)
    return parts._replace(maps=maps)


def _where(moving: Bool[Array, "*lead steps"], derivatives: StepParts) -> StepParts:
    """Derivatives of the steps, 0 in variables that do not move, where there may be none."""
    *lead, count = moving.shape

    def one(leaf: Array) -> Array:
        shape = (*lead, *[1] * (leaf.ndim - len(lead) - 2), count, 1)
        return jnp.where(moving.reshape(shape), leaf, 0.0)

    return jax.tree.map(one, derivatives)


def _flat(tree: Any, lead: int) -> Array:
    """All numbers in one axis, after the leading ones."""
    leaves = [leaf.reshape(*leaf.shape[:lead], -1) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves, axis=-1)
