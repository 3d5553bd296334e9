"""Processes that measure for a plan end with the command, kill -9 included."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

CALLER = """
import sys
from pathlib import Path
from sweeps.planning.packing import together
from sweeps.planning.probe import probe
from sweeps.search.presets import quick
from trainables.stages.data import prepared

if __name__ == "__main__":
    base = quick().search.base.replace(batch_size=8, train_limit=100)
    config = quick().replace(base=base, data_dir=Path(sys.argv[1]), cpus=2)
    dataset = prepared.prepare(base.data, config.places.data_dir)
    if sys.argv[2] == "auto":
        together(config, 2, seconds=300)
    else:
        while True:
            probe(config, dataset, apart=True)
"""
STARTS_S, ENDS_S = 60, 40  # a probe that is still importing torch ends after that


def computing(process: psutil.Process) -> bool:
    """Whether it has used the CPU for 4 s, as one has that imports torch, or trains already."""
    return sum(process.cpu_times()[:2]) > 4


@pytest.mark.slow
@pytest.mark.parametrize("what", ["auto", "plan"])
def test_probes_end_when_the_command_is_killed(tmp_path: Path, what: str) -> None:
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    caller = subprocess.Popen([sys.executable, str(script), str(tmp_path), what], env=os.environ | {"PYTHONPATH": path})
    try:
        until = time.monotonic() + STARTS_S
        probes: list[psutil.Process] = []
        while not probes or not all(map(computing, probes)):
            assert caller.poll() is None and time.monotonic() < until
            time.sleep(0.1)
            probes = psutil.Process(caller.pid).children(recursive=True)
            probes = [probe for probe in probes if "resource_tracker" not in " ".join(probe.cmdline())]
        assert len(probes) == (2 if what == "auto" else 1)
    finally:
        caller.kill()
        caller.wait()
    _, left = psutil.wait_procs(probes, timeout=ENDS_S)
    try:
        assert not left
    finally:
        for probe in left:
            probe.kill()
