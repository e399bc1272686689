"""The convergence theorems as published, for comparison with `routing_bound`.

They are for variance-preserving processes with signal 0 at time 1, equal steps from 1 to tau, and
Euler's method. All constants are uniform over [tau, 1], so that the bounds hold but say little:
they are evaluated as logarithms, as they overflow. Factors that the source leaves open are replaced
by valid ones.

Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via Velocity
Field Decomposition" (manuscript), Propositions 2 to 5, Lemmas 1 to 8, Theorems 2 and 5 to 8.
"""

from typing import NamedTuple

import numpy as np

from .. import _checks

_SKEW = 2.0
"""The source's factor of R^3 in the bound on Cov(X_0, |X_0|^2); 8/27 is the sharp one."""


class PublishedBound(NamedTuple):
    """Logarithms of the published bound and of its constants.

        E |x_k - x(t_k)|^2 <= exp(K T) ( C_app eps^2 + C_disc / n ),      T = 1 - tau

    - `lipschitz`: L, of the velocity on [tau, 1] (Corollary 1).
    - `growth`: C_v, with |v| <= C_v (1 + |x|) (Proposition 4).
    - `expert_growth`: the same of inexact experts (Corollary 4).
    - `time_growth`: A of |d_t v| <= A |x| + B (Corollary 2).
    - `time_offset`: B.
    - `field_error`: C_NN, of the mean velocity's error C_NN eps (1 + |x|) (Theorem 5).
    - `log_moment`: log M, with E |x_k|^2 <= M (1 + |x_0|^2) (Lemma 6).
    - `log_noise`: log of the factor of h^2 (1 + |x_0|^2) in the noise of one step (Lemma 8).
    - `local_error`: C_T, of the local error C_T h^2 (Lemma 7).
    - `exponent`: K T.
    - `log_approximation`: log C_app.
    - `log_discretization`: log C_disc.
    - `log_bound`: log of the whole.

    **Example:**

    ```python
    >>> bound = jk.routing.published_bound(
    ...     0.5, 40, rate=np.pi / 2, curvature=np.pi**2 / 4, signal=0.5**0.5, radius=1.0, norm=1.0
    ... )
    >>> bound.log_bound > 20
    True
    ```
    """

    lipschitz: float
    growth: float
    expert_growth: float
    time_growth: float
    time_offset: float
    field_error: float
    log_moment: float
    log_noise: float
    local_error: float
    exponent: float
    log_approximation: float
    log_discretization: float
    log_bound: float


def published_bound(
    t_min: float,
    num_steps: int,
    *,
    rate: float,
    curvature: float,
    signal: float,
    radius: float,
    norm: float,
    num_experts: int = 2,
    error: float = 0.0,
    dim: int | None = None,
) -> PublishedBound:
    """Evaluate Theorem 6 as published or, with `dim`, Theorem 8.

        E |x_k - x(t_k)|^2 <= exp(K T) ( C_app eps^2 + C_disc / n )

    **Arguments:**

    - `t_min`: tau, in (0, 1).
    - `num_steps`: number n >= 1 of equal steps from time 1 to tau.
    - `rate`: M_1 > 0, the largest |a'| on [0, 1].
    - `curvature`: M_2 >= 0, the largest |a''| there.
    - `signal`: a(tau), in (0, 1).
    - `radius`: R > 0, of the data's ball.
    - `norm`: |x_0| >= 0 of the initial noise; without effect on Theorem 8.
    - `num_experts`: number N >= 1 of experts.
    - `error`: eps >= 0, the largest error of any routing weight and any expert's denoised point.
    - `dim`: number d of dimensions for Theorem 8, the bound on the squared W2 between the samples
      and p_tau; None for Theorem 6, which is for one initial noise.

    **Returns:** a `PublishedBound`.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> bound = jk.routing.published_bound(
    ...     0.5, 40, rate=np.pi / 2, curvature=np.pi**2 / 4, signal=0.5**0.5, radius=1.0, norm=1.0
    ... )
    >>> round(float(np.exp(bound.log_bound)) / 1e9, 1)
    3.3
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), Theorems 2, 6 and 8.
    """
    tau = float(_checks.scalar("t_min", t_min, above=0.0, below=1.0))
    steps = _checks.count("num_steps", num_steps)
    count = _checks.count("num_experts", num_experts)
    m1 = float(_checks.scalar("rate", rate, above=0.0))
    m2 = float(_checks.scalar("curvature", curvature, at_least=0.0))
    a = float(_checks.scalar("signal", signal, above=0.0, below=1.0))
    r = float(_checks.scalar("radius", radius, above=0.0))
    x0 = float(_checks.scalar("norm", norm, at_least=0.0))
    eps = float(_checks.scalar("error", error, at_least=0.0))
    s2 = 1.0 - a * a
    span = 1.0 - tau
    h = span / steps
    lipschitz = m1 * a / s2 * (1.0 + r * r / s2)
    growth = max(lipschitz, m1 * r / s2)
    expert_growth = growth + m1 / s2 * eps
    time_growth = a * m2 / s2 + m1**2 * (1.0 + a * a) / s2**2 * (1.0 + r * r / s2)
    skew = _SKEW * a * m1**2 * r**3 / s2**3
    time_offset = r * (m2 / s2 + 2.0 * a * m1**2 / s2**2) + skew
    field_error = m1 / s2 * max(count * a, count * r + 1.0)
    log_moment = span * (3.0 * expert_growth + 2.0 * h * expert_growth**2)
    log_noise = np.log(2.0 * expert_growth**2) + np.logaddexp(0.0, log_moment)
    # the local error is affine in |x_0|, whose root mean square is sqrt(d)
    size = x0 if dim is None else np.sqrt(_checks.count("dim", dim))
    reach = size + r
    moved = lipschitz * growth
    local_error = 0.5 * ((time_growth + moved) * reach + time_offset + moved)
    network = 2.0 * (1.0 + h) ** 2 * field_error**2
    rest = 2.0 + h + 2.0 * lipschitz + h * lipschitz**2
    rest = rest + h * (2.0 + h) * (2.0 * lipschitz + h * lipschitz**2)
    exponent = span * (rest + network * eps**2)
    log_approximation = np.log(span * network * (1.0 + reach) ** 2)
    log_steps = np.log((1.0 + h) * h * local_error**2)
    log_drawn = log_noise + np.log1p(size**2)
    log_discretization = 2.0 * np.log(span) + np.logaddexp(log_drawn, log_steps)
    total = log_discretization - np.log(steps)
    if eps > 0:
        total = np.logaddexp(total, log_approximation + 2.0 * np.log(eps))
    return PublishedBound(
        lipschitz,
        growth,
        expert_growth,
        time_growth,
        time_offset,
        field_error,
        float(log_moment),
        float(log_noise),
        float(local_error),
        float(exponent),
        float(log_approximation),
        float(log_discretization),
        float(exponent + total),
    )
