"""The search for h(t) among local minima, and what the functions of h(t) refuse."""

from typing import Any

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels import reverse_sde
from jaxkernels._types import constant

FINAL = 2.0
SPECTRUM = np.geomspace(0.01, 1.0, 10)
EDGES = np.append(0.0, np.geomspace(FINAL / 1000.0, FINAL, 16))

# alpha^2 on the cells that SciPy's L-BFGS-B has found from 24 random starts, rounded
BEST_OF_SCIPY = np.concatenate(
    [
        [2.175, 6.944, 7.326, 8.291, 9.321, 10.075, 10.426, 10.331],
        [9.845, 9.091, 8.177, 7.054, 100.0, 59.652, 59.869, 73.494],
    ]
)


def _leading_order(alpha2: np.ndarray) -> float:
    """1/4 sum over cells and modes of v^2, c = exp(-(T - theta) / .5), by Gauss-Legendre nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    total = 0.0
    for variance in SPECTRUM:
        natural = np.log1p(np.expm1(EDGES) / variance)
        before = np.concatenate([[0.0], np.cumsum(alpha2 * np.diff(natural))])
        for j in range(16):
            parts = np.linspace(EDGES[j], EDGES[j + 1], 61)
            half = 0.5 * np.diff(parts)[:, None]
            theta = parts[:-1, None] + half * (nodes + 1.0)
            inside = np.log1p(np.expm1(theta) / variance) - natural[j]
            size = np.exp(-(FINAL - theta) / 0.5) / (1.0 + (variance - 1.0) * np.exp(-theta))
            decay = np.exp(-before[j] - alpha2[j] * inside)
            total += 0.25 * ((1.0 + alpha2[j]) * np.sum(half * weights * size * decay)) ** 2
    return total


def test_the_search_leaves_local_minima() -> None:
    """Ten dimensions, an error at the noise end, independent signs: a search by local steps alone
    stops 1.7e-4 above the optimum.
    """
    found = reverse_sde.optimize_diffusion(
        jk.Gaussian(0.0, SPECTRUM),
        lambda theta: jnp.exp(-(FINAL - theta) / 0.5),
        FINAL,
        signs="independent",
    )
    assert found.converged
    best = _leading_order(BEST_OF_SCIPY)
    assert _leading_order(np.asarray(found.stochasticity_squared)) < best * (1.0 + 1e-6)
    assert found.value == pytest.approx(best, rel=1e-5)


def test_mixtures_and_functions_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[0.1], [0.1]])
    with pytest.raises(ValueError, match="target is a GaussianMixture"):
        reverse_sde.optimize_diffusion(mixture, 1.0, FINAL)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="relative is a function"):
        reverse_sde.terminal_distribution(
            jk.Gaussian(0.0, [1.0]),
            [0.0, FINAL],
            1.0,
            0.1,
            jnp.exp,  # pyright: ignore[reportArgumentType]
        )


def _leading_order_of(
    alpha2: np.ndarray, edges: np.ndarray, variances: np.ndarray, relative: Any, shift: Any
) -> float:
    """L of relative errors and shifts, functions of (theta, mode), summed coherently."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    total = 0.0
    for i, variance in enumerate(variances):
        natural = np.log1p(np.expm1(edges) / variance)
        before = np.concatenate([[0.0], np.cumsum(alpha2 * np.diff(natural))])
        change = mean = 0.0
        for j, noise in enumerate(alpha2):
            parts = np.linspace(edges[j], edges[j + 1], 201)
            half = 0.5 * np.diff(parts)[:, None]
            theta = parts[:-1, None] + half * (nodes + 1.0)
            measure = half * weights / (1.0 + (variance - 1.0) * np.exp(-theta)) * (1.0 + noise)
            decay = before[j] + noise * (np.log1p(np.expm1(theta) / variance) - natural[j])
            change += np.sum(measure * np.exp(-decay) * relative(theta, i))
            mean += 0.5 * np.sum(measure * np.exp(-0.5 * decay) * shift(theta, i))
        total += 0.25 * change**2 + 0.5 * mean**2
    return total


