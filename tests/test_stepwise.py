"""Derivatives of bounds step by step, against automatic differentiation of the whole."""

import logging
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import jaxkernels as jk
from jaxkernels._compile import quick_filter_jit, quick_jit
from jaxkernels._derivatives import dense_derivatives
from jaxkernels._objective import AbstractObjective
from jaxkernels._types import constant
from jaxkernels.bounds import BoundedSupport, CertifiedError, LipschitzBound, OperatorBound
from jaxkernels.optimize._space import JointProblem, ScheduleSpace
from jaxkernels.recurrence import Run, end_of, initial_state
from jaxkernels.schedules import TimeCoordinate
from jaxkernels.score_error import GivenCorrelation

TARGET = jk.Gaussian([0.3, -0.1], [2.0, 0.05])
VP = jk.VP()
STEPS = 5
PADDED = 16
T_MIN = 1e-3


class Case(NamedTuple):
    """A bound, a sampler and its process."""

    objective: OperatorBound | LipschitzBound
    sampler: str | jk.AbstractSampler
    process: jk.AbstractProcess = VP
    alpha: float = 0.0

    def bind(self):
        return self.objective.bind(TARGET, self.process, self.sampler)

    @property
    def coordinate(self) -> TimeCoordinate:
        return TimeCoordinate(
            self.process, np.asarray(self.process.t_max), np.zeros(()), np.asarray(np.inf)
        )

    def coordinates(self) -> Float[Array, " points"]:
        times = jk.schedules.log_snr(self.process, STEPS, T_MIN).times
        u = self.coordinate.coordinate(jnp.asarray(times))
        # away from the symmetric start
        return u.at[1:-1].add(0.1 * jnp.sin(jnp.arange(1.0, STEPS)))


def size(t: Array) -> Array:
    return 0.01 / (0.1 + t)


GIVEN = 0.5 ** np.abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS)))
CASES = {
    "ddim": Case(OperatorBound(size, to_data=True), "ddim"),
    "ddim with noise": Case(OperatorBound(size, to_data=True), "ddim", VP, 0.7),
    "without data": Case(OperatorBound(0.01), "dpmpp_2m"),
    "two steps": Case(OperatorBound(0.01, jk.AR1(0.5), to_data=True), "dpmpp_2m"),
    "three steps": Case(OperatorBound([0.1, 0.2, 0.3, 0.4, 0.5], jk.Banded(2)), "dpmpp_3m"),
    "corrected": Case(OperatorBound(size, to_data=True), "unipc"),
    "two evaluations": Case(OperatorBound(size, jk.Independent(), to_data=True), "heun"),
    "given correlation": Case(OperatorBound(size, GivenCorrelation(GIVEN)), "ddim"),
    "length of correlation": Case(OperatorBound(size, jk.OrnsteinUhlenbeck(2.0)), "ddim", jk.OU()),
    "Lipschitz": Case(LipschitzBound(size, 0.01, [0.1, 0.2, 0.3, 0.2, 0.1]), "ddim"),
    "Lipschitz and data": Case(LipschitzBound(size, 0.01, 0.1, to_data=True), "ddim"),
    "Lipschitz with noise": Case(LipschitzBound(size, 0.01, 0.1, to_data=True), "ddim", VP, 0.7),
    "support": Case(LipschitzBound(size, curvature=BoundedSupport(1.0)), "ddim"),
    "end": Case(LipschitzBound(size), jk.samplers.EndEvaluated(jk.DDIM()), VP),
}


def slow(*parameters: object):
    """Parameters of a test that takes long to compile."""
    return pytest.param(*parameters, marks=pytest.mark.slow)


SLOW = (
    "ddim with noise",
    "without data",
    "three steps",
    "two evaluations",
    "given correlation",
    "length of correlation",
    "Lipschitz",
    "Lipschitz with noise",
    "support",
    "end",
)


@pytest.mark.parametrize("name", [slow(name) if name in SLOW else name for name in CASES])
def test_derivatives_equal_those_of_the_whole(name: str) -> None:
    """The Hessian of the whole by automatic differentiation; ends and padding are still."""
    case = CASES[name]
    bound = case.bind()
    squared = np.full(STEPS, case.alpha**2)
    inner = bound.with_stochasticity(case.coordinate, T_MIN, STEPS, squared)
    u = case.coordinates()

    def whole(interior: Array) -> Array:
        times = case.coordinate.time(interior)
        times = jnp.concatenate([u.dtype.type(case.process.t_max)[None], times, jnp.array([T_MIN])])
        return bound(jk.Schedule.from_squared(times, jnp.asarray(squared)))

    expected = quick_jit(lambda u: dense_derivatives(whole, u))(u[1:-1])
    padded = jnp.pad(u, (0, PADDED - STEPS), mode="edge")
    found = quick_filter_jit(lambda w, u: w.derivatives(u, jnp.asarray(STEPS)))(inner, padded)
    value = quick_filter_jit(lambda w, u: w.value(u, jnp.asarray(STEPS)))(inner, padded)
    check(found, expected, np.arange(1, STEPS))
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)


