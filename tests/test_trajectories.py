"""Trajectory records: predicted errors of schedules, their derivatives, and their optima."""

import inspect
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from published_samplers import PUBLISHED
from scipy.integrate import quad

import jaxkernels as jk
from jaxkernels._derivatives import dense_derivatives
from jaxkernels.trajectories import bind_record
from jaxkernels.trajectories._recording import sensitivity_weights
from jaxkernels.trajectories._spline import spline_fit, spline_weights

PROCESS, T_MIN = jk.VP(), 1e-3
MEAN, VARIANCE = np.array([0.2, -0.4, 0.1]), np.array([2.0, 0.3, 0.01])
GAUSSIAN = jk.Gaussian(MEAN, VARIANCE)
MIXTURE = jk.GaussianMixture(
    [0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.stack([0.02 * np.eye(2)] * 2)
)
NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2)))


def _mixture(x: Array, t: Array) -> Array:
    return MIXTURE.score(PROCESS, x, t)


DENOISER = jk.Denoiser(_mixture, PROCESS, "score")


@pytest.fixture(scope="module")
def recorded() -> jk.TrajectoryRecord:
    return jk.record(DENOISER, NOISE, t_min=T_MIN, progress=False)


def _first_order(sampler: str, times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sum of the propagated local errors on the exact flow of `GAUSSIAN`, in closed form."""
    a, s = (np.asarray(f(jnp.asarray(times)))[:, None] for f in (PROCESS.signal, PROCESS.noise))
    v = a**2 * VARIANCE + s**2
    z = (x - a[0] * MEAN) / np.sqrt(v[0])
    path = a[:, None] * MEAN + np.sqrt(v)[:, None] * z
    denoised = MEAN + (a * VARIANCE / v)[:, None] * (path - a[:, None] * MEAN)
    level, total = np.log(a / s), np.zeros_like(x)
    for k in range(len(times) - 1):
        d = denoised[k]
        if sampler == "dpmpp_2m" and k > 0:
            weight = 0.5 * (level[k + 1] - level[k]) / (level[k] - level[k - 1])
            d = d + weight * (denoised[k] - denoised[k - 1])
        step = s[k + 1] / s[k] * path[k] + (a[k + 1] - a[k] * s[k + 1] / s[k]) * d
        total += np.sqrt(v[-1] / v[k + 1]) * (step - path[k + 1])
    return total


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 3), ("dpmpp_2m", 12)])
def test_the_first_order_of_a_linear_network_is_exact(sampler: str, steps: int) -> None:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((16, 3)))
    found = jk.record(
        jk.Denoiser(lambda x, t: GAUSSIAN.score(PROCESS, x, t), PROCESS, "score"),
        x,
        t_min=T_MIN,
        progress=False,
    )
    schedule = jk.schedules.quadratic(PROCESS, steps, T_MIN)
    exact = np.linalg.norm(_first_order(sampler, np.asarray(schedule.times), np.asarray(x)), axis=1)
    np.testing.assert_allclose(
        found.errors(sampler, schedule) * float(found.scale), exact, rtol=2e-3, atol=2e-5
    )
    assert "16 trajectories" in repr(found)


def _ended_at_zero(
    sampler: str, process: jk.AbstractProcess, times: np.ndarray, x: np.ndarray, last: float
) -> np.ndarray:
    """The same to sigma = 0: every end is the denoised point, that of the exact flow at `last`."""
    points = np.append(times[:-1], last)
    a, s = (np.asarray(f(jnp.asarray(points)))[:, None] for f in (process.signal, process.noise))
    v = a**2 * VARIANCE + s**2
    gain = a * VARIANCE / v
    z = (x - a[0] * MEAN) / np.sqrt(v[0])
    denoised = MEAN + gain[:, None] * np.sqrt(v)[:, None] * z
    level, total = np.log(a / s), denoised[-2] - denoised[-1]
    for k in range(len(times) - 2):
        d = denoised[k]
        if sampler == "dpmpp_2m" and k > 0:
            weight = 0.5 * (level[k + 1] - level[k]) / (level[k] - level[k - 1])
            d = d + weight * (denoised[k] - denoised[k - 1])
        here, there = (a[j] * MEAN + np.sqrt(v[j]) * z for j in (k, k + 1))
        step = s[k + 1] / s[k] * here + (a[k + 1] - a[k] * s[k + 1] / s[k]) * d
        total = total + gain[-1] * np.sqrt(v[-1] / v[k + 1]) * (step - there)
    return total


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 3), ("dpmpp_2m", 12)])
@pytest.mark.parametrize("table", [True, False])
def test_a_record_ends_where_pipelines_end(sampler: str, steps: int, table: bool) -> None:
    """At sigma = 0 by a step from the last node, a table's smallest time or the default t_min."""
    process = jk.DiscreteVP.scaled_linear() if table else PROCESS
    last = 1.0 if table else 1e-3
    x = jnp.asarray(np.random.default_rng(1).standard_normal((16, 3)))
    found = jk.record(GAUSSIAN.denoiser(process), x, t_min=0.0, progress=False)
    assert found.nfe == 16 * (63 * (5 + 2 * 3) + 1 + 1 + 2 * 3)
    schedule = jk.schedules.quadratic(process, steps, 0.0)
    times = np.asarray(schedule.times, np.float64)
    exact = np.linalg.norm(_ended_at_zero(sampler, process, times, np.asarray(x), last), axis=1)
    np.testing.assert_allclose(
        found.errors(sampler, schedule) * float(found.scale), exact, rtol=2e-3, atol=5e-5
    )


@pytest.fixture(scope="module")
def to_zero() -> jk.TrajectoryRecord:
    exact = MIXTURE.denoiser(jk.DiscreteVP.scaled_linear())
    return jk.record(exact, NOISE, t_min=0.0, nodes=32, progress=False)


def test_records_to_zero_are_saved_and_concatenated(
    to_zero: jk.TrajectoryRecord, tmp_path: Path
) -> None:
    to_zero.save(tmp_path / "record.npz")
    loaded = jk.TrajectoryRecord.load(tmp_path / "record.npz")
    both = loaded.concatenate([to_zero])
    assert (loaded.num_nodes, both.num_trajectories) == (32, 128)
    schedule = jk.schedules.karras(to_zero.process, 6, 0.0)
    expected = to_zero.errors("dpmpp_2m", schedule)
    np.testing.assert_allclose(both.errors("dpmpp_2m", schedule), np.tile(expected, 2), rtol=1e-5)


@pytest.mark.parametrize(
    "sampler", ["dpmpp_2m", *(pytest.param(n, marks=pytest.mark.slow) for n in ("heun", "unipc"))]
)
def test_derivatives_of_a_step_to_zero(sampler: str, to_zero: jk.TrajectoryRecord) -> None:
    """Against finite differences in the coordinate, away from the times of the table."""
    process = to_zero.process
    objective = bind_record(to_zero, sampler, 0.0)
    start, low = np.asarray(process.t_max), np.asarray(0.05)
    coordinate = jk.schedules.TimeCoordinate(process, start, low, np.asarray(np.inf))
    inner = objective.in_coordinate(coordinate, 0.0)
    times = jnp.asarray([1000.0, 600.3, 250.4, 80.4, 0.0])
    u = coordinate.coordinate(times)
    value, gradient, hessian = eqx.filter_jit(inner.derivatives)(u, jnp.asarray(4))
    assert value == pytest.approx(float(objective(jk.Schedule(times))), rel=1e-6)
    assert np.all(np.isfinite(hessian))
    values = eqx.filter_jit(inner.value)
    for j in (1, 2, 3):
        h = 1e-4 * np.eye(5)[j]
        difference = (values(u + h, jnp.asarray(4)) - values(u - h, jnp.asarray(4))) / 2e-4
        assert gradient[j] == pytest.approx(float(difference), rel=1e-4)


class _NumpyVP:
    """`PROCESS` in NumPy, as `published_samplers` takes it."""

    low, high = 0.1, 20.0

    def a(self, t: float) -> float:
        return float(np.exp(-0.5 * self.low * t - 0.25 * (self.high - self.low) * t**2))

    def s(self, t: float) -> float:
        return float(np.sqrt(-np.expm1(-self.low * t - 0.5 * (self.high - self.low) * t**2)))

    def da(self, t: float) -> float:
        return -0.5 * (self.low + (self.high - self.low) * t) * self.a(t)

    def ds(self, t: float) -> float:
        return -self.a(t) * self.da(t) / self.s(t)

    def at(self, level: float) -> float:
        """The time of log(a/s) = level."""
        integral = np.logaddexp(0.0, -2.0 * level)
        slope = self.high - self.low
        return float((np.sqrt(self.low**2 + 2.0 * slope * integral) - self.low) / slope)


def _heun(
    process: Any, denoise: Any, times: np.ndarray, x: np.ndarray, z: Any, alpha: Any
) -> list[np.ndarray]:
    """The trapezoid rule on dx/dt = a' x0 + s' eps, in NumPy."""
    del z, alpha

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        d = denoise(x, t)
        return process.da(t) * d + process.ds(t) * (x - process.a(t) * d) / process.s(t)

    (t, u) = times
    first = velocity(x, t)
    return [x, x + 0.5 * (u - t) * (first + velocity(x + (u - t) * first, u))]


@pytest.fixture(scope="module")
def recorded_gaussian() -> jk.TrajectoryRecord:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((16, 3)))
    return jk.record(GAUSSIAN.denoiser(PROCESS), x, t_min=T_MIN, progress=False)


