"""How score errors accumulate: operators against hand-written steps, bounds against exact errors.

The oracles are NumPy recurrences of the difference between two runs that share their noise, and the
closed form of W2 between normal distributions. What is called a bound has to hold in every one of
several hundred random cases.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from end_evaluated import EndEvaluated
from gaussian_distances import gaussian_w2
from published_samplers import SAMPLERS

import jaxkernels as jk
from jaxkernels.bounds import (
    AccumulationBound,
    AccumulationOperators,
    LipschitzAccumulation,
    accumulation_operators,
    hessian_interval,
    lipschitz_accumulation,
)
from jaxkernels.samplers import AbstractSampler

# both with g^2 = 2, the convention of the source
PROCESSES: dict[str, jk.AbstractProcess] = {"vp": jk.OU(rate=2.0), "ve": jk.VE(rate=2.0)}
EXPONENTIAL = jk.ExponentialIntegrator()
EXACT = 1.0 + 1e-9


def _marginal(kind: str, t: np.ndarray | float, eigenvalues: np.ndarray) -> np.ndarray:
    t = np.asarray(t)[..., None]
    return np.exp(-2 * t) * eigenvalues - np.expm1(-2 * t) if kind == "vp" else eigenvalues + 2 * t


def _step_coefficients(
    kind: str, times: np.ndarray, alpha: float, eigenvalues: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors A_j (K, modes), beta_j (K,), noise variances (K,), exponential integrator by hand."""
    h, p = -np.diff(times), 1.0 + alpha**2
    keep, beta, noise = {
        "vp": (np.exp(h), p * np.expm1(h), alpha**2 * np.expm1(2 * h)),
        "ve": (np.ones_like(h), p * h, 2 * alpha**2 * h),
    }[kind]
    return keep[:, None] - beta[:, None] / _marginal(kind, times[:-1], eigenvalues), beta, noise


def _difference(
    name: str, kind: str, times: np.ndarray, eigenvalues: np.ndarray, errors: np.ndarray
) -> np.ndarray:
    """Terminal difference (..., modes) of two runs, one with errors (..., evaluations, modes)."""
    out = np.zeros_like(errors[..., 0, :])
    factor, beta, _ = _step_coefficients(kind, times, 0.0, eigenvalues)
    precision = 1.0 / _marginal(kind, times, eigenvalues)
    for k, h in enumerate(-np.diff(times)):
        if name == "exponential_integrator":
            out = factor[k] * out + beta[k] * errors[..., k, :]
            continue

        def flow(x: np.ndarray, n: int, e: int) -> np.ndarray:  # towards the data: (x +) score
            return (x if kind == "vp" else 0.0) - precision[n] * x + errors[..., e, :]

        first = flow(out, k, 2 * k)
        out = out + 0.5 * h * (first + flow(out + h * first, k + 1, 2 * k + 1))
    return out


def _published_norms(
    factor: np.ndarray, beta: np.ndarray, lipschitz: np.ndarray | float
) -> np.ndarray:
    """||G_i(H)|| as published: |beta_i prod_{j>i} (A_j + beta_j L_j)|, the largest over modes.

    The factors are too small where A_j < 0.
    """
    grown = factor + (beta * lipschitz)[:, None]
    products = [beta[i] * np.prod(grown[i + 1 :], axis=0) for i in range(len(beta))]
    return np.abs(np.stack(products)).max(1)


def _published_bound(norms: np.ndarray, rms: np.ndarray | float) -> float:
    """(sum_i ||G_i(H)||^2 rms_i^2)^(1/2), equation (10) of the source, which is no bound on W2.

    It neglects the correlation of errors in time, and factors A_j < 0 with L_j > 0.
    """
    return float(np.sqrt(np.sum((norms * rms) ** 2)))


def _random_times(rng: np.random.Generator, steps: int) -> np.ndarray:
    gaps = rng.gamma(1.0, size=steps) + 0.02
    return (
        np.concatenate([np.cumsum(gaps)[::-1], [0.0]]) * rng.uniform(0.2, 3.0) / gaps.sum() + 0.01
    )


