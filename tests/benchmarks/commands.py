"""What benchmarks of whole commands share: run one to its end, and the machine on one line."""

import os
import platform
import signal
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from trainables.stages.models.devices.processor import processor_name

STOP_S = 120.0
"""What a command gets to end in order."""


def attended(words: Sequence[str], output: Any, max_seconds: float | None = None) -> int:
    """The exit code of a command; on Ctrl-C, and after `max_seconds`, it gets one Ctrl-C of its own and time to end."""
    child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return child.wait(timeout=max_seconds)
    except subprocess.TimeoutExpired:
        return _interrupted(child)
    except KeyboardInterrupt:
        _interrupted(child)
        raise


def _interrupted(child: subprocess.Popen[bytes]) -> int:
    child.send_signal(signal.SIGINT)
    try:
        return child.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def hardware() -> str:
    """Machine and versions on one line, for the log."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ("torch", "torchvision", "torch-pruning", "onnx", "ray", "optuna", "mlflow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    load = f"load {os.getloadavg()[0]:.1f}"
    return (
        f"{processor_name()}, {cores} cores, {memory:.0f} GiB, {load}, Python {platform.python_version()}, {versions}"
    )
