"""Schedules selected on a network or a mixture: candidates, criteria, fine-tuning, evidence."""

import dataclasses
import logging
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from jaxtyping import Array

import jaxkernels as jk
import jaxkernels.optimize._preparation
from jaxkernels._progress import Progress
from jaxkernels._types import constant
from jaxkernels.comparison import Reference, compare_to, solve_reference
from jaxkernels.exports import export
from jaxkernels.measurement import Measurement
from jaxkernels.optimize import Candidate, Origin
from jaxkernels.optimize._fine_tune import (
    _batch,
    _Criterion,
    default_fine_tuning,
    fine_tune,
    fine_tuning_nfe,
)
from jaxkernels.optimize._space import ScheduleSpace
from jaxkernels.optimize._trust import unproven, unresolved

PROCESS = jk.VP()
TARGET = jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05]))
NOISE = np.random.default_rng(0).standard_normal((32, 3))
MIXTURE = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.full((2, 2), 0.02))


def _score(x: Array, t: Array) -> Array:
    return TARGET.score(PROCESS, x, t)


def _mixture_score(x: Array, t: Array) -> Array:
    return MIXTURE.score(PROCESS, x, t)


DENOISER = jk.Denoiser(_score, PROCESS, "score")
MIXTURE_DENOISER = jk.Denoiser(_mixture_score, PROCESS, "score")


def _schedules(candidates: dict[str, Candidate]) -> dict[str, jk.Schedule]:
    return {label: candidate.schedule for label, candidate in candidates.items()}


@pytest.fixture(scope="module")
def on_mixture() -> jk.OptimizedSchedule:
    """A selection on a mixture, with a start that was given beside the baselines."""
    mine = jk.Schedule(np.linspace(1.0, 1e-3**0.4, 6) ** 2.5)
    return jk.optimize_schedule(
        MIXTURE,
        PROCESS,
        "dpmpp_2m",
        5,
        t_min=1e-3,
        starts={"mine": mine},
        selection=jk.Selection(noise=64),
        progress=False,
    )


def test_the_selection_to_sigma_zero_is_the_true_best() -> None:
    """EDM's own setting, t_min = 0: no baseline is nearer to the exact flow than the selected."""
    process, target = jk.EDM(80.0), jk.Gaussian(0.0, np.array([0.5, 0.25, 0.05]))
    x = jax.random.normal(jax.random.key(1), (64, 3)) * 80.0

    def network(x: Array, t: Array) -> Array:
        return target.denoiser(process)(x, t).x0

    denoiser = jk.Denoiser(network, process, "x0")
    selection = jk.Selection(denoiser=denoiser, noise=x)
    setting: dict[str, Any] = {"selection": selection, "starts": ["karras"], "progress": False}
    result = jk.optimize_schedule(target, process, "ddim", 6, t_min=0.0, **setting)
    flow = np.asarray(x) * np.sqrt(
        np.asarray(target.eigenvalues) / (np.asarray(target.eigenvalues) + 80.0**2)
    )

    def error(schedule: jk.Schedule) -> float:
        end = np.asarray(jk.sample(denoiser, "ddim", schedule, x, key=jax.random.key(0)))
        return float(np.mean(np.log(np.linalg.norm(end - flow, axis=1))))

    errors = {name: error(schedule) for name, schedule in result.baseline_schedules.items()}
    assert error(result.schedule) < min(errors.values())
    assert result.best_baseline == min(errors, key=errors.__getitem__)


def test_a_schedule_without_error_is_the_best() -> None:
    """Two points as data, to sigma = 0: steps end on them exactly; no logarithm of 0 matters."""
    points = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.zeros((2, 2)))
    selection = jk.Selection(noise=32, fine_tune=0)
    result = jk.optimize_schedule(
        points, PROCESS, "ddim", 3, t_min=0.0, selection=selection, progress=False
    )
    assert result.comparison is not None
    values = result.comparison.statistic("geometric_mean")
    assert values[result.selected] == min(values.values())
    for name in ("rms", "geometric_mean", "sliced_w2"):
        assert np.all(np.isfinite(result.comparison.ratio(name, result.selected, "log_snr")))


def test_stochasticity_is_selected_by_the_distribution_of_samples() -> None:
    """With one h per step candidates are compared by sliced W2 to data, on fresh noise."""
    rng = np.random.default_rng(0)
    data = 0.2 + rng.standard_normal((4000, 3)) * np.sqrt([2.0, 0.3, 0.05])
    result = jk.optimize_schedule(
        TARGET,
        PROCESS,
        "ddim",
        3,
        t_min=1e-3,
        stochasticity="optimize",
        selection=jk.Selection(denoiser=DENOISER, data=data, noise=512),
        progress=False,
    )
    comparison = result.comparison
    assert comparison is not None
    assert comparison.ranking_statistic == "sliced_w2"
    assert result.criterion == "sliced_w2"
    assert comparison.data_projections is not None
    assert comparison.data_projections.shape[0] == 4000
    values = comparison.statistic("sliced_w2")
    assert {"uniform", "uniform with stochasticity 1", "optimised and uniform"} <= set(values)
    best = min(result.baselines, key=values.__getitem__)
    ratio, standard_error = comparison.ratio("sliced_w2", result.selected, best)
    assert ratio < 1.0 + 2.0 * standard_error
    assert "of the sliced W2 of" in repr(result)


