"""Load a data set as tensors on the training device, or stream it there."""

import dataclasses
import functools
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared
from trainables.stages.data.streaming import Streamed
from trainables.stages.models.devices import accelerator

# Largest fraction of this process's GPU memory for images of one split; the rest is for weights, activations and cuDNN.
RESIDENT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set on the training device."""

    train_images: Tensor | Streamed
    """uint8 [N, 3, H, W], streamed from the memory map if they do not fit on the GPU. They have their own size if the
    networks take larger images: `Views` resizes them on the device."""
    train_labels: Tensor
    """int64 [N]; -1 for an image without a label."""
    val_images: Tensor | Streamed
    """uint8 [N, 3, image_size, image_size]."""
    val_labels: Tensor
    mean: Tensor
    """float32 [1, 3, 1, 1], of pixel values in [0, 1]."""
    std: Tensor
    num_classes: int
    unlabeled: int = 0
    """How many of the training images, the last ones, have no label."""

    @property
    def image_size(self) -> int:
        """Pixels of a side of the networks' input."""
        return self.val_images.shape[-1]

    def labelled(self) -> "Images":
        """Return the images without those that have no label."""
        if not self.unlabeled:
            return self
        return self.take_first(len(self.train_labels) - self.unlabeled, len(self.val_labels))

    def take_first(self, train: int, val: int) -> "Images":
        """Return the first images of both splits, on the same device or streamed alike."""
        left_out = max(0, len(self.train_labels) - train)
        return dataclasses.replace(
            self,
            unlabeled=max(0, self.unlabeled - left_out),
            train_images=_take_first(self.train_images, train),
            train_labels=self.train_labels[:train],
            val_images=_take_first(self.val_images, val),
            val_labels=self.val_labels[:val],
        )

    def normalise(self, images: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Subtract the mean of the data set from pixel values in [0, 1] and divide by its deviation, in this layout."""
        result = torch.empty_like(images, dtype=self.mean.dtype, memory_format=layout)
        return torch.sub(images, self.mean, out=result).div_(self.std)


@functools.lru_cache(maxsize=1)  # a process that runs many trials loads its data once
def load_images(dataset: DatasetRecord, device: str) -> Images:
    """Load the training split, images without labels included, and the validation split as uint8.

    On a CPU they stay memory-mapped, so that processes share them. On a GPU each is copied there if it fits, and
    streamed from the memory map if not.
    """
    there = accelerator.find_device(device)
    images: dict[str, Tensor | Streamed] = {}
    labels: dict[str, Tensor] = {}
    arrays = {"val": prepared.load(dataset, "val"), "train": prepared.load_for_students(dataset)}
    for split, (mapped, classes) in sorted(arrays.items(), key=lambda item: item[1][0].nbytes):  # the smaller first
        with warnings.catch_warnings():  # the arrays are read-only on purpose, and nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images[split], labels[split] = place(torch.from_numpy(mapped), device), torch.from_numpy(classes).to(there)
    return Images(
        train_images=images["train"],
        train_labels=labels["train"],
        val_images=images["val"],
        val_labels=labels["val"],
        mean=torch.tensor(dataset.mean, device=there).view(1, 3, 1, 1),
        std=torch.tensor(dataset.std, device=there).view(1, 3, 1, 1),
        num_classes=dataset.num_classes,
        unlabeled=dataset.num_unlabeled,
    )


def place(images: Tensor, device: str) -> Tensor | Streamed:
    """Put images on the device as one tensor, or stream them if they would exceed `RESIDENT_SHARE` of its memory."""
    there = accelerator.find_device(device)
    if not accelerator.is_gpu(there):
        return images
    free, total = accelerator.memory_info(there)
    room = min(free, total * accelerator.memory_limit(there))
    if images.nbytes <= RESIDENT_SHARE * room:
        return images.to(there)
    return Streamed(images, there)


def _take_first(images: Tensor | Streamed, count: int) -> Tensor | Streamed:
    return images[:count] if isinstance(images, Tensor) else images.take_first(count)
