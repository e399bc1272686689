"""Every sampler against hand-written coefficients and against a Monte Carlo run of its own step.

The moments come from `evaluate_schedule`, which linearises the step and propagates the affine maps.
The coefficients are written here in NumPy from the methods' own papers, for a mode N(mean, c) whose
score is -(x - a mean) / (a^2 c + s^2); the Monte Carlo run draws real noise and never
differentiates anything.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from published_samplers import PUBLISHED, SAMPLERS

import jaxkernels as jk
from jaxkernels.samplers import (
    as_sampler,
    edm_churn,
    from_churn,
    from_eta,
    run_schedule,
    to_churn,
    to_eta,
)

MEAN, EIGENVALUES = np.array([1.5, -0.4]), np.array([2.0, 0.05])
TARGET = jk.Gaussian(MEAN, EIGENVALUES)
PARTICLES, SEED = 400_000, 20240817

Scalar = Callable[[float], float]


class Case(NamedTuple):
    """A process in NumPy: a, s, derivatives, f = a'/a, g^2 and int a d(sigma^2); and a schedule."""

    process: jk.AbstractProcess
    a: Scalar
    s: Scalar
    da: Scalar
    ds: Scalar
    f: Scalar
    g2: Scalar
    integral: Scalar
    times: np.ndarray
    at: Scalar
    """The time at a value of log(a/s)."""
    start: float
    """A last time of noise alone, for the runs from one end to the other."""


def _vp_exponent(t: float) -> float:
    return 0.1 * t + 0.5 * 19.9 * t * t


def _vp_signal(t: float) -> float:
    return np.exp(-_vp_exponent(t) / 2.0)


def _vp_noise(t: float) -> float:
    return np.sqrt(-np.expm1(-_vp_exponent(t)))


def _vp_rate(t: float) -> float:
    return 0.1 + 19.9 * t


def _vp_time(log: float) -> float:
    """Root of the exponent's quadratic equation, where a/s is e^log."""
    exponent = np.log1p(np.exp(-2.0 * log))
    return (-0.1 + np.sqrt(0.01 + 2.0 * 19.9 * exponent)) / 19.9


PROCESSES = {
    "vp": Case(
        jk.VP(),
        _vp_signal,
        _vp_noise,
        lambda t: -0.5 * _vp_rate(t) * _vp_signal(t),
        lambda t: 0.5 * _vp_rate(t) * _vp_signal(t) ** 2 / _vp_noise(t),
        lambda t: -0.5 * _vp_rate(t),
        _vp_rate,
        lambda t: 2.0 * np.expm1(_vp_exponent(t) / 2.0),
        np.array([0.9, 0.6, 0.35, 0.12, 0.01]),
        _vp_time,
        1.0,
    ),
    "edm": Case(
        jk.EDM(20.0),
        lambda t: 1.0,
        lambda t: t,
        lambda t: 0.0,
        lambda t: 1.0,
        lambda t: 0.0,
        lambda t: 2.0 * t,
        lambda t: t * t,
        np.array([18.0, 6.0, 2.0, 0.5, 0.03]),
        lambda log: np.exp(-log),
        20.0,
    ),
    "flow": Case(
        jk.FlowMatching(),
        lambda t: 1.0 - t,
        lambda t: t,
        lambda t: -1.0,
        lambda t: 1.0,
        lambda t: -1.0 / (1.0 - t),
        lambda t: 2.0 * t / (1.0 - t),
        lambda t: 2.0 * (t / (1.0 - t) - np.log(1.0 / (1.0 - t))),
        np.array([0.95, 0.7, 0.45, 0.2, 0.02]),
        lambda log: 1.0 / (1.0 + np.exp(log)),
        1.0,
    ),
}
STEPS = 4
VARYING = np.array([1.0, 0.7, 1.2, 0.9])  # so that a step that reads its neighbour's value is seen
CASES = [
    (setting, name, alpha)
    for setting in PROCESSES
    for name, sampler in SAMPLERS.items()
    for alpha in ((0.0, 0.5, 1.0, 2.0) if sampler.stochastic else (0.0,))
]


@functools.cache
def _evaluation(setting: str, name: str, alpha: float, ends: bool = False) -> jk.Evaluation:
    schedule = jk.Schedule(_times(PROCESSES[setting], ends), alpha * VARYING)
    return jk.evaluate_schedule(TARGET, PROCESSES[setting].process, name, schedule)


def _times(setting: Case, ends: bool) -> np.ndarray:
    """Times inside, or from pure noise to no noise."""
    return np.array([setting.start, *setting.times[1:-1], 0.0]) if ends else setting.times


def _prior(setting: Case, t: float) -> float:
    return setting.s(t) ** 2 if isinstance(setting.process, jk.EDM) else 1.0


# --- closed forms ---------------------------------------------------------------------------------

Map = tuple[np.ndarray, np.ndarray, float]
"""Matrix, shift and noise variance (on x) of z -> M z + m, for one mode; z is (x, history)."""


def _one_evaluation(
    setting: Case, mean: float, c: float, t: float, ell: float, eta: float, nu2: float
) -> Map:
    """x' = ell x + eta score(x) + sqrt(nu2) z, score -(x - a mean)/(a^2 c + s^2) at the start."""
    total = setting.a(t) ** 2 * c + setting.s(t) ** 2
    return np.array([[ell - eta / total]]), np.array([eta * setting.a(t) * mean / total]), nu2


def _euler_maruyama(setting: Case, mean: float, c: float, t: float, u: float, alpha: float) -> Map:
    h, p = t - u, 1.0 + alpha**2
    if alpha == 0.0:  # Euler on the flow, which needs no signal
        v, w = _flow(setting, mean, c, t)
        return np.array([[1.0 + h * v]]), np.array([h * w]), 0.0
    return _one_evaluation(
        setting,
        mean,
        c,
        t,
        1.0 - h * setting.f(t),
        0.5 * p * h * setting.g2(t),
        alpha**2 * h * setting.g2(t),
    )


