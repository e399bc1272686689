"""Certified bounds of the probability flow against its exact coupled error, computed in NumPy.

Of Gaussian data both the flow and the chain of Euler's or Heun's method are affine in one standard
normal z, so that their distance is a sum over modes. Of data in one dimension the flow is the
monotone map between the quantiles of p_T and p_t.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

import jaxkernels as jk
from jaxkernels.bounds import Assumptions, certified_bound

SCHEMES = ("euler_flow", "heun")
INSTANCES = 1000
STEPS = 8
MODES = 20
ROUNDING = 1e-6


class Numbers(NamedTuple):
    """A process at a time: a, s^2, f and g^2."""

    a: np.ndarray
    s2: np.ndarray
    f: np.ndarray
    g2: np.ndarray


def ou(t) -> Numbers:
    return Numbers(np.exp(-t / 2.0), -np.expm1(-t), np.full_like(t, -0.5), np.ones_like(t))


def edm(t) -> Numbers:
    return Numbers(np.ones_like(t), t**2, np.zeros_like(t), 2.0 * t)


def flow_matching(t) -> Numbers:
    return Numbers(1.0 - t, t**2, -1.0 / (1.0 - t), 2.0 * t / (1.0 - t))


def linear_vp(t) -> Numbers:
    """With beta from 0.1 to 20."""
    beta = 0.1 + 19.9 * t
    total = 0.1 * t + 9.95 * t**2
    return Numbers(np.exp(-total / 2.0), -np.expm1(-total), -beta / 2.0, beta)


PROCESSES = {
    "OU": (ou, jk.OU(), 4.0),
    "EDM": (edm, jk.EDM(), 20.0),
    "FlowMatching": (flow_matching, jk.FlowMatching(), 0.95),
    "VP": (linear_vp, jk.VP(), 1.0),
}


class Affine(NamedTuple):
    """shift + factor z, per mode."""

    shift: np.ndarray
    factor: np.ndarray

    def rms(self) -> np.ndarray:
        return np.sqrt(np.sum(self.shift**2 + self.factor**2, -1))


class Instances(NamedTuple):
    """Random Gaussians, times, starts and affine score errors delta - slope x of two scores."""

    lam: np.ndarray
    mu: np.ndarray
    present: np.ndarray
    times: np.ndarray
    start: Affine
    delta: np.ndarray
    slope: np.ndarray


def draw_instances(seed: int, first: float) -> Instances:
    """d = 1 .. 20, 8 random steps, 30 % of them to noise level 0, 3 starts, 3 kinds of errors."""
    rng = np.random.default_rng(seed)
    shape = (INSTANCES, MODES)
    present = np.arange(MODES) < rng.integers(1, MODES + 1, (INSTANCES, 1))
    lam = np.exp(rng.uniform(-4.0, 2.0, shape))
    lam = np.where(present, lam, lam[:, :1])
    mu = rng.normal(size=shape) * rng.choice([0.0, 1.0, 5.0], (INSTANCES, 1)) * present
    logs = rng.uniform(np.log(first) - 7.0, np.log(first), (INSTANCES, STEPS + 1))
    times = np.exp(-np.sort(-logs, -1))
    # half of the lists in equal steps, so that no step is as long as the whole
    equal = times[:, :1] + (times[:, -1:] - times[:, :1]) * np.linspace(0.0, 1.0, STEPS + 1)
    times = np.where(rng.random((INSTANCES, 1)) < 0.5, times, equal)
    times[rng.random(INSTANCES) < 0.3, -1] = 0.0
    off = rng.choice([0.0, 0.3], (INSTANCES, 1))
    start = Affine(*(off * part for part in rng.normal(size=(2, *shape)) * present))
    size = rng.choice([0.0, 0.3], (INSTANCES, 1, 1, 1))
    delta = size * rng.normal(size=(INSTANCES, STEPS, 2, MODES)) * present[:, None, None]
    steep = rng.choice([0.0, 0.2], (INSTANCES, 1, 1, 1))
    slope = steep * rng.normal(size=(INSTANCES, STEPS, 2, MODES)) * present[:, None, None]
    return Instances(lam, mu, present.astype(float), times, start, delta, slope)


class Truth(NamedTuple):
    """The error at the end; the score error along the chain and under p_t, (instances, steps)."""

    error: np.ndarray
    along: np.ndarray
    under: np.ndarray


def exact_error(name: str, process: Callable[[np.ndarray], Numbers], at: Instances) -> Truth:
    """The coupled L2 error of Euler's or Heun's chain."""

    def data(t) -> Affine:
        here = process(t)
        return Affine(here.a * at.mu, np.sqrt(here.a**2 * at.lam + here.s2))

    def evaluate(t, x: Affine, which: int, k: int) -> tuple[Affine, np.ndarray, np.ndarray]:
        """The velocity with an inexact score, and the score's error on the chain and under p_t."""
        here = process(t)
        exact = data(t)
        variance = exact.factor**2
        delta = at.delta[:, k, which]
        slope = at.slope[:, k, which]
        score = Affine(
            -(x.shift - exact.shift) / variance + delta - slope * x.shift,
            -x.factor / variance - slope * x.factor,
        )
        sizes = [Affine(delta - slope * y.shift, slope * y.factor).rms() for y in (x, exact)]
        velocity = Affine(*(here.f * y - 0.5 * here.g2 * s for y, s in zip(x, score, strict=True)))
        return velocity, sizes[0], sizes[1]

    x = data(at.times[:, :1])
    x = Affine(*(one + off for one, off in zip(x, at.start, strict=True)))
    along = np.zeros((INSTANCES, STEPS))
    under = np.zeros((INSTANCES, STEPS))
    for k in range(STEPS):
        t = at.times[:, k, None]
        u = at.times[:, k + 1, None]
        first, along[:, k], under[:, k] = evaluate(t, x, 0, k)
        euler = Affine(*(y - (t - u) * v for y, v in zip(x, first, strict=True)))
        if name == "euler_flow":
            x = euler
            continue
        noisy = u > 0
        second, chain, marginal = evaluate(np.where(noisy, u, t), euler, 1, k)
        along[:, k] = np.where(noisy[:, 0], np.maximum(along[:, k], chain), along[:, k])
        under[:, k] = np.where(noisy[:, 0], np.maximum(under[:, k], marginal), under[:, k])
        x = Affine(
            *(
                np.where(noisy, y - 0.5 * (t - u) * (v + w), e)
                for y, v, w, e in zip(x, first, second, euler, strict=True)
            )
        )
    end = data(at.times[:, -1:])
    gap = Affine(*((one - other) * at.present for one, other in zip(x, end, strict=True)))
    return Truth(gap.rms(), along, under)


