"""A sweep that is given a time, as a user starts it."""

import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import kd_prune
from trainables.layout import TRIALS, recorded
from trainables.records.trial import read_trial

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(500)]
SMALL = ["--preset", "quick", "--train-limit", "300", "--teacher-epochs", "1", "--latency-seconds", "0.3"]


def test_a_short_budget_buys_deep_cuts_in_all_files_and_goes_on_until_it_is_spent(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(kd_prune.__file__)), *SMALL, "--budget", "150s", "--cpus", "1", "--name", "b"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A budget of 2 min: about " in done.stdout
    records = [read_trial(folder) for folder in recorded(tmp_path / "runs" / "sweeps" / "b" / TRIALS)]
    records.sort(key=lambda record: record.started)
    finished = [record for record in records if record.status == "finished"]
    networks = [(record.params["pruning_ratio"], record.params["alpha"]) for record in finished]
    assert networks[:4] == [(0.0, 0.7), (0.0, 0.7), (0.7, 0.0), (0.7, 0.0)], "as it is, then its first cut"
    assert [{record.params["precision"] for record in finished[first : first + 2]} for first in (0, 2)] == [
        {"fp32", "int8_ptq"},
        {"fp32", "int8_ptq"},
    ]
    assert len(finished[2].curve) == finished[2].params["recovery_epochs"] > 8, "of the time of two uncut ones"
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, "a budget that is spent may be given again: " + again.stderr
    assert len(recorded(tmp_path / "runs" / "sweeps" / "b" / TRIALS)) > len(records)
