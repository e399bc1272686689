"""The command line as a user meets it: its output, its files, and one line for every mistake."""

import contextlib
import errno
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
import pytest
import typer

import jaxkernels as jk
from jaxkernels.__main__ import main
from jaxkernels.cli import _cache, _solve
from jaxkernels.cli._app import app
from jaxkernels.cli._inputs import make_process
from jaxkernels.exports import SCHEDULERS
from jaxkernels.processes import from_config, to_config
from jaxkernels.schedules import read_json


class Run(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments: object) -> Run:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
    return Run(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache folder of whoever runs the tests is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


class Files(NamedTuple):
    folder: Path
    spectrum: Path
    schedule: Path
    figure: Path
    result: Run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """One optimisation, whose files the other tests read."""
    folder = tmp_path_factory.mktemp("cli")
    spectrum, schedule = folder / "spectrum.txt", folder / "best.json"
    spectrum.write_text("1\n0.1\n")
    how = ("--process", "edm", "--sigma-max", 14, "--sampler", "ddim", "--steps", 3)
    result = run("optimize", "--spectrum", spectrum, *how, "--output", schedule)
    # a mistake in the command is told here, not by every test that reads its files
    assert result.code == 0, result.err
    return Files(folder, spectrum, schedule, folder / "best.png", result)


class TestOptimize:
    def test_report(self, files: Files):
        assert files.result.code == 0
        assert files.result.err == ""
        for part in (
            "t_min: 0.002, the default for edm",
            "2 eigenvalues from",
            "sigma",
            "objective local w2_squared",
            "karras",
            "to the optimum",
            "error budget",
            "discretization",
            "KL(p_data || q)",
            "trusted: yes; verified on a network: no",
            "converged: yes",
            f"written: {files.schedule}, {files.figure}",
        ):
            assert part in files.result.out

    def test_baselines_come_sorted_with_the_optimum_first(self, files: Files):
        table = files.result.out.split("objective local")[1].split("error budget")[0]
        rows = re.findall(r"│ (\w+) +│ +[\d.e-]+ │ +([\d.]+) │", table)
        assert rows[0] == ("optimised", "1")
        ratios = [float(ratio) for _, ratio in rows[1:]]
        assert len(ratios) == len(jk.schedules.BASELINES)
        assert ratios == sorted(ratios)
        assert ratios[0] >= 1

    def test_files(self, files: Files):
        metadata = read_json(files.schedule)["metadata"]
        schedule = jk.Schedule.load(files.schedule)
        assert schedule.num_steps == 3
        assert metadata["sampler"] == "ddim"
        assert metadata["converged"] is True
        assert (metadata["selected"], metadata["criterion"]) == ("optimised", "objective")
        # of what the steps cause
        fixed = sum(metadata["unchangeable"].values())
        own = metadata["objective"] - fixed
        ratios = {name: (v - fixed) / own for name, v in metadata["baselines"].items()}
        assert metadata["ratios"] == pytest.approx(ratios)
        assert to_config(from_config(metadata["process"])) == to_config(jk.EDM(14.0))
        assert files.figure.read_bytes().startswith(b"\x89PNG")
        assert sorted(p.name for p in files.folder.iterdir()) == [
            "best.json",
            "best.png",
            "spectrum.txt",
        ]


@pytest.mark.slow
def test_a_mixture_is_fitted_to_samples(tmp_path: Path):
    rng = np.random.default_rng(0)
    np.save(
        tmp_path / "x.npy",
        np.where(rng.random((400, 1)) < 0.3, -1.0, 1.0) + 0.1 * rng.normal(size=(400, 2)),
    )
    how = (
        "--data",
        tmp_path / "x.npy",
        "--sampler",
        "heun",
        "--steps",
        3,
        "--mixture",
        2,
        "--no-plot",
    )
    result = run("optimize", *how, "--output", tmp_path / "best.json")
    assert result.code == 0
    assert "model: a mixture of Gaussians" in result.out
    table = result.out.split("the reference solution's samples")[1].split("error budget")[0]
    assert all(name in table for name in jk.schedules.BASELINES)
    assert "verified on a network: no" in result.out
    assert jk.Schedule.load(tmp_path / "best.json").num_steps == 3


def test_samples_are_modelled_by_a_mixture_unless_a_covariance_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def started(target: object, *_: object, **__: object) -> None:
        raise ValueError(f"target: {type(target).__name__}")

    monkeypatch.setattr(_solve, "optimize_schedule", started)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(130, 2)))
    how = (
        "optimize",
        "--data",
        tmp_path / "x.npy",
        "--no-plot",
        "--output",
        tmp_path / "best.json",
    )
    assert "target: GaussianMixture" in run(*how).err
    assert "target: GaussianMixture" in run(*how, "--mixture", "2").err
    for options in (
        ("--mixture", "0"),
        ("--metric", "kl"),
        ("--objective", "terminal"),
        ("--shrinkage", "0.1"),
    ):
        assert run(*how, *options).err.endswith("target: Gaussian\n")
    message = run(*how, "--mixture", "2", "--metric", "kl").err
    assert "--mixture = 2 has no use for --metric" in message