@jax.jit
def bounds_of(process: jk.AbstractProcess, at: Instances, start, along, under, lipschitz):
    """Bounds of all instances: both schemes with exact constants and with m and L only."""

    def one(lam, mu, present, times, start, along, under, lipschitz):
        exact = jk.bounds.assumptions(jk.Gaussian(mu, lam, present), process)
        constants = Assumptions(
            process,
            jnp.sum(present),
            exact.second_moment,
            convexity=1.0 / jnp.max(lam),
            smoothness=1.0 / jnp.min(lam),
            third_derivative=jnp.zeros(()),
        )
        schedule = jk.Schedule.from_squared(times, jnp.zeros_like(times[1:]))

        def bound(known, name, sizes, constant):
            options = {"score_error": sizes, "error_lipschitz": constant, "initialization": start}
            return certified_bound(known, process, name, schedule, **options).distances[-1]

        constants_of_errors = jnp.stack([jnp.zeros_like(lipschitz), lipschitz])
        found = [
            jax.vmap(functools.partial(bound, known, name))(
                jnp.stack([along[i], under[i]]), constants_of_errors
            )
            for i, name in enumerate(SCHEMES)
            for known in (exact, constants)
        ]
        return jnp.array(found)

    rows = (at.lam, at.mu, at.present, at.times, start, along, under, lipschitz)
    return jax.vmap(one)(*rows)


def truths_and_bounds(
    oracle: Callable[[np.ndarray], Numbers], process: jk.AbstractProcess, at: Instances
) -> tuple[list[Truth], np.ndarray]:
    """What every scheme's error is, and `bounds_of` errors along the chain and under p_t."""
    truths = [exact_error(scheme, oracle, at) for scheme in SCHEMES]
    along, under = (
        np.stack([getattr(truth, field) for truth in truths], 1) for field in ("along", "under")
    )
    lipschitz = np.abs(at.slope).max((2, 3))
    arguments = jax.tree.map(jnp.asarray, (at, at.start.rms(), along, under, lipschitz))
    return truths, np.asarray(bounds_of(process, *arguments))


