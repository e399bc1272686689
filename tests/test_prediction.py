"""Denoisers: every prediction type gives the same split of a noisy point, and back."""

import dataclasses
import types
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels.prediction import PREDICTION_TYPES

PROCESSES: dict[str, jk.AbstractProcess] = {
    "vp": jk.VP(),
    "ou": jk.OU(rate=2.0, t_max=3.0),
    "ve": jk.VE(),
    "edm": jk.EDM(),
    "cosine": jk.CosineVP(),
    "flow": jk.FlowMatching(),
    "discrete": jk.DiscreteVP.scaled_linear(),
}
X0 = np.array([[0.4, -1.3, 2.0], [0.0, 0.7, -0.2]])
EPS = np.array([[-0.9, 0.1, 1.1], [1.6, -0.3, 0.0]])


def _value(process: jk.AbstractProcess, prediction_type: str, t: float) -> np.ndarray:
    """What a network of each type predicts at x = a x0 + s eps, from its own definition."""
    a, s = float(process.signal(t)), float(process.noise(t))
    step = 1e-5 * float(process.t_max)
    # the path of one pair (x0, eps) through time, differentiated by central differences
    later = process.signal(t + step) * X0 + process.noise(t + step) * EPS
    earlier = process.signal(t - step) * X0 + process.noise(t - step) * EPS
    return {
        "score": -EPS / s,
        "epsilon": EPS,
        "x0": X0,
        "v": a * EPS - s * X0,
        "flow": (later - earlier) / (2.0 * step),
    }[prediction_type]


def _score(prediction: jk.Prediction) -> np.ndarray:
    assert prediction.score is not None
    return np.asarray(prediction.score)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("share", [0.1, 0.62])
