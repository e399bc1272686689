"""How much one step of a sampler contracts the distance of two coupled processes, and adds to it.

The exact reverse process X and the sampler's chain Y share their Brownian motion. With D = Y - X
after a step and e = (E|D|^2)^(1/2) before it,

    (E|D|^2)^(1/2) <= ((r e + mean)^2 + sum_j (f_j + g_j e)^2)^(1/2) + drift

The first bracket bounds what is known at the step's start, the sum the martingale part, which is
orthogonal to it; the drift may be correlated with both. Of the exact process two facts are used:
with tau its rate-1 time and s the score, e^(v/2) s(tau - v, X_v) is a martingale, and so is the
denoised point E[X_0 | X_v] along the reverse SDE in sigma^2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics import clipped, larger, largest, phi, safe_divide, safe_sqrt
from .._quadrature import gauss_legendre
from .._types import AnyArray
from ._assumptions import (
    Assumptions,
    curvature_interval,
    fisher,
    mean_square,
    smallest_variance,
    third_derivative,
    variance_scale,
)

_NODES = 32
_BISECTIONS = 44
# of a noise level, a scale above which `Levels` are those of its logarithm
_LOGARITHMIC = 1e-4


class StepErrors(NamedTuple):
    """The score error of every step: its size, and its Lipschitz constant.

    Sizes are in L2 along the chain, or under p_t where the Lipschitz constant is given.
    """

    size: Float[Array, " steps"]
    """At the start of each step."""
    largest: Float[Array, " steps"]
    """In the whole of each step."""
    lipschitz: Float[Array, " steps"]


class StepFactors(NamedTuple):
    """r, mean, f, g and drift of every step; what is added is divided by its cause."""

    contraction: Float[Array, " steps"]
    gain: Float[Array, "steps nodes"]
    mean: Float[Array, " steps"]
    noise: Float[Array, "steps nodes"]
    score_mean: Float[Array, " steps"]
    score_noise: Float[Array, "steps nodes"]
    drift: Float[Array, " steps"] | float = 0.0
    noise_scale: Float[Array, " steps"] | float = 1.0
    """Of the squares of f and g. The square of a root of it has no derivative where it is 0."""

    @classmethod
    def without_gain(
        cls, contraction: Array, mean: Array, noise: Array, score_mean: Array
    ) -> "StepFactors":
        """The factors of a step whose martingale part does not depend on the distance."""
        zero = jnp.zeros_like(noise)
        return cls(contraction, zero, mean, noise, score_mean, zero)


class Levels(NamedTuple):
    """Noise levels w = scale sinh(y)^2 of every step.

    y is a multiple of log w above the scale and of sigma below it, so that in y both functions of w
    that have this scale and functions of sigma are smooth, down to the level 0.
    """

    scale: Float[Array, "steps 1"]
    last: Float[Array, "steps 1"]
    """y at the step's end."""
    span: Float[Array, "steps 1"]
    """Of y in the whole step."""

    @classmethod
    def between(cls, start: Array, end: Array, scale: Array) -> "Levels":
        """Those of steps from one noise level to another."""
        first, last = (jnp.arcsinh(safe_sqrt(w / scale))[:, None] for w in (start, end))
        return cls(scale[:, None], last, first - last)

    def at(self, x: Float[Array, " nodes"]) -> tuple[Array, Array, Array]:
        """w at shares x of every span, below the start; w - w_1 and w_0 - w, no difference."""
        y = self.last + (1.0 - x) * self.span
        above = self.scale * jnp.sinh(y - self.last) * jnp.sinh(y + self.last)
        first = self.last + self.span
        below = self.scale * jnp.sinh(first - y) * jnp.sinh(first + y)
        return self.scale * jnp.sinh(y) ** 2, above, below

    def rate(self, w: Float[Array, "steps nodes"]) -> Float[Array, "steps nodes"]:
        """|dw / dx|."""
        return 2.0 * jnp.sqrt(w * (w + self.scale)) * self.span


