"""The reverse diffusion h with K steps: what a score error and the steps cost together.

`optimize_diffusion` minimises L of continuous time, where KL(p_0 || q) = eps^2 L to leading order. With K steps the law
without any error is not the data law: KL has a term in eps, and a part that is the discretisation's own. What is
minimised here over alpha_k^2 = h_k^2 / g^2, on a given grid, is exact at finite eps:

    J = [KL(p_0 || q; +eps) + KL(p_0 || q; -eps)] / 2,                                                     (1)

q the law of the samples if the score is (1 +- eps c(theta)) grad log p and sampling starts from the exact marginal: the
part of KL that is even in the error, whose sign is not known. J is minimised once more without the error, which splits
the gain over the best constant h:

    constant / optimum = (constant / blind) (blind / optimum),     blind: J under the error of that second optimum,

a repair of the discretisation times a gain against the error. And J is compared with eps^2 L of the continuous-time
optimum: for few steps that is out of reach, and its h(t) far from the best h_k.

Cao, Chen, Luo, Zhou (2023), Section 5, leave the choice of a time-dependent h open; (1) and the comparisons are not
theirs, the exponential integrator is their Appendix H.4.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._precision import in_float64
from .._types import AnyArray, Numbers, constant
from ..distributions import Gaussian
from ..metrics import METRICS
from ..optimize import TerminalError, model_warnings, violations
from ..processes import AbstractProcess, check_process
from ..recurrence import check_target, evaluation_times
from ..samplers import AbstractSampler, as_sampler, check_schedule
from ..schedules import Schedule
from ..score_error import AbstractProfile, AffineError, Relative, ScoreError
from ._clock import Profile, at_times, checked_variances, clock, on_cells
from ._optimal import (
    CONSTANTS,
    AbstractCost,
    OptimalDiffusion,
    best_constant,
    minimise,
    optimize_diffusion,
    values_at,
)

_FLAT = (0.0, 0.1, 0.5, 1.0, 4.0)
"""h^2 of constant starts."""


_ROUNDING = 1e-6
"""By how much, relatively, times may miss t_max or the edge of a cell: they may come from float32."""


class _AtEvaluations(AbstractProfile):
    """The exact score times a number for every evaluation of one schedule."""

    size: Float[AnyArray, "evaluations modes"]

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        return jax.tree.map(lambda a: a * self.size, Relative()(target, process, times))


class _InClock(AbstractProfile):
    """The exact score times a function of the clock."""

    size: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        size = at_times(self.size, clock(process, times)[None], target.eigenvalues.shape[0])[0]
        return jax.tree.map(lambda a: a * size, Relative()(target, process, times))


class EvenKL(eqx.Module):
    """J of (1) as a function of a schedule, in nats: exact, differentiable in times and alpha^2, and jittable.

    **Arguments:**

    - `target`: with eigenvalues > 0; without them KL is infinite.
    - `error`: c, a function of the clock theta as in `optimize_diffusion`, or numbers (evaluations,) or
      (evaluations, modes) at the sampler's evaluations, noise first: then schedules differ in alpha only.
    - `epsilon`: its factor. Without error, 0, J is KL(p_0 || q) of the discretisation.

    A change of `epsilon`, of numbers or of the target's does not recompile; another function does.
    """

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    error: AbstractProfile
    epsilon: Float[ArrayLike, ""]

    def __init__(
        self,
        target: Gaussian,
        error: Callable[[Array], Array] | Float[ArrayLike, "evaluations *modes"],
        process: AbstractProcess,
        sampler: AbstractSampler,
        epsilon: Float[ArrayLike, ""],
    ):
        self.target, self.process, self.sampler = target.in_eigenbasis(), process, sampler
        self.epsilon = epsilon
        if callable(error):
            self.error = _InClock(error)
        else:
            self.error = _AtEvaluations(jnp.reshape(jnp.asarray(error), (np.shape(error)[0], -1)))

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        def kl(epsilon: Array) -> Array:
            error = ScoreError.deterministic(self.error, epsilon)
            return TerminalError(
                self.target, self.process, self.sampler, METRICS["kl"], "marginal", error
            )(schedule)

        return jnp.mean(jax.vmap(kl)(jnp.asarray(self.epsilon) * jnp.asarray([1.0, -1.0])))


class _OnGrid(AbstractCost):
    """J at u = log(1 + h^2) on a fixed grid."""

    kl: EvenKL
    times: Float[AnyArray, " points"]

    def value(self, u: Float[Array, " n"], /) -> Float[Array, ""]:
        h_squared = jnp.broadcast_to(jnp.expm1(u), (self.times.shape[0] - 1,))
        value = self.kl(Schedule.from_squared(jnp.asarray(self.times), h_squared))
        return jnp.where(jnp.isnan(value), jnp.inf, value)  # the variance has overflowed


@dataclasses.dataclass(frozen=True, repr=False)
class FewSteps:
    """The best alpha_k of K steps, and what it is to be compared with. Values are J of (1), in nats."""

    times: np.ndarray
    """The grid, (K + 1,), as it was given."""
    h_squared: np.ndarray
    """h_k^2 / g^2 = alpha_k^2, (K,), noise first."""
    epsilon: float
    sampler: AbstractSampler
    value: float
    best_constant: tuple[float, float]
    """J and h^2 of the best constant h^2 below the cap."""
    ode: float
    """J of h = 0."""
    sde: float
    """J of h = g."""
    without_error: float
    """J of this schedule at eps = 0: the discretisation's own share of `value`, or more, where an error helps."""
    blind: float
    """J, with the error, of the schedule that was optimised without it."""
    blind_h_squared: np.ndarray
    """alpha_k^2 of that schedule, (K,)."""
    blind_without_error: float
    """Its J at eps = 0: the least that these steps cost without any error."""
    optimum: OptimalDiffusion
    """Of continuous time, for the same error from the same start."""
    cap: float
    converged: bool
    """Whether the best start has met the tolerance: every derivative is zero, or points out of the box."""
    optima: np.ndarray
    """J that each start has reached, infinite where it explodes; they differ where there are several local minima."""
    trusted: bool
    """False if the schedule relies on what holds for Gaussian data only; see `warnings`."""
    warnings: tuple[str, ...]

    @property
    def schedule(self) -> Schedule:
        """The grid with its best alpha_k, in the caller's precision."""
        return Schedule(self.times, np.sqrt(self.h_squared))

    @property
    def gain(self) -> float:
        """J of the best constant over the optimum: at least 1, and `repair_gain` times `score_gain`."""
        return self.best_constant[0] / self.value

    @property
    def repair_gain(self) -> float:
        """J of the best constant over `blind`: what repairs the discretisation. Below 1 if the error punishes it."""
        return self.best_constant[0] / self.blind

    @property
    def score_gain(self) -> float:
        """`blind` over the optimum: what knowing the error is worth, at least 1."""
        return self.blind / self.value

    @property
    def continuous(self) -> float:
        """eps^2 L of the optimum of continuous time: the infimum over all h(t) where it is known."""
        best = self.optimum.infimum or self.optimum
        return self.epsilon**2 * best.value

    @property
    def ratio(self) -> float:
        """J over `continuous`."""
        return self.value / self.continuous if self.continuous > 0 else float("inf")

    @property
    def out_of_reach(self) -> bool:
        """Whether these steps cost more without any error than the optimum of continuous time costs with it."""
        return self.without_error > self.continuous

    def __repr__(self) -> str:
        steps, (constant, h_squared) = self.h_squared.size, self.best_constant
        lines = [
            f"FewSteps({type(self.sampler).__name__}, {steps} steps, eps = {self.epsilon:g}, "
            f"{'converged' if self.converged else 'not converged'}",
            f"  J {self.value:.6g}; best constant {constant:.6g} (h^2 = {h_squared:.4g}): {self.gain:.3g} times that",
            f"  ode {self.ode:.6g}, h = g {self.sde:.6g}",
            f"  gain {self.gain:.3g} = repair of the discretisation {self.repair_gain:.3g} x gain against the error "
            f"{self.score_gain:.3g}",
            f"  {'out of reach: ' if self.out_of_reach else ''}K = {steps} steps cost {self.ratio:.3g} times the "
            f"optimum of continuous time, {self.continuous:.3g}; {min(self.without_error / self.value, 1.0):.0%} of it "
            "is discretisation",
        ]
        for name in ("times", "h_squared"):
            text = np.array2string(
                getattr(self, name), precision=4, suppress_small=True, max_line_width=88
            )
            lines.append(f"  {name} {text}".replace("\n", "\n   "))
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines) + f"\n  trusted={self.trusted})"


