"""The optimal schedule of a sampler for data, a Gaussian, a mixture or a network."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .. import _checks, metrics
from .._derivatives import dense_derivatives
from .._newton import NewtonState, certificate, newton_advance, newton_start
from .._precision import is_traced, to_float64
from .._progress import Progress
from .._types import AnyArray, Network, Numbers, constant
from ..comparison import BALANCED, STATISTICS
from ..distributions import Gaussian, GaussianMixture
from ..errors import Evaluation, error_kernel, evaluate_schedule, factored
from ..processes import AbstractProcess, check_process, check_range, sigma_range
from ..recurrence import NAMED_INITIALIZATIONS
from ..samplers import AbstractSampler, as_sampler
from ..schedules import BASELINES, Schedule, TimeCoordinate
from ..score_error import ScoreError
from ..trajectories import RecordedError, TrajectoryRecord
from ._objective import OBJECTIVES, Objective, Windowed
from ._refine import REFINED
from ._result import OptimizedSchedule
from ._trust import model_warnings, unproven, unresolved, violations
from ._verify import (
    HALFWAY,
    NOISY,
    OPTIMUM,
    candidates as verification_candidates,
    recorded,
    refinement,
    verification,
)

Starts: TypeAlias = Sequence[str] | Mapping[str, Schedule] | None


_COMPRESS_ABOVE, _NODES = 64, 32


RECORDED_POWERS = {"recorded, typical": 0.0, "recorded, mean": 1.0, "recorded, rms": 2.0}


# statistics of a hundred trajectories are not worth more digits
_RECORDED_STARTS, _RECORDED_TOLERANCE = 3, 1e-5


SPREAD = 3.0
"""By how much each mode's variance is varied in the "local" objective by default, either way."""


_LARGEST_STOCHASTICITY = 10.0


# |z| <= 20 keeps every step longer than e^-40 of the whole range, still distinct in float64
_LARGEST_LOGIT = 20.0


_CHUNK = 25


# a relative gradient that cancellation in float64 cannot be expected to go below
_ROUNDING_FLOOR = 1e-9


_TERMINAL_RISK = (
    "the terminal objective lets errors of different steps cancel, which a network does not reproduce; "
    "the default objective 'local' forbids it"
)


class _Problem(eqx.Module):
    """The logarithm of the objective as a function of one flat vector z.

    z holds the interior times (K-1 unconstrained numbers), then the squared stochasticities (K) and the
    coordinate of the last time, the latter two only if they are optimised. The logarithm makes tolerances
    relative and turns an objective that is a sum of powers of step lengths into one that Newton's method
    walks through in large steps.
    """

    objective: Objective
    monotone: TimeCoordinate
    stochasticity_squared: Float[ArrayLike, " steps"] | None
    end: Float[ArrayLike, ""] | None
    windowed: bool = eqx.field(static=True)
    """Whether only interior times vary and the objective has its own derivatives in them."""

    def schedule(self, z: Float[Array, " n"]) -> Schedule:
        squared, end = self.stochasticity_squared, self.end
        if end is None:
            z, end = z[:-1], self.monotone.time(z[-1])
        if squared is None:
            interior = z.shape[0] // 2  # K-1 of the 2K-1 numbers
            z, squared = z[:interior], z[interior:]
        return Schedule.from_squared(self.monotone.times(z, end), squared)

    def derivatives(self, z: Float[Array, " n"]) -> tuple[Array, Array, Array]:
        """log objective, its gradient and its Hessian at z."""
        if self.windowed:
            value, g, h = self._windowed(z)
        else:
            value, g, h = dense_derivatives(lambda z: self.objective(self.schedule(z)), z)
        g = g / value
        return jnp.log(value), g, h / value - g[:, None] * g

    def _windowed(self, z: Array) -> tuple[Array, Array, Array]:
        """By the chain rule through the map z -> times, which is cheap whatever the target."""
        assert isinstance(self.objective, Windowed)

        def times(z: Array) -> Array:
            return self.schedule(z).times

        value, g, h = self.objective.derivatives(self.schedule(z))
        _, slope, bend = dense_derivatives(lambda z: times(z) @ g, z)
        jacobian = jax.jacfwd(times)(z)
        return value, slope, jacobian.T @ h @ jacobian + bend


