"""Experts trained on clusters, with routers of four kinds, beside one network of the same size.

A mixture of five Gaussians in two dimensions and the digits in five clusters. All experts together
with their router have at most as many parameters as the one network, and are trained on as many
rows for as many steps each, so that training costs the same too. Run by
`python -m benchmarks.experts`; it writes results/experts.json and .md, and goes on where it stopped.

    one network   DDIM, all data
    labels        router trained by the cross-entropy of the clusters
    weights       router trained on posterior probabilities: cross-entropy and squared error first
                  (two thirds of the steps), squared error alone then
    rates         as "weights", with the time derivative of the weights as a second output and the
                  squared error of that in the second stage, where three copies go on apart, each in
                  a third of the noise levels; its weights are integrated while sampling
"""

import dataclasses
from collections.abc import Callable
from time import perf_counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.cluster import KMeans

import jaxkernels as jk
from jaxkernels import routing

from .environment import CACHE, save, table
from .networks.data import PROCESS, T_MIN, Problem
from .networks.network import Network
from .networks.train import fit, minibatch, noising
from .networks.train import loss as denoising_loss
from .routing import sliced
from .spectra import digits

CLUSTERS = 5
# noise levels at which the copies of the derivative's network meet
SIGMAS = (0.3, 3.0)
BUDGETS = (10, 25, 50, 100)
STEPS = (10, 20, 50)
SHARES = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
_DIRECTIONS = 256


@dataclasses.dataclass(frozen=True)
class Study:
    """A data set in clusters, and sizes of its networks."""

    name: str
    data: Float[np.ndarray, "n d"]
    labels: np.ndarray
    held_out: Float[np.ndarray, "m d"]
    held_out_labels: np.ndarray
    exact: routing.Experts
    """With the right weights: of the mixture, or of the finite training data."""
    width: int
    router_width: int
    training_steps: int
    batch: int = 256
    count: int = 4000
    """Trajectories that are sampled."""


def ring() -> Study:
    """Five Gaussians on a circle, which overlap a little."""
    angles = 2.0 * np.pi * np.arange(CLUSTERS) / CLUSTERS
    means = 2.0 * np.stack([np.cos(angles), np.sin(angles)], 1)
    mixture = jk.GaussianMixture(SHARES, means, [0.16] * CLUSTERS)
    rng = np.random.default_rng(0)
    labels = rng.choice(CLUSTERS, size=25_000, p=SHARES)
    data = means[labels] + 0.4 * rng.standard_normal((25_000, 2))
    parts = (data[5000:], labels[5000:], data[:5000], labels[:5000])
    exact = routing.Experts.of_mixture(mixture, PROCESS)
    return Study("ring", *parts, exact, width=96, router_width=24, training_steps=3000)


def digit_clusters() -> Study:
    """The digits in clusters of k-means, a sixth of them held out."""
    data = np.random.default_rng(0).permutation(digits())
    labels = KMeans(CLUSTERS, n_init=10, random_state=0).fit_predict(data)
    held = len(data) // 6
    parts = (data[held:], labels[held:], data[:held], labels[:held])
    clusters = [data[held:][labels[held:] == i] for i in range(CLUSTERS)]
    exact = routing.Experts.of_clusters(clusters, PROCESS)
    return Study("digits", *parts, exact, width=160, router_width=48, training_steps=3000)


class Router(eqx.Module):
    """A network of x (batch, d) and a scalar time with `outputs` numbers per point."""

    body: Network

    def __init__(self, problem: Problem, data: np.ndarray, outputs: int, key: Array):
        body = Network(problem, data, key)
        last = eqx.nn.Linear(problem.width, outputs, key=jax.random.fold_in(key, 1))
        self.body = eqx.tree_at(lambda network: network.last, body, last)

    def __call__(self, x: Array, t: Array) -> Array:
        mean, scale = jax.lax.stop_gradient((self.body.mean, self.body.scale))
        a = PROCESS.signal(t)
        level = jnp.sqrt((a * scale) ** 2 + PROCESS.noise(t) ** 2)
        return jax.vmap(self.body.body, in_axes=(0, None))((x - a * mean) / level, t)

    def logits(self, x: Array, t: Array) -> Array:
        return self(x, t)[:, :CLUSTERS]

    def log_rates(self, x: Array, t: Array) -> Array:
        """The other outputs, per unit of time; the network's are per unit of log-SNR."""
        return self(x, t)[:, CLUSTERS:] * jax.grad(PROCESS.log_snr)(t)


class Intervals(eqx.Module):
    """Copies of one router, of which that of the noise level answers."""

    copies: tuple[Router, ...]

    def logits(self, x: Array, t: Array) -> Array:
        return self._answer([copy.logits for copy in self.copies], x, t)

    def log_rates(self, x: Array, t: Array, velocity: Array) -> Array:
        del velocity  # the networks learned the derivative along the flow
        return self._answer([copy.log_rates for copy in self.copies], x, t)

    def _answer(self, functions: list[Callable[..., Array]], x: Array, t: Array) -> Array:
        level = jnp.sum(PROCESS.sigma(t) >= jnp.array(SIGMAS))
        return jax.lax.switch(level, functions, x, jnp.asarray(t))


@dataclasses.dataclass(frozen=True)
class Trained:
    """All networks of a study."""

    single: jk.Denoiser
    experts: dict[str, routing.Experts]
    rates: Intervals
    costs: dict[str, Any]


