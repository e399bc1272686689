"""Schedules: baselines against formulas, files that survive accidents, the time coordinate."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st
from jax.test_util import check_grads

import jaxkernels as jk
from jaxkernels.schedules import SCHEDULES, TimeCoordinate

PROCESSES: dict[str, jk.AbstractProcess] = {
    "vp": jk.VP(),
    "ou": jk.OU(rate=2.0, t_max=5.0),
    "ve": jk.VE(),
    "edm": jk.EDM(),
    "cosine": jk.CosineVP(),
    "flow": jk.FlowMatching(),
    "discrete": jk.DiscreteVP.scaled_linear(),
}


def _t_max(process: jk.AbstractProcess) -> float:
    return float(process.t_max)


# --- baselines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_named_schedule_on_every_process(name: str, process: jk.AbstractProcess) -> None:
    """From t_max exactly to t_min exactly, strictly down, also with sigma 0 or infinite."""
    for num_steps in (1, 7):
        for t_min in (0.0, 0.02 * _t_max(process)):
            schedule = SCHEDULES[name](process, num_steps, t_min)
            times = np.asarray(schedule.times)
            assert times.shape == (num_steps + 1,)
            assert (times[0], times[-1]) == (_t_max(process), t_min)
            assert np.all(np.diff(times) < 0)
            assert np.all(np.asarray(schedule.stochasticity) == 0)


@pytest.mark.parametrize("process", [jk.VP(), jk.EDM(), jk.FlowMatching()])
def test_baselines_in_time(process: jk.AbstractProcess) -> None:
    top, low, u = _t_max(process), 0.01, np.arange(6) / 5.0
    curves = {
        "uniform": 1 - u,
        "quadratic": (1 - u) ** 2,
        "cosine": 2.0 * np.sin(0.25 * np.pi * (1 - u)) ** 2,
        "beta": scipy.stats.beta(0.6, 0.6).ppf(1 - u),
    }
    for name, curve in curves.items():
        np.testing.assert_allclose(
            SCHEDULES[name](process, 5, low).times, low + (top - low) * curve, rtol=1e-12
        )


def test_quantiles_of_beta_distributions_with_a_closed_form() -> None:
    """Those of the arcsine and the uniform distribution, of 2 sqrt(x), and ComfyUI's timesteps."""
    process, low, u = jk.EDM(8.0), 0.5, np.arange(7) / 6.0
    for shape, curve in [
        ((0.5, 0.5), np.sin(0.5 * np.pi * (1 - u)) ** 2),
        ((1.0, 1.0), 1 - u),
        ((0.5, 1.0), (1 - u) ** 2),
        ((1.0, 0.5), 1 - u**2),
    ]:
        times = jk.schedules.beta(process, 6, low, *shape).times
        np.testing.assert_allclose(times, low + (8.0 - low) * curve, rtol=1e-12)
    # its scheduler rounds quantiles at 1 - linspace(0, 1, K, endpoint=False) to timesteps
    steps = scipy.stats.beta.ppf(1 - np.linspace(0, 1, 10, endpoint=False), 0.6, 0.6) * 999
    times = jk.schedules.beta(jk.DiscreteVP.scaled_linear(), 10, 0.0).times
    np.testing.assert_allclose(times[:-1], steps + 1.0, atol=2.0)


def _karras(top: float, low: float, points: int, rho: float) -> np.ndarray:
    """(sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, eq. (5)."""
    return np.array(
        [
            (top ** (1 / rho) + i / (points - 1) * (low ** (1 / rho) - top ** (1 / rho))) ** rho
            for i in range(points)
        ]
    )


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_levels(rho: float) -> None:
    process = jk.EDM(80.0)
    ours = np.asarray(jk.schedules.karras(process, 18, 0.0, rho=rho).sigmas(process))
    # EDM's own list: 18 levels from 80 to 0.002 and then 0
    np.testing.assert_allclose(ours, np.append(_karras(80.0, 0.002, 18, rho), 0.0), rtol=1e-11)
    ours = np.asarray(jk.schedules.karras(process, 18, 0.05, rho=rho).sigmas(process))
    np.testing.assert_allclose(ours, _karras(80.0, 0.05, 19, rho), rtol=1e-11)


