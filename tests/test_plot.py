"""The figures of results: their contents as plain data, what is drawn of them, and their files."""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

import jaxkernels as jk
from jaxkernels._plot import Axis, Bars, FigureSpec, Guide, Line, Panel, render

TARGET = jk.Gaussian(0.0, np.array([1.0, 0.1, 0.0]))


class _Result(NamedTuple):
    schedule: jk.Schedule
    evaluation: jk.Evaluation
    ratios: dict[str, float]
    comparison: jk.Comparison | None
    criterion: str
    selected: str
    baseline_schedules: dict[str, jk.Schedule]
    best_baseline: str
    baseline_evaluation: jk.Evaluation
    target: jk.Gaussian
    process: jk.AbstractProcess
    sampler: jk.AbstractSampler


def _spec(result: _Result) -> FigureSpec:
    """What `OptimizedSchedule` shows of these fields."""
    fields: Any = result
    return jk.OptimizedSchedule.figure(fields)


def _settings() -> tuple[object, dict[str, object]]:
    parameters = matplotlib.rcParams
    # reading the parameter "backend" would choose one
    selected = {key: parameters[key] for key in parameters if key != "backend"}
    return matplotlib.get_backend(auto_select=False), selected


def _result(
    process: jk.AbstractProcess, times: np.ndarray, alpha: np.ndarray | float = 0.0
) -> _Result:
    """What an optimisation gives, without running one."""
    schedule = jk.Schedule(times, alpha)
    steps, end = schedule.num_steps, float(times[-1])
    baselines = {
        name: jk.schedules.BASELINES[name](process, steps, end)
        for name in ("uniform", "karras", "quadratic")
    }
    return _Result(
        schedule=schedule,
        evaluation=jk.evaluate_schedule(TARGET, process, "ddim", schedule),
        ratios={"uniform": 200.0, "karras": 2.0, "quadratic": 3.0},
        comparison=None,
        criterion="objective",
        selected="optimised",
        baseline_schedules=baselines,
        best_baseline="karras",
        baseline_evaluation=jk.evaluate_schedule(TARGET, process, "ddim", baselines["karras"]),
        target=TARGET,
        process=process,
        sampler=jk.DDIM(),
    )


@pytest.fixture(scope="module")
def result() -> _Result:
    """Both ends of the noise levels are the awkward ones: infinite and 0."""
    times = np.array([1.0, 0.6, 0.2, 0.0])
    return _result(jk.FlowMatching(), times, np.array([0.0, 0.5, 1.0]))