class _UserObjective(eqx.Module):
    fn: Objective = eqx.field(static=True)

    def __call__(self, schedule: Schedule, /) -> Float[Array, ""]:
        return self.fn(schedule)


def optimize_schedule(
    target: Gaussian | GaussianMixture | Numbers,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    num_steps: int,
    *,
    t_min: Numbers,
    score_error: ScoreError | None = None,
    stochasticity: Numbers = 0.0,
    objective: str | Objective = "local",
    metric: str | metrics.Metric = "w2_squared",
    initialization: str = "standard_normal",
    spread: float | None = None,
    starts: Starts = None,
    compress: bool | int | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-8,
    score_fn: Network | None = None,
    kind: str = "score",
    verify: int | AnyArray | None = None,
    data: Numbers | None = None,
    choose: str = BALANCED,
    record: TrajectoryRecord | None = None,
    refine: int | None = None,
    key: Array | None = None,
    progress: bool = True,
) -> OptimizedSchedule:
    """The time grid, and if asked the stochasticity, that minimise a sampler's error on data or a network.

    **Arguments:**

    - `target`: samples (n, ...), to which a mixture is fitted (`GaussianMixture.fit`); or a `GaussianMixture`; or a
      `Gaussian`, solved in milliseconds once compiled. With a mixture the optimum for its mean and covariance is one of
      several candidates that are run through the mixture's exact score, as with `score_fn`, and a `record` of it is
      made for more of them: half a minute (minutes in 3072 dimensions), and far better for DPM-Solver++(2M)
      on networks (benchmarks/README.md). `objective` and `metric` are then those of that one candidate. With `score_fn`
      the network decides, also among the mixture's optima if it has no `record` of its own.
    - `num_steps`: K >= 1.
    - `t_min`: the last time, 0 <= t_min < t_max; or (low, high) to optimise it between these bounds.
    - `score_error`: the objective then includes what it costs in the mean, correlation in time and all.
      One that is given mode by mode is used on the whole spectrum, without compression.
    - `stochasticity`: alpha = h/g, a number or (K,), kept as it is; or "optimize" for one per step.
      `DDIM` is the family in which an optimised stochasticity was seen to hold on networks.
    - `objective`: "local" (default), the sum over steps of each step's own terminal error, in which
      nothing cancels (`LocalError`); "terminal", the exact error of the whole run (`TerminalError`), which a
      network need not reproduce; or a jittable, differentiable, positive function of
      a `Schedule`.
    - `metric`: "w2_squared", "kl" = KL(p_data || q), "reverse_kl", or a function
      (mean_error, variance, target_variance) -> value per mode.
    - `initialization`: the law that sampling starts from, "standard_normal" (default) or "marginal", the exact one at
      t_max. For the Gaussian; on a network or a mixture sampling starts from normal noise.
    - `spread`: the "local" objective is averaged over variances of each mode from lambda / spread to
      lambda spread (default 3; 1 for the target exactly as given). A multistep sampler's defect vanishes at one
      ratio of steps for one variance, and an optimum for exact variances puts a long step there, which data that
      are not Gaussian do not bear out: on trained networks the spread made DPM-Solver++(2M) 1.7 times better and
      left DDIM as it was (benchmarks/README.md). Not for other objectives, nor for a score error given mode by mode.
    - `starts`: names of grids in `schedules.BASELINES`, or {name: Schedule}; default every named grid. With
      "optimize", each is started at stochasticity 0 and 1. All starts run at once.
    - `compress`: number of quadrature nodes for the spectrum, False for none; by default 32 when there
      are more than 64 modes. A metric of your own is not compressed by default.
    - `tolerance`: on the largest entry of the objective's relative gradient.
    - `score_fn`: your network, of the given `kind` (see `sample`). The optimum, the named grids and the schedules
      halfway between are then run through it from `verify` noises against a fine solver, the best by
      `Comparison.best` is returned, and `comparison` has the errors of all on as many fresh noises (default 256; on a
      mixture 8000 / sqrt(d), but 256 to 8192). `verify` may also be the noises themselves, (n, ...) in the
      network's shape; `key` draws them (fixed by default), in the shape of the samples if the target is samples, else
      as vectors.
    - `data`: samples (n, ...) to whose law sliced W2 is measured on the network, instead of to the fine solver's. A
      stochastic schedule is chosen by that alone, so that it needs them; by default the target's, if that is samples.
    - `choose`: what is best among the candidates, see `Comparison.best`: "balanced" (default), good for typical
      samples, in the mean square and in law, and on the noises that choose worse than the named grids in none of the
      three; or the smallest "geometric_mean", "median", "rms" or "sliced_w2". On networks the smallest log_mean was another
      14 % lower, and up to 2.5 times worse than the grids in rms.
    - `record`: of the same network (`jaxkernels.record`). The optima of `RecordedError` for typical samples, for the
      mean and for the root mean square join the candidates: on trained networks by far the best ones. Needs
      `score_fn` or a mixture; without verification pass `objective=RecordedError(...)`. They are deterministic.
    - `refine`: so many gradient steps from the chosen schedule down the statistic that chose it, on half of the noises
      that did, stopped by the other half (`_refine.refined`). What comes out is one more candidate. Default 40 through
      a mixture (fewer above 256 dimensions), 0 through a network, which must be differentiable by JAX; there a step
      costs about 2.5 `verify` times num_steps evaluations.
    - `progress`: show a status line while it takes longer than a second, on a terminal.

    **Returns:** an `OptimizedSchedule`, never worse under its objective than the best start; or, with a network or a
    mixture, what was best there. Failing to converge is reported in it, not raised.

    **Raises:** ValueError naming the argument and its value; ImportError for samples without scikit-learn.

    Solved in float64 by a trust-region Newton method with exact second derivatives; the result has the
    caller's precision. The first call for a K, sampler and kind of process compiles.
    """
    began = time.perf_counter()
    if is_traced((target, process, sampler)):
        raise ValueError("optimize_schedule must be called outside jit, grad and vmap.")
    process, sampler = check_process(process), as_sampler(sampler)
    num_steps = _checks.count("num_steps", num_steps)
    max_iterations = _checks.count("max_iterations", max_iterations)
    tolerance = float(_checks.scalar("tolerance", tolerance, at_least=0.0))
    initialization = _checks.one_of("initialization", initialization, NAMED_INITIALIZATIONS)
    low, high = _end_range(process, t_min)
    fixed = _fixed_stochasticity(sampler, num_steps, stochasticity)
    metric_fn = metrics.resolve(metric)
    stochastic = fixed is None or bool(fixed.any())
    deterministic = not stochastic and low == high
    choose = _choice(choose, stochastic)
    if refine is not None:
        refine = _checks.count("refine", refine, at_least=0)
    key = jax.random.key(0) if key is None else key
    if isinstance(objective, str):
        _checks.lookup("objective", objective, OBJECTIVES)
    elif not callable(objective):
        raise ValueError(
            f"objective must be a name or a function of a schedule; got {objective!r}."
        )
    spread = _resolved_spread(spread, objective, score_error)
    on_gaussian = score_fn is None and isinstance(target, Gaussian)
    if on_gaussian:
        asked = None if choose == BALANCED else choose
        given = {
            "record": record,
            "data": data,
            "verify": verify,
            f"kind = {kind!r}": None if kind == "score" else kind,
            f"refine = {refine}": refine or None,
            f"choose = {choose!r}": asked,
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} needs score_fn, the network that it is for, or a mixture as target."
                )
    else:
        if low < high:
            raise ValueError(
                f"t_min = {t_min} must be one number, to run schedules on a network or a mixture; between bounds it is "
                "optimised for a Gaussian alone."
            )
        if score_fn is None and score_error is not None:
            raise ValueError(
                "score_error is for a Gaussian target or for score_fn; a mixture is run with its exact score."
            )
        if refine and stochastic:
            raise ValueError(
                f"refine = {refine} is for deterministic schedules: stochasticity must be 0."
            )
    if record is not None:
        if fixed is not None and stochastic:
            raise ValueError(
                "record is of deterministic trajectories: stochasticity must be 0 or 'optimize'."
            )
        _check_record(record, process, sampler, low)
    if isinstance(objective, RecordedError):
        _check_recorded_error(objective, process, sampler, low, deterministic)
    target, mixture, samples = _model(target, score_fn is not None and record is not None, progress)
    options: dict[str, Any] = {"initialization": initialization, "score_error": score_error}
    if score_error is not None:
        _check_score_error(target, process, sampler, num_steps, low, score_error)
    tried = None
    if refine is None:
        by_mixture = mixture is not None and score_fn is None and deterministic
        refine = refinement(target.eigenvalues.shape[0]) if by_mixture else 0
    if not on_gaussian:
        shape = None
        if samples is not None and score_fn is not None:
            shape = samples.shape[1:]
            data = samples if stochastic and data is None else data
        tried = verification(
            target, mixture, process, stochastic, score_fn, kind, verify, data, shape, key
        )

    recordable = (
        sampler.nfe_per_step == 1
        and (deterministic or fixed is None)
        and sigma_range(process, low)[1] > 0
    )
    if record is None and mixture is not None and recordable:
        record = recorded(target, mixture, process, low, key, progress)
    precision = jax.enable_x64(jnp.result_type(float) == jnp.float64)
    with (
        Progress("optimising: compiling", progress) as line,
        ThreadPoolExecutor(1) as beside,
        jax.enable_x64(True),
    ):
        target64, process64, sampler64, error64 = to_float64(
            (target, process, sampler, score_error)
        )
        whole = target64.in_eigenbasis()
        law = whole.with_variance_factor(spread)
        named = isinstance(metric, str) and isinstance(objective, str)
        nodes = _nodes(compress, law, named and (score_error is None or score_error.any_spectrum))
        small = law.compress(nodes) if nodes else law

        def make(target: Gaussian) -> Objective:
            if isinstance(objective, str):
                return OBJECTIVES[objective](
                    target, process64, sampler64, metric_fn, initialization, error64
                )
            # a module's arrays are arguments of what is compiled, a function's are constants in it
            return (
                to_float64(objective)
                if isinstance(objective, eqx.Module)
                else _UserObjective(objective)
            )

        monotone = _monotone(whole, process64, low)
        ends = np.asarray(_coordinate(monotone, np.asarray([low, high])))
        end = low if low == high else float(monotone.time(jnp.asarray(ends.mean())))
        grids = {name: grid(process64, num_steps, end) for name, grid in BASELINES.items()}
        given = _starts(starts, grids, num_steps, float(np.asarray(process64.t_max)), low, high)
        baselines = _with_stochasticity({**grids, **given}, fixed)
        first = _with_stochasticity(given, fixed)

        def compare() -> tuple[np.ndarray, Evaluation]:
            with jax.enable_x64(True):
                values = _evaluate_all(make(law), list(baselines.values()))
            with precision:
                best = _outside(list(baselines.values())[int(np.argmin(values))])
                return values, evaluate_schedule(target, process, sampler, best, **options)

        # compiling takes most of a first call: the baselines are evaluated while the solver compiles
        compared = beside.submit(compare)
        minimised = make(small)
        windowed = isinstance(minimised, Windowed) and deterministic
        problem = _Problem(
            minimised,
            monotone,
            fixed,
            np.asarray(low) if low == high else None,
            windowed,
        )
        lower, upper = _bounds(problem, num_steps, ends)
        z = np.clip(_variables(problem, list(first.values())), lower, upper)
        state = _solve(problem, z, lower, upper, tolerance, max_iterations, line)

        found = _schedules(problem, state.z)
        candidates = [*found, *baselines.values()]
        baseline_values, baseline_evaluation = compared.result()
        values = np.concatenate([_evaluate_all(make(law), found), baseline_values])
        chosen = int(np.argmin(values))
        if not 0.0 < values[chosen] < np.inf:
            raise ValueError(
                f"the objective is {values[chosen]:g} at its best start; it must be finite and positive. A "
                "KL metric needs positive eigenvalues, and samplers that divide by the signal need a "
                "process whose sigma(t_max) is finite."
            )
        # the certificate belongs to the best optimised start, also where a baseline was as good
        best = int(np.argmin(values[: len(first)]))
        norm, curvature = certificate(state, best, lower, upper) if z.shape[1] else (0.0, np.inf)
        reached = np.exp(np.asarray(state.value)) if z.shape[1] else values[: len(first)]
        iterations = int(state.iteration)
        history = np.exp(np.asarray(state.history)[:iterations])
        pool = {}
        if tried is not None:
            optima = {OPTIMUM: candidates[chosen]}
            if record is not None:
                likely = {OPTIMUM: candidates[chosen], **baselines}
                likely = {name: s for name, s in likely.items() if not s.is_stochastic}
                optima |= _recorded_optima(
                    record, sampler64, likely, monotone, low, max_iterations, line
                )
            pool = verification_candidates(monotone, optima, baselines)

    picked, best_schedule, value, criterion = (
        OPTIMUM,
        candidates[chosen],
        float(values[chosen]),
        "objective",
    )
    comparison, spent, doubts = None, 0, ()
    if tried is not None:
        run = {name: _outside(s) for name, s in pool.items()}
        picked, run, comparison, spent = tried.choose(
            process, sampler, monotone, run, list(baselines), choose, refine, progress
        )
        pool = {**run, **pool}
        best_schedule = pool[picked]
        criterion = comparison.criterion if choose == BALANCED else choose
        errors = comparison.statistic(criterion)
        nearest = _outside(baselines[min(baselines, key=errors.__getitem__)])
        baseline_evaluation = evaluate_schedule(target, process, sampler, nearest, **options)
        doubts = unresolved(comparison, picked)
        if not tried.on_network and num_steps > 1:  # one step is the same by every grid
            doubts += unproven(comparison, picked, baselines)
    with jax.enable_x64(True):
        if comparison is not None:
            # as many rows as the starts: the program that evaluated them serves again
            value = float(_evaluate_all(make(law), [best_schedule] * len(first))[0])
        reasons = violations(whole, process64, sampler64, best_schedule)
    if objective == "terminal":
        reasons = (_TERMINAL_RISK, *reasons)
    schedule = _outside(best_schedule)
    converged = norm <= max(tolerance, _ROUNDING_FLOOR)
    return OptimizedSchedule(
        schedule=schedule,
        objective=value,
        evaluation=evaluate_schedule(target, process, sampler, schedule, **options),
        baselines=dict(zip(baselines, baseline_values.tolist(), strict=True)),
        baseline_evaluation=baseline_evaluation,
        baseline_schedules={name: _outside(s) for name, s in baselines.items()},
        converged=converged,
        reason=_reason(converged, iterations, max_iterations, norm, tolerance),
        gradient_norm=norm,
        smallest_curvature=curvature,
        optima=dict(zip(first, reached.tolist(), strict=True)),
        history=history,
        trusted=not reasons,
        warnings=(*reasons, *model_warnings(target), *doubts),
        verified=tried is not None and tried.on_network,
        criterion=criterion,
        chosen=picked,
        comparison=comparison,
        candidates={name: _outside(s) for name, s in pool.items()},
        nfe=spent,
        compression=small.compression,
        compression_error=abs(float(reached[best]) / float(values[best]) - 1.0),
        seconds=time.perf_counter() - began,
        target=target,
        process=process,
        sampler=sampler,
    )


