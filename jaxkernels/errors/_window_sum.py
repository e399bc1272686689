"""Local errors as a sum over steps of functions of each step's window of coordinates.

Such a sum has a banded Hessian, made of small blocks that are found by forward differentiation in
the few coordinates of a window: its cost is that of a few values, for any number of steps.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import metrics
from .._compile import quick_jit
from .._derivatives import dense_derivatives, forward_derivatives, pointwise_derivatives
from .._linalg import full_precision
from .._numerics import safe_divide, safe_sqrt
from .._objective import AbstractCoordinateObjective
from .._padding import bucket
from .._types import AnyArray, constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import (
    denoiser_slopes,
    flow_values,
    local_error_coefficients,
    log_contractions,
    starts_on_trajectory,
    to_the_end,
    trajectory_error,
    window_indices,
    window_moments,
)
from ..samplers import AbstractSampler
from ..schedules import CoordinateProcess, Schedule, TimeCoordinate

_SMALLEST_MODES = 32
# spectra of more modes are represented by this many quadrature nodes where all modes would be
# summed
_MOST_MODES = 2**14
_FINE_NODES = 64


Derivatives: TypeAlias = tuple[
    Float[Array, " *items"], Float[Array, "window *items"], Float[Array, "window window *items"]
]
"""Value, gradient and Hessian in the coordinates of a window."""


class AbstractWindowSum(AbstractCoordinateObjective):
    """constant + sum_k metric(p_K, q_k), q_k wrong in step k only, without noise.

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

    def _windows(self, u: Array) -> tuple[np.ndarray, Array]:
        points, _ = window_indices(u.shape[0] - 1, self.sampler.window_steps)
        return points, jnp.arange(u.shape[0] - 1)

    def _times(self, u: Array) -> Array:
        """Times of `process` at coordinates."""
        return u if self.coordinate is None else self.coordinate.time(u)


class WindowSum(AbstractWindowSum):
    """The sum for any sampler: every window's moments are differentiated as a whole."""

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

    def _term(self, u: Array, step: Array, num_steps: Array, last: Array) -> Float[Array, ""]:
        """The metric between p_K and q_k for one window."""
        times = self._times(u)
        still = jnp.zeros(times.shape[0] - 1, times.dtype)
        run = (self.target, self.process, self.sampler, times, still, step, num_steps)
        moments = window_moments(*run)
        exact = self.target.marginal_variance(self.process, times[-1])
        p_last = self.target.marginal_variance(self.process, self._times(last))
        # the exact process from the step's end to t_K; equal at the last step, also at 0
        ratio = jnp.where(exact == p_last, 1.0, safe_divide(p_last, exact))
        variance = p_last + ratio * (moments.variance - exact)
        c = jnp.asarray(self.scale)
        values = (c * safe_sqrt(ratio) * moments.mean_error, c**2 * variance, c**2 * p_last)
        return jnp.sum(metrics.per_mode(self.metric, self.target.weights, *values))


