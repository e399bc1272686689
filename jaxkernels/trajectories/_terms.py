"""The local error of a step as a combination of what is recorded.

A sampler with one evaluation per step is linear in the denoised points D and the noise eps of the
trajectory, so that its local error is a sum of terms A(t_end) . D(t_j) and A(t_end) . eps(t_j), A
being a sensitivity of the end point.

One of order 2 with two evaluations makes the second at a time m, off the trajectory by delta. To
first order this adds A(t_end) . J(m) delta, J being the Jacobian of the denoiser (see
`two_evaluation_coefficients`). With y = x / a, A_y = a A and lambda = log(sigma) the equation of
the sensitivities,

    J^T A_y = A_y + dA_y / dlambda,                                                           (1)

gives it at one time without another evaluation. The two times are m and t_end here. J(m)^T
A_y(t_end) is taken to be (1) at lambda(m) + (lambda(t_end) - lambda(m)) / 3: for linear denoisers
J^T A_y changes three times as fast when both times move as when that of A_y does, so that only
terms of second order are left out; for others, of first. As delta = O(h^2), they are below the
leading term of the local error, O(h^3). Terms in the second derivative of the denoiser are O(h^5),
which is the local error of a method of order 4: such methods are refused.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ..processes import AbstractProcess
from ..recurrence import (
    local_error_coefficients,
    starts_on_trajectory,
    two_evaluation_coefficients,
)
from ..samplers import AbstractSampler, as_sampler
from ..schedules import TimeCoordinate


class LocalErrorTerms(NamedTuple):
    """A local error as a sum over terms, in units of the process of a step.

        (value + slope d/du) A(row) . (D, eps)(column)

    with coordinates u of a record.
    """

    rows: Float[Array, " terms"]
    columns: Float[Array, " terms"]
    value: Float[Array, "terms 2"]
    slope: Float[Array, "terms 2"] | None = None


def local_error_terms(
    coordinate: TimeCoordinate,
    process: AbstractProcess,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    step: Int[Array, ""],
    num_steps: int | Int[Array, ""],
    scale: ArrayLike = 1.0,
) -> LocalErrorTerms:
    """The local error of a window's last step.

    **Arguments:**

    - `coordinate`: that of the record.
    - `process`, `sampler`: of the steps; the process has the record's sigma, maybe at other times.
    - `times`: of the window, in the process.
    - `step`, `num_steps`: number of the window's last step, and of all.
    - `scale`: x of the record's process over x of `process`, at the end of the window.

    **Returns:** the terms, in units of the record's process.
    """
    run = (process, sampler, times, step, num_steps)
    if sampler.nfe_per_step == 1:
        u = _places(coordinate, process, times)
        rows = jnp.broadcast_to(u[-1], u.shape)
        coefficients = local_error_coefficients(*run)
        terms = LocalErrorTerms(rows, u, coefficients[0] * scale)
        if not sampler.corrects:
            return terms
        responses = coefficients[1:] / process.signal(times[-1])
        return _with_responses(coordinate, terms, responses, step)
    middle, error, response = two_evaluation_coefficients(*run)
    u = _places(coordinate, process, jnp.stack([times[0], middle, times[1]]))
    # a step to sigma = 0 has one evaluation
    finite = jnp.isfinite(u[2])
    row = _row_between(u[1], jnp.where(finite, u[2], u[1]))
    value, slope = _pulled_back(coordinate, row)
    # A = A_y / a at the end
    response = response / process.signal(times[1])
    return LocalErrorTerms(
        rows=jnp.stack([u[2], u[2], u[2], row, row]),
        columns=jnp.concatenate([u, u[:2]]),
        value=jnp.concatenate([error * scale, value * response]),
        slope=jnp.concatenate([jnp.zeros_like(error), slope * response]),
    )


def _with_responses(
    coordinate: TimeCoordinate,
    terms: LocalErrorTerms,
    responses: Float[Array, "evaluations window 2"],
    step: Int[Array, ""],
) -> LocalErrorTerms:
    """The terms of a corrected point, with those of all its evaluations.

    At sigma = 0 there is no evaluation. Earlier ones are then pulled back by half of the derivative
    in (1): for linear denoisers, right to first order in sigma^2.
    """
    count = len(responses)
    u = terms.columns
    finite = jnp.isfinite(u[-1])
    end = jnp.where(finite, u[-1], u[-2])
    share = jnp.where(finite, 1.0, 0.5)
    # what was predicted depends on as many evaluations as what was corrected
    at = np.arange(len(u) - count, len(u)) - np.arange(count)[:, None]
    # nothing is predicted before the first step
    back = np.arange(count)
    places = jnp.where(step >= back, u[at[:, -1]], end).at[0].set(end)
    rows = _row_between(places, end)
    # by their number from the end, and of those places
    own = responses[::-1][back[:, None], at]
    factors = [f[:, None, None] * own for f in _pulled_back(coordinate, rows, share)]
    value, slope = (f.reshape(-1, 2) for f in factors)
    recent = terms.value[-count:]
    return LocalErrorTerms(
        rows=jnp.concatenate([terms.rows[-count:], jnp.repeat(rows, count)]),
        columns=jnp.concatenate([u[-count:], u[at].reshape(-1)]),
        value=jnp.concatenate([recent, value]),
        slope=jnp.concatenate([jnp.zeros_like(recent), slope]),
    )


def _row_between(middle: Float[Array, "*s"], end: Float[Array, ""]) -> Float[Array, "*s"]:
    """Where (1) is taken for an evaluation at one time and sensitivities at another."""
    return middle + (end - middle) / 3.0


def _places(
    coordinate: TimeCoordinate, process: AbstractProcess, times: Float[Array, " points"]
) -> Float[Array, " points"]:
    """The record's coordinates of times of a process of the same sigma; -inf at sigma = 0."""
    a = process.signal(times)
    s = process.noise(times)
    ratio = (s + coordinate.low * a) / (a + s / coordinate.high)
    # without derivatives at 0, where times do not move
    return jnp.where(ratio > 0, jnp.log(jnp.where(ratio > 0, ratio, 1.0)), -jnp.inf)


