"""Second-order methods for the reverse SDE, by derivatives of the score."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import matmul, spectral_function
from .._numerics import phi, safe_sqrt
from ..prediction import Predict
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, Times, X
from ._unit_diffusion import UnitDiffusion


class AbstractDifferentiated(AbstractSampler):
    """A step of the reverse SDE that evaluates and differentiates the network at its start."""

    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    reverse_sde_only: ClassVar[bool] = True

    def evaluation_times(self, process: Process, step: Step) -> tuple[Times, ...]:
        return (jnp.asarray(step.time),) * self.nfe_per_step


class SecondOrder(AbstractDifferentiated):
    """Second-order method for the reverse SDE (SO), with the Hessian of the log-density.

        X' = X + h (r X + score) + r^2 h^2 phi_2(h L) X + N(0, h phi_1(2 h L)),     L = r I + H

    with H the Jacobian of the score and phi_1(z) = (e^z - 1) / z, phi_2(z) = (e^z - 1 - z) / z^2.
    X, tau, h and r are those of `REM`. It is the solution of the SDE whose drift is expanded to
    first order in X and tau, after the identity d_tau score = Lap score / 2 + score / 2 + H drift
    of the Fokker-Planck equation has removed all third derivatives.

    A step forms the whole Jacobian of one sample (its symmetric part is used), with as many
    products as the data have dimensions, and counts it as one evaluation: it is for exact scores
    and few dimensions. `SecondOrder1` needs one product. Stochasticity must be 1.

    **Example:**

    ```python
    >>> jk.SecondOrder().nfe_per_step
    2
    ```

    Source: Yu and Yu, "Advancing Wasserstein Convergence Analysis of Score-Based Models: Insights
    from Discretization and Second-Order Acceleration" (2025), in a form without third derivatives.
    """

    forms_jacobian: ClassVar[bool] = True

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        sde = UnitDiffusion(process)
        t = step.time
        u = step.next_time
        h = sde.time(t) - sde.time(u)
        x = x / sde.scale(t)
        score, hessian = score_and_hessian(sde, predict, x, t)
        scaled = h * (sde.rate * jnp.eye(x.size, dtype=x.dtype) + hessian)
        curved = multiply(spectral_function(partial(phi, 2), scaled), x)
        drift = h * (sde.rate * x + score) + (sde.rate * h) ** 2 * curved
        injected = multiply(spectral_function(_noise_factor, scaled), noise(h))
        return sde.scale(u) * (x + drift + injected), history


class SecondOrder1(AbstractDifferentiated):
    """`SecondOrder` to first order in h L, by one product with the Jacobian of the score.

        X' = X + h (r X + score) + r^2 h^2 X / 2 + dW + L (r^2 h^3 X / 6 + I)

    with dW the increment of the Brownian motion over the step and I the integral over the step of
    its own part so far, Var dW = h, Cov(dW, I) = h^2 / 2, Var I = h^3 / 3. It needs no matrix and
    no symmetry: for networks. Stochasticity must be 1.

    **Example:**

    ```python
    >>> jk.SecondOrder1().nfe_per_step
    2
    ```

    Source: as for `SecondOrder`, expanded.
    """

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        sde = UnitDiffusion(process)
        t = step.time
        u = step.next_time
        h = sde.time(t) - sde.time(u)
        x = x / sde.scale(t)
        increment = noise(h)
        integral = 0.5 * h * increment + noise(h**3 / 12.0)
        squared = (sde.rate * h) ** 2
        direction = squared * h / 6.0 * x + integral
        score, product = jax.jvp(lambda x: sde.score(predict, x, t), (x,), (direction,))
        x = x + h * (sde.rate * x + score) + 0.5 * squared * x + increment
        return sde.scale(u) * (x + sde.rate * direction + product), history


def score_and_hessian(
    sde: UnitDiffusion, predict: Predict, x: X, t: Times
) -> tuple[X, Float[Array, "size size"]]:
    """The score at X = x, and its Jacobian."""
    score, derivative = jax.linearize(lambda x: sde.score(predict, x, t), x)
    return score, jacobian(derivative, x)


def jacobian(derivative: Callable[[X], X], x: X) -> Float[Array, "size size"]:
    """The matrix of a linear map of arrays in the shape of x, flattened."""
    units = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)
    return jax.vmap(derivative)(units).reshape(x.size, x.size).T


def multiply(matrix: Float[Array, "size size"], x: X) -> X:
    """The product with an array of any shape, flattened."""
    return matmul(matrix, x.ravel()).reshape(x.shape)


def _noise_factor(z: Array) -> Array:
    """sqrt(phi_1(2 z))."""
    return safe_sqrt(phi(1, 2.0 * z))
