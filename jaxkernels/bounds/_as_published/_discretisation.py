"""Theorems on five discretisations as published. None of them is a certificate.

They are for OU of rate 1, started from N(0, (1 - e^-T) I), with N = T / h equal steps to time 0.
Their "less than up to a constant" hides terms such as M_1 h (1 + |x|), so that with the published
constants the inequality fails for data far from the origin; they need m_0 > 1/2, although the
samplers do not. `certified_bound` needs neither.

Source: Yu and Yu, "Advancing Wasserstein Convergence Analysis of Score-Based Models: Insights from
Discretization and Second-Order Acceleration" (2025), https://arxiv.org/abs/2502.04849.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ... import _checks
from ..._precision import is_traced
from ..._types import Numbers
from .._assumptions import Assumptions, why


class PublishedBound(NamedTuple):
    """What a theorem states, which the true error may exceed.

    **Arguments:**

    - `value`: the sum of the next three, in the units of the data; infinite where the theorem does
      not apply.
    - `initialization`, `discretisation`, `score_error`: its terms.
    - `reason`: why the value is infinite, or empty.

    **Example:**

    ```python
    >>> known = jk.bounds.assumptions(jk.Gaussian(0.0, [2.5]), jk.OU())
    >>> jk.bounds.as_published.theorem_1(known, "euler_maruyama", 10.0, 0.01).reason
    'm_0 = 0.4 must exceed 1/2'
    ```
    """

    value: float | Array
    initialization: float | Array
    discretisation: float | Array
    score_error: float | Array
    reason: str = ""


def theorem_1(
    known: Assumptions, scheme: str, horizon: Numbers, step: Numbers, score_error: Numbers = 0.0
) -> PublishedBound:
    """State Theorem 1, for Euler-Maruyama and the exponential integrator.

        e^(-m T) |X_0| + C sqrt(d h) + eps / (m - 1/2),     m = min(1, m_0),   L = 1 + L_0
        C = (L + 1/2) / (m - 1/2)  or  L / (m - 1/2)

    **Arguments:**

    - `known`: the constants of the data. Its process plays no part: the theorem is for that of
      Ornstein and Uhlenbeck of rate 1, whose time `horizon` and `step` are.
    - `scheme`: "euler_maruyama" or "exponential_integrator".
    - `horizon`, `step`, `score_error`: T > 0, h > 0 and eps >= 0, numbers that may be traced.

    **Returns:** the value of the right-hand side and its terms.

    **Raises:** ValueError naming an argument out of range.

    **Example:**

    ```python
    >>> known = jk.bounds.assumptions(jk.Gaussian(0.0, [1.0]), jk.OU())
    >>> stated = jk.bounds.as_published.theorem_1(known, "euler_maruyama", 10.0, 0.5)
    ```
    """
    names = ("euler_maruyama", "exponential_integrator")
    scheme = _checks.one_of("scheme", scheme, names)
    size = _number("step", step, above=0.0)
    factor = _constant(known, scheme) * math.sqrt(float(known.dim))
    return _stated(known, horizon, factor * size**0.5, score_error, 1.0)


def theorem_3(
    known: Assumptions, scheme: str, horizon: Numbers, step: Numbers, score_error: Numbers = 0.0
) -> PublishedBound:
    """State Theorem 3, for the randomised midpoint methods.

        e^(-m T) |X_0| + C sqrt(h) + 3 eps / (m - 1/2)
        C = (sqrt(d/3) L + 1/(2 sqrt 3)) / (m - 1/2)  or  sqrt(d/3) L / (m - 1/2)

    **Arguments:**

    - `known`, `horizon`, `step`, `score_error`: as for `theorem_1`.
    - `scheme`: "rem" or "rei".

    **Returns:** the value of the right-hand side and its terms.

    **Raises:** ValueError naming an argument out of range.

    **Example:**

    ```python
    >>> known = jk.bounds.assumptions(jk.Gaussian(0.0, [1.0]), jk.OU())
    >>> stated = jk.bounds.as_published.theorem_3(known, "rem", 10.0, 0.5)
    ```
    """
    scheme = _checks.one_of("scheme", scheme, ("rem", "rei"))
    size = _number("step", step, above=0.0)
    error = _constant(known, scheme) * size**0.5
    return _stated(known, horizon, error, score_error, 3.0)


def theorem_4(
    known: Assumptions,
    horizon: Numbers,
    step: Numbers,
    score_error: Numbers = 0.0,
    hessian_error: Numbers = 0.0,
    drift_error: Numbers = 0.0,
) -> PublishedBound:
    """State Theorem 4, for the second-order scheme.

        e^(-m T) |X_0| + e^((L - 1/2) h) (sqrt d (L^(3/2) + sqrt 2 L_F / 4) h
        + eps + (2/3) sqrt(h d) eps_L + (h/2) eps_M) / (m - 1/2)

    **Arguments:**

    - `known`, `horizon`, `step`, `score_error`: as for `theorem_1`; L_F must be known.
    - `hessian_error`: eps_L >= 0, of the learned Hessian.
    - `drift_error`: eps_M >= 0, of the learned second-order drift.

    **Returns:** the value of the right-hand side and its terms.

    **Raises:** ValueError naming an argument out of range.

    **Example:**

    ```python
    >>> known = jk.bounds.assumptions(jk.Gaussian(0.0, [1.0]), jk.OU())
    >>> stated = jk.bounds.as_published.theorem_4(known, 10.0, 0.5)
    ```
    """
    size = _number("step", step, above=0.0)
    hessian = _number("hessian_error", hessian_error, at_least=0.0)
    drift = _number("drift_error", drift_error, at_least=0.0)
    score = _number("score_error", score_error, at_least=0.0)
    growth = math.e ** ((_largest(known) - 0.5) * size)
    total = score + 2.0 / 3.0 * (size * float(known.dim)) ** 0.5 * hessian + size / 2.0 * drift
    error = growth * _constant(known, "second_order") * size
    return _stated(known, horizon, error, total, growth)


def corollary_2(known: Assumptions, scheme: str, tolerance: Numbers) -> float:
    """State the number of steps of Corollary 2, for W2 <= tolerance.

        N = T / h,   T = log(3 |X_0| / eps) / m,   h = eps^2 / (9 C^2 d)  or  eps^2 / (9 C^2)

    with the constants C of Theorems 1 and 3 and the error split into three equal parts.

    **Arguments:**

    - `known`: the constants of the data.
    - `scheme`: one of Theorems 1 and 3.
    - `tolerance`: eps > 0.

    **Returns:** the number of steps; infinite where the theorem does not apply.

    **Raises:** ValueError for another scheme or tolerance.

    **Example:**

    ```python
    >>> known = jk.bounds.assumptions(jk.Gaussian(0.0, [1.0]), jk.OU())
    >>> steps = jk.bounds.as_published.corollary_2(known, "euler_maruyama", 0.1)
    ```
    """
    names = ("euler_maruyama", "exponential_integrator", "rem", "rei")
    scheme = _checks.one_of("scheme", scheme, names)
    eps = float(_checks.scalar("tolerance", tolerance, above=0.0))
    if _inapplicable(known):
        return math.inf
    factor = _constant(known, scheme)
    dims = float(known.dim) if scheme in names[:2] else 1.0
    return _num_steps(known, eps, eps**2 / (9.0 * factor**2 * dims))


def corollary_5(known: Assumptions, tolerance: Numbers) -> float:
    """State the number of steps of Corollary 5, for the second-order scheme.

        N = T / h,   h = min(log 2 / (L - 1/2), eps / (6 C)),   T as in Corollary 2

    **Arguments:**

    - `known`: the constants of the data.
    - `tolerance`: eps > 0.

    **Returns:** the number of steps; infinite where the theorem does not apply.

    **Raises:** ValueError for another tolerance.

    **Example:**

    ```python
    >>> known = jk.bounds.assumptions(jk.Gaussian(0.0, [1.0]), jk.OU())
    >>> steps = jk.bounds.as_published.corollary_5(known, 0.1)
    ```
    """
    eps = float(_checks.scalar("tolerance", tolerance, above=0.0))
    if _inapplicable(known) or not np.isfinite(_constant(known, "second_order")):
        return math.inf
    largest = math.log(2.0) / (_largest(known) - 0.5)
    return _num_steps(known, eps, min(largest, eps / (6.0 * _constant(known, "second_order"))))


def _num_steps(known: Assumptions, tolerance: float, step: float) -> float:
    """T / h, rounded up."""
    size = math.sqrt(float(known.second_moment))
    horizon = max(math.log(3.0 * size / tolerance), 0.0) / _smallest(known)
    return float(math.ceil(horizon / step))


def _smallest(known: Assumptions) -> float:
    """min(1, m_0)."""
    return -math.inf if known.convexity is None else min(1.0, float(known.convexity))


def _largest(known: Assumptions) -> float:
    """1 + L_0."""
    return math.inf if known.smoothness is None else 1.0 + float(known.smoothness)


def _inapplicable(known: Assumptions) -> str:
    """Why the theorems do not apply, or empty."""
    if known.convexity is None:
        return f"m_0: {why(known, 'convexity')}"
    if float(known.convexity) <= 0.5:
        return f"m_0 = {float(known.convexity):g} must exceed 1/2"
    if known.smoothness is None:
        return f"L_0: {why(known, 'smoothness')}"
    return ""


def _constant(known: Assumptions, scheme: str) -> float:
    """The factor of the discretisation error, without powers of d and h outside of it."""
    if _inapplicable(known):
        return math.inf
    largest = _largest(known)
    dim = float(known.dim)
    third = math.inf if known.third_derivative is None else float(known.third_derivative)
    numerators = {
        "euler_maruyama": largest + 0.5,
        "exponential_integrator": largest,
        "rem": math.sqrt(dim / 3.0) * largest + 0.5 / math.sqrt(3.0),
        "rei": math.sqrt(dim / 3.0) * largest,
        "second_order": math.sqrt(dim) * (largest**1.5 + math.sqrt(2.0) * third / 4.0),
    }
    return numerators[scheme] / (_smallest(known) - 0.5)


def _number(argument: str, value: Numbers, **bounds: float) -> float | Array:
    """A number in its range, or as it is if traced; powers of both are written alike."""
    checked = _checks.parameter(argument, value, **bounds)
    return jnp.asarray(checked) if is_traced(checked) else float(checked)


def _stated(
    known: Assumptions,
    horizon: Numbers,
    discretisation: float | Array,
    score_error: Numbers | Array,
    factor: float | Array,
) -> PublishedBound:
    """The three terms, or infinity with a reason."""
    duration = _number("horizon", horizon, above=0.0)
    score = _number("score_error", score_error, at_least=0.0)
    reason = _inapplicable(known)
    if reason:
        return PublishedBound(math.inf, math.inf, math.inf, math.inf, reason)
    if not is_traced(discretisation) and not math.isfinite(discretisation):
        reason = f"L_F: {why(known, 'third_derivative')}"
    initial = math.e ** (-_smallest(known) * duration) * math.sqrt(float(known.second_moment))
    error = factor * score / (_smallest(known) - 0.5)
    total = initial + discretisation + error
    return PublishedBound(total, initial, discretisation, error, reason)
