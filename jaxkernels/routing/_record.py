"""What drawing an expert in a step costs at the end, recorded along the mean flow.

A sampler that draws expert I in the step from t to u moves x by f (m_I - m) more than with all
experts, f being the step's factor of the denoised point. To leading order that reaches the end as
Phi(u) f (m_I - m) with Phi(u) = dx_end / dx(u), independently of other steps, so that

    E |x_drawn - x_mean|^2  =  sum_k f_k^2 G(u_k, t_k),                                        (1)
    G(u, t) = E sum_i pi_i |Phi(u) (m_i - m)(t)|^2,                                            (2)

with the expectation over trajectories. If the m - 1 experts of the largest weights are run as well,
and I is drawn from the rest, of mass r and mean m_r,

    G_m(u, t) = E r sum_{i in rest} pi_i |Phi(u) (m_i - m_r)(t)|^2,     G_1 = G.               (3)

G_m is recorded at all pairs of nodes in time; a cubic spline of its logarithm interpolates it.
"""

from collections.abc import Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .. import _checks
from .._compile import quick_filter_jit
from .._numerics import safe_divide, safe_sqrt
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
from ._experts import Experts, weighted_sum
from ._policy import check_evaluations, largest_and_rest

Evaluations = int | Sequence[int] | np.ndarray
"""m, or (K,) m_k of every step."""

# of the largest, added so that no logarithm diverges
_FLOOR = 1e-14


class RoutingRecord(eqx.Module):
    """Trajectories of experts' mean flow, and what drawing one expert per step adds to their ends.

    Made by `record_routing`.

    **Arguments:**

    - `trajectories`: a `TrajectoryRecord` of the mean flow.
    - `log_cost`: (evaluations, splines, splines), spline coefficients of log G_m(u, t) over nodes u
      and t, G_m being the mean square displacement of the end, in units of the data squared, if the
      denoised point at t is that of m evaluations (one expert drawn from the router, or m - 1 and
      one from the rest, see `EvaluationsPerStep`), and enters x at u with factor 1.
    - `num_experts`: number N of experts, of which all together cost nothing.

    **Example:**

    ```python
    >>> experts = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> found = jk.routing.record_routing(experts, jnp.array([[-1.0], [2.0]]), t_min=0.1, nodes=16)
    >>> found.log_cost.shape
    (1, 18, 18)
    ```
    """

    trajectories: TrajectoryRecord
    log_cost: Float[AnyArray, "evaluations splines splines"]
    num_experts: int = eqx.field(static=True)

    def switching_error(
        self, sampler: AbstractSampler | str, schedule: Schedule, evaluations: Evaluations = 1
    ) -> Float[Array, ""]:
        """Predict the mean square distance between drawing experts and running all of them.

            sum_k f_k^2 G_{m_k}(t_{k+1}, t_k)

        To leading order in the step sizes: for many steps it is the truth, for few it ranks
        schedules.

        **Arguments:**

        - `sampler`: with one evaluation per step and no multistep history, or its name.
        - `schedule`: deterministic, from t_max to the record's t_min.
        - `evaluations`: m, or (K,) m_k of every step: at most as many as were recorded, or N.

        **Returns:** the prediction, in units of the data squared.

        **Raises:** ValueError for another sampler, a stochastic schedule or one with other end
        times, or evaluations that were not recorded.
        """
        sampler = check_switching_sampler(sampler)
        self.trajectories.check_predicts(sampler, schedule)
        rows = self.check(evaluations, schedule.num_steps) - 1
        costs = step_costs(self, sampler, jnp.asarray(schedule.times))
        return jnp.sum(costs[rows, np.arange(len(rows))])

    def check(self, evaluations: Evaluations, num_steps: int) -> Int[np.ndarray, " steps"]:
        """Check that evaluations were recorded.

        **Arguments:**

        - `evaluations`: m, or (K,) m_k of every step.
        - `num_steps`: number K of steps.

        **Returns:** (K,) integers, with M + 1 in place of N if M < N evaluations were recorded.

        **Raises:** ValueError for another number of steps, or evaluations that were not recorded.
        """
        every = np.full(num_steps, evaluations) if np.ndim(evaluations) == 0 else evaluations
        every = check_evaluations(every)
        recorded = self.log_cost.shape[0]
        if len(every) != num_steps:
            raise ValueError(f"evaluations are of {len(every)} steps, not {num_steps}.")
        known = (every <= recorded) | (every == self.num_experts)
        if not known.all():
            raise ValueError(
                f"evaluations = {every[~known][0]}: at most {recorded} were recorded, or all "
                f"{self.num_experts}."
            )
        return np.minimum(every, recorded + 1)

    def mean_square_error(
        self, sampler: AbstractSampler | str, schedule: Schedule, evaluations: Evaluations = 1
    ) -> Float[Array, ""]:
        """Predict the mean square distance between drawing experts and the mean flow.

        The sum of `switching_error` and what local errors of the steps add, to first order.

        **Arguments:**

        - `sampler`: with one evaluation per step and no multistep history, or its name.
        - `schedule`: deterministic, from t_max to the record's t_min.
        - `evaluations`: as for `switching_error`.

        **Returns:** the prediction, in units of the data squared.

        **Raises:** ValueError as `switching_error`.
        """
        sampler = check_switching_sampler(sampler)
        self.trajectories.check_predicts(sampler, schedule)
        mean_flow = bind_record(self.trajectories, sampler)(schedule)
        scale = jnp.asarray(self.trajectories.scale, schedule.times.dtype)
        return (mean_flow * scale) ** 2 + self.switching_error(sampler, schedule, evaluations)


