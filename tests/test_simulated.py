"""Recorded denoised points, the model that they correct, and the error of schedules on it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels.trajectories import denoised_nfe

PROCESS = jk.VP()
T_MIN = 1e-3
MEANS = np.array([[1.5, 0.0], [-1.5, 0.5]])
MIXTURE = jk.GaussianMixture([0.4, 0.6], MEANS, np.full((2, 2), 0.02))
MODEL = MIXTURE.denoiser(PROCESS)
NOISE: Any = np.random.default_rng(0).standard_normal((12, 2))
SHIFT = np.array([0.3, -0.2])
MISLED = "not tell where this network errs"


def _network(x: jax.Array, t: jax.Array) -> jax.Array:
    """The mixture's denoised point and a residual that depends on log sigma alone."""
    return MODEL(x, t).x0 + SHIFT * jnp.tanh(jnp.log(PROCESS.sigma(t)))


NETWORK = jk.Denoiser(_network, PROCESS, "x0")


def _schedule(steps: int) -> jk.Schedule:
    return jk.schedules.log_snr(PROCESS, steps, T_MIN)


@pytest.fixture(scope="module")
def record() -> jk.DenoisedRecord:
    with jax.enable_x64(True):
        return jk.record_denoised(NETWORK, NOISE, t_min=T_MIN, nodes=40, batch=6, progress=False)


def test_trajectories_end_where_a_fine_solution_does(record: jk.DenoisedRecord) -> None:
    with jax.enable_x64(True):
        ends = jk.sample(NETWORK, "rk4", _schedule(400), jnp.asarray(NOISE))
    distance = np.linalg.norm(np.asarray(record.ends) - np.asarray(ends), axis=1)
    # where two clusters part, errors grow
    assert np.median(distance) < 3e-4
    assert distance.max() < 0.01
    # ten of each coarse run
    assert record.nfe == denoised_nfe(12, 40) == 12 * (40 + 20)


def test_a_residual_in_time_alone_is_found(record: jk.DenoisedRecord) -> None:
    """Anywhere, as it does not depend on x; between nodes up to the error of the spline."""
    x = np.random.default_rng(1).standard_normal((12, 2))
    with jax.enable_x64(True):
        corrected = record.denoiser(MODEL)
        for t in (0.9, 0.5, 0.21, 0.05, 2e-3):
            found = corrected(jnp.asarray(x), jnp.asarray(t))
            expected = NETWORK(jnp.asarray(x), jnp.asarray(t))
            np.testing.assert_allclose(found.x0, expected.x0, atol=2e-3)
            back = PROCESS.signal(t) * found.x0 + PROCESS.noise(t) * found.eps
            np.testing.assert_allclose(back, x, atol=1e-10)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 4), ("dpmpp_2m", 6), ("heun", 4)])
def test_the_error_is_that_of_the_network(
    sampler: str, steps: int, record: jk.DenoisedRecord
) -> None:
    """It has the model's derivatives, so that errors of any size are seen."""
    with jax.enable_x64(True):
        samples = np.asarray(jk.sample(NETWORK, sampler, _schedule(steps), jnp.asarray(NOISE)))
        found = jk.SimulatedError(record, MIXTURE).bind(None, PROCESS, sampler)(_schedule(steps))
    ends = np.asarray(record.ends)
    scale = np.sqrt(np.sum(ends.var(0)))
    expected = np.sqrt(np.mean(np.sum((samples - ends) ** 2, 1))) / scale
    assert float(found) == pytest.approx(expected, rel=0.02)


