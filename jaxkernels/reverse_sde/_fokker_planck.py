"""How fast a small score error makes the samples' law leave the data's: the leading order of KL, for any 1-D density.

Clock: forward time tau from data (tau = 0) to noise (tau = T), dX = -X/2 dtau + dB, p = p_tau the law of X. The
reverse family with a free diffusion coefficient h(tau) >= 0, run in t = T - tau from the exact p_T with the score error
eps E, is

    dY = [Y/2 + (1 + h^2)/2 (grad log p + eps E)] dt + h dW,        KL(p_0 || law of Y_T) = L eps^2 + O(eps^3).     (1)

Here g = 1, so h^2 = alpha^2 with alpha the `stochasticity` of a schedule. Every variance-preserving process has the
same L at the same alpha, with `final_time` its integral of g^2: both sides only depend on tau = int g^2.

With u = (1/p) d law(Y)/d eps at eps = 0, p = p_tau and zero flux at infinity,

    du/dt + w u' = (h^2/2) (p u')' / p - (1 + h^2)/2 (p E)' / p,   w = (x + (log p)') / 2,   u = 0 at t = 0,        (2)
    L = 1/2 int u^2 p_0 dx   at t = T,

the law's linear response to the error. p is carried by the probability flow w, so in the quantile s = F_tau(x) there is
no transport and the equation is

    du/dt = (h^2/2) d/ds (p^2 du/ds) - (1 + h^2)/2 d(p E)/ds,      L = 1/2 int_0^1 u^2 ds.                          (3)

Assumed: p_0 is a mixture of normal laws with positive variances, and E does not grow faster than 1 / sqrt(p).

Source: Cao, Chen, Luo, Zhou, "Exploring the Optimal Choice for Generative Processes in Diffusion Models: ODE vs SDE"
(2023), eq. (10); (3) is (10) divided by p_tau, in quantiles.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..distributions import GaussianMixture
from ..processes import OU

ErrorFunction: TypeAlias = Callable[[Array, Array, Array], Array]
"""(x, tau, score) -> E: x and the score of p_tau at x of shape (n,), tau of shape (), E of shape (n,)."""


# Alexander's third-order diagonally implicit Runge-Kutta method: L-stable, and its last stage is the step's result
_GAMMA = 0.43586652150845900


_B1 = -(6 * _GAMMA**2 - 16 * _GAMMA + 1) / 4


_B2 = (6 * _GAMMA**2 - 20 * _GAMMA + 5) / 4


_STAGE_TIMES = np.array([_GAMMA, (1 + _GAMMA) / 2, 1.0])


_EARLIER = np.array([[0.0, 0.0, 0.0], [(1 - _GAMMA) / 2, 0.0, 0.0], [_B1, _B2, 0.0]])


# Lagrangian cells reach this many standard deviations from every mean, and are spaced like quantiles of Cauchy laws
# of this many standard deviations: fine in the modes, coarse but not empty between them
_REACH = 7.0


_SPREAD = 3.0


_FIXED_REACH = 6.0


_FIXED_FLOOR = 1e-20


# cells narrower than this many of the narrowest component's standard deviations are points for the source
_NARROW = 1e-5


_CLOCK = OU(rate=1.0)


class FokkerPlanckResult(eqx.Module):
    """L of (1), and what it was computed from.

    `u` is on the cells of the finest grid; int phi u p_0 dx, the rate at which E phi(Y_T) moves with eps, is
    sum(masses * u * phi(nodes)).
    """

    value: Float[Array, ""]
    """L, in nats per eps^2."""
    discretization_error: Float[Array, ""]
    """Estimate of |value - exact L|: how much the last refinement or extrapolation changed it."""
    mass_defect: Float[Array, ""]
    """|int u p_0| / int |u| p_0 on the finest grid; 0 but for rounding."""
    u: Float[Array, " cells"]
    """u at tau = 0: the relative change of the samples' density per eps."""
    nodes: Float[Array, " cells"]
    """Where, in data units."""
    masses: Float[Array, " cells"]
    """The cells' masses under p_0."""


