"""Gaussian distributions in the eigenbasis of their covariance."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._linalg import full_precision
from .._numerics import safe_divide, safe_sqrt
from .._precision import is_traced
from .._types import AnyArray, Numbers, constant
from ..prediction import Prediction
from ..processes import AbstractProcess
from ._base import AbstractDistribution
from ._principal_axes import check_samples, principal_axes, sample_moments
from ._quadrature import Compression, gauss_rule

# Variances that stand for an uncertain one. An odd number keeps the variance itself; five leave a
# factor sqrt(f) between neighbours, below 2 for the usual f = 3, and per-mode errors change slowly
# over such a factor.
VARIANCE_NODES = 5


class Gaussian(AbstractDistribution):
    """A Gaussian distribution N(mean, C), with the covariance C given by its eigenvalues.

    A mode is an eigenvector of C. Everything that this library computes for a Gaussian is a sum
    over modes.

    **Arguments:**

    - `mean`: (d,), or a number for all. In data coordinates if `basis` is given, else per mode.
    - `eigenvalues`: (d,) of the covariance, >= 0, in units of variance. Zero is allowed, and what
      rounding made negative, down to -1e-6 of the largest, is taken as 0. (k + 1,) with a basis of
      k < d columns: the last is the variance in every direction orthogonal to them.
    - `weights`: of the modes, multiplicities or quadrature weights >= 0; default 1, and d - k for
      the last mode of a basis of k < d columns.
    - `basis`: (d, d) orthonormal eigenvectors in columns, or the k < d whose eigenvalues differ
      from the last; None if data are already in the eigenbasis.
    - `compression`, `kurtosis`: set by `compress` and `fit`, see the fields.

    **Raises:** ValueError naming the argument for a wrong shape, a NaN, a negative eigenvalue or
    weight, or a basis that is not orthonormal.

    **Example:**

    ```python
    >>> jk.Gaussian([0.0, 1.0], eigenvalues=[1.0, 0.1]).dim
    2.0
    ```
    """

    mean: Float[AnyArray, " d"]
    eigenvalues: Float[AnyArray, " modes"]
    weights: Float[AnyArray, " modes"]
    basis: Float[AnyArray, "d columns"] | None
    compression: Compression | None = eqx.field(static=True)
    """How this spectrum was compressed, if it was."""
    kurtosis: Float[AnyArray, ""] | None
    """Kurtosis of the data that were fitted, 3 for Gaussian data: how far off the model may be."""

    def __init__(
        self,
        mean: Numbers,
        eigenvalues: Numbers,
        weights: Numbers | None = None,
        basis: Numbers | None = None,
        *,
        compression: Compression | None = None,
        kurtosis: AnyArray | None = None,
    ):
        if is_traced((mean, eigenvalues, weights, basis)):
            eigenvalues = jnp.asarray(eigenvalues)
            basis = None if basis is None else jnp.asarray(basis)
            if weights is None:
                weights = jnp.asarray(_multiplicities(eigenvalues.size, basis), eigenvalues.dtype)
            coordinates = eigenvalues.shape if basis is None else basis.shape[:1]
            mean = jnp.broadcast_to(jnp.asarray(mean), coordinates)
        else:
            compressed = compression is not None
            mean, eigenvalues, weights, basis = _checked(
                mean, eigenvalues, weights, basis, compressed
            )
        self.mean = cast(AnyArray, mean)
        self.eigenvalues = cast(AnyArray, eigenvalues)
        self.weights = cast(AnyArray, weights)
        self.basis = cast(AnyArray | None, basis)
        self.compression = compression
        self.kurtosis = kurtosis

    def __repr__(self) -> str:
        brief = _checks.brief
        shown = f"mean={brief(self.mean)}, eigenvalues={brief(self.eigenvalues)}"
        weights = self.weights
        known = isinstance(weights, Array | np.ndarray) and not is_traced(weights)
        if not known or np.any(np.asarray(weights) != 1.0):
            shown += f", weights={brief(weights)}"
        if self.basis is not None:
            shown += f", basis={brief(self.basis)}"
        return f"Gaussian({shown})"

    @classmethod
    def isotropic(cls, dim: int, variance: Numbers = 1.0, mean: Numbers = 0.0) -> "Gaussian":
        """Make N(mean, variance I).

        **Arguments:**

        - `dim`: number d of dimensions, >= 1.
        - `variance`: of every coordinate, >= 0.
        - `mean`: a number or (d,). A number gives a single mode of weight d.

        **Returns:** a `Gaussian` without basis.

        **Raises:** ValueError for an argument out of range.

        **Example:**

        ```python
        >>> jk.Gaussian.isotropic(3072).weights.tolist()
        [3072.0]
        ```
        """
        _checks.count("dim", dim)
        variance = _checks.scalar("variance", variance, at_least=0.0)
        if np.ndim(mean) == 0:
            return cls(mean, variance[None], weights=np.full(1, float(dim)))
        return cls(mean, np.full(dim, variance))

    @classmethod
    def from_covariance(cls, mean: Numbers, covariance: Numbers) -> "Gaussian":
        """Make a Gaussian from a dense covariance.

        **Arguments:**

        - `mean`: (d,), or a number for all.
        - `covariance`: (d, d), symmetric and positive semidefinite.

        **Returns:** a `Gaussian` with the eigenvectors as its basis.

        **Raises:** ValueError for a covariance that is not square, symmetric or positive
        semidefinite.

        **Example:**

        ```python
        >>> jk.Gaussian.from_covariance(0.0, [[2.0, 0.0], [0.0, 3.0]]).eigenvalues.tolist()
        [3.0, 2.0]
        ```
        """
        eigenvalues, basis = eigendecomposition("covariance", covariance)
        return cls(mean, eigenvalues, basis=basis)

    @classmethod
    def fit(cls, samples: Numbers, shrinkage: float | str = "ledoit_wolf") -> "Gaussian":
        """Fit mean and covariance to samples.

        The empirical covariance S (divisor n) is shrunk towards a multiple of the identity,

            C = (1 - r) S + r tr(S)/d I,

        which keeps every eigenvalue positive for r > 0 also where n < d and S has rank n - 1. With
        n <= d samples only the directions of their span get a column of `basis`. In the d - n + 1
        others, or more, S is 0: they are one mode, of variance r tr(S)/d and of their number as
        weight. Time and memory are then linear in d.

        **Arguments:**

        - `samples`: (n, d) with n >= 2; further axes of a sample are flattened.
        - `shrinkage`: r in [0, 1], or "ledoit_wolf": the r that minimises the expected squared
          Frobenius error, estimated as min(1, (mean |x|^4 - |S|_F^2) / (n |S - tr(S)/d I|_F^2))
          with x centred. Two samples give r = 0.

        **Returns:** a `Gaussian` with its principal axes as basis, and the `kurtosis` of the
        samples.

        **Raises:** ValueError for fewer than 2 samples, NaN or infinity, samples without any
        variance, or r outside [0, 1].

        **Example:**

        ```python
        >>> samples = np.random.default_rng(0).normal(size=(100, 3))
        >>> jk.Gaussian.fit(samples).dim
        3.0
        ```

        Source: Ledoit and Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance
        Matrices" (2004), lemmas 3.2 to 3.4.
        """
        x = check_samples(samples)
        moments = sample_moments(x)
        level = moments.variance.mean()
        if not level > 0:
            raise ValueError("samples are all equal: they have no variance to fit.")
        axes, fourth = principal_axes(x, moments.mean)
        outside = x.shape[1] - axes.eigenvalues.size
        if isinstance(shrinkage, str):
            _checks.one_of("shrinkage", shrinkage, ("ledoit_wolf",))
            amount = _ledoit_wolf(x.shape[0], axes.eigenvalues, outside, fourth)
        else:
            amount = float(_checks.scalar("shrinkage", shrinkage, at_least=0.0, at_most=1.0))
        eigenvalues = np.append(axes.eigenvalues, np.zeros(min(outside, 1)))
        eigenvalues = (1.0 - amount) * eigenvalues + amount * level
        return gaussian_in_basis(moments.mean, eigenvalues, axes.basis, moments.kurtosis)

    @property
    def dim(self) -> float:
        """Number of dimensions: the sum of the weights."""
        return float(np.sum(np.asarray(self.weights)))

    @property
    @full_precision
    def mode_mean(self) -> Float[Array, " modes"]:
        """The mean along the modes."""
        mean = jnp.asarray(self.mean)
        if self.basis is None:
            return mean
        along, outside = _split(mean, jnp.asarray(self.basis))
        if outside is None:
            return along
        # the root mean square over the coordinates of the mode, as sums over modes need it
        return jnp.append(along, safe_sqrt(jnp.sum(outside**2) / self.weights[-1]))

    def in_eigenbasis(self) -> "Gaussian":
        """Return the same distribution in the coordinates of its modes.

        **Returns:** a `Gaussian` whose `basis` is None; itself if it has none.
        """
        if self.basis is None:
            return self
        if is_traced(self):
            return eqx.tree_at(lambda g: (g.mean, g.basis), self, (self.mode_mean, None))
        mean, outside = _split(constant(self.mean), constant(self.basis))
        if outside is not None:
            mean = np.append(mean, np.sqrt(np.sum(outside**2) / self.weights[-1]))
        return eqx.tree_at(lambda g: (g.mean, g.basis), self, (mean, None))

    def marginal_variance(
        self, process: AbstractProcess, t: Float[ArrayLike, "*s"]
    ) -> Float[Array, "*s modes"]:
        """Evaluate the variance a^2 lambda + s^2 of every mode of p_t.

        **Arguments:**

        - `process`: the forward process.
        - `t`: times of any shape.

        **Returns:** the variances, with a last axis over modes.
        """
        a = process.signal(t)[..., None]
        s = process.noise(t)[..., None]
        return a**2 * self.eigenvalues + s**2

    def predict(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Prediction:
        """Split a noisy point exactly.

            x0 = mu + a C Sigma_t^-1 (x - a mu),     eps = s Sigma_t^-1 (x - a mu)

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** the `Prediction`, with the score; finite where a = 0 or s = 0. The score is NaN
        where the distribution has no density.
        """
        return gaussian_prediction(process, self.mean, self.eigenvalues, self.basis, x, t)

    @full_precision
    def score(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Float[Array, "... d"]:
        """Evaluate grad log p_t(x) = -Sigma_t^-1 (x - a mu).

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** the score, in the shape of x.
        """
        y = x - process.signal(t) * jnp.asarray(self.mean)
        variance = self.marginal_variance(process, t)
        if self.basis is None:
            return -y / variance
        basis = jnp.asarray(self.basis)
        along, outside = _split(y, basis)
        if outside is None:
            return (-along / variance) @ basis.T
        return (-along / variance[:-1]) @ basis.T - outside / variance[-1]

    @full_precision
    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Draw independent samples.

        **Arguments:**

        - `key`: a random key.
        - `num`: number of samples, >= 0.

        **Returns:** samples (num, d).

        **Raises:** ValueError for weights other than 1 without a basis: such a mode is not one
        coordinate. Traced weights are not checked. Also for another `key` or `num`.
        """
        key = _checks.random_key("key", key)
        num = _checks.count("num", num, at_least=0)
        deviation = jnp.sqrt(jnp.asarray(self.eigenvalues))
        if self.basis is None:
            if not is_traced(self.weights) and np.any(np.asarray(self.weights) != 1.0):
                raise ValueError(
                    "a Gaussian with weights other than 1 has no coordinates to sample."
                )
            return self.mean + deviation * jax.random.normal(key, (num, deviation.shape[0]))
        basis = jnp.asarray(self.basis)
        if basis.shape[0] == basis.shape[1]:
            z = deviation * jax.random.normal(key, (num, deviation.shape[0]))
            return self.mean + z @ basis.T
        z = jax.random.normal(key, (num, basis.shape[0]))
        along, outside = _split(z, basis)
        assert outside is not None
        return self.mean + (deviation[:-1] * along) @ basis.T + deviation[-1] * outside

    def with_variance_factor(self, factor: float) -> "Gaussian":
        """Return the same modes with uncertain variances, from lambda / factor to lambda factor.

        Each mode becomes five that share its weight, with eigenvalues equally spaced in log lambda,
        so that a sum over modes becomes its average over the variance. An objective that is
        averaged in this way cannot be made small by a step whose local error vanishes for one
        variance only.

        **Arguments:**

        - `factor`: >= 1; 1 changes nothing.

        **Returns:** a `Gaussian` without basis.

        **Raises:** ValueError for factor < 1.

        **Example:**

        ```python
        >>> jk.Gaussian(0.0, [1.0]).with_variance_factor(4.0).eigenvalues.tolist()
        [0.25, 0.5, 1.0, 2.0, 4.0]
        ```
        """
        factor = float(_checks.scalar("factor", factor, at_least=1.0))
        target = self.in_eigenbasis()
        if factor == 1.0:
            return target
        factors = factor ** np.linspace(-1.0, 1.0, VARIANCE_NODES)
        return Gaussian(
            np.repeat(np.asarray(target.mean), VARIANCE_NODES),
            np.outer(np.asarray(target.eigenvalues), factors).ravel(),
            np.repeat(np.asarray(target.weights) / VARIANCE_NODES, VARIANCE_NODES),
            compression=target.compression,
        )

    def compress(self, nodes: int = 32) -> "Gaussian":
        """Replace the spectrum by a Gauss quadrature in log eigenvalue, at a cost independent of d.

        Every total of the form sum_i w_i phi(lambda_i) + sum_i w_i mu_i^2 psi(lambda_i), as all
        metrics of this library are, is kept: `nodes` nodes hold the first sum with mean 0, and
        half as many the second, each as a pair with the means 1 and 0 and opposite weights.
        Eigenvalues that are exactly 0 keep a node of their own. For phi analytic the error falls
        geometrically in `nodes`; `compression.relative_bound` guarantees the rate.

        **Arguments:**

        - `nodes`: number of quadrature nodes, >= 1.

        **Returns:** a `Gaussian` without basis, whose weights can be negative; itself, in its
        eigenbasis, if it has no more than `nodes` modes.

        **Raises:** ValueError for nodes < 1, or under a transformation.

        **Example:**

        ```python
        >>> spectrum = 1.0 / np.arange(1.0, 100_001.0)
        >>> jk.Gaussian(0.0, spectrum).compress(32).eigenvalues.shape
        (32,)
        ```

        Source: Golub and Welsch, "Calculation of Gauss Quadrature Rules" (1969).
        """
        _checks.count("nodes", nodes)
        if is_traced(self):
            raise ValueError(
                "compress needs concrete eigenvalues: call it outside jit, grad and vmap."
            )
        target = self.in_eigenbasis()
        size = target.eigenvalues.shape[0]
        if size <= nodes:
            return target
        eigenvalues, mass, shift = _spectral_measures(target)
        levels, weights = gauss_rule(eigenvalues, mass, nodes)
        shift_levels, shifts = gauss_rule(eigenvalues, shift, (nodes + 1) // 2)
        zeros = np.zeros_like(shifts)
        largest = eigenvalues.max()
        smallest = np.min(eigenvalues, where=eigenvalues > 0, initial=largest)
        log_range = np.log(largest / smallest) if largest > 0 else 0.0
        return Gaussian(
            np.concatenate([np.zeros_like(weights), zeros + 1.0, zeros]),
            np.concatenate([levels, shift_levels, shift_levels]),
            np.concatenate([weights, shifts, -shifts]),
            compression=Compression(nodes, size, float(log_range)),
        )


@full_precision
def gaussian_prediction(
    process: AbstractProcess,
    mean: AnyArray,
    eigenvalues: AnyArray,
    basis: AnyArray | None,
    x: Float[Array, "... d"],
    t: Float[ArrayLike, ""],
) -> Prediction:
    """x0 = mu + a lambda y, eps = s y, score = -y; per mode y = (x - a mu) / (a^2 lambda + s^2).

    Finite at both ends of time: a = 0 gives x0 = mu, and lambda = s = 0 gives x0 = mu, eps = 0.
    There is no score in the latter case: it is NaN, so that nothing can use it unnoticed.
    """
    a = process.signal(t)
    s = process.noise(t)
    y = x - a * jnp.asarray(mean)
    variance = a**2 * eigenvalues + s**2
    if basis is None:
        y = safe_divide(y, jnp.broadcast_to(variance, y.shape))
        return Prediction(mean + a * eigenvalues * y, s * y, jnp.where(variance > 0, -y, jnp.nan))
    basis = jnp.asarray(basis)
    columns = basis.shape[1]
    along, outside = _split(y, basis)
    along = safe_divide(along, jnp.broadcast_to(variance[:columns], along.shape))
    shift = (a * eigenvalues[:columns] * along) @ basis.T
    y = along @ basis.T
    if outside is not None:
        outside = safe_divide(outside, variance[-1])
        shift = shift + a * eigenvalues[-1] * outside
        y = y + outside
    return Prediction(mean + shift, s * y, jnp.where(jnp.all(variance > 0), -y, jnp.nan))


@full_precision
def _split(
    x: Float[AnyArray, "... d"], basis: Float[AnyArray, "d columns"]
) -> tuple[Float[AnyArray, "... columns"], Float[AnyArray, "... d"] | None]:
    """x along the columns, and what is orthogonal to them: None if they are complete."""
    along = x @ basis
    if basis.shape[0] == basis.shape[1]:
        return along, None
    return along, x - along @ basis.T


def gaussian_in_basis(
    mean: np.ndarray, eigenvalues: np.ndarray, basis: np.ndarray, kurtosis: float | None = None
) -> Gaussian:
    """Make a Gaussian with a basis that is known to be orthonormal.

    The check takes seconds for a basis of thousands of columns.

    **Arguments:**

    - `mean`, `eigenvalues`, `basis`: as of `Gaussian`.
    - `kurtosis`: of the samples, if they were fitted.

    **Returns:** the Gaussian.
    """
    weights = _multiplicities(eigenvalues.size, constant(basis))
    target = Gaussian(0.0, eigenvalues, weights)
    return eqx.tree_at(
        lambda g: (g.mean, g.basis, g.kurtosis),
        target,
        (constant(mean), constant(basis), None if kurtosis is None else constant(kurtosis)),
        is_leaf=lambda leaf: leaf is None,
    )


def _multiplicities(modes: int, basis: AnyArray | None) -> np.ndarray:
    """The weights of the modes: 1, and the number of directions that an incomplete basis leaves."""
    weights = np.ones(modes)
    if basis is not None and basis.shape[1] < basis.shape[0]:
        weights[-1] = basis.shape[0] - basis.shape[1]
    return weights


def eigendecomposition(argument: str, covariance: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (descending) and eigenvectors of a covariance that is checked first."""
    c = _checks.array(argument, covariance)
    if c.ndim != 2 or c.shape[0] != c.shape[1] or c.size == 0:
        raise ValueError(f"{argument} has shape {c.shape}; a covariance is square, (d, d).")
    scale = np.abs(c).max()
    asymmetry = np.abs(c - c.T).max()
    if asymmetry > 1e-6 * scale:
        raise ValueError(f"{argument} is not symmetric: its halves differ by up to {asymmetry:g}.")
    eigenvalues, basis = np.linalg.eigh(0.5 * (c + c.T))
    if eigenvalues[0] < -1e-6 * scale:
        raise ValueError(
            f"{argument} has the negative eigenvalue {eigenvalues[0]:g}; all must be >= 0."
        )
    return np.maximum(eigenvalues[::-1], 0.0), basis[:, ::-1]


def _checked(
    mean: Numbers,
    eigenvalues: Numbers,
    weights: Numbers | None,
    basis: Numbers | None,
    compressed: bool,
) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray | None]:
    """The four arrays of a Gaussian, mean and weights with one entry per mode."""
    eigenvalues = _checks.variances("eigenvalues", eigenvalues)
    if eigenvalues.ndim != 1 or eigenvalues.size == 0:
        raise ValueError(f"eigenvalues must be a non-empty list; got shape {eigenvalues.shape}.")
    basis = None if basis is None else _checked_basis(basis, eigenvalues.size)
    expected = _multiplicities(eigenvalues.size, basis)
    mean = _checks.array("mean", mean)
    weights = expected if weights is None else _checks.array("weights", weights)
    coordinates = eigenvalues.shape if basis is None else basis.shape[:1]
    for name, value, shape in (
        ("mean", mean, coordinates),
        ("weights", weights, eigenvalues.shape),
    ):
        if value.shape not in ((), shape):
            raise ValueError(
                f"{name} has shape {value.shape}; for {eigenvalues.size} eigenvalues it must have "
                f"shape {shape}."
            )
    if not compressed and (np.any(weights < 0) or not np.any(weights > 0)):
        raise ValueError(
            f"weights must be >= 0 and not all zero; the smallest is {weights.min():g}."
        )
    if expected[-1] != 1 and np.any(weights != expected):
        raise ValueError(
            f"weights must be 1, and {expected[-1]:g} for the last mode: a basis of "
            f"{eigenvalues.size - 1} columns leaves as many directions."
        )
    mean = cast(AnyArray, np.broadcast_to(mean, coordinates))
    weights = cast(AnyArray, np.broadcast_to(weights, eigenvalues.shape))
    return mean, eigenvalues, weights, basis


def _checked_basis(basis: Numbers, size: int) -> AnyArray:
    """A basis (size, size) or (d >= size, size - 1) with orthonormal columns."""
    checked = _checks.array("basis", basis)
    incomplete = checked.ndim == 2 and checked.shape[0] >= size and checked.shape[1] == size - 1 > 0
    if checked.shape != (size, size) and not incomplete:
        raise ValueError(
            f"basis has shape {checked.shape}; for {size} eigenvalues it must be {(size, size)}, "
            f"or (d, {size - 1}) with the last eigenvalue that of all other directions."
        )
    error = np.abs(checked.T @ checked - np.eye(checked.shape[1])).max()
    if error > 1e-5:
        raise ValueError(f"basis is not orthonormal: basis^T basis differs from I by {error:.1g}.")
    return checked


def _ledoit_wolf(n: int, eigenvalues: np.ndarray, outside: int, fourth: float) -> float:
    """The amount of shrinkage r of `Gaussian.fit`, where `outside` more eigenvalues are 0."""
    level = eigenvalues.sum() / (eigenvalues.size + outside)
    error = (fourth - np.sum(eigenvalues**2)) / n
    distance = np.sum((eigenvalues - level) ** 2) + outside * level**2
    return float(min(1.0, max(0.0, error / distance))) if distance > 0 else 1.0


def _spectral_measures(target: Gaussian) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues with the weights w and w mu^2 of the modes, for a target in its eigenbasis."""
    eigenvalues = np.asarray(target.eigenvalues, np.float64)
    mass = np.asarray(target.weights, np.float64)
    shift = mass * np.asarray(target.mean, np.float64) ** 2
    if np.all(mass >= 0):
        return eigenvalues, mass, shift
    # compressed before: equal eigenvalues together, so that opposite weights cancel
    eigenvalues, index = np.unique(eigenvalues, return_inverse=True)
    return eigenvalues, np.bincount(index, mass), np.bincount(index, shift)
