import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.cluster import mps_nodes
from sweeps.cluster.mps import CONTROL, MpsError, mps
from sweeps.search.config import SweepConfig
from tests.sweeps.cluster.mps_control import fake_control


def test_the_daemon_is_ours_and_stopped_even_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_control(tmp_path, monkeypatch)
    with pytest.raises(KeyError, match="interrupted"), mps(True):
        pipe = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipe).is_dir()
        raise KeyError("interrupted")
    assert log.read_text().splitlines() == [f"start {pipe}", f"quit {pipe}"]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert not Path(pipe).exists()


def test_kill_9_of_who_asked_for_it_ends_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_control(tmp_path, monkeypatch)
    script = "import time, sweeps.cluster.mps as m\nwith m.mps(True):\n    print('on', flush=True)\n    time.sleep(60)"
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "on\n"
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    until = time.monotonic() + 20
    while len(lines := log.read_text().splitlines()) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert [line.split()[0] for line in lines] == ["start", "quit"]
    pipe = Path(lines[0].split()[1])
    while pipe.parent.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not pipe.parent.exists()


def test_a_daemon_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_control(tmp_path, monkeypatch)
    (tmp_path / "broken").touch()
    with pytest.raises(MpsError, match=f"mps=True: {CONTROL} does not start: no device"), mps(True):
        pass
    # one that starts after all is not left behind
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["start", "quit"]


def test_without_the_daemon_it_is_one_line_and_off_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with mps(False):
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    with pytest.raises(MpsError, match=f"mps=True: {CONTROL} is not installed"), mps(True):
        pass


def test_a_later_node_without_it_is_said_and_the_sweep_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()

    def serve(folder: Path, keepers: dict[str, Any]) -> None:
        over.set()
        raise MpsError("node 10.0.0.9: no device")

    monkeypatch.setattr(mps_nodes, "_serve", serve)
    monkeypatch.setattr(mps_nodes, "LOOK_S", 0.01)
    mps_nodes._watch(Path("mps"), {}, over)
    assert "node 10.0.0.9: no device (its trials take turns on a GPU)" in caplog.text


def test_mps_without_gpus_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mps=True needs GPUs, but got gpus=0"):
        SweepConfig(name="x").replace(mps=True)