class Nodes(NamedTuple):
    """Gauss-Legendre nodes in the noise level w = sigma^2 of every step.

    They are equidistant in log(w + least), in which the score changes at a bounded rate; as
    `Levels` where no smallest variance is known, and rates grow like 1 / sigma.
    """

    w: Float[Array, "steps nodes"]
    weight: Float[Array, "steps nodes"]
    """Of an integral over w."""
    elapsed: Float[Array, "steps nodes"]
    """v = log((1 + w_0) / (1 + w)), the rate-1 time since the step's start."""
    left: Float[Array, "steps nodes"]
    """q, the rate-1 time to its end."""
    above_end: Float[Array, "steps nodes"]
    """w - w_1, without cancellation."""
    rate: Float[Array, "steps nodes"]
    """dw of the whole step in units of the nodes' interval [0, 1]."""


class Steps(NamedTuple):
    """The steps of a schedule, and what is known of the data."""

    known: Assumptions
    start: Float[Array, " steps"]
    """sigma^2."""
    end: Float[Array, " steps"]
    signal: Float[Array, " steps"]
    next_signal: Float[Array, " steps"]
    time: Float[Array, " steps"]
    """Of the process."""
    next_time: Float[Array, " steps"]
    stochasticity_squared: Float[Array, " steps"]
    errors: StepErrors
    rounding: Float[AnyArray, ""] | None = None
    """Within this share of their scale, kinks are replaced by smooth bounds from above."""

    def size(self, x: Array, scale: Array | float) -> Array:
        """At least |x|, smooth within the rounding."""
        if self.rounding is None:
            return jnp.abs(x)
        return rounded_size(x, self.rounding * jnp.broadcast_to(scale, x.shape))

    def larger(self, x: Array, y: Array) -> Array:
        """At least the larger of two numbers, whose sum is >= 0; beyond the rounding it."""
        if self.rounding is None:
            return larger(x, y)
        return 0.5 * (x + y + self.size(x - y, x + y))

    def largest(self, x: Array) -> Array:
        """At least the largest of numbers >= 0 along the last axis, by rounds of `larger`."""
        if self.rounding is None:
            return largest(x)
        while x.shape[-1] > 1:
            half = x.shape[-1] // 2
            odd = x[..., 2 * half :]
            x = jnp.concatenate([self.larger(x[..., :half], x[..., half : 2 * half]), odd], -1)
        return x[..., 0]

    @property
    def length(self) -> Float[Array, " steps"]:
        """h, in the rate-1 time."""
        return jnp.log1p((self.start - self.end) / (1.0 + self.end))

    def levels(self, *, ratios: bool = False) -> Levels:
        """The noise levels of every step, in the scale of the data.

        Functions of w_1 / w, if `ratios`, change as log w does, but where w_1 = 0 and they are
        constant.
        """
        scale = level_scale(self.known, self.start)
        if ratios:
            scale = jnp.where(self.end > 0, _LOGARITHMIC * self.end, scale)
        return Levels.between(self.start, self.end, scale)

    def nodes(self, *, ratios: bool = False) -> Nodes:
        """Where integrals over each step are evaluated: of functions of w_1 / w if `ratios`."""
        # a step may be of many factors of sigma, of which the data have few
        x, share, _ = gauss_legendre(2 * _NODES if ratios else _NODES, self.start.dtype)
        if self.known.smoothness is None:
            levels = self.levels(ratios=ratios)
            w, above, below = levels.at(x)
            rate = levels.rate(w)
        else:
            w, above, below, rate = self._above_least(x, ratios)
        elapsed = jnp.log1p(below / (1.0 + w))
        left = jnp.log1p(above / (1.0 + self.end[:, None]))
        return Nodes(w, rate * share, elapsed, left, above, rate)

    def _above_least(self, x: Array, ratios: bool) -> tuple[Array, Array, Array, Array]:
        """w, w - w_1, w_0 - w and |dw / dx|, equidistant in log(w + least)."""
        least = variance_scale(self.known)
        if ratios:
            least = jnp.where(self.end > 0, 0.0, least)
        low = (self.end + least)[:, None]
        # the variances may all be 0, and the end of a last step
        low = jnp.where(low > 0, low, self.start[:, None])
        gap = (self.start - self.end)[:, None]
        span = jnp.log1p(gap / low)
        above = low * jnp.expm1((1.0 - x) * span)
        below = -(low + gap) * jnp.expm1(-x * span)
        return self.end[:, None] + above, above, below, (low + above) * span

    def curvature(self) -> tuple[Array, Array]:
        """m and L of p_t at the start of every step, for variance-preserving processes."""
        return curvature_interval(self.known, self.start, self.start, 1.0)

    def rms(self, w: Array) -> Array:
        """(E|X|^2)^(1/2) at noise level w, for variance-preserving processes."""
        return jnp.sqrt((self.known.second_moment + self.known.dim * w) / (1.0 + w))

    def root_fisher(self, w: Array) -> Array:
        """J^(1/2) at noise level w, for variance-preserving processes."""
        return root_or_inf((1.0 + w) * fisher(self.known, w))

    def hessian_rms(self, w: Array) -> Array:
        """(E|H|_F^2)^(1/2) at noise levels w, for variance-preserving processes."""
        return root_or_inf(mean_square(self.known, _slope, w, w, 1.0))


