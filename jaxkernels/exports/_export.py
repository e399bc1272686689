"""The result of an export."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Export:
    """Hold a schedule in the form that another tool takes.

    **Arguments:**

    - `tool`: name of the tool.
    - `values`: the numbers by the name that the tool gives them, exactly those in `text`.
    - `text`: ready to paste: Python for libraries, the string of a node for ComfyUI.
    - `warnings`: where the tool departs from the schedule, and what it cannot represent.
    - `remarks`: how to use the text.
    - `binding`: diffusers only: the text without the call of a pipeline, that is the statements
      that give `pipe.scheduler` the schedule. Empty where the text is a loop.

    **Example:**

    ```python
    >>> jk.export(jk.Schedule([80.0, 5.0, 0.1]), jk.EDM(), "comfyui").text
    '80.0, 5.0, 0.1'
    ```
    """

    tool: str
    values: dict[str, tuple[float | int, ...]]
    text: str
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    binding: str = ""

    @property
    def takes_integers(self) -> bool:
        """Whether the tool is told integer timesteps, to which the levels were moved."""
        told = self.values.get("timesteps", ())
        return bool(told) and all(isinstance(t, int) for t in told)

    @property
    def notes(self) -> tuple[str, ...]:
        """All that there is to say: `warnings`, then `remarks`."""
        return self.warnings + self.remarks

    def __str__(self) -> str:
        """The text below its warnings and remarks as comments."""
        comments = [f"# warning: {warning}" for warning in self.warnings]
        comments += [f"# note: {remark}" for remark in self.remarks]
        return "\n".join([*comments, self.text])
