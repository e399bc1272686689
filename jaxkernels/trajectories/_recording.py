"""Recording trajectories of a network and their sensitivities."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._compile import quick_filter_jit
from .._progress import Progress
from .._types import AnyArray, constant
from ..prediction import (
    AbstractDenoiser,
    Prediction,
    check_denoiser,
    in_working_precision,
)
from ..processes import AbstractProcess, check_range, sigma_range
from ..samplers import RK4
from ..schedules import Step, TimeCoordinate
from ._record import TrajectoryRecord, node_times
from ._spline import spline_fit

_LEAST_NODES = 8

# above this sigma nodes get sparse, if sigma is infinite at t_max
_HIGH = 1e2


def record(
    denoiser: AbstractDenoiser,
    noise: Float[AnyArray, "trajectories *shape"],
    *,
    t_min: ArrayLike,
    nodes: int = 64,
    directions: int = 8,
    batch: int = 32,
    key: Array | None = None,
    progress: bool = True,
) -> TrajectoryRecord:
    """Record trajectories of a denoiser and their sensitivities.

    A solver runs forward from `noise` and back with vector-Jacobian products. To record in pieces,
    or on several workers, call it with parts of the noise and pass the records to
    `TrajectoryRecord.concatenate`: calls with the same denoiser and the same number of rows share
    one compiled program.

    **Arguments:**

    - `denoiser`: differentiable in x by JAX.
    - `noise`: initial noise (trajectories >= 2, ...), as for `sample`. 128 suffice for typical
      samples; if a few trajectories decide the root mean square, more are needed.
    - `t_min`: last time of the trajectories, with sigma(t_min) > 0.
    - `nodes`: points in time, >= 8, evenly spaced in log sigma, with one step of `RK4` between two.
    - `directions`: number of random orthogonal directions of the end point's error, >= 1; at most
      the dimension d is used.
    - `batch`: trajectories at a time, at most. Batches have the same size; the last is filled up by
      repeating rows. Memory is about nodes x (directions + 2) x batch x d numbers, and the result
      holds 2 nodes^2 x trajectories x directions.
    - `key`: for the directions; fixed by default.
    - `progress`: show a status line on a terminal.

    NFE: see `TrajectoryRecord.nfe`, about nodes x (9 + 8 directions) per trajectory.

    **Returns:** a `TrajectoryRecord`.

    **Raises:** ValueError naming the argument, or if a trajectory becomes non-finite.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> jk.record(denoiser, np.eye(2), t_min=1e-3, nodes=16)
    TrajectoryRecord(2 trajectories, 16 nodes, 2 directions)
    ```
    """
    coordinate, _, batches = follow(
        denoiser,
        noise,
        t_min=t_min,
        nodes=nodes,
        directions=directions,
        batch=batch,
        key=key,
        progress=progress,
    )
    fit = spline_fit(nodes)
    products = []
    ends = []
    for followed in batches:
        products.append(inner_products(followed, fit))
        ends.append(followed.end)
    return in_units(coordinate, t_min, np.concatenate(products, 3), np.concatenate(ends))


class Followed(NamedTuple):
    """A batch of trajectories at the nodes of a record."""

    split: Float[np.ndarray, "nodes 2 batch d"]
    """Denoised points and noise."""
    sensitivity: Float[np.ndarray, "nodes directions batch d"]
    """(dx_end / dx(t))^T u of every direction u of length sqrt(d)."""
    end: Float[np.ndarray, "batch d"]


def follow(
    denoiser: AbstractDenoiser,
    noise: Float[AnyArray, "trajectories *shape"],
    *,
    t_min: ArrayLike,
    nodes: int,
    directions: int,
    batch: int,
    key: Array | None,
    progress: bool,
) -> tuple[TimeCoordinate, Float[AnyArray, " nodes"], Iterator[Followed]]:
    """Coordinate and times of the nodes, and trajectories by batches; arguments as of `record`."""
    process = check_denoiser(denoiser).process
    low_time = check_range(process, 1, t_min)
    nodes = _checks.count("nodes", nodes, at_least=_LEAST_NODES)
    denoiser, x = in_working_precision(denoiser, _check_noise(noise))
    batch = _checks.count("batch", batch)
    frame = _directions(x, _checks.count("directions", directions), key)
    coordinate = _time_coordinate(process, low_time)
    times = constant(node_times(coordinate, nodes, low_time))
    return coordinate, times, _followed(denoiser, times, x, frame, batch, progress)


def _followed(
    denoiser: AbstractDenoiser,
    times: Float[AnyArray, " nodes"],
    x: Float[Array, "trajectories *shape"],
    frame: Float[Array, "directions *shape"],
    batch: int,
    progress: bool,
) -> Iterator[Followed]:
    """Batches of trajectories that are finite, in float64."""
    with Progress("recording: compiling", progress) as line:
        for rows, count in _batches(x.shape[0], batch):
            split, sensitivity, end = (
                # local errors are small differences of these
                np.asarray(array, np.float64)
                for array in _follow(denoiser, times, x[rows], frame)
            )
            last = int(rows[0]) + count - 1
            if not (np.all(np.isfinite(split)) and np.all(np.isfinite(sensitivity))):
                raise ValueError(
                    f"trajectories {rows[0]} to {last} or their sensitivities are not finite: the "
                    "network returned NaN or infinity, or its prediction is undefined at t_max or "
                    "t_min."
                )
            yield Followed(split[:, :, :count], sensitivity[:, :, :count], end[:count])
            line.update(f"recording: trajectory {last + 1} of {x.shape[0]}")


def _check_noise(noise: Float[AnyArray, "trajectories *shape"]) -> Array:
    """Floating initial noise of at least two trajectories."""
    x = jnp.asarray(noise)
    if x.ndim < 2 or x.shape[0] < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"noise has shape {x.shape}, dtype {x.dtype}; it must be floating "
            "(trajectories >= 2, ...)."
        )
    return x


def _directions(x: Array, count: int, key: Array | None) -> Float[Array, "directions *shape"]:
    """Random orthogonal vectors of length sqrt(d) in the shape of a trajectory's point."""
    dim = int(np.prod(x.shape[1:]))
    count = min(count, dim)
    key = jax.random.key(0) if key is None else key
    normal = np.asarray(jax.random.normal(key, (dim, count)))
    frame = np.linalg.qr(normal)[0].T * np.sqrt(dim)
    return jnp.asarray(frame.reshape(count, *x.shape[1:]), x.dtype)


def _time_coordinate(process: AbstractProcess, t_min: float) -> TimeCoordinate:
    """log sigma from t_max to t_min, finite at t_max."""
    high, low = sigma_range(process, t_min)
    if low == 0:
        raise ValueError(
            f"t_min = {t_min:g} has no noise, where eps is undefined; record down to a small "
            "t_min > 0."
        )
    bound = np.asarray(np.inf if np.isfinite(high) else _HIGH)
    return TimeCoordinate(process, np.asarray(process.t_max), np.asarray(0.0), bound)


def _batches(total: int, largest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of equally many rows, the last ones repeated at the end, and how many are new."""
    size = -(-total // -(-total // largest))
    for begin in range(0, total, size):
        rows = np.arange(begin, begin + size)
        yield np.minimum(rows, total - 1), min(size, total - begin)


@quick_filter_jit
def _follow(
    denoiser: AbstractDenoiser,
    times: Float[Array, " nodes"],
    x: Float[Array, "batch *shape"],
    frame: Float[Array, "directions *shape"],
) -> tuple[
    Float[Array, "nodes 2 batch d"],
    Float[Array, "nodes directions batch d"],
    Float[Array, "batch d"],
]:
    """(D, eps) and sensitivities at the nodes, and the end points, of a batch of trajectories."""
    denoiser = denoiser.astype(x.dtype)
    times = times.astype(x.dtype)
    steps = (times[:-1], times[1:])

    def forward(x: Array, step: tuple[Array, Array]) -> tuple[Array, tuple[Array, Prediction]]:
        return _advance(denoiser, x, *step), (x, denoiser(x, step[0]))

    end, (path, split) = jax.lax.scan(forward, x, steps)
    split = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b[None]]), split, denoiser(end, times[-1])
    )

    def backward(
        sensitivity: Array, inputs: tuple[Array, tuple[Array, Array]]
    ) -> tuple[Array, Array]:
        x, step = inputs
        pull_back = jax.vjp(lambda x: _advance(denoiser, x, *step), x)[1]
        earlier = jax.vmap(lambda v: pull_back(v)[0])(sensitivity)
        return earlier, earlier

    last = jnp.broadcast_to(frame[:, None], (len(frame), *x.shape))
    _, earlier = jax.lax.scan(backward, last, (path, steps), reverse=True)
    sensitivity = jnp.concatenate([earlier, last[None]])
    both = jnp.stack([split.x0, split.eps], 1)
    return (
        both.reshape(*both.shape[:3], -1),
        sensitivity.reshape(*sensitivity.shape[:3], -1),
        end.reshape(len(end), -1),
    )


def _advance(denoiser: AbstractDenoiser, x: Array, t: Array, until: Array) -> Array:
    """One deterministic step of `RK4`."""
    none = jnp.zeros((), int)
    step = Step(t, until, jnp.zeros(0, x.dtype), jnp.zeros((), x.dtype), none, none)
    return RK4().step(denoiser, jnp.zeros_like, denoiser.process, step, x, ())[0]


def inner_products(
    followed: Followed, fit: Float[np.ndarray, "splines nodes"]
) -> Float[np.ndarray, "splines splines 2 batch directions"]:
    """Spline coefficients of the inner products between all pairs of nodes."""
    sensitivity = followed.sensitivity
    nodes, directions, batch, dim = sensitivity.shape
    rows = sensitivity.transpose(2, 1, 0, 3).reshape(batch, directions * nodes, dim)
    columns = followed.split.transpose(2, 3, 1, 0).reshape(batch, dim, 2 * nodes)
    inner = (rows @ columns).reshape(batch, directions, nodes, 2, nodes)
    return np.einsum("Jj,Ii,mpjci->JIcmp", fit, fit, inner, optimize=True)


def in_units(
    coordinate: TimeCoordinate,
    t_min: ArrayLike,
    products: Float[np.ndarray, "splines splines 2 trajectories directions"],
    ends: Float[np.ndarray, "trajectories d"],
) -> TrajectoryRecord:
    """The record in units of the end points' standard deviation."""
    scale = np.sqrt(np.sum(ends.var(0)))
    if scale == 0.0:
        raise ValueError("all trajectories end at one point; are all rows of noise the same?")
    return TrajectoryRecord(
        coordinate,
        constant(products / scale),
        constant(t_min),
        constant(scale),
        constant(ends.mean(0)),
    )