@in_float64
def leading_order_1d(
    target: GaussianMixture,
    error: str | ErrorFunction,
    h_squared: Numbers,
    final_time: float,
    *,
    breakpoints: Numbers | None = None,
    cells: int = 1024,
    time_steps: int = 256,
    scheme: str = "lagrangian",
    richardson: bool = True,
) -> FokkerPlanckResult:
    """L of (1) for a one-dimensional mixture, by finite volumes; differentiable in `h_squared`.

    **Arguments:**

    - `error`: E(x, tau). "score" is the score of p_tau, so that eps is a relative error; "constant" is 1; or a function
      (x, tau, score) -> E, elementwise in x. A new function is compiled anew.
    - `h_squared`: h^2 >= 0, a number, or with n `breakpoints` n + 1 numbers, the first next to the data.
    - `final_time`: T > 0, in the clock of (1).
    - `breakpoints`: forward times tau in (0, T), increasing, at which h^2 jumps. Steps end there, so they also serve an
      error that jumps in time, if its value at the jump is that of the noise side (a <= tau < b).
    - `cells`, `time_steps`: of the finest grid, rounded up to multiples of 4 and possibly more steps with breakpoints.
    - `scheme`: "lagrangian" solves (3) in cells that move with the probability flow, for every h >= 0. "eulerian"
      solves (2) for u p on a fixed uniform grid by Scharfetter-Gummel fluxes. It is there as a check: it needs
      h^2 > 0 (well away from 0, or it is diffusive) and cells well below the narrowest standard deviation.
    - `richardson`: extrapolate from three grids, each with half the cells and steps of the next, assuming order 2 in
      space and 3 in time. False takes the finest, and uses the one below it for the estimated error only.

    Steps are geometric in tau + (smallest variance). Only `h_squared` may be traced, and under a transformation of the
    caller (jit, grad, vmap) 64-bit precision has to be on: the masses between modes are beyond float32. The derivative
    at h^2 = 0 is that of L, not 0; with modes many deviations apart it loses its digits below h^2 of about 1e-8.

    **Raises:** ValueError for a target that is not one-dimensional, has a variance of 0 or a component so faint that
    its density vanishes; h^2 < 0 (or 0 in the eulerian scheme), a wrong number of them, times outside their range,
    grids that are too small; and errors that are not finite or have another shape than x.
    """
    target = _checked(target)
    perturb = error if callable(error) else _checks.lookup("error", error, _ERRORS)
    solve = _checks.lookup("scheme", scheme, _SCHEMES)
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    edges = _edges(breakpoints, final_time)
    h_squared = _per_piece(h_squared, len(edges) - 1, positive=scheme == "eulerian")
    quarter_cells = -(-_checks.count("cells", cells, at_least=16) // 4)
    quarter_steps = -(-_checks.count("time_steps", time_steps, at_least=16) // 4)
    solutions = []
    for refinement in (1, 2, 4) if richardson else (2, 4):
        times, pieces = _time_grid(
            edges, refinement, quarter_steps, float(np.min(target.eigenvalues))
        )
        solutions.append(
            solve(target, perturb, times, refinement * quarter_cells, h_squared, pieces)
        )
    finest = solutions[-1]
    value, correction = _combine([solution.value for solution in solutions])
    local_error = _imbalance(finest.u, finest.masses)
    return FokkerPlanckResult(value, correction, local_error, finest.u, finest.nodes, finest.masses)


class _Solution(NamedTuple):
    u: Float[Array, " cells"]
    value: Float[Array, ""]
    nodes: Float[Array, " cells"]
    masses: Float[Array, " cells"]


class _Seen(NamedTuple):
    """Where the error is not finite, or its first place if it is."""

    x: Array
    tau: Array
    error: Array


@jax.jit
def _combine(values: list[Array]) -> tuple[Array, Array]:
    """L from two or three grids, coarsest first, and by how much the last grid or the last extrapolation moved it."""
    if len(values) == 2:
        return values[1], jnp.abs(values[1] - values[0])
    # order 2 is removed first, and then the order 3 that is left
    coarse, fine = (4.0 * values[i + 1] / 3.0 - values[i] / 3.0 for i in range(2))
    return fine + (fine - coarse) / 7.0, jnp.abs(fine - coarse) / 7.0


@jax.jit
def _imbalance(u: Array, masses: Array) -> Array:
    total = jnp.sum(masses * jnp.abs(u))
    return jnp.abs(jnp.sum(masses * u)) / jnp.where(total > 0, total, 1.0)


def _checked(target: GaussianMixture) -> GaussianMixture:
    if is_traced(target):
        raise ValueError("target is traced; only h_squared may be.")
    if target.means.shape[1] != 1:
        raise ValueError(f"target has dimension {target.means.shape[1]}; it must be 1.")
    if np.min(target.eigenvalues) <= 0:
        raise ValueError(
            f"target has a component of variance {np.min(target.eigenvalues):g}; all must be > 0."
        )
    return target


def _edges(breakpoints: Numbers | None, final_time: float) -> np.ndarray:
    inner = np.asarray(_checks.array("breakpoints", [] if breakpoints is None else breakpoints))
    edges = np.concatenate([[0.0], inner.reshape(-1), [final_time]])
    if inner.ndim != 1 or np.any(np.diff(edges) <= 0):
        raise ValueError(f"breakpoints = {breakpoints} must increase inside (0, {final_time:g}).")
    return edges


def _per_piece(h_squared: Numbers, count: int, positive: bool) -> Array:
    if not is_traced(h_squared):
        h_squared = _checks.array("h_squared", h_squared)
        if np.any(h_squared < 0):
            raise ValueError(
                f"h_squared must be >= 0; its smallest entry is {np.min(h_squared):g}."
            )
        if positive and np.any(h_squared == 0):
            raise ValueError("h_squared = 0 has no eulerian scheme; use scheme='lagrangian'.")
    elif jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "h_squared is traced without 64-bit precision; use jax.enable_x64(True) around it."
        )
    h_squared = jnp.asarray(h_squared, jnp.float64)
    if h_squared.shape not in ((), (count,)):
        raise ValueError(
            f"h_squared has shape {h_squared.shape}; with {count - 1} breakpoints it must be a number or have shape "
            f"({count},)."
        )
    return jnp.broadcast_to(h_squared, (count,))


def _time_grid(
    edges: np.ndarray, refinement: int, steps: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Times tau, increasing, and the piece that each step is in: equal steps of log(scale + tau) in every piece."""
    logs = np.log1p(edges / scale)
    counts = refinement * np.ceil(steps * np.diff(logs) / logs[-1] - 1e-9).astype(int)
    parts = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(logs[:-1], logs[1:], counts)]
    times = scale * np.expm1(np.concatenate([*parts, logs[-1:]]))
    times[np.append(0, np.cumsum(counts))] = (
        edges  # exactly, for errors that compare tau with an edge
    )
    return times, np.repeat(np.arange(len(counts)), counts)


# --- the Lagrangian scheme -------------------------------------------------------------------------------


def _lagrangian(
    target: GaussianMixture,
    error: ErrorFunction,
    grid: np.ndarray,
    cells: int,
    h_squared: Array,
    pieces: np.ndarray,
) -> _Solution:
    """u, L, nodes and masses of the cells.

    (3) in cells of mass m_j whose nodes have the masses n_{j+1/2} between them: conductances p^2 / n at the faces.
    Distances do not appear. As tau grows, cells between two modes are squeezed to less than the spacing of numbers,
    and their conductances exceed their masses by 20 orders of magnitude.
    """
    points = _points(target, cells)
    half_masses = _masses(target, points)
    if not np.min(half_masses) > 0:
        thinnest = points[np.argmin(half_masses)]
        raise ValueError(
            f"target has a density of 0 (it underflows) at x = {thinnest:g}, within reach of a component."
        )
    with jax.ensure_compile_time_eval():
        times, nodes, faces = (
            jnp.asarray(grid),
            jnp.asarray(points[1::2]),
            jnp.asarray(points[2:-1:2]),
        )
        masses = jnp.asarray(half_masses[0::2] + half_masses[1::2])
        between = jnp.asarray(half_masses[1:-1:2] + half_masses[2::2])
        density, positions = _along_flow(target, times, faces)
        source, seen = _sources(target, error, times, positions, masses)
        _check_errors(seen)
    u, value = _diffuse(times, masses, between, density, source, h_squared, jnp.asarray(pieces))
    return _Solution(u, value, nodes, masses)


def _points(target: GaussianMixture, cells: int) -> np.ndarray:
    """2 cells + 1 points, faces and nodes in turn: equal steps of a smooth function of x, so that the order is 2.

    Only within reach of a component. Elsewhere there is no mass to speak of, and one cell bridges the gap.
    """
    means = np.asarray(target.means)[:, 0]
    deviations = np.sqrt(np.asarray(target.eigenvalues)[:, 0])

    def level(x: np.ndarray) -> np.ndarray:
        return np.mean(np.arctan((x[..., None] - means) / (_SPREAD * deviations)), axis=-1)

    stretches: list[list[float]] = []
    for low, high in sorted(zip(means - _REACH * deviations, means + _REACH * deviations)):
        if stretches and low <= stretches[-1][1]:
            stretches[-1][1] = max(high, stretches[-1][1])
        else:
            stretches.append([low, high])
    ends = np.array(stretches)
    lengths = np.diff(level(ends), axis=1)[:, 0]
    starts = np.cumsum(lengths) - lengths
    wanted = np.linspace(0.0, np.sum(lengths), 2 * cells + 1)
    stretch = np.searchsorted(starts, wanted, side="right") - 1
    wanted = level(ends[stretch, 0]) + wanted - starts[stretch]
    below, above = ends[stretch].T
    for _ in range(60):
        middle = 0.5 * (below + above)
        left = level(middle) < wanted
        below, above = np.where(left, middle, below), np.where(left, above, middle)
    return 0.5 * (below + above)


def _masses(target: GaussianMixture, points: np.ndarray) -> np.ndarray:
    """Mass of p_0 between neighbouring points, from the tail on its own side of each mean: relative precision."""
    means, deviations = (
        np.asarray(target.means)[:, 0],
        np.sqrt(np.asarray(target.eigenvalues)[:, 0]),
    )
    z = (points[:, None] - means) / (np.sqrt(2.0) * deviations)
    upper, lower = np.vectorize(math.erfc)(z), np.vectorize(math.erfc)(-z)
    right = z[1:] + z[:-1] > 0
    return (
        0.5
        * np.where(right, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
        @ np.asarray(target.weights)
    )


@jax.jit
def _along_flow(target: GaussianMixture, times: Array, faces: Array) -> tuple[Array, Array]:
    """p at the moving faces, and where they are, at the stage times: (steps, stages, faces).

    The faces follow the flow by Runge-Kutta in forward time.
    """
    # short against the fastest contraction, which is between the modes at tau = 0
    contraction = 0.5 * (1.0 + jnp.max(target.hessian(_CLOCK, faces[:, None])))
    substeps = jnp.maximum(jnp.ceil(contraction * (times[1] - times[0])), 1.0).astype(int)

    def move(x: Array, start: Array, end: Array) -> Array:
        step = (end - start) / substeps

        def substep(i: Array, x: Array) -> Array:
            def stage(
                carry: tuple[Array, Array], here: tuple[Array, Array]
            ) -> tuple[tuple[Array, Array], None]:
                velocity, moved = carry
                part, weight = here
                y = x + part * step * velocity
                velocity = -0.5 * (y + _score(target, y, start + (i + part) * step))
                return (velocity, moved + weight * step * velocity), None

            classical = jnp.array([0.0, 0.5, 0.5, 1.0]), jnp.array([1.0, 2.0, 2.0, 1.0]) / 6.0
            return jax.lax.scan(stage, (jnp.zeros_like(x), x), classical)[0][1]

        return jax.lax.fori_loop(0, substeps, substep, x)

    def step(x: Array, here: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        stages, end = here
        taus = jnp.append(stages[::-1], end)

        def stage(x: Array, between: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            density = jnp.exp(target.log_density(_CLOCK, x[:, None], between[0]))
            return move(x, *between), (density, x)

        x, (density, positions) = jax.lax.scan(stage, x, (taus[:-1], taus[1:]))
        return x, (density[::-1], positions[::-1])

    return jax.lax.scan(step, faces, (_stage_times(times), times[1:]))[1]


@eqx.filter_jit
def _sources(
    target: GaussianMixture, error: ErrorFunction, times: Array, positions: Array, masses: Array
) -> tuple[Array, _Seen]:
    """The integral of (p E)' over the cells at the stage times, (steps, stages, cells)."""
    least = jnp.min(target.eigenvalues)

    def at(here: tuple[Array, Array]) -> tuple[Array, _Seen]:
        tau, x = here
        middles = 0.5 * (x[:-1] + x[1:])
        density, values, slopes, scores, seen = _at(target, error, jnp.append(x, middles), tau)
        faces, inside = slice(None, len(x)), slice(len(x), None)
        push = (density * values)[faces]
        # where the flow has squeezed a cell, the difference over it has no digits, but the local value has them all
        narrow = jnp.diff(x) < _NARROW * jnp.sqrt(1.0 + (least - 1.0) * jnp.exp(-tau))
        local = masses[1:-1] * (slopes + values * scores)[inside]
        source = _total(push).at[1:-1].set(jnp.where(narrow, local, jnp.diff(push)))
        return source - masses * (jnp.sum(source) / jnp.sum(masses)), seen

    return _map_stages(at, (_stage_times(times), positions))


@jax.jit
def _diffuse(
    times: Array,
    masses: Array,
    between: Array,
    density: Array,
    source: Array,
    h_squared: Array,
    pieces: Array,
) -> tuple[Array, Array]:
    """u and L."""
    h_squared = h_squared[pieces]
    rates = 0.5 * h_squared[:, None, None] * density * (density / between)
    u = _march(times, masses, rates, rates, source, h_squared)
    return u, 0.5 * jnp.sum(masses * u**2)


# --- the Eulerian scheme ---------------------------------------------------------------------------------


def _eulerian(
    target: GaussianMixture,
    error: ErrorFunction,
    grid: np.ndarray,
    cells: int,
    h_squared: Array,
    pieces: np.ndarray,
) -> _Solution:
    """u, L, nodes and masses of the cells: dv/dt = (D v' + D v V')' - (1 + h^2)/2 (p E)' for v = u p, D = h^2/2,

        D V = -(x^2/4 + (1 + h^2)/2 log p).

    Where p_0 is negligible u = 0 and the mass is 0: there v / p_0 has no digits.
    """
    means = np.append(
        np.asarray(target.means)[:, 0], 0.0
    )  # forward in time they move to 0, and variances to 1
    reach = _FIXED_REACH * max(1.0, math.sqrt(np.max(target.eigenvalues)))
    with jax.ensure_compile_time_eval():
        times = jnp.asarray(grid)
        points = np.linspace(np.min(means) - reach, np.max(means) + reach, 2 * cells + 1)
        nodes, faces = jnp.asarray(points[1::2]), jnp.asarray(points[2:-1:2])
        density, log_ratio, source, seen = _on_grid(target, error, times, nodes, faces)
        _check_errors(seen)
    u, value, masses = _drift_and_diffuse(
        times, nodes, density, log_ratio, source, h_squared, jnp.asarray(pieces)
    )
    return _Solution(u, value, nodes, masses)


@eqx.filter_jit
def _on_grid(
    target: GaussianMixture, error: ErrorFunction, times: Array, nodes: Array, faces: Array
) -> tuple[Array, Array, Array, _Seen]:
    """p_0, and differences of log p between nodes and integrals of (p E)' over cells at the stage times, as above."""

    def at(tau: Array) -> tuple[Array, Array, _Seen]:
        density, values, _, _, seen = _at(target, error, faces, tau)
        return (
            jnp.diff(target.log_density(_CLOCK, nodes[:, None], tau)),
            _total(density * values),
            seen,
        )

    seen = _map_stages(at, _stage_times(times))
    return jnp.exp(target.log_density(_CLOCK, nodes[:, None])), *seen


@jax.jit
def _drift_and_diffuse(
    times: Array,
    nodes: Array,
    density: Array,
    log_ratio: Array,
    source: Array,
    h_squared: Array,
    pieces: Array,
) -> tuple[Array, Array, Array]:
    """u, L and the masses of the cells."""
    width = nodes[1] - nodes[0]
    h_squared = h_squared[pieces]
    h2 = h_squared[:, None, None]
    drop = (jnp.diff(nodes**2) / 4.0 + 0.5 * (1.0 + h2) * log_ratio) / (
        0.5 * h2
    )  # of V, from node to node
    right, left = (0.5 * h2 / width * _bernoulli(z) for z in (-drop, drop))
    v = _march(times, jnp.full(nodes.shape, width), right, left, source, h_squared)
    kept = density > _FIXED_FLOOR * jnp.max(density)
    u = jnp.where(kept, v / jnp.where(kept, density, 1.0), 0.0)
    masses = jnp.where(kept, width * density, 0.0)
    return u, 0.5 * jnp.sum(masses * u**2), masses


def _bernoulli(z: Array) -> Array:
    """z / (e^z - 1), without overflow: it is |z| e^-|z| / (1 - e^-|z|), plus |z| for negative z."""
    size = jnp.abs(z)
    small = size < 1e-5
    safe = jnp.where(small, 1.0, size)
    return jnp.where(
        small, 1.0 - 0.5 * size, -safe * jnp.exp(-safe) / jnp.expm1(-safe)
    ) + jnp.maximum(-z, 0.0)


# --- what both share -------------------------------------------------------------------------------------


def _score(target: GaussianMixture, x: Array, tau: Array) -> Array:
    return target.score(_CLOCK, x[:, None], tau)[:, 0]


def _at(
    target: GaussianMixture, error: ErrorFunction, x: Array, tau: Array
) -> tuple[Array, Array, Array, Array, _Seen]:
    """p, E, E', the score and the worst E."""

    def perturbed(x: Array) -> tuple[Array, Array]:
        score = _score(target, x, tau)
        values = jnp.asarray(error(x, tau, score))
        if values.shape not in ((), x.shape):
            raise ValueError(f"error returned shape {values.shape} for x of shape {x.shape}.")
        return jnp.broadcast_to(values, x.shape), score

    values, slopes, scores = jax.jvp(perturbed, (x,), (jnp.ones_like(x),), has_aux=True)
    density = jnp.exp(target.log_density(_CLOCK, x[:, None], tau))
    worst = jnp.argmax(~jnp.isfinite(values))
    return density, values, slopes, scores, _Seen(x[worst], tau, values[worst])


def _total(push: Array) -> Array:
    """The integral of (p E)' over every cell, from p E at the faces and none at the ends."""
    return jnp.diff(push, prepend=0.0, append=0.0)


def _check_errors(seen: _Seen) -> None:
    x, tau, values = (np.asarray(a).ravel() for a in seen)
    bad = ~np.isfinite(values)
    if np.any(bad):
        i = np.argmax(bad)
        raise ValueError(
            f"error returned {values[i]} at x = {x[i]:g}, tau = {tau[i]:g}; it must be finite."
        )


def _stage_times(times: Array) -> Float[Array, "steps stages"]:
    """tau of the stages; the generative step runs towards smaller tau, and its last stage is at its end exactly."""
    return times[:-1, None] + jnp.diff(times)[:, None] * (1.0 - _STAGE_TIMES)


def _map_stages(fn: Callable[[Any], Any], rows: Any) -> Any:
    """`fn` of every step and stage, one after another: all at once would not fit into memory."""
    flat = jax.lax.map(fn, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), rows))
    return jax.tree.map(lambda a: a.reshape(-1, len(_STAGE_TIMES), *a.shape[1:]), flat)


