"""Leases between nodes: an object that names the process working on a key (no torch, no Ray)."""

import json
import os
import socket
import threading
import time
import uuid

from trainables.locks import without_shares
from trainables.store.objects import Objects


class Lease:
    """An object that names its owner, which rewrites it as a heartbeat while it works.

    A waiter takes a lease over once its content has not changed for `stale_s` on the waiter's own clock. It takes it
    over at once if the lease is older than ten times that (clocks of nodes differ by less), or if its owner was a
    process of this machine that has died.

    A lease avoids duplicate work but does not guarantee exclusion: for a short time there may be two owners. If the
    file system has no exclusive creation, or two waiters take over a stale lease at once, the last writer within the
    settling time (0.25 s) owns it. A writer slower than that, or one cut off or suspended for longer than `stale_s`,
    continues until its next heartbeat (every quarter of `stale_s`) or `check`. Correct results therefore do not depend
    on it: the store names contents by their digest and commits with one object, so two owners only waste time.
    """

    def __init__(self, objects: Objects, name: str, *, stale_s: float) -> None:
        self._objects, self._name, self._stale_s = objects, name, stale_s
        self._impatient = objects.without_retries()  # a heartbeat must not block
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        # a second writer that saw no lease either has written by then
        self._settle_s = min(0.25, stale_s / 20)
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Wait until the current owner releases the lease or falls silent, take it, and renew it in a thread."""
        with without_shares():
            self._wait()
            self._thread = threading.Thread(target=self._renew, name=f"lease {self._name}", daemon=True)
            self._thread.start()

    def _wait(self) -> None:
        seen, since = b"", time.monotonic()
        while True:
            held = self._objects.read(self._name)
            if held is None:
                claimed = self._objects.create(self._name, self._content())
            else:
                if held != seen:
                    seen, since = held, time.monotonic()
                claimed = self._is_stale(held, time.monotonic() - since)
                if claimed:
                    self._objects.write(self._name, self._content())
            if claimed:
                time.sleep(self._settle_s)
                if self._is_mine():
                    return
            else:
                time.sleep(min(2.0, self._stale_s / 10))

    def check(self) -> None:
        """Raise if another node has taken the lease over.

        Raises:
            ConnectionError: transient; the work now belongs to another node.
        """
        if self._lost.is_set():
            raise ConnectionError(f"lease {self._name} of {self._owner} went to another node; was this one cut off?")

    def release(self) -> None:
        """Stop renewing the lease and delete it, so that the next waiter can take it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._stale_s)
        try:
            if not self._lost.is_set() and self._is_mine():
                self._impatient.delete([self._name])
        except OSError:  # the network is down: others will find the lease stale
            return

    def _renew(self) -> None:
        """Rewrite the lease every quarter of `stale_s`, so that it survives two lost heartbeats."""
        fresh = time.monotonic()
        try:
            while not self._stop.wait(self._stale_s / 4):
                try:
                    if not self._is_mine():
                        return
                    self._impatient.write(self._name, self._content())
                    fresh = time.monotonic()
                except OSError:  # the network may come back before the lease is stale
                    if time.monotonic() - fresh > self._stale_s:
                        return
        finally:
            if not self._stop.is_set():
                self._lost.set()

    def _content(self) -> bytes:
        return json.dumps({"owner": self._owner, "time": time.time()}).encode()

    def _is_mine(self) -> bool:
        return self._owner.encode() in (self._impatient.read(self._name) or b"")

    def _is_stale(self, held: bytes, unchanged_s: float) -> bool:
        return unchanged_s > self._stale_s or lease_age(held) > 10 * self._stale_s or _died_here(held)


def _died_here(content: bytes) -> bool:
    """Whether a lease's owner was a process of this machine that has died, so that waiting for it is pointless."""
    try:
        host, pid, _ = str(json.loads(content)["owner"]).rsplit(":", 2)
        if host == socket.gethostname():
            os.kill(int(pid), 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return False


def lease_age(content: bytes) -> float:
    """Seconds since a lease was last written, from the clocks of two nodes; 0 if it cannot be read yet."""
    try:
        return time.time() - float(json.loads(content)["time"])
    except (ValueError, KeyError, TypeError):
        return 0.0
