"""Local defects: each step's own error, carried exactly to the end while everything else is exact."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._numerics import apply, product, safe_divide, transpose
from ..process import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..target import Gaussian, gaussian_prediction
from ._affine import AffineMaps, initial_state, linearise
from ._exact import contraction, to_the_end


class LocalDefects(eqx.Module):
    """Law at t_K when the sampler takes step k and the exact reverse process all others.

    `mean_error` against the exact mean, `variance` (negative where the step flips a mode's sign beyond
    its noise, see `metrics.w2_squared`), and the exact `target_variance` at t_K. `flipped` says where the
    step's factor on x is negative.
    """

    mean_error: Float[Array, "steps modes"]
    variance: Float[Array, "steps modes"]
    target_variance: Float[Array, "steps modes"]
    flipped: Bool[Array, "steps modes"]


def mode_maps(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> AffineMaps:
    """The sampler's affine maps for the target's exact score, one block per mode. Needs an eigenbasis."""

    def predict(block: tuple[Array, Array], x: Array, t: Array):
        mean, eigenvalue = block
        return gaussian_prediction(process, mean, eigenvalue, None, x, t)

    blocks = (jnp.asarray(target.mean)[:, None], jnp.asarray(target.eigenvalues)[:, None])
    return linearise(sampler, process, schedule.intervals(), predict, blocks, 1)


def local_defects(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    maps: AffineMaps,
) -> LocalDefects:
    """Every step's defect from the exact law (and, for multistep samplers, the exact history) before it.

    With x ~ N(a mu, Sigma) exact and memory what the sampler remembers of an exact trajectory, one step
    gives the variance V = F S F^T + Q where Sigma' would be right. A perturbation of the variance is
    carried by the square of the exact contraction R to the end, so

        variance = Sigma_K + R^2 (V - Sigma'),       mean_error = R (mean after the step - a' mu).

    If the step's factor on x is negative the part of V that it explains counts with that sign: the law
    may be right, but every sample is on the wrong side.

    `maps` are the sampler's `mode_maps`. All steps are computed at once. The target is in its eigenbasis.
    """
    times = schedule.times
    mean = process.signal(times)[:, None] * target.mean
    variance = target.marginal_variance(process, times)
    rho = contraction(target, process, times, schedule.stochasticity_squared)
    first = initial_state(sampler, mean[:1], variance[:1][None])
    remembered = first[0].shape[0] - 1
    if remembered and not sampler.memory_steps:
        raise ValueError(f"{type(sampler).__name__} has a memory but declares memory_steps = 0.")

    def exact_x(k: slice, memory: Array, across: Array, spread: Array) -> tuple[Array, Array]:
        """Law of the state before steps k: x exact, the memory with the given mean and covariances."""
        m = jnp.concatenate([mean[k][None], memory])
        rows = (
            jnp.concatenate([variance[k][None], across]),
            jnp.concatenate([across[:, None], spread], 1),
        )
        return m, jnp.concatenate([rows[0][None], rows[1]])

    def step(m: Array, s: Array) -> tuple[Array, Array, Array]:
        driven = product(maps.factor, s)
        after = product(driven, transpose(maps.factor)) + maps.noise
        return apply(maps.factor, m) + maps.shift, after, driven

    blank = jnp.zeros((remembered, *rho.shape), rho.dtype)
    state = exact_x(slice(-1), blank, blank, jnp.zeros((remembered, *blank.shape), rho.dtype))
    for _ in range(sampler.memory_steps):  # what the memory saw of the exact trajectory
        m, s, driven = step(*state)
        later = exact_x(slice(1, -1), m[1:, :-1], rho[:-1] * driven[1:, 0, :-1], s[1:, 1:, :-1])
        state = tuple(jnp.concatenate([a[..., None, :], b], -2) for a, b in zip(first, later))
    m, s, driven = step(*state)
    correlated = driven[0, 0]
    flipped = safe_divide(jnp.minimum(correlated, 0.0) ** 2, variance[:-1])
    carry = to_the_end(rho)[1:]
    return LocalDefects(
        carry * (m[0] - mean[1:]),
        variance[-1] + carry**2 * (s[0, 0] - 2.0 * flipped - variance[1:]),
        jnp.broadcast_to(variance[-1], rho.shape),
        correlated < 0,
    )
