"""The leading order of KL in one dimension, against independent oracles.

None of the oracles share code with the module: Gaussian formulas, SciPy along characteristics, a
NumPy simulation of the perturbed equation, exact rational arithmetic for the linear solver. The
table of the bimodal density was computed apart from this library with two discretisations, and is
given to its eight digits.
"""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import erfcx

import jaxkernels as jk
from jaxkernels.reverse_sde import leading_order_1d
from jaxkernels.reverse_sde._fokker_planck import divide_time
from jaxkernels.reverse_sde._lagrangian import integrate_density, solve_lagrangian
from jaxkernels.reverse_sde._perturbation import NAMED_ERRORS
from jaxkernels.reverse_sde._tridiagonal import eliminate, substitute

# two components as in the others, so that one program serves all
NORMAL = jk.GaussianMixture([0.3, 0.7], [[0.7], [0.7]], [0.25, 0.25])
BIMODAL = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.01, 0.01])
SMOOTH = jk.GaussianMixture([0.4, 0.6], [[-0.8], [0.9]], [0.3, 0.4])
# one grid for most tests, so that it is compiled once
COARSE: dict[str, Any] = {"cells": 256, "time_steps": 128}


def _wave(x: jax.Array, theta: jax.Array, score: jax.Array) -> jax.Array:
    return jnp.sin(2 * x) * jnp.exp(-theta)


def _log_w(theta: float, variance: float) -> float:
    """-y(theta): the logarithm of the squared correlation of X_0 and X_theta."""
    return -math.log((math.exp(theta) + variance - 1.0) / variance)


def _normal_score_error(h2: float, time: float, variance: float) -> float:
    log_w = _log_w(time, variance)
    if h2 == 0:
        return log_w**2 / 4
    return ((1 + h2) / h2 * math.expm1(h2 * log_w)) ** 2 / 4


