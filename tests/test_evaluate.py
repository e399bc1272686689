"""The exact error of a schedule: its budget, its limits, its derivatives and its refusals."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.integrate import quad

import jaxkernels as jk
from jaxkernels import metrics
from jaxkernels.samplers import SAMPLERS, AbstractSampler

MEAN, EIGENVALUES = np.array([1.5, -0.4, 0.3]), np.array([2.0, 0.3, 0.05])
TARGET = jk.Gaussian(MEAN, EIGENVALUES)
TIMES = np.array([1.0, 0.6, 0.25, 0.03])
ALPHAS = np.array([0.3, 1.5, 0.8])


def _vp(t: float) -> tuple[float, float]:
    """Signal and noise variance of VP(0.1, 20)."""
    b = 0.1 * t + 9.95 * t * t
    return np.exp(-b / 2.0), -np.expm1(-b)


def _w2_squared(mean_error: np.ndarray, variance: np.ndarray, target: np.ndarray) -> float:
    return float(np.sum(mean_error**2 + (np.sqrt(variance) - np.sqrt(target)) ** 2))


@functools.cache
def _evaluation(alpha: float, initialization: str = "standard_normal") -> jk.Evaluation:
    schedule = jk.Schedule(TIMES, alpha * ALPHAS)
    return jk.evaluate_schedule(TARGET, jk.VP(), "ddim", schedule, initialization=initialization)  # pyright: ignore[reportArgumentType]


# --- distances and budget --------------------------------------------------------------------------------


def test_distances_are_those_of_the_moments() -> None:
    """Totals, and each mode's share, from the reported mean and variance by the textbook formulas."""
    e = _evaluation(1.0)
    error, v, c = np.asarray(e.mean) - MEAN, np.asarray(e.variance), EIGENVALUES
    exact = {
        "w2_squared": error**2 + (np.sqrt(v) - np.sqrt(c)) ** 2,
        "kl": 0.5 * (c / v - 1.0 - np.log(c / v) + error**2 / v),
        "reverse_kl": 0.5 * (v / c - 1.0 - np.log(v / c) + error**2 / c),
    }
    for name, modes in exact.items():
        np.testing.assert_allclose(e.per_mode[name], modes, rtol=1e-10)
        assert float(getattr(e, name)) == pytest.approx(np.sum(modes), rel=1e-11)
    assert float(e.w2) == pytest.approx(np.sqrt(np.sum(exact["w2_squared"])), rel=1e-11)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("initialization", ["standard_normal", "marginal"])
