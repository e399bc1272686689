"""Experts, their routing weights, and samplers that follow some of them."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from three_experts import COSINE, EXPERTS, MEANS, MIXTURE, VARIANCE, WEIGHTS, flow, parts

import jaxkernels as jk
from jaxkernels import routing

# high precision for oracles: 80 bits, so that differences of it are good to 1e-10
LONG = np.longdouble
PROCESSES = {
    "cosine": COSINE,
    "vp": jk.VP(),
    "flow": jk.FlowMatching(),
    "edm": jk.EDM(),
}
CLEAN = routing.Experts.of_mixture(MIXTURE, COSINE)


class Rates(NamedTuple):
    """Signal and noise of a process with their rates, in long double."""

    a: Any
    s: Any
    a_rate: Any
    s_rate: Any


def _rates(name: str, time: float) -> Rates:
    """Closed forms, written here once more."""
    t: Any = LONG(time)
    if name == "cosine":
        angle = LONG(np.pi) / 2 * t
        rate = LONG(np.pi) / 2
        return Rates(np.cos(angle), np.sin(angle), -rate * np.sin(angle), rate * np.cos(angle))
    if name == "vp":
        total = LONG(0.1) * t + LONG(19.9) * t * t / 2
        a = np.exp(-total / 2)
        s = np.sqrt(-np.expm1(-total))
        beta = LONG(0.1) + LONG(19.9) * t
        return Rates(a, s, -beta / 2 * a, beta / 2 * a * a / s)
    if name == "flow":
        return Rates(1 - t, t, LONG(-1), LONG(1))
    return Rates(LONG(1), t, LONG(0), LONG(1))


def _cluster_oracle(
    clusters: list[np.ndarray], rates: Rates, x: np.ndarray, along: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Weights, time derivatives along a velocity (None: the flow) and gradients, point by point.

    d log N(x; a x_j, s^2 I) / dt = eps_j . (v_j - u) / s - d s'/s,  v_j = a' x_j + s' eps_j

    and the size of the terms that the derivatives are sums of.
    """
    points = np.concatenate(clusters).astype(LONG)
    owner = np.repeat(np.arange(len(clusters)), [len(c) for c in clusters])
    x = x.astype(LONG)
    eps = (x - rates.a * points) / rates.s
    logs = -np.sum(eps**2, 1) / 2
    r = np.exp(logs - logs.max())
    r /= r.sum()
    velocity = rates.a_rate * points + rates.s_rate * eps
    u = r @ velocity if along is None else along.astype(LONG)
    psi = np.sum(eps * (velocity - u), 1) / rates.s
    pi = np.array([r[owner == i].sum() for i in range(len(clusters))])
    # r_j (psi_j - <psi>), with the difference taken before the sum
    change = r * (psi - r @ psi)
    mean = r @ points
    pulled = r[:, None] * (points - mean) * rates.a / rates.s**2
    derivative = np.array([change[owner == i].sum() for i in range(len(clusters))])
    gradient = np.stack([pulled[owner == i].sum(0) for i in range(len(clusters))])
    # float64 knows the exponents to a few digits less where they are large
    scale = np.sum(np.abs(change)) + 1e-4 * (r @ np.abs(psi))
    return pi, derivative, gradient, float(scale)


RNG = np.random.default_rng(0)
CLUSTERS = [RNG.normal(size=(n, 3)) * 0.5 + RNG.normal(size=3) for n in (7, 1, 12)]


@pytest.mark.parametrize("name", PROCESSES)
def test_weights_of_clusters_and_their_derivatives(name: str):
    """Near a data point, between the clusters and far away; readings (A), (B) and (C)."""
    experts = routing.Experts.of_clusters(CLUSTERS, PROCESSES[name])
    z = np.random.default_rng(1).normal(size=(4, 3))
    middle = (CLUSTERS[0][0] + CLUSTERS[1][0]) / 2

    @jax.jit
    def everything(x, t, forward):
        flow = experts.velocity(x, t)
        readings = jnp.stack([jnp.zeros_like(x), forward, flow])
        rates = jax.vmap(lambda velocity: experts.weight_rates(x, t, velocity))(readings)
        return experts.weights(x, t), experts.weight_gradients(x, t), rates

    for t in (1e-3, 0.05, 0.4, 0.9):
        rates = _rates(name, t)
        a, s, a_rate, s_rate = (float(value) for value in rates)
        x = np.stack([a * CLUSTERS[2][3], a * middle, 30.0 * z[0], a * middle]) + s * z
        # the path of one noised data point
        forward = a_rate * CLUSTERS[0][0] + s_rate * z
        weights, gradients, found = (np.asarray(array) for array in everything(x, t, forward))
        for row, reading in itertools.product(range(len(x)), range(3)):
            along = (np.zeros(3), forward[row], None)[reading]
            pi, derivative, gradient, scale = _cluster_oracle(CLUSTERS, rates, x[row], along)
            np.testing.assert_allclose(weights[row], pi.astype(float), rtol=1e-8, atol=1e-8)
            error = np.abs(found[reading, row] - derivative.astype(float)).max()
            assert error <= 1e-8 * scale, (t, row, reading)
            assert abs(found[reading, row].sum()) <= 1e-8 * scale
            np.testing.assert_allclose(
                gradients[row], gradient.astype(float), rtol=1e-8, atol=1e-8 * a / s**2
            )


