"""Samplers of the reverse SDE against NumPy: one-step maps, published tables, particles, orders.

The oracles are written here from the papers' formulas, in the time tau in which the reverse SDE
has unit diffusion, dX = (r X + score) dtau + dW: r = 1/2 for variance-preserving processes, and
r = 0 on X = x/a for all others. For a mode N(mu, lam) the score of X is -(X - m) / S.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_distances import w2_squared

import jaxkernels as jk
from benchmarks.discretisation import coupled_paths
from jaxkernels.recurrence import NamedInitialization, Run
from jaxkernels.samplers import SAMPLERS, as_sampler

NAMES = [name for name, kind in SAMPLERS.items() if kind.reverse_sde_only]
RANDOMISED = [name for name in NAMES if SAMPLERS[name].randomised]
NODES, WEIGHTS = (0.5 * a for a in np.polynomial.legendre.leggauss(24))
NODES = NODES + 0.5

Row = np.ndarray


# --- one step, by hand ----------------------------------------------------------------------------


def _exp_ratio(z: Row, order: int) -> Row:
    """(e^z - 1) / z, or (e^z - 1 - z) / z^2, also at z = 0."""
    z = np.asarray(z, float)
    small = np.abs(z) < 0.3
    y = np.where(small, z, 0.0)
    series = sum(y**k / np.prod(np.arange(1.0, k + order + 1)) for k in range(20))
    y = np.where(small, 1.0, z)
    direct = np.expm1(y) / y if order == 1 else (np.expm1(y) - y) / y**2
    return np.where(small, series, direct)


class Marginal(NamedTuple):
    """Mean and variance of X at tau, for modes N(mu, lam)."""

    rate: float
    mu: Row
    lam: Row

    def at(self, tau: float | Row) -> tuple[Row, Row]:
        if self.rate == 0.0:
            return self.mu, self.lam + tau
        return self.mu * np.exp(-tau / 2), 1.0 + (self.lam - 1.0) * np.exp(-tau)


def by_hand(
    name: str, marginal: Marginal, tau: float, h: float, uniform: float = 0.5
) -> tuple[Row, Row, Row]:
    """A, b, Q of X' = A X + b + N(0, Q) for one step from tau to tau - h."""
    r = marginal.rate
    m0, s0 = marginal.at(tau)
    m1, s1 = marginal.at(tau - h)
    growth = np.exp(r * h)

    def weight(v: float) -> float:
        return np.expm1(r * v) / r if r else v

    def variance(v: float) -> float:
        return np.expm1(2.0 * r * v) / (2.0 * r) if r else v

    if name == "rem":
        mu_, su_ = marginal.at(tau - h * uniform)
        slope = r - 1.0 / su_
        p = 1.0 + h * uniform * (r - 1.0 / s0)
        b = h * mu_ / su_ + h**2 * uniform * slope * m0 / s0
        return 1.0 + h * slope * p, b, h + 2 * h**2 * uniform * slope + h**3 * uniform * slope**2
    if name == "rei":
        mu_, su_ = marginal.at(tau - h * uniform)
        k = h * np.exp(r * (1.0 - uniform) * h) / su_
        e = weight(h * uniform)
        p = np.exp(r * h * uniform) - e / s0
        first = variance(h * uniform)
        both = np.exp(r * h * (1.0 - uniform)) * first
        return growth - k * p, k * (mu_ - e * m0 / s0), variance(h) + k**2 * first - 2.0 * k * both
    if name in ("second_order", "second_order1"):
        z = h * (r - 1.0 / s0)
        if name == "second_order":
            curved, injected = _exp_ratio(z, 2), h * _exp_ratio(2.0 * z, 1)
        else:
            curved, injected = 0.5 + z / 6.0, h * (1.0 + z + z**2 / 3.0)
        return 1.0 + h * (r - 1.0 / s0) + (r * h) ** 2 * curved, h * m0 / s0, injected
    if name == "matched_noise":
        k = weight(h)
        factor = growth - k / s0
        # no noise makes up for a drift that leaves too much variance, as after a very long step
        return factor, k * m0 / s0, np.maximum(s1 - factor**2 * s0, 0.0)
    # the exact conditional mean, e^(r h) X + 2 sinh(h/2) score for r = 1/2
    frozen = 2.0 * np.sinh(h / 2.0) if r else h
    excess = -(-np.expm1(-h) if r else h) / s0
    shape = {
        "exact_mean": 1.0 + 0.0 * excess,
        "tweedie": 1.0 + excess,
        "tweedie1": (1.0 + excess / 2.0) ** 2,
        "tweedie2": (1.0 + excess / 2.0 - excess**2 / 8.0) ** 2,
    }[name]
    del m1, s1
    return growth - frozen / s0, frozen * m0 / s0, variance(h) * shape


