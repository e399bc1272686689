"""Optimal schedules against closed forms, an independent optimiser and their own promises."""

import functools
import itertools
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from jaxtyping import Array
from published_samplers import SAMPLERS
from scipy.integrate import quad
from scipy.optimize import minimize
from sklearn.datasets import load_digits

import jaxkernels as jk
from jaxkernels._objective import AbstractCoordinateObjective
from jaxkernels._plot import Line
from jaxkernels.errors import violations
from jaxkernels.errors._window_sum import AbstractWindowSum
from jaxkernels.optimize import ScheduleProblem, make_problem, solve
from jaxkernels.optimize._problem import as_objective
from jaxkernels.optimize._space import AbstractProblem, TimesProblem, time_coordinate
from jaxkernels.processes import from_config
from jaxkernels.schedules import CoordinateProcess, TimeCoordinate

SPECTRUM = np.geomspace(1e-3, 4.0, 7)


def gaussian(mean: float = 0.3) -> jk.Gaussian:
    return jk.Gaussian(mean, SPECTRUM)


@pytest.mark.parametrize("num_steps", [5, 8])
def test_isotropic_optimum_has_equal_angles(num_steps: int):
    """Euler in sigma for the variance c^2: an optimum in closed form.

    With th = atan(sigma/c) the factor of a step is cos(th) cos(th - th') / cos(th').
    So the product of factors is largest for equal angles, with sampled std / c = cos(Theta/K)^K.
    """
    c = 0.5
    top = 80.0
    low = 0.002
    result = jk.optimize_schedule(
        jk.Gaussian(0.0, [c**2]),
        jk.EDM(top),
        "ddim",
        num_steps,
        t_min=low,
        objective=jk.TerminalError(metric="kl", initialization="marginal"),
    )
    angles = np.linspace(np.arctan(top / c), np.arctan(low / c), num_steps + 1)
    # the sampled distribution is compared with the data, whose std at t_min is larger by
    # 1 / cos(atan(low / c))
    ratio = np.cos((angles[0] - angles[-1]) / num_steps) ** num_steps / np.cos(angles[-1])
    assert result.converged
    np.testing.assert_allclose(result.schedule.times[1:-1], c * np.tan(angles[1:-1]), rtol=1e-6)
    np.testing.assert_allclose(result.evaluation.variance, (c * ratio) ** 2, rtol=1e-10)
    assert not result.trusted  # what the terminal objective promises need not hold on a network


def ddim_local_objective(log_sigmas: np.ndarray, top: float, low: float) -> float:
    """Independent: sum over modes, steps of (factor sqrt(S) - sqrt(S'))^2 S_K / S', sigma = t."""
    sigma = np.concatenate([[top], np.exp(log_sigmas), [low]])
    total = 0.0
    for variance in SPECTRUM:
        s = variance + sigma**2
        factor = (variance + sigma[1:] * sigma[:-1]) / s[:-1]
        total += np.sum((factor * np.sqrt(s[:-1]) - np.sqrt(s[1:])) ** 2 * s[-1] / s[1:])
    return float(total)


def test_local_optimum_agrees_with_scipy_on_an_independent_objective():
    top = 20.0
    low = 0.01
    steps = 6
    start = np.log(np.geomspace(top, low, steps + 1)[1:-1])
    reference = minimize(
        ddim_local_objective, start, (top, low), method="BFGS", options={"gtol": 1e-9}
    )
    objective = jk.LocalError(initialization="marginal", variance_factor=1.0)
    result = jk.optimize_schedule(
        gaussian(0.0), jk.EDM(top), "ddim", steps, t_min=low, objective=objective
    )
    truncation = np.sum((np.sqrt(SPECTRUM + low**2) - np.sqrt(SPECTRUM)) ** 2)
    np.testing.assert_allclose(result.objective, reference.fun + truncation, rtol=1e-9)
    np.testing.assert_allclose(np.log(result.schedule.times[1:-1]), reference.x, atol=1e-4)


SLOW_SAMPLERS = (
    "unipc",
    "lms",
    "rk4",
    "euler_maruyama",
    "exponential_integrator",
    "dpmpp_3m",
    "deis",
    "ipndm",
    "dpmpp_2s",
    "dpm_2",
    "midpoint",
    "edm_sampler",
)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *(
            pytest.param(name, None, marks=[pytest.mark.slow] if name in SLOW_SAMPLERS else [])
            for name in SAMPLERS
        ),
        ("ddim", jk.ScoreError.relative(0.1, jk.OrnsteinUhlenbeck(2.0))),
    ],
)
def test_second_derivatives_from_windows_equal_those_of_the_whole(
    name: str, error: jk.ScoreError | None
):
    """The windowed Hessian relies on which times a step depends on; the whole's does not."""
    process = jk.VP()
    bound = jk.LocalError(score_error=error).bind(gaussian(), process, SAMPLERS[name]())
    schedule = jk.schedules.log_snr(process, 5, 1e-2)
    coordinate = TimeCoordinate(process, process.t_max, np.zeros(()), np.asarray(np.inf))
    u = coordinate.coordinate(schedule.times)
    windows = bound.in_coordinate(coordinate, 1e-2)
    padded = jnp.pad(u, (0, 3), mode="edge") if windows.padded else u

    def whole(interior: jax.Array) -> jax.Array:
        ends = schedule.times[:1], schedule.times[-1:]
        return bound(jk.Schedule(jnp.concatenate([ends[0], coordinate.time(interior), ends[1]])))

    # differences to fourth order of gradients: the Hessian of the whole compiles for long
    interior = np.asarray(u[1:-1])
    gradients = jax.jit(jax.value_and_grad(whole))
    expected = gradients(interior)
    width = 1e-3
    moves = width * np.eye(4)
    a, b, c, d = ([gradients(interior + n * move)[1] for move in moves] for n in (1, -1, 2, -2))
    hessian = (8.0 * np.subtract(a, b) - np.subtract(c, d)) / (12.0 * width)
    found = eqx.filter_jit(lambda w, u: w.derivatives(u, jnp.asarray(5)))(windows, padded)
    value, slope, curvature = found
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(
        slope[1:5], expected[1], rtol=1e-8, atol=1e-9 * np.abs(expected[1]).max()
    )
    np.testing.assert_allclose(curvature[1:5, 1:5], hessian, atol=1e-8 * np.abs(hessian).max())
    # neither the ends nor the padding move
    fixed = np.ones(len(padded), bool)
    fixed[1:5] = False
    assert not np.any(np.asarray(slope)[fixed])
    assert not np.any(np.asarray(curvature)[fixed])
    assert not np.any(np.asarray(curvature)[:, fixed])


ENDS = [
    (jk.VP(), 1e-3),
    (jk.EDM(), 0.0),
    (jk.FlowMatching(), 1e-3),
    (jk.FlowMatching(), 0.0),
    (jk.CosineVP(), 1e-3),
]


@eqx.filter_jit
def windows_value(windows: AbstractCoordinateObjective, u: Array, num_steps: Array) -> Array:
    return windows.value(u, num_steps)


@eqx.filter_jit
def whole_value(bound: Callable[[jk.Schedule], Array], schedule: jk.Schedule) -> Array:
    return bound(schedule)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unipc", "dpmpp_3m", "lms", "deis", "dpmpp_2s", "dpm_2"])
