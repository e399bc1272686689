"""Fitting a mixture to the denoised points of a network, so that its derivatives are a network's.

A mixture of the data, or of the recorded end points, is where gradient steps begin. Those of a
network that generates what its data are not, or that errs at high noise, lead far from there.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._compile import quick_filter_jit
from .._types import AnyArray, constant
from ..distributions import GaussianMixture
from ..processes import AbstractProcess

# trajectories that can be divided: fewer move nothing
_LEAST = 8
# share of the trajectories that are held out
_HELD_OUT = 0.25
# of a mixture of end points: few, as what it gets wrong is corrected
_SAMPLES_PER_COMPONENT = 12
_LEARNING_RATE = 0.006
# logarithms of weights and variances move faster than means do in units of deviations
_FASTER = 3.0
_STEPS = 600
# how often the held-out trajectories are looked at
_LOOKS = 20
# trajectories and nodes of a gradient
_ROWS = 64
_NODES = 12


class RecordedPoints(NamedTuple):
    """What a mixture is fitted to: points, denoised points there, and the end points.

    `points`, `denoised`: (nodes, trajectories, d); `ends`: (trajectories, d).
    """

    process: AbstractProcess
    times: Float[np.ndarray, " nodes"]
    points: Float[np.ndarray, "nodes trajectories d"]
    denoised: Float[np.ndarray, "nodes trajectories d"]
    ends: Float[np.ndarray, "trajectories d"]


def fit_mixture(recorded: RecordedPoints, known: GaussianMixture | None) -> GaussianMixture:
    """Fit a mixture to denoised points; `DenoisedRecord.fit_mixture` has the formula.

    **Arguments:** `recorded`; `known`, a mixture that may be near.

    **Returns:** the mixture with the lowest held-out loss.

    **Raises:** ImportError without scikit-learn.
    """
    if len(recorded.ends) < _LEAST:
        return GaussianMixture.fit(recorded.ends, 1) if known is None else known
    rows = np.random.default_rng(0).permutation(len(recorded.ends))
    held_out, training = np.split(rows, [max(2, int(_HELD_OUT * len(rows)))])
    count = max(1, len(training) // _SAMPLES_PER_COMPONENT)
    starts = [GaussianMixture.fit(recorded.ends[training], count)]
    if known is not None:
        starts.insert(0, known)
    problems = [_Problem.of(recorded, start) for start in starts]
    losses = [_held_out(p, p.start(), held_out) for p in problems]
    best = int(np.argmin(losses))
    problem = problems[best]
    moved = _descend(problem, losses[best], training, held_out)
    return starts[best] if moved is None else problem.moved(starts[best], moved)


class _Parameters(NamedTuple):
    """By how much a mixture has moved, in units that are natural for Adam."""

    weights: Float[Array, " components"]
    means: Float[Array, "components axes"]
    eigenvalues: Float[Array, "components axes"]


class _Problem(eqx.Module):
    """A mixture in the coordinates of its axes, and what its denoiser should return there."""

    process: AbstractProcess
    mixture: GaussianMixture
    deviations: Float[AnyArray, " axes"]
    times: Float[AnyArray, " nodes"]
    points: Float[AnyArray, "nodes trajectories axes"]
    denoised: Float[AnyArray, "nodes trajectories axes"]
    factors: Float[AnyArray, "nodes axes"]

    @classmethod
    def of(cls, recorded: RecordedPoints, mixture: GaussianMixture) -> "_Problem":
        """In the precision of the recorded points."""
        basis = _shared_basis(mixture)
        dtype = recorded.points.dtype
        project = (lambda x: x) if basis is None else (lambda x: x @ basis)
        variances = project(recorded.ends).var(0)
        sigma = np.asarray(recorded.process.sigma(recorded.times), np.float64)[:, None]
        found = cls(
            process=recorded.process,
            mixture=mixture.in_eigenbasis(),
            deviations=np.sqrt(variances),
            times=constant(recorded.times),
            points=project(recorded.points),
            denoised=project(recorded.denoised),
            factors=variances / (variances + sigma**2),
        )
        return jax.tree.map(lambda a: jax.device_put(np.asarray(a, dtype)), found)

    def start(self) -> _Parameters:
        """Where the mixture has not moved."""
        values = self.mixture.eigenvalues
        return _Parameters(*map(jnp.zeros_like, (self.mixture.weights, values, values)))

    def at(self, z: _Parameters) -> GaussianMixture:
        """The mixture that has moved by z, in the same coordinates."""
        weights = jax.nn.softmax(jnp.log(jnp.asarray(self.mixture.weights)) + _FASTER * z.weights)
        means = self.mixture.means + self.deviations * z.means
        eigenvalues = self.mixture.eigenvalues * jnp.exp(_FASTER * z.eigenvalues)
        return _replaced(self.mixture, weights, means, eigenvalues)

    def moved(self, mixture: GaussianMixture, z: _Parameters) -> GaussianMixture:
        """The mixture that has moved by z, in the coordinates of the data and in float64."""
        found = self.at(z)
        weights = np.asarray(found.weights, np.float64)
        shift = np.asarray(self.deviations * z.means, np.float64)
        basis = _shared_basis(mixture)
        if basis is not None:
            shift = shift @ basis.T
        parts = (weights / weights.sum(), np.asarray(mixture.means) + shift, found.eigenvalues)
        return _replaced(mixture, *map(constant, parts))

    def loss(
        self, z: _Parameters, rows: Int[Array, " rows"], nodes: Int[Array, " some"]
    ) -> Float[Array, ""]:
        """The weighted squares of what the mixture gets wrong, less its mean at a node.

        On average over these nodes and rows; the mean is corrected exactly, wherever x is.
        """
        mixture = self.at(z)

        def at_node(node: Int[Array, ""]) -> Float[Array, ""]:
            found = mixture.predict(self.process, self.points[node, rows], self.times[node]).x0
            residual = self.denoised[node, rows] - found
            return jnp.sum(self.factors[node] * jnp.var(residual, 0))

        return jnp.mean(jax.vmap(at_node)(nodes))


def _shared_basis(mixture: GaussianMixture) -> Float[np.ndarray, "d axes"] | None:
    """The axes in whose coordinates `in_eigenbasis` is; None for those of the data."""
    return None if mixture.in_eigenbasis() is mixture else np.asarray(mixture.bases)


def _replaced(
    mixture: GaussianMixture, weights: AnyArray, means: AnyArray, eigenvalues: AnyArray
) -> GaussianMixture:
    """The mixture with other parameters and the same axes."""
    parts = (weights, means, eigenvalues)
    return eqx.tree_at(lambda m: (m.weights, m.means, m.eigenvalues), mixture, parts)


def _descend(
    problem: _Problem, loss: float, training: np.ndarray, held_out: np.ndarray
) -> _Parameters | None:
    """Where the held-out loss is lowest, None for where it began."""
    best = None
    z = problem.start()
    state = _optimizer().init(z)
    keys = jax.random.split(jax.random.key(0), (_LOOKS, _STEPS // _LOOKS))
    for some in keys:
        z, state = _advance(problem, z, state, jnp.asarray(training), some)
        found = _held_out(problem, z, held_out)
        if found < loss:
            loss = found
            best = z
    return best


def _optimizer() -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS))


def _held_out(problem: _Problem, z: _Parameters, rows: np.ndarray) -> float:
    return float(_loss(problem, z, jnp.asarray(rows)))


@quick_filter_jit
def _loss(problem: _Problem, z: _Parameters, rows: Int[Array, " rows"]) -> Float[Array, ""]:
    return problem.loss(z, rows, jnp.arange(problem.times.size))


@quick_filter_jit
def _advance(
    problem: _Problem,
    z: _Parameters,
    state: optax.OptState,
    training: Int[Array, " rows"],
    keys: Array,
) -> tuple[_Parameters, optax.OptState]:
    """A gradient step for each key, on some of the trajectories and nodes."""
    optimizer = _optimizer()
    rows = min(_ROWS, training.size)
    nodes = min(_NODES, problem.times.size)

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        z, state = carry
        key_rows, key_nodes = jax.random.split(key)
        some = jax.random.choice(key_rows, training, (rows,), replace=False)
        which = jax.random.choice(key_nodes, problem.times.size, (nodes,), replace=False)
        gradient = jax.grad(problem.loss)(z, some, which)
        # optax mixes types and relies on their promotion, which the caller may have turned off
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(z, updates), state), None

    return jax.lax.scan(step, (z, state), keys)[0]
