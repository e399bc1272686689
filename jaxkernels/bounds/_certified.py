"""Bounds on the W2 distance between data and samples, with no hidden constant."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import _checks
from .._derivatives import expand_at, forward_derivatives, pairwise_derivatives
from .._numerics import larger, safe_sqrt
from .._precision import in_float64, is_traced
from .._types import AnyArray, Numbers
from ..distributions import Gaussian, GaussianMixture
from ..processes import (
    OU,
    AbstractProcess,
    AbstractVariancePreserving,
    check_continuous_rates,
    check_process,
    same_process,
)
from ..recurrence import initialization_name
from ..samplers import AbstractSampler, Heun, as_sampler, sampler_name
from ..schedules import Schedule
from ._assumptions import (
    Assumptions,
    assumptions,
    curvature_interval,
    squared_mean,
    third_derivative,
    why,
)
from ._bound import ErrorSize, per_evaluation
from ._flow_factors import FLOW_SCHEMES
from ._step_factors import SDE_SCHEMES, StepErrors, StepFactors, Steps, root_or_inf

# schemes whose steps are those of the rate-1 time only if the process has a constant rate
_CONSTANT_RATE = ("euler_maruyama",)
# schemes that need the third derivatives of the log-density
_THIRD_DERIVATIVE = ("tweedie", "second_order", *FLOW_SCHEMES)
_ANY_PROCESS = ("ddim", *FLOW_SCHEMES)

# above which running takes longer than compiling
_MANY_MODES = 64

ROUNDING = 1e-3
"""Of the scale of kinks, on which an optimiser stalls."""

SCHEMES = SDE_SCHEMES | FLOW_SCHEMES
"""Those that are certified, by name."""


class CertifiedBound(eqx.Module):
    """A bound on W2 between the data and the samples, and what it is made of.

    **Arguments:**

    - `value`: the bound, in the units of the data; infinite where nothing is proved.
    - `distances`: (steps + 1,), the bound on W2(p_t, samples) at every time of the schedule.
    - `initialization`, `discretisation`, `score_error`, `truncation`: what each cause alone would
      leave at the end. `value` is at most their sum.
    - `contraction`: (steps,), the factor by which each step may increase a distance.
    - `reason`: why the value is infinite, or empty.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [0.5]), jk.OU(), "exponential_integrator")
    >>> bound = jk.bounds.certified_bound(*run, jk.Schedule([3.0, 1.0, 0.3, 0.0], 1.0))
    >>> bool(bound.value <= bound.initialization + bound.discretisation)
    True
    ```
    """

    value: Float[Array, ""]
    distances: Float[Array, " points"]
    initialization: Float[Array, ""]
    discretisation: Float[Array, ""]
    score_error: Float[Array, ""]
    truncation: Float[Array, ""]
    contraction: Float[Array, " steps"]
    reason: str = eqx.field(static=True, default="")


@in_float64
def certified_bound(
    target: Gaussian | GaussianMixture | Assumptions,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    score_error: ErrorSize = 0.0,
    error_lipschitz: Numbers = 0.0,
    initialization: str | Numbers | None = None,
) -> CertifiedBound:
    """Bound the W2 distance between the data and the samples of a sampler.

        e_(k+1) = ((r_k e_k + mean_k + c_k eps_k)^2 + sum_j (f_kj + g_kj e_k)^2)^(1/2) + drift_k

    with drift = 0 but for "ddim", and e_0 = W2(initial distribution, p_T); then the truncation
    W2(p_0, p_(t_K)) is added. It holds for every schedule and step size, and whatever m <=
    -Hess log p_0 <= L. Integrals over a step are Gauss-Legendre sums, exact to 1e-7 for steps of
    "ddim" by up to a factor of 1e9 in sigma, and to 1e-8 for any step of "euler_flow" and "heun".
    Without noise f = g = 0, and mean_k is the error of a single step along the exact probability
    flow.

    **Arguments:**

    - `target`: a Gaussian, a mixture, or the `Assumptions` on other data.
    - `process`: the forward process. "ddim" is covered for every process, "euler_flow" and "heun"
      for all whose rates are smooth in time, that is all but DiscreteVP. The others need a
      variance-preserving one (OU, VP, CosineVP, DiscreteVP) and steps of the reverse SDE in tau =
      -2 log a, the time of the process of rate 1; the library's `EulerMaruyama` makes such steps
      for OU only.
    - `sampler`: a sampler or a name: "euler_maruyama", "exponential_integrator", "rem", "rei" (the
      randomised midpoint methods, one random number for each sample and step), "second_order",
      "tweedie" (exact mean and covariance of a step), "exact_mean" (exact mean, covariance e^h -
      1), "ddim" with any stochasticity; of the probability flow "euler_flow" (Euler's method in
      the process's time, which is `EulerMaruyama` without noise) and "heun". The bound of "heun"
      is of order 2 for Gaussians and of order 1 for other data, of which more than the third
      derivative would have to be known.
    - `schedule`: its stochasticity must be 0 for "euler_flow" and "heun", 1 for all but "ddim".
    - `score_error`: eps_k >= 0, the root mean square of the score's error at the samples, in 1 /
      data: a number, (steps,), or a jittable function of time, monotone within each step. Where
      Hessians are used, they are those of the exact score.
    - `error_lipschitz`: Lipschitz constant of the error, a number or (steps,), in 1 / variance.
      Pass it if `score_error` is the root mean square under p_t instead, as in training.
    - `initialization`: "standard_normal" (the process's prior), "marginal", or a bound on W2 of
      the initial distribution to p_T. Default: that of the process.

    **Returns:** the bound. It is infinite, with a reason, where a constant is missing.

    **Raises:** ValueError naming the argument, for a sampler or process that is not covered, a
    stochasticity that does not fit, or an error of wrong shape or sign.

    **Example:**

    ```python
    >>> known = jk.bounds.Assumptions(jk.OU(), 2, 3.0, convexity=1.0, smoothness=1.5)
    >>> schedule = jk.Schedule(np.linspace(2.0, 0.0, 25), 1.0)
    >>> bound = jk.bounds.certified_bound(known, jk.OU(), "exponential_integrator", schedule)
    ```

    Source: derived for this library. It replaces the bounds of Yu and Yu, "Advancing Wasserstein
    Convergence Analysis of Score-Based Models" (2025), Theorems 1, 3 and 4, which need m > 1/2 and
    hide terms that are not small for data far from the origin (`jk.bounds.as_published`).
    """
    scheme = scheme_name(sampler, process)
    known = known_of(target, process)
    schedule = check_run(scheme, process, schedule)
    start = check_initial(process, initialization)
    errors = step_errors(schedule, score_error, error_lipschitz)
    bound = evaluate_bound(known, schedule, scheme, start, errors)
    if is_traced(bound) or bool(np.isfinite(bound.value)):
        return bound
    reason = explain(known, scheme, schedule, errors)
    return dataclasses.replace(bound, reason=reason)


@eqx.filter_jit
def evaluate_bound(
    known: Assumptions,
    schedule: Schedule,
    scheme: str,
    start: str | AnyArray,
    errors: StepErrors,
) -> CertifiedBound:
    """The bound of checked arguments, without its reason."""
    process = known.process
    steps = make_steps(known, schedule, errors)
    factors = SCHEMES[scheme](steps)
    initial = initial_distance(known, process, schedule.times[0], start)
    zero = jnp.zeros_like(initial)
    ancestral = jnp.all(steps.stochasticity_squared == 1.0)
    proved = is_proved(known, scheme, steps.end, ancestral)
    # of the padding, where constants may be infinite
    empty = steps.time == steps.next_time

    def propagated(start: Array, **parts: bool) -> Float[Array, " steps"]:
        found = _propagate(recursion_of(factors, **parts), start, empty)
        return jnp.where(proved, finite_or_inf(found), jnp.inf)

    distances = propagated(initial)
    truncation = truncation_distance(known, process, schedule.times[-1])
    return CertifiedBound(
        finite_or_inf(distances[-1] + truncation),
        jnp.concatenate([initial[None], distances]),
        propagated(initial, exact=False, score=False)[-1],
        propagated(zero, score=False)[-1],
        propagated(zero, exact=False)[-1],
        truncation,
        factors.contraction,
    )


def is_proved(known: Assumptions, scheme: str, last: Array, ancestral: Array) -> Array:
    """Whether the bounds on the Hessian are integrable up to the last sigma^2, of any shape.

    A sum over nodes is finite even where the integral is not. Gaussians have exact Hessians. The
    steps are `ancestral` if all have stochasticity 1.
    """
    m, top = curvature_interval(known, last, last, 0.0)
    if known.exact:
        return jnp.ones((), bool)
    if scheme == "ddim" and known.denoising_error is not None:
        return ancestral | jnp.isfinite(m)
    if scheme in _THIRD_DERIVATIVE:
        return jnp.isfinite(m) & jnp.isfinite(top)
    return jnp.isfinite(m)


def make_steps(known: Assumptions, schedule: Schedule, errors: StepErrors) -> Steps:
    """The steps of a schedule under the process of the assumptions."""
    times = jnp.asarray(schedule.times)
    return steps_between(known, times[:-1], times[1:], schedule.stochasticity_squared, errors)


def steps_between(
    known: Assumptions, times: Array, next_times: Array, squared: Array, errors: StepErrors
) -> Steps:
    """Steps from some times to others."""
    both = jnp.stack([times, next_times])
    start, end = known.process.sigma(both) ** 2
    signal, next_signal = known.process.signal(both)
    return Steps(known, start, end, signal, next_signal, times, next_times, squared, errors)


def bound_value(
    known: Assumptions,
    schedule: Schedule,
    scheme: str,
    start: str | AnyArray,
    score_error: object,
    lipschitz: Numbers,
    *,
    free: bool,
    rounding: Float[AnyArray, ""],
) -> Float[Array, ""]:
    """The value of `evaluate_bound`, but for smooth kinks, with two derivatives that are cheap.

    The factors of a step depend on its two times, and on its stochasticity where that is `free`;
    where it is not, no derivative along it is right.
    """
    times = jnp.asarray(schedule.times)
    squared = jnp.asarray(schedule.stochasticity_squared)
    errors = step_errors(schedule, score_error, lipschitz)

    def recursion(starts: Array, ends: Array, squared: Array, here: StepErrors) -> Array:
        steps = steps_between(known, starts, ends, squared, here)
        return jnp.stack(recursion_of(SCHEMES[scheme](steps._replace(rounding=rounding))))

    def expanded(step: VariedStep) -> Array:
        fn = of_variables(recursion, step, score_error)
        return expand_at(lambda x: step_derivatives(known, fn, x), step[0])

    # one step after the other, whose derivatives at all nodes and modes stay in the cache
    variables = jnp.stack([times[:-1], times[1:], *((squared,) if free else ())], 1)
    along = jax.lax.map(expanded, (variables, squared, errors)).T
    initial = initial_distance(known, known.process, times[0], start)
    distance = _propagate(Recursion(*along), initial, times[1:] == times[:-1])[-1]
    truncation = truncation_distance(known, known.process, times[-1])
    steps = make_steps(known, schedule, step_errors(schedule, score_error, lipschitz))
    proved = is_proved(known, scheme, steps.end[-1], jnp.all(steps.stochasticity_squared == 1.0))
    return jnp.where(proved, finite_or_inf(distance + truncation), jnp.inf)


VariedStep: TypeAlias = tuple[Float[Array, " n"], Float[Array, ""], StepErrors]
"""A step's variables, its two times and alpha^2 if that varies; its alpha^2, and score error."""


def of_variables(
    fn: Callable[..., Array], step: VariedStep, score_error: object
) -> Callable[[Array], Array]:
    """`fn(starts, ends, alpha^2, errors)` of a step as a function of its variables (n, items).

    What does not vary has the step's value; a score error that is a function follows the times.
    """

    def varied(x: Array) -> Array:
        start, end, *free = x
        alpha2, errors = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, start.shape), step[1:])
        if callable(score_error):
            errors = errors_between(start, end, score_error, errors.lipschitz)
        return fn(start, end, free[0] if free else alpha2, errors)

    return varied


def step_derivatives(
    known: Assumptions, fn: Callable[[Array], Array], x: Float[Array, " n"]
) -> tuple[Array, Array, Array]:
    """Value and two derivatives of a function (n, steps) -> (outputs, steps) at one step."""
    if known.spectrum is None or np.size(known.spectrum) <= _MANY_MODES:
        return pairwise_derivatives(fn, x)
    # sums over the modes are once for all pairs of variables
    return jax.tree.map(lambda leaf: leaf[..., 0], forward_derivatives(fn, x[:, None]))


class Recursion(NamedTuple):
    """What propagates the distance e over a step, (steps,) each.

    ((contraction e + mean)^2 + noise + 2 cross e + gain e^2)^(1/2) + drift
    """

    contraction: Array
    mean: Array
    noise: Array
    cross: Array
    gain: Array
    drift: Array


def recursion_of(factors: StepFactors, *, exact: bool = True, score: bool = True) -> Recursion:
    """The recursion, without what the exact score or the score's error adds if so asked."""

    def kept(wanted: bool, part: Array) -> Array:
        return part if wanted else jnp.zeros_like(part)

    noise = kept(exact, factors.noise) + kept(score, factors.score_noise)
    drift = jnp.broadcast_to(factors.drift, factors.mean.shape)
    return Recursion(
        factors.contraction,
        kept(exact, factors.mean) + kept(score, factors.score_mean),
        factors.noise_scale * jnp.sum(noise**2, -1),
        factors.noise_scale * jnp.sum(noise * factors.gain, -1),
        factors.noise_scale * jnp.sum(factors.gain**2, -1),
        kept(exact, drift),
    )


def _propagate(
    along: Recursion, start: Array, empty: Bool[Array, " steps"]
) -> Float[Array, " steps"]:
    """The distance after every step, of which the empty ones change nothing."""

    def step(distance: Array, inputs: tuple[Recursion, Array]) -> tuple[Array, Array]:
        here, is_empty = inputs
        after = jnp.where(is_empty, distance, advance(here, distance))
        return after, after

    return jax.lax.scan(step, start, (along, empty))[1]


def advance(along: Recursion, distance: Array) -> Array:
    """The distance after a step."""
    known = along.contraction * distance + along.mean
    noise = along.noise + 2.0 * along.cross * distance + along.gain * distance**2
    return root_or_inf(known**2 + noise) + along.drift


def finite_or_inf(value: Array) -> Array:
    """The value, or infinity where it is not a number."""
    return jnp.where(jnp.isfinite(value), value, jnp.inf)


def initial_distance(
    known: Assumptions, process: AbstractProcess, first: Array, start: str | AnyArray
) -> Float[Array, ""]:
    """At least W2(initial distribution, p_T); exact for Gaussians."""
    if not isinstance(start, str):
        return jnp.asarray(start, first.dtype)
    if start == "marginal":
        return jnp.zeros_like(first)
    prior = jnp.sqrt(process.prior_variance(first))
    a = process.signal(first)
    s = process.noise(first)
    if not known.exact:
        # X_T = a X_0 + s Z beside sqrt(prior) Z
        return jnp.sqrt(a**2 * known.second_moment + known.dim * (prior - s) ** 2)
    deviation = jnp.sqrt(a**2 * jnp.asarray(known.spectrum) + s**2)
    square = jnp.asarray(known.multiplicities) @ (prior - deviation) ** 2
    return safe_sqrt(a**2 * squared_mean(known) + square)


def truncation_distance(
    known: Assumptions, process: AbstractProcess, last: Array
) -> Float[Array, ""]:
    """At least W2(p_0, p_t) at the last time; exact for Gaussians."""
    a = process.signal(last)
    s = process.noise(last)
    if not known.exact:
        return safe_sqrt((1.0 - a) ** 2 * known.second_moment + known.dim * s**2)
    variances = jnp.asarray(known.spectrum)
    change = safe_sqrt(a**2 * variances + s**2) - safe_sqrt(variances)
    square = jnp.asarray(known.multiplicities) @ change**2
    return safe_sqrt((1.0 - a) ** 2 * squared_mean(known) + square)


def known_of(target: object, process: AbstractProcess) -> Assumptions:
    """The constants of a target under a process."""
    process = check_process(process)
    if not isinstance(target, Assumptions):
        return assumptions(target, process)  # pyright: ignore[reportArgumentType]
    if not is_traced((target.process, process)) and not same_process(target.process, process):
        raise ValueError(
            f"process = {process!r} is not that of the assumptions, {target.process!r}."
        )
    return target


def scheme_name(sampler: object, process: AbstractProcess) -> str:
    """The certified scheme that a sampler is under a process."""
    process = check_process(process)
    name = sampler if isinstance(sampler, str) and sampler in SCHEMES else None
    if name is None:
        name = sampler_name(as_sampler(sampler))
    if name not in SCHEMES:
        raise ValueError(
            f"sampler {name!r} has no certified bound; those with one: {', '.join(SCHEMES)}."
        )
    if name in FLOW_SCHEMES:
        _check_flow(name, sampler, process)
    if name in _ANY_PROCESS:
        return name
    if not isinstance(process, AbstractVariancePreserving):
        raise ValueError(
            f"process = {process!r}: the bound of {name!r} is for the variance-preserving "
            "processes OU, VP, CosineVP and DiscreteVP; that of 'ddim' is for every process."
        )
    if name in _CONSTANT_RATE and not isinstance(process, OU):
        raise ValueError(
            f"process = {process!r}: the bound of {name!r} is for OU, whose rate is constant."
        )
    return name


def _check_flow(name: str, sampler: object, process: AbstractProcess) -> None:
    """Check that the flow's velocity is smooth, and the last step one that is covered."""
    check_continuous_rates(process, name)
    if isinstance(sampler, Heun) and sampler.final != "euler":
        raise ValueError(
            f"sampler.final = {sampler.final!r}: the bound of 'heun' is for final='euler'."
        )


def required_stochasticity(scheme: str) -> float | None:
    """The stochasticity of every step of a scheme; None if it may be any."""
    if scheme == "ddim":
        return None
    return 0.0 if scheme in FLOW_SCHEMES else 1.0


def check_run(scheme: str, process: AbstractProcess, schedule: object) -> Schedule:
    """The schedule, if its stochasticity is that of the scheme."""
    schedule = _checks.instance("schedule", schedule, Schedule)
    if is_traced((schedule, process)):
        return schedule
    if not float(process.signal(schedule.times[0])) > 0:
        raise ValueError(
            f"times[0] = {float(schedule.times[0]):g} has no signal: a bound needs a(t) > 0. Start "
            "at a smaller time."
        )
    squared = np.asarray(schedule.stochasticity_squared)
    required = required_stochasticity(scheme)
    if required is not None and not np.allclose(squared, required):
        other = "; without noise it is 'euler_flow'" if scheme == "euler_maruyama" else ""
        raise ValueError(
            f"stochasticity must be {required:g} for the bound of {scheme!r}; got "
            f"{float(np.sqrt(squared[np.argmax(np.abs(squared - required))])):g}{other}."
        )
    return schedule


def check_initial(process: AbstractProcess, initialization: object) -> str | AnyArray:
    """The name of an initial distribution, or its distance to p_T."""
    if initialization is None or isinstance(initialization, str):
        return initialization_name(process, initialization)
    return _checks.parameter("initialization", cast(Numbers, initialization), at_least=0.0)


def step_errors(schedule: Schedule, score_error: object, lipschitz: Numbers) -> StepErrors:
    """The score error of every step of a schedule."""
    times = jnp.asarray(schedule.times)
    return errors_between(times[:-1], times[1:], score_error, lipschitz)


def errors_between(
    starts: Array, ends: Array, score_error: object, lipschitz: Numbers
) -> StepErrors:
    """The score error of every step; of a function, the larger of both ends for its maximum."""
    slope = per_evaluation("error_lipschitz", lipschitz, starts).astype(starts.dtype)
    if not callable(score_error):
        size = per_evaluation("score_error", cast(Numbers, score_error), starts)
        size = size.astype(starts.dtype)
        return StepErrors(size, size, slope)
    first, last = (jnp.broadcast_to(jnp.asarray(score_error(t)), t.shape) for t in (starts, ends))
    if not is_traced(first) and bool(np.any(np.asarray(first) < 0)):
        raise ValueError("score_error must be >= 0 at every time.")
    return StepErrors(first, larger(first, last), slope)


def explain(known: Assumptions, scheme: str, schedule: Schedule, errors: StepErrors) -> str:
    """Why a bound is infinite."""
    needs_third = scheme in _THIRD_DERIVATIVE
    flow = scheme == "ddim" and not np.allclose(schedule.stochasticity_squared, 1.0)
    levels = known.process.sigma(schedule.times) ** 2
    m, top = curvature_interval(known, levels[:-1], levels[:-1], 0.0)
    if not all(bool(np.all(np.isfinite(size))) for size in errors):
        return "the score error is infinite at a time of the schedule"
    if not bool(np.all(np.isfinite(m))):
        if known.convexity is not None:
            return (
                f"convexity = {float(known.convexity):g} < 0 says nothing of the curvature where "
                "1 + m sigma^2 <= 0"
            )
        return f"no lower bound of -Hess log p_t; convexity: {why(known, 'convexity')}"
    if (needs_third or flow) and third_derivative(known, levels) is None:
        return f"no third derivative: {why(known, 'third_derivative')}"
    ends = curvature_interval(known, levels, levels, 0.0)
    if not all(bool(np.all(np.isfinite(end))) for end in (*ends, top)):
        return (
            f"the score has no known Lipschitz constant at t = {float(schedule.times[-1]):g}: stop "
            "at t_min > 0, or state the smoothness"
        )
    return "the product of the steps' factors exceeds the largest number"
