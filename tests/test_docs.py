"""What the documentation shows must run: README and guides, notebooks, the promises of both."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

import jaxkernels as jk

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SITE = ROOT / ".docs"


def _code_blocks(text: str) -> list[str]:
    """Python blocks that are not examples with prompts, which tests of docstrings run."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if not block.startswith(">>>")]


def _guides() -> list:
    """Every block of the guides, each for itself, named by the heading above it."""
    found = []
    for path in [ROOT / "CONTRIBUTING.md", *sorted(SITE.rglob("*.md"))]:
        for section in re.split(r"^#+ ", path.read_text(), flags=re.MULTILINE):
            heading = section.partition("\n")[0]
            found += [
                pytest.param(block, id=f"{path.stem}: {heading}") for block in _code_blocks(section)
            ]
    return found


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """All Python blocks of the README, run in order in one namespace, as a reader would type them.

    In the precision that a reader has. Also the folder that they were run in, and their result
    after the first block as `first`.
    """
    namespace: dict = {}
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as monkeypatch, jax.enable_x64(False):
        monkeypatch.chdir(folder)
        for block in _code_blocks(README):
            exec(compile(block, "README.md", "exec"), namespace)
            namespace.setdefault("first", namespace["result"])
    return namespace, folder


@pytest.mark.slow
def test_readme_code_runs(readme: tuple[dict, Path]):
    namespace, folder = readme
    assert len(_code_blocks(README)) == 9
    assert namespace["images"].shape == (16, 64)
    assert jk.Schedule.load(folder / "schedule.json").num_steps == 10
    assert namespace["kernel"].contract(namespace["error"]) > 0


@pytest.mark.slow
def test_readme_table_is_true(readme: tuple[dict, Path]):
    """Every row, recomputed by the README's code, but for what other processors fit otherwise."""
    result = readme[0]["first"]
    assert result.comparison is not None
    labels = {
        "uniform log-SNR": "log_snr",
        "Karras, rho = 7": "karras",
        "selected": result.selected,
    }
    labels["Align Your Steps, stretched"] = "align_your_steps"
    rows = re.findall(
        r"^\| ([^|]+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        README,
        re.MULTILINE,
    )
    assert len(rows) == 7
    for label, *shown in rows:
        name = labels.get(str(label), str(label))
        found = [
            result.comparison.statistic(kind)[name]
            for kind in ("rms", "median", "geometric_mean", "sliced_w2")
        ]
        found.append({**result.ratios, result.selected: 1.0}[name])
        assert found == pytest.approx([float(value) for value in shown], rel=0.1)


@pytest.mark.parametrize("block", _guides())
def test_guides_run(block: str, float32: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "guide", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(path: Path):
    """From the first cell to the last, in a fresh kernel."""
    notebook = nbformat.read(path, as_version=4)
    needed = notebook.metadata.get("needs", [])
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: `pip install --group external`")
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs `pip install --group docs`"
)
def test_documentation_builds_without_warnings(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["-f", str(SITE / "mkdocs.yml"), "-d", str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "api" / "samplers" / "index.html").exists()


def _links() -> list[tuple[Path, str]]:
    """Links from the files at the root to other files of the repository."""
    found = []
    for path in (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")):
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
        found += [(path, target) for target in targets if "://" not in target]
    return found


@pytest.mark.parametrize(("path", "target"), _links(), ids=lambda value: str(value))
def test_links_lead_somewhere(path: Path, target: str):
    assert (path.parent / target).exists()


def test_every_public_package_has_a_page():
    """So that nothing that users can import is missing from the reference."""
    package = (ROOT / "jaxkernels" / "__init__.py").read_text()
    modules = set(re.findall(r"^from \.(\w+) import", package, re.MULTILINE))
    (named,) = re.findall(r"^from \. import \(([^)]*)\)", package, re.MULTILINE)
    modules |= set(re.findall(r"(\w+) as", named))
    pages = "\n".join(path.read_text() for path in SITE.rglob("*.md"))
    assert modules - set(re.findall(r"<!-- public: (\w+) -->", pages)) == set()
