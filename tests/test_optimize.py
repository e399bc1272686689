"""Optimal schedules against closed forms, an independent optimiser and their own promises."""

import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import minimize

import jaxkernels as jk
from jaxkernels._derivatives import dense_derivatives
from jaxkernels.samplers import SAMPLERS

SPECTRUM = np.geomspace(1e-3, 4.0, 7)


def gaussian(mean: float = 0.3) -> jk.Gaussian:
    return jk.Gaussian(mean, SPECTRUM)


@pytest.mark.parametrize("num_steps", [5, 8])
def test_isotropic_optimum_is_the_tangent_law(num_steps: int):
    """One variance c^2, Euler in sigma: a step's factor is cos(th) cos(th - th') / cos(th'), th = atan(sigma/c).

    So the product of factors is largest for equal angles, with sampled std / c = cos(Theta/K)^K.
    """
    c, top, low = 0.5, 80.0, 0.002
    result = jk.optimize_schedule(
        jk.Gaussian(0.0, [c**2]),
        jk.EDM(top),
        "ddim",
        num_steps,
        t_min=low,
        objective="terminal",
        metric="kl",
        initialization="marginal",
    )
    angles = np.linspace(np.arctan(top / c), np.arctan(low / c), num_steps + 1)
    # the sampled law is compared with the data, whose std at t_min is larger by 1 / cos(atan(low / c))
    ratio = np.cos((angles[0] - angles[-1]) / num_steps) ** num_steps / np.cos(angles[-1])
    assert result.converged
    np.testing.assert_allclose(result.schedule.times[1:-1], c * np.tan(angles[1:-1]), rtol=1e-6)
    np.testing.assert_allclose(result.evaluation.variance, (c * ratio) ** 2, rtol=1e-10)
    assert not result.trusted  # what the terminal objective promises need not hold on a network


def ddim_local_objective(log_sigmas: np.ndarray, top: float, low: float) -> float:
    """Independent: sum over modes and steps of (factor sqrt(S) - sqrt(S'))^2 S_K / S', in sigma = t."""
    sigma = np.concatenate([[top], np.exp(log_sigmas), [low]])
    total = 0.0
    for variance in SPECTRUM:
        s = variance + sigma**2
        factor = (variance + sigma[1:] * sigma[:-1]) / s[:-1]
        total += np.sum((factor * np.sqrt(s[:-1]) - np.sqrt(s[1:])) ** 2 * s[-1] / s[1:])
    return float(total)


def test_local_optimum_agrees_with_scipy_on_an_independent_objective():
    top, low, steps = 20.0, 0.01, 6
    start = np.log(np.geomspace(top, low, steps + 1)[1:-1])
    reference = minimize(
        ddim_local_objective, start, (top, low), method="BFGS", options={"gtol": 1e-9}
    )
    result = jk.optimize_schedule(
        gaussian(0.0), jk.EDM(top), "ddim", steps, t_min=low, initialization="marginal", spread=1.0
    )
    truncation = np.sum((np.sqrt(SPECTRUM + low**2) - np.sqrt(SPECTRUM)) ** 2)
    np.testing.assert_allclose(result.objective, reference.fun + truncation, rtol=1e-9)
    np.testing.assert_allclose(np.log(result.schedule.times[1:-1]), reference.x, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *((name, None) for name in SAMPLERS),
        ("ddim", jk.ScoreError.relative(0.1, jk.OrnsteinUhlenbeck(2.0))),
    ],
)
def test_second_derivatives_from_windows_equal_those_of_the_whole(
    name: str, error: jk.ScoreError | None
):
    """The windowed Hessian relies on which times a step depends on; reverse mode on the whole does not."""
    process = jk.VP()
    objective = jk.LocalError(
        gaussian(), process, SAMPLERS[name](), jk.metrics.w2_squared, "standard_normal", error
    )
    times = jk.schedules.log_snr(process, 5, 1e-2).times

    def whole(interior: jax.Array) -> jax.Array:
        return objective(jk.Schedule(jnp.concatenate([times[:1], interior, times[-1:]])))

    expected = jax.jit(lambda interior: dense_derivatives(whole, interior))(times[1:-1])
    value, slope, curvature = jax.jit(lambda s: objective.derivatives(s))(jk.Schedule(times))
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(
        slope[1:-1], expected[1], rtol=1e-8, atol=1e-9 * np.abs(expected[1]).max()
    )
    scale = np.abs(expected[2]).max()
    np.testing.assert_allclose(curvature[1:-1, 1:-1], expected[2], atol=1e-8 * scale)


@pytest.mark.parametrize("make", [jk.LocalError, jk.TerminalError])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("degenerate", [False, True])
def test_objectives_have_two_correct_derivatives(make: type, name: str, degenerate: bool):
    """At random points, and with repeated and zero eigenvalues, a last level 0 and stochasticity 0."""
    process = jk.EDM(10.0)
    spectrum = np.array([0.0, 1.0, 1.0]) if degenerate else SPECTRUM
    last = 0.0 if degenerate else 0.05
    objective = make(
        jk.Gaussian(0.2, spectrum),
        process,
        SAMPLERS[name](),
        jk.metrics.w2_squared,
        "standard_normal",
    )

    def value(interior: jax.Array, squared: jax.Array) -> jax.Array:
        times = jnp.concatenate([jnp.array([10.0]), interior, jnp.array([last])])
        return objective(jk.Schedule.from_squared(times, squared * SAMPLERS[name].stochastic))

    interior = jnp.array([4.0, 1.3, 0.4])
    squared = jnp.array([0.3, 1.0, 0.5, 2.0])
    check_grads(jax.jit(value), (interior, squared), order=2, rtol=2e-4, atol=1e-5, eps=1e-4)
    slopes = jax.jit(jax.grad(value, (0, 1)))(interior, jnp.zeros(4))
    assert all(bool(jnp.all(jnp.isfinite(s))) for s in slopes)


