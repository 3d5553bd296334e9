"""Images that a program has in memory or behind a data set, as the folder of pictures that a sweep reads."""

import hashlib
import operator
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMS = "(images, labels), a data set with len() whose items are (image, label), or a folder with train/ and test/"
DICT_KEYS = (("image", "img", "pixel_values"), ("label", "labels", "target"))
COLOURS = (1, 3)  # channels of an image


class GivenImages(NamedTuple):
    """Where the images are."""

    folder: Path
    channels: int
    """Channels that the images had, 1 or 3; in the files and afterwards there are three."""


def write_images(train: Any, test: Any, below: Path, *, class_names: Sequence[str] | None) -> GivenImages:
    """Write both splits as PNG files, once: equal images have the same folder below `below`.

    Args:
        train: (images, labels), or a map-style data set of (image, label) or of dicts with `image` and `label`. Images:
            PIL, or arrays and tensors (H, W), (H, W, C) or (C, H, W) with C = 1 or 3, uint8 or float from 0 to 1.
            Labels: whole numbers from 0.
        test: likewise.
        class_names: by label; None takes the data set's `classes`, or numbers.

    Raises:
        ValueError: if an image or label has another form, or a label is missing in a split.
    """
    names = class_names if class_names is not None else getattr(train, "classes", None)
    below.mkdir(parents=True, exist_ok=True)
    digest, channels = hashlib.sha256(repr(names).encode()), set[int]()
    part = Path(tempfile.mkdtemp(prefix=".images-", dir=below))
    try:
        labels = {}
        for split, data in (("train", train), ("test", test)):
            labels[split] = found = set[int]()
            for index, (image, label) in enumerate(_pairs(split, data)):
                pixels, own = _pixels(f"{split}[{index}]", image)
                path = part / split / str(label) / f"{index:07}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, compress_level=1)
                digest.update(f"{split} {label} {pixels.shape}".encode() + pixels.tobytes())
                found.add(label)
                channels.add(own)
        _check_labels(labels)
        _name_classes(part, max(labels["train"]) + 1, names)
        folder = below / f"images-{digest.hexdigest()[:12]}"
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return GivenImages(folder, max(channels))


def _pairs(split: str, data: Any) -> Iterator[tuple[Any, int]]:
    if isinstance(data, tuple | list) and len(data) == 2 and (hasattr(data[0], "shape") or isinstance(data[0], list)):
        images, labels = data
        if len(images) != len(labels):
            raise ValueError(f"{split}: as many labels as images must come, but got {len(images)} and {len(labels)}.")
        data = list(zip(images, labels, strict=True))
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, str | bytes):
        fix = f"; give {split}.dataset" if hasattr(data, "dataset") else ""
        raise ValueError(f"{split} must be {FORMS}, but got {type(data).__name__}{fix}.")
    if not len(data):
        raise ValueError(f"{split} is empty.")
    for index in range(len(data)):
        item = data[index]
        if isinstance(item, dict):
            item = [item[key] for keys in DICT_KEYS for key in keys if key in item]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise ValueError(f"{split}[{index}] must be (image, label), but got {type(data[index]).__name__}.")
        yield item[0], _label(f"{split}[{index}]", item[1])


def _label(where: str, label: Any) -> int:
    try:
        number = operator.index(label.item() if hasattr(label, "item") else label)
    except (TypeError, ValueError, RuntimeError):
        number = -1
    if number < 0:
        raise ValueError(f"The label of {where} must be a whole number from 0, but got {label!r:.60}.")
    return number


def _pixels(where: str, image: Any) -> tuple[NDArray[np.uint8], int]:
    """Pixels (H, W, 3) and how many channels there were."""
    if isinstance(image, Image.Image):
        channels = 1 if image.mode in ("1", "L") else 3
        return np.asarray(image.convert("RGB")), channels
    is_tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu().float().numpy() if is_tensor and image.is_floating_point() else image)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[0] in COLOURS and (is_tensor or array.shape[-1] not in COLOURS):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in COLOURS or array.dtype.kind not in "biuf":
        shape = f"{array.dtype} {np.shape(image)}"
        raise ValueError(f"{where}: an image must be (H, W), (H, W, C) or (C, H, W) with C = 1 or 3, but got {shape}.")
    top = 1 if array.dtype.kind in "bf" else 255
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"{where}: its pixels go from {low:.3g} to {high:.3g}, and must lie in 0 to 1, or 0 to 255 as whole"
            " numbers; leave Normalize out of the data set and give its numbers as mean= and std=."
        )
    whole = np.rint(array.astype(np.float64) * (255 / top)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(whole, (*whole.shape[:2], 3))), array.shape[-1]


def _check_labels(labels: dict[str, set[int]]) -> None:
    """Every label up to the largest must be in both splits."""
    count = max(map(max, labels.values())) + 1
    for split, there in labels.items():
        if missing := set(range(count)) - there:
            raise ValueError(
                f"{split} has no image of label {min(missing)}; train and test need some of each from 0 to {count - 1}."
            )


def _name_classes(part: Path, count: int, names: Sequence[str] | None) -> None:
    """Rename the folders of labels so that their order is that of the labels."""
    if names is not None and len(names) != count:
        raise ValueError(f"class_names must be {count} names, one for each label, but got {len(names)}.")
    numbers = [f"{label:0{len(str(count - 1))}}" for label in range(count)]
    words = numbers if names is None else [re.sub(r"[^\w .-]+", "_", str(name)).strip(" .") for name in names]
    if sorted(set(words)) != words or "" in words:
        words = [f"{number}-{word}" for number, word in zip(numbers, words, strict=True)]
    for split in ("train", "test"):
        (part / split).rename(part / "by-label")
        (part / split).mkdir()
        for label, word in enumerate(words):
            (part / "by-label" / str(label)).rename(part / split / word)
        (part / "by-label").rmdir()
