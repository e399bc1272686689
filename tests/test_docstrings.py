"""Docstrings of the public API: their examples run, and all of them have one format."""

import ast
import doctest
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk

# A function's first line is a command. A verb that is missing here may be added.
VERBS = frozenset(
    [
        "Accumulate",
        "Add",
        "Advance",
        "Apply",
        "Approximate",
        "Assemble",
        "Average",
        "Bind",
        "Bound",
        "Build",
        "Check",
        "Classify",
        "Collect",
        "Combine",
        "Compare",
        "Compile",
        "Compress",
        "Compute",
        "Concatenate",
        "Construct",
        "Contract",
        "Convert",
        "Correct",
        "Count",
        "Create",
        "Decompose",
        "Define",
        "Describe",
        "Differentiate",
        "Discretize",
        "Download",
        "Draw",
        "Enumerate",
        "Estimate",
        "Evaluate",
        "Evolve",
        "Expand",
        "Explain",
        "Export",
        "Express",
        "Extract",
        "Factorise Factorize",
        "Fill",
        "Find",
        "Fine-tune",
        "Fit",
        "Format",
        "Generate",
        "Get",
        "Give",
        "Group",
        "Import",
        "Infer",
        "Initialize",
        "Integrate",
        "Interpolate",
        "Inject",
        "Invert",
        "Iterate",
        "Join",
        "List",
        "Load",
        "Locate",
        "Look",
        "Lower",
        "Make",
        "Map",
        "Mark",
        "Measure",
        "Merge",
        "Minimize",
        "Move",
        "Multiply",
        "Name",
        "Normalize",
        "Open",
        "Optimize",
        "Pack",
        "Pad",
        "Plot",
        "Predict",
        "Prepare",
        "Print",
        "Project",
        "Propagate",
        "Quantify",
        "Raise",
        "Rank",
        "Read",
        "Record",
        "Reconstruct",
        "Refine",
        "Relate",
        "Remove",
        "Render",
        "Replace",
        "Report",
        "Resample",
        "Rescale",
        "Restrict",
        "Return",
        "Round",
        "Run",
        "Sample",
        "Save",
        "Scale",
        "Select",
        "Separate",
        "Serialize",
        "Set",
        "Show",
        "Simulate",
        "Solve",
        "Sort",
        "Split",
        "Start",
        "Stack",
        "State",
        "Store",
        "Sum",
        "Summarise Summarize",
        "Take",
        "Test",
        "Trace",
        "Train",
        "Transform",
        "Truncate",
        "Unpack",
        "Update",
        "Use",
        "Validate",
        "Verify",
        "Warn",
        "Weigh",
        "Wrap",
        "Write",
        "Yield",
    ]
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Documented(NamedTuple):
    """A public object, and the name by which a user reaches it."""

    name: str
    value: object
    owner: type | None = None
    """The class, for a method or a property."""


def _public_modules() -> list[str]:
    """The modules that the package's first file offers: `from . import schedules as schedules`."""
    tree = ast.parse(Path(inspect.getfile(jk)).read_text())
    statements = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module is None]
    return [alias.name for statement in statements for alias in statement.names]


def _is_ours(value: object) -> bool:
    return callable(value) and str(getattr(value, "__module__", "")).startswith("jaxkernels")


def _top_level() -> Iterator[Documented]:
    """Functions and classes, each once, by its shortest name."""
    modules = [("jk", jk), *((f"jk.{name}", getattr(jk, name)) for name in _public_modules())]
    seen: set[int] = set()
    for prefix, module in modules:
        for name, value in vars(module).items():
            if not name.startswith("_") and _is_ours(value) and id(value) not in seen:
                seen.add(id(value))
                yield Documented(f"{prefix}.{name}", value)


def _members(of: Documented) -> Iterator[Documented]:
    """Public methods and properties that a class defines itself."""
    if not isinstance(of.value, type):
        return
    for name, value in vars(of.value).items():
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield Documented(f"{of.name}.{name}", value, of.value)


TOP_LEVEL = list(_top_level())
MEMBERS = [member for documented in TOP_LEVEL for member in _members(documented)]
EVERYTHING = TOP_LEVEL + MEMBERS


def _docstring(of: Documented) -> str:
    """The docstring; an override without one has that of the method it overrides."""
    if of.owner is None:
        return inspect.cleandoc(getattr(of.value, "__doc__", None) or "")
    bases = [getattr(base, of.name.rpartition(".")[2], None) for base in of.owner.__mro__]
    texts = [getattr(base, "__doc__", None) for base in bases]
    return next((inspect.cleandoc(text) for text in texts if text), "")


def _parameters(value: object) -> list[str]:
    signature = inspect.signature(value)  # type: ignore[arg-type]
    return [name for name in signature.parameters if name not in ("self", "cls")]


def _described_fields(cls: type) -> set[str]:
    """Fields of a class and its parents with a string below them."""
    described = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("jaxkernels"):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                described.add(ast.unparse(field.target))
    return described


def _section(text: str, title: str) -> str | None:
    """What stands below `**title:**`, up to the next bold title."""
    found = re.search(rf"^\*\*{title}:\*\*(.*?)(?=^\*\*[A-Z]\w+:\*\*|\Z)", text, re.M | re.S)
    return found and found[1]


