"""What this machine says of its processor and its GPUs (no torch).

From the kernel's files and NVML, not psutil: stages run on a bare machine too, with torch, torchvision, onnx and
onnxruntime alone, and psutil tells neither the processor's instructions nor its name.
"""

import importlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPUINFO, STAT = Path("/proc/cpuinfo"), Path("/proc/stat")
TICK_S = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
THROTTLES = ("SwPowerCap", "HwSlowdown", "SyncBoost", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
"""Reasons for a lower clock that spoil a latency; not idleness, nor clocks that the owner has set."""
QUIET_S = 1.5
"""NVML's utilisation looks back up to a second: that long it may still show who has just been asked to pause."""


def processor() -> str:
    """The processor's name."""
    return next(iter(cpuinfo("model name")), "") or platform.processor() or platform.machine()


def cpuinfo(field: str) -> list[str]:
    """What the kernel says of every CPU under a name such as `flags` or `cpu MHz`, in order; empty if nothing."""
    rows = (line.partition(":") for line in (read(CPUINFO) or "").splitlines())
    return [value.strip() for name, _, value in rows if name.strip() == field]


def cpu_seconds() -> tuple[dict[int, float], dict[int, float]]:
    """CPU -> busy seconds, and CPU -> seconds that the hypervisor took, since boot; empty where nobody counts."""
    busy, stolen = {}, {}
    for line in (read(STAT) or "").splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, hard, soft, steal = (int(value) * TICK_S for value in values[:8])
            busy[int(name[3:])] = user + nice + system + hard + soft
            stolen[int(name[3:])] = steal
    return busy, stolen


def read(path: Path) -> str | None:
    """The text of one of the kernel's files; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """The GPU that a latency is taken on, now."""

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


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """How busy one GPU is."""

    busy_share: float
    """Of the last moments, the time in which some kernel ran."""
    used_bytes: int


def gpus_in_use() -> list[GpuUse] | None:
    """How busy every GPU of the machine is; None where NVML is absent or does not tell, as of a GPU cut up by MIG."""
    with _nvml() as nvml:
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