@in_float64
def optimize_few_steps(
    target: Gaussian,
    error: Profile,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule | Numbers,
    epsilon: Numbers,
    *,
    cells: int | Numbers = 16,
    cap: float = 100.0,
) -> FewSteps:
    """Minimise J of (1) over 0 <= alpha_k^2 <= `cap` on a given grid, by projected Newton iterations from many starts.

    Among the starts are the best constant, h = 0, h = g, the given alpha_k, the optimum of continuous time in the
    middle of the steps (all cut to the cap), and the optimum without error: the result is never worse than any of
    them. A step whose noise has no effect, such as DDIM's to t = 0, keeps the alpha that the search has left it. The
    grid is kept: `optimize_schedule` is for grids, with `EvenKL` as its objective.

    **Arguments:**

    - `error`: c(theta) of the relative error eps c in the clock theta, as in `optimize_diffusion`: a function of
      times, of every mode too if it appends an axis for them; or values on `cells`, (cells,) or (cells, modes). A step
      sees it at its evaluations; one at an edge belongs to the cell below, where the step goes.
    - `sampler`: a stochastic one, or its name: the exponential integrator is the source's, `DDIM` the one whose noise
      was seen to hold on networks.
    - `schedule`: times (K + 1,), from the process's t_max (below it, if sigma is infinite there) to 0; or a `Schedule`
      of such times, whose alpha_k are then among the starts.
    - `epsilon`: eps > 0, dimensionless like c.
    - `cells`: of the optimum of continuous time, as in `optimize_diffusion`; their edges, if `error` is given on them.
    - `cap`: bound on alpha^2, here and in continuous time.

    **Raises:** ValueError naming the argument and its value: for a variance of 0, a deterministic sampler, a grid
    that does not run from start to end, `epsilon` or `cap` <= 0, an error that vanishes or does not fit.

    The first call for a sampler, kind of process, K and number of modes compiles; others take milliseconds.
    """
    target = check_target(target)
    process = check_process(process)
    sampler = as_sampler(sampler)
    if not _checks.is_concrete((target, process, sampler, schedule, epsilon)):
        raise ValueError("optimize_few_steps must be called outside jit, grad and vmap.")
    target = target.in_eigenbasis()
    modes = checked_variances(target).shape[0]
    if not sampler.stochastic:
        raise ValueError(
            f"sampler = {type(sampler).__name__} is deterministic and has no h; use one such as DDIM."
        )
    schedule = _checked_grid(process, sampler, schedule)
    epsilon = float(_checks.scalar("epsilon", epsilon, above=0.0))
    cap = float(_checks.scalar("cap", cap, above=0.0))

    times, steps, top = constant(schedule.times), schedule.num_steps, float(np.log1p(cap))
    optimum = optimize_diffusion(target, error, clock(process, times[0]), cells=cells, cap=cap)
    theta = clock(process, evaluation_times(process, sampler, schedule))
    size = _at_evaluations(error, theta, optimum.edges, modes)
    without, planted = (
        _OnGrid(EvenKL(target, size, process, sampler, e), times) for e in jnp.array([0.0, epsilon])
    )

    middle = np.asarray(optimum.stochasticity(process, 0.5 * (times[1:] + times[:-1])))
    flat = np.repeat(np.array(_FLAT)[:, None], steps, 1)
    squared = np.concatenate([flat, [np.asarray(schedule.stochasticity_squared), middle**2]])
    starts = np.minimum(np.log1p(squared), top)

    def search(problem: _OnGrid, *more: np.ndarray) -> _Found:
        return _minimum(problem, np.concatenate([starts, np.stack(more)]), top)

    constant_u = np.full(steps, best_constant(without, top, steps)[0])
    blind = search(
        without, constant_u, constant_u
    )  # as many starts as with the error: one compilation
    u, least = best_constant(planted, top, steps)
    best = search(planted, np.full(steps, u), blind.u)
    if not np.isfinite(best.value):
        raise ValueError(
            f"KL is infinite at every start: {type(sampler).__name__} is not finite on this schedule."
        )

    ode, sde, known = _values(
        planted, np.stack([np.zeros(steps), np.full(steps, np.log(2.0)), blind.u])
    ).tolist()
    share, floor = _values(without, np.stack([best.u, blind.u])).tolist()
    h_squared, blind_h_squared = (np.minimum(np.expm1(found.u), cap) for found in (best, blind))
    reasons = violations(target, process, sampler, Schedule.from_squared(times, h_squared))
    return FewSteps(
        times=np.asarray(times),
        h_squared=h_squared,
        epsilon=epsilon,
        sampler=sampler,
        value=best.value,
        best_constant=(least, float(np.expm1(u))),
        ode=ode,
        sde=sde,
        without_error=share,
        blind=known,
        blind_h_squared=blind_h_squared,
        blind_without_error=floor,
        optimum=optimum,
        cap=cap,
        converged=best.converged,
        optima=best.optima,
        trusted=not reasons,
        warnings=(*reasons, *model_warnings(target)),
    )


