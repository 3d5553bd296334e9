"""A data set as tensors on the training device."""

import dataclasses
import functools
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared
from trainables.stages.data.streaming import Streamed

RESIDENT_SHARE = 0.5
"""Of the GPU memory that this process may have: the rest is for weights, activations and cuDNN."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set on the training device."""

    train_images: Tensor | Streamed
    """uint8 [N, 3, H, W]; streamed from the memory map where a GPU cannot hold them. Their own size, if the networks
    take larger ones: `Views` scales them on the device."""
    train_labels: Tensor
    """int64 [N]."""
    val_images: Tensor | Streamed
    """uint8 [N, 3, image_size, image_size]."""
    val_labels: Tensor
    mean: Tensor
    """float32 [1, 3, 1, 1], of pixel values in [0, 1]."""
    std: Tensor
    num_classes: int

    @property
    def image_size(self) -> int:
        """Pixels of a side of what the networks take."""
        return self.val_images.shape[-1]

    def take_first(self, train: int, val: int) -> "Images":
        """The first images of both splits, lying where all of them do."""
        return dataclasses.replace(
            self,
            train_images=_take_first(self.train_images, train),
            train_labels=self.train_labels[:train],
            val_images=_take_first(self.val_images, val),
            val_labels=self.val_labels[:val],
        )

    def normalise(self, images: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Pixel values in [0, 1] to zero mean and unit deviation, in a memory layout: what the models take."""
        result = torch.empty_like(images, dtype=self.mean.dtype, memory_format=layout)
        return torch.sub(images, self.mean, out=result).div_(self.std)


@functools.lru_cache(maxsize=1)  # a process that runs many trials loads its data once
def load_images(dataset: DatasetRecord, device: str) -> Images:
    """The training and validation split as uint8: on a GPU, or memory-mapped and shared where it does not fit there.

    On a CPU they stay memory-mapped.
    """
    images: dict[str, Tensor | Streamed] = {}
    labels: dict[str, Tensor] = {}
    arrays = {split: prepared.load(dataset, split) for split in ("val", "train")}
    for split, (mapped, classes) in sorted(arrays.items(), key=lambda item: item[1][0].nbytes):  # the smaller one first
        with warnings.catch_warnings():  # the arrays are read-only on purpose, and nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images[split], labels[split] = place(torch.from_numpy(mapped), device), torch.from_numpy(classes).to(device)
    return Images(
        train_images=images["train"],
        train_labels=labels["train"],
        val_images=images["val"],
        val_labels=labels["val"],
        mean=torch.tensor(dataset.mean, device=device).view(1, 3, 1, 1),
        std=torch.tensor(dataset.std, device=device).view(1, 3, 1, 1),
        num_classes=dataset.num_classes,
    )


def place(images: Tensor, device: str) -> Tensor | Streamed:
    """Images as one tensor on the device, or streamed there if they would take more than their share of it."""
    if device == "cpu":
        return images
    free, total = torch.cuda.mem_get_info()
    room = min(free, total * torch.cuda.get_per_process_memory_fraction())
    if images.nbytes <= RESIDENT_SHARE * room:
        return images.to(device)
    return Streamed(images, torch.device(device, torch.cuda.current_device()))


def _take_first(images: Tensor | Streamed, count: int) -> Tensor | Streamed:
    return images[:count] if isinstance(images, Tensor) else images.take_first(count)
