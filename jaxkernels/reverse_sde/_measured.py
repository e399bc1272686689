"""The best h(t) for the measured score error of a network, and whether it is worth using.

A fit e(x) = -Delta x + delta at time t is, relative to the score of the Gaussian of the data,

    c = Delta Sigma_t,     b = sqrt(Sigma_t) (delta - Delta a mu),

which does not depend on the scaling of space; for matrix slopes sqrt(Sigma_t) Delta sqrt(Sigma_t)
stands in the place of c. h(t) is optimised on one half of the repetitions of
the fits, and judged on the other. L is a square in the error, and the fits scatter: it is estimated
by products of different repetitions, which are independent.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import smallest
from .._precision import in_float64
from .._types import AnyArray
from ..distributions import Gaussian
from ..measurement import ConfidenceInterval, ScoreErrorEstimate, student_mean
from ..processes import AbstractProcess
from ._affine import respond_affine, whiten_error
from ._cells import check_variances
from ._continuous import OptimalDiffusion, optimize_diffusion
from ._continuous_affine import optimize_affine_diffusion
from ._leading_order import cell_responses
from ._quadrature import count_panels, place_nodes
from ._time_change import mode_variance, time_change

_LEVEL = 0.95
_VERDICTS = (
    "use this h(t): it is better than alpha = 0 and than alpha = 1",
    "use alpha = 0: no gain of noise is established",
    "use alpha = 1: no gain of h(t) over it is established",
)


@dataclasses.dataclass(frozen=True)
class MeasuredDiffusion:
    """The best h(t) for a measured score error. `optimize_measured_diffusion` computes it.

    **Example:**

    ```python
    >>> fits = (*np.full((2, 1, 6, 2, 1), 0.1), np.zeros((2, 1)))
    >>> setting = (jk.ScoreErrorEstimate(np.array([0.9, 0.1]), *fits), jk.Gaussian(0.0, [0.5]))
    >>> found = jk.reverse_sde.optimize_measured_diffusion(*setting, jk.VP(), cells=2)
    ```
    """

    optimum: OptimalDiffusion
    """On the first half of the repetitions, its values in nats (eps = 1)."""
    value: ConfidenceInterval
    """Predicted KL of its h(t) on the second half, in nats, with a 95% interval."""
    gain_over_ode: ConfidenceInterval
    """KL of alpha = 0 minus that of this h(t), on the second half, in nats, with a 95% interval."""
    gain_over_sde: ConfidenceInterval
    """The same for alpha = 1."""

    @property
    def verdict(self) -> str:
        """What to sample with: this h(t) only if it is better than both on the second half."""
        over_ode = self.gain_over_ode.low > 0
        over_sde = self.gain_over_sde.low > 0
        if over_ode and over_sde:
            return _VERDICTS[0]
        return _VERDICTS[2] if over_ode else _VERDICTS[1]


@in_float64
def optimize_measured_diffusion(
    estimate: ScoreErrorEstimate,
    target: Gaussian,
    process: AbstractProcess,
    *,
    cells: int = 16,
    cap: float = 100.0,
) -> MeasuredDiffusion:
    """Find the best h(t) for the measured score error of a network, with a verdict.

    `optimize_diffusion` for the mean error of half of the repetitions, or with matrix slopes
    `optimize_affine_diffusion`; then KL to leading order on
    the other half, its mean over networks, for this h(t), alpha = 0 and alpha = 1. Time is
    continuous: with a small NFE the discretisation costs more than the error of the score, see
    `optimize_discrete_stochasticity`.

    **Arguments:**

    - `estimate`: `jk.estimate_score_error(...)`, with at least 6 repetitions.
    - `target`: the Gaussian of the data for which it was measured, with eigenvalues > 0, and for
      matrix slopes unit weights.
    - `process`: its forward process; sampling starts at the first of the estimate's times.
    - `cells`: number of cells on which alpha^2 = h^2 / g^2 is constant.
    - `cap`: bound > 0 on alpha^2.

    **Returns:** a `MeasuredDiffusion`.

    **Raises:** ValueError for fewer than 6 repetitions, other modes than the target's, or an error
    that vanishes.

    **Example:**

    ```python
    >>> fits = (*np.full((2, 1, 6, 2, 1), 0.1), np.zeros((2, 1)))
    >>> setting = (jk.ScoreErrorEstimate(np.array([0.9, 0.1]), *fits), jk.Gaussian(0.0, [0.5]))
    >>> found = jk.reverse_sde.optimize_measured_diffusion(*setting, jk.VP(), cells=2)
    ```

    Source: the question is that of Cao, Chen, Luo, Zhou (2023), Section 5.
    """
    target = target.in_eigenbasis()
    variances = check_variances(target)
    _check_estimate(estimate, variances.shape[0])
    errors = (_Matrices if estimate.dense else _Relative).of(estimate, target, process)
    half = estimate.num_repetitions // 2
    optimum = errors.optimize(target, half, _checks.count("cells", cells), cap)
    panels = count_panels(optimum.edges, variances, cap)

    def leading(alpha2: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " repetitions"]:
        """Jackknife values of KL over the second half of the repetitions."""
        return _pseudo_values(errors.respond(target, optimum.edges, alpha2, half, panels))

    best = leading(optimum.stochasticity_squared)
    ode = leading(np.zeros_like(optimum.stochasticity_squared))
    sde = leading(np.ones_like(optimum.stochasticity_squared))
    judged = (best, ode - best, sde - best)
    return MeasuredDiffusion(optimum, *(student_mean(values, _LEVEL) for values in judged))


@dataclasses.dataclass(frozen=True)
class _Relative:
    """Fits relative to the score, (networks, repetitions, n, modes), at rescaled times (n,)."""

    theta: np.ndarray
    relative: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(
        cls, estimate: ScoreErrorEstimate, target: Gaussian, process: AbstractProcess
    ) -> "_Relative":
        """Those of an estimate."""
        times = jnp.asarray(estimate.times)
        variance = np.asarray(target.marginal_variance(process, times))
        center = np.asarray(process.signal(times))[:, None] * np.asarray(target.mean)
        slope = np.asarray(estimate.slope)
        shift = np.sqrt(variance) * (np.asarray(estimate.shift) - slope * center)
        return cls(np.asarray(time_change(process, times)), slope * variance, shift)

    def optimize(self, target: Gaussian, half: int, cells: int, cap: float) -> OptimalDiffusion:
        """The best h(t) for the mean error of the first repetitions."""
        return optimize_diffusion(
            target,
            _interpolate(self.theta, self.relative[:, :half].mean((0, 1))),
            float(self.theta[0]),
            shift=_interpolate(self.theta, self.shift[:, :half].mean((0, 1))),
            cells=cells,
            cap=cap,
        )

    def respond(
        self, target: Gaussian, edges: np.ndarray, alpha2: np.ndarray, first: int, panels: int
    ) -> Float[np.ndarray, "networks repetitions parts"]:
        """What the repetitions from `first` on do to the samples, scaled so that L is the square.

        The changes of the log variance and of the mean of every mode.
        """

        def one(network: int, repetition: int) -> np.ndarray:
            error = (self.relative[network, repetition], self.shift[network, repetition])
            profiles = (_interpolate(self.theta, part) for part in error)
            found = cell_responses(target, edges, alpha2, *profiles, panels=panels)
            root = np.sqrt(np.asarray(target.weights))
            variance = 0.5 * root * np.asarray(found.variance).sum(0)
            return np.append(variance, root * np.asarray(found.mean).sum(0) / np.sqrt(2.0))

        networks, repetitions = self.relative.shape[:2]
        judges = range(first, repetitions)
        return np.stack([[one(network, r) for r in judges] for network in range(networks)])


@dataclasses.dataclass(frozen=True)
class _Matrices:
    """Fits relative to the score with matrix slopes, at rescaled times (n,)."""

    theta: np.ndarray
    relative: Float[np.ndarray, "networks repetitions n modes modes"]
    shift: Float[np.ndarray, "networks repetitions n modes"]

    @classmethod
    def of(
        cls, estimate: ScoreErrorEstimate, target: Gaussian, process: AbstractProcess
    ) -> "_Matrices":
        """Those of an estimate."""
        times = jnp.asarray(estimate.times)
        root = np.sqrt(np.asarray(target.marginal_variance(process, times)))
        center = np.asarray(process.signal(times))[:, None] * np.asarray(target.mean)
        slope = np.asarray(estimate.slope)
        shift = root * (np.asarray(estimate.shift) - np.einsum("...ij,...j", slope, center))
        relative = root[:, :, None] * slope * root[:, None]
        return cls(np.asarray(time_change(process, times)), relative, shift)

    def optimize(self, target: Gaussian, half: int, cells: int, cap: float) -> OptimalDiffusion:
        """The best h(t) for the mean error of the first repetitions."""
        relative = self.relative[:, :half].mean((0, 1))
        matrix, shift = self._error(target, relative, self.shift[:, :half].mean((0, 1)))
        final_time = float(self.theta[0])
        return optimize_affine_diffusion(
            target, matrix, final_time, shift=shift, cells=cells, cap=cap
        )

    def respond(
        self, target: Gaussian, edges: np.ndarray, alpha2: np.ndarray, first: int, panels: int
    ) -> Float[np.ndarray, "networks repetitions parts"]:
        """What the repetitions from `first` on do to the samples, scaled so that L is the square.

        The changes of the whitened covariance and of the mean.
        """
        variances = jnp.asarray(target.eigenvalues)
        times, weights = place_nodes(jnp.asarray(edges), smallest(variances), panels)

        @jax.jit
        def one(relative: Array, shift: Array) -> Array:
            whitened = whiten_error(target, *self._error(target, relative, shift), times)
            where = (jnp.asarray(edges), variances, jnp.asarray(alpha2), times, weights)
            change, mean = respond_affine(*where, *whitened)
            return jnp.append(0.5 * change, mean / np.sqrt(2.0))

        pairs = zip(self.relative[:, first:], self.shift[:, first:], strict=True)
        rows = [[one(*map(jnp.asarray, fit)) for fit in zip(*pair, strict=True)] for pair in pairs]
        return np.stack([np.stack(row) for row in rows])

    def _error(
        self, target: Gaussian, relative: AnyArray, shift: AnyArray
    ) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """A and beta of rescaled space at a time, from what they are relative to the score."""
        whole = _interpolate(self.theta, relative)
        push = _interpolate(self.theta, shift)

        def deviation(theta: Array) -> Array:
            return jnp.sqrt(mode_variance(theta, jnp.asarray(target.eigenvalues)))

        def matrix(theta: Array) -> Array:
            root = deviation(theta)
            return -whole(theta) / (root[:, None] * root)

        def beta(theta: Array) -> Array:
            center = jnp.exp(-0.5 * theta) * jnp.asarray(target.mean)
            return push(theta) / deviation(theta) - matrix(theta) @ center

        return matrix, beta


def _interpolate(theta: np.ndarray, values: Float[AnyArray, "n ..."]) -> Callable[[Array], Array]:
    """Values between the times, linear in log sigma and constant beyond them, as last axes."""
    known = jnp.asarray(0.5 * np.log(np.expm1(theta))[::-1])
    columns = jnp.asarray(values)[::-1].reshape(len(theta), -1).T
    shape = values.shape[1:]

    def interpolate(theta: Array) -> Array:
        log_sigma = 0.5 * jnp.log(jnp.expm1(theta))
        found = jnp.stack([jnp.interp(log_sigma, known, column) for column in columns], -1)
        return found.reshape(*theta.shape, *shape)

    return interpolate


def _pseudo_values(
    totals: Float[np.ndarray, "networks repetitions parts"],
) -> Float[np.ndarray, " repetitions"]:
    """Jackknife values of the mean over networks of products of different repetitions."""

    def cross(totals: np.ndarray) -> float:
        count = totals.shape[1]
        products = totals.sum(1) ** 2 - (totals**2).sum(1)
        return float(np.sum(products.mean(0))) / (count * (count - 1))

    count = totals.shape[1]
    without = [cross(np.delete(totals, r, 1)) for r in range(count)]
    return count * cross(totals) - (count - 1) * np.array(without)


def _check_estimate(estimate: ScoreErrorEstimate, modes: int) -> None:
    """A ValueError for an estimate that cannot be used."""
    estimate = _checks.instance("estimate", estimate, ScoreErrorEstimate)
    if estimate.num_repetitions < 6:
        raise ValueError(
            f"estimate has {estimate.num_repetitions} repetitions; 6 or more are needed, one half "
            "to optimise h(t), the other to judge it."
        )
    if estimate.shift.shape[-1] != modes:
        raise ValueError(f"estimate has {estimate.shift.shape[-1]} modes; the target has {modes}.")
    if len(estimate.times) < 2:
        raise ValueError("estimate has a single time; h(t) needs the error at several.")
