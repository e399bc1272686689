"""The reverse diffusion h(t) for which a given relative score error costs least.

The objective is L of `_leading_order` for E = c(theta) grad log p, Gaussian data and h^2 constant on cells. In one
dimension (or for isotropic data) the infimum over all h(t) >= 0 is known: with g = e^{-H}, which falls from 1,

    -W = int (1 + h^2) g c dy = c(0) - g(Y) c(Y) + int_0^Y g (c + dc/dy) dy                                (1)

is linear in g, so that its least value is attained at the end points of the set of such g, the steps: no noise between
the data and some y*, and full equilibration at y*. For c >= 0

    inf L = d/4 min(int_0^Y c dy, min_{y*} [c(y*) + int_0^{y*} c dy])^2,                                   (2)

with c' = -c at an inner minimum: the deterministic flow is right exactly where c falls faster than e^{-y}.

Cao, Chen, Luo, Zhou (2023), Section 5, leave the choice of a time-dependent h open; (1) and (2) are not theirs.
An optimiser needs h^2 as its variable, not h, in which every derivative vanishes at h = 0.
"""

import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import _checks
from .._derivatives import dense_derivatives
from .._newton import newton_advance, newton_start
from .._precision import in_float64
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ._clock import (
    Profile,
    at_times,
    checked_edges,
    checked_profile,
    checked_variances,
    clock,
    enough_panels,
    mode_clock,
    mode_variance,
    on_cells,
    quadrature,
)
from ._leading_order import CellResponses, ErrorMeasure, error_measure, total_leading_order

_MAX_ITERATIONS, _TOLERANCE = 100, 1e-8


_SEARCHED = 6
"""How many of the best starts are followed."""


CONSTANTS = 65
"""How many constants are compared at once."""


@dataclasses.dataclass(frozen=True)
class Infimum:
    """The least L that any h(t) >= 0 reaches, by (2)."""

    value: float
    time: float
    """theta*: noise only before it, that is at larger theta. Equal to the final time if the flow alone is best."""


@dataclasses.dataclass(frozen=True, repr=False)
class OptimalDiffusion:
    """The best h^2 found, and what it is to be compared with. Values are L: KL / eps^2 in nats."""

    edges: np.ndarray
    """Of the cells, (cells + 1,), in the clock theta, from 0 (data)."""
    h_squared: np.ndarray
    """h^2 / g^2 = alpha^2 on the cells, (cells,)."""
    value: float
    best_constant: tuple[float, float]
    """L and h^2 of the best constant h^2 below the cap."""
    ode: float
    """L of h = 0."""
    sde: float
    """L of h = g."""
    infimum: Infimum | None
    """Where (2) applies: coherent errors of one sign, and isotropic data."""
    cap: float
    signs: str
    converged: bool
    """Whether the best start has met the tolerance: every derivative is zero, or points out of the box."""
    optima: np.ndarray
    """L that each start has reached; they differ where there are several local minima."""

    @property
    def gain(self) -> float:
        """L of the best constant over the optimum: at least 1."""
        return self.best_constant[0] / self.value if self.value > 0 else float("nan")

    @in_float64
    def stochasticity(self, process: AbstractProcess, t: AnyArray) -> Float[Array, "..."]:
        """alpha = h / g of any process at its times t; that of the last cell beyond the final time."""
        cell = jnp.searchsorted(jnp.asarray(self.edges), clock(process, t), side="right") - 1
        return jnp.sqrt(jnp.asarray(self.h_squared))[jnp.clip(cell, 0, self.h_squared.size - 1)]

    def __repr__(self) -> str:
        value, constant = self.best_constant
        lines = [
            f"OptimalDiffusion({self.h_squared.size} cells, {self.signs} signs, "
            f"{'converged' if self.converged else 'not converged'}",
            f"  L {self.value:.6g}; best constant {value:.6g} (h^2 = {constant:.4g}): {self.gain:.3g} times that",
            f"  ode {self.ode:.6g}, h = g {self.sde:.6g}",
        ]
        if self.infimum is not None:
            lines.append(
                f"  infimum over all h {self.infimum.value:.6g}, noise for theta > {self.infimum.time:.4g}"
            )
        for name in ("edges", "h_squared"):
            text = np.array2string(
                getattr(self, name), precision=4, suppress_small=True, max_line_width=88
            )
            lines.append(f"  {name} {text}".replace("\n", "\n   "))
        return "\n".join(lines) + ")"


class AbstractCost(eqx.Module):
    """What is minimised over u = log(1 + h^2), by the derivatives of its logarithm. One u stands for a constant h^2."""

    @abc.abstractmethod
    def value(self, u: Float[Array, " n"], /) -> Float[Array, ""]:
        """The cost, >= 0."""

    def derivatives(self, z: Float[Array, " n"], /) -> tuple[Array, Array, Array]:
        """Logarithm of the cost, its gradient and Hessian: finite also where the cost underflows."""
        return dense_derivatives(lambda u: jnp.log(self.value(u) + jnp.finfo(u.dtype).tiny), z)


