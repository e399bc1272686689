"""Local errors: each step's own error, propagated exactly to the end while all else is exact."""

import itertools
from collections.abc import Iterator
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._numerics import floored_log, safe_divide, safe_sqrt, smaller
from ..distributions import Gaussian, gaussian_prediction
from ..prediction import Predict, Prediction
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, check_advanced
from ..schedules import Schedule, Step
from ._affine import AffineMaps, advance, average, by_step
from ._coordinates import PerMode
from ._exact import log_contraction, log_contractions, to_the_end
from ._windows import (
    denoiser_slopes,
    flow_values,
    local_error_coefficients,
    trajectory_error,
    window_indices,
    window_step,
)


class StepMoments(eqx.Module):
    """Moments after one step that starts from the exact distribution.

    `mean_error` is against the exact mean a' mu, and `variance` that of x.
    `factor` is the step's own factor on x - E x. If it is negative the part of the variance that it
    explains counts with that sign: the distribution may be right, but every sample is on the wrong
    side. `injected` is the variance of the noise that the step adds.
    """

    mean_error: Float[Array, "*steps modes"]
    variance: Float[Array, "*steps modes"]
    factor: Float[Array, "*steps modes"]
    injected: Float[Array, "*steps modes"]


def window_moments(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    stochasticity_squared: Float[Array, " steps"],
    step: Int[Array, ""],
    num_steps: int | Int[Array, ""],
) -> StepMoments:
    """Moments after step number `step`, which is the last of a window of window_steps + 1 steps.

    The earlier steps of the window fill the multistep history from an exact trajectory: the sampler
    takes them, and x is put back onto the exact reverse process after each. Before the schedule's
    first step the window repeats its first time, and the history stays as it is at the start.

    x = mean + sum of independent unit normals times columns, the first of which is the distribution
    of x at the window's start; the exact reverse process and the sampler's noise add further ones.
    One directional derivative of the step per column propagates them all.

    The target is in its eigenbasis; every array runs along its modes.
    """
    if sampler.corrects:
        return _corrected_moments(target, process, sampler, times, step, num_steps)
    depth = sampler.history_steps
    # point by point, so that the sampler's own evaluations of the process are these same ones
    exact_mean = [process.signal(t) * target.mean for t in times]
    exact_variance = [target.marginal_variance(process, t) for t in times]

    def predict(x: Array, t: Array) -> Prediction:
        return gaussian_prediction(process, target.mean, target.eigenvalues, None, x, t)

    def interval(j: int) -> Step:
        return window_step(times, stochasticity_squared, step - depth, j, num_steps)

    start = jnp.zeros_like(exact_mean[0])
    state = (exact_mean[0], sampler.init_history(exact_mean[0]))
    first = safe_sqrt(exact_variance[0])
    columns = [(first, jax.jvp(sampler.init_history, (start,), (first,))[1])]
    for j in range(depth):
        after, moved, injected_noise = _take(sampler, predict, process, interval(j), state, columns)
        rho = jnp.exp(
            log_contraction(target, process, times[j], times[j + 1], stochasticity_squared[j])
        )
        if_real = partial(_choose, step - depth + j >= 0)
        # back onto the exact process: x shrinks by rho and gains fresh noise, independent of
        # what came before
        columns = [
            (rho * old[0], if_real(new[1], old[1])) for new, old in zip(moved, columns, strict=True)
        ]
        if sampler.stochastic:
            fresh = safe_sqrt(exact_variance[j + 1] - rho**2 * exact_variance[j])
            columns.append((fresh, jax.tree.map(jnp.zeros_like, state[1])))
            columns += [(start, _scaled(safe_sqrt(v), gain[1])) for v, gain in injected_noise]
        history = if_real(after[1], state[1])
        state = (exact_mean[j + 1], history)

    after, moved, injected_noise = _take(sampler, predict, process, interval(depth), state, columns)
    injected = sum((v * gain[0] ** 2 for v, gain in injected_noise), start=start)
    variance = sum((column[0] ** 2 for column in moved), start=injected)
    products = (new[0] * old[0] for new, old in zip(moved, columns, strict=True))
    correlated = sum(products, start=start)
    factor = safe_divide(correlated, exact_variance[depth])
    flipped = smaller(factor, 0.0) ** 2 * exact_variance[depth]
    return StepMoments(after[0] - exact_mean[-1], variance - 2.0 * flipped, factor, injected)


def _corrected_moments(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    step: Int[Array, ""],
    num_steps: int | Int[Array, ""],
) -> StepMoments:
    """The same for a deterministic sampler that corrects, of its `local_error_coefficients`."""
    coefficients = local_error_coefficients(process, sampler, times, step, num_steps)
    predicted, deviation = flow_values(target, process, times)
    mean = jnp.broadcast_to(target.mean, deviation.shape)
    of_mean = jnp.stack([mean, jnp.zeros_like(mean)], 1)
    slopes = denoiser_slopes(target, process, times)
    error = trajectory_error(coefficients, jnp.stack([predicted, of_mean], 2), slopes)
    amplitude = deviation[-1] + error[0]
    return StepMoments(
        mean_error=error[1],
        variance=amplitude * jnp.abs(amplitude),
        factor=safe_divide(amplitude, deviation[-2]),
        injected=jnp.zeros_like(amplitude),
    )