class TestEvaluate:
    def test_file_gives_the_numbers_of_the_library(self, files: Files):
        result = run("evaluate", files.schedule, "--spectrum", files.spectrum)
        assert result.code == 0
        target = jk.Gaussian(0.0, np.array([1.0, 0.1]))
        exact = jk.evaluate_schedule(target, jk.EDM(14.0), "ddim", jk.Schedule.load(files.schedule))
        assert f"W2 {float(exact.w2):.4g}, KL(p_data || q) {float(exact.kl):.4g} nats" in result.out
        assert "NFE 3" in result.out

    def test_baseline_schedule(self, files: Files):
        how = ("--process", "edm", "--sigma-max", 14, "--sampler", "ddim", "--steps", 3)
        result = run("evaluate", "--schedule", "karras", "--spectrum", files.spectrum, *how)
        assert result.code == 0
        assert "error budget" in result.out

    def test_samples(self, files: Files, tmp_path: Path):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 2)))
        result = run("evaluate", files.schedule, "--data", tmp_path / "x.npy", "--shrinkage", "0.1")
        assert result.code == 0
        assert "20 samples of 2 dimensions" in result.out
        assert "warning" not in result.out

    def test_units_that_look_wrong(self, files: Files, tmp_path: Path):
        np.save(tmp_path / "x.npy", 255 * np.random.default_rng(0).normal(size=(20, 2)))
        result = run("evaluate", files.schedule, "--data", tmp_path / "x.npy")
        assert "are the units right?" in result.out


def test_compare_ranks_baselines_and_files(files: Files):
    result = run("compare", files.schedule, "--spectrum", files.spectrum, "--steps", 3)
    assert result.code == 0
    rows = [line for line in result.out.splitlines() if line.count("│") == 8]
    assert len(rows) == len(jk.schedules.BASELINES) + 1
    local = [float(row.split("│")[4]) for row in rows]
    assert local == sorted(local)
    objective = read_json(files.schedule)["metadata"]["objective"]
    assert local[0] == pytest.approx(objective, rel=1e-3)


SUB_RANGES = {
    "image-to-image": (("vp", "--strength", 0.7), jk.VP(), 0.7),
    "vp": (("vp", "--t-max", 0.7), jk.VP(), 0.7),
    # sigma^2 = e^t - 1 = 3, sigma^2 = 2 t = 9, sigma = t / (1 - t) = 3
    "ou": (("ou", "--sigma-max", 3**0.5), jk.OU(), 2 * np.log(2)),
    "ve": (("ve", "--sigma-max", 3), jk.VE(), 4.5),
    "inpainting": (("edm", "--t-max", 3), jk.EDM(), 3.0),
    "cosine": (("cosine_vp", "--strength", 0.7), jk.CosineVP(), 0.7),
    "second expert": (("flow_matching", "--t-max", 0.875), jk.FlowMatching(), 0.875),
    "flow": (("flow_matching", "--sigma-max", 3), jk.FlowMatching(), 0.75),
    "table": (("discrete_vp", "--strength", 0.7), jk.DiscreteVP.scaled_linear(), 700.0),
}


class TestSubRange:
    @pytest.mark.parametrize("name", SUB_RANGES)
    def test_process(self, name: str):
        """The options say where sampling starts, whatever the process calls its parameters."""
        options, whole, t_max = SUB_RANGES[name]
        kind, flag, value = options
        process = make_process(kind, {flag[2:].replace("-", "_"): float(value)})
        assert to_config(process) == to_config(whole.sub_range(float(process.t_max)))
        assert float(process.t_max) == pytest.approx(t_max, rel=1e-12)
        assert process.initialization == "marginal"

    def test_the_start_is_kept_in_the_file(self, tmp_path: Path):
        """The saved schedule is evaluated as it was optimised: from noised data."""
        spectrum = tmp_path / "spectrum.txt"
        spectrum.write_text("1\n0.1\n")
        how = ("--spectrum", spectrum, "--sampler", "ddim", "--steps", 3, "--no-plot")
        starts = (
            ("--process", "flow_matching", "--t-max", 0.875),
            ("--process", "ou", "--t-max", 1, "--initialization", "marginal"),
        )
        for number, start in enumerate(starts):
            file = tmp_path / f"{number}.json"
            made = run("optimize", *how, *start, "--output", file)
            assert "sampling starts from noised data at t = " in made.out
            again = run("evaluate", file, "--spectrum", spectrum)
            assert read_json(file)["metadata"]["initialization"] == "marginal"
            (said,) = re.findall(r"W2 [\d.]+, KL.*", made.out)
            assert said in again.out
            assert re.search(r"initialization │ +0 │ +0 │", again.out)
            other = run(
                "evaluate", file, "--spectrum", spectrum, "--initialization", "standard_normal"
            )
            assert said not in other.out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--strength", 0.5, "--t-max", 0.5), "both say where sampling starts"),
            (("--process", "edm", "--strength", 0.5), "--strength = 0.5 .* as --t-max"),
            (("--process", "ve", "--strength", 0.5), "--strength = 0.5 .* as --sigma-max"),
            (("--strength", 2), "--strength = 2 must be > 0 and <= 1"),
            (("--t-max", 3), "t_max = 3 must be > 0 and <= 1"),
            (("--sigma-max", 1000), "--sigma-max = 1000 must be > 0 and <= 152"),
            (("--process", "discrete_vp", "--t-max", 0.5), "t_max = 0.5 must be > 1 and <= 1000"),
            (
                ("--process", "discrete_vp", "--strength", 0.0005),
                "--strength = 0.0005: t_max = 0.5",
            ),
            (("--process", "discrete_vp", "--sigma-max", 0.01), "--sigma-max = 0.01: t_max = 0.34"),
        ],
    )
    def test_mistakes(self, files: Files, options: tuple, message: str):
        result = run("evaluate", "--schedule", "karras", "--spectrum", files.spectrum, *options)
        assert result.code == 2
        assert re.search(message, result.err)

    def test_options_beside_a_file_are_of_its_process(self, files: Files, tmp_path: Path):
        """Not of the default, in whose range they may not lie."""
        file = tmp_path / "s.json"
        start = ("--process", "discrete_vp", "--strength", 0.35)
        how = ("--spectrum", files.spectrum, "--sampler", "ddim", "--steps", 2, "--no-plot")
        assert run("optimize", *how, *start, "--output", file).code == 0
        found = run("evaluate", file, "--spectrum", files.spectrum, "--t-max", 500)
        assert found.code == 2
        whole = r"discrete_vp\(table of 1000 entries, sub_range="
        assert re.search(rf"another process .*{whole}350\) instead of {whole}500\)", found.err)
        assert run("evaluate", file, "--spectrum", files.spectrum, "--t-max", 350).code == 0


