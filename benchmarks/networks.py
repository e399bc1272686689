"""Do optimised schedules hold on trained networks? python -m benchmarks.networks

Trains small denoisers, fits a Gaussian to their data, optimises schedules for that Gaussian, and runs them
and every named grid through the network from the same noises. The error of a trajectory is its distance
from where a fine solver takes the same noise with the same network.

Process: VP(0.1, 20) down to t = 1e-3 (sigma from 152 to 0.01). Deterministic sampling.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.progress import track

import jaxkernels as jk

from .environment import CACHE, save, table
from .spectra import digits, patches

PROCESS, T_MIN = jk.VP(), 1e-3
SAMPLERS: tuple[str, ...] = ("ddim", "dpmpp_2m")
STEPS = (5, 8, 12, 20)
NOISES, REFERENCE_STEPS, PROJECTIONS, RESAMPLES = 1024, 800, 128, 400
NAMED = tuple(jk.schedules.GRIDS)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A data set and the network that learns it."""

    name: str
    load: Callable[[], np.ndarray]
    kind: Literal["x0", "epsilon"]
    """What the network predicts: the denoised point (preconditioned by the data's scale), or the noise."""
    width: int
    blocks: int
    training_steps: int
    batch: int = 256


def ring() -> np.ndarray:
    """A two-dimensional mixture of five normal laws of unequal weight and shape."""
    angle = 2.0 * np.pi * np.arange(5) / 5
    means = 2.0 * np.stack([np.cos(angle), np.sin(angle)], 1)
    spread = np.array([[0.05, 0.3], [0.3, 0.05], [0.1, 0.1], [0.02, 0.02], [0.4, 0.1]])
    rng = np.random.default_rng(0)
    which = rng.choice(5, size=20_000, p=[0.3, 0.25, 0.2, 0.15, 0.1])
    return means[which] + spread[which] * rng.standard_normal((which.size, 2))


PROBLEMS = (
    Problem("digits", digits, "x0", width=256, blocks=3, training_steps=12_000),
    Problem("patches", partial(patches, 50_000, 8, grey=True), "x0", width=256, blocks=3, training_steps=16_000),
    Problem("ring", ring, "x0", width=128, blocks=3, training_steps=12_000),
)


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    inside: eqx.nn.Linear
    level: eqx.nn.Linear
    outside: eqx.nn.Linear

    def __init__(self, width: int, features: int, key: Array):
        keys = jax.random.split(key, 3)
        self.norm = eqx.nn.LayerNorm(width)
        self.inside = eqx.nn.Linear(width, 2 * width, key=keys[0])
        self.level = eqx.nn.Linear(features, 2 * width, key=keys[1])
        self.outside = eqx.nn.Linear(2 * width, width, key=keys[2])

    def __call__(self, h: Array, features: Array) -> Array:
        return h + self.outside(jax.nn.silu(self.inside(self.norm(h)) + self.level(features)))


class Network(eqx.Module):
    """A residual network of x (batch, d) and a scalar time, as a denoiser or a predictor of the noise."""

    first: eqx.nn.Linear
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear
    mean: Float[Array, " d"]
    scale: Float[Array, ""]
    kind: str = eqx.field(static=True)

    def __init__(self, problem: Problem, data: np.ndarray, key: Array):
        dim, width, frequencies = data.shape[1], problem.width, 8
        keys = jax.random.split(key, problem.blocks + 2)
        self.first = eqx.nn.Linear(dim, width, key=keys[0])
        self.blocks = [Block(width, 2 * frequencies, k) for k in keys[2:]]
        self.norm = eqx.nn.LayerNorm(width)
        last = eqx.nn.Linear(width, dim, key=keys[1])
        self.last = eqx.tree_at(lambda m: m.weight, last, 0.0 * last.weight)
        self.mean, self.scale = jnp.asarray(data.mean(0)), jnp.asarray(data.std(0).mean())
        self.kind = problem.kind

    def body(self, x: Float[Array, " d"], t: Float[Array, ""]) -> Float[Array, " d"]:
        # log sigma runs from -4.6 to 5
        angle = jnp.log(PROCESS.sigma(t)) * 0.3 * jnp.arange(1, 9)
        features = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)])
        h = self.first(x)
        for block in self.blocks:
            h = block(h, features)
        return self.last(self.norm(h))

    def __call__(self, x: Float[Array, "batch d"], t: Float[Array, ""]) -> Float[Array, "batch d"]:
        """The denoised point or the noise, by `kind`; mean and scale of the data are constants."""
        mean, scale = jax.lax.stop_gradient((self.mean, self.scale))
        a, s = PROCESS.signal(t), PROCESS.noise(t)
        level = jnp.sqrt((a * scale) ** 2 + s**2)
        value = jax.vmap(self.body, in_axes=(0, None))((x - a * mean) / level, t)
        if self.kind == "epsilon":
            return value
        # Karras et al. (2022), table 1, in this process's variables
        return mean + a * scale**2 / level**2 * (x - a * mean) + s * scale / level * value


