"""The distribution of a sampler's result in one dimension, by quadrature instead of simulation.

The transfer operator of a step is (T f)(x) = E f(step(x)). Applied from the last step to the first,
and integrated over the distribution at the start, it gives E f of the samples.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.interpolate import make_interp_spline

import jaxkernels as jk
from benchmarks.discretisation.coupled_paths import step_with_draws
from jaxkernels.prediction import AbstractDenoiser
from jaxkernels.samplers import as_sampler

GRID = np.linspace(-9.0, 9.0, 241)
_DEGREE = 5
# nodes for a normal draw, and for the uniform number
_NORMAL = 10
_UNIFORM = 6


def expectations(
    name: str,
    steps: int,
    denoiser: AbstractDenoiser,
    density: Float[np.ndarray, " grid"],
    values: Float[np.ndarray, "grid functions"],
) -> Float[np.ndarray, " functions"]:
    """E f(X) of the samples, from functions and the density at t_max on `GRID`.

    In equal steps from the t_max of a process to 0.
    """
    process = denoiser.process
    schedule = jk.Schedule(np.linspace(float(np.asarray(process.t_max)), 0.0, steps + 1), 1.0)
    sampler = as_sampler(name)
    # the randomised ones draw before and after the random time
    draws, uniforms, weights = _nodes(sampler.randomised)

    @jax.jit
    def moved(step) -> Float[Array, "grid nodes"]:
        """Where every grid point goes, for every draw."""

        def one(x: Array, z: Array, u: Array) -> Array:
            return step_with_draws(sampler, denoiser, step, x[None], z[:, None], u)[0]

        over_nodes = jax.vmap(one, (None, 0, 0))
        return jax.vmap(over_nodes, (0, None, None))(jnp.asarray(GRID), draws, uniforms)

    rows = schedule.steps()
    for k in reversed(range(steps)):
        reached = np.asarray(moved(jax.tree.map(lambda leaf, k=k: leaf[k], rows)))
        spline = make_interp_spline(GRID, values, _DEGREE)
        values = np.einsum("gnf,n->gf", spline(reached), weights)
    # the trapezoidal rule, exact for what vanishes at both ends
    return (GRID[1] - GRID[0]) * density @ values


def _nodes(two: bool) -> tuple[Array, Array, Float[np.ndarray, " nodes"]]:
    """Normal draws (nodes, 2), uniform numbers, and their weights."""
    z, chance = np.polynomial.hermite_e.hermegauss(_NORMAL)
    chance = chance / chance.sum()
    if not two:
        return jnp.stack([z, z], 1), jnp.zeros(_NORMAL), chance
    u, share = np.polynomial.legendre.leggauss(_UNIFORM)
    points = list(itertools.product(zip(z, chance), zip(z, chance), zip(u, share)))
    draws = jnp.asarray([(a, b) for (a, _), (b, _), _ in points])
    uniforms = jnp.asarray([(1.0 + at) / 2.0 for _, _, (at, _) in points])
    weights = np.array([p * q * s / 2.0 for (_, p), (_, q), (_, s) in points])
    return draws, uniforms, weights
