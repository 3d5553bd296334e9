"""Kernel file locks on one node: exclusive locks on files, and reader-writer locks on devices (no torch).

A lock belongs to an open file, so the kernel releases it when the process dies for any reason. Child processes end with
their caller by the same rule: the kernel closes its end of their pipe.
"""

import errno
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from trainables.layout import LEASES

if sys.platform == "win32":
    raise ImportError("Linux or macOS is needed, whose kernels have these locks; on Windows install WSL.")
import fcntl

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # Lustre without `-o flock`, some NFS
LACKS_LOCKS = "its file system has no file locks"
NODE = "cpu"
"""The device that a whole node is: all trials compute with its CPU, whatever they train on."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, among all processes and threads; waits until it is free."""
    descriptor = _lock_current(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def file_lock_if_free(path: Path) -> Iterator[bool]:
    """Like `file_lock`, but yield False at once if the lock is taken."""
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
    """Whether a process holds an exclusive lock on the file; never creates the file."""
    if not path.exists():
        return False
    try:
        os.close(open_locked(path, fcntl.LOCK_SH | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    return False


def check_locks(folder: Path) -> None:
    """Try a lock on a temporary file in the folder.

    Raises:
        OSError: if the folder cannot be written, or has no locks.
    """
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        os.close(open_locked(Path(file.name)))


def open_locked(path: Path, mode: int = fcntl.LOCK_EX) -> int:
    """Lock a file and return a descriptor that holds the lock until it is closed; waits unless `mode` has LOCK_NB.

    Raises:
        BlockingIOError: with LOCK_NB, if the lock is taken.
        OSError: if the file system has no locks.
    """
    # O_CLOEXEC: a child process that inherited the descriptor would keep the lock
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, mode)
    except OSError as error:
        os.close(descriptor)
        if error.errno in NO_LOCKS:
            raise OSError(error.errno, f"{LACKS_LOCKS} ({error.strerror})", str(path)) from None
        raise
    except BaseException:  # including Ctrl-C while it waits: close the file, then propagate
        os.close(descriptor)
        raise
    return descriptor


def end_with_caller(descriptor: int = 0) -> None:
    """End this process as soon as the caller dies or closes its end of a pipe, whatever this process is doing then.

    Args:
        descriptor: the pipe, from which nobody reads any more: standard input, or `multiprocessing`'s sentinel.
    """

    def watch() -> None:
        os.read(descriptor, 1)
        os._exit(1)

    threading.Thread(target=watch, name="caller", daemon=True).start()


def _lock_current(path: Path, mode: int) -> int:
    """Lock the file that is at `path` once the lock is acquired: a collector may remove the one we waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            descriptor = open_locked(path, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if mode & fcntl.LOCK_NB:
                raise
            with without_shares():  # its holder may be about to measure
                descriptor = open_locked(path, mode)
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


@dataclass
class _Share:
    """A thread's share of a device."""

    gate: Path
    room: Path
    descriptor: int | None = None
    """Holds the room until it is closed."""

    def enter(self) -> None:
        """Take it; waits for measurements."""
        # keep the gate until the room is entered: then no step can be between the two when a measurement has the gate
        gate = open_locked(self.gate, fcntl.LOCK_SH)
        try:
            self.descriptor = open_locked(self.room, fcntl.LOCK_SH)
        finally:
            os.close(gate)

    def leave(self) -> None:
        """Give it up."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class _Thread(threading.local):
    """What this thread shares now: room -> share, in the order in which they were taken."""

    def __init__(self) -> None:
        self.shares: dict[Path, _Share] = {}


_thread = _Thread()


@contextmanager
def without_shares() -> Iterator[None]:
    """Give up all devices that this thread shares, for as long as it waits for others; then share them again."""
    given_up, _thread.shares = _thread.shares, {}
    for share in given_up.values():
        share.leave()
    try:
        yield
    finally:
        _thread.shares = given_up
        for share in given_up.values():
            share.enter()


def node_lock(out: Path) -> "DeviceLock":
    """The lock of this node among the sweeps in `out`: what computes shares it, a measurement has it alone."""
    return DeviceLock(out / LEASES, NODE)


class DeviceLock:
    """A reader-writer lock on one device of this node: what computes shares it, a measurement has it alone.

    Processes that use the same folder and device exclude each other. Two files form a turnstile: a step passes the gate
    and then holds the room, both with shared locks; a measurement closes the gate, so that no further step enters, and
    waits until the room is empty.

    A thread that shares a device may share it again within, which lets a measurement that waits go first, and may
    measure within: it gives up what it shares for that time, and whenever it waits for a `file_lock`, whose holder may
    be the one that wants to measure. The folder must be on a local disk.

    Args:
        drain: called when a step ends while a measurement waits; returns once the device has finished its queued work,
            because a GPU keeps running after the step that queued it. It is not called for a measurement that arrives
            between two steps.
        node: the lock of the node that a GPU is part of. A step on the GPU is one of the node's, too; a measurement on
            the GPU shares the node with steps on other GPUs, and a measurement on the node pauses all of them.
    """

    # `filelock.ReadWriteLock` cannot tell whether a measurement is waiting, which draining a GPU needs.

    def __init__(
        self, folder: Path, device: str, *, drain: Callable[[], None] | None = None, node: "DeviceLock | None" = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", device)
        self._gate = folder / f"{name}.gate"
        self._room = folder / f"{name}.room"
        self._drain, self._node = drain, node

    def file(self, ending: str) -> Path:
        """A file of this device, beside those of its lock."""
        return self._room.with_suffix(f".{ending}")

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Share the device with other trials for one training step; waits for running and queued measurements."""
        with self._node.shared() if self._node else nullcontext(), self._shared():  # everybody takes the node first
            yield

    @contextmanager
    def alone(self, *, whole_node: bool = False) -> Iterator[None]:
        """Hold the device for one measurement; waits until every running step has ended and keeps new ones out.

        Args:
            whole_node: hold the node of a GPU as well, so that nothing computes beside it.
        """
        if self._node is None:
            node: AbstractContextManager[None] = nullcontext()
        else:
            node = self._node.alone() if whole_node else self._node.shared()
        with without_shares(), node, self._alone():
            yield

    @contextmanager
    def _shared(self) -> Iterator[None]:
        if self._room in _thread.shares:
            self._let_measure()
            yield
            self._finish_queued()
            return
        share = _thread.shares[self._room] = _Share(self._gate, self._room)
        try:
            share.enter()
            yield
            self._finish_queued()
        finally:
            share.leave()
            _thread.shares.pop(self._room, None)

    def _finish_queued(self) -> None:
        """Wait for what the device has queued, if a measurement waits for it."""
        if self._drain is not None and is_locked(self._gate):
            self._drain()

    def _let_measure(self) -> None:
        """Let a measurement that waits for this device go first."""
        if is_locked(self._gate):
            with without_shares():
                pass

    @contextmanager
    def _alone(self) -> Iterator[None]:
        gate = open_locked(self._gate)
        try:
            room = open_locked(self._room)
            try:
                yield
            finally:
                os.close(room)
        finally:
            os.close(gate)
