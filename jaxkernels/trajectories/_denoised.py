"""Denoised points along trajectories: what a model of the data gets wrong of a network there.

Along a trajectory x_n(t) of a network its denoised points D_net(x_n(t), t) are known at the nodes.
A model of the data, such as a mixture, has another denoiser D. With the residual

    r_n(t) = D_net(x_n(t), t) - D(x_n(t), t)

the denoiser D(x, t) + r_n(t) agrees with the network on the recorded trajectory, and has the
model's derivatives beside it. A sampler that is run with it from x_n(t_max) ends where it would end
with the network, up to what the derivatives differ by. This needs no evaluation of the network, no
sensitivities, and no small errors: a step that leads a sample to another cluster does so here.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._compile import quick_filter_jit
from .._nfe import EVALUATION
from .._numerics import larger, safe_divide
from .._precision import to_dtype, working_dtype
from .._progress import Progress
from .._types import AnyArray, Rows, constant
from ..distributions import GaussianMixture
from ..prediction import AbstractDenoiser, Prediction, check_denoiser, in_working_precision
from ..processes import AbstractProcess
from ..samplers import UniPC, check_noise, take_step
from ..schedules import Schedule, Step, TimeCoordinate
from ._fit import RecordedPoints, fit_mixture
from ._record import AbstractRecord, check_span
from ._recording import check_finite, place_nodes, row_batches, rows_run
from ._spline import spline_fit, spline_weights

# of the third order: with one evaluation per node more accurate than others
_SOLVER = UniPC(solver_order=3, lower_order_final=False)


class DenoisedRecord(AbstractRecord):
    """Denoised points of a network along its trajectories.

    Made by `record_denoised`.

    **Arguments:**

    - `time_coordinate`: in which the nodes are evenly spaced, from t_max to `t_min`.
    - `t_min`: last time of the trajectories.
    - `last_node`: time of the last node, above t_min if sigma(t_min) = 0.
    - `noise`: (trajectories, ...), where they start.
    - `points`: (nodes, trajectories, d), where the network was evaluated.
    - `denoised`: (nodes, trajectories, d), its denoised points there.
    - `ends`: (trajectories, d), where they end.
    - `nfe`: that the record cost, rows that fill up its last batch included.

    **Example:**

    ```python
    >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> jk.record_denoised(exact, np.eye(2), t_min=1e-3, nodes=16)
    DenoisedRecord(2 trajectories, 16 nodes)
    ```
    """

    file_format: ClassVar[str] = "jaxkernels.denoised_record"
    own_arrays: ClassVar[tuple[str, ...]] = ("points", "denoised")

    time_coordinate: TimeCoordinate
    t_min: AnyArray
    last_node: AnyArray
    noise: Float[AnyArray, "trajectories *shape"]
    points: Float[AnyArray, "nodes trajectories d"]
    denoised: Float[AnyArray, "nodes trajectories d"]
    ends: Float[AnyArray, "trajectories d"]
    nfe: int = eqx.field(static=True)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N in time."""
        return self.denoised.shape[0]

    def denoiser(self, model: AbstractDenoiser) -> "CorrectedDenoiser":
        """Correct the denoiser of a model by what the network returned along its trajectories.

            D_n(x, t) = D(x, t) + r_n(t),      r_n(t_j) = D_net(x_n(t_j), t_j) - D(x_n(t_j), t_j)

        with a cubic spline in log sigma between the nodes t_j.

        **Arguments:**

        - `model`: of vectors (n, d), such as `mixture.denoiser(process)`.

        **Returns:** a `CorrectedDenoiser` of as many rows as there are trajectories.

        **Raises:** ValueError for a model that is no denoiser.

        **Example:**

        ```python
        >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
        >>> found = jk.record_denoised(exact, np.eye(2), t_min=1e-3, nodes=16)
        >>> found.denoiser(jk.Gaussian(0.0, [1.0, 1.0]).denoiser(jk.VP()))(jnp.eye(2), 0.5).x0.shape
        (2, 2)
        ```
        """
        check_denoiser(model)
        coordinate = self.time_coordinate
        modelled = np.asarray(_denoised_points(model, constant(self.node_times), self.points))
        residuals = np.asarray(self.denoised, np.float64) - modelled
        splines = np.tensordot(spline_fit(self.num_nodes), residuals, 1)
        splines = constant(splines.astype(self.denoised.dtype))
        return CorrectedDenoiser(self.process, model, coordinate, self.last_node, splines)

    def fit_mixture(self, known: GaussianMixture | None = None) -> GaussianMixture:
        """Fit a mixture whose denoiser is that of the network along its trajectories.

        Its weights, means and variances along given axes take gradient steps (Adam, minibatches) on
        the mean over the nodes t_j of

            sum_i  c_i / (c_i + sigma_j^2)  var_n (D_net(x_n(t_j), t_j) - D(x_n(t_j), t_j))_i

        with the variance c_i of the recorded end points along axis i. The factor is the square of
        that by which a normal distribution of this variance lets a shift at level sigma_j reach the
        end. What does not depend on the trajectory n is left out: `denoiser` corrects it exactly.
        One trajectory in four is held out, and what has the lowest loss on these is returned:
        gradient steps from a mixture of the other end points or from the known one, whichever
        begins lower there, or where they began, if no step helps. Fewer than eight trajectories
        move nothing.

        **Arguments:**

        - `known`: a mixture of vectors (d) that may be near, such as one of the data.

        **Returns:** a `GaussianMixture` of vectors (d).

        **Raises:** ValueError if `known` is no mixture of as many dimensions; ImportError without
        scikit-learn, which is in the extra `cli`.

        **Example:**

        ```python
        >>> noise = np.random.default_rng(0).normal(size=(16, 2))
        >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
        >>> jk.record_denoised(exact, noise, t_min=1e-3, nodes=16).fit_mixture().means.shape
        (1, 2)
        ```
        """
        dim = self.ends.shape[1]
        if known is not None and (
            not isinstance(known, GaussianMixture) or known.means.shape[1] != dim
        ):
            raise ValueError(f"known must be a GaussianMixture of {dim} dimensions; got {known}.")
        arrays = (self.node_times, *map(np.asarray, (self.points, self.denoised, self.ends)))
        return fit_mixture(RecordedPoints(self.process, *arrays), known)

    def sizes(self) -> dict[str, int]:
        return {"nodes": self.num_nodes, "dimensions": self.ends.shape[1]}

    def joined_arrays(self, records: Sequence["DenoisedRecord"]) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate([np.asarray(getattr(r, name)) for r in records], axis=1)
            for name in self.own_arrays
        }

    def __repr__(self) -> str:
        return f"DenoisedRecord({self.num_trajectories} trajectories, {self.num_nodes} nodes)"


