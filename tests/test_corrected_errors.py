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
        x = predicted = self.total[0]
        d = {0: self.denoise(0, x)}
        for k in range(self.last):
            predicted = self.predict(k, x, d)
            if k + 1 < self.last:
                d[k + 1] = self.denoise(k + 1, predicted)
                x = self.correct(k, x, d, d[k + 1])
        return predicted - self.total[-1]

    def local(self, k: int) -> float:
        """What step k alone leaves at the end.

        Its own evaluation and that of the step before are at predicted points, others are exact.
        """
        begin = max(0, k - 1)
        d = {j: self.variance / self.total[j] for j in range(begin + 1)}
        error = 0.0
        for j in range(begin, k + 1):
            predicted = self.predict(j, self.total[j], d)
            error = predicted - self.total[j + 1]
            if j + 1 < self.last:
                new = self.denoise(j + 1, predicted)
                error = self.correct(j, self.total[j], d, new) - self.total[j + 1]
                # the corrected point is put back, and with it the predicted one
                d[j + 1] = self.denoise(j + 1, predicted - error)
        return error * self.total[-1] / self.total[k + 1]


def _schedule(steps: int) -> tuple[np.ndarray, jk.Schedule]:
    sigmas = np.exp(np.linspace(math.log(20.0), math.log(0.02), steps + 1))
    return sigmas, jk.Schedule(sigmas)


@pytest.mark.parametrize("p", [2, 3])
@pytest.mark.parametrize("steps", [2, 9])
def test_the_error_of_a_step_is_that_of_its_corrected_point(p: int, steps: int) -> None:
    with jax.enable_x64(True):
        sigmas, schedule = _schedule(steps)
        sampler = jk.UniPC(solver_order=p, lower_order_final=False)
        target = jk.Gaussian(np.zeros(2), VARIANCES)
        found = local_errors(target, PROCESS, sampler, schedule)
        amplitude = np.sqrt(np.asarray(found.variance)) - np.sqrt(np.asarray(found.target_variance))
    for mode, variance in enumerate(VARIANCES):
        own = _UniPC(variance, sigmas, p)
        expected = np.array([own.local(k) for k in range(steps)])
        # a run of the flow from the error on, exact to first order in it
        close = 2.0 * expected**2 / np.sqrt(variance) + 1e-9
        np.testing.assert_array_less(np.abs(amplitude[:, mode] - expected), close)


@pytest.mark.parametrize(("p", "tolerance"), [(2, 0.06), (3, 0.1)])
def test_they_add_up_to_the_error_of_the_run(p: int, tolerance: float) -> None:
    """With their signs; errors of predicted points were 2 to 100 times that or of other sign."""
    sigmas, _ = _schedule(40)
    with jax.enable_x64(True):
        sampler = jk.UniPC(solver_order=p, lower_order_final=False)
        target = jk.Gaussian(np.zeros(2), VARIANCES)
        found = local_errors(target, PROCESS, sampler, jk.Schedule(sigmas))
        amplitude = np.sqrt(np.asarray(found.variance)) - np.sqrt(np.asarray(found.target_variance))
    for mode, variance in enumerate(VARIANCES):
        true = _UniPC(variance, sigmas, p).run()
        assert amplitude[:, mode].sum() == pytest.approx(true, rel=tolerance)


def test_the_objective_is_their_sum_of_squares() -> None:
    """In the coordinate of the solver too, where it has derivatives by finite differences."""
    steps = 6
    with jax.enable_x64(True):
        sigmas, _ = _schedule(steps)
        sampler = jk.UniPC(lower_order_final=False)
        target = jk.Gaussian(np.zeros(2), VARIANCES)
        bound = jk.LocalError(initialization="marginal", variance_factor=1.0, compress=False)
        bound = bound.bind(target, PROCESS, sampler)
        own = [_UniPC(variance, sigmas, 2) for variance in VARIANCES]
        squares = sum(mode.local(k) ** 2 for mode in own for k in range(steps))
        ends = sum((mode.total[-1] - math.sqrt(v)) ** 2 for mode, v in zip(own, VARIANCES))
        assert float(bound(jk.Schedule(sigmas))) == pytest.approx(squares + ends, rel=2e-3)
        start = np.asarray(PROCESS.t_max)
        coordinate = jk.schedules.TimeCoordinate(
            PROCESS, start, np.asarray(0.0), np.asarray(np.inf)
        )
        inner = bound.in_coordinate(coordinate, float(sigmas[-1]))
        u = coordinate.coordinate(jnp.asarray(sigmas))
        count = jnp.asarray(steps)
        value, gradient, _ = quick_filter_jit(inner.derivatives)(u, count)
        assert float(value) == pytest.approx(squares + ends, rel=2e-3)
        values = quick_filter_jit(inner.value)
        for j in (1, 3, steps - 1):
            h = 1e-5 * np.eye(steps + 1)[j]
            difference = float(values(u + h, count) - values(u - h, count)) / 2e-5
            assert float(gradient[j]) == pytest.approx(difference, rel=1e-5, abs=1e-10)
