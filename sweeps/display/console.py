"""The output of a sweep: to a person on a terminal or in a log, or to a program."""

import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from rich import get_console
from rich.status import Status
from rich.text import Text

from analysis.reading.doors import Terminal
from sweeps.display.notebook import COLUMNS, Place
from trainables.config.escaping import hide_password, plain

MODES = ("people", "quiet", "json")


class Screen(Terminal):
    """Standard output in the format that the command line asks for.

    people  a live view on a terminal or in a notebook, plain lines elsewhere, then the result
    quiet   the result alone
    json    one JSON object per line for every event; text for people goes to standard error
    """

    def __init__(self, mode: str = "people", *, file: TextIO | None = None, **settings: Any) -> None:
        """Write to `file`, standard output by default; `settings` are those of a rich `Console`."""
        assert mode in MODES, mode
        self.mode = mode
        self._events = file or sys.stdout
        self._launched: float | None = None
        self._waiting: Status | None = None
        self.start_s: float | None = None
        """Seconds from launch to the first trial; None before that."""
        people = sys.stderr if mode == "json" else file
        self.place: Place | None = None
        """The part of a notebook's output in which the sweep is drawn; None elsewhere."""
        if mode == "people" and file is None and get_console().is_jupyter:
            self.place = Place()
            # its standard output says that it is a terminal, and cannot move a cursor
            settings = {"width": COLUMNS, "force_terminal": False, **settings}
        # rich would put every line into an output of its own
        super().__init__(file=people, force_jupyter=False, **settings)

    def event(self, name: str, **fields: Any) -> None:
        """Write an event with its Unix time in seconds, for programs; does nothing in other modes than `json`."""
        if self.mode == "json":
            said = {key: hide_password(text) if isinstance(text, str) else text for key, text in fields.items()}
            row = {"event": name, "time": round(time.time(), 3), **said}
            try:
                self._events.write(json.dumps(row, default=str) + "\n")
                self._events.flush()  # a program that follows the sweep must not wait for a full buffer
            except BrokenPipeError:
                _go_on_without(self._events)

    def alone(self) -> AbstractContextManager[object]:
        """Keep other prints, such as those of the user's module, out of the events: they go to standard error."""
        return redirect_stdout(sys.stderr) if self.mode == "json" else nullcontext()

    def on_broken_pipe(self) -> None:
        """Go on without a reader: of `| tee log`, Ctrl-C ends tee as well, and `| head` has seen enough."""
        _go_on_without(self.file)

    def launch(self) -> None:
        """Start the clock of `start_s`."""
        self._launched = time.monotonic()

    def first_trial(self) -> None:
        """Stop the clock of `start_s`; only the first call counts."""
        if self._launched is not None and self.start_s is None:
            self.start_s = time.monotonic() - self._launched

    def note(self, text: str) -> None:
        """Show `text` in a notebook, until the sweep is drawn there; nothing elsewhere."""
        if self.place is not None:
            self.place.say(text)

    def wait(self, text: str) -> None:
        """Show a spinner with `text` on a terminal, until `go_on`; in a notebook `text`, until the sweep is drawn."""
        self.go_on()
        self.note(text)
        if self.mode == "people" and self.is_terminal:
            self._waiting = self.status(Text(plain(text)))
            self._waiting.start()

    def go_on(self) -> None:
        """Stop the spinner of `wait`."""
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None

    def busy(self, text: str) -> AbstractContextManager[object]:
        """A spinner with `text` for the length of a `with` block; in a notebook `text`, until the sweep is drawn."""
        if self.place is not None:
            self.note(text)
            return nullcontext()
        return self.status(Text(plain(text))) if self.mode == "people" else nullcontext()


def _go_on_without(stream: IO[str]) -> None:
    """Send a stream that nobody reads any more to nowhere, and say so once."""
    with Path(os.devnull).open("w") as nowhere, suppress(OSError, ValueError):
        os.dup2(nowhere.fileno(), stream.fileno())
    if stream is not sys.stderr:
        with suppress(OSError):
            sys.stderr.write("Nobody reads standard output any more; the sweep goes on without it.\n")