def test_weights_of_clusters_at_no_noise_are_those_of_the_nearest_point():
    experts = routing.Experts.of_clusters(CLUSTERS, jk.FlowMatching())
    x = jnp.asarray(CLUSTERS[2][:1] + 1e-3)
    found = jax.jit(lambda x: (experts.weights(x, 0.0), experts(x, 0.0).x0))(x)
    assert found[0].tolist() == [[0.0, 0.0, 1.0]]
    np.testing.assert_allclose(found[1], CLUSTERS[2][:1])
    assert np.all(np.isfinite(jax.jit(lambda x: experts.weight_gradients(x, 0.0))(x)))


def test_the_mean_of_forward_rates_is_the_rate_along_the_flow():
    """E[(B) | x] = (C): the posterior average over data points of the rate on their paths."""
    process = jk.FlowMatching()
    experts = routing.Experts.of_clusters(CLUSTERS, process)
    t = 0.3
    x = np.random.default_rng(3).normal(size=(5, 3))
    points = np.concatenate(CLUSTERS)
    logs = -np.sum((x[:, None] - (1 - t) * points) ** 2, -1) / (2 * t**2)
    r = np.exp(logs - logs.max(1, keepdims=True))
    r /= r.sum(1, keepdims=True)
    paths = -points + (x[:, None] - (1 - t) * points) / t

    @jax.jit
    def rates(x, paths):
        each = jax.vmap(lambda u: experts.weight_rates(x, t, u), 1)(paths)
        return each, experts.weight_rates(x, t, experts.velocity(x, t))

    each, flow = rates(x, paths)
    mean = np.einsum("qj,jqi->qi", r, each)
    np.testing.assert_allclose(mean, flow, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_weights_of_a_mixture_and_their_derivatives(name: str):
    """Against d log p_i = -div v_i + score_i . (u - v_i), and differences in long double."""
    rng = np.random.default_rng(2)
    roots = rng.normal(size=(3, 2, 2))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(2)
    mixture = jk.GaussianMixture(WEIGHTS, 2.0 * MEANS, covariances)
    experts = routing.Experts.of_mixture(mixture, PROCESSES[name])
    x = np.concatenate([rng.normal(size=(4, 2)), 40.0 * rng.normal(size=(1, 2))])

    @jax.jit
    def everything(x, t):
        u = experts.velocity(x, t)
        gradients = experts.weight_gradients(x, t)
        return u, experts.weight_rates(x, t, u), experts.weights(x, t), gradients

    for t in (1e-3, 0.3, 0.9):
        rates = _rates(name, t)
        u, found, weights, gradients = (np.asarray(array) for array in everything(x, t))
        a, s, a_rate, s_rate = (float(value) for value in rates)
        noised = a**2 * covariances + s**2 * np.eye(2)
        moving = 2.0 * (a * a_rate * covariances + s * s_rate * np.eye(2))
        z = x[:, None] - a * 2.0 * MEANS
        y = np.einsum("mij,qmj->qmi", np.linalg.inv(noised), z)
        logs = np.log(WEIGHTS) - 0.5 * np.linalg.slogdet(noised)[1]
        logs = logs - 0.5 * np.sum(y * z, -1)
        pi = np.exp(logs - logs.max(1, keepdims=True))
        pi /= pi.sum(1, keepdims=True)
        rate = -0.5 * np.trace(np.linalg.solve(noised, moving), axis1=1, axis2=2)
        rate = rate + np.sum(y * (a_rate * 2.0 * MEANS - u[:, None]), -1)
        rate = rate + 0.5 * np.einsum("qmi,mij,qmj->qm", y, moving, y)
        expected = pi * (rate - np.sum(pi * rate, 1, keepdims=True))
        np.testing.assert_allclose(weights, pi, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(rate).max())
        pull = pi[..., None] * (np.einsum("qm,qmi->qi", pi, y)[:, None] - y)
        np.testing.assert_allclose(gradients, pull, rtol=1e-8, atol=1e-10)


def test_rates_of_any_router_are_differences_along_the_path():
    def router(x, t):
        return jnp.stack([jnp.sin(x[:, 0] + t), x[:, 1] * t, jnp.cos(3.0 * t) + 0.0 * x[:, 0]], -1)

    parts = [jk.Denoiser(lambda x, t: -x, jk.VP(), "score")] * 3
    experts = routing.Experts(parts, router)
    x = np.random.default_rng(4).normal(size=(6, 2))
    u = np.random.default_rng(5).normal(size=(6, 2))
    h = 1e-5
    ahead = experts.weights(jnp.asarray(x + h * u), 0.4 + h)
    back = experts.weights(jnp.asarray(x - h * u), 0.4 - h)
    found = experts.weight_rates(jnp.asarray(x), 0.4, jnp.asarray(u))
    np.testing.assert_allclose(found, (ahead - back) / (2 * h), atol=1e-9)


def test_rates_of_log_weights_are_differences_along_the_path():
    """And 0 for an expert without weight."""

    def router(x, t):
        return jnp.stack([jnp.sin(x[:, 0] + t), x[:, 1] * t, jnp.full(len(x), -jnp.inf)], -1)

    experts = routing.Experts([jk.Denoiser(lambda x, t: -x, jk.VP(), "score")] * 3, router)
    x = np.random.default_rng(4).normal(size=(6, 2))
    u = np.random.default_rng(5).normal(size=(6, 2))
    found = experts.log_weight_rates(jnp.asarray(x), 0.4, jnp.asarray(u))
    h = 1e-5

    def log_weights(x, t):
        logs = np.stack([np.sin(x[:, 0] + t), x[:, 1] * t], -1)
        return logs - np.log(np.sum(np.exp(logs), -1, keepdims=True))

    difference = (log_weights(x + h * u, 0.4 + h) - log_weights(x - h * u, 0.4 - h)) / (2 * h)
    np.testing.assert_allclose(found[:, :2], difference, atol=1e-9)
    assert np.all(np.asarray(found[:, 2]) == 0.0)


def test_experts_of_a_mixture_are_its_exact_denoiser():
    x = np.random.default_rng(6).normal(size=(9, 2))
    exact = MIXTURE.denoiser(COSINE)

    @jax.jit
    def everything(x, t):
        variance = CLEAN.routing_variance(x, t)
        return CLEAN(x, t), exact(x, t), CLEAN.velocity(x, t), CLEAN.weights(x, t), variance

    for t in (1e-3, 0.3, 1.0):
        found, expected, velocity, weights, variance = everything(jnp.asarray(x), t)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
        pi, velocities = parts(x, t)
        mean = np.einsum("qi,qid->qd", pi, velocities)
        np.testing.assert_allclose(weights, pi, rtol=1e-9)
        np.testing.assert_allclose(velocity, mean, atol=1e-9)
        squares = np.einsum("qi,qid->q", pi, velocities**2) - np.sum(mean**2, 1)
        np.testing.assert_allclose(variance, squares, atol=1e-9)


def test_memory_of_many_points_is_bounded():
    """1e5 points and 1e3 queries would be 800 MB in one matrix; a compiled program says its own."""
    points = np.random.default_rng(8).normal(size=(100_000, 8))
    experts = routing.Experts.of_clusters([points[:60_000], points[60_000:]], jk.VP())
    x = jax.ShapeDtypeStruct((1000, 8), jnp.float64)

    def everything(experts, x):
        velocity = experts.velocity(x, 0.3)
        return experts.weights(x, 0.3), experts.weight_rates(x, 0.3, velocity), velocity

    def slope(experts, x):
        return jax.grad(lambda x: jnp.sum(experts.velocity(x, 0.3) ** 2))(x)

    for fn in (everything, slope):
        memory: Any = jax.jit(fn).lower(experts, x).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.5 * 2**30


def _clean_start(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2))


