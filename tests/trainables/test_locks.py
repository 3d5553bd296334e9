import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from trainables.locks import DeviceLock, check_locks, file_lock, is_locked, without_shares

HOLDER = """
import sys, time
from pathlib import Path
from trainables.locks import DeviceLock
with getattr(DeviceLock(Path(sys.argv[1]), "cuda:0"), sys.argv[2])():
    print("held", flush=True)
    time.sleep(60)
"""

STEPPER = """
import sys, time
from pathlib import Path
from trainables.locks import DeviceLock
lease = DeviceLock(Path(sys.argv[1]), "cuda:0")
print("stepping", flush=True)
while True:
    with lease.shared():
        time.sleep(0.005)
"""


@contextmanager
def _process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def _enters(lease: DeviceLock, mode: str) -> threading.Event:
    """Set once a thread is in; the thread leaves at once."""
    entered = threading.Event()

    def enter() -> None:
        with getattr(lease, mode)():
            entered.set()

    threading.Thread(target=enter, daemon=True).start()
    return entered


@pytest.mark.parametrize(
    ("held", "wanted", "together"),
    [("shared", "shared", True), ("shared", "alone", False), ("alone", "shared", False), ("alone", "alone", False)],
)
def test_who_may_be_in_with_whom(tmp_path: Path, held: str, wanted: str, together: bool) -> None:
    lease = DeviceLock(tmp_path, "cpu")
    with getattr(lease, held)():
        entered = _enters(lease, wanted)
        assert entered.wait(5 if together else 0.2) is together
    assert entered.wait(5)


def test_devices_do_not_exclude_each_other(tmp_path: Path) -> None:
    with DeviceLock(tmp_path, "cuda:0").alone():
        assert _enters(DeviceLock(tmp_path, "cuda:1"), "alone").wait(5)


@pytest.mark.parametrize(
    ("held", "wanted", "together"),
    [
        ("gpu-0 alone", "gpu-1 shared", True),  # trials on other GPUs go on
        ("gpu-0 alone", "cpu shared", True),  # and those on the CPU
        ("gpu-0 alone", "gpu-1 alone", True),
        ("gpu-0 alone", "gpu-0 shared", False),
        ("gpu-0 shared", "gpu-0 alone", False),
        ("gpu-0 shared", "gpu-1 shared", True),
        ("gpu-0 shared", "cpu alone", False),  # a latency on the CPU pauses everything, whatever trains where
        ("cpu alone", "gpu-0 shared", False),
        ("cpu alone", "gpu-0 alone", False),
        ("gpu-0 alone", "cpu alone", False),
        ("gpu-0 whole", "gpu-1 shared", False),
        ("gpu-1 shared", "gpu-0 whole", False),
        ("gpu-0 whole", "cpu shared", False),
    ],
)
def test_a_measurement_on_a_gpu_pauses_the_trials_there_and_one_on_the_cpu_all(
    tmp_path: Path, held: str, wanted: str, together: bool
) -> None:
    def enter(words: str) -> AbstractContextManager[None]:
        device, mode = words.split()
        node = DeviceLock(tmp_path, "cpu")
        lock = node if device == "cpu" else DeviceLock(tmp_path, device, node=node)
        return lock.alone(whole_node=True) if mode == "whole" else getattr(lock, mode)()

    entered = threading.Event()

    def want() -> None:
        with enter(wanted):
            entered.set()

    with enter(held):
        threading.Thread(target=want, daemon=True).start()
        assert entered.wait(5 if together else 0.1) is together
    assert entered.wait(5)