@pytest.mark.slow
def test_a_mixture_is_a_network_of_its_own(on_mixture: jk.OptimizedSchedule) -> None:
    """The comparison is that on a network with the mixture's score; nothing is verified."""
    result = on_mixture
    assert not result.verified
    assert "on the mixture" in repr(result)
    assert result.comparison is not None
    assert any(name.startswith("recorded") for name in result.comparison.names)
    value = result.comparison.statistic("geometric_mean")
    assert value[result.selected] < 1.05 * min(value[name] for name in result.baselines)

    x = jax.random.normal(jax.random.key(0), (128, 2))[64:]
    schedules = _schedules(result.candidates)
    again = jk.compare_schedules(MIXTURE_DENOISER, "dpmpp_2m", schedules, x)
    # the evidence is of other noise than the record
    assert not np.any(np.isin(_recorded_noise(), x))
    for name in ("rms", "geometric_mean"):
        theirs = again.statistic(name)
        ours = result.comparison.statistic(name)
        for label in ours:
            assert ours[label] == pytest.approx(
                theirs[label], rel=1e-3, abs=10 * result.comparison.reference_error
            )


class _Seen(Exception):
    """Holds the noise that a record starts from."""


def _recorded_noise() -> np.ndarray:
    """Where the record of a mixture starts, caught before it is made."""

    def caught(denoiser: object, noise: Array, **options: object) -> None:
        raise _Seen(np.asarray(noise))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxkernels.optimize._preparation, "record", caught)
        with pytest.raises(_Seen) as seen:
            jk.optimize_schedule(MIXTURE, PROCESS, "dpmpp_2m", 5, t_min=1e-3, progress=False)
    return seen.value.args[0]


@pytest.mark.slow
def test_every_candidate_has_its_origin(on_mixture: jk.OptimizedSchedule) -> None:
    """Each optimum, each baseline or start, and what lies between; then the fine-tuned one."""
    baselines = [*jk.schedules.BASELINES, "mine"]
    recorded = {"recorded, geometric mean", "recorded, mean", "recorded, root mean square"}
    origins = {
        "optimised": Origin.OPTIMUM,
        **dict.fromkeys(recorded, Origin.RECORDED),
        **dict.fromkeys(jk.schedules.BASELINES, Origin.BASELINE),
        "mine": Origin.START,
        "fine-tuned": Origin.FINE_TUNED,
    }
    for optimum in ("optimised", *recorded):
        for name in baselines:
            origins[f"{optimum} and {name}"] = Origin.INTERPOLATED
    candidates = on_mixture.candidates
    assert {label: candidate.origin for label, candidate in candidates.items()} == origins
    assert set(on_mixture.baselines) == set(baselines)
    assert on_mixture.comparison is not None
    assert set(on_mixture.comparison.names) == set(candidates)
    for label, candidate in candidates.items():
        assert candidate.label == label
        assert candidate.is_baseline == (label in baselines)
        if candidate.origin != Origin.INTERPOLATED:
            assert candidate.parents is None
            continue
        # VP reaches neither noise level 0 nor infinity, so that the coordinate is log sigma
        assert candidate.parents is not None
        assert label == " and ".join(candidate.parents)
        levels = [
            np.log(np.asarray(candidates[parent].schedule.sigmas(PROCESS)))
            for parent in candidate.parents
        ]
        np.testing.assert_allclose(
            np.log(np.asarray(candidate.schedule.sigmas(PROCESS))), np.mean(levels, 0), atol=1e-8
        )
    selected = candidates[on_mixture.selected].schedule
    np.testing.assert_array_equal(on_mixture.schedule.times, selected.times)


