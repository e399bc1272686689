"""Reports: their entries, their means with standard errors, and their single reference."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import jaxkernels as jk

PROCESS, T_MIN = jk.VP(), 1e-3
TARGET = jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05]))
NOISE: Any = np.random.default_rng(0).standard_normal((32, 3))
STEPS = (6, 3)
# ready schedules, one per setting
READY = {
    (sampler, k): jk.schedules.karras(PROCESS, k, T_MIN, rho=rho)
    for sampler, rho in (("ddim", 4.0), ("dpmpp_2m", 9.0))
    for k in STEPS
}
SCHEDULES = {"uniform": jk.schedules.uniform, "quadratic": jk.schedules.quadratic, "ready": READY}


def _score(x: Array, t: Array) -> Array:
    return TARGET.score(PROCESS, x, t)


DENOISER = jk.Denoiser(_score, PROCESS, "score")


@pytest.fixture(scope="module")
def report() -> jk.SamplerReport:
    return jk.compare_samplers(
        *(DENOISER, ["ddim", jk.DPMSolverPP2M()], STEPS, NOISE),
        t_min=T_MIN,
        schedules=SCHEDULES,
        progress=False,
    )


def _synthetic(rng: np.random.Generator, n: int) -> tuple[jk.SamplerReport, np.ndarray]:
    """A report and its errors (settings, schedules, samples), from the same noise everywhere."""
    settings = [("ddim", 5), ("ddim", 10), ("heun", 5), ("heun", 10)]
    names = ("a", "b", "c")
    # what the noise does to a schedule is nearly the same in all settings
    logs = 0.5 * rng.standard_normal((1, 3, n)) + 0.1 * rng.standard_normal((4, 3, n))
    errors = np.array([[0.1, 0.2, 0.3], [0.1, 0.1, 0.1], [0.3, 0.1, 0.2], [0.2, 0.3, 0.1]])[
        ..., None
    ] * np.exp(logs)
    reference = rng.standard_normal((n, 4))
    ends = reference + errors[..., None]
    made = {
        s: jk.Comparison(names, e, x, reference, 1e-4)
        for s, e, x in zip(settings, errors, ends, strict=True)
    }
    return jk.SamplerReport(made), errors


def test_every_entry_is_a_comparison(report: jk.SamplerReport) -> None:
    assert list(report.comparisons) == [("ddim", 3), ("ddim", 6), ("dpmpp_2m", 3), ("dpmpp_2m", 6)]
    for (sampler, k), found in report.comparisons.items():
        schedules = {name: SCHEDULES[name](PROCESS, k, T_MIN) for name in ("uniform", "quadratic")}
        schedules["ready"] = READY[sampler, k]
        # so few steps have the same reference on their own
        alone = jk.compare_schedules(DENOISER, sampler, schedules, NOISE, progress=False)
        assert found.names == alone.names
        np.testing.assert_allclose(found.errors, alone.errors, rtol=1e-9)
        np.testing.assert_allclose(found.projections, alone.projections, rtol=1e-9)
        np.testing.assert_allclose(
            found.reference_projections, alone.reference_projections, rtol=1e-9
        )
        assert report.best()[sampler, k] == alone.best()
        assert report.best(["uniform"])[sampler, k] == alone.best(["uniform"])
        assert report.best(criterion="rms")[sampler, k] == alone.best(criterion="rms")
        assert report.statistic("sliced_w2")[sampler, k] == pytest.approx(
            alone.statistic("sliced_w2")
        )


def test_the_reference_is_computed_once() -> None:
    """The network is evaluated for the schedules and one reference, by a count at run time."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    def score(x: Array, t: Array) -> Array:
        jax.debug.callback(count)
        return _score(x, t)

    jk.compare_samplers(
        jk.Denoiser(score, PROCESS, "score"),
        ["ddim", "rk4"],
        [2, 12],
        NOISE,
        t_min=T_MIN,
        progress=False,
    )
    jax.effects_barrier()
    fine = 20 * 12
    assert calls == fine + fine // 2 + len(jk.schedules.BASELINES) * (2 + 12) * (1 + 4)


class UserDefined(jk.DDIM):
    """A sampler that the package does not know."""


def test_baselines_are_the_default_and_user_defined_samplers_go_by_their_class() -> None:
    found = jk.compare_samplers(DENOISER, [UserDefined()], [3], NOISE, t_min=T_MIN, progress=False)
    assert list(found.comparisons) == [("UserDefined", 3)]
    assert found.names == tuple(jk.schedules.BASELINES)


