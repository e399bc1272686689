"""Certified bounds for scores that err by nonlinear functions of x, on data that are not normal.

Coordinates are independent, each a mixture of two normal distributions. The exact reverse process
is followed on the Brownian path of every scheme in steps of exact mean and covariance, `FINE` for
each step of the schedule. All means are over particles: the tolerance is four standard errors of
the mean square of each instance, and 1e-3 for the fine steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels.bounds import Assumptions, certified_bound

SCHEMES = (
    "euler_maruyama",
    "exponential_integrator",
    "exact_mean",
    "tweedie",
    "second_order",
    "rem",
    "rei",
    "ddim",
)
RANDOMISED = ("rem", "rei")
FINE = 32
STEPS = 8
MODES = 20
CHUNK = 128
STANDARD_ERRORS = 4.0
# of the reference process and of integrals over a fine step, relative to the distance and alone
REFERENCE = (1e-2, 1e-3)


class Coordinates(NamedTuple):
    """Mixtures of two normal distributions, with score errors; leading axis over coordinates."""

    lam: Any
    first: Any
    second: Any
    weight: Any
    """Of the first component."""
    taus: Any
    """(coordinates, steps + 1), rate-1 times."""
    size: Any
    """(coordinates, steps), of the error a + b sin(wave x + phase) + c tanh(wave x)."""
    constant: Any
    sine: Any
    step: Any
    wave: Any
    phase: Any
    scale: Any
    """Of the initial points of the chain, in units of exact ones; and what is added to these."""
    shift: Any


class Instances(NamedTuple):
    """Several coordinates for each instance."""

    parts: Coordinates
    owner: np.ndarray
    number: int
    taus: np.ndarray


def draw_instances(seed: int, count: int) -> Instances:
    """d = 1 .. 20 coordinates, 2 .. 8 steps, three starts; half of the errors have one sign."""
    rng = np.random.default_rng(seed)
    dims = rng.choice([1, 1, 1, 2, 2, 3, 5, 10, MODES], count)
    owner = np.repeat(np.arange(count), dims)
    total = len(owner)

    def each(values: np.ndarray) -> np.ndarray:
        return np.asarray(values)[owner]

    lam = np.exp(rng.uniform(-2.0, 1.0, total))
    gap = rng.uniform(0.0, 2.4, total) * np.sqrt(lam)
    weight = rng.uniform(0.1, 0.9, total)
    centre = each(rng.choice([0.0, 1.0, 3.0], count)) * rng.normal(size=total)
    convexity = np.full(count, np.inf)
    np.minimum.at(convexity, owner, 1.0 / lam - gap**2 / (4.0 * lam**2))
    # 1 + m sigma^2 > 0 up to the first time
    longest = np.where(convexity < 0, 0.9 / np.maximum(-convexity, 1e-9), np.inf)
    drawn = np.exp(rng.uniform(np.log(0.3), np.log(4.0), count))
    horizon = np.minimum(drawn, np.log1p(longest))
    numbers = rng.integers(2, STEPS + 1, count)
    used = np.arange(STEPS) < numbers[:, None]
    shares = (0.2 + rng.exponential(size=(count, STEPS))) * used
    passed = np.cumsum(shares / shares.sum(-1, keepdims=True), -1)
    end = np.where(rng.random(count) < 0.5, 0.0, 0.05 * horizon)
    taus = end[:, None] + (horizon - end)[:, None] * (1.0 - np.minimum(passed, 1.0))
    taus = np.where(used, taus, end[:, None])
    taus[np.arange(count), numbers - 1] = end
    taus = np.concatenate([horizon[:, None], taus], -1)
    size = each(rng.choice([0.0, 0.1, 1.0, 3.0], count))[:, None]
    # errors of one sign that do not change in time add up; others are drawn for every step
    coherent = each(rng.random(count) < 0.5)[:, None]
    size = size * np.where(coherent, 1.0, rng.normal(size=(total, STEPS)))
    start = each(rng.integers(0, 3, count))
    parts = Coordinates(
        lam,
        centre - (1.0 - weight) * gap,
        centre + weight * gap,
        weight,
        each(taus),
        size,
        each(rng.choice([0.0, 1.0], count)),
        rng.uniform(0.0, 1.0, total),
        rng.uniform(0.0, 1.0, total),
        each(rng.uniform(0.1, 3.0, count)),
        rng.uniform(0.0, 6.0, total),
        np.where(start == 2, 0.8, 1.0),
        np.where(start == 1, 0.3, 0.0),
    )
    return Instances(parts, owner, count, taus)


def score_and_slope(at: Coordinates, tau: Array, x: Array) -> tuple[Array, Array]:
    """The score of p_tau and its derivative, in closed form."""
    a = jnp.exp(-tau / 2.0)
    variance = a**2 * at.lam[:, None] - jnp.expm1(-tau)
    v = (a * at.first[:, None] - x) / variance
    u = (a * at.second[:, None] - x) / variance
    odds = jnp.log(at.weight / (1.0 - at.weight))[:, None]
    share = jax.nn.sigmoid(odds + 0.5 * variance * (u**2 - v**2))
    slope = share * (1.0 - share) * (v - u) ** 2 - 1.0 / variance
    return share * v + (1.0 - share) * u, slope


def error(at: Coordinates, size: Array, x: Array) -> Array:
    constant, sine, step, wave, phase = (
        part[:, None] for part in (at.constant, at.sine, at.step, at.wave, at.phase)
    )
    return size[:, None] * (constant + sine * jnp.sin(wave * x + phase) + step * jnp.tanh(wave * x))


class Noise(NamedTuple):
    """What the schemes use of a step's Brownian path W, and where the midpoint is."""

    plain: Array
    """W_h."""
    grown: Array
    """int e^((h - v)/2) dW."""
    tweedie: Array
    second_order: Array
    ddim: Array
    midpoint: Array
    """W and the grown integral at the midpoint, and the exact process there."""
    grown_midpoint: Array
    exact_midpoint: Array


