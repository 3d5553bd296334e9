"""Files are timed on another machine: one behind an sshd on loopback, which has onnxruntime and numpy alone."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import psutil
import pytest

from sweeps.kd_prune import main as sweep
from tests.trainables.stages.measuring.latencies import linear_file, node
from tests.trainables.stages.measuring.linear_onnx import linear_job
from tests.trainables.stages.measuring.sshd import MISSING, Machine, machine
from trainables.config.candidate import MeasureConfig
from trainables.layout import LEASES
from trainables.locks import DeviceLock, is_locked
from trainables.stages.candidate.__main__ import main as candidate
from trainables.stages.export import scheme
from trainables.stages.measuring import beside_teacher, clean_room
from trainables.stages.measuring.beside_teacher import find_scale, hardware, timed_on
from trainables.stages.measuring.clean_room import BrokenRoomError, measure_apart
from trainables.stages.measuring.process import Job, Measured
from trainables.stages.models.devices import elsewhere, receiver
from trainables.stages.models.devices.elsewhere import ask, check_elsewhere, facts_of
from trainables.stages.models.devices.processor import processor_name

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

CALLER = """
import sys
from pathlib import Path
from trainables.locks import DeviceLock
from trainables.stages.measuring.clean_room import measure_apart
from trainables.stages.measuring.process import Job
from trainables.stages.runtimes.base import Artifact
file = Artifact(onnx=Path(sys.argv[1]))
job = Job(candidate=file, reference=file, runtime="onnxruntime_cpu", threads=1, seconds=60, address=sys.argv[3])
measure_apart(job, DeviceLock(Path(sys.argv[2]), "there"))
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machine(tmp_path_factory.mktemp("machine")) as running:
        running.install("numpy", "onnxruntime")
        yield running


