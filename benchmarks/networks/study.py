"""Schedules run on the networks, against every baseline schedule from the same initial noise.

A Gaussian is fitted to the data; schedules are optimised for it and from a record of the network,
and run on initial noise that no selection has seen. Deterministic sampling, but for
`run_stochastic`.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from rich.progress import track
from scipy.stats import rankdata

import jaxkernels as jk
from jaxkernels.metrics import Estimate, projected_w2_squared

from ..environment import CACHE
from .data import HELD_OUT, PROBLEMS, PROCESS, T_MIN, Problem
from .network import Network
from .train import affine_loss, loss, train

SAMPLERS = ("ddim", "dpmpp_2m")
STEPS = (5, 8, 12, 20)
NUM_NOISE = 1024
# trajectories of a record
RECORDED = 256
STOCHASTIC_STEPS = (20, 50)
SEEDS = 5
FRESH = 2048
BASELINES = tuple(jk.schedules.BASELINES)
# quadrature nodes of a spectrum
_NODES = 32


class Trained(NamedTuple):
    """A trained network, with what is known of it and of its data."""

    problem: Problem
    denoiser: jk.Denoiser
    data: Float[np.ndarray, "n d"]
    target: jk.Gaussian
    """Of the data's mean and covariance, on quadrature nodes."""
    mixture: jk.GaussianMixture
    record: jk.TrajectoryRecord

    def noise(self, seed: int, count: int) -> jax.Array:
        """Initial noise."""
        return jax.random.normal(jax.random.key(seed), (count, self.data.shape[1]))


def denoiser_of(network: Network) -> jk.Denoiser:
    """A network with its process and its prediction type."""
    return jk.Denoiser(network, PROCESS, network.prediction_type)


def study_problem(number: int) -> dict[str, Any]:
    """Everything about one of the problems; the last is the held-out one."""
    # compiling every objective for every K and sampler takes longer than anything else here
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    problem = (*PROBLEMS, HELD_OUT)[number]
    held_out, data = problem.split()
    network = train(problem, data)
    target = jk.Gaussian.fit(data)
    key = jax.random.key(2)
    x0 = jnp.asarray(held_out[:4000], jnp.float32)
    denoiser = denoiser_of(network)
    noise = jax.random.normal(jax.random.key(5), (RECORDED, data.shape[1]))
    record = jk.record(denoiser, noise, t_min=T_MIN)
    mixture = jk.GaussianMixture.fit(data)
    trained = Trained(problem, denoiser, data, target.compress(_NODES), mixture, record)
    return {
        "problem": problem.name,
        "predicts": problem.prediction_type,
        "dimension": data.shape[1],
        "kurtosis": float(np.asarray(target.kurtosis)),
        "loss": float(loss(network, x0, key)),
        "affine_loss": float(affine_loss(network, target, x0, key)),
        "rows": run_deterministic(trained),
        "stochastic": run_stochastic(trained),
    }


def run_deterministic(trained: Trained) -> list[dict[str, Any]]:
    """The schedules under test and the baselines, for every sampler and K."""
    noise = trained.noise(3, NUM_NOISE)
    settings = list(itertools.product(SAMPLERS, STEPS))
    rows = []
    for sampler, num_steps in track(settings, f"schedules for {trained.problem.name}"):
        # every setting compiles programs of its own, and a process can hold a limited
        # number of them
        jax.clear_caches()
        schedules, selection = optimize(trained, sampler, num_steps)
        found = jk.compare_schedules(
            trained.denoiser, sampler, schedules, noise, data=trained.data, progress=False
        )
        rows.append(
            {
                "sampler": sampler,
                "num_steps": num_steps,
                **selection,
                "times": {name: np.asarray(s.times).tolist() for name, s in schedules.items()},
                "reference_error": found.reference_error,
                "reference_sliced_w2": reference_distance(found),
                **statistics(found),
            }
        )
    return rows


def optimize(
    trained: Trained, sampler: str, num_steps: int
) -> tuple[dict[str, jk.Schedule], dict[str, Any]]:
    """Every baseline and the optima under test; and what the selection on the network said."""
    setting = (PROCESS, sampler, num_steps)
    objectives = {
        "local": jk.LocalError(),
        "local, variance factor 1": jk.LocalError(variance_factor=1.0),
        "terminal": jk.TerminalError(),
    }
    schedules = {
        name: make(PROCESS, num_steps, T_MIN) for name, make in jk.schedules.BASELINES.items()
    }
    for name, objective in objectives.items():
        schedules[name] = jk.optimize_schedule(
            trained.target, *setting, t_min=T_MIN, objective=objective
        ).schedule
    schedules["mixture"] = jk.optimize_schedule(trained.mixture, *setting, t_min=T_MIN).schedule
    selection = jk.Selection(
        denoiser=trained.denoiser,
        noise=trained.noise(6, trained.problem.selection_noise),
        record=trained.record,
    )
    result = jk.optimize_schedule(trained.target, *setting, t_min=T_MIN, selection=selection)
    schedules["measured"] = result.schedule
    to_data = dataclasses.replace(selection, data=trained.data)
    schedules["measured, data"] = jk.optimize_schedule(
        trained.target, *setting, t_min=T_MIN, selection=to_data
    ).schedule
    return schedules, {"selected": result.selected, **rank(result, trained)}


