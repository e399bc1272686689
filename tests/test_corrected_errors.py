"""Local errors of a sampler that corrects its steps, against NumPy's own run of its algorithm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import jaxkernels as jk
from jaxkernels._compile import quick_filter_jit
from jaxkernels.recurrence import local_errors

PROCESS = jk.EDM(sigma_max=20.0)
# the third order takes the second one's code through larger programs
ORDERS = [2, pytest.param(3, marks=pytest.mark.slow)]
VARIANCES = np.array([1.0, 0.02])


def _newton(values: list[float], nodes: list[float]) -> list[float]:
    """Divided differences f[x0], f[x0, x1], ..."""
    rows, found = list(values), [values[0]]
    for m in range(1, len(values)):
        rows = [(rows[i + 1] - rows[i]) / (nodes[i + m] - nodes[i]) for i in range(len(values) - m)]
        found.append(rows[0])
    return found


def _integral(h: float, nodes: list[float]) -> float:
    """int_0^h e^(r - h) prod_i (r - node_i) dr."""
    return quad(lambda r: math.exp(r - h) * math.prod(r - n for n in nodes), 0.0, h)[0]


class _UniPC:
    """UniPC of order p on x = x0 + e^-l z, for one Gaussian mode."""

    def __init__(self, variance: float, sigmas: np.ndarray, p: int):
        self.l = [-math.log(s) for s in sigmas]
        self.s = list(sigmas)
        self.total = [math.sqrt(variance + s**2) for s in sigmas]
        self.variance, self.p, self.last = variance, p, len(sigmas) - 1

    def denoise(self, k: int, x: float) -> float:
        return self.variance / self.total[k] ** 2 * x

    def _start(self, k: int, x: float, d: dict[int, float]) -> tuple[float, float, float]:
        ratio = self.s[k + 1] / self.s[k]
        return self.l[k + 1] - self.l[k], ratio, ratio * x + (1.0 - ratio) * d[k]

    def predict(self, k: int, x: float, d: dict[int, float]) -> float:
        """Up to two points by the midpoint rule, three by the exact integral."""
        h, ratio, x = self._start(k, x, d)
        order = min(k + 1, self.p)
        nodes = [self.l[k - i] - self.l[k] for i in range(order)]
        slopes = _newton([d[k - i] for i in range(order)], nodes)
        if order == 2:
            return x + 0.5 * h * (1.0 - ratio) * slopes[1]
        return x + sum(_integral(h, nodes[:m]) * slopes[m] for m in range(1, order))

    def correct(self, k: int, x: float, d: dict[int, float], new: float) -> float:
        """The same step with the prediction at its end."""
        h, ratio, x = self._start(k, x, d)
        order = min(k + 1, self.p)
        if order == 1:
            return x + 0.5 * (1.0 - ratio) * (new - d[k])
        nodes = [0.0, h, *(self.l[k - i] - self.l[k] for i in range(1, order))]
        slopes = _newton([d[k], new, *(d[k - i] for i in range(1, order))], nodes)
        return x + sum(_integral(h, nodes[:m]) * slopes[m] for m in range(1, order + 1))

    def run(self) -> float:
        """Error of the whole run from the exact distribution."""
        x, d = self.total[0], {0: self.denoise(0, self.total[0])}
        predicted = x
        for k in range(self.last):
            predicted = self.predict(k, x, d)
            if k + 1 < self.last:
                d[k + 1] = self.denoise(k + 1, predicted)
                x = self.correct(k, x, d, d[k + 1])
        return predicted - self.total[-1]

    def step(self, k: int, off: dict[int, float]) -> tuple[float, float]:
        """Errors of the predicted and the corrected point from a trajectory with wrong points."""
        d = {j: self.variance / self.total[j] + off.get(j, 0.0) for j in range(k + 2)}
        predicted = self.predict(k, self.total[k], d)
        after = self.correct(k, self.total[k], d, d[k + 1]) if k + 1 < self.last else predicted
        return predicted - self.total[k + 1], after - self.total[k + 1]

    def local(self, k: int) -> float:
        """What step k alone leaves at the end.

        All its evaluations are at predicted points, those of earlier steps too.
        """
        off = {}
        for j in range(max(1, k + 1 - self.p), k + 2):
            off[j] = self.denoise(j, self.step(j - 1, {})[0])
        return self.step(k, off)[1] * self.total[-1] / self.total[k + 1]


def _sigmas(steps: int) -> np.ndarray:
    return np.exp(np.linspace(math.log(20.0), math.log(0.02), steps + 1))


def _relative_errors(
    sampler: jk.AbstractSampler, process: jk.AbstractProcess, sigmas: np.ndarray
) -> np.ndarray:
    """Of the standard deviation at the end, by step and mode."""
    with jax.enable_x64(True):
        schedule = jk.Schedule(process.time_at_sigma(jnp.asarray(sigmas)))
        target = jk.Gaussian(np.zeros(2), VARIANCES)
        found = local_errors(target, process, sampler, schedule)
        return np.sqrt(np.asarray(found.variance / found.target_variance)) - 1.0


@pytest.mark.parametrize("p", [2, 3])
@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.slow), 9])
@pytest.mark.parametrize("process", [PROCESS, jk.VP()], ids=["edm", "vp"])
def test_the_error_of_a_step_is_that_of_its_corrected_point(
    p: int, steps: int, process: jk.AbstractProcess
) -> None:
    sigmas = _sigmas(steps)
    sampler = jk.UniPC(solver_order=p, lower_order_final=False)
    found = _relative_errors(sampler, process, sigmas)
    for mode, variance in enumerate(VARIANCES):
        own = _UniPC(variance, sigmas, p)
        expected = np.array([own.local(k) for k in range(steps)]) / own.total[-1]
        # variances are propagated to the end, not standard deviations
        change = expected * np.array([own.total[-1] / own.total[k + 1] for k in range(steps)])
        np.testing.assert_allclose(
            found[:, mode], expected, rtol=1e-6, atol=2.0 * change.max() ** 2
        )


@pytest.mark.parametrize("p", ORDERS)
def test_they_add_up_to_the_error_of_the_run(p: int) -> None:
    """With their signs, where steps are short: what is left out is of higher order in them."""
    sampler = jk.UniPC(solver_order=p, lower_order_final=False)
    left = []
    for steps in (80, 160):
        sigmas = _sigmas(steps)
        found = _relative_errors(sampler, PROCESS, sigmas).sum(0)
        own = [_UniPC(variance, sigmas, p) for variance in VARIANCES]
        left.append(np.abs(found / [mode.run() / mode.total[-1] for mode in own] - 1.0))
    assert np.all(left[1] < 0.04)
    assert np.all(left[1] < 0.6 * left[0])


@pytest.mark.parametrize("p", ORDERS)
def test_a_long_step_after_a_short_one_costs_what_it_does(p: int) -> None:
    """Two evaluations near each other, off the trajectory by less and by more, tell no slope."""
    gap = 1e-3
    even = _sigmas(12)
    sigmas = np.sort(np.append(even, even[6] * math.exp(-gap)))[::-1]
    sampler = jk.UniPC(solver_order=p, lower_order_final=False)
    found = np.hypot.reduce(_relative_errors(sampler, PROCESS, sigmas)[:, 0])
    own = _UniPC(1.0, sigmas, p)
    assert abs(own.run()) > 5.0 * abs(_UniPC(1.0, even, p).run())
    assert 0.3 < found / abs(own.run() / own.total[-1]) < 3.0


@pytest.mark.parametrize(
    ("p", "overstated"), [(2, 1.7), pytest.param(3, 2.7, marks=pytest.mark.slow)]
)
def test_predicted_points_are_wrong_by_more(p: int, overstated: float) -> None:
    """What is corrected is no error of a step: it was counted as one."""
    sigmas = _sigmas(40)
    own = _UniPC(1.0, sigmas, p)
    predicted = np.array([own.step(k, {})[0] / own.total[k + 1] for k in range(40)])
    differences = np.hypot.reduce(np.diff(predicted))
    sampler = jk.UniPC(solver_order=p, lower_order_final=False)
    found = np.hypot.reduce(_relative_errors(sampler, PROCESS, sigmas)[:, 0])
    assert differences > overstated * found


def test_the_objective_is_their_sum_of_squares() -> None:
    """In the coordinate of the solver too, where it has derivatives by finite differences."""
    steps = 6
    mean = np.array([0.5, -0.3])
    with jax.enable_x64(True):
        sigmas = _sigmas(steps)
        sampler = jk.UniPC(lower_order_final=False)
        bound = jk.LocalError(initialization="marginal", variance_factor=1.0, compress=False)
        of_mean = bound.bind(jk.Gaussian(mean, VARIANCES), PROCESS, sampler)
        bound = bound.bind(jk.Gaussian(np.zeros(2), VARIANCES), PROCESS, sampler)
        own = [_UniPC(variance, sigmas, 2) for variance in VARIANCES]
        local = [sum(mode.local(k) ** 2 for k in range(steps)) for mode in own]
        ends = sum((mode.total[-1] - math.sqrt(v)) ** 2 for mode, v in zip(own, VARIANCES))
        schedule = jk.Schedule(sigmas)
        assert float(bound(schedule)) == pytest.approx(sum(local) + ends, rel=2e-3)
        start = np.asarray(PROCESS.t_max)
        coordinate = jk.schedules.TimeCoordinate(
            PROCESS, start, np.asarray(0.0), np.asarray(np.inf)
        )
        inner = of_mean.in_coordinate(coordinate, float(sigmas[-1]))
        u = coordinate.coordinate(jnp.asarray(sigmas))
        count = jnp.asarray(steps)
        derivatives = quick_filter_jit(inner.derivatives)
        value, gradient, hessian = derivatives(u, count)
        assert float(value) == pytest.approx(float(of_mean(schedule)), rel=1e-9)
        # a constant is extrapolated exactly
        assert float(value) == pytest.approx(float(bound(schedule)), rel=1e-9)
        for j in (1, 3, steps - 1):
            h = 1e-5 * np.eye(steps + 1)[j]
            there, back = (derivatives(u + sign * h, count) for sign in (1.0, -1.0))
            assert float(gradient[j]) == pytest.approx(float(there[0] - back[0]) / 2e-5, rel=1e-5)
            slope = np.asarray(there[1] - back[1]) / 2e-5
            size = float(jnp.abs(hessian).max())
            np.testing.assert_allclose(hessian[j, 1:-1], slope[1:-1], atol=1e-6 * size)


@pytest.mark.parametrize(("p", "tolerance"), [(2, 0.02), (3, 0.05)])
def test_a_record_has_the_same_local_errors(p: int, tolerance: float) -> None:
    """Of a linear network, to the accuracy with which it pulls evaluations of the start back."""
    steps = 12
    sigmas = _sigmas(steps)
    with jax.enable_x64(True):
        network = jk.Gaussian(np.zeros(2), VARIANCES).denoiser(PROCESS)
        record = jk.record(network, 20.0 * jnp.eye(2), t_min=0.02, progress=False)
        sampler = jk.UniPC(solver_order=p, lower_order_final=False)
        found = record.errors(sampler, jk.Schedule(sigmas)) * float(record.scale)
    for mode, variance in enumerate(VARIANCES):
        own = _UniPC(variance, sigmas, p)
        local = np.array([own.local(k) for k in range(steps)]) * 20.0 / own.total[0]
        close = tolerance * np.hypot.reduce(local)
        assert found[mode] == pytest.approx(abs(local.sum()), abs=close)


def test_errors_that_cancel_are_doubted() -> None:
    """The objective of a record has a share of every local error beside that of their sum."""
    steps = 12
    sigmas = _sigmas(steps)
    with jax.enable_x64(True):
        network = jk.Gaussian(np.zeros(2), VARIANCES).denoiser(PROCESS)
        record = jk.record(network, 20.0 * jnp.eye(2), t_min=0.02, progress=False)
        sampler = jk.UniPC(lower_order_final=False)
        bound = jk.RecordedError(record).bind(None, PROCESS, sampler)
        found = float(bound(jk.Schedule(sigmas)) * record.scale)
        certain = np.sqrt(np.mean(record.errors(sampler, jk.Schedule(sigmas)) ** 2))
    squared = []
    for variance in VARIANCES:
        own = _UniPC(variance, sigmas, 2)
        local = np.array([own.local(k) for k in range(steps)]) * 20.0 / own.total[0]
        squared.append(local.sum() ** 2 + 0.04 * np.sum(local**2))
    assert found == pytest.approx(math.sqrt(np.mean(squared)), rel=0.02)
    assert found > 1.005 * float(certain * record.scale)


@pytest.mark.parametrize("p", ORDERS)
def test_a_record_to_zero_predicts_the_run(p: int) -> None:
    """Of a linear network, whose runs are known in closed form."""
    with jax.enable_x64(True):
        data = jk.Gaussian(np.zeros(2), VARIANCES)
        record = jk.record(data.denoiser(PROCESS), 20.0 * jnp.eye(2), t_min=0.0, progress=False)
        schedule = jk.Schedule([*_sigmas(120), 0.0])
        sampler = jk.UniPC(solver_order=p)
        found = record.errors(sampler, schedule) * float(record.scale)
        run = jk.evaluate_schedule(data, PROCESS, sampler, schedule, initialization="marginal")
        true = np.sqrt(np.asarray(run.variance)) - np.sqrt(VARIANCES)
    np.testing.assert_allclose(found, np.abs(true) * 20.0 / np.sqrt(VARIANCES + 400.0), rtol=0.05)
