"""Samplers that follow one of several experts per step, on mixtures of three Gaussians.

Mean squared distance to a reference solution from the same initial noise (the error of a coupling),
and squared sliced W2 between the two sets of samples (the error of the distribution): they have
different rates. Run with `python -m benchmarks.routing`; it writes results/routing.json and .md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkernels as jk
from jaxkernels import routing

from .environment import CACHE, save, table

PROCESS = jk.CosineVP(offset=0.0)
ANGLES = np.deg2rad([90.0, 210.0, 330.0])
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
WEIGHTS = [0.5, 0.3, 0.2]
# name: distance of the means from 0, standard deviation of the components, last time
MIXTURES = {
    "clean": (1.0, 0.7, 0.1),
    "near": (1.5, 0.5, 0.02),
    "separated": (1.5, 0.2, 0.02),
}
STEPS = (10, 20, 40, 80, 160, 320)
SAMPLES = 20_000
SEEDS = range(5)
REFERENCE_STEPS = 1000
BUDGETS = (24, 96)
BOOTSTRAPS = 1000


class GivenDraws(routing.AbstractPolicy):
    """Switching with uniform numbers that are given for every step."""

    uniform: Any

    def init_state(self, weights):
        del weights
        return jnp.zeros((), int)

    def num_evaluations(self, num_experts: int) -> int:
        del num_experts
        return 1

    def select(self, weights, key, state):
        del key
        u = jnp.asarray(self.uniform)[state]
        expert = jnp.sum(jnp.cumsum(weights, -1)[:, :-1] < u[:, None], -1)
        return (expert[:, None], jnp.ones((len(u), 1), weights.dtype)), state + 1


def problem(name: str) -> tuple[jk.GaussianMixture, routing.Experts, float]:
    """The mixture, its exact experts, and the last time."""
    radius, deviation, t_min = MIXTURES[name]
    mixture = jk.GaussianMixture(WEIGHTS, radius * DIRECTIONS, [deviation**2] * 3)
    return mixture, routing.Experts.of_mixture(mixture, PROCESS), t_min


def uniform(steps: int, t_min: float) -> jk.Schedule:
    """Equal steps from 1 to t_min."""
    return jk.Schedule(np.linspace(1.0, t_min, steps + 1))


def start(seed: int, count: int) -> np.ndarray:
    """Initial noise."""
    return np.random.default_rng(seed).standard_normal((count, 2))


def squares(points: Any, reference: np.ndarray) -> np.ndarray:
    """Squared distances."""
    return np.sum((np.asarray(points) - reference) ** 2, 1)


def sliced(points: Any, reference: np.ndarray, directions: int = 64) -> float:
    """Squared sliced W2 between two sets of as many samples."""
    angles = np.pi * (np.arange(directions) + 0.5) / directions
    frame = np.stack([np.cos(angles), np.sin(angles)])
    one = np.sort(np.asarray(points) @ frame, 0)
    return float(np.mean((one - np.sort(reference @ frame, 0)) ** 2))


def slope(steps: Any, errors: np.ndarray) -> float:
    """-d log error / d log steps by least squares."""
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


def interval(distances: np.ndarray, rng: np.random.Generator) -> list[float]:
    """95 % interval of the slope of the mean, trajectories being drawn again."""
    count = distances.shape[1]
    found = []
    for _ in range(BOOTSTRAPS):
        rows = rng.multinomial(count, np.full(count, 1.0 / count))
        found.append(slope(STEPS, distances @ rows / count))
    return [float(q) for q in np.quantile(found, [0.025, 0.975])]


def reference_of(name: str, x: np.ndarray) -> np.ndarray:
    """The exact flow's ends from initial noise."""
    mixture, _, t_min = problem(name)
    run = ("rk4", uniform(REFERENCE_STEPS, t_min), jnp.asarray(x))
    return np.asarray(jk.sample(mixture.denoiser(PROCESS), *run))


def fitted(distances: np.ndarray, seed: int) -> dict[str, Any]:
    """Errors against steps and their slopes, of squared distances (steps, trajectories)."""
    return {
        "steps": list(STEPS),
        "mean": distances.mean(1).tolist(),
        "median": np.median(distances, 1).tolist(),
        "slope": slope(STEPS, distances.mean(1)),
        "slope_interval": interval(distances, np.random.default_rng(seed)),
        "slope_of_median": slope(STEPS, np.median(distances, 1)),
    }