def test_noise_for_a_mixture_is_in_its_coordinates() -> None:
    """Given noise starts where it is, also if the mixture is run in its components' basis."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    plain = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], [[0.02, 0.3], [0.1, 0.05]])
    mixture = eqx.tree_at(lambda m: m.bases, plain, turn, is_leaf=lambda leaf: leaf is None)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 2)))
    selection = jk.Selection(noise=x)
    setting: dict[str, Any] = {"t_min": 1e-3, "starts": ["quadratic"], "progress": False}
    result = jk.optimize_schedule(mixture, PROCESS, "rk4", 2, selection=selection, **setting)
    assert result.comparison is not None
    # a record does not predict methods of order 4
    assert not any(name.startswith("recorded") for name in result.comparison.names)

    def network(x: Array, t: Array) -> Array:
        return mixture.score(PROCESS, x, t)

    again = jk.compare_schedules(
        jk.Denoiser(network, PROCESS, "score"), "rk4", _schedules(result.candidates), x[8:]
    )
    np.testing.assert_allclose(result.comparison.errors, again.errors, rtol=1e-3)


@pytest.mark.parametrize(
    ("selection", "arguments", "message"),
    [
        ({"data": NOISE[:, :2]}, {}, "data is for a network: a mixture is compared with its own"),
        (
            {},
            {"objective": jk.LocalError(score_error=jk.ScoreError.relative(0.1))},
            "score_error is for a Gaussian target or a selection on a network",
        ),
        ({"noise": NOISE}, {}, r"noise has shape \(32, 3\); for a mixture of 2 dimensions"),
        ({}, {"t_min": (1e-3, 1e-2)}, r"t_min = \(0.001, 0.01\) must be one number"),
        ({"fine_tune": 2}, {"stochasticity": "optimize"}, "fine_tune = 2 is for deterministic"),
    ],
)
def test_what_a_mixture_refuses(
    selection: dict[str, Any],
    arguments: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # before anything slow is done
    monkeypatch.setattr(jaxkernels.optimize._preparation, "record", None)
    setting: dict[str, Any] = {"t_min": 1e-3, **arguments}
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(
            MIXTURE, PROCESS, "ddim", 3, selection=jk.Selection(**selection), **setting
        )


def test_what_the_data_alone_do_not_show() -> None:
    """Half the baseline's error in all samples but one, which has the baseline's total error."""
    reference = np.random.default_rng(0).standard_normal((100, 4))
    spiky = np.full(100, 0.5)
    spiky[0] = 8.6  # root mean square 0.993 of the baseline's, due to one sample
    ends = np.stack([reference + 0.1, reference + 0.05])
    found = jk.Comparison(
        ("uniform", "ours"),
        np.stack([np.ones(100), spiky]),
        ends,
        reference,
        0.0,
        selected="ours",
    )
    (warning,) = unproven(found, ["uniform"])
    assert "beyond the standard error in rms (0.99 ± " in warning
    assert "geometric_mean" not in warning
    assert "sliced_w2" not in warning
    even = eqx.tree_at(lambda c: c.errors, found, np.stack([np.ones(100), np.full(100, 0.5)]))
    assert unproven(even, ["uniform"]) == ()
    # the best baseline itself gains nothing
    baseline = dataclasses.replace(even, selected="uniform")
    assert "geometric_mean (1.00 ± 0.00" in unproven(baseline, ["uniform"])[0]
    # 0.5 from a reference that is accurate to 0.3
    assert unresolved(even) == ()
    assert "not resolved" in unresolved(dataclasses.replace(even, reference_error=0.3))[0]


@pytest.mark.slow
def test_samples_stand_for_a_mixture_of_them() -> None:
    """Images as a target: selected as on the fitted mixture; a network is given noise like them."""
    rng = np.random.default_rng(0)
    images = (
        np.where(rng.random(160) < 0.4, -1.5, 1.5)[:, None] + 0.1 * rng.normal(size=(160, 4))
    ).reshape(-1, 2, 2)
    setting: dict[str, Any] = {"t_min": 1e-3, "starts": ["quadratic"], "progress": False}
    selection = jk.Selection(noise=16)
    result = jk.optimize_schedule(images, PROCESS, "heun", 2, selection=selection, **setting)
    mixture = jk.GaussianMixture.fit(images)
    fitted = jk.optimize_schedule(mixture, PROCESS, "heun", 2, selection=selection, **setting)
    np.testing.assert_array_equal(result.schedule.times, fitted.schedule.times)
    assert result.comparison is not None
    errors = result.comparison.statistic("geometric_mean")
    assert result.best_baseline == min(jk.schedules.BASELINES, key=errors.__getitem__)
    assert result.ratios["quadratic"] == pytest.approx(
        errors["quadratic"] / errors[result.selected]
    )

    def network(x: Array, t: Array) -> Array:
        assert x.shape[1:] == (2, 2)
        return mixture.score(PROCESS, x.reshape(-1, 4), t).reshape(x.shape)

    selection = jk.Selection(denoiser=jk.Denoiser(network, PROCESS, "score"), noise=64)
    options: dict[str, Any] = {"selection": selection, "stochasticity": 0.5, **setting}
    noisy = jk.optimize_schedule(images, PROCESS, "ddim", 2, **options)
    assert noisy.comparison is not None
    assert noisy.comparison.data_projections is not None  # of the samples themselves
    assert noisy.comparison.data_projections.shape[0] == 160


@pytest.mark.parametrize(
    "target", ["digits", [[None, None]], [1.0, 2.0], np.array([[1.0], [np.nan]])]
)
def test_what_is_no_target(target: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"target must be samples \(n, ...\), a Gaussian, a GaussianMixture or a Denoiser, "
        r"such as jk.from_diffusers\(pipe\): ",
    ):
        jk.optimize_schedule(target, PROCESS, "ddim", 3, t_min=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_with_a_network_the_result_is_the_best_candidate(sampler: str) -> None:
    """A network far from the Gaussian model: the score of a mixture of two narrow Gaussians."""
    seen: list[int] = []

    def network(x: Array, t: Array) -> Array:
        jax.debug.callback(lambda: seen.append(x.shape[0]))
        return MIXTURE.score(PROCESS, x, t)

    denoiser = jk.Denoiser(network, PROCESS, "score")
    result = jk.optimize_schedule(
        MIXTURE.gaussian(),
        PROCESS,
        sampler,
        5,
        t_min=1e-3,
        selection=jk.Selection(denoiser=denoiser, noise=48),
        progress=False,
    )
    jax.effects_barrier()
    assert result.nfe == sum(seen)
    comparison = result.comparison
    assert comparison is not None
    assert result.verified
    assert result.selected in comparison.names
    assert comparison.errors.shape[1] == 48
    for name in ("rms", "geometric_mean", "sliced_w2"):
        errors = comparison.statistic(name)
        best = min(result.baselines, key=errors.__getitem__)
        ratio, standard_error = comparison.ratio(name, result.selected, best)
        assert ratio < 1.0 + 2.0 * standard_error + 0.05
    # the comparison is of the schedule that is returned
    x = jax.random.normal(jax.random.key(0), (96, 2))[48:]
    again = jk.compare_schedules(denoiser, sampler, {"returned": result.schedule}, x)
    np.testing.assert_allclose(
        again.errors[0], comparison.errors[comparison.names.index(result.selected)], rtol=0.05
    )
    assert "on the network" in repr(result)


def test_fine_tuning_holds_on_other_noise() -> None:
    """Gradient steps lower the error on other noise, by what a wide model leaves to them."""
    setting: dict[str, Any] = {"t_min": 1e-3, "starts": ["quadratic"], "progress": False}
    run = (MIXTURE.gaussian(), PROCESS, "ddim", 4)
    selection = jk.Selection(denoiser=MIXTURE_DENOISER, noise=64, fine_tune=20)
    result = jk.optimize_schedule(*run, selection=selection, **setting)
    comparison = result.comparison
    assert comparison is not None
    assert result.selected == "fine-tuned"
    assert result.candidates["fine-tuned"].origin == Origin.FINE_TUNED
    np.testing.assert_array_equal(
        result.candidates["fine-tuned"].schedule.times, result.schedule.times
    )
    errors = comparison.statistic("geometric_mean")
    others = [name for name in comparison.names if name != "fine-tuned"]
    # 4 steps of 64 samples, references of 200 and 100: the selection and its evidence;
    # before and after the gradient steps a look at 32 and at 64 samples
    fixed = (
        sum(64 * (300 + 4 * count) for count in (len(others), len(others) + 1)) + 4 * 32 + 4 * 64
    )
    # each step a gradient of 32 samples, which counts as four evaluations, and a look at the others
    steps, rest = divmod(result.nfe - fixed, 4 * (4 * 32 + 32))
    assert rest == 0
    assert 0 < steps <= 20
    assert (
        errors["fine-tuned"] < 1.02 * errors[comparison.take(others).best(list(result.baselines))]
    )
    with pytest.raises(ValueError, match="a Gaussian target has no network to select on"):
        jk.optimize_schedule(*run, selection=jk.Selection(fine_tune=3), **setting)


SPACE = ScheduleSpace(
    jk.schedules.TimeCoordinate(
        PROCESS, np.asarray(PROCESS.t_max), np.asarray(0.0), np.asarray(np.inf)
    ),
    4,
    constant(np.zeros(4)),
    constant(1e-3),
    constant(np.zeros(2)),
    constant(0.0),
)


def _baselines_compared(
    denoiser: jk.AbstractDenoiser, x: Array
) -> tuple[dict[str, jk.Schedule], Reference, jk.Comparison]:
    """Two baselines, a reference solution from noise x, and their comparison with it."""
    baselines = {
        name: jk.schedules.BASELINES[name](PROCESS, 4, 1e-3) for name in ("quadratic", "cosine")
    }
    with Progress("comparing", False) as line:
        reference = solve_reference(denoiser, x, 200, (1.0, 1e-3))
        compared = compare_to(reference, jk.DDIM(), baselines, key=None, line=line, planned=0)
    return baselines, reference, compared


def _fine_tune(
    denoiser: jk.AbstractDenoiser, x: Array, criterion: str, solver: jk.Optax
) -> tuple[jk.Schedule, int, dict[str, jk.Schedule]]:
    """Fine-tune `quadratic` from noise x; with the NFE and the baselines of the comparison."""
    baselines, reference, compared = _baselines_compared(denoiser, x)
    start = baselines["quadratic"]
    sampler = jk.DDIM()
    found = fine_tune(reference, sampler, SPACE, start, compared, criterion, solver)
    return found, fine_tuning_nfe(len(x), 4, solver.max_iterations), baselines


@pytest.mark.parametrize("criterion", ["balanced", "median", "sliced_w2"])
def test_fine_tuning_descends_the_criterion(criterion: str) -> None:
    """On the half of the noise that gives no gradient; evaluated there by `compare_schedules`."""
    x = jax.random.normal(jax.random.key(5), (128, 2))
    better, nfe, baselines = _fine_tune(MIXTURE_DENOISER, x, criterion, default_fine_tuning(12))
    np.testing.assert_allclose(np.asarray(better.times)[[0, -1]], [1.0, 1e-3], rtol=1e-6)
    assert nfe == 64 * 4 + 12 * (64 * 4 + 4 * 64 * 4)
    found = jk.compare_schedules(
        MIXTURE_DENOISER, "ddim", {**baselines, "better": better}, x, progress=False
    )
    held_out = found.take(samples=slice(64, None))
    if criterion == "balanced":
        lowest = {
            name: min(held_out.statistic(name)[baseline] for baseline in baselines)
            for name in ("geometric_mean", "rms", "sliced_w2")
        }
        ratios = {
            label: [held_out.statistic(name)[label] / lowest[name] for name in lowest]
            for label in held_out.names
        }
        value = {label: np.mean(np.power(three, 6.0)) for label, three in ratios.items()}
    else:
        value = held_out.statistic(criterion)
    assert value["better"] < 0.95 * value["quadratic"]


def test_the_criterion_of_fine_tuning_calls_nothing_on_the_host() -> None:
    """JAX's compilation cache keeps no program with a callback: each run would compile it anew."""
    x = jax.random.normal(jax.random.key(5), (128, 2))
    _, reference, compared = _baselines_compared(MIXTURE_DENOISER, x)
    names = ("geometric_mean", "rms")
    criterion = _Criterion.of(reference, jk.DDIM(), SPACE, names)
    batch = _batch(reference, compared, names, slice(None))
    derivative = eqx.filter_value_and_grad(criterion)
    program, *_ = eqx.filter_make_jaxpr(derivative)(jnp.zeros(15), batch)
    assert "callback" not in str(program)


