"""Tables of numbers in text files, with the header and the index that pandas writes."""

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from .._extras import missing_extra
from ._rows import listed

# names of a first column that numbers the rows: of to_csv, of reading that back, of reset_index
_INDEX_NAMES = ("", "Unnamed: 0", "index")


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the numbers of a text stand in it."""

    lines: dict[int, list[str]]
    """The cells of every line that is neither blank nor a remark, by its number from 1."""
    delimiter: str | None
    decimal: str
    header: bool
    index: bool

    @property
    def first(self) -> int:
        """The number of the first line."""
        return next(iter(self.lines))


def read_csv(name: str, text: str) -> tuple[Float[np.ndarray, "rows columns"], list[str]]:
    """The numbers of a .csv file by pandas' conventions, and what was inferred of it."""
    try:
        import pandas
    except ImportError:
        raise missing_extra(f"reading {name}", "pandas") from None
    layout = _layout(text)
    if len(layout.lines) <= layout.header:
        raise ValueError(f"{name} holds no numbers.")
    _check_index(name, layout)
    try:
        frame = pandas.read_csv(
            io.StringIO(text),
            sep=layout.delimiter or r"\s+",
            header=0 if layout.header else None,
            index_col=0 if layout.index else False,
            decimal=layout.decimal,
            comment="#",
            skipinitialspace=True,
            low_memory=False,
        )
        values = frame.to_numpy(np.float64)
    except ValueError as error:  # pandas' errors of parsing are some
        raise ValueError(f"{name} is not a table of numbers: {_fault(layout) or error}.") from None
    fault = _fault(layout) if np.any(np.isnan(values)) else None
    if fault is not None:
        raise ValueError(f"{name} is not a table of numbers: {fault}.")
    return values, _notes(name, layout)


def read_numbers(name: str, text: str) -> Float[np.ndarray, "rows columns"]:
    """The numbers of a .txt file, perhaps below a row of names."""
    layout = _layout(text, integer_names=False)
    rows = [" ".join(cells) for cells in layout.lines.values()][layout.header :]
    if not rows:
        raise ValueError(f"{name} holds no numbers.")
    try:
        return np.loadtxt(rows, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{name} is not a table of numbers: {_fault(layout) or error}.") from None


def _layout(text: str, integer_names: bool = True) -> _Layout:
    """Where the numbers are; integers from 0 name columns if `integer_names`."""
    plain = [line.split("#")[0] for line in text.splitlines()]
    used = [i for i, line in enumerate(plain) if line.strip()]
    if not used:
        return _Layout({}, None, ".", False, False)
    delimiter = next((mark for mark in ";,\t" if mark in plain[used[0]]), None)
    # where ";" separates the entries, a comma is a decimal mark
    decimal = "," if delimiter == ";" and any("," in line for line in plain) else "."
    lines = {i + 1: _cells(plain[i], delimiter, decimal) for i in used}
    first, *rest = lines.values()
    header = _are_names(first, rest if integer_names else [])
    shifted = bool(rest) and len(rest[0]) == len(first) + 1
    return _Layout(
        lines, delimiter, decimal, header, header and (shifted or first[0] in _INDEX_NAMES)
    )


def _cells(line: str, delimiter: str | None, decimal: str) -> list[str]:
    """The entries of a line, without quotes."""
    if delimiter is None:
        return [cell.strip('"') for cell in line.split()]
    row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    return [cell.strip().replace(decimal, ".") for cell in row]


def _are_names(cells: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a first line names the columns of the lines below it.

    By words, by integers below a cell without a number, by 0, 1, 2, ..., or by other increasing
    integers where no line below has integers alone.
    """
    numbers = [float(cell) for cell in cells if _is_number(cell)]
    if not numbers:
        return True
    before = cells[: len(cells) - len(numbers)]
    if not rows or any(map(_is_number, before)):
        return False
    if before and before[0] in _INDEX_NAMES:
        return True
    if not _are_integers(numbers) or any(x >= y for x, y in itertools.pairwise(numbers)):
        return False
    from_zero = numbers == list(range(len(numbers)))
    return from_zero or not (before or any(_are_integers(_numbers(row)) for row in rows))


def _numbers(row: Sequence[str]) -> list[float]:
    """The numbers of a line."""
    return [float(cell) for cell in row if _is_number(cell)]


def _are_integers(numbers: Sequence[float]) -> bool:
    """Whether no number has a fraction."""
    return not any(math.isfinite(number) and number % 1.0 for number in numbers)


def _check_index(name: str, layout: _Layout) -> None:
    """ValueError for a line without an index where others have one: names in two lines."""
    for line, row in layout.lines.items():
        if layout.index and line != layout.first and not row[0]:
            raise ValueError(
                f"{name}: line {line} has no entry for the index that line {layout.first} tells: "
                "names of columns must stand in one line."
            )


def _fault(layout: _Layout) -> str | None:
    """What is wrong with a table of numbers."""
    rows = dict(list(layout.lines.items())[layout.header :])
    first = next(iter(rows))
    for line, row in rows.items():
        for cell in row[layout.index :]:
            if not _is_number(cell):
                return f"line {line} has {cell!r}"
        if len(row) != len(rows[first]):
            return f"line {line} has {len(row)} entries where line {first} has {len(rows[first])}"
    return None


def _is_number(text: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _increase(cells: Sequence[str]) -> bool:
    """Whether a line is one of three or more increasing numbers, as names of columns may be."""
    numbers = _numbers(cells)
    return len(numbers) > 2 and all(x < y for x, y in itertools.pairwise(numbers))


def _notes(name: str, layout: _Layout) -> list[str]:
    """What was taken for the header and the index."""
    notes = []
    if layout.header:
        names = [cell or "''" for cell in layout.lines[layout.first]]
        notes.append(f"{name}: line {layout.first} is the header ({listed(names)})")
    elif len(layout.lines) > 1 and _increase(layout.lines[layout.first]):
        notes.append(f"{name}: line {layout.first} is no header, but a sample that increases")
    if layout.index:
        notes.append(f"{name}: the first column is the index, and no part of the samples")
    return notes
