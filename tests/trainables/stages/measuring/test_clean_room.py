import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.trainables.stages.measuring.busy_cpu import bound_to, busy, linux
from tests.trainables.stages.measuring.linear_onnx import linear_job
from trainables.locks import DeviceLock, is_locked
from trainables.stages.measuring import clean_room, process
from trainables.stages.measuring.clean_room import BrokenRoomError, measure_apart
from trainables.stages.measuring.probes import Clocks
from trainables.stages.measuring.process import Job, Measured
from trainables.stages.runtimes.base import AbsentError

CALLER = """
import sys
from pathlib import Path
from trainables.locks import DeviceLock, is_locked
from trainables.stages.measuring.clean_room import measure_apart
from trainables.stages.measuring.process import Job
from trainables.stages.runtimes.base import Artifact
file = Artifact(onnx=Path(sys.argv[1]))
job = Job(candidate=file, reference=file, runtime="onnxruntime_cpu", threads=1, seconds=60)
measure_apart(job, DeviceLock(Path(sys.argv[2]), "cpu"))
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return linear_job(tmp_path, throughput_batch=64)


@pytest.fixture
def lease(tmp_path: Path) -> DeviceLock:
    return DeviceLock(tmp_path / "leases", "cpu")


def test_a_measurement_comes_from_another_process_and_says_how_it_was_taken(job: Job, lease: DeviceLock) -> None:
    measured = measure_apart(job, lease)
    small, large = measured.candidate, measured.reference
    assert large.latency_p50_ms > 3 * small.latency_p50_ms
    assert (small.latency_device, small.latency_provider) == ("cpu:1", "CPUExecutionProvider")
    assert measured.throughput_ips is not None
    assert measured.throughput_ips > 0
    seen = small.conditions
    assert seen is not None
    assert seen.seconds > 0.02
    assert measured.ratio < 1 / 3 and 0 < measured.ratio_half_width < 1
    assert seen.clock_probe_ms is not None and seen.clock_probe_ms > 0
    assert seen.memory_probe_ms is not None and seen.memory_probe_ms > 0
    if Path("/proc/self/schedstat").exists():
        assert seen.waited_share is not None
    assert 1 <= small.latency_attempts <= process.ATTEMPTS
    assert small.latency_alone_s >= seen.seconds
    if hasattr(os, "sched_setaffinity"):
        assert len(seen.cores) == 1
        assert os.sched_getaffinity(0) >= set(seen.cores)


def test_a_measurement_in_a_slow_spell_is_known_by_those_before_it(
    job: Job, lease: DeviceLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own blocks are all alike, so that nothing within it tells."""
    monkeypatch.setattr(clean_room, "PAUSE_S", 0.0)
    once = dataclasses.replace(job, throughput_batch=None, attempts=1)
    first = [measure_apart(once, lease).candidate.conditions for _ in range(Clocks.FEWEST + 1)]
    assert [seen and seen.clock_behind is None for seen in first] == [True] * Clocks.FEWEST + [False]
    file = lease.file(clean_room.CLOCKS_FILE)
    known = json.loads(file.read_text())
    assert known["clock_ms"] == [seen and seen.clock_probe_ms for seen in first]
    faster = [reading / 5 for reading in known["clock_ms"]]
    file.write_text(json.dumps(known | {"clock_ms": faster}))  # as if the machine had been five times as fast
    slow = measure_apart(once, lease).candidate
    assert slow.latency_disturbed and slow.verdict.startswith("clock slow: multiplications that need no memory took ")
    assert len(json.loads(file.read_text())["clock_ms"]) == len(faster) + 1


@linux
def test_a_busy_process_on_its_cpu_is_the_reason_and_it_is_tried_again(
    job: Job, lease: DeviceLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_room, "PAUSE_S", 0.0)
    core = max(os.sched_getaffinity(0))
    with busy(core), bound_to(core):
        disturbed = measure_apart(dataclasses.replace(job, seconds=0.6, throughput_batch=None), lease).candidate
    assert disturbed.latency_attempts >= 2
    assert disturbed.latency_disturbed
    assert disturbed.verdict.startswith("CPU shared: others ran in its place for ")
    assert disturbed.metrics()["latency_clean"] == 0


