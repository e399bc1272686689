"""Elementary functions that stay finite, and keep finite derivatives, at the ends of a schedule.

A schedule may end at noise level zero, start at signal zero, contain a step of length zero, or meet
an eigenvalue that is exactly zero. The textbook formulas are fine there but their derivatives are
0 * inf. Every function below selects twice (once on the input, once on the output), so that the
unused branch never produces a NaN in a derivative.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._types import AnyArray


def as_inexact(x: ArrayLike) -> Array:
    """`x` as an array of floating type: integers become the default float, floats keep theirs."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


def safe_sqrt(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """sqrt(x) for x >= 0, with derivative 0 instead of infinity at x = 0; NaN where x is."""
    zero = x <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def larger(x: ArrayLike, y: ArrayLike) -> Array:
    """The larger of two numbers; NaN where one is.

    The derivative of `jnp.maximum` compares the result with each number anew, and drops both where
    compiled code has rounded the number differently there. Here the comparison is made once.
    """
    return jnp.where(jnp.greater(x, y) | jnp.isnan(x), x, y)


def smaller(x: ArrayLike, y: ArrayLike) -> Array:
    """The smaller of two numbers; NaN where one is."""
    return jnp.where(jnp.less(x, y) | jnp.isnan(x), x, y)


def clipped(x: ArrayLike, low: ArrayLike, high: ArrayLike) -> Array:
    """The number of [low, high] that is closest to x."""
    return smaller(larger(x, low), high)


def largest(x: Float[AnyArray, "*s n"]) -> Float[Array, "*s"]:
    """The largest entry along the last axis, picked by its index for the same reason."""
    return jnp.take_along_axis(x, jnp.argmax(x, -1, keepdims=True), -1)[..., 0]


def smallest(x: Float[AnyArray, "*s n"]) -> Float[Array, "*s"]:
    """The smallest entry along the last axis."""
    return jnp.take_along_axis(x, jnp.argmin(x, -1, keepdims=True), -1)[..., 0]


def safe_log(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(x) for x >= 0: minus infinity at x = 0, with derivative 0 there."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), -jnp.inf)


def floored_log(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(x) for x >= 0; at x = 0 the log of the smallest normal number, with derivative 0."""
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

    Twice the Kullback-Leibler divergence between centred Gaussians of variance ratio 1 + x.
    """
    inside = x > -1
    x = jnp.where(inside, x, 0.0)
    small = jnp.abs(x) < 1e-2
    y = jnp.where(small, x, 0.0)
    # series x^2/2 - x^3/3 + ...; nine terms leave less than 1e-18 x^2 below the threshold
    series = jnp.zeros_like(y)
    for n in range(10, 1, -1):
        series = (-1.0) ** n / n + y * series
    z = jnp.where(small, 1.0, x)
    return jnp.where(inside, jnp.where(small, y * y * series, z - jnp.log1p(z)), jnp.inf)


def phi(order: int, z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """phi_n(z) = sum_k z^k / (k + n)! of exponential integrators, (e^z - 1) / z for n = 1.

    int_0^h e^(c (h - s)) s^m ds = m! h^(m+1) phi_(m+1)(c h)
    """
    return phis(order, z)[-1]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def phis(highest: int, z: Float[Array, "*s"]) -> Float[Array, "orders *s"]:
    """phi_1, phi_2, ..., with

    phi_n(z) = 1 / n! + z phi_(n+1)(z),        d phi_n / dz = phi_n - n phi_(n+1)
    """
    small = jnp.abs(z) < 1.0
    # 18 terms leave less than 1e-17 below the threshold
    y = jnp.where(small, z, 0.0)
    series = jnp.zeros_like(y)
    for k in reversed(range(18)):
        series = 1.0 / math.factorial(k + highest) + y * series
    below = [series]
    for n in reversed(range(1, highest)):
        below.append(1.0 / math.factorial(n) + y * below[-1])
    y = jnp.where(small, 1.0, z)
    above = [jnp.expm1(y) / y]
    for n in range(1, highest):
        above.append((above[-1] - 1.0 / math.factorial(n)) / y)
    return jnp.where(small, jnp.stack(below[::-1]), jnp.stack(above))


@phis.defjvp
def _phis_jvp(
    highest: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Float[Array, "orders *s"], Float[Array, "orders *s"]]:
    """Those up to one order more have the derivatives."""
    found = phis(highest + 1, primals[0])
    orders = np.arange(1.0, highest + 1.0, dtype=found.dtype)
    orders = orders.reshape(-1, *[1] * (found.ndim - 1))
    return found[:-1], (found[:-1] - orders * found[1:]) * tangents[0]