def rates(name: str, count: int, seeds: Any) -> list[dict[str, Any]]:
    """Errors against steps, their slopes with intervals, and error of the distribution."""
    _, experts, t_min = problem(name)
    rows = []
    for seed in seeds:
        x = start(seed, count)
        reference = reference_of(name, x)
        rng = np.random.default_rng(1000 + seed)
        found: dict[str, list[Any]] = {"mean": [], "switching": [], "feedback": []}
        for steps in STEPS:
            draws = np.stack([rng.random(count) for _ in range(steps)])
            policies = (routing.SoftRouting(), GivenDraws(draws), routing.ErrorFeedback())
            for key, policy in zip(found, policies, strict=True):
                out = routing.sample(
                    experts, policy, "euler_maruyama", uniform(steps, t_min), jnp.asarray(x)
                )
                found[key].append(np.asarray(out.points))
        for key, points in found.items():
            distances = np.stack([squares(p, reference) for p in points])
            rows.append(
                {
                    "mixture": name,
                    "seed": seed,
                    "policy": key,
                    "sliced_w2_squared": [sliced(p, reference) for p in points],
                    **fitted(distances, seed),
                }
            )
    return rows


def other_rates(count: int) -> list[dict[str, Any]]:
    """The same for other policies and samplers, clean mixture, one seed.

    Two networks that are exact on either side of a noise level are one, so that their error is that
    of the mean velocity.
    """
    mixture, experts, t_min = problem("clean")
    x = start(0, count)
    reference = reference_of("clean", x)
    exact = mixture.denoiser(PROCESS)
    two = routing.Experts([exact, exact], routing.Threshold([0.5]))
    integrated = {"log_rates": experts.log_weight_rates}
    every = routing.SoftRouting()
    one = routing.StochasticSwitching()
    feedback = routing.ErrorFeedback()
    runs: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
        **{f"mean, {s}": (experts, every, s, {}) for s in ("ddim", "heun", "dpmpp_2m")},
        **{f"switching, {s}": (experts, one, s, {}) for s in ("ddim", "heun", "dpmpp_2m")},
        **{f"feedback, {s}": (experts, feedback, s, {}) for s in ("ddim", "heun", "dpmpp_2m")},
        "top 2, euler": (experts, routing.TopK(2), "euler_maruyama", {}),
        "top 1 and one of the rest, euler": (
            experts,
            routing.TopK(1, rest=True),
            "euler_maruyama",
            {},
        ),
        "mean, integrated weights, euler": (experts, every, "euler_maruyama", integrated),
        "switching, integrated weights, euler": (experts, one, "euler_maruyama", integrated),
        "two networks, threshold, euler": (two, every, "euler_maruyama", {}),
    }
    rows = []
    for label, (used, policy, sampler, options) in runs.items():
        ends = [
            routing.sample(
                used,
                policy,
                sampler,
                uniform(steps, t_min),
                jnp.asarray(x),
                key=jax.random.key(steps),
                **options,
            ).points
            for steps in STEPS
        ]
        distances = np.stack([squares(points, reference) for points in ends])
        rows.append({"policy": label, **fitted(distances, 0)})
    return rows


def switching_noise(count: int) -> list[dict[str, Any]]:
    """What drawing experts adds to the mean square error, predicted and measured, clean mixture."""
    _, experts, t_min = problem("clean")
    options = {"t_min": t_min, "nodes": 32, "directions": 2, "batch": 1024}
    record = routing.record_routing(experts, jnp.asarray(start(100, 4096)), **options)
    x = start(600, count)
    reference = reference_of("clean", x)
    rows = []
    for steps in (20, 50, 100, 200):
        draws = np.random.default_rng(steps).random((steps, count))
        run = ("euler_maruyama", uniform(steps, t_min), jnp.asarray(x))
        drawn = squares(routing.sample(experts, GivenDraws(draws), *run).points, reference)
        mean = squares(routing.sample(experts, routing.SoftRouting(), *run).points, reference)
        excess = drawn - mean
        rows.append(
            {
                "steps": steps,
                "predicted": float(record.switching_error(*run[:2])),
                "measured": float(excess.mean()),
                "standard_error": float(excess.std() / np.sqrt(count)),
            }
        )
    return rows


