"""The two forms of a sampler's moments: variances per mode, or one dense covariance matrix.

What commutes with the target's covariance needs one variance per mode of its eigenbasis. What does
not (a given initial covariance, a score error with matrix slopes) needs all modes in one block.
Everything that differs between the two is in the two classes here.
"""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import metrics
from ..distributions import Gaussian, gaussian_prediction
from ..prediction import Prediction
from ..processes import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Step
from ..score_error import AffineError
from ._affine import AffineMaps, initial_state, joint_covariance, linearise, propagate


class Moments(NamedTuple):
    """Mean and covariance in the target's eigenbasis, at one time or at several.

    `covariance` has the form of the coordinates: variances (*times, modes) or matrices
    (*times, modes, modes).
    """

    mean: Float[Array, "*times modes"]
    covariance: Float[Array, "..."]

    @property
    def last(self) -> "Moments":
        """The moments at the last of several times."""
        return Moments(self.mean[-1], self.covariance[-1])


class AbstractCoordinates(eqx.Module):
    """How covariances are represented, propagated and compared for a target in its eigenbasis."""

    target: eqx.AbstractVar[Gaussian]
    dense: ClassVar[bool]
    """Whether covariances are matrices."""

    @abc.abstractmethod
    def covariance(self, variance: Float[Array, "*s modes"]) -> Array:
        """The covariance that has these variances and no correlation between modes."""

    @abc.abstractmethod
    def variance(self, covariance: Array) -> Float[Array, "*s modes"]:
        """The variance of every mode."""

    @abc.abstractmethod
    def contract(self, factor: Float[Array, " modes"], covariance: Array) -> Array:
        """The covariance of factor * x."""

    @abc.abstractmethod
    def affine_maps(
        self,
        process: AbstractProcess,
        sampler: AbstractSampler,
        steps: Step,
        error: AffineError | None = None,
    ) -> AffineMaps:
        """The sampler's affine maps for the exact score plus `error` at each evaluation."""

    @abc.abstractmethod
    def propagate(self, maps: AffineMaps, sampler: AbstractSampler, start: Moments) -> Moments:
        """The moments at every time of the schedule, the given ones first."""

    @abc.abstractmethod
    def contributions(
        self, metric: str | metrics.Metric, moments: Moments, reference: Moments
    ) -> Float[Array, "*s parts"]:
        """The metric between two distributions: each mode's contribution; one number if dense."""

    def distance(
        self, metric: str | metrics.Metric, moments: Moments, reference: Moments
    ) -> Float[Array, "*s"]:
        """The metric between two distributions."""
        return jnp.sum(self.contributions(metric, moments, reference), -1)

    def data(self) -> Moments:
        """The moments of the data distribution."""
        return Moments(
            jnp.asarray(self.target.mean), self.covariance(jnp.asarray(self.target.eigenvalues))
        )

    def marginal(self, process: AbstractProcess, t: Array) -> Moments:
        """The moments of the exact marginal at time t."""
        variance = self.target.marginal_variance(process, t)
        return Moments(process.signal(t) * jnp.asarray(self.target.mean), self.covariance(variance))