def euler_maruyama(steps: Steps) -> StepFactors:
    """x' = (1 + h/2) x + h s + noise(h)."""
    h = steps.length
    m, top = steps.curvature()
    nodes = steps.nodes()
    contraction = steps.larger(1.0 + h / 2.0 - h * m, h * top - 1.0 - h / 2.0)
    excess, (second,) = _growths(h)
    mean = (h / 2.0) ** 2 * second * steps.rms(steps.start)
    mean += excess * steps.root_fisher(steps.start)
    frozen = jnp.expm1(nodes.left / 2.0) * jnp.sqrt(steps.known.dim)
    noise = frozen + 2.0 * jnp.sinh(nodes.left / 2.0) * steps.hessian_rms(nodes.w)
    errors = steps.errors
    return StepFactors.without_gain(
        contraction + h * errors.lipschitz, mean, _in_time(nodes, noise), h * errors.size
    )


def exponential_integrator(steps: Steps) -> StepFactors:
    """x' = e^(h/2) x + 2 (e^(h/2) - 1) s + noise(e^h - 1)."""
    h = steps.length
    m, top = steps.curvature()
    factor = 2.0 * jnp.expm1(h / 2.0)
    keep = jnp.exp(h / 2.0)
    contraction = steps.larger(keep - factor * m, factor * top - keep)
    mean = 4.0 * jnp.sinh(h / 4.0) ** 2 * steps.root_fisher(steps.start)
    errors = steps.errors
    return StepFactors.without_gain(
        contraction + factor * errors.lipschitz,
        mean,
        _frozen_score_noise(steps),
        factor * errors.size,
    )


def exact_mean(steps: Steps) -> StepFactors:
    """x' = e^(h/2) x + 2 sinh(h/2) s + noise(e^h - 1): the mean is that of the exact step."""
    contraction, factor = _mean_factors(steps)
    errors = steps.errors
    return StepFactors.without_gain(
        contraction + factor * errors.lipschitz,
        jnp.zeros_like(contraction),
        _frozen_score_noise(steps),
        factor * errors.size,
    )


def tweedie(steps: Steps) -> StepFactors:
    """The exact mean, and the exact covariance (e^h - 1)(I + (1 - e^-h) H) of a step from x."""
    contraction, factor = _mean_factors(steps)
    nodes = steps.nodes()
    drift, slope = _hessian_change(steps, nodes)
    size = 2.0 * jnp.sinh(nodes.left / 2.0)
    noise = _in_time(nodes, size * drift)
    return StepFactors(
        contraction + factor * steps.errors.lipschitz,
        _in_time(nodes, size * slope),
        jnp.zeros_like(contraction),
        noise,
        factor * steps.errors.size,
        jnp.zeros_like(noise),
    )


