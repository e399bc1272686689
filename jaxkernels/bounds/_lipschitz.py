"""Bounds for score errors that are Lipschitz in x."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics import safe_sqrt
from .._precision import in_float64
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import Run
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AffineError
from ._bound import (
    AccumulationBound,
    checked_run,
    coherent_bound,
    largest,
    no_error,
    per_evaluation,
)


class LipschitzAccumulation(eqx.Module):
    """Bounds for errors that depend on x with Lipschitz constants L_j, for one evaluation per step.

        |D_{j+1}| <= M_j |D_j| + beta_j |e_j(y_j)|,     M_j = max over modes |A_j| + beta_j L_j

    with y_j the run without errors, along which `rms` is meant: rms_j = (E |e_j(y_j)|^2)^(1/2),
    (steps,) or a number, in 1 / data. If it is known under the exact marginal p_t instead, L_j
    W2(distribution of y_j, p_t) has to be added.

    - `growth`: (steps,), M_j, at least the factor by which step j can move two samples apart.
    - `injection`: (steps,), |beta_j|, the step's factor on the score, in units of variance.

    The same numbers hold for data that are not Gaussian: if m I <= -Hess log p_0 <= L I with m > 0,
    take the target `Gaussian(0.0, [1 / m, 1 / L])`, whose score has the two extreme slopes at every
    time (`hessian_interval`).

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

    @property
    def gains(self) -> Float[Array, " steps"]:
        """g_i = beta_i prod_{j>i} M_j, in units of variance."""
        return self.injection * _product_of_later(self.growth)

    @in_float64
    def coherent(self, rms: Numbers) -> AccumulationBound:
        """Bound W2 whatever the dependence of the errors.

            W2 <= sum_i g_i rms_i

        **Arguments:**

        - `rms`: (steps,) or a number, >= 0, in 1 / data.

        **Returns:** the bound, in the units of the data.

        **Raises:** ValueError for a wrong shape or a negative entry.

        **Example:**

        ```python
        >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
        >>> bound = jk.bounds.lipschitz_accumulation(*run, lipschitz=0.1).coherent(0.1)
        ```
        """
        return coherent_bound(self.gains * self._sizes("rms", rms))

    @in_float64
    def mixed(self, rms: Numbers, fresh_rms: Numbers) -> AccumulationBound:
        """Bound W2 for errors e_j + z_j, e_j Lipschitz and z_j of mean 0 whatever came before.

            W2 <= D_K,   D_{j+1}^2 = (M_j D_j + beta_j rms_j)^2 + (beta_j fresh_rms_j)^2,   D_0 = 0

        With rms = 0 it is W2^2 <= sum_i g_i^2 fresh_rms_i^2.

        **Arguments:**

        - `rms`: of e_j along the run without errors, (steps,) or a number, >= 0, in 1 / data.
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
        value = _recursion(jnp.asarray(self.growth), jnp.asarray(self.injection), known, fresh)
        return AccumulationBound(
            value, "what is not Lipschitz has mean 0 given everything before its evaluation"
        )

    def _sizes(self, argument: str, value: Numbers) -> Float[Array, " steps"]:
        """A number for every step."""
        return per_evaluation(argument, value, self.growth.shape[0])


@in_float64
def lipschitz_accumulation(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    lipschitz: Numbers,
) -> LipschitzAccumulation:
    """Compute the growth factors of a run whose score errors are Lipschitz in x.

        |e_j(x) - e_j(y)| <= L_j |x - y|

    **Arguments:**

    - `target`, `process`, `sampler`, `schedule`: as for `accumulation_operators`; the sampler with
      one evaluation per step and no multistep history.
    - `lipschitz`: L_j >= 0, (steps,) or a number for all, in 1 / variance.

    **Returns:** the factors, and the bounds that follow from them.

    **Raises:** ValueError as `accumulation_operators`, and for samplers with a multistep history or
    several evaluations per step.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> assert (jk.bounds.lipschitz_accumulation(*run, lipschitz=0.1).growth > 0).all()
    ```

    Source: as for `LipschitzAccumulation`.
    """
    run = checked_run(target, process, sampler, schedule)
    _check_one_evaluation(run.sampler)
    factor, by_slope, by_shift = _step_responses(run)
    constants = per_evaluation("lipschitz", lipschitz, run.schedule.num_steps)
    growth = largest(run.target, factor) + largest(run.target, by_slope) * constants
    return LipschitzAccumulation(growth, largest(run.target, by_shift))


def _check_one_evaluation(sampler: AbstractSampler) -> None:
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
def _step_responses(run: Run) -> tuple[Array, Array, Array]:
    """Three factors (steps, modes) of every step.

    A_j, the derivative of -A_j in the error's slope, and that of the step in the error's shift. The
    last two are both beta_j if the step evaluates at x itself.
    """

    def maps(error: AffineError) -> tuple[Array, Array]:
        out = run.affine_maps(error)
        return out.factor[0, 0], out.shift[0]

    (factor, _), pull = jax.vjp(maps, AffineError(no_error(run), no_error(run)))
    one = jnp.ones_like(factor)
    zero = jnp.zeros_like(factor)
    return factor, -pull((one, zero))[0].slope, pull((zero, one))[0].shift
