"""One word for one thing, and the field's own: texts and names are held to its vocabulary."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What is not said, and what is said instead. A space stands for any gap, a line's end included.
PROSE = {
    r"(?<!power\s)(?<!power-)laws?": "distribution",
    r"noises": "initial noise",
    r"so many": "the number itself: n steps, NFE",
    r"(?:named|usual) grids?": "baseline schedules",
    r"fine (?:solver|reference)": "reference solution",
    r"log[-\s]mean": "geometric mean",
    r"defects?": "local error",
    r"carry|carries|carried|carrying": "propagate; solver state",
    r"(?:solver|sampler|multistep)(?:'s)? memory": "multistep history",
    r"spreads?": "variance factor, standard error or standard deviation",
    r"knobs?": "parameter",
    r"chosen": "selected, selection, criterion; determine",
    r"kept aside": "held-out",
    r"half\s?way": "interpolated with",
    r"refined": "fine-tuned",
    r"planted": "synthetic",
    r"blind|blindly": "error-agnostic",
    r"in print|printed": "as published; shown",
    r"(?<!wall\s)(?<!wall-)clocks?": "time change",
    r"(?:of )?(?:one|the user)'s own": "user-defined, custom",
    r"whole numbers?": "integer",
    r"rooms?": "module",
    r"mode by mode": "per mode",
    r"pictures?": "figure",
    r"level-exact": "marginal-preserving",
}
# The same for the parts of names, which underscores and capitals divide.
NAMES = {
    "law": "distribution",
    "laws": "distribution",
    "noises": "noise",
    "defect": "local_error",
    "defects": "local_errors",
    "spread": "variance_factor, standard_error or standard_deviation",
    "knob": "parameter",
    "chosen": "selected",
    "halfway": "interpolated",
    "refined": "fine_tuned",
    "planted": "synthetic",
    "blind": "agnostic",
    "printed": "published",
    "clock": "time_change",
    "picture": "figure",
}
GAP = r"[\s#]+"
PATTERN = re.compile(
    "|".join(
        rf"(?P<w{i}>(?<![\w.-])(?:{words.replace(' ', GAP)})(?!\w))"
        for i, words in enumerate(PROSE)
    ),
    re.IGNORECASE,
)
STANDARD = list(PROSE.values())


def _in_prose(text: str, line: int = 1) -> Iterator[str]:
    """What a text says in other words: line, word and standard term."""
    for found in PATTERN.finditer(text):
        assert found.lastgroup is not None
        at = line + text.count("\n", 0, found.start())
        word = re.sub(GAP, " ", found[0])
        yield f"line {at}: {word!r}; say: {STANDARD[int(found.lastgroup[1:])]}"


def _parts(name: str) -> list[str]:
    """The words of a name: `LocalError`, `local_error` -> local, error."""
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _in_python(source: str, *, literals: bool = True) -> Iterator[str]:
    """The same for docstrings, comments, names and, if wanted, other strings of Python code."""
    docstrings = _docstring_lines(source)
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            # a phrase may go on in the comment's next line
            if comments and comments[-1][0] + comments[-1][1].count("\n") + 1 == line:
                comments[-1] = (comments[-1][0], f"{comments[-1][1]}\n{token.string}")
            else:
                comments.append((line, token.string))
        elif (token.type == tokenize.STRING and (literals or line in docstrings)) or (
            token.type == getattr(tokenize, "FSTRING_MIDDLE", -1) and literals
        ):
            yield from _in_prose(token.string, line)
        elif token.type == tokenize.NAME:
            for part in set(_parts(token.string)) & set(NAMES):
                yield f"line {line}: name {token.string}; say: {NAMES[part]}"
    for line, text in comments:
        yield from _in_prose(text, line)


def _docstring_lines(source: str) -> set[int]:
    """The lines at which docstrings start, those below fields included."""
    return {
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def _in_notebook(text: str) -> Iterator[str]:
    for number, cell in enumerate(json.loads(text)["cells"]):
        source = "".join(cell["source"])
        find = _in_prose if cell["cell_type"] == "markdown" else _in_python
        for found in find(source):
            yield f"cell {number}, {found}"


def _files() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    for folder, pattern in (
        (".docs", "*.md"),
        ("jaxkernels", "*.py"),
        ("benchmarks", "*.py"),
        ("benchmarks", "*.md"),
        ("notebooks", "*.ipynb"),
        ("tests", "*.py"),
    ):
        found += sorted((ROOT / folder).rglob(pattern))
    return [
        path for path in found if path != Path(__file__) and ".ipynb_checkpoints" not in path.parts
    ]


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_of_the_field(path: Path):
    text = path.read_text()
    if path.suffix == ".ipynb":
        found = list(_in_notebook(text))
    elif path.suffix == ".py":
        # a test may look for any text; what it says of itself is held to the vocabulary
        found = list(_in_python(text, literals=ROOT / "tests" not in path.parents))
    else:
        found = list(_in_prose(text))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the law of the samples", "law"),
        ("many\n    noises", "noises"),
        ("the usual\n    grids", "usual grids"),
        ("typical (log-mean) errors", "log-mean"),
        ("as in print", "in print"),
        ("Halfway to Karras", "Halfway"),
    ],
)
def test_other_words_are_found(text: str, word: str):
    (found,) = _in_prose(text)
    assert repr(word) in found


@pytest.mark.parametrize(
    "text",
    [
        "a power law, flawed lawn",
        "no noise, noisy",
        "wall-clock time and wall clock",
        "headroom, mushrooms",
        "a fine schedule",
        "the spreadsheet",
    ],
)
def test_words_of_other_meaning_are_not(text: str):
    assert not list(_in_prose(text))


def test_every_part_of_code_is_read():
    source = '''"""A law."""

# of the usual
# grids
def noise_law(x):
    raise ValueError(f"no {x} in print")


class Clock:
    """Fine."""

    field: int
    """Chosen."""
'''
    found = list(_in_python(source))
    words = ["law", "usual grids", "noise_law", "in print", "Clock", "Chosen"]
    assert len(found) == len(words)
    assert all(any(word in line for line in found) for word in words)
    assert sum("in print" in line for line in _in_python(source, literals=False)) == 0
    assert sum("Chosen" in line for line in _in_python(source, literals=False)) == 1


def test_lines_are_named():
    (found,) = _in_prose("good\nwords, and\nnoises")
    assert found.startswith("line 3:")