def _comparison(names: tuple[str, ...]) -> jk.Comparison:
    """Errors that grow with the place of a name."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((30, 4))
    size = 0.01 * (1.0 + np.arange(len(names)))
    errors = size[:, None] * rng.exponential(size=30)
    ends = reference + size[:, None, None] * rng.standard_normal((30, 4))
    return jk.Comparison(names, errors, ends, reference, 1e-4)


@pytest.fixture(scope="module")
def measurement() -> jk.Measurement:
    """Of the exact denoiser of a Gaussian."""
    process = jk.FlowMatching()
    target = jk.Gaussian(0.0, TARGET.eigenvalues)
    deviations = np.sqrt(np.asarray(target.eigenvalues))
    samples = np.random.default_rng(0).standard_normal((64, 3)) * deviations

    times = np.array([1.0, 0.7, 0.3, 0.1])
    denoiser = target.denoiser(process)
    key = jax.random.key(0)
    return jk.measure(denoiser, samples, times, key=key, target=target, progress=False)


def test_panels_and_their_labels(result: _Result):
    spec = _spec(result)
    titles = [panel.title for panel in spec.panels]
    assert titles[0].startswith("Noise levels")
    assert titles[1:] == ["Error of each step", "Error over the spectrum", "Stochasticity"]
    assert all(panel.x.label for panel in spec.panels)
    rows = spec.panels[0].y.ticks
    assert isinstance(rows, dict)
    assert list(rows.values()) == [
        "optimised",
        "karras\n2 times the optimum",
        "quadratic\n3 times the optimum",
        "uniform\n200 times the optimum",
    ]


def test_the_drawn_figure_has_the_panels_and_labels_of_its_description(result: _Result):
    spec = _spec(result)
    figure = render(spec)
    assert figure.get_suptitle() == spec.title
    for axes, panel in zip(figure.axes, spec.panels, strict=True):
        assert axes.get_title() == panel.title
        assert axes.get_xlabel() == panel.x.label
        assert axes.get_ylabel() == panel.y.label
        assert axes.get_xscale() == panel.x.scale
        assert axes.get_yscale() == panel.y.scale
        for drawn, line in zip(axes.get_lines(), panel.lines, strict=True):
            np.testing.assert_array_equal(drawn.get_xdata(), line.x)
            np.testing.assert_array_equal(drawn.get_ydata(), line.y)
    rows = spec.panels[0].y.ticks
    assert isinstance(rows, dict)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == list(rows.values())


def test_curves_are_the_numbers_of_the_result(result: _Result):
    steps, modes, stochasticity = _spec(result).panels[1:]
    for line, evaluation in zip(
        steps.lines, (result.evaluation, result.baseline_evaluation), strict=True
    ):
        errors = np.asarray(line.y)
        np.testing.assert_allclose(errors**2, evaluation.local_w2_squared, rtol=1e-12)
    variance, optimum, baseline = modes.lines
    # the mode without variance has no place on a logarithmic axis
    np.testing.assert_array_equal(variance.y, [1.0, 0.1, np.nan])
    for line, evaluation in ((optimum, result.evaluation), (baseline, result.baseline_evaluation)):
        errors = np.asarray(evaluation.per_mode["w2_squared"])
        np.testing.assert_allclose(line.y, np.where(errors > 0, errors, np.nan), rtol=1e-12)
    (bars,) = stochasticity.marks
    assert isinstance(bars, Bars)
    np.testing.assert_array_equal(bars.height, [0.0, 0.5, 1.0])


def test_ends_at_zero_and_infinity_stay_in_the_figure(result: _Result):
    axes = render(_spec(result)).axes[0]
    assert "open: 0 or infinite" in axes.get_title()
    left, right = axes.get_xlim()
    drawn = np.concatenate([np.asarray(line.get_xdata(), float) for line in axes.get_lines()])
    assert left > right > 0, "noise on the left, data on the right"
    assert np.all((drawn < left) & (drawn > right))


def test_what_was_selected_on_a_network_says_its_error(result: _Result):
    comparison = _comparison(("recorded, mean", "karras"))
    values = comparison.statistic("geometric_mean")
    drawn = result._replace(
        comparison=comparison, criterion="geometric_mean", selected="recorded, mean"
    )
    assert "W2 to the data distribution" in _spec(result).title
    optimised = f"geometric mean error {values['recorded, mean']:.3g} optimised"
    assert f"{optimised}, {values['karras']:.3g} karras" in _spec(drawn).title


def test_deterministic_schedules_have_three_panels():
    result = _result(jk.EDM(), np.array([80.0, 5.0, 0.5, 0.1]))
    figure = render(_spec(result))
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title() == "Noise levels"


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_file(result: _Result, tmp_path: Path, suffix: str, start: bytes):
    path = tmp_path / f"a{suffix}"
    render(_spec(result), path)
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_notebooks_get_a_png(result: _Result, tmp_path: Path):
    content = render(_spec(result))._repr_png_()  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "a.png").write_bytes(content)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000


def test_global_state_is_untouched(result: _Result):
    before = _settings()
    render(_spec(result))
    assert _settings() == before


@pytest.mark.parametrize("name", ["a.jpeg", "a"])
def test_unknown_suffix(result: _Result, tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=rf"suffix of .*{name}='.*' is not known"):
        render(_spec(result), tmp_path / name)


def test_a_failed_write_leaves_the_old_file(result: _Result, tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot write .*missing.*a\.png"):
        render(_spec(result), tmp_path / "missing" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_comparison_has_a_panel_per_statistic():
    comparison = _comparison(("ours", "karras", "uniform"))
    figure = comparison.plot()
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == [
        "rms",
        "median",
        "geometric mean",
        "sliced W2",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "ours",
        "karras",
        "uniform",
    ]
    dots = [np.asarray(line.get_xdata(), float) for line in figure.axes[2].get_lines()[1:]]
    np.testing.assert_allclose(dots, [[1.0], [2.0], [3.0]])
    for panel, statistic in zip(
        comparison.figure().panels, ("rms", "median", "geometric_mean", "sliced_w2"), strict=True
    ):
        ratios = [comparison.ratio(statistic, name, "ours") for name in comparison.names]
        assert [(line.x[0], line.x_error) for line in panel.lines] == ratios


def test_of_many_schedules_the_baselines_and_the_best_are_shown():
    others = tuple(f"candidate {i}" for i in range(30))
    figure = _comparison((*others, *jk.schedules.BASELINES)).plot()
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [*others[: 14 - len(jk.schedules.BASELINES)], *jk.schedules.BASELINES]
    assert "14 of 36 schedules" in figure.get_suptitle()


def _report() -> jk.SamplerReport:
    """The second schedule has twice the errors of the first; errors fall with the steps."""
    whole = _comparison(("ours", "karras"))
    settings = [(sampler, k) for sampler in ("heun", "ddim") for k in (20, 5)]
    sized = {(s, k): eqx.tree_at(lambda c: c.errors, whole, whole.errors / k) for s, k in settings}
    return jk.SamplerReport(sized)


def test_the_error_of_the_reference_is_drawn_only_where_it_is_in_reach():
    """The comparison's reference is accurate to 1e-4."""
    guides = {}
    for size in (1.0, 1e3):
        whole = _comparison(("ours", "karras"))
        scaled = eqx.tree_at(lambda c: c.errors, whole, size * whole.errors)
        report = jk.SamplerReport({("ddim", 5): scaled, ("ddim", 20): whole})
        axes = report.plot().axes[0]
        low, high = axes.get_ylim()
        values = [
            v for column in report.statistic("geometric_mean").values() for v in column.values()
        ]
        assert low > 0.1 * min(values)
        assert high < 10.0 * max(values)
        (guide,) = [m for m in report.figure().panels[0].marks if isinstance(m, Guide)]
        guides[size] = guide.at
    assert set(guides.values()) == {1e-4}


