"""The same factors for the probability flow under Euler's and Heun's method in the process's time.

With v = f x - g^2/2 s the flow's velocity, one step from t to u = t - dt of length dt is

    Euler:  x' = P x,                    P = I - dt V_t at x,      V = f I - g^2/2 Hess log p
    Heun:   x' = (x + Q P x) / 2,        Q = I - dt V_u at P x

up to terms that do not depend on x. Two chains from x and y therefore part by at most |P| |x - y|
and |I + Q P| / 2 |x - y|, the matrices being averages over the segment between x and y, whose
eigenvalues lie in the interval that the curvature gives. Along the exact flow in y = x / a and w =
sigma^2, with g the score of y and H its slope,

    dy/dw = -g/2,      d^2 y / dw^2 = -(H g + Lap g) / 4,      E y.g = -d

from which the error of a single step follows by Taylor's formula. For Gaussians it is known
exactly: there x = a mu + (a^2 lambda + s^2)^(1/2) z at every time, with the same z.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._numerics import larger, safe_divide, safe_sqrt
from .._quadrature import gauss_legendre
from ..processes import AbstractProcess
from ._assumptions import curvature_interval, fisher, squared_mean, third_derivative
from ._step_factors import StepFactors, Steps, root_or_inf

_NODES = 32
_PANELS = 2


class _Point(NamedTuple):
    """The process at one end of every step."""

    w: Array
    signal: Array
    signal_rate: Array
    drift: Array
    reach: Array
    """dt g^2 / 2, the factor of the score in a step with the velocity at this point."""


class _Flow(NamedTuple):
    """What both methods are bounded by, for every step."""

    first: Array
    """|P|."""
    second: Array
    """|Q|."""
    both: Array
    """|I + Q P| / 2."""
    euler_error: Array
    """Of a single step along the exact flow, (E|error|^2)^(1/2)."""
    heun_error: Array


def euler_flow(steps: Steps) -> StepFactors:
    """x' = x - dt v(x, t)."""
    start, _ = _ends(steps)
    flow = _flow(steps)
    errors = steps.errors
    return _deterministic(
        flow.first + start.reach * errors.lipschitz, flow.euler_error, start.reach * errors.size
    )


def heun(steps: Steps) -> StepFactors:
    """x' = x - dt/2 (v(x, t) + v(x - dt v(x, t), u)); a last step to noise level 0 is Euler's."""
    start, end = _ends(steps)
    flow = _flow(steps)
    errors = steps.errors
    first = 0.5 * start.reach * flow.second
    second = 0.5 * end.reach * errors.lipschitz
    # the predicted point is as far from the exact one as Euler's method leaves it
    contraction = flow.both + first * errors.lipschitz
    contraction += second * (flow.first + start.reach * errors.lipschitz)
    score = first * errors.size + 0.5 * end.reach * errors.largest
    score += second * start.reach * errors.size
    full = _deterministic(contraction, flow.heun_error + second * flow.euler_error, score)
    present = steps.end > 0

    def kept(part: Array | float, last: Array | float) -> Array:
        return jnp.where(present[:, None] if jnp.ndim(part) == 2 else present, part, last)

    return jax.tree.map(kept, full, euler_flow(steps))


FLOW_SCHEMES: dict[str, Callable[[Steps], StepFactors]] = {"euler_flow": euler_flow, "heun": heun}
"""Those of the probability flow, by name."""


def _deterministic(contraction: Array, mean: Array, score: Array) -> StepFactors:
    """The factors of a step without noise."""
    return StepFactors.without_gain(contraction, mean, jnp.zeros_like(mean)[:, None], score)


def _flow(steps: Steps) -> _Flow:
    """What is known of the steps: exactly for Gaussians, else by the curvature."""
    return _of_gaussian(steps) if steps.known.exact else _of_curvature(steps)


