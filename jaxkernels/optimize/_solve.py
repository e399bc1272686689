"""Solving a problem from its starts, with a certificate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._newton import NewtonState, certificate, newton_start
from .._objective import Derivatives
from ._solver import AbstractSolver, Newton
from ._space import AbstractProblem

# iterations per call of the compiled loop, between which progress is shown
_CHUNK = 25
# a relative gradient that cancellation in float64 cannot be expected to go below
_ROUNDING_FLOOR = 1e-9
# among kinks, iterations after which the worse half of the starts is left behind
_ROUND = 8
# the same of more starts than that
_SHORT_ROUND = 2
_MANY_STARTS = 8
# rounds before kinks are rounded more widely, in which a minimum beside them is found
_FIRST_ROUNDS = 2
# how much more widely
_ROUNDINGS = (100.0, 20.0, 4.0)
# the tolerance there: a gradient along a step that ends without length falls by 1 / e an iteration,
# but what is left undone along a valley takes many more once the kinks are narrow
_LOOSE = 1e-5


@dataclasses.dataclass(frozen=True)
class Solution:
    """Where every start of a solver ended.

    `z` (starts, n); `values` (starts,), the objective there; `history` (iterations, starts), the
    objective per iteration, in which kinks may be rounded widely for a while, infinite for starts
    that are left behind then; `converged`, `reason`, `gradient_norm` and `smallest_curvature`
    belong to the best start.
    """

    z: Float[np.ndarray, "starts n"]
    values: Float[np.ndarray, " starts"]
    history: Float[np.ndarray, "iterations starts"]
    converged: bool
    reason: str
    gradient_norm: float
    """Largest entry of the objective's relative gradient in the unconstrained variables."""
    smallest_curvature: float
    """Smallest eigenvalue of the relative Hessian; > 0 certifies a strict local minimum."""

    @property
    def best(self) -> int:
        """Index of the start with the lowest objective."""
        return int(np.argmin(self.values))


def solve(
    problem: AbstractProblem,
    z: Float[np.ndarray, "starts n"],
    solver: AbstractSolver,
    report: Callable[[str], None] = lambda text: None,
) -> Solution:
    """Minimise a problem from all starts.

    **Arguments:** `problem`; `z` (starts, n), clipped to the problem's box; `solver`, such as
    `Newton()`; `report`, called with a line of progress between chunks of iterations.

    **Returns:** a `Solution`. Failing to converge is reported in it, not raised.
    """
    z = np.clip(z, np.asarray(problem.lower), np.asarray(problem.upper))
    state = solver.init(problem, z)
    histories = []
    softer = [problem.smoothed(factor) for factor in _ROUNDINGS]
    if isinstance(solver, Newton) and None not in softer:
        state, histories = _among_kinks(problem, softer, state, solver, report)
    state = _iterate(problem, state, solver, report)
    histories.append(_history(state))
    values = np.exp(np.asarray(state.value))
    values = np.where(np.isnan(values), np.inf, values)
    norm, curvature = _certificate(problem, state, int(np.argmin(values)))
    iterations = int(state.iteration)
    converged = norm <= max(solver.tolerance, _ROUNDING_FLOOR)
    return Solution(
        z=np.asarray(state.z),
        values=values,
        history=np.concatenate(histories),
        converged=converged,
        reason=_reason(converged, iterations, norm, solver),
        gradient_norm=norm,
        smallest_curvature=curvature,
    )


def _iterate(
    problem: AbstractProblem, state: Any, solver: AbstractSolver, report: Callable[[str], None]
) -> Any:
    """The solver's state when it ends."""
    while not solver.terminate(state):
        state = _advance(problem, state, solver, report, _CHUNK)
    return state


def _advance(
    problem: AbstractProblem,
    state: Any,
    solver: AbstractSolver,
    report: Callable[[str], None],
    iterations: int,
) -> Any:
    """The state after some iterations, with a line of progress."""
    until = min(int(state.iteration) + iterations, solver.max_iterations)
    state = solver.advance(problem, state, until)
    value = float(np.exp(np.min(np.asarray(state.value))))
    report(f"optimising: iteration {int(state.iteration)}, objective {value:.6g}")
    return state


def _history(state: Any) -> Float[np.ndarray, "iterations starts"]:
    """The objective of every iteration so far."""
    return np.exp(np.asarray(state.history)[: int(state.iteration)])


