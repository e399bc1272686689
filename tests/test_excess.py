"""The excess error of measured networks: exact where the error is known, intervals that cover."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from gaussian_distances import w2_squared
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels._types import constant
from jaxkernels.measurement._interval import mean_of_modelled
from jaxkernels.measurement._mixing import fit_mixing, measure_mixing

VARIANCES = np.array([2.0, 0.5, 0.1])
MEAN = np.array([1.0, -0.5, 0.0])
TARGET = jk.Gaussian(MEAN, VARIANCES)
PROCESS = jk.VP()
STEPS = 8
REPETITIONS = 8
SCHEDULE = jk.schedules.log_snr(PROCESS, STEPS, 1e-3)
TIMES = np.asarray(SCHEDULE.times, np.float64)


def _level(t: float) -> tuple[float, float]:
    """Signal and noise of the linear variance-preserving process."""
    integral = 0.1 * t + 9.95 * t * t
    return float(np.exp(-0.5 * integral)), float(np.sqrt(-np.expm1(-integral)))


def _excess(slope: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The exact excess in squared W2 of DDIM, errors (..., steps, modes): NumPy's recurrence."""

    def error(slope: np.ndarray, shift: np.ndarray) -> np.ndarray:
        mean = np.zeros(slope.shape[:-2] + MEAN.shape)
        variance = np.ones_like(mean)
        for k in range(STEPS):
            (a, s), (b, r) = _level(TIMES[k]), _level(TIMES[k + 1])
            marginal = a * a * VARIANCES + s * s
            # eps = -s (score + error), x0 = (x - s eps) / a, x' = b x0 + r eps
            push = (b * s / a - r) * s
            factor = b / a - push / marginal - push * slope[..., k, :]
            mean = factor * mean + push * (a * MEAN / marginal + shift[..., k, :])
            variance = factor**2 * variance
        return w2_squared(mean - MEAN, variance, VARIANCES)

    none = np.zeros((STEPS, 3))
    return error(slope, shift) - error(none, none)


def _excess_of_matrices(slope: np.ndarray, shift: np.ndarray) -> float:
    """The same for matrix slopes (steps, 3, 3), with the Bures distance by matrix square roots."""

    def error(slope: np.ndarray, shift: np.ndarray) -> float:
        mean = np.zeros(3)
        covariance = np.eye(3)
        for k in range(STEPS):
            (a, s), (b, r) = _level(TIMES[k]), _level(TIMES[k + 1])
            marginal = a * a * VARIANCES + s * s
            push = (b * s / a - r) * s
            factor = b / a * np.eye(3) - push * (np.diag(1.0 / marginal) + slope[k])
            mean = factor @ mean + push * (a * MEAN / marginal + shift[k])
            covariance = factor @ covariance @ factor.T
        root = np.diag(np.sqrt(VARIANCES))
        overlap = np.real(np.trace(np.asarray(scipy.linalg.sqrtm(root @ covariance @ root))))
        return float(
            np.sum((mean - MEAN) ** 2) + np.trace(covariance) + VARIANCES.sum() - 2.0 * overlap
        )

    return error(slope, shift) - error(np.zeros((STEPS, 3, 3)), np.zeros((STEPS, 3)))


def _estimate(slope: np.ndarray, shift: np.ndarray) -> jk.ScoreErrorEstimate:
    arrays = (TIMES[:-1], slope, shift, np.zeros((STEPS, 3)))
    return jk.ScoreErrorEstimate(*(constant(a) for a in arrays))


@pytest.fixture(scope="module")
def kernel() -> Any:
    return jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE)


