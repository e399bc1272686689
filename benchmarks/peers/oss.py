"""OSS: dynamic programming on the states of the student itself.

For every number of steps k and every point j of a teacher's trajectory the student keeps one state:
of all Euler steps to j from its states after k - 1 steps, the one that ends nearest to the
teacher's point. The path to the last point is a schedule; of several trajectories the median.

Source: Pei et al., "Optimal Stepsize for Diffusion Sampling" (2025), Algorithm 1,
https://arxiv.org/abs/2503.21774. The teacher has 200 steps as in its code, here at Karras's levels.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import jaxkernels as jk

from .found import Found, from_sigmas, teacher

TEACHER_STEPS = 200
TRAJECTORIES = 8


def search(denoiser: jk.AbstractDenoiser, num_steps: int, noise: Array, t_min: float) -> Found:
    """The median of the paths of trajectories from all rows of noise."""
    sigmas, points = teacher(denoiser, TEACHER_STEPS, t_min, noise)
    process = denoiser.process
    times = np.asarray(jk.schedules.karras(process, TEACHER_STEPS, t_min).times)
    a = np.asarray(process.signal(times))[:, None, None]
    shape = (len(noise), *noise.shape[1:])

    def slopes(states: np.ndarray) -> np.ndarray:
        x = jnp.asarray((a * states)[:-1], noise.dtype).reshape(TEACHER_STEPS, *shape)
        eps = _noise_at(denoiser, x, jnp.asarray(times[:-1], x.dtype))
        return np.asarray(eps, np.float64).reshape(TEACHER_STEPS, len(noise), -1)

    paths = best_paths(sigmas, points, slopes, num_steps)
    path = np.round(np.median(paths, 0)).astype(int)
    nfe = len(noise) * TEACHER_STEPS * (1 + num_steps)
    return Found(from_sigmas(process, sigmas[_increasing(path)], t_min), nfe)


@eqx.filter_jit
def _noise_at(
    denoiser: jk.AbstractDenoiser,
    x: Float[Array, "points n *shape"],
    times: Float[Array, " points"],
) -> Float[Array, "points n *shape"]:
    """The predicted noise of all points, each at its own time."""
    return jax.lax.map(lambda pair: denoiser(*pair).eps, (x, times))


def best_paths(
    sigmas: Float[np.ndarray, " points"],
    points: Float[np.ndarray, "points n d"],
    slopes: Callable[[np.ndarray], np.ndarray],
    num_steps: int,
) -> Int[np.ndarray, "n steps+1"]:
    """The path of every trajectory; `slopes(states)` are dy/dsigma at all points but the last."""
    count, n, _ = points.shape
    states = np.broadcast_to(points[0], points.shape).copy()
    reached = np.zeros((count, n), bool)
    reached[0] = True
    sources = []
    for _ in range(num_steps):
        rate = slopes(states)
        following = np.zeros_like(states)
        source = np.zeros((count, n), int)
        known = np.zeros((count, n), bool)
        for j in range(1, count):
            ends = states[:j] + (sigmas[j] - sigmas[:j])[:, None, None] * rate[:j]
            distance = np.where(reached[:j], np.sum((ends - points[j]) ** 2, -1), np.inf)
            source[j] = np.argmin(distance, 0)
            following[j] = ends[source[j], np.arange(n)]
            known[j] = np.isfinite(distance.min(0))
        states = following
        reached = known
        sources.append(source)
    path = [np.full(n, count - 1)]
    for source in reversed(sources):
        path.append(source[path[-1], np.arange(n)])
    return np.stack(path[::-1], 1)


def _increasing(path: Int[np.ndarray, " points"]) -> Int[np.ndarray, " points"]:
    """A path whose medians coincide, moved apart."""
    path = path.copy()
    for k in range(len(path) - 2, 0, -1):
        path[k] = min(path[k], path[k + 1] - 1)
    for k in range(1, len(path) - 1):
        path[k] = max(path[k], path[k - 1] + 1)
    return path
