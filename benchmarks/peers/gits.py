"""GITS: a path through the points of a teacher's trajectories, by dynamic programming.

The cost of a step from point i to point j > i of the teacher is how far one Euler step from its
i-th point ends from its j-th. A path of K steps minimises, from its last step to its first,

    V(i, k) = min_j  cost(i, j) + coefficient V(j, k - 1).

Source: Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling" (2024),
Algorithm 1, https://arxiv.org/abs/2405.11326, with the defaults of its code: 256 trajectories, 61
points at Karras's levels (rho = 7), coefficient 1.15.
"""

import numpy as np
from jaxtyping import Array, Float

import jaxkernels as jk

from .found import Found, from_sigmas, teacher

TRAJECTORIES = 256
POINTS = 61
COEFFICIENT = 1.15
COSTS = ("dev", "l2")


def search(
    denoiser: jk.AbstractDenoiser, num_steps: int, noise: Array, t_min: float, cost: str
) -> Found:
    """The schedule of the best path from all rows of noise; `cost` is "dev" or "l2"."""
    sigmas, points = teacher(denoiser, POINTS - 1, t_min, noise)
    path = best_path(costs(sigmas, points, cost), num_steps, COEFFICIENT)
    nfe = (POINTS - 1) * len(noise)
    return Found(from_sigmas(denoiser.process, sigmas[path], t_min), nfe)


def costs(
    sigmas: Float[np.ndarray, " points"], points: Float[np.ndarray, "points n d"], cost: str
) -> Float[np.ndarray, "points points"]:
    """How far an Euler step from point i ends from point j, on average: in the Euclidean norm
    ("l2"), or how much farther from the line between the ends of the trajectory ("dev")."""
    count = len(sigmas)
    slopes = np.diff(points, axis=0) / np.diff(sigmas)[:, None, None]
    found = np.full((count, count), np.inf)
    for i in range(count - 1):
        reached = points[i] + (sigmas[i + 1 :] - sigmas[i])[:, None, None] * slopes[i]
        if cost == "l2":
            distance = np.linalg.norm(reached - points[i + 1 :], axis=-1)
        else:
            own = _deviation(points[i + 1 :], points[0], points[-1])
            distance = _deviation(reached, points[0], points[-1]) - own
        found[i, i + 1 :] = distance.mean(1)
    return found


def _deviation(x: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Distance from the straight line between two points."""
    unit = (last - first) / np.linalg.norm(last - first, axis=-1, keepdims=True)
    offset = last - x
    along = np.sum(offset * unit, -1, keepdims=True)
    return np.linalg.norm(offset - along * unit, axis=-1)


def best_path(
    cost: Float[np.ndarray, "points points"], num_steps: int, coefficient: float
) -> list[int]:
    """Indices of the path of `num_steps` steps from the first to the last point."""
    values = cost[:, -1]
    following = []
    for _ in range(num_steps - 1):
        total = cost + coefficient * values
        following.append(np.argmin(total, 1))
        values = np.min(total, 1)
    path = [0]
    for choice in reversed(following):
        path.append(int(choice[path[-1]]))
    return [*path, len(cost) - 1]
