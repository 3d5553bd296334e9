import re
import sys
import threading
import time

import psutil
import pytest

from sweeps.cluster import usage
from sweeps.cluster.usage import Usage, cpu_text, gpu_text
from tests.trainables.stages.models.nvml import library
from trainables.stages.models.devices.processor import usable_cores


def share(text: str) -> float:
    found = re.fullmatch(r"CPU (\d+) % of \d+ cores   memory \d+\.\d of \d+\.\d GB", text)
    assert found, text
    return float(found[1])


def test_cores_at_work_and_memory_in_use_are_seen() -> None:
    cpu_text()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        pass
    text = cpu_text()
    assert share(text) >= 70 / len(usable_cores())
    assert f"of {len(usable_cores())} cores" in text
    assert f"of {psutil.virtual_memory().total / 1e9:.1f} GB" in text


def test_the_thread_says_nothing_before_it_knows_and_ends_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "SAMPLE_S", 0.2)
    sampled = Usage(gpus=False)
    assert sampled.text == ""
    sampled.start()
    until = time.monotonic() + 10
    while not sampled.text and time.monotonic() < until:
        time.sleep(0.05)
    share(sampled.text)
    sampled.stop()
    until = time.monotonic() + 10
    while any(thread.name == "usage" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "usage"]


def test_every_gpu_of_the_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setitem(sys.modules, "pynvml", library(busy=[93, 7], used=[10_737_418_240, 536_870_912]))
    assert gpu_text() == "GPU 93 % 11 GB, 7 % 1 GB"
    monkeypatch.setitem(sys.modules, "pynvml", None)  # an import of it raises ImportError
    assert gpu_text() == "GPU use unknown: NVML does not tell"
