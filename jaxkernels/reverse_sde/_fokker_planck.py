"""The leading order of KL in a small score error, for any one-dimensional mixture of Gaussians.

In the rescaled time theta, forward from the data (theta = 0) to noise (theta = T), p = p_theta is
the density of dX = -X/2 dtheta + dB. The reverse family, run in t = T - theta from the exact p_T
with the score error eps E, is

    dY = [Y/2 + (1 + alpha^2)/2 (grad log p + eps E)] dt + alpha dW,     alpha = h / g,         (1)

and KL(p_0 || q) = L eps^2 + O(eps^3) for the density q of Y at the data end.

With u = (1/p) dq/deps at eps = 0, the linear response of the samples' density, p = p_theta and zero
flux at infinity,

    du/dt + w u' = (alpha^2/2) (p u')' / p - (1 + alpha^2)/2 (p E)' / p,     u = 0 at t = 0,
    w = (x + (log p)') / 2,     L = 1/2 int u^2 p_0 dx at t = T.                                (2)

Assumed: p_0 is a mixture of Gaussians with positive variances, and E does not grow faster than
1 / sqrt(p).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..distributions import GaussianMixture
from ._eulerian import solve_eulerian
from ._lagrangian import solve_lagrangian
from ._perturbation import ErrorFunction, Solution, least_variance, resolve_error

_SCHEMES = {"lagrangian": solve_lagrangian, "eulerian": solve_eulerian}


class FokkerPlanckResult(eqx.Module):
    """L(h) of a density, and the linear response it is the square of.

        L = 1/2 sum(masses * density_response^2)

    The cells are those of the finest grid. sum(masses * density_response * phi(nodes)) is the rate
    at which the mean of phi over the samples changes with eps. `leading_order_1d` and
    `reverse_sde.leading_order_2d` compute it.

    **Example:**

    ```python
    >>> target = jk.GaussianMixture([1.0], [[0.0]], [1.0])
    >>> result = jk.leading_order_1d(target, "score", 1.0, 2.0, cells=64, time_steps=32)
    >>> print(f"{float(jnp.sum(result.masses)):.4f}")
    1.0000
    ```
    """

    value: Float[Array, ""]
    """L, in nats per eps^2."""
    discretization_error: Float[Array, ""]
    """Estimate of |value - exact L|: how much the last refinement or extrapolation changed it."""
    mass_imbalance: Float[Array, ""]
    """|int u p_0| / int |u| p_0 on the finest grid; 0 but for rounding."""
    density_response: Float[Array, " cells"]
    """u: the relative change of the samples' density per eps."""
    nodes: Float[Array, "cells *d"]
    """Positions of the cells, in data units; with an axis of coordinates in two dimensions."""
    masses: Float[Array, " cells"]
    """Masses of the cells under p_0."""


