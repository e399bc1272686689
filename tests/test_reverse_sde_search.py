"""The best h(t) for matrix errors and for mixtures, against other optimisers and a scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxkernels as jk
from jaxkernels.reverse_sde import (
    optimize_affine_diffusion,
    optimize_diffusion,
    optimize_mixture_diffusion,
)

T = 2.0
EDGES = np.array([0.0, 0.05, 0.4, T])


def _both(theta: jax.Array) -> jax.Array:
    return jnp.exp(-theta / 0.02) + jnp.exp(-(T - theta) / 0.5)


@pytest.mark.slow
def test_relative_errors_as_matrices() -> None:
    """c grad log p + b / sqrt(s) of off-centre data in rotated coordinates is affine."""
    lam = np.array([0.1, 0.8])
    mean = np.array([0.5, -1.0])
    angle = 0.4
    basis = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    along = jnp.asarray(basis)

    def s(theta: jax.Array) -> jax.Array:
        return 1.0 + jnp.asarray(lam - 1.0) * jnp.exp(-theta)

    def matrix(theta: jax.Array) -> jax.Array:
        return -_both(theta) * (along / s(theta)) @ along.T

    def shift(theta: jax.Array) -> jax.Array:
        center = jnp.asarray(basis.T @ mean) * jnp.exp(-0.5 * theta)
        return along @ (_both(theta) * center / s(theta) + 0.3 / jnp.sqrt(s(theta)))

    found = optimize_affine_diffusion(
        jk.Gaussian(mean, lam, basis=basis), matrix, T, shift=shift, cells=EDGES
    )
    modes = optimize_diffusion(jk.Gaussian(0.0, lam), _both, T, shift=0.3, cells=EDGES)
    for name in ("value", "ode", "sde"):
        np.testing.assert_allclose(getattr(found, name), getattr(modes, name), rtol=1e-9)
    np.testing.assert_allclose(
        found.stochasticity_squared, modes.stochasticity_squared, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found.best_constant, modes.best_constant, rtol=1e-5)
    assert found.converged
    assert found.infimum is None


def _leading_order(alpha2: np.ndarray, lam: np.ndarray, matrix: np.ndarray) -> float:
    """L of a matrix error times exp(-theta / 0.02) + exp(-(T - theta) / 0.5), in NumPy."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    change = np.zeros_like(matrix)
    before = np.zeros_like(lam)
    y = lambda theta: np.log1p(np.expm1(theta) / lam)  # noqa: E731
    for low, high, h2 in zip(EDGES[:-1], EDGES[1:], alpha2, strict=True):
        for x, w in zip(nodes, weights, strict=True):
            # nodes uniform in the natural time of the first mode
            ends = np.log1p(np.expm1([low, high]) / lam[0])
            z = ends[0] + 0.5 * (1.0 + x) * (ends[1] - ends[0])
            theta = np.log1p(lam[0] * np.expm1(z))
            s = 1.0 + (lam - 1.0) * np.exp(-theta)
            size = 0.5 * w * (ends[1] - ends[0]) * s[0]
            size *= np.exp(-theta / 0.02) + np.exp(-(T - theta) / 0.5)
            half = np.exp(-0.5 * (before + h2 * (y(theta) - y(low))))
            g = matrix * np.sqrt(s / s[:, None])
            change += 0.5 * size * (1.0 + h2) * half[:, None] * half * (g + g.T)
        before = before + h2 * (y(high) - y(low))
    return 0.25 * float(np.sum(change**2))


@pytest.mark.slow
def test_matrix_errors_against_another_optimiser() -> None:
    """A full matrix that does not commute with the data: three cells, L-BFGS with differences."""
    lam = np.array([0.1, 0.8])
    matrix = np.array([[-8.0, 3.0], [2.0, -1.0]])
    found = optimize_affine_diffusion(
        jk.Gaussian(0.0, lam), lambda theta: _both(theta) * jnp.asarray(matrix), T, cells=EDGES
    )
    cost = lambda alpha2: _leading_order(alpha2, lam, matrix)  # noqa: E731
    np.testing.assert_allclose(cost(found.stochasticity_squared), found.value, rtol=1e-8)
    np.testing.assert_allclose(cost(np.ones(3)), found.sde, rtol=1e-8)
    runs = [
        minimize(lambda z: np.log(cost(z)), z, bounds=[(0.0, 100.0)] * 3, method="L-BFGS-B")
        for z in (np.ones(3), np.array([0.1, 5.0, 20.0]), np.array([0.0, 50.0, 50.0]))
    ]
    least = min(float(np.exp(run.fun)) for run in runs)
    np.testing.assert_allclose(found.value, least, rtol=1e-5)
    assert found.value < 0.9 * found.best_constant.value


def test_a_mixture_in_two_dimensions() -> None:
    two = jk.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    with pytest.raises(ValueError, match="target has dimension 2; it must be 1"):
        optimize_mixture_diffusion(two, "score", T)


@pytest.mark.slow
def test_mixtures() -> None:
    """One component is the Gaussian of `optimize_diffusion`; two modes beat a scan of h^2."""
    edges = np.array([0.0, 0.1, T])

    def error(x: jax.Array, theta: jax.Array, score: jax.Array) -> jax.Array:
        return _both(theta) * score

    options = {"cells": edges, "grid_cells": 64, "time_steps": 48}
    one = jk.GaussianMixture([1.0], [[0.0]], [0.04])
    found = optimize_mixture_diffusion(one, error, T, **options)
    exact = optimize_diffusion(jk.Gaussian(0.0, [0.04]), _both, T, cells=edges)
    np.testing.assert_allclose(found.value, exact.value, rtol=2e-2)
    np.testing.assert_allclose(found.best_constant.value, exact.best_constant.value, rtol=2e-2)
    assert found.gain > 1.5
    two = jk.GaussianMixture([0.5, 0.5], [[-0.6], [0.6]], [0.04, 0.04])
    found = optimize_mixture_diffusion(two, error, T, **options)
    with jax.enable_x64(True):
        value = jax.jit(
            jax.vmap(
                lambda alpha2: (
                    jk.leading_order_1d(
                        two, error, alpha2, T, breakpoints=[0.1], cells=64, time_steps=48
                    ).value
                )
            )
        )
        axis = np.concatenate([[0.0], np.geomspace(0.1, 100.0, 7)])
        scan = np.asarray(value(jnp.asarray(np.array(np.meshgrid(axis, axis)).reshape(2, -1).T)))
        own = value(jnp.asarray(found.stochasticity_squared)[None])[0]
    np.testing.assert_allclose(found.value, own, rtol=2e-2)
    assert own <= 1.01 * scan.min()
    assert found.value <= found.best_constant.value
    assert found.converged
