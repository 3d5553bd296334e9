"""A double of NVML, for machines without a GPU."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    pass


def library(
    *,
    mask: int = 0,
    busy: list[int] | None = None,
    used: list[int] | None = None,
    asked: list[Any] | None = None,
    energy: Callable[[], int] = lambda: 0,
) -> SimpleNamespace:
    """NVML of a machine with a GPU for every entry of `used`, or one, as nvidia-ml-py names it."""
    percent = iter(busy or [0] * 100)
    taken = iter(used or [0] * 100)
    seen = asked if asked is not None else []
    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        nvmlMemory_v2=0x02000028,
        nvmlDeviceGetCount=lambda: len(used or [0]),
        nvmlDeviceGetMemoryInfo=lambda handle, version: SimpleNamespace(used=next(taken)),
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksThrottleReasonHwThermalSlowdown=64,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: seen.append(index) or "gpu",
        nvmlDeviceGetHandleByUUID=lambda uuid: seen.append(uuid) or "gpu",
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: mask,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980,
        nvmlDeviceGetTemperature=lambda handle, kind: 41,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=os.getpid())],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: energy(),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=next(percent)),
    )
