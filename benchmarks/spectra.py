"""Real data of installed packages, and their covariance spectra: nothing is downloaded."""

from collections.abc import Callable
from functools import cache

import numpy as np
from skimage import data as photographs_of_skimage
from sklearn.datasets import load_breast_cancer, load_digits, load_sample_images

import jaxkernels as jk

from .environment import CACHE

_SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket")


@cache
def photographs() -> list[np.ndarray]:
    """Colour photographs (height, width, 3), values in [-1, 1]."""
    images = [
        *load_sample_images().images,
        *(getattr(photographs_of_skimage, name)() for name in _SKIMAGE),
    ]
    return [np.asarray(p, np.float64) / 127.5 - 1.0 for p in images]


def patches(num: int, size: int, *, grey: bool, seed: int = 0) -> np.ndarray:
    """`num` patches (num, size * size * channels) at random places of random photographs."""
    rng = np.random.default_rng(seed)
    images = photographs()
    if grey:
        images = [p.mean(-1, keepdims=True) for p in images]
    result = np.empty((num, size, size, images[0].shape[-1]))
    for patch, which in zip(result, rng.integers(len(images), size=num), strict=True):
        height, width = images[which].shape[:2]
        i = rng.integers(height - size + 1)
        j = rng.integers(width - size + 1)
        patch[:] = images[which][i : i + size, j : j + size]
    return result.reshape(num, -1)


def digits() -> np.ndarray:
    """scikit-learn's 8x8 digits (1797, 64), pixels in [-1, 1]."""
    return np.asarray(load_digits(return_X_y=True)[0]) / 8.0 - 1.0


def breast_cancer() -> np.ndarray:
    """scikit-learn's breast cancer table (569, 30), every column standardised."""
    x = np.asarray(load_breast_cancer(return_X_y=True)[0])
    return (x - x.mean(0)) / x.std(0)


DATA: dict[str, Callable[[], np.ndarray]] = {
    "colour_patches": lambda: patches(12288, 32, grey=False),
    "digits": digits,
    "breast_cancer": breast_cancer,
}


@cache
def spectrum(name: str) -> jk.Gaussian:
    """The Gaussian fitted to `DATA[name]`, along its modes (3072, 64 and 30); kept in .cache."""
    path = CACHE / f"spectrum_{name}.npz"
    if not path.exists():
        target = jk.Gaussian.fit(DATA[name]()).in_eigenbasis()
        CACHE.mkdir(exist_ok=True)
        np.savez(
            path,
            mean=target.mean,
            eigenvalues=target.eigenvalues,
            kurtosis=np.asarray(target.kurtosis),
        )
    stored = np.load(path)
    return jk.Gaussian(stored["mean"], stored["eigenvalues"], kurtosis=stored["kurtosis"])


def thinned(target: jk.Gaussian, modes: int) -> jk.Gaussian:
    """A spectrum of the same shape with fewer modes, each standing for d / modes neighbours."""
    size = np.shape(target.eigenvalues)[0]
    index = (np.arange(modes) * size) // modes
    return jk.Gaussian(
        np.asarray(target.mean)[index],
        np.asarray(target.eigenvalues)[index],
        weights=np.full(modes, size / modes),
    )
