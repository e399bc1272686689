"""Fitting the affine part of a network's score error.

For any data distribution the best affine fit of the exact score under p_t is the score of the
Gaussian with the data's mean and covariance, -Sigma_t^-1 (x - a mu) (Stein's identity). The affine
part of a network's error is therefore found without knowing the exact score: fit an affine function
to the network minus that Gaussian score, over noised data. What is left is the nonlinear part of
network and data, which acts as an error of the fit, and for a fit per mode also what mixes modes.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .. import _checks
from .._linalg import matmul
from .._progress import Progress
from .._types import AnyArray, Numbers, constant
from ..distributions import Gaussian
from ..prediction import AbstractDenoiser, Denoiser, check_denoiser, check_one_condition
from ..processes import check_times
from ..score_error import FullyCorrelated, ScoreError, Tabulated
from ._mixing import fit_mixing, measure_mixing, null_deviation
from ._samples import check_samples, check_target, dimensions, fit_gaussian
from ._score_error import ScoreErrorEstimate

SLOPES = ("diagonal", "matrix", "low_rank")

# a share of the residual that mixes modes is worth a warning from here on, if it is this number of
# standard deviations from 0
_SHARE = 0.01
_DEVIATIONS = 5.0
# residuals below this fraction of the score squared are rounding
_ROUNDING = 1e-10


class AffineFit(NamedTuple):
    """Slope, shift, mean squared residual and its part that mixes modes, at every time."""

    slope: Float[Array, "n modes ..."]
    shift: Float[Array, "n modes"]
    residual: Float[Array, "n modes"]
    mixing: Float[Array, "n modes"]


class _Regression(NamedTuple):
    """How slopes are fitted."""

    slopes: str = "diagonal"
    ridge: float | None = None


_PER_MODE = _Regression()


class _Data(NamedTuple):
    """What denoisers are fitted on."""

    samples: Float[Array, "count d"]
    target: Gaussian
    times: Float[AnyArray, " n"]


def estimate_score_error(
    denoisers: AbstractDenoiser | Sequence[AbstractDenoiser],
    samples: Numbers,
    times: Numbers,
    *,
    key: PRNGKeyArray | Array,
    target: Gaussian | None = None,
    repetitions: int = 8,
    batch: int = 1024,
    slopes: str = "diagonal",
    ridge: float | None = None,
    progress: bool = True,
) -> ScoreErrorEstimate:
    """Fit the affine part of the score errors of one network or several, per time and mode.

    At every time x = a x0 + s eps with the same draws of (x0, eps) for all times and networks of a
    repetition, and y = score(x, t) + Sigma_t^-1 (x - a mu); per mode y is regressed on x,

        Delta = -cov(y, x) / (var(x) (1 + ridge)),     delta = mean(y) + Delta mean(x).

    Matrix slopes add to that the regression of its residual on all modes, with a ridge. `residual`
    of the result is what the fit leaves, and `mixing` the part of that which a matrix would still
    explain; for a fit per mode a warning says where that is not small.

    **Arguments:**

    - `denoisers`: a `Denoiser` of a network batched over x of shape (batch, d), or several of one
      process.
    - `samples`: (n, ...) of the data, n >= 2; flattened to (n, d).
    - `times`: (m,) decreasing times of the process, > 0; the error is interpolated between them in
      log sigma.
    - `key`: a random key.
    - `target`: the Gaussian of the data; default: fitted to `samples` without shrinkage, so that
      the Gaussian score is that of the samples drawn from.
    - `repetitions`: fits per network, >= 2.
    - `batch`: draws per repetition, >= 3.
    - `slopes`: "diagonal", one slope per mode; "matrix", for batches of many times d draws;
      "low_rank", a matrix of low rank plus the diagonal, for fewer draws. Matrices take O(n d^2)
      numbers per network and repetition.
    - `ridge`: shrinks slopes by the factor 1 / (1 + ridge), >= 0; 0 for none. Default: none for
      slopes per mode; for matrices selected, as the rank is, on held-out draws.
    - `progress`: show a line of progress.

    **Returns:** a `ScoreErrorEstimate`.

    **Raises:** ValueError naming the argument, and for a network that returns NaN, infinity or
    another shape.

    **Example:**

    ```python
    >>> denoiser = jk.Denoiser(lambda x, t: -x, jk.VP(), "score")
    >>> samples = np.random.default_rng(0).standard_normal((64, 2))
    >>> estimate = jk.estimate_score_error(denoiser, samples, [0.5, 0.1], key=jax.random.key(0))
    ```
    """
    several = check_denoisers(denoisers)
    data = _check_data(several[0], samples, target, times)
    repetitions = _checks.count("repetitions", repetitions, at_least=2)
    batch = _checks.count("batch", batch, at_least=3)
    slopes = _checks.one_of("slopes", slopes, SLOPES)
    if ridge is not None:
        ridge = float(_checks.scalar("ridge", ridge, at_least=0.0))
    keys = jax.random.split(_checks.random_key("key", key), repetitions)
    with Progress("measuring the score error", progress) as line:
        estimate = _fit_all(several, data, keys, batch, _Regression(slopes, ridge), line)
    if slopes == "diagonal":
        process = several[0].process
        scale = np.sum(1.0 / np.asarray(data.target.marginal_variance(process, data.times)), 1)
        _warn_of_mixing(estimate, scale, batch)
    return estimate


def _fit_all(
    several: list[AbstractDenoiser],
    data: _Data,
    keys: Array,
    batch: int,
    regression: _Regression,
    line: Progress,
) -> ScoreErrorEstimate:
    """The fits of all networks, with the same draws in each of their repetitions."""
    shape = (len(several), len(keys), data.times.size, data.samples.shape[1])
    slope = np.empty(shape if regression.slopes == "diagonal" else (*shape, shape[-1]))
    shift = np.empty(shape)
    residual = np.zeros(shape[2:])
    mixing = np.zeros(shape[2:])
    for m, r in np.ndindex(*shape[:2]):
        line.update(
            f"measuring the score error: network {m + 1}/{shape[0]}, repetition {r + 1}/{shape[1]}"
        )
        fit = fit_affine(several[m], *data, keys[r], batch, regression)
        slope[m, r] = np.asarray(fit.slope)
        shift[m, r] = np.asarray(fit.shift)
        _check_finite(slope[m, r].reshape(*shape[2:], -1).sum(-1) + shift[m, r], m, data.times)
        residual += np.asarray(fit.residual) / (shape[0] * shape[1])
        mixing += np.asarray(fit.mixing) / (shape[0] * shape[1])
    arrays = (slope, shift, residual, mixing)
    return ScoreErrorEstimate(data.times, *(constant(a) for a in arrays))


def _warn_of_mixing(
    estimate: ScoreErrorEstimate, scale: Float[np.ndarray, " n"], batch: int
) -> None:
    """Warn where slopes per mode miss an error that mixes modes, for scores squared `scale`."""
    residual = np.asarray(estimate.residual)
    total = residual.sum(1)
    found = np.asarray(estimate.mixing).sum(1)
    doubt = _DEVIATIONS * null_deviation(residual, batch, estimate.num_repetitions)
    missed = (found > doubt) & (found > _SHARE * total) & (total > _ROUNDING * scale)
    if np.any(missed):
        i = int(np.argmax(np.where(missed, found / np.maximum(total, 1e-300), 0.0)))
        warnings.warn(
            f"at t = {estimate.times[i]:g} {found[i] / total[i]:.0%} of what slopes per mode leave "
            "of the error is linear and mixes modes: predictions miss it. Use slopes='matrix', or "
            "'low_rank' for few draws, with error_kernel(..., dense=True).",
            stacklevel=3,
        )


def linearised_score_error(
    denoiser: Denoiser,
    directions: Sequence[PyTree],
    samples: Numbers,
    times: Numbers,
    *,
    key: PRNGKeyArray | Array,
    target: Gaussian | None = None,
    batch: int = 8192,
    slopes: str = "diagonal",
) -> ScoreError:
    """Compute the score error that a random change of a network's parameters causes, linearised.

    With parameters p + sum_j z_j v_j, z normal, the score changes by sum_j z_j J v_j, J its
    derivative in the parameters: covariance J Cov(p) J^T. The affine part of each J v_j is fitted
    as in `estimate_score_error`.

    **Arguments:**

    - `denoiser`: a `Denoiser` whose `fn` is an Equinox module.
    - `directions`: trees like `eqx.filter(denoiser.fn, eqx.is_inexact_array)`, the factors v_j of
      the parameters' covariance sum_j v_j v_j^T, such as scaled differences of checkpoints.
    - `samples`: (n, ...) of the data, n >= 2; flattened to (n, d).
    - `times`: (m,) decreasing times of the process, > 0.
    - `key`: a random key.
    - `target`: the Gaussian of the data; default: fitted to `samples` without shrinkage.
    - `batch`: draws, >= 3.
    - `slopes`: "diagonal", one per mode, or "matrix", for many times d draws.

    **Returns:** a `ScoreError` with one direction per v_j, correlated in time as the network makes
    it.

    **Raises:** ValueError naming the argument.

    **Example:**

    ```python
    >>> network = jax.tree_util.Partial(lambda w, x, t: w * x, jnp.ones(2))
    >>> denoiser = jk.Denoiser(network, jk.VP(), "score")
    >>> error = jk.linearised_score_error(
    ...     denoiser, [network], np.eye(2), [0.5], key=jax.random.key(0), batch=8
    ... )
    ```
    """
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"denoiser must be a Denoiser(fn, process, ...); got {denoiser!r}.")
    if not directions:
        raise ValueError("directions is empty; pass at least one change of the parameters.")
    data = _check_data(denoiser, samples, target, times)
    batch = _checks.count("batch", batch, at_least=3)
    slopes = _checks.one_of("slopes", slopes, SLOPES[:2])
    # without a ridge: directions scale with their fits
    regression = _Regression(slopes, 0.0)
    expected = jax.tree.structure(eqx.filter(denoiser.fn, eqx.is_inexact_array))
    fits = []
    for j, direction in enumerate(directions):
        if jax.tree.structure(direction) != expected:
            raise ValueError(f"directions[{j}] is not a tree like the network's inexact arrays.")
        change = Denoiser(_ScoreDerivative(denoiser, direction), denoiser.process, "score")
        fits.append(fit_affine(change, *data, key, batch, regression, subtract=False))
    slope = np.stack([np.asarray(fit.slope, np.float64) for fit in fits])
    shift = np.stack([np.asarray(fit.shift, np.float64) for fit in fits])
    return ScoreError(Tabulated(data.times, slope, shift), FullyCorrelated())


@eqx.filter_jit
def fit_affine(
    denoiser: AbstractDenoiser,
    samples: Float[Array, "count d"],
    target: Gaussian,
    times: Float[AnyArray, " n"],
    key: Array,
    batch: int,
    regression: _Regression = _PER_MODE,
    *,
    subtract: bool = True,
) -> AffineFit:
    """The fit of one denoiser's score in one repetition, minus the Gaussian score by default."""
    key_data, key_noise = jax.random.split(key)
    x0 = samples[jax.random.randint(key_data, (batch,), 0, samples.shape[0])]
    eps = jax.random.normal(key_noise, x0.shape, x0.dtype)
    basis = None if target.basis is None else jnp.asarray(target.basis, x0.dtype)
    denoiser = denoiser.astype(x0.dtype)
    process = denoiser.process

    def fit_at(t: Array) -> AffineFit:
        t = t.astype(x0.dtype)
        x = process.signal(t) * x0 + process.noise(t) * eps
        y = -denoiser(x, t).eps / process.noise(t)
        if subtract:
            y = y - target.score(process, x, t).astype(y.dtype)
        if basis is not None:
            x = matmul(x, basis)
            y = matmul(y, basis)
        return _regress(x, y, regression)

    return jax.lax.map(fit_at, jnp.asarray(times))


