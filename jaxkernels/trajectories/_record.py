"""A network's own trajectories, recorded once: the error of any schedule on them without another network call.

In x = a D + s eps every deterministic trajectory of a network splits into its denoised point D(t) and its noise
eps(t), both slowly varying. A sampler with one evaluation per step is linear in them, so that its local defect on a
recorded trajectory, x(t_k) taken one step by the sampler minus x(t_{k+1}), is a combination of D and eps at the times
of the step's window. To first order, the end point then moves by

    e = sum_k  (dx_end / dx(t_{k+1}))  defect_k,                                            (1)

and its component along a direction u is sum_k <A_u(t_{k+1}), defect_k>, where A_u(t) = (dx_end/dx(t))^T u is found
at all times by one backward sweep along the trajectory: the path-dependent sensitivity kernel. What has to be kept
are the inner products of A_u with D and eps between all pairs of nodes in time; cubic splines in log sigma give the
rest. (1) keeps the sign of every defect and the sensitivity of every trajectory, and needs no model of the data; it
leaves out what is of second order in the defects, so that it is accurate for many steps and a ranking for few.
"""

import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .. import _checks, _files
from .._derivatives import forward_derivatives
from .._precision import in_float64, to_float64
from .._progress import Progress
from .._types import AnyArray, Numbers, constant
from ..prediction import AbstractDenoiser, Predict, Prediction, check_denoiser
from ..processes import PROCESSES, AbstractProcess, check_range, from_config, sigma_range, to_config
from ..recurrence import window_indices, window_step
from ..samplers import RK4, AbstractSampler, as_sampler, check_schedule
from ..schedules import Schedule, Step, TimeCoordinate

_FORMAT = "jaxkernels.record"


_LEAST_NODES = 8


# above this level nodes get sparse, where sigma is infinite at t_max
_HIGH = 1e2


_FLOOR = 1e-6


