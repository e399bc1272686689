"""The score error of trained networks, as an affine function of x at every time, and its covariance.

For any data law the best affine fit of the exact score under p_t is the score of the Gaussian with the
data's mean and covariance, -Sigma_t^-1 (x - a mu) (Stein's identity). The affine part of a network's error
is therefore found without knowing the exact score: fit an affine function to the network minus that Gaussian
score, over noised data. What is left is the network's (and the data's) nonlinear part, which acts as noise of
the fit.

Two kinds of randomness are kept apart. *Genuine*: networks of an ensemble (seeds, checkpoints, folds) differ.
*Estimation*: a fit from finitely many draws is noisy, by the nonlinear part. Every network is fitted in several
repetitions, with fresh draws in each and the same draws for all networks, and products are formed only between
different repetitions, whose noise is independent: their average is unbiased for the genuine second moments. A
single network has no genuine randomness; its error is a fixed function and its "covariance" the outer product
of that function with itself. (Refitting one network on fresh draws, as is sometimes proposed, measures the noise of
the fit: for a network with an exactly affine error it gives 0.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .. import _checks
from .._linalg import matmul
from .._progress import Progress
from .._types import AnyArray, Network, Numbers, constant
from ..distributions import Gaussian
from ..errors import ErrorKernel
from ..prediction import Denoiser
from ..processes import AbstractProcess, check_times
from ..score_error import AffineError, FullyCorrelated, ScoreError, Tabulated

_RESAMPLES = 4000


STRUCTURES = ("dense", "banded", "low_rank")


class ConfidenceInterval(NamedTuple):
    """A value with a confidence interval from resampling networks (or repetitions, of a single network)."""

    value: float
    low: float
    high: float


class ScoreErrorEstimate(eqx.Module):
    """Affine fits of the score errors of M networks in R repetitions at n times.

    `slope`, `shift` (M, R, n, modes), along the target's modes: e_t(x) = -slope x + shift, mode by mode.
    `residual` (n, modes): mean square of what the affine function leaves of the network minus the Gaussian score,
    in score units.
    """

    times: Float[AnyArray, " n"]
    slope: Float[AnyArray, "networks repetitions n modes"]
    shift: Float[AnyArray, "networks repetitions n modes"]
    residual: Float[AnyArray, "n modes"]

    @property
    def num_networks(self) -> int:
        """M."""
        return self.shift.shape[0]

    @property
    def num_repetitions(self) -> int:
        """R."""
        return self.shift.shape[1]

    @property
    def mean(self) -> AffineError:
        """Mean over networks and repetitions, fields (n, modes)."""
        return AffineError(np.asarray(self.slope).mean((0, 1)), np.asarray(self.shift).mean((0, 1)))

    def noise(self) -> Float[np.ndarray, "n 2 n 2 modes"]:
        """Covariance of one repetition's fit around its network's own error: the noise of estimation."""
        theta = self._stacked()
        centred = theta - theta.mean(1, keepdims=True)
        return _moment(centred, centred) / (self.num_networks * (self.num_repetitions - 1))

    def second_moment(self) -> Float[np.ndarray, "n 2 n 2 modes"]:
        """E theta theta^T over networks, not centred, free of the noise of estimation in the mean.

        Entry [a, p, b, q, i]: parameter p (0 = Delta_ii, 1 = delta_i) at time a with q at time b. Unbiased,
        hence not always positive semidefinite; `score_error` makes it so.
        """
        return _between(self._stacked()) / self.num_networks

    def covariance(self) -> Float[np.ndarray, "n 2 n 2 modes"]:
        """Covariance between networks, free of the noise of estimation in the mean. ValueError for M = 1."""
        self._need_ensemble("covariance")
        theta = self._stacked()
        return _between(theta - theta.mean(0)) / (self.num_networks - 1)

    def score_error(self, structure: str = "dense", size: int | None = None) -> ScoreError:
        """The measured error as a model: mean error, and the covariance between networks.

        For a single network the error is known and not random: its mean. `structure`: "dense", the estimate as
        it is; "banded", 0 between times more than `size` apart in the list of times; "low_rank", its `size`
        largest directions mode by mode. A size that is not given is chosen by cross-validation: the one whose
        covariance from a part of the data is nearest, entry by entry, to the unstructured covariance of the
        rest (the parts are networks; with fewer than 4, repetitions). Negative eigenvalues are set to 0.

        **Raises:** ValueError for an unknown structure, or too few networks or repetitions for it.
        """
        structure = _checks.one_of("structure", structure, STRUCTURES)
        if self.num_networks == 1:
            known = Tabulated(
                self.times, np.asarray(self.mean.slope)[None], np.asarray(self.mean.shift)[None]
            )
            return ScoreError.deterministic(known)
        covariance = self.covariance()
        if structure != "dense":
            size = self.chosen_size(structure) if size is None else _checks.count("size", size)
            covariance = _structured(covariance, structure, size)
        return ScoreError.from_covariance(self.times, covariance, self.mean, project=True)

    def chosen_size(self, structure: str) -> int:
        """The bandwidth or rank that predicts held-out covariances best (see `score_error`)."""
        structure = _checks.one_of("structure", structure, STRUCTURES[1:])
        self._need_ensemble(f"a {structure} covariance")
        axis = 0 if self.num_networks >= 4 else 1
        count = self.shift.shape[axis]
        if count < 4:
            raise ValueError(
                f"choosing the size of a {structure} covariance holds out networks or repetitions and needs 4 of "
                f"either; there are {self.num_networks} and {self.num_repetitions}. Pass size=..., or measure more."
            )
        theta, losses = self._stacked(), 0.0
        sizes = (
            range(1, 2 * len(self.times) + 1) if structure == "low_rank" else range(len(self.times))
        )
        for fold in range(4):
            inside = np.arange(count) % 4 == fold
            held, rest = theta.compress(inside, axis), theta.compress(~inside, axis)
            # about the common mean, so that a fold of one network is no special case
            truth = _between(held - theta.mean(0)) / held.shape[0]
            fitted = _between(rest - theta.mean(0)) / rest.shape[0]
            losses = losses + np.array(
                [np.sum((_structured(fitted, structure, s) - truth) ** 2) for s in sizes]
            )
        return int(sizes[int(np.argmin(losses))])

    def predict(self, kernel: ErrorKernel, *, level: float = 0.95) -> ConfidenceInterval:
        """Expected excess error of these networks on a schedule, to second order, with a bootstrap interval.

        The mean over networks m of grad F . theta_m + F2(theta_m), F2 the kernel's quadratic form, with
        products between different repetitions only. No covariance is formed. The interval is a studentised
        bootstrap over networks: it covers a new ensemble of the same kind. For fewer than 4 networks it
        resamples repetitions: it covers new draws for the same networks.
        """
        level = float(_checks.scalar("level", level, above=0.0, below=1.0))
        if kernel.dense:
            raise ValueError("kernel has matrix slopes; the estimate is mode by mode.")
        m, r = self.num_networks, self.num_repetitions
        table = Tabulated(
            self.times,
            *(np.reshape(np.asarray(v), (m * r, *v.shape[2:])) for v in (self.slope, self.shift)),
        )
        with jax.enable_x64(True):
            draws = table(kernel.target, kernel.process, jnp.asarray(np.asarray(kernel.times)))
            draws = jax.tree.map(lambda a: a.reshape(m, r, *a.shape[1:]), draws)
            first, each = (np.asarray(v) for v in _expansions(kernel, draws))
            if m >= 4:
                _, whole = _expansions(
                    kernel, jax.tree.map(lambda a: jnp.sum(a, 1, keepdims=True), draws)
                )
                values = first.mean(1) + (np.asarray(whole)[:, 0] - each.sum(1)) / (r * (r - 1))
            else:
                # leave one repetition out: pseudo-values of the same statistic
                values = _pseudo_values(kernel, draws, first, each)
        return _bootstrap(values, level)

    def _stacked(self) -> Float[np.ndarray, "networks repetitions n 2 modes"]:
        return np.stack([np.asarray(self.slope), np.asarray(self.shift)], 3)

    def _need_ensemble(self, what: str) -> None:
        if self.num_networks == 1:
            raise ValueError(
                f"{what} needs several networks; a single one has a known error: use `mean`."
            )

    def __repr__(self) -> str:
        return (
            f"ScoreErrorEstimate({self.num_networks} networks, {self.num_repetitions} repetitions, "
            f"{len(self.times)} times, {self.shift.shape[-1]} modes)"
        )


def _moment(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("mrapi,mrbqi->apbqi", a, b, optimize=True)


def _between(theta: np.ndarray) -> np.ndarray:
    """Sum over networks of the mean product of two different repetitions."""
    r = theta.shape[1]
    total = theta.sum(1, keepdims=True)
    return (_moment(total, total) - _moment(theta, theta)) / (r * (r - 1))


def _structured(covariance: np.ndarray, structure: str, size: int) -> np.ndarray:
    n, modes = covariance.shape[0], covariance.shape[-1]
    if structure == "banded":
        lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        return covariance * (lag <= size)[:, None, :, None, None]
    if size > 2 * n:
        raise ValueError(
            f"size = {size}: a covariance of 2 parameters at {n} times has rank {2 * n} at most."
        )
    values, vectors = np.linalg.eigh(np.moveaxis(covariance.reshape(2 * n, 2 * n, modes), -1, 0))
    values, vectors = np.maximum(values[:, -size:], 0.0), vectors[:, :, -size:]
    kept = np.einsum("mir,mr,mjr->ijm", vectors, values, vectors)
    return kept.reshape(covariance.shape)


@jax.jit
def _expansions(kernel: ErrorKernel, draws: AffineError) -> tuple[Array, Array]:
    """First derivative and quadratic form of every draw, summed over modes."""
    lead = draws.shift.shape[:2]
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), draws)
    first, second = jax.lax.map(kernel.along, flat, batch_size=min(32, flat.shift.shape[0]))
    return first.sum(-1).reshape(lead), second.sum(-1).reshape(lead)


def _pseudo_values(
    kernel: ErrorKernel, draws: AffineError, first: np.ndarray, each: np.ndarray
) -> np.ndarray:
    """Jackknife pseudo-values over repetitions of the mean over networks."""
    r = first.shape[1]

    def totals(without: int | None) -> float:
        kept = np.arange(r) != (-1 if without is None else without)
        count = int(kept.sum())
        summed = jax.tree.map(lambda a: jnp.sum(a[:, kept], 1, keepdims=True), draws)
        whole = np.asarray(_expansions(kernel, summed)[1])[:, 0]
        return float(
            np.mean(first[:, kept].mean(1) + (whole - each[:, kept].sum(1)) / (count * (count - 1)))
        )

    if r < 3:
        raise ValueError(
            f"an interval for fewer than 4 networks needs at least 3 repetitions; there are {r}."
        )
    full = totals(None)
    return np.array([r * full - (r - 1) * totals(k) for k in range(r)])


def _bootstrap(values: np.ndarray, level: float) -> ConfidenceInterval:
    """Studentised bootstrap of a mean, which allows for its skewness; a fixed seed makes it repeatable."""
    n, center = len(values), float(values.mean())
    again = values[np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))]
    scale = values.std(ddof=1) / np.sqrt(n)
    scales = again.std(1, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(scales > 0, (again.mean(1) - center) / scales, 0.0)
    low, high = np.quantile(t, [0.5 * (1.0 - level), 0.5 * (1.0 + level)])
    return ConfidenceInterval(center, center - float(high * scale), center - float(low * scale))


def estimate_score_error(
    score_fns: Network | Sequence[Network],
    process: AbstractProcess,
    data: Numbers,
    times: Numbers,
    key: Array,
    *,
    target: Gaussian | None = None,
    kind: str = "score",
    repetitions: int = 8,
    batch: int = 1024,
    ridge: float = 0.0,
    progress: bool = True,
) -> ScoreErrorEstimate:
    """Fit the affine part of the score errors of one network or several, at each time and along each mode.

    At every time x = a x0 + s eps with the same draws of (x0, eps) for all times and networks of a repetition,
    and y = network(x, t) + Sigma_t^-1 (x - a mu); along each mode y is regressed on x,

        Delta = -cov(y, x) / (var(x) (1 + ridge)),     delta = mean(y) + Delta mean(x).

    **Arguments:**

    - `score_fns`: a network (x, t) -> output, batched over x of shape (batch, d), or a list of them.
    - `data`: samples (n, d). `target`: the Gaussian of those data, by default fitted without shrinkage, so that
      the Gaussian score is that of the data drawn from.
    - `times`: decreasing, > 0; the error is interpolated between them in log sigma.
    - `kind`: what the networks return (see `predictor`). `ridge`: shrinks slopes by a factor, 0 for none.
    - `repetitions` >= 2 of `batch` draws each.

    **Returns:** a `ScoreErrorEstimate`. **Raises:** ValueError naming the argument, and for a network that returns NaN,
    infinity or another shape, naming the network and the time.
    """
    fns = list(score_fns) if isinstance(score_fns, Sequence) else [score_fns]
    if not fns:
        raise ValueError("score_fns is empty; pass a network or a list of networks.")
    x0, law, grid = _prepared(process, data, target, times)
    repetitions, batch = (
        _checks.count("repetitions", repetitions, at_least=2),
        _checks.count("batch", batch, at_least=3),
    )
    ridge = float(_checks.scalar("ridge", ridge, at_least=0.0))
    shape = (len(fns), repetitions, grid.size, x0.shape[1])
    slope, shift, residual = np.empty(shape), np.empty(shape), np.zeros(shape[2:])
    with Progress("measuring the score error", progress) as line:
        for m, fn in enumerate(fns):
            for r, draw in enumerate(jax.random.split(key, repetitions)):
                line.update(
                    f"measuring the score error: network {m + 1}/{len(fns)}, repetition {r + 1}/{repetitions}"
                )
                fits = _fit(fn, kind, process, law, x0, grid, draw, batch, ridge)
                for values, out in zip(fits[:2], (slope, shift), strict=True):
                    out[m, r] = np.asarray(values)
                if not np.all(np.isfinite(slope[m, r]) & np.isfinite(shift[m, r])):
                    bad = int(np.argmin(np.isfinite(slope[m, r] + shift[m, r]).all(-1)))
                    raise ValueError(f"network {m} returned NaN or infinity at t = {grid[bad]:g}.")
                residual += np.asarray(fits[2]) / (len(fns) * repetitions)
    return ScoreErrorEstimate(grid, constant(slope), constant(shift), constant(residual))


def linearised_score_error(
    network: Network,
    directions: Sequence[PyTree],
    process: AbstractProcess,
    data: Numbers,
    times: Numbers,
    key: Array,
    *,
    target: Gaussian | None = None,
    kind: str = "score",
    batch: int = 8192,
) -> ScoreError:
    """The score error that a random change of a network's parameters causes, to first order.

    With parameters p + sum_j z_j v_j, z normal, the score changes by sum_j z_j J v_j, J its derivative in the
    parameters: covariance J Cov(p) J^T. The affine part of each J v_j is fitted as in `estimate_score_error`.

    **Arguments:** `network`, an Equinox module; `directions`, trees like `eqx.filter(network,
    eqx.is_inexact_array)`, the factors v_j of the parameters' covariance sum_j v_j v_j^T (for instance the
    scaled differences of checkpoints). Others as there. **Returns:** a `ScoreError` with one direction per v_j,
    correlated in time as the network makes it.
    """
    if not directions:
        raise ValueError("directions is empty; pass at least one change of the parameters.")
    x0, law, grid = _prepared(process, data, target, times)
    wanted = jax.tree.structure(eqx.filter(network, eqx.is_inexact_array))
    for j, direction in enumerate(directions):
        if jax.tree.structure(direction) != wanted:
            raise ValueError(f"directions[{j}] is not a tree like the network's inexact arrays.")
    fits = [
        _fit(
            _Response(network, direction, process, kind),
            "score",
            process,
            law,
            x0,
            grid,
            key,
            batch,
            0.0,
            False,
        )
        for direction in directions
    ]
    slope, shift = (np.stack([np.asarray(fit[i], np.float64) for fit in fits]) for i in range(2))
    return ScoreError(Tabulated(grid, slope, shift), FullyCorrelated())


class _Response(eqx.Module):
    """The derivative of a network's score along a change of its parameters, as a function of (x, t)."""

    network: Network
    direction: PyTree
    process: AbstractProcess
    kind: str = eqx.field(static=True)

    def __call__(self, x: Array, t: Array) -> Array:
        parameters, static = eqx.partition(self.network, eqx.is_inexact_array)

        def score(parameters: PyTree) -> Array:
            predict = Denoiser(eqx.combine(parameters, static), self.process, self.kind)
            return -predict(x, t).eps / self.process.noise(t)

        return jax.jvp(score, (parameters,), (self.direction,))[1]


