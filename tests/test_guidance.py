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
