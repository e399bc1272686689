"""The window of a step: the times it depends on, and its local error on an exact trajectory.

A step of a multistep sampler depends on the times of the steps before. With h = `history_steps`,
the window of step k holds the times t_{k-h}, ..., t_{k+1}. Before the first step it repeats the
first time, and the history stays as it is at the start.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._numerics import safe_divide, safe_sqrt
from ..distributions import Gaussian
from ..prediction import Predict, Prediction
from ..processes import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Step


def window_indices(
    num_steps: int, history_steps: int
) -> tuple[Int[np.ndarray, "steps window"], Int[np.ndarray, "steps window_steps"]]:
    """Indices into times (K, h + 2) and into steps (K, h + 1) of the window of every step."""
    points = np.arange(num_steps)[:, None] - history_steps + np.arange(history_steps + 2)
    return np.maximum(points, 0), np.maximum(points[:, :-1], 0)


def window_step(
    times: Float[Array, " window"],
    stochasticity_squared: Float[Array, " window_steps"],
    first: Int[Array, ""],
    j: int,
    num_steps: int | Int[Array, ""],
) -> Step:
    """Step j of a window whose own first step has number `first`, negative before the schedule."""
    index = first + j
    return Step(
        time=times[j],
        next_time=times[j + 1],
        earlier_times=times[np.maximum(np.arange(j - 1, j - len(times) + 1, -1), 0)],
        stochasticity_squared=stochasticity_squared[j],
        completed=index,
        remaining=num_steps - 1 - index,
    )


def local_error_coefficients(
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    step: Int[Array, ""],
    num_steps: int | Int[Array, ""],
) -> Float[Array, "window 2"]:
    """Local error of a deterministic step from an exact trajectory, in terms of that trajectory.

        x_after - x(t_end) = sum_j c_j0 D(t_j) + c_j1 eps(t_j)
                    x(t_j) = a(t_j) D(t_j) + s(t_j) eps(t_j)

    with D the denoised point and eps the noise that the trajectory's own denoiser predicts. The
    earlier steps of the window fill the history; x is put back onto the trajectory after each.

    A sampler with one evaluation per step is linear in all D and eps, so it is run on unit vectors:
    one call per step of the window, on arrays of 2 (h + 2) numbers, whatever the target.
    """
    depth = sampler.history_steps
    units = jnp.eye(2 * len(times), dtype=times.dtype).reshape(len(times), 2, -1)
    exact = [process.signal(t) * d + process.noise(t) * e for t, (d, e) in zip(times, units)]
    still = jnp.zeros(depth + 1, times.dtype)
    history = sampler.init_history(exact[0])
    after = exact[0]
    for j in range(depth + 1):
        current = window_step(times, still, step - depth, j, num_steps)
        predict = _on_trajectory(units[j])
        after, new = sampler.step(predict, jnp.zeros_like, process, current, exact[j], history)
        inside = step - depth + j >= 0
        history = jax.tree.map(lambda a, b, inside=inside: jnp.where(inside, a, b), new, history)
    return (after - exact[-1]).reshape(len(times), 2)


def flow_values(
    target: Gaussian, process: AbstractProcess, times: Float[Array, " points"]
) -> tuple[Float[Array, "points 2 modes"], Float[Array, "points modes"]]:
    """D, eps and x - E x of a trajectory of the probability flow, per unit of its xi.

    A mode of variance lambda is x = a mu + sqrt(S) xi, S = a^2 lambda + s^2, with the same xi at
    all times; its denoiser gives mu + a lambda xi / sqrt(S) and s xi / sqrt(S).
    """
    a = process.signal(times)[:, None]
    s = process.noise(times)[:, None]
    eigenvalues = jnp.asarray(target.eigenvalues)
    deviation = safe_sqrt(a**2 * eigenvalues + s**2)
    predicted = jnp.stack([a * eigenvalues, jnp.broadcast_to(s, deviation.shape)], axis=1)
    return safe_divide(predicted, deviation[:, None]), deviation


def _on_trajectory(unit: Float[Array, "2 space"]) -> Predict:
    def predict(x: Array, t: Array) -> Prediction:
        del x, t  # the start of the step, on the trajectory
        return Prediction(*unit)

    return predict
