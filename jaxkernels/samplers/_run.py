"""Sampling with a network, or with the exact denoiser of a distribution."""

import functools
from collections.abc import Callable
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import _checks
from .._compile import kept_filter_jit
from .._numerics import safe_sqrt
from .._padding import bucket, pad_last
from .._precision import is_traced, to_dtype
from .._types import AnyArray
from ..prediction import AbstractDenoiser, Predict, check_denoiser, in_working_precision
from ..processes import AbstractProcess
from ..schedules import Schedule, Step
from ._base import AbstractSampler, check_advanced
from ._names import as_sampler, check_schedule

# those of a reference solution and of schedules that are compared with it run in one program
_PADDED_STEPS = 256


def sample(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    noise: Float[Array, "batch *shape"],
    *,
    key: PRNGKeyArray | Array | None = None,
    trajectory: bool = False,
) -> Float[Array, "batch *shape"] | Float[Array, "points batch *shape"]:
    """Run a sampler from initial noise at the schedule's first time to its last.

    **Arguments:**

    - `denoiser`: a `Denoiser`, or `target.denoiser(process)` for the exact one of a distribution.
    - `sampler`: a sampler or its name, such as "ddim" or "dpmpp_2m".
    - `schedule`: times of the denoiser's process, and stochasticities. Times of another process
      cannot be told from them where they are in range: see `Schedule`.
    - `noise`: initial noise (batch, ...), usually sqrt(process.prior_variance(t_0)) times standard
      normal numbers.
    - `key`: a random key, required if the schedule is stochastic; otherwise no noise is drawn.
      Samples of a randomised sampler draw their times independently; each is run as a batch of one,
      at its own scalar time.
    - `trajectory`: return x at every time, (K+1, batch, ...), instead of the last.

    **Returns:** samples in the shape and precision of `noise`. In bfloat16 and float16 only the
    network is given points of that precision: times and steps are computed in float32. Works under
    jit, grad and vmap.

    **Raises:** ValueError for a wrong argument, an output of another shape, or if x becomes
    non-finite, naming the step.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> schedule = jk.schedules.log_snr(jk.VP(), 8, 1e-3)
    >>> jk.sample(denoiser, "dpmpp_2m", schedule, jnp.ones((4, 2))).shape
    (4, 2)
    ```
    """
    checked = _checked(denoiser, sampler, schedule, noise, key)
    points, finite = run_schedule(*checked, trajectory)
    check_finite(finite, noise, checked[2])
    return points


def sample_concrete(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    noise: Float[Array, "batch *shape"],
    *,
    key: PRNGKeyArray | Array | None = None,
) -> Float[Array, "batch *shape"]:
    """Sample by one compiled program for all deterministic schedules of up to 256 steps.

    Stochastic ones, which draw noise, have another.

    Without derivatives: call it outside jit, grad and vmap.

    **Arguments:**

    - `denoiser`, `sampler`, `schedule`, `noise`, `key`: as for `sample`.

    **Returns:** the samples, those of `sample`.

    **Raises:** as `sample` does.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian(0.0, [1.0]).denoiser(jk.VP())
    >>> run = (denoiser, "ddim", jk.Schedule([1.0, 0.5]), jnp.ones((4, 1)))
    >>> jk.samplers.sample_concrete(*run).shape
    (4, 1)
    ```
    """
    denoiser, step, schedule, drawn, x = _checked(denoiser, sampler, schedule, noise, key)
    count = jax.device_put(np.asarray(schedule.num_steps))
    points, finite = _run_first_steps(denoiser, step, _padded(schedule), drawn, x, count)
    check_finite(finite, x, schedule)
    return points


def _checked(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    noise: Array,
    key: PRNGKeyArray | Array | None,
) -> tuple[AbstractDenoiser, AbstractSampler, Schedule, Array | None, Array]:
    """The checked arguments of a run, as `run_schedule` takes them."""
    process = check_denoiser(denoiser).process
    sampler = as_sampler(sampler)
    schedule = check_schedule(process, sampler, schedule)
    noise = check_noise(noise)
    return denoiser, sampler, schedule, drawing_key(sampler, schedule, key), noise


def drawing_key(
    sampler: AbstractSampler, schedule: Schedule, key: PRNGKeyArray | Array | None
) -> Array | None:
    """Give the random key of a run that draws anything.

    Where all noise is known to be multiplied by 0 it is not drawn, which takes a part of the time.

    **Arguments:**

    - `sampler`: the sampler.
    - `schedule`: the schedule; a traced one may be stochastic.
    - `key`: a random key, or None.

    **Returns:** the key, a fixed one for None; or None for a run that draws nothing.

    **Raises:** ValueError for a stochastic schedule without a key, or another object as key.

    **Example:**

    ```python
    >>> jk.samplers.drawing_key(jk.DDIM(), jk.Schedule([1.0, 0.5]), jax.random.key(0)) is None
    True
    ```
    """
    if key is not None:
        key = _checks.random_key("key", key)
    if not is_traced(schedule):
        if key is None and schedule.is_stochastic:
            raise ValueError("key: a stochastic schedule draws noise and needs a random key.")
        if not schedule.is_stochastic and not sampler.randomised:
            return None
    return jax.random.key(0) if key is None else key


