"""What every data distribution offers: its exact score under a forward process, and draws."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from ..prediction import AbstractDenoiser, Prediction
from ..processes import AbstractProcess


class AbstractDistribution(eqx.Module):
    """A data distribution whose noised marginals p_t have a score in closed form."""

    @abc.abstractmethod
    def predict(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Prediction:
        """E[x0 | x] and E[eps | x] under p_t, x of shape (..., d)."""

    @abc.abstractmethod
    def score(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Float[Array, "... d"]:
        """grad log p_t(x)."""

    @abc.abstractmethod
    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Independent draws."""

    def denoiser(self, process: AbstractProcess) -> "ExactDenoiser":
        """The exact denoiser of this distribution, to be used wherever a network is."""
        return ExactDenoiser(distribution=self, process=process)


class ExactDenoiser(AbstractDenoiser):
    """The exact denoiser of a distribution: what a perfectly trained network would predict."""

    distribution: AbstractDistribution
    process: AbstractProcess

    def __call__(self, x: Float[Array, "... d"], t: Float[ArrayLike, ""]) -> Prediction:
        return self.distribution.predict(self.process, x, t)

    def astype(self, dtype: DTypeLike) -> "ExactDenoiser":
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)
