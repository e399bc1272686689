"""What every data distribution offers: its exact score under a forward process, and samples."""

import abc

import equinox as eqx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._precision import to_dtype, working_dtype
from ..prediction import AbstractDenoiser, Prediction
from ..processes import AbstractProcess


class AbstractDistribution(eqx.Module):
    """A data distribution whose noised marginals p_t have a score in closed form."""

    @abc.abstractmethod
    def predict(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Prediction:
        """Split a noisy point into E[X_0 | x] and E[Z | x] under p_t.

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** the `Prediction`, in the shape of x.
        """

    @abc.abstractmethod
    def score(
        self, process: AbstractProcess, x: Float[Array, "... d"], t: Float[ArrayLike, ""]
    ) -> Float[Array, "... d"]:
        """Evaluate grad log p_t(x).

        **Arguments:**

        - `process`: the forward process.
        - `x`: points (..., d).
        - `t`: a scalar time.

        **Returns:** the score, in the shape of x.
        """

    @abc.abstractmethod
    def sample(self, key: Array, num: int) -> Float[Array, "num d"]:
        """Draw independent samples.

        **Arguments:**

        - `key`: a random key.
        - `num`: number of samples, >= 0.

        **Returns:** samples (num, d).

        **Raises:** ValueError for another `key` or `num`.
        """

    def denoiser(self, process: AbstractProcess) -> "ExactDenoiser":
        """Make the exact denoiser of this distribution, to be used wherever a network is.

        **Arguments:**

        - `process`: the forward process.

        **Returns:** a denoiser; `denoiser(x, t)` is a `Prediction(x0, eps)`.

        **Example:**

        ```python
        >>> denoiser = jk.Gaussian(0.0, [1.0, 0.1]).denoiser(jk.VP())
        >>> denoiser(jnp.ones(2), 0.5).x0.shape
        (2,)
        ```
        """
        return ExactDenoiser(distribution=self, process=process)


class ExactDenoiser(AbstractDenoiser):
    """The exact denoiser of a distribution: what a perfectly trained network would predict."""

    distribution: AbstractDistribution
    process: AbstractProcess

    def __repr__(self) -> str:
        return f"{self.distribution!r}.denoiser({self.process!r})"

    def __call__(self, x: Float[Array, "... d"], t: Float[ArrayLike, ""]) -> Prediction:
        return self.distribution.predict(self.process, x, t)

    def astype(self, dtype: DTypeLike) -> "ExactDenoiser":
        return to_dtype(self, working_dtype(dtype))
