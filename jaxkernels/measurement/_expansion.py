"""The expected effect of measured score errors on a schedule, given its second-order expansion."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..distributions import Gaussian
from ..processes import AbstractProcess
from ..score_error import AffineError, Tabulated


@runtime_checkable
class Expansion(Protocol):
    """A terminal error to second order in score errors, such as an `ErrorKernel`; a pytree."""

    @property
    def target(self) -> Gaussian:
        """The Gaussian whose modes the errors are given for."""
        ...

    @property
    def process(self) -> AbstractProcess:
        """The process of the evaluations."""
        ...

    @property
    def times(self) -> Array:
        """(evaluations,) the time of every evaluation of the score."""
        ...

    @property
    def dense(self) -> bool:
        """Whether slopes are matrices."""
        ...

    def along(self, w: AffineError, /) -> tuple[Array, Array]:
        """The first derivative along w, and half the second, per mode."""
        ...


def network_effects(
    expansion: Expansion, errors: Tabulated, num_networks: int, num_repetitions: int
) -> Float[np.ndarray, " n"]:
    """Values whose mean is the expected excess error, one per network or repetition to resample.

    `errors` has num_networks * num_repetitions shapes. With fewer than 4 networks the values are
    one per repetition.
    """
    lead = (num_networks, num_repetitions)
    with jax.enable_x64(True):
        times = jnp.asarray(np.asarray(expansion.times))
        draws = errors(expansion.target, expansion.process, times)
        draws = jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), draws)
        first, quadratic = _expand(expansion, draws)
        if num_networks < 4:
            return _pseudo_values(expansion, draws, first, quadratic)
        return _effects(expansion, draws, first, quadratic)


def _effects(
    expansion: Expansion, draws: AffineError, first: np.ndarray, quadratic: np.ndarray
) -> Float[np.ndarray, " networks"]:
    """First order plus quadratic form of every network, by products of different repetitions."""
    count = first.shape[1]
    summed = jax.tree.map(lambda a: jnp.sum(a, 1, keepdims=True), draws)
    whole = _expand(expansion, summed)[1][:, 0]
    return first.mean(1) + (whole - quadratic.sum(1)) / (count * (count - 1))


def _pseudo_values(
    expansion: Expansion, draws: AffineError, first: np.ndarray, quadratic: np.ndarray
) -> Float[np.ndarray, " repetitions"]:
    """Jackknife pseudo-values over repetitions of the mean over networks."""
    count = first.shape[1]
    if count < 3:
        raise ValueError(
            "an interval for fewer than 4 networks needs at least 3 repetitions; there are "
            f"{count}."
        )

    def mean_effect(kept: np.ndarray) -> float:
        part = jax.tree.map(lambda a: a[:, kept], draws)
        return float(np.mean(_effects(expansion, part, first[:, kept], quadratic[:, kept])))

    everything = mean_effect(np.ones(count, bool))
    without = [mean_effect(np.arange(count) != k) for k in range(count)]
    return np.array([count * everything - (count - 1) * value for value in without])


def _expand(expansion: Expansion, draws: AffineError) -> tuple[np.ndarray, np.ndarray]:
    """First derivative and quadratic form of every draw, summed over modes."""
    first, quadratic = _expansions(expansion, draws)
    return np.asarray(first), np.asarray(quadratic)


@jax.jit
def _expansions(expansion: Expansion, draws: AffineError) -> tuple[Array, Array]:
    """First derivative and quadratic form of every draw, on the device."""
    lead = draws.shift.shape[:2]
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), draws)
    first, second = jax.lax.map(expansion.along, flat, batch_size=min(32, flat.shift.shape[0]))
    return first.sum(-1).reshape(lead), second.sum(-1).reshape(lead)