class TestOwnSchedule:
    LEVELS = (14.615, 6.475, 1.396, 0.152, 0.0)

    def test_lists_are_rivals(self, files: Files, tmp_path: Path):
        """Inline and in files; the numbers are those of the library."""
        np.save(tmp_path / "mine.npy", self.LEVELS)
        (tmp_path / "mine.json").write_text(json.dumps(self.LEVELS))
        (tmp_path / "mine.txt").write_text("\n".join(map(str, self.LEVELS)))
        inline = ",".join(map(str, self.LEVELS))
        steps = tmp_path / "steps.json"
        steps.write_text("[999, 499, 99]")
        how = ("--spectrum", files.spectrum, "--process", "discrete_vp", "--sampler", "ddim")
        lists = (inline, *(tmp_path / f"mine.{s}" for s in ("npy", "json", "txt")))
        rivals = [part for text in lists for part in ("--sigmas", text)]
        table = run("compare", *how, "--t-min", 0, *rivals, "--timesteps", steps)
        assert table.code == 0, table.err
        process = jk.DiscreteVP.scaled_linear()
        target = jk.Gaussian(0.0, np.array([1.0, 0.1]))
        top = float(process.sigma(1000.0))
        mine = jk.Schedule.from_sigmas(process, [top, *self.LEVELS[1:]])
        w2 = float(jk.evaluate_schedule(target, process, "ddim", mine).w2)
        assert table.out.count(f"│ {w2:.4g} │") == 4
        timed = jk.Schedule([1000.0, 500.0, 100.0, 0.0])
        w2 = float(jk.evaluate_schedule(target, process, "ddim", timed).w2)
        assert re.search(rf"steps.json +│ +3 │ +3 │.*│ {w2:.4g} │", table.out)
        assert f"W2 {w2:.4g}" in run("evaluate", *how, "--timesteps", "[999 499 99]").out

    def test_a_rival_of_the_optimisation(self, files: Files, tmp_path: Path):
        """Its steps and end are taken, and its objective stands in the table."""
        mine = tmp_path / "mine.txt"
        mine.write_text("14.6146\n4\n0.5\n0.0292\n")
        where = ("--output", tmp_path / "best.json", "--no-plot")
        how = ("--spectrum", files.spectrum, "--process", "discrete_vp", "--sampler", "ddim")
        made = run("optimize", *how, "--sigmas", mine, *where)
        assert made.code == 0, made.err
        process = jk.DiscreteVP.scaled_linear()
        levels = [float(process.sigma(1000.0)), 4.0, 0.5, 0.0292]
        rival = jk.Schedule.from_sigmas(process, levels)
        bound = jk.LocalError().bind(jk.Gaussian(0.0, np.array([1.0, 0.1])), process, jk.DDIM())
        assert re.search(rf"mine.txt .*│ +{float(bound(rival)):.4g} │", made.out)
        assert "karras" in made.out
        best = jk.Schedule.load(tmp_path / "best.json")
        assert best.num_steps == 3
        assert float(bound(best)) < float(bound(rival))
        other = run("optimize", *how, "--sigmas", mine, "--steps", 5, *where)
        assert "mine.txt has 3 steps; it must have 5 here" in other.err

    def test_sigmas_of_flow_models_are_times(self, files: Files):
        how = ("--spectrum", files.spectrum, "--process", "flow_matching", "--sampler", "ddim")
        out = run("evaluate", *how, "--sigmas", "1, 0.5, 0").out
        exact = jk.evaluate_schedule(
            jk.Gaussian(0.0, np.array([1.0, 0.1])),
            jk.FlowMatching(),
            "ddim",
            jk.Schedule([1.0, 0.5, 0.0]),
        )
        assert f"W2 {float(exact.w2):.4g}" in out
        assert run("evaluate", *how, "--timesteps", "1000, 500").out.count(out.split("W2 ")[-1])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--sigmas", "3,x"), "--sigmas = '3,x' must be numbers or a .*'x' is no number"),
            (("--sigmas", ""), "--sigmas = '' must be numbers .*it is empty"),
            (("--sigmas", "1,2"), "sigmas must strictly decrease"),
            (("--sigmas", "missing.npy"), "missing.npy is no file"),
            (("--sigmas", "3,1", "--steps", 4), "--steps = 4 is for --schedule NAME"),
            (("--sigmas", "3,1", "--schedule", "karras"), "either a schedule FILE or --schedule"),
            (("--timesteps", "9,1"), "process VP has no timesteps"),
        ],
    )
    def test_mistakes(self, files: Files, options: tuple, message: str):
        result = run("evaluate", "--spectrum", files.spectrum, *options)
        assert result.code == 2
        assert re.search(message, result.err)