def _pulled_back(
    coordinate: TimeCoordinate, u: Float[Array, "*s"], share: ArrayLike = 1.0
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Factors of A and dA/du in A_y + share dA_y/dlambda, which is (1), for A_y = a A."""
    process = coordinate.process
    t = coordinate.time(u)
    a = process.signal(t)
    a_rate = process.signal_rate(t)
    rate = process.noise_rate(t) / process.noise(t) - a_rate / a
    sigma = process.sigma(t)
    u_rate = sigma / (sigma + coordinate.low) - sigma / (sigma + coordinate.high)
    share = jnp.asarray(share)
    return a + share * a_rate / rate, share * a * u_rate


def check_sampler(sampler: AbstractSampler | str) -> AbstractSampler:
    """A sampler whose errors a record predicts."""
    sampler = as_sampler(sampler)
    reason = unpredictable(sampler)
    if reason:
        raise ValueError(f"{type(sampler).__name__} {reason}.")
    return sampler


def unpredictable(sampler: AbstractSampler) -> str:
    """Why a record does not predict the errors of a sampler; empty if it does.

    **Arguments:**

    - `sampler`: the sampler.

    **Returns:** the end of a sentence.
    """
    count = sampler.nfe_per_step
    if sampler.reverse_sde_only:
        return "is for the reverse SDE alone; a record is of deterministic trajectories"
    if count > 2 or (count == 2 and (sampler.order > 2 or sampler.history_steps)):
        return (
            f"evaluates the network {count} times per step for an order of {sampler.order}; a "
            "record predicts samplers with one evaluation per step, and without history those of "
            "order 2 with two: what it leaves out of others is as large as their local errors"
        )
    if not starts_on_trajectory(sampler):
        return (
            "evaluates the network at another time than that of x; a record predicts samplers "
            "whose first evaluation is at the start of a step"
        )
    return ""
