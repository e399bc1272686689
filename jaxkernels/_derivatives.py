"""Value, gradient and Hessian of a function of one vector."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

T = TypeVar("T")
V = TypeVar("V", bound=PyTree)


def forward_derivatives(fn: Callable[[Array], V], x: Float[Array, "n *items"]) -> tuple[V, V, V]:
    """Value, gradient and Hessian by two nested forward passes, for few variables.

    Further axes of x are items that fn treats alike and separately; without them fn is any
    function. Of a function that returns a tree they are trees, whose leaves have axes over
    variables first.
    """
    return forward_derivatives_with(lambda x: (fn(x), ()), x)[0]


def forward_derivatives_with(
    fn: Callable[[Array], tuple[V, T]], x: Float[Array, "n *items"]
) -> tuple[tuple[V, V, V], T]:
    """`forward_derivatives` of the first part of what fn returns, and the second part as it is."""
    n = x.shape[0]
    units = jnp.eye(n, dtype=x.dtype).reshape(n, n, *[1] * (x.ndim - 1))
    units = jnp.broadcast_to(units, (n, *x.shape))

    def along(first: Array):
        def directional(x: Array):
            value, slope, more = jax.jvp(fn, (x,), (first,), has_aux=True)
            return (value, slope), more

        def again(second: Array):
            return jax.jvp(directional, (x,), (second,), has_aux=True)

        return jax.vmap(again, out_axes=((None, None), 0, None))(units)

    out_axes = ((None, 0), (None, 0), None)
    (value, slope), (_, curvature), more = jax.vmap(along, out_axes=out_axes)(units)
    return (value, slope, curvature), more


def pairwise_derivatives(
    fn: Callable[[Array], Array], x: Float[Array, " n"]
) -> tuple[Array, Array, Array]:
    """The same of a function (n, items) -> (outputs, items) of separate items, at one item.

    Every pair of variables is an item. That is evaluated n (n + 1) / 2 times, and compiled in about
    two thirds of the time, as no value has to be repeated along an axis of directions.
    """
    n = x.shape[0]
    first, second = np.triu_indices(n)
    units = jnp.eye(n, dtype=x.dtype)

    def directional(x: Array):
        return jax.jvp(fn, (x,), (units[:, first],))

    at = jnp.broadcast_to(x[:, None], (n, first.size))
    (value, slope), (_, curvature) = jax.jvp(directional, (at,), (units[:, second],))
    item = np.zeros((n, n), int)
    item[first, second] = item[second, first] = np.arange(first.size)
    return value[:, 0], slope[:, np.diag(item)].T, jnp.moveaxis(curvature[:, item], 0, -1)


def pointwise_derivatives(fn: Callable[[Array], V], x: Float[Array, "*points"]) -> tuple[V, V, V]:
    """Value and two derivatives of a function (*points) -> (*points, ...) of separate points."""
    ones = jnp.ones_like(x)

    def directional(x: Array):
        return jax.jvp(fn, (x,), (ones,))

    (value, slope), (_, curvature) = jax.jvp(directional, (x,), (ones,))
    return value, slope, curvature


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def once_per_point(
    fn: Callable[..., Array], x: Float[Array, "*points"], *parameters: Array
) -> Float[Array, "*points"]:
    """`fn(x, *parameters)` for a function of separate points x, such as a sum over many modes.

    Its derivatives along x are evaluated once for all tangents, where a Hessian in n variables on
    which x depends would take them n^2 times.
    """
    return fn(x, *parameters)


def _once_per_point_jvp(
    fn: Callable[..., Array], primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    """The value, and its change along x and along those parameters that move."""
    x, *parameters = primals

    def slope(x: Array, *parameters: Array) -> Array:
        return jax.jvp(lambda x: fn(x, *parameters), (x,), (jnp.ones_like(x),))[1]

    value = once_per_point(fn, x, *parameters)
    moved = [
        jnp.zeros_like(p) if _is_zero(t) else t for p, t in zip(primals, tangents, strict=True)
    ]
    total = once_per_point(slope, x, *parameters) * moved[0]
    if not all(map(_is_zero, tangents[1:])):
        total = total + jax.jvp(lambda *p: fn(x, *p), tuple(parameters), tuple(moved[1:]))[1]
    return value, total


def _is_zero(tangent: object) -> bool:
    """Whether nothing is differentiated along an argument."""
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


once_per_point.defjvp(_once_per_point_jvp, symbolic_zeros=True)


def expand_at(
    fn: Callable[[Array], tuple[Array, Array, Array]], x: Float[Array, " n"]
) -> Float[Array, " outputs"]:
    """A value by its expansion to second order about x itself.

    `fn` gives the value (outputs,), its gradient (n, outputs) and Hessian (n, n, outputs), which
    are those of the expansion.
    """
    at = jax.lax.stop_gradient(x)
    value, slope, curvature = fn(at)
    offset = x - at
    return value + offset @ slope + 0.5 * jnp.einsum("i,ijk,j->k", offset, curvature, offset)


def dense_derivatives(fn: Callable[[Array], Array], z: Array) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian in one forward-over-reverse pass with n tangents."""

    def gradient(z: Array):
        value, g = jax.value_and_grad(fn)(z)
        return g, (value, g)

    hessian, (value, g) = jax.jacfwd(gradient, has_aux=True)(z)
    return value, g, hessian
