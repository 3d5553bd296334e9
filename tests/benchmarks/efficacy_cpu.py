"""CPU-seconds of a process and all that it starts."""

import os
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

POLL_S = 0.5


class Meter:
    """User and system time of a process and its descendants, also of those that end or lose their parent."""

    def __init__(self, pid: int | None = None) -> None:
        self._root = psutil.Process(pid or os.getpid())
        self._seen: dict[psutil.Process, float] = {}
        self._most = 0.0

    def seconds(self) -> float:
        """CPU-seconds until now; what lived and ended between two calls counts if its parent waited for it."""
        reaped = 0.0
        try:
            found = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            found = []
        for process in {*self._seen, *found}:
            try:
                used = process.cpu_times()
            except psutil.Error:
                continue
            self._seen[process] = used.user + used.system
            if process in found:
                reaped += used.user + used.system + used.children_user + used.children_system
        self._most = max(self._most, reaped, sum(self._seen.values()))
        return self._most


def metered(words: Sequence[str], log: Path, environment: dict[str, str]) -> tuple[int, float, float]:
    """Run a command, its output in LOG; returns exit code, CPU-seconds and seconds."""
    started, before = time.monotonic(), _waited_for()
    with log.open("a") as output:
        child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment)
        meter = Meter(child.pid)
        try:
            while child.poll() is None:
                meter.seconds()
                time.sleep(POLL_S)
        except BaseException:  # including Ctrl-C: the command must not go on alone
            child.terminate()
            child.wait()
            raise
    # the last look may have been half a second before the end; what was waited for is known to the system
    return child.returncode, max(meter.seconds(), _waited_for() - before), time.monotonic() - started


def _waited_for() -> float:
    """CPU-seconds of this process's children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
