"""Reading samples and spectra from files.

Numbers are taken as they are; only images, whose files hold integers, are scaled to [-1, 1].
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .. import _checks
from .._extras import missing_extra
from .._progress import Progress
from ._folders import READERS, folder_rows
from ._readers import ARRAY_DECODERS, LIST_DECODERS, check_key, decode
from ._rows import Rows, array_rows
from ._text import read_csv, read_numbers

# bytes of a .npy file above which its rows are read when asked for
_MAPPED = 2**28


def load(
    source: str | os.PathLike[str],
    key: str | None = None,
    *,
    max_samples: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] = print,
    progress: bool = True,
) -> Float[np.ndarray, "n *sample"]:
    """Load samples of a named data set, a file or a folder.

    **Arguments:**

    - `source`: "digits" (1797 digits of 8 x 8 pixels from scikit-learn), or a path:
        - `.npy`, `.npz`, `.pt`, `.safetensors`, `.h5`: an array with one sample per row.
        - `.csv`: one sample per line, by pandas' conventions. A first line of words, of 0, 1, 2,
          ..., or of other increasing integers above fractions, is the header; a first column that
          has no name, or "index", is the index.
        - `.parquet`, `.arrow`: a column of images or lists, or columns of numbers.
        - `.tar`: a shard with one image or array per sample, as webdataset writes, not compressed.
        - a folder of images, of arrays (a file for each sample of up to three axes, or for several
          samples), or of tables, HDF5 files or shards, in subfolders or not, which may be links;
          one split of a data set that Hugging Face's `datasets` saved.
    - `key`: the array, column, or extension in a shard, where there are several.
    - `max_samples`: >= 2; a random subset of this size is read of larger data. Default: all.
    - `seed`: integer >= 0 of that subset.
    - `report`: is told, a sentence at a time, what was inferred: header, index, shards, subset.
    - `progress`: show a status line while it takes longer than a second, on a terminal.

    **Returns:** (n, ...) with n >= 2, in the order of the file names: in float32 if the file has no
    more digits, else in float64. Images are scaled to [-1, 1] and become (n, height, width), or
    (n, height, width, 3) if any has colour.

    **Raises:** ValueError for a source that is missing, unreadable, cut off, empty or ragged, has
    fewer than 2 samples or a NaN or infinity. ImportError, which says what to install, for a
    library that is missing.

    **Example:**

    ```python
    >>> jk.data.load("digits", max_samples=100, report=lambda text: None).shape
    (100, 8, 8)
    ```
    """
    name = os.fspath(source)
    if max_samples is not None:
        _checks.count("max_samples", max_samples, at_least=2)
    _checks.count("seed", seed, at_least=0)
    with Progress(f"reading {name}", progress) as line:
        rows = _open(source, key, report)
        index = np.arange(rows.count)
        if max_samples is not None and max_samples < rows.count:
            index = np.random.default_rng(seed).choice(rows.count, max_samples, replace=False)
            index.sort()
            report(f"{name}: {max_samples} of {rows.count} samples, at random")
        if not index.size:
            raise ValueError(f"{name} is empty.")
        samples = rows.read(index, _counter(line, name, index.size))
    samples = _check_finite(name, samples)
    if samples.shape[0] < 2:
        raise ValueError(f"{name} holds {samples.shape[0]} sample; at least 2 are needed.")
    return samples


def _counter(line: Progress, name: str, total: int) -> Callable[[], None]:
    """A function that shows how many of the samples were read."""
    count = 0

    def done() -> None:
        nonlocal count
        count += 1
        line.update(f"reading {name}: sample {count} of {total}")

    return done


def _open(source: str | os.PathLike[str], key: str | None, report: Callable[[str], None]) -> Rows:
    """The samples of a source."""
    name = os.fspath(source)
    if name in DATA_SETS:
        check_key(name, key)
        return array_rows(name, DATA_SETS[name]())
    path = _existing(source, DATA_SETS)
    if path.is_dir():
        return folder_rows(path, key, report)
    check_key(name, key)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return array_rows(name, _csv(path, report))
    if suffix in READERS:
        return READERS[suffix](path, key, report)
    if suffix not in ARRAY_DECODERS:
        known = (*ARRAY_DECODERS, ".csv", *READERS)
        raise ValueError(
            f"{path} has the suffix {suffix!r}; files that can be read are {', '.join(known)}."
        )
    if suffix == ".npy" and path.stat().st_size > _MAPPED:
        return array_rows(name, np.load(path, mmap_mode="r"))
    return array_rows(name, decode(name, path.read_bytes, key, ARRAY_DECODERS))


def _csv(path: Path, report: Callable[[str], None]) -> np.ndarray:
    """The numbers of a .csv file."""
    values, notes = read_csv(str(path), _read_text(path))
    for note in notes:
        report(note)
    return values


def _read_text(path: Path) -> str:
    """The content of a text file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged, cut off or not in UTF-8: {error}.") from None