def record_routing(
    experts: Experts,
    noise: Float[AnyArray, "trajectories *shape"],
    *,
    t_min: ArrayLike,
    nodes: int = 48,
    directions: int = 8,
    batch: int = 64,
    evaluations: int = 1,
    key: Array | None = None,
    progress: bool = True,
) -> RoutingRecord:
    """Record the mean flow of experts, and what following one of them costs at every time.

    **Arguments:**

    - `experts`: differentiable in x by JAX.
    - `noise`: initial noise (trajectories >= 2, ...).
    - `t_min`, `nodes`, `directions`, `batch`, `key`, `progress`: as for `jaxkernels.record`.
    - `evaluations`: the largest number of evaluations per step to record, below N or 1.

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
    most = max(1, experts.num_experts - 1)
    recorded = range(1, _checks.count("evaluations", evaluations, at_most=most) + 1)
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
            run = (experts, followed.times, part, shape)
            costs.append(np.stack([_total_cost(*run, m) for m in recorded]))
            yield part

    trajectories = as_record(followed._replace(batches=with_costs()))
    cost = np.sum(costs, 0) / trajectories.num_trajectories
    logs = np.log(cost + _FLOOR * np.max(cost, (1, 2), keepdims=True))
    fit = spline_fit(nodes)
    return RoutingRecord(trajectories, constant(fit @ logs @ fit.T), experts.num_experts)


def _total_cost(
    experts: Experts,
    times: Float[AnyArray, " nodes"],
    followed: FollowedBatch,
    shape: tuple[int, ...],
    evaluations: int,
) -> Float[np.ndarray, "nodes nodes"]:
    """Sum over a batch's trajectories of (3) without the expectation, u and t at all nodes."""
    nodes, directions, batch, dim = followed.sensitivity.shape
    split = followed.split.reshape(nodes, 2, batch, *shape)
    deviations = np.asarray(
        _deviations(experts, times, jnp.asarray(split), evaluations), np.float64
    )
    rows = followed.sensitivity.transpose(2, 1, 0, 3).reshape(batch, directions * nodes, dim)
    columns = deviations.reshape(nodes, -1, batch, dim).transpose(2, 3, 0, 1)
    moved = rows @ columns.reshape(batch, dim, -1)
    squares = moved.reshape(batch, directions, nodes, nodes, -1) ** 2
    return np.sum(squares, (0, 1, 4)) / directions


@quick_filter_jit
def _deviations(
    experts: Experts, times: Array, split: Float[Array, "nodes 2 batch *shape"], evaluations: int
) -> Float[Array, "nodes experts batch *shape"]:
    """sqrt(r pi_i) (m_i - m_r) at every node, for i among the rest."""
    experts = experts.astype(split.dtype)
    process = experts.process

    def at_node(node: tuple[Array, Array]) -> Array:
        t, (x0, eps) = node
        x = process.signal(t) * x0 + process.noise(t) * eps
        _, rest = largest_and_rest(experts.weights(x, t), evaluations)
        mass = jnp.sum(rest, -1, keepdims=True)
        found = jnp.stack([prediction.x0 for prediction in experts.predictions(x, t)])
        mean = weighted_sum(safe_divide(rest, mass), found)
        root = jnp.moveaxis(safe_sqrt(mass * rest), -1, 0)
        return root.reshape(*root.shape, *(1,) * (found.ndim - root.ndim)) * (found - mean)

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


def step_costs(
    record: RoutingRecord, sampler: AbstractSampler, times: Float[Array, " points"]
) -> Float[Array, "evaluations steps"]:
    """The terms of (1) of the module for every m that was recorded, and 0 for all experts."""
    trajectories = record.trajectories
    process = trajectories.process
    points, _ = window_indices(len(times) - 1, 0)

    def terms(t: Float[Array, " 2"], k: Array) -> Array:
        x0, eps = local_error_coefficients(process, sampler, t, k, len(times) - 1)[0, 0]
        # x is the same for all experts, so that a denoised point fixes the noise
        factor = x0 - process.signal(t[0]) / process.noise(t[0]) * eps
        start, end = trajectories.time_coordinate.coordinate(t)
        return factor**2 * jnp.exp(_interpolated(record, end, start))

    found = jax.vmap(terms, out_axes=1)(times[points], jnp.arange(len(times) - 1))
    return jnp.concatenate([found, jnp.zeros_like(found[:1])])


