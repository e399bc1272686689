"""The exact error of a schedule: its budget, its limits, its derivatives and its refusals."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from end_evaluated import EndEvaluated
from gaussian_distances import w2_squared
from jax.test_util import check_grads
from published_samplers import SAMPLERS
from scipy.integrate import quad

import jaxkernels as jk
from jaxkernels import metrics
from jaxkernels.bounds import accumulation_operators
from jaxkernels.errors import BoundLocalError, BoundTerminalError, unchangeable_warnings
from jaxkernels.recurrence import Run, local_errors
from jaxkernels.samplers import AbstractSampler

MEAN, EIGENVALUES = np.array([1.5, -0.4, 0.3]), np.array([2.0, 0.3, 0.05])
TARGET = jk.Gaussian(MEAN, EIGENVALUES)
TIMES = np.array([1.0, 0.6, 0.25, 0.03])
ALPHAS = np.array([0.3, 1.5, 0.8])


def _vp(t: float) -> tuple[float, float]:
    """Signal and noise variance of VP(0.1, 20)."""
    b = 0.1 * t + 9.95 * t * t
    return np.exp(-b / 2.0), -np.expm1(-b)


@functools.cache
def _evaluation(alpha: float, initialization: str = "standard_normal") -> jk.Evaluation:
    schedule = jk.Schedule(TIMES, alpha * ALPHAS)
    return jk.evaluate_schedule(TARGET, jk.VP(), "ddim", schedule, initialization=initialization)


# --- distances and budget -------------------------------------------------------------------------


def test_distances_are_those_of_the_moments() -> None:
    """Totals, and each mode's share, from the reported moments by the textbook formulas."""
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
    assert float(budget.truncation) == pytest.approx(
        float(budget.truncation_alone), rel=1e-12, abs=0.0
    )


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
    steps = zip(
        TIMES, np.append(TIMES[1:], 0.0), alpha * np.append(ALPHAS, ALPHAS[-1]), strict=True
    )
    logs = np.array([[_log_contraction(t, u, a, c) for c in EIGENVALUES] for t, u, a in steps])
    (a0, s0), (a1, s1) = _vp(TIMES[0]), _vp(TIMES[-1])
    whole, stopped = np.exp(logs.sum(0)), np.exp(logs[:-1].sum(0))
    first = a0 * a0 * EIGENVALUES + s0
    at_zero = w2_squared(-whole * a0 * MEAN, EIGENVALUES + whole**2 * (1.0 - first), EIGENVALUES)
    last = a1 * a1 * EIGENVALUES + s1
    stopped_moments = a1 * MEAN - stopped * a0 * MEAN, last + stopped**2 * (1.0 - first)
    at_end = w2_squared(stopped_moments[0] - MEAN, stopped_moments[1], EIGENVALUES)
    assert float(budget.initialization) == pytest.approx(at_zero, rel=1e-6, abs=1e-16)
    assert float(budget.truncation) == pytest.approx(at_end - at_zero, rel=1e-7)
    assert float(budget.truncation_alone) == pytest.approx(
        w2_squared((a1 - 1.0) * MEAN, last, EIGENVALUES), rel=1e-11
    )


def test_discretization_vanishes_with_many_steps() -> None:
    """And what is left of the total is what initialisation and truncation cause."""
    entries = []
    for k in (3, 2048):
        schedule = jk.schedules.quadratic(jk.VP(), k, 0.03)
        entries.append(jk.evaluate_schedule(TARGET, jk.VP(), "ddim", schedule).error_budget)
    # a sampler of order 1: its distance to the exact distribution falls with 1/K, the square
    # of it with 1/K^2
    assert abs(float(entries[1].discretization)) < 3e-3 * abs(float(entries[0].discretization))
    assert float(entries[1].discretization_alone) < 1e-5 * float(entries[0].discretization_alone)
    others = float(entries[1].initialization + entries[1].truncation)
    assert float(entries[1].total) == pytest.approx(others, rel=0.02)


def test_weights_are_multiplicities() -> None:
    schedule = jk.Schedule(TIMES, ALPHAS)
    values, repeats = np.array([2.0, 0.3, 0.05]), np.array([1, 4, 2])
    weighted = jk.Gaussian(0.2, values, weights=repeats.astype(float))
    short = jk.evaluate_schedule(weighted, jk.VP(), "ddim", schedule)
    long = jk.evaluate_schedule(
        jk.Gaussian(0.2, np.repeat(values, repeats)), jk.VP(), "ddim", schedule
    )
    for field in ("w2_squared", "kl", "reverse_kl"):
        assert float(getattr(short, field)) == pytest.approx(float(getattr(long, field)), rel=1e-12)
    np.testing.assert_allclose(short.local_w2_squared, long.local_w2_squared, rtol=1e-9)