PROCESSES = {
    "ou": (jk.OU(t_max=3.0), [3.0, 2.1, 0.9, np.log(1.5), 0.0]),
    "vp": (jk.VP(), [0.9, 0.6, 0.35, 0.12, 0.01]),
    "cosine": (jk.CosineVP(), [0.95, 0.7, 0.3, 0.1, 0.0]),
    "edm": (jk.EDM(20.0), [18.0, 6.0, 2.0, 0.5, 0.0]),
    "ve": (jk.VE(2.0, 20.0), [15.0, 6.0, 2.0, 0.5, 0.01]),
    "flow": (jk.FlowMatching(), [0.95, 0.7, 0.45, 0.2, 0.0]),
}
# with log 1.5 = log(lam - 1): there S = 2 in the process "ou", where L = I/2 + H is 0
MODES = Marginal(0.5, np.array([1.0, -0.7, 2.0]), np.array([0.25, 2.5, 1.0]))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "setting",
    [s if s in ("ou", "flow") else pytest.param(s, marks=SLOW) for s in PROCESSES],
)
def test_one_step_maps_are_the_published_formulas(setting: str) -> None:
    """Of every sampler and step, at all nodes of the uniform number; S = 2 is among them."""
    process, times = PROCESSES[setting]
    preserving = setting in ("ou", "vp", "cosine")
    marginal = MODES._replace(rate=0.5 if preserving else 0.0)
    target = jk.Gaussian(marginal.mu, marginal.lam)
    schedule = jk.Schedule(times, 1.0)
    found = jax.jit(lambda s: [Run(target, process, as_sampler(n), s).affine_maps() for n in NAMES])
    a, noise = (np.array([float(f(t)) for t in times]) for f in (process.signal, process.noise))
    tau = -2.0 * np.log(a) if preserving else (noise / a) ** 2
    scale = np.ones_like(a) if preserving else a
    for name, maps in zip(NAMES, found(schedule), strict=True):
        nodes = NODES if name in RANDOMISED else [0.5]
        for k in range(len(times) - 1):
            rows = [by_hand(name, marginal, tau[k], tau[k] - tau[k + 1], u) for u in nodes]
            factor, shift, injected = (np.array(part) for part in zip(*rows, strict=True))
            if name not in RANDOMISED:
                factor, shift, injected = factor[0], shift[0], injected[0]
            close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
            close(maps.factor[0, 0, ..., k, :], scale[k + 1] / scale[k] * factor, err_msg=name)
            close(maps.shift[0, ..., k, :], scale[k + 1] * shift, err_msg=name)
            close(maps.noise[0, 0, ..., k, :], scale[k + 1] ** 2 * injected, err_msg=name)


# --- tables ---------------------------------------------------------------------------------------

ALL = ("euler_maruyama", "exponential_integrator", *NAMES)
STEPS = (12, 24, 48, 96, 192, 5, 10, 20)
SINGLE = (0.25, 1.0, 1.6, 2.5)
SPECTRUM = np.append(SINGLE, np.geomspace(0.1, 1.0, 10))
MEAN = np.append(np.ones(5), np.zeros(9))


class Found(NamedTuple):
    """What the library finds for schedules of `STEPS` steps, which empty first steps lengthen."""

    mean: np.ndarray
    variance: np.ndarray
    factor: np.ndarray
    shift: np.ndarray


@functools.cache
def _found(name: str) -> Found:
    """Moments at the end (schedules, modes) and the first mode's maps, of uniform steps on 0..3."""
    longest = max(STEPS)
    times = [np.append(np.full(longest - n, 3.0), np.linspace(3.0, 0.0, n + 1)) for n in STEPS]
    target = jk.Gaussian(MEAN, SPECTRUM)

    @jax.jit
    @jax.vmap
    def run(times: jax.Array) -> tuple[jax.Array, ...]:
        schedule = jk.Schedule(times, 1.0)
        start = NamedInitialization("marginal")
        made = Run(target, jk.OU(t_max=3.0), as_sampler(name), schedule, start)
        maps = made.affine_maps()
        return *made.moments().last, maps.factor[0, 0, ..., 0], maps.shift[0, ..., 0]

    return Found(*(np.asarray(a) for a in run(jnp.asarray(np.stack(times)))))


def _w2(name: str, modes: slice, steps: int) -> float:
    """W2 to the data of a block of independent modes."""
    row = STEPS.index(steps)
    mean, variance = (np.asarray(a[row])[modes] for a in _found(name)[:2])
    return float(np.sqrt(w2_squared(mean - MEAN[modes], variance, SPECTRUM[modes])))


def _rounds_to(value: float, published: str) -> bool:
    """Whether a value has the digits of a published one."""
    digits = len(published.split("e")[0].replace(".", "").lstrip("0"))
    unit = 10.0 ** (np.floor(np.log10(float(published))) - digits + 1)
    return abs(value - float(published)) <= 0.5001 * unit


