"""From the randomness of a network's parameters to the excess error of its samples.

Stochastic training at a constant learning rate does not end at one network: its parameters p
fluctuate about a mean, with a covariance that optimizer, learning rate, batch and loss decide. To
first order the score then has the error

    e_t(x; p) = e_t(x; mean) + J_t(x) (p - mean),    Cov(e_s(x), e_t(y)) = J_s(x) Cov(p) J_t(y)^T,

one random change at all times at once: errors are fully correlated along each direction of
Cov(p) = sum_j v_j v_j^T, and their correlation between two times is what the directions make it.
The affine part of every J v_j is a direction of `ScoreError`, and its contraction with the error
kernel the expected excess error. What this leaves out are the second order in the parameters and
the part of the errors that is not affine.

Source: "Correlated-time kernel expansions of the score error" (manuscript), the section on training
dynamics, where it is left open.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .. import _checks, metrics
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..errors import ErrorKernel, error_kernel
from ..prediction import AbstractDenoiser, Denoiser
from ..recurrence import Run
from ..samplers import AbstractSampler, sample
from ..schedules import Schedule
from ..score_error import FullyCorrelated, ScoreError, Tabulated
from ._affine_fit import check_denoisers, estimate_score_error, linearised_score_error
from ._interval import ConfidenceInterval, student_mean
from ._samples import fit_gaussian

_LEVEL = 0.95


class ParameterCovariance(NamedTuple):
    """Mean and covariance sum_j v_j v_j^T of the parameters of networks.

    **Arguments:**

    - `mean`: the network of the mean parameters.
    - `directions`: the v_j, largest first, trees like `eqx.filter(mean, eqx.is_inexact_array)`.

    **Example:**

    ```python
    >>> networks = [jax.tree_util.Partial(jnp.multiply, jnp.ones(2) * c) for c in (0.9, 1.1)]
    >>> len(jk.parameter_covariance(networks).directions)
    1
    ```
    """

    mean: PyTree
    directions: list[PyTree]


def parameter_covariance(
    networks: Sequence[PyTree], *, rank: int | None = None
) -> ParameterCovariance:
    """Compute mean and covariance of the parameters of several networks, in factored form.

        mean = sum_m p_m / M,     sum_m (p_m - mean) (p_m - mean)^T / (M - 1) = sum_j v_j v_j^T

    by the M x M matrix of inner products. The networks may be iterates of SGD or Adam at a constant
    learning rate, further apart than the optimizer's memory, the ends of independent runs from one
    trained network, or members of an ensemble in one basin: the mean of networks that have nothing
    in common is no network.

    **Arguments:**

    - `networks`: M >= 2 trees (Equinox modules) that differ in their inexact arrays only.
    - `rank`: keep this number of largest directions; default: all, M - 1 at most.

    **Returns:** a `ParameterCovariance`.

    **Raises:** ValueError for fewer than two networks, other structures or shapes, or a rank that
    they do not span.

    **Example:**

    ```python
    >>> networks = [jax.tree_util.Partial(jnp.multiply, jnp.ones(2) * c) for c in (0.9, 1.1)]
    >>> jk.parameter_covariance(networks).mean.args[0].tolist()
    [1.0, 1.0]
    ```
    """
    parameters, fixed = _partition(list(networks))
    count = len(parameters)
    stacked = jax.tree.map(lambda *a: np.stack([np.asarray(x, np.float64) for x in a]), *parameters)
    mean = jax.tree.map(lambda a: a.mean(0), stacked)
    centred = jax.tree.map(lambda a, m: (a - m).reshape(count, -1), stacked, mean)
    products = np.sum([rows @ rows.T for rows in jax.tree.leaves(centred)], 0)
    values, vectors = np.linalg.eigh(products)
    used = int(np.sum(values > 1e-12 * max(values[-1], 0.0)))
    size = used if rank is None else _checks.count("rank", rank)
    if size > used:
        raise ValueError(f"rank = {rank}, but the networks span {used} directions.")
    factors = vectors[:, ::-1][:, :size] / np.sqrt(count - 1)

    def like(values: np.ndarray, leaf: Array) -> Array:
        return jnp.asarray(values.reshape(leaf.shape), leaf.dtype)

    def direction(factor: Float[np.ndarray, " networks"]) -> PyTree:
        return jax.tree.map(lambda rows, leaf: like(factor @ rows, leaf), centred, parameters[0])

    network = eqx.combine(jax.tree.map(like, mean, parameters[0]), fixed)
    return ParameterCovariance(network, [direction(factor) for factor in factors.T])


class ParameterNoise(eqx.Module):
    """The excess error that random parameters cause, predicted and measured.

    `predict_parameter_noise` computes it.

    **Arguments:**

    - `score_error`: the affine error: its mean that of the mean network, random the linearised one.
    - `kernel`: that of the run, about the mean error.
    - `predicted`: the expected excess of squared W2 over that of the mean network, to second order.
    - `measured`: the same from the moments of the networks' samples, with a 95% interval.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [1.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.1]))
    >>> parts = (jk.ScoreError.relative(0.1), jk.error_kernel(*setting))
    >>> print(jk.ParameterNoise(*parts, 0.1, jk.ConfidenceInterval(0.1, 0.09, 0.11)))
    excess of squared W2: predicted 0.1, measured 0.1 [0.09, 0.11]
    ```
    """

    score_error: ScoreError
    kernel: ErrorKernel
    predicted: float
    measured: ConfidenceInterval

    def time_correlation(self) -> Float[np.ndarray, "evaluations evaluations"]:
        """Compute the correlation of the random error between the evaluations of the run.

            E <e_s(x_s), e_t(x_t)> / sqrt(E |e_s|^2 E |e_t|^2)

        at points x_s and x_t of the marginal Gaussians that have the same standardised position.

        **Returns:** (evaluations, evaluations), with a unit diagonal.

        **Raises:** ValueError for an error without a random part.

        **Example:**

        ```python
        >>> setting = (jk.Gaussian(0.0, [1.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.5, 0.1]))
        >>> parts = (jk.ScoreError.relative(0.1), jk.error_kernel(*setting), 0.1)
        >>> jk.ParameterNoise(*parts, jk.ConfidenceInterval(0.1, 0.0, 0.2)).time_correlation().shape
        (2, 2)
        ```
        """
        target = self.kernel.target
        process = self.kernel.process
        times = self.kernel.times
        directions = self.score_error.directions(target, process, times)
        if directions is None:
            raise ValueError("score_error has no random part.")
        dense = directions.as_dense()
        center = np.asarray(process.signal(times))[:, None] * np.asarray(target.mean)
        root = np.sqrt(np.asarray(target.marginal_variance(process, times)))
        slope = np.asarray(dense.slope, np.float64)
        shift = np.asarray(dense.shift) - np.einsum("raij,aj->rai", slope, center)
        parts = np.concatenate([shift[..., None], slope * root[:, None, :]], -1)
        rows = np.moveaxis(parts, 1, 0).reshape(len(root), -1)
        covariance = rows @ rows.T
        size = np.sqrt(np.diagonal(covariance))
        return covariance / (size[:, None] * size)

    def __str__(self) -> str:
        value, low, high = self.measured
        return (
            f"excess of squared W2: predicted {self.predicted:.4g}, measured {value:.4g} "
            f"[{low:.4g}, {high:.4g}]"
        )


def predict_parameter_noise(
    denoisers: Sequence[AbstractDenoiser],
    samples: Numbers,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    key: PRNGKeyArray | Array,
    target: Gaussian | None = None,
    rank: int | None = None,
    slopes: str = "matrix",
    batch: int = 4096,
    num_noise: int = 4096,
) -> ParameterNoise:
    """Predict what the randomness of training adds to the sampling error, and measure it.

        predicted = 1/2 tr(Hess F  J Cov(p) J^T)
        measured = M / (M - 1) mean_m [(F(p_m) + F(2 mean - p_m)) / 2 - F(mean)]

    F is squared W2 between the normal distributions of samples and data. Predicted: the covariance
    of the parameters p_m, the affine errors J v_j that its directions cause at every evaluation of
    the run, and the contraction of their covariance, all times together, with the run's
    `error_kernel`. Measured: every network, and its mirror image on the other side of the mean, is
    run from the same initial noise; with it the first order, which has mean 0, cancels.

    The two differ by what is not linear in the parameters, and not affine in x. A linear network
    has neither; for another one take predictions as an order of magnitude until they were measured
    once.

    **Arguments:**

    - `denoisers`: M >= 2 `Denoiser` of the same network with other parameters, such as iterates of
      SGD or Adam at a constant learning rate, see `parameter_covariance`; each `fn` an Equinox
      module.
    - `samples`: (n, ...) of the data, n >= 2; flattened to (n, d).
    - `sampler`: a sampler or its name, of affine steps.
    - `schedule`: its schedule, with times > 0 where the network is evaluated.
    - `key`: a random key.
    - `target`: the Gaussian of the data; default: fitted to `samples` without shrinkage.
    - `rank`: directions of the parameters' covariance; default: all.
    - `slopes`: "matrix" for errors that mix modes, O(K d^3) per direction, or "diagonal".
    - `batch`: draws for the fits, >= 3; for matrices many times d.
    - `num_noise`: samples per network, >= 2; the bias that finite samples have in F cancels.

    **Returns:** a `ParameterNoise`.

    **Raises:** ValueError naming the argument.

    **Example:**

    ```python
    >>> network = jax.tree_util.Partial(lambda w, x, t: -w * x, jnp.ones(2))
    >>> both = [jk.Denoiser(n, jk.VP(), "score") for n in (network, jax.tree.map(jnp.cos, network))]
    >>> noise = jk.predict_parameter_noise(
    ...     both, np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]]), "ddim",
    ...     jk.Schedule([1.0, 0.1]), key=jax.random.key(0), batch=64, num_noise=64
    ... )
    ```

    Source: the manuscript named above leaves this prediction open; Mandt, Hoffman, Blei,
    "Stochastic Gradient Descent as Approximate Bayesian Inference" (2017), for the covariance of
    the iterates.
    """
    several = check_denoisers(denoisers)
    num_noise = _checks.count("num_noise", num_noise, at_least=2)
    network, directions = parameter_covariance(_networks(several), rank=rank)
    mean = eqx.tree_at(lambda d: d.fn, several[0], network)
    rows = np.asarray(_checks.array("samples", samples))
    rows = rows.reshape(rows.shape[0], -1)
    if target is None:
        target = fit_gaussian(rows)
    key_fit, key_noise, key_run = jax.random.split(_checks.random_key("key", key), 3)
    setting = (target, several[0].process, sampler, schedule)
    run = Run.checked(*setting)
    fits = {"key": key_fit, "target": target, "batch": batch, "slopes": slopes}
    error = _affine_error(mean, directions, rows, run, fits)
    about = error.mean_at(run.target, run.process, run.evaluation_times())
    kernel = error_kernel(*setting, dense=slopes == "matrix", about=about)
    noise = jax.random.normal(key_noise, (num_noise, rows.shape[1]))
    measured = _measure(several, mean, run, target.basis, noise, key_run)
    return ParameterNoise(error, kernel, float(kernel.contract(error)), measured)


def _affine_error(
    mean: AbstractDenoiser,
    directions: list[PyTree],
    rows: np.ndarray,
    run: Run,
    fits: dict[str, Any],
) -> ScoreError:
    """The error of the mean network, and the linearised one along the directions."""
    if not directions:
        raise ValueError("denoisers are all the same: their parameters have no covariance.")
    times = np.unique(np.asarray(run.evaluation_times()))[::-1]
    random = linearised_score_error(cast(Denoiser, mean), directions, rows, times, **fits)
    known = estimate_score_error(mean, rows, times, repetitions=2, progress=False, **fits).mean
    profile = Tabulated(times, known.slope[None], known.shift[None])
    return ScoreError(random.shapes, FullyCorrelated(), profile)


def _measure(
    several: list[AbstractDenoiser],
    mean: AbstractDenoiser,
    run: Run,
    basis: AnyArray | None,
    noise: Float[Array, "n d"],
    key: Array,
) -> ConfidenceInterval:
    """The excess of the networks and their mirror images over the mean network."""

    def distance(denoiser: AbstractDenoiser) -> float:
        ends = sample(denoiser, run.sampler, run.schedule, noise, key=key)
        return _distance(ends, run.target, basis)

    pairs = [(distance(denoiser), distance(_mirror(denoiser, mean))) for denoiser in several]
    excess = np.mean(pairs, 1) - distance(mean)
    # deviations from the mean of M are smaller than from that of the distribution
    return student_mean(excess * len(several) / (len(several) - 1), _LEVEL)


def _mirror(denoiser: AbstractDenoiser, mean: AbstractDenoiser) -> AbstractDenoiser:
    """The denoiser on the other side of the mean."""

    def one(a: Any, m: Any) -> Any:
        return 2.0 * m - a if eqx.is_inexact_array(a) else a

    mirrored = jax.tree.map(one, _networks([denoiser])[0], _networks([mean])[0])
    return eqx.tree_at(lambda d: d.fn, denoiser, mirrored)


def _partition(networks: list[PyTree]) -> tuple[list[PyTree], PyTree]:
    """The parameters of every network, of the same shapes, and the rest of the first network."""
    if len(networks) < 2:
        raise ValueError(f"networks holds {len(networks)}; a covariance needs at least 2.")
    parts = [eqx.partition(network, eqx.is_inexact_array) for network in networks]
    shapes = [[leaf.shape for leaf in jax.tree.leaves(part[0])] for part in parts]
    for m, (parameters, _) in enumerate(parts):
        alike = jax.tree.structure(parameters) == jax.tree.structure(parts[0][0])
        if not alike or shapes[m] != shapes[0]:
            raise ValueError(f"networks[{m}] has other parameters than networks[0].")
    return [parameters for parameters, _ in parts], parts[0][1]


def _networks(denoisers: Sequence[AbstractDenoiser]) -> list[PyTree]:
    """Their networks."""
    for m, denoiser in enumerate(denoisers):
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"denoisers[{m}] must be a Denoiser(fn, process); got {denoiser!r}.")
    return [denoiser.fn for denoiser in denoisers if isinstance(denoiser, Denoiser)]


def _distance(x: Float[Array, "n d"], target: Gaussian, basis: AnyArray | None) -> float:
    """Squared W2 between the normal distribution of samples and a target in its eigenbasis."""
    rows = np.asarray(x, np.float64)
    if basis is not None:
        rows = rows @ np.asarray(basis, np.float64)
    difference = rows.mean(0) - np.asarray(target.mean)
    covariance = np.cov(rows, rowvar=False, bias=True).reshape(difference.size, -1)
    with jax.enable_x64(True):
        arrays = (difference, covariance, np.diag(np.asarray(target.eigenvalues, np.float64)))
        distance = metrics.resolve("w2_squared", dense=True)
        return float(jnp.sum(distance(*(jnp.asarray(a) for a in arrays))))
