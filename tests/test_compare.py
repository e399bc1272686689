"""Schedules compared on a network: distances to the exact flow, statistics, and the choice among candidates."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxkernels.optimize._verify
import jaxtyping
import numpy as np
import pytest
from jaxkernels.optimize._refine import refined
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels._progress import Progress
from jaxkernels.comparison import compare_to, reference
from jaxkernels.exports import export
from jaxkernels.measurement import Measurement
from jaxkernels.optimize._trust import unproven, unresolved

PROCESS = jk.VP()
TARGET = jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05]))
NOISES = np.random.default_rng(0).standard_normal((32, 3))


def _score(x: Array, t: Array) -> Array:
    return TARGET.score(PROCESS, x, t)


def _grids(steps: int) -> dict[str, jk.Schedule]:
    return {
        name: getattr(jk.schedules, name)(PROCESS, steps, 1e-3)
        for name in ("uniform", "quadratic", "log_snr")
    }


def test_the_choice_to_sigma_zero_is_the_true_best() -> None:
    """EDM's own setting, t_min = 0: by distances to the exact flow, no named grid beats what is chosen."""
    process, target = jk.EDM(80.0), jk.Gaussian(0.0, np.array([0.5, 0.25, 0.05]))
    x = jax.random.normal(jax.random.key(1), (64, 3)) * 80.0

    def network(x: Array, t: Array) -> Array:
        return target.denoiser(process)(x, t).x0

    setting: dict[str, Any] = {"score_fn": network, "kind": "x0", "verify": x, "starts": ["karras"]}
    result = jk.optimize_schedule(target, process, "ddim", 6, t_min=0.0, progress=False, **setting)
    flow = np.asarray(x) * np.sqrt(
        np.asarray(target.eigenvalues) / (np.asarray(target.eigenvalues) + 80.0**2)
    )

    def error(schedule: jk.Schedule) -> float:
        end = np.asarray(
            jk.sample(
                jk.Denoiser(network, process, "x0"), "ddim", schedule, x, key=jax.random.key(0)
            )
        )
        return float(np.mean(np.log(np.linalg.norm(end - flow, axis=1))))

    errors = {name: error(schedule) for name, schedule in result.baseline_schedules.items()}
    assert error(result.schedule) < min(errors.values())
    assert result.best_baseline == min(errors, key=errors.__getitem__)


def test_a_schedule_without_error_is_the_best() -> None:
    """Two points as data, to sigma = 0: where steps end on them exactly, no logarithm of 0 gets in the way."""
    points = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.zeros((2, 2)))
    result = jk.optimize_schedule(
        points, PROCESS, "ddim", 3, t_min=0.0, verify=32, refine=0, progress=False
    )
    assert result.comparison is not None
    values = result.comparison.statistic("geometric_mean")
    assert values[result.chosen] == min(values.values())
    for kind in ("rms", "geometric_mean", "sliced_w2"):
        assert np.all(np.isfinite(result.comparison.ratio(kind, result.chosen, "log_snr")))


def test_noise_is_chosen_by_the_law_of_its_samples() -> None:
    """With one h per step the candidates are compared by sliced W2 to data; fresh noises are the evidence."""
    rng = np.random.default_rng(0)
    data = 0.2 + rng.standard_normal((4000, 3)) * np.sqrt([2.0, 0.3, 0.05])
    result = jk.optimize_schedule(
        TARGET,
        PROCESS,
        "ddim",
        3,
        t_min=1e-3,
        stochasticity="optimize",
        score_fn=_score,
        data=data,
        verify=512,
        progress=False,
    )
    comparison = result.comparison
    assert comparison is not None
    assert comparison.criterion == "sliced_w2"
    assert comparison.data_ends is not None
    assert comparison.data_ends.shape[0] == 4000
    values = comparison.statistic("sliced_w2")
    assert {"uniform", "uniform, stochasticity 1", "optimised, halfway to uniform"} <= set(values)
    best = min(result.baselines, key=values.__getitem__)
    ratio, spread = comparison.ratio("sliced_w2", result.chosen, best)
    assert ratio < 1.0 + 2.0 * spread
    assert "of the sliced W2 of" in repr(result)


