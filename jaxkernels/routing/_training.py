"""Losses that train a router, and a network of its time derivative, on clustered data.

Experts are trained as any denoiser, each on its own cluster. A router can learn from the clusters'
labels alone, or from the posterior probabilities of the finite data set (`Experts.of_clusters`),
which are known at every noised point; so is their derivative along the noising of a data point,
whose mean given x is the derivative along the flow.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from .._types import Network
from ..processes import AbstractProcess
from ._experts import Experts


def label_loss(
    router: Network,
    process: AbstractProcess,
    x0: Float[Array, "batch *shape"],
    labels: Int[Array, " batch"],
    t: Float[ArrayLike, ""],
    eps: Float[Array, "batch *shape"],
) -> Float[Array, ""]:
    """Evaluate the cross-entropy of a router and the clusters of noised data points.

        -mean log pi_label(x, t),     x = a x_0 + s eps

    It is smallest for the posterior probabilities.

    **Arguments:**

    - `router`: a function of (x, t) that returns logits (batch, experts).
    - `process`: the forward process.
    - `x0`: data points (batch, ...).
    - `labels`: the cluster of each of them, from 0.
    - `t`: a scalar time.
    - `eps`: standard normal noise in the shape of x0.

    **Returns:** the loss, in nats.

    **Example:**

    ```python
    >>> run = (jk.VP(), jnp.ones((2, 3)), jnp.array([0, 1]), 0.5, jnp.zeros((2, 3)))
    >>> loss = jk.routing.label_loss(lambda x, t: jnp.zeros((2, 2)), *run)
    >>> bool(jnp.allclose(loss, jnp.log(2.0)))
    True
    ```

    Source: McAllister et al., "Decentralized Diffusion Models" (2025), section 3,
    https://arxiv.org/abs/2501.05450.
    """
    x, t = _noised(process, x0, t, eps)
    logs = jax.nn.log_softmax(router(x, t), -1)
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], -1))


def weight_loss(
    router: Network,
    exact: Experts,
    x0: Float[Array, "batch *shape"],
    t: Float[ArrayLike, ""],
    eps: Float[Array, "batch *shape"],
) -> Float[Array, ""]:
    """Evaluate the mean squared error of a router's weights at noised data points.

        mean sum_i (softmax(router)_i - pi_i(x, t))^2,     x = a x_0 + s eps

    **Arguments:**

    - `router`: a function of (x, t) that returns logits (batch, experts).
    - `exact`: experts whose weights are right, such as `Experts.of_clusters(clusters, process)`.
    - `x0`, `t`, `eps`: as for `label_loss`.

    **Returns:** the loss, without unit.

    **Example:**

    ```python
    >>> exact = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> run = (exact, jnp.array([[1.0]]), 0.1, jnp.zeros((1, 1)))
    >>> jk.routing.weight_loss(lambda x, t: jnp.zeros((1, 2)), *run).round(2).item()
    0.5
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), E.2.1.
    """
    x, t = _noised(exact.process, x0, t, eps)
    error = jax.nn.softmax(router(x, t), -1) - exact.weights(x, t)
    return jnp.mean(jnp.sum(error**2, -1))


def weight_rate_loss(
    log_rates: Network,
    exact: Experts,
    x0: Float[Array, "batch *shape"],
    t: Float[ArrayLike, ""],
    eps: Float[Array, "batch *shape"],
) -> Float[Array, ""]:
    """Evaluate the mean squared error of a network of the weights' time derivative.

        mean sum_i ( pi_i (r_i - sum_j pi_j r_j) - d pi_i / dt )^2 / (d log_snr / dt)^2

    with d pi / dt along the path x = a x_0 + s eps of a data point. Its mean given x is the
    derivative along the flow, so that the loss is smallest for r_i = d log pi_i / dt there, up to a
    number that all experts share: what `sample` integrates. Per unit of time the target grows as
    s^-3 at the data, per unit of log-SNR as 1/s only, and only where the weights still change;
    hence the division.

    **Arguments:**

    - `log_rates`: a function of (x, t) that returns r (batch, experts), per unit of time.
    - `exact`, `x0`, `t`, `eps`: as for `weight_loss`; t with signal and noise > 0.

    **Returns:** the loss, without unit. Its minimum is not 0: paths of different data points cross.

    **Example:**

    ```python
    >>> exact = jk.routing.Experts.of_clusters([[[-1.0]], [[1.0]]], jk.VP())
    >>> run = (exact, jnp.array([[1.0]]), 0.5, jnp.ones((1, 1)))
    >>> bool(jk.routing.weight_rate_loss(lambda x, t: jnp.zeros((1, 2)), *run) > 0)
    True
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), eq. (328), of which this is the reading that has a
    minimum.
    """
    process = exact.process
    x, t = _noised(process, x0, t, eps)
    velocity = process.signal_rate(t) * x0 + process.noise_rate(t) * eps
    target = exact.weight_rates(x, t, velocity)
    weights = exact.weights(x, t)
    rates = log_rates(x, t)
    found = weights * (rates - jnp.sum(weights * rates, -1, keepdims=True))
    scale = jax.grad(process.log_snr)(t)
    return jnp.mean(jnp.sum(((found - target) / scale) ** 2, -1))


def _noised(
    process: AbstractProcess, x0: Array, t: Float[ArrayLike, ""], eps: Array
) -> tuple[Array, Array]:
    """Noised data points, and the time in their precision."""
    t = jnp.asarray(t, x0.dtype)
    return process.signal(t) * x0 + process.noise(t) * eps, t