class CorrectedDenoiser(AbstractDenoiser):
    """The denoiser of a model with recorded residuals, one for each row.

    Made by `DenoisedRecord.denoiser`.

    **Arguments:**

    - `process`: the forward process.
    - `model`: the denoiser of the model, of vectors (n, d).
    - `time_coordinate`, `last_node`: of the record. Below the last node residuals are as there.
    - `residuals`: (splines, n, d), spline coefficients of the residual of every row.

    **Example:**

    ```python
    >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> found = jk.record_denoised(exact, np.eye(2), t_min=1e-3, nodes=16).denoiser(exact)
    >>> found.take(slice(1)).residuals.shape
    (18, 1, 2)
    ```
    """

    process: AbstractProcess
    model: AbstractDenoiser
    time_coordinate: TimeCoordinate
    last_node: AnyArray
    residuals: Float[AnyArray, "splines n d"]

    def __call__(self, x: Float[Array, "n *shape"], t: Float[ArrayLike, ""]) -> Prediction:
        rows = x.reshape(len(x), -1)
        split = self.model(rows, t)
        coordinate = self.time_coordinate
        nodes = self.residuals.shape[0] - 2
        first, weights = spline_weights(_place(coordinate, self.last_node, t, nodes), nodes)
        size = (4, *self.residuals.shape[1:])
        block = jax.lax.dynamic_slice(jnp.asarray(self.residuals), (first, 0, 0), size)
        residual = jnp.tensordot(weights.astype(rows.dtype), block, 1)
        # a step to sigma = 0 may call it there, and leaves eps out
        ratio = safe_divide(self.process.signal(t), self.process.noise(t))
        x0 = split.x0 + residual
        eps = split.eps - ratio * residual
        return Prediction(x0.reshape(x.shape), eps.reshape(x.shape))

    def take(self, rows: Rows) -> "CorrectedDenoiser":
        """Take some of the rows.

        **Arguments:**

        - `rows`: a slice or indices.

        **Returns:** the denoiser of these rows.
        """
        rows = rows if isinstance(rows, slice | Array) else np.asarray(rows)
        return eqx.tree_at(lambda d: d.residuals, self, self.residuals[:, rows])

    def astype(self, dtype: DTypeLike) -> "CorrectedDenoiser":
        dtype = working_dtype(dtype)
        converted = to_dtype(self, dtype)
        return eqx.tree_at(lambda d: d.model, converted, self.model.astype(dtype))


