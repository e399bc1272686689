"""What is measured of a network is what closed forms say, and an interrupted measurement goes on to
the same.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array, Float

import jaxkernels as jk
from jaxkernels import Measurement, measure
from jaxkernels.measurement._running_sums import Checkpoint, RunningSums

PROCESS = jk.VP()
TIMES = np.array([1.0, 0.7, 0.45, 0.2, 0.06])
ROTATION = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
DATA = np.random.default_rng(0).standard_normal((3000, 3)) * np.sqrt([2.0, 0.5, 0.1]) @ ROTATION + [
    1.0,
    -0.5,
    0.0,
]
TARGET = jk.Gaussian.fit(DATA, shrinkage=0.0)
PREDICTION_TYPES = ("score", "epsilon", "x0", "v", "flow")
QUIET: dict[str, Any] = {"progress": False, "lipschitz_points": 0}


def _exact(x: Array, t: Array) -> Array:
    return TARGET.score(PROCESS, x, t)


def _denoiser(fn: Any, prediction_type: str = "score") -> jk.Denoiser:
    return jk.Denoiser(fn, PROCESS, prediction_type)


EXACT = _denoiser(_exact)


def _levels(process: jk.AbstractProcess, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(process.signal(times)), np.asarray(process.noise(times))


def _mmse(times: np.ndarray) -> np.ndarray:
    """Posterior variance 1 / (1/lambda + a^2/s^2) of a normal variable seen in normal noise."""
    a, s = _levels(PROCESS, times)
    return 1.0 / (1.0 / np.asarray(TARGET.eigenvalues) + (a**2 / s**2)[:, None])


@pytest.fixture(scope="module")
def gaussian() -> Measurement:
    return measure(EXACT, DATA, TIMES, key=jax.random.key(0), draws=4, batch=512, progress=False)


def test_gaussian_data_and_exact_denoiser(gaussian: Measurement) -> None:
    fitted = gaussian.target
    np.testing.assert_allclose(fitted.eigenvalues, TARGET.eigenvalues, rtol=1e-10)
    np.testing.assert_allclose(fitted.mean, TARGET.mean, atol=1e-12)
    assert float(np.asarray(fitted.kurtosis)) == pytest.approx(
        float(np.asarray(TARGET.kurtosis)), rel=1e-10
    )
    assert fitted.basis is not None
    np.testing.assert_allclose(
        fitted.basis @ np.diag(fitted.eigenvalues) @ fitted.basis.T,
        np.cov(DATA.T, ddof=0),
        atol=1e-12,
    )
    # 12 000 chi-square variables: relative noise 1.3%
    np.testing.assert_allclose(gaussian.mode_error, _mmse(TIMES), rtol=0.06)
    np.testing.assert_allclose(gaussian.gaussian_error, _mmse(TIMES), rtol=1e-9)
    np.testing.assert_allclose(gaussian.error, np.sum(gaussian.mode_error, 1), rtol=1e-10)
    a, s = _levels(PROCESS, TIMES)
    np.testing.assert_allclose(
        gaussian.gain, a[:, None] * _mmse(TIMES) / s[:, None] ** 2, atol=1e-10
    )
    np.testing.assert_allclose(gaussian.offset, 0.0, atol=1e-10)
    np.testing.assert_allclose(gaussian.residual, 0.0, atol=1e-15)
    np.testing.assert_allclose(gaussian.mode_residual_correlation, 0.0, atol=1e-15)


def _off_diagonal(values: np.ndarray) -> np.ndarray:
    return values[~np.eye(len(values), dtype=bool)]


def test_increments_of_the_exact_denoiser_are_differences_of_its_error(
    gaussian: Measurement,
) -> None:
    total = _mmse(TIMES).sum(1)
    wanted = np.abs(np.subtract.outer(total, total))
    np.testing.assert_allclose(gaussian.increments, wanted, atol=0.01 * total.max(), rtol=0.06)
    standard_error = gaussian.martingale_standard_error
    assert np.all(_off_diagonal(standard_error) > 0)
    assert np.all(np.abs(gaussian.martingale_violation) <= 4.0 * standard_error)
    assert np.all(np.diag(gaussian.martingale_violation) == 0.0)


def test_identity_holds_for_any_data() -> None:
    """A mixture, far from Gaussian: the nonlinear part is large and the exact denoiser still a
    martingale.
    """
    mixture = jk.GaussianMixture(
        [0.5, 0.3, 0.2], [[-2.0, 0.0], [1.5, 1.0], [1.5, -2.0]], [0.05, 0.1, 0.02]
    )
    data = np.asarray(mixture.sample(jax.random.key(3), 3000))
    found = measure(
        _denoiser(lambda x, t: mixture.score(PROCESS, x, t)),
        data,
        TIMES,
        key=jax.random.key(4),
        draws=2,
        **QUIET,
    )
    assert np.all(np.abs(found.martingale_violation) <= 4.0 * found.martingale_standard_error)
    bound = found.gaussian_error.sum(1)
    assert found.error[3] < 0.4 * bound[3]
    # Pythagoras: the best affine error is the exact one plus the denoiser's nonlinear part
    np.testing.assert_allclose(found.error + found.residual.sum(1), bound, rtol=0.05)
    assert "lipschitz" not in found.statistics


def test_wrong_network_violates_the_identity_by_what_it_is_wrong() -> None:
    """1.1 times the score: D - x0 = (D* - x0) + c z, c = -0.1 s^2 / (a v), whose products have
    closed forms.
    """
    wrong = _denoiser(lambda x, t: 1.1 * _exact(x, t))
    found = measure(wrong, DATA, TIMES, key=jax.random.key(1), draws=4, **QUIET)
    a, s = _levels(PROCESS, TIMES)
    sigma = s / a
    variance = np.asarray(TARGET.eigenvalues)
    wanted = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            for lam in variance:
                # errors as linear forms of (x0, z_i, z_j), covariance from the Brownian motion
                cross = a[i] * a[j] * lam + s[i] * s[j] * min(sigma[i], sigma[j]) / max(
                    sigma[i], sigma[j]
                )
                own = a**2 * lam + s**2
                covariance = np.array(
                    [
                        [lam, a[i] * lam, a[j] * lam],
                        [a[i] * lam, own[i], cross],
                        [a[j] * lam, cross, own[j]],
                    ]
                )
                forms = np.zeros((2, 3))
                forms[:, 0] = -1.0
                for row, k in ((0, i), (1, j)):
                    forms[row, row + 1] = a[k] * lam / own[k] - 0.1 * s[k] ** 2 / (a[k] * own[k])
                wanted[i, j] += forms[0] @ covariance @ forms[1]
    later = np.maximum.outer(np.arange(5), np.arange(5))
    violated = 2.0 * (np.diag(wanted)[later] - wanted)
    standard_error = found.martingale_standard_error
    np.testing.assert_array_less(
        np.abs(found.martingale_violation - violated), 4.5 * standard_error + 1e-12
    )
    assert np.max(np.abs(_off_diagonal(violated)) / _off_diagonal(standard_error)) > 10.0
    np.testing.assert_array_less(np.abs(found.error - np.diag(wanted)), 4.5 * found.standard_error)


def _with_affine_error(x: Array, t: Array) -> Array:
    """The exact score, an affine error along the modes and a part that no affine function fits."""
    basis = jnp.asarray(TARGET.basis)
    z = (x - PROCESS.signal(t) * jnp.asarray(TARGET.mean)) @ basis
    error = 0.2 * t - jnp.array([0.1, 0.0, -0.3]) * (x @ basis) + 0.0 * z
    return _exact(x, t) + error @ basis.T


def test_affine_part_of_the_error_is_that_of_the_score() -> None:
    denoiser = _denoiser(_with_affine_error)
    found = measure(denoiser, DATA, TIMES, key=jax.random.key(2), target=TARGET, **QUIET)
    error = found.score_error().mean_at(TARGET.in_eigenbasis(), PROCESS, jnp.asarray(TIMES))
    assert error is not None
    np.testing.assert_allclose(error.slope, np.tile([0.1, 0.0, -0.3], (5, 1)), atol=1e-7)
    np.testing.assert_allclose(error.shift, np.tile(0.2 * TIMES[:, None], 3), atol=1e-7)
    estimate = jk.estimate_score_error(
        denoiser,
        DATA,
        TIMES,
        key=jax.random.key(3),
        target=TARGET,
        repetitions=2,
        batch=64,
        progress=False,
    )
    np.testing.assert_allclose(error.slope, estimate.mean.slope, atol=1e-7)
    np.testing.assert_allclose(error.shift, estimate.mean.shift, atol=1e-7)
    # nothing is left, in units of the score, whose error is of order 0.1: rounding
    a, s = _levels(PROCESS, TIMES)
    left = found.mode_residual_correlation * np.outer(a / s**2, a / s**2)
    np.testing.assert_allclose(left, 0.0, atol=2e-15)


def test_correlation_of_a_synthetic_residual() -> None:
    """u^2 - 1 of the whitened coordinate u, which no affine function fits: its correlation is that
    of u, squared.
    """
    count = 20_000
    target = jk.Gaussian([1.0, -0.5, 0.0], [2.0, 0.5, 0.1], basis=ROTATION)
    data = np.asarray(target.sample(jax.random.key(5), count))
    size = np.outer([1.0, -2.0, 0.5, 0.3, 0.7], [0.4, 0.0, -1.0])
    times = jnp.asarray(TIMES)
    sizes = jnp.asarray(size)

    def network(x: Array, t: Array) -> Array:
        a = PROCESS.signal(t)
        s = PROCESS.noise(t)
        u = (x - a * target.mean) @ ROTATION / jnp.sqrt(a**2 * target.eigenvalues + s**2)
        residual = sizes[jnp.argmin(jnp.abs(times - t))] * (u**2 - 1.0) + t * u  # the fit takes t u
        return target.denoiser(PROCESS)(x, t).x0 + residual @ ROTATION.T

    found = measure(
        _denoiser(network, "x0"),
        data,
        TIMES,
        key=jax.random.key(6),
        target=target,
        batch=count,
        **QUIET,
    ).mode_residual_correlation
    a, s = _levels(PROCESS, TIMES)
    shared = np.outer(s, s) * np.minimum.outer(s / a, s / a) / np.maximum.outer(s / a, s / a)
    for k, lam in enumerate([2.0, 0.5, 0.1]):
        own = np.sqrt(a**2 * lam + s**2)
        rho = (np.outer(a, a) * lam + shared) / np.outer(own, own)
        # E(u^2 - 1)(v^2 - 1) = 2 rho^2; the product's variance, from E u^4 v^4 and less, is
        # 20 rho^4 + 32 rho^2 + 4
        wanted = 2.0 * rho**2
        noise = np.sqrt((20.0 * rho**4 + 32.0 * rho**2 + 4.0) / count)
        amplitudes = np.outer(size[:, k], size[:, k])
        np.testing.assert_array_less(
            np.abs(found[k] - amplitudes * wanted), 4.0 * np.abs(amplitudes) * noise + 1e-14
        )
        assert np.max(_off_diagonal(wanted / noise)) > 10.0  # so that half of it would be seen


def test_residuals_are_those_of_least_squares_at_the_points_the_network_saw() -> None:
    """A network that mixes modes, in batches, one not full, with several draws of each sample."""
    seen = []
    matrix = np.random.default_rng(2).standard_normal((3, 3))

    def network(x: Array, t: Array) -> Array:
        jax.debug.callback(lambda x, t: seen.append((float(t), np.asarray(x))), x, t, ordered=True)
        return jnp.tanh(x @ matrix) * t + jnp.cos(3.0 * x)

    count = 500
    batch = 150
    draws = 2
    found = measure(
        _denoiser(network, "x0"),
        DATA[:count],
        TIMES,
        key=jax.random.key(0),
        batch=batch,
        draws=draws,
        **QUIET,
    )
    basis = np.asarray(found.target.basis)
    left = np.empty((5, count * draws, 3))
    for i, t in enumerate(TIMES):
        # the last batch was filled up with its first sample
        x = np.concatenate([x for time, x in seen if time == t])[: count * draws]
        denoised = (np.tanh(x @ matrix) * t + np.cos(3.0 * x)) @ basis
        for k in range(3):
            design = np.stack([np.ones(len(x)), (x @ basis)[:, k]], 1)
            left[i, :, k] = denoised[:, k] - design @ np.linalg.lstsq(design, denoised[:, k])[0]
    wanted = np.einsum("imk,jmk->kij", left, left) / (count * draws)
    np.testing.assert_allclose(found.mode_residual_correlation, wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.residual_correlation, wanted.sum(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        found.residual, np.einsum("imk,imk->ik", left, left) / (count * draws), rtol=1e-9
    )


def test_lipschitz_constant_of_a_linear_denoiser(gaussian: Measurement) -> None:
    largest = np.max(gaussian.gain, 1)
    assert gaussian.lipschitz.shape == (5, 4)
    np.testing.assert_allclose(gaussian.lipschitz, np.tile(largest[:, None], 4), rtol=5e-3)
    assert np.all((gaussian.iterations > 1) & (gaussian.iterations <= 40))


def test_lipschitz_constant_of_a_nonlinear_denoiser() -> None:
    """Against a singular value decomposition of the Jacobian at the same points, found from what
    was evaluated.
    """
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)))
    seen = []

    def network(x: Array, t: Array) -> Array:
        jax.debug.callback(lambda v: seen.append(np.asarray(v)), x)
        return jnp.tanh(x @ matrix) * t

    found = measure(
        _denoiser(network, "x0"),
        DATA,
        [0.5],
        key=jax.random.key(0),
        progress=False,
        lipschitz_points=2,
    )
    points = next(x for x in seen[::-1] if x.shape == (2, 3))
    norms = [
        np.linalg.norm(0.5 * np.asarray(matrix) * (1 - np.tanh(x @ np.asarray(matrix)) ** 2), 2)
        for x in points
    ]
    np.testing.assert_allclose(found.lipschitz[0], norms, rtol=1e-3)
    assert norms[0] != pytest.approx(norms[1], rel=0.01)


def test_every_sample_counts_once() -> None:
    """D = 0 has the error |x0|^2 whatever the noise: exact also when the last batch is not full,
    and for images.
    """
    images = np.random.default_rng(0).standard_normal((10, 2, 2, 1)) + 0.5
    shapes = []

    def nothing(x: Array, t: Array) -> Array:
        shapes.append(x.shape)
        return jnp.zeros_like(x)

    target = jk.Gaussian(0.5, np.ones(4))
    found = measure(
        _denoiser(nothing, "x0"),
        images,
        [0.5, 0.1],
        key=jax.random.key(0),
        target=target,
        batch=4,
        draws=3,
        **QUIET,
    )
    assert set(shapes) == {(12, 2, 2, 1)}
    second = np.mean(images.reshape(10, 4) ** 2, 0)
    np.testing.assert_allclose(found.mode_error, np.tile(second, (2, 1)), rtol=1e-12)
    np.testing.assert_allclose(found.correlation, np.full((2, 2), second.sum()), rtol=1e-12)
    squares = np.sum(images.reshape(10, 4) ** 2, 1)
    np.testing.assert_allclose(found.standard_error, np.std(squares) / 3.0, rtol=1e-10)
    np.testing.assert_allclose(found.gain, 0.0, atol=1e-10)
    np.testing.assert_allclose(found.offset, -0.5, atol=1e-10)
    np.testing.assert_allclose(found.increments, 0.0, atol=1e-12)


@pytest.mark.parametrize("prediction_type", ["x0", "flow", "v"])
def test_pure_noise_has_a_denoiser_too(prediction_type: str) -> None:
    """Flow matching at t = 1, a = 0: the exact denoiser is the mean, and the identity holds up to
    that time.
    """
    process = jk.FlowMatching()
    exact = TARGET.denoiser(process)

    def network(x: Array, t: Array) -> Array:
        x0, eps = exact(x, t)
        return {"x0": x0, "flow": eps - x0, "v": (1.0 - t) * eps - t * x0}[prediction_type]

    denoiser = jk.Denoiser(network, process, prediction_type)
    found = measure(denoiser, DATA, [1.0, 0.6, 0.2], key=jax.random.key(0), draws=2, **QUIET)
    assert found.sigma[0] == np.inf
    assert found.error[0] == pytest.approx(float(np.sum(TARGET.eigenvalues)), rel=1e-9)
    assert np.all(
        np.abs(found.martingale_violation) <= 4.0 * found.martingale_standard_error + 1e-9
    )
    assert (
        found.score_error().mean_at(TARGET.in_eigenbasis(), process, jnp.asarray([0.6])) is not None
    )


class Flaky:
    """A nonlinear score that counts its evaluations on the host and can fail at one of them."""

    def __init__(self) -> None:
        self.calls = 0
        self.breaks_at = -1

    def __call__(self, x: Array, t: Array) -> Array:
        def host(value: np.ndarray) -> np.ndarray:
            self.calls += 1
            if self.calls == self.breaks_at:
                raise RuntimeError("the machine was switched off")
            return np.asarray(value)

        score = _exact(x, t) + jnp.sin(x)
        return jax.pure_callback(
            host, jax.ShapeDtypeStruct(score.shape, score.dtype), score, vmap_method="sequential"
        )


def _same(one: Measurement, two: Measurement) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def _with_nfe(found: Measurement, nfe: int) -> Measurement:
    """The same with other NFE."""
    return eqx.tree_at(lambda m: m.statistics["nfe"], found, np.asarray(nfe))


def test_interrupted_measurement_goes_on(tmp_path: Path) -> None:
    network = Flaky()
    path = tmp_path / "state.npz"
    setting: dict[str, Any] = {"key": jax.random.key(0), "batch": 100, **QUIET}
    arguments = (_denoiser(network), DATA[:550], TIMES)
    whole = measure(*arguments, **setting)
    assert network.calls == 6 * 5
    network.calls = 0
    network.breaks_at = 2 * 5 + 3  # in the third batch
    with pytest.raises(Exception, match="switched off"):
        measure(*arguments, resume=path, **setting)
    network.calls = 0
    network.breaks_at = -1
    # a function is asked what it returns at one point, in each of two calls
    again = measure(*arguments, resume=path, **setting)
    _same(again, _with_nfe(whole, whole.nfe + 2))
    assert network.calls == 1 + 4 * 5  # batches 3 to 6
    # finished: it is read, and nothing else is run
    _same(measure(*arguments, resume=path, **setting), _with_nfe(whole, whole.nfe + 3))
    assert network.calls == 2 + 4 * 5
    assert list(tmp_path.iterdir()) == [path]
    assert np.all(np.linalg.eigvalsh(whole.mode_residual_correlation) > 0.0)


def _earlier(path: Path, *without: str) -> None:
    """The file as version 1 had it."""
    with np.load(path) as archive:
        content = {name: value for name, value in archive.items() if name not in without}
    np.savez(path, **{**content, "version": np.array(1)})


def test_state_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    """Version 1 had sums of other shapes under the same names, which would broadcast."""
    path = tmp_path / "state.npz"
    setting: dict[str, Any] = {"key": jax.random.key(0), "resume": path, **QUIET}
    measure(EXACT, DATA[:50], TIMES, **setting)
    _earlier(path)
    with pytest.raises(ValueError, match=r"state\.npz has version 1; this release reads version 3"):
        measure(EXACT, DATA[:50], TIMES, **setting)


def test_measurement_of_an_earlier_version_is_read(tmp_path: Path, gaussian: Measurement) -> None:
    path = tmp_path / "measured.npz"
    gaussian.save(path)
    _earlier(path, "statistics_mode_residual_correlation")
    loaded = Measurement.load(path)
    np.testing.assert_array_equal(loaded.residual, gaussian.residual)
    for ask in (lambda: loaded.mode_residual_correlation, lambda: loaded.residual_correlation):
        with pytest.raises(ValueError, match="mode_residual_correlation was not measured here"):
            ask()


def test_interrupted_power_iterations_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.npz"
    seen = []
    arguments = (EXACT, DATA[:50], TIMES)
    setting: dict[str, Any] = {"key": jax.random.key(0), "progress": False}
    whole = measure(*arguments, **setting)
    save = Checkpoint.save

    def save_or_stop(self: Checkpoint, sums: RunningSums) -> None:
        save(self, sums)
        seen.append(sums.done)
        if seen[-1] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save_or_stop)
    with pytest.raises(KeyboardInterrupt):
        measure(*arguments, **setting, resume=path)
    monkeypatch.undo()
    # EXACT is a function: what it returns at one point is compared by each of two calls
    _same(measure(*arguments, **setting, resume=path), _with_nfe(whole, whole.nfe + 2))
    assert seen == [0, 1, 2, 3]  # the first batch, then a time each


ONE = jnp.asarray(1.0)


class Scaled(eqx.Module):
    factor: Float[Array, ""]

    def __call__(self, x: Array, t: Array) -> Array:
        return -self.factor * x


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"samples": DATA[:59]}, "samples"),
        ({"times": TIMES[1:]}, "times"),
        ({"key": jax.random.key(1)}, "key"),
        ({"denoiser": jk.Denoiser(Scaled(ONE), jk.VP(0.2), "score")}, "process"),
        ({"denoiser": jk.Denoiser(Scaled(ONE), jk.OU(), "score")}, "process"),
        ({"denoiser": _denoiser(Scaled(0.5 * ONE))}, "network"),
        (
            {"denoiser": _denoiser(Scaled(ONE), "epsilon"), "batch": 50},
            "prediction_type, batch",
        ),
        ({"target": jk.Gaussian(0.0, np.ones(3))}, "target"),
        ({"draws": 2, "lipschitz_points": 1}, "draws, lipschitz_points"),
    ],
)
def test_state_of_another_measurement_is_refused(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    setting: dict[str, Any] = {
        "denoiser": _denoiser(Scaled(ONE)),
        "samples": DATA[:60],
        "times": TIMES,
        "key": jax.random.key(0),
        "resume": tmp_path / "state.npz",
        **QUIET,
    }
    measure(**setting)
    with pytest.raises(ValueError, match=rf"begun with other arguments \({named}\);"):
        measure(**{**setting, **changed})


def test_another_function_is_another_network(tmp_path: Path) -> None:
    """It holds no arrays to compare: the numbers of the first function were returned."""
    setting: dict[str, Any] = {"key": jax.random.key(0), "resume": tmp_path / "a.npz", **QUIET}

    def scaled(factor: float) -> jk.Denoiser:
        return _denoiser(lambda x, t: -factor * x)

    first = measure(scaled(1.0), DATA[:60], TIMES, **setting)
    with pytest.raises(ValueError, match=r"begun with other arguments \(network\);"):
        measure(scaled(0.9), DATA[:60], TIMES, **setting)
    _same(measure(scaled(1.0), DATA[:60], TIMES, **setting), _with_nfe(first, first.nfe + 1))


def test_exact_denoisers_are_measured_and_resumed(tmp_path: Path) -> None:
    """A distribution's denoiser is the network of its score; another one is not taken for it."""
    setting: dict[str, Any] = {"key": jax.random.key(0), "resume": tmp_path / "a.npz", **QUIET}
    found = measure(TARGET.denoiser(PROCESS), DATA[:60], TIMES, **setting)
    score = measure(EXACT, DATA[:60], TIMES, key=jax.random.key(0), **QUIET)
    np.testing.assert_allclose(found.error, score.error, rtol=1e-9)
    np.testing.assert_allclose(found.gain, score.gain, atol=1e-9)
    other = jk.Gaussian(0.0, np.ones(3)).denoiser(PROCESS)
    with pytest.raises(ValueError, match=r"begun with other arguments \(network\);"):
        measure(other, DATA[:60], TIMES, **setting)


