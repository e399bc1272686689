"""The error of a schedule on a record, as an objective of an optimisation."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .. import _checks
from .._derivatives import forward_derivatives_with
from .._linalg import full_precision
from .._objective import AbstractBoundObjective, AbstractCoordinateObjective, AbstractObjective
from .._types import Numbers
from ..processes import AbstractProcess
from ..recurrence import window_indices
from ..samplers import AbstractSampler
from ..schedules import CoordinateProcess, Schedule, TimeCoordinate
from ._record import TrajectoryRecord, check_record, follow_record, propagated_errors
from ._terms import LocalErrorTerms, check_sampler, local_error_terms

_FLOOR = 1e-6
# of every propagated error of a sampler that corrects, relative to it
_DOUBT = 0.2
T = TypeVar("T")

Places: TypeAlias = tuple[Float[Array, "*windows terms"], Float[Array, "*windows terms"]]
"""Rows and columns of the terms of local errors, in a record's coordinate."""


class RecordedError(AbstractObjective):
    """Error of a schedule on the trajectories of a record, to first order.

        ( mean over trajectories of |e|^power )^(1 / power),      power = 0: exp(mean log |e|)

    power = 2 is the root mean square, which a few trajectories can decide; power = 0 is decided by
    typical ones. |e|^2 has 1e-6 of its mean added, so that no logarithm diverges.

    Of a sampler that corrects (`UniPC`) |e|^2 is |sum_k e_k|^2 + 0.2^2 sum_k |e_k|^2, with e_k the
    propagated local errors, as if each were known to 20 %: after a short step a long one multiplies
    what evaluations are off the trajectory by, so that to first order alone two short steps could
    cancel any error.

    Local errors keep their signs, and large ones that cancel look exact to first order.
    `optimize_schedule` therefore starts from the three baselines that the record says are best,
    unless `starts` are given; a selection on the network tells what is true of the optimum.

    **Arguments:**

    - `record`: of a network, or of the exact denoiser of a distribution.
    - `power`: >= 0.

    **Raises:** ValueError for another record or power.

    **Example:**

    ```python
    >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> objective = jk.RecordedError(jk.record(exact, np.eye(2), t_min=1e-3, nodes=16), power=0.0)
    >>> bound = objective.bind(None, jk.VP(), "ddim")
    ```
    """

    record: TrajectoryRecord
    power: ArrayLike

    def __init__(self, record: TrajectoryRecord, power: Numbers = 2.0):
        if not isinstance(record, TrajectoryRecord):
            raise ValueError(
                f"record must be a TrajectoryRecord, of jk.record; got {type(record).__name__}."
            )
        self.record = record
        self.power = _checks.parameter("power", power, at_least=0.0)

    def __repr__(self) -> str:
        return f"RecordedError({self.record!r}, power={_checks.brief(self.power)})"

    def check(self, sampler: AbstractSampler, deterministic: bool, fixed_end: bool) -> None:
        check_sampler(sampler)
        if not (deterministic and fixed_end):
            raise ValueError(
                "a RecordedError is of deterministic trajectories: stochasticity must be 0, and "
                "t_min fixed."
            )

    def bind(
        self, target: object, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundRecordedError":
        """Bind the objective to a sampler.

        **Arguments:**

        - `target`: without effect, as the record is of one network; all objectives are bound alike.
        - `process`: that of the record.
        - `sampler`: with one evaluation per step, or of order 2 with two, or its name.

        **Returns:** a `BoundRecordedError`, to be called on schedules.

        **Raises:** ValueError for another process than the record's, or a sampler whose errors a
        record does not predict.
        """
        del target
        check_record(self.record, process, sampler)
        return bind_record(self.record, sampler, self.power)


def bind_record(
    record: TrajectoryRecord, sampler: AbstractSampler | str, power: Numbers = 2.0
) -> "BoundRecordedError":
    """The bound objective of a record and a sampler, for the record's own process."""
    power = _checks.parameter("power", power, at_least=0.0)
    return BoundRecordedError(record, check_sampler(sampler), power)


class BoundRecordedError(AbstractBoundObjective):
    """`RecordedError` of a sampler: a differentiable function of a schedule.

    Made by `RecordedError.bind`.

    **Arguments:**

    - `record`: a `TrajectoryRecord`.
    - `sampler`: has one evaluation per step, or order 2 and two.
    - `power`: >= 0.
    """

    record: TrajectoryRecord
    sampler: AbstractSampler
    power: ArrayLike

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        """Evaluate the error of a schedule.

        **Arguments:**

        - `schedule`: deterministic, from t_max to the record's t_min.

        **Returns:** the error in units of the record's `scale`.

        **Raises:** ValueError for a stochastic schedule, or one between other times.
        """
        schedule = follow_record(self.record.process, self.record.t_min, schedule)
        dtype = schedule.times.dtype
        record, sampler, power = _constants((self.record, self.sampler, self.power), dtype)
        return _mean(_sums(propagated_errors(record, sampler, schedule.times), sampler), power)

    def in_coordinate(self, coordinate: TimeCoordinate, t_min: float) -> "RecordedSum":
        del t_min
        sigma_only = self.sampler.sigma_only
        process = CoordinateProcess.of(coordinate) if sigma_only else self.record.process
        return RecordedSum(self.record, process, coordinate, self.sampler, self.power)


class RecordedSum(AbstractCoordinateObjective):
    """`RecordedError` as a function of the coordinates of the times.

    The components of the end point are sums over steps of functions of the step's window, so that
    their Jacobian is banded, and what their curvature adds to the Hessian is a sum of small blocks.
    """

    record: TrajectoryRecord
    process: AbstractProcess
    """The record's; for a sampler of sigma alone the one whose times are the coordinates."""
    coordinate: TimeCoordinate
    sampler: AbstractSampler
    power: ArrayLike

    def value(self, u: Float[Array, " points"], num_steps: Int[Array, ""]) -> Float[Array, ""]:
        points, steps = self._windows(u)

        def added(window: tuple[Array, Array]) -> Array:
            u, k = window
            return self.record.contract(self._terms(u, k, num_steps))

        # one window after another: a record is large
        rows = jax.lax.map(added, (u[points], steps))
        used = (steps < num_steps)[:, None, None]
        return _mean(_sums(jnp.where(used, rows, 0.0), self.sampler), self.power)

    @full_precision
    def derivatives(
        self, u: Float[Array, " points"], num_steps: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
        points, steps = self._windows(u)
        windows = u[points]

        def weights_of(window: Array, k: Array) -> tuple[tuple[Array, Array, Array], Places]:
            def fn(u: Array) -> tuple[Array, Places]:
                terms = self._terms(u, k, num_steps)
                return self.record.block_weights(terms), (terms.rows, terms.columns)

            return forward_derivatives_with(fn, window)

        (w, w_a, w_ab), places = jax.vmap(weights_of)(windows, steps)
        # the ends are fixed, and before the first step a window repeats the first coordinate
        used = (steps < num_steps)[:, None]
        inner = (points > 0) & (points < num_steps) & used
        w_a = jnp.where(inner[..., None, None, None, None], w_a, 0.0)
        weights = jnp.concatenate([w[:, None], w_a], 1)
        rows = _contract_windows(self.record, places, weights, num_steps)
        errors = rows[:, 0]
        slopes = rows[:, 1:]
        sums = _sums(errors, self.sampler)
        value, pulls = jax.value_and_grad(_mean)(sums, self.power)
        # of the sum of errors, and of that of their squares
        own = [slopes, 2.0 * errors[:, None] * slopes][: len(sums)]
        empty = jnp.zeros((u.shape[0], *errors.shape[1:]), u.dtype)
        jacobians = [empty.at[points].add(rows) for rows in own]

        def along(directions: list[Array]) -> list[Array]:
            gradient = jax.grad(_mean)
            return jax.jvp(lambda s: gradient(s, self.power), (sums,), (directions,))[1]

        pull = sum(
            p * f for p, f in zip(pulls, (jnp.ones_like(errors), 2.0 * errors), strict=False)
        )
        pulled = _pull_windows(self.record, places, pull, num_steps)
        curved = jnp.einsum("kabwijc,kwijc->kab", w_ab, pulled)
        for p in pulls[1:]:
            curved = curved + 2.0 * jnp.einsum("kamp,kbmp,mp->kab", slopes, slopes, p)
        curved = jnp.where(inner[:, :, None] & inner[:, None], curved, 0.0)
        hessian = jnp.zeros((u.shape[0], u.shape[0]), u.dtype)
        hessian = hessian.at[points[:, :, None], points[:, None]].add(curved)
        gradient = jnp.zeros_like(u)
        for jacobian, turned, p in zip(jacobians, jax.vmap(along)(jacobians), pulls, strict=True):
            hessian = hessian + jnp.einsum("tmp,ump->tu", jacobian, turned)
            gradient = gradient + jnp.einsum("tmp,mp->t", jacobian, p)
        return value, gradient, hessian

    def _windows(self, u: Array) -> tuple[np.ndarray, Array]:
        points, _ = window_indices(u.shape[0] - 1, self.sampler.window_steps)
        return points, jnp.arange(u.shape[0] - 1)

    def _terms(
        self, u: Float[Array, " window"], step: Int[Array, ""], num_steps: Int[Array, ""]
    ) -> LocalErrorTerms:
        """The local error of a window's last step, in the record's process."""
        sigma_only = self.sampler.sigma_only
        times = u if sigma_only else self.coordinate.time(u)
        scale = jnp.ones((), u.dtype)
        if sigma_only:
            # x of the record's process over x of the process whose time is the coordinate
            scale = self.record.process.signal(self.coordinate.time(u[-1]))
            scale = scale / self.process.signal(times[-1])
        own = self.record.time_coordinate
        return local_error_terms(own, self.process, self.sampler, times, step, num_steps, scale)


# Windows are read one after another, and so are those of several schedules: a slice at a place that
# is batched would be gathered number by number.
@jax.custom_batching.sequential_vmap
def _contract_windows(
    record: TrajectoryRecord,
    places: Places,
    weights: Float[Array, "steps rows terms 4 4 2"],
    num_steps: Int[Array, ""],
) -> Float[Array, "steps rows trajectories directions"]:
    """Rows of weights contracted with the blocks of every window; 0 for padding."""

    def contract(window: tuple[Places, Array]) -> Array:
        places, w = window
        return jnp.tensordot(w, record.blocks(*places), 4)

    return _map_used(contract, (places, weights), num_steps)


@jax.custom_batching.sequential_vmap
def _pull_windows(
    record: TrajectoryRecord,
    places: Places,
    pull: Float[Array, "steps trajectories directions"],
    num_steps: Int[Array, ""],
) -> Float[Array, "steps terms 4 4 2"]:
    """The blocks of every window contracted with a gradient in its error; 0 for padding."""

    def contract(window: tuple[Places, Array]) -> Array:
        places, pull = window
        return jnp.tensordot(record.blocks(*places), pull, 2)

    return _map_used(contract, (places, pull), num_steps)


def _map_used(fn: Callable[..., Array], windows: PyTree, num_steps: Int[Array, ""]) -> Array:
    """fn of every window; 0 for those from `num_steps` on, which are padding."""
    one = jax.tree.map(lambda rows: rows[0], windows)
    shape = jax.eval_shape(fn, one)

    def padded(inputs: tuple[Array, PyTree]) -> Array:
        k, window = inputs
        return jax.lax.cond(
            k < num_steps, fn, lambda _: jnp.zeros(shape.shape, shape.dtype), window
        )

    count = jax.tree.leaves(windows)[0].shape[0]
    return jax.lax.map(padded, (jnp.arange(count), windows))


def _sums(
    errors: Float[Array, "steps trajectories directions"], sampler: AbstractSampler
) -> list[Float[Array, "trajectories directions"]]:
    """What the objective takes of propagated errors: their sum; and the sum of their squares."""
    sums = [jnp.sum(errors, 0)]
    return [*sums, jnp.sum(errors**2, 0)] if sampler.corrects else sums


def _mean(sums: Sequence[Float[Array, "trajectories directions"]], power: ArrayLike) -> Array:
    """`power_mean` of the error, with a doubt in every propagated one if squares are given."""
    total, *squares = sums
    return power_mean(total, power, _DOUBT**2 * sum(squares))


def power_mean(
    components: Float[Array, "trajectories directions"],
    power: ArrayLike,
    doubt: Float[Array, "trajectories directions"] | float = 0.0,
) -> Float[Array, ""]:
    """(mean over trajectories of |e|^power)^(1/power); exp(mean log |e|) for power 0.

    |e|^2 is the mean over directions of components^2 + doubt.
    """
    squared = jnp.mean(components**2 + doubt, -1)
    logs = 0.5 * jnp.log(squared + _FLOOR * jnp.mean(squared))
    # traced: one program serves every power
    power = jnp.asarray(power)
    positive = jnp.where(power > 0, power, 1.0)
    largest = jax.lax.stop_gradient(jnp.max(logs))
    mean = largest + jnp.log(jnp.mean(jnp.exp(positive * (logs - largest)))) / positive
    return jnp.exp(jnp.where(power > 0, mean, jnp.mean(logs)))


def _constants(tree: T, dtype: DTypeLike) -> T:
    """The same tree with its numbers as JAX arrays of a precision."""

    def convert(leaf: ArrayLike) -> Array:
        # a copy: JAX remembers the precision in which it first met a NumPy array
        return jnp.asarray(np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, dtype)

    return jax.tree.map(convert, tree)
