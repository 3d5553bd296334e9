import platform
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.stages.models.nvml import NVMLError, library
from trainables.stages.models.devices import gpu, processor
from trainables.stages.models.devices.gpu import GpuState, GpuUse, measure_others_on_gpu, read_gpu_use, read_used_bytes
from trainables.stages.models.devices.processor import cpu_seconds, processor_name, read_cpuinfo


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
    assert measure_others_on_gpu() == 0
    visible.setattr(gpu, "QUIET_S", 0.2)
    visible.setitem(sys.modules, "pynvml", library(busy=[80] * 100))
    assert measure_others_on_gpu() == 0.8


def test_without_the_package_nothing_is_said(visible: pytest.MonkeyPatch) -> None:
    visible.setitem(sys.modules, "pynvml", None)  # an import of it raises ImportError
    assert GpuState.now() is None
    assert measure_others_on_gpu() is None
    assert read_gpu_use() is None


def test_every_gpu_of_the_machine_is_told_whichever_are_visible(visible: pytest.MonkeyPatch) -> None:
    visible.setenv("CUDA_VISIBLE_DEVICES", "1")
    seen: list[Any] = []
    visible.setitem(sys.modules, "pynvml", library(busy=[93, 7], used=[10**9, 2 * 10**9], asked=seen))
    first, second = GpuUse(busy_share=0.93, used_bytes=10**9), GpuUse(busy_share=0.07, used_bytes=2 * 10**9)
    assert read_gpu_use() == [first, second]
    assert seen == [0, 1]


def test_the_memory_in_use_is_that_of_the_gpu_that_cuda_means(visible: pytest.MonkeyPatch) -> None:
    visible.setenv("CUDA_VISIBLE_DEVICES", "1")
    seen: list[Any] = []
    visible.setitem(sys.modules, "pynvml", library(used=[2 * 10**9], asked=seen))
    assert read_used_bytes() == 2 * 10**9
    assert seen == [1]
    visible.setitem(sys.modules, "pynvml", None)
    assert read_used_bytes() is None


def test_a_gpu_that_does_not_tell_its_use_is_unknown(visible: pytest.MonkeyPatch) -> None:
    def refused(handle: object) -> None:
        raise NVMLError("not supported: it is cut up by MIG")

    mig = library()
    mig.nvmlDeviceGetUtilizationRates = refused
    visible.setitem(sys.modules, "pynvml", mig)
    assert read_gpu_use() is None


def test_the_double_has_the_names_of_nvidia_ml_py() -> None:
    real = pytest.importorskip("pynvml", reason="NVIDIA's library, which machines with torch alone may lack")
    assert [name for name in vars(library()) if not hasattr(real, name)] == []


CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
cpu MHz\t\t: 2000.125
flags\t\t: fpu avx_vnni

processor\t: 1
model name\t: Some CPU @ 2.00GHz
cpu MHz\t\t: 2600.000
flags\t\t: fpu avx_vnni
"""


def test_every_cpus_values_are_read_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert read_cpuinfo("flags") == []
    assert processor_name() == (platform.processor() or platform.machine())
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert read_cpuinfo("cpu MHz") == ["2000.125", "2600.000"]
    assert processor_name() == "Some CPU @ 2.00GHz"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n")
    assert processor_name() == "Raspberry Pi 4 Model B Rev 1.4"


@pytest.mark.skipif(not processor.STAT.exists(), reason="the kernel's counts are read from /proc/stat")
def test_a_second_at_work_is_a_second_of_some_cpu() -> None:
    before, _ = cpu_seconds()
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    after, stolen = cpu_seconds()
    assert sum(after.values()) - sum(before.values()) >= 0.4
    assert stolen.keys() == after.keys() == before.keys()
