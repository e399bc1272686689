"""The pictures of results: their files, their contents, and that matplotlib's global state is left alone."""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

import jaxkernels as jk
from jaxkernels._figures import plot_optimized

TARGET = jk.Gaussian(0.0, np.array([1.0, 0.1, 0.0]))


class _Result(NamedTuple):
    schedule: jk.Schedule
    evaluation: jk.Evaluation
    ratios: dict[str, float]
    comparison: jk.Comparison | None
    criterion: str
    chosen: str
    baseline_schedules: dict[str, jk.Schedule]
    best_baseline: str
    baseline_evaluation: jk.Evaluation
    target: jk.Gaussian
    process: jk.AbstractProcess
    sampler: jk.AbstractSampler


def _settings() -> tuple[object, dict[str, object]]:
    parameters = matplotlib.rcParams
    # reading the parameter "backend" would choose one
    chosen = {key: parameters[key] for key in parameters if key != "backend"}
    return matplotlib.get_backend(auto_select=False), chosen


def _result(
    process: jk.AbstractProcess, times: np.ndarray, alpha: np.ndarray | float = 0.0
) -> _Result:
    """What an optimisation gives, without running one."""
    schedule = jk.Schedule(times, alpha)
    steps, end = schedule.num_steps, float(times[-1])
    grids = {
        name: jk.schedules.BASELINES[name](process, steps, end)
        for name in ("uniform", "karras", "quadratic")
    }
    return _Result(
        schedule=schedule,
        evaluation=jk.evaluate_schedule(TARGET, process, "ddim", schedule),
        ratios={"uniform": 200.0, "karras": 2.0, "quadratic": 3.0},
        comparison=None,
        criterion="objective",
        chosen="optimised",
        baseline_schedules=grids,
        best_baseline="karras",
        baseline_evaluation=jk.evaluate_schedule(TARGET, process, "ddim", grids["karras"]),
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
    process, law = jk.FlowMatching(), jk.Gaussian(0.0, TARGET.eigenvalues)
    samples = np.random.default_rng(0).standard_normal((64, 3)) * np.sqrt(
        np.asarray(law.eigenvalues)
    )

    times = np.array([1.0, 0.7, 0.3, 0.1])
    denoiser = law.denoiser(process)
    return jk.measure(denoiser, samples, times, key=jax.random.key(0), target=law, progress=False)


def test_panels_and_their_labels(result: _Result):
    figure = plot_optimized(result)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("Noise levels of the grids")
    assert titles[1:] == ["Error of each step", "Error over the spectrum", "Stochasticity"]
    assert all(axes.get_xlabel() for axes in figure.axes)
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [
        "optimised",
        "karras\n2 times the optimum",
        "quadratic\n3 times the optimum",
        "uniform\n200 times the optimum",
    ]


def test_ends_at_zero_and_infinity_stay_in_the_picture(result: _Result):
    axes = plot_optimized(result).axes[0]
    assert "open: 0 or infinite" in axes.get_title()
    left, right = axes.get_xlim()
    drawn = np.concatenate([np.asarray(line.get_xdata(), float) for line in axes.get_lines()])
    assert left > right > 0, "noise on the left, data on the right"
    assert np.all((drawn < left) & (drawn > right))


def test_what_was_chosen_on_a_network_says_its_error(result: _Result):
    comparison = _comparison(("recorded, mean", "karras"))
    values = comparison.statistic("geometric_mean")
    drawn = result._replace(
        comparison=comparison, criterion="geometric_mean", chosen="recorded, mean"
    )
    assert "W2 to the data law" in plot_optimized(result).get_suptitle()
    expected = (
        f"log mean error {values['recorded, mean']:.3g} optimised, {values['karras']:.3g} karras"
    )
    assert expected in plot_optimized(drawn).get_suptitle()


def test_deterministic_schedules_have_three_panels():
    result = _result(jk.EDM(), np.array([80.0, 5.0, 0.5, 0.1]))
    figure = plot_optimized(result)
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title() == "Noise levels of the grids"


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_file(result: _Result, tmp_path: Path, suffix: str, start: bytes):
    path = tmp_path / f"a{suffix}"
    plot_optimized(result, path)
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_notebooks_get_a_png(result: _Result, tmp_path: Path):
    content = plot_optimized(result)._repr_png_()  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "a.png").write_bytes(content)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000


def test_global_state_is_untouched(result: _Result):
    before = _settings()
    plot_optimized(result)
    assert _settings() == before


@pytest.mark.parametrize("name", ["a.jpeg", "a"])
def test_unknown_suffix(result: _Result, tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=rf"suffix of .*{name}='.*' is not known"):
        plot_optimized(result, tmp_path / name)


def test_a_failed_write_leaves_the_old_file(result: _Result, tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot write .*missing.*a\.png"):
        plot_optimized(result, tmp_path / "missing" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_comparison_has_a_panel_per_statistic():
    figure = _comparison(("ours", "karras", "uniform")).plot()
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == [
        "rms",
        "median",
        "log mean",
        "sliced W2",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "ours",
        "karras",
        "uniform",
    ]
    dots = [np.asarray(line.get_xdata(), float) for line in figure.axes[2].get_lines()[1:]]
    np.testing.assert_allclose(dots, [[1.0], [2.0], [3.0]])


def test_of_many_schedules_the_named_grids_and_the_best_are_shown():
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
    assert report.plot(kind="rms").axes[0].get_ylabel().startswith("rms")
    with pytest.raises(ValueError, match="Did you mean 'geometric_mean'"):
        report.plot(kind="logmean")


def test_measurement_draws_what_is_known(measurement: jk.Measurement):
    titles = ["Denoising error", "Violation of the martingale identity", "Lipschitz constant"]
    figure = measurement.plot()
    assert [axes.get_title() for axes in figure.axes] == titles
    assert "infinite at the edge" in figure.axes[0].get_xlabel()
    data = np.random.default_rng(0).standard_normal((20, 2))
    known = jk.Measurement.from_samples(jk.EDM(), data, np.array([80.0, 1.0, 0.1])).plot()
    assert [axes.get_title() for axes in known.axes] == titles[:1]


def test_the_exact_denoiser_keeps_the_identity(measurement: jk.Measurement):
    """Zero is within the bars, which are two standard errors, or nearly."""
    axes = measurement.plot().axes[1]
    for bars in axes.containers:
        share, spread = np.asarray(bars[0].get_ydata()), bars[2][0].get_segments()
        reach = np.array([segment[1, 1] - segment[0, 1] for segment in spread]) / 2.0
        assert np.all(np.abs(share) < 2.0 * reach + 1e-6)


@pytest.mark.parametrize("kind", ["comparison", "report", "measurement"])
def test_other_pictures_are_files_too(kind: str, measurement: jk.Measurement, tmp_path: Path):
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