def second_order(steps: Steps) -> StepFactors:
    """x' = x + h gamma + (h^2/4) f2(h L) x + int e^(L (h - v)) dW, with L = I/2 + H at x."""
    h = steps.length
    m, top = steps.curvature()
    nodes = steps.nodes()
    contraction, _ = _mean_factors(steps)
    excess, (offset, *ends) = _growths(h, h * (0.5 - m), h * (0.5 - top))
    drift = h**2 / 4.0 * steps.larger(*(jnp.abs(end - offset) for end in ends))
    steepest = larger(jnp.abs(m), top)
    contraction += drift + excess * steepest + h * steps.errors.lipschitz
    mean = drift * steps.rms(steps.start) + excess * steps.root_fisher(steps.start)
    change, slope = _hessian_change(steps, nodes)
    size = 2.0 * jnp.sinh(nodes.left / 2.0)
    linear = jnp.sqrt(steps.known.dim) * _exponential_excess(steps, nodes, m[:, None], top[:, None])
    noise = _in_time(nodes, linear + size * change)
    return StepFactors(
        contraction,
        _in_time(nodes, size * slope),
        mean,
        noise,
        h * steps.errors.size,
        jnp.zeros_like(noise),
    )


class _Midpoint(NamedTuple):
    """What bounds a randomised midpoint step; every number is a supremum over the step."""

    lipschitz: Array
    """Of the frozen drift at the midpoint."""
    growth: Array
    """A midpoint's distance e contributes growth e to the next one's drift."""
    predictor: Array
    """p(h), the error of the predictor at the end of the step."""
    mean_predictor: Array
    """The same averaged over the midpoint."""
    fluctuation: Array
    """Of the drift at a random midpoint about its average over the step."""
    weight: Array
    """Of a score at the midpoint, averaged over it; and its maximum."""
    largest_weight: Array
    predictor_weight: Array
    """Of the score at the start in the predictor."""
    averaged_predictor_weight: Array


def randomised_euler(steps: Steps) -> StepFactors:
    """The midpoint at a uniform time of the step, predicted and completed by Euler's method."""
    h = steps.length
    known = steps.known
    m, top = curvature_interval(known, steps.end, steps.start, 1.0)
    m0, top0 = steps.curvature()
    steepest = larger(jnp.abs(0.5 - m), jnp.abs(0.5 - top))
    at_start = larger(jnp.abs(0.5 - m0), jnp.abs(0.5 - top0))
    size = larger(steps.rms(steps.start), steps.rms(steps.end))
    rough = root_or_inf(mean_square(known, _drift_slope, steps.end, steps.start, 1.0))
    root = root_or_inf(h)
    variance = size**2 * h**4 / 96.0 + size * rough * h**3 * root / 8.75 + rough**2 * h**3 / 3.0
    one = larger(jnp.abs(1.0 + h * (0.5 - m)), jnp.abs(1.0 + h * (0.5 - top)))
    midpoint = _Midpoint(
        lipschitz=h * steepest,
        growth=1.0 + h * at_start,
        predictor=h**2 * size / 8.0 + 2.0 / 3.0 * h * root * rough,
        mean_predictor=h**2 * size / 24.0 + 4.0 / 15.0 * h * root * rough,
        fluctuation=root_or_inf(0.5 * variance),
        weight=h,
        largest_weight=h,
        predictor_weight=h,
        averaged_predictor_weight=h / 2.0,
    )
    return _randomised(one + h**2 * steepest * at_start / 2.0, midpoint, steps.errors)


