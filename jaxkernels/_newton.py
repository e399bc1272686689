"""Minimisation with exact second derivatives in a trust region and a box, from many starts."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ._compile import quick_jit
from ._numerics import clipped, larger, smaller
from ._types import AnyArray

# Standard trust-region constants (Nocedal and Wright, "Numerical Optimization", Algorithm 4.1).
_POOR = 0.25
_GOOD = 0.75
_SHRINKAGE = (0.1, 0.4)
_FIRST_RADIUS = 1.0
_LARGEST_RADIUS = 16.0
# a step is within some percent of the trust radius after these iterations
_SHIFT_ITERATIONS = 4
# in which variables are held at their bounds, before the rest are cut to the box
_MOST_ROUNDS = 8
# of a shift from the lowest eigenvalue, relative to it
_SEPARATION = 1e-6


@runtime_checkable
class Problem(Protocol):
    """A function to be minimised, as a pytree whose arrays may change without recompiling."""

    def derivatives(self, z: Float[Array, " n"], /) -> tuple[Array, Array, Array]:
        """Value, gradient (n,) and Hessian (n, n) at z."""
        ...


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


def _free(z: AnyArray, gradient: AnyArray, lower: AnyArray, upper: AnyArray) -> AnyArray:
    """Variables that are not held at a bound by the sign of their gradient, nor by an empty box."""
    held = ((z <= lower) & (gradient > 0)) | ((z >= upper) & (gradient < 0))
    return ~held & (lower < upper)


def newton_start(z: Float[np.ndarray, "starts n"], iterations: int) -> NewtonState:
    """The state before the first call of `newton_advance`, which evaluates the starts."""
    count, n = z.shape
    # NumPy, so that nothing is compiled for it; a copy of z, as JAX may share the memory
    start = (
        np.array(z),
        np.full(count, np.inf),
        np.zeros((count, n)),
        np.zeros((count, n, n)),
        np.full(count, _FIRST_RADIUS),
        np.zeros(count, bool),
        np.full((iterations + 1, count), np.nan),
        np.asarray(0),
    )
    return NewtonState(*jax.device_put(start))


@quick_jit
def newton_advance(
    problem: Problem,
    state: NewtonState,
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    tolerance: Float[ArrayLike, ""],
    until: Int[ArrayLike, ""],
) -> NewtonState:
    """Iterate until every start is done or iteration `until` is reached.

    Each iteration minimises the quadratic model of the free variables within the trust radius and
    the box, and accepts the minimum if the value falls. A start is done when the largest free
    gradient entry is at most `tolerance`, or when the model predicts no decrease beyond rounding of
    a value of order 1 (the values are logarithms).
    """
    rounding = 4.0 * jnp.finfo(state.z.dtype).eps

    def judge(z, value, gradient, hessian, radius, done, step, trial, new):
        free = _free(z, gradient, lower, upper)
        g = jnp.where(free, gradient, 0.0)
        predicted = -(g @ step + 0.5 * step @ jnp.where(free[:, None] & free, hessian, 0.0) @ step)
        usable = jnp.isfinite(new[0]) & jnp.all(jnp.isfinite(new[1]))
        usable = usable & jnp.all(jnp.isfinite(new[2]))
        first = jnp.isinf(value)
        gain = jnp.where(usable, (value - new[0]) / larger(predicted, 1e-300), -1.0)
        # within rounding of the value the gradient is the better judge
        level = jnp.abs(value - new[0]) <= 1e-12
        shrunk = jnp.linalg.norm(jnp.where(free, new[1], 0.0)) < 0.5 * jnp.linalg.norm(g)
        gain = jnp.where(usable & level & shrunk, 1.0, gain)
        accepted = usable & ((new[0] < value) | (level & shrunk)) & ~done
        norm = jnp.linalg.norm(step)
        grown = jnp.where((gain > _GOOD) & (norm > 0.9 * radius), 2.0 * radius, radius)
        # to the minimum of the parabola along the step through its slope and both values
        slope = g @ step
        bend = jnp.where(usable, 2.0 * (new[0] - value - slope), 0.0)
        shrunken = clipped(-slope / larger(bend, 1e-300), *_SHRINKAGE) * norm
        grown = jnp.where(gain < _POOR, shrunken, smaller(grown, _LARGEST_RADIUS))
        radius = jnp.where(first, radius, grown)
        old = (z, value, gradient, hessian)
        z, value, gradient, hessian = (
            jnp.where(accepted, a, b) for a, b in zip((trial, *new), old, strict=True)
        )
        free = _free(z, gradient, lower, upper)
        flat = jnp.max(jnp.where(free, jnp.abs(gradient), 0.0), initial=0.0) <= tolerance
        # a start without a finite value cannot be improved by derivatives
        exhausted = ~accepted & (jnp.abs(predicted) <= rounding) | (radius <= 1e-12)
        exhausted = jnp.where(first, ~usable, exhausted)
        done = done | (flat & ~jnp.isinf(value)) | exhausted
        return z, value, gradient, hessian, radius, done

    def body(s: NewtonState) -> NewtonState:
        trial = _trial_points(s, lower, upper)
        rows = jax.vmap(judge)(
            s.z, s.value, s.gradient, s.hessian, s.radius, s.done,
            trial - s.z, trial, _derivatives(problem, trial, s.done),
        )  # fmt: skip
        history = s.history.at[s.iteration].set(rows[1])
        return NewtonState(*rows, history, s.iteration + 1)

    return jax.lax.while_loop(lambda s: (s.iteration < until) & ~jnp.all(s.done), body, state)


def _derivatives(
    problem: Problem, z: Float[Array, "starts n"], done: Bool[Array, " starts"]
) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian at every start, NaN for those that are done.

    A CPU takes one start after the other, whose arrays stay in its cache, and none that is done; an
    accelerator takes all at once.
    """

    def one(start: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        point, is_done = start
        # a bound method would be hashed, with all arrays of the problem
        return jax.lax.cond(is_done, _unknown, lambda z: problem.derivatives(z), point)

    if jax.default_backend() == "cpu":
        return jax.lax.map(one, (z, done))
    return jax.vmap(problem.derivatives)(z)


def _unknown(z: Float[Array, " n"]) -> tuple[Array, Array, Array]:
    """NaN in the shapes of derivatives."""
    nan = jnp.full_like(z, jnp.nan)
    return jnp.sum(nan), nan, jnp.outer(nan, nan)


def _trial_points(state: NewtonState, lower: AnyArray, upper: AnyArray) -> Array:
    """A minimum of every start's quadratic model within its trust radius and the box.

    A CPU takes one start after the other, so that none waits for the eigenvalues of another.
    """
    rows = (state.z, state.gradient, state.hessian, state.radius, state.done)
    if jax.default_backend() != "cpu":
        return _model_minima(*rows, lower, upper)

    def one(row: tuple[Array, ...]) -> Array:
        z, gradient, hessian, radius, done = (part[None] for part in row)
        return _model_minima(z, gradient, hessian, radius, done, lower, upper)[0]

    return jax.lax.map(one, rows)


def _model_minima(
    z: Float[Array, "starts n"],
    gradient: Float[Array, "starts n"],
    hessian: Float[Array, "starts n n"],
    radius: Float[Array, " starts"],
    done: Bool[Array, " starts"],
    lower: AnyArray,
    upper: AnyArray,
) -> Array:
    """Minima of models within the radius and the box.

    A variable that the minimum within the radius takes out of the box stays on its bound, and the
    others are minimised again, until all are inside.
    """
    moving = _free(z, gradient, lower, upper) & ~done[:, None]

    def again(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        moving, trial, _, rounds, shift = carry
        held = jnp.where(moving, 0.0, trial - z)
        slope = gradient + jnp.einsum("sij,sj->si", hessian, held)
        wanted = (moving, slope, shift, rounds == 0)
        step, shift = _steps_within_radius(hessian, radius, done, *wanted)
        point = jnp.where(moving, z + step, trial)
        trial = clipped(point, lower, upper)
        inside = moving & (trial == point)
        return inside, trial, jnp.any(inside != moving), rounds + 1, shift

    start = (moving, z, jnp.asarray(True), jnp.asarray(0), jnp.zeros_like(radius))
    return jax.lax.while_loop(lambda carry: carry[2] & (carry[3] < _MOST_ROUNDS), again, start)[1]


def _steps_within_radius(
    hessian: Array,
    radius: Array,
    done: Array,
    moving: Array,
    gradient: Array,
    shift: Array,
    first: Array,
) -> tuple[Array, Array]:
    """The minimum over the moving variables within the trust radius, 0 for the others; its shift.

    By Cholesky's factorisation where all minima are inside, which is the rule near an optimum.
    Eigenvalues are found in the first round only: with its shift the Hessian of fewer variables has
    none below 0 either.
    """
    g = jnp.where(moving, gradient, 0.0)
    if g.size == 0:  # one step has no times to choose
        return g, shift
    h = jnp.where(moving[:, :, None] & moving[:, None], hessian, 0.0)
    unit = jnp.eye(g.shape[1], dtype=g.dtype)
    h = h + unit * jnp.where(moving, 0.0, 1.0)[:, None]
    inside = _divide(h, g)
    # NaN where a Hessian is not positive definite
    is_inside = jnp.linalg.norm(inside, axis=-1) <= radius

    def beyond() -> tuple[Array, Array]:
        return jax.lax.cond(
            first,
            lambda: _by_eigenvalues(h, g, radius[:, None]),
            lambda: (_divide(h + unit * shift[:, None, None], g), shift),
        )

    step, shift = jax.lax.cond(jnp.all(is_inside | done), lambda: (inside, shift), beyond)
    step = jnp.where(moving & jnp.isfinite(step), step, 0.0)
    norm = jnp.linalg.norm(step, axis=-1, keepdims=True)
    return step * smaller(1.0, radius[:, None] / larger(norm, 1e-300)), shift


def _divide(h: Array, g: Array) -> Array:
    """-h^-1 g by Cholesky's factorisation; NaN where h is not positive definite."""
    factor = jnp.linalg.cholesky(h)
    return -jax.vmap(lambda c, g: jax.scipy.linalg.cho_solve((c, True), g))(factor, g)


def _by_eigenvalues(h: Array, g: Array, radius: Array) -> tuple[Array, Array]:
    """-(h + shift)^-1 g with the smallest shift >= 0 for which that is a minimum within the radius.

    In the eigenbasis, where Newton's method finds the shift from below (Nocedal and Wright, section
    4.3): the reciprocal of the step's length is nearly linear in it. Where g has no component along
    a direction of negative curvature, the step is prolonged in that direction.
    """
    curvature, directions = jnp.linalg.eigh(h)
    along = jnp.einsum("sij,si->sj", directions, g)
    lowest = curvature[:, :1]
    # what every direction alone demands
    shift = jnp.max(jnp.abs(along) / radius - curvature, axis=1, keepdims=True)
    shift = larger(shift, larger(0.0, -lowest * (1.0 + _SEPARATION)))

    def divided(shift: Array) -> tuple[Array, Array]:
        shifted = curvature + shift
        shifted = larger(shifted, 1e-12 * jnp.max(shifted, axis=1, keepdims=True) + 1e-300)
        step = -along / shifted
        return step, jnp.sum(step**2 / shifted, axis=1, keepdims=True)

    def improved(_: Int[Array, ""], shift: Array) -> Array:
        step, slope = divided(shift)
        norm = jnp.linalg.norm(step, axis=1, keepdims=True)
        more = norm**2 / larger(slope, 1e-300) * (norm / radius - 1.0)
        return jnp.where(norm > radius, shift + more, shift)

    shift = jax.lax.fori_loop(0, _SHIFT_ITERATIONS, improved, shift)
    step, _ = divided(shift)
    missing = jnp.sqrt(larger(radius**2 - jnp.sum(step**2, axis=1, keepdims=True), 0.0))
    onward = jnp.where(lowest < 0, jnp.copysign(missing, -along[:, :1]), 0.0)
    step = step.at[:, :1].add(onward)
    return jnp.einsum("sij,sj->si", directions, step), shift[:, 0]


def certificate(
    state: NewtonState, best: int, lower: AnyArray, upper: AnyArray
) -> tuple[float, float]:
    """Largest free gradient entry and smallest free Hessian eigenvalue, at one start."""
    z, gradient, hessian = (np.asarray(a)[best] for a in (state.z, state.gradient, state.hessian))
    free = _free(z, gradient, lower, upper)
    if not np.isfinite(np.asarray(state.value)[best]):
        return np.inf, -np.inf
    if not free.any():
        return 0.0, np.inf
    return float(np.abs(gradient[free]).max()), float(np.linalg.eigvalsh(hessian[free][:, free])[0])
