"""Can a schedule be near the data without following the network? python -m benchmarks.distance_to_data

Where the best named grid ends nearer to the data than the fine solver does, its errors happen to repair some of the
network's. This asks how near to the data any grid gets whose log-mean and root mean square errors are no higher than
the best named grid's, by gradient steps through the networks of `networks.py` from three starts. Above 1 from every
start: no schedule was found that is as good as the named grids, each the best of its kind, in all three.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.progress import track

import jaxkernels as jk

from .environment import CACHE, save, table
from .networks import (
    NAMED,
    NOISES,
    PROBLEMS,
    PROCESS,
    REFERENCE_STEPS,
    T_MIN,
    Law,
    Network,
    run,
    statistics,
    train,
)

SAMPLER = jk.samplers.DPMSolverPP2M()
# where the schedules measured on the network end further from the data than the best named grid
CASES = (("digits", 8), ("digits", 12), ("digits", 20), ("blobs", 12), ("blobs", 20))
STARTS = ("quadratic", "karras", "align_your_steps")
SEEN, BATCH, STEPS, RATE, PENALTY = 2048, 512, 300, 0.05, 20.0


class Noises(NamedTuple):
    """Starting points and where a fine solver takes them."""

    x: Float[Array, "n d"]
    exact: Float[Array, "n d"]


class Judge(NamedTuple):
    """Log errors of a schedule on one network: log mean, root mean square, sliced W2 to the data."""

    network: Network
    law: Law
    quantiles: Float[Array, "batch directions"]

    def __call__(self, times: Float[Array, " times"], noises: Noises) -> Float[Array, "3"]:
        key = jax.random.key(0)  # no step draws anything
        schedule = jk.Schedule(times)
        end = jk.sample(
            jk.Denoiser(self.network, PROCESS, self.network.kind),
            SAMPLER,
            schedule,
            noises.x,
            key=key,
        )
        squared = jnp.sum((end - noises.exact) ** 2, -1) / self.law.size**2
        apart = jnp.sort(end @ jnp.asarray(self.law.directions, end.dtype), 0) - self.quantiles
        return 0.5 * jnp.stack(
            [jnp.mean(jnp.log(squared)), jnp.log(jnp.mean(squared)), jnp.log(jnp.mean(apart**2))]
        )


def nearest(
    judge: Judge, start: jk.Schedule, noises: Noises, limits: Float[Array, "2"]
) -> jk.Schedule:
    """The grid nearest to the data with errors under the limits, from one start, by Adam on normalised gradients."""
    monotone = jk.schedules.TimeCoordinate(
        PROCESS, np.asarray(PROCESS.t_max), np.asarray(0.0), np.asarray(np.inf)
    )
    monotone = jax.tree.map(lambda a: jnp.asarray(a, noises.x.dtype), monotone)
    end = jnp.asarray(T_MIN, noises.x.dtype)
    optimizer = optax.chain(
        optax.normalize_by_update_norm(), optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    )

    def loss(z: Array, noises: Noises) -> Array:
        errors = judge(monotone.times(z, end), noises)
        # a percent inside, for the noise between batches
        return errors[2] + PENALTY * jnp.sum(jax.nn.relu(errors[:2] - limits + 0.01))

    @jax.jit
    def advance(z: Array, state: optax.OptState, noises: Noises) -> tuple[Array, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(z, noises), state)
        return jnp.asarray(optax.apply_updates(z, updates)), state

    z = monotone.unconstrained(jnp.asarray(start.times, noises.x.dtype))
    state, rng = optimizer.init(z), np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.choice(SEEN, BATCH, replace=False)
        z, state = advance(z, state, Noises(noises.x[rows], noises.exact[rows]))
    times = np.array(monotone.times(z, end))
    times[[0, -1]] = np.asarray(start.times)[[0, -1]]
    return jk.Schedule(times)


def study(name: str, num_steps: int) -> list[dict[str, Any]]:
    """The nearest grid from every start, judged on noises that gave no gradient."""
    problem = {problem.name: problem for problem in PROBLEMS}[name]
    data = np.random.default_rng(0).permutation(problem.load())
    data = data[len(data) // 6 :]
    network = train(problem, data)
    fine = jk.schedules.log_snr(PROCESS, REFERENCE_STEPS, T_MIN)

    def draw(seed: int, count: int) -> Noises:
        x = jax.random.normal(jax.random.key(seed), (count, data.shape[1]))
        return Noises(x, jnp.asarray(run(network, "dpmpp_2m", fine, x)))

    seen, fresh = draw(6, SEEN), draw(3, NOISES)
    law, few = Law(data, NOISES), Law(data, BATCH)
    judge = Judge(network, few, jnp.asarray(few.quantiles, seen.x.dtype))
    named = {grid: jk.schedules.BASELINES[grid](PROCESS, num_steps, T_MIN) for grid in NAMED}
    ends = np.stack([run(network, "dpmpp_2m", s, seen.x) for s in named.values()])
    squared = np.sum((ends - np.asarray(seen.exact)) ** 2, -1) / law.size**2
    limits = jnp.asarray(
        [np.log(squared).mean(1).min() / 2, np.log(squared.mean(1)).min() / 2], seen.x.dtype
    )
    found = {}
    for start in track(STARTS, f"{name}, K = {num_steps}"):
        found[f"from {start}"] = nearest(judge, named[start], seen, limits)
    ends = {n: run(network, "dpmpp_2m", s, fresh.x) for n, s in {**named, **found}.items()}
    reached = statistics(np.asarray(fresh.exact), ends, law)
    solver = law.distance(np.asarray(fresh.exact) @ law.directions)
    best = min(NAMED, key=lambda grid: reached["sliced_w2"][grid]["error"])
    return [
        {
            "problem": name,
            "num_steps": num_steps,
            "start": start,
            "best": best,
            "solver": solver / reached["sliced_w2"][best]["error"],
            "times": np.asarray(schedule.times).tolist(),
            **{kind: reached[kind][start] for kind in ("geometric_mean", "rms", "sliced_w2")},
        }
        for start, schedule in found.items()
    ]


def main() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    rows = [row for case in CASES for row in study(*case)]
    path = save("distance_to_data", {"noises": NOISES, "rows": rows})
    cells = [
        [
            row["problem"],
            str(row["num_steps"]),
            row["best"],
            f"{row['solver']:.2f}",
            row["start"],
            *(
                "{ratio:.3f} ± {ratio_se:.3f}".format(**row[kind])
                for kind in ("geometric_mean", "rms", "sliced_w2")
            ),
        ]
        for row in rows
    ]
    head = [
        "network",
        "K",
        "nearest named grid",
        "fine solver",
        "start",
        "log mean",
        "rms",
        "sliced W2 to the data",
    ]
    print(table(head, cells))
    print(f"ratios to the best named grid of each column; written to {path}")


if __name__ == "__main__":
    main()
