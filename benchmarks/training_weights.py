"""Weights of the training loss on trained networks: python -m benchmarks.training_weights.

The experiment of Cao, Chen, Luo, Zhou (2023), Appendix I, on two data sets. Networks that differ in
nothing but the weight of the score-matching loss over time (their five seeds share initial
parameters, batches and noise) are run as ODE and as reverse SDE. Beside the source's three weights
stand those that minimise the terminal error predicted by `terminal_kernel`, KL or squared W2, for
either sampler.
Three predictions are asked for the order of the weights, each with more knowledge of the networks:

- model: `TerminalKernel.predict_error`, before training, from the spectrum of the data (W2^2);
- profile: that kernel times the measured change of the score-matching loss over time, of an error
  that is independent over units of log-SNR;
- affine: `ScoreErrorEstimate.predict`, from the affine part of the measured errors and their
  correlation in time.

Networks and what was measured of them are kept in .cache: an interrupted run goes on where it
stopped.
Names of data sets as arguments restrict the run to them.
"""

import itertools
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.progress import track
from scipy.stats import rankdata

import jaxkernels as jk
from jaxkernels import reverse_sde

from .environment import CACHE, RESULTS, save, table
from .networks.data import PROBLEMS, PROCESS, T_MIN, Problem
from .networks.network import Network
from .networks.study import denoiser_of, mean_and_error

SEEDS = 5
WEIGHTS = ("default", "noise", "data", "KL, ODE", "KL, SDE", "W2, ODE", "W2, SDE")
METRICS = {"KL": "kl", "W2": "w2_squared"}
# alpha = h / g of DDIM
SAMPLERS = {"ODE": 0.0, "SDE": 1.0}
STEPS = 50
# shares of the training after which networks are looked at
STAGES = (0.125, 0.25, 0.5, 1.0)
LEVELS = 25
LEARNING_RATE = 2e-3
# steps of one compiled call
_CHUNK = 125

_BY_NAME = {problem.name: problem for problem in PROBLEMS}
# smaller than the reference networks, and trained for less: the seeds are what costs
SMALL = (
    replace(_BY_NAME["digits"], width=96, blocks=2, training_steps=4000, batch=128),
    replace(_BY_NAME["ring"], width=64, blocks=2, training_steps=8000, batch=128),
)


class Setting(NamedTuple):
    """A data set, what is held out of it, and the weights at `times`."""

    problem: Problem
    data: Float[np.ndarray, "n d"]
    held_out: Float[np.ndarray, "m d"]
    target: jk.Gaussian
    times: Float[np.ndarray, " levels"]
    """From t_max to T_MIN, equal steps of log-SNR."""
    kernels: dict[str, reverse_sde.TerminalKernel]
    """By metric and sampler, in theta from that of T_MIN on."""

    def weight(self, name: str) -> Callable[[Array], Array]:
        """A weight of the loss, as a function of theta from that of T_MIN on, per unit of theta."""
        if name in self.kernels:
            kernel = self.kernels[name]
            known = np.asarray(kernel.time).ravel()
            values = np.log(np.asarray(kernel.optimal_weight)).ravel()
            return lambda theta: jnp.exp(jnp.interp(theta, known, values))
        return lambda theta: (
            reverse_sde.training_weight(PROCESS, times_of(theta), name)
            / PROCESS.diffusion_squared(times_of(theta))
        )


def times_of(theta: Array) -> Array:
    """Times t at theta from that of T_MIN on."""
    start = reverse_sde.time_change(PROCESS, T_MIN)
    return reverse_sde.inverse_time_change(PROCESS, start + theta)


def make_setting(problem: Problem) -> Setting:
    """The data set, with kernels of the distribution at T_MIN, where sampling stops.

    Modes that vary less than the noise there are left out of the kernels: nothing else would count
    in KL, nor in the size of a relative error.
    """
    held_out, data = problem.split()
    target = jk.Gaussian.fit(data, shrinkage=0.0)
    variances = np.asarray(target.in_eigenbasis().eigenvalues)
    start, end = (float(reverse_sde.time_change(PROCESS, t)) for t in (T_MIN, 1.0))
    kept = variances[variances > np.expm1(start)]
    stopped = jk.Gaussian(0.0, kept * np.exp(-start) - np.expm1(-start))
    edges = np.concatenate([[0.0], np.geomspace(1e-4, end - start, 30)])
    kernels = {
        f"{metric}, {sampler}": reverse_sde.terminal_kernel(
            stopped, edges, alpha**2, metric=METRICS[metric]
        )
        for metric, (sampler, alpha) in itertools.product(METRICS, SAMPLERS.items())
    }
    times = np.asarray(jk.schedules.log_snr(PROCESS, LEVELS - 1, T_MIN).times)
    return Setting(problem, data, held_out[:2000], target, times, kernels)