# at most: of the root mean square; what is left is the denoiser's change between two times
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("heun", 2e-3),
        ("edm_sampler", 2e-3),
        ("dpmpp_2s", 0.02),
        ("dpm_2", 0.02),
        ("midpoint", 0.02),
    ],
)
def test_the_first_order_of_two_evaluations(
    name: str, tolerance: float, recorded_gaussian: jk.TrajectoryRecord
) -> None:
    """Local errors of published steps from the exact flow, in NumPy, propagated in closed form."""
    process = _NumpyVP()
    step = {**PUBLISHED, "heun": _heun}[name]
    schedule = jk.schedules.karras(PROCESS, 20, T_MIN)
    times = np.asarray(schedule.times, np.float64)
    a = np.array([process.a(t) for t in times])[:, None]
    v = a**2 * VARIANCE + np.array([process.s(t) for t in times])[:, None] ** 2
    z = (np.asarray(recorded_gaussian.noise) - a[0] * MEAN) / np.sqrt(v[0])

    def denoise(x: np.ndarray, t: float) -> np.ndarray:
        signal = process.a(t)
        gain = signal * VARIANCE / (signal**2 * VARIANCE + process.s(t) ** 2)
        return MEAN + gain * (x - signal * MEAN)

    total = np.zeros_like(z)
    for k in range(len(times) - 1):
        start, end = (a[j] * MEAN + np.sqrt(v[j]) * z for j in (k, k + 1))
        after = step(process, denoise, times[k : k + 2], start, np.zeros(1), np.zeros(1))[-1]
        total += np.sqrt(v[-1] / v[k + 1]) * (after - end)
    exact = np.linalg.norm(total, axis=1)
    found = recorded_gaussian.errors(name, schedule) * float(recorded_gaussian.scale)
    np.testing.assert_allclose(found, exact, atol=tolerance * np.sqrt(np.mean(exact**2)))


