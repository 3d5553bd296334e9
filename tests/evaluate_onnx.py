"""Test accuracy of an exported model, with onnxruntime, numpy and Pillow only and none of our code.

    python tests/evaluate_onnx.py model.onnx PATH_TO_TEST_FOLDER

The folder holds one folder of images a class. Prints the number of images and the accuracy, 0 to 1.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def evaluate(model: Path, folder: Path) -> tuple[int, float]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    class_names = json.loads(about["class_names"])
    size = int(about["image_size"])
    right = total = 0
    for label, name in enumerate(class_names):
        files = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        for start in range(0, len(files), 100):
            batch = np.stack([pixels(path, size) for path in files[start : start + 100]])
            (logits,) = session.run(["logits"], {"image": batch})
            right += int((logits.argmax(axis=1) == label).sum())
            total += len(batch)
    return total, right / total


def pixels(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    assert rgb.size == (size, size), f"{path} is {rgb.size}, the model takes {size} x {size}"
    return np.asarray(rgb, dtype=np.float32).transpose(2, 0, 1) / 255


if __name__ == "__main__":
    print(*evaluate(Path(sys.argv[1]), Path(sys.argv[2])))