def randomised_exponential(steps: Steps) -> StepFactors:
    """The same, predicted and completed by the exponential integrator."""
    h = steps.length
    known = steps.known
    m, top = curvature_interval(known, steps.end, steps.start, 1.0)
    m0, top0 = steps.curvature()
    keep = jnp.exp(h / 2.0)
    factor = 2.0 * jnp.expm1(h / 2.0)
    steepest = larger(jnp.abs(m), top)
    at_start = larger(jnp.abs(m0), top0)
    root_fisher = larger(steps.root_fisher(steps.start), steps.root_fisher(steps.end))
    rough = root_or_inf(mean_square(known, _slope, steps.end, steps.start, 1.0))
    root = root_or_inf(h)
    variance = root_fisher**2 * h**4 / 6.0 + rough**2 * h**3 / 3.0
    variance += root_fisher * rough * h**3 * root * 4.0 / 8.75
    contraction = keep * larger(jnp.abs(1.0 - h * m), jnp.abs(1.0 - h * top))
    # h e^(h/2) less the average weight 2 (e^(h/2) - 1)
    contraction += 2.0 * (h * keep - factor) * steepest * at_start
    midpoint = _Midpoint(
        lipschitz=h * keep * steepest,
        growth=keep + factor * at_start,
        predictor=keep * (h**2 * root_fisher / 4.0 + 2.0 / 3.0 * h * root * rough),
        mean_predictor=keep * (h**2 * root_fisher / 12.0 + 4.0 / 15.0 * h * root * rough),
        fluctuation=keep * root_or_inf(0.5 * variance),
        weight=factor,
        largest_weight=h * keep,
        predictor_weight=factor,
        averaged_predictor_weight=factor,
    )
    return _randomised(contraction, midpoint, steps.errors)


class DenoisedSteps(NamedTuple):
    """Steps of `ddim` but for their stochasticity, of which their factors are cheap functions."""

    start: Float[Array, " steps"]
    """sigma^2."""
    end: Float[Array, " steps"]
    signal: Float[Array, " steps"]
    next_signal: Float[Array, " steps"]
    slope: Float[Array, " steps"]
    """1 - w_0 m, at least the slope of the denoised point."""
    ratios: Float[Array, "steps nodes"]
    """log(w / w_1) at nodes."""
    speed: Float[Array, "steps nodes"]
    """|(I + w H) g + w Lap g|, times the weights of an integral over w."""
    noise: Float[Array, "steps nodes"]
    """The root of E|I + w H|_F^2, with the weights; of a known curve its values."""
    curve_at_start: Float[Array, " steps"] | None
    errors: StepErrors

    def factors(
        self, alpha2: Float[Array, " steps"], rounding: Float[AnyArray, ""] | None
    ) -> StepFactors:
        """The factors of the steps at squared stochasticities."""
        half = 0.5 * (1.0 + alpha2)
        present = self.end > 0
        end = jnp.where(present, self.end, 1.0)
        moved = -jnp.expm1(-half * jnp.log((end + self.start - self.end) / end))
        moved = jnp.where(present, moved, jnp.where(self.start > self.end, 1.0, 0.0))
        kappa = -jnp.expm1(-half[:, None] * self.ratios)
        kappa = jnp.where(present[:, None], kappa, 1.0)
        # a step moves by (1 - k) times the denoised point
        reach = self.next_signal * moved * self.signal * self.start
        one = (1.0 - moved) + moved * self.slope
        contraction = self.next_signal / self.signal * one + reach * self.errors.lipschitz
        known = jnp.all(jnp.isfinite(self.speed), -1)
        drift = jnp.sum(kappa * jnp.where(known[:, None], self.speed, 0.0), -1)
        off = jnp.abs(alpha2 - 1.0) / 2.0
        # where nothing is known of the drift, the bound is finite at alpha = 1 only
        rounded = off
        if rounding is not None:
            rounded = rounded_size(alpha2 - 1.0, rounding * jnp.ones_like(alpha2)) / 2.0
        drift = jnp.where(known, rounded * drift, jnp.where(off > 0, jnp.inf, 0.0))
        drift = self.next_signal * drift
        if self.curve_at_start is None:
            noise = kappa * self.noise
        else:
            square = _against_curve(self.noise, self.curve_at_start, self.start, self.end, half)
            noise = root_or_inf(square)[:, None]
        noise = self.next_signal[:, None] * noise
        exact = StepFactors.without_gain(
            contraction, jnp.zeros_like(reach), noise, reach * self.errors.size
        )
        return exact._replace(drift=drift, noise_scale=alpha2)


