"""NVIDIA's Multi-Process Service for the length of a sweep: kernels of several trials run on one GPU at once."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
STOP_S = 30.0


class MpsError(RuntimeError):
    """The service cannot be had; the message says why."""


@contextmanager
def mps(on: bool) -> Generator[None, None, None]:
    """With `on`, a daemon of our own for every GPU process started meanwhile; it is stopped at the end in any case.

    Its pipe and log lie in a folder of their own, so that a daemon which somebody else runs is neither used nor
    stopped. Ray's workers inherit the address from the environment: enter before Ray starts.

    Raises:
        MpsError: if the daemon is not installed or does not start.
    """
    if not on:
        yield
        return
    control = shutil.which(CONTROL)
    if control is None:
        raise MpsError(f"mps=True: {CONTROL} is not installed; it comes with NVIDIA's driver. Leave --mps out.")
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as name:
        address = {
            "CUDA_MPS_PIPE_DIRECTORY": str(Path(name) / "pipe"),
            "CUDA_MPS_LOG_DIRECTORY": str(Path(name) / "log"),
        }
        for folder in address.values():
            Path(folder).mkdir()
        before = {key: os.environ.get(key) for key in address}
        os.environ |= address
        try:
            _start(control)
            try:
                yield
            finally:
                _stop(control)
        finally:
            for key, value in before.items():
                os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def _start(control: str) -> None:
    result = subprocess.run([control, "-d"], capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines() or [f"exit code {result.returncode}"]
        raise MpsError(f"mps=True: {CONTROL} does not start: {said[-1]}")


def _stop(control: str) -> None:
    """`quit` waits for the last client; one that hangs is not waited for longer than `STOP_S`."""
    try:
        subprocess.run([control], input="quit\n", text=True, capture_output=True, timeout=STOP_S, check=False)
    except subprocess.TimeoutExpired:
        subprocess.run([control], input="quit -t 1\n", text=True, capture_output=True, check=False)
