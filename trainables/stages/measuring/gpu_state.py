"""What NVML says about the GPU that a latency is taken on (no torch)."""

import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

THROTTLES = ("SwPowerCap", "HwSlowdown", "SyncBoost", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
"""Reasons for a lower clock that spoil a latency; not idleness, nor clocks that the owner has set."""
QUIET_S = 1.5
"""NVML's utilisation looks back up to a second: that long it may still show who has just been asked to pause."""


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One GPU now."""

    mhz: float
    celsius: float
    throttled: str
    """Reasons joined by commas; empty if none."""
    contexts: int
    """Processes with a context on it, this one and paused ones included."""
    busy_share: float
    """Of the last moments, the time in which some kernel ran."""

    @classmethod
    def now(cls, index: int = 0) -> "GpuState | None":
        """Read it; None where NVML (the driver, or the package nvidia-ml-py) is absent.

        Args:
            index: as CUDA counts in this process, `CUDA_VISIBLE_DEVICES` applied.
        """
        with _nvml() as nvml:
            if nvml is None:
                return None
            try:
                return cls._read(nvml, _handle(nvml, index))
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


def others_on_gpu(index: int = 0) -> float | None:
    """The share of the time in which others use the GPU, while this process asks nothing of it; None without NVML.

    Process ids would not tell: in a container NVML's are the host's.
    """
    deadline = time.monotonic() + QUIET_S
    state = GpuState.now(index)
    while state is not None and state.busy_share > 0 and time.monotonic() < deadline:
        time.sleep(0.1)
        state = GpuState.now(index)
    return None if state is None else state.busy_share


def gpu_name(index: int = 0) -> str:
    """The product's name; empty where there is no GPU, or nobody to ask."""
    with _nvml() as nvml:
        if nvml is None:
            return ""
        try:
            return str(nvml.nvmlDeviceGetName(_handle(nvml, index)))
        except nvml.NVMLError:
            return ""


@contextmanager
def _nvml() -> Iterator[Any]:
    """The NVML library, or None where package or driver are absent."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # also a driver that is broken: whatever it is, nothing can be said
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _handle(nvml: Any, index: int) -> Any:
    """NVML counts all GPUs of the machine: CUDA_VISIBLE_DEVICES says which one the process means."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = visible[index] if index < len(visible) else str(index)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
