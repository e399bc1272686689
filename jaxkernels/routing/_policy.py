"""Routing policies: which experts a sample follows in a step, and with what coefficients."""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .. import _checks
from .._numerics import safe_divide, safe_log

State = PyTree[Array]
Selected = tuple[Int[Array, "batch evaluations"], Float[Array, "batch evaluations"]]
"""Experts of every sample, and the coefficients of their predictions. The number N, one beyond the
last expert, stands for none: it is not evaluated, and its coefficient must be 0."""


class AbstractPolicy(eqx.Module):
    """A rule that selects, for every sample and step, the experts that are evaluated.

    The prediction of a step is sum_j c_j D_(i_j) over the selected experts i_j with coefficients
    c_j. All evaluations of a step go to the experts that were selected at its start, unless the
    policy `reselects`.

    **Example:**

    ```python
    >>> class First(jk.routing.AbstractPolicy):
    ...     def select(self, weights, key, state):
    ...         batch = (len(weights), 1)
    ...         return (jnp.zeros(batch, int), jnp.ones(batch)), state
    >>> First().select(jnp.ones((2, 3)) / 3, None, ())[0][0].tolist()
    [[0], [0]]
    ```
    """

    @property
    def draws(self) -> bool:
        """Whether the policy needs a random key."""
        return False

    @property
    def reselects(self) -> bool:
        """Whether a sampler with several evaluations per step selects anew for each of them."""
        return False

    def init_state(self, weights: Float[Array, "batch experts"]) -> State:
        """Make what the policy remembers before the first step. Default: nothing.

        **Arguments:**

        - `weights`: routing weights, for their shape and precision.

        **Returns:** a tree of arrays.
        """
        del weights
        return ()

    def num_evaluations(self, num_experts: int) -> int:
        """State how many experts a sample evaluates per step. Default: one.

        **Arguments:**

        - `num_experts`: number N of experts.

        **Returns:** an integer from 1 to N.

        **Raises:** ValueError for a number of experts that the policy cannot serve.
        """
        del num_experts
        return 1

    def check_steps(self, num_steps: int) -> None:
        """Check that the policy can serve a number of steps. Default: any.

        **Arguments:**

        - `num_steps`: number K of steps.

        **Raises:** ValueError for a number of steps that the policy cannot serve.
        """
        del num_steps

    @abc.abstractmethod
    def select(
        self, weights: Float[Array, "batch experts"], key: Array, state: State
    ) -> tuple[Selected, State]:
        """Select the experts of a step.

        **Arguments:**

        - `weights`: routing weights at the start of the step, rows of sum 1.
        - `key`: a random key.
        - `state`: what the step before returned, or `init_state(weights)`.

        **Returns:** experts and coefficients (batch, evaluations), and the state.
        """


class SoftRouting(AbstractPolicy):
    """All experts, weighted by the router: the mean velocity, with N evaluations per step.

    **Example:**

    ```python
    >>> jk.routing.SoftRouting().num_evaluations(4)
    4
    ```
    """

    @property
    def reselects(self) -> bool:
        return True

    def num_evaluations(self, num_experts: int) -> int:
        return num_experts

    def select(
        self, weights: Float[Array, "batch experts"], key: Array, state: State
    ) -> tuple[Selected, State]:
        del key
        return (jnp.broadcast_to(jnp.arange(weights.shape[-1]), weights.shape), weights), state


class StochasticSwitching(AbstractPolicy):
    """One expert per sample and step, drawn from the router.

        P(I = i) = pi_i

    The drawn velocity is right on average. Its variance is what switching costs: the mean squared
    distance to the flow is of order 1/K in the number K of steps.

    **Example:**

    ```python
    >>> jk.routing.StochasticSwitching().num_evaluations(4)
    1
    ```
    """

    @property
    def draws(self) -> bool:
        return True

    def select(
        self, weights: Float[Array, "batch experts"], key: Array, state: State
    ) -> tuple[Selected, State]:
        return _one(jax.random.categorical(key, safe_log(weights)), weights), state


class ErrorFeedback(AbstractPolicy):
    """One expert per sample and step, without randomness: the one that is furthest behind.

        debt <- debt + pi,      I = argmax debt,      debt_I <- debt_I - 1

    First-order sigma-delta modulation of the routing weights. Every expert is run as often as its
    weights add up to, with a debt that stays bounded, so that the errors of neighbouring steps
    cancel: the distance to the flow is of order 1/K, as with all experts, where that of
    `StochasticSwitching` is of order K^(-1/2); `feedback_bound` proves it.

    **Example:**

    ```python
    >>> policy = jk.routing.ErrorFeedback()
    >>> weights = jnp.array([[0.75, 0.25]])
    >>> policy.select(weights, jax.random.key(0), policy.init_state(weights))[1].tolist()
    [[-0.25, 0.25]]
    ```

    Source: for signals, Inose, Yasuda and Murakami, "A Telemetering System by Code Modulation -
    Delta-Sigma Modulation" (1962).
    """

    def init_state(self, weights: Float[Array, "batch experts"]) -> State:
        return jnp.zeros_like(weights)

    def select(
        self, weights: Float[Array, "batch experts"], key: Array, state: State
    ) -> tuple[Selected, State]:
        del key
        debt = state + weights
        expert = jnp.argmax(debt, -1)
        paid = jax.nn.one_hot(expert, debt.shape[-1], dtype=debt.dtype)
        return _one(expert, weights), debt - paid


