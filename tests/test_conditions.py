"""Conditional networks: rows keep their conditions, evaluations are counted, advantages differ."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels.comparison._conditions import variance_between

PROCESS = jk.VP()
T_MIN = 1e-3
# of a Gaussian for each condition: the exact denoised point of N(m, v) is known in closed form
MEANS = np.array([[0.0, 0.0], [3.0, -1.0], [-2.0, 4.0]])
VARIANCES = np.array([[1.0, 0.1], [0.2, 0.2], [0.05, 1.5]])
NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((24, 2)))


def _denoised(x: Array, t: Array, condition: tuple[Array, Array]) -> Array:
    mean, variance = condition
    a, s = PROCESS.signal(t), PROCESS.noise(t)
    return mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)


CONDITIONAL = jk.Denoiser(_denoised, PROCESS, "x0", conditions=(MEANS, VARIANCES))
ALONE = [jk.Gaussian(m, v).denoiser(PROCESS) for m, v in zip(MEANS, VARIANCES)]


def _ends_one_by_one(
    schedule: jk.Schedule, noise: Array | np.ndarray, first: int = 0
) -> np.ndarray:
    """Samples of the condition of each row, by the denoiser of that condition alone."""
    rows = [
        jk.sample(ALONE[(first + i) % 3], "ddim", schedule, jnp.asarray(x)[None])[0]
        for i, x in enumerate(noise)
    ]
    return np.stack(rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(2), [0, 1]),
        (slice(2, None), [2, 0, 1]),
        (slice(4, 6), [1, 2]),
        (np.array([5, 0, 1]), [2, 0, 1]),
        (jnp.array([5, 0, 1]), [2, 0, 1]),
        ([7], [1]),
    ],
)
def test_rows_keep_their_conditions(rows: Any, expected: list[int]) -> None:
    assert CONDITIONAL.take(rows).condition_numbers.tolist() == expected


def test_samples_are_those_of_each_condition_alone() -> None:
    schedule = jk.schedules.log_snr(PROCESS, 5, T_MIN)
    found = jk.sample(CONDITIONAL, "ddim", schedule, NOISE)
    np.testing.assert_allclose(found, _ends_one_by_one(schedule, NOISE), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", [5, 7, 24])
def test_a_record_in_batches_has_the_same_conditions(batch: int) -> None:
    """Of sizes that are no multiples of the number of conditions."""
    run: dict[str, Any] = {"t_min": T_MIN, "nodes": 16, "batch": batch, "progress": False}
    whole: dict[str, Any] = {**run, "batch": 24}
    fine: dict[str, Any] = {**run, "nodes": 64}
    for record in (jk.record, jk.record_denoised):
        np.testing.assert_allclose(
            record(CONDITIONAL, NOISE, **run).ends,
            record(CONDITIONAL, NOISE, **whole).ends,
            rtol=1e-9,
        )
    # near the exact solution of each condition: the probability flow of a Gaussian is affine
    a, s = float(PROCESS.signal(T_MIN)), float(PROCESS.noise(T_MIN))
    first_a, first_s = float(PROCESS.signal(1.0)), float(PROCESS.noise(1.0))
    number = np.arange(24) % 3
    ratio = np.sqrt((a**2 * VARIANCES + s**2) / (first_a**2 * VARIANCES + first_s**2))[number]
    exact = a * MEANS[number] + ratio * (NOISE - first_a * MEANS[number])
    ends = jk.record(CONDITIONAL, NOISE, **fine).ends
    np.testing.assert_allclose(ends, exact, atol=1e-4)


def test_the_evidence_has_the_conditions_of_its_rows() -> None:
    """Rows of noise that select, 13, are no multiple of the number of conditions."""
    noise = jnp.asarray(np.random.default_rng(1).standard_normal((25, 2)))
    selection = jk.Selection(denoiser=CONDITIONAL, noise=noise, record=False)
    gaussian = jk.Gaussian(MEANS.mean(0), VARIANCES.mean(0))
    run = (gaussian, PROCESS, "ddim", 4)
    found = jk.optimize_schedule(*run, t_min=T_MIN, selection=selection, progress=False)
    evidence = found.comparison
    assert evidence is not None
    assert evidence.conditions is not None
    fresh = np.asarray(noise[13:])
    assert evidence.conditions.tolist() == [(13 + i) % 3 for i in range(12)]
    fine = jk.schedules.log_snr(PROCESS, 200, T_MIN)
    reference = _ends_one_by_one(fine, fresh, first=13)
    ends = _ends_one_by_one(found.schedule, fresh, first=13)
    scale = np.sqrt(np.sum(reference.var(0)))
    row = evidence.names.index(found.selected)
    # the reference is DPM-Solver++(2M) there and DDIM here
    expected = np.linalg.norm(ends - reference, axis=1) / scale
    np.testing.assert_allclose(evidence.errors[row], expected, atol=0.01)
    assert "3 conditions" in repr(found)


def test_a_budget_counts_every_evaluation_and_keeps_conditions() -> None:
    """With guidance a call takes two: the budget is of evaluations, and never exceeded."""
    calls: list[int] = []

    def counted(x: Array, t: Array, condition: tuple[Array, Array]) -> Array:
        jax.debug.callback(lambda n=x.shape[0]: calls.append(2 * n))
        return _denoised(x, t, condition)

    guided = jk.Denoiser(counted, PROCESS, "x0", conditions=(MEANS, VARIANCES), evaluations=2)
    selection = jk.Selection(noise=jax.random.normal(jax.random.key(1), (64, 2)))
    run = (guided, PROCESS, "ddim", 3)
    options = {"t_min": T_MIN, "selection": selection, "progress": False}
    found = jk.optimize_schedule(*run, budget=8_000, **options)
    jax.effects_barrier()
    assert found.nfe == sum(calls) <= 8_000
    evidence = found.comparison
    plan = found.plan
    assert evidence is not None
    assert evidence.conditions is not None
    assert plan is not None
    numbers = (plan.trajectories + np.arange(plan.evidence)) % 3
    assert evidence.conditions.tolist() == numbers.tolist()
    with pytest.raises(ValueError, match=r"budget = 100 must be at least \d+ NFE"):
        jk.optimize_schedule(*run, budget=100, **options)


def test_counts_are_of_evaluations() -> None:
    guided = jk.Denoiser(_denoised, PROCESS, "x0", conditions=(MEANS, VARIANCES), evaluations=2)
    schedules = {"a": jk.schedules.log_snr(PROCESS, 4, T_MIN)}
    run = {"t_min": T_MIN, "nodes": 16, "progress": False}
    for count in (
        lambda d: jk.compare_schedules(d, "ddim", schedules, NOISE, progress=False).nfe,
        lambda d: jk.record(d, NOISE, **run).nfe,
        lambda d: jk.record_denoised(d, NOISE, **run).nfe,
        lambda d: jk.compare_samplers(d, ["ddim"], [4], NOISE, t_min=T_MIN, progress=False).nfe,
        lambda d: jk.measure(d.take([0]), NOISE, [0.5], key=jax.random.key(0), progress=False).nfe,
    ):
        assert count(guided) == 2 * count(CONDITIONAL) > 0


def test_the_deviation_between_conditions_is_unbiased() -> None:
    """Of groups of 1 to 6 draws; without any difference the estimate is near 0."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), rng.integers(1, 7, 400))
    rest = 0.5 * rng.standard_normal(len(groups))
    means = 0.3 * rng.standard_normal(400)
    # the standard error of a variance estimated from 400 groups is about .01
    assert variance_between(means[groups] + rest, groups) == pytest.approx(0.09, abs=0.03)
    assert variance_between(rest, groups) < 0.02
    assert np.isnan(variance_between(rest[:3], np.arange(3)))
    assert np.isnan(variance_between(rest[:3], np.zeros(3, int)))
    assert np.isnan(variance_between(np.array([1.0, np.nan, 2.0, 0.0]), np.array([0, 0, 1, 1])))


