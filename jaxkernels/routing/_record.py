"""What drawing an expert in a step costs at the end, recorded along the mean flow.

A sampler that draws expert I in the step from t to u moves x by f (m_I - m) more than with all
experts, f being the step's factor of the denoised point. To leading order that reaches the end as
Phi(u) f (m_I - m) with Phi(u) = dx_end / dx(u), independently of other steps, so that

    E |x_drawn - x_mean|^2  =  sum_k f_k^2 G(u_k, t_k),                                        (1)
    G(u, t) = E sum_i pi_i |Phi(u) (m_i - m)(t)|^2,                                            (2)

with the expectation over trajectories. G is recorded at all pairs of nodes in time; a cubic spline
of its logarithm interpolates it.
"""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._compile import quick_filter_jit
from .._numerics import safe_sqrt
from .._objective import AbstractBoundObjective, AbstractObjective
from .._types import AnyArray, constant
from ..prediction import check_denoiser
from ..processes import AbstractProcess, check_range, sigma_range
from ..recurrence import local_error_coefficients, window_indices
from ..samplers import AbstractSampler, as_sampler
from ..schedules import Schedule
from ..trajectories import (
    FollowedBatch,
    TrajectoryRecord,
    as_record,
    bind_record,
    check_record,
    follow,
    spline_fit,
)
from ._experts import Experts

# of the largest, added so that no logarithm diverges
_FLOOR = 1e-14


class RoutingRecord(eqx.Module):
    """Trajectories of experts' mean flow, and what drawing one expert per step adds to their ends.

    Made by `record_routing`.

    **Arguments:**

    - `trajectories`: a `TrajectoryRecord` of the mean flow.
    - `log_cost`: (splines, splines), spline coefficients of log G(u, t) over nodes u and t, G being
      the mean square displacement of the end, in units of the data squared, if the denoised point
      at t is one expert's, drawn from the router, and enters x at u with factor 1.

    **Example:**

    ```python
    >>> experts = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> found = jk.routing.record_routing(experts, jnp.array([[-1.0], [2.0]]), t_min=0.1, nodes=16)
    >>> found.log_cost.shape
    (18, 18)
    ```
    """

    trajectories: TrajectoryRecord
    log_cost: Float[AnyArray, "splines splines"]

    def switching_error(
        self, sampler: AbstractSampler | str, schedule: Schedule
    ) -> Float[Array, ""]:
        """Predict the mean square distance between drawing experts and running all of them.

            sum_k f_k^2 G(t_{k+1}, t_k)

        To leading order in the step sizes: for many steps it is the truth, for few it ranks
        schedules.

        **Arguments:**

        - `sampler`: with one evaluation per step and no multistep history, or its name.
        - `schedule`: deterministic, from t_max to the record's t_min.

        **Returns:** the prediction, in units of the data squared.

        **Raises:** ValueError for another sampler.
        """
        times = jnp.asarray(schedule.times)
        return _switching_error(self, check_switching_sampler(sampler), times)

    def mean_square_error(
        self, sampler: AbstractSampler | str, schedule: Schedule
    ) -> Float[Array, ""]:
        """Predict the mean square distance between drawing experts and the mean flow.

        The sum of `switching_error` and what local errors of the steps add, to first order.

        **Arguments:**

        - `sampler`: with one evaluation per step and no multistep history, or its name.
        - `schedule`: deterministic, from t_max to the record's t_min.

        **Returns:** the prediction, in units of the data squared.

        **Raises:** ValueError for another sampler.
        """
        sampler = check_switching_sampler(sampler)
        mean_flow = bind_record(self.trajectories, sampler)(schedule)
        scale = jnp.asarray(self.trajectories.scale, schedule.times.dtype)
        return (mean_flow * scale) ** 2 + self.switching_error(sampler, schedule)


