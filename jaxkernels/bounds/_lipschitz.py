"""Bounds for score errors that are Lipschitz in x."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._numerics import safe_sqrt
from .._precision import in_float64, is_traced
from .._types import AnyArray
from ..distributions import Gaussian, GaussianMixture
from ..prediction import Prediction
from ..processes import AbstractProcess
from ..recurrence import linearise
from ..samplers import AbstractSampler
from ..schedules import Schedule, Step
from ..score_error import AffineError
from ._bound import COHERENT, AccumulationBound, ErrorSize, checked_run, per_evaluation
from ._curvature_interval import AbstractCurvature, as_curvature


class LipschitzAccumulation(eqx.Module):
    """Bounds for errors that depend on x with Lipschitz constants L_j, for one evaluation per step.

        |D_{j+1}| <= M_j |D_j| + beta_j |e_j(y_j)|,
        M_j = max over H in [low_j, high_j] of |alpha_j + beta_j H| + beta_j L_j

    with alpha_j and beta_j the step's factors on x and on the score, [low_j, high_j] an interval
    that holds the eigenvalues of Hess log p_t, and y_j the run without errors, along which `rms` is
    meant: rms_j = (E |e_j(y_j)|^2)^(1/2), in 1 / data. It is (steps,), a number for all or a
    function of time. `rms_along_run` has it if it is known under the exact marginal p_t instead.

    **Arguments:**

    - `growth`: (steps,), M_j, at least the factor by which step j can move two samples apart.
    - `injection`: (steps,), |beta_j|, the step's factor on the score, in units of variance.
    - `times`: (steps,), of the evaluations.
    - `vacuous`: where the data's curvature is not known, which makes `growth` infinite.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> bound = jk.bounds.lipschitz_accumulation(*run, lipschitz=0.1).coherent(0.1)
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), equation
    (10), corrected: as published it neglects the correlation of errors in time, and takes factors
    |A_j + beta_j L_j|, which are too small where A_j < 0.
    """

    growth: Float[Array, " steps"]
    injection: Float[Array, " steps"]
    times: Float[Array, " steps"]
    vacuous: str = eqx.field(static=True)

    @property
    def gains(self) -> Float[Array, " steps"]:
        """g_i = beta_i prod_{j>i} M_j, in units of variance."""
        injection = jnp.asarray(self.injection)
        later = _product_of_later(jnp.where(self._known, self.growth, 1.0))
        blocked = _product_of_later(jnp.where(self._known, 1.0, 0.0)) == 0
        return jnp.where(blocked & (injection > 0), jnp.inf, injection * later)

    @property
    def _known(self) -> Bool[Array, " steps"]:
        """Whether a step's growth is known; what is not is left out of every derivative."""
        return jnp.isfinite(jnp.asarray(self.growth))

    @in_float64
    def coherent(self, rms: ErrorSize) -> AccumulationBound:
        """Bound W2 whatever the dependence of the errors.

            W2 <= sum_i g_i rms_i

        **Arguments:**

        - `rms`: (steps,), a number or a function of time, >= 0, in 1 / data.

        **Returns:** the bound, in the units of the data.

        **Raises:** ValueError for a wrong shape or a negative entry.

        **Example:**

        ```python
        >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
        >>> bound = jk.bounds.lipschitz_accumulation(*run, lipschitz=0.1).coherent(0.1)
        ```
        """
        sizes = self._sizes("rms", rms)
        contributions = jnp.where(sizes > 0, self.gains, 0.0) * sizes
        return self._bound(jnp.sum(contributions), COHERENT)

    @in_float64
    def mixed(self, rms: ErrorSize, fresh_rms: ErrorSize) -> AccumulationBound:
        """Bound W2 for errors e_j + z_j, e_j Lipschitz and z_j of mean 0 whatever came before.

            W2 <= D_K,   D_{j+1}^2 = (M_j D_j + beta_j rms_j)^2 + (beta_j fresh_rms_j)^2,   D_0 = 0

        With rms = 0 it is W2^2 <= sum_i g_i^2 fresh_rms_i^2.

        **Arguments:**

        - `rms`: of e_j along the run without errors, (steps,), a number or a function of time,
          >= 0, in 1 / data.
        - `fresh_rms`: at least (E |z_j|^2)^(1/2) along the run with errors, in the same form; z_j
          need not be Lipschitz.

        **Returns:** the bound, in the units of the data.

        **Raises:** ValueError for a wrong shape or a negative entry.

        **Example:**

        ```python
        >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
        >>> bound = jk.bounds.lipschitz_accumulation(*run, lipschitz=0.1).mixed(0.0, 0.1)
        ```
        """
        known = self._sizes("rms", rms)
        fresh = self._sizes("fresh_rms", fresh_rms)
        injection = jnp.asarray(self.injection)
        value = _recursion(jnp.where(self._known, self.growth, 1.0), injection, known, fresh)
        met = jnp.cumsum(injection * (known + fresh)) > 0
        # a step whose growth is not known does no harm before the first error
        lost = jnp.any(~self._known[1:] & met[:-1])
        value = jnp.where(lost, jnp.inf, value)
        return self._bound(
            value, "what is not Lipschitz has mean 0 given everything before its evaluation"
        )

    def _sizes(self, argument: str, value: ErrorSize) -> Float[Array, " steps"]:
        """A number for every step."""
        return per_evaluation(argument, value, self.times)

    def _bound(self, value: Float[Array, ""], assumption: str) -> AccumulationBound:
        """The bound, with the reason if it is infinite."""
        finite = is_traced(value) or bool(np.isfinite(value))
        return AccumulationBound(value, assumption, "" if finite else self.vacuous)