def _solve(
    problem: _Problem,
    z: np.ndarray,
    lower: AnyArray,
    upper: AnyArray,
    tolerance: float,
    max_iterations: int,
    line: Progress,
) -> NewtonState:
    """All starts to the end, a few iterations per call so that progress can be shown."""
    state = newton_start(z, max_iterations)
    limit = max_iterations if z.shape[1] else 0
    while int(state.iteration) < limit and not np.all(state.done):
        until = min(int(state.iteration) + _CHUNK, limit)
        state = newton_advance(
            problem, state, lower, upper, np.asarray(tolerance), np.asarray(until)
        )
        value = float(np.exp(np.min(state.value)))
        line.update(f"optimising: iteration {int(state.iteration)}, objective {value:.6g}")
    return state


def _recorded_optima(
    record: TrajectoryRecord,
    sampler: AbstractSampler,
    starts: dict[str, Schedule],
    monotone: TimeCoordinate,
    t_min: float,
    max_iterations: int,
    line: Progress,
) -> dict[str, Schedule]:
    """The optimum of `RecordedError` for each power, from the schedules that the record ranks best."""
    steps = next(iter(starts.values())).num_steps
    result, record = {}, to_float64(record)
    for name, power in RECORDED_POWERS.items():
        line.update(f"optimising: {name}")
        objective = RecordedError(record, sampler, power)
        values = _evaluate_all(objective, list(starts.values()))
        first = [list(starts.values())[i] for i in np.argsort(values)[:_RECORDED_STARTS]]
        problem = _Problem(objective, monotone, np.zeros(steps), np.asarray(t_min), windowed=True)
        bound = constant(np.full(steps - 1, _LARGEST_LOGIT))
        state = _solve(
            problem,
            _variables(problem, first),
            -bound,
            bound,
            _RECORDED_TOLERANCE,
            max_iterations,
            line,
        )
        result[name] = _schedules(problem, state.z)[int(np.argmin(state.value))]
    return result