def optimal_schedules(count: int) -> list[dict[str, Any]]:
    """Schedules for switching on the clean mixture, predicted and measured on other noise."""
    mixture, experts, t_min = problem("clean")
    record = routing.record_routing(
        experts, jnp.asarray(start(100, 1024)), t_min=t_min, nodes=32, directions=2, batch=1024
    )
    x = jnp.asarray(start(200, count))
    run = ("rk4", uniform(REFERENCE_STEPS, t_min), x)
    reference = np.asarray(jk.sample(mixture.denoiser(PROCESS), *run))
    rows = []
    for steps in (10, 20, 50):
        objective = routing.RoutingError(record)
        sampler = "euler_maruyama"
        result = jk.optimize_schedule(
            mixture.gaussian(), PROCESS, sampler, steps, t_min=t_min, objective=objective
        )
        schedules = {"optimized": result.schedule}
        for name in result.baselines:
            schedules[name] = getattr(jk.schedules, name)(PROCESS, steps, t_min)
        draws = np.random.default_rng(steps).random((steps, count))
        for name, schedule in schedules.items():
            out = routing.sample(experts, GivenDraws(draws), sampler, schedule, x)
            distances = squares(out.points, reference)
            rows.append(
                {
                    "steps": steps,
                    "schedule": name,
                    "predicted": float(record.mean_square_error(sampler, schedule)),
                    "predicted_switching": float(record.switching_error(sampler, schedule)),
                    "measured": float(distances.mean()),
                    "standard_error": float(distances.std() / np.sqrt(count)),
                    "times": np.asarray(schedule.times).tolist(),
                }
            )
    return rows


def certified_schedules(count: int) -> list[dict[str, Any]]:
    """Schedules of the smallest bound beside those of the smallest predicted error.

    The data are three points, as bounds are for data in a ball.
    """
    experts = routing.Experts.of_clusters(list(DIRECTIONS[:, None]), PROCESS)
    t_min = 0.3
    record = routing.record_routing(
        experts, jnp.asarray(start(400, 512)), t_min=t_min, nodes=32, directions=2, batch=512
    )
    x = start(500, count)
    reference = np.asarray(jk.sample(experts, "rk4", uniform(300, t_min), jnp.asarray(x)))
    norm = float(np.sqrt(np.mean(np.sum(x**2, 1))))
    target = jk.Gaussian.fit(DIRECTIONS)

    def bound(schedule: jk.Schedule) -> Any:
        size = {"radius": 1.0, "norm": norm, "num_experts": 3}
        return routing.routing_bound(PROCESS, "ddim", schedule, **size).value

    objectives = {"certified": bound, "predicted": routing.RoutingError(record)}
    rows = []
    for steps in (10, 20, 50):
        schedules = {"uniform": uniform(steps, t_min)}
        converged = {}
        for name, objective in objectives.items():
            run = (target, PROCESS, "ddim", steps)
            result = jk.optimize_schedule(*run, t_min=t_min, objective=objective, progress=False)
            schedules[name] = result.schedule
            converged[name] = bool(result.converged)
        draws = np.random.default_rng(steps).random((steps, count))
        for name, schedule in schedules.items():
            out = routing.sample(experts, GivenDraws(draws), "ddim", schedule, jnp.asarray(x))
            rows.append(
                {
                    "steps": steps,
                    "optimum of": name,
                    "converged": converged.get(name),
                    "bound": float(bound(schedule)),
                    "predicted": float(record.mean_square_error("ddim", schedule)) ** 0.5,
                    "measured": float(squares(out.points, reference).mean()) ** 0.5,
                }
            )
    return rows


