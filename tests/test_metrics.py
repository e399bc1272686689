"""Distances between Gaussians against textbook formulas, quadrature, scipy and differences."""

import decimal
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads
from scipy.integrate import quad

from jaxkernels import metrics

RNG = np.random.default_rng(0)
ERRORS = RNG.normal(size=8)
VARIANCES = np.exp(RNG.normal(size=8))
TARGETS = np.exp(RNG.normal(size=8))


def _mode(name: str, *moments: object) -> jax.Array:
    """A metric of (mean error, variance, target variance)."""
    return metrics.METRICS[name](*map(jnp.asarray, moments))


def _dense(name: str, *moments: object) -> float:
    return float(metrics.DENSE_METRICS[name](*map(jnp.asarray, moments)))


def _bures(s: np.ndarray, c: np.ndarray) -> float:
    return float(metrics.bures_squared(jnp.asarray(s), jnp.asarray(c)))


def _covariance(seed: int, dim: int = 3) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(dim, dim + 1))
    return factor @ factor.T / dim


def _commutator(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a @ b - b @ a).max())


# --- commuting ------------------------------------------------------------------------------------


def test_w2_squared_is_the_distance_of_quantiles() -> None:
    """In one dimension W2^2 = int (F^-1 - G^-1)^2 over (0, 1), here over the normal variable z."""

    def integrand(z: float, e: float, v: float, c: float) -> float:
        return (
            (e + np.sqrt(v) * z - np.sqrt(c) * z) ** 2 * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
        )

    exact = [
        quad(integrand, -12, 12, args)[0] for args in zip(ERRORS, VARIANCES, TARGETS, strict=True)
    ]
    np.testing.assert_allclose(_mode("w2_squared", ERRORS, VARIANCES, TARGETS), exact, rtol=1e-9)


@pytest.mark.parametrize(("name", "data_first"), [("kl", True), ("reverse_kl", False)])
def test_kl_is_the_integral_of_the_log_ratio(name: str, data_first: bool) -> None:
    """KL(p || q) = int p log(p/q), p = N(0, c) the data, q = N(e, v) the samples; or reversed."""

    def log_normal(x: float, m: float, v: float) -> float:
        return -0.5 * (x - m) ** 2 / v - 0.5 * np.log(2.0 * np.pi * v)

    exact = []
    for e, v, c in zip(ERRORS, VARIANCES, TARGETS, strict=True):
        first, second = ((0.0, c), (e, v)) if data_first else ((e, v), (0.0, c))

        def integrand(x: float, first=first, second=second) -> float:
            return np.exp(log_normal(x, *first)) * (log_normal(x, *first) - log_normal(x, *second))

        reach = 13.0 * np.sqrt(first[1])
        exact.append(
            quad(integrand, first[0] - reach, first[0] + reach, epsabs=1e-12, limit=200)[0]
        )
    np.testing.assert_allclose(_mode(name, ERRORS, VARIANCES, TARGETS), exact, rtol=1e-8)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, -1e-9, 1e-12])
@pytest.mark.parametrize("c", [1e-6, 1.0, 1e4])
def test_no_cancellation_for_nearly_equal_variances(gap: float, c: float) -> None:
    """Relative accuracy where textbook formulas lose every digit, against 60-digit arithmetic."""
    v = c * (1.0 + gap)
    with decimal.localcontext(prec=60):
        x, y = decimal.Decimal(v), decimal.Decimal(c)
        exact = {
            "w2_squared": (x.sqrt() - y.sqrt()) ** 2,
            "kl": (y / x - 1 - (y / x).ln()) / 2,
            "reverse_kl": (x / y - 1 - (x / y).ln()) / 2,
        }
    for name, value in exact.items():
        assert float(_mode(name, 0.0, v, c)) == pytest.approx(float(value), rel=1e-11, abs=0.0)


def test_the_textbook_formulas_would_fail_that_test() -> None:
    c, gaps = 1.0, np.array([1e-9, 2e-9, 3e-9, 5e-9])
    v, leading = c + gaps, 0.25 * gaps**2
    exact = leading * (1.0 - 0.5 * gaps)
    assert np.max(np.abs((v - 2.0 * np.sqrt(v * c) + c) / exact - 1.0)) > 0.1
    assert np.max(np.abs(0.5 * (v / c - 1.0 - np.log(v / c)) / leading - 1.0)) > 1e-8


