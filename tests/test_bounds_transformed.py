"""Every public bound under jit, vmap over schedules, and differentiation.

The bounds are found in the public namespace, so that a new one must be added here.
"""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import jaxkernels as jk
from jaxkernels.bounds import as_published
from jaxkernels.bounds._certified import SCHEMES, required_stochasticity
from jaxkernels.bounds._girsanov import GIRSANOV

# --- what is bounded ------------------------------------------------------------------------------

OU = jk.OU()
VP = jk.VP()
GAUSSIAN = jk.Gaussian([0.3, 0.1, -0.2], [2.0, 0.3, 0.05])
MIXTURE = jk.GaussianMixture([0.4, 0.6], [[-0.5, 0.2], [0.5, 0.0]], [[1.0, 0.5], [1.0, 0.5]])
LOG_CONCAVE = jk.bounds.Assumptions(OU, 2, 3.0, convexity=1.0, smoothness=1.5, third_derivative=0.8)
CURVE = jk.bounds.DenoisingCurve([0.01, 0.05, 0.2, 0.5, 1.0, 3.0], [0.02, 0.1, 0.35, 0.6, 0.8, 1.5])


def slope(w: Array) -> Array:
    """Of the denoiser of a standard normal distribution."""
    return 1.0 / (1.0 + w)


MEASURED = jk.bounds.Assumptions(VP, 2, 2.0, denoising_error=CURVE, denoiser_slope=slope)


def size(t: Array) -> Array:
    """Of a score error, which follows the schedule."""
    return 0.1 / (1.0 + t)


class Case(NamedTuple):
    """A bound as a function of two interior times and the squared stochasticity of three steps."""

    bound: Callable[[jk.Schedule], Float[Array, ""]]
    alpha: float | None = 0.7
    """Of all steps; None for the bounds that are for one stochasticity only."""
    fixed: float = 0.0
    """That one."""


def _certified(name: str, known: Any, process: jk.AbstractProcess) -> Case:
    def bound(schedule: jk.Schedule) -> Array:
        options = {"score_error": size, "error_lipschitz": 0.1}
        return jk.bounds.certified_bound(known, process, name, schedule, **options).value

    required = required_stochasticity(name)
    return Case(bound) if required is None else Case(bound, None, required)


def _divergence(name: str, known: Any, process: jk.AbstractProcess) -> Case:
    def bound(schedule: jk.Schedule) -> Array:
        return jk.bounds.girsanov_bound(known, process, name, schedule, score_error=size).value

    return Case(bound, None, 1.0)


def _objective(objective: Any, sampler: jk.AbstractSampler, alpha: float | None) -> Case:
    def bound(schedule: jk.Schedule) -> Array:
        return objective.bind(GAUSSIAN, VP, sampler)(schedule)

    return Case(bound, alpha)


def _operators(method: str, *more: Any) -> Case:
    def bound(schedule: jk.Schedule) -> Array:
        operators = jk.bounds.accumulation_operators(GAUSSIAN, VP, "ddim", schedule)
        return getattr(operators, method)(size, *more).value

    return Case(bound)


def _lipschitz(method: str, curvature: Any, *more: Any) -> Case:
    def bound(schedule: jk.Schedule) -> Array:
        run = (curvature, VP, "ddim", schedule)
        accumulation = jk.bounds.lipschitz_accumulation(*run, lipschitz=0.1)
        return getattr(accumulation, method)(size, *more).value

    return Case(bound)


def _along_run(schedule: jk.Schedule) -> Array:
    run = (GAUSSIAN, VP, "ddim", schedule)
    return jnp.sum(jk.bounds.rms_along_run(*run, rms=size, lipschitz=0.2))


def _continuous(schedule: jk.Schedule) -> Array:
    """Of what lies between two times: it has no steps."""
    accumulation = jk.bounds.continuous_accumulation(
        GAUSSIAN,
        VP,
        lipschitz=0.1,
        stochasticity=jnp.sqrt(schedule.stochasticity_squared[0]),
        t_min=schedule.times[1],
    )
    return accumulation.coherent(size).value


def _interval(schedule: jk.Schedule) -> Array:
    low, high = jk.bounds.hessian_interval(VP, schedule.times, convexity=0.5, smoothness=2.0)
    return jnp.sum(high**2 - low)


def _ratio(schedule: jk.Schedule) -> Array:
    alpha = jnp.sqrt(schedule.stochasticity_squared[0])
    return jk.bounds.sde_ode_ratio(VP, schedule.times[1], variance=0.5, stochasticity=alpha)


