"""Compilation of programs whose compiling takes longer than their running."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import equinox as eqx
import jax

from ._precision import is_traced
from ._stored import active_store

P = ParamSpec("P")
R = TypeVar("R")

# XLA's older emitters of loops for CPUs take about 2/3 of the time to compile; on programs of many
# small arrays the newer ones are hardly faster, or slower. They unroll what longer sums are
# rewritten to, windows of 32 x 32 numbers: one second a sum. Added up in order, a million float32
# numbers keep five digits, of which these programs have no use for more.
_QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_disable_hlo_passes": "tree_reduction_rewriter",
}


def kept_jit(
    fn: Callable[P, R], jit: Callable[..., Any] = jax.jit, quick: bool = False
) -> Callable[P, R]:
    """`jit` of a program that `stored_programs` keeps; under an outer transformation `fn` as it is.

    All leaves of what `fn` returns are arrays. A `quick` program starts quickly on a CPU.
    """

    @functools.cache
    def compiled() -> Callable[P, R]:
        return jit(fn, compiler_options=_options() if quick else None)

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_traced((args, kwargs)):
            return fn(*args, **kwargs)
        store = active_store()
        if store is not None:
            options = _options() if quick else None
            stored = store.find(fn, jit is eqx.filter_jit, options, args, kwargs)
            if stored is not None:
                return cast(R, stored())
        return compiled()(*args, **kwargs)

    return call


def quick_jit(fn: Callable[P, R], jit: Callable[..., Any] = jax.jit) -> Callable[P, R]:
    """The same for a quick start on a CPU."""
    return kept_jit(fn, jit, quick=True)


# for arguments that hold functions, such as a network
kept_filter_jit = functools.partial(kept_jit, jit=eqx.filter_jit)
quick_filter_jit = functools.partial(quick_jit, jit=eqx.filter_jit)


@functools.cache
def _options() -> dict[str, Any] | None:
    """The options, or None on other devices and where XLA no longer knows them."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_QUICK)()
    except jax.errors.JaxRuntimeError:
        return None
    return dict(_QUICK)