@pytest.mark.parametrize(
    "name",
    ["OU", *(pytest.param(n, marks=pytest.mark.slow) for n in ("EDM", "FlowMatching", "VP"))],
)
def test_flow_bounds_hold_on_random_gaussians(name: str, record_property: Callable) -> None:
    """1000 targets, schedules and starts, with affine errors, along the chain and under p_t."""
    oracle, process, first = PROCESSES[name]
    at = draw_instances(list(PROCESSES).index(name), first)
    truths, found = truths_and_bounds(oracle, process, at)
    for i, scheme in enumerate(SCHEMES):
        truth = truths[i].error[:, None, None]
        bound = found[:, 2 * i : 2 * i + 2]
        assert np.all(np.isfinite(bound))
        assert np.all(truth <= bound * (1.0 + ROUNDING) + ROUNDING)
        ratio = (truth / bound)[truths[i].error > 1e-4]
        shown = {
            "exact constants": ratio[:, 0, 0],
            "m and L": ratio[:, 1, 0],
            "error under p_t": ratio[:, 0, 1],
        }
        for label, ratios in shown.items():
            print(
                f"{scheme} {name}, {label}: median {np.median(ratios):.3f}, "
                f"largest {ratios.max():.5f}"
            )
            record_property(f"{scheme} {label}", (float(np.median(ratios)), float(ratios.max())))
        assert ratio[:, 0, 0].max() > 0.9


def test_flow_bounds_hold_for_extreme_steps_and_variances() -> None:
    """A first step over nearly all noise levels, nearly equal times, variances of 1e-5 to 1e3.

    What a long step adds then happens in a small part of the range of log(sigma^2 + least variance)
    because the process changes there, or of the range of times because the data do.
    """
    oracle, process, first = PROCESSES["VP"]
    at = draw_instances(99, first)
    rng = np.random.default_rng(3)
    lam = np.exp(rng.uniform(np.log(1e-5), np.log(1e3), at.lam.shape))
    lam = np.where(at.present > 0, lam, lam[:, :1])
    times = at.times.copy()
    rows = rng.random(INSTANCES) < 0.3
    times[rows, 3] = times[rows, 2] * (1.0 - 1e-10)
    times[rng.random(INSTANCES) < 0.3, 1:] *= 1e-4
    mu = at.mu * rng.choice([0.0, 1.0, 30.0], (INSTANCES, 1))
    at = at._replace(lam=lam, times=times, mu=mu)
    size = np.sqrt(np.sum(at.present * (mu**2 + lam), -1))[:, None, None]
    truths, found = truths_and_bounds(oracle, process, at)
    for i, truth in enumerate(truths):
        bound = found[:, 2 * i : 2 * i + 2]
        assert np.all(np.isfinite(bound))
        assert np.all(
            truth.error[:, None, None] <= bound * (1.0 + ROUNDING) + ROUNDING * (1 + size)
        )


class Line(NamedTuple):
    """Mixtures of two normal distributions of variance lam, one row for each."""

    lam: np.ndarray
    means: np.ndarray
    weight: np.ndarray
    """Of the first component."""

    def parts(self, here: Numbers) -> tuple[np.ndarray, np.ndarray]:
        """Means and variance of the components at a time."""
        return here.a[:, None] * self.means, here.a**2 * self.lam + here.s2

    def distribution(self, x: np.ndarray, here: Numbers) -> np.ndarray:
        means, variance = self.parts(here)
        z = (x - means[..., None].swapaxes(0, 1)) / np.sqrt(variance)[:, None]
        w = self.weight[:, None]
        return w * ndtr(z[0]) + (1.0 - w) * ndtr(z[1])

    def quantiles(self, share: np.ndarray, here: Numbers) -> np.ndarray:
        """By bisection."""
        means, variance = self.parts(here)
        edge = 10.0 * np.sqrt(variance)
        low = np.broadcast_to((means.min(1) - edge)[:, None], (len(edge), share.size))
        high = np.broadcast_to((means.max(1) + edge)[:, None], low.shape)
        for _ in range(50):
            middle = 0.5 * (low + high)
            below = self.distribution(middle, here) < share
            low = np.where(below, middle, low)
            high = np.where(below, high, middle)
        return 0.5 * (low + high)

    def score(self, x: np.ndarray, here: Numbers) -> np.ndarray:
        means, variance = self.parts(here)
        v = (means[..., None].swapaxes(0, 1) - x) / variance[:, None]
        z = -0.5 * v**2 * variance[:, None]
        first = 1.0 / (1.0 + (1.0 / self.weight[:, None] - 1.0) * np.exp(z[1] - z[0]))
        return first * v[0] + (1.0 - first) * v[1]


