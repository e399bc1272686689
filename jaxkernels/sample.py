"""Running a sampler with a network, or with the exact score of a target."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from . import _checks
from ._numerics import is_traced, safe_sqrt
from ._setting import check_schedule
from ._types import ScoreFn
from .prediction import predictor
from .process import AbstractProcess
from .samplers import SAMPLERS, AbstractSampler, Interval
from .schedules import Schedule


def sample(
    score_fn: ScoreFn,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    key: PRNGKeyArray | Array,
    x_init: Float[Array, "batch *shape"],
    *,
    kind: str = "score",
    trajectory: bool = False,
) -> Float[Array, "batch *shape"] | Float[Array, "points batch *shape"]:
    """Run a sampler from `x_init` at the schedule's first time to its last.

    **Arguments:**

    - `score_fn(x, t)`: the network, batched over x as `x_init` is, with a scalar time t of `process`. An
      Equinox module is traced with its weights as arguments, so new weights do not recompile.
    - `x_init`: (batch, ...), usually sqrt(process.prior_variance(t_0)) times unit normal noise.
    - `key`: a random key; only stochastic steps use it.
    - `kind`: what `score_fn` returns: "score", "epsilon", "x0", "v" or "velocity" (see `predictor`).
    - `trajectory`: return x at every time, (K+1, batch, ...), instead of the last.

    **Raises:** ValueError for a wrong argument, an output of another shape, or if x stops being finite,
    naming the step. Works in the precision of `x_init`, and under jit, grad and vmap.
    """
    if isinstance(sampler, str):
        sampler = _checks.lookup("sampler", sampler, SAMPLERS)()
    schedule = check_schedule(process, sampler, schedule)
    x_init = jnp.asarray(x_init)
    if not jnp.issubdtype(x_init.dtype, jnp.floating):
        raise ValueError(f"x_init has dtype {x_init.dtype}; it must be floating.")
    points, finite = _run(score_fn, kind, process, sampler, schedule, key, x_init, trajectory)
    if not is_traced(finite) and not np.all(finite):
        k = int(np.argmin(finite))
        times = np.asarray(schedule.times)
        if not np.all(np.isfinite(np.asarray(x_init, np.float64))):
            raise ValueError("x_init holds NaN or infinity; it must be finite.")
        raise ValueError(
            f"x is no longer finite after step {k}, from t = {times[k]:g} to {times[k + 1]:g}: score_fn "
            "returned NaN or infinity there, or the step divides by a signal or noise level that is 0."
        )
    return points


@eqx.filter_jit
def _run(
    score_fn: ScoreFn,
    kind: str,
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedule: Schedule,
    key: Array,
    x: Array,
    trajectory: bool,
) -> tuple[Array, Bool[Array, " steps"]]:
    process, schedule = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), (process, schedule))
    predict = predictor(score_fn, process, kind)

    def step(carry: tuple[Array, PyTree], inputs: tuple[Interval, Array]):
        interval, key = inputs
        drawn = 0

        def noise(variance: Array) -> Array:
            nonlocal drawn
            drawn += 1
            z = jax.random.normal(jax.random.fold_in(key, drawn), x.shape, x.dtype)
            return safe_sqrt(variance) * z  # a deterministic step has derivatives too

        new, memory = sampler.step(predict, noise, process, interval, *carry)
        return (new, memory), (new if trajectory else None, jnp.all(jnp.isfinite(new)))

    keys = jax.random.split(key, schedule.num_steps)
    (last, _), (path, finite) = jax.lax.scan(step, (x, sampler.memory(x)), (schedule.intervals(), keys))
    return last if path is None else jnp.concatenate([x[None], path]), finite
