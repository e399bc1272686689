"""The check that a user-defined sampler treats the coordinates of x alike."""

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


def check_elementwise(
    sampler: AbstractSampler, process: AbstractProcess, schedule: Schedule
) -> None:
    """Raise a ValueError for a step that mixes coordinates of x or weighs them differently.

    Moments are propagated per mode of the target, in coordinates that the sampler does not know.
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
        derivative = np.asarray(_differentiate(sampler, process, schedule))
    except TypeError as error:
        raise ValueError(f"{reason}; it cannot be run on x of shape (2,): {error}") from error
    size = np.abs(derivative).max()
    mixed = np.abs(derivative - derivative[0, 0] * np.eye(2)).max()
    if mixed > 1e-5 * size:
        raise ValueError(f"{reason}; on two coordinates its derivative is {derivative.tolist()}.")


@eqx.filter_jit
def _differentiate(
    sampler: AbstractSampler, process: AbstractProcess, schedule: Schedule
) -> Float[Array, "2 2"]:
    """The derivative of the first step at x = 0 in two coordinates of unit variance."""
    step = jax.tree.map(lambda a: jnp.asarray(a)[0], schedule.steps(sampler.history_steps))
    zeros = jnp.zeros(2)

    def predict(x: Array, t: Array) -> Prediction:
        return gaussian_prediction(process, zeros, jnp.ones(2), None, x, t)

    def advance(x: Array) -> Array:
        run = (predict, jnp.zeros_like, process, step, x, sampler.init_history(x))
        return check_advanced(sampler, sampler.step(*run))[0]

    return jax.jacfwd(advance)(zeros)
