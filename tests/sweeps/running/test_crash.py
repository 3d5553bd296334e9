"""kill -9 in the middle of a student, of the trial's process and of the driver: no stored epoch is trained again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.sweeps.test_kd_prune import command, photos

__all__ = ["photos"]  # the fixture of the module that this one goes on from

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(690)]  # CI ends what takes 700 s

EPOCHS = 10


def curve_so_far(out: Path) -> list[dict]:
    """The epochs of the student under way; their `seconds` are as good as fingerprints."""
    for state in out.glob("store/student/*.partial/state.pt"):
        try:
            return list(json.loads(torch.load(state, weights_only=True)["curve"]))
        except (OSError, RuntimeError, EOFError):
            return []  # replaced while it was read
    return []


def wait_for(done: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def trial_processes(driver: int) -> list[int]:
    """Workers that run a trainable of this driver's own Ray."""
    session = {pid for pid in all_pids() if ancestors(pid) & {driver}}
    return [pid for pid in session if b"ray::" in cmdline(pid) and b".train" in cmdline(pid)]


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.add(pid)
    return found


def test_kill_9_of_a_trial_and_of_the_driver_repeats_no_stored_epoch(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    words = command(photos, out, "--trials", "1", "--name", "killed", "--student-epochs", str(EPOCHS))
    words += ["--student-model", "alexnet_small"]
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(curve_so_far(out)) >= 2)
    before_first = curve_so_far(out)
    victims = trial_processes(driver.pid)
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(curve_so_far(out)) >= len(before_first) + 2)
    before_second = curve_so_far(out)
    driver.kill()
    driver.wait()
    assert before_second[: len(before_first)] == before_first
    assert len(before_second) < EPOCHS, "the student was too quick to be killed in the middle"

    traced = os.environ | {"PYTHONFAULTHANDLER": "1"}
    again = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=traced)
    try:
        said, _ = again.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        again.send_signal(signal.SIGABRT)  # it says where it hangs
        said, _ = again.communicate()
    assert again.returncode == 0, said
    (record,) = out.glob("store/student/*/record.json")
    curve = json.loads(record.read_text())["curve"]
    assert [epoch["epoch"] for epoch in curve] == list(range(1, EPOCHS + 1))
    assert curve[: len(before_second)] == before_second
    assert len(list(out.glob("sweeps/killed/trials/*/record.json"))) == 1