def test_shifts_have_a_best_diffusion_too() -> None:
    """A shift at the noise end and a relative error at the data: h(t) against constants."""
    variances = np.array([0.2, 1.0])
    edges = np.array([0.0, 0.05, 0.3, 1.0, FINAL])

    def relative(theta: Any, mode: int) -> Any:
        return np.exp(-theta / 0.1)

    def shift(theta: Any, mode: int) -> Any:
        return np.exp(-(FINAL - theta) / 0.5)

    found = reverse_sde.optimize_diffusion(
        jk.Gaussian(0.0, variances),
        lambda theta: jnp.exp(-theta / 0.1),
        FINAL,
        shift=lambda theta: jnp.exp(-(FINAL - theta) / 0.5),
        cells=edges,
    )
    arguments = (edges, variances, relative, shift)
    alpha2 = np.asarray(found.stochasticity_squared)
    assert found.value == pytest.approx(_leading_order_of(alpha2, *arguments), rel=1e-6)
    assert found.infimum is None
    rng = np.random.default_rng(0)
    others = [np.clip(alpha2 * rng.uniform(0.5, 2.0, 4), 0.0, 100.0) for _ in range(10)]
    others += [np.full(4, constant) for constant in (0.0, 0.3, 1.0, 4.0, 100.0)]
    least = min(_leading_order_of(other, *arguments) for other in others)
    assert found.value <= least * (1.0 + 1e-9)


# --- measured errors ------------------------------------------------------------------------------

PROCESS = jk.VP()
VARIANCES = np.array([0.3, 1.0])
MEASURED_AT = np.geomspace(0.98, 0.01, 12)


def _measured(size: float, scatter: float, repetitions: int = 8) -> jk.ScoreErrorEstimate:
    """Fits of a relative error size * exp(-(T - theta) / 2), that is at the noise end."""
    theta = 0.1 * MEASURED_AT + 9.95 * MEASURED_AT**2
    marginal = 1.0 + (VARIANCES - 1.0) * np.exp(-theta[:, None])
    slope = size * np.exp(-(theta[0] - theta[:, None]) / 2.0) / marginal
    noise = np.random.default_rng(0).standard_normal((2, 1, repetitions, 12, 2))
    fits = (slope + scatter * noise[0], scatter * noise[1], np.zeros((12, 2)))
    return jk.ScoreErrorEstimate(constant(MEASURED_AT), *(constant(a) for a in fits))


def test_a_measured_error_leads_to_a_diffusion_with_a_verdict() -> None:
    """An error at the noise end: noise pays, and the predicted KL is that of the exact error."""
    target = jk.Gaussian(0.0, VARIANCES)
    found = reverse_sde.optimize_measured_diffusion(_measured(0.1, 1e-3), target, PROCESS, cells=6)
    assert found.verdict.startswith("use this h(t)")
    theta = (0.1 * MEASURED_AT + 9.95 * MEASURED_AT**2)[::-1]
    values = 0.1 * np.exp(-(theta[-1] - theta) / 2.0)

    def relative(at: Any, mode: int) -> Any:
        return np.interp(0.5 * np.log(np.expm1(at)), 0.5 * np.log(np.expm1(theta)), values)

    alpha2 = np.asarray(found.optimum.stochasticity_squared)
    arguments = (found.optimum.edges, VARIANCES, relative, lambda at, mode: 0.0 * at)
    best, ode, sde = (_leading_order_of(a, *arguments) for a in (alpha2, np.zeros(6), np.ones(6)))
    assert found.value.low <= best <= found.value.high
    assert found.gain_over_ode.low <= ode - best <= found.gain_over_ode.high
    assert found.gain_over_sde.low <= sde - best <= found.gain_over_sde.high


