"""NVIDIA's Multi-Process Service for the length of a sweep: kernels of several trials run on one GPU at once."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
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
            try:
                _start(control)
                yield
            finally:
                _stop(control)  # also one that started too late
        finally:
            for key, value in before.items():
                os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def _start(control: str) -> None:
    """Start the daemon, for all GPUs: with CUDA_VISIBLE_DEVICES it would number them anew, and clients would not."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    with tempfile.TemporaryFile("w+") as said:  # a pipe would be open as long as the daemon is
        try:
            run = subprocess.run(
                [control, "-d"], stdout=said, stderr=said, env=environment, timeout=STOP_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise MpsError(f"mps=True: {CONTROL} did not start within {STOP_S:.0f} s.") from None
        said.seek(0)
        lines = said.read().strip().splitlines() or [f"exit code {run.returncode}"]
    if run.returncode:
        raise MpsError(f"mps=True: {CONTROL} does not start: {lines[-1]}")


def _stop(control: str) -> None:
    """`quit` waits for the last client; one that hangs is not waited for longer than `STOP_S`."""
    try:
        subprocess.run([control], input="quit\n", text=True, capture_output=True, timeout=STOP_S, check=False)
    except subprocess.TimeoutExpired:
        with suppress(subprocess.TimeoutExpired):
            subprocess.run([control], input="quit -t 1\n", text=True, capture_output=True, timeout=STOP_S, check=False)
