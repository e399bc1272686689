"""How far the components of a Gaussian mixture are apart, at every noise level."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .. import _checks
from .._linalg import full_precision
from .._numerics import larger, largest, smallest
from .._precision import in_float64
from .._types import Numbers
from ..distributions import GaussianMixture
from ..processes import AbstractProcess, check_process
from ._curvature_interval import component_covariances


class Separation(eqx.Module):
    """The separation of a mixture's components at some times.

    **Arguments:**

    - `means`: (*s), delta_mu, the largest distance of two means in standard deviations of one.
    - `covariances`: (*s), delta_Sigma, the largest |Sigma_m^(1/2) Sigma_n^-1 Sigma_m^(1/2) - I|.
    - `precision`: (*s), Lambda, the largest 1 / variance of any component.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    >>> jk.bounds.separation(mixture, jk.VP(), 0.0).means.item()
    2.0
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript),
    definition 1.
    """

    means: Float[Array, "*s"]
    covariances: Float[Array, "*s"]
    precision: Float[Array, "*s"]

    @property
    def largest(self) -> Float[Array, "*s"]:
        """delta, the larger of the two separations; 0 for equal components."""
        return larger(self.means, self.covariances)

    def small(self, threshold: float = 0.5) -> Bool[Array, "*s"]:
        """Find the times at which the components overlap.

        **Arguments:**

        - `threshold`: of `largest`, > 0.

        **Returns:** whether `largest` is at most the threshold, at every time.

        **Raises:** ValueError for a threshold out of range.

        **Example:**

        ```python
        >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
        >>> jk.bounds.separation(mixture, jk.VP(), [0.0, 1.0]).small().tolist()
        [False, True]
        ```
        """
        return self.largest <= _checks.scalar("threshold", threshold, above=0.0)


@in_float64
def separation(
    mixture: GaussianMixture, process: AbstractProcess, t: Float[ArrayLike, "*s"] | Numbers
) -> Separation:
    """Compute how far a mixture's components are apart at every time.

    **Arguments:**

    - `mixture`: the data distribution.
    - `process`: the forward process.
    - `t`: times, any shape; where the noise level is 0 every component needs a density.

    **Returns:** the separations.

    **Raises:** ValueError for arguments of other types.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[0.0], [0.0]], [1.0, 2.0])
    >>> jk.bounds.separation(mixture, jk.VP(), 0.0).covariances.item()
    1.0
    ```

    Source: as for `Separation`.
    """
    values, bases, means = _components(mixture)
    process = check_process(process)
    a = process.signal(jnp.asarray(t))[..., None, None]
    variances = a**2 * values + process.noise(jnp.asarray(t))[..., None, None] ** 2
    # pairs (m, n): the difference of means along m's axes, and n's precision in m's units
    apart = jnp.einsum("mnd,mde->mne", means[:, None] - means, bases)
    squared = jnp.sum((a[..., None] * apart) ** 2 / variances[..., :, None, :], -1)
    overlap = jnp.einsum("mde,ndf->mnef", bases, bases)
    root = jnp.sqrt(variances)[..., :, None, :, None]
    half = root * overlap / jnp.sqrt(variances)[..., None, :, None, :]
    relative = half @ jnp.swapaxes(half, -1, -2) - jnp.eye(means.shape[1])
    sizes = jnp.abs(jnp.linalg.eigvalsh(relative))
    return Separation(
        jnp.sqrt(largest(_flat(squared, 2))),
        largest(_flat(sizes, 3)),
        1.0 / smallest(_flat(variances, 2)),
    )


@in_float64
@full_precision
def logit_margin(
    mixture: GaussianMixture,
    process: AbstractProcess,
    x: Float[ArrayLike, "*n d"],
    t: Float[ArrayLike, ""],
) -> Float[Array, "*n"]:
    """Compute by how much the most likely component of a point leads, in nats.

        kappa(x) = log gamma_first - log gamma_second

    with the posterior probabilities gamma of the components given x. Every other component has at
    most e^-kappa times the probability of the first, so that their probabilities sum to at most
    (M - 1) e^-kappa.

    **Arguments:**

    - `mixture`: the data distribution.
    - `process`: the forward process.
    - `x`: points (..., d).
    - `t`: a scalar time.

    **Returns:** the margin of every point, >= 0; infinite for a single component.

    **Raises:** ValueError for arguments of other types.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    >>> jk.bounds.logit_margin(mixture, jk.VP(), np.array([[0.0], [2.0]]), 0.0).tolist()
    [0.0, 4.0]
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript),
    definition 2 and equation (29).
    """
    posterior = jnp.sort(_log_posterior(mixture, process, x, t), -1)
    if posterior.shape[-1] == 1:
        return jnp.full(posterior.shape[:-1], jnp.inf)
    return posterior[..., -1] - posterior[..., -2]


@in_float64
@full_precision
def dominant_component(
    mixture: GaussianMixture,
    process: AbstractProcess,
    x: Float[ArrayLike, "*n d"],
    t: Float[ArrayLike, ""],
) -> Int[Array, "*n"]:
    """Find the most likely component of a noisy point.

    **Arguments:**

    - `mixture`: the data distribution.
    - `process`: the forward process.
    - `x`: points (..., d).
    - `t`: a scalar time.

    **Returns:** the index of the component with the largest posterior probability, per point.

    **Raises:** ValueError for arguments of other types.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    >>> jk.bounds.dominant_component(mixture, jk.VP(), np.array([[-0.1], [2.0]]), 0.0).tolist()
    [0, 1]
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), equation
    (16).
    """
    return jnp.argmax(_log_posterior(mixture, process, x, t), -1)


def component_precisions(
    mixture: GaussianMixture, process: AbstractProcess, t: Float[Array, " n"]
) -> Float[Array, "n components d d"]:
    """Sigma_m^-1 of every component at every time."""
    values, bases, _ = _components(mixture)
    variances = (
        process.signal(t)[:, None, None] ** 2 * values + process.noise(t)[:, None, None] ** 2
    )
    return jnp.einsum("mde,nme,mfe->nmdf", bases, 1.0 / variances, bases)


def _components(
    mixture: GaussianMixture,
) -> tuple[Float[Array, "m d"], Float[Array, "m d d"], Float[Array, "m d"]]:
    """Variances, axes (columns) and means of the components, in full."""
    mixture = _checks.instance("mixture", mixture, GaussianMixture)
    values, bases = np.linalg.eigh(component_covariances(mixture))
    return jnp.asarray(np.maximum(values, 0.0)), jnp.asarray(bases), jnp.asarray(mixture.means)


def _log_posterior(
    mixture: GaussianMixture, process: AbstractProcess, x: ArrayLike, t: ArrayLike
) -> Float[Array, "*n m"]:
    """Log posterior probabilities of checked arguments."""
    mixture = _checks.instance("mixture", mixture, GaussianMixture)
    return mixture.log_posterior(check_process(process), jnp.asarray(x), jnp.asarray(t))


def _flat(x: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
    """The last axes as one."""
    return x.reshape(*x.shape[:-axes], -1)