class TrajectoryRecord(eqx.Module):
    """Inner products of sensitivities with denoised points and noises along recorded trajectories.

    `products` [j, i, c, m, p]: spline coefficients, over nodes j and i in time, of <A_p(t_j), D(t_i)> (c = 0) and
    <A_p(t_j), eps(t_i)> (c = 1) on trajectory m for direction p. Units: `scale`, the root of the end points' total
    variance, is divided out.
    """

    monotone: TimeCoordinate
    products: Float[AnyArray, "splines splines 2 trajectories directions"]
    t_min: AnyArray
    scale: AnyArray

    @property
    def process(self) -> AbstractProcess:
        return self.monotone.process

    @property
    def num_trajectories(self) -> int:
        """M."""
        return self.products.shape[3]

    def errors(
        self, sampler: AbstractSampler | str, schedule: Schedule
    ) -> Float[np.ndarray, " trajectories"]:
        """Predicted distance of each trajectory's end from the exact one, in units of `scale`: (1).

        The root of the mean over directions of squared components: an unbiased estimate of the squared distance,
        exact when there are as many directions as dimensions.

        **Raises:** ValueError for a sampler with several evaluations per step, a stochastic schedule, one from other
        end times, or a sampler that divides by a signal of 0 there.
        """
        objective = RecordedError(self, sampler)
        check_schedule(self.process, objective.sampler, schedule)
        times = np.asarray(schedule.times, np.float64)
        first, last = float(np.asarray(self.process.t_max)), float(np.asarray(self.t_min))
        if not np.allclose(times[[0, -1]], (first, last), rtol=1e-5, atol=0.0):
            raise ValueError(
                f"schedule runs from {times[0]:g} to {times[-1]:g}; the record from {first:g} to {last:g}."
            )
        if np.any(np.asarray(schedule.stochasticity_squared) > 0):
            raise ValueError("schedule is stochastic; a record is of deterministic trajectories.")
        components = in_float64(_components)(
            *to_float64((self, objective.sampler, constant(times)))
        )
        if not np.all(np.isfinite(components)):
            raise ValueError(
                f"{type(objective.sampler).__name__} has no finite error on this schedule: it divides by the signal, "
                f"which is 0 at t_max = {first:g} of {self.process}."
            )
        return np.sqrt(np.mean(np.asarray(components) ** 2, -1))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a versioned .npz file, whole or not at all. A process of the user's own is only named in it.

        **Raises:** ValueError, naming the path, if it cannot be written.
        """
        kind = type(self.process)
        config = to_config(self.process) if kind in PROCESSES.values() else {"own": kind.__name__}
        times = _node_times(
            self.monotone, self.products.shape[0] - 2, float(np.asarray(self.t_min))
        )
        arrays = {
            "process": np.array(json.dumps(config)),
            "times": times,
            "levels": _levels(self.process, times),
            "ends": np.array(
                [self.monotone.start, self.monotone.low, self.monotone.high, self.t_min], np.float64
            ),
            "scale": np.asarray(self.scale),
            "products": np.asarray(self.products),
        }
        _files.write(path, _FORMAT, arrays)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], process: AbstractProcess | None = None
    ) -> "TrajectoryRecord":
        """Read a file written by `save`. `process` is needed if it is one of the user's own.

        **Raises:** ValueError, naming the path and the fault; also if `process` is not the recorded one.
        """
        name, content = os.fspath(path), _files.read(path, _FORMAT)
        try:
            config = json.loads(str(content["process"]))
            if process is None and "own" in config:
                raise ValueError(
                    f"its process {config['own']} is not built in; pass it to load as process"
                )
            process = from_config(config) if process is None else process
            start, low, high, t_min = map(constant, content["ends"])
            products, scale = constant(content["products"]), constant(content["scale"])
            times, levels = content["times"], content["levels"]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{name} holds no valid record: {error}.") from None
        differs = ~np.isclose(_levels(process, times), levels, rtol=1e-6, atol=1e-12)
        if np.any(differs):
            t = times[np.argmax(differs.any(0))]
            raise ValueError(
                f"process is not that of {name}: its signal or noise differs at t = {t:g}."
            )
        return cls(TimeCoordinate(process, start, low, high), products, t_min, scale)

    def __repr__(self) -> str:
        nodes, directions = self.products.shape[0] - 2, self.products.shape[4]
        return (
            f"Record({self.num_trajectories} trajectories, {nodes} nodes, {directions} directions)"
        )


class RecordedError(eqx.Module):
    """The error of a schedule on a record, as an objective of `optimize_schedule`.

        ( mean over trajectories of |e|^power )^(1 / power),      power = 0: exp(mean log |e|)

    power = 2 is the root mean square, which a few trajectories can decide; power = 0 is decided by typical ones. |e|^2
    has 1e-6 of its mean added, so that no logarithm diverges.
    """

    record: TrajectoryRecord
    sampler: AbstractSampler
    power: ArrayLike

    def __init__(
        self, record: TrajectoryRecord, sampler: AbstractSampler | str, power: Numbers = 2.0
    ):
        sampler = as_sampler(sampler)
        if sampler.nfe_per_step != 1:
            raise ValueError(
                f"{type(sampler).__name__} evaluates the network {sampler.nfe_per_step} times per step; a record "
                "predicts samplers with one evaluation per step."
            )
        self.record, self.sampler = record, sampler
        self.power = _checks.parameter("power", power, at_least=0.0)

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        return self._statistic(_components(self.record, self.sampler, schedule.times))

    def derivatives(self, schedule: Schedule) -> tuple[Array, Array, Array]:
        """Value, gradient and Hessian in the times; the two end times are held fixed: their entries are 0.

        The components are sums over steps of functions of the step's window, so that their Jacobian is banded and
        the part of the Hessian that bends them a sum of small blocks.
        """
        times = schedule.times
        points, _ = window_indices(schedule.num_steps, self.sampler.history_steps)
        count = schedule.num_steps
        # the ends are fixed, and before the first step a window repeats the first time
        inner = jnp.asarray((points > 0) & (points < count), times.dtype)
        place = inner[..., None] * (points[..., None] == np.arange(count + 1))

        def term(t: Array, k: Array) -> Array:
            return _window_components(self.record, self.sampler, t, k, count)

        steps = jnp.arange(count)
        e = jnp.sum(jax.vmap(term)(times[points], steps), 0)
        slopes = jax.vmap(jax.jacfwd(term))(times[points], steps)
        jacobian = jnp.einsum("kmpw,kwt->tmp", slopes, place)
        value, pull = jax.value_and_grad(self._statistic)(e)

        def along(direction: Array) -> Array:
            return jax.jvp(jax.grad(self._statistic), (e,), (direction,))[1]

        def bend(t: Array, k: Array) -> Array:
            return forward_derivatives(lambda t: jnp.sum(pull * term(t, k)), t)[2]

        curved = jnp.einsum("kwv,kwt,kvu->tu", jax.vmap(bend)(times[points], steps), place, place)
        straight = jnp.einsum("tmp,ump->tu", jacobian, jax.vmap(along)(jacobian))
        return value, jnp.einsum("tmp,mp->t", jacobian, pull), straight + curved

    def _statistic(self, components: Float[Array, "trajectories directions"]) -> Float[Array, ""]:
        squared = jnp.mean(components**2, -1)
        logs = 0.5 * jnp.log(squared + _FLOOR * jnp.mean(squared))
        # traced: one program serves every power
        power = jnp.asarray(self.power)
        some = jnp.where(power > 0, power, 1.0)
        largest = jax.lax.stop_gradient(jnp.max(logs))
        mean = largest + jnp.log(jnp.mean(jnp.exp(some * (logs - largest)))) / some
        return jnp.exp(jnp.where(power > 0, mean, jnp.mean(logs)))


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

    A reference solver runs forward from `noise` and back with vector-Jacobian products.

    **Arguments:**

    - `denoiser`: differentiable in x by JAX.
    - `noise`: initial noise (trajectories >= 2, ...), as for `sample`. 128 suffice for typical samples;
      where a few trajectories decide the root mean square, more are needed.
    - `t_min`: where trajectories end, with sigma(t_min) > 0.
    - `nodes`: points in time, evenly spaced in log sigma, with one step of `RK4` between two of them.
    - `directions`: random orthogonal directions of the end point's error, at most the dimension d.
    - `batch`: trajectories at a time. Memory is about nodes x (directions + 2) x batch x d numbers, and
      the result holds 2 nodes^2 x trajectories x directions.
    - `key`: for the directions; fixed by default.
    - `progress`: show a status line on a terminal.

    NFE per trajectory: 5 nodes, and 4 nodes x directions backward passes.

    **Returns:** a `TrajectoryRecord`.

    **Raises:** ValueError naming the argument, or if a trajectory becomes non-finite.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> noise = jax.random.normal(jax.random.key(0), (16, 2))
    >>> jk.record(denoiser, noise, t_min=1e-3, nodes=16)
    TrajectoryRecord(16 trajectories, 16 nodes, 2 directions)
    ```
    """
    process = check_denoiser(denoiser).process
    low_time = check_range(process, 1, t_min)
    nodes = _checks.count("nodes", nodes, at_least=_LEAST_NODES)
    x = jnp.asarray(noise)
    if x.ndim < 2 or x.shape[0] < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"noise has shape {x.shape}, dtype {x.dtype}; it must be floating (trajectories >= 2, ...)."
        )
    batch = min(_checks.count("batch", batch), x.shape[0])
    dim = int(np.prod(x.shape[1:]))
    count = min(_checks.count("directions", directions), dim)
    key = jax.random.key(0) if key is None else key
    frame = np.linalg.qr(np.asarray(jax.random.normal(key, (dim, count))))[0].T * np.sqrt(dim)
    across = jnp.asarray(frame.reshape(count, *x.shape[1:]), x.dtype)

    high, low = sigma_range(process, low_time)
    if low == 0:
        raise ValueError(
            f"t_min = {low_time:g} has no noise, where eps is undefined; record down to a small t_min > 0."
        )
    ends = np.asarray(0.0), np.asarray(np.inf if np.isfinite(high) else _HIGH)
    monotone = TimeCoordinate(process, np.asarray(process.t_max), *ends)
    times = constant(_node_times(monotone, nodes, low_time))
    fit = _spline_fit(nodes)
    products, reached = [], []
    with Progress("recording: compiling", progress) as line:
        for begin in range(0, x.shape[0], batch):
            part = x[begin : begin + batch]
            split, sensitivity, end = _follow(denoiser, times, part, across)
            # float64: defects are small differences of these
            split, sensitivity = (
                np.asarray(a, np.float64).reshape(*a.shape[:3], dim) for a in (split, sensitivity)
            )
            if not (np.all(np.isfinite(split)) and np.all(np.isfinite(sensitivity))):
                raise ValueError(
                    f"trajectories {begin} to {begin + len(part) - 1} or their sensitivities are not finite: score_fn "
                    "returned NaN or infinity, or its prediction is undefined at t_max or t_min."
                )
            products.append(_products(sensitivity, split, fit))
            reached.append(np.asarray(end, np.float64).reshape(len(part), dim))
            line.update(f"recording: trajectory {begin + len(part)} of {x.shape[0]}")
    scale = float(np.sqrt(np.sum(np.concatenate(reached).var(0))))
    if scale == 0.0:
        raise ValueError("all trajectories end at one point; noise must hold different noises.")
    kept = constant(np.concatenate(products, axis=3) / scale)
    return TrajectoryRecord(
        monotone, kept, constant(np.asarray(low_time)), constant(np.asarray(scale))
    )


