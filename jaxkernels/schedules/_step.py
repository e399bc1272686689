"""One step of a schedule."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float


class Step(NamedTuple):
    """Hold one step of a schedule, or all of them when the fields are arrays over steps.

    **Example:**

    ```python
    >>> jk.Schedule([1.0, 0.5, 0.25]).steps().next_time.round(4).tolist()
    [0.5, 0.25]
    ```
    """

    time: Float[Array, "*steps"]
    """t_k, where the step starts."""
    next_time: Float[Array, "*steps"]
    """t_{k+1} < t_k, where it ends."""
    previous_time: Float[Array, "*steps"]
    """Start of the step before; equal to `time` in the first step."""
    stochasticity_squared: Float[Array, "*steps"]
    """alpha^2 = (h / g)^2 of this step: the quantity every formula is smooth in, also at 0."""
    is_first: Bool[Array, "*steps"]
    """Whether it is the schedule's first step."""
    is_last: Bool[Array, "*steps"]
    """Whether it is the schedule's last step."""
