"""Certified bounds against the exact coupled error, computed in NumPy without the library.

For a Gaussian target the exact reverse process X and a sampler's chain Y are affine in x and share
their Brownian motion, so that the second moments of D = Y - X follow from integrals over each step.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logistic_posterior import SECOND_MOMENT
from scipy import integrate

import jaxkernels as jk
from benchmarks.discretisation.logistic import FEATURES, LABELS
from jaxkernels._derivatives import dense_derivatives
from jaxkernels.bounds import Assumptions, as_published, certified_bound
from jaxkernels.bounds._assumptions import curvature_interval, third_derivative

SDE = [
    "euler_maruyama",
    "exponential_integrator",
    "exact_mean",
    "tweedie",
    "second_order",
    "rem",
    "rei",
]
# 1000 instances in one program, padded to this many steps and modes
INSTANCES = 1000
STEPS = 12
MODES = 20
ROUNDING = 1e-6


def legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1.0) / 2.0, weights / 2.0


Here: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""tau, h, lambda and mu of one step."""


class Moments(NamedTuple):
    """Of the difference D of two coupled processes, and its covariance with the exact one."""

    mean: np.ndarray
    variance: np.ndarray
    with_exact: np.ndarray

    def rms(self) -> np.ndarray:
        return np.sqrt(np.sum(self.mean**2 + self.variance, -1))


AT_REST = Moments(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))


class OneStep(NamedTuple):
    """x' = factor x + shift + int kernel dW."""

    factor: np.ndarray
    shift: np.ndarray
    kernel: np.ndarray


def variance(tau, lam):
    return 1.0 + (lam - 1.0) * np.exp(-tau)


def step_of(name: str, tau, h, lam, mu, left, delta, slope) -> OneStep:
    """A sampler's step with scores -(x - m)/S + delta - slope x, kernels at times `left` to go."""
    s0 = variance(tau, lam)
    m0 = mu * np.exp(-tau / 2.0)
    score = (-1.0 / s0 - slope, m0 / s0 + delta)
    one = np.ones_like(s0)
    if name == "euler_maruyama":
        return OneStep(
            1.0 + h / 2.0 + h * score[0], h * score[1], np.ones_like(left * s0[..., None])
        )
    if name in ("exponential_integrator", "exact_mean", "tweedie"):
        c = 2.0 * np.expm1(h / 2.0) if name == "exponential_integrator" else 2.0 * np.sinh(h / 2.0)
        kernel = np.exp(left / 2.0) * one[..., None]
        if name == "tweedie":
            kernel = exact_step(tau, h, lam, mu, left).kernel
        return OneStep(np.exp(h / 2.0) + c * score[0], c * score[1], kernel)
    # x' = x + h f1(h L) gamma + h^2 f2(h L) M, the published form
    growth = 0.5 - 1.0 / s0
    z = h * growth
    f1 = np.where(
        np.abs(z) > 1e-4, np.expm1(z) / np.where(z == 0, 1.0, z), 1.0 + z / 2.0 + z**2 / 6.0
    )
    small = 0.5 + z / 6.0 + z**2 / 24.0 + z**3 / 120.0
    f2 = np.where(np.abs(z) > 1e-2, (np.expm1(z) - z) / np.where(z == 0, 1.0, z**2), small)
    change = (m0 / (2.0 * s0) + m0 * (1.0 - s0) / s0**2, -(1.0 - s0) / s0**2)
    factor = 1.0 + h * f1 * (0.5 - 1.0 / s0) + h**2 * f2 * change[1]
    shift = h * f1 * m0 / s0 + h**2 * f2 * change[0] + h * delta
    return OneStep(factor, shift, np.exp(growth[..., None] * left))


def exact_step(tau, h, lam, mu, left) -> OneStep:
    s0 = variance(tau, lam)
    s1 = variance(tau - h, lam)
    factor = np.exp(-h / 2.0) * s1 / s0
    shift = mu * np.exp(-(tau - h) / 2.0) - factor * mu * np.exp(-tau / 2.0)
    there = variance((tau - h)[..., None] + left, lam[..., None])
    return OneStep(factor, shift, np.exp(-left / 2.0) * s1[..., None] / there)


def midpoint_step(name: str, tau, h, lam, mu, left, u, delta, later) -> OneStep:
    """The midpoint at the fraction u of the step, with constant errors of both scores."""
    s0 = variance(tau, lam)
    su = variance(tau - h * u, lam)
    m0 = mu * np.exp(-tau / 2.0)
    mid = mu * np.exp(-(tau - h * u) / 2.0)
    before = left > (h * (1.0 - u))[..., None]
    if name == "rem":
        grow = 0.5 - 1.0 / su
        predict = 1.0 + h * u * (0.5 - 1.0 / s0)
        offset = h * u * (m0 / s0 + delta)
        factor = 1.0 + h * grow * predict
        shift = h * (grow * offset + mid / su + later)
        return OneStep(factor, shift, 1.0 + np.where(before, (h * grow)[..., None], 0.0))
    weight = h * np.exp((1.0 - u) * h / 2.0)
    first = 2.0 * np.expm1(h * u / 2.0)
    predict = np.exp(h * u / 2.0) - first / s0
    offset = first * (m0 / s0 + delta)
    factor = np.exp(h / 2.0) - weight / su * predict
    shift = weight * ((mid - offset) / su + later)
    since = left - (h * (1.0 - u))[..., None]
    kernel = np.exp(left / 2.0) - np.where(
        before, (weight / su)[..., None] * np.exp(since / 2.0), 0
    )
    return OneStep(factor, shift, kernel)


