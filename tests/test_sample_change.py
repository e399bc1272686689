"""A change of the network is turned into one of its samples as finite differences turn it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels._plot import Bars

PROCESS = jk.VP()
SCHEDULE = jk.schedules.log_snr(PROCESS, 6, 1e-3)
NOISE = jax.random.normal(jax.random.key(0), (16, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), (2, 2))


def _network(x: Array, t: Array) -> Array:
    """Nonlinear in x and t."""
    return jnp.tanh(1.5 * x @ WEIGHTS) * (1.0 + t)


def _changed(x: Array, t: Array) -> Array:
    return _network(x, t) + 0.3 * jnp.sin(2.0 * x[:, ::-1]) * jnp.cos(3.0 * t)


def _between(share: Array | float) -> jk.Denoiser:
    """A network between the two; the share may depend on time, one entry per time of SCHEDULE."""

    def network(x: Array, t: Array) -> Array:
        nearest = jnp.argmin(jnp.abs(SCHEDULE.times - t))
        own = jnp.broadcast_to(jnp.asarray(share, x.dtype), SCHEDULE.times.shape)[nearest]
        return _network(x, t) + own * (_changed(x, t) - _network(x, t))

    return jk.Denoiser(network, PROCESS, "x0")


def _ends(share: Array | float, sampler: str, schedule: jk.Schedule, key: Array | None) -> Array:
    return jk.sample(_between(share), sampler, schedule, NOISE, key=key)


@pytest.mark.parametrize(("sampler", "alpha"), [("ddim", 0.0), ("ddim", 0.7), ("dpmpp_2m", 0.0)])
def test_contributions_are_derivatives_of_samples(sampler: str, alpha: float) -> None:
    """In each step's share alone, by central differences of ordinary runs."""
    schedule = jk.Schedule(SCHEDULE.times, alpha)
    key = jax.random.key(2)
    networks = (_between(0.0), _between(1.0))
    change = jk.predict_sample_change(*networks, sampler, schedule, NOISE, key=key)
    np.testing.assert_allclose(change.before, _ends(0.0, sampler, schedule, key), atol=1e-12)
    np.testing.assert_allclose(change.after, _ends(1.0, sampler, schedule, key), atol=1e-12)
    differences = jax.jit(
        lambda share: _ends(share, sampler, schedule, key) - _ends(-share, sampler, schedule, key)
    )
    small = 1e-4
    for k in range(schedule.num_steps):
        share = small * jax.nn.one_hot(k, schedule.num_steps + 1)
        expected = differences(share) / (2.0 * small)
        np.testing.assert_allclose(change.contributions[k], expected, rtol=1e-5, atol=1e-7)


