"""Files of numbers as arrays, by suffix; every fault is a ValueError that names the file."""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from .. import _checks

Reader: TypeAlias = Callable[[Path, str | None], np.ndarray]
"""(path, name of an array in an archive) -> an array."""


def read_array(path: Path, readers: Mapping[str, Reader], key: str | None) -> np.ndarray:
    """The array in a file, by the reader of its suffix."""
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
    """The array of a .npy file."""
    del key
    with path.open("rb") as file:
        values = _numpy(path, file)
        if not isinstance(values, np.ndarray):
            raise ValueError(f"{path} is a .npz archive by content; give it that suffix.")
        return values


def _npz(path: Path, key: str | None) -> np.ndarray:
    """The only array of an archive, or that of a name."""
    with path.open("rb") as file:
        archive = _numpy(path, file)
        if isinstance(archive, np.ndarray):
            raise ValueError(f"{path} is a .npy file by content; give it that suffix.")
        names = archive.files
        if key is None and len(names) != 1:
            raise ValueError(
                f"{path} holds {len(names)} arrays; select one by key: {', '.join(names)}."
            )
        name = names[0] if key is None else _checks.one_of("key", key, names)
        try:
            return archive[name]
        except ValueError as error:
            raise ValueError(
                f"{name} in {path} is damaged or not a plain NumPy array: {error}."
            ) from None


def _numpy(path: Path, file: BinaryIO) -> "np.ndarray | np.lib.npyio.NpzFile":
    """What NumPy finds in an open file."""
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
    """Whether a cell is a number, perhaps quoted."""
    try:
        float(text.strip().strip('"'))
    except ValueError:
        return False
    return True


def _json(path: Path, key: str | None) -> np.ndarray:
    """A JSON list of numbers."""
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


SAMPLE_READERS: dict[str, Reader] = {".npy": _npy, ".npz": _npz, ".csv": _text}

LIST_READERS: dict[str, Reader] = {**SAMPLE_READERS, ".txt": _text, ".json": _json}