def test_files(tmp_path: Path, gaussian: Measurement) -> None:
    path = tmp_path / "measured.npz"
    gaussian.save(path)
    loaded = Measurement.load(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(gaussian)
    _same(loaded, gaussian)
    assert repr(loaded) == repr(gaussian)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"measured\.npz is damaged"):
        Measurement.load(path)
    with pytest.raises(ValueError, match="cannot read"):
        Measurement.load(tmp_path / "nowhere.npz")
    np.savez(path, times=TIMES)
    with pytest.raises(ValueError, match="another kind of file"):
        Measurement.load(path)
    with pytest.raises(ValueError, match="cannot write"):
        measure(
            EXACT,
            DATA[:8],
            TIMES,
            key=jax.random.key(0),
            resume=tmp_path / "no" / "a.npz",
            **QUIET,
        )


def test_from_samples_alone(gaussian: Measurement, tmp_path: Path) -> None:
    found = Measurement.from_samples(PROCESS, DATA, TIMES)
    np.testing.assert_allclose(found.gaussian_error, _mmse(TIMES), rtol=1e-9)
    np.testing.assert_array_equal(found.target.eigenvalues, gaussian.target.eigenvalues)
    assert "kurtosis" in repr(found)
    for ask in (
        lambda: found.error,
        lambda: found.martingale_violation,
        lambda: found.increments,
        found.score_error,
    ):
        with pytest.raises(ValueError, match="was not measured here"):
            ask()
    found.save(tmp_path / "data.npz")
    _same(Measurement.load(tmp_path / "data.npz"), found)


