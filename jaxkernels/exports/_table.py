"""The supported tools as a table."""

from ..processes import AbstractProcess
from ._dispatch import TOOLS
from ._scheduler import Emulation, Scheduler


def tools_table() -> str:
    """Write what `export` supports, and what it does not, as Markdown.

    **Returns:** a table with one row per scheduler, and one line per reason why others are
    unsupported.

    **Example:**

    ```python
    >>> print(jk.exports.tools_table().splitlines()[0])
    | tool | scheduler | numbers | sampler | noise |
    ```
    """
    lines = ["| tool | scheduler | numbers | sampler | noise |", "| --- | --- | --- | --- | --- |"]
    for tool in TOOLS.values():
        for name, record in tool.schedulers.items():
            lines.append(f"| {tool.name} | `{name}` | {_row(record)} |")
    for tool in TOOLS.values():
        reasons: dict[str, list[str]] = {}
        for name, reason in tool.unsupported.items():
            reasons.setdefault(reason, []).append(name)
        lines += [
            f"- {tool.name}, unsupported: {', '.join(names)}: {reason}."
            for reason, names in reasons.items()
        ]
    return "\n".join(lines)


def _row(record: Scheduler) -> str:
    """The cells of a scheduler that follow its name."""
    emulated = ", ".join(map(_emulated, record.emulates))
    noise = type(record.noise).__name__
    return f"{record.name}: `{record.keyword}` | {emulated} | {noise}"


def _emulated(emulation: Emulation) -> str:
    """A sampler, with the processes for which it is the scheduler's."""
    if AbstractProcess in emulation.exact_for:
        return emulation.sampler
    processes = ", ".join(process.__name__ for process in emulation.exact_for)
    return f"{emulation.sampler} ({f'for {processes}' if processes else 'second order differs'})"