def _regress(
    x: Float[Array, "batch modes"], y: Float[Array, "batch modes"], regression: _Regression
) -> AffineFit:
    """y = -slope x + shift by least squares, per mode or with a matrix."""
    # centred sums, in the mode's own units
    dx = x - jnp.mean(x, 0)
    dy = y - jnp.mean(y, 0)
    variance = jnp.mean(dx**2, 0)
    ridge = 0.0 if regression.ridge is None else regression.ridge
    slope = -jnp.mean(dx * dy, 0) / jnp.where(variance > 0, variance * (1.0 + ridge), 1.0)
    rest = dy + slope * dx
    residual = jnp.mean(rest**2, 0)
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 1.0)
    u = dx / deviation
    mixing = measure_mixing(u, rest)
    if regression.slopes == "diagonal":
        return AffineFit(slope, jnp.mean(y, 0) + slope * jnp.mean(x, 0), residual, mixing)
    penalty = None if regression.ridge is None else regression.ridge * x.shape[0]
    fit = fit_mixing(u, rest, penalty, regression.slopes == "low_rank")
    matrix = jnp.diag(slope) - (fit.matrix / deviation[:, None]).T
    shift = jnp.mean(y, 0) + matmul(matrix, jnp.mean(x, 0))
    return AffineFit(matrix, shift, fit.residual, mixing - (residual - fit.residual))