def _oracle_run(x: np.ndarray, times: np.ndarray, follow: Any) -> np.ndarray:
    """Euler's method with the experts' coefficients (batch, N) that follow(pi) gives."""
    for t, u in zip(times[:-1], times[1:], strict=True):
        pi, velocities = parts(x, t)
        x = x - (t - u) * np.einsum("qi,qid->qd", follow(pi), velocities)
    return x


class GivenDraws(routing.AbstractPolicy):
    """Switching with uniform numbers that are given for every step: a user-defined policy."""

    uniform: Any

    @property
    def draws(self) -> bool:
        return False

    def init_state(self, weights):
        return jnp.zeros((), int)

    def num_evaluations(self, num_experts: int) -> int:
        return 1

    def select(self, weights, key, state):
        u = jnp.asarray(self.uniform)[state]
        below = jnp.cumsum(weights, -1)[:, :-1] < u[:, None]
        expert = jnp.sum(below, -1)
        return (expert[:, None], jnp.ones((len(u), 1), weights.dtype)), state + 1


def _switched(rng_uniform: Any) -> Any:
    """Coefficients of the expert that the next uniform numbers draw."""

    def follow(pi: np.ndarray) -> np.ndarray:
        expert = np.sum(np.cumsum(pi, 1)[:, :-1] < next(rng_uniform)[:, None], 1)
        return np.eye(3)[expert]

    return follow


def _in_debt(count: int) -> Any:
    debt = np.zeros((count, 3))

    def follow(pi: np.ndarray) -> np.ndarray:
        nonlocal debt
        debt = debt + pi
        paid = np.eye(3)[np.argmax(debt, 1)]
        debt = debt - paid
        return paid

    return follow


def _largest(k: int) -> Any:
    def follow(pi: np.ndarray) -> np.ndarray:
        kept = np.where(pi >= np.sort(pi, 1)[:, [-k]], pi, 0.0)
        return kept / kept.sum(1, keepdims=True)

    return follow


def _uniform_schedule(steps: int, t_min: float = 0.1) -> jk.Schedule:
    return jk.Schedule(np.linspace(1.0, t_min, steps + 1))