def test_optima_of_samplers_beat_all_baselines(name: str):
    """All from one step function: baselines, local errors, derivatives, optimum."""
    process = jk.EDM(20.0)
    result = jk.optimize_schedule(gaussian(), process, name, 5, t_min=0.02)
    assert result.converged
    assert result.objective < 0.97 * min(result.baselines.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m"])
def test_noise_of_multistep_samplers_is_optimised(name: str):
    """Never worse than the optimum without noise, which is among its candidates."""
    error = jk.ScoreError.relative(0.3, jk.Independent())
    objective = jk.LocalError(score_error=error)
    run = (gaussian(), jk.EDM(20.0), name, 4)
    found = jk.optimize_schedule(*run, t_min=0.02, stochasticity="optimize", objective=objective)
    quiet = jk.optimize_schedule(*run, t_min=0.02, objective=objective)
    assert found.objective <= quiet.objective * (1.0 + 1e-6)


def test_starts_keep_their_order():
    run = (gaussian(), jk.VP(), "ddim", 5)
    result = jk.optimize_schedule(*run, t_min=0.05, starts=["karras", "uniform"])
    assert result.starts == ("karras", "uniform")


def test_a_start_may_be_a_schedule_that_is_no_baseline():
    run = (gaussian(), jk.VP(), "ddim", 5)
    named = jk.optimize_schedule(*run, t_min=0.05, starts=["beta"])
    given = jk.optimize_schedule(
        *run, t_min=0.05, starts={"beta": jk.schedules.beta(jk.VP(), 5, 0.05)}
    )
    assert named.starts == given.starts == ("beta",)
    assert set(named.baselines) == set(given.baselines) == {*jk.schedules.BASELINES, "beta"}
    assert named.objective == given.objective


@pytest.mark.slow
def test_many_steps_converge_in_few_iterations():
    """Nearly flat directions, of which there are many then, are crossed in few steps."""
    result = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 250, t_min=1e-3)
    assert result.converged
    assert result.solution.smallest_curvature > 0
    assert len(result.solution.history) <= 60
    assert result.objective < min(result.baselines.values())


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize(
    ("process", "t_min"), ENDS, ids=[f"{type(p).__name__}-{t:g}" for p, t in ENDS]
)
def test_the_sum_over_windows_is_the_objective(
    process: jk.AbstractProcess, t_min: float, name: str
):
    """Also where sigma is 0 or infinite, in the process of the coordinate, and padded."""
    target = gaussian()
    bound = jk.LocalError().bind(target, process, SAMPLERS[name]())
    coordinate = time_coordinate(process, np.asarray(target.eigenvalues), t_min)
    windows = bound.in_coordinate(coordinate, t_min)
    assert isinstance(windows, AbstractWindowSum)
    for make in (jk.schedules.uniform, jk.schedules.cosine):
        schedule = make(process, 5, t_min)
        expected = whole_value(bound, schedule)
        u = coordinate.coordinate(schedule.times)
        for extra in (0, 3):
            padded = jnp.pad(u, (0, extra), mode="edge")
            found = windows_value(windows, padded, jnp.asarray(5))
            np.testing.assert_allclose(found, expected, rtol=1e-10)


@eqx.filter_jit
def derivatives_along(
    bound: Callable[[jk.Schedule], Array],
    ends: Array,
    points: Array,
    direction: Array,
    every_mode: bool,
) -> tuple[Array, Array, Array, list[Array], list[Array]]:
    """Values and gradients at points; at the first, along a direction, all other derivatives.

    Those are the slope by the forward mode, and the product of the Hessian and the direction by
    forward over reverse; with every mode by the other pairs too but forward over forward, which
    gives the curvature along it alone.
    """

    def value(x: Array) -> Array:
        interior, squared = jnp.split(x, [3])
        times = jnp.concatenate([ends[:1], interior, ends[1:]])
        return bound(jk.Schedule.from_squared(times, squared))

    def slope(x: Array) -> Array:
        return jax.jvp(value, (x,), (direction,))[1]

    values, gradients = jax.vmap(jax.value_and_grad(value))(points)
    x = points[0]
    products = [jax.jvp(jax.grad(value), (x,), (direction,))[1]]
    curvatures = []
    if every_mode:
        products.append(jax.grad(slope)(x))
        products.append(jax.grad(lambda x: jnp.vdot(jax.grad(value)(x), direction))(x))
        curvatures.append(jax.jvp(slope, (x,), (direction,))[1])
    return values, gradients, slope(x), products, curvatures


@pytest.mark.parametrize(
    "objective", [jk.LocalError(variance_factor=1.0), jk.TerminalError()], ids=["local", "terminal"]
)
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("degenerate", [False, True])
def test_objectives_have_two_correct_derivatives(
    objective: jk.LocalError | jk.TerminalError, name: str, degenerate: bool
):
    """At random points, with repeated and zero eigenvalues, a last level 0, no stochasticity."""
    spectrum = np.repeat([0.0, 1.0], [3, 4]) if degenerate else SPECTRUM
    bound = objective.bind(jk.Gaussian(0.2, spectrum), jk.EDM(10.0), SAMPLERS[name]())
    free = np.repeat([1.0, float(SAMPLERS[name].stochastic)], [3, 4])
    x = np.array([4.0, 1.3, 0.4, 0.3, 1.0, 0.5, 2.0])
    direction = np.random.default_rng(0).normal(size=7) * free
    width = 1e-4
    points = [x, x + 0.5 * width * direction, x - 0.5 * width * direction, x * (np.arange(7) < 3)]
    ends = np.array([10.0, 0.0 if degenerate else 0.05])
    # which mode is first is a matter of the primitives, which are those of all samplers
    values, gradients, slope, products, curvatures = derivatives_along(
        bound,
        *(jnp.asarray(a) for a in (ends, np.stack(points) * free, direction)),
        every_mode=name == "ddim",
    )
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5)
    close(slope, (values[1] - values[2]) / width)
    close(gradients[0] @ direction, slope)
    expected = (gradients[1] - gradients[2]) / width
    for product in products:
        close(product * free, expected * free)
    for curvature in curvatures:
        close(curvature, expected @ direction)
    assert np.all(np.isfinite(gradients))


def test_the_objective_is_an_average_over_variances():
    """Independent formula of the objective, averaged over five variances of every mode."""
    top = 20.0
    low = 0.02
    steps = 4
    target = gaussian(0.0)

    def optimise(variance_factor: float) -> jk.OptimizedSchedule:
        objective = jk.LocalError(initialization="marginal", variance_factor=variance_factor)
        return jk.optimize_schedule(
            target, jk.EDM(top), "ddim", steps, t_min=low, objective=objective
        )

    result = optimise(2.0)
    inner = np.log(np.asarray(result.schedule.times)[1:-1])
    scaled = [
        ddim_local_objective(inner - 0.5 * np.log(f), top / np.sqrt(f), low / np.sqrt(f)) * f
        for f in 2.0 ** np.linspace(-1.0, 1.0, 5)
    ]
    plain = optimise(1.0)
    ends = plain.objective - ddim_local_objective(
        np.log(np.asarray(plain.schedule.times)[1:-1]), top, low
    )
    assert ends < 1e-3 * plain.objective  # stopping at t_min, the part that the formula leaves out
    assert result.objective == pytest.approx(np.mean(scaled), rel=3e-3)
    assert not np.allclose(plain.schedule.times, result.schedule.times, rtol=1e-3)


@pytest.mark.parametrize("num_steps", [5, 10])
def test_all_starts_reach_one_optimum(num_steps: int):
    result = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", num_steps, t_min=1e-3)
    values = np.array(list(result.optima.values()))
    assert result.converged
    assert result.num_local_optima == 1
    assert np.ptp(values) <= 1e-6 * values.min()
    assert result.smallest_curvature > 0
    assert set(result.optima) == set(jk.schedules.BASELINES)
    assert all(value >= result.objective * (1 - 1e-12) for value in result.baselines.values())
    # the history falls, start by start
    assert np.all(np.diff(result.history, axis=0) <= 1e-11 * result.history[:-1])


