"""Trajectories that decide, drawn with unequal chances, and what is decided on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels._progress import Progress
from jaxkernels.comparison import solve_reference
from jaxkernels.optimize._candidates import Candidate, Origin
from jaxkernels.optimize._decision import Decision, _draw

PROCESS = jk.VP()
T_MIN = 1e-3


@pytest.mark.parametrize(("n", "count"), [(12, 12), (12, 11), (40, 3), (200, 120)])
def test_rows_are_different_and_chances_add_up(n: int, count: int) -> None:
    """With sizes of many orders of magnitude, where some rows are sure."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = np.exp(3.0 * rng.standard_normal(n))
        rows, chances = _draw(sizes, count)
        assert len(np.unique(rows)) == count
        assert np.all((chances > 0.0) & (chances <= 1.0))
        # the largest are never left out for smaller ones that are sure
        sure = rows[chances == 1.0]
        assert np.all(np.isin(np.argsort(-sizes)[: len(sure)], sure))


def test_sums_are_unbiased() -> None:
    """Over 4000 random orders of the rows the weighted sum is that of all, within 4 deviations."""
    rng = np.random.default_rng(1)
    sizes = rng.exponential(size=30) ** 2
    values = sizes * rng.uniform(0.5, 1.5, 30)
    sums = []
    for _ in range(4000):
        order = rng.permutation(30)
        rows, chances = _draw(sizes[order], 6)
        sums.append(np.sum(values[order][rows] / chances))
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - values.sum()) < 4.0 * error
    # a plain draw of six rows varies more
    plain = [5.0 * np.sum(rng.choice(values, 6, replace=False)) for _ in range(4000)]
    assert np.std(sums) < 0.5 * np.std(plain)


def test_few_trajectories_see_the_large_errors() -> None:
    """Of 300 samples 3 % are far out and make up the root mean square; none is among the first 8.

    A schedule for the narrow samples has the lowest typical error and the largest mean square.
    The oracle are the errors of all samples.
    """
    variances = jnp.array([[0.01], [25.0]])
    denoiser = jk.GaussianMixture([0.97, 0.03], jnp.zeros((2, 1)), variances).denoiser(PROCESS)
    levels = [float(PROCESS.sigma(1.0)), 0.35, 0.2, 0.12, 0.06, 0.03, float(PROCESS.sigma(T_MIN))]
    schedules = {
        "narrow": jk.Schedule(PROCESS.time_at_sigma(np.array(levels))),
        "karras": jk.schedules.karras(PROCESS, 6, T_MIN),
        "quadratic": jk.schedules.quadratic(PROCESS, 6, T_MIN),
    }
    candidates = [Candidate(name, s, Origin.BASELINE) for name, s in schedules.items()]
    noise = np.random.default_rng(0).standard_normal((300, 1))
    with jax.enable_x64(True):
        reference = solve_reference(denoiser, jnp.asarray(noise), 200, (1.0, T_MIN))
        ends = {
            name: np.asarray(jk.sample(denoiser, "ddim", schedule, jnp.asarray(noise)))
            for name, schedule in schedules.items()
        }
        few = Decision.on_few(reference, 8)
        first = Decision(reference.take(slice(8)), np.full(8, 1.0 / 8.0))
        with Progress("deciding", enabled=False) as line:
            found, nfe = few.between(candidates, jk.samplers.DDIM(), line)
            missed, _ = first.between(candidates, jk.samplers.DDIM(), line)
    errors = {name: np.abs(samples - reference.ends) for name, samples in ends.items()}
    score = {n: np.mean(np.log(e)) + 0.5 * np.log(np.mean(e**2)) for n, e in errors.items()}
    assert found.label == min(score, key=score.__getitem__) == "quadratic"
    assert missed.label == "narrow"
    assert nfe == 3 * 6 * 8


def test_a_single_candidate_costs_nothing() -> None:
    denoiser = jk.Gaussian(0.0, [1.0, 0.1]).denoiser(PROCESS)
    noise = jax.random.normal(jax.random.key(0), (8, 2))
    reference = solve_reference(denoiser, noise, 20, (1.0, T_MIN))
    only = Candidate("karras", jk.schedules.karras(PROCESS, 6, T_MIN), Origin.BASELINE)
    with Progress("deciding", enabled=False) as line:
        decision = Decision.on_few(reference, 4)
        assert decision.between([only], jk.samplers.DDIM(), line) == (only, 0)