def test_rotations_change_nothing() -> None:
    """A covariance in other coordinates has the same errors; moments are those along its modes."""
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
    assert evaluation.nfe == evaluations


def test_repr_is_readable() -> None:
    text = repr(_evaluation(0.0))
    assert f"w2={float(_evaluation(0.0).w2):.4g}" in text
    assert "truncation=" in text
    traced = []
    jax.eval_shape(
        lambda t: traced.append(
            repr(jk.evaluate_schedule(TARGET, jk.VP(), "ddim", jk.Schedule(t)))
        ),
        TIMES,
    )
    assert "w2=traced" in traced[0]


def test_vanishing_eigenvalue_has_infinite_kl_and_finite_w2() -> None:
    evaluation = jk.evaluate_schedule(
        jk.Gaussian(MEAN, np.array([2.0, 0.3, 0.0])), jk.VP(), "ddim", jk.Schedule(TIMES, ALPHAS)
    )
    assert float(evaluation.kl) == np.inf
    assert np.isfinite(float(evaluation.w2_squared))


# --- scores of the step's end ---------------------------------------------------------------------


END_RUN = TARGET, jk.VE(rate=2.0), EndEvaluated(), jk.Schedule(TIMES, ALPHAS)


def _end_evaluated(
    mean: np.ndarray, variance: np.ndarray, slope: np.ndarray, shift: np.ndarray, first: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and factor of x at the end, by hand; errors (K, modes), from step `first`."""
    factor = np.ones(3)
    for k in range(first, 3):
        h = TIMES[k] - TIMES[k + 1]
        beta = (1.0 + ALPHAS[k] ** 2) * h
        precision = 1.0 / (EIGENVALUES + 2.0 * TIMES[k + 1])
        a = 1.0 - beta * (precision + slope[k])
        mean = a * mean + beta * (precision * MEAN + shift[k])
        variance = a**2 * variance + 2.0 * h * ALPHAS[k] ** 2
        factor = a * factor
    return mean, variance, factor


def _end_error(slope: np.ndarray, shift: np.ndarray) -> float:
    """Terminal W2^2 from N(0, 2 t_0)."""
    mean, variance, _ = _end_evaluated(np.zeros(3), np.full(3, 2.0 * TIMES[0]), slope, shift)
    return float(w2_squared(mean - MEAN, variance, EIGENVALUES))


def test_a_step_evaluated_at_its_end() -> None:
    """Moments, and the responses to a shift of every score, against the recurrence."""
    none = np.zeros((3, 3))
    evaluation = jk.evaluate_schedule(*END_RUN)
    mean, variance, _ = _end_evaluated(np.zeros(3), np.full(3, 2.0 * TIMES[0]), none, none)
    np.testing.assert_allclose(evaluation.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(evaluation.variance, variance, rtol=1e-12)
    assert float(evaluation.w2_squared) == pytest.approx(_end_error(none, none), rel=1e-11)
    operators = accumulation_operators(*END_RUN)
    np.testing.assert_array_equal(operators.times, TIMES[1:])
    beta = (1.0 + ALPHAS**2) * -np.diff(TIMES)
    later = [_end_evaluated(MEAN, EIGENVALUES, none, none, first=k + 1)[2] for k in range(3)]
    np.testing.assert_allclose(operators.signed, beta[:, None] * np.stack(later), rtol=1e-11)


def test_errors_of_scores_at_the_end_of_a_step() -> None:
    """The exact error for given errors, and its expansion by differences of the recurrence."""
    kernel = jk.error_kernel(*END_RUN)
    np.testing.assert_array_equal(kernel.times, TIMES[1:])
    slope, shift = 0.1 * np.random.default_rng(0).standard_normal((2, 3, 3))
    theta = jk.AffineError(jnp.asarray(slope), jnp.asarray(shift))
    assert float(kernel.error(theta)) == pytest.approx(_end_error(slope, shift), rel=1e-11)
    sizes = np.array(SCORE_ERROR)
    size = 1e-3

    def even(slope: np.ndarray, shift: np.ndarray) -> float:
        there = _end_error(size * slope, size * shift)
        back = _end_error(-size * slope, -size * shift)
        return (0.5 * (there + back) - _end_error(0.0 * slope, 0.0 * shift)) / size**2

    ones = np.ones((3, 1))
    zero = np.zeros((3, 3))
    expected = even(ones * sizes[0], zero) + even(zero, ones * sizes[1])
    error = jk.ScoreError.diagonal(*SCORE_ERROR)
    assert float(kernel.contract(error)) == pytest.approx(expected, rel=1e-6)
    result = jk.expected_error(*END_RUN, score_error=error)
    assert float(result.second_order) == pytest.approx(expected, rel=1e-6)


def test_local_errors_of_steps_evaluated_at_their_ends() -> None:
    """Right after each step from the exact marginal, for the step's mean, variance and factor."""
    moments = local_errors(*END_RUN).moments
    start = EIGENVALUES + 2.0 * TIMES[:-1, None]
    h = -np.diff(TIMES)
    beta = (1.0 + ALPHAS**2) * h
    factor = 1.0 - beta[:, None] / (EIGENVALUES + 2.0 * TIMES[1:, None])
    injected = (2.0 * h * ALPHAS**2)[:, None] * np.ones(3)
    np.testing.assert_allclose(moments.mean_error, 0.0, atol=1e-14)
    np.testing.assert_allclose(moments.factor, factor, rtol=1e-11)
    np.testing.assert_allclose(moments.injected, injected, rtol=1e-12)
    signed = np.sign(factor) * factor**2 * start + injected
    np.testing.assert_allclose(moments.variance, signed, rtol=1e-11)


# --- refusals -------------------------------------------------------------------------------------

MIXTURE = jk.GaussianMixture(np.ones(1), np.zeros((1, 2)), np.ones(1))


def _evaluate(
    sampler: str = "ddim",
    times: Sequence[float] = tuple(TIMES.tolist()),
    alpha: float | Sequence[float] = 0.0,
    initialization: Any = "marginal",
) -> jk.Evaluation:
    schedule = jk.Schedule(times, alpha)
    return jk.evaluate_schedule(TARGET, jk.VP(), sampler, schedule, initialization=initialization)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _evaluate(times=[0.2, 0.5]), r"times\[0\] = 0\.2 is followed by 0\.5"),
        (
            lambda: _evaluate(times=[1.5, 0.5]),
            r"times\[0\] = 1\.5 lies beyond the process's t_max = 1",
        ),
        (lambda: _evaluate(times=[1.0, -0.5]), r"times must end at t >= 0; the last is -0\.5"),
        (lambda: _evaluate(alpha=[1.0] * 4), r"stochasticity has shape \(4,\); .* shape \(3,\)"),
        (
            lambda: _evaluate(sampler="heun", alpha=0.5),
            r"stochasticity = 0\.5 has no meaning for Heun",
        ),
        (
            lambda: _evaluate(sampler="unipc", alpha=[0.0, 2.0, 1.0]),
            r"stochasticity = 2 has no meaning for UniPC",
        ),
        (lambda: _evaluate(sampler="ddmi"), r"sampler='ddmi' is not known. Did you mean 'ddim'"),
        (lambda: _evaluate(sampler="dpmpp_22m"), r"Did you mean 'dpmpp_2m'"),
        (lambda: _evaluate(sampler="huen"), r"Did you mean 'heun'"),
        (
            lambda: Run.checked(MIXTURE, jk.VP(), "ddim", jk.Schedule(TIMES)),
            r"GaussianMixture.* pass target\.gaussian\(\)",
        ),
        (
            lambda: Run.checked("data", jk.VP(), "ddim", jk.Schedule(TIMES)),
            r"target must be a Gaussian; got str",
        ),
        (
            lambda: Run.checked(TARGET, "vp", "ddim", jk.Schedule(TIMES)),
            r"process must be a forward process .*; got 'vp'",
        ),
        (
            lambda: _evaluate(initialization="marginals"),
            r"initialization='marginals'.* mean 'marginal'",
        ),
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