def test_fewer_samples_than_dimensions() -> None:
    data = np.random.default_rng(0).standard_normal((5, 12))
    found = Measurement.from_samples(PROCESS, data, TIMES).target
    expected = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1]
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-14)


PROCESSES = {"vp": jk.VP(), "edm": jk.EDM(), "flow": jk.FlowMatching(), "cosine": jk.CosineVP()}


def _values(
    process: jk.AbstractProcess, t: float, x0: np.ndarray, eps: np.ndarray
) -> dict[str, np.ndarray]:
    """Every prediction type by its definition; rates by central differences."""
    a, s = (float(v) for v in _levels(process, np.asarray(t)))
    ends = [np.array(_levels(process, np.asarray(t + h))) for h in (-1e-5, 1e-5)]
    a_rate, s_rate = (ends[1] - ends[0]) / 2e-5
    return {
        "score": -eps / s,
        "epsilon": eps,
        "x0": x0,
        "v": a * eps - s * x0,
        "flow": a_rate * x0 + s_rate * eps,
    }


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", PROCESSES)
def test_losses_of_every_prediction_type_are_denoising_errors(
    name: str, prediction_type: str
) -> None:
    """The same draws and the same (bad) denoiser: each type's loss, averaged, against its error."""
    process = PROCESSES[name]
    rng = np.random.default_rng(0)
    times = np.array([0.8, 0.3])
    losses = []
    errors = []
    x0, eps = rng.standard_normal((2, 50, 6))
    for t in times:
        a, s = (float(v) for v in _levels(process, np.asarray(t)))
        x = a * x0 + s * eps
        denoised = np.tanh(x)
        guess = _values(process, float(t), denoised, (x - a * denoised) / s)
        truth = _values(process, float(t), x0, eps)
        losses.append(np.mean((guess[prediction_type] - truth[prediction_type]) ** 2))
        errors.append(np.mean(np.sum((denoised - x0) ** 2, 1)))
    found = Measurement.from_losses(
        process, times, losses, prediction_type=prediction_type, averaged_over=6
    )
    np.testing.assert_allclose(found.error, errors, rtol=1e-7)
    total = Measurement.from_losses(
        process,
        times,
        np.multiply(losses, 6),
        prediction_type=prediction_type,
        averaged_over=1,
        target=TARGET,
    )
    np.testing.assert_allclose(total.error, errors, rtol=1e-7)
    assert "best affine" in repr(total)


