"""What users wait for: cold start, compiling, and warm calls: python -m benchmarks.cold_start.

Whole processes are timed from outside, the least of several rounds. The README's first command runs
without a compilation cache, and a second time with the one that it wrote. In one further process
the exact optimum of a spectrum of 3072 modes is timed cold, for another number of steps of the same
bucket, and warm; and spectra of many modes and schedules of many steps.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from rich.progress import track

from .environment import save, table

COMMAND = ["optimize", "--data", "digits"]
ROUNDS = 3

_EXACT = """
import json, sys, time
began = time.perf_counter()
import numpy as np
import jaxkernels as jk
marks = {"import": time.perf_counter() - began}

def optimum(modes, sampler, steps):
    target = jk.Gaussian(np.zeros(modes), np.geomspace(1.0, 1e-6, modes))
    began = time.perf_counter()
    result = jk.optimize_schedule(target, jk.VP(), sampler, steps, t_min=1e-3, progress=False)
    assert result.converged, result.reason
    return time.perf_counter() - began

def warm(modes, sampler, steps):
    return min(optimum(modes, sampler, steps) for _ in range(5))

marks["exact, 3072 modes, K = 10, first"] = optimum(3072, "ddim", 10)
if sys.argv[1] == "all":
    marks["exact, another K of the bucket, first"] = optimum(3072, "ddim", 9)
    marks["exact, another K of the bucket, again"] = optimum(3072, "ddim", 8)
    marks["exact, ddim, K = 10, warm"] = warm(3072, "ddim", 10)
    optimum(3072, "dpmpp_2m", 10)
    marks["exact, dpmpp_2m, K = 10, warm"] = warm(3072, "dpmpp_2m", 10)
    marks["exact, 32 modes, ddim, K = 10, warm"] = warm(32, "ddim", 10)
    marks["exact, 1e6 modes, ddim, K = 10, warm"] = warm(1_000_000, "ddim", 10)
    marks["exact, ddim, K = 250, first"] = optimum(3072, "ddim", 250)
    marks["exact, ddim, K = 1000, first"] = optimum(3072, "ddim", 1000)
print(json.dumps(marks))
"""


def _run(arguments: list[str], folder: str, cache: str | None = None) -> tuple[float, str]:
    """Wall time of a Python process in seconds, and its output. Raises if it failed."""
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    extra = {} if cache is None else {"XDG_CACHE_HOME": cache}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **extra},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - began, done.stdout


def measure() -> dict[str, float]:
    """One round, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command, _ = _run(["-m", "jaxkernels", *COMMAND, "--no-cache"], folder)
        _run(["-m", "jaxkernels", *COMMAND], folder, folder)
        cached, _ = _run(["-m", "jaxkernels", *COMMAND], folder, folder)
        exact, _ = _run(["-c", _EXACT, "first"], folder)
        _, text = _run(["-c", _EXACT, "all"], folder)
    whole = {
        "command, whole process, no cache": command,
        "command, whole process, with the cache": cached,
        "exact, 3072 modes, K = 10, whole process": exact,
    }
    return {**whole, **json.loads(text)}


def main() -> None:
    """Measure, show and save."""
    rounds = [measure() for _ in track(range(ROUNDS), "measuring")]
    least = {name: min(r[name] for r in rounds) for name in rounds[0]}
    print(f"command: python -m jaxkernels {' '.join(COMMAND)}")
    print(table(["part", "seconds"], [[name, f"{value:.3f}"] for name, value in least.items()]))
    print(f"written to {save('cold_start', {'command': COMMAND, 'seconds': least})}")


if __name__ == "__main__":
    main()
