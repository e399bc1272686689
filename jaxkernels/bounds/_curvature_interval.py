"""Intervals that hold the curvature of the log-density at every time and point.

Bounds for samplers on data that are not Gaussian need nothing else of the data. Where no interval
is known its end is infinite, and so is every bound that meets it: `vacuous` says why.
"""

import abc
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._numerics import clipped, larger, largest, smaller, smallest
from .._precision import is_traced
from .._types import AnyArray, Numbers, constant
from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess
from ._curvature import hessian_interval

# relative difference of covariances that rounding may make
_EQUAL = 1e-9

Interval = tuple[Float[Array, "*s"], Float[Array, "*s"]]


class AbstractCurvature(eqx.Module):
    """What is known of Hess log p_t: an interval of its eigenvalues, at every time.

    To use an interval of another kind, subclass this class and write `interval`.

    **Example:**

    ```python
    >>> curvature = jk.bounds.BoundedSupport(1.0)
    >>> low, high = curvature.interval(jk.VP(), 0.5)
    ```
    """

    vacuous: ClassVar[str]
    """Where the interval is infinite, for messages."""

    @property
    def kinks(self) -> Float[AnyArray, " n"]:
        """Noise levels sigma at which the interval is not smooth; none by default."""
        return constant(np.zeros(0))

    @abc.abstractmethod
    def interval(self, process: AbstractProcess, t: Float[ArrayLike, "*s"]) -> Interval:
        """Bound the eigenvalues of Hess log p_t(x) for all x.

        **Arguments:**

        - `process`: the forward process.
        - `t`: times, any shape.

        **Returns:** the lower and the upper bound at every time, in 1 / variance; infinite where
        nothing is known.
        """


class GaussianCurvature(AbstractCurvature):
    """The curvature of a Gaussian, exactly.

        -1 / (a^2 lambda_min + s^2)  <=  Hess log p_t  <=  -1 / (a^2 lambda_max + s^2)

    **Arguments:**

    - `smallest`, `largest`: the extreme eigenvalues of the covariance, >= 0.

    **Example:**

    ```python
    >>> jk.bounds.GaussianCurvature(0.5, 2.0).interval(jk.VP(), 0.0)[1].item()
    -0.5
    ```
    """

    vacuous: ClassVar[str] = "a variance of the data is 0 and the noise level too"
    smallest: Float[AnyArray, ""]
    largest: Float[AnyArray, ""]

    def __init__(self, smallest: Numbers, largest: Numbers):
        self.smallest = _checks.parameter("smallest", smallest, at_least=0.0)
        self.largest = _checks.parameter("largest", largest, at_least=0.0)

    def interval(self, process: AbstractProcess, t: Float[ArrayLike, "*s"]) -> Interval:
        a2 = process.signal(t) ** 2
        s2 = process.noise(t) ** 2
        return _minus_inverse(a2 * self.smallest + s2), _minus_inverse(a2 * self.largest + s2)


class CurvatureClass(AbstractCurvature):
    """The curvature of data with m I <= -Hess log p_0 <= L I, from `hessian_interval`.

    **Arguments:**

    - `convexity`: m, of either sign, at most `smoothness`, in 1 / variance.
    - `smoothness`: L > 0, in 1 / variance.

    **Raises:** ValueError for constants out of range.

    **Example:**

    ```python
    >>> curvature = jk.bounds.CurvatureClass(0.5, 4.0)
    ```

    Source: as for `hessian_interval`. It replaces Corollary B.1 of "The Accumulation of Score
    Estimation Error in Diffusion Models" (manuscript), which is the case m = -L.
    """

    vacuous: ClassVar[str] = (
        "convexity m < 0 and sigma^2 >= 1 / |m|, where the noise may outweigh what is known"
    )
    convexity: Float[AnyArray, ""]
    smoothness: Float[AnyArray, ""]

    def __init__(self, convexity: Numbers, smoothness: Numbers):
        self.smoothness = _checks.parameter("smoothness", smoothness, above=0.0)
        most = np.inf if is_traced(self.smoothness) else float(self.smoothness)
        self.convexity = _checks.parameter("convexity", convexity, at_most=most)

    def interval(self, process: AbstractProcess, t: Float[ArrayLike, "*s"]) -> Interval:
        return hessian_interval(process, t, convexity=self.convexity, smoothness=self.smoothness)