@pytest.mark.parametrize("back", PREDICTION_TYPES)
@pytest.mark.parametrize("there", PREDICTION_TYPES)
@pytest.mark.parametrize("name", PROCESSES)
def test_predictions_convert_and_come_back(name: str, there: str, back: str) -> None:
    """A network of one type, read as x0 and eps, written as another type and read again."""
    process = PROCESSES[name]
    t = 0.4
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 3, 2))
    a, s = (float(v) for v in _levels(process, np.asarray(t)))
    for prediction_type in (there, back):
        value = jnp.asarray(_values(process, t, x0, eps)[prediction_type])
        read = jk.Denoiser(lambda x, t, value=value: value, process, prediction_type)(
            jnp.asarray(a * x0 + s * eps), jnp.asarray(t)
        )
        np.testing.assert_allclose(read.x0, x0, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(read.eps, eps, rtol=1e-6, atol=1e-8)
        x0 = np.asarray(read.x0)
        eps = np.asarray(read.eps)


@pytest.mark.parametrize(
    ("prediction_type", "process", "t", "part"),
    [
        ("x0", jk.EDM(), 0.0, "x0"),
        ("epsilon", jk.FlowMatching(), 1.0, "eps"),
        ("score", jk.FlowMatching(), 1.0, "eps"),
    ],
)
def test_what_is_predicted_is_known_at_either_end(
    prediction_type: str, process: Any, t: float, part: str
) -> None:
    """x0 where no noise, and the noise where no signal is left; the other part is not known."""
    read = jk.Denoiser(lambda x, t: 2.0 * jnp.ones_like(x), process, prediction_type)(
        jnp.ones(3), jnp.asarray(t)
    )
    wanted = -2.0 if prediction_type == "score" else 2.0
    np.testing.assert_array_equal(getattr(read, part), wanted)
    assert not np.any(np.isfinite(read.eps if part == "x0" else read.x0))


@pytest.mark.usefixtures("float32")
def test_single_precision(gaussian: Measurement) -> None:
    # of this precision: JAX remembers that of arrays it has met
    target = jk.Gaussian.fit(DATA, shrinkage=0.0)
    process = jk.VP()
    denoiser = jk.Denoiser(lambda x, t: target.score(process, x, t), process, "score")
    found = measure(denoiser, DATA, TIMES, key=jax.random.key(0), draws=4, progress=False)
    np.testing.assert_allclose(found.gain, gaussian.gain, atol=2e-5)
    np.testing.assert_allclose(found.mode_error, gaussian.gaussian_error, rtol=0.06)
    np.testing.assert_allclose(found.lipschitz, gaussian.lipschitz, rtol=5e-3)
    assert np.max(np.abs(found.mode_residual_correlation)) < 1e-7
    assert np.all(
        np.abs(found.martingale_violation) <= 4.0 * found.martingale_standard_error + 1e-6
    )


def test_readable(gaussian: Measurement) -> None:
    lines = repr(gaussian).splitlines()
    assert lines[0].split() == [
        "t",
        "sigma",
        "error",
        "best",
        "affine",
        "nonlinear",
        "Lipschitz",
        "largest",
    ]
    assert len(lines) == 1 + 5 + 2
    assert "in 3 dimensions, kurtosis 2.9" in lines[-2]
    assert "standard errors" in lines[-1]


def _not_a_number(x: Array, t: Array) -> Array:
    return jnp.where(t < 0.3, jnp.nan, -x)


FLOW = jk.Denoiser(lambda x, t: -x, jk.FlowMatching(), "score")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"denoiser": _denoiser(lambda x, t: x[:, :2])},
            r"shape \(16, 2\) for x of shape \(16, 3\)",
        ),
        (
            {"denoiser": _denoiser(lambda x, t: jnp.ones(x.shape, int))},
            "dtype int64; they must be floating",
        ),
        ({"denoiser": _denoiser(_not_a_number)}, r"NaN or infinity.* at t = 0\.2"),
        ({"batch": 0}, "batch = 0 must be at least 1"),
        ({"draws": 0}, "draws = 0 must be at least 1"),
        ({"lipschitz_points": -1}, "lipschitz_points = -1"),
        ({"lipschitz_points": 4000}, "at most the number of samples, 3000"),
        ({"times": [0.1, 0.5]}, "strictly decreasing"),
        ({"times": [0.5, 0.0]}, "times > 0"),
        ({"times": [3.0, 0.5]}, "beyond the process"),
        ({"samples": np.zeros((1, 3))}, "at least 2 samples"),
        ({"samples": np.ones((4, 3))}, "all equal"),
        ({"samples": np.array([[0.0, 1.0], [np.nan, 0.0]])}, r"samples\[0:2\]\[1, 0\] = nan"),
        ({"target": jk.Gaussian(0.0, np.ones(4))}, "target has 4 modes"),
        (
            {"denoiser": FLOW, "times": [1.0, 0.5]},
            "leaves the denoised point open at t = 1:",
        ),
        ({"denoiser": FLOW, "times": [1.0 - 1e-15]}, "too little for float64"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {
        "denoiser": _denoiser(lambda x, t: -x),
        "samples": DATA,
        "times": TIMES,
        "key": jax.random.key(0),
        "batch": 16,
    }
    with pytest.raises(ValueError, match=message):
        measure(**{**setting, **QUIET, **arguments})


def test_networks_without_a_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this suite's type checks would catch, and a user meets without them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    network: Any = _exact
    message = r"must be a Denoiser\(fn, process"
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        measure(network, DATA, TIMES, key=key, **QUIET)
    with pytest.raises(ValueError, match=message):
        jk.estimate_score_error(network, DATA, TIMES, key=key, progress=False)
    with pytest.raises(ValueError, match=message):
        jk.linearised_score_error(network, [], DATA, TIMES, key=key)


def test_unknown_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type='noisy' is not known"):
        _denoiser(_exact, "noisy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": [1.0]}, r"losses has shape \(1,\)"),
        ({"losses": [1.0, -1.0]}, "losses must be >= 0"),
        ({"prediction_type": "epsilom"}, "prediction_type='epsilom' is not known"),
        ({"averaged_over": 0}, "averaged_over = 0"),
        ({"times": [0.1, 0.5]}, "strictly decreasing"),
    ],
)
def test_refusals_of_losses(arguments: dict[str, Any], message: str) -> None:
    setting: dict[str, Any] = {
        "times": [1.0, 0.5],
        "losses": [1.0, 1.0],
        "prediction_type": "x0",
        "averaged_over": 1,
    }
    with pytest.raises(ValueError, match=message):
        Measurement.from_losses(jk.FlowMatching(), **{**setting, **arguments})


def test_losses_say_nothing_without_signal() -> None:
    with pytest.raises(ValueError, match="signal is 0 at t = 1"):
        Measurement.from_losses(
            jk.FlowMatching(), [1.0, 0.5], [1.0, 1.0], prediction_type="epsilon", averaged_over=1
        )
    found = Measurement.from_losses(
        jk.FlowMatching(), [1.0, 0.5], [1.0, 1.0], prediction_type="v", averaged_over=1
    )
    with pytest.raises(ValueError, match="distribution of the data is not known"):
        _ = found.gaussian_error


def test_compressed_targets_are_not_kept(tmp_path: Path) -> None:
    target = jk.Gaussian(0.0, np.geomspace(1e-3, 1.0, 40)).compress(4)
    found = Measurement.from_losses(
        PROCESS, TIMES, TIMES, prediction_type="x0", averaged_over=1, target=target
    )
    with pytest.raises(ValueError, match="target is compressed"):
        found.save(tmp_path / "m.npz")
