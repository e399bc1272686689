"""The error of a schedule on a record, as an objective of an optimisation."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._derivatives import forward_derivatives
from .._types import Numbers
from ..processes import AbstractProcess
from ..recurrence import windows
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ._record import (
    TrajectoryRecord,
    check_record,
    check_sampler,
    first_order_components,
    window_components,
)

_FLOOR = 1e-6
T = TypeVar("T")


class RecordedError(eqx.Module):
    """Error of a schedule on the trajectories of a record, to first order.

        ( mean over trajectories of |e|^power )^(1 / power),      power = 0: exp(mean log |e|)

    power = 2 is the root mean square, which a few trajectories can decide; power = 0 is decided by
    typical ones. |e|^2 has 1e-6 of its mean added, so that no logarithm diverges.

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

    def bind(
        self,
        target: object,
        process: AbstractProcess,
        sampler: AbstractSampler | str,
        *,
        t_min: object = None,
    ) -> "BoundRecordedError":
        """Bind the objective to a sampler, to be called on schedules.

        **Arguments:**

        - `target`: has no effect: the record is of one network. Objectives share this signature.
        - `process`: that of the record.
        - `sampler`: a sampler with one evaluation per step, or its name.
        - `t_min`: last time of the schedules, which must be the record's; None if it is not known.

        **Returns:** a `BoundRecordedError`.

        **Raises:** ValueError for another process or t_min than the record's, or a sampler with
        several evaluations per step.
        """
        del target
        check_record(self.record, process, sampler, t_min)
        return bind_record(self.record, sampler, self.power)


def bind_record(
    record: TrajectoryRecord, sampler: AbstractSampler | str, power: Numbers = 2.0
) -> "BoundRecordedError":
    """The bound objective of a record and a sampler, for the record's own process."""
    power = _checks.parameter("power", power, at_least=0.0)
    return BoundRecordedError(record, check_sampler(sampler), power)


class BoundRecordedError(eqx.Module):
    """`RecordedError` of a sampler: a differentiable function of a schedule.

    Made by `RecordedError.bind`.

    **Arguments:**

    - `record`: a `TrajectoryRecord`.
    - `sampler`: has one evaluation per step.
    - `power`: >= 0.
    """

    record: TrajectoryRecord
    sampler: AbstractSampler
    power: ArrayLike

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        """Evaluate the error of a schedule.

        **Arguments:**

        - `schedule`: deterministic, from t_max to the record's t_min.

        **Returns:** the error in units of the record's `scale`.
        """
        record, sampler = _constants((self.record, self.sampler), schedule.times.dtype)
        return self._statistic(first_order_components(record, sampler, schedule.times))

    def derivatives(
        self, schedule: Schedule
    ) -> tuple[Float[Array, ""], Float[Array, " points"], Float[Array, "points points"]]:
        """Evaluate the error with its first and second derivatives in the times.

        The components are sums over steps of functions of the step's window, so that their Jacobian
        is banded, and the part of the Hessian from their curvature is a sum of small blocks.

        **Arguments:**

        - `schedule`: as for a call.

        **Returns:** value, gradient and Hessian in the times. The two end times are held fixed:
        their entries are 0.
        """
        times = schedule.times
        count = schedule.num_steps
        points, _ = windows(schedule, self.sampler.history_steps)
        # the ends are fixed, and before the first step a window repeats the first time
        inner = jnp.asarray((points > 0) & (points < count), times.dtype)
        place = inner[..., None] * (points[..., None] == np.arange(count + 1))

        record, sampler = _constants((self.record, self.sampler), times.dtype)

        def term(t: Array, k: Array) -> Array:
            return window_components(record, sampler, t, k, count)

        steps = jnp.arange(count)
        components = jnp.sum(jax.vmap(term)(times[points], steps), 0)
        slopes = jax.vmap(jax.jacfwd(term))(times[points], steps)
        jacobian = jnp.einsum("kmpw,kwt->tmp", slopes, place)
        value, pull = jax.value_and_grad(self._statistic)(components)

        def along(direction: Array) -> Array:
            return jax.jvp(jax.grad(self._statistic), (components,), (direction,))[1]

        def bend(t: Array, k: Array) -> Array:
            return forward_derivatives(lambda t: jnp.sum(pull * term(t, k)), t)[2]

        curved = jnp.einsum("kwv,kwt,kvu->tu", jax.vmap(bend)(times[points], steps), place, place)
        straight = jnp.einsum("tmp,ump->tu", jacobian, jax.vmap(along)(jacobian))
        return value, jnp.einsum("tmp,mp->t", jacobian, pull), straight + curved

    def _statistic(self, components: Float[Array, "trajectories directions"]) -> Float[Array, ""]:
        """The power mean over trajectories."""
        squared = jnp.mean(components**2, -1)
        logs = 0.5 * jnp.log(squared + _FLOOR * jnp.mean(squared))
        # traced: one program serves every power
        power = jnp.asarray(_constants(self.power, components.dtype))
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
