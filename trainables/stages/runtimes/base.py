"""The runtimes by name, and what opening one gives (no torch)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Batch = npt.NDArray[Any]
Logits = npt.NDArray[np.float32]


class AbsentError(Exception):
    """This machine has not got what the runtime needs; the message says what, on one line."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One trained network in the forms that runtimes take."""

    onnx: Path
    torchscript: Path | None = None
    """None where the tracer failed."""
    weights: Path | None = None
    """A plain state_dict, for PyTorch's own runtimes; needs the four that follow."""
    model_name: str = ""
    num_classes: int = 0
    image_size: int = 0
    """Pixels of a side; 0 takes the ONNX file's."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    half: bool = False
    """Whether PyTorch's runtimes compute in float16."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """One file in one runtime, ready to be called."""

    run: Callable[[], object]
    """One call on an input that is already where it must be; returns when the logits are there."""
    provider: str
    """What really computes, such as `CPUExecutionProvider`."""
    device: str
    """`cpu:1` or `cuda:0`."""
    batch: int = 1
    """Images a call."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network in a runtime."""

    logits: Callable[[Batch], Logits]
    """(B, 3, H, W) float32 in [0, 1] to (B, C) float32, for any B up to the batch it was opened for."""
    runner: Runner


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A way to run a network."""

    device: str
    """`cpu` or `cuda`."""
    source: str
    """What of an `Artifact` it runs: `onnx`, `torchscript` or `network`."""
    needs: tuple[str, ...] = ()
    """Python packages."""


RUNTIMES: Mapping[str, Runtime] = {
    "onnxruntime_cpu": Runtime(device="cpu", source="onnx", needs=("onnxruntime",)),
    "onnxruntime_cuda": Runtime(device="cuda", source="onnx", needs=("onnxruntime",)),
    "tensorrt": Runtime(device="cuda", source="onnx", needs=("onnxruntime",)),
    "openvino": Runtime(device="cpu", source="onnx", needs=("openvino",)),
    "torchscript_cpu": Runtime(device="cpu", source="torchscript", needs=("torch",)),
    "torchscript_cuda": Runtime(device="cuda", source="torchscript", needs=("torch",)),
    "eager_cpu": Runtime(device="cpu", source="network", needs=("torch",)),
    "eager_cuda": Runtime(device="cuda", source="network", needs=("torch",)),
    "torch_compile_cpu": Runtime(device="cpu", source="network", needs=("torch",)),
    "torch_compile_cuda": Runtime(device="cuda", source="network", needs=("torch",)),
    "cuda_graph": Runtime(device="cuda", source="network", needs=("torch",)),
}
FILE_RUNTIMES = tuple(name for name, runtime in RUNTIMES.items() if runtime.source == "onnx")
"""Those that a sweep can steer by: the file to ship is all they need."""


def random_images(batch: int, image_size: int) -> npt.NDArray[np.float32]:
    """Random pixels, not zeros: zeros are faster than any picture."""
    return np.random.default_rng(0).random((batch, 3, image_size, image_size), dtype=np.float32)
