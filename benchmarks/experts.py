"""Experts trained on clusters, with routers of four kinds, beside one network of the same size.

A mixture of five Gaussians in two dimensions and the digits in five clusters. All experts together
with their router have at most as many parameters as the one network, and are trained on as many
rows for as many steps each, so that training costs the same too. Run by
`python -m benchmarks.experts`; it writes results/experts.json and .md. Networks and finished parts
are kept in .cache.

    one network   all data
    labels        router trained by the cross-entropy of the clusters
    weights       router trained on posterior probabilities: cross-entropy and squared error first
                  (two thirds of the steps), squared error alone then
    rates         as "weights", with the time derivative of the weights as a second output and the
                  squared error of that in the second stage, where three copies go on apart, each in
                  a third of the noise levels; its weights are integrated while sampling
"""

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
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
from .networks.train import fit, loss as denoising_loss, minibatch, noising
from .spectra import digits

CLUSTERS = 5
# noise levels at which the copies of the derivative's network meet
SIGMAS = (0.3, 3.0)
BUDGETS = (10, 50)
STEPS = (10, 20, 50)
SHARES = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
BUDGET = 50
COMPARED = {
    "labels": ("all experts", "switching", "error feedback"),
    "weights": ("all experts", "switching", "error feedback"),
    "rates": ("switching", "error feedback"),
    "exact weights": ("switching",),
}
POLICIES: dict[str, routing.AbstractPolicy] = {
    "all experts": routing.SoftRouting(),
    "switching": routing.StochasticSwitching(),
    "error feedback": routing.ErrorFeedback(),
}


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
    count: int = 2000
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
    labels = KMeans(CLUSTERS, n_init=10, random_state=0).fit_predict(data)  # pyright: ignore[reportArgumentType]
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
        return self._answer(lambda copy: copy.logits(x, t), t)

    def log_rates(self, x: Array, t: Array, velocity: Array) -> Array:
        del velocity  # the networks learned the derivative along the flow
        return self._answer(lambda copy: copy.log_rates(x, t), t)

    def _answer(self, ask: Callable[[Router], Array], t: Array) -> Array:
        level = jnp.sum(PROCESS.sigma(t) >= jnp.array(SIGMAS))
        return jax.lax.switch(level, [lambda copy=copy: ask(copy) for copy in self.copies])


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
        begin = perf_counter()
        name = f"experts_{study.name}_{label}_{size(fresh)}_{steps}"
        path = CACHE / f"{name.replace(' ', '_')}.eqx"
        found = fit(fresh, objective, steps, path)
        seconds = path.with_suffix(".seconds")
        if not seconds.exists():
            seconds.write_text(f"{perf_counter() - begin:.0f}")
        costs[label] = {"parameters": size(fresh), "seconds": int(seconds.read_text())}
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
        losses = [batches[i](networks[i], keys[i]) for i in range(CLUSTERS)]
        return jnp.sum(jnp.stack(losses))

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
    start = run("weights first stage", fresh(CLUSTERS), objective("both"), first)
    weights = run("weights", start, objective("weights"), steps - first)
    start = run("rates first stage", fresh(2 * CLUSTERS), objective("both"), first)
    times = [float(PROCESS.time_at_sigma(sigma)) for sigma in SIGMAS]
    ends = zip([T_MIN, *times], [*times, None], strict=True)
    parts = [objective("rates", *interval) for interval in ends]

    def intervals(copies: tuple[Router, ...], key: Array) -> Array:
        losses = [part(copy, key) for part, copy in zip(parts, copies, strict=True)]
        return jnp.sum(jnp.stack(losses))

    # copies of one network, which go on apart
    copies = run("rates", (start,) * len(parts), intervals, steps - first)
    return {"labels": labels, "weights": weights, "rates": Intervals(copies)}


def schedule(steps: int) -> jk.Schedule:
    """The schedule of all comparisons of methods."""
    return jk.schedules.log_snr(PROCESS, steps, T_MIN)


def start(study: Study, seed: int, count: int) -> Float[Array, "count d"]:
    """Initial noise."""
    return jax.random.normal(jax.random.key(seed), (count, study.data.shape[1]))


def quality(study: Study, points: Any, kept: np.ndarray | None = None) -> dict[str, float]:
    """Distances of samples to held-out data, without clusters that are missing."""
    held_out = study.held_out if kept is None else study.held_out[kept]
    points = np.asarray(points)
    return {
        "sliced_w2": float(jk.metrics.sliced_w2(points, held_out).value),
        "frechet": float(jk.metrics.frechet(points, held_out).value),
    }


