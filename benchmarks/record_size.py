"""How many trajectories, directions and nodes a record needs.

Run by `python -m benchmarks.record_size`.

The optimum of `RecordedError` for DPM-Solver++(2M) at K = 8 from records of several sizes, run
on fresh initial noise through the networks of `networks`; errors over the best of four
baseline schedules.
"""

from typing import Any

import jax
from rich.progress import track

import jaxkernels as jk

from .environment import CACHE, save, table
from .networks.data import PROBLEMS, PROCESS, T_MIN, Problem
from .networks.study import denoiser_of
from .networks.train import train

SAMPLER = "dpmpp_2m"
STEPS = 8
NUM_NOISE = 512
BASELINES = ("quadratic", "log_snr", "cosine", "karras")
# trajectories, directions, nodes
SIZES = ((16, 8, 64), (64, 8, 64), (256, 8, 64), (64, 1, 64), (64, 3, 64), (64, 8, 24), (64, 8, 40))
POWERS = {"typical": 0.0, "rms": 2.0}


def study(problem: Problem) -> list[dict[str, Any]]:
    """Errors of the optima from records of every size, over those of the best baseline."""
    _, data = problem.split()
    denoiser = denoiser_of(train(problem, data))
    target = jk.Gaussian.fit(data).compress(32)
    x = jax.random.normal(jax.random.key(5), (max(size[0] for size in SIZES), data.shape[1]))
    schedules = {name: jk.schedules.BASELINES[name](PROCESS, STEPS, T_MIN) for name in BASELINES}
    for size in track(SIZES, f"records of {problem.name}"):
        jax.clear_caches()
        trajectories, directions, nodes = size
        record = jk.record(
            denoiser,
            x[:trajectories],
            t_min=T_MIN,
            nodes=nodes,
            directions=directions,
        )
        for name, power in POWERS.items():
            objective = jk.RecordedError(record, power)
            result = jk.optimize_schedule(
                target,
                PROCESS,
                SAMPLER,
                STEPS,
                t_min=T_MIN,
                objective=objective,
                starts=["quadratic", "log_snr"],
            )
            schedules[f"{size} {name}"] = result.schedule
    fresh = jax.random.normal(jax.random.key(6), (NUM_NOISE, data.shape[1]))
    found = jk.compare_schedules(denoiser, SAMPLER, schedules, fresh)
    rows = []
    for size in SIZES:
        row: dict[str, Any] = {"problem": problem.name, "size": size}
        for name in POWERS:
            for statistic in ("geometric_mean", "rms"):
                values = found.statistic(statistic)
                best = min(values[baseline] for baseline in BASELINES)
                row[f"{name} {statistic}"] = values[f"{size} {name}"] / best
        rows.append(row)
    return rows


def main() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    rows = [row for problem in PROBLEMS if problem.name != "patches" for row in study(problem)]
    path = save(
        "record_size", {"sampler": SAMPLER, "num_steps": STEPS, "noise": NUM_NOISE, "rows": rows}
    )
    columns = [key for key in rows[0] if key not in ("problem", "size")]
    cells = [
        [row["problem"], *map(str, row["size"]), *(f"{row[key]:.2f}" for key in columns)]
        for row in rows
    ]
    print(table(["network", "trajectories", "directions", "nodes", *columns], cells))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