def loss(network: Network, x0: Float[Array, "batch d"], key: Array) -> Float[Array, ""]:
    """Mean squared error at log-uniform noise levels, in units in which it is of order 1 at every level."""
    key_t, key_x = jax.random.split(key)
    ends = jnp.log(PROCESS.sigma(jnp.asarray([T_MIN, float(np.asarray(PROCESS.t_max))])))
    # stratified: one level per sample
    u = (jnp.arange(x0.shape[0]) + jax.random.uniform(key_t, (x0.shape[0],))) / x0.shape[0]
    times = PROCESS.time_at_sigma(jnp.exp(ends[0] + u * (ends[1] - ends[0])))
    eps = jax.random.normal(key_x, x0.shape)

    def one(x0: Array, eps: Array, t: Array) -> Array:
        a, s = PROCESS.signal(t), PROCESS.noise(t)
        value = network((a * x0 + s * eps)[None], t)[0]
        if network.kind == "epsilon":
            return jnp.mean((value - eps) ** 2)
        level = (a * network.scale) ** 2 + s**2
        return jnp.mean((value - x0) ** 2) * level / (s * network.scale) ** 2

    return jnp.mean(jax.vmap(one)(x0, eps, times))


def train(problem: Problem, data: np.ndarray) -> Network:
    """Adam with cosine decay; the result is the running average of the weights. Kept in .cache."""
    fresh = Network(problem, data, jax.random.key(0))
    settings = (getattr(problem, f.name) for f in dataclasses.fields(problem) if f.name != "load")
    path = CACHE / f"network_{'_'.join(map(str, settings))}.eqx"
    if path.exists():
        return eqx.tree_deserialise_leaves(path, fresh)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, problem.training_steps))
    x = jnp.asarray(data, jnp.float32)
    chunk = 200

    @jax.jit
    def advance(carry, key):
        def step(carry, key):
            network, average, state = carry
            key_data, key_loss = jax.random.split(key)
            batch = x[jax.random.randint(key_data, (problem.batch,), 0, x.shape[0])]
            value, gradient = eqx.filter_value_and_grad(loss)(network, batch, key_loss)
            updates, state = optimizer.update(gradient, state)
            network = optax.apply_updates(network, updates)
            average = jax.tree.map(lambda m, p: m + 0.002 * (p - m), average, network)
            return (network, average, state), value

        return jax.lax.scan(step, carry, jax.random.split(key, chunk))

    carry = (fresh, fresh, optimizer.init(eqx.filter(fresh, eqx.is_array)))
    keys = jax.random.split(jax.random.key(1), problem.training_steps // chunk)
    for key in track(keys, f"training {problem.name}"):
        carry, _ = advance(carry, key)
        jax.block_until_ready(carry)
    CACHE.mkdir(exist_ok=True)
    eqx.tree_serialise_leaves(path, carry[1])
    return carry[1]


def run(network: Network, sampler: str, schedule: jk.Schedule, x: Float[Array, "n d"]) -> np.ndarray:
    """Where a schedule takes the noises x."""
    key = jax.random.key(0)  # unused: the samplers are deterministic
    return np.asarray(jk.sample(network, PROCESS, sampler, schedule, key, x, kind=network.kind))


def candidates(target: jk.Gaussian, sampler: str, num_steps: int) -> dict[str, jk.Schedule]:
    """Every named grid, and the optima of the objectives under test."""
    law = target.compress(32)
    objectives: dict[str, dict[str, Any]] = {
        "local": {},
        "local, spread 1": {"spread": 1.0},
        "terminal": {"objective": "terminal"},
    }
    grids = {name: grid(PROCESS, num_steps, T_MIN) for name, grid in jk.schedules.GRIDS.items()}
    for name, options in objectives.items():
        result = jk.optimize_schedule(law, PROCESS, sampler, num_steps, t_min=T_MIN, **options)
        grids[name] = result.schedule
    return grids


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rms": lambda e: np.sqrt(np.mean(e**2, -1)),
    "median": lambda e: np.median(e, -1),
    "log_mean": lambda e: np.exp(np.mean(np.log(e), -1)),
}