def _crossing(schedule: jk.Schedule) -> Array:
    alpha = jnp.sqrt(schedule.stochasticity_squared[0])
    return jk.bounds.sde_ode_crossing(VP, variance=schedule.times[1], stochasticity=alpha)


def _separation(schedule: jk.Schedule) -> Array:
    return jnp.sum(jk.bounds.separation(MIXTURE, VP, schedule.times).largest)


def _published(name: str, target: Any, **more: Any) -> Case:
    def bound(schedule: jk.Schedule) -> Array:
        return getattr(as_published, name)(target, VP, "ddim", schedule, rms=size, **more)

    return Case(bound)


def _theorem(name: str, *schemes: str) -> Case:
    """Of the first two steps as T and h."""

    def bound(schedule: jk.Schedule) -> Array:
        horizon, step = 5.0 * schedule.times[1], schedule.times[2]
        known = jk.bounds.assumptions(jk.Gaussian([1.0, -1.0], [0.5, 1.0]), OU)
        return getattr(as_published, name)(known, *schemes, horizon, step, 0.1).value

    return Case(bound, None)


def _process_of(name: str) -> jk.AbstractProcess:
    return VP if name in ("ddim", "heun", "euler_flow") else OU


CASES: dict[str, dict[str, Case]] = {
    "certified_bound": {
        **{name: _certified(name, GAUSSIAN, _process_of(name)) for name in SCHEMES},
        "second_order, log-concave": _certified("second_order", LOG_CONCAVE, OU),
        "tweedie, log-concave": _certified("tweedie", LOG_CONCAVE, OU),
        "heun, log-concave": _certified("heun", LOG_CONCAVE, OU),
        "ddim, mixture": _certified("ddim", MIXTURE, VP),
        "ddim, measured": _certified("ddim", MEASURED, VP)._replace(alpha=None, fixed=1.0),
    },
    "girsanov_bound": {
        **{name: _divergence(name, GAUSSIAN, _process_of(name)) for name in GIRSANOV},
        "ddim, measured": _divergence("ddim", MEASURED, VP),
    },
    "accumulation_operators": {
        "coherent": _operators("coherent"),
        "orthogonal": _operators("orthogonal"),
        "correlated": _operators("correlated", jk.AR1(0.5)),
    },
    "lipschitz_accumulation": {
        "coherent": _lipschitz("coherent", MIXTURE),
        "mixed": _lipschitz("mixed", jk.bounds.BoundedSupport(0.5), 0.2),
    },
    "rms_along_run": {"": Case(_along_run)},
    "continuous_accumulation": {"coherent": Case(_continuous)},
    "hessian_interval": {"": Case(_interval, None)},
    "sde_ode_ratio": {"": Case(_ratio)},
    "sde_ode_crossing": {"": Case(_crossing)},
    "separation": {"": Case(_separation, None)},
    "CertifiedError": {
        "w2": _objective(jk.bounds.CertifiedError(score_error=size), jk.DDIM(), 0.7),
        "kl": _objective(
            jk.bounds.CertifiedError("kl", score_error=size), jk.DDIM(), None
        )._replace(fixed=1.0),
    },
    "OperatorBound": {
        "coherent": _objective(
            jk.bounds.OperatorBound(size, to_data=True), jk.DPMSolverPP2M(), None
        ),
        "orthogonal": _objective(jk.bounds.OperatorBound(size, jk.Independent()), jk.DDIM(), 0.7),
    },
    "LipschitzBound": {
        "mixed": _objective(jk.bounds.LipschitzBound(size, 0.1, 0.1, to_data=True), jk.DDIM(), 0.7),
    },
}
PUBLISHED: dict[str, dict[str, Case]] = {
    "theorem_3_1": {"": _published("theorem_3_1", GAUSSIAN, lipschitz=0.1)},
    "equation_11": {"": _published("equation_11", 0.5, lipschitz=0.1)},
    "theorem_3_2": {
        "": _published("theorem_3_2", MIXTURE, lipschitz=0.1, components=np.array([0, 1, 1]))
    },
    "theorem_3_2_remainder": {"": _published("theorem_3_2_remainder", MIXTURE)},
    "theorem_3_3_remainder": {
        "": _published("theorem_3_3_remainder", MIXTURE, margins=np.array([0.1, 1.0, 2.0]))
    },
    "theorem_3_4": {"": _published("theorem_3_4", 2, lipschitz=0.1)},
    "corollary_b_1": {
        "": _published("corollary_b_1", 2, lipschitz=0.1, smoothness=2.0, until=0.36)
    },
    "theorem_1": {"": _theorem("theorem_1", "euler_maruyama")},
    "theorem_3": {"": _theorem("theorem_3", "rei")},
    "theorem_4": {"": _theorem("theorem_4")},
}

