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
from .._linalg import matmul
from .._types import AnyArray, Numbers, constant
from ..distributions import AbstractDistribution, Gaussian
from ..processes import AbstractProcess
from ._affine import AffineError


class AbstractProfile(eqx.Module):
    """One or several affine errors as functions of time.

    **Example:**

    ```python
    >>> from jaxkernels.score_error import Relative
    >>> Relative()(jk.Gaussian([0.0, 1.0], [1.0, 0.1]), jk.VP(), jnp.array([0.5])).slope.shape
    (1, 1, 2)
    ```
    """

    any_spectrum: ClassVar[bool] = False
    """Whether it is defined for every eigenvalue, so that a quadrature may replace the spectrum."""

    @property
    def dense(self) -> bool:
        """Whether its slopes are matrices."""
        return False

    @abc.abstractmethod
    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        """Return the errors with leading axes (shapes, evaluations), along the target's modes."""


def _check_modes(error: AffineError, target: Gaussian, what: str) -> AffineError:
    """The error, if it is given for the target's number of modes."""
    modes = target.eigenvalues.shape[0]
    found = error.shift.shape[-1]
    if found != modes:
        raise ValueError(f"{what} is given for {found} modes; the target has {modes}.")
    return error


class Constant(AbstractProfile):
    """The same error at all times.

    **Arguments:**

    - `slope`: (shapes, modes) or (shapes, modes, modes).
    - `shift`: (shapes, modes).

    **Example:**

    ```python
    >>> from jaxkernels.score_error import Constant
    >>> error = jk.ScoreError.deterministic(Constant(np.full((1, 2), 0.1), np.zeros((1, 2))))
    ```
    """

    slope: Float[AnyArray, "shapes modes ..."]
    shift: Float[AnyArray, "shapes modes"]

    @property
    def dense(self) -> bool:
        """Whether its slopes are matrices."""
        return AffineError(self.slope, self.shift).dense

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        del process
        error = _check_modes(AffineError(self.slope, self.shift), target, "score_error")
        count = times.shape[0]
        return jax.tree.map(
            lambda a: jnp.repeat(jnp.asarray(a, times.dtype)[:, None], count, 1), error
        )


class Uniform(AbstractProfile):
    """The same error at all times and in all modes.

    **Arguments:**

    - `slope`: (shapes,).
    - `shift`: (shapes,).

    **Example:**

    ```python
    >>> from jaxkernels.score_error import Uniform
    >>> error = jk.ScoreError.deterministic(Uniform(np.full(1, 0.1), np.zeros(1)))
    ```
    """

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
    """The exact score itself: e = -Sigma_t^-1 (x - a mu), to be scaled.

    Delta = Sigma_t^-1 and delta = Sigma_t^-1 a mu.

    **Example:**

    ```python
    >>> from jaxkernels.score_error import Relative
    >>> error = jk.ScoreError.deterministic(Relative(), 0.05)
    ```

    Source: Cao, Chen, Luo, Zhou, "Exploring the Optimal Choice for Generative Processes in
    Diffusion Models: ODE vs SDE" (2023), who study e = c(t) times the score,
    https://arxiv.org/abs/2306.02063.
    """

    any_spectrum: ClassVar[bool] = True

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        slope = 1.0 / target.marginal_variance(process, times)
        shift = slope * process.signal(times)[:, None] * target.mode_mean
        return AffineError(slope[None], shift[None])


class Guidance(AbstractProfile):
    """What classifier-free guidance adds to the score, per unit of scale above 1.

        e = score of the target - score of the unconditional distribution

    Guidance with scale w samples with s + (w - 1) e in place of the score s of the target, the
    conditional distribution: a score error that is known, and not small. Its amplitude may depend
    on time, as where guidance is limited to an interval. The distribution of the guided samples is
    exact; a schedule for them is optimised from a record of the guided network.

    **Arguments:**

    - `unconditional`: a Gaussian in the coordinates of the target's modes. With a basis it mixes
      these modes.

    **Raises:** ValueError for another distribution or an incomplete basis; when used, for another
    number of modes than the target's.

    **Example:**

    ```python
    >>> from jaxkernels.score_error import Guidance
    >>> guided = jk.ScoreError.deterministic(Guidance(jk.Gaussian(0.0, [2.0, 1.0])), 4.0)  # w = 5
    ```

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022), equation 6,
    https://arxiv.org/abs/2207.12598.
    """

    unconditional: Gaussian

    def __init__(self, unconditional: AbstractDistribution):
        if not isinstance(unconditional, Gaussian):
            name = type(unconditional).__name__
            raise ValueError(f"unconditional must be a Gaussian; got {name}.")
        basis = unconditional.basis
        if basis is not None and basis.shape[0] != basis.shape[1]:
            raise ValueError(
                f"unconditional has a basis of shape {basis.shape}; it must be square."
            )
        self.unconditional = unconditional

    @property
    def dense(self) -> bool:
        """Whether its slopes are matrices."""
        return self.unconditional.basis is not None

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        own = Relative()(target, process, times)
        other = Relative()(self.unconditional, process, times)
        if self.dense:
            basis = jnp.asarray(self.unconditional.basis, times.dtype)
            rotated = jnp.einsum("ik,...k,jk->...ij", basis, other.slope, basis)
            mean = jnp.asarray(self.unconditional.mean, times.dtype)
            shift = process.signal(times)[:, None] * matmul(rotated, mean)
            own = own.as_dense()
            other = AffineError(rotated, shift)
        _check_modes(other, target, "unconditional")
        return jax.tree.map(jnp.subtract, own, other)