def test_flow_bounds_hold_on_mixtures(record_property: Callable) -> None:
    """1000 log-concave and other mixtures in one dimension, by m, L and L_F only."""
    rng = np.random.default_rng(4)
    lam = np.exp(rng.uniform(-1.5, 1.0, INSTANCES))
    gap = rng.uniform(0.2, 2.5, INSTANCES) * np.sqrt(lam)
    weight = rng.uniform(0.1, 0.9, INSTANCES)
    centre = rng.choice([0.0, 1.0], INSTANCES) * rng.normal(size=INSTANCES)
    means = centre[:, None] + np.stack([-(1.0 - weight) * gap, weight * gap], 1)
    line = Line(lam, means, weight)
    # m = 1/lam - D^2/4 may be negative: 1 + m w > 0 needs a short time then
    convexity = 1.0 / lam - gap**2 / (4.0 * lam**2)
    longest = np.where(convexity < 0, 0.9 / np.maximum(-convexity, 1e-9), np.expm1(3.0))
    first = np.log1p(np.minimum(longest, np.expm1(3.0)))
    shares = np.sort(rng.uniform(0.0, 1.0, (INSTANCES, STEPS)), -1)[:, ::-1]
    times = first[:, None] * np.concatenate([np.ones((INSTANCES, 1)), shares], 1)
    times[rng.random(INSTANCES) < 0.3, -1] = 0.0
    z = np.linspace(-5.0, 5.0, 101)
    weights = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    start = line.quantiles(ndtr(z), ou(times[:, 0]))
    end = line.quantiles(ndtr(z), ou(times[:, -1]))
    errors = {name: np.zeros(INSTANCES) for name in SCHEMES}
    for name in SCHEMES:
        x = start
        for k in range(STEPS):
            t = times[:, k]
            u = times[:, k + 1]
            dt = (t - u)[:, None]
            first_velocity = -0.5 * (x + line.score(x, ou(t)))
            euler = x - dt * first_velocity
            second = -0.5 * (euler + line.score(euler, ou(u)))
            heun = x - 0.5 * dt * (first_velocity + second)
            x = np.where((u > 0)[:, None], heun, euler) if name == "heun" else euler
        errors[name] = np.sqrt((x - end) ** 2 @ weights)
    third = gap**3 / (6.0 * np.sqrt(3.0) * lam**3)
    moment = lam + np.sum(means**2 * np.stack([weight, 1.0 - weight], 1), 1)

    @jax.jit
    @jax.vmap
    def bounds(times, moment, m, smooth, third):
        schedule = jk.Schedule.from_squared(times, jnp.zeros_like(times[1:]))
        constants = {"convexity": m, "smoothness": smooth, "third_derivative": third}
        known = Assumptions(jk.OU(), 1, moment, **constants)
        options = {"initialization": "marginal"}
        return jnp.array(
            [certified_bound(known, jk.OU(), n, schedule, **options).distances[-1] for n in SCHEMES]
        )

    found = np.asarray(bounds(*map(jnp.asarray, (times, moment, convexity, 1.0 / lam, third))))
    assert (convexity < 0).sum() > 100
    for i, name in enumerate(SCHEMES):
        assert np.all(np.isfinite(found[:, i]))
        # the quantiles leave out 1e-6 of the probability
        assert np.all(errors[name] <= found[:, i] * (1.0 + 1e-4) + 1e-7)
        ratio = errors[name] / found[:, i]
        record_property(name, (float(np.median(ratio)), float(ratio.max())))
        print(f"{name} mixtures: median {np.median(ratio):.3f}, largest {ratio.max():.3f}")
        assert ratio.max() > 0.2


def uniform_bounds(known: Assumptions, name: str, counts: tuple[int, ...]) -> np.ndarray:
    """Bounds of equal steps of OU from 3 to 0.05, with an exact start."""
    rows = np.full((len(counts), max(counts) + 1), 0.05)
    for row, count in zip(rows, counts, strict=True):
        row[: count + 1] = np.linspace(3.0, 0.05, count + 1)

    def one(times):
        schedule = jk.Schedule.from_squared(times, jnp.zeros_like(times[1:]))
        options = {"initialization": "marginal"}
        return certified_bound(known, jk.OU(), name, schedule, **options).distances[-1]

    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(rows)))


