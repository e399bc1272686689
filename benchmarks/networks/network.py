"""A residual network of a noisy vector and a time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .data import PROCESS, Problem

# sines and cosines of log sigma
_FREQUENCIES = 8


def level_features(t: Float[Array, ""]) -> Float[Array, " features"]:
    """Sines and cosines of log sigma, which runs from -4.6 to 5."""
    angle = jnp.log(PROCESS.sigma(t)) * 0.3 * jnp.arange(1, _FREQUENCIES + 1)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)])


class Block(eqx.Module):
    """A residual block that knows the noise level."""

    norm: eqx.nn.LayerNorm
    inside: eqx.nn.Linear
    level: eqx.nn.Linear
    outside: eqx.nn.Linear

    def __init__(self, width: int, features: int, key: Array):
        keys = jax.random.split(key, 3)
        self.norm = eqx.nn.LayerNorm(width)
        self.inside = eqx.nn.Linear(width, 2 * width, key=keys[0])
        self.level = eqx.nn.Linear(features, 2 * width, key=keys[1])
        self.outside = eqx.nn.Linear(2 * width, width, key=keys[2])

    def __call__(self, h: Array, features: Array) -> Array:
        return h + self.outside(jax.nn.silu(self.inside(self.norm(h)) + self.level(features)))


class Network(eqx.Module):
    """A network of x (batch, d) and a scalar time that predicts the denoised point or the noise."""

    first: eqx.nn.Linear
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear
    mean: Float[Array, " d"]
    scale: Float[Array, ""]
    prediction_type: str = eqx.field(static=True)

    def __init__(self, problem: Problem, data: np.ndarray, key: Array):
        dim = data.shape[1]
        keys = jax.random.split(key, problem.blocks + 2)
        self.first = eqx.nn.Linear(dim, problem.width, key=keys[0])
        self.blocks = [Block(problem.width, 2 * _FREQUENCIES, k) for k in keys[2:]]
        self.norm = eqx.nn.LayerNorm(problem.width)
        last = eqx.nn.Linear(problem.width, dim, key=keys[1])
        self.last = eqx.tree_at(lambda m: m.weight, last, 0.0 * last.weight)
        self.mean = jnp.asarray(data.mean(0))
        self.scale = jnp.asarray(data.std(0).mean())
        self.prediction_type = problem.prediction_type

    def body(self, x: Float[Array, " d"], t: Float[Array, ""]) -> Float[Array, " d"]:
        """The network without its preconditioning."""
        features = level_features(t)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, features)
        return self.last(self.norm(h))

    def __call__(self, x: Float[Array, "batch d"], t: Float[Array, ""]) -> Float[Array, "batch d"]:
        """The prediction; mean and scale of the data are constants."""
        mean, scale = jax.lax.stop_gradient((self.mean, self.scale))
        a = PROCESS.signal(t)
        s = PROCESS.noise(t)
        level = jnp.sqrt((a * scale) ** 2 + s**2)
        value = jax.vmap(self.body, in_axes=(0, None))((x - a * mean) / level, t)
        if self.prediction_type == "epsilon":
            return value
        # Karras et al. (2022), table 1, in this process's variables
        return mean + a * scale**2 / level**2 * (x - a * mean) + s * scale / level * value