def split_key(key: PRNGKeyArray | Array | None, count: int) -> Array | None:
    """Split the random key of a run into those of its samples or steps.

    **Arguments:**

    - `key`: of `drawing_key`.
    - `count`: how many.

    **Returns:** the keys, or None for a run that draws nothing.

    **Example:**

    ```python
    >>> jk.samplers.split_key(jax.random.key(0), 3).shape
    (3,)
    ```
    """
    return None if key is None else jax.random.split(key, count)


def check_noise(
    noise: Float[AnyArray, "batch *shape"], at_least: int = 0
) -> Float[Array, "batch *shape"]:
    """Check that initial noise is an array of floating type.

    **Arguments:**

    - `noise`: initial noise (batch, ...); a tensor of PyTorch too.
    - `at_least`: the smallest number of rows that a comparison or a record takes.

    **Returns:** the noise, as an array.

    **Raises:** ValueError for another type, fewer rows, or one row without its batch.

    **Example:**

    ```python
    >>> jk.samplers.check_noise(jnp.ones((4, 2))).shape
    (4, 2)
    ```
    """
    if not is_traced(noise) and not isinstance(noise, Array):
        noise = cast(Array, _checks.on_host("noise", noise))
    noise = jnp.asarray(noise)
    if not jnp.issubdtype(noise.dtype, jnp.floating):
        raise ValueError(f"noise has dtype {noise.dtype}; it must be floating.")
    if noise.ndim < 2 or noise.size == 0 or noise.shape[0] < at_least:
        least = max(at_least, 1)
        raise ValueError(f"noise has shape {noise.shape}; it must be (n, ...) with n >= {least}.")
    return noise


def check_finite(finite: Bool[Array, " steps"], noise: Array, schedule: Schedule) -> None:
    """Check that x was finite after every step of a run.

    **Arguments:**

    - `finite`: (K,), whether it was. Traced values pass.
    - `noise`: the initial noise.
    - `schedule`: the schedule of the run.

    **Raises:** ValueError that names the first step after which it was not.

    **Example:**

    ```python
    >>> jk.samplers.check_finite(jnp.array([True]), jnp.ones((1, 2)), jk.Schedule([1.0, 0.5]))
    ```
    """
    if is_traced(finite) or np.all(np.asarray(finite)):
        return
    k = int(np.argmin(np.asarray(finite)))
    if not np.all(np.isfinite(np.asarray(noise, np.float64))):
        raise ValueError("noise holds NaN or infinity; it must be finite.")
    times = np.asarray(schedule.times)
    raise ValueError(
        f"x is no longer finite after step {k}, from t = {times[k]:g} to {times[k + 1]:g}: the "
        "network returned NaN or infinity there, or the step divides by a signal or noise level "
        "that is 0."
    )


@eqx.filter_jit
def run_schedule(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: Schedule,
    key: Array | None,
    x: Array,
    trajectory: bool = False,
    num_steps: Int[Array, ""] | None = None,
) -> tuple[Array, Bool[Array, " steps"]]:
    """Run a sampler as `sample` does, without its checks.

    Checks of traced values are callbacks of the program, which JAX then does not keep in its
    compilation cache.

    **Arguments:**

    - `denoiser`, `sampler`, `schedule`, `trajectory`: as for `sample`.
    - `key`: a random key. None draws nothing, for a schedule that is known to be deterministic.
    - `x`: initial noise (batch, ...).
    - `num_steps`: steps that are run: one program serves every number. Those beyond are padding. A
      backward pass then keeps the points alone. Default: all. Not with `trajectory`.

    **Returns:** the last x or all of them, and whether x was finite after every step (K,).

    **Raises:** ValueError for both `trajectory` and `num_steps`.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian(0.0, [1.0]).denoiser(jk.VP())
    >>> run = (denoiser, jk.DDIM(), jk.Schedule([1.0, 0.5]), None)
    >>> x, finite = jk.samplers.run_schedule(*run, jnp.ones((4, 1)))
    ```
    """
    if trajectory and num_steps is not None:
        raise ValueError("trajectory = True is of all steps; leave out num_steps.")
    return _run(denoiser, sampler, schedule, key, x, trajectory, num_steps)


@kept_filter_jit
def _run_first_steps(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: Schedule,
    key: Array | None,
    x: Array,
    num_steps: Int[Array, ""],
) -> tuple[Array, Bool[Array, " steps"]]:
    """The last x after the first steps of a padded schedule: one program for every K."""
    return _run(denoiser, sampler, schedule, key, x, False, num_steps)


def _padded(schedule: Schedule) -> Schedule:
    """The schedule with its last entries repeated, up to the steps of a reference solution."""
    size = bucket(schedule.num_steps, _PADDED_STEPS)
    sizes = (size + 1, size)
    arrays = (schedule.times, schedule.stochasticity_squared)
    padded = tuple(pad_last(np.asarray(a), n) for a, n in zip(arrays, sizes, strict=True))
    return eqx.tree_at(lambda s: (s.times, s.stochasticity_squared), schedule, padded)