class TestExport:
    @pytest.mark.parametrize(
        ("tool", "part"),
        [
            ("diffusers", "EDMEulerScheduler"),
            ("k-diffusion", "sigmas = torch.tensor([14.0, "),
            ("comfyui", "14.0, "),
            ("edm", "t_steps = torch.tensor(["),
        ],
    )
    def test_text_stands_alone(self, files: Files, tool: str, part: str):
        result = run("export", files.schedule, "--to", tool)
        assert result.code == 0
        assert part in result.out
        assert "note" not in result.out
        # what cannot stop above 0
        assert ("note: the last level 0.002 is replaced by 0" in result.err) == (
            tool in ("diffusers", "edm")
        )

    def test_help_names_every_scheduler(self):
        help_text = " ".join(run("export", "--help").out.replace("│", " ").split())
        assert all(name in help_text for name in SCHEDULERS)

    def test_options_reach_the_tool(self, files: Files):
        how = (
            "--to",
            "diffusers",
            "--scheduler",
            "flow_match_euler",
            "--shift",
            3,
            "--end",
            "append",
        )
        result = run("export", files.schedule, *how)
        assert "shift=3.0" in result.out
        assert "is appended: 4 steps" in result.err
        kept = run("export", files.schedule, "--to", "k-diffusion", "--end", "keep")
        assert kept.out == run("export", files.schedule, "--to", "k-diffusion").out

    def test_table_of_the_network(self, files: Files, tmp_path: Path):
        betas = np.linspace(1e-4, 0.05, 1000)
        np.save(tmp_path / "table.npy", np.cumprod(1 - betas))
        how = (
            "--to",
            "diffusers",
            "--scheduler",
            "dpm_multistep",
            "--table",
            tmp_path / "table.npy",
        )
        assert "timesteps = [" in run("export", files.schedule, *how).out

    def test_integer_timesteps_with_the_smallest_objective(self, files: Files, tmp_path: Path):
        """Of the nearest of a short table two are equal; the data tell which ones are best."""
        table = 1.0 - np.linspace(0.01, 0.5, 12)
        np.save(tmp_path / "table.npy", np.cumprod(table))
        how = ("--process", "discrete_vp", "--table", tmp_path / "table.npy", "--to", "diffusers")
        how = (
            "export",
            "--schedule",
            "karras",
            "--steps",
            10,
            "--t-min",
            0,
            "--sampler",
            "ddim",
            *how,
        )
        nearest = run(*how, "--scheduler", "dpm_multistep")
        best = run(*how, "--scheduler", "dpm_multistep", "--spectrum", files.spectrum)
        assert best.code == 0, best.err
        process = jk.DiscreteVP(np.cumprod(table))
        objective = eqx.filter_jit(
            jk.LocalError().bind(jk.Gaussian(0.0, [1.0, 0.1]), process, jk.DDIM())
        )

        def value(text: str) -> float:
            found = re.search(r"timesteps = \[(.*?)\]", text, re.DOTALL)
            assert found is not None
            told = np.array([int(t) for t in found[1].split(",")])
            assert np.all(np.diff(told) < 0)
            return float(objective(jk.Schedule([*(told + 1.0), 0.0])))

        assert value(best.out) < value(nearest.out)
        refused = run(*how, "--scheduler", "euler", "--spectrum", files.spectrum)
        assert refused.code == 2
        assert "which this export does not take" in refused.err
        alone = run(*how, "--scheduler", "dpm_multistep", "--max-samples", 5)
        assert "give the data either as --data" in alone.err

    def test_a_schedule_file_knows_its_objective(self, files: Files, tmp_path: Path):
        """Without data: integers as good as those for the data that it was optimised for."""
        process = jk.DiscreteVP(np.cumprod(1.0 - np.linspace(0.01, 0.7, 12)))
        target = jk.Gaussian(0.0, [1.0, 0.1])
        result = jk.optimize_schedule(target, process, "ddim", 11, t_min=0.0)
        assert jk.optimize.rounding_makes_equal(result.schedule, process)
        objective = eqx.filter_jit(jk.LocalError().bind(target, process, jk.DDIM()))
        result.save(tmp_path / "own.json")
        how = ("--to", "diffusers", "--scheduler", "dpm_multistep")

        def told(result: Run) -> np.ndarray:
            assert result.code == 0, result.err
            found = re.search(r"timesteps = \[(.*?)\]", result.out, re.DOTALL)
            assert found is not None
            return np.array([int(t) for t in found[1].split(",")])

        own = run("export", tmp_path / "own.json", *how)
        every = itertools.combinations(range(10, -1, -1), 10)
        best = min(float(objective(jk.Schedule([12.0, *np.add(t, 1.0), 0.0]))) for t in every)
        own_value = float(objective(jk.Schedule([*(told(own) + 1.0), 0.0])))
        assert own_value == pytest.approx(best, rel=1e-6)
        assert "these have the smallest local error" in own.err
        assert "nearest distinct ones are taken" not in own.err
        content = json.loads((tmp_path / "own.json").read_text())
        del content["metadata"]["local_error"]
        (tmp_path / "plain.json").write_text(json.dumps(content))
        plain = run("export", tmp_path / "plain.json", *how)
        assert "nearest distinct ones are taken" in plain.err
        assert "--data or --spectrum" in plain.err
        assert float(objective(jk.Schedule([*(told(plain) + 1.0), 0.0]))) >= own_value
        content["metadata"]["local_error"] = {"metric": "w2_squared"}
        (tmp_path / "broken.json").write_text(json.dumps(content))
        broken = run("export", tmp_path / "broken.json", *how)
        assert broken.code == 2
        assert "broken.json: local_error has no 'initialization'" in broken.err

    def test_to_a_file(self, files: Files, tmp_path: Path):
        path = tmp_path / "sigmas.txt"
        result = run("export", files.schedule, "--to", "comfyui", "--output", path)
        assert result.out == f"written: {path}\n"
        assert path.read_text() == run("export", files.schedule, "--to", "comfyui").out

    def test_schedule_that_does_not_name_its_process(self, tmp_path: Path):
        jk.Schedule(np.array([1.0, 0.5])).save(tmp_path / "plain.json")
        result = run("export", tmp_path / "plain.json", "--to", "edm")
        assert result.code == 2
        assert "does not say which process" in result.err
        named = run("export", tmp_path / "plain.json", "--to", "comfyui", "--process", "vp")
        assert named.code == 0
        levels = np.asarray(jk.Schedule([1.0, 0.5]).sigmas(jk.VP()))
        assert [float(v) for v in named.out.split(",")] == pytest.approx(levels, rel=1e-6)

    @pytest.mark.parametrize("name", jk.schedules.SCHEDULES)
    def test_known_schedule_without_a_file(self, name: str):
        how = ("--steps", 10, "--process", "edm", "--sigma-max", 14, "--to", "comfyui")
        result = run("export", "--schedule", name, *how)
        assert result.code == 0
        schedule = jk.schedules.SCHEDULES[name](jk.EDM(14.0), 10, 2e-3)
        expected = np.asarray(schedule.sigmas(jk.EDM(14.0)))
        numbers = [float(v) for v in result.out.split(",")]
        assert numbers == pytest.approx(expected, rel=1e-5)

    def test_baseline_of_the_default_process_and_end(self):
        result = run("export", "--schedule", "karras", "--steps", 5, "--to", "k-diffusion")
        schedule = jk.schedules.karras(jk.VP(), 5, 1e-3)
        found = re.search(r"tensor\(\[([^\]]+)\]", result.out)
        assert found is not None
        levels = [float(v) for v in found[1].split(",")]
        assert levels == pytest.approx(np.asarray(schedule.sigmas(jk.VP())), rel=1e-5)
        ended = run(
            *("export", "--schedule", "karras", "--steps", 5, "--t-min", 0.1, "--to", "k-diffusion")
        )
        assert ended.code == 0
        assert ended.out != result.out

    def test_options_that_process_and_scheduler_share(self, files: Files, tmp_path: Path):
        """They describe the process where the options name it, else the scheduler."""
        how = ("--to", "diffusers", "--scheduler", "edm_euler", "--sigma-max", 14)
        of_file = run("export", files.schedule, *how)
        assert "sigma_max=14.0" in of_file.out
        named = run("export", "--schedule", "karras", "--steps", 3, "--process", "edm", *how)
        assert named.code == 0
        # the scheduler follows its process, and the ramp begins at its start
        assert "sigma_max=14.0" in named.out
        assert "torch.tensor([0.0," in named.out
        np.save(tmp_path / "table.npy", np.cumprod(1 - np.linspace(1e-4, 0.05, 1000)))
        table = ("--process", "discrete_vp", "--table", tmp_path / "table.npy")
        own = run("export", "--schedule", "karras", "--steps", 3, *table, "--to", "comfyui")
        assert own.code == 0
        level = float(own.out.split(",")[0])
        default = run("export", "--schedule", "karras", "--steps", 3, *table[:2], "--to", "comfyui")
        assert level > 1.5 * float(default.out.split(",")[0])

    def test_the_sampler_that_is_named_is_checked_against_the_tool(self):
        how = (
            "--schedule",
            "karras",
            "--steps",
            5,
            "--process",
            "discrete_vp",
            "--to",
            "diffusers",
        )
        plain = run("export", *how, "--scheduler", "dpm_multistep")
        named = run("export", *how, "--scheduler", "dpm_multistep", "--sampler", "heun")
        assert (plain.code, named.code) == (0, 0)
        assert plain.out == named.out
        assert "heun" in named.err
        assert "heun" not in plain.err

    def test_a_user_defined_sampler_is_told(self, files: Files, tmp_path: Path):
        content = json.loads(files.schedule.read_text())
        content["metadata"]["sampler"] = "MySampler"
        (tmp_path / "own.json").write_text(json.dumps(content))
        result = run("export", tmp_path / "own.json", "--to", "comfyui")
        assert result.code == 0
        assert "user-defined sampler 'MySampler'" in result.err


