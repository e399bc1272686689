"""From a step to moments: user-defined samplers, dense covariances, and local errors.

An affine map is known from its values at the origin and at the unit vectors, which is how the
oracles here read a step; the package differentiates it.
"""

import doctest
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_samplers import SAMPLERS
from scipy.integrate import quad

import jaxkernels as jk
from jaxkernels.recurrence import log_contraction, starts_on_trajectory
from jaxkernels.samplers import AbstractSampler
from jaxkernels.schedules import Step

MEAN, EIGENVALUES = np.array([1.5, -0.4]), np.array([2.0, 0.05])
TARGET = jk.Gaussian(MEAN, EIGENVALUES)
TIMES = np.array([0.9, 0.6, 0.35, 0.12, 0.01])
PARTICLES = 400_000


def _deviation_scores(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Largest deviation of a sample mean or covariance from the given one, in standard errors."""
    n, centred = len(draws), draws - mean
    of_mean = np.abs(centred.mean(0)) / np.sqrt(np.diag(covariance) / n)
    variances = np.diag(covariance)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)  # of normal samples
    of_covariance = np.abs(centred.T @ centred / n - covariance) / error
    return float(max(of_mean.max(), of_covariance.max()))


def _particles(
    target: jk.Gaussian,
    process: jk.AbstractProcess,
    sampler: AbstractSampler,
    schedule: jk.Schedule,
    start: np.ndarray,
    draws: np.ndarray,
) -> list[np.ndarray]:
    """Particles after every step of the sampler's own `step`; draws (K, calls, particles, d)."""

    @jax.jit
    def take(step: Step, x: jax.Array, history, draws: jax.Array):
        fresh = iter(draws)

        def noise(variance: jax.Array) -> jax.Array:
            return jnp.sqrt(variance) * next(fresh)

        return sampler.step(target.denoiser(process), noise, process, step, x, history)

    x, steps, points = jnp.asarray(start), schedule.steps(sampler.history_steps), []
    history = sampler.init_history(x)
    for k in range(schedule.num_steps):
        step = jax.tree.map(lambda field, k=k: field[k], steps)
        x, history = take(step, x, history, jnp.asarray(draws[k]))
        points.append(np.asarray(x))
    return points


# --- user-defined samplers ------------------------------------------------------------------------


def _sampler_of_the_documentation() -> AbstractSampler:
    """The example in the documentation of how to write a sampler."""
    example = doctest.DocTestParser().get_examples(AbstractSampler.__doc__ or "")[0]
    namespace: dict = {"jk": jk, "__name__": __name__}
    exec(example.source, namespace)
    return namespace["Euler"]()


def test_the_documented_sampler_is_euler() -> None:
    ours, theirs = (
        jk.evaluate_schedule(TARGET, jk.VP(), sampler, jk.Schedule(TIMES))
        for sampler in (_sampler_of_the_documentation(), jk.EulerMaruyama())
    )
    np.testing.assert_allclose(ours.means, theirs.means, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours.variances, theirs.variances, rtol=1e-12)
    np.testing.assert_allclose(ours.local_w2_squared, theirs.local_w2_squared, rtol=1e-7)
    assert ours.nfe == 4


def test_an_evaluation_traces_a_step_once_for_all_derivatives() -> None:
    """And once to count what it draws, in the affine maps and in both steps of every window."""
    calls: list[int] = []

    class Counted(jk.DPMSolverPP2M):
        def step(self, predict, noise, process, step, x, history):
            calls.append(1)
            return super().step(predict, noise, process, step, x, history)

    jk.evaluate_schedule(TARGET, jk.VP(), Counted(), jk.Schedule(TIMES, 1.0))
    # a check that the step is elementwise traces one more
    assert len(calls) <= 7


class Churn(AbstractSampler):
    """Karras et al., Algorithm 2, a = 1: raise the noise, Euler, and more noise at the end.

    Two draws of noise in one step, the first of which passes through the network.
    """

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(self, predict, noise, process, step, x, history):
        t, u = step.time, step.next_time
        raised = 1.2 * t
        p = predict(x + noise(raised**2 - t**2), raised)
        return p.x0 + 0.8 * u * p.eps + noise(0.36 * u**2), history


def test_noise_that_passes_through_the_network() -> None:
    """x0 = m + g (y - m), eps = r (y - m), y = x + noise: the factor multiplies the first noise."""
    sigma = np.array([18.0, 6.0, 2.0, 0.5, 0.03])
    evaluation = jk.evaluate_schedule(TARGET, jk.EDM(20.0), Churn(), jk.Schedule(sigma, 1.0))
    mean, variance = np.zeros(2), np.full(2, sigma[0] ** 2)
    for t, u in itertools.pairwise(sigma):
        total = EIGENVALUES + (1.2 * t) ** 2
        factor = EIGENVALUES / total + 0.8 * u * 1.2 * t / total
        mean = MEAN + factor * (mean - MEAN)
        variance = factor**2 * (variance + 0.44 * t**2) + 0.36 * u**2
    np.testing.assert_allclose(evaluation.mean, mean, rtol=1e-11)
    np.testing.assert_allclose(evaluation.variance, variance, rtol=1e-11)


class Remembering(AbstractSampler):
    """Nothing but history: x' = the denoised points of three steps, and noise."""

    constant: float = 0.0

    order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    history_steps: ClassVar[int] = 2

    def init_history(self, x):
        return {"older": 0.5 * x, "old": jnp.zeros_like(x) + self.constant}

    def step(self, predict, noise, process, step, x, history):
        x0 = predict(x, step.time).x0
        mixed = 0.5 * x0 + 0.3 * history["old"] + 0.2 * history["older"]
        x = process.signal(step.next_time) * mixed + noise(process.noise(step.next_time) ** 2)
        return x, {"older": history["old"], "old": x0 + noise(jnp.asarray(0.01))}


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_a_history_of_any_structure_against_monte_carlo(constant: float) -> None:
    """A dictionary of two arrays that starts from x and a constant, and is noisy itself; d = 2."""
    process, sampler = jk.VP(), Remembering(constant)
    schedule = jk.Schedule(TIMES, 1.0)
    evaluation = jk.evaluate_schedule(TARGET, process, sampler, schedule)
    draws = np.random.default_rng(5).normal(size=(5, 2, PARTICLES, 2))
    for k, x in enumerate(_particles(TARGET, process, sampler, schedule, draws[0, 0], draws[1:])):
        covariance = np.diag(evaluation.variances[k + 1])
        assert _deviation_scores(x, np.asarray(evaluation.means[k + 1]), covariance) < 5.0


# --- dense covariances ----------------------------------------------------------------------------

ROTATION = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
VARIANCES = np.array([2.0, 0.5, 0.05])
DENSE = jk.Gaussian.from_covariance(np.array([1.0, -0.5, 2.0]), (ROTATION * VARIANCES) @ ROTATION.T)


@pytest.mark.parametrize(("name", "alpha"), [("ddim", 0.7), ("dpmpp_2m", 0.0)])
@pytest.mark.parametrize("initialization", ["standard_normal", "marginal"])
def test_dense_coordinates_agree_with_those_per_mode_when_everything_commutes(
    name: str, alpha: float, initialization: str
) -> None:
    process, schedule = jk.VP(), jk.Schedule(TIMES, alpha)
    a, s = float(process.signal(TIMES[0])), float(process.noise(TIMES[0]))
    start = {
        "standard_normal": jk.Gaussian(np.zeros(3), np.ones(3)),
        "marginal": jk.Gaussian(
            a * np.asarray(DENSE.mean),
            a * a * np.asarray(DENSE.eigenvalues) + s * s,
            basis=DENSE.basis,
        ),
    }[initialization]
    modes = jk.evaluate_schedule(DENSE, process, name, schedule, initialization=initialization)
    dense = jk.evaluate_schedule(DENSE, process, name, schedule, initialization=start)
    assert modes.covariance is None
    assert dense.covariance is not None
    np.testing.assert_allclose(dense.covariance, np.diag(modes.variance), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(dense.means, modes.means, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(dense.variances, modes.variances, rtol=1e-9, atol=1e-12)
    for field in ("w2_squared", "kl", "reverse_kl"):
        assert float(getattr(dense, field)) == pytest.approx(float(getattr(modes, field)), rel=1e-8)
    for field in ("initialization_alone", "truncation_alone", "discretization_alone", "total"):
        ours, theirs = (float(getattr(e.error_budget, field)) for e in (dense, modes))
        assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-12)
    np.testing.assert_allclose(dense.local_w2_squared, modes.local_w2_squared, rtol=1e-9)


@pytest.mark.parametrize(("name", "alpha"), [("ddim", 0.7), ("dpmpp_2m", 0.0)])
def test_an_initial_covariance_that_does_not_commute(name: str, alpha: float) -> None:
    """Against particles in data coordinates, d = 3; distances against their textbook formulas."""
    process, sampler, schedule = jk.VP(), SAMPLERS[name](), jk.Schedule(TIMES, alpha)
    factor = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.4, 0.7]])
    start = jk.Gaussian.from_covariance(np.array([0.5, 0.0, -1.0]), factor @ factor.T)
    evaluation = jk.evaluate_schedule(DENSE, process, name, schedule, initialization=start)
    assert evaluation.covariance is not None

    draws = np.random.default_rng(6).normal(size=(5, 1, PARTICLES, 3))
    first = np.asarray(start.mean) + draws[0, 0] @ factor.T
    x = _particles(DENSE, process, sampler, schedule, first, draws[1:])[-1]
    basis, in_modes = np.asarray(DENSE.basis), np.asarray(evaluation.covariance)
    mean, covariance = basis @ np.asarray(evaluation.mean), basis @ in_modes @ basis.T
    assert _deviation_scores(x, mean, covariance) < 5.0
    assert np.abs(in_modes - np.diag(np.diag(in_modes))).max() > 1e-3

    data = (ROTATION * VARIANCES) @ ROTATION.T
    error = mean - np.asarray(DENSE.mean)
    roots = np.linalg.eigvals(data @ covariance)
    w2_squared = error @ error + np.trace(data + covariance) - 2.0 * np.sum(np.sqrt(roots.real))
    assert float(evaluation.w2_squared) == pytest.approx(w2_squared, rel=1e-9)
    ratio = np.linalg.solve(covariance, data)
    shift = error @ np.linalg.solve(covariance, error)
    kl = 0.5 * (np.trace(ratio) - 3.0 - np.linalg.slogdet(ratio)[1] + shift)
    assert float(evaluation.kl) == pytest.approx(kl, rel=1e-9)