@pytest.mark.slow
def test_measured_matrices() -> None:
    """Diagonal ones give what slopes per mode give; others the L of their matrices.

    In the coordinates of VE data, whose space the rescaled time scales.
    """
    target = jk.Gaussian([0.4, -0.2], VARIANCES)
    modes = _measured(0.1, 1e-3)
    eye = np.eye(2)
    fits = (np.asarray(modes.slope)[..., None] * eye, modes.shift, modes.residual)
    dense = jk.ScoreErrorEstimate(modes.times, constant(fits[0]), *fits[1:])
    found, expected = (
        reverse_sde.optimize_measured_diffusion(estimate, target, PROCESS, cells=4)
        for estimate in (dense, modes)
    )
    for name in ("value", "gain_over_ode", "gain_over_sde"):
        a, b = (
            np.array([getattr(getattr(r, name), n) for n in ("low", "high")])
            for r in (found, expected)
        )
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-11)
    process = jk.EDM(sigma_max=10.0)
    times = np.geomspace(10.0, 0.05, 9)
    slope = np.broadcast_to([[0.02, -0.05], [0.03, 0.04]], (1, 6, 9, 2, 2)) / times[:, None, None]
    shift = np.broadcast_to([0.03, -0.01], (1, 6, 9, 2))
    exact = jk.ScoreErrorEstimate(
        constant(times), constant(slope), constant(shift), constant(np.zeros((9, 2)))
    )
    found = reverse_sde.optimize_measured_diffusion(exact, target, process, cells=4)
    # what is known at the times is the error relative to the score
    known = jnp.asarray(np.log(times)[::-1])
    root = np.sqrt(VARIANCES + times[:, None] ** 2)
    relative = root[:, :, None] * slope[0, 0] * root[:, None]
    push = root * (shift[0, 0] - slope[0, 0] @ np.asarray(target.mean))

    def between(theta: Any, values: np.ndarray) -> Any:
        at = 0.5 * jnp.log(jnp.expm1(theta))
        rows = [jnp.interp(at, known, jnp.asarray(v)) for v in values[::-1].reshape(9, -1).T]
        return jnp.stack(rows).reshape(values.shape[1:])

    def deviation(theta: Any) -> Any:
        return jnp.sqrt(1.0 + jnp.asarray(VARIANCES - 1.0) * jnp.exp(-theta))

    def matrix(theta: Any) -> Any:
        return -between(theta, relative) / deviation(theta)[:, None] / deviation(theta)

    def beta(theta: Any) -> Any:
        center = jnp.exp(-0.5 * theta) * jnp.asarray([0.4, -0.2])
        return between(theta, push) / deviation(theta) - matrix(theta) @ center

    alpha2 = found.optimum.stochasticity_squared
    setting = (target, found.optimum.edges, alpha2, matrix, beta)
    leading = reverse_sde.affine_leading_order(*setting, panels=8)
    # quadratures differ: interpolation has kinks
    np.testing.assert_allclose([found.value.low, found.value.high], leading, rtol=1e-4)
    np.testing.assert_allclose(found.optimum.value, leading, rtol=1e-4)


def test_scatter_alone_is_no_reason_for_noise() -> None:
    target = jk.Gaussian(0.0, VARIANCES)
    found = reverse_sde.optimize_measured_diffusion(_measured(0.0, 0.01), target, PROCESS, cells=6)
    assert found.verdict.startswith("use alpha = 0")
    assert found.value.low <= 0.0 <= found.value.high


def test_estimates_that_cannot_be_used() -> None:
    target = jk.Gaussian(0.0, VARIANCES)
    with pytest.raises(ValueError, match="6 or more are needed"):
        reverse_sde.optimize_measured_diffusion(_measured(0.1, 0.0, 5), target, PROCESS)
    with pytest.raises(ValueError, match="estimate has 2 modes; the target has 1"):
        reverse_sde.optimize_measured_diffusion(
            _measured(0.1, 0.0), jk.Gaussian(0.0, [1.0]), PROCESS
        )
