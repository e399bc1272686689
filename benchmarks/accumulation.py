"""Accumulated score errors: published numbers and bounds beside distances, for four schedules.

Run by `python -m benchmarks.accumulation`.

The mixture (N(-1, I) + N(1, I)) / 2 in ten dimensions, its score learned by denoising score
matching, sampled by the exponential integrator and by ancestral DDPM, VP with g^2 = 2 on [0, 3].
Every seed trains its own network. Samples with the learned score and with the exact one share their
noise. Of their distance W2 the coupling gives an upper bound; the Gelbrich distance of their
moments and one-dimensional projections give lower ones. Assignments between samples would show
their own noise: two samples of one distribution are 2 apart here. The error's size and Lipschitz
constant are measured along the run; the constant is the largest at sampled points, so that the
bound holds as far as that does.

Also the published experiment in one dimension with the error |x| + z.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.progress import track

import jaxkernels as jk
from jaxkernels.bounds import as_published

from .environment import save, table

DIM = 10
PROCESS = jk.OU(rate=2.0, t_max=3.0)
MIXTURE = jk.GaussianMixture([0.5, 0.5], [[-1.0] * DIM, [1.0] * DIM], [1.0, 1.0])
LINE = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
LAST = 0.01
STEPS = (20, 50)
SAMPLES = 4_000
SEEDS = 4
# of the experiment in one dimension
DRAWS = 8
WIDTH = 128
TRAINING = 4000
SAMPLERS = {"exponential integrator": jk.ExponentialIntegrator(), "DDPM": jk.DDIM()}
SCHEDULES = {
    "linear": jk.schedules.uniform,
    "quadratic": jk.schedules.quadratic,
    "cosine": jk.schedules.cosine,
    "log-SNR": jk.schedules.log_snr,
}

Parameters = list[tuple[Array, Array]]


def network(parameters: Parameters, x: Float[Array, "n d"], t: Array) -> Float[Array, "n d"]:
    """The score, from a prediction of the noise by three layers."""
    times = jnp.broadcast_to(t, (x.shape[0],))[:, None]
    y = jnp.concatenate([x, times, jnp.log(PROCESS.sigma(times))], 1)
    for weight, bias in parameters[:-1]:
        y = jax.nn.silu(y @ weight + bias)
    weight, bias = parameters[-1]
    return -(y @ weight + bias) / PROCESS.noise(times)


def train(seed: int) -> Parameters:
    """Parameters after denoising score matching on fresh samples."""
    key = jax.random.key(seed)
    sizes = [DIM + 2, WIDTH, WIDTH, WIDTH, DIM]
    keys = jax.random.split(key, len(sizes))
    parameters = [
        (jax.random.normal(k, (m, n)) / np.sqrt(m), jnp.zeros(n))
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, TRAINING))

    def loss(parameters: Parameters, key: Array) -> Array:
        data, noise, times = jax.random.split(key, 3)
        x0 = MIXTURE.sample(data, 512)
        z = jax.random.normal(noise, x0.shape)
        # as many small times as large ones
        low, high = jnp.log(LAST), jnp.log(PROCESS.t_max)
        t = jnp.exp(jax.random.uniform(times, (512, 1), minval=low, maxval=high))
        s = PROCESS.noise(t)
        learned = network(parameters, PROCESS.signal(t) * x0 + s * z, t[:, 0])
        return jnp.mean((s * learned + z) ** 2)

    @jax.jit
    def run(parameters: Parameters) -> Parameters:
        def step(state: tuple, key: Array) -> tuple[tuple, None]:
            parameters, moments = state
            update, moments = optimiser.update(jax.grad(loss)(parameters, key), moments)
            return (optax.apply_updates(parameters, update), moments), None

        keys = jax.random.split(jax.random.fold_in(key, 1), TRAINING)
        return jax.lax.scan(step, (parameters, optimiser.init(parameters)), keys)[0][0]

    return run(parameters)


@jax.jit
def pair(
    parameters: Parameters, sampler: jk.AbstractSampler, schedule: jk.Schedule, key: Array
) -> tuple[Array, Array, Array, Array]:
    """Samples with exact and learned scores from the same noise; the errors' rms and constants."""

    def exact(x: Array, t: Array) -> Array:
        return MIXTURE.score(PROCESS, x, t)

    def learned(x: Array, t: Array) -> Array:
        return network(parameters, x, t)

    def one(x: Array, t: Array) -> Array:
        return learned(x[None], t)[0] - MIXTURE.score(PROCESS, x[None], t)[0]

    def predict(score: Callable[[Array, Array], Array]) -> Callable[[Array, Array], jk.Prediction]:
        def split(x: Array, t: Array) -> jk.Prediction:
            eps = -PROCESS.noise(t) * score(x, t)
            return jk.Prediction((x - PROCESS.noise(t) * eps) / PROCESS.signal(t), eps)

        return split

    def step(state: tuple[Array, Array], here: tuple) -> tuple[tuple[Array, Array], tuple]:
        at, key = here
        z = jax.random.normal(key, state[0].shape)

        def move(x: Array, score: Callable[[Array, Array], Array]) -> Array:
            return sampler.step(predict(score), lambda v: jnp.sqrt(v) * z, PROCESS, at, x, ())[0]

        out = (move(state[0], exact), move(state[1], learned))
        error = learned(state[0], at.time) - exact(state[0], at.time)
        both = jnp.concatenate([x[:256] for x in state])
        slopes = jax.vmap(lambda x: jax.jacfwd(one)(x, at.time))(both)
        constant = jnp.max(jnp.linalg.norm(slopes, ord=2, axis=(1, 2)))
        return out, (jnp.sqrt(jnp.mean(jnp.sum(error**2, -1))), constant)

    first, rest = jax.random.split(key)
    x = jax.random.normal(first, (SAMPLES, DIM))
    keys = jax.random.split(rest, schedule.num_steps)
    (plain, moved), (rms, constants) = jax.lax.scan(step, (x, x), (schedule.steps(), keys))
    return plain, moved, rms, constants


