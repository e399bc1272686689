"""How samples change with the network, predicted and measured: python -m benchmarks.sample_changes.

Every reference network is changed in three ways: trained for a little longer, twice, and rounded to
8 bits per weight. `jk.predict_sample_change` says what becomes of the samples, to first order in
the difference of the networks; beside it stands what does. Trajectories are trusted where the
expansion's own remainder says that it holds within 10 % (`SampleChange.holds`, without the measured
change). Names of networks as arguments restrict the run to them; the results of the others stay.
"""

import json
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.progress import track

import jaxkernels as jk

from .environment import RESULTS, save, table
from .networks.data import HELD_OUT, PROBLEMS, PROCESS, T_MIN, Problem
from .networks.network import Network
from .networks.study import denoiser_of
from .networks.train import loss, train

SAMPLERS = ("ddim", "dpmpp_2m")
STEPS = (8, 20)
NUM_NOISE = 256
# more steps of training, one after the other, and their learning rate
MORE_STEPS = (100, 1000)
LEARNING_RATE = 1e-4
BATCH = 256
WITHIN = 0.1


def trained_longer(network: Network, data: np.ndarray, steps: int) -> Network:
    """The network after more steps of Adam."""
    optimizer = optax.adam(LEARNING_RATE)
    images = jnp.asarray(data, jnp.float32)

    def step(state: tuple[Network, optax.OptState], key: Array):
        network, moments = state
        key_data, key_loss = jax.random.split(key)
        batch = images[jax.random.randint(key_data, (BATCH,), 0, images.shape[0])]
        gradient = eqx.filter_grad(loss)(network, batch, key_loss)
        updates, moments = optimizer.update(gradient, moments)
        return (eqx.apply_updates(network, updates), moments), None

    @jax.jit
    def run(network: Network, keys: Array) -> Network:
        start = (network, optimizer.init(eqx.filter(network, eqx.is_array)))
        return jax.lax.scan(step, start, keys)[0][0]

    return run(network, jax.random.split(jax.random.key(7), steps))


def quantised(network: Network) -> Network:
    """The network with the weights of every matrix rounded to 255 equally spaced values."""

    def rounded(leaf: Array) -> Array:
        if leaf.ndim < 2:
            return leaf
        unit = jnp.max(jnp.abs(leaf)) / 127.0
        return unit * jnp.round(leaf / unit)

    return jax.tree.map(rounded, network)


def variants(network: Network, data: np.ndarray) -> dict[str, Network]:
    """The changed networks by name."""
    longer = {f"{n} more steps": trained_longer(network, data, n) for n in MORE_STEPS}
    return {**longer, "8 bits": quantised(network)}


def measure(network: Network, changed: Network, sampler: str, steps: int) -> dict[str, Any]:
    """One row of the table."""
    noise = jax.random.normal(jax.random.key(3), (NUM_NOISE, network.mean.size))
    schedule = jk.schedules.log_snr(PROCESS, steps, T_MIN)
    networks = (denoiser_of(network), denoiser_of(changed))
    change = jk.predict_sample_change(*networks, sampler, schedule, noise)
    found = _norms(change.measured)
    first = _norms(change.first_order)
    missed = _norms(change.measured - change.first_order)
    trusted = np.asarray(change.holds(WITHIN))
    return {
        "rms": _rms(found),
        "predicted": _rms(first),
        "error": float(change.error),
        "remainder": float(change.remainder),
        "trusted": float(trusted.mean()),
        "trusted_rms": _rms(found[trusted]),
        "trusted_predicted": _rms(first[trusted]),
        "trusted_error": _rms(missed[trusted]) / _rms(found[trusted]),
        "trusted_within": float((missed[trusted] < WITHIN * found[trusted]).mean()),
        "shares": (change.kernel.sum(1) / change.kernel.sum()).tolist(),
    }


def _norms(change: Float[Array, "n d"]) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(np.asarray(change, np.float64), axis=1)


def _rms(values: Float[np.ndarray, " n"]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")


def study(problem: Problem) -> list[dict[str, Any]]:
    """All rows of one network."""
    _, data = problem.split()
    network = train(problem, data)
    settings = [
        (name, changed, sampler, steps)
        for name, changed in variants(network, data).items()
        for sampler in SAMPLERS
        for steps in STEPS
    ]
    return [
        {"network": problem.name, "change": name, "sampler": sampler, "steps": steps}
        | measure(network, changed, sampler, steps)
        for name, changed, sampler, steps in track(settings, problem.name)
    ]


def _earlier_rows() -> list[dict[str, Any]]:
    """What earlier runs have found with as much initial noise."""
    path = RESULTS / "sample_changes.json"
    earlier = (
        json.loads(path.read_text()) if path.exists() else {"num_noise": NUM_NOISE, "rows": []}
    )
    return earlier["rows"] if earlier["num_noise"] == NUM_NOISE else []


def main() -> None:
    """Measure, show and save."""
    asked = sys.argv[1:]
    problems = [p for p in (*PROBLEMS, HELD_OUT) if not asked or p.name in asked]
    if not problems:
        raise SystemExit(f"no network among {asked}; {[p.name for p in (*PROBLEMS, HELD_OUT)]}")
    rows = [row for problem in problems for row in study(problem)]
    shown = [
        [
            f"{row['network']}, {row['change']}, {row['sampler']}, K = {row['steps']}",
            f"{row['rms']:.3g}",
            f"{row['predicted'] / row['rms']:.3f}",
            f"{row['error']:.1%}",
            f"{row['remainder']:.1%}",
            f"{row['trusted']:.0%}",
            f"{row['trusted_predicted'] / row['trusted_rms']:.3f}",
            f"{row['trusted_within']:.0%}",
        ]
        for row in rows
    ]
    kept = [row for row in _earlier_rows() if row["network"] not in {p.name for p in problems}]
    header = ["change", "rms", "predicted / measured", "error", "remainder"]
    header += ["trusted trajectories", "theirs: predicted / measured", "within 10 %"]
    print(table(header, shown))
    content = {"num_noise": NUM_NOISE, "rows": kept + rows}
    print(f"written to {save('sample_changes', content)}")


if __name__ == "__main__":
    main()
