"""What a low-rank error costs to contract, and the whole kernel.

Run by `python -m benchmarks.kernels`.

The same expected error twice in one run: `contract`, which propagates each direction of the error
once, and the sum over all pairs of times of the kernel's blocks, which is what one would write down
from the formula. Both compiled, warm, the least of several runs.
"""

import time
from collections.abc import Callable

import jax
import numpy as np
from rich.progress import track

import jaxkernels as jk

from .environment import save, table

PROCESS = jk.VP()
STEPS = (30, 100, 300, 1000, 3000)
MODES = (1000, 3000, 10_000, 30_000, 100_000)
FIXED_STEPS = 30
FIXED_MODES = 1024
LARGE = (200, 1024)
REPEATS = 7


def setting(num_steps: int, modes: int) -> tuple[jk.ErrorKernel, jk.ScoreError]:
    """A spectrum i^-1, a schedule uniform in log-SNR and an error of rank one."""
    target = jk.Gaussian(0.3, np.arange(1.0, modes + 1.0) ** -1.0)
    schedule = jk.schedules.log_snr(PROCESS, num_steps, 1e-3)
    error = jk.ScoreError.diagonal(np.linspace(1e-3, 2e-3, modes))
    return jk.error_kernel(target, PROCESS, "ddim", schedule), error


def least(fn: Callable[[], object], repeats: int = REPEATS) -> float:
    """Least wall time in seconds, after one call that compiles."""
    jax.block_until_ready(fn())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(fn())
        times.append(time.perf_counter() - began)
    return min(times)


def contraction(num_steps: int, modes: int) -> float:
    kernel, error = setting(num_steps, modes)
    return least(lambda: kernel.contract(error))


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Of log time against log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    with jax.enable_x64(True):
        by_steps = [contraction(k, FIXED_MODES) for k in track(STEPS, "K")]
        by_modes = [contraction(FIXED_STEPS, d) for d in track(MODES, "modes")]
        kernel, error = setting(*LARGE)
        low_rank = least(lambda: kernel.contract(error))
        slopes = np.linspace(1e-3, 2e-3, LARGE[1])

        def dense() -> float:
            blocks = kernel.blocks()
            # E Delta_a Delta_b = slopes^2 at every pair of times
            return float(np.einsum("abm,m->", np.asarray(blocks.slope), slopes**2))

        agreement = dense() / float(kernel.contract(error)) - 1.0
        formed = least(dense, repeats=2)
    rows = [
        [f"K = {k}, {FIXED_MODES} modes", f"{1e3 * s:.2f}"]
        for k, s in zip(STEPS, by_steps, strict=True)
    ]
    rows += [
        [f"K = {FIXED_STEPS}, {d} modes", f"{1e3 * s:.2f}"]
        for d, s in zip(MODES, by_modes, strict=True)
    ]
    rows += [
        [f"K = {LARGE[0]}, {LARGE[1]} modes: contraction", f"{1e3 * low_rank:.2f}"],
        [f"K = {LARGE[0]}, {LARGE[1]} modes: kernel formed", f"{1e3 * formed:.0f}"],
    ]
    figures = {
        "milliseconds": {name: float(value) for name, value in rows},
        "slope_in_steps": slope(STEPS, by_steps),
        "slope_in_modes": slope(MODES, by_modes),
        "formed_over_contraction": formed / low_rank,
        "relative_difference": agreement,
    }
    print(table(["rank one", "ms"], rows))
    print(
        f"log-log slope in K {figures['slope_in_steps']:.2f}, "
        f"in modes {figures['slope_in_modes']:.2f}"
    )
    print(
        f"forming the kernel takes {formed / low_rank:.0f} times as long; "
        f"same value to {agreement:.1e}"
    )
    print(f"written to {save('kernels', figures)}")


if __name__ == "__main__":
    main()
