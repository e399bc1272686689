"""Certified bounds against the exact coupled error, computed in NumPy without the library.

For a Gaussian target the exact reverse process X and a sampler's chain Y are affine in x and share
their Brownian motion, so that the second moments of D = Y - X follow from one-dimensional integrals.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.integrate import dblquad

import jaxkernels as jk
from jaxkernels.bounds import Assumptions, as_published, certified_bound

SDE = [
    "euler_maruyama",
    "exponential_integrator",
    "mean_exact",
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


class Moments(NamedTuple):
    """Of the difference D of two coupled processes, and its covariance with the exact one."""

    mean: np.ndarray
    variance: np.ndarray
    with_exact: np.ndarray

    def rms(self) -> np.ndarray:
        return np.sqrt(np.sum(self.mean**2 + self.variance, -1))


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
    if name in ("exponential_integrator", "mean_exact", "tweedie"):
        c = 2.0 * np.expm1(h / 2.0) if name == "exponential_integrator" else 2.0 * np.sinh(h / 2.0)
        kernel = np.exp(left / 2.0) * one[..., None]
        if name == "tweedie":
            kernel = exact_step(tau, h, lam, mu, left).kernel
        return OneStep(np.exp(h / 2.0) + c * score[0], c * score[1], kernel)
    # x' = x + h f1(h L) gamma + h^2 f2(h L) M, the published form
    growth = 0.5 - 1.0 / s0
    z = h * growth
    f1 = np.where(np.abs(z) > 1e-4, np.expm1(z) / np.where(z == 0, 1.0, z), 1.0 + z / 2.0 + z**2 / 6.0)
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
    """The randomised midpoint at the fraction u of the step, with constant errors of both scores."""
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
    kernel = np.exp(left / 2.0) - np.where(before, (weight / su)[..., None] * np.exp(since / 2.0), 0)
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


def averaged_midpoint(name: str, state: Moments, here: tuple, delta, later) -> Moments:
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
    options = {"convexity": 1.0 / jnp.max(lam), "smoothness": 1.0 / jnp.min(lam)}
    return Assumptions(jk.OU(), dim, square, third_derivative=jnp.zeros(()), **options)


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


@pytest.mark.parametrize("name", SDE)
def test_bounds_hold_on_random_gaussians(name: str, record_property: Callable) -> None:
    """1000 targets, schedules and starts with constant score errors, known exactly or by m and L."""
    at = draw_instances(SDE.index(name))
    truth = exact_error(name, at, affine=False)
    zero = np.zeros_like(truth.sizes)
    for known in (exact, general):
        found = ratios(name, at, truth, known, truth.sizes, zero)
        record_property(f"{known.__name__}: median, largest", (np.median(found), found.max()))
        print(f"{name} {known.__name__}: median {np.median(found):.3f}, largest {found.max():.5f}")
        assert found.max() > 0.5


@pytest.mark.parametrize("name", SDE[:4])
def test_bounds_hold_for_affine_score_errors(name: str) -> None:
    """Errors delta - Delta x, measured along the chain, or under p_t with their Lipschitz constant."""
    at = draw_instances(100 + SDE.index(name))
    truth = exact_error(name, at, affine=True)
    lipschitz = np.max(np.abs(at.slope) * at.present[:, None], -1)
    along = ratios(name, at, truth, exact, truth.sizes, np.zeros_like(lipschitz))
    under = ratios(name, at, truth, exact, truth.under_marginal, lipschitz)
    print(f"{name}: along the chain {np.median(along):.3f}, {along.max():.5f}; "
          f"under p_t {np.median(under):.3f}, {under.max():.5f}")
    assert under.max() <= along.max() + 1e-9


def strong_error(name: str, lam: float, count: int) -> float:
    one = np.array([[lam]])
    start = Moments(*np.zeros((3, 1, 1)))
    zero = np.zeros((1, count, 1))
    taus = np.linspace(3.0, 0.0, count + 1)[None]
    at = Instances(one, np.ones((1, 1)), np.ones((1, 1)), taus, start, zero, zero, zero)
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


def test_the_mean_exact_integrator_attains_its_bound_in_one_mode() -> None:
    """W2 is not attained, but the coupled error is: nothing can be gained in the argument."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        lam = float(np.exp(rng.uniform(-3.0, 2.0)))
        taus = np.concatenate([[3.0], np.sort(rng.uniform(0.0, 3.0, 11))[::-1], [0.0]])
        zero = np.zeros((1, 12, 1))
        one = np.ones((1, 1))
        start = Moments(*np.zeros((3, 1, 1)))
        at = Instances(lam * one, 2.0 * one, one, taus[None], start, zero, zero, zero)
        truth = float(exact_error("mean_exact", at, affine=False).error[0])
        options = {"initialization": "marginal"}
        run = (jk.Gaussian(2.0, [lam]), jk.OU(), "mean_exact", jk.Schedule(taus, 1.0))
        assert float(certified_bound(*run, **options).value) == pytest.approx(truth, rel=1e-6)


