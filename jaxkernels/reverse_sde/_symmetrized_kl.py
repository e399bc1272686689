"""The KL divergence of a sampler with K steps under a score error of unknown sign, exactly."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks, metrics
from .._types import AnyArray
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import NAMED_INITIALIZATIONS, NamedInitialization, Run, evaluation_times
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AbstractProfile, AffineError, Relative
from ._cells import evaluate_profile
from ._time_change import time_change


class _AtEvaluations(AbstractProfile):
    """The exact score times a number for every evaluation of one schedule."""

    size: Float[AnyArray, "evaluations modes"]

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        return jax.tree.map(lambda a: a * self.size, Relative()(target, process, times))


class _OfRescaledTime(AbstractProfile):
    """The exact score times a function of rescaled time."""

    size: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError:
        theta = time_change(process, times)[None]
        size = evaluate_profile(self.size, theta, target.eigenvalues.shape[0])[0]
        return jax.tree.map(lambda a: a * size, Relative()(target, process, times))


class SymmetrizedKL(eqx.Module):
    """The KL divergence of a schedule's samples, averaged over the sign of a relative score error.

        J = [KL(p_0 || q; +eps) + KL(p_0 || q; -eps)] / 2

    q is the distribution of the samples if the score is (1 +- eps c(theta)) grad log p. J is the
    part of KL that is even in the error, whose sign is not known. It is exact, differentiable in
    times and alpha^2, and can be an objective of `optimize_schedule`. A change of `epsilon`, of
    `error`'s numbers or of the target's does not recompile; another function does.

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0; KL is infinite otherwise.
    - `error`: c, a function of theta as in `optimize_diffusion`, or numbers (evaluations,) or
      (evaluations, modes) at the sampler's evaluations, noise first: then schedules differ in their
      stochasticity only.
    - `process`: the forward process.
    - `sampler`: the sampler.
    - `epsilon`: eps, the factor of the error. At 0, J is the KL divergence of the discretisation
      and of the initialization.
    - `initialization`: what sampling starts from, "marginal", the exact one, or "standard_normal",
      the prior of the process.

    **Raises:** ValueError for an unknown `initialization`.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.04]), jnp.ones_like, jk.OU(rate=1.0, t_max=2.0))
    >>> kl = jk.reverse_sde.SymmetrizedKL(*setting, jk.DDIM(), 0.1)
    >>> bool(kl(jk.Schedule([2.0, 0.1, 0.0])) > kl(jk.Schedule([2.0, 0.5, 0.1, 0.0])))
    True
    ```

    Source: derived here.
    """

    target: Gaussian
    process: AbstractProcess
    sampler: AbstractSampler
    error: AbstractProfile
    epsilon: Float[ArrayLike, ""]
    initialization: NamedInitialization

    def __init__(
        self,
        target: Gaussian,
        error: Callable[[Array], Array] | Float[ArrayLike, "evaluations *modes"],
        process: AbstractProcess,
        sampler: AbstractSampler,
        epsilon: Float[ArrayLike, ""],
        initialization: str = "marginal",
    ):
        self.target = target.in_eigenbasis()
        self.process = process
        self.sampler = sampler
        self.epsilon = epsilon
        name = _checks.one_of("initialization", initialization, NAMED_INITIALIZATIONS)
        self.initialization = NamedInitialization(name)
        if callable(error):
            self.error = _OfRescaledTime(error)
        else:
            self.error = _AtEvaluations(jnp.reshape(jnp.asarray(error), (np.shape(error)[0], -1)))

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        """Evaluate J of a schedule.

        **Arguments:**

        - `schedule`: times from where sampling starts, and alpha.

        **Returns:** J in nats.
        """
        times = evaluation_times(self.process, self.sampler, schedule)
        unit = self.error(self.target, self.process, times)

        def kl(epsilon: Array) -> Array:
            # the profile has one shape, its leading axis
            return self._evaluate(schedule, jax.tree.map(lambda a: epsilon * a[0], unit))

        return jnp.mean(jax.vmap(kl)(jnp.asarray(self.epsilon) * jnp.asarray([1.0, -1.0])))

    def _evaluate(self, schedule: Schedule, error: AffineError) -> Float[Array, ""]:
        """KL(p_0 || q) for an error at every evaluation, from the exact moments per mode."""
        run = Run(self.target, self.process, self.sampler, schedule, self.initialization)
        return jnp.sum(run.contributions(metrics.kl, error))
