"""Losses of score training over all times: what is minimised, and what it says of the samples.

With X_t = a X_0 + s Z the score of X_t given X_0 is -Z / s, and S the learned score,

    E |S(X_t, t) + Z / s|^2 = E |S - grad log p_t|^2 + E |grad log p_t + Z / s|^2,               (1)

the last term of which no network changes. Losses of S are therefore errors of the score up to a
constant. What such an error costs depends on its time and on h, see `_weights`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from .. import _checks
from .._numerics import as_inexact
from .._precision import is_traced
from .._types import AnyArray, Numbers
from ..prediction import AbstractDenoiser
from ..processes import AbstractProcess
from ._weights import WEIGHTINGS, training_weight


def score_matching_loss(
    denoiser: AbstractDenoiser,
    data: Float[ArrayLike, "n ..."],
    key: Key[Array, ""],
    *,
    weight: str | Callable[[Array], Array] = "default",
    t_min: float | None = None,
    coordinate: str = "time",
) -> Float[Array, ""]:
    """Estimate the denoising score-matching loss of a network on a batch of data.

        int w(t) E |S(X_t, t) - grad log p_{t|0}(X_t | X_0)|^2 dt,     t_min < t < t_max

    S = -eps / s is the denoiser's score, whatever its prediction type. Every row of the batch gets
    one time and one noise; times are stratified, one in each of n parts that are equal in a
    coordinate, and the estimate is unbiased in both coordinates. It is differentiable in the
    network, as by `eqx.filter_grad(score_matching_loss)`.

    **Arguments:**

    - `denoiser`: the network, with its process.
    - `data`: x0, (n, ...) in the shape of the network's points.
    - `key`: of times and noise.
    - `weight`: w, "default", "noise" or "data" of `training_weight`, or a function of times (n,)
      of the process. With `kl_weight` the loss bounds KL, up to a constant.
    - `t_min`: the least time > 0; default that of the process.
    - `coordinate`: of the stratification, "time" or "log_snr". The latter has many more times near
      the data, and less variance for a weight that counts them; the loss is the same.

    **Returns:** the loss, a scalar.

    **Raises:** ValueError for an unknown weight or coordinate, or a `t_min` outside (0, t_max).

    **Example:**

    ```python
    >>> denoiser = jk.Denoiser(lambda x, t: -x, jk.VP(), "score")  # exact for unit variance
    >>> setting = (denoiser, jnp.ones((8, 2)), jax.random.key(0))
    >>> bool(jk.reverse_sde.score_matching_loss(*setting) > 0.0)
    True
    ```

    Source: Cao, Chen, Luo, Zhou, "Exploring the optimal choice for generative processes in
    diffusion models: ordinary vs stochastic differential equations" (2023), (4); Vincent, "A
    Connection Between Score Matching and Denoising Autoencoders" (2011).
    """
    data = as_inexact(data)
    process = denoiser.process
    end = process.t_max
    start = process.default_t_min if t_min is None else t_min
    if not is_traced((start, end)):
        start = float(_checks.scalar("t_min", start, above=0.0, below=float(end)))
    if isinstance(weight, str):
        weight = partial(
            training_weight, process, weighting=_checks.one_of("weight", weight, WEIGHTINGS)
        )
    coordinate = _checks.one_of("coordinate", coordinate, ("time", "log_snr"))
    key_times, key_noise = jax.random.split(key)
    n = data.shape[0]
    share = (jnp.arange(n, dtype=data.dtype) + jax.random.uniform(key_times, (n,), data.dtype)) / n
    t, density = _place_times(process, share, (start, end), coordinate)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)

    def row(x0: Array, noise: Array, t: Array) -> Array:
        return _squared_errors(denoiser, x0[None], noise[None], t)[0]

    squares = jax.vmap(row)(data, noise, t)
    return jnp.mean(weight(t).astype(squares.dtype) / density * squares)


def _place_times(
    process: AbstractProcess,
    share: Float[Array, " n"],
    ends: tuple[Numbers, Numbers],
    coordinate: str,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Times at shares of the coordinate's range, and the density of a uniform share in time."""
    first, last = (jnp.asarray(end, share.dtype) for end in ends)
    if coordinate == "time":
        return first + (last - first) * share, jnp.full_like(share, 1.0 / (last - first))
    least = process.log_snr(last)
    if not is_traced(least) and not jnp.isfinite(least):
        raise ValueError(f"coordinate='log_snr' has no range: {process} has no signal at t_max.")
    length = process.log_snr(first) - least
    t = process.time_at_log_snr(least + length * (1.0 - share))
    return t, -jax.vmap(jax.grad(process.log_snr))(t) / length