ONE_MODE = {
    ("euler_maruyama", 0.25): "1.323e-1 6.364e-2 3.082e-2 1.512e-2 7.481e-3",
    ("exponential_integrator", 0.25): "1.504e-1 6.932e-2 3.296e-2 1.603e-2 7.901e-3",
    ("rem", 0.25): "5.865e-3 1.312e-3 5.554e-4 1.620e-4 4.294e-5",
    ("rei", 0.25): "1.676e-2 2.256e-4 4.590e-4 1.531e-4 4.228e-5",
    ("second_order", 0.25): "3.284e-2 9.849e-3 2.693e-3 7.033e-4 1.796e-4",
    ("second_order1", 0.25): "1.93e-2 - 1.38e-3 - 8.7e-5",
    ("tweedie1", 0.25): "2.49e-2 - 1.69e-3 - 1.07e-4",
    ("tweedie2", 0.25): "6.7e-3 - 1.48e-4 - 2.5e-6",
    ("euler_maruyama", 1.0): "4.359e-2 - 1.060e-2 - 2.631e-3",
    ("exponential_integrator", 1.0): "6.678e-2 - 1.528e-2 - 3.739e-3",
    ("rem", 1.0): "1.291e-3 - 7.798e-5 - 4.843e-6",
    ("rei", 1.0): "1.852e-3 - 2.332e-5 - 3.458e-7",
    ("second_order", 1.0): "2.470e-3 - 1.546e-4 - 9.666e-6",
    ("euler_maruyama", 1.6): "- - - - 2.299e-3",
    ("exponential_integrator", 1.6): "- - - - 2.739e-3",
    ("rem", 1.6): "- - - - 3.939e-6",
    ("rei", 1.6): "- - - - 3.843e-6",
    ("second_order", 1.6): "- - - - 1.714e-5",
}
TEN_MODES = {
    "euler_maruyama": ".9569 .5001 .2482",
    "exponential_integrator": "1.278 .5873 .2754",
    "rem": "1.183 .2546 .02755",
    "rei": "1.871 .3650 .04015",
    "second_order": ".3963 .1719 .06279",
    "exact_mean": "1.461 .6969 .3333",
    "second_order1": ".281 .116 .0394",
    "tweedie1": ".379 .129 .0399",
    "tweedie2": ".185 .0504 .0113",
}


@pytest.mark.parametrize(("name", "lam"), ONE_MODE)
def test_errors_of_one_mode_in_every_digit(name: str, lam: float) -> None:
    """N(1, lam), an OU process of rate 1 from its exact marginal at 3, uniform steps."""
    mode = SINGLE.index(lam)
    for steps, published in zip(STEPS, ONE_MODE[name, lam].split(), strict=False):
        if published != "-":
            value = _w2(name, slice(mode, mode + 1), steps)
            assert _rounds_to(value, published), (steps, published)


@pytest.mark.parametrize("name", TEN_MODES)
def test_errors_of_ten_modes_in_every_digit(name: str) -> None:
    for steps, published in zip((5, 10, 20), TEN_MODES[name].split(), strict=True):
        assert _rounds_to(_w2(name, slice(4, 14), steps), published), (steps, published)


def test_errors_of_matched_noise_with_the_drift_of_euler_in_every_digit() -> None:
    """The covariance is exact, the mean is not; `MatchedNoise()` itself has no error here."""
    target = jk.Gaussian(np.eye(10)[0], np.geomspace(0.1, 1.0, 10))
    times = np.full((3, 21), 3.0)
    for row, n in zip(times, (5, 10, 20), strict=True):
        row[-n - 1 :] = np.linspace(3.0, 0.0, n + 1)

    @jax.jit
    @jax.vmap
    def moments(times: jax.Array) -> tuple[jax.Array, ...]:
        sampler = jk.MatchedNoise("euler_maruyama")
        start = NamedInitialization("marginal")
        run = Run(target, jk.OU(t_max=3.0), sampler, jk.Schedule(times, 1.0), start)
        return tuple(run.moments().last)

    mean, variance = moments(jnp.asarray(times))
    np.testing.assert_allclose(variance, np.tile(np.geomspace(0.1, 1.0, 10), (3, 1)), rtol=1e-12)
    w2 = np.linalg.norm(np.asarray(mean) - np.eye(10)[0], axis=1)
    for value, published in zip(w2, (".0419", ".0151", ".0060"), strict=True):
        assert _rounds_to(value, published)
    with pytest.raises(ValueError, match="drift"):
        jk.MatchedNoise("heun")


@pytest.mark.parametrize("name", ALL)
def test_orders_of_the_distribution(name: str) -> None:
    """At a variance without changes of sign; the Tweedie covariance has no error at all."""
    errors = [_w2(name, slice(3, 4), steps) for steps in (48, 96, 192)]
    if name in ("tweedie", "matched_noise"):
        assert max(_w2(name, slice(0, 14), steps) for steps in STEPS) < 1e-14
        return
    order = -np.polyfit(np.log([48, 96, 192]), np.log(errors), 1)[0]
    expected = 3 if name == "tweedie2" else as_sampler(name).order
    assert order == pytest.approx(expected, abs=0.15)


# --- strong errors --------------------------------------------------------------------------------