def _model(
    target: Gaussian | GaussianMixture | Numbers, has_record: bool, progress: bool
) -> tuple[Gaussian, GaussianMixture | None, AnyArray | None]:
    """The Gaussian that is solved for; the mixture that candidates come from; the samples, if they are given.

    Where a network was recorded, a mixture fitted to samples would have nothing to add.
    """
    if isinstance(target, Gaussian):
        return target, None, None
    if isinstance(target, GaussianMixture):
        return target.gaussian(), target, None
    try:
        if np.asarray(target).dtype.kind not in "biufc":
            raise ValueError(f"got {type(target).__name__}.")
        samples = _checks.array("target", target)
        if samples.ndim < 2:
            raise ValueError(f"its shape is {samples.shape}.")
    except ValueError as error:
        raise ValueError(
            f"target must be samples (n, ...), a Gaussian or a GaussianMixture: {error}"
        ) from None
    if has_record:
        return Gaussian.fit(samples), None, samples
    with Progress("fitting a mixture to the samples", progress):
        mixture = GaussianMixture.fit(samples)
    return mixture.gaussian(), mixture, samples


def _choice(choose: str, stochastic: bool) -> str:
    _checks.one_of("choose", choose, (BALANCED, *STATISTICS))
    if stochastic and choose not in (BALANCED, "sliced_w2"):
        raise ValueError(
            f"choose = {choose!r} is for deterministic schedules; stochastic ones are chosen by sliced_w2."
        )
    return choose


