"""One step of a schedule."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float


class Step(NamedTuple):
    """One step of a schedule, or all of them when the fields are arrays over steps."""

    time: Float[Array, "*steps"]
    next_time: Float[Array, "*steps"]
    previous_time: Float[Array, "*steps"]
    """Start of the step before; equal to `time` in the first step."""
    stochasticity_squared: Float[Array, "*steps"]
    """alpha^2 = (h / g)^2 of this step: the quantity every formula is smooth in, also at 0."""
    is_first: Bool[Array, "*steps"]
    is_last: Bool[Array, "*steps"]