def _exponential_integrator(
    setting: Case, mean: float, c: float, t: float, u: float, alpha: float
) -> Map:
    """Linear part exact, score frozen: eta = (1 + alpha^2)/2 a' int a dv, v = sigma^2."""
    a, v, w = setting.a(u), (setting.s(t) / setting.a(t)) ** 2, (setting.s(u) / setting.a(u)) ** 2
    eta = 0.5 * (1.0 + alpha**2) * a * (setting.integral(t) - setting.integral(u))
    return _one_evaluation(setting, mean, c, t, a / setting.a(t), eta, alpha**2 * a**2 * (v - w))


def _denoiser(setting: Case, mean: float, c: float, t: float) -> tuple[float, float, float]:
    """E[X_0 | x] = mean + gain (x - a mean) and E[Z | x] = share (x - a mean); also a mean."""
    total = setting.a(t) ** 2 * c + setting.s(t) ** 2
    return setting.a(t) * c / total, setting.s(t) / total, setting.a(t) * mean


def _ddim(setting: Case, mean: float, c: float, t: float, u: float, alpha: float) -> Map:
    """Linear part exact, denoiser frozen."""
    if setting.a(t) > 0.0 and setting.s(u) > 0.0:
        a, b, v, w = (
            setting.a(t),
            setting.a(u),
            (setting.s(t) / setting.a(t)) ** 2,
            (setting.s(u) / setting.a(u)) ** 2,
        )
        eta = b * a * v * (1.0 - (w / v) ** ((1.0 + alpha**2) / 2.0))
        return _one_evaluation(
            setting, mean, c, t, b / a, eta, b * b * w * (1.0 - (w / v) ** (alpha**2))
        )
    # from pure noise, or to none: all old noise is kept for alpha = 0 and none of it otherwise
    gain, share, center = _denoiser(setting, mean, c, t)
    kept = setting.s(u) if alpha == 0.0 else 0.0
    slope = setting.a(u) * gain + kept * share
    return (
        np.array([[slope]]),
        np.array([setting.a(u) * mean - slope * center]),
        setting.s(u) ** 2 - kept**2,
    )


def _flow(setting: Case, mean: float, c: float, t: float) -> tuple[float, float]:
    """dx/dtau = -(a' E[X_0|x] + s' E[Z|x]) = V x + w of the probability flow, tau down in t."""
    gain, share, center = _denoiser(setting, mean, c, t)
    slope = -setting.da(t) * gain - setting.ds(t) * share
    return slope, -setting.da(t) * mean - slope * center


def _trapezoid(h: float, start: tuple[float, float], end: tuple[float, float]) -> Map:
    """The trapezoid rule expanded: 1 + h/2 (V + V') + h^2/2 V'V, of dx/dtau = V x + w."""
    (v, w), (v2, w2) = start, end
    matrix = 1.0 + 0.5 * h * (v + v2) + 0.5 * h * h * v2 * v
    return np.array([[matrix]]), np.array([0.5 * h * (w + w2) + 0.5 * h * h * v2 * w]), 0.0


def _heun(setting: Case, mean: float, c: float, t: float, u: float, alpha: float) -> Map:
    if setting.s(u) == 0.0:  # the method's own last step is Euler's
        return _euler_maruyama(setting, mean, c, t, u, 0.0)
    del alpha
    return _trapezoid(t - u, _flow(setting, mean, c, t), _flow(setting, mean, c, u))


def _rk4(setting: Case, mean: float, c: float, t: float, u: float, alpha: float) -> Map:
    """The classical tableau for dx/dtau = V x + w: products of V at t, the middle (twice), u."""
    if setting.s(u) == 0.0:
        return _euler_maruyama(setting, mean, c, t, u, 0.0)
    del alpha
    h = t - u
    (v1, w1), (v2, w2), (v4, w4) = (_flow(setting, mean, c, r) for r in (t, 0.5 * (t + u), u))

    def stages(x: float, on: float) -> float:
        k1 = v1 * x + on * w1
        k2 = v2 * (x + 0.5 * h * k1) + on * w2
        k3 = v2 * (x + 0.5 * h * k2) + on * w2
        k4 = v4 * (x + h * k3) + on * w4
        return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    return np.array([[stages(1.0, 0.0)]]), np.array([stages(0.0, 1.0)]), 0.0


ONE_STEP: dict[str, Callable[[Case, float, float, float, float, float], Map]] = {
    "euler_maruyama": _euler_maruyama,
    "exponential_integrator": _exponential_integrator,
    "ddim": _ddim,
    "heun": _heun,
    "rk4": _rk4,
}