def _ends(steps: Steps) -> tuple[_Point, _Point]:
    """Both ends of every step; the start for both in a step to noise level 0, which needs one."""
    process = steps.known.process
    present = steps.end > 0

    def both(first: Array, last: Array) -> Array:
        return jnp.stack([first, jnp.where(present, last, first)])

    t = both(steps.time, steps.next_time)
    reach = 0.5 * (steps.time - steps.next_time) * process.diffusion_squared(t)
    points = (
        both(steps.start, steps.end),
        both(steps.signal, steps.next_signal),
        process.signal_rate(t),
        process.drift(t),
        reach,
    )
    start, end = (_Point(*values) for values in zip(*points, strict=True))
    return start, end


def _of_gaussian(steps: Steps) -> _Flow:
    """The factors of every mode, and the exact errors of a step."""
    known = steps.known
    assert known.spectrum is not None
    assert known.multiplicities is not None
    weights = jnp.asarray(known.multiplicities)
    variances = jnp.asarray(known.spectrum)
    start, end = _ends(steps)
    dt = steps.time - steps.next_time

    def kept(at: _Point) -> Array:
        variance = at.signal[:, None] ** 2 * (variances + at.w[:, None])
        return (1.0 - dt * at.drift)[:, None] - safe_divide(at.reach[:, None], variance)

    def largest(size: Array) -> Array:
        return steps.largest(jnp.where(weights > 0, size, 0.0))

    p = kept(start)
    q = kept(end)
    deviation = start.signal[:, None] * safe_sqrt(variances + start.w[:, None])
    after = steps.next_signal[:, None] * safe_sqrt(variances + steps.end[:, None])
    # of the mean, in units of that of the data
    predicted = start.signal - dt * start.signal_rate - steps.next_signal
    correction = 0.5 * dt * (start.signal_rate - end.signal_rate)
    centre = predicted + correction
    corrected = centre[:, None] - 0.5 * (1.0 - q) * predicted[:, None]
    square = squared_mean(known)

    def error(mean: Array, factor: Array) -> Array:
        return safe_sqrt(mean**2 * square + (after - factor * deviation) ** 2 @ weights)

    factor = 0.5 * (1.0 + q * p)
    # together, as the graph of a largest value is long
    sizes = [*steps.size(jnp.stack([p, q, factor]), 1.0), jnp.abs(corrected)]
    first, second, both, correction = largest(jnp.stack(sizes))
    return _Flow(first, second, both, error(predicted, p), error(correction, factor))


def _of_curvature(steps: Steps) -> _Flow:
    """What the interval of the curvature and the third derivative give.

    The trapezoid rule errs by int (dt/2 - (r - u)) x''(r) dr, x'' the acceleration of the flow, and
    |dt/2 - (r - u)| <= dt sqrt(3)/4 (z^2 + 1/3), z = 1 - 2 (r - u) / dt, which is smooth.
    """
    start, end = _ends(steps)
    dt = steps.time - steps.next_time
    p, p_radius, _ = _kept(steps, start)
    q, q_radius, slope = _kept(steps, end)
    p_size, q_size = (steps.size(factor, 1.0) for factor in (p, q))
    both = steps.size(1.0 + p * q, 1.0) + q_size * p_radius + p_size * q_radius
    r, weight = _times_and_weights(steps)
    weight = weight * _acceleration(steps, r)
    passed = r - steps.next_time[:, None]
    z = 1.0 - 2.0 * safe_divide(passed, dt[:, None])
    euler_error = jnp.sum(weight * passed, -1)
    trapezoid = dt * np.sqrt(3.0) / 4.0 * jnp.sum(weight * (z**2 + 1.0 / 3.0), -1)
    return _Flow(
        p_size + p_radius,
        q_size + q_radius,
        0.5 * (both + p_radius * q_radius),
        euler_error,
        trapezoid + 0.5 * slope * euler_error,
    )