def test_a_mixture_is_a_network_of_its_own() -> None:
    """The choice on a mixture is that on a network that computes the mixture's score; but nothing is verified."""
    mixture = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.full((2, 2), 0.02))
    setting: dict[str, Any] = {
        "t_min": 1e-3,
        "verify": 64,
        "progress": False,
        "starts": ["quadratic"],
    }
    result = jk.optimize_schedule(mixture, PROCESS, "dpmpp_2m", 5, **setting)
    assert not result.verified
    assert "on the mixture" in repr(result)
    assert result.comparison is not None
    assert any(name.startswith("recorded") for name in result.comparison.names)
    value = result.comparison.statistic("geometric_mean")
    assert value[result.chosen] < 1.05 * min(value[name] for name in result.baselines)

    def network(x: Array, t: Array) -> Array:
        return mixture.score(PROCESS, x, t)

    x = jax.random.normal(jax.random.key(0), (128, 2))[64:]
    again = jk.compare_schedules(
        jk.Denoiser(network, PROCESS, "score"), "dpmpp_2m", result.candidates, x
    )
    assert not np.any(
        np.isin(_recorded_noises(mixture), x)
    )  # the evidence is of other noises than the record
    for kind in ("rms", "geometric_mean"):
        theirs, ours = again.statistic(kind), result.comparison.statistic(kind)
        for name in ours:
            assert ours[name] == pytest.approx(
                theirs[name], rel=1e-3, abs=10 * result.comparison.reference_error
            )


class _Seen(Exception):
    """Carries where a record starts."""


def _recorded_noises(mixture: jk.GaussianMixture) -> np.ndarray:
    """Where the record of a mixture starts, caught before it is made."""

    def caught(fn: object, process: object, x: Array, **options: object) -> None:
        raise _Seen(np.asarray(x))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxkernels.optimize._verify, "record", caught)
        with pytest.raises(_Seen) as seen:
            jaxkernels.optimize._verify.recorded(
                mixture.gaussian(), mixture, PROCESS, 1e-3, jax.random.key(0), False
            )
    return seen.value.args[0]


