"""Gaussian mixtures: an exact score beyond the Gaussian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._numerics import safe_divide
from .._types import AnyArray, Numbers, constant
from ..prediction import Prediction, Predictor
from ..process import AbstractProcess
from ._gaussian import Gaussian, eigendecomposition


class GaussianMixture(eqx.Module):
    """sum_m weights_m N(means_m, covariances_m).

    **Arguments:** `weights` (M,), positive, sum 1; `means` (M, d); `covariances` (M, d, d), or (M, d) of
    variances, or (M,) of isotropic ones.

    **Raises:** ValueError for weights that do not sum to 1, wrong shapes, or a covariance that is not
    symmetric and positive semidefinite.

    Every marginal of a forward process is again a mixture, with means a mu_m and covariances
    a^2 C_m + s^2 I, so `log_density`, `score` and `hessian` take a process and a time.
    """

    weights: Float[AnyArray, " components"]
    means: Float[AnyArray, "components d"]
    eigenvalues: Float[AnyArray, "components d"]
    bases: Float[AnyArray, "components d d"]

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
        if covariances.ndim < 3:
            diagonal = covariances if covariances.ndim == 2 else covariances[:, None]
            covariances = np.broadcast_to(diagonal, means.shape)[..., None] * np.eye(dim)
        parts = [eigendecomposition(f"covariances[{m}]", c) for m, c in enumerate(covariances)]
        self.weights, self.means = weights / weights.sum(), means
        self.eigenvalues = constant(np.stack([values for values, _ in parts]))
        self.bases = constant(np.stack([basis for _, basis in parts]))

    def gaussian(self) -> Gaussian:
        """The Gaussian with this mixture's mean and covariance."""
        weights, means = np.asarray(self.weights), np.asarray(self.means)
        mean = weights @ means
        bases, values = np.asarray(self.bases), np.asarray(self.eigenvalues)
        inside = np.einsum("m,mij,mj,mkj->ik", weights, bases, values, bases)
        centred = means - mean
        return Gaussian.from_covariance(mean, inside + np.einsum("m,mi,mj", weights, centred, centred))

    def _whitened(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> tuple[Array, Array, Array]:
        """Per component: x - a mu_m along its eigenvectors, variances, log of weight times density."""
        a, s = process.signal(t), process.noise(t)
        y = jnp.einsum("...md,mde->...me", x[..., None, :] - a * self.means, self.bases)
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
        pulls = -jnp.einsum("...me,mde->...md", y / variance, self.bases)
        return jnp.einsum("...m,...md->...d", jax.nn.softmax(logits, -1), pulls)

    def hessian(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""] = 0.0
    ) -> Float[Array, "... d d"]:
        """Hessian of log p_t(x): -sum_m gamma_m Sigma_m^{-1} + Cov_gamma(v_m)."""
        y, variance, logits = self._whitened(process, x, t)
        gamma = jax.nn.softmax(logits, -1)
        pulls = -jnp.einsum("...me,mde->...md", y / variance, self.bases)
        precisions = jnp.einsum("mde,me,mfe->mdf", self.bases, 1.0 / variance, self.bases)
        centred = pulls - jnp.einsum("...m,...md->...d", gamma, pulls)[..., None, :]
        return jnp.einsum("...m,...md,...mf->...df", gamma, centred, centred) - jnp.einsum(
            "...m,mdf->...df", gamma, precisions
        )

    def predictor(self, process: AbstractProcess) -> Predictor:
        """The exact denoiser: (x, t) -> Prediction, x of shape (..., d)."""

        def predict(x: Array, t: Array) -> Prediction:
            a, s = process.signal(t), process.noise(t)
            y, variance, logits = self._whitened(process, x, t)
            gamma = jax.nn.softmax(logits, -1)
            y = safe_divide(y, jnp.broadcast_to(variance, y.shape))
            shift = jnp.einsum("...me,mde->...md", a * self.eigenvalues * y, self.bases)
            eps = jnp.einsum("...me,mde->...md", s * y, self.bases)
            return Prediction(
                jnp.einsum("...m,...md->...d", gamma, self.means + shift),
                jnp.einsum("...m,...md->...d", gamma, eps),
            )

        return predict

    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Independent draws."""
        choose, draw = jax.random.split(key)
        m = jax.random.categorical(choose, jnp.log(jnp.asarray(self.weights)), shape=(num,))
        z = jax.random.normal(draw, (num, self.means.shape[1]))
        scaled = z * jnp.sqrt(jnp.asarray(self.eigenvalues))[m]
        return jnp.asarray(self.means)[m] + jnp.einsum("ne,nde->nd", scaled, jnp.asarray(self.bases)[m])
