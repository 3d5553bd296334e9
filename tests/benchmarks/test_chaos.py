"""The short form of `chaos.py`: a trial, a node and the driver are killed once each in a sweep over two raylets."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SCRIPT = Path(__file__).with_name("chaos.py")


def test_kill_9_of_a_trial_a_node_and_the_driver_loses_and_doubles_nothing(tmp_path: Path) -> None:
    short = ["--kills", "3", "--seed", "0", "--trials", "4", "--longest-s", "6", "--out", str(tmp_path / "x")]
    done = subprocess.run([sys.executable, str(SCRIPT), *short], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 kills (1 trial, 1 raylet, 1 driver, 0 server), 1 sweeps, 4 trials, 0 faults" in done.stdout
