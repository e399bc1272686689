"""The curve, the parts, the worst patterns and the stability of a run, and sums of errors.

The oracle is DDIM's recurrence per mode, written in NumPy, and differences of it.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_distances import w2_squared

import jaxkernels as jk

VARIANCES = np.array([2.0, 0.5, 0.1])
MEAN = np.array([1.0, -0.5, 0.3])
TARGET = jk.Gaussian(MEAN, VARIANCES)
PROCESS = jk.VP()
STEPS = 6
SCHEDULE = jk.schedules.quadratic(PROCESS, STEPS, 1e-2)
TIMES = np.asarray(SCHEDULE.times, np.float64)
SETTING = (TARGET, PROCESS, "ddim", SCHEDULE)
SIZE = 1e-3
LAG = np.abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS)))


def _levels() -> tuple[np.ndarray, np.ndarray]:
    """Signal and noise of the linear variance-preserving process at all times."""
    integral = 0.1 * TIMES + 9.95 * TIMES**2
    return np.exp(-0.5 * integral), np.sqrt(-np.expm1(-integral))


def _steps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factor and shift (steps, modes) and weight of the score (steps,) of every step."""
    a, s = _levels()
    push = (a[1:] * s[:-1] / a[:-1] - s[1:]) * s[:-1]
    marginal = a[:-1, None] ** 2 * VARIANCES + s[:-1, None] ** 2
    factor = (a[1:] / a[:-1])[:, None] - push[:, None] / marginal
    return factor, push[:, None] * a[:-1, None] * MEAN / marginal, push