@pytest.mark.parametrize("name", ["heun", "dpmpp_2s", "dpm_2", "midpoint", "edm_sampler"])
def test_what_two_evaluations_do_is_predicted(name: str, recorded: jk.TrajectoryRecord) -> None:
    """On a network that is not linear: the size of real errors, and the order of schedules."""
    names = ("quadratic", "karras", "log_snr")
    schedules = {n: jk.schedules.BASELINES[n](PROCESS, 30, T_MIN) for n in names}
    real = jk.compare_schedules(DENOISER, name, schedules, NOISE).statistic("geometric_mean")
    predicted = {n: np.exp(np.mean(np.log(recorded.errors(name, schedules[n])))) for n in names}
    assert sorted(names, key=predicted.__getitem__) == sorted(names, key=real.__getitem__)
    assert predicted["log_snr"] == pytest.approx(real["log_snr"], rel=0.3)


@pytest.mark.parametrize(("steps", "tolerance"), [(12, 0.4), (60, 0.1)])
def test_what_a_sampler_does_is_predicted(
    steps: int, tolerance: float, recorded: jk.TrajectoryRecord
) -> None:
    """Against the real trajectories; what is left out is of second order in the local errors."""
    schedules = {
        name: jk.schedules.BASELINES[name](PROCESS, steps, T_MIN)
        for name in ("quadratic", "uniform")
    }
    real = jk.compare_schedules(DENOISER, "ddim", schedules, NOISE).statistic("geometric_mean")
    predicted = {
        name: np.exp(np.mean(np.log(recorded.errors("ddim", s)))) for name, s in schedules.items()
    }
    assert predicted["quadratic"] < predicted["uniform"]
    assert predicted["quadratic"] == pytest.approx(real["quadratic"], rel=tolerance)


@pytest.mark.parametrize("name", ["dpmpp_3m", "unipc", "deis"])
def test_what_a_multistep_sampler_does_is_predicted(
    name: str, recorded: jk.TrajectoryRecord
) -> None:
    """Also where the state of a sampler is not what it corrects: local errors of both telescope."""
    schedules = {"log_snr": jk.schedules.log_snr(PROCESS, 30, T_MIN)}
    real = jk.compare_schedules(DENOISER, name, schedules, NOISE).statistic("geometric_mean")
    predicted = np.exp(np.mean(np.log(recorded.errors(name, schedules["log_snr"]))))
    assert predicted == pytest.approx(real["log_snr"], rel=0.3)


def test_few_directions_estimate_the_distance_without_bias() -> None:
    """Mean squares over trajectories and frames of 4 of 12 directions, against all 12."""
    rng = np.random.default_rng(0)
    target = jk.Gaussian(np.zeros(12), rng.uniform(0.1, 2.0, 12))
    x = jnp.asarray(rng.standard_normal((200, 12)))
    schedule = jk.schedules.log_snr(PROCESS, 5, T_MIN)

    def squared(directions: int, key: int = 0) -> float:
        found = jk.record(
            jk.Denoiser(lambda x, t: target.score(PROCESS, x, t), PROCESS, "score"),
            x,
            t_min=T_MIN,
            nodes=16,
            directions=directions,
            batch=200,
            key=jax.random.key(key),
            progress=False,
        )
        return float(np.mean(found.errors("ddim", schedule) ** 2))

    # standard error of the mean of 4 frames: about 8%
    assert np.mean([squared(4, key) for key in range(4)]) == pytest.approx(squared(12), rel=0.25)