@in_float64
def lipschitz_accumulation(
    target: Gaussian | GaussianMixture | AbstractCurvature,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    lipschitz: ErrorSize,
) -> LipschitzAccumulation:
    """Compute the growth factors of a run whose score errors are Lipschitz in x.

        |e_j(x) - e_j(y)| <= L_j |x - y|

    **Arguments:**

    - `target`: a Gaussian, a mixture, or what is known of the curvature of any data, such as
      `BoundedSupport(1.0)`.
    - `process`, `sampler`, `schedule`: as for `accumulation_operators`; the sampler with one
      evaluation per step and no multistep history. `jk.samplers.EndEvaluated` evaluates at the end
      of steps.
    - `lipschitz`: L_j >= 0, (steps,), a number for all or a function of time, in 1 / variance.

    **Returns:** the factors, and the bounds that follow from them: infinite, with a reason, where
    nothing is known of the curvature.

    **Raises:** ValueError as `accumulation_operators`, and for samplers with a multistep history or
    several evaluations per step.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> assert (jk.bounds.lipschitz_accumulation(*run, lipschitz=0.1).growth > 0).all()
    ```

    Source: as for `LipschitzAccumulation`.
    """
    curvature = as_curvature(target)
    steps = checked_steps(process, sampler, schedule)
    return steps.accumulation(curvature, lipschitz, lambda x, scale: jnp.abs(x))


class Steps(eqx.Module):
    """The steps of a sampler with one evaluation, x' = keep x + injection score + noise.

    - `keep`, `injection`: (steps,), the factors on x and on the score.
    - `slope`: (steps,), the factor on a score error's slope: `injection` if the step evaluates at x
      itself.
    - `times`: (steps,), of the evaluations.
    """

    keep: Float[Array, " steps"]
    injection: Float[Array, " steps"]
    slope: Float[Array, " steps"]
    times: Float[Array, " steps"]
    process: AbstractProcess

    @classmethod
    def of(cls, process: AbstractProcess, sampler: AbstractSampler, steps: Step) -> "Steps":
        """The steps of parts that fit each other."""
        (times,) = sampler.evaluation_times(process, steps)
        keep, injection, slope = _step_responses(process, sampler, steps)
        return cls(keep, injection, slope, times, process)

    def factors(self, hessians: Float[Array, "steps *n"]) -> Float[Array, "steps *n"]:
        """The factor on x of a step whose score has these slopes."""
        shape = (-1, *[1] * (hessians.ndim - 1))
        return self.keep.reshape(shape) + self.slope.reshape(shape) * hessians

    def accumulation(
        self,
        curvature: AbstractCurvature,
        lipschitz: ErrorSize,
        size: Callable[[Array, Array], Array],
    ) -> LipschitzAccumulation:
        """The growth factors; `size(x, scale)` is |x|, or a smooth upper bound of it."""
        low, high = curvature.interval(self.process, self.times)
        constants = per_evaluation("lipschitz", lipschitz, self.times)
        known = jnp.isfinite(low) & jnp.isfinite(high)
        middle = self.factors(jnp.where(known, 0.5 * (low + high), 0.0))
        # the ends of an interval about its middle, of which one is the larger in size
        half = 0.5 * jnp.abs(self.slope) * jnp.where(known, high - low, 0.0)
        growth = size(middle, self.keep) + half + jnp.abs(self.slope) * constants
        growth = jnp.where(known | (self.slope == 0), growth, jnp.inf)
        return LipschitzAccumulation(growth, jnp.abs(self.injection), self.times, curvature.vacuous)


