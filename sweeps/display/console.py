"""Where a sweep speaks: to a person on a terminal or in a log, or to a program."""

import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rich.console import Console
from rich.status import Status

MODES = ("people", "quiet", "json")


class Screen(Console):
    """Standard output as the command line asks for it.

    people  a live view on a terminal, plain lines elsewhere, then the result
    quiet   the result alone
    json    one JSON object a line for every event; what is said to people goes to standard error
    """

    def __init__(self, mode: str = "people", *, file: TextIO | None = None, **settings: Any) -> None:
        """Speak to `file`, standard output by default; `settings` are those of a rich `Console`."""
        assert mode in MODES, mode
        self.mode = mode
        self._events = file or sys.stdout
        self._launched: float | None = None
        self._waiting: Status | None = None
        self.start_s: float | None = None
        """Seconds from launch to the first trial; None before that."""
        people = sys.stderr if mode == "json" else file
        super().__init__(file=people, highlight=False, **settings)

    def event(self, name: str, **fields: Any) -> None:
        """Tell a program what has happened, with the Unix time in seconds; people are told by others."""
        if self.mode == "json":
            row = {"event": name, "time": round(time.time(), 3), **fields}
            self._events.write(json.dumps(row, default=str) + "\n")
            self._events.flush()

    def launch(self) -> None:
        """The clock of `start_s` begins."""
        self._launched = time.monotonic()

    def first_trial(self) -> None:
        """A trial has begun; only the first one counts."""
        if self._launched is not None and self.start_s is None:
            self.start_s = time.monotonic() - self._launched

    def wait(self, text: str) -> None:
        """Show people on a terminal, until `go_on`, that something takes a moment."""
        self.go_on()
        if self.mode == "people" and self.is_terminal:
            self._waiting = self.status(text)
            self._waiting.start()

    def go_on(self) -> None:
        """The moment is over."""
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None

    def busy(self, text: str) -> AbstractContextManager[object]:
        """Show people on a terminal that something takes a moment."""
        return self.status(text) if self.mode == "people" else nullcontext()
