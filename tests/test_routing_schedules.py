"""What switching costs, predicted from recorded trajectories, and schedules that suit it."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from three_experts import COSINE, EXPERTS, MEANS, MIXTURE, WEIGHTS, flow, parts

import jaxkernels as jk
from jaxkernels import routing

T_MIN = 0.1


@pytest.fixture(scope="module")
def start() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((96, 2))


@pytest.fixture(scope="module")
def found(start: np.ndarray) -> routing.RoutingRecord:
    return routing.record_routing(
        EXPERTS, jnp.asarray(start), t_min=T_MIN, nodes=32, directions=2, batch=48, progress=False
    )


def test_switching_error_is_that_of_differences(start: np.ndarray, found: routing.RoutingRecord):
    """sum_k h_k^2 E sum_i pi_i |Phi b (m_i - m)|^2, Phi by differences along the flow."""
    times = np.linspace(1.0, T_MIN, 13) ** 1.2
    times[-1] = T_MIN
    step = 1e-4
    x = start
    expected = {"euler_maruyama": 0.0, "ddim": 0.0}
    for t, u in zip(times[:-1], times[1:], strict=True):
        pi, velocities = parts(x, t)
        deviation = velocities - np.einsum("qi,qid->qd", pi, velocities)[:, None]
        x = flow(x, t, u, 20)
        moved = x[:, None] + step * np.stack([deviation, -deviation])
        ends = flow(moved, u, T_MIN, 60) if u > T_MIN else moved
        pushed = (ends[0] - ends[1]) / (2 * step)
        cost = np.mean(np.sum(pi * np.sum(pushed**2, -1), -1))
        s_t, s_u = np.sin(np.pi / 2 * t), np.sin(np.pi / 2 * u)
        # of velocities for Euler's method, of denoised points for DDIM
        ddim = np.cos(np.pi / 2 * u) - np.cos(np.pi / 2 * t) * s_u / s_t
        expected["euler_maruyama"] += (t - u) ** 2 * cost
        expected["ddim"] += (ddim * s_t * 2 / np.pi) ** 2 * cost
    predict = jax.jit(lambda s: {name: found.switching_error(name, s) for name in expected})
    for sampler, predicted in predict(jk.Schedule(times)).items():
        assert float(predicted) == pytest.approx(expected[sampler], rel=2e-3)


def test_one_step_has_a_closed_form(found: routing.RoutingRecord):
    """At signal 0 the experts' denoised points are their means, whatever x."""
    between = WEIGHTS @ np.sum((MEANS - WEIGHTS @ MEANS) ** 2, 1)
    one = jk.Schedule([1.0, T_MIN])
    ddim = np.cos(np.pi / 2 * T_MIN) ** 2 * between
    assert float(found.switching_error("ddim", one)) == pytest.approx(ddim, rel=1e-6)
    euler = (0.9 * np.pi / 2) ** 2 * between
    assert float(found.switching_error("euler_maruyama", one)) == pytest.approx(euler, rel=1e-6)


@pytest.fixture(scope="module")
def split(start: np.ndarray) -> routing.RoutingRecord:
    """With the cost of two evaluations per step as well."""
    options = {"nodes": 32, "directions": 2, "batch": 48, "progress": False}
    return routing.record_routing(
        EXPERTS, jnp.asarray(start), t_min=T_MIN, evaluations=2, **options
    )


def test_more_evaluations_leave_the_variance_of_the_rest(
    found: routing.RoutingRecord, split: routing.RoutingRecord
):
    """In closed form from signal 0, where weights and denoised points are those of the mixture."""
    one = jk.Schedule([1.0, T_MIN])
    rest = WEIGHTS[1:]
    apart = MEANS[1:] - rest @ MEANS[1:] / rest.sum()
    expected = np.cos(np.pi / 2 * T_MIN) ** 2 * rest.sum() * rest @ np.sum(apart**2, 1)
    assert float(split.switching_error("ddim", one, 2)) == pytest.approx(expected, rel=1e-6)
    assert float(split.switching_error("ddim", one, [3])) == 0.0
    schedule = jk.Schedule(np.linspace(1.0, T_MIN, 7))
    single = [float(record.switching_error("ddim", schedule)) for record in (found, split)]
    assert single[0] == pytest.approx(single[1], rel=1e-9)
    total = [float(split.switching_error("ddim", schedule, m)) for m in (1, 2, 3)]
    assert total == sorted(total, reverse=True)


def test_evaluations_are_split_as_by_trying_all_ways(split: routing.RoutingRecord):
    schedule = jk.Schedule(np.linspace(1.0, T_MIN, 5))
    ways = list(itertools.product((1, 2, 3), repeat=4))
    errors = {way: float(split.switching_error("ddim", schedule, way)) for way in ways}
    for budget in (4, 6, 8, 12, 14):
        best = min(error for way, error in errors.items() if sum(way) <= budget)
        found = routing.split_evaluations(split, "ddim", schedule, budget)
        assert found.sum() <= budget
        assert errors[tuple(found.tolist())] == pytest.approx(best, rel=1e-9, abs=1e-15)


