"""Separable covariances of a score error: one correlation in time, one covariance of parameters."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .. import _checks
from .._types import AnyArray, Numbers
from ..processes import AbstractProcess, check_process
from ._affine import AffineError
from ._correlation import OrnsteinUhlenbeck
from ._model import ScoreError
from ._profile import Tabulated
from ._roots import check_blocks, roots_of, split_parameters

# correlation lengths that are searched, relative to the range and the least distance of the times
_LONGEST = 1e3
_SHORTEST = 1e-2
# each narrows the range to a hundredth
_SCANS = 6


class SeparableFit(NamedTuple):
    """A separable model of a covariance, made by `fit_separable`.

    **Arguments:**

    - `score_error`: the model.
    - `length`: its correlation length, in units of the coordinate of time.
    - `residual`: the Frobenius norm of what the model leaves of the covariance, relative to it.

    **Example:**

    ```python
    >>> fit = jk.score_error.fit_separable(jk.VP(), [0.5, 0.1], np.eye(4).reshape(2, 2, 2, 2), 1)
    >>> fit.residual < 1e-6
    True
    ```
    """

    score_error: ScoreError
    length: float
    residual: float


def fit_separable(
    process: AbstractProcess,
    times: Numbers,
    covariance: Numbers,
    num_modes: int,
    mean: AffineError | None = None,
    *,
    coordinate: str = "log_snr",
) -> SeparableFit:
    """Fit a separable (Kronecker) model with a parametric correlation in time to a covariance.

        cov(theta_a, theta_b) ~ c_a c_b exp(-|u_a - u_b| / length) M,     theta = (Delta, delta)

    of n times with P parameters each. Every number comes from traces, which average what a few
    draws leave uncertain: c_a^2 = tr cov_aa, M is the mean of cov_aa / c_a^2, and the length
    minimises sum_ab (tr cov_ab - c_a c_b exp(-|u_a - u_b| / length))^2. There are n + 1 + P^2 / 2
    numbers to learn in place of (n P)^2 / 2, and `residual` says what the structure misses. A
    covariance that has this form comes back exactly.

    **Arguments:**

    - `process`: the process of the times.
    - `times`: (n,) strictly decreasing, n >= 2.
    - `covariance`: (n, P, n, P) as for `ScoreError.from_block_covariance`, or (n, 2, n, 2, d) per
      mode as `ScoreErrorEstimate.covariance` has it. Negative eigenvalues of M, which an unbiased
      estimate may have, are replaced by 0 and are part of the residual.
    - `num_modes`: d; P = 2 d for slopes per mode, d^2 + d for matrices.
    - `mean`: an `AffineError` with fields (n, modes[, modes]), or None for 0.
    - `coordinate`: u, "log_snr" or "time".

    **Returns:** a `SeparableFit`.

    **Raises:** ValueError naming the argument; also for a covariance without a positive trace at
    some time.

    **Example:**

    ```python
    >>> draws = np.random.default_rng(0).standard_normal((9, 3, 4))  # 2 slopes, 2 shifts
    >>> covariance = np.einsum("rap,rbq->apbq", draws, draws) / 9
    >>> fit = jk.score_error.fit_separable(jk.VP(), [0.8, 0.4, 0.1], covariance, 2)
    ```

    Source: derived here; such models are proposed in "Correlated-time kernel expansions of the
    score error" (manuscript).
    """
    times = _checks.array("times", times)
    if times.ndim != 1 or times.size < 2 or np.any(np.diff(times) >= 0):
        raise ValueError(f"times must be two or more, strictly decreasing; got {times}.")
    given = _checks.array("covariance", covariance)
    if given.ndim == 5:
        given = _couple_nothing(given)
    blocks = check_blocks(times.size, given, num_modes)
    traces = np.einsum("apbp->ab", blocks)
    sizes = np.diagonal(traces)
    if np.any(sizes <= 0):
        raise ValueError(f"covariance has the trace {sizes.min():.3g} at a time; it must be > 0.")
    process = check_process(process)
    # a correlation of the given coordinate, which checks its name
    unit = OrnsteinUhlenbeck(1.0, coordinate)
    u = times if unit.coordinate == "time" else np.asarray(process.log_snr(times), np.float64)
    amplitude = np.sqrt(sizes)
    length = _fit_length(np.abs(u[:, None] - u), traces / np.outer(amplitude, amplitude), amplitude)
    within = np.einsum("apaq,a->pq", blocks, 1.0 / sizes) / times.size
    roots = roots_of(within, project=True)
    correlation = OrnsteinUhlenbeck(length, coordinate)
    slope, shift = split_parameters(roots[:, None] * amplitude[:, None], num_modes)
    known = None if mean is None else Tabulated(times, mean.slope[None], mean.shift[None])
    model = ScoreError(Tabulated(times, slope, shift), correlation, known)
    decay = np.exp(-np.abs(u[:, None] - u) / length) * np.outer(amplitude, amplitude)
    left = blocks - np.einsum("ab,pq->apbq", decay, roots.T @ roots)
    return SeparableFit(model, length, float(np.linalg.norm(left) / np.linalg.norm(blocks)))


def _couple_nothing(
    covariance: Float[AnyArray, "n 2 n 2 modes"],
) -> Float[np.ndarray, "n parameters n parameters"]:
    """Covariances per mode as one of all parameters (slopes, shifts), 0 between modes."""
    n, _, _, _, modes = covariance.shape
    blocks = np.einsum("apbqi,ij->apibqj", covariance, np.eye(modes))
    return blocks.reshape(n, 2 * modes, n, 2 * modes)


def _fit_length(
    distance: Float[np.ndarray, "n n"],
    correlation: Float[np.ndarray, "n n"],
    amplitude: Float[np.ndarray, " n"],
) -> float:
    """The correlation length of least squares, weighted by the products of amplitudes."""
    weights = np.outer(amplitude, amplitude)
    apart = distance[distance > 0]
    ends = np.log([_SHORTEST * apart.min(), _LONGEST * apart.max()])

    def misfit(log_length: float) -> float:
        model = np.exp(-distance * np.exp(-log_length))
        return float(np.sum((weights * (correlation - model)) ** 2))

    # the criterion may have several minima: each scan is between the neighbours of the last's best
    for _ in range(_SCANS):
        scan = np.linspace(ends[0], ends[1], 200)
        i = int(np.argmin([misfit(s) for s in scan]))
        ends = scan[[max(i - 1, 0), min(i + 1, scan.size - 1)]]
    return float(np.exp(0.5 * (ends[0] + ends[1])))