def denoised_steps(steps: Steps) -> DenoisedSteps:
    """What the factors of `ddim` need of steps besides their stochasticity."""
    known = steps.known
    nodes = steps.nodes(ratios=True)
    end = jnp.where(steps.end > 0, steps.end, 1.0)
    m, _ = curvature_interval(known, steps.start, steps.start, 0.0)
    curve = known.denoising_error
    if curve is None:
        noise = root_or_inf(denoised_rate(steps, nodes) * nodes.weight)
    else:
        span = jnp.log1p((steps.start - steps.end) / end)
        x, _, _ = gauss_legendre(_NODES, span.dtype)
        noise = curve(end[:, None] * jnp.exp(span[:, None] * x))
    return DenoisedSteps(
        steps.start,
        steps.end,
        steps.signal,
        steps.next_signal,
        1.0 - steps.start * m,
        jnp.log1p(nodes.above_end / end[:, None]),
        _weighted(_flow_speed(known, nodes.w), nodes.weight),
        noise,
        None if curve is None else curve(steps.start),
        steps.errors,
    )


def ddim(steps: Steps) -> StepFactors:
    """The denoised point frozen, for every process and stochasticity alpha.

    In units of the signal, with kappa(w) = 1 - (w_1 / w)^((1 + alpha^2) / 2),

        known = (k + (1 - k)(1 - w_0 m)) E + (1 - k) delta
        noise^2 = alpha^2 int kappa^2 E|I + w H|_F^2 dw
        drift = |alpha^2 - 1| / 2 int kappa |(I + w H) g + w Lap g| dw,    k = 1 - kappa(w_0)

    because along the exact reverse process the denoised point D moves by

        dD = (alpha^2 - 1)/2 ((I + w H) g + w Lap g) ds + alpha (I + w H) dW,    ds = -dw
    """
    return denoised_steps(steps).factors(steps.stochasticity_squared, steps.rounding)


SDE_SCHEMES: dict[str, Callable[[Steps], StepFactors]] = {
    "euler_maruyama": euler_maruyama,
    "exponential_integrator": exponential_integrator,
    "exact_mean": exact_mean,
    "tweedie": tweedie,
    "second_order": second_order,
    "rem": randomised_euler,
    "rei": randomised_exponential,
    "ddim": ddim,
}
"""Those of the reverse SDE or family, by name."""


def rounded_size(x: Array, width: Array) -> Array:
    """At least |x|: beyond the width that, within it a quartic that continues it smoothly.

    With v = |x| / width it exceeds |x| by width (1 - v)^3 (3 + v) / 8.
    """
    inside = jnp.abs(x) < width
    v = jnp.where(inside, x, 0.0) / jnp.where(inside, width, 1.0)
    return jnp.where(inside, width * (3.0 + 6.0 * v**2 - v**4) / 8.0, jnp.abs(x))


def root_or_inf(x: Array) -> Array:
    """The root, with derivative 0 at 0; infinite where x is not a number, as nothing is known."""
    return jnp.where(jnp.isnan(x), jnp.inf, safe_sqrt(x))


def level_scale(known: Assumptions, start: Array) -> Array:
    """The noise level at which the score of the data begins to change, of steps from `start`.

    The smallest variance > 0, else the largest one that the convexity or the radius allows.
    """
    found = [variance_scale(known)]
    if known.convexity is not None:
        m = jnp.abs(jnp.asarray(known.convexity))
        found.append(safe_divide(jnp.ones_like(m), m))
    if known.radius is not None:
        found.append(jnp.asarray(known.radius) ** 2)
    scale = start
    for one in reversed(found):
        scale = jnp.where(one > 0, one, scale)
    return scale


def _slope(x: Array, w: Array) -> Array:
    """H itself, up to its sign."""
    del w
    return x


def _drift_slope(x: Array, w: Array) -> Array:
    """Of the drift x/2 + s."""
    del w
    return 0.5 - x


def _denoiser_slope(x: Array, w: Array) -> Array:
    """I + w H, the slope of the denoised point."""
    return 1.0 - w * x