def test_noises_for_a_mixture_are_in_its_coordinates() -> None:
    """Given noises start where they are, also if the mixture is run in the basis that its components share."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    plain = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], [[0.02, 0.3], [0.1, 0.05]])
    mixture = eqx.tree_at(lambda m: m.bases, plain, turn, is_leaf=lambda leaf: leaf is None)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 2)))
    setting: dict[str, Any] = {
        "t_min": 1e-3,
        "verify": x,
        "progress": False,
        "starts": ["quadratic"],
    }
    result = jk.optimize_schedule(mixture, PROCESS, "heun", 2, **setting)
    assert result.comparison is not None
    # a record is for samplers of one evaluation per step
    assert not any(name.startswith("recorded") for name in result.comparison.names)

    def network(x: Array, t: Array) -> Array:
        return mixture.score(PROCESS, x, t)

    again = jk.compare_schedules(
        jk.Denoiser(network, PROCESS, "score"), "heun", result.candidates, x[8:]
    )
    np.testing.assert_allclose(result.comparison.errors, again.errors, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": NOISES[:, :2]}, "data is for score_fn"),
        ({"kind": "x0"}, "kind = 'x0' is for score_fn"),
        (
            {"score_error": jk.ScoreError.relative(0.1)},
            "score_error is for a Gaussian target or for score_fn",
        ),
        ({"verify": NOISES}, r"verify has shape \(32, 3\); noises for a mixture of 2 dimensions"),
        ({"t_min": (1e-3, 1e-2)}, r"t_min = \(0.001, 0.01\) must be one number"),
        ({"stochasticity": "optimize", "refine": 2}, "refine = 2 is for deterministic"),
    ],
)
def test_what_a_mixture_refuses(arguments: dict[str, Any], message: str) -> None:
    mixture = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.full((2, 2), 0.02))
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(mixture, PROCESS, "ddim", 3, **{"t_min": 1e-3, **arguments})


def test_what_the_data_alone_do_not_decide() -> None:
    """Half the error of the grid in all trajectories but one, which carries as much as the grid's all together."""
    reference = np.random.default_rng(0).standard_normal((100, 4))
    spiky = np.full(100, 0.5)
    spiky[0] = 8.6  # root mean square 0.993 of the grid's, decided by one trajectory
    ends = np.stack([reference + 0.1, reference + 0.05])
    found = jk.Comparison(
        ("uniform", "ours"), np.stack([np.ones(100), spiky]), ends, reference, 0.0
    )
    (warning,) = unproven(found, "ours", ["uniform"])
    assert "beyond the standard error in rms (0.99 ± " in warning
    assert "geometric_mean" not in warning
    assert "sliced_w2" not in warning
    even = eqx.tree_at(lambda c: c.errors, found, np.stack([np.ones(100), np.full(100, 0.5)]))
    assert unproven(even, "ours", ["uniform"]) == ()
    # the best grid itself gains nothing
    assert "log_mean (1.00 ± 0.00" in unproven(even, "uniform", ["uniform"])[0]
    # 0.5 from a reference that is accurate to 0.3
    assert unresolved(even, "ours") == ()
    assert "not resolved" in unresolved(dataclasses.replace(even, reference_error=0.3), "ours")[0]


def test_samples_stand_for_a_mixture_of_them() -> None:
    """Images as a target: the choice is that on the fitted mixture, and a network sees noises of their shape."""
    rng = np.random.default_rng(0)
    images = (
        np.where(rng.random(160) < 0.4, -1.5, 1.5)[:, None] + 0.1 * rng.normal(size=(160, 4))
    ).reshape(-1, 2, 2)
    setting: dict[str, Any] = {"t_min": 1e-3, "starts": ["quadratic"], "progress": False}
    result = jk.optimize_schedule(images, PROCESS, "heun", 2, verify=16, **setting)
    mixture = jk.GaussianMixture.fit(images)
    fitted = jk.optimize_schedule(mixture, PROCESS, "heun", 2, verify=16, **setting)
    np.testing.assert_array_equal(result.schedule.times, fitted.schedule.times)
    assert result.comparison is not None
    errors = result.comparison.statistic("geometric_mean")
    assert result.best_baseline == min(jk.schedules.BASELINES, key=errors.__getitem__)
    assert result.ratios["quadratic"] == pytest.approx(errors["quadratic"] / errors[result.chosen])

    def network(x: Array, t: Array) -> Array:
        assert x.shape[1:] == (2, 2)
        return mixture.score(PROCESS, x.reshape(-1, 4), t).reshape(x.shape)

    options: dict[str, Any] = {"score_fn": network, "verify": 64, "stochasticity": 0.5, **setting}
    noisy = jk.optimize_schedule(images, PROCESS, "ddim", 2, **options)
    assert noisy.comparison is not None
    assert noisy.comparison.data_ends is not None  # of the samples themselves
    assert noisy.comparison.data_ends.shape[0] == 160


