"""Arguments of another kind are ValueErrors that name them, also without type checking."""

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels import reverse_sde
from jaxkernels.score_error import fit_separable

# of every type: these calls are wrong
TARGET: Any = jk.Gaussian(0.0, [2.0, 0.5])
MIXTURE: Any = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
PROCESS: Any = jk.VP()
SCHEDULE: Any = jk.schedules.log_snr(PROCESS, 4, 1e-3)
NETWORK: Any = TARGET.denoiser(PROCESS)
RUN: Any = (TARGET, PROCESS, "ddim", SCHEDULE)
ERROR: Any = jk.ScoreError.relative(0.1)
DENSE: Any = jk.ScoreError.dense(0.01 * np.ones((1, 2, 2)), np.zeros((1, 2)))
ZERO: Any = np.zeros((5, 2, 2, 2))
TIMES: Any = np.array([1.0, 0.5])
ESTIMATE = jk.ScoreErrorEstimate(TIMES, ZERO, ZERO, ZERO[0, 0])
HOLDER = types.SimpleNamespace(scheduler=types.SimpleNamespace(config={}))
NUMBER: Any = 0.1
TEXT: Any = "vp"

CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "kernel of a mixture": (
        lambda: jk.error_kernel(MIXTURE, PROCESS, "ddim", SCHEDULE),
        "target is a GaussianMixture",
    ),
    "kernel from a Gaussian": (
        lambda: jk.error_kernel(*RUN, initialization=TARGET),
        "initialization is a Gaussian",
    ),
    "known errors": (lambda: jk.error_kernel(*RUN, about=NUMBER), "about must be an AffineError"),
    "cost of a number": (lambda: jk.error_kernel(*RUN).contract(NUMBER), "score_error must be"),
    "cost of matrices": (lambda: jk.error_kernel(*RUN).contract(DENSE), "dense=True"),
    "curve": (lambda: jk.error_curve(TARGET, ERROR), "kernel must be"),
    "parts": (lambda: jk.kernel_parts(NUMBER, ERROR), "kernel must be"),
    "time modes": (lambda: jk.time_modes(NUMBER, ERROR), "kernel must be"),
    "evaluation": (lambda: jk.evaluate_schedule(*RUN, score_error=NUMBER), "score_error must be"),
    "evaluation of matrices": (
        lambda: jk.evaluate_schedule(*RUN, score_error=DENSE),
        "expected_error",
    ),
    "schedule for matrices": (
        lambda: jk.optimize_schedule(
            TARGET, PROCESS, "ddim", 4, t_min=1e-3, objective=jk.LocalError(score_error=DENSE)
        ),
        "use TerminalError",
    ),
    "expectation's key": (
        lambda: jk.expected_error(*RUN, score_error=ERROR, key=NUMBER),
        "key must be a random key",
    ),
    "sweep over one schedule": (
        lambda: jk.error_sweep(TARGET, PROCESS, "ddim", SCHEDULE, ERROR),
        "a list of one or more",
    ),
    "sweep of a number": (
        lambda: jk.error_sweep(TARGET, PROCESS, "ddim", [SCHEDULE], NUMBER),
        "must be a ScoreError",
    ),
    "sweep over numbers": (
        lambda: jk.error_sweep(TARGET, PROCESS, "ddim", [SCHEDULE], ERROR, correlations=[NUMBER]),
        "correlations must be",
    ),
    "correlation": (lambda: jk.ScoreError.relative(0.1, NUMBER), "correlation must be one"),
    "profile": (lambda: jk.ScoreError.deterministic(NUMBER), "profile must be one"),
    "separable": (lambda: jk.ScoreError.separable(np.eye(4), 2, NUMBER), "correlation must be"),
    "fit": (
        lambda: fit_separable(TEXT, [1.0, 0.5], np.einsum("ab,pq->apbq", np.eye(2), np.eye(4)), 2),
        "process must be",
    ),
    "estimate's kernel": (
        lambda: ESTIMATE.predict(TEXT),
        "kernel must be",
    ),
    "estimate's key": (
        lambda: jk.estimate_score_error(
            TARGET.denoiser(PROCESS), np.ones((9, 2)), [1.0], target=TARGET, key=NUMBER
        ),
        "key must be a random key",
    ),
    "change's key": (
        lambda: jk.predict_sample_change(
            NETWORK, NETWORK, "ddim", SCHEDULE, jnp.ones((2, 2)), key=NUMBER
        ),
        "key must be a random key",
    ),
    "diffusion of a mixture": (
        lambda: reverse_sde.optimize_diffusion(MIXTURE, 1.0, 1.0),
        "target is a GaussianMixture",
    ),
    "diffusion of a Gaussian": (
        lambda: reverse_sde.optimize_mixture_diffusion(TARGET, "score", 1.0),
        "target must be a GaussianMixture",
    ),
    "diffusion of a number": (
        lambda: reverse_sde.optimize_measured_diffusion(NUMBER, TARGET, PROCESS),
        "estimate must be",
    ),
    "distribution of a function": (
        lambda: reverse_sde.terminal_distribution(TARGET, [0.0, 1.0], 1.0, 0.1, TEXT),
        "relative must be",
    ),
    "order on a grid": (
        lambda: reverse_sde.leading_order_2d(TARGET, "score", 1.0, 1.0),
        "target must be a GaussianMixture",
    ),
    "order by paths": (
        lambda: reverse_sde.leading_order_samples(TARGET, "score", 1.0, 1.0, jax.random.key(0)),
        "target must be a GaussianMixture",
    ),
    "paths' key": (
        lambda: reverse_sde.leading_order_samples(MIXTURE, "score", 1.0, 1.0, NUMBER),
        "key must be a random key",
    ),
    "bound schedule": (
        lambda: jk.exports.bind(HOLDER, TEXT, PROCESS),
        "schedule must be a Schedule; got str",
    ),
    "exported schedule": (
        lambda: jk.export(TEXT, PROCESS, "edm"),
        "schedule must be a Schedule; got str",
    ),
    "ragged samples": (lambda: jk.Gaussian.fit([[1.0, 2.0], [3.0]]), "samples must be an array"),
    "masked samples": (
        lambda: jk.Gaussian.fit(np.ma.masked_greater([[1.0, 2.0], [3.0, 900.0]], 800.0)),
        "samples must be an array of real numbers; got masked entries",
    ),
    "dates": (
        lambda: jk.GaussianMixture.fit(np.array([["2020"], ["2021"]], "M8[Y]")),
        "samples must be an array of real numbers; got dates",
    ),
    "weights": (lambda: reverse_sde.training_weight(TEXT, 0.5), "process must be"),
}


@pytest.mark.parametrize("name", CALLS)
def test_another_kind_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()
