"""The boundary between the caller's precision and float64, in which small optimisations run."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import PyTree

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def working_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The precision of times, noise levels and formulas for data of `dtype`: float32 or better."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf is an abstract value of a surrounding transformation."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def to_dtype(tree: T, dtype: DTypeLike) -> T:
    """The same tree with every leaf, a number or an array, as a JAX array of a precision."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def to_float64(tree: T) -> T:
    """The same tree with every floating array as a NumPy array in float64."""

    def convert(leaf: object) -> object:
        """One leaf of the tree."""
        if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating):
            # a copy: JAX remembers the precision in which it first met a NumPy array
            return np.array(leaf, np.float64)
        return leaf

    return jax.tree.map(convert, tree)


def fresh(tree: T) -> T:
    """The same tree with a copy of every NumPy array.

    A program that JAX still holds keeps the precision in which it met an array, and with it any
    later trace of that same array. A copy has no such past.
    """
    return jax.tree.map(lambda a: np.array(a) if isinstance(a, np.ndarray) else a, tree)


def _to_default(leaf: object) -> object:
    """A floating array in the caller's default precision; anything else as it is."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jax.device_put(np.asarray(leaf, np.float64))
    return leaf


def in_float64(fn: Callable[P, R]) -> Callable[P, R]:
    """`fn` computed in float64 whatever the caller's precision; its results have the caller's.

    The global flag is changed inside the call only. Under a transformation of the caller
    (jit, grad, vmap) precision is the caller's business, and `fn` runs as it is, on copies of
    the NumPy arrays.
    """

    @wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_traced((args, kwargs)):
            args, kwargs = fresh((args, kwargs))
            return fn(*args, **kwargs)
        with jax.enable_x64(True):
            args, kwargs = to_float64((args, kwargs))
            result = fn(*args, **kwargs)
        return jax.tree.map(_to_default, result)

    return wrapper
