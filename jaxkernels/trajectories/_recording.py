"""Recording trajectories of a network and their sensitivities."""

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._compile import quick_filter_jit
from .._nfe import EVALUATION, VECTOR_JACOBIAN_PRODUCT
from .._precision import in_float64, to_float64
from .._progress import Progress
from .._types import AnyArray, constant
from ..prediction import (
    AbstractDenoiser,
    Prediction,
    check_denoiser,
    in_working_precision,
)
from ..processes import AbstractProcess, check_range, sigma_range
from ..samplers import RK4, check_noise
from ..schedules import Schedule, Step, TimeCoordinate
from ._record import TrajectoryRecord, end_scale, node_times
from ._spline import BLOCK, spline_fit

_LEAST_NODES = 8

# above this sigma nodes get sparse, if sigma is infinite at t_max
_HIGH = 1e2


def record(
    denoiser: AbstractDenoiser,
    noise: Float[AnyArray, "trajectories *shape"],
    *,
    t_min: ArrayLike | None = None,
    nodes: int = 64,
    directions: int = 8,
    batch: int = 32,
    key: Array | None = None,
    progress: bool = True,
) -> TrajectoryRecord:
    """Record trajectories of a denoiser and their sensitivities.

    A solver runs forward from `noise`. Then the sensitivity A = (dx_end/dx)^T u of a component of
    the end point is followed back along the trajectory: with y = x / a and the Jacobian
    J = dD/dy,

        dA_y / dlog(sigma) = -(1 - J^T) A_y,      A_x = A_y / a,                              (1)

    one vector-Jacobian product at each node. Pipelines end with a step to sigma = 0, whatever the
    level before it, and so do trajectories with t_min = 0: from the last node, x_end = D(x). To
    record in pieces, or on several workers, call it
    with parts of the noise and append the records by `TrajectoryRecord.concatenate`: calls with the
    same denoiser and the same number of rows share one compiled program.

    **Arguments:**

    - `denoiser`: differentiable in x by JAX.
    - `noise`: initial noise (trajectories >= 2, ...), as for `sample`. 128 suffice for typical
      samples; if a few trajectories decide the root mean square, more are needed.
    - `t_min`: last time of the trajectories, by default the denoiser's `default_t_min`. Where
      sigma(t_min) = 0 the last node is the smallest time that the network was trained for, or the
      process's `default_t_min`.
    - `nodes`: points in time, >= 8, evenly spaced in log sigma, with one step of `RK4` between two.
    - `directions`: number of random orthogonal directions of the end point's error, >= 1; at most
      the dimension d is used.
    - `batch`: trajectories at a time, at most. Batches have the same size; the last is filled up by
      repeating rows. Memory is about nodes x (directions + 2) x batch x d numbers, and the result
      holds 2 nodes^2 x trajectories x directions.
    - `key`: for the directions; fixed by default.
    - `progress`: show a status line on a terminal.

    NFE per trajectory: (nodes - 1) (5 + 2 directions) + 1, and 1 + 2 directions more if
    sigma(t_min) = 0, see `TrajectoryRecord.nfe`. The status
    line shows those of all trajectories from the start.

    **Returns:** a `TrajectoryRecord`.

    **Raises:** ValueError naming the argument, or if a trajectory becomes non-finite.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> jk.record(denoiser, np.eye(2), t_min=1e-3, nodes=16)
    TrajectoryRecord(2 trajectories, 16 nodes, 2 directions)
    ```
    """
    followed = follow(
        denoiser,
        noise,
        t_min=t_min,
        nodes=nodes,
        directions=directions,
        batch=batch,
        key=key,
        progress=progress,
    )
    return as_record(followed)


class FollowedBatch(NamedTuple):
    """A batch of trajectories at the nodes of a record."""

    split: Float[np.ndarray, "nodes 2 batch d"]
    """Denoised points and noise."""
    sensitivity: Float[np.ndarray, "nodes directions batch d"]
    """(dx_end / dx(t))^T u of every direction u of length sqrt(d)."""
    end: Float[np.ndarray, "batch d"]
    last: Float[np.ndarray, "directions d"] | None
    """Every u, which is the sensitivity at the end; None if that is at the last node."""


class Followed(NamedTuple):
    """Trajectories that are followed, batch by batch, while `batches` is read."""

    coordinate: TimeCoordinate
    times: Float[AnyArray, " nodes"]
    t_min: float
    noise: Float[AnyArray, "trajectories *shape"]
    nfe: int
    batches: Iterator[FollowedBatch]