@pytest.mark.parametrize(
    ("e", "v", "c", "w2_squared", "kl", "reverse_kl"),
    [
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),  # the same point
        (2.0, 0.0, 0.0, 4.0, np.inf, np.inf),  # two points
        (0.0, 0.0, 4.0, 4.0, np.inf, np.inf),  # samples collapsed
        (0.0, 4.0, 0.0, 4.0, np.inf, np.inf),  # data on a point
        (1.0, 1.0, 1.0, 1.0, 0.5, 0.5),  # shifted only
        (0.0, -1.0, 4.0, 9.0, np.inf, np.inf),  # a flipped mode: 2 z against -z
        (0.0, -1.0, 0.0, 1.0, np.inf, np.inf),
    ],
)
def test_degenerate_distributions(
    e: float, v: float, c: float, w2_squared: float, kl: float, reverse_kl: float
) -> None:
    expected = {"w2_squared": w2_squared, "kl": kl, "reverse_kl": reverse_kl}
    for name, value in expected.items():
        assert float(_mode(name, e, v, c)) == pytest.approx(value, rel=1e-14, abs=0.0), name


def test_derivatives() -> None:
    """First and second derivatives of three by finite differences, forward and reverse."""
    points = [
        (0.3, 1.7, 0.9),
        (-1.0, 0.5, 5.0),
        (0.0, 1.0, 1.0),  # equal variances
        (0.0, 2.0 * (1.0 + 1e-3), 2.0),  # inside the range of the series of log(1 + x)
        (0.2, 2.0 * (1.0 + 1e-2), 2.0),  # where it is left
    ]

    @jax.jit
    def every(e: jax.Array, v: jax.Array, c: jax.Array) -> jax.Array:
        named = ("w2_squared", "kl", "reverse_kl")
        return jnp.stack([metrics.METRICS[name](e, v, c) for name in named])

    arguments = tuple(jnp.asarray(column) for column in zip(*points, strict=True))
    check_grads(every, arguments, order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


def test_derivatives_are_never_nan() -> None:
    """Points without variance on one side or both. (An infinite KL may have any slope but NaN.)"""
    points = jnp.array(
        [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 2.0), (0.0, 2.0, 0.0), (0.0, -1.0, 2.0)]
    )

    def every(moments: jax.Array) -> jax.Array:
        return jnp.stack([metric(*moments) for metric in metrics.METRICS.values()])

    for derivative in (jax.jacrev(every), jax.hessian(every)):
        values = np.asarray(jax.jit(jax.vmap(derivative))(points))
        assert not np.any(np.isnan(values))


def test_slope_of_w2_squared_at_a_point_mass() -> None:
    """At c = 0 the distance is v: its slope is 1 from v = 0 on, and 2 e in the mean."""
    slope = jax.grad(metrics.w2_squared, (0, 1))(*map(jnp.asarray, (0.5, 0.0, 0.0)))
    assert (float(slope[0]), float(slope[1])) == (1.0, 1.0)


@pytest.mark.parametrize("v", [3e-308, 1e-200, -1e-200, -3e-308])
def test_derivatives_beside_a_point_mass(v: float) -> None:
    """At c = 0 the distance is |v|, however small v is: not infinity times 0 of its roots."""
    value = jax.jit(lambda v: metrics.w2_squared(jnp.zeros(()), v, jnp.zeros(())))
    here = jnp.asarray(v)
    assert float(value(here)) == abs(v)
    assert float(jax.jit(jax.grad(value))(here)) == np.sign(v)
    for outer in (jax.jacfwd, jax.jacrev):
        assert float(jax.jit(outer(jax.grad(value)))(here)) == 0.0


def test_closed_form_derivatives_at_equality() -> None:
    """Second derivative in v at v = c: W2^2 gives 1/(2c), both KL give 1/(2 c^2)."""
    c = 0.7
    for name, exact in (("w2_squared", 0.5 / c), ("kl", 0.5 / c**2), ("reverse_kl", 0.5 / c**2)):
        slope = jax.grad(metrics.METRICS[name], 1)
        point = tuple(map(jnp.asarray, (0.0, c, c)))
        assert float(slope(*point)) == pytest.approx(0.0, abs=1e-14)
        assert float(jax.grad(slope, 1)(*point)) == pytest.approx(exact, rel=1e-9)


