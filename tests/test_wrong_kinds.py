"""Arguments of another kind are ValueErrors that name them, also without type checking."""

import types
from collections.abc import Callable
from typing import Any, ClassVar

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
NUMERAL: Any = "1"
WORDS: Any = ["a", "b"]
KEY: Any = 0
NUMBERED: Any = {1: SCHEDULE}
WRONG: dict[str, Any] = {
    "None": lambda s: None,
    "int": lambda s: 3,
    "float": lambda s: float(s.times[1]),
}
SETTING: Any = (TARGET, PROCESS, "ddim", 4)


class Unstated(jk.AbstractSampler):
    """A sampler without its class variables."""

    def step(self, predict: Any, noise: Any, process: Any, step: Any, x: Any, history: Any) -> Any:
        return x, history


class Alone(jk.AbstractSampler):
    """A sampler whose step forgets the history."""

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False

    def step(self, predict: Any, noise: Any, process: Any, step: Any, x: Any, history: Any) -> Any:
        return predict(x, step.time).x0


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
    "text as times": (
        lambda: jk.Schedule(["1.0", "0.5"]),
        "times must be an array of real numbers; got text",
    ),
    "booleans as times": (
        lambda: jk.Schedule(np.array([True, False])),
        "times must be an array of real numbers; got booleans",
    ),
    "a boolean among times": (
        lambda: jk.Schedule([True, 0.5]),
        "times must be an array of real numbers; got booleans",
    ),
    "objects as times": (
        lambda: jk.Schedule(np.array([1.0, "0.5"], object)),
        "times must be an array of real numbers; got text",
    ),
    "text as levels": (
        lambda: jk.Schedule.from_sigmas(PROCESS, WORDS),
        "sigmas must be an array of real numbers; got text",
    ),
    "text as a time": (
        lambda: jk.VP(t_max=NUMERAL),
        "t_max must be an array of real numbers; got text",
    ),
    "text as a last time": (
        lambda: jk.optimize_schedule(TARGET, PROCESS, "ddim", 4, t_min=NUMERAL),
        "t_min must be an array of real numbers; got text",
    ),
    "a boolean as a number": (
        lambda: jk.OU(rate=True),
        "rate must be an array of real numbers; got booleans",
    ),
    "key of samples": (lambda: TARGET.sample(KEY, 3), "key must be a random key .* got 0"),
    "key of a mixture": (lambda: MIXTURE.sample(KEY, 3), "key must be a random key .* got 0"),
    "keys of samples": (
        lambda: TARGET.sample(jax.random.split(jax.random.key(0), 2), 3),
        r"key must be a random key .* got an array of keys, .* \(2,\)",
    ),
    "untyped keys": (
        lambda: TARGET.sample(jnp.zeros((3, 2), jnp.uint32), 3),
        r"key must be a random key .* got an array of keys, .* \(3, 2\)",
    ),
    "numbers as a key": (lambda: TARGET.sample(jnp.zeros(2), 3), "key .* got an array of float"),
    "fewer than no samples": (lambda: TARGET.sample(jax.random.key(0), -1), "num = -1 must be at"),
    "half a sample": (lambda: MIXTURE.sample(jax.random.key(0), NUMBER), "num = 0.1 must be an"),
    "record's key": (
        lambda: jk.record(NETWORK, jnp.eye(2), t_min=1e-3, key=KEY),
        "key must be a random key .* got 0",
    ),
    "measurement's key": (
        lambda: jk.measure(NETWORK, np.ones((9, 2)), TIMES, key=KEY),
        "key must be a random key .* got 0",
    ),
    "selection's key": (lambda: jk.Selection(key=KEY), "key must be a random key .* got 0"),
    "comparison's key": (
        lambda: jk.compare_schedules(NETWORK, "ddim", {"mine": SCHEDULE}, jnp.eye(2), key=KEY),
        "key must be a random key .* got 0",
    ),
    "report's key": (
        lambda: jk.compare_samplers(NETWORK, ["ddim"], [3], jnp.eye(2), t_min=1e-3, key=KEY),
        "key must be a random key .* got 0",
    ),
    "a list of schedules to start from": (
        lambda: jk.optimize_schedule(TARGET, PROCESS, "ddim", 4, starts=[SCHEDULE]),
        r"starts\[0\] must be the name of a baseline; .* Got Schedule",
    ),
    "a number as the name of a start": (
        lambda: jk.optimize_schedule(TARGET, PROCESS, "ddim", 4, starts=NUMBERED),
        "starts has the name 1; names of schedules are strings",
    ),
    "a number of starts": (
        lambda: jk.optimize_schedule(TARGET, PROCESS, "ddim", 4, starts=NUMBER),
        "starts = 0.1 must be a list of names or a dict",
    ),
    "levels of a name": (lambda: SCHEDULE.sigmas(TEXT), "process must be a forward process"),
    "text as noise": (
        lambda: jk.sample(NETWORK, "ddim", SCHEDULE, TEXT),
        "noise must be an array of real numbers; got text",
    ),
    "a number as noise": (
        lambda: jk.sample(NETWORK, "ddim", SCHEDULE, jnp.ones(())),
        r"noise has shape \(\); it must be \(n, ...\) with n >= 1",
    ),
    "noise without a batch": (
        lambda: jk.record_denoised(NETWORK, jnp.ones(2), t_min=1e-3),
        r"noise has shape \(2,\); it must be \(n, ...\) with n >= 2",
    ),
    "no noise": (
        lambda: jk.sample(NETWORK, "ddim", SCHEDULE, jnp.ones((0, 2))),
        r"noise has shape \(0, 2\); it must be \(n, ...\) with n >= 1",
    ),
    "text as noise of a record": (
        lambda: jk.record(NETWORK, TEXT, t_min=1e-3),
        "noise must be an array of real numbers; got text",
    ),
    "empty noise of a comparison": (
        lambda: jk.compare_schedules(NETWORK, "ddim", {"mine": SCHEDULE}, jnp.ones((0, 2))),
        r"noise has shape \(0, 2\)",
    ),
    "a number as the name of a schedule": (
        lambda: jk.compare_schedules(NETWORK, "ddim", NUMBERED, jnp.eye(2)),
        "schedules has the name 1; names of schedules are strings",
    ),
    "a list of names of schedules": (
        lambda: jk.compare_samplers(
            NETWORK, ["ddim"], [3], jnp.eye(2), t_min=1e-3, schedules=WORDS
        ),
        r"schedules = \['a', 'b'\] must be \{name: function",
    ),
    "a sampler that states nothing": (
        lambda: jk.sample(NETWORK, Unstated(), SCHEDULE, jnp.eye(2)),
        "sampler: Unstated does not state order, nfe_per_step, stochastic",
    ),
    "a step of x alone": (
        lambda: jk.sample(NETWORK, Alone(), SCHEDULE, jnp.eye(2)),
        r"Alone.step must return \(x, history\); it returned",
    ),
    "an optimum of steps of x alone": (
        lambda: jk.optimize_schedule(TARGET, PROCESS, Alone(), 3, t_min=1e-3),
        r"Alone.step must return \(x, history\); it returned",
    ),
    "an objective of several numbers": (
        lambda: jk.optimize_schedule(*SETTING, objective=lambda s: s.times),
        r"objective must return a real scalar .* returned shape \(5,\) of float64",
    ),
    "an objective of nothing": (
        lambda: jk.optimize_schedule(*SETTING, objective=WRONG["None"]),
        "objective must return a real scalar .* returned NoneType",
    ),
    "an objective of an integer": (
        lambda: jk.optimize_schedule(*SETTING, objective=WRONG["int"]),
        r"objective must return a real scalar .* returned shape \(\) of int",
    ),
    "an objective in Python": (
        lambda: jk.optimize_schedule(*SETTING, objective=WRONG["float"]),
        "objective must return a real scalar .* raised ConcretizationTypeError",
    ),
    "an objective in NumPy": (
        lambda: jk.optimize_schedule(*SETTING, objective=lambda s: np.sum(np.asarray(s.times))),
        "objective must return a real scalar .* raised TracerArrayConversionError",
    ),
    "a negative objective": (
        lambda: jk.optimize_schedule(*SETTING, objective=lambda s: -jnp.sum(s.times)),
        r"objective is -.* must be finite and positive. A function .* exp\(f\) is positive",
    ),
    "an objective that is no number": (
        lambda: jk.optimize_schedule(*SETTING, objective=lambda s: jnp.nan * s.times[1]),
        "the objective is nan at its best start",
    ),
    "weights": (lambda: reverse_sde.training_weight(TEXT, 0.5), "process must be"),
}


@pytest.mark.parametrize("name", CALLS)
def test_another_kind_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()