def test_an_initial_distribution_of_the_wrong_size() -> None:
    schedule = jk.Schedule(TIMES)
    for wrong in (jk.Gaussian(0.0, np.ones(2)), jk.Gaussian(0.0, np.ones(3), weights=2.0)):
        with pytest.raises(
            ValueError, match="initialization as a Gaussian needs the target's dimensions"
        ):
            jk.evaluate_schedule(DENSE, jk.VP(), "ddim", schedule, initialization=wrong)


# --- the exact reverse process --------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("process", [jk.VP(), jk.EDM(20.0)], ids=["vp", "edm"])
def test_contraction_of_the_exact_reverse_process(
    process: jk.AbstractProcess, alpha: float
) -> None:
    """log rho = int (-f - (1 + alpha^2)/2 g^2 / Sigma) dt, from the drift of the reverse family."""
    u, t = 0.1, 0.8

    def rate(r: float, c: float) -> float:
        f, g2 = float(process.drift(r)), float(process.diffusion_squared(r))
        total = float(process.signal(r)) ** 2 * c + float(process.noise(r)) ** 2
        return -f - 0.5 * (1.0 + alpha**2) * g2 / total

    exact = [quad(rate, u, t, (c,), epsabs=1e-10)[0] for c in EIGENVALUES]
    ours = log_contraction(TARGET, process, jnp.asarray(t), jnp.asarray(u), jnp.asarray(alpha**2))
    np.testing.assert_allclose(ours, exact, rtol=1e-7)


