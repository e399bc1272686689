"""Align Your Steps: an upper bound of the Kullback-Leibler divergence of a stochastic sampler.

A step from noise level s to u keeps the denoised point D(x_s, s). The bound is a sum over steps of

    int_u^s  t^-3  E |D(x_t, t) - D(x_s, s)|^2  dt,       x_s = x_t + sqrt(s^2 - t^2) z,

estimated by Monte Carlo, with levels t drawn where isotropic Gaussian data of the same variance put
the integral. Each level in turn takes the best of 11 places between its neighbours, until none
moves.

Source: Sabour, Fidler and Kreis, "Align Your Steps: Optimizing Sampling Schedules in Diffusion
Models" (2024), equation (9) and appendix B, https://arxiv.org/abs/2404.14507. Levels are placed
evenly in log(sigma), and all K are optimised (the paper interpolates schedules of 10 steps).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxkernels as jk

from .found import Found, from_sigmas

PLACES = 11
SAMPLES = 256
SWEEPS = 10


def search(
    denoiser: jk.AbstractDenoiser, data: np.ndarray, t_min: float, start: jk.Schedule
) -> Found:
    """The schedule with the least bound, from another schedule; data (n, d)."""
    estimate = Bound(denoiser, data)
    sigmas = descend(estimate, np.asarray(start.sigmas(denoiser.process), np.float64))
    return Found(from_sigmas(denoiser.process, sigmas, t_min), estimate.nfe)


def descend(bound: Callable[[float, float], float], sigmas: np.ndarray) -> np.ndarray:
    """Coordinate descent of a sum over steps of bound(s, u)."""
    sigmas = sigmas.copy()
    for _ in range(SWEEPS):
        moved = False
        for i in range(1, len(sigmas) - 1):
            above, here, below = sigmas[i - 1 : i + 2]
            places = np.exp(np.linspace(np.log(above), np.log(below), PLACES + 2)[1:-1])
            places = np.append(places, here)
            values = [bound(above, place) + bound(place, below) for place in places]
            sigmas[i] = places[np.argmin(values)]
            moved |= sigmas[i] != here
        if not moved:
            break
    return sigmas


class Bound:
    """A Monte Carlo estimate of a step's bound, the same random numbers for all steps."""

    def __init__(self, denoiser: jk.AbstractDenoiser, data: np.ndarray):
        self.denoiser = denoiser
        self.variance = float(np.mean(data.var(0)))
        self.nfe = 0
        rng = np.random.default_rng(0)
        rows = data[rng.choice(len(data), SAMPLES)]
        z, more = rng.standard_normal((2, *rows.shape))
        # stratified
        self._share = (rng.permutation(SAMPLES) + rng.random(SAMPLES)) / SAMPLES
        self._x0 = jnp.asarray(rows, float)
        self._z = jnp.asarray(z, float)
        self._more = jnp.asarray(more, float)

    def __call__(self, above: float, below: float) -> float:
        levels, density = importance(above, below, self.variance, self._share)
        at = (jnp.asarray(levels, float), jnp.asarray(above, float))
        squared = _differences(self.denoiser, self._x0, self._z, self._more, *at)
        self.nfe += 2 * SAMPLES
        return float(np.mean(np.asarray(squared, np.float64) / levels**3 / density))


def importance(
    above: float, below: float, variance: float, share: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Levels at given shares of the Gaussian's integral, and their probability density."""
    grid = np.exp(np.linspace(np.log(below), np.log(above), 401))
    value = (above**2 - grid**2) / (variance + grid**2) / grid**3
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (value[1:] + value[:-1]) * np.diff(grid))])
    levels = np.interp(share, mass / mass[-1], grid)
    cell = np.clip(np.searchsorted(grid, levels, "right") - 1, 0, len(grid) - 2)
    return levels, np.diff(mass)[cell] / np.diff(grid)[cell] / mass[-1]


@eqx.filter_jit
def _differences(
    denoiser: jk.AbstractDenoiser,
    x0: Float[Array, "n d"],
    z: Float[Array, "n d"],
    more: Float[Array, "n d"],
    levels: Float[Array, " n"],
    above: Float[Array, ""],
) -> Float[Array, " n"]:
    """|D(x_t, t) - D(x_s, s)|^2 of every sample, each at its own level."""
    process = denoiser.process

    def denoise(y: Array, sigma: Array) -> Array:
        t = process.time_at_sigma(sigma)
        return denoiser((process.signal(t) * y)[None], t).x0[0]

    def one(x0: Array, z: Array, more: Array, sigma: Array) -> Array:
        y = x0 + sigma * z
        later = y + jnp.sqrt(jnp.maximum(above**2 - sigma**2, 0.0)) * more
        return jnp.sum((denoise(y, sigma) - denoise(later, above)) ** 2)

    return jax.vmap(one)(x0, z, more, levels)