class Scaled(AbstractProfile):
    """A profile times an amplitude.

    **Arguments:**

    - `profile`: the profile to scale.
    - `amplitude`: a number, or a function of time that is applied to the array of times.

    **Raises:** ValueError for an amplitude that is neither, or something else than a profile.

    **Example:**

    ```python
    >>> from jaxkernels.score_error import Relative, Scaled
    >>> profile = Scaled(Relative(), lambda t: 0.1 * t)
    ```
    """

    profile: AbstractProfile
    factor: Float[AnyArray, ""]
    variation: Callable[[Array], Array] | None = eqx.field(static=True)

    def __init__(self, profile: AbstractProfile, amplitude: Numbers | Callable[[Array], Array]):
        if not isinstance(profile, AbstractProfile):
            raise ValueError(f"profile must be one such as Relative(); got {profile!r}.")
        self.profile = profile
        varying = callable(amplitude)
        self.variation = amplitude if varying else None
        self.factor = constant(1.0) if varying else _checks.parameter("amplitude", amplitude)

    @property
    def any_spectrum(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the scaled profile is defined for every eigenvalue."""
        return self.profile.any_spectrum

    @property
    def dense(self) -> bool:
        """Whether the slopes of the scaled profile are matrices."""
        return self.profile.dense

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        variation = 1.0 if self.variation is None else self.variation(times)
        amplitude = jnp.broadcast_to(self.factor * variation, times.shape)
        error = self.profile(target, process, times)
        return jax.tree.map(lambda a: a * amplitude.reshape(1, -1, *[1] * (a.ndim - 2)), error)


class Tabulated(AbstractProfile):
    """An error known at some times, linear in log sigma between them and constant beyond them.

    **Arguments:**

    - `times`: (n,) strictly decreasing.
    - `slope`: (shapes, n, modes) or (shapes, n, modes, modes).
    - `shift`: (shapes, n, modes).

    **Raises:** ValueError naming the argument of a wrong shape or order.

    **Example:**

    ```python
    >>> from jaxkernels.score_error import Tabulated
    >>> profile = Tabulated([0.5, 0.1], np.full((1, 2, 3), 0.1), np.zeros((1, 2, 3)))
    ```
    """

    times: Float[AnyArray, " n"]
    slope: Float[AnyArray, "shapes n modes ..."]
    shift: Float[AnyArray, "shapes n modes"]

    @property
    def dense(self) -> bool:
        """Whether its slopes are matrices."""
        return AffineError(self.slope, self.shift).dense

    def __init__(self, times: Numbers, slope: Numbers, shift: Numbers):
        times = _checks.array("times", times)
        slope = _checks.array("slope", slope)
        shift = _checks.array("shift", shift)
        if times.ndim != 1 or times.size == 0 or np.any(np.diff(times) >= 0):
            raise ValueError(f"times must be a strictly decreasing list; got shape {times.shape}.")
        if shift.ndim != 3 or shift.shape[1] != times.size:
            raise ValueError(
                f"shift has shape {shift.shape}; for {times.size} times it must be "
                f"(shapes, {times.size}, modes)."
            )
        if slope.shape not in (shift.shape, (*shift.shape, shift.shape[-1])):
            raise ValueError(
                f"slope has shape {slope.shape}; with shift {shift.shape} it must be that or a "
                "matrix more."
            )
        self.times = constant(times)
        self.slope = constant(slope)
        self.shift = constant(shift)

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        weights = self._interpolation(process, times)
        error = AffineError(
            jnp.einsum("en,rn...->re...", weights, jnp.asarray(self.slope, times.dtype)),
            jnp.einsum("en,rn...->re...", weights, jnp.asarray(self.shift, times.dtype)),
        )
        return _check_modes(error, target, "score_error")

    def _interpolation(
        self, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> Float[Array, "evaluations n"]:
        """The weight of every tabulated time at every evaluation."""
        count = self.times.shape[0]
        if count == 1:
            return jnp.ones((times.shape[0], 1), times.dtype)
        # increasing abscissae; hat functions give the weights
        known = jnp.log(process.sigma(self.times))[::-1]
        wanted = jnp.log(process.sigma(times))
        hats = jnp.eye(count, dtype=times.dtype)
        weights = jax.vmap(lambda hat: jnp.interp(wanted, known, hat), out_axes=1)(hats)
        return weights[:, ::-1]
