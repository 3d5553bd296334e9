"""Small folder data sets for tests."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from trainables.config.candidate import DataConfig


def make_folder(root: Path, *, per_class: int = 10, classes: tuple[str, ...] = ("cat", "dog"), size: int = 16) -> Path:
    """A folder data set of noise; every image differs."""
    rng = np.random.default_rng(0)
    for split, count in (("train", per_class), ("test", 3)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, size=(size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def folder_config(root: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"dataset": f"folder:{root}", "val_fraction": 0.2, **changes})


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def fake_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once somebody has started `gs`."""
    started = tmp_path / "ghostscript_was_started"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {started}\necho 10.0\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for anew
    return started
