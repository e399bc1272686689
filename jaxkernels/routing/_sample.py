"""Sampling with experts, of which every sample follows those that a policy selects."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._numerics import smaller
from .._precision import is_traced, to_dtype
from ..prediction import Predict, Prediction, in_working_precision
from ..processes import AbstractProcess
from ..samplers import (
    AbstractSampler,
    check_batch_sampler,
    check_finite,
    check_noise,
    check_schedule,
    drawing_key,
    split_key,
    take_step,
)
from ..schedules import Schedule, Step
from ._dispatch import routed_prediction
from ._experts import Experts
from ._policy import AbstractPolicy, Selected, check_policy

LogRates = Callable[[Array, Array, Array], Any]
"""A function of (x, t, dx/dt) that returns d log pi / dt."""


class RoutedSamples(eqx.Module):
    """Samples, and how often every expert was evaluated for them.

    **Arguments:**

    - `points`: (batch, ...), in the shape and precision of the initial noise.
    - `evaluations`: (K, N), rows evaluated by each expert in each step, times the sampler's
      evaluations per step.
    - `router_calls`: rows that the router (or what integrates its weights) was evaluated on, batch
      x K, or as often as the sampler evaluates if the policy reselects; 0 for a single expert.

    **Example:**

    ```python
    >>> experts = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> run = (jk.routing.ErrorFeedback(), "ddim", jk.Schedule([1.0, 0.5, 0.1]), jnp.ones((4, 1)))
    >>> jk.routing.sample(experts, *run).evaluations.sum().item()
    8
    ```
    """

    points: Float[Array, "batch *shape"]
    evaluations: Int[Array, "steps experts"]
    router_calls: int = eqx.field(static=True)

    @property
    def nfe(self) -> Float[Array, ""]:
        """Evaluations of any expert per sample."""
        return jnp.sum(self.evaluations) / self.points.shape[0]

    @property
    def load(self) -> Float[Array, " experts"]:
        """Share of all evaluations that each expert made: 1/N each if the load is balanced."""
        return jnp.sum(self.evaluations, 0) / jnp.sum(self.evaluations)


def sample(
    experts: Experts,
    policy: AbstractPolicy,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    noise: Float[Array, "batch *shape"],
    *,
    key: PRNGKeyArray | Array | None = None,
    restart: bool = True,
    log_rates: LogRates | None = None,
) -> RoutedSamples:
    """Run a sampler with the experts that a policy selects for every sample and step.

    The step is the sampler's own, with the routed prediction in place of a network's. Experts are
    run one at a time, each on the rows that follow it, so that one evaluation costs one; under vmap
    all of them are run on all rows. A sampler with several evaluations per step makes all of them
    with the experts selected at its start, but for `SoftRouting`, whose weights are those of every
    evaluation.

    The history of a multistep sampler holds predictions of earlier steps. Where the expert has
    changed they are another one's, and the difference between two experts would be extrapolated as
    if it were a derivative in time. So a sample's history restarts when the experts that it follows
    change: its step is the sampler's first, and its order grows with the steps that follow.

    With `log_rates` the router is asked at the first time only, and its weights are integrated from
    there by their own time derivative, in logarithms so that they stay weights:

        log pi <- log pi + (u - t) d log pi / dt,     normalized,

    in every step from t to u. All evaluations of a step then have the weights of its start. The
    error of the weights is of order 1/K.

    **Arguments:**

    - `experts`: the experts with their router.
    - `policy`: such as `StochasticSwitching()` or `ErrorFeedback()`.
    - `sampler`: a sampler or its name, that runs all samples at the same times.
    - `schedule`: times of the experts' process, and stochasticities.
    - `noise`: initial noise (batch, ...).
    - `key`: a random key; required if the schedule is stochastic, or the policy draws.
    - `restart`: False to keep the history of a multistep sampler whatever the expert.
    - `log_rates`: a function of (x, t, dx/dt) that returns d log pi / dt (batch, experts) up to a
      number per row; dx/dt is the step's own, from x to where it ends. `experts.log_weight_rates`
      is that of the router; a network that learned the derivative along the flow
      (`weight_rate_loss`) takes no dx/dt: `lambda x, t, dx_dt: network(x, t)`.
      For deterministic schedules: weights along a noisy path have no time derivative.

    **Returns:** a `RoutedSamples`.

    **Raises:** ValueError for a wrong argument, or if x becomes non-finite, naming the step.

    **Example:**

    ```python
    >>> experts = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> run = (jk.routing.ErrorFeedback(), "ddim", jk.Schedule([1.0, 0.5, 0.1]), jnp.ones((4, 1)))
    >>> jk.routing.sample(experts, *run).points.shape
    (4, 1)
    ```

    Source: of integrated weights, "Wasserstein Convergence of ODE-Based Samplers in Decentralized
    Diffusion Model via Velocity Field Decomposition" (manuscript), section 6.
    """
    if not isinstance(experts, Experts):
        raise ValueError(f"experts must be Experts(components, router); got {experts!r}.")
    policy = check_policy(policy)
    sampler = check_batch_sampler(sampler)
    schedule = check_schedule(experts.process, sampler, schedule)
    noise = check_noise(noise)
    _check_run(experts, policy, schedule, key, log_rates)
    drawing = drawing_key(sampler, schedule, key)
    key = jax.random.key(0) if key is None else key
    run = (experts, policy, sampler, schedule, (key, drawing), noise, restart, log_rates)
    points, counts, finite = _run(*run)
    check_finite(finite, noise, schedule)
    per_step = sampler.nfe_per_step if policy.reselects and log_rates is None else 1
    calls = noise.shape[0] * schedule.num_steps * per_step if experts.num_experts > 1 else 0
    return RoutedSamples(points, counts * sampler.nfe_per_step, calls)


def _check_run(
    experts: Experts,
    policy: AbstractPolicy,
    schedule: Schedule,
    key: Array | None,
    log_rates: object,
) -> None:
    """What a run needs besides arguments that are right each for itself."""
    # with a single expert there is nothing to select
    routed = experts.num_experts > 1
    if routed:
        policy.num_evaluations(experts.num_experts)
        policy.check_steps(schedule.num_steps)
    stochastic = not is_traced(schedule) and schedule.is_stochastic
    if key is None and (stochastic or (routed and policy.draws)):
        raise ValueError("key: a stochastic schedule or policy draws and needs a random key.")
    if log_rates is None:
        return
    if not callable(log_rates):
        raise ValueError(f"log_rates must be a function of (x, t, dx/dt); got {log_rates!r}.")
    if stochastic:
        raise ValueError(
            "log_rates: weights are integrated along the flow, schedule is stochastic."
        )


@eqx.filter_jit
def _run(
    experts: Experts,
    policy: AbstractPolicy,
    sampler: AbstractSampler,
    schedule: Schedule,
    keys: tuple[Array, Array | None],
    x: Array,
    restart: bool,
    log_rates: LogRates | None,
) -> tuple[Array, Int[Array, "steps experts"], Bool[Array, " steps"]]:
    """The last x, rows per step and expert, and whether x is finite after every step.

    `keys` are those of the policy and of the sampler's noise; None of a run that draws none.
    """
    given = x.dtype
    _, x = in_working_precision(experts, x)
    experts = experts.astype(given).astype(x.dtype)
    schedule = to_dtype(schedule, x.dtype)

    def step(
        state: tuple[Array, PyTree, _Routing | None], inputs: tuple[Step, Array, Array | None]
    ) -> tuple[tuple[Array, PyTree, _Routing | None], tuple[Array, Array]]:
        x, history, routing = state
        step, key, drawing = inputs
        selected, counts, routing = _select(experts, policy, x, step, key, routing)

        def predict(x: Array, t: Array) -> Prediction:
            if routing is None or not policy.reselects or log_rates is not None:
                return routed_prediction(experts, selected, x, t)
            again, _ = policy.select(experts.weights(x, t), key, routing.policy)
            return routed_prediction(experts, again, x, t)

        age = routing.age if restart and routing is not None else None
        run = (sampler, predict, experts.process, step, drawing, x, history)
        new, history = _take_step(age, *run)
        if routing is not None and log_rates is not None:
            routing = _integrate(log_rates, routing, step, x, new)
        return (new, history, routing), (counts, jnp.all(jnp.isfinite(new)))

    routing = _init_routing(experts, policy, x, schedule.times[0], log_rates is not None)
    start = (x, sampler.init_history(x), routing)
    # of the policy, and of the noise if there is any
    policy_keys = jax.random.split(keys[0], schedule.num_steps)
    noise_keys = split_key(keys[1], schedule.num_steps)
    steps = (schedule.steps(sampler.history_steps), policy_keys, noise_keys)
    (last, _, _), (counts, finite) = jax.lax.scan(step, start, steps)
    return last.astype(given), counts, finite


class _Routing(NamedTuple):
    """What is known of every sample between steps; of a single expert there is none."""

    policy: PyTree
    """The policy's state."""
    age: Int[Array, " batch"]
    """Steps since the experts of a sample changed."""
    experts: Int[Array, "batch evaluations"]
    log_weights: Float[Array, "batch experts"] | None
    """Where they are integrated."""


