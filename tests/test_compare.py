"""Schedules compared on a network: distances to the exact flow, statistics, and the choice among candidates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import jaxkernels as jk

PROCESS = jk.VP()
TARGET = jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05]))
NOISES = np.random.default_rng(0).standard_normal((32, 3))


def _score(x: Array, t: Array) -> Array:
    return TARGET.score(PROCESS, x, t)


def _grids(steps: int) -> dict[str, jk.Schedule]:
    return {name: getattr(jk.schedules, name)(PROCESS, steps, 1e-3) for name in ("uniform", "quadratic", "log_snr")}


def test_errors_are_distances_to_the_exact_flow() -> None:
    """With a Gaussian score the flow is known: (x - a mu) / sqrt(Sigma) is constant along it."""
    schedules = _grids(8)
    found = jk.compare_schedules(_score, PROCESS, "ddim", schedules, jnp.asarray(NOISES))
    times = np.array([1.0, 1e-3])
    a, level = np.asarray(PROCESS.signal(times)), np.sqrt(np.asarray(TARGET.marginal_variance(PROCESS, times)))
    exact = a[1] * 0.2 + (NOISES - a[0] * 0.2) / level[0] * level[1]
    size = np.sqrt(np.sum(exact.var(0)))
    for name, errors in zip(found.names, found.errors, strict=True):
        x = np.asarray(jk.sample(_score, PROCESS, "ddim", schedules[name], jax.random.key(0), jnp.asarray(NOISES)))
        np.testing.assert_allclose(errors, np.linalg.norm(x - exact, axis=1) / size, rtol=2e-3)
    assert found.reference_error < 1e-3
    assert found.statistic("rms")["quadratic"] == pytest.approx(np.sqrt(np.mean(found.errors[1] ** 2)))
    assert found.statistic("median")["quadratic"] == pytest.approx(np.median(found.errors[1]))
    assert found.statistic("log_mean")["quadratic"] == pytest.approx(np.exp(np.mean(np.log(found.errors[1]))))
    assert "against" in repr(found)


def test_ratios_come_with_the_error_of_paired_noises() -> None:
    """Errors that are proportional noise by noise have a ratio without any error."""
    rng = np.random.default_rng(0)
    errors, reference = rng.exponential(size=50), rng.standard_normal((50, 4))
    ends = reference + np.array([0.1, 0.2, 0.0])[:, None, None]
    found = jk.Comparison(("a", "b", "c"), np.stack([errors, 2.0 * errors, np.roll(errors, 1)]), ends, reference, 0.0)
    value, spread = found.ratio("rms", "b", "a")
    assert value == pytest.approx(2.0)
    assert spread < 1e-12
    assert found.ratio("log_mean", "c", "a")[1] > 0.05
    # a shift moves every component's law by itself
    assert found.statistic("sliced_w2") == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.0})
    assert found.ratio("sliced_w2", "b", "a")[0] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="Did you mean 'log_mean'"):
        found.ratio("logmean", "a", "b")


def test_the_best_schedule_harms_nothing() -> None:
    """Typical samples decide, unless the mean square or the law gets worse than with the best baseline."""
    reference = np.random.default_rng(0).standard_normal((40, 4))
    typical, tail = np.full(40, 0.5), np.full(40, 0.5)
    tail[:2] = 40.0
    errors = np.stack([np.ones(40), typical, tail])
    found = jk.Comparison(("grid", "typical", "tail"), errors, np.stack([reference] * 3), reference, 0.0)
    assert found.best(["grid"]) == "typical"
    assert found.take(["grid", "tail"]).best(["grid"]) == "grid"
    moved = eqx.tree_at(lambda c: c.ends, found, np.stack([reference + 0.1, reference + 0.9, reference]))
    assert moved.take(["grid", "typical"]).best(["grid"]) == "grid"
    with pytest.raises(ValueError, match="Did you mean 'grid'"):
        found.best(["gird"])


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_with_a_network_the_answer_is_the_best_candidate(sampler: str) -> None:
    """A network far from the Gaussian model it is optimised for: the exact score of a mixture of two narrow laws."""
    mixture = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.stack([0.02 * np.eye(2)] * 2))

    def network(x: Array, t: Array) -> Array:
        return mixture.score(PROCESS, x, t)

    result = jk.optimize_schedule(
        mixture.gaussian(), PROCESS, sampler, 6, t_min=1e-3, score_fn=network, verify=48, progress=False
    )
    comparison = result.comparison
    assert comparison is not None
    assert result.verified
    assert result.chosen in comparison.names
    assert comparison.errors.shape[1] == 48
    for kind in ("rms", "log_mean", "sliced_w2"):
        errors = comparison.statistic(kind)
        best = min(result.baselines, key=errors.__getitem__)
        ratio, spread = comparison.ratio(kind, result.chosen, best)
        assert ratio < 1.0 + 2.0 * spread + 0.05
    # the comparison is of the schedule that is returned
    x = jax.random.normal(jax.random.key(0), (96, 2))[48:]
    again = jk.compare_schedules(network, PROCESS, sampler, {"returned": result.schedule}, x)
    np.testing.assert_allclose(again.errors[0], comparison.errors[comparison.names.index(result.chosen)], rtol=0.05)
    assert "on the network" in repr(result)


def test_refinement_is_held_out() -> None:
    """Gradient steps lower the error on noises that gave no gradient, by what two steps of so wide a model leave."""
    mixture = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.stack([0.02 * np.eye(2)] * 2))

    def network(x: Array, t: Array) -> Array:
        return mixture.score(PROCESS, x, t)

    setting: dict[str, Any] = {"t_min": 1e-3, "starts": ["quadratic"], "progress": False}
    run = (mixture.gaussian(), PROCESS, "ddim", 4)
    result = jk.optimize_schedule(*run, score_fn=network, verify=64, refine=20, **setting)
    comparison = result.comparison
    assert comparison is not None
    assert result.chosen == "refined"
    np.testing.assert_array_equal(result.candidates["refined"].times, result.schedule.times)
    errors = comparison.statistic("log_mean")
    others = [name for name in comparison.names if name != "refined"]
    assert errors["refined"] < 1.02 * errors[comparison.take(others).best(list(result.baselines))]
    with pytest.raises(ValueError, match="refine = 3 needs score_fn"):
        jk.optimize_schedule(*run, refine=3, **setting)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedules": {}}, "schedules is empty"),
        ({"schedules": {"a": jk.Schedule([1.0, 0.5, 1e-3], 1.0)}}, "stochastic: its samples have no reference"),
        ({"schedules": {"a": jk.Schedule([1.0, 1e-3]), "b": jk.Schedule([1.0, 0.1])}}, "they must agree"),
        ({"x_init": NOISES[:1]}, "at least 2 noises"),
        ({"sampler": "dim"}, "Did you mean 'ddim'"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {"sampler": "ddim", "schedules": _grids(3), "x_init": NOISES, **arguments}
    with pytest.raises(ValueError, match=message):
        jk.compare_schedules(_score, PROCESS, **setting)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stochasticity": 1.0}, "deterministic schedules"),
        ({"t_min": (1e-3, 1e-2)}, "deterministic schedules with a fixed end"),
        ({"verify": 2}, "verify = 2"),
        ({"verify": NOISES[:4]}, "n >= 8"),
        ({"spread": 0.5}, "spread = 0.5"),
        ({"spread": 2.0, "objective": "terminal"}, "spread = 2 is for objective='local'"),
    ],
)
def test_refusals_of_the_optimiser(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {"t_min": 1e-3, "score_fn": _score, **arguments}
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(TARGET, PROCESS, "ddim", 3, **setting)


def test_the_choice_keeps_the_callers_precision(float32: None) -> None:
    target, process = jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05])), jk.VP()  # a network of this precision

    def score(x: Array, t: Array) -> Array:
        return target.score(process, x, t)

    result = jk.optimize_schedule(target, process, "ddim", 3, t_min=1e-3, score_fn=score, verify=8, progress=False)
    assert result.schedule.times.dtype == jnp.float32


def test_unknown_input_shape_is_refused() -> None:
    target = jk.Gaussian(0.0, [1.0], weights=[3.0])
    with pytest.raises(ValueError, match="pass verify=noises"):
        jk.optimize_schedule(target, PROCESS, "ddim", 3, t_min=1e-3, score_fn=_score)
