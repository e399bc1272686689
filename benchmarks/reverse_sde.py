"""Which reverse diffusion coefficient h(t) costs least.

Run by `python -m benchmarks.reverse_sde`.

Three studies of the reverse family with h = alpha g, after the questions of Cao, Chen, Luo, Zhou
(2023):

- Mixtures with their exact scores and a synthetic error: KL against h and against the number of
  steps, beside eps^2 L(h).
- Gaussians and a small NFE: how much of the gain of h_k over the best constant h is due to the
  score error, how much repairs the discretisation, and how far the optimum of continuous time is.
- A Swiss roll and the digits with trained networks: sliced W2 for constant h, and for the h(t) that
  is optimal for the network's measured error.
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

from .environment import CACHE, save, table
from .networks.data import PROBLEMS, PROCESS, T_MIN, Problem
from .networks.network import Network
from .networks.study import denoiser_of, mean_and_error
from .networks.train import train

SEEDS = 5
Window = tuple[float, float]


def unit_process(final_time: float) -> jk.OU:
    """The process with g = 1, whose own time is the rescaled time theta."""
    return jk.OU(rate=1.0, t_max=final_time)


def power_times(final_time: float, num_steps: int, power: float = 3.0) -> np.ndarray:
    return final_time * (1.0 - np.arange(num_steps + 1) / num_steps) ** power


def show(value: tuple[float, float], digits: int = 4) -> str:
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


# --- mixtures with exact scores ---

MIXTURE_TIME = 4.0
MIXTURE_EPSILON = 0.1
PARTICLES = 40_000
BINS = 200
FINE_STEPS = 500
DEVIATIONS = {1: 0.1, 2: 0.05}
# the source's cases 1, 4 and 5: c(theta) is 1 on a window and 0 elsewhere
WINDOWS: dict[str, Window] = {
    "throughout": (0.0, MIXTURE_TIME),
    "early": (0.05 * MIXTURE_TIME, MIXTURE_TIME),
    "late": (0.0, 0.01 * MIXTURE_TIME),
}
MIXTURE_ALPHA_SQUARED = (0.0, 1.0, 4.0)
MIXTURE_STEPS = (10, 20, 40, 80, 160)


def mixture(dim: int) -> jk.GaussianMixture:
    """Modes at every (+-1, ...), of standard deviation 0.1 in one dimension and 0.05 in two."""
    means = np.array(list(itertools.product([-1.0, 1.0], repeat=dim)))
    count = len(means)
    return jk.GaussianMixture(
        np.full(count, 1.0 / count), means, np.full(count, DEVIATIONS[dim] ** 2)
    )


def inside(window: Window, theta: Array) -> Array:
    return (theta >= window[0]) & (theta < window[1])


def mixture_prediction(dim: int, window: Window, alpha2: float) -> float:
    """eps^2 L(h). In two dimensions the coordinates are independent, and stay so."""
    one = jk.GaussianMixture(
        [0.5, 0.5], np.array([[-1.0], [1.0]]), np.full(2, DEVIATIONS[dim] ** 2)
    )
    edges = [t for t in window if 0.0 < t < MIXTURE_TIME]
    result = jk.leading_order_1d(
        one, synthetic_error(window), alpha2, MIXTURE_TIME, breakpoints=edges or None
    )
    return dim * MIXTURE_EPSILON**2 * float(result.value)


_SYNTHETIC: dict[Window, Callable[[Array, Array, Array], Array]] = {}


def synthetic_error(window: Window) -> Callable[[Array, Array, Array], Array]:
    """The same function for the same window: a new one would be compiled anew."""
    return _SYNTHETIC.setdefault(window, lambda x, theta, score: inside(window, theta) * score)


def divergences(x: Float[np.ndarray, "n d"], deviation: float) -> np.ndarray:
    """KL(p_0 || q) and Jensen-Shannon divergence, summed over coordinates.

    By bins of equal probability under p_0.
    """
    points = np.linspace(-1.0 - 8.0 * deviation, 1.0 + 8.0 * deviation, 20_001)
    cdf = 0.5 * (norm.cdf(points, -1.0, deviation) + norm.cdf(points, 1.0, deviation))
    edges = np.interp(np.arange(1, BINS) / BINS, cdf, points)
    counts = np.stack(
        [np.bincount(np.searchsorted(edges, column), minlength=BINS) for column in x.T]
    )
    q = np.maximum(counts, 0.5) * BINS / len(x)
    middle = 0.5 * (1.0 + q)
    kl = -np.log(q)
    js = 0.5 * (q * np.log(q / middle) - np.log(middle))
    return np.array([np.sum(np.mean(v, 1)) for v in (kl, js)])


def simulate_mixture(
    dim: int, window: Window, alpha2: float, num_steps: int
) -> dict[str, tuple[float, float]]:
    """KL and JS without error, and what the errors +eps E and -eps E add on average.

    The average has no term in eps^3.

    The same initial noise and noise for all three, so that the bias of finite counts and of finite
    steps drops out of the difference.
    """
    target = mixture(dim)
    process = unit_process(MIXTURE_TIME)
    times = np.concatenate(
        [power_times(MIXTURE_TIME, num_steps), [t for t in window if 0.0 < t < MIXTURE_TIME]]
    )
    schedule = jk.Schedule(np.unique(times)[::-1], np.sqrt(alpha2))
    rows = []
    for seed in range(SEEDS):
        key_start, key_noise, key = jax.random.split(jax.random.key(seed), 3)
        x0 = target.sample(key_start, PARTICLES)
        start = process.signal(MIXTURE_TIME) * x0 + process.noise(MIXTURE_TIME) * jax.random.normal(
            key_noise, x0.shape
        )
        found = []
        for epsilon in (0.0, MIXTURE_EPSILON, -MIXTURE_EPSILON):
            score = SyntheticScore(target, process, jnp.asarray(epsilon), jnp.asarray(window))
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


class SyntheticScore(NamedTuple):
    """A score with a relative error in a window of times; its numbers are traced."""

    target: jk.GaussianMixture
    process: jk.OU
    epsilon: Array
    window: Array

    def __call__(self, x: Array, t: Array) -> Array:
        # a step from t takes place below t
        c = (t > self.window[0]) & (t <= self.window[1] * (1.0 + 1e-6))
        return (1.0 + self.epsilon * c) * self.target.score(self.process, x, t).astype(x.dtype)


def mixtures() -> list[dict[str, Any]]:
    settings = [(1, shape, h2, FINE_STEPS) for shape in WINDOWS for h2 in MIXTURE_ALPHA_SQUARED]
    settings += [(2, "throughout", h2, FINE_STEPS) for h2 in MIXTURE_ALPHA_SQUARED]
    settings += [(1, "throughout", h2, k) for h2 in MIXTURE_ALPHA_SQUARED for k in MIXTURE_STEPS]
    rows = []
    for dim, shape, h2, steps in track(settings, "mixtures"):
        predicted = mixture_prediction(dim, WINDOWS[shape], h2)
        measured = simulate_mixture(dim, WINDOWS[shape], h2, steps)
        rows.append(
            {
                "dim": dim,
                "error": shape,
                "stochasticity_squared": h2,
                "steps": steps,
                "predicted": predicted,
                **measured,
            }
        )
    return rows


# --- Gaussians and a small NFE ---

FINAL_TIME = 2.0
CAP = 100.0
SIMULATED = 200_000
GAUSSIANS = {
    "d = 1": jk.Gaussian(0.0, [0.04]),
    "d = 10": jk.Gaussian(0.0, np.geomspace(0.01, 1.0, 10)),
}
SIZES = (0.1, 0.3)
STEPS = (10, 20)
REACH = (10, 20, 40, 80)


def near_data(theta: Array) -> Array:
    return jnp.exp(-theta / 0.02)


def near_noise(theta: Array) -> Array:
    return jnp.exp(-(FINAL_TIME - theta) / 0.5)


def at_both_ends(theta: Array) -> Array:
    return near_data(theta) + near_noise(theta)


ERRORS = {"data": near_data, "noise": near_noise, "both": at_both_ends}


class FreeTimes:
    """J of DDIM with errors at both ends, exactly: minimised over times and alpha_k^2 together."""

    def __init__(self, target: jk.Gaussian):
        process = unit_process(FINAL_TIME)

        def objective(times: Array, alpha2: Array, epsilon: Array) -> Array:
            kl = jk.reverse_sde.SymmetrizedKL(target, at_both_ends, process, jk.DDIM(), epsilon)
            return kl(jk.Schedule.from_squared(times, alpha2))

        def log_objective(variables: tuple[Array, Array], epsilon: Array) -> Array:
            logits, alpha2 = variables
            # softmax of the logits: the lengths of the steps
            left = 1.0 - jnp.cumsum(jax.nn.softmax(logits))[:-1]
            times = FINAL_TIME * jnp.concatenate([jnp.ones(1), left, jnp.zeros(1)])
            return jnp.log(objective(times, jnp.broadcast_to(alpha2, logits.shape), epsilon))

        self.value = jax.jit(objective)
        self.derivatives = jax.jit(jax.value_and_grad(log_objective))

    def minimise(
        self, times: np.ndarray, epsilon: float, *, constant: bool = False
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """J, times and h^2 of the best of several starts; `constant`: one h^2 for all steps."""
        steps = len(times) - 1
        logits = np.log(-np.diff(times) / FINAL_TIME)
        size = 1 if constant else steps

        def fun(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, slopes = self.derivatives(
                (jnp.asarray(z[:steps]), jnp.asarray(z[steps:])), jnp.asarray(epsilon)
            )
            return float(value), np.concatenate(slopes).astype(float)

        bounds = [(-20.0, 5.0)] * steps + [(0.0, CAP)] * size
        options = {"maxiter": 300, "ftol": 1e-13, "gtol": 1e-8}
        starts = [np.concatenate([logits, np.full(size, alpha2)]) for alpha2 in (0.0, 1.0)]
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
    target: jk.Gaussian, sampler: str, times: np.ndarray, alpha2: np.ndarray, epsilon: float
) -> tuple[float, float]:
    """J of drawn samples, which are Gaussian, from their moments, less the finite-count bias."""
    process = unit_process(FINAL_TIME)
    data = np.asarray(target.eigenvalues)
    start = np.sqrt(np.asarray(target.marginal_variance(process, FINAL_TIME)))
    schedule = jk.Schedule(times, np.sqrt(alpha2))

    def kl(x: np.ndarray) -> float:
        mean = x.mean(0)
        variance = x.var(0)
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


def at_cubic_times(name: str, error: str, steps: int, epsilon: float) -> dict[str, Any]:
    """The gain over the best constant: repair of the discretisation x gain against the error."""
    process = unit_process(FINAL_TIME)
    times = power_times(FINAL_TIME, steps)
    setting = ERRORS[error], process, "exponential_integrator", times, epsilon
    found = jk.reverse_sde.optimize_discrete_stochasticity(GAUSSIANS[name], *setting, cap=CAP)
    constant, alpha2 = found.best_constant
    return {
        "target": name,
        "error": error,
        "K": steps,
        "epsilon": epsilon,
        "ode": found.ode,
        "sde": found.sde,
        "constant": constant,
        "constant_stochasticity_squared": alpha2,
        "without_error": found.error_agnostic_without_error,
        "error_agnostic": found.error_agnostic,
        "optimal": found.value,
        "gain": found.gain,
        "repair_gain": found.repair_gain,
        "score_gain": found.score_gain,
        "continuous": found.continuous,
        "ratio": found.ratio,
        "times": found.times.tolist(),
        "stochasticity_squared": found.stochasticity_squared.tolist(),
        "constant_times": found.times.tolist(),
    }


def at_free_times(name: str, steps: int, epsilon: float) -> dict[str, Any]:
    """The same with optimised times: for all h_k, for a constant h, and without the error."""
    problem = FreeTimes(GAUSSIANS[name])
    times = power_times(FINAL_TIME, steps)
    best, best_times, alpha2 = problem.minimise(times, epsilon)
    constant, constant_times, constant_h = problem.minimise(times, epsilon, constant=True)
    agnostic, agnostic_times, agnostic_alpha2 = problem.minimise(times, 0.0)
    known = float(problem.value(agnostic_times, agnostic_alpha2, jnp.asarray(epsilon)))
    return {
        "target": name,
        "K": steps,
        "epsilon": epsilon,
        "constant": constant,
        "constant_stochasticity_squared": float(constant_h[0]),
        "without_error": agnostic,
        "error_agnostic": known,
        "optimal": best,
        "gain": constant / best,
        "repair_gain": constant / known,
        "score_gain": known / best,
        "times": best_times.tolist(),
        "stochasticity_squared": alpha2.tolist(),
        "constant_times": constant_times.tolist(),
    }


def discrete() -> dict[str, Any]:
    """The exponential integrator at cubic times; DDIM with free times too; both simulated.

    With free times the exponential integrator is left out: its optima rely on noise above the
    marginal's.
    """
    epsilon = 0.1
    with jax.enable_x64(True):
        settings = [
            (name, error, k, size)
            for name in GAUSSIANS
            for k in STEPS
            for size in SIZES
            for error in ERRORS
        ]
        fixed = [at_cubic_times(*setting) for setting in track(settings, "cubic times")]
        settings = list(itertools.product(GAUSSIANS, STEPS))
        free = [at_free_times(*setting, epsilon) for setting in track(settings, "free times")]
        settings = list(itertools.product(GAUSSIANS, REACH))
        reach = [
            at_cubic_times(name, "both", k, epsilon)
            for name, k in track(settings, "against continuous time")
        ]
        shown = [row for row in fixed if row["error"] == "both" and row["epsilon"] == 0.1]
        for row, sampler in track(
            [(r, "exponential_integrator") for r in shown] + [(r, "ddim") for r in free], "runs"
        ):
            setting = (GAUSSIANS[row["target"]], sampler)
            flat = np.full(row["K"], row["constant_stochasticity_squared"])
            row["simulated_constant"] = simulate_steps(
                *setting, np.asarray(row["constant_times"]), flat, epsilon
            )
            optimal = (np.asarray(row["times"]), np.asarray(row["stochasticity_squared"]))
            row["simulated_optimal"] = simulate_steps(*setting, *optimal, epsilon)
    return {"fixed": fixed, "free": free, "reach": reach}


# --- trained networks ---

ALPHAS = (0.0, 0.25, 0.5, 1.0, 1.5)
LEVELS = 24
FRESH = 100
SELECTION = 300  # first seeds of what is reported, and of what only selects
STUDY_STEPS = (20, 100)
STUDY_SAMPLES = 2048


def swiss_roll() -> np.ndarray:
    """(t sin t, t cos t) / 10, t uniform between 3 pi / 2 and 9 pi / 2."""
    t = np.random.default_rng(0).uniform(1.5 * np.pi, 4.5 * np.pi, 6_000)
    return np.stack([t * np.sin(t), t * np.cos(t)], 1) / 10.0


SWISS_ROLL = Problem("swiss_roll", swiss_roll, "x0", width=64, blocks=3, training_steps=8_000)


class Measured(NamedTuple):
    """A network, and the affine part of its score error at some times, per mode of its data."""

    name: str
    network: Network
    data: np.ndarray
    target: jk.Gaussian
    estimate: jk.ScoreErrorEstimate


def measure(problem: Problem) -> Measured:
    _, data = problem.split()
    network = train(problem, data)
    target = jk.Gaussian.fit(data, shrinkage=0.0)
    times = np.asarray(jk.schedules.log_snr(PROCESS, LEVELS, T_MIN).times)
    estimate = jk.estimate_score_error(
        denoiser_of(network),
        data,
        times,
        key=jax.random.key(0),
        target=target,
        repetitions=8,
        batch=2048,
    )
    return Measured(problem.name, network, data, target, estimate)


def optimal_stochasticity(
    measured: Measured, times: np.ndarray, objective: str
) -> tuple[np.ndarray, dict[str, float]]:
    """alpha_k of least predicted squared W2 with the measured error, and the predictions.

    First-order derivatives suffice: no second derivatives are compiled, and K = 100 takes seconds.
    """
    with jax.enable_x64(True):
        # copies: JAX remembers the precision in which it first met an array
        setting = measured.target.in_eigenbasis(), PROCESS, measured.estimate.score_error()
        target, process, error = jax.tree.map(lambda a: np.array(a, float), setting)
        unbound = {
            "local": jk.LocalError(variance_factor=1.0, score_error=error),
            "terminal": jk.TerminalError(score_error=error),
        }[objective]
        cost = unbound.bind(target, process, jk.DDIM())

        @jax.jit
        def value(alpha2: Array) -> Array:
            schedule = jk.Schedule.from_squared(jnp.asarray(times, float), alpha2)
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
    """alpha of the optimum of continuous time for the measured relative error, at mid-steps.

    It minimises KL, which modes that vary less than the last noise would dominate: they are left
    out.
    """
    estimate = measured.estimate
    target = measured.target
    theta = np.asarray(jk.reverse_sde.time_change(PROCESS, jnp.asarray(estimate.times)))[::-1]
    variance = np.asarray(target.marginal_variance(PROCESS, jnp.asarray(estimate.times)))
    kept = np.asarray(target.eigenvalues) > float(PROCESS.sigma(jnp.asarray(T_MIN))) ** 2
    relative = (np.asarray(estimate.mean.slope) * variance)[::-1, kept]
    edges = np.concatenate([[0.0], theta[1:]])
    gaussian = jk.Gaussian(0.0, np.asarray(target.eigenvalues)[kept])
    found = jk.reverse_sde.optimize_diffusion(
        gaussian, 0.5 * (relative[1:] + relative[:-1]), theta[-1], cells=edges
    )
    sigma = np.asarray(PROCESS.sigma(jnp.asarray(times)))
    middle = PROCESS.time_at_sigma(jnp.asarray(np.sqrt(sigma[:-1] * sigma[1:])))
    return np.asarray(found.stochasticity(PROCESS, middle))


def quality(
    measured: Measured, sampler: str, schedule: jk.Schedule, samples: int, first_seed: int = FRESH
) -> tuple[float, float]:
    """Sliced W2 to the data over the data's size, with its standard error over seeds."""
    size = np.sqrt(np.sum(measured.data.var(0)))
    values = []
    for seed in range(first_seed, first_seed + SEEDS):
        key_start, key = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(key_start, (samples, measured.data.shape[1]))
        ends = jk.sample(denoiser_of(measured.network), sampler, schedule, x, key=key)
        values.append(jk.metrics.sliced_w2(ends, measured.data).value / size)
    return mean_and_error(values)


