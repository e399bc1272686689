"""Schedules compared on a network: distances to the exact flow, statistics, and selection."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels.comparison import (
    STATISTICS,
    WEIGHED,
    balance,
    comparison_nfe,
    solve_reference,
    statistic,
)
from jaxkernels.samplers import as_sampler, sampling_nfe

PROCESS = jk.VP()
TARGET = jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05]))
NOISE = np.random.default_rng(0).standard_normal((32, 3))


def _score(x: Array, t: Array) -> Array:
    return TARGET.score(PROCESS, x, t)


DENOISER = jk.Denoiser(_score, PROCESS, "score")


def _baselines(steps: int) -> dict[str, jk.Schedule]:
    return {
        name: getattr(jk.schedules, name)(PROCESS, steps, 1e-3)
        for name in ("uniform", "quadratic", "log_snr")
    }


def test_errors_are_distances_to_the_exact_flow() -> None:
    """With a Gaussian score the flow is known: (x - a mu) / sqrt(Sigma) is constant along it."""
    schedules = _baselines(8)
    found = jk.compare_schedules(DENOISER, "ddim", schedules, jnp.asarray(NOISE))
    times = np.array([1.0, 1e-3])
    a = np.asarray(PROCESS.signal(times))
    level = np.sqrt(np.asarray(TARGET.marginal_variance(PROCESS, times)))
    exact = a[1] * 0.2 + (NOISE - a[0] * 0.2) / level[0] * level[1]
    size = np.sqrt(np.sum(exact.var(0)))
    for name, errors in zip(found.names, found.errors, strict=True):
        x = np.asarray(
            jk.sample(
                DENOISER,
                "ddim",
                schedules[name],
                jnp.asarray(NOISE),
                key=jax.random.key(0),
            )
        )
        np.testing.assert_allclose(errors, np.linalg.norm(x - exact, axis=1) / size, rtol=2e-3)
    assert found.reference_error < 1e-3
    assert found.statistic("rms")["quadratic"] == pytest.approx(
        np.sqrt(np.mean(found.errors[1] ** 2))
    )
    assert found.statistic("median")["quadratic"] == pytest.approx(np.median(found.errors[1]))
    assert found.statistic("geometric_mean")["quadratic"] == pytest.approx(
        np.exp(np.mean(np.log(found.errors[1])))
    )
    assert "relative to" in repr(found)


@pytest.mark.parametrize(
    ("process", "first", "last"),
    [
        (jk.EDM(80.0), 80.0, 0.0),
        (jk.VE(), 50.0, 0.0),
        (jk.VP(), 1.0, 0.0),
        (jk.VP(), 0.02, 0.0),
        (jk.VP(), 0.1, 1e-3),
        (jk.FlowMatching(), 1.0, 0.0),
        (jk.DiscreteVP.scaled_linear(), 1000.0, 0.0),
    ],
)
def test_the_reference_is_fine_at_either_end(process: Any, first: float, last: float) -> None:
    """The exact flow of a Gaussian score, also to sigma = 0 and from a later start.

    Of a table as far as it was trained, from where one step goes to E[X_0 | x].
    """
    eigenvalues = np.array([2.0, 0.3, 0.05])
    target = jk.Gaussian(0.0, eigenvalues)
    trained = max(last, process.trained_t_min)
    variance = np.asarray(target.marginal_variance(process, np.array([first, trained])))
    x = NOISE * np.sqrt(variance[0])

    def network(x: Array, t: Array) -> Array:
        return target.denoiser(process)(x, t).x0

    exact = solve_reference(jk.Denoiser(network, process, "x0"), jnp.asarray(x), 200, (first, last))
    flow = NOISE * np.sqrt(variance[1])
    if trained > last:
        flow *= float(process.signal(trained)) * eigenvalues / variance[1]
    assert np.sqrt(np.mean(np.sum((exact.ends - flow) ** 2, 1))) < 1e-3 * np.sqrt(2.35)
    assert exact.error < 3e-3


def test_ratios_come_with_the_standard_error_of_paired_samples() -> None:
    """Errors that are proportional sample by sample have a ratio without any error."""
    rng = np.random.default_rng(0)
    errors, reference = rng.exponential(size=50), rng.standard_normal((50, 4))
    ends = reference + np.array([0.1, 0.2, 0.0])[:, None, None]
    found = jk.Comparison(
        ("a", "b", "c"), np.stack([errors, 2.0 * errors, np.roll(errors, 1)]), ends, reference, 0.0
    )
    value, standard_error = found.ratio("rms", "b", "a")
    assert value == pytest.approx(2.0)
    assert standard_error < 1e-12
    assert found.ratio("geometric_mean", "c", "a")[1] > 0.05
    # a shift moves the distribution of every component by itself
    assert found.statistic("sliced_w2") == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.0})
    assert found.ratio("sliced_w2", "b", "a")[0] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="Did you mean 'geometric_mean'"):
        found.ratio("geometricmean", "a", "b")
    # to data of another number, here each entry twice, the distribution is the same
    doubled = eqx.tree_at(
        lambda c: c.data_projections,
        found,
        np.sort(np.repeat(reference, 2, 0), 0),
        is_leaf=lambda x: x is None,
    )
    assert doubled.statistic("sliced_w2")["c"] < 0.05
    assert doubled.statistic("sliced_w2")["b"] == pytest.approx(0.2, abs=0.01)
    same = eqx.tree_at(
        lambda c: c.data_projections, found, np.sort(reference, 0), is_leaf=lambda x: x is None
    )
    assert same.statistic("sliced_w2") == pytest.approx(found.statistic("sliced_w2"))


def test_the_best_schedule_harms_nothing() -> None:
    """No ratio to the best baseline may exceed 1: not that of rms, nor that of sliced W2."""
    reference = np.random.default_rng(0).standard_normal((40, 4))
    typical, tail = np.full(40, 0.5), np.full(40, 0.5)
    tail[:2] = 40.0
    errors = np.stack([np.ones(40), typical, tail])
    found = jk.Comparison(
        ("baseline", "typical", "tail"), errors, np.stack([reference] * 3), reference, 0.0
    )
    assert found.best(["baseline"]) == "typical"
    assert found.take(["baseline", "tail"]).best(["baseline"]) == "baseline"
    moved = eqx.tree_at(
        lambda c: c.projections, found, np.stack([reference + 0.1, reference + 0.9, reference])
    )
    assert moved.take(["baseline", "typical"]).best(["baseline"]) == "baseline"
    with pytest.raises(ValueError, match="Did you mean 'baseline'"):
        found.best(["baselnie"])
    with pytest.raises(ValueError, match="baselines is empty"):
        found.best([])


def test_the_best_schedule_is_good_at_everything() -> None:
    """The largest of the three ratios is compared, not one of them."""
    reference = np.random.default_rng(0).standard_normal((40, 4))
    spiky = np.full(40, 0.4)
    spiky[0] = np.sqrt(40 * 0.81 - 39 * 0.16)  # root mean square 0.9, geometric mean 0.43
    errors = np.stack([np.ones(40), spiky, np.full(40, 0.6)])
    ends = np.stack([reference + 0.2, reference + 0.1, reference + 0.1])
    found = jk.Comparison(("baseline", "spiky", "even"), errors, ends, reference, 0.0)
    assert found.statistic("geometric_mean")["spiky"] < found.statistic("geometric_mean")["even"]
    assert found.best(["baseline"]) == "even"
    # hardly nearer in distribution than the baseline
    far = eqx.tree_at(
        lambda c: c.projections,
        found,
        np.stack([reference + 0.2, reference + 0.1, reference + 0.195]),
    )
    assert far.best(["baseline"]) == "spiky"


def test_an_incumbent_yields_to_what_is_better_beyond_luck() -> None:
    """A gain of 2 % within a standard error of 8 % does not count; one of 40 % does, as harm."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((40, 4))
    noise = 0.5 * rng.standard_normal(40)
    noise -= noise.mean()
    lucky = 0.49 * np.exp(noise)
    names = ("baseline", "incumbent", "lucky", "better")
    errors = np.stack([np.ones(40), np.full(40, 0.5), lucky, 0.6 * lucky])
    ends = np.stack([reference + 0.4, *[reference + 0.01] * 3])
    found = jk.Comparison(names, errors, ends, reference, 0.0)
    three = found.take(names[:3])
    assert three.best(["baseline"], "geometric_mean") == "lucky"
    assert three.best(["baseline"], "geometric_mean", incumbent="incumbent") == "incumbent"
    assert three.best(["baseline"], incumbent="incumbent") == "incumbent"
    assert found.best(["baseline"], "geometric_mean", incumbent="incumbent") == "better"
    assert found.best(["baseline"], incumbent="incumbent") == "better"
    # what harms one statistic for sure is no better than the baseline
    ends = np.stack([reference + 0.4, reference + 0.8, reference + 0.01, reference + 0.01])
    harmful = jk.Comparison(names, errors, ends, reference, 0.0).take(["baseline", "incumbent"])
    assert harmful.best(["baseline"], incumbent="incumbent") == "baseline"
    with pytest.raises(ValueError, match="Did you mean 'incumbent'"):
        found.best(["baseline"], incumbent="incumbnt")
    stochastic = eqx.tree_at(lambda c: c.errors, found, np.full((4, 40), np.nan))
    with pytest.raises(ValueError, match="incumbent = 'incumbent' is for deterministic"):
        stochastic.best(incumbent="incumbent")


