"""Settings of the whole suite: float64, reproducible property-based tests, programs that compile quickly."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest

# oracles need float64; what users run in float32 is tested through the fixture below
jax.config.update("jax_enable_x64", True)
# nearly all of the suite's time is LLVM's; notebooks, in processes of their own, compile as for users
jax.config.update("jax_disable_most_optimizations", True)

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def float32() -> Iterator[None]:
    """JAX's own default precision for one test; float64 is back afterwards."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    """Compiled programs are kept for one module only: those of the whole suite would fill many gigabytes."""
    yield
    jax.clear_caches()
