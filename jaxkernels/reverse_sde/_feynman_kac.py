"""The leading order of KL in any dimension, from paths of the forward process that h belongs to.

The linear response u of the samples' density obeys, towards the data (see `_bound`),

    du/dt = A u - (1 + alpha^2)/2 f,     f = div E + E . grad log p,
    A = alpha^2/2 (Laplace + grad log p . grad) - (x + grad log p)/2 . grad.

A generates, in forward time, the process that has the marginals p_theta as well,

    dZ = [(alpha^2 - 1) grad log p - Z]/2 dtheta + alpha dB,     Z_0 ~ p_0,                     (1)

so that by the Feynman-Kac formula

    u(x) = -(1 + alpha^2)/2 E[int_0^T f(Z_theta, theta) dtheta | Z_0 = x],     L = E u(Z_0)^2 / 2.

The square of a conditional mean is the mean of the product of two paths from the same point, which
makes an estimate without bias, but for the time steps. No grid is needed, and no product structure.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from .. import _checks
from .._precision import in_float64
from .._types import Numbers
from ..distributions import GaussianMixture
from ..metrics import Estimate
from ._perturbation import PROCESS, ErrorFunction, least_variance, resolve_error


@in_float64
def leading_order_samples(
    target: GaussianMixture,
    error: str | ErrorFunction,
    stochasticity_squared: Numbers,
    final_time: float,
    key: Key[Array, ""],
    *,
    num_samples: int = 10_000,
    time_steps: int = 200,
) -> Estimate:
    """Estimate L(h), the leading order of KL, for a mixture in any dimension, from pairs of paths.

        KL(p_0 || q) = L eps^2 + O(eps^3),     L = (1 + alpha^2)^2 / 8 E [I_1 I_2]
        I = int_0^T (div E + E . grad log p)(Z_theta, theta) dtheta

    with two paths Z from the same point of p_0 that share nothing else. Steps are geometric in
    theta + (smallest variance), by a stochastic Heun method of weak order 2. For one-dimensional
    mixtures `leading_order_1d` is exact, and for a product of them with an error per coordinate L
    is a sum; for two-dimensional ones that are no product `leading_order_2d` has it on a grid.

    **Arguments:**

    - `target`: a mixture with variances > 0.
    - `error`: E(x, theta, score), for one point x of shape (d,), with the score of p_theta there:
      "score", "constant" (1 in every coordinate) or a function, differentiable in x.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 >= 0, one number for all times.
    - `final_time`: T > 0, rescaled time at the start of sampling.
    - `key`: of the points and the paths.
    - `num_samples`: pairs of paths, >= 2.
    - `time_steps`: >= 1, well above alpha^2 log(1 + T / smallest variance).

    **Returns:** an `Estimate`, whose standard error does not know of the time steps.

    **Raises:** ValueError for a target that has a variance of 0, alpha^2 < 0, an unknown error, or
    one that returns another shape than x.

    **Example:**

    ```python
    >>> setting = (jk.GaussianMixture([1.0], [[0.0, 0.0]], [0.5]), "score", 0.0, 1.0)
    >>> options = {"key": jax.random.key(0), "num_samples": 999, "time_steps": 9}
    >>> jk.reverse_sde.leading_order_samples(*setting, **options).value > 0.0
    True
    ```

    Source: derived here, from (10) of Cao, Chen, Luo, Zhou (2023).
    """
    target = _checks.instance("target", target, GaussianMixture)
    least = least_variance(target)
    perturbation = resolve_error(error)
    alpha2 = _checks.scalar("stochasticity_squared", stochasticity_squared, at_least=0.0)
    final_time = float(_checks.scalar("final_time", final_time, above=0.0))
    steps = _checks.count("time_steps", time_steps)
    times = least * np.expm1(np.linspace(0.0, np.log1p(final_time / least), steps + 1))
    key = _checks.random_key("key", key)
    count = _checks.count("num_samples", num_samples, at_least=2)
    products = _multiply_paths(
        target, perturbation, jnp.asarray(alpha2), jnp.asarray(times), key, count
    )
    return Estimate(float(jnp.mean(products)), float(jnp.std(products, ddof=1)) / np.sqrt(count))


def source_of(
    target: GaussianMixture, error: ErrorFunction
) -> Callable[[Array, Array, Array], Array]:
    """f = div E + E . grad log p at one point, a function of (x, theta, score)."""

    def source(x: Array, theta: Array, score: Array) -> Array:
        def field(x: Array) -> Array:
            return error(x, theta, target.score(PROCESS, x, theta))

        value = field(x)
        if value.shape != x.shape:
            raise ValueError(f"error returned shape {value.shape} for x of shape {x.shape}.")
        return jnp.trace(jax.jacfwd(field)(x)) + value @ score

    return source


@eqx.filter_jit
def _multiply_paths(
    target: GaussianMixture,
    error: ErrorFunction,
    alpha2: Array,
    times: Array,
    key: Key[Array, ""],
    count: int,
) -> Float[Array, " samples"]:
    """u(Z_0)^2 / 2 of every point, each as a product of two paths."""
    key_data, key_paths = jax.random.split(key)
    start = target.sample(key_data, count)
    start = jnp.concatenate([start, start])

    source = source_of(target, error)

    def evaluate(x: Array, theta: Array) -> tuple[Array, Array]:
        """Drift of (1), and f."""
        score = target.score(PROCESS, x, theta)
        f = jax.vmap(source, (0, None, 0))(x, theta, score)
        return 0.5 * ((alpha2 - 1.0) * score - x), f

    def step(
        state: tuple[Array, Array, Array, Array], here: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array, Array, Array], None]:
        x, drift, f, total = state
        theta, size, key = here
        noise = jnp.sqrt(alpha2 * size) * jax.random.normal(key, x.shape, x.dtype)
        guess = x + size * drift + noise
        score = target.score(PROCESS, guess, theta)
        x = x + 0.5 * size * (drift + 0.5 * ((alpha2 - 1.0) * score - guess)) + noise
        drift, ahead = evaluate(x, theta)
        return (x, drift, ahead, total + 0.5 * size * (f + ahead)), None

    keys = jax.random.split(key_paths, times.size - 1)
    first = (start, *evaluate(start, times[0]), jnp.zeros(2 * count))
    total = jax.lax.scan(step, first, (times[1:], jnp.diff(times), keys))[0][3]
    return 0.125 * (1.0 + alpha2) ** 2 * total[:count] * total[count:]
