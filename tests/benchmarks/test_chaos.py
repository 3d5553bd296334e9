"""The short form of `chaos.py`: five kills in small sweeps over two nodes."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1000)]
SCRIPT = Path(__file__).with_name("chaos.py")


def test_kill_9_of_trials_a_node_the_driver_and_the_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    short = ["--kills", "5", "--seed", "0", "--trials", "4", "--longest-s", "6", "--out", str(tmp_path / "x")]
    done = subprocess.run([sys.executable, str(SCRIPT), *short], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 kills" in done.stdout
    assert " 0 faults" in done.stdout
