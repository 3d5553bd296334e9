import os
from pathlib import Path

import pytest

from sweeps.config import SweepConfig
from sweeps.mps import CONTROL, MpsError, mps


def control(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0) -> Path:
    """A program of the daemon's name that writes down how it is called."""
    log = folder / "calls"
    script = folder / CONTROL
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = -d ]; then echo "start $CUDA_MPS_PIPE_DIRECTORY" >>{log}; echo "no device" >&2;'
        f" exit {code}; fi\nread word; echo $word $CUDA_MPS_PIPE_DIRECTORY >>{log}\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return log


def test_the_daemon_is_ours_and_stopped_even_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = control(tmp_path, monkeypatch)
    with pytest.raises(KeyError, match="interrupted"), mps(True):
        pipe = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipe).is_dir()
        raise KeyError("interrupted")
    assert log.read_text().splitlines() == [f"start {pipe}", f"quit {pipe}"]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert not Path(pipe).exists()


def test_a_daemon_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = control(tmp_path, monkeypatch, code=1)
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


def test_mps_without_gpus_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mps=True needs GPUs, but got gpus=0"):
        SweepConfig(name="x", mps=True)
