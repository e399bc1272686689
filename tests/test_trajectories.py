"""Recorded trajectories: predicted errors of schedules, their derivatives, and what optimising them gives."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels.trajectories._record import _spline_fit

PROCESS, T_MIN = jk.VP(), 1e-3
MEAN, VARIANCE = np.array([0.2, -0.4, 0.1]), np.array([2.0, 0.3, 0.01])
GAUSSIAN = jk.Gaussian(MEAN, VARIANCE)
MIXTURE = jk.GaussianMixture(
    [0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.stack([0.02 * np.eye(2)] * 2)
)
NOISES = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2)))


def _mixture(x: Array, t: Array) -> Array:
    return MIXTURE.score(PROCESS, x, t)


@pytest.fixture(scope="module")
def recorded() -> jk.TrajectoryRecord:
    return jk.record(jk.Denoiser(_mixture, PROCESS, "score"), NOISES, t_min=T_MIN, progress=False)


def _first_order(sampler: str, times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sum of the local defects on the exact flow of `GAUSSIAN`, each carried by it, from its closed form."""
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


@pytest.mark.parametrize(("steps", "tolerance"), [(12, 0.4), (60, 0.1)])
def test_what_a_sampler_does_is_predicted(
    steps: int, tolerance: float, recorded: jk.TrajectoryRecord
) -> None:
    """Against the trajectories that it really takes; what is left out is of second order in the defects."""
    grids = {
        name: jk.schedules.BASELINES[name](PROCESS, steps, T_MIN)
        for name in ("quadratic", "uniform")
    }
    real = jk.compare_schedules(
        jk.Denoiser(_mixture, PROCESS, "score"), "ddim", grids, NOISES
    ).statistic("geometric_mean")
    predicted = {
        name: np.exp(np.mean(np.log(recorded.errors("ddim", s)))) for name, s in grids.items()
    }
    assert predicted["quadratic"] < predicted["uniform"]
    assert predicted["quadratic"] == pytest.approx(real["quadratic"], rel=tolerance)


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


@pytest.mark.parametrize(("sampler", "power"), [("ddim", 1.0), ("dpmpp_2m", 0.0)])
def test_derivatives(sampler: str, power: float, recorded: jk.TrajectoryRecord) -> None:
    """The windowed Hessian against JAX's differentiation of the whole; ends are held fixed."""
    objective = jk.RecordedError(recorded, sampler, power)
    times = jk.schedules.quadratic(PROCESS, 4, T_MIN).times
    value, gradient, hessian = eqx.filter_jit(lambda t: objective.derivatives(jk.Schedule(t)))(
        times
    )
    inside = slice(1, -1)

    def plain(inner: Array) -> Array:
        return objective(jk.Schedule(jnp.concatenate([times[:1], inner, times[-1:]])))

    assert value == pytest.approx(float(plain(times[inside])), rel=1e-12)
    np.testing.assert_allclose(gradient[inside], jax.jit(jax.grad(plain))(times[inside]), rtol=1e-8)
    exact = jax.jit(jax.hessian(plain))(times[inside])
    np.testing.assert_allclose(
        hessian[inside, inside], exact, rtol=1e-7, atol=1e-9 * float(jnp.abs(exact).max())
    )
    assert not np.any(np.asarray(gradient)[[0, -1]])


def test_the_value_is_the_stated_mean_of_the_errors(recorded: jk.TrajectoryRecord) -> None:
    schedule = jk.schedules.karras(PROCESS, 6, T_MIN)
    e = recorded.errors("dpmpp_2m", schedule)
    means = {0.0: np.exp(np.mean(np.log(e))), 1.0: e.mean(), 2.0: np.sqrt(np.mean(e**2))}
    for power, mean in means.items():
        assert float(jk.RecordedError(recorded, "dpmpp_2m", power)(schedule)) == pytest.approx(
            mean, rel=2e-3
        )


