"""Gradient steps on the selection criterion through the network, with early stopping."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._compile import quick_filter_jit
from .._linalg import matmul
from .._nfe import EVALUATION, VECTOR_JACOBIAN_PRODUCT, cost_text
from .._numerics import clipped, larger
from .._padding import bucket
from ..comparison import BALANCED, WEIGHED, Comparison, Reference, balance, statistic
from ..prediction import AbstractDenoiser
from ..samplers import AbstractSampler, run_schedule, sampling_nfe
from ..schedules import Schedule, TimeCoordinate
from ._solver import Optax, optax_step
from ._space import ScheduleSpace, StepLengths, pad_zeros

# NFE of a gradient per evaluation: a forward pass, the same again since only the points of a
# trajectory are kept of it, and a backward pass
_GRADIENT = 2 * EVALUATION + VECTOR_JACOBIAN_PRODUCT
# largest change of the logarithm of a step relative to the first: the start is good, and a step
# much shorter than its neighbours, from which a multistep sampler extrapolates far, would hold for
# an exact score only
_REACH = 1.0
_LEARNING_RATE = 0.1
# calls of the compiled loop, between which progress is shown
_CHUNKS = 8


@functools.cache
def default_fine_tuning(steps: int) -> Optax:
    """Adam in the logits of step lengths with a cosine decay of its learning rate.

    The same object every time: optax makes new functions, for which a loop is compiled anew.
    """
    return Optax(optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps)), steps)


def fine_tune(
    reference: Reference,
    sampler: AbstractSampler,
    space: ScheduleSpace,
    schedule: Schedule,
    baselines: Comparison,
    criterion: str,
    solver: Optax,
    report: Callable[[str], None] = lambda text: None,
    *,
    free: bool = False,
) -> Schedule:
    """Minimise the selection criterion through the network.

    Half of the reference's noise gives gradients; the other half is held out, and the schedule with
    the lowest criterion there is returned, the given one among them.

    **Arguments:** `reference`, a solution on the noise that selects; `space` of deterministic
    schedules; `schedule`, one of them; `baselines`, compared on the same noise; `criterion` as for
    `Comparison.best`; `solver`, its transformation and number of steps; `report`, called with a
    line of progress; `free`, whether the reference is of a model, which takes no NFE.

    **Returns:** the schedule with the lowest held-out criterion. `fine_tuning_nfe` says what it
    takes.

    **Raises:** ValueError if a gradient is not finite.
    """
    dtype = reference.noise.dtype
    half = reference.noise.shape[0] // 2
    names = WEIGHED if criterion == BALANCED else (criterion,)
    objective = _Criterion.of(reference, sampler, space, names)
    train = _batch(reference, baselines, names, slice(None, half))
    held_out = _batch(reference, baselines, names, slice(half, None))
    size = bucket(space.num_steps) - 1
    with jax.enable_x64(True):
        z = jax.device_put(pad_zeros(space.vectors([schedule]), size)[0].astype(dtype))
    loop = _Loop(
        z=z,
        transformation_state=_init(solver, z),
        best=z,
        lowest=jax.device_put(np.asarray(np.inf, dtype)),
        finite=jax.device_put(np.asarray(True)),
        step=jax.device_put(np.asarray(0, np.int32)),
    )
    denoiser = reference.denoiser
    per_run = denoiser.nfe * sampling_nfe(denoiser.process, sampler, schedule)
    planned = (
        None if free else fine_tuning_nfe(reference.noise.shape[0], per_run, solver.max_iterations)
    )
    steps = solver.max_iterations
    # the last point is looked at, and not moved
    looks = steps + 1
    chunk = -(-looks // _CHUNKS)
    for until in range(chunk, looks + chunk, chunk):
        last = jax.device_put(np.asarray(min(until, looks), np.int32))
        loop = _advance(solver, objective, z, train, held_out, loop, last)
        report(
            f"fine-tuning, {cost_text(planned)}: step {min(int(loop.step), steps)} of {steps}, "
            f"held-out {criterion} {float(np.exp(loop.lowest)):.4g} of the best baseline's"
        )
    if not bool(loop.finite):
        raise ValueError(
            "fine_tune: the gradient of the error in the times is not finite; is the network "
            "differentiable?"
        )
    with jax.enable_x64(True):
        times, _ = space.arrays(np.asarray(loop.best, np.float64)[None])
    return Schedule(times[0])


def fine_tuning_nfe(n: int, per_sample: int, steps: int) -> int:
    """Count the NFE of `fine_tune`.

    A look at the held-out half of the noise, then for each step a gradient on the other half (four
    evaluations each) and another look. What a line search evaluates besides is not counted.

    **Arguments:**

    - `n`: samples of initial noise.
    - `per_sample`: NFE of the schedule for one of them.
    - `steps`: gradient steps.

    **Returns:** the NFE.
    """
    half = n // 2
    look = per_sample * (n - half)
    return look + steps * (look + _GRADIENT * per_sample * half)


class _Batch(NamedTuple):
    """Initial noise, its reference solution, and logs of the baselines' smallest statistics."""

    denoiser: AbstractDenoiser
    noise: Float[Array, "n *shape"]
    offset: Float[Array, "n d"]
    ends: Float[Array, "n d"]
    quantiles: Float[Array, "n directions"]
    floor: Float[Array, " statistics"]


