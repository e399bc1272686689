"""The best h(t) for a score error of a one-dimensional mixture of Gaussians."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import _checks
from .._derivatives import forward_derivatives
from .._precision import in_float64
from .._types import Numbers
from ..distributions import GaussianMixture
from ._continuous import OptimalDiffusion, place_edges, search_cells
from ._fokker_planck import check_one_dimensional, divide_time
from ._lagrangian import LagrangianGrid, diffuse, place_grid
from ._perturbation import ErrorFunction, resolve_error
from ._search import AbstractCost


class _MixtureLeadingOrder(AbstractCost):
    """L of `_fokker_planck` at u = log(1 + alpha^2) on every cell."""

    grid: LagrangianGrid
    pieces: Int[Array, " steps"]

    def value(self, u: Float[Array, " n"], /) -> Float[Array, ""]:
        return diffuse(self.grid, jnp.expm1(u), self.pieces)[1]

    def derivatives(self, z: Float[Array, " n"], /) -> tuple[Array, Array, Array]:
        # few variables, and a recurrence over many cells and steps that is not to be stored
        return forward_derivatives(lambda u: jnp.log(self.value(u) + jnp.finfo(u.dtype).tiny), z)


@in_float64
def optimize_mixture_diffusion(
    target: GaussianMixture,
    error: str | ErrorFunction,
    final_time: float,
    *,
    cells: int | Numbers = 4,
    cap: float = 100.0,
    grid_cells: int = 192,
    time_steps: int = 96,
) -> OptimalDiffusion:
    """Minimize L(h) over h(t) with h^2 / g^2 constant on cells, for a one-dimensional mixture.

        min L(alpha),   0 <= alpha^2 <= cap

    with L of `leading_order_1d` on one grid, without extrapolation, and the search of
    `optimize_diffusion`. Values are those of the grid: evaluate the result by `leading_order_1d`
    with `breakpoints=found.edges[1:-1]`. A run takes as long as some thousand evaluations on the
    grid times the square of the number of cells.

    **Arguments:**

    - `target`, `error`, `final_time`: as in `leading_order_1d`; an error that jumps should do so at
      edges.
    - `cells`: few cells, their number n, with edges 0 and geomspace(final_time / 1000, final_time,
      n), or the edges.
    - `cap`: bound > 0 on alpha^2.
    - `grid_cells`, `time_steps`: of the grid, >= 16.

    **Returns:** an `OptimalDiffusion`.

    **Raises:** ValueError as `leading_order_1d`, and for `cap` <= 0 or an error that vanishes.

    **Example:**

    ```python
    >>> target = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.3, 0.3])
    >>> options = {"cells": [0.0, 0.2, 2.0], "grid_cells": 32, "time_steps": 16}
    >>> found = jk.reverse_sde.optimize_mixture_diffusion(target, "score", 2.0, **options)
    ```

    Source: the question is that of Cao, Chen, Luo, Zhou (2023), Section 5.
    """
    check_one_dimensional(target)
    perturbation = resolve_error(error)
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    cap = float(_checks.scalar("cap", cap, above=0.0))
    edges = place_edges(cells, final_time)
    steps = _checks.count("time_steps", time_steps, at_least=16)
    scale = float(np.min(target.eigenvalues))
    times, pieces = divide_time(edges, 1, steps, scale)
    count = _checks.count("grid_cells", grid_cells, at_least=16)
    grid = place_grid(target, perturbation, times, count)
    return search_cells(_MixtureLeadingOrder(grid, jnp.asarray(pieces)), edges, cap)