def statistics(errors: dict[str, np.ndarray]) -> dict[str, dict[str, dict[str, float]]]:
    """Per statistic and schedule: the error, its ratio to the best named grid, and standard errors of both.

    The noises are resampled, the same ones for all schedules. Which grid is best is known in hindsight
    only, so the ratio is hard on the schedule.
    """
    names, e = list(errors), np.stack(list(errors.values()))
    rng = np.random.default_rng(0)
    again = e[:, rng.integers(e.shape[1], size=(RESAMPLES, e.shape[1]))]
    result = {}
    for kind, fn in STATISTICS.items():
        value, values = fn(e), fn(again)
        best = min(range(len(NAMED)), key=lambda i: value[names.index(NAMED[i])])
        best = names.index(NAMED[best])
        ratio, ratios = value / value[best], values / values[best]
        result[kind] = {
            name: {
                "error": float(value[i]),
                "error_se": float(values[i].std()),
                "ratio": float(ratio[i]),
                "ratio_se": float(ratios[i].std()),
            }
            for i, name in enumerate(names)
        }
    return result


def sliced_w2(x: np.ndarray, data: np.ndarray) -> float:
    """Root mean over random directions of the squared one-dimensional W2 distance."""
    directions = np.random.default_rng(0).standard_normal((PROJECTIONS, data.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    levels = (np.arange(len(x)) + 0.5) / len(x)
    quantiles = np.quantile(data @ directions.T, levels, axis=0)
    return float(np.sqrt(np.mean((np.sort(x @ directions.T, axis=0) - quantiles) ** 2)))


def affine_loss(network: Network, target: jk.Gaussian, x0: Array, key: Array) -> Float[Array, ""]:
    """`loss` of the best affine denoiser: what a network that learned the covariance only would reach."""
    predict = target.predictor(PROCESS)

    class Affine(eqx.Module):
        scale: Array
        kind: str = eqx.field(static=True)

        def __call__(self, x: Array, t: Array) -> Array:
            p = predict(x, t)
            return p.eps if self.kind == "epsilon" else p.x0

    return loss(Affine(network.scale, network.kind), x0, key)  # pyright: ignore[reportArgumentType]


def study(problem: Problem) -> dict[str, Any]:
    """Everything about one network."""
    data = np.random.default_rng(0).permutation(problem.load())
    held_out, data = np.split(data, [len(data) // 6])
    network, target = train(problem, data), jk.Gaussian.fit(data)
    key, x0 = jax.random.key(2), jnp.asarray(held_out[:4000], jnp.float32)
    facts = {
        "predicts": problem.kind,
        "dimension": data.shape[1],
        "kurtosis": float(np.asarray(target.kurtosis)),
        "loss": float(loss(network, x0, key)),
        "affine_loss": float(affine_loss(network, target, x0, key)),
    }
    x = jax.random.normal(jax.random.key(3), (NOISES, data.shape[1]))
    references = [
        run(network, "dpmpp_2m", jk.schedules.log_snr(PROCESS, k, T_MIN), x)
        for k in (REFERENCE_STEPS, REFERENCE_STEPS // 2)
    ]
    size = np.sqrt(np.sum(data.var(0)))
    facts["reference_error"] = rms(references[1] - references[0]) / size
    facts["reference_sliced_w2"] = sliced_w2(references[0], data) / size
    rows = []
    settings = list(itertools.product(SAMPLERS, STEPS))
    for sampler, num_steps in track(settings, f"schedules for {problem.name}"):
        # every setting compiles programs of its own, and a process can hold a limited number of them
        jax.clear_caches()
        schedules = candidates(target, sampler, num_steps)
        ends = np.stack([run(network, sampler, schedule, x) for schedule in schedules.values()])
        distances = np.linalg.norm(ends - references[0], axis=-1) / size
        rows.append(
            {
                "sampler": sampler,
                "num_steps": num_steps,
                "times": {name: np.asarray(s.times).tolist() for name, s in schedules.items()},
                "sliced_w2": {n: sliced_w2(end, data) / size for n, end in zip(schedules, ends, strict=True)},
                **statistics(dict(zip(schedules, distances, strict=True))),
            }
        )
    return {"problem": problem.name, **facts, "rows": rows}


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum(x**2, -1))))


def ratios(row: dict[str, Any], statistic: str, name: str) -> str:
    entry = row[statistic][name]
    return f"{entry['ratio']:.2f} ± {entry['ratio_se']:.2f}"


def report(studies: list[dict[str, Any]]) -> str:
    """The results as markdown."""
    ours = [name for name in studies[0]["rows"][0]["times"] if name not in NAMED]
    lines = [
        "# Schedules on trained networks",
        "",
        "Written by `python -m benchmarks.networks`; how to read it: [README](../README.md#networks).",
        "",
    ]
    rows = [row for study in studies for row in study["rows"]]
    lines += ["## All networks, samplers and K together", ""]
    for statistic in ("rms", "log_mean"):
        cells = []
        for name in (*ours, *NAMED):
            entries = [row[statistic][name] for row in rows]
            values = np.array([e["ratio"] for e in entries])
            margin = 2.0 * np.array([e["ratio_se"] for e in entries])
            cells.append(
                [
                    name,
                    f"{np.exp(np.mean(np.log(values))):.2f}",
                    f"{values.max():.2f}",
                    str(np.sum(values < 1.0 - margin)),
                    str(np.sum(values > 1.0 + margin)),
                ]
            )
        head = [f"{statistic} error / best named", "geometric mean", "worst", "better", "worse"]
        lines += [table(head, cells), ""]
    lines += [f"better, worse: of {len(rows)} cases, by more than two standard errors.", ""]
    for study in studies:
        lines += [
            f"## {study['problem']}",
            "",
            f"d = {study['dimension']}, network predicts {study['predicts']}, held-out loss "
            f"{study['loss'] / study['affine_loss']:.2f} of the best affine denoiser's, kurtosis "
            f"{study['kurtosis']:.1f}, sliced W2 of the fine solver {study['reference_sliced_w2']:.3f}.",
            "",
        ]
        for statistic in STATISTICS:
            cells = []
            for row in study["rows"]:
                best = min(NAMED, key=lambda name: row[statistic][name]["error"])
                error = row[statistic][best]
                cells.append(
                    [
                        row["sampler"],
                        str(row["num_steps"]),
                        f"{best}: {error['error']:.3g} ± {error['error_se']:.1g}",
                        *(ratios(row, statistic, name) for name in (*ours, "log_snr", "karras")),
                    ]
                )
            head = ["sampler", "K", f"best named: {statistic} error", *ours, "log_snr", "karras"]
            lines += [table(head, cells), ""]
        shown = [*ours, *NAMED]
        cells = [
            [row["sampler"], str(row["num_steps"]), *(f"{row['sliced_w2'][name]:.3f}" for name in shown)]
            for row in study["rows"]
        ]
        lines += [table(["sliced W2", "K", *shown], cells), ""]
    return "\n".join(lines)


def main() -> None:
    # compiling every objective for every K and sampler takes longer than anything else here
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    studies = [study(problem) for problem in PROBLEMS]
    path = save("networks", {"noises": NOISES, "reference_steps": REFERENCE_STEPS, "studies": studies})
    text = report(studies)
    path.with_suffix(".md").write_text(text)
    print(text)
    print(f"written to {path} and .md")


if __name__ == "__main__":
    main()
