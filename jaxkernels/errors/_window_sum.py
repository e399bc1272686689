"""Local errors as a sum over steps of functions of each step's window of coordinates.

Such a sum has a banded Hessian, made of small blocks that are found by forward differentiation in
the few coordinates of a window: its cost is that of a few values, for any number of steps.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import metrics
from .._derivatives import dense_derivatives, forward_derivatives
from .._numerics import safe_divide, safe_sqrt
from .._objective import AbstractCoordinateObjective
from .._padding import bucket
from .._types import AnyArray, constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import (
    log_contractions,
    to_the_end,
    window_coefficients,
    window_indices,
    window_moments,
)
from ..samplers import AbstractSampler
from ..schedules import CoordinateProcess, Schedule, TimeCoordinate

_SMALLEST_MODES = 64
# spectra of more modes are represented by this many quadrature nodes where all modes
# would be summed
_MOST_MODES = 2**14
_FINE_NODES = 64


class WindowSum(AbstractCoordinateObjective):
    """constant + sum_k metric(p_K, q_k), q_k wrong in step k only, without noise.

    Along the probability flow a mode of variance lambda is x = a mu + sqrt(S) xi with
    S = a^2 lambda + s^2 and the same xi at all times. For a sampler with one evaluation per step
    the window's coefficients c (`window_coefficients`) then give the mean mu sum_j c_j0 and the
    amplitude sum_j (c_j0 a_j lambda + c_j1 s_j) / sqrt(S_j) of x after the step.

    A sampler that depends on sigma alone is run in the process whose time is the coordinate;
    `scale` is the ratio of x at t_K in both.
    """

    target: Gaussian
    process: AbstractProcess
    coordinate: TimeCoordinate | None
    """How to find times of `process`; None if its times are the coordinates."""
    sampler: AbstractSampler
    constant: Float[AnyArray, ""]
    scale: Float[AnyArray, ""]
    metric: metrics.Metric = eqx.field(static=True)

    @classmethod
    def of(cls, bound, coordinate: TimeCoordinate, t_min: float) -> "WindowSum":
        """The sum for a bound `LocalError`, of schedules from the coordinate's start to `t_min`."""
        ends, scale = _constants(bound, coordinate, jnp.asarray(t_min))
        target = pad_modes(bound.target)
        process = bound.process
        sampler = bound.sampler
        if not sampler.sigma_only:
            one = constant(1.0)
            return cls(target, process, coordinate, sampler, ends, one, bound.metric)
        canonical = CoordinateProcess.of(coordinate)
        return cls(target, canonical, None, sampler, ends, scale, bound.metric)

    def value(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Float[Array, ""]:
        """The objective alone."""
        points, steps = self._windows(u)

        def term(u: Array, k: Array, last: Array) -> Array:
            return self._term(u, k, num_steps, last)

        terms = jax.vmap(term, (0, 0, None))(u[points], steps, u[-1])
        return self.constant + jnp.sum(jnp.where(steps < num_steps, terms, 0.0))

    def derivatives(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
        points, steps = self._windows(u)

        def one(u: Array, k: Array, last: Array) -> tuple[Array, Array, Array]:
            return forward_derivatives(lambda u: self._term(u, k, num_steps, last), u)

        terms = jax.vmap(one, (0, 0, None))(u[points], steps, u[-1])
        return assemble(self.constant, *terms, points, num_steps)

    def _windows(self, u: Array) -> tuple[np.ndarray, Array]:
        points, _ = window_indices(u.shape[0] - 1, self.sampler.history_steps)
        return points, jnp.arange(u.shape[0] - 1)

    def _term(self, u: Array, step: Array, num_steps: Array, last: Array) -> Float[Array, ""]:
        """The metric between p_K and q_k for one window."""
        target = self.target
        times, end = (u, last) if self.coordinate is None else self._times(u, last)
        p_last = target.marginal_variance(self.process, end)
        mean_error, variance, exact = self._after(times, step, num_steps)
        # the exact process from the step's end to t_K; equal at the last step, also
        # where both are 0
        ratio = jnp.where(exact == p_last, 1.0, safe_divide(p_last, exact))
        change = ratio * (variance - exact)
        c = jnp.asarray(self.scale)
        mean_error = c * safe_sqrt(ratio) * mean_error
        values = (mean_error, c**2 * (p_last + change), c**2 * p_last)
        return jnp.sum(metrics.per_mode(self.metric, target.weights, *values))

    def _times(self, u: Array, last: Array) -> tuple[Array, Array]:
        assert self.coordinate is not None
        return self.coordinate.time(u), self.coordinate.time(last)

    def _after(
        self, times: Array, step: Array, num_steps: Array
    ) -> tuple[Float[Array, " modes"], Float[Array, " modes"], Float[Array, " modes"]]:
        """Mean error, signed variance and exact variance per mode after the window's last step."""
        target = self.target
        process = self.process
        if self.sampler.nfe_per_step > 1:
            still = jnp.zeros(times.shape[0] - 1, times.dtype)
            moments = window_moments(target, process, self.sampler, times, still, step, num_steps)
            exact = target.marginal_variance(process, times[-1])
            return moments.mean_error, moments.variance, exact
        moments = flow_moments(target, process, self.sampler, times, step, num_steps)
        mean_error, amplitude, deviation = moments
        return mean_error, amplitude * jnp.abs(amplitude), deviation**2


class ScoredWindowSum(AbstractCoordinateObjective):
    """Local errors and the cost of a score error, which ties all times together.

    The latter is differentiated as a whole, so that there is no padding.
    """

    windows: WindowSum
    bound: Any
    """The `BoundLocalError` with the score error."""
    coordinate: TimeCoordinate
    t_min: Float[AnyArray, ""]

    padded: ClassVar[bool] = False

    def value(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Float[Array, ""]:
        return self.windows.value(u, num_steps) + self._cost(u[1:-1])

    def derivatives(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
        value, gradient, hessian = self.windows.derivatives(u, num_steps)

        more, slope, curvature = dense_derivatives(self._cost, u[1:-1])
        gradient = gradient.at[1:-1].add(slope)
        return value + more, gradient, hessian.at[1:-1, 1:-1].add(curvature)

    def _cost(self, moving: Float[Array, " interior"]) -> Float[Array, ""]:
        start = jnp.asarray(self.coordinate.start, moving.dtype)[None]
        end = jnp.asarray(self.t_min, moving.dtype)[None]
        times = jnp.concatenate([start, self.coordinate.time(moving), end])
        schedule = Schedule(times)
        logs = log_contractions(self.bound.target, self.bound.process, schedule)
        return self.bound.score(schedule, to_the_end(logs))


def assemble(
    constant: Float[AnyArray, ""],
    values: Float[Array, " steps"],
    slopes: Float[Array, "steps window"],
    curvatures: Float[Array, "steps window window"],
    points: Int[np.ndarray, "steps window"],
    num_steps: Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
    """Value, gradient and Hessian of a sum over steps from those of every window.

    Steps from `num_steps` on are padding. The end points do not move, and before the first step a
    window repeats the first time: their derivatives, which need not exist, are left out.
    """
    size = points.shape[0] + 1
    used = jnp.arange(size - 1) < num_steps
    inner = (points > 0) & (points < num_steps) & used[:, None]
    value = constant + jnp.sum(jnp.where(used, values, 0.0))
    slopes = jnp.where(inner, slopes, 0.0)
    curvatures = jnp.where(inner[:, :, None] & inner[:, None], curvatures, 0.0)
    gradient = jnp.zeros(size, slopes.dtype).at[points].add(slopes)
    hessian = jnp.zeros((size, size), slopes.dtype)
    hessian = hessian.at[points[:, :, None], points[:, None]].add(curvatures)
    return value, gradient, hessian


def limit_modes(target: Gaussian) -> Gaussian:
    """The target, or a quadrature of it whose error is far below any tolerance, for large spectra.

    With 64 nodes, sums of smooth functions over a spectrum agree to about 1e-10 relative.
    """
    large = np.shape(target.eigenvalues)[0] > _MOST_MODES
    return target.compress(_FINE_NODES) if large else target


def pad_modes(target: Gaussian) -> Gaussian:
    """The target with modes of weight 0, up to a power of two."""
    size = np.shape(target.eigenvalues)[0]
    extra = bucket(size, _SMALLEST_MODES) - size
    fields = (target.mean, target.eigenvalues, target.weights)
    arrays = [
        np.concatenate([np.asarray(values), np.full(extra, fill)])
        for values, fill in zip(fields, (0.0, 1.0, 0.0), strict=True)
    ]
    # weights of quadrature nodes may be negative, which is checked where a user gives them
    plain = Gaussian(np.zeros(size + extra), np.ones(size + extra))
    return eqx.tree_at(lambda g: (g.mean, g.eigenvalues, g.weights), plain, arrays)


def flow_moments(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    step: Int[Array, ""],
    num_steps: Int[Array, ""],
) -> tuple[Float[Array, " modes"], Float[Array, " modes"], Float[Array, " modes"]]:
    """Mean error, amplitude and exact standard deviation per mode after a deterministic step.

    For a sampler with one evaluation per step that starts on the probability flow. A negative
    amplitude puts every sample on the wrong side of the mean.
    """
    c = window_coefficients(process, sampler, times, step, num_steps)
    a = process.signal(times)
    s = process.noise(times)
    eigenvalues = jnp.asarray(target.eigenvalues)
    deviation = safe_sqrt(a[:, None] ** 2 * eigenvalues + s[:, None] ** 2)
    weight = (c[:, 0] * a)[:, None] * eigenvalues + (c[:, 1] * s)[:, None]
    amplitude = jnp.sum(safe_divide(weight, deviation), 0)
    return (jnp.sum(c[:, 0]) - a[-1]) * target.mean, amplitude, deviation[-1]


@eqx.filter_jit
def _constants(
    bound, coordinate: TimeCoordinate, t_min: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The two error sources that are no step, and x at t_min over that of the canonical process."""
    process = bound.process
    target = bound.target
    t_max = jnp.asarray(coordinate.start)
    ends = Schedule(jnp.stack([t_max, t_min]))
    contraction = to_the_end(log_contractions(target, process, ends))[0]
    y = jnp.exp(coordinate.coordinate(t_min))
    scale = process.signal(t_min) / (1.0 - y / coordinate.high)
    return bound.ends(ends, contraction), scale