def test_the_balance_is_the_largest_ratio_but_smooth() -> None:
    logs = np.random.default_rng(0).standard_normal((50, 3))
    for xp in (np, jnp):
        found = np.asarray(balance(xp, xp.asarray(logs)))
        np.testing.assert_allclose(np.exp(6.0 * found), np.mean(np.exp(6.0 * logs), -1), rtol=1e-4)
        assert np.all(found <= logs.max(-1) + 1e-6)
        assert np.all(found >= logs.max(-1) - np.log(3.0) / 6.0 - 1e-6)
    # far ratios neither overflow nor vanish
    np.testing.assert_allclose(
        balance(np, np.array([[900.0, -900.0, 0.0]])), [900.0 - np.log(3.0) / 6.0]
    )


def test_the_best_by_one_statistic() -> None:
    reference = np.random.default_rng(0).standard_normal((40, 4))
    spiky = np.full(40, 0.2)
    spiky[0] = 20.0
    ends = np.stack([reference + 0.1, reference + 0.2, reference + 0.3])
    found = jk.Comparison(
        ("near", "typical", "even"),
        np.stack([np.ones(40), spiky, np.full(40, 0.9)]),
        ends,
        reference,
        0.0,
    )
    best = {
        name: found.best(criterion=name)
        for name in ("geometric_mean", "median", "rms", "sliced_w2")
    }
    assert best == {
        "geometric_mean": "typical",
        "median": "typical",
        "rms": "even",
        "sliced_w2": "near",
    }
    with pytest.raises(ValueError, match="Did you mean 'geometric_mean'"):
        found.best(criterion="geometricmean")
    noisy = eqx.tree_at(lambda c: c.errors, found, np.full((3, 40), np.nan))
    assert noisy.best(criterion="sliced_w2") == "near"
    with pytest.raises(ValueError, match="criterion = 'rms' needs deterministic schedules"):
        noisy.best(criterion="rms")


