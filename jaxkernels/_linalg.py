"""Products and functions of small matrices, in full precision on every device."""

from collections.abc import Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(fn: Callable[P, R]) -> Callable[P, R]:
    """`fn` with its matrix products in all digits; GPUs round float32 to 11 bits for them.

    For this library's own algebra, where small modes stand beside large ones. How a network
    multiplies is left to its user.
    """

    @wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return fn(*args, **kwargs)

    return wrapper


matmul = full_precision(jnp.matmul)


@full_precision
def product(a: Float[Array, "i j *#b"], b: Float[Array, "j k *#b"]) -> Float[Array, "i k ..."]:
    """Matrix product over the two leading axes.

    Tiny matrices are multiplied elementwise, which XLA fuses with its surroundings.
    """
    if a.shape[1] <= 4:
        return jnp.sum(a[:, :, None] * b[None], axis=1)
    return jnp.einsum("ij...,jk...->ik...", a, b)


def apply(a: Float[Array, "i j *#b"], x: Float[Array, "j *#b"]) -> Float[Array, "i ..."]:
    """Matrix times vector, by the same rule as `product`."""
    return product(a, x[:, None])[:, 0]


def transpose(a: Float[Array, "i j *b"]) -> Float[Array, "j i *b"]:
    """The transpose of the two leading axes."""
    return jnp.swapaxes(a, 0, 1)


def spectral_function(fn: Callable[[Array], Array], m: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """V fn(w) V^T of the symmetric part V w V^T of a matrix, for an elementwise `fn`.

    First derivatives are finite for repeated eigenvalues if those of `fn` are.
    """
    return fn(m) if m.shape[0] == 1 else _of_eigenvalues(fn, 0.5 * (m + m.T))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@full_precision
def _of_eigenvalues(fn: Callable[[Array], Array], m: Float[Array, "d d"]) -> Float[Array, "d d"]:
    values, vectors = jnp.linalg.eigh(m)
    return (vectors * fn(values)) @ vectors.T


@_of_eigenvalues.defjvp
@full_precision
def _(fn: Callable[[Array], Array], primals: tuple[Array], tangents: tuple[Array]):
    """The derivative by divided differences, which are slopes where eigenvalues are close."""
    values, vectors = jnp.linalg.eigh(primals[0])
    found = fn(values)
    middle = 0.5 * (values[:, None] + values)
    gap = values[:, None] - values
    close = jnp.abs(gap) <= 1e-5 * jnp.max(jnp.abs(values))
    slope = jax.jvp(fn, (middle,), (jnp.ones_like(middle),))[1]
    divided = (found[:, None] - found) / jnp.where(close, 1.0, gap)
    inner = jnp.where(close, slope, divided) * (vectors.T @ tangents[0] @ vectors)
    return (vectors * found) @ vectors.T, vectors @ inner @ vectors.T
