"""Settings of the whole suite: float64, reproducible property tests, compiling once."""

import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

# Compiling is most of the suite's time, so that programs are kept from one run to the next. The
# environment takes the setting to notebook kernels and to the command line's subprocesses too.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
LARGEST_PROCESS = 3_000_000  # kB
for _name, _value in CACHE.items():
    os.environ.setdefault(_name, _value)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from jax.extend.core import Primitive, primitives  # noqa: E402
from jax.interpreters import ad  # noqa: E402

# a plugin may have imported JAX already, which reads the environment only once
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# oracles need float64; what users run in float32 is tested through the fixture below
jax.config.update("jax_enable_x64", True)
# a float32 that meets a float64 is an error, so that no result has a dtype by accident
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Programs are compiled as users compile them: `jax_disable_most_optimizations` would save 5 % of
# the time, but XLA's gradient of the local error of "dpmpp_2m" is wrong with it


def _spoil_derivative(primitive: Primitive, operands: int) -> None:
    """Make it NaN: it compares rounded numbers anew, and is wrong where XLA fuses otherwise.

    `larger` and so on of `jaxkernels._numerics` compare once. Where no derivative is taken of a
    maximum, as in `logsumexp`, it stays unnoticed.
    """

    def derivative(tangent: jax.Array, *_: object, axes: tuple[int, ...] = (), **__: object):
        return jnp.nan * jnp.sum(tangent, axes)

    ad.defjvp(primitive, *[derivative] * operands)


for _operands, _names in {1: ("reduce_max_p", "reduce_min_p"), 2: ("max_p", "min_p")}.items():
    for _name in _names:
        _spoil_derivative(getattr(primitives, _name), _operands)

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """Leave what importing and collecting made to the end, and look for garbage less often.

    Tracing makes many short-lived objects. That Python looks at all others again and again
    meanwhile was a sixth of the suite's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture
def float32() -> Iterator[None]:
    """JAX's own default precision for one test; float64 is back afterwards."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    """Forget compiled programs between modules once they fill memory; the small ones are shared."""
    yield
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > LARGEST_PROCESS:
        jax.clear_caches()