def test_policies_follow_the_experts_that_they_name():
    """Against NumPy, step by step; the coefficients and the counts of evaluations with it."""
    x = _clean_start(500, 0)
    uniform = np.random.default_rng(1).random((20, 500))
    cases = [
        (routing.SoftRouting(), lambda pi: pi, 3),
        (GivenDraws(uniform), _switched(iter(uniform)), 1),
        (routing.ErrorFeedback(), _in_debt(500), 1),
        (routing.TopK(1), _largest(1), 1),
        (routing.TopK(2), _largest(2), 2),
    ]
    for policy, follow, nfe in cases:
        schedule = _uniform_schedule(20)
        found = routing.sample(EXPERTS, policy, "euler_maruyama", schedule, jnp.asarray(x))
        seen = []

        def counted(pi, follow=follow, seen=seen):
            coefficients = follow(pi)
            seen.append((coefficients > 0).sum(0))
            return coefficients

        expected = _oracle_run(x, np.asarray(schedule.times), counted)
        np.testing.assert_allclose(found.points, expected, atol=1e-9)
        np.testing.assert_array_equal(found.evaluations, seen)
        assert found.nfe == 20 * nfe
        assert found.load.sum() == pytest.approx(1.0)
        assert found.router_calls == 20 * 500


def test_drawn_policies_are_right_on_average():
    """One step from one point: frequencies of switching, and the mean with one of the rest."""
    x = np.tile([[0.3, -0.2]], (20_000, 1))
    schedule = jk.Schedule([0.4, 0.3])
    pi, velocities = parts(x[:1], 0.4)
    mean = x[0] - 0.1 * pi[0] @ velocities[0]
    key = jax.random.key(0)
    for policy, nfe in ((routing.StochasticSwitching(), 1), (routing.TopK(1, rest=True), 2)):
        found = routing.sample(EXPERTS, policy, "euler_maruyama", schedule, jnp.asarray(x), key=key)
        points = np.asarray(found.points)
        error = points.std(0) / np.sqrt(len(points))
        # along one axis two of the experts agree
        assert np.all(np.abs(points.mean(0) - mean) < 4 * error + 1e-12), policy
        assert found.nfe == nfe
        if nfe == 1:
            deviation = np.sqrt(pi[0] * (1 - pi[0]) / len(points))
            assert np.all(np.abs(np.asarray(found.load) - pi[0]) < 4 * deviation)
        else:
            # the largest is always run, and the variance is that of the rest alone
            assert found.evaluations[0, np.argmax(pi[0])] == len(points)


def _integrated(x: np.ndarray, times: np.ndarray, follow: Any) -> np.ndarray:
    """Euler's method for points and log weights together, rates by differences along the step."""
    logs = np.log(parts(x, times[0])[0])
    for t, u in zip(times[:-1], times[1:], strict=True):
        pi = np.exp(logs)
        velocity = np.einsum("qi,qid->qd", follow(pi), parts(x, t)[1])
        step = 1e-6
        ahead, back = (np.log(parts(x + h * velocity, t + h)[0]) for h in (step, -step))
        logs = logs + (u - t) * (ahead - back) / (2 * step)
        logs = logs - np.log(np.sum(np.exp(logs), -1, keepdims=True))
        x = x + (u - t) * velocity
    return x


def test_integrated_weights_follow_their_derivative():
    """Against NumPy, for all experts, for one drawn, and for one by its debt."""
    x = _clean_start(300, 0)
    schedule = _uniform_schedule(12)
    times = np.asarray(schedule.times)
    uniform = np.random.default_rng(1).random((12, 300))
    cases = [
        (routing.SoftRouting(), lambda pi: pi),
        (GivenDraws(uniform), _switched(iter(uniform))),
        (routing.ErrorFeedback(), _in_debt(300)),
    ]
    for policy, follow in cases:
        run = (EXPERTS, policy, "euler_maruyama", schedule, jnp.asarray(x))
        found = routing.sample(*run, log_rates=EXPERTS.log_weight_rates)
        np.testing.assert_allclose(found.points, _integrated(x, times, follow), atol=1e-6)
        assert found.router_calls == 12 * 300
        exact = routing.sample(*run)
        assert np.max(np.abs(np.asarray(exact.points) - np.asarray(found.points))) > 1e-3


def test_integrated_weights_have_the_order_of_the_sampler():
    """With all experts the squared distance to the flow falls as K^-2, as with the router's own."""
    x = _clean_start(400, 1)
    exact = flow(x, 1.0, 0.1, 300)
    errors = []
    for steps in (40, 80, 160):
        run = (EXPERTS, routing.SoftRouting(), "euler_maruyama", _uniform_schedule(steps))
        rates = EXPERTS.log_weight_rates
        points = routing.sample(*run, jnp.asarray(x), log_rates=rates).points
        errors.append(np.mean(np.sum((np.asarray(points) - exact) ** 2, 1)))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, 2.0, atol=0.1)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_weights_without_a_derivative_stay_those_of_the_start(sampler: str):
    """In every form; a router that does not move needs no integration."""
    still = routing.Experts(EXPERTS.components, lambda x, t: jnp.zeros((len(x), 3)))
    run = (routing.ErrorFeedback(), sampler, _uniform_schedule(5), jnp.asarray(_clean_start(20, 2)))
    at_start = routing.sample(still, *run)
    found = routing.sample(still, *run, log_rates=lambda x, t, dx_dt: jnp.ones((len(x), 3)))
    np.testing.assert_allclose(found.points, at_start.points, atol=1e-12)