def follow(
    denoiser: AbstractDenoiser,
    noise: Float[AnyArray, "trajectories *shape"],
    *,
    t_min: ArrayLike | None,
    nodes: int,
    directions: int,
    batch: int,
    key: Array | None,
    progress: bool,
) -> Followed:
    """Trajectories and their sensitivities by batches; arguments as of `record`."""
    coordinate, times, end_time = place_nodes(denoiser, t_min, nodes)
    denoiser, x = in_working_precision(denoiser, check_noise(noise, at_least=2))
    batch = _checks.count("batch", batch)
    frame = _directions(x, _checks.count("directions", directions), key)
    to_zero = bool(times[-1] > end_time)
    steps = (constant(times), constant(sensitivity_weights(coordinate.process, times)))
    nfe = denoiser.nfe * record_nfe(rows_run(x.shape[0], batch), len(times), len(frame), to_zero)
    batches = _followed(denoiser, steps, x, frame, batch, nfe, to_zero, progress)
    return Followed(coordinate, steps[0], end_time, cast(AnyArray, np.asarray(x)), nfe, batches)


def _followed(
    denoiser: AbstractDenoiser,
    steps: tuple[Float[AnyArray, " nodes"], Float[AnyArray, "steps 2 3"]],
    x: Float[Array, "trajectories *shape"],
    frame: Float[Array, "directions *shape"],
    batch: int,
    nfe: int,
    to_zero: bool,
    progress: bool,
) -> Iterator[FollowedBatch]:
    """Batches of trajectories that are finite, in float64."""
    noise = np.asarray(x)
    vectors = np.asarray(frame, np.float64).reshape(len(frame), -1) if to_zero else None
    with Progress(f"recording, NFE {nfe:,}: compiling", progress) as line:
        for rows, count in row_batches(x.shape[0], batch):
            split, sensitivity, end = (
                # local errors are small differences of these
                np.asarray(array, np.float64)
                for array in _follow(
                    denoiser.take(rows), *steps, jax.device_put(noise[rows]), frame, to_zero
                )
            )
            last = int(rows[0]) + count - 1
            name = f"trajectories {rows[0]} to {last} or their sensitivities"
            check_finite(name, split, sensitivity)
            kept = (split[:, :, :count], sensitivity[:, :, :count], end[:count])
            yield FollowedBatch(*kept, vectors)
            line.update(f"recording, NFE {nfe:,}: trajectory {last + 1} of {x.shape[0]}")


def check_finite(name: str, *arrays: np.ndarray) -> None:
    """Raise, naming what they are, unless all are finite."""
    if not all(np.all(np.isfinite(array)) for array in arrays):
        raise ValueError(
            f"{name} are not finite: the network returned NaN or infinity, or its prediction is "
            "undefined at t_max or t_min."
        )


def record_nfe(trajectories: int, nodes: int, directions: int, to_zero: bool = False) -> int:
    """Count the NFE of a record.

        (nodes - 1) (4 + 1 + 2 directions) + 1    per trajectory

    and 1 + 2 directions more for a step to sigma = 0. Forward a step of `RK4` between two nodes,
    whose first evaluation is that of the node, and the last node; back one evaluation and its
    vector-Jacobian products at every node but the first.

    **Arguments:**

    - `trajectories`: number of trajectories that are run.
    - `nodes`: points in time.
    - `directions`: of the end point's error, at most the dimension.
    - `to_zero`: whether a step from the last node to sigma = 0 follows.

    **Returns:** the NFE.
    """
    forward = RK4.nfe_per_step * (nodes - 1) + 1
    pulled_back = nodes if to_zero else nodes - 1
    backward = pulled_back * (EVALUATION + directions * VECTOR_JACOBIAN_PRODUCT)
    return trajectories * (forward + backward)


def _directions(x: Array, count: int, key: Array | None) -> Float[Array, "directions *shape"]:
    """Random orthogonal vectors of length sqrt(d) in the shape of a trajectory's point."""
    dim = int(np.prod(x.shape[1:]))
    count = min(count, dim)
    key = jax.random.key(0) if key is None else _checks.random_key("key", key)
    normal = np.asarray(jax.random.normal(key, (dim, count)))
    frame = np.linalg.qr(normal)[0].T * np.sqrt(dim)
    return jnp.asarray(frame.reshape(count, *x.shape[1:]), x.dtype)


