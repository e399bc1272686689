"""Compilation of programs that are kept from one process to the next."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import equinox as eqx
import jax

from ._precision import is_traced
from ._stored import active_store

P = ParamSpec("P")
R = TypeVar("R")


def kept_jit(fn: Callable[P, R], jit: Callable[..., Any] = jax.jit) -> Callable[P, R]:
    """`jit` of a program that `stored_programs` keeps; under an outer transformation `fn` as it is.

    All leaves of what `fn` returns are arrays. The compiler's options are its own: XLA's older
    emitters of loops for CPUs compile a sixth faster, and were seen to compute wrong values.
    """
    compiled = jit(fn)

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_traced((args, kwargs)):
            return fn(*args, **kwargs)
        store = active_store()
        if store is not None:
            stored = store.find(fn, jit is eqx.filter_jit, args, kwargs)
            if stored is not None:
                return cast(R, stored())
        return compiled(*args, **kwargs)

    return call


# for arguments that hold functions, such as a network
kept_filter_jit = functools.partial(kept_jit, jit=eqx.filter_jit)
