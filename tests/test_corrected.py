"""A model that recorded runs correct: what a network is between and beside them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels.trajectories import CorrectedDenoiser

PROCESS = jk.VP()
T_MIN = 1e-3
NODES = 28
# every third node is one of the ten of a coarse run
COARSE = slice(None, None, 3)
NOISE: Any = np.random.default_rng(0).standard_normal((16, 2))
CLUSTERS = jk.GaussianMixture([0.5, 0.5], [[1.0, 0.2], [-1.0, 0.0]], np.full((2, 2), 0.3))
# sharper than the network, and elsewhere
MODEL = jk.GaussianMixture([0.3, 0.7], [[0.8, 0.0], [-1.2, 0.3]], np.full((2, 2), 0.1))


def _record(denoiser: jk.AbstractDenoiser, noise: Any = NOISE) -> jk.DenoisedRecord:
    run: dict[str, Any] = {"t_min": T_MIN, "nodes": NODES, "progress": False}
    with jax.enable_x64(True):
        return jk.record_denoised(denoiser, noise, **run)


def _corrected(record: jk.DenoisedRecord, model: jk.GaussianMixture = MODEL) -> CorrectedDenoiser:
    with jax.enable_x64(True):
        return record.denoiser(model.denoiser(PROCESS))


@pytest.fixture(scope="module")
def record() -> jk.DenoisedRecord:
    return _record(CLUSTERS.denoiser(PROCESS))


def test_it_is_the_network_on_all_runs(record: jk.DenoisedRecord) -> None:
    corrected = _corrected(record)
    network = CLUSTERS.denoiser(PROCESS)
    coarse = record.node_times[COARSE]
    runs = [(record.node_times, record.points, 0.0)]
    runs += [(coarse, record.coarse_points[:, :, r], 0.02) for r in (0, 1)]
    for times, points, share in runs:
        for t, x in zip(times, points, strict=True):
            with jax.enable_x64(True):
                found = corrected(jnp.asarray(x), jnp.asarray(t))
                expected = network(jnp.asarray(x), jnp.asarray(t))
                model = MODEL.denoiser(PROCESS)(jnp.asarray(x), jnp.asarray(t))
            # up to rho, of what a model gets wrong
            off = np.median(np.abs(np.asarray(model.x0 - expected.x0)))
            assert np.median(np.abs(np.asarray(found.x0 - expected.x0))) <= share * off + 1e-8
            a, s = PROCESS.signal(t), PROCESS.noise(t)
            np.testing.assert_allclose(a * found.x0 + s * found.eps, x, atol=1e-8)


@pytest.mark.parametrize(("run", "sampler"), [(0, "dpmpp_2m"), (1, "ddim")])
def test_coarse_runs_are_those_of_samplers(
    run: int, sampler: str, record: jk.DenoisedRecord
) -> None:
    schedule = jk.Schedule(record.node_times[COARSE])
    with jax.enable_x64(True):
        path = jk.sample(
            CLUSTERS.denoiser(PROCESS), sampler, schedule, jnp.asarray(NOISE), trajectory=True
        )
    np.testing.assert_allclose(record.coarse_points[:, :, run], path, rtol=1e-9, atol=1e-12)


def test_two_runs_of_a_linear_network_are_two_columns_of_its_matrix() -> None:
    """In two dimensions nothing is left of a wrong linear model where their directions differ."""
    noise = np.random.default_rng(5).standard_normal((40, 2))
    network = jk.Gaussian([0.3, -0.2], [1.5, 0.05]).denoiser(PROCESS)
    record = _record(network, noise)
    wrong = jk.Gaussian([0.0, 0.0], [0.1, 2.0]).denoiser(PROCESS)
    points = np.asarray(record.points)[COARSE]
    deviations = np.asarray(record.coarse_points) - points[:, :, None]
    units = deviations / (np.linalg.norm(deviations, axis=-1, keepdims=True) + 1e-300)
    differ = np.abs(np.sum(units[:, :, 0] * units[:, :, 1], -1)) < 0.9
    checked = 0
    with jax.enable_x64(True):
        corrected = record.denoiser(wrong)
        for j in range(2, 10):
            x, t = jnp.asarray(points[j]), jnp.asarray(record.node_times[COARSE][j])
            found, expected, off = (
                np.asarray(d(x + 0.1, t).x0 - d(x, t).x0)[differ[j]]
                for d in (corrected, network, wrong)
            )
            if len(found):
                size = np.abs(off - expected).max()
                np.testing.assert_allclose(found, expected, atol=0.03 * size)
            checked += len(found)
    assert checked > 40


def test_the_gaussian_has_all_of_a_gaussian_network() -> None:
    """Where the end points' Gaussian is the network, no secant is left, whatever the model."""
    noise = np.random.default_rng(1).standard_normal((400, 2))
    gaussian = jk.Gaussian([0.2, -0.1], [0.5, 0.1])
    corrected = _corrected(_record(gaussian.denoiser(PROCESS), noise))
    # of 400 samples of the end points
    assert np.min(corrected.shares) > 0.9
    x = jnp.asarray(NOISE)
    part = corrected.take(slice(16))
    for t in (0.8, 0.4, 0.1, 0.01):
        found = part(x, t).x0 - part(x + 0.1, t).x0
        expected = gaussian.denoiser(PROCESS)(x, t).x0 - gaussian.denoiser(PROCESS)(x + 0.1, t).x0
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_shares_make_secants_smallest(record: jk.DenoisedRecord) -> None:
    """Against a search over shares in [0, 1] at each node of the coarse runs."""
    corrected = _corrected(record)
    ends = np.asarray(record.ends)
    gaussian = jk.Gaussian.fit(ends)
    shares = np.linspace(0.0, 1.0, 2001)
    for j in range(1, 10):
        t = record.node_times[COARSE][j]
        x, runs = np.asarray(record.points)[COARSE][j], np.asarray(record.coarse_points)[j]
        sizes = np.zeros(shares.size)
        for y in np.moveaxis(runs, 1, 0):
            with jax.enable_x64(True):
                changes = [
                    np.asarray(d(jnp.asarray(y), t).x0 - d(jnp.asarray(x), t).x0)
                    for d in (one.denoiser(PROCESS) for one in (CLUSTERS, MODEL, gaussian))
                ]
            secants = [changes[0] - (1 - w) * changes[1] - w * changes[2] for w in shares]
            squared = np.sum((y - x) ** 2, 1, keepdims=True)
            sizes += [np.sum(s**2 / squared) for s in secants]
        assert abs(corrected.shares[j] - shares[np.argmin(sizes)]) < 1e-3


