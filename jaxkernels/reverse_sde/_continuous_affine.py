"""The best h(t) for a score error with a matrix slope, which couples the modes of Gaussian data."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._precision import in_float64
from .._types import Numbers
from ..distributions import Gaussian
from ._affine import TensorProfile, sum_affine, whiten_error
from ._cells import check_variances
from ._continuous import OptimalDiffusion, place_edges, search_cells
from ._quadrature import count_panels, place_nodes
from ._search import AbstractCost


class _AffineLeadingOrder(AbstractCost):
    """L of `_affine` at u = log(1 + alpha^2) on every cell."""

    edges: Float[Array, " points"]
    variances: Float[Array, " modes"]
    theta: Float[Array, "cells n"]
    weights: Float[Array, "cells n"]
    slope: Float[Array, "cells n modes modes"]
    push: Float[Array, "cells n modes"]

    def value(self, u: Float[Array, " n"], /) -> Float[Array, ""]:
        where = (self.edges, self.variances, jnp.expm1(u), self.theta)
        return sum_affine(*where, self.weights, self.slope, self.push)


@in_float64
def optimize_affine_diffusion(
    target: Gaussian,
    matrix: TensorProfile,
    final_time: Numbers,
    *,
    shift: TensorProfile = 0.0,
    cells: int | Numbers = 16,
    cap: float = 100.0,
) -> OptimalDiffusion:
    """Minimize L(h) over h(t) with h^2 / g^2 constant on cells, for an affine score error.

        min L(alpha),   0 <= alpha^2 <= cap,   E = A(theta) x + beta(theta)

    with L of `affine_leading_order` and the search of `optimize_diffusion`. It is for few modes:
    memory grows with the squares of their number and of the number of cells. The infimum over all
    h(t) is not known.

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0 and weights 1.
    - `matrix`, `shift`: A and beta, as in `affine_leading_order`, in the coordinates of the data.
    - `final_time`, `cells`, `cap`: as in `optimize_diffusion`.

    **Returns:** an `OptimalDiffusion`.

    **Raises:** ValueError as `affine_leading_order`, and for `cap` <= 0 or an error that vanishes.

    **Example:**

    ```python
    >>> error = lambda theta: jnp.exp(-50.0 * theta) * jnp.ones((2, 2))
    >>> setting = (jk.Gaussian(0.0, [0.04, 1.0]), error, 2.0)
    >>> found = jk.reverse_sde.optimize_affine_diffusion(*setting, cells=4)
    ```

    Source: the question is that of Cao, Chen, Luo, Zhou (2023), Section 5.
    """
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    cap = float(_checks.scalar("cap", cap, above=0.0))
    edges = place_edges(cells, final_time)
    variances = np.asarray(check_variances(target))
    panels = count_panels(edges, variances, cap)
    theta, weights = place_nodes(jnp.asarray(edges), jnp.asarray(np.min(variances)), panels)
    slope, push = whiten_error(target, matrix, shift, theta)
    where = (jnp.asarray(edges), jnp.asarray(variances), theta, weights)
    return search_cells(_AffineLeadingOrder(*where, slope, push), edges, cap)