# no function of a schedule
OTHERS = {
    "Assumptions",  # constants, and those of the next line
    "assumptions",
    "AbstractCurvature",
    "BoundedSupport",
    "CurvatureClass",
    "GaussianCurvature",
    "MixtureCurvature",
    "TabulatedCurvature",
    "TightestCurvature",
    "DenoisingCurve",
    "AccumulationBound",  # results
    "AccumulationOperators",
    "CertifiedBound",
    "ContinuousAccumulation",
    "GirsanovBound",
    "LipschitzAccumulation",
    "PublishedBound",
    "Separation",
    "certified_num_steps",  # integers
    "corollary_2",
    "corollary_5",
    "dominant_component",
    "logit_margin",  # of points
}
# they take longest to compile, and differ from others in what they are given
SLOW = {
    "certified_bound second_order, log-concave",
    "certified_bound heun, log-concave",
    "certified_bound ddim, mixture",
    "rms_along_run",
    "CertifiedError w2",
    "OperatorBound coherent",
}


def _param(label: str, case: Case) -> Any:
    return pytest.param(case, id=label, marks=[pytest.mark.slow] if label in SLOW else [])


EVERY = [
    _param(f"{name} {label}".strip(), case)
    for cases in (CASES, PUBLISHED)
    for name, labelled in cases.items()
    for label, case in labelled.items()
]


def _public(module: types.ModuleType) -> set[str]:
    kept = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name for name, value in kept.items() if not isinstance(value, types.ModuleType)}


def test_no_public_bound_is_forgotten() -> None:
    assert _public(jk.bounds) == set(CASES) | (OTHERS & _public(jk.bounds))
    assert _public(as_published) == set(PUBLISHED) | (OTHERS & _public(as_published))
    assert set(CASES["certified_bound"]) >= set(SCHEMES)
    assert set(CASES["girsanov_bound"]) >= set(GIRSANOV)


# --- the test -------------------------------------------------------------------------------------

# two interior times and three stochasticities
POINTS = np.array(
    [[0.5, 0.15, 0.6, 0.8, 0.4], [0.7, 0.3, 0.2, 1.3, 0.9], [0.42, 0.08, 1.5, 0.5, 0.3]]
)
STEP = 1e-5


def _differences(values: np.ndarray) -> np.ndarray:
    """Of rows at +1, -1, +2 and -2 steps, (4, n): the derivative to fourth order."""
    return (8.0 * (values[0] - values[1]) - (values[2] - values[3])) / (12.0 * STEP)


@pytest.mark.parametrize("case", EVERY)
def test_bounds_are_compiled_vectorised_and_differentiated(case: Case) -> None:
    """jit and vmap over three schedules equal plain calls, derivatives central differences."""
    free = case.alpha is not None
    n = 5 if free else 2

    def value(z: Float[Array, " n"]) -> Float[Array, ""]:
        times = jnp.concatenate([jnp.array([0.95]), z[:2], jnp.array([0.02])])
        squared = z[2:] if free else jnp.full(3, case.fixed**2)
        return case.bound(jk.Schedule.from_squared(times, squared))

    points = jnp.asarray(POINTS[:, :n])
    program = jax.jit(jax.vmap(jax.value_and_grad(value)))
    values, slopes = program(points)
    plain = [float(value(z)) for z in points]
    assert np.all(np.isfinite(plain))
    assert np.all(np.asarray(plain) > 0)
    np.testing.assert_allclose(values, plain, rtol=1e-12)
    moves = STEP * np.concatenate([np.eye(n), -np.eye(n), 2 * np.eye(n), -2 * np.eye(n)])
    for z, found in zip(np.asarray(points), np.asarray(slopes), strict=True):
        # by the same program, three rows at a time
        rows = np.concatenate([z + moves, np.repeat(z[None], -len(moves) % 3, 0)])
        around = np.concatenate([program(rows[i : i + 3])[0] for i in range(0, len(rows), 3)])
        expected = _differences(around[: 4 * n].reshape(4, n))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
        assert np.any(np.abs(found) > 0)
