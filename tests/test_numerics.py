"""Elementary functions where textbook formulas lose their digits or their derivatives."""

import decimal
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.test_util import check_grads
from scipy.interpolate import PchipInterpolator

import jaxkernels as jk
from jaxkernels import _linalg as linalg, _numerics as numerics, _precision as precision, metrics
from jaxkernels._cubic import monotone_slopes, piecewise_cubic
from jaxkernels._derivatives import dense_derivatives, once_per_point
from jaxkernels.measurement import _forward_pass
from jaxkernels.measurement._affine_fit import fit_affine
from jaxkernels.measurement._levels import Levels
from jaxkernels.recurrence import to_the_end


@pytest.mark.parametrize(
    ("fn", "arguments", "value"),
    [
        (numerics.safe_sqrt, (0.0,), 0.0),
        (numerics.safe_sqrt, (4.0,), 2.0),
        (numerics.safe_sqrt, (-1e-9,), 0.0),
        (numerics.safe_log, (0.0,), -np.inf),
        (numerics.safe_log, (np.e,), 1.0),
        (numerics.safe_divide, (3.0, 0.0), 0.0),
        (numerics.safe_divide, (0.0, 0.0), 0.0),
        (numerics.safe_divide, (3.0, -2.0), -1.5),
        (numerics.power, (0.0, 0.0), 1.0),
        (numerics.power, (0.0, 2.5), 0.0),
        (numerics.power, (4.0, 1.5), 8.0),
        (numerics.power, (4.0, 0.0), 1.0),
        (numerics.log_ratio_excess, (0.0,), 0.0),
        (numerics.log_ratio_excess, (np.e - 1.0,), np.e - 2.0),
        (numerics.log_ratio_excess, (-1.0,), np.inf),
        (numerics.log_ratio_excess, (-2.0,), np.inf),
    ],
)
def test_values_and_finite_slopes(fn, arguments: tuple[float, ...], value: float) -> None:
    point = tuple(jnp.asarray(a) for a in arguments)
    assert float(fn(*point)) == pytest.approx(value, rel=1e-14, abs=0.0)
    for derivative in (jax.jacfwd, jax.jacrev):
        slopes = derivative(fn, tuple(range(len(point))))(*point)
        assert np.all(np.isfinite(slopes))


def test_a_square_root_of_nan_is_nan() -> None:
    assert np.isnan(numerics.safe_sqrt(jnp.asarray(np.nan)))