def methods(study: Study, trained: Trained) -> list[dict[str, Any]]:
    """Every method and policy at equal evaluations of networks per sample."""
    noise = start(study, 10, study.count)
    rows = [{"method": "training data", "evaluations": 0, **quality(study, study.data)}]
    for budget in BUDGETS:
        points = jk.sample(trained.single, "ddim", schedule(budget), noise)
        rows.append({"method": "one network", "evaluations": budget, **quality(study, points)})
        for method, experts in trained.experts.items():
            rates = trained.rates.log_rates if method == "rates" else None
            for label in COMPARED[method]:
                policy = POLICIES[label]
                steps = budget // policy.num_evaluations(CLUSTERS)
                run = (experts, policy, "ddim", schedule(steps), noise)
                found = routing.sample(*run, key=jax.random.key(budget), log_rates=rates)
                row = {"method": method, "policy": label, "evaluations": budget}
                load = [round(float(share), 3) for share in found.load]
                rows.append({**row, **quality(study, found.points), "load": load})
    return rows


def router_errors(study: Study, trained: Trained) -> list[dict[str, Any]]:
    """Errors of routers, and of the derivative along the flow, by noise level."""
    x0 = jnp.asarray(study.held_out[:1000])
    exact = study.exact.astype(x0.dtype)
    rows = []
    for sigma in (0.1, 0.5, 1.0, 2.0, 10.0):
        t = PROCESS.time_at_sigma(jnp.asarray(sigma, x0.dtype))
        eps = jax.random.normal(jax.random.key(0), x0.shape, x0.dtype)
        x = PROCESS.signal(t) * x0 + PROCESS.noise(t) * eps
        weights = exact.weights(x, t)
        row: dict[str, Any] = {"sigma": sigma}
        for method in ("labels", "weights", "rates"):
            error = trained.experts[method].weights(x, t) - weights
            row[method] = float(jnp.mean(jnp.sum(error**2, -1)))
        change = exact.weight_rates(x, t, exact.velocity(x, t))
        found = trained.rates.log_rates(x, t, x)
        found = weights * (found - jnp.sum(weights * found, -1, keepdims=True))
        row["rate, relative"] = float(jnp.sum((found - change) ** 2) / jnp.sum(change**2))
        rows.append(row)
    return rows


def missing(study: Study, trained: Trained) -> list[dict[str, Any]]:
    """One expert cannot be reached: samples beside the held-out data of the other clusters.

    That of the largest cluster, and that of the smallest.
    """
    noise = start(study, 11, study.count)
    rows = []
    experts = trained.experts["weights"]
    shares = np.bincount(study.labels)
    for lost in (int(np.argmax(shares)), int(np.argmin(shares))):
        fewer = experts.without(lost)
        kept = study.held_out_labels != lost
        for label, policy in POLICIES.items():
            steps = BUDGET // policy.num_evaluations(fewer.num_experts)
            run = (fewer, policy, "ddim", schedule(steps), noise)
            found = routing.sample(*run, key=jax.random.key(lost))
            row = {"missing": lost, "policy": label, "share": float(np.mean(~kept))}
            load = [round(float(share), 3) for share in found.load]
            rows.append({**row, **quality(study, found.points, kept), "load": load})
    return rows