def lower_bounds(plain: np.ndarray, moved: np.ndarray) -> tuple[float, float]:
    """The Gelbrich distance, and the largest W2 of one-dimensional projections."""
    means = plain.mean(0) - moved.mean(0)
    first, second = np.cov(plain.T), np.cov(moved.T)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0.0)).sum()
    squared = means @ means + np.trace(first) + np.trace(second) - 2 * cross
    directions = np.random.default_rng(0).normal(size=(DIM, 100))
    directions[:, 0] = 1.0  # along which the distribution is not normal
    directions /= np.linalg.norm(directions, axis=0)
    ordered = np.sort(plain @ directions, 0) - np.sort(moved @ directions, 0)
    return float(np.sqrt(max(squared, 0.0))), float(np.sqrt(np.mean(ordered**2, 0).max()))


def measure(
    networks: list[Parameters], name: str, steps: int, sampler_name: str
) -> dict[str, float | str | int]:
    """All numbers of one schedule and sampler: means over networks, with standard errors."""
    sampler = SAMPLERS[sampler_name]
    times = SCHEDULES[name](PROCESS, steps, LAST).times
    schedule = jk.Schedule(np.asarray(times), 1.0)
    found = []
    for seed, parameters in enumerate(networks):
        plain, moved, rms, constants = map(
            np.asarray, pair(parameters, sampler, schedule, jax.random.key(seed))
        )
        coupled = np.sqrt(np.mean(np.sum((plain - moved) ** 2, 1)))
        gelbrich, projected = lower_bounds(plain, moved)
        run = (PROCESS, sampler, schedule)
        sizes = {"rms": rms, "lipschitz": constants}
        single = jk.lipschitz_accumulation(jk.Gaussian(0.0, [1.0]), *run, lipschitz=constants)
        valid = jk.lipschitz_accumulation(MIXTURE, *run, lipschitz=constants)
        found.append(
            {
                "coupled": coupled,
                "Gelbrich": gelbrich,
                "projected": projected,
                "published": float(as_published.theorem_3_2(MIXTURE, *run, **sizes)),
                "surrogate": float(single.coherent(rms).value),
                "bound": float(valid.coherent(rms).value),
            }
        )
    row: dict[str, float | str | int] = {"sampler": sampler_name, "K": steps, "schedule": name}
    for key in found[0]:
        values = np.array([one[key] for one in found])
        row[key] = float(values.mean())
        row[f"{key} s.e."] = float(values.std(ddof=1) / np.sqrt(SEEDS))
    return row


