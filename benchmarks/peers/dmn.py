"""DMN: the weights of a multistep method on assumed errors of the network, minimised.

A step of order p from lambda = log(a/s) integrates exp(lambda) times the polynomial through p
denoised points. With the assumed error w(lambda) of a denoised point the objective is

    sum over points of  | sum over steps of  J w |,

J the weight of a point in a step; the first three steps enter by the root of the sum of their
squares. Orders rise at the start and fall at the end.

Source: Xue et al., "Accelerating Diffusion Sampling with Optimized Time Steps" (2024), equation
(12), https://arxiv.org/abs/2402.17376; what is summed how, and the two starts, as in its code.
"""

import math
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import LinearConstraint, minimize

import jaxkernels as jk

from .found import Found, from_sigmas

# steps whose weights are not summed over steps
_FIRST = 3


def search(process: jk.AbstractProcess, num_steps: int, t_min: float, order: int) -> Found:
    """The better of the optima from two starts: uniform in lambda, and in time."""
    makers = (jk.schedules.log_snr, jk.schedules.uniform)
    starts = [
        -np.log(np.asarray(make(process, num_steps, t_min).sigmas(process))) for make in makers
    ]
    found = [minimum(np.asarray(start, np.float64), order) for start in starts]
    levels = min(found, key=lambda levels: objective(levels, order))
    return Found(from_sigmas(process, np.exp(-levels), t_min), 0)


def minimum(levels: Float[np.ndarray, " points"], order: int) -> Float[np.ndarray, " points"]:
    """The minimum by SciPy's trust region from a start whose ends are fixed."""
    count = len(levels) - 2
    if not count:
        return levels

    def value(inner: np.ndarray) -> float:
        return objective(np.concatenate([levels[:1], inner, levels[-1:]]), order)

    differences = np.eye(count + 1, count) - np.eye(count + 1, count, -1)
    lower = np.zeros(count + 1)
    lower[0] = levels[0]
    lower[-1] -= levels[-1]
    bounds: Any = (lower, np.full(count + 1, np.inf))
    ordered = LinearConstraint(differences, *bounds)
    with warnings.catch_warnings():
        # where the objective is a sum of absolute values, its slope can stay as it is
        warnings.simplefilter("ignore")
        found = minimize(value, levels[1:-1], method="trust-constr", constraints=[ordered])
    inner = np.sort(found.x)
    better = value(inner) < value(levels[1:-1]) and np.all(np.diff(inner) > 0)
    return np.concatenate([levels[:1], inner, levels[-1:]]) if better else levels


def objective(levels: Float[np.ndarray, " points"], order: int) -> float:
    """The objective of increasing lambda, for the error s^2 / a of a denoised point."""
    num_steps = len(levels) - 1
    a = 1.0 / np.sqrt(1.0 + np.exp(-2.0 * levels))
    error = 1.0 / (1.0 + np.exp(2.0 * levels)) / a
    signed = np.zeros(num_steps)
    total = 0.0
    for s in range(num_steps):
        used = min(order, s + 1, num_steps - s)
        rows = np.arange(s + 1 - used, s + 1)
        terms = error[rows] * weights(levels[rows], levels[s + 1])
        if used == 1:
            total += abs(terms[0])
        elif s < _FIRST:
            total += np.linalg.norm(terms)
        else:
            signed[rows] += terms
    return float(total + np.abs(signed).sum())


def weights(nodes: Float[np.ndarray, " p"], end: float) -> Float[np.ndarray, " p"]:
    """Integrals of exp(lambda) l_i(lambda) from the last node to the end, l_i Lagrange's basis."""
    start = nodes[-1]
    length = end - start
    # int_0^h exp(u) u^m du = exp(h) h^m - m (that of m - 1)
    moments = [math.expm1(length)]
    for m in range(1, len(nodes)):
        moments.append(math.exp(length) * length**m - m * moments[-1])
    powers = np.vander(nodes - start, increasing=True).T
    return math.exp(start) * np.linalg.solve(powers, np.array(moments))
