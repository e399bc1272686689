"""Samplers of the reverse SDE, run on common Brownian paths.

The noise of every step is the integral of its kernel over the path, so that the distance of two
runs is a strong error.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxkernels as jk
from jaxkernels.prediction import AbstractDenoiser
from jaxkernels.samplers import AbstractSampler, as_sampler

WITH_DERIVATIVES = ("second_order", "tweedie")


def _kernels(name: str, slope: Array, h: float, u: Array, v: Array) -> Array:
    """Kernels (draws, points, particles, d) of the noise draws of a step, at its own times v.

    `slope` has the eigenvalues of the score's Jacobian at the start, u the uniform number, of every
    particle.
    """
    v = v[:, None, None]
    u = u[:, None]
    linear = jnp.exp((h - v) / 2.0) * jnp.ones_like(slope)
    early = jnp.where(v < h * u, 1.0, 0.0) * jnp.ones_like(slope)
    if name == "euler_maruyama":
        return jnp.ones_like(linear)[None]
    if name in ("exponential_integrator", "exact_mean"):
        return linear[None]
    if name == "rem":
        return jnp.stack([early, 1.0 - early])
    if name == "rei":
        return jnp.stack([jnp.exp((h * u - v) / 2.0) * early, linear * (1.0 - early)])
    if name == "second_order":
        return jnp.exp((0.5 + slope) * (h - v))[None]
    riccati = slope * jnp.exp(-v) / (1.0 - slope * jnp.expm1(-v))
    return (linear + 2.0 * jnp.sinh((h - v) / 2.0) * riccati)[None]


def step_with_draws(
    sampler: AbstractSampler,
    denoiser: AbstractDenoiser,
    step: jk.schedules.Step,
    x: Float[Array, "*shape"],
    draws: Float[Array, "draws *shape"],
    uniform: Float[Array, ""],
) -> Float[Array, "*shape"]:
    """A step of one sample with its normal draws, in their order, and its uniform number given."""
    left = iter(draws)

    def noise(variance: Array) -> Array:
        return jnp.sqrt(variance) * next(left)

    own = step._replace(uniform=uniform)
    return sampler.step(denoiser, noise, denoiser.process, own, x, ())[0]


def ends(
    name: str,
    steps: int,
    denoiser: AbstractDenoiser,
    start: Float[Array, "particles d"],
    path: Float[Array, "fine particles d"],
) -> Float[Array, "particles d"]:
    """Particles at time 0, in equal steps from the t_max of an OU process of rate 1.

    The increments of the path have the variance t_max / fine. Noise is multiplied by symmetric
    matrices that share the eigenvectors of the score's Jacobian at the start of the step.
    """
    process = denoiser.process
    horizon = float(np.asarray(process.t_max))
    fine, particles, dim = path.shape
    delta = horizon / fine
    block = fine // steps
    h = horizon / steps
    v = jnp.asarray((np.arange(block) + 0.5) * delta)
    sampler = as_sampler(name)

    def jacobian(x: Array, t: Array) -> Array:
        found = jax.jacfwd(lambda x: -denoiser(x, t).eps / process.noise(t))(x)
        return 0.5 * (found + found.T)

    def advance(x: Array, inputs: tuple) -> tuple[Array, None]:
        step, increments, key = inputs
        # on the lattice of the path, so that it splits where the step does
        at = jnp.round(jax.random.uniform(key, (particles,)) * block)
        u = jnp.minimum(at, block - 1) / block
        slopes = jnp.zeros((particles, dim))
        axes = jnp.broadcast_to(jnp.eye(dim), (particles, dim, dim))
        if name in WITH_DERIVATIVES:
            slopes, axes = jnp.linalg.eigh(jax.vmap(jacobian, (0, None))(x, step.time))
        weights = _kernels(name, slopes, h, u, v)
        along = jnp.einsum("bpi,pij->bpj", increments, axes)
        sums = jnp.sum(weights * along, 1)
        sizes = jnp.sqrt(delta * jnp.sum(weights**2, 1))
        units = jnp.where(sizes > 0, sums / jnp.where(sizes > 0, sizes, 1.0), 0.0)
        normal = jnp.einsum("npj,pij->pni", units, axes)

        take = functools.partial(step_with_draws, sampler, denoiser, step)
        return jax.vmap(take)(x, normal, u), None

    rows = jk.Schedule(np.linspace(horizon, 0.0, steps + 1), 1.0).steps()
    keys = jax.random.split(jax.random.key(steps), steps)
    inputs = (rows, path.reshape(steps, block, particles, dim), keys)
    # as arguments: constants of a hundred megabytes would be compiled
    return jax.jit(lambda x, inputs: jax.lax.scan(advance, x, inputs)[0])(start, inputs)


def noised(
    data: Float[Array, "particles d"], process: jk.OU, fine: int, key: Array
) -> tuple[Float[Array, "particles d"], Float[Array, "fine particles d"]]:
    """Exact starts at t_max, and increments of Brownian paths."""
    horizon = process.t_max
    start_key, path_key = jax.random.split(key)
    fresh = jax.random.normal(start_key, data.shape)
    start = process.signal(horizon) * data + process.noise(horizon) * fresh
    scale = jnp.sqrt(jnp.asarray(horizon) / fine)
    return start, scale * jax.random.normal(path_key, (fine, *data.shape))
