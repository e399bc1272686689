"""The check that a step of a user-defined sampler is what its moments take it for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._precision import is_traced
from ..distributions import gaussian_prediction
from ..prediction import Prediction
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, check_advanced
from ..schedules import Schedule

# two points far apart, between which a bounded or clipped step bends
_POINTS = ((0.0, 0.0), (3e4, -2e4))
_ROUNDING = 1e-5


def check_elementwise(
    sampler: AbstractSampler, process: AbstractProcess, schedule: Schedule
) -> None:
    """Raise a ValueError for a step that mixes coordinates of x, weighs them differently or bends.

    Moments are propagated per mode of the target, in coordinates that the sampler does not know, by
    the slope of the step. Also for more evaluations than the sampler counts.
    """
    kind = type(sampler)
    own = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    if own or is_traced((sampler, process, schedule)):
        return
    reason = (
        f"sampler: the step of {kind.__name__} must be elementwise with scalar coefficients, the "
        "same for every coordinate of x, for moments per mode"
    )
    try:
        derivative, elsewhere = np.asarray(_differentiate(sampler, process, schedule))
    except TypeError as error:
        raise ValueError(f"{reason}; it cannot be run on x of shape (2,): {error}") from error
    size = np.abs(derivative).max()
    mixed = np.abs(derivative - derivative[0, 0] * np.eye(2)).max()
    # also where it is not a number
    if not mixed <= _ROUNDING * size:
        raise ValueError(f"{reason}; on two coordinates its derivative is {derivative.tolist()}.")
    if not np.abs(elsewhere - derivative).max() <= _ROUNDING * size:
        raise ValueError(
            f"sampler: the step of {kind.__name__} must be affine in x and in what the network "
            f"predicts, for exact moments; its slope is {derivative[0, 0]:g} at x = 0 and "
            f"{elsewhere[0, 0]:g} at x = {_POINTS[1][0]:g}."
        )


@eqx.filter_jit
def _differentiate(
    sampler: AbstractSampler, process: AbstractProcess, schedule: Schedule
) -> Float[Array, "points 2 2"]:
    """The derivative of the first step at `_POINTS` in two coordinates of unit variance."""
    step = jax.tree.map(lambda a: jnp.asarray(a)[0], schedule.steps(sampler.history_steps))
    zeros = jnp.zeros(2)
    evaluated = []

    def predict(x: Array, t: Array) -> Prediction:
        evaluated.append(t)
        return gaussian_prediction(process, zeros, jnp.ones(2), None, x, t)

    def advance(x: Array) -> Array:
        run = (predict, jnp.zeros_like, process, step, x, sampler.init_history(x))
        return check_advanced(sampler, sampler.step(*run))[0]

    derivatives = jax.vmap(jax.jacfwd(advance))(jnp.asarray(_POINTS))
    if len(evaluated) > sampler.nfe_per_step:
        raise ValueError(
            f"sampler: a step of {type(sampler).__name__} evaluates the network {len(evaluated)} "
            f"times, and nfe_per_step = {sampler.nfe_per_step}; it must count every evaluation."
        )
    return derivatives