def test_schedules_go_by_their_other_names_too() -> None:
    reference = np.zeros((3, 2))
    names = ("align_your_steps", "mine")
    found = jk.Comparison(names, np.ones((2, 3)), np.zeros((2, 3, 2)), reference, 0.0)
    assert found.take(["AYS"]).names == names[:1]
    assert found.best(["ays"]) == found.best(["align_your_steps"])
    with pytest.raises(ValueError, match="baselines='yours' is not known"):
        found.best(["yours"])


def test_a_table_of_many_says_how_many_it_leaves_out() -> None:
    reference = np.random.default_rng(0).standard_normal((20, 2))
    names = (*(f"mine {i}" for i in range(20)), "uniform")
    errors = np.outer(np.arange(1.0, 22.0), np.ones(20))
    found = jk.Comparison(names, errors, np.stack([reference] * 21), reference, 0.0)
    text = repr(found).splitlines()
    assert [line.split("  ")[0] for line in text[1:15]] == [*names[:13], "uniform"]
    assert "and 7 more" in text[15]
    assert "more" not in repr(found.take(names[7:]))
    # what was selected on other noise is shown, and what the others are compared with
    last = dataclasses.replace(found, selected="mine 19")
    assert any(
        line.startswith("mine 19") and "1.000 ± 0" in line for line in repr(last).splitlines()
    )
    assert last.take(names[3:]).leader == "mine 19"
    assert last.take(names[:3]).leader == "mine 0"