# --- precision and compilation --------------------------------------------------------------------


@pytest.mark.usefixtures("float32")
def test_result_is_that_of_float64_whatever_the_callers_flag() -> None:
    evaluation = jk.evaluate_schedule(
        TARGET, jk.VP(), "ddim", jk.Schedule(TIMES.astype(np.float32), ALPHAS)
    )
    assert evaluation.w2_squared.dtype == jnp.float32
    with jax.enable_x64(True):
        times = TIMES.astype(np.float32).astype(np.float64)
        alphas = ALPHAS.astype(np.float32).astype(np.float64)
        exact = jk.evaluate_schedule(TARGET, jk.VP(), "ddim", jk.Schedule(times, alphas))
    assert float(evaluation.w2_squared) == pytest.approx(float(exact.w2_squared), rel=1e-6)
    np.testing.assert_allclose(evaluation.variance, exact.variance, rtol=1e-6)
    np.testing.assert_allclose(evaluation.local_w2_squared, exact.local_w2_squared, rtol=2e-6)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_float32_inside_jit(name: str) -> None:
    """Computed in float32 all through: 2e-4 relative on distances, 2e-5 on variances."""
    target = jk.Gaussian(MEAN.copy(), EIGENVALUES.copy())
    rounded = TIMES.astype(np.float32)

    def run(times: jax.Array) -> tuple[jax.Array, ...]:
        e = jk.evaluate_schedule(target, jk.VP(), name, jk.Schedule(times))
        return e.w2_squared, e.kl, e.variance

    with jax.enable_x64(False):
        single = jax.jit(run)(jnp.asarray(rounded))
        assert {v.dtype for v in single} == {np.dtype(np.float32)}
        single = [np.asarray(v) for v in single]
    double = run(jnp.asarray(rounded, jnp.float64))
    for ours, theirs, tolerance in zip(single, double, (2e-4, 2e-4, 2e-5), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)


