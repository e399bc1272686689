"""What score errors cost: kernels, expected errors and models of the errors.

The oracles are recurrences in NumPy, written per sampler from their coefficients, that take an
error at every evaluation; and second derivatives of a dense recurrence that shares nothing
with the package.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_distances import w2_squared
from scipy.integrate import quad

import jaxkernels as jk
from jaxkernels import metrics
from jaxkernels.errors import LocalError
from jaxkernels.recurrence import local_errors
from jaxkernels.score_error import Constant, GivenCorrelation, Relative, Tabulated

PROCESS = jk.VP()
MEAN = np.array([0.8, -0.5, 0.0])
TIMES = (np.arange(12, -1, -1) / 12.0) ** 2 * 0.999 + 0.001
SCHEDULE = jk.Schedule(TIMES)
SPECTRA = {p: (np.arange(1, 4.0) ** -p) * 3.0 / np.sum(np.arange(1, 4.0) ** -p) for p in (0, 1, 2)}


def _coefficients(times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal, squared noise level sigma^2 and beta of VP(0.1, 20)."""
    b = 0.1 * times + 9.95 * times**2
    return np.exp(-0.5 * b), np.expm1(b), 0.1 + 19.9 * times


def _terminal(
    name: str,
    times: np.ndarray,
    slope: np.ndarray,
    shift: np.ndarray,
    lam: np.ndarray,
    mean: np.ndarray,
    alpha=0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean, variance of samples from N(0, I), per draw and mode; errors (draws, E, modes)."""
    a, v, beta = _coefficients(times)
    p = 1.0 + alpha**2
    total = a[:, None] ** 2 * (lam + v[:, None])
    gain, at_zero, noise = (
        np.ones_like(slope[:, 0]),
        np.zeros_like(slope[:, 0]),
        np.zeros_like(slope[:, 0]),
    )

    def score(x: np.ndarray, k: int, e: int, linear: bool) -> np.ndarray:
        """The learned score at time k with error number e; its linear part only for a gain."""
        constant = 0.0 if linear else a[k] * mean / total[k] + shift[:, e]
        return -(1.0 / total[k] + slope[:, e]) * x + constant

    before: list[Any] = [None, None]
    for k in range(len(times) - 1):
        h, ratio = times[k] - times[k + 1], a[k + 1] / a[k]
        nu2 = 0.0
        outs = []
        for i, (x, linear) in enumerate(((gain, True), (at_zero, False))):
            if name == "heun":

                def flow(x: np.ndarray, k: int, e: int, linear: bool = linear) -> np.ndarray:
                    return 0.5 * beta[k] * (x + score(x, k, e, linear))

                first = flow(x, k, 2 * k)
                outs.append(x + 0.5 * h * (first + flow(x + h * first, k + 1, 2 * k + 1)))
                continue
            s = score(x, k, k, linear)
            if name == "euler_maruyama":
                outs.append(x * (1.0 + 0.5 * beta[k] * h) + 0.5 * p * beta[k] * h * s)
                nu2 = alpha**2 * h * beta[k]
            elif name == "exponential_integrator":
                outs.append(x * ratio + p * (ratio - 1.0) * s)
                nu2 = alpha**2 * (ratio**2 - 1.0)
            elif name == "ddim":
                outs.append(
                    x * ratio + a[k + 1] * a[k] * v[k] * (1.0 - (v[k + 1] / v[k]) ** (0.5 * p)) * s
                )
                nu2 = a[k + 1] ** 2 * v[k + 1] * (1.0 - (v[k + 1] / v[k]) ** alpha**2)
            else:  # dpmpp_2m
                x0 = (x + a[k] ** 2 * v[k] * s) / a[k]
                weight = 0.0 if k == 0 else 0.5 * np.log(v[k] / v[k + 1]) / np.log(v[k - 1] / v[k])
                extrapolated = x0 if k == 0 else x0 + weight * (x0 - before[i])
                before[i] = x0
                shrink = ratio * np.sqrt(v[k + 1] / v[k])
                outs.append(shrink * x + (a[k + 1] - a[k] * shrink) * extrapolated)
        if name in ("euler_maruyama", "exponential_integrator", "ddim") and alpha > 0:
            noise = noise * (outs[0] / gain) ** 2 + nu2
        gain, at_zero = outs
    return at_zero, gain**2 + noise


def _w2(
    mean: np.ndarray, variance: np.ndarray, lam: np.ndarray, target_mean: np.ndarray
) -> np.ndarray:
    return w2_squared(mean - target_mean, variance, lam)


def _draw(
    correlation: np.ndarray, draws: int, scale: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and shifts (draws, evaluations, 3), independent over modes and parameters.

    Their second moments over the draws are exact, so that averages of squares have no sampling
    error.
    """
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    z = np.random.default_rng(seed).standard_normal((draws, 2 * len(root) * 3))
    z = np.sqrt(draws) * np.linalg.qr(z)[0]
    z = np.moveaxis(z.reshape(draws, 2, len(root), 3), 1, 0)
    slope, shift = scale * np.einsum("ab,pdbm->pdam", root, z)
    return slope, shift


REGIMES: dict[
    str, tuple[jk.score_error.AbstractCorrelation, Callable[[np.ndarray], np.ndarray]]
] = {
    "independent": (jk.Independent(), lambda lag: (lag == 0).astype(float)),
    "ar1": (jk.AR1(0.9), lambda lag: 0.9**lag),
    "shared": (jk.FullyCorrelated(), lambda lag: np.ones_like(lag, float)),
}
SAMPLERS = {
    "euler_maruyama": 1.0,
    "exponential_integrator": 0.5,
    "ddim": 0.0,
    "heun": 0.0,
    "dpmpp_2m": 0.0,
}


def _evaluation_index(name: str, steps: int) -> np.ndarray:
    """Which distinct time each evaluation is at."""
    if name == "heun":
        return np.stack([np.arange(steps), np.arange(1, steps + 1)], 1).ravel()
    return np.arange(steps)


# --- prediction against simulation ----------------------------------------------------------------


@functools.cache
def _predicted_and_measured(name: str, regime: str, power: int) -> tuple[float, float]:
    """Excess of E W2^2 over its value without errors: prediction and simulation."""
    alpha, lam, scale, pairs = SAMPLERS[name], SPECTRA[power], 2e-3, 2_000
    correlation, of_lag = REGIMES[regime]
    schedule = jk.Schedule(TIMES, alpha)
    error = jk.ScoreError.diagonal(scale, scale, correlation)
    predicted = jk.error_kernel(jk.Gaussian(MEAN, lam), PROCESS, name, schedule).contract(error)
    index = _evaluation_index(name, len(TIMES) - 1)
    slope, shift = _draw(of_lag(np.abs(index[:, None] - index)), pairs, scale, seed=power)
    values = [
        _w2(*_terminal(name, TIMES, s * slope, s * shift, lam, MEAN, alpha), lam, MEAN)
        for s in (0.0, 1.0, -1.0)
    ]
    excess = 0.5 * (values[1] + values[2]) - values[0]
    return float(predicted), float(excess.mean())


@pytest.mark.parametrize("power", SPECTRA)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_prediction_against_simulation(name: str, regime: str, power: int) -> None:
    predicted, measured = _predicted_and_measured(name, regime, power)
    # what is beyond second order: at most 2e-4
    assert predicted == pytest.approx(measured, rel=5e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_correlation_at_equal_marginals(name: str) -> None:
    """The same errors time by time, shared instead of independent, cost several times as much."""
    shared, independent = (
        _predicted_and_measured(name, regime, 1) for regime in ("shared", "independent")
    )
    predicted, measured = shared[0] / independent[0], shared[1] / independent[1]
    assert predicted == pytest.approx(measured, rel=5e-4)
    assert measured > 3.0


# --- the kernel itself ----------------------------------------------------------------------------


def _dense_error(
    theta: jax.Array, times: np.ndarray, covariance: np.ndarray, mean: np.ndarray
) -> jax.Array:
    """W2^2 of DDIM without noise on a dense Gaussian, theta (K, d, d + 1) = (Delta | delta)."""
    a, v, _ = _coefficients(times)
    d = len(mean)
    m, s = jnp.zeros(d), jnp.eye(d)
    for k in range(len(times) - 1):
        precision = jnp.linalg.inv(a[k] ** 2 * (covariance + v[k] * np.eye(d)))
        eta = a[k + 1] * a[k] * np.sqrt(v[k]) * (np.sqrt(v[k]) - np.sqrt(v[k + 1]))
        factor = a[k + 1] / a[k] * jnp.eye(d) - eta * (precision + theta[k, :, :d])
        m = factor @ m + eta * (precision @ mean * a[k] + theta[k, :, d])
        s = factor @ s @ factor.T
    root = jnp.asarray(np.linalg.cholesky(covariance))
    eigenvalues = jnp.linalg.eigvalsh(root.T @ s @ root)
    return (
        jnp.sum((m - mean) ** 2)
        + jnp.trace(s)
        + np.trace(covariance)
        - 2.0 * jnp.sum(jnp.sqrt(eigenvalues))
    )


def test_blocks_are_the_hessian_of_the_exact_error() -> None:
    """d = 3, K = 4, matrix slopes, against autodiff of an independent dense recurrence."""
    times, lam = TIMES[::3], np.array([2.0, 0.7, 0.2])
    kernel = jk.error_kernel(
        jk.Gaussian(MEAN, lam), PROCESS, "ddim", jk.Schedule(times), dense=True
    )
    theta = jnp.zeros((4, 3, 4))
    hessian = jax.jit(jax.hessian(lambda x: _dense_error(x, times, np.diag(lam), MEAN)))(theta)
    slope, shift, cross = (
        hessian[:, :, :3, :, :, :3],
        hessian[:, :, 3, :, :, 3],
        hessian[:, :, 3, :, :, :3],
    )
    scale = float(jnp.abs(hessian).max())
    blocks = kernel.blocks()
    np.testing.assert_allclose(2.0 * blocks.shift, shift, atol=1e-9 * scale)
    np.testing.assert_allclose(2.0 * blocks.slope, slope, atol=1e-9 * scale)
    np.testing.assert_allclose(blocks.cross, cross, atol=1e-9 * scale)
    # the diagonal of the matrices is the kernel per mode
    modes = jk.error_kernel(jk.Gaussian(MEAN, lam), PROCESS, "ddim", jk.Schedule(times)).blocks()
    np.testing.assert_allclose(
        modes.slope, 0.5 * np.einsum("aiibii->abi", slope), atol=1e-9 * scale
    )
    np.testing.assert_allclose(modes.shift, 0.5 * np.einsum("aibi->abi", shift), atol=1e-9 * scale)


def test_hessian_of_the_bures_distance_in_closed_form() -> None:
    """D2[U, U] = sum (V^T C^(1/2) U C^(1/2) V)_ij^2 / (r_i r_j (r_i + r_j)), R = V diag(r) V^T."""
    rng = np.random.default_rng(0)
    c, s = (q @ q.T + 0.1 * np.eye(3) for q in rng.standard_normal((2, 3, 3)))
    values, vectors = np.linalg.eigh(c)
    root = (vectors * np.sqrt(values)) @ vectors.T
    r2, v = np.linalg.eigh(root @ s @ root)
    r = np.sqrt(r2)

    @jax.jit
    def second_derivative(u: jax.Array) -> jax.Array:
        def along(e: jax.Array) -> jax.Array:
            return metrics.bures_squared(jnp.asarray(s) + e * u, jnp.asarray(c))

        return jax.grad(jax.grad(along))(0.0)

    for u in rng.standard_normal((5, 3, 3)):
        u = u + u.T
        rotated = v.T @ root @ u @ root @ v
        exact = np.sum(rotated**2 / (r[:, None] * r * (r[:, None] + r)))
        assert float(second_derivative(u)) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", pytest.param("heun", marks=pytest.mark.slow)])
def test_blocks_contraction_and_interactions_agree(name: str) -> None:
    target = jk.Gaussian(MEAN, SPECTRA[1])
    kernel = jk.error_kernel(target, PROCESS, name, SCHEDULE, metric="kl")
    error = jk.ScoreError.diagonal(0.02, [0.03, 0.01, 0.02], jk.OrnsteinUhlenbeck(1.5), cross=0.4)
    rho = np.asarray(error.correlation.matrix(PROCESS, kernel.times))
    scale = np.array([0.03, 0.01, 0.02])
    blocks = kernel.blocks()
    pairs = np.einsum("abm,ab,m->ab", blocks.shift, rho, scale**2)
    pairs += np.einsum("abm,ab->ab", blocks.slope, rho) * 0.02**2
    cross = np.einsum("abm,ab,m->ab", blocks.cross, rho, 0.4 * 0.02 * scale)
    pairs += 0.5 * (cross + cross.T)
    total = float(kernel.contract(error))
    assert total == pytest.approx(pairs.sum(), rel=1e-11)
    np.testing.assert_allclose(
        kernel.interaction_matrix(error), pairs, atol=1e-12 * np.abs(pairs).max()
    )
    marginal = kernel.time_marginal()
    np.testing.assert_allclose(
        marginal.shift, np.einsum("aam->am", blocks.shift), rtol=1e-9, atol=1e-13
    )
    np.testing.assert_allclose(
        marginal.slope, np.einsum("aam->am", blocks.slope), rtol=1e-9, atol=1e-13
    )


def test_a_mean_error_enters_with_its_gradient() -> None:
    """Second moment and gradient, exact up to third order: halving the error shows order 3."""
    target, known = (
        jk.Gaussian(MEAN, SPECTRA[1]),
        Constant(jnp.array([[0.3, -0.1, 0.2]]), jnp.array([[0.1, 0.2, -0.3]])),
    )
    kernel = jk.error_kernel(target, PROCESS, "ddim", SCHEDULE)
    gaps = []
    for size in (0.1, 0.05):
        error = jk.ScoreError.deterministic(known, size)
        slope, shift = (
            np.broadcast_to(size * np.asarray(a), (1, 12, 3)) for a in (known.slope, known.shift)
        )
        exact = _w2(*_terminal("ddim", TIMES, slope, shift, SPECTRA[1], MEAN), SPECTRA[1], MEAN)[0]
        assert float(
            jk.evaluate_schedule(target, PROCESS, "ddim", SCHEDULE, score_error=error).w2_squared
        ) == (pytest.approx(exact, rel=1e-10))
        gaps.append(abs(float(kernel.baseline() + kernel.contract(error)) - exact))
    assert np.log2(gaps[0] / gaps[1]) == pytest.approx(3.0, abs=0.3)


def test_a_kernel_about_known_errors() -> None:
    target, known = (
        jk.Gaussian(MEAN, SPECTRA[1]),
        Constant(jnp.full((1, 3), 0.3), jnp.full((1, 3), 0.1)),
    )
    about = jk.ScoreError.deterministic(known).mean_at(target, PROCESS, SCHEDULE.times[:-1])
    assert about is not None
    kernel = jk.error_kernel(target, PROCESS, "ddim", SCHEDULE, about=about)
    slope, shift = np.full((1, 12, 3), 0.3), np.full((1, 12, 3), 0.1)
    exact = _w2(*_terminal("ddim", TIMES, slope, shift, SPECTRA[1], MEAN), SPECTRA[1], MEAN)[0]
    assert float(kernel.baseline()) == pytest.approx(exact, rel=1e-11)
    assert float(kernel.contract(jk.ScoreError.deterministic(known))) == pytest.approx(
        0.0, abs=1e-15
    )


# --- expected errors ------------------------------------------------------------------------------


def _shared_slope(size: float) -> tuple[jk.ExpectedError, float]:
    """Quadratures of the package and SciPy for one mode whose slope errs by one number."""
    lam = np.array([0.5])
    target = jk.Gaussian(0.7, lam)
    error = jk.ScoreError.diagonal(slope=size)
    ours = jk.expected_error(
        target, PROCESS, "ddim", SCHEDULE, score_error=error, method="quadrature", nodes=40
    )

    def density(z: float) -> float:
        mean, variance = _terminal(
            "ddim", TIMES, np.full((1, 12, 1), size * z), np.zeros((1, 12, 1)), lam, np.array([0.7])
        )
        return (
            float(_w2(mean, variance, lam, np.array([0.7]))[0])
            * np.exp(-0.5 * z * z)
            / np.sqrt(2.0 * np.pi)
        )

    return ours, quad(density, -9.0, 9.0, epsabs=1e-13, epsrel=1e-12, limit=400)[0]


def test_quadrature_is_exact_for_errors_of_low_rank() -> None:
    ours, exact = _shared_slope(0.02)
    assert float(ours.value) == pytest.approx(exact, rel=1e-9)


def test_remainder_is_of_fourth_order_for_normal_errors() -> None:
    remainders = [float(_shared_slope(size)[0].remainder) for size in (0.02, 0.01)]
    assert np.log2(remainders[0] / remainders[1]) == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize(
    "metric",
    ["w2_squared", *(pytest.param(m, marks=pytest.mark.slow) for m in ("kl", "reverse_kl"))],
)
def test_simulation_and_quadrature_agree(metric: str) -> None:
    target = jk.Gaussian(MEAN, SPECTRA[2])
    error = jk.ScoreError.diagonal(0.1, 0.1, jk.FullyCorrelated())
    setting: dict[str, Any] = {"score_error": error, "metric": metric}
    exact = jk.expected_error(
        target, PROCESS, "dpmpp_2m", SCHEDULE, method="quadrature", nodes=24, **setting
    )
    drawn = jk.expected_error(
        target, PROCESS, "dpmpp_2m", SCHEDULE, method="monte_carlo", pairs=4000, **setting
    )
    assert abs(float(drawn.value - exact.value)) < 4.0 * float(drawn.standard_error)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        expansion = jk.expected_error(target, PROCESS, "dpmpp_2m", SCHEDULE, **setting)
    doubt = abs(float(expansion.remainder)) + float(expansion.standard_error)
    assert bool(said) == (doubt > 0.25 * abs(float(expansion.second_order)))
    assert abs(float(expansion.remainder - exact.remainder)) < 4.0 * float(expansion.standard_error)
    assert float(expansion.value) == float(expansion.baseline + expansion.second_order)
    assert "second_order=" in repr(expansion)


def test_evaluation_includes_the_expected_score_error() -> None:
    target, error = (
        jk.Gaussian(MEAN, SPECTRA[1]),
        jk.ScoreError.relative(0.02, jk.OrnsteinUhlenbeck(2.0)),
    )
    exact = jk.evaluate_schedule(target, PROCESS, "ddim", SCHEDULE)
    with_error = jk.evaluate_schedule(target, PROCESS, "ddim", SCHEDULE, score_error=error)
    expected = jk.expected_error(target, PROCESS, "ddim", SCHEDULE, score_error=error)
    budget = with_error.error_budget
    assert float(budget.score) == pytest.approx(float(expected.excess), rel=1e-12)
    assert float(with_error.w2_squared) == pytest.approx(float(expected.value), rel=1e-12)
    assert float(budget.discretization) == float(exact.error_budget.discretization)
    parts = budget.initialization + budget.truncation + budget.discretization + budget.score
    assert float(parts) == pytest.approx(float(budget.total), rel=1e-13)


def test_an_error_beyond_second_order_warns() -> None:
    target, error = jk.Gaussian(MEAN, SPECTRA[1]), jk.ScoreError.diagonal(slope=2.0)
    with pytest.warns(UserWarning, match="too large for its expansion"):
        jk.evaluate_schedule(target, PROCESS, "ddim", SCHEDULE, score_error=error)


# --- models of the error --------------------------------------------------------------------------

GRID = jnp.asarray([0.9, 0.6, 0.6, 0.3, 0.1])
LAG = np.abs(np.array([0, 1, 1, 2, 3])[:, None] - np.array([0, 1, 1, 2, 3]))
SNR = -np.log(_coefficients(np.asarray(GRID))[1])
CORRELATIONS = {
    "shared": (jk.FullyCorrelated(), np.ones((5, 5))),
    "independent": (jk.Independent(), (LAG == 0) * 1.0),
    "ar1": (jk.AR1(0.7), 0.7**LAG),
    "ar1 of 0": (jk.AR1(0.0), (LAG == 0) * 1.0),
    "time": (
        jk.OrnsteinUhlenbeck(0.4, "time"),
        np.exp(-np.abs(np.subtract.outer(GRID, GRID)) / 0.4),
    ),
    "log_snr": (jk.OrnsteinUhlenbeck(1.3), np.exp(-np.abs(np.subtract.outer(SNR, SNR)) / 1.3)),
    "banded": (jk.Banded(3), np.maximum(0.0, 1.0 - LAG / 3.0)),
    "given": (GivenCorrelation(0.5 * np.eye(5) + 0.5), 0.5 * np.eye(5) + 0.5),
}


@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlations(name: str) -> None:
    """Against their formulas; equal times have equal errors in all but a given matrix."""
    correlation, exact = CORRELATIONS[name]
    np.testing.assert_allclose(correlation.matrix(PROCESS, GRID), exact, atol=1e-12)
    slope = jax.jacfwd(lambda t: correlation.factor(PROCESS, t))(GRID)
    assert np.all(np.isfinite(slope))


def _covariance(error: jk.ScoreError, target: jk.Gaussian, times: jax.Array) -> np.ndarray:
    """(n, 2, n, 2, modes) from an error's directions."""
    w = error.directions(target, PROCESS, times)
    assert w is not None
    stacked = np.stack([w.slope, w.shift], 2)
    return np.einsum("raPm,rbQm->aPbQm", stacked, stacked)


def test_a_covariance_comes_back() -> None:
    target, times = jk.Gaussian(MEAN, SPECTRA[1]), np.array([1.0, 0.5, 0.2, 0.05])
    roots = np.random.default_rng(0).standard_normal((3, 8, 8))
    covariance = np.einsum("mij,mkj->ikm", roots, roots).reshape(4, 2, 4, 2, 3)
    mean = jk.AffineError(jnp.full((4, 3), 0.2), jnp.arange(12.0).reshape(4, 3))
    error = jk.ScoreError.from_covariance(times, covariance, mean)
    np.testing.assert_allclose(
        _covariance(error, target, jnp.asarray(times)), covariance, atol=1e-12
    )
    known = error.mean_at(target, PROCESS, jnp.asarray(times))
    assert known is not None
    np.testing.assert_allclose(known.shift, mean.shift, atol=1e-12)
    draws = error.sample(jax.random.key(0), target, PROCESS, jnp.asarray(times), 200_000)
    stacked = np.stack([draws.slope - 0.2, draws.shift - np.asarray(mean.shift)], 2).reshape(
        -1, 8, 3
    )
    measured = np.einsum("nim,njm->ijm", stacked, stacked) / len(stacked)
    exact = covariance.reshape(8, 8, 3)
    scale = np.sqrt(np.einsum("iim,jjm->ijm", exact, exact))
    assert np.max(np.abs(measured - exact) / scale) < 5.0 * np.sqrt(2.0 / 200_000)


def test_samples_give_mean_covariance_and_rank() -> None:
    target, times = jk.Gaussian(MEAN, SPECTRA[1]), np.array([1.0, 0.4, 0.1])
    slope, shift = np.random.default_rng(1).standard_normal((2, 6, 3, 3))
    error = jk.ScoreError.from_samples(times, slope, shift)
    both = np.stack([slope, shift], 2)
    centred = both - both.mean(0)
    exact = np.einsum("raPm,rbQm->aPbQm", centred, centred) / 5.0
    np.testing.assert_allclose(_covariance(error, target, jnp.asarray(times)), exact, atol=1e-12)
    one = jk.ScoreError.from_samples(times, slope, shift, rank=1).directions(
        target, PROCESS, jnp.asarray(times)
    )
    assert one is not None
    assert one.shift.shape == (1, 3, 3)
    flat = centred.reshape(6, -1) / np.sqrt(5.0)
    largest = np.linalg.svd(flat, compute_uv=False)[0]
    assert float(jnp.sum(one.slope**2) + jnp.sum(one.shift**2)) == pytest.approx(largest**2)
    second = jk.ScoreError.from_samples(times, slope, shift, centred=False)
    uncentred = np.einsum("raPm,rbQm->aPbQm", both, both) / 6.0
    np.testing.assert_allclose(
        _covariance(second, target, jnp.asarray(times)), uncentred, atol=1e-12
    )


def test_tables_are_linear_in_log_sigma() -> None:
    target, times = jk.Gaussian(MEAN, SPECTRA[1]), np.array([1.0, 0.5, 0.1])
    values = np.array([3.0, 1.0, 5.0])[None, :, None] * np.ones(3)
    profile = Tabulated(times, values, 2.0 * values)
    wanted = np.array([1.0, 0.8, 0.5, 0.2, 0.1, 0.01])
    sigma = np.sqrt(_coefficients(np.concatenate([times, wanted]))[1])
    expected = np.interp(np.log(sigma[3:]), np.log(sigma[:3])[::-1], [5.0, 1.0, 3.0])
    found = profile(target, PROCESS, jnp.asarray(wanted))
    np.testing.assert_allclose(found.slope[0, :, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(found.shift[0, :, 2], 2.0 * expected, rtol=1e-12)


def test_relative_error_is_the_score() -> None:
    target, t = jk.Gaussian(MEAN, SPECTRA[1]), jnp.asarray([0.4])
    error = jax.tree.map(lambda a: a[0, 0], Relative()(target, PROCESS, t))
    x = jnp.asarray([0.3, -1.0, 2.0])
    np.testing.assert_allclose(error(x), target.score(PROCESS, x, t[0]), rtol=1e-12)


@pytest.mark.parametrize("columns", [3, 2])
def test_relative_error_is_along_the_modes(columns: int) -> None:
    """Slope and shift of -Sigma_t^-1 (x - a mu) in an eigenbasis, also of an incomplete one."""
    t = jnp.asarray([0.4])
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0][:, :columns]
    target = jk.Gaussian(MEAN, SPECTRA[1], basis=basis)
    found = Relative()(target, PROCESS, t)
    along = basis.T @ np.broadcast_to(MEAN, 3)
    pull = float(PROCESS.signal(t[0])) * along * np.asarray(found.slope)[0, 0, :columns]
    np.testing.assert_allclose(np.asarray(found.shift)[0, 0, :columns], pull, rtol=1e-12)
    whole = Relative()(target.in_eigenbasis(), PROCESS, t)
    np.testing.assert_allclose(found.shift, whole.shift, rtol=1e-12)


def test_random_features_have_the_stated_shapes() -> None:
    """Delta = s U^T A U: entry by entry E Delta_ij Delta_kl = s^2 (U^T U)_ik (U^T U)_jl."""
    u = np.random.default_rng(2).standard_normal((2, 3))
    error = jk.ScoreError.random_features(u, 0.5, 0.25)
    w = error.directions(jk.Gaussian(MEAN, SPECTRA[1]), PROCESS, jnp.asarray([0.5]))
    assert w is not None
    assert w.dense
    gram = u.T @ u
    slopes = np.einsum("rij,rkl->ijkl", w.slope[:, 0], w.slope[:, 0])
    np.testing.assert_allclose(slopes, 0.25 * np.einsum("ik,jl->ijkl", gram, gram), atol=1e-12)
    np.testing.assert_allclose(
        np.einsum("ri,rj->ij", w.shift[:, 0], w.shift[:, 0]), 0.0625 * gram, atol=1e-12
    )


# --- schedules that account for score errors ------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "ddim",
        "euler_maruyama",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("heun", "dpmpp_2m")),
    ],
)
def test_local_cost_of_an_error_is_the_kernels_for_many_steps(name: str) -> None:
    target = jk.Gaussian(MEAN, SPECTRA[2])
    schedule = jk.schedules.log_snr(PROCESS, 320, 1e-3)
    error = jk.ScoreError.diagonal(1e-3, 1e-3, jk.OrnsteinUhlenbeck(2.0))
    sampler = jk.samplers.SAMPLERS[name]()
    objective = LocalError("w2_squared", "marginal", 1.0, error).bind(target, PROCESS, sampler)

    @jax.jit
    def both(schedule: jk.Schedule) -> tuple[jax.Array, jax.Array]:
        contraction = local_errors(target, PROCESS, sampler, schedule).contraction
        kernel = jk.error_kernel(target, PROCESS, name, schedule, initialization="marginal")
        return objective.score(schedule, contraction), kernel.contract(error)

    local, exact = both(schedule)
    assert float(local) == pytest.approx(float(exact), rel=0.02)