def test_measurements_and_steps_on_two_gpus_and_the_cpu_never_wait_for_each_other_in_a_circle(tmp_path: Path) -> None:
    done: list[str] = []

    def work(device: str, mode: str) -> None:
        node = DeviceLock(tmp_path, "cpu")
        lock = node if device == "cpu" else DeviceLock(tmp_path, device, node=node)
        for number in range(20):
            with lock.shared() if mode == "shared" else lock.alone(whole_node=number % 2 == 1):
                time.sleep(0.0005)
        done.append(f"{device} {mode}")

    names = [(device, mode) for device in ("cpu", "gpu-0", "gpu-1") for mode in ("shared", "alone")]
    threads = [threading.Thread(target=work, args=words, daemon=True) for words in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == len(names), "the others wait for each other"


@pytest.mark.parametrize("held", ["shared", "alone"])
def test_kill_9_of_a_holder_frees_the_lease(tmp_path: Path, held: str) -> None:
    with _process(HOLDER, str(tmp_path), held) as holder:
        entered = _enters(DeviceLock(tmp_path, "cuda:0"), "alone")
        assert not entered.wait(0.2)
        os.kill(holder.pid, signal.SIGKILL)
        assert entered.wait(5)


def test_a_waiting_measurer_keeps_new_trials_out(tmp_path: Path) -> None:
    lease = DeviceLock(tmp_path, "cpu")
    with lease.shared():
        measurer = _enters(lease, "alone")
        assert not measurer.wait(0.2)
        trial = _enters(lease, "shared")
        assert not trial.wait(0.2)
    assert measurer.wait(5)
    assert trial.wait(5)


def test_measurer_is_not_starved_by_overlapping_trials(tmp_path: Path) -> None:
    lease = DeviceLock(tmp_path, "cuda:0")
    with _process(STEPPER, str(tmp_path)), _process(STEPPER, str(tmp_path)), _process(STEPPER, str(tmp_path)):
        for _ in range(5):
            start = time.perf_counter()
            with lease.alone():
                assert time.perf_counter() - start < 2
                time.sleep(0.02)


def test_a_trial_waits_for_what_it_has_queued_before_it_lets_a_measurer_in(tmp_path: Path) -> None:
    order: list[str] = []
    lease = DeviceLock(tmp_path, "cpu", drain=lambda: order.append("drained"))
    with lease.shared():
        pass
    assert not order  # nobody waits: the host may run ahead of its device

    def measure() -> None:
        with DeviceLock(tmp_path, "cpu").alone():
            order.append("measured")

    measurer = threading.Thread(target=measure, daemon=True)
    with lease.shared():
        measurer.start()
        until = time.monotonic() + 5
        while not is_locked(lease._gate) and time.monotonic() < until:
            time.sleep(0.01)
    measurer.join(5)
    assert order == ["drained", "measured"]


def test_an_exception_inside_lets_go(tmp_path: Path) -> None:
    lease = DeviceLock(tmp_path, "cpu")
    for mode in ("shared", "alone"):
        with pytest.raises(RuntimeError, match="inside"), getattr(lease, mode)():
            raise RuntimeError("inside")
    assert _enters(lease, "alone").wait(5)


def _leave_at_once(lease: DeviceLock) -> None:
    with lease.shared():
        pass


def test_a_forked_child_does_not_let_go_for_its_parent(tmp_path: Path) -> None:
    lease = DeviceLock(tmp_path, "cpu")
    with lease.shared():
        child = multiprocessing.get_context("fork").Process(target=_leave_at_once, args=(lease,))
        child.start()
        child.join(10)
        assert child.exitcode == 0
        assert not _enters(lease, "alone").wait(0.2)


def test_shared_costs_tens_of_microseconds(tmp_path: Path) -> None:
    lease = DeviceLock(tmp_path, "cpu")
    best = min(_seconds(lease) for _ in range(200))
    assert best < 200e-6


def _seconds(lease: DeviceLock) -> float:
    start = time.perf_counter()
    with lease.shared():
        pass
    return time.perf_counter() - start


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre is where it is mounted without `-o flock`."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="its file system has no file locks"):
        check_locks(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_trial_measures_within_its_own_step(tmp_path: Path) -> None:
    lease = DeviceLock(tmp_path, "cpu")
    with lease.shared(), lease.alone():
        assert is_locked(tmp_path / "cpu.room")
        assert not _enters(lease, "shared").wait(0.2)


def test_a_step_within_a_step_lets_a_waiting_measurement_go_first(tmp_path: Path) -> None:
    lease = DeviceLock(tmp_path, "cpu")
    with lease.shared():
        measurer = _enters(lease, "alone")
        assert not measurer.wait(0.2)
        with DeviceLock(tmp_path, "cpu").shared():  # objects of one device are one lock
            assert measurer.is_set()
            assert not _enters(lease, "alone").wait(0.2)  # the thread shares it again


def test_who_waits_for_a_file_keeps_nobody_from_measuring(tmp_path: Path) -> None:
    """A trial waits for a result that another one computes, and that has to measure for it."""
    lease, file = DeviceLock(tmp_path, "cpu"), tmp_path / "result.lock"
    entered = threading.Event()

    def compute() -> None:
        with file_lock(file):
            entered.set()
            time.sleep(0.2)  # until the other one waits
            with lease.alone():
                pass

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    assert entered.wait(5)
    with lease.shared(), file_lock(file):
        thread.join(5)
        assert not thread.is_alive()
        assert not _enters(lease, "alone").wait(0.2)


def test_an_interrupted_wait_leaves_no_share_behind(tmp_path: Path) -> None:
    lease = DeviceLock(tmp_path, "cpu")
    with pytest.raises(KeyboardInterrupt), lease.shared(), without_shares():
        raise KeyboardInterrupt
    assert _enters(lease, "alone").wait(5)
    with lease.shared():
        assert not _enters(lease, "alone").wait(0.2)