def test_ratios_by_condition_are_those_of_each_alone() -> None:
    schedules = {name: make(PROCESS, 4, T_MIN) for name, make in jk.schedules.BASELINES.items()}
    found = jk.compare_schedules(CONDITIONAL, "ddim", schedules, NOISE, progress=False)
    ratios = found.ratio_by_condition("rms", "karras", "uniform")
    for i, denoiser in enumerate(ALONE):
        alone = jk.compare_schedules(denoiser, "ddim", schedules, NOISE[i::3], progress=False)
        expected = alone.ratio("rms", "karras", "uniform").value
        assert ratios[i].value == pytest.approx(expected, rel=1e-6)
    assert found.num_conditions == 3
    assert "3 conditions: " in repr(found)


@pytest.mark.parametrize(
    ("conditions", "shapes"), [(3.0, r"\(\)"), ((MEANS, VARIANCES[:2]), r"\(3, 2\), \(2, 2\)")]
)
def test_conditions_must_have_equally_many_rows(conditions: object, shapes: str) -> None:
    with pytest.raises(ValueError, match=f"conditions must be arrays.*{shapes}"):
        jk.Denoiser(_denoised, PROCESS, "x0", conditions=conditions)


def test_samples_of_one_condition_are_measured() -> None:
    with pytest.raises(ValueError, match=r"denoiser has 3 conditions.*denoiser\.take"):
        jk.measure(CONDITIONAL, np.asarray(NOISE), [0.5], key=jax.random.key(0))


def test_what_has_no_conditions_says_so() -> None:
    schedules = {"a": jk.schedules.log_snr(PROCESS, 4, T_MIN)}
    found = jk.compare_schedules(ALONE[0], "ddim", schedules, NOISE, progress=False)
    assert found.num_conditions == 1
    with pytest.raises(ValueError, match="conditions: the samples of this comparison have none"):
        found.ratio_by_condition("rms", "a", "a")


def test_experts_keep_conditions() -> None:
    """Rows are sorted by their expert and evaluated in blocks."""
    both = [CONDITIONAL, CONDITIONAL]
    experts = jk.routing.Experts(both, lambda x, t: jnp.stack([x[:, 0], -x[:, 0]], -1))
    schedule = jk.schedules.log_snr(PROCESS, 5, T_MIN)
    found = jk.routing.sample(
        experts,
        jk.routing.StochasticSwitching(),
        "ddim",
        schedule,
        NOISE,
        key=jax.random.key(0),
    )
    expected = _ends_one_by_one(schedule, NOISE)
    np.testing.assert_allclose(found.points, expected, rtol=1e-9, atol=1e-12)
    assert experts.take(slice(1, 2)).condition_numbers.tolist() == [1]
    assert experts.nfe == 2