def test_the_optimum_holds_on_fresh_noises(
    recorded: jk.TrajectoryRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to use a record, on noises that it has not seen."""
    law, grids = MIXTURE.gaussian(), ("quadratic", "log_snr", "cosine")
    objective = jk.RecordedError(recorded, "dpmpp_2m", 0.0)
    typical = jk.optimize_schedule(
        law,
        PROCESS,
        "dpmpp_2m",
        6,
        t_min=T_MIN,
        objective=objective,
        starts=["quadratic", "log_snr"],
    )
    assert typical.converged
    fresh = jnp.asarray(np.random.default_rng(5).standard_normal((128, 2)))
    named = {name: jk.schedules.BASELINES[name](PROCESS, 6, T_MIN) for name in grids}
    found = jk.compare_schedules(
        jk.Denoiser(_mixture, PROCESS, "score"),
        "dpmpp_2m",
        {**named, "ours": typical.schedule},
        fresh,
    )
    errors = found.statistic("geometric_mean")
    assert errors["ours"] < 0.3 * min(errors[name] for name in named)

    # with a record of the network no mixture is fitted to samples
    monkeypatch.setattr(jk.GaussianMixture, "fit", None)
    samples = np.asarray(MIXTURE.sample(jax.random.key(0), 500))
    options: dict[str, Any] = {"t_min": T_MIN, "verify": fresh, "starts": ["quadratic"]}
    result = jk.optimize_schedule(
        samples, PROCESS, "dpmpp_2m", 6, score_fn=_mixture, record=recorded, **options
    )
    found = result.comparison
    assert found is not None
    assert {"recorded, typical", "recorded, mean", "recorded, rms"} < set(found.names)
    for kind in ("geometric_mean", "rms", "sliced_w2"):
        best = min(result.baselines, key=found.statistic(kind).__getitem__)
        ratio, spread = found.ratio(kind, result.chosen, best)
        assert ratio < 1.0 + 2.0 * spread


def test_processes_that_start_without_signal() -> None:
    """Flow matching, where sigma is infinite at t_max: the velocity of a Gaussian, from its closed form."""
    process = jk.FlowMatching()

    def velocity(x: Array, t: Array) -> Array:
        a, s = process.signal(t), process.noise(t)
        v = a**2 * VARIANCE + s**2
        x0 = MEAN + a * VARIANCE / v * (x - a * MEAN)
        eps = s / v * (x - a * MEAN)
        return process.signal_rate(t) * x0 + process.noise_rate(t) * eps

    x = jnp.asarray(np.random.default_rng(1).standard_normal((8, 3)))
    found = jk.record(jk.Denoiser(velocity, process, "flow"), x, t_min=1e-2, progress=False)
    grids = {"uniform": jk.schedules.uniform(process, 40, 1e-2)}
    real = jk.compare_schedules(
        jk.Denoiser(velocity, process, "flow"), "ddim", grids, x, progress=False
    )
    np.testing.assert_allclose(found.errors("ddim", grids["uniform"]), real.errors[0], rtol=0.15)


class Own(jk.VP):
    """A process that the package does not know."""

    def __init__(self, beta_max: float = 20.0):
        super().__init__(beta_max=beta_max)


def _made(process: jk.AbstractProcess, dtype: str = "float64") -> jk.TrajectoryRecord:
    """A record of what need not be a network."""
    x, t_min = jnp.asarray(NOISES[:6], dtype), float(np.asarray(process.time_at_sigma(0.1)))
    return jk.record(
        jk.Denoiser(lambda x, t: -x, process, "x0"), x, t_min=t_min, nodes=8, progress=False
    )


def _same(found: jk.TrajectoryRecord, expected: jk.TrajectoryRecord) -> None:
    """The same structure and bits, and what is predicted from them."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (np.asarray(a).dtype, np.shape(a)) == (np.asarray(b).dtype, np.shape(b))
        np.testing.assert_array_equal(a, b)
    grid = jk.schedules.uniform(expected.process, 4, expected.t_min)
    np.testing.assert_array_equal(found.errors("dpmpp_2m", grid), expected.errors("dpmpp_2m", grid))


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


def test_a_process_of_ones_own_is_passed_again(tmp_path: Path) -> None:
    path, made = tmp_path / "a.npz", _made(Own())
    made.save(path)
    _same(jk.TrajectoryRecord.load(path, Own()), made)
    with pytest.raises(
        ValueError, match=r"a\.npz holds no valid record: its process Own is not built in; pass it"
    ):
        jk.TrajectoryRecord.load(path)
    with pytest.raises(
        ValueError, match=r"process is not that of .*a\.npz: its signal or noise differs at t = 1"
    ):
        jk.TrajectoryRecord.load(path, Own(19.0))


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
    load("holds no valid record: .*expected 4", ends=content["ends"][:3])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.npz is damaged, cut off or no \.npz file"):
        jk.TrajectoryRecord.load(path)
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.npz: No such file"):
        jk.TrajectoryRecord.load(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match=r"cannot write .*no.*No such file"):
        _made(PROCESS).save(tmp_path / "no" / "a.npz")


def test_splines_are_exact_for_cubics() -> None:
    nodes = 12
    place = np.arange(-1, nodes + 1.0)
    u = np.arange(nodes)
    coefficients = _spline_fit(nodes) @ (0.3 - u + 0.2 * u**2 - 0.05 * u**3)
    # a B-spline with coefficients from a cubic's blossom is that cubic: x^3 has coefficients i^3 - i, x^2 has i^2 - 1/3
    blossom = 0.3 - place + 0.2 * (place**2 - 1.0 / 3.0) - 0.05 * (place**3 - place)
    np.testing.assert_allclose(coefficients, blossom, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_init": NOISES[:1]}, "trajectories >= 2"),
        ({"nodes": 3}, "nodes = 3 must be at least 8"),
        ({"directions": 0}, "directions = 0 must be at least 1"),
        ({"t_min": 2.0}, "t_min"),
        ({"t_min": 0.0}, "t_min = 0 has no noise"),
        ({"score_fn": lambda x, t: x * jnp.nan}, "are not finite"),
        ({"kind": "scores"}, "Did you mean 'score'"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {"score_fn": _mixture, "x_init": NOISES, "t_min": T_MIN, **arguments}
    with pytest.raises(ValueError, match=message):
        jk.record(
            jk.Denoiser(setting.pop("score_fn"), PROCESS, "score"),
            setting.pop("x_init"),
            progress=False,
            **setting,
        )


def test_what_a_record_cannot_predict_is_refused(recorded: jk.TrajectoryRecord) -> None:
    grid = jk.schedules.uniform(PROCESS, 4, T_MIN)
    with pytest.raises(ValueError, match="Heun evaluates the network 2 times"):
        recorded.errors("heun", grid)
    with pytest.raises(ValueError, match="stochastic"):
        recorded.errors("ddim", jk.Schedule(grid.times, 1.0))
    with pytest.raises(ValueError, match=r"the record from 1 to 0\.001"):
        recorded.errors("ddim", jk.schedules.uniform(PROCESS, 4, 1e-2))
    flow = jk.record(
        jk.Denoiser(lambda x, t: 0.5 * x, jk.FlowMatching(), "x0"),
        NOISES,
        t_min=0.01,
        nodes=16,
        progress=False,
    )
    with pytest.raises(
        ValueError, match=r"ExponentialIntegrator has no finite error .* which is 0 at t_max = 1"
    ):
        flow.errors("exponential_integrator", jk.schedules.uniform(jk.FlowMatching(), 4, 0.01))
    with pytest.raises(ValueError, match="power = -1"):
        jk.RecordedError(recorded, "ddim", -1.0)
    law = MIXTURE.gaussian()
    with pytest.raises(ValueError, match="record needs score_fn"):
        jk.optimize_schedule(law, PROCESS, "ddim", 4, t_min=T_MIN, record=recorded)
    with pytest.raises(ValueError, match="record is of VP"):
        jk.optimize_schedule(
            law, PROCESS, "ddim", 4, t_min=1e-2, record=recorded, score_fn=_mixture
        )
    with pytest.raises(ValueError, match="Heun evaluates"):
        jk.optimize_schedule(
            law, PROCESS, "heun", 4, t_min=T_MIN, record=recorded, score_fn=_mixture
        )
    objective = jk.RecordedError(recorded, "ddim")
    setting: dict[str, Any] = {"objective": objective, "t_min": T_MIN}
    with pytest.raises(ValueError, match="objective is the RecordedError of DDIM"):
        jk.optimize_schedule(law, PROCESS, "dpmpp_2m", 4, **setting)
    with pytest.raises(ValueError, match="of deterministic trajectories"):
        jk.optimize_schedule(law, PROCESS, "ddim", 4, stochasticity="optimize", **setting)
    with pytest.raises(ValueError, match="record is of VP"):
        jk.optimize_schedule(law, PROCESS, "ddim", 4, **{**setting, "t_min": 1e-2})