def _moments(slope: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances (points, modes) for an error (steps, modes)."""
    factor, constant, push = _steps()
    mean = [np.zeros(3)]
    variance = [np.ones(3)]
    for k in range(STEPS):
        moved = factor[k] - push[k] * slope[k]
        mean.append(moved * mean[-1] + constant[k] + push[k] * shift[k])
        variance.append(moved**2 * variance[-1])
    return np.array(mean), np.array(variance)


def _distances(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return w2_squared(mean - MEAN, variance, VARIANCES)


def _even_part(slope: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Half the second derivative of the distances along an error, by differences."""
    there, back, here = (_distances(*_moments(e * slope, e * shift)) for e in (1.0, -1.0, 0.0))
    return 0.5 * (there + back) - here


@pytest.fixture(scope="module")
def kernel() -> Any:
    return jk.error_kernel(*SETTING)


def test_the_curve_is_that_of_stopped_runs(kernel: Any) -> None:
    """Per mode AR(1) errors of slope and shift: sums over directions of second differences."""
    error = jk.ScoreError.diagonal(0.5 * SIZE, SIZE, jk.AR1(0.7))
    curve = jk.error_curve(kernel, error)
    np.testing.assert_allclose(curve.times, TIMES, rtol=1e-6)
    np.testing.assert_allclose(curve.baseline, _distances(*_moments(*np.zeros((2, STEPS, 3)))))
    factor = np.linalg.cholesky(0.7**LAG)
    expected = np.zeros(STEPS + 1)
    for column in factor.T:
        pattern = SIZE * np.repeat(column[:, None], 3, 1)
        zero = np.zeros_like(pattern)
        expected += _even_part(0.5 * pattern, zero) + _even_part(zero, pattern)
    np.testing.assert_allclose(curve.excess, expected, rtol=1e-4, atol=1e-12)
    assert float(curve.value[-1] - curve.baseline[-1]) == pytest.approx(
        float(kernel.contract(error)), rel=1e-5
    )


def test_the_parts_of_an_excess(kernel: Any) -> None:
    """A fully correlated error: first and second differences of the moments, put together."""
    error = jk.ScoreError.diagonal(0.0, SIZE) + jk.ScoreError.diagonal(SIZE)
    parts = jk.kernel_parts(kernel, error)
    one, zero = np.full((STEPS, 3), 1e-4), np.zeros((STEPS, 3))
    mean = covariance = gradient = 0.0
    at_mean, at_variance = (a[-1] for a in _moments(zero, zero))
    for w in ((one, zero), (zero, one)):
        there, back = (_moments(e * w[0], e * w[1]) for e in (1.0, -1.0))
        m1, s1 = (0.5 * (a[-1] - b[-1]) / 1e-4 for a, b in zip(there, back, strict=True))
        m2 = (0.5 * (there[0][-1] + back[0][-1]) - at_mean) / 1e-8
        s2 = (0.5 * (there[1][-1] + back[1][-1]) - at_variance) / 1e-8
        mean += np.sum(m1**2)
        # half the second derivative of (sqrt s - sqrt c)^2 is sqrt(c) / (4 s^(3/2))
        covariance += np.sum(0.25 * np.sqrt(VARIANCES) * at_variance**-1.5 * s1**2)
        gradient += np.sum(2.0 * (at_mean - MEAN) * m2)
        gradient += np.sum((1.0 - np.sqrt(VARIANCES / at_variance)) * s2)
    expected = SIZE**2 * np.array([mean, covariance, 0.0, gradient])
    np.testing.assert_allclose(parts, expected, rtol=1e-4, atol=1e-10)
    assert float(sum(parts)) == pytest.approx(float(kernel.contract(error)), rel=1e-6)


@pytest.mark.slow
def test_the_parts_with_a_mean_add_up(kernel: Any) -> None:
    draws = np.random.default_rng(0).standard_normal((2, 4, STEPS, 3)) * 0.02
    error = jk.ScoreError.from_samples(TIMES[:-1], *draws)
    assert float(sum(jk.kernel_parts(kernel, error))) == pytest.approx(
        float(kernel.contract(error)), rel=1e-6
    )


def test_patterns_cost_what_they_say(kernel: Any) -> None:
    """The excess of the worst patterns of the shift by differences; none of 20 others is worse."""
    modes = jk.time_modes(kernel, jk.ScoreError.diagonal(0.0, SIZE, jk.Independent()))
    for cost, pattern in zip(modes.cost[:2], modes.pattern[:2], strict=True):
        # shapes of different modes are independent: each mode's own part adds up
        shift = np.repeat(np.asarray(pattern)[:, None], 3, 1)
        assert float(cost) == pytest.approx(
            float(_even_part(np.zeros((STEPS, 3)), SIZE * shift)[-1]), rel=1e-4
        )
    others = np.random.default_rng(1).standard_normal((20, STEPS))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    for pattern in others:
        shift = SIZE * np.repeat(pattern[:, None], 3, 1)
        excess = _even_part(np.zeros((STEPS, 3)), shift)[-1]
        assert modes.cost[-1] * (1 - 1e-6) - 1e-12 <= excess <= modes.cost[0] * (1 + 1e-6)
    with pytest.raises(ValueError, match="with a random part"):
        jk.time_modes(kernel, jk.ScoreError(None, jk.FullyCorrelated()))


def test_the_stability_constant_is_the_largest_product() -> None:
    factor = _steps()[0]
    products = [np.prod(factor[a : b + 1], 0) for a in range(STEPS) for b in range(a, STEPS)]
    expected = max(1.0, np.max(np.abs(products))) ** 2
    assert float(jk.stability_constant(*SETTING)) == pytest.approx(expected, rel=1e-5)


def test_negative_correlation_alternates() -> None:
    times = jnp.asarray([1.0, 0.7, 0.7, 0.4, 0.1])
    distinct = np.array([0, 1, 1, 2, 3])
    lag = np.abs(np.subtract.outer(distinct, distinct))
    found = jk.AR1(-0.6).matrix(PROCESS, times)
    np.testing.assert_allclose(found, (-0.6) ** lag, atol=1e-6)
    with pytest.raises(ValueError, match=r"rho = -1\.2"):
        jk.AR1(-1.2)


def test_independent_errors_add_up(kernel: Any) -> None:
    """Covariances and means of a sum, three terms, one of them with matrices."""
    first = jk.ScoreError.diagonal(0.02, 0.01, jk.AR1(-0.5))
    second = jk.ScoreError.relative(0.03, jk.OrnsteinUhlenbeck(2.0))
    third = jk.ScoreError.dense(0.01 * np.ones((1, 3, 3)), np.zeros((1, 3)))
    total = first + second
    separate = float(kernel.contract(first)) + float(kernel.contract(second))
    assert float(kernel.contract(total)) == pytest.approx(separate, rel=1e-5)
    assert total.any_spectrum
    assert not (total + third).any_spectrum
    three = (total + third).directions(TARGET, PROCESS, jnp.asarray(TIMES[:-1]))
    assert three is not None
    assert three.dense
    assert (total + third).has_matrix_slopes
    known = jk.ScoreError.from_samples(TIMES[:-1], *np.full((2, 2, STEPS, 3), 0.1))
    mean = (known + known).mean_at(TARGET, PROCESS, jnp.asarray(TIMES[:-1]))
    assert mean is not None
    np.testing.assert_allclose(mean.slope, 0.2, rtol=1e-6)
    with pytest.raises(TypeError):
        _ = first + 1.0  # pyright: ignore[reportOperatorIssue]


# --- continuous time ------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_double_integral(alpha: float) -> None:
    """The moment equations of the perturbed reverse process, by small Euler steps in t.

    A fully correlated shift and slope and a relative error, one after the other: the response of
    mean and variance to each is integrated backwards with its own differential equation.
    """
    t_min = 0.05
    continuous = jk.continuous_kernel(TARGET, PROCESS, t_min=t_min, stochasticity=alpha)
    steps = 100_000
    edges = np.linspace(1.0, t_min, steps + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    size = (1.0 - t_min) / steps
    rate = (0.1 + 19.9 * middle)[:, None]
    signal = np.exp(-0.5 * (0.1 * middle + 9.95 * middle**2))[:, None]
    marginal = signal**2 * VARIANCES + 1.0 - signal**2
    strength = 0.5 * (1.0 + alpha**2) * rate
    # d(dx) = (f-part + strength * (-1 / marginal)) dx, log of what is left at the end
    growth = 0.5 * rate - strength / marginal
    left = np.exp(size * (np.cumsum(growth[::-1], 0)[::-1] - 0.5 * growth))
    end = np.exp(-(0.1 * t_min + 9.95 * t_min**2))
    final = end * VARIANCES + 1.0 - end

    def expected(slope: np.ndarray, shift: np.ndarray) -> float:
        mean = size * np.sum(strength * left * (shift - slope * signal * MEAN), 0)
        variance = -size * np.sum(2.0 * strength * left**2 * slope * marginal, 0)
        return float(np.sum(mean**2 + variance**2 / (4.0 * final)))

    one = np.ones_like(marginal)
    for error, slope, shift in (
        (jk.ScoreError.diagonal(0.0, 0.1), 0.0 * one, 0.1 * one),
        (jk.ScoreError.diagonal(0.1), 0.1 * one, 0.0 * one),
        (jk.ScoreError.relative(0.1), 0.1 / marginal, 0.1 * signal * MEAN / marginal),
    ):
        found = float(continuous.contract(error))
        assert found == pytest.approx(expected(slope, shift), rel=1e-5)


def test_many_steps_approach_the_double_integral() -> None:
    """Correlated errors with 100 DDIM steps from the exact marginal; the rest falls like 1 / K."""
    t_min = 1e-4
    error = jk.ScoreError.relative(0.05, jk.OrnsteinUhlenbeck(2.0))
    schedule = jk.schedules.log_snr(PROCESS, 100, t_min)
    kernel = jk.error_kernel(TARGET, PROCESS, "ddim", schedule, initialization="marginal")
    found = float(jk.continuous_kernel(TARGET, PROCESS, t_min=t_min).contract(error))
    assert found == pytest.approx(float(kernel.contract(error)), rel=0.04)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t_min": 0.0}, "t_min = 0 must be > 0"),
        ({"t_min": 1e-3, "stochasticity": -1.0}, "stochasticity = -1"),
        ({"t_min": 1e-3, "process": jk.FlowMatching()}, r"use process\.sub_range"),
        ({"t_min": 1e-3, "target": jk.Gaussian(0.0, [0.0, 1.0])}, "must be > 0"),
    ],
)
def test_refusals_of_the_continuous_kernel(arguments: dict[str, Any], message: str) -> None:
    setting = {"target": TARGET, "process": PROCESS} | arguments
    with pytest.raises(ValueError, match=message):
        jk.continuous_kernel(**setting)
