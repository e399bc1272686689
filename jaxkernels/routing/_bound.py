"""Bounds on the error of samplers that follow one expert per step, for any schedule and process.

Let e_k be the distance of a sampler that draws its expert in every step from the flow, started at
the same point. Experts share the part of the velocity that is linear in x, so that what the draw
adds has mean 0 and a variance that does not grow with x. Then

    sqrt(E |e_k|^2) <= a_k + b_k,                                                            (1)
    a_{k+1} = gamma_k a_k + delta_k + local_k,        b_{k+1}^2 = gamma_k^2 b_k^2 + V_k^2,    (2)

with gamma_k the Lipschitz constant of the step with exact experts, delta_k what inexact experts and
router add, local_k the step's own local error, V_k the standard deviation of the draw, and
a_0 = b_0 = 0. Proof: with q = delta_k + local_k, the mean of the step's error is at most
gamma |e| + q, and (gamma (a + b) + q)^2 + V^2 <= (gamma a + q + sqrt(gamma^2 b^2 + V^2))^2.
Without a draw (all experts in every step) V = 0.

With lambda = a/s, u the end of a step from t and h = t - u:

                    gamma                                      factor of delta and V    local error
    Euler method    max( |1 - h c|, |1 + h growth| )           h |b|                    (3)
    DDIM            s_u / s_t + B a_t R^2 / s_t^2              B = a_u - a_t s_u / s_t  (4)

    int_u^t (r - u) |dv/dr| dr   (3),        s_u int_u^t (lambda_u - lambda_r) |dm/dr| dr   (4)

where c, b and the bounds on the derivatives are those of `Regularity`. As b = s dlambda/dt, the
bound on |dm/dr| is a polynomial in lambda times |dlambda/dr|, so that (4) has the closed form

    s_u R^2 ( (|x_T| / s_T + R (lambda_t - lambda_T) + (35/27) R lambda_t) D^2 / 2
              + (62/27) R D^3 / 6 ),        D = lambda_u - lambda_t,                         (5)

with lambda_T and s_T at the start of the schedule. (3) is integrated over panels in log r: signal
and noise may change by orders of magnitude within a step towards the data, as powers of r.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._numerics import larger, safe_sqrt, smaller
from .._precision import in_float64, is_traced
from .._quadrature import gauss_legendre, mean_from_above
from .._types import Numbers
from ..processes import AbstractProcess, check_continuous_rates, check_process
from ..samplers import DDIM, AbstractSampler, EulerMaruyama, as_sampler, check_schedule
from ..schedules import Schedule
from ._regularity import COVARIANCE_FACTOR, Regularity, trajectory_norm

# of Gauss-Legendre quadrature of (3) over a step
_PANELS = 16
_NODES = 12


class RoutingBound(eqx.Module):
    """A bound on the root mean square distance of a sampler from the flow, after every step.

    **Arguments:**

    - `drift`: (K+1,), a_k, local errors and errors of experts and router.
    - `noise`: (K+1,), b_k, what drawing experts causes.

    **Example:**

    ```python
    >>> schedule = jk.schedules.uniform(jk.FlowMatching(), 40, 0.5)
    >>> run = (jk.FlowMatching(), "ddim", schedule)
    >>> bound = jk.routing.routing_bound(*run, radius=1.0, norm=1.0, num_experts=2)
    ```
    """

    drift: Float[Array, " points"]
    noise: Float[Array, " points"]

    @property
    def value(self) -> Float[Array, ""]:
        """a_K + b_K, in units of the data."""
        return self.drift[-1] + self.noise[-1]


@in_float64
def routing_bound(
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    radius: Numbers,
    norm: Numbers,
    num_experts: int,
    routing_error: Numbers = 0.0,
    expert_error: Numbers = 0.0,
    switching: bool = True,
) -> RoutingBound:
    """Bound the distance between a sampler with experts and the flow from the same initial noise.

        sqrt(E |x_K - x(t_K)|^2) <= a_K + b_K

    with the recursion of `RoutingBound`. It holds for data in a ball, for every router and experts
    within the stated errors, and for any schedule. For initial noise of norm `norm` it bounds the
    error given that noise; for random noise of root mean square norm `norm` the error over it, and
    then W2 between the samples and the flow's end points too.

    **Arguments:**

    - `process`: the forward process; for "euler_maruyama" not DiscreteVP, whose rates jump.
    - `sampler`: "euler_maruyama" or "ddim", without stochasticity.
    - `schedule`: its last time must have noise.
    - `radius`: R > 0: all data have norm at most R, and so have the experts' exact denoised points.
    - `norm`: norm of the initial noise, or its root mean square: sqrt(d) s(t_0) for normal noise.
    - `num_experts`: number N >= 1 of experts; nothing is drawn from one.
    - `routing_error`: largest error of any routing weight, in [0, 1], at any x and t.
    - `expert_error`: largest error of an expert's denoised point, >= 0, at any x and t.
    - `switching`: False for all experts in every step.

    **Returns:** the bound.

    **Raises:** ValueError for another sampler, a process that it does not follow, stochasticity, a
    last time without noise, or an argument out of range.

    **Example:**

    ```python
    >>> schedule = jk.schedules.uniform(jk.FlowMatching(), 40, 0.5)
    >>> run = (jk.FlowMatching(), "ddim", schedule)
    >>> bound = jk.routing.routing_bound(*run, radius=1.0, norm=1.0, num_experts=2)
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), Theorems 6 and 8: for any schedule and process, with
    local in place of uniform constants and without losses of Young's inequality.
    """
    run = _prepare(
        process, sampler, schedule, radius, norm, num_experts, routing_error, expert_error
    )
    drawn = switching and num_experts > 1
    deviation = run.steps.factor * run.size if drawn else jnp.zeros_like(run.steps.factor)
    return _recursion(run.steps.growth, run.added, deviation)


@in_float64
def feedback_bound(
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    radius: Numbers,
    norm: Numbers,
    num_experts: int,
    routing_error: Numbers = 0.0,
    expert_error: Numbers = 0.0,
) -> RoutingBound:
    """Bound the distance between a sampler with `ErrorFeedback` and the flow.

        |w_{k+1}| <= gamma_k |w_k| + (|1 - keep_k| + f_k L_k) q_k + |f_k - f_{k-1}| B R
                     + f_{k-1} B |m_i(x_k, t_k) - m_i(x_{k-1}, t_{k-1})| + delta_k + local_k,
        |e_k| <= |w_k| + q_k,     q_k = f_{k-1} B R,     B = 2 (N - 1)^2 / N

    with keep and f the step's factors of x and of the denoised point, and L_k the Lipschitz
    constant of the latter. Proof: the debts D_k of the experts add up to 0 and are at least
    -(1 - 1/N), so that sum |D| <= B. What step k adds is f_k M_k (D_k - D_{k+1}), M_k the experts'
    denoised points: summed by parts, debts are multiplied by differences of f M between steps only.
    Every term is of order h^2, so that the distance is of order h, as with all experts. There is no
    randomness: the bound holds for every sample.

    **Arguments:**

    - `process`, `sampler`, `schedule`, `radius`, `norm`, `num_experts`, `routing_error`,
      `expert_error`: as for `routing_bound`.

    **Returns:** the bound, all of it in `drift`.

    **Raises:** ValueError as `routing_bound`.

    **Example:**

    ```python
    >>> schedule = jk.schedules.uniform(jk.FlowMatching(), 40, 0.5)
    >>> run = (jk.FlowMatching(), "ddim", schedule)
    >>> bound = jk.routing.feedback_bound(*run, radius=1.0, norm=1.0, num_experts=2)
    ```
    """
    run = _prepare(
        process, sampler, schedule, radius, norm, num_experts, routing_error, expert_error
    )
    steps = run.steps
    times = run.times
    debt = 2.0 * (num_experts - 1) ** 2 / num_experts
    before = jnp.concatenate([jnp.zeros(1, times.dtype), steps.factor[:-1]])
    owed = before * debt * run.size
    norms = _iterate_norms(steps, run.norm, run.size)
    moved = jnp.abs(1.0 - steps.keep) * norms + steps.factor * run.size
    turned = _turned_at_rest(check_process(process), times, norms, run.start.radius)
    # from the start of the step before to the start of this one; before the first nothing is owed
    lipschitz = run.start.denoiser_lipschitz
    changed = smaller(2.0 * run.start.radius, lipschitz[1:] * moved[:-1] + turned[:-1])
    # inexact experts need not vary smoothly
    changed = changed + 2.0 * (run.size - run.start.radius)
    changed = jnp.concatenate([jnp.zeros(1, times.dtype), changed])
    later = jnp.where(before > 0, jnp.abs(steps.factor - before), 0.0)
    added = run.added + (jnp.abs(1.0 - steps.keep) + steps.factor * lipschitz) * owed
    added = added + debt * (later * run.size + before * changed)
    found = _recursion(steps.growth, added, jnp.zeros_like(added))
    ends = jnp.concatenate([owed, (steps.factor[-1] * debt * run.size)[None]])
    return RoutingBound(found.drift + ends, found.noise)


class _Steps(NamedTuple):
    """What the bounds need of every step."""

    keep: Float[Array, " steps"]
    """Factor of x."""
    factor: Float[Array, " steps"]
    """Size of the factor of the denoised point."""
    growth: Float[Array, " steps"]
    local: Float[Array, " steps"]


class _Prepared(NamedTuple):
    """Checked arguments, and what follows from them."""

    times: Float[Array, " points"]
    start: Regularity
    steps: _Steps
    added: Float[Array, " steps"]
    """What inexact experts and router add, and local errors."""
    norm: Float[Array, ""]
    size: Float[Array, ""]
    """A bound on the norm of an inexact expert's denoised point."""


def _prepare(
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    radius: Numbers,
    norm: Numbers,
    num_experts: int,
    routing_error: Numbers,
    expert_error: Numbers,
) -> _Prepared:
    """The steps of a run that the bounds cover."""
    process = check_process(process)
    sampler = as_sampler(sampler)
    schedule = check_schedule(process, sampler, schedule)
    _check_run(process, sampler, schedule)
    num_experts = _checks.count("num_experts", num_experts)
    radius = _checks.parameter("radius", radius, above=0.0)
    norm = _checks.parameter("norm", norm, at_least=0.0)
    routing_error = _checks.parameter("routing_error", routing_error, at_least=0.0, at_most=1.0)
    expert_error = _checks.parameter("expert_error", expert_error, at_least=0.0)
    times = jnp.asarray(schedule.times)
    start = Regularity(process, times[:-1], radius)
    make = _euler if isinstance(sampler, EulerMaruyama) else _ddim
    steps = make(process, times, start, norm)
    # both are proportional to |b|, which is divided out
    unit = steps.factor / start.denoised
    added = unit * start.field_error(num_experts, routing_error, expert_error) + steps.local
    size = jnp.asarray(radius + expert_error)
    return _Prepared(times, start, steps, added, jnp.asarray(norm), size)


def _euler(
    process: AbstractProcess, times: Float[Array, " points"], start: Regularity, norm: ArrayLike
) -> _Steps:
    """Steps of Euler's method."""
    h = times[:-1] - times[1:]
    keep = 1.0 - h * start.linear
    growth = larger(jnp.abs(keep), jnp.abs(1.0 + h * start.velocity_growth))

    def integrand(r: Array, u: Array) -> Array:
        along = trajectory_norm(process, r, times[0], norm, start.radius)
        return (r - u) * Regularity(process, r, start.radius).velocity_rate(along)

    return _Steps(keep, h * start.denoised, growth, _over_steps(integrand, times))


def _ddim(
    process: AbstractProcess, times: Float[Array, " points"], start: Regularity, norm: ArrayLike
) -> _Steps:
    """Steps of DDIM."""
    keep = process.noise(times[1:]) / start.noise
    factor = process.signal(times[1:]) - start.signal * keep

    growth = keep + factor * start.denoiser_lipschitz
    return _Steps(keep, factor, growth, _ddim_local(process, times, norm, start.radius))


def _ddim_local(
    process: AbstractProcess, times: Float[Array, " points"], norm: ArrayLike, radius: ArrayLike
) -> Float[Array, " steps"]:
    """(5) of the module."""
    ratio = process.signal(times) / process.noise(times)
    before = ratio[:-1]
    ahead = ratio[1:] - before
    radius = jnp.asarray(radius)
    skew = (1.0 + COVARIANCE_FACTOR) * radius
    here = norm / process.noise(times[0]) + radius * (before - ratio[0]) + skew * before
    whole = 0.5 * here * ahead**2 + (radius + skew) * ahead**3 / 6.0
    return process.noise(times[1:]) * radius**2 * whole


def _turned_at_rest(
    process: AbstractProcess,
    times: Float[Array, " points"],
    norms: Float[Array, " steps"],
    radius: ArrayLike,
) -> Float[Array, " steps"]:
    """Integrals of `Regularity.mean_rate_at_rest` over every step, at points of given norms.

        R^2 |x| (a_u / s_u^2 - a_t / s_t^2) + (8/27) R^3 (lambda_u^2 - lambda_t^2) / 2

    because |b - a c| / s^2 and a |b| / s^2 are the rates of -a / s^2 and -lambda^2 / 2.
    """
    a = process.signal(times)
    s = process.noise(times)
    pulled = a / s**2
    square = (a / s) ** 2
    radius = jnp.asarray(radius)
    skew = COVARIANCE_FACTOR * radius**3 * (square[1:] - square[:-1]) / 2.0
    return radius**2 * norms * (pulled[1:] - pulled[:-1]) + skew


def _iterate_norms(steps: _Steps, norm: ArrayLike, size: ArrayLike) -> Float[Array, " steps"]:
    """Bounds on the norm of the sampler's own points at the start of every step."""

    def step(
        before: Float[Array, ""], here: tuple[Array, Array]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        keep, factor = here
        return jnp.abs(keep) * before + factor * size, before

    first = jnp.asarray(norm, steps.keep.dtype)
    return jax.lax.scan(step, first, (steps.keep, steps.factor))[1]


def _over_steps(
    integrand: Callable[[Array, Array], Array], times: Float[Array, " points"]
) -> Float[Array, " steps"]:
    """Integrals of integrand(r, u) over r in every step, u being the step's end.

    Over panels of equal length in log r.
    """
    x, _, _ = gauss_legendre(_NODES, times.dtype)
    shares = (jnp.arange(_PANELS, dtype=times.dtype)[:, None] + x) / _PANELS
    u = times[1:, None, None]
    length = jnp.log(times[:-1, None, None] / u)
    r = u * jnp.exp(length * shares)
    means = mean_from_above(r * integrand(r, u))
    return length[:, 0, 0] * jnp.sum(means, -1) / _PANELS


def _recursion(
    growth: Float[Array, " steps"], added: Float[Array, " steps"], deviation: Float[Array, " steps"]
) -> RoutingBound:
    """(2) of the module."""

    def step(
        state: tuple[Array, Array], here: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        drift, squared = state
        growth, added, deviation = here
        new = (growth * drift + added, growth**2 * squared + deviation**2)
        # a traced schedule may end without noise, where nothing is known
        new = jax.tree.map(lambda value: jnp.where(jnp.isnan(value), jnp.inf, value), new)
        return new, new

    zero = jnp.zeros((), growth.dtype)
    _, (drift, squared) = jax.lax.scan(step, (zero, zero), (growth, added, deviation))
    return RoutingBound(
        jnp.concatenate([zero[None], drift]), safe_sqrt(jnp.concatenate([zero[None], squared]))
    )


def _check_run(process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule) -> None:
    """Refuse what the bound does not cover."""
    if not isinstance(sampler, DDIM | EulerMaruyama):
        raise ValueError(
            f"sampler {type(sampler).__name__} has no such bound; use 'euler_maruyama' or 'ddim'."
        )
    if isinstance(sampler, EulerMaruyama):
        check_continuous_rates(process, "euler_maruyama")
    if is_traced((process, schedule)):
        return
    if schedule.is_stochastic:
        raise ValueError("schedule is stochastic; the bound is on the distance from the flow.")
    last = float(schedule.times[-1])
    if float(process.noise(last)) <= 0.0:
        raise ValueError(
            f"schedule ends at t = {last:g}, where there is no noise and the flow of data in a "
            "ball has no Lipschitz constant; stop before."
        )


def log_amplification(
    process: AbstractProcess,
    t: Float[ArrayLike, "*times"],
    t_end: Float[ArrayLike, ""],
    radius: Numbers,
) -> Float[Array, "*times"]:
    """Evaluate the log of the largest factor by which the flow moves two points apart.

        log( s_e / s(t) ) + R^2 (lambda_e^2 - lambda(t)^2) / 2,      lambda = a / s

    from time t to t_end = e, over all data of norm at most R: the limit of the product of the
    growth factors of `routing_bound` for many steps, whatever the schedule. Two points at +R and -R
    attain it between them. For a variance-preserving process of signal 0 at the start it is
    log s_e + R^2 a_e^2 / (2 s_e^2).

    **Arguments:**

    - `process`: the forward process.
    - `t`: times of any shape.
    - `t_end`: the last time, with noise.
    - `radius`: R > 0, in units of the data.

    **Returns:** the log, in nats.

    **Example:**

    ```python
    >>> log = jk.routing.log_amplification(jk.FlowMatching(), 1.0, 0.5, radius=1.0)
    >>> round(float(log), 4)
    -0.1931
    ```
    """
    first = process.signal(t) / process.noise(t)
    last = process.signal(t_end) / process.noise(t_end)
    squares = jnp.asarray(radius) ** 2 * (last**2 - first**2)
    return jnp.log(process.noise(t_end) / process.noise(t)) + 0.5 * squares


def network_amplification(
    process: AbstractProcess,
    t_start: Float[ArrayLike, ""],
    t_end: Float[ArrayLike, ""],
    radius: Numbers,
) -> Float[Array, ""]:
    """Evaluate the factor of experts' errors in the bound, for infinitely many steps.

        A = s_e exp(R^2 lambda_e^2 / 2) (sqrt(pi / 2) / R) (erf(R lambda_e / sqrt 2)
                                                            - erf(R lambda_0 / sqrt 2))

    with lambda = a / s at the start 0 and the end e. Denoised points wrong by `error` everywhere
    move the end of the flow by at most A error.

    **Arguments:**

    - `process`: the forward process.
    - `t_start`: the first time.
    - `t_end`: the last time, with noise.
    - `radius`: R > 0, in units of the data.

    **Returns:** A, without unit.

    **Example:**

    ```python
    >>> amplified = jk.routing.network_amplification(jk.FlowMatching(), 1.0, 0.5, radius=1.0)
    >>> round(float(amplified), 3)
    0.705
    ```
    """
    first = process.signal(t_start) / process.noise(t_start)
    last = process.signal(t_end) / process.noise(t_end)
    radius = jnp.asarray(radius)
    root = radius / np.sqrt(2.0)
    mass = jax.lax.erf(root * last) - jax.lax.erf(root * first)
    return process.noise(t_end) * jnp.exp((root * last) ** 2) * 0.5 * np.sqrt(np.pi) / root * mass


def truncation_bound(
    process: AbstractProcess, t: Float[ArrayLike, "*times"], radius: Numbers, dim: int
) -> Float[Array, "*times"]:
    """Bound W2 between the data and their noised distribution p_t.

        sqrt( (1 - a)^2 R^2 + d s^2 )

    **Arguments:**

    - `process`: the forward process.
    - `t`: times of any shape.
    - `radius`: R > 0, in units of the data.
    - `dim`: number d of dimensions.

    **Returns:** the bound, in units of the data.

    **Example:**

    ```python
    >>> jk.routing.truncation_bound(jk.FlowMatching(), 0.5, radius=1.0, dim=3).item()
    1.0
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), Theorem 7.
    """
    lost = (1.0 - process.signal(t)) * jnp.asarray(radius)
    return jnp.sqrt(lost**2 + dim * process.noise(t) ** 2)