def record_routing(
    experts: Experts,
    noise: Float[AnyArray, "trajectories *shape"],
    *,
    t_min: ArrayLike,
    nodes: int = 48,
    directions: int = 8,
    batch: int = 64,
    key: Array | None = None,
    progress: bool = True,
) -> RoutingRecord:
    """Record the mean flow of experts, and what following one of them costs at every time.

    **Arguments:**

    - `experts`: differentiable in x by JAX.
    - `noise`: initial noise (trajectories >= 2, ...).
    - `t_min`, `nodes`, `directions`, `batch`, `key`, `progress`: as for `jaxkernels.record`.

    **Returns:** a `RoutingRecord`.

    **Raises:** ValueError naming the argument, or if a trajectory becomes non-finite.

    **Example:**

    ```python
    >>> experts = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> found = jk.routing.record_routing(experts, jnp.array([[-1.0], [2.0]]), t_min=0.1, nodes=16)
    >>> error = found.switching_error("ddim", jk.schedules.uniform(jk.VP(), 20, 0.1))
    ```
    """
    process = check_denoiser(experts).process
    if sigma_range(process, check_range(process, 1, t_min))[1] == 0:
        raise ValueError(f"t_min = {t_min} has no noise; record down to a small t_min > 0.")
    shape = np.shape(noise)[1:]
    followed = follow(
        experts,
        noise,
        t_min=t_min,
        nodes=nodes,
        directions=directions,
        batch=batch,
        key=key,
        progress=progress,
    )
    costs = []

    def with_costs() -> Iterator[FollowedBatch]:
        for part in followed.batches:
            costs.append(_total_cost(experts, followed.times, part, shape))
            yield part

    trajectories = as_record(followed._replace(batches=with_costs()))
    cost = np.sum(costs, 0) / trajectories.num_trajectories
    logs = np.log(cost + _FLOOR * np.max(cost))
    fit = spline_fit(nodes)
    return RoutingRecord(trajectories, constant(fit @ logs @ fit.T))


def _total_cost(
    experts: Experts,
    times: Float[AnyArray, " nodes"],
    followed: FollowedBatch,
    shape: tuple[int, ...],
) -> Float[np.ndarray, "nodes nodes"]:
    """Sum over a batch's trajectories of (2) without the expectation, u and t at all nodes."""
    nodes, directions, batch, dim = followed.sensitivity.shape
    split = followed.split.reshape(nodes, 2, batch, *shape)
    deviations = np.asarray(_deviations(experts, times, jnp.asarray(split)), np.float64)
    rows = followed.sensitivity.transpose(2, 1, 0, 3).reshape(batch, directions * nodes, dim)
    columns = deviations.reshape(nodes, -1, batch, dim).transpose(2, 3, 0, 1)
    moved = rows @ columns.reshape(batch, dim, -1)
    squares = moved.reshape(batch, directions, nodes, nodes, -1) ** 2
    return np.sum(squares, (0, 1, 4)) / directions


@quick_filter_jit
def _deviations(
    experts: Experts, times: Array, split: Float[Array, "nodes 2 batch *shape"]
) -> Float[Array, "nodes experts batch *shape"]:
    """sqrt(pi_i) (m_i - m) at every node."""
    experts = experts.astype(split.dtype)
    process = experts.process

    def at_node(node: tuple[Array, Array]) -> Array:
        t, (x0, eps) = node
        x = process.signal(t) * x0 + process.noise(t) * eps
        weights = jnp.moveaxis(experts.weights(x, t), -1, 0)
        found = jnp.stack([prediction.x0 for prediction in experts.predictions(x, t)])
        root = safe_sqrt(weights).reshape(*weights.shape, *(1,) * (found.ndim - weights.ndim))
        return root * (found - x0)

    return jax.lax.map(at_node, (times.astype(split.dtype), split))


