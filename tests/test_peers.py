"""Published searches, each against a case with a known answer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

import jaxkernels as jk
from benchmarks.peers import ays, dmn, gits, ld3, oss
from benchmarks.peers.found import from_sigmas

PROCESS, T_MIN = jk.VP(), 1e-3


def _isotropic(variance: float) -> jk.Denoiser:
    """The exact denoiser of isotropic Gaussian data."""

    def denoise(x, t):
        a, s = PROCESS.signal(t), PROCESS.noise(t)
        return a * variance / (a**2 * variance + s**2) * x

    return jk.Denoiser(denoise, PROCESS, "x0")


def test_gits_costs_of_a_gaussian() -> None:
    """An Euler step scales y by 1 + (u - s) s / (c^2 + s^2); all points lie on one line."""
    sigmas = np.geomspace(50.0, 0.01, 9)
    factors = 1.0 + np.diff(sigmas) * sigmas[:-1] / (0.5 + sigmas[:-1] ** 2)
    scale = np.concatenate([[1.0], np.cumprod(factors)])
    y = np.random.default_rng(0).standard_normal((6, 3))
    points = scale[:, None, None] * y
    found = gits.costs(sigmas, points, "l2")
    sizes = np.linalg.norm(y, axis=1).mean()
    for i, j in itertools.combinations(range(9), 2):
        one = scale[i] * (1.0 + (sigmas[j] - sigmas[i]) * sigmas[i] / (0.5 + sigmas[i] ** 2))
        assert found[i, j] == pytest.approx(sizes * abs(one - scale[j]), rel=1e-9, abs=1e-12)
    straight = gits.costs(sigmas, points, "dev")[np.triu_indices(9, 1)]
    np.testing.assert_allclose(straight, 0.0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_gits_finds_the_best_of_all_paths(steps: int) -> None:
    rng = np.random.default_rng(steps)
    for _ in range(20):
        cost = np.where(np.triu(np.ones((8, 8)), 1) > 0, rng.exponential(size=(8, 8)), np.inf)

        def total(path: tuple[int, ...], cost: np.ndarray = cost) -> float:
            value = 0.0
            for i, j in reversed(list(itertools.pairwise(path))):
                value = cost[i, j] + 1.15 * value
            return value

        inner = itertools.combinations(range(1, 7), steps - 1)
        best = min(((0, *points, 7) for points in inner), key=total)
        assert tuple(gits.best_path(cost, steps, 1.15)) == best


def test_oss_finds_the_best_of_all_paths_of_two_steps() -> None:
    """And of three it keeps, for each point, the state of two steps nearest to the teacher."""
    sigmas = np.geomspace(20.0, 0.05, 10)
    rng = np.random.default_rng(0)
    slope = rng.uniform(0.2, 1.0, (10, 1, 1))
    points = rng.standard_normal((10, 5, 2))

    def slopes(states: np.ndarray) -> np.ndarray:
        return (slope * np.tanh(states))[:-1]

    def step(y: np.ndarray, i: int, j: int) -> np.ndarray:
        return y + (sigmas[j] - sigmas[i]) * slope[i, 0, 0] * np.tanh(y)

    two = oss.best_paths(sigmas, points, slopes, 2)
    three = oss.best_paths(sigmas, points, slopes, 3)
    for n in range(5):
        start = points[0, n]

        def after_two(i: int, j: int, start: np.ndarray = start) -> np.ndarray:
            return step(step(start, 0, i), i, j)

        def nearest(j: int, n: int = n, after_two=after_two) -> int:
            inner = range(1, j)
            return min(inner, key=lambda i: np.sum((after_two(i, j) - points[j, n]) ** 2))

        assert two[n].tolist() == [0, nearest(9), 9]

        def last(j: int, n: int = n, nearest=nearest, after_two=after_two) -> float:
            return np.sum((step(after_two(nearest(j), j), j, 9) - points[9, n]) ** 2)

        best = min(range(2, 9), key=last)
        assert three[n].tolist() == [0, nearest(best), best, 9]


def test_oss_counts_its_network_and_stays_in_order() -> None:
    seen: list[int] = []

    def network(x, t):
        jax.debug.callback(lambda x: seen.append(x.shape[0]), x)
        return 0.5 * x

    denoiser = jk.Denoiser(network, PROCESS, "x0")
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2)))
    found = oss.search(denoiser, 4, noise, T_MIN)
    jax.effects_barrier()
    assert found.nfe == sum(seen) == 3 * 200 * (1 + 4)
    assert np.all(np.diff(np.asarray(found.schedule.times)) < 0)


def test_dmn_is_that_of_its_code() -> None:
    """Objectives and levels that the authors' code gives for VP, five steps of order 3."""
    makers = (jk.schedules.log_snr, jk.schedules.uniform)
    for make, expected in zip(makers, (231.5, 75.97), strict=True):
        levels = -np.log(np.asarray(make(PROCESS, 5, T_MIN).sigmas(PROCESS)))
        assert dmn.objective(levels, 3) == pytest.approx(expected, rel=1e-3)
    found = dmn.search(PROCESS, 5, T_MIN, 3).schedule
    sigmas = np.asarray(found.sigmas(PROCESS))
    assert dmn.objective(-np.log(sigmas), 3) == pytest.approx(49.9, rel=2e-3)
    expected = [152.17, 8.8625, 3.3731, 1.2941, 0.3449, 0.0105]
    np.testing.assert_allclose(sigmas, expected, rtol=2e-2)