def place_nodes(
    denoiser: AbstractDenoiser, t_min: ArrayLike | None, nodes: int
) -> tuple[TimeCoordinate, np.ndarray, float]:
    """Coordinate and times of the nodes, and the last time, which may be below the last node."""
    process = check_denoiser(denoiser).process
    end_time = check_range(process, 1, denoiser.default_t_min if t_min is None else t_min)
    low_time = last_node(process, end_time)
    nodes = _checks.count("nodes", nodes, at_least=_LEAST_NODES)
    coordinate = log_sigma_coordinate(process, low_time)
    return coordinate, node_times(coordinate, nodes, low_time), end_time


def last_node(process: AbstractProcess, t_min: float) -> float:
    """The last node of trajectories to t_min, where there is noise, and so an eps."""
    if sigma_range(process, t_min)[1] > 0:
        return t_min
    return max(process.trained_t_min, process.default_t_min)


def log_sigma_coordinate(process: AbstractProcess, t_min: float) -> TimeCoordinate:
    """log sigma from t_max to t_min, finite at t_max."""
    high, _ = sigma_range(process, t_min)
    bound = np.asarray(np.inf if np.isfinite(high) else _HIGH)
    return TimeCoordinate(process, np.asarray(process.t_max), np.asarray(0.0), bound)