POINTS, WIDTHS = (0.5 * a for a in np.polynomial.legendre.leggauss(20))
POINTS = POINTS + 0.5


def _kernel(name: str, marginal: Marginal, tau: float, h: float, uniform: float, v: Row) -> Row:
    """Weight of the Brownian increment at time v of a step in the noise of the step."""
    _, s0 = marginal.at(tau)
    _, su = marginal.at(tau - h * uniform)
    early = v < h * uniform
    if name == "euler_maruyama":
        return np.ones_like(v)
    if name == "rem":
        return 1.0 + h * (0.5 - 1.0 / su) * early
    linear = np.exp((h - v) / 2.0)
    if name == "exponential_integrator":
        return linear
    if name == "rei":
        k = h * np.exp((1.0 - uniform) * h / 2.0) / su
        return linear - k * np.exp((h * uniform - v) / 2.0) * early
    assert name == "second_order"
    return np.exp((0.5 - 1.0 / s0) * (h - v))


def _strong_error(name: str, steps: int) -> float:
    """L2 distance of the sampler from the exact reverse SDE on the same Brownian path.

    Both are affine in the pair (sampler's x, exact x), whose second moments follow step by step.
    The sampler's factors and shifts are the library's, the rest is by hand.
    """
    marginal = Marginal(0.5, MEAN[:1], SPECTRUM[:1])
    found = _found(name)
    row = STEPS.index(steps)
    h = 3.0 / steps
    m, s = (float(a[0]) for a in marginal.at(3.0))
    # of (sampler's x, exact x, 1)
    second = np.array([[s + m * m, s + m * m, m], [s + m * m, s + m * m, m], [m, m, 1.0]])
    for k in range(steps):
        tau = 3.0 - k * h
        (m0, s0), (m1, s1) = (tuple(float(a[0]) for a in marginal.at(t)) for t in (tau, tau - h))
        at = max(STEPS) - steps + k
        factors, shifts = (np.atleast_1d(a[row][..., at]) for a in (found.factor, found.shift))
        weights, nodes = (WEIGHTS, NODES) if name in RANDOMISED else ([1.0], [0.5])
        exact = np.exp(-h / 2.0) * s1 / s0
        after = np.zeros((3, 3))
        for w, u, factor, shift in zip(weights, nodes, factors, shifts, strict=True):
            move = np.array([[factor, 0.0, shift], [0.0, exact, m1 - exact * m0], [0.0, 0.0, 1.0]])
            after += w * move @ second @ move.T
            for low, high in ((0.0, u * h), (u * h, h)):
                v = low + (high - low) * POINTS
                sv = marginal.at(tau - v[:, None])[1][:, 0]
                pair = np.stack(
                    [
                        _kernel(name, marginal, tau, h, u, v),
                        np.exp(-(h - v) / 2.0) * s1 / sv,
                    ]
                )
                after[:2, :2] += w * (high - low) * (pair * WIDTHS) @ pair.T
        second = after
    return float(np.sqrt(second[0, 0] - 2.0 * second[0, 1] + second[1, 1]))


STRONG = {
    "euler_maruyama": (".16811 .040236 .009806", 1),
    "exponential_integrator": (".20553 .046673 .011263", 1),
    "rem": (".16909 .031374 .007164", 1),
    "rei": (".22042 .038539 .008715", 1),
    "second_order": (".042655 .0037131 .00024961", 2),
}


@pytest.mark.parametrize("name", STRONG)
def test_strong_errors_and_orders_on_a_gaussian(name: str) -> None:
    published, order = STRONG[name]
    for steps, value in zip((12, 48, 192), published.split(), strict=True):
        assert _rounds_to(_strong_error(name, steps), value), (steps, value)
    steps = (48, 96, 192)
    errors = [_strong_error(name, n) for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)


# --- particles ------------------------------------------------------------------------------------

FAR = jk.Gaussian([8.0, -6.0], [0.25, 1.5])
OU = jk.OU(t_max=3.0)
SIX = jk.Schedule(np.linspace(3.0, 0.0, 7), 1.0)
PARTICLES = 200_000