class _Found(NamedTuple):
    value: float
    u: np.ndarray
    converged: bool
    optima: np.ndarray


def _minimum(problem: _OnGrid, starts: Float[np.ndarray, "starts steps"], top: float) -> _Found:
    """The best of the starts themselves and of where they lead."""
    # away from the bounds, so that the first step sees every variable
    value, u, converged, optima = minimise(problem, np.clip(starts, 0.02 * top, 0.98 * top), top)
    at_starts = _values(problem, starts)
    first = int(np.argmin(at_starts))
    if at_starts[first] < value:
        value, u = float(at_starts[first]), starts[first]
    return _Found(value, u, converged, optima)


def _values(problem: _OnGrid, u: Float[np.ndarray, "n steps"]) -> Float[np.ndarray, " n"]:
    """J of at most `CONSTANTS` rows, by the program that has compared constants."""
    rows = np.zeros((CONSTANTS, u.shape[1]))
    rows[: len(u)] = u
    return np.asarray(values_at(problem, jnp.asarray(rows)))[: len(u)]


def _checked_grid(
    process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule | Numbers
) -> Schedule:
    """From where sampling starts to the data; times alone stand for h = g."""
    if not isinstance(schedule, Schedule):
        schedule = Schedule(schedule, 1.0)
    schedule = check_schedule(process, sampler, schedule)
    first, last, t_max = (
        float(np.asarray(t)) for t in (schedule.times[0], schedule.times[-1], process.t_max)
    )
    if not np.isfinite(clock(process, schedule.times[0])):
        raise ValueError(
            f"schedule.times[0] = {first:g}, where no signal is left: it must start below that."
        )
    if first < t_max * (1.0 - _ROUNDING) and np.isfinite(clock(process, process.t_max)):
        raise ValueError(
            f"schedule.times[0] = {first:g} must be the process's t_max = {t_max:g}, its start."
        )
    if last != 0.0:
        raise ValueError(
            f"schedule.times[-1] = {last:g} must be 0, the time of the data that KL compares with."
        )
    return schedule


def _at_evaluations(
    error: Profile, theta: Float[Array, " evaluations"], edges: np.ndarray, modes: int
) -> Float[Array, "evaluations modes"]:
    """c at the clock's times; on an edge, within rounding, that of the cell below: there the step goes."""
    if callable(error):
        return at_times(error, theta[None], modes)[0]
    cell = jnp.searchsorted(jnp.asarray(edges), theta * (1.0 - _ROUNDING), side="left") - 1
    return on_cells(error, edges.size - 1, modes)[jnp.clip(cell, 0, edges.size - 2)]
