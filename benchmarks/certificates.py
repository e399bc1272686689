"""What optimising a certificate does to the true error: python -m benchmarks.certificates.

For Gaussian targets the schedule that minimises a certified bound is compared with the one that
minimises the exact W2 and with the best baseline schedule, by certificate and by exact W2.
"""

import time
from typing import Any

import numpy as np

import jaxkernels as jk

from .environment import save, table

STEPS = (5, 10, 20, 50)
SAMPLERS = ("exponential_integrator", "ddim")
PROCESS = jk.OU(t_max=4.0)
TARGETS = {
    "one variance": jk.Gaussian(np.full(1, 1.0), [0.25]),
    "ten variances": jk.Gaussian(np.eye(10)[0], np.geomspace(0.1, 1.0, 10)),
}


def compare(target: jk.Gaussian, sampler: str, count: int) -> dict[str, Any]:
    """Certificate and exact W2 of three schedules."""
    options = {"t_min": 0.0, "stochasticity": 1.0, "progress": False}
    certificate = jk.bounds.CertifiedError()
    run = (target, PROCESS, sampler, count)
    jk.optimize_schedule(*run, objective=certificate, **options)
    began = time.perf_counter()
    certified = jk.optimize_schedule(*run, objective=certificate, **options)
    seconds = time.perf_counter() - began
    exact = jk.optimize_schedule(*run, objective=jk.TerminalError(), **options)
    baselines = {name: make(PROCESS, count, 0.0) for name, make in jk.schedules.BASELINES.items()}
    found: dict[str, Any] = {"seconds": seconds}
    for label, schedule in (("certified", certified.schedule), ("exact", exact.schedule)):
        found[label] = _errors(target, sampler, schedule)
    rivals = [
        _errors(target, sampler, jk.Schedule(schedule.times, 1.0))
        for schedule in baselines.values()
    ]
    found["best baseline"] = {key: min(rival[key] for rival in rivals) for key in ("bound", "w2")}
    return found


def _errors(target: jk.Gaussian, sampler: str, schedule: jk.Schedule) -> dict[str, float]:
    """The certified bound of a schedule, and its exact W2."""
    bound = jk.bounds.certified_bound(target, PROCESS, sampler, schedule)
    exact = jk.evaluate_schedule(target, PROCESS, sampler, schedule)
    return {"bound": float(bound.value), "w2": float(exact.w2)}


def main() -> None:
    """Run everything and save it."""
    rows = []
    figures = []
    for name, target in TARGETS.items():
        for sampler in SAMPLERS:
            for count in STEPS:
                found = compare(target, sampler, count)
                figures.append({"target": name, "sampler": sampler, "steps": count, **found})
                cells = [
                    f"{found[label][key]:.4f}"
                    for label in ("certified", "exact", "best baseline")
                    for key in ("bound", "w2")
                ]
                rows.append([f"{name}, {sampler}, {count}", *cells, f"{found['seconds']:.2f}"])
    header = [
        "target, sampler, steps",
        "bound: its optimum",
        "W2",
        "bound: exact optimum",
        "W2 ",
        "bound: best baseline",
        "W2  ",
        "seconds",
    ]
    print(table(header, rows))
    save("certificates", {"comparisons": figures})


if __name__ == "__main__":
    main()
