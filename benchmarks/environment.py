"""Where figures come from and where they go."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxkernels._tables import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CACHE = HERE / ".cache"

_PACKAGES = (
    "jaxkernels",
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "equinox",
    "scikit-learn",
    "scikit-image",
)


def describe() -> dict[str, Any]:
    """Machine, device and versions: stamped on every result."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        "unknown",
    )


def save(name: str, content: dict[str, Any]) -> Path:
    """Write results/`name`.json with the environment; of an accelerator, in its own folder."""
    environment = describe()
    device = environment["device"]
    folder = RESULTS if device == "cpu" else RESULTS / device.lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"environment": environment, **content}, indent=1) + "\n")
    return path


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, padded so that it reads well as text."""
    return Table(head, rows).to_markdown()