def one_dimensional(steps: int) -> list[dict[str, float | str | int]]:
    """The published experiment with error |x| + z, mean and standard error over draws."""
    rows = []
    for name in SCHEDULES:
        found = [one_draw(name, steps, seed) for seed in range(DRAWS)]
        row: dict[str, float | str | int] = {"K": steps, "schedule": name}
        for key in found[0]:
            values = np.array([one[key] for one in found])
            row[key] = float(values.mean())
            row[f"{key} s.e."] = float(values.std(ddof=1) / np.sqrt(DRAWS))
        rows.append(row)
    return rows


def one_draw(name: str, steps: int, seed: int) -> dict[str, float]:
    """W2 between 100 000 samples with and without errors, evaluated at the end of steps."""
    times = np.asarray(SCHEDULES[name](PROCESS, steps, 1e-3).times, np.float64)
    rng = np.random.default_rng(seed)
    keep = np.exp(-np.diff(times))
    plain = moved = rng.normal(size=100_000)
    sizes = []
    for k, t in enumerate(times[1:]):
        z = np.sqrt(keep[k] ** 2 - 1) * rng.normal(size=plain.size)
        error = np.abs(moved) + rng.normal(size=plain.size)
        sizes.append(np.sqrt(np.mean(plain**2)))
        a = np.exp(-t)
        plain, moved = (
            keep[k] * x + 2 * (keep[k] - 1) * (a * np.tanh(a * x) - x + e) + z
            for x, e in ((plain, 0.0), (moved, error))
        )
    w2 = np.sqrt(np.mean((np.sort(plain) - np.sort(moved)) ** 2))
    sampler = jk.samplers.EndEvaluated(jk.ExponentialIntegrator())
    run = (PROCESS, sampler, jk.Schedule(times, 1.0))
    published = as_published.theorem_3_2(
        LINE, *run, rms=np.sqrt(np.array(sizes) ** 2 + 1), lipschitz=1.0
    )
    valid = jk.lipschitz_accumulation(LINE, *run, lipschitz=1.0).mixed(sizes, 1.0)
    numbers = {"W2": w2, "published": published, "bound": valid.value}
    return {key: float(value) for key, value in numbers.items()}


def main() -> None:
    networks = [train(seed) for seed in track(range(SEEDS), "training")]
    cases = [(s, k, n) for s in SAMPLERS for k in STEPS for n in SCHEDULES]
    rows = [measure(networks, n, k, s) for s, k, n in track(cases, "sampling")]
    line = [row for steps in STEPS for row in one_dimensional(steps)]
    sizes = {
        "seeds": SEEDS,
        "draws": DRAWS,
        "samples": SAMPLES,
        "training steps": TRAINING,
        "width": WIDTH,
    }
    save("accumulation", {"sizes": sizes, "learned": rows, "one dimension": line})
    shown = ("coupled", "Gelbrich", "projected", "published", "surrogate", "bound")
    cells = [
        [str(row[k]) for k in ("sampler", "K", "schedule")]
        + [f"{row[k]:.4g} +- {row[f'{k} s.e.']:.1g}" for k in shown]
        for row in rows
    ]
    print(table(["sampler", "K", "schedule", *shown], cells))
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in line]
    print(table(list(line[0]), cells))


if __name__ == "__main__":
    main()