def test_dmn_weights_are_integrals_of_the_basis() -> None:
    nodes = np.array([-1.0, -0.4, 0.3])
    for i, weight in enumerate(dmn.weights(nodes, 1.1)):
        others = np.delete(nodes, i)

        def value(u: float, i: int = i, others: np.ndarray = others) -> float:
            return float(np.exp(u) * np.prod((u - others) / (nodes[i] - others)))

        assert weight == pytest.approx(quad(value, 0.3, 1.1)[0], rel=1e-10)


def _gaussian_bound(above: float, below: float, variance: float) -> float:
    """The integral of a step for one dimension of Gaussian data."""

    def integrand(t: float) -> float:
        drop = variance**2 * (above**2 - t**2) / ((variance + t**2) * (variance + above**2))
        return drop / t**3

    return quad(integrand, below, above, epsabs=0.0, epsrel=1e-10, limit=200)[0]


def test_ays_bound_of_a_gaussian() -> None:
    """E |D(x_t) - D(x_s)|^2 = c^4 / (c^2 + t^2) - c^4 / (c^2 + s^2) in each dimension."""
    variance = 0.3
    rng = np.random.default_rng(0)
    data = np.sqrt(variance) * rng.standard_normal((4000, 24))
    bound = ays.Bound(_isotropic(variance), data)
    for above, below in ((5.0, 1.0), (1.0, 0.3), (0.3, 0.02)):
        # 256 samples of 24 dimensions each: a standard error of some 2 %
        expected = 24 * _gaussian_bound(above, below, variance)
        assert bound(above, below) == pytest.approx(expected, rel=0.1)
    assert bound.nfe == 3 * 2 * 256
    levels, density = ays.importance(5.0, 0.1, variance, np.linspace(0.01, 0.99, 99))
    assert np.all(np.diff(levels) > 0)
    assert np.sum(0.5 * (density[1:] + density[:-1]) * np.diff(levels)) == pytest.approx(
        0.98, abs=0.02
    )


def test_ays_descends_to_the_minimum_of_a_gaussian() -> None:
    def bound(above: float, below: float) -> float:
        return _gaussian_bound(above, below, 1.0)

    start = np.geomspace(80.0, 0.01, 5)

    def total(inner: np.ndarray) -> float:
        sigmas = np.concatenate([start[:1], np.exp(inner), start[-1:]])
        return sum(bound(s, u) for s, u in itertools.pairwise(sigmas))

    exact = minimize(total, np.log(start[1:-1]), method="Nelder-Mead")
    found = ays.descend(bound, start)
    assert total(np.log(found[1:-1])) < 1.05 * exact.fun < 0.5 * total(np.log(start[1:-1]))


def test_ld3_finds_the_tangent_schedule() -> None:
    """DDIM shrinks isotropic Gaussian data least where arctan(sigma / c) is evenly spaced."""
    denoiser = _isotropic(1.0)
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((2 * ld3.SAMPLES + 100, 4)))
    found = ld3.search(denoiser, "ddim", 4, noise, T_MIN)
    high, low = np.arctan(np.asarray(PROCESS.sigma(np.array([1.0, T_MIN]))))
    tangent = from_sigmas(PROCESS, np.tan(np.linspace(high, low, 5)), T_MIN)
    start = jk.schedules.log_snr(PROCESS, 4, T_MIN)
    fresh = noise[2 * ld3.SAMPLES :]
    schedules = {"found": found.schedule, "tangent": tangent, "start": start}
    errors = jk.compare_schedules(denoiser, "ddim", schedules, fresh, progress=False)
    rms = errors.statistic("rms")
    assert rms["tangent"] < 1.05 * rms["found"] < 1.2 * rms["tangent"] < rms["start"]
    # the teacher; then, for each of seven rounds, 25 + 25 batches of two at 4 runs a sample (a
    # gradient counts as three), the validation after each of the first 25, and one more
    assert found.nfe == 100 * 4 * 40 + 4 * 7 * (4 * 100 + 25 * 50 + 50)


@pytest.mark.parametrize(("budget", "batches", "rounds"), [(100, 1, 0), (900, 1, 2)])
def test_ld3_within_a_budget(budget: int, batches: int, rounds: int) -> None:
    """It ends before the budget does, in the middle of a round as well.

    A batch runs two samples four times and validates eight; a round has four of these, moves the
    noise of eight samples at four runs each, and validates them once more.
    """
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((20, 4)))
    found = ld3.search(_isotropic(1.0), "ddim", 4, noise, T_MIN, budget)
    each = 2 * 4 + 8
    assert found.nfe == 4 * (batches * each + rounds * (4 * each + 8 * 4 + 8)) <= budget
    assert budget - found.nfe < 4 * each
