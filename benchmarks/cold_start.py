"""What one call of the command line costs from nothing: python -m benchmarks.cold_start

The whole process is timed from outside. A second process runs the same command twice and reports what went
into importing, into the first run's compilation, and into the run itself (reading, optimising, plotting,
writing). Each figure is the least of several.
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

_PARTS = """
import contextlib, io, json, os, sys, time
began = time.perf_counter()
from jaxkernels.cli import run
marks = [time.perf_counter() - began]
for folder in sys.argv[1:3]:
    os.chdir(folder)
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = run(json.loads(sys.argv[3]))
    if code:
        sys.exit(code)
    marks.append(time.perf_counter() - began)
print(json.dumps(marks))
"""


def _run(arguments: list[str], folder: str) -> tuple[float, str]:
    """Wall time of a Python process in seconds, and what it printed. Raises if it failed."""
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - began, done.stdout


def measure() -> dict[str, float]:
    """One round, in seconds."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        whole, _ = _run(["-m", "jaxkernels", *COMMAND], first)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        _, printed = _run(["-c", _PARTS, first, second, json.dumps(COMMAND)], first)
        importing, cold, warm = json.loads(printed)
        interpreter, _ = _run(["-c", "pass"], first)
    return {
        "whole": whole,
        "interpreter": interpreter,
        "import": importing,
        "cold": cold,
        "warm": warm,
    }


def main() -> None:
    rounds = [measure() for _ in track(range(ROUNDS), "measuring")]
    least = {name: min(r[name] for r in rounds) for name in rounds[0]}
    figures = {
        "whole process": least["whole"],
        "interpreter": least["interpreter"],
        "import": least["import"],
        "compile": least["cold"] - least["warm"],
        "run": least["warm"],
    }
    print(f"python -m jaxkernels {' '.join(COMMAND)}")
    print(table(["part", "seconds"], [[name, f"{value:.2f}"] for name, value in figures.items()]))
    print(f"written to {save('cold_start', {'command': COMMAND, 'seconds': figures})}")


if __name__ == "__main__":
    main()