def budgets(name: str, count: int) -> list[dict[str, Any]]:
    """Few steps with all experts, or many with one, at equal numbers of evaluations."""
    mixture, experts, t_min = problem(name)
    x = jnp.asarray(start(300, count))
    run = ("rk4", uniform(REFERENCE_STEPS, t_min), x)
    reference = np.asarray(jk.sample(mixture.denoiser(PROCESS), *run))
    policies = {
        "all experts": routing.SoftRouting(),
        "switching": routing.StochasticSwitching(),
        "error feedback": routing.ErrorFeedback(),
        "top 1": routing.TopK(1),
        "top 2": routing.TopK(2),
        "top 1 and one of the rest": routing.TopK(1, rest=True),
    }
    rows = []
    for budget in BUDGETS:
        for sampler in ("euler_maruyama", "dpmpp_2m"):
            for label, policy in policies.items():
                schedule = uniform(budget // policy.num_evaluations(3), t_min)
                key = jax.random.key(budget)
                out = routing.sample(experts, policy, sampler, schedule, x, key=key)
                rows.append(
                    {
                        "mixture": name,
                        "evaluations": budget,
                        "sampler": sampler,
                        "policy": label,
                        "mean": float(squares(out.points, reference).mean()),
                        "sliced_w2_squared": sliced(out.points, reference),
                        "load": [round(float(share), 4) for share in out.load],
                    }
                )
    return rows


def report(content: dict[str, Any]) -> str:
    """All figures as Markdown."""

    def show(values: list[float]) -> list[str]:
        return [f"{value:.3g}" for value in values]

    lines = ["# Experts and routing", "", "## Error against steps", ""]
    lines += ["Mean squared distance to the reference solution, Euler's method, equal steps.", ""]
    head = ["mixture", "seed", "policy", *map(str, STEPS), "slope", "95 %", "slope of median"]
    cells = []
    for row in content["rates"]:
        ends = " .. ".join(f"{q:.3f}" for q in row["slope_interval"])
        cells.append(
            [
                row["mixture"],
                str(row["seed"]),
                row["policy"],
                *show(row["mean"]),
                f"{row['slope']:.4f}",
                ends,
                f"{row['slope_of_median']:.3f}",
            ]
        )
    lines += [table(head, cells), "", "Squared sliced W2 to the samples of the reference.", ""]
    cells = [
        [row["mixture"], row["policy"], *show(row["sliced_w2_squared"])]
        for row in content["rates"]
        if row["seed"] == 0
    ]
    lines += [table(["mixture", "policy", *map(str, STEPS)], cells), ""]
    lines += ["Other policies and samplers, clean mixture.", ""]
    head = ["policy, sampler", *map(str, STEPS), "slope", "95 %", "slope of median"]
    cells = []
    for row in content["other_rates"]:
        ends = " .. ".join(f"{q:.3f}" for q in row["slope_interval"])
        medians = f"{row['slope_of_median']:.3f}"
        cells.append([row["policy"], *show(row["mean"]), f"{row['slope']:.3f}", ends, medians])
    lines += [table(head, cells), "", "## Noise of drawn experts, clean mixture", ""]
    lines += ["What they add to the mean square error.", ""]
    cells = [
        [str(row["steps"])] + [f"{row[k]:.5f}" for k in ("predicted", "measured", "standard_error")]
        for row in content["switching_noise"]
    ]
    lines += [table(["steps", "predicted", "measured", "standard error"], cells), ""]
    lines += ["## Schedules for switching, clean mixture", ""]
    cells = [
        [str(row["steps"]), row["schedule"]]
        + [f"{row[k]:.5f}" for k in ("predicted", "measured", "standard_error")]
        for row in content["schedules"]
    ]
    lines += [table(["steps", "schedule", "predicted", "measured", "standard error"], cells), ""]
    lines += ["## Schedules of the smallest bound, three points", ""]
    lines += ["Root mean square distance to the flow: bound, prediction and measurement.", ""]
    keys = ("bound", "predicted", "measured")
    cells = [
        [str(row["steps"]), row["optimum of"], *(f"{row[k]:.4f}" for k in keys)]
        for row in content["certified"]
    ]
    lines += [table(["steps", "optimum of", *keys], cells), ""]
    lines += ["## Equal numbers of evaluations", ""]
    cells = [
        [
            row["mixture"],
            str(row["evaluations"]),
            row["sampler"],
            row["policy"],
            *show([row["mean"], row["sliced_w2_squared"]]),
            " ".join(map(str, row["load"])),
        ]
        for row in content["budgets"]
    ]
    head = ["mixture", "evaluations", "sampler", "policy", "mean square", "sliced W2^2", "load"]
    return "\n".join([*lines, table(head, cells), ""])


def main() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    jax.config.update("jax_enable_x64", True)
    content = {
        "rates": [
            *rates("clean", SAMPLES, SEEDS),
            *rates("near", SAMPLES // 2, [0]),
            *rates("separated", SAMPLES // 2, [0]),
        ],
        "other_rates": other_rates(SAMPLES // 2),
        "switching_noise": switching_noise(8 * SAMPLES),
        "schedules": optimal_schedules(2 * SAMPLES),
        "certified": certified_schedules(SAMPLES),
        "budgets": [*budgets("clean", SAMPLES // 2), *budgets("separated", SAMPLES // 2)],
    }
    path = save("routing", content)
    text = report(content)
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
