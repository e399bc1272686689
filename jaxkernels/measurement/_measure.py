"""One pass of a network over data.

Noise is added along one forward trajectory per draw: y = x / a = x0 + B(sigma^2), B a Brownian motion. In terms of
the standard normal eps in x = a x0 + s eps, from a lower noise level sigma' to a higher one sigma,

    eps = r eps' + sqrt(1 - r^2) z,    r = sigma' / sigma,                                                     (1)

which holds for every process, and where a = 0 (r = 0: pure noise, independent of all that came before).

In the modes of the data (variance lambda), with z = x - a mean and w = D - mean - a lambda / (a^2 lambda + s^2) z,
sums of z, w and their products at one time give the affine fit w = slope z + constant + R. The fit is known only
when the pass is over, but what it leaves is linear in w and z: with a prime for a second time t',

    E[R R'] = cov(w, w') - slope' cov(w, z') - slope cov(z, w') + slope slope' cov(z, z').                     (2)

w and z are of the size of what is sought, so nothing is lost by subtracting. Sums over a batch are formed on the
device, sums over batches in float64.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .. import _checks, _files
from .._linalg import full_precision, matmul
from .._numerics import safe_divide
from .._progress import Progress
from .._types import Network, Numbers, constant
from ..distributions import Gaussian, pack_target, unpack_target
from ..prediction import Denoiser
from ..processes import AbstractProcess
from ._measurement import Measurement, checked_data, fit, gaussian_gain, levels, rows, violation

_FORMAT = "jaxkernels.measure.state"


_MOST_ITERATIONS, _TOLERANCE = 40, 1e-4


def measure(
    score_fn: Network,
    process: AbstractProcess,
    data: Numbers,
    times: Numbers,
    key: PRNGKeyArray | Array,
    *,
    kind: str = "score",
    target: Gaussian | None = None,
    batch: int = 128,
    draws: int = 1,
    lipschitz_points: int = 4,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Measurement:
    """Run a network once over noised data, and return what can be known of it: see `Measurement`.

    Every sample is followed along `draws` forward trajectories, whose noise grows by independent increments, so
    that statistics of two times belong to the same trajectory. After that the spectral norm of the denoiser's
    Jacobian is found at `lipschitz_points` noisy samples per time, by power iteration on J^T J (jvp and vjp) until
    the value changes by less than 1e-4, at most 40 times: a lower bound, usually within a per cent.

    **Arguments:**

    - `score_fn(x, t)`: the network, batched over x of shape (batch * draws, ...) as the samples are, with a scalar
      time t of `process`; `kind` says what it returns (see `predictor`).
    - `data`: samples (n, ...), in the coordinates the network sees. Batches are converted one by one.
    - `times`: decreasing, > 0.
    - `target`: the Gaussian along whose modes to measure, by default that of `data` without shrinkage.
    - `batch`: samples per step. Memory is of the order of times x batch x draws x dimensions for a batch, and
      times x times x dimensions for the sums.
    - `lipschitz_points`: 0 for none, without `lipschitz` and `iterations` then.
    - `resume`: a file that holds what was measured so far. It is written after every batch, and a call with the
      same arguments goes on from there, to the same result. A network's arrays are compared if it is a pytree
      (an Equinox module); those in a closure cannot be seen.

    **Raises:** ValueError naming the argument; for a network that returns another shape, no floating numbers, NaN or
    infinity (naming the time); for a time at which the network's prediction leaves the denoised point open (a
    score or noise where the signal is 0, or so small that rounding hides it); for a `resume` file that is
    damaged or was begun with other arguments.

    Runs in JAX's default precision.
    """
    samples = checked_data(data)
    grid, a, s = levels(process, times)
    batch, draws = _checks.count("batch", batch), _checks.count("draws", draws)
    points = _checks.count("lipschitz_points", lipschitz_points, at_least=0)
    count, size = samples.shape[0], int(np.prod(samples.shape[1:]))
    if points > count:
        raise ValueError(
            f"lipschitz_points = {points} must be at most the number of samples, {count}."
        )
    if target is not None and not isinstance(target, Gaussian):
        raise ValueError(f"target must be a Gaussian; got {type(target).__name__}.")
    if target is not None and np.shape(target.eigenvalues) != (size,):
        raise ValueError(
            f"target has {np.size(target.eigenvalues)} modes; data have {size} dimensions."
        )
    _check_network(score_fn, process, kind, (min(batch, count) * draws, *samples.shape[1:]))

    settings = {} if resume is None else {
        "data": _digest(samples),
        "times": _digest(grid),
        "process": str(jax.tree.structure(process)) + _digest(*jax.tree.leaves(process)),
        "score_fn": _digest(*jax.tree.leaves(eqx.filter(score_fn, eqx.is_array))),
        "key": _digest(_key_data(key)),
        "target": "" if target is None else _digest(*jax.tree.leaves(target)),
        "kind": kind,
        "batch": batch,
        "draws": draws,
        "lipschitz_points": points,
        "precision": str(jnp.zeros(()).dtype),
    }  # fmt: skip
    state = None if resume is None or not Path(resume).exists() else _resumed(resume, settings)
    with Progress("measuring: spectrum of the data", progress) as line:
        if state is None:
            state = _State(fit(samples) if target is None else target, 0, {})
        law = state.target
        _check_levels(grid, a, s, law, kind)
        _keep(resume, settings, state)  # a path that cannot be written is told before the work

        key_batch, key_points = jax.random.split(key)
        batches = -(-count // batch)
        tables = _tables(grid, a, s, law)
        for i in range(state.done, batches):
            line.update(f"measuring: batch {i + 1}/{batches}")
            x0, weight = _padded(samples, i * batch, batch if batches > 1 else count)
            found = _batch(
                score_fn, kind, process, tables, x0, weight, jax.random.fold_in(key_batch, i), draws
            )
            state.add(grid, found)
            _keep(resume, settings, state)
        chosen = None
        for j in range(state.done - batches, len(grid) if points else 0):
            line.update(f"measuring: Lipschitz constant, time {j + 1}/{len(grid)}")
            if chosen is None:
                pick = np.sort(
                    np.asarray(jax.random.choice(key_points, count, (points,), replace=False))
                )
                chosen = jnp.asarray(_checks.array("data", samples[pick]), float)
            level = jnp.asarray([grid[j], a[j], s[j]], float)
            norms, iterations = _lipschitz(
                score_fn, kind, process, chosen, level, jax.random.fold_in(key_points, j)
            )
            here = np.arange(len(grid)) == j
            state.add(
                grid,
                {"lipschitz": np.where(here[:, None], norms, 0.0), "iterations": here * iterations},
            )
            _keep(resume, settings, state)
    return _finished(state, count, grid, a, s)


class _State:
    """Sums so far, over `done` batches and then times."""

    def __init__(self, target: Gaussian, done: int, sums: dict[str, np.ndarray]):
        self.target, self.done, self.sums = target, done, sums

    def add(self, times: np.ndarray, found: dict[str, np.ndarray]) -> None:
        found = {name: np.asarray(value, np.float64) for name, value in found.items()}
        finite = np.isfinite(
            next(found[name] for name in ("mode_error", "lipschitz") if name in found)
        ).all(1)
        if not np.all(finite):
            t = times[np.argmin(finite)]
            raise ValueError(
                f"score_fn returned NaN or infinity, or numbers too large to square, at t = {t:g}."
            )
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.done += 1


def _finished(
    state: _State, count: int, times: np.ndarray, a: np.ndarray, s: np.ndarray
) -> Measurement:
    mean = {name: value / count for name, value in state.sums.items()}
    error = np.diag(mean["ee"]).copy()

    def covariance(p: str, q: str) -> Float[np.ndarray, "modes n n"]:
        return mean[p + q] - mean[p].T[:, :, None] * mean[q].T[:, None, :]

    def same_time(values: Float[np.ndarray, "modes n n"]) -> Float[np.ndarray, "n modes"]:
        return np.diagonal(values, axis1=1, axis2=2).T

    ww, wz, zz = covariance("w", "w"), covariance("w", "z"), covariance("z", "z")
    slope = same_time(wz) / same_time(zz)
    here, there = slope.T[:, :, None], slope.T[:, None, :]
    crossed = there * wz
    residuals = ww - (crossed + crossed.swapaxes(1, 2)) + here * there * zz  # (2)

    def standard_error(square: np.ndarray, value: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(square - value**2, 0.0) / (count - 1))

    statistics = {
        "error": error,
        "error_noise": standard_error(mean["error_squared"], error),
        "mode_error": mean["mode_error"],
        "gain": gaussian_gain(state.target, a, s) + slope,
        "offset": mean["w"] - slope * mean["z"],
        "residual": np.maximum(same_time(residuals), 0.0),
        "mode_residual_correlation": residuals,
        "correlation": mean["ee"],
        "violation_noise": standard_error(
            mean["violation_squared"], np.asarray(violation(constant(mean["ee"])))
        ),
    }
    if "lipschitz" in state.sums:
        statistics |= {
            "lipschitz": state.sums["lipschitz"],
            "iterations": state.sums["iterations"].astype(int),
        }
    return Measurement(times, a, s, state.target, statistics)


class _Tables(NamedTuple):
    """What is needed of the times and of the modes, on the device."""

    steps: tuple[Array, ...]
    """Times, a, s (n,), the gain of the best affine denoiser (n, d), r and sqrt(1 - r^2) of (1) (n,)."""
    mean: Float[Array, " d"]
    basis: Float[Array, "d d"] | None

    def modes(self, x: Float[Array, "batch *sample"]) -> Float[Array, "batch d"]:
        x = x.reshape(x.shape[0], -1)
        return x if self.basis is None else matmul(x, self.basis)


def _tables(times: np.ndarray, a: np.ndarray, s: np.ndarray, target: Gaussian) -> _Tables:
    sigma = np.divide(s, a, out=np.full_like(s, np.inf), where=a > 0)
    ratio = np.append(sigma[1:] / sigma[:-1], 0.0)
    fresh = np.sqrt((1.0 - ratio) * (1.0 + ratio))
    steps = (times, a, s, gaussian_gain(target, a, s), ratio, fresh)
    basis = None if target.basis is None else jnp.asarray(np.asarray(target.basis), float)
    return _Tables(
        tuple(jnp.asarray(v, float) for v in steps),
        jnp.asarray(np.asarray(target.mean), float),
        basis,
    )


def _batch(
    fn: Network,
    kind: str,
    process: AbstractProcess,
    tables: _Tables,
    x0: Float[Array, "batch *sample"],
    weight: Float[Array, " batch"],
    key: Array,
    draws: int,
) -> dict[str, np.ndarray]:
    """Sums over the samples of a batch, averaged over draws; `weight` is 0 for samples that only fill it up.

    The loop over times is Python's: inside a loop of its own XLA runs a network on one core of a CPU, and
    convolutions many times slower.
    """
    x0 = jnp.repeat(x0, draws, 0)
    clean = tables.modes(x0.reshape(x0.shape[0], -1) - tables.mean)
    noise = jnp.zeros_like(x0), jnp.zeros_like(clean)
    n = tables.steps[0].shape[0]
    sums, along = [], []
    for j in reversed(range(n)):  # noise grows
        level = tuple(v[j] for v in tables.steps)
        noise, found, values = _at(
            fn, kind, process, tables, level, x0, clean, noise, weight, jax.random.fold_in(key, j)
        )
        sums.append(jax.tree.map(np.asarray, found))
        along.append(values)
    per_time = {name: np.stack([found[name] for found in sums[::-1]]) for name in sums[0]}
    errors, w, z = (jnp.stack(values[::-1]) for values in zip(*along, strict=True))
    return per_time | jax.tree.map(np.asarray, _products(errors, w, z, weight))


@eqx.filter_jit
def _at(
    fn: Network,
    kind: str,
    process: AbstractProcess,
    tables: _Tables,
    level: tuple[Array, ...],
    x0: Float[Array, "draws *sample"],
    clean: Float[Array, "draws d"],
    noise: tuple[Array, Array],
    weight: Float[Array, " batch"],
    key: Array,
) -> tuple[tuple[Array, Array], dict[str, Array], tuple[Array, Array, Array]]:
    """One time: the noise there (as it is, and along the modes), sums, and D - x0, w and z along the modes."""
    t, a, s, gain, ratio, fresh = level
    increment = jax.random.normal(key, x0.shape, x0.dtype)
    eps = ratio * noise[0] + fresh * increment
    eps_modes = ratio * noise[1] + fresh * tables.modes(increment)
    denoised = Denoiser(fn, process, kind)(a * x0 + s * eps, t).x0.astype(x0.dtype)
    denoised = tables.modes(denoised.reshape(x0.shape[0], -1) - tables.mean)
    z = a * clean + s * eps_modes
    w = denoised - gain * z
    error = denoised - clean
    terms = {"z": z, "w": w, "mode_error": error**2}
    return (
        (eps, eps_modes),
        _summed({name: _averaged(v, weight) for name, v in terms.items()}, weight),
        (error, w, z),
    )


def _averaged(v: Array, weight: Array) -> Array:
    """Over the draws of each sample."""
    return jnp.mean(v.reshape(weight.shape[0], -1, *v.shape[1:]), 1)


@full_precision
def _summed(terms: dict[str, Array], weight: Array) -> dict[str, Array]:
    """Over the samples, each with its weight."""
    return {name: jnp.tensordot(weight, v, 1) for name, v in terms.items()}


@jax.jit
@full_precision
def _products(
    errors: Float[Array, "n draws d"],
    w: Float[Array, "n draws d"],
    z: Float[Array, "n draws d"],
    weight: Float[Array, " batch"],
) -> dict[str, Array]:
    """Sums of the products of two times: of errors, with the squares that standard errors need, and of w and z."""
    products = _averaged(jnp.einsum("ibd,jbd->bij", errors, errors), weight)
    own = jnp.diagonal(products, axis1=1, axis2=2)
    terms = {"ee": products, "error_squared": own**2, "violation_squared": violation(products) ** 2}
    draws = errors.shape[1] // weight.shape[0]
    each = jnp.repeat(weight / draws, draws)

    def along_modes(p: Array, q: Array) -> Float[Array, "d n n"]:
        return jnp.einsum("ibd,jbd->dij", each[:, None] * p, q)

    return _summed(terms, weight) | {
        "ww": along_modes(w, w),
        "wz": along_modes(w, z),
        "zz": along_modes(z, z),
    }


def _lipschitz(
    fn: Network,
    kind: str,
    process: AbstractProcess,
    x0: Float[Array, "points *sample"],
    level: Float[Array, "3"],
    key: Array,
) -> tuple[np.ndarray, int]:
    """Largest singular value of dD/dx at every point, and the number of iterations."""
    t, a, s = level
    key_noise, key_start = jax.random.split(key)
    x = a * x0 + s * jax.random.normal(key_noise, x0.shape, x0.dtype)
    v, size = jax.random.normal(key_start, x.shape, x.dtype), np.zeros(len(x))
    for k in range(_MOST_ITERATIONS):
        before = size
        v, size = _power(fn, kind, process, x, t, v)
        size = np.asarray(size)
        if k > 0 and np.all(np.abs(size - before) <= _TOLERANCE * size):
            return size, k + 1
    return size, _MOST_ITERATIONS


@eqx.filter_jit
def _power(
    fn: Network,
    kind: str,
    process: AbstractProcess,
    x: Array,
    t: Array,
    v: Float[Array, "points *sample"],
) -> tuple[Array, Array]:
    """J^T J v at every point, and |J v| / |v|."""

    def denoise(x: Array) -> Array:
        return Denoiser(fn, process, kind)(x, t).x0

    size = jnp.sqrt(jnp.sum(v**2, tuple(range(1, v.ndim)), keepdims=True))
    moved = jax.jvp(denoise, (x,), (safe_divide(v, jnp.broadcast_to(size, v.shape)),))[1]
    return jax.vjp(denoise, x)[1](moved)[0], jnp.sqrt(jnp.sum(moved**2, tuple(range(1, v.ndim))))


def _padded(data: np.ndarray, start: int, batch: int) -> tuple[Array, Array]:
    """A batch of samples, filled up with its first one, and weights that are 0 for what was filled up."""
    x = rows(data, start, start + batch)
    index = np.where(np.arange(batch) < len(x), np.arange(batch), 0)
    return jnp.asarray(x[index], float), jnp.asarray(np.arange(batch) < len(x), float)


def _check_network(
    fn: Network, process: AbstractProcess, kind: str, shape: tuple[int, ...]
) -> None:
    """The network's output has x's shape and is floating: known without running it."""
    x, t = jnp.zeros(shape, float), jnp.asarray(0.5, float)
    outer = Denoiser(fn, process, kind)

    def checked(x: Array, t: Array) -> Array:
        value = fn(x, t)
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                f"score_fn returned numbers of dtype {jnp.result_type(value)}; they must be floating."
            )
        return outer(x, t).x0

    eqx.filter_eval_shape(checked, x, t)


def _check_levels(
    times: np.ndarray, a: np.ndarray, s: np.ndarray, target: Gaussian, kind: str
) -> None:
    """A score or noise determines the denoised point up to sigma times its rounding error."""
    if kind not in ("score", "epsilon"):
        return
    scale = np.sqrt(np.mean(np.asarray(target.eigenvalues)))
    rounding = s * float(jnp.finfo(jnp.zeros(()).dtype).eps)
    lost = rounding > 0.01 * scale * a
    if np.any(lost):
        k = int(np.argmax(lost))
        raise ValueError(
            f"a network of kind {kind!r} leaves the denoised point open at t = {times[k]:g}: the signal there is "
            f"{a[k]:g}, too little for {jnp.zeros(()).dtype}. Leave that time out, or use a network that predicts "
            "x0, v or velocity."
        )


def _digest(*values: object) -> str:
    """A fingerprint of arrays."""
    found = hashlib.sha256()
    for value in values:
        array = np.asarray(value)
        found.update(f"{array.shape} {array.dtype}".encode())
        for part in array if array.ndim > 1 else [array]:
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def _key_data(key: Array) -> Array:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _keep(path: str | os.PathLike[str] | None, settings: dict, state: _State) -> None:
    if path is not None:
        arrays = {"settings": np.array(json.dumps(settings)), "done": np.array(state.done)}
        arrays |= {f"sum_{name}": value for name, value in state.sums.items()}
        _files.write(path, _FORMAT, arrays | pack_target(state.target))


def _resumed(path: str | os.PathLike[str], settings: dict) -> _State:
    content = _files.read(path, _FORMAT)
    begun = json.loads(str(content["settings"]))
    other = [name for name in settings if begun.get(name) != settings[name]]
    if other:
        raise ValueError(
            f"{os.fspath(path)} was begun with another {', '.join(other)}; use the same, or another file for resume."
        )
    target = unpack_target(content)
    assert target is not None
    sums = {
        name.removeprefix("sum_"): value
        for name, value in content.items()
        if name.startswith("sum_")
    }
    return _State(target, int(content["done"]), sums)