def test_budget_adds_up(alpha: float, initialization: str) -> None:
    budget = _evaluation(alpha, initialization).error_budget
    parts = budget.initialization + budget.truncation + budget.discretization + budget.score
    assert float(parts) == pytest.approx(float(budget.total), rel=1e-14, abs=0.0)
    assert float(budget.total) == float(_evaluation(alpha, initialization).w2_squared)
    assert float(budget.score) == 0.0
    alone = budget.initialization_alone + budget.truncation_alone + budget.discretization_alone
    assert float(budget.interaction) == pytest.approx(float(budget.total - alone), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_exact_start_has_no_initialization_error(alpha: float) -> None:
    budget = _evaluation(alpha, "marginal").error_budget
    assert float(budget.initialization) == 0.0
    assert float(budget.truncation) == float(budget.truncation_alone)


def _log_contraction(t: float, u: float, alpha: float, c: float) -> float:
    """int_u^t (-f - (1 + alpha^2)/2 g^2 / Sigma): how the reverse family of VP shrinks x - E x."""

    def rate(r: float) -> float:
        a, s2 = _vp(r)
        beta = 0.1 + 19.9 * r
        return 0.5 * beta - 0.5 * (1.0 + alpha**2) * beta / (a * a * c + s2)

    return quad(rate, u, t, epsabs=1e-12, limit=200)[0]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_initialization_and_truncation_in_closed_form(alpha: float) -> None:
    """The exact reverse process started from N(0, I), run to t = 0 and only to the last time.

    Below the last time the last stochasticity is kept.
    """
    budget = _evaluation(alpha).error_budget
    steps = zip(TIMES, np.append(TIMES[1:], 0.0), alpha * np.append(ALPHAS, ALPHAS[-1]), strict=True)
    logs = np.array([[_log_contraction(t, u, a, c) for c in EIGENVALUES] for t, u, a in steps])
    (a0, s0), (a1, s1) = _vp(TIMES[0]), _vp(TIMES[-1])
    whole, stopped = np.exp(logs.sum(0)), np.exp(logs[:-1].sum(0))
    first = a0 * a0 * EIGENVALUES + s0
    at_zero = _w2_squared(-whole * a0 * MEAN, EIGENVALUES + whole**2 * (1.0 - first), EIGENVALUES)
    last = a1 * a1 * EIGENVALUES + s1
    stopped_law = a1 * MEAN - stopped * a0 * MEAN, last + stopped**2 * (1.0 - first)
    at_end = _w2_squared(stopped_law[0] - MEAN, stopped_law[1], EIGENVALUES)
    assert float(budget.initialization) == pytest.approx(at_zero, rel=1e-6, abs=1e-16)
    assert float(budget.truncation) == pytest.approx(at_end - at_zero, rel=1e-7)
    assert float(budget.truncation_alone) == pytest.approx(
        _w2_squared((a1 - 1.0) * MEAN, last, EIGENVALUES), rel=1e-11
    )


def test_discretization_vanishes_with_many_steps() -> None:
    """And what is left of the total is what initialisation and truncation cause."""
    entries = []
    for k in (8, 512):
        schedule = jk.schedules.quadratic(jk.VP(), k, 0.03)
        entries.append(jk.evaluate_schedule(TARGET, jk.VP(), "dpmpp_2m", schedule).error_budget)
    assert abs(float(entries[1].discretization)) < 1e-3 * abs(float(entries[0].discretization))
    assert float(entries[1].discretization_alone) < 1e-6 * float(entries[0].discretization_alone)
    assert float(entries[1].total) == pytest.approx(float(entries[1].truncation), rel=0.02)


def test_weights_are_multiplicities() -> None:
    schedule = jk.Schedule(TIMES, ALPHAS)
    values, repeats = np.array([2.0, 0.3, 0.05]), np.array([1, 4, 2])
    weighted = jk.Gaussian(0.2, values, weights=repeats.astype(float))
    short = jk.evaluate_schedule(weighted, jk.VP(), "ddim", schedule)
    long = jk.evaluate_schedule(jk.Gaussian(0.2, np.repeat(values, repeats)), jk.VP(), "ddim", schedule)
    for field in ("w2_squared", "kl", "reverse_kl"):
        assert float(getattr(short, field)) == pytest.approx(float(getattr(long, field)), rel=1e-12)
    np.testing.assert_allclose(short.local_w2_squared, long.local_w2_squared, rtol=1e-9)


def test_rotations_change_nothing() -> None:
    """A covariance in other coordinates has the same errors; moments are reported along its modes."""
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    rotated = jk.Gaussian.from_covariance(rotation @ MEAN, (rotation * EIGENVALUES) @ rotation.T)
    ours = jk.evaluate_schedule(rotated, jk.VP(), "ddim", jk.Schedule(TIMES, ALPHAS))
    plain = _evaluation(1.0)
    assert float(ours.w2_squared) == pytest.approx(float(plain.w2_squared), rel=1e-10)
    np.testing.assert_allclose(ours.variance, plain.variance, rtol=1e-9)
    np.testing.assert_allclose(np.abs(ours.mean), np.abs(plain.mean), rtol=1e-9)


@pytest.mark.parametrize(("name", "evaluations"), [("ddim", 3), ("heun", 6), ("rk4", 12)])
def test_number_of_network_evaluations(name: str, evaluations: int) -> None:
    evaluation = jax.eval_shape(
        lambda t: jk.evaluate_schedule(TARGET, jk.VP(), name, jk.Schedule(t)), jnp.asarray(TIMES)
    )
    assert evaluation.num_evaluations == evaluations


def test_repr_is_readable() -> None:
    text = repr(_evaluation(0.0))
    assert f"w2={float(_evaluation(0.0).w2):.4g}" in text
    assert "truncation=" in text
    traced = []
    jax.eval_shape(
        lambda t: traced.append(repr(jk.evaluate_schedule(TARGET, jk.VP(), "ddim", jk.Schedule(t)))), TIMES
    )
    assert "w2=traced" in traced[0]


def test_vanishing_eigenvalue_has_infinite_kl_and_finite_w2() -> None:
    evaluation = jk.evaluate_schedule(
        jk.Gaussian(MEAN, np.array([2.0, 0.3, 0.0])), jk.VP(), "ddim", jk.Schedule(TIMES, ALPHAS)
    )
    assert float(evaluation.kl) == np.inf
    assert np.isfinite(float(evaluation.w2_squared))


# --- refusals --------------------------------------------------------------------------------------------

MIXTURE = jk.GaussianMixture(np.ones(1), np.zeros((1, 2)), np.ones(1))


def _evaluate(target=TARGET, process=None, sampler="ddim", times=TIMES, alpha=0.0, **options):
    process = process if process is not None else jk.VP()
    schedule = jk.Schedule(np.array(times), alpha)
    return jk.evaluate_schedule(target, process, sampler, schedule, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _evaluate(times=[0.2, 0.5]), r"times\[0\] = 0\.2 is followed by 0\.5"),
        (lambda: _evaluate(times=[1.5, 0.5]), r"times\[0\] = 1\.5 lies beyond the process's t_max = 1"),
        (lambda: _evaluate(times=[1.0, -0.5]), r"times must end at t >= 0; the last is -0\.5"),
        (lambda: _evaluate(alpha=np.ones(4)), r"stochasticity has shape \(4,\); .* shape \(3,\)"),
        (lambda: _evaluate(sampler="heun", alpha=0.5), r"stochasticity = 0\.5 has no meaning for Heun"),
        (
            lambda: _evaluate(sampler="dpmpp_2m", alpha=np.array([0.0, 2.0, 1.0])),
            r"stochasticity = 2 has no meaning for DPMSolverPP2M",
        ),
        (lambda: _evaluate(sampler="ddmi"), r"sampler='ddmi' is not known. Did you mean 'ddim'"),
        (lambda: _evaluate(sampler="dpm++2m"), r"Did you mean 'dpmpp_2m'"),
        (lambda: _evaluate(sampler="huen"), r"Did you mean 'heun'"),
        (lambda: _evaluate(target=MIXTURE), r"target is a GaussianMixture.* pass target\.gaussian\(\)"),
        (lambda: _evaluate(initialization="marginals"), r"initialization='marginals'.* mean 'marginal'"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_schedule_inside_a_transformation_fails_when_run() -> None:
    @jax.jit
    def run(times: jax.Array) -> jax.Array:
        return jk.evaluate_schedule(TARGET, jk.VP(), "ddim", jk.Schedule(times)).w2_squared

    assert np.isfinite(float(run(jnp.asarray(TIMES))))
    with pytest.raises(Exception, match="times must decrease"):
        jax.block_until_ready(run(jnp.array([1.0, 0.2, 0.4, 0.1])))


# --- precision and compilation ---------------------------------------------------------------------------


@pytest.mark.usefixtures("float32")
def test_result_is_that_of_float64_whatever_the_callers_flag() -> None:
    evaluation = jk.evaluate_schedule(TARGET, jk.VP(), "ddim", jk.Schedule(TIMES.astype(np.float32), ALPHAS))
    assert evaluation.w2_squared.dtype == jnp.float32
    with jax.enable_x64(True):
        times = TIMES.astype(np.float32).astype(np.float64)
        alphas = ALPHAS.astype(np.float32).astype(np.float64)
        exact = jk.evaluate_schedule(TARGET, jk.VP(), "ddim", jk.Schedule(times, alphas))
    assert float(evaluation.w2_squared) == pytest.approx(float(exact.w2_squared), rel=1e-6)
    np.testing.assert_allclose(evaluation.variance, exact.variance, rtol=1e-6)
    np.testing.assert_allclose(evaluation.local_w2_squared, exact.local_w2_squared, rtol=2e-6)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun"])
def test_float32_inside_jit(name: str) -> None:
    """Computed in float32 all through: 2e-4 relative on distances, 2e-5 on variances."""

    def run(times: jax.Array) -> tuple[jax.Array, ...]:
        e = jk.evaluate_schedule(TARGET, jk.VP(), name, jk.Schedule(times))
        return e.w2_squared, e.kl, e.variance

    rounded = TIMES.astype(np.float32)
    exact = jax.jit(run)(jnp.asarray(rounded.astype(np.float64)))
    with jax.enable_x64(False):
        single = jax.jit(run)(jnp.asarray(rounded))
        assert {v.dtype for v in single} == {np.dtype(np.float32)}
        single = [np.asarray(v) for v in single]
    for ours, theirs, tolerance in zip(single, exact, (2e-4, 2e-4, 2e-5), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)


class Counting(AbstractSampler):
    """Euler on the flow, which counts how often it is traced."""

    order = 1
    evaluations = 1
    stochastic = False
    traces = [0]  # noqa: RUF012

    def step(self, predict, noise, process, interval, x, memory):
        self.traces[0] += 1
        p = predict(x, interval.time)
        dt = interval.time - interval.next_time
        slope = process.signal_rate(interval.time) * p.x0 + process.noise_rate(interval.time) * p.eps
        return x - dt * slope, memory


def test_compiled_once_when_only_numbers_change() -> None:
    """Other times, another spectrum, other parameters of the process; not another number of steps."""
    jk.evaluate_schedule(TARGET, jk.VP(), Counting(), jk.Schedule(TIMES))
    first = Counting.traces[0]
    assert first > 0
    other = jk.Gaussian(0.0, np.array([3.0, 1.0, 0.1]))
    ours = jk.evaluate_schedule(other, jk.VP(0.2, 15.0), Counting(), jk.Schedule(TIMES**1.5))
    assert Counting.traces[0] == first
    theirs = jk.evaluate_schedule(other, jk.VP(0.2, 15.0), "euler_maruyama", jk.Schedule(TIMES**1.5))
    assert float(ours.w2_squared) == pytest.approx(float(theirs.w2_squared), rel=1e-12)
    jk.evaluate_schedule(TARGET, jk.VP(), Counting(), jk.Schedule(TIMES[1:]))
    assert Counting.traces[0] > first


# --- derivatives -----------------------------------------------------------------------------------------


@functools.cache
def _derivatives(name: str, metric: str, objective: str) -> Callable[..., tuple[jax.Array, ...]]:
    """Value, gradient and Hessian in (times, alpha^2), as a function of (times, alpha^2, eigenvalues)."""

    def value(variables: jax.Array, eigenvalues: jax.Array) -> jax.Array:
        schedule = jk.Schedule.from_squared(variables[:4], variables[4:])
        make = {"terminal": jk.Terminal, "local": jk.Local}[objective]
        target = jk.Gaussian(MEAN, eigenvalues)
        return make(target, jk.VP(), SAMPLERS[name](), metrics.METRICS[metric], "standard_normal")(schedule)

    def derivatives(variables: jax.Array, eigenvalues: jax.Array) -> tuple[jax.Array, ...]:
        slope, (curvature,) = (jax.grad(value), [jax.hessian(value)])
        return (
            value(variables, eigenvalues),
            slope(variables, eigenvalues),
            curvature(variables, eigenvalues),
        )

    return jax.jit(derivatives)


SMOOTH = np.array([0.9, 0.6, 0.3, 0.1, 0.25, 1.0, 0.5])


@pytest.mark.parametrize("metric", ["w2_squared", "kl"])
def test_gradient_of_an_evaluation(metric: str) -> None:
    """In the times and in alpha^2, both modes, and both once more for the gradient itself."""

    @jax.jit
    def value(variables: jax.Array) -> jax.Array:
        schedule = jk.Schedule.from_squared(variables[:4], variables[4:])
        return getattr(jk.evaluate_schedule(TARGET, jk.VP(), "ddim", schedule), metric)

    tolerances = {"modes": ("fwd", "rev"), "rtol": 1e-4, "atol": 1e-4}
    check_grads(value, (jnp.asarray(SMOOTH),), order=1, **tolerances)
    check_grads(jax.jit(jax.grad(value)), (jnp.asarray(SMOOTH),), order=1, **tolerances)


@pytest.mark.parametrize("metric", ["w2_squared", "kl"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "exponential_integrator"])
def test_derivatives_by_finite_differences(name: str, metric: str) -> None:
    """Gradient from values and Hessian from gradients, by central differences of fourth order."""
    fn = _derivatives(name, metric, "terminal")
    size = 7 if SAMPLERS[name].stochastic else 4
    point, eigenvalues, step = SMOOTH * (np.arange(7) < size), jnp.asarray(EIGENVALUES), 1e-3
    _, slope, curvature = fn(jnp.asarray(point), eigenvalues)
    for i in range(size):
        near = {n: fn(jnp.asarray(point + n * step * np.eye(7)[i]), eigenvalues) for n in (-2, -1, 1, 2)}
        for order, exact in ((0, slope[i]), (1, curvature[i])):
            v = {n: np.asarray(d[order]) for n, d in near.items()}
            difference = (8.0 * (v[1] - v[-1]) - (v[2] - v[-2])) / (12.0 * step)
            scale = float(np.max(np.abs(np.asarray((slope, curvature)[order]))))
            np.testing.assert_allclose(exact, difference, rtol=1e-5, atol=1e-6 * scale)


BENIGN = {
    "end at zero": ([0.9, 0.6, 0.3, 0.0], [0.0, 0.0, 0.0], [2.0, 0.3, 0.05]),
    "empty step": ([0.9, 0.6, 0.6, 0.1], [0.0, 0.0, 0.0], [2.0, 0.3, 0.05]),
    "empty first step": ([0.9, 0.9, 0.6, 0.1], [0.0, 0.0, 0.0], [2.0, 0.3, 0.05]),
    "empty last step at zero": ([0.9, 0.6, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.3, 0.05]),
    "repeated eigenvalues": ([0.9, 0.6, 0.3, 0.1], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    "zero eigenvalue": ([0.9, 0.6, 0.3, 0.1], [0.0, 0.0, 0.0], [2.0, 0.3, 0.0]),
    "zero eigenvalue, end at zero": ([0.9, 0.6, 0.3, 0.0], [0.0, 0.0, 0.0], [2.0, 0.3, 0.0]),
    "noise, end at zero": ([0.9, 0.6, 0.3, 0.0], [0.25, 1.0, 4.0], [2.0, 0.3, 0.05]),
    "noise in an empty step": ([0.9, 0.6, 0.6, 0.1], [0.25, 1.0, 4.0], [2.0, 0.3, 0.05]),
}


@pytest.mark.parametrize("objective", ["terminal", "local"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_derivatives_are_finite_at_benign_points(name: str, objective: str) -> None:
    """Value, gradient and Hessian of W2^2, at ends, empty steps and degenerate spectra."""
    fn = _derivatives(name, "w2_squared", objective)
    bad = []
    for label, (times, squared, eigenvalues) in BENIGN.items():
        if any(squared) and not SAMPLERS[name].stochastic:
            continue
        result = fn(jnp.array([*times, *squared]), jnp.array(eigenvalues))
        bad += [(label, what) for what, v in zip("vgh", result, strict=True) if not np.all(np.isfinite(v))]
    assert not bad


def test_slope_at_stochasticity_zero() -> None:
    """alpha^2 is the variable that all is smooth in: the slope there is the one-sided difference's limit."""
    fn, eigenvalues = _derivatives("ddim", "w2_squared", "terminal"), jnp.asarray(EIGENVALUES)
    point = np.array([0.9, 0.6, 0.3, 0.1, 0.0, 0.0, 0.0])
    value, slope, _ = fn(jnp.asarray(point), eigenvalues)
    for i in (4, 5, 6):
        steps = 1e-4 * np.eye(7)[i]
        one, two = (float(fn(jnp.asarray(point + n * steps), eigenvalues)[0]) for n in (1, 2))
        difference = (4.0 * one - two - 3.0 * float(value)) / 2e-4
        assert float(slope[i]) == pytest.approx(difference, rel=1e-4)
        assert abs(float(slope[i])) > 1e-4
