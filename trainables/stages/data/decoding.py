"""Decode the images that a reader has found, with Pillow, into uint8 RGB arrays.

Shape legend: N images, H = W = image_size.
"""

import functools
import io
import struct
import tokenize
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from trainables.stages.models.devices.processor import usable_cores

# Raised by Pillow for files that are not images, truncated or extremely large.
READ_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
# What numpy raises for a damaged array, whose header Python parses.
ARRAY_ERRORS = (ValueError, TypeError, EOFError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError)
# Formats that Pillow decodes by itself. What a file is called says nothing: a `.jpg` that is PostScript would start
# Ghostscript, and run.
FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
LARGE = 2**24  # pixels: larger images are decoded one at a time and converted in bands, for each takes 4 bytes a pixel
# A thread of their own rather than a lock: the allocator keeps for every thread what that thread has freed.
_ONE_LARGE = ThreadPoolExecutor(1, thread_name_prefix="large images")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
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
    with ThreadPoolExecutor(min(8, len(usable_cores()))) as pool:
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


def find_common_size(dataset: str, splits: Sequence[RawSplit]) -> int:
    """Read the images' headers and return their common side.

    Raises:
        ValueError: if a header cannot be read, or the images are not squares of one size.
    """
    first: tuple[int, int] | None = None
    for split, i in ((one, i) for one in splits for i in range(len(one.labels))):
        try:
            with split.open(i) as image:
                size = image.size
        except READ_ERRORS as error:
            problem = f"cannot read image {split.names[i]} ({' '.join(str(error).split())}); replace it or remove it"
            raise ValueError(f"--dataset {dataset}: {problem}.") from error
        first = first or size
        if size != first or size[0] != size[1]:
            width, height = size
            raise ValueError(
                f"--image-size is not given and the images of --dataset {dataset} are not squares of one size "
                f"({split.names[i]} is {width} x {height}); add --image-size, such as --image-size 64."
            )
    assert first is not None
    return first[0]


def to_array(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the largest centred square to RGB pixels (uint8, 3HW) with an antialiased bilinear filter.

    This equals resizing the shorter side to `size` and cropping the centre. EXIF rotation is applied, transparent
    pixels are blended with white. 16-bit grey keeps its upper 8 bits, or its lower 8 where no others are used; floats
    are taken as 0 to 1 where none is above 1, else as 0 to 255.
    """
    # for JPEG only: decodes a 12-megapixel photo at 1/8 of its size if that is still twice the size asked for
    image.draft("RGB", (2 * size, 2 * size))
    rgb = _to_rgb(_upright(image))
    if rgb.size != (size, size):
        side = min(rgb.size)
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation; a picture whose EXIF block cannot be read has none."""
    image.load()  # first: a damaged picture is an error
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises anything on such blocks: TypeError, SyntaxError, ZeroDivisionError
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        image = _to_grey(image)
    if image.width * image.height <= LARGE:
        return _flatten(image)
    rgb, rows = Image.new("RGB", image.size), max(1, LARGE // 16 // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_flatten(band), (0, top))
    return rgb


def _to_grey(image: Image.Image) -> Image.Image:
    """Scale whole numbers of 16 bits and floats up to 1: Pillow's own conversion clips at 255, so some become white."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    scale = (255 if values.max() <= 1 else 1) if image.mode == "F" else 1 if values.max() < 256 else 1 / 256
    return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
