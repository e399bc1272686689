"""The file format of schedules: versioned JSON."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._files import write_atomically

_FORMAT = "jaxkernels.schedule"
_VERSION = 1


def write_json(
    path: str | os.PathLike[str],
    times: np.ndarray,
    stochasticity: np.ndarray,
    metadata: Mapping[str, object],
) -> None:
    """Write the numbers of a schedule and JSON values beside them."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "times": np.asarray(times, np.float64).tolist(),
        "stochasticity": np.asarray(stochasticity, np.float64).tolist(),
        "metadata": metadata,
    }
    write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the content of a schedule file.

    **Arguments:**

    - `path`: a file written by `Schedule.save`.

    **Returns:** its content, with "times", "stochasticity" and "metadata".

    **Raises:** ValueError, naming the path, if it cannot be read or has another format or version.

    **Example:**

    ```python
    >>> jk.Schedule([1.0, 0.5]).save("schedule.json")
    >>> jk.schedules.read_json("schedule.json")["times"]
    [1.0, 0.5]
    ```
    """
    name = os.fspath(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}.") from None
    except ValueError as error:  # not UTF-8, not JSON, or cut off
        raise ValueError(f"{name} is not a complete JSON file: {error}.") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{name} is not a schedule file (no format {_FORMAT!r} in it).")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"{name} has version {content.get('version')!r}; this release reads version {_VERSION}."
        )
    return content