def _init_routing(
    experts: Experts, policy: AbstractPolicy, x: Array, t: Array, integrated: bool
) -> _Routing | None:
    """What is known before the first step."""
    if experts.num_experts == 1:
        return None
    logs = experts.log_weights(x, t)
    batch = logs.shape[0]
    none = jnp.full((batch, policy.num_evaluations(experts.num_experts)), -1)
    state = policy.init_state(jnp.exp(logs))
    return _Routing(state, jnp.zeros(batch, int), none, logs if integrated else None)


def _integrate(
    log_rates: LogRates, routing: _Routing, step: Step, x: Array, new: Array
) -> _Routing:
    """The weights at the end of a step from x to new."""
    h = step.next_time - step.time
    rates = jnp.asarray(log_rates(x, step.time, (new - x) / h))
    logs = cast(Array, routing.log_weights)
    if rates.shape != logs.shape:
        raise ValueError(f"log_rates returned shape {rates.shape}; it must return {logs.shape}.")
    # an expert without weight has none later on
    logs = logs + jnp.where(jnp.isfinite(logs), h * rates.astype(logs.dtype), 0.0)
    return routing._replace(log_weights=jax.nn.log_softmax(logs, -1))


def _select(
    experts: Experts,
    policy: AbstractPolicy,
    x: Array,
    step: Step,
    key: Array,
    routing: _Routing | None,
) -> tuple[Selected, Int[Array, " experts"], _Routing | None]:
    """Experts and coefficients of a step, rows per expert, and the state after it."""
    if routing is None:
        only = jnp.zeros((x.shape[0], 1), int)
        return (only, jnp.ones(only.shape, x.dtype)), jnp.full(1, x.shape[0]), None
    logs = routing.log_weights
    weights = experts.weights(x, step.time) if logs is None else jnp.exp(logs)
    # the sampler's own draws have the keys 1, 2, ...
    found, state = policy.select(weights, jax.random.fold_in(key, 0), routing.policy)
    indices = found[0].astype(routing.experts.dtype)
    counts = jnp.bincount(indices.reshape(-1), length=experts.num_experts)
    kept = jnp.all(indices == routing.experts, -1)
    age = jnp.where(kept, routing.age + 1, 0)
    return (indices, found[1]), counts, _Routing(state, age, indices, logs)


def _take_step(
    age: Int[Array, " batch"] | None,
    sampler: AbstractSampler,
    predict: Predict,
    process: AbstractProcess,
    step: Step,
    key: Array | None,
    x: Array,
    history: PyTree,
) -> tuple[Array, PyTree]:
    """A step that takes into account only predictions since the experts changed, `age` of them."""
    if age is None or sampler.history_steps == 0:
        return take_step(sampler, predict, process, step, key, x, history)
    # one evaluation per step: all of the steps below start from the same
    prediction = predict(x, step.time)
    found = [
        take_step(
            sampler,
            lambda x, t: prediction,
            process,
            step._replace(completed=smaller(step.completed, known)),
            key,
            x,
            history,
        )
        for known in range(sampler.history_steps + 1)
    ]
    capped = smaller(age, sampler.history_steps)
    return jax.tree.map(lambda *rows: _rows_of(capped, rows), *found)


def _rows_of(index: Int[Array, " batch"], options: tuple[Array, ...]) -> Array:
    """Row i of option number index_i."""
    stacked = jnp.stack(options)
    shape = (1, len(index), *(1,) * (stacked.ndim - 2))
    return jnp.take_along_axis(stacked, index.reshape(shape), 0)[0]