@pytest.mark.parametrize(
    "target", ["digits", [[None, None]], [1.0, 2.0], np.array([[1.0], [np.nan]])]
)
def test_what_is_no_target(target: Any) -> None:
    with pytest.raises(
        ValueError, match=r"target must be samples \(n, ...\), a Gaussian or a GaussianMixture: "
    ):
        jk.optimize_schedule(target, PROCESS, "ddim", 3, t_min=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_with_a_network_the_answer_is_the_best_candidate(sampler: str) -> None:
    """A network far from the Gaussian model it is optimised for: the exact score of a mixture of two narrow laws."""
    mixture = jk.GaussianMixture(
        [0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.stack([0.02 * np.eye(2)] * 2)
    )

    seen: list[int] = []

    def network(x: Array, t: Array) -> Array:
        jax.debug.callback(lambda: seen.append(x.shape[0]))
        return mixture.score(PROCESS, x, t)

    result = jk.optimize_schedule(
        mixture.gaussian(),
        PROCESS,
        sampler,
        6,
        t_min=1e-3,
        score_fn=network,
        verify=48,
        progress=False,
    )
    jax.effects_barrier()
    assert result.nfe == sum(seen)
    comparison = result.comparison
    assert comparison is not None
    assert result.verified
    assert result.chosen in comparison.names
    assert comparison.errors.shape[1] == 48
    for kind in ("rms", "geometric_mean", "sliced_w2"):
        errors = comparison.statistic(kind)
        best = min(result.baselines, key=errors.__getitem__)
        ratio, spread = comparison.ratio(kind, result.chosen, best)
        assert ratio < 1.0 + 2.0 * spread + 0.05
    # the comparison is of the schedule that is returned
    x = jax.random.normal(jax.random.key(0), (96, 2))[48:]
    again = jk.compare_schedules(
        jk.Denoiser(network, PROCESS, "score"), sampler, {"returned": result.schedule}, x
    )
    np.testing.assert_allclose(
        again.errors[0], comparison.errors[comparison.names.index(result.chosen)], rtol=0.05
    )
    assert "on the network" in repr(result)


def test_refinement_is_held_out() -> None:
    """Gradient steps lower the error on noises that gave no gradient, by what two steps of so wide a model leave."""
    mixture = jk.GaussianMixture(
        [0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.stack([0.02 * np.eye(2)] * 2)
    )

    def network(x: Array, t: Array) -> Array:
        return mixture.score(PROCESS, x, t)

    setting: dict[str, Any] = {"t_min": 1e-3, "starts": ["quadratic"], "progress": False}
    run = (mixture.gaussian(), PROCESS, "ddim", 4)
    result = jk.optimize_schedule(*run, score_fn=network, verify=64, refine=20, **setting)
    comparison = result.comparison
    assert comparison is not None
    assert result.chosen == "refined"
    np.testing.assert_array_equal(result.candidates["refined"].times, result.schedule.times)
    errors = comparison.statistic("geometric_mean")
    others = [name for name in comparison.names if name != "refined"]
    # 4 steps from 64 noises, references of 200 and 100: the choice and its evidence; before and after the steps a look
    # at 32 and at 64 noises
    fixed = (
        sum(64 * (300 + 4 * count) for count in (len(others), len(others) + 1)) + 4 * 32 + 4 * 64
    )
    # each step a gradient of 32 noises, as dear as four evaluations, and a look at the others
    steps, rest = divmod(result.nfe - fixed, 4 * (4 * 32 + 32))
    assert rest == 0
    assert 0 < steps <= 20
    assert errors["refined"] < 1.02 * errors[comparison.take(others).best(list(result.baselines))]
    with pytest.raises(ValueError, match="refine = 3 needs score_fn"):
        jk.optimize_schedule(*run, refine=3, **setting)


@pytest.mark.parametrize("by", ["balanced", "median", "sliced_w2"])
def test_refinement_descends_the_statistic_that_chooses(by: str) -> None:
    """On the half of the noises that gives no gradient; counted there by `compare_schedules`."""
    mixture = jk.GaussianMixture(
        [0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.stack([0.02 * np.eye(2)] * 2)
    )

    def network(x: Array, t: Array) -> Array:
        return mixture.score(PROCESS, x, t)

    x = jax.random.normal(jax.random.key(5), (128, 2))
    grids = {
        name: jk.schedules.BASELINES[name](PROCESS, 4, 1e-3) for name in ("quadratic", "cosine")
    }
    monotone = jk.schedules.TimeCoordinate(
        PROCESS, np.asarray(PROCESS.t_max), np.asarray(0.0), np.asarray(np.inf)
    )
    with Progress("refining", False) as line:
        exact = reference(network, PROCESS, x, 200, 1.0, 1e-3, kind="score", data=None)
        rivals = compare_to(
            exact, network, PROCESS, jk.DDIM(), grids, x, kind="score", key=None, line=line
        )
        setting = (
            network,
            "score",
            PROCESS,
            jk.DDIM(),
            monotone,
            grids["quadratic"],
            exact,
            rivals,
            x,
            by,
        )
        better, _ = refined(*setting, 12, line)
        same, spent = refined(*setting, 0, line)
    np.testing.assert_allclose(np.asarray(better.times)[[0, -1]], [1.0, 1e-3], rtol=1e-6)
    found = jk.compare_schedules(
        jk.Denoiser(network, PROCESS, "score"),
        "ddim",
        {**grids, "better": better},
        x,
        progress=False,
    )
    kept = found.take(noises=slice(64, None))
    if by == "balanced":
        lowest = {
            kind: min(kept.statistic(kind)[name] for name in grids)
            for kind in ("geometric_mean", "rms", "sliced_w2")
        }
        ratios = {
            name: [kept.statistic(kind)[name] / lowest[kind] for kind in lowest]
            for name in kept.names
        }
        value = {name: np.mean(np.power(three, 6.0)) for name, three in ratios.items()}
    else:
        value = kept.statistic(by)
    assert value["better"] < 0.95 * value["quadratic"]
    # no step: the schedule that was given
    np.testing.assert_allclose(same.times, grids["quadratic"].times, rtol=1e-4)
    assert spent == 64 * 4


def test_refinement_says_what_it_needs() -> None:
    def network(x: Array, t: Array) -> Array:
        return -x + jnp.linalg.norm(0.0 * x)  # a norm has no derivative at 0

    setting: dict[str, Any] = {"t_min": 1e-3, "score_fn": network, "verify": 16, "progress": False}
    with pytest.raises(ValueError, match="refine: the error's gradient in the times is not finite"):
        jk.optimize_schedule(jk.Gaussian(0.0, np.ones(2)), PROCESS, "ddim", 3, refine=2, **setting)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stochasticity": 1.0}, "with a stochasticity needs data"),
        ({"stochasticity": "optimize"}, "with a stochasticity needs data"),
        (
            {"stochasticity": 1.0, "data": NOISES, "refine": 2},
            "refine = 2 is for deterministic schedules",
        ),
        ({"score_fn": None, "data": NOISES}, "data needs score_fn"),
        ({"data": NOISES[:, :2]}, r"data has shape \(32, 2\); it must be \(n, 3\) with n >= 2"),
        ({"t_min": (1e-3, 1e-2)}, "must be one number"),
        ({"verify": 2}, "verify = 2"),
        ({"verify": np.full((16, 3), np.nan)}, r"verify\[0, 0\] = nan"),
        ({"score_fn": None, "verify": 64}, "verify needs score_fn"),
        ({"score_fn": None, "kind": "x0"}, "kind = 'x0' needs score_fn"),
        ({"verify": NOISES[:4]}, "n >= 8"),
        ({"choose": "rsm"}, "Did you mean 'rms'"),
        (
            {"choose": "rms", "stochasticity": 1.0, "data": NOISES},
            "choose = 'rms' is for deterministic schedules",
        ),
        ({"score_fn": None, "choose": "rms"}, "choose = 'rms' needs score_fn"),
        ({"spread": 0.5}, "spread = 0.5"),
        ({"spread": 2.0, "objective": "terminal"}, "spread = 2 is for objective='local'"),
    ],
)
def test_refusals_of_the_optimiser(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {"t_min": 1e-3, "score_fn": _score, **arguments}
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(TARGET, PROCESS, "ddim", 3, **setting)


def test_refusals_of_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this suite's type checks would catch, and a user meets without them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"verify": 64.0}, r"verify has shape \(\); it must be a whole number, or noises"),
        (
            {"starts": {"mine": [1.0, 0.5, 0.2, 1e-3]}},
            r"starts\['mine'\] must be a Schedule; got list",
        ),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            jk.optimize_schedule(
                TARGET, PROCESS, "ddim", 3, t_min=1e-3, score_fn=_score, **arguments
            )
    several: Any = [jk.Schedule([1.0, 1e-3])]
    with pytest.raises(ValueError, match=r"schedules = .* must be"):
        jk.compare_schedules(
            jk.Denoiser(_score, PROCESS, "score"), "ddim", several, jnp.asarray(NOISES)
        )
    edm: Any = "edm"
    schedule, key = jk.Schedule([1.0, 0.1]), jax.random.key(0)
    for call in (
        lambda: jk.sample(
            jk.Denoiser(_score, edm, "score"), jk.DDIM(), schedule, jnp.asarray(NOISES), key=key
        ),
        lambda: jk.record(jk.Denoiser(_score, edm, "score"), jnp.asarray(NOISES), t_min=0.1),
        lambda: jk.measure(jk.Denoiser(_score, edm, "score"), NOISES, [1.0, 0.5], key=key),
        lambda: export(schedule, edm, "comfyui"),
        lambda: jk.schedules.karras(edm, 3, 0.1),
    ):
        with pytest.raises(
            ValueError, match=r"process must be a forward process such as VP\(\); got 'edm'"
        ):
            call()
    mixture: Any = jk.GaussianMixture([1.0], np.zeros((1, 3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="target must be a Gaussian; got GaussianMixture"):
        denoiser = jk.Denoiser(_score, PROCESS, "score")
        jk.measure(denoiser, NOISES, [1.0, 0.5], key=key, target=mixture)
    with pytest.raises(ValueError, match="target must be a Gaussian; got GaussianMixture"):
        Measurement.from_losses(
            PROCESS, [1.0, 0.5], [1.0, 1.0], prediction_type="x0", averaged_over=1, target=mixture
        )


def test_the_choice_keeps_the_callers_precision(float32: None) -> None:
    target, process = (
        jk.Gaussian(0.2, np.array([2.0, 0.3, 0.05])),
        jk.VP(),
    )  # a network of this precision

    def score(x: Array, t: Array) -> Array:
        return target.score(process, x, t)

    setting: dict[str, Any] = {"t_min": 1e-3, "score_fn": score, "progress": False}
    result = jk.optimize_schedule(target, process, "ddim", 3, verify=8, **setting)
    assert result.schedule.times.dtype == jnp.float32


def test_refinement_keeps_the_callers_precision() -> None:
    """float64, with a network and noises of float32."""

    def score(x: Array, t: Array) -> Array:
        return TARGET.score(PROCESS, x, t).astype(x.dtype)

    x = jnp.asarray(NOISES, jnp.float32)
    setting: dict[str, Any] = {
        "t_min": 1e-3,
        "score_fn": score,
        "verify": x,
        "refine": 2,
        "progress": False,
    }
    result = jk.optimize_schedule(TARGET, PROCESS, "ddim", 3, **setting)
    times = result.candidates["refined"].times
    assert times.dtype == np.float64
    assert float(times[-1]) == 1e-3


def test_unknown_input_shape_is_refused() -> None:
    target = jk.Gaussian(0.0, [1.0], weights=[3.0])
    with pytest.raises(ValueError, match="pass verify=noises"):
        jk.optimize_schedule(target, PROCESS, "ddim", 3, t_min=1e-3, score_fn=_score)
