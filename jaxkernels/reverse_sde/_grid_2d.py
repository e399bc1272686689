"""The leading order of KL of a two-dimensional density, on a grid.

The linear response u = (1/p) dq/deps of the samples' density obeys, towards the data (see
`_feynman_kac`),

    du/dt = A u - (1 + alpha^2)/2 f,     f = div E + E . grad log p,     u = 0 at t = 0,
    A = D Laplace + c . grad,     D = alpha^2 / 2,     c = ((alpha^2 - 1) grad log p - x) / 2.   (1)

This form of the Fokker-Planck equation divides by no density: far from the data u may be wrong, and
p_0 does not see it. Along each axis A is a chain that jumps to its neighbours at the rates

    D / dx^2 B(-+ c dx / D),     B(z) = z / (e^z - 1),                                          (2)

of order 2 and free of oscillations however coarse the grid. A step is half a step along x, one
along y and half a step along x (Strang), with (2) at its middle, each by an L-stable Runge-Kutta
method of order 2.

Source: (1) derived here; (2) is due to Scharfetter and Gummel (1969); Strang, "On the construction
and comparison of difference schemes" (1968).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._precision import in_float64
from .._types import Numbers
from ..distributions import GaussianMixture
from ._eulerian import bernoulli
from ._feynman_kac import source_of
from ._fokker_planck import FokkerPlanckResult, combine, divide_time
from ._perturbation import (
    PROCESS,
    ErrorFunction,
    Solution,
    least_variance,
    resolve_error,
)

# the grid reaches this many standard deviations from every mean
_REACH = 5.5

# of the Runge-Kutta method: its two stages solve with the same matrix
_GAMMA = 1.0 - math.sqrt(0.5)


@in_float64
def leading_order_2d(
    target: GaussianMixture,
    error: str | ErrorFunction,
    stochasticity_squared: Numbers,
    final_time: float,
    *,
    cells: int = 96,
    time_steps: int = 96,
) -> FokkerPlanckResult:
    """Compute L(h), the leading order of KL, for a two-dimensional mixture, on a grid.

        KL(p_0 || q) = L eps^2 + O(eps^3),     L = 1/2 int u^2 p_0 dx

    with the linear response u of the samples' density, extrapolated from three grids with order 2.
    Steps are geometric in theta + (smallest variance). Cells are squares of one size: they should
    be smaller than half of the narrowest standard deviation, and `discretization_error` says what
    their size costs. `leading_order_samples` estimates the same number without a grid, in any
    dimension and also for alpha^2 = 0.

    **Arguments:**

    - `target`: a mixture in two dimensions, with variances > 0.
    - `error`: E(x, theta, score), for one point x of shape (2,), with the score of p_theta there:
      "score", "constant" (1 in both coordinates) or a function, differentiable in x.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 > 0, one number for all times.
    - `final_time`: T > 0, rescaled time at the start of sampling.
    - `cells`: >= 16, along the longer side of the finest grid, rounded up to a multiple of 4.
    - `time_steps`: >= 16, of the finest grid, rounded up to a multiple of 4.

    **Returns:** a `FokkerPlanckResult`, with nodes (cells, 2).

    **Raises:** ValueError for a target that is not two-dimensional or has a variance of 0, alpha^2
    that is not positive, grids that are too small, an unknown error, or one that returns another
    shape than x.

    **Example:**

    ```python
    >>> setting = (jk.GaussianMixture([1.0], [[0.0, 0.0]], [0.5]), "score", 1.0, 1.0)
    >>> result = jk.reverse_sde.leading_order_2d(*setting, cells=32, time_steps=16)
    >>> bool(result.discretization_error < 0.05 * result.value)
    True
    ```

    Source: derived here, from (10) of Cao, Chen, Luo, Zhou (2023).
    """
    if not isinstance(target, GaussianMixture) or target.means.shape[1] != 2:
        raise ValueError(f"target must be a GaussianMixture in two dimensions; got {target}.")
    least = least_variance(target)
    perturbation = resolve_error(error)
    alpha2 = _checks.scalar("stochasticity_squared", stochasticity_squared, above=0.0)
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    quarter_cells = -(-_checks.count("cells", cells, at_least=16) // 4)
    quarter_steps = -(-_checks.count("time_steps", time_steps, at_least=16) // 4)
    solutions = []
    for refinement in (1, 2, 4):
        edges = np.array([0.0, final_time])
        times, _ = divide_time(edges, refinement, quarter_steps, least)
        axes = _axes(target, refinement * quarter_cells)
        solutions.append(
            _solve(target, perturbation, *axes, jnp.asarray(times), jnp.asarray(alpha2))
        )
    return combine(solutions)


def _axes(target: GaussianMixture, cells: int) -> tuple[Array, Array]:
    """The nodes along x and y, equally far apart, around everything that p_theta ever covers."""
    means = np.vstack([np.asarray(target.means), np.zeros((1, 2))])
    reach = _REACH * max(1.0, math.sqrt(np.max(target.eigenvalues)))
    low = means.min(0) - reach
    size = means.max(0) + reach - low
    width = size.max() / cells
    counts = np.ceil(size / width - 1e-9).astype(int)
    middle = low + 0.5 * size
    first, second = (
        jnp.asarray(middle[i] + width * (np.arange(n) - 0.5 * (n - 1)))
        for i, n in enumerate(counts)
    )
    return first, second


@eqx.filter_jit
def _solve(
    target: GaussianMixture,
    error: ErrorFunction,
    first: Float[Array, " m"],
    second: Float[Array, " n"],
    times: Array,
    alpha2: Array,
) -> Solution:
    """u, L, nodes and masses of the cells."""
    shape = (first.size, second.size)
    width = first[1] - first[0]
    nodes = jnp.stack(jnp.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)
    source = source_of(target, error)
    diffusion = 0.5 * alpha2

    def advance(u: Array, here: tuple[Array, Array]) -> tuple[Array, None]:
        theta, step = here
        score = target.score(PROCESS, nodes, theta)
        drift = 0.5 * ((alpha2 - 1.0) * score - nodes)
        push = -0.5 * (1.0 + alpha2) * jax.vmap(source, (0, None, 0))(nodes, theta, score)
        ratio = drift.reshape(*shape, 2) * (width / diffusion)
        rate = step * diffusion / width**2
        # one row per line: along x the lines are the columns
        along_x = _generator(rate, ratio[..., 0].T)
        along_y = _generator(rate, ratio[..., 1])
        u = _advance_lines(0.5, along_x, u.T, 0.0 * u.T).T
        u = _advance_lines(1.0, along_y, u, step * push.reshape(shape))
        return _advance_lines(0.5, along_x, u.T, 0.0 * u.T).T, None

    middles = 0.5 * (times[1:] + times[:-1])
    start = jnp.zeros(shape)
    u = jax.lax.scan(advance, start, (middles, jnp.diff(times)), reverse=True)[0].ravel()
    masses = width**2 * jnp.exp(target.log_density(PROCESS, nodes, 0.0))
    return Solution(u, 0.5 * jnp.sum(masses * u**2), nodes, masses)


def _generator(
    rate: Array, ratio: Float[Array, "lines n"]
) -> tuple[Float[Array, "lines n"], Float[Array, "lines n"]]:
    """The rates to the next and to the previous node, none at the ends."""
    ahead = (rate * bernoulli(-ratio)).at[:, -1].set(0.0)
    back = (rate * bernoulli(ratio)).at[:, 0].set(0.0)
    return ahead, back


def _advance_lines(
    share: float,
    generator: tuple[Float[Array, "lines n"], Float[Array, "lines n"]],
    u: Float[Array, "lines n"],
    push: Float[Array, "lines n"],
) -> Float[Array, "lines n"]:
    """u after a share of the step along every line."""
    ahead, back = generator
    size = share * _GAMMA
    matrix = (-size * back, 1.0 + size * (ahead + back), -size * ahead)

    def solve(b: Array) -> Array:
        return jax.lax.linalg.tridiagonal_solve(*matrix, b[..., None])[..., 0]

    change = solve(u + size * push) - u
    return solve(u + (1.0 / _GAMMA - 1.0) * change + size * push)
