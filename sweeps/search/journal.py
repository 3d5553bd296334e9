"""The file that Optuna's study lives in, as safe against kill -9 as the kernel can make it."""

import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileOpenLock

from sweeps.search.optuna_private import Forward
from trainables.locks import open_locked

TAIL_BYTES = 65536
"""Read at once from the end of a file, in search of its last whole line."""


class KernelLock(JournalFileOpenLock):
    """Held by an open file, so that it goes with its process; Optuna's own makes the next driver wait for 30 s."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._descriptor = path, -1

    def acquire(self) -> bool:
        """Wait for the lock, and have it."""
        self._descriptor = open_locked(self._path)
        return True

    def release(self) -> None:
        """Let the next one in."""
        os.close(self._descriptor)


def open_journal(path: Path) -> JournalStorage:
    """The storage in a sweep's journal file; the caller holds the sweep's lock."""
    drop_half_line(path)
    return JournalStorage(Forward(str(path), lock_obj=KernelLock(path.with_name(f".{path.name}.lock"))))


def drop_half_line(path: Path) -> None:
    """Take away what a driver that was killed, or whose disk was full, could not write to its end.

    Optuna reads over such a last line, but what it appends to it could never be read.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - TAIL_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            end = start
        file.truncate(0)