class BoundedSupport(AbstractCurvature):
    """The curvature of any data within a ball.

        -1 / s^2  <=  Hess log p_t  <=  a^2 R^2 / s^4 - 1 / s^2

    because the covariance of X_0 given x is at most R^2.

    **Arguments:**

    - `radius`: R >= 0, of a ball that holds all data.

    **Raises:** ValueError for a negative radius.

    **Example:**

    ```python
    >>> low, high = jk.bounds.BoundedSupport(1.0).interval(jk.VP(), 0.5)
    >>> assert low < high
    ```

    Source: equation (23) of "The Accumulation of Score Estimation Error in Diffusion Models"
    (manuscript), with the covariance bounded at every point instead of on average.
    """

    vacuous: ClassVar[str] = "the noise level is 0, where bounded data need not have a density"
    radius: Float[AnyArray, ""]

    def __init__(self, radius: Numbers):
        self.radius = _checks.parameter("radius", radius, at_least=0.0)

    def interval(self, process: AbstractProcess, t: Float[ArrayLike, "*s"]) -> Interval:
        s2 = process.noise(t) ** 2
        positive = s2 > 0
        safe = jnp.where(positive, s2, 1.0)
        high = (process.signal(t) * self.radius) ** 2 / safe**2 - 1.0 / safe
        return _minus_inverse(s2), jnp.where(positive, high, jnp.inf)


class MixtureCurvature(AbstractCurvature):
    """The curvature of a Gaussian mixture whose components share one covariance.

        -1 / S_min  <=  Hess log p_t  <=  -1 / S_max + share D^2

        D = max over m, n of a |Sigma_t^-1 (mu_m - mu_n)|,   share = min(1/4, (M - 1) e^-kappa)

    with the extreme eigenvalues S of Sigma_t = a^2 C + s^2 I. It follows from Hess log p_t =
    -Sigma_t^-1 + Cov(v), v_m = Sigma_t^-1 (a mu_m - x), the covariance being over the posterior of
    the components; with two components kappa = 0 is attained where both are as likely.

    With different covariances no such interval exists: the curvature grows without bound far away
    from the means. Its upper end then is infinite.

    **Arguments:**

    - `mixture`: the data distribution.
    - `margin`: kappa >= 0. The interval then holds where the most likely component is e^kappa times
      as likely as every other one, so bounds hold for runs all of whose segments stay there
      (`logit_margin`).

    **Raises:** ValueError for anything else.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    >>> jk.bounds.MixtureCurvature(mixture).interval(jk.VP(), 0.0)[1].item()
    0.0
    ```

    Source: equations (14), (27) and (28) of "The Accumulation of Score Estimation Error in
    Diffusion Models" (manuscript), with explicit constants.
    """

    vacuous: ClassVar[str] = (
        "components with different covariances have a score that is not Lipschitz"
    )
    eigenvalues: Float[AnyArray, " axes"]
    differences: Float[AnyArray, "pairs axes"]
    """Of the means, along the eigenvectors of the covariance."""
    share: Float[AnyArray, ""]
    equal: bool = eqx.field(static=True)

    def __init__(self, mixture: GaussianMixture, margin: float = 0.0):
        mixture = _checks.instance("mixture", mixture, GaussianMixture)
        margin = float(_checks.scalar("margin", margin, at_least=0.0))
        eigenvalues, means, self.equal = first_component(mixture)
        first, second = np.triu_indices(len(means), 1)
        self.eigenvalues = constant(np.maximum(eigenvalues, 0.0))
        self.differences = constant(means[first] - means[second])
        self.share = constant(min(0.25, (len(means) - 1) * np.exp(-margin)))

    def interval(self, process: AbstractProcess, t: Float[ArrayLike, "*s"]) -> Interval:
        a = process.signal(t)
        variance = a[..., None] ** 2 * self.eigenvalues + process.noise(t)[..., None] ** 2
        low = _minus_inverse(smallest(variance))
        if not self.equal:
            return jnp.full_like(low, -jnp.inf), jnp.full_like(low, jnp.inf)
        dense = variance > 0
        pulls = self.differences / jnp.where(dense, variance, 1.0)[..., None, :]
        squares = jnp.sum(pulls**2, -1)
        # one component has no pairs
        apart = largest(squares) if squares.shape[-1] else jnp.zeros_like(a)
        high = self.share * a**2 * apart + _minus_inverse(largest(variance))
        return low, jnp.where(jnp.all(dense, -1), high, jnp.inf)