def test_derivatives_inside() -> None:
    """Away from the special points all are what they are called, log_ratio_excess at its switch."""

    @jax.jit
    def every(x: jax.Array, y: jax.Array, z: jax.Array) -> list[jax.Array]:
        return [
            numerics.safe_sqrt(x),
            numerics.safe_log(x),
            numerics.safe_divide(y, x),
            numerics.power(x, y),
            numerics.log_ratio_excess(z),
        ]

    points = jnp.array([2.0, 0.4, 1.3]), jnp.array([0.7, 1.3, 2.5]), jnp.array([-0.6, 0.0, 3.0])
    exact = [np.sqrt(points[0]), np.log(points[0]), points[1] / points[0], points[0] ** points[1]]
    for ours, theirs in zip(every(*points)[:4], exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
    check_grads(every, points, order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


def test_log_ratio_excess_keeps_its_digits() -> None:
    """x - log(1 + x) against 60-digit arithmetic, from 1e-12 through the switch at 1e-2 to 10."""
    x = np.concatenate(
        [np.geomspace(1e-12, 10.0, 60), -np.geomspace(1e-12, 0.999, 60), [0.00999, 0.01001]]
    )
    with decimal.localcontext(prec=60):
        exact = [float(decimal.Decimal(v) - (1 + decimal.Decimal(v)).ln()) for v in x.tolist()]
    np.testing.assert_allclose(numerics.log_ratio_excess(jnp.asarray(x)), exact, rtol=2e-13)


@pytest.mark.usefixtures("float32")
def test_log_ratio_excess_in_float32() -> None:
    x = jnp.asarray(np.concatenate([np.geomspace(1e-6, 10.0, 40), -np.geomspace(1e-6, 0.99, 40)]))
    value = numerics.log_ratio_excess(x)
    assert value.dtype == jnp.float32
    with decimal.localcontext(prec=60):
        exact = [
            float(decimal.Decimal(v) - (1 + decimal.Decimal(v)).ln())
            for v in np.asarray(x).tolist()
        ]
    np.testing.assert_allclose(value, exact, rtol=3e-5)


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_small_matrix_products(size: int, batch: tuple[int, ...]) -> None:
    """Products over the two leading axes, on both sides of the size at which the method changes."""
    rng = np.random.default_rng(0)
    a, b, x = (rng.normal(size=(*shape, *batch)) for shape in ((3, size), (size, 2), (size,)))
    leading = np.moveaxis(a, (0, 1), (-2, -1)) @ np.moveaxis(b, (0, 1), (-2, -1))
    ours = linalg.product(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(ours), (0, 1), (-2, -1)), leading, rtol=1e-13, atol=1e-14
    )
    vector = np.moveaxis(a, (0, 1), (-2, -1)) @ np.moveaxis(x, 0, -1)[..., None]
    ours = np.moveaxis(np.asarray(linalg.apply(jnp.asarray(a), jnp.asarray(x))), 0, -1)
    np.testing.assert_allclose(ours, vector[..., 0], rtol=1e-13, atol=1e-14)
    assert linalg.transpose(jnp.asarray(a)).shape == (size, 3, *batch)


@pytest.mark.parametrize(
    ("value", "dtype"), [(1, float), (np.arange(3), float), (np.float32(1.5), np.float32)]
)
def test_as_inexact(value: object, dtype: type) -> None:
    assert numerics.as_inexact(value).dtype == np.dtype(dtype)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("float32")
def test_in_float64_computes_in_float64_and_returns_the_callers_precision() -> None:
    """1 + 1e-12 - 1 is lost in float32; the flag is as it was before, also after an error."""
    seen = []

    @precision.in_float64
    def difference(x: jax.Array, small: np.ndarray) -> jax.Array:
        seen.append(jnp.asarray(x).dtype)
        return jnp.asarray((x + small) - x)

    result = difference(jnp.asarray(1.0), np.asarray(1e-12))
    assert seen == [jnp.float64]
    assert result.dtype == jnp.float32
    assert float(result) == pytest.approx(1e-12, rel=1e-3, abs=0.0)
    assert jnp.asarray(1.0).dtype == jnp.float32

    @precision.in_float64
    def fails(x: jax.Array) -> jax.Array:
        raise RuntimeError("as it should")

    with pytest.raises(RuntimeError, match="as it should"):
        fails(jnp.asarray(1.0))
    assert jnp.asarray(1.0).dtype == jnp.float32


@pytest.mark.usefixtures("float32")
def test_in_float64_leaves_transformations_alone() -> None:
    dtypes = []

    @precision.in_float64
    def record(x: jax.Array) -> jax.Array:
        dtypes.append(x.dtype)
        return x * x

    assert float(jax.grad(lambda x: jax.jit(record)(x))(3.0)) == 6.0
    assert dtypes == [jnp.float32]


def _products(jaxpr: Jaxpr) -> Iterator[object]:
    """Precisions that a program asks for its matrix products."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr)
        ):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                yield from _products(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


PROCESS = jk.VP()
DISTRIBUTION = jk.Gaussian.from_covariance([0.3, -0.2], [[2.0, 0.5], [0.5, 0.3]])
MIXTURES = [  # every component with eigenvectors of its own; all with the same
    jk.GaussianMixture([0.4, 0.6], [[0.0, 1.0], [1.0, 0.0]], [[[2.0, 0.5], [0.5, 0.3]], np.eye(2)]),
    jk.GaussianMixture.fit(np.random.default_rng(0).standard_normal((200, 2)), 2),
]
X, M, T = np.ones((3, 2)), np.eye(2) + 0.1, jnp.asarray(0.5)


def _score(x: jax.Array, t: jax.Array) -> jax.Array:
    return -x


def _measured(x: jax.Array) -> object:
    levels = Levels(np.array([0.5]), np.array([0.8]), np.array([0.6]))
    step = _forward_pass.noise_steps(levels, DISTRIBUTION).at(0)
    modes = _forward_pass.mode_coordinates(DISTRIBUTION)
    noise = _forward_pass.NoisePair(x, x)
    denoiser = jk.Denoiser(_score, PROCESS, "score")
    weight = jnp.ones(3)
    _, sums, found = _forward_pass.measure_time(
        denoiser, step, modes, x, x, noise, weight, jax.random.key(0)
    )
    all_times = _forward_pass.Deviations(*(values[None] for values in found))
    return sums, _forward_pass.sum_products(all_times, weight)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: DISTRIBUTION.denoiser(PROCESS)(x, T),
        lambda x: DISTRIBUTION.score(PROCESS, x, T),
        lambda x: DISTRIBUTION.mode_mean + DISTRIBUTION.sample(jax.random.key(0), 3),
        *(lambda x, m=m: m.denoiser(PROCESS)(x, T) for m in MIXTURES),
        *(lambda x, m=m: (m.score(PROCESS, x, T), m.hessian(PROCESS, x, T)) for m in MIXTURES),
        *(lambda x, m=m: m.sample(jax.random.key(0), 3) for m in MIXTURES),
        lambda x: to_the_end(x),
        lambda x: linalg.product(jnp.tile(x, (1, 3)), jnp.ones((6, 2))),
        lambda x: jax.grad(lambda m: metrics.bures_squared(m, jnp.asarray(M)))(
            jnp.asarray(M) + 0.0 * x[:2]
        ),
        _measured,
        lambda x: fit_affine(
            jk.Denoiser(_score, PROCESS, "score"),
            x,
            DISTRIBUTION,
            T[None],
            jax.random.key(0),
            3,
        ),
    ],
)
def test_products_are_exact_on_accelerators(fn) -> None:
    """Its own matrix products ask for all digits of float32, which matrix units do not give."""
    with jax.enable_x64(False):
        found = list(_products(jax.make_jaxpr(fn)(jnp.asarray(X, jnp.float32)).jaxpr))
    assert found
    highest = jax.lax.Precision.HIGHEST
    assert all(precision == (highest, highest) for precision in found)


@pytest.mark.parametrize("fn", [jnp.expm1, jnp.log1p])
def test_the_compiler_adds_correctly(fn: Callable[[jax.Array], jax.Array]) -> None:
    """jaxlib 0.10.2 takes the second function's value for the first one's in such a program."""
    x = np.linspace(1e-3, 0.5, 5000)

    @jax.jit
    def ratio(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(fn(x[:, None]) * y, -1) / jnp.sum(fn(-x[:, None]) * y, -1)

    found = ratio(jnp.asarray(x), jnp.asarray([1.0, 2.0]))
    plain = np.expm1 if fn is jnp.expm1 else np.log1p
    np.testing.assert_allclose(found, plain(x) / plain(-x), rtol=1e-12)


def test_the_compiler_adds_products_correctly() -> None:
    """jaxlib 0.10.2 leaves the last rows out."""
    x = np.arange(16_385.0)
    rows = jnp.asarray(np.stack([x, 0.0 * x, 0.0 * x], 1))
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    np.testing.assert_array_equal(squares, x**2)


@pytest.mark.parametrize("n", [1, 17])
def test_a_dense_hessian(n: int) -> None:
    """f = sum_i c_i (sum_{j<=i} z_j)^3 / 6, Hessian sum_{i >= max(j, k)} c_i (sum_{l<=i} z_l)."""
    c = np.cos(np.arange(n))
    z = np.linspace(0.1, 1.0, n)
    total = np.cumsum(z)
    run = jax.jit(lambda z: dense_derivatives(lambda z: jnp.sum(c * jnp.cumsum(z) ** 3) / 6.0, z))
    with jax.enable_x64(True):
        value, gradient, hessian = run(z)
    later = np.cumsum((c * total)[::-1])[::-1]
    np.testing.assert_allclose(value, np.sum(c * total**3) / 6.0, rtol=1e-12)
    np.testing.assert_allclose(gradient, np.cumsum((c * total**2)[::-1])[::-1] / 2.0, atol=1e-12)
    index = np.maximum.outer(np.arange(n), np.arange(n))
    np.testing.assert_allclose(hessian, later[index], atol=1e-12)


def test_derivatives_once_per_point() -> None:
    """Those of the sum itself, in x and in the parameters, of both orders."""
    variances = jnp.asarray([0.1, 1.0, 3.0])

    def plain(x: jax.Array, variances: jax.Array) -> jax.Array:
        return jnp.sum(variances / (variances + x[..., None]), -1)

    def once(x: jax.Array, variances: jax.Array) -> jax.Array:
        return once_per_point(plain, jnp.asarray(x), jnp.asarray(variances))

    x = jnp.asarray([[0.2, 0.5], [1.0, 2.0]])
    check_grads(lambda x: once(x, variances), (x,), 2, rtol=1e-5)
    check_grads(lambda v: once(x, v), (variances,), 2, rtol=1e-5)
    check_grads(once, (x, variances), 2, rtol=1e-5)
    np.testing.assert_array_equal(once(x, variances), plain(x, variances))


@pytest.mark.parametrize("z", [-30.0, -1.0001, -0.9999, -1e-9, 0.0, 0.5, 3.0, 20.0])
def test_phi_functions_and_two_derivatives(z: float):
    """phi_n(z) = int_0^1 e^((1-s) z) s^(n-1) / (n-1)! ds, by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    s = 0.5 * (nodes + 1.0)
    for order in (1, 2, 3):

        def fn(z: jax.Array, order: int = order) -> jax.Array:
            return numerics.phis(order, z)[-1]

        derived = (fn, jax.grad(fn), jax.grad(jax.grad(fn)), jax.jacfwd(jax.grad(fn)))
        share = 0.5 * weights * s ** (order - 1) / (1.0, 1.0, 2.0)[order - 1]
        for power, found in zip((0, 1, 2, 2), derived, strict=True):
            expected = np.sum(share * (1.0 - s) ** power * np.exp((1.0 - s) * z))
            np.testing.assert_allclose(found(jnp.asarray(z)), expected, rtol=1e-10)


def test_an_objective_of_a_table_in_one_precision_after_the_other():
    """A table in NumPy that a compiled program closes over kept the precision of its first use."""
    process = jk.DiscreteVP([0.99, 0.9, 0.5, 0.2, 0.01])
    objective = jk.LocalError().bind(jk.Gaussian(0.0, [1.0, 0.1]), process, jk.DDIM())
    times = np.array([5.0, 3.0, 1.0])
    first = float(objective(jk.Schedule(times)))
    jk.optimize.on_integer_timesteps(jk.Schedule([5.0, 2.6, 2.4, 1.0, 0.0]), process, objective)
    with jax.enable_x64(True):
        rows = jax.jit(jax.vmap(lambda t: objective(jk.Schedule(t))))
        double = float(rows(jnp.asarray(times)[None])[0])
    again = float(objective(jk.Schedule(times)))
    assert first == again
    np.testing.assert_allclose(first, double, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_the_piecewise_cubic_is_that_of_scipy(count: int) -> None:
    """Between the points; outside them it is constant, and a single point gives its value."""
    rng = np.random.default_rng(count)
    points = np.sort(rng.standard_normal(count))
    values = rng.standard_normal(count)
    x = np.linspace(points[0] - 1.0, points[-1] + 1.0, 101)
    theirs = PchipInterpolator(points, values)
    expected = theirs(np.clip(x, points[0], points[-1]))
    # those at the ends are a matter of taste
    first, *_, last = theirs(points, nu=1)
    slopes = np.array([first, *monotone_slopes(points, values), last])
    with jax.enable_x64(True):
        found = piecewise_cubic(jnp.asarray(x), points, values, slopes)
        alone = piecewise_cubic(jnp.asarray(x), points[:1], values[:1], np.ones(1))
        np.testing.assert_allclose(found, expected, atol=1e-14)
        np.testing.assert_array_equal(alone, values[0])


PAIRS = ([1.0, 2.0, -3.0, np.nan, 0.5, np.inf], [2.0, 1.0, -3.0, 0.5, np.nan, -np.inf])


def test_larger_and_smaller_are_numpys():
    np.testing.assert_array_equal(numerics.larger(*map(np.array, PAIRS)), np.maximum(*PAIRS))
    np.testing.assert_array_equal(numerics.smaller(*map(np.array, PAIRS)), np.minimum(*PAIRS))
    values = jnp.array([[3.0, -1.0, 2.0], [0.0, np.nan, 1.0], [5.0, 5.0, -np.inf]])
    np.testing.assert_array_equal(numerics.largest(values), values.max(-1))
    np.testing.assert_array_equal(numerics.smallest(values), values.min(-1))
    np.testing.assert_array_equal(numerics.clipped(values, 0.0, 2.0), np.clip(values, 0.0, 2.0))


def test_a_larger_number_has_the_derivative_of_that_one_only():
    check_grads(lambda x: numerics.larger(x**2, 3.0 * x), (2.0,), 2)
    check_grads(lambda x: numerics.smaller(x**2, 3.0 * x), (2.0,), 2)
    values = jnp.array([0.3, 2.0, -1.0])
    np.testing.assert_array_equal(jax.grad(numerics.largest)(values), [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(jax.grad(numerics.smallest)(values), [0.0, 0.0, 1.0])
    clipped = jax.vmap(jax.grad(lambda x: numerics.clipped(x, 0.0, 1.0)))(values)
    np.testing.assert_array_equal(clipped, [1.0, 0.0, 0.0])


@pytest.mark.parametrize("fn", [lambda x: jnp.maximum(x, 0.0), lambda x: jnp.min(x, keepdims=True)])
def test_the_suite_notices_the_derivative_of_a_maximum(fn: Callable):
    """It is NaN in every test, as XLA may make it wrong where it fuses operations otherwise."""
    assert np.all(np.isnan(jax.grad(lambda x: jnp.sum(fn(x)))(jnp.array([1.0, 2.0]))))
