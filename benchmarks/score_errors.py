"""Predicted and simulated cost of correlated score errors.

Run by `python -m benchmarks.score_errors`.

Five samplers, three spectra, three correlations in time with the same covariance at each time. The
simulation draws 2e5 error trajectories and computes the exact distribution of the samples for each;
the expansion serves as a control variate. *As published* the formula counts the metric's curvature
twice and leaves out its gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.progress import track

import jaxkernels as jk
from jaxkernels.recurrence import Moments

from .environment import save, table

PROCESS = jk.VP()
PAIRS = 100_000
SIZE = 2e-3
STEPS = 12
# name: stochasticity
SAMPLERS = {
    "euler_maruyama": 1.0,
    "exponential_integrator": 0.5,
    "ddim": 0.0,
    "heun": 0.0,
    "dpmpp_2m": 0.0,
}
CORRELATIONS = {
    "independent": jk.Independent(),
    "AR(1), 0.9": jk.AR1(0.9),
    "full": jk.FullyCorrelated(),
}
MEAN = np.array([0.8, -0.5, 0.0])


@jax.jit
def as_published(kernel: jk.ErrorKernel, directions: jk.AffineError) -> Array:
    """First-order responses only, the curvature of the squared W2 without its factor 1/2."""
    root = jnp.sqrt(jnp.asarray(kernel.target.eigenvalues))

    def moments(theta: jk.AffineError) -> Moments:
        return kernel.run.moments(theta).last

    def cost(w: jk.AffineError) -> Array:
        last, response = jax.jvp(moments, (kernel.about,), (w,))
        curvature = root / (2.0 * last.covariance**1.5)
        return jnp.sum(response.mean**2 + response.covariance**2 * curvature)

    return jnp.sum(jax.vmap(cost)(directions))


def main() -> None:
    rows = []
    cases = []
    settings = [(s, p, c) for s in SAMPLERS for p in (0, 1, 2) for c in CORRELATIONS]
    with jax.enable_x64(True):
        for sampler, power, name in track(settings, "simulating"):
            eigenvalues = np.arange(1.0, 4.0) ** -power
            target = jk.Gaussian(MEAN, 3.0 * eigenvalues / eigenvalues.sum())
            times = np.linspace(1.0, 0.0, STEPS + 1) ** 2 * 0.999 + 0.001
            setting = (target, PROCESS, sampler, jk.Schedule(times, SAMPLERS[sampler]))
            error = jk.ScoreError.diagonal(SIZE, SIZE, CORRELATIONS[name])
            result = jk.expected_error(
                *setting, score_error=error, method="monte_carlo", pairs=PAIRS
            )
            kernel = jk.error_kernel(*setting)
            directions = error.directions(target, PROCESS, kernel.times)
            assert directions is not None
            excess = float(result.excess)
            case = {
                "sampler": sampler,
                "spectrum": f"i^-{power}",
                "errors": name,
                "without_errors": float(result.baseline),
                "excess": excess,
                "standard_error": float(result.standard_error),
                "predicted": float(result.second_order) / excess - 1.0,
                "as_published": float(as_published(kernel, directions)) / excess - 1.0,
            }
            cases.append(case)
            rows.append(
                [
                    *(case[key] for key in ("sampler", "spectrum", "errors")),
                    f"{case['without_errors']:.3e}",
                    f"{excess:.4e} ± {case['standard_error']:.0e}",
                    f"{case['predicted']:+.2%}",
                    f"{case['as_published']:+.1%}",
                ]
            )
    head = [
        "sampler",
        "spectrum",
        "errors",
        "squared W2 without",
        "excess, simulated",
        "predicted",
        "as published",
    ]
    text = (
        "# Correlated score errors\n\nWritten by `python -m benchmarks.score_errors`.\n\n"
        + table(head, rows)
        + "\n"
    )
    path = save("score_errors", {"pairs": PAIRS, "size": SIZE, "cases": cases})
    path.with_suffix(".md").write_text(text)
    print(text)
    print(f"written to {path} and .md")


if __name__ == "__main__":
    main()
