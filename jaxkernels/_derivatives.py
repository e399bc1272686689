"""Value, gradient and Hessian of a function of one vector."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def forward_derivatives(
    fn: Callable[[Array], Array], x: Float[Array, "n *items"]
) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian by two nested forward passes, for few variables.

    Further axes of x are items that fn treats alike and separately; without them fn is any
    function.
    """
    n = x.shape[0]
    units = jnp.eye(n, dtype=x.dtype).reshape(n, n, *[1] * (x.ndim - 1))
    units = jnp.broadcast_to(units, (n, *x.shape))

    def along(first: Array):
        def directional(x: Array):
            return jax.jvp(fn, (x,), (first,))

        def again(second: Array):
            return jax.jvp(directional, (x,), (second,))

        return jax.vmap(again, out_axes=((None, None), 0))(units)

    (value, slope), (_, curvature) = jax.vmap(along, out_axes=((None, 0), 0))(units)
    return value, slope, curvature


def pointwise_derivatives(
    fn: Callable[[Array], Array], x: Float[Array, " points"]
) -> tuple[Array, Array, Array]:
    """Value and two derivatives of a function (points,) -> (points, ...) of separate points."""
    ones = jnp.ones_like(x)

    def directional(x: Array):
        return jax.jvp(fn, (x,), (ones,))

    (value, slope), (_, curvature) = jax.jvp(directional, (x,), (ones,))
    return value, slope, curvature


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
