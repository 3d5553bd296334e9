"""Handle Ctrl-C and SIGTERM: the first ends a sweep in order, the second at once."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray import tune
from ray.tune import ResultGrid
from ray.tune.experiment import Trial

from sweeps.cluster.ray_private import dead_process, owns_ray

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# `timeout` and others signal both a process and its group: signals within this time count as one request.
ONE_REQUEST_S = 0.5
DYING_S = 3.0  # how long Ray's processes take to end after a signal


class Interrupted(KeyboardInterrupt):
    """The sweep was asked to stop; everything finished so far is on disk."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number

    @property
    def code(self) -> int:
        """Exit code as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class RayDiedError(Interrupted):
    """A process of this machine's own Ray has died, and with it every trial; the same command goes on."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process


class WatchRay(tune.Callback):
    """End a run of Tune when this machine's own Ray has died: Tune would wait for ever for its trials."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune: its loop goes on, ten times a second."""
        raise_if_ray_died()
        if _now.waits and time.monotonic() > _now.asked + DYING_S:
            _now.waits = False
            os.kill(os.getpid(), signal.SIGUSR1)


class _Stopping:
    """The signal received so far, and whether Tune runs."""

    number: int | None = None
    asked = 0.0
    """When it came, on the monotonic clock."""
    running = False
    waits = False
    """Whether Tune is told to stop only when it is clear that Ray has not died by the same signal."""


_now = _Stopping()


class StoppableTuner(tune.Tuner):
    """A Tuner whose `fit` returns when the sweep is asked to stop; running trials stay in the study."""

    def fit(self) -> ResultGrid:
        """As in Tune.

        Raises:
            Interrupted: if the sweep was asked to stop, before or meanwhile, or this machine's own Ray has died.
        """
        raise_if_asked()
        before = signal.getsignal(signal.SIGUSR1)  # Tune stops in order on this signal, and never restores its handler
        _now.running = True
        try:
            results = super().fit()
        finally:
            _now.running = False
            signal.signal(signal.SIGUSR1, before)
        raise_if_asked()
        raise_if_ray_died()
        return results


@contextmanager
def stoppable() -> Generator[None, None, None]:
    """Handle both signals within; enter after `ray.init`, which installs its own handler of SIGTERM."""
    _now.number, _now.waits = None, False
    handlers = {number: signal.signal(number, _stop) for number in STOP_SIGNALS}
    handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: raise_if_asked())  # until Tune takes it over
    try:
        with _heard_at_once():
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _heard_at_once() -> Generator[None, None, None]:
    """Answer signals within at once, even while the main thread waits in Ray for a second or more.

    Python runs its handlers between two steps of the main thread, and merges equal signals that arrive before. The
    C-level handler writes every signal to a pipe, which a thread reads.
    """
    heard, written = os.pipe()
    os.set_blocking(written, False)
    before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(heard,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(written)
        listener.join()
        os.close(heard)


def _listen(heard: int) -> None:
    first: float | None = None
    while signals := os.read(heard, 1):
        if signals[0] not in STOP_SIGNALS:
            continue
        if first is None:
            first = time.monotonic()
            print("Stopping in order; once more stops at once.", file=sys.stderr, flush=True)
        elif time.monotonic() - first > ONE_REQUEST_S:
            if not hasattr(sys, "ps1"):
                os._exit(128 + signals[0])
            # a notebook or an interpreter: what is in its memory is the user's
            main = ctypes.c_ulong(threading.main_thread().ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(KeyboardInterrupt))


def raise_if_asked() -> None:
    """Raise `Interrupted` if the sweep has been asked to stop."""
    if _now.number is not None:
        raise Interrupted(_now.number)


def raise_if_ray_died() -> None:
    """Raise `Interrupted` if this machine's own Ray has died: by the signal that the sweep got, or by itself."""
    if (process := dead_process()) is not None:
        raise_if_asked()
        raise RayDiedError(process)


def _stop(number: int, frame: FrameType | None) -> None:
    if _now.number is not None:
        return  # `_listen` handles the second one
    _now.number, _now.asked = number, time.monotonic()
    if not _now.running:
        raise Interrupted(number)
    # SIGTERM to the process group or the whole job ends our Ray, too, and Tune's own end would wait a minute for it;
    # of Ctrl-C, Ray's processes hear nothing
    _now.waits = number == signal.SIGTERM and owns_ray()
    if not _now.waits:
        os.kill(os.getpid(), signal.SIGUSR1)
