"""Gaussian mixtures: an exact score beyond the Gaussian."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._linalg import full_precision
from .._numerics import safe_divide
from .._types import AnyArray, Numbers, constant
from ..prediction import Prediction
from ..processes import AbstractProcess
from ._base import AbstractDistribution
from ._gaussian import Gaussian, eigendecomposition

# axes along which the samples do not vary at all get this share of the largest deviation
_FLAT, _EM_STEPS = 1e-6, 100


# components by default, and how many samples each of them wants
_COMPONENTS, _EACH = 32, 40


class GaussianMixture(AbstractDistribution):
    """sum_m weights_m N(means_m, covariances_m).

    **Arguments:** `weights` (M,), positive, sum 1; `means` (M, d); `covariances` (M, d, d), or (M, d) of
    variances, or (M,) of isotropic ones. `bases` holds the eigenvectors (columns) of each component, one basis
    for all of them, or is None for the coordinates' own.

    **Raises:** ValueError for weights that do not sum to 1, wrong shapes, or a covariance that is not
    symmetric and positive semidefinite.

    Every marginal of a forward process is again a mixture, with means a mu_m and covariances
    a^2 C_m + s^2 I, so `log_density`, `score` and `hessian` take a process and a time.
    """

    weights: Float[AnyArray, " components"]
    means: Float[AnyArray, "components d"]
    eigenvalues: Float[AnyArray, "components d"]
    bases: Float[AnyArray, "components d d"] | Float[AnyArray, "d d"] | None

    def __init__(self, weights: Numbers, means: Numbers, covariances: Numbers):
        weights = _checks.array("weights", weights)
        means = _checks.array("means", means)
        covariances = _checks.array("covariances", covariances)
        if weights.ndim != 1 or not weights.size or np.any(weights <= 0):
            raise ValueError(f"weights must be a list of positive numbers; got {weights}.")
        if abs(weights.sum() - 1.0) > 1e-6:
            raise ValueError(f"weights must sum to 1; they sum to {weights.sum():g}.")
        if means.ndim != 2 or means.shape[0] != weights.size:
            raise ValueError(
                f"means has shape {means.shape}; for {weights.size} weights it must be ({weights.size}, d)."
            )
        count, dim = means.shape
        if covariances.shape not in ((count,), (count, dim), (count, dim, dim)):
            raise ValueError(
                f"covariances has shape {covariances.shape}; allowed: {(count, dim, dim)}, {(count, dim)} "
                f"or {(count,)}."
            )
        self.weights, self.means = weights / weights.sum(), means
        if covariances.ndim < 3:
            diagonal = covariances if covariances.ndim == 2 else covariances[:, None]
            if np.any(diagonal < 0):
                m = int(np.argmin(diagonal.min(1)))
                raise ValueError(
                    f"covariances[{m}] has a negative variance, {diagonal[m].min():g}."
                )
            self.eigenvalues, self.bases = constant(np.broadcast_to(diagonal, means.shape)), None
            return
        parts = [eigendecomposition(f"covariances[{m}]", c) for m, c in enumerate(covariances)]
        self.eigenvalues = constant(np.stack([values for values, _ in parts]))
        self.bases = constant(np.stack([basis for _, basis in parts]))

    @classmethod
    def fit(
        cls, samples: Numbers, components: int | None = None, *, floor: float = 1e-3, seed: int = 0
    ) -> "GaussianMixture":
        """A mixture with one basis, the principal axes of samples (n, ...), fitted to them by EM (scikit-learn).

        What the covariance does not know, clusters and the different scales of samples, is in it; on networks it is
        the better model by far for DPM-Solver++(2M) (benchmarks/README.md). Axes and scales are those of
        `Gaussian.fit`; every component's variances have `floor` times its eigenvalues added, so that none is a single
        sample. By default 32 components, or fewer where that would leave less than 40 samples to each, or less than
        one that differs from the others.

        **Raises:** ValueError for fewer different samples than components, or samples without variance. ImportError
        without scikit-learn, which is in the extra `cli`.
        """
        asked = None if components is None else _checks.count("components", components)
        floor = float(_checks.scalar("floor", floor, above=0.0, at_most=1.0))
        seed = _checks.count("seed", seed, at_least=0)
        whole = Gaussian.fit(samples)
        assert whole.basis is not None
        x = np.asarray(samples, np.float64)
        if asked is not None and len(x) < asked:
            raise ValueError(f"components = {asked} is more than the {len(x)} samples.")
        basis, scale = np.asarray(whole.basis), np.sqrt(np.asarray(whole.eigenvalues))
        z = (x.reshape(len(x), -1) - np.asarray(whole.mean)) @ basis
        weights, means, variances = _expectation_maximisation(z, scale, asked, floor, seed)
        mixture = cls(weights, np.asarray(whole.mean) + means @ basis.T, variances)
        return eqx.tree_at(
            lambda m: m.bases, mixture, constant(basis), is_leaf=lambda leaf: leaf is None
        )

    def in_eigenbasis(self) -> "GaussianMixture":
        """The same law in the coordinates of the basis that all components share; itself, if they share none."""
        if self.bases is None or self.bases.ndim == 3:
            return self
        return GaussianMixture(
            self.weights, np.asarray(self.means) @ np.asarray(self.bases), self.eigenvalues
        )

    def gaussian(self) -> Gaussian:
        """The Gaussian with this mixture's mean and covariance."""
        weights, means, values = (
            np.asarray(a) for a in (self.weights, self.means, self.eigenvalues)
        )
        bases = None if self.bases is None else np.asarray(self.bases)
        mean = weights @ means
        if bases is not None and bases.ndim == 3:
            inside = np.einsum("m,mij,mj,mkj->ik", weights, bases, values, bases, optimize=True)
        else:
            inside = (
                np.diag(weights @ values)
                if bases is None
                else (bases * (weights @ values)) @ bases.T
            )
        centred = means - mean
        return Gaussian.from_covariance(mean, inside + (weights[:, None] * centred).T @ centred)

    def _own_bases(self) -> Float[AnyArray, "components d d"]:
        dim = self.means.shape[1]
        bases = jnp.eye(dim) if self.bases is None else jnp.asarray(self.bases)
        return jnp.broadcast_to(bases, (*self.means.shape, dim))

    @full_precision
    def _along(self, x: Float[Array, "... d"], a: Array) -> Float[Array, "... components d"]:
        """x - a mu_m along the eigenvectors of every component."""
        means, x = jnp.asarray(self.means), jnp.asarray(x)
        if self.bases is None:
            return x[..., None, :] - a * means
        if self.bases.ndim == 2:  # each of the two once
            return (x @ self.bases)[..., None, :] - a * (means @ self.bases)
        return jnp.einsum("...md,mde->...me", x[..., None, :] - a * means, self.bases)

    @full_precision
    def _combined(
        self, gamma: Float[Array, "... components"], y: Float[Array, "... components d"]
    ) -> Float[Array, "... d"]:
        """sum_m gamma_m B_m y_m: back from the components' eigenvectors."""
        if self.bases is not None and self.bases.ndim == 3:
            return jnp.einsum("...m,...me,mde->...d", gamma, y, self.bases)
        x = jnp.einsum("...m,...me->...e", gamma, y)
        return x if self.bases is None else x @ jnp.asarray(self.bases).T

    def _whitened(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> tuple[Array, Array, Array]:
        """Per component: x - a mu_m along its eigenvectors, variances, log of weight times density."""
        a, s = process.signal(t), process.noise(t)
        y = self._along(x, a)
        variance = a**2 * self.eigenvalues + s**2
        log_normal = -0.5 * jnp.sum(y * y / variance + jnp.log(2.0 * jnp.pi * variance), -1)
        return y, variance, jnp.log(jnp.asarray(self.weights)) + log_normal

    def log_density(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""] = 0.0
    ) -> Float[Array, "..."]:
        """log p_t(x), in nats."""
        return jax.nn.logsumexp(self._whitened(process, x, t)[2], -1)

    def score(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""] = 0.0
    ) -> Float[Array, "... d"]:
        """grad log p_t(x) = sum_m gamma_m v_m, v_m = -Sigma_m^{-1} (x - a mu_m), gamma responsibilities."""
        y, variance, logits = self._whitened(process, x, t)
        return -self._combined(jax.nn.softmax(logits, -1), y / variance)

    @full_precision
    def hessian(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""] = 0.0
    ) -> Float[Array, "... d d"]:
        """Hessian of log p_t(x): -sum_m gamma_m Sigma_m^{-1} + Cov_gamma(v_m)."""
        y, variance, logits = self._whitened(process, x, t)
        gamma = jax.nn.softmax(logits, -1)
        bases = self._own_bases()
        pulls = -jnp.einsum("...me,mde->...md", y / variance, bases)
        precisions = jnp.einsum("mde,me,mfe->mdf", bases, 1.0 / variance, bases)
        centred = pulls - jnp.einsum("...m,...md->...d", gamma, pulls)[..., None, :]
        return jnp.einsum("...m,...md,...mf->...df", gamma, centred, centred) - jnp.einsum(
            "...m,mdf->...df", gamma, precisions
        )

    @full_precision
    def predict(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Prediction:
        """The exact split of x: responsibilities times the split of every component."""
        a, s = process.signal(t), process.noise(t)
        y, variance, logits = self._whitened(process, x, t)
        gamma = jax.nn.softmax(logits, -1)
        y = safe_divide(y, jnp.broadcast_to(variance, y.shape))
        x0 = gamma @ jnp.asarray(self.means) + self._combined(gamma, a * self.eigenvalues * y)
        return Prediction(x0, self._combined(gamma, s * y))

    @full_precision
    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Independent draws."""
        choose, draw = jax.random.split(key)
        m = jax.random.categorical(choose, jnp.log(jnp.asarray(self.weights)), shape=(num,))
        z = jax.random.normal(draw, (num, self.means.shape[1]))
        z = z * jnp.sqrt(jnp.asarray(self.eigenvalues))[m]
        if self.bases is not None:
            bases = jnp.asarray(self.bases)
            z = z @ bases.T if bases.ndim == 2 else jnp.einsum("ne,nde->nd", z, bases[m])
        return jnp.asarray(self.means)[m] + z


def _expectation_maximisation(
    z: Float[np.ndarray, "n d"],
    scale: Float[np.ndarray, " d"],
    asked: int | None,
    floor: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and variances along each axis; from the clusters of k-means, in units of each axis's scale.

    As many components as are asked for; by default as many as samples allow.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Mixture
    except ImportError:
        raise ImportError(
            'fit needs scikit-learn, which is not installed: pip install "jaxkernels[cli]".'
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # empty clusters, dropped or refused below
        most = min(_COMPONENTS, max(1, len(z) // _EACH)) if asked is None else asked
        labels = np.unique(KMeans(most, random_state=seed).fit_predict(z), return_inverse=True)[1]
    components = int(labels.max()) + 1
    if asked is not None and components < asked:
        raise ValueError(f"components = {asked} is more than the {components} different samples.")
    scale = np.maximum(scale, _FLAT * scale.max())
    z = z / scale
    groups = [z[labels == m] for m in range(components)]
    law = Mixture(
        components,
        covariance_type="diag",
        reg_covar=floor,
        max_iter=_EM_STEPS,
        weights_init=np.array([len(group) for group in groups]) / len(z),
        means_init=np.stack([group.mean(0) for group in groups]),
        precisions_init=1.0 / (np.stack([group.var(0) for group in groups]) + floor),
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a model of the data, not an optimum, is what is asked
        law.fit(z)
    weights, means, variances = map(np.asarray, (law.weights_, law.means_, law.covariances_))
    return weights, means * scale, variances * scale**2
