"""Samples of the data, read block by block so that nothing is copied."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._types import Numbers, constant
from ..distributions import Gaussian

# numbers per block: 16 MiB in float64
_BLOCK = 2**21
# their covariance takes 2 GiB
_MOST_MODES = 2**14


def check_samples(samples: Numbers) -> np.ndarray:
    """Samples in rows, as they are given: nothing is copied."""
    rows = _checks.on_host("samples", samples)
    if rows.ndim < 2 or rows.shape[0] < 2 or rows.size == 0:
        raise ValueError(
            f"samples has shape {rows.shape}; it must be (n, ...) with at least 2 samples."
        )
    return rows


def check_target(target: Gaussian | None, dimensions: int | None = None) -> Gaussian | None:
    """None or a Gaussian, of as many modes as the samples have dimensions where that is given."""
    if target is None:
        return None
    target = _checks.instance("target", target, Gaussian)
    modes = np.size(target.eigenvalues)
    if dimensions is not None and modes != dimensions:
        raise ValueError(
            f"target has {modes} modes; samples have {dimensions} dimensions. A Gaussian fitted to "
            "fewer samples than dimensions has too few: leave it out, and all modes are found."
        )
    return target


def dimensions(samples: np.ndarray) -> int:
    """Numbers in one sample."""
    return int(np.prod(samples.shape[1:]))


def read_block(samples: np.ndarray, start: int, size: int) -> Float[np.ndarray, "n *sample"]:
    """A block of samples in float64. ValueError for a NaN or infinity in it."""
    stop = min(start + size, samples.shape[0])
    return np.asarray(_checks.array(f"samples[{start}:{stop}]", samples[start:stop]))


def read_batch(samples: np.ndarray, start: int, size: int) -> tuple[Array, Array]:
    """A batch, filled up with its first sample, and weights that are 0 for what was filled up."""
    x = read_block(samples, start, size)
    present = np.arange(size) < len(x)
    index = np.where(present, np.arange(size), 0)
    return jnp.asarray(x[index], float), jnp.asarray(present, float)


def draw_points(samples: np.ndarray, key: Array, num: int) -> Float[Array, "num *sample"]:
    """`num` different samples, in the order of the data."""
    index = jax.random.choice(key, samples.shape[0], (num,), replace=False)
    rows = samples[np.sort(np.asarray(index))]
    return jnp.asarray(_checks.array("samples", rows), float)


def fit_gaussian(samples: np.ndarray) -> Gaussian:
    """`Gaussian.fit` without shrinkage and with all d modes, block by block.

    Every mode is measured on its own, so that one that stands for many directions will not do.
    """
    count = samples.shape[0]
    size = dimensions(samples)
    if size > _MOST_MODES:
        raise ValueError(
            f"samples have {size} dimensions; the modes of their covariance are found for at most "
            f"{_MOST_MODES}. Pass target=jk.Gaussian(mean, variances), {size} numbers each, to "
            "measure along the coordinates."
        )
    block = max(1, _BLOCK // size)
    starts = range(0, count, block)
    total = np.zeros(size)
    for start in starts:
        total += read_block(samples, start, block).reshape(-1, size).sum(0)
    mean = total / count
    covariance = np.zeros((size, size))
    fourth = np.zeros(size)
    for start in starts:
        centred = read_block(samples, start, block).reshape(-1, size) - mean
        covariance += centred.T @ centred / count
        fourth += np.sum(centred**4, 0) / count
    second = np.diag(covariance)
    if not np.any(second > 0):
        raise ValueError("samples are all equal: they have no variance to fit.")
    varying = second > 0
    # the variance-weighted mean over coordinates of E x^4 / (E x^2)^2
    kurtosis = np.sum(fourth[varying] / second[varying]) / np.sum(second)
    fitted = Gaussian.from_covariance(mean, covariance)
    return eqx.tree_at(
        lambda g: g.kurtosis, fitted, constant(kurtosis), is_leaf=lambda x: x is None
    )
