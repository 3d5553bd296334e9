import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from tests.trainables.stages.data.sample_folders import POSTSCRIPT, fake_ghostscript
from trainables.stages.data import decoding
from trainables.stages.data.decoding import open_image, to_array

__all__ = ["fake_ghostscript"]


def test_modes_become_rgb() -> None:
    assert to_array(Image.new("L", (8, 8), 7), 8)[:, 0, 0].tolist() == [7, 7, 7]
    assert to_array(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), 8)[:, 0, 0].tolist() == [255, 0, 0]
    assert to_array(Image.new("1", (8, 8), 1), 8)[:, 0, 0].tolist() == [255, 255, 255]
    assert to_array(Image.fromarray(np.full((8, 8), 0x8042, dtype=np.uint16)), 8)[:, 0, 0].tolist() == [128] * 3


def test_transparency_is_laid_on_white() -> None:
    assert to_array(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), 8)[:, 0, 0].tolist() == [255, 255, 255]
    assert to_array(Image.new("RGBA", (8, 8), (255, 0, 0, 255)), 8)[:, 0, 0].tolist() == [255, 0, 0]
    assert to_array(Image.new("LA", (8, 8), (0, 0)), 8)[:, 0, 0].tolist() == [255, 255, 255]


def test_transparent_palette_is_laid_on_white() -> None:
    file = io.BytesIO()
    image = Image.new("P", (8, 8), 3)
    image.putpalette([10, 20, 30] * 4)
    image.save(file, "PNG", transparency=3)
    assert to_array(Image.open(file), 8)[:, 0, 0].tolist() == [255, 255, 255]


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn 90 degrees clockwise to see it upright
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    assert np.argwhere(to_array(Image.open(file), 8)[0] == 255).tolist() == [[0, 7]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_rotation_is_pillows(orientation: int) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file))).transpose(2, 0, 1)
    assert np.array_equal(to_array(Image.open(file), 8), expected)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_exif_block_is_a_picture_without_rotation(seed: int) -> None:
    rng, file = np.random.default_rng(seed), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    exif.get_ifd(0x8769)[0x829A] = 0.5
    block = bytearray(exif.tobytes())
    for position in rng.integers(6, len(block), 6):
        block[position] = rng.integers(0, 256)
    Image.new("RGB", (8, 8), (200, 100, 50)).save(file, "JPEG", exif=bytes(block))
    assert to_array(Image.open(file), 8).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        (np.full((8, 8), 0.5, dtype=np.float32), 127),
        (np.full((8, 8), 100.0, dtype=np.float32), 100),
        (np.full((8, 8), np.nan, dtype=np.float32), 0),
        (np.full((8, 8), 200, dtype=np.uint16), 200),
        (np.full((8, 8), 200, dtype=np.int32), 200),
        (np.full((8, 8), 0x4000, dtype=np.uint16), 64),
    ],
)
def test_floats_and_small_16_bit_values_are_not_black(values: np.ndarray, grey: int) -> None:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    assert to_array(Image.open(file), 8)[:, 0, 0].tolist() == [grey] * 3


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_non_square_image_is_scaled_and_cropped_to_its_centre(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)
    left, top = (half.width - 4) // 2, (half.height - 4) // 2
    expected = np.asarray(half.crop((left, top, left + 4, top + 4))).transpose(2, 0, 1)
    assert np.array_equal(to_array(image, 4), expected)
    whole = np.asarray(image).transpose(2, 0, 1)
    row, column = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    assert np.array_equal(to_array(image, 8), whole[:, row : row + 8, column : column + 8])


def test_large_jpeg_keeps_its_colours_and_the_asked_size() -> None:
    file = io.BytesIO()
    Image.new("RGB", (900, 600), (200, 100, 50)).save(file, "JPEG")
    array = to_array(Image.open(file), 32)
    assert array.shape == (3, 32, 32)
    assert np.abs(array.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "I;16", "1", "CMYK"])
def test_large_images_get_the_same_pixels_band_by_band(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (97, 71)).astype(np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (97, 71, 4), dtype=np.uint8), "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    whole = to_array(image.copy(), 13)
    monkeypatch.setattr(decoding, "LARGE", 16 * 71 * 7)
    assert np.array_equal(to_array(image.copy(), 13), whole)
    monkeypatch.setattr(decoding, "LARGE", 1)
    assert np.array_equal(to_array(image, 13), whole)


def test_postscript_under_another_name_starts_no_program(tmp_path: Path, fake_ghostscript: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(POSTSCRIPT)
    for source in (str(tmp_path / "a.jpg"), POSTSCRIPT):
        with pytest.raises(UnidentifiedImageError):
            open_image(source)
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(OSError):  # it is one that starts it
        image.load()
    assert fake_ghostscript.exists()


def test_large_images_share_their_memory(tmp_path: Path) -> None:
    """Four PNGs of 0.1 MB that are 30 million pixels each: 120 MB as RGBA, once, and once more as RGB."""
    Image.new("RGBA", (6000, 5000), (1, 2, 3, 4)).save(tmp_path / "a.png", compress_level=1)
    code = f"""
        import resource
        import numpy as np
        from trainables.stages.data import decoding
        decoding._BLOCK = 1
        decoding.usable_cores = lambda: range(4)
        split = decoding.RawSplit(np.zeros(4), ["a"] * 4, lambda i: decoding.open_image({str(tmp_path / "a.png")!r}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decoding.decode("folder:x", split, np.arange(4), np.empty((4, 3, 8, 8), np.uint8))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 320e6