def score_loss_profile(
    denoiser: AbstractDenoiser,
    data: Float[ArrayLike, "n ..."],
    key: Key[Array, ""],
    times: Numbers,
) -> Float[Array, " times"]:
    """Estimate the denoising score-matching loss at each of several times.

        E |S(X_t, t) - grad log p_{t|0}(X_t | X_0)|^2

    with the same noise at all times, so that profiles of several networks can be compared.

    **Arguments:**

    - `denoiser`, `data`, `key`: as in `score_matching_loss`.
    - `times`: (times,) of the process, with noise above 0.

    **Returns:** the mean over the batch at each time, (times,).

    **Example:**

    ```python
    >>> denoiser = jk.Denoiser(lambda x, t: -x, jk.VP(), "score")
    >>> setting = (denoiser, jnp.ones((8, 2)), jax.random.key(0))
    >>> jk.reverse_sde.score_loss_profile(*setting, [0.1, 0.5, 1.0]).shape
    (3,)
    ```

    Source: Cao, Chen, Luo, Zhou (2023), Appendix I.
    """
    data = as_inexact(data)
    noise = jax.random.normal(key, data.shape, data.dtype)
    t = jnp.asarray(times, data.dtype)
    return jax.lax.map(lambda t: jnp.mean(_squared_errors(denoiser, data, noise, t)), t)


def relative_score_loss(
    denoiser: AbstractDenoiser,
    reference: AbstractDenoiser,
    data: Float[ArrayLike, "n ..."],
    key: Key[Array, ""],
    times: Numbers,
) -> Float[Array, " times"]:
    """Compare the score-matching losses of two networks time by time.

        E |S(X_t, t) - grad log p_{t|0}|^2 / E |S_ref(X_t, t) - grad log p_{t|0}|^2

    on the same data and noise. The constant of (1) is in both parts: for small errors the ratio is
    nearer to 1 than that of the errors. It shows where in time a training weight has moved them.

    **Arguments:**

    - `denoiser`, `reference`: the network, and the one that was trained with the default weight.
    - `data`, `key`, `times`: as in `score_loss_profile`.

    **Returns:** the ratio at each time, (times,).

    **Example:**

    ```python
    >>> denoiser = jk.Denoiser(lambda x, t: -x, jk.VP(), "score")
    >>> setting = (denoiser, denoiser, jnp.ones((8, 2)), jax.random.key(0))
    >>> jk.reverse_sde.relative_score_loss(*setting, [0.1, 1.0]).tolist()
    [1.0, 1.0]
    ```

    Source: Cao, Chen, Luo, Zhou (2023), (46).
    """
    ours = score_loss_profile(denoiser, data, key, times)
    return ours / score_loss_profile(reference, data, key, times)


