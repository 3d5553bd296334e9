"""The short form of `chaos.py`: five kills in small sweeps over two nodes."""

import subprocess
import sys
from pathlib import Path

import pytest
from chaos_nodes import may_make_nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1000)]
SCRIPT = Path(__file__).with_name("chaos.py")


def test_kill_9_of_trials_a_node_the_driver_and_the_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    short = ["--kills", "5", "--seed", "0", "--trials", "4", "--longest-s", "6", "--out", str(tmp_path / "x")]
    done = subprocess.run([sys.executable, str(SCRIPT), *short], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    nodes = int(may_make_nodes())  # without root and iproute2 there is no node that can be killed apart
    assert f"5 of 5 kills (2 trial, {nodes} raylet, {2 - nodes} driver, 1 server)" in done.stdout
    assert " 0 faults" in done.stdout
