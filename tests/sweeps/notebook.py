"""Execute sweeps/compress.ipynb. As a command: store its outputs in it, after a change of what it shows."""

import shutil
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "sweeps" / "compress.ipynb"
SECONDS = 540  # for one cell, on a machine that has other work


def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run whose working directory is `folder`."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=where, record_timing=False).execute()
    return notebook


def store() -> None:
    """Execute the notebook and write it with its outputs; of an interactive page its picture, which GitHub shows."""
    folder = Path(tempfile.gettempdir()) / "compress-notebook"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    notebook = executed(folder)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output["data"].pop("text/html", None)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    store()