class TabulatedCurvature(AbstractCurvature):
    """A curvature known at some times, linear in log sigma between them and constant beyond them.

    Bounds from it hold as far as the table does: one that is measured at sampled points need not
    hold elsewhere.

    **Arguments:**

    - `sigma`: (n,) noise levels > 0, strictly decreasing.
    - `low`, `high`: (n,) or a number, the ends of the interval there, low <= high.

    **Raises:** ValueError for other shapes or an empty interval.

    **Example:**

    ```python
    >>> curvature = jk.bounds.TabulatedCurvature([2.0, 0.1], [-0.2, -20.0], [-0.1, -5.0])
    ```
    """

    vacuous: ClassVar[str] = "the table says so"
    sigma: Float[AnyArray, " n"]
    low: Float[AnyArray, " n"]
    high: Float[AnyArray, " n"]

    def __init__(self, sigma: Numbers, low: Numbers, high: Numbers):
        levels = _checks.array("sigma", sigma)
        if (
            levels.ndim != 1
            or not levels.size
            or np.any(levels <= 0)
            or np.any(np.diff(levels) >= 0)
        ):
            raise ValueError(f"sigma must be positive and strictly decreasing; got {levels}.")
        ends = {"low": _checks.array("low", low), "high": _checks.array("high", high)}
        for name, end in ends.items():
            if end.shape not in ((), levels.shape):
                raise ValueError(f"{name} has shape {end.shape}; it must be {levels.shape}.")
        if np.any(ends["low"] > ends["high"]):
            raise ValueError("low must be <= high at every noise level.")
        self.sigma = levels
        self.low = constant(np.broadcast_to(ends["low"], levels.shape))
        self.high = constant(np.broadcast_to(ends["high"], levels.shape))

    @property
    def kinks(self) -> Float[AnyArray, " n"]:
        return self.sigma

    def interval(self, process: AbstractProcess, t: Float[ArrayLike, "*s"]) -> Interval:
        levels = jnp.asarray(self.sigma)[::-1]
        # flat beyond the table, so that the logarithm needs no value at 0 or infinity
        sigma = clipped(process.sigma(t), levels[0], levels[-1])
        ends = (
            jnp.interp(jnp.log(sigma), jnp.log(levels), jnp.asarray(end)[::-1])
            for end in (self.low, self.high)
        )
        return next(ends), next(ends)