# --- training ---


def train(setting: Setting, weight: str) -> dict[float, Network]:
    """Networks of all seeds, stacked, after each stage of the training with a weight."""
    problem = setting.problem
    fresh = jax.vmap(lambda key: Network(problem, setting.data, key))(
        jax.random.split(jax.random.key(0), SEEDS)
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, problem.training_steps))
    state = (fresh, jax.vmap(optimizer.init)(eqx.filter(fresh, eqx.is_array)))
    log_weight = tabulate(setting, weight)
    advance = _advance(optimizer, jnp.asarray(setting.data, jnp.float32), problem.batch)
    stages = {}
    done = 0
    for stage in STAGES:
        path = _path(problem, weight, stage)
        last = round(stage * problem.training_steps / _CHUNK)
        if path.exists():
            state = eqx.tree_deserialise_leaves(path, state)
        else:
            for chunk in range(done, last):
                key = jax.random.fold_in(jax.random.key(1), chunk)
                state = jax.block_until_ready(advance(state, log_weight, key))
            CACHE.mkdir(exist_ok=True)
            eqx.tree_serialise_leaves(path, state)
        done = last
        stages[stage] = state[0]
    return stages


def _path(problem: Problem, weight: str, stage: float) -> Path:
    """Where networks are kept."""
    return CACHE / f"weights_{problem.name}_{weight.replace(', ', '_')}_{stage:g}.eqx"


def tabulate(setting: Setting, weight: str) -> Float[Array, " levels"]:
    """Logarithms of a weight in t at the setting's times, 1 on average over log-SNR."""
    start = reverse_sde.time_change(PROCESS, T_MIN)
    theta = reverse_sde.time_change(PROCESS, jnp.asarray(setting.times)) - start
    # d theta = g^2 dt
    values = setting.weight(weight)(theta) * PROCESS.diffusion_squared(jnp.asarray(setting.times))
    density = jnp.abs(jax.vmap(jax.grad(PROCESS.log_snr))(jnp.asarray(setting.times)))
    return jnp.log(values / jnp.mean(values / density)).astype(jnp.float32)


def _advance(
    optimizer: optax.GradientTransformation, data: Float[Array, "n d"], batch: int
) -> Callable[[Any, Float[Array, " levels"], Array], Any]:
    """`_CHUNK` steps of training of all seeds, compiled; the weight is an argument."""
    ends = PROCESS.log_snr(jnp.asarray([1.0, T_MIN]))
    known = jnp.linspace(ends[0], ends[1], LEVELS)

    def step(state: tuple[Network, optax.OptState], log_weight: Array, key: Array):
        network, moments = state
        key_data, key_loss = jax.random.split(key)
        x0 = data[jax.random.randint(key_data, (batch,), 0, data.shape[0])]

        def weight(t: Array) -> Array:
            return jnp.exp(jnp.interp(PROCESS.log_snr(t), known, log_weight))

        @eqx.filter_grad
        def gradient(network: Network) -> Array:
            return reverse_sde.score_matching_loss(
                *(denoiser_of(network), x0, key_loss),
                weight=weight,
                t_min=T_MIN,
                coordinate="log_snr",
            )

        updates, moments = optimizer.update(gradient(network), moments)
        return eqx.apply_updates(network, updates), moments

    @jax.jit
    def advance(state: Any, log_weight: Array, key: Array) -> Any:
        def all_seeds(state: Any, key: Array) -> tuple[Any, None]:
            keys = jax.random.split(key, SEEDS)
            return jax.vmap(step, (0, None, 0))(state, log_weight, keys), None

        return jax.lax.scan(all_seeds, state, jax.random.split(key, _CHUNK))[0]

    return advance


# --- measuring ---


