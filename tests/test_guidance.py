"""Classifier-free guidance is a known error of the score, with known consequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels.distributions import AbstractDistribution
from jaxkernels.score_error import Guidance

TARGET = jk.Gaussian([0.5, -0.3], [0.4, 0.05])
WIDER = jk.Gaussian([0.1, 0.2], [1.0, 0.3])
TURN = np.array([[0.6, -0.8], [0.8, 0.6]])


@pytest.mark.parametrize("basis", [None, TURN])
@pytest.mark.parametrize("process", [jk.VP(), jk.VE()])
def test_the_error_is_the_difference_of_two_scores(
    process: jk.AbstractProcess, basis: np.ndarray | None
) -> None:
    other = jk.Gaussian(WIDER.mean, WIDER.eigenvalues, basis=basis)
    times = jnp.array([0.8, 0.3, 0.01])
    error = Guidance(other)(TARGET, process, times)
    assert error.dense == (basis is not None)
    points = jax.random.normal(jax.random.key(0), (5, 2))
    for k, t in enumerate(times):
        here = jax.tree.map(lambda a, k=k: a[0, k], error)
        expected = TARGET.score(process, points, t) - other.score(process, points, t)
        np.testing.assert_allclose(here(points), expected, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_variance_of_guided_samples_in_the_limit_of_small_steps(scale: float) -> None:
    """The flow dx / dt = (w / (c + t) - (w - 1) / (u + t)) x / 2, t = sigma^2, is solved by hand.

    A mode of the difference of the means is driven by the same equation, so that centred data say
    all; the variance is that of the start times the square of the solution.
    """
    process = jk.VE()
    conditional = np.array([0.4, 0.05])
    unconditional = np.array([1.0, 0.3])
    target = jk.Gaussian([0.0, 0.0], conditional)
    error = jk.ScoreError.deterministic(Guidance(jk.Gaussian(0.0, unconditional)), scale - 1.0)
    schedule = jk.schedules.log_snr(process, 128, 1e-3)
    found = jk.evaluate_schedule(
        target, process, "rk4", schedule, score_error=error, initialization="marginal"
    )
    start, end = np.asarray(process.sigma(np.asarray(schedule.times)[[0, -1]])) ** 2
    shrunk = ((conditional + end) / (conditional + start)) ** scale
    grown = ((unconditional + start) / (unconditional + end)) ** (scale - 1.0)
    expected = (conditional + start) * shrunk * grown
    np.testing.assert_allclose(found.variance, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_schedule_for_guided_samples_is_another_one() -> None:
    """From a record of each scale: of the two optima each is the better one at its own scale."""
    process = jk.VP()
    noise = jax.random.normal(jax.random.key(0), (128, 2))
    fresh = jax.random.normal(jax.random.key(1), (512, 2))

    def guided(scale: float) -> jk.Denoiser:
        def score(x: jax.Array, t: jax.Array) -> jax.Array:
            own = TARGET.score(process, x, t)
            return own + (scale - 1.0) * (own - WIDER.score(process, x, t))

        return jk.Denoiser(score, process, "score")

    scales = (1.0, 4.0)
    best = {}
    for scale in scales:
        record = jk.record(guided(scale), noise, t_min=1e-3, progress=False)
        objective = jk.RecordedError(record)
        best[scale] = jk.optimize_schedule(
            TARGET, process, "ddim", 8, t_min=1e-3, objective=objective, progress=False
        ).schedule
    for scale in scales:
        many = jk.schedules.log_snr(process, 200, 1e-3)
        reference = jk.sample(guided(scale), "rk4", many, fresh)
        errors = {
            other: jnp.sqrt(
                jnp.mean((jk.sample(guided(scale), "ddim", schedule, fresh) - reference) ** 2)
            )
            for other, schedule in best.items()
        }
        wrong = scales[1 - scales.index(scale)]
        assert errors[scale] < 0.9 * errors[wrong]


@pytest.mark.parametrize(
    ("unconditional", "message"),
    [
        (jk.GaussianMixture([1.0], [[0.0]], [1.0]), "unconditional must be a Gaussian"),
        (jk.Gaussian([0.0, 0.0], [1.0, 0.5], basis=[[1.0], [0.0]]), "must be square"),
    ],
)
def test_wrong_distributions_are_named(unconditional: AbstractDistribution, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(unconditional)


def test_another_number_of_modes_is_named() -> None:
    error = jk.ScoreError.deterministic(Guidance(jk.Gaussian([0.0] * 3, [1.0] * 3)))
    schedule = jk.schedules.log_snr(jk.VP(), 4, 1e-3)
    with pytest.raises(ValueError, match="unconditional is given for 3 modes; the target has 2"):
        jk.evaluate_schedule(TARGET, jk.VP(), "ddim", schedule, score_error=error)