def test_a_stochastic_schedule_must_gain_more_than_luck() -> None:
    """Of two draws from one distribution one is nearer to the data by luck."""
    rng = np.random.default_rng(0)
    data, one, other = rng.standard_normal((3, 200, 4))
    errors = np.stack([np.ones(200), np.full(200, 0.9), np.full(200, np.nan)])

    def compared(calm: np.ndarray, noisy: np.ndarray) -> jk.Comparison:
        ends = np.stack([data + 0.5, calm, noisy])
        return jk.Comparison(
            ("baseline", "calm", "noisy"), errors, ends, data, 0.0, np.sort(data, 0)
        )

    distances = compared(one, other).statistic("sliced_w2")
    assert distances["noisy"] != distances["calm"]
    for calm, noisy in ((one, other), (other, one)):
        assert compared(calm, noisy).best(["baseline"]) == "calm"
    assert compared(one + 0.5, other).best(["baseline"]) == "noisy"
    assert compared(one, other).take(["noisy"]).best() == "noisy"


def test_the_luckiest_of_many_draws_is_not_selected() -> None:
    """Of 40 stochastic schedules with one distribution the luckiest is lower by standard errors."""
    rng = np.random.default_rng(0)
    data, calm, *draws = rng.standard_normal((42, 400, 4))
    names = ("calm", *(f"draw {i}" for i in range(40)))
    errors = np.stack([np.ones(400), *(np.full(400, np.nan) for _ in draws)])

    def compared(calm: np.ndarray) -> jk.Comparison:
        return jk.Comparison(names, errors, np.stack([calm, *draws]), data, 0.0, np.sort(data, 0))

    found = compared(calm)
    values = found.statistic("sliced_w2")
    luckiest = min(names, key=values.__getitem__)
    ratio, standard_error = found.ratio("sliced_w2", luckiest, "calm")
    assert luckiest != "calm"
    assert ratio + 1.5 * standard_error < 1.0
    assert found.best() == "calm"
    assert found.take(["calm", luckiest]).best() == luckiest
    assert compared(calm + 0.5).best() == luckiest


