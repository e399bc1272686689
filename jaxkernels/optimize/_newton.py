"""Minimisation with exact second derivatives in a trust region and a box, from many starts at once."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

Problem = TypeVar("Problem", bound=PyTree)

# Standard trust-region constants (Nocedal and Wright, "Numerical Optimization", Algorithm 4.1).
_POOR, _GOOD, _LARGEST_RADIUS = 0.25, 0.75, 8.0


class NewtonState(eqx.Module):
    """One row per start. `value`, `gradient` and `hessian` belong to `z`."""

    z: Float[Array, "starts n"]
    value: Float[Array, " starts"]
    gradient: Float[Array, "starts n"]
    hessian: Float[Array, "starts n n"]
    radius: Float[Array, " starts"]
    done: Bool[Array, " starts"]
    history: Float[Array, "iterations starts"]
    iteration: Int[Array, ""]


def _derivatives(fn: Callable[[Array], Array], z: Array) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian in one forward-over-reverse pass."""

    def gradient(z: Array):
        value, g = jax.value_and_grad(fn)(z)
        return g, (value, g)

    hessian, (value, g) = jax.jacfwd(gradient, has_aux=True)(z)
    return value, g, hessian


def _free(z: Array, gradient: Array, lower: Array, upper: Array) -> Array:
    """Variables that are not held at a bound by the sign of their gradient."""
    return ~(((z <= lower) & (gradient > 0)) | ((z >= upper) & (gradient < 0)))


@partial(jax.jit, static_argnames=("iterations",))
def newton_start(problem: Problem, z: Float[Array, "starts n"], iterations: int) -> NewtonState:
    """The state before the first iteration; `problem(z)` is the value to be minimised."""
    value, gradient, hessian = jax.vmap(partial(_derivatives, problem))(z)
    size = value.shape
    history = jnp.full((iterations + 1, *size), jnp.nan).at[0].set(value)
    # a start that has no finite value cannot be improved by derivatives
    done = ~(jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient), -1))
    return NewtonState(z, value, gradient, hessian, jnp.ones(size), done, history, jnp.zeros((), int))


@jax.jit
def newton_advance(
    problem: Problem,
    state: NewtonState,
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    tolerance: Float[Array, ""],
    until: Int[Array, ""],
) -> NewtonState:
    """Iterate until every start is done or iteration `until` is reached.

    Each iteration solves the Newton system on the free variables with the eigenvalues of the Hessian
    replaced by their absolute values (a descent direction also where it is indefinite), cuts the step to
    the trust radius and the box, and accepts it if the value falls. A start is done when the largest
    free gradient entry is at most tolerance |value|, or when the model predicts no decrease beyond
    rounding.
    """
    rounding = 4.0 * jnp.finfo(state.z.dtype).eps

    def one(z, value, gradient, hessian, radius, done):
        free = _free(z, gradient, lower, upper)
        g = jnp.where(free, gradient, 0.0)
        both = free[:, None] & free
        h = jnp.where(both, hessian, 0.0)
        curvature, directions = jnp.linalg.eigh(h)
        curvature = jnp.abs(curvature)
        curvature = jnp.maximum(curvature, 1e-12 * jnp.max(curvature) + 1e-300)
        step = -directions @ ((directions.T @ g) / curvature)
        step = jnp.where(free, step, 0.0)
        length = jnp.linalg.norm(step)
        step = step * jnp.minimum(1.0, radius / jnp.maximum(length, 1e-300))
        trial = jnp.clip(z + step, lower, upper)
        step = trial - z
        predicted = -(g @ step + 0.5 * step @ h @ step)
        new = _derivatives(problem, trial)
        usable = jnp.isfinite(new[0]) & jnp.all(jnp.isfinite(new[1]))
        usable = usable & jnp.all(jnp.isfinite(new[2]))
        gain = jnp.where(usable, (value - new[0]) / jnp.maximum(predicted, 1e-300), -1.0)
        accepted = usable & (new[0] < value) & ~done
        norm = jnp.linalg.norm(step)
        grown = jnp.where((gain > _GOOD) & (norm > 0.9 * radius), 2.0 * radius, radius)
        radius = jnp.where(gain < _POOR, 0.25 * norm, jnp.minimum(grown, _LARGEST_RADIUS))
        z, value, gradient, hessian = (
            jnp.where(accepted, a, b)
            for a, b in zip((trial, *new), (z, value, gradient, hessian), strict=True)
        )
        free = _free(z, gradient, lower, upper)
        flat = jnp.max(jnp.where(free, jnp.abs(gradient), 0.0)) <= tolerance * jnp.abs(value)
        exhausted = (predicted <= rounding * jnp.abs(value)) | (radius <= 1e-12)
        return z, value, gradient, hessian, radius, done | flat | exhausted

    def body(s: NewtonState) -> NewtonState:
        rows = jax.vmap(one)(s.z, s.value, s.gradient, s.hessian, s.radius, s.done)
        iteration = s.iteration + 1
        return NewtonState(*rows, s.history.at[iteration].set(rows[1]), iteration)

    return jax.lax.while_loop(lambda s: (s.iteration < until) & ~jnp.all(s.done), body, state)


@jax.jit
def certificate(
    state: NewtonState, best: Int[Array, ""], lower: Float[Array, " n"], upper: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Largest free gradient entry and smallest Hessian eigenvalue on the free variables, at one start."""
    z, gradient, hessian = state.z[best], state.gradient[best], state.hessian[best]
    free = _free(z, gradient, lower, upper)
    norm = jnp.max(jnp.where(free, jnp.abs(gradient), 0.0), initial=0.0)
    # held variables are moved to the top of the spectrum
    top = jnp.where(free, 0.0, 2.0 * jnp.linalg.norm(hessian) + 1.0)
    reduced = jnp.where(free[:, None] & free, hessian, 0.0) + jnp.diag(top)
    return norm, jnp.linalg.eigvalsh(reduced)[0]
