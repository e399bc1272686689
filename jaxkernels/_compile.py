"""Compilation of programs whose compiling takes longer than their running."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax

from ._precision import is_traced

P = ParamSpec("P")
R = TypeVar("R")

# XLA's older emitters of loops for CPUs take about 2/3 of the time to compile; on programs of many
# small arrays the newer ones are hardly faster, or slower
_QUICK = {"xla_cpu_use_fusion_emitters": False}


def quick_jit(fn: Callable[P, R], jit: Callable[..., Any] = jax.jit) -> Callable[P, R]:
    """`jit` for a quick start on a CPU; under an outer transformation `fn` as it is."""

    @functools.cache
    def compiled() -> Callable[P, R]:
        return jit(fn, compiler_options=_options())

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_traced((args, kwargs)):
            return fn(*args, **kwargs)
        return compiled()(*args, **kwargs)

    return call


# for arguments that hold functions, such as a network
quick_filter_jit = functools.partial(quick_jit, jit=eqx.filter_jit)


@functools.cache
def _options() -> dict[str, Any] | None:
    """The options, or None on other devices and where XLA no longer knows them."""
    # with most optimizations off, the older emitters were seen to compute wrong values
    unoptimized = jax.config.read("jax_disable_most_optimizations")
    if unoptimized or jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_QUICK)()
    except jax.errors.JaxRuntimeError:
        return None
    return dict(_QUICK)
