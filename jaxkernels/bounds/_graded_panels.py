"""Panels of a quadrature in w = sigma^2 that resolve the data's own scales.

The integrand is exp(E(w)) times what is smooth in log w, with E the integral of a rate that may
change over any w: where data have a variance lambda, at w about lambda. All such rates are smooth
in the log of the distance from the first w, and where they are singular, in that from the last one.
Two passes find the panels:

1. coarse panels, geometric from both ends, which resolve the rate but perhaps not the exponential;
2. panels over which a monitor rises by equal amounts: the log of the distance from both ends, and
   the variation of E where the exponential is not negligible.

An integral does not depend on its panels, so that no derivative has to pass through them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._numerics import larger, safe_log, smaller
from .._quadrature import gauss_legendre

PANELS = 128
"""In the range where the rate is known, but for a last one of the share `LAST`."""
LAST = 1e-10
_COARSE = 96
_COARSE_LAST = 48
_COARSE_NODES = 6
_HALVINGS = 60
# parts of the integrand below e^-60 of the largest one need not be resolved
_NEGLIGIBLE = 60.0
# of one coarse panel, so that a very steep one leaves some panels for the others
_STEEPEST = 100.0

Rate = Callable[[Array], tuple[Array, Array]]
"""A function of w: the rate, and the log of the factor of the exponential."""


class Range(NamedTuple):
    """The range of w, and the part of it at whose start everything is known."""

    first: Float[Array, ""]
    known_to: Float[Array, ""]
    last: Float[Array, ""]


def known_range(
    known: Callable[[Array], Array],
    known_at_first: Bool[Array, ""],
    first: Float[Array, ""],
    last: Float[Array, ""],
    scale: Float[Array, ""],
) -> Range:
    """Where something is known from the first w on, by bisection."""
    edges = first + (last - first) * coarse_shares(scale / (last - first))
    here = known(edges).at[0].set(known_at_first)
    count = leading(here)
    low = edges[larger(count - 1, 0)]
    high = edges[smaller(count, edges.size - 1)]

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        inside = known(middle)
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
    low = jnp.where(count > 0, low, first)
    return Range(first, jnp.where(count == edges.size, last, jax.lax.stop_gradient(low)), last)


def leading(known: Bool[Array, " n"]) -> Int[Array, ""]:
    """How many entries are true before the first one that is not."""
    return jnp.where(jnp.all(known), known.size, jnp.argmin(known))


def coarse_shares(scale: Float[Array, ""]) -> Float[Array, " edges"]:
    """Edges on [0, 1], geometric from `scale` to the middle and from there to `LAST` before 1."""
    rise = jnp.linspace(0.0, 1.0, _COARSE, dtype=scale.dtype)
    below = 0.5 * (2.0 * scale) ** (1.0 - rise)
    fall = np.linspace(0.0, 1.0, _COARSE_LAST + 1)[1:]
    above = jnp.asarray(1.0 - 0.5 * (2.0 * LAST) ** fall, scale.dtype)
    ends = jnp.array([0.0, 1.0], scale.dtype)
    return jnp.concatenate([ends[:1], below, above, ends[1:]])


def graded_shares(
    rate: Rate, first: Float[Array, ""], span: Float[Array, ""], scale: Float[Array, ""]
) -> Float[Array, " edges"]:
    """Edges on [0, 1] of the panels of [first, first + span]."""
    edges = coarse_shares(scale / jnp.where(span > 0, span, 1.0))
    x, weights, _ = gauss_legendre(_COARSE_NODES, edges.dtype)
    length = edges[1:] - edges[:-1]
    values, factor = rate(first + span * (edges[:-1, None] + length[:, None] * x))
    rises = span * length * (values @ weights)
    changes = span * length * (jnp.abs(values) @ weights)
    middle = edges[:-1] + 0.5 * length
    distance = smaller(middle, 1.0 - middle)
    exponent = jnp.cumsum(rises) - 0.5 * rises + jnp.mean(factor, -1) + safe_log(distance)
    # within a panel it may be larger than in its middle by this
    matters = exponent + 0.5 * changes > jnp.max(exponent) - _NEGLIGIBLE
    steps = jnp.where(matters & jnp.isfinite(changes), smaller(changes, _STEEPEST), 0.0)
    # the first panel resolves everything, and so does the last one
    logs = jnp.abs(jnp.diff(jnp.log(edges[1:-1] / (1.0 - edges[1:-1]))))
    ones = jnp.ones(1, edges.dtype)
    monitor = jnp.concatenate([ones, logs]) + steps[:-1]
    risen = jnp.concatenate([0.0 * ones, jnp.cumsum(monitor)])
    wanted = jnp.linspace(0.0, 1.0, PANELS + 1, dtype=edges.dtype) * risen[-1]
    found = jnp.interp(wanted, risen, edges[:-1])
    return jax.lax.stop_gradient(jnp.concatenate([found, ones]))
