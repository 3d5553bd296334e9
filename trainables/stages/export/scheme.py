"""Which integers INT8 uses, by runtime and processor (no torch)."""

import platform
from dataclasses import dataclass

from trainables.stages.models.devices import cpuinfo

TARGETS = ("onnxruntime_cpu", "openvino", "onnxruntime_cuda", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Integers of an INT8 file. Weights are always signed, symmetric, with a scale for every output channel."""

    activation: str
    """`uint8`, with a zero point of its own for every tensor, or `int8`."""
    symmetric: bool
    """Whether activations have their zero point at 0."""
    reduce_range: bool
    """Whether weights have 7 bits: x86 without VNNI adds pairs of products in 16 bits, which 8 bits overflow."""


def scheme_for(target: str) -> Scheme:
    """What a runtime (`--latency-runtime`) is fast with on this machine.

    ONNX Runtime has no CUDA kernels for integers; its file is the one that TensorRT takes.

    Raises:
        ValueError: if the target is unknown.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(TARGETS)}, but got {target=}.")
    arm = platform.machine().lower() in ("arm64", "aarch64")
    if target in ("onnxruntime_cuda", "tensorrt") or (target == "onnxruntime_cpu" and arm):
        return Scheme(activation="int8", symmetric=True, reduce_range=False)
    return Scheme(activation="uint8", symmetric=False, reduce_range=not has_vnni())


def has_vnni() -> bool:
    """Whether this processor multiplies 8-bit integers into 32 bits at once; False where nobody can tell."""
    return any(name in flags for flags in cpuinfo("flags") for name in ("avx512_vnni", "avx_vnni"))