SCORE_ERROR = ([0.02, 0.01, 0.03], [0.05, 0.02, 0.01])


def _of_schedule(name: str) -> Callable[[jk.Schedule], jax.Array]:
    """A function of a schedule that closes over arrays: a target, a process, a score error."""
    target = jk.Gaussian(MEAN.copy(), EIGENVALUES.copy())
    process = jk.VP(0.1, 20.0)
    error = jk.ScoreError.diagonal(*SCORE_ERROR, jk.OrnsteinUhlenbeck(1.5), cross=0.4)
    run = (target, process, "ddim")
    return {
        "w2": lambda s: jk.evaluate_schedule(*run, s).w2,
        "w2 with a score error": lambda s: jk.evaluate_schedule(*run, s, score_error=error).w2,
        "kernel": lambda s: jk.error_kernel(*run, s).contract(error),
        "expected error": lambda s: jk.expected_error(*run, s, score_error=error, pairs=2).value,
        "bound": lambda s: accumulation_operators(*run, s).correlated(1.0, jk.AR1(0.5)).value,
    }[name]


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    "name",
    [
        *("w2", "bound"),
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("kernel", "w2 with a score error", "expected error")
        ),
    ],
)
def test_float32_transformations_after_float64_on_the_same_arrays(name: str) -> None:
    """As after an optimisation, whose float64 program JAX still holds with the arrays in it."""
    fn = _of_schedule(name)

    def of_times(times: jax.Array) -> jax.Array:
        return fn(jk.Schedule(times))

    rounded = TIMES.astype(np.float32)
    with jax.enable_x64(True):
        double = jax.jit(jax.value_and_grad(of_times))
        value, slope = map(np.asarray, double(jnp.asarray(rounded, jnp.float64)))
    times = jnp.asarray(rounded)
    single = jax.jit(fn)(jk.Schedule(times))
    assert single.dtype == jnp.float32
    assert float(single) == pytest.approx(float(value), rel=5e-4)
    many, found = jax.jit(lambda t: (jax.vmap(of_times)(t[None]), jax.grad(of_times)(t)))(times)
    np.testing.assert_allclose(many[0], value, rtol=5e-4)
    scale = float(np.abs(slope).max())
    np.testing.assert_allclose(found, slope, atol=2e-3 * scale)
    del double  # held until here


class Counting(AbstractSampler):
    """Euler on the flow, which counts how often it is traced."""

    order = 1
    nfe_per_step = 1
    stochastic = False
    traces = [0]  # noqa: RUF012

    def step(self, predict, noise, process, step, x, history):
        self.traces[0] += 1
        p = predict(x, step.time)
        dt = step.time - step.next_time
        slope = process.signal_rate(step.time) * p.x0 + process.noise_rate(step.time) * p.eps
        return x - dt * slope, history