def seed_of(networks: Network, seed: int) -> Network:
    """One of stacked networks."""
    return jax.tree.map(lambda leaf: leaf[seed], networks)


@partial(jax.jit, static_argnames="count")
def draw(networks: Network, schedule: jk.Schedule, count: int) -> Float[Array, "seeds n d"]:
    """Samples of all seeds, from the same initial noise for all weights."""

    def one(network: Network, seed: Array) -> Array:
        key_noise, key = jax.random.split(jax.random.fold_in(jax.random.key(9), seed))
        noise = jax.random.normal(key_noise, (count, network.mean.size))
        return jk.sample(denoiser_of(network), "ddim", schedule, noise, key=key)

    return jax.vmap(one)(networks, jnp.arange(SEEDS))


def schedule_of(sampler: str) -> jk.Schedule:
    """The schedule with a sampler's noise."""
    return jk.Schedule(jk.schedules.quadratic(PROCESS, STEPS, T_MIN).times, SAMPLERS[sampler])


def measure_samples(setting: Setting, networks: Network, sampler: str) -> dict[str, list[float]]:
    """Errors of the samples of every seed: sliced W2 over the data's size, W2^2 of the moments."""
    size = np.sqrt(np.sum(setting.data.var(0)))
    count = setting.problem.selection_noise
    drawn = np.asarray(draw(networks, schedule_of(sampler), count), np.float64)
    return {
        "sliced_w2": [jk.metrics.sliced_w2(x, setting.data).value / size for x in drawn],
        "gaussian_w2_squared": [_gaussian_distance(x, setting.data) for x in drawn],
    }


def floor(setting: Setting) -> tuple[float, float]:
    """Sliced W2 of as many draws from the data themselves."""
    data = setting.data
    size = np.sqrt(np.sum(data.var(0)))
    rng = np.random.default_rng(0)
    count = setting.problem.selection_noise
    draws = [data[rng.integers(len(data), size=count)] for _ in range(SEEDS)]
    return mean_and_error([jk.metrics.sliced_w2(x, data).value / size for x in draws])


def _gaussian_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """W2^2 between the normal distributions of the means and covariances of two samples."""
    a, b = (np.cov(z, rowvar=False) for z in (x, y))
    values, vectors = np.linalg.eigh(b)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    product = np.maximum(np.linalg.eigvalsh(root @ a @ root), 0.0)
    mean = np.sum((x.mean(0) - y.mean(0)) ** 2)
    return float(mean + np.trace(a) + np.trace(b) - 2.0 * np.sum(np.sqrt(product)))


@jax.jit
def loss_profiles(
    networks: Network, held_out: Float[Array, "n d"], times: Float[Array, " levels"]
) -> Float[Array, "seeds levels"]:
    """The score-matching loss of every seed over time, with the same noise for all."""

    def one(network: Network) -> Array:
        denoiser = denoiser_of(network)
        return reverse_sde.score_loss_profile(denoiser, held_out, jax.random.key(4), times)

    return jax.vmap(one)(networks)


def measure(setting: Setting, networks: Network, stage: float) -> dict[str, Any]:
    """What is measured of the networks of a weight at a stage, the SDE at the last stage only."""
    times = jnp.asarray(setting.times, jnp.float32)
    held_out = jnp.asarray(setting.held_out, jnp.float32)
    samplers = SAMPLERS if stage == 1.0 else ("ODE",)
    return {
        "profile": np.asarray(loss_profiles(networks, held_out, times)).tolist(),
        **{sampler: measure_samples(setting, networks, sampler) for sampler in samplers},
    }


