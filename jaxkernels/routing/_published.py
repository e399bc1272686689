"""The convergence theorems as published, for comparison with `routing_bound`.

They are for variance-preserving processes with signal 0 at time 1, equal steps from 1 to tau, and
Euler's method. All constants are uniform over [tau, 1], so that the bounds hold but say little;
they are evaluated as logarithms, as they overflow. Factors that the source leaves open are replaced
by valid ones.

Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via Velocity
Field Decomposition" (manuscript), Propositions 2 to 5, Lemmas 1 to 8, Theorems 2 and 5 to 8.
"""

import dataclasses

import numpy as np

from .. import _checks

_SKEW = 2.0
"""The source's factor of R^3 in the bound on Cov(X_0, |X_0|^2); 8/27 is the sharp one."""


@dataclasses.dataclass(frozen=True)
class PublishedBounds:
    """The published constants of a run, and the bounds that they give.

    **Arguments:**

    - `t_min`: tau, in (0, 1).
    - `num_steps`: number n >= 1 of equal steps from time 1 to tau.
    - `signal`: a(tau), in (0, 1).
    - `rate`: M_1 > 0, the largest |a'| on [0, 1].
    - `curvature`: M_2 >= 0, the largest |a''| there.
    - `radius`: R > 0, of the data's ball.
    - `num_experts`: number N >= 1 of experts.
    - `error`: eps >= 0, the largest error of any routing weight and any expert's denoised point.
    - `largest_step`: h_max >= (1 - tau) / n, for which the constants hold; by default equal to it,
      which gives the smallest ones.

    **Raises:** ValueError for an argument out of range.

    **Example:**

    ```python
    >>> cosine = {"signal": 0.5**0.5, "rate": np.pi / 2, "curvature": np.pi**2 / 4}
    >>> published = jk.routing.PublishedBounds(0.5, 40, **cosine, radius=1.0, largest_step=0.05)
    >>> round(float(np.exp(published.log_trajectory_bound(1.0))) / 1e9, 1)
    3.3
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), Theorems 2, 6 and 8.
    """

    t_min: float
    num_steps: int
    signal: float
    rate: float
    curvature: float
    radius: float
    num_experts: int = 2
    error: float = 0.0
    largest_step: float | None = None

    def __post_init__(self) -> None:
        _checks.scalar("t_min", self.t_min, above=0.0, below=1.0)
        _checks.count("num_steps", self.num_steps)
        _checks.scalar("signal", self.signal, above=0.0, below=1.0)
        _checks.scalar("rate", self.rate, above=0.0)
        _checks.scalar("curvature", self.curvature, at_least=0.0)
        _checks.scalar("radius", self.radius, above=0.0)
        _checks.count("num_experts", self.num_experts)
        _checks.scalar("error", self.error, at_least=0.0)
        if self.largest_step is not None:
            least = (1.0 - self.t_min) / self.num_steps
            _checks.scalar("largest_step", self.largest_step, at_least=least)

    @property
    def step(self) -> float:
        """h = h_max, at least (1 - tau) / n."""
        if self.largest_step is not None:
            return self.largest_step
        return (1.0 - self.t_min) / self.num_steps

    @property
    def noise_squared(self) -> float:
        """s(tau)^2 = 1 - a(tau)^2."""
        return 1.0 - self.signal**2

    @property
    def lipschitz(self) -> float:
        """L = (M_1 a / s^2) (1 + R^2 / s^2), of the velocity on [tau, 1] (Corollary 1)."""
        s2 = self.noise_squared
        return self.rate * self.signal / s2 * (1.0 + self.radius**2 / s2)

    @property
    def growth(self) -> float:
        """C_v = max(L, M_1 R / s^2), with |v| <= C_v (1 + |x|) (Proposition 4)."""
        return max(self.lipschitz, self.rate * self.radius / self.noise_squared)

    @property
    def expert_growth(self) -> float:
        """C_v + (M_1 / s^2) eps, the same of inexact experts (Corollary 4)."""
        return self.growth + self.rate / self.noise_squared * self.error

    @property
    def time_growth(self) -> float:
        """A of |d_t v| <= A |x| + B: a M_2/s^2 + M_1^2 (1 + a^2) (1 + R^2/s^2) / s^4."""
        s2 = self.noise_squared
        bent = self.rate**2 * (1.0 + self.signal**2) / s2**2
        return self.signal * self.curvature / s2 + bent * (1.0 + self.radius**2 / s2)

    @property
    def time_offset(self) -> float:
        """B: R (M_2/s^2 + 2 a M_1^2/s^4) + 2 a M_1^2 R^3 / s^6 (Corollary 2)."""
        s2 = self.noise_squared
        bent = self.signal * self.rate**2 / s2**2
        skew = _SKEW * bent * self.radius**3 / s2
        return self.radius * (self.curvature / s2 + 2.0 * bent) + skew

    @property
    def field_error(self) -> float:
        """C_NN = (M_1/s^2) max(N a, N R + 1): the mean velocity is wrong by C_NN eps (1 + |x|)."""
        count = self.num_experts
        size = max(count * self.signal, count * self.radius + 1.0)
        return self.rate / self.noise_squared * size

    @property
    def log_moment(self) -> float:
        """log M = T (3 C + 2 h C^2), with E |x_k|^2 <= M (1 + |x_0|^2) (Lemmas 5 and 6)."""
        growth = self.expert_growth
        return (1.0 - self.t_min) * (3.0 * growth + 2.0 * self.step * growth**2)

    @property
    def log_noise(self) -> float:
        """log C_noise = log(2 C^2 (1 + M)), of the noise h^2 C_noise (1 + |x_0|^2) (Lemma 8)."""
        logs = np.log(2.0 * self.expert_growth**2) + np.logaddexp(0.0, self.log_moment)
        return float(logs)

    @property
    def exponent(self) -> float:
        """K T, with K = K_1 + K_L + h K_1 K_L + K_NN (Theorem 6)."""
        h = self.step
        split = 2.0 + h
        twice = 2.0 * self.lipschitz + h * self.lipschitz**2
        network = 2.0 * (1.0 + h) ** 2 * (self.field_error * self.error) ** 2
        return (1.0 - self.t_min) * (split + twice + h * split * twice + network)

    def local_error(self, norm: float) -> float:
        """Evaluate C_T, with a local error of at most C_T h^2 (Lemma 7).

            C_T = ( A rho + B + L C_v (1 + rho) ) / 2,      rho = |x_0| + R

        **Arguments:**

        - `norm`: |x_0| >= 0, of the initial noise.

        **Returns:** C_T.
        """
        reach = norm + self.radius
        moved = self.lipschitz * self.growth * (1.0 + reach)
        return 0.5 * (self.time_growth * reach + self.time_offset + moved)

    def log_trajectory_bound(self, norm: float) -> float:
        """Evaluate the log of the bound on E |x_k - x(t_k)|^2 for every k (Theorems 2 and 6).

            exp(K T) ( C_app eps^2 + C_disc / n )
            C_app  = 2 T (1 + h)^2 C_NN^2 (1 + |x_0| + R)^2
            C_disc = T^2 ( C_noise (1 + |x_0|^2) + (1 + h) h C_T^2 )

        **Arguments:**

        - `norm`: |x_0| >= 0, of the initial noise; or its root mean square, for the mean over it.

        **Returns:** the log.
        """
        span = 1.0 - self.t_min
        h = self.step
        drawn = self.log_noise + np.log1p(norm**2)
        steps = np.log((1.0 + h) * h * self.local_error(norm) ** 2)
        total = 2.0 * np.log(span) + np.logaddexp(drawn, steps) - np.log(self.num_steps)
        if self.error > 0:
            wrong = (1.0 + h) * self.field_error * (1.0 + norm + self.radius) * self.error
            total = np.logaddexp(total, np.log(2.0 * span * wrong**2))
        return float(self.exponent + total)

    def log_wasserstein_bound(self, dim: int) -> float:
        """Evaluate the log of the bound on the squared W2 to p_tau (Theorems 1 and 8).

        That of Theorem 6 for standard normal initial noise, of root mean square norm sqrt(d).

        **Arguments:**

        - `dim`: number d of dimensions.

        **Returns:** the log.
        """
        return self.log_trajectory_bound(np.sqrt(_checks.count("dim", dim)))