@pytest.mark.slow
def test_accounting_for_the_error_pays() -> None:
    """An error at the noise end: the optimum that accounts for it has a smaller E W2^2.

    The optimum without it starts with a long step, which multiplies the error by the ratio
    of the signals.
    """
    lam, scale = np.array([2.0, 0.5, 0.05]), 0.03
    target = jk.Gaussian(0.0, lam)
    error = jk.ScoreError.relative(scale, jk.OrnsteinUhlenbeck(2.0))
    setting: dict[str, Any] = {"t_min": 1e-3, "starts": ["log_snr", "quadratic"]}
    plain, aware = (
        jk.optimize_schedule(
            target, PROCESS, "ddim", 8, objective=jk.LocalError(score_error=e), **setting
        )
        for e in (None, error)
    )
    assert aware.converged

    def measured(schedule: jk.Schedule) -> float:
        times = np.asarray(schedule.times)
        a, v, _ = _coefficients(times)
        log_snr = -np.log(v[:-1])
        rho = np.exp(-np.abs(log_snr[:, None] - log_snr) / 2.0)
        z = np.linalg.cholesky(rho) @ np.random.default_rng(0).standard_normal((8, 20_000))
        slope = scale * z.T[:, :, None] / (a[:-1, None] ** 2 * (lam + v[:-1, None]))
        return float(
            np.mean(
                _w2(
                    *_terminal("ddim", times, slope, 0.0 * slope, lam, np.zeros(3)),
                    lam,
                    np.zeros(3),
                )
            )
        )

    assert measured(aware.schedule) < 0.6 * measured(plain.schedule)