def _listed(text: str) -> set[str]:
    """Names that the list of arguments describes: "- `a`, `b`: ..."."""
    items = re.findall(r"^- ([^:]*)", _section(text, "Arguments") or "", re.MULTILINE)
    return {name.lstrip("*") for item in items for name in re.findall(r"`([^`]+)`", item)}


def _faults(of: Documented) -> Iterator[str]:
    """Everything that keeps a docstring from the format."""
    text = _docstring(of)
    if not text:
        yield "has no docstring"
        return
    first, *rest = text.splitlines()
    if not first.endswith("."):
        yield f"does not start with one line that ends with a period: {first!r}"
    if rest and rest[0]:
        yield "has no empty line below the first"
    if long := [line for line in text.splitlines() if len(line) > 100]:
        yield f"has a line of more than 100 characters: {long[0]!r}"
    if ">>>" in BLOCK.sub("", text):
        yield "has an example outside ```python, which no test runs"
    if isinstance(of.value, type):
        missing = set(_parameters(of.value)) - _listed(text) - _described_fields(of.value)
    elif isinstance(of.value, property):
        return
    else:
        yield from _faults_of_function(of, text, first)
        missing = set(_parameters(of.value)) - _listed(text)
    if missing:
        yield f"does not describe {sorted(missing)} in **Arguments:**"
    if of.owner is None and not BLOCK.search(text):
        yield "has no **Example:** in ```python"


def _faults_of_function(of: Documented, text: str, first: str) -> Iterator[str]:
    if first.split()[0] not in VERBS:
        yield f"starts with {first.split()[0]!r}, which is not among the verbs of this file"
    returns = inspect.signature(of.value).return_annotation  # type: ignore[arg-type]
    if returns not in (None, "None") and _section(text, "Returns") is None:
        yield "has no **Returns:**"
    source = textwrap.dedent(inspect.getsource(of.value))  # type: ignore[arg-type]
    raises = any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(ast.parse(source)))
    if raises and _section(text, "Raises") is None:
        yield "raises, and has no **Raises:**"


def _blocks(of: Documented) -> list[str]:
    return BLOCK.findall(_docstring(of))


def _identify(of: Documented) -> str:
    return of.name


def test_public_names_are_found():
    """One of each sort, so that the tests below cannot pass for want of input."""
    names = {documented.name for documented in EVERYTHING}
    assert {"jk.VP", "jk.sample", "jk.schedules.karras", "jk.Schedule.sigmas"} <= names
    assert "jk.AbstractSampler.step" in names
    assert any(_blocks(documented) for documented in EVERYTHING)


# what compiles for longest
LONG_EXAMPLES = {
    "jk.DenoisedRecord.fit_mixture",
    "jk.ErrorBudget",
    "jk.ErrorKernel.error",
    "jk.ExpectedError",
    "jk.FokkerPlanckResult",
    "jk.LocalError",
    "jk.TerminalError",
    "jk.bounds.rms_along_run",
    "jk.error_sweep",
    "jk.leading_order_1d",
    "jk.optimize_schedules",
    "jk.predict_parameter_noise",
    "jk.reverse_sde.DiscreteStochasticity",
    "jk.reverse_sde.MeasuredDiffusion",
    "jk.reverse_sde.SymmetrizedKL",
    "jk.reverse_sde.leading_order_2d",
    "jk.reverse_sde.optimize_diffusion",
    "jk.reverse_sde.optimize_discrete_stochasticity",
    "jk.reverse_sde.optimize_measured_diffusion",
    "jk.reverse_sde.optimize_mixture_diffusion",
    "jk.routing.RoutingError",
    "jk.routing.record_routing",
    "jk.routing.split_evaluations",
}


def _examples() -> list:
    """Everything that has an example."""
    return [
        pytest.param(of, marks=[pytest.mark.slow] if of.name in LONG_EXAMPLES else [])
        for of in EVERYTHING
        if ">>>" in "".join(_blocks(of))
    ]


def test_long_examples_exist():
    assert {of.name for of in EVERYTHING if ">>>" in "".join(_blocks(of))} >= LONG_EXAMPLES


@pytest.mark.parametrize("of", _examples(), ids=_identify)
def test_examples_run(of: Documented, float32: None, tmp_path: Path, monkeypatch):
    """Every example gives what it shows, in the precision that users have."""
    monkeypatch.chdir(tmp_path)
    parser = doctest.DocTestParser()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    report: list[str] = []
    # one namespace for all blocks of a docstring, which a later one may continue
    names = {"jk": jk, "jax": jax, "jnp": jnp, "np": np}
    for block in _blocks(of):
        test = parser.get_doctest(block, names, of.name, None, 0)
        runner.run(test, out=report.append, clear_globs=False)
        names = test.globs
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("of", EVERYTHING, ids=_identify)
def test_docstring_is_in_the_format(of: Documented):
    """CONTRIBUTING.md shows the format."""
    assert not list(_faults(of))


@pytest.mark.parametrize("of", EVERYTHING, ids=_identify)
def test_examples_are_short(of: Documented):
    """At most three statements, so that a reader sees the call and not its preparation."""
    prompts = [line for block in _blocks(of) for line in block.splitlines() if line[:4] == ">>> "]
    assert len(prompts) <= 3