def test_history_restarts_where_the_expert_changes():
    """Of a sample whose experts alternate, DPM-Solver++(2M) makes steps of DDIM only.

    With the history kept it does not, and with one expert throughout it is DPM-Solver++(2M).
    """
    process = jk.FlowMatching()
    pair = [jk.Denoiser(lambda x, t, c=c: c * x + t, process, "x0") for c in (0.1, 0.6)]
    schedule = jk.Schedule([1.0, 0.8, 0.55, 0.3, 0.1])
    noise = jnp.asarray(_clean_start(4, 7))
    even = routing.Experts(pair, lambda x, t: jnp.zeros((len(x), 2)))
    run = (routing.ErrorFeedback(),)
    alternating = routing.sample(even, *run, "dpmpp_2m", schedule, noise)
    assert alternating.evaluations[:, 0].tolist() == [4, 0, 4, 0]
    one_step = routing.sample(even, *run, "ddim", schedule, noise)
    np.testing.assert_allclose(alternating.points, one_step.points, rtol=1e-12)
    kept = routing.sample(even, *run, "dpmpp_2m", schedule, noise, restart=False)
    assert np.max(np.abs(np.asarray(kept.points) - np.asarray(one_step.points))) > 1e-3
    alone = routing.Experts(pair, lambda x, t: jnp.array([[50.0, 0.0]] * len(x)))
    found = routing.sample(alone, *run, "dpmpp_2m", schedule, noise)
    expected = jk.sample(pair[0], "dpmpp_2m", schedule, noise)
    np.testing.assert_allclose(found.points, expected, rtol=1e-12)


def test_heun_evaluates_the_expert_that_it_started_with():
    """Both stages; all experts together have the weights of each stage."""
    schedule = jk.Schedule([0.8, 0.5])
    x = _clean_start(50, 8)
    pi, velocities = parts(x, 0.8)
    expert = np.argmax(pi, 1)
    rows = np.arange(50)
    first = velocities[rows, expert]
    second = parts(x - 0.3 * first, 0.5)[1][rows, expert]
    run = (EXPERTS, routing.ErrorFeedback(), "heun", schedule, jnp.asarray(x))
    found = routing.sample(*run)
    np.testing.assert_allclose(found.points, x - 0.15 * (first + second), atol=1e-9)
    assert found.nfe == 2


def test_evaluations_of_every_step_are_made_and_right_on_average():
    """One step from one point: mean and variance are those of m - 1 and one of the rest."""
    x = np.tile([[0.3, -0.2]], (20_000, 1))
    pi, velocities = (part[0] for part in parts(x[:1], 0.4))
    order = np.argsort(-pi)
    schedule = jk.Schedule([0.4, 0.3])
    for m in (1, 2, 3):
        policy = routing.EvaluationsPerStep([m])
        run = (EXPERTS, policy, "euler_maruyama", schedule, jnp.asarray(x))
        found = routing.sample(*run, key=jax.random.key(m))
        rest = order[m - 1 :]
        mass = pi[rest].sum()
        around = velocities[rest] - pi[rest] @ velocities[rest] / mass
        variance = 0.1**2 * mass * pi[rest] @ np.sum(around**2, 1)
        points = np.asarray(found.points)
        mean = x[0] - 0.1 * pi @ velocities
        error = points.std(0) / np.sqrt(len(points))
        assert np.all(np.abs(points.mean(0) - mean) < 4 * error + 1e-12)
        measured = np.mean(np.sum((points - mean) ** 2, 1))
        assert measured == pytest.approx(variance, rel=0.03, abs=1e-20)
        assert found.nfe == m
    schedule = _uniform_schedule(4)
    policy = routing.EvaluationsPerStep([3, 1, 2, 1])
    run = (EXPERTS, policy, "ddim", schedule, jnp.asarray(x[:100]))
    found = routing.sample(*run, key=jax.random.key(0))
    assert found.evaluations.sum(1).tolist() == [300, 100, 200, 100]
    # three evaluations are all experts
    soft = routing.sample(EXPERTS, routing.SoftRouting(), "ddim", _uniform_schedule(4), run[-1])
    policy = routing.EvaluationsPerStep([3] * 4)
    every = routing.sample(EXPERTS, policy, *run[2:], key=jax.random.key(0))
    np.testing.assert_allclose(every.points, soft.points, atol=1e-9)


