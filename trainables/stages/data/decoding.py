"""Pillow images in, uint8 RGB arrays out: what every reader hands over and how its pixels are decoded.

Shape legend: N images, H = W = image_size.
"""

import io
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

READ_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on files that are no images, cut short or absurdly large."""
_BLOCK = 256  # images a task: 100,000 futures of one image each would cost more than they decode


@dataclass(frozen=True)
class RawSplit:
    """Images that are not decoded yet, with their labels."""

    labels: NDArray[np.int64]
    """(N,), positions in `RawDataset.class_names`."""
    names: Sequence[str]
    """N names for error messages."""
    open: Callable[[int], Image.Image]
    """Opens image i; called from several threads."""


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """What a reader found, before train is split."""

    image_size: int
    """Pixels of a side that the images are decoded to, but for training images that are enlarged later."""
    class_names: tuple[str, ...]
    train: RawSplit
    test: RawSplit
    val: RawSplit | None = None
    """None: to be cut off train."""


def make_array_split(images_NHWC: NDArray[np.uint8], labels: NDArray[np.int64]) -> RawSplit:
    """A split over pixels that lie in memory."""
    names = [f"image {i}" for i in range(len(labels))]
    return RawSplit(labels, names, lambda i: Image.fromarray(images_NHWC[i]))


def open_image(content: bytes) -> Image.Image:
    """An image file that lies in memory."""
    return Image.open(io.BytesIO(content))


def decode(dataset: str, split: RawSplit, index: NDArray[np.int64], size: int, path: Path) -> NDArray[np.uint8]:
    """Decode images `index` of a split into a new memory-mapped file (uint8, N3HW).

    Raises:
        ValueError: if an image cannot be read; names it.
    """
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(index), 3, size, size))

    def decode_block(start: int) -> None:
        for position in range(start, min(start + _BLOCK, len(index))):
            out[position] = _decode_one(dataset, split, int(index[position]), size)

    # Pillow decodes without the GIL: threads share the memory map and need no copies.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(decode_block, range(0, len(index), _BLOCK)))
    out.flush()
    return out


def _decode_one(dataset: str, split: RawSplit, i: int, size: int) -> NDArray[np.uint8]:
    try:
        with split.open(i) as image:
            return to_array(image, size)
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--dataset {dataset}: cannot read image {split.names[i]} ({reason}); replace it or remove it."
        ) from error


def to_array(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """RGB pixels (uint8, 3HW) of the largest centred square, scaled to `size` with an antialiased bilinear filter.

    The same as scaling the shorter side to `size` and cropping the centre. EXIF rotation is applied, transparency is
    laid on white, 16-bit grey keeps its upper 8 bits.
    """
    # JPEG only: decodes a 12-megapixel photo at 1/8 of its size when that is still twice what is asked for.
    image.draft("RGB", (2 * size, 2 * size))
    rgb = _to_rgb(ImageOps.exif_transpose(image))
    if rgb.size != (size, size):
        side = min(rgb.size)
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255: a 16-bit image would turn white
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
