"""Which reverse diffusion h(t) costs least: prediction, simulation and trained networks. python -m benchmarks.diffusion

Four studies of the reverse family with h = alpha g, after the questions of Cao, Chen, Luo, Zhou (2023):

- mixtures with their exact scores and a planted error: KL against h and against the number of steps, beside eps^2 L(h);
- normal laws and a few steps: how much of the gain of h_k over the best constant h is the score error's, how much is
  a repair of the discretisation, and how far the optimum of continuous time is;
- a Swiss roll and the digits with trained networks: sliced W2 for constant h, and for the h(t) that the network's
  measured error asks for.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.progress import track
from scipy.optimize import minimize
from scipy.stats import norm

import jaxkernels as jk
from jaxkernels.metrics import resolve

from .environment import CACHE, save, table
from .networks import PROBLEMS, PROCESS, T_MIN, Network, Problem, mean_and_error, train

SEEDS = 5
Window = tuple[float, float]


def clock_process(final_time: float) -> jk.OU:
    """g = 1: the time of the process is the clock theta."""
    return jk.OU(rate=1.0, t_max=final_time)


def power_grid(final_time: float, num_steps: int, power: float = 3.0) -> np.ndarray:
    return final_time * (1.0 - np.arange(num_steps + 1) / num_steps) ** power


def show(value: tuple[float, float], digits: int = 4) -> str:
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


# --- mixtures with exact scores --------------------------------------------------------------------------

MIXTURE_TIME, MIXTURE_EPSILON, PARTICLES, BINS, FINE_STEPS = 4.0, 0.1, 40_000, 200, 500
DEVIATIONS = {1: 0.1, 2: 0.05}
# the source's cases 1, 4 and 5: c(theta) is 1 on a window and 0 elsewhere
WINDOWS: dict[str, Window] = {
    "throughout": (0.0, MIXTURE_TIME),
    "early": (0.05 * MIXTURE_TIME, MIXTURE_TIME),
    "late": (0.0, 0.01 * MIXTURE_TIME),
}
MIXTURE_H_SQUARED, MIXTURE_STEPS = (0.0, 1.0, 4.0), (10, 20, 40, 80, 160)


def mixture(dim: int) -> jk.GaussianMixture:
    """Modes at every (+-1, ...); standard deviation 0.1 in one dimension, 0.05 in two, as in the source."""
    means = np.array(list(itertools.product([-1.0, 1.0], repeat=dim)))
    count = len(means)
    return jk.GaussianMixture(
        np.full(count, 1.0 / count), means, np.full(count, DEVIATIONS[dim] ** 2)
    )


def inside(window: Window, theta: Array) -> Array:
    return (theta >= window[0]) & (theta < window[1])


def mixture_prediction(dim: int, window: Window, h_squared: float) -> float:
    """eps^2 L(h). In two dimensions the coordinates are independent, and stay so."""
    one = jk.GaussianMixture(
        [0.5, 0.5], np.array([[-1.0], [1.0]]), np.full(2, DEVIATIONS[dim] ** 2)
    )
    edges = [t for t in window if 0.0 < t < MIXTURE_TIME]
    result = jk.leading_order_1d(
        one, planted_error(window), h_squared, MIXTURE_TIME, breakpoints=edges or None
    )
    return dim * MIXTURE_EPSILON**2 * float(result.value)


_PLANTED: dict[Window, Callable[[Array, Array, Array], Array]] = {}


def planted_error(window: Window) -> Callable[[Array, Array, Array], Array]:
    """The same function for the same window: a new one would be compiled anew."""
    return _PLANTED.setdefault(window, lambda x, theta, score: inside(window, theta) * score)


def divergences(x: Float[np.ndarray, "n d"], deviation: float) -> np.ndarray:
    """KL(p_0 || q) and Jensen-Shannon divergence, summed over coordinates, in bins of equal probability under p_0."""
    points = np.linspace(-1.0 - 8.0 * deviation, 1.0 + 8.0 * deviation, 20_001)
    cdf = 0.5 * (norm.cdf(points, -1.0, deviation) + norm.cdf(points, 1.0, deviation))
    edges = np.interp(np.arange(1, BINS) / BINS, cdf, points)
    counts = np.stack(
        [np.bincount(np.searchsorted(edges, column), minlength=BINS) for column in x.T]
    )
    q = np.maximum(counts, 0.5) * BINS / len(x)
    middle = 0.5 * (1.0 + q)
    kl, js = -np.log(q), 0.5 * (q * np.log(q / middle) - np.log(middle))
    return np.array([np.sum(np.mean(v, 1)) for v in (kl, js)])


def simulate_mixture(
    dim: int, window: Window, h_squared: float, num_steps: int
) -> dict[str, tuple[float, float]]:
    """KL and JS without error, and what the errors +eps E and -eps E add in their mean (which has no term in eps^3).

    The same noises for all three, so that the bias of finite counts and of finite steps drops out of the difference.
    """
    target, process = mixture(dim), clock_process(MIXTURE_TIME)
    grid = np.concatenate(
        [power_grid(MIXTURE_TIME, num_steps), [t for t in window if 0.0 < t < MIXTURE_TIME]]
    )
    schedule = jk.Schedule(np.unique(grid)[::-1], np.sqrt(h_squared))
    rows = []
    for seed in range(SEEDS):
        key_start, key_noise, key = jax.random.split(jax.random.key(seed), 3)
        x0 = target.sample(key_start, PARTICLES)
        start = process.signal(MIXTURE_TIME) * x0 + process.noise(MIXTURE_TIME) * jax.random.normal(
            key_noise, x0.shape
        )
        found = []
        for epsilon in (0.0, MIXTURE_EPSILON, -MIXTURE_EPSILON):
            score = PlantedScore(target, process, jnp.asarray(epsilon), jnp.asarray(window))
            x = jk.sample(
                jk.Denoiser(score, process, "score"),
                "ddim",
                schedule,
                start.astype(jnp.float32),
                key=key,
            )
            found.append(divergences(np.asarray(x, np.float64), DEVIATIONS[dim]))
        without, above, below = found
        rows.append([*without, *(0.5 * (above + below) - without)])
    names = ("kl_without", "js_without", "kl_added", "js_added")
    return {name: mean_and_error([row[i] for row in rows]) for i, name in enumerate(names)}


class PlantedScore(NamedTuple):
    """A score that is wrong by a relative error in a window of times; its numbers are traced, not compiled in."""

    target: jk.GaussianMixture
    process: jk.OU
    epsilon: Array
    window: Array

    def __call__(self, x: Array, t: Array) -> Array:
        # a step from t takes place below t
        c = (t > self.window[0]) & (t <= self.window[1] * (1.0 + 1e-6))
        return (1.0 + self.epsilon * c) * self.target.score(self.process, x, t).astype(x.dtype)


def mixtures() -> list[dict[str, Any]]:
    settings = [(1, shape, h2, FINE_STEPS) for shape in WINDOWS for h2 in MIXTURE_H_SQUARED]
    settings += [(2, "throughout", h2, FINE_STEPS) for h2 in MIXTURE_H_SQUARED]
    settings += [(1, "throughout", h2, k) for h2 in MIXTURE_H_SQUARED for k in MIXTURE_STEPS]
    rows = []
    for dim, shape, h2, steps in track(settings, "mixtures"):
        predicted = mixture_prediction(dim, WINDOWS[shape], h2)
        measured = simulate_mixture(dim, WINDOWS[shape], h2, steps)
        rows.append(
            {
                "dim": dim,
                "error": shape,
                "h_squared": h2,
                "steps": steps,
                "predicted": predicted,
                **measured,
            }
        )
    return rows


# --- normal laws and a few steps -------------------------------------------------------------------------

FINAL_TIME, CAP, SIMULATED = 2.0, 100.0, 200_000
NORMAL = {
    "d = 1": jk.Gaussian(0.0, [0.04]),
    "d = 10": jk.Gaussian(0.0, np.geomspace(0.01, 1.0, 10)),
}
SIZES, STEPS, REACH = (0.1, 0.3), (10, 20), (10, 20, 40, 80)


def near_data(theta: Array) -> Array:
    return jnp.exp(-theta / 0.02)


def near_noise(theta: Array) -> Array:
    return jnp.exp(-(FINAL_TIME - theta) / 0.5)


def at_both_ends(theta: Array) -> Array:
    return near_data(theta) + near_noise(theta)


ERRORS = {"data": near_data, "noise": near_noise, "both": at_both_ends}


class FreeGrid:
    """J of DDIM with errors at both ends, exactly: minimised over the grid and h_k^2 together."""

    def __init__(self, target: jk.Gaussian):
        process = clock_process(FINAL_TIME)

        def objective(times: Array, h_squared: Array, epsilon: Array) -> Array:
            kl = jk.reverse_sde.EvenKL(target, at_both_ends, process, jk.DDIM(), epsilon)
            return kl(jk.Schedule.from_squared(times, h_squared))

        def log_objective(variables: tuple[Array, Array], epsilon: Array) -> Array:
            logits, h_squared = variables
            # softmax of the logits: the lengths of the steps
            left = 1.0 - jnp.cumsum(jax.nn.softmax(logits))[:-1]
            times = FINAL_TIME * jnp.concatenate([jnp.ones(1), left, jnp.zeros(1)])
            return jnp.log(objective(times, jnp.broadcast_to(h_squared, logits.shape), epsilon))

        self.value = jax.jit(objective)
        self.derivatives = jax.jit(jax.value_and_grad(log_objective))

    def minimise(
        self, grid: np.ndarray, epsilon: float, *, constant: bool = False
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """J, times and h^2 of the best of several starts; `constant`: one h^2 for all steps."""
        steps = len(grid) - 1
        logits = np.log(-np.diff(grid) / FINAL_TIME)
        size = 1 if constant else steps

        def fun(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, slopes = self.derivatives(
                (jnp.asarray(z[:steps]), jnp.asarray(z[steps:])), jnp.asarray(epsilon)
            )
            return float(value), np.concatenate(slopes).astype(float)

        bounds = [(-20.0, 5.0)] * steps + [(0.0, CAP)] * size
        options = {"maxiter": 300, "ftol": 1e-13, "gtol": 1e-8}
        starts = [np.concatenate([logits, np.full(size, h_squared)]) for h_squared in (0.0, 1.0)]
        results = [
            minimize(fun, z, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            for z in starts
        ]
        best = min(results, key=lambda r: r.fun)
        z = best.x[:steps]
        lengths = np.exp(z - z.max()) / np.sum(np.exp(z - z.max()))
        times = FINAL_TIME * np.concatenate([[1.0], 1.0 - np.cumsum(lengths)[:-1], [0.0]])
        return float(np.exp(best.fun)), times, np.broadcast_to(best.x[steps:], (steps,)).copy()


def simulate_steps(
    target: jk.Gaussian, sampler: str, times: np.ndarray, h_squared: np.ndarray, epsilon: float
) -> tuple[float, float]:
    """J of drawn samples, which are normal: from their means and variances, less the bias of finite counts."""
    process = clock_process(FINAL_TIME)
    data = np.asarray(target.eigenvalues)
    start = np.sqrt(np.asarray(target.marginal_variance(process, FINAL_TIME)))
    schedule = jk.Schedule(times, np.sqrt(h_squared))

    def kl(x: np.ndarray) -> float:
        mean, variance = x.mean(0), x.var(0)
        return float(
            0.5 * np.sum(np.log(variance / data) + (data + mean**2) / variance - 1.0)
            - data.size / len(x)
        )

    values = []
    for seed in range(SEEDS):
        key_start, key = jax.random.split(jax.random.key(seed))
        x = jnp.asarray(start) * jax.random.normal(key_start, (SIMULATED // SEEDS, data.size))
        ends = []
        for signed in (epsilon, -epsilon):

            def score(x: Array, t: Array, epsilon: float = signed) -> Array:
                return (1.0 + epsilon * at_both_ends(t)) * target.score(process, x, t)

            ends.append(
                np.asarray(
                    jk.sample(jk.Denoiser(score, process, "score"), sampler, schedule, x, key=key)
                )
            )
        values.append(0.5 * sum(map(kl, ends)))
    return mean_and_error(values)


def on_cubic_grid(name: str, kind: str, steps: int, epsilon: float) -> dict[str, Any]:
    """The gain over the best constant: a repair of the discretisation times a gain against the error."""
    process, grid = clock_process(FINAL_TIME), power_grid(FINAL_TIME, steps)
    setting = ERRORS[kind], process, "exponential_integrator", grid, epsilon
    few = jk.reverse_sde.optimize_few_steps(NORMAL[name], *setting, cap=CAP)
    constant, h_squared = few.best_constant
    return {
        "target": name,
        "error": kind,
        "K": steps,
        "epsilon": epsilon,
        "ode": few.ode,
        "sde": few.sde,
        "constant": constant,
        "constant_h_squared": h_squared,
        "without_error": few.blind_without_error,
        "repaired": few.blind,
        "optimal": few.value,
        "gain": few.gain,
        "repair_gain": few.repair_gain,
        "score_gain": few.score_gain,
        "continuous": few.continuous,
        "ratio": few.ratio,
        "times": few.times.tolist(),
        "h_squared": few.h_squared.tolist(),
        "constant_times": few.times.tolist(),
    }


def on_free_grid(name: str, steps: int, epsilon: float) -> dict[str, Any]:
    """The same with the grid optimised too: for all h_k, for a constant h, and without the error."""
    problem, grid = FreeGrid(NORMAL[name]), power_grid(FINAL_TIME, steps)
    best, times, h_squared = problem.minimise(grid, epsilon)
    constant, constant_times, constant_h = problem.minimise(grid, epsilon, constant=True)
    blind, blind_times, blind_h = problem.minimise(grid, 0.0)
    known = float(problem.value(blind_times, blind_h, jnp.asarray(epsilon)))
    return {
        "target": name,
        "K": steps,
        "epsilon": epsilon,
        "constant": constant,
        "constant_h_squared": float(constant_h[0]),
        "without_error": blind,
        "repaired": known,
        "optimal": best,
        "gain": constant / best,
        "repair_gain": constant / known,
        "score_gain": known / best,
        "times": times.tolist(),
        "h_squared": h_squared.tolist(),
        "constant_times": constant_times.tolist(),
    }


def few_steps() -> dict[str, Any]:
    """The exponential integrator on the cubic grid; DDIM with the grid free too; both simulated.

    With a free grid the exponential integrator is left out: its optima rely on noise above the marginal's.
    """
    epsilon = 0.1
    with jax.enable_x64(True):
        settings = [
            (name, kind, k, size)
            for name in NORMAL
            for k in STEPS
            for size in SIZES
            for kind in ERRORS
        ]
        fixed = [on_cubic_grid(*setting) for setting in track(settings, "few steps, cubic grid")]
        settings = list(itertools.product(NORMAL, STEPS))
        free = [
            on_free_grid(*setting, epsilon) for setting in track(settings, "few steps, free grid")
        ]
        settings = list(itertools.product(NORMAL, REACH))
        reach = [
            on_cubic_grid(name, "both", k, epsilon)
            for name, k in track(settings, "against continuous time")
        ]
        shown = [row for row in fixed if row["error"] == "both" and row["epsilon"] == 0.1]
        for row, sampler in track(
            [(r, "exponential_integrator") for r in shown] + [(r, "ddim") for r in free], "runs"
        ):
            setting = NORMAL[row["target"]], sampler
            flat = np.full(row["K"], row["constant_h_squared"])
            row["simulated_constant"] = simulate_steps(
                *setting, np.asarray(row["constant_times"]), flat, epsilon
            )
            optimal = np.asarray(row["times"]), np.asarray(row["h_squared"])
            row["simulated_optimal"] = simulate_steps(*setting, *optimal, epsilon)
    return {"fixed": fixed, "free": free, "reach": reach}


# --- trained networks ------------------------------------------------------------------------------------

ALPHAS, LEVELS = (0.0, 0.25, 0.5, 1.0, 1.5), 24
FRESH, SELECTION = 100, 300  # first seeds of what is reported, and of what only chooses
STUDY_STEPS, STUDY_SAMPLES = (20, 100), 2048


def swiss_roll() -> np.ndarray:
    """(t sin t, t cos t) / 10, t uniform between 3 pi / 2 and 9 pi / 2, as in the source but for the scale."""
    t = np.random.default_rng(0).uniform(1.5 * np.pi, 4.5 * np.pi, 6_000)
    return np.stack([t * np.sin(t), t * np.cos(t)], 1) / 10.0


SWISS_ROLL = Problem("swiss_roll", swiss_roll, "x0", width=64, blocks=3, training_steps=8_000)


class Measured(NamedTuple):
    """A network, and the affine part of its score error at some times, along the modes of its data."""

    name: str
    network: Network
    data: np.ndarray
    target: jk.Gaussian
    estimate: jk.ScoreErrorEstimate


def measure(problem: Problem) -> Measured:
    data = np.random.default_rng(0).permutation(problem.load())
    data = data[len(data) // 6 :]
    network = train(problem, data)
    target = jk.Gaussian.fit(data, shrinkage=0.0)
    times = np.asarray(jk.schedules.log_snr(PROCESS, LEVELS, T_MIN).times)
    estimate = jk.estimate_score_error(
        jk.Denoiser(network, PROCESS, problem.kind),
        data,
        times,
        key=jax.random.key(0),
        target=target,
        repetitions=8,
        batch=2048,
    )
    return Measured(problem.name, network, data, target, estimate)


def chosen_stochasticity(
    measured: Measured, times: np.ndarray, objective: str
) -> tuple[np.ndarray, dict[str, float]]:
    """alpha_k that minimises the predicted squared W2 with the measured error on this grid, and what is predicted.

    First-order derivatives suffice: no second derivatives are compiled, and K = 100 takes seconds.
    """
    with jax.enable_x64(True):
        # copies: JAX remembers the precision in which it first met an array
        setting = measured.target.in_eigenbasis(), PROCESS, measured.estimate.score_error()
        target, process, error = jax.tree.map(lambda a: np.array(a, float), setting)
        kind = {"local": jk.LocalError, "terminal": jk.TerminalError}[objective]
        cost = kind(target, process, jk.DDIM(), resolve("w2_squared"), "standard_normal", error)

        @jax.jit
        def value(h_squared: Array) -> Array:
            schedule = jk.Schedule.from_squared(jnp.asarray(times, float), h_squared)
            return jnp.log(cost(schedule))

        derivatives = jax.jit(jax.value_and_grad(value))

        def fun(z: np.ndarray) -> tuple[float, np.ndarray]:
            return tuple(np.asarray(v, float) for v in derivatives(jnp.asarray(z)))  # pyright: ignore[reportReturnType]

        steps = len(times) - 1
        starts = (np.zeros(steps), np.full(steps, 0.25), np.ones(steps))
        bounds = [(0.0, CAP)] * steps
        results = [minimize(fun, z, jac=True, method="L-BFGS-B", bounds=bounds) for z in starts]
        best = min(results, key=lambda r: r.fun)
        predicted = {f"{a:g}": float(np.exp(value(jnp.full(steps, a**2)))) for a in ALPHAS}
        return np.sqrt(best.x), predicted | {"optimised": float(np.exp(best.fun))}


def continuous_stochasticity(measured: Measured, times: np.ndarray) -> np.ndarray:
    """alpha of the optimum of continuous time for the measured relative error, in the middle of every step.

    It minimises KL, which modes that vary less than the last noise would dominate: they are left out.
    """
    estimate, target = measured.estimate, measured.target
    theta = np.asarray(jk.reverse_sde.clock(PROCESS, jnp.asarray(estimate.times)))[::-1]
    variance = np.asarray(target.marginal_variance(PROCESS, jnp.asarray(estimate.times)))
    kept = np.asarray(target.eigenvalues) > float(PROCESS.sigma(jnp.asarray(T_MIN))) ** 2
    relative = (np.asarray(estimate.mean.slope) * variance)[::-1, kept]
    edges = np.concatenate([[0.0], theta[1:]])
    law = jk.Gaussian(0.0, np.asarray(target.eigenvalues)[kept])
    found = jk.reverse_sde.optimize_diffusion(
        law, 0.5 * (relative[1:] + relative[:-1]), theta[-1], cells=edges
    )
    sigma = np.asarray(PROCESS.sigma(jnp.asarray(times)))
    middle = PROCESS.time_at_sigma(jnp.asarray(np.sqrt(sigma[:-1] * sigma[1:])))
    return np.asarray(found.stochasticity(PROCESS, middle))


def quality(
    measured: Measured, sampler: str, schedule: jk.Schedule, samples: int, first_seed: int = FRESH
) -> tuple[float, float]:
    """Sliced W2 to the data over the data's size, with its standard error over seeds."""
    size, values = np.sqrt(np.sum(measured.data.var(0))), []
    for seed in range(first_seed, first_seed + SEEDS):
        key_start, key = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(key_start, (samples, measured.data.shape[1]))
        kind = measured.network.kind
        ends = jk.sample(
            jk.Denoiser(measured.network, PROCESS, kind), sampler, schedule, x, key=key
        )
        values.append(jk.metrics.sliced_w2(ends, measured.data).value / size)
    return mean_and_error(values)