def _particles(name: str, mu: Row, lam: Row) -> Row:
    """Particles of the two published randomised methods, with one uniform number for each."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(PARTICLES, 2))
    h = 0.5
    marginal = Marginal(0.5, mu, lam)

    def score(x: Row, tau: Row) -> Row:
        m, s = marginal.at(tau[:, None])
        return -(x - m) / s

    for k in range(6):
        tau = np.full(PARTICLES, 3.0 - k * h)
        u = rng.uniform(size=PARTICLES)
        hu = (h * u)[:, None]
        first, second = rng.normal(size=(2, PARTICLES, 2))
        if name == "rem":
            y = x + hu * (x / 2 + score(x, tau)) + np.sqrt(hu) * first
            added = np.sqrt(hu) * first + np.sqrt(h - hu) * second
            x = x + h * (y / 2 + score(y, tau - h * u)) + added
            continue
        y = np.exp(hu / 2) * x + 2 * np.expm1(hu / 2) * score(x, tau)
        y = y + np.sqrt(np.expm1(hu)) * first
        correlation = np.sqrt(-np.expm1(-hu) / -np.expm1(-h))
        noise = correlation * first + np.sqrt(1.0 - correlation**2) * second
        x = np.exp(h / 2) * x + h * np.exp((h - hu) / 2) * score(y, tau - h * u)
        x = x + np.sqrt(np.expm1(h)) * noise
    return x


def _worst_z_score(x: Row, mean: Row, covariance: Row) -> float:
    """Largest deviation of a sample moment from a given one, in its own standard errors."""
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    values = np.concatenate([centred, (products - covariance).reshape(len(x), -1)], axis=1)
    return float(np.max(np.abs(values.mean(0)) / (values.std(0) / np.sqrt(len(x)))))


@functools.cache
def _far(name: str) -> jk.Evaluation:
    return jk.evaluate_schedule(FAR, OU, name, SIX)


@pytest.mark.parametrize("name", ["rem", pytest.param("rei", marks=SLOW)])
def test_moments_are_those_of_published_particles(name: str) -> None:
    """Mean and full covariance; without its correlation of the modes the test of REM fails."""
    x = _particles(name, np.asarray(FAR.mean), np.asarray(FAR.eigenvalues))
    found = _far(name)
    covariance = np.asarray(found.covariance)
    assert _worst_z_score(x, np.asarray(found.mean), covariance) < 5.0
    np.testing.assert_allclose(np.diag(covariance), found.variance, rtol=1e-12)
    if name == "rem":
        assert _worst_z_score(x, np.asarray(found.mean), np.diag(np.diag(covariance))) > 10.0


@pytest.mark.parametrize("name", ["rem", pytest.param("rei", marks=SLOW)])
def test_samples_have_the_averaged_moments(name: str) -> None:
    """With a time of their own; samples that share one have other moments."""
    denoiser = FAR.denoiser(OU)
    start = jax.random.normal(jax.random.key(1), (40_000, 2))
    mean, covariance = (np.asarray(a) for a in (_far(name).mean, _far(name).covariance))
    x = jk.sample(denoiser, name, SIX, start, key=jax.random.key(2))
    assert _worst_z_score(np.asarray(x), mean, covariance) < 5.0

    @jax.jit
    def shared(key: jax.Array) -> jax.Array:
        x = start
        steps = SIX.steps()
        for k in range(6):
            here, at = jax.random.split(jax.random.fold_in(key, k))
            step = jax.tree.map(lambda a, k=k: a[k], steps)._replace(uniform=jax.random.uniform(at))
            draws = iter(jax.random.normal(here, (2, *x.shape)))
            x, _ = as_sampler(name).step(
                denoiser, lambda v, z=draws: jnp.sqrt(v) * next(z), OU, step, x, ()
            )
        return x

    worst = [
        _worst_z_score(np.asarray(shared(jax.random.key(i))), mean, covariance) for i in range(4)
    ]
    assert min(worst) > 5.0


def test_correlation_of_modes() -> None:
    """A published covariance, of REM from standard normal noise; W2 is marked as a lower bound."""
    target = jk.Gaussian([1.0, -0.7], [0.25, 1.5])
    found = jk.evaluate_schedule(target, OU, "rem", SIX)
    covariance = np.asarray(found.covariance)
    assert covariance[0, 1] == pytest.approx(-3.384e-4, abs=5e-8)
    assert found.lower_bound
    assert "w2>=" in repr(found)


@pytest.mark.slow
def test_correlation_of_modes_from_a_dense_start() -> None:
    """Propagated as one block it is the same; the bound of the modes is below that of the whole."""
    target = jk.Gaussian([1.0, -0.7], [0.25, 1.5])
    modes = jk.evaluate_schedule(target, OU, "rem", SIX)
    start = jk.Gaussian(0.0, [1.0] * 2)
    found = jk.evaluate_schedule(target, OU, "rem", SIX, initialization=start)
    np.testing.assert_allclose(
        np.asarray(modes.covariance), np.asarray(found.covariance), rtol=1e-12
    )
    assert modes.w2_squared <= found.w2_squared * (1.0 + 1e-12)
    assert not jk.evaluate_schedule(target, OU, "tweedie1", SIX).lower_bound


FEW = ("rem", "tweedie", "second_order1")
MANY = [name if name in FEW else pytest.param(name, marks=SLOW) for name in NAMES]


@pytest.mark.parametrize(
    "name", [n if n == "tweedie" else pytest.param(n, marks=SLOW) for n in NAMES]
)
def test_particles_of_other_samplers(name: str) -> None:
    """In a basis that mixes the modes, with trajectories; modes are nearly uncorrelated."""
    angle = 0.6
    basis = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target = jk.Gaussian([1.0, -0.7], [0.25, 1.5], basis=basis)
    schedule = jk.Schedule([0.9, 0.4, 0.1], 1.0)
    found = jax.jit(lambda s: Run.checked(target, jk.VP(), name, s).moments().last)(schedule)
    start = jax.random.normal(jax.random.key(3), (20_000, 2))
    path = jk.sample(
        target.denoiser(jk.VP()), name, schedule, start, key=jax.random.key(4), trajectory=True
    )
    assert path.shape == (3, 20_000, 2)
    np.testing.assert_array_equal(path[0], start)
    along = np.asarray(path[-1]) @ basis
    assert _worst_z_score(along, np.asarray(found.mean), np.diag(found.covariance)) < 5.0


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MANY)
def test_networks_see_scalar_times_and_rows(name: str) -> None:
    """A network of images; in float32, under jit and gradient."""
    seen = set()

    def network(x: jax.Array, t: jax.Array) -> jax.Array:
        seen.add((x.shape, t.shape))
        return jnp.tanh(x) * t

    denoiser = jk.Denoiser(network, jk.VP(), "epsilon")
    noise = jax.random.normal(jax.random.key(0), (3, 2, 2, 1), jnp.float32)
    schedule = jk.Schedule([0.9, 0.5, 0.1], 1.0)

    def run(x: jax.Array) -> jax.Array:
        return jk.sample(denoiser, name, schedule, x, key=jax.random.key(1))

    alone = SAMPLERS[name].randomised or SAMPLERS[name].forms_jacobian

    def first(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        samples = run(x)
        return jnp.sum(samples[0]), samples

    slope, found = jax.jit(jax.grad(first, has_aux=True))(noise)
    assert (found.shape, found.dtype) == (noise.shape, noise.dtype)
    assert seen == {((1, 2, 2, 1) if alone else noise.shape, ())}
    assert np.all(np.isfinite(slope))
    assert np.any(slope[0] != 0)
    assert not np.any(slope[1:])


# --- Tweedie's covariance -------------------------------------------------------------------------

WIDE = (
    jk.OU(t_max=9.0),
    jk.VP(),
    jk.CosineVP(t_max=0.99),
    jk.VE(),
    jk.EDM(80.0),
    jk.FlowMatching(t_max=0.99),
    jk.DiscreteVP.scaled_linear(),
)


@pytest.mark.parametrize("process", WIDE, ids=lambda process: type(process).__name__)
def test_tweedie_makes_no_error_on_a_gaussian(process: jk.AbstractProcess) -> None:
    """In one step or three, whatever the process: variances from 0 to 100, and means."""
    target = jk.Gaussian([0.0, 1.0, -2.0, 3.0, 0.5], [0.0, 1e-4, 1.0, 2.5, 100.0])
    top = float(process.t_max)

    @jax.jit
    def moments(times: jax.Array) -> tuple[jax.Array, jax.Array]:
        schedule = jk.Schedule(times, 1.0)
        start = NamedInitialization("marginal")
        return Run(target, process, as_sampler("tweedie"), schedule, start).moments().last

    for times in ([top, 0.6 * top, 0.1 * top, 0.0], [top, top, top, 0.0]):
        mean, variance = (np.asarray(a) for a in moments(jnp.asarray(times)))
        deviation = np.sqrt(variance) - np.sqrt(np.asarray(target.eigenvalues))
        squared = np.sum((mean - np.asarray(target.mean)) ** 2 + deviation**2)
        assert np.sqrt(squared) < 1e-12


@pytest.mark.parametrize("name", ["tweedie", pytest.param("second_order", marks=SLOW)])
def test_a_dense_covariance(name: str) -> None:
    """From a covariance that does not commute with the target's; gradients at repeated eigenvalues.

    The exact reverse step multiplies x - E x by A = e^(-h/2) S'/S and keeps the rest of S'.
    """
    target = jk.Gaussian([1.0, -1.0, 0.0], [0.5, 0.5, 2.0])
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    start = jk.Gaussian([0.3, 0.0, -0.2], [0.4, 1.0, 3.0], basis=q)
    times = np.array([2.9, 1.0, 0.2])
    mean = np.asarray(start.mean)
    covariance = q @ np.diag([0.4, 1.0, 3.0]) @ q.T
    marginal = Marginal(0.5, np.asarray(target.mean), np.asarray(target.eigenvalues))
    for tau, end in zip(times[:-1], times[1:], strict=True):
        (m0, s0), (m1, s1) = marginal.at(tau), marginal.at(end)
        a = np.exp(-(tau - end) / 2.0) * s1 / s0
        mean = m1 + a * (mean - m0)
        covariance = a[:, None] * covariance * a + np.diag(s1 - a**2 * s0)

    @jax.jit
    def evaluate(times: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        def w2_squared(times: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            run = Run.checked(target, OU, name, jk.Schedule(times, 1.0), start)
            value = jnp.sum(run.contributions("w2_squared"))
            return value, (value, *run.moments().last)

        slope, found = jax.grad(w2_squared, has_aux=True)(times)
        return found, slope

    found, slope = evaluate(jnp.asarray(times))
    if name == "tweedie":
        np.testing.assert_allclose(found[1], mean, rtol=1e-11)
        np.testing.assert_allclose(found[2], covariance, rtol=1e-11, atol=1e-13)
    for k in range(3):
        moved = times + 1e-5 * np.array([[1.0], [-1.0]]) * np.eye(3)[k]
        high, low = (float(evaluate(jnp.asarray(t))[0][0]) for t in moved)
        assert slope[k] == pytest.approx((high - low) / 2e-5, rel=1e-5, abs=1e-8)


# --- objectives and refusals ----------------------------------------------------------------------

TEN = jk.Gaussian(np.eye(10)[0], np.geomspace(0.1, 1.0, 10))


@pytest.mark.parametrize("name", ["rem", "tweedie1"])
def test_gradient_of_the_terminal_error(name: str) -> None:
    objective = jk.TerminalError(initialization="marginal").bind(TEN, OU, as_sampler(name))

    @jax.jit
    @jax.value_and_grad
    def value(times: jax.Array) -> jax.Array:
        return objective(jk.Schedule(times, 1.0))

    times = jnp.linspace(3.0, 0.0, 11)
    direction = jnp.asarray(np.append(np.random.default_rng(1).normal(size=10), 0.0) * 0.1)
    slope = value(times)[1]
    ends = [float(value(times + e * direction)[0]) for e in (1e-5, -1e-5)]
    assert float(slope @ direction) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-7)
    assert np.all(np.isfinite(slope))
    # empty steps are benign
    assert np.all(np.isfinite(value(times.at[4].set(times[3]))[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gain"), [("rem", 100.0), ("tweedie1", 2.0)])
def test_optimised_terminal_error(name: str, gain: float) -> None:
    """The published optimum of REM is 156 times better than uniform steps."""
    result = jk.optimize_schedule(
        TEN,
        OU,
        name,
        10,
        t_min=0.0,
        stochasticity=1.0,
        objective=jk.TerminalError(initialization="marginal"),
        starts=["uniform", "quadratic"],
    )
    uniform = jk.Schedule(np.linspace(3.0, 0.0, 11), 1.0)
    before, after = (
        jk.evaluate_schedule(TEN, OU, name, s, initialization="marginal").w2
        for s in (uniform, result.schedule)
    )
    assert after < before / gain
    assert result.schedule.is_stochastic
    assert result.evaluation.nfe == 20
    assert name != "rem" or _rounds_to(float(after), ".0016")


ONE_STEP = jk.Schedule([0.9, 0.1], 1.0)
ONE = jk.Gaussian(0.0, [1.0])


def test_the_stochasticity_is_that_of_the_reverse_sde() -> None:
    """A message names the sampler and what to do; traced values raise when they are run."""
    for call in (
        lambda: jk.evaluate_schedule(ONE, jk.VP(), "rem", jk.Schedule([0.9, 0.1])),
        lambda: jk.evaluate_schedule(ONE, jk.VP(), "rem", jk.Schedule([0.9, 0.1], 0.5)),
        lambda: jk.optimize_schedule(
            ONE, jk.VP(), "rem", 2, t_min=0.1, objective=jk.TerminalError()
        ),
    ):
        with pytest.raises(ValueError, match="REM is for the reverse SDE alone"):
            call()
    with pytest.raises(ValueError, match="'optimize' has no meaning for Tweedie1"):
        jk.optimize_schedule(ONE, jk.VP(), "tweedie1", 2, t_min=0.1, stochasticity="optimize")
    with pytest.raises(ValueError, match="REM is for the reverse SDE alone, where h = g"):
        jk.reverse_sde.optimize_discrete_stochasticity(ONE, 1.0, jk.VP(), "rem", [1.0, 0.0], 0.1)

    def traced(alpha: jax.Array) -> jax.Array:
        schedule = jk.Schedule(jnp.array([0.9, 0.1]), alpha)
        return jk.evaluate_schedule(ONE, jk.VP(), "exact_mean", schedule).w2

    with pytest.raises(Exception, match="ExactMean is for the reverse SDE alone"):
        jax.jit(traced)(jnp.asarray(0.5)).block_until_ready()
    with pytest.raises(ValueError, match="key: "):
        jk.sample(ONE.denoiser(jk.VP()), "rem", ONE_STEP, jnp.ones((2, 1)))


def test_score_errors_of_random_times_are_refused() -> None:
    """By every function that knows score errors; those of derivatives at given times are known."""
    error = jk.ScoreError.relative(0.05)
    run = (ONE, jk.VP(), "rei", ONE_STEP)
    for call in (
        lambda: jk.evaluate_schedule(*run, score_error=error),
        lambda: jk.error_kernel(*run),
        lambda: jk.expected_error(*run, score_error=error),
        lambda: jk.bounds.accumulation_operators(*run),
        lambda: jk.bounds.lipschitz_accumulation(*run, lipschitz=0.1),
        lambda: jk.TerminalError(score_error=error).bind(ONE, jk.VP(), jk.REI())(ONE_STEP),
    ):
        with pytest.raises(ValueError, match="REI evaluates the network at"):
            call()
    record = jk.record(ONE.denoiser(jk.VP()), jnp.array([[1.0], [-2.0]]), t_min=0.1, nodes=8)
    with pytest.raises(ValueError, match="ExactMean is for the reverse SDE alone; a record"):
        record.errors("exact_mean", ONE_STEP)
    with pytest.raises(ValueError, match="REM is for the reverse SDE alone; a record"):
        jk.RecordedError(record).bind(ONE, jk.VP(), jk.REM())


def test_score_errors_of_a_jacobian() -> None:
    """An error -Delta x + delta of the score has the derivative -Delta: by hand for TW1.

    M = q + (1 - q) a J with J of the wrong score, and the mean of the wrong score.
    """
    slope, shift = 0.3, -0.2
    kernel = jk.error_kernel(ONE, jk.VP(), "tweedie1", ONE_STEP)
    about = jk.AffineError(jnp.array([[slope], [9.0]]), jnp.array([[shift], [9.0]]))
    a, u = (float(jk.VP().signal(t)) for t in (0.9, 0.1))
    tau, end = -2.0 * np.log([a, u])
    h = tau - end
    factor = np.exp(h / 2) + 2.0 * np.sinh(h / 2) * (-1.0 - slope)
    mean = 2.0 * np.sinh(h / 2) * shift
    excess = -np.expm1(-h) * (-1.0 - slope)
    variance = factor**2 + np.expm1(h) * (1.0 + excess / 2) ** 2
    expected = mean**2 + (np.sqrt(variance) - 1.0) ** 2
    assert float(jax.jit(lambda error: kernel.error(error))(about)) == pytest.approx(
        expected, rel=1e-10
    )


def test_local_errors() -> None:
    """Each step alone, the exact reverse SDE in all others; also in the default objective."""
    times = np.array([3.0, 1.5, 0.5, 0.0])
    schedule = jk.Schedule(times, 1.0)
    marginal = Marginal(0.5, np.array([1.0]), np.array([0.25]))
    target = jk.Gaussian(1.0, [0.25])
    for name in ("tweedie1", "rem"):
        local = jax.jit(lambda s, n=name: Run.checked(target, OU, n, s).local_errors())(schedule)
        found = local.mean_error[:, 0] ** 2 + (jnp.sqrt(local.variance[:, 0]) - 0.5) ** 2
        for k in range(3):
            h = times[k] - times[k + 1]
            nodes = NODES if name == "rem" else [0.5]
            weights = WEIGHTS if name == "rem" else [1.0]
            rows = [by_hand(name, marginal, times[k], h, u) for u in nodes]
            (m0, s0), (m1, s1) = marginal.at(times[k]), marginal.at(times[k + 1])
            ends = [(float((a * m0 + b)[0]), float((a * a * s0 + q)[0])) for a, b, q in rows]
            mean = sum(w * m for w, (m, _) in zip(weights, ends, strict=True))
            square = sum(w * (m * m + v) for w, (m, v) in zip(weights, ends, strict=True))
            rest = np.exp(-times[k + 1] / 2.0) * 0.25 / s1[0]
            variance = 0.25 + rest**2 * (square - mean**2 - s1[0])
            expected = (rest * (mean - m1[0])) ** 2 + (np.sqrt(variance) - 0.5) ** 2
            assert float(found[k]) == pytest.approx(expected, rel=1e-8, abs=1e-15)
    objective = jk.LocalError(variance_factor=1.0, initialization="marginal")
    bound = objective.bind(target, OU, as_sampler("rem"))
    value = jax.jit(lambda s: bound(s))(schedule)
    assert float(value) == pytest.approx(float(jnp.sum(found)), rel=1e-9)


# --- strong order on a mixture --------------------------------------------------------------------


@functools.cache
def _mixture_end(name: str, steps: int) -> jax.Array:
    """Particles of 1/2 N(+-0.6, 0.36), a log-concave density, on the same Brownian paths."""
    mixture = jk.GaussianMixture([0.5, 0.5], [[0.6], [-0.6]], [[0.36], [0.36]])
    process = jk.OU(t_max=2.0)
    data = mixture.sample(jax.random.key(5), 4000)
    start, path = coupled_paths.noised(data, process, 3072, jax.random.key(6))
    return coupled_paths.ends(name, steps, mixture.denoiser(process), start, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("euler_maruyama", 1.0),
        ("exponential_integrator", 1.0),
        ("rem", 1.0),
        ("rei", 1.0),
        ("second_order", 1.5),
        ("tweedie", 1.5),
    ],
)
def test_strong_order_on_a_mixture(name: str, order: float) -> None:
    """Within 0.1, or above 1.5 for the two methods with derivatives of the score."""
    steps = [24, 48, 96]
    reference = _mixture_end("tweedie", 768)
    errors = [float(jnp.sqrt(jnp.mean((_mixture_end(name, n) - reference) ** 2))) for n in steps]
    measured = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert measured > order - 0.1
    assert order == 1.5 or measured < order + 0.1
