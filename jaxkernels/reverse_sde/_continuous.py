"""The reverse diffusion coefficient h(t) for which a given relative score error costs least.

The objective is L of `_leading_order` for E_i = c_i d_i log p + b_i / sqrt(s_i), Gaussian data and
alpha^2 = h^2 / g^2 constant on cells. `_infimum` has the exact infimum in one dimension.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import _checks
from .._numerics import clipped
from .._precision import in_float64
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ._cells import TimeProfile, check_edges, check_profile, check_variances
from ._infimum import Infimum, find_known_infimum
from ._leading_order import CellResponses, ErrorMeasure, measure_error, sum_responses
from ._quadrature import count_panels
from ._search import (
    SDE,
    AbstractCost,
    BestConstant,
    Minimum,
    evaluate_costs,
    minimise,
    move_inside,
    search_constant,
)
from ._time_change import time_change

# how many of the best starts are followed, and how often at most from around what they led to
_FOLLOWED = 6
_ROUNDS = 4

# relative difference of L that is no improvement
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, repr=False)
class OptimalDiffusion:
    """The best alpha^2 = h^2 / g^2 found on cells, beside what it is compared with.

    Values are L = KL / eps^2 in nats. `optimize_diffusion` computes it.

    **Example:**

    ```python
    >>> found = jk.reverse_sde.optimize_diffusion(jk.Gaussian(0.0, [0.04]), 1.0, 2.0, cells=2)
    >>> found.stochasticity_squared.shape, found.value <= min(found.ode, found.sde)
    ((2,), True)
    ```
    """

    edges: np.ndarray
    """Of the cells, (cells + 1,), rescaled times theta from 0 (data)."""
    stochasticity_squared: np.ndarray
    """alpha^2 = h^2 / g^2 on the cells, (cells,)."""
    value: float
    """L of this alpha^2."""
    best_constant: BestConstant
    """L and alpha^2 of the best constant alpha^2 below the cap."""
    ode: float
    """L of alpha = 0."""
    sde: float
    """L of alpha = 1."""
    infimum: Infimum | None
    """Over all h(t), where it is known: coherent errors of one sign without shift, and isotropic
    data."""
    cap: float
    """The bound on alpha^2."""
    signs: str
    """"coherent" or "independent"."""
    converged: bool
    """Whether at the best start every derivative is 0, to tolerance, or points out of the box."""
    optima: np.ndarray
    """L that each start has reached; they differ where there are several local minima."""

    @property
    def gain(self) -> float:
        """L of the best constant over the optimum: at least 1."""
        return self.best_constant.value / self.value if self.value > 0 else float("nan")

    @in_float64
    def stochasticity(self, process: AbstractProcess, t: AnyArray) -> Float[Array, "..."]:
        """Evaluate alpha = h / g at the times of a process.

        **Arguments:**

        - `process`: the forward process.
        - `t`: times of the process, any shape.

        **Returns:** alpha, of the shape of `t`; that of the last cell beyond the final time.

        **Example:**

        ```python
        >>> found = jk.reverse_sde.optimize_diffusion(jk.Gaussian(0.0, [0.04]), 1.0, 2.0, cells=2)
        >>> found.stochasticity(jk.VP(), jnp.asarray([0.1, 0.9])).shape
        (2,)
        ```
        """
        theta = time_change(process, t)
        cell = jnp.searchsorted(jnp.asarray(self.edges), theta, side="right") - 1
        last = self.stochasticity_squared.size - 1
        return jnp.sqrt(jnp.asarray(self.stochasticity_squared))[clipped(cell, 0, last)]

    def __repr__(self) -> str:
        value, constant = self.best_constant
        lines = [
            f"OptimalDiffusion({self.stochasticity_squared.size} cells, {self.signs} signs, "
            f"{'converged' if self.converged else 'not converged'}",
            f"  L {self.value:.6g}; best constant {value:.6g} (alpha^2 = {constant:.4g}): "
            f"{self.gain:.3g} times that",
            f"  alpha = 0: {self.ode:.6g}, alpha = 1: {self.sde:.6g}",
        ]
        if self.infimum is not None:
            lines.append(
                f"  infimum over all h(t) {self.infimum.value:.6g}, noise for theta > "
                f"{self.infimum.time:.4g}"
            )
        lines += format_arrays(self, "edges", "stochasticity_squared")
        return "\n".join(lines) + ")"


def format_arrays(result: object, *names: str) -> list[str]:
    """One line of text per named array of a result, for its `repr`."""
    lines = []
    for name in names:
        array = getattr(result, name)
        text = np.array2string(array, precision=4, suppress_small=True, max_line_width=88)
        lines.append(f"  {name} {text}".replace("\n", "\n   "))
    return lines


class _LeadingOrder(AbstractCost):
    """L at u = log(1 + alpha^2) on every cell."""

    error: ErrorMeasure
    shift: ErrorMeasure | None
    weights: Float[Array, " modes"]
    coherent: Bool[Array, ""]

    def value(self, u: Float[Array, " n"], /) -> Float[Array, ""]:
        alpha2 = jnp.expm1(u)
        change = self.error.respond(alpha2)
        mean = jnp.zeros_like(change)
        if self.shift is not None:
            mean = 0.5 * self.shift.respond(alpha2, 0.5)
        return sum_responses(CellResponses(change, mean, self.weights), self.coherent)


@in_float64
def optimize_diffusion(
    target: Gaussian,
    error: TimeProfile,
    final_time: Numbers,
    *,
    shift: TimeProfile | None = None,
    cells: int | Numbers = 16,
    cap: float = 100.0,
    signs: str = "coherent",
) -> OptimalDiffusion:
    """Minimize L(h) over h(t) with h^2 / g^2 constant on cells, for a known score error.

        min L(alpha),   0 <= alpha^2 <= cap,   E_i = c_i(theta) d_i log p + b_i(theta) / sqrt(s_i)

    by projected Newton iterations from several starts: the best constant, noise only beyond each
    edge (the shape of the exact infimum), noise only below it, and the best constant with as much
    noise as allowed beyond each edge. L has local minima, which differ in such edges; the search
    goes on from what it has found with another edge, until none is better. The result is never
    worse than the best constant. Where noise nearer to the data has already removed the influence
    of a cell, L does not depend on its alpha^2, which then stays where the search has left it.

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0.
    - `error`: c, a `TimeProfile` on the cells, dimensionless.
    - `final_time`: theta > 0 at the start of sampling, `time_change(process, t_max)`.
    - `shift`: b, a `TimeProfile`, relative to the score's typical size. Default: none.
    - `cells`: their number n, with edges 0 and geomspace(final_time / 1000, final_time, n), or the
      edges.
    - `cap`: bound > 0 on alpha^2; more noise needs shorter steps.
    - `signs`: "coherent", or "independent" for the expectation over an independent random sign of
      the error on every cell.

    **Returns:** an `OptimalDiffusion`.

    **Raises:** ValueError as `leading_order`, and for an unknown `signs`, `cap` <= 0, or an error
    that vanishes.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.04]), lambda theta: jnp.exp(-50.0 * theta), 2.0)
    >>> found = jk.reverse_sde.optimize_diffusion(*setting)
    >>> print(f"{found.best_constant.stochasticity_squared:.2f}")  # error at the data: no noise
    0.00
    ```

    Source: the question is that of Cao, Chen, Luo, Zhou (2023), Section 5.
    """
    _checks.one_of("signs", signs, ("coherent", "independent"))
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    cap = float(_checks.scalar("cap", cap, above=0.0))
    edges = place_edges(cells, final_time)
    modes = check_variances(target).shape[0]
    error = check_profile("error", error, edges.size - 1, modes)
    if shift is not None:
        shift = check_profile("shift", shift, edges.size - 1, modes)
    cost = _pose(target, error, shift, edges, cap, signs)
    found = search_cells(cost, edges, cap, signs)
    if shift is not None:
        return found
    return dataclasses.replace(found, infimum=find_known_infimum(target, error, edges, signs))


def search_cells(
    cost: AbstractCost, edges: np.ndarray, cap: float, signs: str = "coherent"
) -> OptimalDiffusion:
    """The least cost over alpha^2 <= cap on cells, and what it is compared with."""
    top = float(np.log1p(cap))
    count = edges.size - 1
    constant_u, constant = search_constant(cost, top, count)
    if not constant > 0:
        raise ValueError("error is 0 at every time: there is nothing to minimise.")
    found = _solve(cost, count, constant_u, constant, top)
    ode, sde = evaluate_costs(cost, np.repeat([[0.0], [SDE]], count, 1)).tolist()
    return OptimalDiffusion(
        edges=edges,
        stochasticity_squared=np.expm1(found.u),
        value=found.value,
        best_constant=BestConstant(constant, float(np.expm1(constant_u))),
        ode=ode,
        sde=sde,
        infimum=None,
        cap=cap,
        signs=signs,
        converged=found.converged,
        optima=found.optima,
    )


def place_edges(cells: int | Numbers, final_time: float) -> np.ndarray:
    """The edges, from their number or as they are given."""
    if isinstance(cells, int):
        count = _checks.count("cells", cells)
        if count == 1:
            return np.array([0.0, final_time])
        return np.append(0.0, np.geomspace(final_time / 1000.0, final_time, count))
    edges = np.asarray(check_edges(cells))
    if not np.isclose(edges[-1], final_time):
        raise ValueError(
            f"cells end at {edges[-1]:g}; they must end at final_time = {final_time:g}."
        )
    return edges


def _pose(
    target: Gaussian,
    error: TimeProfile,
    shift: TimeProfile | None,
    edges: np.ndarray,
    cap: float,
    signs: str,
) -> _LeadingOrder:
    """The cost to be minimised."""
    variances = check_variances(target)
    panels = count_panels(edges, variances, cap)

    def measure(profile: TimeProfile) -> ErrorMeasure:
        where = (jnp.asarray(edges), jnp.asarray(variances))
        return measure_error(*where, profile, panels if callable(profile) else 1)

    return _LeadingOrder(
        measure(error),
        None if shift is None else measure(shift),
        jnp.asarray(target.weights),
        jnp.asarray(signs == "coherent"),
    )


def _solve(
    cost: AbstractCost, cells: int, constant_u: float, constant: float, top: float
) -> Minimum:
    """The best of the starts that promise most, never worse than the best constant."""
    below = np.tri(cells + 1, cells, -1)  # row j: 1 on the cells below edge j
    beyond = 1.0 - below
    flat = np.full(cells, constant_u)
    shapes = [top * beyond, top * below, flat * below + top * beyond]
    found = _follow(cost, flat, np.concatenate([flat[None], *shapes, [np.full(cells, SDE)]]), top)
    if found.value > constant:
        found = found._replace(value=constant, u=flat)
    for _ in range(_ROUNDS):
        near = np.concatenate([found.u * below + top * beyond, found.u * beyond, found.u * below])
        again = _follow(cost, found.u, near, top)
        if not again.value < found.value * (1.0 - _ROUNDING):
            break
        found = again._replace(optima=np.concatenate([found.optima, again.optima]))
    return found


def _follow(cost: AbstractCost, first: np.ndarray, starts: np.ndarray, top: float) -> Minimum:
    """The best of where `first` and the starts that promise most lead."""
    order = np.argsort(evaluate_costs(cost, starts))
    followed = move_inside(starts[order[:_FOLLOWED]], top)
    return minimise(cost, np.concatenate([first[None], followed]), top)