def test_a_mixture_changes_as_its_own_formula_says() -> None:
    """Means that move a little: DDIM with NumPy's posterior mean, by central differences."""
    weights = np.array([0.3, 0.7])
    means = np.array([[-1.0, 0.5], [0.8, -0.2]])
    moved = np.array([[0.3, -0.1], [0.2, 0.4]])
    variances = np.array([0.1, 0.3])
    times = np.asarray(SCHEDULE.times, np.float64)
    integral = 0.1 * times + 9.95 * times**2
    signal = np.exp(-0.5 * integral)
    noise = np.sqrt(-np.expm1(-integral))

    def denoised(x: np.ndarray, k: int, means: np.ndarray) -> np.ndarray:
        total = signal[k] ** 2 * variances + noise[k] ** 2
        residual = x[:, None] - signal[k] * means
        logs = np.log(weights) - np.sum(residual**2, -1) / (2.0 * total) - np.log(total)
        share = np.exp(logs - logs.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        each = means + (signal[k] * variances / total)[:, None] * residual
        return np.sum(share[..., None] * each, 1)

    def samples(step: int, size: float) -> np.ndarray:
        """The first mixture's, with the second's denoised point mixed into one step."""
        x = np.asarray(NOISE, np.float64)
        for k in range(times.size - 1):
            x0 = denoised(x, k, means)
            if k == step:
                x0 = x0 + size * (denoised(x, k, means + moved) - x0)
            x = signal[k + 1] * x0 + noise[k + 1] / noise[k] * (x - signal[k] * x0)
        return x

    networks = [
        jk.GaussianMixture(weights, m, variances).denoiser(PROCESS) for m in (means, means + moved)
    ]
    change = jk.predict_sample_change(networks[0], networks[1], "ddim", SCHEDULE, NOISE)
    for k in range(times.size - 1):
        expected = (samples(k, 1e-4) - samples(k, -1e-4)) / 2e-4
        np.testing.assert_allclose(change.contributions[k], expected, rtol=1e-4, atol=1e-6)


def test_the_remainder_is_what_the_first_order_leaves_out() -> None:
    """Of every sample, for a small change; the error itself is as large to leading order."""
    setting = ("dpmpp_2m", SCHEDULE, NOISE)
    change = jk.predict_sample_change(_between(0.0), _between(0.01), *setting)
    left_out = np.linalg.norm(change.measured - change.first_order, axis=1)
    np.testing.assert_allclose(change.remainders, left_out, rtol=0.05, atol=0.05 * left_out.max())
    assert float(change.error) == pytest.approx(float(change.remainder), rel=0.05)
    smaller = jk.predict_sample_change(_between(0.0), _between(0.001), *setting)
    assert float(smaller.error) == pytest.approx(0.1 * float(change.error), rel=0.05)


@pytest.mark.parametrize(("border", "sharpness"), [(0.5, 4.0), (0.3, 6.0), (0.25, 100.0)])
def test_a_border_that_only_networks_between_reach_is_seen(border: float, sharpness: float) -> None:
    """Two steps: the first moves by eps, the second denoises to tanh(sharpness (eps - border)).

    The slopes at eps = 0 and 1 say nothing of the border. At 1/2 it shows, or half the change does.
    """
    times = np.asarray([1.0, 0.4, 0.1])
    schedule = jk.Schedule(times)
    integral = 0.1 * times + 9.95 * times**2
    a = np.exp(-0.5 * integral)
    s = np.sqrt(-np.expm1(-integral))
    start = 0.2
    # DDIM's first step from the denoised point 1 + eps
    origin = a[1] + s[1] * (start - a[0]) / s[0]
    push = a[1] - s[1] * a[0] / s[0]

    def network(share: float) -> jk.Denoiser:
        def fn(x: Array, t: Array) -> Array:
            moved = (x - origin) / push
            later = jnp.tanh(sharpness * (moved - border))
            return jnp.where(t > 0.7, 1.0 + share, later)

        return jk.Denoiser(fn, PROCESS, "x0")

    def end(eps: float) -> float:
        x, x0 = origin + push * eps, np.tanh(sharpness * (eps - border))
        return a[2] * x0 + s[2] * (x - a[1] * x0) / s[1]

    change = jk.predict_sample_change(
        network(0.0), network(1.0), "ddim", schedule, jnp.full((1, 1), start)
    )
    first = (end(1e-6) - end(-1e-6)) / 2e-6
    left_out = abs(end(1.0) - end(0.0) - first)
    np.testing.assert_allclose(change.first_order, first, rtol=1e-6)
    np.testing.assert_allclose(change.measured, end(1.0) - end(0.0), rtol=1e-9)
    assert left_out > 0.5 * abs(end(1.0) - end(0.0))
    assert left_out * 0.7 < float(change.remainders[0]) < left_out * 2.0
    assert not bool(change.holds(0.5)[0])


def test_where_the_expansion_says_that_it_holds_it_does() -> None:
    """Errors relative to the change below 10 %, for some of the samples and not for all."""
    change = jk.predict_sample_change(_between(0.0), _between(0.6), "ddim", SCHEDULE, NOISE)
    missed = np.linalg.norm(change.measured - change.first_order, axis=1)
    held = np.asarray(change.holds(0.1))
    assert 0 < held.sum() < held.size
    assert np.all(missed[held] < 0.1 * np.linalg.norm(change.measured, axis=1)[held])
    with pytest.raises(ValueError, match="within = 0 must be > 0"):
        change.holds(0.0)


def test_the_kernel_is_that_of_a_gaussian_target() -> None:
    """One mode, exact scores of two means, DDIM: shifts that the later steps multiply."""
    variance = 0.3
    shift = 0.1
    exact = jk.Gaussian(0.0, [variance]).denoiser(PROCESS)
    other = jk.Gaussian([shift], [variance]).denoiser(PROCESS)
    change = jk.predict_sample_change(exact, other, "ddim", SCHEDULE, NOISE[:, :1])
    times = np.asarray(SCHEDULE.times)
    a = np.asarray(PROCESS.signal(times))
    s = np.asarray(PROCESS.noise(times))
    total = a**2 * variance + s**2
    # x' = a' x0 + s' (x - a x0) / s with x0 = mean + gain (x - a mean)
    gain = a * variance / total
    steps = [
        (a[k + 1] * gain[k] + s[k + 1] * (1.0 - a[k] * gain[k]) / s[k])
        for k in range(times.size - 1)
    ]
    pushes = [
        shift * (1.0 - gain[k] * a[k]) * (a[k + 1] - s[k + 1] * a[k] / s[k])
        for k in range(times.size - 1)
    ]
    c = np.array([pushes[k] * np.prod(steps[k + 1 :]) for k in range(times.size - 1)])
    np.testing.assert_allclose(change.kernel, np.outer(c, c), rtol=1e-9, atol=1e-14)
    # affine networks with equal slopes: the first order is all
    assert float(change.error) < 1e-9
    assert float(change.remainder) < 1e-9


def test_a_changed_network_is_shown() -> None:
    change = jk.predict_sample_change(_between(0.0), _between(1.0), "ddim", SCHEDULE, NOISE)
    assert "change of 16 samples over 6 steps" in str(change)
    by_step, by_sample = change.figure().panels
    bars = by_step.marks[1]
    assert isinstance(bars, Bars)
    assert np.sum(bars.height) == pytest.approx(1.0)
    assert by_sample.lines[1].x.shape == (16,)
    # both networks before, between and after; tangents: 6, one through both networks, 1
    assert change.nfe == 16 * 6 * (6 + 6 + 2 + 1)


def test_no_change_has_no_error() -> None:
    points = jnp.ones((4, 2))
    same = jk.SampleChange(points, points, jnp.zeros((3, 4, 2)), jnp.zeros(4), 0)
    assert float(same.error) == float(same.remainder) == 0.0
    assert "0.0% of the change" in str(same)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"changed": jk.Denoiser(_network, jk.VE(), "x0")}, "changed is of"),
        ({"sampler": "rem"}, "runs every sample by itself"),
        ({"schedule": jk.Schedule(SCHEDULE.times, 0.5)}, "key: a stochastic schedule"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    setting = {
        "denoiser": _between(0.0),
        "changed": _between(1.0),
        "sampler": "ddim",
        "schedule": SCHEDULE,
        "noise": NOISE,
    }
    with pytest.raises(ValueError, match=message):
        jk.predict_sample_change(**{**setting, **arguments})
