"""What a folder data set does not read is said, and what comes in black is not trained on."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_folders import folder_config, make_folder

from sweeps.running.run import worker_of
from sweeps.search.presets import quick
from trainables.stages.data import prepared


def test_files_that_pillow_does_not_open_are_counted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", per_class=4)
    assert prepared.left_out(f"folder:{root}") is None
    for number in range(3):
        (root / "train" / "cat" / f"{number}.HEIC").touch()
    (root / "test" / "dog" / "notes").touch()
    assert "4 of 18 files are left out (3 .heic, 1 no suffix)" in str(prepared.left_out(f"folder:{root}"))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_split_has_three_names(name: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    (root / "test").rename(root / name)
    make_folder(root / "more")
    (root / "more" / "test").rename(root / "test")
    assert prepared.prepare(folder_config(root), tmp_path / "data").num_val == 6
    (root / "more" / "train").rename(root / ("val" if name != "val" else "valid"))
    with pytest.raises(ValueError, match="are one split; keep one"):
        prepared.prepare(folder_config(root), tmp_path / "data")


def test_images_of_one_colour_are_not_trained_on(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    for path in root.rglob("*.png"):
        Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"all training images come in as one colour, RGB \(0, 0, 0\); convert"):
        prepared.prepare(folder_config(root), tmp_path / "data")
    assert not list((tmp_path / "data" / "decoded").glob("*/"))


def test_a_class_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / os.fsdecode(b"caf\xe9"))
    with pytest.raises(ValueError, match=r"the class folder b'caf\\xe9' in train/ has no UTF-8 name; rename it"):
        prepared.prepare(folder_config(root), tmp_path / "data")


def test_workers_get_the_absolute_path_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster they have another working directory."""
    root = make_folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    config = quick().replace(base=quick().search.base.replace(dataset="folder:photos", image_size=16))
    here = prepared.prepare(config.search.base.data, tmp_path / "data")
    worker = worker_of(config)
    assert worker.data.dataset == f"folder:{root}"
    monkeypatch.chdir("/")
    assert prepared.prepare(worker.data, tmp_path / "data") == here
