"""The folder to ship: one candidate's files, how to prepare its images, its labels, and a script that uses them."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from analysis.reading.runs import fetch_artifact
from trainables.files import copy_file, write_text
from trainables.layout import ONNX_FILE, RECIPE, TORCHSCRIPT_FILE

# Exactly what `trainables.stages.data.decoding.to_array` does before an image is trained on or measured.
PREPROCESSING: Mapping[str, Any] = {
    "input": "image",
    "output": "logits",
    "dtype": "float32",
    "layout": "NCHW",
    "channels": "RGB",
    "range": [0.0, 1.0],
    "normalisation": "inside the model",
    "rotation": "as EXIF says",
    "transparency": "laid on white",
    "grey_16_bit": "upper 8 bits; lower 8 if the upper ones are all 0",
    "float": "times 255 if no value is above 1, else as it is; clipped to 0..255",
    "crop": "largest centred square",
    "resize": "bilinear, antialiased, as Pillow's Image.resize with a box",
}
# The same preparation as code, so that a user need not write it from the description.
PREDICT = '''"""Names the class of images: python predict.py IMAGE...  Needs onnxruntime, numpy and Pillow."""
import json, os, pathlib, sys
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import numpy as np, onnxruntime
from PIL import Image, ImageOps

KINDS = "AVIF BMP DDS DIB GIF ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI TGA TIFF WEBP".split()
Image.init()  # no others: a picture that is PostScript would start Ghostscript

def pixels(path, size):
    image = Image.open(path, formats=[kind for kind in KINDS if kind in Image.OPEN])
    image.draft("RGB", (2 * size, 2 * size))
    image.load()
    try:
        image = image.transpose({2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[image.getexif().get(0x0112)])
    except Exception:  # EXIF asks for no rotation, or its block cannot be read: Pillow raises anything then
        pass
    if image.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        scale = (255 if values.max() <= 1 else 1) if image.mode == "F" else 1 if values.max() < 256 else 1 / 256
        image = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / np.float32(255)

here = pathlib.Path(__file__).parent
size, labels = (json.loads((here / f"{name}.json").read_text("utf-8")) for name in ("preprocessing", "labels"))
session = onnxruntime.InferenceSession(str(here / "model.onnx"), providers=["CPUExecutionProvider"])
for path in sys.argv[1:] if sys.argv[1:] and not sys.argv[1].startswith("-") else sys.exit(__doc__):
    try:
        image = pixels(path, size["image_size"])
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: cannot be read as an image ({error})")
    logits = session.run(["logits"], {"image": image})[0][0].astype(np.float64)
    share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    print(path, labels[share.argmax()], f"{share.max():.3f}", sep="\\t")
'''


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What a folder to ship holds."""

    folder: Path
    files: tuple[Path, ...]
    num_classes: int
    image_size: int
    """Pixels per side of an image."""


def ship(tracking_uri: str, run_id: str, folder: Path, *, card: str) -> Shipped:
    """Write model.onnx, model.torchscript.pt, preprocessing.json, labels.json, predict.py, recipe.json and README.md.

    A network that cannot be traced has no TorchScript. Files of the same names are replaced. The ONNX file is read
    before anything is written, so that a bad one leaves the folder as it was.

    Args:
        tracking_uri: the MLflow store.
        run_id: the run of a candidate or of the teacher.
        folder: made if it does not exist.
        card: the model card, Markdown; it becomes README.md.

    Raises:
        ValueError: if the run has no `model.onnx`, that file does not state its classes and image size, or an artifact
            is a link.
        OSError: if the folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = _unlinked(fetch_artifact(tracking_uri, run_id, ONNX_FILE, Path(scratch)))
        labels, image_size = stated_in(source)
        sources = [source]
        for name in (TORCHSCRIPT_FILE, RECIPE):
            try:
                found = fetch_artifact(tracking_uri, run_id, name, Path(scratch))
            except ValueError:
                continue  # a network that cannot be traced has no TorchScript; old runs have no recipe
            sources.append(_unlinked(found))
        folder.mkdir(parents=True, exist_ok=True)
        paths = [_copy(file, folder) for file in sources]
    texts = {
        "preprocessing.json": json.dumps({"image_size": image_size, **PREPROCESSING}, indent=1) + "\n",
        "labels.json": json.dumps(labels, indent=1, ensure_ascii=False) + "\n",
        "predict.py": PREDICT,
        "README.md": card,
    }
    for name, text in texts.items():
        write_text(folder / name, text)  # a link of that name is replaced, not followed
        paths.append(folder / name)
    return Shipped(folder=folder, files=tuple(paths), num_classes=len(labels), image_size=image_size)


def stated_in(model: Path) -> tuple[list[str], int]:
    """The class names in the order of the logits, and the image size in pixels, from an ONNX file's metadata.

    Raises:
        ValueError: if the file cannot be read or does not state them.
    """
    try:
        properties = onnx.load(str(model), load_external_data=False).metadata_props
        known = {
            entry.key: json.loads(entry.value) for entry in properties if entry.key in ("class_names", "image_size")
        }
        return [str(name) for name in known["class_names"]], int(known["image_size"])
    except (OSError, ValueError, KeyError, onnx.checker.ValidationError) as error:
        raise ValueError(f"{model.name} does not state its class names and image size ({error}).") from error
    except DecodeError as error:
        raise ValueError(f"{model.name} is no ONNX file ({error}).") from error


def _unlinked(source: Path) -> Path:
    if source.is_symlink():
        raise ValueError(f"{source} is a link, which is not followed: whoever made it would choose what is shipped.")
    return source


def _copy(source: Path, folder: Path) -> Path:
    target = folder / source.name
    # The artifact itself may lie in the folder, if a user ships from it: copying a file onto itself is an error.
    if not (target.exists() and source.samefile(target)):
        copy_file(source, target)
    return target
