"""Choose the integers of INT8 files by runtime and processor (no torch)."""

import platform
from dataclasses import dataclass

from trainables.config.candidate import MeasureConfig
from trainables.stages.models.devices.elsewhere import facts_of
from trainables.stages.models.devices.processor import has_vnni

TARGETS = ("onnxruntime_cpu", "openvino", "onnxruntime_cuda", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Integer types of an INT8 file. Weights are always signed and symmetric, with one scale per output channel."""

    activation: str
    """`uint8`, with one zero point per tensor, or `int8`."""
    symmetric: bool
    """Whether activations have their zero point at 0."""
    reduce_range: bool
    """Whether weights have 7 bits: x86 without VNNI adds pairs of products in 16 bits, which 8-bit weights overflow."""


def scheme_of(measure: MeasureConfig) -> Scheme:
    """The scheme that is fast where files are timed; raises like `facts_of` if that is another machine."""
    if measure.measure_on is None:
        return scheme_for(measure.latency_runtime)
    there = facts_of(measure.measure_on)
    return _scheme(measure.latency_runtime, machine=there.machine, vnni=there.vnni)


def scheme_for(target: str) -> Scheme:
    """The scheme that a runtime (`--latency-runtime`) runs fast on this machine.

    ONNX Runtime has no CUDA kernels for integers; it gets the same file as TensorRT.

    Raises:
        ValueError: if the target is unknown.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(TARGETS)}, but got {target=}.")
    return _scheme(target, machine=platform.machine(), vnni=has_vnni())


def _scheme(target: str, *, machine: str, vnni: bool) -> Scheme:
    # Measured speeds behind this choice: `export.convert`.
    arm = machine.lower() in ("arm64", "aarch64")
    if target in ("onnxruntime_cuda", "tensorrt") or (target == "onnxruntime_cpu" and arm):
        return Scheme(activation="int8", symmetric=True, reduce_range=False)
    return Scheme(activation="uint8", symmetric=False, reduce_range=not vnni)