@in_float64
def rms_along_run(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    rms: ErrorSize,
    lipschitz: ErrorSize,
) -> Float[Array, " steps"]:
    """Bound the rms of score errors along the run without errors, from that under the marginals.

        (E |e_j(y_j)|^2)^(1/2)  <=  rms_j + L_j W2(distribution of y_j, p_t)

    with rms_j = (E |e_j(X_t)|^2)^(1/2) under p_t, where networks are trained and measured. A run
    meets other points, because its steps are not exact and it does not start from p_t.

    **Arguments:**

    - `target`: a Gaussian, for which both distributions are known.
    - `process`, `sampler`, `schedule`: as for `lipschitz_accumulation`.
    - `rms`: under p_t, (steps,), a number or a function of time, >= 0, in 1 / data.
    - `lipschitz`: of the errors, in the same form, in 1 / variance.

    **Returns:** (steps,), for `LipschitzAccumulation.coherent` and `.mixed`.

    **Raises:** ValueError as `lipschitz_accumulation`.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> assert (jk.bounds.rms_along_run(*run, rms=0.1, lipschitz=0.2) > 0.1).all()
    ```
    """
    run = checked_run(target, process, sampler, schedule)
    check_one_evaluation(run.sampler)
    times = run.evaluation_times()
    coordinates = run.coordinates()
    met = jax.tree.map(lambda a: a[:-1], run.moments())
    marginal = jax.vmap(lambda t: coordinates.marginal(run.process, t))(times)
    squared = coordinates.distance("w2_squared", met, marginal)
    constants = per_evaluation("lipschitz", lipschitz, times)
    return per_evaluation("rms", rms, times) + constants * safe_sqrt(squared)


def checked_steps(process: object, sampler: object, schedule: object) -> Steps:
    """The steps of a run with one evaluation each, where the signal is positive."""
    # any Gaussian: what is checked does not depend on it
    run = checked_run(Gaussian(0.0, [1.0]), process, sampler, schedule)
    check_one_evaluation(run.sampler)
    return Steps.of(run.process, run.sampler, run.schedule.steps())


def check_one_evaluation(sampler: AbstractSampler) -> None:
    """Refuse samplers whose steps are no function of x and one score."""
    if sampler.nfe_per_step != 1:
        what = f"makes {sampler.nfe_per_step} evaluations per step"
    elif jax.tree.leaves(sampler.init_history(jnp.zeros(1))):
        what = "has a multistep history"
    else:
        return
    raise ValueError(
        f"sampler {type(sampler).__name__} {what}; bounds for Lipschitz errors need one evaluation "
        "per step and no history. For errors that do not depend on x use accumulation_operators."
    )


def _product_of_later(factors: Float[AnyArray, " n"]) -> Float[Array, " n"]:
    """prod_{j>i} factor_j, without dividing: a factor may be 0."""
    factors = jnp.asarray(factors)
    shifted = jnp.concatenate([factors[1:], jnp.ones_like(factors[:1])])
    return jnp.cumprod(shifted[::-1])[::-1]


@jax.jit
def _recursion(growth: Array, injection: Array, known: Array, fresh: Array) -> Float[Array, ""]:
    """D_K of `LipschitzAccumulation.mixed`."""

    def step(distance: Array, here: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        growth, injection, known, fresh = here
        added_up = growth * distance + injection * known
        return safe_sqrt(added_up**2 + (injection * fresh) ** 2), None

    return jax.lax.scan(step, jnp.zeros((), growth.dtype), (growth, injection, known, fresh))[0]


@jax.jit
def _step_responses(
    process: AbstractProcess, sampler: AbstractSampler, steps: Step
) -> tuple[Array, Array, Array]:
    """Three factors (steps,): on x without a score, on the score, and on the slope of the score."""

    def predict(block: Array, x: Array, t: Array) -> Prediction:
        """Of a score that is 0 everywhere."""
        del block
        return Prediction(x / process.signal(t), jnp.zeros_like(x), jnp.zeros_like(x))

    def maps(error: AffineError) -> tuple[Array, Array]:
        out = linearise(sampler, process, steps, predict, jnp.zeros(1), 1, error)
        return out.factor[0, 0, :, 0], out.shift[0, :, 0]

    # the factor depends on the slope alone and the shift on the shift, so that both move at once
    zero = jnp.zeros_like(steps.time)[:, None, None, None]
    none = AffineError(zero[..., None], zero)
    one = AffineError(none.slope - 1.0, none.shift + 1.0)
    (factor, _), (by_slope, by_shift) = jax.jvp(maps, (none,), (one,))
    return factor, by_shift, by_slope
