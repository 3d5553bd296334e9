"""Define the runtimes by name, what they take and what opening one gives (no torch)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Batch = npt.NDArray[Any]
Logits = npt.NDArray[np.float32]


class AbsentError(Exception):
    """The machine or the network lacks what the runtime needs; the message says what, on one line."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One trained network in every form that a runtime takes."""

    onnx: Path
    torchscript: Path | None = None
    """None if the tracer failed."""
    weights: Path | None = None
    """A plain state_dict, for PyTorch's own runtimes; requires the next five fields."""
    model_name: str = ""
    num_classes: int = 0
    image_size: int = 0
    """Pixels of a side; 0 where only the ONNX file is used, which has its own."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    half: bool = False
    """Whether PyTorch's runtimes compute in float16."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A network loaded in a runtime, with an input, to be timed."""

    run: Callable[[], object]
    """Runs once on an input that is already on the device; returns when the logits are complete."""
    provider: str
    """What actually computes, such as `CPUExecutionProvider`."""
    device: str
    """`cpu:1` or `cuda:0`."""
    batch: int = 1
    """Images per call."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network opened in a runtime, to compute logits and to be timed."""

    logits: Callable[[Batch], Logits]
    """(B, 3, H, W) float32 in [0, 1] to (B, C) float32, for any B up to the batch size at opening."""
    runner: Runner


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A way to run a network."""

    device: str
    """`cpu` or `cuda`."""
    source: str
    """The form of an `Artifact` that it runs: `onnx`, `torchscript` or `network`."""
    needs: tuple[str, ...] = ()
    """Python packages that must be installed."""

    @property
    def on_gpu(self) -> bool:
        """Whether it needs a GPU."""
        return self.device != "cpu"


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
# A sweep can take its latency objective from these only: they need nothing but the file to ship.


def name_on_device(family: str, *, on_gpu: bool) -> str:
    """Return the runtime of a family, such as `eager`, on a GPU or on the CPU."""
    return f"{family}_{'cuda' if on_gpu else 'cpu'}"


def random_images(batch: int, image_size: int) -> npt.NDArray[np.float32]:
    """Draw images of random pixels, always the same; zeros would be processed faster than real images."""
    return np.random.default_rng(0).random((batch, 3, image_size, image_size), dtype=np.float32)