def test_ratios_are_geometric_means() -> None:
    found, errors = _synthetic(np.random.default_rng(0), 50)
    typical = np.exp(np.log(errors).mean(-1))
    root = np.sqrt((errors**2).mean(-1))
    for name, values in (("geometric_mean", typical), ("rms", root)):
        # to the best of all, and to the best of two
        for baselines, compared in ((None, values), (["c", "a"], values[:, [0, 2]])):
            expected = np.prod(values / compared.min(1)[:, None], 0) ** (1.0 / 4.0)
            ratios = found.ratios(name, baselines)
            np.testing.assert_allclose(
                [ratios[schedule].value for schedule in "abc"], expected, rtol=1e-12
            )
    assert found.ratios("rms", ["a"])["a"] == (1.0, 0.0)


def test_standard_errors_are_joint_over_settings() -> None:
    """Settings share their noise: four of them tell hardly more than one."""
    n = 300
    found, errors = _synthetic(np.random.default_rng(1), n)
    difference = np.log(errors[:, 1] / errors[:, 0]).mean(0)
    value, standard_error = found.ratios("geometric_mean", ["a"])["b"]
    assert standard_error == pytest.approx(
        value * np.std(difference, ddof=1) / np.sqrt(n), rel=0.15
    )
    apart = np.sqrt(np.sum(np.var(np.log(errors[:, 1] / errors[:, 0]), axis=1)) / n) / 4.0
    assert standard_error > 1.6 * value * apart
    # one setting and one baseline are what a comparison knows by itself
    first = found.comparisons["ddim", 5]
    assert jk.SamplerReport({("ddim", 5): first}).ratios("rms", ["a"])["b"] == pytest.approx(
        first.ratio("rms", "b", "a")
    )


def test_standard_errors_are_those_of_repeated_experiments() -> None:
    """With best baselines that are close, and so change from one experiment to the next."""
    rng, n = np.random.default_rng(2), 100
    values, claimed = [], []
    for repeat in range(400):
        found, errors = _synthetic(rng, n)
        root = np.sqrt((errors**2).mean(-1))
        values.append(np.exp(np.log(root[:, 1] / root[:, [0, 2]].min(1)).mean()))
        if repeat < 20:
            claimed.append(found.ratios("rms", ["a", "c"])["b"][1])
    assert np.mean(claimed) == pytest.approx(np.std(values, ddof=1), rel=0.15)


def test_text(report: jk.SamplerReport) -> None:
    """Rows by what they lose, the smallest of a column marked, and the numbers of `statistic`."""
    header, *rows, last = repr(report).splitlines()
    assert (
        " ".join(header.split()) == "geometric mean ddim 3 ddim 6 dpmpp_2m 3 dpmpp_2m 6 to the best"
    )
    assert "32 initial noise samples" in last
    ratios, statistic = report.ratios("geometric_mean"), report.statistic("geometric_mean")
    assert [row.split()[0] for row in rows] == sorted(
        report.names, key=lambda name: ratios[name][0]
    )
    for row in rows:
        name, *cells, value, _, standard_error = row.split()
        for cell, column in zip(cells, statistic.values(), strict=True):
            assert float(cell.strip("*")) == pytest.approx(column[name], rel=1e-3)
            assert cell.endswith("*") == (column[name] == min(column.values()))
        assert (float(value), float(standard_error)) == pytest.approx(ratios[name], abs=6e-4)

    header, rule, *rows = report.to_markdown("rms").splitlines()
    assert {line.count("|") for line in (header, rule, *rows)} == {7}
    assert sum(row.count("**") for row in rows) == 2 * 4
    assert "ddim 3" in header
    assert f"{report.statistic('rms')['ddim', 3]['uniform']:.4g}" in report.to_markdown("rms")


def test_the_precision_of_the_caller(report: jk.SamplerReport, float32: None) -> None:
    target, process = jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05])), jk.VP()
    found = jk.compare_samplers(
        jk.Denoiser(lambda x, t: target.score(process, x, t), process, "score"),
        *(["ddim"], [3], jnp.asarray(NOISE, jnp.float32)),
        t_min=T_MIN,
        schedules={"uniform": jk.schedules.uniform},
        progress=False,
    )
    expected = report.comparisons["ddim", 3].take(["uniform"])
    np.testing.assert_allclose(
        found.comparisons["ddim", 3].errors, expected.errors, rtol=1e-2, atol=1e-4
    )