def floor(measured: Measured, samples: int) -> tuple[float, float]:
    """The same distance of as many draws from the data themselves."""
    size, rng = np.sqrt(np.sum(measured.data.var(0))), np.random.default_rng(0)
    draws = [measured.data[rng.integers(len(measured.data), size=samples)] for _ in range(SEEDS)]
    return mean_and_error([jk.metrics.sliced_w2(x, measured.data).value / size for x in draws])


def network_study(
    problem: Problem, samplers: tuple[str, ...], steps: tuple[int, ...], samples: int
) -> dict[str, Any]:
    """Constant alpha against the alpha_k chosen from the measured error, on the quadratic grid.

    "chosen" is the best on the network, from noises of its own, of h = 0 and the two optima of the measured error.
    """
    measured = measure(problem)
    variance = np.asarray(
        measured.target.marginal_variance(PROCESS, jnp.asarray(measured.estimate.times))
    )
    relative = np.asarray(measured.estimate.mean.slope) * variance
    rows = []
    for sampler, num_steps in track(list(itertools.product(samplers, steps)), problem.name):
        times = np.asarray(jk.schedules.quadratic(PROCESS, num_steps, T_MIN).times, float)
        schedules = {f"{a:g}": jk.Schedule(times, a) for a in ALPHAS}
        row: dict[str, Any] = {"sampler": sampler, "K": num_steps}
        if sampler == "ddim":
            for objective in ("terminal", "local"):
                alpha, row[f"predicted_{objective}"] = chosen_stochasticity(
                    measured, times, objective
                )
                schedules[f"measured, {objective}"] = jk.Schedule(times, alpha)
            schedules["measured, continuous time"] = jk.Schedule(
                times, continuous_stochasticity(measured, times)
            )
            row["alpha"] = {
                k: np.asarray(s.stochasticity).tolist() for k, s in schedules.items() if "," in k
            }
            trial = {
                k: quality(measured, sampler, schedules[k], samples, SELECTION)
                for k in ("0", "measured, terminal", "measured, local")
            }
            row["selection"], row["chosen"] = trial, min(trial, key=lambda k: trial[k][0])
        row["sliced_w2"] = {k: quality(measured, sampler, s, samples) for k, s in schedules.items()}
        if "chosen" in row:
            row["sliced_w2"]["chosen"] = row["sliced_w2"][row["chosen"]]
        rows.append(row)
    return {
        "problem": problem.name,
        "samples": samples,
        "floor": floor(measured, samples),
        "error_times": np.asarray(measured.estimate.times).tolist(),
        "relative_error_rms": np.sqrt(np.mean(relative**2, -1)).tolist(),
        "rows": rows,
    }