def test_a_network_that_is_the_model_has_no_residual() -> None:
    with jax.enable_x64(True):
        exact = jk.record_denoised(MODEL, NOISE[:4], t_min=T_MIN, nodes=16, progress=False)
        np.testing.assert_allclose(exact.denoiser(MODEL).residuals, 0.0, atol=1e-12)


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_derivatives(power: float, record: jk.DenoisedRecord) -> None:
    """Against central differences."""
    with jax.enable_x64(True):
        bound = jk.SimulatedError(record, MIXTURE, power).bind(None, PROCESS, "dpmpp_2m")
        times = jnp.asarray(np.asarray(_schedule(4).times, np.float64))
        value = jax.jit(lambda t: bound(jk.Schedule(t)))
        gradient = jax.jit(jax.grad(lambda t: bound(jk.Schedule(t))))(times)
        for k in (1, 2, 3):
            h = 1e-5 * float(times[k])
            slope = (value(times.at[k].add(h)) - value(times.at[k].add(-h))) / (2.0 * h)
            assert float(gradient[k]) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (jk.Schedule([1.0, 0.4, T_MIN], 0.5), "stochasticity = 0.5: a record is of deterministic"),
        (jk.Schedule([1.0, 0.4, 0.1]), "times from 1 to 0.1 must be those of the record"),
        (jk.Schedule([0.9, 0.4, T_MIN]), "times from 0.9 to 0.001 must be those of the record"),
    ],
)
def test_schedules_that_a_record_does_not_follow_are_refused(
    schedule: jk.Schedule, message: str, record: jk.DenoisedRecord
) -> None:
    """Also when they are traced; by a record with sensitivities in the same way."""
    bound = jk.SimulatedError(record, MIXTURE).bind(None, PROCESS, "ddim")
    with pytest.raises(ValueError, match=message):
        bound(schedule)
    with pytest.raises(eqx.EquinoxRuntimeError, match="stochasticity 0 from t_max to its t_min"):
        eqx.filter_jit(bound)(schedule)
    sensitive = jk.record(MODEL, NOISE[:4], t_min=T_MIN, nodes=16, progress=False)
    with pytest.raises(ValueError, match=message):
        jk.RecordedError(sensitive).bind(None, PROCESS, "ddim")(schedule)


@pytest.mark.parametrize("sampler", ["rem", "tweedie"])
def test_samplers_that_run_every_sample_by_itself_are_refused(
    sampler: str, record: jk.DenoisedRecord
) -> None:
    with pytest.raises(ValueError, match="runs every sample by itself"):
        jk.SimulatedError(record, MIXTURE).bind(None, PROCESS, sampler)


@pytest.mark.slow
def test_it_is_an_objective(record: jk.DenoisedRecord) -> None:
    """What is minimised is better than every baseline on the network, from the recorded noise."""
    result = jk.optimize_schedule(
        MIXTURE.gaussian(),
        PROCESS,
        "ddim",
        4,
        t_min=T_MIN,
        objective=jk.SimulatedError(record, MIXTURE),
        progress=False,
    )
    schedules = {"found": result.schedule, **result.baseline_schedules}
    ends = np.asarray(record.ends)
    errors = {}
    for name, schedule in schedules.items():
        with jax.enable_x64(True):
            samples = jk.sample(NETWORK, "ddim", schedule, jnp.asarray(NOISE))
        errors[name] = float(np.mean(np.sum((np.asarray(samples) - ends) ** 2, 1)))
    assert min(errors, key=errors.__getitem__) == "found"


