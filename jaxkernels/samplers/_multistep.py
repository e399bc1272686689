"""Linear multistep samplers: what a network predicted before is extrapolated over the step.

In x = a x0 + s eps both parts of the prediction vary slowly, and the flow is an integral of either:

    d(x/s) = x0 d(a/s),        d(x/a) = eps d(sigma)

A multistep sampler puts the polynomial through this prediction and those before into the integral.
In Newton's form, of divided differences, every order is one more term: the first is DDIM, and a
term that has too few predictions before it is left out. The samplers differ in what they
extrapolate, in the coordinate of which it is a polynomial, and in how they integrate.
"""

import abc
import math
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from .._numerics import phis, power, safe_divide
from ..prediction import Predict, Prediction
from ..schedules import Step
from ._base import AbstractSampler, History, Noise, Process, X
from ._ddim import level_ratio


class AbstractMultistep(AbstractSampler):
    """A sampler that extrapolates a part v of its predictions, with one evaluation per step.

        x' = a' x0 + s' q eps + a' sum_m I_m v[t_k, ..., t_(k-m)] + s' sqrt(1 - q^2) z

    with m from 1 to `history_steps`, v[...] the divided differences, I_m the integrals of Newton's
    polynomials over the step, and q = (sigma'/sigma)^(alpha^2) as in `DDIM`.
    """

    nfe_per_step: ClassVar[int] = 1
    sigma_only: ClassVar[bool] = True

    def init_history(self, x: X) -> History:
        # in place of the predictions before the first
        return (jnp.zeros_like(x),) * self.history_steps

    @abc.abstractmethod
    def extrapolated(self, prediction: Prediction) -> Array:
        """Return the part of a prediction that is extrapolated.

        **Arguments:**

        - `prediction`: at the start of a step.

        **Returns:** an array in the shape of x.
        """

    @abc.abstractmethod
    def nodes(self, process: Process, step: Step, usable: Sequence[Array]) -> list[Array]:
        """Measure the end of a step and the earlier predictions from its start.

        **Arguments:**

        - `process`: the forward process.
        - `step`: the step.
        - `usable`: whether there is a prediction, of finite noise level, for every earlier time.

        **Returns:** coordinates of the end and of the earlier times, all finite; 0 for those that
        are not usable.
        """

    @abc.abstractmethod
    def integrals(self, process: Process, step: Step, nodes: Sequence[Array]) -> list[Array]:
        """Integrate Newton's polynomials over a step.

        **Arguments:**

        - `process`: the forward process.
        - `step`: the step.
        - `nodes`: of this step.

        **Returns:** I_1, ..., in units of x / a.
        """

    def step_order(self, process: Process, step: Step, known: Array) -> Array:
        """Return the order of a step, the number of predictions that it takes into account.

        **Arguments:**

        - `process`: the forward process.
        - `step`: the step.
        - `known`: number of usable predictions before this one.

        **Returns:** an integer >= 1.
        """
        del process, step
        return known + 1

    def step(
        self, predict: Predict, noise: Noise, process: Process, step: Step, x: X, history: History
    ) -> tuple[X, History]:
        p = predict(x, step.time)
        value = self.extrapolated(p)
        usable = usable_predictions(process, step, self.history_steps)
        nodes = self.nodes(process, step, usable)
        differences = divided_differences([value, *history], nodes[1:])
        order = self.step_order(process, step, count_usable(usable))
        a = process.signal(step.next_time)
        s = process.noise(step.next_time)
        after = a * p.x0
        if self.stochastic:
            ratio = level_ratio(process, step.time, step.next_time)
            keep = power(ratio, step.stochasticity_squared)
            after = after + s * keep * p.eps + noise(s**2 * (1.0 - keep**2))
        else:
            after = after + s * p.eps
        for m, integral in enumerate(self.integrals(process, step, nodes), 1):
            after = after + jnp.where(m < order, a * integral, 0.0) * differences[m]
        return after, (value, *history)[: self.history_steps]


def usable_predictions(process: Process, step: Step, count: int) -> list[Array]:
    """Whether each earlier time of a step has a prediction, of finite noise level."""
    if not count:
        return []
    earlier = jnp.stack([step.earlier_times[j] for j in range(count)])
    finite = process.signal(earlier) > 0
    return [(step.completed > j) & finite[j] for j in range(count)]


def count_usable(usable: Sequence[Array]) -> Array:
    """How many earlier predictions are usable: only the first time may have no signal."""
    return sum((known.astype(int) for known in usable), start=jnp.zeros((), int))


def divided_differences(values: Sequence[Array], nodes: Sequence[Array]) -> list[Array]:
    """v[0], v[0, 1], ... of values at 0 and at `nodes`; 0 where two nodes are equal."""
    places = [0.0, *nodes]
    column = list(values)
    found = [column[0]]
    for m in range(1, len(values)):
        gaps = [places[i] - places[i + m] for i in range(len(column) - 1)]
        column = [
            safe_divide(jnp.ones_like(gap), gap) * (column[i] - column[i + 1])
            for i, gap in enumerate(gaps)
        ]
        found.append(column[0])
    return found


def newton_integrals(moments: Sequence[Array], nodes: Sequence[Array]) -> list[Array]:
    """Integrals of r, r (r - r_1), r (r - r_1) (r - r_2), ... from those of 1, r, r^2, ..."""
    # coefficients of the polynomial, the lowest power first
    polynomial = [0.0, 1.0]
    found = []
    for m in range(1, len(moments)):
        found.append(sum(c * moment for c, moment in zip(polynomial, moments, strict=False)))
        if m < len(moments) - 1:
            raised = [0.0, *polynomial]
            polynomial = [
                high - nodes[m - 1] * low
                for high, low in zip(raised, [*polynomial, 0.0], strict=True)
            ]
    return found


def log_nodes(process: Process, step: Step, usable: Sequence[Array]) -> list[Array]:
    """l = log(a/s) at the end and at the earlier times of a step, less that at its start."""
    earlier = [step.earlier_times[j] for j in range(len(usable))]
    # those that are left out may be infinite
    here, end, *levels = 0.5 * process.log_snr(jnp.stack([step.time, step.next_time, *earlier]))
    finite = jnp.isfinite(end) & jnp.isfinite(here)
    known = [finite, *usable]
    fill = [1.0, *[0.0] * len(usable)]
    levels = zip(known, [end, *levels], fill, strict=True)
    return [jnp.where(use, level - here, default) for use, level, default in levels]


def exponential_moments(rate: Array | float, length: Array, highest: int) -> list[Array]:
    """int_0^h e^(c (h - r)) r^m dr for m = 0, ..., highest."""
    functions = phis(highest + 1, rate * length)
    return [math.factorial(m) * length ** (m + 1) * functions[m] for m in range(highest + 1)]