@pytest.fixture(autouse=True)
def our_ssh(there: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{there.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(elsewhere, "PAUSES_S", (0.0, 0.1))
    monkeypatch.setattr(clean_room, "PAUSE_S", 0.0)


@pytest.fixture
def job(tmp_path: Path, there: Machine) -> Job:
    return linear_job(tmp_path, attempts=1, throughput_batch=8, address=there.address)


@pytest.fixture
def lease(tmp_path: Path) -> DeviceLock:
    return DeviceLock(tmp_path / "leases", "there")


def name_of(there: Machine) -> str:
    return f"127.0.0.1:{there.port}, {processor_name()}, onnxruntime {onnxruntime.__version__}"


def test_files_are_timed_there_with_the_same_protocol_and_sent_once(
    job: Job, lease: DeviceLock, there: Machine
) -> None:
    measured = measure_apart(job, lease)
    small, large = measured.candidate, measured.reference
    assert large.latency_p50_ms > 3 * small.latency_p50_ms
    assert measured.ratio < 1 / 3 and 0 < measured.ratio_half_width < 1
    assert measured.throughput_ips is not None and measured.throughput_ips > 0
    assert small.latency_device == large.latency_device == f"cpu:1 of {name_of(there)}"
    assert small.latency_alone_s == 0  # nobody here has paused
    assert small.conditions is not None and small.conditions.clock_probe_ms
    sent = {path.name: path.stat().st_ino for path in (there.cache / "files").iterdir()}
    assert sorted(name.rpartition(".")[2] for name in sent) == ["onnx", "onnx", "zip"]
    measure_apart(dataclasses.replace(job, throughput_batch=None), lease)
    assert {path.name: path.stat().st_ino for path in (there.cache / "files").iterdir()} == sent


def test_the_store_and_the_integers_are_those_of_the_machine_there(
    tmp_path: Path, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = MeasureConfig(latency_seconds=0.1, latency_max_attempts=1, measure_on=there.address)
    here = dataclasses.replace(far, measure_on=None)
    assert timed_on(far) == name_of(there)
    assert timed_on(here) == hardware("onnxruntime_cpu")
    reference, place = linear_file(tmp_path), node(tmp_path / "node")
    there_keys, here_keys = (find_scale(config, reference, place).keys for config in (far, here))
    assert not {*there_keys} & {*here_keys}
    arm = dataclasses.replace(facts_of(there.address), machine="aarch64")
    monkeypatch.setattr(scheme, "facts_of", lambda address: arm)
    assert scheme.scheme_of(far).activation == "int8"


def test_callers_of_several_nodes_take_turns(job: Job, lease: DeviceLock, there: Machine) -> None:
    theirs = DeviceLock(there.cache / LEASES, "cpu")
    done: list[Measured] = []
    mine = threading.Thread(target=lambda: done.append(measure_apart(job, lease)))
    with theirs.shared():  # another file is being opened
        mine.start()
        mine.join(4)
        assert not done
    mine.join(30)
    assert done


def test_kill_9_of_the_caller_ends_the_process_there_and_frees_its_lock(
    job: Job, tmp_path: Path, there: Machine
) -> None:
    gate = there.cache / LEASES / "cpu.gate"
    words = [sys.executable, "-c", CALLER, str(job.candidate.onnx), str(tmp_path / "leases"), there.address]
    with DeviceLock(there.cache / LEASES, "cpu").shared():  # so that it waits, with the gate closed
        caller = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        wait_until(lambda: is_locked(gate), 30)
        time.sleep(0.2)
        assert is_locked(gate)
        os.kill(caller.pid, signal.SIGKILL)
        caller.wait()
        wait_until(lambda: not is_locked(gate), 10)


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_connection_that_is_lost_once_costs_an_attempt(
    job: Job, lease: DeviceLock, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, cuts = clean_room._Room.measure, []

    def cut_first(room: clean_room._Room) -> Measured:
        if not cuts:
            cuts.append(there.cut())
        return measure(room)

    monkeypatch.setattr(clean_room._Room, "measure", cut_first)
    assert measure_apart(job, lease).candidate.latency_p50_ms > 0
    assert len(cuts) == 1


def test_a_program_that_is_killed_there_is_no_lost_connection(there: Machine) -> None:
    """As by a Pi that is out of memory: no further attempt would help."""
    with tempfile.TemporaryFile() as errors:
        process = elsewhere.start(there.address, ["trainables.stages.measuring.process"], {}, {}, errors)
        (there_,) = (
            found
            for found in psutil.process_iter(["name", "cwd"])
            if found.info["cwd"] == str(there.cache) and found.info["name"].startswith("python")
        )
        there_.kill()
        assert not elsewhere.is_lost(process)
        assert process.returncode == 128 + signal.SIGKILL


def test_a_machine_that_stays_away_is_told_and_not_remembered_as_a_failure(
    job: Job, lease: DeviceLock, there: Machine
) -> None:
    there.stop()
    try:
        with pytest.raises(ValueError, match=f"measure_on={there.address}: no connection .*Connection refused") as told:
            measure_apart(job, lease)
        assert told.value.__cause__ is not None  # the store caches plain ones alone
        with pytest.raises(ValueError, match=f"measure_on={there.address}: no connection .* log in once by hand"):
            check_elsewhere(there.address)
    finally:
        there.start()
    assert ask(there.address).name == name_of(there)


def test_a_file_that_cannot_be_opened_there_is_told(job: Job, lease: DeviceLock) -> None:
    job.candidate.onnx.write_bytes(b"no model")
    with pytest.raises(BrokenRoomError, match=r"with code 1: .*\.onnx"):
        measure_apart(job, lease)


def test_what_the_machine_lacks_is_one_line_before_anything_is_trained(
    there: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(command: Callable[[list[str]], int] = candidate) -> str:
        words = ["--dataset", "digits", "--out", str(tmp_path), "--data-dir", str(tmp_path)]
        with pytest.raises(SystemExit) as end:
            command([*words, "--measure-on", there.address])
        said = capsys.readouterr().err
        assert (end.value.code, said.count("\n")) == (2, 1)
        assert f"--measure-on {there.address}: " in said
        assert not (tmp_path / "store").exists()
        return said

    there.be_unknown()
    assert "no connection (Host key verification failed.)" in told()
    assert "no connection (Host key verification failed.)" in told(sweep)
    there.be_known()
    try:
        there.install("numpy")
        assert (
            "its python3 has no onnxruntime; it is looked for in ~/.cache/compression-sweeps/venv first: make" in told()
        )
        (there.cache / "venv").rename(there.cache / "gone")
        assert "it has no python3; " in told()
    finally:
        there.install("numpy", "onnxruntime")


def test_a_python_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "LEAST", (4, 0))
    have = ".".join(map(str, sys.version_info[:2]))
    assert receiver._find_lacking(["numpy"]) == f"its python3 is {have}, and 4.0 is needed"


def test_measurements_are_asked_for_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is of the machine there: trainings here do not pause."""
    seen: list[Job] = []

    def measure(job: Job, lock: DeviceLock) -> None:
        seen.append(job)
        with node(tmp_path).device_lock().shared(), lock.alone():  # deadlocks if they are one
            pass

    monkeypatch.setattr(beside_teacher, "measure_apart", measure)
    config = MeasureConfig(measure_on="ssh://pi")
    beside_teacher.time_beside(config, tmp_path / "model.onnx", linear_file(tmp_path), node(tmp_path))
    assert [job.address for job in seen] == ["ssh://pi"]
