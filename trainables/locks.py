"""Kernel file locks of one node: a file held by one process, and a device lent to a measurer (no torch).

A lock belongs to an open file: the kernel frees it when its process dies, whatever it dies of.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the file alone among the processes and threads that see it; waits for others to let go."""
    descriptor = _lock_current(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def file_lock_if_free(path: Path) -> Iterator[bool]:
    """As `file_lock`, but yields False at once where another process holds the file."""
    try:
        descriptor = _lock_current(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the file alone; never creates it."""
    if not path.exists():
        return False
    try:
        os.close(open_locked(path, fcntl.LOCK_SH | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    return False


def open_locked(path: Path, mode: int = fcntl.LOCK_EX) -> int:
    """A descriptor that holds the lock until it is closed; waits for it, unless LOCK_NB is in the mode.

    Raises:
        BlockingIOError: with LOCK_NB, where another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, mode)
    except BaseException:  # also Ctrl-C while it waits: the file is closed and the error goes on
        os.close(descriptor)
        raise
    return descriptor


def _lock_current(path: Path, mode: int) -> int:
    """A lock on the file that lies at `path` when the lock is had: a collector may remove the one we waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = open_locked(path, mode)
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


class DeviceLock:
    """One device of this node: training steps share it, and a measurer has it alone.

    Processes that name the same folder and device exclude each other. Two files make a turnstile: a step passes the
    gate and then holds the room, both shared; a measurer closes the gate, so that no step enters any more, and waits
    for the room to empty. (`filelock.ReadWriteLock` cannot say that a measurer waits, which draining a GPU needs.)

    The folder must be on a local disk. Nothing is held between uses, so that threads and forked children may use one
    object. It is not re-entrant: `alone` inside `shared` waits for itself for ever.

    Args:
        drain: called when a step ends and a measurer waits; returns when the device has done what was queued, as a GPU
            goes on after the step that queued it. A measurer that comes between two steps is not waited for.
    """

    def __init__(self, folder: Path, device: str, *, drain: Callable[[], None] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", device)
        self._gate = folder / f"{name}.gate"
        self._room = folder / f"{name}.room"
        self._drain = drain

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Held together with other trials, for one training step; waits while a measurer is in or queued."""
        # the gate is kept until the room is entered: who holds it alone knows that nobody stands between the two
        gate = open_locked(self._gate, fcntl.LOCK_SH)
        try:
            room = open_locked(self._room, fcntl.LOCK_SH)
        finally:
            os.close(gate)
        try:
            yield
            if self._drain is not None and is_locked(self._gate):  # a measurer has closed the gate
                self._drain()
        finally:
            os.close(room)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held by one measurer; waits until every running step has ended, and keeps new ones out meanwhile."""
        gate = open_locked(self._gate)
        try:
            room = open_locked(self._room)
            try:
                yield
            finally:
                os.close(room)
        finally:
            os.close(gate)
