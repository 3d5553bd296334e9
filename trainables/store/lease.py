"""Leases between nodes: an object names who works on something (no torch, no Ray)."""

import json
import os
import socket
import threading
import time
import uuid

from trainables.store.objects import Objects


class Lease:
    """An object that names who works on something, and is rewritten while they do.

    A lease whose content has not changed for `stale_s` of the waiter's own clock is taken over, and at once one that is
    older than ten times that (clocks of nodes may differ by less), or whose owner was a process of this machine that
    has died.

    It saves work and is not a guard: two owners are possible for a short time. Where the file system has no exclusive
    creation, or two waiters take a stale lease over at once, whoever writes last within the settling time (0.25 s)
    owns it; a writer slower than that, or one that was cut off or suspended longer than `stale_s`, goes on until its
    next heartbeat (a quarter of `stale_s`) or `check`. So results must not rely on it: the store writes contents under
    their own digest and commits by one object, and two owners cost time, never a wrong result.
    """

    def __init__(self, objects: Objects, name: str, *, stale_s: float) -> None:
        self._objects, self._name, self._stale_s = objects, name, stale_s
        self._hurried = objects.hurried()  # a heartbeat that waits is none
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        self._settle_s = min(0.25, stale_s / 20)
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Own the lease and keep it fresh in a thread; waits for its owner to let go or fall silent."""
        seen, since = b"", time.monotonic()
        while True:
            held = self._objects.read(self._name)
            if held is None:
                claimed = self._objects.create(self._name, self._content())
            else:
                if held != seen:
                    seen, since = held, time.monotonic()
                claimed = self._stale(held, time.monotonic() - since)
                if claimed:
                    self._objects.write(self._name, self._content())
            if claimed:
                time.sleep(self._settle_s)
                if self._mine():
                    break
            else:
                time.sleep(min(2.0, self._stale_s / 10))
        self._thread = threading.Thread(target=self._keep, name=f"lease {self._name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise if somebody else has taken the lease over.

        Raises:
            ConnectionError: transient; the work belongs to another node now.
        """
        if self._lost.is_set():
            raise ConnectionError(f"lease {self._name} of {self._owner} went to another node; was this one cut off?")

    def release(self) -> None:
        """Let the next one in."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._stale_s)
        try:
            if not self._lost.is_set() and self._mine():
                self._hurried.delete([self._name])
        except OSError:  # the network is away: others find the lease stale
            return

    def _keep(self) -> None:
        fresh = time.monotonic()
        try:
            while not self._stop.wait(self._stale_s / 4):
                try:
                    if not self._mine():
                        return
                    self._hurried.write(self._name, self._content())
                    fresh = time.monotonic()
                except OSError:  # a network that comes back in time costs nothing
                    if time.monotonic() - fresh > self._stale_s:
                        return
        finally:
            if not self._stop.is_set():
                self._lost.set()

    def _content(self) -> bytes:
        return json.dumps({"owner": self._owner, "time": time.time()}).encode()

    def _mine(self) -> bool:
        return self._owner.encode() in (self._hurried.read(self._name) or b"")

    def _stale(self, held: bytes, unchanged_s: float) -> bool:
        return unchanged_s > self._stale_s or lease_age(held) > 10 * self._stale_s or _died_here(held)


def _died_here(content: bytes) -> bool:
    """Whether a lease's owner was a process of this machine that is no more; nobody has to wait for its silence."""
    try:
        host, pid, _ = str(json.loads(content)["owner"]).rsplit(":", 2)
        if host == socket.gethostname():
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return False


def lease_age(content: bytes) -> float:
    """Seconds since a lease was last written, by the clocks of two nodes; 0 while it is being written."""
    try:
        return time.time() - float(json.loads(content)["time"])
    except (ValueError, KeyError, TypeError):
        return 0.0
