"""One step of a schedule."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


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
    earlier_times: Float[Array, "*steps history"]
    """t_{k-1}, t_{k-2}, ...; before the schedule's first step its first time is repeated."""
    stochasticity_squared: Float[Array, "*steps"]
    """alpha^2 = (h / g)^2 of this step: the quantity every formula is smooth in, also at 0."""
    completed: Int[Array, "*steps"]
    """k, the number of steps before this one."""
    remaining: Int[Array, "*steps"]
    """K - 1 - k, the number of steps after this one."""
    uniform: Float[Array, "*steps"] | None = None
    """A number in (0, 1) of its own for every sample and step, if the sampler is randomised."""

    @property
    def is_first(self) -> Bool[Array, "*steps"]:
        """Whether it is the schedule's first step."""
        return self.completed <= 0

    @property
    def is_last(self) -> Bool[Array, "*steps"]:
        """Whether it is the schedule's last step."""
        return self.remaining == 0