def _growths(h: Array, *others: Array) -> tuple[Array, Array]:
    """2 sinh(h / 2) - h, and phi_2 = (e^z - 1 - z) / z^2 at h / 2 and at others.

    phi is a long series, whose derivatives are compiled: it is called once.
    """
    z = jnp.stack([h / 2.0, *others, -h / 2.0])
    third = phi(3, z)
    excess = (h / 2.0) ** 3 * (third[0] + third[-1])
    return excess, 0.5 + (z * third)[:-1]


def _in_time(nodes: Nodes, values: Array) -> Array:
    """Values whose squares add up to the integral of their squares over the rate-1 time."""
    return values * root_or_inf(nodes.weight / (1.0 + nodes.w))


def _mean_factors(steps: Steps) -> tuple[Array, Array]:
    """How e^(h/2) x + 2 sinh(h/2) s contracts, and its factor on the score."""
    h = steps.length
    m, _ = steps.curvature()
    factor = 2.0 * jnp.sinh(h / 2.0)
    return jnp.exp(h / 2.0) - factor * m, factor


def _frozen_score_noise(steps: Steps) -> Array:
    """What a score frozen at the start of the step lacks of the martingale part."""
    nodes = steps.nodes()
    return _in_time(nodes, 2.0 * jnp.sinh(nodes.left / 2.0) * steps.hessian_rms(nodes.w))


def _hessian_change(steps: Steps, nodes: Nodes) -> tuple[Array, Array]:
    """z_v and ell_v L_F: how far H moves from its course at constant x, and how x shifts that.

        z_v^2 = int_0^v e^(2 (v - w)) (S_w / S_v)^4 d L_F(w)^2 dw,     ell_v = e^v (S_0 / S_v)^2

    with 1 / S the upper end of the curvature.
    """
    known = steps.known
    if known.exact:
        return jnp.zeros_like(nodes.w), jnp.zeros_like(nodes.w)
    third = third_derivative(known, nodes.w)
    at_start = third_derivative(known, steps.start)
    if third is None or at_start is None:
        unknown = jnp.full_like(nodes.w, jnp.inf)
        return unknown, unknown
    least = smallest_variance(known)
    variance = (least + nodes.w) / (1.0 + nodes.w)
    first = ((least + steps.start) / (1.0 + steps.start))[:, None]
    third_size = third * (1.0 + nodes.w) ** 1.5
    _, _, cumulative = gauss_legendre(_NODES, nodes.w.dtype)
    scaled = jnp.exp(-nodes.elapsed) * (variance / first) ** 2 * third_size
    integrand = known.dim * scaled**2 * nodes.rate / (1.0 + nodes.w)
    moved = integrand @ cumulative.T
    growth = jnp.exp(nodes.elapsed) * (first / variance) ** 2
    # the interpolated integral of a function that is almost 0 may be below 0 by rounding
    change = growth * root_or_inf(larger(moved, 0.0))
    start_size = at_start * (1.0 + steps.start) ** 1.5
    return change, growth * start_size[:, None]


def _exponential_excess(steps: Steps, nodes: Nodes, m: Array, top: Array) -> Array:
    """The largest |e^(q/2)(e^(H q) - 1) - 2 sinh(q/2) Hhat_v| for m <= -H <= L.

    Hhat_v = H e^-v / (1 + H (1 - e^-v)). The function is convex in H, so that its largest value is
    at an end, and its smallest where the derivative changes sign.
    """
    q = nodes.left
    reach = -jnp.expm1(-nodes.elapsed)
    size = 2.0 * jnp.sinh(q / 2.0) * jnp.exp(-nodes.elapsed)
    ends = (jnp.broadcast_to(-top, q.shape), jnp.broadcast_to(-m, q.shape))
    fixed = jax.lax.stop_gradient((q, reach, size))

    def value(hessian: Array) -> Array:
        moved = hessian / (1.0 + hessian * reach)
        return jnp.exp(q / 2.0) * jnp.expm1(hessian * q) - size * moved

    def slope(hessian: Array, q: Array, reach: Array, size: Array) -> Array:
        return q * jnp.exp(q / 2.0 + hessian * q) - size / (1.0 + hessian * reach) ** 2

    def bend(hessian: Array, q: Array, reach: Array, size: Array) -> Array:
        curved = 2.0 * size * reach / (1.0 + hessian * reach) ** 3
        return q**2 * jnp.exp(q / 2.0 + hessian * q) + curved

    def halve(_: object, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        rising = slope(middle, *fixed) > 0
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    near, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, jax.lax.stop_gradient(ends))
    # a step of Newton's method moves as the minimum does, which the bisection does not; how its
    # length changes has no effect on two derivatives, as the slope is 0 there
    moved = safe_divide(slope(near, q, reach, size), bend(near, *fixed))
    lowest = clipped(near - moved, *ends)
    return steps.largest(jnp.moveaxis(jnp.abs(value(jnp.stack([*ends, lowest]))), 0, -1))