def test_karras_in_other_processes() -> None:
    """The levels are in sigma, so that times differ and levels do not."""
    process = jk.VP()
    top, low = (np.sqrt(np.expm1(0.1 * t + 9.95 * t * t)) for t in (1.0, 0.03))
    ours = np.asarray(jk.schedules.karras(process, 6, 0.03).sigmas(process))
    np.testing.assert_allclose(ours, _karras(top, low, 7, 7.0), rtol=1e-9)


@pytest.mark.parametrize(
    ("process", "t_min", "top"),
    [(jk.EDM(2560.0), 0.0064, 2560.0), (jk.OU(1.0, 20.0), 1e-3, np.sqrt(np.expm1(20.0)))],
)
def test_finite_levels_are_not_cut(process: jk.AbstractProcess, t_min: float, top: float) -> None:
    """Only an infinite sigma(t_max) needs another top level."""
    low = float(process.sigma(t_min))
    ours = np.asarray(jk.schedules.karras(process, 8, t_min).sigmas(process))
    np.testing.assert_allclose(ours, _karras(top, low, 9, 7.0), rtol=1e-9)
    ours = np.asarray(jk.schedules.log_snr(process, 8, t_min).sigmas(process))
    np.testing.assert_allclose(ours, np.geomspace(top, low, 9), rtol=1e-9)


def test_karras_from_2560() -> None:
    levels = jk.schedules.karras(jk.EDM(2560.0), 8, 0.0064).times
    np.testing.assert_allclose(levels[:4], [2560.0, 1175.7, 489.9, 180.0], rtol=1e-3)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 44, 200])
@pytest.mark.parametrize("name", SCHEDULES)
def test_named_schedules_stay_within_a_table(name: str, num_steps: int) -> None:
    """The network of a table has seen no level between its smallest and the data."""
    process = jk.DiscreteVP.scaled_linear()
    for t_min in (0.0, 0.5):
        times = np.asarray(SCHEDULES[name](process, num_steps, t_min).times)
        assert times.shape == (num_steps + 1,)
        assert (times[0], times[-1]) == (1000.0, t_min)
        assert np.all(np.diff(times) < 0)
        assert num_steps == 1 or times[-2] >= 1.0 - 1e-9


def test_levels_of_a_table_are_those_that_people_run() -> None:
    """k-diffusion's lists: sigma_max to sigma_min of the table, then 0; trailing timesteps."""
    process = jk.DiscreteVP.scaled_linear()
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    table = np.sqrt(1.0 / np.cumprod(1.0 - betas) - 1.0)
    ends = table[-1], table[0]
    karras = np.asarray(jk.schedules.karras(process, 20, 0.0).sigmas(process))
    np.testing.assert_allclose(karras, np.append(_karras(*ends, 20, 7.0), 0.0), rtol=1e-9)
    exponential = np.asarray(jk.schedules.log_snr(process, 20, 0.0).sigmas(process))
    np.testing.assert_allclose(exponential, np.append(np.geomspace(*ends, 20), 0.0), rtol=1e-9)
    times = jk.schedules.uniform(process, 5, 0.0).times
    np.testing.assert_allclose(times, [1000.0, 800.0, 600.0, 400.0, 200.0, 0.0], rtol=1e-12)
    with pytest.raises(ValueError, match=r"last_sigma = 0.002 must be >= 0.029"):
        jk.schedules.karras(process, 20, 0.0, last_sigma=0.002)


class TrainedAbove(jk.EDM):
    """A network that was trained from sigma = 0.5 on."""

    def __init__(self):
        super().__init__(80.0)

    @property
    def trained_t_min(self) -> float:
        return 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_process_may_have_a_smallest_trained_level(name: str) -> None:
    times = np.asarray(SCHEDULES[name](TrainedAbove(), 40, 0.0).times)
    assert times[-2] >= 0.5 - 1e-12
    assert times[-1] == 0.0


