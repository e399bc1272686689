"""Local defects: each step's own error, carried exactly to the end while everything else is exact."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._numerics import floored_log, safe_divide, safe_sqrt
from ..prediction import Prediction, Predictor
from ..process import AbstractProcess
from ..samplers import AbstractSampler, Interval
from ..schedules import Schedule
from ..target import Gaussian, gaussian_prediction
from ._affine import AffineMaps, linearise
from ._exact import log_contraction, log_contractions, to_the_end


class Defect(eqx.Module):
    """The law after one step that starts from the exact law: `mean_error` against a' mu, and `variance`.

    `factor` is the step's own factor on x - E x. If it is negative the part of the variance that it explains
    counts with that sign: the law may be right, but every sample is on the wrong side. `injected` is the
    variance of the noise that the step adds.
    """

    mean_error: Float[Array, "*steps modes"]
    variance: Float[Array, "*steps modes"]
    factor: Float[Array, "*steps modes"]
    injected: Float[Array, "*steps modes"]


def window_defect(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    stochasticity_squared: Float[Array, " steps"],
    step: Int[Array, ""],
    num_steps: int,
) -> Defect:
    """Defect of step number `step`, which is the last of a window of memory_steps + 1 steps.

    The earlier steps of the window fill the sampler's memory from an exact trajectory: the sampler takes
    them, and x is put back onto the exact reverse process after each. Before the schedule's first step
    the window repeats its first time, and the memory stays as it is at the start.

    x = mean + sum of independent unit normals times columns, the first of which is the law of x at the
    window's start; the exact reverse process and the sampler's noise add further ones. One directional
    derivative of the step per column carries them all.

    The target is in its eigenbasis; every array runs along its modes.
    """
    depth = sampler.memory_steps
    # point by point, so that the sampler's own evaluations of the process are these same ones
    exact_mean = [process.signal(t) * target.mean for t in times]
    exact_variance = [target.marginal_variance(process, t) for t in times]

    def predict(x: Array, t: Array) -> Prediction:
        return gaussian_prediction(process, target.mean, target.eigenvalues, None, x, t)

    def interval(j: int) -> Interval:
        index = step - depth + j
        ends = index <= 0, index == num_steps - 1
        return Interval(times[j], times[j + 1], times[max(j - 1, 0)], stochasticity_squared[j], *ends)

    start = jnp.zeros_like(exact_mean[0])
    state = (exact_mean[0], sampler.memory(exact_mean[0]))
    first = safe_sqrt(exact_variance[0])
    columns = [(first, jax.jvp(sampler.memory, (start,), (first,))[1])]
    for j in range(depth):
        after, moved, noises = _take(sampler, predict, process, interval(j), state, columns)
        rho = jnp.exp(log_contraction(target, process, times[j], times[j + 1], stochasticity_squared[j]))
        if_real = partial(_choose, step - depth + j >= 0)
        # back onto the exact process: x shrinks by rho and gains fresh noise, independent of what came before
        columns = [(rho * old[0], if_real(new[1], old[1])) for new, old in zip(moved, columns, strict=True)]
        if sampler.stochastic:
            fresh = safe_sqrt(exact_variance[j + 1] - rho**2 * exact_variance[j])
            columns.append((fresh, jax.tree.map(jnp.zeros_like, state[1])))
            columns += [(start, _scaled(safe_sqrt(v), gain[1])) for v, gain in noises]
        memory = if_real(after[1], state[1])
        state = (exact_mean[j + 1], memory)

    after, moved, noises = _take(sampler, predict, process, interval(depth), state, columns)
    injected = sum((v * gain[0] ** 2 for v, gain in noises), start=start)
    variance = sum((column[0] ** 2 for column in moved), start=injected)
    products = (new[0] * old[0] for new, old in zip(moved, columns, strict=True))
    correlated = sum(products, start=start)
    factor = safe_divide(correlated, exact_variance[depth])
    flipped = jnp.minimum(factor, 0.0) ** 2 * exact_variance[depth]
    return Defect(after[0] - exact_mean[-1], variance - 2.0 * flipped, factor, injected)


def _choose(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _scaled(factor: Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def _take(
    sampler: AbstractSampler,
    predict: Predictor,
    process: AbstractProcess,
    interval: Interval,
    state: PyTree,
    columns: list[PyTree],
) -> tuple[PyTree, list[PyTree], list[tuple[Array, PyTree]]]:
    """One step of (x, memory): of its mean, of each column, and (variance, column) of each of its noises."""

    def run(state: PyTree, drawn: list[Array]) -> tuple[PyTree, list[Array]]:
        variances: list[Array] = []

        def noise(variance: Array) -> Array:
            variances.append(variance)
            return drawn[len(variances) - 1] if drawn else jnp.zeros_like(state[0])

        return sampler.step(predict, noise, process, interval, *state), variances

    after, variances = run(state, [])
    moved = [jax.jvp(lambda s: run(s, [])[0], (state,), (column,))[1] for column in columns]
    still, unit = [jnp.zeros_like(state[0])] * len(variances), jnp.ones_like(state[0])
    noises = []
    for i, variance in enumerate(variances):

        def drawn(value: Array, i: int = i) -> PyTree:
            return run(state, [*still[:i], value, *still[i + 1 :]])[0]

        noises.append((variance, jax.jvp(drawn, (still[i],), (unit,))[1]))
    return after, moved, noises


def windows(schedule: Schedule, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (K, depth + 2) into times and (K, depth + 1) into steps of every step's window."""
    points = np.arange(schedule.num_steps)[:, None] - depth + np.arange(depth + 2)
    return np.maximum(points, 0), np.maximum(points[:, :-1], 0)


