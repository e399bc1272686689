"""One run of a sampler on a Gaussian target: what every analysis is a function of."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks, metrics
from .._precision import is_traced
from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess, check_process
from ..samplers import AbstractSampler, as_sampler, check_schedule
from ..schedules import Schedule
from ..score_error import AffineError
from ._affine import AffineMaps
from ._coordinates import AbstractCoordinates, Dense, Moments, PerMode
from ._elementwise import check_elementwise
from ._exact import log_contraction, log_contractions
from ._initialization import AbstractInitialization, NamedInitialization, check_initialization
from ._local import LocalErrors, local_errors


def check_target(target: object) -> Gaussian:
    """The target of an exact analysis."""
    if isinstance(target, GaussianMixture):
        raise ValueError(
            "target is a GaussianMixture, whose samples have no closed-form distribution; pass "
            "target.gaussian() for the Gaussian of the same mean and covariance."
        )
    return _checks.instance("target", target, Gaussian)


def evaluation_times(
    process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule
) -> Float[Array, " evaluations"]:
    """The times of all network evaluations of a run, in their order."""
    return jnp.stack(sampler.evaluation_times(process, schedule.steps()), axis=1).reshape(-1)


class Run(eqx.Module):
    """A sampler that takes a schedule through a process, with the exact score of a Gaussian target.

    The target is in its eigenbasis. Make one with `Run.checked`; the constructor checks nothing,
    for use inside functions whose arguments are known to fit.

    **Arguments:**

    - `target`: a Gaussian in its eigenbasis (`Gaussian.in_eigenbasis`).
    - `process`: the forward process.
    - `sampler`: the sampler.
    - `schedule`: a schedule that the process and the sampler can use.
    - `initialization`: the distribution that sampling starts from.

    **Example:**

    ```python
    >>> from jaxkernels.recurrence import Run
    >>> run = Run.checked(jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.4, 0.1]))
    >>> run.moments().mean.shape
    (3, 1)
    ```
    """

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    schedule: Schedule
    initialization: AbstractInitialization = NamedInitialization("standard_normal")

    @classmethod
    def checked(
        cls,
        target: object,
        process: object,
        sampler: object,
        schedule: object,
        initialization: object = None,
    ) -> "Run":
        """Check that the parts of a run fit each other, and rotate the target into its eigenbasis.

        **Arguments:**

        - `target`: a Gaussian, in any basis.
        - `process`: a forward process.
        - `sampler`: a sampler, or its name.
        - `schedule`: a schedule within the process's time range; stochastic only if the sampler is.
        - `initialization`: "standard_normal" (the process's prior), "marginal" (the exact marginal
          at the first time) or a Gaussian in data coordinates. Default: that of the process.

        **Returns:** the run.

        **Raises:** ValueError naming the argument that does not fit.

        **Example:**

        ```python
        >>> from jaxkernels.recurrence import Run
        >>> Run.checked(jk.Gaussian(0.0, [2.0]), jk.VP(), "heun", jk.Schedule([1.0, 0.1])).nfe
        2
        ```
        """
        checked = check_target(target)
        forward = check_process(process)
        step = as_sampler(sampler)
        checked_schedule = check_schedule(forward, step, schedule)
        check_elementwise(step, forward, checked_schedule)
        return cls(
            checked.in_eigenbasis(),
            forward,
            step,
            checked_schedule,
            check_initialization(checked, forward, initialization),
        )

    @property
    def nfe(self) -> int:
        """Number of network evaluations."""
        return self.sampler.nfe_per_step * self.schedule.num_steps

    def evaluation_times(self) -> Float[Array, " evaluations"]:
        """The time of every network evaluation, in their order."""
        return evaluation_times(self.process, self.sampler, self.schedule)

    def coordinates(self, error: AffineError | None = None) -> AbstractCoordinates:
        """Per mode if all covariances of the run commute with the target's, else dense."""
        matrix_slopes = error is not None and error.dense
        if matrix_slopes or not self.initialization.commutes:
            return Dense(self.target)
        return PerMode(self.target)

    def affine_maps(self, error: AffineError | None = None) -> AffineMaps:
        """The affine map of every step for the exact score plus `error`.

        `error` has fields (evaluations, modes[, modes]); None means the exact score.
        """
        coordinates = self.coordinates(error)
        steps = self.schedule.steps(self.sampler.history_steps)
        return coordinates.affine_maps(self.process, self.sampler, steps, error)

    def response_maps(self) -> AffineMaps:
        """The maps for the exact score per mode, with `responses`."""
        steps = self.schedule.steps(self.sampler.history_steps)
        return PerMode(self.target).response_maps(self.process, self.sampler, steps)

    def initial_moments(self, error: AffineError | None = None) -> Moments:
        """The initial moments, in the coordinates that `error` asks for."""
        coordinates = self.coordinates(error)
        return self.initialization.moments(coordinates, self.process, self.schedule.times[0])

    def moments(self, error: AffineError | None = None, start: Moments | None = None) -> Moments:
        """The exact moments at every time of the schedule, by default from the initialization."""
        if start is None:
            start = self.initial_moments(error)
        return self.coordinates(error).propagate(self.affine_maps(error), self.sampler, start)

    def contributions(
        self, metric: str | metrics.Metric, error: AffineError | None = None
    ) -> Float[Array, " parts"]:
        """The metric between samples and data: each mode's contribution, or one number if dense."""
        coordinates = self.coordinates(error)
        return coordinates.contributions(metric, self.moments(error).last, coordinates.data())

    def contraction(self, *, to_data: bool) -> Float[Array, " modes"]:
        """The factor on x - E x of the exact reverse process over the schedule.

        With `to_data` the process runs on to t = 0. Below the last time the stochasticity of the
        last step is kept.
        """
        logs = jnp.sum(log_contractions(self.target, self.process, self.schedule), axis=0)
        if to_data:
            last = self.schedule.times[-1]
            squared = self.schedule.stochasticity_squared[-1]
            end = jnp.zeros_like(last)
            logs = logs + log_contraction(self.target, self.process, last, end, squared)
        return jnp.exp(logs)

    def local_errors(self) -> LocalErrors:
        """The error that each step alone causes at the end."""
        return local_errors(self.target, self.process, self.sampler, self.schedule)

    def check_signal(self) -> None:
        """Raise a ValueError if the network is evaluated where the signal is 0; not if traced."""
        if is_traced((self.process, self.schedule)):
            return
        times = self.evaluation_times()
        signal = np.asarray(self.process.signal(times))
        if np.any(signal <= 0):
            t = float(times[int(np.argmin(signal))])
            raise ValueError(
                f"the network is evaluated at t = {t:g}, where the signal is 0 and a score error "
                "has no finite effect on the denoised point; start the schedule below t_max."
            )