def record_denoised(
    denoiser: AbstractDenoiser,
    noise: Float[AnyArray, "trajectories *shape"],
    *,
    t_min: ArrayLike | None = None,
    nodes: int = 32,
    batch: int = 64,
    progress: bool = True,
) -> DenoisedRecord:
    """Record the denoised points of a network along trajectories, by forward passes alone.

    A step of `UniPC` of order 3 leads from one node to the next, with one evaluation, which is that
    of the node.

    **Arguments:**

    - `denoiser`: the network; it need not be differentiable.
    - `noise`: initial noise (trajectories >= 2, ...), as for `sample`.
    - `t_min`: last time of the trajectories, as for `record`.
    - `nodes`: points in time, >= 8, evenly spaced in log sigma: at least twice as many as steps of
      the schedules that are to be judged.
    - `batch`: trajectories at a time, at most. Batches have the same size; the last is filled up by
      repeating rows.
    - `progress`: show a status line on a terminal.

    NFE per trajectory: `nodes`.

    **Returns:** a `DenoisedRecord`.

    **Raises:** ValueError naming the argument, or if a trajectory becomes non-finite.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> jk.record_denoised(denoiser, np.eye(2), t_min=1e-3, nodes=16)
    DenoisedRecord(2 trajectories, 16 nodes)
    ```
    """
    coordinate, times, end_time = place_nodes(denoiser, t_min, nodes)
    denoiser, x = in_working_precision(denoiser, check_noise(noise, at_least=2))
    batch = _checks.count("batch", batch)
    schedule = Schedule(constant(times))
    count = x.shape[0]
    nfe = denoiser.nfe * denoised_nfe(rows_run(count, batch), len(times))
    rows_of_noise = np.asarray(x)
    parts = []
    with Progress(f"recording, NFE {nfe:,}: compiling", progress) as line:
        for rows, used in row_batches(count, batch):
            starts = jax.device_put(rows_of_noise[rows])
            found = _follow_forward(denoiser.take(rows), schedule, starts)
            points, denoised = (np.asarray(array)[:, :used] for array in found)
            last = int(rows[0]) + used - 1
            check_finite(f"trajectories {rows[0]} to {last}", points, denoised)
            parts.append((points, denoised))
            line.update(f"recording, NFE {nfe:,}: trajectory {last + 1} of {count}")
    points, denoised = (np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True))
    return DenoisedRecord(
        time_coordinate=coordinate,
        t_min=constant(end_time),
        last_node=constant(times[-1]),
        noise=cast(AnyArray, rows_of_noise),
        points=constant(points),
        denoised=constant(denoised),
        ends=constant((denoised if times[-1] > end_time else points)[-1].astype(np.float64)),
        nfe=nfe,
    )


def check_denoised_record(
    record: object, process: AbstractProcess, t_min: object = None
) -> DenoisedRecord:
    """Check that a record of denoised points is of a process.

    **Arguments:**

    - `record`: a `DenoisedRecord`.
    - `process`: that the schedules are for.
    - `t_min`: last time of the schedules; None if it is not known yet.

    **Returns:** the record.

    **Raises:** ValueError for no record, or one of another process or t_min.
    """
    if not isinstance(record, DenoisedRecord):
        raise ValueError(
            f"record must be a DenoisedRecord, of jk.record_denoised; got {type(record).__name__}."
        )
    check_span(record.process, float(np.asarray(record.t_min)), process, t_min)
    return record


def denoised_nfe(trajectories: int, nodes: int) -> int:
    """Count the NFE of `record_denoised`: one for every node of every trajectory that is run."""
    return trajectories * nodes * EVALUATION


def _place(
    coordinate: TimeCoordinate, last: ArrayLike, t: ArrayLike, nodes: int
) -> Float[Array, ""]:
    """Where a time lies among the nodes, in [0, nodes - 1]."""
    top = coordinate.coordinate(coordinate.start)
    bottom = coordinate.coordinate(last)
    t = larger(jnp.asarray(t), last)
    return (top - coordinate.coordinate(t)) / (top - bottom) * (nodes - 1)


@quick_filter_jit
def _denoised_points(
    model: AbstractDenoiser,
    times: Float[Array, " nodes"],
    points: Float[Array, "nodes n d"],
) -> Float[Array, "nodes n d"]:
    """The model's denoised points at all nodes."""
    points = jnp.asarray(points)
    model = model.astype(points.dtype)
    times = jnp.asarray(times, points.dtype)
    return jax.lax.map(lambda node: model(node[0], node[1]).x0, (points, times))


@quick_filter_jit
def _follow_forward(
    denoiser: AbstractDenoiser, schedule: Schedule, x: Float[Array, "n *shape"]
) -> tuple[Float[Array, "nodes n d"], Float[Array, "nodes n d"]]:
    """Points at the nodes and the denoised points there."""
    denoiser = denoiser.astype(x.dtype)
    schedule = to_dtype(schedule, x.dtype)

    def advance(state: tuple, step: Step) -> tuple[tuple, tuple[Array, Array]]:
        seen = []

        def predict(x: Array, t: Array) -> Prediction:
            seen.append(denoiser(x, t))
            return seen[-1]

        x, history = state
        after = take_step(_SOLVER, predict, denoiser.process, step, None, x, history)
        return after, (x, seen[0].x0)

    steps = schedule.steps(_SOLVER.history_steps)
    (end, _), (points, denoised) = jax.lax.scan(advance, (x, _SOLVER.init_history(x)), steps)
    last = denoiser(end, schedule.times[-1]).x0
    points = jnp.concatenate([points, end[None]])
    denoised = jnp.concatenate([denoised, last[None]])
    size = (*points.shape[:2], -1)
    return points.reshape(size), denoised.reshape(size)