def panels(cuts, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in the time left of a step, dense at its end, and weights; pieces between the cuts."""
    x, share = legendre(count)
    nodes = []
    weights = []
    for low, high in zip(cuts, cuts[1:], strict=False):
        length = (high - low)[..., None]
        nodes.append(low[..., None] + length * x**2)
        weights.append(2.0 * length * x * share)
    return np.concatenate(nodes, -1), np.concatenate(weights, -1)


def advance(state: Moments, s0, m0, exact: OneStep, step: OneStep, weights) -> Moments:
    off = step.factor - exact.factor
    lacking = step.kernel - exact.kernel
    mean = step.factor * state.mean + off * m0 + step.shift - exact.shift
    squares = step.factor**2 * state.variance + 2.0 * step.factor * off * state.with_exact
    squares += off**2 * s0 + np.sum(lacking**2 * weights, -1)
    cross = step.factor * exact.factor * state.with_exact + off * exact.factor * s0
    cross += np.sum(lacking * exact.kernel * weights, -1)
    return Moments(mean, squares, cross)


class Instances(NamedTuple):
    """Random targets, schedules, starts and score errors; leading axis over instances."""

    lam: np.ndarray
    mu: np.ndarray
    present: np.ndarray
    taus: np.ndarray
    start: Moments
    delta: np.ndarray
    """Of the score, (instances, steps, modes), and that of the second score of a step."""
    later: np.ndarray
    slope: np.ndarray


def draw_instances(seed: int, count: int = INSTANCES) -> Instances:
    """d = 1 .. 20, variances .02 .. 6, means up to 5 deviations, 3 .. 12 random steps, 3 starts."""
    rng = np.random.default_rng(seed)
    dims = rng.integers(1, MODES + 1, count)
    present = np.arange(MODES) < dims[:, None]
    lam = np.exp(rng.uniform(np.log(0.02), np.log(6.0), (count, MODES)))
    # absent modes copy the first, so that they change no extreme
    lam = np.where(present, lam, lam[:, :1])
    mu = rng.uniform(-5.0, 5.0, (count, 1)) * rng.uniform(-1, 1, (count, MODES)) * np.sqrt(lam)
    mu = np.where(present, mu, 0.0)
    numbers = rng.integers(3, STEPS + 1, count)
    used = np.arange(STEPS) < numbers[:, None]
    shares = rng.exponential(size=(count, STEPS)) ** rng.choice([0.3, 1.0, 2.0], (count, 1)) * used
    horizon = np.exp(rng.uniform(np.log(0.5), np.log(6.0), count))
    end = np.where(rng.random(count) < 0.5, 0.0, 0.05)
    passed = np.cumsum(shares / shares.sum(-1, keepdims=True), -1)
    taus = horizon[:, None] * (1.0 - np.minimum(passed, 1.0)) + end[:, None]
    taus = np.where(used, taus, end[:, None])
    taus[np.arange(count), numbers - 1] = end
    taus = np.concatenate([(horizon + end)[:, None], taus], -1)
    s0 = variance(taus[:, :1], lam)
    m0 = mu * np.exp(-taus[:, :1] / 2.0)
    kind = rng.integers(0, 3, (count, 1))
    prior = np.where(kind == 1, 1.0 - np.exp(-taus[:, :1]), 1.0)
    gap = np.where(kind == 0, 0.0, np.sqrt(prior) - np.sqrt(s0))
    shift = np.where(kind == 0, 0.0, -m0)
    mask = present.astype(float)
    start = Moments(shift * mask, gap**2 * mask, gap * np.sqrt(s0) * mask)
    size = rng.choice([0.0, 0.3, 3.0], (count, 1, 1))
    delta, later = size * rng.standard_normal((2, count, STEPS, MODES)) * mask[:, None]
    slope = rng.choice([0.0, 0.1, 0.5], (count, 1, 1)) * rng.uniform(-1, 1, (count, STEPS, MODES))
    return Instances(lam, mu, mask, taus, start, delta, later, slope)


class Truth(NamedTuple):
    error: np.ndarray
    sizes: np.ndarray
    """Score error in L2 along the chain, and under p_t; (instances, steps)."""
    under_marginal: np.ndarray


def exact_error(name: str, at: Instances, *, affine: bool) -> Truth:
    """The exact coupled L2 error at the end."""
    state = at.start
    sizes = []
    marginal = []
    lam = at.lam
    for k in range(at.taus.shape[1] - 1):
        tau = np.broadcast_to(at.taus[:, k, None], lam.shape)
        here = (tau, tau - at.taus[:, k + 1, None], lam, at.mu)
        delta = at.delta[:, k]
        slope = at.slope[:, k] if affine else np.zeros_like(lam)
        s0 = variance(tau, lam)
        m0 = at.mu * np.exp(-tau / 2.0)
        if name in ("rem", "rei"):
            later = at.later[:, k]
            larger = np.maximum(np.sum(delta**2, -1), np.sum(later**2, -1))
            sizes.append(np.sqrt(larger))
            marginal.append(np.sqrt(larger))
            state = averaged_midpoint(name, state, here, delta, later)
        else:
            on_chain = (m0 + state.mean, s0 + 2.0 * state.with_exact + state.variance)
            for found, (centre, size) in ((sizes, on_chain), (marginal, (m0, s0))):
                square = (delta - slope * centre) ** 2 + slope**2 * size
                found.append(np.sqrt(np.sum(square * at.present, -1)))
            nodes, weights = panels((np.zeros_like(tau), here[1]), 64)
            step = step_of(name, *here, nodes, delta, slope)
            state = advance(state, s0, m0, exact_step(*here, nodes), step, weights)
        state = Moments(*(part * at.present for part in state))
    return Truth(state.rms(), np.stack(sizes, -1), np.stack(marginal, -1))


def averaged_midpoint(name: str, state: Moments, here: Here, delta, later) -> Moments:
    """One randomised step, averaged over the midpoint."""
    tau, h, lam, mu = here
    s0 = variance(tau, lam)
    m0 = mu * np.exp(-tau / 2.0)
    mean = np.zeros_like(lam)
    square = np.zeros_like(lam)
    cross = np.zeros_like(lam)
    for u, weight in zip(*legendre(8), strict=True):
        nodes, weights = panels((np.zeros_like(h), h * (1.0 - u), h), 16)
        step = midpoint_step(name, *here, nodes, np.full_like(lam, u), delta, later)
        part = advance(state, s0, m0, exact_step(*here, nodes), step, weights)
        mean += weight * part.mean
        square += weight * (part.variance + part.mean**2)
        cross += weight * part.with_exact
    return Moments(mean, square - mean**2, cross)


def general(lam, mu, present) -> Assumptions:
    """What is known of a Gaussian by its constants alone."""
    dim = jnp.sum(present)
    square = jnp.sum(present * (mu**2 + lam))
    return Assumptions(
        jk.OU(),
        dim,
        square,
        convexity=1.0 / jnp.max(lam),
        smoothness=1.0 / jnp.min(lam),
        third_derivative=jnp.zeros(()),
    )


def as_float(value: object) -> float:
    """A constant that must be known."""
    assert value is not None
    return float(np.asarray(value))


def exact(lam, mu, present) -> Assumptions:
    return jk.bounds.assumptions(jk.Gaussian(mu, lam, present), jk.OU())


@functools.cache
def bounds_of(name: str, known: Callable) -> Callable:
    """One program for all instances."""

    def one(lam, mu, present, taus, start, sizes, lipschitz):
        schedule = jk.Schedule.from_squared(taus, jnp.ones_like(taus[1:]))
        options = {"score_error": sizes, "error_lipschitz": lipschitz, "initialization": start}
        bound = certified_bound(known(lam, mu, present), jk.OU(), name, schedule, **options)
        return bound.distances[-1]

    return jax.jit(jax.vmap(one))


def ratios(name: str, at: Instances, truth: Truth, known: Callable, sizes, lipschitz) -> np.ndarray:
    """Truth over bound, where the truth is not rounding."""
    arguments = (at.lam, at.mu, at.present, at.taus, at.start.rms(), sizes, lipschitz)
    bound = np.asarray(bounds_of(name, known)(*map(jnp.asarray, arguments)))
    assert np.all(np.isfinite(bound) | (bound == np.inf))
    assert np.all(truth.error <= bound * (1.0 + ROUNDING) + ROUNDING)
    return truth.error[truth.error > 1e-4] / bound[truth.error > 1e-4]


@pytest.mark.parametrize("known", [exact, pytest.param(general, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SDE)
def test_bounds_hold_on_random_gaussians(
    name: str, known: Callable, record_property: Callable
) -> None:
    """1000 targets, schedules and starts, constant score errors, known exactly or by m and L."""
    at = draw_instances(SDE.index(name))
    truth = exact_error(name, at, affine=False)
    found = ratios(name, at, truth, known, truth.sizes, np.zeros_like(truth.sizes))
    record_property("median, largest", (float(np.median(found)), float(found.max())))
    print(f"{name} {known.__name__}: median {np.median(found):.3f}, largest {found.max():.5f}")
    assert found.max() > 0.5


@pytest.mark.parametrize(
    "process", [jk.VP(), jk.CosineVP(t_max=0.99), jk.DiscreteVP.scaled_linear()]
)
@pytest.mark.parametrize("name", ["exponential_integrator", "rem"])
def test_bounds_are_of_noise_levels_alone(process: jk.AbstractProcess, name: str) -> None:
    """Of every variance-preserving process that of OU at the same levels; above the exact W2."""
    target = jk.Gaussian([1.0, 0.0, -0.5], [0.3, 1.0, 2.5])
    taus = np.array([2.0, 1.2, 0.5, 0.1, 0.02])
    options: dict[str, Any] = {"score_error": [0.1, 0.2, 0.0, 0.3], "initialization": "marginal"}
    expected = certified_bound(target, jk.OU(), name, jk.Schedule(taus, 1.0), **options)
    schedule = jk.Schedule(process.time_at_sigma(np.sqrt(np.expm1(taus))), 1.0)
    found = certified_bound(target, process, name, schedule, **options)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-6)
    assert float(found.value) == pytest.approx(float(expected.value), rel=1e-6)
    exact = certified_bound(target, process, name, schedule, initialization="marginal")
    run = jk.evaluate_schedule(target, process, name, schedule, initialization="marginal")
    assert 0.0 < float(run.w2) < float(exact.value)


def draw_extreme_instances(seed: int, count: int) -> Instances:
    """Variances of 1e-6 to 1e3, means up to 50 deviations, d = 1 or 20, errors that add up.

    Schedules have a first step over nearly the whole range, a last one such, or nearly equal times,
    and end at 0, 1e-10 or .05.
    """
    rng = np.random.default_rng(seed)
    present = np.arange(MODES) < rng.choice([1, MODES], (count, 1))
    lam = np.exp(rng.uniform(np.log(1e-6), np.log(1e3), (count, MODES)))
    lam = np.where(present, lam, lam[:, :1])
    mask = present.astype(float)
    mu = rng.choice([0.0, 1.0, 50.0], (count, 1)) * rng.normal(size=(count, MODES))
    mu *= np.sqrt(lam) * mask
    near = 10.0 ** rng.uniform(-6.0, -1.0, (count, 1)) * rng.random((count, STEPS - 1))
    pairs = np.repeat(rng.random((count, STEPS // 2)), 2, 1)[:, 1:]
    pairs[:, ::2] *= 1.0 - 1e-10
    inner = np.stack([near, 1.0 - near, pairs])[rng.integers(0, 3, count), np.arange(count)]
    ends = np.ones((count, 1))
    taus = np.concatenate([ends, -np.sort(-inner, -1), 0.0 * ends], -1)
    taus = np.exp(rng.uniform(np.log(0.01), np.log(12.0), (count, 1))) * taus
    taus += rng.choice([0.0, 1e-10, 0.05], (count, 1))
    s0 = variance(taus[:, :1], lam)
    gap = (1.0 - np.sqrt(s0)) * rng.integers(0, 2, (count, 1)) * mask
    shift = -mu * np.exp(-taus[:, :1] / 2.0) * (gap != 0)
    start = Moments(shift, gap**2, gap * np.sqrt(s0))
    size = rng.choice([0.0, 0.3, 30.0], (count, 1)) * np.abs(rng.normal(size=(count, STEPS)))
    # in one mode, with the sign of the start's error
    delta = np.zeros((count, STEPS, MODES))
    delta[..., 0] = size * np.where(shift[:, :1] < 0, -1.0, 1.0)
    return Instances(lam, mu, mask, taus, start, delta, delta, np.zeros_like(delta))


@pytest.mark.parametrize("known", [exact, pytest.param(general, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SDE)
def test_bounds_hold_for_extreme_data_schedules_and_errors(name: str, known: Callable) -> None:
    """Up to rounding of the size of the data. 1000 instances, some of which attain the bound."""
    at = draw_extreme_instances(50 + SDE.index(name), INSTANCES)
    truth = exact_error(name, at, affine=False)
    arguments = (at.lam, at.mu, at.present, at.taus, at.start.rms(), truth.sizes, 0 * truth.sizes)
    bound = np.asarray(bounds_of(name, known)(*map(jnp.asarray, arguments)))
    size = 1.0 + np.sqrt(np.sum(at.present * (at.mu**2 + at.lam), -1))
    assert np.all(np.isfinite(bound))
    assert np.all(truth.error <= bound * (1.0 + ROUNDING) + ROUNDING * size)
    large = truth.error > 1e-4 * size
    assert np.max(truth.error[large] / bound[large]) > 0.99


@pytest.mark.parametrize("name", SDE[:4])
def test_bounds_hold_for_affine_score_errors(name: str) -> None:
    """Errors delta - Delta x, along the chain, or under p_t with their Lipschitz constant."""
    at = draw_instances(100 + SDE.index(name))
    truth = exact_error(name, at, affine=True)
    lipschitz = np.max(np.abs(at.slope) * at.present[:, None], -1)
    along = ratios(name, at, truth, exact, truth.sizes, np.zeros_like(lipschitz))
    under = ratios(name, at, truth, exact, truth.under_marginal, lipschitz)
    print(
        f"{name}: along the chain {np.median(along):.3f}, {along.max():.5f}; "
        f"under p_t {np.median(under):.3f}, {under.max():.5f}"
    )
    assert under.max() <= along.max() + 1e-9


def strong_error(name: str, lam: float, count: int) -> float:
    one = np.array([[lam]])
    zero = np.zeros((1, count, 1))
    taus = np.linspace(3.0, 0.0, count + 1)[None]
    at = Instances(one, np.ones((1, 1)), np.ones((1, 1)), taus, AT_REST, zero, zero, zero)
    return float(exact_error(name, at, affine=False).error[0])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("euler_maruyama", (0.16811, 0.040236)),
        ("exponential_integrator", (0.20553, 0.046673)),
        ("second_order", (0.042655, 0.0037131)),
        ("rem", (0.16909, 0.031374)),
        ("rei", (0.22042, 0.038539)),
    ],
)
def test_the_oracle_has_the_known_strong_errors(name: str, values: tuple[float, float]) -> None:
    """lambda = .25, mu = 1, T = 3, from an independent computation."""
    for count, value in zip((12, 48), values, strict=True):
        assert strong_error(name, 0.25, count) == pytest.approx(value, rel=2e-4)


def test_the_exact_mean_attains_its_bound_in_one_mode() -> None:
    """W2 is not attained, but the coupled error is: nothing can be gained in the argument."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        lam = float(np.exp(rng.uniform(-3.0, 2.0)))
        taus = np.concatenate([[3.0], np.sort(rng.uniform(0.0, 3.0, 11))[::-1], [0.0]])
        zero = np.zeros((1, 12, 1))
        one = np.ones((1, 1))
        at = Instances(lam * one, 2.0 * one, one, taus[None], AT_REST, zero, zero, zero)
        truth = float(exact_error("exact_mean", at, affine=False).error[0])
        options = {"initialization": "marginal"}
        run = (jk.Gaussian(2.0, [lam]), jk.OU(), "exact_mean", jk.Schedule(taus, 1.0))
        assert float(certified_bound(*run, **options).value) == pytest.approx(truth, rel=1e-6)


def logistic(second_moment: float | None = None) -> Assumptions:
    known = Assumptions.of_logistic_regression(jk.OU(), FEATURES, LABELS, 1.0)
    if second_moment is None:
        return known
    return eqx.tree_at(lambda a: a.second_moment, known, np.asarray(second_moment))


@functools.partial(jax.jit, static_argnums=1)
def padded_bounds(known: Assumptions, name: str, rows: jax.Array) -> jax.Array:
    """Bounds of several lists of times; empty steps at their end add nothing."""

    def one(times):
        schedule = jk.Schedule.from_squared(times, jnp.ones_like(times[1:]))
        options = {"initialization": "marginal"}
        return certified_bound(known, jk.OU(), name, schedule, **options).value

    return jax.vmap(one)(rows)


def uniform_bounds(known: Assumptions, name: str, counts, horizon: float = 2.0) -> np.ndarray:
    """Bounds of equal steps from the horizon to 0."""
    rows = np.zeros((len(counts), max(counts) + 1))
    for row, count in zip(rows, counts, strict=True):
        row[: count + 1] = np.linspace(horizon, 0.0, count + 1)
    return np.asarray(padded_bounds(known, name, jnp.asarray(rows)))


@pytest.mark.parametrize(
    ("name", "value", "order"),
    [
        ("euler_maruyama", 0.1245, 1.00),
        ("exponential_integrator", 0.106, 1.00),
        ("exact_mean", 0.0820, 1.00),
        ("rem", 0.0577, 1.07),
        ("rei", 0.145, 1.12),
        ("second_order", 0.00567, 1.56),
        ("tweedie", 0.00392, 1.50),
    ],
)
def test_bounds_of_a_logistic_posterior(name: str, value: float, order: float) -> None:
    """T = 2, 24 steps, exact start, from an independent computation; all above strong errors."""
    known = logistic(SECOND_MOMENT)
    found = uniform_bounds(known, name, (24, 192, 384))
    assert found[0] == pytest.approx(value, rel=6e-3)
    assert np.log2(found[1] / found[2]) == pytest.approx(order, abs=0.01)
    measured = {
        "euler_maruyama": 0.0346,
        "exponential_integrator": 0.0590,
        "exact_mean": 0.0689,
        "rem": 0.0390,
        "rei": 0.0695,
        "second_order": 0.001035,
        "tweedie": 0.00084,
    }
    assert found[0] > measured[name]


def test_bounds_of_one_mode_have_known_values() -> None:
    """lambda = .25, mu = 1, T = 3, 12 steps; and lambda = 2.5, 48 steps, where m_0 < 1/2."""
    narrow = jk.bounds.assumptions(jk.Gaussian([1.0], [0.25]), jk.OU())
    wide = jk.bounds.assumptions(jk.Gaussian([1.0], [2.5]), jk.OU())
    values = {"euler_maruyama": 0.2700, "exponential_integrator": 0.2303, "exact_mean": 0.2158}
    for name, value in values.items():
        assert uniform_bounds(narrow, name, (12, 48), 3.0)[0] == pytest.approx(value, abs=6e-5)
    for name, value in {"euler_maruyama": 0.0834, "exponential_integrator": 0.0608}.items():
        assert uniform_bounds(wide, name, (12, 48), 3.0)[1] == pytest.approx(value, abs=6e-5)


def test_constants_of_the_logistic_posterior() -> None:
    known = logistic()
    assert as_float(known.convexity) == 1.0
    assert as_float(known.smoothness) == pytest.approx(1.553181196, rel=1e-9)
    assert as_float(known.third_derivative) == pytest.approx(0.780165, rel=1e-6)
    assert float(known.second_moment) > SECOND_MOMENT


def mixture_derivatives(x, lam, means, weights) -> tuple[np.ndarray, np.ndarray]:
    """Hessian of the log-density of an equal-covariance mixture, and its third derivative."""
    logits = -0.5 * np.sum((x - means) ** 2 / lam, -1) + np.log(weights)
    share = np.exp(logits - logits.max())
    share /= share.sum()
    scaled = means / lam
    centred = scaled - share @ scaled
    hessian = np.einsum("m,mi,mj->ij", share, centred, centred) - np.diag(1.0 / lam)
    return hessian, np.einsum("m,mi,mj,mk->ijk", share, centred, centred, centred)


def test_constants_hold_on_random_mixtures() -> None:
    """Curvature and third derivatives of 120 mixtures at random points and noise levels."""
    rng = np.random.default_rng(5)
    closest = np.zeros(3)

    @jax.jit
    def constants(known, w):
        return *curvature_interval(known, w, w, 0.0), third_derivative(known, w)

    for dim, count in [(1, 2), (2, 3), (3, 3)] * 40:
        lam = np.exp(rng.uniform(-1.0, 1.0, dim))
        means = rng.normal(size=(count, dim)) * rng.choice([0.3, 1.0, 3.0])
        weights = rng.dirichlet(np.ones(count))
        mixture = jk.GaussianMixture(weights, means, np.tile(lam, (count, 1)))
        known = jk.bounds.assumptions(mixture, jk.EDM())
        w = float(rng.choice([0.0, 0.3, 3.0]))
        low, high, third = (float(value) for value in constants(known, jnp.asarray(w)))
        x = means[rng.integers(count)] * rng.uniform(-1.0, 2.0) + np.sqrt(w) * rng.normal(size=dim)
        hessian, derivative = mixture_derivatives(x, lam + w, means, weights)
        ends = np.linalg.eigvalsh(-hessian)
        assert low - 1e-9 <= ends[0]
        assert ends[-1] <= high + 1e-9
        directions = rng.normal(size=(50, dim))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        size = np.max(np.linalg.norm(directions @ derivative.reshape(dim, -1), axis=-1))
        assert size <= third + 1e-9
        closest = np.maximum(closest, [ends[-1] / high, 0.0, size / third])
    assert closest[0] > 0.99
    assert closest[2] > 0.8


def test_third_derivatives_shrink_with_the_noise() -> None:
    """L_F(w) <= L_F(0) / (1 + m w)^3 on strongly log-concave mixtures, by exact derivatives."""
    rng = np.random.default_rng(6)
    for _ in range(30):
        lam = float(np.exp(rng.uniform(-0.5, 0.5)))
        gap = rng.uniform(0.1, 1.8) * np.sqrt(lam)
        means = np.array([[0.0], [gap]])
        weights = rng.dirichlet(np.ones(2))
        grid = np.linspace(-3.0, 3.0, 61)[:, None]
        at_0 = [mixture_derivatives(x, np.array([lam]), means, weights) for x in grid * 3.0]
        least = min(-h[0, 0] for h, _ in at_0)
        exact_gap = 1.0 / lam - gap**2 / (4.0 * lam**2)
        assert least >= exact_gap - 1e-9
        most = gap**3 / (6.0 * np.sqrt(3.0) * lam**3)
        known = Assumptions(
            jk.EDM(), 1, 1.0, convexity=exact_gap, smoothness=1.0 / lam, third_derivative=most
        )
        w = float(rng.uniform(0.1, 5.0))
        at_w = [mixture_derivatives(x, np.array([lam + w]), means, weights) for x in grid * 6.0]
        size = max(abs(t[0, 0, 0]) for _, t in at_w)
        assert size <= as_float(third_derivative(known, jnp.asarray(w))) + 1e-12


def ddim_error(levels, alpha2, lam, mu, size) -> np.ndarray:
    """The exact coupled error of DDIM in units of the signal, with errors of the denoised point."""
    state = Moments(np.zeros_like(lam), np.zeros_like(lam), np.zeros_like(lam))
    x, share = legendre(32)
    for k, half in enumerate(0.5 * (1.0 + alpha2)):
        u, end = levels[k], levels[k + 1]
        # dense at the end of the step on a logarithmic scale
        w = end * (u / end) ** x if end > 0 else u * x**6
        weights = share * (w * np.log(u / end) if end > 0 else 6.0 * u * x**5)
        alpha = np.sqrt(alpha2[k])
        keep = (end / u) ** half
        there = ((lam[:, None] + end) / (lam[:, None] + w)) ** half
        factor = ((lam + end) / (lam + u)) ** half
        exact = OneStep(factor, mu * (1.0 - factor), alpha * there)
        gain = lam / (lam + u)
        shift = (1.0 - keep) * (mu * (1.0 - gain) + size[k])
        kernel = alpha * (end / w) ** half * np.ones((len(lam), 1))
        step = OneStep(keep + (1.0 - keep) * gain, shift, kernel)
        state = advance(state, lam + u, mu, exact, step, weights)
    return state.rms()


class SpectrumCurve(eqx.Module):
    """The denoising error of a Gaussian."""

    lam: jax.Array

    def __call__(self, w):
        return jnp.sum(self.lam * w[..., None] / (self.lam + w[..., None]), -1)


class DDIMInstances(NamedTuple):
    """Random spectra, noise levels, stochasticities and errors of the denoised point."""

    dims: np.ndarray
    lam: np.ndarray
    mu: np.ndarray
    present: np.ndarray
    sigma: np.ndarray
    alpha2: np.ndarray
    size: np.ndarray
    """Of the denoised point's error."""
    truth: np.ndarray
    """The exact error in units of the signal."""


@functools.cache
def ddim_instances() -> DDIMInstances:
    """d = 1 .. 20, 8 random steps to sigma >= 0."""
    rng = np.random.default_rng(11)
    count = 1100
    dims = rng.integers(1, MODES + 1, count)
    steps = 8
    lam = np.exp(rng.uniform(-4.0, 2.0, (count, MODES)))
    lam = np.where(np.arange(MODES) < dims[:, None], lam, lam[:, :1])
    present = (np.arange(MODES) < dims[:, None]).astype(float)
    mu = rng.normal(size=(count, MODES)) * present
    logs = np.sort(rng.uniform(-4.0, 2.5, (count, steps + 1)), -1)[:, ::-1]
    sigma = np.exp(logs)
    sigma[rng.random(count) < 0.3, -1] = 0.0
    alpha2 = rng.choice([0.0, 1.0, 1.0, 1.0, 0.3, 4.0], (count, 1)) * np.ones((count, steps))
    alpha2[::5] = rng.uniform(0.0, 2.0, (len(alpha2[::5]), steps))
    error = rng.choice([0.0, 0.2], (count, 1, 1)) * rng.normal(size=(count, steps, MODES))
    error *= present[:, None]
    truth = np.array(
        [
            ddim_error(sigma[i] ** 2, alpha2[i], lam[i, :d], mu[i, :d], error[i, :, :d])
            for i, d in enumerate(dims)
        ]
    )
    size = np.linalg.norm(error, axis=-1)
    return DDIMInstances(dims, lam, mu, present, sigma, alpha2, size, truth)


@pytest.mark.parametrize("process", [jk.EDM(), jk.VP()])
def test_ddim_bounds_hold_for_any_stochasticity_and_from_the_denoising_error(process) -> None:
    """1000 spectra, schedules to sigma >= 0, alpha = 0 (the flow), 1 (ancestral) and others."""
    _, lam, mu, present, sigma, alpha2, size, truth = ddim_instances()
    times = np.array(process.time_at_sigma(sigma))
    signal = np.asarray(process.signal(times))
    eps = size / (signal[:, :-1] * sigma[:, :-1] ** 2)

    @functools.partial(jax.jit, static_argnums=5)
    def bounds(lam, mu, present, run, eps, curve):
        def one(lam, mu, present, times, alpha2, eps):
            known = jk.bounds.assumptions(jk.Gaussian(mu, lam, present), process)
            if curve:
                known = Assumptions(
                    process,
                    known.dim,
                    known.second_moment,
                    convexity=known.convexity,
                    denoising_error=SpectrumCurve(lam),
                )
            schedule = jk.Schedule.from_squared(times, alpha2)
            options = {"score_error": eps, "initialization": "marginal"}
            return certified_bound(known, process, "ddim", schedule, **options).distances[-1]

        times, alpha2 = run
        return jax.vmap(one)(lam, mu, present, times, alpha2, eps)

    exact = np.asarray(bounds(lam, mu, present, (times, alpha2), eps, False))
    truth = signal[:, -1] * truth
    assert np.all(truth <= exact * (1.0 + ROUNDING) + 1e-7)
    ratio = truth / exact
    print(
        f"ddim {type(process).__name__}: median {np.median(ratio):.3f}, largest {ratio.max():.5f}"
    )
    ancestral = np.all(alpha2 == 1.0, -1)
    assert ancestral.sum() > 400
    if type(process) is jk.EDM:
        rows = np.flatnonzero(ancestral)
        full = np.ones_like(present)
        curve = np.asarray(
            bounds(lam[rows], mu[rows], full[rows], (times[rows], alpha2[rows]), eps[rows], True)
        )
        same = np.asarray(
            bounds(lam[rows], mu[rows], full[rows], (times[rows], alpha2[rows]), eps[rows], False)
        )
        np.testing.assert_allclose(curve, same, rtol=1e-5)


def test_the_denoising_curve_is_smooth_and_increases() -> None:
    """Through random increasing values: between neighbours, and its slope has no jumps."""
    rng = np.random.default_rng(12)
    for _ in range(20):
        sigmas = np.exp(np.cumsum(rng.uniform(0.2, 1.0, 9)) - 4.0)
        errors = np.cumsum(rng.exponential(size=9) ** 3 * rng.choice([0.0, 1.0, 1.0], 9)) + 0.01
        curve = jk.bounds.DenoisingCurve(sigmas, errors)
        np.testing.assert_allclose(curve(sigmas**2), errors, rtol=1e-12)
        at = np.linspace(-10.0, 6.0, 2001)
        values = np.asarray(curve(np.exp(at)))
        assert np.all(np.diff(values) >= -1e-13 * errors[-1])
        part = np.clip(np.searchsorted(2.0 * np.log(sigmas), at), 1, 8)
        inside = (at > 2.0 * np.log(sigmas[0])) & (at < 2.0 * np.log(sigmas[-1]))
        assert np.all((values <= errors[part] * (1 + 1e-12))[inside])
        assert np.all((values >= errors[part - 1] * (1 - 1e-12))[inside])
        slope = jax.vmap(jax.grad(lambda at, curve=curve: curve(jnp.exp(at))))
        levels = 2.0 * np.log(sigmas)
        jumps = slope(jnp.asarray(levels + 1e-9)) - slope(jnp.asarray(levels - 1e-9))
        assert np.abs(jumps).max() < 1e-6 * errors[-1]
    assert float(jk.bounds.DenoisingCurve([1.0], [2.0])(jnp.array(0.25))) == 0.5
    few = jk.bounds.DenoisingCurve([0.5, 1.0], [1.0, 2.0])
    assert float(few(0.0)) < 1e-300
    assert np.isfinite(jax.grad(few)(0.0))


def test_what_a_denoising_curve_promises_between_its_levels() -> None:
    """The stated difference of a step, for exact curves that are known at 12 levels only.

    The integral int (1 - w_1 / w)^2 d(error), by 4000 nodes; curves of random spectra and, with the
    largest difference, steps that the levels do not show.
    """
    rng = np.random.default_rng(13)
    levels = np.exp(np.linspace(np.log(0.02), np.log(20.0), 12))
    closest = 0.0
    for i in range(200):
        lam = np.exp(rng.uniform(-4.0, 3.0, 6))
        centre, rise = np.exp(rng.uniform(-4.0, 3.0)), rng.uniform(0.5, 3.0)

        def exact(w, lam=lam, centre=centre, rise=rise, smooth=i % 2):
            if smooth:
                return np.sum(lam * w[..., None] / (lam + w[..., None]), -1)
            return 0.1 + rise / (1.0 + (centre / w) ** 40)

        errors = exact(levels**2)
        curve = jk.bounds.DenoisingCurve(levels, errors)
        w1, w0 = np.exp(np.sort(rng.uniform(2 * np.log(0.03), 2 * np.log(15.0), 2)))
        w = np.exp(np.linspace(np.log(w1), np.log(w0), 4001))
        kept = (1.0 - w1 / (0.5 * (w[1:] + w[:-1]))) ** 2
        found, true = (kept @ np.diff(np.asarray(fn(w))) for fn in (curve, exact))
        met = (levels[1:] ** 2 > w1) & (levels[:-1] ** 2 < w0)
        most = 2.0 * np.max(np.diff(errors)[met])
        assert abs(found - true) <= most * (1.0 + 1e-6) + 1e-6
        closest = max(closest, abs(found - true) / (most + 1e-9))
    assert closest > 0.2


def test_bounds_from_a_denoising_curve_have_no_corners() -> None:
    """The gradient in a time does not jump where that passes a level of the curve."""
    curve = jk.bounds.DenoisingCurve([0.05, 0.2, 0.5, 1.0, 3.0], [0.01, 0.1, 0.5, 0.6, 1.5])
    known = Assumptions(
        jk.EDM(), 2, 2.0, denoising_error=curve, denoiser_slope=lambda w: 1.0 / (1.0 + w)
    )

    @jax.jit
    @jax.value_and_grad
    def bounds(t):
        schedule = jk.Schedule.from_squared(jnp.stack([3.0, t, 0.05]), jnp.ones(2))
        divergence = jk.bounds.girsanov_bound(known, jk.EDM(), "ddim", schedule).value
        return divergence + certified_bound(known, jk.EDM(), "ddim", schedule).value

    for level in (0.2, 0.5, 1.0):
        below, above = bounds(level - 1e-7), bounds(level + 1e-7)
        assert np.isfinite(below[0])
        assert float(above[1]) == pytest.approx(float(below[1]), rel=1e-4)


def gaussian_kl(mean, variance, target_mean, target_variance) -> float:
    """KL(target || sampled) per mode, summed."""
    ratio = target_variance / variance
    return 0.5 * float(np.sum(ratio - 1.0 - np.log(ratio) + (target_mean - mean) ** 2 / variance))


def chain_moments(name: str, lam, mu, taus, delta, start) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the samples."""
    mean, variances = start
    for k, tau in enumerate(taus[:-1]):
        h = np.full_like(lam, tau - taus[k + 1])
        if name == "ddim":
            u = np.expm1(tau)
            end = np.expm1(taus[k + 1])
            a = np.exp(-tau / 2.0)
            after = np.exp(-taus[k + 1] / 2.0)
            gain = lam / (lam + u)
            keep = end / u
            factor = after / a * (keep + (1.0 - keep) * gain)
            shift = after * (1.0 - keep) * (mu * (1.0 - gain) + a * u * delta)
            noise = after**2 * end * (1.0 - keep)
        else:
            step = step_of(name, np.full_like(lam, tau), h, lam, mu, np.zeros((1,)), delta, 0.0)
            factor = step.factor
            shift = step.shift
            noise = np.expm1(h)
        mean = factor * mean + shift
        variances = factor**2 * variances + noise
    return mean, variances


@pytest.mark.parametrize("name", ["exact_mean", "exponential_integrator", "ddim"])
def test_divergence_bounds_hold(name: str) -> None:
    """In 1, 3 and 20 dimensions, against the exact KL between Gaussians."""
    rng = np.random.default_rng(8)
    found = []

    @jax.jit
    def bounds_of(lam, mu, present, times, eps):
        schedule = jk.Schedule.from_squared(times, jnp.ones_like(times[1:]))
        return [
            jk.bounds.girsanov_bound(
                known, jk.OU(), name, schedule, score_error=eps, initialization=start
            ).value
            for known in (exact(lam, mu, present), general(lam, mu, present))
            for start in ("marginal", "standard_normal")
        ]

    for _ in range(1000):
        dim = rng.choice([1, 3, MODES])
        present = (np.arange(MODES) < dim).astype(float)
        lam = np.exp(rng.uniform(-3.0, 1.5, MODES))
        lam = np.where(present, lam, lam[0])
        mu = present * rng.normal(size=MODES)
        last = 0.02 if name == "ddim" else rng.choice([0.0, 0.02])
        taus = np.concatenate([[3.0], np.sort(rng.uniform(0.05, 2.9, 6))[::-1], [last]])
        delta = present * rng.choice([0.0, 0.3]) * rng.normal(size=MODES)
        ends = (mu * np.exp(-1.5), variance(3.0, lam)), (np.zeros(MODES), np.ones(MODES))
        bounds = bounds_of(lam, mu, present, taus, np.linalg.norm(delta))
        data = (mu * np.exp(-last / 2.0), variance(last, lam))
        for start, prior in enumerate(ends):
            sampled = chain_moments(name, lam, mu, taus, delta, prior)
            truth = gaussian_kl(*(part[:dim] for part in (*sampled, *data)))
            for bound in map(float, bounds[start::2]):
                assert truth <= bound * (1.0 + 1e-9)
                found.append(truth / bound)
    print(f"KL {name}: median {np.median(found):.3f}, largest {max(found):.4f}")
    assert max(found) > 0.3


def test_the_divergence_of_one_mode_and_step_by_its_integral() -> None:
    """The path divergence of one step from its definition, by a double integral."""
    lam = 0.3
    known = jk.bounds.assumptions(jk.Gaussian(0.0, [lam]), jk.OU())
    schedule = jk.Schedule([1.0, 0.4], 1.0)
    options = {"initialization": "marginal"}
    bound = jk.bounds.girsanov_bound(known, jk.OU(), "exact_mean", schedule, **options)

    # E|s_v - e^(-v/2) s_0|^2 = int_0^v e^-(v - r) H(r)^2 dr
    def integrand(r: float, v: float) -> float:
        return np.exp(r - v) / variance(1.0 - r, lam) ** 2

    value = 0.5 * integrate.dblquad(integrand, 0.0, 0.6, 0.0, lambda v: v)[0]
    assert float(bound.value) == pytest.approx(value, rel=1e-8)


def distance_of_the_samples(name: str, mu: float, taus: np.ndarray) -> float:
    """W2 for lambda = 1 from N(0, 1 - e^-T) by mean and variance; a lower bound for a mixture."""
    mean = np.zeros(1)
    variance_now = np.full(1, -np.expm1(-taus[0]))
    for tau in taus[:-1]:
        h = np.full(1, 0.5)
        here = (np.full(1, tau), h, np.ones(1), np.full(1, mu), np.zeros((1, 1)))
        if name == "rem":
            u, weights = legendre(8)
            parts = [midpoint_step(name, *here, np.full(1, x), np.zeros(1), np.zeros(1)) for x in u]
            factor = np.array([part.factor for part in parts])[:, 0]
            moved = factor * mean + np.array([part.shift for part in parts])[:, 0]
            # the noise of 1 - h/2 after the midpoint and 1 before it
            squares = factor**2 * variance_now + h - h**2 * u + h**3 * u / 4.0 + moved**2
            mean = weights @ moved[:, None]
            variance_now = weights @ squares[:, None] - mean**2
            continue
        step = step_of(name, *here, np.zeros(1), np.zeros(1))
        mean = step.factor * mean + step.shift
        noise = h if name == "euler_maruyama" else -np.expm1(-h)
        variance_now = step.factor**2 * variance_now + noise
    return float(np.hypot(mean - mu, np.sqrt(variance_now) - 1.0)[0])


def test_published_theorems_are_violated_far_from_the_origin() -> None:
    """lambda = 1, T = 10, h = .5: the exact W2 exceeds what is stated; the certificate holds."""
    errors = {
        ("euler_maruyama", 100.0): (6.374, 3.540),
        ("euler_maruyama", 1000.0): (63.74, 3.58),
        ("rem", 1000.0): (22.3, 2.09),
        ("second_order", 1000.0): (10.39, 6.03),
    }
    for (name, mu), (known_distance, stated) in errors.items():
        known = jk.bounds.assumptions(jk.Gaussian(mu, [1.0]), jk.OU())
        taus = np.linspace(10.0, 0.0, 21)
        distance = distance_of_the_samples(name, mu, taus)
        assert distance == pytest.approx(known_distance, rel=5e-3)
        if name == "second_order":
            theorem = as_published.theorem_4(known, 10.0, 0.5)
        else:
            number = {"euler_maruyama": as_published.theorem_1, "rem": as_published.theorem_3}
            theorem = number[name](known, name, 10.0, 0.5)
        assert theorem.value == pytest.approx(stated, rel=3e-3)
        assert distance > theorem.value
        start = mu * np.exp(-5.0)
        bound = certified_bound(known, jk.OU(), name, jk.Schedule(taus, 1.0), initialization=start)
        assert distance <= float(bound.value)


def test_published_theorems_by_hand() -> None:
    """lambda = (.5, 1), mu = (1, -1), T = 10, h = .1, from an independent computation."""
    known = jk.bounds.assumptions(jk.Gaussian([1.0, -1.0], [0.5, 1.0]), jk.OU())
    first = as_published.theorem_1
    third = as_published.theorem_3
    assert first(known, "euler_maruyama", 10.0, 0.1).value == pytest.approx(3.13, abs=5e-3)
    assert first(known, "exponential_integrator", 10.0, 0.1).value == pytest.approx(2.68, abs=5e-3)
    assert third(known, "rem", 10.0, 0.1).value == pytest.approx(1.73, abs=5e-3)
    assert third(known, "rei", 10.0, 0.1).value == pytest.approx(1.55, abs=5e-3)
    # L = 3 and L_F = 0
    value = np.exp(0.25) * np.sqrt(2.0) * 3.0**1.5 / 0.5 * 0.1 + np.exp(-10.0) * np.sqrt(3.5)
    assert as_published.theorem_4(known, 10.0, 0.1).value == pytest.approx(value, rel=1e-12)
    scored = as_published.theorem_4(known, 10.0, 0.1, 0.3, 0.2, 0.1)
    added = 0.3 + 2.0 / 3.0 * np.sqrt(0.1 * 2.0) * 0.2 + 0.05 * 0.1
    assert scored.score_error == pytest.approx(np.exp(0.25) * added / 0.5, rel=1e-12)
    horizon = np.log(3.0 * np.sqrt(3.5) / 0.1)
    step = 0.1**2 / (9.0 * 7.0**2 * 2.0)
    found = as_published.corollary_2(known, "euler_maruyama", 0.1)
    assert found == np.ceil(horizon / step)
    step = 0.1 / (6.0 * np.sqrt(2.0) * 3.0**1.5 / 0.5)
    assert as_published.corollary_5(known, 0.1) == np.ceil(horizon / step)


def test_certified_numbers_of_steps() -> None:
    """The smallest that suffices, far below the published ones, and of the better order."""
    known = logistic(SECOND_MOMENT)
    known = eqx.tree_at(lambda a: a.process, known, jk.OU(t_max=2.0))
    counts = {}
    for name in ("euler_maruyama", "second_order"):
        for tolerance in (0.1, 0.05):
            counts[name, tolerance] = jk.bounds.certified_num_steps(
                known, jk.OU(t_max=2.0), name, tolerance
            )
    for (name, tolerance), count in counts.items():
        enough, lacking = uniform_bounds(logistic(SECOND_MOMENT), name, (count, count - 1))
        assert enough <= tolerance < lacking
    published = as_published.corollary_2(known, "euler_maruyama", 0.05)
    assert counts["euler_maruyama", 0.05] < published / 100.0
    growth = counts["euler_maruyama", 0.05] / counts["euler_maruyama", 0.1]
    assert growth == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", ["exponential_integrator", "exact_mean", "ddim"])
def test_numbers_of_steps_for_data_with_a_variance_of_0(name: str) -> None:
    """The score has no Lipschitz constant at the end; the smallest count is found all the same."""
    data = jk.Gaussian(0.0, [1.0, 0.0])
    process = jk.OU(t_max=4.0)
    bounds = {}
    for count in range(1, 9):
        schedule = jk.Schedule(jk.schedules.uniform(process, count, 0.0).times, 1.0)
        run = (data, process, name, schedule)
        bounds[count] = float(certified_bound(*run, initialization="marginal").value)
    tolerance = 1.001 * bounds[5]
    expected = min(count for count, bound in bounds.items() if bound <= tolerance)
    assert jk.bounds.certified_num_steps(data, process, name, tolerance) == expected


def test_parts_of_a_bound_are_infinite_where_it_is() -> None:
    """Not the sums over nodes of integrals that diverge; times before the last one have a bound."""
    bounded = Assumptions(jk.OU(), 2, radius=1.0)
    schedule = jk.Schedule([2.0, 1.0, 0.1, 0.0], 1.0)
    bound = certified_bound(bounded, jk.OU(), "exact_mean", schedule, initialization="marginal")
    assert np.isinf([bound.value, bound.distances[-1], bound.discretisation]).all()
    assert np.isfinite(bound.distances[:-1]).all()
    divergence = jk.bounds.girsanov_bound(bounded, jk.OU(), "exact_mean", schedule)
    assert np.isinf(divergence.discretisation).tolist() == [False, False, True]


def test_small_variances_that_differ_are_different() -> None:
    """The largest curvature is that of the mixture, not of one component."""
    weights = [0.5, 0.5]
    means = np.zeros((2, 2))
    for variances in ([[1.0, 2e-10], [1.0, 1e-10]], [[1.0, 0.0], [1.0, 1e-10]]):
        mixture = jk.GaussianMixture(weights, means, variances)
        known = jk.bounds.assumptions(mixture, jk.OU())
        assert known.smoothness is None
        turned = np.array([[0.6, -0.8], [0.8, 0.6]])
        matrices = turned @ (np.array(variances)[:, :, None] * turned.T)
        along = jk.GaussianMixture(weights, means, matrices)
        assert jk.bounds.assumptions(along, jk.OU()).smoothness is None
        equal = jk.GaussianMixture(weights, means, matrices[[1, 1]])
        assert jk.bounds.assumptions(equal, jk.OU()).smoothness is not None


def test_what_is_not_known_is_infinite_and_says_why() -> None:
    schedule = jk.Schedule([2.0, 1.0, 0.1, 0.0], 1.0)
    unequal = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.5, 1.0])
    bounded = Assumptions(jk.OU(), 2, radius=1.0)
    weak = Assumptions(jk.OU(), 2, 3.0, convexity=-0.5, smoothness=1.0)
    plain = Assumptions(jk.OU(), 2, 3.0, convexity=1.0, smoothness=2.0)
    for target, name, words in [
        (unequal, "exponential_integrator", "different covariances"),
        (bounded, "exponential_integrator", "t_min > 0"),
        (weak, "exact_mean", "1 \\+ m sigma\\^2 <= 0"),
        (plain, "tweedie", "third derivative"),
        (jk.Gaussian(0.0, [1.0, 0.0]), "rem", "Lipschitz"),
    ]:
        bound = certified_bound(target, jk.OU(), name, schedule)
        assert float(bound.value) == np.inf
        assert _matches(words, bound.reason), bound.reason
    infinite = certified_bound(
        plain, jk.OU(), "exact_mean", schedule, score_error=lambda t: 1.0 / (t - 1.0) ** 2
    )
    assert _matches("infinite at a time", infinite.reason)
    stopped = certified_bound(bounded, jk.OU(), "exact_mean", jk.Schedule([2.0, 1.0, 0.1], 1.0))
    assert np.isfinite(stopped.value)
    assert float(stopped.truncation) > 0
    last = jk.bounds.girsanov_bound(plain, jk.OU(), "ddim", schedule)
    assert float(last.value) == np.inf
    assert _matches("t_min > 0", last.reason)
    half = jk.bounds.assumptions(jk.Gaussian(0.0, [2.5]), jk.OU())
    for stated in (
        as_published.theorem_1(half, "euler_maruyama", 10.0, 0.1),
        as_published.theorem_3(half, "rei", 10.0, 0.1),
        as_published.theorem_4(half, 10.0, 0.1),
    ):
        assert stated.value == np.inf
        assert "1/2" in stated.reason
    assert as_published.corollary_2(half, "rem", 0.1) == np.inf
    assert as_published.corollary_5(half, 0.1) == np.inf
    assert np.isfinite(certified_bound(half, jk.OU(), "euler_maruyama", schedule).value)


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def test_assumptions_are_shown_with_their_status() -> None:
    shown = repr(jk.bounds.assumptions(jk.Gaussian(1.0, [0.25]), jk.OU()))
    assert re.search(r"L_0 +4 +exact", shown)
    # M_2 = (1 - lambda) / lambda^2
    assert re.search(r"M_2 +12 +exact", shown)
    unequal = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.5, 1.0])
    assert "different covariances" in repr(jk.bounds.assumptions(unequal, jk.VP()))
    # the same covariance in dense form
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    dense = np.tile(turn @ np.diag([1.0, 2.0]) @ turn.T, (2, 1, 1))
    means = np.array([[0.0, 0.0], [0.5, 0.0]])
    known = jk.bounds.assumptions(jk.GaussianMixture([0.5, 0.5], means, dense), jk.OU())
    gap = np.linalg.solve(dense[0], means[1])
    assert as_float(known.convexity) == pytest.approx(0.5 - gap @ gap / 4.0, rel=1e-12)
    first = Assumptions(jk.OU(), 2, radius=1.0).curvature(0.5)
    s2 = -np.expm1(-0.5)
    assert float(first[0]) == pytest.approx(1.0 / s2 - np.exp(-0.5) / s2**2, rel=1e-12)


def test_what_a_measured_network_shows_of_its_data() -> None:
    """The denoising error and the second moment; a divergence bound follows, no W2 bound does."""
    data = jk.Gaussian([1.0, 0.0], [0.5, 2.0])
    sigma = np.geomspace(60.0, 0.02, 100)
    error = np.sum([lam * sigma**2 / (lam + sigma**2) for lam in (0.5, 2.0)], 0)
    options = {"prediction_type": "x0", "averaged_over": 2, "target": data}
    losses = jk.Measurement.from_losses(jk.EDM(), sigma, error / 2.0, **options)
    known = jk.bounds.assumptions(losses, jk.EDM())
    assert float(known.second_moment) == 3.5
    assert float(known.dim) == 2.0
    assert re.search(r"L_F +unavailable +measured values bound no derivative", repr(known))
    assert re.search(r"denoising error +a function +bounded", repr(known))
    schedule = jk.Schedule(np.geomspace(50.0, 0.05, 9), 1.0)
    found, exact = (
        jk.bounds.girsanov_bound(of, jk.EDM(), "ddim", schedule) for of in (known, data)
    )
    assert float(jnp.sum(found.discretisation)) == pytest.approx(
        float(jnp.sum(exact.discretisation)), rel=0.01
    )
    bound = certified_bound(known, jk.EDM(), "ddim", schedule)
    assert float(bound.value) == np.inf
    assert "measured values" in bound.reason
    # a network's error is more than the exact one, and the Fisher information less
    known = Assumptions(jk.OU(), 2, 3.5, denoising_error=jk.bounds.DenoisingCurve.of(losses))
    constants: dict[str, Any] = {"convexity": 0.5, "smoothness": 2.0}
    convex = Assumptions(jk.OU(), 2, 3.5, **constants)
    both = Assumptions(jk.OU(), 2, 3.5, **constants, denoising_error=known.denoising_error)
    for name in ("exact_mean", "exponential_integrator"):
        run = (jk.OU(), name, jk.Schedule([2.0, 0.5, 0.1], 1.0))
        nothing = jk.bounds.girsanov_bound(known, *run)
        assert float(nothing.value) == np.inf
        assert "Fisher information from below" in nothing.reason
        bounds = [float(jk.bounds.girsanov_bound(of, *run).value) for of in (both, convex)]
        assert bounds[0] == bounds[1] < np.inf
    bare = jk.Measurement.from_losses(jk.EDM(), sigma, error, prediction_type="x0", averaged_over=1)
    with pytest.raises(ValueError, match="distribution = None"):
        jk.bounds.assumptions(bare, jk.EDM())


def test_a_function_of_time_is_a_score_error_that_moves_with_the_schedule() -> None:
    known = logistic(SECOND_MOMENT)
    schedule = jk.Schedule([2.0, 1.0, 0.5, 0.1], 1.0)
    run = (known, jk.OU(), "exact_mean", schedule)
    moving = certified_bound(*run, score_error=lambda t: 0.1 / (1.0 + t))
    fixed = certified_bound(*run, score_error=0.1 / (1.0 + np.array([2.0, 1.0, 0.5])))
    assert float(moving.value) == pytest.approx(float(fixed.value), rel=1e-14)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in SDE if name != "second_order"),
        "second_order",
        "ddim",
    ],
)
def test_bounds_are_differentiable_vectorised_and_the_sum_of_their_parts(name: str) -> None:
    """One compiled program over schedules: derivatives by finite differences, and the parts."""
    known = logistic(SECOND_MOMENT)

    def value(interior):
        times = jnp.concatenate([jnp.array([2.0]), interior, jnp.array([0.05])])
        schedule = jk.Schedule.from_squared(times, jnp.ones_like(times[1:]))
        bound = certified_bound(known, jk.OU(), name, schedule, score_error=0.05)
        return bound.value, bound

    h = 1e-5
    rows = np.array([1.3, 0.7, 0.3]) + h * np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    program = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True)))
    (values, bounds), slopes = program(jnp.asarray(rows))
    differences = (values[:3] - values[3:6]) / (2.0 * h)
    np.testing.assert_allclose(slopes[-1], differences, rtol=1e-6, atol=1e-9)
    parts = bounds.initialization + bounds.discretisation + bounds.score_error + bounds.truncation
    assert np.all(np.asarray(values) <= np.asarray(parts) * (1.0 + 1e-12))
    assert np.all(np.asarray(bounds.score_error) > 0)
    np.testing.assert_allclose(bounds.distances[:, -1] + bounds.truncation, values, rtol=1e-14)


@pytest.mark.slow
def test_the_objective_has_the_derivatives_of_the_bound() -> None:
    """Of order 1 and 2, in times and stochasticity, which is 0 in one step."""
    known = logistic(SECOND_MOMENT)

    def profile(t):
        return 0.1 / (1.0 + t)

    def schedule(z):
        times = jnp.concatenate([jnp.array([2.0]), z[:3], jnp.array([0.05])])
        return jk.Schedule.from_squared(times, z[3:])

    def bound(z):
        return certified_bound(known, jk.OU(), "ddim", schedule(z), score_error=profile).value

    objective = jk.bounds.CertifiedError(assumptions=known, score_error=profile)
    bound_objective = objective.bind(jk.Gaussian(0.0, [1.0, 1.0]), jk.OU(), jk.DDIM())
    z = jnp.array([1.3, 0.7, 0.3, 0.5, 0.0, 1.3, 0.2])
    value, slope, curvature = jax.jit(
        lambda z: dense_derivatives(lambda z: bound_objective(schedule(z)), z)
    )(z)
    h = 1e-6
    gradient = jax.jit(jax.vmap(jax.value_and_grad(bound)))
    values, slopes = gradient(z + h * np.concatenate([np.zeros((1, 7)), np.eye(7), -np.eye(7)]))
    assert float(value) == pytest.approx(float(values[0]), rel=1e-14)
    np.testing.assert_allclose(slope, slopes[0], rtol=1e-10)
    np.testing.assert_allclose(
        curvature, (slopes[1:8] - slopes[8:]) / (2.0 * h), rtol=2e-4, atol=1e-6
    )
    assert abs(float(slope[4])) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "alpha"), [("second_order", 1.0), ("heun", 0.0)])
def test_largest_values_have_two_derivatives(name: str, alpha: float) -> None:
    """Of a certificate as an objective, where what is largest lies at an end or between.

    Finite differences of values and of gradients at schedules of short and of long steps. The
    objective is not below the bound.
    """
    target = jk.Gaussian(0.3, [2.0, 0.3, 0.3, 1e-3])
    bound = jk.bounds.CertifiedError(scheme=name).bind(target, jk.VP(), jk.DDIM())

    def schedule(z):
        times = jnp.concatenate([jnp.array([1.0]), jnp.exp(z), jnp.array([1e-3])])
        return jk.Schedule.from_squared(times, jnp.full(4, alpha))

    def value(z):
        return jnp.log(bound(schedule(z)))

    program = jax.jit(jax.vmap(lambda z: dense_derivatives(value, z)))
    h = 1e-5
    around = h * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    for times in ([0.5, 0.1, 0.01], [0.95, 0.9, 0.85], [0.3, 0.004, 0.002]):
        values, slopes, curvatures = map(np.asarray, program(np.log(times) + around))
        gradient = (values[1:4] - values[4:]) / (2.0 * h)
        hessian = (slopes[1:4] - slopes[4:]) / (2.0 * h)
        np.testing.assert_allclose(slopes[0], gradient, rtol=1e-6, atol=1e-8)
        size = np.abs(hessian).max()
        np.testing.assert_allclose(curvatures[0], hessian, rtol=1e-5, atol=1e-6 * size)
        exact = certified_bound(target, jk.VP(), name, schedule(np.log(times))).value
        assert exact * (1.0 - 1e-12) <= np.exp(values[0]) <= 1.01 * exact


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "alpha"),
    [
        ("exponential_integrator", "w2", 1.0),
        ("exponential_integrator", "kl", 1.0),
    ],
)
def test_certificates_are_optimised(name: str, metric: str, alpha: float) -> None:
    """50 steps, better than every baseline."""
    known = logistic(SECOND_MOMENT)
    process = jk.OU(t_max=4.0)
    known = eqx.tree_at(lambda a: a.process, known, process)
    objective = jk.bounds.CertifiedError(metric, assumptions=known, score_error=0.01)
    options = {"t_min": 0.01, "stochasticity": alpha, "objective": objective, "progress": False}
    target = jk.Gaussian(0.0, [1.0, 0.8])
    result = jk.optimize_schedule(target, process, name, 50, **options)
    assert result.objective < min(result.baselines.values())


@pytest.mark.slow
def test_free_stochasticity_finds_what_a_fixed_one_does() -> None:
    """The certificate of DDIM has a kink at alpha = 1, which is where it is least."""
    target = jk.Gaussian(0.0, [1.0, 0.1])
    objective = jk.bounds.CertifiedError()
    options = {"t_min": 0.01, "objective": objective, "progress": False}
    free = jk.optimize_schedule(target, jk.VP(), "ddim", 4, stochasticity="optimize", **options)
    fixed = jk.optimize_schedule(target, jk.VP(), "ddim", 4, stochasticity=1.0, **options)
    assert free.converged
    assert fixed.converged
    assert free.objective <= fixed.objective
    bound = certified_bound(target, jk.VP(), "ddim", fixed.schedule).value
    # smooth, so that it lies above the bound
    assert bound <= fixed.objective <= 1.005 * bound


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certified_bound(GAUSSIAN, jk.EDM(), "rem", RUN), "variance-preserving"),
        (lambda: certified_bound(GAUSSIAN, jk.VP(), "euler_maruyama", RUN), "rate is constant"),
        (lambda: certified_bound(GAUSSIAN, jk.OU(), "rk4", RUN), "no certified bound"),
        (lambda: certified_bound(GAUSSIAN, jk.OU(), "rem", jk.Schedule([1.0, 0.5])), "must be 1"),
        (lambda: certified_bound(GAUSSIAN, jk.OU(), "rem", RUN, score_error=-1.0), "score_error"),
        (
            lambda: certified_bound(jk.bounds.assumptions(GAUSSIAN, jk.VP()), jk.OU(), "rem", RUN),
            "process",
        ),
        (lambda: jk.bounds.girsanov_bound(GAUSSIAN, jk.OU(), "rem", RUN), "divergence"),
        (lambda: Assumptions(jk.OU(), 2), "second_moment"),
        (lambda: Assumptions(jk.OU(), 2, 1.0, convexity=2.0, smoothness=1.0), "convexity"),
        (lambda: Assumptions.of_logistic_regression(jk.OU(), FEATURES, LABELS * 2, 1.0), "labels"),
        (lambda: jk.bounds.DenoisingCurve([1.0, 0.5], [1.0, 2.0]), "increasing"),
        (lambda: as_published.theorem_1(logistic(), "rem", 1.0, 0.1), "scheme"),
        (lambda: jk.bounds.CertifiedError("tv"), "metric"),
        (
            lambda: jk.optimize_schedule(
                GAUSSIAN,
                jk.FlowMatching(),
                "ddim",
                4,
                t_min=1e-3,
                objective=jk.bounds.CertifiedError(),
                progress=False,
            ),
            "t_max = 1 has no signal",
        ),
        (lambda: jk.bounds.CertifiedError("kl", error_lipschitz=1.0), "error_lipschitz"),
        (
            lambda: jk.bounds.certified_num_steps(GAUSSIAN, jk.OU(), "rem", 1e-9, max_steps=4),
            "max_steps",
        ),
    ],
)
def test_wrong_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


GAUSSIAN = jk.Gaussian(0.0, [1.0, 0.5])
RUN = jk.Schedule([1.0, 0.5, 0.1], 1.0)


def _normal(process: jk.AbstractProcess, variance: float, **smooth: float) -> jk.bounds.Assumptions:
    """What is stated of N(0, variance), without saying that it is one."""
    known: dict[str, Any] = {"convexity": 1.0 / variance, "third_derivative": 0.0, **smooth}
    return jk.bounds.Assumptions(process, 1, variance, **known)


@pytest.mark.parametrize(
    ("process", "first", "variance"),
    [
        (jk.VP(), 1.0, 1.0),
        (jk.EDM(), 80.0, 1e-6),
        (jk.EDM(), 80.0, 100.0),
        (jk.FlowMatching(t_max=0.999), 0.999, 1e-6),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_last_step_of_data_of_unknown_smoothness(
    process: jk.AbstractProcess, first: float, variance: float, alpha: float
) -> None:
    """Closed forms of the integrals of (1 + m w)^-2 and, without noise, w^(-1/2) / (1 + m w)."""
    schedule = jk.Schedule([first, 0.0], alpha)
    known = _normal(process, variance)
    run = (process, "ddim", schedule)
    found = jk.bounds.certified_bound(known, *run, initialization="marginal").value
    w = float(process.sigma(first)) ** 2
    noise = np.sqrt(variance * w / (variance + w))
    drift = np.sqrt(variance) * np.arctan(np.sqrt(w / variance))
    assert float(found) == pytest.approx(noise if alpha else drift, rel=1e-6)
    target = jk.Gaussian(0.0, [variance])
    exact = jk.evaluate_schedule(target, *run, initialization="marginal").w2
    assert float(found) >= float(exact)


@pytest.mark.parametrize("variance", [1.0, 1e-4, 3e-8, 1e-12])
@pytest.mark.parametrize(
    ("process", "first"), [(jk.EDM(), 80.0), (jk.FlowMatching(t_max=0.99999), 0.99999)]
)
@pytest.mark.parametrize("sampler", ["euler_flow", "heun"])
def test_a_single_step_of_the_flow_has_its_whole_error(
    process: jk.AbstractProcess, first: float, variance: float, sampler: str
) -> None:
    """All of it happens within a small part of the time; for normal data the bound is sharp."""
    schedule = jk.Schedule([first, 0.0])
    known = _normal(process, variance, smoothness=1.0 / variance)
    found = jk.bounds.certified_bound(known, process, sampler, schedule, initialization="marginal")
    target = jk.Gaussian(0.0, [variance])
    exact = jk.evaluate_schedule(
        target, process, "euler_maruyama", schedule, initialization="marginal"
    )
    assert (1.0 - 1e-8) <= float(found.value) / float(exact.w2) < 1.0 + 1e-4


@pytest.mark.parametrize("last", [1e-2, 1e-6, 8e-8])
def test_the_noise_of_a_very_long_step_is_integrated(last: float) -> None:
    """int (1 - w_1 / w)^2 (lambda / (lambda + w))^2 dw by SciPy's adaptive rule in log w."""
    variance = 1e-3
    schedule = jk.Schedule([80.0, last], 1.0)
    target = jk.Gaussian(0.0, [variance])
    found = jk.bounds.certified_bound(
        target, jk.EDM(), "ddim", schedule, initialization="marginal"
    ).value

    def integrand(v: float) -> float:
        w = np.exp(v)
        return w * (1.0 - last**2 / w) ** 2 * (variance / (variance + w)) ** 2

    ends = np.log([last**2, 80.0**2])
    square = integrate.quad(integrand, *ends, epsabs=0.0, epsrel=1e-11, limit=500)[0]
    truncation = np.sqrt(variance + last**2) - np.sqrt(variance)
    assert float(found) == pytest.approx(np.sqrt(square) + truncation, rel=1e-7)