class _Criterion(eqx.Module):
    """log of the selection criterion of logits z on a batch, relative to the best baseline."""

    sampler: AbstractSampler
    coordinate: TimeCoordinate
    lengths: StepLengths
    num_steps: Int[Array, ""]
    t_min: Float[Array, ""]
    scale: Float[Array, ""]
    directions: Float[Array, "d directions"]
    statistics: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def of(
        cls,
        reference: Reference,
        sampler: AbstractSampler,
        space: ScheduleSpace,
        statistics: tuple[str, ...],
    ) -> "_Criterion":
        """The criterion in the precision of the reference's noise."""
        dtype = reference.noise.dtype
        with jax.enable_x64(True):
            lengths = StepLengths.of(space)
        return cls(
            sampler=sampler,
            coordinate=_on_device(space.coordinate, dtype),
            lengths=_on_device(lengths, dtype),
            num_steps=jax.device_put(np.asarray(space.num_steps)),
            t_min=_on_device(space.t_min, dtype),
            scale=_on_device(reference.scale, dtype),
            directions=_on_device(reference.directions, dtype),
            statistics=statistics,
        )

    def schedule(self, z: Float[Array, " n"]) -> Schedule:
        """The schedule of logits, whose last time is repeated in the padding."""
        times = self.coordinate.time(self.lengths.coordinates(z, self.num_steps))
        inside = jnp.arange(times.shape[0]) < self.num_steps
        times = jnp.where(inside, times, self.t_min)
        return Schedule(times.at[0].set(self.coordinate.start))

    def __call__(self, z: Float[Array, " n"], batch: _Batch) -> Float[Array, ""]:
        # unchecked: every z gives a schedule, and a program with checks at run time is not kept in
        # JAX's compilation cache
        run = (batch.denoiser, self.sampler, self.schedule(z), None, batch.noise)
        samples, _ = run_schedule(*run, num_steps=self.num_steps)
        samples = samples.reshape(batch.ends.shape) + batch.offset
        squared = jnp.sum((samples - batch.ends) ** 2, -1) / self.scale**2
        errors = jnp.sqrt(larger(squared, jnp.finfo(z.dtype).tiny))
        projections = matmul(samples, self.directions)
        values = [
            statistic(jnp, name, errors, projections, batch.quantiles) for name in self.statistics
        ]
        return balance(jnp, jnp.log(jnp.stack(values)) - batch.floor)


class _Loop(NamedTuple):
    """State of the compiled loop; `best` has the lowest held-out criterion of all points so far."""

    z: Float[Array, " n"]
    transformation_state: PyTree
    best: Float[Array, " n"]
    lowest: Float[Array, ""]
    finite: Bool[Array, ""]
    step: Int[Array, ""]


@quick_filter_jit
def _init(solver: Optax, z: Float[Array, " n"]) -> PyTree:
    return solver.transformation.init(z)


@quick_filter_jit
def _advance(
    solver: Optax,
    objective: _Criterion,
    start: Float[Array, " n"],
    train: _Batch,
    held_out: _Batch,
    loop: _Loop,
    until: Int[Array, ""],
) -> _Loop:
    """Looks at the held-out criterion until number `until`, and a step after each but the last.

    It ends before if a gradient is not finite.
    """

    def fn(z: Array) -> Array:
        return objective(z, train)

    def move(s: _Loop) -> tuple[Array, PyTree, Array]:
        value, gradient = jax.value_and_grad(fn)(s.z)
        moved, inner = optax_step(
            solver.transformation, fn, s.z, value, gradient, s.transformation_state
        )
        finite = jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(moved))
        moved = jnp.where(finite, clipped(moved, start - _REACH, start + _REACH), s.z)
        return moved, inner, finite

    def stay(s: _Loop) -> tuple[Array, PyTree, Array]:
        return s.z, s.transformation_state, s.finite

    def body(s: _Loop) -> _Loop:
        watched = objective(s.z, held_out)
        better = watched < s.lowest
        moved, inner, finite = jax.lax.cond(s.step < solver.max_iterations, move, stay, s)
        return _Loop(
            z=moved,
            transformation_state=inner,
            best=jnp.where(better, s.z, s.best),
            lowest=jnp.where(better, watched, s.lowest),
            finite=finite,
            step=s.step + 1,
        )

    return jax.lax.while_loop(lambda s: (s.step < until) & s.finite, body, loop)


def _on_device(numbers: Any, dtype: np.dtype) -> Any:
    """Numbers, or a module that holds them, on the device in another precision."""
    return jax.device_put(jax.tree.map(lambda a: np.asarray(a, dtype), numbers))


def _batch(
    reference: Reference, baselines: Comparison, names: tuple[str, ...], rows: slice
) -> _Batch:
    dtype = reference.noise.dtype
    lowest = np.array([baselines.statistic_values(name, rows).min() for name in names])
    floor = np.log(np.maximum(lowest, np.finfo(dtype).tiny))
    taken = reference.take(rows)
    arrays = (taken.offset, taken.ends, baselines.target_quantiles(rows), floor)
    return _Batch(taken.denoiser, taken.noise, *_on_device(arrays, dtype))