def _lines(*numbers: float) -> str:
    return "".join(f"{v}\n" for v in numbers)


def _edited(source: Path, **changes: object) -> str:
    return json.dumps({**json.loads(source.read_text()), **changes})


class TestMistakes:
    """Exit code 2, one line with the argument and the value, nothing written, no traceback."""

    @pytest.fixture(autouse=True)
    def _no_optimisation(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def started(*_: object, **__: object) -> None:
            raise AssertionError("the optimisation was started")

        monkeypatch.setattr(_solve, "optimize_schedule", started)
        monkeypatch.chdir(tmp_path)

    def fails(self, *arguments: object) -> str:
        """The one line on standard error."""
        result = run(*arguments)
        assert result.code == 2
        assert result.err.startswith("jaxkernels: error: ")
        assert result.err.count("\n") == 1
        assert "Traceback" not in result.err + result.out
        return result.err

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (np.empty((0, 3)), "x.npy is empty"),
            (np.ones((1, 3)), "x.npy holds 1 sample; at least 2"),
            (np.array([[1.0, 2.0], [np.nan, 3.0]]), "x.npy[1, 0] = nan"),
            (np.array([[1.0, np.inf], [2.0, 3.0]]), "x.npy[0, 1] = inf"),
            (np.ones((5, 3)), "samples are all equal"),
        ],
    )
    def test_samples(self, tmp_path: Path, content: np.ndarray, fault: str):
        np.save(tmp_path / "x.npy", content)
        assert fault in self.fails("optimize", "--data", tmp_path / "x.npy")

    @pytest.mark.parametrize(
        ("numbers", "fault"),
        [
            ((1.0, -0.5), "eigenvalues[1] = -0.5 is negative"),
            ((1.0, float("nan")), "s.txt[1, 0] = nan"),
            ((), "holds no numbers"),
        ],
    )
    def test_spectra(self, tmp_path: Path, numbers: tuple[float, ...], fault: str):
        (tmp_path / "s.txt").write_text(_lines(*numbers))
        assert fault in self.fails("optimize", "--spectrum", tmp_path / "s.txt")

    @pytest.mark.parametrize(
        ("arguments", "fault"),
        [
            (("--steps", "0"), "--steps = 0 must be at least 1"),
            (("--steps", "-3"), "--steps = -3 must be at least 1"),
            (("--steps", "99999999"), "--steps = 99999999 must be at most 10000"),
            (("--steps", "many"), "'--steps'"),
            (("--sampler", "ddmi"), "sampler='ddmi' is not known. Did you mean 'ddim'?"),
            (("--process", "edn"), "process='edn' is not known. Did you mean 'edm'?"),
            (("--objective", ""), "--objective='' is not known"),
            (("--metric", ""), "--metric='' is not known"),
            (("--objective", "locl"), "--objective='locl' is not known. Did you mean 'local'?"),
            (
                ("--metric", "w2_square"),
                "--metric='w2_square' is not known. Did you mean 'w2_squared'?",
            ),
            (("--stochasticity", "lots"), "--stochasticity='lots' is not known"),
            (("--stochasticity", "optimise"), "Did you mean 'optimize'?"),
            (("--initialization", "marginl"), "Did you mean 'marginal'?"),
            (
                ("--process", "edm", "--beta-min", "1"),
                "--beta-min = 1.0 has no use for process 'edm'",
            ),
            (("--beta-min", "-1"), "beta_min = -1 must be > 0"),
            (("--beta-max", "99999999"), "beta_max = 1e+08 must be >= 0.1 and <= 10000"),
            (("--process", "edm", "--sigma-max", "1e300"), "sigma_max = 1e+300 must be > 0 and"),
            (("--table", "t.npy"), "--table = t.npy has no use for process 'vp'"),
            (("--process", "discrete_vp", "--table", "t.npy"), "--table: t.npy is no file"),
            (("--shrinkage", "0.5"), "--shrinkage = 0.5 is for samples"),
            (("--data", "digits"), "either as --data"),
            (("--mixture", "3"), "--mixture = 3 is fitted to samples: give them as --data"),
            (("--mixture", "-1"), "--mixture = -1 must be at least 0"),
            (("--plot", "a.jpeg"), "a.jpeg='.jpeg' is not known"),
            (("--plot", "a.png", "--no-plot"), "--plot a.png and --no-plot exclude"),
            (("--output", "a.png"), "--output and --plot are both a.png"),
            (("--stepz", "3"), "--stepz"),
            (("more",), "more"),
        ],
    )
    def test_options(self, tmp_path: Path, arguments: tuple[str, ...], fault: str):
        (tmp_path / "s.txt").write_text(_lines(1.0, 0.1))
        assert fault in self.fails("optimize", "--spectrum", "s.txt", *arguments)
        assert [p.name for p in tmp_path.iterdir()] == ["s.txt"]

    @pytest.mark.parametrize(
        ("arguments", "fault"),
        [
            ((), "either as --data"),
            (
                ("--data", "digit"),
                "--data: digit is no file or folder that exists, nor the name of a data set "
                "(digits)",
            ),
            (("--spectrum", "missing.npy"), "--spectrum: missing.npy is no file"),
            (("--data", "digits", "--shrinkage", "2"), "shrinkage = 2 must be"),
            (("--data", "digits", "--shrinkage", "ledoit"), "Did you mean 'ledoit_wolf'?"),
        ],
    )
    def test_targets(self, arguments: tuple[str, ...], fault: str):
        assert fault in self.fails("optimize", *arguments)

    @pytest.mark.parametrize("command", ["optimize", "evaluate", "compare", "export"])
    @pytest.mark.parametrize("value", ["lots", "nan", "-1"])
    def test_nonsense_for_every_option(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, value: str
    ):
        """Numbers, choices and files alike: the message names the option and the value."""
        monkeypatch.setattr(_solve, "optimize_schedule", jk.optimize_schedule)
        (tmp_path / "s.txt").write_text(_lines(1.0, 0.1))
        rest = {
            "optimize": {"--spectrum": "s.txt", "--process": "discrete_vp"},
            "evaluate": {
                "--spectrum": "s.txt",
                "--schedule": "karras",
                "--process": "discrete_vp",
            },
            "compare": {"--spectrum": "s.txt", "--process": "discrete_vp"},
            "export": {"--schedule": "karras", "--to": "diffusers", "--process": "discrete_vp"},
        }[command]
        options = typer.main.get_command(app).commands[command].params  # pyright: ignore
        unnamed = []
        for option in options:
            flag = option.opts[0]
            # any text is the name of a file to write
            if (
                getattr(option, "is_flag", True)
                or not flag.startswith("--")
                or flag in ("--output", "--plot")
            ):
                continue
            instead = {
                "--data": "--spectrum",
                "--sigmas": "--schedule",
                "--timesteps": "--schedule",
            }
            given = {k: v for k, v in rest.items() if k != instead.get(flag)}
            given[flag] = value
            message = self.fails(command, *(f"{name}={text}" for name, text in given.items()))
            name = flag.removeprefix("--")
            named = name in message or name.replace("-", "_") in message
            # of an option that the rest has no use for, the value does not matter
            useless = "; it takes" in message or "; leave them out" in message
            if not (useless or (named and value in message)):
                unnamed.append(message)
        assert not unnamed

    @pytest.mark.parametrize(("t_min", "shown"), [("-0.1", "-0.1"), ("1", "1"), ("3", "3")])
    def test_last_times(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, t_min: str, shown: str
    ):
        monkeypatch.setattr(_solve, "optimize_schedule", jk.optimize_schedule)
        (tmp_path / "s.txt").write_text(_lines(1.0, 0.1))
        message = self.fails("optimize", "--spectrum", "s.txt", "--t-min", t_min)
        assert f"t_min = {shown} must be >= 0 and < 1" in message

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda s: "", "is not a complete JSON file"),
            (lambda s: s.read_text()[:80], "is not a complete JSON file"),
            (lambda s: "[1, 2]", "is not a schedule file"),
            (lambda s: _edited(s, version=99), "has version 99"),
            (lambda s: _edited(s, times=[1.0, 2.0]), "must strictly decrease"),
            (
                lambda s: _edited(s, metadata={"process": {"type": "edx"}}),
                "process='edx' is not known",
            ),
        ],
    )
    @pytest.mark.parametrize("command", ["evaluate", "compare", "export"])
    def test_schedule_files(
        self, files: Files, tmp_path: Path, command: str, change: Callable[[Path], str], fault: str
    ):
        (tmp_path / "bad.json").write_text(change(files.schedule))
        rest = ("--to", "edm") if command == "export" else ("--spectrum", files.spectrum)
        message = self.fails(command, "bad.json", *rest)
        assert "bad.json" in message
        assert fault in message

    @pytest.mark.parametrize(
        ("arguments", "fault"),
        [
            (("evaluate",), "evaluate needs either a schedule FILE or --schedule NAME"),
            (("export", "--to", "edm"), "export needs either a schedule FILE or --schedule NAME"),
            (("evaluate", "missing.json"), "cannot read missing.json: No such file"),
            (
                ("evaluate", "--schedule", "karas"),
                "schedule='karas' is not known. Did you mean 'karras'?",
            ),
            (
                ("export", "--schedule", "karas", "--to", "edm"),
                "schedule='karas' is not known. Did you mean 'karras'?",
            ),
            (("optimise",), "Did you mean 'optimize'?"),
            (("export", "missing.json", "--to", "edm"), "cannot read missing.json"),
            (("export", "missing.json"), "--to"),
        ],
    )
    def test_commands(self, files: Files, arguments: tuple[str, ...], fault: str):
        target = ("--spectrum", files.spectrum) if arguments[0] == "evaluate" else ()
        assert fault in self.fails(*arguments, *target)

    def test_files_of_another_process(self, files: Files):
        message = self.fails(
            "compare", files.schedule, "--spectrum", files.spectrum, "--process", "vp"
        )
        assert "edm(sigma_max=14) instead of vp(beta_min=0.1, beta_max=20)" in message

    @pytest.mark.parametrize("command", ["evaluate", "export"])
    def test_options_of_a_baseline_beside_a_file(self, files: Files, command: str):
        rest = ("--to", "edm") if command == "export" else ("--spectrum", files.spectrum)
        message = self.fails(command, files.schedule, *rest, "--steps", "5")
        assert "--steps = 5 is for --schedule NAME" in message
        message = self.fails(command, files.schedule, *rest, "--t-min", "0.5")
        assert "--t-min = 0.5 is for --schedule NAME" in message

    def test_tools(self, files: Files):
        assert "Did you mean 'comfyui'?" in self.fails("export", files.schedule, "--to", "comfy")
        message = self.fails("export", files.schedule, "--to", "edm", "--shift", "2")
        assert "tool 'edm' has no option 'shift'" in message

    @pytest.mark.parametrize("name", ["missing/a.json", "folder", "folder/x/a.json"])
    @pytest.mark.parametrize("option", ["--output", "--plot"])
    def test_unwritable_output(self, tmp_path: Path, name: str, option: str):
        (tmp_path / "folder").mkdir()
        (tmp_path / "s.txt").write_text(_lines(1.0))
        name = name if option == "--output" else name.replace(".json", ".png")
        if option == "--plot" and name == "folder":
            (tmp_path / "folder.png").mkdir()
            name = "folder.png"
        assert f"cannot write {name}" in self.fails("optimize", "--spectrum", "s.txt", option, name)

    def test_an_existing_file_survives_a_mistake(self, tmp_path: Path):
        (tmp_path / "old.json").write_text("kept")
        (tmp_path / "s.txt").write_text(_lines(1.0))
        self.fails("optimize", "--spectrum", "s.txt", "--output", "old.json", "--steps", "0")
        assert (tmp_path / "old.json").read_text() == "kept"

    def test_an_existing_file_survives_a_full_disk(
        self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        (tmp_path / "old.txt").write_text("kept")
        monkeypatch.setattr(os, "fsync", full)
        message = self.fails("export", files.schedule, "--to", "comfyui", "--output", "old.txt")
        assert "cannot write old.txt: No space left on device" in message
        assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]
        assert (tmp_path / "old.txt").read_text() == "kept"