def test_a_report_has_a_panel_per_sampler_and_a_line_per_schedule():
    report = _report()
    figure = report.plot()
    assert [axes.get_title() for axes in figure.axes] == ["heun", "ddim"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "karras"]
    for axes in figure.axes:
        for line, name in zip(axes.get_lines(), ("ours", "karras")):
            np.testing.assert_array_equal(line.get_xdata(), [5, 20])
            errors = [
                report.statistic("geometric_mean")[axes.get_title(), k][name] for k in (5, 20)
            ]
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), errors)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "20"]
    assert report.plot(statistic="rms").axes[0].get_ylabel().startswith("rms")
    with pytest.raises(ValueError, match="Did you mean 'geometric_mean'"):
        report.plot(statistic="geometric mean")


def test_measurement_draws_what_is_known(measurement: jk.Measurement):
    titles = ["Denoising error", "Violation of the martingale identity", "Lipschitz constant"]
    figure = measurement.plot()
    assert [axes.get_title() for axes in figure.axes] == titles
    assert "infinite at the edge" in figure.axes[0].get_xlabel()
    data = np.random.default_rng(0).standard_normal((20, 2))
    known = jk.Measurement.from_samples(jk.EDM(), data, np.array([80.0, 1.0, 0.1])).plot()
    assert [axes.get_title() for axes in known.axes] == titles[:1]


def test_rounding_is_not_drawn_as_a_residual(measurement: jk.Measurement):
    """The denoiser of a Gaussian is affine: what is left of its fit is the rounding of float64."""
    labels = [line.label for line in measurement.figure().panels[0].lines]
    assert labels == ["best affine denoiser", "this denoiser"]
    assert measurement.residual.max() < 1e-25


def test_the_exact_denoiser_keeps_the_identity(measurement: jk.Measurement):
    """Zero is within the bars, which are two standard errors, or nearly."""
    axes = measurement.plot().axes[1]
    for bars in axes.containers:
        share = np.asarray(bars[0].get_ydata())
        segments = bars[2][0].get_segments()
        reach = np.array([segment[1, 1] - segment[0, 1] for segment in segments]) / 2.0
        assert np.all(np.abs(share) < 2.0 * reach + 1e-6)


@pytest.mark.parametrize("kind", ["comparison", "report", "measurement"])
def test_other_figures_are_files_too(kind: str, measurement: jk.Measurement, tmp_path: Path):
    before = _settings()
    drawn = {
        "measurement": measurement,
        "comparison": _comparison(("ours", "karras")),
        "report": _report(),
    }[kind]
    drawn.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert _settings() == before
    with pytest.raises(ValueError, match=r"suffix of .*a\.gif"):
        drawn.plot(tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("ratios", "labels"),
    [
        ((1.0, 1.9), ["1", "1.2", "1.5"]),
        ((1.0, 30.0), ["1", "2", "5", "10", "20"]),
        ((1.0, 3e6), [f"{10.0**k:g}" for k in range(7)]),
    ],
)
def test_ratios_are_labelled_with_plain_numbers(ratios: tuple[float, float], labels: list[str]):
    """At most seven of them where that is possible, and no minor ticks between them."""
    line = Line(np.array(ratios), np.zeros(2), style="", marker="o")
    limits = (0.9 * ratios[0], 1.01 * ratios[1])
    x = Axis("ratio", scale="log", limits=limits, ticks="ratio")
    axes = render(FigureSpec([Panel("ratios", [line], x)], (4.0, 3.0))).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    assert axes.get_xticks(minor=True).size == 0


def test_guides_in_view_widen_the_limits_and_others_do_not():
    line = Line(np.array([0.0, 1.0]), np.array([5.0, 6.0]))
    reach = {}
    for in_view in (True, False):
        marks = [line, Guide(0.0, "y", in_view=in_view)]
        spec = FigureSpec([Panel("guide", marks, Axis())], (4.0, 3.0))
        axes = render(spec).axes[0]
        assert len(axes.get_lines()) == 2
        reach[in_view] = axes.get_ylim()[0]
    assert reach[True] < 0.0
    assert reach[False] > 4.0


def test_descriptions_need_no_matplotlib(tmp_path: Path):
    """In a process that cannot import it; drawing says what is missing."""
    script = """
import sys
sys.modules["matplotlib"] = None
import numpy as np
import jaxkernels as jk

rng = np.random.default_rng(0)
ends = rng.normal(size=(2, 30, 4))
comparison = jk.Comparison(("ours", "karras"), np.abs(ends[..., 0]), ends, ends[0], 1e-4)
print(len(comparison.figure().panels))
try:
    comparison.plot()
except ImportError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    count, message = result.stdout.splitlines()
    assert count == "4"
    assert (
        message
        == 'plotting needs matplotlib, which is not installed: pip install "jaxkernels[cli]".'
    )
