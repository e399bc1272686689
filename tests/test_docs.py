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


def test_readme_table_is_true():
    """Every row of the table, recomputed (the grids by evaluation, to the printed digits)."""
    from sklearn.datasets import load_digits

    samples = np.asarray(load_digits(return_X_y=True)[0]) / 8.0 - 1.0
    target = jk.Gaussian.fit(samples)
    result = jk.optimize_schedule(target, jk.VP(), "dpmpp_2m", 10, t_min=1e-3)
    labels = {"uniform log-SNR": "log_snr", "Karras, rho = 7": "karras"}
    labels["Align Your Steps, stretched"] = "align_your_steps"
    rows = re.findall(r"^\| ([^|]+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    assert len(rows) == 7
    for label, objective, ratio, w2 in rows:
        name = labels.get(str(label), str(label))
        if name == "optimised":
            value, evaluation = result.objective, result.evaluation
        else:
            value = result.baselines[name]
            schedule = result.baseline_schedules[name]
            evaluation = jk.evaluate_schedule(target, jk.VP(), "dpmpp_2m", schedule)
        assert value == pytest.approx(float(objective), rel=6e-3)
        assert value / result.objective == pytest.approx(float(ratio), rel=6e-3)
        assert float(evaluation.w2) == pytest.approx(float(w2), rel=6e-3)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(path: Path):
    """From the first cell to the last, in a fresh kernel."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