@pytest.mark.parametrize(
    ("sampler", "power"),
    [
        ("ddim", 1.0),
        ("dpmpp_2m", 0.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("unipc", 0.0), ("dpmpp_2s", 2.0), ("midpoint", 2.0))
        ),
    ],
)
def test_derivatives(sampler: str, power: float, recorded: jk.TrajectoryRecord) -> None:
    """The windowed Hessian against JAX's for the whole; ends and padding are fixed."""
    objective = bind_record(recorded, sampler, power)
    coordinate = jk.schedules.TimeCoordinate(
        PROCESS, np.asarray(PROCESS.t_max), np.asarray(0.0), np.asarray(np.inf)
    )
    u = coordinate.coordinate(jnp.asarray(jk.schedules.quadratic(PROCESS, 4, T_MIN).times))
    inside = slice(1, 4)
    padded = jnp.concatenate([u, jnp.repeat(u[-1:], 2)])
    inner_objective = objective.in_coordinate(coordinate, T_MIN)
    value, gradient, hessian = eqx.filter_jit(inner_objective.derivatives)(padded, jnp.asarray(4))

    def plain(inner: Array) -> Array:
        points = jnp.concatenate([u[:1], inner, u[-1:]])
        return objective(jk.Schedule(coordinate.time(points)))

    whole = jax.jit(lambda inner: dense_derivatives(plain, inner))(u[inside])
    assert value == pytest.approx(float(whole[0]), rel=1e-12)
    np.testing.assert_allclose(gradient[inside], whole[1], rtol=1e-8)
    np.testing.assert_allclose(
        hessian[inside, inside], whole[2], rtol=1e-7, atol=1e-9 * float(jnp.abs(whole[2]).max())
    )
    fixed = np.array([0, 4, 5, 6])
    assert not np.any(np.asarray(gradient)[fixed])
    assert not np.any(np.asarray(hessian)[fixed])
    assert not np.any(np.asarray(hessian)[:, fixed])


def test_the_value_is_the_stated_mean_of_the_errors(recorded: jk.TrajectoryRecord) -> None:
    schedule = jk.schedules.karras(PROCESS, 6, T_MIN)
    e = recorded.errors("dpmpp_2m", schedule)
    means = {0.0: np.exp(np.mean(np.log(e))), 1.0: e.mean(), 2.0: np.sqrt(np.mean(e**2))}
    for power, mean in means.items():
        assert float(bind_record(recorded, "dpmpp_2m", power)(schedule)) == pytest.approx(
            mean, rel=2e-3
        )


def test_an_optimisation_starts_from_the_schedules_that_a_record_says_are_best(
    recorded: jk.TrajectoryRecord,
) -> None:
    """From poor ones first order may lead to errors that cancel; what is given is taken."""
    setting: dict[str, Any] = {"objective": jk.RecordedError(recorded), "t_min": T_MIN}
    run = (MIXTURE.gaussian(), PROCESS, "ddim", 4)
    schedules = {name: make(PROCESS, 4, T_MIN) for name, make in jk.schedules.BASELINES.items()}
    errors = {name: np.mean(recorded.errors("ddim", s) ** 2) for name, s in schedules.items()}
    best = sorted(errors, key=errors.__getitem__)[:3]
    assert set(jk.optimize_schedule(*run, **setting).starts) == set(best)
    worst = max(errors, key=errors.__getitem__)
    assert jk.optimize_schedule(*run, starts=[worst], **setting).starts == (worst,)


@pytest.mark.slow
def test_the_optimum_holds_on_fresh_noise(recorded: jk.TrajectoryRecord) -> None:
    """Both ways to use a record, on initial noise that it has not seen."""
    target = MIXTURE.gaussian()
    objective = jk.RecordedError(recorded, 0.0)
    typical = jk.optimize_schedule(
        target,
        PROCESS,
        "dpmpp_2m",
        6,
        t_min=T_MIN,
        objective=objective,
        starts=["quadratic", "log_snr"],
    )
    assert typical.converged
    fresh = jnp.asarray(np.random.default_rng(5).standard_normal((128, 2)))
    baselines = {
        name: jk.schedules.BASELINES[name](PROCESS, 6, T_MIN)
        for name in ("quadratic", "log_snr", "cosine")
    }
    found = jk.compare_schedules(
        DENOISER,
        "dpmpp_2m",
        {**baselines, "ours": typical.schedule},
        fresh,
    )
    errors = found.statistic("geometric_mean")
    assert errors["ours"] < 0.3 * min(errors[name] for name in baselines)

    samples = np.asarray(MIXTURE.sample(jax.random.key(0), 500))
    selection = jk.Selection(denoiser=DENOISER, noise=fresh, record=recorded)
    options: dict[str, Any] = {"t_min": T_MIN, "selection": selection, "starts": ["quadratic"]}
    result = jk.optimize_schedule(samples, PROCESS, "dpmpp_2m", 6, **options)
    found = result.comparison
    assert found is not None
    labels = {"recorded, geometric mean", "recorded, mean", "recorded, root mean square"}
    assert labels < set(found.names)
    for name in ("geometric_mean", "rms", "sliced_w2"):
        best = min(result.baselines, key=found.statistic(name).__getitem__)
        ratio, standard_error = found.ratio(name, result.selected, best)
        assert ratio < 1.0 + 2.0 * standard_error


def test_processes_that_start_without_signal() -> None:
    """Flow matching, where sigma is infinite at t_max: the flow of a Gaussian, in closed form."""
    process = jk.FlowMatching()

    def velocity(x: Array, t: Array) -> Array:
        a, s = process.signal(t), process.noise(t)
        v = a**2 * VARIANCE + s**2
        x0 = MEAN + a * VARIANCE / v * (x - a * MEAN)
        eps = s / v * (x - a * MEAN)
        return process.signal_rate(t) * x0 + process.noise_rate(t) * eps

    x = jnp.asarray(np.random.default_rng(1).standard_normal((8, 3)))
    found = jk.record(jk.Denoiser(velocity, process, "flow"), x, t_min=1e-2, progress=False)
    schedules = {"uniform": jk.schedules.uniform(process, 40, 1e-2)}
    real = jk.compare_schedules(
        jk.Denoiser(velocity, process, "flow"), "ddim", schedules, x, progress=False
    )
    np.testing.assert_allclose(
        found.errors("ddim", schedules["uniform"]), real.errors[0], rtol=0.15
    )


