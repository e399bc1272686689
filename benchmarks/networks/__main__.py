"""Optimised schedules on trained networks.

Run by `python -m benchmarks.networks`.

Trains the networks, optimises schedules and runs them; see `study`.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from ..environment import save
from .data import PROBLEMS
from .report import report
from .study import NUM_NOISE, study_problem


def main() -> None:
    # processes, as a program compiles on one core; spawned, as JAX has threads of its own
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        studies = list(pool.map(study_problem, range(len(PROBLEMS) + 1)))
    path = save("networks", {"noise": NUM_NOISE, "studies": studies})
    text = report(studies)
    path.with_suffix(".md").write_text(text)
    print(text)
    print(f"written to {path} and .md")


if __name__ == "__main__":
    main()