# --- local errors ---------------------------------------------------------------------------------


Read = tuple[np.ndarray, np.ndarray, np.ndarray]


def _steps_by_probing(
    process: jk.AbstractProcess, sampler: AbstractSampler, schedule: jk.Schedule
) -> list[Read]:
    """Steps for the exact score as z -> M z + m, noise variance q on x; z = (x, history)."""
    leaves, tree = jax.tree.flatten(sampler.init_history(jnp.zeros(2)))
    size = 1 + len(leaves)

    @jax.jit
    def at(step: Step, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        variances = [jnp.zeros(2)]

        def noise(variance: jax.Array) -> jax.Array:
            variances.append(jnp.broadcast_to(variance, (2,)))
            return jnp.zeros(2)

        history = jax.tree.unflatten(tree, list(z[1:]))
        after = sampler.step(TARGET.denoiser(process), noise, process, step, z[0], history)
        return jnp.stack(jax.tree.leaves(after)), variances[-1]

    found, steps = [], schedule.steps(sampler.history_steps)
    for k in range(schedule.num_steps):
        step = jax.tree.map(lambda field, k=k: field[k], steps)
        shift, injected = (np.asarray(v) for v in at(step, jnp.zeros((size, 2))))
        columns = [np.asarray(at(step, jnp.tile(e[:, None], 2))[0]) - shift for e in jnp.eye(size)]
        found.append((np.stack(columns, axis=1), shift, injected))
    return found


def _w2_squared(mean_error: np.ndarray, variance: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Signed: a negative variance is the amplitude -sqrt|v| of the reference's own noise."""
    amplitude = np.sign(variance) * np.sqrt(np.abs(variance))
    return mean_error**2 + (amplitude - np.sqrt(target)) ** 2


def _local_by_hand(
    process: jk.AbstractProcess, sampler: AbstractSampler, times: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """W2^2 that each step alone causes at the end, and the steps' factors; exact flow for the rest.

    The history is filled by the steps before, taken from the exact marginals: its first entry is
    a function of x there, and is kept. The exact flow is a function too, so all is one normal
    variable per mode.
    """
    steps = _steps_by_probing(process, sampler, jk.Schedule(times, alpha))
    a, s = (np.array([float(v) for v in f(times)]) for f in (process.signal, process.noise))
    total = a[:, None] ** 2 * EIGENVALUES + s[:, None] ** 2
    means = a[:, None] * MEAN
    errors, factors = [], []
    for k in range(len(times) - 1):
        matrix, shift, injected = steps[k]
        deviation, base = np.ones((1, 2)), means[k][None]  # of z per unit of x - E x at t_k
        for j in range(k - 1, k - len(matrix), -1):
            history, center = np.zeros(2), np.zeros(2)
            if j >= 0:
                before, offset, _ = steps[j]
                flow = np.sqrt(total[k] / total[j])
                history, center = before[1, 0] / flow, before[1, 0] * means[j] + offset[1]
            deviation = np.append(deviation, history[None], axis=0)
            base = np.append(base, center[None], axis=0)
        factor = np.sum(matrix[0] * deviation, 0)
        mean_error = np.sum(matrix[0] * base, 0) + shift[0] - means[k + 1]
        variance = np.sign(factor) * factor**2 * total[k] + injected
        contraction = np.sqrt(total[-1] / total[k + 1])
        final = total[-1] + contraction**2 * (variance - total[k + 1])
        errors.append(np.sum(_w2_squared(contraction * mean_error, final, total[-1])))
        factors.append(factor)
    return np.array(errors), np.array(factors)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("ddim", "heun", "dpmpp_2m") else [pytest.mark.slow])
        for n, make in SAMPLERS.items()
        if not make().corrects
    ],
)
def test_local_errors_of_deterministic_steps(name: str) -> None:
    """Each step's local error, propagated by the exact flow, also for modes with a flipped sign.

    Those of corrected points are in test_corrected_errors.
    """
    sampler = SAMPLERS[name]()
    evaluation = jk.evaluate_schedule(TARGET, jk.VP(), sampler, jk.Schedule(TIMES))
    errors, _ = _local_by_hand(jk.VP(), sampler, TIMES, 0.0)
    np.testing.assert_allclose(evaluation.local_w2_squared, errors, rtol=1e-8)