@pytest.mark.parametrize("size", [0.01, 0.1, -0.1, 0.3])
def test_the_effect_of_a_known_error_is_exact(kernel: Any, size: float) -> None:
    """An expansion about 0 is wrong by a third and more for errors of 0.1."""
    error = np.full((1, REPETITIONS, STEPS, 3), size)
    predicted = _estimate(error, error).predict(kernel)
    exact = float(_excess(error[0, 0], error[0, 0]))
    assert predicted.value == pytest.approx(exact, rel=1e-9)
    assert predicted.high - predicted.low < 1e-9
    assert abs(predicted.remainder) < 1e-9
    expansion = float(kernel.contract(_estimate(error, error).score_error()))
    if abs(size) >= 0.1:
        assert abs(expansion - exact) > 0.25 * abs(exact)


def _draw(rng: np.random.Generator, count: int, size: float) -> np.ndarray:
    """Errors (count, 2, steps, modes) of this standard deviation, correlated in time."""
    lag = np.abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS)))
    factor = np.linalg.cholesky(0.8**lag)
    return size * np.einsum("ab,npbi->npai", factor, rng.standard_normal((count, 2, STEPS, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("networks", [1, 12, 40])
@pytest.mark.parametrize("size", [0.01, 0.075, 0.15, 0.3])
@pytest.mark.parametrize(("scatter", "seed"), [(0.003, 0), (0.03, 0), (0.03, 1)])
def test_intervals_cover(
    kernel: Any, networks: int, size: float, scatter: float, seed: int
) -> None:
    """95% intervals of 200 ensembles, with fits that scatter, in part alike for all networks.

    Of the largest errors one network in twenty makes up 60 % of the mean.
    """
    rng = np.random.default_rng(seed)
    # 3e5 networks: 1 % of the mean of the largest errors
    parts = [_excess(*np.swapaxes(_draw(rng, 100_000, size), 0, 1)) for _ in range(3)]
    truth = float(np.mean(parts))
    hits = 0
    for _ in range(200):
        errors = _draw(rng, networks, size)
        if networks == 1:
            truth = float(_excess(*errors[0]))
        shape = (networks, REPETITIONS, 2, STEPS, 3)
        own, common = rng.standard_normal(shape), rng.standard_normal((1, *shape[1:]))
        fits = errors[:, None] + scatter * np.sqrt(0.5) * (own + common)
        low, high = _estimate(fits[:, :, 0], fits[:, :, 1]).predict(kernel)[1:3]
        hits += low <= truth <= high
    assert hits >= 180


def test_critical_values_of_a_normal_population_are_students() -> None:
    """4000 ratios: 2.5 % of a quantile is one standard error of it."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal(12)
    found = mean_of_modelled(values, 3.0 + 2.0 * rng.standard_normal(100_000), 0.95)
    half = scipy.stats.t.ppf(0.975, 11) * np.std(values, ddof=1) / np.sqrt(12)
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    np.testing.assert_allclose([found.value - found.low, found.high - found.value], half, rtol=0.1)


def test_intervals_of_matrix_slopes_are_those_of_their_diagonals(kernel: Any) -> None:
    fits = _draw(np.random.default_rng(6), 10, 0.1).reshape(5, 2, 2, STEPS, 3)
    slope, shift = np.moveaxis(fits, 2, 0)
    matrices = slope[..., None] * np.eye(3)
    dense = jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE, dense=True)
    expected = _estimate(slope, shift).predict(kernel)
    assert expected.low < expected.value < expected.high
    np.testing.assert_allclose(_estimate(matrices, shift).predict(dense), expected, rtol=1e-5)


def test_a_scattered_fit_is_corrected_for(kernel: Any) -> None:
    """No error, fits that scatter by 0.1: naive averages are far too large, predictions are not.

    The mean of 100 predictions is 0 within 4 standard errors.
    """
    rng = np.random.default_rng(1)
    fits = 0.1 * rng.standard_normal((100, 1, REPETITIONS, 2, STEPS, 3))
    predicted = [_estimate(f[:, :, 0], f[:, :, 1]).predict(kernel).value for f in fits]
    naive = _excess(*np.moveaxis(fits.mean(2)[:, 0], 1, 0))
    error = np.std(predicted) / np.sqrt(100)
    assert abs(np.mean(predicted)) < 4.0 * error
    assert np.mean(naive) > 4.0 * error


def test_a_scatter_beyond_the_expansion_is_said(kernel: Any) -> None:
    fits = 2.0 * np.random.default_rng(2).standard_normal((12, 3, 2, STEPS, 3))
    fits[1:] = 0.0
    estimate = _estimate(fits[:2, :, 0], fits[:2, :, 1])
    with pytest.warns(UserWarning, match="scatter too much for their expansion"):
        estimate.predict(kernel)


def test_the_interaction_matrix_of_an_estimate_sums_to_its_contraction(kernel: Any) -> None:
    """Five networks: a mean, which acts at first order as well, and a covariance."""
    errors = _draw(np.random.default_rng(3), 5, 0.05)[:, None]
    model = _estimate(errors[:, :, 0].repeat(2, 1), errors[:, :, 1].repeat(2, 1)).score_error()
    pairs = np.asarray(kernel.interaction_matrix(model))
    np.testing.assert_allclose(pairs, pairs.T, atol=1e-12)
    assert pairs.sum() == pytest.approx(float(kernel.contract(model)), rel=1e-9)


# --- matrix slopes --------------------------------------------------------------------------------

DATA = np.random.default_rng(0).standard_normal((20_000, 3)) * np.sqrt(VARIANCES) + MEAN
DATA_TARGET = jk.Gaussian.fit(DATA, shrinkage=0.0)
OFF = 0.03 * np.array([[0.0, 1.0, -1.0], [1.0, 0.0, 0.5], [-1.0, 2.0, 0.0]])


def _mixing_network(nonlinear: float) -> jk.Denoiser:
    def score(x: Array, t: Array) -> Array:
        basis = jnp.asarray(DATA_TARGET.basis)
        y = x @ basis
        wrong = 0.1 - y @ (jnp.asarray(OFF) + 0.02 * jnp.eye(3)).T + nonlinear * jnp.sin(3.0 * y)
        return DATA_TARGET.score(PROCESS, x, t) + wrong @ basis.T

    return jk.Denoiser(score, PROCESS, "score")


def _fit(nonlinear: float = 0.0, **options: Any) -> jk.ScoreErrorEstimate:
    settings: dict[str, Any] = {"target": DATA_TARGET, "repetitions": 3, "batch": 256}
    return jk.estimate_score_error(
        _mixing_network(nonlinear),
        DATA,
        TIMES[:-1],
        key=jax.random.key(0),
        progress=False,
        **(settings | options),
    )


def test_slopes_per_mode_say_what_they_miss() -> None:
    with pytest.warns(UserWarning, match="Use slopes='matrix'"):
        estimate = _fit()
    assert estimate.mixing is not None
    # a unit of u is the standard deviation of x: sum_j (Delta_ij)^2 Sigma_j
    signal, noise = np.array([_level(t) for t in TIMES[:-1]]).T
    marginal = signal[:, None] ** 2 * np.asarray(DATA_TARGET.eigenvalues) + noise[:, None] ** 2
    np.testing.assert_allclose(estimate.mixing.sum(1), (marginal @ OFF.T**2).sum(1), rtol=0.25)


def test_matrix_slopes_are_found_and_propagated_exactly() -> None:
    estimate = _fit(slopes="matrix")
    exact = OFF + 0.02 * np.eye(3)
    np.testing.assert_allclose(estimate.slope, np.broadcast_to(exact, (1, 3, 8, 3, 3)), atol=1e-8)
    np.testing.assert_allclose(estimate.shift, 0.1, atol=1e-8)
    kernel = jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE, dense=True)
    expected = _excess_of_matrices(np.repeat(exact[None], 8, 0), np.full((8, 3), 0.1))
    assert estimate.predict(kernel).value == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="make the kernel with dense=True"):
        estimate.predict(jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE))
    with pytest.raises(ValueError, match="this estimate has matrix slopes"):
        estimate.second_moment()


def test_the_mixing_part_is_measured_without_bias() -> None:
    """400 batches of 64 draws in 5 modes: the mean is sum_j B_ji^2 within 4 standard errors."""
    rng = np.random.default_rng(4)
    matrix = 0.2 * rng.standard_normal((5, 5))
    np.fill_diagonal(matrix, 0.0)
    u = rng.standard_normal((400, 64, 5))
    r = u @ matrix + rng.standard_normal((400, 64, 5))
    found = np.asarray(jax.jit(jax.vmap(measure_mixing))(u, r))
    error = found.std(0) / np.sqrt(400)
    assert np.all(np.abs(found.mean(0) - np.sum(matrix**2, 0)) < 4.0 * error)


def test_ridge_and_rank_are_selected_on_held_out_draws() -> None:
    """A matrix of rank 1 in 24 modes from 60 draws: least squares is worse than none at all.

    Validated, the ridge is better than none, and low rank with a ridge better than the ridge.
    """
    rng = np.random.default_rng(5)
    matrix = np.outer(rng.standard_normal(24), rng.standard_normal(24)) * 0.15
    errors = {"least squares": [], "ridge": [], "low rank": []}
    fits = {
        "least squares": jax.jit(lambda u, r: fit_mixing(u, r, 0.0, False).matrix),
        "ridge": jax.jit(lambda u, r: fit_mixing(u, r, None, False).matrix),
        "low rank": jax.jit(lambda u, r: fit_mixing(u, r, None, True).matrix),
    }
    for _ in range(10):
        u = rng.standard_normal((60, 24))
        r = u @ matrix + 1.5 * rng.standard_normal((60, 24))
        for name, fit in fits.items():
            errors[name].append(np.sum((np.asarray(fit(u, r)) - matrix) ** 2))
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["low rank"] < 0.7 * mean["ridge"]
    assert mean["ridge"] < min(0.7 * mean["least squares"], np.sum(matrix**2))


def test_nothing_is_fitted_where_nothing_mixes() -> None:
    rng = np.random.default_rng(6)
    draws = jnp.asarray(rng.standard_normal((2, 60, 24)))
    found = fit_mixing(draws[0], draws[1], None, True)
    assert np.sum(np.asarray(found.matrix) ** 2) < 0.3
    assert float(jnp.mean(found.residual)) == pytest.approx(1.0, abs=0.15)


# --- refusals and warnings ------------------------------------------------------------------------


def test_an_error_beyond_its_expansion_is_said() -> None:
    error = jk.ScoreError.relative(3.0)
    with pytest.warns(UserWarning, match="score_error is too large for its expansion"):
        jk.expected_error(TARGET, PROCESS, "ddim", SCHEDULE, score_error=error)


def test_a_gaussian_initialization_needs_matrices() -> None:
    start = jk.Gaussian(np.zeros(3), [1.2, 1.0, 0.8])
    setting = (TARGET, PROCESS, "ddim", SCHEDULE)
    with pytest.raises(ValueError, match="pass dense=True"):
        jk.error_kernel(*setting, initialization=start)
    kernel = jk.error_kernel(*setting, initialization=start, dense=True)
    expected = jk.evaluate_schedule(*setting, initialization=start).w2_squared
    assert float(kernel.baseline()) == pytest.approx(float(expected), rel=1e-5)


class Averaging(jk.AbstractSampler):
    """DDIM that adds the mean of the coordinates: per mode it would run, and be wrong."""

    order, nfe_per_step, stochastic = 1, 1, False

    def step(self, predict, noise, process, step, x, history):
        p = predict(x, step.time)
        t = step.next_time
        return process.signal(t) * p.x0 + process.noise(t) * p.eps + 0.1 * jnp.mean(x), history


class Rotating(Averaging):
    """DDIM and a matrix for three coordinates."""

    def step(self, predict, noise, process, step, x, history):
        x, history = super().step(predict, noise, process, step, x, history)
        return jnp.ones((3, 3)) @ x, history


@pytest.mark.parametrize("sampler", [Averaging(), Rotating()])
def test_samplers_that_are_not_elementwise_are_refused(sampler: jk.AbstractSampler) -> None:
    with pytest.raises(ValueError, match="must be elementwise with scalar coefficients"):
        jk.evaluate_schedule(TARGET, PROCESS, sampler, SCHEDULE)


class Optional(Averaging):
    """DDIM that adds the mean of the coordinates if it is asked to."""

    mix: bool = eqx.field(static=True)

    def step(self, predict, noise, process, step, x, history):
        if self.mix:
            return super().step(predict, noise, process, step, x, history)
        return jk.DDIM().step(predict, noise, process, step, x, history)


class Clipping(Averaging):
    """DDIM with a clipped denoised point, as pipelines of pixels have it."""

    def step(self, predict, noise, process, step, x, history):
        x0, eps = predict(x, step.time)
        t = step.next_time
        x0 = jnp.where(jnp.abs(x0) < 1.0, x0, jnp.sign(x0))
        return process.signal(t) * x0 + process.noise(t) * eps, history


class Uncounted(Averaging):
    """DDIM that looks at the network twice."""

    def step(self, predict, noise, process, step, x, history):
        p = predict(x, step.time)
        q = predict(x, step.time)
        t = step.next_time
        return process.signal(t) * p.x0 + process.noise(t) * q.eps, history


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Clipping(), "the step of Clipping must be affine in x"),
        (Uncounted(), "evaluates the network 2 times, and nfe_per_step = 1"),
    ],
)
def test_samplers_whose_moments_or_nfe_would_be_wrong_are_refused(
    sampler: jk.AbstractSampler, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        jk.evaluate_schedule(TARGET, PROCESS, sampler, SCHEDULE)


def test_one_sampler_of_a_class_says_nothing_of_another() -> None:
    found = jk.evaluate_schedule(TARGET, PROCESS, Optional(mix=False), SCHEDULE)
    expected = jk.evaluate_schedule(TARGET, PROCESS, "ddim", SCHEDULE)
    assert float(found.w2) == pytest.approx(float(expected.w2))
    with pytest.raises(ValueError, match="must be elementwise with scalar coefficients"):
        jk.evaluate_schedule(TARGET, PROCESS, Optional(mix=True), SCHEDULE)


def test_matrix_slopes_in_objectives() -> None:
    error = jk.ScoreError.dense(0.01 * np.ones((1, 3, 3)), np.zeros((1, 3)))
    setting = (TARGET, PROCESS, "ddim", SCHEDULE)
    with pytest.raises(ValueError, match=r"use expected_error\(..., dense=True\)"):
        jk.evaluate_schedule(*setting, score_error=error)
    with pytest.raises(ValueError, match="use TerminalError"):
        jk.LocalError(score_error=error).bind(TARGET, PROCESS, jk.DDIM())
    objective = jk.TerminalError(score_error=error)
    bound = eqx.filter_jit(objective.bind(TARGET, PROCESS, jk.DDIM()))
    value = float(bound(SCHEDULE))
    # half the second derivative along the error, by differences
    slope, none = np.full((STEPS, 3, 3), 1e-4), np.zeros((STEPS, 3))
    even = 0.5 * (_excess_of_matrices(slope, none) + _excess_of_matrices(-slope, none))
    baseline = float(jk.evaluate_schedule(*setting).w2_squared)
    assert value - baseline == pytest.approx(1e4 * even, rel=1e-3)
    weighted = jk.Gaussian(0.0, VARIANCES, weights=[2.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="unit weights"):
        objective.check_target(weighted, PROCESS, jk.DDIM(), 4)
