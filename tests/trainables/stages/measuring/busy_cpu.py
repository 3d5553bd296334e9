"""A process that computes on one CPU, to be measured beside."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

linux = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="who waited for a CPU is read from /proc/self/schedstat"
)


@contextmanager
def busy(core: int) -> Iterator[int]:
    """A process that computes on one CPU without end."""
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def bound_to(core: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