def _march(
    times: Array, weights: Array, right: Array, left: Array, source: Array, h_squared: Array
) -> Float[Array, " cells"]:
    """x at tau = 0 of weights dx_j/dt = F_{j-1/2} - F_{j+1/2} - (1 + h^2)/2 source_j, x = 0 at tau = T, with

        F_{j+1/2} = right x_j - left x_{j+1},  no flux at the ends.

    Rows of `right`, `left` (steps, stages, faces) and `source` (steps, stages, cells) are in increasing tau.
    """

    def step(x: Array, here: tuple[Array, ...]) -> tuple[Array, None]:
        right, left, source, step, h_squared = here
        step = _GAMMA * step
        matrices = _eliminate(weights, step * right, step * left)
        rows = (
            jnp.arange(3),
            jnp.asarray(_EARLIER / _GAMMA),
            -0.5 * (1.0 + h_squared) * step * source,
            *matrices,
        )

        def stage(
            carry: tuple[Array, Array], here: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], None]:
            changes, _ = carry
            i, earlier, inflow, *matrix = here
            before = x + earlier @ changes
            now = _substitute(_Eliminated(*matrix), weights * before + inflow)
            # the stage's slope is this over the step, without applying the matrix
            return (changes.at[i].set(now - before), now), None

        return jax.lax.scan(stage, (jnp.zeros((3, *x.shape)), x), rows)[0][1], None

    rows = (right, left, source, jnp.diff(times), h_squared)
    return jax.lax.scan(step, jnp.zeros_like(weights), rows, reverse=True)[0]


