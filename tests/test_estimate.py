"""Measured score errors: synthetic ones come back, with intervals that hold what they promise."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import jaxkernels as jk
from jaxkernels.score_error import Tabulated

PROCESS = jk.VP()
TIMES = np.array([1.0, 0.7, 0.45, 0.2, 0.06])
SCHEDULE = jk.Schedule([*TIMES, 1e-3])
DATA = np.random.default_rng(0).standard_normal((40_000, 3)) * np.sqrt([2.0, 0.5, 0.1]) + [
    1.0,
    -0.5,
    0.0,
]
TARGET = jk.Gaussian.fit(DATA, shrinkage=0.0)
MODES = TARGET.in_eigenbasis()


class Network(eqx.Module):
    """The Gaussian score, an affine error at the times of `TIMES`, and a part that no affine
    function fits.
    """

    slope: Float[Array, "n d"]
    shift: Float[Array, "n d"]
    nonlinear: float

    def __call__(self, x: Array, t: Array) -> Array:
        a = PROCESS.signal(t)
        basis = jnp.asarray(TARGET.basis)
        i = jnp.argmin(jnp.abs(jnp.asarray(TIMES) - t))
        z = (x - a * jnp.asarray(TARGET.mean)) @ basis
        level = jnp.sqrt(MODES.marginal_variance(PROCESS, t))
        third = (
            z / level
        ) ** 3 - 3.0 * z / level  # orthogonal to affine functions of a normal variable
        error = self.shift[i] - self.slope[i] * (x @ basis) + self.nonlinear * third / level
        return TARGET.score(PROCESS, x, t) + error @ basis.T


def _denoiser(fn: Any, prediction_type: str = "score") -> jk.Denoiser:
    return jk.Denoiser(fn, PROCESS, prediction_type)


def _ensemble(
    slope: np.ndarray, shift: np.ndarray, nonlinear: float = 0.1
) -> list[jk.AbstractDenoiser]:
    return [
        _denoiser(Network(jnp.asarray(a), jnp.asarray(b), nonlinear))
        for a, b in zip(slope, shift, strict=True)
    ]


def _synthetic(structure: str) -> jk.ScoreError:
    if structure == "ar1":
        return jk.ScoreError.diagonal(0.1, 0.15, jk.AR1(0.8))
    shapes = np.random.default_rng(5).standard_normal((2, 2, 5, 3)) * 0.1
    return jk.ScoreError(Tabulated(TIMES, shapes[0], shapes[1]), jk.FullyCorrelated())


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["ar1", "rank 2"])
def test_intervals_hold_the_synthetic_covariance(structure: str) -> None:
    """50 ensembles of 24 networks: the expected error is in at least 90% of the 95% intervals."""
    synthetic = _synthetic(structure)
    kernel = jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE)
    setting = (TARGET, PROCESS, "ddim", SCHEDULE)
    expected = jk.expected_error(*setting, score_error=synthetic, method="monte_carlo")
    truth = float(expected.excess)
    hits = 0
    values = []
    for trial in range(50):
        key = jax.random.key(trial)
        draws = synthetic.sample(key, MODES, PROCESS, jnp.asarray(TIMES), 24)
        networks = _ensemble(np.asarray(draws.slope), np.asarray(draws.shift))
        estimate = jk.estimate_score_error(
            networks,
            DATA,
            TIMES,
            key=key,
            target=TARGET,
            repetitions=2,
            batch=512,
            progress=False,
        )
        interval = estimate.predict(kernel)
        values.append(interval.value)
        hits += interval.low <= truth <= interval.high
    assert hits >= 45
    assert np.mean(values) == pytest.approx(truth, abs=4.0 * np.std(values) / np.sqrt(50))


def _many(
    draws: int, repetitions: int, nonlinear: float, batch: int = 256
) -> tuple[jk.ScoreErrorEstimate, jk.AffineError]:
    synthetic = _synthetic("ar1")
    errors = synthetic.sample(jax.random.key(7), MODES, PROCESS, jnp.asarray(TIMES), draws)
    networks = _ensemble(np.asarray(errors.slope), np.asarray(errors.shift), nonlinear)
    setting: dict[str, Any] = {
        "target": TARGET,
        "repetitions": repetitions,
        "batch": batch,
        "progress": False,
    }
    return jk.estimate_score_error(networks, DATA, TIMES, key=jax.random.key(8), **setting), errors


def test_affine_errors_are_found_exactly() -> None:
    estimate, errors = _many(5, 2, nonlinear=0.0)
    for r in range(2):
        np.testing.assert_allclose(estimate.slope[:, r], errors.slope, atol=1e-9)
        np.testing.assert_allclose(estimate.shift[:, r], errors.shift, atol=1e-9)
    stacked = np.stack([errors.slope, errors.shift], 2)
    exact = np.einsum("mapi,mbqi->apbqi", stacked, stacked) / 5.0
    np.testing.assert_allclose(estimate.second_moment(), exact, atol=1e-9)
    centred = stacked - stacked.mean(0)
    between = np.einsum("mapi,mbqi->apbqi", centred, centred) / 4.0
    np.testing.assert_allclose(estimate.covariance(), between, atol=1e-9)
    assert np.abs(estimate.estimation_covariance()).max() < 1e-16
    np.testing.assert_allclose(estimate.residual, 0.0, atol=1e-15)


def test_variance_of_the_fit_is_not_taken_for_randomness() -> None:
    """Identical networks: repetitions scatter, the covariance between them is 0 up to rounding."""
    same = np.zeros((6, 5, 3))
    setting: dict[str, Any] = {"target": TARGET, "repetitions": 4, "batch": 128, "progress": False}
    estimate = jk.estimate_score_error(
        _ensemble(same, same), DATA, TIMES, key=jax.random.key(1), **setting
    )
    variance = np.einsum("apapi->api", estimate.estimation_covariance())
    assert np.all(variance[:, 1] > 1e-6)
    assert np.abs(estimate.covariance()).max() < 1e-12
    # the uncentred second moment is 0 in the mean only: smaller than what naive averaging finds
    naive = np.mean(np.asarray(estimate.shift) ** 2, (0, 1))
    assert abs(np.einsum("apapi->api", estimate.second_moment())[:, 1].mean()) < 0.5 * naive.mean()
    assert np.all(np.asarray(estimate.residual) > 0)


def test_structures_are_selected_where_they_hold() -> None:
    """Independent times: bandwidth 0. One common direction: rank 1 beats higher ranks on held-out
    networks.
    """
    kernel = jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE)
    independent = jk.ScoreError.diagonal(0.0, 0.3, jk.Independent())
    draws = independent.sample(jax.random.key(3), MODES, PROCESS, jnp.asarray(TIMES), 24)
    setting: dict[str, Any] = {"target": TARGET, "repetitions": 2, "batch": 256, "progress": False}
    networks = _ensemble(np.asarray(draws.slope), np.asarray(draws.shift), 0.05)
    estimate = jk.estimate_score_error(networks, DATA, TIMES, key=jax.random.key(4), **setting)
    assert estimate.select_size("banded") == 0
    truth = float(kernel.contract(independent))
    banded = float(kernel.contract(estimate.score_error("banded")))
    assert abs(banded - truth) < 0.6 * truth
    common = jk.ScoreError.diagonal(0.0, 0.3, jk.FullyCorrelated())
    draws = common.sample(jax.random.key(5), MODES, PROCESS, jnp.asarray(TIMES), 24)
    networks = _ensemble(np.asarray(draws.slope), np.asarray(draws.shift), 0.05)
    estimate = jk.estimate_score_error(networks, DATA, TIMES, key=jax.random.key(6), **setting)
    assert estimate.select_size("low_rank") <= 2
    assert estimate.select_size("banded") == 4


@pytest.mark.parametrize(("networks", "repetitions"), [(2, 8), (3, 5), (2, 4)])
def test_a_size_is_selected_by_repetitions_of_few_networks(networks: int, repetitions: int) -> None:
    """Networks that differ at one time have bandwidth 0; those that differ at all times, 2."""
    rng = np.random.default_rng(3)
    times = jnp.array([1.0, 0.5, 0.1])
    own = rng.standard_normal((networks, 1, 3, 40))
    noise = 0.05 * rng.standard_normal((2, networks, repetitions, 3, 40))
    zero = jnp.zeros((3, 40))
    for bandwidth, part in ((0, own * [[1.0], [0.0], [0.0]]), (2, own)):
        slope, shift = jnp.asarray(part + noise)
        estimate = jk.ScoreErrorEstimate(times, slope, shift, zero)
        assert estimate.select_size("banded") == bandwidth
        assert isinstance(estimate.score_error("low_rank"), jk.ScoreError)


def test_one_network_has_a_known_error() -> None:
    estimate, errors = _many(1, 3, nonlinear=0.0)
    model = estimate.score_error()
    assert model.shapes is None
    known = model.mean_at(MODES, PROCESS, jnp.asarray(TIMES))
    assert known is not None
    np.testing.assert_allclose(known.shift, errors.shift[0], atol=1e-9)
    kernel = jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE)
    interval = estimate.predict(kernel)
    exact = jk.expected_error(TARGET, PROCESS, "ddim", SCHEDULE, score_error=model)
    assert interval.value == pytest.approx(float(exact.value - kernel.baseline()), rel=1e-6)
    assert interval.high - interval.low < 1e-6 * interval.value
    with pytest.raises(ValueError, match="needs several networks"):
        estimate.covariance()


def test_other_predictions_measure_the_same() -> None:
    errors = np.full((1, 5, 3), 0.2)
    network = Network(jnp.asarray(errors[0]), jnp.asarray(errors[0]), 0.0)

    def epsilon(x: Array, t: Array) -> Array:
        return -PROCESS.noise(t) * network(x, t)

    setting: dict[str, Any] = {"target": TARGET, "repetitions": 2, "batch": 64, "progress": False}
    estimate = jk.estimate_score_error(
        _denoiser(epsilon, "epsilon"), DATA, TIMES, key=jax.random.key(0), **setting
    )
    np.testing.assert_allclose(estimate.slope[0, 0], 0.2, atol=1e-8)


def test_linearised_error_is_that_of_changed_parameters() -> None:
    """A network whose parameters are its error: directions come back as they are."""
    zero = jnp.zeros((5, 3))
    network = Network(zero, zero, 0.2)
    rng = np.random.default_rng(3)
    directions = [
        eqx.tree_at(
            lambda n: (n.slope, n.shift),
            eqx.filter(network, eqx.is_inexact_array),
            tuple(jnp.asarray(rng.standard_normal((5, 3))) for _ in range(2)),
        )
        for _ in range(2)
    ]
    model = jk.linearised_score_error(
        _denoiser(network), directions, DATA, TIMES, key=jax.random.key(0), target=TARGET
    )
    found = model.directions(MODES, PROCESS, jnp.asarray(TIMES))
    assert found is not None
    for j, direction in enumerate(directions):
        np.testing.assert_allclose(found.slope[j], direction.slope, atol=1e-8)
        np.testing.assert_allclose(found.shift[j], direction.shift, atol=1e-8)


class Tilted(eqx.Module):
    """The Gaussian score times 1 + c(t), c linear in log sigma between the times of `TIMES`."""

    relative: Float[Array, " n"]

    def __call__(self, x: Array, t: Array) -> Array:
        known = jnp.log(PROCESS.sigma(jnp.asarray(TIMES)))[::-1]
        return TARGET.score(PROCESS, x, t) * (
            1.0 + jnp.interp(jnp.log(PROCESS.sigma(t)), known, self.relative[::-1])
        )


@pytest.mark.slow
def test_a_schedule_that_knows_the_measured_error_is_better() -> None:
    """24 networks with relative errors of 3%, correlated in time: measured, optimised for, and run.

    The optimum without the errors starts with a long step, which multiplies what is wrong at the
    noise end.
    """
    lag = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    relative = (
        0.03 * np.random.default_rng(0).standard_normal((24, 5)) @ np.linalg.cholesky(0.6**lag).T
    )
    networks: list[jk.AbstractDenoiser] = [_denoiser(Tilted(jnp.asarray(c))) for c in relative]
    setting: dict[str, Any] = {"target": TARGET, "repetitions": 2, "batch": 256, "progress": False}
    estimate = jk.estimate_score_error(networks, DATA, TIMES, key=jax.random.key(0), **setting)
    options: dict[str, Any] = {"t_min": 1e-3, "starts": ["log_snr", "quadratic"]}
    noise = jax.random.normal(jax.random.key(1), (4000, 3))

    def measured(schedule: jk.Schedule) -> float:
        """Mean over networks of squared W2 to the data's Gaussian, from the moments of samples."""
        values = []
        for network in networks:
            x = np.asarray(
                jk.sample(
                    network,
                    "ddim",
                    schedule,
                    noise,
                    key=jax.random.key(2),
                )
            )
            covariance = np.cov(x @ np.asarray(TARGET.basis), rowvar=False)
            centre = x.mean(0) - TARGET.mean
            values.append(
                np.sum(centre**2)
                + np.sum((np.sqrt(np.diag(covariance)) - np.sqrt(MODES.eigenvalues)) ** 2)
            )
        return float(np.mean(values))

    plain, aware = (
        jk.optimize_schedule(
            TARGET, PROCESS, "ddim", 8, objective=jk.LocalError(score_error=e), **options
        )
        for e in (None, estimate.score_error())
    )
    assert measured(aware.schedule) < 0.7 * measured(plain.schedule)