def test_one_program_of_fine_tuning_serves_all_steps_of_a_bucket(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x = jax.random.normal(jax.random.key(5), (30, 2))
    _, reference, compared = _baselines_compared(MIXTURE_DENOISER, x)
    solver = default_fine_tuning(2)

    def compiled(num_steps: int) -> int:
        caplog.clear()
        space = dataclasses.replace(
            SPACE, num_steps=num_steps, stochasticity_squared=constant(np.zeros(num_steps))
        )
        start = jk.schedules.quadratic(PROCESS, num_steps, 1e-3)
        fine_tune(reference, jk.DPMSolverPP2M(), space, start, compared, "rms", solver)
        messages = [record.getMessage() for record in caplog.records]
        return sum(m.startswith("Compiling") and "_advance" in m for m in messages)

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        assert compiled(3) == 1
        for num_steps in (2, 7, 16):
            assert compiled(num_steps) == 0


def test_fine_tuning_returns_the_best_schedule_that_it_saw() -> None:
    """Of one step far uphill the start is left, of one downhill its end; NFE are as counted."""
    seen: list[int] = []

    @jax.custom_vjp
    def watched(x: Array) -> Array:
        jax.debug.callback(lambda x: seen.append(x.shape[0]), x)
        return x

    watched.defvjp(lambda x: (watched(x), None), lambda _, g: (g,))
    denoiser = jk.Denoiser(lambda x, t: _mixture_score(watched(x), t), PROCESS, "score")
    x = jax.random.normal(jax.random.key(5), (64, 2))

    def tuned(rate: float) -> tuple[np.ndarray, int]:
        seen.clear()
        solver = jk.Optax(optax.sgd(rate), steps=1)
        schedule, nfe, _ = _fine_tune(denoiser, x, "balanced", solver)
        return np.asarray(schedule.times), nfe

    start = np.asarray(jk.schedules.quadratic(PROCESS, 4, 1e-3).times)
    same, nfe = tuned(-1e3)
    np.testing.assert_allclose(same, start, rtol=1e-4)
    assert nfe == 32 * 4 + (32 * 4 + 4 * 32 * 4)
    jax.effects_barrier()
    # besides the reference and two baselines: two looks, and the forward pass of a gradient (what
    # its backward pass computes again is not seen)
    forward = sum(seen) - 64 * (300 + 2 * 4)
    assert forward == 4 * 32 * (1 + 1 + 1)
    # a single step is tried as well as counted
    assert not np.allclose(tuned(0.05)[0], start, rtol=1e-3)


def test_fine_tuning_says_what_it_needs() -> None:
    def network(x: Array, t: Array) -> Array:
        return -x + jnp.linalg.norm(0.0 * x)  # a norm has no derivative at 0

    denoiser = jk.Denoiser(network, PROCESS, "score")
    selection = jk.Selection(denoiser=denoiser, noise=16, fine_tune=2)
    setting: dict[str, Any] = {"t_min": 1e-3, "selection": selection, "progress": False}
    message = "fine_tune: the gradient of the error in the times is not finite"
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(jk.Gaussian(0.0, np.ones(2)), PROCESS, "ddim", 3, **setting)


_NO_NETWORK = r"selection: a Gaussian target has no network to select on; pass Selection\(denoiser"


@pytest.mark.parametrize(
    ("selection", "arguments", "message"),
    [
        (
            {},
            {"stochasticity": 1.0},
            r"stochastic schedule on a network needs Selection\(data=...\)",
        ),
        ({}, {"stochasticity": "optimize"}, r"on a network needs Selection\(data=...\)"),
        (
            {"data": NOISE, "fine_tune": 2},
            {"stochasticity": 1.0},
            "fine_tune = 2 is for deterministic schedules",
        ),
        ({"denoiser": None, "data": NOISE}, {}, _NO_NETWORK),
        ({"data": NOISE[:, :2]}, {}, r"data has shape \(32, 2\); it must be \(n, 3\) with n >= 2"),
        ({}, {"t_min": (1e-3, 1e-2)}, "must be one number"),
        ({"noise": 2}, {}, "noise = 2"),
        ({"noise": np.full((16, 3), np.nan)}, {}, r"noise\[0, 0\] = nan"),
        ({"denoiser": None, "noise": 64}, {}, _NO_NETWORK),
        ({"denoiser": None}, {}, _NO_NETWORK),
        ({"noise": NOISE[:4]}, {}, "n >= 8"),
        ({"criterion": "rsm"}, {}, "Did you mean 'rms'"),
        (
            {"criterion": "rms", "data": NOISE},
            {"stochasticity": 1.0},
            "criterion = 'rms' is for deterministic schedules",
        ),
        ({"denoiser": None, "criterion": "rms"}, {}, _NO_NETWORK),
        (
            {"denoiser": jk.Denoiser(_score, jk.VP(beta_max=10.0), "score")},
            {},
            r"selection.denoiser is a network of VP\(.*; process is VP\(",
        ),
        ({"fine_tune": -1}, {}, "fine_tune = -1"),
    ],
)
def test_refusals_of_the_optimiser(
    selection: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    setting: dict[str, Any] = {"t_min": 1e-3, "progress": False, **arguments}
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(
            TARGET,
            PROCESS,
            "ddim",
            3,
            selection=jk.Selection(**{"denoiser": DENOISER, **selection}),
            **setting,
        )


class _Counted:
    """A network that counts its calls, which are none where an argument is refused."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Array, t: Array) -> Array:
        self.calls += 1
        return _score(x, t)


def test_records_and_samples_have_the_dimensions_of_the_network() -> None:
    """Before the network is called."""
    counted = _Counted()
    network = jk.Denoiser(counted, PROCESS, "score")
    exact = {d: jk.Gaussian(np.zeros(d), np.ones(d)).denoiser(PROCESS) for d in (3, 5)}
    noise = jnp.asarray(np.random.default_rng(1).standard_normal((16, 5)))
    setting: Any = {"t_min": 1e-3, "nodes": 16, "progress": False}
    large = jk.record(exact[5], noise, **setting)
    denoised = {d: jk.record_denoised(exact[d], noise[:, :d], **setting) for d in (3, 5)}
    rows = np.random.default_rng(2).standard_normal((40, 5))
    turned = jk.Gaussian(np.zeros(3), [2.0, 0.3, 0.05], basis=np.eye(3))
    on_noise: Any = {"denoiser": network, "noise": NOISE}
    cases: Any = [
        (network, {"noise": NOISE, "record": large}, None, "selection.record has 5 .*noise, 3"),
        (exact[3], {"record": large}, None, "selection.record has 5 dimensions; .* target, 3"),
        (network, {"noise": NOISE, "record": denoised[5]}, None, "record has 5 .*noise, 3"),
        (TARGET, {**on_noise, "record": large}, None, "selection.record has 5 .*noise, 3"),
        (rows, on_noise, None, "target has 5 dimensions; .* selection.noise, 3"),
        (rows, {"denoiser": network, "record": denoised[3]}, None, "record has 3 .* target, 5"),
        (MIXTURE, {"denoiser": exact[5], "record": large}, None, "record has 5 .* target, 2"),
        (turned, None, jk.RecordedError(large), "objective.record has 5 .* target, 3"),
    ]
    for target, options, objective, message in cases:
        selection = None if options is None else jk.Selection(**options)
        with pytest.raises(ValueError, match=message):
            jk.optimize_schedule(
                target, PROCESS, "ddim", 3, t_min=1e-3, objective=objective, selection=selection
            )
    assert counted.calls == 0


def test_options_belong_to_what_they_are_of() -> None:
    """A prediction type is a network's, a variance factor the local error's, and no other's."""
    with pytest.raises(ValueError, match=r"variance_factor = 0\.5"):
        jk.LocalError(variance_factor=0.5)
    terminal: Any = jk.TerminalError
    with pytest.raises(TypeError, match="variance_factor"):
        terminal(variance_factor=2.0)
    selection: Any = jk.Selection
    with pytest.raises(TypeError, match="prediction_type"):
        selection(prediction_type="x0")


def test_refusals_of_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this suite's type checks would catch, and a user meets without them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    number: Any = 64.0
    with pytest.raises(
        ValueError, match=r"noise has shape \(\); it must be an integer, or initial"
    ):
        jk.Selection(denoiser=DENOISER, noise=number)
    network: Any = _score
    with pytest.raises(ValueError, match=r"denoiser must be a Denoiser\("):
        jk.Selection(denoiser=network)
    with pytest.raises(ValueError, match=r"record must be a TrajectoryRecord, .* got True"):
        jk.Selection(record=True)
    records: Any = "all"
    with pytest.raises(ValueError, match=r"record must be a TrajectoryRecord, .* got str"):
        jk.Selection(record=records)
    mine: Any = {"mine": [1.0, 0.5, 0.2, 1e-3]}
    selection: Any = jk.Selection(denoiser=DENOISER)
    run = (TARGET, PROCESS, "ddim", 3)
    with pytest.raises(ValueError, match=r"starts\['mine'\] must be a Schedule; got list"):
        jk.optimize_schedule(*run, t_min=1e-3, selection=selection, starts=mine)
    selection = DENOISER
    with pytest.raises(ValueError, match=r"selection must be a Selection\(...\); got Denoiser"):
        jk.optimize_schedule(*run, t_min=1e-3, selection=selection)
    several: Any = [jk.Schedule([1.0, 1e-3])]
    with pytest.raises(ValueError, match=r"schedules = .* must be"):
        jk.compare_schedules(DENOISER, "ddim", several, jnp.asarray(NOISE))
    edm: Any = "edm"
    schedule, key = jk.Schedule([1.0, 0.1]), jax.random.key(0)
    for call in (
        lambda: jk.sample(
            jk.Denoiser(_score, edm, "score"), jk.DDIM(), schedule, jnp.asarray(NOISE), key=key
        ),
        lambda: jk.record(jk.Denoiser(_score, edm, "score"), jnp.asarray(NOISE), t_min=0.1),
        lambda: jk.measure(jk.Denoiser(_score, edm, "score"), NOISE, [1.0, 0.5], key=key),
        lambda: export(schedule, edm, "comfyui"),
        lambda: jk.schedules.karras(edm, 3, 0.1),
    ):
        with pytest.raises(
            ValueError, match=r"process must be a forward process such as VP\(\); got 'edm'"
        ):
            call()
    mixture: Any = jk.GaussianMixture([1.0], np.zeros((1, 3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="target must be a Gaussian; got GaussianMixture"):
        jk.measure(DENOISER, NOISE, [1.0, 0.5], key=key, target=mixture)
    with pytest.raises(ValueError, match="target must be a Gaussian; got GaussianMixture"):
        Measurement.from_losses(
            PROCESS, [1.0, 0.5], [1.0, 1.0], prediction_type="x0", averaged_over=1, target=mixture
        )


def test_the_selection_keeps_the_callers_precision(float32: None) -> None:
    # a network of this precision
    target = jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05]))
    process = jk.VP()

    def score(x: Array, t: Array) -> Array:
        return target.score(process, x, t)

    selection = jk.Selection(denoiser=jk.Denoiser(score, process, "score"), noise=8)
    setting: dict[str, Any] = {"t_min": 1e-3, "selection": selection, "progress": False}
    result = jk.optimize_schedule(target, process, "ddim", 3, **setting)
    assert result.schedule.times.dtype == jnp.float32


def test_fine_tuning_keeps_the_callers_precision() -> None:
    """float64, with a network and noise of float32."""
    exact = TARGET.denoiser(PROCESS).astype(jnp.float32)

    def network(x: Array, t: Array) -> Array:
        assert x.dtype == jnp.float32
        return exact(x, t).x0

    x = jnp.asarray(NOISE, jnp.float32)
    denoiser = jk.Denoiser(network, PROCESS, "x0")
    selection = jk.Selection(denoiser=denoiser, noise=x, fine_tune=2)
    setting: dict[str, Any] = {"t_min": 1e-3, "selection": selection, "progress": False}
    result = jk.optimize_schedule(TARGET, PROCESS, "ddim", 3, **setting)
    times = result.candidates["fine-tuned"].schedule.times
    assert times.dtype == np.float64
    assert float(times[-1]) == 1e-3


def _assert_marginal(x: Any, mean: Any, variance: Any) -> None:
    """Within five standard errors of the exact mean and variance of noised data."""
    n = np.shape(x)[0]
    x = np.asarray(x, np.float64).reshape(n, -1)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / n))
    fourth = np.mean((x - x.mean(0)) ** 4, 0) - x.var(0) ** 2
    assert np.all(np.abs(x.var(0) - variance) < 5 * np.sqrt(fourth / n))