def test_optimum_is_the_same_in_every_time():
    """DDIM sees time only through a and s: VE, EDM and a rescaled start give the same levels."""
    kwargs: dict[str, Any] = {"objective": jk.LocalError(initialization="marginal")}
    edm = jk.optimize_schedule(gaussian(), jk.EDM(10.0), "ddim", 6, t_min=0.02, **kwargs)
    ve = jk.VE(rate=2.0, t_max=50.0)
    same = jk.optimize_schedule(gaussian(), ve, "ddim", 6, t_min=0.02**2 / 2, **kwargs)
    vp = jk.OU(rate=2.0, t_max=float(np.log1p(100.0) / 2))
    low = float(np.log1p(0.02**2) / 2)
    preserving = jk.optimize_schedule(gaussian(), vp, "ddim", 6, t_min=low, **kwargs)
    np.testing.assert_allclose(same.schedule.sigmas(ve), edm.schedule.times, rtol=1e-6)
    np.testing.assert_allclose(same.objective, edm.objective, rtol=1e-10)
    # a preserving process ends at a(t_min) < 1, which scales the end by a known factor only
    np.testing.assert_allclose(preserving.schedule.sigmas(vp), edm.schedule.times, rtol=1e-3)


def test_compression_keeps_the_optimum():
    rng = np.random.default_rng(0)
    eigenvalues = np.exp(rng.normal(size=300) * 2 - 3)
    target = jk.Gaussian(rng.normal(size=300) * np.sqrt(eigenvalues), eigenvalues)
    everything = jk.LocalError(compress=False)
    full = jk.optimize_schedule(target, jk.VP(), "ddim", 6, t_min=1e-3, objective=everything)
    small = jk.optimize_schedule(target, jk.VP(), "ddim", 6, t_min=1e-3)
    assert full.compression is None
    assert small.compression is not None
    assert small.compression.nodes == 32
    assert small.compression_error < 1e-9
    np.testing.assert_allclose(small.objective, full.objective, rtol=1e-9)
    np.testing.assert_allclose(small.schedule.times, full.schedule.times, atol=1e-6)


@pytest.mark.parametrize("free", ["times", pytest.param("times and noise", marks=pytest.mark.slow)])
def test_interior_times_stay_within_a_table(free: str):
    """SciPy with bounds on the times finds the same optimum, which lies at the smallest entry."""
    levels = np.array([0.6, 0.9, 1.5, 3.0, 8.0])
    process = jk.DiscreteVP(1.0 / (1.0 + levels**2))
    target = gaussian(0.0)
    noise: Any = 0.0 if free == "times" else "optimize"
    result = jk.optimize_schedule(target, process, "ddim", 4, t_min=0.0, stochasticity=noise)
    times = np.asarray(result.schedule.times)
    assert result.converged
    assert times[-1] == 0.0
    assert 1.0 <= times[-2] < 1.0 + 1e-6
    for schedule in result.baseline_schedules.values():
        assert float(schedule.times[-2]) >= 1.0 - 1e-9
    if free != "times":
        return
    bound = eqx.filter_jit(jk.LocalError().bind(target.in_eigenbasis(), process, jk.DDIM()))

    def value(interior: np.ndarray) -> float:
        ordered = np.sort(interior)[::-1]
        return float(bound(jk.Schedule(np.concatenate([[5.0], ordered, [0.0]]))))

    start = np.array([4.0, 2.5, 1.2])
    box = [(1.0, 4.999)] * 3
    found = minimize(value, start, method="Nelder-Mead", bounds=box, options={"xatol": 1e-7})
    assert result.objective == pytest.approx(found.fun, rel=1e-6)
    np.testing.assert_allclose(times[1:-1], found.x, atol=1e-3)


def test_a_start_below_the_table_is_refused():
    process = jk.DiscreteVP.scaled_linear()
    with pytest.raises(
        ValueError, match=r"starts\['mine'\] has t = 0.5 before .* down to t = 1 only"
    ):
        jk.optimize_schedule(
            gaussian(),
            process,
            "ddim",
            2,
            t_min=0.0,
            starts={"mine": jk.Schedule([1000.0, 0.5, 0.0])},
        )


def test_end_time_is_optimised_within_its_bounds():
    """The optimised end must be the better one of a scan over fixed ends."""
    target = jk.Gaussian(0.0, [1.0, 0.05])
    process = jk.EDM(10.0)
    ranged = jk.optimize_schedule(target, process, "ddim", 4, t_min=(0.01, 2.0))
    fixed = [
        jk.optimize_schedule(target, process, "ddim", 4, t_min=float(t)).objective
        for t in np.geomspace(0.01, 2.0, 7)
    ]
    assert 0.01 <= float(ranged.schedule.times[-1]) <= 2.0
    assert ranged.objective <= min(fixed) * (1 + 1e-9)


def test_optimised_stochasticity_is_never_worse_than_the_ode():
    ode = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 5, t_min=1e-3)
    free = jk.optimize_schedule(
        gaussian(), jk.VP(), "ddim", 5, t_min=1e-3, stochasticity="optimize"
    )
    assert free.objective <= ode.objective * (1 + 1e-9)
    assert "log_snr with stochasticity 1" in free.baselines
    assert free.schedule.stochasticity.shape == (5,)


def test_noise_pays_when_sampling_starts_from_the_wrong_distribution():
    """A start far from p_T is forgotten only with noise: the optimum must use some."""
    target = jk.Gaussian(0.0, np.full(3, 4.0))
    process = jk.EDM(3.0)
    free = jk.optimize_schedule(target, process, "ddim", 8, t_min=0.05, stochasticity="optimize")
    ode = jk.optimize_schedule(target, process, "ddim", 8, t_min=0.05)
    assert np.max(free.schedule.stochasticity) > 0.1
    assert free.objective < 0.9 * ode.objective
    assert free.evaluation.w2_squared < ode.evaluation.w2_squared


def test_infinite_noise_at_the_start_and_none_at_the_end():
    for process in (jk.FlowMatching(), jk.CosineVP()):
        result = jk.optimize_schedule(gaussian(), process, "dpmpp_2m", 5, t_min=0.0)
        assert result.converged
        assert result.objective < 0.9 * min(result.baselines.values())
        assert float(result.schedule.times[-1]) == 0.0


def test_a_user_defined_metric_and_objective():
    target = gaussian()
    process = jk.VP()

    def fourth_root(mean_error: jax.Array, variance: jax.Array, reference: jax.Array) -> jax.Array:
        return jk.metrics.w2_squared(mean_error, variance, reference)

    named = jk.optimize_schedule(target, process, "ddim", 4, t_min=1e-2)
    objective = jk.LocalError(metric=fourth_root)
    own = jk.optimize_schedule(target, process, "ddim", 4, t_min=1e-2, objective=objective)
    np.testing.assert_allclose(own.schedule.times, named.schedule.times, rtol=1e-6)

    def longest(schedule: jk.Schedule) -> jax.Array:
        """Sum of squared steps in time, smallest for equal ones."""
        return jnp.sum(jnp.diff(schedule.times) ** 2)

    equal = jk.optimize_schedule(target, process, "ddim", 4, t_min=1e-2, objective=longest)
    np.testing.assert_allclose(equal.schedule.times, np.linspace(1.0, 1e-2, 5), rtol=1e-6)


class CountingDDIM(jk.AbstractSampler):
    """DDIM at stochasticity 0 that counts how often its step is traced."""

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    traces: ClassVar[list[int]] = []

    def step(self, predict, noise, process, step, x, history):
        self.traces.append(1)
        p = predict(x, step.time)
        u = step.next_time
        return process.signal(u) * p.x0 + process.noise(u) * p.eps, history


def test_a_user_sampler_optimises_and_numbers_do_not_retrace():
    expected = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 4, t_min=1e-2)
    result = jk.optimize_schedule(gaussian(), jk.VP(), CountingDDIM(), 4, t_min=1e-2)
    np.testing.assert_allclose(result.objective, expected.objective, rtol=1e-10)
    traced = len(CountingDDIM.traces)
    jk.optimize_schedule(
        gaussian(0.7),
        jk.VP(0.2, 12.0),
        CountingDDIM(),
        4,
        t_min=3e-2,
        solver=jk.Newton(tolerance=1e-6),
    )
    assert len(CountingDDIM.traces) == traced


class RenamedDDIM(jk.DDIM):
    """Another type, for which no program is compiled yet."""