class LocalDefects(eqx.Module):
    """Law at t_K when the sampler takes step k and the exact reverse process all others.

    `mean_error` is against the exact mean, `variance` is signed as in `Defect`, `target_variance` the exact
    one at t_K, and `contraction` the factor that carries a perturbation over the whole schedule. `defects`
    are the defects themselves, right after each step.
    """

    mean_error: Float[Array, "steps modes"]
    variance: Float[Array, "steps modes"]
    target_variance: Float[Array, " modes"]
    contraction: Float[Array, " modes"]
    defects: Defect


def local_defects(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> LocalDefects:
    """Every step's `window_defect`, carried to the end by a contraction R:

        variance = Sigma_K + R^2 (V - Sigma'),       mean_error = R (mean after the step - a' mu).

    R is the product over the later steps of the exact factor of the probability flow and of what noise adds
    to it: the ratio of the sampler's own factor on x with its stochasticity to that without. (The exact
    reverse process of a large h forgets every error; a sampler that takes few steps does not.)

    All steps are computed at once. The target is in its eigenbasis.
    """
    times, squared = schedule.times, schedule.stochasticity_squared
    points, steps = windows(schedule, sampler.memory_steps)
    count = schedule.num_steps

    def one(t: Array, w: Array, k: Array) -> Defect:
        return window_defect(target, process, sampler, t, w, k, count)

    defects = jax.vmap(one)(times[points], squared[steps], jnp.arange(count))
    logs = log_contractions(target, process, Schedule.from_squared(times, jnp.zeros_like(squared)))
    if sampler.stochastic:
        still = jax.vmap(one)(times[points], jnp.zeros_like(squared)[steps], jnp.arange(count))
        ratio = safe_divide(jnp.abs(defects.factor), jnp.abs(still.factor))
        logs = logs + floored_log(ratio)
    carry = to_the_end(logs)
    variance = target.marginal_variance(process, times)
    mean_error, final = carried(defects, carry[1:], variance[1:], variance[-1])
    return LocalDefects(mean_error, final, variance[-1], carry[0], defects)


def carried(defect: Defect, contraction: Array, exact_variance: Array, end_variance: Array) -> tuple[Array, Array]:
    """Mean error and signed variance at the end when a defect is carried there by the exact process."""
    change = contraction**2 * (defect.variance - exact_variance)
    return contraction * defect.mean_error, end_variance + change


def mode_maps(target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule) -> AffineMaps:
    """The sampler's affine maps for the target's exact score, one block per mode. Needs an eigenbasis."""

    def predict(block: tuple[Array, Array], x: Array, t: Array) -> Prediction:
        mean, eigenvalue = block
        return gaussian_prediction(process, mean, eigenvalue, None, x, t)

    blocks = (jnp.asarray(target.mean)[:, None], jnp.asarray(target.eigenvalues)[:, None])
    return linearise(sampler, process, schedule.intervals(), predict, blocks, 1)
