"""The bound in continuous time at every scale of the data, against adaptive quadrature."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from scipy import integrate

import jaxkernels as jk
from jaxkernels import bounds

# of ranges of sigma^2; that a table's rates jump does not matter
PROCESSES = {
    "vp": jk.VP(),
    "ve": jk.VE(),
    "edm": jk.EDM(),
    "flow": jk.FlowMatching().sub_range(0.999),
    "discrete": jk.DiscreteVP.scaled_linear(),
}
CASES = 8


def _signal(name: str, w: Any) -> Any:
    if name in ("ve", "edm"):
        return np.ones_like(w)
    return 1.0 / (1.0 + np.sqrt(w)) if name == "flow" else 1.0 / np.sqrt(1.0 + w)


def _log_integral(log: Callable[[Any, Any], Any], first: float, span: float) -> float:
    """log int e^log(w, x) dx over w = first + x, x in [0, span], in pieces short at both ends."""
    rise = 0.5 * np.exp(np.linspace(-65.0, 0.0, 120))
    fall = 1.0 - 0.5 * np.exp(np.linspace(0.0, -30.0, 60))[1:]
    edges = span * np.concatenate([[0.0], rise, fall, [1.0]])
    top = np.max(log(first + edges, edges))
    pieces = [
        integrate.quad(
            lambda x: np.exp(log(first + x, x) - top), *ends,
            epsabs=1e-13 * span, epsrel=1e-11, limit=200, full_output=True,
        )[0]
        for ends in zip(edges[:-1], edges[1:], strict=True)
    ]  # fmt: skip
    return float(top + np.log(np.sum(pieces)))


@pytest.mark.parametrize("kind", ["gaussian", "bounded", "not log-concave"])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_bound_is_its_integral_at_any_scale(name: str, kind: str) -> None:
    """int c a(t_min) a exp(int psi dw) rms dw, psi in closed form; variances from 1e-9 to 1e3."""
    process = PROCESSES[name]
    make: Any = {
        "gaussian": lambda size: bounds.GaussianCurvature(size, size),
        "bounded": bounds.BoundedSupport,
        "not log-concave": lambda size: bounds.CurvatureClass(-size, size),
    }[kind]

    @jax.jit
    def bound(size, alpha, t_min, power):
        accumulation = bounds.continuous_accumulation(
            make(size), process, stochasticity=alpha, t_min=t_min
        )
        return accumulation.coherent(lambda t: (1.0 + process.sigma(t) ** 2) ** power).value

    rng = np.random.default_rng([11, len(name), len(kind)])
    last = float(process.sigma(process.t_max)) ** 2
    for _ in range(CASES):
        alpha = float(rng.choice([0.0, 1.0, 3.0, 10.0]))
        c = 0.5 * (1.0 + alpha**2)
        power = float(rng.choice([-0.5, 0.0, 0.3]))
        level = 0.0 if kind == "gaussian" else last * 10.0 ** -rng.uniform(1.0, 10.0)
        t_min = process.time_at_sigma(np.sqrt(level))
        first = float(process.sigma(t_min)) ** 2
        size = {
            "gaussian": 10.0 ** rng.uniform(-9.0, 3.0),
            # up to gains of e^400
            "bounded": np.sqrt(10.0 ** rng.uniform(-2.0, 2.6) * max(first, 1e-300) / c),
            "not log-concave": (1.0 - 10.0 ** -rng.uniform(0.1, 3.0)) / last,
        }[kind]

        def log(w, x, size=size, c=c, first=first, power=power):
            a = _signal(name, w) * _signal(name, first)
            grown = {
                "gaussian": lambda: -np.log1p(x / (size + first)),
                "bounded": lambda: size**2 * x / (first * w) - np.log1p(x / first),
                "not log-concave": lambda: np.log1p(-size * first) - np.log1p(-size * w),
            }[kind]()
            return np.log(c * a) + c * grown + power * np.log1p(w)

        expected = _log_integral(log, first, last - first)
        difference = float(np.log(bound(size, alpha, t_min, power))) - expected
        assert -1e-8 < difference < 1e-3, (size, alpha, first, power)


@pytest.mark.parametrize(
    ("process", "variance", "alpha"),
    [(jk.VE(), 1e-6, 3.0), (jk.VE(), 1e-7, 4.0), (jk.VE(), 1e-6, 50.0)],
)
def test_small_variances_are_resolved(
    process: jk.AbstractProcess, variance: float, alpha: float
) -> None:
    """c lambda / (c - 1) (1 - (1 + w/lambda)^(1 - c)), c = (1 + alpha^2) / 2."""
    target = jk.Gaussian(0.0, [variance])
    accumulation = bounds.continuous_accumulation(target, process, stochasticity=alpha)
    c = 0.5 * (1.0 + alpha**2)
    expected = c * variance / (c - 1.0)
    assert float(accumulation.coherent(1.0).value) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("radius", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("process", [jk.OU(), jk.VP()])
def test_bounded_data_need_noise(process: jk.AbstractProcess, radius: float) -> None:
    accumulation = bounds.continuous_accumulation(bounds.BoundedSupport(radius), process)
    bound = accumulation.coherent(0.1)
    assert bound.value == np.inf
    assert "the noise level is 0" in bound.reason
    # without errors nothing is moved
    assert accumulation.coherent(0.0).value == 0.0


def test_what_overflows_says_so() -> None:
    accumulation = bounds.continuous_accumulation(bounds.BoundedSupport(1.0), jk.OU(), t_min=1e-4)
    bound = accumulation.coherent(0.1)
    assert bound.value == np.inf
    assert "exceeds the largest number" in bound.reason


@pytest.mark.parametrize("process", [jk.VP(), jk.EDM(), jk.DiscreteVP.scaled_linear()])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_gains_below_the_level_where_nothing_is_known(
    process: jk.AbstractProcess, alpha: float
) -> None:
    """c g^2 / a (1 + m sigma^2)^-c, up to sigma^2 = 1 / |m| and infinite from there on."""
    accumulation = bounds.continuous_accumulation(
        bounds.CurvatureClass(-0.3, 3.0), process, stochasticity=alpha
    )
    t = np.asarray(accumulation.times)
    left = 1.0 - 0.3 * np.asarray(process.sigma(t)) ** 2
    known = left > 2e-10
    c = 0.5 * (1.0 + alpha**2)
    rate = c * np.asarray(process.diffusion_squared(t)) / np.asarray(process.signal(t))
    gain = np.asarray(accumulation.gain)
    exact = rate[known] * left[known] ** -c
    # the rounding of sigma^2 is a larger share of what is left
    np.testing.assert_array_less(np.abs(gain[known] / exact - 1.0), 1e-9 + 1e-14 / left[known])
    assert np.all(np.isinf(gain[left < 0.5e-10]))
    assert accumulation.coherent(1.0).reason != ""
    # errors at small noise only have a finite effect
    early = accumulation.coherent(lambda t: (process.sigma(t) < 1.0).astype(float))
    assert 0.0 < float(early.value) < np.inf
