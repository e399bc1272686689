"""The expected error over step sizes, correlations in time and sizes of the score error."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .. import _checks, metrics
from .._padding import pad_last
from .._precision import in_float64
from .._types import Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import Initialization
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AbstractCorrelation, ScoreError
from ._analysis import check_one_random_part, stability_of
from ._expected import centred, simulate
from ._kernel import ErrorKernel, contract, error_kernel

_PAIRS = 64

Module = TypeVar("Module", bound=eqx.Module)


class ErrorSweep(eqx.Module):
    """The expected error of S schedules, with R correlations of the score error and N sizes of it.

    **Arguments:**

    - `num_steps`: (S,) steps of the schedules.
    - `sizes`: (N,) factors on the random part of the score error.
    - `baseline`: (S,) the error for its mean, in the metric's units.
    - `second_order`: (S, R, N) what its randomness adds to second order: size^2 times a number.
    - `excess`: (S, R, N) what it adds in the simulation, of any order.
    - `standard_error`: (S, R, N) of `excess`.
    - `stability`: (S,) the constant of `stability_constant`.
    - `overshoot`: (S,) the largest -a of all steps and modes, where a step multiplies a mode by a.

    **Example:**

    ```python
    >>> parts = (np.array([4.0, 1.0]), *np.ones((3, 2, 1, 1)), *np.ones((2, 2)))
    >>> jk.ErrorSweep(np.array([4, 8]), np.ones(1), *parts).order.round(9).tolist()
    [2.0]
    ```
    """

    num_steps: Int[np.ndarray, " schedules"]
    sizes: Float[np.ndarray, " sizes"]
    baseline: Float[np.ndarray, " schedules"]
    second_order: Float[np.ndarray, "schedules correlations sizes"]
    excess: Float[np.ndarray, "schedules correlations sizes"]
    standard_error: Float[np.ndarray, "schedules correlations sizes"]
    stability: Float[np.ndarray, " schedules"]
    overshoot: Float[np.ndarray, " schedules"]

    @property
    def value(self) -> Float[np.ndarray, "schedules correlations sizes"]:
        """The expected error."""
        return self.baseline[:, None, None] + self.excess

    @property
    def remainder(self) -> Float[np.ndarray, "schedules correlations sizes"]:
        """What the second order leaves out, relative to it."""
        return self.excess / self.second_order - 1.0

    @property
    def stable(self) -> Bool[np.ndarray, " schedules"]:
        """(S,) whether no step is beyond the stability limit, overshoot <= 1."""
        return self.overshoot <= 1.0

    @property
    def order(self) -> Float[np.ndarray, " pairs"]:
        """(S - 1,) the order of `baseline` in the step size, from one schedule to the next.

        That of a squared distance is twice the order of the distance.
        """
        return -np.diff(np.log(self.baseline)) / np.diff(np.log(self.num_steps))


@in_float64
def error_sweep(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedules: Sequence[Schedule],
    score_error: ScoreError,
    *,
    correlations: Sequence[AbstractCorrelation] | None = None,
    sizes: Numbers = 1.0,
    metric: str | metrics.Metric = "w2_squared",
    initialization: Initialization = None,
    pairs: int = _PAIRS,
    key: Array | None = None,
) -> ErrorSweep:
    """Compute the expected error over step sizes, correlations in time and sizes of an error.

        E F = F(0) + size^2 Q + R(size),     per schedule and correlation

    F(0) and Q are exact, R is simulated by antithetic pairs with the same draws for all sizes. All
    of it is one program: schedules are padded to the longest by empty steps, which change nothing
    (but at noise 0: those that end there are computed one after another).
    `ErrorSweep.order` is a study of the sampler's order, `remainder` shows where the second order
    ends. A step that multiplies a mode by a number below -1 turns errors around and enlarges them:
    it is beyond the stability limit, which for Euler's method is a step of 2 over the rate of the
    mode, and there the exact error and its expansion grow together with `stability`.

    **Arguments:**

    - `target`, `process`, `sampler`, `metric`, `initialization`: as for `jk.expected_error`.
    - `schedules`: of any numbers of steps.
    - `score_error`: with slopes per mode, and a random part that is not a sum.
    - `correlations`: of one type, in place of that of `score_error`; default: its own.
    - `sizes`: (N,) factors > 0 on the random part.
    - `pairs`: number of pairs simulated, >= 2.
    - `key`: of the simulation. Default: a fixed one.

    **Returns:** an `ErrorSweep`.

    **Raises:** ValueError naming the argument.

    **Example:**

    ```python
    >>> schedules = [jk.schedules.log_snr(jk.VP(), steps, 1e-3) for steps in (8, 16)]
    >>> setting = (jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", schedules)
    >>> jk.error_sweep(*setting, jk.ScoreError.relative(0.02), sizes=[0.5, 1.0, 2.0]).excess.shape
    (2, 1, 3)
    ```

    Source: the experiments of "Correlated-time kernel expansions of the score error" (manuscript),
    section 8.
    """
    score_error = check_one_random_part(score_error)
    factors = _check_sizes(sizes)
    pairs = _checks.count("pairs", pairs, at_least=2)
    correlations = [score_error.correlation] if correlations is None else list(correlations)
    stacked = _stack_correlations(correlations)
    if isinstance(schedules, Schedule) or not len(schedules):
        raise ValueError(f"schedules must be a list of one or more; got {schedules}.")
    options = {"metric": metric, "initialization": initialization}
    kernels = [error_kernel(target, process, sampler, s, **options) for s in schedules]
    for one in kernels:
        # a correlation that is given for one number of evaluations fits no other
        jax.eval_shape(lambda times: correlations[0].factor(process, times), one.times)
    key = jax.random.key(0) if key is None else _checks.random_key("key", key)
    found = [
        _sweep(_stack(batch), score_error, stacked, jnp.asarray(factors), key, pairs)
        for batch in _batches(kernels)
    ]
    baseline, second, remainder, doubt, stability = (
        np.concatenate([np.asarray(f[i]) for f in found]) for i in range(5)
    )
    second = second[..., None] * factors**2
    overshoot = np.concatenate([_overshoot(np.asarray(f[-1])) for f in found])
    moments = (baseline, second, second + remainder, doubt)
    counts = np.array([kernel.run.schedule.num_steps for kernel in kernels])
    return ErrorSweep(counts, factors, *moments, stability, overshoot)


def _check_sizes(sizes: Numbers) -> Float[np.ndarray, " sizes"]:
    """Positive factors."""
    factors = np.atleast_1d(_checks.array("sizes", sizes))
    if factors.ndim != 1 or not factors.size or np.any(factors <= 0):
        raise ValueError(f"sizes must be numbers > 0; got {sizes}.")
    return factors


def _overshoot(factor: Float[np.ndarray, "runs s s steps modes"]) -> Float[np.ndarray, " runs"]:
    """The largest -a of the eigenvalues a of every run's steps, matrices if there is a history."""
    a = np.linalg.eigvals(np.moveaxis(factor, (1, 2), (-2, -1))).real
    return -a.reshape(len(a), -1).min(1)