class PerMode(AbstractCoordinates):
    """One variance per mode, for everything that commutes with the target's covariance."""

    target: Gaussian
    dense: ClassVar[bool] = False

    def covariance(self, variance: Float[Array, "*s modes"]) -> Array:
        return variance

    def variance(self, covariance: Array) -> Float[Array, "*s modes"]:
        return covariance

    def contract(self, factor: Float[Array, " modes"], covariance: Array) -> Array:
        return factor**2 * covariance

    def affine_maps(
        self,
        process: AbstractProcess,
        sampler: AbstractSampler,
        steps: Step,
        error: AffineError | None = None,
    ) -> AffineMaps:
        blocks = jax.tree.map(lambda a: a[:, None], _spectrum(self.target))
        if error is not None:
            count = steps.time.shape[0]
            slope = _by_step(error.slope, count)[..., None, None]
            error = AffineError(slope, _by_step(error.shift, count)[..., None])
        return linearise(sampler, process, steps, _predict(process), blocks, 1, error)

    def response_maps(
        self, process: AbstractProcess, sampler: AbstractSampler, steps: Step
    ) -> AffineMaps:
        """The maps for the exact score with `responses`."""
        blocks = jax.tree.map(lambda a: a[:, None], _spectrum(self.target))
        return linearise(sampler, process, steps, _predict(process), blocks, 1, responses=True)

    def propagate(self, maps: AffineMaps, sampler: AbstractSampler, start: Moments) -> Moments:
        state = initial_state(sampler, start.mean[None], start.covariance[None, None])
        means, covariances = propagate(maps, *state)
        return Moments(means[:, 0], covariances[:, 0, 0])

    def joint_covariance(
        self, maps: AffineMaps, sampler: AbstractSampler, start: Moments
    ) -> Float[Array, "modes modes"]:
        """The covariance at the end of a randomised run, whose steps correlate the modes."""
        state = initial_state(sampler, start.mean[None], start.covariance[None, None])
        return joint_covariance(maps, propagate(maps, *state)[0], state[1])[0, 0]

    def contributions(
        self, metric: str | metrics.Metric, moments: Moments, reference: Moments
    ) -> Float[Array, "*s modes"]:
        return metrics.per_mode(
            metrics.resolve(metric),
            self.target.weights,
            moments.mean - reference.mean,
            moments.covariance,
            reference.covariance,
        )


class Dense(AbstractCoordinates):
    """One covariance matrix over all modes, for what need not commute with the target's."""

    target: Gaussian
    dense: ClassVar[bool] = True

    def covariance(self, variance: Float[Array, " modes"]) -> Array:
        return jnp.diag(variance)

    def variance(self, covariance: Array) -> Float[Array, "*s modes"]:
        return jnp.diagonal(covariance, axis1=-2, axis2=-1)

    def contract(self, factor: Float[Array, " modes"], covariance: Array) -> Array:
        return factor[:, None] * covariance * factor

    def affine_maps(
        self,
        process: AbstractProcess,
        sampler: AbstractSampler,
        steps: Step,
        error: AffineError | None = None,
    ) -> AffineMaps:
        blocks = jax.tree.map(lambda a: a[None], _spectrum(self.target))
        size = self.target.eigenvalues.shape[0]
        if error is not None:
            error = jax.tree.map(
                lambda a: a.reshape(steps.time.shape[0], 1, -1, *a.shape[1:]), error.as_dense()
            )
        return linearise(sampler, process, steps, _predict(process), blocks, size, error)

    def propagate(self, maps: AffineMaps, sampler: AbstractSampler, start: Moments) -> Moments:
        size = start.mean.shape[0]
        state = initial_state(sampler, start.mean[:, None], start.covariance[..., None])
        means, covariances = propagate(maps, *state)
        return Moments(means[:, :size, 0], covariances[:, :size, :size, 0])

    def contributions(
        self, metric: str | metrics.Metric, moments: Moments, reference: Moments
    ) -> Float[Array, " 1"]:
        value = metrics.resolve(metric, dense=True)(
            moments.mean - reference.mean, moments.covariance, reference.covariance
        )
        return value[None]


def _spectrum(target: Gaussian) -> tuple[Array, Array]:
    """What the exact score of a mode is made of."""
    return jnp.asarray(target.mean), jnp.asarray(target.eigenvalues)


def _predict(process: AbstractProcess):
    """The exact denoiser of one block of modes."""

    def predict(block: tuple[Array, Array], x: Array, t: Array) -> Prediction:
        mean, eigenvalues = block
        return gaussian_prediction(process, mean, eigenvalues, None, x, t)

    return predict


def _by_step(
    a: Float[Array, "evaluations modes"], num_steps: int
) -> Float[Array, "steps modes per_step"]:
    """Values per evaluation of a run, sorted by step."""
    return jnp.swapaxes(a.reshape(num_steps, -1, a.shape[-1]), 1, 2)