def test_one_program_of_the_solver_serves_all_steps_and_processes(caplog: pytest.LogCaptureFixture):
    def compiled(process: jk.AbstractProcess, num_steps: int) -> int:
        caplog.clear()
        jk.optimize_schedule(gaussian(), process, RenamedDDIM(), num_steps, t_min=1e-2)
        messages = [record.getMessage() for record in caplog.records]
        return sum(m.startswith("Compiling") and "newton_advance" in m for m in messages)

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        assert compiled(jk.VP(), 3) == 1
        for process, num_steps in ((jk.VP(), 16), (jk.EDM(10.0), 9), (jk.EDM(20.0), 5)):
            assert compiled(process, num_steps) == 0


def test_a_step_too_long_is_not_trusted():
    target = jk.Gaussian(0.0, np.array([1e-4]))
    process = jk.OU(t_max=2.0)
    result = jk.optimize_schedule(
        target, process, "euler_maruyama", 1, t_min=0.01, stochasticity=1.0
    )
    assert not result.trusted
    assert "flips the sign" in result.warnings[0]


def test_too_much_noise_is_not_trusted():
    result = jk.optimize_schedule(
        gaussian(), jk.VP(), "exponential_integrator", 3, t_min=1e-2, stochasticity=8.0
    )
    assert not result.trusted
    assert any("injects noise" in text for text in result.warnings)


def test_modes_that_fill_up_a_spectrum_inject_no_noise():
    """They have variance 1, of which a long step of Tweedie's sampler injects nearly all."""
    target = jk.Gaussian(0.0, [1e-9]).in_eigenbasis()
    schedule = jk.Schedule([2.0, 0.01], 1.0)
    assert not violations(target, jk.OU(t_max=2.0), jk.samplers.as_sampler("tweedie"), schedule)


def test_heavy_tails_are_reported():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4000, 4)) * np.exp(1.5 * rng.normal(size=(4000, 1)))
    result = jk.optimize_schedule(jk.Gaussian.fit(samples), jk.VP(), "ddim", 3, t_min=1e-2)
    assert any("kurtosis" in text for text in result.warnings)
    assert not result.verified


def test_stopping_early_is_said():
    solver = jk.Newton(max_iterations=2)
    result = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 5, t_min=1e-3, solver=solver)
    assert not result.converged
    assert "2 iterations were used up" in result.reason
    assert result.objective <= min(result.baselines.values())
    assert "not converged" in repr(result)


DOMINATED = {
    "data of 0..255": (jk.Gaussian(127.0, 5000.0 * SPECTRUM), jk.VP(), 1e-3, "initial noise"),
    "sigma_max = 1": (gaussian(0.0), jk.EDM(1.0), 0.002, "initial noise"),
    "half a range": (gaussian(0.0), jk.OU(t_max=1.0), 1e-3, "initial noise"),
    "stops early": (gaussian(0.0), jk.EDM(), 0.5, "stops at t_min = 0.5"),
    "tiny data": (jk.Gaussian(0.0, 1e-6 * SPECTRUM), jk.EDM(), 0.002, "stops at t_min = 0.002"),
}


@pytest.mark.parametrize("name", DOMINATED)
def test_ratios_are_of_what_the_steps_cause(name: str):
    """What no schedule can change is the objective of very many steps; it is warned of."""
    target, process, t_min, reason = DOMINATED[name]
    result = jk.optimize_schedule(target, process, "ddim", 8, t_min=t_min)
    fixed = sum(result.unchangeable.values())
    bound = eqx.filter_jit(jk.LocalError().bind(target.in_eigenbasis(), process, jk.DDIM()))
    assert fixed > 0.9 * result.objective
    # the local errors of a method of first order: K squared ones of size 1 / K^2, times K
    many = [float(bound(jk.schedules.log_snr(process, k, t_min))) - fixed for k in (400, 800)]
    assert 0 < many[1] < many[0] < 0.05 * (result.baselines["log_snr"] - fixed)
    for baseline, ratio in result.ratios.items():
        expected = (result.baselines[baseline] - fixed) / (result.objective - fixed)
        assert ratio == pytest.approx(expected, rel=1e-6)
    assert max(result.ratios.values()) > 1.2
    (warning,) = result.warnings
    assert reason in warning
    assert ("are the units right?" in warning) == ("data" in name)
    assert "what no schedule can change" in repr(result)


@pytest.mark.parametrize("name", ["data of 0..255", "stops early"])
def test_ratios_of_the_terminal_error_are_of_what_the_steps_cause(name: str):
    """What exact steps leave, in NumPy; where the optimum is below it, ratios are of totals."""
    target, process, t_min, _ = DOMINATED[name]
    setting: Any = {"t_min": t_min, "starts": ["log_snr"], "objective": jk.TerminalError()}
    result = jk.optimize_schedule(target, process, "ddim", 8, **setting)
    ends = jnp.array([float(process.t_max), t_min])
    a = np.asarray(process.signal(ends))[:, None]
    exact = a**2 * np.asarray(target.eigenvalues) + np.asarray(process.noise(ends))[:, None] ** 2
    contraction = np.sqrt(exact[1] / exact[0])
    start = float(process.prior_variance(ends[0])) - exact[0]
    variance = exact[1] + contraction**2 * start
    shift = (a[1] - 1.0 - contraction * a[0]) * np.asarray(target.mean)
    left = np.sum(shift**2 + (np.sqrt(variance) - np.sqrt(target.eigenvalues)) ** 2)
    best = min(result.objective, *result.baselines.values())
    fixed = left if left < best else 0.0
    assert sum(result.unchangeable.values()) == pytest.approx(fixed, rel=1e-9)
    ratio = (result.baselines["log_snr"] - fixed) / (result.objective - fixed)
    assert result.ratios["log_snr"] == pytest.approx(ratio, rel=1e-6)
    assert any("exact steps would leave" in text for text in result.warnings) == (left >= best)


def test_a_usual_error_is_not_warned_of():
    """Nothing is unchangeable in what a record measures, nor in a start from noised data."""
    for process in (jk.VP(), jk.OU().sub_range(1.0), jk.EDM()):
        result = jk.optimize_schedule(gaussian(0.0), process, "ddim", 8)
        assert result.warnings == ()
        assert (result.unchangeable["initialization"] == 0) == (process.full_t_max is not None)
    free = jk.optimize_schedule(
        gaussian(0.0), jk.OU(t_max=1.0), "ddim", 4, t_min=1e-3, stochasticity="optimize"
    )
    assert free.unchangeable["initialization"] == 0.0


SUB_RANGES = {
    "vp": (jk.VP(t_max=0.7), 1e-3),
    "ou": (jk.OU().sub_range(1.0), 1e-3),
    "ve": (jk.VE().sub_range(4.5), 1e-3),
    "edm": (jk.EDM(t_max=3.0), 0.002),
    "cosine": (jk.CosineVP(t_max=0.7), 1e-3),
    "flow": (jk.FlowMatching(t_max=0.875), 1e-3),
    "table": (jk.DiscreteVP.scaled_linear().sub_range(700.0), 0.0),
}


@pytest.mark.parametrize("name", SUB_RANGES)
def test_a_sub_range_starts_from_noised_data(name: str, tmp_path: Path):
    """As with the exact marginal, which has no error of initialization; the file keeps it."""
    process, t_min = SUB_RANGES[name]
    result = jk.optimize_schedule(gaussian(), process, "ddim", 4, t_min=t_min)
    exact = jk.optimize_schedule(
        gaussian(),
        process,
        "ddim",
        4,
        t_min=t_min,
        objective=jk.LocalError(initialization="marginal"),
    )
    assert result.objective == exact.objective
    assert float(result.schedule.times[0]) == float(process.t_max)
    assert result.evaluation.error_budget.initialization == pytest.approx(0.0, abs=1e-12)
    run = (gaussian(), process, "ddim", result.schedule)
    marginal = jk.evaluate_schedule(*run, initialization="marginal")
    assert jk.evaluate_schedule(*run).w2 == marginal.w2 == result.evaluation.w2
    result.save(tmp_path / "schedule.json")
    metadata = json.loads((tmp_path / "schedule.json").read_text())["metadata"]
    assert metadata["initialization"] == "marginal"
    assert from_config(metadata["process"]).initialization == "marginal"