def test_compiled_once_when_only_numbers_change() -> None:
    """Other times, another spectrum, other parameters of the process: no second compilation."""
    jk.evaluate_schedule(TARGET, jk.VP(), Counting(), jk.Schedule(TIMES))
    first = Counting.traces[0]
    assert first > 0
    other = jk.Gaussian(0.0, np.array([3.0, 1.0, 0.1]))
    before = jk.evaluate_schedule(TARGET, jk.VP(), Counting(), jk.Schedule(TIMES))
    after = jk.evaluate_schedule(other, jk.VP(0.2, 15.0), Counting(), jk.Schedule(TIMES**1.5))
    assert float(before.w2_squared) != float(after.w2_squared)
    assert Counting.traces[0] == first


# --- derivatives ----------------------------------------------------------------------------------

SMOOTH = np.array([0.9, 0.6, 0.3, 0.1, 0.25, 1.0, 0.5])  # times, then alpha^2


def _objective(
    name: str, kind: str, metric: str, variables: jax.Array, eigenvalues: jax.Array
) -> jax.Array:
    """The terminal or the local objective as a function of (times, alpha^2)."""
    schedule = jk.Schedule.from_squared(variables[:4], variables[4:])
    target = jk.Gaussian(MEAN, eigenvalues)
    make = {"terminal": BoundTerminalError, "local": BoundLocalError}[kind]
    return make(target, jk.VP(), SAMPLERS[name](), metrics.METRICS[metric], "standard_normal")(
        schedule
    )


Derivatives = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