def test_a_stochastic_schedule_is_ranked_by_its_distribution() -> None:
    """By sliced W2 to the data; deterministic schedules beside it keep their other statistics."""
    data = 0.2 + np.random.default_rng(1).standard_normal((500, 3)) * np.sqrt([2.0, 0.3, 0.05])
    noisy = {("ddim", 3): jk.Schedule([1.0, 0.5, 0.2, T_MIN], 1.0)}
    for names in (("sde", "uniform", "karras"), ("uniform", "sde", "karras")):
        schedules = {"sde": noisy, "uniform": jk.schedules.uniform, "karras": jk.schedules.karras}
        schedules = {name: schedules[name] for name in names}
        run = (DENOISER, ["ddim"], [3], NOISE)
        found = jk.compare_samplers(
            *run, t_min=T_MIN, schedules=schedules, data=data, progress=False
        )
        assert found.ranking_statistic == "sliced_w2"
        values = found.statistic("sliced_w2")[("ddim", 3)]
        order = sorted(values, key=values.__getitem__)
        rows = [line.split()[0] for line in repr(found).splitlines()[1:4]]
        assert rows == order == found.ranked("sliced_w2")
        assert "*" in repr(found).splitlines()[1]
        assert "sliced W2 to the data" in repr(found)
        ratios = found.ratios("geometric_mean")
        assert np.isnan(ratios["sde"][0])
        assert min(ratios["uniform"][0], ratios["karras"][0]) == pytest.approx(1.0)
        assert found.ranked("geometric_mean")[-1] == "sde"
        figure = found.plot()
        assert figure.get_suptitle().startswith("Sliced W2 to the data")
        shown = [
            line for line in figure.axes[0].get_lines() if np.all(np.isfinite(line.get_ydata()))
        ]
        assert len(shown) >= 3
        one = found.comparisons[("ddim", 3)].plot()
        assert len(one.axes) == 1
        assert one.get_suptitle().startswith("Sliced W2 to the data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"samplers": ["ddim", "dpmpp_22m"]},
            "samplers\\[1\\]='dpmpp_22m' is not known. Did you mean 'dpmpp_2m'",
        ),
        ({"samplers": []}, r"samplers = \[\] must be a list"),
        ({"samplers": "ddim"}, "samplers = 'ddim' must be a list"),
        ({"samplers": ["ddim", 42]}, r"samplers\[1\] must be a sampler or a name; got 42"),
        ({"samplers": ["ddim", jk.DDIM()]}, "samplers has 'ddim' twice"),
        ({"num_steps": []}, r"num_steps = \[\] must be a list"),
        ({"num_steps": 3}, "num_steps = 3 must be a list"),
        ({"num_steps": [3, 0]}, r"num_steps\[1\] = 0 must be at least 1"),
        ({"num_steps": [2.5]}, r"num_steps\[0\] = 2.5 must be an? (whole number|integer)"),
        ({"t_min": 2.0}, "t_min = 2 must be"),
        ({"schedules": {}}, r"schedules = \{\} must be"),
        (
            {"schedules": {"ready": READY}, "num_steps": [6, 12]},
            r"\['ready'\] has no schedule for \('ddim', 12\); it has",
        ),
        (
            {"schedules": {"ready": {("ddim", 3): READY["ddim", 6]}}},
            r"\['ready'\] has 6 steps for \('ddim', 3\)",
        ),
        (
            {"schedules": {"one": READY["ddim", 3]}},
            r"\['one'\] must be a function or a table .* got Schedule",
        ),
        (
            {"schedules": {"late": lambda p, k, t: jk.schedules.uniform(p, k, 0.1)}},
            r"\['late'\] runs from 1 to 0\.1",
        ),
        (
            {"schedules": {"none": lambda p, k, t: None}},
            r"\['none'\] must give a Schedule for \('ddim', 3\); got",
        ),
        ({"noise": NOISE[:1]}, r"noise has shape \(1, 3\); it must be .* n >= 2"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {
        "samplers": ["ddim"],
        "num_steps": [3],
        "noise": NOISE,
        "t_min": T_MIN,
        **arguments,
    }
    # without the types that only tests check
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(jk.compare_samplers)(DENOISER, progress=False, **setting)


def test_reports_that_make_no_table_are_refused(report: jk.SamplerReport) -> None:
    first, second = (report.comparisons["ddim", k] for k in STEPS)
    with pytest.raises(ValueError, match="comparisons is empty"):
        jk.SamplerReport({})
    with pytest.raises(
        ValueError,
        match=r"\[\('ddim', 6\)\] is of uniform from 32 samples, comparisons\[\('ddim', 3\)",
    ):
        jk.SamplerReport({("ddim", 3): second, ("ddim", 6): first.take(["uniform"])})
    with pytest.raises(ValueError, match="from 8 samples"):
        jk.SamplerReport({("ddim", 3): second, ("ddim", 6): first.take(samples=slice(8))})
    with pytest.raises(
        ValueError, match=r"baselines='uniforn' is not known\. Did you mean 'uniform'"
    ):
        report.ratios("rms", ["uniforn"])
    with pytest.raises(ValueError, match="baselines is empty"):
        report.ratios("rms", [])
    with pytest.raises(ValueError, match="Did you mean 'geometric_mean'"):
        report.table("geometricmean")