def _stack(modules: Sequence[Module]) -> Module:
    """Modules of one structure as one, with a leading axis in every array."""
    return jax.tree.map(lambda *a: jnp.stack([jnp.asarray(x) for x in a]), *modules)


def _stack_correlations(correlations: list[AbstractCorrelation]) -> AbstractCorrelation:
    """Correlations of one type as one, with a leading axis in every field."""
    names = sorted({type(c).__name__ for c in correlations})
    if len(names) != 1 or not isinstance(correlations[0], AbstractCorrelation):
        raise ValueError(f"correlations must be one or more, of one type; got {names}.")
    if len({jax.tree.structure(c) for c in correlations}) != 1:
        raise ValueError("correlations differ in what is no number; sweep over each by itself.")
    first = correlations[0]
    if not jax.tree.leaves(first) and len(correlations) > 1:
        raise ValueError(f"correlations repeats {first}, which has no parameter.")
    return _stack(correlations)


def _batches(kernels: list[ErrorKernel]) -> list[list[ErrorKernel]]:
    """What is computed at once: all, in one length, unless a run ends where no score exists."""
    if any(float(k.process.noise(k.run.schedule.times[-1])) == 0 for k in kernels):
        return [[kernel] for kernel in kernels]
    steps = max(kernel.run.schedule.num_steps for kernel in kernels)
    return [[_pad(kernel, steps) for kernel in kernels]]


def _pad(kernel: ErrorKernel, steps: int) -> ErrorKernel:
    """A kernel of a schedule that goes on with empty steps."""
    schedule = kernel.run.schedule
    longer = eqx.tree_at(
        lambda s: (s.times, s.stochasticity_squared),
        schedule,
        (
            pad_last(np.asarray(schedule.times), steps + 1),
            pad_last(np.asarray(schedule.stochasticity_squared), steps),
        ),
    )
    run = eqx.tree_at(lambda r: r.schedule, kernel.run, longer)
    return ErrorKernel.about_zero(run, kernel.metric)


@eqx.filter_jit
def _sweep(
    kernels: ErrorKernel,
    score_error: ScoreError,
    correlations: AbstractCorrelation,
    sizes: Float[Array, " sizes"],
    key: Array,
    pairs: int,
) -> tuple[Array, ...]:
    """Per schedule: baseline, Q, remainder, its standard error, stability, factors of the steps."""

    def one_correlation(
        kernel: ErrorKernel, correlation: AbstractCorrelation
    ) -> tuple[Array, Array, Array]:
        error = dataclasses.replace(score_error, correlation=correlation)
        kernel, directions = centred(kernel, error)
        second = contract(kernel, None, directions)

        def one_size(size: Array) -> tuple[Array, Array]:
            return simulate(kernel, jax.tree.map(lambda a: size * a, directions), key, pairs)

        return second, *jax.vmap(one_size)(sizes)

    def one_schedule(kernel: ErrorKernel) -> tuple[Array, ...]:
        about, _ = centred(kernel, dataclasses.replace(score_error, shapes=None))
        baseline = about.error(about.about)
        if jax.tree.leaves(correlations):
            per_correlation = jax.vmap(one_correlation, (None, 0))(kernel, correlations)
        else:
            found = one_correlation(kernel, correlations)
            per_correlation = jax.tree.map(lambda a: a[None], found)
        return baseline, *per_correlation, stability_of(kernel.run), kernel.run.affine_maps().factor

    return jax.lax.map(one_schedule, kernels)
