"""A data set as tensors on the training device."""

import functools
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.records import DatasetRecord
from trainables.stages import data


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set on the training device."""

    train_images: Tensor
    """uint8 [N, 3, H, W]."""
    train_labels: Tensor
    """int64 [N]."""
    val_images: Tensor
    val_labels: Tensor
    mean: Tensor
    """float32 [1, 3, 1, 1], of pixel values in [0, 1]."""
    std: Tensor
    num_classes: int

    def normalise(self, images: Tensor) -> Tensor:
        """Pixel values in [0, 1] to zero mean and unit deviation: what the models take."""
        return (images - self.mean) / self.std


@functools.lru_cache(maxsize=1)  # a process that runs many trials loads its data once
def load_images(dataset: DatasetRecord, device: str) -> Images:
    """The training and validation split as uint8 tensors; on a CPU they stay memory-mapped and shared."""
    tensors: dict[str, Tensor] = {}
    for split in ("train", "val"):
        images, labels = data.load(dataset, split)
        with warnings.catch_warnings():  # the arrays are read-only on purpose, and nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensors[f"{split}_images"] = torch.from_numpy(images).to(device)
            tensors[f"{split}_labels"] = torch.from_numpy(labels).to(device)
    mean = torch.tensor(dataset.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(dataset.std, device=device).view(1, 3, 1, 1)
    return Images(mean=mean, std=std, num_classes=dataset.num_classes, **tensors)
