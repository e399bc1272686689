"""Solvers: how a problem is minimised, from many starts at once in one compiled loop."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .. import _checks
from .._newton import NewtonState, newton_advance, newton_start
from .._numerics import clipped
from ._space import AbstractProblem

# of the radius of a box: closer to a bound a point is on it; closer than this no start begins
_AT_BOUND = 1e-9
_OFF_BOUND = 0.02


class AbstractSolver(eqx.Module):
    """An iterative minimiser of an `AbstractProblem`, from all starts at once.

    A state has the fields `z` (starts, n), `value` (starts,), `done` (starts,), `history`
    (iterations, starts) and `iteration`. A loop by hand is

        state = solver.init(problem, z)
        while not solver.terminate(state):
            state = solver.step(problem, state)
    """

    max_iterations: eqx.AbstractVar[int]
    tolerance: eqx.AbstractVar[float]

    @abc.abstractmethod
    def init(self, problem: AbstractProblem, z: Float[np.ndarray, "starts n"]) -> PyTree:
        """Start from vectors within the problem's box, before anything is evaluated.

        **Arguments:**

        - `problem`: the problem, whose box is [lower, upper].
        - `z`: (starts, n), one vector of the unconstrained variables per start.

        **Returns:** the state before the first iteration.
        """

    @abc.abstractmethod
    def advance(self, problem: AbstractProblem, state: PyTree, until: int) -> PyTree:
        """Iterate in one compiled loop.

        **Arguments:**

        - `problem`: the problem that `init` was given.
        - `state`: what `init` or `advance` returned.
        - `until`: number of iterations, counted from the first, at which to stop unless all starts
          are done before.

        **Returns:** the state after these iterations.
        """

    def step(self, problem: AbstractProblem, state: PyTree) -> PyTree:
        """One iteration of every start."""
        return self.advance(problem, state, int(state.iteration) + 1)

    def terminate(self, state: PyTree) -> bool:
        """Whether all starts are done or the iterations are used up."""
        return bool(np.all(np.asarray(state.done))) or int(state.iteration) >= self.max_iterations


class Newton(AbstractSolver):
    """Newton's method with exact second derivatives in a trust region and a box.

    **Arguments:**

    - `max_iterations`: at least 1.
    - `tolerance`: a start has converged when the largest entry of the objective's relative gradient
      in the unconstrained variables is at most this.

    **Raises:** ValueError for a value out of range.

    The default for objectives with small Hessians, such as those on a Gaussian or on a trajectory
    record. Source: Nocedal and Wright, "Numerical Optimization" (2006), Algorithm 4.1.

    **Example:**

    ```python
    >>> jk.Newton(tolerance=1e-6)
    Newton(max_iterations=200, tolerance=1e-06)
    ```
    """

    max_iterations: int = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)

    def __init__(self, max_iterations: int = 200, tolerance: float = 1e-8):
        self.max_iterations = _checks.count("max_iterations", max_iterations)
        self.tolerance = float(_checks.scalar("tolerance", tolerance, at_least=0.0))

    def init(self, problem: AbstractProblem, z: Float[np.ndarray, "starts n"]) -> NewtonState:
        return newton_start(z, self.max_iterations)

    def advance(self, problem: AbstractProblem, state: NewtonState, until: int) -> NewtonState:
        tolerance = np.asarray(self.tolerance)
        return newton_advance(
            problem, state, problem.lower, problem.upper, tolerance, np.asarray(until)
        )


def optax_step(
    transformation: optax.GradientTransformation,
    fn: Callable[[Array], Array],
    z: Float[Array, " n"],
    value: Float[Array, ""],
    gradient: Float[Array, " n"],
    state: PyTree,
) -> tuple[Float[Array, " n"], PyTree]:
    """The next point and state of a transformation; line searches are given `fn` as well."""
    extended = optax.with_extra_args_support(transformation)
    # optax mixes types and relies on their promotion, which the caller may have turned off
    with jax.numpy_dtype_promotion("standard"):
        updates, state = extended.update(
            gradient, state, z, value=value, grad=gradient, value_fn=fn
        )
        return jnp.asarray(optax.apply_updates(z, updates)), state


class _Box(eqx.Module):
    """The map z = center + radius sin(u / radius) of unbounded variables u into a problem's box.

    A bound is a stationary point in u, which a line search need not know of. Next to a bound z is
    the bound itself, so that the optimum on it is exact.
    """

    center: Float[Array, " n"]
    radius: Float[Array, " n"]

    @classmethod
    def of(cls, problem: AbstractProblem) -> "_Box":
        lower = jnp.asarray(problem.lower)
        upper = jnp.asarray(problem.upper)
        return cls(0.5 * (lower + upper), 0.5 * (upper - lower))

    def inside(self, u: Float[Array, "*starts n"]) -> Float[Array, "*starts n"]:
        """The point z of u."""
        share = jnp.sin(u / jnp.where(self.radius == 0, 1.0, self.radius))
        share = jnp.where(jnp.abs(share) > 1.0 - _AT_BOUND, jnp.sign(share), share)
        return self.center + self.radius * share

    def unbounded(self, z: Float[Array, "*starts n"]) -> Float[Array, "*starts n"]:
        """The variables u of starts, away from the bounds, where derivatives in u vanish."""
        share = (z - self.center) / jnp.where(self.radius == 0, 1.0, self.radius)
        share = clipped(share, -1.0 + _OFF_BOUND, 1.0 - _OFF_BOUND)
        return self.radius * jnp.arcsin(share)


class OptaxState(eqx.Module):
    """One row per start: the best point so far with its value, and the current one.

    `current` is in the unbounded variables that the transformation moves.
    """

    z: Float[Array, "starts n"]
    value: Float[Array, " starts"]
    current: Float[Array, "starts n"]
    transformation_state: PyTree
    done: Bool[Array, " starts"]
    history: Float[Array, "iterations starts"]
    iteration: Int[Array, ""]


class Optax(AbstractSolver):
    """Any optax transformation, as a compiled loop over all starts.

    **Arguments:**

    - `transformation`: an `optax.GradientTransformation`, such as `optax.adam(schedule)`,
      `optax.lbfgs()` or a chain. Line searches are given the value, the gradient and the function.
    - `steps`: the largest number of iterations, at least 1.
    - `tolerance`: a start has converged when the largest entry of the objective's relative gradient
      is at most this.

    The objective is its logarithm, so that learning rates are relative. What moves are variables u
    without bounds: z = center + radius sin(u / radius), the center and radius of the problem's box;
    starts on a bound begin next to it. The best point of every start is returned.

    **Raises:** ValueError for a value out of range, or a transformation that is none.

    **Example:**

    ```python
    >>> import optax
    >>> solver = jk.Optax(optax.lbfgs(), steps=100)
    ```
    """

    transformation: optax.GradientTransformation = eqx.field(static=True)
    max_iterations: int = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)

    def __init__(
        self,
        transformation: optax.GradientTransformation,
        steps: int = 1000,
        tolerance: float = 1e-8,
    ):
        if not isinstance(transformation, optax.GradientTransformation):
            raise ValueError(
                "transformation must be an optax.GradientTransformation such as optax.lbfgs(); got "
                f"{transformation!r}."
            )
        self.transformation = transformation
        self.max_iterations = _checks.count("steps", steps)
        self.tolerance = float(_checks.scalar("tolerance", tolerance, at_least=0.0))

    def init(self, problem: AbstractProblem, z: Float[np.ndarray, "starts n"]) -> OptaxState:
        starts = z.shape[0]
        u = _Box.of(problem).unbounded(jnp.asarray(z))
        return OptaxState(
            z=jnp.asarray(z),
            value=jnp.full(starts, jnp.inf),
            current=u,
            transformation_state=jax.vmap(self.transformation.init)(u),
            done=jnp.zeros(starts, bool),
            history=jnp.full((self.max_iterations, starts), jnp.nan),
            iteration=jnp.asarray(0),
        )

    def advance(self, problem: AbstractProblem, state: OptaxState, until: int) -> OptaxState:
        return _optax_advance(self, problem, state, jnp.asarray(until))


@eqx.filter_jit
def _optax_advance(
    solver: Optax, problem: AbstractProblem, state: OptaxState, until: Int[Array, ""]
) -> OptaxState:
    box = _Box.of(problem)

    def objective(u: Array) -> Array:
        return problem.value(box.inside(u))

    def one(u: Array, inner: PyTree) -> tuple[Array, Array, Array, PyTree]:
        value, gradient = jax.value_and_grad(objective)(u)
        moved, inner = optax_step(solver.transformation, objective, u, value, gradient, inner)
        return value, gradient, moved, inner

    def body(s: OptaxState) -> OptaxState:
        value, gradient, moved, inner = jax.vmap(one)(s.current, s.transformation_state)
        usable = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient), -1)
        better = usable & (value < s.value) & ~s.done
        largest = jnp.max(jnp.abs(gradient), -1, initial=0.0)
        stuck = ~jnp.all(jnp.isfinite(moved), -1) | ~usable
        done = s.done | stuck | (largest <= solver.tolerance)
        best = jnp.where(better, value, s.value)
        return OptaxState(
            z=jnp.where(better[:, None], box.inside(s.current), s.z),
            value=best,
            current=jnp.where(done[:, None], s.current, moved),
            transformation_state=inner,
            done=done,
            history=s.history.at[s.iteration].set(best),
            iteration=s.iteration + 1,
        )

    return jax.lax.while_loop(lambda s: (s.iteration < until) & ~jnp.all(s.done), body, state)