def load_numbers(
    path: str | os.PathLike[str],
    key: str | None = None,
    *,
    report: Callable[[str], None] = print,
) -> Float[np.ndarray, " n"]:
    """Load one list of numbers from a file.

    **Arguments:**

    - `path`: a `.npy`, `.npz`, `.pt`, `.safetensors`, `.csv`, `.txt` or `.json` file. A text file
      holds one row or one column, a JSON file a list.
    - `key`: the array to read from a file that holds several.
    - `report`: is told what was taken for the header and the index of a `.csv`, as for `load`.

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
    values = _check_finite(name, _read_list(_existing(path), key, report)).astype(np.float64)
    if max(values.shape, default=1) != values.size:
        raise ValueError(
            f"{name} holds an array of shape {values.shape}; it must be one list of numbers."
        )
    return values.reshape(-1)


def _read_list(path: Path, key: str | None, report: Callable[[str], None]) -> np.ndarray:
    """The array in a file of few numbers."""
    check_key(str(path), key)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _csv(path, report)
    if suffix == ".txt":
        return read_numbers(str(path), _read_text(path))
    if suffix not in LIST_DECODERS:
        known = (*LIST_DECODERS, ".csv", ".txt")
        raise ValueError(
            f"{path} has the suffix {suffix!r}; files that can be read are {', '.join(known)}."
        )
    return decode(str(path), path.read_bytes, key, LIST_DECODERS)


def load_spectrum(
    path: str | os.PathLike[str],
    key: str | None = None,
    *,
    report: Callable[[str], None] = print,
) -> Float[np.ndarray, " modes"]:
    """Load the eigenvalues of a covariance from a file.

    **Arguments:**

    - `path`: a file as of `load_numbers`.
    - `key`: the array to read from a file that holds several.
    - `report`: is told what was taken for the header and the index of a `.csv`, and which
      eigenvalues were set to 0.

    **Returns:** (modes,) >= 0, in units of variance. Eigenvalues that rounding made negative, down
    to -1e-6 of the largest, are 0.

    **Raises:** ValueError as `load_numbers`, and for a negative eigenvalue.

    **Example:**

    ```python
    >>> np.savetxt("spectrum.txt", [3.0, 0.5])
    >>> target = jk.Gaussian(0.0, jk.data.load_spectrum("spectrum.txt"))
    ```
    """
    name = os.fspath(path)
    given = load_numbers(path, key, report=report)
    values = np.asarray(_checks.variances(f"{name}: eigenvalues", given))
    rounded = given[given < 0]
    if rounded.size:
        report(f"{name}: {rounded.size} eigenvalues >= {rounded.min():.2g}, of rounding, are now 0")
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
    """A non-empty array of finite numbers in float32, if that has all their digits, or float64."""
    if values.size == 0:
        raise ValueError(f"{name} is empty.")
    if values.dtype.kind == "b":
        # a file of black and white images
        return values.astype(np.float32)
    if values.dtype.kind != "f" or not np.all(np.isfinite(values)):
        return np.asarray(_checks.array(name, values))
    return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64, copy=False)
