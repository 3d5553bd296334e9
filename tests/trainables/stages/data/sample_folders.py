"""Small folder data sets for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

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