def follow(
    at: Coordinates, x: Array, starts: dict[str, Array], k: Array, key: Array, middle: Array
) -> tuple[Array, Noise]:
    """The exact process over step k, and the noise of all schemes from their points."""
    tau, end = at.taus[:, k, None], at.taus[:, k + 1, None]
    h = tau - end
    d = h / FINE
    _, tweedie_slope = score_and_slope(at, tau, starts["tweedie"])
    _, slope = score_and_slope(at, tau, starts["second_order"])
    w1 = jnp.expm1(end)

    def fine(carry: tuple[Array, Noise], index: Array) -> tuple[tuple[Array, Noise], None]:
        x, noise = carry
        z = jax.random.normal(jax.random.fold_in(key, index), x.shape)
        j = index.astype(x.dtype)
        dw = jnp.sqrt(d) * z
        left = h - (j + 0.5) * d
        passed = h - left
        moved = tweedie_slope * jnp.exp(-passed) / (1.0 - tweedie_slope * jnp.expm1(-passed))
        # each with the variance of its integral over the fine step
        grown = noise.grown + jnp.sqrt(jnp.expm1(d)) * jnp.exp(0.5 * (h - (j + 1) * d)) * z
        high, low = jnp.expm1(tau - j * d), jnp.expm1(tau - (j + 1) * d)
        exact_low = jnp.where(index == FINE - 1, w1, low)
        # int (w1 / w)^2 dw
        share = w1 * jnp.sqrt(jnp.maximum(1.0 / exact_low - 1.0 / high, 0.0))
        ddim = noise.ddim + jnp.where(w1 > 0, jnp.exp(-0.5 * end) * share, 0.0) * z
        s, hessian = score_and_slope(at, tau - j * d, x)
        size = jnp.sqrt(jnp.expm1(d) * (1.0 - jnp.expm1(-d) * hessian))
        x = jnp.exp(d / 2.0) * x + 2.0 * jnp.sinh(d / 2.0) * s + size * z
        here = index + 1 == middle
        plain = noise.plain + dw
        kernel = jnp.exp(left / 2.0) + 2.0 * jnp.sinh(left / 2.0) * moved
        noise = Noise(
            plain,
            grown,
            noise.tweedie + kernel * dw,
            noise.second_order + jnp.exp((0.5 + slope) * left) * dw,
            ddim,
            jnp.where(here, plain, noise.midpoint),
            jnp.where(here, grown, noise.grown_midpoint),
            jnp.where(here, x, noise.exact_midpoint),
        )
        return (x, noise), None

    none = Noise(*[jnp.zeros_like(x)] * len(Noise._fields))
    return jax.lax.scan(fine, (x, none), jnp.arange(FINE))[0]


def phi_2(z: Array) -> Array:
    small = jnp.abs(z) < 1e-2
    y = jnp.where(small, 1.0, z)
    series = 0.5 + z / 6.0 + z**2 / 24.0 + z**3 / 120.0
    return jnp.where(small, series, (jnp.expm1(y) - y) / y**2)