def floor(measured: Measured, samples: int) -> tuple[float, float]:
    """The same distance of as many draws from the data themselves."""
    size = np.sqrt(np.sum(measured.data.var(0)))
    rng = np.random.default_rng(0)
    draws = [measured.data[rng.integers(len(measured.data), size=samples)] for _ in range(SEEDS)]
    return mean_and_error([jk.metrics.sliced_w2(x, measured.data).value / size for x in draws])


def network_study(
    problem: Problem, samplers: tuple[str, ...], steps: tuple[int, ...], samples: int
) -> dict[str, Any]:
    """Constant alpha against the alpha_k optimal for the measured error, at quadratic times.

    "selected" is the best on the network, from separate initial noise, of h = 0 and the two optima
    of the measured error.
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
                alpha, row[f"predicted_{objective}"] = optimal_stochasticity(
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
            row["selection"] = trial
            row["selected"] = min(trial, key=lambda k: trial[k][0])
        row["sliced_w2"] = {k: quality(measured, sampler, s, samples) for k, s in schedules.items()}
        if "selected" in row:
            row["sliced_w2"]["selected"] = row["sliced_w2"][row["selected"]]
        rows.append(row)
    return {
        "problem": problem.name,
        "samples": samples,
        "floor": floor(measured, samples),
        "error_times": np.asarray(measured.estimate.times).tolist(),
        "relative_error_rms": np.sqrt(np.mean(relative**2, -1)).tolist(),
        "rows": rows,
    }


# --- report ---


def report(content: dict[str, Any]) -> str:
    """The results as markdown."""
    lines = [
        "# The reverse diffusion coefficient",
        "",
        "Written by `python -m benchmarks.reverse_sde`; how to read it: "
        "[README](../README.md#reverse-diffusion-coefficient).",
        "",
        *report_mixtures(content["mixtures"]),
        *report_cubic_times(content["discrete"]["fixed"]),
        *report_free_times(content["discrete"]["free"]),
        *report_continuous_time(content["discrete"]),
    ]
    for study in content["networks"]:
        lines += report_network(study)
    return "\n".join(lines)


def report_mixtures(rows: list[dict[str, Any]]) -> list[str]:
    """Predicted and simulated KL of mixtures."""
    cells = [
        [
            str(row["dim"]),
            row["error"],
            f"{row['stochasticity_squared']:g}",
            str(row["steps"]),
            f"{row['predicted']:.5f}",
            show(row["kl_added"], 5),
            show(row["js_added"], 5),
            f"{row['kl_without'][0]:.4f}",
        ]
        for row in rows
    ]
    head = ["d", "error", "h^2", "K", "predicted KL", "KL added", "JS added", "KL without error"]
    return [
        "## Mixtures with exact scores",
        "",
        f"eps = {MIXTURE_EPSILON}, T = {MIXTURE_TIME:g}, DDIM. Predicted: eps^2 L(h). "
        "Added: by +-eps E on average.",
        "",
        table(head, cells),
        "",
    ]


GAINS = [
    "best constant",
    "J(0), error-agnostic",
    "J, error-agnostic",
    "best h_k",
    "gain",
    "= repair",
    "x score",
]
SIMULATIONS = ["best constant, drawn", "best h_k, drawn"]


def show_gains(row: dict[str, Any]) -> list[str]:
    """The cells of `GAINS` and `SIMULATIONS`."""
    values = [f"{row[key]:.5f}" for key in ("without_error", "error_agnostic", "optimal")]
    gains = [f"{row[key]:.2f}" for key in ("gain", "repair_gain", "score_gain")]
    drawn = [
        show(row[key], 5) if key in row else ""
        for key in ("simulated_constant", "simulated_optimal")
    ]
    constant = f"{row['constant']:.5f} (h^2 = {row['constant_stochasticity_squared']:.2f})"
    return [constant, *values, *gains, *drawn]


def report_cubic_times(rows: list[dict[str, Any]]) -> list[str]:
    """The gain over the best constant h at fixed times."""
    cells = [
        [
            row["target"],
            row["error"],
            str(row["K"]),
            f"{row['epsilon']:g}",
            f"{row['ode']:.5f}",
            f"{row['sde']:.5f}",
            *show_gains(row),
        ]
        for row in rows
    ]
    head = ["data", "error at", "K", "eps", "h = 0", "h = g", *GAINS, *SIMULATIONS]
    title = "## K steps: exponential integrator, times 2 (1 - k/K)^3"
    return [title, "", table(head, cells), ""]


def report_free_times(rows: list[dict[str, Any]]) -> list[str]:
    """The gain over the best constant h with optimised times."""
    cells = [[row["target"], str(row["K"]), *show_gains(row)] for row in rows]
    title = "## K steps: DDIM, times optimised too, errors at both ends, eps = 0.1"
    return [title, "", table(["data", "K", *GAINS, *SIMULATIONS], cells), ""]


def report_continuous_time(content: dict[str, Any]) -> list[str]:
    """J of K steps over the optimum of continuous time."""
    infimum = {row["target"]: row["continuous"] for row in content["reach"]}
    reach = [("exponential integrator, cubic times", row) for row in content["reach"]]
    reach += [("DDIM, free times", row) for row in content["free"]]
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
    head = ["data", "sampler", "K", "best J", "over eps^2 inf L"]
    return ["## Against the optimum of continuous time", "", table(head, cells), ""]


def report_network(study: dict[str, Any]) -> list[str]:
    """Sliced W2 of a trained network, and what its measured error predicts."""
    names = list(study["rows"][0]["sliced_w2"])
    cells = [
        [
            row["sampler"],
            str(row["K"]),
            *(show(row["sliced_w2"][n]) if n in row["sliced_w2"] else "" for n in names),
        ]
        for row in study["rows"]
    ]
    lines = [
        f"## {study['problem']}, trained network",
        "",
        "Sliced W2 over the data's size, quadratic times; as many draws from the data have "
        f"{show(study['floor'])}.",
        "",
        table(["sampler", "K", *names], cells),
        "",
    ]
    cells = [
        [objective, str(row["K"]), *(f"{v:.4g}" for v in row[f"predicted_{objective}"].values())]
        for row in study["rows"]
        for objective in ("terminal", "local")
        if f"predicted_{objective}" in row
    ]
    names = list(next(r for r in study["rows"] if "predicted_local" in r)["predicted_local"])
    return [
        *lines,
        "Predicted squared W2 with the measured error, DDIM:",
        "",
        table(["objective", "K", *names], cells),
        "",
    ]


def main() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    content = {
        "mixtures": mixtures(),
        "discrete": discrete(),
        "networks": [
            network_study(PROBLEMS[0], ("ddim",), STUDY_STEPS, STUDY_SAMPLES),
            network_study(
                SWISS_ROLL, ("ddim", "exponential_integrator"), STUDY_STEPS, STUDY_SAMPLES
            ),
        ],
    }
    path = save("reverse_sde", content)
    text = report(content)
    path.with_suffix(".md").write_text(text)
    print(text)
    print(f"written to {path} and .md")


if __name__ == "__main__":
    main()