def _prepared(
    process: AbstractProcess, data: Numbers, target: Gaussian | None, times: Numbers
) -> tuple[Array, Gaussian, AnyArray]:
    """Data as an array, their Gaussian, and the times."""
    samples = _checks.array("data", data)
    if samples.ndim < 2 or samples.shape[0] < 2:
        raise ValueError(
            f"data has shape {samples.shape}; it must be (n, d) with at least 2 samples."
        )
    samples = samples.reshape(samples.shape[0], -1)
    law = Gaussian.fit(samples, shrinkage=0.0) if target is None else target
    if law.eigenvalues.shape[0] != samples.shape[1]:
        raise ValueError(
            f"target has {law.eigenvalues.shape[0]} modes; data have {samples.shape[1]} dimensions."
        )
    return jnp.asarray(samples, float), law, check_times(process, times)


@eqx.filter_jit
def _fit(
    fn: Network,
    kind: str,
    process: AbstractProcess,
    target: Gaussian,
    data: Array,
    times: AnyArray,
    key: Array,
    batch: int,
    ridge: float,
    subtract: bool = True,
) -> tuple[Array, Array, Array]:
    """Slope, shift and mean squared residual (n, modes) of one network in one repetition."""
    predict = Denoiser(fn, process, kind)
    key_data, key_noise = jax.random.split(key)
    x0 = data[jax.random.randint(key_data, (batch,), 0, data.shape[0])]
    eps = jax.random.normal(key_noise, x0.shape, x0.dtype)
    basis = None if target.basis is None else jnp.asarray(target.basis, x0.dtype)

    def at(t: Array) -> tuple[Array, Array, Array]:
        t = t.astype(x0.dtype)
        x = process.signal(t) * x0 + process.noise(t) * eps
        y = -predict(x, t).eps / process.noise(t)
        if subtract:
            y = y - target.score(process, x, t).astype(y.dtype)
        x, y = (v if basis is None else matmul(v, basis) for v in (x, y))
        # centred sums, in the mode's own units
        dx, dy = x - jnp.mean(x, 0), y - jnp.mean(y, 0)
        variance = jnp.mean(dx**2, 0)
        slope = -jnp.mean(dx * dy, 0) / jnp.where(variance > 0, variance * (1.0 + ridge), 1.0)
        shift = jnp.mean(y, 0) + slope * jnp.mean(x, 0)
        return slope, shift, jnp.mean((dy + slope * dx) ** 2, 0)

    return jax.lax.map(at, jnp.asarray(times))
