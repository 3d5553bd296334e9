"""Choose images for splits and samples, stratified or evenly spaced; totals are exact and choices deterministic."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainables.config.candidate import DataConfig

IntArray = NDArray[np.int64]


def allocate(total: int, counts: Sequence[int], *, spare: int = 0) -> list[int]:
    """Share `total` over classes in proportion to `counts` by largest remainders.

    Every class gets at least 1 and keeps at least `spare` back; ties go to the earlier class. Integer arithmetic only.

    Example:
        >>> allocate(10, [50, 30, 20])
        [5, 3, 2]
        >>> allocate(4, [97, 2, 1])
        [2, 1, 1]
    """
    size, classes = sum(counts), range(len(counts))
    assert len(counts) <= total <= size - spare * len(counts) and min(counts) > spare, (total, counts, spare)
    shares = [min(max(total * count // size, 1), count - spare) for count in counts]

    def owed(c: int) -> int:
        return total * counts[c] - shares[c] * size

    while sum(shares) < total:
        shares[max((c for c in classes if shares[c] < counts[c] - spare), key=owed)] += 1
    while sum(shares) > total:
        shares[min((c for c in classes if shares[c] > 1), key=owed)] -= 1
    return shares


def sample_stratified(labels: IntArray, total: int, rng: np.random.Generator, *, spare: int = 0) -> IntArray:
    """Draw `total` images class by class, in the shares of `allocate`; return their sorted positions."""
    classes, counts = np.unique(labels, return_counts=True)
    shares = allocate(total, counts.tolist(), spare=spare)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:share] for c, share in zip(classes, shares, strict=True)]
    return np.sort(np.concatenate(chosen))


def sample_evenly(size: int, total: int) -> IntArray:
    """Choose `total` evenly spaced positions out of `size`, or all if there are fewer.

    Images of a folder are sorted by class, so the first `total` would be of one class.
    """
    count = min(size, total)
    return np.arange(count) * size // max(count, 1)


def cut_validation(labels: IntArray, class_names: tuple[str, ...], config: DataConfig) -> tuple[IntArray, IntArray]:
    """Cut a validation split off; return the positions left for training and those of the validation split.

    Raises:
        ValueError: if a class would have no image in one of the two.
    """
    classes, total = len(class_names), round(len(labels) * config.val_fraction)
    counts = np.bincount(labels, minlength=classes)
    flag = f"--val-fraction {config.val_fraction}"
    if counts.min() < 2:
        raise ValueError(
            f"{flag}: class {class_names[int(counts.argmin())]!r} has {counts.min()} training image, too few to "
            "leave one for training and one for validation; add images or a val/ folder."
        )
    if total < classes:
        least = math.ceil(1000 * classes / len(labels)) / 1000
        raise ValueError(
            f"{flag}: {total} of {len(labels)} images for validation leave some of the {classes} classes without one; "
            f"use --val-fraction {least} or more."
        )
    if total > len(labels) - classes:
        raise ValueError(
            f"{flag}: {len(labels) - total} of {len(labels)} images for training leave some of the {classes} classes "
            "without one; use a smaller --val-fraction."
        )
    val = sample_stratified(labels, total, np.random.default_rng([config.split_seed, 0]), spare=1)
    return np.setdiff1d(np.arange(len(labels)), val), val


def limit_training(labels: IntArray, train: IntArray, classes: int, config: DataConfig) -> IntArray:
    """Keep `train_limit` of the positions in `train`, stratified, or all if it is None.

    Raises:
        ValueError: if `train_limit` exceeds the number of images or is below the number of classes.
    """
    limit = config.train_limit
    if limit is None:
        return train
    if limit > len(train):
        raise ValueError(f"--train-limit {limit}: only {len(train)} training images are left; use at most that many.")
    if limit < classes:
        raise ValueError(f"--train-limit {limit}: fewer than the {classes} classes; use at least {classes}.")
    return train[sample_stratified(labels[train], limit, np.random.default_rng([config.split_seed, 1]))]
