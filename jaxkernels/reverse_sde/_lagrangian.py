"""The Lagrangian scheme: finite volumes that move with the probability flow.

In the quantile s = F_theta(x) there is no transport, and (2) of `_fokker_planck` becomes

    du/dt = (alpha^2/2) d/ds (p^2 du/ds) - (1 + alpha^2)/2 d(p E)/ds,     L = 1/2 int_0^1 u^2 ds.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._numerics import larger, smallest
from ..distributions import GaussianMixture
from ._perturbation import (
    PROCESS,
    ErrorFunction,
    Solution,
    Worst,
    check_finite,
    difference_over_cells,
    evaluate_log_density,
    evaluate_score,
    perturb,
)
from ._runge_kutta import map_stages, march, stage_times

# Cells reach this many standard deviations from every mean, ...
_REACH = 7.0
# ... and are spaced like quantiles of Cauchy distributions of this many standard deviations: fine
# in the modes, coarse but not empty between them.
_CAUCHY_SCALE = 3.0

# cells narrower than this many of the narrowest component's standard deviations are points for the
# source
_NARROW = 1e-5

# bisections that place a point to the last bit
_BISECTIONS = 60


class LagrangianGrid(NamedTuple):
    """Moving cells, and what the density and the error are on them at the stages of the steps."""

    times: Float[Array, " points"]
    nodes: Float[Array, " cells"]
    masses: Float[Array, " cells"]
    between: Float[Array, " faces"]
    density: Float[Array, "steps stages faces"]
    source: Float[Array, "steps stages cells"]


def solve_lagrangian(
    target: GaussianMixture,
    error: ErrorFunction,
    theta: np.ndarray,
    cells: int,
    stochasticity_squared: Array,
    pieces: np.ndarray,
) -> Solution:
    """u, L, nodes and masses of the cells."""
    grid = place_grid(target, error, theta, cells)
    u, value = diffuse(grid, stochasticity_squared, jnp.asarray(pieces))
    return Solution(u, value, grid.nodes, grid.masses)


def place_grid(
    target: GaussianMixture, error: ErrorFunction, theta: np.ndarray, cells: int
) -> LagrangianGrid:
    """Everything that does not depend on alpha.

    The cells have masses m_j, and between their nodes lie the masses n_{j+1/2}; the conductances at
    the faces are p^2 / n. Distances do not appear: as theta grows, cells between two modes are
    squeezed to less than the spacing of numbers, and their conductances exceed their masses by 20
    orders of magnitude.
    """
    points = _place_points(target, cells)
    half_masses = integrate_density(target, points)
    if not np.min(half_masses) > 0:
        thinnest = points[np.argmin(half_masses)]
        raise ValueError(
            f"target has a density of 0 (it underflows) at x = {thinnest:g}, within reach of a "
            "component."
        )
    with jax.ensure_compile_time_eval():
        times = jnp.asarray(theta)
        nodes = jnp.asarray(points[1::2])
        faces = jnp.asarray(points[2:-1:2])
        masses = jnp.asarray(half_masses[0::2] + half_masses[1::2])
        between = jnp.asarray(half_masses[1:-1:2] + half_masses[2::2])
        density, positions = _follow_flow(target, times, faces)
        source, worst = _evaluate_source(target, error, times, positions, masses)
        check_finite(worst)
    return LagrangianGrid(times, nodes, masses, between, density, source)


def _place_points(target: GaussianMixture, cells: int) -> np.ndarray:
    """2 cells + 1 points, faces and nodes in turn: equal steps of a smooth function of x (order 2).

    Only within reach of a component. Elsewhere the mass is negligible: one cell bridges the gap.
    """
    means = np.asarray(target.means)[:, 0]
    deviations = np.sqrt(np.asarray(target.eigenvalues)[:, 0])

    def level(x: np.ndarray) -> np.ndarray:
        return np.mean(np.arctan((x[..., None] - means) / (_CAUCHY_SCALE * deviations)), axis=-1)

    ends = _merge_intervals(means - _REACH * deviations, means + _REACH * deviations)
    lengths = np.diff(level(ends), axis=1)[:, 0]
    starts = np.cumsum(lengths) - lengths
    wanted = np.linspace(0.0, np.sum(lengths), 2 * cells + 1)
    stretch = np.searchsorted(starts, wanted, side="right") - 1
    wanted = level(ends[stretch, 0]) + wanted - starts[stretch]
    below, above = ends[stretch].T
    for _ in range(_BISECTIONS):
        middle = 0.5 * (below + above)
        left = level(middle) < wanted
        below = np.where(left, middle, below)
        above = np.where(left, above, middle)
    return 0.5 * (below + above)


def _merge_intervals(lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """The union of intervals, as disjoint ones (n, 2)."""
    merged: list[list[float]] = []
    for low, high in sorted(zip(lows, highs)):
        if merged and low <= merged[-1][1]:
            merged[-1][1] = max(high, merged[-1][1])
        else:
            merged.append([low, high])
    return np.array(merged)


def integrate_density(target: GaussianMixture, points: np.ndarray) -> np.ndarray:
    """Mass of p_0 between neighbouring points, to relative precision also in the tails.

    Each component's mass is a difference of the tails on its own side of the mean.
    """
    means = np.asarray(target.means)[:, 0]
    deviations = np.sqrt(np.asarray(target.eigenvalues)[:, 0])
    z = (points[:, None] - means) / (np.sqrt(2.0) * deviations)
    upper = np.vectorize(math.erfc)(z)
    lower = np.vectorize(math.erfc)(-z)
    right = z[1:] + z[:-1] > 0
    per_component = 0.5 * np.where(right, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
    return per_component @ np.asarray(target.weights)


@jax.jit
def _follow_flow(target: GaussianMixture, times: Array, faces: Array) -> tuple[Array, Array]:
    """p at the moving faces, and where they are, at the stage times: (steps, stages, faces).

    The faces follow the flow by Runge-Kutta in forward time.
    """
    # short against the fastest contraction, which is between the modes at theta = 0
    contraction = 0.5 * (1.0 + jnp.max(target.hessian(PROCESS, faces[:, None])))
    substeps = larger(jnp.ceil(contraction * (times[1] - times[0])), 1.0).astype(int)

    def step(x: Array, here: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        stages, end = here
        thetas = jnp.append(stages[::-1], end)

        def stage(x: Array, between: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            start, stop = between
            density = jnp.exp(evaluate_log_density(target, x, start))
            return _move(target, x, start, stop, substeps), (density, x)

        x, (density, positions) = jax.lax.scan(stage, x, (thetas[:-1], thetas[1:]))
        return x, (density[::-1], positions[::-1])

    return jax.lax.scan(step, faces, (stage_times(times), times[1:]))[1]


def _move(target: GaussianMixture, x: Array, start: Array, end: Array, substeps: Array) -> Array:
    """Points moved by the probability flow from `start` to `end`, by Runge-Kutta of order 4."""
    step = (end - start) / substeps.astype(x.dtype)

    def substep(i: Array, x: Array) -> Array:
        def stage(
            state: tuple[Array, Array], here: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            velocity, moved = state
            part, weight = here
            y = x + part * step * velocity
            now = start + (i.astype(x.dtype) + part) * step
            velocity = -0.5 * (y + evaluate_score(target, y, now))
            return (velocity, moved + weight * step * velocity), None

        parts = jnp.array([0.0, 0.5, 0.5, 1.0])
        weights = jnp.array([1.0, 2.0, 2.0, 1.0]) / 6.0
        return jax.lax.scan(stage, (jnp.zeros_like(x), x), (parts, weights))[0][1]

    return jax.lax.fori_loop(0, substeps, substep, x)


@eqx.filter_jit
def _evaluate_source(
    target: GaussianMixture, error: ErrorFunction, times: Array, positions: Array, masses: Array
) -> tuple[Array, Worst]:
    """The integral of (p E)' over the cells at the stage times, (steps, stages, cells)."""
    least = smallest(jnp.ravel(target.eigenvalues))

    def at_stage(here: tuple[Array, Array]) -> tuple[Array, Worst]:
        theta, x = here
        middles = 0.5 * (x[:-1] + x[1:])
        found = perturb(target, error, jnp.append(x, middles), theta)
        push = (found.density * found.error)[: len(x)]
        # where the flow has squeezed a cell, the difference over it has no digits, but the local
        # value has them all
        narrow = jnp.diff(x) < _NARROW * jnp.sqrt(1.0 + (least - 1.0) * jnp.exp(-theta))
        local = masses[1:-1] * (found.slope + found.error * found.score)[len(x) :]
        inner = jnp.where(narrow, local, jnp.diff(push))
        source = difference_over_cells(push).at[1:-1].set(inner)
        return source - masses * (jnp.sum(source) / jnp.sum(masses)), found.worst

    return map_stages(at_stage, (stage_times(times), positions))


@jax.jit
def diffuse(
    grid: LagrangianGrid, stochasticity_squared: Array, pieces: Array
) -> tuple[Array, Array]:
    """u and L for alpha^2 on the pieces that each step belongs to."""
    alpha2 = stochasticity_squared[pieces]
    rates = 0.5 * alpha2[:, None, None] * grid.density * (grid.density / grid.between)
    u = march(grid.times, grid.masses, rates, rates, grid.source, alpha2)
    return u, 0.5 * jnp.sum(grid.masses * u**2)
