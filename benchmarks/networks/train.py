"""Training the networks, which are kept in .cache."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.progress import track

import jaxkernels as jk

from ..environment import CACHE
from .data import PROCESS, T_MIN, Problem
from .network import Network

_LEARNING_RATE = 1e-3
# of the running average of the weights
_AVERAGING_RATE = 0.002
# steps of one compiled call
_CHUNK = 200


def train(problem: Problem, data: np.ndarray) -> Network:
    """Adam with cosine decay; the result is the running average of the weights.

    Interrupted training goes on from the last checkpoint, with the same result.
    """
    fresh = Network(problem, data, jax.random.key(0))
    objective = minibatch(loss, jnp.asarray(data, jnp.float32), problem.batch)
    return fit(fresh, objective, problem.training_steps, _path(problem))


Model = TypeVar("Model")
"""A tree of networks."""


def fit(fresh: Model, objective: Callable[[Model, Array], Array], steps: int, path: Path) -> Model:
    """Minimise a function of (networks, key) by Adam; kept at `path`.

    Of a sum of losses of several networks it trains each as if it were alone.
    """
    if path.exists():
        return eqx.tree_deserialise_leaves(path, fresh)
    checkpoint = path.with_suffix(".part")
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))
    advance = _advance(optimizer, objective)
    state = (fresh, fresh, optimizer.init(eqx.filter(fresh, eqx.is_array)))
    keys = jax.random.split(jax.random.key(1), steps // _CHUNK)
    CACHE.mkdir(exist_ok=True)
    done = 0
    if checkpoint.exists():
        done, state = eqx.tree_deserialise_leaves(checkpoint, (done, state))
    for i in track(range(done, len(keys)), f"training {path.stem}"):
        state = jax.block_until_ready(advance(state, keys[i]))
        eqx.tree_serialise_leaves(checkpoint.with_suffix(".new"), (i + 1, state))
        checkpoint.with_suffix(".new").replace(checkpoint)
    _, average, _ = state
    eqx.tree_serialise_leaves(path, average)
    checkpoint.unlink()
    return average


def _path(problem: Problem) -> Path:
    """Where a network is kept: named after everything that its training depends on."""
    fields = [field.name for field in dataclasses.fields(problem)]
    used = [name for name in fields if name not in ("load", "selection_noise")]
    return CACHE / f"network_{'_'.join(str(getattr(problem, name)) for name in used)}.eqx"


def minibatch(
    loss: Callable[..., Array], data: Array | tuple[Array, ...], batch: int
) -> Callable[[Any, Array], Array]:
    """A loss of (network, rows of the data, key), as a function of (network, key)."""
    arrays = data if isinstance(data, tuple) else (data,)

    def objective(network: Any, key: Array) -> Array:
        key_data, key_loss = jax.random.split(key)
        rows = jax.random.randint(key_data, (batch,), 0, len(arrays[0]))
        return loss(network, *(array[rows] for array in arrays), key_loss)

    return objective


_State = tuple[Any, Any, optax.OptState]
"""Network, running average and the optimizer's state."""


def _advance(
    optimizer: optax.GradientTransformation, objective: Callable[[Any, Array], Array]
) -> Callable[[_State, Array], _State]:
    """`_CHUNK` steps of training, compiled."""

    def step(state: _State, key: Array) -> tuple[_State, None]:
        network, average, moments = state
        gradient = eqx.filter_grad(objective)(network, key)
        updates, moments = optimizer.update(gradient, moments)
        network = eqx.apply_updates(network, updates)
        average = jax.tree.map(lambda m, p: m + _AVERAGING_RATE * (p - m), average, network)
        return (network, average, moments), None

    @jax.jit
    def advance(state: _State, key: Array) -> _State:
        return jax.lax.scan(step, state, jax.random.split(key, _CHUNK))[0]

    return advance


def loss(network: Network, x0: Float[Array, "batch d"], key: Array) -> Float[Array, ""]:
    """Mean squared error at log-uniform noise levels, in units that make it of order 1 at each."""
    # a constant: a larger scale would lower the loss
    scale = jax.lax.stop_gradient(network.scale)
    return _loss(network, network.prediction_type, scale, x0, key)


def affine_loss(
    network: Network, target: jk.Gaussian, x0: Float[Array, "batch d"], key: Array
) -> Float[Array, ""]:
    """`loss` of the best affine denoiser: that of a network that learned the covariance only."""
    denoiser = target.denoiser(PROCESS)

    def affine(x: Array, t: Array) -> Array:
        split = denoiser(x, t)
        return split.eps if network.prediction_type == "epsilon" else split.x0

    return _loss(affine, network.prediction_type, network.scale, x0, key)


def _loss(
    fn: Callable[[Array, Array], Array],
    prediction_type: str,
    scale: Float[Array, ""],
    x0: Float[Array, "batch d"],
    key: Array,
) -> Float[Array, ""]:
    """`loss` of any function of the prediction type."""
    times, eps = noising(x0, key)

    def one(x0: Array, eps: Array, t: Array) -> Array:
        a = PROCESS.signal(t)
        s = PROCESS.noise(t)
        value = fn((a * x0 + s * eps)[None], t)[0]
        if prediction_type == "epsilon":
            return jnp.mean((value - eps) ** 2)
        return jnp.mean((value - x0) ** 2) * ((a * scale) ** 2 + s**2) / (s * scale) ** 2

    return jnp.mean(jax.vmap(one)(x0, eps, times))


def noising(
    x0: Float[Array, "batch d"], key: Array, t_min: float = T_MIN, t_max: float | None = None
) -> tuple[Float[Array, " batch"], Float[Array, "batch d"]]:
    """Times at log-uniform noise levels, stratified, one for each sample; and noise."""
    key_t, key_x = jax.random.split(key)
    last = float(np.asarray(PROCESS.t_max)) if t_max is None else t_max
    ends = jnp.log(PROCESS.sigma(jnp.asarray([t_min, last])))
    u = (jnp.arange(x0.shape[0]) + jax.random.uniform(key_t, (x0.shape[0],))) / x0.shape[0]
    times = PROCESS.time_at_sigma(jnp.exp(ends[0] + u * (ends[1] - ends[0])))
    return times, jax.random.normal(key_x, x0.shape)
