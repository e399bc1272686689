"""Optimising every bound: cold and warm time, gradient at the end: python -m benchmarks.bounds.

Cold is the first call after all compiled programs are forgotten, in CPU seconds and wall time;
another K the first one with a step less, which the same programs serve; warm the least of three
further calls. Names of bounds as arguments restrict the run, which goes on where
it stopped.
"""

import json
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track

import jaxkernels as jk
from jaxkernels.bounds import (
    Assumptions,
    BoundedSupport,
    CertifiedError,
    DenoisingCurve,
    LipschitzBound,
    OperatorBound,
)

from .environment import CACHE, RESULTS, save, table

STEPS = (50, 10)
WARM = 3
T_MIN = 1e-3
TARGET = jk.Gaussian(0.3, [2.0, 0.3, 0.01])
VP = jk.VP()
OU = jk.OU()
LOG_CONCAVE = Assumptions(OU, 2, 3.0, convexity=1.0, smoothness=1.5, third_derivative=0.8)
LEVELS = np.geomspace(1e-3, 30.0, 12)
CURVE = DenoisingCurve(LEVELS, 2.0 * LEVELS**2 / (1.0 + LEVELS**2))


HEADER = """# Optimising bounds

Written by `python -m benchmarks.bounds`; see [README](../README.md#optimising-bounds)."""


class Case(NamedTuple):
    """An objective, and what it is optimised for."""

    objective: Any
    sampler: str | jk.AbstractSampler
    process: jk.AbstractProcess = VP
    stochasticity: Any = 0.0


def _size(t: jax.Array) -> jax.Array:
    return 0.01 / (0.1 + t)


def cases() -> dict[str, Case]:
    """Every objective of `jk.bounds`."""
    w2 = CertifiedError(score_error=0.01)
    names = ("euler_maruyama", "exponential_integrator", "rem", "rei", "second_order", "tweedie")
    measured = Assumptions(VP, 2, 2.0, denoising_error=CURVE)
    return {
        **{f"certified, {name}": Case(w2, name, OU, 1.0) for name in names},
        "certified, exact_mean": Case(w2, jk.ExactMean(), OU, 1.0),
        **{
            f"certified, {name}, log-concave data": Case(
                CertifiedError(assumptions=LOG_CONCAVE), name, OU, 1.0
            )
            for name in ("second_order", "tweedie")
        },
        "certified, euler_flow": Case(CertifiedError(scheme="euler_flow"), "euler_maruyama"),
        "certified, heun": Case(w2, "heun"),
        "certified, ddim, h = 0": Case(w2, "ddim"),
        "certified, ddim, h = g": Case(w2, "ddim", VP, 1.0),
        "certified, ddim, free h": Case(w2, "ddim", VP, "optimize"),
        "divergence, ddim": Case(CertifiedError("kl"), "ddim", VP, 1.0),
        "divergence, ddim, denoising error": Case(
            CertifiedError("kl", assumptions=measured), "ddim", VP, 1.0
        ),
        "divergence, exponential_integrator": Case(
            CertifiedError("kl"), "exponential_integrator", OU, 1.0
        ),
        "divergence, exact_mean": Case(CertifiedError("kl"), jk.ExactMean(), OU, 1.0),
        "coherent, ddim": Case(OperatorBound(_size), "ddim"),
        "coherent and data, ddim": Case(OperatorBound(_size, to_data=True), "ddim"),
        "coherent and data, ddim, free h": Case(
            OperatorBound(_size, to_data=True), "ddim", VP, "optimize"
        ),
        "orthogonal and data, ddim": Case(
            OperatorBound(0.01, jk.Independent(), to_data=True), "ddim"
        ),
        "coherent, dpmpp_2m": Case(OperatorBound(0.01), "dpmpp_2m"),
        "coherent and data, dpmpp_2m": Case(OperatorBound(0.01, to_data=True), "dpmpp_2m"),
        "orthogonal and data, dpmpp_2m": Case(
            OperatorBound(0.01, jk.Independent(), to_data=True), "dpmpp_2m"
        ),
        "mixed, ddim": Case(LipschitzBound(_size, 0.01, 0.1), "ddim"),
        "mixed and data, ddim": Case(LipschitzBound(_size, 0.01, 0.1, to_data=True), "ddim"),
        "mixed, bounded support": Case(
            LipschitzBound(_size, lipschitz=0.1, curvature=BoundedSupport(1.0)), "ddim"
        ),
    }


def optimise(case: Case, num_steps: int) -> tuple[jk.OptimizedSchedule, float, float]:
    """The result, CPU seconds, and wall time."""
    began, used = time.perf_counter(), time.process_time()
    result = jk.optimize_schedule(
        *(TARGET, case.process, case.sampler, num_steps),
        t_min=T_MIN,
        objective=case.objective,
        stochasticity=case.stochasticity,
        progress=False,
    )
    return result, time.process_time() - used, time.perf_counter() - began


def measure(case: Case, num_steps: int) -> dict[str, Any]:
    """One row."""
    jax.clear_caches()
    result, cold, wall = optimise(case, num_steps)
    another = optimise(case, num_steps - 1)[2]
    warm = [optimise(case, num_steps)[1:] for _ in range(WARM)]
    return {
        "cold": cold,
        "cold, wall": wall,
        "another K": another,
        "warm": min(seconds for seconds, _ in warm),
        "warm, wall": min(seconds for _, seconds in warm),
        "gradient": result.solution.gradient_norm,
        "converged": result.converged,
        "iterations": len(result.solution.history),
        "objective": result.objective,
        "best baseline": min(result.baselines.values()),
    }


def cached(name: str, num_steps: int) -> dict[str, Any]:
    """A row, from the cache if it is there."""
    path = CACHE / f"bounds_{name.replace(' ', '_')}_{num_steps}.json"
    if not path.exists():
        path.write_text(json.dumps(measure(cases()[name], num_steps)))
    return {"bound": name, "K": num_steps, **json.loads(path.read_text())}


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    return [
        *(row["bound"], str(row["K"])),
        *(f"{row[key]:.2f}" for key in ("cold", "cold, wall", "another K", "warm", "warm, wall")),
        *(f"{row['gradient']:.0e}", "yes" if row["converged"] else "no"),
        f"{row['objective'] / row['best baseline']:.3f}",
    ]


def main() -> None:
    """Measure, show and save."""
    names = sys.argv[1:] or list(cases())
    unknown = [name for name in names if name not in cases()]
    if unknown:
        sys.exit(f"no bound is named {'; '.join(unknown)}. Those there are: {'; '.join(cases())}")
    settings = [(name, num_steps) for num_steps in STEPS for name in names]
    rows = [cached(*setting) for setting in track(settings, "bounds")]
    head = ["bound", "K", "cold, CPU s", "wall", "another K, wall", "warm, CPU s", "wall"]
    head = [*head, "gradient", "converged", "to best baseline"]
    text = table(head, [cells(row) for row in rows])
    print(text)
    if names == list(cases()):
        print(f"written to {save('bounds', {'modes': 3, 't_min': T_MIN, 'rows': rows})}")
        (RESULTS / "bounds.md").write_text(f"{HEADER}\n\n{text}\n")


if __name__ == "__main__":
    main()