class _LeadingOrder(AbstractCost):
    """L at u = log(1 + h^2); a single u stands for a constant h^2."""

    error: ErrorMeasure
    weights: Float[Array, " modes"]
    coherent: Bool[Array, ""]

    def value(self, u: Float[Array, " n"], /) -> Float[Array, ""]:
        change = self.error.response(jnp.broadcast_to(jnp.expm1(u), self.error.width.shape[:1]))
        return total_leading_order(
            CellResponses(change, jnp.zeros_like(change), self.weights), self.coherent
        )


@in_float64
def diffusion_infimum(target: Gaussian, error: Profile, edges: Numbers) -> Infimum:
    """The infimum (2) of L over all h(t) >= 0, for isotropic data and relative errors c >= 0.

    `error`: c, a function of theta, or values on the cells with these `edges`; for a function, [0, final time] will do.

    **Raises:** ValueError for several different eigenvalues, or where c < 0: L = 0 may then be reached.
    """
    return _infimum(target, error, np.asarray(checked_edges(edges)))


def _infimum(target: Gaussian, error: Profile, edges: np.ndarray) -> Infimum:
    variances = np.asarray(checked_variances(target))
    if np.any(variances != variances[0]):
        raise ValueError(
            f"target.eigenvalues go from {variances.min():g} to {variances.max():g}; the infimum needs equal ones."
        )
    lam, dim, cells = (
        jnp.asarray(variances[0]),
        float(np.sum(np.asarray(target.weights))),
        edges.size - 1,
    )
    y = mode_clock(jnp.asarray(edges), lam)
    if not callable(error):
        # on a cell the cost only grows with y*, so that its best place is the cell's beginning
        c = np.asarray(on_cells(checked_profile("error", error, cells, 1), cells, 1))[:, 0]  # pyright: ignore[reportArgumentType]
        at, before = y[:-1], np.concatenate([[0.0], np.cumsum(c * np.diff(np.asarray(y)))])
        before, whole = before[:-1], before[-1]
    else:
        fine = jnp.linspace(0.0, y[-1], 2049)
        nodes, weights = quadrature(jnp.log1p(lam * jnp.expm1(fine)), lam, 1)
        pieces = jnp.sum(weights / mode_variance(nodes, lam) * at_times(error, nodes, 1)[..., 0], 1)
        before, whole = np.concatenate([[0.0], np.cumsum(pieces)])[:-1], float(jnp.sum(pieces))
        at = fine[:-1]
        c = np.asarray(at_times(error, jnp.log1p(lam * jnp.expm1(at))[:, None], 1))[:, 0, 0]
    theta = np.asarray(jnp.log1p(lam * jnp.expm1(at)))
    if np.min(c) < 0:
        i = int(np.argmin(c))
        raise ValueError(
            f"error must be >= 0 for the infimum; at time {float(theta[i]):g} it is {c[i]:g}."
        )
    cost = c + before
    best = int(np.argmin(cost))
    least, time = float(cost[best]), float(theta[best])
    if callable(error) and 0 < best < cost.size - 1:
        # a parabola through three neighbours: the grid is fine enough that its error is of fourth order
        low, mid, high = cost[best - 1 : best + 2]
        offset = 0.5 * (low - high) / max(low - 2.0 * mid + high, 1e-300)
        least -= 0.25 * (low - high) * offset
        time = float(jnp.log1p(lam * jnp.expm1(at[best] + offset * (at[1] - at[0]))))
    if whole <= least * (1.0 + 1e-9):  # a difference of rounding only: the simpler of the two
        least, time = float(whole), float(edges[-1])
    return Infimum(float(0.25 * dim * least**2), time)


