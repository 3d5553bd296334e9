"""An ONNX file written by hand: logits = flatten(image) @ weight."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trainables.stages.measuring.process import Job
from trainables.stages.runtimes.base import Artifact

SIZE, CLASSES = 8, 4


def linear_model(path: Path, weight: np.ndarray) -> Path:
    """Takes images of SIZE pixels a side."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def linear_job(folder: Path, **changes: Any) -> Job:
    """A small file beside a large one, timed for 0.2 s."""
    small = linear_model(folder / "small.onnx", random_weight())
    large = linear_model(folder / "large.onnx", random_weight(20_000))
    settings = {"runtime": "onnxruntime_cpu", "threads": 1, "seconds": 0.2} | changes
    return Job(candidate=Artifact(onnx=small), reference=Artifact(onnx=large), **settings)


def random_weight(classes: int = CLASSES) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, classes)).astype(np.float32)