def test_timesteps_are_those_of_the_network() -> None:
    """diffusers: timestep n has the table's entry n; a flow model is told 1000 t."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    table = np.sqrt(1.0 / np.cumprod(1.0 - betas) - 1.0)
    process = jk.DiscreteVP.scaled_linear()
    schedule = jk.Schedule.from_timesteps(process, [999, 850, 24, 0])
    sigmas = np.append(table[[999, 850, 24, 0]], 0.0)
    np.testing.assert_allclose(schedule.sigmas(process), sigmas, rtol=1e-9)
    flow = jk.Schedule.from_timesteps(jk.FlowMatching(), np.array([1000.0, 250.0]))
    np.testing.assert_allclose(flow.times, [1.0, 0.25, 0.0])
    for forward, timesteps, message in (
        (process, [1000, 1], "timesteps from 1000 to 1 lie beyond"),
        (process, [10, -1], "timesteps from 10 to -1 lie beyond"),
        (process.sub_range(500.0), [999, 1], "timesteps from 999 to 1 lie beyond"),
        (jk.FlowMatching(), [1000, 0], "timesteps from 1000 to 0 lie beyond"),
        (process, [[3, 1]], r"got shape \(1, 2\)"),
        (process, [1, 3], r"timesteps must strictly decrease; timesteps\[0\] = 1 is followed by 3"),
        (process, [1000, 1], r"DiscreteVP, which are counted from 0, 999 \.\. 0"),
        (jk.FlowMatching(), [1000, 0], "to above 0: the step to 0 follows by itself"),
        (jk.FlowMatching(t_max=0.75), [1000, 250], "which are 1000 t, from 750 to above 0"),
        (
            jk.FlowMatching(),
            [1, 0.5],
            "timesteps of a flow are 1000 t; 1 .. 0.5 look like t itself",
        ),
        (process, [1, 0.5, 0], "counted from 0, 999 .. 0; 1 .. 0 look like shares of them"),
        (jk.EDM(), [3, 1], "process EDM has no timesteps"),
    ):
        with pytest.raises(ValueError, match=message):
            jk.Schedule.from_timesteps(forward, timesteps)


def test_published_levels_are_rounded() -> None:
    """Align Your Steps starts at 14.615, the table at 14.6146."""
    process = jk.DiscreteVP.scaled_linear()
    times = jk.Schedule.from_sigmas(process, [14.615, 1.0, 0.0]).times
    assert (float(times[0]), float(times[-1])) == (1000.0, 0.0)
    with pytest.raises(ValueError, match=r"14.7 lies beyond"):
        jk.Schedule.from_sigmas(process, [14.7, 1.0, 0.0])


def test_last_sigma() -> None:
    ours = np.asarray(jk.schedules.karras(jk.EDM(), 5, 0.0, last_sigma=0.3).times)
    np.testing.assert_allclose(ours, np.append(_karras(80.0, 0.3, 5, 7.0), 0.0), rtol=1e-11)


def test_levels_equal_in_log_snr() -> None:
    process = jk.DiscreteVP.scaled_linear()
    schedule = jk.schedules.log_snr(process, 9, 1.0)
    steps = np.diff(np.asarray(process.log_snr(schedule.times)))
    np.testing.assert_allclose(steps, np.full(9, steps.mean()), rtol=1e-9)
    ends = np.asarray(schedule.sigmas(process))[[0, -1]]
    np.testing.assert_allclose(ends, [14.6146, 0.0292], atol=5e-5)


@pytest.mark.parametrize("process", [jk.FlowMatching(), jk.CosineVP()])
def test_levels_where_sigma_is_infinite(process: jk.AbstractProcess) -> None:
    """They start at sigma = 1000, whose place the end of time takes."""
    sigmas = np.asarray(jk.schedules.log_snr(process, 4, 0.1).sigmas(process))
    assert np.isinf(sigmas[0])
    low = float(process.sigma(0.1))
    np.testing.assert_allclose(sigmas[1:], 1e3 * (low / 1e3) ** (np.arange(1, 5) / 4.0), rtol=1e-9)


AYS = {
    "sd15": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
    "sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
    "svd": [700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
}


@pytest.mark.parametrize("model", AYS)
def test_align_your_steps_returns_the_published_levels(model: str) -> None:
    """Sabour et al.: ten steps between the published ends are the published list."""
    levels = np.array(AYS[model])
    process = jk.EDM(sigma_max=levels[0])
    schedule = jk.schedules.align_your_steps(process, 10, levels[-1], model=model)
    np.testing.assert_allclose(schedule.times, levels, rtol=1e-12)


def test_align_your_steps_for_other_lengths() -> None:
    """log sigma is interpolated linearly over the index: twice the steps adds geometric means."""
    levels = np.array(AYS["sd15"])
    process = jk.EDM(sigma_max=levels[0])
    doubled = np.asarray(jk.schedules.align_your_steps(process, 20, levels[-1]).times)
    np.testing.assert_allclose(doubled[::2], levels, rtol=1e-12)
    np.testing.assert_allclose(doubled[1::2], np.sqrt(levels[1:] * levels[:-1]), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jk.schedules.uniform(jk.VP(), 0, 0.1), r"num_steps = 0 must be at least 1"),
        (
            lambda: jk.schedules.uniform(jk.VP(), True, 0.1),
            r"num_steps = True must be an integer",
        ),
        (lambda: jk.schedules.uniform(jk.VP(), 4, -0.1), r"t_min = -0\.1 must be >= 0"),
        (lambda: jk.schedules.karras(jk.VP(), 4, 1.0), r"t_min = 1 must be >= 0 and < 1"),
        (lambda: jk.schedules.karras(jk.VP(), 4, np.nan), r"t_min = nan"),
        (lambda: jk.schedules.karras(jk.VP(), 4, 0.1, rho=0.0), r"rho = 0 must be > 0"),
        (lambda: jk.schedules.beta(jk.VP(), 4, 0.1, alpha=0.0), r"alpha = 0 must be > 0"),
        (
            lambda: jk.schedules.beta(jk.VP(), 4, 0.1, beta=np.inf),
            r"beta = inf: every number must be finite",
        ),
        (
            lambda: jk.schedules.karras(jk.VP(), 4, 0.0, last_sigma=0.0),
            r"last_sigma = 0 must be > 0",
        ),
        (
            lambda: jk.schedules.karras(jk.VP(), 4, 1e-3, last_sigma=0.5),
            r"last_sigma = 0.5: there is a level before the last only if .* t_min = 0.001",
        ),
        (
            lambda: jk.schedules.log_snr(jk.EDM(2.0), 4, 0.0, last_sigma=3.0),
            r"last_sigma = 3 must be",
        ),
        (
            lambda: jk.schedules.align_your_steps(jk.VP(), 4, 0.1, model="sd51"),
            r"model='sd51' is not known. Did you mean 'sd15'",
        ),
    ],
)
def test_bad_arguments_of_baselines(make: Callable[[], object], message: str) -> None:
    _raises(make, message)


def _raises(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- the schedule itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "stochasticity", "message"),
    [
        ([1.0], 0.0, r"times must be a list of at least 2 numbers; got shape \(1,\)"),
        ([[1.0, 0.0]], 0.0, r"times .* got shape \(1, 2\)"),
        ([1.0, 0.5, 0.5], 0.0, r"times\[1\] = 0\.5 is followed by 0\.5"),
        ([1.0, 0.2, 0.5], 0.0, r"times\[1\] = 0\.2 is followed by 0\.5"),
        ([1.0, -0.1], 0.0, r"times must end at t >= 0; the last is -0\.1"),
        ([1.0, np.nan, 0.0], 0.0, r"times\[1\] = nan"),
        ([np.inf, 0.0], 0.0, r"times\[0\] = inf"),
        ([1.0, 0.5, 0.0], -0.1, r"stochasticity must be >= 0; its smallest entry is -0\.1"),
        ([1.0, 0.5, 0.0], [0.0, np.nan], r"stochasticity\[1\] = nan"),
        ([1.0, 0.5, 0.0], [0.0, 1.0, 2.0], r"stochasticity has shape \(3,\); .* shape \(2,\)"),
        ([1.0, 0.5, 0.0], [[0.0, 1.0]], r"stochasticity has shape \(1, 2\)"),
    ],
)
def test_bad_schedules(times: list, stochasticity: object, message: str) -> None:
    _raises(lambda: jk.Schedule(np.array(times), np.array(stochasticity)), message)


def test_fields() -> None:
    schedule = jk.Schedule(np.array([1.0, 0.5, 0.1]), np.array([0.0, 2.0]))
    assert schedule.num_steps == 2
    np.testing.assert_array_equal(schedule.stochasticity, [0.0, 2.0])
    np.testing.assert_array_equal(schedule.stochasticity_squared, [0.0, 4.0])
    np.testing.assert_allclose(schedule.sigmas(jk.FlowMatching()), [np.inf, 1.0, 1.0 / 9.0])
    steps = schedule.steps()
    expected = {
        "time": [1.0, 0.5],
        "next_time": [0.5, 0.1],
        "earlier_times": [[1.0], [1.0]],
        "stochasticity_squared": [0.0, 4.0],
        "completed": [0, 1],
        "remaining": [1, 0],
        "is_first": [True, False],
        "is_last": [False, True],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(getattr(steps, name), value, err_msg=name)
    np.testing.assert_array_equal(jk.Schedule(np.array([1, 0]), 1).stochasticity, [1.0])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_levels_make_a_schedule(process: jk.AbstractProcess) -> None:
    """sigma of the times are the levels, from the largest one to zero."""
    top = min(float(process.sigma(process.t_max)), 50.0)
    levels = np.append(top * np.array([1.0, 0.31, 0.07, 0.003]), 0.0)
    schedule = jk.Schedule.from_sigmas(process, levels, [0.0, 1.0, 0.5, 0.0])
    np.testing.assert_allclose(schedule.sigmas(process), levels, rtol=1e-9)
    np.testing.assert_array_equal(schedule.stochasticity, [0.0, 1.0, 0.5, 0.0])
    assert schedule.times[-1] == 0.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_levels_of_a_schedule_give_it_back(name: str, process: jk.AbstractProcess) -> None:
    schedule = SCHEDULES[name](process, 6, 0.01 * _t_max(process))
    again = jk.Schedule.from_sigmas(process, np.asarray(schedule.sigmas(process)))
    np.testing.assert_allclose(again.times, schedule.times, rtol=1e-7)
    assert again.times[0] == _t_max(process)


def test_levels_of_edm_are_its_times_also_in_float32(float32: None) -> None:
    levels = np.array([80.0, 7.3, 0.4, 0.002])
    schedule = jk.Schedule.from_sigmas(jk.EDM(), levels)
    np.testing.assert_allclose(schedule.times, levels, rtol=1e-6)


def test_traced_levels() -> None:
    levels = jnp.array([3.0, 1.0, 0.2])

    def last_time(levels: jax.Array) -> jax.Array:
        return jk.Schedule.from_sigmas(jk.FlowMatching(), levels).times[-1]

    # t = sigma / (1 + sigma)
    np.testing.assert_allclose(jax.jit(last_time)(levels), 0.2 / 1.2, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(last_time)(levels), [0.0, 0.0, 1.2**-2], rtol=1e-12)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0], r"sigmas must be a list of at least 2 numbers; got shape \(1,\)"),
        ([1.0, 1.0], r"sigmas\[0\] = 1 is followed by 1"),
        ([1.0, 2.0], r"sigmas\[0\] = 1 is followed by 2"),
        ([np.inf, np.inf, 1.0], r"sigmas\[0\] = inf is followed by inf"),
        ([1.0, np.nan], r"sigmas\[1\] = nan"),
        ([1.0, -1.0], r"sigmas must end at sigma >= 0; the last is -1"),
        ([81.0, 1.0], r"sigmas\[0\] = 81 lies beyond sigma\(t_max\) = 80"),
        ([np.inf, 1.0], r"sigmas\[0\] = inf lies beyond sigma\(t_max\) = 80"),
    ],
)
def test_bad_levels(sigmas: list[float], message: str) -> None:
    _raises(lambda: jk.Schedule.from_sigmas(jk.EDM(80.0), sigmas), message)


def test_times_that_float32_cannot_tell_apart(float32: None) -> None:
    """They decrease as they are written, and would be equal as they are run."""
    times = [1.0, 1.0 - 1e-9, 0.5, 0.1]
    _raises(
        lambda: jk.Schedule(times),
        r"times\[1\] = 0.999999999 is too near to times\[0\] = 1.0: float32 cannot tell",
    )
    _raises(
        lambda: jk.Schedule.from_sigmas(jk.FlowMatching(), [1e9, 1e8, 1.0]),
        r"sigmas\[1\] = 100000000.0 is too near to sigmas\[0\] = 1000000000.0: float32",
    )
    with jax.enable_x64(True):
        assert jk.Schedule(times).num_steps == 3


def test_levels_of_a_flow_in_the_units_of_its_tools() -> None:
    """Diffusers' and ComfyUI's sigmas of a flow are t; as s/a they would start at t = 1/2."""
    with pytest.raises(ValueError, match=r"sigmas\[0\] = 1: .* call sigmas is t"):
        jk.Schedule.from_sigmas(jk.FlowMatching(), [1.0, 0.6, 0.2, 0.0])
    half = jk.Schedule.from_sigmas(jk.FlowMatching(t_max=0.5), [1.0, 0.25])
    np.testing.assert_allclose(half.times, [0.5, 0.2])


def test_no_infinite_slope_at_stochasticity_zero() -> None:
    """alpha is kept as its square, so its derivative at 0 is 0 and not NaN."""
    times = np.array([1.0, 0.5, 0.1])
    slope = jax.grad(lambda a: jnp.sum(jk.Schedule(times, a).stochasticity))(jnp.zeros(2))
    assert np.all(np.isfinite(slope))
    given_squared = jk.Schedule.from_squared(jnp.asarray(times), jnp.array([0.0, 9.0]))
    np.testing.assert_allclose(given_squared.stochasticity, [0.0, 3.0])


@pytest.mark.parametrize(
    ("times", "stochasticity"),
    [
        ([1.0, 0.5, 0.6], 0.0),
        ([1.0, 0.5, -0.1], 0.0),
        ([1.0, 0.5, 0.5], 0.0),
        ([1.0, np.nan, 0.1], 0.0),
    ],
)
def test_traced_values_are_checked_when_run(times: list[float], stochasticity: float) -> None:
    @jax.jit
    def run(times: jax.Array) -> jax.Array:
        return jk.Schedule(times, stochasticity).error_if_invalid().times

    with pytest.raises(Exception, match="times must decrease"):
        jax.block_until_ready(run(jnp.asarray(times)))
    np.testing.assert_array_equal(run(jnp.array([1.0, 0.5, 0.1])), [1.0, 0.5, 0.1])


increasing = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30)


@given(increments=increasing, end=st.floats(0.0, 5.0), alpha=st.just(0.0) | st.floats(1e-6, 50.0))
@settings(max_examples=60)
def test_any_decreasing_times_make_a_schedule(
    increments: list[float], end: float, alpha: float
) -> None:
    times = end + np.append(np.cumsum(increments)[::-1], 0.0)
    schedule = jk.Schedule(times, alpha)
    np.testing.assert_array_equal(schedule.times, times)
    np.testing.assert_allclose(
        np.sqrt(schedule.stochasticity_squared), np.full(len(increments), alpha), rtol=1e-14
    )


@given(times=st.lists(st.floats(-2.0, 2.0), min_size=2, max_size=6))
@settings(max_examples=100)
def test_only_decreasing_times_make_a_schedule(times: list[float]) -> None:
    valid = all(b < a for a, b in itertools.pairwise(times)) and times[-1] >= 0.0
    if valid:
        assert jk.Schedule(np.array(times)).num_steps == len(times) - 1
    else:
        _raises(lambda: jk.Schedule(np.array(times)), "times")


# --- files ----------------------------------------------------------------------------------------


@given(increments=increasing, data=st.data())
@settings(max_examples=30)
def test_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, increments: list[float], data
) -> None:
    """Every float64 comes back bit for bit."""
    steps = len(increments)
    alpha = data.draw(
        st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=steps, max_size=steps)
    )
    path = tmp_path_factory.mktemp("round") / "schedule.json"
    schedule = jk.Schedule(np.append(np.cumsum(increments)[::-1], 0.0), np.array(alpha))
    schedule.save(path)
    loaded = jk.Schedule.load(path)
    np.testing.assert_array_equal(loaded.times, schedule.times)
    np.testing.assert_allclose(np.sqrt(loaded.stochasticity_squared), alpha, rtol=1e-14)


def test_metadata_is_kept_beside_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    jk.Schedule(np.array([1.0, 0.0])).save(str(path), sampler="DDIM", w2=0.25)
    content = json.loads(path.read_text())
    assert content["metadata"] == {"sampler": "DDIM", "w2": 0.25}
    assert content["times"] == [1.0, 0.0]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert os.listdir(tmp_path) == ["schedule.json"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved.json"
    jk.Schedule(np.array([1.0, 0.5, 0.0])).save(path)
    return path


def _rewrite(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_file_tells_another_process(tmp_path: Path) -> None:
    """Times in the range of both processes, which are other noise levels."""
    own = jk.VP(0.2, 15.0)
    path = tmp_path / "schedule.json"
    stated = {"type": "vp", "beta_min": 0.2, "beta_max": 15.0}
    jk.Schedule([1.0, 0.5, 0.001]).save(path, process=stated)
    assert jk.Schedule.load(path, own).num_steps == 2
    for other in (jk.VP(), jk.CosineVP(), jk.FlowMatching(), jk.EDM(), jk.DiscreteVP([0.9, 0.5])):
        with pytest.raises(ValueError, match=r"times are of VP\(.*here process is") as error:
            jk.Schedule.load(path, other)
        assert str(path) in str(error.value)
    # nothing to compare
    jk.Schedule([1.0, 0.5, 0.001]).save(path)
    assert jk.Schedule.load(path, jk.FlowMatching()).num_steps == 2


class UserDefined(jk.VP):
    """A process that files can only name."""

    def __init__(self):
        super().__init__()


def test_a_file_of_a_user_defined_process_is_compared_by_its_levels(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    schedule = jk.Schedule([1.0, 0.5, 0.001])
    sigmas = np.asarray(schedule.sigmas(UserDefined())).tolist()
    stated = jk.processes.describe_process(UserDefined())
    schedule.save(path, process=stated, sigmas=sigmas)
    assert jk.Schedule.load(path, UserDefined()).num_steps == 2
    with pytest.raises(ValueError, match="its times are of UserDefined; here process is CosineVP"):
        jk.Schedule.load(path, jk.CosineVP())
    with pytest.raises(ValueError, match="the process UserDefined is user-defined: it is not in"):
        jk.processes.from_config(stated)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: _rewrite(p, lambda c: c.update(version=99)),
            r"version 99; this release reads version 1",
        ),
        (lambda p: _rewrite(p, lambda c: c.pop("version")), r"has version None"),
        (lambda p: _rewrite(p, lambda c: c.update(format="x")), r"is not a schedule file"),
        (lambda p: _rewrite(p, lambda c: c.pop("times")), r"no valid schedule: 'times'"),
        (
            lambda p: _rewrite(p, lambda c: c.pop("stochasticity")),
            r"no valid schedule: 'stochasticity'",
        ),
        (
            lambda p: _rewrite(p, lambda c: c.update(times=[0.0, 1.0])),
            r"no valid schedule: times must",
        ),
        (
            lambda p: _rewrite(p, lambda c: c.update(times="soon")),
            r"no valid schedule: times must be",
        ),
        (
            lambda p: _rewrite(p, lambda c: c.update(times=[1.0, None])),
            r"schedule: times\[1\] = nan",
        ),
        (
            lambda p: _rewrite(p, lambda c: c.update(stochasticity=[0.0])),
            r"no valid schedule: stochasticity has",
        ),
        (lambda p: p.write_text(p.read_text()[:-30]), r"is not a complete JSON file"),
        (lambda p: p.write_text(""), r"is not a complete JSON file"),
        (lambda p: p.write_text("[1, 2]"), r"is not a schedule file"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), r"is not a complete JSON file"),
        (lambda p: p.unlink(), r"cannot read .*No such file"),
        (lambda p: (p.unlink(), p.mkdir()), r"cannot read .*Is a directory"),
    ],
)
def test_damaged_files(saved: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=message) as error:
        jk.Schedule.load(saved)
    assert str(saved) in str(error.value)


def test_unwritable_paths(tmp_path: Path) -> None:
    """A folder that is missing, a path that is a folder: the path is named, nothing is left."""
    schedule = jk.Schedule(np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"cannot write .*nowhere.*No such file"):
        schedule.save(tmp_path / "nowhere" / "s.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"cannot write .*folder.*directory"):
        schedule.save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("method", ["replace", "chmod"])
def test_a_failed_write_leaves_the_existing_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    before = saved.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(ValueError, match=r"cannot write .*saved\.json: No space left"):
        jk.Schedule(np.array([9.0, 3.0])).save(saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["saved.json"]


# --- the time coordinate --------------------------------------------------------------------------

COORDINATES = {
    "vp": (TimeCoordinate(jk.VP(), 1.0, 0.0, np.inf), 0.02),
    "vp to zero": (TimeCoordinate(jk.VP(), 1.0, 0.05, np.inf), 0.0),
    "edm": (TimeCoordinate(jk.EDM(), 80.0, 0.0, np.inf), 0.002),
    "edm to zero": (TimeCoordinate(jk.EDM(), 80.0, 0.1, 50.0), 0.0),
    "flow": (TimeCoordinate(jk.FlowMatching(), 1.0, 0.1, 20.0), 0.0),
    "cosine": (TimeCoordinate(jk.CosineVP(), 1.0, 0.1, 20.0), 0.0),
    "table": (TimeCoordinate(jk.DiscreteVP.scaled_linear(), 1000.0, 0.0, np.inf), 1.0),
}
EVERY_COORDINATE = pytest.mark.parametrize(
    ("coordinate", "end"), COORDINATES.values(), ids=COORDINATES
)


@EVERY_COORDINATE
def test_time_coordinate_round_trip(coordinate: TimeCoordinate, end: float) -> None:
    """Any numbers give decreasing times between exact ends, and come back from them."""
    z = np.random.default_rng(0).normal(size=6) * 1.5
    times = np.asarray(coordinate.times(jnp.asarray(z), end))
    assert times.shape == (8,)
    assert (times[0], times[-1]) == (float(np.asarray(coordinate.start)), end)
    assert np.all(np.diff(times) < 0)
    np.testing.assert_allclose(
        coordinate.unconstrained(jnp.asarray(times)), z, rtol=1e-7, atol=1e-8
    )


def test_interior_times_stop_at_the_smallest_trained_one() -> None:
    """However long the last increment is, and back again, also from the very end."""
    coordinate = TimeCoordinate(jk.DiscreteVP.scaled_linear(), 1000.0, 0.05, np.inf)
    z = jnp.asarray([0.3, -0.2, -18.0])
    times = np.array(coordinate.times(z, 0.0))
    assert times[-1] == 0.0
    assert 1.0 <= times[-2] < 1.0001
    inside = coordinate.times(z.at[-1].set(0.1), 0.0)
    np.testing.assert_allclose(coordinate.unconstrained(inside), [0.3, -0.2, 0.1], rtol=1e-9)
    times[-2] = 1.0
    assert np.all(np.isfinite(coordinate.unconstrained(jnp.asarray(times))))
    # a short step before the last one stays as short
    short = jnp.asarray([-7.0, 0.2, 0.1])
    again = coordinate.unconstrained(coordinate.times(short, 0.0))
    np.testing.assert_allclose(again, short, rtol=1e-7)


@EVERY_COORDINATE
def test_time_coordinate_is_divided_by_softmax(coordinate: TimeCoordinate, end: float) -> None:
    """u = log((sigma + low) / (1 + sigma / high)) falls by the shares softmax(0, z)."""
    z = np.array([0.4, -1.0, 0.7])
    times = np.asarray(coordinate.times(jnp.asarray(z), end))
    sigma = np.asarray(coordinate.process.sigma(times))
    with np.errstate(invalid="ignore"):
        u = np.log((sigma + coordinate.low) / (1.0 + sigma / coordinate.high))
    if np.isinf(sigma[0]):
        u[0] = np.log(coordinate.high)
    shares = np.exp(np.append(0.0, z)) / np.sum(np.exp(np.append(0.0, z)))
    np.testing.assert_allclose(np.diff(u) / (u[-1] - u[0]), shares, rtol=1e-8)


@pytest.mark.parametrize(("name", "order"), [("vp to zero", 1), ("flow", 2)])
def test_time_coordinate_gradient(name: str, order: int) -> None:
    coordinate, end = COORDINATES[name]
    fn = jax.jit(lambda z: coordinate.times(z, end))
    check_grads(
        fn, (jnp.array([0.4, -1.0, 0.7]),), order=order, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4
    )


@given(z=st.lists(st.floats(-15.0, 15.0), min_size=1, max_size=12))
@settings(max_examples=40)
def test_times_of_the_coordinate_always_decrease(z: list[float]) -> None:
    coordinate = COORDINATES["vp"][0]
    times = np.asarray(coordinate.times(jnp.asarray(np.pad(z, (0, 12 - len(z)))), 0.02))
    assert np.all(np.diff(times) < 0)


def test_a_schedule_keeps_its_numbers_when_the_array_it_was_made_from_changes() -> None:
    # aligned as JAX wants memory that it shares
    memory = np.zeros(128, np.uint8)
    times = memory[(-memory.ctypes.data) % 64 :][:16].view(np.float32)
    times[:] = [1.0, 0.7, 0.4, 0.1]
    squared = times[1:].copy()
    schedules = jk.Schedule(times), jk.Schedule.from_squared(times, squared)
    times[0] = 2.0
    squared[:] = 0.0
    for schedule in schedules:
        np.testing.assert_array_equal(schedule.times, np.array([1.0, 0.7, 0.4, 0.1], np.float32))
    np.testing.assert_array_equal(
        schedules[1].stochasticity_squared, np.array([0.7, 0.4, 0.1], np.float32)
    )