@functools.cache
def _derivatives(name: str, kind: str, metric: str, order: int) -> Derivatives:
    """Value, gradient by reverse mode, and for order 2 the Hessian by forward over reverse mode."""

    def value_and_gradient(v: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(functools.partial(_objective, name, kind, metric))(v, c)

    def all_three(v: jax.Array, c: jax.Array) -> tuple[jax.Array, ...]:
        hessian = jax.jacfwd(lambda v: value_and_gradient(v, c)[1])(v)
        return (*value_and_gradient(v, c), hessian)

    compiled = jax.jit(value_and_gradient if order == 1 else all_three)
    return lambda v, c: [np.asarray(r) for r in compiled(v, c)]


def test_derivatives_of_an_evaluation() -> None:
    """W2^2 and KL in the times and in alpha^2: both modes, and forward mode for the gradient."""

    @jax.jit
    def value(variables: jax.Array) -> jax.Array:
        schedule = jk.Schedule.from_squared(variables[:4], variables[4:])
        evaluation = jk.evaluate_schedule(TARGET, jk.VP(), "ddim", schedule)
        return evaluation.w2_squared + 0.4 * evaluation.kl

    tolerances = {"rtol": 1e-4, "atol": 1e-4}
    check_grads(value, (jnp.asarray(SMOOTH),), order=1, modes=("fwd", "rev"), **tolerances)
    check_grads(
        jax.jit(jax.grad(value)), (jnp.asarray(SMOOTH),), order=1, modes=("fwd",), **tolerances
    )


@pytest.mark.parametrize(
    ("name", "metric", "order"),
    [
        ("heun", "w2_squared", 1),
        ("exponential_integrator", "kl", 1),
        ("ddim", "w2_squared", 2),
        ("dpmpp_2m", "w2_squared", 2),
    ],
)
def test_derivatives_by_differences(name: str, metric: str, order: int) -> None:
    """Each derivative is that of the one before, by central differences of fourth order."""
    fn, step = _derivatives(name, "terminal", metric, order), 1e-3
    size = 7 if SAMPLERS[name].stochastic else 4  # alpha only if the sampler has a use for it
    point = np.where(np.arange(7) < size, SMOOTH, 0.0)
    exact = fn(point, EIGENVALUES)
    for i in range(size):
        near = {n: fn(point + n * step * np.eye(7)[i], EIGENVALUES) for n in (-2, -1, 1, 2)}
        for k in range(order):
            difference = 8.0 * (near[1][k] - near[-1][k]) - (near[2][k] - near[-2][k])
            slope, scale = exact[k + 1], np.abs(exact[k + 1]).max()
            np.testing.assert_allclose(
                slope[..., i], difference / (12.0 * step), rtol=1e-5, atol=1e-6 * scale
            )


# the others take the same code, but for their step
QUICK = (
    "ddim",
    "dpmpp_2m",
    "unipc",
    "heun",
    "euler_maruyama",
    "exponential_integrator",
    "dpmpp_2s",
)
BENIGN = {
    "end at zero": ([0.9, 0.6, 0.3, 0.0], [0.0, 0.0, 0.0], [2.0, 0.3, 0.05]),
    "empty step": ([0.9, 0.6, 0.6, 0.1], [0.0, 0.0, 0.0], [2.0, 0.3, 0.05]),
    "empty first step": ([0.9, 0.9, 0.6, 0.1], [0.0, 0.0, 0.0], [2.0, 0.3, 0.05]),
    "repeated eigenvalues": ([0.9, 0.6, 0.3, 0.1], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    "zero eigenvalue": ([0.9, 0.6, 0.3, 0.1], [0.0, 0.0, 0.0], [2.0, 0.3, 0.0]),
    "zero eigenvalue, end at zero": ([0.9, 0.6, 0.3, 0.0], [0.0, 0.0, 0.0], [2.0, 0.3, 0.0]),
    "noise, end at zero": ([0.9, 0.6, 0.3, 0.0], [0.25, 1.0, 4.0], [2.0, 0.3, 0.05]),
    "noise in an empty step": ([0.9, 0.6, 0.6, 0.1], [0.25, 1.0, 4.0], [2.0, 0.3, 0.05]),
}


@pytest.mark.parametrize(
    ("name", "kind", "order"),
    [
        *[
            pytest.param(
                *(name, "terminal", 2 if name in ("ddim", "dpmpp_2m") else 1),
                marks=[] if name in QUICK else [pytest.mark.slow],
            )
            for name in SAMPLERS
        ],
        *[(name, "local", 1) for name in ("ddim", "dpmpp_2m")],
    ],
)
def test_derivatives_are_finite_at_benign_points(name: str, kind: str, order: int) -> None:
    """W2^2 at ends of time, for empty steps and degenerate spectra."""
    fn, bad = _derivatives(name, kind, "w2_squared", order), []
    for label, (times, squared, eigenvalues) in BENIGN.items():
        if SAMPLERS[name].stochastic or not any(squared):
            result = fn(np.array(times + squared), np.array(eigenvalues))
            bad += [(label, k) for k, v in enumerate(result) if not np.all(np.isfinite(v))]
    assert not bad


@pytest.mark.parametrize(
    "label", ["end at zero", "empty step", "repeated eigenvalues", "noise, end at zero"]
)
def test_kl_derivatives_are_finite_at_benign_points(label: str) -> None:
    times, squared, eigenvalues = BENIGN[label]
    fn = _derivatives("exponential_integrator", "terminal", "kl", 1)
    value, slope = fn(np.array(times + squared), np.array(eigenvalues))
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


def test_slope_at_stochasticity_zero() -> None:
    """alpha^2 is the variable that all is smooth in: the slope there is a one-sided limit."""
    fn, step = _derivatives("ddim", "terminal", "w2_squared", 2), 1e-4
    point = np.array([0.9, 0.6, 0.3, 0.1, 0.0, 0.0, 0.0])
    value, slope, _ = fn(point, EIGENVALUES)
    for i in (4, 5, 6):
        one, two = (fn(point + n * step * np.eye(7)[i], EIGENVALUES)[0] for n in (1, 2))
        assert slope[i] == pytest.approx((4.0 * one - two - 3.0 * value) / (2.0 * step), rel=1e-4)
        assert abs(slope[i]) > 1e-4


def test_the_size_of_data_is_that_of_the_samples_in_any_basis() -> None:
    """Named in the warning of what no schedule can change: rms of a coordinate, by NumPy."""
    samples = 40.0 + 10.0 * np.random.default_rng(0).standard_normal((12, 30))
    spanned = jk.Gaussian.fit(samples, shrinkage=0.0)
    assert spanned.basis is not None
    assert spanned.basis.shape[1] < 30
    size = np.sqrt(np.mean(samples.mean(0) ** 2 + samples.var(0)))
    for target in (spanned, spanned.in_eigenbasis()):
        text = unchangeable_warnings((1.0, 0.0), 1.0, target, jk.VP(), 1e-3)[0]
        (found,) = re.findall(r"data of size ([\d.]+\d)", text)
        assert float(found) == pytest.approx(size, rel=0.02)


def test_steps_that_cancel_a_part_leave_a_share_of_all() -> None:
    """Also of an error smaller than what exact steps would leave."""
    target = jk.Gaussian(0.0, [1.0, 0.1])
    for total, share in ((3.5, "100%"), (4.0, "100%"), (4.0 / 0.95, "95%")):
        (text,) = unchangeable_warnings((3.0, 1.0), total, target, jk.VP(), 1e-3)
        assert text.startswith(f"{share} of the error")
    assert unchangeable_warnings((3.0, 1.0), 40.0, target, jk.VP(), 1e-3) == ()