def test_weights_and_names() -> None:
    weights = np.array([2.0, 0.0, -1.0, 0.5])
    e, v, c = np.zeros(4), np.array([1.0, 0.0, 4.0, 9.0]), np.array([4.0, 1.0, 1.0, 4.0])
    shares = metrics.per_mode(metrics.kl, weights, *map(jnp.asarray, (e, v, c)))
    kl = 0.5 * (c[[0, 2, 3]] / v[[0, 2, 3]] - 1.0 - np.log(c[[0, 2, 3]] / v[[0, 2, 3]]))
    np.testing.assert_allclose(np.asarray(shares)[[0, 2, 3]], weights[[0, 2, 3]] * kl, rtol=1e-13)
    assert float(shares[1]) == 0.0  # infinite, but of weight 0
    assert metrics.resolve("kl") is metrics.kl

    def own(e: jax.Array, v: jax.Array, c: jax.Array) -> jax.Array:
        return e + v + c

    assert metrics.resolve(own) is own
    with pytest.raises(
        ValueError, match=r"metric='w2squared' is not known. Did you mean 'w2_squared'\?"
    ):
        metrics.resolve("w2squared")


# --- dense ----------------------------------------------------------------------------------------

PAIRS = {
    "random": (_covariance(1), _covariance(2)),
    "near": (_covariance(1), _covariance(1) + 1e-3 * _covariance(3)),
    "large": (1e4 * _covariance(4), 1e-2 * _covariance(5)),
    "one dimension": (np.array([[2.0]]), np.array([[0.3]])),
}
DENSE = pytest.mark.parametrize(("s", "c"), PAIRS.values(), ids=PAIRS)


@DENSE
def test_bures_is_the_definition(s: np.ndarray, c: np.ndarray) -> None:
    root = scipy.linalg.sqrtm(c)
    cross = scipy.linalg.sqrtm(root @ s @ root)
    exact = np.trace(s) + np.trace(c) - 2.0 * np.trace(cross)
    tolerance = 1e-12 * (np.trace(s) + np.trace(c))  # of the definition, which cancels
    assert _bures(s, c) == pytest.approx(exact, rel=1e-11, abs=tolerance)
    assert _bures(c, s) == pytest.approx(exact, rel=1e-11, abs=tolerance)
    e = np.arange(1.0, len(s) + 1.0)
    assert _dense("w2_squared", e, s, c) == pytest.approx(exact + e @ e, rel=1e-11)


@DENSE
def test_transport_map_carries_one_covariance_to_the_other(s: np.ndarray, c: np.ndarray) -> None:
    t = np.asarray(metrics.transport_map(jnp.asarray(s), jnp.asarray(c)))
    np.testing.assert_allclose(t @ s @ t, c, rtol=1e-8, atol=1e-11 * np.abs(c).max())
    np.testing.assert_allclose(t, t.T, rtol=1e-9, atol=1e-12)
    assert np.linalg.eigvalsh(t)[0] > 0


@DENSE
def test_dense_kl_is_the_textbook_formula(s: np.ndarray, c: np.ndarray) -> None:
    """KL(N(0, c) || N(e, s)) = (tr s^-1 c - d - log det s^-1 c + e' s^-1 e) / 2."""
    e, d = np.linspace(-0.5, 1.0, len(s)), len(s)

    def exact(c: np.ndarray, s: np.ndarray) -> float:
        ratio = np.linalg.solve(s, c)
        return 0.5 * (np.trace(ratio) - d - np.linalg.slogdet(ratio)[1] + e @ np.linalg.solve(s, e))

    assert _dense("kl", e, s, c) == pytest.approx(exact(c, s), rel=1e-9)
    assert _dense("reverse_kl", e, s, c) == pytest.approx(exact(s, c), rel=1e-9)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_dense_is_the_sum_over_modes_when_they_commute(name: str) -> None:
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))[0]
    e, v, c = ERRORS[:4], VARIANCES[:4], TARGETS[:4]
    dense = _dense(name, basis @ e, (basis * v) @ basis.T, (basis * c) @ basis.T)
    assert dense == pytest.approx(float(np.sum(_mode(name, e, v, c))), rel=1e-11)


@pytest.mark.parametrize("gap", [1e-4, 1e-7, 1e-10])
def test_dense_without_cancellation(gap: float) -> None:
    """S = C + gap U: both distances are quadratic forms in gap U up to relative order gap.

    Bures^2 = sum U_ij^2 / (2 (c_i + c_j)) in the eigenbasis of C, KL = tr (C^-1 U)^2 / 4.
    """
    c = np.array([0.5, 1.0, 3.0])
    u = np.array([[1.0, 0.3, -0.2], [0.3, -0.5, 0.4], [-0.2, 0.4, 2.0]])
    basis = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    dense_c = (basis * c) @ basis.T
    s = dense_c + gap * basis @ u @ basis.T
    u = basis.T @ (s - dense_c) @ basis / gap  # what is left of u after rounding
    bures = gap**2 * np.sum(u**2 / (2.0 * (c[:, None] + c)))
    kl = gap**2 * 0.25 * np.sum(u**2 / (c[:, None] * c))
    slack = 4.0 * gap + 1e-14 / gap
    assert _bures(s, dense_c) == pytest.approx(bures, rel=slack, abs=0.0)
    assert _dense("kl", np.zeros(3), s, dense_c) == pytest.approx(kl, rel=slack, abs=0.0)


