"""How near to the data a schedule gets that does not follow the network.

Run by `python -m benchmarks.distance_to_data`.

Where the best baseline schedule ends nearer to the data than the reference solution does, its
errors happen to repair some of the network's. This asks how near to the data any schedule gets
whose geometric mean and root mean square errors are no higher than the best baselines', by gradient
steps through the networks of `networks` from three starts. Above 1 from every start: no schedule
was found that is as good as the baselines, each the best of its kind, in all three.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.progress import track

import jaxkernels as jk
from jaxkernels.comparison import Reference, solve_reference, statistic
from jaxkernels.metrics import quantiles

from .environment import CACHE, save, table
from .networks.data import PROBLEMS, PROCESS, T_MIN
from .networks.study import NUM_NOISE, denoiser_of, ratios, reference_distance
from .networks.train import train

SAMPLER = jk.samplers.DPMSolverPP2M()
# where the schedules measured on the network end further from the data than the best baseline
CASES = (("digits", 8), ("digits", 12), ("digits", 20), ("blobs", 12), ("blobs", 20))
STARTS = ("quadratic", "karras", "align_your_steps")
REFERENCE_STEPS = 800
SEEN = 2048
BATCH = 512
STEPS = 300
LEARNING_RATE = 0.05
PENALTY = 20.0
STATISTICS = ("geometric_mean", "rms", "sliced_w2")


class Batch(NamedTuple):
    """Initial noise and where the reference solution takes it."""

    noise: Float[Array, "n d"]
    exact: Float[Array, "n d"]


class LogErrors(NamedTuple):
    """Log errors of a schedule on one network: those of `STATISTICS`, sliced W2 to the data."""

    reference: Reference
    quantiles: Float[Array, "batch directions"]

    def __call__(self, times: Float[Array, " times"], batch: Batch) -> Float[Array, "3"]:
        schedule = jk.Schedule(times)
        ends = jk.sample(self.reference.denoiser, SAMPLER, schedule, batch.noise)
        errors = jnp.linalg.norm(ends - batch.exact, axis=-1) / self.reference.scale
        projections = ends @ jnp.asarray(self.reference.directions, ends.dtype)
        values = [statistic(jnp, s, errors, projections, self.quantiles) for s in STATISTICS]
        return jnp.log(jnp.stack(values))


def nearest(
    log_errors: LogErrors, start: jk.Schedule, seen: Batch, limits: Float[Array, "2"]
) -> jk.Schedule:
    """The schedule nearest to the data with errors under the limits, by Adam on unit gradients."""
    dtype = seen.noise.dtype
    coordinate = jk.schedules.TimeCoordinate(
        PROCESS, np.asarray(PROCESS.t_max), np.asarray(0.0), np.asarray(np.inf)
    )
    coordinate = jax.tree.map(lambda a: jnp.asarray(a, dtype), coordinate)
    end = jnp.asarray(T_MIN, dtype)
    rate = optax.cosine_decay_schedule(LEARNING_RATE, STEPS)
    optimizer = optax.chain(optax.normalize_by_update_norm(), optax.adam(rate))

    def loss(z: Array, batch: Batch) -> Array:
        errors = log_errors(coordinate.times(z, end), batch)
        # a percent inside, for the noise between batches
        return errors[2] + PENALTY * jnp.sum(jax.nn.relu(errors[:2] - limits + 0.01))

    @jax.jit
    def advance(z: Array, state: optax.OptState, batch: Batch) -> tuple[Array, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(z, batch), state)
        return jnp.asarray(optax.apply_updates(z, updates)), state

    z = coordinate.unconstrained(jnp.asarray(start.times, dtype))
    state = optimizer.init(z)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.choice(len(seen.noise), BATCH, replace=False)
        z, state = advance(z, state, Batch(seen.noise[rows], seen.exact[rows]))
    times = np.array(coordinate.times(z, end))
    times[[0, -1]] = np.asarray(start.times)[[0, -1]]
    return jk.Schedule(times)


def study(name: str, num_steps: int) -> list[dict[str, Any]]:
    """The nearest schedule from every start, compared on initial noise that gave no gradient."""
    problem = {problem.name: problem for problem in PROBLEMS}[name]
    _, data = problem.split()
    denoiser = denoiser_of(train(problem, data))
    baselines = {n: make(PROCESS, num_steps, T_MIN) for n, make in jk.schedules.BASELINES.items()}
    noise = jax.random.normal(jax.random.key(6), (SEEN, data.shape[1]))
    span = (float(np.asarray(PROCESS.t_max)), T_MIN)
    reference = solve_reference(denoiser, noise, REFERENCE_STEPS, span, data)
    assert reference.data_projections is not None
    few = jnp.asarray(quantiles(reference.data_projections, BATCH), noise.dtype)
    before = jk.compare_schedules(denoiser, SAMPLER, baselines, noise)
    limits = [np.log(min(before.statistic(s).values())) for s in STATISTICS[:2]]
    seen = Batch(noise, jnp.asarray(reference.ends, noise.dtype))
    found = {}
    for start in track(STARTS, f"{name}, K = {num_steps}"):
        log_errors = LogErrors(reference, few)
        limit = jnp.asarray(limits, noise.dtype)
        found[f"from {start}"] = nearest(log_errors, baselines[start], seen, limit)
    fresh = jax.random.normal(jax.random.key(3), (NUM_NOISE, data.shape[1]))
    after = jk.compare_schedules(denoiser, SAMPLER, {**baselines, **found}, fresh, data=data)
    distances = after.statistic("sliced_w2")
    best = min(baselines, key=distances.__getitem__)
    reached = {s: ratios(after, s) for s in STATISTICS}
    return [
        {
            "problem": name,
            "num_steps": num_steps,
            "start": start,
            "best": best,
            "reference": reference_distance(after) / distances[best],
            "times": np.asarray(schedule.times).tolist(),
            **{s: reached[s][start] for s in STATISTICS},
        }
        for start, schedule in found.items()
    ]


def main() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    rows = [row for case in CASES for row in study(*case)]
    path = save("distance_to_data", {"noise": NUM_NOISE, "rows": rows})
    cells = [
        [
            row["problem"],
            str(row["num_steps"]),
            row["best"],
            f"{row['reference']:.2f}",
            row["start"],
            *("{ratio:.3f} ± {ratio_se:.3f}".format(**row[s]) for s in STATISTICS),
        ]
        for row in rows
    ]
    head = [
        "network",
        "K",
        "nearest baseline",
        "reference solution",
        "start",
        "geometric mean",
        "rms",
        "sliced W2 to the data",
    ]
    print(table(head, cells))
    print(f"ratios to the best baseline of each column; written to {path}")


if __name__ == "__main__":
    main()