@pytest.mark.parametrize(("name", "alpha"), [("euler_maruyama", 1.0), ("ddim", 2.0)])
def test_local_error_of_the_last_noisy_step(name: str, alpha: float) -> None:
    """Nothing is propagated: one step from the exact distribution. Euler's factor is negative."""
    times = np.array([0.9, 0.8, 0.7, 0.65, 0.05])
    evaluation = jk.evaluate_schedule(TARGET, jk.VP(), name, jk.Schedule(times, alpha))
    errors, factors = _local_by_hand(jk.VP(), SAMPLERS[name](), times, alpha)
    assert np.any(factors[-1] < 0) == (name == "euler_maruyama")
    assert float(evaluation.local_w2_squared[-1]) == pytest.approx(errors[-1], rel=1e-9)


def test_local_errors_of_one_sign_add_up() -> None:
    """In equal modes the total is the signed sum of the steps at leading order; all of one sign."""
    same = jk.Gaussian(np.zeros(2), np.full(2, 0.5))
    schedule = jk.Schedule(np.linspace(1.0, 0.02, 5))
    evaluation = jk.evaluate_schedule(same, jk.VP(), "ddim", schedule, initialization="marginal")
    total = float(evaluation.error_budget.discretization_alone) ** 0.5
    parts = np.sqrt(np.asarray(evaluation.local_w2_squared))
    assert 0.7 * np.sum(parts) < total < 1.3 * np.sum(parts)


class MiddleEvaluated(jk.DDIM):
    """A sampler that evaluates in the middle of its steps."""

    def evaluation_times(self, process: jk.AbstractProcess, step: Step) -> tuple[jax.Array, ...]:
        return (0.5 * (step.time + step.next_time),)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (jk.DDIM(), True),
        (jk.DPMSolverPP2M(), True),
        (jk.Heun(), True),
        (jk.SecondOrder(), True),
        (jk.samplers.EndEvaluated(jk.DDIM()), False),
        (MiddleEvaluated(), False),
    ],
)
def test_whether_steps_evaluate_at_their_start(sampler: AbstractSampler, expected: bool):
    assert starts_on_trajectory(sampler) is expected


def test_a_sampler_of_the_reverse_sde_alone_is_not_evaluated_at_its_end():
    with pytest.raises(ValueError, match="ExactMean is of the reverse SDE alone"):
        jk.samplers.EndEvaluated(jk.ExactMean())