def test_singular_covariances() -> None:
    """Orthogonal degenerate Gaussians, where no transport matrix exists: tr S + tr C."""
    s, c = np.diag([4.0, 0.0, 0.0]), np.diag([0.0, 1.0, 2.0])
    assert _bures(s, c) == pytest.approx(7.0, rel=1e-12)
    assert _bures(s, s) == pytest.approx(0.0, abs=1e-12)
    slope = jax.grad(metrics.bures_squared, (0, 1))(jnp.asarray(s), jnp.asarray(c))
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0, 0.0, 0.5], [1.0, 2.0, 1e-5, 0.5]),
        ([1.0, 2.0, 0.0, 0.5], [1.0, 2.0, 0.0, 0.501]),
        ([1.0, 2.0, 0.0, 1e-5], [1.0, 2.0, 1e-5, 0.0]),
    ],
)
def test_nearly_equal_singular_covariances(a: list[float], b: list[float], turned: bool) -> None:
    """Commuting ones, in both orders: sum (sqrt a - sqrt b)^2; singular ones lose a tenth."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0] if turned else np.eye(4)
    s, c = ((basis * np.array(v)) @ basis.T for v in (a, b))
    exact = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    for there, back in ((s, c), (c, s)):
        assert _bures(there, back) == pytest.approx(exact, rel=0.1)


def _symmetric(a: jax.Array) -> jax.Array:
    return 0.5 * (a + a.T)


def _check_two_orders(fn: Callable[..., jax.Array], arguments: tuple[jax.Array, ...]) -> None:
    """Both modes for the function, and for its gradient: what an optimiser differentiates."""
    fn = jax.jit(fn)
    tolerances = {"modes": ("fwd", "rev"), "rtol": 1e-4, "atol": 1e-4}
    check_grads(fn, arguments, order=1, **tolerances)
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(fn(*a)), tuple(range(len(arguments)))))
    check_grads(gradient, arguments, order=1, **tolerances)


SIMPLE = [
    (_covariance(6), _covariance(7)),
    (_covariance(6), _covariance(6)),
]  # the second pair is equal
DEGENERATE = [
    (2.0 * np.eye(3), 0.5 * np.eye(3)),
    (np.eye(3), np.eye(3)),
    (np.diag([1.0, 1.0, 3.0]), np.diag([2.0, 2.0, 0.5])),
]


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("w2_squared", SIMPLE + DEGENERATE),
        ("kl", SIMPLE + DEGENERATE),
    ],
    ids=["w2_squared", "kl"],
)
def test_dense_derivatives(name: str, points: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Two derivatives by finite differences, also where eigenvalues or covariances coincide."""
    fn = metrics.DENSE_METRICS[name]

    @jax.vmap
    def of_symmetric(e: jax.Array, s: jax.Array, c: jax.Array) -> jax.Array:
        return fn(e, _symmetric(s), _symmetric(c))

    s, c = (jnp.stack(column) for column in zip(*points, strict=True))
    e = jnp.broadcast_to(jnp.array([0.3, -0.2, 0.0]), (len(points), 3))
    _check_two_orders(of_symmetric, (e, s, c))


@pytest.mark.parametrize("name", metrics.METRICS)
def test_dense_first_derivatives_of_degenerate_distributions(name: str) -> None:
    """d/dS and d/dC in closed form where every eigenvalue is the same, S = s I and C = c I."""
    s, c, eye = 2.0, 0.5, jnp.eye(3)
    slopes = jax.jit(jax.grad(metrics.DENSE_METRICS[name], (1, 2)))(jnp.zeros(3), s * eye, c * eye)
    exact = {
        "w2_squared": (1.0 - np.sqrt(c / s), 1.0 - np.sqrt(s / c)),
        "kl": (0.5 * (1.0 / s - c / s**2), 0.5 * (1.0 / s - 1.0 / c)),
        "reverse_kl": (0.5 * (1.0 / c - 1.0 / s), 0.5 * (1.0 / c - s / c**2)),
        # of log s - log(c (2 s - c)) / 2
        "log_chi_squared": (1.0 / s - 1.0 / (2.0 * s - c), 0.5 / (2.0 * s - c) - 0.5 / c),
    }[name]
    for slope, value in zip(slopes, exact, strict=True):
        np.testing.assert_allclose(_symmetric(slope), value * eye, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("s", "c"), [SIMPLE[0], DEGENERATE[1]], ids=["random", "equal"])