@in_float64
def _levels(process: AbstractProcess, times: np.ndarray) -> np.ndarray:
    """Signal and noise: what tells one process from another."""
    process = to_float64(process)
    return np.stack([np.asarray(process.signal(times)), np.asarray(process.noise(times))])


@in_float64
def _node_times(monotone: TimeCoordinate, nodes: int, t_min: float) -> np.ndarray:
    """Evenly spaced in the coordinate; the ends exactly."""
    monotone = to_float64(monotone)
    top, bottom = np.asarray(
        monotone.coordinate(np.asarray([float(np.asarray(monotone.start)), t_min]))
    )
    times = np.array(monotone.time(np.linspace(top, bottom, nodes)))
    times[[0, -1]] = float(np.asarray(monotone.start)), t_min
    return times


@eqx.filter_jit
def _follow(
    denoiser: AbstractDenoiser, times: Array, x: Array, across: Array
) -> tuple[Array, Array, Array]:
    """(D, eps) at the nodes, sensitivities at the nodes, and the end points of a batch of trajectories."""
    predict, times = denoiser.astype(x.dtype), times.astype(x.dtype)
    process = predict.process
    zero, no = jnp.zeros((), x.dtype), jnp.zeros((), bool)

    def advance(x: Array, t: Array, u: Array) -> Array:
        return RK4().step(predict, jnp.zeros_like, process, Step(t, u, t, zero, no, no), x, ())[0]

    def forward(x: Array, ends: tuple[Array, Array]):
        return advance(x, *ends), (x, predict(x, ends[0]))

    ends = (times[:-1], times[1:])
    end, (path, split) = jax.lax.scan(forward, x, ends)
    split = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), split, predict(end, times[-1]))

    def backward(sensitivity: Array, inputs):
        x, t, u = inputs
        back = jax.vjp(lambda x: advance(x, t, u), x)[1]
        return (new := jax.vmap(lambda v: back(v)[0])(sensitivity)), new

    last = jnp.broadcast_to(across[:, None], (len(across), *x.shape))
    _, before = jax.lax.scan(backward, last, (path, *ends), reverse=True)
    return jnp.stack([split.x0, split.eps], 1), jnp.concatenate([before, last[None]]), end


