"""What the documentation shows must run: README blocks, the notebook, the README's promises."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import jaxkernels as jk

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All Python blocks, in order, in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["images"].shape == (16, 64)
    assert jk.Schedule.load(tmp_path / "schedule.json").num_steps == 10
    assert namespace["kernel"].contract(namespace["error"]) > 0


def test_readme_table_is_true(float32: None):
    """Every row of the table, recomputed: to the printed digits, but for what another processor may fit otherwise."""
    from sklearn.datasets import load_digits

    samples = np.asarray(load_digits(return_X_y=True)[0]) / 8.0 - 1.0
    result = jk.optimize_schedule(samples, jk.VP(), "dpmpp_2m", 10, t_min=1e-3)
    assert result.comparison is not None
    labels = {"uniform log-SNR": "log_snr", "Karras, rho = 7": "karras", "chosen": result.chosen}
    labels["Align Your Steps, stretched"] = "align_your_steps"
    rows = re.findall(
        r"^\| ([^|]+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        README,
        re.MULTILINE,
    )
    assert len(rows) == 7
    for label, *printed in rows:
        name = labels.get(str(label), str(label))
        found = [
            result.comparison.statistic(kind)[name]
            for kind in ("rms", "median", "geometric_mean", "sliced_w2")
        ]
        found.append({**result.ratios, result.chosen: 1.0}[name])
        assert found == pytest.approx([float(value) for value in printed], rel=0.1)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(path: Path):
    """From the first cell to the last, in a fresh kernel."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
