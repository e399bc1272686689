"""Training losses of the score, for cases whose value or minimiser is known in closed form."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

import jaxkernels as jk
from jaxkernels.reverse_sde import (
    kl_rate,
    kl_weight,
    relative_score_loss,
    score_loss_profile,
    score_matching_loss,
    terminal_distribution,
)

T = 2.0
PROCESS = jk.OU(rate=1.0, t_max=T)
LAM = 0.3
N = 8_000


class Linear(eqx.Module):
    """The score -slope x / (variance of the marginal); exact for N(0, LAM) and slope 1."""

    slope: jax.Array

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return -self.slope * x / (1.0 + (LAM - 1.0) * jnp.exp(-t))


def _denoiser(slope: float) -> jk.Denoiser:
    return jk.Denoiser(Linear(jnp.asarray(slope)), PROCESS, "score")


def _data() -> jax.Array:
    return float(np.sqrt(LAM)) * jax.random.normal(jax.random.key(1), (N, 2))


def _exact(slope: float, t: float) -> float:
    """E |S + Z / s|^2 of (4) in two dimensions."""
    v = 1.0 + (LAM - 1.0) * np.exp(-t)
    return 2.0 * ((slope**2 - 2.0 * slope) / v + 1.0 / (1.0 - np.exp(-t)))


@pytest.mark.parametrize("coordinate", ["time", "log_snr"])
def test_score_matching_loss_is_its_integral(coordinate: str) -> None:
    """For every weight within five standard errors, of repetitions with other keys."""
    varpi = lambda t: np.sqrt(1.0 - np.exp(-t))  # noqa: E731
    weights = {
        "default": lambda t: varpi(t) ** 2,
        "noise": lambda t: varpi(t) ** 3,
        "data": lambda t: varpi(t) ** 2 / (0.25 + varpi(t)),
        lambda t: kl_weight(PROCESS, t, 3.0): lambda t: 16.0 / 24.0,
    }

    @jax.jit
    @jax.vmap
    def losses(key: jax.Array) -> jax.Array:
        setting = (_denoiser(0.4), _data(), key)
        options = {"t_min": 0.1, "coordinate": coordinate}
        return jnp.stack([score_matching_loss(*setting, weight=w, **options) for w in weights])

    found = np.asarray(losses(jax.random.split(jax.random.key(0), 8)))
    exact = [quad(lambda t, w=w: w(t) * _exact(0.4, t), 0.1, T)[0] for w in weights.values()]
    error = np.std(found, 0, ddof=1) / np.sqrt(8)
    assert np.all(np.abs(np.mean(found, 0) - exact) < 5.0 * error)
    assert np.all(error < 0.02 * np.array(exact))


def test_the_minimiser_is_the_exact_score() -> None:
    """The loss is quadratic in the slope; its minimum is 1 up to sampling, and so for epsilon."""

    @eqx.filter_jit
    def value_and_slope(denoiser: jk.Denoiser) -> tuple[jax.Array, jk.Denoiser]:
        loss = eqx.filter_value_and_grad(score_matching_loss)
        return loss(denoiser, _data(), jax.random.key(0))

    slopes = []
    for start in (0.0, 2.0):
        gradient = value_and_slope(_denoiser(start))[1].fn
        assert isinstance(gradient, Linear)
        slopes.append(float(gradient.slope))
    low, high = slopes
    assert low < 0.0 < high
    np.testing.assert_allclose(-2.0 * low / (high - low), 1.0, atol=0.03)

    def predict_noise(x: jax.Array, t: jax.Array) -> jax.Array:
        return -PROCESS.noise(t) * Linear(jnp.asarray(0.4))(x, t)

    denoiser = jk.Denoiser(predict_noise, PROCESS, "epsilon")
    other = jax.jit(lambda: score_matching_loss(denoiser, _data(), jax.random.key(0)))()
    np.testing.assert_allclose(value_and_slope(_denoiser(0.4))[0], other, rtol=1e-9)


def test_profiles() -> None:
    """The loss at each time, and the ratio of two networks'."""
    times = np.array([0.2, 0.7, 1.5])
    setting = (_data(), jax.random.key(2), times)
    exact = np.array([[_exact(slope, t) for t in times] for slope in (0.4, 1.0)])
    found = score_loss_profile(_denoiser(0.4), *setting)
    np.testing.assert_allclose(found, exact[0], rtol=0.05)
    ratio = relative_score_loss(_denoiser(0.4), _denoiser(1.0), *setting)
    np.testing.assert_allclose(ratio, exact[0] / exact[1], rtol=0.05)
    assert np.all(ratio > 1.0)


