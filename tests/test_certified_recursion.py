"""Derivatives of certificates step by step, and the best stochasticity of every step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels._derivatives import dense_derivatives
from jaxkernels.bounds import CertifiedError
from jaxkernels.optimize._space import FreeEndProblem, ScheduleSpace
from jaxkernels.schedules import TimeCoordinate

TARGET = jk.Gaussian(0.3, [2.0, 0.3, 0.01])
PROCESS = jk.VP()
COORDINATE = TimeCoordinate(PROCESS, PROCESS.t_max, np.zeros(()), np.asarray(np.inf))
T_MIN = 1e-3
STEPS = 5


def coordinates(padding: int) -> jax.Array:
    times = jk.schedules.log_snr(PROCESS, STEPS, T_MIN).times
    return jnp.pad(COORDINATE.coordinate(jnp.asarray(times)), (0, padding), mode="edge")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "sampler", "alpha"),
    [
        (CertifiedError(score_error=lambda t: 0.1 / (1.0 + t)), jk.DDIM(), 0.7),
        (CertifiedError("kl"), jk.DDIM(), 1.0),
        (CertifiedError(scheme="heun"), jk.Heun(), 0.0),
    ],
)
def test_derivatives_by_steps_equal_those_of_the_whole(
    objective: CertifiedError, sampler: jk.AbstractSampler, alpha: float
) -> None:
    """The Hessian of the whole by automatic differentiation; the ends and the padding are still."""
    bound = objective.bind(TARGET, PROCESS, sampler)
    squared = np.full(STEPS, alpha**2)
    inner = bound.with_stochasticity(COORDINATE, T_MIN, STEPS, squared)
    u = coordinates(3)

    def whole(interior: jax.Array) -> jax.Array:
        ends = jnp.asarray(PROCESS.t_max)[None], jnp.array([T_MIN])
        times = jnp.concatenate([ends[0], COORDINATE.time(interior), ends[1]])
        return bound(jk.Schedule.from_squared(times, jnp.asarray(squared)))

    expected = jax.jit(lambda interior: dense_derivatives(whole, interior))(u[1:STEPS])
    found = eqx.filter_jit(lambda w, u: w.derivatives(u, jnp.asarray(STEPS)))(inner, u)
    value = eqx.filter_jit(lambda w, u: w.value(u, jnp.asarray(STEPS)))(inner, u)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    scale = np.abs(expected[1]).max()
    np.testing.assert_allclose(found[1][1:STEPS], expected[1], rtol=1e-8, atol=1e-9 * scale)
    scale = np.abs(expected[2]).max()
    np.testing.assert_allclose(found[2][1:STEPS, 1:STEPS], expected[2], atol=1e-8 * scale)
    fixed = np.ones(len(u), bool)
    fixed[1:STEPS] = False
    assert not np.any(np.asarray(found[1])[fixed])
    assert not np.any(np.asarray(found[2])[fixed])


@pytest.mark.slow
def test_the_best_stochasticity_of_every_step() -> None:
    """No other one of 60 x 60 is better, and derivatives are those of the least bound.

    Finite differences of values and gradients, with steps that are short beside the kink's width.
    """
    bound = CertifiedError().bind(TARGET, PROCESS, jk.DDIM())
    inner = bound.with_stochasticity(COORDINATE, T_MIN, STEPS, None)
    u = coordinates(3)
    steps = jnp.asarray(STEPS)
    program = eqx.filter_jit(lambda w, u: (*w.derivatives(u, steps), w.value(u, steps)))
    value, slope, curvature, same = program(inner, u)
    squared = np.asarray(
        eqx.filter_jit(lambda w, u: w.stochasticity_squared(u, steps))(inner, u)[:STEPS]
    )
    assert value == pytest.approx(float(same), rel=1e-13)
    times = jk.schedules.log_snr(PROCESS, STEPS, T_MIN).times

    @jax.jit
    @jax.vmap
    def at(squared: jax.Array) -> jax.Array:
        return bound(jk.Schedule.from_squared(jnp.asarray(times), squared))

    assert value == pytest.approx(float(at(jnp.asarray(squared)[None])[0]), rel=1e-12)
    rng = np.random.default_rng(3)
    others = np.where(
        rng.random((3600, STEPS)) < 0.5,
        squared,
        np.expm1(rng.uniform(0.0, np.log(101.0), (3600, STEPS))),
    )
    assert np.min(np.asarray(at(jnp.asarray(others)))) >= float(value) * (1.0 - 1e-12)

    h = 1e-6
    moved = [program(inner, u.at[i].add(sign * h)) for i in range(1, STEPS) for sign in (1, -1)]
    for row, i in enumerate(range(1, STEPS)):
        above, below = moved[2 * row], moved[2 * row + 1]
        assert slope[i] == pytest.approx(float(above[0] - below[0]) / (2.0 * h), rel=1e-5)
        change = np.asarray(above[1] - below[1])[1:STEPS] / (2.0 * h)
        size = np.abs(np.asarray(curvature)).max()
        np.testing.assert_allclose(curvature[i, 1:STEPS], change, atol=1e-4 * size)


@pytest.mark.slow
def test_free_stochasticity_is_not_worse_than_any_fixed_one() -> None:
    """Twenty steps, where the best is with noise at first and without at last."""
    options = {"t_min": T_MIN, "objective": CertifiedError(), "progress": False}
    free = jk.optimize_schedule(TARGET, PROCESS, "ddim", 20, stochasticity="optimize", **options)
    assert free.converged
    for alpha in (0.0, 1.0):
        fixed = jk.optimize_schedule(TARGET, PROCESS, "ddim", 20, stochasticity=alpha, **options)
        assert free.objective < fixed.objective
    exact = jk.bounds.certified_bound(TARGET, PROCESS, "ddim", free.schedule).value
    assert float(exact) <= free.objective <= 1.02 * float(exact)
    assert len(free.starts) == len(set(free.starts)) == len(free.solution.values)


def test_a_free_last_time_has_derivatives_step_by_step() -> None:
    """Times, stochasticity and end together, against the objective of the whole schedule."""
    space = ScheduleSpace(
        COORDINATE,
        3,
        jnp.full(3, 0.49),
        None,
        jnp.array([-6.0, -2.0]),
        jnp.asarray(1e-4),
    )
    bound = CertifiedError().bind(TARGET, PROCESS, jk.DDIM())
    inner = bound.with_stochasticity(COORDINATE, None, 3, np.full(3, 0.49))
    assert inner is not None
    problem = FreeEndProblem.of(inner, space)
    schedule = jk.Schedule(jk.schedules.log_snr(PROCESS, 3, 3e-3).times, 0.7)
    z = jnp.asarray(problem.vectors(space, [schedule])[0])
    varied = np.array([0, 1, len(z) - 1])

    def whole(x: jax.Array) -> jax.Array:
        return jnp.log(bound(space.schedule(x)))

    expected = jax.jit(lambda x: dense_derivatives(whole, x))(z[varied])
    value, slope, curvature = eqx.filter_jit(lambda p, z: p.derivatives(z))(problem, z)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(slope[varied], expected[1], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(curvature[np.ix_(varied, varied)], expected[2], atol=1e-8)
    times, squared = problem.arrays(space, np.asarray(z)[None])
    np.testing.assert_allclose(times[0], schedule.times, rtol=1e-9)
    np.testing.assert_allclose(squared, 0.49, rtol=1e-12)


@pytest.mark.slow
def test_the_best_last_time_is_that_of_the_fixed_ones() -> None:
    """Inside its range no fixed last time is better, and the same one is as good."""
    options = {"objective": CertifiedError(), "progress": False, "stochasticity": 1.0}
    run = (TARGET, PROCESS, "ddim", 20)
    free = jk.optimize_schedule(*run, t_min=(1e-5, 0.1), **options)
    assert free.converged
    last = float(free.schedule.times[-1])
    assert 1e-5 < last < 0.1
    fixed = {
        factor: jk.optimize_schedule(*run, t_min=factor * last, **options).objective
        for factor in (0.5, 1.0, 2.0)
    }
    assert fixed[1.0] == pytest.approx(free.objective, rel=1e-8)
    assert min(fixed[0.5], fixed[2.0]) > free.objective
