"""A device shared by training steps and lent alone to a measurer, by kernel file locks (no torch).

Two files make a turnstile. A trial passes the gate (shared, at once let go) and then holds the room (shared). A
measurer closes the gate first, so that nobody new enters, and then waits for the room to empty. Locks belong to an
open file: the kernel frees them when their process dies, whatever it dies of.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class DeviceLease:
    """The lease of one device of this node; processes that name the same folder and device exclude each other.

    The folder must be on a local disk. Holds nothing between uses: threads and forked children may share one.
    A lease is not re-entrant: `alone` inside `shared` waits for itself for ever.

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
        """Held together with other trials, for one training step at a time; waits while a measurer is in or queued."""
        # the gate is kept until the room is entered: who holds it alone knows that nobody stands between the two
        with _locked(self._gate, fcntl.LOCK_SH):
            room = _lock(self._room, fcntl.LOCK_SH)
        try:
            yield
            if self._drain is not None and self._wanted():
                self._drain()
        finally:
            os.close(room)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held by one measurer; waits until every step under way has ended, and keeps new ones out meanwhile."""
        with _locked(self._gate, fcntl.LOCK_EX), _locked(self._room, fcntl.LOCK_EX):
            yield

    def _wanted(self) -> bool:
        """Whether a measurer has closed the gate."""
        try:
            os.close(_lock(self._gate, fcntl.LOCK_SH | fcntl.LOCK_NB))
        except BlockingIOError:
            return True
        return False


def _lock(path: Path, mode: int) -> int:
    """An open file that holds the lock until it is closed; waits for it, unless LOCK_NB is in the mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, mode)
    except BaseException:  # also Ctrl-C while it waits: the file is closed and the error goes on
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked(path: Path, mode: int) -> Iterator[None]:
    descriptor = _lock(path, mode)
    try:
        yield
    finally:
        os.close(descriptor)