def step(
    at: Coordinates, name: str, x: Array, k: Array, noise: Noise, share: Array
) -> tuple[Array, Array, Array]:
    """A step of a scheme with errors in its scores, and both errors that it meets."""
    tau, end = at.taus[:, k, None], at.taus[:, k + 1, None]
    h = tau - end
    size = at.size[:, k]
    s, slope = score_and_slope(at, tau, x)
    met = error(at, size, x)
    s = s + met
    keep = jnp.exp(h / 2.0)
    if name == "ddim":
        w0, w1 = jnp.expm1(tau), jnp.expm1(end)
        a = jnp.exp(-0.5 * (end - tau))
        kept = jnp.where(w0 > 0, w1 / jnp.where(w0 > 0, w0, 1.0), 1.0)
        moved = a * (x - (1.0 - kept) * jnp.expm1(-tau) * s)
        return moved + noise.ddim, met, met
    if name == "euler_maruyama":
        return x + h * (x / 2.0 + s) + noise.plain, met, met
    if name == "exponential_integrator":
        return keep * x + 2.0 * (keep - 1.0) * s + noise.grown, met, met
    if name in ("exact_mean", "tweedie"):
        added = noise.grown if name == "exact_mean" else noise.tweedie
        return keep * x + 2.0 * jnp.sinh(h / 2.0) * s + added, met, met
    if name == "second_order":
        curved = h**2 / 4.0 * phi_2(h * (0.5 + slope)) * x
        return x + h * (x / 2.0 + s) + curved + noise.second_order, met, met
    to, left = h * share, h * (1.0 - share)
    if name == "rem":
        y = x + to * (x / 2.0 + s) + noise.midpoint
        later = error(at, size, y)
        there = score_and_slope(at, tau - to, y)[0] + later
        return x + h * (y / 2.0 + there) + noise.plain, met, later
    y = jnp.exp(to / 2.0) * x + 2.0 * jnp.expm1(to / 2.0) * s
    y += jnp.exp(-left / 2.0) * noise.grown_midpoint
    later = error(at, size, y)
    there = score_and_slope(at, tau - to, y)[0] + later
    return keep * x + h * jnp.exp(left / 2.0) * there + noise.grown, met, later


class Found(NamedTuple):
    """Sums over particles are means; (coordinates, ...)."""

    squares: dict[str, Array]
    """E|Y - X|^2, and the square of |Y - X|^2's deviation over the number of particles."""
    start: Array
    along: dict[str, Array]
    """(coordinates, steps, 2): E|error|^2 along the chain, at both evaluations."""
    under: Array
    """The same under p_t."""


@functools.partial(jax.jit, static_argnums=(2,))
def simulate(at: Coordinates, key: Array, particles: int) -> Found:
    """All schemes on one path."""
    first, component, middles, path = jax.random.split(key, 4)
    shape = (at.lam.shape[0], particles)
    tau = at.taus[:, :1]
    a = jnp.exp(-tau / 2.0)
    z, u = jax.random.normal(first, shape), jax.random.uniform(component, shape)
    mean = jnp.where(u < at.weight[:, None], at.first[:, None], at.second[:, None])
    x = a * mean + jnp.sqrt(a**2 * at.lam[:, None] - jnp.expm1(-tau)) * z
    y = at.scale[:, None] * x + at.shift[:, None]
    start = jnp.mean((y - x) ** 2, 1)

    def advance(carry: tuple, k: Array) -> tuple[tuple, tuple]:
        x, chains = carry
        # the midpoint at one of the middles of every two fine steps
        place = jax.random.fold_in(middles, k)
        middle = 2 * jax.random.randint(place, shape, 0, FINE // 2) + 1
        after, noise = follow(at, x, chains, k, jax.random.fold_in(path, k), middle)
        share = middle.astype(x.dtype) / FINE
        moved = {name: step(at, name, chains[name], k, noise, share) for name in SCHEMES}
        size = at.size[:, k]
        exact = [jnp.mean(error(at, size, p) ** 2, 1) for p in (x, noise.exact_midpoint)]
        met = {n: jnp.stack([jnp.mean(e**2, 1) for e in m[1:]], 1) for n, m in moved.items()}
        return (after, {n: m[0] for n, m in moved.items()}), (met, jnp.stack(exact, 1))

    carry, (along, under) = jax.lax.scan(
        advance, (x, dict.fromkeys(SCHEMES, y)), jnp.arange(at.taus.shape[1] - 1)
    )
    x, chains = cast(tuple[Array, dict[str, Array]], carry)
    squares = {}
    for name, chain in chains.items():
        square = (chain - x) ** 2
        squares[name] = jnp.stack([jnp.mean(square, 1), jnp.var(square, 1) / particles], 1)
    along = {name: jnp.swapaxes(value, 0, 1) for name, value in along.items()}
    return Found(squares, start, along, jnp.swapaxes(under, 0, 1))


def simulate_all(at: Instances, particles: int) -> Found:
    """In chunks of one shape."""
    total = len(at.owner)
    chunk = min(CHUNK, total)
    found = []
    for i, low in enumerate(range(0, total, chunk)):
        rows = np.minimum(np.arange(low, low + chunk), total - 1)
        part = jax.tree.map(lambda leaf: jnp.asarray(leaf[rows]), at.parts)  # noqa: B023
        # not "unsafe_rbg", whose fold_in commutes: step 2 would repeat noise of step 1
        key = jax.random.key(i, impl="rbg")
        out = jax.tree.map(np.asarray, simulate(part, key, particles))
        found.append(jax.tree.map(lambda leaf: leaf[: total - low], out))  # noqa: B023
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)

    def per_instance(values: np.ndarray) -> np.ndarray:
        summed = np.zeros((at.number, *values.shape[1:]))
        np.add.at(summed, at.owner, values)
        return summed

    return jax.tree.map(per_instance, whole)


