"""sweeps/compress.ipynb goes from a network to a shipped file, and what it shows is fit to be seen."""

import os
from pathlib import Path

import nbformat
import pytest

from tests.sweeps.notebook import NOTEBOOK, executed


def shown(cell: nbformat.NotebookNode) -> str:
    """Everything that a cell shows, as text."""
    outputs = cell["outputs"]
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.ray
@pytest.mark.slow
def test_it_goes_from_a_network_to_a_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    train, sweep, table, figure, ship = code_cells(executed(tmp_path))
    assert "test images right" in shown(train)
    live = [output for output in sweep["outputs"] if output["output_type"] == "display_data"]
    assert len(live) == 1, "the live view draws in one place"
    assert "<pre" in live[0]["data"]["text/html"] and "6/6 done" in live[0]["data"]["text/plain"]
    lines = shown(sweep).splitlines()
    assert 5 < len(lines) < 40, "a flood of lines"
    assert not [line for line in lines if "Warning" in line or "\x1b" in line], shown(sweep)
    assert "val_accuracy" in shown(table)
    (drawn,) = figure["outputs"]
    assert "<iframe srcdoc=" in drawn["data"]["text/html"] and drawn["data"]["image/png"]
    assert {path.name for path in (tmp_path / "ship").iterdir()} >= {"model.onnx", "predict.py"}
    before, after = (float(shown(cell).partition("%")[0].split()[-1]) for cell in (train, ship))
    assert after > before - 5


def test_it_stores_the_outputs_of_one_whole_run_or_none() -> None:
    """`python tests/sweeps/notebook.py` writes them."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] in ([None] * 5, [1, 2, 3, 4, 5])
    assert len({bool(cell["outputs"]) for cell in cells}) == 1
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert NOTEBOOK.stat().st_size < 400_000, "a page with all of plotly does not belong into the repository"
    assert not [word for word in ("/root", "/home/") if word in NOTEBOOK.read_text()], "a path of whoever ran it"
