"""A conditional network with classifier-free guidance: one schedule for all classes and scales.

Run by `python -m benchmarks.conditional`.

A network learns the digits with their labels, one label in ten left out. Guided by w it predicts
D(x) + w (D(x | label) - D(x)), at two evaluations a call. Labels times guidance scales are the
conditions; a schedule for all of them is optimised within a budget, from the network alone, and
compared with the baselines from initial noise that no search has seen. No default and no objective
was selected on this network.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from rich.progress import track
from sklearn.datasets import load_digits

import jaxkernels as jk

from .environment import CACHE, save, table
from .networks.data import PROCESS, T_MIN
from .networks.network import Block, level_features

WIDTH = 192
BLOCKS = 3
TRAINING = 8_000
BATCH = 256
CHUNK = 200
LABELS = 10
LEFT_OUT = 0.1
SCALES = (1.0, 2.0, 4.0)
SAMPLERS = ("ddim", "dpmpp_2m")
STEPS = (5, 10)
BUDGETS = (3_000, 16_000)
UNSEEN = 600
STATISTICS = ("geometric_mean", "rms", "sliced_w2")


class Network(eqx.Module):
    """The denoised point from a noisy one, its time and a label; `LABELS` stands for none."""

    first: eqx.nn.Linear
    label: eqx.nn.Embedding
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear
    mean: Float[Array, " d"]
    scale: float = eqx.field(static=True)

    def __init__(self, data: Float[np.ndarray, "n d"], key: Array):
        dim = data.shape[1]
        keys = jax.random.split(key, BLOCKS + 3)
        self.first = eqx.nn.Linear(dim, WIDTH, key=keys[0])
        self.label = eqx.nn.Embedding(LABELS + 1, WIDTH, key=keys[1])
        self.blocks = [Block(WIDTH, level_features(jnp.ones(())).size, k) for k in keys[3:]]
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.last = eqx.nn.Linear(WIDTH, dim, key=keys[2])
        self.mean = jnp.asarray(data.mean(0))
        self.scale = float(data.std(0).mean())

    def row(
        self, x: Float[Array, " d"], t: Float[Array, ""], label: Int[Array, ""]
    ) -> Float[Array, " d"]:
        """One row, with the preconditioning of Karras et al. (2022), table 1."""
        a = PROCESS.signal(t)
        s = PROCESS.noise(t)
        mean = jax.lax.stop_gradient(self.mean)
        centred = x - a * mean
        level = jnp.sqrt((a * self.scale) ** 2 + s**2)
        features = level_features(t)
        h = self.first(centred / level) + self.label(label)
        for block in self.blocks:
            h = block(h, features)
        skipped = mean + a * self.scale**2 / level**2 * centred
        return skipped + s * self.scale / level * self.last(self.norm(h))

    def __call__(
        self,
        x: Float[Array, "n d"],
        t: Float[Array, ""],
        condition: tuple[Int[Array, " n"], Float[Array, " n"]],
    ) -> Float[Array, "n d"]:
        """The guided prediction for labels and guidance scales."""
        label, guidance = condition
        rows = jax.vmap(self.row, in_axes=(0, None, 0))
        without = rows(x, t, jnp.full_like(label, LABELS))
        return without + guidance[:, None] * (rows(x, t, label) - without)


def loss(network: Network, x0: Array, label: Array, key: Array) -> Float[Array, ""]:
    """Mean squared error at log-uniform noise levels, in units that make it of order 1 at each."""
    key_t, key_x, key_label = jax.random.split(key, 3)
    ends = jnp.log(PROCESS.sigma(jnp.asarray([T_MIN, float(np.asarray(PROCESS.t_max))])))
    # stratified: one level per sample
    u = (jnp.arange(len(x0)) + jax.random.uniform(key_t, (len(x0),))) / len(x0)
    t = PROCESS.time_at_sigma(jnp.exp(ends[0] + u * (ends[1] - ends[0])))
    a = PROCESS.signal(t)[:, None]
    s = PROCESS.noise(t)[:, None]
    left_out = jax.random.uniform(key_label, label.shape) < LEFT_OUT
    label = jnp.where(left_out, LABELS, label)
    x = a * x0 + s * jax.random.normal(key_x, x0.shape)
    value = jax.vmap(network.row)(x, t, label)
    weight = ((a * network.scale) ** 2 + s**2) / (s * network.scale) ** 2
    return jnp.mean((value - x0) ** 2 * weight)


def train(data: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> Network:
    """Adam with cosine decay; the network is kept in .cache."""
    fresh = Network(data, jax.random.key(0))
    path = CACHE / f"conditional_{WIDTH}_{BLOCKS}_{TRAINING}_{BATCH}.eqx"
    if path.exists():
        return eqx.tree_deserialise_leaves(path, fresh)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, TRAINING))
    x = jnp.asarray(data, jnp.float32)
    y = jnp.asarray(labels)

    def step(state: tuple[Network, optax.OptState], key: Array):
        network, moments = state
        key_rows, key_loss = jax.random.split(key)
        rows = jax.random.randint(key_rows, (BATCH,), 0, len(x))
        gradient = eqx.filter_grad(loss)(network, x[rows], y[rows], key_loss)
        updates, moments = optimizer.update(gradient, moments)
        return (eqx.apply_updates(network, updates), moments), None

    @eqx.filter_jit
    def advance(state: tuple[Network, optax.OptState], key: Array):
        arrays, static = eqx.partition(state, eqx.is_array)

        def body(arrays, key):
            moved, _ = step(eqx.combine(arrays, static), key)
            return eqx.filter(moved, eqx.is_array), None

        arrays, _ = jax.lax.scan(body, arrays, jax.random.split(key, CHUNK))
        return eqx.combine(arrays, static)

    state = (fresh, optimizer.init(eqx.filter(fresh, eqx.is_inexact_array)))
    for i in track(range(TRAINING // CHUNK), "training"):
        state = jax.block_until_ready(advance(state, jax.random.key(1 + i)))
    CACHE.mkdir(exist_ok=True)
    eqx.tree_serialise_leaves(path, state[0])
    return state[0]


def study(denoiser: jk.Denoiser, sampler: str, num_steps: int, budget: int) -> dict[str, Any]:
    """A schedule within a budget against the baselines, over all conditions and by scale."""
    dim = 64
    noise = jax.random.normal(jax.random.key(11), (2_000, dim))
    selection = jk.Selection(noise=noise)
    options = {"t_min": T_MIN, "selection": selection, "budget": budget}
    found = jk.optimize_schedule(denoiser, PROCESS, sampler, num_steps, **options)
    schedules = {n: make(PROCESS, num_steps, T_MIN) for n, make in jk.schedules.BASELINES.items()}
    schedules["ours"] = found.schedule
    unseen = jax.random.normal(jax.random.key(3), (UNSEEN, dim))
    compared = jk.compare_schedules(denoiser, sampler, schedules, unseen)
    best = {
        name: min(jk.schedules.BASELINES, key=compared.statistic(name).__getitem__)
        for name in STATISTICS
    }
    ratio = {name: compared.ratio(name, "ours", best[name]) for name in STATISTICS}
    rival = best["geometric_mean"]
    by_condition = compared.ratio_by_condition("geometric_mean", "ours", rival)
    ratios = np.array([by_condition[i].value for i in sorted(by_condition)])
    by_scale = ratios.reshape(LABELS, len(SCALES))
    return {
        "sampler": sampler,
        "num_steps": num_steps,
        "budget": budget,
        "nfe": found.nfe,
        "seconds": found.seconds,
        "times": np.asarray(found.schedule.times).tolist(),
        "selected": found.selected,
        "best": best,
        "ratio": {name: [float(r.value), float(r.standard_error)] for name, r in ratio.items()},
        "by_scale": np.exp(np.log(by_scale).mean(0)).tolist(),
        "varies_by": compared.deviation_between_conditions("ours", rival),
        "better": int(np.sum(ratios < 1)),
    }


def main() -> None:
    images, digits = load_digits(return_X_y=True)
    network = train(np.asarray(images) / 16.0, np.asarray(digits))
    labels = jnp.repeat(jnp.arange(LABELS), len(SCALES))
    scales = jnp.tile(jnp.asarray(SCALES), LABELS)
    options = {"conditions": (labels, scales), "evaluations": 2}
    denoiser = jk.Denoiser(network, PROCESS, "x0", **options)
    run = functools.partial(study, denoiser)
    settings = [(s, k, b) for s in SAMPLERS for k in STEPS for b in BUDGETS]
    rows = [run(*setting) for setting in settings]
    path = save("conditional", {"unseen": UNSEEN, "scales": SCALES, "settings": rows})
    text = report(rows)
    path.with_suffix(".md").write_text(text)
    print(text)


def report(rows: list[dict[str, Any]]) -> str:
    """The table of all settings."""
    head = ["sampler", "steps", "NFE", "geometric mean", "rms", "sliced W2"]
    head += [f"w = {scale:g}" for scale in SCALES]
    head += ["varies by", "better in"]
    lines = []
    for row in rows:
        each = [f"{value:.2f} ± {error:.2f}" for value, error in row["ratio"].values()]
        scaled = [f"{value:.2f}" for value in row["by_scale"]]
        count = LABELS * len(SCALES)
        between = [f"{row['varies_by']:.0%}", f"{row['better']} of {count}"]
        lines.append(
            [row["sampler"], str(row["num_steps"]), f"{row['nfe']:,}", *each, *scaled, *between]
        )
    return table(head, lines)


if __name__ == "__main__":
    main()