class Constants(NamedTuple):
    """What the bounds know of every instance."""

    dim: np.ndarray
    moment: np.ndarray
    convexity: np.ndarray
    smoothness: np.ndarray
    third: np.ndarray
    lipschitz: np.ndarray
    """Of the error at every step."""


def constants_of(at: Instances) -> Constants:
    """The extremes over coordinates; third derivatives are diagonal."""
    parts = at.parts
    gap = parts.second - parts.first
    mean = parts.weight * parts.first + (1.0 - parts.weight) * parts.second
    square = parts.lam + parts.weight * (1.0 - parts.weight) * gap**2 + mean**2

    def over(reduce: np.ufunc, values: np.ndarray, start: float) -> np.ndarray:
        out = np.full((at.number, *values.shape[1:]), start)
        reduce.at(out, at.owner, values)
        return out

    steepest = np.abs(parts.size) * ((parts.sine + parts.step) * parts.wave)[:, None]
    return Constants(
        over(np.add, np.ones_like(gap), 0.0),
        over(np.add, square, 0.0),
        over(np.minimum, 1.0 / parts.lam - gap**2 / (4.0 * parts.lam**2), np.inf),
        over(np.maximum, 1.0 / parts.lam, 0.0),
        over(np.maximum, gap**3 / (6.0 * np.sqrt(3.0) * parts.lam**3), 0.0),
        over(np.maximum, steepest, 0.0),
    )


@functools.cache
def bounds_of(name: str) -> Callable[..., Array]:
    """One program for all instances."""

    def one(known: Constants, taus: Array, start: Array, sizes: Array, lipschitz: Array) -> Array:
        data = Assumptions(
            jk.OU(),
            known.dim,
            known.moment,
            convexity=known.convexity,
            smoothness=known.smoothness,
            third_derivative=known.third,
        )
        schedule = jk.Schedule.from_squared(taus, jnp.ones_like(taus[1:]))
        options = {"score_error": sizes, "error_lipschitz": lipschitz, "initialization": start}
        return certified_bound(data, jk.OU(), name, schedule, **options).distances[-1]

    return jax.jit(jax.vmap(one))


def exact_mean_of_normal(lam: float, tau: float, end: float) -> tuple[float, float]:
    """r = e^(h/2) - 2 sinh(h/2) / S_0 and nu^2 = int (2 sinh((h - v)/2) / S_v)^2 dv."""
    h = tau - end

    def lost(left: float) -> float:
        return (2.0 * np.sinh(left / 2.0) / (1.0 + (lam - 1.0) * np.exp(-end - left))) ** 2

    kept = np.exp(h / 2.0) - 2.0 * np.sinh(h / 2.0) / (1.0 + (lam - 1.0) * np.exp(-tau))
    return kept, scipy.integrate.quad(lost, 0.0, h)[0]


