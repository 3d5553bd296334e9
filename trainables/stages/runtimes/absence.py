"""Find out what this machine lacks for a runtime (no torch)."""

import ctypes
import importlib.util
import os
import shutil
from pathlib import Path

from trainables.stages.runtimes.base import RUNTIMES

# Shared libraries that ONNX Runtime's TensorRT provider is linked with.
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")


def find_missing(name: str) -> str:
    """Find what this machine lacks for a runtime; return it as one line, or an empty string if nothing is missing.

    This looks only for packages, the driver and libraries (and loads TensorRT's); opening the runtime may still fail.
    """
    runtime = RUNTIMES[name]
    for package in runtime.needs:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; `uv sync --extra {package}` brings it"
    if runtime.on_gpu and count_cuda_devices() == 0:
        hidden = _find_driver() is not None and os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        return "this process has no CUDA device; --gpus 1 gives it one" if hidden else "this machine has no CUDA device"
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
    """Check that a sweep can measure in a runtime.

    Args:
        on_gpu: whether the sweep's trials have a GPU.

    Raises:
        ValueError: if it cannot; says what is missing.
    """
    reason = find_missing(name)
    if not reason and RUNTIMES[name].on_gpu and not on_gpu:
        raise ValueError(f"latency_runtime={name}: trials without a GPU cannot measure on one; ask for a GPU.")
    if not reason and RUNTIMES[name].source == "onnx":
        reason = _find_missing_provider(name)
    if reason:
        raise ValueError(f"latency_runtime={name}: {reason}; take onnxruntime_cpu.")


def _find_missing_provider(name: str) -> str:
    if name == "openvino":
        return ""
    from trainables.stages.runtimes.onnx_runtimes import find_missing_provider  # imports ONNX Runtime

    return find_missing_provider(name)


def count_cuda_devices() -> int:
    """Count the CUDA devices that this process may use, without starting a context; 0 without a driver."""
    if (driver := _find_driver()) is None:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def _find_driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return None


def load_tensorrt() -> bool:
    """Load TensorRT 10 into this process; return whether that succeeded.

    Wheels put its libraries into the package `tensorrt_libs`, which the loader does not search. Once a library has been
    loaded from any path, ONNX Runtime's provider finds it by its name.
    """
    wheel = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(), *map(Path, (wheel and wheel.submodule_search_locations) or ())]
    return any(all(_can_load(str(folder / library)) for library in TENSORRT_LIBRARIES) for folder in folders)


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
