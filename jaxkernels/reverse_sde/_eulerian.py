"""The Eulerian scheme: Scharfetter-Gummel fluxes on a fixed uniform grid. A check of the other one.

It solves (2) of `_fokker_planck` for v = u p, with D = alpha^2 / 2:

    dv/dt = (D v' + D v V')' - (1 + alpha^2)/2 (p E)',     D V = -(x^2/4 + (1 + alpha^2)/2 log p).

Source: Scharfetter, Gummel, "Large-signal analysis of a silicon Read diode oscillator" (1969).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._numerics import larger
from ..distributions import GaussianMixture
from ._perturbation import (
    ErrorFunction,
    Solution,
    Worst,
    check_finite,
    difference_over_cells,
    evaluate_log_density,
    perturb,
)
from ._runge_kutta import map_stages, march, stage_times

# the grid reaches this many standard deviations from every mean
_REACH = 6.0

# where p_0 is below this share of its largest value u = 0 and the mass is 0: v / p_0 has no digits
_FLOOR = 1e-20


def solve_eulerian(
    target: GaussianMixture,
    error: ErrorFunction,
    theta: np.ndarray,
    cells: int,
    stochasticity_squared: Array,
    pieces: np.ndarray,
) -> Solution:
    """u, L, nodes and masses of the cells."""
    # forward in time the means move to 0, and the variances to 1
    means = np.append(np.asarray(target.means)[:, 0], 0.0)
    reach = _REACH * max(1.0, math.sqrt(np.max(target.eigenvalues)))
    with jax.ensure_compile_time_eval():
        times = jnp.asarray(theta)
        points = np.linspace(np.min(means) - reach, np.max(means) + reach, 2 * cells + 1)
        nodes = jnp.asarray(points[1::2])
        faces = jnp.asarray(points[2:-1:2])
        density, log_ratio, source, worst = _evaluate_on_grid(target, error, times, nodes, faces)
        check_finite(worst)
    u, value, masses = _drift_and_diffuse(
        times, nodes, density, log_ratio, source, stochasticity_squared, jnp.asarray(pieces)
    )
    return Solution(u, value, nodes, masses)


@eqx.filter_jit
def _evaluate_on_grid(
    target: GaussianMixture, error: ErrorFunction, times: Array, nodes: Array, faces: Array
) -> tuple[Array, Array, Array, Worst]:
    """p_0 at the nodes; at the stages, differences of log p and integrals of (p E)' over cells."""

    def at_stage(theta: Array) -> tuple[Array, Array, Worst]:
        found = perturb(target, error, faces, theta)
        log_ratio = jnp.diff(evaluate_log_density(target, nodes, theta))
        return log_ratio, difference_over_cells(found.density * found.error), found.worst

    log_ratio, source, worst = map_stages(at_stage, stage_times(times))
    return jnp.exp(evaluate_log_density(target, nodes)), log_ratio, source, worst


@jax.jit
def _drift_and_diffuse(
    times: Array,
    nodes: Array,
    density: Array,
    log_ratio: Array,
    source: Array,
    stochasticity_squared: Array,
    pieces: Array,
) -> tuple[Array, Array, Array]:
    """u, L and the masses of the cells."""
    width = nodes[1] - nodes[0]
    per_step = stochasticity_squared[pieces]
    alpha2 = per_step[:, None, None]
    # of V, from node to node
    drop = (jnp.diff(nodes**2) / 4.0 + 0.5 * (1.0 + alpha2) * log_ratio) / (0.5 * alpha2)
    right = 0.5 * alpha2 / width * bernoulli(-drop)
    left = 0.5 * alpha2 / width * bernoulli(drop)
    v = march(times, jnp.full(nodes.shape, width), right, left, source, per_step)
    kept = density > _FLOOR * jnp.max(density)
    u = jnp.where(kept, v / jnp.where(kept, density, 1.0), 0.0)
    masses = jnp.where(kept, width * density, 0.0)
    return u, 0.5 * jnp.sum(masses * u**2), masses


def bernoulli(z: Array) -> Array:
    """z / (e^z - 1), without overflow: |z| e^-|z| / (1 - e^-|z|), plus |z| for negative z."""
    size = jnp.abs(z)
    small = size < 1e-5
    safe = jnp.where(small, 1.0, size)
    decaying = jnp.where(small, 1.0 - 0.5 * size, -safe * jnp.exp(-safe) / jnp.expm1(-safe))
    return decaying + larger(-z, 0.0)
