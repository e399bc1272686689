"""The window of a step: the times it depends on, and its local error on an exact trajectory.

A step of a multistep sampler depends on the times of the steps before. With h = `window_steps`,
the window of step k holds the times t_{k-h}, ..., t_{k+1}. Before the first step it repeats the
first time, and the history stays as it is at the start.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._numerics import safe_divide, safe_sqrt
from ..distributions import Gaussian
from ..prediction import Predict, Prediction
from ..processes import EDM, AbstractProcess
from ..samplers import AbstractSampler, History, check_advanced
from ..schedules import Step


def window_indices(
    num_steps: int, earlier: int
) -> tuple[Int[np.ndarray, "steps window"], Int[np.ndarray, "steps window_steps"]]:
    """Indices into times (K, h + 2) and into steps (K, h + 1) of windows with h earlier times."""
    points = np.arange(num_steps)[:, None] - earlier + np.arange(earlier + 2)
    return np.maximum(points, 0), np.maximum(points[:, :-1], 0)


def window_step(
    times: Float[Array, " window"],
    stochasticity_squared: Float[Array, " window_steps"],
    first: Int[Array, ""],
    j: int,
    num_steps: int | Int[Array, ""],
) -> Step:
    """Step j of a window whose own first step has number `first`, negative before the schedule."""
    index = first + j
    return Step(
        time=times[j],
        next_time=times[j + 1],
        earlier_times=times[np.maximum(np.arange(j - 1, j - len(times) + 1, -1), 0)],
        stochasticity_squared=stochasticity_squared[j],
        completed=index,
        remaining=num_steps - 1 - index,
    )


def starts_on_trajectory(sampler: AbstractSampler) -> bool:
    """Whether the first evaluation of a step is at its start, where x is on the trajectory."""
    if type(sampler).evaluation_times is AbstractSampler.evaluation_times:
        return True  # the default
    with jax.ensure_compile_time_eval():
        none = jnp.zeros((), int)
        step = Step(jnp.asarray(2.0), jnp.asarray(1.0), jnp.zeros(0), jnp.zeros(()), none, none)
        return bool(sampler.evaluation_times(EDM(), step)[0] == step.time)


def local_error_coefficients(
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    step: Int[Array, ""],
    num_steps: int | Int[Array, ""],
) -> Float[Array, "terms window 2"]:
    """Local error of a deterministic step from an exact trajectory, in terms of that trajectory.

        x_after - x(t_end) = sum_b J_b sum_j c_bj0 D(t_j) + c_bj1 eps(t_j)
                    x(t_j) = a(t_j) D(t_j) + s(t_j) eps(t_j)

    with D the denoised point and eps the noise that the trajectory's own denoiser predicts. The
    earlier steps of the window fill the history; x is put back onto the trajectory after each.

    A sampler with one evaluation per step, at its start, is linear in all D and eps, so it is run
    on unit vectors: one call per step of the window, on arrays of 2 (h + 2) numbers, whatever the
    target. There is one term then, J_0 = 1.

    If the sampler corrects, x_after is the corrected point (in the schedule's last step, which is
    not corrected, the predicted one), and it is the corrected points that are put back. But the
    evaluations are at predicted points, off the trajectory by delta: the local error of a
    prediction from the trajectory. To first order each of the step's evaluations adds a term,

        D(x) = D(t_j) + J_b delta_j / a(t_j),      b = 1, ..., m: t_j = t_{k+2-m}, ..., t_{k+1},

    with m = `corrector_evaluations` and J = dD/dy the Jacobian of the denoiser in y = x / a.
    """
    depth = sampler.window_steps
    count = len(times)
    # what is predicted and where a step starts are told apart: an evaluation may be elsewhere
    units = jnp.eye(3 * count, dtype=times.dtype)
    found = units[: 2 * count].reshape(count, 2, -1)
    points = units[2 * count :]
    still = jnp.zeros(depth + 1, times.dtype)
    steps = [window_step(times, still, step - depth, j, num_steps) for j in range(depth + 1)]

    def advance(carry: tuple[Array, History], inputs: Any) -> tuple[tuple[Array, History], Array]:
        _, history = carry
        current, start, prediction = inputs
        run = (_always(prediction), jnp.zeros_like, process, current, start, history)
        after, new = check_advanced(sampler, sampler.step_from_corrected(*run))
        inside = current.completed >= 0
        history = jax.tree.map(lambda a, b: jnp.where(inside, a, b), new, history)
        return (after, history), after

    inputs = (jax.tree.map(lambda *rows: jnp.stack(rows), *steps), points[:-1], found[:-1])
    carry = (points[0], sampler.init_history(points[0]))
    # a loop where windows are long: compiling takes longer than running
    corrects = sampler.corrects
    (after, history), ends = jax.lax.scan(advance, carry, inputs, unroll=not corrects)
    if corrects:
        later = _next_step(times, step, num_steps)
        corrected = sampler.correct(Prediction(*found[-1]), process, later, after, history)
        after = jnp.where(step + 1 < num_steps, corrected, after)
    # x = a D + s eps, and what x(t_end) is
    scales = jnp.stack([process.signal(times), process.noise(times)], -1)
    own = jnp.eye(count, dtype=times.dtype)[1:, :, None] * scales

    def on_trajectory(after: Array, own: Array) -> Array:
        direct = after[..., : 2 * count].reshape(*after.shape[:-1], count, 2)
        return direct + after[..., 2 * count :, None] * scales - own

    error = on_trajectory(after, own[-1])[None]
    if not corrects:
        return error
    m = sampler.corrector_evaluations
    inside = (step - m + 1 + np.arange(m) >= 0)[:, None, None]
    delta = jnp.where(inside, on_trajectory(ends[-m:], own[-m:]), 0.0)
    # what is denoised otherwise is noise
    answer = safe_divide(after[: 2 * count].reshape(count, 2), scales)[-m:]
    return jnp.concatenate([error, (answer[:, 0] - answer[:, 1])[:, None, None] * delta])


def _next_step(
    times: Float[Array, " window"], step: Int[Array, ""], num_steps: int | Int[Array, ""]
) -> Step:
    """The step after a window's last one, of which only the start is known.

    After the schedule's last step there is none: what is returned then starts a step earlier, where
    all is finite, and is to be left out.
    """
    start = jnp.where(step + 1 < num_steps, times[-1], times[-2])
    return Step(
        time=start,
        next_time=start,
        earlier_times=times[-2:0:-1],
        stochasticity_squared=jnp.zeros((), times.dtype),
        completed=step + 1,
        remaining=num_steps - 2 - step,
    )


def trajectory_error(
    coefficients: Float[Array, "terms window 2"],
    values: Float[Array, "window 2 *items modes"],
    slopes: Float[Array, "window modes"],
) -> Float[Array, "*items modes"]:
    """A local error of `local_error_coefficients` on the flow of a Gaussian.

    **Arguments:**

    - `coefficients`: of a step.
    - `values`: D and eps at the times of its window.
    - `slopes`: of the denoiser there, see `denoiser_slopes`.

    **Returns:** the error, in the units of x.
    """
    terms = len(coefficients)
    factors = (1.0, *slopes[len(slopes) + 1 - terms :])
    total = jnp.zeros_like(values[0, 0])
    # term by term: a spectrum may be large
    for c, factor in zip(coefficients.reshape(terms, -1), factors):
        pairs = zip(c, values.reshape(c.size, *values.shape[2:]), strict=True)
        total = total + factor * sum((a * b for a, b in pairs), start=jnp.zeros_like(total))
    return total


def denoiser_slopes(
    target: Gaussian, process: AbstractProcess, times: Float[Array, " points"]
) -> Float[Array, "points modes"]:
    """dD/dy = a^2 lambda / S of a mode of variance lambda, with y = x / a."""
    signal = process.signal(times)[:, None] ** 2 * jnp.asarray(target.eigenvalues)
    return safe_divide(signal, signal + process.noise(times)[:, None] ** 2)


def two_evaluation_coefficients(
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " 2"],
    step: Int[Array, ""],
    num_steps: int | Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "3 2"], Float[Array, "2 2"]]:
    """Local error of a deterministic step with two evaluations, on an exact trajectory.

    The second evaluation, at time m, is off the trajectory by delta = x_m - x(m). To first order

        D(x_m) = D(m) + J delta / a(m),     eps(x_m) = eps(m) + (delta - J delta) / s(m),

    with J = dD/dy the Jacobian of the denoiser in y = x / a. So the local error is, to first order,

        x_after - x(t_end) = sum_j c_j0 D(t_j) + c_j1 eps(t_j)            t_j = t, m, t_end
                           + J sum_j r_j0 D(t_j) + r_j1 eps(t_j)          t_j = t, m

    What is left out is of second order in delta = O(h^2), hence O(h^5) in the step's length h.

    **Returns:** m, c and r.
    """
    current = window_step(times, jnp.zeros(1, times.dtype), step, 0, num_steps)
    middle = jnp.asarray(sampler.evaluation_times(process, current)[1], times.dtype)
    units = jnp.eye(10, dtype=times.dtype)
    calls = itertools.count()

    def predict(x: Array, t: Array) -> Prediction:
        if next(calls) == 0:
            return Prediction(units[0], units[1])
        a = process.signal(t)
        s = process.noise(t)
        off = x - a * units[2] - s * units[3]
        # J maps the combination of the first four onto that of the last four
        moved = jnp.concatenate([jnp.zeros(6, off.dtype), off[:4]])
        eps = units[3] + safe_divide(off - moved, s)
        return Prediction(units[2] + safe_divide(moved, a), eps, -safe_divide(eps, s))

    start = process.signal(times[0]) * units[0] + process.noise(times[0]) * units[1]
    end = process.signal(times[1]) * units[4] + process.noise(times[1]) * units[5]
    history = sampler.init_history(start)
    advanced = sampler.step(predict, jnp.zeros_like, process, current, start, history)
    after, _ = check_advanced(sampler, advanced)
    error = after - end
    return middle, error[:6].reshape(3, 2), error[6:].reshape(2, 2)


def flow_values(
    target: Gaussian, process: AbstractProcess, times: Float[Array, " points"]
) -> tuple[Float[Array, "points 2 modes"], Float[Array, "points modes"]]:
    """D, eps and x - E x of a trajectory of the probability flow, per unit of its xi.

    A mode of variance lambda is x = a mu + sqrt(S) xi, S = a^2 lambda + s^2, with the same xi at
    all times; its denoiser gives mu + a lambda xi / sqrt(S) and s xi / sqrt(S).
    """
    a = process.signal(times)[:, None]
    s = process.noise(times)[:, None]
    eigenvalues = jnp.asarray(target.eigenvalues)
    deviation = safe_sqrt(a**2 * eigenvalues + s**2)
    predicted = jnp.stack([a * eigenvalues, jnp.broadcast_to(s, deviation.shape)], axis=1)
    return safe_divide(predicted, deviation[:, None]), deviation


def _always(found: Float[Array, "2 space"]) -> Predict:
    def predict(x: Array, t: Array) -> Prediction:
        del x, t  # the start of the step
        return Prediction(*found)

    return predict
