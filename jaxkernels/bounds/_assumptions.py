"""What certified bounds need to know of the data, each constant with its status.

At noise level w = sigma^2 the noised data X_0 + sqrt(w) Z have a density q_w; its score is g, the
Hessian of its logarithm H. Everything else follows by scaling: p_t is the density of a(X_0 + sigma
Z), so that its score is g / a and its Hessian H / a^2.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .. import _checks
from .._derivatives import once_per_point
from .._numerics import larger, largest, safe_divide, safe_sqrt, smaller, smallest
from .._precision import in_float64, is_traced
from .._tables import Table, number
from .._types import AnyArray, Numbers
from ..distributions import AbstractDistribution, Gaussian, GaussianMixture
from ..processes import AbstractProcess, check_process
from ._bound import as_leafless
from ._curvature_interval import first_component
from ._denoising_curve import DenoisingCurve, Measured

Curve: TypeAlias = Callable[[Array], Array]
"""A jittable function of w = sigma^2, of any shape."""

_EXACT = "exact"
_BOUNDED = "bounded"
_UNAVAILABLE = "unavailable"
_NOT_GIVEN = "not given"
_UNEQUAL = "the components have different covariances, so that their score is not Lipschitz"
_MEASURED = "measured values bound no derivative between the points where they were measured"
_SHOWN_SIGMAS = (0.0, 0.1, 1.0, 10.0)


class Assumptions(eqx.Module):
    """The constants of a data distribution that certified bounds use, and their status.

    What is not known is None; bounds that need it are infinite and say so. For known distributions
    `jk.bounds.assumptions` finds them.

    **Arguments:**

    - `process`: the forward process.
    - `dim`: number d >= 1 of dimensions.
    - `second_moment`: E|X_0|^2 >= 0; by default `radius`^2.
    - `convexity`, `smoothness`: m and L > 0 with m I <= -Hess log p_0 <= L I, in 1 / variance. m
      may be negative.
    - `third_derivative`: L_F >= 0, at least the Frobenius norm of the derivative of Hess log p_0
      in any direction, in 1 / data^3.
    - `radius`: R > 0 with |X_0| <= R.
    - `denoising_error`: the function w -> E|X_0 - E[X_0 | X_0 + sqrt(w) Z]|^2 of w = sigma^2, such
      as a `DenoisingCurve`. It replaces what would follow from the other constants.
    - `denoiser_slope`: the function w -> largest eigenvalue of a dx0/dx, the slope of the denoiser,
      with (1 - slope) / w monotone. It is what the contraction of a step needs where m is not
      known.
    - `spectrum`, `multiplicities`, `separations`: of a Gaussian, or a mixture of equal
      covariances; set by `assumptions`.
    - `notes`: why a constant is not available, as pairs of its name and the reason.

    **Raises:** ValueError naming a constant out of range.

    **Example:**

    ```python
    >>> known = jk.bounds.Assumptions(jk.OU(), 2, 3.0, convexity=1.0, smoothness=1.5)
    >>> bool(known.curvature(0.0)[1] == 1.5)
    True
    ```
    """

    process: AbstractProcess
    dim: Float[AnyArray, ""]
    second_moment: Float[AnyArray, ""]
    convexity: Float[AnyArray, ""] | None
    smoothness: Float[AnyArray, ""] | None
    third_derivative: Float[AnyArray, ""] | None
    radius: Float[AnyArray, ""] | None
    denoising_error: Curve | None
    denoiser_slope: Curve | None
    spectrum: Float[AnyArray, " modes"] | None
    multiplicities: Float[AnyArray, " modes"] | None
    separations: Float[AnyArray, "pairs modes"] | None
    notes: tuple[tuple[str, str], ...] = eqx.field(static=True)

    def __init__(
        self,
        process: AbstractProcess,
        dim: Numbers,
        second_moment: Numbers | None = None,
        *,
        convexity: Numbers | None = None,
        smoothness: Numbers | None = None,
        third_derivative: Numbers | None = None,
        radius: Numbers | None = None,
        denoising_error: Curve | None = None,
        denoiser_slope: Curve | None = None,
        notes: tuple[tuple[str, str], ...] = (),
    ):
        self.process = check_process(process)
        self.dim = _checks.parameter("dim", dim, at_least=1.0)
        self.radius = _optional("radius", radius, above=0.0)
        if second_moment is None:
            if self.radius is None:
                raise ValueError("second_moment = None: pass E|X_0|^2, or a radius.")
            second_moment = self.radius**2
        self.second_moment = _checks.parameter("second_moment", second_moment, at_least=0.0)
        self.smoothness = _optional("smoothness", smoothness, above=0.0)
        most = np.inf
        if self.smoothness is not None and not is_traced(self.smoothness):
            most = float(self.smoothness)
        self.convexity = _optional("convexity", convexity, at_most=most)
        self.third_derivative = _optional("third_derivative", third_derivative, at_least=0.0)
        self.denoising_error = _check_curve("denoising_error", denoising_error)
        self.denoiser_slope = _check_curve("denoiser_slope", denoiser_slope)
        self.spectrum = None
        self.multiplicities = None
        self.separations = None
        self.notes = tuple(notes)

    @classmethod
    def of_logistic_regression(
        cls, process: AbstractProcess, features: Numbers, labels: Numbers, penalty: Numbers
    ) -> "Assumptions":
        """State the constants of the posterior of a penalised logistic regression.

            -log p_0(theta) = penalty |theta|^2 / 2 + mean_i log(1 + exp(-y_i x_i . theta)) + const

        with m = penalty, L = m + lambda_max(X'X / n) / 4, L_F = mean_i |x_i|^3 / (6 sqrt 3). The
        mode x* has |x*| <= |gradient at 0| / m, and E|theta - x*|^2 <= d / m.

        **Arguments:**

        - `process`: the forward process.
        - `features`: x_i (n, d).
        - `labels`: y_i (n,), each -1 or 1.
        - `penalty`: > 0. A likelihood that is a sum, not a mean, has penalty and features scaled.

        **Returns:** the constants; the posterior itself has no closed form.

        **Raises:** ValueError for wrong shapes, labels or penalty.

        **Example:**

        ```python
        >>> posterior = ([[1.0, 0.0], [0.0, 2.0]], [1, -1], 1.0)
        >>> known = jk.bounds.Assumptions.of_logistic_regression(jk.OU(), *posterior)
        >>> float(known.smoothness)
        1.5
        ```
        """
        features = np.asarray(_checks.array("features", features))
        labels = np.asarray(_checks.array("labels", labels))
        penalty = float(_checks.scalar("penalty", penalty, above=0.0))
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features has shape {features.shape} and labels {labels.shape}; they must be "
                "(n, d) and (n,)."
            )
        if not np.all(np.abs(labels) == 1):
            raise ValueError("labels must be -1 or 1.")
        count, dim = features.shape
        largest = np.linalg.eigvalsh(features.T @ features / count)[-1]
        sizes = np.linalg.norm(features, axis=1)
        mode = np.linalg.norm(labels @ features) / (2.0 * count * penalty)
        return cls(
            process,
            dim,
            (mode + np.sqrt(dim / penalty)) ** 2,
            convexity=penalty,
            smoothness=penalty + largest / 4.0,
            third_derivative=np.mean(sizes**3) / (6.0 * np.sqrt(3.0)),
        )

    @in_float64
    def curvature(self, t: Real[ArrayLike, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
        """Bound the eigenvalues of -Hess log p_t, everywhere.

        **Arguments:**

        - `t`: times of any shape, with signal a > 0.

        **Returns:** m_t and L_t, in 1 / variance; -inf and inf where nothing is known.

        **Example:**

        ```python
        >>> known = jk.bounds.assumptions(jk.Gaussian(0.0, [2.0]), jk.OU())
        >>> [float(end) for end in known.curvature(0.0)]
        [0.5, 0.5]
        ```

        Source: the bounds of Brascamp and Lieb (1976) and of Cramér and Rao on Cov(X_0 | x), as in
        `hessian_interval`; for bounded data 0 <= Cov(X_0 | x) <= R^2.
        """
        scale = self.process.signal(t) ** 2
        w = self.process.sigma(t) ** 2
        low, high = curvature_interval(self, w, w, 0.0)
        return low / scale, high / scale

    @in_float64
    def fisher_information(self, t: Real[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Bound J(t) = E|grad log p_t|^2; exact for Gaussians.

        **Arguments:**

        - `t`: times of any shape, with signal a > 0.

        **Returns:** J(t), in 1 / variance.

        **Example:**

        ```python
        >>> known = jk.bounds.assumptions(jk.Gaussian(0.0, [2.0]), jk.OU())
        >>> float(known.fisher_information(0.0))
        0.5
        ```
        """
        return fisher(self, self.process.sigma(t) ** 2) / self.process.signal(t) ** 2

    @property
    def exact(self) -> bool:
        """Whether the data are Gaussian, so that every constant is exact."""
        return self.spectrum is not None and self.separations is None

    @property
    def exact_denoising_error(self) -> Curve | None:
        """The denoising error, if it is not a `DenoisingCurve`, which is at least the exact one."""
        curve = self.denoising_error
        return None if isinstance(curve, DenoisingCurve) else curve

    @property
    def time_lipschitz(self) -> tuple[float, float] | None:
        """M_1 and M_2 of the published theorems for OU of rate 1, if the data are Gaussian.

        |s(t, x) - s(u, x)| <= M_1 |t - u| (1 + |x|), and the same for the Hessian with M_2. M_2 is
        exact, M_1 a bound. No certified bound uses them.
        """
        if not self.exact or is_traced(self.spectrum) or np.min(np.asarray(self.spectrum)) == 0:
            return None
        assert self.spectrum is not None
        return _time_lipschitz(np.asarray(self.spectrum), float(np.sqrt(self.second_moment)))

    def __repr__(self) -> str:
        if is_traced(self):
            return f"{type(self).__name__}(process={self.process!r}, traced)"
        return f"{_constants_table(self).to_text()}\n\n{_curvature_table(self).to_text()}"


@in_float64
def assumptions(target: AbstractDistribution | Measured, process: AbstractProcess) -> Assumptions:
    """Find the constants of a distribution, or of a measured network, that certified bounds use.

    Everything is exact for a Gaussian. A mixture of equal covariances C has, with D_t the largest
    a |Sigma_t^-1 (mu_m - mu_n)| of two components,

        -Hess log p_t >= 1 / S_max - D_t^2 / 4,     |third derivative| <= D_t^3 / (6 sqrt 3)

    A mixture of unequal covariances, such as `GaussianMixture.fit` gives, has a score that is not
    Lipschitz: its constants are unavailable, and bounds that need them infinite.

    Of a `Measurement` the denoising error is known, as far as the network's exceeds the exact
    denoiser's and the samples represent the data, and the second moment. No derivative of the score
    is: `girsanov_bound` of "ddim" is finite without, `certified_bound` is not.

    **Arguments:**

    - `target`: a `Gaussian`, a `GaussianMixture`, or a `Measurement` with denoising errors whose
      `distribution` is known.
    - `process`: the forward process.

    **Returns:** the constants, shown as a table with their status.

    **Raises:** ValueError for another target; state its constants with `Assumptions`.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-0.5], [0.5]], [1.0, 1.0])
    >>> float(jk.bounds.assumptions(mixture, jk.OU()).convexity)
    0.75
    ```
    """
    if isinstance(target, Gaussian):
        return _of_gaussian(target, process)
    if isinstance(target, GaussianMixture):
        return _of_mixture(target, process)
    if isinstance(target, Measured):
        return _of_measurement(target, process)
    raise ValueError(
        "target must be a Gaussian, a GaussianMixture or a Measurement; got "
        f"{type(target).__name__}. State the constants of other data with Assumptions(process, "
        "dim, ...)."
    )


def curvature_interval(
    known: Assumptions, low: Array, high: Array, c: float
) -> tuple[Array, Array]:
    """m and L of (1 + c w) (-Hess log q_w) for all w in [low, high]: the best known.

    Every source is monotone in w but for the radius and the separation, whose factors are. With
    c = 1 it is the interval of p_t for variance-preserving processes.
    """

    def ends(variance: Array) -> tuple[Array, Array]:
        """(1 + c w) / (variance + w) at both ends."""
        first = (1.0 + c * low) * _reciprocal(variance + low)
        return first, first if low is high else (1.0 + c * high) * _reciprocal(variance + high)

    def one_of(better: Callable[[Array, Array], Array], first: Array, second: Array) -> Array:
        return first if first is second else better(first, second)

    zero = jnp.zeros_like(low)
    convex = []
    smooth = []
    if known.spectrum is not None:
        # the smoothness is that of the smallest variance, and of a Gaussian the convexity
        variances = jnp.asarray(known.spectrum)
        smooth.append(one_of(larger, *ends(smallest(variances))))
        least = one_of(smaller, *ends(largest(variances)))
        convex.append(least if known.exact else least - _pull(known, low, high, c))
    elif known.smoothness is not None:
        smooth.append(one_of(larger, *ends(1.0 / jnp.asarray(known.smoothness))))
    if known.convexity is not None and not known.exact:
        m = jnp.asarray(known.convexity)
        signed = 1.0 + m * high > 0
        slowest = one_of(smaller, *ends(safe_divide(jnp.ones_like(m), m)))
        # -1 / m beyond `high` keeps the sign of every end
        least = jnp.where(m == 0, 0.0, slowest)
        convex.append(jnp.where(signed, least, -jnp.inf))
    if known.radius is not None:
        pull = ends(zero)[0] * known.radius**2 * _reciprocal(low)
        convex.append(jnp.where(low > 0, ends(zero)[1] - pull, -jnp.inf))
    if known.denoiser_slope is not None:
        slopes = (1.0 - known.denoiser_slope(low), 1.0 - known.denoiser_slope(high))
        least = smaller(*(e * s for e, s in zip(ends(zero), slopes, strict=True)))
        convex.append(jnp.where(low > 0, least, -jnp.inf))
    # what holds for all data
    convex = convex or [jnp.full_like(low, -jnp.inf)]
    smooth = smooth or [ends(zero)[0]]
    return _extreme(larger, convex), _extreme(smaller, smooth)


def _pull(known: Assumptions, low: Array, high: Array, c: float) -> Array:
    """(1 + c w) D^2 / 4, D the largest |Sigma_w^-1 (mu_m - mu_n)| of two components."""
    if known.separations is None:
        return jnp.zeros_like(low)
    variances = jnp.asarray(known.spectrum)
    first = _reciprocal(variances + low[..., None])
    second = _reciprocal(variances + high[..., None])
    scaled = larger((1.0 + c * low[..., None]) * first, (1.0 + c * high[..., None]) * second)
    squares = (first * scaled) @ jnp.asarray(known.separations).T ** 2
    return largest(squares) / 4.0


def mean_square(
    known: Assumptions, fn: Callable[[Array, Array], Array], low: Array, high: Array, c: float
) -> Array:
    """At least E|fn((1 + c w) (-Hess log q_w), w)|_F^2 for w in [low, high]; fn is affine."""
    if not known.exact:
        least, most = curvature_interval(known, low, high, c)
        return known.dim * larger(fn(least, high) ** 2, fn(most, high) ** 2)

    def squares(w: Array, spectrum: Array) -> Array:
        w = w[..., None]
        return fn((1.0 + c * w) * _reciprocal(spectrum + w), w) ** 2

    def total(w: Array, spectrum: Array, multiplicities: Array) -> Array:
        return jnp.sum(multiplicities * squares(w, spectrum), -1)

    spectrum, multiplicities = _modes(known)
    if low is high:
        return once_per_point(total, low, spectrum, multiplicities)
    most = larger(squares(low, spectrum), squares(high, spectrum))
    return jnp.sum(multiplicities * most, -1)


def _modes(known: Assumptions) -> tuple[Array, Array]:
    """The spectrum and its multiplicities, where there is one."""
    assert known.spectrum is not None
    assert known.multiplicities is not None
    return jnp.asarray(known.spectrum), jnp.asarray(known.multiplicities)


def fisher(known: Assumptions, w: Array) -> Array:
    """At least E|grad log q_w|^2."""
    if known.spectrum is not None:
        # exact for one component; the Fisher information is convex
        return once_per_point(_sum_of_precisions, w, *_modes(known))
    curve = known.exact_denoising_error
    if curve is not None:
        return known.dim * _reciprocal(w) - curve(w) * _reciprocal(w) ** 2
    return known.dim * curvature_interval(known, w, w, 0.0)[1]


def _sum_of_precisions(w: Array, spectrum: Array, multiplicities: Array) -> Array:
    """sum_m 1 / (lambda_m + w)."""
    return _reciprocal(spectrum + w[..., None]) @ multiplicities


def third_derivative(known: Assumptions, w: Array) -> Array | None:
    """At least the largest Frobenius norm of a directional derivative of Hess log q_w.

    From -Hess log p_0 >= m it follows that L_F(w) <= L_F(0) / (1 + m w)^3; a mixture has
    D^3 / (6 sqrt 3) in operator norm, and at most min(d, components - 1) directions in it.
    """
    found = []
    if known.exact:
        found.append(jnp.zeros_like(w))
    if known.third_derivative is not None and known.convexity is not None:
        growth = 1.0 + known.convexity * w
        bound = known.third_derivative / jnp.where(growth > 0, growth, 1.0) ** 3
        found.append(jnp.where(growth > 0, bound, jnp.inf))
    if known.separations is not None:
        pairs = known.separations.shape[0]
        # M (M - 1) / 2 pairs
        components = round(0.5 + np.sqrt(0.25 + 2.0 * pairs))
        rank = smaller(jnp.asarray(known.dim), components - 1.0)
        size = 2.0 * safe_sqrt(_pull(known, w, w, 0.0))
        found.append(size**3 * jnp.sqrt(rank) / (6.0 * np.sqrt(3.0)))
    return _extreme(smaller, found) if found else None


def smallest_variance(known: Assumptions) -> Array:
    """1 / L_0, or 0."""
    return jnp.zeros(()) if known.smoothness is None else 1.0 / jnp.asarray(known.smoothness)


def variance_scale(known: Assumptions) -> Array:
    """The smallest variance > 0, below which nothing changes with the noise level; or 0."""
    if known.spectrum is None:
        return smallest_variance(known)
    spectrum = jnp.asarray(known.spectrum)
    scale = smallest(jnp.where(spectrum > 0, spectrum, jnp.inf))
    return jnp.where(jnp.isfinite(scale), scale, 0.0)


def squared_mean(known: Assumptions) -> Array:
    """|E X_0|^2 of a Gaussian."""
    variances = jnp.asarray(known.multiplicities) @ jnp.asarray(known.spectrum)
    return larger(known.second_moment - variances, 0.0)


def why(known: Assumptions, name: str) -> str:
    """Why a constant is not available."""
    return dict(known.notes).get(name, _NOT_GIVEN)


def _of_gaussian(target: Gaussian, process: AbstractProcess) -> Assumptions:
    """The constants of a Gaussian, all exact."""
    target = target.in_eigenbasis()
    if target.compression is not None:
        raise ValueError("target is compressed: bounds need the full spectrum.")
    weights = target.weights
    kept = slice(None) if is_traced(weights) else np.asarray(weights) > 0
    spectrum = target.eigenvalues[kept]
    multiplicities = weights[kept]
    square = (multiplicities * (target.mean[kept] ** 2 + spectrum)).sum()
    known = Assumptions(process, multiplicities.sum(), square)
    return _with_spectrum(known, spectrum, multiplicities, None)


def _of_mixture(target: GaussianMixture, process: AbstractProcess) -> Assumptions:
    """The constants of a mixture."""
    mean_square = np.sum(np.asarray(target.means) ** 2, -1) + _traces(target)
    dim = target.means.shape[1]
    moment = float(np.asarray(target.weights) @ mean_square)
    variances, means, equal = first_component(target)
    if not equal:
        names = ("convexity", "smoothness", "third_derivative")
        return Assumptions(process, dim, moment, notes=tuple((name, _UNEQUAL) for name in names))
    multiplicities = np.ones(len(variances))
    multiplicities[-1] += dim - len(variances)
    first, second = np.triu_indices(len(means), 1)
    gaps = means[first] - means[second]
    known = Assumptions(process, dim, moment)
    return _with_spectrum(known, variances, multiplicities, gaps if len(gaps) else None)


def _of_measurement(target: Measured, process: AbstractProcess) -> Assumptions:
    """What a measured network shows of its data."""
    if target.distribution is None:
        raise ValueError(
            "target.distribution = None: the second moment of the data is not known. Measure "
            "samples with the network, or use Assumptions(process, dim, second_moment, "
            "denoising_error=DenoisingCurve.of(target))."
        )
    data = target.distribution.in_eigenbasis()
    weights = np.asarray(data.weights)
    square = weights @ (np.asarray(data.mean) ** 2 + np.asarray(data.eigenvalues))
    names = ("convexity", "smoothness", "third_derivative")
    return Assumptions(
        process,
        weights.sum(),
        square,
        denoising_error=DenoisingCurve.of(target),
        notes=tuple((name, _MEASURED) for name in names),
    )


def _traces(target: GaussianMixture) -> np.ndarray:
    """The trace of every component's covariance."""
    values = np.asarray(target.eigenvalues)
    missing = target.means.shape[1] - values.shape[1]
    outside = 0.0 if target.outside is None else missing * float(np.asarray(target.outside))
    return values.sum(-1) + outside


def _with_spectrum(
    known: Assumptions,
    spectrum: AnyArray | np.ndarray,
    multiplicities: AnyArray | np.ndarray,
    separations: np.ndarray | None,
) -> Assumptions:
    """The constants that follow from a covariance and the distances of the components."""
    lib = jnp if is_traced(spectrum) else np
    full = eqx.tree_at(
        lambda a: (a.spectrum, a.multiplicities, a.separations),
        known,
        (spectrum, multiplicities, separations),
        is_leaf=lambda leaf: leaf is None,
    )
    with np.errstate(divide="ignore"):
        ordered = lib.sort(lib.asarray(spectrum))
        smoothness = 1.0 / ordered[0]
        convexity = 1.0 / ordered[-1]
    third = lib.zeros(())
    if separations is not None:
        # also within a compiled function these are numbers
        with jax.ensure_compile_time_eval():
            zero = jnp.zeros(())
            convexity = convexity - np.asarray(_pull(full, zero, zero, 0.0))
            third = np.asarray(third_derivative(full, zero))
    return eqx.tree_at(
        lambda a: (a.convexity, a.smoothness, a.third_derivative),
        full,
        tuple(lib.asarray(value) for value in (convexity, smoothness, third)),
        is_leaf=lambda leaf: leaf is None,
    )


def _optional(argument: str, value: Numbers | None, **bounds: float) -> AnyArray | None:
    """A constant in its range, or None."""
    return None if value is None else _checks.parameter(argument, value, **bounds)


def _check_curve(argument: str, value: object) -> Curve | None:
    """A function of sigma^2 that can be an argument of a compiled program, or None."""
    if value is None:
        return None
    if not callable(value):
        raise ValueError(f"{argument} must be a function of sigma^2; got {type(value).__name__}.")
    return as_leafless(cast(Callable[..., Any], value))


def _reciprocal(x: Array) -> Array:
    """1 / x, infinite at x = 0."""
    x = jnp.asarray(x)
    return jnp.where(x == 0, jnp.inf, 1.0 / jnp.where(x == 0, 1.0, x))


def _extreme(better: Callable[[Array, Array], Array], found: list[Array]) -> Array:
    """The best of several bounds."""
    best = found[0]
    for other in found[1:]:
        best = better(best, other)
    return best


def _time_lipschitz(spectrum: np.ndarray, mean_size: float) -> tuple[float, float]:
    """M_1 and M_2 of a Gaussian."""
    # with S = 1 + (lambda - 1) e^-tau, d_tau (1 / S) = (S - 1) / S^2
    peaks = np.where(spectrum >= 2.0, 0.25, np.abs(spectrum - 1.0) / spectrum**2)
    second = float(peaks.max())
    # that of m / S adds |m| |1 / (2 S) - 1 / S^2|, S between lambda and 1
    inverse = np.stack([1.0 / spectrum, np.ones_like(spectrum)])
    ends = np.abs(inverse / 2.0 - inverse**2).max()
    inner = np.any((inverse.min(0) < 0.25) & (inverse.max(0) > 0.25))
    return max(second, mean_size * max(ends, 0.0625 if inner else 0.0)), second


def _constants_table(known: Assumptions) -> Table:
    """Every constant, its value and status."""
    status = _EXACT if known.exact else _BOUNDED
    rows = [
        ("dimensions", number(float(known.dim)), _EXACT, ""),
        (
            "E|X_0|^2",
            number(float(known.second_moment)),
            _EXACT if known.spectrum is not None else _BOUNDED,
            "",
        ),
    ]
    names = {"convexity": "m_0", "smoothness": "L_0", "third_derivative": "L_F", "radius": "radius"}
    for name, symbol in names.items():
        value = getattr(known, name)
        if value is None:
            rows.append((symbol, "", _UNAVAILABLE, why(known, name)))
        elif not np.isfinite(float(value)):
            rows.append((symbol, "", _UNAVAILABLE, "a variance is 0"))
        else:
            rows.append((symbol, number(float(value)), status, ""))
    if known.denoising_error is not None:
        stated = known.exact_denoising_error is not None
        why_bounded = "as it was stated" if stated else "from above, at the levels of the curve"
        rows.append(("denoising error", "a function", _BOUNDED, why_bounded))
    found = known.time_lipschitz
    for i, symbol in enumerate(("M_1", "M_2")):
        if found is None:
            rows.append((symbol, "", _UNAVAILABLE, "known for Gaussian data only"))
        else:
            rows.append((symbol, number(found[i]), (_BOUNDED, _EXACT)[i], ""))
    header = ("constant", "value", "status", "why")
    return Table(header, rows, title=f"data under {known.process!r}")


def _curvature_table(known: Assumptions) -> Table:
    """m_t, L_t and J at some noise levels within the process's range."""
    last = float(np.asarray(known.process.t_max))
    sigmas = [s for s in _SHOWN_SIGMAS if s < float(known.process.sigma(last))]
    rows = []
    for sigma in sigmas:
        t = float(known.process.time_at_sigma(np.asarray(sigma)))
        ends = known.curvature(t)
        cells = [number(float(value)) for value in (t, *ends, known.fisher_information(t))]
        rows.append((number(sigma), *cells))
    return Table(("sigma", "t", "m_t", "L_t", "J"), rows, title="-Hess log p_t between m_t and L_t")
