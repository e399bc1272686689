"""Local errors in the bounds on routed samplers: long steps, and steps towards very small noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import jaxkernels as jk
from jaxkernels import routing
from jaxkernels.routing._bound import _turned_at_rest

PROCESSES = {
    "vp": jk.VP(),
    "steep": jk.VP(beta_min=1e-3, beta_max=1e3),
    "ou": jk.OU(),
    "fast": jk.OU(rate=50.0),
    "cosine": jk.CosineVP(),
    "linear": jk.PowerVP(),
    "quadratic": jk.PowerVP(2),
    "flow": jk.FlowMatching(),
    "edm": jk.EDM(),
    "ve": jk.VE(),
}
SAMPLERS = ("euler_maruyama", "ddim")
CASES = 5
# the largest of 1000 random steps is 3e-5; that is by how much kinks may make a bound larger
TOLERANCE = 1e-3


def _steps(rng: np.random.Generator, t_max: Any) -> np.ndarray:
    """Random t, u, R and |x_T|: half of the steps are long, some over twelve orders."""
    t = float(t_max) * 10.0 ** (-rng.uniform(0.0, 4.0, CASES) * rng.integers(0, 2, CASES))
    u = t * 10.0 ** -rng.uniform(0.0, rng.choice([0.3, 2.0, 12.0], CASES))
    return np.stack([t, u, 10.0 ** rng.uniform(-4, 1, CASES), 10.0 ** rng.uniform(-3, 1.5, CASES)])


@pytest.mark.parametrize("name", PROCESSES)
def test_local_errors_are_the_documented_integrals(name: str):
    """(3) and (4) by adaptive quadrature of the integrands as documented, in pieces of log r."""
    process = PROCESSES[name]

    @jax.jit
    def integrands(log, t, u, radius, norm):
        r = u * jnp.exp(log)
        along = routing.trajectory_norm(process, r, t, norm, radius)
        flow = routing.Regularity(process, r, radius)
        ahead = process.signal(u) / process.noise(u) - process.signal(r) / process.noise(r)
        ddim = process.noise(u) * ahead * flow.mean_rate(along)
        return jnp.stack([(r - u) * flow.velocity_rate(along), ddim]) * r

    @jax.jit
    @jax.vmap
    def bounds(t, u, radius, norm):
        schedule = jk.Schedule(jnp.stack([t, u]))
        options: Any = {"radius": radius, "norm": norm, "num_experts": 1}
        return [routing.routing_bound(process, s, schedule, **options).drift[-1] for s in SAMPLERS]

    cases = _steps(np.random.default_rng([7, len(name)]), process.t_max)
    found = np.asarray(bounds(*cases))
    for i, case in enumerate(cases.T):
        length = np.log(case[0] / case[1])
        edges = np.linspace(0.0, length, 2 + int(length))
        for j, sampler in enumerate(SAMPLERS):
            pieces = [
                integrate.quad(
                    lambda log, j=j, case=case: float(integrands(log, *case)[j]),
                    *ends, epsabs=0.0, epsrel=1e-10, full_output=True,
                )[0]
                for ends in zip(edges[:-1], edges[1:], strict=True)
            ]  # fmt: skip
            expected = sum(pieces)
            assert found[j, i] >= expected * (1.0 - 1e-9), (sampler, case)
            limit = 1e-9 if sampler == "ddim" else TOLERANCE
            assert found[j, i] <= expected * (1.0 + limit), (sampler, case)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_mean_at_rest_turns_by_the_documented_integral(name: str):
    """What `feedback_bound` adds for it is the integral of `mean_rate_at_rest` over a step."""
    process = PROCESSES[name]
    rate = jax.jit(
        lambda log, u, radius, norm: (
            routing.Regularity(process, u * jnp.exp(log), radius).mean_rate_at_rest(norm)
            * (u * jnp.exp(log))
        )
    )
    for t, u, radius, norm in _steps(np.random.default_rng([8, len(name)]), process.t_max).T:
        edges = np.linspace(0.0, np.log(t / u), 2 + int(np.log(t / u)))
        expected = sum(
            integrate.quad(rate, *ends, args=(u, radius, norm), epsabs=0.0, epsrel=1e-10)[0]
            for ends in zip(edges[:-1], edges[1:], strict=True)
        )
        norms = jnp.full(1, norm)
        found = _turned_at_rest(process, jnp.array([t, u]), norms, radius)
        assert float(found[0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("process", "times", "radius", "norm"),
    [
        (jk.EDM(), (80.0, 1e-4), 0.1, 8.0),
        (jk.EDM(), (80.0, 1e-4), 3e-4, 0.1),
        (jk.FlowMatching(), (1.0, 1e-5), 3e-4, 0.1),
        (jk.VP(), (1.0, 1e-8), 0.01, 0.1),
    ],
)
def test_bounds_hold_for_one_step_towards_small_noise(
    sampler: str,
    process: jk.AbstractProcess,
    times: tuple[float, float],
    radius: float,
    norm: float,
):
    """Two points, against the flow in 20000 steps."""
    denoiser = routing.EmpiricalDenoiser([[-radius], [radius]], process)
    start = jnp.array([[norm]])
    schedule = jk.Schedule(np.array(times))
    exact = jk.sample(denoiser, "ddim", jk.schedules.log_snr(process, 20000, times[1]), start)
    distance = abs(float((jk.sample(denoiser, sampler, schedule, start) - exact)[0, 0]))
    options: Any = {"radius": radius, "norm": norm, "num_experts": 1}
    for bound in (routing.routing_bound, routing.feedback_bound):
        assert float(bound(process, sampler, schedule, **options).value) >= distance > 1e-6


def test_a_traced_end_without_noise_is_unbounded():
    def value(last: jax.Array) -> jax.Array:
        schedule = jk.Schedule(jnp.stack([jnp.ones(()), last]))
        options: Any = {"radius": 1.0, "norm": 1.0, "num_experts": 2}
        return routing.routing_bound(jk.FlowMatching(), "ddim", schedule, **options).value

    assert jax.jit(value)(jnp.zeros(())) == np.inf


class TestDiscreteVP:
    """The rates of a table jump at its entries, of which DDIM knows nothing."""

    def test_euler_is_refused(self):
        process = jk.DiscreteVP.scaled_linear()
        options: Any = {"radius": 1e-3, "norm": 1.25, "num_experts": 1}
        for bound in (routing.routing_bound, routing.feedback_bound):
            with pytest.raises(ValueError, match="rates that are continuous"):
                bound(process, "euler_maruyama", jk.Schedule([332.0, 78.0]), **options)

    @pytest.mark.parametrize("times", [(999.0, 700.0, 78.0, 1.0), (332.0, 78.0), (20.5, 0.3)])
    def test_bounds_of_ddim_hold(self, times: tuple[float, ...]):
        """Two points; the flow by steps that are short in log-SNR."""
        process = jk.DiscreteVP.scaled_linear()
        schedule = jk.Schedule(np.array(times))
        ends = np.log(np.asarray(process.sigma(schedule.times)))
        levels = np.exp(np.linspace(ends[0], ends[-1], 20001))
        fine = jk.Schedule.from_sigmas(process, levels)
        for radius in (1e-3, 0.3):
            denoiser = routing.EmpiricalDenoiser([[-radius], [radius]], process)
            for norm in (0.01, 1.25):
                start = jnp.array([[norm]])
                points = [jk.sample(denoiser, "ddim", s, start)[0, 0] for s in (schedule, fine)]
                distance = abs(float(points[0] - points[1]))
                options: Any = {"radius": radius, "norm": norm, "num_experts": 1}
                bound = routing.routing_bound(process, "ddim", schedule, **options)
                assert distance <= float(bound.value) * (1 + 1e-9) + 1e-8