def distances(points: Any, reference: np.ndarray) -> dict[str, float]:
    """Mean squared distance to the flow, with its standard error."""
    squares = np.sum((np.asarray(points) - reference) ** 2, 1)
    return {
        "measured": float(squares.mean()),
        "standard_error": float(squares.std() / np.sqrt(len(squares))),
    }


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What schedules are optimised on and measured by."""

    experts: routing.Experts
    record: routing.RoutingRecord
    target: jk.Gaussian
    schedules: dict[Any, Any]
    """What was optimised, by steps and evaluations."""
    noise: Float[Array, "count d"]
    reference: Float[np.ndarray, "count d"]

    @classmethod
    def of(cls, study: Study, trained: Trained) -> "Recorded":
        experts = trained.experts["weights"]
        options: Any = {"t_min": T_MIN, "nodes": 32, "directions": 4, "batch": 64}
        noise = start(study, 12, 256)
        record = routing.record_routing(experts, noise, evaluations=CLUSTERS - 1, **options)
        noise = start(study, 13, study.count)
        reference = np.asarray(jk.sample(experts, "heun", schedule(150), noise))
        return cls(experts, record, jk.Gaussian.fit(study.data), {}, noise, reference)

    def optimise(self, steps: int, evaluations: Any = 1) -> Any:
        """A schedule for DDIM with the evaluations of every step."""
        key = (steps, *np.broadcast_to(evaluations, steps).tolist())
        if key not in self.schedules:
            objective = routing.RoutingError(self.record, evaluations)
            run = (self.target, PROCESS, "ddim", steps)
            self.schedules[key] = jk.optimize_schedule(
                *run, t_min=T_MIN, objective=objective, progress=False
            )
        return self.schedules[key]

    def measure(self, times: jk.Schedule, policy: routing.AbstractPolicy) -> dict[str, float]:
        run = (self.experts, policy, "ddim", times, self.noise)
        found = routing.sample(*run, key=jax.random.key(times.num_steps))
        return distances(found.points, self.reference)


def schedules(recorded: Recorded) -> list[dict[str, Any]]:
    """Schedules for switching on the trained experts, predicted and measured on other noise."""
    rows = []
    for steps in STEPS:
        result = recorded.optimise(steps)
        found = {"optimized": result.schedule, **result.baseline_schedules}
        for name, times in found.items():
            predicted = float(recorded.record.mean_square_error("ddim", times))
            measured = recorded.measure(times, routing.StochasticSwitching())
            row = {"steps": steps, "schedule": name, "predicted": predicted, **measured}
            rows.append({**row, "converged": bool(result.converged)})
    return rows


def splits(recorded: Recorded) -> list[dict[str, Any]]:
    """A budget of evaluations: many steps with one, few with all, and what is best in between.

    Times for one evaluation per step, then evaluations for these times, then times for those.
    """
    rows = []
    for steps in (BUDGET, 20, BUDGET // CLUSTERS):
        times = recorded.optimise(steps).schedule
        evaluations = routing.split_evaluations(recorded.record, "ddim", times, BUDGET)
        times = recorded.optimise(steps, evaluations).schedule
        predicted = recorded.record.mean_square_error("ddim", times, evaluations)
        policy = routing.EvaluationsPerStep(evaluations)
        row = {"steps": steps, "evaluations": evaluations.tolist(), "predicted": float(predicted)}
        rows.append({**row, **recorded.measure(times, policy)})
    times = recorded.optimise(BUDGET).schedule
    feedback = recorded.measure(times, routing.ErrorFeedback())
    rows.append({"steps": BUDGET, "evaluations": "error feedback", "predicted": None, **feedback})
    return rows


def study_all(name: str) -> dict[str, Any]:
    """Everything about one data set."""
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    study = {"ring": ring, "digits": digit_clusters}[name]()
    trained = train(study)
    recorded = cache(lambda: Recorded.of(study, trained))
    parts: dict[str, Callable[[], Any]] = {
        "schedules": lambda: schedules(recorded()),
        "splits": lambda: splits(recorded()),
        "methods": lambda: methods(study, trained),
        "router_errors": lambda: router_errors(study, trained),
        "missing": lambda: missing(study, trained),
    }
    found: dict[str, Any] = {"name": study.name, "costs": trained.costs}
    for part, make in parts.items():
        path = CACHE / f"experts_{study.name}_{part}.json"
        if not path.exists():
            path.write_text(json.dumps(make()))
        found[part] = json.loads(path.read_text())
    return found


def show(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> str:
    """Rows as a table."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, list):
            return " ".join(map(str, value))
        return "" if value is None else str(value)

    return table(list(keys), [[cell(row.get(key)) for key in keys] for row in rows])


def report(studies: list[dict[str, Any]]) -> str:
    """All figures as Markdown."""
    lines = ["# Trained experts", ""]
    ends = ("sliced_w2", "frechet", "load")
    squares = ("predicted", "measured", "standard_error")
    for study in studies:
        costs = [{"networks": name, **cost} for name, cost in study["costs"].items()]
        errors = ("sigma", "labels", "weights", "rates", "rate, relative")
        sections = {
            "networks": show(costs, ("networks", "parameters", "seconds")),
            "methods at equal evaluations, distance to held-out data": show(
                study["methods"], ("evaluations", "method", "policy", *ends)
            ),
            "mean squared error of the weights, relative error of their derivative": show(
                study["router_errors"], errors
            ),
            f"a missing expert, {BUDGET} evaluations": show(
                study["missing"], ("missing", "share", "policy", *ends)
            ),
            "schedules for switching, mean squared distance to the flow": show(
                study["schedules"], ("steps", "schedule", *squares)
            ),
            f"{BUDGET} evaluations, mean squared distance to the flow": show(
                study["splits"], ("steps", "evaluations", *squares)
            ),
        }
        for title, text in sections.items():
            lines += [f"## {study['name']}: {title}", "", text, ""]
    return "\n".join(lines)


def main() -> None:
    # processes, as a program compiles on one core; spawned, as JAX has threads of its own
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        studies = list(pool.map(study_all, ("ring", "digits")))
    path = save("experts", {"studies": studies})
    text = report(studies)
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