def test_records_refuse_evaluations_that_they_have_not(
    found: routing.RoutingRecord, split: routing.RoutingRecord
):
    schedule = jk.Schedule([1.0, 0.5, T_MIN])
    with pytest.raises(ValueError, match="evaluations = 2: at most 1 were recorded, or all 3"):
        found.switching_error("ddim", schedule, 2)
    with pytest.raises(ValueError, match="evaluations are of 3 steps, not 2"):
        split.mean_square_error("ddim", schedule, [1, 1, 1])
    objective = routing.RoutingError(split, [1, 2])
    with pytest.raises(ValueError, match="evaluations are of 2 steps, not 4"):
        objective.check_target(MIXTURE.gaussian(), COSINE, jk.DDIM(), 4)
    elsewhere = jk.Schedule([0.9, 0.5, T_MIN])
    noisy = jk.Schedule(schedule.times, 0.5)
    for other, message in ((elsewhere, "schedule runs from 0.9"), (noisy, "is stochastic")):
        with pytest.raises(ValueError, match=message):
            split.switching_error("ddim", other)
        with pytest.raises(ValueError, match=message):
            split.mean_square_error("ddim", other)
        with pytest.raises(ValueError, match=message):
            routing.split_evaluations(split, "ddim", other, 4)
    with pytest.raises(ValueError, match="budget = 1 must be at least 2"):
        routing.split_evaluations(split, "ddim", schedule, 1)
    with pytest.raises(ValueError, match="evaluations = 3 must be at most 2"):
        routing.record_routing(EXPERTS, jnp.ones((2, 2)), t_min=T_MIN, evaluations=3)


@pytest.mark.slow
def test_the_objective_adds_discretization_and_noise(
    start: np.ndarray, found: routing.RoutingRecord
):
    """Of many steps each is measured on the same trajectories; gradients by differences."""
    schedule = jk.Schedule(np.linspace(1.0, T_MIN, 41))
    predict = jax.jit(
        lambda schedule: (
            found.switching_error("euler_maruyama", schedule),
            found.mean_square_error("euler_maruyama", schedule),
        )
    )
    switching, total = (float(value) for value in predict(schedule))
    exact = flow(start, 1.0, T_MIN, 400)
    x = start
    for t, u in zip(schedule.times[:-1], schedule.times[1:], strict=True):
        x = x - float(t - u) * np.einsum("qi,qid->qd", *parts(x, float(t)))
    measured = np.mean(np.sum((x - exact) ** 2, 1))
    assert total - switching == pytest.approx(measured, rel=0.05)
    bound = routing.RoutingError(found).bind(None, COSINE, "euler_maruyama")
    times = jnp.linspace(1.0, T_MIN, 7)

    def value(t):
        return bound(jk.Schedule(jnp.concatenate([times[:3], t[None], times[4:]])))

    compiled = jax.jit(jax.value_and_grad(value))
    middle, gradient = compiled(times[3])
    assert float(middle) == pytest.approx(np.sqrt(float(predict(jk.Schedule(times))[1])), rel=1e-9)
    difference = (compiled(times[3] + 1e-5)[0] - compiled(times[3] - 1e-5)[0]) / 2e-5
    assert float(gradient) == pytest.approx(float(difference), rel=1e-6)


def test_options_that_do_not_fit(found: routing.RoutingRecord):
    objective = routing.RoutingError(found)
    with pytest.raises(ValueError, match="sampler DPMSolverPP2M has several evaluations"):
        objective.bind(None, COSINE, "dpmpp_2m")
    with pytest.raises(ValueError, match="sampler Heun has several evaluations"):
        found.switching_error("heun", jk.Schedule([1.0, T_MIN]))
    with pytest.raises(ValueError, match="record is of CosineVP"):
        objective.bind(None, jk.VP(), "ddim")
    with pytest.raises(ValueError, match="with t_min fixed"):
        objective.check(jk.DDIM(), True, False)


def test_records_of_another_type(found: routing.RoutingRecord, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="record must be a RoutingRecord"):
        routing.RoutingError(found.trajectories)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_the_optimum_lowers_the_measured_error():
    """Against the best baseline schedule, on noise that the record has not seen."""
    rng = np.random.default_rng(3)
    found = routing.record_routing(
        EXPERTS,
        jnp.asarray(rng.standard_normal((512, 2))),
        t_min=T_MIN,
        nodes=24,
        directions=2,
        batch=256,
        progress=False,
    )
    steps = 20
    result = jk.optimize_schedule(
        MIXTURE.gaussian(),
        COSINE,
        "euler_maruyama",
        steps,
        t_min=T_MIN,
        objective=routing.RoutingError(found),
        progress=False,
    )
    assert result.objective < min(result.baselines.values())
    best = min(result.baselines, key=lambda name: result.baselines[name])
    baseline = getattr(jk.schedules, best)(COSINE, steps, T_MIN)
    x = rng.standard_normal((40_000, 2))
    exact = flow(x, 1.0, T_MIN, 300)
    measured = []
    for schedule in (result.schedule, baseline):
        run = ("euler_maruyama", schedule, jnp.asarray(x))
        policy = routing.StochasticSwitching()
        points = routing.sample(EXPERTS, policy, *run, key=jax.random.key(0)).points
        measured.append(np.sum((np.asarray(points) - exact) ** 2, 1))
        predicted = float(found.mean_square_error("euler_maruyama", schedule))
        assert predicted == pytest.approx(measured[-1].mean(), rel=0.06)
    gain = measured[1] - measured[0]
    assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))


@pytest.mark.slow
def test_the_bound_is_an_objective():
    """Certified schedules: the bound's optimum is below that of all baseline schedules."""

    def certified(schedule):
        run = (COSINE, "ddim", schedule)
        return routing.routing_bound(*run, radius=1.0, norm=1.0, num_experts=2).value

    run = (jk.Gaussian(0.0, [1.0]), COSINE, "ddim", 4)
    result = jk.optimize_schedule(*run, t_min=0.5, objective=certified, progress=False)
    assert result.converged
    assert result.objective < min(result.baselines.values())
    assert result.objective == pytest.approx(float(certified(result.schedule)), rel=1e-6)
