"""Read facts about this machine's GPUs through NVML (no torch).

They come from NVML, not from torch: a process that measures has no torch, and may run where NVML is absent.
"""

import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Reasons for a lower clock that spoil a latency; idleness and clocks set by the owner do not.
THROTTLES = ("SwPowerCap", "HwSlowdown", "SyncBoost", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
# NVML's utilisation looks back up to one second, so it may still show a process that has just paused.
QUIET_S = 1.5


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """The present state of the GPU on which a latency is measured."""

    mhz: float
    celsius: float
    throttled: str
    """Reasons joined by commas; empty if none."""
    contexts: int
    """Processes with a context on the GPU, this one and paused ones included."""
    busy_share: float
    """Fraction of the last second or less in which a kernel ran."""

    @classmethod
    def now(cls, index: int = 0) -> "GpuState | None":
        """Read the state; None without NVML (the driver and the package nvidia-ml-py).

        Args:
            index: the device's CUDA index in this process, with `CUDA_VISIBLE_DEVICES` applied.
        """
        with open_nvml() as nvml:
            if nvml is None:
                return None
            try:
                return cls._read(nvml, find_handle(nvml, index))
            except nvml.NVMLError:
                return None

    @classmethod
    def _read(cls, nvml: Any, handle: Any) -> "GpuState":
        mask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        held = [name for name in THROTTLES if mask & getattr(nvml, f"nvmlClocksThrottleReason{name}", 0)]
        return cls(
            mhz=float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            celsius=float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            throttled=",".join(held),
            contexts=len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
            busy_share=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        )


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """How busy one GPU is."""

    busy_share: float
    """Fraction of the last second or less in which a kernel ran."""
    used_bytes: int


def read_gpu_use() -> list[GpuUse] | None:
    """Read how busy every GPU of the machine is; None if NVML is absent or does not know, as with MIG."""
    with open_nvml() as nvml:
        if nvml is None:
            return None
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            return [
                GpuUse(
                    busy_share=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                    # the first version counts what the driver reserves as used
                    used_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used),
                )
                for handle in handles
            ]
        except nvml.NVMLError:
            return None


def read_used_bytes(index: int = 0) -> int | None:
    """Read how much of a GPU's memory all processes use; None if NVML is absent or does not know.

    Args:
        index: as in `GpuState.now`.
    """
    with open_nvml() as nvml:
        if nvml is None:
            return None
        try:
            return int(nvml.nvmlDeviceGetMemoryInfo(find_handle(nvml, index), version=nvml.nvmlMemory_v2).used)
        except nvml.NVMLError:
            return None


def measure_others_on_gpu(index: int = 0) -> float | None:
    """Measure the fraction of time in which other processes use the GPU; None without NVML.

    This process must leave the GPU idle meanwhile. Process ids cannot tell processes apart: in a container, NVML
    reports those of the host.
    """
    deadline = time.monotonic() + QUIET_S
    state = GpuState.now(index)
    while state is not None and state.busy_share > 0 and time.monotonic() < deadline:
        time.sleep(0.1)
        state = GpuState.now(index)
    return None if state is None else state.busy_share


def gpu_name(index: int = 0) -> str:
    """Return the GPU's product name; empty without a GPU or NVML."""
    with open_nvml() as nvml:
        if nvml is None:
            return ""
        try:
            return str(nvml.nvmlDeviceGetName(find_handle(nvml, index)))
        except nvml.NVMLError:
            return ""


@contextmanager
def open_nvml() -> Iterator[Any]:
    """Open NVML; yield its module, or None if the package or the driver is absent."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # a broken driver raises anything; all that matters is that NVML cannot be read
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def find_handle(nvml: Any, index: int) -> Any:
    """Return NVML's handle of a CUDA device."""
    name = visible_name(index)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def visible_name(index: int) -> str:
    """Return what this machine calls a device that CUDA numbers in this process: its number, or its UUID."""
    # NVML counts all GPUs of the machine, CUDA only those in CUDA_VISIBLE_DEVICES
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[index] if index < len(visible) else str(index)