class TopK(AbstractPolicy):
    """The k experts of the largest weights; alone, or with one drawn from the rest.

        x0 = sum_{i in top} pi_i x0_i / sum_{i in top} pi_i                        alone
        x0 = sum_{i in top} pi_i x0_i + (1 - sum_{i in top} pi_i) x0_J             with the rest,
             P(J = j) = pi_j / (1 - sum_{i in top} pi_i)

    Alone, the weights are renormalized, which leaves an error that no number of steps removes; with
    one more evaluation for the rest the velocity is right on average.

    **Arguments:**

    - `k`: number of experts, >= 1.
    - `rest`: whether one more is drawn from the others.

    **Raises:** ValueError for `k` out of range, when run if there are too few experts.

    **Example:**

    ```python
    >>> jk.routing.TopK(2, rest=True).num_evaluations(4)
    3
    ```
    """

    k: int = eqx.field(static=True)
    rest: bool = eqx.field(static=True)

    def __init__(self, k: int, rest: bool = False):
        self.k = _checks.count("k", k)
        self.rest = rest

    @property
    def draws(self) -> bool:
        return self.rest

    def num_evaluations(self, num_experts: int) -> int:
        needed = self.k + self.rest
        if needed > num_experts:
            raise ValueError(
                f"{self} evaluates {needed} experts per step; there are {num_experts}."
            )
        return needed

    def select(
        self, weights: Float[Array, "batch experts"], key: Array, state: State
    ) -> tuple[Selected, State]:
        largest, top = jax.lax.top_k(weights, self.k)
        kept = jnp.sum(largest, -1, keepdims=True)
        if not self.rest:
            return (top, safe_divide(largest, kept)), state
        others = 1.0 - jnp.max(jax.nn.one_hot(top, weights.shape[-1], dtype=weights.dtype), -2)
        remaining = weights * others
        mass = jnp.sum(remaining, -1, keepdims=True)
        # where nothing remains any other expert will do: its coefficient is 0
        drawn = jax.random.categorical(key, safe_log(jnp.where(mass > 0, remaining, others)))
        experts = jnp.concatenate([top, drawn[:, None].astype(top.dtype)], -1)
        return (experts, jnp.concatenate([largest, mass], -1)), state


class EvaluationsPerStep(AbstractPolicy):
    """m_k evaluations in step k: the m_k - 1 largest weights, and one drawn from the rest.

        x0 = sum_{i in top} pi_i x0_i + (1 - sum_{i in top} pi_i) x0_J,
             P(J = j) = pi_j / (1 - sum_{i in top} pi_i),     |top| = m_k - 1

    Right on average for every m_k: 1 is `StochasticSwitching`, N all experts. `split_evaluations`
    finds the m_k that suit a budget.

    **Arguments:**

    - `evaluations`: (K,), m_k >= 1 for every step.

    **Raises:** ValueError for anything else; when run, for another number of steps or too few
    experts.

    **Example:**

    ```python
    >>> policy = jk.routing.EvaluationsPerStep([1, 1, 3])
    >>> policy.num_evaluations(4)
    3
    ```
    """

    evaluations: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, evaluations: Sequence[int] | np.ndarray):
        self.evaluations = tuple(int(m) for m in check_evaluations(evaluations))

    @property
    def draws(self) -> bool:
        return True

    def init_state(self, weights: Float[Array, "batch experts"]) -> State:
        del weights
        return jnp.zeros((), int)

    def num_evaluations(self, num_experts: int) -> int:
        most = max(self.evaluations)
        if most > num_experts:
            raise ValueError(f"evaluations: a step makes {most}; there are {num_experts} experts.")
        return most

    def check_steps(self, num_steps: int) -> None:
        if num_steps != len(self.evaluations):
            raise ValueError(f"evaluations are of {len(self.evaluations)} steps, not {num_steps}.")

    def select(
        self, weights: Float[Array, "batch experts"], key: Array, state: State
    ) -> tuple[Selected, State]:
        evaluations = jnp.asarray(self.evaluations)[state]
        order, rest = largest_and_rest(weights, evaluations)
        mass = jnp.sum(rest, -1, keepdims=True)
        # where nothing remains the last of all will do: its coefficient is 0
        logs = jnp.where(mass > 0, safe_log(rest), safe_log(weights))
        drawn = jax.random.categorical(key, logs)[:, None].astype(order.dtype)
        slot = jnp.arange(max(self.evaluations))
        order = order[:, : len(slot)]
        ordered = jnp.take_along_axis(weights, order, -1)
        last = slot == evaluations - 1
        none = slot >= evaluations
        experts = jnp.where(none, weights.shape[-1], jnp.where(last, drawn, order))
        coefficients = jnp.where(none, 0.0, jnp.where(last, mass, ordered))
        return (experts, coefficients), state + 1


def check_evaluations(evaluations: object) -> np.ndarray:
    """(K,) integers >= 1."""
    found = np.asarray(evaluations)
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iu" or found.min() < 1:
        raise ValueError(f"evaluations = {evaluations!r} must be integers >= 1, one for each step.")
    return found


def largest_and_rest(
    weights: Float[Array, "*batch experts"], evaluations: Int[ArrayLike, ""]
) -> tuple[Int[Array, "*batch experts"], Float[Array, "*batch experts"]]:
    """Experts by falling weight, and the weights without the `evaluations` - 1 largest."""
    order = jnp.argsort(-weights, -1, stable=True)
    rank = jnp.argsort(order, -1)
    return order, jnp.where(rank >= evaluations - 1, weights, 0.0)


def check_policy(policy: object) -> AbstractPolicy:
    """`policy`, or a ValueError that names what it is instead."""
    if not isinstance(policy, AbstractPolicy):
        raise ValueError(
            f"policy must be a routing policy such as StochasticSwitching(); got {policy!r}."
        )
    return policy


def _one(expert: Int[Array, " batch"], weights: Float[Array, "batch experts"]) -> Selected:
    """One expert per sample, with coefficient 1."""
    return expert[:, None], jnp.ones((len(expert), 1), weights.dtype)
