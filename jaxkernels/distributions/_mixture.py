"""Gaussian mixtures: distributions with an exact score beyond the Gaussian."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._extras import missing_extra
from .._linalg import full_precision
from .._numerics import safe_divide
from .._types import AnyArray, Numbers, constant
from ..prediction import Prediction
from ..processes import AbstractProcess
from ._base import AbstractDistribution
from ._gaussian import Gaussian, eigendecomposition, gaussian_in_basis
from ._principal_axes import check_samples, coordinates

# axes along which the samples do not vary at all get this share of the largest deviation
_FLAT = 1e-6
_EM_STEPS = 100
# the default number of components, and the samples that each of them should have
_COMPONENTS = 32
# squared distances of the components' means, in units of their variances, up to which those of
# points may be multiplied out: float32 keeps four digits behind the point
_OVERLAP = 1e3
_SAMPLES_PER_COMPONENT = 40


class GaussianMixture(AbstractDistribution):
    """A Gaussian mixture sum_m weights_m N(means_m, covariances_m).

    Every marginal p_t of a forward process is again a mixture, with means a mu_m and covariances
    a^2 C_m + s^2 I, so `log_density`, `score` and `hessian` take a process and a time.

    **Arguments:**

    - `weights`: (M,), positive, with sum 1.
    - `means`: (M, d).
    - `covariances`: (M, d, d), or (M, d) of variances, or (M,) of isotropic ones.

    One fitted to n <= d samples keeps only the axes of their span, see `fit`.

    **Raises:** ValueError for weights that do not sum to 1, wrong shapes, or a covariance that is
    not symmetric and positive semidefinite.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    >>> mixture.gaussian().eigenvalues.tolist()
    [1.1]
    ```
    """

    weights: Float[AnyArray, " components"]
    means: Float[AnyArray, "components d"]
    eigenvalues: Float[AnyArray, "components axes"]
    bases: Float[AnyArray, "components d d"] | Float[AnyArray, "d axes"] | None
    """Eigenvectors (columns) of each component, one basis for all, or None for the coordinates."""
    outside: Float[AnyArray, ""] | None
    """The components' common variance orthogonal to one basis of fewer than d columns."""
    _overlap: bool = eqx.field(static=True)

    def __repr__(self) -> str:
        components, dim = (0, 0, *np.shape(self.means))[-2:]
        counted = (_checks.counted(components, "component"), _checks.counted(dim, "dimension"))
        return f"GaussianMixture({', '.join(counted)})"

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
                f"means has shape {means.shape}; for {weights.size} weights it must be "
                f"({weights.size}, d)."
            )
        count, dim = means.shape
        if covariances.shape not in ((count,), (count, dim), (count, dim, dim)):
            raise ValueError(
                f"covariances has shape {covariances.shape}; allowed: {(count, dim, dim)}, "
                f"{(count, dim)} or {(count,)}."
            )
        self.weights = weights / weights.sum()
        self.means = means
        self.outside = None
        if covariances.ndim == 3:
            parts = [eigendecomposition(f"covariances[{m}]", c) for m, c in enumerate(covariances)]
            self.eigenvalues = constant(np.stack([values for values, _ in parts]))
            self.bases = constant(np.stack([basis for _, basis in parts]))
            self._overlap = False
            return
        variances = covariances if covariances.ndim == 2 else covariances[:, None]
        variances = _checks.variances("covariances", variances)
        self.eigenvalues = constant(np.broadcast_to(variances, means.shape))
        self.bases = None
        centered = means - self.weights @ means
        with np.errstate(divide="ignore", invalid="ignore"):
            distances = np.sum(centered**2 / variances, -1)
        self._overlap = bool(np.all(distances < _OVERLAP))

    @classmethod
    def fit(
        cls, samples: Numbers, components: int | None = None, *, floor: float = 1e-3, seed: int = 0
    ) -> "GaussianMixture":
        """Fit a mixture to samples by expectation maximisation, along their principal axes.

        A mixture knows what the covariance does not: clusters, and samples of different scales.
        Axes and scales are those of `Gaussian.fit`; the components share them as one basis. Of
        n <= d samples these are the axes of their span: orthogonal to it all samples agree, and so
        do the components, with `floor` times the eigenvalue of `Gaussian.fit` as their variance.

        **Arguments:**

        - `samples`: (n, ...), flattened to (n, d).
        - `components`: number M of components; by default min(32, n // 40), at least 1, and never
          more than there are distinct samples.
        - `floor`: in (0, 1]; every component's variances have `floor` times the eigenvalues of
          `Gaussian.fit` added, so that none collapses onto a single sample.
        - `seed`: integer >= 0 of the clustering that starts the iteration.

        **Returns:** a `GaussianMixture` whose components share one basis.

        **Raises:** ValueError for fewer distinct samples than components, or samples without
        variance. ImportError without scikit-learn, which is in the extra `cli`.

        **Example:**

        ```python
        >>> samples = np.random.default_rng(0).normal(size=(100, 2))
        >>> jk.GaussianMixture.fit(samples).weights.shape
        (2,)
        ```

        Source: Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data via the EM
        Algorithm" (1977).
        """
        asked = None if components is None else _checks.count("components", components)
        floor = float(_checks.scalar("floor", floor, above=0.0, at_most=1.0))
        seed = _checks.count("seed", seed, at_least=0)
        gaussian = Gaussian.fit(samples)
        basis = np.asarray(gaussian.basis)
        axes = basis.shape[1]
        x = check_samples(samples)
        if asked is not None and len(x) < asked:
            raise ValueError(f"components = {asked} is more than the {len(x)} samples.")
        mean = np.asarray(gaussian.mean)
        eigenvalues = np.asarray(gaussian.eigenvalues)
        fitted = _expectation_maximisation(
            coordinates(x, mean, basis), np.sqrt(eigenvalues[:axes]), asked, floor, seed
        )
        weights, means, variances = fitted
        incomplete = axes < basis.shape[0]
        return eqx.tree_at(
            lambda m: (m.means, m.bases, m.outside),
            cls(weights, means, variances),
            (
                constant(mean + means @ basis.T),
                constant(basis),
                constant(floor * eigenvalues[-1]) if incomplete else None,
            ),
            is_leaf=lambda leaf: leaf is None,
        )

    def in_eigenbasis(self) -> "GaussianMixture":
        """Return the same distribution in the coordinates of the basis that all components share.

        A rotation of the coordinates changes no distance, and noise has the same distribution along
        any axes. So a sampler has the same errors here as in the coordinates of the data.

        Of a mixture fitted to n <= d samples only the axes of their span are kept: noise orthogonal
        to it is removed independently of what happens along it, whatever the component.

        **Returns:** a mixture whose `bases` is None; itself if the components share no basis.
        """
        if self.bases is None or self.bases.ndim == 3:
            return self
        return GaussianMixture(
            self.weights, np.asarray(self.means) @ np.asarray(self.bases), self.eigenvalues
        )

    def component(self, m: int) -> "GaussianMixture":
        """Return one component as a mixture of its own.

        **Arguments:**

        - `m`: index of the component, >= 0.

        **Returns:** a mixture with one component, of weight 1, in the same basis.

        **Raises:** ValueError for an index that there is not.
        """
        m = _checks.count("m", m, at_least=0, at_most=self.weights.shape[0] - 1)
        bases = self.bases
        if bases is not None and bases.ndim == 3:
            bases = bases[m : m + 1]
        rows = (constant(np.ones(1)), self.means[m : m + 1], self.eigenvalues[m : m + 1], bases)
        fields = ("weights", "means", "eigenvalues", "bases")
        return eqx.tree_at(
            lambda mixture: tuple(getattr(mixture, field) for field in fields),
            self,
            rows,
            is_leaf=lambda leaf: leaf is None,
        )

    def gaussian(self) -> Gaussian:
        """Return the Gaussian with this mixture's mean and covariance.

        **Returns:** a `Gaussian` with the eigenvectors of that covariance as its basis.
        """
        weights = np.asarray(self.weights)
        means = np.asarray(self.means)
        inside = self.in_eigenbasis()
        if inside is not self:
            turned = inside.gaussian()
            basis = np.asarray(self.bases) @ np.asarray(turned.basis)
            outside = () if self.outside is None else np.asarray(self.outside)
            eigenvalues = np.append(np.asarray(turned.eigenvalues), outside)
            return gaussian_in_basis(weights @ means, eigenvalues, basis)
        mean = weights @ means
        centered = means - mean
        between = (weights[:, None] * centered).T @ centered
        found = eigendecomposition("covariances", self._mean_covariance() + between)
        return gaussian_in_basis(mean, *found)

    def _mean_covariance(self) -> np.ndarray:
        """sum_m weights_m covariances_m, where no basis is shared."""
        weights = np.asarray(self.weights)
        values = np.asarray(self.eigenvalues)
        if self.bases is None:
            return np.diag(weights @ values)
        bases = np.asarray(self.bases)
        return np.einsum("m,mij,mj,mkj->ik", weights, bases, values, bases, optimize=True)

    def _own_bases(self) -> Float[AnyArray, "components d axes"]:
        """The eigenvectors of every component."""
        means = jnp.asarray(self.means)
        unit = jnp.eye(means.shape[1], dtype=means.dtype)
        bases = unit if self.bases is None else jnp.asarray(self.bases)
        return jnp.broadcast_to(bases, (self.means.shape[0], *bases.shape[-2:]))

    @property
    def _one_basis(self) -> bool:
        """Whether all components have the same eigenvectors."""
        return self.bases is None or self.bases.ndim == 2

    def _into_basis(self, x: Float[Array, "... d"]) -> Float[Array, "... axes"]:
        """Coordinates along the eigenvectors that all components share."""
        return x if self.bases is None else x @ jnp.asarray(self.bases)

    def _out_of_basis(self, z: Float[Array, "... axes"]) -> Float[Array, "... d"]:
        return z if self.bases is None else z @ jnp.asarray(self.bases).T

    def _variances(
        self, process: AbstractProcess, t: Float[ArrayLike, ""]
    ) -> Float[Array, "components axes"]:
        """Of the noised components along their eigenvectors, a^2 eigenvalues + s^2."""
        return process.signal(t) ** 2 * jnp.asarray(self.eigenvalues) + process.noise(t) ** 2

    def _centered(
        self, x: Float[Array, "... d"], a: Array
    ) -> tuple[Float[Array, "... axes"], Float[Array, "components axes"]]:
        """x - a c and the means less c along the one basis, with c the mean of all.

        Its axes hold all of the means' differences, even where they are fewer than d.
        """
        means = jnp.asarray(self.means)
        center = jnp.asarray(self.weights) @ means
        return self._into_basis(x - a * center), self._into_basis(means - center)

    def _from_means(
        self, x: Float[Array, "... d"], a: Array
    ) -> Float[Array, "... components axes"]:
        """x - a mu_m along the eigenvectors of every component."""
        means = jnp.asarray(self.means)
        if self._one_basis:
            return self._into_basis(x)[..., None, :] - a * self._into_basis(means)
        return jnp.einsum("...md,mde->...me", x[..., None, :] - a * means, self.bases)

    def _squared_distances(
        self, x: Float[Array, "... d"], a: Array, variance: Float[Array, "components axes"]
    ) -> Float[Array, "... components"]:
        """|x - a mu_m|^2 in units of the variances.

        Multiplied out it is two matrix products. That cancels as many digits as |mu_m|^2 in those
        units has, so it is for components that overlap enough.
        """
        if not self._overlap:
            y = self._from_means(x, a)
            return jnp.sum(y * y / variance, -1)
        z, means = self._centered(x, a)
        pulls = a * means / variance
        squares = jnp.sum(a * means * pulls, -1)
        return (z * z) @ (1.0 / variance).T - 2.0 * z @ pulls.T + squares

    @full_precision
    def _outside(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> tuple[Array, Array]:
        """x - a mu orthogonal to an incomplete basis, and its variance per direction."""
        a = process.signal(t)
        y = x - a * jnp.asarray(self.means)[0]  # the components have one mean there
        y = y - self._out_of_basis(self._into_basis(y))
        return y, a**2 * jnp.asarray(self.outside) + process.noise(t) ** 2

    @full_precision
    def _log_terms(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Float[Array, "... components"]:
        """log of weight times density of every component."""
        variance = self._variances(process, t)
        squared = self._squared_distances(jnp.asarray(x), process.signal(t), variance)
        logs = jnp.sum(jnp.log(2.0 * jnp.pi * variance), -1)
        return jnp.log(jnp.asarray(self.weights)) - 0.5 * (squared + logs)

    @full_precision
    def _pull(
        self,
        gamma: Float[Array, "... components"],
        x: Float[Array, "... d"],
        a: Array,
        factors: Float[Array, "components axes"],
    ) -> Float[Array, "... d"]:
        """sum_m gamma_m F_m (x - a mu_m), F_m with these eigenvalues in the components' bases."""
        if self._one_basis:
            z, means = self._centered(x, a)
            return self._out_of_basis(z * (gamma @ factors) - gamma @ (a * means * factors))
        y = self._from_means(x, a) * factors
        return jnp.einsum("...m,...me,mde->...d", gamma, y, self.bases)

    def log_density(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""] = 0.0
    ) -> Float[Array, "..."]:
        """Evaluate log p_t(x).

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** the log density (...), in nats.
        """
        log_density = jax.nn.logsumexp(self._log_terms(process, x, t), -1)
        if self.outside is None:
            return log_density
        y, variance = self._outside(process, x, t)
        directions = y.shape[-1] - self.eigenvalues.shape[1]
        constant = directions * jnp.log(2.0 * jnp.pi * variance)
        return log_density - 0.5 * (jnp.sum(y * y, -1) / variance + constant)

    def log_posterior(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""] = 0.0
    ) -> Float[Array, "... components"]:
        """Evaluate the log posterior probability of every component at a noisy point.

            log gamma_m = log weights_m + log N(x; a mu_m, Sigma_m) - log p_t(x)

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** log probabilities (..., M).
        """
        return jax.nn.log_softmax(self._log_terms(process, x, t), -1)

    def score(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""] = 0.0
    ) -> Float[Array, "... d"]:
        """Evaluate grad log p_t(x).

            sum_m gamma_m v_m,     v_m = -Sigma_m^-1 (x - a mu_m)

        with the posterior probabilities gamma_m of the components.

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** the score, in the shape of x.
        """
        gamma = jax.nn.softmax(self._log_terms(process, x, t), -1)
        inverse = 1.0 / self._variances(process, t)
        score = -self._pull(gamma, jnp.asarray(x), process.signal(t), inverse)
        if self.outside is None:
            return score
        y, variance = self._outside(process, x, t)
        return score - y / variance

    @full_precision
    def hessian(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""] = 0.0
    ) -> Float[Array, "... d d"]:
        """Evaluate the Hessian of log p_t.

            -sum_m gamma_m Sigma_m^-1 + Cov_gamma(v_m)

        with the notation of `score`.

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** the Hessian (..., d, d).
        """
        gamma = jax.nn.softmax(self._log_terms(process, x, t), -1)
        variance = self._variances(process, t)
        y = self._from_means(jnp.asarray(x), process.signal(t))
        bases = self._own_bases()
        pulls = -jnp.einsum("...me,mde->...md", y / variance, bases)
        precisions = jnp.einsum("mde,me,mfe->mdf", bases, 1.0 / variance, bases)
        centered = pulls - jnp.einsum("...m,...md->...d", gamma, pulls)[..., None, :]
        hessian = jnp.einsum("...m,...md,...mf->...df", gamma, centered, centered) - jnp.einsum(
            "...m,mdf->...df", gamma, precisions
        )
        if self.outside is None:
            return hessian
        variance = self._outside(process, x, t)[1]
        unit = jnp.eye(bases.shape[1], dtype=bases.dtype)
        return hessian - (unit - bases[0] @ bases[0].T) / variance

    @full_precision
    def predict(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Prediction:
        """Split a noisy point exactly: the components' own splits, averaged over their posterior.

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** the `Prediction`, with the score; the latter is NaN where p_t has no density.
        """
        x = jnp.asarray(x)
        a = process.signal(t)
        gamma = jax.nn.softmax(self._log_terms(process, x, t), -1)
        variance = self._variances(process, t)
        inverse = safe_divide(jnp.ones_like(variance), variance)
        moved = self._pull(gamma, x, a, a * self.eigenvalues * inverse)
        x0 = gamma @ jnp.asarray(self.means) + moved
        pull = self._pull(gamma, x, a, inverse)
        dense = jnp.all(variance > 0)
        if self.outside is not None:
            y, variance = self._outside(process, x, t)
            y = safe_divide(y, variance)
            x0 = x0 + a * self.outside * y
            pull = pull + y
            dense = dense & (variance > 0)
        return Prediction(x0, process.noise(t) * pull, jnp.where(dense, -pull, jnp.nan))

    @full_precision
    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Draw independent samples.

        **Arguments:**

        - `key`: a random key.
        - `num`: number of samples, >= 0.

        **Returns:** samples (num, d).

        **Raises:** ValueError for another `key` or `num`.
        """
        num = _checks.count("num", num, at_least=0)
        component_key, point_key = jax.random.split(_checks.random_key("key", key))
        m = jax.random.categorical(component_key, jnp.log(jnp.asarray(self.weights)), shape=(num,))
        means = jnp.asarray(self.means)[m]
        z = jax.random.normal(point_key, means.shape)
        deviations = jnp.sqrt(jnp.asarray(self.eigenvalues))[m]
        if self.bases is None:
            return means + z * deviations
        bases = jnp.asarray(self.bases)
        if bases.ndim == 3:
            return means + jnp.einsum("ne,nde->nd", z * deviations, bases[m])
        if self.outside is None:
            return means + (z * deviations) @ bases.T
        along = z @ bases
        outside = z - along @ bases.T
        return means + (along * deviations) @ bases.T + jnp.sqrt(self.outside) * outside


def _expectation_maximisation(
    z: Float[np.ndarray, "n d"],
    scale: Float[np.ndarray, " d"],
    asked: int | None,
    floor: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and variances of the components along each axis, in units of its scale.

    The number of components is the one that is asked for, or else what the samples allow.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Mixture
    except ImportError:
        raise missing_extra("fit", "scikit-learn") from None
    most = min(_COMPONENTS, max(1, len(z) // _SAMPLES_PER_COMPONENT)) if asked is None else asked
    with warnings.catch_warnings():
        # empty clusters, which are dropped or refused below
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(most, random_state=seed).fit_predict(z)
    labels = np.unique(clusters, return_inverse=True)[1]
    components = int(labels.max()) + 1
    if asked is not None and components < asked:
        raise ValueError(f"components = {asked} is more than the {components} different samples.")
    scale = np.maximum(scale, _FLAT * scale.max())
    z = z / scale
    groups = [z[labels == m] for m in range(components)]
    mixture = Mixture(
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
        # a model of the data is wanted, not an optimum of its likelihood
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(z)
    weights = np.asarray(mixture.weights_)
    means = np.asarray(mixture.means_) * scale
    variances = np.asarray(mixture.covariances_) * scale**2
    return weights, means, variances
