"""Distributions against dense algebra, scikit-learn, scipy.stats, differentiation and limits."""

import sys
import time
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy import special, stats
from sklearn.covariance import LedoitWolf

import jaxkernels as jk
from jaxkernels.distributions import Compression

Function = Callable[[np.ndarray], np.ndarray]


def _covariance(seed: int, dim: int, scale: float = 1.0) -> np.ndarray:
    """A random covariance that is nowhere near diagonal."""
    factor = np.random.default_rng(seed).normal(size=(dim, dim + 2))
    return scale * factor @ factor.T / dim


def _reconstructed(target: jk.Gaussian) -> np.ndarray:
    """The dense covariance, with the one variance of all directions that the basis leaves out."""
    basis = np.asarray(target.basis)
    columns = basis.shape[1]
    eigenvalues = np.asarray(target.eigenvalues)
    inside = (basis * eigenvalues[:columns]) @ basis.T
    return inside + eigenvalues[-1] * (np.eye(len(basis)) - basis @ basis.T)


# --- fitting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "dim"), [(500, 7), (40, 40), (12, 30), (3, 8), (2, 5)])
def test_fit_agrees_with_ledoit_wolf(n: int, dim: int) -> None:
    """Shrinkage and covariance of scikit-learn's estimator, also with few samples."""
    rng = np.random.default_rng(n)
    samples = rng.normal(size=(n, dim)) @ _covariance(1, dim) + rng.normal(size=dim)
    reference = LedoitWolf().fit(samples)
    fitted = jk.Gaussian.fit(samples)
    np.testing.assert_allclose(fitted.mean, samples.mean(0), rtol=1e-12)
    np.testing.assert_allclose(_reconstructed(fitted), reference.covariance_, rtol=1e-9, atol=1e-11)
    # the amount itself, read off the spectrum: C = (1 - r) S + r tr(S)/d I
    empirical = np.cov(samples.T, bias=True)
    level = np.trace(empirical) / dim
    spectrum = np.repeat(fitted.eigenvalues, np.asarray(fitted.weights).astype(int))
    kept = np.var(spectrum) / np.var(np.linalg.eigvalsh(empirical))
    assert 1.0 - np.sqrt(kept) == pytest.approx(reference.shrinkage_, abs=1e-9)
    assert np.mean(spectrum) == pytest.approx(level, rel=1e-12)
    # two samples look noiseless to the estimate: nothing is shrunk
    assert np.min(fitted.eigenvalues) > 0 if n > 2 else np.min(fitted.eigenvalues) >= 0


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("n", "dim"), [(60, 4), (5, 9)])
def test_fit_with_a_given_shrinkage(amount: float, n: int, dim: int) -> None:
    samples = np.random.default_rng(n).normal(size=(n, dim)) * np.arange(1, dim + 1)
    empirical = np.cov(samples.T, bias=True)
    expected = (1 - amount) * empirical + amount * np.trace(empirical) / dim * np.eye(dim)
    fitted = jk.Gaussian.fit(samples, shrinkage=amount)
    np.testing.assert_allclose(_reconstructed(fitted), expected, rtol=1e-10, atol=1e-11)
    rank = min(n - 1, dim) if amount == 0 else dim
    assert np.sum(np.asarray(fitted.weights)[np.asarray(fitted.eigenvalues) > 1e-10]) == rank


@pytest.mark.parametrize(
    ("name", "kurtosis"), [("normal", 3.0), ("uniform", 1.8), ("laplace", 6.0)]
)
def test_fit_measures_kurtosis(name: str, kurtosis: float) -> None:
    """Textbook kurtosis of each distribution; standard error is below 0.06 at 1e5 samples."""
    samples = getattr(np.random.default_rng(0), name)(size=(100_000, 3)) * np.array([1.0, 5.0, 0.2])
    fitted = jk.Gaussian.fit(samples)
    assert fitted.kurtosis is not None
    assert float(fitted.kurtosis) == pytest.approx(kurtosis, abs=0.25)


def test_fit_flattens_images() -> None:
    samples = np.random.default_rng(2).normal(size=(30, 2, 3))
    flat = jk.Gaussian.fit(samples.reshape(30, 6))
    np.testing.assert_array_equal(jk.Gaussian.fit(samples).mean, flat.mean)


def test_from_covariance() -> None:
    covariance = _covariance(3, 5)
    mean = np.arange(5.0)
    target = jk.Gaussian.from_covariance(mean, covariance)
    np.testing.assert_allclose(_reconstructed(target), covariance, rtol=1e-12, atol=1e-12)
    assert np.all(np.diff(target.eigenvalues) <= 0)
    inside = target.in_eigenbasis()
    assert inside.basis is None
    basis = np.asarray(target.basis)
    np.testing.assert_allclose(inside.mean, np.linalg.solve(basis, mean), rtol=1e-10)
    np.testing.assert_allclose(target.mode_mean, np.linalg.solve(basis, mean), rtol=1e-10)


@pytest.mark.parametrize("columns", [3, 2])
def test_a_traced_basis_is_that_of_the_values(columns: int) -> None:
    basis = np.linalg.qr(_covariance(3, 3))[0][:, :columns]
    fields: Any = (np.arange(3.0), np.array([3.0, 2.0, 0.5]), None, basis)
    schedule = jk.schedules.karras(jk.VP(), 4, 1e-3)

    def error(mean: Array, eigenvalues: Array, weights: None, basis: Array) -> Array:
        target = jk.Gaussian(mean, eigenvalues, weights, basis)
        return jk.TerminalError().bind(target, jk.VP(), "ddim")(schedule)

    def samples(*fields: Array) -> Array:
        return jk.Gaussian(*fields).sample(jax.random.key(0), 2)

    for evaluate in cast(list[Any], [error, samples]):
        np.testing.assert_allclose(jax.jit(evaluate)(*fields), evaluate(*fields), rtol=1e-12)


