"""The infimum of L over all h(t) >= 0, for isotropic Gaussian data and relative errors c >= 0.

With g = e^{-H}, which falls from 1,

    -W = int (1 + alpha^2) g c dy = c(0) - g(Y) c(Y) + int_0^Y g (c + dc/dy) dy                 (1)

is linear in g. Its least value is therefore attained at an extreme point of the set of such g, a
step: no noise between the data and some y*, and full equilibration at y*. For c >= 0

    inf L = d/4 min(int_0^Y c dy, min_{y*} [c(y*) + int_0^{y*} c dy])^2,                        (2)

with dc/dy = -c at an inner minimum: the deterministic flow is right exactly where c falls faster
than e^{-y}. Cao, Chen, Luo, Zhou (2023), Section 5, leave a time-dependent h open.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from .._precision import in_float64
from .._types import Numbers
from ..distributions import Gaussian
from ._cells import (
    TimeProfile,
    broadcast_to_modes,
    check_edges,
    check_profile,
    check_variances,
    evaluate_profile,
)
from ._quadrature import place_nodes
from ._time_change import inverse_mode_time, mode_time, mode_variance

# intervals in y on which a function c is sampled
_INTERVALS = 2048

# times at which the sign of c is looked at
_SAMPLED = 257


@dataclasses.dataclass(frozen=True)
class Infimum:
    """The least L that any h(t) >= 0 reaches. `diffusion_infimum` computes it.

    **Example:**

    ```python
    >>> found = jk.reverse_sde.diffusion_infimum(jk.Gaussian(0.0, [1.0]), 1.0, [0.0, 2.0])
    >>> print(f"{found.value:.4f}")  # d / 4 for E = grad log p
    0.2500
    ```
    """

    value: float
    """inf L, in nats per eps^2."""
    time: float
    """theta*: noise only before it, that is at larger theta; the final time if no noise is best."""


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Places y* at which full equilibration is tried."""

    y: np.ndarray
    error: np.ndarray
    """c there."""
    before: np.ndarray
    """int_0^{y*} c dy."""
    total: float
    """int_0^Y c dy."""


@in_float64
def diffusion_infimum(target: Gaussian, error: TimeProfile, edges: Numbers) -> Infimum:
    """Compute the infimum of L(h) over all h(t) >= 0, for isotropic data and errors c >= 0.

        inf L = d/4 min(int_0^Y c dy, min_{y*} [c(y*) + int_0^{y*} c dy])^2

    **Arguments:**

    - `target`: Gaussian data with one eigenvalue > 0 for all modes.
    - `error`: c >= 0, the error relative to the score, a `TimeProfile`.
    - `edges`: (cells + 1,), rescaled times theta from 0 to the start of sampling. For a function c,
      the two ends are enough.

    **Returns:** an `Infimum`: the value and theta*.

    **Raises:** ValueError for several different eigenvalues, or where c < 0: L = 0 may then be
    reached.

    **Example:**

    ```python
    >>> found = jk.reverse_sde.diffusion_infimum(jk.Gaussian(0.0, [0.04]), 1.0, [0.0, 2.0])
    >>> print(f"{found.value:.4f} {found.time:.1f}")
    0.2500 0.0
    ```

    Source: derived here.
    """
    return find_infimum(target, error, np.asarray(check_edges(edges)))


def find_infimum(target: Gaussian, error: TimeProfile, edges: np.ndarray) -> Infimum:
    """The infimum, for checked edges."""
    variance = _check_isotropic(target)
    if callable(error):
        found = _sample_function(error, edges, variance)
    else:
        found = _sample_cells(error, edges, variance)
    times = np.asarray(inverse_mode_time(jnp.asarray(found.y), jnp.asarray(variance)))
    if np.min(found.error) < 0:
        i = int(np.argmin(found.error))
        raise ValueError(
            f"error must be >= 0 for the infimum; at time {float(times[i]):g} it is "
            f"{found.error[i]:g}."
        )
    cost = found.error + found.before
    best = int(np.argmin(cost))
    least = float(cost[best])
    time = float(times[best])
    if callable(error) and 0 < best < cost.size - 1:
        y, least = _refine(found.y, cost, best)
        time = float(inverse_mode_time(jnp.asarray(y), jnp.asarray(variance)))
    if found.total <= least * (1.0 + 1e-9):  # equal but for rounding: the simpler of the two
        least = found.total
        time = float(edges[-1])
    dimension = float(np.sum(np.asarray(target.weights)))
    return Infimum(0.25 * dimension * least**2, time)


def find_known_infimum(
    target: Gaussian, error: TimeProfile, edges: np.ndarray, signs: str
) -> Infimum | None:
    """The infimum where it is known: coherent errors of one sign, and isotropic data."""
    variances = np.asarray(target.eigenvalues)
    per_mode = not callable(error) and np.ndim(error) == 2
    if signs != "coherent" or np.any(variances != variances[0]) or per_mode:
        return None
    if callable(error):
        sampled = jnp.linspace(0.0, edges[-1], _SAMPLED)
        values = evaluate_profile(error, sampled[:, None], variances.size)
    else:
        values = error
    if np.min(np.asarray(values)) < 0:
        return None
    return find_infimum(target, error, edges)


def _check_isotropic(target: Gaussian) -> float:
    """The variance that all modes share."""
    variances = np.asarray(check_variances(target))
    if np.any(variances != variances[0]):
        raise ValueError(
            f"target.eigenvalues go from {variances.min():g} to {variances.max():g}; "
            "the infimum needs equal ones."
        )
    return float(variances[0])


def _sample_cells(error: Numbers, edges: np.ndarray, variance: float) -> _Candidates:
    """The beginnings of the cells: within a cell the cost only grows with y*."""
    cells = edges.size - 1
    checked = check_profile("error", error, cells, 1)
    c = np.asarray(broadcast_to_modes(checked, cells, 1))[:, 0]  # pyright: ignore[reportArgumentType]
    y = np.asarray(mode_time(jnp.asarray(edges), jnp.asarray(variance)))
    sums = np.concatenate([[0.0], np.cumsum(c * np.diff(y))])
    return _Candidates(y[:-1], c, sums[:-1], float(sums[-1]))


def _sample_function(error: TimeProfile, edges: np.ndarray, variance: float) -> _Candidates:
    """Points on a fine uniform grid in y."""
    lam = jnp.asarray(variance)
    last = mode_time(jnp.asarray(edges[-1]), lam)
    y = jnp.linspace(0.0, last, _INTERVALS + 1)
    nodes, weights = place_nodes(inverse_mode_time(y, lam), lam, 1)
    dy = weights / mode_variance(nodes, lam)
    pieces = jnp.sum(dy * evaluate_profile(error, nodes, 1)[..., 0], 1)
    starts = inverse_mode_time(y[:-1], lam)
    c = np.asarray(evaluate_profile(error, starts[:, None], 1))[:, 0, 0]
    before = np.concatenate([[0.0], np.cumsum(pieces)])[:-1]
    return _Candidates(np.asarray(y[:-1]), c, before, float(jnp.sum(pieces)))


def _refine(y: np.ndarray, cost: np.ndarray, best: int) -> tuple[float, float]:
    """y and the value at the minimum of a parabola through three neighbours.

    The grid is fine enough that the error of the parabola is of fourth order.
    """
    low, middle, high = cost[best - 1 : best + 2]
    offset = 0.5 * (low - high) / max(low - 2.0 * middle + high, 1e-300)
    return y[best] + offset * (y[1] - y[0]), float(middle - 0.25 * (low - high) * offset)
