"""Shapes of a score error: how large it is in each mode, at each time."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._types import AnyArray, Numbers, constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ._affine import AffineError


class AbstractProfile(eqx.Module):
    """One or several affine errors as functions of time.

    `any_spectrum` says whether it is defined for every eigenvalue, so that the target's spectrum may be
    replaced by a quadrature.
    """

    any_spectrum: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        """The errors with leading axes (shapes, evaluations), along the modes of the target."""


def _check_modes(error: AffineError, target: Gaussian, what: str) -> AffineError:
    modes = target.eigenvalues.shape[0]
    found = error.shift.shape[-1]
    if found != modes:
        raise ValueError(f"{what} is given for {found} modes; the target has {modes}.")
    return error


class Constant(AbstractProfile):
    """The same at all times. `slope` (shapes, modes) or (shapes, modes, modes), `shift` (shapes, modes)."""

    slope: Float[AnyArray, "shapes modes ..."]
    shift: Float[AnyArray, "shapes modes"]

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        del process
        error = _check_modes(AffineError(self.slope, self.shift), target, "score_error")
        return jax.tree.map(
            lambda a: jnp.repeat(jnp.asarray(a, times.dtype)[:, None], times.shape[0], 1), error
        )


class Uniform(AbstractProfile):
    """The same at all times and in all modes. `slope` and `shift` (shapes,)."""

    slope: Float[AnyArray, " shapes"]
    shift: Float[AnyArray, " shapes"]
    any_spectrum: ClassVar[bool] = True

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        del process
        one = jnp.ones((times.shape[0], target.eigenvalues.shape[0]), times.dtype)
        return AffineError(
            jnp.asarray(self.slope)[:, None, None] * one,
            jnp.asarray(self.shift)[:, None, None] * one,
        )


class Relative(AbstractProfile):
    """The exact score itself: e = -Sigma_t^-1 (x - a mu), so that Delta = Sigma_t^-1 and delta = Sigma_t^-1 a mu.

    Cao et al. (2023) study e = c(t) times the score: this, scaled.
    """

    any_spectrum: ClassVar[bool] = True

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        slope = 1.0 / target.marginal_variance(process, times)
        return AffineError(
            slope[None], (slope * process.signal(times)[:, None] * target.mean)[None]
        )


class Scaled(AbstractProfile):
    """`profile` times `amplitude`, a number or a function of time (applied to the array of times)."""

    profile: AbstractProfile
    factor: Float[AnyArray, ""]
    variation: Callable[[Array], Array] | None = eqx.field(static=True)

    def __init__(self, profile: AbstractProfile, amplitude: Numbers | Callable[[Array], Array]):
        self.profile = profile
        varying = callable(amplitude)
        self.variation = amplitude if varying else None
        self.factor = constant(1.0) if varying else _checks.parameter("amplitude", amplitude)

    @property
    def any_spectrum(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.profile.any_spectrum

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        variation = 1.0 if self.variation is None else self.variation(times)
        amplitude = jnp.broadcast_to(self.factor * variation, times.shape)
        error = self.profile(target, process, times)
        return jax.tree.map(lambda a: a * amplitude.reshape(1, -1, *[1] * (a.ndim - 2)), error)


class Tabulated(AbstractProfile):
    """Known at some times, linear in log sigma between them, and constant beyond the first and last.

    `times` (n,) decreasing; `slope` (shapes, n, modes) or (shapes, n, modes, modes); `shift` (shapes, n, modes).
    """

    times: Float[AnyArray, " n"]
    slope: Float[AnyArray, "shapes n modes ..."]
    shift: Float[AnyArray, "shapes n modes"]

    def __init__(self, times: Numbers, slope: Numbers, shift: Numbers):
        times = _checks.array("times", times)
        slope, shift = _checks.array("slope", slope), _checks.array("shift", shift)
        if times.ndim != 1 or times.size == 0 or np.any(np.diff(times) >= 0):
            raise ValueError(f"times must be a strictly decreasing list; got shape {times.shape}.")
        if shift.ndim != 3 or shift.shape[1] != times.size:
            raise ValueError(
                f"shift has shape {shift.shape}; for {times.size} times it must be (shapes, {times.size}, modes)."
            )
        if slope.shape not in (shift.shape, (*shift.shape, shift.shape[-1])):
            raise ValueError(
                f"slope has shape {slope.shape}; with shift {shift.shape} it must be that or a matrix more."
            )
        self.times, self.slope, self.shift = constant(times), constant(slope), constant(shift)

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        if self.times.shape[0] == 1:
            weights = jnp.ones((times.shape[0], 1), times.dtype)
        else:
            # growing abscissae; hat functions give the weight of every tabulated time
            known, wanted = jnp.log(process.sigma(self.times))[::-1], jnp.log(process.sigma(times))
            hats = jnp.eye(self.times.shape[0], dtype=times.dtype)
            weights = jax.vmap(lambda hat: jnp.interp(wanted, known, hat), out_axes=1)(hats)[
                :, ::-1
            ]
        error = AffineError(
            jnp.einsum("en,rn...->re...", weights, jnp.asarray(self.slope, times.dtype)),
            jnp.einsum("en,rn...->re...", weights, jnp.asarray(self.shift, times.dtype)),
        )
        return _check_modes(error, target, "score_error")