def test_a_missing_expert_leaves_the_mixture_of_the_others():
    """The exact experts of the mixture without the component: no retraining of the router."""
    share = WEIGHTS[[0, 2]] / WEIGHTS[[0, 2]].sum()
    rest = jk.GaussianMixture(share, MEANS[[0, 2]], np.full(2, VARIANCE))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(7, 2)))
    fewer = CLEAN.without(1)
    assert fewer.num_experts == 2
    expected = routing.Experts.of_mixture(rest, COSINE)
    np.testing.assert_allclose(fewer.weights(x, 0.3), expected.weights(x, 0.3), rtol=1e-12)
    np.testing.assert_allclose(fewer(x, 0.3).x0, expected(x, 0.3).x0, rtol=1e-10)
    found = routing.sample(fewer, routing.ErrorFeedback(), "ddim", _uniform_schedule(3), x)
    assert found.load.shape == (2,)


def _counting(i: int, calls: list) -> jk.Denoiser:
    def network(x, t):
        jax.debug.callback(lambda rows: calls.append((i, rows)), jnp.asarray(x.shape[0]))
        return -x / (1.0 + i)

    return jk.Denoiser(network, jk.VP(), "score")


def test_one_evaluation_costs_one():
    """Networks are called with as many rows as follow them, and less than a block more."""
    calls: list = []
    parts = [_counting(i, calls) for i in range(3)]
    experts = routing.Experts(parts, lambda x, t: jnp.stack([x[:, 0], x[:, 1], 0 * x[:, 0]], -1))
    noise = jnp.asarray(_clean_start(600, 2))
    schedule = jk.schedules.log_snr(jk.VP(), 4, 1e-2)
    found = routing.sample(experts, routing.ErrorFeedback(), "ddim", schedule, noise)
    jax.effects_barrier()
    rows = np.zeros(3)
    for i, size in calls:
        rows[i] += int(size)
    counted = np.asarray(found.evaluations).sum(0)
    assert counted.sum() == 4 * 600
    block = 600 // 12
    assert np.all(rows >= counted)
    assert np.all(rows <= counted + 4 * block)
    # steps with fewer evaluations than others leave out what they do not need
    calls.clear()
    policy = routing.EvaluationsPerStep([3, 1, 1, 2])
    found = routing.sample(experts, policy, "ddim", schedule, noise, key=jax.random.key(0))
    jax.effects_barrier()
    total = sum(int(size) for _, size in calls)
    block = 3 * 600 // 12
    assert 7 * 600 <= total <= 7 * 600 + 4 * 3 * block
    assert total < 4 * 3 * 600


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_one_expert_is_the_ordinary_sampler_to_the_last_bit(sampler: str):
    weights = jnp.asarray(np.random.default_rng(9).normal(size=(2, 2)))
    network = jk.Denoiser(lambda x, t: jnp.tanh(x @ weights) * t, jk.VP(), "epsilon")
    experts = routing.Experts([network], lambda x, t: jnp.zeros((len(x), 1)))
    noise = jnp.asarray(_clean_start(33, 3))
    alpha = 0.7 if sampler == "ddim" else 0.0
    schedule = jk.Schedule(jk.schedules.log_snr(jk.VP(), 5, 1e-2).times, alpha)
    key = jax.random.key(4)
    ordinary = jk.sample(network, sampler, schedule, noise, key=key)
    assert np.array_equal(jk.sample(experts, sampler, schedule, noise, key=key), ordinary)
    for policy in (routing.StochasticSwitching(), routing.SoftRouting()):
        found = routing.sample(experts, policy, sampler, schedule, noise, key=key)
        assert np.array_equal(found.points, ordinary)
        assert found.nfe == 5 * (2 if sampler == "heun" else 1)
        assert found.router_calls == 0


def test_soft_routing_is_the_experts_as_one_denoiser():
    noise = jnp.asarray(_clean_start(50, 5))
    schedule = _uniform_schedule(6)
    for sampler in ("heun", "dpmpp_2m"):
        found = routing.sample(EXPERTS, routing.SoftRouting(), sampler, schedule, noise)
        expected = jk.sample(EXPERTS, sampler, schedule, noise)
        np.testing.assert_allclose(found.points, expected, atol=1e-12)
        assert found.router_calls == 50 * 6 * (2 if sampler == "heun" else 1)


def test_threshold_switches_at_its_time():
    """The first expert above, the second below: two runs of one network each, joined."""
    parts = [jk.Denoiser(lambda x, t, c=c: c * x, jk.FlowMatching(), "flow") for c in (0.5, -1.0)]
    experts = routing.Experts(parts, routing.Threshold([0.5]))
    noise = jnp.ones((3, 2))
    schedule = jk.Schedule([1.0, 0.75, 0.5, 0.25])
    found = routing.sample(experts, routing.TopK(1), "euler_maruyama", schedule, noise)
    expected = (1 - 0.25 * 0.5) ** 2 * (1 - 0.25 * 0.5) * np.ones((3, 2))
    np.testing.assert_allclose(found.points, expected, rtol=1e-6)
    assert found.evaluations.tolist() == [[3, 0], [3, 0], [3, 0]]
    schedule = jk.Schedule([1.0, 0.45, 0.25])
    found = routing.sample(experts, routing.ErrorFeedback(), "euler_maruyama", schedule, noise)
    np.testing.assert_allclose(found.points, (1 - 0.55 * 0.5) * 1.2 * np.ones((3, 2)), rtol=1e-6)
    assert found.evaluations.tolist() == [[3, 0], [0, 3]]