HALF = jk.VP(t_max=0.3)


@pytest.mark.parametrize("kind", ["mixture", "samples", "gaussian", "network"])
def test_on_a_sub_range_everything_starts_from_noised_data(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded, selected and compared has the exact marginal at t_max."""
    a, s = float(HALF.signal(0.3)), float(HALF.noise(0.3))
    samples = np.asarray(MIXTURE.sample(jax.random.key(5), 4096), np.float64)
    target: Any = {"mixture": MIXTURE, "samples": samples, "network": MIXTURE_DENOISER}.get(kind)
    selection = jk.Selection(noise=2000, fine_tune=0)
    mean, variance = a * samples.mean(0), a**2 * samples.var(0) + s**2
    if kind == "mixture":
        turned = MIXTURE.in_eigenbasis()
        mean = a * np.asarray(turned.weights) @ np.asarray(turned.means)
        variance = a**2 * np.asarray(turned.gaussian().eigenvalues) + s**2
    if kind == "gaussian":
        target = TARGET
        selection = jk.Selection(denoiser=DENOISER, noise=2000)
        mean = a * np.asarray(TARGET.mean)
        variance = a**2 * np.asarray(TARGET.eigenvalues) + s**2
    if kind == "network":
        selection = jk.Selection(noise=2000, data=samples)
    started = {}

    def recorded(denoiser: Any, noise: Any, **options: Any) -> Any:
        started["recorded"] = noise
        return jk.record(denoiser, noise[:8], **{**options, "nodes": 8})

    def referenced(denoiser: Any, noise: Any, *rest: Any) -> Any:
        started["selected"] = noise
        assert float(denoiser.process.t_max) == 0.3
        return solve_reference(denoiser, noise[:8], *rest)

    monkeypatch.setattr(jaxkernels.optimize._preparation, "record", recorded)
    monkeypatch.setattr(jaxkernels.optimize._selection, "solve_reference", referenced)
    result = jk.optimize_schedule(
        target, HALF, "ddim", 2, t_min=1e-3, selection=selection, progress=False
    )
    assert float(result.schedule.times[0]) == pytest.approx(0.3)
    assert set(started) == {"selected"} | ({"recorded"} if kind != "gaussian" else set())
    if kind == "samples":
        # in the eigenbasis of the mixture that was fitted to them
        size = float(np.mean(np.sum(np.asarray(started["selected"], float) ** 2, 1)))
        assert size == pytest.approx(np.sum(variance + mean**2), rel=0.1)
        return
    for x in started.values():
        _assert_marginal(x, mean, variance)


def test_a_network_on_a_sub_range_needs_data() -> None:
    """Or noised data, and it never runs beyond its range."""
    setting: dict[str, Any] = {"t_min": 1e-3, "progress": False}
    for selection in (None, jk.Selection(noise=64)):
        with pytest.raises(ValueError, match=r"noised data at t_max = 0.3; pass Selection\(data"):
            jk.optimize_schedule(MIXTURE_DENOISER, HALF, "ddim", 2, selection=selection, **setting)
    expert = jk.Denoiser(_mixture_score, HALF, "score")
    with pytest.raises(ValueError, match=r"target is a network of VP\(.*full_t_max=1\)"):
        jk.optimize_schedule(expert, PROCESS, "ddim", 2, **setting)


def test_unknown_input_shape_is_refused() -> None:
    target = jk.Gaussian(0.0, [1.0], weights=[3.0])
    selection = jk.Selection(denoiser=DENOISER)
    with pytest.raises(ValueError, match=r"pass Selection\(noise=...\) as an array"):
        jk.optimize_schedule(target, PROCESS, "ddim", 3, t_min=1e-3, selection=selection)


@pytest.mark.slow
def test_a_network_is_a_target_of_its_own() -> None:
    """Only a network and initial noise: verified, and no baseline is better on the evidence."""
    x = jax.random.normal(jax.random.key(3), (128, 2))
    selection = jk.Selection(noise=x)
    result = jk.optimize_schedule(
        MIXTURE_DENOISER, PROCESS, "dpmpp_2m", 5, t_min=1e-3, selection=selection, progress=False
    )
    assert result.verified
    assert "on the network" in repr(result)
    found = result.comparison
    assert found is not None
    assert found.errors.shape[1] == 64
    assert any(name.startswith("recorded") for name in found.names)
    for name in ("rms", "geometric_mean", "sliced_w2"):
        errors = found.statistic(name)
        best = min(result.baselines, key=errors.__getitem__)
        ratio, standard_error = found.ratio(name, result.selected, best)
        assert ratio < 1.0 + 2.0 * standard_error
    _assert_no_worse_than_the_mixture(result, x[:64])
    # the evidence is of the second half of the noise that was given
    again = jk.compare_schedules(
        MIXTURE_DENOISER, "dpmpp_2m", {"returned": result.schedule}, x[64:]
    )
    row = found.names.index(result.selected)
    np.testing.assert_allclose(again.errors[0], found.errors[row], rtol=1e-6)
    # the Gaussian that is solved for is that of the network's samples
    exact = MIXTURE.gaussian()
    np.testing.assert_allclose(
        np.sort(result.target.eigenvalues), np.sort(exact.eigenvalues), rtol=0.3, atol=0.03
    )


def _assert_no_worse_than_the_mixture(result: jk.OptimizedSchedule, x: Array) -> None:
    """What a mixture fitted to samples selects is beaten on the network that selects, or kept."""
    (mixture,) = (c for c in result.candidates.values() if c.origin is Origin.MIXTURE)
    schedules = {**result.baseline_schedules, "mixture": mixture.schedule, "own": result.schedule}
    found = jk.compare_schedules(MIXTURE_DENOISER, "dpmpp_2m", schedules, x, progress=False)
    ratios = []
    for name in ("rms", "geometric_mean", "sliced_w2"):
        errors = found.statistic(name)
        best = min(errors[baseline] for baseline in result.baselines)
        ratios.append([errors["mixture"] / best, errors["own"] / best])
    mixture_harm, own_harm = np.prod(np.maximum(ratios, 1.0), 0)
    mixture_mean, own_mean = np.mean(np.power(ratios, 6.0), 0)
    assert own_harm < mixture_harm or own_mean <= mixture_mean


def test_an_exact_denoiser_is_its_distribution() -> None:
    """Of a Gaussian, it is the network too: the optimum is solved for that Gaussian, not a fit."""
    setting: dict[str, Any] = {"t_min": 1e-3, "starts": ["quadratic"], "progress": False}
    selection = jk.Selection(noise=16, record=False)
    result = jk.optimize_schedule(
        TARGET.denoiser(PROCESS), PROCESS, "ddim", 3, selection=selection, **setting
    )
    plain = jk.optimize_schedule(TARGET, PROCESS, "ddim", 3, **setting)
    optimum = result.candidates["optimised"].schedule
    np.testing.assert_allclose(optimum.times, plain.schedule.times, rtol=1e-10)
    assert result.comparison is not None
    assert result.comparison.errors.shape[1] == 16


@pytest.mark.parametrize(
    ("denoiser", "selection", "message"),
    [
        (
            jk.Denoiser(_score, jk.VP(beta_max=10.0), "score"),
            {"noise": NOISE},
            r"target is a network of VP\(.*; process is VP\(",
        ),
        (
            TARGET.denoiser(jk.EDM(80.0)),
            {"noise": NOISE},
            r"target is a network of EDM\(.*; process is VP\(",
        ),
        (DENOISER, {}, r"input shape .* is unknown; pass Selection\(noise=...\)"),
        (DENOISER, {"noise": 64}, r"input shape .* is unknown; pass Selection\(noise=...\)"),
        (DENOISER, {"noise": NOISE, "denoiser": DENOISER}, "the target is a network already"),
    ],
)
def test_what_a_network_as_target_refuses(
    denoiser: jk.AbstractDenoiser, selection: dict[str, Any], message: str
) -> None:
    setting: dict[str, Any] = {"t_min": 1e-3, "selection": jk.Selection(**selection)}
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(denoiser, PROCESS, "ddim", 3, progress=False, **setting)


def test_the_default_fine_tuning_is_compiled_once():
    """A transformation made anew has new functions, and with them a new program."""
    assert default_fine_tuning(40) is default_fine_tuning(40)
