"""The stochasticity of K steps: what a score error and the discretisation cost together.

`optimize_diffusion` minimises L of continuous time, where KL(p_0 || q) = eps^2 L to leading order.
With K steps the samples do not have the data distribution even without an error: KL has a term in
eps, and a part that is the discretisation's own. The objective here is `SymmetrizedKL`, J, exact at
finite eps, as a function of alpha_k^2 = h_k^2 / g^2 on a given timestep schedule.

J is minimised once more without the error, which gives the error-agnostic alpha_k and splits the
gain over the best constant alpha,

    constant / optimum = (constant / agnostic) (agnostic / optimum),

agnostic: J, under the error, of that second optimum. The first factor is what repairs the
discretisation, the second the gain against the error. J is also compared with eps^2 L of the
optimum of continuous time: with a small NFE that is out of reach, and its h(t) far from the best
h_k.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import clipped
from .._precision import in_float64, is_traced
from .._types import AnyArray, Numbers, constant
from ..distributions import Gaussian
from ..errors import model_warnings, violations
from ..processes import AbstractProcess, check_process
from ..recurrence import check_target, evaluation_times
from ..samplers import AbstractSampler, as_sampler, check_schedule
from ..schedules import Schedule
from ._cells import TimeProfile, broadcast_to_modes, check_variances, evaluate_profile
from ._continuous import OptimalDiffusion, format_arrays, optimize_diffusion
from ._search import (
    SDE,
    AbstractCost,
    BestConstant,
    Minimum,
    evaluate_costs,
    minimise,
    move_inside,
    search_constant,
)
from ._symmetrized_kl import SymmetrizedKL
from ._time_change import time_change

# alpha^2 of constant starts
_FLAT = (0.0, 0.1, 0.5, 1.0, 4.0)

# by how much, relatively, times may miss t_max or the edge of a cell: they may come from float32
_ROUNDING = 1e-6


class _DiscreteKL(AbstractCost):
    """J at u = log(1 + alpha^2) on a fixed timestep schedule."""

    kl: SymmetrizedKL
    times: Float[AnyArray, " points"]

    def value(self, u: Float[Array, " n"], /) -> Float[Array, ""]:
        alpha2 = jnp.broadcast_to(jnp.expm1(u), (self.times.shape[0] - 1,))
        value = self.kl(Schedule.from_squared(jnp.asarray(self.times), alpha2))
        return jnp.where(jnp.isnan(value), jnp.inf, value)  # the variance has overflowed


@dataclasses.dataclass(frozen=True, repr=False)
class DiscreteStochasticity:
    """The best alpha_k of K steps, beside what it is compared with.

    Values are J of `SymmetrizedKL`, in nats. `optimize_discrete_stochasticity` computes it.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.04]), jnp.ones_like, jk.OU(rate=1.0, t_max=2.0), "ddim")
    >>> found = jk.reverse_sde.optimize_discrete_stochasticity(*setting, [2.0, 0.5, 0.1, 0.0], 0.1)
    >>> found.value <= min(found.ode, found.sde, found.error_agnostic)
    True
    ```
    """

    times: np.ndarray
    """The timestep schedule, (K + 1,), as it was given."""
    stochasticity_squared: np.ndarray
    """alpha_k^2 = h_k^2 / g^2, (K,), noise first."""
    epsilon: float
    """eps, the size of the error."""
    sampler: AbstractSampler
    """The sampler."""
    value: float
    """J of these alpha_k."""
    best_constant: BestConstant
    """J and alpha^2 of the best constant alpha^2 below the cap."""
    ode: float
    """J of alpha = 0."""
    sde: float
    """J of alpha = 1."""
    without_error: float
    """J of this schedule at eps = 0: the discretisation alone. Above `value` if the error helps."""
    error_agnostic: float
    """J, with the error, of the alpha_k that were optimised without it."""
    error_agnostic_stochasticity_squared: np.ndarray
    """alpha_k^2 optimised without the error, (K,)."""
    error_agnostic_without_error: float
    """J of those at eps = 0: the least that these steps cost without any error."""
    optimum: OptimalDiffusion
    """Of continuous time, for the same error from the same start."""
    cap: float
    """The bound on alpha^2."""
    converged: bool
    """Whether at the best start every derivative is 0, to tolerance, or points out of the box."""
    optima: np.ndarray
    """J that each start has reached, infinite where it explodes; they differ at local minima."""
    trusted: bool
    """False if the schedule relies on what holds for Gaussian data only; see `warnings`."""
    warnings: tuple[str, ...]
    """Reasons not to trust the schedule outside the Gaussian model."""

    @property
    def schedule(self) -> Schedule:
        """The times with their best alpha_k, in the caller's precision."""
        return Schedule(self.times, np.sqrt(self.stochasticity_squared))

    @property
    def gain(self) -> float:
        """J of the best constant over the optimum: at least 1; `repair_gain` times `score_gain`."""
        return self.best_constant.value / self.value

    @property
    def repair_gain(self) -> float:
        """J of the best constant over `error_agnostic`: what repairs the discretisation."""
        return self.best_constant.value / self.error_agnostic

    @property
    def score_gain(self) -> float:
        """`error_agnostic` over the optimum: what knowing the error is worth, at least 1."""
        return self.error_agnostic / self.value

    @property
    def continuous(self) -> float:
        """eps^2 L of the optimum of continuous time: the infimum over all h(t) if it is known."""
        best = self.optimum.infimum or self.optimum
        return self.epsilon**2 * best.value

    @property
    def ratio(self) -> float:
        """J over `continuous`."""
        return self.value / self.continuous if self.continuous > 0 else float("inf")

    @property
    def out_of_reach(self) -> bool:
        """Whether the discretisation alone costs more than the optimum of continuous time."""
        return self.without_error > self.continuous

    def __repr__(self) -> str:
        steps = self.stochasticity_squared.size
        constant, alpha2 = self.best_constant
        share = min(self.without_error / self.value, 1.0)
        reach = "out of reach: " if self.out_of_reach else ""
        lines = [
            f"DiscreteStochasticity({type(self.sampler).__name__}, {steps} steps, "
            f"eps = {self.epsilon:g}, {'converged' if self.converged else 'not converged'}",
            f"  J {self.value:.6g}; best constant {constant:.6g} (alpha^2 = {alpha2:.4g}): "
            f"{self.gain:.3g} times that",
            f"  alpha = 0: {self.ode:.6g}, alpha = 1: {self.sde:.6g}",
            f"  gain {self.gain:.3g} = repair of the discretisation {self.repair_gain:.3g} "
            f"x gain against the error {self.score_gain:.3g}",
            f"  {reach}K = {steps} steps cost {self.ratio:.3g} times the optimum of continuous "
            f"time, {self.continuous:.3g}; {share:.0%} of it is discretisation",
        ]
        lines += format_arrays(self, "times", "stochasticity_squared")
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines) + f"\n  trusted={self.trusted})"


@in_float64
def optimize_discrete_stochasticity(
    target: Gaussian,
    error: TimeProfile,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule | Numbers,
    epsilon: Numbers,
    *,
    cells: int | Numbers = 16,
    cap: float = 100.0,
) -> DiscreteStochasticity:
    """Minimize the symmetrized KL divergence over the stochasticity of every step.

        min J(alpha_1, ..., alpha_K),     0 <= alpha_k^2 <= cap,     J of `SymmetrizedKL`

    by projected Newton iterations from many starts: the best constant, alpha = 0, alpha = 1, the
    given alpha_k, the optimum of continuous time in the middle of the steps, and the optimum
    without error. The result is never worse than any of them. A step whose noise has no effect,
    such as DDIM's to t = 0, keeps the alpha that the search has left it. The times are fixed: to
    optimise them, pass `SymmetrizedKL` to `optimize_schedule`. The first call for a sampler, type
    of process, K and number of modes compiles.

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0.
    - `error`: c of the relative error eps c, a `TimeProfile` on the cells. A step sees it at its
      evaluations; one at an edge belongs to the cell below, where the step goes.
    - `process`: the forward process.
    - `sampler`: a stochastic one, or its name.
    - `schedule`: times (K + 1,), from the process's t_max (below it, if sigma is infinite there) to
      0; or a `Schedule` of such times, whose alpha_k are then among the starts.
    - `epsilon`: eps > 0, dimensionless like c.
    - `cells`: of the optimum of continuous time, as in `optimize_diffusion`; their edges, if
      `error` is given on them.
    - `cap`: bound > 0 on alpha^2, here and in continuous time.

    **Returns:** a `DiscreteStochasticity`.

    **Raises:** ValueError for a variance of 0, a deterministic sampler, times that do not run from
    start to end, `epsilon` or `cap` <= 0, an error that vanishes or does not fit, and traced
    arguments.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.04]), jnp.ones_like, jk.OU(rate=1.0, t_max=2.0), "ddim")
    >>> found = jk.reverse_sde.optimize_discrete_stochasticity(*setting, [2.0, 0.5, 0.1, 0.0], 0.1)
    >>> found.stochasticity_squared.shape, found.gain >= 1.0
    ((3,), True)
    ```

    Source: the question is that of Cao, Chen, Luo, Zhou (2023), Section 5.
    """
    _check_concrete(target, process, sampler, schedule, epsilon)
    target = check_target(target)
    process = check_process(process)
    sampler = as_sampler(sampler)
    target = target.in_eigenbasis()
    modes = check_variances(target).shape[0]
    schedule = _check_run(process, sampler, schedule)
    epsilon = float(_checks.scalar("epsilon", epsilon, above=0.0))
    cap = float(_checks.scalar("cap", cap, above=0.0))
    times = constant(schedule.times)
    final_time = time_change(process, times[0])
    optimum = optimize_diffusion(target, error, final_time, cells=cells, cap=cap)
    theta = time_change(process, evaluation_times(process, sampler, schedule))
    size = _evaluate_error(error, theta, optimum.edges, modes)
    exact, wrong = (
        _DiscreteKL(SymmetrizedKL(target, size, process, sampler, e), times)
        for e in jnp.array([0.0, epsilon])
    )
    solution = _solve(
        exact, wrong, _collect_starts(process, schedule, optimum), float(np.log1p(cap))
    )
    return _summarise(solution, exact, wrong, optimum, epsilon, cap)


class _Solution(NamedTuple):
    """The optima with and without the error, and the best constant."""

    best: Minimum
    agnostic: Minimum
    constant: BestConstant


def _solve(exact: _DiscreteKL, wrong: _DiscreteKL, starts: np.ndarray, top: float) -> _Solution:
    """Both optima. Both searches have as many starts, so that their program is compiled once."""
    steps = starts.shape[1]
    starts = np.minimum(starts, top)
    flat = np.full(steps, search_constant(exact, top, steps)[0])
    agnostic = _minimise(exact, np.concatenate([starts, [flat, flat]]), top)
    u, value = search_constant(wrong, top, steps)
    best = _minimise(wrong, np.concatenate([starts, [np.full(steps, u), agnostic.u]]), top)
    if not np.isfinite(best.value):
        raise ValueError(
            f"KL is infinite at every start: {type(wrong.kl.sampler).__name__} is not finite on "
            "this schedule."
        )
    return _Solution(best, agnostic, BestConstant(value, float(np.expm1(u))))


def _summarise(
    solution: _Solution,
    exact: _DiscreteKL,
    wrong: _DiscreteKL,
    optimum: OptimalDiffusion,
    epsilon: float,
    cap: float,
) -> DiscreteStochasticity:
    """The result, with what the optimum is compared with."""
    best, agnostic, best_constant = solution
    steps = best.u.size
    compared = np.stack([np.zeros(steps), np.full(steps, SDE), agnostic.u])
    ode, sde, error_agnostic = evaluate_costs(wrong, compared).tolist()
    without_error, agnostic_without = evaluate_costs(exact, np.stack([best.u, agnostic.u])).tolist()
    alpha2 = np.minimum(np.expm1(best.u), cap)
    agnostic_alpha2 = np.minimum(np.expm1(agnostic.u), cap)
    kl = wrong.kl
    schedule = Schedule.from_squared(wrong.times, alpha2)
    reasons = violations(kl.target, kl.process, kl.sampler, schedule)
    return DiscreteStochasticity(
        times=np.asarray(wrong.times),
        stochasticity_squared=alpha2,
        epsilon=epsilon,
        sampler=kl.sampler,
        value=best.value,
        best_constant=best_constant,
        ode=ode,
        sde=sde,
        without_error=without_error,
        error_agnostic=error_agnostic,
        error_agnostic_stochasticity_squared=agnostic_alpha2,
        error_agnostic_without_error=agnostic_without,
        optimum=optimum,
        cap=cap,
        converged=best.converged,
        optima=best.optima,
        trusted=not reasons,
        warnings=(*reasons, *model_warnings(kl.target)),
    )


def _collect_starts(
    process: AbstractProcess, schedule: Schedule, optimum: OptimalDiffusion
) -> Float[np.ndarray, "starts steps"]:
    """u of constants, of the given alpha_k, and of the optimum of continuous time."""
    times = np.asarray(schedule.times)
    flat = np.repeat(np.array(_FLAT)[:, None], schedule.num_steps, 1)
    middle = constant(0.5 * (times[1:] + times[:-1]))
    continuous = np.asarray(optimum.stochasticity(process, middle)) ** 2
    return np.log1p(
        np.concatenate([flat, [np.asarray(schedule.stochasticity_squared), continuous]])
    )


def _minimise(cost: _DiscreteKL, starts: Float[np.ndarray, "starts steps"], top: float) -> Minimum:
    """The best of the starts themselves and of where they lead."""
    found = minimise(cost, move_inside(starts, top), top)
    at_starts = evaluate_costs(cost, starts)
    first = int(np.argmin(at_starts))
    if at_starts[first] < found.value:
        return found._replace(value=float(at_starts[first]), u=starts[first])
    return found


def _check_concrete(*arguments: object) -> None:
    """Refuse traced arguments: the search decides by values."""
    if is_traced(arguments):
        raise ValueError(
            "optimize_discrete_stochasticity must be called outside jit, grad and vmap."
        )


def _check_run(
    process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule | Numbers
) -> Schedule:
    """A schedule from where sampling starts to the data; times alone stand for alpha = 1."""
    if not sampler.stochastic:
        raise ValueError(
            f"sampler = {type(sampler).__name__} is deterministic and has no h; use one such as "
            "DDIM."
        )
    if sampler.reverse_sde_only:
        raise ValueError(
            f"sampler = {type(sampler).__name__} is for the reverse SDE alone, where h = g; use "
            "one such as DDIM."
        )
    if not isinstance(schedule, Schedule):
        schedule = Schedule(schedule, 1.0)
    schedule = check_schedule(process, sampler, schedule)
    first = float(np.asarray(schedule.times[0]))
    last = float(np.asarray(schedule.times[-1]))
    t_max = float(np.asarray(process.t_max))
    if not np.isfinite(time_change(process, schedule.times[0])):
        raise ValueError(
            f"schedule.times[0] = {first:g}, where no signal is left: it must start below that."
        )
    if first < t_max * (1.0 - _ROUNDING) and np.isfinite(time_change(process, process.t_max)):
        raise ValueError(
            f"schedule.times[0] = {first:g} must be the process's t_max = {t_max:g}, its start."
        )
    if last != 0.0:
        raise ValueError(
            f"schedule.times[-1] = {last:g} must be 0, the time of the data that KL compares with."
        )
    return schedule


def _evaluate_error(
    error: TimeProfile, theta: Float[Array, " evaluations"], edges: np.ndarray, modes: int
) -> Float[Array, "evaluations modes"]:
    """c at the evaluations; on an edge, within rounding, that of the cell below."""
    if callable(error):
        return evaluate_profile(error, theta[None], modes)[0]
    # a step that begins at an edge goes through the cell below
    cell = jnp.searchsorted(jnp.asarray(edges), theta * (1.0 - _ROUNDING), side="left") - 1
    return broadcast_to_modes(error, edges.size - 1, modes)[clipped(cell, 0, edges.size - 2)]
