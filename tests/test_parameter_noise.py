"""Fluctuations of parameters under SGD and Adam, and the excess error that they cause.

A network that is linear in its parameters and trained on a finite set of noised data has a
stationary covariance in closed form; what it does to samples is computed in NumPy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_distances import w2_squared
from jaxtyping import Array, Float

import jaxkernels as jk

PROCESS = jk.VP()
VARIANCES = np.array([1.0, 0.3])
TARGET = jk.Gaussian(0.0, VARIANCES)
SCHEDULE = jk.schedules.log_snr(PROCESS, 8, 0.05)
SAMPLES = np.random.default_rng(0).standard_normal((400, 2)) * np.sqrt(VARIANCES)
MODES = 2


class Linear(eqx.Module):
    """The score of N(0, VARIANCES) plus an affine error per mode, of two features of time."""

    parameters: Float[Array, "modes 4"]

    def __call__(self, x: Array, t: Array) -> Array:
        share = jnp.clip(jnp.log(PROCESS.sigma(t)) / 5.0, 0.0, 1.0)
        slope, more_slope, shift, more_shift = self.parameters.T
        exact = -x / (PROCESS.signal(t) ** 2 * jnp.asarray(VARIANCES) + PROCESS.noise(t) ** 2)
        return exact - x * (slope + share * more_slope) + shift + share * more_shift


class Trained(NamedTuple):
    """A set of noised data as a regression, per row and mode: features and labels."""

    features: Float[np.ndarray, "n modes 4"]
    labels: Float[np.ndarray, "n modes"]

    @classmethod
    def make(cls) -> "Trained":
        """Rows of denoising score matching with the default weight."""
        rng = np.random.default_rng(1)
        n = 200
        t = rng.uniform(0.05, 1.0, n)
        a, s = (np.asarray(f(t))[:, None] for f in (PROCESS.signal, PROCESS.noise))
        eps = rng.standard_normal((n, MODES))
        x = a * SAMPLES[:n] + s * eps
        share = np.clip(np.log(s / a) / 5.0, 0.0, 1.0) * np.ones(MODES)
        one = np.ones_like(x)
        features = s[..., None] * np.stack([-x, -share * x, one, share], -1)
        # s S = -eps + noise; what the exact score gives is subtracted
        return cls(features, s * x / (a**2 * VARIANCES + s**2) - eps)

    def optimum(self) -> Float[np.ndarray, "modes 4"]:
        """The parameters of the least mean square."""
        return np.stack(
            [np.linalg.lstsq(self.features[:, m], self.labels[:, m])[0] for m in range(MODES)]
        )


ROWS = Trained.make()


def stationary_covariance(
    rate: float, momentum: float, adaptive: bool
) -> Float[np.ndarray, "modes*4 modes*4"]:
    """The exact covariance of SGD or, with a constant preconditioner, of Adam, one row per step.

    State z = (p - optimum, m): z' = A_i z + b_i for row i, so that
    E z z^T = E A_i E z z^T A_i^T + E b_i b_i^T.
    """
    features, labels = ROWS
    size = MODES * 4
    outer = np.zeros((len(labels), size, size))
    noise = np.zeros((len(labels), size))
    best = ROWS.optimum()
    for m in range(MODES):
        block = slice(4 * m, 4 * m + 4)
        g = features[:, m]
        outer[:, block, block] = g[:, :, None] * g[:, None, :]
        noise[:, block] = g * (g @ best[m] - labels[:, m])[:, None]
    covariance = np.zeros((size, size))
    for _ in range(20 if adaptive else 1):
        square = np.einsum("nij,jk,nik->i", outer, covariance, outer) / len(labels)
        square += np.mean(noise**2, 0)
        scale = rate * (1.0 / np.sqrt(square) if adaptive else np.ones(size))[:, None]
        fresh = (1.0 - momentum) * outer
        kept = momentum * np.eye(size)
        a = np.block(
            [
                [np.eye(size) - scale * fresh, np.broadcast_to(-scale * kept, fresh.shape)],
                [fresh, np.broadcast_to(kept, fresh.shape)],
            ]
        )
        b = (1.0 - momentum) * np.concatenate([-scale[:, 0] * noise, noise], 1)
        # E A (x) A without its n copies
        operator = np.einsum("nij,nkl->ikjl", a, a).reshape(4 * size**2, -1) / len(labels)
        known = (b.T @ b / len(labels)).ravel()
        solution = np.linalg.solve(np.eye(4 * size**2) - operator, known)
        covariance = solution.reshape(2 * size, 2 * size)[:size, :size]
    return covariance


@jax.numpy_dtype_promotion("standard")  # optax's Adam raises a number to an integer power
def run_chains(optimizer: optax.GradientTransformation, count: int, steps: int) -> np.ndarray:
    """The parameters of independent runs, (count, modes, 4), all started at the optimum."""
    features, labels = (jnp.asarray(a) for a in ROWS)
    start = jnp.asarray(ROWS.optimum())

    def chain(key: Array) -> Array:
        def step(state: Any, row: Array) -> tuple[Any, None]:
            p, moments = state
            g = features[row]
            gradient = g * (jnp.sum(g * p, 1) - labels[row])[:, None]
            updates, moments = optimizer.update(gradient, moments)
            return (p + updates, moments), None

        rows = jax.random.randint(key, (steps,), 0, len(labels))
        return jax.lax.scan(step, (start, optimizer.init(start)), rows)[0][0]

    return np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), count)))


def excess_by_hand(draws: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Squared W2 of DDIM's samples minus that for the mean, with exact moments, in NumPy."""
    times = np.asarray(SCHEDULE.times)
    a, s = (np.asarray(f(times)) for f in (PROCESS.signal, PROCESS.noise))
    share = np.clip(np.log(s / a) / 5.0, 0.0, 1.0)

    def distance(p: np.ndarray) -> np.ndarray:
        center = np.zeros(p.shape[:-1])
        variance = np.ones(p.shape[:-1])
        for k in range(len(times) - 1):
            slope = 1.0 / (a[k] ** 2 * VARIANCES + s[k] ** 2) + p[..., 0] + share[k] * p[..., 1]
            shift = p[..., 2] + share[k] * p[..., 3]
            # eps = -s S = s (slope x - shift)
            push = s[k + 1] - a[k + 1] * s[k] / a[k]
            factor = a[k + 1] / a[k] + push * s[k] * slope
            center = factor * center - push * s[k] * shift
            variance = factor**2 * variance
        return w2_squared(center, variance, VARIANCES)

    return distance(draws) - distance(mean)


