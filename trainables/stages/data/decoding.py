"""Decode the images that a reader has found, with Pillow, into uint8 RGB arrays.

Shape legend: N images, H = W = image_size.
"""

import functools
import io
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Raised by Pillow for files that are not images, truncated or extremely large.
READ_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
# Formats that Pillow decodes by itself. What a file is called says nothing: a `.jpg` that is PostScript would start
# Ghostscript, and run.
FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
LARGE = 2**24  # pixels: larger images are decoded one at a time and converted in bands, for each takes 4 bytes a pixel
# A thread of their own rather than a lock: the allocator keeps for every thread what that thread has freed.
_ONE_LARGE = ThreadPoolExecutor(1, thread_name_prefix="large images")
_BLOCK = 256  # images per task: 100,000 futures of one image each would cost more than the decoding


@dataclass(frozen=True)
class RawSplit:
    """Images that have not been decoded yet, with their labels."""

    labels: NDArray[np.int64]
    """(N,), positions in `RawDataset.class_names`."""
    names: Sequence[str]
    """N names for error messages."""
    open: Callable[[int], Image.Image]
    """Opens image i; called from several threads."""


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """The images that a reader found, before a validation split is cut off."""

    image_size: int
    """Pixels of a side of the decoded images, except training images that are enlarged on the device."""
    class_names: tuple[str, ...]
    train: RawSplit
    test: RawSplit
    val: RawSplit | None = None
    """None: to be cut off from train."""


def make_array_split(images_NHWC: NDArray[np.uint8], labels: NDArray[np.int64]) -> RawSplit:
    """Make a split of pixels in memory."""
    names = [f"image {i}" for i in range(len(labels))]
    return RawSplit(labels, names, lambda i: Image.fromarray(images_NHWC[i]))


def open_image(source: bytes | str) -> Image.Image:
    """Open an image file at a path, or one that is in memory; only formats that Pillow decodes by itself."""
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=readable_formats())


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def create(path: Path, count: int, size: int) -> "np.memmap[tuple[int, ...], np.dtype[np.uint8]]":
    """Create a memory-mapped file for `count` images of `size` pixels a side (uint8, N3HW)."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 3, size, size))


def decode(flag: str, split: RawSplit, index: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Decode images `index` of a split into `out` (uint8, N3HW), in the size that it has.

    Args:
        flag: the flag that named the images, with its value, for messages.

    Raises:
        ValueError: if an image cannot be read; names the image.
    """

    def decode_block(start: int) -> None:
        for position in range(start, min(start + _BLOCK, len(index))):
            out[position] = _decode_one(flag, split, int(index[position]), out.shape[-1])

    # threads, because Pillow releases the GIL while it decodes, and they share the memory map
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(decode_block, range(0, len(index), _BLOCK)))


def _decode_one(flag: str, split: RawSplit, i: int, size: int) -> NDArray[np.uint8]:
    try:
        with closing(split.open(i)) as image:
            # JPEG is scaled while it is decoded (`to_array`)
            if image.width * image.height <= LARGE or image.format in ("JPEG", "MPO"):
                return to_array(image, size)
            return _ONE_LARGE.submit(to_array, image, size).result()
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{flag}: cannot read image {split.names[i]} ({reason}); replace it or remove it.") from error


def to_array(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the largest centred square to RGB pixels (uint8, 3HW) with an antialiased bilinear filter.

    This equals resizing the shorter side to `size` and cropping the centre. EXIF rotation is applied, transparent
    pixels are blended with white, and 16-bit grey keeps its upper 8 bits.
    """
    # for JPEG only: decodes a 12-megapixel photo at 1/8 of its size if that is still twice the size asked for
    image.draft("RGB", (2 * size, 2 * size))
    ImageOps.exif_transpose(image, in_place=True)
    rgb = _to_rgb(image)
    if rgb.size != (size, size):
        side = min(rgb.size)
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.width * image.height <= LARGE:
        return _flatten(image)
    rgb, rows = Image.new("RGB", image.size), max(1, LARGE // 16 // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_flatten(band), (0, top))
    return rgb


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255, so a 16-bit image would become white
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