def _by_hand(
    setting: Case, name: str, alpha: float, ends: bool = False, **options: object
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every mode at every time, (K+1, modes) each."""
    times = _times(setting, ends)
    prior = _prior(setting, times[0])
    if name in PUBLISHED:
        return _by_recursion(setting, name, times, alpha, prior, **options)
    means, variances = np.zeros((STEPS + 1, 2)), np.full((STEPS + 1, 2), prior)
    for i, (mean, c) in enumerate(zip(MEAN, EIGENVALUES, strict=True)):
        m, v = 0.0, prior
        for k in range(STEPS):
            matrix, shift, nu2 = ONE_STEP[name](
                setting, mean, c, times[k], times[k + 1], alpha * VARYING[k]
            )
            m, v = matrix[0, 0] * m + shift[0], matrix[0, 0] ** 2 * v + nu2
            means[k + 1, i], variances[k + 1, i] = m, v
    return means, variances


def _by_recursion(
    setting: Case, name: str, times: np.ndarray, alpha: float, prior: float, **options: object
) -> tuple[np.ndarray, np.ndarray]:
    """The published recursion on columns: from 0, from 1, and from 0 with the noise of one step.

    What a column differs by from the first is its own contribution, as a run is affine.
    """
    start = np.zeros((2 + STEPS, 2))
    start[1] = np.sqrt(prior)
    z = np.zeros((STEPS, 2 + STEPS, 1))
    z[np.arange(STEPS), 2 + np.arange(STEPS)] = 1.0

    def denoise(x: np.ndarray, t: float) -> np.ndarray:
        gain = setting.a(t) * EIGENVALUES / (setting.a(t) ** 2 * EIGENVALUES + setting.s(t) ** 2)
        return MEAN + gain * (x - setting.a(t) * MEAN)

    path = np.stack(PUBLISHED[name](setting, denoise, times, start, z, alpha * VARYING, **options))
    return path[:, 0], np.sum((path[:, 1:] - path[:, :1]) ** 2, axis=1)


def test_every_sampler_has_a_closed_form() -> None:
    assert set(ONE_STEP) | set(PUBLISHED) == set(SAMPLERS)


@pytest.mark.parametrize(("setting", "name", "alpha"), CASES)
def test_moments_are_the_closed_form(setting: str, name: str, alpha: float) -> None:
    evaluation = _evaluation(setting, name, alpha)
    means, variances = _by_hand(PROCESSES[setting], name, alpha)
    # the level that EDM's sampler raises to is found by inverting sigma(t)
    rtol = 1e-8 if name == "edm_sampler" else 1e-10
    np.testing.assert_allclose(evaluation.means, means, rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(evaluation.variances, variances, rtol=rtol)
    np.testing.assert_array_equal(evaluation.mean, evaluation.means[-1])
    np.testing.assert_array_equal(evaluation.variance, evaluation.variances[-1])


@pytest.mark.parametrize(
    ("setting", "name", "alpha"),
    [
        *[
            (setting, name, 0.0)
            for setting in PROCESSES
            for name in ("ddim", "heun", "rk4", "euler_maruyama", *PUBLISHED)
        ],
        *[(setting, "dpmpp_3m", 1.0) for setting in PROCESSES],
        *[(setting, "ddim", alpha) for setting in PROCESSES for alpha in (0.5, 1.0, 2.0)],
        ("vp", "euler_maruyama", 1.0),
        ("edm", "exponential_integrator", 1.0),
    ],
)
def test_runs_from_end_to_end_are_the_closed_form(setting: str, name: str, alpha: float) -> None:
    """From t_max, where one process has no signal, to 0, where the flow cannot be evaluated."""
    evaluation = _evaluation(setting, name, alpha, ends=True)
    means, variances = _by_hand(PROCESSES[setting], name, alpha, ends=True)
    np.testing.assert_allclose(evaluation.means, means, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(evaluation.variances, variances, rtol=1e-9)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        *[
            (setting, name)
            for setting in PROCESSES
            for name in ("ddim", "dpmpp_3m", "unipc", "deis")
        ],
        *[(setting, name) for setting in ("edm", "flow") for name in ("heun", "rk4")],
    ],
)
def test_step_to_zero_noise_returns_the_denoised_point(setting: str, name: str) -> None:
    """E[X_0 | x], also where the flow's equation is Euler's: s = t or a + s = 1 lands there."""
    evaluation = _evaluation(setting, name, 0.0, ends=True)
    a, s = (
        PROCESSES[setting].a(PROCESSES[setting].times[-2]),
        PROCESSES[setting].s(PROCESSES[setting].times[-2]),
    )
    gain = a * EIGENVALUES / (a * a * EIGENVALUES + s * s)
    before = evaluation.means[-2], evaluation.variances[-2]
    np.testing.assert_allclose(evaluation.mean, MEAN + gain * (before[0] - a * MEAN), rtol=1e-10)
    np.testing.assert_allclose(evaluation.variance, gain**2 * before[1], rtol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "name", "options"),
    [
        (jk.DPMSolverPP2M(lower_order_final=True), "dpmpp_2m", {"lower_order_final": True}),
        (jk.DPMSolverPP3M(lower_order_final=True), "dpmpp_3m", {"lower_order_final": True}),
        (jk.UniPC(lower_order_final=False), "unipc", {"lower_order_final": False}),
        (
            jk.UniPC(solver_order=3, lower_order_final=False),
            "unipc",
            {"order": 3, "lower_order_final": False},
        ),
        (jk.DPMSolverPP2S(r=1.0), "dpmpp_2s", {"r": 1.0}),
        (jk.DPM2(r=0.8), "dpm_2", {"r": 0.8}),
        *[
            (kind(order), name, {"order": order})
            for name, kind in (("lms", jk.LMS), ("deis", jk.DEIS), ("ipndm", jk.IPNDM))
            for order in (1, 2, 3, 4)
        ],
    ],
    ids=str,
)
def test_options_of_samplers(sampler: jk.AbstractSampler, name: str, options: dict) -> None:
    """Every option changes what it says."""
    setting = PROCESSES["vp"]
    schedule = jk.Schedule(setting.times)
    evaluation = jk.evaluate_schedule(TARGET, setting.process, sampler, schedule)
    means, variances = _by_hand(setting, name, 0.0, **options)
    np.testing.assert_allclose(evaluation.means, means, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(evaluation.variances, variances, rtol=1e-10)
    plain = _evaluation("vp", name, 0.0).variances
    if sampler != SAMPLERS[name]():
        assert np.any(np.abs(evaluation.variances[-1] / plain[-1] - 1.0) > 1e-3)


def test_noise_of_the_edm_sampler() -> None:
    """S_noise scales what every step adds, and the start does not."""
    setting = PROCESSES["edm"]
    schedule = jk.Schedule(setting.times, VARYING)
    sampler = jk.EDMSampler(s_noise=1.1)
    evaluation = jk.evaluate_schedule(TARGET, setting.process, sampler, schedule)
    means, variances = _by_hand(setting, "edm_sampler", 1.0, s_noise=1.1)
    np.testing.assert_allclose(evaluation.means, means, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(evaluation.variances, variances, rtol=1e-10)
    assert np.all(evaluation.variances[1:] > _evaluation("edm", "edm_sampler", 1.0).variances[1:])


def test_churn_of_the_edm_sampler() -> None:
    """Karras et al., Algorithm 2: min(S_churn / N, sqrt(2) - 1) between S_min and S_max."""
    sigmas = np.array([20.0, 6.0, 2.0, 0.5, 0.03])
    found = edm_churn(sigmas, 0.8, s_min=1.0, s_max=10.0)
    np.testing.assert_allclose(found, [0.0, 0.2, 0.2, 0.0], rtol=1e-12)
    np.testing.assert_allclose(edm_churn(sigmas, 40.0), np.sqrt(2.0) - 1.0, rtol=1e-12)
    # the levels at which the network is told to be
    alpha = from_churn(jk.EDM(20.0), sigmas, found)
    at = jk.EDMSampler().evaluation_times(jk.EDM(20.0), jk.Schedule(sigmas, alpha).steps())[0]
    np.testing.assert_allclose(at, sigmas[:-1] * (1.0 + np.asarray(found)), rtol=1e-9)


def test_options_out_of_range() -> None:
    for make, message in (
        (lambda: jk.LMS(0), "solver_order = 0 must be at least 1"),
        (lambda: jk.DEIS(5), "solver_order = 5 must be at most 4"),
        (lambda: jk.IPNDM(5), "solver_order = 5 must be at most 4"),
        (lambda: jk.DPM2(r=0.0), "r = 0 must be > 0"),
        (lambda: jk.EDMSampler(s_noise=-1.0), "s_noise = -1 must be > 0"),
        (lambda: jk.UniPC(solver_order=4), "solver_order = 4 must be at most 3"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def _flow_from_score(setting: Case, mean: float, c: float, t: float) -> tuple[float, float]:
    """dx/dtau = -f x + g^2/2 score with score = -(x - a mean)/(a^2 c + s^2), also at s = 0."""
    total = setting.a(t) ** 2 * c + setting.s(t) ** 2
    pull = 0.5 * setting.g2(t) / total
    return -setting.f(t) - pull, pull * setting.a(t) * mean


def _full_to_zero(setting: Case) -> tuple[np.ndarray, np.ndarray]:
    """Last mean and variance of Heun with the trapezoid rule in every step, from end to end."""
    times = _times(setting, True)
    before = [_by_hand(setting, "heun", 0.0, ends=True)[i][-2] for i in (0, 1)]
    mean, variance = np.zeros(2), np.zeros(2)
    for i, (m, c) in enumerate(zip(MEAN, EIGENVALUES, strict=True)):
        start = _flow(setting, m, c, times[-2])
        matrix, shift, _ = _trapezoid(times[-2], start, _flow_from_score(setting, m, c, 0.0))
        mean[i] = matrix[0, 0] * before[0][i] + shift[0]
        variance[i] = matrix[0, 0] ** 2 * before[1][i]
    return mean, variance


@pytest.mark.parametrize("setting", PROCESSES)
def test_heun_takes_a_full_last_step_to_zero_noise(setting: str) -> None:
    """The score of the data themselves, -(x - mean) / c, in the recurrence and in sampling."""
    case = PROCESSES[setting]
    schedule = jk.Schedule(_times(case, True))
    evaluation = jk.evaluate_schedule(TARGET, case.process, jk.Heun(final="full"), schedule)
    mean, variance = _full_to_zero(case)
    np.testing.assert_allclose(evaluation.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(evaluation.variance, variance, rtol=1e-9)
    # the run is affine: its values at x = 0 and x = 1 are shift and factor
    ends = jk.sample(
        TARGET.denoiser(case.process),
        jk.Heun(final="full"),
        schedule,
        jnp.array([[0.0, 0.0], [1.0, 1.0]]),
    )
    prior = _prior(case, float(schedule.times[0]))
    np.testing.assert_allclose(ends[0], mean, rtol=1e-9)
    np.testing.assert_allclose((ends[1] - ends[0]) ** 2 * prior, variance, rtol=1e-9)
    euler = _evaluation(setting, "heun", 0.0, ends=True)
    assert np.all(np.abs(np.asarray(euler.variance) / variance - 1.0) > 1e-6)


@pytest.mark.parametrize("sampler", [jk.Heun, jk.RK4])
def test_full_steps_are_the_same_away_from_zero_noise(sampler: type) -> None:
    case = PROCESSES["vp"]
    schedule = jk.Schedule(case.times)
    full = jk.evaluate_schedule(TARGET, case.process, sampler(final="full"), schedule)
    euler = jk.evaluate_schedule(TARGET, case.process, sampler(), schedule)
    np.testing.assert_allclose(full.variances, euler.variances, rtol=1e-13)


@pytest.mark.parametrize("sampler", [jk.Heun(final="full"), jk.RK4(final="full")])
@pytest.mark.parametrize("setting", PROCESSES)
def test_a_full_last_step_converges(setting: str, sampler: jk.AbstractSampler) -> None:
    """To the data distribution itself, at sigma = 0, and with finite gradients."""
    case = PROCESSES[setting]
    times = case.times[0] * np.linspace(1.0, 0.0, 401) ** 2

    @jax.jit
    def w2(times: jax.Array) -> jax.Array:
        return jk.evaluate_schedule(
            TARGET, case.process, sampler, jk.Schedule(times), initialization="marginal"
        ).w2

    value, gradient = jax.value_and_grad(w2)(jnp.asarray(times))
    assert value < 2e-3
    assert np.all(np.isfinite(gradient[:-1]))


def test_a_full_last_step_needs_a_score() -> None:
    """A point has no density, and a network that divides by s no score: x is not finite."""
    process, schedule = jk.EDM(20.0), jk.Schedule(np.array([2.0, 1.0, 0.0]))
    sampler = jk.Heun(final="full")
    with pytest.raises(ValueError, match="is not finite in step 1"):
        jk.evaluate_schedule(jk.Gaussian(0.0, [1.0, 0.0]), process, sampler, schedule)
    exact = TARGET.denoiser(process)
    network = jk.Denoiser(lambda x, t: exact(x, t).x0, process, "x0")
    with pytest.raises(ValueError, match="x is no longer finite after step 1"):
        jk.sample(network, sampler, schedule, jnp.ones((1, 2)))
    assert np.all(np.isfinite(jk.sample(network, jk.Heun(), schedule, jnp.ones((1, 2)))))
    with pytest.raises(ValueError, match="needs predictions with a score"):
        sampler.step(
            lambda x, t: jk.Prediction(x, x),
            lambda v: v,
            process,
            jax.tree.map(lambda field: field[0], schedule.steps()),
            jnp.ones(2),
            (),
        )
    with pytest.raises(ValueError, match="final='half' is not known"):
        jk.Heun(final="half")


@pytest.mark.parametrize(
    ("setting", "prediction_type"),
    [("vp", "score"), ("edm", "score"), ("flow", "score"), ("flow", "flow")],
)
def test_networks_that_are_defined_at_zero_noise_take_a_full_last_step(
    setting: str, prediction_type: str
) -> None:
    case = PROCESSES[setting]

    def network(x: jax.Array, t: jax.Array) -> jax.Array:
        score = TARGET.score(case.process, x, t)
        if prediction_type == "score":
            return score
        x0, eps = TARGET.denoiser(case.process)(x, t)
        return eps - x0

    denoiser = jk.Denoiser(network, case.process, prediction_type)
    # from a time with signal: there a score determines x0
    schedule = jk.Schedule(np.append(case.times[:-1], 0.0))
    x = jnp.array([[0.3, -0.7], [1.2, 0.4]])
    ours = jk.sample(denoiser, jk.Heun(final="full"), schedule, x)
    exact = jk.sample(TARGET.denoiser(case.process), jk.Heun(final="full"), schedule, x)
    np.testing.assert_allclose(ours, exact, rtol=1e-10)


# --- Monte Carlo ----------------------------------------------------------------------------------


@functools.cache
def _draws() -> np.ndarray:
    """Unit normals (K+1, particles, modes): one array for the start, one for each step."""
    return np.random.default_rng(SEED).normal(size=(STEPS + 1, PARTICLES, 2))


@functools.cache
def _simulator(
    setting: str, name: str
) -> Callable[[jk.Schedule, jax.Array], tuple[jax.Array, jax.Array]]:
    """Sample mean and variance after every step of particles moved by `step` with noise."""
    process, sampler = PROCESSES[setting].process, SAMPLERS[name]()
    predict = TARGET.denoiser(process)

    @jax.jit
    def run(schedule: jk.Schedule, draws: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = draws[0] * np.sqrt(_prior(PROCESSES[setting], PROCESSES[setting].times[0]))

        def advance(carry, inputs):
            interval, z = inputs
            unused = [z]  # a second call would need a second array
            x, history = sampler.step(
                predict,
                lambda variance: jnp.sqrt(variance) * unused.pop(),
                process,
                interval,
                *carry,
            )
            return (x, history), (jnp.mean(x, 0), jnp.var(x, 0))

        return jax.lax.scan(
            advance,
            (x, sampler.init_history(x)),
            (schedule.steps(sampler.history_steps), draws[1:]),
        )[1]

    return run


def worst_z_score(setting: str, name: str, alpha: float) -> float:
    """Largest deviation of a simulated moment, in standard errors of a normal sample."""
    evaluation = _evaluation(setting, name, alpha)
    m, v = (np.asarray(a)[1:] for a in (evaluation.means, evaluation.variances))
    schedule = jk.Schedule(PROCESSES[setting].times, alpha * VARYING)
    means, variances = _simulator(setting, name)(schedule, jnp.asarray(_draws()))
    for_mean = np.abs(means - m) / np.sqrt(v / PARTICLES)
    for_variance = np.abs(variances - v) / (v * np.sqrt(2.0 / PARTICLES))
    return float(np.max(np.concatenate([for_mean, for_variance])))


@pytest.mark.parametrize(("setting", "name", "alpha"), CASES)
def test_moments_are_those_of_simulated_particles(setting: str, name: str, alpha: float) -> None:
    assert worst_z_score(setting, name, alpha) < 5.0


# --- order of convergence -------------------------------------------------------------------------

ORDERS = {
    "ddim": 1,
    "euler_maruyama": 1,
    "exponential_integrator": 1,
    "dpmpp_2m": 2,
    "dpmpp_3m": 2,
    "dpmpp_2s": 2,
    "dpm_2": 2,
    "midpoint": 2,
    "edm_sampler": 2,
    "heun": 2,
    "rk4": 4,
    "unipc": 2,
    "lms": 4,
    "deis": 3,
    "ipndm": 2,
}


def _started(steps: int) -> np.ndarray:
    """Times of VP from 1 to 0.05: even, but for the first, which grow from 1/K^2 to 1/K.

    The first steps of a multistep method have lower orders, and must not be seen.
    """
    doublings = int(np.ceil(np.log2(steps)))
    lengths = np.append(2.0 ** -np.arange(doublings, 0.0, -1.0), np.ones(steps))
    return 1.0 - 0.95 * np.append(0.0, np.cumsum(lengths) / np.sum(lengths))


@functools.cache
def _errors(sampler: jk.AbstractSampler, alpha: float, steps: tuple[int, ...]) -> list[float]:
    """W2(q, p_t_min) of schedules that start from the exact distribution.

    Columns are propagated: from 0, from 1, and the noise of every step, as a run is affine.
    """
    process = jk.VP()
    predict = TARGET.denoiser(process)

    @jax.jit
    def run(schedule: jk.Schedule) -> tuple[jax.Array, jax.Array]:
        count = schedule.num_steps if alpha else 0
        probes = jnp.zeros((2 + count, 2)).at[1].set(1.0)

        def advance(carry, inputs):
            interval, k = inputs

            def noise(variance: jax.Array) -> jax.Array:
                return jnp.where(jnp.arange(2 + count) == k + 2, jnp.sqrt(variance), 0.0)[:, None]

            return sampler.step(predict, noise, process, interval, *carry), None

        inputs = schedule.steps(sampler.history_steps), jnp.arange(schedule.num_steps)
        (ends, _), _ = jax.lax.scan(advance, (probes, sampler.init_history(probes)), inputs)
        parts = ends - ends[0]
        return ends[0], jnp.stack([parts[1], jnp.sqrt(jnp.sum(parts[2:] ** 2, 0))])

    def moments_at(t: float) -> tuple[np.ndarray, np.ndarray]:
        return _vp_signal(t) * MEAN, _vp_signal(t) ** 2 * EIGENVALUES + _vp_noise(t) ** 2

    (m0, v0), (m1, v1) = moments_at(1.0), moments_at(0.05)
    errors = []
    for k in steps:
        shift, (factor, injected) = (np.asarray(r) for r in run(jk.Schedule(_started(k), alpha)))
        deviation = np.sqrt(factor**2 * v0 + injected**2)
        errors.append(
            np.sqrt(np.sum((factor * m0 + shift - m1) ** 2 + (deviation - np.sqrt(v1)) ** 2))
        )
    return errors


def measured_order(
    sampler: jk.AbstractSampler, alpha: float, steps: tuple[int, ...] = (160, 320, 640)
) -> float:
    """Power of 1/K with which W2(q, p_t_min) falls."""
    return -float(np.polyfit(np.log(steps), np.log(_errors(sampler, alpha, steps)), 1)[0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_order_of_convergence(name: str) -> None:
    assert SAMPLERS[name]().order == ORDERS[name]
    tolerance = 0.2 if name == "deis" else 0.15
    assert measured_order(SAMPLERS[name](), 0.0) == pytest.approx(ORDERS[name], abs=tolerance)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        *[(kind(order), order) for kind in (jk.LMS, jk.DEIS) for order in (1, 2, 3, 4)],
        *[(jk.IPNDM(order), min(order, 2)) for order in (1, 2)],
        (jk.UniPC(solver_order=3, lower_order_final=False), 4),
        (jk.DPMSolverPP2S(r=0.7), 2),
        (jk.DPM2(r=1.0), 2),
        (jk.UniPC(solver_order=2, lower_order_final=False), 3),
    ],
    ids=str,
)
def test_order_of_convergence_is_the_stated_one(sampler: jk.AbstractSampler, order: int) -> None:
    assert sampler.order == order
    assert measured_order(sampler, 0.0) == pytest.approx(order, abs=0.2)


def _adams(sigmas: np.ndarray, order: int, coordinate: Callable, variance: float) -> float:
    """y = x / a of data N(0, variance) at the end: dy = eps dsigma, eps a Lagrange polynomial."""
    y = np.sqrt(variance + sigmas[0] ** 2)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    known: list[tuple[float, float]] = []
    for start, end in itertools.pairwise(sigmas):
        known.append((coordinate(start), start * y / (variance + start**2)))
        last = known[-order:]
        at = coordinate(0.5 * (start + end) + 0.5 * (end - start) * nodes)
        for i, (place, eps) in enumerate(last):
            others = [p for j, (p, _) in enumerate(last) if j != i]
            basis = np.prod([(at - p) / (place - p) for p in others], axis=0)
            y = y + 0.5 * (end - start) * eps * np.sum(weights * basis)
    return y


@pytest.mark.parametrize("order", [3, 4])
@pytest.mark.parametrize("kind", [jk.DEIS, jk.LMS])
def test_the_first_steps_limit_the_order_unless_they_are_short(kind: Any, order: int) -> None:
    """On a flow: 2 with even steps, whose first has order 1; by NumPy's own method too."""
    variance = 0.3
    process = jk.FlowMatching()
    coordinate = np.log if kind is jk.DEIS else np.asarray
    predict = jk.Gaussian(0.0, [variance]).denoiser(process)
    slopes = []
    for started in (False, True):
        errors = []
        for steps in (320, 640):
            share = (1.0 - _started(steps)) / 0.95 if started else np.linspace(0.0, 1.0, steps + 1)
            times = 0.98 - 0.93 * share
            sigmas = times / (1.0 - times)
            own = _adams(sigmas, order, coordinate, variance)
            x = np.sqrt((1.0 - times[0]) ** 2 * variance + times[0] ** 2)
            found = jk.sample(predict, kind(order), jk.Schedule(times), jnp.asarray([[x]]))
            errors.append(own - np.sqrt(variance + sigmas[-1] ** 2))
            assert float(found[0, 0]) / (1.0 - times[-1]) == pytest.approx(own, rel=1e-13)
        slopes.append(np.log2(errors[0] / errors[1]))
    assert slopes[0] == pytest.approx(2.0, abs=0.55)
    assert slopes[1] == pytest.approx(order, abs=0.45)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("ddim", 1),
        ("euler_maruyama", 1),
        ("exponential_integrator", 1),
        ("dpmpp_2m", 2),
        ("dpmpp_3m", 2),
        ("edm_sampler", 2),
    ],
)
def test_order_of_convergence_with_noise(name: str, order: int) -> None:
    """As fast in distribution as without noise; Euler-Maruyama's strong order would be 1/2."""
    steps = (160, 320, 640)
    assert measured_order(SAMPLERS[name](), 1.0, steps) == pytest.approx(order, abs=0.15)