@in_float64
def optimize_diffusion(
    target: Gaussian,
    error: Profile,
    final_time: Numbers,
    *,
    cells: int | Numbers = 16,
    cap: float = 100.0,
    signs: str = "coherent",
) -> OptimalDiffusion:
    """Minimise L over h^2 constant on cells, 0 <= h^2 <= `cap`, by projected Newton iterations from several starts.

    Among the starts are the best constant, noise only beyond each edge (the shape of the exact infimum), and noise only
    below it. The result is never worse than the best constant. Where noise nearer to the data has already removed the
    influence of a cell, L does not depend on its h^2, which then stays where the search has left it.

    **Arguments:**

    - `error`: c(theta) of E = c grad log p, a function, or values on the cells, (cells,) or (cells, modes).
    - `final_time`: theta at the start of sampling, `clock(process, t_max)`.
    - `cells`: their number n, with edges 0 and geomspace(final_time / 1000, final_time, n), or the edges.
    - `cap`: bound on h^2 / g^2; more noise needs shorter steps.
    - `signs`: "independent" minimises the expectation over an independent random sign of the error on every cell.

    **Raises:** ValueError as `leading_order`, and for an unknown `signs`, `cap` <= 0, or an error that vanishes.
    """
    _checks.one_of("signs", signs, ("coherent", "independent"))
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    cap = float(_checks.scalar("cap", cap, above=0.0))
    if isinstance(cells, int):
        count = _checks.count("cells", cells)
        edges = np.append(
            0.0, np.geomspace(final_time / 1000.0, final_time, count) if count > 1 else final_time
        )
    else:
        edges = np.asarray(checked_edges(cells))
        if not np.isclose(edges[-1], final_time):
            raise ValueError(
                f"cells end at {edges[-1]:g}; they must end at final_time = {final_time:g}."
            )
    n = edges.size - 1
    variances = checked_variances(target)
    error = checked_profile("error", error, n, variances.shape[0])
    panels = enough_panels(edges, variances, cap) if callable(error) else 1
    measure = error_measure(jnp.asarray(edges), jnp.asarray(variances), error, panels)
    problem = _LeadingOrder(measure, jnp.asarray(target.weights), jnp.asarray(signs == "coherent"))
    top = np.log1p(cap)

    best_u, best = best_constant(problem, top)
    if not best > 0:
        raise ValueError("error is 0 at every time: there is nothing to minimise.")
    constant = (best, float(np.expm1(best_u)))

    step = np.tri(n + 1, n, -1)  # row j: 1 on the cells below j
    starts = np.concatenate(
        [np.full((1, n), best_u), top * (1.0 - step), top * step, np.full((1, n), np.log(2.0))]
    )
    found = np.asarray(values_at(problem, jnp.asarray(starts)))
    # away from the bounds, so that the first step sees every variable
    starts = np.clip(starts[np.argsort(found)[:_SEARCHED]], 0.02 * top, 0.98 * top)
    starts = np.concatenate([np.full((1, n), best_u), starts])
    value, u, converged, optima = minimise(problem, starts, top)
    if value > constant[0]:
        value, u = constant[0], np.full(n, best_u)
    return OptimalDiffusion(
        edges=edges,
        h_squared=np.expm1(u),
        value=value,
        best_constant=constant,
        ode=float(values_at(problem, jnp.zeros((1, n)))[0]),
        sde=float(values_at(problem, jnp.full((1, n), np.log(2.0)))[0]),
        infimum=_where_known(target, error, edges, signs),
        cap=cap,
        signs=signs,
        converged=converged,
        optima=optima,
    )


@jax.jit
def values_at(problem: AbstractCost, u: Float[Array, "starts n"]) -> Float[Array, " starts"]:
    return jax.vmap(problem.value)(u)


def best_constant(problem: AbstractCost, top: float, columns: int = 1) -> tuple[float, float]:
    """log(1 + h^2) of the best constant, and its cost: a search on ever finer grids around the best of the last.

    `columns`: in how many entries of u it is handed over.
    """
    low, high = 0.0, top
    while True:
        grid = np.linspace(low, high, CONSTANTS)
        values = np.asarray(values_at(problem, jnp.asarray(np.repeat(grid[:, None], columns, 1))))
        best = int(np.argmin(values))
        if high - low < 1e-7:  # the value is flat there: its error is of the order of the square
            return float(grid[best]), float(values[best])
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, CONSTANTS - 1)]


def minimise(
    problem: AbstractCost, starts: np.ndarray, top: float
) -> tuple[float, np.ndarray, bool, np.ndarray]:
    """Least cost, its u, whether it has converged, and the cost that every start has reached."""
    n = starts.shape[1]
    state = newton_advance(
        problem,
        newton_start(starts, _MAX_ITERATIONS),
        jnp.zeros(n),
        jnp.full(n, top),
        jnp.asarray(_TOLERANCE),
        jnp.asarray(_MAX_ITERATIONS),
    )
    best = int(jnp.argmin(state.value))
    return (
        float(jnp.exp(state.value[best])),
        np.asarray(state.z[best]),
        bool(state.done[best]),
        np.exp(np.asarray(state.value)),
    )


def _where_known(target: Gaussian, error: Profile, edges: np.ndarray, signs: str) -> Infimum | None:
    variances = np.asarray(target.eigenvalues)
    if (
        signs != "coherent"
        or np.any(variances != variances[0])
        or np.ndim(error if not callable(error) else 0) == 2
    ):
        return None
    sampled = np.linspace(0.0, edges[-1], 257)
    values = (
        at_times(error, jnp.asarray(sampled)[:, None], variances.size) if callable(error) else error
    )
    if np.min(np.asarray(values)) < 0:
        return None
    return _infimum(target, error, edges)