@pytest.mark.parametrize(("name", "order", "general_order"), [("euler_flow", 1, 1), ("heun", 2, 1)])
def test_order_and_equality_of_flow_bounds(name: str, order: int, general_order: int) -> None:
    """In one centred mode the errors of all steps add up: the bound is the error itself."""
    known = jk.bounds.assumptions(jk.Gaussian(0.0, [0.25]), jk.OU())
    counts = (12, 96, 192)
    found = uniform_bounds(known, name, counts)
    truth = []
    for count in counts:
        times = np.linspace(3.0, 0.05, count + 1)
        x = float(np.sqrt(1.0 - 0.75 * np.exp(-3.0)))
        for t, u in zip(times[:-1], times[1:], strict=True):
            slopes = [-0.5 + 0.5 / (1.0 - 0.75 * np.exp(-r)) for r in (t, u)]
            euler = 1.0 - (t - u) * slopes[0]
            factor = 1.0 - (t - u) / 2.0 * (slopes[0] + slopes[1] * euler)
            x *= euler if name == "euler_flow" else factor
        truth.append(abs(x - np.sqrt(1.0 - 0.75 * np.exp(-0.05))))
    np.testing.assert_allclose(found, truth, rtol=1e-9)
    assert np.log2(found[1] / found[2]) == pytest.approx(order, abs=0.05)
    loose = Assumptions(jk.OU(), 2, 3.0, convexity=1.0, smoothness=1.5, third_derivative=0.5)
    found = uniform_bounds(loose, name, counts)
    assert np.log2(found[1] / found[2]) == pytest.approx(general_order, abs=0.05)


def test_derivatives_of_flow_bounds() -> None:
    """By finite differences, and the value as at most the sum of its parts."""
    known = Assumptions(jk.OU(), 2, 3.0, convexity=1.0, smoothness=1.5, third_derivative=0.5)

    def value(interior):
        times = jnp.concatenate([jnp.array([2.0]), interior, jnp.array([0.05, 0.0])])
        schedule = jk.Schedule.from_squared(times, jnp.zeros_like(times[1:]))
        bound = certified_bound(known, jk.OU(), "heun", schedule, score_error=0.05)
        return bound.value, bound

    h = 1e-5
    rows = np.array([1.3, 0.7, 0.3]) + h * np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    program = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True)))
    (values, bounds), slopes = program(jnp.asarray(rows))
    differences = (values[:3] - values[3:6]) / (2.0 * h)
    np.testing.assert_allclose(slopes[-1], differences, rtol=1e-6, atol=1e-9)
    parts = bounds.initialization + bounds.discretisation + bounds.score_error + bounds.truncation
    assert np.all(np.asarray(values) <= np.asarray(parts) * (1.0 + 1e-12))


def test_vacuous_flow_bounds_say_why() -> None:
    schedule = jk.Schedule([2.0, 1.0, 0.1, 0.0])
    plain = Assumptions(jk.OU(), 2, 3.0, convexity=1.0, smoothness=2.0)
    rough = Assumptions(jk.OU(), 2, 3.0, convexity=1.0, third_derivative=1.0)
    for known, name, words in (
        (plain, "euler_flow", "third derivative"),
        (rough, "heun", "t_min > 0"),
    ):
        bound = certified_bound(known, jk.OU(), name, schedule)
        assert float(bound.value) == np.inf
        assert words in bound.reason
    # Gaussian data without variance in some direction end at noise level 0
    flat = certified_bound(jk.Gaussian(0.0, [1.0, 0.0]), jk.EDM(), "heun", schedule)
    assert np.isfinite(flat.value)
    with pytest.raises(ValueError, match="without noise it is 'euler_flow'"):
        certified_bound(plain, jk.OU(), "euler_maruyama", schedule)
    with pytest.raises(ValueError, match="must be 0"):
        certified_bound(plain, jk.OU(), "heun", jk.Schedule([1.0, 0.5], 1.0))
    with pytest.raises(ValueError, match="continuous in time"):
        certified_bound(jk.Gaussian(0.0, [1.0]), jk.DiscreteVP.scaled_linear(), "heun", schedule)
    with pytest.raises(ValueError, match="final"):
        certified_bound(plain, jk.OU(), jk.Heun(final="full"), schedule)
    with pytest.raises(ValueError, match="must be 0"):
        jk.bounds.CertifiedError().check(jk.Heun(), deterministic=False, fixed_end=True)
    jk.bounds.CertifiedError().check(jk.Heun(), deterministic=True, fixed_end=True)
