import os
from pathlib import Path

import pytest

from analysis.pages.terminal import usage_table
from analysis.reading.disk import total, usage
from analysis.reading.doors import Terminal


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_shared_files_count_once_and_belong_to_nobody_alone(tmp_path: Path) -> None:
    stored = write(tmp_path / "store" / "ab" / "model.onnx", 700)
    for name in ("one", "two"):
        trial = tmp_path / "sweeps" / name / "trials" / "00001"
        trial.mkdir(parents=True)
        os.link(stored, trial / "model.onnx")
        write(trial / "record.json", 50)
    write(tmp_path / "mlflow.db", 300)
    rows = {row.place: (row.bytes, row.own_bytes, row.files) for row in usage(tmp_path)}
    assert rows == {
        "store": (700, 0, 1),
        "sweeps/one": (750, 50, 2),
        "sweeps/two": (750, 50, 2),
        "mlflow.db": (300, 300, 1),
    }
    assert total(tmp_path) == 700 + 2 * 50 + 300


def test_names_from_outside_are_no_markup(tmp_path: Path) -> None:
    write(tmp_path / "sweeps" / "[red]night" / "sweep.json", 1)
    console = Terminal(width=80)
    with console.capture() as capture:
        console.print(usage_table(usage(tmp_path)))
    assert "sweeps/[red]night" in capture.get()


def test_an_empty_folder_takes_nothing_and_a_missing_one_is_named(tmp_path: Path) -> None:
    assert usage(tmp_path) == []
    assert total(tmp_path) == 0
    with pytest.raises(ValueError, match=r"out=.*gone is no folder"):
        usage(tmp_path / "gone")