def _normal_constant_error(h2: float, time: float, variance: float) -> float:
    """L = 1/2 (1/2 (1 + h^2) int w^{h^2 / 2} dtheta / sqrt(s))^2, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    theta = time * (nodes + 1) / 2
    s = 1 + (variance - 1) * np.exp(-theta)
    mean = (variance * np.exp(-theta) / s) ** (h2 / 2) / np.sqrt(s)
    return float(0.5 * (1 + h2) * time / 2 * weights @ mean) ** 2 / 2


# --- closed forms ---


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("h2", [0.0, 0.3, 1.0, 4.0, 20.0])
def test_normal_data(h2: float, variance: float) -> None:
    target = jk.GaussianMixture([0.3, 0.7], [[0.7], [0.7]], [variance, variance])
    by_score = leading_order_1d(target, "score", h2, 2.0, **COARSE)
    np.testing.assert_allclose(by_score.value, _normal_score_error(h2, 2.0, variance), rtol=3e-6)
    constant = leading_order_1d(target, "constant", h2, 2.0, **COARSE)
    np.testing.assert_allclose(constant.value, _normal_constant_error(h2, 2.0, variance), rtol=3e-6)
    for result in (by_score, constant):
        assert result.mass_imbalance < 1e-12
        np.testing.assert_allclose(np.sum(result.masses), 1.0, atol=1e-11)


def test_the_density_response() -> None:
    """v_1 = d log variance / d eps makes u = v_1 / 2 (z^2 - 1)."""
    result = leading_order_1d(NORMAL, "score", 1.0, 2.0, **COARSE)
    z = (np.asarray(result.nodes) - 0.7) / 0.5
    slope = -math.sqrt(4 * _normal_score_error(1.0, 2.0, 0.25))
    inside = np.abs(z) < 4
    np.testing.assert_allclose(
        result.density_response[inside], (0.5 * slope * (z**2 - 1))[inside], rtol=1e-3, atol=3e-3
    )


def _on_one_grid(h2: float, cells: int, steps: int) -> float:
    times, pieces = divide_time(np.array([0.0, 2.0]), 1, steps, 0.25)
    by_score = NAMED_ERRORS["score"]
    return float(solve_lagrangian(NORMAL, by_score, times, cells, jnp.array([h2]), pieces).value)


@pytest.mark.parametrize("h2", [0.0, 2.0])
def test_order_in_space(h2: float) -> None:
    cells = [64, 128, 256]
    misses = [abs(_on_one_grid(h2, n, 128) - _normal_score_error(h2, 2.0, 0.25)) for n in cells]
    assert -2.05 < np.polyfit(np.log(cells), np.log(misses), 1)[0] < -1.95


def test_order_in_time() -> None:
    """By differences on the same cells: the exact value is not what the steps converge to."""
    coarse, middle, fine = (_on_one_grid(1.0, 64, n) for n in (32, 64, 128))
    assert 2.7 < math.log2((coarse - middle) / (middle - fine)) < 3.3


def test_estimated_error_without_extrapolation() -> None:
    found = leading_order_1d(NORMAL, "score", 2.0, 2.0, richardson=False, **COARSE)
    miss = abs(float(found.value) - _normal_score_error(2.0, 2.0, 0.25))
    assert miss < found.discretization_error < 10 * miss


def _window(x: jax.Array, theta: jax.Array, score: jax.Array) -> jax.Array:
    return jnp.where((theta >= 0.1) & (theta < 1.0), score, 0.0)


def _in_a_window(h2: jax.Array) -> jax.Array:
    """L = v_1^2 / 4 for an error that is constant on pieces.

    -v_1 = sum over pieces of c (1 + h^2)/h^2 (e^{-H} at its data end - e^{-H} at its noise end),
    H = int h^2 dy.
    """
    edges = [0.0, 0.1, 0.4, 1.0, 2.0]
    inside = [0.0, 1.0, 1.0, 0.0]
    total = decay = jnp.zeros(())
    for low, high, h, c in zip(edges[:-1], edges[1:], h2, inside):
        dy = _log_w(low, 0.25) - _log_w(high, 0.25)
        zero = h == 0
        h = jnp.where(zero, 1.0, h)
        total += c * jnp.exp(-decay) * jnp.where(zero, dy, -(1 + h) / h * jnp.expm1(-h * dy))
        decay += jnp.where(zero, 0.0, h) * dy
    return total**2 / 4


def test_pieces_of_h_and_an_error_in_a_window() -> None:
    def value(h2: jax.Array) -> jax.Array:
        return leading_order_1d(
            NORMAL, _window, h2, 2.0, breakpoints=[0.1, 0.4, 1.0], **COARSE
        ).value

    both = jax.jit(jax.value_and_grad(value))
    closed = jax.jit(jax.value_and_grad(_in_a_window))
    h2 = jnp.array([3.0, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(both(h2)[0], closed(h2)[0], rtol=1e-5)
    h2 = jnp.array([0.6, 2.0, 0.5, 1.0])
    found, slopes = both(h2)
    expected = closed(h2)
    np.testing.assert_allclose(found, expected[0], rtol=1e-5)
    np.testing.assert_allclose(slopes, expected[1], rtol=1e-4, atol=1e-12)


def test_the_limit_of_large_h() -> None:
    """Samples of p_0 e^{eps phi} for an error E = grad phi: L -> Var(phi) / 2.

    Here with corrections of order 1/h^2.
    """
    target = jk.GaussianMixture([0.5, 0.5], [[-0.3], [0.3]], [0.36, 0.36])
    x = np.linspace(-6, 6, 4001)
    density = np.exp(-((x[:, None] - [-0.3, 0.3]) ** 2) / 0.72).mean(1) / math.sqrt(0.72 * math.pi)
    for error, phi in (("score", np.log(density)), ("constant", x)):
        mean = np.trapezoid(density * phi, x)
        variance = np.trapezoid(density * (phi - mean) ** 2, x)
        found = leading_order_1d(target, error, 1e4, 2.0, **COARSE)
        np.testing.assert_allclose(found.value, variance / 2, rtol=5e-4)


# --- densities without a closed form ---

TABLE = {
    0.0: (11.68283894, 2.38816304),
    1.0: (0.97684823, 1.10987484),
    2.0: (0.56149760, 0.82450764),
    4.0: (0.39061837, 0.61604096),
    8.0: (0.31640625, 0.51515746),
    16.0: (0.28222656, 0.47283590),
}


@pytest.mark.parametrize("h2", TABLE)
def test_bimodal_table(h2: float) -> None:
    """Between the modes p_0 is 1e-22 of its largest value.

    There plain elimination returned 1.11 for h = 1.
    """
    for error, expected in zip(("score", "constant"), TABLE[h2]):
        found = leading_order_1d(BIMODAL, error, h2, 4.0)
        np.testing.assert_allclose(found.value, expected, rtol=1e-6)
        assert abs(found.value - expected) < 2 * found.discretization_error + 3e-8
        assert found.discretization_error < 2e-6 * max(1.0, 10 * expected)
        assert found.mass_imbalance < 1e-12


@pytest.mark.parametrize("h2", [4.0, 16.0])
def test_the_eulerian_scheme_agrees(h2: float) -> None:
    found = leading_order_1d(
        BIMODAL, "score", h2, 4.0, cells=6000, time_steps=160, scheme="eulerian"
    )
    np.testing.assert_allclose(found.value, TABLE[h2][0], atol=1e-6)
    assert found.mass_imbalance < 1e-9  # of u p_0 where p_0 is not negligible


def test_the_schemes_agree_on_another_error() -> None:
    moving = leading_order_1d(SMOOTH, _wave, 0.7, 2.0, **COARSE)
    fixed = leading_order_1d(SMOOTH, _wave, 0.7, 2.0, cells=6000, time_steps=160, scheme="eulerian")
    np.testing.assert_allclose(moving.value, fixed.value, rtol=3e-5)


def _characteristics(
    weights: np.ndarray, means: np.ndarray, variances: np.ndarray, time: float
) -> float:
    """L at h = 0 for E = sin(2 x) e^{-theta}.

    u = -1/2 int (E' + E score) dtheta along the flow, from points of p_0.
    """

    def score(x: np.ndarray, theta: float) -> np.ndarray:
        v = 1 + (variances - 1) * np.exp(-theta)
        r = x[:, None] - np.exp(-theta / 2) * means
        logs = np.log(weights) - r**2 / (2 * v) - np.log(v) / 2
        p = np.exp(logs - logs.max(1, keepdims=True))
        return -np.sum(p * r / v, 1) / np.sum(p, 1)

    nodes, quadrature = np.polynomial.legendre.leggauss(60)
    ends = [np.linspace(m - 7 * s, m + 7 * s, 5) for m, s in zip(means, np.sqrt(variances))]
    total = 0.0
    for m, (weight, mean, variance) in enumerate(zip(weights, means, variances)):
        x = np.concatenate(
            [(a + b) / 2 + (b - a) / 2 * nodes for a, b in zip(ends[m][:-1], ends[m][1:])]
        )
        dx = np.concatenate([(b - a) / 2 * quadrature for a, b in zip(ends[m][:-1], ends[m][1:])])
        density = (
            weight * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        )

        def rate(theta: float, state: np.ndarray) -> np.ndarray:
            y = state[: len(state) // 2]
            s = score(y, theta)
            source = np.exp(-theta) * (2 * np.cos(2 * y) + np.sin(2 * y) * s)
            return np.concatenate([-(y + s) / 2, -source / 2])

        start = np.concatenate([x, np.zeros_like(x)])
        u = solve_ivp(rate, (0.0, time), start, rtol=1e-9, atol=1e-11, method="DOP853").y[
            len(x) :, -1
        ]
        total += 0.5 * np.sum(dx * density * u**2)
    return total


@pytest.mark.parametrize("narrow", [0.09, 0.0025])
def test_the_ode_by_characteristics(narrow: float) -> None:
    """Unequal modes, the narrow one up to 30 of its standard deviations away.

    p_0 is 1e-90 between them.
    """
    weights = np.array([0.3, 0.7])
    means = np.array([-1.0, 1.5])
    variances = np.array([narrow, 0.04])
    expected = _characteristics(weights, means, variances, 2.0)

    target = jk.GaussianMixture(weights, means[:, None], variances)
    found = leading_order_1d(target, _wave, 0.0, 2.0, **COARSE)
    np.testing.assert_allclose(found.value, expected, rtol=2e-5)


def test_particles() -> None:
    """The perturbed reverse equation with +-eps and common noise.

    E phi moves by eps sum(masses u phi), and for phi = u by 2 L eps.

    Heun's method for additive noise, of weak order 2.
    """
    weights = np.array([0.4, 0.6])
    means = np.array([-0.8, 0.9])
    variances = np.array([0.3, 0.4])
    h2 = 1.0
    time = 1.0
    steps = 60
    eps = 0.02
    count = 40000
    rng = np.random.default_rng(3)

    def drift(y: np.ndarray, theta: float) -> np.ndarray:
        v = 1 + (variances - 1) * np.exp(-theta)
        r = y[..., None] - np.exp(-theta / 2) * means
        p = weights * np.exp(-(r**2) / (2 * v)) / np.sqrt(v)
        score = -np.sum(p * r / v, -1) / np.sum(p, -1)
        return y / 2 + (1 + h2) / 2 * (
            score + eps * np.array([[1.0], [-1.0]]) * np.sin(2 * y) * np.exp(-theta)
        )

    mode = rng.choice(2, size=count, p=weights)
    deviations = np.sqrt(1 + (variances - 1) * np.exp(-time))
    y = np.tile(np.exp(-time / 2) * means[mode] + deviations[mode] * rng.normal(size=count), (2, 1))
    dt = time / steps
    for k in range(steps):
        noise = math.sqrt(h2 * dt) * rng.normal(size=count)
        first = drift(y, time - k * dt)
        second = drift(y + dt * first + noise, time - (k + 1) * dt)
        y = y + dt * (first + second) / 2 + noise
    result = leading_order_1d(SMOOTH, _wave, h2, time, **COARSE)
    x, u, masses = (np.asarray(a) for a in (result.nodes, result.density_response, result.masses))
    tests = {
        "mean": lambda z: z,
        "square": lambda z: z**2,
        "sine": np.sin,
        "response": lambda z: np.interp(z, x, u),
    }
    for name, phi in tests.items():
        moved = (phi(y[0]) - phi(y[1])) / (2 * eps)
        expected = np.sum(masses * u * phi(x))
        deviation = np.std(moved) / math.sqrt(count)
        assert abs(np.mean(moved) - expected) < 4 * deviation + 2e-3 * abs(expected), name
        if name == "response":
            assert deviation < 0.02 * abs(expected)
    np.testing.assert_allclose(np.sum(masses * u**2) / 2, result.value, rtol=1e-3)


# --- derivatives ---


def test_derivative_with_respect_to_h() -> None:
    def value(h2: float) -> jax.Array:
        return leading_order_1d(BIMODAL, "score", h2, 4.0, **COARSE).value

    d = 1e-4
    derivative = jax.grad(value)(1.0)
    np.testing.assert_allclose(derivative, (value(1.0 + d) - value(1.0 - d)) / (2 * d), rtol=1e-6)
    _, along = jax.jvp(jax.jit(value), (1.0,), (2.0,))
    np.testing.assert_allclose(along, 2 * derivative, rtol=1e-9)


def test_derivative_at_the_ode() -> None:
    """dL/dh^2 at h = 0 is y^2 / 2 - y^3 / 4 with y = -log w, and not 0 as in h."""
    y = -_log_w(2.0, 0.25)
    found = jax.grad(lambda h2: leading_order_1d(NORMAL, "score", h2, 2.0, **COARSE).value)(0.0)
    np.testing.assert_allclose(found, y**2 / 2 - y**3 / 4, rtol=2e-5)


# --- the solver and the interface ---


def test_elimination_keeps_small_masses() -> None:
    """Two masses of 1/2 joined through cells of 1e-22 and conductances of up to 1e20.

    Against exact fractions.
    """
    masses = np.array([0.5, 1e-18, 1e-22, 1e-22, 1e-19, 0.5])
    rates = np.array([3e-17, 1e20, 2e18, 7e19, 1e-18])
    b = np.array([1.0, -1e-19, 2e-22, 3e-23, -1e-20, -0.25])
    rows = [[Fraction(0)] * 6 for _ in range(6)]
    for j, m in enumerate(masses):
        rows[j][j] += Fraction(m)
    for j, a in enumerate(rates):
        for row, column, sign in ((j, j, 1), (j + 1, j + 1, 1), (j, j + 1, -1), (j + 1, j, -1)):
            rows[row][column] += sign * Fraction(a)
    right = [Fraction(v) for v in b]
    for j in range(5):
        ratio = rows[j + 1][j] / rows[j][j]
        rows[j + 1] = [p - ratio * q for p, q in zip(rows[j + 1], rows[j])]
        right[j + 1] -= ratio * right[j]
    exact = [Fraction(0)] * 6
    for j in reversed(range(6)):
        later = rows[j][j + 1] * exact[j + 1] if j < 5 else Fraction(0)
        exact[j] = (right[j] - later) / rows[j][j]
    matrix = eliminate(jnp.asarray(masses), jnp.asarray(rates)[None], jnp.asarray(rates)[None])
    found = substitute(jax.tree.map(lambda a: a[0], matrix), jnp.asarray(b))
    np.testing.assert_allclose(found, [float(x) for x in exact], rtol=1e-12)


def test_cell_masses_keep_their_digits_in_the_tails() -> None:
    edges = np.array([-6.6, -6.5, -0.1, 0.2, 6.5, 6.6])

    def tail(z: float) -> float:
        return 0.5 * math.exp(-z * z / 2) * float(erfcx(z / math.sqrt(2)))

    outer = tail(6.5) - tail(6.6)
    found = integrate_density(jk.GaussianMixture([1.0], [[0.0]], [1.0]), edges)
    np.testing.assert_allclose(found[[0, -1]], outer, rtol=1e-12)
    np.testing.assert_allclose(found.sum(), 1 - 2 * tail(6.6), rtol=1e-14)


def test_new_numbers_do_not_compile_again() -> None:
    traces = 0

    def error(x: jax.Array, theta: jax.Array, score: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return x

    leading_order_1d(SMOOTH, error, 1.0, 2.0, richardson=False, **COARSE)
    before = traces
    other = jk.GaussianMixture([0.2, 0.8], [[-0.5], [0.4]], [0.2, 0.5])
    leading_order_1d(other, error, 3.0, 1.0, richardson=False, **COARSE)
    assert traces == before == 2  # one of each grid


@pytest.mark.usefixtures("float32")
def test_single_precision_callers_get_the_same_number() -> None:
    found = leading_order_1d(NORMAL, "score", 1.0, 2.0, **COARSE)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, _normal_score_error(1.0, 2.0, 0.25), rtol=3e-6)
    with pytest.raises(ValueError, match=r"stochasticity_squared is traced without 64-bit"):
        jax.grad(lambda h2: leading_order_1d(NORMAL, "score", h2, 2.0, **COARSE).value)(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stochasticity_squared": -0.5},
            r"stochasticity_squared must be >= 0; its smallest entry is -0.5",
        ),
        (
            {"stochasticity_squared": [1.0, 2.0]},
            r"stochasticity_squared has shape \(2,\); with 0 breakpoints",
        ),
        (
            {"stochasticity_squared": 0.0, "scheme": "eulerian"},
            r"stochasticity_squared = 0 has no eulerian scheme",
        ),
        ({"final_time": 0.0}, r"final_time = 0 must be > 0"),
        ({"breakpoints": [0.5, 0.5]}, r"breakpoints = \[0.5, 0.5\] must increase inside \(0, 2\)"),
        ({"breakpoints": [3.0]}, r"breakpoints = \[3.0\] must increase inside"),
        ({"cells": 8}, r"cells = 8 must be at least 16"),
        ({"scheme": "lagrange"}, r"scheme='lagrange' is not known. Did you mean 'lagrangian'"),
        ({"error": "scores"}, r"error='scores' is not known"),
        (
            {"error": lambda x, theta, score: jnp.log(x)},
            r"error returned nan at x = -\d.*, theta = \d",
        ),
        (
            {"error": lambda x, theta, score: x[:, None]},
            r"error returned shape \(\d+, 1\) for x of shape",
        ),
        (
            {"target": jk.GaussianMixture([1.0], [[0.0, 1.0]], [1.0])},
            r"target has dimension 2; it must be 1",
        ),
        (
            {"target": jk.GaussianMixture([1.0], [[0.0]], [0.0])},
            r"target has a component of variance 0",
        ),
        (
            {"target": jk.GaussianMixture([1.0, 1e-320], [[0.0], [50.0]], [1.0, 1.0])},
            r"target has a density of 0 \(it underflows\) at x = \d",
        ),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {
        "target": NORMAL,
        "error": "score",
        "stochasticity_squared": 1.0,
        "final_time": 2.0,
    } | COARSE
    with pytest.raises(ValueError, match=message):
        leading_order_1d(**(setting | change))
