"""Value, gradient and Hessian of a function of one vector."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

T = TypeVar("T")


def forward_derivatives(
    fn: Callable[[Array], Array], x: Float[Array, "n *items"]
) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian by two nested forward passes, for few variables.

    Further axes of x are items that fn treats alike and separately; without them fn is any
    function.
    """
    return forward_derivatives_with(lambda x: (fn(x), ()), x)[0]


def forward_derivatives_with(
    fn: Callable[[Array], tuple[Array, T]], x: Float[Array, "n *items"]
) -> tuple[tuple[Array, Array, Array], T]:
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


def pointwise_derivatives(
    fn: Callable[[Array], Array], x: Float[Array, " points"]
) -> tuple[Array, Array, Array]:
    """Value and two derivatives of a function (points,) -> (points, ...) of separate points."""
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


def expand_pointwise(
    fn: Callable[[Array], Array], x: Float[Array, "n *items"]
) -> Float[Array, "outputs *items"]:
    """`fn(x)` by its expansion to second order about x itself, for a function of separate items.

    Value and two derivatives are those of fn. It costs as many passes as an item has variables,
    where a Hessian in the variables of all items takes as many as these.
    """
    at = jax.lax.stop_gradient(x)
    value, slope, curvature = forward_derivatives(fn, at)
    offset = (x - at)[:, None]
    total = value + jnp.sum(slope * offset, 0)
    return total + 0.5 * jnp.sum(curvature * offset[:, None] * offset, (0, 1))


def dense_derivatives(fn: Callable[[Array], Array], z: Array) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian in one forward-over-reverse pass with n tangents."""

    def gradient(z: Array):
        value, g = jax.value_and_grad(fn)(z)
        return g, (value, g)

    hessian, (value, g) = jax.jacfwd(gradient, has_aux=True)(z)
    return value, g, hessian
