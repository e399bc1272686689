"""A bound on the Kullback-Leibler divergence that needs no Lipschitz constant."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._numerics import larger, log_ratio_excess, phi
from .._precision import in_float64, is_traced
from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess
from ..recurrence import initialization_name
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ._assumptions import Assumptions, curvature_interval, fisher, mean_square
from ._bound import ErrorSize
from ._certified import (
    check_run,
    finite_or_inf,
    known_of,
    make_steps,
    scheme_name,
    step_errors,
)
from ._step_factors import Nodes, Steps, denoised_rate


class GirsanovBound(eqx.Module):
    """A bound on KL(p_(t_K) || samples), and what it is made of.

    **Arguments:**

    - `value`: the sum of the next three, in nats; infinite where nothing is proved.
    - `initialization`: of KL(p_T || initial distribution).
    - `discretisation`: (steps,), what each step adds with an exact score.
    - `score_error`: (steps,), what the score error adds to that.
    - `reason`: why the value is infinite, or empty.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [0.5]), jk.OU(), "exponential_integrator")
    >>> bound = jk.bounds.girsanov_bound(*run, jk.Schedule([3.0, 1.0, 0.3, 0.0], 1.0))
    >>> bool(bound.value > bound.initialization)
    True
    ```
    """

    value: Float[Array, ""]
    initialization: Float[Array, ""]
    discretisation: Float[Array, " steps"]
    score_error: Float[Array, " steps"]
    reason: str = eqx.field(static=True, default="")


@in_float64
def girsanov_bound(
    target: Gaussian | GaussianMixture | Assumptions,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    score_error: ErrorSize = 0.0,
    initialization: str | None = None,
) -> GirsanovBound:
    """Bound KL(p_(t_K) || samples) of ancestral sampling and the exponential integrators.

    By Girsanov's theorem and the data processing inequality it is at most KL(p_T || initial) plus
    half the integral of E|drift of the reverse SDE - drift of the sampler|^2 along the exact
    process. Frozen scores and denoised points are martingales up to a factor, so that this is
    exact. With w = sigma^2, from w_0 to w_1 in a step, mmse(w) the denoising error, and
    J(w) = d/w - mmse(w)/w^2 the Fisher information,

        exact_mean:              1/2 int (w - w_1) E|H|_F^2 dw + 1/2 (1 - e^-h) eps^2
        exponential_integrator:  the first term + 1/2 int_0^h ((1 - e^(-v/2)) sqrt J + eps)^2 dv
        ddim, stochasticity 1:   1/2 int (mmse(w_0) - mmse(w)) / w^2 dw
                                 + 1/2 (1/w_1 - 1/w_0) (a w_0 eps)^2

    with H the Hessian of log q_w. No Lipschitz constant is needed where the data's denoising error
    is known; else E|H|_F^2 is bounded by the curvature. From a `DenoisingCurve`, of a network or at
    some levels, that of "ddim" is as good as the curve: a bound where it is the exact denoiser's.
    The other two do not use it, as J is at least what it says. Without initial error,
    KL(p_T || N(0, P I)) <= (a^2 E|X_0|^2 / P + d (s^2 / P - 1 - log(s^2 / P))) / 2.

    **Arguments:**

    - `target`, `process`, `sampler`, `schedule`: as for `certified_bound`; the three samplers
      above, with stochasticity 1.
    - `score_error`: eps_k >= 0, the root mean square of the score's error under p_t, in 1 / data: a
      number, (steps,), or a jittable function of time.
    - `initialization`: "standard_normal" (the process's prior) or "marginal". Default: that of the
      process.

    **Returns:** the bound. The distance from p_(t_K) to the data (truncation) is not part of it.

    **Raises:** ValueError as `certified_bound`, and for another sampler.

    **Example:**

    ```python
    >>> curve = jk.bounds.DenoisingCurve([0.1, 1.0, 10.0], [0.02, 1.0, 2.0])
    >>> known = jk.bounds.Assumptions(jk.VP(), 2, 2.0, denoising_error=curve)
    >>> bound = jk.bounds.girsanov_bound(known, jk.VP(), "ddim", jk.Schedule([0.7, 0.4, 0.1], 1.0))
    ```

    Source: Chen et al., "Sampling is as easy as learning the score" (2023),
    https://arxiv.org/abs/2209.11215, for the argument; Benton et al., "Nearly d-Linear Convergence
    Bounds for Diffusion Models via Stochastic Localization" (2024),
    https://arxiv.org/abs/2308.03686, for the martingale.
    """
    scheme = girsanov_scheme(sampler, process)
    known = known_of(target, process)
    schedule = check_run(scheme, process, schedule)
    squared = schedule.stochasticity_squared
    if not is_traced(squared) and not np.allclose(squared, 1.0):
        raise ValueError("stochasticity must be 1: the bound is for the reverse SDE.")
    start = initialization_name(process, initialization)
    bound = evaluate_girsanov(known, schedule, scheme, start, score_error)
    if is_traced(bound) or bool(np.isfinite(bound.value)):
        return bound
    reason = explain_girsanov(bound, known, scheme)
    return dataclasses.replace(bound, reason=reason)


@eqx.filter_jit
def evaluate_girsanov(
    known: Assumptions, schedule: Schedule, scheme: str, start: str, score_error: ErrorSize
) -> GirsanovBound:
    """The bound of checked arguments, without its reason."""
    errors = step_errors(schedule, score_error, 0.0)
    steps = make_steps(known, schedule, errors)
    exact, error = GIRSANOV[scheme](steps)
    initial = initial_divergence(known, known.process, schedule.times[0], start)
    exact = jnp.where(is_divergence_proved(known, scheme, steps.end), finite_or_inf(exact), jnp.inf)
    total = initial + jnp.sum(exact) + jnp.sum(error)
    return GirsanovBound(finite_or_inf(total), initial, exact, error)


def is_divergence_proved(known: Assumptions, scheme: str, last: Array) -> Array:
    """Whether the integral of E|H|^2 is finite up to the last sigma^2, as a sum always is."""
    curve = known.denoising_error if scheme == "ddim" else known.exact_denoising_error
    if curve is not None:
        return last > 0
    m, top = curvature_interval(known, last, last, 0.0)
    return jnp.isfinite(m) & jnp.isfinite(top)


def girsanov_scheme(sampler: object, process: AbstractProcess) -> str:
    """The scheme that a sampler is under a process, if it has this bound."""
    name = scheme_name(sampler, process)
    if name not in GIRSANOV:
        raise ValueError(
            f"sampler {name!r} has no bound on the divergence; those with one: "
            f"{', '.join(GIRSANOV)}."
        )
    return name


def _exact_mean(steps: Steps) -> tuple[Array, Array]:
    """What a step with the exact mean adds, without and because of its score error."""
    kept = -jnp.expm1(-steps.length)
    return _frozen_score(steps, steps.nodes()), 0.5 * kept * steps.errors.size**2


def _exponential_integrator(steps: Steps) -> tuple[Array, Array]:
    """The same for a score that is frozen without its factor e^(-v/2)."""
    size = steps.errors.size
    root = steps.root_fisher(steps.start)
    # int (1 - e^(-v/2))^2 dv and int (1 - e^(-v/2)) dv, with phi_2(z) = 1/2 + z phi_3(z)
    y = -steps.length / 2.0
    one, two = phi(3, jnp.stack([y, 2.0 * y]))
    biased = 2.0 * root**2 * y**3 * (one - 2.0 * two)
    cross = size * root * 2.0 * y**2 * (0.5 + y * one)
    exact = _frozen_score(steps, steps.nodes()) + biased
    return exact, cross + 0.5 * steps.length * size**2


def _ancestral(steps: Steps) -> tuple[Array, Array]:
    """The same for a denoised point that is frozen."""
    present = steps.end > 0
    end = jnp.where(present, steps.end, 1.0)
    spent = jnp.where(present, 1.0 / end - 1.0 / steps.start, jnp.inf)
    size = steps.signal * steps.start * steps.errors.size
    error = jnp.where(size > 0, 0.5 * spent * size**2, 0.0)
    curve = steps.known.denoising_error
    nodes = steps.nodes(ratios=True)
    if curve is None:
        # int mmse'(w) (1 / w_1 - 1 / w) dw
        share = nodes.above_end / (end[:, None] * nodes.w)
        exact = jnp.sum(denoised_rate(steps, nodes) * share * nodes.weight, -1)
    else:
        change = curve(steps.start)[:, None] - curve(nodes.w)
        exact = jnp.sum(larger(change, 0.0) / nodes.w**2 * nodes.weight, -1)
    return jnp.where(present, 0.5 * exact, jnp.inf), error


GIRSANOV: dict[str, Callable[[Steps], tuple[Array, Array]]] = {
    "exact_mean": _exact_mean,
    "exponential_integrator": _exponential_integrator,
    "ddim": _ancestral,
}


def _frozen_score(steps: Steps, nodes: Nodes) -> Array:
    """Half of int (w - w_1) E|H|_F^2 dw = int (J(w) - J(w_0)) dw."""
    known = steps.known
    if known.exact_denoising_error is None:
        square = mean_square(known, lambda x, w: x, nodes.w, nodes.w, 0.0)
        return 0.5 * jnp.sum(nodes.above_end * square * nodes.weight, -1)
    change = fisher(known, nodes.w) - fisher(known, steps.start)[:, None]
    return 0.5 * jnp.sum(larger(change, 0.0) * nodes.weight, -1)


def initial_divergence(
    known: Assumptions, process: AbstractProcess, first: Array, start: str
) -> Float[Array, ""]:
    """At least KL(p_T || initial distribution), by its convexity in X_0."""
    if start == "marginal":
        return jnp.zeros_like(first)
    prior = process.prior_variance(first)
    ratio = process.noise(first) ** 2 / prior
    excess = log_ratio_excess(ratio - 1.0)
    pull = process.signal(first) ** 2 * known.second_moment / prior
    return 0.5 * (pull + known.dim * excess)


def explain_girsanov(bound: GirsanovBound, known: Assumptions, scheme: str) -> str:
    """Why a bound is infinite."""
    if not np.isfinite(bound.initialization):
        return "the initial distribution has no density where the noise is 0"
    if not np.all(np.isfinite(np.asarray(bound.score_error))):
        return "the score error adds an infinite divergence"
    if scheme != "ddim" and known.denoising_error is not known.exact_denoising_error:
        return (
            "a denoising error of a network, or at some levels, bounds the exact one from above, "
            "and the Fisher information from below; state the convexity and smoothness too, or use "
            "ddim with stochasticity 1"
        )
    return (
        "the steps add an infinite divergence: stop at t_min > 0, or state the convexity and "
        "smoothness, or the denoising error"
    )