def _check_record(
    record: object, process: AbstractProcess, sampler: AbstractSampler, t_min: float
) -> None:
    if not isinstance(record, TrajectoryRecord):
        raise ValueError(
            f"record must be a Record, of jaxkernels.record; got {type(record).__name__}."
        )
    RecordedError(record, sampler)  # refuses a sampler that a record cannot predict
    times = np.linspace(t_min, float(np.asarray(process.t_max)), 7)[1:-1]
    same = np.allclose(record.process.sigma(times), process.sigma(times), rtol=1e-4)
    if not same or not np.isclose(float(record.t_min), t_min, rtol=1e-5):
        raise ValueError(
            f"record is of {record.process} down to t_min = {float(record.t_min):g}; here process is {process}, "
            f"t_min = {t_min:g}."
        )


def _check_recorded_error(
    objective: RecordedError,
    process: AbstractProcess,
    sampler: AbstractSampler,
    t_min: float,
    deterministic: bool,
) -> None:
    _check_record(objective.record, process, sampler, t_min)
    if not eqx.tree_equal(objective.sampler, sampler):
        raise ValueError(
            f"objective is the RecordedError of {objective.sampler}; sampler is {sampler}."
        )
    if not deterministic:
        raise ValueError(
            "a RecordedError is of deterministic trajectories: stochasticity must be 0, and t_min fixed."
        )


