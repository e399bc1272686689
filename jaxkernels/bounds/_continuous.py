"""Bounds for the reverse process in continuous time: the limit of small steps."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._numerics import smaller
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess, check_process
from ._bound import COHERENT, AccumulationBound, ErrorSize, per_evaluation
from ._curvature_interval import AbstractCurvature, as_curvature
from ._quadrature import gauss_legendre

# panels that grow with distance from the last time, each e^(12/48) times the one before
_PANELS = 48
_GRADING = 12.0
_NODES = 8


class ContinuousAccumulation(eqx.Module):
    """What an error of the score at time t can contribute to W2 at the end, per unit of time.

        gain(t) = (1 + alpha^2)/2 g^2 exp( int_{t_min}^t phi ),
        phi = -f + (1 + alpha^2)/2 g^2 (high + L)

    with high the upper end of the curvature and L the Lipschitz constant of the error. Unlike the
    sum over steps it does not depend on a schedule: at leading order neither does the sum.

    **Arguments:**

    - `times`, `weights`: (n,), the nodes and weights of a quadrature in time.
    - `gain`: (n,), in units of variance per time.
    - `vacuous`: where the data's curvature is not known, which makes `gain` infinite.

    **Example:**

    ```python
    >>> accumulation = jk.bounds.continuous_accumulation(jk.Gaussian(0.0, [2.0]), jk.VP())
    >>> bound = accumulation.coherent(0.1)
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), equation
    (11), in continuous time and without its sum of squares.
    """

    times: Float[Array, " n"]
    weights: Float[Array, " n"]
    gain: Float[Array, " n"]
    vacuous: str = eqx.field(static=True)

    @in_float64
    def coherent(self, rms: ErrorSize) -> AccumulationBound:
        """Bound W2 whatever the dependence of the errors.

            W2 <= int gain(t) rms(t) dt

        **Arguments:**

        - `rms`: (E |e_t|^2)^(1/2) along the process without errors, a number or a function of time,
          >= 0, in 1 / data.

        **Returns:** the bound, in the units of the data.

        **Raises:** ValueError for a negative size.

        **Example:**

        ```python
        >>> accumulation = jk.bounds.continuous_accumulation(jk.Gaussian(0.0, [2.0]), jk.VP())
        >>> bound = accumulation.coherent(lambda t: 0.1 / (1.0 + t))
        ```
        """
        sizes = per_evaluation("rms", rms, self.times)
        value = jnp.sum(jnp.where(sizes > 0, self.weights * self.gain * sizes, 0.0))
        finite = is_traced(value) or bool(np.isfinite(value))
        return AccumulationBound(value, COHERENT, "" if finite else self.vacuous)


@in_float64
def continuous_accumulation(
    target: Gaussian | GaussianMixture | AbstractCurvature,
    process: AbstractProcess,
    *,
    lipschitz: ErrorSize = 0.0,
    stochasticity: Numbers = 0.0,
    t_min: Numbers = 0.0,
) -> ContinuousAccumulation:
    """Compute how score errors of every time add up in the reverse process.

    **Arguments:**

    - `target`: a Gaussian, a mixture, or what is known of the curvature of any data.
    - `process`: the forward process, with a positive signal at t_max.
    - `lipschitz`: L >= 0 of the errors, a number or a function of time, in 1 / variance.
    - `stochasticity`: alpha = h/g >= 0, the same at all times; 0 is the probability flow, 1 the
      reverse SDE.
    - `t_min`: where the process stops, in [0, t_max).

    **Returns:** the gain at every time, and the bound that follows from it.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [2.0])
    >>> flow, sde = (
    ...     jk.bounds.continuous_accumulation(target, jk.VP(), stochasticity=a) for a in (0, 1)
    ... )
    ```

    Source: as for `ContinuousAccumulation`.
    """
    process = check_process(process)
    curvature = as_curvature(target)
    alpha = _checks.parameter("stochasticity", stochasticity, at_least=0.0)
    if not is_traced(process):
        last = float(process.t_max)
        t_min = _checks.parameter("t_min", t_min, at_least=0.0, below=last)
        signal = process.signal(last)
        if not is_traced(signal) and not float(signal) > 0:
            raise ValueError(
                f"process has no signal at t_max = {last:g}, where a score error has no finite "
                "effect; restrict it with sub_range."
            )
    times, weights, length = _quadrature(jnp.asarray(t_min), jnp.asarray(process.t_max))
    rate = 0.5 * (1.0 + alpha**2) * process.diffusion_squared(times)
    high = curvature.interval(process, times)[1]
    known = jnp.isfinite(high)
    constants = per_evaluation("lipschitz", lipschitz, times.reshape(-1)).reshape(times.shape)
    phi = rate * (jnp.where(known, high, 0.0) + constants) - process.drift(times)
    _, shares, integrals = gauss_legendre(_NODES, times.dtype)
    within = length[:, None] * (phi @ integrals.T)
    whole = length * (phi @ shares)
    before = jnp.cumsum(whole) - whole
    gain = rate * jnp.exp(before[:, None] + within)
    reached = jnp.cumprod(known.reshape(-1)) > 0
    gain = jnp.where(reached, gain.reshape(-1), jnp.inf)
    return ContinuousAccumulation(times.reshape(-1), weights.reshape(-1), gain, curvature.vacuous)


@in_float64
def sde_ode_ratio(
    process: AbstractProcess,
    t: Float[ArrayLike, "*s"],
    *,
    variance: Numbers,
    stochasticity: Numbers = 1.0,
) -> Float[Array, "*s"]:
    """Compute what a score error at time t causes with noise, relative to without.

        (1 + alpha^2) (lambda / (lambda + sigma^2))^(alpha^2 / 2)

    for a mode of variance lambda. At the data end it is 1 + alpha^2 > 1, because noise multiplies
    the factor of the score. It falls below 1 where sigma is large, because noise forgets.

    **Arguments:**

    - `process`: the forward process.
    - `t`: times, any shape.
    - `variance`: lambda > 0 of the data.
    - `stochasticity`: alpha = h/g >= 0.

    **Returns:** the ratio of the gains at every time.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> jk.bounds.sde_ode_ratio(jk.VP(), 0.0, variance=1.0).item()
    2.0
    ```

    Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript), section
    3.4, whose factors per step leave out that of the score.
    """
    variance = _checks.parameter("variance", variance, above=0.0)
    alpha2 = _checks.parameter("stochasticity", stochasticity, at_least=0.0) ** 2
    return (1.0 + alpha2) * (1.0 + process.sigma(t) ** 2 / variance) ** (-0.5 * alpha2)


@in_float64
def sde_ode_crossing(
    process: AbstractProcess, *, variance: Numbers, stochasticity: Numbers = 1.0
) -> Float[Array, ""]:
    """Compute the time above which noise makes a score error cost less.

        sigma^2 = lambda ((1 + alpha^2)^(2 / alpha^2) - 1),    3 lambda for the reverse SDE

    **Arguments:**

    - `process`: the forward process.
    - `variance`: lambda > 0 of the data.
    - `stochasticity`: alpha = h/g > 0.

    **Returns:** the time where `sde_ode_ratio` is 1; infinite if that is beyond t_max.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> round(jk.bounds.sde_ode_crossing(jk.VE(2.0), variance=0.1).item(), 6)
    0.15
    ```

    Source: as for `sde_ode_ratio`.
    """
    variance = _checks.parameter("variance", variance, above=0.0)
    alpha2 = _checks.parameter("stochasticity", stochasticity, above=0.0) ** 2
    sigma = jnp.sqrt(variance * jnp.expm1(2.0 * jnp.log1p(alpha2) / alpha2))
    last = process.sigma(process.t_max)
    inside = sigma <= last
    return jnp.where(inside, process.time_at_sigma(smaller(sigma, last)), jnp.inf)


def _quadrature(
    low: Float[Array, ""], high: Float[Array, ""]
) -> tuple[Float[Array, "panels nodes"], Float[Array, "panels nodes"], Float[Array, " panels"]]:
    """Nodes, weights and lengths of Gauss-Legendre panels that grow from `low`."""
    shares = np.expm1(_GRADING * np.linspace(0.0, 1.0, _PANELS + 1)) / np.expm1(_GRADING)
    edges = low + (high - low) * shares
    length = edges[1:] - edges[:-1]
    x, weights, _ = gauss_legendre(_NODES, length.dtype)
    return edges[:-1, None] + length[:, None] * x, length[:, None] * weights, length