def kl_weight(
    process: AbstractProcess, t: AnyArray | float, stochasticity_squared: Numbers = 1.0
) -> Float[Array, "..."]:
    """Compute the weight with which a squared score error bounds KL(p_0 || q).

        KL(p_0 || q) <= KL(p_T || q_T) + int w E |S - grad log p_t|^2 dt
        w = (g^2 + h^2)^2 / (8 h^2) = g^2 (1 + alpha^2)^2 / (8 alpha^2)

    w is least for alpha = 1, whatever the error, where it is g^2 / 2. The bound therefore does not
    tell which h is best: it is infinite for h = 0 and h -> infinity, where KL is not.

    **Arguments:**

    - `process`: the forward process.
    - `t`: times of the process, any shape.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 > 0, a number.

    **Returns:** the weight, of the shape of `t`.

    **Raises:** ValueError for alpha^2 <= 0.

    **Example:**

    ```python
    >>> weight = jk.reverse_sde.kl_weight(jk.OU(rate=1.0), jnp.asarray([0.1, 1.0]))
    >>> weight.tolist()
    [0.5, 0.5]
    ```

    Source: Cao, Chen, Luo, Zhou (2023), (23); for alpha = 1 Song, Durkan, Murray and Ermon,
    "Maximum Likelihood Training of Score-Based Diffusion Models" (2021).
    """
    alpha2 = _checks.parameter("stochasticity_squared", stochasticity_squared, above=0.0)
    alpha2 = jnp.asarray(alpha2)
    factor = (1.0 + alpha2) ** 2 / (8.0 * alpha2)
    return process.diffusion_squared(jnp.asarray(t)) * factor


def kl_rate(
    process: AbstractProcess,
    t: Numbers,
    stochasticity_squared: Numbers,
    error: Float[Array, "n ..."],
    score_difference: Float[Array, "n ..."],
) -> Float[Array, ""]:
    """Compute the rate at which a score error changes KL(p_t || q_t) in the direction of sampling.

        -h^2/2 E |r|^2 - (g^2 + h^2)/2 E <e, r>
        r = grad log p_t / q_t,     e = S - grad log p_t

    with means over samples of p_t; q_t is the distribution of the samples. From KL at the start it
    integrates to KL at the end exactly. As a loss of a network it needs grad log q_t, which no
    network knows: this is for distributions whose scores are known. `kl_weight` bounds it from
    above by the maximum over r.

    **Arguments:**

    - `process`: the forward process.
    - `t`: a time of the process.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 >= 0, a number.
    - `error`: e at n samples of p_t, (n, ...).
    - `score_difference`: r at these samples, (n, ...).

    **Returns:** the rate in nats per unit of t, for t that falls.

    **Raises:** ValueError for alpha^2 < 0, or shapes that differ.

    **Example:**

    ```python
    >>> setting = (jk.OU(rate=1.0), 0.5, 1.0)
    >>> float(jk.reverse_sde.kl_rate(*setting, -jnp.ones((4, 2)), jnp.ones((4, 2))))
    1.0
    ```

    Source: Cao, Chen, Luo, Zhou (2023), (22).
    """
    alpha2 = _checks.parameter("stochasticity_squared", stochasticity_squared, at_least=0.0)
    if error.shape != score_difference.shape:
        raise ValueError(
            f"error has shape {error.shape} and score_difference {score_difference.shape}; they "
            "must be the same."
        )
    axes = tuple(range(1, error.ndim))
    fisher = jnp.mean(jnp.sum(score_difference**2, axes))
    cross = jnp.mean(jnp.sum(error * score_difference, axes))
    alpha2 = jnp.asarray(alpha2)
    g2 = process.diffusion_squared(jnp.asarray(t))
    return -0.5 * g2 * (alpha2 * fisher + (1.0 + alpha2) * cross)


def _squared_errors(
    denoiser: AbstractDenoiser, x0: Float[Array, "n ..."], noise: Float[Array, "n ..."], t: Array
) -> Float[Array, " n"]:
    """|S + Z / s|^2 of every row, at one time."""
    s = denoiser.process.noise(t)
    x = denoiser.process.signal(t) * x0 + s * noise
    wrong = (noise - denoiser(x, t).eps) / s
    return jnp.sum(wrong**2, tuple(range(1, x0.ndim)))
