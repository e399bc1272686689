"""Newton's method against optax, on the same objectives: python -m benchmarks.solvers.

Three studies, each in one process and on the local objective:

- spectra: three real spectra, two samplers, with the times alone and with the stochasticity too;
- steps: from 5 to 200 steps;
- starts: from 1 to 10 000 random starts, in float64 and in float32.

A solver is judged by how far it ends above the lowest objective that any of them reaches, by the
time of a second call, which compiles nothing, and by what the first call takes longer.
"""

import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

import jaxkernels as jk
from jaxkernels.optimize import AbstractSolver, ScheduleProblem, make_problem, solve

from .environment import save, table
from .spectra import spectrum

T_MIN = 1e-3
SPECTRA = ("digits", "breast_cancer", "colour_patches")
STEPS = (5, 10, 20, 50, 100, 200)
STARTS = (1, 10, 100, 1000, 10_000)
# a study of many starts stops for a solver whose last call took longer, in seconds
PATIENCE = 60.0


def adam(rate: float, steps: int) -> jk.Optax:
    return jk.Optax(optax.adam(optax.cosine_decay_schedule(rate, steps), b2=0.99), steps)


def solvers() -> dict[str, AbstractSolver]:
    return {
        "Newton": jk.Newton(),
        "adam, 300 steps": adam(0.1, 300),
        "adam, 3000 steps": adam(0.3, 3000),
        "lbfgs": jk.Optax(optax.lbfgs(), 300),
    }


def problem_of(name: str, sampler: str, num_steps: int, free: bool) -> ScheduleProblem:
    """The default problem of `optimize_schedule`, with free stochasticity if asked."""
    squared = None if free else np.zeros(num_steps)
    made = jk.samplers.SAMPLERS[sampler]()
    run = (spectrum(name), jk.VP(), made, num_steps, (T_MIN, T_MIN))
    return make_problem(*run, jk.LocalError(), squared, None)


def run(problem: Any, z: np.ndarray, solver: AbstractSolver) -> dict[str, float]:
    """Times of two calls, and the lowest objective, in the precision of z."""
    took = []
    solution = None
    for _ in range(2):
        began = time.perf_counter()
        solution = solve(problem, z, solver)
        took.append(time.perf_counter() - began)
    assert solution is not None
    return {
        "objective": float(np.min(solution.values)),
        "iterations": len(solution.history),
        "seconds": took[1],
        "first_call_longer_by": took[0] - took[1],
    }


def compare(problem: Any, z: np.ndarray, names: list[str]) -> Iterator[dict[str, Any]]:
    """One row per solver."""
    rows = [{"solver": name, **run(problem, z, solvers()[name])} for name in names]
    lowest = min(row["objective"] for row in rows)
    fastest = rows[0]["seconds"]
    for row in rows:
        excess = row["objective"] / lowest - 1.0
        yield {**row, "excess": excess, "time_ratio": row["seconds"] / fastest}


def over_spectra() -> Iterator[dict[str, Any]]:
    settings = (("ddim", False), ("dpmpp_2m", False), ("ddim", True))
    for name in SPECTRA:
        for sampler, free in settings:
            for num_steps in (10, 20):
                made = problem_of(name, sampler, num_steps, free)
                setting = {"spectrum": name, "sampler": sampler, "free": free, "K": num_steps}
                for row in compare(made.problem, made.vectors(), list(solvers())):
                    yield setting | row


def over_steps() -> Iterator[dict[str, Any]]:
    for num_steps in STEPS:
        made = problem_of("digits", "ddim", num_steps, False)
        for row in compare(made.problem, made.vectors(), list(solvers())):
            yield {"K": num_steps} | row


def over_starts(dtype: type) -> Iterator[dict[str, Any]]:
    with jax.enable_x64(True):
        made = problem_of("digits", "ddim", 10, False)
    integer = np.int64 if dtype == np.float64 else np.int32
    problem = jax.tree.map(
        lambda a: np.asarray(a, dtype if eqx.is_inexact_array_like(a) else integer), made.problem
    )
    every = np.random.default_rng(0).normal(size=(max(STARTS), np.size(problem.lower)))
    names = list(solvers())
    for starts in STARTS:
        rows = list(compare(problem, every[:starts].astype(dtype), names))
        names = [row["solver"] for row in rows if row["seconds"] < PATIENCE]
        yield from ({"starts": starts, "dtype": dtype.__name__} | row for row in rows)


def show(rows: list[dict[str, Any]]) -> None:
    """A table of one study."""
    settings = [key for key in rows[0] if key in ("spectrum", "sampler", "free", "K", "starts")]
    head = [*settings, "solver", "iterations", "seconds", "time / Newton's", "above the lowest"]
    cells = [
        [
            *(str(row[key]) for key in (*settings, "solver", "iterations")),
            f"{row['seconds']:.3g}",
            f"{row['time_ratio']:.2g}",
            f"{row['excess']:.0e}",
        ]
        for row in rows
    ]
    print(table(head, cells), flush=True)


def main() -> None:
    studies = {}
    with jax.enable_x64(True):
        studies["spectra"] = list(over_spectra())
        show(studies["spectra"])
        studies["steps"] = list(over_steps())
        show(studies["steps"])
        studies["starts"] = list(over_starts(np.float64))
        show(studies["starts"])
    studies["starts, float32"] = list(over_starts(np.float32))
    show(studies["starts, float32"])
    print(f"written to {save('solvers', studies)}")


if __name__ == "__main__":
    main()