class TightestCurvature(AbstractCurvature):
    """The intersection of several intervals that all hold.

    **Arguments:**

    - `parts`: the curvatures, at least one.

    **Raises:** ValueError for anything else.

    **Example:**

    ```python
    >>> parts = [jk.bounds.BoundedSupport(1.0), jk.bounds.CurvatureClass(-1.0, 2.0)]
    >>> low, high = jk.bounds.TightestCurvature(parts).interval(jk.VP(), 0.5)
    ```
    """

    vacuous: ClassVar[str] = "no part of it is finite there"
    parts: tuple[AbstractCurvature, ...]

    def __init__(self, parts: Sequence[AbstractCurvature]):
        self.parts = tuple(parts)
        if not self.parts or not all(isinstance(p, AbstractCurvature) for p in self.parts):
            raise ValueError(
                f"parts must be curvatures such as BoundedSupport(1.0); got {parts!r}."
            )

    @property
    def kinks(self) -> Float[AnyArray, " n"]:
        return jnp.concatenate([jnp.asarray(part.kinks) for part in self.parts])

    def interval(self, process: AbstractProcess, t: Float[ArrayLike, "*s"]) -> Interval:
        low, high = self.parts[0].interval(process, t)
        for part in self.parts[1:]:
            other = part.interval(process, t)
            low = larger(low, other[0])
            high = smaller(high, other[1])
        return low, high


def component_covariances(mixture: GaussianMixture) -> Float[np.ndarray, "components d d"]:
    """The covariance matrices of a mixture."""
    values = np.asarray(mixture.eigenvalues)
    means = np.asarray(mixture.means)
    bases = np.eye(means.shape[1]) if mixture.bases is None else np.asarray(mixture.bases)
    bases = np.broadcast_to(bases, (len(means), *bases.shape[-2:]))
    inside = np.einsum("mde,me,mfe->mdf", bases, values, bases)
    if mixture.outside is None:
        return inside
    projection = np.einsum("mde,mfe->mdf", bases, bases)
    return inside + float(np.asarray(mixture.outside)) * (np.eye(means.shape[1]) - projection)


def first_component(mixture: GaussianMixture) -> tuple[np.ndarray, np.ndarray, bool]:
    """Variances of a component, all means along its axes; whether all covariances are equal.

    The last variance is that of all directions outside an incomplete basis, where the means agree.
    """
    if mixture.bases is None or mixture.bases.ndim == 2:
        values = np.asarray(mixture.eigenvalues)
        means = np.asarray(mixture.means)
        equal = bool(np.all(np.abs(values - values[0]) <= _EQUAL * values[0]))
        if mixture.bases is None:
            return values[0], means, equal
        outside = () if mixture.outside is None else np.asarray(mixture.outside)
        along = means @ np.asarray(mixture.bases)
        along = np.pad(along, ((0, 0), (0, np.size(outside))))
        return np.append(values[0], outside), along, equal
    covariances = component_covariances(mixture)
    values, basis = np.linalg.eigh(covariances[0])
    # in units of every axis, as a small variance may differ by a factor
    scales = np.sqrt(np.maximum(values, 0.0))
    differences = np.abs(basis.T @ (covariances - covariances[0]) @ basis)
    equal = bool(np.all(differences <= _EQUAL * np.outer(scales, scales)))
    return values, np.asarray(mixture.means) @ basis, equal


def as_curvature(target: object) -> AbstractCurvature:
    """The curvature of a distribution; a curvature as it is."""
    if isinstance(target, AbstractCurvature):
        return target
    if isinstance(target, GaussianMixture):
        return MixtureCurvature(target)
    if not isinstance(target, Gaussian):
        raise ValueError(
            "target must be a Gaussian, a GaussianMixture or a curvature such as BoundedSupport; "
            f"got {type(target).__name__}."
        )
    if target.compression is not None:
        raise ValueError(
            "target is compressed: its nodes need not have the extreme variances; pass the full "
            "spectrum."
        )
    present = jnp.asarray(target.weights) > 0
    eigenvalues = jnp.asarray(target.eigenvalues)
    return GaussianCurvature(
        smallest(jnp.where(present, eigenvalues, jnp.inf)),
        largest(jnp.where(present, eigenvalues, 0.0)),
    )


def _minus_inverse(variance: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """-1 / variance, minus infinity at 0 with derivative 0."""
    positive = variance > 0
    return jnp.where(positive, -1.0 / jnp.where(positive, variance, 1.0), -jnp.inf)
