"""The denoising error of data as a smooth function of the noise level, from some of its values."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._cubic import monotone_slopes, piecewise_cubic
from .._numerics import floored_log, smaller
from .._types import AnyArray, Numbers, constant
from ..distributions import Gaussian


@runtime_checkable
class Measured(Protocol):
    """The denoising error of a network at some times, as a `Measurement` has it."""

    @property
    def signal(self) -> np.ndarray: ...

    @property
    def noise(self) -> np.ndarray: ...

    @property
    def error(self) -> np.ndarray: ...

    @property
    def distribution(self) -> Gaussian | None: ...


class DenoisingCurve(eqx.Module):
    """A denoising error E|X_0 - D|^2 known at some noise levels, increasing and smooth.

    Between the levels it is a cubic in log sigma^2 (Fritsch and Carlson), above them constant,
    below them proportional to a power of sigma^2, at most the first. Its derivative is continuous,
    so that bounds can be optimised, and it increases, as the exact denoiser's error does. Measured
    values are replaced by their running maximum.

    At the levels it is what is given. Between two of them the exact error of the same values there
    may run anywhere from the lower to the upper one. It follows for every step of "ddim" that

        |int (1 - w_1 / w)^2 d(error) by the curve - exactly|  <=  2 max_i (errors_i+1 - errors_i)

    over the intervals that the step from sigma^2 = w_0 to w_1 meets, so that bounds are as good as
    the levels are dense. Below all levels no more is known than that the error is between 0 and its
    smallest value: measure down to the last noise level > 0 of the schedules.

    **Arguments:**

    - `sigmas`: (n,) increasing, > 0. With a single one the curve has a kink there.
    - `errors`: (n,) >= 0, in the data's units squared, summed over dimensions.

    **Raises:** ValueError for a wrong shape, order or sign.

    **Example:**

    ```python
    >>> curve = jk.bounds.DenoisingCurve([0.1, 1.0], [0.02, 1.0])
    >>> round(float(curve(jnp.array(1.0))), 3)
    1.0
    ```

    Source: Fritsch and Carlson, "Monotone Piecewise Cubic Interpolation" (1980),
    https://doi.org/10.1137/0717021; the slopes are harmonic means, as in Fritsch and Butland
    (1984).
    """

    sigmas: Float[AnyArray, " n"]
    errors: Float[AnyArray, " n"]
    slopes: Float[AnyArray, " n"]
    """d(error) / d(log sigma^2) at the levels."""

    def __init__(self, sigmas: Numbers, errors: Numbers):
        sigmas = _checks.array("sigmas", sigmas)
        errors = _checks.array("errors", errors)
        if sigmas.ndim != 1 or sigmas.size == 0 or np.any(np.diff(sigmas) <= 0) or sigmas[0] <= 0:
            raise ValueError("sigmas must be a strictly increasing list of numbers > 0.")
        if errors.shape != sigmas.shape or np.any(errors < 0):
            raise ValueError(
                f"errors must be {sigmas.size} numbers >= 0, one for each of sigmas; got shape "
                f"{errors.shape}."
            )
        errors = np.maximum.accumulate(errors)
        self.sigmas = constant(sigmas)
        self.errors = constant(errors)
        self.slopes = constant(_slopes(2.0 * np.log(sigmas), errors))

    @classmethod
    def of(cls, measurement: Measured) -> "DenoisingCurve":
        """Take the curve from a measurement of a network.

        A network's error is at least the exact denoiser's; bounds from it are as good as it is.

        **Arguments:**

        - `measurement`: a `Measurement` with denoising errors.

        **Returns:** the curve.

        **Example:**

        ```python
        >>> options = {"prediction_type": "x0", "averaged_over": 1}
        >>> losses = jk.Measurement.from_losses(jk.VP(), [0.5, 0.1], [0.3, 0.1], **options)
        >>> assert (jk.bounds.DenoisingCurve.of(losses).errors == [0.1, 0.3]).all()
        ```
        """
        sigmas = np.asarray(measurement.noise) / np.asarray(measurement.signal)
        return cls(sigmas[::-1], np.asarray(measurement.error)[::-1])

    def __call__(self, w: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        """Evaluate the denoising error.

        **Arguments:**

        - `w`: sigma^2 >= 0 of any shape.

        **Returns:** the error, in the data's units squared.
        """
        w = jnp.asarray(w)
        levels, errors, slopes = (
            jnp.asarray(part, w.dtype) for part in (self.sigmas, self.errors, self.slopes)
        )
        levels = 2.0 * jnp.log(levels)
        at = floored_log(w)
        value = piecewise_cubic(at, levels, errors, slopes)
        power = jnp.where(errors[0] > 0, slopes[0] / jnp.where(errors[0] > 0, errors[0], 1.0), 0.0)
        return value * jnp.exp(power * smaller(at - levels[0], 0.0))


def _slopes(levels: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Slopes at the levels, with which the cubics increase.

    0 at the last level, and at the first that of an error proportional to sigma^2 if a monotone
    cubic can have it.
    """
    if levels.size == 1:
        return np.array(errors)
    start = min(errors[0], 3.0 * (errors[1] - errors[0]) / (levels[1] - levels[0]))
    return np.concatenate([[start], monotone_slopes(levels, errors), [0.0]])