def test_rows_are_taken_with_their_residuals(record: jk.DenoisedRecord) -> None:
    with jax.enable_x64(True):
        corrected = record.denoiser(MODEL)
        x = jnp.asarray(NOISE)
        whole = corrected(x, jnp.asarray(0.3)).x0
        part = corrected.take(slice(3, 7))(x[3:7], jnp.asarray(0.3)).x0
    np.testing.assert_allclose(part, whole[3:7], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 4}, "nodes = 4 must be at least 8"),
        ({"t_min": 1.0}, "t_min = 1 must be"),
        ({"noise": NOISE[:1]}, r"noise has shape \(1, 2\)"),
        ({"batch": 0}, "batch = 0 must be at least 1"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    given = {"noise": NOISE, "t_min": T_MIN, "nodes": 8, "progress": False} | arguments
    with pytest.raises(ValueError, match=message):
        jk.record_denoised(NETWORK, **given)


def test_what_is_no_record_or_model_is_refused(
    record: jk.DenoisedRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    wrong: Any = MODEL
    with pytest.raises(ValueError, match="record must be a DenoisedRecord"):
        jk.SimulatedError(wrong, MIXTURE)
    with pytest.raises(ValueError, match="model must be a distribution"):
        jk.SimulatedError(record, wrong)
    with pytest.raises(ValueError, match="record is of VP"):
        jk.SimulatedError(record, MIXTURE).bind(None, jk.EDM(), "ddim")
    selection = jk.Selection(record=record)
    with pytest.raises(ValueError, match="record is of a network: pass its Denoiser"):
        jk.optimize_schedule(MIXTURE, PROCESS, "ddim", 3, t_min=T_MIN, selection=selection)
    with pytest.raises(ValueError, match=r"record is for schedules on recorded trajectories: .* 0"):
        jk.optimize_schedule(NETWORK, PROCESS, "ddim", 3, selection=selection, stochasticity=1.0)


def test_without_a_budget_no_evaluation_is_spent(record: jk.DenoisedRecord) -> None:
    """What is predicted of the schedules is what the network does: it is the mixture's denoised
    point with a residual in time alone."""

    def refuse(x: jax.Array, t: jax.Array) -> jax.Array:
        raise AssertionError("the network was run")

    denoiser = jk.Denoiser(refuse, PROCESS, "x0")
    selection = jk.Selection(denoiser=denoiser, record=record)
    result = jk.optimize_schedule(
        MIXTURE, PROCESS, "ddim", 4, t_min=T_MIN, selection=selection, progress=False
    )
    assert result.nfe == 0
    assert not result.verified
    assert "on the model of the network" in repr(result)
    predicted = result.comparison
    assert predicted is not None
    assert predicted.nfe == 0
    schedules = {name: c.schedule for name, c in result.candidates.items()}
    measured = jk.compare_schedules(NETWORK, "ddim", schedules, jnp.asarray(NOISE), progress=False)
    for name in ("geometric_mean", "rms"):
        values = measured.statistic(name)
        found = predicted.statistic(name)
        assert found == pytest.approx({label: values[label] for label in found}, rel=0.03)
    # this network is another one than the data's
    assert result.selected.startswith("simulated")
    rms = measured.statistic("rms")
    assert rms[result.selected] < min(rms[name] for name in result.baselines)
    # the accuracy of the record itself
    assert 0.0 < predicted.reference_error < 0.05


def test_what_data_speak_for_is_kept_unless_the_record_contradicts() -> None:
    network = jk.Denoiser(lambda x, t: MODEL(x, t).x0, PROCESS, "x0")
    noise: Any = np.random.default_rng(2).standard_normal((128, 2))
    made = jk.record_denoised(network, noise, t_min=T_MIN, nodes=24, progress=False)
    selection = jk.Selection(denoiser=network, record=made)
    result = jk.optimize_schedule(
        MIXTURE, PROCESS, "ddim", 4, t_min=T_MIN, selection=selection, progress=False
    )
    assert result.selected == "selected on a mixture"
    assert not any(MISLED in text for text in result.warnings)


def test_few_evaluations_say_where_data_mislead() -> None:
    """A network of wide data has its errors at high noise, where clusters have none."""
    exact = jk.Gaussian(np.zeros(2), [25.0, 16.0]).denoiser(PROCESS)
    network = jk.Denoiser(lambda x, t: exact(x, t).x0, PROCESS, "x0")
    noise: Any = np.random.default_rng(2).standard_normal((64, 2))
    selection = jk.Selection(denoiser=network, noise=noise, fine_tune=0)
    setting: dict[str, Any] = {"t_min": T_MIN, "selection": selection, "progress": False}
    sweep = jk.optimize_schedules(MIXTURE, PROCESS, ["ddim"], [6], budget=480, **setting)
    assert sweep.nfe <= 480
    result = sweep["ddim", 6]
    assert sum(MISLED in text for text in result.warnings) == 1
    comparison = result.comparison
    assert comparison is not None
    # the schedule of the data is shown beside the selected one
    assert "selected on a mixture" in comparison.names