def contents(folder: Path) -> dict[Path, bytes]:
    """The files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestCache:
    """Compiled programs are kept in a folder of the user's, unless unwanted or impossible."""

    @pytest.fixture(autouse=True)
    def _not_configured(self) -> Iterator[None]:
        """As in a process of its own: the suite may have a cache, which would be left alone."""
        before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", None)
        yield
        jax.config.update("jax_compilation_cache_dir", before)

    def evaluate(self, files: Files, *options: str) -> Run:
        jax.clear_caches()
        return run("evaluate", files.schedule, "--spectrum", files.spectrum, *options)

    def test_programs_are_kept_and_read(
        self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        first = self.evaluate(files)
        assert first.code == 0
        kept = contents(tmp_path)
        assert any(path.parent.name.startswith("programs-") for path in kept), "ours"
        assert any(path.parent.name == "jaxkernels" for path in kept), "JAX's"
        assert (tmp_path / "jaxkernels").stat().st_mode & 0o077 == 0, "for nobody else"
        again = self.evaluate(files)
        assert again == first
        assert contents(tmp_path) == kept
        found = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        assert found is None, "left behind in the process"

    def test_no_cache(self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert self.evaluate(files, "--no-cache").code == 0
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_no_mistake(
        self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        result = self.evaluate(files)
        assert (result.code, result.err) == (0, "")

    def test_a_folder_that_cannot_be_written_is_no_mistake(
        self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """As an administrator may write anywhere, the answer of the system is replaced."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        access = os.access

        def denied(path: Path, mode: int) -> bool:
            return path != tmp_path / "jaxkernels" and access(path, mode)

        monkeypatch.setattr(os, "access", denied)
        result = self.evaluate(files)
        assert (result.code, result.err) == (0, "")
        assert list((tmp_path / "jaxkernels").iterdir()) == []

    def test_a_cache_of_the_users_own_is_left_alone(
        self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        own = str(tmp_path / "own")
        jax.config.update("jax_compilation_cache_dir", own)
        assert self.evaluate(files).code == 0
        found = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        assert found == own
        assert not (tmp_path / "jaxkernels").exists()

    @pytest.mark.parametrize(
        ("platform", "folder"),
        [
            ("linux", "home/.cache/jaxkernels"),
            ("darwin", "home/Library/Caches/jaxkernels"),
            ("win32", "local/jaxkernels/Cache"),
        ],
    )
    def test_folders(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, folder: str
    ):
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
        monkeypatch.setattr(sys, "platform", platform)
        assert _cache.cache_folder() == tmp_path / folder
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert _cache.cache_folder() == tmp_path / "xdg" / "jaxkernels"


class TestEntry:
    def test_version(self):
        assert run("--version") == Run(0, f"jaxkernels {jk.__version__}\n", "")

    @pytest.mark.parametrize("arguments", [(), ("--help",)])
    def test_help_lists_the_commands(self, arguments: tuple[str, ...]):
        result = run(*arguments)
        assert result.code == 0
        assert all(name in result.out for name in ("optimize", "evaluate", "compare", "export"))

    @pytest.mark.parametrize("command", ["optimize", "evaluate", "compare", "export"])
    def test_help_of_each_command(self, command: str):
        result = run(command, "--help")
        assert result.code == 0
        assert "Usage" in result.out

    @pytest.mark.parametrize("library", ["typer", "rich"])
    def test_without_its_libraries(self, monkeypatch: pytest.MonkeyPatch, library: str):
        monkeypatch.setitem(sys.modules, library, None)
        result = run("--help")
        assert result.code == 2
        assert f"needs {library}" in result.err
        assert 'pip install "jaxkernels[cli]"' in result.err

    def test_stored_programs_are_read_in_silence(self, tmp_path: Path):
        """In processes without the settings of this suite."""
        np.save(tmp_path / "spectrum.npy", np.array([1.0, 0.1]))
        command = [sys.executable, "-m", "jaxkernels", "evaluate", "--spectrum", "spectrum.npy"]
        command += ["--schedule", "karras", "--steps", "3"]
        theirs = ("TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR", "JAX_LOGGING_LEVEL")
        environment = {k: v for k, v in os.environ.items() if k not in theirs}
        environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        for _ in range(2):
            result = subprocess.run(
                command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
            )
            assert "W2" in result.stdout
            assert "cpu_aot_loader" not in result.stderr

    def test_as_a_module(self, tmp_path: Path):
        """In a process of its own, in JAX's default precision, and with a mistake: no traceback."""
        command = [
            sys.executable,
            "-m",
            "jaxkernels",
            "optimize",
            "--spectrum",
            str(tmp_path / "none.npy"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert result.returncode == 2
        assert result.stderr.startswith("jaxkernels: error: ")
        assert "none.npy is no file" in result.stderr
        assert result.stderr.count("\n") == 1
