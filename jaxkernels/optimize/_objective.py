"""What an optimal schedule minimises: functions of a schedule, differentiable, on a Gaussian target."""

import abc
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import metrics
from .._derivatives import dense_derivatives, forward_derivatives
from ..distributions import Gaussian
from ..errors import ErrorKernel, second_order
from ..processes import AbstractProcess
from ..recurrence import (
    NamedInitialization,
    Run,
    carried,
    evaluation_times,
    initial_moments,
    local_errors,
    log_contraction,
    log_contractions,
    score_responses,
    to_the_end,
    window_moments,
    windows,
)
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AffineError, ScoreError


@runtime_checkable
class Objective(Protocol):
    """A differentiable, jittable function of a schedule."""

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]: ...


@runtime_checkable
class Windowed(Objective, Protocol):
    """An objective whose derivatives in the times are cheaper than by differentiating it as a whole."""

    def derivatives(self, schedule: Schedule) -> tuple[Array, Array, Array]:
        """Value, gradient and Hessian in the times at stochasticity 0, with 0 for the two end times."""
        ...


class AbstractGaussianObjective(eqx.Module):
    """An objective computed from a Gaussian target: the metric's total over its modes."""

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    metric: metrics.Metric = eqx.field(static=True)
    initialization: str = eqx.field(static=True)
    score_error: ScoreError | None = None

    @abc.abstractmethod
    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        """The objective of a schedule."""

    def total(self, mean_error: Array, variance: Array, reference: Array) -> Array:
        """The metric summed over modes, for any leading axes."""
        t = self.target
        value = metrics.per_mode(self.metric, t.weights, mean_error, variance, reference)
        return jnp.sum(value, -1)

    def start(self, schedule: Schedule) -> tuple[Array, Array]:
        return initial_moments(self.target, self.process, schedule.times[0], self.initialization)


class TerminalError(AbstractGaussianObjective):
    """metric(p_0, q): the exact error of the whole run. Errors of different steps may cancel in it.

    With a score error, its expectation to second order (`kernels`).

    On a Gaussian that is the truth; on a network, which is not Gaussian, the cancellation is lost.
    """

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        run = Run(
            self.target,
            self.process,
            self.sampler,
            schedule,
            NamedInitialization(self.initialization),
        )
        if self.score_error is None:
            return jnp.sum(run.contributions(self.metric))
        return second_order(ErrorKernel.about_zero(run, self.metric), self.score_error)