# --- report ----------------------------------------------------------------------------------------------


def report(content: dict[str, Any]) -> str:
    """The results as markdown."""
    steps = content["few_steps"]
    lines = [
        "# The diffusion coefficient",
        "",
        "Written by `python -m benchmarks.diffusion`; how to read it: [README](../README.md#diffusion-coefficient).",
        "",
        "## Mixtures with exact scores",
        "",
        f"eps = {MIXTURE_EPSILON}, T = {MIXTURE_TIME:g}, DDIM. Predicted: eps^2 L(h). Added: by +-eps E in the mean.",
        "",
    ]
    cells = [
        [
            str(row["dim"]),
            row["error"],
            f"{row['h_squared']:g}",
            str(row["steps"]),
            f"{row['predicted']:.5f}",
            show(row["kl_added"], 5),
            show(row["js_added"], 5),
            f"{row['kl_without'][0]:.4f}",
        ]
        for row in content["mixtures"]
    ]
    head = ["d", "error", "h^2", "K", "predicted KL", "KL added", "JS added", "KL without error"]
    lines += [
        table(head, cells),
        "",
        "## Few steps: exponential integrator, grid 2 (1 - k/K)^3",
        "",
    ]

    def gains(row: dict[str, Any]) -> list[str]:
        best = f"{row['constant']:.5f} (h^2 = {row['constant_h_squared']:.2f})"
        numbers = f"{row['without_error']:.5f}", f"{row['repaired']:.5f}", f"{row['optimal']:.5f}"
        return [
            best,
            *numbers,
            *(f"{row[key]:.2f}" for key in ("gain", "repair_gain", "score_gain")),
        ]

    def simulated(row: dict[str, Any]) -> list[str]:
        return [
            show(row[key], 5) if key in row else ""
            for key in ("simulated_constant", "simulated_optimal")
        ]

    tail = [
        "best constant",
        "J(0) of blind",
        "J of blind",
        "best h_k",
        "gain",
        "= repair",
        "x score",
    ]
    drawn = ["best constant, drawn", "best h_k, drawn"]
    cells = [
        [
            *(row["target"], row["error"], str(row["K"]), f"{row['epsilon']:g}"),
            *(f"{row['ode']:.5f}", f"{row['sde']:.5f}", *gains(row), *simulated(row)),
        ]
        for row in steps["fixed"]
    ]
    lines += [table(["data", "error at", "K", "eps", "h = 0", "h = g", *tail, *drawn], cells), ""]
    lines += ["## Few steps: DDIM, grid optimised too, errors at both ends, eps = 0.1", ""]
    cells = [[row["target"], str(row["K"]), *gains(row), *simulated(row)] for row in steps["free"]]
    lines += [
        table(["data", "K", *tail, *drawn], cells),
        "",
        "## Against the optimum of continuous time",
        "",
    ]
    infimum = {row["target"]: row["continuous"] for row in steps["reach"]}
    reach = [("exponential integrator, cubic grid", row) for row in steps["reach"]]
    reach += [("DDIM, free grid", row) for row in steps["free"]]
    cells = [
        [
            row["target"],
            name,
            str(row["K"]),
            f"{row['optimal']:.5f}",
            f"{row['optimal'] / infimum[row['target']]:.1f}",
        ]
        for name, row in sorted(reach, key=lambda pair: pair[1]["target"])
    ]
    lines += [table(["data", "sampler", "K", "best J", "over eps^2 inf L"], cells), ""]
    for study in content["networks"]:
        lines += [
            f"## {study['problem']}, trained network",
            "",
            f"Sliced W2 over the data's size, quadratic grid; as many draws from the data have {show(study['floor'])}.",
            "",
        ]
        names = list(study["rows"][0]["sliced_w2"])
        cells = [
            [
                row["sampler"],
                str(row["K"]),
                *(show(row["sliced_w2"][n]) if n in row["sliced_w2"] else "" for n in names),
            ]
            for row in study["rows"]
        ]
        lines += [table(["sampler", "K", *names], cells), ""]
        cells = [
            [kind, str(row["K"]), *(f"{v:.4g}" for v in row[f"predicted_{kind}"].values())]
            for row in study["rows"]
            for kind in ("terminal", "local")
            if f"predicted_{kind}" in row
        ]
        names = list(
            next(row for row in study["rows"] if "predicted_local" in row)["predicted_local"]
        )
        lines += [
            "Predicted squared W2 with the measured error, DDIM:",
            "",
            table(["objective", "K", *names], cells),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    content = {
        "mixtures": mixtures(),
        "few_steps": few_steps(),
        "networks": [
            network_study(PROBLEMS[0], ("ddim",), STUDY_STEPS, STUDY_SAMPLES),
            network_study(
                SWISS_ROLL, ("ddim", "exponential_integrator"), STUDY_STEPS, STUDY_SAMPLES
            ),
        ],
    }
    path = save("diffusion", content)
    text = report(content)
    path.with_suffix(".md").write_text(text)
    print(text)
    print(f"written to {path} and .md")


if __name__ == "__main__":
    main()
