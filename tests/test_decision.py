"""Trajectories that decide, drawn with unequal chances, and what is decided on them."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels._progress import Progress
from jaxkernels.comparison import solve_reference
from jaxkernels.optimize._candidates import Candidate, Origin
from jaxkernels.optimize._decision import Decision, _draw, _share_of_candidates

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
        first = Decision(reference.take(slice(8)), np.arange(8), np.full(8, 1.0 / 8.0))
        run = (candidates, jk.samplers.DDIM(), _says_nothing(schedules, 300))
        with Progress("deciding", enabled=False) as line:
            found, nfe = few.between(*run, line)
            missed, _ = first.between(*run, line)
    errors = {name: np.abs(samples - reference.ends) for name, samples in ends.items()}
    score = {n: np.mean(np.log(e)) + 0.5 * np.log(np.mean(e**2)) for n, e in errors.items()}
    assert found.label == min(score, key=score.__getitem__) == "quadratic"
    assert missed.label == "narrow"
    assert nfe == 3 * 6 * 8


def _says_nothing(names: Iterable[str], count: int) -> jk.Comparison:
    """What a model predicts for which all schedules are alike."""
    names = tuple(names)
    alike = np.ones((len(names), count))
    return jk.Comparison(names, alike, alike[..., None], np.zeros((count, 1)), 0.0)


def _regrets(ratio: float) -> tuple[float, float, float]:
    """How much worse than the best is what is decided with a model, without it, and by it alone.

    The mean over 60 draws of four trajectories, of the score that all 200 have. The model has the
    network's data with the variances multiplied.
    """
    variances = np.array([[1.0, 0.05], [0.05, 1.0]])
    network, model = (
        jk.GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.3]], scale * variances)
        for scale in (1.0, ratio)
    )
    shares = np.linspace(1.0, 0.0, 9)
    schedules = {
        f"power {power}": jk.Schedule(T_MIN + (1.0 - T_MIN) * shares**power)
        for power in (1.2, 1.5, 1.8, 2.1, 2.4)
    }
    candidates = [Candidate(name, s, Origin.BASELINE) for name, s in schedules.items()]
    with jax.enable_x64(True):
        noise = jnp.asarray(np.random.default_rng(0).standard_normal((200, 2)))
        run = (200, (1.0, T_MIN))
        reference = solve_reference(network.denoiser(PROCESS), noise, *run)
        exact = jk.compare_schedules(network.denoiser(PROCESS), "ddim", schedules, noise)
        predicted = jk.compare_schedules(model.denoiser(PROCESS), "ddim", schedules, noise)
        truth, modelled = (
            np.mean(np.log(found.errors), 1) + 0.5 * np.log(np.mean(found.errors**2, 1))
            for found in (exact, predicted)
        )
        scores = dict(zip(exact.names, truth - truth.min(), strict=True))
        regrets = []
        rng = np.random.default_rng(1)
        for _ in range(60):
            rows = np.sort(rng.choice(200, 4, replace=False))
            decision = Decision(reference.take(rows), rows, np.full(4, 0.25))
            for known in (predicted, _says_nothing(schedules, 200)):
                with Progress("deciding", enabled=False) as line:
                    found, _ = decision.between(candidates, jk.samplers.DDIM(), known, line)
                regrets.append(scores[found.label])
    with_model, alone = np.reshape(regrets, (-1, 2)).mean(0)
    return float(with_model), float(alone), scores[exact.names[int(np.argmin(modelled))]]


def test_a_model_helps_few_trajectories() -> None:
    """What four trajectories lose on average a model that is nearly right more than halves.

    One that is wrong, with five times the variances, loses less than its own word would.
    """
    with_model, alone, _ = _regrets(1.05)
    assert with_model < 0.5 * alone
    with_model, _, of_model = _regrets(5.0)
    assert with_model < of_model


def test_shrinking_costs_less_than_all_or_nothing() -> None:
    """For row effects of any size, on tables with effects of columns and scatter of size 1.

    The mean squared error of the shrunk effects, over 3000 tables, beside that of the plain means
    and of zero: never far above the smaller one, and below both where they are alike.
    """
    rng = np.random.default_rng(0)
    candidates, count = 9, 4
    for size in (0.0, 0.1, 0.5, 2.0):
        squares = []
        for _ in range(3000):
            effects = size * rng.standard_normal(candidates)
            effects -= effects.mean()
            columns = 3.0 * rng.standard_normal(count)
            table = effects[:, None] + columns + rng.standard_normal((candidates, count))
            plain = table.mean(1) - table.mean()
            shrunk = _share_of_candidates(table) * plain
            squares.append([np.sum((x - effects) ** 2) for x in (shrunk, plain, 0.0 * plain)])
        shrunk, plain, nothing = np.mean(squares, 0)
        assert shrunk < min(plain, nothing) + 0.2 * plain
        if size == 0.5:
            assert shrunk < 0.8 * min(plain, nothing)
    assert _share_of_candidates(np.zeros((3, 4))) == 0.0
    assert _share_of_candidates(np.arange(3.0)[:, None] * np.ones(4)) == 1.0


def test_a_single_candidate_costs_nothing() -> None:
    denoiser = jk.Gaussian(0.0, [1.0, 0.1]).denoiser(PROCESS)
    noise = jax.random.normal(jax.random.key(0), (8, 2))
    reference = solve_reference(denoiser, noise, 20, (1.0, T_MIN))
    only = Candidate("karras", jk.schedules.karras(PROCESS, 6, T_MIN), Origin.BASELINE)
    with Progress("deciding", enabled=False) as line:
        decision = Decision.on_few(reference, 4)
        predicted = _says_nothing(["karras"], 8)
        run = ([only], jk.samplers.DDIM(), predicted, line)
        assert decision.between(*run) == (only, 0)