def _choose(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _scaled(factor: Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def _take(
    sampler: AbstractSampler,
    predict: Predict,
    process: AbstractProcess,
    interval: Step,
    state: PyTree,
    columns: list[PyTree],
) -> tuple[PyTree, list[PyTree], list[tuple[Array, PyTree]]]:
    """One step of (x, history): its mean, each column, and (variance, column) of injected noise."""

    def run(state: PyTree, drawn: list[Array]) -> tuple[PyTree, list[Array]]:
        variances: list[Array] = []

        def noise(variance: Array) -> Array:
            variances.append(variance)
            return drawn[len(variances) - 1] if drawn else jnp.zeros_like(state[0])

        advanced = sampler.step(predict, noise, process, interval, *state)
        return check_advanced(sampler, advanced), variances

    count = len(jax.eval_shape(run, state, [])[1])
    still = [jnp.zeros_like(state[0])] * count
    # what depends on times alone is computed once for all derivatives
    after, along, variances = jax.linearize(run, state, still, has_aux=True)
    moved = [along(column, still) for column in columns]
    at_rest = jax.tree.map(jnp.zeros_like, state)
    unit = jnp.ones_like(state[0])
    injected_noise = []
    for i, variance in enumerate(variances):
        drawn = [*still[:i], unit, *still[i + 1 :]]
        injected_noise.append((variance, along(at_rest, drawn)))
    return after, moved, injected_noise


class LocalErrors(eqx.Module):
    """Distribution at t_K when the sampler takes step k and the exact reverse process all others.

    `mean_error` is against the exact mean, `variance` is signed as in `StepMoments`,
    `target_variance` the exact one at t_K, and `contraction` the factor of a perturbation from each
    time to t_K. `moments` are those right after each step.
    """

    mean_error: Float[Array, "steps modes"]
    variance: Float[Array, "steps modes"]
    target_variance: Float[Array, " modes"]
    contraction: Float[Array, "points modes"]
    moments: StepMoments


def local_errors(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    num_steps: Int[Array, ""] | None = None,
) -> LocalErrors:
    """Every step's `window_moments`, propagated to the end by a contraction R:

        variance = Sigma_K + R^2 (V - Sigma'),       mean_error = R (mean after the step - a' mu).

    R is the product over the later steps of the exact factor of the probability flow and of what
    noise adds to it: the ratio of the sampler's own factor on x with its stochasticity to that
    without. (The exact reverse process of a large h forgets every error; a sampler that takes few
    steps does not.)

    A sampler for the reverse SDE alone is not defined without noise: its R is that of the exact
    reverse SDE. All steps are computed at once; those from `num_steps` on are padding. The target
    is in its eigenbasis.
    """
    count = schedule.num_steps if num_steps is None else num_steps
    if sampler.reverse_sde_only:
        return _reverse_sde_local_errors(target, process, sampler, schedule, count)
    times = schedule.times
    squared = schedule.stochasticity_squared
    points, steps = window_indices(schedule.num_steps, sampler.window_steps)

    def one(t: Array, w: Array, k: Array) -> StepMoments:
        return window_moments(target, process, sampler, t, w, k, count)

    none = jnp.zeros_like(squared)
    logs = log_contractions(target, process, Schedule.from_squared(times, none))
    over_steps = jax.vmap(one)
    windows = (times[points], jnp.arange(schedule.num_steps))
    if sampler.stochastic:
        # with noise and without, in one program
        pair = jnp.stack([squared, none])[:, steps]
        both = jax.vmap(lambda w: over_steps(windows[0], w, windows[1]))(pair)
        moments, still = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
        logs = logs + floored_log(safe_divide(jnp.abs(moments.factor), jnp.abs(still.factor)))
    else:
        moments = over_steps(windows[0], squared[steps], windows[1])
    contraction = to_the_end(logs)
    variance = target.marginal_variance(process, times)
    mean_error, final = propagate_error(moments, contraction[1:], variance[1:], variance[-1])
    return LocalErrors(mean_error, final, variance[-1], contraction, moments)


def _reverse_sde_local_errors(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    num_steps: int | Int[Array, ""],
) -> LocalErrors:
    """`local_errors` of a sampler for the reverse SDE alone, from its affine maps."""
    times = schedule.times
    mean = process.signal(times)[:, None] * target.mean
    exact = target.marginal_variance(process, times)
    steps = schedule.steps(sampler.history_steps, num_steps)
    maps = by_step(PerMode(target).affine_maps(process, sampler, steps))

    def one(maps: AffineMaps, mean: Array, variance: Array) -> tuple[Array, ...]:
        after = advance(maps, mean[None], variance[None, None])
        factor = maps.factor[0, 0]
        injected = maps.noise[0, 0]
        if maps.weights is not None:
            factor = average(maps, factor)
            injected = average(maps, injected)
        flipped = smaller(factor, 0.0) ** 2 * variance
        return after[0][0], after[1][0, 0] - 2.0 * flipped, factor, injected

    after, variance, factor, injected = jax.vmap(one)(maps, mean[:-1], exact[:-1])
    moments = StepMoments(after - mean[1:], variance, factor, injected)
    contraction = to_the_end(log_contractions(target, process, schedule))
    mean_error, final = propagate_error(moments, contraction[1:], exact[1:], exact[-1])
    return LocalErrors(mean_error, final, exact[-1], contraction, moments)


class ScoreResponses(eqx.Module):
    """How the distribution at t_K responds to score errors, everything else being exact.

        change of the mean     = sum_a mean_a (delta_a - Delta_a a(t_a) mu)
        change of the variance = - sum_a variance_a Delta_a

    per mode, a being the evaluation.
    """

    mean: Float[Array, "evaluations modes"]
    variance: Float[Array, "evaluations modes"]


def score_responses(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    contraction: Float[Array, "points modes"],
) -> ScoreResponses:
    """Responses to the score errors of every evaluation, along the exact reverse process.

    An error at evaluation a enters the step that makes it and, through the multistep history, the
    steps after. Each entry is propagated to the end by `contraction` (of `local_errors`); the
    covariance of x at the evaluation with x after the step is the exact one, rho Sigma. The target
    is in its eigenbasis.
    """
    depth = sampler.history_steps
    count = schedule.num_steps
    per_step = sampler.nfe_per_step
    points, steps = window_indices(schedule.num_steps, depth)

    def one(times: Array, squared: Array, step: Array) -> Array:
        return _window_response(target, process, sampler, times, squared, step, count)

    times = schedule.times[points]
    squared = schedule.stochasticity_squared[steps]
    response = jax.vmap(one)(times, squared, jnp.arange(count))
    at = jnp.stack(sampler.evaluation_times(process, schedule.steps()), axis=1)
    variance = target.marginal_variance(process, at)
    mean_total = jnp.zeros((count, per_step, target.mean.shape[0]), at.dtype)
    variance_total = jnp.zeros_like(mean_total)
    for later in range(min(depth + 1, count)):
        # evaluations of step k, seen by step k + later
        entry = response[later:, depth - later] * contraction[1 + later :, None]
        end = schedule.times[1 + later :]
        alpha2 = schedule.stochasticity_squared[later:]
        log_factor = jax.vmap(partial(log_contraction, target, process))
        rho = jnp.stack(
            [jnp.exp(log_factor(t, end, alpha2)) for t in at[: count - later].T], axis=1
        )
        correlated = 2.0 * contraction[1 + later :, None] * rho * variance[: count - later]
        mean_total = mean_total.at[: count - later].add(entry)
        variance_total = variance_total.at[: count - later].add(entry * correlated)
    return ScoreResponses(*(a.reshape(count * per_step, -1) for a in (mean_total, variance_total)))


def _window_response(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    stochasticity_squared: Float[Array, " steps"],
    step: Int[Array, ""],
    num_steps: int,
) -> Float[Array, "window_steps evaluations modes"]:
    """Derivative of x after a window's last step in the score errors of each of its evaluations.

    x is put back onto the exact mean before every step: what an earlier step does to x itself
    belongs there.
    """
    depth = sampler.history_steps
    exact_mean = [process.signal(t) * target.mean for t in times]

    def run(errors: Float[Array, "window_steps evaluations modes"]) -> Float[Array, " modes"]:
        history = sampler.init_history(exact_mean[0])
        x = exact_mean[0]
        for j in range(depth + 1):
            calls = itertools.count()

            def learned(x: Array, t: Array, j: int = j, calls: Iterator[int] = calls) -> Prediction:
                exact = gaussian_prediction(process, target.mean, target.eigenvalues, None, x, t)
                return exact.with_score_error(
                    errors[j, next(calls)], process.signal(t), process.noise(t)
                )

            interval = window_step(times, stochasticity_squared, step - depth, j, num_steps)
            run = (learned, jnp.zeros_like, process, interval, exact_mean[j], history)
            x, new = check_advanced(sampler, sampler.step(*run))
            history = _choose(step - depth + j >= 0, new, history)
        return x

    shape = (depth + 1, sampler.nfe_per_step)
    units = jnp.eye(shape[0] * shape[1], dtype=times.dtype).reshape(-1, *shape, 1)
    ones = jnp.ones((*shape, target.mean.shape[0]), times.dtype)
    columns = jax.vmap(lambda unit: jax.jvp(run, (0.0 * ones,), (unit * ones,))[1])(units)
    return columns.reshape(*shape, -1)


def propagate_error(
    local_error: StepMoments, contraction: Array, exact_variance: Array, end_variance: Array
) -> tuple[Array, Array]:
    """Mean error and signed variance at the end, to which the exact process propagates an error."""
    change = contraction**2 * (local_error.variance - exact_variance)
    return contraction * local_error.mean_error, end_variance + change