def test_isotropic() -> None:
    one = jk.Gaussian.isotropic(7, 2.5, mean=1.0)
    assert (one.dim, np.asarray(one.eigenvalues).tolist()) == (7.0, [2.5])
    several = jk.Gaussian.isotropic(2, 2.5, mean=np.array([1.0, 2.0]))
    np.testing.assert_array_equal(several.eigenvalues, [2.5, 2.5])
    np.testing.assert_array_equal(several.mean, [1.0, 2.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jk.Gaussian(0.0, np.array([1.0, -2.0])), r"eigenvalues\[1\] = -2 is negative"),
        (lambda: jk.Gaussian(0.0, np.zeros((2, 2))), r"eigenvalues .* shape \(2, 2\)"),
        (lambda: jk.Gaussian(0.0, np.array([1.0, np.inf])), r"eigenvalues\[1\] = inf"),
        (lambda: jk.Gaussian(np.nan, np.ones(2)), r"mean = nan"),
        (
            lambda: jk.Gaussian(0.0, np.ones(2), weights=np.array([1.0, -1.0])),
            r"weights .* smallest is -1",
        ),
        (lambda: jk.Gaussian(0.0, np.ones(2), weights=np.zeros(2)), r"weights .* not all zero"),
        (lambda: jk.Gaussian(0.0, np.ones(2), basis=np.ones((2, 2))), r"basis is not orthonormal"),
        (lambda: jk.Gaussian.isotropic(0), r"dim = 0 must be at least 1"),
        (lambda: jk.Gaussian.isotropic(2, -1.0), r"variance = -1 must be >= 0"),
        (
            lambda: jk.Gaussian.from_covariance(0.0, np.ones((2, 3))),
            r"covariance has shape \(2, 3\)",
        ),
        (
            lambda: jk.Gaussian.from_covariance(0.0, np.array([[1.0, 0.5], [0.0, 1.0]])),
            r"covariance is not symmetric: .* 0\.5",
        ),
        (lambda: jk.Gaussian.from_covariance(0.0, np.diag([1.0, -1.0])), r"negative eigenvalue -1"),
        (lambda: jk.Gaussian.fit(np.ones((1, 3))), r"samples has shape \(1, 3\)"),
        (lambda: jk.Gaussian.fit(np.ones(3)), r"samples has shape \(3,\)"),
        (lambda: jk.Gaussian.fit(np.ones((4, 3))), r"samples are all equal"),
        (lambda: jk.Gaussian.fit(np.array([[0.0, np.nan], [1.0, 2.0]])), r"samples\[0, 1\] = nan"),
        (lambda: jk.Gaussian.fit(np.eye(3), shrinkage=1.5), r"shrinkage = 1.5 must be"),
        (
            lambda: jk.Gaussian.fit(np.eye(3), shrinkage="ledoit_wulf"),
            r"Did you mean 'ledoit_wolf'",
        ),
        (lambda: jk.Gaussian(0.0, np.ones(2)).compress(0), r"nodes = 0 must be at least 1"),
        (
            lambda: jk.Gaussian(0.0, np.ones(2), weights=2.0).sample(jax.random.key(0), 3),
            r"weights other than 1",
        ),
        (
            lambda: jk.GaussianMixture(np.array([0.5, 0.4]), np.zeros((2, 1)), np.ones(2)),
            r"sum to 0\.9",
        ),
        (
            lambda: jk.GaussianMixture(np.array([1.5, -0.5]), np.zeros((2, 1)), np.ones(2)),
            r"weights .*-0\.5",
        ),
        (
            lambda: jk.GaussianMixture(np.ones(1), np.zeros((2, 1)), np.ones(2)),
            r"means has shape \(2, 1\)",
        ),
        (
            lambda: jk.GaussianMixture(np.ones(1), np.zeros((1, 2)), np.ones((1, 3))),
            r"covariances has shape",
        ),
        (
            lambda: jk.GaussianMixture(np.ones(1), np.zeros((1, 2)), -np.eye(2)[None]),
            r"covariances\[0\] has the negative eigenvalue -1",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: jk.Gaussian(np.zeros(3), np.ones(2)),
        lambda: jk.Gaussian(0.0, np.ones(2), weights=np.ones(3)),
        lambda: jk.Gaussian(0.0, np.ones(2), basis=np.eye(3)),
    ],
)
def test_shapes_that_do_not_match(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"has shape \(3.*for 2 eigenvalues it must"):
        make()


# --- denoisers ------------------------------------------------------------------------------------

