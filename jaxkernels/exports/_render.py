"""Numbers and statements as text."""

import dataclasses
import string
import textwrap
from collections.abc import Sequence

import numpy as np

_WIDTH = 96


@dataclasses.dataclass(frozen=True)
class Text:
    """Describe what to paste into a tool.

    **Arguments:**

    - `template`: the text, with placeholders in braces as for `str.format`. Those of every
      scheduler are listed in `PLACEHOLDERS`; its options and those of its initial noise are added.
    - `remarks`: how to use the text, with the same placeholders.
    - `call`: a last statement, which runs what the template prepares, with the same placeholders.
    - `from_data`: the text for a schedule that starts from noised data, where it differs.

    **Example:**

    ```python
    >>> text = jk.exports.Text("levels = {decimals}", remarks=("{num_steps} steps",))
    >>> sorted(text.placeholders)
    ['decimals', 'num_steps']
    ```
    """

    template: str
    remarks: tuple[str, ...] = ()
    call: str = ""
    from_data: "Text | None" = None

    @property
    def placeholders(self) -> set[str]:
        """Names in braces in the template, the remarks, the call and the text from noised data."""
        found = set().union(*map(placeholders, (self.template, *self.remarks, self.call)))
        return found if self.from_data is None else found | self.from_data.placeholders


def placeholders(template: str) -> set[str]:
    """Names in braces in a template."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def written(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """The shortest decimals that give the same float32 numbers, in which the tools compute."""
    return tuple(float(str(value)) for value in np.asarray(values, np.float32))


def decimals(values: Sequence[float | int]) -> str:
    """Numbers separated by commas, without exponents."""
    return ", ".join(np.format_float_positional(value, trim="0") for value in values)


def assignment(name: str, values: Sequence[float | int], form: str = "{}") -> str:
    """`name = form` with the list of values in it, on several lines if it is long."""
    numbers = ", ".join(map(repr, values))
    line = f"{name} = {form.format(f'[{numbers}]')}"
    if len(line) <= _WIDTH:
        return line
    return f"{name} = {form.format(f'[{chr(10)}{_indented(numbers)}{chr(10)}]')}"


def from_config(name: str, settings: Sequence[str]) -> str:
    """The statement that gives a pipeline of diffusers a scheduler of this class and settings."""
    arguments = ", ".join(["pipe.scheduler.config", *settings])
    line = f"pipe.scheduler = {name}.from_config({arguments})"
    if len(line) <= _WIDTH:
        return line
    return f"pipe.scheduler = {name}.from_config(\n{_indented(arguments)}\n)"


def _indented(arguments: str) -> str:
    """Comma-separated arguments on indented lines of limited length, with a trailing comma."""
    indent = "    "
    return textwrap.fill(arguments + ",", _WIDTH, initial_indent=indent, subsequent_indent=indent)