def _moments(alpha2: float, c: float, b: float) -> Callable[[float], np.ndarray]:
    """Variance and mean of the samples of N(0, LAM), from the marginal at T, in t = T - theta."""

    def slope(t: float, state: np.ndarray) -> list[float]:
        v, m = state
        s = 1.0 + (LAM - 1.0) * np.exp(t - T)
        linear = 0.5 - 0.5 * (1.0 + alpha2) * (1.0 + c) / s
        return [2.0 * linear * v + alpha2, linear * m + 0.5 * (1.0 + alpha2) * b]

    start = [1.0 + (LAM - 1.0) * np.exp(-T), 0.0]
    return solve_ivp(slope, (0.0, T), start, rtol=1e-11, atol=1e-13, dense_output=True).sol


@pytest.mark.parametrize("alpha2", [0.0, 0.7, 3.0])
def test_kl_rate_is_the_derivative_of_kl(alpha2: float) -> None:
    """For e = c grad log p + b; two points have the mean and the variance of p."""
    c = 0.3
    b = -0.2
    path = _moments(alpha2, c, b)

    def kl(t: float) -> float:
        v, m = path(t)
        s = 1.0 + (LAM - 1.0) * np.exp(t - T)
        return 0.5 * (np.log(v / s) + (s + m**2) / v - 1.0)

    for t in (0.3, 1.1, 1.9):
        v, m = path(t)
        s = 1.0 + (LAM - 1.0) * np.exp(t - T)
        x = np.sqrt(s) * np.array([[-1.0], [1.0]])
        setting = (-c * x / s + b, -x / s + (x - m) / v)
        rate = kl_rate(PROCESS, T - t, alpha2, *map(jnp.asarray, setting))
        step = 1e-4
        np.testing.assert_allclose(rate, (kl(t + step) - kl(t - step)) / (2.0 * step), rtol=1e-5)
        if alpha2 > 0.0:
            bound = kl_weight(PROCESS, T - t, alpha2) * np.mean(setting[0] ** 2)
            assert rate <= bound


def test_the_kl_weight_bounds_kl_and_is_least_for_the_reverse_sde() -> None:
    """300 random errors of Gaussian data; how loose it is; it does not tell which h is best."""
    rng = np.random.default_rng(0)
    n = 300
    lam = np.exp(rng.uniform(np.log(0.05), np.log(2.0), n))
    alpha2 = np.exp(rng.uniform(np.log(0.05), np.log(20.0), n))
    c = rng.normal(size=(n, 3)) * 0.3
    edges = np.array([0.0, 0.1, 0.6, T])

    def kl(lam: jax.Array, alpha2: jax.Array, c: jax.Array) -> jax.Array:
        return terminal_distribution(jk.Gaussian(0.0, lam[None]), edges, alpha2, 1.0, c).kl

    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(jax.vmap(kl))(lam, alpha2, c))
        weights = np.asarray(jax.vmap(lambda a: kl_weight(PROCESS, 0.5, a))(alpha2))
    # int dtheta / s over every cell, as E |c grad log p|^2 = c^2 / s
    y = np.diff(np.log1p(np.expm1(edges)[:, None] / lam), axis=0).T
    bound = weights * np.sum(c**2 * y, -1)
    assert np.all(exact <= bound)
    assert 2.0 < np.median(bound / exact) < 1e3
    grid = np.geomspace(0.1, 10.0, 41)
    assert np.argmin([kl_weight(PROCESS, 0.5, a) for a in grid]) == 20  # alpha = 1
    np.testing.assert_allclose(kl_weight(jk.VP(), 0.4), 0.5 * jk.VP().diffusion_squared(0.4))


def test_wrong_arguments() -> None:
    setting = (_denoiser(1.0), _data()[:4], jax.random.key(0))
    with pytest.raises(ValueError, match="weight='flat' is not known"):
        score_matching_loss(*setting, weight="flat")
    with pytest.raises(ValueError, match="t_min = 3 must be > 0 and < 2"):
        score_matching_loss(*setting, t_min=3.0)
    with pytest.raises(ValueError, match="coordinate"):
        score_matching_loss(*setting, coordinate="sigma")
    flow = jk.Denoiser(lambda x, t: x, jk.FlowMatching(), "flow")
    with pytest.raises(ValueError, match="no signal at t_max"):
        score_matching_loss(flow, *setting[1:], coordinate="log_snr")
    with pytest.raises(ValueError, match="stochasticity_squared = 0 must be > 0"):
        kl_weight(PROCESS, 0.1, 0.0)
    with pytest.raises(ValueError, match="they must be the same"):
        kl_rate(PROCESS, 0.1, 1.0, jnp.ones((2, 1)), jnp.ones((2, 2)))
