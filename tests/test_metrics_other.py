"""chi^2 and MMD against integrals, matrix formulas, samples, limits and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.integrate import quad
from scipy.stats import norm

import jaxkernels as jk
from jaxkernels.metrics import MMDSquared, dense_log_chi_squared, log_chi_squared

ROWS = [(0.3, 1.7, 0.9), (-1.0, 0.5, 0.8), (0.0, 1.0, 1.0), (0.2, 2.002, 2.0), (0.5, 3.0, 0.1)]
E, V, C = np.array(ROWS).T


def _rotated(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mean error and two covariances that do not commute, with 2 S > C."""
    rng = np.random.default_rng(seed)
    first, second = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    s = (first * [0.7, 1.0, 2.0]) @ first.T
    c = (second * [0.3, 0.8, 1.2]) @ second.T
    return rng.normal(size=3), s, c


# --- chi^2 ---


def test_chi_squared_is_its_integral() -> None:
    def chi(e: float, v: float, c: float) -> float:
        ratio = lambda x: np.exp(2.0 * norm.logpdf(x, 0, c**0.5) - norm.logpdf(x, e, v**0.5))  # noqa: E731
        return quad(ratio, -40.0, 40.0, points=[-3.0, 0.0, 3.0], limit=200)[0] - 1.0

    found = np.expm1(log_chi_squared(*map(jnp.asarray, (E, V, C))))
    np.testing.assert_allclose(found, [chi(*row) for row in ROWS], rtol=1e-8, atol=1e-12)


def test_dense_chi_squared_is_the_matrix_formula() -> None:
    """log det and quadratic form of the Gaussian p^2 / q; infinite where it has no integral."""
    e, s, c = _rotated(0)
    log_det = lambda m: np.linalg.slogdet(m)[1]  # noqa: E731
    exact = log_det(s) - 0.5 * log_det(c) - 0.5 * log_det(2.0 * s - c)
    exact += e @ np.linalg.solve(2.0 * s - c, e)
    found = dense_log_chi_squared(*map(jnp.asarray, (e, s, c)))
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    assert np.isposinf(dense_log_chi_squared(*map(jnp.asarray, (e, 0.1 * s, c))))
    gap = 1e-7
    near = dense_log_chi_squared(jnp.zeros(3), jnp.asarray(c + gap * s), jnp.asarray(c))
    whitened = np.linalg.solve(c, s)
    np.testing.assert_allclose(near, 0.5 * gap**2 * np.trace(whitened @ whitened), rtol=1e-6)


def test_chi_squared_of_a_small_score_error() -> None:
    """chi^2 is 2 L eps^2 for the samples of a sampler with the score error eps E."""
    target = jk.Gaussian(0.0, [0.3])
    edges = [0.0, 0.2, 1.5]
    found = jk.reverse_sde.terminal_distribution(target, edges, 1.7, 1e-4, [0.5, 1.0], 0.4)
    value = log_chi_squared(found.mean_error, found.covariance, jnp.asarray([0.3]))[0]
    leading = jk.reverse_sde.leading_order(target, edges, 1.7, [0.5, 1.0], 0.4)
    np.testing.assert_allclose(jnp.expm1(value), 2e-8 * leading, rtol=1e-3)


def test_chi_squared_is_twice_kl_for_small_errors_and_never_below_it() -> None:
    rng = np.random.default_rng(1)
    e = rng.normal(size=500)
    c = np.exp(rng.normal(size=500))
    v = c * rng.uniform(0.51, 4.0, 500)
    moments = tuple(map(jnp.asarray, (e, v, c)))
    assert np.all(log_chi_squared(*moments) >= jk.metrics.kl(*moments))
    small = tuple(map(jnp.asarray, (1e-5 * e, c * (1.0 + 1e-5 * e), c)))
    np.testing.assert_allclose(log_chi_squared(*small), 2.0 * jk.metrics.kl(*small), rtol=1e-4)


@pytest.mark.parametrize(
    ("e", "v", "c", "value"),
    [
        (0.0, 0.0, 0.0, 0.0),
        (1.0, 0.0, 0.0, np.inf),
        (0.0, 1.0, 0.0, np.inf),
        (0.0, 0.0, 1.0, np.inf),
        (0.0, 0.5, 1.0, np.inf),
    ],
)
def test_chi_squared_without_variance(e: float, v: float, c: float, value: float) -> None:
    assert float(log_chi_squared(*map(jnp.asarray, (e, v, c)))) == value


# --- MMD ---


def _mmd_of_kernels(width: float, e: np.ndarray, s: np.ndarray, c: np.ndarray) -> float:
    """E k(X, X') + E k(Y, Y') - 2 E k(X, Y), each an integral of N(0, l^2 I) convolved."""

    def expected(mean: np.ndarray, covariance: np.ndarray) -> float:
        total = width**2 * np.eye(len(mean)) + covariance
        value = width ** len(mean) / np.sqrt(np.linalg.det(total))
        return value * np.exp(-0.5 * mean @ np.linalg.solve(total, mean))

    zero = np.zeros(len(e))
    return expected(zero, 2 * c) + expected(zero, 2 * s) - 2.0 * expected(e, s + c)