@pytest.mark.parametrize("name", ["without data", slow("ddim"), slow("Lipschitz and data")])
def test_a_last_time_that_varies(name: str) -> None:
    """The last coordinate moves with the others, in the padding too."""
    case = CASES[name]
    bound = case.bind()
    inner = bound.with_stochasticity(case.coordinate, None, STEPS, np.zeros(STEPS))
    u = case.coordinates()

    def whole(moving: Array) -> Array:
        times = case.coordinate.time(moving)
        return bound(jk.Schedule(jnp.append(jnp.asarray(case.process.t_max), times)))

    expected = quick_jit(lambda u: dense_derivatives(whole, u))(u[1:])
    padded = jnp.pad(u, (0, PADDED - STEPS), mode="edge")
    found = quick_filter_jit(lambda w, u: w.derivatives(u, jnp.asarray(STEPS)))(inner, padded)
    check(found, expected, np.arange(1, STEPS + 1))


@pytest.mark.parametrize("name", ["ddim with noise", slow("Lipschitz with noise")])
def test_a_stochasticity_that_varies(name: str) -> None:
    """In the vectors of the solver: logits of step lengths, then log(1 + alpha^2)."""
    case = CASES[name]
    bound = case.bind()
    space = ScheduleSpace(
        case.coordinate, STEPS, None, constant(T_MIN), constant(np.zeros(2)), constant(1e-5)
    )
    joint = bound.in_times_and_stochasticity(case.coordinate, T_MIN, STEPS)
    problem = JointProblem.of(joint, space)
    times = jk.schedules.cosine(case.process, STEPS, T_MIN).times
    start = jk.Schedule(times, [0.3, 0.9, 1.2, 0.0, 0.5])
    z = jnp.asarray(problem.vectors(space, [start])[0])
    moving = np.flatnonzero(np.asarray(problem.lower) < np.asarray(problem.upper))

    def whole(moving: Array) -> Array:
        return jnp.log(bound(space.schedule(moving)))

    expected = quick_jit(lambda z: dense_derivatives(whole, z))(z[moving])
    found = quick_filter_jit(lambda problem, z: problem.derivatives(z))(problem, z)
    check(found, expected, moving)
    np.testing.assert_allclose(problem.value(z), expected[0], rtol=1e-12)
    back = problem.arrays(space, np.asarray(z)[None])
    np.testing.assert_allclose(back[0][0], start.times, rtol=1e-12)
    np.testing.assert_allclose(back[1][0], start.stochasticity_squared, atol=1e-12)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "heun"])
def test_moments_at_the_end_equal_those_of_the_recurrence(sampler: str) -> None:
    """By sensitivities, a pass back, and by moments, a pass forward."""
    times = jk.schedules.cosine(VP, STEPS, T_MIN).times
    schedule = jk.Schedule(times, 0.5 if sampler == "ddim" else 0.0)
    run = Run.checked(TARGET, VP, sampler, schedule)
    initial = run.initial_moments()
    state = initial_state(run.sampler, initial.mean[None], initial.covariance[None, None])
    end = end_of(run.response_maps(), state)
    expected = run.moments().last
    np.testing.assert_allclose(end.mean, expected.mean, rtol=1e-10)
    np.testing.assert_allclose(end.variance, expected.covariance, rtol=1e-10)


@pytest.mark.parametrize(
    ("objective", "sampler", "stochasticity"),
    [
        (OperatorBound(size, to_data=True), "dpmpp_2m", 0.0),
        (OperatorBound(size, to_data=True), "ddim", "optimize"),
        slow(LipschitzBound(size, 0.01, 0.1, to_data=True), "ddim", 0.0),
        slow(CertifiedError(score_error=size), "ddim", "optimize"),
        (CertifiedError("kl", score_error=size), "ddim", 1.0),
    ],
)
def test_one_program_serves_every_number_of_steps(
    caplog: pytest.LogCaptureFixture,
    objective: AbstractObjective,
    sampler: str,
    stochasticity: float | str,
) -> None:
    """Of a bucket, here up to 16 steps: solving, evaluating and warning compile nothing again."""

    programs = re.compile(r"Compiling jit\((newton|_\w*(values|facts))")
    # of a number of modes that no other test has
    target = jk.Gaussian(0.1, np.linspace(0.1, 2.0, 7))

    def compiled(num_steps: int) -> list[str]:
        caplog.clear()
        result = jk.optimize_schedule(
            *(target, VP, sampler, num_steps),
            t_min=T_MIN,
            objective=objective,
            stochasticity=stochasticity,
            progress=False,
        )
        assert result.converged
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if programs.match(line)]

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        assert len(compiled(9)) >= 2
        assert not compiled(10)


def check(
    found: tuple[Array, Array, Array], expected: tuple[Array, Array, Array], moving: np.ndarray
) -> None:
    """Value, gradient and Hessian in the variables that move, and 0 in the others."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    scale = np.abs(expected[1]).max()
    np.testing.assert_allclose(found[1][moving], expected[1], atol=1e-10 * scale)
    scale = np.abs(expected[2]).max()
    np.testing.assert_allclose(found[2][np.ix_(moving, moving)], expected[2], atol=1e-9 * scale)
    still = np.setdiff1d(np.arange(len(found[1])), moving)
    assert not np.any(found[1][still])
    assert not np.any(found[2][still])
    assert not np.any(found[2][:, still])
