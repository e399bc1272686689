"""The distribution that sampling starts from."""

import abc
from functools import partial
from typing import ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._types import AnyArray, constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ._coordinates import AbstractCoordinates, Moments

NAMED_INITIALIZATIONS = ("standard_normal", "marginal")

Initialization: TypeAlias = str | Gaussian | None
"""What a user gives: "standard_normal", "marginal", any Gaussian in data coordinates, or None.

None is the process's own: its prior, or the exact marginal on a sub-range.
"""


@partial(jax.jit, static_argnames="initialization")
def initial_moments(
    target: Gaussian, process: AbstractProcess, start: Float[ArrayLike, ""], initialization: str
) -> tuple[Float[Array, " modes"], Float[Array, " modes"]]:
    """Mean and variance per mode of a named initial distribution at time `start`."""
    if initialization == "marginal":
        return process.signal(start) * target.mean, target.marginal_variance(process, start)
    eigenvalues = jnp.asarray(target.eigenvalues)
    prior = process.prior_variance(start)
    return jnp.zeros_like(eigenvalues), prior * jnp.ones_like(eigenvalues)


class AbstractInitialization(eqx.Module):
    """An initial distribution, as a `Run` holds it."""

    commutes: ClassVar[bool]
    """Whether its covariance is diagonal in the target's eigenbasis, whatever the target."""

    @abc.abstractmethod
    def moments(
        self,
        coordinates: AbstractCoordinates,
        process: AbstractProcess,
        start: Float[ArrayLike, ""],
    ) -> Moments:
        """Mean and covariance in the given coordinates."""


class NamedInitialization(AbstractInitialization):
    """A named one: the process's prior, or the exact marginal at the first time."""

    commutes: ClassVar[bool] = True

    name: str = eqx.field(static=True)

    def moments(
        self,
        coordinates: AbstractCoordinates,
        process: AbstractProcess,
        start: Float[ArrayLike, ""],
    ) -> Moments:
        mean, variance = initial_moments(coordinates.target, process, start, self.name)
        return Moments(mean, coordinates.covariance(variance))


class GaussianInitialization(AbstractInitialization):
    """Any Gaussian: mean and covariance in the target's eigenbasis."""

    commutes: ClassVar[bool] = False

    mean: Float[AnyArray, " modes"]
    covariance: Float[AnyArray, "modes modes"]

    def moments(
        self,
        coordinates: AbstractCoordinates,
        process: AbstractProcess,
        start: Float[ArrayLike, ""],
    ) -> Moments:
        del coordinates, process, start
        return Moments(jnp.asarray(self.mean), jnp.asarray(self.covariance))


def initialization_name(process: AbstractProcess, initialization: object) -> str:
    """The name of an initial distribution, by default that of the process."""
    if initialization is None:
        return process.initialization
    return _checks.one_of("initialization", initialization, NAMED_INITIALIZATIONS)


def check_initialization(
    target: Gaussian, process: AbstractProcess, initialization: object
) -> AbstractInitialization:
    """The initial distribution that a user names or gives, in the eigenbasis of the target."""
    if not isinstance(initialization, Gaussian):
        return NamedInitialization(initialization_name(process, initialization))
    weights = (target.weights, initialization.weights)
    unit = all(np.all(np.asarray(w) == 1) for w in weights)
    if not unit or target.mean.shape != initialization.mean.shape:
        raise ValueError(
            "initialization as a Gaussian needs the target's dimensions and unit weights in both; "
            f"got {initialization.mean.shape[0]} modes for {target.mean.shape[0]}."
        )
    mean, covariance = _in_data_coordinates(initialization)
    if target.basis is not None:
        basis = np.asarray(target.basis)
        mean = basis.T @ mean
        covariance = basis.T @ covariance @ basis
    return GaussianInitialization(constant(mean), constant(covariance))


def _in_data_coordinates(distribution: Gaussian) -> tuple[np.ndarray, np.ndarray]:
    """Mean and dense covariance of a Gaussian."""
    mean = np.asarray(distribution.mean)
    if distribution.basis is None:
        return mean, np.diag(np.asarray(distribution.eigenvalues))
    basis = np.asarray(distribution.basis)
    return mean, (basis * np.asarray(distribution.eigenvalues)) @ basis.T