def test_the_objective_is_an_average_over_variances():
    """Independent formula of the objective, averaged over five variances of every mode."""
    top, low, steps = 20.0, 0.02, 4
    target = gaussian(0.0)
    result = jk.optimize_schedule(
        target, jk.EDM(top), "ddim", steps, t_min=low, initialization="marginal", spread=2.0
    )
    inner = np.log(np.asarray(result.schedule.times)[1:-1])
    scaled = [
        ddim_local_objective(inner - 0.5 * np.log(f), top / np.sqrt(f), low / np.sqrt(f)) * f
        for f in 2.0 ** np.linspace(-1.0, 1.0, 5)
    ]
    plain = jk.optimize_schedule(
        target, jk.EDM(top), "ddim", steps, t_min=low, initialization="marginal", spread=1.0
    )
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
    """DDIM sees time only through a and s: VE, EDM and a rescaled start law give the same levels."""
    kwargs: dict[str, Any] = {"initialization": "marginal"}
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
    full = jk.optimize_schedule(target, jk.VP(), "ddim", 6, t_min=1e-3, compress=False)
    small = jk.optimize_schedule(target, jk.VP(), "ddim", 6, t_min=1e-3)
    assert full.compression is None
    assert small.compression is not None
    assert small.compression.nodes == 32
    assert small.compression_error < 1e-9
    np.testing.assert_allclose(small.objective, full.objective, rtol=1e-9)
    np.testing.assert_allclose(small.schedule.times, full.schedule.times, atol=1e-6)


def test_end_time_is_optimised_within_its_bounds():
    """The optimised end must be the better one of a scan over fixed ends."""
    target, process = jk.Gaussian(0.0, [1.0, 0.05]), jk.EDM(10.0)
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
    assert "log_snr, stochasticity 1" in free.baselines
    assert free.schedule.stochasticity.shape == (5,)


def test_noise_pays_when_sampling_starts_from_the_wrong_law():
    """A start far from p_T is forgotten only with noise: the optimum must use some."""
    target, process = jk.Gaussian(0.0, np.full(3, 4.0)), jk.EDM(3.0)
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


def test_a_metric_and_an_objective_of_ones_own():
    target, process = gaussian(), jk.VP()

    def fourth_root(mean_error: jax.Array, variance: jax.Array, reference: jax.Array) -> jax.Array:
        return jk.metrics.w2_squared(mean_error, variance, reference)

    named = jk.optimize_schedule(target, process, "ddim", 4, t_min=1e-2)
    own = jk.optimize_schedule(target, process, "ddim", 4, t_min=1e-2, metric=fourth_root)
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
        gaussian(0.7), jk.VP(0.2, 12.0), CountingDDIM(), 4, t_min=3e-2, tolerance=1e-6
    )
    assert len(CountingDDIM.traces) == traced


def test_a_step_too_long_is_not_trusted():
    target, process = jk.Gaussian(0.0, np.array([1e-4])), jk.OU(t_max=2.0)
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


def test_heavy_tails_are_reported():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4000, 4)) * np.exp(1.5 * rng.normal(size=(4000, 1)))
    result = jk.optimize_schedule(jk.Gaussian.fit(samples), jk.VP(), "ddim", 3, t_min=1e-2)
    assert any("kurtosis" in text for text in result.warnings)
    assert not result.verified


def test_stopping_early_is_said():
    result = jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 5, t_min=1e-3, max_iterations=2)
    assert not result.converged
    assert "max_iterations = 2" in result.reason
    assert result.objective <= min(result.baselines.values())
    assert "not converged" in repr(result)


def test_one_step_has_nothing_to_optimise():
    result = jk.optimize_schedule(gaussian(), jk.VP(), "heun", 1, t_min=1e-2)
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
    ({"objective": "locl"}, "Did you mean 'local'"),
    ({"metric": "w2_square"}, "Did you mean 'w2_squared'"),
    ({"initialization": "normal"}, "initialization='normal'"),
    ({"starts": ["karas"]}, "Did you mean 'karras'"),
    ({"starts": []}, "starts"),
    ({"stochasticity": [0.0, 1.0]}, r"stochasticity has shape \(2,\)"),
    ({"stochasticity": -1.0}, "stochasticity must be >= 0"),
    ({"stochasticity": "optimise"}, "Did you mean 'optimize'"),
    ({"sampler": "heun", "stochasticity": "optimize"}, "Heun, which is deterministic"),
    ({"sampler": "heun", "stochasticity": 0.5}, "Heun, which is deterministic"),
    ({"max_iterations": 0}, "max_iterations = 0"),
    ({"tolerance": -1.0}, "tolerance = -1"),
    ({"compress": 0}, "compress = 0"),
    ({"target": jk.Gaussian(0.0, [1.0, 0.0]), "metric": "kl"}, "positive eigenvalues"),
    (
        {"sampler": "exponential_integrator", "process": jk.FlowMatching()},
        "is not finite in step 0",
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


def test_starts_must_fit():
    schedule = jk.schedules.uniform(jk.VP(), 4, 1e-2)
    with pytest.raises(ValueError, match="has 4 steps; num_steps is 3"):
        jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 3, t_min=1e-2, starts={"mine": schedule})
    with pytest.raises(ValueError, match=r"starts\['mine'\] runs from"):
        jk.optimize_schedule(gaussian(), jk.VP(), "ddim", 4, t_min=1e-3, starts={"mine": schedule})
    for name in (
        "optimised",
        "recorded, mean",
        "mine, halfway to uniform",
        "mine, stochasticity 1",
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
