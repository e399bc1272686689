"""A bound on the distance that score errors cause, and what the families of bounds share.

Two runs, one with score errors and one without, start from the same distribution and share their
noise, which couples them. For a Gaussian target a sampler is affine in x and in the scores that it
is given, so the coupled samples differ at the end by

    D = sum_i G_i e_i,      G_i = d x_end / d e_i,      W2 <= (E |D|^2)^(1/2),   (1)

e_i the error that evaluation i meets in the run with errors. With one evaluation per step

    G_i = beta_i prod_{j>i} A_j,

where A_j is the factor of step j on x and beta_j its factor on the score. How the e_i are
correlated in time decides how the sum grows: `AccumulationOperators` has the bounds for known
correlations, `LipschitzAccumulation` those for errors that depend on x and are known along the run
without errors only.

Errors may be random. Where all samples share them, as with one trained network, the bounds hold for
(E W2^2)^(1/2), the mean being over the errors; where every sample has its own, for the distribution
of all samples. The distance to the data follows by the triangle inequality: add
`evaluate_schedule(...).w2`.

Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), Theorem 3.1.
Its sum of squares drops the products of errors at different times and bounds W2 only if they
vanish; the bounds here state what they need.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import largest
from .._precision import is_traced
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..recurrence import Run

ErrorSize: TypeAlias = Numbers | Callable[[Array], Array]
"""One number for all evaluations, one for each, or a function of the array of their times."""


class AccumulationBound(eqx.Module):
    """A bound on W2 between the samples with and without score errors.

    **Arguments:**

    - `value`: the bound, a scalar in the units of the data; infinite where nothing is known.
    - `assumption`: when it holds.
    - `reason`: why the value is infinite; empty if it is finite, or traced.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> jk.bounds.accumulation_operators(*run).orthogonal(0.1).assumption
    'errors of different evaluations are uncorrelated'
    ```
    """

    value: Float[Array, ""]
    assumption: str = eqx.field(static=True)
    reason: str = eqx.field(static=True, default="")


COHERENT = "none on the dependence of errors: they may all add up"


def per_evaluation(
    argument: str, value: ErrorSize, times: Float[AnyArray, " n"]
) -> Float[Array, " n"]:
    """A number >= 0 for every evaluation, from numbers or a function of the evaluation times."""
    if callable(value):
        value = value(jnp.asarray(times))
    count = times.shape[0]
    if not is_traced(value):
        value = _checks.array(argument, value)
        if value.shape not in ((), (count,)):
            raise ValueError(
                f"{argument} has shape {value.shape}; it must be a number or have shape ({count},)."
            )
        if np.any(value < 0):
            raise ValueError(f"{argument} must be >= 0; its smallest entry is {value.min():g}.")
    return jnp.broadcast_to(jnp.asarray(value), (count,))


def as_error_size(argument: str, value: ErrorSize) -> ErrorSize:
    """The size of an error as a field of an objective: a function of time, or numbers >= 0."""
    return as_leafless(value) if callable(value) else check_sizes(argument, value)


def as_leafless(fn: Callable[..., Any]) -> Callable[..., Array]:
    """A function as a tree without leaves, for compiled programs; a module is a tree already."""
    return cast(Callable[..., Array], fn if isinstance(fn, eqx.Module) else Partial(fn))


def check_sizes(argument: str, value: Numbers) -> AnyArray:
    """Numbers >= 0, one or one for each step."""
    if is_traced(value):
        return cast(AnyArray, value)
    sizes = _checks.array(argument, value)
    if sizes.ndim > 1:
        raise ValueError(f"{argument} has shape {sizes.shape}; it must be a number or (steps,).")
    if np.any(sizes < 0):
        raise ValueError(f"{argument} must be >= 0; its smallest entry is {sizes.min():g}.")
    return sizes


def check_signal(process: AbstractProcess) -> None:
    """Raise a ValueError for a process that starts where there is no signal."""
    if not float(process.signal(np.asarray(process.t_max))) > 0:
        raise ValueError(
            f"process.t_max = {float(process.t_max):g} has no signal: a bound needs a(t) > 0. "
            "Lower t_max."
        )


def largest_mode(target: Gaussian, along_modes: Float[Array, "n modes"]) -> Float[Array, " n"]:
    """The largest size among the modes of positive weight."""
    sizes = jnp.where(jnp.asarray(target.weights) > 0, jnp.abs(along_modes), 0.0)
    return largest(sizes)


def checked_run(target: object, process: object, sampler: object, schedule: object) -> Run:
    """A run whose responses to score errors are finite and known in every mode."""
    run = Run.checked(target, process, sampler, schedule)
    run.check_signal()
    if run.target.compression is not None:
        raise ValueError(
            "target is compressed: its nodes need not have the largest factor; pass the full "
            "spectrum."
        )
    return run
