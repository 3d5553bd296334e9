import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from trainables.stages.measuring import gpu_state
from trainables.stages.measuring.gpu_state import GpuState, others_on_gpu


class NVMLError(Exception):
    pass


def library(*, mask: int = 0, busy: list[int] | None = None, asked: list[Any] | None = None) -> SimpleNamespace:
    """NVML of a machine with one GPU, as nvidia-ml-py names it."""
    percent = iter(busy or [0] * 100)
    seen = asked if asked is not None else []
    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
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
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=next(percent)),
    )


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return monkeypatch


def test_reasons_are_named_and_an_idle_gpu_is_not_throttled(visible: pytest.MonkeyPatch) -> None:
    visible.setitem(sys.modules, "pynvml", library(mask=4 | 64 | 1))  # 1 is idleness
    state = GpuState.now()
    assert state == GpuState(mhz=1980, celsius=41, throttled="SwPowerCap,HwThermalSlowdown", contexts=1, busy_share=0)
    visible.setitem(sys.modules, "pynvml", library(mask=1))
    state = GpuState.now()
    assert state is not None
    assert state.throttled == ""


@pytest.mark.parametrize(("names", "asked"), [("", [0]), ("3,5", [3]), ("GPU-1f2e", ["GPU-1f2e"])])
def test_the_gpu_is_the_one_that_cuda_means(visible: pytest.MonkeyPatch, names: str, asked: list[Any]) -> None:
    visible.setenv("CUDA_VISIBLE_DEVICES", names)
    seen: list[Any] = []
    visible.setitem(sys.modules, "pynvml", library(asked=seen))
    GpuState.now()
    assert seen == asked


def test_who_has_just_paused_is_waited_for_and_who_stays_is_told(visible: pytest.MonkeyPatch) -> None:
    visible.setitem(sys.modules, "pynvml", library(busy=[80, 40, 0]))
    assert others_on_gpu() == 0
    visible.setattr(gpu_state, "QUIET_S", 0.2)
    visible.setitem(sys.modules, "pynvml", library(busy=[80] * 100))
    assert others_on_gpu() == 0.8


def test_without_the_package_nothing_is_said(visible: pytest.MonkeyPatch) -> None:
    visible.setitem(sys.modules, "pynvml", None)  # an import of it raises ImportError
    assert GpuState.now() is None
    assert others_on_gpu() is None
