"""How regular the flow of data in a ball is, at one time of any process.

With a = `signal`, s = `noise`, rates marked by ', and m = E[X_0 | x], Cov = Cov(X_0 | x), the
velocity of the flow is v = c x + b m with

    c = s'/s,     b = a' - a s'/s,     grad m = (a / s^2) Cov,     0 <= Cov <= R^2 I,         (1)

for data of norm at most R. Along the flow the two parts change by

    d m / dt  = (b / s^2) ( Cov (x + a m) - a Cov(X_0, |X_0|^2) ),                             (2)
    dv / dt   = (s''/s) x + (a'' - a s''/s) m + b dm/dt,                                       (3)

where |Cov(X_0, |X_0|^2)| <= (8/27) R^3, attained by two atoms, and

    |x(t)| <= s(t) ( |x_T| / s_T + R (a(t)/s(t) - a_T/s_T) ).                                  (4)

For a variance-preserving process of signal 0 at T (4) is s |x_T| + a R, and c = -a b.

Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via Velocity
Field Decomposition" (manuscript), sections 3 and 4, which has these constants for the latter
processes, with 2 in place of 8/27, and with two-sided Lipschitz constants only.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .. import _checks
from .._derivatives import pointwise_derivatives
from .._numerics import larger, smaller
from .._types import AnyArray, Numbers
from ..processes import AbstractProcess, check_process

COVARIANCE_FACTOR = 8.0 / 27.0
"""The largest |Cov(X_0, |X_0|^2)| of data in the unit ball."""


class Regularity(eqx.Module):
    """Bounds on the flow of data of norm at most R, at given times of a process.

    **Arguments:**

    - `process`: the forward process.
    - `t`: times of any shape, with noise > 0.
    - `radius`: R > 0, in units of the data.

    **Raises:** ValueError for a radius that is not positive.

    **Example:**

    ```python
    >>> flow = jk.routing.Regularity(jk.FlowMatching(), 0.5, radius=1.0)
    >>> flow.velocity_lipschitz.item(), flow.velocity_growth.item()
    (2.0, 2.0)
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), propositions 2 to 5, for any process, and sharper.
    """

    signal: Float[Array, "*times"]
    """a."""
    noise: Float[Array, "*times"]
    """s."""
    signal_rate: Float[Array, "*times"]
    """a'."""
    noise_rate: Float[Array, "*times"]
    """s'."""
    signal_curvature: Float[Array, "*times"]
    """a''."""
    noise_curvature: Float[Array, "*times"]
    """s''."""
    radius: Float[AnyArray, ""]

    def __init__(self, process: AbstractProcess, t: Float[ArrayLike, "*times"], radius: Numbers):
        process = check_process(process)
        t = jnp.asarray(t, float)
        self.radius = _checks.parameter("radius", radius, above=0.0)
        signal = pointwise_derivatives(process.signal, t)
        noise = pointwise_derivatives(process.noise, t)
        self.signal, self.signal_rate, self.signal_curvature = signal
        self.noise, self.noise_rate, self.noise_curvature = noise

    @property
    def linear(self) -> Float[Array, "*times"]:
        """c = s'/s, the factor of x in the velocity, >= 0."""
        return self.noise_rate / self.noise

    @property
    def denoised(self) -> Float[Array, "*times"]:
        """|b| = |a' - a s'/s|, the size of the factor of the denoised point in the velocity."""
        return jnp.abs(self.signal_rate - self.signal * self.linear)

    @property
    def denoiser_lipschitz(self) -> Float[Array, "*times"]:
        """A bound a R^2 / s^2 on the norm of grad m."""
        return self.signal * self.radius**2 / self.noise**2

    @property
    def score_lipschitz(self) -> Float[Array, "*times"]:
        """A bound max(1/s^2, a^2 R^2 / s^4 - 1/s^2) on the norm of the Hessian of log p_t."""
        inverse = 1.0 / self.noise**2
        return larger(inverse, self.signal * self.denoiser_lipschitz * inverse - inverse)

    @property
    def velocity_growth(self) -> Float[Array, "*times"]:
        """A bound |b| a R^2 / s^2 - c on the eigenvalues of -grad v: growth in reverse time."""
        return self.denoised * self.denoiser_lipschitz - self.linear

    @property
    def velocity_lipschitz(self) -> Float[Array, "*times"]:
        """A bound on the norm of grad v, whose eigenvalues lie in [-growth, c]."""
        return larger(jnp.abs(self.linear), jnp.abs(self.velocity_growth))

    def velocity_size(self, norm: Float[ArrayLike, "*#times"]) -> Float[Array, "*times"]:
        """Bound |v| and every |v_i| at a point.

            |c| |x| + |b| R

        **Arguments:**

        - `norm`: |x| >= 0.

        **Returns:** the bound.
        """
        return jnp.abs(self.linear) * norm + self.denoised * self.radius

    def mean_rate(self, norm: Float[ArrayLike, "*#times"]) -> Float[Array, "*times"]:
        """Bound the derivative of the denoised point along the flow.

            (|b| / s^2) ( R^2 (|x| + a R) + (8/27) a R^3 )

        **Arguments:**

        - `norm`: |x| >= 0.

        **Returns:** the bound on |dm/dt|.
        """
        radius = self.radius
        pulled = radius**2 * (norm + self.signal * radius)
        skew = COVARIANCE_FACTOR * self.signal * radius**3
        return self.denoised / self.noise**2 * (pulled + skew)

    def mean_rate_at_rest(self, norm: Float[ArrayLike, "*#times"]) -> Float[Array, "*times"]:
        """Bound the derivative of the denoised point in time at a fixed point.

            ( R^2 |b - a c| |x| + (8/27) a |b| R^3 ) / s^2

        It holds for every expert's denoised point too.

        **Arguments:**

        - `norm`: |x| >= 0.

        **Returns:** the bound on |d_t m|.
        """
        pulled = self.denoised + self.signal * self.linear
        skew = COVARIANCE_FACTOR * self.signal * self.denoised * self.radius
        return jnp.asarray(self.radius) ** 2 * (jnp.abs(pulled) * norm + skew) / self.noise**2

    def velocity_rate(self, norm: Float[ArrayLike, "*#times"]) -> Float[Array, "*times"]:
        """Bound the acceleration along the flow.

            |s''/s| |x| + |a'' - a s''/s| R + |b| (bound on |dm/dt|)

        **Arguments:**

        - `norm`: |x| >= 0.

        **Returns:** the bound on |dv/dt|.
        """
        bend = self.noise_curvature / self.noise
        other = jnp.abs(self.signal_curvature - self.signal * bend)
        moved = self.denoised * self.mean_rate(norm)
        return jnp.abs(bend) * norm + other * self.radius + moved

    def field_error(
        self, num_experts: int, routing_error: Numbers, expert_error: Numbers
    ) -> Float[Array, "*times"]:
        """Bound the error of the mean velocity of N inexact experts with an inexact router.

            |b| ( min(2, 2 floor(N/2) eps_routing) R + eps_expert )

        It does not grow with x, as errors of weights add up to 0.

        **Arguments:**

        - `num_experts`: number N >= 1 of experts.
        - `routing_error`: largest error of any routing weight, in [0, 1].
        - `expert_error`: largest error of any expert's denoised point, >= 0, in units of the data.

        **Returns:** the bound.
        """
        share = smaller(2.0, 2.0 * (num_experts // 2) * jnp.asarray(routing_error))
        return self.denoised * (share * self.radius + jnp.asarray(expert_error))


def trajectory_norm(
    process: AbstractProcess,
    t: Float[ArrayLike, "*times"],
    t_start: Float[ArrayLike, ""],
    norm: Numbers,
    radius: Numbers,
) -> Float[Array, "*times"]:
    """Bound |x(t)| along the flow of data of norm at most R.

        s(t) |x_T| / s_T + R (a(t) - a_T s(t) / s_T)

    Attained by data at one point, in whose direction x_T points.

    **Arguments:**

    - `process`: the forward process.
    - `t`: times of any shape.
    - `t_start`: T >= t, where the trajectory starts.
    - `norm`: |x_T| >= 0, in units of the data.
    - `radius`: R > 0, in units of the data.

    **Returns:** the bound at every time.

    **Example:**

    ```python
    >>> jk.routing.trajectory_norm(jk.FlowMatching(), 0.25, 1.0, norm=2.0, radius=1.0).item()
    1.25
    ```

    Source: "Wasserstein Convergence of ODE-Based Samplers in Decentralized Diffusion Model via
    Velocity Field Decomposition" (manuscript), Theorem 4, for any process.
    """
    share = process.noise(t) / process.noise(t_start)
    rest = process.signal(t) - process.signal(t_start) * share
    return share * jnp.asarray(norm) + jnp.asarray(radius) * rest
