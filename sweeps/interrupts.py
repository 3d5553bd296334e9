"""Ctrl-C and SIGTERM: the first ends a sweep in order, the second at once."""

import sweeps.ray_settings  # noqa: F401  # before anything imports Ray

# isort: split
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from ray import tune
from ray.tune import ResultGrid

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The sweep was asked to stop; everything finished so far is on disk."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number

    @property
    def code(self) -> int:
        """Exit code as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class _Stopping:
    """What has been asked for so far."""

    number: int | None = None
    running = False


_now = _Stopping()


class StoppableTuner(tune.Tuner):
    """A Tuner whose `fit` comes back when the sweep is asked to stop; trials in flight stay in the study."""

    def fit(self) -> ResultGrid:
        """As in Tune.

        Raises:
            Interrupted: if the sweep was asked to stop, before or meanwhile.
        """
        raise_if_asked()
        before = signal.getsignal(signal.SIGUSR1)  # Tune stops in order on this one, and never puts it back
        _now.running = True
        try:
            results = super().fit()
        finally:
            _now.running = False
            signal.signal(signal.SIGUSR1, before)
        raise_if_asked()
        return results


@contextmanager
def stoppable() -> Generator[None, None, None]:
    """Handle both signals within; to be entered after `ray.init`, which takes SIGTERM for itself."""
    _now.number = None
    handlers = {number: signal.signal(number, _stop) for number in STOP_SIGNALS}
    handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: raise_if_asked())  # until Tune takes it over
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def raise_if_asked() -> None:
    """Raise `Interrupted` if the sweep has been asked to stop."""
    if _now.number is not None:
        raise Interrupted(_now.number)


def _stop(number: int, frame: FrameType | None) -> None:
    if _now.number is not None:
        os._exit(128 + number)
    _now.number = number
    if not _now.running:
        raise Interrupted(number)
    os.kill(os.getpid(), signal.SIGUSR1)