def _end_range(process: AbstractProcess, t_min: object) -> tuple[float, float]:
    """Bounds of the last time; equal when it is fixed."""
    if not isinstance(t_min, tuple):
        low = check_range(process, 1, t_min)  # pyright: ignore[reportArgumentType]
        return low, low
    if len(t_min) != 2:
        raise ValueError(f"t_min = {t_min} must be a number or a pair (low, high).")
    low, high = (check_range(process, 1, t) for t in t_min)
    if not low < high:
        raise ValueError(f"t_min = {t_min} must have its lower bound first.")
    return low, high


def _resolved_spread(
    spread: float | None, objective: object, score_error: ScoreError | None
) -> float:
    by_mode = score_error is not None and not score_error.any_spectrum
    if spread is None:
        return SPREAD if objective == "local" and not by_mode else 1.0
    spread = float(_checks.scalar("spread", spread, at_least=1.0))
    if spread > 1.0 and (objective != "local" or by_mode):
        raise ValueError(
            f"spread = {spread:g} is for objective='local' and a score_error that is not given mode by mode; "
            "leave it out, or use 1."
        )
    return spread


def _check_score_error(
    target, process, sampler, num_steps: int, t_min: float, score_error: object
) -> None:
    """Whether an error fits the target and any schedule of so many steps: seen on one of them."""
    if not isinstance(score_error, ScoreError):
        raise ValueError(f"score_error must be a ScoreError; got {type(score_error).__name__}.")
    kernel = error_kernel(target, process, sampler, BASELINES["uniform"](process, num_steps, t_min))
    factored(kernel, score_error)