class UserDefined(jk.VP):
    """A process that the package does not know."""

    def __init__(self, beta_max: float = 20.0):
        super().__init__(beta_max=beta_max)


def _made(process: jk.AbstractProcess, dtype: str = "float64") -> jk.TrajectoryRecord:
    """A record of what need not be a network."""
    x, t_min = jnp.asarray(NOISE[:6], dtype), float(np.asarray(process.time_at_sigma(0.1)))
    return jk.record(
        jk.Denoiser(lambda x, t: -x, process, "x0"), x, t_min=t_min, nodes=8, progress=False
    )


def _same(found: jk.TrajectoryRecord, expected: jk.TrajectoryRecord) -> None:
    """The same structure and bits, and what is predicted from them."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (np.asarray(a).dtype, np.shape(a)) == (np.asarray(b).dtype, np.shape(b))
        np.testing.assert_array_equal(a, b)
    schedule = jk.schedules.uniform(expected.process, 4, expected.t_min)
    np.testing.assert_array_equal(
        found.errors("dpmpp_2m", schedule), expected.errors("dpmpp_2m", schedule)
    )


@pytest.mark.parametrize(
    "process",
    [PROCESS, jk.FlowMatching(), jk.EDM(sigma_max=20.0), jk.DiscreteVP.scaled_linear()],
    ids=lambda p: type(p).__name__,
)
def test_files(process: jk.AbstractProcess, tmp_path: Path) -> None:
    made = _made(process)
    made.save(tmp_path / "a.npz")
    _same(jk.TrajectoryRecord.load(tmp_path / "a.npz"), made)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_files_keep_float64_whatever_the_precision_of_the_caller(
    float32: None, tmp_path: Path
) -> None:
    made = _made(jk.VP(), "float32")
    made.save(tmp_path / "a.npz")
    assert made.products.dtype == np.float64
    _same(jk.TrajectoryRecord.load(tmp_path / "a.npz"), made)


def test_a_user_defined_process_is_passed_again(tmp_path: Path) -> None:
    path, made = tmp_path / "a.npz", _made(UserDefined())
    made.save(path)
    _same(jk.TrajectoryRecord.load(path, UserDefined()), made)
    with pytest.raises(
        ValueError,
        match=r"a\.npz holds no valid record: the process UserDefined is user-defined",
    ):
        jk.TrajectoryRecord.load(path)
    with pytest.raises(
        ValueError, match=r"process is not that of .*a\.npz: its signal or noise differs at t = 1"
    ):
        jk.TrajectoryRecord.load(path, UserDefined(19.0))


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    _made(PROCESS).save(path)
    with np.load(path) as archive:
        content = dict(archive)

    def load(message: str, **changes: Any) -> None:
        np.savez(path, **{k: v for k, v in {**content, **changes}.items() if v is not None})
        with pytest.raises(ValueError, match=rf"a\.npz {message}"):
            jk.TrajectoryRecord.load(path)

    load("is another kind of file", format="jaxkernels.measurement")
    load("is another kind of file", format=None)
    load("has version 7; this release reads version 1", version=7)
    load("has version None", version=None)
    load("holds no valid record: 'products", products=None)
    load(
        "holds no valid record: process='vq' is not known. Did you mean 'vp'",
        process='{"type": "vq"}',
    )
    load("holds no valid record: .*line 1", process="{")
    load("holds no valid record: .*expected 3", coordinate=content["coordinate"][:2])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.npz is damaged, cut off or no \.npz file"):
        jk.TrajectoryRecord.load(path)
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.npz: No such file"):
        jk.TrajectoryRecord.load(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match=r"cannot write .*no.*No such file"):
        _made(PROCESS).save(tmp_path / "no" / "a.npz")


def _made_denoised(process: jk.AbstractProcess, rows: slice = slice(0, 6)) -> jk.DenoisedRecord:
    """Denoised points of what need not be a network."""
    t_min = float(np.asarray(process.time_at_sigma(0.1)))
    network = jk.Denoiser(lambda x, t: -x, process, "x0")
    return jk.record_denoised(network, NOISE[rows], t_min=t_min, nodes=8, progress=False)


@pytest.mark.parametrize("process", [PROCESS, jk.FlowMatching()], ids=lambda p: type(p).__name__)
def test_files_and_parts_of_denoised_points(process: jk.AbstractProcess, tmp_path: Path) -> None:
    parts = [_made_denoised(process, rows) for rows in (slice(0, 2), slice(2, 4), slice(4, 6))]
    found = parts[0].concatenate(parts[1:])
    expected = _made_denoised(process)
    assert found.nfe == expected.nfe
    for name in ("noise", "points", "denoised", "ends"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)
    found.save(tmp_path / "a.npz")
    loaded = jk.DenoisedRecord.load(tmp_path / "a.npz")
    assert jax.tree.structure(loaded) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
    model = jk.Gaussian(0.0, [1.0, 0.5]).denoiser(process)
    residuals = loaded.denoiser(model).residuals
    np.testing.assert_array_equal(residuals, found.denoiser(model).residuals)
    with pytest.raises(ValueError, match=r"others\[0\] has 9 nodes, 2 dimensions; .* 8, 2\."):
        found.concatenate([jk.record_denoised(model, NOISE[:2], nodes=9, progress=False)])


def test_wrong_files_of_denoised_points_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    made = _made_denoised(PROCESS)
    made.save(path)
    with pytest.raises(ValueError, match=r"a\.npz is another kind of file"):
        jk.TrajectoryRecord.load(path)
    with np.load(path) as archive:
        content = dict(archive)
    np.savez(path, **{name: array for name, array in content.items() if name != "denoised"})
    with pytest.raises(ValueError, match=r"a\.npz holds no valid record: 'denoised"):
        jk.DenoisedRecord.load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.npz is damaged, cut off"):
        jk.DenoisedRecord.load(path)
    _made(PROCESS).save(path)
    with pytest.raises(ValueError, match=r"a\.npz is another kind of file"):
        jk.DenoisedRecord.load(path)


def test_sensitivities_are_integrated_exactly_where_they_are_quadratic() -> None:
    """In log(sigma), from uneven nodes, over sigma; to sigma = infinity they fall as sigma^-3."""
    sigmas = np.array([40.0, 9.0, 3.0, 0.8, 0.3])
    times = np.asarray(PROCESS.time_at_sigma(jnp.asarray(sigmas)))
    weights = sensitivity_weights(PROCESS, times)

    def quadratic(sigma: float) -> float:
        return 1.0 + 0.3 * np.log(sigma) - 0.2 * np.log(sigma) ** 2

    for j in (1, 2):
        to_it, from_it = weights[j - 1] @ [quadratic(sigma) for sigma in sigmas[j : j + 3]]
        assert to_it == pytest.approx(quad(quadratic, sigmas[j + 1], sigmas[j])[0], rel=1e-9)
        assert from_it == pytest.approx(quad(quadratic, sigmas[j], sigmas[j - 1])[0], rel=1e-9)
    # near the end there are fewer values
    steps = -np.diff(sigmas)
    np.testing.assert_allclose(
        weights.sum(2), [[*pair] for pair in zip([*steps[1:], 0.0], steps, strict=True)]
    )
    assert np.count_nonzero(weights[2]) == 4
    assert np.count_nonzero(weights[3]) == 1
    flow = jk.FlowMatching()
    top = sensitivity_weights(flow, np.array([1.0, 0.9, 0.7, 0.3]))
    sigma = float(flow.sigma(0.9))
    tail = quad(lambda u: (sigma / u) ** 3, sigma, np.inf)[0]
    np.testing.assert_allclose(top[0, 1], [tail, 0.0, 0.0], rtol=1e-6)


def test_splines_are_exact_for_cubics() -> None:
    nodes = 12
    place = np.arange(-1, nodes + 1.0)
    u = np.arange(nodes)
    coefficients = spline_fit(nodes) @ (0.3 - u + 0.2 * u**2 - 0.05 * u**3)
    # a B-spline with coefficients from a cubic's blossom is that cubic:
    # x^3 has coefficients i^3 - i, x^2 has i^2 - 1/3
    blossom = 0.3 - place + 0.2 * (place**2 - 1.0 / 3.0) - 0.05 * (place**3 - place)
    np.testing.assert_allclose(coefficients, blossom, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": NOISE[:1]}, r"noise has shape \(1, .*\); it must be \(n, \.\.\.\) with n >= 2"),
        ({"nodes": 3}, "nodes = 3 must be at least 8"),
        ({"directions": 0}, "directions = 0 must be at least 1"),
        ({"t_min": 2.0}, "t_min"),
        ({"t_min": 1.0}, "t_min = 1 must be"),
        ({"fn": lambda x, t: x * jnp.nan}, "are not finite"),
        ({"prediction_type": "scores"}, "Did you mean 'score'"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    setting = {"fn": _mixture, "prediction_type": "score", "t_min": T_MIN, **arguments}
    noise: Any = setting.pop("noise", NOISE)

    def refused() -> None:
        denoiser = jk.Denoiser(setting.pop("fn"), PROCESS, setting.pop("prediction_type"))
        jk.record(denoiser, noise, progress=False, **setting)

    with pytest.raises(ValueError, match=message):
        refused()


def test_what_a_record_cannot_predict_is_refused(recorded: jk.TrajectoryRecord) -> None:
    schedule = jk.schedules.uniform(PROCESS, 4, T_MIN)
    with pytest.raises(ValueError, match=r"RK4 evaluates the network 4 times .* an order of 4"):
        recorded.errors("rk4", schedule)
    with pytest.raises(ValueError, match="EndEvaluated evaluates the network at another time"):
        recorded.errors(jk.samplers.EndEvaluated(jk.DDIM()), schedule)
    with pytest.raises(ValueError, match="stochastic"):
        recorded.errors("ddim", jk.Schedule(schedule.times, 1.0))
    with pytest.raises(ValueError, match=r"the record from 1 to 0\.001"):
        recorded.errors("ddim", jk.schedules.uniform(PROCESS, 4, 1e-2))
    flow = jk.record(
        jk.Denoiser(lambda x, t: 0.5 * x, jk.FlowMatching(), "x0"),
        NOISE,
        t_min=0.01,
        nodes=16,
        progress=False,
    )
    with pytest.raises(
        ValueError, match=r"ExponentialIntegrator has no finite error .* which is 0 at t_max = 1"
    ):
        flow.errors("exponential_integrator", jk.schedules.uniform(jk.FlowMatching(), 4, 0.01))
    with pytest.raises(ValueError, match="power = -1"):
        jk.RecordedError(recorded, -1.0)


def test_what_cannot_be_bound_is_refused(recorded: jk.TrajectoryRecord) -> None:
    """Another process than the record's, or a sampler that it cannot predict."""
    objective = jk.RecordedError(recorded)
    with pytest.raises(ValueError, match="RK4 evaluates the network 4 times"):
        objective.bind(None, PROCESS, "rk4")
    with pytest.raises(ValueError, match="RK4 evaluates the network 4 times"):
        bind_record(recorded, "rk4")
    with pytest.raises(ValueError, match=r"record is of VP.* down to t_min = 0\.001; here process"):
        objective.bind(None, jk.VP(beta_max=10.0), "ddim")
    with pytest.raises(ValueError, match=r"record is of VP.*; here process is FlowMatching"):
        objective.bind(None, jk.FlowMatching(), "ddim")
    with pytest.raises(ValueError, match="power = -1"):
        bind_record(recorded, "ddim", -1.0)


