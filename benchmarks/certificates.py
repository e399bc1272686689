"""Does optimising a certificate help on a network? Certified bounds as objectives, on networks.

Run by `python -m benchmarks.certificates`; names of data sets as arguments restrict the run. What
is done is kept in .cache: an interrupted run goes on where it stopped.

The networks of `benchmarks.networks`. For every sampler and K, schedules that minimise

- the exact error of the Gaussian with the data's mean and covariance ("terminal": W2; "local": the
  sum of squared local errors, which is the default),
- certificates: of that Gaussian; of all data whose curvature lies between those of its largest and
  smallest variance, without third derivatives; for the ancestral sampler (h = g) of the denoising
  error that `measure` finds on the network, alone (KL), or with the largest slopes of the denoiser
  that it finds (W2, which holds as far as these are the largest),
- the error on a record of the network's trajectories,

are run on initial noise that nothing has seen. Ratios are to the best of six baseline schedules,
known in hindsight for each setting and statistic.
"""

import itertools
import json
import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float
from rich.progress import track

import jaxkernels as jk
from jaxkernels._cubic import monotone_slopes, piecewise_cubic
from jaxkernels._numerics import floored_log
from jaxkernels._types import AnyArray
from jaxkernels.bounds import Assumptions, CertifiedError

from .environment import CACHE, RESULTS, save, table
from .networks.data import HELD_OUT, PROBLEMS, PROCESS, T_MIN, Problem
from .networks.report import geometric_mean
from .networks.study import (
    BASELINES,
    RECORDED,
    denoiser_of,
    distances,
    mean_and_error,
    statistics,
)
from .networks.train import train

STEPS = (5, 10, 20)
SAMPLERS = ("ddim", "euler_maruyama", "heun")
SHOWN = {"ddim": "DDIM", "euler_maruyama": "Euler", "heun": "Heun"}
STATISTICS = ("rms", "geometric_mean", "sliced_w2_reference")
# samples of initial noise, a seed of the ancestral sampler, and data that are measured
NUM_NOISE = 512
FRESH = 1024
MEASURED = 2000
LEVELS = 40
# the largest dimension of the networks' data
MODES = 144

Row = dict[str, Any]
Objectives = dict[str, Any]


class Known(NamedTuple):
    """A network, its data, and what is known of both."""

    denoiser: jk.Denoiser
    data: Float[np.ndarray, "n d"]
    target: jk.Gaussian
    """Of the data's mean and covariance."""
    split: jk.Gaussian
    """The same on as many modes for every network."""
    record: jk.TrajectoryRecord
    measurement: jk.Measurement


def learn(problem: Problem) -> Known:
    """Train a network, record trajectories, and measure it on its training data."""
    _, data = problem.split()
    denoiser = denoiser_of(train(problem, data))
    noise = jax.random.normal(jax.random.key(5), (RECORDED, data.shape[1]))
    record = jk.record(denoiser, noise, t_min=T_MIN)
    first, last = (float(PROCESS.sigma(t)) for t in (float(PROCESS.t_max), T_MIN))
    levels = np.geomspace(first, last, LEVELS)
    times = np.clip(np.asarray(PROCESS.time_at_sigma(levels)), T_MIN, float(PROCESS.t_max))
    measurement = jk.measure(denoiser, data[:MEASURED], times, key=jax.random.key(8))
    target = jk.Gaussian.fit(data).in_eigenbasis()
    return Known(denoiser, data, target, split(target), record, measurement)


def split(target: jk.Gaussian) -> jk.Gaussian:
    """A Gaussian whose first mode is several of the same variance, so that it has `MODES`.

    One compiled program then serves every network.
    """
    copies = MODES + 1 - target.eigenvalues.shape[0]
    weights = np.ones(MODES)
    weights[:copies] = 1.0 / copies

    def repeated(values: AnyArray) -> np.ndarray:
        each = np.asarray(values, np.float64)
        return np.concatenate([np.full(copies, each[0]), each[1:]])

    return jk.Gaussian(repeated(target.mean), repeated(target.eigenvalues), weights=weights)


def interval(target: jk.Gaussian) -> Assumptions:
    """All data whose curvature is between those of a Gaussian's variances, linear scores."""
    spectrum = np.asarray(target.eigenvalues, np.float64)
    moment = float(np.sum(spectrum) + np.sum(np.asarray(target.mean, np.float64) ** 2))
    return Assumptions(
        PROCESS,
        spectrum.size,
        moment,
        convexity=1.0 / spectrum.max(),
        smoothness=1.0 / max(spectrum.min(), 1e-12 * spectrum.max()),
        third_derivative=0.0,
    )


class OverLevels(eqx.Module):
    """A function of w = sigma^2 that is a cubic in log w between measured levels, without kinks.

    A module, so that one compiled program serves every network.
    """

    levels: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    slopes: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, measurement: jk.Measurement, values: np.ndarray) -> "OverLevels":
        order = np.argsort(measurement.sigma)
        levels = 2.0 * np.log(np.asarray(measurement.sigma, np.float64)[order])
        values = np.asarray(values, np.float64)[order]
        return cls(levels, values, monotone_slopes(levels, values))

    def __call__(self, w: Array) -> Array:
        return piecewise_cubic(floored_log(w), self.levels, self.values, self.slopes)