class LinearWindowSum(AbstractWindowSum):
    """The sum for a sampler with one evaluation per step, which is linear in what it is given.

    Along the probability flow the local error, propagated to t_K, is per mode

        r(u_end) sum_b J_b sum_j c_bj0 D(u_j) + c_bj1 eps(u_j),      r = sqrt(S_K / S_end)

    with the `flow_values` D and eps and the `denoiser_slopes` J of every point and the coefficients
    c of every window (`local_error_coefficients`). The coefficients are those of all modes: their
    derivatives are those of few numbers, and the rest of the chain rule is products of matrices.
    """

    def value(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Float[Array, ""]:
        points, steps = self._windows(u)
        last = self._last(u)
        flow = self._flow(u, last)

        def term(window: Array, k: Array, flow: Array) -> Array:
            c = self._coefficients(window, k, num_steps)
            error = flow[-1, 2] * trajectory_error(c, flow[:, :2], flow[:, 3, 0])
            return jnp.sum(self._of_error(error, last))

        terms = jax.vmap(term)(u[points], steps, flow[points])
        return self.constant + jnp.sum(jnp.where(steps < num_steps, terms, 0.0))

    @full_precision
    def derivatives(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
        points, steps = self._windows(u)
        last = self._last(u)
        flow = pointwise_derivatives(lambda u: self._flow(u, last), u)

        def one(window: Array, k: Array, *flow: Array) -> tuple[Array, Array, Array]:
            c = forward_derivatives(lambda u: self._coefficients(u, k, num_steps), window)
            error, slope, bend = _error_derivatives(c, flow)
            value, f, ff = forward_derivatives(lambda e: self._of_error(e, last), error)
            gradient = jnp.einsum("im,aim->a", f, slope)
            bent = jnp.einsum("ijm,aim->ajm", ff, slope)
            hessian = jnp.einsum("ajm,bjm->ab", bent, slope) + jnp.einsum("im,abim->ab", f, bend)
            return jnp.sum(value), gradient, hessian

        terms = jax.vmap(one)(u[points], steps, *(values[points] for values in flow))
        return assemble(self.constant, *terms, points, num_steps)

    def _last(self, u: Float[Array, " points"]) -> Float[Array, " modes"]:
        """sqrt(S_K)."""
        return flow_values(self.target, self.process, self._times(u[-1:]))[1][0]

    def _flow(
        self, u: Float[Array, " points"], last: Float[Array, " modes"]
    ) -> Float[Array, "points 4 2 modes"]:
        """D, eps, r and J at every point, of the random part of x and of its mean."""
        times = self._times(u)
        predicted, deviation = flow_values(self.target, self.process, times)
        slope = denoiser_slopes(self.target, self.process, times)
        # equal at the last point, also where both are 0
        ratio = jnp.where(deviation == last, 1.0, safe_divide(last, deviation))
        mean = jnp.broadcast_to(self.target.mean, ratio.shape)
        of_both = jnp.stack([ratio, slope], 1)
        of_mean = jnp.stack([mean, jnp.zeros_like(mean)], 1)
        own = (jnp.concatenate([values, of_both], 1) for values in (predicted, of_mean))
        return jnp.stack(list(own), 2)

    def _coefficients(
        self, u: Array, step: Array, num_steps: Array
    ) -> Float[Array, "terms window 2"]:
        run = (self.process, self.sampler, self._times(u), step, num_steps)
        return local_error_coefficients(*run)

    def _of_error(
        self, error: Float[Array, "2 modes"], last: Float[Array, " modes"]
    ) -> Float[Array, " modes"]:
        """The metric per mode of an error of sqrt(S_K) xi + mean."""
        c = jnp.asarray(self.scale)
        # a negative amplitude puts every sample on the wrong side of the mean, and counts with its
        # sign
        amplitude = last + error[0]
        values = (c * error[1], c**2 * amplitude * jnp.abs(amplitude), (c * last) ** 2)
        return metrics.per_mode(self.metric, self.target.weights, *values)


def window_sum(bound, coordinate: TimeCoordinate, t_min: float) -> WindowSum | LinearWindowSum:
    """The sum for a bound `LocalError`, of schedules from the coordinate's start to `t_min`."""
    ends, scale = window_constants(bound, coordinate, constant(t_min))
    ends = constant(np.sum(np.asarray(ends)))
    target = pad_modes(bound.target)
    sampler = bound.sampler
    linear = sampler.nfe_per_step == 1 and starts_on_trajectory(sampler)
    form = LinearWindowSum if linear else WindowSum
    if not sampler.sigma_only:
        one = constant(1.0)
        return form(target, bound.process, coordinate, sampler, ends, one, bound.metric)
    canonical = CoordinateProcess.of(coordinate)
    return form(target, canonical, None, sampler, ends, scale, bound.metric)


class ScoredWindowSum(AbstractCoordinateObjective):
    """Local errors and the cost of a score error, which ties all times together.

    The latter is differentiated as a whole, so that there is no padding.
    """

    windows: WindowSum | LinearWindowSum
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


def _error_derivatives(
    coefficients: tuple[Float[Array, "..."], ...], flow: tuple[Float[Array, "window 4 *items"], ...]
) -> Derivatives:
    """Value, gradient and Hessian in the window's u of r(u_end) sum_bjc J_b c_bjc(u) g_jc(u_j).

    From those of c, and the values and two derivatives of (g, r, J) at every point.
    """
    c, c_a, c_ab = coefficients
    g = jnp.stack([values[:, :2] for values in flow], 1)
    total = _sum_derivatives((c[0], c_a[:, 0], c_ab[:, :, 0]), g)
    for term in range(1, len(c)):
        # their places are the last ones
        place = term - len(c)
        own = _sum_derivatives((c[term], c_a[:, term], c_ab[:, :, term]), g)
        own = _times_pointwise(own, [values[place, 3] for values in flow], place)
        total = jax.tree.map(jnp.add, total, own)
    return _times_pointwise(total, [values[-1, 2] for values in flow], -1)


def _sum_derivatives(
    coefficients: tuple[Float[Array, "..."], ...], g: Float[Array, "window 3 2 *items"]
) -> Derivatives:
    """Those of sum_jc c_jc(u) g_jc(u_j)."""
    c, c_a, c_ab = coefficients
    n = c.shape[0]
    one = np.eye(n)
    own = one[..., None] * c
    cross = one[:, :, None] * c_a[:, None]
    none = jnp.zeros_like(c_a)
    # what every derivative of a sum takes of g, g' and g'' at every point
    rows = (
        jnp.stack([c, none[0], none[0]], -2),
        jnp.stack([c_a, own, none], -2),
        jnp.stack([c_ab, cross + jnp.swapaxes(cross, 0, 1), one[..., None] * own[:, None]], -2),
    )
    flat = jnp.concatenate([row.reshape(-1, g[..., 0, 0].size) for row in rows])
    items = g.shape[3:]
    sums = (flat @ g.reshape(flat.shape[1], -1)).reshape(-1, *items)
    return sums[0], sums[1 : n + 1], sums[n + 1 :].reshape(n, n, *items)


def _times_pointwise(
    derivatives: Derivatives, factor: Sequence[Float[Array, " *items"]], place: int
) -> Derivatives:
    """Those of a product with a function of the u of one place in the window."""
    error, slope, bend = derivatives
    r, r_a, r_aa = factor
    here = np.eye(slope.shape[0])[place][:, None, None]
    at_place = here * slope[:, None]
    turned = at_place + jnp.swapaxes(at_place, 0, 1)
    return (
        r * error,
        r * slope + r_a * here * error,
        r * bend + r_a * turned + r_aa * here[:, None] * here * error,
    )


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


@quick_jit
def window_constants(
    bound, coordinate: TimeCoordinate, t_min: Float[Array, ""]
) -> tuple[Float[Array, " 2"], Float[Array, ""]]:
    """The two error sources that are no step, and x at t_min over that of the canonical process."""
    process = bound.process
    target = bound.target
    t_max = jnp.asarray(coordinate.start)
    ends = Schedule(jnp.stack([t_max, t_min]))
    contraction = to_the_end(log_contractions(target, process, ends))[0]
    y = jnp.exp(coordinate.coordinate(t_min))
    scale = process.signal(t_min) / (1.0 - y / coordinate.high)
    return bound.ends(ends, contraction), scale