def row_batches(total: int, largest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of equally many rows, the last ones repeated at the end, and how many are new."""
    size = -(-total // -(-total // largest))
    for begin in range(0, total, size):
        rows = np.arange(begin, begin + size)
        yield np.minimum(rows, total - 1), min(size, total - begin)


def rows_run(total: int, largest: int) -> int:
    """How many rows `row_batches` gives, repeated ones included."""
    return sum(len(rows) for rows, _ in row_batches(total, largest))


@quick_filter_jit
def _follow(
    denoiser: AbstractDenoiser,
    times: Float[Array, " nodes"],
    weights: Float[Array, "steps 2 3"],
    x: Float[Array, "batch *shape"],
    frame: Float[Array, "directions *shape"],
    to_zero: bool,
) -> tuple[
    Float[Array, "nodes 2 batch d"],
    Float[Array, "nodes directions batch d"],
    Float[Array, "batch d"],
]:
    """(D, eps) and sensitivities at the nodes, and the end points, of a batch of trajectories."""
    denoiser = denoiser.astype(x.dtype)
    times = times.astype(x.dtype)

    def forward(x: Array, step: tuple[Array, Array]) -> tuple[Array, tuple[Array, Prediction]]:
        after, split = _advance(denoiser, x, *step)
        return after, (x, split)

    end, (path, split) = jax.lax.scan(forward, x, (times[:-1], times[1:]))
    path = jnp.concatenate([path, end[None]])
    split = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b[None]]), split, denoiser(end, times[-1])
    )
    below = jnp.broadcast_to(frame[:, None], (len(frame), *x.shape))
    if to_zero:
        # x_end = D(x) of the last node
        end, pull_back = jax.vjp(lambda x: denoiser(x, times[-1]).x0, path[-1])
        below = jax.vmap(lambda u: pull_back(u)[0])(below)
    sensitivity = _sensitivities(denoiser, times, weights.astype(x.dtype), path, below)
    both = jnp.stack([split.x0, split.eps], 1)
    return (
        both.reshape(*both.shape[:3], -1),
        sensitivity.reshape(*sensitivity.shape[:3], -1),
        end.reshape(len(end), -1),
    )


def _sensitivities(
    denoiser: AbstractDenoiser,
    times: Float[Array, " nodes"],
    weights: Float[Array, "steps 2 3"],
    path: Float[Array, "nodes batch *shape"],
    last: Float[Array, "directions batch *shape"],
) -> Float[Array, "nodes directions batch *shape"]:
    """Equation (1) of `record`, back from the sensitivities at the last node.

    In terms of B = sigma A_y = s A_x it is

        dB / dsigma = J^T A_y = (a^2 / s) (dD/dx)^T B,

    and J^T A_y varies slowly in log(sigma), as D does forward. A step predicts B at the next node
    by extrapolation and corrects it when J^T A_y is known there, as UniPC does with D.
    """
    process = denoiser.process

    def backward(
        state: tuple[Array, ...], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, ...], Array]:
        corrected, predicted, below, below_that = state
        x, t, (correction, prediction) = inputs
        pull_back = jax.vjp(lambda x: denoiser(x, t).x0, x)[1]
        pulled = jax.vmap(lambda u: pull_back(u)[0])(predicted)
        rate = process.signal(t) ** 2 / process.noise(t) * pulled

        def integral(weight: Array) -> Array:
            return weight[0] * rate + weight[1] * below + weight[2] * below_that

        corrected = corrected + integral(correction)
        return (corrected, corrected + integral(prediction), rate, below), corrected

    noise = process.noise(times)
    last = noise[-1] * last
    start = (last, last, jnp.zeros_like(last), jnp.zeros_like(last))
    inputs = (path[1:], times[1:], weights)
    (_, first, _, _), others = jax.lax.scan(backward, start, inputs, reverse=True)
    scaled = jnp.concatenate([first[None], others])
    return scaled / noise.reshape(-1, *[1] * (scaled.ndim - 1))


def _advance(
    denoiser: AbstractDenoiser, x: Array, t: Array, until: Array
) -> tuple[Array, Prediction]:
    """One deterministic step of `RK4`, and its first prediction, that at x."""
    none = jnp.zeros((), int)
    step = Step(t, until, jnp.zeros(0, x.dtype), jnp.zeros((), x.dtype), none, none)
    first = denoiser(x, t)
    calls = 0

    def predict(x: Array, t: Array) -> Prediction:
        nonlocal calls
        calls += 1
        return first if calls == 1 else denoiser(x, t)

    return RK4().step(predict, jnp.zeros_like, denoiser.process, step, x, ())[0], first


@in_float64
def sensitivity_weights(
    process: AbstractProcess, times: Float[np.ndarray, " nodes"]
) -> Float[np.ndarray, "steps 2 3"]:
    """Weights of a function of sigma at a node and the two below in its integrals beside the node.

    Of every node but the first: from the node below to it, and from it to the node above. The
    function is the quadratic in log(sigma) through its three values, or has a lower degree where
    there are no more nodes below; to sigma = infinity it falls as sigma^-3.
    """
    process = to_float64(process)
    sigma = np.asarray(Schedule(times).sigmas(process))
    level = np.log(sigma)
    weights = np.zeros((len(times) - 1, 2, 3))
    for j in range(1, len(times)):
        nodes = level[j : j + 3] - level[j]
        used = slice(len(nodes))
        if len(nodes) > 1:
            weights[j - 1, 0, used] = sigma[j] * _integrals(nodes, nodes[1], 0.0)
        if np.isinf(level[j - 1]):
            weights[j - 1, 1, 0] = 0.5 * sigma[j]
        else:
            weights[j - 1, 1, used] = sigma[j] * _integrals(nodes, 0.0, level[j - 1] - level[j])
    return weights


def _integrals(
    nodes: Float[np.ndarray, " points"], low: float, high: float
) -> Float[np.ndarray, " points"]:
    """Weights of the values at nodes in the integral of exp(u) times their polynomial."""
    # int exp(u) u^m du = exp(u) u^m - m int exp(u) u^(m - 1) du
    moments = [math.exp(high) - math.exp(low)]
    for m in range(1, len(nodes)):
        ends = math.exp(high) * high**m - math.exp(low) * low**m
        moments.append(ends - m * moments[-1])
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(moments))


def _inner_products(
    followed: FollowedBatch, fit: Float[np.ndarray, "splines nodes"]
) -> Float[np.ndarray, "rows splines 2 batch directions"]:
    """Spline coefficients of the inner products between all pairs of nodes.

    Where trajectories end at sigma = 0, four rows follow: the inner products of the end points'
    sensitivities, which no time joins to those of the nodes, and zeros.
    """
    # coefficients of the factors, which are fewer than the products
    sensitivity, split = (np.tensordot(fit, a, 1) for a in (followed.sensitivity, followed.split))
    products = np.einsum("Jpmd,Icmd->JIcmp", sensitivity, split, optimize=True)
    if followed.last is None:
        return products
    at_end = np.einsum("Icmd,pd->Icmp", split, followed.last, optimize=True)
    rows = np.zeros((BLOCK, *at_end.shape))
    rows[0] = at_end
    return np.concatenate([products, rows])


def as_record(followed: Followed) -> TrajectoryRecord:
    """The record of followed trajectories, in units of the end points' standard deviation."""
    fit = spline_fit(len(followed.times))
    products = []
    ends = []
    for part in followed.batches:
        products.append(_inner_products(part, fit))
        ends.append(part.end)
    every_end = np.concatenate(ends)
    scale = end_scale(every_end)
    if scale == 0.0:
        raise ValueError("all trajectories end at one point; are all rows of noise the same?")
    joined = np.concatenate(products, 3)
    joined /= scale
    return TrajectoryRecord(
        time_coordinate=followed.coordinate,
        products=constant(joined),
        t_min=constant(followed.t_min),
        last_node=constant(followed.times[-1]),
        noise=followed.noise,
        ends=constant(every_end),
        nfe=followed.nfe,
    )
