"""How schedulers inject fresh noise."""

import abc
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ..processes import AbstractProcess
from ..samplers import to_churn, to_eta
from ..schedules import Schedule
from ._plan import Levels, Plan, per_step
from ._render import Text


class AbstractNoise(abc.ABC):
    """Define how a scheduler injects fresh noise, and which texts set it.

    A subclass is a frozen dataclass.

    **Example:**

    ```python
    >>> class LeavesOut(jk.exports.AbstractNoise):
    ...     def warnings(self, plan):
    ...         return ("noise is left out",) if plan.schedule.is_stochastic else ()
    >>> LeavesOut().texts
    ()
    ```
    """

    parameter: ClassVar[str] = ""
    """The tool's name of its noise parameter, under which `Export.values` holds it."""
    variable: ClassVar[str] = ""
    """The name that the text gives to the list of it."""

    @property
    def texts(self) -> tuple[Text, ...]:
        """The texts that set the noise parameter."""
        return ()

    def strength(self, schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
        """Convert the schedule's stochasticity into the tool's noise parameter.

        By default it is the stochasticity alpha itself.

        **Arguments:**

        - `schedule`: the schedule, of K steps.
        - `process`: the process that it was made for.
        - `levels`: (levels,) that the scheduler runs: the schedule's, and perhaps a last one 0.

        **Returns:** (levels - 1,), the parameter of every step; 0 in a step to level 0.
        """
        return per_step(_stochasticity, schedule, process, levels)

    def text(self, plan: Plan) -> Text | None:
        """Select the text that sets the noise parameter.

        By default there is none.

        **Arguments:**

        - `plan`: what the scheduler is told.

        **Returns:** one of `texts`, or None if the parameter is 0 in all steps or cannot be set.
        """
        return None

    @abc.abstractmethod
    def warnings(self, plan: Plan) -> tuple[str, ...]:
        """Return what separates the scheduler's noise from the schedule's.

        **Arguments:**

        - `plan`: what the scheduler is told.

        **Returns:** warnings; empty if the two agree.
        """


def _stochasticity(process: AbstractProcess, times: ArrayLike, alpha: ArrayLike) -> Array:
    """The stochasticity itself."""
    return jnp.asarray(alpha)


def _squared(process: AbstractProcess, times: ArrayLike, alpha: ArrayLike) -> Array:
    """The squared stochasticity."""
    return jnp.asarray(alpha) ** 2


def _text(plan: Plan, constant: Text | None, per_step: Text | None) -> Text | None:
    """The text for one value in all steps if they agree, else the one for a value per step."""
    if not plan.is_stochastic:
        return None
    return per_step if plan.constant is None or constant is None else constant


def _lost(reason: str) -> tuple[str, ...]:
    """The warning that the schedule's stochasticity is left out."""
    return (f"stochasticity cannot be exported: {reason}; these are the levels alone",)


@dataclasses.dataclass(frozen=True)
class Deterministic(AbstractNoise):
    """Declare that a scheduler injects no noise.

    **Arguments:**

    - `reason`: why, for the warning; by default "... is deterministic".

    **Example:**

    ```python
    >>> jk.exports.Deterministic().texts
    ()
    ```
    """

    reason: str = ""

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        if not plan.schedule.is_stochastic:
            return ()
        return _lost(self.reason or f"{plan.name} is deterministic")


@dataclasses.dataclass(frozen=True)
class Fixed(AbstractNoise):
    """Declare that a scheduler injects the noise of one stochasticity in every step.

    **Arguments:**

    - `stochasticity`: alpha = h/g, >= 0.

    **Example:**

    ```python
    >>> jk.exports.Fixed(1.0).stochasticity
    1.0
    ```
    """

    stochasticity: float

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        alpha = plan.used
        if not alpha.size or np.allclose(alpha, self.stochasticity, atol=1e-6):
            return ()
        return (
            f"{plan.name} injects the noise of stochasticity {self.stochasticity:g} in every step; "
            f"the schedule's, from {alpha.min():.3g} to {alpha.max():.3g}, cannot be exported: "
            "these are the levels alone",
        )


@dataclasses.dataclass(frozen=True)
class Eta(AbstractNoise):
    """Declare that a scheduler splits a step as the ancestral samplers do, by DDIM's `eta`.

    **Arguments:**

    - `constant`, `per_step`: the texts that set it, at least one of them.
    - `reason`: why there is none for every step, for the warning.

    **Raises:** ValueError if `per_step` and `reason` are both given or both missing.

    **Example:**

    ```python
    >>> jk.exports.Eta(per_step=jk.exports.Text("{parameters}")).parameter
    'eta'
    ```

    Source: Song, Meng and Ermon, "Denoising diffusion implicit models" (2021), equation (16),
    https://arxiv.org/abs/2010.02502.
    """

    parameter: ClassVar[str] = "eta"
    variable: ClassVar[str] = "eta"
    constant: Text | None = None
    per_step: Text | None = None
    reason: str = ""

    def __post_init__(self):
        if (self.per_step is None) != bool(self.reason):
            raise ValueError("Eta: give either the text per_step or the reason why there is none.")

    @property
    def texts(self) -> tuple[Text, ...]:
        """The texts that set eta."""
        return tuple(text for text in (self.constant, self.per_step) if text is not None)

    def text(self, plan: Plan) -> Text | None:
        return _text(plan, self.constant, self.per_step)

    def strength(self, schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
        return per_step(to_eta, schedule, process, levels)

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        if not plan.is_stochastic or self.text(plan) is not None:
            return ()
        return _lost(self.reason)


@dataclasses.dataclass(frozen=True)
class SDEEta(AbstractNoise):
    """Declare that a sampler integrates the reverse SDE whose `eta` is the squared stochasticity.

    **Arguments:**

    - `constant`: the text that sets one eta for all steps.

    **Example:**

    ```python
    >>> jk.exports.SDEEta(jk.exports.Text("eta={constant}")).parameter
    'eta'
    ```

    Source: k-diffusion, `sample_dpmpp_2m_sde`, https://github.com/crowsonkb/k-diffusion.
    """

    parameter: ClassVar[str] = "eta"
    variable: ClassVar[str] = "eta"
    constant: Text

    @property
    def texts(self) -> tuple[Text, ...]:
        """The text that sets eta."""
        return (self.constant,)

    def text(self, plan: Plan) -> Text | None:
        return None if plan.constant is None else _text(plan, self.constant, None)

    def strength(self, schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
        return per_step(_squared, schedule, process, levels)

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        if not plan.is_stochastic or self.text(plan) is not None:
            return ()
        return _lost(f"{plan.name} takes one eta for all steps of this sampler")


@dataclasses.dataclass(frozen=True)
class FlowEta(AbstractNoise):
    """Declare that a scheduler for flow models splits a step by its own `eta`.

        l_down = l' (1 - eta (1 - l'/l)), then renoised to l'

    is the step from level l to l'.

    The part q of the old noise that the schedule keeps is met by

        eta = (1 - l') (1 - q) / ((1 - l' + q l') (1 - l'/l))

    **Arguments:**

    - `constant`, `per_step`: the texts that set it.

    **Example:**

    ```python
    >>> text = jk.exports.Text("{parameters}")
    >>> jk.exports.FlowEta(constant=text, per_step=text).parameter
    'eta'
    ```
    """

    parameter: ClassVar[str] = "eta"
    variable: ClassVar[str] = "eta"
    constant: Text
    per_step: Text

    @property
    def texts(self) -> tuple[Text, ...]:
        """The texts that set eta."""
        return (self.constant, self.per_step)

    def text(self, plan: Plan) -> Text | None:
        return _text(plan, self.constant, self.per_step)

    def strength(self, schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
        kept = 1.0 / (1.0 + per_step(to_churn, schedule, process, levels))
        new = levels[1:]
        ratio = new / levels[:-1]
        return (1.0 - new) * (1.0 - kept) / ((1.0 - new + kept * new) * (1.0 - ratio))

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        # every stochasticity can be set
        return ()


@dataclasses.dataclass(frozen=True)
class Churn(AbstractNoise):
    """Declare that a scheduler raises the level by a factor 1 + gamma before a step, as EDM does.

    **Arguments:**

    - `per_step`: the text that sets gamma in every step.
    - `as_given`: whether the schedule's sampler does so too, so that there is nothing to warn of.

    **Example:**

    ```python
    >>> jk.exports.Churn(per_step=jk.exports.Text("{parameters}")).parameter
    'gamma'
    ```

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models"
    (2022), algorithm 2, https://arxiv.org/abs/2206.00364.
    """

    parameter: ClassVar[str] = "gamma"
    variable: ClassVar[str] = "gammas"
    per_step: Text
    as_given: bool = False

    @property
    def texts(self) -> tuple[Text, ...]:
        """The text that sets gamma."""
        return (self.per_step,)

    def text(self, plan: Plan) -> Text | None:
        return _text(plan, None, self.per_step)

    def strength(self, schedule: Schedule, process: AbstractProcess, levels: Levels) -> np.ndarray:
        return per_step(to_churn, schedule, process, levels)

    def warnings(self, plan: Plan) -> tuple[str, ...]:
        if self.as_given or not plan.is_stochastic:
            return ()
        return ("the network is evaluated at the raised level sigma (1 + gamma), as churn does",)