OPTIMIZERS = {
    "sgd": (optax.sgd(0.01), (0.01, 0.0, False)),
    "adam": (optax.adam(0.002, b2=0.9999), (0.002, 0.9, True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_iterates_have_the_stationary_covariance(name: str) -> None:
    """Of 600 runs, within the sampling error of a covariance; and in the cost of samples."""
    optimizer, setting = OPTIMIZERS[name]
    expected = stationary_covariance(*setting)
    draws = run_chains(optimizer, 600, 4000)
    networks = [Linear(jnp.asarray(p)) for p in draws]
    mean, directions = jk.parameter_covariance(networks)
    rows = np.stack([np.asarray(d.parameters).ravel() for d in directions])
    found = rows.T @ rows
    np.testing.assert_allclose(found, np.cov(draws.reshape(600, -1), rowvar=False), atol=1e-12)
    np.testing.assert_allclose(mean.parameters, draws.mean(0), atol=1e-12)
    size = np.diagonal(expected)
    error = np.sqrt((size[:, None] * size + expected**2) / 600)
    assert np.all(np.abs(found - expected) < 6.0 * error)
    # what SGD's covariance costs: drawn from the closed form, and as contracted
    drawn = np.random.default_rng(2).multivariate_normal(np.zeros(8), expected, 20_000)
    cost = excess_by_hand(ROWS.optimum() + drawn.reshape(-1, MODES, 4), ROWS.optimum()).mean()
    assert predict(networks[:100], num_noise=2).predicted == pytest.approx(cost, rel=0.4)


def predict(networks: Sequence[Linear], **options: Any) -> jk.ParameterNoise:
    """`predict_parameter_noise` of networks."""
    denoisers = [jk.Denoiser(network, PROCESS, "score") for network in networks]
    setting = {"key": jax.random.key(3), "target": TARGET, "batch": 512, **options}
    return jk.predict_parameter_noise(denoisers, SAMPLES, "ddim", SCHEDULE, **setting)


def test_prediction_is_what_samples_show() -> None:
    """For small fluctuations: predicted, computed by hand and measured excess agree."""
    rng = np.random.default_rng(4)
    mean = ROWS.optimum()
    draws = mean + 0.01 * rng.standard_normal((12, MODES, 4))
    noise = predict([Linear(jnp.asarray(p)) for p in draws], num_noise=20_000)
    center = draws.mean(0)
    # with mirror images, and unbiased for the distribution of the draws
    pairs = [excess_by_hand(d, center) for d in (draws, 2.0 * center - draws)]
    exact = np.mean(pairs) * 12 / 11
    assert noise.predicted == pytest.approx(exact, rel=0.02)
    assert noise.measured.value == pytest.approx(exact, rel=0.05)
    assert noise.measured.low < exact < noise.measured.high
    matrix = noise.kernel.interaction_matrix(noise.score_error)
    assert float(jnp.sum(matrix)) == pytest.approx(noise.predicted, rel=1e-6)


def test_time_correlation() -> None:
    """Of shifts with two features of time, from the covariance of their parameters."""
    draws = 0.01 * np.random.default_rng(5).standard_normal((6, MODES, 4))
    draws[..., :2] = 0.0
    options: dict[str, Any] = {"num_noise": 2, "slopes": "diagonal"}
    noise = predict([Linear(jnp.asarray(p)) for p in draws], **options)
    times = np.asarray(noise.kernel.times)
    share = np.clip(np.log(np.asarray(PROCESS.sigma(times))) / 5.0, 0.0, 1.0)
    errors = draws[..., 2] + share[:, None, None] * draws[..., 3]
    rows = (errors - errors.mean(1, keepdims=True)).reshape(len(times), -1)
    np.testing.assert_allclose(noise.time_correlation(), np.corrcoef(rows), atol=1e-3)
    assert np.corrcoef(rows).min() < 0.95


def test_rank_keeps_the_largest_directions() -> None:
    """As the singular value decomposition of the centred parameters does."""
    draws = np.random.default_rng(6).standard_normal((7, MODES, 4))
    networks = [Linear(jnp.asarray(p)) for p in draws]
    kept = jk.parameter_covariance(networks, rank=2).directions
    rows = np.stack([np.asarray(d.parameters).ravel() for d in kept])
    centred = (draws - draws.mean(0)).reshape(7, -1) / np.sqrt(6)
    _, sizes, vectors = np.linalg.svd(centred)
    expected = (vectors[:2].T * sizes[:2] ** 2) @ vectors[:2]
    np.testing.assert_allclose(rows.T @ rows, expected, atol=1e-12)


def test_refusals() -> None:
    networks = [Linear(jnp.full((MODES, 4), c)) for c in (0.0, 0.1)]
    with pytest.raises(ValueError, match="networks holds 1"):
        jk.parameter_covariance(networks[:1])
    with pytest.raises(ValueError, match=r"networks\[1\] has other parameters"):
        jk.parameter_covariance([networks[0], Linear(jnp.zeros((MODES, 3)))])
    with pytest.raises(ValueError, match="rank = 2, but the networks span 1"):
        jk.parameter_covariance(networks, rank=2)
    with pytest.raises(ValueError, match="denoisers are all the same"):
        predict([networks[0], networks[0]])
    exact: Any = [TARGET.denoiser(PROCESS)] * 2
    with pytest.raises(ValueError, match=r"denoisers\[0\] must be a Denoiser"):
        jk.predict_parameter_noise(exact, SAMPLES, "ddim", SCHEDULE, key=jax.random.key(0))
    with pytest.raises(ValueError, match="Did you mean 'matrix'"):
        predict(networks, slopes="matrices")


def test_fewer_samples_than_dimensions() -> None:
    """The Gaussian is of all modes by default."""
    network = jax.tree_util.Partial(lambda c, x, t: -c * x, jnp.ones(4))
    both = (network, jax.tree.map(lambda c: 0.9 * c, network))
    networks = [jk.Denoiser(fn, PROCESS, "score") for fn in both]
    rows = np.random.default_rng(0).standard_normal((3, 4))
    setting: dict[str, Any] = {"key": jax.random.key(0), "batch": 64, "num_noise": 64}
    found = jk.predict_parameter_noise(networks, rows, "ddim", SCHEDULE, **setting)
    assert np.isfinite(found.predicted)
