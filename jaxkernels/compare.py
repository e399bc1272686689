"""Schedules compared on a network: how far each takes the same noises from where a fine solver takes them."""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks
from ._progress import Progress
from ._setting import check_schedule
from ._types import AnyArray
from .process import AbstractProcess
from .sample import sample
from .samplers import SAMPLERS, AbstractSampler, DPMSolverPP2M
from .schedules import Schedule, log_snr, sigma_range, uniform

STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rms": lambda e: np.sqrt(np.mean(e**2, -1)),
    "median": lambda e: np.median(e, -1),
    "log_mean": lambda e: np.exp(np.mean(np.log(np.maximum(e, 1e-300)), -1)),
}
_RESAMPLES = 400
_FINE, _LEAST_FINE = 20, 200


class Comparison(eqx.Module):
    """Errors of several schedules with one network, from the same noises.

    `errors` (schedules, noises): distance of each end point from the reference's, in units of the root of the
    reference's total variance. `reference_error`: the root mean square of the same between the reference and
    one of half its steps: errors below it mean nothing.

    Three statistics over noises, as no one of them is the truth: "rms" (a few bad samples decide), "median",
    and "log_mean", exp(mean log error) (typical samples decide).
    """

    names: tuple[str, ...] = eqx.field(static=True)
    errors: Float[np.ndarray, "schedules noises"]
    reference_error: float

    def statistic(self, kind: str) -> dict[str, float]:
        """rms, median or log_mean error of every schedule."""
        values = _checks.lookup("kind", kind, STATISTICS)(self.errors)
        return dict(zip(self.names, values.tolist(), strict=True))

    def ratio(self, kind: str, name: str, to: str) -> tuple[float, float]:
        """A statistic of one schedule over that of another, and its standard error by resampling noises in pairs."""
        fn = _checks.lookup("kind", kind, STATISTICS)
        both = self.errors[[self._index(name), self._index(to)]]
        n = both.shape[1]
        again = fn(both[:, np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))])
        value = fn(both)
        return float(value[0] / value[1]), float(np.std(again[0] / again[1], ddof=1))

    def best(self) -> str:
        """The schedule with the smallest product of rms and log-mean error: good for typical samples and for all."""
        score = np.log(STATISTICS["rms"](self.errors)) + np.log(STATISTICS["log_mean"](self.errors))
        return self.names[int(np.argmin(score))]

    def _index(self, name: str) -> int:
        return _checks.lookup("name", name, {n: i for i, n in enumerate(self.names)})

    def __repr__(self) -> str:
        best = self.best()
        lines = [f"{'schedule':24} {'rms':>10} {'median':>10} {'log mean':>10}   against {best}"]
        columns = [self.statistic(kind) for kind in STATISTICS]
        for name in sorted(self.names, key=columns[-1].__getitem__):
            ratio, spread = self.ratio("log_mean", name, best)
            numbers = " ".join(f"{column[name]:10.4g}" for column in columns)
            lines.append(f"{name:24} {numbers}   {ratio:.3f} ± {spread:.3f}")
        noises = self.errors.shape[1]
        return "\n".join([*lines, f"{noises} noises; reference accurate to {self.reference_error:.1g}"])


def compare_schedules(
    score_fn: Callable[[Array, Array], Array],
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedules: Mapping[str, Schedule],
    x_init: Float[AnyArray, "noises *shape"],
    *,
    kind: str = "score",
    progress: bool = True,
) -> Comparison:
    """Run a network on several schedules and on a fine one, from the same noises, and measure the distances.

    The reference is DPM-Solver++(2M) on a uniform log-SNR grid (uniform in time where log-SNR is infinite at an
    end) of at least 200 steps and 20 times those of the longest schedule.

    **Arguments:** `score_fn`, `kind` and `x_init` as for `sample`; `schedules` by name, deterministic and all with
    the same first and last time.

    **Raises:** ValueError naming the argument; also if samples stop being finite.
    """
    if isinstance(sampler, str):
        sampler = _checks.lookup("sampler", sampler, SAMPLERS)()
    if not schedules:
        raise ValueError("schedules is empty; pass {name: Schedule}.")
    first, last = np.asarray(next(iter(schedules.values())).times, np.float64)[[0, -1]]
    for name, schedule in schedules.items():
        check_schedule(process, sampler, schedule)
        times = np.asarray(schedule.times, np.float64)
        if np.any(np.asarray(schedule.stochasticity_squared) > 0):
            raise ValueError(f"schedules[{name!r}] is stochastic: its samples have no reference from the same noise.")
        if not np.allclose(times[[0, -1]], (first, last), rtol=1e-5):
            raise ValueError(
                f"schedules[{name!r}] runs from {times[0]:g} to {times[-1]:g}, the first one from {first:g} to "
                f"{last:g}; they must agree."
            )
    x = jnp.asarray(x_init)
    if x.ndim < 2 or x.shape[0] < 2:
        raise ValueError(f"x_init has shape {x.shape}; it must be (noises, ...) with at least 2 noises.")
    key = jax.random.key(0)  # no step draws anything

    def run(sampler: AbstractSampler, schedule: Schedule) -> np.ndarray:
        return np.asarray(sample(score_fn, process, sampler, schedule, key, x, kind=kind)).reshape(x.shape[0], -1)

    steps = max(_LEAST_FINE, _FINE * max(schedule.num_steps for schedule in schedules.values()))
    with Progress("comparing: fine reference", progress) as line:
        fine, half = (run(DPMSolverPP2M(), _fine(process, k, first, last)) for k in (steps, steps // 2))
        size = np.sqrt(np.sum(fine.var(0)))
        errors = []
        for name, schedule in schedules.items():
            line.update(f"comparing: {name}")
            errors.append(np.linalg.norm(run(sampler, schedule) - fine, axis=1) / size)
    between = np.sqrt(np.mean(np.sum((fine - half) ** 2, 1))) / size
    return Comparison(tuple(schedules), np.stack(errors), float(between))


def _fine(process: AbstractProcess, steps: int, first: float, last: float) -> Schedule:
    high, low = sigma_range(process, last)
    grid = log_snr if np.isfinite(high) and low > 0 else uniform
    times = np.asarray(grid(process, steps, last).times, np.float64)
    # grids start at t_max; a schedule may start later
    return Schedule(np.concatenate([[first], times[(times < first * (1.0 - 1e-6)) & (times > last)], [last]]))
