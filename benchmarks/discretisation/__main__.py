"""Discretisations of the reverse SDE on data that are not Gaussian, with and without derivatives.

Run by `python -m benchmarks.discretisation`.

- The posterior of a logistic regression with its exact score, from the exact marginal at the start.
  Every scheme follows the same Brownian paths as a reference of many steps: their root mean square
  distance is the strong error, which a certificate for the class of data bounds, and from above the
  distance W2 of the distributions; moments of the coupled samples give one from below.
- The digits and their network, without a Jacobian but with products of one: sliced W2 to the data
  in units of their size, at the better of two schedules.

A product with the Jacobian counts as one NFE.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.progress import track

import jaxkernels as jk

from ..environment import CACHE, save, table
from ..networks.data import PROBLEMS, PROCESS, T_MIN
from ..networks.study import FRESH, denoiser_of, distances, mean_and_error
from ..networks.train import train
from . import coupled_paths, logistic

Row = dict[str, Any]

SCHEMES = (
    "euler_maruyama",
    "exponential_integrator",
    "exact_mean",
    "rem",
    "rei",
    "second_order",
    "tweedie",
)
STEPS = (6, 12, 24, 48)
PARTICLES = 3000
# increments of a Brownian path, and steps of the reference along it
FINE = 768
REFERENCE = ("tweedie", 192)

NETWORK_SCHEMES = (
    "euler_maruyama",
    "exponential_integrator",
    "exact_mean",
    "ddim",
    "rem",
    "rei",
    "second_order1",
    "tweedie1",
    "tweedie2",
)
# NFE of a sample
BUDGETS = (12, 24, 48, 96)
SCHEDULES = ("cosine", "log_snr")


def cost(name: str, steps: int, dim: int) -> Row:
    """What a sample takes: evaluations, and products with the Jacobian of the score."""
    kind = jk.samplers.SAMPLERS[name]
    evaluations = kind.nfe_per_step if kind.randomised else 1
    products = dim if kind.forms_jacobian else kind.nfe_per_step - evaluations
    return {
        "scheme": name,
        "steps": steps,
        "evaluations": evaluations * steps,
        "products": products * steps,
    }


def logistic_errors() -> list[Row]:
    """Strong errors, certificates, and W2 of the moments, for every scheme and number of steps."""
    denoiser = jk.Denoiser(logistic.score, logistic.PROCESS, "score")
    start, path = coupled_paths.noised(
        logistic.samples(PARTICLES), logistic.PROCESS, FINE, jax.random.key(1)
    )
    name, steps = REFERENCE
    exact = coupled_paths.ends(name, steps, denoiser, start, path)
    rows = []
    for name, steps in track(list(itertools.product(SCHEMES, STEPS)), "logistic posterior"):
        found = coupled_paths.ends(name, steps, denoiser, start, path)
        rows.append({**cost(name, steps, 2), **strong_error(name, steps, found, exact)})
    return rows


def strong_error(name: str, steps: int, found: Array, exact: Array) -> Row:
    """The distance of coupled particles, its bound, and W2 of their moments."""
    squares = np.sum(np.asarray(found - exact, np.float64) ** 2, 1)
    error = np.sqrt(squares.mean())
    known = jk.bounds.Assumptions.of_logistic_regression(
        logistic.PROCESS, logistic.FEATURES, logistic.LABELS, logistic.PENALTY
    )
    times = np.linspace(float(np.asarray(logistic.PROCESS.t_max)), 0.0, steps + 1)
    run = (known, logistic.PROCESS, name, jk.Schedule(times, 1.0))
    bound = jk.bounds.certified_bound(*run, initialization="marginal")
    with jax.enable_x64(True):
        below = jk.metrics.dense_w2_squared(
            jnp.asarray(np.mean(found, 0) - np.mean(exact, 0), float),
            jnp.asarray(np.cov(np.asarray(found, float).T)),
            jnp.asarray(np.cov(np.asarray(exact, float).T)),
        )
    return {
        "strong_error": error,
        "standard_error": squares.std() / (2.0 * error * np.sqrt(len(squares))),
        "certificate": float(bound.value),
        "below": float(jnp.sqrt(below)),
    }


def network_errors() -> list[Row]:
    """Sliced W2 of the network's samples to the data, for every scheme and NFE."""
    problem = next(p for p in PROBLEMS if p.name == "digits")
    _, data = problem.split()
    denoiser = denoiser_of(train(problem, data))
    rows = []
    for name, nfe in track(list(itertools.product(NETWORK_SCHEMES, BUDGETS)), "digits"):
        jax.clear_caches()
        steps = nfe // jk.samplers.SAMPLERS[name].nfe_per_step
        found = {}
        for label in SCHEDULES:
            plain = jk.schedules.BASELINES[label](PROCESS, steps, T_MIN)
            schedule = jk.Schedule(plain.times, 1.0)
            found[label] = distances(denoiser, data, schedule, sampler=name)
        best = min(found, key=lambda label: found[label].mean())
        measured = mean_and_error(found[best])
        rows.append(
            {
                **cost(name, steps, data.shape[1]),
                "schedule": best,
                "distance": measured.value,
                "standard_error": measured.standard_error,
            }
        )
    return rows


def main() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    exact = logistic_errors()
    learned = network_errors()
    sizes = {"particles": PARTICLES, "fine": FINE, "samples": FRESH}
    content = {"sizes": sizes, "logistic": exact, "digits": learned}
    path = save("discretisation", content)
    text = report(exact, learned)
    path.with_suffix(".md").write_text(text)
    print(text)


def report(exact: list[Row], learned: list[Row]) -> str:
    """Both tables."""
    rows = []
    for scheme, own in itertools.groupby(exact, key=lambda row: row["scheme"]):
        before = None
        for row in own:
            order = ""
            if before is not None:
                order = f"{np.log2(before['strong_error'] / row['strong_error']):.2f}"
            rows.append(
                [
                    scheme,
                    *(str(row[key]) for key in ("steps", "evaluations", "products")),
                    f"{row['strong_error']:.3g} ± {row['standard_error']:.1g}",
                    order,
                    f"{row['certificate']:.3g}",
                    f"{row['certificate'] / row['strong_error']:.1f}",
                    f"{row['below']:.3g}",
                ]
            )
            before = row
    head = ["scheme", "steps", "evaluations", "products", "strong error", "order", "certificate"]
    lines = [
        "# Discretisations of the reverse SDE",
        "",
        "Written by `python -m benchmarks.discretisation`.",
        "",
        "## The posterior of a logistic regression",
        "",
        "Evaluations and products with the Jacobian of a sample. The strong error bounds W2 from",
        "above, the moments of the coupled samples from below.",
        "",
        table([*head, "certificate / error", "W2 of moments"], rows),
        "",
        "## The digits and their network",
        "",
        "Sliced W2 to the data in units of their size, the better of two schedules, mean and",
        "standard error over five seeds.",
        "",
        table(["scheme", *(f"{nfe} NFE" for nfe in BUDGETS)], by_budget(learned)),
        "",
    ]
    return "\n".join(lines)


def by_budget(learned: list[Row]) -> list[list[str]]:
    """A row for each scheme."""
    rows = []
    for scheme, own in itertools.groupby(learned, key=lambda row: row["scheme"]):
        entries = [f"{row['distance']:.4f} ± {row['standard_error']:.4f}" for row in own]
        rows.append([scheme, *entries])
    return rows


if __name__ == "__main__":
    main()