def ddim_of_normal(lam: float, tau: float, end: float) -> tuple[float, float]:
    """r and nu^2 = e^-tau_1 int ((1 - w_1 / w) lam / (lam + w))^2 dw.

    With r = e^(h/2) (1 - (1 - w_1 / w_0) (1 - e^-tau) / S_0).
    """
    high, low = np.expm1(tau), np.expm1(end)

    def lost(w: float) -> float:
        return ((1.0 - low / w) * lam / (lam + w)) ** 2

    moved = (1.0 - low / high) * np.expm1(-tau) / (1.0 + (lam - 1.0) * np.exp(-tau))
    kept = np.exp((tau - end) / 2.0) * (1.0 + moved)
    return kept, np.exp(-end) * scipy.integrate.quad(lost, low, high)[0]


CLOSED_FORMS = {"exact_mean": exact_mean_of_normal, "ddim": ddim_of_normal}


def normal_distance(name: str, lam: float, taus: np.ndarray) -> float:
    """The distance e of a scheme to the exact process in closed form, of normal data in 1-D.

    e'^2 = r^2 e^2 + nu^2, by S = 1 + (lam - 1) e^-tau, w = e^tau - 1.
    """
    square = 0.0
    for tau, end in zip(taus[:-1], taus[1:], strict=True):
        kept, lost = CLOSED_FORMS[name](lam, tau, end)
        square = kept**2 * square + lost
    return float(np.sqrt(square))


# two 1-D instances without errors, of 8 and 7 steps
PAIR = (35, 492)


@functools.cache
def pair_of_instances() -> tuple[Instances, Found]:
    """These with two components that agree, so that the data are normal, and their particles."""
    at = draw_instances(21, 1000)
    parts = jax.tree.map(lambda leaf: leaf[np.isin(at.owner, PAIR)], at.parts)
    assert not np.any(parts.size)
    parts = parts._replace(second=parts.first)
    pair = Instances(parts, np.arange(2), 2, at.taus[np.array(PAIR)])
    return pair, simulate_all(pair, 4000)


@pytest.mark.parametrize("name", ["exact_mean", "ddim"])
def test_particles_of_normal_data_have_the_exact_distance(name: str) -> None:
    """Both ways: noise that two steps share made these distances up to a third too large."""
    pair, found = pair_of_instances()
    known, taus = jax.tree.map(jnp.asarray, (constants_of(pair), pair.taus))
    bound = bounds_of(name)(known, taus, jnp.zeros(2), *jnp.zeros((2, 2, STEPS)))
    for row, lam in enumerate(pair.parts.lam):
        exact = normal_distance(name, lam, pair.taus[row])
        mean, variance = found.squares[name][row]
        deviation = np.sqrt(variance) / (2.0 * np.sqrt(mean))
        slack = STANDARD_ERRORS * deviation + REFERENCE[0] * exact
        assert abs(np.sqrt(mean) - exact) < slack
        # nothing is lost by the bound here
        np.testing.assert_allclose(bound[row], exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "particles"), [(24, 800), pytest.param(1000, 500, marks=pytest.mark.slow)]
)
def test_bounds_hold_for_nonlinear_errors(
    count: int, particles: int, record_property: Callable
) -> None:
    """Errors along the chain, or under p_t with their Lipschitz constant; known by m, L and L_F."""
    at = draw_instances(21, count)
    found = simulate_all(at, particles)
    known = constants_of(at)
    start = np.sqrt(found.start)
    under = np.sqrt(found.under.max(-1))
    for name in SCHEMES:
        mean, variance = np.asarray(found.squares[name]).T
        truth = np.sqrt(mean)
        slack = STANDARD_ERRORS * np.sqrt(variance) / (2.0 * np.maximum(truth, 1e-12))
        slack += REFERENCE[0] * truth + REFERENCE[1]
        along = np.sqrt(found.along[name].max(-1))
        exact_sizes = under if name in RANDOMISED else np.sqrt(found.under[..., 0])
        for label, sizes, lipschitz in (
            ("along the chain", along, np.zeros_like(along)),
            ("under p_t", exact_sizes, known.lipschitz),
        ):
            arguments = (known, at.taus, start, sizes, lipschitz)
            bound = np.asarray(bounds_of(name)(*jax.tree.map(jnp.asarray, arguments)))
            finite = np.isfinite(bound)
            assert not np.any(np.isnan(bound))
            assert finite.mean() > 0.99
            off = truth - slack > bound
            assert not np.any(off), (name, label, np.flatnonzero(off), truth[off], bound[off])
            ratio = (truth / bound)[finite & (truth > 0.01)]
            shown = (float(np.median(ratio)), float(ratio.max()))
            record_property(f"{name}, {label}", shown)
            print(f"{name}, {label}: median {shown[0]:.3f}, largest {shown[1]:.3f}")
            assert shown[1] > 0.3
