"""Newton's method in a trust region and a box, against bisection and SciPy's bounded solvers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy import optimize

from jaxkernels._newton import NewtonState, _trial_points, newton_advance, newton_start

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
        return np.asarray(jax.jit(_trial_points)(state, -FREE, FREE))[0]


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


class Quadratic(eqx.Module):
    """|A z - b|^2 / 2."""

    a: Array
    b: Array

    def derivatives(self, z: Array) -> tuple[Array, Array, Array]:
        rest = self.a @ z - self.b
        return 0.5 * rest @ rest, self.a.T @ rest, self.a.T @ self.a


@pytest.mark.parametrize("seed", range(20))
def test_the_minimum_in_a_box(seed: int):
    """About half of the variables end at a bound, where some of the starts nearly are."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((16, 12)) * np.exp(rng.uniform(-3, 0, 12))
    b = 3.0 * rng.standard_normal(16)
    low = np.zeros(12)
    high = rng.uniform(0.1, 4.0, 12)
    best = optimize.lsq_linear(a, b, (low, high), tol=1e-14, max_iter=1000)
    starts = np.stack([low + 1e-9, high - 1e-9, 0.5 * high, low])
    with jax.enable_x64(True):
        problem = Quadratic(jnp.asarray(a), jnp.asarray(b))
        start = newton_start(starts, 100)
        found = newton_advance(
            problem, start, jnp.asarray(low), jnp.asarray(high), np.asarray(1e-9), np.asarray(100)
        )
    assert np.all(np.asarray(found.done))
    np.testing.assert_allclose(found.value, best.cost, rtol=1e-9)