def check_switching_sampler(sampler: AbstractSampler | str) -> AbstractSampler:
    """A sampler whose switching error a record predicts."""
    sampler = as_sampler(sampler)
    if sampler.nfe_per_step != 1 or sampler.history_steps:
        raise ValueError(
            f"sampler {type(sampler).__name__} has several evaluations per step or a multistep "
            "history; switching is predicted for samplers with one evaluation and no history, such "
            "as 'ddim'."
        )
    return sampler


def _switching_error(
    record: RoutingRecord, sampler: AbstractSampler, times: Float[Array, " points"]
) -> Float[Array, ""]:
    """(1) of the module."""
    trajectories = record.trajectories
    process = trajectories.process
    points, _ = window_indices(len(times) - 1, 0)

    def term(t: Float[Array, " 2"], k: Array) -> Array:
        x0, eps = local_error_coefficients(process, sampler, t, k, len(times) - 1)[0]
        # x is the same for all experts, so that a denoised point fixes the noise
        factor = x0 - process.signal(t[0]) / process.noise(t[0]) * eps
        start, end = trajectories.time_coordinate.coordinate(t)
        return factor**2 * jnp.exp(_interpolated(record, end, start))

    return jnp.sum(jax.vmap(term)(times[points], jnp.arange(len(times) - 1)))


def _interpolated(record: RoutingRecord, row: Array, column: Array) -> Float[Array, ""]:
    """log G between the nodes."""
    down, along_rows = record.trajectories.weights_at(row)
    right, along_columns = record.trajectories.weights_at(column)
    block = jax.lax.dynamic_slice(jnp.asarray(record.log_cost), (down, right), (4, 4))
    return along_rows @ block @ along_columns


class RoutingError(AbstractObjective):
    """Predicted root mean square distance between following one expert per step and the mean flow.

        sqrt( sum_k f_k^2 G(t_{k+1}, t_k)  +  E |sum_k Phi_k local_error_k|^2 )

    The first term is the noise of experts that are drawn from the router, the second the
    discretization. For `optimize_schedule`: times that suit `StochasticSwitching`.

    **Arguments:**

    - `record`: a `RoutingRecord`, of `record_routing`.

    **Raises:** ValueError for another record; when bound, for samplers with several evaluations per
    step or a multistep history.

    **Example:**

    ```python
    >>> experts = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> found = jk.routing.record_routing(experts, jnp.array([[-1.0], [2.0]]), t_min=0.1, nodes=16)
    >>> bound = jk.routing.RoutingError(found).bind(None, jk.VP(), "ddim")
    ```
    """

    record: RoutingRecord

    def __init__(self, record: RoutingRecord):
        if not isinstance(record, RoutingRecord):
            raise ValueError(
                f"record must be a RoutingRecord, of record_routing; got {type(record).__name__}."
            )
        self.record = record

    def check(self, sampler: AbstractSampler, deterministic: bool, fixed_end: bool) -> None:
        check_switching_sampler(sampler)
        if not (deterministic and fixed_end):
            raise ValueError(
                "a RoutingError is of schedules without stochasticity, with t_min fixed."
            )

    def bind(
        self, target: object, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundRoutingError":
        """Bind the objective to a sampler.

        **Arguments:**

        - `target`: without effect, as the record is of given experts.
        - `process`: that of the record.
        - `sampler`: with one evaluation per step and no multistep history, or its name.

        **Returns:** a function of a schedule.

        **Raises:** ValueError for another process or sampler.
        """
        del target
        check_record(self.record.trajectories, process, sampler)
        return BoundRoutingError(self.record, check_switching_sampler(sampler))


class BoundRoutingError(AbstractBoundObjective):
    """`RoutingError` of a sampler: a differentiable function of a schedule."""

    record: RoutingRecord
    sampler: AbstractSampler

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        # a program that is traced for another precision would remember that of a constant
        record, sampler = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, schedule.times.dtype), (self.record, self.sampler)
        )
        return jnp.sqrt(record.mean_square_error(sampler, schedule))