class _Eliminated(NamedTuple):
    pivots: Float[Array, "stages cells"]
    from_left: Float[Array, "stages faces"]
    from_right: Float[Array, "stages faces"]


def _eliminate(column_sums: Array, right: Array, left: Array) -> _Eliminated:
    """Gaussian elimination of the M-matrices with these column sums and off-diagonals -right (below), -left (above).

    The usual recursion for the pivots subtracts, and loses the column sums, which hold the mass of a mode, against
    rates that are many orders larger. `_remainders` does not.
    """
    e = _remainders(column_sums[:, None], right.T, left.T).T
    pivots = e + jnp.pad(right, ((0, 0), (0, 1)))
    return _Eliminated(pivots, right / pivots[:, :-1], left / pivots[:, :-1])


def _substitute(matrix: _Eliminated, b: Array) -> Array:
    """The solution of the eliminated system."""
    c = _accumulate(matrix.from_left, b) / matrix.pivots
    return _accumulate(matrix.from_right[::-1], c[::-1])[::-1]


# Both recursions have a linear derivative, which is the second recursion again. Saying so keeps the program of a
# derivative, and the time to compile it, small.


@jax.custom_jvp
def _remainders(sums: Array, right: Array, left: Array) -> Array:
    """e_0 = sums_0, e_{j+1} = sums_{j+1} + left_j e_j / (e_j + right_j), along the first axis.

    e_j + right_j are the pivots (Grassmann, Taksar and Heyman). All terms are positive: nothing cancels.
    """

    def advance(e: Array, here: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        sums, right, left = here
        e = sums + left * (e / (e + right))
        return e, e

    first = jnp.broadcast_to(sums[0], right.shape[1:])
    rest = jax.lax.scan(advance, first, (sums[1:], right, left))[1]
    return jnp.concatenate([first[None], rest])


@_remainders.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    _, right, left = primals
    d_sums, d_right, d_left = tangents
    e = _remainders(*primals)
    pivots = e[:-1] + right
    kept, ratio = e[:-1] / pivots, left / pivots
    direct = jnp.pad(kept * (d_left - ratio * d_right), ((1, 0), (0, 0)))
    return e, _accumulate(right / pivots * ratio, d_sums + direct)


@jax.custom_jvp
def _accumulate(factor: Array, b: Array) -> Array:
    """x_0 = b_0, x_{j+1} = b_{j+1} + factor_j x_j, along the first axis."""

    def advance(x: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, b = here
        x = b + factor * x
        return x, x

    return jnp.concatenate([b[:1], jax.lax.scan(advance, b[0], (factor, b[1:]))[1]])


@_accumulate.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    factor, b = primals
    d_factor, d_b = tangents
    x = _accumulate(factor, b)
    return x, _accumulate(factor, jnp.concatenate([d_b[:1], d_b[1:] + d_factor * x[:-1]]))


_ERRORS: dict[str, ErrorFunction] = {
    "score": lambda x, tau, score: score,
    "constant": lambda x, tau, score: jnp.ones_like(x),
}


_SCHEMES = {"lagrangian": _lagrangian, "eulerian": _eulerian}