def test_a_bound_objective_is_that_of_its_record(recorded: jk.TrajectoryRecord) -> None:
    schedule = jk.schedules.karras(PROCESS, 6, T_MIN)
    bound = jk.RecordedError(recorded, 1.0).bind(MIXTURE, PROCESS, "dpmpp_2m")
    assert float(bound(schedule)) == float(bind_record(recorded, "dpmpp_2m", 1.0)(schedule))
    assert bound.sampler == jk.DPMSolverPP2M()


def test_a_bound_objective_works_in_float32_after_float64(recorded: jk.TrajectoryRecord) -> None:
    """A record is kept in NumPy, of which JAX must not remember the precision it first met."""
    bound = bind_record(recorded, "dpmpp_2m", 0.0)
    times = np.asarray(jk.schedules.karras(PROCESS, 5, T_MIN).times)
    expected = float(jax.jit(lambda t: bound(jk.Schedule(t)))(times))
    with jax.enable_x64(False):
        single = jnp.asarray(times, jnp.float32)
        value, gradient = jax.jit(jax.value_and_grad(lambda t: bound(jk.Schedule(t))))(single)
        assert gradient.dtype == jnp.float32
        assert np.all(np.isfinite(gradient[1:-1]))
        # the error is a small difference, which float32 knows to few digits
        assert float(value) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("key", [None, 5])