# --- operators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_operators_of_the_exponential_integrator_by_hand(kind: str, alpha: float) -> None:
    """beta_i prod_{j>i} (alpha_j - beta_j / Sigma_j), the source's coefficients, with signs."""
    times, eigenvalues = np.array([2.0, 1.2, 0.5, 0.2, 0.05, 0.0]), np.array([3.0, 1.0, 0.04])
    factor, beta, _ = _step_coefficients(kind, times, alpha, eigenvalues)
    expected = np.stack([beta[i] * np.prod(factor[i + 1 :], axis=0) for i in range(5)])
    target = jk.Gaussian([1.0, -2.0, 0.5], eigenvalues)
    operators = accumulation_operators(
        target, PROCESSES[kind], EXPONENTIAL, jk.Schedule(times, alpha)
    )
    np.testing.assert_allclose(operators.signed, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(operators.norms, np.abs(expected).max(1), rtol=1e-11)
    np.testing.assert_allclose(operators.times, times[:-1])
    if alpha == 3.0:
        assert expected.min() < 0 < expected.max()
    # without dependence on x the general factors are the operators of the mode that grows
    # most at every step
    steps = lipschitz_accumulation(
        target, PROCESSES[kind], EXPONENTIAL, jk.Schedule(times, alpha), lipschitz=0.0
    )
    np.testing.assert_allclose(steps.injection, beta, rtol=1e-12)
    np.testing.assert_allclose(steps.growth, np.abs(factor).max(1), rtol=1e-12)
    published = _published_norms(factor, beta, 0.0)
    np.testing.assert_allclose(published, operators.norms, rtol=1e-11)


def _run(
    sampler: AbstractSampler,
    process: jk.AbstractProcess,
    target: jk.Gaussian,
    schedule: jk.Schedule,
    errors: jax.Array,
) -> jax.Array:
    """The end of a run without noise, by the sampler's own steps, with one error in every score."""
    exact = target.denoiser(process)

    def take(state, here):
        step, errors = here
        numbers = iter(range(sampler.nfe_per_step))

        def learned(x: jax.Array, t: jax.Array) -> jk.Prediction:
            eps = exact(x, t).eps - process.noise(t) * errors[next(numbers)]
            return jk.Prediction((x - process.noise(t) * eps) / process.signal(t), eps)

        return sampler.step(learned, jnp.zeros_like, process, step, *state), None

    x = jnp.full(errors.shape[1], 0.7)
    by_step = errors.reshape(schedule.num_steps, -1, errors.shape[1])
    return jax.lax.scan(
        take, (x, sampler.init_history(x)), (schedule.steps(sampler.history_steps), by_step)
    )[0][0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_operators_of_every_sampler_by_perturbing_it(name: str) -> None:
    """Most leave out evaluations of the last step, to sigma = 0, where an error has no effect.

    The midpoint rule does not evaluate the end of a step, and leaves out none.
    """
    sampler, process = SAMPLERS[name](), jk.VP()
    schedule = jk.Schedule([0.9, 0.5, 0.2, 0.03, 0.0], 0.8 if sampler.stochastic else 0.0)
    target = jk.Gaussian([1.0, -0.5], [2.0, 0.02])
    operators = accumulation_operators(target, process, name, schedule)
    count = 4 * sampler.nfe_per_step
    assert operators.signed.shape == (count, 2)
    units = np.concatenate([np.zeros((1, count, 2)), 5.0 * np.eye(count)[:, :, None] * np.ones(2)])
    ends = np.asarray(
        jax.vmap(lambda e: _run(sampler, process, target, schedule, e))(jnp.asarray(units))
    )
    np.testing.assert_allclose(operators.signed, (ends[1:] - ends[0]) / 5.0, rtol=1e-10, atol=1e-13)
    skipped = np.all(np.asarray(operators.signed) == 0, axis=1)
    left_out = 0 if name == "midpoint" else sampler.nfe_per_step - 1
    assert skipped.tolist() == [False] * (count - left_out) + [True] * left_out


def test_multiplicities_and_bases() -> None:
    """A mode counts once however often it occurs, not at all with weight 0, in any coordinates."""
    setting = jk.OU(rate=2.0), EXPONENTIAL, jk.Schedule([1.0, 0.7, 0.4, 0.1, 0.03, 0.01], 1.0)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = jk.Gaussian([0.3, 0.1, 2.0], [0.5, 2.0, 0.5], basis=basis)
    weighted = jk.Gaussian(0.0, [0.5, 2.0, 9.0], weights=[7.0, 0.5, 0.0])
    norms = (accumulation_operators(target, *setting).norms for target in (turned, weighted))
    np.testing.assert_allclose(*norms, rtol=1e-12)
    ours, theirs = (
        lipschitz_accumulation(target, *setting, lipschitz=0.2) for target in (turned, weighted)
    )
    np.testing.assert_allclose(ours.gains, theirs.gains, rtol=1e-12)
    for field in ("growth", "injection"):
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=1e-12)


# --- bounds for errors of known correlation -------------------------------------------------------


def _attained(bound: AccumulationBound, rms_difference: float) -> float:
    return rms_difference / float(bound.value)


def _random_directions(
    rng: np.random.Generator, case: str, count: int, modes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Errors e = sum_l z_l W_l, z independent of variance 1: W (l, evaluations, modes)."""
    sizes = rng.gamma(0.5, size=(count, 1)) * rng.gamma(0.5, size=(count, modes))
    if case == "coherent":
        return rng.normal(size=(rng.integers(1, 4), count, modes)) * sizes, np.ones((count, count))
    if case == "orthogonal":  # modes correlated with each other, times not
        mixing = rng.normal(size=(modes, count, modes)) * sizes
        directions = np.einsum("lim,in->ilnm", mixing, np.eye(count))
        return directions.reshape(-1, count, modes), np.eye(count)
    factor = rng.normal(size=(count, 3)) * np.where(rng.random(3) < 0.5, 1.0, 0.1) + rng.choice(
        [0.0, 1.0]
    )
    factor /= np.linalg.norm(factor, axis=1, keepdims=True)
    directions = np.einsum("il,im,mn->lnim", factor, sizes, np.eye(modes))
    return directions.reshape(-1, count, modes), factor @ factor.T


@pytest.mark.parametrize("name", ["exponential_integrator", "heun"])
def test_bounds_hold_for_random_errors_that_do_not_depend_on_x(name: str) -> None:
    """The covariance is not affected, so W2 is the shift of the mean: its mean square is a sum."""
    rng = np.random.default_rng(1)
    ratios: dict[str, list[float]] = {"coherent": [], "orthogonal": [], "correlated": []}
    count = 10 if name == "heun" else 5
    for n in range(40):
        kind = "vp" if n % 2 else "ve"
        times, eigenvalues = _random_times(rng, 5), rng.gamma(1.0, size=3)
        target = jk.Gaussian(rng.normal(size=3), eigenvalues)
        operators = accumulation_operators(
            target, PROCESSES[kind], SAMPLERS[name](), jk.Schedule(times)
        )
        for case, found in ratios.items():
            directions, correlation = _random_directions(rng, case, count, 3)
            rms = np.sqrt(np.sum(directions**2, axis=(0, 2)))
            w2 = np.sqrt(np.sum(_difference(name, kind, times, eigenvalues, directions) ** 2))
            bound = {
                "coherent": operators.coherent,
                "orthogonal": operators.orthogonal,
                "correlated": lambda r, c=correlation, o=operators: o.correlated(r, c),
            }[case](rms)
            found.append(_attained(bound, w2))
            assert _attained(operators.coherent(rms), w2) <= EXACT
            assert float(bound.value) <= float(operators.coherent(rms).value) * EXACT
    # so close that no factor can hide: medians 0.69, 0.95, 0.85 (Heun 0.49, 0.82, 0.68)
    assert all(0.8 < max(found) <= EXACT for found in ratios.values())


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0])
def test_bounds_are_attained_in_one_mode(rho: float) -> None:
    """AR(1) errors with the signs of G_i; rho = 0, 1 are the orthogonal and the coherent bound."""
    times, rms = np.array([1.5, 0.8, 0.3, 0.1, 0.02]), np.array([1.0, 0.3, 2.0, 0.5])
    schedule = jk.Schedule(times, 3.0)
    operators = accumulation_operators(jk.Gaussian(0.0, [0.3]), jk.VE(2.0), EXPONENTIAL, schedule)
    factor, beta, _ = _step_coefficients("ve", times, 3.0, np.array([0.3]))
    signs = np.sign([np.prod(factor[i + 1 :]) for i in range(4)])
    assert set(signs) == {-1.0, 1.0}
    correlation = rho ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    reached = 0.0
    for column in np.linalg.cholesky(correlation + 1e-15 * np.eye(4)).T:
        moved = 0.0
        for k in range(4):
            moved = factor[k, 0] * moved + beta[k] * signs[k] * rms[k] * column[k]
        reached += moved**2
    w2 = np.sqrt(reached)
    assert float(operators.correlated(rms, jk.AR1(rho)).value) == pytest.approx(w2, rel=1e-7)
    assert float(
        operators.correlated(rms, correlation * np.outer(signs, signs)).value
    ) == pytest.approx(w2, rel=1e-7)
    if rho in (0.0, 1.0):
        same = operators.orthogonal(rms) if rho == 0.0 else operators.coherent(rms)
        assert float(same.value) == pytest.approx(w2, rel=1e-7)


# --- bounds for errors that depend on x -----------------------------------------------------------


@dataclasses.dataclass
class Pair:
    """Exact distributions without errors and with e = -slope x + shift, d modes; rms errors."""

    means: tuple[np.ndarray, np.ndarray]
    covariances: tuple[np.ndarray, np.ndarray]
    rms: np.ndarray
    """Along the run without errors."""
    products: list[np.ndarray]
    """The perturbed run's factor from after each step to the end."""

    def w2(self, extra: np.ndarray | float = 0.0) -> float:
        moments = self.means[1], self.covariances[1] + extra, self.means[0], self.covariances[0]
        return float(gaussian_w2(*moments))


def _pair(
    coefficients: tuple[np.ndarray, np.ndarray, np.ndarray],
    start: tuple[np.ndarray, np.ndarray],
    constant: np.ndarray,
    slope: np.ndarray,
    shift: np.ndarray,
) -> Pair:
    """`constant` (K, d) is beta_j Sigma_j^{-1} mu_j, the part of the step that is free of x."""
    means = [start[0]] * 2
    covariances = [start[1]] * 2
    rms: list[float] = []
    factors: list[np.ndarray] = []
    for a, beta, noise, b, delta, q in zip(*coefficients, constant, slope, shift, strict=True):
        second = np.sum((q - delta @ means[0]) ** 2) + np.trace(delta @ covariances[0] @ delta.T)
        rms.append(np.sqrt(second))
        steps = np.diag(a), np.diag(a) - beta * delta
        factors.append(steps[1])
        means = [steps[0] @ means[0] + b, steps[1] @ means[1] + b + beta * q]
        covariances = [
            f @ c @ f.T + noise * np.eye(len(a)) for f, c in zip(steps, covariances, strict=True)
        ]
    products = [np.eye(len(means[0]))]
    for factor in factors[:0:-1]:
        products.insert(0, products[0] @ factor)
    return Pair((means[0], means[1]), (covariances[0], covariances[1]), np.array(rms), products)


def test_bounds_hold_for_random_lipschitz_errors() -> None:
    """Matrix slopes that commute with nothing; noise in the score, for all samples or for each."""
    rng = np.random.default_rng(2)
    ratios: dict[str, list[float]] = {
        "coherent": [],
        "mixed, shared": [],
        "mixed, per sample": [],
        "fresh only": [],
    }
    for n in range(150):
        kind, alpha = ("vp" if n % 2 else "ve"), rng.choice([0.0, 1.0, 2.0])
        times, eigenvalues, mu = (
            _random_times(rng, 5),
            rng.gamma(1.0, size=3) + 0.01,
            rng.normal(size=3),
        )
        coefficients = _step_coefficients(kind, times, alpha, eigenvalues)
        precision = 1.0 / _marginal(kind, times[:-1], eigenvalues)
        at_data = np.exp(-times[:-1, None]) if kind == "vp" else 1.0
        constant = coefficients[1][:, None] * precision * at_data * mu
        slope = rng.normal(size=(5, 3, 3)) * rng.gamma(0.5, 0.5, size=(5, 1, 1))
        shift = rng.normal(size=(5, 3)) * rng.gamma(0.5, size=(5, 1))
        start = np.zeros(3), np.eye(3) * (1.0 if kind == "vp" else 2 * times[0])
        pair = _pair(coefficients, start, constant, slope, shift)
        accumulation = lipschitz_accumulation(
            jk.Gaussian(mu, eigenvalues),
            PROCESSES[kind],
            EXPONENTIAL,
            jk.Schedule(times, alpha),
            lipschitz=np.linalg.norm(slope, ord=2, axis=(1, 2)),
        )
        ratios["coherent"].append(_attained(accumulation.coherent(pair.rms), pair.w2()))
        # without fresh noise the recursion is the sum
        mixed = float(accumulation.mixed(pair.rms, 0.0).value)
        assert mixed == pytest.approx(float(accumulation.coherent(pair.rms).value), rel=1e-11)

        fresh = rng.gamma(0.5, size=5)
        propagated = [
            beta * f * p for beta, f, p in zip(coefficients[1], fresh, pair.products, strict=True)
        ]
        total = sum(s @ s.T for s in propagated) / 3.0  # equal in all directions
        bound = accumulation.mixed(pair.rms, fresh)
        # a draw for all samples moves the mean, a draw for each adds to the covariance
        ratios["mixed, shared"].append(_attained(bound, np.sqrt(pair.w2() ** 2 + np.trace(total))))
        ratios["mixed, per sample"].append(_attained(bound, pair.w2(total)))
        centred = _pair(coefficients, start, constant, 0.0 * slope, 0.0 * shift)
        still = lipschitz_accumulation(
            jk.Gaussian(mu, eigenvalues),
            PROCESSES[kind],
            EXPONENTIAL,
            jk.Schedule(times, alpha),
            lipschitz=0.0,
        )
        alone = (
            sum(
                np.sum((b * f * p) ** 2)
                for b, f, p in zip(coefficients[1], fresh, centred.products)
            )
            / 3.0
        )
        ratios["fresh only"].append(_attained(still.mixed(0.0, fresh), np.sqrt(alone)))
        value = np.sqrt(np.sum((np.asarray(still.gains) * fresh) ** 2))
        assert float(still.mixed(0.0, fresh).value) == pytest.approx(value, rel=1e-11)
    # medians 0.28, 0.30, 0.26 and 0.83
    assert all(0.8 < max(found) <= EXACT for found in ratios.values())


def _mixture_score(x: np.ndarray, a: float, s2: float, mean: float, variance: float) -> np.ndarray:
    """Of (N(-mean, variance) + N(mean, variance)) / 2, at signal a and noise variance s2."""
    v = a * a * variance + s2
    return (a * mean * np.tanh(a * mean * x / v) - x) / v


def test_bounds_hold_for_a_mixture_and_nonlinear_errors() -> None:
    """A log-concave mixture through the Gaussian target with its two extreme curvatures.

    The inequality holds for the particles themselves, so there is no sampling error: all means are
    over particles.
    """
    rng = np.random.default_rng(3)
    found = []
    for n in range(40):
        kind, alpha = ("vp" if n % 2 else "ve"), rng.choice([0.0, 1.0])
        variance = rng.uniform(0.2, 1.5)
        mean = np.sqrt(variance) * rng.uniform(0.0, 0.95)
        convexity, smoothness = 1.0 / variance - mean**2 / variance**2, 1.0 / variance
        times, size, wave = (
            _random_times(rng, 5),
            rng.gamma(0.5, size=5),
            rng.uniform(0.1, 3.0, size=5),
        )
        accumulation = lipschitz_accumulation(
            jk.Gaussian(0.0, [1.0 / convexity, 1.0 / smoothness]),
            PROCESSES[kind],
            EXPONENTIAL,
            jk.Schedule(times, alpha),
            lipschitz=size * wave,
        )
        plain = rng.normal(size=2000) * (1.0 if kind == "vp" else np.sqrt(2 * times[0]))
        moved, rms = plain, []
        _, beta, noise = _step_coefficients(kind, times, alpha, np.ones(1))
        for k, (t, h) in enumerate(zip(times[:-1], -np.diff(times), strict=True)):
            a, s2 = (np.exp(-t), -np.expm1(-2 * t)) if kind == "vp" else (1.0, 2 * t)
            keep, z = np.exp(h) if kind == "vp" else 1.0, np.sqrt(noise[k]) * rng.normal(size=2000)

            def step(x: np.ndarray, e: np.ndarray | float) -> np.ndarray:
                return keep * x + beta[k] * (_mixture_score(x, a, s2, mean, variance) + e) + z  # noqa: B023

            def error(x: np.ndarray) -> np.ndarray:
                return size[k] * np.sin(wave[k] * x + 1.0)  # noqa: B023

            rms.append(np.sqrt(np.mean(error(plain) ** 2)))
            plain, moved = step(plain, 0.0), step(moved, error(moved))
        found.append(_attained(accumulation.coherent(rms), np.sqrt(np.mean((plain - moved) ** 2))))
    assert 0.8 < max(found) <= EXACT  # median 0.49


# --- the source's bound as published --------------------------------------------------------------


def test_the_published_sum_of_squares_fails_for_a_constant_error() -> None:
    """p_0 = N(0, 1), T = 3, e = 1: every A_j = 2 - e^h, W2 = 2 (1 - (2 - e^h)^K) at any K.

    The coherent bound is attained. The published number falls to 0 as K grows, and the ratio
    W2^2 / number^2 grows like K.
    """
    steps = 100
    schedule = jk.Schedule(np.linspace(3.0, 0.0, steps + 1), 1.0)
    setting = jk.Gaussian(0.0, [1.0]), jk.OU(rate=2.0), EXPONENTIAL, schedule
    accumulation = lipschitz_accumulation(*setting, lipschitz=0.0)
    w2 = 2.0 * (1.0 - (2.0 - np.exp(3.0 / steps)) ** steps)
    factor, beta, _ = _step_coefficients("vp", np.asarray(schedule.times), 1.0, np.ones(1))
    published = _published_bound(_published_norms(factor, beta, 0.0), 1.0)
    assert w2**2 / published**2 == pytest.approx(59.0, abs=0.5)
    operators = accumulation_operators(*setting)
    for bound in (accumulation.coherent(1.0), operators.coherent(1.0)):
        assert float(bound.value) == pytest.approx(w2, rel=1e-11)
    # uncorrelated errors are what the published number is right for
    assert float(operators.orthogonal(1.0).value) == pytest.approx(published, rel=1e-11)


def test_the_published_operator_fails_for_a_step_that_overshoots() -> None:
    """Variance 0.1, steps of 0.2: A = (0.2, -3). With e_1 = -x the last is -3.4, not -3 + 1 * 0.4.

    Also e_0 = 10 and e_1 are uncorrelated, so that correlation in time is not what the published
    number misses.
    """
    schedule = jk.Schedule([0.4, 0.2, 1e-13], 1.0)
    accumulation = lipschitz_accumulation(
        jk.Gaussian(0.0, [0.1]), jk.VE(rate=2.0), EndEvaluated(), schedule, lipschitz=[0.0, 1.0]
    )
    np.testing.assert_allclose(accumulation.injection, [0.4, 0.4], rtol=1e-9)
    np.testing.assert_allclose(accumulation.growth, [0.2, 3.4], rtol=1e-9)
    coefficients = np.array([[0.2], [-3.0]]), np.array([0.4, 0.4]), np.array([0.4, 0.4])
    published = _published_norms(coefficients[0], coefficients[1], np.array([0.0, 1.0]))
    np.testing.assert_allclose(published, [0.4 * 2.6, 0.4], rtol=1e-9)
    slope, shift = np.array([0.0, 1.0])[:, None, None], np.array([[10.0], [0.0]])
    pair = _pair(coefficients, (np.zeros(1), np.full((1, 1), 0.8)), np.zeros((2, 1)), slope, shift)
    assert pair.w2() ** 2 == pytest.approx(185.0, abs=0.05)
    # sizes under the exact marginals, as in the source: 0.1 is the variance at time 0
    sizes = np.array([10.0, np.sqrt(0.1)])
    assert _published_bound(published, sizes) ** 2 == pytest.approx(108.2, abs=0.05)
    assert 0.98 < _attained(accumulation.coherent(pair.rms), pair.w2()) <= 1.0
    # the error is met under another distribution than p_t, with other sizes
    assert pair.rms[1] / np.sqrt(0.1) == pytest.approx(2.08, abs=0.005)


def test_an_error_sampled_elsewhere_than_at_x() -> None:
    """A step that evaluates at 2 x meets twice the error's slope: its Lipschitz part doubles."""

    class Elsewhere(EndEvaluated):
        def step(self, predict, noise, process, step, x, history):
            h = step.time - step.next_time
            score = -predict(2 * x, step.next_time).eps / process.noise(step.next_time)
            return x + h * score, history

    accumulation = lipschitz_accumulation(
        jk.Gaussian(0.0, [0.5]),
        jk.VE(rate=2.0),
        Elsewhere(),
        jk.Schedule([0.4, 0.1]),
        lipschitz=2.0,
    )
    assert float(accumulation.growth[0]) == pytest.approx(abs(1 - 0.3 * 2 / 0.7) + 0.3 * 2 * 2.0)
    assert float(accumulation.injection[0]) == pytest.approx(0.3)


# --- curvature ------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [jk.OU(rate=2.0), jk.FlowMatching()])
@pytest.mark.parametrize("mean", [0.5, 1.0])
def test_curvature_interval_of_a_mixture(process: jk.AbstractProcess, mean: float) -> None:
    """Two normals of variance 1/2: 2 - 4 mean^2 <= -Hess log p_0 <= 2, at 0, and far away."""
    mixture = jk.GaussianMixture([0.5, 0.5], [[-mean], [mean]], [[[0.5]], [[0.5]]])
    x = np.linspace(-12.0, 12.0, 801)
    convexity, smoothness = 2.0 - 4.0 * mean**2, 2.0
    slopes = jax.jit(
        jax.vmap(jax.grad(lambda x, t: mixture.score(process, x[None], t)[0]), (0, None))
    )
    last = 0.0
    for sigma2 in (0.0, 0.05, 0.2, 0.45, 0.55, 3.0):
        t = process.time_at_sigma(np.sqrt(sigma2))
        slope = slopes(jnp.asarray(x), t)
        low, high = (
            float(v)
            for v in hessian_interval(process, t, convexity=convexity, smoothness=smoothness)
        )
        assert low * EXACT <= float(slope.min())
        if convexity < 0 and sigma2 >= 0.5:
            assert high == np.inf
            continue
        assert float(slope.max()) <= high + 1e-9 * abs(high)
        if sigma2 == 0.0:
            assert (low, high) == pytest.approx((float(slope.min()), float(slope.max())), rel=1e-6)
        last = sigma2
    assert last == (0.45 if convexity < 0 else 3.0)


def test_curvature_interval_of_normal_distributions_is_exact() -> None:
    times = np.array([0.0, 0.1, 0.5, 1.0])
    target, process = jk.Gaussian(0.0, [4.0, 0.25]), jk.FlowMatching()
    low, high = hessian_interval(process, times, convexity=0.25, smoothness=4.0)
    precision = 1.0 / np.asarray(target.marginal_variance(process, jnp.asarray(times)))
    np.testing.assert_allclose(high, -precision[:, 0], rtol=1e-12)
    np.testing.assert_allclose(low, -precision[:, 1], rtol=1e-12)
    assert hessian_interval(jk.VP(), 0.5, convexity=0.0, smoothness=1.0)[1] == 0.0


# --- derivatives, precision, refusals -------------------------------------------------------------

SETTING = jk.Gaussian([0.4, -1.0, 0.0], [2.0, 0.1, 0.5]), jk.OU(rate=2.0)
SCHEDULE = jk.Schedule([0.9, 0.6, 0.4, 0.1, 0.05, 0.01])
SPECTRUM = jk.Gaussian(0.0, np.arange(1.0, 9.0))


def test_bounds_can_be_differentiated_in_the_schedule() -> None:
    def values(times: jax.Array) -> jax.Array:
        setting = *SETTING, "ddim", jk.Schedule(times)
        operators = accumulation_operators(*setting)
        lipschitz = lipschitz_accumulation(*setting, lipschitz=0.3)
        bounds = (
            operators.correlated(1.0, jk.AR1(0.5)),
            lipschitz.mixed(0.0, 1.0),
            lipschitz.mixed(1.0, 0.0),
        )
        return jnp.stack([bound.value for bound in bounds])

    times, direction, size = (
        jnp.asarray(SCHEDULE.times),
        jnp.asarray([0.3, -1.0, 0.4, 0.7, -0.2, 0.05]),
        1e-5,
    )
    values = jax.jit(values)
    _, derivative = jax.jvp(values, (times,), (direction,))
    numeric = (values(times + size * direction) - values(times - size * direction)) / (2 * size)
    np.testing.assert_allclose(derivative, numeric, rtol=1e-6)


@pytest.mark.usefixtures("float32")
def test_float64_inside_float32_outside() -> None:
    times = np.array([2.0, 1.2, 0.5, 0.2, 0.05, 0.0])
    setting = jk.Gaussian(0.0, [3.0, 0.04]), jk.OU(rate=2.0), EXPONENTIAL, jk.Schedule(times, 1.0)
    factor, beta, _ = _step_coefficients(
        "vp", np.asarray(times, np.float32).astype(float), 1.0, np.array([3.0, 0.04])
    )
    expected = np.stack([beta[i] * np.prod(factor[i + 1 :], axis=0) for i in range(5)])
    operators = accumulation_operators(*setting)
    bound = operators.coherent(1.0).value
    assert operators.signed.dtype == bound.dtype == jnp.float32
    np.testing.assert_allclose(operators.signed, expected, rtol=3e-6)
    assert float(bound) == pytest.approx(np.abs(expected).max(1).sum(), rel=3e-6)
    assert (
        lipschitz_accumulation(*setting, lipschitz=1.0).mixed(1.0, 1.0).value.dtype == jnp.float32
    )


def _steps(
    sampler: AbstractSampler | str = EXPONENTIAL, lipschitz: float = 0.1
) -> LipschitzAccumulation:
    return lipschitz_accumulation(*SETTING, sampler, SCHEDULE, lipschitz=lipschitz)


def _operators(sampler: AbstractSampler | str = EXPONENTIAL) -> AccumulationOperators:
    return accumulation_operators(*SETTING, sampler, SCHEDULE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _operators("dim"), "Did you mean 'ddim'"),
        (
            lambda: accumulation_operators(SPECTRUM.compress(2), jk.VP(), "ddim", SCHEDULE),
            "target is compressed",
        ),
        (lambda: _operators().correlated(1.0, np.eye(3)), "given for 3 evaluations"),
        (lambda: _operators().orthogonal([1.0, 2.0]), r"rms has shape \(2,\); .* \(5,\)"),
        (lambda: _steps("heun"), "Heun makes 2 evaluations"),
        (lambda: _steps("dpmpp_2m"), "DPMSolverPP2M has a multistep history"),
        (lambda: _steps(lipschitz=-1.0), "lipschitz must be >= 0"),
        (
            lambda: _steps().mixed(1.0, [1.0, -1.0, 0.0, 2.0, 0.0]),
            "fresh_rms must be >= 0; its smallest entry is -1",
        ),
        (lambda: _steps().coherent(np.nan), "rms = nan"),
        (
            lambda: hessian_interval(jk.VP(), 0.1, convexity=2.0, smoothness=1.0),
            "convexity = 2 must be <= 1",
        ),
        (
            lambda: hessian_interval(jk.VP(), 0.1, convexity=-2.0, smoothness=0.0),
            "smoothness = 0 must be > 0",
        ),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
