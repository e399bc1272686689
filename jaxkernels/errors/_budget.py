"""Where the squared W2 distance of a run comes from."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import is_traced
from ..recurrence import AffineMaps, Moments, Run


class ErrorBudget(eqx.Module):
    """Where the squared W2 distance to the data distribution comes from, in units of variance.

    Squared W2 is not additive, so the errors are switched on one after another and each entry is
    the exact increment. (It can be negative: a later error may undo an earlier one.) They sum to
    `total`:

        total = initialization + truncation + discretization + score

    **Arguments:**

    - `initialization`: the exact reverse process, run down to t = 0, from the initial distribution.
    - `truncation`: the same, stopped at the schedule's last time.
    - `discretization`: the sampler instead of the exact reverse process.
    - `score`: the score error, if one is given: averaged over its randomness, to second order.
    - `total`: the squared W2 distance of the run.
    - `initialization_alone`, `truncation_alone`, `discretization_alone`: the distance when only
      that error is present.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0, 0.1]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> budget = jk.evaluate_schedule(*run).error_budget
    >>> assert budget.discretization > budget.truncation
    ```
    """

    initialization: Float[Array, ""]
    truncation: Float[Array, ""]
    discretization: Float[Array, ""]
    score: Float[Array, ""]
    total: Float[Array, ""]
    initialization_alone: Float[Array, ""]
    truncation_alone: Float[Array, ""]
    discretization_alone: Float[Array, ""]

    @property
    def interaction(self) -> Float[Array, ""]:
        """`total` minus the sum of the distances that each error causes alone."""
        alone = self.initialization_alone + self.truncation_alone + self.discretization_alone
        return self.total - alone

    def __repr__(self) -> str:
        names = ("initialization", "truncation", "discretization", "score", "total")
        return f"ErrorBudget({', '.join(f'{n}={show(getattr(self, n))}' for n in names)})"


def error_budget(
    run: Run, maps: AffineMaps, start: Moments, end: Moments, total: Float[Array, ""]
) -> ErrorBudget:
    """The budget of a run.

    `maps` are those of the exact score, `end` the moments that they reach from `start`, and `total`
    is the distance with the score error.
    """
    coordinates = run.coordinates()
    data = coordinates.data()
    last = run.schedule.times[-1]
    at_first = coordinates.marginal(run.process, run.schedule.times[0])
    at_last = coordinates.marginal(run.process, last)

    def reversed_exactly(t: Array, to_data: bool) -> Moments:
        """The moments at t of the exact reverse process from the initial distribution."""
        factor = run.contraction(to_data=to_data)
        exact = coordinates.marginal(run.process, t)
        change = coordinates.contract(factor, start.covariance - at_first.covariance)
        mean = exact.mean + factor * (start.mean - at_first.mean)
        return Moments(mean, exact.covariance + change)

    def w2_squared(moments: Moments, reference: Moments) -> Array:
        return coordinates.distance("w2_squared", moments, reference)

    initialization = w2_squared(reversed_exactly(jnp.zeros_like(last), to_data=True), data)
    truncated = w2_squared(reversed_exactly(last, to_data=False), data)
    discretized = w2_squared(end, data)
    from_marginal = coordinates.propagate(maps, run.sampler, at_first).last
    return ErrorBudget(
        initialization=initialization,
        truncation=truncated - initialization,
        discretization=discretized - truncated,
        score=total - discretized,
        total=total,
        initialization_alone=initialization,
        truncation_alone=w2_squared(at_last, data),
        discretization_alone=w2_squared(from_marginal, at_last),
    )


def show(value: Array) -> str:
    """A number as text, or "traced"."""
    return "traced" if is_traced(value) else f"{float(value):.4g}"
