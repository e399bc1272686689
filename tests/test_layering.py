"""The structure of the package: imports go one way, and concrete classes are not subclassed."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import pytest

import jaxkernels

ROOT = Path(jaxkernels.__file__).parent

# Every top-level module of the package. A module may import from modules on its left only, so a new
# one has to be given its place here.
MODULES = [
    "_types",
    "_extras",
    "_precision",
    "_files",
    "_stored",
    "_compile",
    "_checks",
    "_field_names",
    "_linalg",
    "_numerics",
    "_quadrature",
    "_cubic",
    "_derivatives",
    "_newton",
    "_padding",
    "_plot",
    "_tables",
    "_progress",
    "_nfe",
    "processes",
    "prediction",
    "schedules",
    "samplers",
    "distributions",
    "score_error",
    "metrics",
    "_objective",
    "recurrence",
    "errors",
    "bounds",
    "trajectories",
    "routing",
    "comparison",
    "measurement",
    "data",
    "exports",
    "reverse_sde",
    "optimize",
    "__init__",
    "cli",
    "__main__",
]
# Packages that are extras, which alone may be imported inside a function.
OPTIONAL = {"matplotlib", "sklearn", "PIL", "typer", "rich"} | {
    "pandas",
    "pyarrow",
    "h5py",
    "safetensors",
    "torch",
}
# Modules that exist only for their extra and may import it at once.
NEEDS_EXTRAS = {"cli"}


class Import(NamedTuple):
    """An import statement of one name: where it stands and what it reaches."""

    file: str
    module: str
    target: str
    """A module of this package, a sibling file as "./name", or another package's first part."""
    own: bool
    late: bool
    """Inside a function."""
    typing: bool = False
    """Inside `if TYPE_CHECKING`."""


def _module(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _resolve(path: Path, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, bool]]:
    """(target, whether it belongs to this package) of every name that the statement imports."""
    if isinstance(node, ast.Import) or node.level == 0:
        module = node.module if isinstance(node, ast.ImportFrom) else None
        for name in [module] if module else [alias.name for alias in node.names]:
            first, *rest = name.split(".")
            yield (
                (rest[0], True)
                if first == "jaxkernels" and rest
                else (first, first == "jaxkernels")
            )
        return
    inside = list(path.relative_to(ROOT).parts[:-1])
    base = inside[: len(inside) - (node.level - 1)]
    for alias in node.names:
        parts = base + (node.module.split(".") if node.module else [alias.name])
        if (
            not base and not node.module and parts[0] not in MODULES
        ):  # a name that the package itself defines
            parts = ["__init__"]
        same_module = len(inside) > 0 and len(parts) > 1 and parts[0] == inside[0]
        yield (f"./{parts[1]}" if same_module else parts[0]), True


def _inside(nodes: Sequence[ast.AST]) -> set[int]:
    return {id(inner) for outer in nodes for inner in ast.walk(outer)}


def _imports() -> list[Import]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        outer = list(ast.walk(tree))
        late = _inside([n for n in outer if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)])
        guards = [
            n
            for n in outer
            if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")
        ]
        typing = _inside(guards)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                file = path.relative_to(ROOT).as_posix()
                found += [
                    Import(file, _module(path), target, own, id(node) in late, id(node) in typing)
                    for target, own in _resolve(path, node)
                ]
    return found


IMPORTS = _imports()


def test_the_reader_of_imports_sees_them() -> None:
    """Known statements of each kind, so that the tests below cannot pass for want of input."""
    seen = set(IMPORTS)
    assert Import("schedules/_baselines.py", "schedules", "_checks", own=True, late=False) in seen
    assert Import("schedules/_baselines.py", "schedules", "processes", own=True, late=False) in seen
    assert (
        Import("schedules/_baselines.py", "schedules", "./_schedule", own=True, late=False) in seen
    )
    assert Import("metrics/_gaussian.py", "metrics", "_numerics", own=True, late=False) in seen
    assert Import("metrics/_gaussian.py", "metrics", "jax", own=False, late=False) in seen
    assert Import("_plot.py", "_plot", "matplotlib", own=False, late=True) in seen
    assert Import("optimize/_result.py", "optimize", "_plot", own=True, late=False) in seen


def test_every_module_has_a_place() -> None:
    modules = {_module(path) for path in ROOT.rglob("*.py")}
    assert modules == set(MODULES)
    assert len(MODULES) == len(set(MODULES))


def test_imports_go_left() -> None:
    place = {module: i for i, module in enumerate(MODULES)}
    wrong = [
        f"{i.file} imports {i.target}"
        for i in IMPORTS
        if i.own and not i.target.startswith("./") and place[i.target] >= place[i.module]
    ]
    assert not wrong


def test_files_of_a_module_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for i in IMPORTS:
        if i.target.startswith("./") and not i.file.endswith("__init__.py"):
            edges.setdefault(i.file, set()).add(f"{i.module}/{i.target[2:]}.py")
    assert edges

    def reachable(start: str) -> set[str]:
        seen, todo = set(), list(edges.get(start, ()))
        while todo:
            file = todo.pop()
            if file not in seen:
                seen.add(file)
                todo += edges.get(file, ())
        return seen

    assert not [file for file in edges if file in reachable(file)]


def test_late_imports_are_of_extras_only() -> None:
    wrong = [
        f"{i.file} imports {i.target} inside a function"
        for i in IMPORTS
        if i.late and not (i.target in OPTIONAL and not i.own)
    ]
    assert not wrong
    assert [i for i in IMPORTS if i.late]


def test_nothing_slow_is_imported() -> None:
    """scipy.stats takes half a second, which every program would wait for."""
    code = "import sys, jaxkernels; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_packages_are_declared() -> None:
    """At import time: the standard library and the dependencies of every installation."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    core = {name.split(">")[0].split("=")[0].split("[")[0] for name in project["dependencies"]}
    allowed = core | set(sys.stdlib_module_names) | {"__future__"}
    wrong = [
        f"{i.file} imports {i.target}"
        for i in IMPORTS
        if not (i.own or i.late or i.typing) and i.target not in allowed
        if not (i.module in NEEDS_EXTRAS and i.target in OPTIONAL)
    ]
    assert not wrong


def _modules() -> list[type]:
    """Every equinox module class that the package defines."""
    classes: set[type] = set()
    for info in pkgutil.walk_packages([str(ROOT)], "jaxkernels."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        classes |= {
            c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, eqx.Module)
        }
    return sorted(
        (c for c in classes if c.__module__.startswith("jaxkernels")), key=lambda c: c.__qualname__
    )


PARENTS = {
    base.__qualname__: base
    for c in _modules()
    for base in c.__mro__[1:]
    if base.__module__.startswith("jaxkernels") and issubclass(base, eqx.Module)
}


def test_there_are_classes_to_look_at() -> None:
    assert {"AbstractProcess", "AbstractSampler"} <= set(PARENTS)
    assert len(_modules()) > 20


@pytest.mark.parametrize("name", PARENTS)
def test_classes_are_abstract_or_final(name: str) -> None:
    """A class that has subclasses cannot be instantiated: there is no doubt which method runs."""
    assert inspect.isabstract(PARENTS[name])
