"""The runtimes that a trained network can be run in (no torch, unless a runtime of PyTorch's is opened)."""

import ctypes
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.stages.timing import Runner

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
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
"""Shared libraries that ONNX Runtime's TensorRT provider is linked with."""
FILE_RUNTIMES = tuple(name for name, runtime in RUNTIMES.items() if runtime.source == "onnx")
"""Those that a sweep can steer by: the file to ship is all they need."""


def absence(name: str) -> str:
    """Why a runtime cannot be used on this machine, on one line; empty if nothing speaks against it.

    Looks for packages, driver and libraries (and loads TensorRT's) only: opening the runtime has the last word.
    """
    runtime = RUNTIMES[name]
    for package in runtime.needs:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; `uv sync --extra {package}` brings it"
    if runtime.device == "cuda" and cuda_devices() == 0:
        return "this machine has no CUDA device"
    if name == "tensorrt" and not load_tensorrt():
        return (
            "TensorRT 10 (libnvinfer.so.10), for which ONNX Runtime's provider is built, is not installed;"
            " `uv pip install 'tensorrt-cu13-libs<11'` brings it"
        )
    if name == "torch_compile_cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        return "torch.compile needs a C++ compiler on the CPU, and neither g++ nor clang++ is installed"
    if name == "torch_compile_cuda" and not any(map(shutil.which, ("gcc", "clang", "cc"))):
        return "torch.compile needs a C compiler on CUDA, and neither gcc nor clang is installed"
    return ""


def check_runtime(name: str, *, on_gpu: bool) -> None:
    """Return if a sweep whose trials have a GPU, or have not, can measure in a runtime.

    Raises:
        ValueError: if it cannot; the message says what is missing.
    """
    if reason := absence(name):
        raise ValueError(f"latency_runtime={name}: {reason}; take onnxruntime_cpu.")
    if RUNTIMES[name].device == "cuda" and not on_gpu:
        raise ValueError(f"latency_runtime={name}: trials without a GPU cannot measure on one; ask for a GPU.")


def cuda_devices() -> int:
    """How many CUDA devices this process may use; 0 without a driver. Starts no context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def load_tensorrt() -> bool:
    """Load TensorRT 10 into this process; whether it is on this machine.

    Wheels put its libraries into the package `tensorrt_libs`, where the loader does not look. What ONNX Runtime's
    provider needs is found by its name once it has been loaded from wherever it lies.
    """
    wheel = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(), *map(Path, (wheel and wheel.submodule_search_locations) or ())]
    return any(all(_loads(str(folder / library)) for library in TENSORRT_LIBRARIES) for folder in folders)


def open_runtime(name: str, artifact: Artifact, *, threads: int, batch: int = 1) -> Opened:
    """The network in a runtime, ready for calls of `batch` images on an input of random pixels.

    Raises:
        AbsentError: if the machine, or the network, has not got what the runtime needs, or another provider would
            run it in its place.
    """
    if reason := absence(name):
        raise AbsentError(reason)
    if RUNTIMES[name].source == "onnx":
        from trainables.stages import backends_onnx

        return backends_onnx.open_file(name, artifact.onnx, threads=threads, batch=batch)
    from trainables.stages import backends_torch

    return backends_torch.open_network(name, artifact, threads=threads, batch=batch)


def random_images(batch: int, image_size: int) -> npt.NDArray[np.float32]:
    """Random pixels, not zeros: zeros are faster than any picture."""
    return np.random.default_rng(0).random((batch, 3, image_size, image_size), dtype=np.float32)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
