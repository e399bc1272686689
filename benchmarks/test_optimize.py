"""Time of `optimize_schedule`: pytest benchmarks --benchmark-only.

warm: compiled before, as in a sweep. cold: JAX's caches emptied before every round, so that tracing
and compiling count. The quality reached is stored beside the time.
"""

from functools import partial

import jax
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import jaxkernels as jk

from .environment import describe
from .spectra import spectrum, thinned

T_MIN = 1e-3
SAMPLERS = ["ddim", "dpmpp_2m"]
STEPS = [5, 10, 20]


def optimize(
    target: jk.Gaussian, sampler: str, num_steps: int, compress: int | bool
) -> jk.OptimizedSchedule:
    objective = jk.LocalError(compress=compress)
    return jk.optimize_schedule(
        target, jk.VP(), sampler, num_steps, t_min=T_MIN, objective=objective
    )


def record(benchmark: BenchmarkFixture, result: jk.OptimizedSchedule) -> None:
    """The quality of a result, and that it is one."""
    assert result.objective <= min(result.baselines.values())
    assert result.gradient_norm < 1e-6
    benchmark.extra_info.update(
        objective=result.objective,
        best_baseline=result.baselines[result.best_baseline],
        iterations=len(result.history) - 1,
        distinct_optima=result.num_local_optima,
        gradient_norm=result.gradient_norm,
        compression_error=result.compression_error,
        environment=describe(),
    )


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("compress", [32, False], ids=["32nodes", "3072modes"])
@pytest.mark.benchmark(group="warm")
def test_warm(benchmark: BenchmarkFixture, sampler: str, num_steps: int, compress: int | bool):
    run = partial(optimize, spectrum("colour_patches"), sampler, num_steps, compress)
    record(benchmark, benchmark.pedantic(run, rounds=5, warmup_rounds=1))


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.benchmark(group="cold")
def test_cold(benchmark: BenchmarkFixture, sampler: str, num_steps: int):
    run = partial(optimize, spectrum("colour_patches"), sampler, num_steps, 32)
    record(benchmark, benchmark.pedantic(run, setup=jax.clear_caches, rounds=2))


@pytest.mark.parametrize("modes", [64, 512, 3072])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.benchmark(group="dimension")
def test_dimension(benchmark: BenchmarkFixture, sampler: str, modes: int):
    run = partial(optimize, thinned(spectrum("colour_patches"), modes), sampler, 10, 32)
    record(benchmark, benchmark.pedantic(run, rounds=5, warmup_rounds=1))
