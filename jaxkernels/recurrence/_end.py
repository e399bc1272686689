"""The end of a run as a function of what its steps do, and its derivatives by one pass each way.

With z = (x, history) and maps z <- F_k z + b_k + N(0, Q_k), the sensitivity c_k of x at the end to
z before step k follows backward,

    c_K = (1, 0),    c_k = F_k^T c_{k+1}                                                         (1)

and everything at the end is a sum over steps of what one step and c_{k+1} give:

    response to a shift of the score   c_{k+1}^T R_k
    mean                               c_0^T m_0 + sum_k c_{k+1}^T b_k                           (2)
    variance                           c_0^T S_0 c_0 + sum_k c_{k+1}^T Q_k c_{k+1}

Let F_k, b_k, Q_k, R_k depend on the few variables of step k. The derivatives dc of (1) in all
variables follow from one more pass backward, and the second derivative of a sum L of (2) with given
weights from one pass forward for mu_k = dL/dc_k, by the Lagrangian of (1): blocks of each step, dc
times how mu changes with the variables of a step, and dc times dc.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._linalg import apply, full_precision, transpose
from ._affine import AffineMaps, InitialState


class End(NamedTuple):
    """What is known of x at the end of a run, per block; derivatives of it have leading axes."""

    responses: Float[Array, "*lead steps evaluations blocks"]
    """To a shift of the score at every evaluation."""
    mean: Float[Array, "*lead blocks"]
    variance: Float[Array, "*lead blocks"]


@full_precision
def end_sensitivities(maps: AffineMaps) -> Float[Array, "points n blocks"]:
    """The derivative of x at the end in the state before every step, and at the end."""
    end = jnp.zeros_like(maps.shift[:, 0]).at[0].set(1.0)

    def step(after: Array, factor: Array) -> tuple[Array, Array]:
        return apply(transpose(factor), after), after

    first, after = jax.lax.scan(step, end, _steps_first(maps.factor), reverse=True)
    return jnp.concatenate([first[None], after])


@full_precision
def end_responses(maps: AffineMaps) -> Float[Array, "evaluations blocks"]:
    """The derivative of x at the end in a shift of the score at every evaluation, in their order.

    The maps have `responses`.
    """
    found = _responses(maps, end_sensitivities(maps)[1:])
    return found.reshape(-1, found.shape[-1])


@full_precision
def end_of(maps: AffineMaps, initial: InitialState) -> End:
    """The end of a run whose maps have `responses`."""
    return _end_of(maps, initial, end_sensitivities(maps))


class EndDerivatives(eqx.Module):
    """The end of a run, and its two derivatives in the variables of its steps.

    - `maps`: with `responses`.
    - `slopes`, `curvatures`: two derivatives of the maps of every step in its variables, with one
      and two leading axes over these.
    - `initial`: the state before the first step, which does not vary.
    - `index`: (steps, variables of a step), which of all variables they are.
    - `sensitivities`: those of the end, and `moved` their derivative in all variables.
    - `noisy`: whether any step may inject noise.
    """

    maps: AffineMaps
    slopes: AffineMaps
    curvatures: AffineMaps
    initial: InitialState
    index: Int[np.ndarray, "steps own"]
    sensitivities: Float[Array, "points n blocks"]
    moved: Float[Array, "points variables n blocks"]
    noisy: bool = eqx.field(static=True)

    @classmethod
    @full_precision
    def of(
        cls,
        maps: tuple[AffineMaps, AffineMaps, AffineMaps],
        initial: InitialState,
        index: Int[np.ndarray, "steps own"],
        count: int,
        noisy: bool,
    ) -> "EndDerivatives":
        """Those of maps and their two derivatives, in `count` variables."""
        values, slopes, curvatures = maps
        c = end_sensitivities(values)
        own = jnp.einsum("wijkb,kib->kwjb", slopes.factor, c[1:])
        source = scatter_own(own, index, count)

        def step(after: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            factor, source = here
            return jnp.einsum("ijb,vib->vjb", factor, after) + source, after

        along = (_steps_first(values.factor), source)
        first, after = jax.lax.scan(step, jnp.zeros_like(source[0]), along, reverse=True)
        moved = jnp.concatenate([first[None], after])
        return cls(values, slopes, curvatures, initial, index, c, moved, noisy)

    @property
    def value(self) -> End:
        """The end itself."""
        return _end_of(self.maps, self.initial, self.sensitivities)

    @full_precision
    def first(self) -> End:
        """Its derivatives, with a leading axis over variables."""
        maps = self.maps
        slopes = self.slopes
        after = self.sensitivities[1:]
        start = self.moved[0]
        later = self.moved[1:]
        responses = jnp.einsum("kvib,iekb->kveb", later, maps.responses)
        responses += self._scattered(jnp.einsum("kib,wiekb->kweb", after, slopes.responses))
        mean = jnp.einsum("vib,ib->vb", start, self.initial.mean)
        mean += jnp.einsum("kvib,ikb->vb", later, maps.shift)
        mean += jnp.sum(self._scattered(jnp.einsum("kib,wikb->kwb", after, slopes.shift)), 0)
        variance = 2.0 * jnp.einsum("vib,ib->vb", start, self._initial_slope())
        variance += 2.0 * jnp.einsum("kvib,kib->vb", later, self._noise_slope())
        own = jnp.einsum("kib,wijkb,kjb->kwb", after, slopes.noise, after)
        variance += jnp.sum(self._scattered(own), 0)
        return End(jnp.moveaxis(responses, 0, 1), mean, variance)

    @full_precision
    def second(self, weights: End) -> Float[Array, "variables variables"]:
        """The second derivative of the sum of the end's entries with weights."""
        maps = self.maps
        slopes = self.slopes
        after = self.sensitivities[1:]
        start = self.moved[0]
        later = self.moved[1:]
        of_responses, of_mean, of_variance = weights
        mu = self._multipliers(weights)
        own = AffineMaps(
            factor=jnp.einsum("kib,kjb->ijkb", after, mu),
            shift=jnp.einsum("kib,b->ikb", after, of_mean),
            noise=jnp.einsum("kib,kjb,b->ijkb", after, after, of_variance),
            responses=jnp.einsum("kib,keb->iekb", after, of_responses),
        )
        curvature = curve_own(own, self.curvatures, self.index, later.shape[1])
        # how the multipliers change with the variables of a step
        change = jnp.einsum("wiekb,keb->kwib", slopes.responses, of_responses)
        change += jnp.einsum("wikb,b->kwib", slopes.shift, of_mean)
        change += 2.0 * jnp.einsum("wijkb,kjb,b->kwib", slopes.noise, after, of_variance)
        change += jnp.einsum("wijkb,kjb->kwib", slopes.factor, mu)
        mixed = jnp.einsum("kvib,kwib->kwv", later, change)
        mixed = jnp.zeros_like(curvature).at[self.index].add(mixed)
        bent = 2.0 * jnp.einsum("vib,ijb,b->vjb", start, self.initial.covariance, of_variance)
        total = curvature + mixed + mixed.T + jnp.einsum("vib,uib->vu", bent, start)
        if not self.noisy:
            return total
        bent = 2.0 * jnp.einsum("kvib,ijkb,b->kvjb", later, maps.noise, of_variance)
        return total + jnp.einsum("kvib,kuib->vu", bent, later)

    def _multipliers(self, weights: End) -> Float[Array, "steps n blocks"]:
        """mu before every step."""
        of_responses, of_mean, of_variance = weights
        more = jnp.einsum("iekb,keb->kib", self.maps.responses, of_responses)
        more += jnp.einsum("ikb,b->kib", self.maps.shift, of_mean)
        more += 2.0 * self._noise_slope() * of_variance

        def step(mu: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            factor, more = here
            return apply(factor, mu) + more, mu

        start = self.initial.mean * of_mean + 2.0 * self._initial_slope() * of_variance
        return jax.lax.scan(step, start, (_steps_first(self.maps.factor), more))[1]

    def _noise_slope(self) -> Float[Array, "steps n blocks"]:
        """Q_k c_{k+1}, half the derivative of the variance in c_{k+1}."""
        return jnp.einsum("ijkb,kjb->kib", self.maps.noise, self.sensitivities[1:])

    def _initial_slope(self) -> Float[Array, "n blocks"]:
        """S_0 c_0, the same in c_0."""
        return apply(self.initial.covariance, self.sensitivities[0])

    def _scattered(self, own: Float[Array, "steps own *r"]) -> Float[Array, "steps variables *r"]:
        return scatter_own(own, self.index, self.moved.shape[1])


def scatter_own(
    own: Float[Array, "steps own *r"], index: Int[np.ndarray, "steps own"], count: int
) -> Float[Array, "steps variables *r"]:
    """Derivatives in the variables of every step as derivatives in all variables."""
    steps = jnp.arange(own.shape[0])[:, None]
    empty = jnp.zeros((own.shape[0], count, *own.shape[2:]), own.dtype)
    return empty.at[steps, index].add(own)


def curve_own(
    weights: AffineMaps | Float[Array, "numbers steps 1"],
    curvatures: AffineMaps | Float[Array, "own own numbers steps 1"],
    index: Int[np.ndarray, "steps own"],
    count: int,
) -> Float[Array, "variables variables"]:
    """The second derivative of the sum with weights of what the steps do, in all variables."""
    pairs = list(zip(jax.tree.leaves(weights), jax.tree.leaves(curvatures), strict=True))
    total = jnp.zeros((count, count), pairs[0][0].dtype)
    for weight, curvature in pairs:
        summed = jnp.sum(weight * curvature, axis=(*range(2, curvature.ndim - 2), -1))
        total = total.at[index[:, :, None], index[:, None]].add(jnp.moveaxis(summed, -1, 0))
    return total


def _end_of(
    maps: AffineMaps, initial: InitialState, sensitivities: Float[Array, "points n blocks"]
) -> End:
    """Equations (2)."""
    first = sensitivities[0]
    after = sensitivities[1:]
    mean = jnp.einsum("ib,ib->b", first, initial.mean)
    mean += jnp.einsum("kib,ikb->b", after, maps.shift)
    variance = jnp.einsum("ib,ijb,jb->b", first, initial.covariance, first)
    variance += jnp.einsum("kib,ijkb,kjb->b", after, maps.noise, after)
    return End(_responses(maps, after), mean, variance)


def _responses(
    maps: AffineMaps, after: Float[Array, "steps n blocks"]
) -> Float[Array, "steps evaluations blocks"]:
    return jnp.einsum("kib,iekb->keb", after, maps.responses)


def _steps_first(factor: Float[Array, "n n steps blocks"]) -> Float[Array, "steps n n blocks"]:
    return jnp.moveaxis(factor, -2, 0)