def test_a_disturbance_that_passes_is_measured_away(
    job: Job, lease: DeviceLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt only is disturbed: the second is the result."""
    monkeypatch.setattr(clean_room, "PAUSE_S", 0.0)
    measure = clean_room._Room.measure
    taken: list[Measured] = []

    def remember(room: clean_room._Room) -> Measured:
        taken.append(measure(room))
        return taken[-1]

    monkeypatch.setattr(clean_room._Room, "measure", remember)
    monkeypatch.setattr(clean_room, "_disturbance", lambda measured: {0: 30.0, 1: 0.0}[taken.index(measured)])
    result = measure_apart(job, lease).candidate
    assert result.latency_attempts == 2
    assert result.latency_p50_ms == taken[1].candidate.latency_p50_ms


@pytest.mark.parametrize(("attempts", "whole"), [(3, [False, True]), (1, [True])])
def test_a_gpu_is_measured_beside_trials_on_others_until_that_disturbs(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int, whole: list[bool]
) -> None:
    monkeypatch.setattr(clean_room, "PAUSE_S", 0.0)
    lease = DeviceLock(tmp_path / "leases", "gpu-0", node=DeviceLock(tmp_path / "leases", "cpu"))
    measure = clean_room._Room.measure
    held: list[bool] = []

    def look(room: clean_room._Room) -> Measured:
        held.append(is_locked(tmp_path / "leases" / "cpu.gate"))
        return measure(room)

    monkeypatch.setattr(clean_room._Room, "measure", look)
    monkeypatch.setattr(clean_room, "_disturbance", lambda measured: 30.0 if len(held) == 1 else 0.0)
    measure_apart(dataclasses.replace(job, attempts=attempts), lease)
    assert held == whole


def test_kill_9_of_the_caller_ends_the_measuring_process_and_frees_the_lease(job: Job, lease: DeviceLock) -> None:
    folder = job.candidate.onnx.parent / "leases"
    words = [sys.executable, "-c", CALLER, str(job.candidate.onnx), str(folder)]
    caller = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    room = _child(caller.pid)
    time.sleep(1)  # it is measuring, or about to
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    with lease.alone():
        pass
    assert _ends(room)


def test_a_measuring_process_that_dies_is_an_error_and_frees_the_lease(
    job: Job, lease: DeviceLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = clean_room._Room.measure

    def killed(room: clean_room._Room) -> Measured:
        os.kill(room._process.pid, signal.SIGKILL)
        return measure(room)

    monkeypatch.setattr(clean_room._Room, "measure", killed)
    with pytest.raises(BrokenRoomError, match="the measuring process ended"):
        measure_apart(job, lease)
    with lease.alone():
        pass


def test_the_measuring_process_has_the_gpu_as_a_user_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/mps/pipe")
    assert "CUDA_MPS_PIPE_DIRECTORY" not in clean_room._environment(1)


def test_a_file_that_cannot_be_opened_is_told(job: Job, lease: DeviceLock) -> None:
    job.candidate.onnx.write_bytes(b"no model")
    with pytest.raises(BrokenRoomError, match=r"with code 1: .*small\.onnx"):
        measure_apart(job, lease)


def test_a_runtime_that_is_absent_is_told(job: Job, lease: DeviceLock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    without = dataclasses.replace(job, runtime="onnxruntime_cuda")
    with pytest.raises(AbsentError, match="no CUDA device"):
        measure_apart(without, lease)


def test_the_same_file_against_itself_is_as_fast(job: Job, lease: DeviceLock) -> None:
    twin = dataclasses.replace(job, reference=job.candidate, throughput_batch=None)
    measured = measure_apart(twin, lease)
    assert measured.throughput_ips is None
    assert measured.candidate.latency_p50_ms == pytest.approx(measured.reference.latency_p50_ms, rel=0.3)
    assert measured.ratio == pytest.approx(1, rel=0.3)
    assert np.isfinite(list(measured.candidate.metrics().values())).all()


def _child(pid: int) -> int:
    """The first child process of `pid`, as soon as it has one."""
    while True:
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
        if found:
            return int(found[0])
        time.sleep(0.05)


def _ends(pid: int) -> bool:
    """Whether a process is gone within 10 s."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        if state in ("", "Z"):  # a zombie computes nothing; whoever adopted it may never ask for it
            return True
        time.sleep(0.05)
    return False