def _fixed_stochasticity(
    sampler: AbstractSampler, num_steps: int, stochasticity: object
) -> np.ndarray | None:
    """Squared stochasticity of every step, or None if it is to be optimised."""
    if isinstance(stochasticity, str):
        _checks.one_of("stochasticity", stochasticity, ("optimize",))
        if not sampler.stochastic:
            raise ValueError(
                f"stochasticity='optimize' has no meaning for {type(sampler).__name__}, which is "
                "deterministic; use DDIM or another stochastic sampler."
            )
        return None
    alpha = _checks.array("stochasticity", stochasticity)
    if alpha.shape not in ((), (num_steps,)):
        raise ValueError(
            f"stochasticity has shape {alpha.shape}; for num_steps = {num_steps} it must be a single "
            f"number or have shape ({num_steps},)."
        )
    if np.any(alpha < 0):
        raise ValueError(f"stochasticity must be >= 0; its smallest entry is {alpha.min():g}.")
    if np.any(alpha > 0) and not sampler.stochastic:
        raise ValueError(
            f"stochasticity = {alpha.max():g} has no meaning for {type(sampler).__name__}, which is "
            "deterministic; use 0."
        )
    return np.broadcast_to(alpha**2, (num_steps,))


def _nodes(compress: bool | int | None, target: Gaussian, named: bool) -> int:
    """Quadrature nodes for the spectrum; 0 for no compression."""
    if compress is None or compress is True:
        large = compress is True or target.eigenvalues.shape[0] > _COMPRESS_ABOVE
        return _NODES if large and (named or compress is True) else 0
    return 0 if compress is False else _checks.count("compress", compress)


def _monotone(target: Gaussian, process: AbstractProcess, low: float) -> TimeCoordinate:
    """The coordinate of the times: log sigma, bent only where an end of sigma is 0 or infinite."""
    eigenvalues = np.asarray(target.eigenvalues)
    scale = eigenvalues[eigenvalues > 1e-10 * eigenvalues.max()] if eigenvalues.max() > 0 else [1.0]
    to_zero = low == 0.0
    to_infinity = not np.isfinite(sigma_range(process, low)[0])
    return TimeCoordinate(
        process,
        np.asarray(process.t_max),
        np.asarray(0.1 * np.sqrt(np.min(scale)) if to_zero else 0.0),
        np.asarray(10.0 * np.sqrt(np.max(scale)) if to_infinity else np.inf),
    )


def _starts(
    starts: Starts,
    grids: dict[str, Schedule],
    num_steps: int,
    t_max: float,
    low: float,
    high: float,
) -> dict[str, Schedule]:
    """The schedules to start from, by name."""
    if starts is None:
        return grids
    if isinstance(starts, str) or not starts:
        raise ValueError(
            f"starts = {starts!r} must be a list of names or a dict of schedules, not empty."
        )
    if not isinstance(starts, Mapping):
        return {name: _checks.lookup("starts", name, grids) for name in starts}
    given = {}
    for name, schedule in starts.items():
        if not isinstance(schedule, Schedule):
            raise ValueError(f"starts[{name!r}] must be a Schedule; got {type(schedule).__name__}.")
        if (
            name in (OPTIMUM, REFINED, *RECORDED_POWERS, *BASELINES)
            or HALFWAY in name
            or name.endswith(NOISY)
        ):
            raise ValueError(
                f"starts[{name!r}] has the name of another candidate; give it one of its own."
            )
        if schedule.num_steps != num_steps:
            raise ValueError(
                f"starts[{name!r}] has {schedule.num_steps} steps; num_steps is {num_steps}."
            )
        times = np.asarray(schedule.times, np.float64).copy()
        slack = 1e-6 * t_max
        if abs(times[0] - t_max) > slack or not low - slack <= times[-1] <= high + slack:
            raise ValueError(
                f"starts[{name!r}] runs from {times[0]:g} to {times[-1]:g}; it must run from t_max = "
                f"{t_max:g} to t_min = {low:g}{'' if low == high else f' .. {high:g}'}."
            )
        times[0], times[-1] = t_max, np.clip(times[-1], low, high)
        given[name] = Schedule(times, np.asarray(schedule.stochasticity))
    return given


