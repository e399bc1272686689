"""Reading samples and spectra from files.

Numbers are taken as they are, in float64; only images, whose files hold integers, are scaled to
[-1, 1].
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .. import _checks
from ._extras import missing_extra
from ._images import read_images
from ._readers import LIST_READERS, SAMPLE_READERS, read_array


def load(source: str | os.PathLike[str], key: str | None = None) -> Float[np.ndarray, "n *sample"]:
    """Load samples of a named data set, a file or a folder of images.

    **Arguments:**

    - `source`: "digits" (1797 digits of 8 x 8 pixels from scikit-learn), a `.npy`, `.npz` or `.csv`
      file with one sample per row (a `.csv` may start with a row of names), or a folder of images
      of one size.
    - `key`: the array to read from a `.npz` that holds several.

    **Returns:** (n, ...) with n >= 2, in float64. Images are scaled to [-1, 1] and become
    (n, height, width), or (n, height, width, 3) if any has colour, in the order of their file
    names.

    **Raises:** ValueError for a source that is missing, unreadable, cut off, empty or ragged, has
    fewer than 2 samples or a NaN or infinity. ImportError if a named data set or images need a
    library that is not installed.

    **Example:**

    ```python
    >>> jk.data.load("digits").shape
    (1797, 8, 8)
    ```
    """
    name = os.fspath(source)
    if name in DATA_SETS:
        samples = DATA_SETS[name]()
    else:
        path = _existing(source, DATA_SETS)
        samples = read_images(path) if path.is_dir() else read_array(path, SAMPLE_READERS, key)
    samples = _check_finite(name, samples)
    if samples.ndim < 2:
        raise ValueError(
            f"{name} holds an array of shape {samples.shape}; samples are (n, ...), one per row. "
            "For the eigenvalues of a covariance use load_spectrum (--spectrum)."
        )
    if samples.shape[0] < 2:
        raise ValueError(f"{name} holds {samples.shape[0]} sample; at least 2 are needed.")
    return samples


def load_numbers(path: str | os.PathLike[str], key: str | None = None) -> Float[np.ndarray, " n"]:
    """Load one list of numbers from a file.

    **Arguments:**

    - `path`: a `.npy`, `.npz`, `.csv`, `.txt` or `.json` file. A text file holds one row or one
      column, a JSON file a list.
    - `key`: the array to read from a `.npz` that holds several.

    **Returns:** (n,), in float64.

    **Raises:** ValueError for a file that is missing, unreadable, cut off, empty, of another shape,
    or holds a NaN or infinity.

    **Example:**

    ```python
    >>> np.savetxt("numbers.txt", [3.0, 0.5])
    >>> jk.data.load_numbers("numbers.txt")
    array([3. , 0.5])
    ```
    """
    name = os.fspath(path)
    values = _check_finite(name, read_array(_existing(path), LIST_READERS, key))
    if max(values.shape, default=1) != values.size:
        raise ValueError(
            f"{name} holds an array of shape {values.shape}; it must be one list of numbers."
        )
    return values.reshape(-1)


def load_spectrum(
    path: str | os.PathLike[str], key: str | None = None
) -> Float[np.ndarray, " modes"]:
    """Load the eigenvalues of a covariance from a file.

    **Arguments:**

    - `path`: a file as of `load_numbers`.
    - `key`: the array to read from a `.npz` that holds several.

    **Returns:** (modes,) >= 0, in units of variance.

    **Raises:** ValueError as `load_numbers`, and for a negative eigenvalue.

    **Example:**

    ```python
    >>> np.savetxt("spectrum.txt", [3.0, 0.5])
    >>> target = jk.Gaussian(0.0, jk.data.load_spectrum("spectrum.txt"))
    ```
    """
    values = load_numbers(path, key)
    if np.any(values < 0):
        i = int(np.argmin(values))
        raise ValueError(
            f"eigenvalues[{i}] = {values[i]:g} in {os.fspath(path)} is negative; variances are "
            ">= 0."
        )
    return values


def _digits() -> np.ndarray:
    """scikit-learn's digits, scaled to [-1, 1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("digits", "scikit-learn") from None
    return load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 8.0 - 1.0


DATA_SETS: dict[str, Callable[[], np.ndarray]] = {"digits": _digits}


def _existing(path: str | os.PathLike[str], names: Iterable[str] = ()) -> Path:
    """The path of a file or folder that exists."""
    path = Path(path)
    if not path.exists():
        hint = f", nor the name of a data set ({', '.join(names)})" if names else ""
        raise ValueError(f"{path} is no file or folder that exists{hint}.")
    return path


def _check_finite(name: str, values: np.ndarray) -> np.ndarray:
    """A non-empty array of finite numbers in float64."""
    if values.size == 0:
        raise ValueError(f"{name} is empty.")
    return np.asarray(_checks.array(name, values))
