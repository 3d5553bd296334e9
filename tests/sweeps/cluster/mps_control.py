"""A program of the name of NVIDIA's daemon control, for machines without one."""

import os
from pathlib import Path

import pytest

from sweeps.cluster.mps import CONTROL


def fake_control(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a stand-in writes down how it is called; it starts nothing if `folder`/broken exists."""
    log, script = folder / "calls", folder / CONTROL
    script.write_text(
        f"""#!/bin/sh
if [ "$1" = -d ]; then
    echo "start $CUDA_MPS_PIPE_DIRECTORY" >>{log}
    echo "no device" >&2
    test ! -e {folder}/broken
    exit
fi
read word
echo $word $CUDA_MPS_PIPE_DIRECTORY >>{log}
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return log
