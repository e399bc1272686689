"""How tools scale the initial noise."""

import abc
import dataclasses
import math

from .. import _checks
from ..processes import DiscreteVP, sigma_range
from ._plan import Plan


class AbstractInitialNoise(abc.ABC):
    """Define how a tool scales the initial noise.

    A subclass is a frozen dataclass.

    **Example:**

    ```python
    >>> class Unscaled(jk.exports.AbstractInitialNoise):
    ...     def warnings(self, plan):
    ...         return () if plan.initial_std == 1.0 else ("the noise is not scaled",)
    >>> Unscaled().placeholders
    ()
    ```
    """

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the placeholders that `parts` fills."""
        return ()

    def parts(self, plan: Plan) -> dict[str, str]:
        """Return what texts and settings say of the initial noise.

        By default nothing.

        **Arguments:**

        - `plan`: what the scheduler is told.

        **Returns:** {placeholder: its text}, for every name in `placeholders`.
        """
        return {}

    @abc.abstractmethod
    def warnings(self, plan: Plan) -> tuple[str, ...]:
        """Return what separates the tool's initial noise from the schedule's.

        **Arguments:**

        - `plan`: what the scheduler is told.

        **Returns:** a warning if the tool scales the noise otherwise than the schedule assumes;
        empty if the two agree.
        """

    def remarks(self, plan: Plan) -> tuple[str, ...]:
        """Return how to make the tool scale the noise as the schedule assumes.

        By default there is nothing to be done.

        **Arguments:**

        - `plan`: what the scheduler is told.

        **Returns:** remarks for the user.
        """
        return ()


def _scaled(plan: Plan, scale: float) -> tuple[str, ...]:
    """A warning if `scale` is not what the schedule was evaluated with."""
    if math.isclose(scale, plan.initial_std, rel_tol=1e-3):
        return ()
    warning = f"{plan.name} scales the initial noise by {scale:.6g}; the schedule starts from "
    return (f"{warning}{plan.initial_std:.6g}",)


@dataclasses.dataclass(frozen=True)
class WrittenOut(AbstractInitialNoise):
    """Declare that the text scales the initial noise, by the placeholder {initial_std}.

    It is filled with the standard deviation: an expression in `sigmas` if there is one, else a
    number.

    **Example:**

    ```python
    >>> jk.exports.WrittenOut().placeholders
    ('initial_std',)
    ```
    """

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The standard deviation as an expression in `sigmas`."""
        return ("initial_std",)

    def parts(self, plan: Plan) -> dict[str, str]:
        std = plan.initial_std
        if math.isclose(std, float(plan.levels[0]), rel_tol=1e-6):
            return {"initial_std": "sigmas[0]"}
        if plan.preserves_variance:
            return {"initial_std": "(1 + sigmas[0] ** 2) ** 0.5"}
        return {"initial_std": repr(std)}

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class SpacingSetting(AbstractInitialNoise):
    """Declare that a scheduler scales by sqrt(1 + sigma^2) or by sigma, as a setting says.

    The setting is called `timestep_spacing`, and has no other effect on a custom schedule.

    **Example:**

    ```python
    >>> jk.exports.SpacingSetting().placeholders
    ('timestep_spacing',)
    ```
    """

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The value of the setting."""
        return ("timestep_spacing",)

    def parts(self, plan: Plan) -> dict[str, str]:
        return {"timestep_spacing": "leading" if plan.preserves_variance else "trailing"}

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class Scaled(AbstractInitialNoise):
    """Declare that a scheduler scales unit noise by itself.

    **Arguments:**

    - `by`: "level", its first level; "variance_preserving", sqrt(1 + sigma^2) at its first level;
      "sigma_max", sqrt(1 + sigma_max^2) of its own option sigma_max.

    **Raises:** ValueError for another rule.

    **Example:**

    ```python
    >>> jk.exports.Scaled("level").by
    'level'
    ```
    """

    by: str

    def __post_init__(self):
        _checks.one_of("by", self.by, ("level", "variance_preserving", "sigma_max"))

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        scales = {
            "level": lambda: float(plan.levels[0]),
            "variance_preserving": lambda: math.hypot(plan.levels[0], 1.0),
            "sigma_max": lambda: math.hypot(float(str(plan.options["sigma_max"])), 1.0),
        }
        return _scaled(plan, scales[self.by]())


@dataclasses.dataclass(frozen=True)
class ScaledAtTableTop(AbstractInitialNoise):
    """Declare that a tool scales by sqrt(1 + sigma^2) at the largest level of its model's table.

    Below that level it scales by sigma. Whether the level is the largest is known only for a
    process that has the table.

    **Example:**

    ```python
    >>> jk.exports.ScaledAtTableTop().placeholders
    ()
    ```
    """

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        if not isinstance(plan.process, DiscreteVP):
            return ()
        first = float(plan.levels[0])
        at_top = math.isclose(first, sigma_range(plan.process, 0.0)[0], rel_tol=1e-5)
        return _scaled(plan, math.hypot(first, 1.0) if at_top else first)

    def remarks(self, plan: Plan) -> tuple[str, ...]:
        if isinstance(plan.process, DiscreteVP):
            return ()
        return (
            "ComfyUI scales the initial noise by sqrt(1 + sigma^2) only if the first number is the "
            "model's own largest level to 5 digits; make the schedule for the model's own table",
        )


@dataclasses.dataclass(frozen=True)
class UnitVariance(AbstractInitialNoise):
    """Declare that a pipeline for flow models starts from level 1, noise of variance 1.

    **Example:**

    ```python
    >>> jk.exports.UnitVariance().placeholders
    ()
    ```
    """

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        if math.isclose(plan.initial_std, 1.0, rel_tol=1e-3):
            return ()
        return (
            f"levels s/(a + s) of {type(plan.process).__name__}: a flow model starts from level 1, "
            f"pure noise of standard deviation 1; this schedule starts at {plan.levels[0]:.6g}, "
            f"with standard deviation {plan.initial_std:.6g}",
        )