def _run(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: Schedule,
    key: Array | None,
    x: Array,
    trajectory: bool,
    num_steps: Int[Array, ""] | None,
) -> tuple[Array, Bool[Array, " steps"]]:
    """`run_schedule`, of the first `num_steps` steps if that is given."""
    given = x.dtype
    denoiser, x = in_working_precision(denoiser, x)
    denoiser = denoiser.astype(x.dtype)
    schedule = to_dtype(schedule, x.dtype)

    def alone(row: Array, key: Array | None) -> tuple[Array, Bool[Array, " steps"]]:
        points, finite = _batch(denoiser, sampler, schedule, key, row[None], trajectory, num_steps)
        return jnp.squeeze(points, -x.ndim), finite

    if sampler.per_sample:
        keys = split_key(key, x.shape[0])
        points, finite = jax.vmap(alone, out_axes=(-x.ndim, 0))(x, keys)
        return points.astype(given), jnp.all(finite, 0)
    points, finite = _batch(denoiser, sampler, schedule, key, x, trajectory, num_steps)
    return points.astype(given), finite


def _batch(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: Schedule,
    key: Array | None,
    x: Array,
    trajectory: bool,
    num_steps: Int[Array, ""] | None,
) -> tuple[Array, Bool[Array, " steps"]]:
    """The same for a batch whose samples share the random time of every step, if there is one."""

    def step(carry: tuple[Array, PyTree], inputs: tuple[Step, Array | None]):
        step, key = inputs
        new, history = take_step(sampler, denoiser, denoiser.process, step, key, *carry)
        return (new, history), (new if trajectory else None, jnp.all(jnp.isfinite(new)))

    keys = split_key(key, schedule.num_steps)
    start = (x, sampler.init_history(x))
    steps = schedule.steps(sampler.history_steps)
    if num_steps is not None:
        steps = steps._replace(remaining=num_steps - 1 - steps.completed)
        return _first_steps(step, start, (steps, keys))
    (last, _), (path, finite) = jax.lax.scan(step, start, (steps, keys))
    return (last if path is None else jnp.concatenate([x[None], path])), finite


def _first_steps(
    step: Callable[..., tuple[PyTree, tuple[Array | None, Array]]],
    start: tuple[Array, PyTree],
    inputs: tuple[Step, Array | None],
) -> tuple[Array, Bool[Array, " steps"]]:
    """x after the first steps, and whether it was finite after each; True for the others.

    A backward pass keeps the points alone, and recomputes what a step makes of them.
    """

    def skip(carry: tuple[Array, PyTree], inputs: tuple[Step, Array | None]):
        return carry, (None, jnp.asarray(True))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry: tuple[Array, PyTree], inputs: tuple[Step, Array | None]):
        return jax.lax.cond(inputs[0].remaining >= 0, step, skip, carry, inputs)

    (last, _), (_, finite) = jax.lax.scan(body, start, inputs)
    return last, finite


def take_step(
    sampler: AbstractSampler,
    predict: Predict,
    process: AbstractProcess,
    step: Step,
    key: Array | None,
    x: Array,
    history: PyTree,
) -> tuple[Array, PyTree]:
    """Take one step with noise drawn from a key.

    **Arguments:**

    - `sampler`: the sampler.
    - `predict`: the denoiser, (x, t) -> `Prediction`.
    - `process`: the forward process.
    - `step`: the times and the stochasticity of the step.
    - `key`: a random key; draw number i of the step has the key `fold_in(key, i)`, i >= 1, and the
      uniform number of a randomised sampler that of i = 0. None draws nothing, for a step that is
      known to be deterministic.
    - `x`: the point at `step.time`, of any shape.
    - `history`: the multistep history.

    **Returns:** x and the history at `step.next_time`.

    **Raises:** ValueError for a randomised sampler without a key.

    **Example:**

    ```python
    >>> step = jax.tree.map(lambda rows: rows[0], jk.Schedule([0.5, 0.2]).steps())
    >>> run = (jk.DDIM(), jk.Gaussian(0.0, [1.0]).denoiser(jk.VP()), jk.VP(), step)
    >>> x, history = jk.samplers.take_step(*run, None, jnp.ones(1), ())
    ```
    """
    drawn = 0

    def noise(variance: Array) -> Array:
        nonlocal drawn
        if key is None:
            return jnp.zeros_like(x)
        drawn += 1
        z = jax.random.normal(jax.random.fold_in(key, drawn), x.shape, x.dtype)
        return safe_sqrt(variance) * z  # a deterministic step has derivatives too

    if sampler.randomised:
        if key is None:
            raise ValueError("key: a randomised sampler draws times and needs a random key.")
        step = step._replace(uniform=jax.random.uniform(jax.random.fold_in(key, 0), (), x.dtype))
    advanced = sampler.step(predict, noise, process, step, x, history)
    return check_advanced(sampler, advanced)