def size(model: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


def noised(
    term: Callable[..., Array], t_min: float = T_MIN, t_max: float | None = None
) -> Callable[..., Array]:
    """The mean of term(network, x0, label, t, eps) over noised rows of the data."""

    def loss(network: Any, x0: Array, labels: Array, key: Array) -> Array:
        times, eps = noising(x0, key, t_min, t_max)

        def one(x0: Array, label: Array, t: Array, eps: Array) -> Array:
            return term(network, x0[None], label[None], t, eps[None])

        return jnp.mean(jax.vmap(one)(x0, labels, times, eps))

    return loss


def router_terms(exact: routing.Experts) -> dict[str, Callable[..., Array]]:
    """What routers are trained on."""

    def labels(network: Router, x0: Array, label: Array, t: Array, eps: Array) -> Array:
        return routing.label_loss(network.logits, PROCESS, x0, label, t, eps)

    def weights(network: Router, x0: Array, label: Array, t: Array, eps: Array) -> Array:
        del label
        return routing.weight_loss(network.logits, exact, x0, t, eps)

    def both(network: Router, *row: Array) -> Array:
        return labels(network, *row) + weights(network, *row)

    def rates(network: Router, x0: Array, label: Array, t: Array, eps: Array) -> Array:
        error = routing.weight_rate_loss(network.log_rates, exact, x0, t, eps)
        return weights(network, x0, label, t, eps) + error

    return {"labels": labels, "weights": weights, "both": both, "rates": rates}


def train(study: Study) -> Trained:
    """Train everything, by one loop with the loss as its argument."""
    data = jnp.asarray(study.data, jnp.float32)
    rows = (data, jnp.asarray(study.labels))
    costs: dict[str, Any] = {}

    def run(label: str, fresh: Any, objective: Callable[..., Array], steps: int) -> Any:
        start = perf_counter()
        name = f"experts_{study.name}_{label}_{size(fresh)}_{steps}".replace(" ", "_").replace(",", "")
        path = CACHE / f"{name}.eqx"
        found = fit(fresh, objective, steps, path)
        costs[label] = {"parameters": size(fresh), "seconds": perf_counter() - start}
        return found

    steps = study.training_steps
    single_problem = Problem(study.name, digits, "x0", study.width, 3, steps)
    fresh = Network(single_problem, study.data, jax.random.key(0))
    objective = minibatch(denoising_loss, data, study.batch)
    single = run("one network", fresh, objective, steps)
    routers = train_routers(study, rows, run)
    experts = train_experts(study, size(fresh) - size(routers["weights"]), run)
    denoisers = [jk.Denoiser(expert, PROCESS, "x0") for expert in experts]
    made = {name: routing.Experts(denoisers, router.logits) for name, router in routers.items()}
    made["exact weights"] = routing.Experts(denoisers, study.exact.router)
    return Trained(jk.Denoiser(single, PROCESS, "x0"), made, routers["rates"], costs)


def train_experts(study: Study, parameters: int, run: Callable[..., Any]) -> tuple[Network, ...]:
    """One network for each cluster, as wide as the parameters allow."""
    clusters = [study.data[study.labels == i] for i in range(CLUSTERS)]

    def fresh(width: int) -> tuple[Network, ...]:
        problem = Problem(study.name, digits, "x0", width, 3, study.training_steps)
        keys = jax.random.split(jax.random.key(2), CLUSTERS)
        return tuple(Network(problem, c, k) for c, k in zip(clusters, keys, strict=True))

    width = max(w for w in range(8, study.width, 4) if size(fresh(w)) <= parameters)
    batches = [
        minibatch(denoising_loss, jnp.asarray(c, jnp.float32), study.batch) for c in clusters
    ]

    def objective(networks: tuple[Network, ...], key: Array) -> Array:
        keys = jax.random.split(key, CLUSTERS)
        return sum(
            (batch(*run) for batch, *run in zip(batches, networks, keys, strict=True)),
            start=jnp.zeros(()),
        )

    return run("experts", fresh(width), objective, study.training_steps)


def train_routers(
    study: Study, rows: tuple[Array, Array], run: Callable[..., Any]
) -> dict[str, Any]:
    """Routers of three kinds; that with rates in three copies."""
    steps = study.training_steps
    first = steps * 2 // 3 // 200 * 200
    problem = Problem(study.name, digits, "x0", study.router_width, 2, steps)
    terms = router_terms(study.exact)

    def fresh(outputs: int) -> Router:
        return Router(problem, study.data, outputs, jax.random.key(3))

    def objective(name: str, *ends: Any) -> Callable[..., Array]:
        return minibatch(noised(terms[name], *ends), rows, study.batch)

    labels = run("labels", fresh(CLUSTERS), objective("labels"), steps)
    start = run("weights, first stage", fresh(CLUSTERS), objective("both"), first)
    weights = run("weights", start, objective("weights"), steps - first)
    start = run("rates, first stage", fresh(2 * CLUSTERS), objective("both"), first)
    times = [float(PROCESS.time_at_sigma(sigma)) for sigma in SIGMAS]
    ends = zip([T_MIN, *times], [*times, None], strict=True)
    parts = [objective("rates", *interval) for interval in ends]

    def intervals(copies: tuple[Router, ...], key: Array) -> Array:
        return sum(
            (part(copy, key) for part, copy in zip(parts, copies, strict=True)),
            start=jnp.zeros(()),
        )

    # copies of one network, which go on apart
    copies = run("rates", (start,) * len(parts), intervals, steps - first)
    return {"labels": labels, "weights": weights, "rates": Intervals(copies)}