FEATURES = np.array([[2.0 * np.cos(i), 2.0 * np.sin(2.0 * i)] for i in range(1, 9)])
LABELS = np.sign(np.cos(np.arange(1, 9)) + 0.5 * np.sin(np.arange(1, 9)))
# the posterior's moments by two-dimensional quadrature
SECOND_MOMENT = 0.300995684**2 + 0.004080033**2 + 0.792581309 + 0.757685333


def logistic(second_moment: float | None = None) -> Assumptions:
    known = Assumptions.of_logistic_regression(jk.OU(), FEATURES, LABELS, 1.0)
    if second_moment is None:
        return known
    return eqx.tree_at(lambda a: a.second_moment, known, np.asarray(second_moment))


def uniform_bound(known: Assumptions, name: str, count: int, horizon: float = 2.0) -> float:
    schedule = jk.Schedule(np.linspace(horizon, 0.0, count + 1), 1.0)
    options = {"initialization": "marginal"}
    return float(certified_bound(known, jk.OU(), name, schedule, **options).value)


@pytest.mark.parametrize(
    ("name", "value", "order"),
    [
        ("euler_maruyama", 0.1245, 1.00),
        ("exponential_integrator", 0.106, 1.00),
        ("mean_exact", 0.0820, 1.00),
        ("rem", 0.0577, 1.07),
        ("rei", 0.145, 1.12),
        ("second_order", 0.00567, 1.56),
        ("tweedie", 0.00392, 1.50),
    ],
)
def test_bounds_of_a_logistic_posterior(name: str, value: float, order: float) -> None:
    """T = 2, 24 steps, exact start, from an independent computation; all above measured errors."""
    known = logistic(SECOND_MOMENT)
    assert uniform_bound(known, name, 24) == pytest.approx(value, rel=6e-3)
    measured = {
        "euler_maruyama": 0.0346,
        "exponential_integrator": 0.0590,
        "mean_exact": 0.0689,
        "rem": 0.0390,
        "rei": 0.0695,
        "second_order": 0.001035,
        "tweedie": 0.00084,
    }
    assert value > measured[name]
    ratio = uniform_bound(known, name, 192) / uniform_bound(known, name, 384)
    assert np.log2(ratio) == pytest.approx(order, abs=0.01)


def test_bounds_of_one_mode_have_known_values() -> None:
    """lambda = .25, mu = 1, T = 3, 12 steps; and lambda = 2.5, 48 steps, where m_0 < 1/2."""
    narrow = jk.bounds.assumptions(jk.Gaussian([1.0], [0.25]), jk.OU())
    wide = jk.bounds.assumptions(jk.Gaussian([1.0], [2.5]), jk.OU())
    values = {"euler_maruyama": 0.2700, "exponential_integrator": 0.2303, "mean_exact": 0.2158}
    for name, value in values.items():
        assert uniform_bound(narrow, name, 12, 3.0) == pytest.approx(value, abs=6e-5)
    for name, value in {"euler_maruyama": 0.0834, "exponential_integrator": 0.0608}.items():
        assert uniform_bound(wide, name, 48, 3.0) == pytest.approx(value, abs=6e-5)