def _kept(steps: Steps, at: _Point) -> tuple[Array, Array, Array]:
    """Centre and half width of the eigenvalues of I - dt V, and the largest |dt V|."""
    m, top = curvature_interval(steps.known, at.w, at.w, 0.0)
    dt = steps.time - steps.next_time
    # an empty step moves nothing, also where the curvature has no bound
    reach = jnp.where(dt > 0, at.reach, 0.0) / at.signal**2
    low, high = (jnp.where(dt > 0, reach * end, 0.0) for end in (m, top))
    centre = dt * at.drift + 0.5 * (low + high)
    radius = 0.5 * (high - low)
    return 1.0 - centre, radius, steps.size(centre, 1.0) + radius


def _times_and_weights(steps: Steps) -> tuple[Array, Array]:
    """Nodes in time of every step, and their weights, (steps, nodes).

    The data change with the noise level, the process with time, and in a long step the one may
    happen within what is almost no part of the other. Some nodes are therefore equidistant in
    `Levels` and others in time; with p and q the densities of both in time, an integrand has the
    share p^3 / (p^3 + q^3) in the former. That is smooth in both, and so small where the former are
    dense that the others need not resolve it.
    """
    process = steps.known.process
    x, share, _ = gauss_legendre(_NODES, steps.start.dtype)
    # panels, as a step may hold many scales
    panels = (x + jnp.arange(_PANELS, dtype=x.dtype)[:, None]).reshape(-1) / _PANELS
    levels = steps.levels()
    w, _, _ = levels.at(panels)
    dt = (steps.time - steps.next_time)[:, None]
    by_level = process.time_at_sigma(safe_sqrt(jnp.where(w > 0, w, 1.0)))
    by_time = steps.next_time[:, None] + dt * x
    r = jnp.concatenate([by_level, by_time], -1)
    w = jnp.concatenate([w, process.sigma(by_time) ** 2], -1)
    # p / q; an empty step has no weight
    denser = dt * safe_divide(_level_rate(process, r), levels.rate(w))
    of_level, of_time = jnp.split(denser, [panels.size], -1)
    weight = [
        jnp.tile(share, _PANELS) / _PANELS * of_level**2 / (1.0 + of_level**3),
        share / (1.0 + of_time**3),
    ]
    return r, dt * jnp.concatenate(weight, -1)


def _acceleration(steps: Steps, r: Array) -> Array:
    """At least (E|x''|^2)^(1/2) along the exact flow at some times.

    x'' = a'' y - (a' w' + a w''/2) g - a w'^2 / 4 (H g + Lap g)
    """
    known = steps.known
    process = known.process
    w = process.sigma(r) ** 2
    a = process.signal(r)
    a1, a2 = _with_rate(process.signal_rate, r)
    w1, w2 = _with_rate(lambda t: _level_rate(process, t), r)
    quarter = 0.25 * a * w1**2
    m, top = curvature_interval(known, w, w, 0.0)
    # the factor of -g lies between these
    high, low = (a1 * w1 + 0.5 * a * w2 - quarter * end for end in (m, top))
    centre = 0.5 * (low + high)
    information = fisher(known, w)
    square = a2**2 * (known.second_moment + known.dim * w) + centre**2 * information
    # E y.g = -d
    square += 2.0 * a2 * centre * known.dim
    size = root_or_inf(larger(square, 0.0))
    size += 0.5 * (high - low) * root_or_inf(information)
    third = third_derivative(known, w)
    if third is None:
        return jnp.full_like(w, jnp.inf)
    return size + quarter * jnp.sqrt(known.dim) * third


def _level_rate(process: AbstractProcess, t: Array) -> Array:
    """w' = g^2 / a^2."""
    return process.diffusion_squared(t) / process.signal(t) ** 2


def _with_rate(fn: Callable[[Array], Array], t: Array) -> tuple[Array, Array]:
    """The values of a function of time and of its derivative."""
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))