def test_a_prediction_is_split_into_data_and_noise(
    process: jk.AbstractProcess, prediction_type: str, share: float
) -> None:
    # between the entries of a table, where its rates have no jump
    t = round(share * float(process.t_max)) + 0.5 if process.t_max > 100 else share * process.t_max
    a, s = float(process.signal(t)), float(process.noise(t))
    value = jnp.asarray(_value(process, prediction_type, float(t)))
    denoiser = jk.Denoiser(lambda x, t: value, process, prediction_type)
    prediction = denoiser(jnp.asarray(a * X0 + s * EPS), t)
    # differences of a flow leave 1e-8, which a small signal enlarges
    tolerance = 1e-4 if prediction_type == "flow" else 1e-9
    np.testing.assert_allclose(prediction.x0, X0, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(prediction.eps, EPS, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(s * _score(prediction), -EPS, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("first", PREDICTION_TYPES)
@pytest.mark.parametrize("second", PREDICTION_TYPES)
@pytest.mark.parametrize("process", [jk.VP(), jk.EDM(), jk.FlowMatching()])
def test_prediction_types_convert_into_each_other(
    process: jk.AbstractProcess, first: str, second: str
) -> None:
    """A network of one type, wrapped as one of another, is the same denoiser."""
    t = 0.4
    rows = {
        "score": lambda p, s, a: -p.eps / s,
        "epsilon": lambda p, s, a: p.eps,
        "x0": lambda p, s, a: p.x0,
        "v": lambda p, s, a: a * p.eps - s * p.x0,
        "flow": lambda p, s, a: process.signal_rate(t) * p.x0 + process.noise_rate(t) * p.eps,
    }
    original = jk.Denoiser(lambda x, t: jnp.sin(x) + t, process, first)

    def converted(x: jax.Array, t: jax.Array) -> jax.Array:
        return rows[second](original(x, t), process.noise(t), process.signal(t))

    x = jnp.asarray(X0)
    ours = jk.Denoiser(converted, process, second)(x, t)
    for mine, theirs in zip(ours, original(x, t), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_prediction_unpacks_and_recombines() -> None:
    process, t = jk.VP(), 0.3
    x = jnp.asarray(X0)
    x0, eps = jk.Denoiser(lambda x, t: jnp.cos(x), process, "v")(x, t)
    np.testing.assert_allclose(process.signal(t) * x0 + process.noise(t) * eps, x, rtol=1e-12)


def test_a_score_error_moves_all_parts() -> None:
    """score + e, eps - s e and x0 + s^2/a e: still a split of the same point."""
    process, t = jk.VP(), 0.3
    a, s = process.signal(t), process.noise(t)
    x, error = jnp.asarray(X0), jnp.asarray(EPS)
    before = jk.Denoiser(lambda x, t: jnp.cos(x), process, "score")(x, t)
    after = before.with_score_error(error, a, s)
    wrong = jk.Denoiser(lambda x, t: jnp.cos(x) + error, process, "score")(x, t)
    np.testing.assert_allclose(after.x0, wrong.x0, rtol=1e-12)
    np.testing.assert_allclose(after.eps, wrong.eps, rtol=1e-12)
    np.testing.assert_allclose(_score(after), _score(wrong), rtol=1e-12)
    assert jk.Prediction(x, x).with_score_error(error, a, s).score is None


@pytest.mark.parametrize("target", [jk.Gaussian(0.5, [2.0, 0.3, 1.0]), None], ids=str)
@pytest.mark.parametrize("t", [0.0, 0.4])
def test_exact_denoisers_know_the_score(target: jk.Gaussian | None, t: float) -> None:
    """Also without noise, where it is the score of the data."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    covariance = rotation * np.array([2.0, 0.3, 1.0]) @ rotation.T
    distributions: list = [
        target or jk.Gaussian.from_covariance(0.5, covariance),
        jk.GaussianMixture([0.4, 0.6], [[0.0, 1.0, 2.0], [-1.0, 0.5, 0.0]], [covariance] * 2),
    ]
    for distribution in distributions:
        score = _score(distribution.denoiser(jk.VP())(jnp.asarray(X0), t))
        exact = distribution.score(jk.VP(), jnp.asarray(X0), t)
        np.testing.assert_allclose(score, exact, rtol=1e-9)


def test_no_score_where_there_is_no_density() -> None:
    score = _score(jk.Gaussian(0.0, [1.0, 0.0]).denoiser(jk.VP())(jnp.ones(2), 0.0))
    np.testing.assert_array_equal(np.isnan(score), [False, True])


@pytest.mark.parametrize("prediction_type", ["epsilon", "x0", "v"])
def test_no_nan_enters_derivatives_through_an_unused_score(prediction_type: str) -> None:
    """At s = 0, in what of the split is defined there."""
    part = "eps" if prediction_type == "epsilon" else "x0"

    def total(x: jax.Array) -> jax.Array:
        denoiser = jk.Denoiser(lambda x, t: 2.0 * x, jk.FlowMatching(), prediction_type)
        return jnp.sum(getattr(denoiser(x, 0.0), part))

    assert np.all(np.isfinite(jax.jit(jax.grad(total))(jnp.ones(2))))


def test_precision() -> None:
    denoiser = jk.Denoiser(lambda x, t: x, jk.VP(), "v").astype(jnp.float32)
    x0, eps = denoiser(jnp.ones(2, jnp.float32), jnp.float32(0.3))
    assert (x0.dtype, eps.dtype) == (jnp.float32, jnp.float32)


def test_weights_of_a_network_are_leaves() -> None:
    network = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    denoiser = jk.Denoiser(lambda x, t: x, jk.VP(), "v")
    denoiser = eqx.tree_at(lambda d: d.fn, denoiser, network)
    assert any(leaf is network.weight for leaf in jax.tree.leaves(denoiser))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: jk.Denoiser(jnp.add, jk.VP(), "epsilom"),
            r"prediction_type='epsilom' is not known. Did you mean 'epsilon'",
        ),
        (
            lambda: jk.Denoiser(lambda x, t: x[0], jk.VP(), "v")(jnp.ones((2, 3)), 0.5),
            r"the network returned shape \(3,\) for x of shape \(2, 3\)",
        ),
        (
            lambda: jk.Denoiser(lambda x, t: x > 0, jk.VP(), "v")(jnp.ones((2, 3)), 0.5),
            r"shape \(2, 3\) for x of shape \(2, 3\), in bool; it must return one real number",
        ),
        (
            lambda: jk.Denoiser(lambda x, t: {"a": x, "b": x}, jk.VP(), "v")(jnp.ones((2, 3)), 0.5),
            r"returned a dict with 'a': float64 of shape \(2, 3\), 'b': .*; return its prediction",
        ),
        (
            lambda: jk.Denoiser(lambda x, t: None, jk.VP(), "v")(jnp.ones((2, 3)), 0.5),
            r"the network returned a NoneType, for x of shape",
        ),
    ],
)
def test_bad_denoisers(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


HALVES = [jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_network_of_few_digits_is_told_all_of_the_time(dtype: jnp.dtype) -> None:
    """Its points have its own precision; times, steps and the sum over steps have float32's."""
    told: list[float] = []

    def network(x: jax.Array, t: jax.Array) -> jax.Array:
        assert (x.dtype, t.dtype) == (dtype, jnp.float32)
        jax.debug.callback(lambda t: told.append(float(t)), t)
        return jnp.zeros_like(x)

    schedule = jk.schedules.uniform(jk.FlowMatching(), 90, 0.1)
    noise = jnp.asarray([[1.0, -3.0, 0.7]], dtype)
    denoiser = jk.Denoiser(network, jk.FlowMatching(), "x0")
    samples = jk.sample(denoiser, "ddim", schedule, noise)
    jax.effects_barrier()
    times = np.asarray(schedule.times, np.float32)
    np.testing.assert_array_equal(sorted(told), times[:-1][::-1])
    # without data each step multiplies by t'/t: 0.1 after all, rounded once
    assert samples.dtype == dtype
    np.testing.assert_array_equal(samples, (0.1 * noise.astype(jnp.float32)).astype(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_few_digits_of_noise_are_the_same_noise(dtype: jnp.dtype) -> None:
    """For an exact denoiser, which has no network of that precision."""
    denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    rounded = jax.random.normal(jax.random.key(0), (6, 2), jnp.float32).astype(dtype)
    schedules = {
        name: getattr(jk.schedules, name)(jk.VP(), 6, 1e-3) for name in ("cosine", "karras")
    }
    few, many = (
        (
            jk.record(denoiser, noise, t_min=1e-3, nodes=8, progress=False),
            jk.compare_schedules(denoiser, "ddim", schedules, noise, progress=False),
        )
        for noise in (rounded, rounded.astype(jnp.float32))
    )
    np.testing.assert_array_equal(few[0].products, many[0].products)
    assert few[1].statistic("rms") == pytest.approx(many[1].statistic("rms"), rel=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_prediction_of_few_digits_is_split_in_float32(dtype: jnp.dtype) -> None:
    """Where the signal is small, x0 is a small difference of large numbers."""
    t = 0.999
    x = jnp.asarray([0.5], dtype)
    x0, eps = jk.Denoiser(lambda x, t: x / 2, jk.FlowMatching(), "epsilon")(x, jnp.float32(t))
    assert (x0.dtype, eps.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(x0, (0.5 - t * 0.25) / (1.0 - t), rtol=1e-3)


@dataclasses.dataclass
class _Output:
    prediction: jax.Array
    steps: int = 3


class _Sample(NamedTuple):
    sample: jax.Array
    auxiliary: jax.Array


OUTPUTS: dict[str, Callable[[jax.Array], object]] = {
    "tuple": lambda x: (2.0 * x,),
    "one of a tuple": lambda x: (None, 2.0 * x, jnp.zeros(3)),
    "dict": lambda x: {"sample": 2.0 * x, "hidden": x},
    "the only member of a dict": lambda x: {"prediction": 2.0 * x, "loss": jnp.zeros(())},
    "dataclass": lambda x: _Output(2.0 * x),
    "named tuple": lambda x: _Sample(2.0 * x, x),
    "object": lambda x: types.SimpleNamespace(sample=2.0 * x),
    "channels first": lambda x: jnp.concatenate([2.0 * x, x], 1),
    "channels last": lambda x: {"sample": jnp.concatenate([2.0 * x, x], -1)},
    "fewer digits": lambda x: (2.0 * x).astype(jnp.bfloat16),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_of_networks(output: str) -> None:
    x = jnp.asarray(np.arange(2.0 * 3 * 4).reshape(2, 3, 4))
    eps = jk.Denoiser(lambda x, t: OUTPUTS[output](x), jk.VP(), "epsilon")(x, 0.5).eps
    np.testing.assert_array_equal(eps, 2.0 * x)