def test_constants_of_the_logistic_posterior() -> None:
    known = logistic()
    assert float(known.convexity) == 1.0
    assert float(known.smoothness) == pytest.approx(1.553181196, rel=1e-9)
    assert float(known.third_derivative) == pytest.approx(0.780165, rel=1e-6)
    assert SECOND_MOMENT < float(known.second_moment)


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
    """Curvature and third derivatives of 400 mixtures at random points and noise levels."""
    rng = np.random.default_rng(5)
    closest = np.zeros(3)
    for _ in range(400):
        dim = int(rng.integers(1, 4))
        count = int(rng.integers(2, 5))
        lam = np.exp(rng.uniform(-1.0, 1.0, dim))
        means = rng.normal(size=(count, dim)) * rng.choice([0.3, 1.0, 3.0])
        weights = rng.dirichlet(np.ones(count))
        mixture = jk.GaussianMixture(weights, means, np.tile(lam, (count, 1)))
        known = jk.bounds.assumptions(mixture, jk.EDM())
        w = float(rng.choice([0.0, 0.3, 3.0]))
        low, high = (float(end) for end in known.interval(jnp.asarray(w), jnp.asarray(w), 0.0))
        third = float(known.third(jnp.asarray(w)))
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
    """L_F(w) <= L_F(0) / (1 + m w)^3 on a strongly log-concave mixture, by its exact derivatives."""
    rng = np.random.default_rng(6)
    for _ in range(100):
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
        known = Assumptions(jk.EDM(), 1, 1.0, convexity=exact_gap, smoothness=1.0 / lam,
                            third_derivative=most)
        w = float(rng.uniform(0.1, 5.0))
        at_w = [mixture_derivatives(x, np.array([lam + w]), means, weights) for x in grid * 6.0]
        size = max(abs(t[0, 0, 0]) for _, t in at_w)
        assert size <= float(known.third(jnp.asarray(w))) + 1e-12


def ddim_error(levels, alpha2, lam, mu, size) -> np.ndarray:
    """The exact coupled error of DDIM in units of the signal, with errors of the denoised point."""
    state = Moments(*np.zeros((3, len(lam))))
    x, share = legendre(96)
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


@pytest.mark.parametrize("process", [jk.EDM(), jk.VP()])
def test_ddim_bounds_hold_for_any_stochasticity_and_from_the_denoising_error(process) -> None:
    """1000 random spectra, schedules to sigma >= 0, alpha = 0 (the flow), 1 (ancestral) and others."""
    rng = np.random.default_rng(11)
    count = 1000
    dims = rng.integers(1, MODES + 1, count)
    steps = 8
    lam = np.exp(rng.uniform(-4.0, 2.0, (count, MODES)))
    lam = np.where(np.arange(MODES) < dims[:, None], lam, lam[:, :1])
    present = (np.arange(MODES) < dims[:, None]).astype(float)
    mu = rng.normal(size=(count, MODES)) * present
    logs = np.sort(rng.uniform(-4.0, 2.5, (count, steps + 1)), -1)[:, ::-1]
    sigma = np.exp(logs)
    sigma[rng.random(count) < 0.3, -1] = 0.0
    alpha2 = rng.choice([0.0, 1.0, 0.3, 4.0], (count, 1)) * np.ones((count, steps))
    alpha2[::5] = rng.uniform(0.0, 2.0, (len(alpha2[::5]), steps))
    error = rng.choice([0.0, 0.2], (count, 1, 1)) * rng.normal(size=(count, steps, MODES))
    error *= present[:, None]
    times = np.array(process.time_at_sigma(sigma))
    signal = np.asarray(process.signal(times))
    eps = np.linalg.norm(error, axis=-1) / (signal[:, :-1] * sigma[:, :-1] ** 2)

    @functools.partial(jax.jit, static_argnums=5)
    def bounds(lam, mu, present, run, eps, curve):
        def one(lam, mu, present, times, alpha2, eps):
            known = jk.bounds.assumptions(jk.Gaussian(mu, lam, present), process)
            if curve:
                options = {"convexity": known.convexity, "denoising_error": SpectrumCurve(lam)}
                known = Assumptions(process, known.dim, known.second_moment, **options)
            schedule = jk.Schedule.from_squared(times, alpha2)
            options = {"score_error": eps, "initialization": "marginal"}
            return certified_bound(known, process, "ddim", schedule, **options).distances[-1]

        return jax.vmap(one)(lam, mu, present, *run, eps)

    exact = np.asarray(bounds(lam, mu, present, (times, alpha2), eps, False))
    truth = np.empty(count)
    for i in range(count):
        d = dims[i]
        rms = ddim_error(sigma[i] ** 2, alpha2[i], lam[i, :d], mu[i, :d], error[i, :, :d])
        truth[i] = signal[i, -1] * rms
    assert np.all(truth <= exact * (1.0 + ROUNDING) + 1e-7)
    ratio = truth / exact
    print(f"ddim {type(process).__name__}: median {np.median(ratio):.3f}, largest {ratio.max():.5f}")
    ancestral = np.all(alpha2 == 1.0, -1)
    assert ancestral.sum() > 150
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
