"""Distances between samples and data, against closed forms for Gaussians."""

from typing import Any

import numpy as np
import pytest

import jaxkernels as jk

RNG = np.random.default_rng(0)
DATA = RNG.standard_normal((4000, 3)) * [1.0, 2.0, 0.5]


def test_sliced_w2_of_a_shift_and_of_a_scale() -> None:
    """A shift by m is at |u . m| in direction u, on average |m|^2 / d.

    A scale by c is at (c - 1) times each standard deviation.
    """
    shift = np.array([0.3, 0.0, -0.4])
    found = jk.metrics.sliced_w2(DATA + shift, DATA, directions=400)
    assert found.value == pytest.approx(0.5 / np.sqrt(3.0), rel=0.08)
    centered = DATA - DATA.mean(0)
    scaled = jk.metrics.sliced_w2(1.5 * centered, centered, directions=400)
    assert scaled.value == pytest.approx(0.5 * np.sqrt(np.mean(centered.var(0))), rel=0.08)
    images = jk.metrics.sliced_w2(
        (DATA + shift).reshape(-1, 3, 1), DATA.reshape(-1, 3, 1), directions=400
    )
    assert images == found


def test_frechet_is_the_distance_of_the_fitted_gaussians() -> None:
    """Axis-aligned Gaussians: |m|^2 + sum (s - s')^2, of the sample moments."""
    samples = RNG.standard_normal((3000, 3)) @ np.diag([1.2, 1.0, 0.5]) + [0.1, 0.0, 0.0]
    found = jk.metrics.frechet(samples, DATA)
    exact = np.sqrt(0.1**2 + 0.2**2 + 1.0**2)
    assert found.value == pytest.approx(exact, abs=4.0 * found.standard_error)
    assert found.standard_error < 0.05
    # a feature space of one dimension: the sum of entries
    line = jk.metrics.frechet(samples, DATA, features=lambda x: x.sum(1, keepdims=True))
    a, b = samples.sum(1), DATA.sum(1)
    assert line.value == pytest.approx(
        np.hypot(a.mean() - b.mean(), a.std(ddof=1) - b.std(ddof=1)), rel=1e-9
    )


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    draws = (
        np.random.default_rng(seed).standard_normal((400, 3)) * [1.3, 2.0, 0.5] + 0.5
        for seed in range(40)
    )
    found = [jk.metrics.sliced_w2(draw, DATA) for draw in draws]
    # 40 draws know a standard deviation to 11%, ten parts each of them to a quarter
    stated = np.mean([f.standard_error for f in found])
    assert stated == pytest.approx(np.std([f.value for f in found], ddof=1), rel=0.4)
    assert "±" in repr(found[0])


@pytest.mark.parametrize(
    ("samples", "data", "message"),
    [
        (DATA[:10], DATA, "n >= 20"),
        (DATA, DATA[:, :2], r"data \(4000, 2\)"),
        (np.full((30, 3), np.nan), DATA, r"samples\[0, 0\] = nan"),
        (DATA[:, 0], DATA, "must be"),
    ],
)
def test_refusals(samples: Any, data: Any, message: str) -> None:
    for distance in (jk.metrics.sliced_w2, jk.metrics.frechet):
        with pytest.raises(ValueError, match=message):
            distance(samples, data)
    with pytest.raises(ValueError, match="directions = 0"):
        jk.metrics.sliced_w2(DATA, DATA, directions=0)


def test_samples_are_at_no_distance_from_themselves() -> None:
    """Entry j of m stands for the level (j + 1/2) / m, as in NumPy's method "hazen"."""
    x = np.random.default_rng(0).lognormal(size=(100, 3))
    assert jk.metrics.sliced_w2(x, x).value < 1e-12
    y, levels = np.sort(x, 0), (np.arange(37) + 0.5) / 37
    np.testing.assert_allclose(
        jk.metrics.quantiles(y, 37), np.quantile(y, levels, axis=0, method="hazen"), rtol=1e-12
    )