def measured(known: Known) -> tuple[Assumptions, Assumptions]:
    """What the measurement shows: the denoising error alone, and with the denoiser's slopes."""
    alone = jk.bounds.assumptions(known.measurement, PROCESS)
    slopes = np.asarray(known.measurement.lipschitz).max(1) * known.measurement.signal
    both = Assumptions(
        PROCESS,
        alone.dim,
        alone.second_moment,
        denoising_error=alone.denoising_error,
        denoiser_slope=OverLevels.of(known.measurement, slopes),
    )
    return alone, both


def deterministic(known: Known, sampler: str) -> Objectives:
    """The objectives of schedules without noise."""
    scheme = "euler_flow" if sampler == "euler_maruyama" else sampler
    objectives: Objectives = {
        "local": jk.LocalError(),
        "terminal": jk.TerminalError(),
        "certificate, interval": CertifiedError(scheme=scheme, assumptions=interval(known.target)),
    }
    if sampler == "ddim":
        objectives["certificate"] = CertifiedError()
    if sampler != "euler_maruyama":
        objectives["record"] = jk.RecordedError(known.record)
    return objectives


def ancestral(known: Known) -> Objectives:
    """The objectives of schedules with the noise of the reverse SDE."""
    alone, both = measured(known)
    return {
        "local": jk.LocalError(),
        "terminal": jk.TerminalError(),
        "certificate": CertifiedError(),
        "certificate, measured": CertifiedError(assumptions=both),
        "certificate, KL": CertifiedError("kl", assumptions=alone),
    }


def optimise(
    known: Known, sampler: str, num_steps: int, objectives: Objectives, alpha: float
) -> tuple[dict[str, jk.Schedule], Row]:
    """The baselines and the optimum of every objective; what each objective promised."""
    schedules = {
        name: jk.Schedule(np.asarray(make(PROCESS, num_steps, T_MIN).times), alpha)
        for name, make in jk.schedules.BASELINES.items()
    }
    promised = {}
    for name, objective in objectives.items():
        result = jk.optimize_schedule(
            *(known.split, PROCESS, sampler, num_steps),
            t_min=T_MIN,
            objective=objective,
            stochasticity=alpha,
            progress=False,
        )
        schedules[name] = result.schedule
        promised[name] = {
            "objective": result.objective,
            "best baseline": min(result.baselines.values()),
            "converged": result.converged,
            "gradient": result.solution.gradient_norm,
        }
    return schedules, {
        "sampler": sampler,
        "num_steps": num_steps,
        "stochasticity": alpha,
        "promised": promised,
        "times": {name: np.asarray(s.times).tolist() for name, s in schedules.items()},
    }


def run_deterministic(known: Known, sampler: str, num_steps: int) -> Row:
    """Distances to the reference solution from the same initial noise."""
    objectives = deterministic(known, sampler)
    schedules, row = optimise(known, sampler, num_steps, objectives, 0.0)
    noise = jax.random.normal(jax.random.key(3), (NUM_NOISE, known.data.shape[1]))
    found = jk.compare_schedules(
        known.denoiser, sampler, schedules, noise, data=known.data, progress=False
    )
    return {**row, "reference_error": found.reference_error, **statistics(found)}


def run_ancestral(known: Known, num_steps: int) -> Row:
    """Sliced W2 to the data, from the same initial noise and steps' noise for all schedules."""
    schedules, row = optimise(known, "ddim", num_steps, ancestral(known), 1.0)
    values = {
        name: distances(known.denoiser, known.data, s, FRESH) for name, s in schedules.items()
    }
    best = min(BASELINES, key=lambda name: np.mean(values[name]))
    found = {}
    for name, value in values.items():
        error, ratio = mean_and_error(value), mean_and_error(value / values[best])
        found[name] = {
            "error": error.value,
            "error_se": error.standard_error,
            "ratio": ratio.value,
            "ratio_se": ratio.standard_error,
        }
    return {**row, "sliced_w2": found}


def run(problems: list[Problem]) -> list[dict[str, Any]]:
    """Every setting of every network, from the cache if it is there; tables as they come."""
    studies = [{"problem": problem.name, "rows": []} for problem in problems]
    learned: dict[str, Known] = {}
    settings = [*itertools.product(("ddim", "ancestral"), STEPS)]
    settings += [*itertools.product(("euler_maruyama", "heun"), STEPS)]
    for sampler, num_steps in track(settings, "certificates"):
        for problem, found in zip(problems, studies, strict=True):
            path = CACHE / f"certificates_{problem.name}_{sampler}_{num_steps}.json"
            if not path.exists():
                if problem.name not in learned:
                    learned[problem.name] = learn(problem)
                known = learned[problem.name]
                if sampler == "ancestral":
                    row = run_ancestral(known, num_steps)
                else:
                    row = run_deterministic(known, sampler, num_steps)
                path.write_text(json.dumps(row))
            found["rows"].append(json.loads(path.read_text()))
        write(studies)
        # every setting compiles programs of its own, and a process can hold a limited number
        jax.clear_caches()
    return studies