def test_distributions_are_compared_with_the_data() -> None:
    """Sliced W2 of a stochastic schedule, whose samples are Gaussian, to data from a Gaussian.

    In direction u both are Gaussian: W2^2 is the squared difference of means plus that of standard
    deviations. What 4000 samples add to the square is of the order of 1 / 4000, an error of 0.01
    for distances of 0.05 to 0.2.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4000, 3)))
    data = 0.2 + rng.standard_normal((20_000, 3)) * np.sqrt([2.0, 0.3, 0.05])
    schedules = {
        "ode": jk.schedules.uniform(PROCESS, 3, 1e-3),
        "sde": jk.Schedule([1.0, 0.5, 0.2, 1e-3], 1.0),
    }
    found = jk.compare_schedules(DENOISER, "ddim", schedules, x, data=data)
    # the directions are the same for a network of the same dimension: read them off points that are
    # known
    scaled = jk.compare_schedules(
        jk.Denoiser(_scaling, PROCESS, "score"), "ddim", {"ode": schedules["ode"]}, x
    ).projections[0]
    axes = np.linalg.lstsq(x, scaled, rcond=None)[0]
    axes /= np.linalg.norm(axes, axis=0)
    for name, value in found.statistic("sliced_w2").items():
        exact_run = jk.evaluate_schedule(TARGET, PROCESS, "ddim", schedules[name])
        mean = (np.asarray(exact_run.mean) - 0.2) @ axes
        deviation = np.sqrt(np.asarray(exact_run.variance) @ axes**2)
        exact = np.sqrt(
            np.mean(mean**2 + (deviation - np.sqrt(np.array([2.0, 0.3, 0.05]) @ axes**2)) ** 2)
        )
        assert value == pytest.approx(exact / np.sqrt(2.35), abs=0.02)
    assert found.ranking_statistic == "sliced_w2"
    assert np.isnan(found.statistic("rms")["sde"])
    assert np.isfinite(found.statistic("rms")["ode"])
    assert found.best() == min(schedules, key=found.statistic("sliced_w2").__getitem__)
    assert "sliced W2 to the data" in repr(found)
    other = jk.compare_schedules(
        DENOISER,
        "ddim",
        schedules,
        x,
        data=data,
        key=jax.random.key(5),
    )
    np.testing.assert_array_equal(other.projections[0], found.projections[0])
    assert np.any(other.projections[1] != found.projections[1])


def _scaling(x: Array, t: Array) -> Array:
    """The score of N(0, I), with which every step is a multiple of x."""
    return -x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedules": {}}, r"schedules = \{\} must be \{name: Schedule\}, not empty"),
        ({"noise": np.full((4, 3), np.nan)}, "noise holds NaN"),
        (
            {"schedules": {"a": jk.Schedule([1.0, 0.5, 1e-3], 1.0)}},
            "stochastic: its samples have no reference",
        ),
        (
            {"schedules": {"a": jk.Schedule([1.0, 1e-3]), "b": jk.Schedule([1.0, 0.1])}},
            "they must agree",
        ),
        ({"noise": NOISE[:1]}, r"noise has shape \(1, 3\); it must be \(n, ...\) with n >= 2"),
        ({"sampler": "dim"}, "Did you mean 'ddim'"),
        ({"data": NOISE[:, :2]}, r"data has shape \(32, 2\); it must be \(n, 3\)"),
        ({"data": NOISE[:1]}, r"data has shape \(1, 3\)"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {
        "sampler": "ddim",
        "schedules": _baselines(3),
        "noise": NOISE,
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        jk.compare_schedules(DENOISER, **setting)


def test_times_of_another_process_are_refused() -> None:
    """Those of VP, for a table of 1000 noise levels."""
    table = jk.DiscreteVP.scaled_linear()
    exact = jk.Gaussian(0.0, [1.0, 0.1]).denoiser(table)
    with pytest.raises(
        ValueError, match=r"schedules\['a'\] starts at t = 1, where DiscreteVP ends"
    ):
        jk.compare_schedules(exact, "ddim", {"a": jk.Schedule([1.0, 0.5, 0.0])}, jnp.eye(2))


def test_schedules_of_another_type_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this suite's type checks would catch, and a user meets without them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    several: Any = [jk.Schedule([1.0, 1e-3])]
    with pytest.raises(ValueError, match=r"schedules = .* must be"):
        jk.compare_schedules(DENOISER, "ddim", several, jnp.asarray(NOISE))


def test_statistics_agree_in_both_libraries() -> None:
    """NumPy and jax.numpy, against the definitions; and the gradient of each is finite."""
    rng = np.random.default_rng(0)
    errors = rng.exponential(size=(2, 30))
    projections = rng.standard_normal((2, 30, 4))
    target = np.sort(rng.standard_normal((30, 4)), 0)
    w2 = np.mean((np.sort(projections, 1) - target) ** 2, (1, 2))
    expected = {
        "rms": np.sqrt(np.mean(errors**2, 1)),
        "median": np.median(errors, 1),
        "geometric_mean": np.prod(errors ** (1.0 / 30.0), 1),
        "sliced_w2": np.sqrt(w2),
    }
    assert set(expected) == set(STATISTICS)
    assert set(WEIGHED) < set(STATISTICS)
    for name, values in expected.items():
        for xp in (np, jnp):
            found = statistic(xp, name, *map(xp.asarray, (errors, projections, target)))
            np.testing.assert_allclose(found, values, rtol=1e-12)

        def total(errors: Array, projections: Array, name: str = name) -> Array:
            return jnp.sum(statistic(jnp, name, errors, projections, jnp.asarray(target)))

        gradients = jax.grad(total, (0, 1))(jnp.asarray(errors), jnp.asarray(projections))
        used = gradients[1 if name == "sliced_w2" else 0]
        assert np.all(np.isfinite(used))
        assert np.any(np.asarray(used) != 0)


@pytest.mark.parametrize("to_data", [False, True])
def test_resamples_are_of_rows_with_replacement(to_data: bool) -> None:
    """Every one has the statistics of a comparison that consists of its rows; also with ties."""
    rng = np.random.default_rng(0)
    projections = np.round(rng.standard_normal((2, 30, 4)), 1)
    found = jk.Comparison(
        ("a", "b"),
        rng.exponential(size=(2, 30)),
        projections,
        np.round(rng.standard_normal((30, 4)), 1),
        0.0,
        np.sort(rng.standard_normal((50, 4)), 0) if to_data else None,
    )
    rows = np.random.default_rng(0).integers(30, size=(200, 30))
    for name in STATISTICS:
        values = found.resampled_values(name)
        expected = [list(found.take(samples=row).statistic(name).values()) for row in rows]
        np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_nfe_counts_the_reference_and_every_schedule() -> None:
    schedules = _baselines(12)
    assert comparison_nfe(PROCESS, jk.Heun(), schedules, 5) == 5 * (240 + 120 + 2 * 3 * 12)


@pytest.mark.parametrize("name", ["second_order1", "tweedie1", "rem", "rei", "matched_noise"])
def test_nfe_of_samplers_of_the_reverse_sde(name: str) -> None:
    """Of a step that differentiates at one time, or evaluates at a random one."""
    sampler = as_sampler(name)
    schedule = jk.Schedule([1.0, 0.5, 0.1], stochasticity=1.0)
    expected = 2 * sampler.nfe_per_step
    assert sampling_nfe(PROCESS, sampler, schedule) == expected
    assert jk.evaluate_schedule(jk.Gaussian(0.0, [1.0]), PROCESS, sampler, schedule).nfe == expected


def test_comparisons_are_joined_and_taken_apart() -> None:
    found = jk.compare_schedules(
        DENOISER, "ddim", _baselines(3), jnp.asarray(NOISE), progress=False
    )
    parts = found.take(["uniform"]).joined(found.take(["quadratic", "log_snr"]))
    assert parts.names == found.names
    np.testing.assert_array_equal(parts.errors, found.errors)
    np.testing.assert_array_equal(parts.projections, found.projections)
    assert parts.statistic("sliced_w2") == found.statistic("sliced_w2")


def test_noise_without_a_distribution_is_refused() -> None:
    same, broken = jnp.ones((4, 3)), jnp.asarray(NOISE).at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="noise: all samples coincide"):
        jk.compare_schedules(DENOISER, "ddim", _baselines(3), same)
    with pytest.raises(ValueError, match="all trajectories end at one point"):
        jk.record(DENOISER, same, t_min=1e-3, nodes=8, progress=False)
    with pytest.raises(ValueError, match="noise holds NaN"):
        jk.sample(
            DENOISER,
            jk.DDIM(),
            _baselines(3)["uniform"],
            broken,
            key=jax.random.key(0),
        )