def _wrong_shape(x: Array, t: Array) -> Array:
    return x[:, :2]


def _not_a_number(x: Array, t: Array) -> Array:
    return jnp.where(t < 0.3, jnp.nan, -x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"denoisers": []}, "denoisers is empty"),
        ({"denoisers": _denoiser(_wrong_shape)}, r"shape \(16, 2\) for x of shape \(16, 3\)"),
        (
            {"denoisers": [_denoiser(lambda x, t: -x), _denoiser(_not_a_number)]},
            r"denoisers\[1\] returned NaN or infinity at t = 0\.2",
        ),
        (
            {"denoisers": [_denoiser(_wrong_shape), jk.Denoiser(_wrong_shape, jk.OU(), "score")]},
            r"denoisers\[1\] is of another process than denoisers\[0\]",
        ),
        ({"repetitions": 1}, "repetitions = 1 must be at least 2"),
        ({"batch": 2}, "batch = 2"),
        ({"ridge": -1.0}, "ridge = -1"),
        ({"times": [0.1, 0.5]}, "strictly decreasing"),
        ({"times": [0.5, 0.0]}, "times > 0"),
        ({"times": [3.0, 0.5]}, "beyond the process"),
        ({"samples": np.zeros((1, 3))}, "at least 2 samples"),
        ({"samples": np.full((4, 3), np.nan)}, "must be finite"),
        ({"target": jk.Gaussian(0.0, np.ones(4))}, "target has 4 modes"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {
        "denoisers": _denoiser(lambda x, t: -x),
        "samples": DATA,
        "times": TIMES,
        "key": jax.random.key(0),
        "batch": 16,
        "progress": False,
    }
    with pytest.raises(ValueError, match=message):
        jk.estimate_score_error(**{**setting, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directions": []}, "directions is empty"),
        ({"directions": [jnp.ones(3)]}, r"directions\[0\] is not a tree like"),
        ({"samples": np.zeros((1, 3))}, "at least 2 samples"),
        ({"batch": 2}, "batch = 2 must be at least 3"),
    ],
)
def test_refusals_of_linearised_errors(arguments: dict[str, Any], message: str) -> None:
    network = Network(jnp.zeros((5, 3)), jnp.zeros((5, 3)), 0.0)
    setting: dict[str, Any] = {
        "denoiser": _denoiser(network),
        "directions": [eqx.filter(network, eqx.is_inexact_array)],
        "samples": DATA,
        "times": TIMES,
        "key": jax.random.key(0),
    }
    with pytest.raises(ValueError, match=message):
        jk.linearised_score_error(**{**setting, **arguments})


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda e: e.select_size("banded"), "needs 4 of either; there are 2 and 2"),
        (lambda e: e.score_error("low rank"), "Did you mean 'low_rank'"),
        (lambda e: e.score_error("low_rank", 11), "rank 10 at most"),
        (
            lambda e: e.predict(jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE)),
            "at least 3 repetitions",
        ),
        (
            lambda e: e.predict(jk.error_kernel(TARGET, PROCESS, "ddim", SCHEDULE, dense=True)),
            "matrix slopes",
        ),
    ],
)
def test_too_little_for_what_is_asked(
    ask: Callable[[jk.ScoreErrorEstimate], object], message: str
) -> None:
    estimate, _ = _many(2, 2, nonlinear=0.1, batch=32)
    with pytest.raises(ValueError, match=message):
        ask(estimate)
