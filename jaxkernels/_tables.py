"""Tables as plain data, and as text or Markdown.

Results and the command line make a `Table` of what they print; nothing else knows how
columns are laid out.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

# A number as a cell shows it: marked, in bold, a multiple, or with a standard error.
_NUMBER = re.compile(r"[*<>~±\s]*[-+]?(\d|inf|nan)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    The first column names the row and is aligned to the left; so is every other column that holds
    anything but numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    """Lines below the table."""

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"rows[{i}] has {len(row)} cells; the header has {len(self.header)}."
                )

    @property
    def right_aligned(self) -> tuple[bool, ...]:
        """Whether each column is aligned to the right: all cells but the empty ones are numbers."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        numeric = [all(_NUMBER.match(cell) for cell in column if cell) for column in columns]
        return (False, *numeric[1:])

    def to_text(self) -> str:
        """The table in columns of equal width, two spaces apart."""
        lines = [
            "  ".join(self._pad(row, self._widths())).rstrip() for row in (self.header, *self.rows)
        ]
        title = [self.title] if self.title else []
        return "\n".join([*title, *lines, *self.notes])

    def to_markdown(self) -> str:
        """The table in Markdown, padded so that it reads well as text; without its notes."""
        widths = [max(3, width) for width in self._widths()]
        rule = [
            "-" * (width - 1) + ":" if right else "-" * width
            for width, right in zip(widths, self.right_aligned, strict=True)
        ]
        lines = [self._pad(self.header, widths), rule]
        lines += [self._pad(row, widths) for row in self.rows]
        title = [f"**{self.title}**", ""] if self.title else []
        return "\n".join([*title, *("| " + " | ".join(line) + " |" for line in lines)])

    def _widths(self) -> list[int]:
        """The width of every column in characters."""
        return [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

    def _pad(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        """The cells of a row at the widths of their columns."""
        return [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, self.right_aligned, strict=True)
        ]


def number(value: float) -> str:
    """A number to four digits."""
    return f"{value:.4g}"


def estimate(value: float, standard_error: float) -> str:
    """A ratio and its standard error."""
    return f"{value:.3f} ± {standard_error:.3f}"


def label(name: str) -> str:
    """The name of a statistic or a metric as tables show it."""
    return name.replace("_", " ").replace("w2", "W2")


def describe(title: str, entries: Iterable[tuple[str, str]]) -> str:
    """A title, then lines of a name and its text, the texts aligned."""
    entries = list(entries)
    width = max((len(name) for name, _ in entries), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in entries)])