class _ScoreDerivative(eqx.Module):
    """The derivative of a network's score along a change of its parameters, as a network."""

    denoiser: Denoiser
    direction: PyTree

    def __call__(self, x: Array, t: Array) -> Array:
        parameters, static = eqx.partition(self.denoiser.fn, eqx.is_inexact_array)
        process = self.denoiser.process

        def score(parameters: PyTree) -> Array:
            network = eqx.combine(parameters, static)
            denoiser = eqx.tree_at(lambda d: d.fn, self.denoiser, network)
            return -denoiser(x, t).eps / process.noise(t)

        return jax.jvp(score, (parameters,), (self.direction,))[1]


def check_denoisers(
    denoisers: AbstractDenoiser | Sequence[AbstractDenoiser],
) -> list[AbstractDenoiser]:
    """A list of denoisers of one process."""
    several = list(denoisers) if isinstance(denoisers, Sequence) else [denoisers]
    if not several:
        raise ValueError("denoisers is empty; pass a denoiser or a list of denoisers.")
    for m, denoiser in enumerate(several):
        check_one_condition(check_denoiser(denoiser))
        if not eqx.tree_equal(denoiser.process, several[0].process):
            raise ValueError(
                f"denoisers[{m}] is of another process than denoisers[0]: {denoiser.process} and "
                f"{several[0].process}."
            )
    return several


def _check_data(
    denoiser: AbstractDenoiser, samples: Numbers, target: Gaussian | None, times: Numbers
) -> _Data:
    """Flattened samples, their Gaussian, and the times, checked."""
    rows = check_samples(_checks.array("samples", samples))
    rows = rows.reshape(rows.shape[0], -1)
    check_target(target, dimensions(rows))
    if target is None:
        target = fit_gaussian(rows)
    checked = check_times(check_one_condition(check_denoiser(denoiser)).process, times)
    return _Data(jnp.asarray(rows, float), target, checked)


def _check_finite(values: Float[np.ndarray, "n modes"], network: int, times: AnyArray) -> None:
    """An error that names the network and the time of a NaN or infinity."""
    finite = np.isfinite(values).all(-1)
    if not np.all(finite):
        t = times[int(np.argmin(finite))]
        raise ValueError(f"denoisers[{network}] returned NaN or infinity at t = {t:g}.")