def _among_kinks(
    problem: AbstractProblem,
    softer: list[Any],
    state: NewtonState,
    solver: Newton,
    report: Callable[[str], None],
) -> tuple[NewtonState, list[Float[np.ndarray, "iterations starts"]]]:
    """Lead the best start close to its minimum along those of widely rounded kinks.

    Newton's method crawls in their narrow valleys: unless it ends soon, it goes on where the kinks
    are rounded most widely, then less. Meanwhile the worse half of the starts is left behind again
    and again, where it is. Returns the state to go on from, and the histories up to it.
    """
    everyone = np.ones(state.z.shape[0], bool)
    state, followed = _halve(problem, state, everyone, solver, report, _FIRST_ROUNDS)
    if solver.terminate(state) or _best_is_done(state):
        return state, []
    histories = [_history(state)]
    here = state
    loose = Newton(solver.max_iterations, max(solver.tolerance, _LOOSE))
    for stage in softer:
        here = _following(followed, loose.init(stage, np.asarray(here.z)))
        here, _ = _halve(stage, here, followed, loose, report, loose.max_iterations)
        histories.append(_history(here))
        followed = np.arange(followed.size) == np.argmin(np.asarray(here.value))
    merged = _merged(followed, solver.init(problem, np.asarray(here.z)), state)
    return _following(followed, merged), histories


def _halve(
    problem: AbstractProblem,
    state: NewtonState,
    followed: Bool[np.ndarray, " starts"],
    solver: Newton,
    report: Callable[[str], None],
    rounds: int,
) -> tuple[NewtonState, Bool[np.ndarray, " starts"]]:
    """Iterate until the best start is done, and leave the worse half behind after every round.

    Returns the state and which starts are still followed.
    """
    for _ in range(rounds):
        iterations = _SHORT_ROUND if followed.sum() > _MANY_STARTS else _ROUND
        state = _advance(problem, state, solver, report, iterations)
        order = np.argsort(np.where(followed, np.asarray(state.value), np.inf), kind="stable")
        followed = np.isin(np.arange(order.size), order[: (followed.sum() + 1) // 2])
        state = _following(followed, state)
        if solver.terminate(state) or _best_is_done(state):
            break
    return state, followed


def _following(followed: Bool[np.ndarray, " starts"], state: NewtonState) -> NewtonState:
    """The state in which the other starts are done."""
    return dataclasses.replace(state, done=jax.device_put(~followed | np.asarray(state.done)))


def _merged(
    followed: Bool[np.ndarray, " starts"], state: NewtonState, ended: NewtonState
) -> NewtonState:
    """The state, with the rows of `ended` for the other starts."""
    kept = {}
    for name in ("z", "value", "gradient", "hessian"):
        new = np.asarray(getattr(state, name))
        rows = followed.reshape(-1, *[1] * (new.ndim - 1))
        kept[name] = np.where(rows, new, getattr(ended, name))
    return dataclasses.replace(state, **jax.device_put(kept))


def _best_is_done(state: Any) -> bool:
    """Whether the start of the least value is done."""
    return bool(np.asarray(state.done)[np.argmin(np.asarray(state.value))])


def _certificate(problem: AbstractProblem, state: Any, best: int) -> tuple[float, float]:
    """Gradient norm and smallest curvature on the free variables at the best start."""
    if not isinstance(state, NewtonState):
        value, gradient, hessian = _derivatives(problem, jnp.asarray(state.z)[best])
        fresh = newton_start(np.asarray(state.z)[[best]], 1)
        fields = (value[None], gradient[None], hessian[None])
        state = eqx.tree_at(lambda s: (s.value, s.gradient, s.hessian), fresh, fields)
        best = 0
    return certificate(state, best, problem.lower, problem.upper)


@eqx.filter_jit
def _derivatives(problem: AbstractProblem, z: Array) -> Derivatives:
    return problem.derivatives(z)


def _reason(converged: bool, iterations: int, norm: float, solver: AbstractSolver) -> str:
    if converged:
        return "the gradient met the tolerance"
    if iterations >= solver.max_iterations:
        return f"{iterations} iterations were used up with relative gradient {norm:.1e}"
    return (
        f"no step lowers the objective; relative gradient {norm:.1e} > tolerance "
        f"{solver.tolerance:.1e}"
    )
