"""Bounds for the reverse process in continuous time: the limit of small steps."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._numerics import clipped, larger, safe_log, safe_sqrt, smaller
from .._precision import in_float64, is_traced
from .._quadrature import gauss_legendre, lacking, mean_from_above
from .._types import Numbers
from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess, check_process
from ._bound import COHERENT, AccumulationBound, ErrorSize, per_evaluation
from ._curvature_interval import AbstractCurvature, as_curvature
from ._graded_panels import LAST, Range, graded_shares, known_range, leading

_NODES = 12
# where the curvature is not known
_UNKNOWN_PANELS = 8
# of the range of times, within which the process has no scale of its own
_SMALL_TIME = 1e-6
# of a range of sigma^2, below which nothing is resolved
_SMALLEST = 1e-30
_OVERFLOW = "the factor by which the reverse process moves points apart exceeds the largest number"


class ContinuousAccumulation(eqx.Module):
    """What an error of the score at time t can contribute to W2 at the end, per unit of time.

        gain(t) = (1 + alpha^2)/2 g^2 exp( int_{t_min}^t phi ),
        phi = -f + (1 + alpha^2)/2 g^2 (high + L)

    with high the upper end of the curvature and L the Lipschitz constant of the error. Unlike the
    sum over steps it does not depend on a schedule: at leading order neither does the sum.

    **Arguments:**

    - `times`, `weights`: (n,), the nodes and weights of a quadrature in time.
    - `gain`: (n,), in units of variance per time.
    - `vacuous`: where the data's curvature is not known, which makes `gain` infinite.
    - `nodes`: number of nodes of one panel, if all panels are of a Gauss-Legendre rule; `coherent`
      then adds what the sum may lack to the integral. 0 for any other quadrature.

    **Example:**

    ```python
    >>> accumulation = jk.bounds.continuous_accumulation(jk.Gaussian(0.0, [2.0]), jk.VP())
    >>> bound = accumulation.coherent(0.1)
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), equation
    (11), in continuous time and without its sum of squares.
    """

    times: Float[Array, " n"]
    weights: Float[Array, " n"]
    gain: Float[Array, " n"]
    vacuous: str = eqx.field(static=True)
    nodes: int = eqx.field(static=True, default=0)

    @in_float64
    def coherent(self, rms: ErrorSize) -> AccumulationBound:
        """Bound W2 whatever the dependence of the errors.

            W2 <= int gain(t) rms(t) dt

        **Arguments:**

        - `rms`: (E |e_t|^2)^(1/2) along the process without errors, a number or a function of time,
          >= 0, in 1 / data.

        **Returns:** the bound, in the units of the data.

        **Raises:** ValueError for a negative size.

        **Example:**

        ```python
        >>> accumulation = jk.bounds.continuous_accumulation(jk.Gaussian(0.0, [2.0]), jk.VP())
        >>> bound = accumulation.coherent(lambda t: 0.1 / (1.0 + t))
        ```
        """
        sizes = per_evaluation("rms", rms, self.times)
        counts = (sizes > 0) & (self.weights > 0)
        terms = jnp.where(counts, self.weights * jnp.where(counts, self.gain, 0.0) * sizes, 0.0)
        if self.nodes:
            _, weights, _ = gauss_legendre(self.nodes, terms.dtype)
            terms = mean_from_above(terms.reshape(-1, self.nodes) / weights)
        value = jnp.sum(terms)
        finite = is_traced(value) or bool(np.isfinite(value))
        return AccumulationBound(value, COHERENT, "" if finite else self.vacuous)


@in_float64
def continuous_accumulation(
    target: Gaussian | GaussianMixture | AbstractCurvature,
    process: AbstractProcess,
    *,
    lipschitz: ErrorSize = 0.0,
    stochasticity: Numbers = 0.0,
    t_min: Numbers = 0.0,
) -> ContinuousAccumulation:
    """Compute how score errors of every time add up in the reverse process.

    **Arguments:**

    - `target`: a Gaussian, a mixture, or what is known of the curvature of any data.
    - `process`: the forward process, with a positive signal at t_max.
    - `lipschitz`: L >= 0 of the errors, a number or a function of time, in 1 / variance.
    - `stochasticity`: alpha = h/g >= 0, the same at all times; 0 is the probability flow, 1 the
      reverse SDE.
    - `t_min`: where the process stops, in [0, t_max).

    **Returns:** the gain at every time, and the bound that follows from it.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [2.0])
    >>> flow, sde = (
    ...     jk.bounds.continuous_accumulation(target, jk.VP(), stochasticity=a) for a in (0, 1)
    ... )
    ```

    Source: as for `ContinuousAccumulation`.
    """
    process = check_process(process)
    curvature = as_curvature(target)
    alpha = _checks.parameter("stochasticity", stochasticity, at_least=0.0)
    if not is_traced(process):
        last = float(process.t_max)
        t_min = _checks.parameter("t_min", t_min, at_least=0.0, below=last)
        signal = process.signal(last)
        if not is_traced(signal) and not float(signal) > 0:
            raise ValueError(
                f"process has no signal at t_max = {last:g}, where a score error has no finite "
                "effect; restrict it with sub_range."
            )
    data = _Data(process, curvature, lipschitz, jnp.asarray(0.5 * (1.0 + alpha**2)))
    t_min = jnp.asarray(t_min)
    levels, scale = _range(data, t_min)
    edges = _edges(data, levels, scale)
    gain, times, weights, known = _gain(data, levels, edges, process.signal(t_min))
    overflows = not is_traced(known) and bool(np.all(known))
    vacuous = _OVERFLOW if overflows else curvature.vacuous
    return ContinuousAccumulation(times, weights, gain, vacuous, _NODES)


@in_float64
def sde_ode_ratio(
    process: AbstractProcess,
    t: Float[ArrayLike, "*s"],
    *,
    variance: Numbers,
    stochasticity: Numbers = 1.0,
) -> Float[Array, "*s"]:
    """Compute what a score error at time t causes with noise, relative to without.

        (1 + alpha^2) (lambda / (lambda + sigma^2))^(alpha^2 / 2)

    for a mode of variance lambda. At the data end it is 1 + alpha^2 > 1, because noise multiplies
    the factor of the score. It falls below 1 where sigma is large, because noise forgets.

    **Arguments:**

    - `process`: the forward process.
    - `t`: times, any shape.
    - `variance`: lambda > 0 of the data.
    - `stochasticity`: alpha = h/g >= 0.

    **Returns:** the ratio of the gains at every time.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> jk.bounds.sde_ode_ratio(jk.VP(), 0.0, variance=1.0).item()
    2.0
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), section
    3.4, whose factors per step leave out that of the score.
    """
    variance = _checks.parameter("variance", variance, above=0.0)
    alpha2 = _checks.parameter("stochasticity", stochasticity, at_least=0.0) ** 2
    return (1.0 + alpha2) * (1.0 + process.sigma(t) ** 2 / variance) ** (-0.5 * alpha2)


@in_float64
def sde_ode_crossing(
    process: AbstractProcess, *, variance: Numbers, stochasticity: Numbers = 1.0
) -> Float[Array, ""]:
    """Compute the time above which noise makes a score error cost less.

        sigma^2 = lambda ((1 + alpha^2)^(2 / alpha^2) - 1),    3 lambda for the reverse SDE

    **Arguments:**

    - `process`: the forward process.
    - `variance`: lambda > 0 of the data.
    - `stochasticity`: alpha = h/g > 0.

    **Returns:** the time where `sde_ode_ratio` is 1; infinite if that is beyond t_max.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> round(jk.bounds.sde_ode_crossing(jk.VE(2.0), variance=0.1).item(), 6)
    0.15
    ```

    Source: as for `sde_ode_ratio`.
    """
    variance = _checks.parameter("variance", variance, above=0.0)
    alpha2 = _checks.parameter("stochasticity", stochasticity, above=0.0) ** 2
    sigma = jnp.sqrt(variance * jnp.expm1(2.0 * jnp.log1p(alpha2) / alpha2))
    last = process.sigma(process.t_max)
    inside = sigma <= last
    return jnp.where(inside, process.time_at_sigma(smaller(sigma, last)), jnp.inf)


class _Data(NamedTuple):
    """Arguments of the bound, and c = (1 + alpha^2) / 2.

    In w = sigma^2, of which g^2 dt = a^2 dw, the bound is

        int c a(t_min) a exp( int psi dw ) rms dw,        psi = c a^2 (high + L)

    and no rate of the process in time, which may jump, is integrated.
    """

    process: AbstractProcess
    curvature: AbstractCurvature
    lipschitz: ErrorSize
    factor: Float[Array, ""]

    def known(self, t: Array) -> Array:
        """Whether the upper end of the curvature is finite."""
        return self.curvature.interval(self.process, t)[1] < jnp.inf

    def time(self, w: Array) -> Array:
        """The time of sigma^2 = w."""
        return self.process.time_at_sigma(safe_sqrt(w))

    def rate(self, t: Array) -> Array:
        """psi, or 0 where it is not known."""
        high = self.curvature.interval(self.process, t)[1]
        sizes = per_evaluation("lipschitz", self.lipschitz, t.reshape(-1)).reshape(t.shape)
        high = jnp.where(high < jnp.inf, high, 0.0)
        return self.factor * self.process.signal(t) ** 2 * (high + sizes)


def _range(data: _Data, t_min: Float[Array, ""]) -> tuple[Range, Array]:
    """sigma^2 from t_min to t_max, up to where the curvature is known, and the first scale."""
    first = data.process.sigma(t_min) ** 2
    last = data.process.sigma(jnp.asarray(data.process.t_max)) ** 2
    scale = _scale(data, t_min, first, last)
    known = data.known(t_min)
    return known_range(lambda w: data.known(data.time(w)), known, first, last, scale), scale


def _scale(
    data: _Data, t_min: Float[Array, ""], first: Float[Array, ""], last: Float[Array, ""]
) -> Float[Array, ""]:
    """A change of sigma^2 from the first one over which nothing changes much."""
    span = last - first
    soon = t_min + _SMALL_TIME * (jnp.asarray(data.process.t_max) - t_min)
    scale = smaller(data.process.sigma(soon) ** 2 - first, 1e-3 * span)
    rate = jnp.abs(data.rate(t_min[None])[0])
    scale = smaller(scale, 0.1 / jnp.where(rate > 0, rate, 1e-300))
    scale = jnp.where(first > 0, smaller(scale, 0.5 * first), scale)
    return larger(scale, _SMALLEST * span)


def _edges(data: _Data, levels: Range, scale: Float[Array, ""]) -> Float[Array, " edges"]:
    """Edges of panels in sigma^2 - first, in shares of what is known and, beyond 1, of the rest."""
    span = levels.known_to - levels.first

    def rate(w: Array) -> tuple[Array, Array]:
        t = data.time(w)
        return data.rate(t), safe_log(data.process.signal(t))

    edges = graded_shares(rate, levels.first, span, scale)
    kinks = jnp.asarray(data.curvature.kinks, edges.dtype) ** 2
    if kinks.size:
        inside = (kinks - levels.first) / jnp.where(span > 0, span, 1.0)
        # those in the last panel, which counts as unknown before what is not known, are left out
        edges = jnp.sort(jnp.concatenate([edges, clipped(inside, 0.0, 1.0 - LAST)]))
    rest = 1.0 + jnp.arange(1, _UNKNOWN_PANELS + 1, dtype=edges.dtype) / _UNKNOWN_PANELS
    return jax.lax.stop_gradient(jnp.concatenate([edges, rest]))


def _gain(
    data: _Data, levels: Range, edges: Float[Array, " edges"], signal: Float[Array, ""]
) -> tuple[Array, Array, Array, Array]:
    """Gain, times and weights in time of all nodes, and where the gain is known."""
    x, shares, integrals = gauss_legendre(_NODES, edges.dtype)
    panels = edges.size - 1
    inside = jnp.arange(panels) < panels - _UNKNOWN_PANELS
    length = edges[1:] - edges[:-1]
    nodes = edges[:-1, None] + length[:, None] * x
    span = levels.known_to - levels.first
    rest = levels.last - levels.known_to
    offset = jnp.where(inside[:, None], span * nodes, span + rest * (nodes - 1.0))
    length = length * jnp.where(inside, span, rest)
    times = data.time(levels.first + offset)
    psi = data.rate(times)
    above = length * lacking(psi)
    whole = length * (psi @ shares) + above
    exponent = jnp.cumsum(whole) - whole + above
    exponent = exponent[:, None] + length[:, None] * (psi @ integrals.T)
    a = data.process.signal(times)
    squared = data.process.diffusion_squared(times)
    gain = data.factor * squared * signal / a * jnp.exp(exponent)
    # the last panel before what is not known: there the gain may grow without bound
    edge = ~inside | (jnp.arange(panels) == panels - _UNKNOWN_PANELS - 1)
    known = data.known(times) & ((rest <= 0) | ~edge)[:, None]
    reached = jnp.arange(known.size) < leading(known.reshape(-1))
    gain = jnp.where(reached, gain.reshape(-1), jnp.inf)
    weights = length[:, None] * shares * a**2 / squared
    return gain, times.reshape(-1), weights.reshape(-1), reached