class LocalError(AbstractGaussianObjective):
    """The sum over error sources of the terminal error that each source alone would cause:

        metric(p_K, q_init) + metric(p_0, p_K) + sum_k metric(p_K, q_k)

    where p_K is the exact law at t_K, q_init the exact reverse process from the law sampling starts with,
    and q_k takes only step k with the sampler (`recurrence.local_errors`), plus the expected cost of a score
    error along the exact process, if there is one. Nothing cancels between steps.
    The structure is that of accumulation theorems for orthogonal score errors, with discretisation defects
    as the errors.
    """

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        moments = local_errors(self.target, self.process, self.sampler, schedule)
        steps = self.total(moments.mean_error, moments.variance, moments.target_variance)
        value = jnp.sum(steps) + self.ends(schedule, moments.carry[0])
        return value if self.score_error is None else value + self.score(schedule, moments.carry)

    def score(self, schedule: Schedule, carry: Float[Array, "points modes"]) -> Float[Array, ""]:
        """What the score error alone would cost along the exact process: the sum over its directions w of

            (metric at +w  +  metric at -w) / 2,      law at +-w: mean +-m, variance p_K +-S_1 + S_2

        with m and S_1 the linear responses (`score_responses`) and S_2 = (sum_a R_a Delta_a sqrt Sigma_a)^2 the
        variance of what the error adds to x, as if x moved along the flow. To second order in w it is the kernel's
        contraction at the exact law; unlike that it stays meaningful for large errors. It takes all times and
        their correlation together: unlike defects, score errors of one sign do add up in a network.
        """
        assert self.score_error is not None
        target, process, sampler = self.target, self.process, self.sampler
        responses = score_responses(target, process, sampler, schedule, carry)
        times = evaluation_times(process, sampler, schedule)
        variance = target.marginal_variance(process, schedule.times[-1])
        mean = process.signal(times)[:, None] * target.mean
        size = jnp.sqrt(target.marginal_variance(process, times))

        def cost(w: AffineError) -> Array:
            shift = jnp.sum(responses.mean * (w.shift - w.slope * mean), 0)
            first = -jnp.sum(responses.variance * w.slope, 0)
            second = jnp.sum(responses.mean * w.slope * size, 0) ** 2
            there, back = (
                self.total(shift, variance + s + second, variance) for s in (first, -first)
            )
            return 0.5 * (there + back)

        value = jnp.zeros((), times.dtype)
        known = self.score_error.mean_at(target, process, times)
        directions = self.score_error.directions(target, process, times)
        if known is not None:
            value += cost(known)
        if directions is not None:
            value += jnp.sum(jax.vmap(cost)(directions))
        return value

    def ends(self, schedule: Schedule, contraction: Float[Array, " modes"]) -> Float[Array, ""]:
        """The two sources that are no step: the law sampling starts with, and stopping at t_K."""
        target, process = self.target, self.process
        first, last = schedule.times[0], schedule.times[-1]
        mean, variance = self.start(schedule)
        change = contraction**2 * (variance - target.marginal_variance(process, first))
        p_last = target.marginal_variance(process, last)
        initialization = self.total(
            contraction * (mean - process.signal(first) * target.mean), p_last + change, p_last
        )
        truncation = self.total(
            (process.signal(last) - 1.0) * target.mean, p_last, jnp.asarray(target.eigenvalues)
        )
        return initialization + truncation

    def derivatives(self, schedule: Schedule) -> tuple[Array, Array, Array]:
        """Value, gradient and Hessian in the times, for stochasticity 0 at all steps.

        Then the contraction from t' to t_K depends on those two times only, each step's term on the times
        of its window, and the Hessian is a sum of small blocks: its cost is that of a few values, for any
        number of steps. What a score error costs ties all times together, and is differentiated as a whole. The two end
        times are held fixed: their entries are 0.
        """
        target, process, sampler = self.target, self.process, self.sampler
        times = schedule.times
        points, steps = windows(schedule, sampler.history_steps)
        end, still = times[-1], jnp.zeros(steps.shape[1], times.dtype)
        p_last = target.marginal_variance(process, end)

        def term(t: Array, k: Array) -> Array:
            local_error = window_moments(target, process, sampler, t, still, k, schedule.num_steps)
            carry = jnp.exp(log_contraction(target, process, t[-1], end, still[0]))
            exact = target.marginal_variance(process, t[-1])
            return self.total(*carried(local_error, carry, exact, p_last), p_last)

        def pieces(t: Array, k: Array) -> tuple[Array, Array, Array]:
            return forward_derivatives(lambda t: term(t, k), t)

        value, slope, curvature = jax.vmap(pieces)(times[points], jnp.arange(len(steps)))
        # at the ends of time, which do not move, derivatives need not exist
        inner = (points > 0) & (points < len(steps))
        slope = jnp.where(inner, slope, 0.0)
        curvature = jnp.where(inner[:, :, None] & inner[:, None], curvature, 0.0)
        place = jnp.asarray(points[..., None] == np.arange(times.shape[0]), times.dtype)
        whole = jnp.exp(log_contraction(target, process, times[0], end, still[0]))
        value = jnp.sum(value) + self.ends(schedule, whole)
        slope = jnp.einsum("kw,kwt->t", slope, place)
        curvature = jnp.einsum("kwv,kwt,kvu->tu", curvature, place, place)
        if self.score_error is None:
            return value, slope, curvature

        def score(moving: Array) -> Array:
            moved = Schedule(jnp.concatenate([times[:1], moving, times[-1:]]))
            return self.score(moved, to_the_end(log_contractions(target, process, moved)))

        more, along, bend = dense_derivatives(score, times[1:-1])
        return value + more, slope.at[1:-1].add(along), curvature.at[1:-1, 1:-1].add(bend)


OBJECTIVES: dict[str, type[LocalError] | type[TerminalError]] = {
    "local": LocalError,
    "terminal": TerminalError,
}