def test_a_network_that_is_affine_along_a_line_is_found() -> None:
    """In one dimension two points are a line: nothing is left of a network that is affine in x."""
    noise = np.random.default_rng(2).standard_normal((12, 1))
    gaussian = jk.Gaussian(0.3, [0.4])
    model = jk.GaussianMixture([0.5, 0.5], [[2.0], [-2.0]], [[0.5], [0.5]])
    record = _record(gaussian.denoiser(PROCESS), noise)
    with jax.enable_x64(True):
        # of a mixture of two Gaussians' slopes, both wrong: that of the end points is of twelve
        wrong = jk.Gaussian(0.0, [2.0]).denoiser(PROCESS)
        corrected = record.denoiser(wrong)
        of_mixture = record.denoiser(model.denoiser(PROCESS))
        for j in (3, 12, 21):
            t = jnp.asarray(record.node_times[j])
            x = jnp.asarray(record.points)[j] + 0.3
            expected = gaussian.denoiser(PROCESS)(x, t).x0
            off = float(jnp.max(jnp.abs(wrong(x, t).x0 - expected)))
            np.testing.assert_allclose(corrected(x, t).x0, expected, atol=0.003 * off + 1e-9)
            near = jnp.asarray(record.points)[j] + 1e-3
            difference = of_mixture(near, t).x0 - gaussian.denoiser(PROCESS)(near, t).x0
            assert np.max(np.abs(difference)) < 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "unipc"])
def test_errors_of_schedules_are_nearly_those_of_the_network(
    sampler: str, record: jk.DenoisedRecord
) -> None:
    """End points of other samplers and schedules; those of the plain model are off by more."""
    corrected = _corrected(record)
    with jax.enable_x64(True):
        noise = jnp.asarray(NOISE)
        plain = MODEL.denoiser(PROCESS)
        left = []
        for schedule in (
            jk.schedules.quadratic(PROCESS, 6, T_MIN),
            jk.schedules.karras(PROCESS, 12, T_MIN),
        ):
            run = (sampler, schedule, noise)
            ends = np.asarray(jk.sample(CLUSTERS.denoiser(PROCESS), *run))
            error = np.linalg.norm(ends - np.asarray(record.ends), axis=1)
            for denoiser in (corrected, plain):
                off = np.linalg.norm(np.asarray(jk.sample(denoiser, *run)) - ends, axis=1)
                left.append(np.median(off) / np.median(error))
    assert np.mean(left[::2]) < 0.25
    assert np.mean(left[1::2]) > 1.0


def test_exchanged_corrections_follow_their_own_trajectories(record: jk.DenoisedRecord) -> None:
    """Of the model and another row's residual; a fine solution of that ends at the same points."""
    corrected = _corrected(record)
    rows = np.roll(np.arange(16), 5)
    plain = dataclasses.replace(corrected, secants=np.zeros_like(corrected.secants)).take(rows)
    with jax.enable_x64(True):
        noise = jnp.asarray(NOISE)
        moved, ends = corrected.exchanged(noise, rows, T_MIN)
        own, own_ends = corrected.exchanged(noise, np.arange(16), T_MIN)
        fine = jk.sample(plain, "rk4", jk.schedules.log_snr(PROCESS, 400, T_MIN), noise)
        along = jk.sample(moved, "rk4", jk.schedules.log_snr(PROCESS, 400, T_MIN), noise)
    np.testing.assert_allclose(ends, fine, atol=5e-3)
    # on their trajectories secants change nothing
    np.testing.assert_allclose(along, fine, atol=5e-3)
    # every row with its own is the record
    np.testing.assert_allclose(own_ends, record.ends, atol=1e-3)
    np.testing.assert_allclose(own.path, corrected.path, atol=1e-3)


def test_derivatives_are_finite_where_the_runs_begin(record: jk.DenoisedRecord) -> None:
    """All runs start at the same point, where their difference is 0."""
    corrected = _corrected(record)
    with jax.enable_x64(True):
        x = jnp.asarray(NOISE)
        for t in (1.0, 0.999, 0.5, T_MIN, 1e-4):
            found = jax.jacrev(lambda t: corrected(x, t).x0)(jnp.asarray(t))
            assert np.all(np.isfinite(found))