@in_float64
def leading_order_1d(
    target: GaussianMixture,
    error: str | ErrorFunction,
    stochasticity_squared: Numbers,
    final_time: float,
    *,
    breakpoints: Numbers | None = None,
    cells: int = 1024,
    time_steps: int = 256,
    scheme: str = "lagrangian",
    richardson: bool = True,
) -> FokkerPlanckResult:
    """Compute L(h), the leading order of KL, for a one-dimensional mixture, by finite volumes.

        du/dt + (x + (log p)')/2 u' = alpha^2/2 (p u')'/p - (1 + alpha^2)/2 (p E)'/p
        KL(p_0 || q) = L eps^2 + O(eps^3),     L = 1/2 int u^2 p_0 dx

    Steps are geometric in theta + (smallest variance). Only `stochasticity_squared` may be traced,
    and under a transformation of the caller (jit, grad, vmap) 64-bit precision has to be on: the
    masses between modes are beyond float32. The derivative at alpha^2 = 0 is that of L in alpha^2,
    not 0; with modes many deviations apart it loses its digits below alpha^2 of about 1e-8. For
    two dimensions see `reverse_sde.leading_order_2d`, for more `reverse_sde.leading_order_samples`.

    **Arguments:**

    - `target`: a mixture in one dimension, with variances > 0.
    - `error`: E(x, theta): "score" (the score of p_theta, so that eps is a relative error),
      "constant" (1), or a function (x, theta, score) -> E, elementwise in x. A new function is
      compiled anew.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 >= 0, a number, or with n `breakpoints` n + 1
      numbers, the first next to the data.
    - `final_time`: T > 0, rescaled time at the start of sampling.
    - `breakpoints`: times theta in (0, T), increasing, at which alpha^2 jumps. Steps end there, so
      they also serve an error that jumps, if it takes its value of a <= theta < b.
    - `cells`, `time_steps`: >= 16, of the finest grid, rounded up to multiples of 4, with possibly
      more steps with breakpoints.
    - `scheme`: "lagrangian", in cells that move with the probability flow, for every alpha >= 0; or
      "eulerian", on a fixed uniform grid, as a check: it needs alpha^2 well above 0 and cells well
      below the narrowest standard deviation.
    - `richardson`: whether to extrapolate from three grids, each with half the cells and steps of
      the next, with order 2 in space and 3 in time. Otherwise the finest of two is the result.

    **Returns:** a `FokkerPlanckResult`.

    **Raises:** ValueError for a target that is not one-dimensional, has a variance of 0 or a
    component so faint that its density vanishes; alpha^2 < 0 (or 0 in the Eulerian scheme), a wrong
    number of them, times outside their range, grids that are too small; and errors that are not
    finite or have another shape than x.

    **Example:**

    ```python
    >>> target = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.3, 0.3])
    >>> result = jk.leading_order_1d(target, "score", 1.0, 2.0, cells=64, time_steps=32)
    >>> bool(result.discretization_error < 1e-3 * result.value)
    True
    ```

    Source: Cao, Chen, Luo, Zhou, "Exploring the optimal choice for generative processes in
    diffusion models: ordinary vs stochastic differential equations" (2023),
    equation (10), divided by p_theta.
    """
    check_one_dimensional(target)
    perturbation = resolve_error(error)
    solve = _checks.lookup("scheme", scheme, _SCHEMES)
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    edges = _place_edges(breakpoints, final_time)
    alpha2 = _check_pieces(stochasticity_squared, len(edges) - 1, positive=scheme == "eulerian")
    quarter_cells = -(-_checks.count("cells", cells, at_least=16) // 4)
    quarter_steps = -(-_checks.count("time_steps", time_steps, at_least=16) // 4)
    scale = float(np.min(target.eigenvalues))
    solutions = []
    for refinement in (1, 2, 4) if richardson else (2, 4):
        times, pieces = divide_time(edges, refinement, quarter_steps, scale)
        count = refinement * quarter_cells
        solutions.append(solve(target, perturbation, times, count, alpha2, pieces))
    return combine(solutions)


def combine(solutions: list[Solution]) -> FokkerPlanckResult:
    """The result, from two or three grids, coarsest first."""
    value, correction = _extrapolate([solution.value for solution in solutions])
    finest = solutions[-1]
    imbalance = _imbalance(finest.u, finest.masses)
    return FokkerPlanckResult(value, correction, imbalance, finest.u, finest.nodes, finest.masses)


@jax.jit
def _extrapolate(values: list[Array]) -> tuple[Array, Array]:
    """L, and by how much the last grid or the last extrapolation moved it."""
    if len(values) == 2:
        return values[1], jnp.abs(values[1] - values[0])
    # order 2 is removed first, and then the order 3 that is left
    coarse, fine = (4.0 * values[i + 1] / 3.0 - values[i] / 3.0 for i in range(2))
    return fine + (fine - coarse) / 7.0, jnp.abs(fine - coarse) / 7.0


@jax.jit
def _imbalance(u: Array, masses: Array) -> Array:
    """|int u p_0| / int |u| p_0."""
    total = jnp.sum(masses * jnp.abs(u))
    return jnp.abs(jnp.sum(masses * u)) / jnp.where(total > 0, total, 1.0)


def check_one_dimensional(target: GaussianMixture) -> None:
    """Refuse targets that have no one-dimensional density."""
    target = _checks.instance("target", target, GaussianMixture)
    if is_traced(target):
        raise ValueError("target is traced; only stochasticity_squared may be.")
    if target.means.shape[1] != 1:
        raise ValueError(f"target has dimension {target.means.shape[1]}; it must be 1.")
    least_variance(target)


def _place_edges(breakpoints: Numbers | None, final_time: float) -> np.ndarray:
    """0, the breakpoints and the final time."""
    inner = np.asarray(_checks.array("breakpoints", [] if breakpoints is None else breakpoints))
    edges = np.concatenate([[0.0], inner.reshape(-1), [final_time]])
    if inner.ndim != 1 or np.any(np.diff(edges) <= 0):
        raise ValueError(f"breakpoints = {breakpoints} must increase inside (0, {final_time:g}).")
    return edges


def _check_pieces(stochasticity_squared: Numbers, count: int, positive: bool) -> Array:
    """alpha^2 between the breakpoints, (count,)."""
    name = "stochasticity_squared"
    if not is_traced(stochasticity_squared):
        stochasticity_squared = _checks.array(name, stochasticity_squared)
        if np.any(stochasticity_squared < 0):
            least = np.min(stochasticity_squared)
            raise ValueError(f"{name} must be >= 0; its smallest entry is {least:g}.")
        if positive and np.any(stochasticity_squared == 0):
            raise ValueError(f"{name} = 0 has no eulerian scheme; use scheme='lagrangian'.")
    elif jnp.result_type(float) != jnp.float64:
        raise ValueError(
            f"{name} is traced without 64-bit precision; use jax.enable_x64(True) around it."
        )
    out = jnp.asarray(stochasticity_squared, jnp.float64)
    if out.shape not in ((), (count,)):
        raise ValueError(
            f"{name} has shape {out.shape}; with {count - 1} breakpoints it must be a number or "
            f"have shape ({count},)."
        )
    return jnp.broadcast_to(out, (count,))


def divide_time(
    edges: np.ndarray, refinement: int, steps: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Increasing times, with equal steps of log(scale + theta) per piece, and each step's piece."""
    logs = np.log1p(edges / scale)
    counts = refinement * np.ceil(steps * np.diff(logs) / logs[-1] - 1e-9).astype(int)
    parts = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(logs[:-1], logs[1:], counts)]
    times = scale * np.expm1(np.concatenate([*parts, logs[-1:]]))
    # exactly, for errors that compare theta with an edge
    times[np.append(0, np.cumsum(counts))] = edges
    return times, np.repeat(np.arange(len(counts)), counts)
