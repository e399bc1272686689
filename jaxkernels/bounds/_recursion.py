"""Certified bounds as recursions over steps, with derivatives that use it.

A bound e on the distance of two coupled processes passes through a step by

    e' = phi(c(u, u', a), e)

with u and u' the coordinates of the step's times, a = alpha^2 its stochasticity, and few
coefficients c that take all the work. phi increases with e. Two things follow.

The derivatives of the last e in all u are sums over steps of blocks in (u, u', e), with g = de/du
before the step and l the derivative of the last e in that after it:

    Hessian = sum l B^T phi'' B,      B = (unit u, unit u', g)                                   (1)

And the best stochasticity of a step is the one of least e', whatever the steps after it are, so
that it is found one step after the other, and eliminated from every block by itself:

    phi''_yy - phi''_ya phi''_ay / phi''_aa,     y = (u, u', e)                                  (2)
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._derivatives import forward_derivatives, pointwise_derivatives
from .._numerics import larger, smaller
from .._objective import LARGEST_STOCHASTICITY, AbstractCoordinateObjective
from .._types import AnyArray, Numbers, constant
from ..schedules import TimeCoordinate
from ._assumptions import Assumptions
from ._bound import ErrorSize
from ._certified import (
    ROUNDING,
    SCHEMES,
    Recursion,
    VariedStep,
    advance,
    errors_between,
    finite_or_inf,
    initial_distance,
    is_proved,
    of_variables,
    recursion_of,
    step_derivatives,
    steps_between,
    truncation_distance,
)
from ._girsanov import GIRSANOV, initial_divergence, is_divergence_proved
from ._padded import padded_times, per_step
from ._step_factors import DenoisedSteps, StepErrors, denoised_steps

# squared stochasticities among which the best one of a step is looked for first; the bound has a
# kink at 1
_GRID = np.unique(
    np.append(np.expm1(np.linspace(0.0, np.log1p(LARGEST_STOCHASTICITY**2), 15)), 1.0)
)
_GRID[-1] = LARGEST_STOCHASTICITY**2
_ITERATIONS = 60


class Certificate(eqx.Module):
    """What a bound is of, but for the schedule."""

    known: Assumptions
    metric: str = eqx.field(static=True)
    scheme: str = eqx.field(static=True)
    score_error: ErrorSize
    error_lipschitz: Numbers
    initialization: str = eqx.field(static=True)
    """The name of the initial distribution, or empty if its distance is given."""
    initial_distance: AnyArray | None
    rounding: Float[AnyArray, ""] = dataclasses.field(default_factory=lambda: constant(ROUNDING))

    def smoothed(self, factor: float) -> "Certificate | None":
        """With kinks rounded `factor` times as widely; a sum of divergences has none."""
        if self.metric == "kl":
            return None
        return dataclasses.replace(self, rounding=constant(factor * np.asarray(self.rounding)))

    @property
    def start(self) -> AnyArray | str:
        """The name of the initial distribution, or its distance."""
        return self.initialization if self.initial_distance is None else self.initial_distance


class CertifiedRecursion(AbstractCoordinateObjective):
    """`CertifiedError` as a function of the coordinates of the times, at a stochasticity.

    `squared` is that of every step, squared; None for the best one of each step. `t_min` is the
    last time; None if it varies as the others do.
    """

    certificate: Certificate
    coordinate: TimeCoordinate
    t_min: Float[AnyArray, ""] | None
    squared: Float[AnyArray, " steps"] | None

    def smoothed(self, factor: float) -> "CertifiedRecursion | None":
        certificate = self.certificate.smoothed(factor)
        return None if certificate is None else dataclasses.replace(self, certificate=certificate)

    def value(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Float[Array, ""]:
        times = self._times(u, num_steps)
        active = _active(times, num_steps)
        squared = self._squared(times, active)
        coefficients = self._coefficients(times[:-1], times[1:], squared, self._sizes(times))
        return self._total(times, _propagate(coefficients, self._start(), active)[1])

    def stochasticity_squared(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> Float[Array, " steps"]:
        times = self._times(u, num_steps)
        return self._squared(times, _active(times, num_steps))

    def derivatives(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
        times, rate, bend = pointwise_derivatives(lambda u: self._times(u, num_steps), u)
        active = _active(times, num_steps)
        squared = self._squared(times, active)
        values, slopes, curvatures = self._expand(times, squared, active)
        before, last = _propagate(values, self._start(), active)
        blocks = _blocks(values, slopes, curvatures, before)
        if self.squared is None:
            inside = (squared > 0.0) & (squared < LARGEST_STOCHASTICITY**2)
            blocks = blocks.without(2, inside)
        slope, curvature = blocks.assemble(active)
        if self.t_min is None and self.certificate.metric == "w2":
            _, first, second = pointwise_derivatives(self._truncation, times[-1:])
            slope = slope.at[num_steps].add(first[0])
            curvature = curvature.at[num_steps, num_steps].add(second[0])
        hessian = curvature * rate[:, None] * rate + jnp.diag(slope * bend)
        return self._total(times, last), slope * rate, hessian

    def _times(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Array:
        return padded_times(self.coordinate, self.t_min, u, num_steps)

    def _truncation(self, end: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """What stopping at a time adds to the bound."""
        known = self.certificate.known
        return jnp.vectorize(lambda t: truncation_distance(known, known.process, t))(end)

    def _sizes(self, times: Float[Array, " points"]) -> StepErrors:
        """The score error of every step."""
        return errors_between(
            times[:-1],
            times[1:],
            per_step(self.certificate.score_error, times.shape[0] - 1),
            per_step(self.certificate.error_lipschitz, times.shape[0] - 1),
        )

    def _squared(
        self, times: Float[Array, " points"], active: Bool[Array, " steps"]
    ) -> Float[Array, " steps"]:
        """The squared stochasticity of every step: the given one, or the best."""
        if self.squared is not None:
            return jnp.asarray(per_step(self.squared, active.shape[0]), times.dtype)
        at = jax.lax.stop_gradient(times)
        steps = steps_between(
            self.certificate.known, at[:-1], at[1:], jnp.ones_like(at[1:]), self._sizes(at)
        )
        parts = denoised_steps(steps)
        return _best_stochasticity(parts, self._start(), active, self.certificate.rounding)

    def _coefficients(
        self, starts: Array, ends: Array, squared: Array, sizes: StepErrors
    ) -> Float[Array, "coefficients steps"]:
        """What propagates the bound over every step."""
        steps = steps_between(self.certificate.known, starts, ends, squared, sizes)
        if self.certificate.metric == "kl":
            exact, error = GIRSANOV[self.certificate.scheme](steps)
            return (exact + error)[None]
        factors = SCHEMES[self.certificate.scheme](
            steps._replace(rounding=self.certificate.rounding)
        )
        return jnp.stack(recursion_of(factors))

    def _expand(
        self, times: Float[Array, " points"], squared: Array, active: Bool[Array, " steps"]
    ) -> tuple[Array, Array, Array]:
        """The coefficients of every step and two derivatives in its times, and stochasticity.

        One step after the other, so that the derivatives at all nodes and modes stay in the cache,
        and padding takes no time.
        """

        def one(step: VariedStep) -> tuple[Array, Array, Array]:
            certificate = self.certificate
            fn = of_variables(self._coefficients, step, certificate.score_error)
            return step_derivatives(certificate.known, fn, step[0])

        free = () if self.squared is not None else (squared,)
        x = jnp.stack([times[:-1], times[1:], *free], 1)
        every = (x, squared, self._sizes(times))
        like = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], every))

        def none(step: VariedStep) -> tuple[Array, Array, Array]:
            del step
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

        found = jax.lax.map(lambda row: jax.lax.cond(row[1], one, none, row[0]), (every, active))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), found)

    def _start(self) -> Float[Array, ""]:
        """The bound on the error of the initial distribution."""
        first = jnp.asarray(self.coordinate.start, jnp.result_type(float))
        process = self.certificate.known.process
        if self.certificate.metric == "kl":
            return initial_divergence(
                self.certificate.known, process, first, self.certificate.initialization
            )
        return initial_distance(self.certificate.known, process, first, self.certificate.start)

    def _total(self, times: Float[Array, " points"], last: Float[Array, ""]) -> Float[Array, ""]:
        """The bound, infinite where it is not proved."""
        known = self.certificate.known
        end = times[-1]
        if self.certificate.metric == "kl":
            last_level = known.process.sigma(end) ** 2
            proved = is_divergence_proved(known, self.certificate.scheme, last_level)
            return jnp.where(proved, finite_or_inf(last), jnp.inf)
        if self.squared is None:
            ancestral = jnp.zeros((), bool)
        else:
            ancestral = jnp.all(jnp.asarray(self.squared) == 1.0)
        proved = is_proved(known, self.certificate.scheme, known.process.sigma(end) ** 2, ancestral)
        total = last + self._truncation(end)
        return jnp.where(proved, finite_or_inf(total), jnp.inf)


def _active(times: Float[Array, " points"], num_steps: Int[Array, ""]) -> Bool[Array, " steps"]:
    """Which steps are none of the padding."""
    return jnp.arange(times.shape[0] - 1) < num_steps


def _advance(coefficients: Float[Array, "coefficients *steps"], before: Array) -> Array:
    """The bound after a step: the recursion of a distance, or the sum of divergences."""
    if coefficients.shape[0] == 1:
        return before + coefficients[0]
    return advance(Recursion(*coefficients), before)


def _propagate(
    coefficients: Float[Array, "coefficients steps"], start: Array, active: Bool[Array, " steps"]
) -> tuple[Float[Array, " steps"], Float[Array, ""]]:
    """The bound before every step, and after the last."""

    def step(before: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
        along, is_active = here
        return jnp.where(is_active, _advance(along, before), before), before

    last, before = jax.lax.scan(step, start, (coefficients.T, active))
    return before, last


class _Blocks(NamedTuple):
    """Two derivatives of every step's phi in (t, t', a?, e), the last axis over steps."""

    slope: Float[Array, "n steps"]
    curvature: Float[Array, "n n steps"]

    def without(self, index: int, inside: Bool[Array, " steps"]) -> "_Blocks":
        """Those of the minimum over a variable, where that is inside its range."""
        keep = np.delete(np.arange(self.slope.shape[0]), index)
        pivot = self.curvature[index, index]
        inside = inside & (pivot > 0)
        column = jnp.where(inside, self.curvature[keep, index], 0.0)
        lost = column[:, None] * column / jnp.where(inside, pivot, 1.0)
        return _Blocks(self.slope[keep], self.curvature[keep][:, keep] - lost)

    def assemble(
        self, active: Bool[Array, " steps"]
    ) -> tuple[Float[Array, " points"], Float[Array, "points points"]]:
        """Gradient and Hessian of the last bound in all times, by (1)."""
        count = active.shape[0]
        slope = jnp.where(active, self.slope, jnp.array([0.0, 0.0, 1.0])[:, None])
        curvature = jnp.where(active, self.curvature, 0.0)
        unit = jnp.eye(count + 1, dtype=slope.dtype)

        def step(g: Array, here: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            along, first, last = here
            return along[0] * first + along[1] * last + along[2] * g, g

        gradient, before = jax.lax.scan(
            step, jnp.zeros(count + 1, slope.dtype), (slope.T, unit[:-1], unit[1:])
        )
        # of the last bound in that after each step
        later = jnp.concatenate([slope[2, 1:], jnp.ones(1, slope.dtype)])
        later = jnp.cumprod(later[::-1])[::-1]
        sides = jnp.stack([unit[:-1], unit[1:], before], 1)
        weighted = jnp.einsum("ijk,kjn->kin", curvature * later, sides)
        points = count + 1
        return gradient, sides.reshape(-1, points).T @ weighted.reshape(-1, points)


def _blocks(value: Array, slope: Array, curvature: Array, before: Array) -> _Blocks:
    """Those of the steps, from the expansion of their coefficients."""
    count = slope.shape[0]

    def phi(y: Array) -> Array:
        moved = y[:count]
        along = value + jnp.einsum("ick,ik->ck", slope, moved)
        along = along + 0.5 * jnp.einsum("ijck,ik,jk->ck", curvature, moved, moved)
        return _advance(along, y[count])

    at = jnp.concatenate([jnp.zeros((count, before.shape[0]), before.dtype), before[None]])
    _, first, second = forward_derivatives(phi, at)
    return _Blocks(first, second)


def _best_stochasticity(
    parts: DenoisedSteps, start: Array, active: Bool[Array, " steps"], rounding: AnyArray
) -> Float[Array, " steps"]:
    """The squared stochasticity of least bound after every step, one after the other."""
    grid = jnp.asarray(np.array(_GRID), start.dtype)

    def step(before: Array, here: tuple[DenoisedSteps, Array]) -> tuple[Array, Array]:
        part, is_active = here
        return jax.lax.cond(is_active, least, lambda before, _: (before, before), before, part)

    def least(before: Array, part: DenoisedSteps) -> tuple[Array, Array]:
        part = jax.tree.map(lambda leaf: leaf[None], part)

        def after(alpha2: Array) -> Array:
            factors = part.factors(alpha2[None], rounding)
            return advance(Recursion(*recursion_of(factors)), before)[0]

        values = jax.vmap(after)(grid)
        near = jnp.argmin(values)
        ends = grid[larger(near - 1, 0)], grid[smaller(near + 1, grid.size - 1)]
        found = _minimum_between(after, grid[near], *ends)
        value = after(found)
        better = value <= values[near]
        best = jnp.where(better, found, grid[near])
        after_best = jnp.where(better, value, values[near])
        return after_best, best

    return jax.lax.stop_gradient(jax.lax.scan(step, start, (parts, active))[1])


def _minimum_between(
    fn: Callable[[Array], Array], start: Array, low: Array, high: Array
) -> Float[Array, ""]:
    """A minimum between two numbers by Newton's method, and bisection where that leaves them."""
    slope_of = jax.grad(fn)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, low, high, _, count = carry
        slope, bend = jax.jvp(slope_of, (x,), (jnp.ones_like(x),))
        low = jnp.where(slope < 0, x, low)
        high = jnp.where(slope > 0, x, high)
        moved = x - slope / jnp.where(bend > 0, bend, 1.0)
        usable = (bend > 0) & (moved >= low) & (moved <= high)
        moved = jnp.where(usable, moved, 0.5 * (low + high))
        flat = (jnp.abs(moved - x) <= 1e-14 * (1.0 + x)) | (slope == 0)
        return jnp.where(slope == 0, x, moved), low, high, flat, count + 1

    def unfinished(carry: tuple[Array, ...]) -> Array:
        return ~carry[3] & (carry[4] < _ITERATIONS)

    carry = (start, low, high, jnp.zeros((), bool), jnp.zeros((), int))
    return jax.lax.while_loop(unfinished, step, carry)[0]
