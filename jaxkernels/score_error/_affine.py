"""An affine error of the score."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import AnyArray


class AffineError(eqx.Module):
    """e(x) = -Delta x + delta, along the modes of a target: `slope` is Delta, `shift` is delta.

    `slope` (*lead, modes) acts mode by mode; (*lead, modes, modes) is a matrix. `shift` (*lead, modes).
    The learned score is the exact one plus e; units are those of a score, 1 / data, so that Delta is a
    precision. The leading axes are usually (directions, evaluations) or (evaluations,).
    """

    slope: Float[AnyArray, "..."]
    shift: Float[AnyArray, "..."]

    @property
    def dense(self) -> bool:
        """Whether the slope is a matrix."""
        return self.slope.ndim > self.shift.ndim

    def __call__(self, x: Float[Array, "*lead modes"]) -> Float[Array, "*lead modes"]:
        moved = jnp.sum(self.slope * x[..., None, :], -1) if self.dense else self.slope * x
        return self.shift - moved

    def as_dense(self) -> "AffineError":
        """The same error with a matrix for its slope."""
        if self.dense:
            return self
        return AffineError(
            self.slope[..., None] * jnp.eye(self.slope.shape[-1], dtype=self.slope.dtype),
            self.shift,
        )