def _products(
    sensitivity: Float[np.ndarray, "nodes directions batch d"],
    split: Float[np.ndarray, "nodes 2 batch d"],
    fit: Float[np.ndarray, "splines nodes"],
) -> Float[np.ndarray, "splines splines 2 batch directions"]:
    nodes, directions, batch, dim = sensitivity.shape
    rows = sensitivity.transpose(2, 1, 0, 3).reshape(batch, directions * nodes, dim)
    columns = split.transpose(2, 3, 1, 0).reshape(batch, dim, 2 * nodes)
    inner = (rows @ columns).reshape(batch, directions, nodes, 2, nodes)
    return np.einsum("Jj,Ii,mpjci->JIcmp", fit, fit, inner, optimize=True)


def _spline_fit(nodes: int) -> Float[np.ndarray, "splines nodes"]:
    """Coefficients of the interpolating uniform cubic B-spline ("not a knot" at both ends) from values at the nodes."""
    system = np.zeros((nodes + 2, nodes + 2))
    index = np.arange(nodes)
    for offset, weight in enumerate((1.0 / 6.0, 2.0 / 3.0, 1.0 / 6.0)):
        system[index, index + offset] = weight
    system[-2, :5] = system[-1, -5:] = (1.0, -4.0, 6.0, -4.0, 1.0)
    return np.linalg.inv(system)[:, :nodes]