PROCESSES = {"vp": jk.VP(), "edm": jk.EDM(20.0), "flow": jk.FlowMatching()}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("t", [0.05, 0.7])
def test_denoiser_is_the_conditional_expectation(process: jk.AbstractProcess, t: float) -> None:
    """E[X_0 | x] and E[Z | x] from the joint Gaussian of (X_0, Z, X), by dense solves."""
    covariance, mean = _covariance(5, 4), np.array([1.0, -2.0, 0.5, 3.0])
    target = jk.Gaussian.from_covariance(mean, covariance)
    a, s = float(process.signal(t)), float(process.noise(t))
    x = np.random.default_rng(0).normal(size=(6, 4))
    marginal = a * a * covariance + s * s * np.eye(4)
    pulled = np.linalg.solve(marginal, (x - a * mean).T)
    x0, eps = target.denoiser(process)(jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(x0, mean + (a * covariance @ pulled).T, rtol=1e-10)
    np.testing.assert_allclose(eps, s * pulled.T, rtol=1e-10)
    np.testing.assert_allclose(a * x0 + s * eps, x, rtol=1e-11)
    np.testing.assert_allclose(target.score(process, jnp.asarray(x), t), -pulled.T, rtol=1e-10)
    modes = np.linalg.eigvalsh(marginal)[::-1]
    np.testing.assert_allclose(target.marginal_variance(process, t), modes, rtol=1e-11)


def test_denoiser_at_the_ends_of_time() -> None:
    target = jk.Gaussian(np.array([1.0, 2.0]), np.array([3.0, 0.0]))
    x = jnp.array([0.3, 2.0])
    x0, eps = target.denoiser(jk.FlowMatching())(x, jnp.asarray(1.0))
    np.testing.assert_allclose(x0, [1.0, 2.0])  # nothing is known: the mean
    np.testing.assert_allclose(eps, x)
    x0, eps = target.denoiser(jk.FlowMatching())(x, jnp.asarray(0.0))
    np.testing.assert_allclose(x0, x)  # nothing is hidden
    np.testing.assert_allclose(eps, [0.0, 0.0])
    slope = jax.jacfwd(lambda t: target.denoiser(jk.VP())(x, t))(0.0)
    assert np.all(np.isfinite(slope.x0))
    assert np.all(np.isfinite(slope.eps))


def test_gaussian_sampling_moments() -> None:
    covariance, mean = _covariance(6, 3), np.array([1.0, -2.0, 0.5])
    draws = np.asarray(
        jk.Gaussian.from_covariance(mean, covariance).sample(jax.random.key(0), 400_000)
    )
    _assert_moments(draws, mean, covariance)


def _assert_moments(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Sample mean and covariance within 5 standard errors, which are estimated from the draws."""
    n = len(draws)
    assert np.all(np.abs(draws.mean(0) - mean) < 5.0 * draws.std(0) / np.sqrt(n))
    centred = draws - mean
    products = centred[:, :, None] * centred[:, None, :]
    errors = np.abs(products.mean(0) - covariance) / (products.std(0) / np.sqrt(n))
    assert np.max(errors) < 5.0


# --- compression ----------------------------------------------------------------------------------


def _total(target: jk.Gaussian, phi: Function, psi: Function) -> float:
    """sum_i w_i (phi(lambda_i) + mu_i^2 psi(lambda_i)), which is what every metric is."""
    w, m, c = (np.asarray(v) for v in (target.weights, target.mean, target.eigenvalues))
    return float(np.sum(w * (phi(c) + m**2 * psi(c))))


SPECTRUM = 300.0 * np.arange(1, 701.0) ** -1.7
SMOOTH: dict[str, Function] = {
    "shrinkage": lambda c: c / (c + 0.1),
    "precision": lambda c: 1.0 / (c + 0.05),
    "entropy": lambda c: np.log(c + 0.02),
    "deviation": lambda c: (np.sqrt(c + 0.3) - np.sqrt(c + 0.2)) ** 2,
}


def _zero(c: np.ndarray) -> np.ndarray:
    return 0.0 * c


@pytest.mark.parametrize("phi", SMOOTH.values(), ids=SMOOTH)
def test_compression_keeps_totals(phi: Function) -> None:
    rng = np.random.default_rng(4)
    weights = rng.uniform(0.5, 2.0, size=SPECTRUM.size)
    target = jk.Gaussian(0.0, SPECTRUM, weights)
    small = target.compress(32)
    assert np.asarray(small.eigenvalues).size <= 64
    exact = _total(target, phi, _zero)
    assert _total(small, phi, _zero) == pytest.approx(exact, rel=1e-10)
    assert small.dim == pytest.approx(np.sum(weights), rel=1e-12)
    # with too few nodes it is not exact, and so the test above can fail
    assert _total(target.compress(3), phi, _zero) != pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("psi", [SMOOTH["shrinkage"], SMOOTH["precision"], lambda c: c**0])
def test_compression_keeps_the_mean(psi: Function) -> None:
    """sum w mu^2 psi(lambda), which half as many nodes hold, next to an unchanged first sum."""
    rng = np.random.default_rng(5)
    target = jk.Gaussian(rng.normal(size=SPECTRUM.size), SPECTRUM)
    small = target.compress(40)
    assert _total(small, _zero, psi) == pytest.approx(_total(target, _zero, psi), rel=1e-10)
    phi = SMOOTH["entropy"]
    assert _total(small, phi, psi) == pytest.approx(_total(target, phi, psi), rel=1e-10)
    assert _total(target.compress(6), _zero, psi) == pytest.approx(
        _total(target, _zero, psi), rel=0.1
    )


def test_compression_in_a_basis() -> None:
    covariance = _covariance(8, 40)
    target = jk.Gaussian.from_covariance(np.linspace(-1, 1, 40), covariance)
    small = target.compress(20)
    assert small.basis is None
    precision = np.linalg.inv(covariance + np.eye(40))
    exact = np.trace(precision) + np.linspace(-1, 1, 40) @ precision @ np.linspace(-1, 1, 40)

    def phi(c: np.ndarray) -> np.ndarray:
        return 1.0 / (c + 1.0)

    assert _total(small, phi, phi) == pytest.approx(exact, rel=1e-9)


def test_compression_keeps_zeros() -> None:
    spectrum = np.concatenate([np.geomspace(1e-3, 10.0, 90), np.zeros(7)])
    target = jk.Gaussian(np.linspace(-1.0, 1.0, 97), spectrum)
    small = target.compress(24)
    w, m, c = (np.asarray(v) for v in (small.weights, small.mean, small.eigenvalues))
    zero = c == 0.0
    assert np.sum(w[zero]) == pytest.approx(7.0, rel=1e-12)
    exact = np.sum(np.asarray(target.mean)[spectrum == 0] ** 2)
    assert np.sum(w[zero] * m[zero] ** 2) == pytest.approx(exact, rel=1e-12)
    assert np.sum(w[~zero]) == pytest.approx(90.0, rel=1e-12)


def test_few_distinct_eigenvalues_are_only_merged() -> None:
    spectrum = np.repeat([4.0, 1.0, 0.25], [5, 50, 500])
    target = jk.Gaussian(0.3, spectrum)
    small = target.compress(8)
    for phi in SMOOTH.values():
        assert _total(small, phi, phi) == pytest.approx(_total(target, phi, phi), rel=1e-13)
    with_mass = np.asarray(small.eigenvalues)[np.asarray(small.weights) > 0]
    np.testing.assert_allclose(np.unique(np.round(with_mass, 10)), [0.25, 1.0, 4.0])


def test_few_distinct_eigenvalues_cost_no_more_than_nodes() -> None:
    """The documented purpose: cost independent of the number of modes."""
    small = jk.Gaussian(0.0, np.repeat([4.0, 1.0, 0.25], [5, 50, 500])).compress(8)
    assert np.asarray(small.eigenvalues).size <= 2 * 8


def _largest_on_ellipse(f: Function, low: float, high: float, strip: float) -> float:
    """max |f| over the ellipse around [low, high] as high as the strip, taken on its edge."""
    height = 2.0 * strip / (high - low)
    angle = np.linspace(0.0, 2.0 * np.pi, 4001)
    edge = np.sqrt(1.0 + height**2) * np.cos(angle) + 1j * height * np.sin(angle)
    return float(np.max(np.abs(f(np.exp(0.5 * (high + low) + 0.5 * (high - low) * edge)))))


@pytest.mark.parametrize("name", ["precision", "entropy", "shrinkage"])
def test_compression_bound_holds(name: str) -> None:
    """On 200 random spectra: error <= bound x total weight x M, M the largest in the strip."""
    rng = np.random.default_rng(11)
    ratios = []
    for _ in range(200):
        d, nodes = rng.integers(12, 120), rng.integers(1, 9)
        spectrum = np.exp(rng.normal(size=d) * rng.uniform(0.1, 3.0) + rng.normal())
        weights = rng.exponential(size=d)
        level, strip = np.exp(rng.normal()), rng.uniform(0.3, 0.98) * np.pi
        f: Function = {
            "precision": lambda c, level=level: 1.0 / (c + level),
            "entropy": lambda c, level=level: np.log(c + level),
            "shrinkage": lambda c, level=level: c / (c + level),
        }[name]
        small = jk.Gaussian(0.0, spectrum, weights).compress(int(nodes))
        assert small.compression is not None
        error = abs(_total(small, f, _zero) - np.sum(weights * f(spectrum)))
        largest = _largest_on_ellipse(f, np.log(spectrum.min()), np.log(spectrum.max()), strip)
        bound = small.compression.relative_bound(strip) * weights.sum() * largest
        assert error <= bound + 1e-13 * weights.sum() * largest
        ratios.append(error / bound)
    # not vacuous: it is met to within a factor of about ten somewhere
    assert max(ratios) > 0.03


def test_compression_bound_has_the_right_rate() -> None:
    """Error and bound fall together, node by node, on the ellipse through the nearest pole."""
    low, high, level = np.log(1e-4), np.log(1e2), 0.3
    target = jk.Gaussian(0.0, np.geomspace(1e-4, 1e2, 300))
    pole = (2.0 * (np.log(level) + 1j * np.pi) - low - high) / (high - low)
    rho = np.abs(pole + np.sqrt(pole - 1.0) * np.sqrt(pole + 1.0))
    strip = 0.25 * (high - low) * (rho - 1.0 / rho)  # the height of that ellipse

    def f(c: np.ndarray) -> np.ndarray:
        return 1.0 / (c + level)

    errors, bounds, nodes = [], [], np.arange(3, 15)
    for n in nodes:
        small = target.compress(int(n))
        assert small.compression is not None
        errors.append(abs(_total(small, f, _zero) - _total(target, f, _zero)))
        bounds.append(small.compression.relative_bound(strip))
    fall = [np.polyfit(nodes, np.log(v), 1)[0] for v in (errors, bounds)]
    assert fall[1] == pytest.approx(-2.0 * np.log(rho), rel=1e-10)
    assert fall[0] == pytest.approx(fall[1], rel=0.1)


SPECTRA: dict[str, np.ndarray] = {
    "lognormal": np.exp(2.0 * np.random.default_rng(0).normal(size=60_000)),
    "power law": np.arange(1.0, 60_001.0) ** -1.5,
    "outliers": np.append(np.linspace(1.0, 2.0, 60_000), [1e-8, 1e-7, 1e6, 3e7]),
    "two groups": np.append(np.linspace(1.0, 1.1, 30_000), np.linspace(1e-9, 1.1e-9, 30_000)),
    "few values": np.tile([4.0, 1.0, 0.25, 3.9], 15_000),
    "with zeros": np.append(np.linspace(0.1, 9.0, 60_000), np.zeros(7)),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("nodes", [3, 32])
def test_a_large_spectrum_keeps_all_moments_of_the_rule(name: str, nodes: int) -> None:
    """Chebyshev polynomials of log lambda up to degree 2 n - 1, of the weights and of w mu^2."""
    spectrum = SPECTRA[name]
    rng = np.random.default_rng(1)
    weights, mean = rng.exponential(size=spectrum.size), rng.normal(size=spectrum.size)
    small = jk.Gaussian(mean, spectrum, weights).compress(nodes)
    positive = spectrum[spectrum > 0]
    middle = 0.5 * np.log(positive.max() * positive.min())
    half = 0.5 * np.log(positive.max() / positive.min())

    def chebyshev(degree: int, eigenvalues: np.ndarray) -> np.ndarray:
        used = np.where(eigenvalues > 0, eigenvalues, 1.0)
        position = np.clip((np.log(used) - middle) / half, -1.0, 1.0)
        return np.where(eigenvalues > 0, np.cos(degree * np.arccos(position)), 0.5)

    levels, rule, means = (np.asarray(a) for a in (small.eigenvalues, small.weights, small.mean))
    for degree in range(2 * nodes):
        error = rule @ chebyshev(degree, levels) - weights @ chebyshev(degree, spectrum)
        assert abs(error) < 1e-12 * weights.sum()
    for degree in range(2 * ((nodes + 1) // 2)):
        error = (rule * means**2) @ chebyshev(degree, levels)
        error -= (weights * mean**2) @ chebyshev(degree, spectrum)
        assert abs(error) < 1e-12 * (weights @ mean**2)


def test_compressing_a_million_modes_takes_no_time() -> None:
    spectrum = 1.0 / np.arange(1.0, 1e6 + 1.0)
    target = jk.Gaussian(1.0, spectrum)
    start = time.perf_counter()
    small = target.compress(32)
    assert time.perf_counter() - start < 5.0  # a quarter of a second on an idle machine
    assert small.eigenvalues.shape == (64,)


def test_compression_bound_limits() -> None:
    assert Compression(nodes=5, modes=10, log_range=0.0).relative_bound() == 0.0
    wide, narrow = (Compression(8, 100, r).relative_bound() for r in (20.0, 1.0))
    assert narrow < 1e-10 < wide
    assert Compression(8, 100, 5.0).relative_bound(1.0) > Compression(8, 100, 5.0).relative_bound(
        3.0
    )


# --- mixtures -------------------------------------------------------------------------------------

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[0.0, 1.0], [2.0, -1.0], [-3.0, 0.5]])
COVARIANCES = np.stack(
    [_covariance(20, 2), _covariance(21, 2, 0.3), np.array([[0.5, 0.2], [0.2, 0.4]])]
)
MIXTURE = jk.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
POINTS = np.random.default_rng(3).normal(size=(5, 2)) * 2.0


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("t", [0.0, 0.4])
def test_mixture_density_score_and_hessian(process: jk.AbstractProcess, t: float) -> None:
    a, s = float(process.signal(t)), float(process.noise(t))
    density = sum(
        w * stats.multivariate_normal(a * m, a * a * c + s * s * np.eye(2)).pdf(POINTS)
        for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
    )
    x = jnp.asarray(POINTS)
    np.testing.assert_allclose(MIXTURE.log_density(process, x, t), np.log(density), rtol=1e-11)

    def log_density(x: jax.Array) -> jax.Array:
        return MIXTURE.log_density(process, x, t)

    score, hessian = jax.jit(
        jax.vmap(lambda x: (jax.grad(log_density)(x), jax.hessian(log_density)(x)))
    )(x)
    np.testing.assert_allclose(MIXTURE.score(process, x, t), score, rtol=1e-9)
    np.testing.assert_allclose(MIXTURE.hessian(process, x, t), hessian, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_mixture_denoiser_obeys_tweedie(process: jk.AbstractProcess) -> None:
    """x0 = (x + s^2 grad log p) / a and eps = -s grad log p, the gradient by finite differences."""
    t, step = 0.35, 1e-5
    a, s = float(process.signal(t)), float(process.noise(t))
    log_density = jax.jit(lambda x: MIXTURE.log_density(process, x, t))
    score = np.stack(
        [
            (log_density(POINTS + step * e) - log_density(POINTS - step * e)) / (2 * step)
            for e in np.eye(2)
        ],
        axis=-1,
    )
    x0, eps = MIXTURE.denoiser(process)(jnp.asarray(POINTS), jnp.asarray(t))
    np.testing.assert_allclose(x0, (POINTS + s * s * score) / a, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(eps, -s * score, rtol=1e-6, atol=1e-8)


def test_mixture_denoiser_without_noise_or_signal() -> None:
    predict = MIXTURE.denoiser(jk.FlowMatching())
    x = jnp.asarray(POINTS)
    np.testing.assert_allclose(predict(x, jnp.asarray(0.0)).x0, POINTS, atol=1e-12)
    np.testing.assert_allclose(
        predict(x, jnp.asarray(1.0)).x0, np.tile(WEIGHTS @ MEANS, (5, 1)), rtol=1e-12
    )


def test_mixture_of_one_is_gaussian() -> None:
    mixture = jk.GaussianMixture(np.ones(1), MEANS[:1], COVARIANCES[:1])
    target = jk.Gaussian.from_covariance(MEANS[0], COVARIANCES[0])
    x, t = jnp.asarray(POINTS), jnp.asarray(0.3)
    for ours, theirs in zip(
        mixture.denoiser(jk.VP())(x, t), target.denoiser(jk.VP())(x, t), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11)


def test_mixture_moments() -> None:
    """Sampling, and the Gaussian of equal moments: E X = sum w m, E XX^T = sum w (C + m m^T)."""
    mean = WEIGHTS @ MEANS
    second = np.einsum("m,mij->ij", WEIGHTS, COVARIANCES + MEANS[:, :, None] * MEANS[:, None, :])
    covariance = second - np.outer(mean, mean)
    gaussian = MIXTURE.gaussian()
    np.testing.assert_allclose(gaussian.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(_reconstructed(gaussian), covariance, rtol=1e-12)
    _assert_moments(np.asarray(MIXTURE.sample(jax.random.key(1), 400_000)), mean, covariance)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        (np.array([0.5, 2.0]), np.stack([0.5 * np.eye(2), 2.0 * np.eye(2)])),
        (np.array([[0.5, 1.0], [2.0, 3.0]]), np.stack([np.diag([0.5, 1.0]), np.diag([2.0, 3.0])])),
    ],
    ids=["isotropic", "diagonal"],
)
def test_short_forms_of_covariances(short: np.ndarray, full: np.ndarray) -> None:
    weights, means = np.array([0.4, 0.6]), np.array([[0.0, 1.0], [2.0, 0.0]])
    x = jnp.asarray(POINTS)
    ours = jk.GaussianMixture(weights, means, short).log_density(jk.VP(), x, 0.2)
    np.testing.assert_allclose(
        ours, jk.GaussianMixture(weights, means, full).log_density(jk.VP(), x, 0.2)
    )


def test_variance_factor_averages_over_log_lambda():
    """Five variances per mode, equally spaced in the logarithm, sharing its weight and mean."""
    target = jk.Gaussian(np.array([1.0, -2.0]), np.array([3.0, 0.1]), weights=np.array([1.0, 4.0]))
    wide = target.with_variance_factor(4.0)
    np.testing.assert_allclose(
        np.asarray(wide.eigenvalues)[:5], 3.0 * 4.0 ** np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    )
    np.testing.assert_allclose(wide.weights, np.repeat([0.2, 0.8], 5))
    np.testing.assert_allclose(wide.mean, np.repeat([1.0, -2.0], 5))
    assert target.with_variance_factor(1.0) is target
    with pytest.raises(ValueError, match=r"factor = 0\.5"):
        target.with_variance_factor(0.5)


def test_a_compressed_target_takes_a_variance_factor_and_is_compressed_again():
    rng = np.random.default_rng(3)
    eigenvalues = np.exp(rng.normal(size=200))
    target = jk.Gaussian(rng.normal(size=200), eigenvalues)

    def total(target: jk.Gaussian) -> float:
        """A smooth function of the variance, with a part quadratic in the mean."""
        lam, mu, w = (np.asarray(a) for a in (target.eigenvalues, target.mean, target.weights))
        return float(np.sum(w * (lam / (1.0 + lam) + mu**2 / (2.0 + lam))))

    exact = total(target.with_variance_factor(3.0))
    again = target.compress(32).with_variance_factor(3.0).compress(32)
    assert again.eigenvalues.shape[0] < 70
    assert total(again) == pytest.approx(exact, rel=1e-10)


def test_a_mixture_with_one_basis_is_the_same_distribution() -> None:
    """Against the same components with a basis each, and in the coordinates of the basis."""
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    variances = np.array([[1.0, 0.2, 0.05], [0.3, 0.6, 0.01]])
    full = np.einsum("ij,mj,kj->mik", basis, variances, basis)
    own = jk.GaussianMixture([0.3, 0.7], MEANS[:2, :1] * np.ones(3), full)
    shared = eqx.tree_at(
        lambda m: (m.eigenvalues, m.bases),
        own,
        (variances, basis),
        is_leaf=lambda leaf: leaf is None,
    )
    x, t = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3))), jnp.asarray(0.3)
    turned = shared.in_eigenbasis()
    assert turned.bases is None
    for name in ("log_density", "score", "hessian"):
        exact = getattr(own, name)(jk.VP(), x, t)
        np.testing.assert_allclose(
            getattr(shared, name)(jk.VP(), x, t), exact, rtol=1e-9, atol=1e-10
        )
    for mixture, points in ((shared, x), (turned, x @ basis)):
        there = [jnp.asarray(v) for v in mixture.denoiser(jk.VP())(points, t)]
        back = there if mixture is shared else [v @ basis.T for v in there]
        for ours, theirs in zip(back, own.denoiser(jk.VP())(x, t), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(
        _reconstructed(shared.gaussian()), _reconstructed(own.gaussian()), rtol=1e-9
    )
    np.testing.assert_allclose(turned.gaussian().eigenvalues, own.gaussian().eigenvalues, rtol=1e-9)
    draws = np.asarray(shared.sample(jax.random.key(0), 200_000))
    # 200000 draws: the largest standard error of an entry is 0.004
    np.testing.assert_allclose(np.cov(draws.T), _reconstructed(own.gaussian()), atol=0.02)
    assert own.in_eigenbasis() is own


def test_fitted_mixture_finds_the_clusters() -> None:
    """Held-out log density: the true one to sampling error, and far above a Gaussian's."""
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    truth = jk.GaussianMixture(
        [0.25, 0.75],
        np.array([[3.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]) @ turn.T,
        np.stack(
            [
                (turn * v) @ turn.T
                for v in (np.array([0.1, 0.5, 0.02, 0.3]), np.array([0.2, 0.1, 0.3, 0.01]))
            ]
        ),
    )
    x, fresh = (
        np.asarray(truth.sample(jax.random.key(0), 8000)),
        truth.sample(jax.random.key(1), 4000),
    )
    fitted = jk.GaussianMixture.fit(x, 2)
    best, found = (np.asarray(mixture.log_density(jk.VP(), fresh)) for mixture in (truth, fitted))
    covariance: Any = np.cov(x.T)
    single = stats.multivariate_normal(x.mean(0), covariance).logpdf(np.asarray(fresh))
    assert np.mean(best - found) < 0.05
    assert np.mean(best - single) > 0.5
    np.testing.assert_allclose(np.sort(fitted.weights), [0.25, 0.75], atol=0.02)
    np.testing.assert_allclose(fitted.gaussian().mean, x.mean(0), atol=1e-6)


def test_fitted_mixture_of_flat_samples_has_a_density() -> None:
    """Constant pixels, few samples, images: variances stay above 0, means those of the samples."""
    x = np.random.default_rng(0).normal(size=(20, 5, 5))
    x[:, 2] = 0.7
    fitted = jk.GaussianMixture.fit(x, 3)
    scales = np.asarray(jk.Gaussian.fit(x).eigenvalues)
    assert fitted.outside is not None
    outside = np.full((3, 1), fitted.outside)
    floored = np.concatenate([np.asarray(fitted.eigenvalues), outside], 1)
    assert np.all(floored >= 0.999e-3 * scales)  # the floor
    assert np.min(fitted.eigenvalues) > 0
    np.testing.assert_allclose(
        np.asarray(fitted.weights) @ np.asarray(fitted.means), x.reshape(20, -1).mean(0), atol=1e-6
    )


@pytest.mark.parametrize(("samples", "components"), [(30, 1), (130, 3), (2000, 32)])
def test_components_by_default(samples: int, components: int) -> None:
    x = np.random.default_rng(0).normal(size=(samples, 2))
    assert jk.GaussianMixture.fit(x).weights.shape == (components,)
    assert jk.GaussianMixture.fit(x[np.arange(samples) % 2]).weights.shape == (min(2, components),)


def test_fitting_a_mixture_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match="fit needs scikit-learn"):
        jk.GaussianMixture.fit(np.eye(3), 2)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (np.ones((4, 2)), {"components": 2}, "all equal"),
        (np.eye(3), {"components": 4}, "components = 4 is more than the 3 samples"),
        (np.eye(3), {"components": 0}, "components = 0"),
        (
            np.eye(3)[np.arange(60) % 3],
            {"components": 4},
            "components = 4 is more than the 3 different samples",
        ),
        (np.eye(3), {"components": 2, "seed": -1}, "seed = -1"),
        (np.eye(3), {"components": 2, "floor": 0.0}, "floor = 0"),
    ],
)
def test_mixtures_that_cannot_be_fitted(samples: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jk.GaussianMixture.fit(samples, **options)


@pytest.mark.parametrize("tight", [1.0, 1e-4], ids=["overlapping", "far apart"])
def test_the_mixture_agrees_with_scipy(tight: float) -> None:
    """log density and posterior mean, where the squares are multiplied out and where not."""
    rng = np.random.default_rng(0)
    weights = np.array([0.2, 0.5, 0.3])
    means = rng.normal(size=(3, 4)) * 2.0
    variances = tight * rng.uniform(0.5, 2.0, (3, 4))
    mixture = jk.GaussianMixture(weights, means, variances)
    process = jk.VP()
    x = rng.normal(size=(50, 4)) * 2.0
    with jax.enable_x64(True):
        for t in (0.01, 0.3, 0.9):
            a = float(process.signal(t))
            s = float(process.noise(t))
            scales = np.sqrt(a**2 * variances + s**2)
            logs = np.log(weights) + stats.norm.logpdf(x[:, None], a * means, scales).sum(-1)
            total = np.asarray(special.logsumexp(logs, -1))
            gamma = np.exp(logs - total[:, None])
            gains = a * variances / (a**2 * variances + s**2)
            parts = means + gains * (x[:, None] - a * means)
            found = mixture.predict(process, jnp.asarray(x), t)
            np.testing.assert_allclose(
                mixture.log_density(process, jnp.asarray(x), t), total, rtol=1e-11
            )
            np.testing.assert_allclose(
                found.x0, np.einsum("nm,nmd->nd", gamma, parts), rtol=1e-8, atol=1e-10
            )
            np.testing.assert_allclose(a * found.x0 + s * found.eps, x, rtol=1e-9, atol=1e-9)


# --- fewer samples than dimensions ----------------------------------------------------------------


def _complete(mixture: jk.GaussianMixture) -> jk.GaussianMixture:
    """The same mixture by dense covariances, the variance outside the span written out."""
    basis = np.asarray(mixture.bases)
    assert mixture.outside is not None
    outside = float(mixture.outside) * (np.eye(len(basis)) - basis @ basis.T)
    dense = [(basis * values) @ basis.T + outside for values in np.asarray(mixture.eigenvalues)]
    return jk.GaussianMixture(mixture.weights, mixture.means, np.stack(dense))


def test_an_incomplete_basis_is_the_same_distribution() -> None:
    """Against the dense covariance: denoiser, score, samples and the error of a schedule."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 15)) @ _covariance(1, 15) + rng.normal(size=15)
    fitted = jk.Gaussian.fit(x)
    assert fitted.basis is not None
    assert fitted.basis.shape == (15, 5)
    assert np.asarray(fitted.weights).tolist() == [1.0] * 5 + [10.0]
    assert fitted.dim == 15
    dense = jk.Gaussian.from_covariance(x.mean(0), _reconstructed(fitted))
    points = jnp.asarray(rng.normal(size=(4, 15)))
    for t in (0.05, 0.7):
        here = fitted.denoiser(jk.VP())(points, t)
        there = dense.denoiser(jk.VP())(points, t)
        np.testing.assert_allclose(here.x0, there.x0, atol=2e-5)
        np.testing.assert_allclose(here.eps, there.eps, atol=2e-5)
        np.testing.assert_allclose(
            fitted.score(jk.VP(), points, t), dense.score(jk.VP(), points, t), rtol=2e-4, atol=2e-4
        )
    schedule = jk.schedules.karras(jk.VP(), 5, 1e-3)
    errors = [jk.evaluate_schedule(g, jk.VP(), "ddim", schedule) for g in (fitted, dense)]
    assert float(errors[0].w2) == pytest.approx(float(errors[1].w2), rel=1e-5)
    assert float(errors[0].kl) == pytest.approx(float(errors[1].kl), rel=1e-5)
    drawn = np.asarray(fitted.sample(jax.random.key(0), 20_000))
    scale = np.max(np.asarray(fitted.eigenvalues))
    assert np.abs(np.cov(drawn.T) - _reconstructed(fitted)).max() < 0.05 * scale


def test_a_mixture_of_few_samples_is_the_same_distribution() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(12, 20)) + np.repeat([[0.0], [4.0]], 6, 0)
    fitted = jk.GaussianMixture.fit(x, 2)
    dense = _complete(fitted)
    points = jnp.asarray(rng.normal(size=(3, 20)))
    for t in (0.1, 0.6):
        for name in ("log_density", "score", "hessian"):
            here = getattr(fitted, name)(jk.VP(), points, t)
            there = getattr(dense, name)(jk.VP(), points, t)
            np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-3)
        here = fitted.predict(jk.VP(), points, t)
        there = dense.predict(jk.VP(), points, t)
        np.testing.assert_allclose(here.x0, there.x0, atol=1e-4)
        np.testing.assert_allclose(here.eps, there.eps, atol=1e-4)
    spectrum = fitted.gaussian()
    found = np.repeat(spectrum.eigenvalues, np.asarray(spectrum.weights).astype(int))
    np.testing.assert_allclose(found, dense.gaussian().eigenvalues, rtol=1e-6, atol=1e-9)
    inside = fitted.in_eigenbasis()
    assert inside.means.shape == (2, 11)
    np.testing.assert_allclose(  # score of the span, rotated back
        np.asarray(inside.score(jk.VP(), points @ jnp.asarray(fitted.bases), 0.5)),
        np.asarray(fitted.score(jk.VP(), points, 0.5)) @ np.asarray(fitted.bases),
        rtol=1e-3,
        atol=1e-3,
    )


def test_axes_of_very_different_scales_are_orthogonal() -> None:
    """Eigenvalues over 10 digits, against the singular values."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(20, 20)) * 10.0 ** -np.linspace(0, 5, 20)) @ rng.normal(size=(20, 300))
    fitted = jk.Gaussian.fit(x, shrinkage=0.0)
    basis = np.asarray(fitted.basis)
    assert np.abs(basis.T @ basis - np.eye(basis.shape[1])).max() < 1e-8
    expected = np.linalg.svd(x - x.mean(0), compute_uv=False)[: basis.shape[1]] ** 2 / 20
    np.testing.assert_allclose(
        np.asarray(fitted.eigenvalues)[:-1], expected, rtol=1e-3, atol=1e-14 * expected[0]
    )


def test_six_large_images_are_fitted() -> None:
    """512 x 512 x 3: a d x d covariance would take 4.5 TiB."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 512, 512, 3)).astype(np.float32)
    fitted = jk.Gaussian.fit(x)
    assert fitted.dim == 512 * 512 * 3
    total = float(np.asarray(fitted.weights) @ np.asarray(fitted.eigenvalues))
    assert total == pytest.approx(float(x.reshape(6, -1).var(0).sum()), rel=1e-5)
    mixture = jk.GaussianMixture.fit(x)
    assert mixture.in_eigenbasis().means.shape == (1, 5)


@pytest.mark.parametrize("make", [lambda e: jk.Gaussian(0.0, e).eigenvalues])
def test_rounding_of_a_variance_is_zero(make) -> None:
    """What eigvalsh returns for a singular covariance; a truly negative one is refused."""
    assert np.asarray(make([1.0, -1.7e-15])).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"eigenvalues\[1\] = -0.001 is negative"):
        make([1.0, -1e-3])
    with pytest.raises(ValueError, match=r"eigenvalues\[0\] = -1e-15 is negative"):
        make([-1e-15])


@pytest.mark.parametrize(
    "covariances",
    [[0.1, 0.2], [[0.1, 0.3], [0.2, 0.1]], [[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0.0], [0.0, 0.2]]]],
)
def test_a_mixture_in_float32_stays_so_where_float64_is_enabled(covariances: list) -> None:
    """Networks are run in float32 in such processes too."""
    mixture = jk.GaussianMixture([0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], covariances)
    x = jnp.ones((3, 2), jnp.float32)
    t = jnp.asarray(0.5, jnp.float32)
    found = mixture.denoiser(jk.VP()).astype(jnp.float32)(x, t)
    assert found.score is not None
    assert {part.dtype for part in (found.x0, found.eps, found.score)} == {jnp.dtype("float32")}