def _interpolated(record: RoutingRecord, row: Array, column: Array) -> Float[Array, " evaluations"]:
    """log G between the nodes."""
    down, along_rows = record.trajectories.weights_at(row)
    right, along_columns = record.trajectories.weights_at(column)
    costs = jnp.asarray(record.log_cost)
    block = jax.lax.dynamic_slice(costs, (0, down, right), (len(costs), 4, 4))
    return along_rows @ block @ along_columns


class RoutingError(AbstractObjective):
    """Predicted root mean square distance between following one expert per step and the mean flow.

        sqrt( sum_k f_k^2 G_{m_k}(t_{k+1}, t_k)  +  E |sum_k Phi_k local_error_k|^2 )

    The first term is the noise of experts that are drawn from the router, the second the
    discretization. For `optimize_schedule`: times that suit `StochasticSwitching`, or
    `EvaluationsPerStep`.

    **Arguments:**

    - `record`: a `RoutingRecord`, of `record_routing`.
    - `evaluations`: evaluations per step m, or (K,) m_k.

    **Raises:** ValueError for another record, or evaluations that it has not; when bound, for
    samplers with several evaluations per step or a multistep history.

    **Example:**

    ```python
    >>> experts = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> found = jk.routing.record_routing(experts, jnp.array([[-1.0], [2.0]]), t_min=0.1, nodes=16)
    >>> bound = jk.routing.RoutingError(found).bind(None, jk.VP(), "ddim")
    ```
    """

    record: RoutingRecord
    evaluations: tuple[int, ...] | int = eqx.field(static=True)

    def __init__(self, record: RoutingRecord, evaluations: Evaluations = 1):
        if not isinstance(record, RoutingRecord):
            raise ValueError(
                f"record must be a RoutingRecord, of record_routing; got {type(record).__name__}."
            )
        self.record = record
        record.check(evaluations, 1 if np.ndim(evaluations) == 0 else np.size(evaluations))
        every = tuple(int(m) for m in np.ravel(evaluations))
        self.evaluations = every[0] if np.ndim(evaluations) == 0 else every

    def check_target(
        self, target: object, process: AbstractProcess, sampler: AbstractSampler, num_steps: int
    ) -> None:
        del target, process, sampler
        self.record.check(self.evaluations, num_steps)

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
        return BoundRoutingError(self.record, check_switching_sampler(sampler), self.evaluations)


class BoundRoutingError(AbstractBoundObjective):
    """`RoutingError` of a sampler: a differentiable function of a schedule."""

    record: RoutingRecord
    sampler: AbstractSampler
    evaluations: tuple[int, ...] | int = eqx.field(static=True)

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        # a program that is traced for another precision would remember that of a constant
        record, sampler = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, schedule.times.dtype), (self.record, self.sampler)
        )
        return jnp.sqrt(record.mean_square_error(sampler, schedule, self.evaluations))


def split_evaluations(
    record: RoutingRecord, sampler: AbstractSampler | str, schedule: Schedule, budget: int
) -> Int[np.ndarray, " steps"]:
    """Find the best split of a budget of evaluations among the steps of a schedule.

        min over m_1 .. m_K of  sum_k f_k^2 G_{m_k}(t_{k+1}, t_k),     sum_k m_k <= budget

    by dynamic programming, exactly. A budget K gives one evaluation to each step, K N all experts.

    **Arguments:**

    - `record`: a `RoutingRecord` with the evaluations among which to select.
    - `sampler`: with one evaluation per step and no multistep history, or its name.
    - `schedule`: deterministic, of K steps.
    - `budget`: evaluations of experts per sample, >= K.

    **Returns:** (K,) evaluations, for `EvaluationsPerStep`.

    **Raises:** ValueError for a budget below K, another sampler, or a schedule that is stochastic
    or has other end times.

    **Example:**

    ```python
    >>> pair = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> found = jk.routing.record_routing(pair, jnp.array([[-1.0], [2.0]]), t_min=0.1, nodes=16)
    >>> split = jk.routing.split_evaluations(found, "ddim", jk.Schedule([1.0, 0.5, 0.1]), 3)
    ```
    """
    budget = _checks.count("budget", budget, at_least=schedule.num_steps)
    sampler = check_switching_sampler(sampler)
    record.trajectories.check_predicts(sampler, schedule)
    costs = np.asarray(step_costs(record, sampler, jnp.asarray(schedule.times)), np.float64)
    sizes = np.array([*range(1, len(costs)), record.num_experts])
    # least cost of the steps so far, by the evaluations left for them
    best = np.zeros(budget + 1)
    selected = []
    for own in costs.T:
        reached = np.full((len(sizes), budget + 1), np.inf)
        for row, (size, cost) in enumerate(zip(sizes, own, strict=True)):
            reached[row, size:] = best[: budget + 1 - size] + cost
        selected.append(np.argmin(reached, 0))
        best = np.min(reached, 0)
    left = budget
    found = []
    for row in reversed(selected):
        found.append(int(sizes[row[left]]))
        left -= found[-1]
    return np.array(found[::-1])
