"""jk.optimize_schedule against SciPy on the same objective: python -m benchmarks.against_scipy.

The local objective is written a second time, in NumPy and in closed form, and minimised by SciPy
with its own finite differences, from the same starts: on the whole spectrum, as one would without
the library, and on the spectrum that the library compressed.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize as so

import jaxkernels as jk

from .environment import save, table
from .spectra import spectrum

T_MIN = 1e-3
NODES = 32
ROUNDS = 5
STARTS = ("uniform", "quadratic", "log_snr", "karras")
SAMPLERS = ("ddim", "dpmpp_2m")
STEPS = (5, 10, 20)


def local_objective(target: jk.Gaussian, sampler: str, times: np.ndarray) -> float:
    """Squared local errors of the standard deviation, propagated to the end, and the two end terms.

    The process is VP(0.1, 20). On the probability flow a mode of eigenvalue l is x = a mu + sqrt(S)
    u with S = a^2 l + s^2 and the same u at all times, and its denoised value mu + a l / sqrt(S) u.
    So a step's result has an amplitude A' in u where sqrt(S') would be right, and the flow
    propagates the local error by sqrt(S_K / S'). VP's means are exact.
    """
    t = np.asarray(times)[:, None]
    mean, eigenvalues, weights = (
        np.asarray(v) for v in (target.mean, target.eigenvalues, target.weights)
    )
    exponent = t * (0.1 + 0.5 * 19.9 * t)
    a = np.exp(-exponent / 2.0)
    s = np.sqrt(-np.expm1(-exponent))
    root = np.sqrt(a**2 * eigenvalues + s**2)
    denoised = a * eigenvalues / root
    ratio = s[1:] / s[:-1]
    extrapolated = denoised[:-1].copy()
    if sampler == "dpmpp_2m":
        h = np.diff(np.log(a / s), axis=0)
        extrapolated[1:] += h[1:] / (2.0 * h[:-1]) * np.diff(denoised[:-1], axis=0)
    amplitude = ratio * root[:-1] + (a[1:] - a[:-1] * ratio) * extrapolated
    steps = ((amplitude - root[1:]) * root[-1] / root[1:]) ** 2
    start = root[-1] / root[0]
    initialization = (start * a[0] * mean) ** 2 + (start - root[-1]) ** 2
    truncation = ((1.0 - a[-1]) * mean) ** 2 + (root[-1] - np.sqrt(eigenvalues)) ** 2
    return float(weights @ (steps.sum(0) + initialization + truncation))


class Coordinates:
    """Times from K - 1 unconstrained numbers: the increments of log sigma are softmax(0, z)."""

    def __init__(self) -> None:
        self.ends = np.log(self.sigma(np.array([1.0, T_MIN])))

    @staticmethod
    def sigma(t: np.ndarray) -> np.ndarray:
        return np.sqrt(np.expm1(t * (0.1 + 0.5 * 19.9 * t)))

    def times(self, z: np.ndarray) -> np.ndarray:
        e = np.exp(np.concatenate([[0.0], z]) - max(0.0, z.max()))
        top, bottom = self.ends
        b = np.log1p(np.exp(2.0 * (top - (top - bottom) * np.cumsum(e)[:-1] / e.sum())))
        interior = 2.0 * b / (0.1 + np.sqrt(0.01 + 2.0 * 19.9 * b))
        return np.concatenate([[1.0], interior, [T_MIN]])

    def unconstrained(self, times: np.ndarray) -> np.ndarray:
        increments = np.log(-np.diff(np.log(self.sigma(times))))
        return increments[1:] - increments[0]


METHODS: dict[str, Callable[[Callable[[np.ndarray], float], np.ndarray], Any]] = {
    "L-BFGS-B": lambda f, z: so.minimize(f, z, method="L-BFGS-B"),
    # as far as finite differences go
    "L-BFGS-B, tight": lambda f, z: so.minimize(
        f,
        z,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10_000, "maxfun": 10**7},
    ),
    "trust-constr": lambda f, z: so.minimize(f, z, method="trust-constr"),
}


def timed(run: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """The result and the shortest time in seconds."""
    result = None
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - began)
    return result, min(times)


def compare(sampler: str, num_steps: int) -> list[dict[str, Any]]:
    """One row per program, for one sampler and K."""
    target = spectrum("colour_patches")
    process = jk.VP()
    coordinates = Coordinates()
    objective = jk.LocalError(variance_factor=1.0, compress=NODES)

    def run() -> jk.OptimizedSchedule:
        return jk.optimize_schedule(
            target,
            process,
            sampler,
            num_steps,
            t_min=T_MIN,
            starts=STARTS,
            objective=objective,
            progress=False,
        )

    with jax.enable_x64(True):  # the schedules to check and to start from need all their digits
        run()
        ours, seconds = timed(run, ROUNDS)
        times = {n: np.asarray(s.times, np.float64) for n, s in ours.baseline_schedules.items()}
        best = np.asarray(ours.schedule.times, np.float64)
        bound = objective.bind(target, process, jk.samplers.SAMPLERS[sampler]())
        for t in (*times.values(), best):
            theirs = local_objective(target, sampler, t)
            mine = float(bound(jk.Schedule(jnp.asarray(t))))
            np.testing.assert_allclose(theirs, mine, rtol=1e-10)
    reached = local_objective(target, sampler, best)
    rows = [{"program": "jaxkernels", "seconds": seconds, "objective": reached}]
    for modes in (target.compress(NODES), target):
        for name, minimize in METHODS.items():

            def search(modes=modes, minimize=minimize) -> list[Any]:
                return [
                    minimize(
                        lambda z: local_objective(modes, sampler, coordinates.times(z)),
                        coordinates.unconstrained(times[start]),
                    )
                    for start in STARTS
                ]

            results, taken = timed(search, 1)
            best = min(results, key=lambda r: r.fun)
            rows.append(
                {
                    "program": f"SciPy {name}",
                    "modes": np.size(modes.eigenvalues),
                    "seconds": taken,
                    "objective": local_objective(target, sampler, coordinates.times(best.x)),
                    "objective_evaluations": sum(int(r.nfev) for r in results),
                }
            )
    rows[0]["modes"] = rows[1]["modes"]
    for row in rows:
        row |= {"sampler": sampler, "num_steps": num_steps, "time_ratio": row["seconds"] / seconds}
        row["excess"] = row["objective"] / reached - 1.0
    return rows


def main() -> None:
    head = [
        "sampler",
        "K",
        "program",
        "modes",
        "seconds",
        "time / ours",
        "objective",
        "objective / ours - 1",
    ]
    rows = []
    cells = []
    for sampler, num_steps in itertools.product(SAMPLERS, STEPS):
        print(f"{sampler}, K = {num_steps} ...", flush=True)
        rows += compare(sampler, num_steps)
    for r in rows:
        names = [r["sampler"], str(r["num_steps"]), r["program"], str(r["modes"])]
        figures = [f"{r['seconds']:.3g}", f"{r['time_ratio']:.3g}", f"{r['objective']:.9g}"]
        cells.append([*names, *figures, f"{r['excess']:+.1e}"])
    print(table(head, cells))
    print(f"written to {save('against_scipy', {'starts': STARTS, 'rows': rows})}")
    # the optimum of the compressed objective may miss that of the whole one by the
    # compression's error
    worse = [r for r in rows if r["excess"] < -1e-8]
    if worse:
        raise SystemExit(f"jaxkernels was beaten: {worse}")


if __name__ == "__main__":
    main()