def test_images_in_low_precision_are_routed():
    parts = [jk.Denoiser(lambda x, t, c=c: c * x, jk.VP(), "x0") for c in (0.1, 0.2)]
    experts = routing.Experts(parts, lambda x, t: jnp.zeros((len(x), 2), jnp.float32))
    noise = jnp.ones((4, 2, 2, 3), jnp.bfloat16)
    schedule = jk.schedules.log_snr(jk.VP(), 3, 1e-2)
    found = routing.sample(experts, routing.ErrorFeedback(), "ddim", schedule, noise)
    assert found.points.shape == noise.shape
    assert found.points.dtype == jnp.bfloat16


class TestBadInput:
    def test_components(self):
        network = jk.Denoiser(lambda x, t: x, jk.VP(), "epsilon")
        other = jk.Denoiser(lambda x, t: x, jk.VP(), "x0")
        router = routing.Threshold([0.5])
        with pytest.raises(ValueError, match=r"components\[1\] predicts 'x0'; components\[0\]"):
            routing.Experts([network, other], router)
        with pytest.raises(ValueError, match=r"components\[1\] is of OU"):
            routing.Experts([network, jk.Denoiser(lambda x, t: x, jk.OU(), "epsilon")], router)
        with pytest.raises(ValueError, match="at least one denoiser"):
            routing.Experts([], router)
        with pytest.raises(ValueError, match="router_output='log'"):
            routing.Experts([network, network], lambda x, t: x, "log")

    def test_types(self, monkeypatch: pytest.MonkeyPatch):
        """As users see them, without the tests' own checks of types."""
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        network = jk.Denoiser(lambda x, t: x, jk.VP(), "epsilon")
        router = routing.Threshold([0.5])
        run = ("ddim", jk.Schedule([1.0, 0.5]), jnp.ones((2, 2)))
        wrong: Any = 3
        with pytest.raises(ValueError, match="denoiser must be a Denoiser"):
            routing.Experts([network, wrong], router)
        with pytest.raises(ValueError, match="router must be a function"):
            routing.Experts([network, network], wrong)
        with pytest.raises(ValueError, match="mixture must be a GaussianMixture"):
            routing.Experts.of_mixture(wrong, jk.VP())
        with pytest.raises(ValueError, match="policy must be a routing policy"):
            routing.sample(EXPERTS, wrong, *run)
        with pytest.raises(ValueError, match="experts must be Experts"):
            routing.sample(wrong, routing.SoftRouting(), *run)

    def test_shapes(self):
        class Grows(jk.AbstractDenoiser):
            process: jk.AbstractProcess

            def __call__(self, x, t):
                return jk.Prediction(jnp.zeros((len(x), 3)), jnp.zeros((len(x), 3)))

            def astype(self, dtype):
                return self

        network = jk.Denoiser(lambda x, t: x, jk.VP(), "epsilon")
        experts = routing.Experts([network, Grows(jk.VP())], routing.Threshold([0.5]))
        with pytest.raises(ValueError, match=r"components\[1\] predicts shape \(2, 3\)"):
            experts(jnp.ones((2, 2)), 0.3)
        schedule = jk.Schedule([1.0, 0.5])
        with pytest.raises(ValueError, match=r"components\[1\] predicts shape"):
            routing.sample(experts, routing.TopK(1), "ddim", schedule, jnp.ones((4, 2)))

    def test_routers(self):
        parts = [jk.Denoiser(lambda x, t: x, jk.VP(), "epsilon")] * 2
        x = jnp.ones((3, 2))

        def experts(weights):
            return routing.Experts(parts, lambda x, t: jnp.array([weights] * 3), "weights")

        kept = experts([0.25, 0.75]).weights(x, 0.5)[0].tolist()
        assert kept == pytest.approx([0.25, 0.75], abs=1e-15)
        assert experts([0.0, 1.0]).weights(x, 0.5)[0].tolist() == [0.0, 1.0]
        with pytest.raises(ValueError, match="whose rows do not sum to 1"):
            experts([0.5, 0.6]).weights(x, 0.5)
        with pytest.raises(ValueError, match="weights below 0"):
            experts([-0.1, 1.1]).weights(x, 0.5)
        schedule = jk.Schedule([1.0, 0.5])
        with pytest.raises(Exception, match="whose rows do not sum to 1"):
            routing.sample(experts([0.5, 0.6]), routing.TopK(1), "ddim", schedule, x)
        with pytest.raises(ValueError, match=r"router returned shape \(3, 1\)"):
            routing.Experts(parts, lambda x, t: jnp.ones((3, 1))).weights(x, 0.5)

    @pytest.mark.parametrize("times", [[0.0], [0.2, 0.5], []])
    def test_thresholds(self, times: list[float]):
        with pytest.raises(ValueError, match="must be a list of boundaries > 0"):
            routing.Threshold(times)

    def test_thresholds_of_other_processes(self):
        parts = [jk.Denoiser(lambda x, t: x, jk.VP(), "epsilon")] * 2
        with pytest.raises(ValueError, match=r"times\[0\] = 1 must be below t_max = 1"):
            routing.Experts(parts, routing.Threshold([1.0]))
        with pytest.raises(ValueError, match="Threshold has 2 boundaries; experts: 2"):
            routing.Experts(parts, routing.Threshold([0.5, 0.2]))

    def test_clusters(self):
        with pytest.raises(ValueError, match=r"clusters\[1\] has shape \(0, 2\)"):
            routing.Experts.of_clusters([np.ones((2, 2)), np.ones((0, 2))], jk.VP())
        with pytest.raises(ValueError, match=r"clusters\[1\] has points of shape \(3,\)"):
            routing.Experts.of_clusters([np.ones((2, 2)), np.ones((1, 3))], jk.VP())
        with pytest.raises(ValueError, match="at least one cluster"):
            routing.Experts.of_clusters([], jk.VP())

    def test_runs(self):
        run = ("ddim", jk.Schedule([1.0, 0.5]), jnp.ones((2, 2)))
        with pytest.raises(ValueError, match="needs a random key"):
            routing.sample(EXPERTS, routing.StochasticSwitching(), *run)
        with pytest.raises(ValueError, match="evaluates 4 experts per step; there are 3"):
            routing.sample(EXPERTS, routing.TopK(3, rest=True), *run)
        with pytest.raises(ValueError, match="k = 0 must be at least 1"):
            routing.TopK(0)

    @pytest.mark.parametrize("name", ["rem", "second_order"])
    def test_samplers_that_run_every_sample_by_itself(self, name: str):
        schedule = jk.Schedule([1.0, 0.5], stochasticity=1.0)
        run = (name, schedule, jnp.ones((2, 2)))
        with pytest.raises(ValueError, match="runs every sample by itself"):
            routing.sample(EXPERTS, routing.TopK(1), *run, key=jax.random.key(0))

    def test_centers(self):
        with pytest.raises(ValueError, match=r"center has shape \(\); the points have \(2,\)"):
            routing.EmpiricalDenoiser(np.ones((3, 2)), jk.VP(), 0.0)

    def test_evaluations(self):
        run = ("ddim", jk.Schedule([1.0, 0.5]), jnp.ones((2, 2)))
        for wrong in ([0], [], np.array([1.5]), np.array([[1]])):
            with pytest.raises(ValueError, match="must be integers >= 1, one for each step"):
                routing.EvaluationsPerStep(wrong)
        key = jax.random.key(0)
        with pytest.raises(ValueError, match="evaluations are of 2 steps, not 1"):
            routing.sample(EXPERTS, routing.EvaluationsPerStep([1, 1]), *run, key=key)
        with pytest.raises(ValueError, match="a step makes 4; there are 3 experts"):
            routing.sample(EXPERTS, routing.EvaluationsPerStep([4]), *run, key=key)

    def test_rates(self):
        feedback = routing.ErrorFeedback()
        run = (EXPERTS, feedback, "ddim", jk.Schedule([1.0, 0.5]), jnp.ones((2, 2)))
        with pytest.raises(ValueError, match=r"log_rates returned shape \(2, 2\)"):
            routing.sample(*run, log_rates=lambda x, t, dx_dt: x)
        noisy = (*run[:3], jk.Schedule([1.0, 0.5], 0.5), run[4])
        rates = EXPERTS.log_weight_rates
        with pytest.raises(ValueError, match="along the flow, schedule is stochastic"):
            routing.sample(*noisy, log_rates=rates, key=jax.random.key(0))

    def test_missing_experts(self):
        with pytest.raises(ValueError, match="missing = 3 is none of 3 experts"):
            EXPERTS.without(3)
        with pytest.raises(ValueError, match="at least one expert must remain"):
            EXPERTS.without([0, 1, 2])
        pair = [jk.Denoiser(lambda x, t: x, jk.VP(), "epsilon")] * 2
        with pytest.raises(ValueError, match="a Threshold has no other expert"):
            routing.Experts(pair, routing.Threshold([0.5])).without(0)


SLOW_STEPS = (20, 40, 80, 160)


@pytest.mark.slow
def test_rates_of_the_clean_mixture():
    """Exponents of the mean squared error in the number of steps, with the draws of the source."""
    x = _clean_start(2000, 0)
    reference = flow(x, 1.0, 0.1, 500)
    rng = np.random.default_rng(1000)
    errors = {"mean": [], "switching": []}
    for steps in SLOW_STEPS:
        uniform = np.stack([rng.random(2000) for _ in range(steps)])
        for name, policy in (("mean", routing.SoftRouting()), ("switching", GivenDraws(uniform))):
            schedule = _uniform_schedule(steps)
            found = routing.sample(EXPERTS, policy, "euler_maruyama", schedule, jnp.asarray(x))
            distances = np.sum((np.asarray(found.points) - reference) ** 2, 1)
            errors[name].append(distances.mean())
    slopes = {
        name: -np.polyfit(np.log(SLOW_STEPS), np.log(values), 1)[0]
        for name, values in errors.items()
    }
    assert slopes["mean"] == pytest.approx(1.9994, abs=1e-4)
    assert slopes["switching"] == pytest.approx(1.0327, abs=1e-4)
