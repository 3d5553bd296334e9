"""The views of a running sweep: a live screen, in a notebook, too, plain lines, the result alone, JSON for programs."""

from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live

from sweeps.cluster.usage import Usage
from sweeps.display.console import Screen
from sweeps.display.durations import Range
from sweeps.display.live import ended, remaining, screen
from sweeps.display.notebook import COLUMNS, LINES, Place, Redrawing
from sweeps.display.standing import Standing
from trainables.records.trial import TrialRecord

REFRESHES_PER_S = 1.0


class View(Protocol):
    """A way to show a standing."""

    def start(self) -> None:
        """Begin to show the sweep."""

    def ended(self, label: str, record: TrialRecord, score: float | None, summary: str) -> None:
        """Show that a trial is over; `score` in points and `summary` on one line, if it has a result."""

    def stop(self) -> None:
        """Stop showing the sweep: it has ended, or was interrupted."""


def view_of(console: Console, standing: Standing, *, gpus: bool) -> View:
    """The view for the console's mode, and for whether it is a terminal."""
    mode = console.mode if isinstance(console, Screen) else "people"
    if mode == "json":
        assert isinstance(console, Screen)
        return JsonView(console, standing)
    if mode == "quiet":
        return NoView()
    if isinstance(console, Screen) and console.place is not None:
        return NotebookView(console, console.place, standing, gpus=gpus)
    return LiveView(console, standing, gpus=gpus) if console.is_terminal else LineView(console, standing)


class NoView:
    """A view that shows nothing."""

    def start(self) -> None:
        """Nothing."""

    def ended(self, label: str, record: TrialRecord, score: float | None, summary: str) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class LineView:
    """A view with one line per trial, for logs."""

    def __init__(self, console: Console, standing: Standing) -> None:
        self._console, self._standing = console, standing

    def start(self) -> None:
        """Print what runs."""
        for line in (self._standing.title, self._standing.teacher):
            if line:
                self._console.print(line, soft_wrap=True)

    def ended(self, label: str, record: TrialRecord, score: float | None, summary: str) -> None:
        """Print a trial's result, and the time left."""
        now = self._standing
        text = f"[{now.done}/{now.trials}] trial {label}  {summary or f'{record.status}: {record.reason}'}"
        style = {"finished": "", "failed": "yellow"}.get(record.status, "dim")
        left = now.left() if now.goes_on else None
        ahead = remaining(left) if left and left.high >= 1 else ""
        self._console.print(f"{text}  {ahead}".rstrip(), style=style, soft_wrap=True)

    def stop(self) -> None:
        """Nothing: the result follows."""


class LiveView:
    """A view of one screen, redrawn once a second; only failures leave a line of their own."""

    def __init__(self, console: Console, standing: Standing, *, gpus: bool) -> None:
        self._console, self._standing = console, standing
        self._usage = Usage(gpus=gpus)
        self._live: Live | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield screen(self._standing, self._usage.text, width=options.max_width, height=console.size.height)

    def start(self) -> None:
        """Draw until `stop`, in a thread, so that the clock keeps running while a trial is delivered."""
        self._usage.start()
        self._live = Live(self, console=self._console, refresh_per_second=REFRESHES_PER_S, transient=True)
        self._live.start()

    def ended(self, label: str, record: TrialRecord, score: float | None, summary: str) -> None:
        """Print why a trial has failed; other results are on the next redraw."""
        if record.status == "failed":
            text = f"trial {label}  failed: {record.reason}"
            self._console.print(text, style="yellow", soft_wrap=True)

    def stop(self) -> None:
        """Remove the screen: the result follows."""
        self._usage.stop()
        if self._live is not None:
            self._live.stop()
            self._live = None


class NotebookView:
    """A view of one place in a cell's output; when the sweep has ended, one line of it stays."""

    def __init__(self, console: Console, place: Place, standing: Standing, *, gpus: bool) -> None:
        self._console, self._standing = console, standing
        self._usage = Usage(gpus=gpus)
        self._redrawing = Redrawing(place, lambda: screen(standing, self._usage.text, width=COLUMNS, height=LINES))

    def start(self) -> None:
        """Draw until `stop`."""
        self._usage.start()
        self._redrawing.start()

    def ended(self, label: str, record: TrialRecord, score: float | None, summary: str) -> None:
        """Print why a trial has failed; other results are on the next redraw."""
        if record.status == "failed":
            self._console.print(f"trial {label}  failed: {record.reason}", soft_wrap=True)

    def stop(self) -> None:
        """Leave how far it came: the result follows."""
        self._usage.stop()
        self._redrawing.stop(ended(self._standing))


class JsonView:
    """A view with one JSON object per line: `started` and `trial`; the command adds `finished`."""

    def __init__(self, screen: Screen, standing: Standing) -> None:
        self._screen, self._standing = screen, standing

    def start(self) -> None:
        """Write what runs."""
        now = self._standing
        counts = {"done": now.done, "trials": now.trials, "concurrency": now.concurrency}
        self._screen.event("started", phase=now.phase, title=now.title, teacher=now.teacher, **counts)

    def ended(self, label: str, record: TrialRecord, score: float | None, summary: str) -> None:
        """Write everything that is known of a trial."""
        now = self._standing
        self._screen.event(
            "trial",
            phase=now.phase,
            trial=label,
            status=record.status,
            reason=record.reason,
            score=score,
            metrics=dict(record.metrics),
            params=dict(record.params),
            done=now.done,
            trials=now.trials,
            left_s=_seconds(now.left()),
        )

    def stop(self) -> None:
        """Nothing: the command writes the last event."""


def _seconds(left: Range | None) -> dict[str, float] | None:
    """An estimate in seconds, rounded to tenths, for JSON."""
    if left is None:
        return None
    return {name: round(getattr(left, name), 1) for name in ("low", "expected", "high")}