def test_records_of_parts_are_the_record_of_the_whole(
    key: int | None, recorded: jk.TrajectoryRecord
) -> None:
    """Three workers with parts of different sizes; with another key the directions differ."""
    options: dict[str, Any] = {"t_min": T_MIN, "progress": False}
    if key is not None:
        options["key"] = jax.random.key(key)
    parts = [
        jk.record(DENOISER, NOISE[rows], **options)
        for rows in (slice(0, 32), slice(32, 37), slice(37, 64))
    ]
    found = parts[0].concatenate(parts[1:])
    assert found.num_trajectories == 64
    assert found.nfe == recorded.nfe == sum(part.nfe for part in parts)
    np.testing.assert_allclose(found.scale, recorded.scale, rtol=1e-12)
    np.testing.assert_allclose(found.ends, recorded.ends, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(found.noise, NOISE)
    if key is None:
        size = np.abs(recorded.products).max()
        np.testing.assert_allclose(found.products, recorded.products, rtol=1e-8, atol=1e-11 * size)
    # as many directions as dimensions: the errors do not depend on them
    schedule = jk.schedules.karras(PROCESS, 6, T_MIN)
    np.testing.assert_allclose(
        found.errors("dpmpp_2m", schedule), recorded.errors("dpmpp_2m", schedule), rtol=1e-6
    )


def test_a_concatenated_record_is_saved(tmp_path: Path) -> None:
    made = _made(PROCESS)
    found = made.concatenate([made])
    np.testing.assert_allclose(found.scale, made.scale, rtol=1e-12)
    found.save(tmp_path / "a.npz")
    _same(jk.TrajectoryRecord.load(tmp_path / "a.npz"), found)
    _same(made.concatenate([]), made)


def test_records_that_differ_are_not_concatenated() -> None:
    def made(process: jk.AbstractProcess = PROCESS, dim: int = 2, **options: Any):
        options = {"t_min": 0.1, "nodes": 8, "progress": False, **options}
        x = jnp.asarray(np.random.default_rng(0).standard_normal((4, dim)))
        return jk.record(jk.Denoiser(lambda x, t: -x, process, "x0"), x, **options)

    first = made()
    for other, message in (
        (
            made(nodes=9),
            r"others\[0\] has 9 nodes, 2 directions, 2 dimensions; .* this record: 8, 2, 2",
        ),
        (made(directions=1), r"others\[0\] has 8 nodes, 1 directions, 2 dimensions"),
        (made(dim=3), r"others\[0\] has 8 nodes, 3 directions, 3 dimensions"),
        (
            made(t_min=0.2),
            r"others\[0\] runs from 1 to t_min = 0\.2, .*; this record from 1 to 0\.1",
        ),
        (made(jk.VP(beta_max=10.0)), r"others\[0\] is of VP.*differs at t = 1"),
        (made(jk.OU(t_max=1.0)), r"others\[0\] is of OU.*signal or noise differs at t"),
    ):
        with pytest.raises(ValueError, match=message):
            first.concatenate([other])
    with pytest.raises(ValueError, match=r"others\[1\] has 9 nodes"):
        first.concatenate([first, made(nodes=9)])
    with pytest.raises(ValueError, match=r"others\[0\] must be a TrajectoryRecord; got Denoised"):
        inspect.unwrap(jk.TrajectoryRecord.concatenate)(first, [_made_denoised(PROCESS)])
    for wrong in (first, "a"):
        with pytest.raises(ValueError, match="must be a list of records"):
            inspect.unwrap(jk.TrajectoryRecord.concatenate)(first, wrong)


def test_the_nfe_of_a_record_counts_what_is_run() -> None:
    """Forward passes of every point and, twice, backward passes, by counts at run time."""
    forward = 0
    backward = 0

    def count_forward(x: Array) -> None:
        nonlocal forward
        forward += x.shape[0]

    def count_backward(x: Array) -> None:
        nonlocal backward
        backward += int(np.prod(x.shape[:-1]))

    @jax.custom_vjp
    def network(x: Array) -> Array:
        jax.debug.callback(count_forward, x)
        return -x

    def pull_back(_: None, g: Array) -> tuple[Array]:
        jax.debug.callback(count_backward, g)
        return (-g,)

    network.defvjp(lambda x: (network(x), None), pull_back)
    denoiser = jk.Denoiser(lambda x, t: network(x), PROCESS, "x0")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)))
    found = jk.record(denoiser, x, t_min=0.1, nodes=9, directions=2, batch=3, progress=False)
    jax.effects_barrier()
    assert forward == 6 * (4 * 8 + 1 + 8)
    assert backward == 6 * 8 * 2
    assert found.nfe == forward + 2 * backward


