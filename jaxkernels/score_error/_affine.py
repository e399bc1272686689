"""An affine error of the score."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import AnyArray


class AffineError(eqx.Module):
    """An affine error of the score, e(x) = -Delta x + delta, along the modes of a target.

    The learned score is the exact one plus e; units are those of a score, 1 / data, so that Delta
    is a precision. The leading axes are usually (directions, evaluations) or (evaluations,).

    **Arguments:**

    - `slope`: Delta, (*lead, modes) for one number per mode, or (*lead, modes, modes) for a matrix.
    - `shift`: delta, (*lead, modes).

    **Example:**

    ```python
    >>> jk.AffineError(jnp.array([0.1, 0.2]), jnp.zeros(2))(jnp.ones(2)).shape
    (2,)
    ```
    """

    slope: Float[AnyArray, "..."]
    shift: Float[AnyArray, "..."]

    @property
    def dense(self) -> bool:
        """Whether the slope is a matrix."""
        return self.slope.ndim > self.shift.ndim

    def __call__(self, x: Float[Array, "*lead modes"]) -> Float[Array, "*lead modes"]:
        """Evaluate the error at x, in coordinates along the modes."""
        moved = jnp.sum(self.slope * x[..., None, :], -1) if self.dense else self.slope * x
        return self.shift - moved

    def as_dense(self) -> "AffineError":
        """Return the same error with a matrix for its slope.

        **Returns:** an `AffineError` with slope (*lead, modes, modes).

        **Example:**

        ```python
        >>> jk.AffineError(jnp.array([0.1, 0.2]), jnp.zeros(2)).as_dense().slope.shape
        (2, 2)
        ```
        """
        if self.dense:
            return self
        identity = jnp.eye(self.slope.shape[-1], dtype=self.slope.dtype)
        return AffineError(self.slope[..., None] * identity, self.shift)
