"""Gaussian targets in the eigenbasis of their covariance."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._linalg import full_precision
from .._numerics import safe_divide
from .._precision import is_traced
from .._types import AnyArray, Numbers, constant
from ..prediction import Prediction
from ..processes import AbstractProcess
from ._base import AbstractDistribution
from ._quadrature import Compression, gauss_rule

# variances that stand for an uncertain one
_LEVELS = 5


class Gaussian(AbstractDistribution):
    """N(mean, C) with C given by its eigenvalues.

    **Arguments:**

    - `mean`: (d,), or a number for all. In data coordinates if `basis` is given, else along the modes.
    - `eigenvalues`: (d,) of the covariance, >= 0, in units of variance. Zero is allowed.
    - `weights`: (d,) multiplicities or quadrature weights of the modes, >= 0; default 1.
    - `basis`: (d, d) orthonormal eigenvectors in columns; None means data are already in the eigenbasis.
    - `compression`, `kurtosis`: set by `compress` and `fit`, see the fields.

    **Raises:** ValueError naming the argument for a wrong shape, a NaN, a negative eigenvalue or weight,
    or a basis that is not orthonormal.
    """

    mean: Float[AnyArray, " modes"]
    eigenvalues: Float[AnyArray, " modes"]
    weights: Float[AnyArray, " modes"]
    basis: Float[AnyArray, "modes modes"] | None
    compression: Compression | None = eqx.field(static=True)
    """How this target was compressed, if it was."""
    kurtosis: Float[AnyArray, ""] | None
    """Kurtosis of the data this target was fitted to (3 for Gaussian data): how far the model may be off."""

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
            weights = jnp.ones_like(eigenvalues) if weights is None else weights
            mean = jnp.broadcast_to(jnp.asarray(mean), eigenvalues.shape)
        else:
            mean, eigenvalues, weights, basis = _checked(
                mean, eigenvalues, weights, basis, compression is not None
            )
        self.mean, self.eigenvalues = cast(AnyArray, mean), cast(AnyArray, eigenvalues)
        self.weights, self.basis = cast(AnyArray, weights), cast(AnyArray | None, basis)
        self.compression, self.kurtosis = compression, kurtosis

    @classmethod
    def isotropic(cls, dim: int, variance: Numbers = 1.0, mean: Numbers = 0.0) -> "Gaussian":
        """N(mean, variance I) in `dim` dimensions; one mode of weight `dim` if the mean is one number."""
        _checks.count("dim", dim)
        variance = _checks.scalar("variance", variance, at_least=0.0)
        if np.ndim(mean) == 0:
            return cls(mean, variance[None], weights=np.full(1, float(dim)))
        return cls(mean, np.full(dim, variance))

    @classmethod
    def from_covariance(cls, mean: Numbers, covariance: Numbers) -> "Gaussian":
        """From a dense covariance (d, d). ValueError unless square, symmetric and positive semidefinite."""
        eigenvalues, basis = eigendecomposition("covariance", covariance)
        return cls(mean, eigenvalues, basis=basis)

    @classmethod
    def fit(cls, samples: Numbers, shrinkage: float | str = "ledoit_wolf") -> "Gaussian":
        """Fit mean and covariance to samples (n, d), n >= 2 (further axes of a sample are flattened).

        The empirical covariance S (divisor n) is shrunk towards a multiple of the identity,

            C = (1 - r) S + r tr(S)/d I,

        which keeps every eigenvalue positive for r > 0 also where n < d and S has rank n - 1. `shrinkage` is r in
        [0, 1], or "ledoit_wolf": the r that minimises the expected squared Frobenius error, estimated as
        in Ledoit and Wolf (2004): r = min(1, (mean |x|^4 - |S|_F^2) / (n |S - tr(S)/d I|_F^2)), x centred
        (two samples give r = 0).

        **Raises:** ValueError for fewer than 2 samples, NaN or infinity, data without any variance, or r
        outside [0, 1].
        """
        x = _checks.array("samples", samples)
        if x.ndim < 2 or x.shape[0] < 2 or x.size == 0:
            raise ValueError(
                f"samples has shape {x.shape}; it must be (n, d) with at least 2 samples in its rows."
            )
        x = x.reshape(x.shape[0], -1)
        n, dim = x.shape
        mean = x.mean(0)
        x = x - mean
        if n < dim:  # the complement of the samples' span completes the basis
            _, singular, rows = np.linalg.svd(x, full_matrices=True)
            eigenvalues = np.zeros(dim)
            eigenvalues[: singular.size] = singular**2 / n
            basis = rows.T
        else:
            eigenvalues, basis = np.linalg.eigh(x.T @ x / n)
            eigenvalues, basis = np.maximum(eigenvalues[::-1], 0.0), basis[:, ::-1]
        level = eigenvalues.mean()
        if not level > 0:
            raise ValueError("samples are all equal: they have no variance to fit.")
        if isinstance(shrinkage, str):
            _checks.one_of("shrinkage", shrinkage, ("ledoit_wolf",))
            noise = (np.mean(np.sum(x * x, 1) ** 2) - np.sum(eigenvalues**2)) / n
            spread = np.sum((eigenvalues - level) ** 2)
            amount = min(1.0, max(0.0, noise / spread)) if spread > 0 else 1.0
        else:
            amount = float(_checks.scalar("shrinkage", shrinkage, at_least=0.0, at_most=1.0))
        # variance-weighted mean over coordinates of E x^4 / (E x^2)^2
        second, fourth = np.mean(x**2, 0), np.mean(x**4, 0)
        varying = second > 0
        kurtosis = np.sum(fourth[varying] / second[varying]) / np.sum(second)
        eigenvalues = (1.0 - amount) * eigenvalues + amount * level
        return cls(mean, eigenvalues, basis=basis, kurtosis=constant(kurtosis))

    @property
    def dim(self) -> float:
        """Number of dimensions: the sum of the weights."""
        return float(np.sum(np.asarray(self.weights)))

    @property
    @full_precision
    def mode_mean(self) -> Float[Array, " modes"]:
        """The mean along the modes."""
        mean = jnp.asarray(self.mean)
        return mean if self.basis is None else jnp.asarray(self.basis).T @ mean

    def in_eigenbasis(self) -> "Gaussian":
        """The same law in the coordinates of its modes (basis None)."""
        if self.basis is None:
            return self
        return eqx.tree_at(
            lambda g: (g.mean, g.basis),
            self,
            (np.asarray(self.basis).T @ np.asarray(self.mean), None),
        )

    def marginal_variance(
        self, process: AbstractProcess, t: Float[ArrayLike, "*s"]
    ) -> Float[Array, "*s modes"]:
        """a^2 lambda + s^2 of every mode."""
        a, s = process.signal(t)[..., None], process.noise(t)[..., None]
        return a**2 * self.eigenvalues + s**2

    def predict(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Prediction:
        """The exact split of x, see `gaussian_prediction`."""
        return gaussian_prediction(process, self.mean, self.eigenvalues, self.basis, x, t)

    @full_precision
    def score(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Float[Array, "... d"]:
        """grad log p_t(x) = -Sigma_t^{-1} (x - a mu)."""
        y = x - process.signal(t) * jnp.asarray(self.mean)
        y = y if self.basis is None else y @ self.basis
        y = -y / self.marginal_variance(process, t)
        return y if self.basis is None else y @ jnp.asarray(self.basis).T

    @full_precision
    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Independent draws; needs unit weights (a mode of weight w is not one coordinate)."""
        if np.any(np.asarray(self.weights) != 1.0):
            raise ValueError("a Gaussian with weights other than 1 has no coordinates to sample.")
        z = jax.random.normal(key, (num, self.eigenvalues.shape[0]))
        z = z * jnp.sqrt(jnp.asarray(self.eigenvalues))
        return self.mean + (z if self.basis is None else z @ jnp.asarray(self.basis).T)

    def with_variance_factor(self, spread: float) -> "Gaussian":
        """The same modes with uncertain variances: each eigenvalue becomes five, from lambda / spread to lambda spread.

        They are equally spaced in log lambda and share the mode's weight, so that any total over modes becomes
        its average over the variance. The result has no basis. ValueError for spread < 1.
        """
        spread = float(_checks.scalar("spread", spread, at_least=1.0))
        target = self.in_eigenbasis()
        if spread == 1.0:
            return target
        factors = spread ** np.linspace(-1.0, 1.0, _LEVELS)
        return Gaussian(
            np.repeat(np.asarray(target.mean), _LEVELS),
            np.outer(np.asarray(target.eigenvalues), factors).ravel(),
            np.repeat(np.asarray(target.weights) / _LEVELS, _LEVELS),
            compression=target.compression,
        )

    def compress(self, nodes: int = 32) -> "Gaussian":
        """Replace the spectrum by a Gauss quadrature in log eigenvalue, at a cost independent of d.

        Every total of the form sum_i w_i phi(lambda_i) + sum_i w_i mu_i^2 psi(lambda_i), as all metrics of
        this library are, is kept: `nodes` nodes carry the first sum with mean 0, and half as many the
        second, each as a pair with the means 1 and 0 and opposite weights. Eigenvalues that are exactly 0
        keep a node of their own, and repeated ones are merged. For phi
        analytic the error falls geometrically; `compression.relative_bound` guarantees the rate.
        The result has no basis, and its weights can be negative.

        **Raises:** ValueError for nodes < 1, or under a transformation.
        """
        _checks.count("nodes", nodes)
        if is_traced(self):
            raise ValueError(
                "compress needs concrete eigenvalues: call it outside jit, grad and vmap."
            )
        target = self.in_eigenbasis()
        eigenvalues = np.asarray(target.eigenvalues, np.float64)
        if eigenvalues.size <= nodes:
            return target
        size = eigenvalues.size
        # equal eigenvalues together: so the opposite weights of an earlier compression cancel
        eigenvalues, index = np.unique(eigenvalues, return_inverse=True)
        moments = (
            np.asarray(target.weights) * np.asarray(target.mean, np.float64) ** power
            for power in (0, 2)
        )
        mass, shift = (np.bincount(index, moment) for moment in moments)
        levels, weights = gauss_rule(eigenvalues, mass, nodes)
        shift_levels, shifts = gauss_rule(eigenvalues, shift, (nodes + 1) // 2)
        positive = eigenvalues[eigenvalues > 0]
        return Gaussian(
            np.concatenate([0.0 * weights, shifts**0, 0.0 * shifts]),
            np.concatenate([levels, shift_levels, shift_levels]),
            np.concatenate([weights, shifts, -shifts]),
            compression=Compression(nodes, size, float(np.log(positive.max() / positive.min()))),
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
    """x0 = mu + a lambda (x - a mu) / (a^2 lambda + s^2), eps = s (x - a mu) / (a^2 lambda + s^2), per mode.

    Finite at both ends of time: a = 0 gives x0 = mu, and lambda = s = 0 gives x0 = mu, eps = 0.
    """
    a, s = process.signal(t), process.noise(t)
    y = x - a * jnp.asarray(mean)
    y = y if basis is None else y @ jnp.asarray(basis)
    y = safe_divide(y, jnp.broadcast_to(a**2 * eigenvalues + s**2, y.shape))
    shift, eps = a * eigenvalues * y, s * y
    if basis is not None:
        shift, eps = shift @ jnp.asarray(basis).T, eps @ jnp.asarray(basis).T
    return Prediction(mean + shift, eps)


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


def _checked(mean, eigenvalues, weights, basis, compressed):
    eigenvalues = _checks.array("eigenvalues", eigenvalues)
    if eigenvalues.ndim != 1 or eigenvalues.size == 0:
        raise ValueError(f"eigenvalues must be a non-empty list; got shape {eigenvalues.shape}.")
    if np.any(eigenvalues < 0):
        i = int(np.argmin(eigenvalues))
        raise ValueError(f"eigenvalues[{i}] = {eigenvalues[i]:g} is negative; variances are >= 0.")
    mean = _checks.array("mean", mean)
    weights = np.ones_like(eigenvalues) if weights is None else _checks.array("weights", weights)
    for name, value in (("mean", mean), ("weights", weights)):
        if value.shape not in ((), eigenvalues.shape):
            raise ValueError(
                f"{name} has shape {value.shape}; for {eigenvalues.size} eigenvalues it must have shape "
                f"{eigenvalues.shape}."
            )
    if not compressed and (np.any(weights < 0) or not np.any(weights > 0)):
        raise ValueError(
            f"weights must be >= 0 and not all zero; the smallest is {weights.min():g}."
        )
    if basis is not None:
        basis = _checks.array("basis", basis)
        if basis.shape != (eigenvalues.size,) * 2:
            raise ValueError(
                f"basis has shape {basis.shape}; for {eigenvalues.size} eigenvalues it must be "
                f"{(eigenvalues.size,) * 2}."
            )
        error = np.abs(basis.T @ basis - np.eye(eigenvalues.size)).max()
        if error > 1e-5:
            raise ValueError(
                f"basis is not orthonormal: basis^T basis differs from I by {error:.1g}."
            )
    shape = eigenvalues.shape
    return np.broadcast_to(mean, shape), eigenvalues, np.broadcast_to(weights, shape), basis
