"""Orders of the distribution of reverse-SDE samplers on data that are not Gaussian."""

import jax
import numpy as np
import pytest
import transfer_operator
from jaxtyping import Float

import jaxkernels as jk
from jaxkernels.samplers import SAMPLERS

PROCESS = jk.OU(t_max=2.0)
# modes at -CENTER and CENTER, both of this variance
CENTER = 0.6
VARIANCE = 0.36
STEPS = (64, 128)
ORDERS = {
    "euler_maruyama": 1,
    "exponential_integrator": 1,
    "exact_mean": 1,
    "rem": 2,
    "rei": 2,
    "second_order": 2,
    "tweedie": 2,
}
CASES = [
    pytest.param(name, order, marks=pytest.mark.slow)
    if SAMPLERS[name].randomised
    else (name, order)
    for name, order in ORDERS.items()
]


def _moments(center: float, variance: float) -> Float[np.ndarray, " 2"]:
    """E x^2 and E x^4 of the two modes."""
    fourth = center**4 + 6.0 * center**2 * variance + 3.0 * variance**2
    return np.array([center**2 + variance, fourth])


def _found(name: str, steps: int, center: float) -> Float[np.ndarray, " 2"]:
    """The same of samples, from the exact marginal at the start."""
    signal = np.exp(-0.5 * 2.0)
    noised = 1.0 - signal**2 * (1.0 - VARIANCE)
    x = transfer_operator.GRID
    modes = [np.exp(-0.5 * (x - m) ** 2 / noised) for m in (-signal * center, signal * center)]
    density = sum(modes) / np.sqrt(8.0 * np.pi * noised)
    two = jk.GaussianMixture([0.5, 0.5], [[-center], [center]], [VARIANCE, VARIANCE])
    powers = np.stack([x**2, x**4], 1)
    with jax.enable_x64(True):
        return transfer_operator.expectations(name, steps, two.denoiser(PROCESS), density, powers)


@pytest.mark.parametrize("name", ["euler_maruyama", "rem", "tweedie"])
def test_quadrature_on_a_gaussian(name: str) -> None:
    """Where the modes coincide E x^2 is that of the recurrence of means and variances."""
    run = (jk.Gaussian(0.0, [VARIANCE]), PROCESS, name)
    schedule = jk.Schedule(np.linspace(2.0, 0.0, 7), 1.0)
    with jax.enable_x64(True):
        found = jk.evaluate_schedule(*run, schedule, initialization="marginal")
    expected = float(np.asarray(found.variance)[0])
    assert _found(name, 6, 0.0)[0] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("name", "order"), CASES)
def test_order_of_the_fourth_moment(name: str, order: int) -> None:
    """The error of E x^4 of two modes falls with the order of the scheme, within a tenth.

    By quadrature, so that no noise hides it. For E x^2, where the error of "tweedie" is 8e-6 at
    128 steps, within a fifth.
    """
    exact = _moments(CENTER, VARIANCE)
    errors = np.abs([_found(name, steps, CENTER) - exact for steps in STEPS])
    second, fourth = np.log2(errors[0] / errors[1])
    assert fourth == pytest.approx(order, abs=0.1)
    assert second == pytest.approx(order, abs=0.2)
