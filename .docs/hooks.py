"""Pages that are never out of date.

`<!-- public: samplers -->` becomes the reference of all public names of a package, and
`<!-- file: CONTRIBUTING.md -->` a file at the repository's root.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxkernels"
SOURCE = "https://github.com/jaxkernels/jaxkernels/blob/main/"
MARKER = re.compile(r"<!-- (public|file): ([\w.]+) -->")


def _re_exports(module: Path) -> dict[str, list[str]]:
    """What an `__init__.py` re-exports as `X as X`, by the module that it comes from."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [alias.name for alias in node.names if alias.asname == alias.name]
            found.setdefault(node.module or "", []).extend(names)
    return found


def public_names(package: str) -> list[str]:
    """The full names that users reach: those in `jk`, then those in public packages."""
    top = _re_exports(PACKAGE / "__init__.py")
    names = [f"jaxkernels.{name}" for name in top.get(package, [])]
    if package in top[""]:
        inner = _re_exports(PACKAGE / package / "__init__.py")
        seen = set(top.get(package, []))
        names += [
            f"jaxkernels.{package}.{name}"
            for group in inner.values()
            for name in group
            if name not in seen
        ]
    return names


def root_file(name: str) -> str:
    """A file's text, with links to other files of the repository as addresses."""
    text = (ROOT / name).read_text()
    return re.sub(r"\]\((?!\w+://|#)([^)]+)\)", rf"]({SOURCE}\1)", text)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Expand the markers of a page."""

    def expand(marker: re.Match[str]) -> str:
        if marker[1] == "file":
            return root_file(marker[2])
        return "\n\n".join(f"::: {name}" for name in public_names(marker[2]))

    return MARKER.sub(expand, markdown)
