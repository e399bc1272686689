"""Bounds on the curvature of the log-density along a process."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .. import _checks
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..processes import AbstractProcess


@in_float64
def hessian_interval(
    process: AbstractProcess, t: Real[ArrayLike, "*s"], *, convexity: Numbers, smoothness: Numbers
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Bound the eigenvalues of Hess log p_t, everywhere, from m I <= -Hess log p_0 <= L I.

        -1 / (a^2 / L + s^2)  <=  Hess log p_t  <=  -1 / (a^2 / m + s^2)

    The upper bound is infinite (says nothing) where m < 0 and s^2 >= a^2 / |m|. Both are exact for
    normal distributions. They follow from s^2 Hess log p_t = (a/s)^2 Cov(X_0 | x) - I with the
    Cramér-Rao and the Brascamp-Lieb bound on the covariance; p_0 needs a twice differentiable
    positive density.

    **Arguments:**

    - `process`: the forward process.
    - `t`: times, any shape.
    - `convexity`: m, of either sign, at most `smoothness`, in 1 / variance.
    - `smoothness`: L > 0, in 1 / variance.

    **Returns:** the lower and the upper bound at every time, in 1 / variance.

    **Raises:** ValueError for constants out of range.

    **Example:**

    ```python
    >>> low, high = jk.bounds.hessian_interval(jk.VP(), 0.5, convexity=0.5, smoothness=4.0)
    >>> assert low < high < 0
    ```
    """
    smoothness = _checks.parameter("smoothness", smoothness, above=0.0)
    most = np.inf if is_traced(smoothness) else float(smoothness)
    convexity = _checks.parameter("convexity", convexity, at_most=most)
    a2 = process.signal(t) ** 2
    s2 = process.noise(t) ** 2
    known = a2 + convexity * s2 > 0
    upper = -convexity / jnp.where(known, a2 + convexity * s2, 1.0)
    return -smoothness / (a2 + smoothness * s2), jnp.where(known, upper, jnp.inf)