def write(studies: list[dict[str, Any]]) -> None:
    """Results of the settings so far."""
    sizes = {"noise": NUM_NOISE, "noise per seed": FRESH, "measured": MEASURED}
    save("certificates", {"sizes": sizes, "studies": studies})
    (RESULTS / "certificates.md").write_text(report(studies))


def cell(entry: dict[str, float]) -> str:
    """A ratio with its standard error."""
    return "{ratio:.2f} ± {ratio_se:.2f}".format(**entry)


def detail(studies: list[dict[str, Any]], sampler: str, alpha: float, statistic: str) -> list[str]:
    """A table of one sampler and statistic, one row for each network and K."""
    cells = []
    names: list[str] = []
    for found in studies:
        for row in _rows(found, sampler, alpha):
            entries = row[statistic]
            names = [name for name in entries if name not in BASELINES]
            best = min(BASELINES, key=lambda name, e=entries: e[name]["error"])
            shown = f"{best}: {entries[best]['error']:.3g}"
            setting = [found["problem"], str(row["num_steps"]), shown]
            cells.append([*setting, *(cell(entries[name]) for name in names)])
    head = ["network", "K", f"best baseline: {statistic}", *names]
    return [table(head, cells), ""]


def summary(studies: list[dict[str, Any]]) -> list[str]:
    """Geometric means over networks and K, the worst, and how often better or worse."""
    cells = []
    for sampler, alpha, names in _settings(studies):
        rows = [row for found in studies for row in _rows(found, sampler, alpha)]
        tested = [name for name in rows[0][names[0]] if name not in BASELINES]
        for name in tested:
            line = [_title(sampler, alpha), name]
            for statistic in names:
                entries = [row[statistic][name] for row in rows]
                ratios = np.array([entry["ratio"] for entry in entries])
                errors = np.array([entry["ratio_se"] for entry in entries])
                better, worse = np.sum(ratios < 1 - errors), np.sum(ratios > 1 + errors)
                mean = f"{geometric_mean(ratios):.2f} ({ratios.max():.2f}; {better}, {worse})"
                line.append(mean)
            cells.append(line + [""] * (len(STATISTICS) - len(names)))
    head = ["sampler", "schedule of least", "rms, or sliced W2 to the data for h = g"]
    return [table([*head, "geometric mean", "sliced W2 to the reference"], cells), ""]


def _settings(studies: list[dict[str, Any]]) -> list[tuple[str, float, tuple[str, ...]]]:
    every = [*((s, 0.0, STATISTICS) for s in SAMPLERS), ("ddim", 1.0, ("sliced_w2",))]
    return [setting for setting in every if _rows(studies[0], *setting[:2])]


def _rows(found: dict[str, Any], sampler: str, alpha: float) -> list[Row]:
    return [
        row for row in found["rows"] if row["sampler"] == sampler and row["stochasticity"] == alpha
    ]


def _title(sampler: str, alpha: float) -> str:
    return f"{SHOWN[sampler]}, h = {'g' if alpha else '0'}"


def promises(studies: list[dict[str, Any]]) -> list[str]:
    """What every objective promised: its optimum and its value at its own best baseline."""
    cells = []
    for found in studies:
        for row in found["rows"]:
            for name, entry in row["promised"].items():
                title = _title(row["sampler"], row["stochasticity"])
                cells.append(
                    [
                        *(found["problem"], title, str(row["num_steps"]), name),
                        f"{entry['objective']:.4g}",
                        f"{entry['best baseline']:.4g}",
                        "yes" if entry["converged"] else f"no ({entry['gradient']:.0e})",
                    ]
                )
    head = ["network", "sampler", "K", "objective", "at its optimum", "at its best baseline"]
    return [table([*head, "converged"], cells), ""]


def report(studies: list[dict[str, Any]]) -> str:
    """All tables."""
    lines = [
        "# Certificates on trained networks",
        "",
        "Written by `python -m benchmarks.certificates`; how to read it: "
        "[README](../README.md#certificates). Ratios to the best baseline in hindsight.",
        "",
        "Geometric mean over networks and K (worst; settings better, worse by more than a standard "
        "error).",
        "",
        *summary(studies),
    ]
    for sampler, alpha, names in _settings(studies):
        lines += [f"## {_title(sampler, alpha)}", ""]
        for statistic in names:
            lines += detail(studies, sampler, alpha, statistic)
    return "\n".join([*lines, "## What the objectives promised", "", *promises(studies)])


def main() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    every = {problem.name: problem for problem in (*PROBLEMS, HELD_OUT)}
    names = sys.argv[1:] or list(every)
    unknown = set(names) - set(every)
    if unknown:
        raise SystemExit(f"unknown data sets {sorted(unknown)}; there are {', '.join(every)}.")
    print(report(run([every[name] for name in names])))


if __name__ == "__main__":
    main()
