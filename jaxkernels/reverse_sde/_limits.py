"""Limits of the leading order for Gaussian data: pulses, short windows and strong noise.

For a constant alpha = h / g and the error of `_leading_order`:

- a pulse E delta(theta - theta_s);
- an error on theta < a only, a far below every variance;
- h -> infinity: L -> Var(phi) / 2 under p_0 where E = grad phi at the data end, because a large h
  samples the density p_0 e^{eps phi}. Errors that are no gradient count by their projection on
  gradients in L^2(p_0).

They correct Propositions 3.4 to 3.6 of Cao, Chen, Luo, Zhou (2023); `pulse_constants` has the first
as published, and the tests the others. `_density` has the limits of other densities.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._numerics import largest
from .._precision import in_float64, is_traced
from .._types import Numbers
from ..distributions import Gaussian
from ._affine import whiten_error
from ._cells import check_variances
from ._leading_order import expm1_ratio
from ._time_change import mode_time, mode_variance


@in_float64
def pulse_leading_order(
    target: Gaussian,
    stochasticity_squared: Numbers,
    time: Numbers,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
) -> Float[Array, ""]:
    """Compute L(h) for an error at one time only, E(theta) = e delta(theta - theta_s).

        L = (1 + alpha^2)^2 sum_i [c_i^2 e^{-2 alpha^2 y_i} / 4
                                   + b_i^2 e^{-alpha^2 y_i} / 8] / s_i^2

    with y_i and s_i at theta_s.

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 >= 0, one number for all times.
    - `time`: theta_s >= 0.
    - `relative`, `shift`: c and b of `leading_order` times a unit of time, a number or (modes,).

    **Returns:** L in nats per eps^2.

    **Raises:** ValueError for a negative alpha^2 or time, a zero eigenvalue or a wrong shape.

    **Example:**

    ```python
    >>> value = jk.reverse_sde.pulse_leading_order(jk.Gaussian(0.0, [1.0]), 0.0, 0.5, relative=1.0)
    >>> print(f"{float(value):.4f}")
    0.2500
    ```
    """
    lam, alpha2, theta = _check_setting(target, stochasticity_squared, "time", time)
    c = check_modes("relative", relative, lam.shape[0])
    b = check_modes("shift", shift, lam.shape[0])
    y = mode_time(theta, lam)
    parts = c**2 * jnp.exp(-2.0 * alpha2 * y) / 4.0 + b**2 * jnp.exp(-alpha2 * y) / 8.0
    precision = 1.0 / mode_variance(theta, lam)
    return (1.0 + alpha2) ** 2 * jnp.sum(jnp.asarray(target.weights) * parts * precision**2)


@in_float64
def pulse_bound(
    target: Gaussian,
    stochasticity_squared: Numbers,
    time: Numbers,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
) -> Float[Array, ""]:
    """Bound L(h) for an error at one time only, by the slowest mode.

        L <= (1 + alpha^2)^2 / 8 I exp(-alpha^2 y_max),     I = sum_i (2 c_i^2 + b_i^2) / s_i^2

    with y_max the natural time of the mode of the largest variance. It holds for every alpha^2.

    **Arguments:**

    - `target`, `stochasticity_squared`, `time`, `relative`, `shift`: as in `pulse_leading_order`.

    **Returns:** an upper bound on `pulse_leading_order`.

    **Raises:** ValueError as `pulse_leading_order`.

    **Example:**

    ```python
    >>> setting = (jk.Gaussian(0.0, [0.04, 1.0]), 2.0, 0.1, 1.0)
    >>> bool(jk.reverse_sde.pulse_leading_order(*setting) <= jk.reverse_sde.pulse_bound(*setting))
    True
    ```

    Source: derived here; it replaces Cao, Chen, Luo, Zhou (2023), Proposition 3.4, whose constants
    (`pulse_constants`) ask for alpha^2 >= 30.
    """
    lam, alpha2, theta = _check_setting(target, stochasticity_squared, "time", time)
    c = check_modes("relative", relative, lam.shape[0])
    b = check_modes("shift", shift, lam.shape[0])
    precision = 1.0 / mode_variance(theta, lam)
    weights = jnp.asarray(target.weights)
    information = jnp.sum(weights * (2.0 * c**2 + b**2) * precision**2)
    decay = jnp.exp(-alpha2 * mode_time(theta, largest(lam)))
    return (1.0 + alpha2) ** 2 / 8.0 * information * decay


@in_float64
def window_leading_order(
    target: Gaussian,
    stochasticity_squared: Numbers,
    window: Numbers,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
) -> Float[Array, ""]:
    """Compute the asymptotic L(h) for an error on theta < a only, a far below every variance.

        L ~ ((1 + alpha^2) / alpha^2)^2 sum_i [c_i^2 (1 - e^{-a alpha^2 / lambda_i})^2 / 4
                                              + b_i^2 (1 - e^{-a alpha^2 / (2 lambda_i)})^2 / 2]

    The relative error of the formula is of the order of a / (smallest variance). At alpha = 0 it is
    the limit, a^2 sum_i (c_i^2 / 4 + b_i^2 / 8) / lambda_i^2.

    **Arguments:**

    - `target`, `stochasticity_squared`: as in `pulse_leading_order`.
    - `window`: a >= 0, in rescaled time.
    - `relative`, `shift`: c and b of `leading_order` near the data, a number or (modes,).

    **Returns:** L in nats per eps^2.

    **Raises:** ValueError for a negative alpha^2 or window, a zero eigenvalue or a wrong shape.

    **Example:**

    ```python
    >>> target = jk.Gaussian(0.0, [1.0])
    >>> value = jk.reverse_sde.window_leading_order(target, 0.0, 0.01, relative=1.0)
    >>> print(f"{float(value):.6f}")
    0.000025
    ```

    Source: derived here; it corrects Cao, Chen, Luo, Zhou (2023), Proposition 3.5.
    """
    lam, alpha2, a = _check_setting(target, stochasticity_squared, "window", window)
    c = check_modes("relative", relative, lam.shape[0])
    b = check_modes("shift", shift, lam.shape[0])

    def reach(rate: Array) -> Array:
        """(1 + alpha^2) int_0^a e^{-alpha^2 rate r / 2} dr rate / 2."""
        z = 0.5 * a * rate
        return (1.0 + alpha2) * z * expm1_ratio(alpha2 * z)

    parts = c**2 * reach(2.0 / lam) ** 2 / 4.0 + b**2 * reach(1.0 / lam) ** 2 / 2.0
    return jnp.sum(jnp.asarray(target.weights) * parts)


@in_float64
def tail_leading_order(
    target: Gaussian,
    stochasticity_squared: Numbers,
    relative: Numbers = 0.0,
    shift: Numbers = 0.0,
) -> Float[Array, ""]:
    """Compute L(h) for strong noise and an error that does not change near the data.

        L ~ ((1 + alpha^2) / alpha^2)^2 T,     T = `tail_constant`

    L - T falls like 2 T / alpha^2; the terms omitted are exponentially small. An error that changes
    near the data adds terms of order 1 / alpha^2.

    **Arguments:**

    - `target`, `relative`, `shift`: as in `tail_constant`.
    - `stochasticity_squared`: alpha^2 = h^2 / g^2 > 0, one number for all times.

    **Returns:** L in nats per eps^2.

    **Raises:** ValueError for alpha^2 <= 0, a zero eigenvalue or a wrong shape.

    **Example:**

    ```python
    >>> value = jk.reverse_sde.tail_leading_order(jk.Gaussian(0.0, [0.25]), 100.0, relative=1.0)
    >>> print(f"{float(value):.6f}")
    0.255025
    ```

    Source: derived here; it corrects Cao, Chen, Luo, Zhou (2023), Proposition 3.6.
    """
    alpha2 = _checks.parameter("stochasticity_squared", stochasticity_squared, above=0.0)
    alpha2 = jnp.asarray(alpha2)
    return ((1.0 + alpha2) / alpha2) ** 2 * tail_constant(target, relative, shift)


@in_float64
def tail_constant(
    target: Gaussian, relative: Numbers = 0.0, shift: Numbers = 0.0
) -> Float[Array, ""]:
    """Compute the limit T of L(h) for h -> infinity, for an error along each mode.

        T = sum_i (c_i^2 / 4 + b_i^2 / 2)

    It is Var(phi) / 2 with phi = c log p_0 + b x / sqrt(lambda): the variance of log p_0 is d / 2
    for every Gaussian.

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0.
    - `relative`, `shift`: c and b of `leading_order` at theta = 0, a number or (modes,).

    **Returns:** T in nats per eps^2.

    **Raises:** ValueError for a zero eigenvalue or a wrong shape.

    **Example:**

    ```python
    >>> limit = jk.reverse_sde.tail_constant(jk.Gaussian(0.0, [0.04, 0.3, 0.9]), relative=1.0)
    >>> print(f"{float(limit):.4f}")
    0.7500
    ```
    """
    lam = jnp.asarray(check_variances(target))
    c = check_modes("relative", relative, lam.shape[0])
    b = check_modes("shift", shift, lam.shape[0])
    return jnp.sum(jnp.asarray(target.weights) * (c**2 / 4.0 + b**2 / 2.0))


@in_float64
def affine_tail_constant(
    target: Gaussian, matrix: Numbers, shift: Numbers = 0.0
) -> Float[Array, ""]:
    """Compute the limit T of L(h) for h -> infinity, for an affine error with a matrix slope.

        T = sum_ij B_ij^2 l_i l_j / 4 + |C^{1/2} (A mu + beta)|^2 / 2
        B_ij = (A_ij l_j + A_ji l_i) / (l_i + l_j)     in the eigenbasis, l the eigenvalues

    B x is the gradient nearest to A x in L^2(p_0).

    **Arguments:**

    - `target`: Gaussian data with eigenvalues > 0 and weights 1.
    - `matrix`: A at theta = 0, (d, d), in the coordinates of the data, in 1 / variance.
    - `shift`: beta at theta = 0, (d,) or a number, in 1 / data.

    **Returns:** T in nats per eps^2.

    **Raises:** ValueError for a zero eigenvalue, a wrong shape, or weights other than 1.

    **Example:**

    ```python
    >>> limit = jk.reverse_sde.affine_tail_constant(jk.Gaussian(0.0, [0.5]), [[-2.0]])
    >>> print(f"{float(limit):.4f}")
    0.2500
    ```
    """
    lam = jnp.asarray(check_variances(target))
    slope, push = whiten_error(target, matrix, shift, jnp.zeros((1, 1)))
    # slope is A_ij sqrt(l_j / l_i)
    symmetric = (slope + jnp.swapaxes(slope, -1, -2))[0, 0]
    gradient = symmetric * lam[:, None] * lam / (lam[:, None] + lam)
    return jnp.sum(gradient**2) / 4.0 + jnp.sum((lam * push[0, 0]) ** 2) / 2.0


def _check_setting(
    target: Gaussian, stochasticity_squared: Numbers, name: str, time: Numbers
) -> tuple[Float[Array, " modes"], Float[Array, ""], Float[Array, ""]]:
    """Variances, alpha^2 and the time."""
    lam = jnp.asarray(check_variances(target))
    alpha2 = _checks.parameter("stochasticity_squared", stochasticity_squared, at_least=0.0)
    return lam, jnp.asarray(alpha2), jnp.asarray(_checks.parameter(name, time, at_least=0.0))


def check_modes(name: str, value: Numbers, modes: int) -> Float[Array, " modes"]:
    """A number per mode."""
    out = jnp.asarray(value) if is_traced(value) else jnp.asarray(_checks.array(name, value))
    if out.shape not in ((), (modes,)):
        raise ValueError(
            f"{name} has shape {out.shape}; it must be a number or have shape ({modes},)."
        )
    return jnp.broadcast_to(out, (modes,))