# --- ends of a schedule ---------------------------------------------------------------------------


def test_first_step_from_pure_noise() -> None:
    """Without signal the denoiser is the mean and all of x is noise: x' = a' mean + s' x."""
    process, times = jk.CosineVP(), np.array([1.0, 0.7, 0.4, 0.2, 0.0])
    evaluation = jk.evaluate_schedule(TARGET, process, "ddim", jk.Schedule(times))
    a = np.cos(0.5 * np.pi * 0.708 / 1.008) / np.cos(0.5 * np.pi * 0.008 / 1.008)
    np.testing.assert_allclose(evaluation.means[1], a * MEAN, rtol=1e-12)
    np.testing.assert_allclose(evaluation.variances[1], (1.0 - a * a) * np.ones(2), rtol=1e-12)
    assert np.all(np.isfinite(evaluation.variances))


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4", "euler_maruyama", *PUBLISHED])
def test_straight_flow_from_pure_noise_to_a_point(name: str) -> None:
    """Data at one point m: flow lines are straight, x_t = m + t (x_1 - m), and all follow them."""
    times = np.array([1.0, 0.7, 0.45, 0.2, 0.02])
    evaluation = jk.evaluate_schedule(
        jk.Gaussian(MEAN, np.zeros(2)), jk.FlowMatching(), name, jk.Schedule(times)
    )
    np.testing.assert_allclose(
        evaluation.means, np.outer(1.0 - times, MEAN), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(evaluation.variances, np.outer(times**2, np.ones(2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "alpha"),
    [("exponential_integrator", 0.0), ("euler_maruyama", 1.0)],
    ids=["score", "diffusion"],
)
def test_samplers_that_need_signal_say_so(name: str, alpha: float) -> None:
    schedule = jk.Schedule(np.array([1.0, 0.5, 0.3, 0.2, 0.1]), alpha)
    with pytest.raises(ValueError, match=r"is not finite in step 0 .* t = 1 to 0\.5"):
        jk.evaluate_schedule(TARGET, jk.FlowMatching(), name, schedule)


# --- DDIM's parameter under other names -----------------------------------------------------------


def _ddim_coefficients(
    process: jk.AbstractProcess, times: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    """Factors of x0, of eps and of fresh unit noise in every DDIM step, (3, K), off `step`."""
    rows = []
    for x0, eps, z in np.eye(3):
        interval = jk.Schedule(times, alpha).steps()
        rows.append(
            jax.vmap(
                lambda interval, x0=x0, eps=eps, z=z: jk.DDIM().step(
                    lambda x, t: jk.Prediction(x0 * jnp.ones_like(x), eps * jnp.ones_like(x)),
                    lambda variance: z * jnp.sqrt(variance),
                    process,
                    interval,
                    jnp.asarray(0.0),
                    (),
                )[0]
            )(interval)
        )
    return np.stack([np.asarray(r) for r in rows])


TIMES = np.array([0.9, 0.6, 0.35, 0.12, 0.01])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, np.array([0.0, 0.2, 0.9, 1.0])], ids=str)
def test_eta_injects_the_noise_of_song(eta: float | np.ndarray) -> None:
    """Song et al., eq. (12) and (16): sqrt(A') x0 + sqrt(1 - A' - sd^2) eps + sd z,

    sd = eta sqrt((1 - A')/(1 - A)) sqrt(1 - A/A'), A the cumulated product of the alphas.
    """
    process = jk.VP()
    cumulated = np.array([_vp_signal(t) ** 2 for t in TIMES])
    now, later = cumulated[:-1], cumulated[1:]
    deviation = eta * np.sqrt((1.0 - later) / (1.0 - now)) * np.sqrt(1.0 - now / later)
    alpha = np.asarray(from_eta(process, TIMES, eta))
    x0, eps, z = _ddim_coefficients(process, TIMES, alpha)
    np.testing.assert_allclose(x0, np.sqrt(later), rtol=1e-12)
    np.testing.assert_allclose(z, deviation, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(eps, np.sqrt(1.0 - later - deviation**2), rtol=1e-10)
    np.testing.assert_allclose(
        to_eta(process, TIMES, alpha), eta * np.ones(4), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_eta_is_the_ancestral_step_of_exploding_noise(eta: float) -> None:
    """The split of k-diffusion's ancestral samplers.

    sigma_up = eta sqrt(sigma'^2 (sigma^2 - sigma'^2) / sigma^2)
    sigma_down^2 = sigma'^2 - sigma_up^2
    """
    sigma = np.array([20.0, 6.0, 2.0, 0.5, 0.03])
    now, later = sigma[:-1], sigma[1:]
    up = eta * np.sqrt(later**2 * (now**2 - later**2) / now**2)
    x0, eps, z = _ddim_coefficients(
        jk.EDM(20.0), sigma, np.asarray(from_eta(jk.EDM(20.0), sigma, eta))
    )
    np.testing.assert_allclose(x0, np.ones(4), rtol=1e-14)
    np.testing.assert_allclose(z, up, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(eps, np.sqrt(later**2 - up**2), rtol=1e-10)


def test_stochasticity_one_is_the_posterior_of_ddpm() -> None:
    """Ho et al., eq. (7), as mean and variance of a step.

    mean (sqrt(A') b x0 + sqrt(a) (1 - A') x)/(1 - A), variance b (1 - A')/(1 - A)
    """
    cumulated = np.array([_vp_signal(t) ** 2 for t in TIMES])
    now, later = cumulated[:-1], cumulated[1:]
    one, b = now / later, 1.0 - now / later
    x0, eps, z = _ddim_coefficients(jk.VP(), TIMES, np.ones(4))
    np.testing.assert_allclose(z**2, b * (1.0 - later) / (1.0 - now), rtol=1e-10)
    # x = sqrt(A) x0 + sqrt(1 - A) eps in the posterior mean
    of_x = np.sqrt(one) * (1.0 - later) / (1.0 - now)
    np.testing.assert_allclose(eps, of_x * np.sqrt(1.0 - now), rtol=1e-10)
    np.testing.assert_allclose(
        x0, np.sqrt(later) * b / (1.0 - now) + of_x * np.sqrt(now), rtol=1e-10
    )


@pytest.mark.parametrize("gamma", [0.0, 0.1, np.sqrt(2.0) - 1.0, 3.0])
def test_churn_keeps_the_share_of_old_noise_of_karras(gamma: float) -> None:
    """Karras et al., Algorithm 2: noise raised to (1 + gamma) sigma, Euler to sigma', D fixed."""
    process, sigma = jk.EDM(20.0), np.array([20.0, 6.0, 2.0, 0.5, 0.03])
    now, later = sigma[:-1], sigma[1:]
    raised = now * (1.0 + gamma)
    alpha = np.asarray(from_churn(process, sigma, gamma))
    _, eps, z = _ddim_coefficients(process, sigma, alpha)
    np.testing.assert_allclose(eps, later / raised * now, rtol=1e-10)
    np.testing.assert_allclose(
        z, later / raised * np.sqrt(raised**2 - now**2), rtol=1e-9, atol=1e-14
    )
    np.testing.assert_allclose(
        to_churn(process, sigma, alpha), gamma * np.ones(4), rtol=1e-10, atol=1e-15
    )


def test_eta_and_churn_at_a_last_step_to_zero() -> None:
    """No noise is injected there whatever they say, and every number stays finite."""
    sigma = np.array([6.0, 2.0, 0.0])
    for alpha in (from_eta(jk.EDM(20.0), sigma, 0.5), from_churn(jk.EDM(20.0), sigma, 0.5)):
        assert np.all(np.isfinite(alpha))
        x0, eps, z = _ddim_coefficients(jk.EDM(20.0), sigma, np.asarray(alpha))
        assert (x0[-1], eps[-1], z[-1]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 3.0, 30.0])
def test_marginal_preserving_steps_meet_the_noise_level(alpha: float) -> None:
    """eps^2 + z^2 = s'^2 for every stochasticity; a large one forgets the old noise altogether."""
    x0, eps, z = _ddim_coefficients(jk.VP(), TIMES, np.full(4, alpha))
    later = np.array([_vp_signal(t) ** 2 for t in TIMES[1:]])
    np.testing.assert_allclose(x0**2, later, rtol=1e-12)
    np.testing.assert_allclose(eps**2 + z**2, 1.0 - later, rtol=1e-10)
    assert np.all(eps >= 0)
    assert (np.max(eps / z) < 1e-10) if alpha == 30.0 else np.all(eps > 0)


def test_declared_evaluations_are_the_calls_of_a_step() -> None:
    """`nfe_per_step` counts the network calls of a full step."""
    for sampler in SAMPLERS.values():
        steps = jk.Schedule(np.array([0.5, 0.3])).steps(sampler().history_steps)
        interval = jax.tree.map(lambda field: field[0], steps)
        calls = 0

        def predict(x: jax.Array, t: jax.Array) -> jk.Prediction:
            nonlocal calls
            calls += 1
            return jk.Prediction(x, 0.0 * x)

        x = jnp.zeros(2)
        with jax.disable_jit():
            sampler().step(
                predict, lambda v: 0.0 * v, jk.VP(), interval, x, sampler().init_history(x)
            )
        assert calls == sampler.nfe_per_step


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m", "unipc"])
def test_one_program_samples_in_any_number_of_steps(name: str) -> None:
    """Against one step after the other; the network is traced for the first schedule only."""
    traced = []

    def fn(x: jax.Array, t: jax.Array) -> jax.Array:
        traced.append(t)
        return jnp.sin(x) * (1.0 - 0.5 * t)

    denoiser = jk.Denoiser(fn, jk.VP(), "x0")
    sampler = SAMPLERS[name]()
    alpha = 0.5 if sampler.stochastic else 0.0
    noise = jnp.asarray(np.random.default_rng(SEED).normal(size=(4, 2)), float)
    key = jax.random.key(SEED)
    found = {}
    for steps in (1, 2, 7, 30):
        schedule = jk.Schedule(jk.schedules.karras(jk.VP(), steps, 1e-2).times, alpha)
        found[steps] = jk.samplers.sample_concrete(denoiser, sampler, schedule, noise, key=key)
        assert len(traced) == sampler.nfe_per_step
    for steps in (2, 7):
        schedule = jk.Schedule(jk.schedules.karras(jk.VP(), steps, 1e-2).times, alpha)
        rows = schedule.steps(sampler.history_steps)
        x = noise
        history = sampler.init_history(x)
        for k, own in enumerate(jax.random.split(key, steps)):
            step = jax.tree.map(lambda leaf, k=k: jnp.asarray(leaf)[k], rows)
            run = (sampler, denoiser, denoiser.process, step, own)
            x, history = jk.samplers.take_step(*run, x, history)
        np.testing.assert_allclose(found[steps], x, rtol=1e-9, atol=1e-12)


def test_deterministic_runs_draw_no_noise() -> None:
    """A key changes nothing, and what is run holds no random number generator."""
    denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    schedule = jk.schedules.log_snr(jk.VP(), 4, 1e-2)
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    key = jax.random.key(1)
    for given in (None, key):
        run = str(
            jax.make_jaxpr(lambda x, k=given: jk.sample(denoiser, "ddim", schedule, x, key=k))(
                noise
            )
        )
        assert "random_bits" not in run
        assert "threefry" not in run
    noisy = jk.Schedule(schedule.times, 0.5)
    run = str(jax.make_jaxpr(lambda x: jk.sample(denoiser, "ddim", noisy, x, key=key))(noise))
    assert "random_bits" in run
    # the same samples as with noise that is multiplied by 0
    drawn, _ = run_schedule(denoiser, jk.DDIM(), schedule, key, noise)
    np.testing.assert_allclose(
        jk.sample(denoiser, "ddim", schedule, noise), drawn, rtol=1e-6, atol=1e-7
    )


def test_a_randomised_step_needs_a_key() -> None:
    step = jax.tree.map(lambda rows: rows[0], jk.Schedule([0.5, 0.2], 1.0).steps())
    run = (jk.REM(), jk.Gaussian(0.0, [1.0]).denoiser(jk.VP()), jk.VP(), step)
    with pytest.raises(ValueError, match="key: a randomised sampler draws times"):
        jk.samplers.take_step(*run, None, jnp.ones(1), ())


def test_samples_have_derivatives_in_weights_that_a_network_closes_over() -> None:
    """By reverse mode, against finite differences."""
    process = jk.VP()
    x = jnp.asarray([[1.0, -0.5]])

    def sampled(weight: jax.Array | float) -> jax.Array:
        denoiser = jk.Denoiser(lambda x, t: weight * jnp.tanh(x), process, "x0")
        schedule = jk.schedules.log_snr(process, 3, 1e-2)
        return jnp.sum(jk.sample(denoiser, "ddim", schedule, x))

    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(x, np.float64))
        slope = jax.grad(sampled)(0.7)
        difference = (sampled(0.7 + 1e-5) - sampled(0.7 - 1e-5)) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-8)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m", pytest.param("heun", marks=pytest.mark.slow)])
def test_padding_changes_neither_samples_nor_derivatives(name: str) -> None:
    """Of the first steps of a padded schedule, against the schedule of these steps alone."""
    process = jk.VP()
    denoiser = jk.GaussianMixture([0.4, 0.6], [[-1.0, 0.3], [1.5, 0.0]], [0.3, 0.6]).denoiser(
        process
    )
    sampler = as_sampler(name)
    x = jax.random.normal(jax.random.key(0), (3, 2))
    times = jnp.array([1.0, 0.6, 0.3, 0.1])
    key = jax.random.key(1)

    def ends(times: Array, padding: int, num_steps: Array | None) -> Array:
        padded = jnp.concatenate([times, jnp.repeat(times[-1:], padding)])
        run = (denoiser, sampler, jk.Schedule(padded), key, x)
        return run_schedule(*run, num_steps=num_steps)[0]

    def both(padding: int, num_steps: Array | None) -> tuple[Array, Array]:
        fn = functools.partial(ends, padding=padding, num_steps=num_steps)
        # traced times may be equal
        return jax.jit(fn)(times), jax.jit(jax.jacrev(fn))(times)

    for found, expected in zip(both(5, jnp.asarray(3)), both(0, None), strict=True):
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