def test_bures_hessian_is_the_closed_form(s: np.ndarray, c: np.ndarray) -> None:
    """D^2[U, U] = sum (V' C^1/2 U C^1/2 V)_ij^2 / (r_i r_j (r_i + r_j)), R = V r V'.

    R = (C^1/2 S C^1/2)^1/2. The first derivative is <I - T, U> with T = C^1/2 R^-1 C^1/2.
    """
    u = _covariance(9) - np.eye(3)
    root = np.real(scipy.linalg.sqrtm(c))
    r, v = np.linalg.eigh(np.real(scipy.linalg.sqrtm(root @ s @ root)))
    rotated = v.T @ root @ u @ root @ v
    curvature = np.sum(rotated**2 / (np.outer(r, r) * (r[:, None] + r)))
    slope = np.sum((np.eye(3) - root @ (v / r) @ v.T @ root) * u)

    @jax.jit
    def along(h: jax.Array) -> jax.Array:
        return metrics.bures_squared(jnp.asarray(s) + h * u, jnp.asarray(c))

    assert float(jax.grad(along)(0.0)) == pytest.approx(slope, rel=1e-10, abs=1e-12)
    assert float(jax.grad(jax.grad(along))(0.0)) == pytest.approx(curvature, rel=1e-9)


DISTINCT = [_covariance(8), np.diag([3.0, 2.0, 1.0])]
REPEATED = [np.eye(3), np.diag([2.0, 2.0, 1.0])]


@pytest.mark.parametrize(
    "matrices",
    [DISTINCT, REPEATED],
    ids=["distinct", "repeated"],
)
def test_derivatives_of_the_matrix_root(matrices: list[np.ndarray]) -> None:
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))
    root = jax.vmap(lambda m: jnp.sum(weights * metrics.sqrtm(_symmetric(m))))
    _check_two_orders(root, (jnp.stack(matrices),))


@pytest.mark.parametrize("matrices", [DISTINCT, REPEATED], ids=["distinct", "repeated"])
def test_forward_derivatives_of_the_matrix_root(matrices: list[np.ndarray]) -> None:
    """R R = M along a line M + h U: R' R + R R' = U, and R'' R + R R'' = -2 R' R'."""
    for m in matrices:
        u = _covariance(9)

        def along(h: jax.Array, m=m, u=u) -> jax.Array:
            return metrics.sqrtm(jnp.asarray(m) + h * u)

        r = np.real(scipy.linalg.sqrtm(m))
        first = scipy.linalg.solve_sylvester(r, r, u)
        second = scipy.linalg.solve_sylvester(r, r, -2.0 * first @ first)
        np.testing.assert_allclose(jax.jacfwd(along)(0.0), first, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(jax.jacfwd(jax.jacfwd(along))(0.0), second, rtol=1e-8, atol=1e-9)


def test_matrix_functions_solve_their_equations() -> None:
    m, rhs = _covariance(8), _covariance(10)
    root = metrics.sqrtm(jnp.asarray(m))
    np.testing.assert_allclose(root, np.real(scipy.linalg.sqrtm(m)), rtol=1e-10, atol=1e-12)
    x = scipy.linalg.solve_sylvester(m, m, rhs)
    ours = metrics.sylvester(jnp.asarray(m), jnp.asarray(rhs))
    np.testing.assert_allclose(ours, x, rtol=1e-10, atol=1e-12)
    # rank one: a multiple of itself, and derivatives stay finite although two eigenvalues are 0
    one = jnp.outer(jnp.array([1.0, 2.0, 2.0]), jnp.array([1.0, 2.0, 2.0]))
    np.testing.assert_allclose(metrics.sqrtm(one), one / 3.0, atol=1e-7)
    assert np.all(np.isfinite(jax.jacfwd(metrics.sqrtm)(one)))


def test_the_pairs_do_not_commute() -> None:
    """So that the dense tests test what the commuting ones do not."""
    assert _commutator(*PAIRS["random"]) > 0.1
    assert _commutator(*SIMPLE[0]) > 0.1
