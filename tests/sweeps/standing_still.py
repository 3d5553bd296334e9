"""Counts the CPU time that the processes of a sweep use while one of its trials measures (Linux)."""

import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.locks import is_locked

POLL_S, SAMPLE_S = 0.005, 0.05
PROC = Path("/proc")


def used_while_measuring(sweep: subprocess.Popen[Any], room: Path, *, timeout_s: float) -> dict[str, Any]:
    """Watch a sweep until it ends; returns how many measurements were seen, their seconds, and the cores used by whom.

    Args:
        sweep: its driver.
        room: the file that a trial locks exclusively while it measures.
    """
    used: Counter[str] = Counter()
    seconds, measurements, until = 0.0, 0, time.monotonic() + timeout_s
    while sweep.poll() is None:
        if time.monotonic() > until:
            sweep.kill()
            raise TimeoutError(f"the sweep has not ended after {timeout_s:.0f} s")
        if not is_locked(room):
            time.sleep(POLL_S)
            continue
        first, before = time.monotonic(), _cpu_seconds(sweep.pid)
        last, after = first, before
        while True:
            time.sleep(SAMPLE_S)
            at, now = time.monotonic(), _cpu_seconds(sweep.pid)
            if not is_locked(room):  # what was counted may belong to the time afterwards
                break
            last, after = at, now
        if last > first:
            measurements += 1
            seconds += last - first
            for process, total in after.items():
                used[process[1]] += total - before.get(process, 0.0)
    return {"measurements": measurements, "seconds": seconds, "cores": {k: v / seconds for k, v in used.items()}}


def _cpu_seconds(driver: int) -> Mapping[tuple[int, str], float]:
    """(pid, role) -> CPU seconds so far of the processes of a sweep, but for the one that measures."""
    found = {}
    for pid in _tree(driver):
        try:
            words = (PROC / f"{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            tasks = [(task / "schedstat").read_text().split() for task in (PROC / f"{pid}/task").iterdir()]
        except (OSError, ValueError):  # it, or one of its threads, has just ended
            continue
        if words and "stages.measuring.process" not in words:  # a process that has ended has none, and may be that one
            found[pid, _role(pid, driver, words)] = sum(int(task[0]) for task in tasks if task) / 1e9
    return found


def _role(pid: int, driver: int, words: str) -> str:
    if pid == driver:
        return "driver"
    if words.startswith("ray::"):
        return words.split()[0] if "Agent" in words else "trial"
    return Path(words.split()[0]).name


def _tree(root: int) -> list[int]:
    children = defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(entry.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found