@pytest.mark.parametrize("name", ["ddim", pytest.param("heun", marks=pytest.mark.slow)])
def test_one_step_has_nothing_to_optimise(name: str):
    result = jk.optimize_schedule(gaussian(), jk.VP(), name, 1, t_min=1e-2)
    assert result.converged
    np.testing.assert_allclose(result.schedule.times, [1.0, 1e-2])


def test_single_precision_callers_get_the_same_schedule():
    expected = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 5, t_min=1e-3)
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        result = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 5, t_min=1e-3)
        assert result.schedule.times.dtype == jnp.float32
    np.testing.assert_allclose(result.schedule.times, expected.schedule.times, rtol=1e-6)
    np.testing.assert_allclose(result.objective, expected.objective, rtol=1e-12)


BAD = [
    ({"num_steps": 0}, "num_steps = 0"),
    ({"num_steps": -3}, "num_steps = -3"),
    ({"t_min": -0.1}, "t_min = -0.1"),
    ({"t_min": 1.0}, "t_min = 1 "),
    ({"t_min": float("nan")}, "t_min = nan"),
    ({"t_min": (0.2, 0.1)}, "t_min"),
    ({"sampler": "ddmi"}, "Did you mean 'ddim'"),
    ({"starts": ["karas"]}, "Did you mean 'karras'"),
    ({"starts": []}, "starts"),
    ({"stochasticity": [0.0, 1.0]}, r"stochasticity has shape \(2,\)"),
    ({"stochasticity": -1.0}, "stochasticity must be >= 0"),
    ({"stochasticity": "optimise"}, "Did you mean 'optimize'"),
    ({"sampler": "heun", "stochasticity": "optimize"}, "Heun, which is deterministic"),
    ({"sampler": "heun", "stochasticity": 0.5}, "Heun, which is deterministic"),
    (
        {"target": jk.Gaussian(0.0, [1.0, 0.0]), "objective": jk.LocalError(metric="kl")},
        "positive eigenvalues",
    ),
    (
        {"sampler": "exponential_integrator", "process": jk.FlowMatching()},
        r"the objective is nan at its best start.*sigma\(t_max\) is finite",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_names_the_argument(change: dict, message: str):
    arguments = {
        "target": gaussian(),
        "process": jk.VP(),
        "sampler": "ddim",
        "num_steps": 3,
        "t_min": 1e-2,
    }
    arguments |= change
    positional = [arguments.pop(name) for name in ("target", "process", "sampler", "num_steps")]
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(*positional, **arguments)


BAD_OPTIONS = [
    (jk.LocalError, {"metric": "w2_square"}, "Did you mean 'w2_squared'"),
    (jk.TerminalError, {"metric": "w2_square"}, "Did you mean 'w2_squared'"),
    (jk.LocalError, {"initialization": "normal"}, "initialization='normal'"),
    (jk.TerminalError, {"initialization": "normal"}, "initialization='normal'"),
    (jk.LocalError, {"compress": 0}, "compress = 0"),
    (jk.TerminalError, {"compress": 0}, "compress = 0"),
    (jk.LocalError, {"variance_factor": 0.5}, "variance_factor = 0.5"),
    (jk.Newton, {"max_iterations": 0}, "max_iterations = 0"),
    (jk.Newton, {"tolerance": -1.0}, "tolerance = -1"),
    (jk.Optax, {"transformation": optax.adam(0.1), "steps": 0}, "steps = 0"),
    (jk.Optax, {"transformation": optax.adam(0.1), "tolerance": -1.0}, "tolerance = -1"),
]


@pytest.mark.parametrize(("make", "options", "message"), BAD_OPTIONS)
def test_bad_options_name_the_option(make: Callable[..., Any], options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make(**options)


OTHER_TYPES = [
    ({"objective": "local"}, r"objective must be an objective such as .*; got 'local'"),
    ({"objective": jk.LocalError}, "objective must be an objective such as .*LocalError"),
    ({"solver": "newton"}, r"solver must be Newton\(\) or Optax\(\.\.\.\); got 'newton'"),
    ({"solver": optax.adam(0.1)}, "solver must be .*; got GradientTransformation"),
    ({"selection": "rms"}, "selection must be a Selection.*; got 'rms'"),
]


@pytest.mark.parametrize(("change", "message"), OTHER_TYPES)
def test_other_types_are_named(change: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    """What this suite's type checks would catch, and a user meets without them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 3, **change)


def test_other_types_of_options_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    wrong: Any = "adam"
    with pytest.raises(ValueError, match=r"transformation must be .*; got 'adam'"):
        jk.Optax(wrong)
    for make in (jk.LocalError, jk.TerminalError):
        with pytest.raises(ValueError, match="score_error must be a ScoreError; got str"):
            make(score_error=wrong)


def test_an_option_that_an_objective_does_not_have_is_refused():
    options: dict[str, Any] = {"variance_factor": 2.0}
    with pytest.raises(TypeError, match="variance_factor"):
        jk.TerminalError(**options)
    options = {"metric": "kl"}
    with pytest.raises(TypeError, match="metric"):
        jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 3, **options)


def test_starts_must_fit():
    schedule = jk.schedules.uniform(jk.VP(), 4, 1e-2)
    with pytest.raises(ValueError, match="has 4 steps; num_steps is 3"):
        jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 3, t_min=1e-2, starts={"mine": schedule})
    with pytest.raises(ValueError, match=r"starts\['mine'\] runs from"):
        jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 4, t_min=1e-3, starts={"mine": schedule})
    for name in (
        "optimised",
        "recorded, mean",
        "optimised and uniform",
        "mine with stochasticity 1",
        "karras",
    ):
        with pytest.raises(ValueError, match="has the name of another candidate"):
            jk.optimize_schedule(
                gaussian(), jk.VP(), "ddim", 4, t_min=1e-2, starts={name: schedule}
            )
    result = jk.optimize_schedule(
        gaussian(), jk.VP(), "ddim", 4, t_min=1e-2, starts={"mine": schedule}
    )
    assert list(result.optima) == ["mine"]
    assert "mine" in result.baselines


def test_the_noise_of_a_start_is_that_of_all_schedules():
    """It was dropped without a word: a deterministic schedule was started instead."""
    times = np.asarray(jk.schedules.uniform(jk.VP(), 4, 1e-2).times)
    run = (gaussian(), jk.VP(), "ddim", 4)
    noisy = {"mine": jk.Schedule(times, 1.0)}
    with pytest.raises(ValueError, match=r"starts\['mine'\] has stochasticity 1; .* = 0\."):
        jk.optimize_schedule(*run, t_min=1e-2, starts=noisy)
    mixed = {"mine": jk.Schedule(times, [0.0, 1.0, 1.0, 1.0])}
    with pytest.raises(ValueError, match=r"stochasticity 0 .. 1; .* = 0.5\."):
        jk.optimize_schedule(*run, t_min=1e-2, starts=mixed, stochasticity=0.5)
    with pytest.raises(ValueError, match=r"starts\['uniform'\] has stochasticity 1; .* = 0\."):
        jk.optimize_schedule(*run, t_min=1e-2, starts={"uniform": jk.Schedule(times, 1.0)})
    found = jk.optimize_schedule(*run, t_min=1e-2, starts=noisy, stochasticity=1.0)
    np.testing.assert_allclose(found.schedule.stochasticity, 1.0)
    assert found.starts == ("mine",)


@pytest.mark.parametrize("sampler", ["ddim", "exponential_integrator"])
def test_an_optimisation_of_noise_starts_at_the_noise_of_a_start(sampler: str):
    times = np.asarray(jk.schedules.uniform(jk.VP(), 4, 1e-2).times)
    own = jk.Schedule(times, [0.5, 0.3, 0.2, 0.1])
    objective = jk.TerminalError() if sampler != "ddim" else None
    run = (gaussian(), jk.VP(), sampler, 4)
    free: Any = {"t_min": 1e-2, "stochasticity": "optimize", "objective": objective}
    found = jk.optimize_schedule(*run, **free, starts={"mine": own})
    assert found.starts == ("mine",)
    assert "mine with stochasticity 1" not in found.baselines
    shown = found.baseline_schedules["mine"]
    np.testing.assert_allclose(shown.stochasticity, own.stochasticity, rtol=1e-6)
    assert found.objective <= found.baselines["mine"]
    with pytest.raises(ValueError, match="stochasticity 11; it must be at most 10"):
        jk.optimize_schedule(*run, **free, starts={"mine": jk.Schedule(times, 11.0)})
    with pytest.raises(ValueError, match=r"starts\['uniform'\] has stochasticity 1; the baseline"):
        jk.optimize_schedule(*run, **free, starts={"uniform": jk.Schedule(times, 1.0)})


# --- problems and solvers


def small_problem(
    target: jk.Gaussian, process: jk.AbstractProcess, num_steps: int, low: float, free: bool
) -> ScheduleProblem:
    """The problem of DDIM, with its stochasticity free or 0."""
    squared = None if free else np.zeros(num_steps)
    objective = as_objective(None)
    return make_problem(target, process, jk.DDIM(), num_steps, (low, low), objective, squared, None)


@pytest.mark.parametrize("padded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_derivatives_in_logits_of_step_lengths(padded: bool):
    """The closed form of softmax's bend and the pulled-back Hessian, by nested derivatives."""
    problem = small_problem(gaussian(), jk.VP(), 5, 1e-3, free=False).problem
    assert isinstance(problem, TimesProblem)
    z = np.array([0.3, -0.2, 0.5, -1.0])
    size = np.shape(problem.lower)[0]
    assert size > z.size
    if padded:
        z = np.pad(z, (0, size - z.size))

    @eqx.filter_jit
    def both(problem: TimesProblem, z: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        value = problem.value
        return problem.derivatives(z), (value(z), jax.grad(value)(z), jax.hessian(value)(z))

    found, expected = both(problem, jnp.asarray(z))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    for a, b in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * np.abs(b).max())
        assert not np.any(np.asarray(a)[4:])


TRANSFORMATIONS = {
    "adam": (optax.adam(optax.cosine_decay_schedule(0.1, 400)), 400),
    "lbfgs": (optax.lbfgs(), 300),
}


@pytest.mark.parametrize("name", ["adam", pytest.param("lbfgs", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "free",
    [
        pytest.param(False, id="times"),
        pytest.param(True, id="stochasticity", marks=pytest.mark.slow),
    ],
)
def test_optax_reaches_the_optimum_of_newton(name: str, free: bool):
    target = jk.Gaussian(0.0, [4.0, 1.0, 0.3])
    run = (target, jk.EDM(3.0), "ddim", 3)
    stochasticity = "optimize" if free else 0.0
    newton = jk.optimize_schedule(*run, t_min=0.05, stochasticity=stochasticity)
    solver = jk.Optax(*TRANSFORMATIONS[name])
    found = jk.optimize_schedule(*run, t_min=0.05, stochasticity=stochasticity, solver=solver)
    assert newton.converged
    assert (np.max(newton.schedule.stochasticity) > 0.1) == free
    np.testing.assert_allclose(found.objective, newton.objective, rtol=1e-4)
    # the best point so far is kept
    history = found.history
    assert np.all(np.diff(history, axis=0) <= 0)
    assert found.objective < min(found.baselines.values())


class Bowl(AbstractProblem):
    """log(1 + w.(z - c)^2), whose minimum in a box is the nearest point of the box to c."""

    lower: Array
    upper: Array
    c: Array
    w: Array

    def value(self, z: Array) -> Array:
        return jnp.log1p(jnp.sum(self.w * (z - self.c) ** 2))

    def derivatives(self, z: Array) -> tuple[Array, Array, Array]:
        return self.value(z), jax.grad(self.value)(z), jax.hessian(self.value)(z)


@pytest.mark.parametrize("name", [*TRANSFORMATIONS, "newton"])
def test_a_minimum_on_the_bounds_is_reached_from_every_corner(name: str):
    box = (jnp.array([-1.0, 0.0, 0.0, -20.0]), jnp.array([1.0, 4.0, 4.0, 20.0]))
    bowl = Bowl(*box, c=jnp.array([-3.0, 9.0, 1.5, 0.2]), w=jnp.array([0.1, 1.0, 10.0, 0.5]))
    solver = jk.Newton() if name == "newton" else jk.Optax(*TRANSFORMATIONS[name])
    solution = solve(bowl, np.stack([*np.asarray(box), np.zeros(4)]), solver)
    found = solution.z[solution.best]
    np.testing.assert_array_equal(found[:2], [-1.0, 4.0])
    np.testing.assert_allclose(found[2:], [1.5, 0.2], atol=1e-4)
    assert solution.converged == (name != "adam")


@pytest.mark.parametrize("solver", [jk.Newton(), jk.Optax(optax.adam(0.1), steps=20)])
def test_a_loop_by_hand_is_solve(solver: jk.Newton | jk.Optax):
    made = small_problem(jk.Gaussian(0.0, np.full(3, 4.0)), jk.EDM(3.0), 4, 0.05, free=False)
    problem = made.problem
    solution = solve(problem, made.vectors(), solver)
    state = solver.init(problem, made.vectors())
    while not solver.terminate(state):
        before = int(state.iteration)
        state = solver.step(problem, state)
        assert int(state.iteration) == before + 1
    np.testing.assert_allclose(state.z, solution.z, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.exp(state.value), solution.values, rtol=1e-12)
    assert int(state.iteration) == len(solution.history)


# --- steps that the optimum would merge


def _resolved(schedule: jk.Schedule, process: jk.AbstractProcess) -> bool:
    """Whether float32 tells apart the times, the levels, and log(alpha/sigma) as tools compute it.

    The last as the multistep schedulers of diffusers do, from sigma or from the level of a flow.
    """
    times = np.asarray(schedule.times, np.float32)
    sigmas = np.asarray(schedule.sigmas(process), np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = 1 / np.sqrt(sigmas**2 + 1)
        lambdas = [np.log(alpha) - np.log(sigmas * alpha)]
        if isinstance(process, jk.FlowMatching):
            lambdas.append(np.log(1 - times) - np.log(times))
    inner = sigmas[np.isfinite(sigmas) & (sigmas > 0)]
    return all(np.all(np.diff(v) < 0) for v in (times, inner)) and all(
        np.all(np.diff(v[np.isfinite(v)]) > 0) for v in lambdas
    )


@pytest.mark.parametrize(
    ("process", "t_min"),
    [
        (jk.VP(), 1e-3),
        (jk.DiscreteVP.scaled_linear(), 0.0),
        (jk.FlowMatching(), 0.0),
        pytest.param(jk.FlowMatching(0.999), 1e-3, marks=pytest.mark.slow),
        pytest.param(jk.CosineVP(), 0.0, marks=pytest.mark.slow),
        pytest.param(jk.EDM(2560.0), 0.0064, marks=pytest.mark.slow),
        pytest.param(jk.OU(5.0), 1e-3, marks=pytest.mark.slow),
        pytest.param(jk.VE(), 1e-3, marks=pytest.mark.slow),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("k", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_steps_that_an_objective_merges_are_told_apart(
    process: jk.AbstractProcess, t_min: float, k: int
):
    """Its infimum, 1, is at equal levels k and k + 1, between which a least length is left."""

    def objective(schedule: jk.Schedule) -> Array:
        sigmas = schedule.sigmas(process)
        return 1.0 + jnp.log(sigmas[k] / sigmas[k + 1])

    result = jk.optimize_schedule(
        gaussian(), process, "ddim", 4, t_min=t_min, objective=objective, starts=["cosine"]
    )
    assert _resolved(result.schedule, process)
    assert 1e-5 < result.objective - 1.0 < 2e-2


def test_an_optimum_with_merged_steps_costs_next_to_nothing():
    """Against a simplex search over all schedules whose levels 1 and 2 are equal to 1e-9."""
    process = jk.FlowMatching()
    sampler = "dpmpp_2m"
    target = jk.Gaussian(np.zeros(3), [1.0, 0.1, 0.01])
    result = jk.optimize_schedule(target, process, sampler, 4, t_min=1e-3)
    bound = eqx.filter_jit(jk.LocalError().bind(target, process, SAMPLERS[sampler]()))
    times = np.asarray(result.schedule.times)
    np.testing.assert_allclose(times[1], times[2], rtol=2e-3)

    def merged(free: np.ndarray) -> float:
        both = np.sort(free)[::-1]
        inner = np.insert(both, 1, both[0] - 1e-9)
        if np.any(np.diff([times[0], *inner, times[-1]]) >= 0):
            return np.inf
        return float(bound(jk.Schedule(np.concatenate([times[:1], inner, times[-1:]]))))

    start = times[[1, 3]]
    found = minimize(merged, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    assert result.objective < (1 + 1e-4) * found.fun
    assert _resolved(result.schedule, process)
    for tool in ("diffusers", "comfyui"):
        sigmas = jk.export(result.schedule, process, tool, sampler=sampler).values
        assert all(
            np.all(np.diff(np.asarray(v, np.float32)) < 0) for v in sigmas.values() if len(v) > 3
        )


# --- the process whose time is the coordinate


@pytest.mark.parametrize(
    ("process", "low", "high"),
    [
        (jk.VP(), 0.0, np.inf),
        (jk.EDM(), 0.02, np.inf),
        (jk.FlowMatching(), 0.0, 30.0),
        (jk.CosineVP(), 0.02, 30.0),
    ],
)
def test_the_process_of_a_coordinate(process: jk.AbstractProcess, low: float, high: float):
    """Its closed forms against automatic differentiation, quadrature and the coordinate."""
    coordinate = TimeCoordinate(process, process.t_max, np.asarray(low), np.asarray(high))
    canonical = CoordinateProcess.of(coordinate)
    times = np.linspace(0.05, 0.95, 6) * float(np.asarray(process.t_max))
    u = coordinate.coordinate(times)
    sigma = process.sigma(times)
    np.testing.assert_allclose(canonical.sigma(u), sigma, rtol=1e-12)
    np.testing.assert_allclose(canonical.noise(u) / canonical.signal(u), sigma, rtol=1e-12)
    np.testing.assert_allclose(canonical.time_at_sigma(sigma), u, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(canonical.prior_variance(u), canonical.noise(u) ** 2, rtol=1e-12)
    # f = (log a)' and g^2 = (s^2)' - 2 f s^2
    drift = jax.vmap(jax.grad(lambda u: jnp.log(canonical.signal(u))))(u)
    np.testing.assert_allclose(canonical.drift(u), drift, rtol=1e-12, atol=1e-14)
    slope = jax.vmap(jax.grad(lambda u: canonical.noise(u) ** 2))(u)
    diffusion = slope - 2.0 * drift * canonical.noise(u) ** 2
    np.testing.assert_allclose(canonical.diffusion_squared(u), diffusion, rtol=1e-10)
    # I = integral of a d(sigma^2)
    signal = jax.jit(lambda sigma: canonical.signal(canonical.time_at_sigma(sigma)) * 2.0 * sigma)
    expected = [quad(lambda s: float(signal(s)), 0.0, float(v), epsrel=1e-10)[0] for v in sigma]
    np.testing.assert_allclose(canonical.integrated_signal(u), expected, rtol=1e-7)


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 1.9, 13.0])
def test_sigma_is_exactly_zero_and_infinite_in_a_coordinate(scale: float):
    """Rounding must not turn them into levels that a multistep sampler extrapolates from."""
    process = jk.FlowMatching()
    low = np.asarray(0.1 * scale)
    coordinate = TimeCoordinate(process, process.t_max, low, np.asarray(10.0 * scale))
    canonical = CoordinateProcess.of(coordinate)
    u = coordinate.coordinate(np.array([1.0, 0.5, 0.0]))
    np.testing.assert_array_equal(canonical.signal(u) == 0, [True, False, False])
    np.testing.assert_array_equal(canonical.noise(u) == 0, [False, False, True])
    # no smaller level than float64 resolves is lost
    close = coordinate.coordinate(np.array([1.0 - 1e-12, 1e-12]))
    np.testing.assert_allclose(canonical.sigma(close), [1e12, 1e-12], rtol=0.1)


# --- a user-defined objective is still the user's function afterwards


@pytest.mark.slow
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_a_function_of_a_target_can_be_used_before_and_after(
    array: Callable[..., Any], float32: None
):
    """Float32 callers: the optimiser's float64 must not stay in a function with arrays."""
    spectrum = array(np.array([1.0, 0.1], np.float32))
    target = jk.Gaussian(array(np.array([0.3, 0.1], np.float32)), spectrum)
    process = jk.VP()

    def objective(schedule: jk.Schedule) -> Array:
        scale = jnp.sum(spectrum).astype(schedule.times.dtype)
        return jk.evaluate_schedule(target, process, "ddim", schedule).w2 / scale

    schedule = jk.schedules.log_snr(process, 3, 1e-2)
    before = objective(schedule)
    result = jk.optimize_schedule(target, process, "ddim", 3, t_min=1e-2, objective=objective)
    assert result.objective <= float(before)
    assert result.schedule.times.dtype == jnp.float32
    once = jax.jit(objective)(schedule)
    many = jax.vmap(lambda t: objective(jk.Schedule(t)))(jnp.stack([schedule.times] * 2))
    slope = jax.grad(lambda t: objective(jk.Schedule(t)))(schedule.times)
    for value in (before, once, many[0], many[1]):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, before, rtol=2e-3)
    assert slope.dtype == jnp.float32
    assert np.all(np.isfinite(slope))
    with jax.enable_x64(True):
        there = objective(jax.tree.map(lambda a: np.asarray(a, np.float64), result.schedule))
    np.testing.assert_allclose(result.objective, there, rtol=1e-5)


# --- numbers that a refactoring must not change

OPTIMA = json.loads((Path(__file__).parent / "optima.json").read_text())["optima"]
SETTINGS: dict[str, dict[str, Any]] = {
    "local": {},
    "terminal": {"objective": jk.TerminalError()},
    "optimize": {"stochasticity": "optimize"},
    "range": {"t_min": (1e-4, 1e-2)},
    "edm": {"process": jk.EDM(), "t_min": 0.0},
    "flow": {"process": jk.FlowMatching()},
    "kl": {"objective": jk.LocalError(metric="kl")},
    "score_error": {
        "objective": jk.LocalError(
            score_error=jk.ScoreError.relative(0.03, jk.OrnsteinUhlenbeck(2.0))
        )
    },
}


@functools.cache
def digits() -> jk.Gaussian:
    """The Gaussian of scikit-learn's digits, pixels in [-1, 1]."""
    pixels = np.asarray(load_digits(return_X_y=True)[0]) / 8.0 - 1.0
    return jk.Gaussian.fit(pixels).in_eigenbasis()


def is_quick(label: list[Any]) -> bool:
    """Local errors of up to 16 steps share a program with other tests."""
    _, sampler, num_steps, kind = label
    return sampler in ("ddim", "dpmpp_2m") and num_steps <= 16 and kind in ("local", "flow")


@pytest.mark.parametrize(
    "pinned",
    [
        pytest.param(
            row,
            id="-".join(map(str, row["label"])),
            marks=[] if is_quick(row["label"]) else [pytest.mark.slow],
        )
        for row in OPTIMA
    ],
)
def test_optima_are_those_before_the_refactoring(pinned: dict[str, Any]):
    _, sampler, num_steps, kind = pinned["label"]
    setting = {"process": jk.VP(), "t_min": 1e-3, **SETTINGS[kind]}
    process = setting.pop("process")
    result = jk.optimize_schedule(digits(), process, sampler, num_steps, **setting)
    np.testing.assert_allclose(result.objective, pinned["objective"], rtol=1e-6)
    np.testing.assert_allclose(result.schedule.times, pinned["times"], rtol=1e-4)
    np.testing.assert_allclose(result.schedule.stochasticity, pinned["stochasticity"], atol=1e-4)


# --- several samplers and numbers of steps


def test_a_sweep_is_one_optimisation_per_setting():
    sweep = jk.optimize_schedules(gaussian(), jk.VP(), ["dpmpp_2m", jk.DDIM()], [3, 2], t_min=1e-2)
    assert list(sweep.results) == [("dpmpp_2m", 2), ("dpmpp_2m", 3), ("ddim", 2), ("ddim", 3)]
    alone = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 3, t_min=1e-2)
    np.testing.assert_array_equal(sweep["ddim", 3].schedule.times, alone.schedule.times)
    assert sweep["ddim", 3].objective == alone.objective
    assert sweep.schedules["ddim", 3] is sweep["ddim", 3].schedule
    assert list(sweep) == list(sweep.results)
    assert len(sweep) == 4
    assert ("ddim", 3) in sweep
    assert ("ddim", 4) not in sweep
    assert sweep.nfe == 0
    header, *rows = repr(sweep).splitlines()
    assert header.split()[:3] == ["sampler", "steps", "objective"]
    assert [row.split()[:2] for row in rows[:4]] == [[n, str(k)] for n, k in sweep.results]
    assert sweep.to_markdown().startswith("| sampler")
    panels = sweep.figure().panels
    assert [panel.title for panel in panels] == ["dpmpp_2m", "ddim"]
    assert all(line.y.min() >= 1.0 for p in panels for line in p.marks if isinstance(line, Line))


def test_a_sweep_checks_every_setting_first():
    def never(schedule: jk.Schedule) -> Array:
        raise AssertionError("evaluated")

    run = (gaussian(), jk.VP())
    with pytest.raises(ValueError, match="samplers = 'ddim' must be a list"):
        jk.optimize_schedules(*run, "ddim", [4])
    with pytest.raises(ValueError, match=r"num_steps\[1\] = 0"):
        jk.optimize_schedules(*run, ["ddim"], [4, 0], objective=never)
    with pytest.raises(ValueError, match="Heun, which is deterministic"):
        jk.optimize_schedules(*run, ["ddim", "heun"], [4], stochasticity=1.0, objective=never)
    sweep = jk.optimize_schedules(*run, ["ddim"], [2], t_min=1e-2)
    with pytest.raises(ValueError, match=r"\('ddim', 4\) was not optimised; known are"):
        sweep["ddim", 4]


@pytest.mark.parametrize("seed", range(3))
def test_integer_timesteps_with_the_smallest_objective(seed: int):
    """Of all 126 selections of 4 interior timesteps from 9; rounding would make two equal."""
    rng = np.random.default_rng(seed)
    table = jk.DiscreteVP(np.cumprod(rng.uniform(0.4, 0.95, 11)))
    target = jk.Gaussian(0.0, rng.uniform(0.01, 2.0, 3))
    objective = jk.LocalError().bind(target, table, jk.DDIM())
    given = jk.Schedule(np.array([11.0, 4.4, 4.2, 4.0, 3.6, 1.0]))
    every = np.array(list(itertools.combinations(range(10, 1, -1), 4)))
    ends = np.broadcast_to(np.array([11, 1]), (len(every), 2))
    rows = np.concatenate([ends[:, :1], every, ends[:, 1:]], 1).astype(float)
    values = jax.jit(jax.vmap(lambda row: objective(jk.Schedule(row))))(rows)
    found = jk.optimize.on_integer_timesteps(given, table, objective)
    np.testing.assert_array_equal(found.times, rows[int(np.argmin(values))])


def test_integer_timesteps_of_many_steps():
    """Stable Diffusion, karras, K = 44, where rounding makes two equal.

    Better than the nearest distinct ones, and no timestep moved alone is better still.
    """
    process = jk.DiscreteVP.scaled_linear()
    given = jk.schedules.karras(process, 44, 1.0)
    assert np.any(np.diff(np.rint(given.times)) == 0)

    def objective(schedule: jk.Schedule) -> Array:
        return jnp.sum(jnp.diff(jnp.log(schedule.sigmas(process))) ** 2)

    found = np.asarray(jk.optimize.on_integer_timesteps(given, process, objective).times)
    assert np.all(np.diff(found) < 0)
    nearest = jk.export(given, process, "diffusers", scheduler="dpm_multistep", end="keep")
    nearest_times = np.append(nearest.values["timesteps"], 0.0) + 1.0
    log_sigmas = np.log(np.asarray(process.sigma(np.arange(1.0, 1001.0))))

    def value(times: np.ndarray) -> float:
        return float(np.sum(np.diff(log_sigmas[times.astype(int) - 1]) ** 2))

    best = value(found)
    assert best < value(nearest_times)
    for k, change in itertools.product(range(1, 44), (-1, 1)):
        moved = found.copy()
        moved[k] += change
        assert np.any(np.diff(moved) == 0) or value(moved) >= best * (1 - 1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        jk.LocalError(),
        jk.TerminalError(),
        jk.bounds.CertifiedError(),
        jk.bounds.OperatorBound(0.1),
        jk.bounds.LipschitzBound(0.1),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_objectives_are_bound_to_samplers_by_name(objective: Any):
    schedule = jk.schedules.log_snr(jk.VP(), 2, 0.1)
    named = objective.bind(gaussian(), jk.VP(), "ddim")(schedule)
    assert named == objective.bind(gaussian(), jk.VP(), jk.DDIM())(schedule)
    with pytest.raises(ValueError, match="sampler='dimm' is not known"):
        objective.bind(gaussian(), jk.VP(), "dimm")


def test_integer_timesteps_of_other_processes_are_refused():
    with pytest.raises(ValueError, match="process VP has no integer timesteps"):
        jk.optimize.on_integer_timesteps(
            jk.schedules.karras(jk.VP(), 4, 0.1), jk.VP(), lambda schedule: schedule.times[1]
        )


@pytest.mark.slow
def test_what_is_optimised_is_the_objective_where_evaluations_are_at_the_end() -> None:
    """The local errors that the solver sums by windows are those of the whole schedule."""
    sampler = jk.samplers.EndEvaluated(jk.DDIM())
    target = jk.Gaussian([0.5, 0.0], [1.0, 0.1])
    setting = (target, jk.VP(), sampler)
    result = jk.optimize_schedule(
        *setting, 4, t_min=1e-2, starts=["quadratic"], objective=jk.LocalError(), progress=False
    )
    bound = jk.LocalError().bind(*setting)
    assert float(result.objective) == pytest.approx(float(bound(result.schedule)), rel=1e-9)
    assert result.objective < bound(jk.schedules.quadratic(jk.VP(), 4, 1e-2))


def test_a_function_may_run_a_network_in_float32(float32: None) -> None:
    """Times are in float64 in a solver, and what comes back from the network is not."""
    target = jk.Gaussian(0.0, [1.0, 0.1])
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2)), jnp.float32)
    variances = jnp.asarray([1.0, 0.1], jnp.float32)

    def network(x: Array, t: Array) -> Array:
        a2 = jnp.exp(-0.1 * t - 9.95 * t**2)
        return -x / (a2 * variances + 1.0 - a2)

    denoiser = jk.Denoiser(network, jk.VP(), "score")
    fine = jk.sample(denoiser, "dpmpp_2m", jk.schedules.log_snr(jk.VP(), 50, 1e-2), noise)

    def error(schedule: jk.Schedule) -> Array:
        return jnp.mean((jk.sample(denoiser, "ddim", schedule, noise) - fine) ** 2)

    found = jk.optimize_schedule(
        target, jk.VP(), "ddim", 3, t_min=1e-2, objective=error, solver=jk.Newton(5)
    )
    assert found.objective < min(found.baselines.values())
