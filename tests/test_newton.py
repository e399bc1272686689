"""The trust-region steps of Newton's method, against the exact minimum found by bisection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels._newton import NewtonState, _trust_region_steps, newton_start

N = 6
FREE = np.full(N, np.inf)


def exact_minimum(h: np.ndarray, g: np.ndarray, radius: float) -> float:
    """The smallest value of g.p + p.h.p/2 with |p| <= radius, by bisection of its multiplier."""
    curvature, basis = np.linalg.eigh(h)
    along = basis.T @ g

    def model(p: np.ndarray) -> float:
        return float(along @ p + 0.5 * np.sum(curvature * p**2))

    if curvature[0] > 0 and np.linalg.norm(along / curvature) <= radius:
        return model(-along / curvature)
    low = max(0.0, -curvature[0])
    high = low + np.linalg.norm(g) / radius
    for _ in range(200):
        middle = 0.5 * (low + high)
        too_long = np.linalg.norm(along / (curvature + middle)) > radius
        low, high = (middle, high) if too_long else (low, middle)
    p = -along / (curvature + high)
    return model(p)


def steps_of(h: np.ndarray, g: np.ndarray, radius: float) -> np.ndarray:
    with jax.enable_x64(True):
        start = newton_start(np.zeros((1, N)), 1)
        found = {"gradient": g[None], "hessian": h[None], "radius": np.array([radius])}
        state = NewtonState(**{**vars(start), **{k: jnp.asarray(v) for k, v in found.items()}})
        return np.asarray(jax.jit(_trust_region_steps)(state, -FREE, FREE))[0]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("radius", [1e-3, 0.3, 2.0, 50.0])
def test_steps_reach_the_minimum_within_the_radius(seed: int, radius: float):
    """To 5 % of its depth, for Hessians of either sign whose scales differ by factors."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((N, N)))[0]
    curvature = np.exp(rng.uniform(-6, 1, N)) * np.where(rng.random(N) < 0.3, -1.0, 1.0)
    h = (basis * curvature) @ basis.T
    h = 0.5 * (h + h.T)
    g = rng.standard_normal(N)
    p = steps_of(h, g, radius)
    assert np.linalg.norm(p) <= radius * (1 + 1e-9)
    assert g @ p + 0.5 * p @ h @ p <= 0.95 * exact_minimum(h, g, radius)


def test_steps_leave_a_saddle_without_slope_along_it():
    """The multiplier is 0.5: p_1 = -0.3 / 1.5, and the rest of the radius goes along p_0."""
    h = np.diag([-0.5, 1.0, 2.0, 3.0, 4.0, 5.0])
    g = np.array([0.0, 0.3, 0.0, 0.0, 0.0, 0.0])
    p = steps_of(h, g, 1.0)
    assert np.linalg.norm(p) == pytest.approx(1.0, rel=1e-6)
    assert g @ p + 0.5 * p @ h @ p == pytest.approx(-0.06 + 0.02 - 0.24, rel=1e-4)
