"""Draw the random numbers that decide a view, from (seed, epoch, sample)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config.candidate import AugmentConfig
from trainables.stages.data.augment import randaugment

# Streams of random numbers: one per augmentation, so that switching one on does not change the draws of the others.
_FLIP, _CROP, _OPERATIONS, _MIXUP, _ORDER = range(5)
_ATTEMPTS = 10  # of RandomResizedCrop to find a box that fits, as in torchvision


def batch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Draw the order in which an epoch visits its n samples: a permutation (int64), the same for equal arguments."""
    return torch.from_numpy(_make_generator(seed, epoch, _ORDER).permutation(n).astype(np.int64))


def _make_generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Make the counter-based (Philox) generator of (seed, epoch, stream)."""
    assert epoch >= 0, epoch
    key = np.array([seed % 2**64, epoch * 256 + stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw_epoch(
    config: AugmentConfig, n: int, epoch: int, size: int, *, unlabeled: int = 0
) -> dict[str, NDArray[np.generic]]:
    """Draw everything random about an epoch: arrays with one row per sample.

    The last `unlabeled` samples have no label: they are mixed with each other, and those with a label with each other.
    """
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
        groups = generator.permutation(n - unlabeled), n - unlabeled + generator.permutation(unlabeled)
        rows["partner"] = np.concatenate(groups).astype(np.int64)
        rows["lam"] = generator.beta(config.mixup_alpha, config.mixup_alpha, size=n).astype(np.float32)
    return rows


def _choose_boxes(uniform: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Choose the crops (top, left, height, width) of RandomResizedCrop: area 0.08 to 1, aspect ratio 3/4 to 4/3.

    The ratio is log-uniform. `uniform` is (N, attempts, 4); the first attempt that fits into the image is taken, or the
    whole image if none does.
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
