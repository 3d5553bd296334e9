"""Wrap an ONNX file as an MLflow model for `mlflow.onnx` and `mlflow.pyfunc`: on disk, without a tracking server."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

# A signature has no room for what the numbers mean: `mlflow.models.get_model_info(...).metadata` has.
ABOUT = {
    "image": "RGB in [0, 1], (images, 3, height, width); normalisation is part of the model",
    "logits": "one row an image, one column a class; the largest is the answer",
}


def write_mlflow_model(model: Path, folder: Path) -> None:
    """Write an ONNX file as an MLflow model, with signature, input example, requirements and embedded weights.

    Raises:
        ImportError: if no ONNX Runtime is installed.
        OSError: if the file cannot be read or is not an ONNX file.
    """
    try:
        proto = onnx.load(str(model))
    except DecodeError as error:
        raise OSError(f"{model.name} is no ONNX file ({error})") from error
    # without the batch, which is -1 in the signature: any number of images
    dims = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    classes = proto.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    floats = np.dtype(np.float32)
    mlflow.onnx.save_model(
        proto,
        str(folder),
        signature=ModelSignature(
            inputs=Schema([TensorSpec(floats, (-1, *dims), "image")]),
            outputs=Schema([TensorSpec(floats, (-1, classes), "logits")]),
        ),
        metadata=ABOUT | {entry.key: entry.value for entry in proto.metadata_props if entry.key == "class_names"},
        input_example={"image": np.full((1, *dims), 0.5, dtype=np.float32)},
        pip_requirements=[f"{name}=={version(name)}" for name in ("onnx", "numpy")] + [_runtime()],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )


def _runtime() -> str:
    """The requirement for ONNX Runtime: the CPU build, which has the same version as the GPU build."""
    try:
        return f"onnxruntime=={version('onnxruntime')}"
    except PackageNotFoundError:
        return f"onnxruntime=={version('onnxruntime-gpu')}"