def _with_stochasticity(
    schedules: dict[str, Schedule], fixed: np.ndarray | None
) -> dict[str, Schedule]:
    """Each schedule with the fixed stochasticity, or with both 0 and 1 when it is optimised."""
    if fixed is not None:
        return {name: Schedule.from_squared(s.times, fixed) for name, s in schedules.items()}
    return {
        name if alpha == 0 else f"{name}{NOISY}": Schedule(s.times, alpha)
        for alpha in (0.0, 1.0)
        for name, s in schedules.items()
    }


@jax.jit
def _coordinate(monotone: TimeCoordinate, t: Array) -> Array:
    return monotone.coordinate(t)


@jax.jit
def _flatten(problem: _Problem, times: Array, squared: Array) -> Array:
    """The flat vector of each start, given by rows; inverse of `_Problem.schedule`."""
    monotone = problem.monotone
    parts = [jax.vmap(monotone.unconstrained)(times)]
    if problem.stochasticity_squared is None:
        parts.append(squared)
    if problem.end is None:
        parts.append(monotone.coordinate(times[:, -1:]))
    return jnp.concatenate(parts, axis=1)


@jax.jit
def _unflatten(problem: _Problem, z: Array) -> Schedule:
    return jax.vmap(problem.schedule)(z)


def _stack(schedules: list[Schedule]) -> tuple[np.ndarray, np.ndarray]:
    times = np.stack([np.asarray(s.times) for s in schedules])
    return times, np.stack([np.asarray(s.stochasticity_squared) for s in schedules])


def _variables(problem: _Problem, schedules: list[Schedule]) -> np.ndarray:
    return np.asarray(_flatten(problem, *_stack(schedules)))


def _schedules(problem: _Problem, z: Array) -> list[Schedule]:
    rows = _unflatten(problem, z)
    times, squared = np.asarray(rows.times), np.asarray(rows.stochasticity_squared)
    return [Schedule.from_squared(t, w) for t, w in zip(times, squared)]


def _bounds(problem: _Problem, num_steps: int, ends: np.ndarray) -> tuple[AnyArray, AnyArray]:
    """Box of the flat vector."""
    lower, upper = (
        [np.full(num_steps - 1, -_LARGEST_LOGIT)],
        [np.full(num_steps - 1, _LARGEST_LOGIT)],
    )
    if problem.stochasticity_squared is None:
        lower.append(np.zeros(num_steps))
        upper.append(np.full(num_steps, _LARGEST_STOCHASTICITY**2))
    if problem.end is None:
        lower.append(ends[:1])
        upper.append(ends[1:])
    return constant(np.concatenate(lower)), constant(np.concatenate(upper))


@jax.jit
def _values(objective: Objective, times: Array, squared: Array) -> Array:
    return jax.vmap(lambda t, w: objective(Schedule.from_squared(t, w)))(times, squared)


def _outside(schedule: Schedule) -> Schedule:
    """A schedule computed in float64, in the caller's precision."""
    return Schedule(np.asarray(schedule.times), np.sqrt(np.asarray(schedule.stochasticity_squared)))


def _evaluate_all(objective: Objective, schedules: list[Schedule]) -> np.ndarray:
    """The objective of every schedule, infinite where it is not a number."""
    values = np.asarray(_values(objective, *_stack(schedules)))
    return np.where(np.isnan(values), np.inf, values)


def _reason(
    converged: bool, iterations: int, max_iterations: int, gradient: float, tolerance: float
) -> str:
    if converged:
        return "the gradient met the tolerance"
    if iterations >= max_iterations:
        return (
            f"max_iterations = {max_iterations} was reached with relative gradient {gradient:.1e}"
        )
    return f"no step lowers the objective; relative gradient {gradient:.1e} > tolerance {tolerance:.1e}"