def rank(result: jk.OptimizedSchedule, trained: Trained) -> dict[str, Any]:
    """Spearman correlation of predicted and measured geometric mean errors over all candidates."""
    assert result.comparison is not None
    measured = result.comparison.statistic("geometric_mean")
    schedules = [result.candidates[name].schedule for name in measured]
    local = jk.LocalError().bind(trained.target, PROCESS, result.sampler)
    evaluate = eqx.filter_jit(local)
    record = trained.record
    by_local = [float(evaluate(s)) for s in schedules]
    by_record = [float(np.mean(np.log(record.errors(result.sampler, s)))) for s in schedules]
    return {
        "schedules": len(schedules),
        "spearman_local": _rank_correlation(by_local, list(measured.values())),
        "spearman_record": _rank_correlation(by_record, list(measured.values())),
    }


def _rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def statistics(found: jk.Comparison) -> dict[str, dict[str, dict[str, float]]]:
    """Per statistic and schedule: the error and its ratio to the best baseline's.

    `sliced_w2` is to the data, `sliced_w2_reference` to the samples of the reference solution.
    Which baseline is best is known in hindsight only, so the ratio is hard on the schedule.
    """
    to_reference = dataclasses.replace(found, data_projections=None)
    return {
        **{name: ratios(found, name) for name in ("rms", "median", "geometric_mean", "sliced_w2")},
        "sliced_w2_reference": ratios(to_reference, "sliced_w2"),
    }


def ratios(found: jk.Comparison, statistic: str) -> dict[str, dict[str, float]]:
    """The error of every schedule, and its ratio to the best baseline's with the standard error."""
    errors = found.statistic(statistic)
    best = min(BASELINES, key=errors.__getitem__)
    result = {}
    for name, error in errors.items():
        ratio = found.ratio(statistic, name, best)
        result[name] = {"error": error, "ratio": ratio.value, "ratio_se": ratio.standard_error}
    return result


def reference_distance(found: jk.Comparison) -> float:
    """Sliced W2 to the data of the reference solution itself, in the units of the comparison."""
    squared = projected_w2_squared(np, found.reference_projections, found.target_quantiles())
    return float(np.sqrt(squared))


def run_stochastic(trained: Trained) -> list[dict[str, Any]]:
    """DDIM with one h per step, for every K."""
    rows = []
    for num_steps in track(STOCHASTIC_STEPS, f"stochastic schedules for {trained.problem.name}"):
        jax.clear_caches()
        rows.append(compare_stochastic(trained, num_steps))
    return rows


def compare_stochastic(trained: Trained, num_steps: int) -> dict[str, Any]:
    """DDIM with h selected on the network, against h = 0 and the ancestral h = g, each at its best.

    Sliced W2 to the data, in units of their standard deviation, from the same fresh initial noise
    for all schedules: mean and standard error over seeds, and those of the ratio to the better of
    the two rivals, known in hindsight.
    """
    selection = jk.Selection(
        denoiser=trained.denoiser,
        noise=trained.noise(7, 2 * FRESH),
        data=trained.data,
        record=trained.record,
    )
    result = jk.optimize_schedule(
        *(trained.target, PROCESS, "ddim", num_steps),
        t_min=T_MIN,
        stochasticity="optimize",
        selection=selection,
    )
    schedules = {"selected": result.schedule} | result.baseline_schedules
    values = {name: distances(trained.denoiser, trained.data, s) for name, s in schedules.items()}

    def best(alpha: float) -> np.ndarray:
        alike = [
            values[name]
            for name, s in result.baseline_schedules.items()
            if np.all(np.asarray(s.stochasticity) == alpha)
        ]
        return min(alike, key=np.mean)

    rows = {"selected": values["selected"], "h = 0": best(0.0), "h = g": best(1.0)}
    rows["ratio"] = rows["selected"] / min(rows["h = 0"], rows["h = g"], key=np.mean)
    return {
        "num_steps": num_steps,
        "candidate": result.selected,
        "stochasticity": np.asarray(result.schedule.stochasticity).tolist(),
        **{name: mean_and_error(v) for name, v in rows.items()},
    }


def distances(
    denoiser: jk.Denoiser,
    data: Float[np.ndarray, "n d"],
    schedule: jk.Schedule,
    count: int = FRESH,
    sampler: str = "ddim",
) -> Float[np.ndarray, " seeds"]:
    """Sliced W2 of samples to the data, in units of their size, one per seed."""
    size = np.sqrt(np.sum(data.var(0)))
    found = []
    for seed in range(SEEDS):
        key_x, key = jax.random.split(jax.random.key(100 + seed))
        x = jax.random.normal(key_x, (count, data.shape[1]))
        ends = jk.sample(denoiser, sampler, schedule, x, key=key)
        found.append(jk.metrics.sliced_w2(np.asarray(ends), data).value / size)
    return np.array(found)


def mean_and_error(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean with its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return Estimate(float(np.mean(values)), float(error))