def _randomised(contraction: Array, midpoint: _Midpoint, errors: StepErrors) -> StepFactors:
    """The factors of a randomised midpoint step.

    The score at the midpoint has the error `second` + k e, that at the start `size` + lipschitz e.
    """
    lipschitz = errors.lipschitz
    shifted = midpoint.predictor + midpoint.predictor_weight * errors.size
    second = errors.largest + lipschitz * shifted
    per_distance = lipschitz * (midpoint.growth + midpoint.predictor_weight * lipschitz)
    through = midpoint.lipschitz * midpoint.averaged_predictor_weight
    contraction += midpoint.weight * per_distance + through * lipschitz
    first = midpoint.lipschitz * midpoint.predictor_weight
    gain = midpoint.lipschitz * midpoint.growth + first * lipschitz
    gain += midpoint.largest_weight * per_distance
    noise = midpoint.fluctuation + midpoint.lipschitz * midpoint.predictor
    return StepFactors(
        contraction,
        gain[:, None],
        midpoint.lipschitz * midpoint.mean_predictor,
        noise[:, None],
        midpoint.weight * second + through * errors.size,
        (first * errors.size + midpoint.largest_weight * second)[:, None],
    )


def _flow_speed(known: Assumptions, w: Array) -> Array:
    """At least (E|(I + w H) g + w Lap g|^2)^(1/2)."""
    third = third_derivative(known, w)
    if third is None:
        return jnp.full_like(w, jnp.inf)
    m, top = curvature_interval(known, w, w, 0.0)
    steepest = larger(jnp.abs(1.0 - w * m), jnp.abs(1.0 - w * top))
    return steepest * root_or_inf(fisher(known, w)) + w * jnp.sqrt(known.dim) * third


def _weighted(values: Array, weight: Array) -> Array:
    """The product; infinite values are constants, of which no derivative is taken."""
    finite = jnp.isfinite(values)
    return jnp.where(finite, jnp.where(finite, values, 0.0) * weight, jnp.inf)


def denoised_rate(steps: Steps, nodes: Nodes) -> Array:
    """At least E|I + w H|_F^2, the derivative of the denoising error in w."""
    return mean_square(steps.known, _denoiser_slope, nodes.w, nodes.w, 0.0)


def _against_curve(values: Array, whole: Array, start: Array, last: Array, half: Array) -> Array:
    """int (1 - (w_1 / w)^half)^2 d(curve) of every step, integrated by parts.

    From the curve at nodes that are equidistant in log w, and at the start.
    """
    present = last > 0
    end = jnp.where(present, last, 1.0)
    span = jnp.log1p((start - last) / end)
    x, share, _ = gauss_legendre(_NODES, span.dtype)
    kept = jnp.exp(-half[:, None] * span[:, None] * x)
    lost = half * span * (2.0 * (1.0 - kept) * kept * values @ share)
    total = jnp.expm1(-half * span) ** 2 * whole - lost
    # at the end w_1 = 0 nothing is kept; rounding may leave less than 0 of an empty step
    return jnp.where(present, larger(total, 0.0), whole)