def test_pieces_share_one_program() -> None:
    """Batches of one size, the last one filled up, and equal calls trace the network once."""
    traced = 0

    def network(x: Array, t: Array) -> Array:
        nonlocal traced
        traced += 1
        return -x

    denoiser = jk.Denoiser(network, PROCESS, "x0")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((20, 2)))
    options: dict[str, Any] = {"t_min": 0.1, "nodes": 8, "batch": 4, "progress": False}
    # 10 rows in batches of at most 4: 4, 4 and 2 that are filled up
    pieces = [jk.record(denoiser, x[:10], **options)]
    once = traced
    pieces.append(jk.record(denoiser, x[10:], **options))
    assert traced == once
    whole = jk.record(denoiser, x, **{**options, "batch": 20})
    found = pieces[0].concatenate(pieces[1:])
    np.testing.assert_allclose(found.scale, whole.scale, rtol=1e-12)
    np.testing.assert_allclose(found.products, whole.products, rtol=1e-9, atol=1e-11)


def test_spline_weights_interpolate() -> None:
    """With the coefficients of a cubic's values, the spline is that cubic everywhere."""
    nodes = 9
    u = np.arange(nodes)
    coefficients = spline_fit(nodes) @ (0.3 - u + 0.2 * u**2 - 0.05 * u**3)
    for place in (0.0, 0.4, 3.0, 5.7, 8.0):
        first, weights = spline_weights(place, nodes)
        value = np.asarray(weights) @ coefficients[int(first) : int(first) + 4]
        assert value == pytest.approx(0.3 - place + 0.2 * place**2 - 0.05 * place**3, abs=1e-10)


def test_what_an_optimiser_refuses_of_a_record(recorded: jk.TrajectoryRecord) -> None:
    """Of a selection's record and of an objective's: their sampler, t_min and stochasticity."""
    target = MIXTURE.gaussian()
    alone: dict[str, Any] = {"t_min": T_MIN, "selection": jk.Selection(record=recorded)}
    with pytest.raises(ValueError, match="a Gaussian target has no network to select on"):
        jk.optimize_schedule(target, PROCESS, "ddim", 4, **alone)
    selection = jk.Selection(denoiser=DENOISER, record=recorded)
    with pytest.raises(ValueError, match=r"record is of VP.* t_min = 0\.01"):
        jk.optimize_schedule(target, PROCESS, "ddim", 4, t_min=1e-2, selection=selection)
    with pytest.raises(ValueError, match="RK4 evaluates"):
        jk.optimize_schedule(target, PROCESS, "rk4", 4, t_min=T_MIN, selection=selection)
    setting: dict[str, Any] = {"objective": jk.RecordedError(recorded), "t_min": T_MIN}
    with pytest.raises(ValueError, match="RK4 evaluates"):
        jk.optimize_schedule(target, PROCESS, "rk4", 4, **setting)
    with pytest.raises(ValueError, match="of deterministic trajectories"):
        jk.optimize_schedule(target, PROCESS, "ddim", 4, stochasticity="optimize", **setting)
    with pytest.raises(ValueError, match=r"record is of VP.* t_min = 0\.01"):
        jk.optimize_schedule(target, PROCESS, "ddim", 4, **{**setting, "t_min": 1e-2})
