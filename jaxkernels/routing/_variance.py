"""The routing variance of a Gaussian mixture, averaged over its noised marginals."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from ..distributions import GaussianMixture
from ..processes import AbstractProcess
from ._experts import Experts

# points of a quadrature in all dimensions together
_LARGEST = 2**18


def mean_routing_variance(
    mixture: GaussianMixture,
    process: AbstractProcess,
    t: Float[ArrayLike, "*times"],
    nodes: int = 40,
) -> Float[Array, "*times"]:
    """Integrate the routing variance over the noised marginal p_t of a mixture.

        V(t) = E sum_i pi_i |v_i - v|^2,     x ~ p_t

    by Gauss-Hermite quadrature in every component. A step of length h that follows an expert drawn
    from the router adds noise of variance h^2 V(t).

    This is accurate for smooth routers. Where components are far apart at small noise the router
    is a narrow step, and few nodes meet it: with means -1 and 1 and variances 0.01 of the data, 40
    nodes are off by 0.4% at t = 0.3 of `FlowMatching` and by 2% at t = 0.2; take more `nodes`.

    **Arguments:**

    - `mixture`: in few dimensions d.
    - `process`: the forward process.
    - `t`: times of any shape, with noise > 0.
    - `nodes`: number of quadrature nodes per dimension; nodes^d is at most 2^18.

    **Returns:** V(t), in units of the data squared per time squared.

    **Raises:** ValueError for too many nodes.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    >>> jk.routing.mean_routing_variance(mixture, jk.FlowMatching(), 1.0).round(4).item()
    1.0
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), Lemma 8, which bounds it.
    """
    nodes = _checks.count("nodes", nodes)
    dim = mixture.means.shape[1]
    if nodes**dim > _LARGEST:
        raise ValueError(
            f"nodes = {nodes} in {dim} dimensions are more than {_LARGEST} points; use "
            f"at most {math.floor(_LARGEST ** (1.0 / dim))}."
        )
    experts = Experts.of_mixture(mixture, process)
    place, weight = np.polynomial.hermite_e.hermegauss(nodes)
    z = np.array(list(itertools.product(place, repeat=dim)))
    mass = np.prod(list(itertools.product(weight / weight.sum(), repeat=dim)), -1)
    weights = np.asarray(mixture.weights)

    def at_time(t: Array) -> Array:
        total = jnp.zeros_like(t)
        for m in range(len(weights)):
            x = _noised(mixture.component(m), process, jnp.asarray(z, t.dtype), t)
            variance = experts.routing_variance(x, t)
            total = total + weights[m] * jnp.sum(jnp.asarray(mass, t.dtype) * variance)
        return total

    t = jnp.asarray(t, float)
    return jax.lax.map(at_time, t.reshape(-1)).reshape(t.shape)


def _noised(
    component: GaussianMixture, process: AbstractProcess, z: Float[Array, "points d"], t: Array
) -> Float[Array, "points d"]:
    """Points of the noised component at standard normal coordinates z."""
    a = process.signal(t)
    gaussian = component.gaussian()
    variance = a**2 * jnp.asarray(gaussian.eigenvalues, t.dtype) + process.noise(t) ** 2
    along = z * jnp.sqrt(variance)
    basis = gaussian.basis
    turned = along if basis is None else along @ jnp.asarray(basis, t.dtype).T
    return a * jnp.asarray(component.means, t.dtype)[0] + turned
