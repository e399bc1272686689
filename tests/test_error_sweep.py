"""A sweep is what separate runs give, up to and beyond the stability limit.

The oracle is the recurrence of moments per mode, written in NumPy.
"""

from typing import Any

import jax
import numpy as np
import pytest
from gaussian_distances import w2_squared

import jaxkernels as jk
from jaxkernels.score_error import GivenCorrelation

VARIANCES = np.array([2.0, 0.5, 0.1])
TARGET = jk.Gaussian(0.0, VARIANCES)
PROCESS = jk.VP()
COUNTS = np.array([5, 8, 16])
RHO = np.array([0.0, 0.9])
SIZES = np.array([0.05, 2.0])
SLOPE = 0.02
SHIFT = 0.03


def _quadratic(steps: int) -> np.ndarray:
    return np.linspace(1.0, np.sqrt(1e-2), steps + 1) ** 2


def _steps(times: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Euler-Maruyama: factor (steps, modes), weight of the score and noise variance (steps, 1)."""
    beta = 0.1 + 19.9 * times[:-1, None]
    signal2 = np.exp(-(0.1 * times + 9.95 * times**2))[:-1, None]
    rate = -np.diff(times)[:, None] * beta
    push = 0.5 * (1.0 + alpha**2) * rate
    marginal = signal2 * VARIANCES + 1.0 - signal2
    return 1.0 + 0.5 * rate - push / marginal, push, alpha**2 * rate


def _error(times: np.ndarray, slope: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Squared W2 of the data and the samples, for errors (n, steps, modes)."""
    factor, push, noise = _steps(times, 1.0)
    mean = np.zeros((len(slope), 3))
    variance = np.ones((len(slope), 3))
    for k in range(len(times) - 1):
        moved = factor[k] - push[k] * slope[:, k]
        mean = moved * mean + push[k] * shift[:, k]
        variance = moved**2 * variance + noise[k]
    return w2_squared(mean, variance, VARIANCES)


def _setting(counts: np.ndarray, sampler: str, alpha: float) -> tuple[Any, ...]:
    schedules = [jk.Schedule(_quadratic(steps), alpha) for steps in counts]
    return TARGET, PROCESS, sampler, schedules


@pytest.fixture(scope="module")
def sweep() -> jk.ErrorSweep:
    error = jk.ScoreError.diagonal(SLOPE, SHIFT)
    target, process, sampler, schedules = _setting(COUNTS, "euler_maruyama", 1.0)
    return jk.error_sweep(
        target,
        process,
        sampler,
        schedules,
        error,
        correlations=[jk.AR1(rho) for rho in RHO],
        sizes=SIZES,
        pairs=2000,
    )


def test_every_entry_is_that_of_its_own_simulation(sweep: jk.ErrorSweep) -> None:
    """Q by second differences along Cholesky directions, the excess by 20 000 NumPy pairs."""
    rng = np.random.default_rng(1)
    for s, steps in enumerate(COUNTS):
        times = _quadratic(steps)
        none = np.zeros((1, steps, 3))
        baseline = _error(times, none, none)[0]
        np.testing.assert_allclose(sweep.baseline[s], baseline, rtol=1e-9)
        lag = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
        for r, rho in enumerate(RHO):
            root = np.linalg.cholesky(rho**lag) if rho else np.eye(steps)
            w = 1e-2 * root.T[:, :, None] * np.ones(3)
            zero = np.zeros_like(w)
            along = [
                0.5 * (_error(times, SLOPE * a, SHIFT * b) + _error(times, -SLOPE * a, -SHIFT * b))
                - baseline
                for a, b in ((w, zero), (zero, w))
            ]
            second = 1e4 * np.sum(along)
            np.testing.assert_allclose(sweep.second_order[s, r], second * SIZES**2, rtol=1e-3)
            z = rng.standard_normal((2, 20_000, steps, 3))
            for n, size in enumerate(SIZES):
                slope, shift = (
                    size * c * np.einsum("ab,nbm->nam", root, x) for c, x in zip((SLOPE, SHIFT), z)
                )
                pair = 0.5 * (_error(times, slope, shift) + _error(times, -slope, -shift))
                doubt = np.hypot(pair.std() / np.sqrt(len(pair)), sweep.standard_error[s, r, n])
                assert abs(pair.mean() - sweep.value[s, r, n]) < 4.5 * doubt


@pytest.mark.slow
def test_schedules_that_end_without_noise() -> None:
    """Empty steps at noise 0 would have no score: these are not padded."""
    schedules = [jk.Schedule(np.linspace(1.0, 0.0, steps + 1) ** 2) for steps in (4, 6)]
    error = jk.ScoreError.diagonal(SLOPE, SHIFT)
    sweep = jk.error_sweep(TARGET, PROCESS, "ddim", schedules, error, pairs=2)
    for s, schedule in enumerate(schedules):
        kernel = jk.error_kernel(TARGET, PROCESS, "ddim", schedule)
        np.testing.assert_allclose(sweep.baseline[s], kernel.baseline(), rtol=1e-9)
        np.testing.assert_allclose(sweep.second_order[s, 0, 0], kernel.contract(error), rtol=1e-9)


def test_the_second_order_ends_where_errors_are_large(sweep: jk.ErrorSweep) -> None:
    assert np.all(np.abs(sweep.remainder[:, :, 0]) < 1e-3)
    assert np.all(np.abs(sweep.remainder[:, :, 1]) > np.abs(sweep.remainder[:, :, 0]))


def test_the_stability_limit(sweep: jk.ErrorSweep) -> None:
    """A factor below -1 of Euler's step: h > 2 / rate."""
    for s, steps in enumerate(COUNTS):
        factor = _steps(_quadratic(steps), 1.0)[0]
        assert sweep.overshoot[s] == pytest.approx(-factor.min(), rel=1e-9)
        products = [np.prod(factor[a : b + 1], 0) for a in range(steps) for b in range(a, steps)]
        largest = max(1.0, np.max(np.abs(products))) ** 2
        assert sweep.stability[s] == pytest.approx(largest, rel=1e-9)
    assert sweep.stable.tolist() == [False, False, True]
    assert sweep.stability[0] > 5.0 * sweep.stability[2]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_orders_and_padding(sampler: str, order: int) -> None:
    """The order of W2 is the sampler's, and every row that of its own run without empty steps."""
    setting = (jk.Gaussian(0.0, [1.5, 0.6]), PROCESS, sampler)
    schedules = [jk.schedules.log_snr(PROCESS, steps, 1e-4) for steps in (40, 80, 160)]
    error = jk.ScoreError.relative(0.02, jk.OrnsteinUhlenbeck(2.0))
    sweep = jk.error_sweep(*setting, schedules, error, initialization="marginal", pairs=2)
    np.testing.assert_allclose(sweep.order, 2.0 * order, rtol=0.05)
    kernel = jk.error_kernel(*setting, schedules[0], initialization="marginal")
    np.testing.assert_allclose(sweep.baseline[0], kernel.baseline(), rtol=1e-9)
    np.testing.assert_allclose(sweep.second_order[0, 0, 0], kernel.contract(error), rtol=1e-9)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no schedules": ({"schedules": []}, "must be a list of one or more"),
    "two types": ({"correlations": [jk.AR1(0.5), jk.Independent()]}, "of one type"),
    "nothing to sweep": ({"correlations": [jk.Independent()] * 2}, "has no parameter"),
    "two coordinates": (
        {"correlations": [jk.OrnsteinUhlenbeck(1.0, c) for c in ("time", "log_snr")]},
        "what is no number",
    ),
    "a matrix of another size": (
        {"correlations": [GivenCorrelation(np.eye(5))]},
        "given for 5 evaluations",
    ),
    "no size": ({"sizes": [0.1, 0.0]}, "numbers > 0"),
    "one pair": ({"pairs": 1}, "pairs = 1"),
    "no randomness": ({"score_error": jk.ScoreError(None, jk.FullyCorrelated())}, "random part"),
    "a sum": ({"score_error": jk.ScoreError.relative(0.1) + jk.ScoreError.relative(0.1)}, "a sum"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments(name: str) -> None:
    change, message = BAD[name]
    target, process, sampler, schedules = _setting(np.array([4]), "ddim", 0.0)
    arguments = {"schedules": schedules, "score_error": jk.ScoreError.relative(0.1)} | change
    with pytest.raises(ValueError, match=message):
        jk.error_sweep(target, process, sampler, key=jax.random.key(0), **arguments)