# --- refusals -------------------------------------------------------------------------------------

TARGET = jk.Gaussian(MEAN, SPECTRA[1])
NEGATIVE = np.zeros((2, 2, 2, 2, 3))
NEGATIVE[0, 0, 1, 0] = NEGATIVE[1, 0, 0, 0] = 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jk.ScoreError.from_covariance([1.0, 0.5], NEGATIVE), "negative eigenvalue -1"),
        (
            lambda: jk.ScoreError.from_covariance([1.0], NEGATIVE),
            r"for 1 times it must be \(1, 2, 1, 2, modes\)",
        ),
        (lambda: jk.ScoreError.from_covariance([0.5, 1.0], 0.0 * NEGATIVE), "strictly decreasing"),
        (
            lambda: jk.ScoreError.from_samples([1.0], np.zeros((1, 1, 3)), np.zeros((1, 1, 3))),
            "at least 2",
        ),
        (
            lambda: jk.ScoreError.from_samples(
                [1.0], np.zeros((3, 1, 3)), np.zeros((3, 1, 3)), rank=3
            ),
            "rank = 3",
        ),
        (lambda: jk.ScoreError.diagonal(slope=-1.0), "slope must be standard deviations"),
        (lambda: jk.ScoreError.diagonal(1.0, 1.0, cross=1.5), "cross = 1.5"),
        (
            lambda: jk.ScoreError.dense(np.zeros((2, 3)), np.zeros((2, 3))),
            r"must be \(shapes, d, d\)",
        ),
        (lambda: jk.AR1(1.2), "rho = 1.2"),
        (lambda: jk.OrnsteinUhlenbeck(0.0), "length = 0"),
        (lambda: jk.OrnsteinUhlenbeck(1.0, "logsnr"), "Did you mean 'log_snr'"),
        (lambda: jk.Banded(0), "width = 0"),
        (lambda: GivenCorrelation([[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalue"),
        (lambda: GivenCorrelation([[1.0, 0.5], [0.5, 2.0]]), "1 on its diagonal"),
    ],
)
def test_bad_models(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_projection_on_request() -> None:
    """[[0, 1], [1, 0]] loses its eigenvalue -1: [[1, 1], [1, 1]] / 2 is left."""
    error = jk.ScoreError.from_covariance([1.0, 0.5], NEGATIVE, project=True)
    found = _covariance(error, TARGET, jnp.asarray([1.0, 0.5]))
    np.testing.assert_allclose(found[:, 0, :, 0], 0.5 * np.ones((2, 2, 3)), atol=1e-12)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (jk.ScoreError.diagonal(slope=np.ones(4)), "given for 4 modes; the target has 3"),
        (
            jk.ScoreError.diagonal(slope=1.0, correlation=GivenCorrelation(np.eye(5))),
            "given for 5 evaluations",
        ),
        (jk.ScoreError.random_features(np.eye(3), 1.0, 1.0), "dense=True"),
    ],
)
def test_errors_that_do_not_fit(error: jk.ScoreError, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE).contract(error)
    objective = jk.LocalError(score_error=error)
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(TARGET, PROCESS, "ddim", 4, t_min=1e-3, objective=objective)


def test_refusals_of_kernels_and_expectations() -> None:
    error = jk.ScoreError.relative(0.1, jk.Independent())
    with pytest.raises(ValueError, match="signal is 0"):
        jk.error_kernel(
            TARGET, jk.FlowMatching(), "ddim", jk.schedules.uniform(jk.FlowMatching(), 4, 1e-3)
        )
    with pytest.raises(ValueError, match="about has slope"):
        jk.error_kernel(
            TARGET,
            PROCESS,
            "ddim",
            SCHEDULE,
            about=jk.AffineError(jnp.zeros((2, 3)), jnp.zeros((2, 3))),
        )
    with pytest.raises(ValueError, match="unit weights"):
        jk.error_kernel(jk.Gaussian.isotropic(3), PROCESS, "ddim", SCHEDULE, dense=True)
    with pytest.raises(ValueError, match="per mode"):
        jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE, dense=True).time_marginal()
    setting: dict[str, Any] = {"score_error": error}
    with pytest.raises(ValueError, match="12 directions"):
        jk.expected_error(TARGET, PROCESS, "ddim", SCHEDULE, method="quadrature", **setting)
    with pytest.raises(ValueError, match="Did you mean 'monte_carlo'"):
        jk.expected_error(TARGET, PROCESS, "ddim", SCHEDULE, method="montecarlo", **setting)
    with pytest.raises(ValueError, match="beyond the process"):
        jk.expected_error(TARGET, jk.VP(), "ddim", jk.Schedule([3.0, 1.0]), **setting)
    with pytest.raises(ValueError, match="by name only"):
        jk.evaluate_schedule(
            TARGET,
            PROCESS,
            "ddim",
            SCHEDULE,
            initialization=jk.Gaussian(0.0, np.ones(3)),
            **setting,
        )
