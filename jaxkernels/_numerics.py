"""Elementary functions that stay finite, and keep finite derivatives, at the benign ends of a schedule.

A schedule may end at noise level zero, start at signal zero, contain a step of length zero, or meet
an eigenvalue that is exactly zero. The textbook formulas are fine there but their derivatives are
0 * inf. Every function below selects twice (once on the input, once on the output), so that the
unused branch never produces a NaN in a derivative.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def as_inexact(x: ArrayLike) -> Array:
    """`x` as an array of floating type: integers become the default float, floats keep theirs."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


def safe_sqrt(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """sqrt(x) for x >= 0, with derivative 0 instead of infinity at x = 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def safe_log(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(x) for x >= 0: minus infinity at x = 0, with derivative 0 there."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), -jnp.inf)


def floored_log(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(x) for x >= 0, but finite at x = 0: the logarithm of the smallest normal number, derivative 0."""
    tiny = jnp.finfo(x.dtype).tiny
    above = x > tiny
    return jnp.where(above, jnp.log(jnp.where(above, x, 1.0)), jnp.log(tiny))


def safe_divide(x: Float[Array, "*#s"], y: Float[Array, "*#s"]) -> Float[Array, "..."]:
    """x / y, and 0 (with derivative 0) where y = 0."""
    nonzero = y != 0
    return jnp.where(nonzero, x / jnp.where(nonzero, y, 1.0), 0.0)


def power(base: Float[Array, "*#s"], exponent: Float[Array, "*#s"]) -> Float[Array, "..."]:
    """base ** exponent for base >= 0 and exponent >= 0, with 0 ** 0 = 1 and no NaN derivative."""
    positive = base > 0
    inside = jnp.exp(exponent * jnp.log(jnp.where(positive, base, 1.0)))
    return jnp.where(positive, inside, jnp.where(exponent == 0, 1.0, 0.0))


def log_ratio_excess(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x - log(1 + x), without cancellation for small x; infinite for x <= -1.

    Twice the Kullback-Leibler divergence between centred normal laws of variance ratio 1 + x.
    """
    inside = x > -1
    x = jnp.where(inside, x, 0.0)
    small = jnp.abs(x) < 1e-2
    y = jnp.where(small, x, 0.0)
    # alternating series x^2/2 - x^3/3 + ...; nine terms leave less than 1e-18 x^2 below the threshold
    series = jnp.zeros_like(y)
    for n in range(10, 1, -1):
        series = (-1.0) ** n / n + y * series
    z = jnp.where(small, 1.0, x)
    return jnp.where(inside, jnp.where(small, y * y * series, z - jnp.log1p(z)), jnp.inf)


def full_precision(fn: Callable[P, R]) -> Callable[P, R]:
    """Matrix products of `fn` in all digits of their arguments: by default GPUs round float32 to 11 bits for them.

    For this library's own algebra, where small modes stand beside large ones; how a network multiplies is its user's
    choice.
    """

    @wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return fn(*args, **kwargs)

    return wrapper


matmul = full_precision(jnp.matmul)


@full_precision
def product(a: Float[Array, "i j *b"], b: Float[Array, "j k *b"]) -> Float[Array, "i k *b"]:
    """Matrix product over the two leading axes. Tiny matrices are multiplied elementwise, which fuses."""
    if a.shape[1] <= 4:
        return jnp.sum(a[:, :, None] * b[None], axis=1)
    return jnp.einsum("ij...,jk...->ik...", a, b)


def apply(a: Float[Array, "i j *b"], x: Float[Array, "j *b"]) -> Float[Array, "i *b"]:
    """Matrix times vector, by the same rule as `product`."""
    return product(a, x[:, None])[:, 0]


def transpose(a: Float[Array, "i j *b"]) -> Float[Array, "j i *b"]:
    """The transpose of the two leading axes."""
    return jnp.swapaxes(a, 0, 1)


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf is an abstract value of a surrounding transformation."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def to_float64(tree: T) -> T:
    """The same tree with every floating array as a NumPy array in float64."""

    def convert(leaf: object) -> object:
        if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating):
            # a copy: JAX remembers the precision in which it first met a NumPy array
            return np.array(leaf, np.float64)
        return leaf

    return jax.tree.map(convert, tree)


def _to_default(leaf: object) -> object:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(np.asarray(leaf), float)
    return leaf


def in_float64(fn: Callable[P, R]) -> Callable[P, R]:
    """Compute `fn` in float64 whatever the caller's precision, and return the caller's default float.

    The global flag is changed inside the call only. Under a transformation of the caller (jit, grad,
    vmap) precision is the caller's business, and `fn` runs as it is.
    """

    @wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_traced((args, kwargs)):
            return fn(*args, **kwargs)
        with jax.enable_x64(True):
            args, kwargs = to_float64((args, kwargs))
            result = fn(*args, **kwargs)
        return jax.tree.map(_to_default, result)

    return wrapper


def forward_derivatives(fn: Callable[[Array], Array], x: Float[Array, " n"]) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian by two forward passes: for few variables, without a reverse pass."""
    units = jnp.eye(x.shape[0], dtype=x.dtype)

    def along(first: Array):
        def directional(x: Array):
            return jax.jvp(fn, (x,), (first,))

        return jax.vmap(lambda second: jax.jvp(directional, (x,), (second,)), out_axes=((None, None), 0))(units)

    (value, slope), (_, curvature) = jax.vmap(along, out_axes=((None, 0), 0))(units)
    return value, slope, curvature