def _kept(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, computed and written if there is none."""
    if not path.exists():
        path.write_text(json.dumps(compute()))
    return json.loads(path.read_text())


def study(problem: Problem) -> dict[str, Any]:
    """Everything about one data set."""
    setting = make_setting(problem)
    trained = {w: train(setting, w) for w in track(WEIGHTS, f"training for {problem.name}")}
    rows = []
    for weight, stage in track(list(itertools.product(WEIGHTS, STAGES)), "measuring"):
        path = _path(problem, weight, stage).with_suffix(".json")
        row = _kept(path, partial(measure, setting, trained[weight][stage], stage))
        rows.append({"weight": weight, "stage": stage, **row})
    affine = {
        weight: _kept(
            _path(problem, weight, 1.0).with_suffix(".affine.json"),
            partial(predict_affine, setting, trained[weight][1.0]),
        )
        for weight in track(WEIGHTS, "affine errors")
    }
    return {
        "problem": problem.name,
        "training_steps": problem.training_steps,
        "samples": problem.selection_noise,
        "floor": floor(setting),
        "times": setting.times.tolist(),
        "weights": {w: np.exp(np.asarray(tabulate(setting, w))).tolist() for w in WEIGHTS},
        "rows": rows,
        "predictions": {s: predict(setting, rows, affine, s) for s in SAMPLERS},
    }


# --- predictions ---


def predict(
    setting: Setting, rows: list[dict], affine: dict[str, dict[str, Any]], sampler: str
) -> dict[str, Any]:
    """The three predictions for every weight, and how well each orders them."""
    last = {row["weight"]: row for row in rows if row["stage"] == 1.0}
    kernel = setting.kernels[f"W2, {sampler}"]
    cost = cost_per_log_snr(setting, kernel)
    base = np.array(last["default"]["profile"])
    found = {
        "model": {w: float(kernel.predict_error(setting.weight(w))) for w in WEIGHTS},
        "profile": {
            w: mean_and_error((np.array(row["profile"]) - base) @ cost) for w, row in last.items()
        },
        "affine": {w: by[sampler] for w, by in affine.items()},
    }
    measured = {w: np.array(row[sampler]["sliced_w2"]) for w, row in last.items()}
    moments = {w: np.array(row[sampler]["gaussian_w2_squared"]) for w, row in last.items()}
    central = {name: {w: np.ravel(v)[0] for w, v in by.items()} for name, by in found.items()}
    orders = {
        name: {"sliced_w2": order(by, measured), "gaussian_w2_squared": order(by, moments)}
        for name, by in central.items()
    }
    return {"values": found, "orders": orders}


def cost_per_log_snr(
    setting: Setting, kernel: reverse_sde.TerminalKernel
) -> Float[np.ndarray, " levels"]:
    """k (d theta / du)^2 du at the setting's times, u the log-SNR: what a unit of loss costs."""
    times = jnp.asarray(setting.times)
    theta = np.asarray(reverse_sde.time_change(PROCESS, times))
    k = np.interp(theta - theta[-1], np.ravel(kernel.time), np.ravel(kernel.kernel))
    u = np.asarray(PROCESS.log_snr(times))
    return k * np.gradient(theta, u) ** 2 * np.gradient(u)


def predict_affine(setting: Setting, networks: Network) -> dict[str, tuple[float, float, float]]:
    """The predicted W2^2 of the moments by sampler, discretisation included, with its interval."""
    denoisers = [denoiser_of(seed_of(networks, seed)) for seed in range(SEEDS)]
    found = {}
    with warnings.catch_warnings():
        # what mixes modes is left out here
        warnings.simplefilter("ignore")
        estimate = jk.estimate_score_error(
            *(denoisers, setting.data, setting.times),
            key=jax.random.key(0),
            target=setting.target,
            repetitions=3,
            batch=1024,
            progress=False,
        )
        for sampler in SAMPLERS:
            kernel = jk.error_kernel(setting.target, PROCESS, "ddim", schedule_of(sampler))
            excess = estimate.predict(kernel)
            base = float(kernel.baseline())
            found[sampler] = (base + excess.value, base + excess.low, base + excess.high)
    return found


def order(predicted: dict[str, float], measured: dict[str, np.ndarray]) -> dict[str, Any]:
    """The rank correlation over weights, and pairs in the right order of those that are clear.

    A pair is clear if the mean of its difference over seeds is above two standard errors.
    """
    values = [
        [by[w] for w in WEIGHTS] for by in (predicted, {w: m.mean() for w, m in measured.items()})
    ]
    ranks = [rankdata(v) for v in values]
    clear = []
    for a, b in itertools.combinations(WEIGHTS, 2):
        difference, error = mean_and_error(np.log(measured[a]) - np.log(measured[b]))
        if abs(difference) > 2.0 * error:
            clear.append(difference * (predicted[a] - predicted[b]) > 0.0)
    return {
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
        "right": int(np.sum(clear)),
        "clear": len(clear),
    }


def means(measured: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean over seeds of every weight."""
    return {w: float(values.mean()) for w, values in measured.items()}


# --- report ---


def report(studies: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Weights of the training loss",
        "",
        "Written by `python -m benchmarks.training_weights`; how to read it: "
        "[README](../README.md#training-weights).",
        "",
    ]
    for content in studies:
        lines += report_study(content)
    return "\n".join(lines)


def report_study(content: dict[str, Any]) -> list[str]:
    """One data set."""
    last = {row["weight"]: row for row in content["rows"] if row["stage"] == 1.0}
    lines = [
        f"## {content['problem']}",
        "",
        f"{content['samples']} samples; as many draws from the data have sliced W2 "
        "{:.4f} ± {:.4f}.".format(*content["floor"]),
        "",
    ]
    for sampler in SAMPLERS:
        found = content["predictions"][sampler]
        cells = [_cells(weight, last, found["values"], sampler) for weight in last]
        head = ["weight", "sliced W2", "to default", "W2^2 of moments, to default"]
        head += ["model", "profile", "affine"]
        lines += [f"{sampler}, DDIM, K = {STEPS}:", "", table(head, cells), ""]
        orders = [
            [name, *(_order(by[m]) for m in ("sliced_w2", "gaussian_w2_squared"))]
            for name, by in found["orders"].items()
        ]
        lines += [
            "Rank correlation of predicted and measured, and pairs in the right order of those "
            "whose difference is clear:",
            "",
            table(["prediction", "sliced W2", "W2^2 of moments"], orders),
            "",
        ]
    return [*lines, *report_stages(content)]


def _cells(weight: str, last: dict[str, Any], values: dict[str, Any], sampler: str) -> list[str]:
    """A weight's row: measured and predicted, relative to the default weight."""
    ours = last[weight][sampler]
    base = last["default"][sampler]
    model, profile, affine = (values[name] for name in ("model", "profile", "affine"))
    return [
        weight,
        _show(ours["sliced_w2"]),
        *(_ratio(ours[m], base[m]) for m in ("sliced_w2", "gaussian_w2_squared")),
        f"{model[weight] / model['default']:.3g}",
        f"{profile[weight][0]:+.2g} ± {profile[weight][1]:.1g}",
        f"{affine[weight][0] / affine['default'][0]:.3g}",
    ]


def report_stages(content: dict[str, Any]) -> list[str]:
    """Sliced W2 of the ODE by stage, and the loss over time relative to the default weight's."""
    cells = [
        [row["weight"], f"{row['stage']:g}", _show(row["ODE"]["sliced_w2"])]
        for row in content["rows"]
    ]
    lines = ["Over the training, ODE:", "", table(["weight", "stage", "sliced W2"], cells), ""]
    last = {row["weight"]: row for row in content["rows"] if row["stage"] == 1.0}
    base = np.array(last["default"]["profile"])
    shown = range(0, len(content["times"]), 4)
    rows = [
        [w, *(f"{np.mean(np.array(row['profile']) / base, 0)[i]:.3f}" for i in shown)]
        for w, row in last.items()
    ]
    head = ["weight", *(f"t = {content['times'][i]:.3g}" for i in shown)]
    title = "Score-matching loss on held-out data relative to the default weight's:"
    return [*lines, title, "", table(head, rows), ""]


def _show(values: list[float]) -> str:
    return "{:.4f} ± {:.4f}".format(*mean_and_error(values))


def _ratio(values: list[float], base: list[float]) -> str:
    """The geometric mean of the ratio over seeds, with its standard error."""
    value, error = mean_and_error(np.log(values) - np.log(base))
    return f"{np.exp(value):.3f} ± {np.exp(value) * error:.3f}"


def _order(found: dict[str, Any]) -> str:
    return f"{found['spearman']:+.1f}, {found['right']} of {found['clear']}"


def main() -> None:
    """Train, measure, show and save."""
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    asked = sys.argv[1:]
    problems = [p for p in SMALL if not asked or p.name in asked]
    if not problems:
        raise SystemExit(f"no data set among {asked}; {[p.name for p in SMALL]}")
    studies = [study(problem) for problem in problems]
    path = save("training_weights", {"seeds": SEEDS, "steps": STEPS, "studies": studies})
    text = report(studies)
    Path(RESULTS / "training_weights.md").write_text(text)
    print(text)
    print(f"written to {path} and .md")


if __name__ == "__main__":
    main()
