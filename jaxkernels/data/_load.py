"""Reading samples and spectra from files.

Numbers are taken as they are, in float64; only images, whose files hold integers, are scaled to [-1, 1].
Every fault of a file is a ValueError that names it.
"""

import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float

from .. import _checks

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


# Pillow's modes with at most 8 bits a channel; wider ones have no range that all files agree on
_GREY_MODES, _COLOUR_MODES = (
    ("1", "L", "LA"),
    ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"),
)


def load(source: str | os.PathLike[str], key: str | None = None) -> Float[np.ndarray, "n *sample"]:
    """Samples (n, ...) with n >= 2.

    `source` is a name in `NAMED` ("digits": 1797 digits of 8 x 8 pixels from scikit-learn), a `.npy`,
    `.npz` or `.csv` file, or a folder of images of one size. `key` is the array to read from a `.npz` that
    holds several. A `.csv` has one sample per row, and may start with a row of names. Images become
    (n, height, width), or (n, height, width, 3) if any has colour, in the order of their file names.

    **Raises:** ValueError for a source that is missing, unreadable, cut off, empty or ragged, has fewer than
    2 samples or a NaN or infinity. ImportError if a named data set or images need a library that is not
    installed.
    """
    name = os.fspath(source)
    if name in NAMED:
        samples = NAMED[name]()
    else:
        path = _existing(source, NAMED)
        samples = _images(path) if path.is_dir() else _array(path, _SAMPLE_READERS, key)
    samples = _finite(name, samples)
    if samples.ndim < 2:
        raise ValueError(
            f"{name} holds an array of shape {samples.shape}; samples are (n, ...), one per row. For the "
            "eigenvalues of a covariance use load_spectrum (--spectrum)."
        )
    if samples.shape[0] < 2:
        raise ValueError(f"{name} holds {samples.shape[0]} sample; at least 2 are needed.")
    return samples


def load_numbers(path: str | os.PathLike[str], key: str | None = None) -> Float[np.ndarray, " n"]:
    """One list of numbers from a `.npy`, `.npz`, `.csv`, `.txt` or `.json` file.

    A text file holds one row or one column, a JSON file a list. Raises ValueError for a file that is
    missing, unreadable, cut off, empty, of another shape, or holds a NaN or infinity.
    """
    name = os.fspath(path)
    values = _finite(name, _array(_existing(path), _LIST_READERS, key))
    if max(values.shape, default=1) != values.size:
        raise ValueError(
            f"{name} holds an array of shape {values.shape}; it must be one list of numbers."
        )
    return values.reshape(-1)


def load_spectrum(
    path: str | os.PathLike[str], key: str | None = None
) -> Float[np.ndarray, " modes"]:
    """Eigenvalues (d,) of a covariance, in units of variance, by `load_numbers`; ValueError if one is < 0."""
    values = load_numbers(path, key)
    if np.any(values < 0):
        i = int(np.argmin(values))
        raise ValueError(
            f"eigenvalues[{i}] = {values[i]:g} in {os.fspath(path)} is negative; variances are >= 0."
        )
    return values


def _digits() -> np.ndarray:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise _missing("digits", "scikit-learn") from None
    return load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 8.0 - 1.0


NAMED: dict[str, Callable[[], np.ndarray]] = {"digits": _digits}


def _missing(what: str, library: str) -> ImportError:
    return ImportError(
        f'{what} needs {library}, which is not installed: pip install "jaxkernels[cli]".'
    )


def _existing(path: str | os.PathLike[str], names: Iterable[str] = ()) -> Path:
    path = Path(path)
    if not path.exists():
        hint = f", nor the name of a data set ({', '.join(names)})" if names else ""
        raise ValueError(f"{path} is no file or folder that exists{hint}.")
    return path


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if values.size == 0:
        raise ValueError(f"{name} is empty.")
    return np.asarray(_checks.array(name, values))


def _array(
    path: Path, readers: dict[str, Callable[[Path, str | None], np.ndarray]], key: str | None
):
    """The array in a file, read by its suffix."""
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(
            f"{path} has the suffix {suffix!r}; files that can be read are {', '.join(readers)}."
        )
    if key is not None and suffix != ".npz":
        raise ValueError(f"key = {key!r} is for .npz files, which hold several arrays; got {path}.")
    try:
        return readers[suffix](path, key)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}.") from None
    except (EOFError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}.") from None