def _spline(
    record: TrajectoryRecord, t: Float[Array, ""]
) -> tuple[Int[Array, ""], Float[Array, " 4"]]:
    """The first of the four coefficients that matter at t, and their weights."""
    nodes = record.products.shape[0] - 2
    top, bottom = (record.monotone.coordinate(end) for end in (record.monotone.start, record.t_min))
    place = (top - record.monotone.coordinate(t)) / (top - bottom) * (nodes - 1)
    first = jnp.clip(jnp.floor(jax.lax.stop_gradient(place)), 0, nodes - 2)
    w = place - first
    weights = ((1 - w) ** 3, 3 * w**3 - 6 * w**2 + 4, -3 * w**3 + 3 * w**2 + 3 * w + 1, w**3)
    return first.astype(int), jnp.stack(weights) / 6.0


def _window_components(
    record: TrajectoryRecord,
    sampler: AbstractSampler,
    times: Float[Array, " window"],
    step: Int[Array, ""],
    num_steps: int,
) -> Float[Array, "trajectories directions"]:
    """What the defect of step number `step`, the last of its window, adds to (1)."""
    process, depth = record.process, sampler.history_steps
    # the sampler runs on coefficients with respect to D and eps at the window's times
    units = jnp.eye(2 * len(times), dtype=times.dtype).reshape(len(times), 2, -1)
    exact = [
        process.signal(t) * d + process.noise(t) * eps
        for t, (d, eps) in zip(times, units, strict=True)
    ]
    squared = jnp.zeros(depth + 1, times.dtype)
    history, after = sampler.init_history(exact[0]), exact[0]
    for j in range(depth + 1):
        interval = window_step(times, squared, step - depth, j, num_steps)
        after, new = sampler.step(
            _recorded(units[j]), jnp.zeros_like, process, interval, exact[j], history
        )
        real = step - depth + j >= 0
        history = jax.tree.map(lambda a, b, real=real: jnp.where(real, a, b), new, history)
    local_error = (after - exact[-1]).reshape(len(times), 2)

    products = jnp.asarray(record.products)
    row, across = _spline(record, times[-1])
    total = jnp.zeros(products.shape[3:], times.dtype)
    for t, coefficients in zip(times, local_error, strict=True):
        column, along = _spline(record, t)
        near = jax.lax.dynamic_slice(products, (row, column, 0, 0, 0), (4, 4, *products.shape[2:]))
        total += jnp.tensordot(across[:, None, None] * along[:, None] * coefficients, near, 3)
    return total


def _recorded(unit: Float[Array, "2 space"]) -> Predict:
    def predict(x: Array, t: Array) -> Prediction:
        del x, t  # on the exact trajectory, at the start of the step
        return Prediction(*unit)

    return predict


@eqx.filter_jit
def _components(
    record: TrajectoryRecord, sampler: AbstractSampler, times: Float[Array, " points"]
) -> Float[Array, "trajectories directions"]:
    """(1) in units of the scale, for every trajectory and direction."""
    schedule = Schedule(times)
    points, _ = window_indices(schedule.num_steps, sampler.history_steps)
    count = schedule.num_steps
    return jnp.sum(
        jax.vmap(lambda t, k: _window_components(record, sampler, t, k, count))(
            times[points], jnp.arange(count)
        ),
        0,
    )
