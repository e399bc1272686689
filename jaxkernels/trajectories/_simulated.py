"""The error of a schedule on a model that recorded trajectories correct, as an objective."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._objective import AbstractBoundObjective, AbstractObjective
from .._types import AnyArray, Numbers, constant
from ..distributions import AbstractDistribution
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, check_batch_sampler, run_schedule
from ..schedules import Schedule
from ._corrected import CorrectedDenoiser
from ._denoised import DenoisedRecord, check_denoised_record
from ._objective import power_mean
from ._record import end_scale, follow_record


class SimulatedError(AbstractObjective):
    """Terminal error of a schedule on a model of the data, corrected on recorded trajectories.

        ( mean over trajectories of |x_n - end_n|^power )^(1 / power),     power = 0: exp(mean log)

    with x_n where the sampler ends with the denoiser of `DenoisedRecord.denoiser`, from where
    trajectory n starts. Unlike `RecordedError` it is not of first order: it sees samples that end
    elsewhere, and needs no sensitivities. What it misses are differences between the derivatives of
    the network and of the model across the recorded runs. |x_n - end_n|^2 has 1e-6 of its mean
    added, so that no logarithm diverges.

    **Arguments:**

    - `record`: of the network.
    - `model`: of the data, such as `GaussianMixture.fit(samples)`.
    - `power`: >= 0.

    **Raises:** ValueError for another record, model or power.

    **Example:**

    ```python
    >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1])
    >>> record = jk.record_denoised(exact.denoiser(jk.VP()), np.eye(2), t_min=1e-3, nodes=16)
    >>> bound = jk.SimulatedError(record, exact, power=0.0).bind(None, jk.VP(), "ddim")
    ```
    """

    record: DenoisedRecord
    model: AbstractDistribution
    power: ArrayLike

    def __init__(
        self, record: DenoisedRecord, model: AbstractDistribution, power: Numbers = 2.0
    ) -> None:
        if not isinstance(record, DenoisedRecord):
            raise ValueError(
                "record must be a DenoisedRecord, of jk.record_denoised; got "
                f"{type(record).__name__}."
            )
        if not isinstance(model, AbstractDistribution):
            raise ValueError(
                "model must be a distribution, such as GaussianMixture.fit(samples); got "
                f"{type(model).__name__}."
            )
        self.record = record
        self.model = model
        self.power = _checks.parameter("power", power, at_least=0.0)

    def check(self, sampler: AbstractSampler, deterministic: bool, fixed_end: bool) -> None:
        check_batch_sampler(sampler)
        if not (deterministic and fixed_end):
            raise ValueError(
                "a SimulatedError is of deterministic trajectories: stochasticity must be 0, and "
                "t_min fixed."
            )

    def bind(
        self, target: object, process: AbstractProcess, sampler: AbstractSampler | str
    ) -> "BoundSimulatedError":
        """Bind the objective to a sampler.

        **Arguments:**

        - `target`: without effect, as the record is of one network; all objectives are bound alike.
        - `process`: that of the record.
        - `sampler`: a sampler or its name.

        **Returns:** a `BoundSimulatedError`, to be called on schedules.

        **Raises:** ValueError for another process than the record's, or a sampler that runs every
        sample by itself.
        """
        del target
        record = check_denoised_record(self.record, process)
        ends = np.asarray(record.ends)
        noise = np.asarray(record.noise).reshape(ends.shape)
        denoiser = record.denoiser(self.model.denoiser(record.process))
        scaled = (constant(noise.astype(ends.dtype)), constant(ends), end_scale(ends))
        return BoundSimulatedError(
            denoiser, check_batch_sampler(sampler), *scaled, record.t_min, self.power
        )


class BoundSimulatedError(AbstractBoundObjective):
    """`SimulatedError` of a sampler: a differentiable function of a schedule.

    Made by `SimulatedError.bind`.

    **Arguments:**

    - `denoiser`: of the corrected model.
    - `sampler`: a sampler.
    - `noise`: (n, d), where the trajectories start.
    - `ends`: (n, d), where they end.
    - `scale`: the unit of the error, the root of the total variance of the ends.
    - `t_min`: the time at which they end.
    - `power`: >= 0.
    """

    denoiser: CorrectedDenoiser
    sampler: AbstractSampler
    noise: Float[AnyArray, "n d"]
    ends: Float[AnyArray, "n d"]
    scale: ArrayLike
    t_min: ArrayLike
    power: ArrayLike

    def __call__(self, schedule: Schedule) -> Float[Array, ""]:
        """Evaluate the error of a schedule.

        **Arguments:**

        - `schedule`: deterministic, from t_max to the record's t_min.

        **Returns:** the error in units of `scale`.

        **Raises:** ValueError for a stochastic schedule, or one between other times.
        """
        schedule = follow_record(self.denoiser.process, self.t_min, schedule)
        dtype = schedule.times.dtype
        noise = jnp.asarray(self.noise, dtype)
        ends = jnp.asarray(self.ends, dtype)
        run = (self.denoiser, self.sampler, schedule, None, noise)
        # the mean over components of what `power_mean` takes is the squared distance
        size = jnp.sqrt(jnp.asarray(noise.shape[1], dtype)) / jnp.asarray(self.scale, dtype)
        return power_mean((run_schedule(*run)[0] - ends) * size, self.power)
