"""The short form of `chaos.py`: one kill of every kind in small sweeps over two nodes and a local Ray."""

import subprocess
import sys
from pathlib import Path

import pytest
from chaos_kills import SHARES, possible
from chaos_nodes import may_make_nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).with_name("chaos.py")


def test_kills_of_every_kind_lose_and_double_nothing(tmp_path: Path) -> None:
    # without root and iproute2 there is no node that can be killed apart
    kinds = [kind for kind in SHARES if may_make_nodes() or possible(kind, local=True)]
    short = ["--kills", str(len(kinds)), "--kills-a-round", "5", "--trials", "3", "--longest-s", "6"]
    words = [sys.executable, str(SCRIPT), *short, "--seed", "0", "--out", str(tmp_path / "x")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(kinds)} of {len(kinds)} kills" in done.stdout
    assert all(f"1 {kind}" in done.stdout for kind in kinds)
    assert " 0 faults" in done.stdout
