"""The cost of `measure`, and that it survives being killed.

Run by `python -m benchmarks.measure`.

2000 grey patches of 32 x 32 pixels and two networks with random weights (cost does not depend on
them), at 20 noise levels. Each runs in a process of its own, whose peak memory is read at its end.
Then the first is started once more with a file to resume from, killed in the middle, and resumed.
"""

import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import jaxkernels as jk

from .environment import save, table
from .spectra import patches

PROCESS = jk.VP()
IMAGES = 2000
SIZE = 32
BATCH = 128
TIMES = np.asarray(jk.schedules.log_snr(PROCESS, 19, t_min=1e-3).times)
SECONDS = 120.0
GIBIBYTES = 4.0


class Dense(eqx.Module):
    """A perceptron on the pixels, about a million parameters."""

    layers: eqx.nn.MLP

    def __init__(self, key: Array):
        self.layers = eqx.nn.MLP(SIZE**2 + 1, SIZE**2, 420, 2, jax.nn.silu, key=key)

    def __call__(self, x: Array, t: Array) -> Array:
        return jax.vmap(lambda v: self.layers(jnp.append(v, t)))(x)


class Convolutional(eqx.Module):
    """Strided convolutions down to 8 x 8 and back, with 64 channels at the coarsest."""

    down: list[eqx.nn.Conv2d]
    up: list[eqx.nn.Conv2d]

    def __init__(self, key: Array):
        keys = jax.random.split(key, 6)
        widths = (1, 16, 32, 64)
        pairs = list(enumerate(zip(widths, widths[1:], strict=False)))
        self.down = [
            eqx.nn.Conv2d(a, b, 3, stride=1 + (i > 0), padding=1, key=keys[i])
            for i, (a, b) in pairs
        ]
        self.up = [eqx.nn.Conv2d(b, a, 3, padding=1, key=keys[3 + i]) for i, (a, b) in pairs[::-1]]

    def __call__(self, x: Array, t: Array) -> Array:
        def one(v: Array) -> Array:
            v = v.reshape(1, SIZE, SIZE)
            for layer in self.down:
                v = jax.nn.silu(layer(v) + t)
            for layer in self.up[:-1]:
                v = jax.nn.silu(layer(v.repeat(2, 1).repeat(2, 2)))
            return self.up[-1](v).reshape(-1)

        return jax.vmap(one)(x)


NETWORKS: dict[str, Callable[[Array], Any]] = {"dense": Dense, "convolutional": Convolutional}


def child(name: str, path: str) -> None:
    """Measure in this process and print seconds, peak memory and results that must not change."""
    data = patches(IMAGES, SIZE, grey=True)
    network = NETWORKS[name](jax.random.key(0))
    started = int(np.load(path)["done"]) if Path(path).exists() else 0
    before = _peak()
    began = time.perf_counter()
    denoiser = jk.Denoiser(network, PROCESS, "x0")
    found = jk.measure(denoiser, data, TIMES, key=jax.random.key(1), batch=BATCH, resume=path)
    figures = {
        "seconds": time.perf_counter() - began,
        "gibibytes": _peak(),
        "gibibytes_before": before,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array))),
        "steps_before": started,
        "error": found.error.tolist(),
        "lipschitz": found.lipschitz.tolist(),
    }
    print(json.dumps(figures))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _start(name: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.measure", name, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    shown, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the measurement ended with {process.returncode}")
    return json.loads(shown)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = {name: _finish(_start(name, Path(folder) / f"{name}.npz")) for name in NETWORKS}

        name = "dense"
        path = Path(folder) / "killed.npz"
        process = _start(name, path)
        while process.poll() is None and (not path.exists() or int(np.load(path)["done"]) < 6):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        resumed = _finish(_start(name, path))
    differences = []
    for key in ("error", "lipschitz"):
        once = np.asarray(whole[name][key])
        again = np.asarray(resumed[key])
        differences.append(np.max(np.abs(again - once)) / np.max(np.abs(once)))
    difference = float(max(differences))
    steps = -(-IMAGES // BATCH) + len(TIMES)
    for figures in whole.values():
        for key in ("error", "lipschitz", "steps_before"):
            del figures[key]
    rows = [
        [name, f"{f['parameters']:,}", f"{f['seconds']:.1f}", f"{f['gibibytes']:.2f}"]
        for name, f in whole.items()
    ]
    print(table(["network", "parameters", "seconds", "GiB at most"], rows))
    print(
        f"killed after {resumed['steps_before']} of {steps} steps, then "
        f"{resumed['seconds']:.1f} s for the rest; "
        f"the result differs by {difference:.1g} of its size"
    )
    kill = {
        "steps_kept": resumed["steps_before"],
        "steps": steps,
        "seconds_of_the_rest": resumed["seconds"],
        "difference": difference,
    }
    content = {
        "images": IMAGES,
        "pixels": SIZE**2,
        "times": len(TIMES),
        "batch": BATCH,
        "networks": whole,
        "killed": kill,
    }
    print(f"written to {save('measure', content)}")
    worst = max(whole.values(), key=lambda f: f["seconds"])
    # in another process an accelerator may multiply in another way
    if (
        (jax.default_backend() == "cpu" and difference)
        or worst["seconds"] > SECONDS
        or any(f["gibibytes"] > GIBIBYTES for f in whole.values())
    ):
        raise SystemExit(
            f"missed: {SECONDS:g} s, {GIBIBYTES:g} GiB, on a CPU the same result after a kill"
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(sys.argv[1], sys.argv[2])
    else:
        main()
