"""What an optimal schedule minimises: functions of a schedule, differentiable, on a Gaussian target."""

from typing import Protocol

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import metrics
from ..evaluate import initial_moments, propagate_modes, reverse_exactly
from ..process import AbstractProcess
from ..recurrence import local_defects, mode_maps
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..target import Gaussian


class Objective(Protocol):
    """A differentiable, jittable function of a schedule."""

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]: ...


class _GaussianObjective(eqx.Module):
    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    metric: metrics.Metric = eqx.field(static=True)
    initialization: str = eqx.field(static=True)

    def total(self, mean_error: Array, variance: Array, reference: Array) -> Array:
        """The metric summed over modes, for any leading axes."""
        t = self.target
        value = metrics.per_mode(self.metric, t.weights, mean_error, variance, reference)
        return jnp.sum(value, -1)

    def start(self, schedule: Schedule) -> tuple[Array, Array]:
        return initial_moments(self.target, self.process, schedule.times[0], self.initialization)


class Terminal(_GaussianObjective):
    """metric(p_0, q): the exact error of the whole run. Errors of different steps may cancel in it.

    On a Gaussian that is the truth; on a network, which is not Gaussian, the cancellation is lost.
    """

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        maps = mode_maps(self.target, self.process, self.sampler, schedule)
        means, variances = propagate_modes(maps, self.sampler, *self.start(schedule))
        error = means[-1] - jnp.asarray(self.target.mean)
        return self.total(error, variances[-1], jnp.asarray(self.target.eigenvalues))


class Local(_GaussianObjective):
    """The sum over error sources of the terminal error that each source alone would cause:

        metric(p_K, q_init) + metric(p_0, p_K) + sum_k metric(p_K, q_k)

    where p_K is the exact law at t_K, q_init the exact reverse process from the law sampling starts with,
    and q_k takes only step k with the sampler (`recurrence.local_defects`). Nothing cancels between steps.
    The structure is that of seed 000's Theorem 3.1 in its orthogonal form, with discretisation defects
    as the errors.
    """

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        target, process = self.target, self.process
        maps = mode_maps(target, process, self.sampler, schedule)
        defects = local_defects(target, process, self.sampler, schedule, maps)
        steps = self.total(defects.mean_error, defects.variance, defects.target_variance)
        first, last = schedule.times[0], schedule.times[-1]
        mean, variance = self.start(schedule)
        rho = reverse_exactly(target, process, schedule, to_data=False)
        p_last = defects.target_variance[-1]
        initialization = self.total(
            rho * (mean - process.signal(first) * target.mean),
            p_last + rho**2 * (variance - target.marginal_variance(process, first)),
            p_last,
        )
        truncation = self.total(
            (process.signal(last) - 1.0) * target.mean, p_last, jnp.asarray(target.eigenvalues)
        )
        return jnp.sum(steps) + initialization + truncation


OBJECTIVES: dict[str, type[Local] | type[Terminal]] = {"local": Local, "terminal": Terminal}
