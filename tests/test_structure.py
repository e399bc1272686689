"""Limits that keep the package readable: short functions, few parameters, one statement a line."""

import ast
from pathlib import Path
from typing import TypeAlias

import pytest

import jaxkernels

ROOT = Path(jaxkernels.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 80
MAX_PARAMETERS = 12

# Until the last long function is divided: then this mark goes, and nothing else has to be changed.

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def _num_lines(function: Function) -> int:
    """Lines from `def` to the end, docstring included, decorators not."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def _num_parameters(function: Function) -> int:
    """Everything that a caller passes: `self` and `cls` not included."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return len([name for name in names if name not in ("self", "cls")])


def _packed_assignments(tree: ast.AST) -> list[ast.Assign]:
    """`a, b = x, y`: two statements in one. A swap, which reads what it writes, is one."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
        and not _is_swap(node)
    ]


def _is_swap(node: ast.Assign) -> bool:
    assert isinstance(node.value, ast.Tuple)
    (target,) = node.targets
    assert isinstance(target, ast.Tuple)
    written = sorted(ast.unparse(element) for element in target.elts)
    return written == sorted(ast.unparse(element) for element in node.value.elts)


each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())


@each_file
def test_functions_are_short(path: Path):
    functions = _functions(ast.parse(path.read_text()))
    assert not [
        f"{f.name}, line {f.lineno}: {_num_lines(f)} lines"
        for f in functions
        if _num_lines(f) > MAX_LINES
    ]


@each_file
def test_functions_have_few_parameters(path: Path):
    functions = _functions(ast.parse(path.read_text()))
    assert not [
        f"{f.name}, line {f.lineno}: {_num_parameters(f)} parameters"
        for f in functions
        if _num_parameters(f) > MAX_PARAMETERS
    ]


@each_file
def test_statements_are_not_packed(path: Path):
    packed = _packed_assignments(ast.parse(path.read_text()))
    assert not [f"line {node.lineno}: {ast.unparse(node)}" for node in packed]


def test_the_limits_are_measured():
    """On a function that is known, so that the tests above cannot pass for want of input."""
    source = '''
def outer(a, b, *args, c=1, **options):
    """Two lines
    of text."""
    x, y = a, b
    x, y = y, x
    x, y = divmod(x, y)

    class Inner:
        def method(self, d):
            return self, d
'''
    outer, method = _functions(ast.parse(source))
    assert (_num_lines(outer), _num_parameters(outer)) == (10, 5)
    assert (_num_lines(method), _num_parameters(method)) == (2, 1)
    assert [node.lineno for node in _packed_assignments(ast.parse(source))] == [5]