def _npy(path: Path, key: str | None) -> np.ndarray:
    del key
    with path.open("rb") as file:
        values = _numpy(path, file)
        if not isinstance(values, np.ndarray):
            raise ValueError(f"{path} is a .npz archive by content; give it that suffix.")
        return values


def _npz(path: Path, key: str | None) -> np.ndarray:
    with path.open("rb") as file:
        archive = _numpy(path, file)
        if isinstance(archive, np.ndarray):
            raise ValueError(f"{path} is a .npy file by content; give it that suffix.")
        names = archive.files
        if key is None and len(names) != 1:
            raise ValueError(
                f"{path} holds {len(names)} arrays; choose one by key: {', '.join(names)}."
            )
        name = names[0] if key is None else _checks.one_of("key", key, names)
        try:
            return archive[name]
        except ValueError as error:
            raise ValueError(
                f"{name} in {path} is damaged or not a plain NumPy array: {error}."
            ) from None


def _numpy(path: Path, file: BinaryIO) -> "np.ndarray | np.lib.npyio.NpzFile":
    try:
        return np.load(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, cut off or not a plain NumPy array: {error}."
        ) from None


def _text(path: Path, key: str | None) -> np.ndarray:
    """Rows of numbers separated by commas, or by white space where there is no comma."""
    del key
    lines = [line.split("#")[0] for line in path.read_text(encoding="utf-8-sig").splitlines()]
    rows = [i for i, line in enumerate(lines) if line.strip()]
    delimiter = "," if any("," in line for line in lines) else None
    if rows and not any(_is_number(cell) for cell in lines[rows[0]].split(delimiter)):
        rows = rows[1:]  # a row of names
    if not rows:
        raise ValueError(f"{path} holds no numbers.")
    try:
        return np.loadtxt([lines[i] for i in rows], delimiter=delimiter, ndmin=2, quotechar='"')
    except ValueError as error:
        cells = {i + 1: lines[i].split(delimiter) for i in rows}
        raise ValueError(
            f"{path} is not a table of numbers: {_text_fault(cells) or error}."
        ) from None


def _text_fault(cells: dict[int, list[str]]) -> str | None:
    """What is wrong with a table of numbers, given its cells by line."""
    first = min(cells)
    for line, row in cells.items():
        for cell in row:
            if not _is_number(cell):
                return f"line {line} has {cell.strip()!r}"
        if len(row) != len(cells[first]):
            return f"line {line} has {len(row)} entries where line {first} has {len(cells[first])}"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text.strip().strip('"'))
    except ValueError:
        return False
    return True


def _json(path: Path, key: str | None) -> np.ndarray:
    del key
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a complete JSON file: {error}.") from None
    if not isinstance(content, list):
        raise ValueError(
            f"{path} must hold a list of numbers; it holds a {type(content).__name__}."
        )
    return np.asarray(_checks.array(str(path), content)) if content else np.empty(0)


_SAMPLE_READERS = {".npy": _npy, ".npz": _npz, ".csv": _text}


_LIST_READERS = {**_SAMPLE_READERS, ".txt": _text, ".json": _json}


def _images(folder: Path) -> np.ndarray:
    """All images of a folder, scaled to [-1, 1]."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} is a folder without images ({', '.join(IMAGE_SUFFIXES)}).")
    images = [_image(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"images must have one size; {paths[0]} has {_size(images[0])} and {path} has {_size(image)}."
            )
    if len({image.ndim for image in images}) > 1:
        images = [
            image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in images
        ]
    return np.stack(images) / 127.5 - 1.0


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]} pixels"


def _image(path: Path) -> np.ndarray:
    """Pixels 0..255 of shape (height, width) or (height, width, 3)."""
    try:
        from PIL import Image
    except ImportError:
        raise _missing(f"reading {path}", "Pillow") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, which is not used
            with Image.open(path) as image:
                if image.mode not in _GREY_MODES + _COLOUR_MODES:
                    raise ValueError(
                        f"pixels of mode {image.mode!r} have more than 8 bits per channel"
                    )
                return np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        fault = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the image {path}: {fault}.") from None
