"""Quantities of a one-dimensional density that the bound and the limit of strong noise need."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import in_float64, is_traced
from .._types import Numbers
from ._cells import check_points


def density_information(
    log_density: Callable[[Array, Array], Array],
    error: Callable[[Array, Array], Array],
    points: Numbers,
) -> Callable[[Array], Array]:
    """Build I(theta) of a one-dimensional distribution, for `diffusion_bound`.

        I(theta) = E_p [(E' + E (log p)')^2]

    by the trapezoidal rule, which on equidistant points converges faster than any power.

    **Arguments:**

    - `log_density`: (x, theta) -> log p_theta(x) up to a constant, for numbers x and theta.
    - `error`: (x, theta) -> E, for numbers x and theta.
    - `points`: (n,), increasing, beyond which p_theta is negligible.

    **Returns:** a function of theta of any shape, in 1 / variance^2.

    **Raises:** ValueError for points that do not increase.

    **Example:**

    ```python
    >>> normal = lambda x, theta: -0.5 * x**2
    >>> setting = (normal, jax.grad(normal), np.linspace(-9.0, 9.0, 99))
    >>> print(f"{float(jk.reverse_sde.density_information(*setting)(jnp.ones(1))[0]):.4f}")
    2.0000
    ```
    """
    x = jnp.asarray(points) if is_traced(points) else check_points(points)

    def information(theta: Array) -> Array:
        def integrand(x: Array, theta: Array) -> tuple[Array, Array]:
            value, slope = jax.value_and_grad(log_density)(x, theta)
            e, divergence = jax.value_and_grad(error)(x, theta)
            return value, divergence + e * slope

        def one(theta: Array) -> Array:
            logs, u = jax.vmap(integrand, (0, None))(jnp.asarray(x), theta)
            p = jnp.exp(logs - jnp.max(logs))
            return jnp.trapezoid(p * u**2, x) / jnp.trapezoid(p, x)

        # in batches: all times at once would need much memory
        return jax.lax.map(one, theta.reshape(-1), batch_size=64).reshape(theta.shape)

    return information


@in_float64
def density_tail_constant(
    log_density: Callable[[Array], Array], potential: Callable[[Array], Array], points: Numbers
) -> Float[Array, ""]:
    """Compute the limit of L(h) for h -> infinity, for a one-dimensional density.

        T = Var_{p_0}(phi) / 2,     E = phi' at the data end

    because a large h samples the density p_0 e^{eps phi}.

    **Arguments:**

    - `log_density`: x -> log p_0(x) up to a constant, for numbers x.
    - `potential`: x -> phi(x), for numbers x.
    - `points`: (n,), increasing, beyond which p_0 is negligible (trapezoidal rule).

    **Returns:** T in nats per eps^2.

    **Raises:** ValueError for points that do not increase.

    **Example:**

    ```python
    >>> normal = lambda x: -0.5 * x**2
    >>> limit = jk.reverse_sde.density_tail_constant(normal, normal, np.linspace(-9, 9, 99))
    >>> print(f"{float(limit):.4f}")  # d / 4 for E = grad log p
    0.2500
    ```
    """
    x = jnp.asarray(points if is_traced(points) else check_points(points))
    logs = jax.vmap(log_density)(x)
    values = jax.vmap(potential)(x)
    p = jnp.exp(logs - jnp.max(logs))
    p = p / jnp.trapezoid(p, x)
    mean = jnp.trapezoid(p * values, x)
    return 0.5 * jnp.trapezoid(p * (values - mean) ** 2, x)
