"""What decides a view: random numbers drawn from (seed, epoch, sample)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config.candidate import AugmentConfig
from trainables.stages.data.augment import randaugment

_FLIP, _CROP, _OPERATIONS, _MIXUP, _ORDER = range(5)
"""Streams of random numbers: switching one augmentation on leaves the draws of the others as they were."""
_ATTEMPTS = 10  # of RandomResizedCrop to find a box that fits, as in torchvision


def batch_order(seed: int, epoch: int, n: int) -> Tensor:
    """The order in which an epoch visits its n samples: a permutation (int64), a pure function of its arguments."""
    return torch.from_numpy(_make_generator(seed, epoch, _ORDER).permutation(n).astype(np.int64))


def _make_generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Counter-based (Philox) numbers: every (seed, epoch, stream) has a sequence of its own."""
    assert epoch >= 0, epoch
    key = np.array([seed % 2**64, epoch * 256 + stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw_epoch(config: AugmentConfig, n: int, epoch: int, size: int) -> dict[str, NDArray[np.generic]]:
    """Everything random about an epoch: arrays with one row a sample."""
    seed = config.data_seed
    rows: dict[str, NDArray[np.generic]] = {"flip": np.zeros(n, dtype=bool)}
    if config.flip:
        rows["flip"] = _make_generator(seed, epoch, _FLIP).random(n) < 0.5
    if config.crop == "padded":
        reach = config.crop_padding
        rows["shift"] = _make_generator(seed, epoch, _CROP).integers(-reach, reach, size=(n, 2), endpoint=True)
    if config.crop == "resized":
        rows["box"] = _choose_boxes(_make_generator(seed, epoch, _CROP).random((n, _ATTEMPTS, 4)), size)
    if config.randaugment_magnitude is not None:
        generator = _make_generator(seed, epoch, _OPERATIONS)
        drawn = generator.integers(0, 2 * len(randaugment.OPERATIONS), size=(n, randaugment.OPERATIONS_PER_IMAGE))
        rows["operations"], rows["negative"] = drawn // 2, drawn % 2 == 1
    if config.mixup_alpha is not None:
        generator = _make_generator(seed, epoch, _MIXUP)
        rows["partner"] = generator.permutation(n).astype(np.int64)
        rows["lam"] = generator.beta(config.mixup_alpha, config.mixup_alpha, size=n).astype(np.float32)
    return rows


def _choose_boxes(uniform: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Crops (top, left, height, width) of RandomResizedCrop: area 0.08 to 1, aspect ratio 3/4 to 4/3 (log-uniform).

    `uniform` is (N, attempts, 4); the first attempt that fits into the image is taken, else the whole image.
    """
    area = size * size * (0.08 + 0.92 * uniform[..., 0])
    ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * uniform[..., 1])
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    top = np.floor(uniform[..., 2] * (size - height + 1))
    left = np.floor(uniform[..., 3] * (size - width + 1))
    first = fits.argmax(axis=1)
    attempts = np.stack([top, left, height, width], axis=-1)
    boxes: NDArray[np.int64] = attempts[np.arange(len(first)), first].astype(np.int64)
    boxes[~fits.any(axis=1)] = (0, 0, size, size)
    return boxes