def test_mmd_is_its_three_expectations() -> None:
    for width in (0.1, 1.3, 20.0):
        found = MMDSquared(width)(*map(jnp.asarray, (E, V, C)))
        exact = [
            _mmd_of_kernels(width, *(np.atleast_1d(e), np.array([[v]]), np.array([[c]])))
            for e, v, c in ROWS
        ]
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-14)
        for seed in (0, 1):
            moments = _rotated(seed)
            found = MMDSquared(width).dense(*map(jnp.asarray, moments))
            np.testing.assert_allclose(
                found, _mmd_of_kernels(width, *moments), rtol=1e-8, atol=1e-14
            )


def test_mmd_of_samples() -> None:
    """The unbiased estimate of two samples in two dimensions, within five standard errors."""
    rng = np.random.default_rng(0)
    n = 1500
    e, s, c = (a[..., :2] for a in _rotated(3))
    s = s[:2]
    c = c[:2]
    x = rng.multivariate_normal(np.zeros(2), c, n)
    y = rng.multivariate_normal(e, s, n)
    square = lambda a, b: np.sum((a[:, None] - b) ** 2, -1)  # noqa: E731
    kernel = lambda a, b: np.exp(-0.5 * square(a, b))  # noqa: E731
    h = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(x, y).T
    np.fill_diagonal(h, 0.0)
    estimate = h.sum() / (n * (n - 1))
    error = 2.0 * np.std(h.sum(1) / (n - 1)) / np.sqrt(n)
    found = float(MMDSquared(1.0).dense(*map(jnp.asarray, (e, s, c))))
    assert found > 10.0 * error
    assert abs(estimate - found) < 5.0 * error


def test_limits_of_the_bandwidth() -> None:
    """Wide kernels see the means alone, then the variances: 3/4 (v - c)^2 / l^4; below 2."""
    width = 1e4
    metric = MMDSquared(width)
    e, v, c = map(jnp.asarray, (E, V, C))
    np.testing.assert_allclose(
        width**2 * metric(e, v, c), E**2 + 0.75 * (V - C) ** 2 / width**2, rtol=1e-6
    )
    none = jnp.zeros_like(e)
    # no cancellation: 1e-17 of the three expectations
    np.testing.assert_allclose(width**4 * metric(none, v, c), 0.75 * (V - C) ** 2, rtol=1e-6)
    mean, s, target = map(jnp.asarray, _rotated(0))
    np.testing.assert_allclose(
        width**2 * metric.dense(mean, s, target), jnp.sum(mean**2), rtol=1e-6
    )
    far = MMDSquared(1e-3)(jnp.asarray(50.0), jnp.zeros(()), jnp.zeros(()))
    np.testing.assert_allclose(far, 2.0)
    assert MMDSquared(2.0) == MMDSquared(2.0)  # so that it does not recompile
    with pytest.raises(ValueError, match="bandwidth = 0 must be > 0"):
        MMDSquared(0.0)


# --- through the code that uses metrics ---


def test_derivatives() -> None:
    """Two orders by differences, at equality as well, and finite without variance."""
    metric = MMDSquared(0.8)

    def both(e: jax.Array, v: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.stack([log_chi_squared(e, v, c), metric(e, v, c)])

    moments = tuple(map(jnp.asarray, (E, V, C)))
    check_grads(jax.jit(both), moments, order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-6)
    zero = jnp.zeros(())
    for derivative in (jax.jacrev(metric, (0, 1, 2)), jax.hessian(metric, (0, 1, 2))):
        assert np.all(np.isfinite(jax.tree.leaves(derivative(zero, zero, zero))))


@pytest.mark.slow
def test_dense_derivatives() -> None:
    """Two orders by differences, at equal covariances and repeated eigenvalues as well."""
    metric = MMDSquared(0.8)

    def dense(e: jax.Array, s: jax.Array, c: jax.Array) -> jax.Array:
        s = 0.5 * (s + s.T)
        c = 0.5 * (c + c.T)
        return jnp.stack([dense_log_chi_squared(e, s, c), metric.dense(e, s, c)])

    for s, c in (_rotated(0)[1:], (np.eye(3), np.eye(3))):
        moments = (jnp.array([0.3, -0.2, 0.0]), jnp.asarray(s), jnp.asarray(c))
        check_grads(jax.jit(dense), moments, order=2, modes=("rev",), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["log_chi_squared", MMDSquared(0.5)], ids=["chi", "mmd"])
def test_the_error_kernel_predicts_what_an_error_does(metric: str | MMDSquared) -> None:
    """The terminal error of a sampler with a small score error, and its kernel, per mode."""
    target = jk.Gaussian([0.3, -0.2], [1.5, 0.2])
    schedule = jk.schedules.log_snr(jk.VP(), 6, 1e-2)
    setting = (target, jk.VP(), "ddim", schedule)
    kernel = jk.error_kernel(*setting, metric=metric)
    exact = jk.evaluate_schedule(*setting)
    fn = log_chi_squared if isinstance(metric, str) else metric
    mean_error = exact.mean - jnp.asarray(target.mean)
    expected = jnp.sum(fn(mean_error, exact.variance, jnp.asarray(target.eigenvalues)))
    np.testing.assert_allclose(kernel.baseline(), expected, rtol=1e-8)
    objective = jk.TerminalError(metric=metric).bind(target, jk.VP(), jk.DDIM())
    np.testing.assert_allclose(objective(schedule), expected, rtol=1e-8)
